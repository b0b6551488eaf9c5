"""Robust is not infallible: python examples/fool_the_median.py [--out PICTURE]

Fall of Empires (Xie, Koyejo and Gupta, 2019): attackers send a short vector against the honest
mean. It lies well within the spread of the honest rows, so that a rule that looks for the middle,
or for a close group, may believe it.

Needs matplotlib: pip install matplotlib
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import fastgar as fg

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
BLACK, GREY = "#000000", "#888888"
RATIOS = np.geomspace(0.03, 30, 19)
DRAWS, D = 20, 2000


def five_numbers() -> tuple[np.ndarray, np.ndarray]:
    """Return the worked example: five honest values, and the same with two liars among them."""
    honest = np.array([[-0.3], [1.0], [2.0], [3.0], [4.0]])
    attacked = honest.copy()
    attacked[3:] = -honest[:3].mean()  # what the liars send: minus the mean of the other three
    print(
        "honest rows       ", honest.ravel(), " mean", honest.mean(), " median", fg.median(honest)
    )
    print("the last two lie  ", attacked.ravel(), " median", fg.median(attacked, f=2))
    return honest, attacked


def rows(ratio: float, n: int, q: int, draw: np.random.Generator) -> np.ndarray:
    """Return n rows: honest noise of `ratio` times the mean of 1, and q liars at the end."""
    X = 1 + ratio * draw.standard_normal((n, D))
    X[n - q :] = -0.1 * X[: n - q].mean(0)  # no row where q is 0
    return X


def wrong_signs(rule: str, ratio: float, q: int, draw: np.random.Generator) -> float:
    """Return the share of coordinates in which a rule on 11 rows points the wrong way."""
    return float(np.mean(fg.rule(rule, f=q)(rows(ratio, 11, q, draw)) < 0))


def picks_liar(ratio: float, q: int, draw: np.random.Generator) -> float:
    """Return how often Krum picks a liar among 12 rows."""
    reports = [fg.inspect("krum", rows(ratio, 12, q, draw), f=q) for _ in range(DRAWS)]
    return float(np.mean([report.selected[0] >= 12 - q for report in reports]))


def draw_picture(honest: np.ndarray, attacked: np.ndarray, path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))

    for height, X, liars in ((1, honest, 0), (0, attacked, 2)):
        trusted = X.ravel()[: len(X) - liars]
        left.plot(trusted, [height] * len(trusted), "o", color=BLUE, markersize=9)
        if liars:
            left.plot(X.ravel()[-liars:], [height, height], "X", color=ORANGE, markersize=11)
        middle = float(fg.median(X)[0])
        left.annotate(
            f"median {middle:g}",
            (middle, height + 0.06),
            xytext=(middle + 0.35, height + 0.38),
            arrowprops={"arrowstyle": "->", "color": BLACK},
        )
    left.text(-0.1, -0.32, "two liars, at -0.9", color=ORANGE, ha="right")
    left.axvline(0, color=BLACK, linewidth=0.6)
    left.set(
        xlim=(-2.5, 4.5), ylim=(-0.6, 1.7), yticks=(0, 1), yticklabels=("two lie", "all honest")
    )
    left.set(xlabel="value sent", title="The median changes its sign")

    draw = np.random.default_rng(0)
    for q, colour, mark, words in ((0, GREY, "D", "nobody lies"), (5, BLUE, "o", "5 of 11 lie")):
        right.plot(
            RATIOS,
            [100 * wrong_signs("median", ratio, q, draw) for ratio in RATIOS],
            color=colour,
            marker=mark,
            label=f"median, {words}: coordinates with the wrong sign",
        )
    for q, colour, mark in ((1, GREEN, "s"), (4, ORANGE, "^")):
        right.plot(
            RATIOS,
            [100 * picks_liar(ratio, q, draw) for ratio in RATIOS],
            color=colour,
            marker=mark,
            linestyle="--",
            label=f"Krum, {q} of 12 lie{'s' * (q == 1)}: draws in which it picks a liar",
        )
    right.set(xscale="log", ylim=(-4, 104), ylabel="percent")
    right.set(
        xlabel="noise of a coordinate / its mean", title="Fall of Empires: liars send -0.1 mean"
    )
    right.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.18), fontsize=9)
    for panel in (left, right):
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    print(f"\n{path}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Fool the median, and Krum.")
    parser.add_argument("--out", type=Path, default=Path("fool_the_median.png"))
    path = parser.parse_args().out
    honest, attacked = five_numbers()
    draw = np.random.default_rng(0)
    print("\nThe liars send -0.1 times the honest mean:\n")
    print("noise/mean   wrong signs of the median   of the mean   krum picks a liar")
    print("             (5 of 11 lie)               (the same)    (4 of 12 lie)")
    for ratio in (0.1, 1.0, 10.0):
        median, mean = (wrong_signs(rule, ratio, 5, draw) for rule in ("median", "mean"))
        print(f"{ratio:>10.1f} {median:>25.0%} {mean:>15.0%} {picks_liar(ratio, 4, draw):>18.0%}")
    draw_picture(honest, attacked, path)


if __name__ == "__main__":
    main()
