"""Any layout to the canonical strided view that kernels see, and back.

Standardization runs over an index set: the axes of a tensor are split into *group* axes (one set of statistics
for each index) and *reduced* axes (what the statistics run over). gamma and beta live on the *affine* axes. For
batch norm the group axes are the channel axis, and so are the affine ones; layer, group and instance norm are
other splits of the same axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refbn._formats import Array

__all__ = ["Geometry", "batch_norm", "native", "zeros"]


@dataclass(frozen=True)
class Geometry:
    """A split of a tensor's axes.

    Attributes
    ----------
    shape : tuple of int
        The tensor's shape.
    group_axes, reduced_axes, affine_axes : tuple of int
        The split, in increasing order.
    """

    shape: tuple[int, ...]
    group_axes: tuple[int, ...]
    reduced_axes: tuple[int, ...]
    affine_axes: tuple[int, ...]

    @property
    def groups(self) -> int:
        """How many sets of statistics there are."""
        return _product(self.shape, self.group_axes)

    @property
    def count(self) -> int:
        """m, how many elements each set of statistics runs over."""
        return _product(self.shape, self.reduced_axes)

    @property
    def affine_shape(self) -> tuple[int, ...]:
        """The shape of gamma and beta."""
        return tuple(self.shape[axis] for axis in self.affine_axes)

    def canonical(self, *tensors: Array) -> tuple[Array, ...]:
        """View tensors of this shape as ``(G, R1, …, Rk)``, alike for all of them, without a copy.

        The reduced axes are ordered as the first tensor lies in memory, and neighbours are merged where the strides of
        *all* tensors allow it: contiguous and channels-last tensors end with k ≤ 2.
        """
        lead = tensors[0].strides
        axes = [axis for axis in self.reduced_axes if self.shape[axis] != 1]
        axes.sort(key=lambda axis: -abs(lead[axis]))
        extents: list[int] = []
        last = -1
        for axis in axes:
            extent = self.shape[axis]
            if extents and all(t.strides[last] == t.strides[axis] * extent for t in tensors):
                extents[-1] *= extent
            else:
                extents.append(extent)
            last = axis
        shape = (self.groups, *(extents or [1]))
        order = (*self.group_axes, *axes, *(axis for axis in self.reduced_axes if self.shape[axis] == 1))
        return tuple(t.transpose(order).reshape(shape, copy=False) for t in tensors)


def batch_norm(shape: tuple[int, ...], channel_axis: int) -> Geometry:
    """Return batch norm's split: statistics for each index of the channel axis, over all others."""
    channel = channel_axis % len(shape)
    reduced = tuple(axis for axis in range(len(shape)) if axis != channel)
    return Geometry(shape, (channel,), reduced, (channel,))


def native(array: Array) -> Array:
    """Return the array itself, or a copy if its elements are byte-swapped or lie misaligned."""
    if array.dtype.isnative and array.flags.aligned:
        return array
    return array.astype(array.dtype.newbyteorder("="))


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return a read-only view of a single zero: how a tensor that was left out looks to a kernel."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def _product(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    product = 1
    for axis in axes:
        product *= shape[axis]
    return product
