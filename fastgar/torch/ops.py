"""The rules as operators of torch, which `torch.compile` takes in without a break in the graph.

    agg = torch.compile(lambda G: fgt.ops.krum(G, 2), fullgraph=True)

Each is a function like the rule of the same name in `fastgar`: `fgt.ops.krum(G, f=2)`, with the
rule's options as keywords. `fgt.ops.rule(spec, f)` does it for a pipeline. G is a tensor of shape
(n, ...), or a list of n tensors. Called outside of torch.compile, they are `fastgar`'s own
functions, without the tens of microseconds that torch takes to dispatch a custom operator.

On a GPU most rules wait for the host, which a CUDA graph cannot hold: `Rule.waits` says which. They
are an operator of their own, marked so that ``torch.compile(mode="reduce-overhead")`` leaves it
outside of its graphs.

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

from fastgar.cuda.variants import SELECTION_ROWS
from fastgar.errors import unknown
from fastgar.pipeline import Rule
from fastgar.pipeline import rule as configured
from fastgar.registry import lookup, registered
from fastgar.rules import RULES
from fastgar.rules.decorators import function

__all__ = ["rule"]

Rows = Tensor | Sequence[Tensor]


_rule = lru_cache(maxsize=256, typed=True)(configured)  # f=True must not be taken for f=1


def _at(spec: str, f: int | None, step: int) -> Rule:
    found = _rule(spec, f)
    randomised = any(stage.spec.randomised for stage in found.stages)
    return found.at(step) if randomised else found  # which other threads may be using


def _aggregate(rows: Sequence[Tensor], spec: str, f: int | None, step: int) -> Tensor:
    """Return the aggregate of the rows, or of the rows of the only tensor."""
    result = _at(spec, f, step)(rows[0] if len(rows) == 1 else list(rows))
    stacked: Tensor = torch.stack(result) if isinstance(result, list) else result
    return stacked


def _like(rows: Sequence[Tensor], spec: str, f: int | None, step: int) -> Tensor:
    """Return a tensor like the aggregate."""
    found = _rule(spec, None if f is None else int(f))  # which may be a symbol, f being a number
    n, row = len(rows), rows[0].shape
    if n == 1:
        n, row = rows[0].shape[0], rows[0].shape[1:]
    shape: tuple[Any, ...] = tuple(row)
    if found.stages[-1].spec.kind == "mixing":
        for stage in found.stages:
            n = stage.rows_after(n)
        shape = (n, *shape)
    return rows[0].new_empty(shape)


for _operation, _tags in (
    ("aggregate", ()), ("aggregate_on_host", (torch.Tag.cudagraph_unsafe,)),
):  # fmt: skip
    torch.library.custom_op(
        f"fastgar::{_operation}", _aggregate, mutates_args=(), tags=_tags
    ).register_fake(_like)


_COLUMN = frozenset(each.spec.name for each in RULES if each.spec.kind == "column")
_ORDER = frozenset({"median", "trimmed_mean", "meamed", "phocas"})  # what nnm can be fused into
_DECIDED_THERE = frozenset({"krum", "multi_krum", "bulyan", "cge"})


def _waits(spec: str, n: int, dtype: torch.dtype) -> bool:
    """Return what `Rule.waits` does, from names alone: torch.compile can follow this."""
    *before, last = [stage.partition("(")[0].strip() for stage in spec.split("|")]
    if not before and last in _COLUMN:
        return False
    if n > SELECTION_ROWS:
        return True
    if not before:
        return last not in _DECIDED_THERE
    return before != ["nnm"] or last not in _ORDER or dtype == torch.float64


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def _compiled(spec: str, f: int | None, G: Rows, step: int = 0) -> Tensor:
    if isinstance(G, Tensor):
        rows = [G.detach()]
    elif len(G) == 1:  # one tensor stands for all rows
        rows = [G[0].detach().unsqueeze(0)]
    else:
        rows = [row.detach() for row in G]
    operation = torch.ops.fastgar.aggregate
    n = rows[0].shape[0] if len(rows) == 1 else len(rows)
    if _on_gpu(rows[0]) and _waits(spec, n, rows[0].dtype):
        operation = torch.ops.fastgar.aggregate_on_host
    result: Tensor = operation(rows, spec, f, step)
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
