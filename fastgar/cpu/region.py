"""What each thread of an OpenMP region runs: a kernel, with arguments that it finds in memory.

There is no Python in it. Threads that came back to the interpreter would wait for each other there,
as long as a kernel takes to read 100,000 columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from fastgar.cpu.compile import Kernel, address_in_c
from fastgar.cpu.tiles import element, intrinsic, put_integer
from fastgar.cpu.vectors import I64

__all__ = ["failed", "task", "thread"]

# At most. In 64-bit calling conventions a function takes no notice of arguments it does not have.
ARGUMENTS = 24


@intrinsic
def _call(typingctx: Any, task: Any) -> Any:
    """Call the function at task[0] with task[1], task[2], ...; return whether it returns True."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        place, *arguments = (element(b, args[0], ir.Constant(I64, k)) for k in range(1 + ARGUMENTS))
        kind = ir.FunctionType(ir.IntType(1), [I64] * ARGUMENTS)
        return b.call(b.inttoptr(place, kind.as_pointer()), arguments)

    return types.boolean(types.intp), codegen


def _thread(task):  # type: ignore[no-untyped-def]
    if not _call(task):
        put_integer(task, 1 + ARGUMENTS, 1)


_THREAD = Kernel(_thread, 1)


def thread() -> int | None:
    """Return where the C function is that each thread is to call with the address of a task."""
    return address_in_c(_THREAD.specialised())


def task(entry: Callable[..., Any], arguments: Sequence[int]) -> Any:
    """Return the task to call a kernel, as an array; None if this is no kernel."""
    place = address_in_c(entry)
    if place is None:
        return None
    numbers = np.zeros(2 + ARGUMENTS, dtype=np.int64)
    numbers[0] = place
    numbers[1 : 1 + len(arguments)] = arguments
    return numbers


def failed(task: Any) -> bool:
    """Return whether the kernel returned False in some thread."""
    return bool(task[-1])
