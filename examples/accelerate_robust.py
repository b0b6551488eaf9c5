"""Accelerate, one faulty rank of four: torchrun --nproc-per-node 4 examples/accelerate_robust.py

Needs Accelerate: pip install accelerate
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fastgar.torch as fgt

CLASSES, FEATURES = 10, 64


def batch(draw: torch.Generator, samples: int = 32) -> tuple[Tensor, Tensor]:
    """Return points of ten clouds."""
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(0))
    y = torch.randint(CLASSES, (samples,), generator=draw)
    return centres[y] + 2 * torch.randn(samples, FEATURES, generator=draw), y


def train(accelerator: Accelerator, rule: str | None, steps: int) -> float:
    """Return the accuracy in percent."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.05))
    if rule is not None:
        state = fgt.make_robust(model, rule, f=1)  # <- this line
    draw = torch.Generator().manual_seed(1 + accelerator.process_index)
    for _ in range(steps):
        x, y = batch(draw)
        loss = cross_entropy(model(x), y)
        if accelerator.process_index == accelerator.num_processes - 1:
            loss = -100 * loss
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    if rule is not None:
        accelerator.print(f"\n{state.report}\n")
    x, y = batch(torch.Generator().manual_seed(99), 1000)
    return 100 * float((accelerator.unwrap_model(model)(x).argmax(1) == y).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train in Accelerate with one faulty rank.")
    parser.add_argument("--rule", default="nnm | trimmed_mean")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    accelerator = Accelerator(cpu=True)
    average = train(accelerator, None, options.steps)
    robust = train(accelerator, options.rule, options.steps)
    accelerator.print(
        f"accuracy with averaging: {average:.1f}%, with {options.rule}: {robust:.1f}%"
    )
    accelerator.end_training()


if __name__ == "__main__":
    main()
