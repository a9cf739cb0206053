"""Any layout to the canonical strided view that kernels see, and back.

Standardization runs over an index set: the axes of a tensor are split into *group* axes (one set of statistics
for each index) and *reduced* axes (what the statistics run over). gamma and beta live on the *affine* axes. For
batch norm the group axes are the channel axis, and so are the affine ones; layer, group and instance norm are
other splits of the same axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from refbn._formats import Array

__all__ = ["Geometry", "batch_norm", "native", "zeros"]


_MOST_VIEWS = 64  # that a geometry remembers


class _View(NamedTuple):
    """How tensors of certain strides are seen canonically: transposed, then, if axes merge, reshaped."""

    axes: tuple[int, ...] | None  # None: all of them reversed, for which NumPy has a quicker way
    shape: tuple[int, ...] | None  # None: as it is after that


@dataclass(frozen=True)
class Geometry:
    """A split of a tensor's axes.

    Attributes
    ----------
    shape : tuple of int
        The tensor's shape.
    group_axes, reduced_axes, affine_axes : tuple of int
        The split, in increasing order.
    groups : int
        How many sets of statistics there are.
    count : int
        m, how many elements each set of statistics runs over.
    affine_shape : tuple of int
        The shape of gamma and beta.
    """

    shape: tuple[int, ...]
    group_axes: tuple[int, ...]
    reduced_axes: tuple[int, ...]
    affine_axes: tuple[int, ...]
    groups: int = field(init=False, repr=False, compare=False)
    count: int = field(init=False, repr=False, compare=False)
    affine_shape: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _views: dict[tuple[int, ...], _View] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        derived = {
            "groups": math.prod(self.shape[axis] for axis in self.group_axes),
            "count": math.prod(self.shape[axis] for axis in self.reduced_axes),
            "affine_shape": tuple(self.shape[axis] for axis in self.affine_axes),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def canonical(self, *tensors: Array) -> list[Array]:
        """View tensors of this shape as ``(G, R1, …, Rk)``, alike for all of them, without a copy.

        The reduced axes are ordered as the first tensor lies in memory, and neighbours are merged where the strides of
        *all* tensors allow it: contiguous and channels-last tensors end with k ≤ 2.
        """
        key: tuple[int, ...] = ()
        for t in tensors:
            key += t.strides
        view = self._views.get(key)
        if view is None:
            view = self._view([t.strides for t in tensors])
            if len(self._views) >= _MOST_VIEWS:
                self._views.clear()
            self._views[key] = view
        axes, shape = view
        views = []
        for t in tensors:  # plain loops: before Python 3.12 a comprehension costs as much as two transpositions
            views.append(t.T if axes is None else t.transpose(axes))
        return views if shape is None else [v.reshape(shape, copy=False) for v in views]

    def _view(self, strides: Sequence[tuple[int, ...]]) -> _View:
        lead = strides[0]
        axes = [axis for axis in self.reduced_axes if self.shape[axis] != 1]
        axes.sort(key=lambda axis: -abs(lead[axis]))
        extents: list[int] = []
        last = -1
        for axis in axes:
            extent = self.shape[axis]
            if extents and all(s[last] == s[axis] * extent for s in strides):
                extents[-1] *= extent
            else:
                extents.append(extent)
            last = axis
        order = (*self.group_axes, *axes, *(axis for axis in self.reduced_axes if self.shape[axis] == 1))
        shape = (self.groups, *(extents or [1]))
        return _View(
            None if order == tuple(reversed(range(len(order)))) else order,
            None if shape == tuple(self.shape[axis] for axis in order) else shape,
        )


@lru_cache(maxsize=256)
def batch_norm(shape: tuple[int, ...], channel_axis: int) -> Geometry:
    """Return batch norm's split: statistics for each index of the channel axis, over all others."""
    channel = channel_axis % len(shape)
    reduced = tuple(axis for axis in range(len(shape)) if axis != channel)
    return Geometry(shape, (channel,), reduced, (channel,))


def native(array: Array) -> Array:
    """Return the array itself, or a copy if its elements are byte-swapped or lie misaligned."""
    if array.flags.aligned and array.dtype.isnative:
        return array
    return array.astype(array.dtype.newbyteorder("="))


@lru_cache(maxsize=256)
def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return a read-only view of a single zero: how a tensor that was left out looks to a kernel."""
    return np.broadcast_to(np.zeros((), dtype), shape)
