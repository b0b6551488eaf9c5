"""Nine clients send models, two of them bad ones: python examples/who_is_lying.py

Each client trains the same small network on its own share of the digits and sends its state_dict,
batch norm's running statistics and integer counter included. Client 2 sends its update with the
sign turned, client 6 has a model full of NaN. `fg.inspect` says who was believed.

Needs the extra `train`: pip install "fastgar[train]"
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fastgar as fg

CLIENTS, LIARS = 9, (2, 6)
State = dict[str, Tensor]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))


def local_training(start: State, x: Tensor, y: Tensor) -> State:
    model = network()
    model.load_state_dict(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def accuracy(state: State, x: Tensor, y: Tensor) -> float:
    model = network().eval()
    model.load_state_dict(state)
    return float((model(x).argmax(1) == y).float().mean())


def main() -> None:
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(x))
    test, shares = order[:360], order[360:].chunk(CLIENTS)

    start = {name: value.clone() for name, value in network().state_dict().items()}
    sent = [local_training(start, x[share], y[share]) for share in shares]
    flipped, broken = (sent[i] for i in LIARS)
    for name, value in flipped.items():
        if value.is_floating_point():
            value.copy_(start[name] - 3 * (value - start[name]))
            broken[name].fill_(torch.nan)

    # Distances over weights alone; the running statistics are aggregated along with them.
    def is_weight(leaf: str) -> bool:
        return "running" not in leaf

    report = fg.inspect("mda", sent, f=2, distance_on=is_weight)
    print(report)
    print(f"\nnot believed: {report.excluded}; the liars are {LIARS}")

    believed = report.aggregate
    average = {
        name: torch.stack([state[name].double() for state in sent]).mean(0).to(value.dtype)
        for name, value in start.items()
    }
    print(f"\naccuracy of client 0 alone       {accuracy(sent[0], x[test], y[test]):.1%}")
    print(f"accuracy of the plain average    {accuracy(average, x[test], y[test]):.1%}")
    print(f"accuracy of the robust aggregate {accuracy(believed, x[test], y[test]):.1%}")
    print(f"its integer counter: {believed['1.num_batches_tracked']}")


if __name__ == "__main__":
    main()
