"""Cluster files, mailboxes, what nodes save: the parts of a cluster, one by one."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import tomllib
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgar as fg
from fastgar.cli.cluster_out import open_results
from fastgar.cli.refuse import Refused
from fastgar.protocols.aggregathor import filled
from fastgar.protocols.crash_tolerant import later, number_of, stamped
from fastgar.protocols.encoding import BLOCK, encoded, land, landing, numbers
from fastgar.protocols.file import cluster_of, hash_of, read_cluster, to_toml
from fastgar.protocols.mailbox import Mailbox, Verdict, Want
from fastgar.protocols.pace import Pace
from fastgar.protocols.perturb import read_perturbation
from fastgar.protocols.pool import Pool
from fastgar.protocols.results import Results
from fastgar.protocols.speech import Speaker
from fastgar.protocols.storage import Damaged, Disk, Memory, State, pack, unpack

SMALL: dict[str, Any] = {
    "servers": {"count": 5, "f": 1},
    "workers": {"count": 4, "f": 1},
    "training": {"model": "logistic", "steps": 20},
}

WRONG = {
    "n_s >= 3 f_s + 2: with f = 1 that is 5 servers, got 4": {"servers": {"count": 4, "f": 1}},
    "n_w >= 3 f_w + 1: with f = 2 that is 7 workers, got 6": {"workers": {"count": 6, "f": 2}},
    "quorum_servers must lie between 4 and 4, got 3": {"protocol": {"quorum_servers": 3}},
    "quorum_workers must lie between 3 and 3, got 2": {"protocol": {"quorum_workers": 2}},
    "unknown protocol 'byzsdg': did you mean 'byzsgd'": {"protocol": {"name": "byzsdg"}},
    "unknown setting of [protocol] 'gather_evry': did you mean": {"protocol": {"gather_evry": 3}},
    "unknown table of a cluster file 'worker': did you mean 'workers'": {"worker": {}},
    "unknown setting of [workers] 'counts'": {"workers": {"counts": 3}},
    "count of [workers] must be an integer, got '4'": {"workers": {"count": "4"}},
    "rule is set by [protocol] rule, not in [training]": {"training": {"rule": "krum"}},
    "participation is no setting of a cluster": {"training": {"participation": 0.5}},
    "unknown setting 'modle': did you mean 'model'": {"training": {"modle": "mlp"}},
    'set momentum_at = "worker"': {"training": {"momentum_at": "server"}},
    "unknown attack 'litle'": {"workers": {"count": 4, "f": 1, "attack": "litle"}},
    "unknown attack of a server 'revers': did you mean": {
        "servers": {"count": 5, "f": 1, "attack": "revers"}
    },
    "there is no node 'ps9': did you mean": {"perturb": ["kill ps9 @ step 3"]},
    "pause needs a length": {"perturb": ["pause ps1 @ step 3"]},
    "is no perturbation: write": {"perturb": ["hit ps1 @ step 3"]},
    "perturb must be a list of strings": {"perturb": "kill ps1 @ step 3"},
    "loss must lie between 0 and 0.9, got 2": {"simulated": {"loss": 2}},
    "unknown setting of [simulated] 'latncy'": {"simulated": {"latncy": 1}},
    "address of [nodes.ps0] must be HOST:PORT": {"nodes": {"ps0": {"address": "here"}}},
    "fingerprint of [nodes.ps0] must be 64": {
        "nodes": {"ps0": {"address": "here:1", "fingerprint": "abc"}}
    },
    "[nodes] lacks ps1": {"nodes": {"ps0": {"address": "here:1"}}},
    "byzantine servers must be at least 0 and fewer": {"servers": {"count": 5, "byzantine": 5}},
    "weak resilience needs n_w >= 2 f_w + 3: with f = 1 that is 5 workers, got 4": {
        "protocol": {"name": "aggregathor"}, "servers": {"count": 1},
    },
    "strong resilience needs n_w >= 4 f_w + 3: with f = 1 that is 7 workers, got 6": {
        "protocol": {"name": "aggregathor", "resilience": "strong"}, "servers": {"count": 1},
        "workers": {"count": 6, "f": 1},
    },
    "krum needs n >= 2f + 3": {
        "protocol": {"name": "aggregathor", "rule": "krum"}, "servers": {"count": 1},
    },
    "the mean of a hole is a hole: take nan_mean": {
        "protocol": {"name": "aggregathor", "rule": "mean"}, "servers": {"count": 1},
    },
    "resilience must be 'weak' or 'strong', got 'strng'": {
        "protocol": {"name": "aggregathor", "resilience": "strng"}, "servers": {"count": 1},
    },
    "holes must be 'nan', 'zero' or 'previous', got 'none'": {
        "protocol": {"name": "aggregathor", "holes": "none"}, "servers": {"count": 1},
    },
    "pieces must lie between 1 and 64, or be 0, got 65": {
        "protocol": {"name": "aggregathor", "pieces": 65}, "servers": {"count": 1},
    },
    "holes of [protocol] must be a string, got 3": {
        "protocol": {"name": "aggregathor", "holes": 3}, "servers": {"count": 1},
    },
    "quorum_workers must lie between 4 and 5, got 3": {
        "protocol": {"name": "aggregathor", "quorum_workers": 3}, "servers": {"count": 1},
        "workers": {"count": 5, "f": 1},
    },
    "aggregathor has one server, which everybody trusts, got 5": {
        "protocol": {"name": "aggregathor"}, "workers": {"count": 5, "f": 1},
    },
    "pieces is a setting of aggregathor, not of byzsgd": {"protocol": {"pieces": 3}},
    "agreement 'rbtm' promises how close servers come, and rounding would undo it: take "
    "wire = 'float32', got 'bfloat16'": {
        "protocol": {"agreement": "rbtm", "wire": "bfloat16"},
    },
    "crash_tolerant needs n_s >= 2 f_s + 1: with f = 2 that is 5 servers, got 4": {
        "protocol": {"name": "crash_tolerant"}, "servers": {"count": 4, "f": 2},
    },
    "quorum_servers must lie between 3 and 4, got 2": {
        "protocol": {"name": "crash_tolerant", "quorum_servers": 2},
    },
    "quorum_workers must lie between 1 and 3, got 4": {
        "protocol": {"name": "crash_tolerant", "quorum_workers": 4},
    },
    "unknown wire of [protocol] 'bfloat61': did you mean 'bfloat16'": {
        "protocol": {"wire": "bfloat61"},
    },
    "mda needs n >= 2f + 1": {
        "protocol": {"name": "vanilla", "rule": "mda"},
        "servers": {"count": 1},
        "workers": {"count": 4, "f": 2},
    },
}  # fmt: skip


@pytest.mark.parametrize("sentence", WRONG)
def test_a_cluster_that_cannot_be_is_refused_in_a_sentence(sentence: str) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        cluster_of({**SMALL, **WRONG[sentence]})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_says_again_what_it_was_read_from(tmp_path: Path) -> None:
    cluster = cluster_of(
        {**SMALL, "perturb": ["kill ps1 @ step 3", "partition ps0,w1 | rest @ 2.5 s for 1 s"]}
    )
    path = tmp_path / "cluster.toml"
    path.write_text(to_toml(cluster))
    assert read_cluster(path) == cluster
    assert hash_of(read_cluster(path)) == hash_of(cluster)
    for change in ({"gather_every": 3}, {"wire": "bfloat16"}):
        assert hash_of(cluster_of({**SMALL, "protocol": change})) != hash_of(cluster)
    thor = {"name": "aggregathor", "resilience": "strong", "holes": "previous", "pieces": 3}
    groups = {"servers": {"count": 1}, "workers": {"count": 7, "f": 1}}
    path.write_text(to_toml(cluster_of({"protocol": thor, **groups})))
    again = read_cluster(path)
    assert (again.training.rule, again.holes, again.pieces) == ("bulyan", "previous", 3)


@pytest.mark.parametrize(
    ("pieces", "d", "count"), [(0, 650, 1), (0, 40_000, 2), (0, 10**6, 8), (3, 650, 3)]
)
def test_a_short_gradient_goes_in_one_piece(pieces: int, d: int, count: int) -> None:
    thor = {"name": "aggregathor", "pieces": pieces}
    cluster = cluster_of(
        {"protocol": thor, "servers": {"count": 1}, "workers": {"count": 7, "f": 1}}
    )
    fitted = cluster.fitted(d)
    assert len(fitted.parts["gradient"]) == count
    assert sum(fitted.length(kind, d) for kind in fitted.parts["gradient"]) == d
    assert cluster.pieces == pieces and fitted.fitted(1) is fitted


@pytest.mark.parametrize(
    "line",
    [
        "kill ps0 @ step 3", "restart ps0 @ 8 s", "pause w3 @ 5 s for 2 s", "lose w0 @ step 1",
        "slow w1 @ step 5 for 10 s", "partition ps0,w1 | w2,w3 | rest @ step 30 for 3 s",
    ],
)  # fmt: skip
def test_a_perturbation_reads_as_it_is_written(line: str) -> None:
    names = ["ps0", "ps1", "w0", "w1", "w2", "w3", "w4"]
    once = read_perturbation(line, names)
    assert read_perturbation(str(once), names) == once


@given(st.text(max_size=60))
def test_no_text_breaks_the_reader_of_perturbations(text: str) -> None:
    with suppress(ValueError):
        read_perturbation(text, ["ps0", "w0"])


# Mailboxes.


def vector(*numbers: float) -> Any:
    return np.float32(numbers)


def box() -> Mailbox:
    servers = ("ps0", "ps1", "ps2", "ps3", "ps4")
    return Mailbox("ps0", {"gather": servers, "model": servers}, ["model"])


def take(mailbox: Mailbox, peer: str, kind: str, step: int, what: Any) -> Verdict:
    verdict: Verdict = mailbox.verdict(peer, kind, step)
    if verdict is Verdict.TAKE:
        mailbox.put(peer, kind, step, what)
    return verdict


def test_a_quorum_is_of_distinct_peers_in_the_order_of_names() -> None:
    mailbox = box()
    want = Want("gather", 4, 3, 1, own=vector(0))
    assert take(mailbox, "ps4", "gather", 4, vector(4)) is Verdict.TAKE
    assert take(mailbox, "ps4", "gather", 4, vector(9)) is Verdict.SKIP
    assert mailbox.look(want) is None
    take(mailbox, "ps2", "gather", 4, vector(2))
    received = mailbox.look(want)
    assert received is not None
    assert received.names == ("ps0", "ps2", "ps4")
    assert [float(row[0]) for row in received.rows] == [0, 2, 4]


def test_old_messages_are_skipped_and_late_ones_wait() -> None:
    mailbox = box()
    mailbox.forget_before("gather", 5)
    assert take(mailbox, "ps1", "gather", 4, vector(1)) is Verdict.SKIP
    assert take(mailbox, "ps1", "gather", 5, vector(1)) is Verdict.TAKE
    assert take(mailbox, "ps1", "gather", 10, vector(1)) is Verdict.TAKE
    assert take(mailbox, "ps1", "gather", 15, vector(1)) is Verdict.LATER
    assert mailbox.forget_before("gather", 6)
    assert take(mailbox, "ps1", "gather", 15, vector(1)) is Verdict.TAKE


def test_of_models_the_newest_two_are_held() -> None:
    mailbox = box()
    for step in range(10):
        assert take(mailbox, "ps1", "model", step, vector(step)) is Verdict.TAKE
    assert mailbox.size == 2 * 4
    assert mailbox.look(Want("model", 8, 1, later=True)).step == 9
    assert mailbox.look(Want("model", 8, 1)).step == 8
    assert mailbox.reached("model", 1) == 9
    assert mailbox.reached("model", 2) == -1


def test_a_row_that_is_not_finite_is_a_hole_that_counts_against_f() -> None:
    mailbox = box()
    for peer, number in (("ps1", np.nan), ("ps2", 1.0), ("ps3", np.inf)):
        take(mailbox, peer, "gather", 0, vector(number))
    want = Want("gather", 0, 4, 1, own=vector(0))
    assert mailbox.look(want) is None  # two holes, and one is tolerated: wait for the rest
    take(mailbox, "ps4", "gather", 0, vector(2.0))
    assert mailbox.look(want).names == ("ps0", "ps1", "ps2", "ps4")
    with pytest.raises(fg.TooManyFaults):
        mailbox.look(Want("gather", 0, 5, 1, own=vector(0)))


def test_a_sum_that_overflows_is_no_hole() -> None:
    mailbox = box()
    take(mailbox, "ps1", "gather", 0, vector(3e38, 3e38))
    assert mailbox.look(Want("gather", 0, 1)).names == ("ps1",)


def test_a_deadline_follows_the_quorum_and_forgets_a_congestion() -> None:
    pace = Pace(0.2, 10.0)
    assert pace.deadline == 10.0
    for _ in range(20):
        pace.took(0.01)
    assert pace.deadline == 0.2
    pace.took(1000.0)
    assert pace.deadline == 10.0
    for _ in range(20):
        pace.took(0.01)
    assert pace.deadline <= 0.25


def test_a_pool_hands_out_what_nobody_holds() -> None:
    pool = Pool(3)
    first, second = pool.take(), pool.take()
    assert first is not second
    view = memoryview(first)
    kept = id(first)
    del first
    assert id(pool.take()) != kept  # the view holds it
    view.release()
    del view
    third = pool.take()
    assert len(pool.vectors) == 3
    del third


def test_what_has_not_come_by_the_deadline_is_a_hole() -> None:
    workers = ("w0", "w1", "w2", "w3", "w4")
    parts = ("gradient/0", "gradient/1")
    mailbox = Mailbox("ps0", dict.fromkeys(parts, workers), (), {"gradient": parts})
    want = Want("gradient", 0, 5, 2, enough=3)
    for name in ("w4", "w1", "w0"):
        take(mailbox, name, "gradient/1", 0, vector(2, 3))
        assert mailbox.look(want, True) is None
        take(mailbox, name, "gradient/0", 0, vector(1))
    take(mailbox, "w3", "gradient/1", 0, vector(2, 3))
    assert mailbox.lacking(want) == ["w2", "w3"]
    assert mailbox.look(want) is None
    received = mailbox.look(want, True)
    assert (received.names, received.holes) == (workers, ("w2", "w3"))
    np.testing.assert_array_equal(received.rows[4], [1, 2, 3])
    np.testing.assert_array_equal(received.rows[3], [np.nan, 2, 3])
    np.testing.assert_array_equal(received.rows[2], [np.nan] * 3)


def test_what_is_not_finite_counts_among_the_holes() -> None:
    """So that the rule never sees more than f rows that it cannot use."""
    workers = ("w0", "w1", "w2", "w3")
    mailbox = Mailbox("ps0", {"gradient/0": workers}, (), {"gradient": ("gradient/0",)})
    want = Want("gradient", 0, 4, 1, enough=3)
    for name, number in (("w0", 1.0), ("w1", np.nan), ("w2", 1.0)):
        take(mailbox, name, "gradient/0", 0, vector(number))
    assert mailbox.look(want, True) is None  # a hole, and a row of NaN: one is tolerated
    take(mailbox, "w3", "gradient/0", 0, vector(1.0))
    assert len(mailbox.look(want).rows) == 4


def test_a_deadline_without_a_message_is_told() -> None:
    mailbox = box()
    want = Want("gather", 0, 3, 1, own=vector(0), enough=0)
    assert mailbox.look(want) is None
    assert mailbox.look(want, True).rows == []


def test_a_hole_is_filled_as_it_is_told() -> None:
    row, before = vector(1, np.nan, np.inf), vector(4, 5, 6)
    assert filled(row, before, "nan") is row
    np.testing.assert_array_equal(filled(row, before, "zero"), vector(1, 0, np.inf))
    np.testing.assert_array_equal(filled(row, before, "previous"), vector(1, 5, np.inf))


def test_the_lowest_server_stands_for_the_next_term() -> None:
    c = cluster_of({**SMALL, "protocol": {"name": "crash_tolerant"}})

    def leader_after(number: int, *, led: bool) -> str:
        after = later(number, c, led=led)
        assert after > number
        assert after % c.span == 0
        return c.leader(after)

    assert c.leader(7) == "ps0"
    assert leader_after(7, led=True) == "ps1"
    assert leader_after(c.span + 7, led=True) == "ps0"  # which may have come back
    assert leader_after(5 * c.span, led=False) == "ps1"
    assert leader_after(4 * c.span, led=False) == "ps0"


@settings(deadline=None)
@given(st.integers(0, 1 << 40))
def test_a_model_that_is_stored_keeps_its_number(number: int) -> None:
    c = cluster_of({**SMALL, "protocol": {"name": "crash_tolerant"}})
    number %= c.span << 24
    stored = stamped(vector(1, 2, 3), number, c)
    assert stored.dtype == np.float32
    assert number_of(stored, c) == number


# What is saved.


def state(step: int, d: int = 1000) -> State:
    theta = np.full(d, step, np.float32)
    return State(step, {"theta": theta}, {"model": {step: (theta, ("w0", "w1"))}})


def equal(left: State, right: State) -> bool:
    return (
        left.step == right.step
        and {k: v.tobytes() for k, v in left.arrays.items()}
        == {k: v.tobytes() for k, v in right.arrays.items()}
        and {
            k: {s: (v.tobytes(), p) for s, (v, p) in kept.items()} for k, kept in left.kept.items()
        }
        == {
            k: {s: (v.tobytes(), p) for s, (v, p) in kept.items()} for k, kept in right.kept.items()
        }
    )


def test_a_disk_returns_what_was_written_last(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "state", "run")
    assert disk.read() is None
    for step in range(3):
        disk.write(state(step))
    found = disk.read()
    assert found is not None
    assert equal(found, state(2))
    assert sum(vector.nbytes for vector in pack_vectors(state(2))) == 4000  # there once


def pack_vectors(what: State) -> list[Any]:
    return [piece for piece in pack(what, "run") if isinstance(piece, memoryview)]


def test_another_run_is_refused(tmp_path: Path) -> None:
    Disk(tmp_path / "state", "run").write(state(1))
    with pytest.raises(Damaged, match="another run, node or cluster file"):
        Disk(tmp_path / "state", "other").read()


@given(st.integers(0, 4500), st.integers(1, 255))
def test_a_damaged_byte_is_noticed(place: int, flip: int) -> None:
    content = bytearray(b"".join(bytes(piece) for piece in pack(state(3), "run")))
    content[place % len(content)] ^= flip
    with pytest.raises(Damaged):
        unpack(bytes(content), "run")


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader_of_states(content: bytes) -> None:
    with pytest.raises(Damaged):
        unpack(content, "run")
    with pytest.raises(Damaged):
        unpack(b"fastgar1" + content, "run")


WRITER = textwrap.dedent(
    """
    import os, random, signal, sys, time
    from pathlib import Path
    import numpy as np
    from fastgar.protocols.storage import Disk, State
    disk, draw = Disk(Path(sys.argv[1]), "run"), random.Random(0)

    def state(step):
        theta = np.full(1000, step, np.float32)
        return State(step, {"theta": theta}, {"model": {step: (theta, ("w0", "w1"))}})

    whole = 0
    began = time.monotonic()
    for _ in range(10):
        disk.write(state(0))
    takes = (time.monotonic() - began) / 10
    for life in range(200):
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            for step in range(disk.read().step + 1, 10**9):
                disk.write(state(step))
                os.write(writes, b"x")
        time.sleep(draw.uniform(0, 4 * takes))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(writes)
        before, found = whole, disk.read()
        written = len(os.read(reads, 1 << 16))
        least = before + written
        takes *= 1.1 if written == 0 else 0.9 if written > 3 else 1.0  # however busy the machine is
        os.close(reads)
        assert found.step in (least, least + 1), (life, least, found.step)
        assert (found.arrays["theta"] == found.step).all() and found.step in found.kept["model"]
        whole = found.step
    print(whole)
    """
)


def test_a_kill_at_any_of_200_instants_leaves_a_whole_state(tmp_path: Path) -> None:
    """Of the last step that was reported, or of the next."""
    found = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path / "state")], capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > 20


def test_toml_of_every_default_is_read_again() -> None:
    cluster = cluster_of(SMALL)
    assert cluster_of(tomllib.loads(to_toml(cluster))) == cluster


def test_results_go_on_behind_the_last_whole_line(tmp_path: Path) -> None:
    cluster = cluster_of(SMALL)
    summary = {"kind": "summary", "accuracy": {"ps0": 0.5}, "virtual_seconds": 2.0}
    with Results(tmp_path / "run", cluster) as results:
        assert results.one_code and results.of_seeds() == []
        for seed in range(3):
            results.append({"kind": "spread", "step": 1, "spread": float("nan"), "seed": seed})
            results.append({**summary, "seed": seed})
    path = tmp_path / "run" / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    with Results(tmp_path / "run", cluster) as results:
        assert results.one_code
        kept = results.of_seeds()
        assert [(line["kind"], line["seed"]) for line in kept] == [
            ("spread", 0), ("summary", 0), ("spread", 1), ("summary", 1), ("spread", 2)
        ]  # fmt: skip
        assert kept[0]["spread"] is None
        results.append({**summary, "seed": 2})
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([*lines[:3], lines[3][:9], '{"kind":"summary","seed":"1"}', lines[5]])
    )
    with path.open("a") as file:
        file.write("\n")
    with Results(tmp_path / "run", cluster) as results:  # what is damaged can be run again
        assert [line["seed"] for line in results.of_seeds()] == [0, 0, 1, 2]
    assert path.read_text().splitlines()[3] == lines[3][:9]


def test_results_of_another_run_or_of_other_code_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = cluster_of(SMALL)
    with open_results(tmp_path, cluster) as results:
        results.append({"kind": "traffic", "step": 1, "seed": 0})
    open_results(tmp_path, cluster).close()
    assert capsys.readouterr().err == ""
    file = tmp_path / "cluster.toml"
    assert cluster_of(tomllib.loads(file.read_text())) == cluster
    file.write_text(re.sub("code .*", "code 0123456789", file.read_text(), count=1))
    with open_results(tmp_path, cluster) as results:
        assert not results.one_code
    assert "was begun by other code" in capsys.readouterr().err
    with pytest.raises(Refused, match="holds another run: take another --out, or delete it"):
        open_results(tmp_path, cluster_of({**SMALL, "protocol": {"gather_every": 3}}))
    file.unlink()
    with pytest.raises(Refused, match=r"has results.jsonl but no cluster.toml: take another"):
        open_results(tmp_path, cluster)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1


# How numbers travel.


def test_bfloat16_is_the_nearest_of_two_the_even_one() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = numbers(bits)
    nan = np.isnan(values)
    assert nan.sum() == 2 * 127 and np.isnan(numbers(encoded(values, "bfloat16"))[nan]).all()
    assert (encoded(values, "bfloat16")[~nan] == bits[~nan]).all()
    for sign in (0, 0x8000):  # between each two, up to the largest
        low = np.arange(sign, sign + 0x7F7F, dtype=np.uint16)
        half = (low.astype(np.uint32) << 16) + 0x8000
        for below in (-1, 0, 1):
            near = (half.astype(np.int64) + below).astype(np.uint32)
            found = encoded(near.view(np.float32), "bfloat16")
            assert (found == low + ((low & 1) if below == 0 else below == 1)).all()
    ends = np.array([3.4e38, -3.4e38, np.inf, -np.inf, -0.0], np.float32)
    ends.flags.writeable = False
    assert encoded(ends, "bfloat16").tolist() == [0x7F80, 0xFF80, 0x7F80, 0xFF80, 0x8000]


def test_what_travels_is_sent_as_it_is() -> None:
    """A second time, too: as float32 the same array, of other numbers float32."""
    vector = np.ones(3, np.float32)
    assert encoded(vector, "float32") is vector is numbers(vector)
    assert encoded(np.ones(3), "float32").dtype == np.float32
    bits = encoded(vector, "bfloat16")
    assert encoded(bits, "bfloat16") is bits
    state = unpack(
        b"".join(map(bytes, pack(State(1, {}, {"model": {1: (bits, ("w0",))}}), "r"))), "r"
    )
    assert state.kept["model"][1][0].tobytes() == bits.tobytes()


@pytest.mark.parametrize("d", [0, 1, 2, 3, 37, 2 * BLOCK + 1])
def test_what_arrives_as_bfloat16_becomes_numbers_in_place(d: int) -> None:
    bits = np.random.default_rng(d).integers(0, 1 << 16, d, dtype=np.uint16)
    vector = np.full(d, np.nan, np.float32)
    assert landing(vector).nbytes == 2 * d
    landing(vector)[:] = bits
    land(vector)
    assert vector.tobytes() == numbers(bits).tobytes()


def test_a_node_rounds_into_memory_that_nobody_holds_any_more() -> None:
    """What is kept, or under way to a slow peer, stays as it was sent."""
    cluster = cluster_of({**SMALL, "protocol": {"wire": "bfloat16"}})
    slow, owners = [], set()
    outbox = SimpleNamespace(post=lambda *message: slow.append(message[-1].data))
    me = Speaker("ps0", cluster, Memory(), outbox)  # type: ignore[arg-type]
    vectors = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
    for step, each in enumerate(vectors):
        me.send(("w0",), "model", step, each)
        owners.add(id(me.kept["model"][step][0]))
        if step != 3:
            slow.pop()
        held = [vector for vector, _ in me.kept["model"].values()]
        for want, got in zip(vectors[max(0, step - 1) : step + 1], held, strict=True):
            assert got.tobytes() == encoded(want, "bfloat16").tobytes()
    assert slow[0].tobytes() == encoded(vectors[3], "bfloat16").tobytes()
    assert [len(pool.vectors) for pool in me._pools.values()] == [len(owners)] == [4]


def test_only_models_and_gradients_are_rounded() -> None:
    """The marks of a model that a server stands with are no numbers of a model."""
    for name, exact in (("byzsgd", set()), ("crash_tolerant", {"stored", "stand"})):
        cluster = cluster_of({**SMALL, "protocol": {"name": name, "wire": "bfloat16"}})
        assert {kind for kind in cluster.kinds if cluster.dtype(kind) == "float32"} == exact
    thor = {"name": "aggregathor", "wire": "bfloat16"}
    groups = {"servers": {"count": 1}, "workers": {"count": 5, "f": 1}}
    assert cluster_of({"protocol": thor, **groups}).dtype("gradient/7") == "bfloat16"
