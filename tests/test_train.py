"""Training under attack: the loop against a plain one, its parts, ranks, and the command."""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgar as fg
from fastgar import attacks
from fastgar.cli import main
from fastgar.cli.train_flags import DEFAULTS, add_settings, given_settings

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from torch import Tensor, nn  # noqa: E402

from fastgar.train import Config, Data, Result, Training, load, run  # noqa: E402
from fastgar.train.gradients import Batched, LayerByLayer, Layout, OneByOne, choose  # noqa: E402
from fastgar.train.models import build  # noqa: E402
from fastgar.train.ranks import Ranks  # noqa: E402
from fastgar.train.rates import schedule  # noqa: E402
from fastgar.train.reproduce.execute import execute  # noqa: E402
from fastgar.train.results import Results  # noqa: E402
from fastgar.train.roles import Roles  # noqa: E402
from fastgar.train.rundir import Mismatch  # noqa: E402
from fastgar.train.settings import check, document, setting  # noqa: E402
from fastgar.train.workers import Batches, hold_back  # noqa: E402
from fastgar.train.worst import every_attack  # noqa: E402

ROOT = Path(fg.__file__).parent.parent
DIGITS = load("digits")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Let torch use one thread, as the command does: the matrices are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def digits(**options: Any) -> Result:
    return run("mlp", DIGITS, **options)


# ------------------------------------------------------------------- the loop against a plain one


