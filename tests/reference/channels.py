"""Ordinary random operands for the textbook's passes, and complex-step differentiation."""

from __future__ import annotations

from typing import Any

import numpy as np

from refbn import reference

STEP = 1e-200


class Operands:
    """Six channels of m elements with a common, sizeable offset; everything is drawn anew for each seed."""

    def __init__(self, m: int, eps: float = 0.3, seed: int = 0) -> None:
        rng = np.random.default_rng([m, seed])
        self.m, self.eps = m, eps
        self.x = 3.0 + 2.0 * rng.standard_normal((6, m))
        self.dy, self.x_dot, self.z = rng.standard_normal((3, 6, m))
        self.gamma, self.beta, self.mean, self.gamma_dot, self.beta_dot, self.mean_dot, self.var_dot = (
            rng.standard_normal((7, 6))
        )
        self.var = rng.uniform(0.5, 2.0, 6)
        self.forward = reference.forward(self.x, self.gamma, self.beta, eps)
        self.stats = self.forward.stats
        self.inference = reference.inference(self.x, self.mean, self.var, self.gamma, self.beta, eps)
        self.frozen = self.inference.stats

    def moved(self, *names: str) -> dict[str, Any]:
        """Return operands of which the named ones carry an imaginary part along their velocity."""
        return {
            name: getattr(self, name) + 1j * STEP * (getattr(self, f"{name}_dot") if name in names else 0.0)
            for name in ("x", "gamma", "beta", "mean", "var")
        }


def velocity(value: Any) -> Any:
    """Return the derivative that a complex step carried along."""
    return np.imag(value) / STEP


def inner(a: Any, b: Any) -> Any:
    return (a * b).sum(axis=1)
