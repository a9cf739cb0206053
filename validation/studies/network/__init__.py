"""Small networks in NumPy, whose normalization layers are refbn's own passes.

A layer has ``forward(x, train)``, ``backward(dy)``, ``parameters`` and ``gradients``; `Sequential` joins layers:

>>> import numpy as np
>>> from validation.studies import network
>>> generator = np.random.default_rng(0)
>>> net = network.perceptron(generator, (64, 32, 32, 10), "BN")
>>> optimizer = network.SGD(net, rate=0.1, momentum=0.9)
>>> x, labels = generator.standard_normal((16, 64)), np.arange(16) % 10
>>> before = network.softmax_cross_entropy(net.forward(x), labels)[0]
>>> for _ in range(20):
...     loss, dlogits = network.softmax_cross_entropy(net.forward(x), labels)
...     dx = net.backward(dlogits)
...     optimizer.step()
>>> loss < before / 10
True
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from validation.studies.network.coupling import Coupling, Flow
from validation.studies.network.initialization import he, xavier
from validation.studies.network.layers import (
    Array,
    Convolution,
    Dense,
    Flatten,
    GlobalAverage,
    Layer,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    Tanh,
    sigmoid,
)
from validation.studies.network.losses import accuracy, log_sigmoid_loss, softmax, softmax_cross_entropy
from validation.studies.network.norms import (
    KINDS,
    BatchNorm,
    BatchRenorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    WeightStandardized,
    normalized,
)
from validation.studies.network.optimizers import SGD, Adamax
from validation.studies.network.recurrent import Recurrent

__all__ = [
    "KINDS",
    "SGD",
    "Adamax",
    "Array",
    "BatchNorm",
    "BatchRenorm",
    "Convolution",
    "Coupling",
    "Dense",
    "Flatten",
    "Flow",
    "GlobalAverage",
    "GroupNorm",
    "InstanceNorm",
    "Layer",
    "LayerNorm",
    "ReLU",
    "Recurrent",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "WeightStandardized",
    "accuracy",
    "he",
    "log_sigmoid_loss",
    "normalized",
    "perceptron",
    "sigmoid",
    "softmax",
    "softmax_cross_entropy",
    "xavier",
]


def perceptron(
    generator: np.random.Generator,
    widths: Sequence[int],
    kind: str = "none",
    *,
    activation: Callable[[], Layer] = ReLU,
    initialize: Callable[..., Array] = he,
    dtype: Any = np.float64,
    **options: Any,
) -> Sequential:
    """Return dense layers, all but the last normalized and followed by an activation.

    Parameters
    ----------
    generator : numpy.random.Generator
    widths : sequence of int
        Of the input, the hidden layers and the output.
    kind : str, optional
        How hidden layers are normalized: one of `KINDS`.
    activation, initialize : callable, optional
    dtype : dtype, optional
    **options
        For the norms.
    """
    layers: list[Layer] = []
    for inputs, outputs in itertools.pairwise(widths[:-1]):
        layers += normalized(kind, Dense(initialize(generator, (outputs, inputs), dtype)), **options)
        layers.append(activation())
    return Sequential(*layers, Dense(initialize(generator, (widths[-1], widths[-2]), dtype)))
