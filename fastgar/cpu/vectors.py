"""Vector code as LLVM IR: what the kernels say instead of loops over single numbers.

One vector holds one number of each of LANES neighbouring columns. LLVM lowers these types to
whatever the machine has. Half types are widened on load and rounded once, on store.

Why not loops over single numbers in Numba, which LLVM makes vectors of by itself? Tried, float32
without halves and mixings, on a Xeon with AVX-512 and the same one held to AVX2; times are shares
of those of the kernels here, the least of many calls by turns, one thread and data in the cache:

- Networks, written as `if`s, run as fast: a median of 11 and 20 rows takes 0.75 to 1.0 of the
  time, of 51 rows 1.1 to 1.3. But what takes 0.3 to 0.5 s of compiling here takes 0.5 to 1.7 s for
  11 and 20 rows, and over 8 s for 51. Written with `min` and `max`, 20 rows take 2 and 51 rows 6
  times as long: LLVM makes vectors of something else. And that a column has a NaN can only be told,
  not repaired.
- Blocks of pairs of rows take 0.94 to 0.97 of the time with AVX2, and 1.3 to 1.35 with AVX-512, as
  LLVM keeps to half its registers' width there. On two threads, of a machine that did other work,
  it was 0.87 to 1.13 and 1.2 to 1.4 by medians, halves included, and 1.6 with AVX-512 where a row
  has NaN. How many sums run side by side would be LLVM's choice, and so the bits of all distances.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from llvmlite import binding, ir
from numba import config

from fastgar.dtypes import ITEMSIZE, computing

__all__ = ["AHEAD", "BLOCK", "WIDTH", "Vectors", "lanes"]

I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
Value = Any  # llvmlite has no type stubs


@cache
def _register_bytes() -> int:
    settings: Any = config  # filled in while Numba is imported
    features = settings.CPU_FEATURES  # what Numba was told to compile for, if anything
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    return 64 if "+avx512f" in features else 32


# Sixteen or nine sums in registers at a time: with AVX-512 there are 32 registers, else often 16.
BLOCK = 4 if _register_bytes() == 64 else 3  # rows against rows, for distances
AHEAD = 512  # bytes in a row from what is summed to what is fetched from memory meanwhile
WIDTH = 4 if _register_bytes() == 64 else 2  # vectors by four rows, for weighted sums


def lanes(dtype: str) -> int:
    """Return how many columns of this dtype are computed at a time."""
    return _register_bytes() // ITEMSIZE[computing(dtype)]


@dataclass
class Vectors:
    """Emits vector instructions for columns of one dtype into a block of LLVM IR."""

    builder: Any
    dtype: str

    def __post_init__(self) -> None:
        self.lanes = lanes(self.dtype)
        self.itemsize = ITEMSIZE[self.dtype]
        self.stored = self.lanes * self.itemsize  # bytes of one vector in memory
        self.scalar = ir.DoubleType() if self.dtype == "float64" else ir.FloatType()
        self.type = ir.VectorType(self.scalar, self.lanes)

    def constant(self, value: float) -> Value:
        return ir.Constant(self.type, [value] * self.lanes)

    def spread(self, scalar: Value) -> Value:
        """Return a vector with the same scalar in every lane."""
        first = self.builder.insert_element(
            ir.Constant(self.type, ir.Undefined), scalar, ir.Constant(I32, 0)
        )
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, ir.Constant(self.type, ir.Undefined), zeros)

    def narrowed(self, number: Value) -> Value:
        """Convert a double to the computing type."""
        if self.dtype == "float64":
            return number
        return self.builder.fptrunc(number, self.scalar)

    def pointer(self, address: Value, offset: Value | None = None) -> Value:
        if offset is not None:
            address = self.builder.add(address, offset)
        return self.builder.inttoptr(address, ir.PointerType())

    def load(self, address: Value, offset: Value | None = None) -> Value:
        """Load LANES numbers of `dtype` from address + offset (in bytes), widened."""
        b, pointer = self.builder, self.pointer(address, offset)
        if self.dtype == "float16":
            narrow = b.load(pointer, typ=ir.VectorType(ir.HalfType(), self.lanes), align=2)
            return b.fpext(narrow, self.type)
        if self.dtype == "bfloat16":
            narrow = b.load(pointer, typ=ir.VectorType(I16, self.lanes), align=2)
            wide = ir.VectorType(I32, self.lanes)
            bits = b.shl(b.zext(narrow, wide), ir.Constant(wide, [16] * self.lanes))
            return b.bitcast(bits, self.type)
        return b.load(pointer, typ=self.type, align=self.itemsize)

    def prefetch(self, address: Value, offset: Value) -> None:
        """Ask for the cache line at address + offset to come near; it need not exist."""
        b, name = self.builder, "llvm.prefetch.p0"
        function = b.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(ir.VoidType(), (ir.PointerType(), I32, I32, I32))
            function = ir.Function(b.module, kind, name)
        read, into_l2, data = (ir.Constant(I32, value) for value in (0, 2, 1))
        b.call(function, (self.pointer(address, offset), read, into_l2, data))

    def load_one(self, address: Value, offset: Value, wide: Value) -> Value:
        """Load a single number from address + offset, as the scalar type `wide`."""
        b, pointer = self.builder, self.pointer(address, offset)
        if self.dtype == "bfloat16":
            bits = b.shl(b.zext(b.load(pointer, typ=I16), I32), ir.Constant(I32, 16))
            number, narrow = b.bitcast(bits, ir.FloatType()), ir.FloatType()
        else:
            narrow = ir.HalfType() if self.dtype == "float16" else self.scalar
            number = b.load(pointer, typ=narrow, align=self.itemsize)
        return number if narrow == wide else b.fpext(number, wide)

    def store(
        self, value: Value, address: Value, offset: Value | None = None, *, stream: bool = False,
        signed: bool = True,
    ) -> None:  # fmt: skip
        """Round to `dtype` (to nearest, ties to even) and store at address + offset.

        `stream`: past the caches, so that memory need not be read before it is written. Only where
        the vector is aligned in memory. Not `signed`: a zero is stored as +0.
        """
        b, pointer = self.builder, self.pointer(address, offset)
        if self.dtype == "float16":
            value = b.fptrunc(value, ir.VectorType(ir.HalfType(), self.lanes))
        elif self.dtype == "bfloat16":
            value = self._rounded_to_bfloat16(value)
        if not signed:
            value = self._with_positive_zeros(value)
        if stream:
            kept = b.store(value, pointer, align=self.stored)
            kept.set_metadata("nontemporal", b.module.add_metadata([ir.Constant(I32, 1)]))
        else:
            b.store(value, pointer, align=self.itemsize)

    def _rounded_to_bfloat16(self, value: Value) -> Value:
        b, wide = self.builder, ir.VectorType(I32, self.lanes)

        def integers(number: int) -> Value:
            return ir.Constant(wide, [number] * self.lanes)

        bits = b.bitcast(value, wide)
        odd = b.and_(b.lshr(bits, integers(16)), integers(1))
        rounded = b.add(bits, b.add(odd, integers(0x7FFF)))
        quiet = b.or_(bits, integers(0x400000))  # rounding up could turn a NaN into infinity
        bits = b.select(b.fcmp_unordered("uno", value, value), quiet, rounded)
        return b.trunc(b.lshr(bits, integers(16)), ir.VectorType(I16, self.lanes))

    def _with_positive_zeros(self, rounded: Value) -> Value:
        """Return numbers of `dtype`, with +0 for -0: one addition, or a comparison of bits."""
        b = self.builder
        if self.itemsize > 2:
            return b.fadd(rounded, self.constant(0.0))
        kind = ir.VectorType(I16, self.lanes)
        bits = b.bitcast(rounded, kind)
        negative, zero = (ir.Constant(kind, [x] * self.lanes) for x in (0x8000, 0))
        return b.select(b.icmp_unsigned("==", bits, negative), zero, bits)

    def call(self, name: str, *arguments: Value) -> Value:
        """Call an LLVM intrinsic from vectors to a vector, such as fma or fabs."""
        module = self.builder.module
        name = f"llvm.{name}.v{self.lanes}f{64 if self.dtype == 'float64' else 32}"
        function = module.globals.get(name) or ir.Function(
            module, ir.FunctionType(self.type, [self.type] * len(arguments)), name
        )
        return self.builder.call(function, list(arguments))

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """Return x * y + z, rounded once."""
        return self.call("fma", x, y, z)

    def exchange(self, x: Value, y: Value) -> tuple[Value, Value]:
        """Return (smaller, larger): one vector minimum and one maximum. Loses values at NaN."""
        b = self.builder
        below = b.fcmp_ordered("<", x, y)
        return b.select(below, x, y), b.select(below, y, x)

    def sort(self, values: list[Value], network: Iterable[tuple[int, int]]) -> None:
        """Apply a comparator network to `values`, in place."""
        for i, j in network:
            values[i], values[j] = self.exchange(values[i], values[j])

    def nearer(self, high: Value, low: Value, centre: Value) -> Value:
        """Return where `high` is strictly closer to the centre than `low`; low <= high."""
        b = self.builder
        return b.fcmp_ordered("<", b.fsub(high, centre), b.fsub(centre, low))

    def cleaned(self, value: Value, count: Value) -> tuple[Value, Value]:
        """Return the value with NaN made +Inf, and the count, one higher where it is not finite."""
        b, infinity = self.builder, self.constant(math.inf)
        value = b.select(b.fcmp_unordered("uno", value, value), infinity, value)
        infinite = b.fcmp_ordered("==", self.call("fabs", value), infinity)
        return value, b.select(infinite, b.fadd(count, self.constant(1.0)), count)

    def poison(self, count: Value, limit: Value) -> Value:
        """Return NaN where the count exceeds the limit (an integer), else 0."""
        b = self.builder
        over = b.fcmp_ordered(">", count, self.spread(b.sitofp(limit, self.scalar)))
        return b.select(over, self.constant(math.nan), self.constant(0.0))

    def poisoned(self, value: Value, poison: Value) -> Value:
        b = self.builder
        return b.select(b.fcmp_unordered("uno", poison, poison), poison, value)

    def sum(self, terms: Sequence[Value]) -> Value:
        """Add up in a fixed order: four interleaved partial sums, then pairwise."""
        b = self.builder
        partial = list(terms[:4])
        for position, term in enumerate(terms[4:]):
            partial[position % 4] = b.fadd(partial[position % 4], term)
        while len(partial) > 1:
            partial = [
                b.fadd(partial[i], partial[i + 1]) if i + 1 < len(partial) else partial[i]
                for i in range(0, len(partial), 2)
            ]
        return partial[0]

    def lane_sums(self, values: Sequence[Value]) -> list[Value]:
        """Return vectors whose lanes are the sums of the lanes of each value, in a fixed order.

        There are as many values as lanes, or a multiple. Two vectors at a time are folded into
        one, so that 16 sums take 15 additions and not 64.
        """
        results = []
        for first in range(0, len(values), self.lanes):
            folded, width = list(values[first : first + self.lanes]), self.lanes
            while width > 1:
                folded = [
                    self._fold(x, y, width) for x, y in zip(folded[::2], folded[1::2], strict=True)
                ]
                width //= 2
            results.append(folded[0])
        return results

    def _fold(self, x: Value, y: Value, width: int) -> Value:
        """Add the lower to the upper half of each `width` lanes: those of x and then those of y."""
        low = [lane for lane in range(2 * self.lanes) if lane % width < width // 2]
        kind = ir.VectorType(I32, self.lanes)
        halves = [
            self.builder.shuffle_vector(x, y, ir.Constant(kind, [lane + shift for lane in low]))
            for shift in (0, width // 2)
        ]
        return self.builder.fadd(*halves)

    def picked(self, value: Value, lanes: Sequence[int]) -> Value:
        """Return some lanes of a vector, as doubles."""
        kind = ir.VectorType(I32, len(lanes))
        few = self.builder.shuffle_vector(value, value, ir.Constant(kind, list(lanes)))
        if self.dtype == "float64":
            return few
        return self.builder.fpext(few, ir.VectorType(ir.DoubleType(), len(lanes)))

    def any(self, mask: Value) -> Value:
        """Return whether any lane of a comparison's result is true."""
        bits = self.builder.bitcast(mask, ir.IntType(self.lanes))
        return self.builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(self.lanes), 0))
