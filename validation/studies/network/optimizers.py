"""Optimizers; ``step`` uses the gradients that the latest backward left."""

from __future__ import annotations

import numpy as np

from validation.studies.network.layers import Array, Layer

__all__ = ["SGD", "Adamax"]


class SGD:
    """Stochastic gradient descent with momentum: v ← momentum·v + gradient, parameter ← parameter − rate·v."""

    def __init__(self, network: Layer, rate: float, momentum: float = 0.0) -> None:
        self.network, self.rate, self.momentum = network, rate, momentum
        self._velocity: dict[str, Array] = {}

    def step(self) -> None:
        """Change the parameters."""
        gradients = self.network.gradients
        for name, parameter in self.network.parameters.items():
            v = gradients[name]
            if self.momentum:
                v = v + self.momentum * self._velocity.get(name, 0)
                self._velocity[name] = v
            parameter -= self.rate * v


class Adamax:
    """Adam with the largest gradient in place of the second moment (Kingma and Ba 2015, Algorithm 2)."""

    def __init__(
        self, network: Layer, rate: float = 2e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.network, self.rate, self.betas, self.eps = network, rate, betas, eps
        self._mean: dict[str, Array] = {}
        self._largest: dict[str, Array] = {}
        self._steps = 0

    def step(self) -> None:
        """Change the parameters."""
        self._steps += 1
        first, second = self.betas
        gradients = self.network.gradients
        for name, parameter in self.network.parameters.items():
            g = gradients[name]
            self._mean[name] = first * self._mean.get(name, 0) + (1 - first) * g
            self._largest[name] = np.maximum(second * self._largest.get(name, 0), abs(g))
            rate = self.rate / (1 - first**self._steps)
            parameter -= rate * self._mean[name] / (self._largest[name] + self.eps)
