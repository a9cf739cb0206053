"""A small reverse tape over any kind of number.

A `Var` speaks the number protocol of `refbn.exact.program`: it computes with the value that it holds, which may be a
number, a vector or a `Series` of them, and remembers how to send a cotangent back to what it was made from. Nothing is
remembered, or computed later, of values from which no wanted leaf can be reached.

The rules below are those of + − × ÷ √, mean and sum alone. A number that was combined with a vector was repeated for
each element; the transpose of repeating is the sum. Conversely, the cotangent of a sum is one number for all
elements: it is kept as a number until it meets a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Generic, TypeVar

from refbn.exact.program import Number

__all__ = ["Var", "gradient"]

T = TypeVar("T", bound=Number)


class Var(Generic[T]):
    """A value on the tape.

    Parameters
    ----------
    value : T
        What it holds.
    wanted : bool
        For a leaf: whether its gradient will be asked for. A constant is a leaf that is not wanted.
    sources : sequence of (Var, pullback)
        What it was made from, each with the linear map from its cotangent to the source's. A leaf has none.
    """

    __slots__ = ("sources", "value", "wanted")

    def __init__(self, value: T, wanted: bool = False, sources: Sequence[tuple[Var[T], Callable[[T], T]]] = ()) -> None:
        self.value = value
        self.sources = tuple((var, pull) for var, pull in sources if var.wanted)
        self.wanted: bool = wanted or bool(self.sources)

    @property
    def length(self) -> int | None:
        """The value's length."""
        return self.value.length

    # ---- ring operations -------------------------------------------------------------------------------------

    def __add__(self, other: Var[T] | int | Fraction) -> Var[T]:
        if not isinstance(other, Var):
            return Var(self.value + other, sources=[(self, _same)])
        value = self.value + other.value
        return Var(value, sources=[(self, _onto(self, value, _same)), (other, _onto(other, value, _same))])

    def __sub__(self, other: Var[T] | int | Fraction) -> Var[T]:
        if not isinstance(other, Var):
            return Var(self.value - other, sources=[(self, _same)])
        value = self.value - other.value
        return Var(value, sources=[(self, _onto(self, value, _same)), (other, _onto(other, value, _negative))])

    def __neg__(self) -> Var[T]:
        return Var(-self.value, sources=[(self, _negative)])

    def __mul__(self, other: Var[T] | int | Fraction) -> Var[T]:
        a = self.value
        if not isinstance(other, Var):
            return Var(a * other, sources=[(self, lambda g: g * other)])
        if other is self:
            return Var(a * a, sources=[(self, lambda g: a * g * 2)])
        b = other.value
        value = a * b
        return Var(
            value,
            sources=[(self, _onto(self, value, lambda g: g * b)), (other, _onto(other, value, lambda g: g * a))],
        )

    def __truediv__(self, other: Var[T] | int | Fraction) -> Var[T]:
        if not isinstance(other, Var):
            return Var(self.value / other, sources=[(self, lambda g: g / other)])
        divisor = other.value
        quotient = self.value / divisor
        along = _onto(other, quotient, lambda g: g * quotient)
        return Var(
            quotient,
            sources=[
                (self, _onto(self, quotient, lambda g: g / divisor)),
                (other, lambda g: -(along(g) / divisor)),
            ],
        )

    # ---- what batch norm needs besides -------------------------------------------------------------------------

    def sum(self) -> Var[T]:
        """Return the sum of a vector."""
        return Var(self.value.sum(), sources=[(self, _same)])

    def mean(self) -> Var[T]:
        """Return the mean of a vector."""
        m = self.length
        assert m is not None, "the mean of a number"
        return Var(self.value.mean(), sources=[(self, lambda g: g / m)])

    def sqrt(self) -> Var[T]:
        """Return the square root of a number."""
        root = self.value.sqrt()
        return Var(root, sources=[(self, lambda g: g / (root * 2))])

    def spread(self, length: int) -> Var[T]:
        """Return the vector that repeats a number."""
        value = self.value.spread(length)
        return Var(value, sources=[(self, _onto(self, value, _same))])


def gradient(output: Var[T], cotangent: T, leaves: Sequence[Var[T]]) -> list[T | None]:
    """Send a cotangent of the output back.

    Parameters
    ----------
    output : Var
        Where to start.
    cotangent : T
        Of the output's length; a number stands for the vector that repeats it.
    leaves : sequence of Var
        Wanted leaves.

    Returns
    -------
    list of T or None
        The cotangent of each leaf, of the leaf's length; None if the output does not depend on it.
    """
    received: dict[int, T] = {id(output): cotangent} if output.wanted else {}
    for var in _from_output_to_leaves(output):
        if var.sources:
            g = received.pop(id(var))
            for source, pull in var.sources:
                sent = pull(g)
                before = received.get(id(source))
                received[id(source)] = sent if before is None else before + sent
    return [_filled(received.get(id(leaf)), leaf.length) for leaf in leaves]


def _from_output_to_leaves(output: Var[T]) -> list[Var[T]]:
    """Return every wanted value behind the output, each after all that were made from it."""
    order: list[Var[T]] = []
    seen: set[int] = set()
    stack = [(output, False)] if output.wanted else []
    while stack:
        var, sources_done = stack.pop()
        if sources_done:
            order.append(var)
        elif id(var) not in seen:
            seen.add(id(var))
            stack.append((var, True))
            stack.extend((source, False) for source, _ in var.sources)
    return order[::-1]


def _onto(source: Var[T], result: T, rule: Callable[[T], T]) -> Callable[[T], T]:
    """Follow a rule by the sum over elements if the source was a number that the result repeats."""
    m = result.length
    if source.length is not None or m is None:
        return rule

    def pull(g: T) -> T:
        sent = rule(g)
        return sent * m if sent.length is None else sent.sum()

    return pull


def _filled(cotangent: T | None, length: int | None) -> T | None:
    if cotangent is None or length is None or cotangent.length is not None:
        return cotangent
    return cotangent.spread(length)


def _same(g: T) -> T:
    return g


def _negative(g: T) -> T:
    return -g
