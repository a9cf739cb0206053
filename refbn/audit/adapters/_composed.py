"""The audit's compositions, built from the passes of a batch norm that has no automatic differentiation of its own.

The loss is f = w·(y²/2 + y³/6), elementwise, L = Σ f, so with respect to y

    f' = w·(y + y²/2),    f'' = w·(1 + y),    f''' = w.

y comes in the case's dtype, as the batch norm rounded it. The loss's own products and sums run in binary64; a
cotangent is rounded to the case's dtype before it enters a pass, and results are rounded to it at the end. So the
loss adds next to nothing to the batch norm's error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from refbn._formats import round_to
from refbn.audit.adapters._protocol import OPERATIONS, Array, Inputs, Unsupported

__all__ = ["Point", "answer", "compose", "script"]

Gradients = dict[str, Array]
Wide = npt.NDArray[np.float64]


class Point(Protocol):
    """A batch norm at one point θ = (x, gamma, beta; for frozen statistics mean, var too), with one direction D.

    Gradients are dicts with some of the keys dx, dgamma, dbeta, dmean, dvar; a key left out is a zero.
    """

    @property
    def y(self) -> Array:
        """y(θ), in the case's dtype."""

    def backward(self, dy: Array) -> Gradients:
        """Return the gradient of <dy, y>."""

    def jvp(self) -> Array:
        """Return D y, the derivative of y along D."""

    def double_backward(self, dy: Array) -> tuple[Array, Gradients]:
        """Return the gradient of <D, backward(dy)>, with respect to dy and to θ."""

    def hvp(self, dy: Array) -> Gradients:
        """Return the derivative of backward(dy) along D, dy held fixed."""

    def vjp_of_jvp(self, dy: Array) -> Gradients:
        """Return the gradient of <dy, D y> with respect to θ."""

    def curve(self, order: int) -> Sequence[Array]:
        """Return the derivatives 0 … order of y(θ + t·D) with respect to t, elementwise."""


def answer(operation: str, point: Point, inputs: Inputs) -> dict[str, Array]:
    """Answer any operation that keeps no state, but for ``forward``, whose statistics a `Point` does not tell."""
    if operation == "inference":
        return {"y": point.y}
    if operation.startswith("vjp"):
        return point.backward(inputs.dy)
    if operation.startswith("jvp"):
        return {"y_dot": point.jvp()}
    return compose(OPERATIONS[operation].composition, point, inputs.w)


def compose(composition: str, point: Point, w: Array) -> Gradients:
    """Answer one composed operation.

    Parameters
    ----------
    composition : str
        As in `Operation.composition`: ``"rev"``, ``"fwd-rev"``, ….
    point : Point
        The batch norm.
    w : ndarray
        The loss's weights, in the case's dtype.

    Raises
    ------
    Unsupported
        If the passes of a `Point` do not suffice.
    """
    if composition in ("fwd-fwd", "fwd-fwd-fwd"):
        return {"value": round_to(_along_curve(point, _wide(w), composition.count("fwd")), w.dtype)}
    if composition not in ("rev", "rev-rev", "fwd-rev", "rev-fwd"):
        raise Unsupported(f"{composition}: needs third-order passes with respect to vectors")

    y, weights = _wide(point.y), _wide(w)
    dy = round_to(weights * (y + 0.5 * y * y), w.dtype)
    if composition == "rev":
        return point.backward(dy)
    # grad L = backward(f'(y)). Its derivative has two parts: backward moves at fixed f'(y), and f'(y) itself moves by
    # f''(y)·(D y).
    if composition == "rev-rev":
        y_dot, at_fixed_dy = point.double_backward(dy)
    elif composition == "fwd-rev":
        y_dot, at_fixed_dy = point.jvp(), point.hvp(dy)
    else:
        y_dot, at_fixed_dy = point.jvp(), point.vjp_of_jvp(dy)
    moved = point.backward(round_to(weights * (1.0 + y) * _wide(y_dot), w.dtype))
    return {
        name: round_to(_wide(moved[name]) + _wide(at_fixed_dy[name]), moved[name].dtype)
        if name in at_fixed_dy
        else moved[name]
        for name in moved
    }


def script(adapter: str, operation: str, norm: str = "batch") -> str:
    """Return the lines that ask one of refbn's own adapters, by its name, for `Adapter.reproduction`."""
    asked = OPERATIONS[operation]
    kept = operation in ("running", "train_eval_train")
    names = (*asked.arrays, "eps", *(("batches", "momentum") if kept else ()))
    given = [f"{name}={name}" for name in names] + [f'norm="{norm}"']
    return "\n".join(
        (
            "from dataclasses import fields",
            "from refbn.audit.adapters import load",
            "from refbn.audit.adapters._protocol import Inputs",
            f"given = dict({', '.join(given)})",
            'inputs = Inputs(**{f.name: given.get(f.name, given["gamma"]) for f in fields(Inputs)})',
            f'answer = load("{adapter}")[0].run("{operation}", inputs)',
        )
    )


def _along_curve(point: Point, w: Wide, order: int) -> Wide:
    """Return dⁿf/dtⁿ, n = 2 or 3, by the chain rule."""
    y, y1, y2, *rest = (_wide(a) for a in point.curve(order))
    slope = y + 0.5 * y * y
    if not rest:
        return np.asarray(w * ((1.0 + y) * y1 * y1 + slope * y2))
    return np.asarray(w * (y1 * y1 * y1 + 3.0 * (1.0 + y) * y1 * y2 + slope * rest[0]))


def _wide(array: Array) -> Wide:
    return array.astype(np.float64)
