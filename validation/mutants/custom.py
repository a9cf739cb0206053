"""A textbook's passes as one writes them for a custom function of a framework: functions of tuples of arrays.

The point is (x, gamma, beta), or (x, mean, var, gamma, beta) with frozen statistics; a direction and a gradient have
the same order. Channels are the rows. Everything is binary64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["POINTS", "Custom", "Frozen", "Training"]

Array = npt.NDArray[Any]
Arrays = tuple[Array, ...]


class _Saved:
    """The forward at the point that was asked last: a check asks for a hundred derivatives at one point."""

    def __init__(self, book: Any, eps: float) -> None:
        self.book, self.eps = book, eps
        self._key, self._kept = b"", None

    def _forward(self, point: Arrays) -> Any:
        key = b"".join(a.tobytes() for a in point)
        if key != self._key or self._kept is None:
            self._key, self._kept = key, self._pass(point)
        return self._kept

    def _stats(self, point: Arrays) -> Any:
        return self._forward(point).stats

    def _pass(self, point: Arrays) -> Any:
        raise NotImplementedError


class Training(_Saved):
    """With the statistics of x."""

    names = ("x", "gamma", "beta")

    def _pass(self, point: Arrays) -> Any:
        return self.book.forward(*point, self.eps)

    def value(self, point: Arrays) -> Array:
        """Return y."""
        return np.asarray(self._forward(point).y)

    def velocity(self, point: Arrays, direction: Arrays) -> Array:
        """Return ẏ."""
        return np.asarray(self.book.jvp(self._stats(point), point[1], *direction))

    def gradients(self, point: Arrays, dy: Array) -> Arrays:
        """Return those of ⟨dy, y⟩."""
        found = self.book.backward(self._stats(point), point[1], dy)
        return found.dx, found.dgamma, found.dbeta

    def second_gradients(self, point: Arrays, dy: Array, cotangent: Arrays) -> tuple[Arrays, Array]:
        """Return the gradients of ⟨cotangent, gradients(point, dy)⟩: to the point, and to dy."""
        found = self.book.double_backward(self._stats(point), point[1], dy, *cotangent)
        return (found.dx, found.dgamma, np.zeros_like(point[2])), found.ddy

    def moved_gradients(self, point: Arrays, dy: Array, direction: Arrays) -> Arrays:
        """Return the velocity of the gradients, dy held fixed."""
        found = self.book.hvp(self._stats(point), point[1], dy, *direction[:2])
        return found.dx, found.dgamma, found.dbeta

    def bend(self, point: Arrays, one: Arrays, other: Arrays) -> Array:
        """Return the second derivative of y along two directions: K(u, w) + γ̇·r·P w + γ̇'·r·P u.

        As r·P and K are symmetric, `hvp` gives the first and the last term with u in the place of dy.
        """
        stats, nothing = self._stats(point), np.zeros_like(point[1])
        moved = self.book.hvp(stats, point[1], one[0], other[0], other[1]).dx
        return np.asarray(moved + self.book.jvp(stats, one[1], other[0], nothing, nothing))


class Frozen(_Saved):
    """With given statistics."""

    names = ("x", "mean", "var", "gamma", "beta")

    def _pass(self, point: Arrays) -> Any:
        return self.book.inference(*point, self.eps)

    def value(self, point: Arrays) -> Array:
        """See `Training`."""
        return np.asarray(self._forward(point).y)

    def velocity(self, point: Arrays, direction: Arrays) -> Array:
        """See `Training`."""
        return np.asarray(self.book.inference_jvp(self._stats(point), point[3], *direction))

    def gradients(self, point: Arrays, dy: Array) -> Arrays:
        """See `Training`."""
        found = self.book.inference_backward(self._stats(point), point[3], dy)
        return found.dx, found.dmean, found.dvar, found.dgamma, found.dbeta

    def second_gradients(self, point: Arrays, dy: Array, cotangent: Arrays) -> tuple[Arrays, Array]:
        """See `Training`."""
        found = self.book.inference_double_backward(self._stats(point), point[3], dy, *cotangent)
        return (found.dx, found.dmean, found.dvar, found.dgamma, np.zeros_like(point[4])), found.ddy

    def moved_gradients(self, point: Arrays, dy: Array, direction: Arrays) -> Arrays:
        """See `Training`."""
        found = self.book.inference_hvp(self._stats(point), point[3], dy, *direction[:4])
        return found.dx, found.dmean, found.dvar, found.dgamma, found.dbeta

    def bend(self, point: Arrays, one: Arrays, other: Arrays) -> Array:
        """See `Training`. With every element as a channel of its own, ⟨one, hvp along other⟩ is elementwise."""
        shape = point[0].shape

        def elements(arrays: Arrays) -> Arrays:
            spread = (a if a.ndim > 1 else np.broadcast_to(a[:, None], shape) for a in arrays)
            first, *rest = (np.ascontiguousarray(a).reshape(-1) for a in spread)
            return first[:, None], *rest

        own, u, w = elements(point), elements(one), elements(other)
        moved = Frozen(self.book, self.eps).moved_gradients(own, np.ones_like(own[0]), w)
        return np.asarray(sum(a.reshape(-1) * b.reshape(-1) for a, b in zip(u, moved, strict=True))).reshape(shape)


Custom = Training | Frozen


def _points() -> dict[str, tuple[float, dict[str, Array]]]:
    rng = np.random.default_rng(2026)
    x, gamma, beta, mean = rng.standard_normal((2, 4)), *rng.standard_normal((3, 2))
    var = 0.5 + rng.random(2)
    usual = {"x": x, "mean": mean, "var": var, "gamma": gamma, "beta": beta}
    return {"usual": (1e-5, usual), "chosen": (0.5, usual | {"x": 1.0 + 1.5 * x, "var": 3.0 * var})}


POINTS = _points()
"""Where the frameworks' checks are asked, ε first: the usual one (normal data, the default ε), and one chosen so that ε
and the scale of the data show (ε = 0.5, standard deviation 1.5, an offset)."""
