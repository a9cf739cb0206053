"""Arrays in and out: from floats to exact numbers without loss, and from exact numbers to roundings of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn._errors import DomainError, DtypeError, ShapeError
from refbn._formats import format_of
from refbn.exact.numbers import Exact
from refbn.exact.rounding import round_all, round_pairs

__all__ = ["ArrayLike", "ExactArray", "numbers", "rational", "vectors"]

ArrayLike = Any

_INT64_BITS = 62  # integers of up to so many bits are made in int64


class ExactArray:
    """Exact results: of shape (G,), a number per group, or (G, m), a vector per group.

    Parameters
    ----------
    rows : sequence of Exact
        One per group, all numbers or all vectors of one length.
    length : int or None
        That length, or None for numbers.
    """

    __slots__ = ("_rows", "shape")

    def __init__(self, rows: Sequence[Exact], length: int | None) -> None:
        self._rows = tuple(rows)
        self.shape: tuple[int, ...] = (len(rows),) if length is None else (len(rows), length)

    def round(self, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return the correctly rounded values, to nearest even, as an array of one of the four dtypes."""
        fmt = format_of(dtype)
        return self._stack([round_all(row, fmt) for row in self._rows]).astype(fmt.dtype)

    def pair(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return hi and lo in binary64: the value rounded, and (value − hi) rounded; lo is 0 where hi is infinite."""
        pairs = [round_pairs(row) for row in self._rows]
        return self._stack([hi for hi, _ in pairs]), self._stack([lo for _, lo in pairs])

    def is_zero(self) -> npt.NDArray[np.bool_]:
        """Tell element by element whether the value is exactly zero."""
        return self._stack([_zeros(row) for row in self._rows], bool)

    def __iter__(self) -> Iterator[Exact]:
        """Iterate over the groups: a number or a vector each."""
        return iter(self._rows)

    def fraction_parts(self, *index: int) -> tuple[Fraction, Fraction, int]:
        """Return (a, b, N) with the element's value a + b·√N, a and b fractions, N an integer that is no square.

        N is 0 where the group's values are rational.
        """
        return self._rows[index[0]].parts(*index[1:])

    def __repr__(self) -> str:
        return f"<ExactArray {self.shape}>"

    def _stack(self, rows: list[npt.NDArray[Any]], dtype: type = np.float64) -> npt.NDArray[Any]:
        return np.array(rows, dtype).reshape(self.shape)


def vectors(values: ArrayLike, argument: str, shape: tuple[int, int] | None = None) -> list[Exact]:
    """Read an array of shape (G, m) as G exact vectors."""
    array = _array(values, argument)
    if array.ndim != 2 or (shape is not None and array.shape != shape):
        raise ShapeError(f"{argument}: shape {array.shape}, expected {shape or '(G, m)'}", argument=argument)
    if array.dtype == object:
        return [Exact.vector(*_common([rational(value, argument) for value in row])) for row in array.tolist()]
    return [_from_floats(row) for row in array]


def numbers(values: ArrayLike, argument: str, groups: int, default: int = 0) -> list[Exact]:
    """Read an array of shape (G,), or one number for all groups; None stands for the default."""
    if values is None:
        return [Exact.number(default)] * groups
    array = _array(values, argument)
    if array.shape == ():
        array = np.broadcast_to(array, (groups,))
    if array.shape != (groups,):
        raise ShapeError(f"{argument}: shape {array.shape}, expected ({groups},)", argument=argument)
    if not groups:
        return []
    return [Exact.number(rational(value, argument)) for value in array.tolist()]


def rational(value: Any, argument: str) -> Fraction:
    """Return a finite real number as a fraction."""
    try:
        return Fraction(value)
    except (OverflowError, ValueError) as error:
        raise DomainError(f"{argument}: {value} is not finite", argument=argument) from error


def _array(values: ArrayLike, argument: str) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.dtype == object:
        return array
    if array.dtype.kind in "iu":
        return array.astype(object)
    try:
        format_of(array.dtype)
    except KeyError:
        raise DtypeError(f"{argument}: dtype {array.dtype}", argument=argument) from None
    if not np.isfinite(array).all():
        raise DomainError(f"{argument}: has values that are not finite", argument=argument)
    return array.astype(np.float64)


def _from_floats(row: npt.NDArray[np.float64]) -> Exact:
    """Write binary64 numbers as integers times one power of two."""
    fractions, exponents = np.frexp(row)
    mantissas = np.ldexp(fractions, 53).astype(np.int64)
    nonzero = mantissas != 0
    if not nonzero.any():
        return Exact.zeros(len(row))
    # Each number is odd·2^low, or zero.
    _, above = np.frexp((mantissas & -mantissas).astype(np.float64))
    zeros = np.where(nonzero, above - 1, 0).astype(np.int64)
    odd = mantissas >> zeros
    low = exponents - 53 + zeros
    smallest = int(low[nonzero].min())
    shifts = np.where(nonzero, low - smallest, 0)
    if int(exponents[nonzero].max()) - smallest <= _INT64_BITS:
        ints = (odd << shifts).tolist()
    else:
        ints = [n << s for n, s in zip(odd.tolist(), shifts.tolist(), strict=True)]
    return Exact.vector(ints, Fraction(2) ** smallest)


def _common(values: list[Fraction]) -> tuple[list[int], Fraction]:
    """Write fractions as integers times one scale."""
    denominator = lcm(*(value.denominator for value in values))
    return [v.numerator * (denominator // v.denominator) for v in values], Fraction(1, denominator)


def _zeros(row: Exact) -> npt.NDArray[np.bool_]:
    m = 1 if row.length is None else row.length
    zero = np.ones(m, bool)
    for part in (row.a, row.b):
        if part is not None:
            zero &= False if part.ints is None else np.array([n == 0 for n in part.ints], bool)
    return zero
