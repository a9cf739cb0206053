"""Truncated Taylor series in one variable t, over any kind of number.

A `Series` speaks the number protocol of `refbn.exact.program` itself, so the same program runs over numbers and over
series of them. Its coefficients are those of t⁰ … t^K, not derivatives: the k-th derivative at 0 is k! times the k-th
one. A coefficient that is structurally zero is None and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Generic, TypeVar

from refbn._errors import DomainError
from refbn.exact.program import Number

__all__ = ["Series"]

T = TypeVar("T", bound=Number)


class Series(Generic[T]):
    """A truncated series; all series that meet have one order K.

    Parameters
    ----------
    coefficients : iterable of T or None
        K+1 of them, None for zero. In a vector series a number stands for the vector that repeats it.
    length : int or None
        Of each coefficient.
    """

    __slots__ = ("coefficients", "length")

    def __init__(self, coefficients: Iterable[T | None], length: int | None) -> None:
        self.coefficients = tuple(coefficients)
        self.length = length

    @classmethod
    def along(cls, point: T, direction: T | None, order: int) -> Series[T]:
        """Return point + t·direction, truncated behind t^order."""
        head = (point, direction)[: order + 1]
        return cls((*head, *[None] * (order + 1 - len(head))), point.length)

    @property
    def order(self) -> int:
        """K, the highest power of t that is kept."""
        return len(self.coefficients) - 1

    # ---- ring operations -------------------------------------------------------------------------------------

    def __add__(self, other: Series[T] | int | Fraction) -> Series[T]:
        if isinstance(other, Series):
            return Series(map(_plus, self.coefficients, self._aligned(other)), self._joint(other))
        if isinstance(other, (int, Fraction)):
            head = self.coefficients[0]
            if head is None:
                raise TypeError("a constant cannot be added where the leading coefficient is structurally zero")
            return Series((head + other, *self.coefficients[1:]), self.length)
        return NotImplemented

    def __neg__(self) -> Series[T]:
        return self._each(lambda c: -c, self.length)

    def __sub__(self, other: Series[T] | int | Fraction) -> Series[T]:
        if isinstance(other, Series):
            return Series(map(_minus, self.coefficients, self._aligned(other)), self._joint(other))
        if isinstance(other, (int, Fraction)):
            return self + -other
        return NotImplemented

    def __mul__(self, other: Series[T] | int | Fraction) -> Series[T]:
        if isinstance(other, Series):
            a, b = self.coefficients, self._aligned(other)
            if a is b:
                return Series((_square(a, k) for k in range(len(a))), self.length)
            return Series((_cauchy(a, b, k, 0) for k in range(len(a))), self._joint(other))
        if isinstance(other, (int, Fraction)):
            return self._each(lambda c: c * other, self.length)
        return NotImplemented

    def __truediv__(self, other: Series[T] | int | Fraction) -> Series[T]:
        if isinstance(other, Series):
            # From (Σ c_i t^i)·(Σ s_i t^i) = Σ a_k t^k: c_k = (a_k − Σ_{i>0} s_i c_{k−i}) / s_0.
            a, s = self.coefficients, self._aligned(other)
            head = s[0]
            if head is None:
                raise DomainError("division by a series without a constant term")
            quotient: list[T | None] = []
            for k, numerator in enumerate(a):
                quotient.append(None)
                rest = _minus(numerator, _cauchy(quotient, s, k, 1))
                quotient[k] = None if rest is None else rest / head
            return Series(quotient, self._joint(other))
        if isinstance(other, (int, Fraction)):
            return self._each(lambda c: c / other, self.length)
        return NotImplemented

    # ---- what batch norm needs besides -------------------------------------------------------------------------

    def sum(self) -> Series[T]:
        """Return the series of the sums."""
        return self._each(lambda c: self._wide(c).sum(), None)

    def mean(self) -> Series[T]:
        """Return the series of the means."""
        return self._each(lambda c: self._wide(c).mean(), None)

    def sqrt(self) -> Series[T]:
        """Return the series of the root; the constant term must be there and positive unless K = 0."""
        # From s·s = q: s_k = (q_k − Σ_{0<i<k} s_i s_{k−i}) / (2·s_0).
        q = self.coefficients
        head = q[0]
        if head is None:
            raise DomainError("the root of a series without a constant term")
        root: list[T | None] = [head.sqrt()]
        double = None
        for k in range(1, len(q)):
            root.append(None)
            rest = _minus(q[k], _square(root, k))
            if rest is not None:
                if double is None:
                    assert root[0] is not None
                    double = root[0] * 2
                root[k] = rest / double
        return Series(root, None)

    def spread(self, length: int) -> Series[T]:
        """Return the vector series that repeats this one."""
        return self._each(lambda c: c.spread(length), length)

    def coefficient(self, k: int) -> T | None:
        """Return the coefficient of t^k, with the series' length; None is zero."""
        c = self.coefficients[k]
        return None if c is None else self._wide(c)

    # ---- helpers -----------------------------------------------------------------------------------------------

    def _each(self, function: Callable[[T], T], length: int | None) -> Series[T]:
        return Series((None if c is None else function(c) for c in self.coefficients), length)

    def _wide(self, c: T) -> T:
        return c.spread(self.length) if self.length is not None and c.length is None else c

    def _joint(self, other: Series[T]) -> int | None:
        return other.length if self.length is None else self.length

    def _aligned(self, other: Series[T]) -> tuple[T | None, ...]:
        if len(other.coefficients) != len(self.coefficients):
            raise TypeError(f"series of orders {self.order} and {other.order}")
        return other.coefficients


def _plus(a: T | None, b: T | None) -> T | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _minus(a: T | None, b: T | None) -> T | None:
    if b is None:
        return a
    return -b if a is None else a - b


def _cauchy(a: Iterable[T | None], b: tuple[T | None, ...], k: int, first: int) -> T | None:
    """Return Σ a_{k−i}·b_i over i = first … k; a has at least k+1 entries."""
    terms = list(a)
    total: T | None = None
    for i in range(first, k + 1):
        u, v = terms[k - i], b[i]
        if u is not None and v is not None:
            total = _plus(total, u * v)
    return total


def _square(a: Iterable[T | None], k: int) -> T | None:
    """Return Σ a_i·a_{k−i}, each unordered pair multiplied once."""
    terms = list(a)
    total: T | None = None
    for i in range((k + 1) // 2):
        u, v = terms[i], terms[k - i]
        if u is not None and v is not None:
            total = _plus(total, u * v)
    if total is not None:
        total = total * 2
    middle = terms[k // 2] if k % 2 == 0 else None
    return total if middle is None else _plus(total, middle * middle)
