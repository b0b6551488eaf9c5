"""What the training loop costs: over what a step has to cost, and against the common way."""

from statistics import median
from time import perf_counter

import fastgar as fg

from . import plain
from .profiles import FULL

# Of whatever is timed against something else: turns, taken alternately; medians count.
TURNS = 5


def images(samples=4000, classes=10):
    """Return random images in the shape of MNIST: what they show does not matter for time."""
    import torch

    from fastgar.train import Data

    draw = torch.Generator().manual_seed(0)
    x = torch.rand(samples, 1, 28, 28, generator=draw)
    y = torch.arange(samples) % classes
    return Data(x, y, x[:200], y[:200], classes)


def alternately(calls, turns=TURNS):
    """Return the median time of each call."""
    times = [[] for _ in calls]
    for _ in range(turns):
        for call, seconds in zip(calls, times, strict=True):
            began = perf_counter()
            call()
            seconds.append(perf_counter() - began)
    return [median(seconds) for seconds in times]


class Step:
    """A step with 20 honest workers on the MLP of 79,510 parameters.

    `time_minimum` is one forward and backward pass over all samples of the step and one
    aggregation of 20 rows that are there already: no gradients per worker, no draws, no momentum,
    no update. `track_overhead` is the ratio of the two, measured alternately; it is to stay below
    1.3. Each has all threads.
    """

    param_names = ["rule", "batch"]
    params = [["mean", "median", "krum"], [83] if not FULL else [32, 83, 256]]
    workers = 20

    def setup(self, rule, batch):
        import torch
        import torch.nn.functional as F

        from fastgar.train import Config, Training
        from fastgar.train.models import build

        data = images()
        endless = 10**9
        config = Config(
            workers=self.workers, byzantine=0, declared=4, rule=rule, attack="none", batch=batch,
            steps=endless, evaluate_every=endless,
        )  # fmt: skip
        self.steps = iter(Training(config, data=data))
        network = build("mlp", data, seed=0)
        picked = torch.randint(len(data.x), (self.workers * batch,))
        x, y = data.x[picked], data.y[picked]
        rows = torch.randn(self.workers, sum(p.numel() for p in network.parameters()))
        aggregate = fg.rule(rule, f=None if rule == "mean" else 4)

        def minimum():
            network.zero_grad()
            F.cross_entropy(network(x), y).backward()
            aggregate(rows)

        self.minimum = minimum
        for _ in range(5):
            self.time_step()
            self.time_minimum()

    def time_step(self, *parameters):
        next(self.steps)

    def time_minimum(self, *parameters):
        self.minimum()

    def track_overhead(self, *parameters):
        step, least = alternately([self.time_step, self.time_minimum], turns=100)
        return step / least

    track_overhead.unit = "x"


class Run:
    """A run of the momentum grid as `fastgar reproduce` does it, against `plain`, on one thread.

    Both record norms, deviations, cosines and curvature of each step, or neither does. On the
    images, of the size of MNIST's, a run is cut to 20 steps.
    """

    param_names = ["data", "rule", "records"]
    params = [
        ["digits", "images"],
        list(plain.RULES) if FULL else ["krum", "median", "bulyan"],
        [True, False],
    ]
    timeout = 600

    def setup(self, data, rule, records):
        import torch

        from fastgar.train import load
        from fastgar.train.reproduce import execute
        from fastgar.train.reproduce.grids import momentum

        grid = momentum.grid("digits" if data == "digits" else "mnist")
        setting = next(
            s for s in reversed(grid.settings)
            if s.tags["rule"] == rule and s.tags["attack"] == "little" and not s.tags["nesterov"]
        )  # fmt: skip
        self.threads = torch.get_num_threads(), fg.get_threads()
        torch.set_num_threads(1)
        fg.set_threads(1)
        self.config = {**setting.config, "metrics": records}
        self.data = load("digits") if data == "digits" else images()
        if data == "images":
            self.config |= {"steps": 20, "evaluate_every": 20, "data": "digits"}
        self.load, execute._data = execute._data, lambda name: self.data
        self.execute = execute
        self.ours()

    def teardown(self, *parameters):
        import torch

        self.execute._data = self.load
        torch.set_num_threads(self.threads[0])
        fg.set_threads(self.threads[1])

    def ours(self):
        self.execute.execute(self.config, seed=1)

    def plain(self):
        same = ("workers", "batch", "steps", "lr", "momentum", "clip", "weight_decay",
                "evaluate_every")  # fmt: skip
        options = {name: self.config[name] for name in same}
        rule = {"multi_krum": "krum"}.get(self.config["rule"], self.config["rule"])
        at_worker = self.config["momentum_at"] == "worker"
        f, record = self.config["byzantine"], self.config["metrics"]
        plain.train(self.data, rule, "little", f=f, at_worker=at_worker, record=record, **options)

    def track_ours(self, *parameters):
        return alternately([self.ours], turns=3)[0]

    def track_plain(self, *parameters):
        return alternately([self.plain], turns=2)[0]

    def track_speedup(self, *parameters):
        ours, common = alternately([self.ours, self.plain], turns=3)
        return common / ours

    track_ours.unit = track_plain.unit = "s"
    track_speedup.unit = "x"
