"""The audit's compositions for frameworks whose derivatives are functions of functions: JAX and its kin, and autograd.

A framework of that kind gives two operators on functions, a gradient and a derivative along a direction, and its batch
norm as a function of a point. The nesting is literal: a composition applies the operators from the inside out, each
to what the one before it has returned. `script` writes the same nesting down, in lines that a bug report can carry.

The loss runs in binary64 on y as the batch norm rounded it; the framework rounds the cotangent to y's dtype on its way
back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from refbn.audit.adapters._nesting import nest
from refbn.audit.adapters._protocol import Operation

__all__ = ["Calculus", "compose", "script"]

Value = Any
"""An array of the framework's."""
Point = tuple[Value, ...]
Function = Callable[..., Any]
"""Of the point's arrays: y, f or L, or a gradient as a tuple."""


@dataclass(frozen=True, slots=True)
class Calculus:
    """What a framework offers.

    Attributes
    ----------
    gradient : callable
        From a scalar function to its gradient with respect to all arguments, a tuple.
    derivative : callable
        From a function and a direction to its derivative along the direction, by forward mode.
    wide : callable
        From an array to the same in binary64, differentiable.
    """

    gradient: Callable[[Function], Function]
    derivative: Callable[[Function, Point], Function]
    wide: Callable[[Value], Value]


def compose(
    operation: Operation, function: Function, point: Point, direction: Point, dy: Value, w: Value, calculus: Calculus
) -> Any:
    """Return what an operation with a composition asks for: a gradient as a tuple, or one tensor."""
    if operation.name.startswith("vjp"):
        return calculus.gradient(lambda *p: _inner((function(*p),), (dy,), calculus))(*point)
    if operation.name.startswith("jvp"):
        return calculus.derivative(function, direction)(*point)

    def loss_of(total: bool) -> Function:
        def loss(*p: Value) -> Value:
            y = calculus.wide(function(*p))
            f = calculus.wide(w) * (y * y / 2 + y * y * y / 6)
            return f.sum() if total else f

        return loss

    return nest(
        operation.composition,
        loss_of,
        calculus.gradient,
        lambda inside: calculus.derivative(inside, direction),
        lambda gradient: _along(gradient, direction, calculus),
    )(*point)


def _along(gradient: Function, direction: Point, calculus: Calculus) -> Function:
    """Return <direction, gradient> as a scalar function."""
    return lambda *p: _inner(gradient(*p), direction, calculus)


def _inner(a: Point, b: Point, calculus: Calculus) -> Value:
    """Return the inner product in binary64: the cotangents that it sends back are the factors, exactly."""
    products = [(calculus.wide(u) * calculus.wide(v)).sum() for u, v in zip(a, b, strict=True)]
    return sum(products[1:], start=products[0])


def script(
    operation: Operation, names: Sequence[str], call: str = "{}(*point)", wide: str = '{}.astype("float64")'
) -> list[str]:
    """Return the lines of a script that compose an operation.

    The framework's own lines, which stand above them, define ``batch_norm``, ``point``, ``direction``, ``grad(f)`` and
    ``jvp(f)``, the derivative along ``direction``. `call` says how a function is called, `wide` how an
    array is turned into binary64.
    """
    inner = [
        "",
        "def inner(a, b):",
        f"    return sum(({wide.format('u')} * v).sum() for u, v in zip(a, b))",
    ]
    gradients = f"answer = dict(zip({[f'd{name}' for name in names]}, map(np.asarray, result)))"
    if operation.name.startswith("vjp"):
        function = "grad(lambda *p: inner([batch_norm(*p)], [dy]))"
        return [*inner, "", f"result = {call.format(function)}", gradients]
    if operation.name.startswith("jvp"):
        return [f'answer = {{"y_dot": np.asarray({call.format("jvp(batch_norm)")})}}']
    modes = operation.composition.split("-")
    lines = [
        "",
        "def loss(*p):",
        f"    y = {wide.format('batch_norm(*p)')}",
        "    f = w * (y * y / 2 + y * y * y / 6)",
        f"    return {'f.sum()' if 'rev' in modes else 'f'}",
    ]
    text = nest(
        operation.composition,
        lambda _: "loss",
        lambda inside: f"grad({inside})",
        lambda inside: f"jvp({inside})",
        lambda gradient: f"lambda *p: inner({gradient}(*p), direction)",
    )
    if modes.count("rev") > 1:
        lines += inner
    value = 'answer = {"value": np.asarray(result).astype(x.dtype)}'
    return [*lines, "", f"result = {call.format(text)}", gradients if "rev" in modes else value]
