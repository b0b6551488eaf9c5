"""The protocols as users meet them: what they learn, a protocol of one's own, what is written."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

import fastgar as fg

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from fastgar import cli, protocols
from fastgar.attacks import attack, list_attacks
from fastgar.cli import node
from fastgar.protocols import (
    PROTOCOLS,
    Broken,
    Kind,
    Outcome,
    Text,
    cluster_of,
    read_cluster,
    registry,
    simulate,
)
from fastgar.protocols.cluster import TWINS
from fastgar.protocols.file import TABLES, to_toml
from fastgar.protocols.lies import SERVER_ATTACKS
from fastgar.protocols.record import traffic_lines
from fastgar.train.origin import Origin, changed

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
STEPS, EVERY = 40, 5
PLAIN = [*SERVER_ATTACKS, TWINS]
SERVERS = [*PLAIN, *(a for a in list_attacks() if a not in PLAIN and not attack(a).poisons)]
SLOW, FAST = 0.05, 0.3
FATAL = {  # what averaging fails under, and the rate at which that is seen
    **dict.fromkeys(("reverse", "gaussian", "huge", "inf", "nan", "optimal"), FAST),
    **dict.fromkeys(("empire(k=10)", "empire_strict(eps=9)", "little(k=100)"), FAST),
    **dict.fromkeys(("sign_flip", "bit_flip", "label_flip", "anti_cge"), SLOW),
}
SMALL = "at most as long as an honest row, and 3 of 7 of these leave the mean its direction"
HARMLESS = {  # to averaging, as they are by default, and why
    **dict.fromkeys(("empire", "empire_strict", "zero", "drop"), SMALL),
    **dict.fromkeys(("little", "fang", "min_max", "min_sum"), "within the spread of honest rows"),
    **dict.fromkeys(
        ("mimic", "mimic_heuristic", TWINS), "an honest row, or what honest code sends"
    ),
    "random": "of length 1 a number, which is noise that steps average out",
    "bulyan": "adds 1 to one bias, which costs next to nothing",
}


def learned(
    server: str,
    worker: str,
    protocol: str = "byzsgd",
    seed: int = 0,
    wire: str = "float32",
    rule: str = "",
    lr: float = FAST,
) -> Outcome:
    """Run logistic regression on the digits: 5 servers of which 1 lies, 10 workers, 3 lie."""
    own = {"rule": rule} if rule else {}
    groups: dict[str, Any] = {
        "servers": {"count": 5, "f": 1, "byzantine": 1, "attack": server},
        "workers": {"count": 10, "f": 3, "byzantine": 3, "attack": worker},
    }
    if protocol == "vanilla":
        groups["servers"].update(count=1, f=0)
        groups["workers"].update(f=0)
    return simulate(
        {
            "protocol": {"name": protocol, "gather_every": 5, "wire": wire, **own},
            "training": {
                "model": "logistic", "steps": STEPS, "lr": lr, "batch": 64, "evaluate_every": EVERY
            },
            **groups,
        },
        seed,
    )  # fmt: skip


def final(outcome: Outcome) -> float:
    """Return the accuracy of the worst honest server: the mean of three, as it goes up and down."""
    found = [
        min(
            line["accuracy"] for line in outcome.lines if line.get("accuracy") and line["step"] == t
        )
        for t in range(STEPS - 2 * EVERY, STEPS + 1, EVERY)
    ]
    return sum(found) / len(found)


@pytest.fixture(scope="module")
def honest() -> Outcome:
    return learned("none", "none")


@pytest.fixture(scope="module")
def clean(honest: Outcome) -> float:
    return final(honest)


@pytest.mark.parametrize(
    ("server", "worker"),
    [
        *((server, "empire") for server in SERVERS),
        *(("equivocate", worker) for worker in HARMLESS),
    ],
)
def test_lying_servers_and_workers_cost_at_most_five_points(
    server: str, worker: str, clean: float
) -> None:
    """Every attack of servers with one of workers, and the other way round: P11."""
    assert clean > 0.9
    assert final(learned(server, worker)) > clean - 0.05


@pytest.fixture(scope="module")
def clean_slow() -> float:
    return final(learned("none", "none", lr=SLOW))


@pytest.mark.parametrize("worker", FATAL)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # averages of huge numbers overflow
def test_workers_that_ruin_averaging_cost_at_most_five_points(
    worker: str, clean: float, clean_slow: float
) -> None:
    """P11, and its control: honest servers that average lose more than five."""
    lr = FATAL[worker]
    bar = (clean if lr == FAST else clean_slow) - 0.05
    assert final(learned("equivocate", worker, lr=lr)) > bar
    try:
        averaged = final(learned("none", worker, rule="mean", lr=lr))
    except Broken as broken:  # a model that is not finite is nobody's
        assert "NaN or infinity" in str(broken)
    else:
        assert averaged < bar


def test_every_attack_of_workers_ruins_averaging_or_is_said_not_to() -> None:
    assert {attack(name).name for name in FATAL} | HARMLESS.keys() == {*list_attacks(), TWINS}


@pytest.mark.parametrize("lie", ["random", "reverse", "empire(k=10)"])
def test_one_lying_server_is_enough_where_it_is_trusted(lie: str, clean: float) -> None:
    assert final(learned("none", "none", "vanilla")) > clean - 0.05
    assert learned(lie, "none", "vanilla").lowest < 0.5


def test_public_names_are_there_and_import_nothing_heavy() -> None:
    assert set(protocols.__all__) == set(protocols.LATER) <= set(dir(protocols))
    for name in protocols.__all__:
        assert getattr(protocols, name).__doc__
    assert callable(simulate) and {"byzsgd", "vanilla"} <= set(PROTOCOLS)
    assert issubclass(Broken, AssertionError)
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        _ = protocols.simulat
    code = "import sys, fastgar, fastgar.protocols; print('torch' in sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(fg.__file__).parent.parent,
    ).stdout  # fmt: skip
    assert printed.strip() == "False"


# A protocol of one's own.


def own_protocol() -> dict[str, Any]:
    """Return what the README's protocol defines."""
    (block,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        if "async def server" in block
    )
    scope: dict[str, Any] = {}
    exec(block, scope)
    assert len(block.strip().splitlines()) < 50
    return scope


