"""Any layout to the canonical strided view that kernels see, and back.

Standardization runs over an index set: the axes of a tensor are split into *group* axes (one set of statistics
for each index) and *reduced* axes (what the statistics run over). gamma and beta live on the *affine* axes. The norms
differ in nothing else:

==============  ==========================  ==================  =========================
norm            group axes                  reduced axes        affine axes
==============  ==========================  ==================  =========================
batch norm      channel                     all others          channel
instance norm   sample, channel             all others          channel
layer norm      all others                  the features        the features
group norm      sample, group of channels   channel within its  group of channels, channel
                                            group, all others   within its group
==============  ==========================  ==================  =========================

For group norm the channel axis is seen as two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from refbn._formats import Array

__all__ = [
    "Geometry",
    "batch_norm",
    "batch_renorm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "native",
    "zeros",
]


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
        The split, in increasing order; axes of ``split``.
    split : tuple of int
        The shape, with an axis that is both group and reduced written as two; the shape itself by default.
    corrected : bool
        Whether a correction stands between the two phases: y = gamma·(r·x̂ + d) + beta (batch renormalization).
    groups : int
        How many sets of statistics there are.
    count : int
        m, how many elements each set of statistics runs over.
    group_shape : tuple of int
        The shape of mean, var and invstd.
    affine_shape : tuple of int
        The shape of gamma and beta.
    channelwise : bool
        Whether it is batch norm's: one gamma for each group, no correction. Its kernels take the groups one by one.
    """

    shape: tuple[int, ...]
    group_axes: tuple[int, ...]
    reduced_axes: tuple[int, ...]
    affine_axes: tuple[int, ...]
    split: tuple[int, ...] = ()
    corrected: bool = False
    groups: int = field(init=False, repr=False, compare=False)
    count: int = field(init=False, repr=False, compare=False)
    group_shape: tuple[int, ...] = field(init=False, repr=False, compare=False)
    affine_shape: tuple[int, ...] = field(init=False, repr=False, compare=False)
    channelwise: bool = field(init=False, repr=False, compare=False)
    _views: dict[tuple[int, ...], _View] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        split = self.split or self.shape
        group_shape = tuple(split[axis] for axis in self.group_axes)
        affine_shape = tuple(split[axis] for axis in self.affine_axes)
        derived = {
            "split": split,
            "groups": math.prod(group_shape),
            "count": math.prod(split[axis] for axis in self.reduced_axes),
            "group_shape": group_shape,
            "affine_shape": affine_shape if split == self.shape else (math.prod(affine_shape),),
            "channelwise": self.group_axes == self.affine_axes and not self.corrected,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def canonical(self, *tensors: Array) -> list[Array]:
        """View tensors of this shape as ``(G, R1, …, Rk)``, alike for all of them, without a copy.

        The reduced axes are ordered as the first tensor lies in memory, and neighbours are merged where the strides of
        *all* tensors allow it: contiguous and channels-last tensors end with k ≤ 2. Where gamma is not the groups' own,
        there are all group axes and then all reduced ones, as they come.
        """
        if not self.channelwise:
            return [t.reshape(self.split).transpose(self._order) for t in tensors]  # to split an axis takes no copy
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

    def rows(self, canonical: Array) -> Array:
        """Return a canonical view as ``(G, m)``, with a copy where it must be."""
        return canonical.reshape(self.groups, self.count)

    def grouped(self, tensor: Array) -> Array:
        """Return a tensor as ``(G, m)``: group axes first, all axes in their order, whatever the strides."""
        return self.rows(tensor.reshape(self.split).transpose(self._order))

    def ungrouped(self, rows: Array) -> Array:
        """Return ``(G, m)`` as `grouped` gives it in the tensor's shape."""
        back = sorted(range(len(self._order)), key=self._order.__getitem__)
        return rows.reshape(self._canonical_shape).transpose(back).reshape(self.shape)

    def spread(self, vector: Array) -> Array:
        """Repeat gamma, or what else lies on the affine axes, to a canonical view."""
        axes = self.affine_axes
        shape = [size if axis in axes else 1 for axis, size in enumerate(self.split)]
        return np.broadcast_to(vector.reshape(shape).transpose(self._order), self._canonical_shape)

    def by_affine(self, rows: Array) -> Array:
        """Return ``(G, m)`` as ``(A, k)``: for each of the A elements of gamma the k elements that it scales.

        Some of the rows are enough, if they are whole indices of the first group axis; A is less then where gamma lies
        on that axis, and k is less where it does not.
        """
        order = self._order
        shape = (len(rows) // max(math.prod(self.group_shape[1:]), 1), *self._canonical_shape[1:])
        positions = [order.index(axis) for axis in self.affine_axes]
        others = [position for position in range(len(order)) if position not in positions]
        flat = [math.prod(shape[position] for position in some) for some in (positions, others)]
        return rows.reshape(shape).transpose((*positions, *others)).reshape(flat)

    def scaled(self, elements: Sequence[int] | None = None) -> Iterator[dict[int, list[int]]]:
        """Yield, for each element of gamma or for some of them, what it scales: by group, the places within."""
        places = self.by_affine(np.arange(self.groups * self.count).reshape(self.groups, self.count))
        for of_one in places if elements is None else places[list(elements)]:
            group_of, place_of = np.divmod(of_one, self.count)
            yield {g: place_of[group_of == g].tolist() for g in np.unique(group_of).tolist()}

    @property
    def named_axes(self) -> int | tuple[int, ...]:
        """The axes of gamma as the caller counts them: the channel axis, or all of them."""
        return self.affine_axes if len(self.affine_axes) > 1 and self.split == self.shape else self.affine_axes[0]

    @property
    def _canonical_shape(self) -> tuple[int, ...]:
        return tuple(self.split[axis] for axis in self._order)

    @property
    def _order(self) -> tuple[int, ...]:
        return (*self.group_axes, *self.reduced_axes)

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


@lru_cache(maxsize=256)
def batch_renorm(shape: tuple[int, ...], channel_axis: int) -> Geometry:
    """Return batch norm's split, with a correction between standardization and affine phase."""
    return replace(batch_norm(shape, channel_axis), corrected=True)


@lru_cache(maxsize=256)
def layer_norm(shape: tuple[int, ...], axes: tuple[int, ...]) -> Geometry:
    """Return layer norm's split: statistics over the given axes, for each index of all others."""
    others = tuple(axis for axis in range(len(shape)) if axis not in axes)
    return Geometry(shape, others, axes, axes)


@lru_cache(maxsize=256)
def group_norm(shape: tuple[int, ...], channel_axis: int, groups: int) -> Geometry:
    """Return group norm's split: statistics for each sample and group of neighbouring channels.

    The first axis beside the channels is the sample's.
    """
    split = (*shape[:channel_axis], groups, shape[channel_axis] // groups, *shape[channel_axis + 1 :])
    sample = 0 if channel_axis else 2
    group, within = channel_axis, channel_axis + 1
    reduced = tuple(axis for axis in range(len(split)) if axis not in (sample, group))
    return Geometry(shape, tuple(sorted((sample, group))), reduced, (group, within), split)


@lru_cache(maxsize=256)
def instance_norm(shape: tuple[int, ...], channel_axis: int) -> Geometry:
    """Return instance norm's split: statistics for each sample and channel.

    The first axis beside the channels is the sample's.
    """
    sample = 0 if channel_axis else 1
    reduced = tuple(axis for axis in range(len(shape)) if axis not in (sample, channel_axis))
    return Geometry(shape, tuple(sorted((sample, channel_axis))), reduced, (channel_axis,))


def native(array: Array) -> Array:
    """Return the array itself, or a copy if its elements are byte-swapped or lie misaligned."""
    if array.flags.aligned and array.dtype.isnative:
        return array
    return array.astype(array.dtype.newbyteorder("="))


@lru_cache(maxsize=256)
def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return a read-only view of a single zero: how a tensor that was left out looks to a kernel."""
    return np.broadcast_to(np.zeros((), dtype), shape)
