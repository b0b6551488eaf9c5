"""Strings such as ``name(option=value)``: one reader of them, whoever knows the names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import fastgar as fg
from fastgar.attacks import attack
from fastgar.calls import LONGEST, Call, Strings
from fastgar.stages import names

torch = pytest.importorskip("torch")

from fastgar.train import models, rates, split, zeno  # noqa: E402

READERS: dict[str, tuple[Callable[[Any], object], str, str]] = {
    "rule": (fg.rule, "clip(c=2.5)", "c"),
    "attack": (attack, "empire(k=2.5)", "k"),
    "split": (split.check, "gamma(similarity=0.5)", "similarity"),
    "schedule": (rates.schedule, "inverse(decay=2.5)", "decay"),
    "model": (models.check, "mlp(hidden=3)", "hidden"),
    "zeno": (zeno.parse, "zeno(b=3)", "b"),
}


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> tuple[str, Callable[[Any], object], str, str]:
    kind = "rule" if request.param == "zeno" else request.param
    return (kind, *READERS[request.param])


def test_all_kinds_are_refused_in_the_same_words(reader: Any) -> None:
    kind, read, good, option = reader
    read(f" {good}\n")
    name = good.partition("(")[0]
    article = "an" if kind == "attack" else "a"
    for wrong, said in {
        f"{name}({option}=open)": f"{name}({option}=...) must be a literal, such as 2 or 'a'",
        f"{name}({option}=1, {option}=2)": f"{name} has {option} twice",
        f"{name}(1, 2)": f"name the options of {name}, as in option=value",
        f"{name}(**{{}})": f"name the options of {name}, as in option=value",
        f"{name}()()": "write name",
        f"{name}({option}=(": "write name",
        f"{name}\0": "",
    }.items():
        with pytest.raises(ValueError) as refused:
            read(wrong)
        assert str(refused.value).startswith(f"{wrong!r} is no {kind}: {said}"), wrong
    with pytest.raises(ValueError, match=f"the string of {article} {kind} has at most 2000 charac"):
        read(good + " " * LONGEST)
    with pytest.raises(TypeError, match=rf"^{article} {kind} is described by a string, got \[1\]$"):
        read([1])


def test_what_is_in_brackets_may_hold_bars_and_brackets() -> None:
    (call,) = Strings("thing").read("a(b='x | y(', c=[1, (2,)], d=-3)")
    assert call == Call("a", (), {"b": "x | y(", "c": [1, (2,)], "d": -3})
    assert [call.name for call in Strings("thing", several=True).read("a|b(c=1) | a")] == [*"aba"]
    with pytest.raises(ValueError, match="is no thing: write name"):
        Strings("thing").read("a | b")
    assert names(" nnm|nothing(like='this | that') ") == ("nnm", "nothing")


def test_only_an_inner_option_is_a_call() -> None:
    strings = Strings("thing", unnamed=1, inner="of")
    (call,) = strings.read("a(b(of='c'), d=1)")
    assert call == Call("a", (Call("b", (), {"of": "c"}),), {"d": 1})
    assert strings.options("", call, "of") == {"of": call.unnamed[0], "d": 1}
    for wrong, said in {
        "a(d=b)": r"a\(d=...\) must be a literal",
        "a(of=b + 1)": "write name",
        "a(b(1, 2))": "name the options of b",
    }.items():
        with pytest.raises(ValueError, match=said):
            strings.read(wrong)
    (call,) = strings.read("a(b, of=c)")
    with pytest.raises(ValueError, match="a has of twice"):
        strings.options("a(b, of=c)", call, "of")


def test_zeno_is_told_from_rules_wherever_it_stands() -> None:
    for wrong in ("nnm | zeno(b=2)", "zeno(b=2) | krum"):
        with pytest.raises(ValueError, match="is no rule: write name or name"):
            fg.train.run("mlp", rule=wrong, validation=0.1, steps=1)