class Plain:
    """The same training, as one would write it down: a backward pass per worker, numpy, lists.

    It is given the batches, and who took part, and nothing else.
    """

    def __init__(self, config: Config, model: nn.Module) -> None:
        self.c, self.model = config, copy.deepcopy(model)
        self.theta = nn.utils.parameters_to_vector(model.parameters()).detach().double().numpy()
        self.server = np.zeros_like(self.theta)
        self.workers = np.zeros((config.workers, len(self.theta)))
        self.t = 0

    def rate(self) -> float:
        if self.c.schedule.startswith("steps"):
            return self.c.lr * 0.5 ** (self.t // 4)
        return self.c.lr / (self.t / 5 + 1) if self.c.schedule != "constant" else self.c.lr

    def gradient(self, point: np.ndarray, x: Tensor, y: Tensor) -> np.ndarray:
        vector = torch.from_numpy(point).float()
        nn.utils.vector_to_parameters(vector, self.model.parameters())
        self.model.zero_grad()
        nn.functional.cross_entropy(self.model(x), y).backward()
        parts = [p.grad.flatten() for p in self.model.parameters()]
        g = torch.cat(parts).double().numpy()
        if self.c.l2 == "squared":
            g = g + self.c.weight_decay * point
        elif self.c.weight_decay:
            g = g + self.c.weight_decay**2 * point / np.linalg.norm(point)
        length = np.linalg.norm(g)
        return g * (self.c.clip / length) if self.c.clip and length > self.c.clip else g

    def step(self, who: Sequence[int], honest: int, x: Tensor, y: Tensor) -> None:
        c, lr, mu = self.c, self.rate(), self.c.momentum
        rows = []
        for number, i in enumerate(who):
            ahead = self.workers[i] if c.momentum_at == "worker" else self.server
            point = self.theta - mu * lr * ahead if c.nesterov else self.theta
            local, message = point, 0.0
            for k in range(c.local_steps):
                label = 9 - y[number, k] if c.attack == "label_flip" and number >= honest else None
                g = self.gradient(local, x[number, k], y[number, k] if label is None else label)
                local = local - lr * g
            message = (point - local) / lr
            if c.momentum_at == "worker":
                message = self.workers[i] = mu * self.workers[i] + message
            elif c.momentum_at == "mixed":
                message = message + mu * self.server
            rows.append(message)
        if c.attack == "sign_flip":
            rows = rows[:honest] + [-np.mean(rows[:honest], axis=0)] * (c.taking_part - honest)
        aggregate = (np.median if c.rule == "median" else np.mean)(np.array(rows), axis=0)
        if c.momentum_at == "server":
            self.server = mu * self.server + aggregate
            self.theta = self.theta - lr * self.server
        else:
            self.server = aggregate if c.momentum_at == "mixed" else self.server
            self.theta = self.theta - lr * aggregate
        self.t += 1


CASES = [
    {"momentum_at": "server"},
    {"momentum_at": "worker"},
    {"momentum_at": "mixed"},
    {"momentum": 0.0},
    {"momentum_at": "server", "nesterov": True},
    {"momentum_at": "worker", "nesterov": True},
    {"momentum_at": "mixed", "nesterov": True},
    {"momentum": 0.0, "nesterov": True, "momentum_at": "worker"},
    {"clip": 0.3},
    {"clip": 0.9, "momentum_at": "worker", "weight_decay": 0.05},
    {"weight_decay": 0.05, "nesterov": True, "momentum_at": "worker"},
    {"weight_decay": 0.2, "l2": "norm"},
    {"weight_decay": 0.2, "l2": "norm", "nesterov": True, "momentum_at": "worker"},
    {"schedule": "steps(every=4, factor=0.5)"},
    {"schedule": "steps(at=(4, 8), factor=0.5)", "momentum_at": "worker", "nesterov": True},
    {"schedule": "inverse(decay=5)", "nesterov": True},
    {"local_steps": 3},
    {
        "local_steps": 2,
        "momentum_at": "worker",
        "nesterov": True,
        "clip": 0.5,
        "weight_decay": 0.01,
    },
    {"participation": 0.6},
    {"participation": 0.6, "momentum_at": "worker", "nesterov": True},
    {"participation": 0.6, "momentum_at": "worker", "attack": "label_flip"},
    {"rule": "median", "attack": "sign_flip"},
    {"rule": "median", "attack": "sign_flip", "momentum_at": "worker"},
    {"rule": "median", "attack": "sign_flip", "momentum_at": "mixed", "participation": 0.8},
    {"rule": "median", "attack": "label_flip", "momentum_at": "worker", "local_steps": 2},
]


@pytest.mark.parametrize("options", CASES, ids=lambda o: " ".join(f"{k}={v}" for k, v in o.items()))
def test_the_loop_does_what_a_plain_one_does(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(
        workers=10, byzantine=2, batch=8, steps=12, lr=0.2, **options
    )  # steps enough for every schedule
    model = build("mlp(hidden=12)", DIGITS, seed=5)
    plain, parts = Plain(config, model), []
    draw, take = Roles.draw, Batches.take
    monkeypatch.setattr(Roles, "draw", lambda *a: parts.append(draw(*a)) or parts[-1])

    def spy(self: Batches, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = take(self, indices)
        plain.step(parts[-1].workers.tolist(), parts[-1].honest, x.clone(), y.clone())
        return x, y

    monkeypatch.setattr(Batches, "take", spy)
    training = Training(config, model, DIGITS)
    for _ in training:
        np.testing.assert_allclose(training.theta.numpy(), plain.theta, rtol=1e-4, atol=2e-5)
    assert plain.t == 12 and training.result.stopped is None
    moved = nn.utils.parameters_to_vector(model.parameters()).detach().numpy() - plain.theta
    assert np.linalg.norm(moved) > 0.05


def test_mean_has_the_same_trajectory_with_momentum_at_workers_and_server() -> None:
    # The mean is linear; Krum picks one row and is not.
    found = {}
    for rule in ("mean", "krum"):
        for where in ("worker", "server"):
            result = digits(rule=rule, steps=20, momentum_at=where)
            found[rule, where] = result.parameters.numpy()
    np.testing.assert_allclose(found["mean", "worker"], found["mean", "server"], atol=1e-5)
    assert not np.allclose(found["krum", "worker"], found["krum", "server"], atol=1e-3)


def test_workers_draw_from_their_own_shares() -> None:
    shares = [torch.tensor([3, 5]), torch.tensor([1]), torch.tensor([0, 2, 4])]
    batches = Batches(DIGITS, shares)
    draw = torch.Generator().manual_seed(0)
    drawn = batches.draw(400, draw)
    for row, share in zip(drawn, shares, strict=True):
        counts = torch.bincount(row, minlength=6)[share]
        assert int(counts.sum()) == 400 and int(counts.min()) > 400 / len(share) * 0.7
    x, y = batches.take(drawn.view(3, 20, 20))
    assert torch.equal(x[2, 7, 9], DIGITS.x[drawn.view(3, 20, 20)[2, 7, 9]])
    assert y.shape == (3, 20, 20) and x.shape == (3, 20, 20, 1, 8, 8)


# --------------------------------------------------------------------------------------- gradients


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x.flatten(1))
        return h if h.sum() > 0 else 2 * h


class Tied(nn.Module):
    """Two modules that share a parameter, and buffers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.up.weight = self.down.weight
        self.register_buffer("mask", torch.arange(64) % 3 > 0)
        self.register_buffer("unknown", torch.tensor([torch.nan, 1.0]))
        self.register_buffer("calls", torch.tensor(5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(torch.tanh(self.down(x.flatten(1)))) * self.mask
        return self.last(h)


def chain(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), *layers)


twice = nn.Linear(64, 64)
MODELS = {
    "chain": (chain(nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 10)),
              LayerByLayer),
    "no bias": (chain(nn.Linear(64, 9, bias=False), nn.GELU(), nn.Linear(9, 10)), LayerByLayer),
    "first elementwise": (chain(nn.Sigmoid(), nn.Linear(64, 10)), LayerByLayer),
    "in place": (chain(nn.Linear(64, 9), nn.ReLU(inplace=True), nn.Linear(9, 10)), Batched),
    "layer twice": (chain(twice, nn.ReLU(), twice, nn.Linear(64, 10)), Batched),
    "normalised": (chain(nn.Linear(64, 9), nn.LayerNorm(9), nn.Linear(9, 10)), Batched),
    "convolution": (nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 10)), Batched),
    "batch statistics": (nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(),
                                       nn.Linear(108, 10)), Batched),
    "tied": (Tied(), Batched),
    "branches": (Branches(), OneByOne),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("each", [False, True], ids=["one point", "a point for each"])
def test_gradients_are_those_of_backward_passes(name: str, each: bool) -> None:
    model, kind = MODELS[name]
    model = copy.deepcopy(model).train()
    layout, n, batch = Layout(model), 4, 6
    picks = torch.randint(1000, (n, batch), generator=torch.Generator().manual_seed(3))
    x, y = DIGITS.x[picks], DIGITS.y[picks]
    method, moving = choose(model, layout, x[:2], y[:2])
    assert type(method) is kind
    flat = layout.flat(model)
    points = flat + each * 0.02 * torch.randn(n, layout.total, generator=torch.Generator())
    buffers = {k: b.expand(n, *b.shape).clone() for k, b in model.named_buffers() if k in moving}
    rows = torch.full((n, layout.total + 5), torch.nan)[:, 2:-3]  # rows that do not adjoin
    losses = method(points if each else flat, buffers, x, y, rows)
    for i in range(n):
        one = copy.deepcopy(model)
        nn.utils.vector_to_parameters(points[i], one.parameters())
        loss = nn.functional.cross_entropy(one(x[i]), y[i])
        loss.backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in one.parameters()]
        expected = torch.cat([g.flatten() for g in gradients])
        torch.testing.assert_close(rows[i], expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(losses[i], loss.detach())
        for key, stack in buffers.items():
            torch.testing.assert_close(stack[i], dict(one.named_buffers())[key])
    assert bool(moving) == (name == "batch statistics")
    torch.testing.assert_close(layout.flat(model), flat, rtol=0, atol=0)


@pytest.mark.parametrize("model", ["chain", "convolution", "batch statistics"])
def test_runs_are_the_same_one_by_one(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        "rule": "median",
        "attack": "little",
        "steps": 10,
        "workers": 6,
        "byzantine": 1,
        "lr": 0.1,
    }
    usual = run(MODELS[model][0], DIGITS, **options)
    monkeypatch.setattr("fastgar.train.gradients._chain", lambda *_: None)
    if model == "chain":
        batched = run(MODELS[model][0], DIGITS, **options)
        assert "vmap" in batched.how
        torch.testing.assert_close(usual.parameters, batched.parameters, rtol=1e-4, atol=1e-6)

    def refuse(*_: Any) -> None:
        raise RuntimeError("not today\nor tomorrow")

    monkeypatch.setattr(Batched, "__call__", refuse)
    plain = run(MODELS[model][0], DIGITS, **options)
    assert "refuses the model: not today" in plain.how and "\n" not in plain.how
    torch.testing.assert_close(usual.parameters, plain.parameters, rtol=1e-4, atol=1e-6)
    assert usual.parameters.std() > 0


def test_the_server_takes_the_median_of_the_workers_statistics() -> None:
    model = copy.deepcopy(MODELS["batch statistics"][0])
    config = Config(workers=5, byzantine=0, batch=8, steps=1)
    training = Training(config, model, DIGITS)
    batches: list[Tensor] = []
    take = training.batches.take
    training.batches.take = lambda i: [batches.append(take(i)[0].clone()), take(i)][1]  # type: ignore[method-assign]
    list(training)
    seen = []
    for i in range(5):
        h = model[0](batches[0][i, 0])
        seen.append(0.9 * model[1].running_mean + 0.1 * h.mean((0, 2, 3)))
    expected = torch.stack(seen).detach().median(0).values
    trained = training.result.model[1]
    torch.testing.assert_close(trained.running_mean, expected, rtol=1e-4, atol=1e-6)
    assert int(trained.num_batches_tracked) == 1 and int(model[1].num_batches_tracked) == 0


def test_models_that_draw_depend_on_the_seed_and_disturb_nobody() -> None:
    model = chain(nn.Linear(64, 30), nn.ReLU(), nn.Dropout(0.5), nn.Linear(30, 10))
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, again = (run(model, DIGITS, steps=4) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.parameters, again.parameters)
    still = run(model, DIGITS, steps=4, eval_mode=True)
    assert not torch.allclose(still.parameters, first.parameters)
    same = chain(nn.Linear(64, 30), nn.ReLU(), nn.Dropout(0.0), nn.Linear(30, 10))
    same.load_state_dict(model.state_dict())
    torch.testing.assert_close(still.parameters, run(same, DIGITS, steps=4).parameters)


# ----------------------------------------------------------------------- who lies, and what is seen


def test_liars_sit_anywhere_but_first() -> None:
    seen = set()
    for seed in range(40):
        training = Training(Config(seed=seed, attack="little", rule="krum"), data=DIGITS)
        everyone = training.roles.everyone
        seen.add(everyone.liars)
        assert len(everyone.liars) == 2 and 0 not in everyone.liars
        assert [everyone.workers.tolist().index(w) for w in range(11) if w not in everyone.liars]
    assert len(seen) > 25 and {row for rows in seen for row in rows} == set(range(1, 11))


@pytest.mark.parametrize("taking_part", [9, 4])
def test_rows_arrive_in_the_order_of_the_workers(taking_part: int) -> None:
    draw, firsts = torch.Generator().manual_seed(1), set()
    roles = Roles(9, taking_part, 3, True, draw)
    lying = set(roles.workers[6:].tolist())
    for _ in range(60):
        part = roles.draw(draw)
        numbers = part.workers.tolist()
        assert len(set(numbers)) == taking_part
        assert [w in lying for w in numbers] == [False] * part.honest + [True] * len(part.liars)
        arrived = [int(row) for row in part.arrive([torch.tensor(w) for w in numbers])]
        assert [w in lying for w in arrived] == [r in part.liars for r in range(taking_part)]
        assert arrived[0] not in lying  # some rules trust row 0
        rest = [w for w in arrived if w != arrived[0]]
        assert rest == sorted(rest)
        firsts.add(arrived[0])
    assert firsts == {0} if taking_part == 9 else len(firsts) > 2


def test_nothing_depends_on_the_order_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"attack": "little", "steps": 25, "lr": 0.1}
    rules = ("median", "krum", "nnm | trimmed_mean", "geometric_median")
    usual = [digits(rule=rule, **options).parameters for rule in rules]
    monkeypatch.setattr("fastgar.train.roles.Part.arrive", lambda self, rows: rows)  # liars last
    for rule, expected in zip(rules, usual, strict=True):
        found = digits(rule=rule, **options).parameters
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_liars_never_sit_in_the_trusted_row() -> None:
    for seed in range(5):
        for participation in (1.0, 0.84):  # of 6: all, and 5
            result = digits(
                rule="monna",
                attack="empire(k=1e6)",
                steps=3,
                evaluate_every=1,
                seed=seed,
                workers=6,
                participation=participation,
            )
            assert result.stopped is None
            assert [e.weight for e in result.evaluations] == [0.0] * 3


def test_the_adversary_sees_what_a_view_promises() -> None:
    seen: list[tuple[Tensor, attacks.View, Tensor, Tensor]] = []

    @attacks.register()
    def watcher(honest: Any, q: int, *, view: attacks.View | None = None) -> Any:
        assert view is not None
        parts = [honest.clone(), view, view.model.clone(), view.sampled.clone()]
        seen.append((*parts, None if view.momentum is None else view.momentum.clone()))  # type: ignore[arg-type]
        return -honest.mean(0)

    try:
        options = {"rule": "centered_clipping(tau=1.0)", "attack": "watcher", "seed": 3}
        config = Config(steps=3, workers=7, lr=0.1, **options)  # type: ignore[arg-type]
        training = Training(config, None, DIGITS)
        steps, before = iter(training), []
        seen.clear()  # the rehearsal
        for _ in range(3):
            before.append(training.theta.clone())
            next(steps)
        for number, (honest, view, model, sampled, momentum) in enumerate(seen):
            assert view.step == number + 1 and view.q == 2 and view.seed == 3
            assert view.positions == training.roles.everyone.liars
            assert view.rule is training.server.rule
            assert torch.equal(model, before[number]) and torch.equal(sampled, honest)
            assert view.own.shape == (2, len(model)) and honest.shape == (5, len(model))
            assert not bool((view.own[:, None] == honest).all(2).any())
            assert torch.equal(view.start, view.previous)
            last = torch.zeros_like(model) if not number else before[number - 1] - model
            torch.testing.assert_close(0.1 * momentum, last, atol=1e-6, rtol=1e-4)
        pulled = 0.1 * (seen[2][4] - 0.9 * seen[1][4])
        torch.testing.assert_close(0.1 * seen[2][1].previous, pulled, atol=1e-6, rtol=1e-4)
        at_workers = Training(replace(config, momentum_at="worker"), None, DIGITS)
        seen.clear()
        list(at_workers)
        assert seen[0][4] is None and not bool(seen[0][1].previous.any())
        assert torch.equal(seen[0][0], seen[0][3])
        torch.testing.assert_close(seen[1][0], 0.9 * seen[0][0] + seen[1][3])
    finally:
        attacks.forget("watcher")


def test_centred_clipping_starts_at_the_last_aggregate(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    call = fg.Rule.__call__

    def spy(self: fg.Rule, X: Any, **options: Any) -> Any:
        aggregate = call(self, X, **options)
        seen.append((options["start"].clone(), aggregate))
        return aggregate

    monkeypatch.setattr(fg.Rule, "__call__", spy)
    digits(rule="centered_clipping(tau=1.0)", attack="little", steps=3, evaluate_every=9)
    assert torch.equal(seen[0][0], torch.zeros_like(seen[0][0]))
    assert torch.equal(seen[1][0], seen[0][1]) and bool(seen[0][1].any())


def test_a_trusted_gradient_is_that_of_held_back_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"fltrust needs a trusted gradient.*set validation"):
        digits(rule="fltrust")
    seen = []
    call = fg.Rule.__call__

    def spy(self: fg.Rule, X: Any, **options: Any) -> Any:
        seen.append(options["reference"])
        return call(self, X, **options)

    monkeypatch.setattr(fg.Rule, "__call__", spy)
    training = Training(
        Config(
            rule="fltrust",
            validation=0.01,
            batch=500,
            attack="sign_flip",
            steps=3,
            evaluate_every=9,
        ),
        None,
        DIGITS,
    )
    model, held = copy.deepcopy(training.workers.module), training.server.held
    assert len(held.x) == 15
    list(training)
    # 500 draws of 15 samples: the gradient is nearly that of all of them.
    loss = nn.functional.cross_entropy(model(held.x), held.y)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert torch.cosine_similarity(seen[0], expected, dim=0) > 0.97
    assert not torch.equal(seen[0], seen[1])


def test_the_server_s_samples_are_nobody_else_s() -> None:
    numbered = DIGITS._replace(x=torch.arange(len(DIGITS.x), dtype=torch.float32)[:, None])
    theirs, mine = hold_back(numbered, 0.1, torch.Generator().manual_seed(2))
    assert len(mine.x) == 144 and len(theirs.x) == 1437 - 144
    everyone = torch.cat([theirs.x, mine.x])[:, 0].sort().values
    assert torch.equal(everyone, numbered.x[:, 0])
    assert torch.equal(mine.y, DIGITS.y[mine.x[:, 0].long()])


def test_zeno_trains_where_most_lie() -> None:
    options: dict[str, Any] = {
        "attack": "sign_flip", "workers": 10, "byzantine": 6, "declared": 0, "validation": 0.1,
        "momentum": 0.0, "steps": 150, "lr": 0.2,
    }  # fmt: skip
    zeno = digits(rule="zeno(b=6, samples=32)", **options)
    assert zeno.best > 0.8 and zeno.weight is not None and 0 < zeno.weight < 0.4
    assert digits(rule="mean", **options).best < 0.5


# ----------------------------------------------------------------------------------------- results


def test_averaging_falls_and_robust_rules_do_not() -> None:
    # Nine gradients g and two of -9 g: their mean is -9/11 g, so that averaging climbs.
    assert max(digits(rule="mean", attack="empire(k=10)", steps=100).late) < 0.3
    for rule in ("multi_krum", "geometric_median", "nnm | trimmed_mean"):
        assert min(digits(rule=rule, attack="empire(k=10)", steps=100).late) > 0.9
    assert min(digits(rule="mean", steps=100).late) > 0.9


def test_a_run_depends_on_its_seed_alone() -> None:
    options = {
        "rule": "bucketing(s=2) | krum",
        "attack": "optimal(little)",
        "steps": 5,
        "workers": 14,
    }
    first, again = (digits(**options).parameters for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, digits(**options, seed=1).parameters)


def test_runs_of_one_seed_see_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {}
    draw = Batches.draw
    for options in (
        {"rule": "mean", "attack": "none"}, {"rule": "krum", "attack": "bit_flip"},
        {"rule": "median", "attack": "little", "momentum_at": "worker"},
    ):  # fmt: skip
        drawn = seen.setdefault(str(options), [])
        monkeypatch.setattr(Batches, "draw", lambda *a, d=drawn: d.append(draw(*a)) or d[-1])
        digits(steps=3, **options)
    first, *others = seen.values()
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    "rule", ["krum", "median", "nnm | trimmed_mean", "aksel", "cge", "centered_clipping(tau=1.0)"]
)
def test_recording_changes_nothing(rule: str) -> None:
    options = {
        "rule": rule,
        "attack": "huge" if "|" in rule else "little",  # which takes a third read of the rows
        "steps": 8,
        "evaluate_every": 3,
        "momentum_at": "worker",
    }
    plain, recorded = digits(**options), digits(**options, metrics=True)
    assert torch.equal(plain.parameters, recorded.parameters)
    assert plain.evaluations == recorded.evaluations and plain.metrics == []
    assert [line["step"] for line in recorded.metrics] == list(range(1, 9))
    assert [line["loss"] for line in recorded.metrics] == recorded.losses


def test_metrics_are_those_of_the_rows_that_were_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    call = fg.attacks.Attack.__call__

    def spy(self: attacks.Attack, honest: Tensor, q: int, **more: Any) -> Tensor:
        sent = call(self, honest, q, **more)
        seen.append((honest.double().numpy(), sent.double().numpy()))
        return sent

    monkeypatch.setattr(attacks.Attack, "__call__", spy)
    for rule in ("multi_krum", "median"):
        seen.clear()
        result = digits(rule=rule, attack="little", steps=3, metrics=True, momentum_at="worker")
        for (honest, sent), line in zip(seen[1:], result.metrics, strict=True):
            g = honest.mean(0)
            deviation = math.sqrt(((honest - g) ** 2).sum() / (len(honest) - 1))
            cosine = g @ sent / np.linalg.norm(g) / np.linalg.norm(sent)
            assert line["honest_norm"] == pytest.approx(np.linalg.norm(g), rel=1e-4)
            assert line["honest_deviation"] == pytest.approx(deviation, rel=1e-4)
            assert line["attack_norm"] == pytest.approx(np.linalg.norm(sent), rel=1e-4)
            assert line["cos_honest_attack"] == pytest.approx(cosine, abs=1e-4)


def test_liars_weigh_in_the_mean_as_many_as_they_are() -> None:
    assert digits(attack="little", steps=4, workers=8, byzantine=3).weight == pytest.approx(3 / 8)
    assert digits(attack="none", steps=2).weight is None
    assert digits(rule="krum", attack="empire(k=1e6)", steps=2).weight == 0


def test_weights_are_those_of_the_draw_that_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, inspect = [], fg.inspect
    monkeypatch.setattr(
        fg, "inspect", lambda rule, *a, **k: asked.append(rule.step) or inspect(rule, *a, **k)
    )
    options = {"attack": "little", "steps": 3, "evaluate_every": 1, "byzantine": 1}
    result = digits(rule="bucketing(s=2) | median", **options)
    assert asked == [0, 1, 2] and all(e.weight is not None for e in result.evaluations)


def test_a_result_has_the_model_that_was_evaluated() -> None:
    model = build("cnn-digits", DIGITS, seed=4)
    before = copy.deepcopy(model.state_dict())
    result = run(model, DIGITS, steps=12, evaluate_every=5, lr=0.1)
    assert all(torch.equal(model.state_dict()[name], part) for name, part in before.items())
    guesses = result.model(DIGITS.x_test).argmax(1)
    accuracy = float((guesses == DIGITS.y_test).float().mean())
    assert accuracy == pytest.approx(result.evaluations[-1].accuracy)
    assert not result.model.training
    assert torch.equal(nn.utils.parameters_to_vector(result.model.parameters()), result.parameters)
    assert [e.step for e in result.evaluations] == [5, 10, 12]
    assert len(result.losses) == len(result.times) == 12 and result.best >= result.accuracy
    assert all(value >= 0 for value in result.seconds) and result.seconds.gradient > 0
    assert result.milliseconds > 0 and result.path is None
    assert (result.config.model, result.config.data) == ("<Sequential>", "<digits>")


def test_a_run_ends_when_its_loss_is_not_finite() -> None:
    result = digits(steps=50, lr=1e30)
    assert result.stopped is not None and result.stopped.startswith("loss not finite at step")
    assert 1 < len(result.losses) < 50 and len(result.times) == len(result.losses)
    assert not math.isfinite(result.evaluations[-1].loss)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("krum", r"step 1: 2 rows hold NaN or infinity \(rows \d+, \d+\) but .* f = 1"),
        ("zeno(b=1)", "step 1: 2 rows have no finite score"),
    ],
)
def test_a_run_ends_when_its_rule_gives_up(rule: str, message: str) -> None:
    result = digits(rule=rule, attack="nan", declared=1, validation=0.1, metrics=True, steps=9)
    assert result.stopped is not None and re.match(message, result.stopped)
    assert len(result.evaluations) == 1 and math.isfinite(result.evaluations[0].loss)


def test_a_run_ends_when_a_search_does(monkeypatch: pytest.MonkeyPatch) -> None:
    call = fg.Rule.__call__

    def give_up(self: fg.Rule, X: Any, **options: Any) -> Any:
        if self.step == 2:
            raise fg.SearchLimit("mva", 11, 2, 1, range(9), 1.0, 0.5)
        return call(self, X, **options)

    monkeypatch.setattr(fg.Rule, "__call__", give_up)
    result = digits(rule="mva", steps=9)
    assert result.stopped is not None and result.stopped.startswith("step 3: mva is exact")
    assert len(result.losses) == 3


def test_data_and_shares_of_all_kinds() -> None:
    torch.manual_seed(0)
    x = torch.randn(120, 5)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    table = Data(x[:90], y[:90], x[90:], y[90:], classes=3)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    for how in ("iid", "extreme", "gamma(0.5)", "dirichlet(0.3)"):
        result = run(
            model, table, split=how, workers=6, byzantine=1, attack="min_max", rule="median"
        )
        assert "layer by layer" in result.how and result.accuracy > 0.55  # half are of one class
    with pytest.raises(ValueError, match="workers must be at most 90, one sample each"):
        run(model, table, workers=91)


def test_the_loop_is_short_enough_to_read_aloud() -> None:
    path = sys.modules[Training.__module__].__file__
    assert path is not None and len(Path(path).read_text().splitlines()) <= 300


# -------------------------------------------------------------------------------------- settings

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
floats = st.floats(min_value=5e-324, allow_infinity=False, allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(
    rule=texts, attack=texts, model=texts, lr=floats, clip=st.none() | floats,
    decay=st.floats(0, allow_infinity=False), seed=st.integers(0, 2**63 - 1),
    nesterov=st.booleans(), declared=st.none() | st.integers(0, 10**9),
    every=st.none() | st.integers(1, 2**63 - 1),
)  # fmt: skip
def test_settings_survive_a_file(
    rule: str, attack: str, model: str, lr: float, clip: float | None, decay: float, seed: int,
    nesterov: bool, declared: int | None, every: int | None,
) -> None:  # fmt: skip
    config = Config(
        rule=rule, attack=attack, model=model, lr=lr, clip=clip, weight_decay=decay, seed=seed,
        nesterov=nesterov, declared=declared, evaluate_every=every,
    )  # fmt: skip
    again = Config.from_toml(config.to_toml())
    assert again == config and config.difference(again) == {}
    assert [type(getattr(again, f.name)) for f in fields(Config)] == [
        type(getattr(config, f.name)) for f in fields(Config)
    ]


def test_settings_say_what_differs() -> None:
    one, other = Config(lr=0.1, clip=2), Config(lr=0.2, rule="krum")
    assert one.difference(other) == {
        "lr": (0.1, 0.2),
        "clip": (2.0, None),
        "rule": ("mean", "krum"),
    }
    assert Config(lr=1) == Config(lr=1.0) and type(Config(lr=1).lr) is float
    assert Config().f == 2 and Config(byzantine=3).f == 3 and Config(declared=0).f == 0
    assert replace(Config(), byzantine=4).f == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": "fast"}, "lr must be a number, got 'fast'"),
        ({"steps": 2.5}, "steps must be an integer, got 2.5"),
        ({"nesterov": 1}, "nesterov must be true or false, got 1"),
        ({"workers": True}, "workers must be an integer, got True"),
        ({"rule": None}, "rule must be a string, got None"),
        ({"momentum_at": "servers"}, "momentum-at must be 'worker', 'server' or 'mixed', got"),
        ({"l2": "both"}, "l2 must be 'squared' or 'norm'"),
        ({"clip": 0}, "clip must be a finite number above 0, got 0.0"),
        ({"weight_decay": math.inf}, "weight-decay must be at least 0 and finite, got inf"),
        ({"local_steps": 0}, "local-steps must be at least 1, got 0"),
        ({"participation": 0}, "participation must be above 0 and at most 1, got 0.0"),
        ({"participation": math.nan}, "participation must be above 0 and at most 1, got nan"),
        ({"participation": math.inf}, "participation must be above 0 and at most 1, got inf"),
        ({"participation": 0.2}, "below 2, the number of workers that take part in a step, got 2"),
        ({"validation": 1}, "validation must be at least 0 and below 1, got 1.0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"evaluate_every": 0}, "evaluate-every must be at least 1, got 0"),
        ({"checkpoint_every": 0}, "checkpoint-every must be at least 1, got 0"),
        ({"schedule": "step(every=2)"}, "unknown schedule 'step': did you mean 'steps'"),
        ({"schedule": "steps(factor=0.1)"}, "steps needs either every=... or at="),
        ({"schedule": "steps(at=(0,), factor=0.1)"}, "must be numbers of steps, got \\(0,\\)"),
        ({"schedule": "inverse(decay=0)"}, "decay must be a finite number above 0"),
        ({"split": "gama(0.5)"}, "unknown split 'gama': did you mean 'gamma'"),
        ({"workes": 3}, "unknown setting 'workes': did you mean 'workers'"),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Config.of(values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "zenno(b=2)"}, "unknown rule 'zenno'"),
        ({"rule": "zeno(b=2)"}, "needs a trusted loss on samples.*set validation"),
        ({"rule": "zeno(b=11)", "validation": 0.1}, "b must be below 11, got 11"),
        (
            {"rule": "krum", "participation": 0.5},
            "got 6, the part of 11 workers that participation",
        ),
        ({"attack": "bulyan(coordinate=99999)"}, "coordinate"),
        ({"attack": "optimal(little)", "rule": "fltrust", "validation": 0.1}, "trusted reference"),
        ({"batch": 10**12}, r"batch: 1000000000000 for each of 9 workers\) take 2.3 PB, and this"),
        ({"local_steps": 10**16}, "10000000000000000 local steps. take .* this machine has"),
        ({"device": "tpu0"}, "device must be cpu, cuda or cuda:0"),
        ({"device": "cuda:99"}, "torch sees . GPUs"),
    ],
)
def test_runs_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        digits(**options)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("mlp", (1, 2), r"data must be .*fastgar.train.Data\(x, y, .*, got: tuple"),
        ("mlp(hidden=1000000000000)", "digits", r"parameters of mlp\(hid.* take 300 TB, and this"),
        (f"mlp(hidden={2**62})", "digits", "take more bytes than can be counted, and this"),
        (nn.Linear, "digits", "model must be a name or a torch.nn.Module, got: type"),
        (nn.Linear(3, 10), "digits", "Linear does not fit samples of shape 1 x 8 x 8"),
    ],
)
def test_models_and_data_of_another_kind_are_refused(model: Any, data: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        run(model, data, steps=1)


def test_gradients_must_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgar.train.room._memory", lambda: 2e5)
    digits(workers=5, byzantine=1, steps=1)
    with pytest.raises(ValueError, match=r"gradients of 9 workers take 270 kB, .* has 200 kB"):
        digits(steps=1)


def test_schedules() -> None:
    rates = [schedule("steps(at=(2, 5), factor=0.1)")(t) for t in range(7)]
    np.testing.assert_allclose(rates, [1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
    np.testing.assert_allclose(
        [schedule("inverse(decay=4)")(t) for t in (0, 2, 4)], [1, 1 / 1.5, 0.5]
    )


# ----------------------------------------------------------------------------- one rank per worker

SHARED = """
import torch
from torch import nn
from fastgar.train import Data, Mismatch, run

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 10))

