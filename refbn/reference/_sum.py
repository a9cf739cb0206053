"""Sums and means over a channel's elements, with a depth that can be proved."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "column", "depth", "mean", "total"]

Array = npt.NDArray[Any]


def depth(m: int) -> int:
    """Return ⌈log₂ m⌉, the number of additions that one summand of `total` passes through at most."""
    return max(m - 1, 0).bit_length()


def total(u: Array) -> Array:
    """Return Σ u over the last axis, which stays with size 1, in a balanced tree of additions.

    Each round adds the second half to the first, so m elements are one after ⌈log₂ m⌉ rounds. NumPy's own sum
    is pairwise too, but by blocks whose size is not documented; this one leaves nothing to know.
    """
    if u.shape[-1] == 0:
        return np.zeros((*u.shape[:-1], 1), u.dtype)
    while (m := u.shape[-1]) > 1:
        half = (m + 1) // 2
        folded = u[..., :half].copy()
        folded[..., : m - half] += u[..., half:]
        u = folded
    return u


def mean(u: Array) -> Array:
    """Return Σ u / m over the last axis, which stays with size 1."""
    return np.asarray(total(u) / u.shape[-1])


def column(vector: Array) -> Array:
    """Turn a vector (G,) into a column (G, 1), which multiplies tensors channel by channel."""
    return np.asarray(vector)[:, None]
