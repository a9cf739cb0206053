"""Copies of x, for scale: into a new array beside results that are allocated, into an old one beside ``out=``."""

from __future__ import annotations

import numpy as np

from validation.benchmarks.cases import Inputs
from validation.benchmarks.timing import Contender

__all__ = ["contenders"]


def contenders(inputs: Inputs) -> list[Contender]:
    """Return both copies; in x's own memory order, so that they are one run through the memory."""
    x = inputs.x
    target = np.empty_like(x)
    return [
        Contender("copy", "copy", lambda: x.copy(order="K"), lambda raw: {}),
        Contender("copyto", "copy", lambda: np.copyto(target, x), lambda raw: {}),
    ]
