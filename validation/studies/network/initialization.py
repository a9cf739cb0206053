"""Initial weights. Shapes are (outputs, inputs) or (outputs, channels, k, k)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from validation.studies.network.layers import Array

__all__ = ["he", "xavier"]


def he(generator: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float64) -> Array:
    """Return normal weights of variance 2/inputs (He et al. 2015), which suit ReLU."""
    return (math.sqrt(2 / math.prod(shape[1:])) * generator.standard_normal(shape)).astype(dtype)


def xavier(generator: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float64) -> Array:
    """Return uniform weights of variance 2/(inputs + outputs) (Glorot and Bengio 2010)."""
    inputs, outputs = math.prod(shape[1:]), shape[0] * math.prod(shape[2:])
    limit = math.sqrt(6 / (inputs + outputs))
    return generator.uniform(-limit, limit, shape).astype(dtype)
