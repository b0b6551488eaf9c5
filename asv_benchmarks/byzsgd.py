"""What ByzSGD costs in steps under every attack, and how far its servers are apart.

    python -m asv_benchmarks.byzsgd --out byzsgd       server attacks by worker attacks; a picture
    python -m asv_benchmarks.byzsgd --all              every attack that there is, an hour

On the simulated network, with logistic regression on the digits: 5 servers of which 1 lies, 10
workers of which 3 do. Overhead is how many more steps it takes the worst honest server to an
accuracy than it takes plain SGD without a liar. Middles of three seeds of the training.
"""

import argparse
from pathlib import Path
from statistics import median

STEPS, TARGET, SEEDS = 40, 0.85, (0, 1, 2)
SERVERS = ("none", "random", "reverse", "equivocate", "silence", "twins", "little",
           "empire(k=10)")  # fmt: skip
WORKERS = ("none", "little", "empire", "empire(k=10)", "sign_flip", "mimic", "nan", "label_flip")
GATHERS = (1, 10, STEPS)  # steps between two; the last is never, but for the end


def run(server="none", worker="none", *, protocol="byzsgd", seed=0, gather_every=10):
    """Return what comes of a cluster."""
    from fastgar.protocols import simulate

    servers = {"count": 5, "f": 1, "byzantine": 1, "attack": server}
    workers = {"count": 10, "f": 3, "byzantine": 3, "attack": worker}
    if protocol == "vanilla":
        servers, workers = {"count": 1}, {"count": 10}
    return simulate(
        {
            "protocol": {"name": protocol, "gather_every": gather_every},
            "training": {
                "model": "logistic", "steps": STEPS, "lr": 0.1, "seed": seed, "evaluate_every": 1
            },
            "servers": servers,
            "workers": workers,
        },
        seed,
    )  # fmt: skip


def steps_to(outcome):
    """Return the step at which the worst honest server first is as accurate as is wanted."""
    steps = {}
    for line in outcome.lines:
        if line["kind"] == "evaluation":
            steps.setdefault(line["step"], []).append(line["accuracy"])
    return min((step for step, found in steps.items() if min(found) >= TARGET), default=None)


def overhead(server, worker, before):
    """Return the middle overhead over the steps of plain SGD; None if it never gets there."""
    taken = [steps_to(run(server, worker, seed=seed)) for seed in SEEDS]
    ratios = [
        float("inf") if steps is None else steps / plain - 1
        for steps, plain in zip(taken, before, strict=True)
    ]
    found = median(ratios)
    return None if found == float("inf") else found


def spreads(gather_every):
    """Return the spread of the honest servers over steps while a server and workers lie."""
    lines = run("equivocate", "little", gather_every=gather_every).lines
    return sorted((line["step"], line["spread"]) for line in lines if line["kind"] == "spread")


def picture(table, servers, workers, path):
    """Write the overheads as a grid, and the spreads as lines."""
    from matplotlib.figure import Figure

    from fastgar.train.figures import dress, look
    from fastgar.train.origin import Origin

    figure = Figure(figsize=(11, 1.6 + 0.4 * len(servers)), layout="constrained")
    grid, lines = figure.subplots(1, 2, width_ratios=(2, 1))
    values = [[table[s, w] if table[s, w] is not None else float("nan") for w in workers]
              for s in servers]  # fmt: skip
    grid.imshow(values, cmap="OrRd", vmin=0, vmax=2, aspect="auto")
    grid.set_xticks(range(len(workers)), workers, rotation=30, ha="right", fontsize=8)
    grid.set_yticks(range(len(servers)), servers, fontsize=8)
    for i, s in enumerate(servers):
        for j, w in enumerate(workers):
            dark = (table[s, w] or 0) > 1.3
            grid.text(
                j, i, shown(table[s, w]), ha="center", va="center", fontsize=8,
                color="white" if dark else "black",
            )  # fmt: skip
    grid.set_xlabel("what 3 of 10 workers send")
    grid.set_ylabel("what 1 of 5 servers sends")
    grid.set_title(f"more steps to {TARGET:.0%} than plain SGD without liars", fontsize=10)
    names = {every: f"a gather every {every} steps" for every in GATHERS}
    names |= {1: "a gather every step", STEPS: "no gather"}
    for every, style in look(GATHERS).items():
        found = [point for point in spreads(every) if point[0] < STEPS]
        lines.plot(*zip(*found, strict=True), **style, label=names[every])
    lines.legend(frameon=False, fontsize=8)
    lines.set_ylim(0)
    lines.set_xlabel("step")
    lines.set_title("spread of the honest servers", fontsize=10)
    dress(lines)
    command = "python -m asv_benchmarks.byzsgd"
    Origin("ByzSGD", command, SEEDS).save(figure, path, "middles; of the spread seed 0")


def shown(value):
    return "never" if value is None else f"{100 * value:+.0f} %"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for the picture")
    parser.add_argument("--all", action="store_true", help="every attack")
    options = parser.parse_args()
    servers, workers = SERVERS, WORKERS
    if options.all:
        from fastgar.attacks import attack, list_attacks

        servers = (
            *SERVERS,
            *(a for a in list_attacks() if a not in SERVERS and not attack(a).poisons),
        )
        workers = (*WORKERS, *(a for a in list_attacks() if a not in WORKERS), "twins")
    before = [steps_to(run(protocol="vanilla", seed=seed)) for seed in SEEDS]
    print(f"plain SGD takes {before} steps to {TARGET:.0%}\n")
    print(f"| server \\ workers | {' | '.join(workers)} |")
    print("| --- |" + " ---: |" * len(workers))
    table = {}
    for server in servers:
        for worker in workers:
            table[server, worker] = overhead(server, worker, before)
        cells = " | ".join(shown(table[server, worker]) for worker in workers)
        print(f"| {server} | {cells} |", flush=True)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        picture(table, servers, workers, options.out / "byzsgd.png")


if __name__ == "__main__":
    main()
