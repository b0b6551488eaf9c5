"""FSDP2 with one faulty rank of four: torchrun --nproc-per-node 4 examples/fsdp_robust.py

Parameters, gradients and optimizer state are sharded over the ranks. The last rank's gradients turn
bad from step 20 on; the reduce-scatter that FSDP does anyway aggregates by a rule instead.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

import fastgar.torch as fgt

WORDS, LENGTH, WIDTH = 12, 16, 32


def transformer() -> nn.Module:
    """Return a small model that says which word comes most often."""
    torch.manual_seed(0)
    layers = [
        nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
        for _ in range(2)
    ]
    return nn.Sequential(nn.Embedding(WORDS, WIDTH), *layers, Mean(), nn.Linear(WIDTH, WORDS))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def batch(draw: torch.Generator, samples: int = 32) -> tuple[Tensor, Tensor]:
    y = torch.randint(WORDS, (samples,), generator=draw)
    x = torch.randint(WORDS, (samples, LENGTH), generator=draw)
    often = torch.rand(samples, LENGTH, generator=draw) < 0.5
    return torch.where(often, y[:, None], x), y


def train(rule: str | None, scope: str, steps: int) -> float:
    """Return the accuracy in percent."""
    rank, n = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (n,))
    model = transformer()
    for layer in model:
        if isinstance(layer, nn.TransformerEncoderLayer):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if rule is not None:
        state = fgt.make_robust(model, rule, f=1, scope=scope)  # <- this line
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(rank)
    for step in range(steps):
        x, y = batch(draw)
        loss = cross_entropy(model(x), y)
        if rank == n - 1 and step >= 20:
            loss = -1000 * loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        x, y = batch(torch.Generator().manual_seed(99), 500)
        accuracy = 100 * float((model(x).argmax(1) == y).float().mean())
    if rank == 0 and rule is not None:
        print(f"\n{state.report}\n")
    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description="Train with FSDP2 and one faulty rank.")
    parser.add_argument("--rule", default="trimmed_mean")
    parser.add_argument("--scope", default="group", choices=("group", "global"))
    parser.add_argument("--steps", type=int, default=80)
    options = parser.parse_args()
    dist.init_process_group("gloo")
    average = train(None, options.scope, options.steps)
    robust = train(options.rule, options.scope, options.steps)
    if dist.get_rank() == 0:
        print(f"accuracy with averaging: {average:.1f}%, with {options.rule}: {robust:.1f}%")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
