"""Hypothesis strategies for batch-norm inputs.

They vary what changes the arithmetic: sizes from one element up, memory layouts, the format, offset over standard
deviation, constant channels, few distinct values (ties), outliers, wide exponents, ε = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from refbn._formats import FORMATS, Format, round_to
from refbn._types import Array

__all__ = ["LAYOUTS", "Problem", "in_layout", "problems", "tensors"]

LAYOUTS = ("contiguous", "channels_last", "sliced", "reversed", "transposed")
_KINDS = ("normal", "offset", "constant", "few_values", "outlier", "wide")


@dataclass(frozen=True)
class Problem:
    """One batch-norm problem; channels lie on axis 1.

    Attributes
    ----------
    x, dy, ddx : ndarray, shape (N, C, …)
        Input, output cotangent, direction.
    gamma, beta, ddgamma, ddbeta, mean, var : ndarray, shape (C,)
        Parameters, their directions, and statistics for inference.
    eps : float
        ε.
    """

    x: Array
    dy: Array
    ddx: Array
    gamma: Array
    beta: Array
    ddgamma: Array
    ddbeta: Array
    mean: Array
    var: Array
    eps: float


def in_layout(array: Array, layout: str) -> Array:
    """Return equal values in memory of the given layout, one of `LAYOUTS`."""
    if layout == "contiguous":
        return np.ascontiguousarray(array)
    if layout == "channels_last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)
    if layout == "transposed":
        return np.asfortranarray(array)
    step = {"sliced": 2, "reversed": -1}[layout]
    wide = np.zeros(tuple(n * abs(step) for n in array.shape), array.dtype)
    view = wide[(slice(None, None, step),) * array.ndim]
    view[...] = array
    return view


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], fmt: Format, kinds: Sequence[str] = _KINDS) -> Array:
    """Draw a tensor whose channels (axis 1) are each of one of the kinds."""
    # bytes, since integers lean towards 0 and would repeat the values
    rng = np.random.default_rng(list(draw(st.binary(min_size=8, max_size=8))))
    values = rng.standard_normal(shape)
    channels = np.moveaxis(values, 1, 0)
    for c in range(shape[1]):
        kind = draw(st.sampled_from(kinds))
        scale = 2.0 ** draw(st.integers(-8, 4))
        if kind == "offset":
            channels[c] += 10.0 ** draw(st.integers(1, 3 if fmt.precision <= 11 else 6))
        elif kind == "constant":
            channels[c] = rng.standard_normal()
        elif kind == "few_values":
            channels[c] = rng.integers(-2, 3, channels[c].shape)
        elif kind == "outlier":
            channels[c].flat[draw(st.integers(0, max(channels[c].size - 1, 0)))] *= 2.0**7
        elif kind == "wide":
            channels[c] *= 2.0 ** rng.integers(-6, 7, channels[c].shape)
        channels[c] *= scale
    return round_to(values, fmt.dtype)


@st.composite
def problems(
    draw: st.DrawFn,
    formats: Sequence[Format] = FORMATS,
    layouts: Sequence[str] = LAYOUTS,
    max_side: int = 5,
) -> Problem:
    """Draw a whole problem: shapes of 2 to 5 axes, parameters of x's format or a wider one."""
    fmt = draw(st.sampled_from(formats))
    wider = [f for f in formats if f.precision >= fmt.precision and f.emax >= fmt.emax]
    parameter_format = draw(st.sampled_from(wider))
    spatial = draw(st.lists(st.integers(1, max_side), max_size=3))
    shape = (draw(st.integers(1, max_side)), draw(st.integers(1, 4)), *spatial)
    layout = st.sampled_from(layouts)

    def tensor() -> Any:
        return in_layout(draw(tensors(shape, fmt)), draw(layout))

    def vector(kinds: Sequence[str] = ("normal", "few_values")) -> Array:
        return np.ascontiguousarray(draw(tensors((1, shape[1]), parameter_format, kinds))[0])

    return Problem(
        x=tensor(),
        dy=tensor(),
        ddx=tensor(),
        gamma=vector(),
        beta=vector(),
        ddgamma=vector(),
        ddbeta=vector(),
        mean=vector(),
        var=np.abs(vector(("normal",))),
        eps=draw(st.sampled_from((0.0, 1e-12, 1e-5, 1e-3, 1.0))),
    )