def runs(data, folder=None):
    for name, options in CASES.items():
        out = None if folder is None else f"{folder}/{name}"
        yield name, lambda **more: run(
            model() if name == "statistics" else "mlp", data, out=out, **{**options, **more}
        )

CASES = {
    "krum": dict(workers=5, byzantine=1, rule="krum", attack="bit_flip", steps=12,
                 momentum_at="worker", nesterov=True, metrics=True),
    "statistics": dict(workers=5, byzantine=1, rule="median", attack="little", steps=8,
                       participation=0.8, clip=0.5),
}
"""
RANKS = """
import os, sys
import torch.distributed as dist

def work(rank, folder):
    torch.set_num_threads(1)
    data = Data(**torch.load(f"{folder}/data.pt", weights_only=True))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=5)
    try:
        run("mlp", data, workers=6)
    except ValueError as error:
        assert "workers must be the number of ranks, 5" in str(error), error
    else:
        raise AssertionError
    found = {}
    for name, start in runs(data, folder):
        result = start()
        found[name] = result.parameters
        again = start()  # taken up where it ended
        assert torch.equal(again.parameters, result.parameters)
        assert again.evaluations == result.evaluations and again.losses == result.losses
        try:
            start(lr=0.3)
        except Mismatch as error:
            assert "lr=0.05" in str(error) and "lr=0.3" in str(error), error
        else:
            raise AssertionError
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()

