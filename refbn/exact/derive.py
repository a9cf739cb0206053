"""Every derivative of the forward program, over any kind of number.

With L = ⟨dy, y⟩ and a direction D in the inputs, `Series` along D give y and its derivatives in t elementwise, `Var`
gives the gradient of L, and `Var` over `Series` gives the derivatives in t of that gradient:

====================  ==============  ========================================================
pass                  order           read off
====================  ==============  ========================================================
forward, inference    0               y
backward              0               gradient
jvp                   1               first coefficient of y
hvp                   1               first coefficient of the gradient
double backward       1, D = (dd…)    both: ⟨D, gradient of L⟩ is the derivative of L along D,
                                      whose gradient is ẏ with respect to dy, and the derivative
                                      of the gradient along D with respect to the rest
====================  ==============  ========================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import factorial
from typing import Any, Generic, TypeVar

from refbn.exact.program import Number
from refbn.exact.series import Series
from refbn.exact.tape import Var, gradient

__all__ = ["Derivatives", "derivatives"]

T = TypeVar("T", bound=Number)


@dataclass(frozen=True, slots=True)
class Derivatives(Generic[T]):
    """What `derivatives` found; None is a structural zero.

    Attributes
    ----------
    value : T or None
        The derivative of the result in t, of the order asked for.
    gradient : dict of str to (T or None)
        The derivative in t, of the order asked for, of the gradient with respect to each wanted input.
    """

    value: T | None
    gradient: dict[str, T | None]


def derivatives(
    definition: Callable[..., Any],
    inputs: Mapping[str, T | Fraction],
    *,
    order: int = 0,
    directions: Mapping[str, T | None] | None = None,
    cotangent: T | None = None,
    wanted: Sequence[str] = (),
) -> Derivatives[T]:
    """Differentiate a program at inputs + t·directions, t = 0.

    Parameters
    ----------
    definition : callable
        A program in the number protocol, called with the inputs by name.
    inputs : mapping
        Numbers and vectors, or exact constants as Fraction.
    order : int
        How many times to differentiate in t.
    directions : mapping, optional
        Per input; one that is left out or None stands still.
    cotangent : T, optional
        What the result is paired with for the gradient, of the result's length; it does not move with t.
    wanted : sequence of str
        The inputs to take the gradient to. Without any, no reverse sweep is made and no cotangent needed.

    Returns
    -------
    Derivatives
    """
    directions = directions or {}
    leaves: dict[str, Var[Series[T]] | Fraction] = {
        name: value
        if isinstance(value, Fraction)
        else Var(Series.along(value, directions.get(name), order), wanted=name in wanted)
        for name, value in inputs.items()
    }
    result: Var[Series[T]] = definition(**leaves)
    asked = [leaf for name in wanted if isinstance(leaf := leaves[name], Var)]
    cotangents: list[Series[T] | None] = []
    if asked:
        assert cotangent is not None, "a gradient needs a cotangent"
        cotangents = gradient(result, Series.along(cotangent, None, order), asked)
    return Derivatives(
        _derivative(result.value, order),
        {name: _derivative(g, order) for name, g in zip(wanted, cotangents, strict=True)},
    )


def _derivative(series: Series[T] | None, order: int) -> T | None:
    coefficient = None if series is None else series.coefficient(order)
    return coefficient if coefficient is None or order < 2 else coefficient * factorial(order)