SEVEN: dict[str, Any] = {
    "training": {"model": "logistic", "steps": 30, "lr": 0.1, "momentum": 0.0},
    "workers": {"count": 7, "f": 2, "byzantine": 2, "attack": "empire(k=10)"},
}


def test_the_protocol_of_the_readme_learns_among_liars_through_a_crash() -> None:
    scope = own_protocol()
    assert scope["outcome"].lowest > 0.75
    perturbed = {**SEVEN, "perturb": ["kill ps0 @ step 10", "restart ps0 @ 1.5 s"]}
    outcome = simulate(cluster_of(perturbed, text=scope["text"]))
    assert outcome.crashed == 1
    assert outcome.lowest > 0.75


def test_a_protocol_of_ones_own_is_held_to_what_all_are() -> None:
    """Its server sends another model to every worker, and is no liar: P10."""

    async def server(me: Any, net: Any, c: Any) -> Any:
        for number, worker in enumerate(c.of_role("worker")):
            net.kept.clear()
            net.send([worker], "model", 0, me.initial + number)
        return await net.collect("update", 0, c.q_w)

    async def worker(me: Any, net: Any, c: Any) -> Any:
        _, (theta,) = await net.latest("model", 0, 1)
        net.send(c.of_role("server"), "update", 0, theta)
        return theta

    kinds = {"model": Kind("server", ("worker",)), "update": Kind("worker", ("server",))}
    cluster = cluster_of(SEVEN, text=Text("unequal", server, worker, kinds))
    with pytest.raises(Broken, match="P10: ps0 sent two different vectors as model of step 0"):
        simulate(cluster)


def test_a_document_and_a_text_must_mean_the_same_protocol() -> None:
    text = own_protocol()["text"]
    document = {**SEVEN, "protocol": {"name": "byzsgd"}}
    with pytest.raises(ValueError, match="names 'byzsgd' and the text is federated: name one"):
        cluster_of(document, text=text)


