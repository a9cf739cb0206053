"""A recurrent layer with normalization inside the recurrence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from validation.studies.network.layers import Array, Layer, Tanh

__all__ = ["Recurrent"]


class Recurrent(Layer):
    """hₜ = tanh(N(W hₜ₋₁) + N(V xₜ) + b) for sequences x of shape (samples, time, inputs); y has all hₜ.

    Cooijmans et al., Recurrent Batch Normalization (2017): both terms are normalized apart, and statistics belong to a
    step in time; γ is shared by all steps, and b takes the place of β.

    Parameters
    ----------
    recurrent : ndarray, shape (hidden, hidden)
        W.
    inputs : ndarray, shape (hidden, inputs)
        V.
    norm : callable, optional
        Returns a layer with gamma and beta; without it N is the identity.
    gain : float, optional
        γ's initial value.

    Attributes
    ----------
    state_gradients : list of ndarray
        After `backward`, ∂loss/∂hₜ for each step, with all ways that lead through later steps.
    """

    def __init__(
        self, recurrent: Array, inputs: Array, norm: Callable[[], Layer] | None = None, gain: float = 1.0
    ) -> None:
        bias = np.zeros(len(recurrent), recurrent.dtype)
        super().__init__(recurrent=recurrent, inputs=inputs, bias=bias)
        self._norm = norm
        self._norms: list[tuple[Layer, Layer]] = []  # of each step
        if norm is not None:
            for place in ("gamma_recurrent", "gamma_inputs"):
                self.parameters[place] = np.full(len(recurrent), gain, recurrent.dtype)

    def forward(self, x: Array, train: bool = True) -> Array:
        steps = x.shape[1]
        self._x, self._tanh = x, [Tanh() for _ in range(steps)]
        h = np.zeros((len(x), len(self.parameters["bias"])), x.dtype)
        self._h = [h]
        for t in range(steps):
            a, b = h @ self.parameters["recurrent"].T, x[:, t] @ self.parameters["inputs"].T
            if self._norm is not None:
                of_a, of_b = self._at(t)
                a, b = of_a.forward(a, train), of_b.forward(b, train)
            h = self._tanh[t].forward(a + b + self.parameters["bias"])
            self._h.append(h)
        return np.stack(self._h[1:], axis=1)

    def backward(self, dy: Array) -> Array:
        self.gradients = {name: np.zeros_like(value) for name, value in self.parameters.items()}
        self.state_gradients = []
        dx, dh = np.empty_like(self._x), np.zeros_like(self._h[0])
        for t in reversed(range(dy.shape[1])):
            dh = dh + dy[:, t]
            self.state_gradients.insert(0, dh)
            da = db = self._tanh[t].backward(dh)
            self.gradients["bias"] += da.sum(axis=0)
            if self._norm is not None:
                of_a, of_b = self._at(t)
                da, db = of_a.backward(da), of_b.backward(db)
                self.gradients["gamma_recurrent"] += of_a.gradients["gamma"]
                self.gradients["gamma_inputs"] += of_b.gradients["gamma"]
            self.gradients["recurrent"] += da.T @ self._h[t]
            self.gradients["inputs"] += db.T @ self._x[:, t]
            dh, dx[:, t] = da @ self.parameters["recurrent"], db @ self.parameters["inputs"]
        return dx

    def _at(self, step: int) -> tuple[Layer, Layer]:
        """Return the norms of a step, which share γ with those of the others and keep β at 0."""
        assert self._norm is not None
        while len(self._norms) <= step:
            made = self._norm(), self._norm()
            made[0].parameters["gamma"] = self.parameters["gamma_recurrent"]
            made[1].parameters["gamma"] = self.parameters["gamma_inputs"]
            self._norms.append(made)
        return self._norms[step]
