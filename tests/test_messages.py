"""Error messages fit a line or two whatever they are about, and say what was meant."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastgar as fg
from fastgar.attacks import View, attack, little
from fastgar.errors import shown

PACKAGE = Path(fg.__file__).parent
X = np.ones((11, 1000), np.float32)
MANY = [X[0]] * 1000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.5, "2.5"),
        (np.float32(2.5), repr(np.float32(2.5))),
        ("krum", "'krum'"),
        (X, "<ndarray of shape (11, 1000)>"),
        ({"w": [X]}, "{'w': [<ndarray of shape (11, 1000)>]}"),
        (tuple(range(30)), str(tuple(range(20)))[:-1] + ", ...)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_shown_as_they_are_and_arrays_by_shape(value: Any, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize("value", ["x" * 10**6, b"x" * 10**6, MANY, [MANY] * 1000, {"x" * 10**6}])
def test_no_value_is_shown_in_full_length(value: Any) -> None:
    assert len(shown(value)) <= 200


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "swapped": (lambda: fg.krum(2, X), r"X and f are swapped: .* krum\(X, f=2\)"),
    "swapped lists": (lambda: fg.median(2, MANY), r"X and f are swapped: .* median\(X, f=2\)"),
    "f": (lambda: fg.krum(X, f=X), r"f must be an integer, got <ndarray of shape \(11, 1000\)>"),
    "many f": (lambda: fg.krum(X, f=MANY), "f must be an integer, got "),
    "option": (lambda: fg.krum(X, f=2, neighbours=MANY), "neighbours must be 'n-f-2' or 'n-f-1'"),
    "number": (lambda: fg.geometric_median(X, f=2, tol=X), "tol must be a finite number"),
    "n": (lambda: fg.max_f("krum", X), "n must be an integer, got <ndarray"),
    "kappa": (lambda: fg.kappa("krum", X, 2), "n must be an integer, got <ndarray"),
    "statistic": (lambda: fg.columns("median", X), "unknown column rule <ndarray"),
    "distance_on": (lambda: fg.krum(X, f=2, distance_on=MANY), "got "),
    "on an array": (lambda: fg.krum(X, f=2, distance_on=X[0]), "'all' or a function .*, got <nda"),
    "check": (lambda: fg.krum(X, f=2, check=X[0]), "check must be True or False, got <ndarray"),
    "buffers": (lambda: fg.krum(X, f=2, buffers=X[0]), "unknown buffers policy <ndarray of shape"),
    "variant": (lambda: fg.krum(X, f=2, variant=X[0]), "unknown variant of krum <ndarray of shape"),
    "no step": (lambda: fg.krum(X, f=2, step=X[0]), "unknown option of krum 'step'"),
    "former": (lambda: fg.mda(X, f=2, node_limit=9), "'node_limit': did you mean 'work_limit'?"),
    "start": (lambda: fg.krum(X, f=2, start=X), "krum takes no start"),
    "rule": (lambda: fg.rule("krum", X), "f must be an integer, got <ndarray"),
    "step": (lambda: fg.bucketing(X, f=2, step=X), "step must be an integer, got <ndarray"),
    "weights": (lambda: fg.combine(X, np.eye(11)), r"W must have shape .*combine\(W, X\)"),
    "attack": (lambda: little(X, q=2, k=X), "k must be a finite number or 'auto', got <ndarray"),
    "positions": (lambda: View(q=2, positions=tuple(range(10**5))), "positions must name 2"),
    "long rule": (lambda: fg.rule("krum" * 400, 2), "unknown rule 'krumkrum"),
    "no rule": (lambda: fg.rule("a b " * 400, 2), "is no rule"),
}


@pytest.mark.parametrize("name", WRONG)
def test_no_message_holds_an_array(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    assert len(str(caught.value)) < 700  # the longest lists every rule


def test_reports_and_results_fit_a_screen() -> None:
    pytest.importorskip("torch")
    n = 300
    report = fg.inspect("krum", np.random.default_rng(0).normal(size=(n, 3)), f=2)
    assert len(str(report).split("\n")) == n + 2
    assert len(repr(report).split("\n")) == 41
    assert "\n... 262 lines more: print it ...\n" in repr(report)
    assert re.search(r"299    0.000 .* of 300", repr(report).split("\n")[-1])
    result = fg.train.run("mlp", rule="median", attack="sign_flip", steps=2, evaluate_every=1)
    text = "<Result: median under sign_flip; 2 of 2 steps; 7,510 parameters; accuracy "
    assert repr(result).startswith(f"{text}{result.accuracy:.1%}, at best ")
    assert len(repr(result)) < 160
    data = fg.train.load("digits")
    assert (
        repr(data)
        == "<Data digits: 1437 samples of shape (1, 8, 8) to train on, 360 to test on, 10 classes>"
    )
    view = repr(View(q=2, own=X[:2], positions=(1, 2)))
    assert view == "View(q=2, step=0, own=<ndarray of shape (2, 1000)>, positions=(1, 2), seed=0)"


def test_training_shows_no_array_either() -> None:
    pytest.importorskip("torch")
    for option in ("rule", "lr", "byzantine", "schedule"):
        with pytest.raises(TypeError, match=f"{option} must be .*, got <ndarray of shape"):
            fg.train.run("mlp", **{option: X})


def test_messages_show_what_users_pass_by_one_helper() -> None:
    """What follows "got" is a value of the user's: a number that was read, or `shown`."""
    raw = re.compile(r"\bgot \{[\w.]+!r\}")
    found = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text().splitlines()
        if raw.search(line)
    ]
    assert not found


@pytest.mark.parametrize(
    ("spec", "meant"),
    [
        ("trimmed-mean", "trimmed_mean"),
        ("trimmed mean", "trimmed_mean"),
        ("trimmedmean", "trimmed_mean"),
        ("TrimmedMean", "trimmed_mean"),
        ("Krum", "krum"),
        ("KRUM", "krum"),
        ("nnm, krum", "nnm | krum"),
        ("nnm > trimmed-mean", "nnm | trimmed_mean"),
        ("Clip + nnm + krum", "clip | nnm | krum"),
    ],
)
def test_other_spellings_of_rules_are_understood(spec: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean {re.escape(repr(meant))}") as caught:
        fg.rule(spec, 2)
    assert "known:" not in str(caught.value)


@pytest.mark.parametrize("spec", ["krum, median", "krum(3", "", "2 + 2", "import os"])
def test_nothing_is_suggested_that_is_no_rule(spec: str) -> None:
    with pytest.raises(ValueError, match=r"write name\(option=value\) \| name"):
        fg.rule(spec, 2)


def test_other_spellings_of_attributes_and_attacks() -> None:
    for name, meant in (("kurm", "krum"), ("Krum", "krum"), ("trian", "train")):
        with pytest.raises(AttributeError, match=f"no attribute '{name}': did you mean '{meant}'"):
            getattr(fg, name)
    with pytest.raises(AttributeError, match=r"no attribute '__wrapped__'$"):
        fg.__wrapped__  # noqa: B018
    with pytest.raises(ValueError, match="is no attack: did you mean 'sign_flip'"):
        attack("sign-flip")
