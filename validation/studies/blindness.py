"""The part of an upstream gradient that a normalization's standardization phase blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refbn import Saved

__all__ = ["Blindness", "blindness"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Blindness:
    """Result of `blindness`.

    Attributes
    ----------
    blocked, passed : ndarray
        The part of dy in the span of 1 and x̂ of its index set, and the rest; of dy's shape.
    fraction : ndarray
        ‖blocked‖²/‖dy‖² of each index set; NaN where dy is zero.
    total : float
        The same of all of dy.
    """

    blocked: Array
    passed: Array
    fraction: Array
    total: float


def blindness(saved: Saved, dy: npt.ArrayLike) -> Blindness:
    """Split an upstream gradient into what the backward pass blocks at ε = 0 and what it passes.

    For ε > 0 the part along 1 is blocked as well; of the part along x̂, κ = ε/(var+ε) leaks.

    Parameters
    ----------
    saved : Saved
        Of a forward with statistics of x.
    dy : array_like
        Of x's shape.
    """
    axes = saved.geometry.reduced_axes
    dy = np.asarray(dy, np.float64)
    x = np.asarray(saved.x, np.float64)
    d = x - x.mean(axes, keepdims=True)
    d -= d.mean(axes, keepdims=True)  # of what rounding left
    length = (d * d).sum(axes, keepdims=True)
    mean = dy.mean(axes, keepdims=True)
    along = (d * (dy - mean)).sum(axes, keepdims=True)
    slope = np.divide(along, length, out=np.zeros_like(along), where=length > 0)
    blocked = mean + slope * d
    parts, wholes = (blocked * blocked).sum(axes), (dy * dy).sum(axes)
    with np.errstate(invalid="ignore"):
        return Blindness(blocked, dy - blocked, parts / wholes, float(np.divide(parts.sum(), wholes.sum())))
