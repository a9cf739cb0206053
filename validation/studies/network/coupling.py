"""Normalizing flows of affine couplings (Dinh et al., Density Estimation Using Real NVP, 2017)."""

from __future__ import annotations

import math

import numpy as np

from validation.studies.network.layers import Array, Joined, Layer

__all__ = ["Coupling", "Flow"]


class Coupling(Joined):
    """The features outside a mask are scaled and shifted by functions of those inside: y = x·eˢ + t.

    Parameters
    ----------
    mask : ndarray of bool, shape (features,)
        Which features stay as they are.
    network : Layer
        From the features inside the mask to s and t of those outside, side by side; s is bounded by a tanh with a
        factor for each feature, which is learned from 1 on.

    Attributes
    ----------
    log_determinant : ndarray, shape (samples,)
        Σs of the latest forward.
    """

    def __init__(self, mask: Array, network: Layer) -> None:
        factor = Layer(factor=np.ones(int((~mask).sum()), next(iter(network.parameters.values())).dtype))
        super().__init__(network=network, scale=factor)
        self.mask = mask

    def forward(self, x: Array, train: bool = True) -> Array:
        s, t = self._scale_and_shift(x[:, self.mask], train)
        y = x.copy()
        self._scale = np.exp(s)
        self._scaled = x[:, ~self.mask] * self._scale
        y[:, ~self.mask] = self._scaled + t
        self.log_determinant = s.sum(axis=1)
        return y

    def inverse(self, y: Array) -> Array:
        """Return x, with the norms' running statistics."""
        s, t = self._scale_and_shift(y[:, self.mask], train=False)
        x = y.copy()
        x[:, ~self.mask] = (y[:, ~self.mask] - t) * np.exp(-s)
        return x

    def backward(self, dy: Array, dlog_determinant: Array | float = 0.0) -> Array:
        """Return dx, from the gradients on y and on each sample's log-determinant."""
        changed = dy[:, ~self.mask]
        ds = changed * self._scaled + np.reshape(dlog_determinant, (-1, 1))
        factor = self.parts["scale"]
        factor.gradients = {"factor": (ds * self._tanh).sum(axis=0)}
        draw = ds * factor.parameters["factor"] * (1 - self._tanh**2)
        dx = dy.copy()
        dx[:, ~self.mask] = changed * self._scale
        dx[:, self.mask] += self.parts["network"].backward(np.concatenate((draw, changed), axis=1))
        return dx

    def _scale_and_shift(self, kept: Array, train: bool) -> tuple[Array, Array]:
        raw, t = np.split(self.parts["network"].forward(kept, train), 2, axis=1)
        self._tanh = np.tanh(raw)
        return self.parts["scale"].parameters["factor"] * self._tanh, t


class Flow(Joined):
    """Couplings one after another, to a standard normal distribution."""

    def __init__(self, *couplings: Coupling) -> None:
        super().__init__(**{str(place): one for place, one in enumerate(couplings)})

    def forward(self, x: Array, train: bool = True) -> Array:
        """Return z; the couplings keep their log-determinants."""
        for part in self.parts.values():
            x = part.forward(x, train)
        self._z = x
        return x

    def log_likelihood(self, x: Array, train: bool = True) -> Array:
        """Return each sample's log-density."""
        z = self.forward(x, train)
        of_prior = -0.5 * (z**2).sum(axis=1) - 0.5 * z.shape[1] * math.log(2 * math.pi)
        return of_prior + np.sum([part.log_determinant for part in self.parts.values()], axis=0)

    def backward(self, dy: Array) -> Array:
        """Return dx, from the gradient on each sample's log-likelihood, (samples,)."""
        share = dy[:, None]
        dz = -self._z * share
        for part in reversed(self.parts.values()):
            dz = part.backward(dz, dy)
        return dz

    def inverse(self, z: Array) -> Array:
        """Return x, with the norms' running statistics."""
        for part in reversed(self.parts.values()):
            z = part.inverse(z)
        return z
