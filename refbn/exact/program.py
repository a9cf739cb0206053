"""Batch norm's forward pass, written once, over any kind of number.

Nothing else about batch norm is written down in `refbn.exact`: `refbn.exact.derive` runs these few lines over Taylor
series and a reverse tape of whatever numbers it is given, and every derivative comes from that.

The number protocol
-------------------
A type T of numbers can be run through this module, `Series` and `Tape` if its values offer what follows. A value is a
*number* or a *vector* of m of them; what they are made of is the type's own affair (`Exact`: a + b·√N; an audit
may bring floating-point numbers that carry an error bound).

``v.length``
    None for a number, m for a vector.
``u + v``, ``u - v``, ``u * v``
    Element by element. u and v are of type T; a number combines with each element of a vector. Vectors that meet
    have the same length. v may also be a Python ``int`` or ``Fraction``, always as the right operand; it is exact.
``u / v``
    The same, but v is a number of type T, an ``int`` or a ``Fraction``, never a vector.
``-u``
    The negative.
``v.sum()``, ``v.mean()``
    Of a vector: a number.
``v.sqrt()``
    Of a number that is not negative: a number. Nothing else is ever rooted.
``v.spread(m)``
    Of a number: the vector that repeats it m times.

Operations return new values. `Series` and `Tape` never combine a T with another type than those, and they skip what is
structurally zero, so T needs no zero, no reflected operators and no comparison. An operator that meets an operand of
an unknown type should return ``NotImplemented``. To be differentiated, T needs no more than that: the derivative of
√ is taken with T's own division by the root.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "Number",
    "affine",
    "batch_norm",
    "batch_renorm",
    "blend",
    "correction",
    "cubic",
    "frozen",
    "invstd",
    "moments",
    "standardize",
    "unbiased",
]


class Number(Protocol):
    """The number protocol of this module's docstring, for type checkers."""

    @property
    def length(self) -> int | None:
        """None for a number, m for a vector."""

    def __add__(self, other: Self | int | Fraction, /) -> Self: ...
    def __sub__(self, other: Self | int | Fraction, /) -> Self: ...
    def __mul__(self, other: Self | int | Fraction, /) -> Self: ...
    def __truediv__(self, other: Self | int | Fraction, /) -> Self: ...
    def __neg__(self) -> Self: ...

    def sum(self) -> Self:
        """Return the sum of a vector's elements."""

    def mean(self) -> Self:
        """Return the mean of a vector's elements."""

    def sqrt(self) -> Self:
        """Return the square root of a number."""

    def spread(self, length: int, /) -> Self:
        """Return the vector that repeats a number."""


T = TypeVar("T", bound=Number)


def batch_norm(x: T, gamma: T, beta: T, eps: T | Fraction) -> T:
    """Return y for a vector x, with the statistics of x itself.

    gamma and beta are numbers in batch norm; vectors, one number for each element, in layer and group norm.
    """
    _, d, var = moments(x)
    return affine(standardize(d, var, eps), gamma, beta)


def batch_renorm(x: T, r: T, d: T, gamma: T, beta: T, eps: T | Fraction) -> T:
    """Return y with a correction between the two phases; r and d are constants."""
    _, centered, var = moments(x)
    return affine(affine(standardize(centered, var, eps), r, d), gamma, beta)


def frozen(x: T, mean: T, var: T, gamma: T, beta: T, eps: T | Fraction) -> T:
    """Return y for a vector x, with statistics that are given."""
    return affine(standardize(x - mean, var, eps), gamma, beta)


def moments(x: T) -> tuple[T, T, T]:
    """Return the mean, the vector d = x − mean and the biased variance."""
    mean = x.mean()
    d = x - mean
    return mean, d, (d * d).mean()


def standardize(d: T, var: T, eps: T | Fraction) -> T:
    """Return x̂ = d/√(var + eps)."""
    return d / (var + eps).sqrt()


def affine(xhat: T, gamma: T, beta: T) -> T:
    """Return y = gamma·x̂ + beta."""
    return xhat * gamma + beta


def invstd(var: T, eps: T | Fraction) -> T:
    """Return 1/√(var + eps)."""
    q = var + eps
    return q.sqrt() / q


def correction(x: T, pivot: T, running_mean: T, running_var: T, eps: Fraction) -> tuple[T, T]:
    """Return r = s/σ and d = (μ − running_mean)/σ of batch renormalization, for the vector x + pivot."""
    mean, _, var = moments(x)
    ratio = (var + eps) / (running_var + eps)
    return ratio.sqrt(), (pivot + mean - running_mean) / (running_var + eps).sqrt()


def unbiased(var: T, m: int) -> T:
    """Return the unbiased variance from the biased one of m > 1 elements."""
    return var * Fraction(m, m - 1)


def blend(old: T, new: T, weight: Fraction) -> T:
    """Return (1 − weight)·old + weight·new."""
    return old * (1 - weight) + new * weight


def cubic(y: T) -> T:
    """Return y²/2 + y³/6: with weights w, the loss L = Σ w·(y²/2 + y³/6) that compositions are tested with.

    A polynomial, so that its derivatives stay in y's field; not linear, so that no term of batch norm's higher
    derivatives vanishes.
    """
    square = y * y
    return square * Fraction(1, 2) + square * y * Fraction(1, 6)