children = []
for rank in range(5):  # before torch has started any thread
    child = os.fork()
    if child == 0:
        work(rank, sys.argv[1])
        os._exit(0)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_ranks_give_the_trajectory_of_one_process(tmp_path: Path) -> None:
    torch.save(DIGITS._asdict(), tmp_path / "data.pt")
    process = subprocess.Popen(
        [sys.executable, "-c", SHARED + RANKS, str(tmp_path)], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    try:
        _, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, errors
    scope: dict[str, Any] = {}
    exec(SHARED, scope)
    for name, start in scope["runs"](DIGITS):
        alone = start()
        for rank in range(5):
            found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)[name]
            torch.testing.assert_close(found, alone.parameters, rtol=1e-4, atol=1e-6)
        written = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        assert len(written) == len(alone.metrics) + len(alone.evaluations) > 0


def test_one_rank_is_alone() -> None:
    assert Ranks(7, "cpu").alone


# -------------------------------------------------------------------------------------- the command


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


SMALL = ["train", "--steps", "6", "--rule", "mean", "--rule", "krum", "--attack", "little"]


def test_every_setting_is_an_option_of_the_command() -> None:
    parser = argparse.ArgumentParser()
    add_settings(parser)
    defaults = {field.name: field.default for field in fields(Config)}
    flags = {action.dest: action.help or "" for action in parser._actions}
    assert flags.keys() - {"help"} == defaults.keys() - {"rule", "attack"}
    for name, default in (defaults | DEFAULTS).items():
        if default is not None and name in flags:
            assert flags[name].endswith(f"(default: {default})"), name
    assert given_settings(parser.parse_args([])) == {}
    given = ["--momentum-at", "worker", "--no-metrics", "--clip", "2", "--steps", "7"]
    assert given_settings(parser.parse_args(given)) == {
        "momentum_at": "worker", "metrics": False, "clip": 2.0, "steps": 7,
    }  # fmt: skip


