"""Exact numbers a + b·√N, one at a time or a whole vector of them, over Python integers.

A batch norm's inputs are rational, so mean and variance are, and one square root, of q = var + eps, is all that
leaves the rationals: every result of every pass lies in Q(√q) = Q(√N), N an integer. `Exact` computes there.

**Representation.** An `Exact` has a rational and an irrational part; either may be absent, which means zero. A part is
a rational *scale* times a list of integers, or times a list of ones that is not stored. Hence

* a factor common to all elements costs one rational multiplication, whatever the length: to scale a vector by a
  rational number or by √N leaves its integers as they are;
* most vectors of batch norm have one part only (x, d and dy a rational one, x̂ and dx an irrational one), and the other
  part is no work at all;
* there is no gcd per element. Adding two parts needs coprime multipliers of their integers; that gcd is taken once, of
  the scales.

**Zero is structural.** √N is irrational: `Exact.sqrt` returns a rational number when N is a perfect square. So a + b·√N
is zero if and only if a and b are, and two numbers are equal if and only if their parts are.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isqrt
from typing import TypeAlias

from refbn._errors import DomainError

__all__ = ["Constant", "Exact", "Part"]

Constant: TypeAlias = "int | Fraction"


class Part:
    """A nonzero rational scale times integers: ``scale * ints[i]``, or ``scale`` alone where ``ints`` is None.

    Attributes
    ----------
    scale : Fraction
        Never zero.
    ints : list of int or None
        At least one of them is not zero. Never written to, as parts share lists. None stands for ones.
    """

    __slots__ = ("ints", "scale")

    def __init__(self, scale: Fraction, ints: list[int] | None) -> None:
        self.scale = scale
        self.ints = ints


def _part(scale: Fraction, ints: list[int] | None) -> Part | None:
    """Return the part, or None if it is zero."""
    if not scale or (ints is not None and not any(ints)):
        return None
    return Part(scale, ints)


def _add(p: Part | None, q: Part | None) -> Part | None:
    if p is None or q is None:
        return q if p is None else p
    if p.ints is q.ints:
        return _part(p.scale + q.scale, p.ints)
    # p.scale = j·common, q.scale = k·common with coprime integers j, k.
    ratio = p.scale / q.scale
    j, k = ratio.numerator, ratio.denominator
    common = p.scale / j
    if p.ints is None:
        p, q, j, k = q, p, k, j
    assert p.ints is not None
    if q.ints is None:
        ints = [u + k for u in p.ints] if j == 1 else [j * u + k for u in p.ints]
    elif j == 1:
        ints = [u + k * v for u, v in zip(p.ints, q.ints, strict=True)]
    elif k == 1:
        ints = [j * u + v for u, v in zip(p.ints, q.ints, strict=True)]
    else:
        ints = [j * u + k * v for u, v in zip(p.ints, q.ints, strict=True)]
    return _part(common, ints)


def _scaled(p: Part | None, factor: Fraction) -> Part | None:
    return None if p is None or not factor else Part(p.scale * factor, p.ints)


def _multiply(p: Part | None, q: Part | None, factor: int = 1) -> Part | None:
    if p is None or q is None:
        return None
    scale = p.scale * q.scale
    if factor != 1:
        scale *= factor
    if p.ints is None or q.ints is None:
        return Part(scale, q.ints if p.ints is None else p.ints)
    return _part(scale, [u * v for u, v in zip(p.ints, q.ints, strict=True)])


def _sum(p: Part | None, length: int) -> Part | None:
    if p is None:
        return None
    total = p.scale * (length if p.ints is None else sum(p.ints))
    return Part(total, None) if total else None


class Exact:
    """A number a + b·√N, or a vector of such numbers with one N.

    Numbers of one channel share their N; arithmetic between two fields raises `DomainError`. A number (``length``
    None) and a vector combine element by element. A divisor must be a number. ``==`` compares values.

    Attributes
    ----------
    a, b : Part or None
        The rational part and the factor of √N.
    radicand : int
        N; 0 while there is no irrational part.
    length : int or None
        The number of elements of a vector, None for a number.
    """

    __slots__ = ("a", "b", "length", "radicand")

    def __init__(self, a: Part | None, b: Part | None, radicand: int, length: int | None) -> None:
        self.a = a
        self.b = b
        self.radicand = 0 if b is None else radicand
        self.length = length

    # ---- making them -----------------------------------------------------------------------------------------

    @classmethod
    def number(cls, value: Constant) -> Exact:
        """Return a rational number."""
        return cls(_part(Fraction(value), None), None, 0, None)

    @classmethod
    def vector(cls, ints: Sequence[int], scale: Constant = 1) -> Exact:
        """Return the rational vector of ``scale * ints[i]``."""
        return cls(_part(Fraction(scale), list(ints)), None, 0, len(ints))

    @classmethod
    def zeros(cls, length: int | None) -> Exact:
        """Return the number 0 or a vector of zeros."""
        return cls(None, None, 0, length)

    def spread(self, length: int) -> Exact:
        """Return the vector of ``length`` elements that all are this number."""
        if self.length is not None:
            raise TypeError("only a number can be spread, not a vector")
        if length == 0:
            return Exact.zeros(0)
        return Exact(self.a, self.b, self.radicand, length)

    # ---- ring operations -------------------------------------------------------------------------------------

    def __add__(self, other: Exact | Constant) -> Exact:
        if isinstance(other, Exact):
            length, other = self._joined(other), self._matched(other)
            radicand = self.radicand or other.radicand
            return Exact(_add(self.a, other.a), _add(self.b, other.b), radicand, length)
        if isinstance(other, (int, Fraction)):
            return Exact(_add(self.a, _part(Fraction(other), None)), self.b, self.radicand, self.length)
        return NotImplemented

    __radd__ = __add__

    def __neg__(self) -> Exact:
        minus = Fraction(-1)
        return Exact(_scaled(self.a, minus), _scaled(self.b, minus), self.radicand, self.length)

    def __sub__(self, other: Exact | Constant) -> Exact:
        if isinstance(other, (Exact, int, Fraction)):
            return self + -other
        return NotImplemented

    def __rsub__(self, other: Constant) -> Exact:
        return -self + other

    def __mul__(self, other: Exact | Constant) -> Exact:
        if isinstance(other, Exact):
            length, other = self._joined(other), self._matched(other)
            radicand = self.radicand or other.radicand
            rational = _add(_multiply(self.a, other.a), _multiply(self.b, other.b, radicand))
            if other is self:
                irrational = _multiply(self.a, self.b, 2)
            else:
                irrational = _add(_multiply(self.a, other.b), _multiply(self.b, other.a))
            return Exact(rational, irrational, radicand, length)
        if isinstance(other, (int, Fraction)):
            factor = Fraction(other)
            return Exact(_scaled(self.a, factor), _scaled(self.b, factor), self.radicand, self.length)
        return NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, other: Exact | Constant) -> Exact:
        if isinstance(other, Exact):
            return self * other._inverse()
        if isinstance(other, (int, Fraction)):
            if not other:
                raise DomainError("division by zero")
            return self * (1 / Fraction(other))
        return NotImplemented

    def __rtruediv__(self, other: Constant) -> Exact:
        return self._inverse() * other

    def _inverse(self) -> Exact:
        if self.length is not None:
            raise TypeError("a divisor must be a number, not a vector")
        a, b = self._coordinates()
        if not a and not b:
            raise DomainError("division by zero")
        # 1/(a + b√N) = (a − b√N)/(a² − b²N); the norm is not zero, because √N is irrational.
        norm = a * a - b * b * self.radicand
        return Exact(_part(a / norm, None), _part(-b / norm, None), self.radicand, None)

    def _joined(self, other: Exact) -> int | None:
        """Return the length of a sum or product."""
        if self.length is not None and other.length is not None and self.length != other.length:
            raise TypeError(f"vectors of {self.length} and {other.length} elements")
        return other.length if self.length is None else self.length

    def _matched(self, other: Exact) -> Exact:
        """Return the other number with this one's N, where both have one."""
        n, k = self.radicand, other.radicand
        if not n or not k or n == k:
            return other
        # √n and √k lie in one field if n·k is a square, and then √k = √(n·k)/n·√n.
        root = isqrt(n * k)
        if root * root != n * k:
            raise DomainError(f"numbers from two fields: √{n} and √{k}")
        return Exact(other.a, _scaled(other.b, Fraction(root, n)), n, other.length)

    # ---- what batch norm needs besides -------------------------------------------------------------------------

    def sum(self) -> Exact:
        """Return the sum of a vector's elements."""
        if self.length is None:
            raise TypeError("sum: not a vector")
        return Exact(_sum(self.a, self.length), _sum(self.b, self.length), self.radicand, None)

    def mean(self) -> Exact:
        """Return the mean of a vector's elements; `DomainError` if there are none."""
        if not self.length:
            raise DomainError("the mean of no elements")
        return self.sum() / self.length

    def sqrt(self) -> Exact:
        """Return the square root of a rational number that is not negative.

        A number with an irrational part raises `DomainError`: its root generally lies in no field Q(√N).
        """
        if self.length is not None or self.b is not None:
            raise DomainError("sqrt: takes a rational number only")
        q, _ = self._coordinates()
        if q < 0:
            raise DomainError("sqrt: of a negative number")
        if not q:
            return self
        # √(n/d) = √(n·d)/d. Powers of four go out of the root: inputs of extreme exponents would drag them along.
        n, d = q.numerator, q.denominator
        radicand = n * d
        shift = ((radicand & -radicand).bit_length() - 1) // 2
        radicand >>= 2 * shift
        factor = Fraction(1 << shift, d)
        root = isqrt(radicand)
        if root * root == radicand:
            return Exact(Part(factor * root, None), None, 0, None)
        return Exact(None, Part(factor, None), radicand, None)

    # ---- looking inside ----------------------------------------------------------------------------------------

    def _coordinates(self) -> tuple[Fraction, Fraction]:
        zero = Fraction(0)
        return self.a.scale if self.a else zero, self.b.scale if self.b else zero

    def parts(self, i: int | None = None) -> tuple[Fraction, Fraction, int]:
        """Return (a, b, N) with value a + b·√N; ``i`` is the element of a vector."""
        if (i is None) != (self.length is None):
            raise TypeError("parts: a vector needs an index, a number takes none")
        if i is not None and self.length is not None and not -self.length <= i < self.length:
            raise IndexError(f"element {i} of {self.length}")
        zero = Fraction(0)

        def at(part: Part | None) -> Fraction:
            if part is None:
                return zero
            return part.scale if part.ints is None or i is None else part.scale * part.ints[i]

        return at(self.a), at(self.b), self.radicand

    def element(self, i: int) -> Exact:
        """Return one element of a vector."""
        a, b, radicand = self.parts(i)
        return Exact(_part(a, None), _part(b, None), radicand, None)

    def taken(self, indices: Sequence[int]) -> Exact:
        """Return the vector of some of a vector's elements."""
        a, b = (
            part if part is None or part.ints is None else _part(part.scale, [part.ints[i] for i in indices])
            for part in (self.a, self.b)
        )
        return Exact(a, b, self.radicand, len(indices)) if len(indices) else Exact.zeros(0)

    def is_zero(self) -> bool:
        """Tell whether the number, or every element of the vector, is zero."""
        return self.a is None and self.b is None

    def sign(self) -> int:
        """Return −1, 0 or 1 for a number."""
        if self.length is not None:
            raise TypeError("sign: not a number")
        a, b = self._coordinates()
        sa, sb = (a > 0) - (a < 0), (b > 0) - (b < 0)
        if sa * sb >= 0:
            return sa or sb
        return sa if a * a > b * b * self.radicand else sb

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (int, Fraction)):
            other = Exact.number(other)
        if not isinstance(other, Exact):
            return NotImplemented
        if self.length != other.length or (self.b is None) != (other.b is None):
            return False
        product = self.radicand * other.radicand
        return isqrt(product) ** 2 == product and (self - other).is_zero()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        if self.length is None:
            a, b, radicand = self.parts()
            return f"Exact({a} + {b}·√{radicand})" if b else f"Exact({a})"
        return f"<Exact vector of {self.length}, √{self.radicand}>" if self.b else f"<Exact vector of {self.length}>"
