"""One faulty rank of four: torchrun --nproc-per-node 4 examples/ddp_robust.py [--out PICTURE]

Every rank trains the same network on its own share of the data with DistributedDataParallel. The
last one is faulty: it sends NaN, numbers of 1e30, or the gradient of another model. Averaging is
destroyed by it; with the line marked below nothing happens.

Needs matplotlib for the picture: pip install matplotlib
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import fastgar.torch as fgt

CLASSES, FEATURES, BATCH = 10, 64, 32
FAULTS = ("none", "NaN", "1e30", "another model")
LINES = {"robust": ("#0072B2", "-"), "average": ("#D55E00", (0, (2, 1)))}  # dashes on top


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 128), nn.ReLU(), nn.Linear(128, CLASSES))


class Task:
    """Ten clouds of points; a rank's batches come from its own generator."""

    def __init__(self, rank: int) -> None:
        self.centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(1))
        self.draw = torch.Generator().manual_seed(100 + rank)

    def batch(self, samples: int = BATCH) -> tuple[Tensor, Tensor]:
        y = torch.randint(CLASSES, (samples,), generator=self.draw)
        noise = torch.randn(samples, FEATURES, generator=self.draw)
        return self.centres[y] + 2.5 * noise, y


def spoil(loss: Tensor, model: Any, fault: str) -> Tensor:
    """Return a loss whose gradient is what a faulty rank sends."""
    if fault == "NaN":
        return loss * float("nan")
    if fault == "1e30":
        return loss * 1e30
    if fault == "another model":  # pulls towards other parameters, far away
        with torch.no_grad():
            other = [10 * p for p in network(seed=7).parameters()]
        pairs = zip(model.parameters(), other, strict=True)
        return loss + 3 * sum(((p - q) ** 2).sum() for p, q in pairs)
    return loss


def train(rule: str | None, fault: str, steps: int) -> list[float]:
    """Return the accuracy at every fifth step."""
    rank = dist.get_rank()
    model = DistributedDataParallel(network())
    if rule is not None:
        state = fgt.make_robust(model, rule, f=1, momentum=0.9)  # <- this line
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.0 if rule else 0.9)
    task = Task(rank)
    x_test, y_test = Task(rank=99).batch(1000)
    faulty = fault != "none" and rank == dist.get_world_size() - 1
    accuracy = []
    for step in range(steps):
        x, y = task.batch()
        loss = cross_entropy(model(x), y)
        if faulty:
            loss = spoil(loss, model, fault)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 4:
            with torch.no_grad():  # not through DDP: ranks need not meet for it
                guess = model.module(x_test).argmax(1)
            accuracy.append(100 * float((guess == y_test).float().mean()))
    if rank == 0 and rule is not None and fault == "another model":
        print(f"\nwho was believed, with {fault}:\n{state.report}\n")
    return accuracy


def draw_picture(curves: dict[tuple[str, str], list[float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for panel, fault in zip(figure.subplots(1, len(FAULTS), sharey=True), FAULTS, strict=True):
        for how, (colour, dashes) in LINES.items():
            curve = curves[how, fault]
            steps = range(5, 5 * len(curve) + 1, 5)
            panel.plot(steps, curve, color=colour, linestyle=dashes, label=how, linewidth=2)
        title = "no faulty rank" if fault == "none" else f"faulty rank: {fault}"
        panel.set(title=title, xlabel="step", ylim=(0, 103))
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        if fault == FAULTS[0]:
            panel.set_ylabel("accuracy, percent")
            panel.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train with one faulty rank.")
    parser.add_argument("--rule", default="nnm | trimmed_mean")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("ddp_robust.png"))
    options = parser.parse_args()
    dist.init_process_group("gloo")
    curves = {}
    if dist.get_rank() == 0:
        print("faulty rank     average   robust")
    for fault in FAULTS:
        for how, rule in (("average", None), ("robust", options.rule)):
            curves[how, fault] = train(rule, fault, options.steps)
        if dist.get_rank() == 0:
            last = [curves[how, fault][-1] for how in ("average", "robust")]
            print(f"{fault:14} {last[0]:>7.1f}% {last[1]:>7.1f}%", flush=True)
    if dist.get_rank() == 0:
        draw_picture(curves, options.out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
