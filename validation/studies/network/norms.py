"""Normalization layers, all on refbn's own passes.

Where the norms differ is the index set that is standardized and the shape of γ and β. Layer, group and instance norm
are batch norm of an input whose (sample, group) pairs are the channels, with the affine phase outside.
`refbn.layer_norm` and its like give the same, but round the whole only once, which would take a training loop tens of
times as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import refbn
from validation.studies.network.layers import Array, Convolution, Dense, Layer

__all__ = [
    "KINDS",
    "BatchNorm",
    "BatchRenorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "WeightStandardized",
    "normalized",
]

KINDS = ("none", "BN", "LN", "GN", "IN", "BRN", "WS")
"""The kinds that `normalized` knows; `validation.studies.style` has their colours and names."""


class BatchNorm(Layer):
    """Batch norm over all axes but the second, with running statistics.

    Parameters
    ----------
    features : int
        Number of channels.
    stop_gradient : bool, optional
        Let the gradient not go through μ and s, although they are the batch's: the forward pass alone normalizes.
    dtype : dtype, optional
    **options
        For `refbn.BatchNorm`: eps, momentum, dialect.

    Attributes
    ----------
    norm : refbn.BatchNorm
        It holds the running statistics.
    saved : refbn.Saved
        Of the latest forward.
    dy : ndarray
        The latest upstream gradient.
    """

    def __init__(self, features: int, *, stop_gradient: bool = False, dtype: Any = np.float64, **options: Any) -> None:
        self.norm = refbn.BatchNorm(features, channel_axis=1, dtype=dtype, **options)
        self.stop_gradient = stop_gradient
        super().__init__(gamma=self.norm.gamma, beta=self.norm.beta)

    def forward(self, x: Array, train: bool = True) -> Array:
        # From the dict, which another layer may share.
        self.norm.gamma, self.norm.beta = self.parameters["gamma"], self.parameters["beta"]
        fwd = self.norm.train(train).forward(x)
        self.saved = fwd.saved
        self._slope = (self.norm.gamma * fwd.invstd).reshape(-1, *(1,) * (x.ndim - 2))
        return fwd.y

    def backward(self, dy: Array) -> Array:
        self.dy = dy
        found = refbn.backward(self.saved, dy)
        self.gradients = {"gamma": found.dgamma, "beta": found.dbeta}
        return self._slope * dy if self.stop_gradient else found.dx


class BatchRenorm(Layer):
    """Batch renormalization: y = γ(r·x̂ + d) + β, where r and d, taken as constants, lead to the running statistics.

    Ioffe, Batch Renormalization (2017). As r and d are constants, this is batch norm with γr and γd + β.

    Parameters
    ----------
    features : int
    r_max, d_max : float, optional
        r stays in [1/r_max, r_max] and d in [−d_max, d_max].
    momentum : float, optional
        Weight of the batch in the running statistics.
    eps : float, optional
    dtype : dtype, optional
    """

    def __init__(
        self,
        features: int,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        momentum: float = 0.1,
        eps: float = 1e-5,
        dtype: Any = np.float64,
    ) -> None:
        super().__init__(gamma=np.ones(features, dtype), beta=np.zeros(features, dtype))
        self.r_max, self.d_max, self.momentum, self.eps = r_max, d_max, momentum, eps
        self.running_mean, self.running_std = np.zeros(features, dtype), np.ones(features, dtype)

    def forward(self, x: Array, train: bool = True) -> Array:
        gamma, beta = self.parameters["gamma"], self.parameters["beta"]
        options: dict[str, Any] = {"eps": self.eps, "channel_axis": 1}
        if not train:
            var = np.maximum(self.running_std**2 - self.eps, 0)
            fwd = refbn.inference(x, self.running_mean, var, gamma, beta, **options)
            self._r, self._d = np.ones_like(gamma), np.zeros_like(beta)
        else:
            batch = refbn.forward(x, **options)
            std = 1 / batch.invstd
            self._r = np.clip(std / self.running_std, 1 / self.r_max, self.r_max)
            self._d = np.clip((batch.mean - self.running_mean) / self.running_std, -self.d_max, self.d_max)
            fwd = refbn.forward(x, gamma * self._r, gamma * self._d + beta, **options)
            self.running_mean = self.running_mean + self.momentum * (batch.mean - self.running_mean)
            self.running_std = self.running_std + self.momentum * (std - self.running_std)
        self.saved = fwd.saved
        return fwd.y

    def backward(self, dy: Array) -> Array:
        self.dy = dy
        found = refbn.backward(self.saved, dy)
        self.gradients = {"gamma": self._r * found.dgamma + self._d * found.dbeta, "beta": found.dbeta}
        return found.dx


class GroupNorm(Layer):
    """Each sample's channels are standardized in groups; γ and β belong to the channels.

    Attributes
    ----------
    saved : refbn.Saved
        Of the latest forward: a channel for each (sample, group).
    dy : ndarray
        The latest upstream gradient of the standardization, in that shape.
    """

    def __init__(self, features: int, groups: int, *, eps: float = 1e-5, dtype: Any = np.float64) -> None:
        super().__init__(gamma=np.ones(features, dtype), beta=np.zeros(features, dtype))
        self.groups, self.eps = groups, eps

    def forward(self, x: Array, train: bool = True) -> Array:
        fwd = refbn.forward(x.reshape(len(x) * self.groups, -1), eps=self.eps, channel_axis=0)
        self.saved, self._xhat = fwd.saved, fwd.y.reshape(x.shape)
        return self._spread("gamma") * self._xhat + self._spread("beta")

    def backward(self, dy: Array) -> Array:
        others = (0, *range(2, dy.ndim))
        self.gradients = {"gamma": (dy * self._xhat).sum(axis=others), "beta": dy.sum(axis=others)}
        self.dy = (self._spread("gamma") * dy).reshape(len(dy) * self.groups, -1)
        return refbn.backward(self.saved, self.dy).dx.reshape(dy.shape)

    def _spread(self, name: str) -> Array:
        return self.parameters[name].reshape(-1, *(1,) * (self._xhat.ndim - 2))


class LayerNorm(GroupNorm):
    """All that belongs to a sample is standardized together; γ and β belong to the channels."""

    def __init__(self, features: int, **options: Any) -> None:
        super().__init__(features, 1, **options)


class InstanceNorm(GroupNorm):
    """Each channel of each sample is standardized; it needs more than one position."""

    def __init__(self, features: int, **options: Any) -> None:
        super().__init__(features, features, **options)


class WeightStandardized(Layer):
    """A dense layer or convolution whose weights are standardized over each output's inputs, times a gain for each.

    Qiao et al., Micro-Batch Training with Batch-Channel Normalization and Weight Standardization (2019). As outputs do
    not get smaller by it, the gain begins at √(2/inputs), the scale of He's initialization.
    """

    def __init__(self, linear: Dense | Convolution, *, eps: float = 1e-5) -> None:
        weight = linear.parameters["weight"]
        gain = np.full(len(weight), np.sqrt(2 * len(weight) / weight.size), weight.dtype)
        super().__init__(**linear.parameters, gain=gain)
        self.linear, self.eps = linear, eps

    def forward(self, x: Array, train: bool = True) -> Array:
        fwd = refbn.forward(self.parameters["weight"], self.parameters["gain"], eps=self.eps, channel_axis=0)
        self.saved = fwd.saved
        self.linear.parameters["weight"] = fwd.y
        return self.linear.forward(x, train)

    def backward(self, dy: Array) -> Array:
        dx = self.linear.backward(dy)
        found = refbn.backward(self.saved, self.linear.gradients["weight"])
        self.gradients = self.linear.gradients | {"weight": found.dx, "gain": found.dgamma}
        return dx


def normalized(kind: str, linear: Dense | Convolution, **options: Any) -> list[Layer]:
    """Return a linear layer and what normalizes it.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    linear : Dense or Convolution
    **options
        For the norm's class. Group norm takes ``groups``, 4 if left out.
    """
    features = len(linear.parameters["weight"])
    options.setdefault("dtype", linear.parameters["weight"].dtype)
    match kind:
        case "none":
            return [linear]
        case "BN":
            return [linear, BatchNorm(features, **options)]
        case "LN":
            return [linear, LayerNorm(features, **options)]
        case "GN":
            return [linear, GroupNorm(features, **{"groups": 4, **options})]
        case "IN":
            return [linear, InstanceNorm(features, **options)]
        case "BRN":
            return [linear, BatchRenorm(features, **options)]
        case "WS":
            del options["dtype"]  # the weight has it
            return [WeightStandardized(linear, **options)]
    raise ValueError(f"kind: {kind!r}, expected one of {', '.join(KINDS)}")
