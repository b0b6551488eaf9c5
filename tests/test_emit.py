"""`emit`: what a function that writes IR is given, and what kernels get from it."""

from __future__ import annotations

import ctypes

import pytest
from llvmlite import ir
from numba import njit, types
from numba.core.errors import TypingError

from fastgar.cpu.emit import emit
from fastgar.cpu.tiles import put_integer
from fastgar.cpu.vectors import Value
from fastgar.dtypes import CODES

BFLOAT16 = CODES["bfloat16"]
given = []


@emit(types.intp)
def multiplied(b: Value, number: Value, times: int, dtype: str) -> Value:
    """Return number * times."""
    given.append((number, times, dtype))
    return b.mul(number, ir.Constant(number.type, times))


def test_constants_come_as_they_are_and_variables_in_ir():
    given.clear()

    @njit
    def kernel(x):
        return multiplied(x, 3, BFLOAT16) + multiplied(7, 5, BFLOAT16)

    assert kernel(10) == 65
    (variable, *first), (constant, *second) = given
    assert (first, second) == ([3, "bfloat16"], [5, "bfloat16"])
    assert isinstance(variable, ir.Value) and isinstance(constant, ir.Value)
    assert str(variable.type) == str(constant.type) == "i64"


def test_what_returns_nothing_does_something():
    memory = (ctypes.c_int64 * 2)()

    @njit
    def kernel(place, value):
        return put_integer(place, 1, value)

    assert kernel(ctypes.addressof(memory), 8) is None
    assert list(memory) == [0, 8]


def test_a_variable_in_place_of_a_constant_is_named():
    @njit
    def kernel(x, times):
        return multiplied(x, times, BFLOAT16)

    with pytest.raises(TypingError, match=r"multiplied: times must be known .* type int64"):
        kernel(10, 3)


def test_the_docstring_and_the_name_stay():
    assert (multiplied.__name__, multiplied.__doc__) == ("multiplied", "Return number * times.")
