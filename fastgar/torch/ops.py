"""The rules as operators of torch, which `torch.compile` takes in without a break in the graph.

    agg = torch.compile(lambda G: fgt.ops.krum(G, 2), fullgraph=True)

Each is a function like the rule of the same name in `fastgar`: `fgt.ops.krum(G, f=2)`, with the
rule's options as keywords. `fgt.ops.rule(spec, f)` does it for a pipeline. G is a tensor of shape
(n, ...), or a list of n tensors. Called outside of torch.compile, they are `fastgar`'s own
functions, without the tens of microseconds that torch takes to dispatch a custom operator.

Gradients do not flow through a rule. A randomised rule draws anew for each `step=`, a number that
becomes a part of the compiled graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fastgar.errors import unknown
from fastgar.pipeline import Rule
from fastgar.pipeline import rule as configured
from fastgar.rules import RULES
from fastgar.rules.registry import function, lookup, registered

__all__ = ["rule"]

Rows = Tensor | Sequence[Tensor]


_rule = lru_cache(maxsize=256)(configured)


def _at(spec: str, f: int | None, step: int) -> Rule:
    found = _rule(spec, f)
    found.step = step
    return found


@torch.library.custom_op("fastgar::aggregate", mutates_args=())
def _aggregate(rows: Sequence[Tensor], spec: str, f: int | None, step: int) -> Tensor:
    """Return the aggregate of the rows, or of the rows of the only tensor."""
    result = _at(spec, f, step)(rows[0] if len(rows) == 1 else list(rows))
    stacked: Tensor = torch.stack(result) if isinstance(result, list) else result
    return stacked


@_aggregate.register_fake
def _(rows: Sequence[Tensor], spec: str, f: int | None, step: int) -> Tensor:
    found = _rule(spec, f)
    n, row = len(rows), rows[0].shape
    if n == 1:
        n, row = rows[0].shape[0], rows[0].shape[1:]
    shape: tuple[Any, ...] = tuple(row)
    if found.stages[-1].spec.kind == "mixing":
        for stage in found.stages:
            n = stage.rows_after(n)
        shape = (n, *shape)
    return rows[0].new_empty(shape)


def _compiled(spec: str, f: int | None, G: Rows, step: int = 0) -> Tensor:
    if isinstance(G, Tensor):
        rows = [G.detach()]
    elif len(G) == 1:  # one tensor stands for all rows
        rows = [G[0].detach().unsqueeze(0)]
    else:
        rows = [row.detach() for row in G]
    result: Tensor = torch.ops.fastgar.aggregate(rows, spec, f, step)
    return result


def rule(spec: str, f: int | None = None) -> Callable[..., Any]:
    """Return a function that aggregates by a pipeline, inside and outside of torch.compile.

    Parameters
    ----------
    spec : str
        As `fastgar.rule` takes it.
    f : int, optional

    Examples
    --------
    >>> agg = fgt.ops.rule("nnm | krum", 1)  # doctest: +SKIP
    >>> torch.compile(agg, fullgraph=True)(G)  # doctest: +SKIP
    """

    def aggregate(G: Rows, *, step: int = 0) -> Any:
        if is_compiling():
            return _compiled(spec, f, G, step)
        return _at(spec, f, step)(G)

    return aggregate


def _operator(name: str) -> Callable[..., Any]:
    """Return the rule of this name as users of `fgt.ops` call it."""
    spec = lookup(name)
    eager = function(name)

    def operator(G: Rows, f: int | None = None, *, step: int = 0, **options: Any) -> Any:
        if not is_compiling():
            if spec.f != "no":
                options["f"] = f
            if step != 0:
                options["step"] = step
            return eager(G, **options)
        for key in ("start", "reference", "buffers", "distance_on"):
            if key in options:
                raise TypeError(f"{key} cannot be compiled: call fastgar.{name} outside of it")
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        return _compiled(f"{name}({given})", f, G, step)

    operator.__name__ = operator.__qualname__ = name
    operator.__doc__ = eager.__doc__
    return operator


for _name in (each.spec.name for each in RULES):
    globals()[_name] = _operator(_name)


def __getattr__(name: str) -> Any:
    """Return the operator of a rule that is not one of fastgar's own."""
    names = [spec.name for spec in registered()]
    if name.startswith("__") or name not in names:
        raise AttributeError(str(unknown("rule", name, names)))
    return _operator(name)


def __dir__() -> list[str]:
    return [*__all__, *(spec.name for spec in registered())]
