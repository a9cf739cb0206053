"""Shapes, formats and inputs of the benchmarks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from refbn._formats import FORMATS, Array

__all__ = ["DTYPES", "PASSES", "QUICK", "SHAPES", "SMALL", "Case", "Inputs", "cases", "draw", "parse"]

PASSES = ("forward", "backward", "jvp", "double_backward")
DTYPES = tuple(form.name for form in reversed(FORMATS))

SHAPES = ("32x64x56x56", "128x256x14x14", "8x3x224x224", "64x1024x7x7", "4096x512", "64x256", "32x16")
QUICK = ("16x64x28x28", "64x256", "32x16")

SMALL = 2**15
"""Below so many elements a case asks for overhead rather than for speed, and has means of its own."""

_ALIGNMENT = 64


@dataclass(frozen=True)
class Case:
    """One input: its shape with the channels at axis 1, how it lies in memory (channels "first" or "last"), format."""

    shape: tuple[int, ...]
    layout: str
    dtype: str

    @property
    def elements(self) -> int:
        """How many elements x has."""
        return math.prod(self.shape)

    @property
    def size(self) -> str:
        """Either "small" or "large"."""
        return "small" if self.elements < SMALL else "large"

    def to_memory(self, tensor: Array) -> Array:
        """Return a tensor of the case with its axes in the order in which they lie in memory."""
        return np.moveaxis(tensor, 1, -1) if self.layout == "last" else tensor

    def from_memory(self, array: Array) -> Array:
        """Undo `to_memory`."""
        return np.moveaxis(array, -1, 1) if self.layout == "last" else array


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything that the passes take; ``x_dot``, ``gamma_dot``, ``beta_dot`` also serve as ddx, ddgamma, ddbeta."""

    case: Case
    x: Array
    dy: Array
    x_dot: Array
    gamma: Array
    beta: Array
    gamma_dot: Array
    beta_dot: Array
    eps: float = 1e-5


def parse(text: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Read a shape like ``32x64x7x7`` (both memory orders if it has four axes) or ``32x64x7x7:last``.

    Raises
    ------
    ValueError
        If it is no such text.
    """
    sizes, _, layout = text.partition(":")
    shape = tuple(int(size) for size in sizes.split("x"))
    if len(shape) < 2 or min(shape) < 1 or layout not in ("", "first", "last") or (layout == "last" and len(shape) < 3):
        raise ValueError(f"not a shape: {text!r}")
    if layout:
        return shape, (layout,)
    return shape, ("first", "last") if len(shape) == 4 else ("first",)


def cases(shapes: list[str], dtypes: list[str]) -> list[Case]:
    """Return the cases in the order in which they are measured."""
    parsed = [parse(text) for text in shapes]
    return [Case(shape, layout, dtype) for dtype in dtypes for shape, layouts in parsed for layout in layouts]


def draw(case: Case, seed: int = 0) -> Inputs:
    """Draw standard normal inputs. The parameters of half-precision inputs are binary32, as networks have them."""
    rng = np.random.default_rng([seed, *case.shape])
    dtype = next(form for form in FORMATS if form.name == case.dtype).dtype
    vectors = np.dtype(np.float32) if dtype.itemsize == 2 else dtype
    channels = (case.shape[1],)
    x, dy, x_dot = (_tensor(rng, case, dtype) for _ in range(3))
    gamma, beta, gamma_dot, beta_dot = (rng.standard_normal(channels).astype(vectors) for _ in range(4))
    return Inputs(case, x, dy, x_dot, gamma, beta, gamma_dot, beta_dot)


def _tensor(rng: np.random.Generator, case: Case, dtype: np.dtype[Any]) -> Array:
    """Return random numbers at an aligned address."""
    size = case.elements * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    laid = case.shape if case.layout == "first" else (case.shape[0], *case.shape[2:], case.shape[1])
    tensor = memory[start : start + size].view(dtype).reshape(laid)
    tensor[...] = rng.standard_normal(laid, np.float64 if dtype.itemsize == 8 else np.float32)
    return case.from_memory(tensor)