def test_what_is_said_of_a_setting_is_said_once() -> None:
    documentation = Config.__doc__ or ""
    described = documentation.split("Attributes\n")[1].split("Raises\n")[0]
    names = [field.name for field in fields(Config)]
    assert re.findall(r"^(\w+) : ", described, re.MULTILINE) == names
    assert '\nmomentum_at : {"worker", "server", "mixed"}, default "server"\n' in described
    assert "\nclip : float, optional\n    The norm to which" in described

    @dataclass(frozen=True)
    class Few:
        """Few settings."""

        pace: float = setting(1.5, "how fast", ("above 0", lambda value: value > 0), metavar="V")
        hat: str | None = setting(None, "colour", choices=("red", "blue"), doc="Of a hat.")

    document(Few)
    assert Few.__doc__ == (
        "Few settings.\n\nAttributes\n----------\npace : float, default 1.5\n    How fast.\n"
        'hat : {"red", "blue"}, optional\n    Of a hat.\n'
    )
    check(Few(hat="red"))
    for few, message in (
        (Few(pace=-1.0), "pace must be above 0, got -1.0"),
        (Few(hat="green"), "hat must be 'red' or 'blue', got 'green'"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            check(few)


def test_settings_and_the_flags_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from fastgar.train import Config; from fastgar.cli import main\n"
        "print(Config.__doc__ is not None)\n"
        "main(['train', '--help'])\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("True\n") and "--checkpoint-every STEPS" in found.stdout


def test_modules_of_training_are_found_when_they_are_asked_for() -> None:
    code = (
        "import fastgar.train as t; print(t.models.MODELS is not None, 'run' in dir(t))\nt.nothing"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert found.stdout == "True True\n"
    assert "AttributeError: module 'fastgar.train' has no attribute 'nothing'" in found.stderr


@pytest.mark.parametrize("how", ["run", "command", "grid"])
def test_steps_of_a_small_network_have_one_thread_however_they_are_started(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    step = Training._step

    def watched(self: Training, number: int) -> None:
        seen.append(torch.get_num_threads())
        if how == "run" and number == 2:
            raise ArithmeticError
        step(self, number)

    monkeypatch.setattr(Training, "_step", watched)
    torch.set_num_threads(3)
    try:
        if how == "run":
            with pytest.raises(ArithmeticError):
                digits(steps=2, out=tmp_path)
            facts = json.loads((tmp_path / "environment.json").read_text())
            assert facts["threads"]["torch"] == 1
        elif how == "command":
            assert main([*SMALL, "--quiet", "--out", str(tmp_path)]) == 0
        else:
            options = {"steps": 2, "data": "digits", "rule": "mean", "attack": "none"}
            assert execute(options, seed=1)["steps"] == 2
        assert torch.get_num_threads() == 3
        monkeypatch.setattr("fastgar.train.threads.SMALL", 1)
        few = len(seen)
        with suppress(ArithmeticError):
            digits(steps=2)
    finally:
        torch.set_num_threads(1)
    assert set(seen[:few]) == {1} and seen[few:] == [3, 3]


def test_the_command_writes_results_a_table_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    threads = torch.get_num_threads()
    assert main([*SMALL, "--attack", "empire", "--out", str(out)]) == 0
    assert torch.get_num_threads() == threads
    records = lines(out)
    assert [r["kind"] for r in records] == ["config", *(["evaluation"] * 6 + ["run"]) * 4]
    assert records[0]["steps"] == 6 and records[0]["fastgar"] == fg.__version__
    assert records[0]["declared"] == 2 and "rule" not in records[0]
    runs = [r for r in records if r["kind"] == "run"]
    assert [(r["rule"], r["attack"]) for r in runs] == [
        ("mean", "little"), ("krum", "little"), ("mean", "empire"), ("krum", "empire"),
    ]  # fmt: skip
    assert runs[0]["weight"] == pytest.approx(2 / 11)
    assert all(r["milliseconds"] > 0 and 0 <= r["accuracy"] <= 1 for r in runs)
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr()
    assert "weight of liars" in printed.out and "18.2%" in printed.out
    assert "[4/4] krum, empire" in printed.err  # plain lines where there is no terminal
    names = {path.name for path in out.iterdir() if path.is_dir()}
    assert names == {"mean-vs-little", "krum-vs-little", "mean-vs-empire", "krum-vs-empire"}
    steps = [json.loads(line) for line in (out / "mean-vs-little/metrics.jsonl").open()]
    assert {"honest_deviation", "curvature"} <= steps[0].keys()


def test_a_second_call_takes_up_where_the_first_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path)]
    assert main([*SMALL, *out, "--quiet"]) == 0
    before = lines(tmp_path)
    table = capsys.readouterr()
    assert table.err == ""
    assert main([*SMALL, *out]) == 0
    again = capsys.readouterr()
    assert lines(tmp_path) == before
    assert "from an earlier run" in again.err
    assert again.out == table.out
    assert main([*SMALL, *out, "--rule", "median", "--quiet"]) == 0
    assert lines(tmp_path)[: len(before)] == before and len(lines(tmp_path)) > len(before)


def test_what_an_interrupted_command_left_is_taken_up(tmp_path: Path) -> None:
    assert main([*SMALL, "--out", str(tmp_path), "--quiet"]) == 0
    path = tmp_path / "results.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:11]) + '{"kind": "evalu')  # in the midst of krum's run
    with Results(path, Config(steps=6, metrics=True)) as results:
        assert [run["rule"] for run in results.runs] == ["mean"]
    assert len(lines(tmp_path)) == 8
    assert main([*SMALL, "--out", str(tmp_path), "--quiet"]) == 0
    assert [r.get("loss") for r in lines(tmp_path)] == [json.loads(w).get("loss") for w in whole]


def test_results_of_other_settings_are_not_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--out", str(tmp_path), "--quiet"]) == 0
    before = lines(tmp_path)
    with pytest.raises(SystemExit) as refused:
        main([*SMALL, "--out", str(tmp_path), "--lr", "0.2"])
    assert refused.value.code == 2
    message = capsys.readouterr().err
    assert "lr=0.05" in message and "lr=0.2" in message and "--fresh" in message
    assert lines(tmp_path) == before
    assert main([*SMALL, "--out", str(tmp_path), "--lr", "0.2", "--fresh", "--quiet"]) == 0
    assert lines(tmp_path)[0]["lr"] == 0.2


def test_a_run_can_be_done_again_from_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    options = ["--rule", "nnm | krum", "--attack", "empire(k=2)", "--clip", "1", "--nesterov"]
    assert main(["train", "--steps", "5", *options, "--out", str(first), "--quiet"]) == 0
    config = next(first.glob("*/config.toml"))
    assert main(["train", "--config", str(config), "--out", str(again), "--quiet"]) == 0
    name = "nnm+krum-vs-empire-k=2"
    assert (again / name / "config.toml").read_text() == config.read_text()
    assert (again / name / "metrics.jsonl").read_text() == (
        first / name / "metrics.jsonl"
    ).read_text()
    arguments = ["train", "--config", str(config), "--steps", "2", "--no-nesterov"]
    assert main([*arguments, "--out", str(tmp_path / "third"), "--quiet"]) == 0
    head = lines(tmp_path / "third")[0]
    assert head["steps"] == 2 and head["clip"] == 1 and head["nesterov"] is False
    capsys.readouterr()
    for text, message in (("lr = ", "is no TOML"), ("lrr = 1", "did you mean 'lr'")):
        config.write_text(text)
        with pytest.raises(SystemExit):
            main(["train", "--config", str(config), "--out", str(tmp_path / "fourth")])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "fourth").exists()


def test_the_worst_attack_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("sign_flip", "empire(k=10)", "nan", "optimal(little)", "label_flip")
    monkeypatch.setattr("fastgar.train.worst.list_attacks", lambda: few)
    arguments = ["--rule", "mean", "--rule", "fltrust", "--attack", "worst", "--steps", "60"]
    more = ["--validation", "0.1", "--no-metrics", "--out", str(tmp_path), "--quiet"]
    assert main(["train", *arguments, *more]) == 0
    printed = capsys.readouterr()
    assert "left out optimal(little) on fltrust" in printed.err
    table = [
        line.split() for line in printed.out.splitlines() if line.startswith(("mean ", "fltr"))
    ]
    assert [row[0] for row in table] == ["mean"] * 6 + ["fltrust"] * 5
    assert {row[1] for row in table[:2]} == {"nan", "optimal(little)"}  # runs that stopped
    harm = [float(row[3].rstrip("%")) for row in table[2:6]]
    assert harm == sorted(harm, reverse=True)
    assert table[2][1] == "empire(k=10)" and harm[0] > 50
    clean = next(row for row in table if row[:2] == ["mean", "none"])
    assert clean[3] == "0.0%"


def test_every_attack_is_among_the_worst_candidates() -> None:
    specs = [attacks.attack(spec) for spec in every_attack()]
    assert {spec.name for spec in specs} == set(attacks.list_attacks())
    assert len(set(specs)) == len(specs)


@pytest.mark.parametrize("text", ["my notes\nof last week\n", "one line", '{"kind": "run"}\n'])
def test_a_file_of_something_else_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(Mismatch, match=r"is no record|does not begin"):
        Results(path, Config())
    assert path.read_text() == text


def test_a_loss_that_is_not_finite_keeps_the_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--steps", "30", "--lr", "1e30", "--rule", "mean", "--attack", "none"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    records = lines(tmp_path)
    assert records[-2]["loss"] is None and "not finite" in records[-1]["stopped"]
    assert "loss not finite at step" in capsys.readouterr().out
    assert (tmp_path / "accuracy.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "krumm"], "unknown rule 'krumm': did you mean 'krum'"),
        (["--rule", "krum(m=2)"], "unknown option of krum 'm'"),
        (["--rule", "nnm"], "put a rule after it, as in nnm | krum"),
        (["--rule", "fltrust"], "needs a trusted gradient"),
        (["--rule", "zeno(b=2)"], "needs a trusted loss"),
        (["--attack", "empier"], "unknown attack 'empier': did you mean 'empire'"),
        (["--attack", "bulyan(coordinate=10000)"], "coordinate"),
        (["--declared", "5"], "multi_krum needs n >= 2f + 3: with f=5 that is 13 rows, got 11"),
        (["--declared", "-1"], "declared must be at least 0, got -1"),
        (["--byzantine", "11"], "must leave an honest worker"),
        (["--workers", "0"], "workers must be at least 1, got 0"),
        (["--workers", "2000"], "workers must be at most 1437"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--lr", "nan"], "lr must be a finite number above 0, got nan"),
        (["--momentum", "1"], "momentum must be at least 0 and below 1, got 1.0"),
        (["--batch", "0"], "batch must be at least 1"),
        (["--batch", "1000000000000"], "take 2.3 PB, and this machine has"),
        (["--model", f"mlp(hidden={2**62})"], "take more bytes than can be counted"),
        (["--data", "digit"], "unknown data set 'digit': did you mean 'digits'"),
        (["--model", "mpl"], "unknown model 'mpl': did you mean 'mlp'"),
        (["--model", "nowhere:model"], "there is no module 'nowhere'"),
        (["--model", "resnet18(norm='layer')"], "norm must be"),
        (["--split", "iidd"], "unknown split 'iidd': did you mean 'iid'"),
        (["--schedule", "linear"], "unknown schedule 'linear'"),
        (["--device", "gpu"], "device must be cpu, cuda"),
        (["--config", "/nowhere/config.toml"], "cannot read --config"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as refused:
        main(["train", *arguments, "--out", str(out)])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        main([*SMALL, "--out", str(tmp_path / "file" / "out")])
    assert "cannot write to --out" in capsys.readouterr().err


def test_more_liars_than_declared_is_possible_and_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--byzantine", "4", "--declared", "1", "--out", str(tmp_path)]
    assert main([*SMALL, *arguments]) == 0
    assert "note: 4 workers attack and the rules expect 1" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_ctrl_c_keeps_what_there_is_and_the_next_call_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--steps", "300", "--rule", "mean", "--attack", "none", "--no-metrics"]
    arguments += ["--checkpoint-every", "5"]
    out, other = ["--out", str(tmp_path / "out")], ["--out", str(tmp_path / "other"), "--quiet"]
    code = (  # a process started in the background may have been told to ignore the signal
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import fastgar.train.loop as loop; take = loop.Training._step\n"
        "loop.Training._step = lambda self, t: (__import__('time').sleep(0.02), take(self, t))\n"
        f"from fastgar.cli import main; sys.exit(main({[*arguments, *out]!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    path = tmp_path / "out" / "results.jsonl"
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text().count("\n") > 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted at step" in printed and "interrupted" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "out" / "accuracy.png").exists()
    left = lines(tmp_path / "out")
    assert left[-1]["kind"] == "evaluation" and left[-1]["step"] < 300
    assert main([*arguments, *out, "--quiet"]) == 0
    log = (tmp_path / "out" / "mean-vs-none" / "log.txt").read_text()
    assert log.count("from step") == 2 and "all 300 steps done" in log
    assert main([*arguments, *other]) == 0
    timeless = [
        [{k: v for k, v in line.items() if "second" not in k} for line in lines(tmp_path / name)]
        for name in ("out", "other")
    ]
    assert timeless[0] == timeless[1]
