"""Functions that write LLVM IR, as functions that kernels call."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

from numba import extending
from numba import types as numba_types
from numba.core.errors import TypingError

from fastgar.dtypes import DTYPES

__all__ = ["emit"]

types: Any = numba_types  # Numba is hardly typed
# What an annotation makes of a compile-time constant.
KNOWN: dict[type, Callable[[int], Any]] = {int: int, str: DTYPES.__getitem__}


def emit(returns: Any) -> Callable[[Callable[..., Any]], Any]:
    """Let kernels call a function that writes the IR of that call and returns its value.

    The function takes an IR builder, then the arguments of the call. Those that are annotated `int`
    (a number) or `str` (a dtype, called by its code) are compile-time constants; all others are
    values in IR. `returns` is the type of the result; where that is void the function returns None.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        written = signature(function, eval_str=True)
        _, *parameters = written.parameters.values()

        @wraps(function)
        def define(_: Any, *arguments: Any) -> Any:
            known = {}
            for place, (parameter, kind) in enumerate(zip(parameters, arguments, strict=True)):
                if parameter.annotation in KNOWN:
                    if not isinstance(kind, types.Literal):
                        raise TypingError(
                            f"{function.__name__}: {parameter.name} must be known at compile time, "
                            f"got a variable of type {kind}"
                        )
                    known[place] = KNOWN[parameter.annotation](kind.literal_value)

            def write(context: Any, builder: Any, _: Any, values: Any) -> Any:
                given = (known.get(place, value) for place, value in enumerate(values))
                result = function(builder, *given)
                return context.get_dummy_value() if returns is types.void else result

            kinds = (a if i in known else types.unliteral(a) for i, a in enumerate(arguments))
            return returns(*kinds), write

        define.__signature__ = written  # type: ignore[attr-defined]
        return extending.intrinsic(prefer_literal=True)(define)

    return decorate
