"""What each thread of an OpenMP region runs: a kernel, with arguments that it finds in memory.

There is no Python in it. Threads that came back to the interpreter would wait for each other there,
as long as a kernel takes to read 100,000 columns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types

from fastgar.cpu.compile import Kernel, address_in_c
from fastgar.cpu.emit import emit
from fastgar.cpu.tiles import element, put_integer
from fastgar.cpu.vectors import I64, Value

__all__ = ["task", "thread"]

# At most. In 64-bit calling conventions a function takes no notice of arguments it does not have.
ARGUMENTS = 24
_Task = ctypes.c_int64 * (2 + ARGUMENTS)


@emit(types.boolean)
def _call(b: Value, task: Value) -> Value:
    """Call the function at task[0] with task[1], task[2], ...; return whether it returns True."""
    place, *arguments = (element(b, task, ir.Constant(I64, k)) for k in range(1 + ARGUMENTS))
    kind = ir.FunctionType(ir.IntType(1), [I64] * ARGUMENTS)
    return b.call(b.inttoptr(place, kind.as_pointer()), arguments)


def _thread(task):  # type: ignore[no-untyped-def]
    if not _call(task):
        put_integer(task, 1 + ARGUMENTS, 1)


_THREAD = Kernel(_thread, 1)


def thread() -> int | None:
    """Return where the C function is that each thread is to call with the address of a task."""
    return address_in_c(_THREAD.specialised())


def task(entry: Callable[..., Any], arguments: Sequence[int]) -> Any:
    """Return the task to call a kernel; None if this is no kernel.

    That is an array of integers, the last of which is 1 once the kernel returned False in a thread.
    """
    place = address_in_c(entry)
    return None if place is None else _Task(place, *arguments)
