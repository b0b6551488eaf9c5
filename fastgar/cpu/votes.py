"""Column statistics that need no order: the mean of the finite values, the majority of signs."""

from __future__ import annotations

import math

from llvmlite import ir
from numba import types

from fastgar.cpu.columns import WHOLE
from fastgar.cpu.compile import Kernel
from fastgar.cpu.emit import emit
from fastgar.cpu.tiles import cgutils, element, itemsize_of, lanes_of, take
from fastgar.cpu.vectors import Value, Vectors
from fastgar.dtypes import computing


@emit(types.void)
def _vote(
    b: Value, rows: Value, n: Value, at: Value, out: Value, faults: Value, signs: int, dtype: str
) -> None:
    """One vector of columns: mean of the finite values (NaN where there are none), or signs.

    NaN has a plus sign; more than `faults` non-finite values have none, and the result is NaN.
    """
    source, v = Vectors(b, dtype), Vectors(b, computing(dtype))
    zero, one = v.constant(0.0), v.constant(1.0)
    total = cgutils.alloca_once_value(b, zero)
    count = cgutils.alloca_once_value(b, zero)
    share = v.spread(b.fdiv(ir.Constant(v.scalar, 1.0), b.sitofp(n, v.scalar)))
    with cgutils.for_range(b, n) as loop:
        x = source.load(element(b, rows, loop.index), at)
        known = b.load(total, typ=v.type)
        if signs:
            x, bad = v.cleaned(x, b.load(count, typ=v.type))
            b.store(bad, count)
            up = b.select(b.fcmp_ordered(">", x, zero), one, zero)
            down = b.select(b.fcmp_ordered("<", x, zero), one, zero)
            b.store(b.fadd(known, b.fsub(up, down)), total)
        else:  # shares of each value, so that the sum cannot overflow
            finite = b.fcmp_ordered("<", v.call("fabs", x), v.constant(math.inf))
            b.store(v.fma(b.select(finite, x, zero), share, known), total)
            b.store(b.fadd(b.load(count, typ=v.type), b.select(finite, share, zero)), count)
    value = b.load(total, typ=v.type)
    if signs:
        negative = b.select(b.fcmp_ordered("<", value, zero), v.constant(-1.0), zero)
        value = b.select(b.fcmp_ordered(">", value, zero), one, negative)
        value = v.poisoned(value, v.poison(b.load(count, typ=v.type), faults))
    else:
        value = b.fdiv(value, b.load(count, typ=v.type))
    source.store(value, out, at, signed=False)


def _votes(counter, rows, n, out, columns, pieces, faults, signs, dtype):  # type: ignore[no-untyped-def]
    lanes, size = lanes_of(dtype), itemsize_of(dtype)
    step = columns // pieces // WHOLE * WHOLE
    while True:
        piece = take(counter)
        if piece >= pieces:
            return True
        stop = columns if piece == pieces - 1 else (piece + 1) * step
        for j in range(piece * step, stop, lanes):
            _vote(rows, n, min(j, columns - lanes) * size, out, faults, signs, dtype)


VOTES = Kernel(_votes, 7)
