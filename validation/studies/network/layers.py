"""Layers: the linear ones, activations, and those that join others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Array",
    "Convolution",
    "Dense",
    "Flatten",
    "GlobalAverage",
    "Layer",
    "ReLU",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "sigmoid",
]

Array = npt.NDArray[Any]


class Layer:
    """A function with parameters, and its derivative.

    Attributes
    ----------
    parameters : dict of ndarray
        By name. Optimizers change the arrays in place.
    gradients : dict of ndarray
        Of the loss, under the same names, after `backward`.
    """

    def __init__(self, **parameters: Array) -> None:
        self.parameters: dict[str, Array] = parameters
        self.gradients: dict[str, Array] = {}

    def forward(self, x: Array, train: bool = True) -> Array:
        """Return y, and keep what `backward` needs; `train` makes a difference to running statistics alone."""
        raise NotImplementedError

    def backward(self, dy: Array) -> Array:
        """Return dx of the latest `forward`, and set `gradients`."""
        raise NotImplementedError

    def layers(self) -> Iterator[Layer]:
        """Yield this layer, or the layers that it joins, innermost and in order."""
        yield self


class Joined(Layer):
    """A layer whose parameters are those of others, named by their places."""

    def __init__(self, **parts: Layer) -> None:
        self.parts = parts

    @property
    def parameters(self) -> dict[str, Array]:  # type: ignore[override]
        """The parts' parameters."""
        return {f"{place}.{name}": v for place, part in self.parts.items() for name, v in part.parameters.items()}

    @property
    def gradients(self) -> dict[str, Array]:  # type: ignore[override]
        """The parts' gradients."""
        return {f"{place}.{name}": v for place, part in self.parts.items() for name, v in part.gradients.items()}

    def layers(self) -> Iterator[Layer]:
        for part in self.parts.values():
            yield from part.layers()


class Sequential(Joined):
    """One layer after another."""

    def __init__(self, *parts: Layer) -> None:
        super().__init__(**{str(place): part for place, part in enumerate(parts)})

    def forward(self, x: Array, train: bool = True) -> Array:
        for part in self.parts.values():
            x = part.forward(x, train)
        return x

    def backward(self, dy: Array) -> Array:
        for part in reversed(self.parts.values()):
            dy = part.backward(dy)
        return dy


class Residual(Joined):
    """A branch added to its input, or to a shortcut of it: y = shortcut(x) + branch(x)."""

    def __init__(self, branch: Layer, shortcut: Layer | None = None) -> None:
        super().__init__(branch=branch, shortcut=shortcut or Sequential())

    def forward(self, x: Array, train: bool = True) -> Array:
        return self.parts["shortcut"].forward(x, train) + self.parts["branch"].forward(x, train)

    def backward(self, dy: Array) -> Array:
        return self.parts["shortcut"].backward(dy) + self.parts["branch"].backward(dy)


class Dense(Layer):
    """Wx + b for rows x, with W of shape (outputs, inputs)."""

    def __init__(self, weight: Array, bias: bool = True) -> None:
        super().__init__(weight=weight)
        if bias:
            self.parameters["bias"] = np.zeros(len(weight), weight.dtype)

    def forward(self, x: Array, train: bool = True) -> Array:
        self._x = x
        y = x @ self.parameters["weight"].T
        return y + self.parameters["bias"] if "bias" in self.parameters else y

    def backward(self, dy: Array) -> Array:
        self.gradients = {"weight": dy.T @ self._x}
        if "bias" in self.parameters:
            self.gradients["bias"] = dy.sum(axis=0)
        return dy @ self.parameters["weight"]


class Convolution(Layer):
    """Images (samples, channels, height, width) with kernels (outputs, channels, k, k), by im2col.

    Parameters
    ----------
    weight : ndarray
        The kernels.
    bias : bool, optional
    stride : int, optional
    padding : int, optional
        Zeros on each side; half the kernel if left out, so that at stride 1 the size stays.

    Attributes
    ----------
    columns : ndarray
        The latest input's patches, (samples, channels, height, width of the output, k, k).
    """

    def __init__(self, weight: Array, bias: bool = True, stride: int = 1, padding: int | None = None) -> None:
        super().__init__(weight=weight)
        if bias:
            self.parameters["bias"] = np.zeros(len(weight), weight.dtype)
        self.stride = stride
        self.padding = weight.shape[2] // 2 if padding is None else padding

    def forward(self, x: Array, train: bool = True) -> Array:
        weight, p, s = self.parameters["weight"], self.padding, self.stride
        padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
        self._padded = padded.shape
        windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
        self.columns = windows[:, :, ::s, ::s]
        y = np.tensordot(self.columns, weight, axes=((1, 4, 5), (1, 2, 3)))
        if "bias" in self.parameters:
            y += self.parameters["bias"]
        return np.ascontiguousarray(np.moveaxis(y, 3, 1))

    def backward(self, dy: Array) -> Array:
        weight, p, s = self.parameters["weight"], self.padding, self.stride
        self.gradients = {"weight": np.tensordot(dy, self.columns, axes=((0, 2, 3), (0, 2, 3)))}
        if "bias" in self.parameters:
            self.gradients["bias"] = dy.sum(axis=(0, 2, 3))
        patches = np.tensordot(weight, dy, axes=(0, 1))  # (channels, k, k, samples, height, width)
        height, width = dy.shape[2:]
        dx = np.zeros(self._padded, dy.dtype)
        for i in range(weight.shape[2]):
            for j in range(weight.shape[3]):
                part = np.moveaxis(patches[:, i, j], 0, 1)
                dx[:, :, i : i + s * height : s, j : j + s * width : s] += part
        return dx[:, :, p : dx.shape[2] - p, p : dx.shape[3] - p]


class ReLU(Layer):
    """max(x, 0)."""

    def forward(self, x: Array, train: bool = True) -> Array:
        self._on = x > 0
        return x * self._on

    def backward(self, dy: Array) -> Array:
        return dy * self._on


class Tanh(Layer):
    """The hyperbolic tangent."""

    def forward(self, x: Array, train: bool = True) -> Array:
        self._y = np.tanh(x)
        return self._y

    def backward(self, dy: Array) -> Array:
        return dy * (1 - self._y**2)


class Sigmoid(Layer):
    """1/(1 + e⁻ˣ)."""

    def forward(self, x: Array, train: bool = True) -> Array:
        self._y = sigmoid(x)
        return self._y

    def backward(self, dy: Array) -> Array:
        return dy * self._y * (1 - self._y)


class Flatten(Layer):
    """Rows of all that belongs to a sample."""

    def forward(self, x: Array, train: bool = True) -> Array:
        self._shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, dy: Array) -> Array:
        return dy.reshape(self._shape)


class GlobalAverage(Layer):
    """The mean over all positions of a channel."""

    def forward(self, x: Array, train: bool = True) -> Array:
        self._shape = x.shape
        return x.mean(axis=(2, 3))

    def backward(self, dy: Array) -> Array:
        share = dy / (self._shape[2] * self._shape[3])
        return np.broadcast_to(share[:, :, None, None], self._shape)


def sigmoid(x: Array) -> Array:
    """Return 1/(1 + e⁻ˣ), without overflow."""
    small = np.exp(-abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)