def test_a_protocol_of_another_distribution_is_known_by_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "theirs.py").write_text(
        textwrap.dedent(
            """
            from fastgar.protocols import PROTOCOLS, Text
            from dataclasses import replace
            text, other = replace(PROTOCOLS["vanilla"], name="theirs"), 3
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    offered = EntryPoints(
        EntryPoint(name, f"theirs:{what}", registry.ENTRY_POINTS)
        for name, what in (("theirs", "text"), ("wrong", "other"))
    )
    monkeypatch.setattr(registry, "entry_points", lambda group: offered.select(group=group))
    cluster = cluster_of({**SEVEN, "protocol": {"name": "theirs"}})
    assert cluster.text.name == "theirs"
    assert cluster_of(tomllib.loads(to_toml(cluster))) == cluster
    with pytest.raises(ValueError, match="theirs:other is no protocol of the name 'wrong'"):
        cluster_of({"protocol": {"name": "wrong"}})
    with pytest.raises(ValueError, match="unknown protocol 'thiers': did you mean 'theirs'"):
        cluster_of({"protocol": {"name": "thiers"}})


# What the README says.


def test_the_cluster_file_of_the_readme_is_read_and_has_every_table(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    cluster = read_cluster(path)
    assert cluster.liars == {"ps4"}
    assert set(tomllib.loads(text)) == {"perturb", *TABLES} - {"nodes"}
    document = tomllib.loads(text)
    for table in ("protocol", "servers", "simulated"):
        written = tomllib.loads(to_toml(cluster))[table]
        assert set(document[table]) == set(written)
    assert (cluster.q_s, cluster.q_w) == (4, 3)
    without = cluster_of({**document, "protocol": {}})  # what is said to be the default is it
    assert (without.q_s, without.q_w) == (4, 3)
    for name in ("gather_every", "deadline_floor", "deadline_ceiling", "give_up", "linger"):
        assert getattr(without, name) == getattr(cluster, name)
    (example,) = re.findall(r"^# \[nodes.*", text, re.MULTILINE | re.DOTALL)
    node = tomllib.loads(re.sub("^# ", "", example, flags=re.MULTILINE))["nodes"]["ps0"]
    assert node.pop("fingerprint") == node.pop("public_key") == "..."
    nodes = {name: {**node, "fingerprint": "0" * 64} for name in cluster.names}
    assert cluster_of({**document, "nodes": nodes}).nodes["w3"].port == 29400


# What is written.

ASKED = "simulate --model logistic --steps 10 --workers 4 --f-workers 1 --quiet --out"


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_folder_of_results_holds_cluster_lines_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    assert cli.main([*ASKED.split(), str(out), "--seeds", "0:2"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "cluster.json", "cluster.png", "cluster.toml", "results.jsonl"
    ]  # fmt: skip
    assert str(out / "cluster.png") in capsys.readouterr().out
    assert (out / "cluster.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads((out / "cluster.json").read_text())
    assert facts["seeds"] == [0, 1] and facts["command"].startswith("fastgar simulate")
    assert {"Properties", "Draws", "Record"} <= facts["sources"].keys()
    assert "plot_run" in facts["drawing"] and changed(out / "cluster.png") == []
    cluster = read_cluster(out / "cluster.toml")
    assert (cluster.servers.count, cluster.workers.count, cluster.steps) == (5, 4, 10)
    lines = lines_of(out)
    assert lines[-1]["kind"] == "summary"
    before = (out / "results.jsonl").read_bytes()
    (out / "results.jsonl").write_bytes(before + b'{"kind":"summ')  # as if it had been killed
    assert cli.main([*ASKED.split(), str(out), "--seeds", "0:2"]) == 0  # nothing is left to do
    assert (out / "results.jsonl").read_bytes() == before


def test_a_picture_leaves_out_what_is_not_finite(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = [
        {"kind": "spread", "step": step, "spread": spread, "seed": 0}
        for step, spread in enumerate((1.0, None, float("inf"), 2.0))
    ]
    origin = Origin("title", "fastgar simulate", (0,))
    cluster = cluster_of({**SEVEN, "protocol": {"name": "vanilla"}})
    protocols.plot.plot_run(lines, cluster, tmp_path / "cluster.png", origin)
    assert (tmp_path / "cluster.png").exists()


def test_a_picture_names_who_lies_and_what_is_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    drawn: list[Any] = []
    monkeypatch.setattr(Origin, "save", lambda self, figure, *more: drawn.append(figure))
    servers = {"count": 1, "byzantine": 1, "attack": "reverse"}
    cluster = cluster_of({**SEVEN, "protocol": {"name": "vanilla"}, "servers": servers})
    lines = [{"kind": "evaluation", "node": "ps0", "step": 0, "accuracy": 0.5},
             {"kind": "spread", "step": 0, "spread": 0.5, "estimated": True}]  # fmt: skip
    origin = Origin("title", "fastgar cluster", (0,))
    protocols.plot.plot_run(lines, cluster, tmp_path / "cluster.png", origin)
    (figure,) = drawn
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ps0 (lies)"]
    titles = [panel.get_title() for panel in figure.axes]
    assert titles[:2] == ["test accuracy (%)", "spread of the honest servers (estimated)"]


def test_what_a_step_sends_adds_up() -> None:
    """Models to 4 workers, gradients to 5 servers, and every 5 steps models between servers."""
    document: dict[str, Any] = {
        "protocol": {"gather_every": 5},
        "training": {"model": "logistic", "steps": 20, "evaluate_every": 5},
        "servers": {"count": 5, "f": 1},
        "workers": {"count": 4, "f": 1},
        "simulated": {"jitter": 0, "compute": 0},
    }
    outcome = simulate(document)
    traffic = [line for line in outcome.lines if line["kind"] == "traffic"]
    assert [line["step"] for line in traffic] == [5, 10, 15, 20]
    d = 64 * 10 + 10
    for line in traffic[1:]:  # at the start nodes send again to whom they meet
        assert line["messages"] == 5 * 4 + 4 * 5 + 5 * 4 / 5
        assert line["bytes"] == 4 * d * line["messages"]


def test_bfloat16_halves_the_bytes_and_costs_at_most_a_point(honest: Outcome) -> None:
    def sent(outcome: Outcome) -> float:
        return sum(line["bytes"] for line in outcome.lines if line["kind"] == "traffic")

    halves = learned("none", "none", wire="bfloat16")
    assert sent(halves) == sent(honest) / 2
    assert final(halves) > final(honest) - 0.01


def test_what_nodes_sent_is_added_and_divided_by_steps() -> None:
    cluster = cluster_of({**SEVEN, "protocol": {"name": "vanilla"}, "training": {
        "steps": 12, "evaluate_every": 5}})  # fmt: skip
    assert traffic_lines(cluster, [{5: [10, 100], 12: [4, 40]}, {}, {"5": [5, 50]}]) == [
        {"kind": "traffic", "step": 5, "messages": 3.0, "bytes": 30.0},
        {"kind": "traffic", "step": 12, "messages": 2.0, "bytes": 20.0},
    ]


# Which key is a node's.


def asked(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    node.add_arguments(parser)
    return parser.parse_args(["--cluster", "cluster.toml", *words])


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("--key", "some/w1.pem"), "some/w1.pem"),
        (("--keys", "keys", "--id", "0"), "keys/ps0.pem"),
        (("--keys", "keys", "--id", "2"), "keys/w1.pem"),
        (("--keys", "keys", "--id", "w0"), "keys/w0.pem"),
    ],
)
def test_a_node_finds_its_key(words: tuple[str, ...], key: str) -> None:
    assert node._key(asked(*words), ["ps0", "w0", "w1"]) == Path(key)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "--key FILE, or --keys DIR and --id ID"),
        (("--keys", "keys"), "--key FILE, or --keys DIR and --id ID"),
        (("--key", "a.pem", "--id", "0"), "--key FILE, or --keys DIR and --id ID"),
        (("--keys", "keys", "--id", "3"), "a number from 0 to 2, or a name from ps0 to w1"),
        (("--keys", "keys", "--id", "-1"), "a number from 0 to 2, or a name from ps0 to w1"),
        (("--keys", "keys", "--id", "../w0"), "a number from 0 to 2, or a name from ps0 to w1"),
    ],
)
def test_a_node_that_cannot_be_meant_is_refused(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        node._key(asked(*words), ["ps0", "w0", "w1"])


def test_the_benchmark_of_steps_draws_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(ROOT))
    from asv_benchmarks import byzsgd

    small = {
        "STEPS": 12, "TARGET": 0.4, "SEEDS": (0,), "SERVERS": ("none", "reverse"),
        "WORKERS": ("sign_flip",), "GATHERS": (1, 5, 12),
    }  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(byzsgd, name, value)
    monkeypatch.setattr(sys, "argv", ["byzsgd", "--out", str(tmp_path)])
    byzsgd.main()
    printed = capsys.readouterr().out
    assert re.search(r"^\| reverse \| [+-]\d+ % \|$", printed, re.MULTILINE)
    assert (tmp_path / "byzsgd.png").read_bytes().startswith(b"\x89PNG")


def test_a_cluster_file_that_could_not_be_read_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cryptography")
    addresses = [f"10.0.0.{number}:29400" for number in range(1, 131)]
    with pytest.raises(SystemExit) as end:
        cli.main(["keys", "--servers", "5", *addresses, "--out", str(tmp_path / "keys")])
    assert end.value.code == 2
    assert "a cluster file has at most 16,000 characters" in capsys.readouterr().err
    assert not (tmp_path / "keys").exists()
    assert cli.main(["keys", "--servers", "5", *addresses[:115], "--out", str(tmp_path)]) == 0


def test_who_is_proved_to_lie_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    command = (
        "simulate --model logistic --steps 10 --gather-every 5 --workers 4 --f-workers 1 --quiet"
    )
    assert cli.main([*command.split(), "--server-attack", "equivocate", "--agreement", "rbtm"]) == 0
    assert "\n\nps4 signed two models for one step, and was excluded" in capsys.readouterr().out
    assert cli.main([*command.split(), "--server-attack", "reverse", "--agreement", "rbtm"]) == 0
    assert "excluded" not in capsys.readouterr().out


def test_ctrl_c_leaves_a_sentence_and_no_process(tmp_path: Path) -> None:
    words = [*ASKED.split(), str(tmp_path / "out"), "--seeds", "0:2000", "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastgar.cli", *words], stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    results = tmp_path / "out" / "results.jsonl"
    until = time.monotonic() + 120
    while not (results.exists() and results.stat().st_size) and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "keeps them, and the same command goes on" in said and "Traceback" not in said
    until = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):  # nobody is left in its group
        while time.monotonic() < until:
            os.killpg(process.pid, 0)
            time.sleep(0.05)
