"""`check_grads` on a textbook that is wrapped as a custom function of JAX, by `pure_callback`.

JAX differentiates a `custom_vjp` in reverse mode alone, and a `custom_jvp` whose rule is a callback in forward mode
alone. So each is checked in its own mode, to the second order; mixed nestings do not exist for such a function.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.test_util import check_grads

from validation.mutants.custom import POINTS, Custom

__all__ = ["CHECKS", "check", "with_jvp", "with_vjp"]

_asked: list[Custom] = []
"""The function that callbacks ask. They stay the same for all mutants, so that JAX compiles each of them once."""


def _callback(method: str) -> Callable[..., Any]:
    """Return a JAX function that calls a method of the asked `Custom`; the result has the shapes of ``like``."""

    def on_arrays(*arguments: Any) -> Any:
        answer = getattr(_asked[-1], method)(*jax.tree.map(np.asarray, arguments))
        return jax.tree.map(partial(np.array, dtype=np.float64), answer)

    def ask(like: Any, *arguments: Any) -> Any:
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), np.float64), like)
        return jax.pure_callback(on_arrays, shapes, *arguments)

    return ask


_VALUE, _VELOCITY, _GRADIENTS, _SECOND, _BEND = (
    _callback(method) for method in ("value", "velocity", "gradients", "second_gradients", "bend")
)


@jax.custom_vjp
def with_vjp(*point: Any) -> Any:
    """Return y of a point; with two rules for reverse mode."""
    return _VALUE(point[0], point)


@jax.custom_vjp
def _gradients(point: Any, dy: Any) -> Any:
    return _GRADIENTS(point, point, dy)


with_vjp.defvjp(lambda *point: (with_vjp(*point), point), _gradients)
_gradients.defvjp(
    lambda point, dy: (_gradients(point, dy), (point, dy)), lambda kept, cotangent: _SECOND(kept, *kept, cotangent)
)


@jax.custom_jvp
def with_jvp(*point: Any) -> Any:
    """Return y of a point; with two rules for forward mode."""
    return _VALUE(point[0], point)


@jax.custom_jvp
def _velocity(point: Any, direction: Any) -> Any:
    return _VELOCITY(point[0], point, direction)


@with_jvp.defjvp
def _push(point: Any, direction: Any) -> Any:
    return with_jvp(*point), _velocity(point, direction)


@_velocity.defjvp
def _push_again(given: Any, moving: Any) -> Any:
    (point, direction), (point_dot, direction_dot) = given, moving
    bend = _BEND(point[0], point, direction, point_dot)
    return _velocity(point, direction), bend + _velocity(point, direction_dot)


CHECKS = {
    f"check_grads {mode} {order}": (function, mode, order)
    for mode, function in (("rev", with_vjp), ("fwd", with_jvp))
    for order in (1, 2)
}
"""Each with its default tolerances, in binary64."""


def check(name: str, custom: Custom, where: str) -> str:
    """Run one check at one of `POINTS`; return why it fails, or nothing."""
    function, mode, order = CHECKS[name]
    _, values = POINTS[where]
    _asked[:] = [custom]
    logging.getLogger("jax._src.callback").setLevel(logging.CRITICAL)  # or it prints what a mutant raises
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            point = tuple(jax.numpy.asarray(values[n]) for n in custom.names)
            check_grads(function, point, order=order, modes=(mode,))
        except Exception as error:  # a mutant that raises is found as well
            return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return ""
