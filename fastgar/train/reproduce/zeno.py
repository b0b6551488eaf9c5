"""The curves of "Zeno" (Xie, Koyejo and Gupta, ICML 2019): up to 12 of 20 workers attack.

The paper's failures are flipped labels and `bit_flip`, where all liars send one gradient of theirs
with its signs turned; `sign_flip` sends the mean of the honest ones so, and comes on top.
"""

from __future__ import annotations

from ...errors import unknown
from .setting import Grid, Plain, Setting

__all__ = ["ATTACKS", "DATA", "RULES", "SCENARIOS", "SIZES", "grid"]

WORKERS = 20
ATTACKS = ("label_flip", "bit_flip", "sign_flip")
SIZES = (8, 12)
SCENARIOS = (("none", 0), *((attack, q) for attack in ATTACKS for q in SIZES))
RULES = ("mean", "krum", "median")
DECLARED = 8  # Krum and the median take at most 8 and 9 of 20
LEFT_OUT = {0: 12, 8: 12, 12: 16}  # Zeno's b for each number of attackers
# Validation samples in a step: the paper's 4, and on the digits also as many as tell a majority of
# liars whose labels are flipped from honest workers.
SAMPLES = {"cifar10": (4,), "digits": (4, 64)}
VALIDATION = 0.1  # of the training samples are the server's, for Zeno to judge by
QUICK_STEPS = 20

NUMBERS: dict[str, dict[str, Plain]] = {
    "digits": {"model": "mlp", "batch": 32, "lr": 0.1, "steps": 400, "evaluate_every": 10},
    # 200 epochs of 50,000 samples, which 20 workers go through in 25 steps of 100 each.
    "cifar10": {
        "model": "cnn-cifar", "batch": 100, "lr": 0.05, "steps": 5000, "evaluate_every": 25,
    },
}  # fmt: skip
DATA = tuple(NUMBERS)


def grid(data: str = "digits", *, quick: bool = False) -> Grid:
    """Return three rules, and Zeno with each number of samples, in seven scenarios.

    Raises
    ------
    ValueError
        If there is no such grid for the data set.

    Examples
    --------
    >>> len(grid().settings)
    35
    """
    if data not in NUMBERS:
        raise unknown("data set of the Zeno curves", data, NUMBERS)
    options = {
        "data": data, "workers": WORKERS, "momentum": 0.0, "validation": VALIDATION,
        **NUMBERS[data],
    }  # fmt: skip
    if quick:
        options |= {"steps": QUICK_STEPS, "evaluate_every": QUICK_STEPS // 4}
    settings = []
    for attack, q in SCENARIOS:
        rules = [(rule, rule, 0 if rule == "mean" else DECLARED) for rule in RULES]
        rules += [
            (f"zeno ({samples} samples)", f"zeno(b={LEFT_OUT[q]}, samples={samples})", LEFT_OUT[q])
            for samples in SAMPLES[data]
        ]
        for rule, spec, declared in rules:
            config: dict[str, Plain] = {
                "rule": spec, "attack": attack, "byzantine": q, "declared": declared,
            }  # fmt: skip
            tags: dict[str, Plain] = {"rule": rule, "attack": attack, "q": q}
            settings.append(Setting(f"{attack}-{q}-{rule}", {**options, **config}, tags))
    return Grid("zeno", data, tuple(settings), "quick" if quick else "")
