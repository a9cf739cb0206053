"""What the studies of Bjorck et al., "Understanding Batch Normalization" (arXiv 1806.02375), share.

Networks with and without batch norm, of any depth, that let one look at what runs through them; training until it
diverges; and how far a measurement may lie from a formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

from validation.studies import data, network
from validation.studies.network import Array, Layer
from validation.studies.study import Context, Verdict

__all__ = [
    "DIVERGED",
    "KINDS",
    "LEVEL",
    "NAMES",
    "TRAINED",
    "Architecture",
    "Network",
    "Probe",
    "allowed",
    "batches",
    "build",
    "channel_moments",
    "convolutional",
    "dense",
    "descend",
    "final",
    "flat",
    "samples",
    "shaped",
    "spread",
    "verdict",
]

KINDS = ("none", "BN")
"""What the paper compares, by the names of `validation.studies.network.KINDS`."""

NAMES = {"none": "no normalization", "BN": "batch norm"}

LEVEL = 0.01
"""How often a study that compares with a formula may contradict it by chance, all its comparisons together."""

DIVERGED = 1000.0
"""Training has diverged with a loss above this, or with one that is not finite."""

TRAINED = math.log(10) / 2
"""Training has worked with a loss below this: half of what guessing among ten classes costs."""


# ---------------------------------------------------------------- data


def samples(context: Context) -> tuple[Array, Array]:
    """Return the training images (samples, channels, height, width), standardized over all pixels, and their labels."""
    loaded = data.load(context.data)
    return loaded.rows()[0].reshape(loaded.train_images.shape), loaded.train_labels


def batches(generator: np.random.Generator, count: int, size: int) -> Iterator[Array]:
    """Yield the indices of batches without end, one epoch after another."""
    if not 1 <= size <= count:
        raise ValueError(f"size: {size}, expected 1 to {count}, the number of samples")
    while True:
        yield from data.shuffled(generator, count, size)


# ---------------------------------------------------------------- networks


class Probe(Layer):
    """The identity, which keeps what runs through it: ``x`` forwards and ``dy`` backwards."""

    def forward(self, x: Array, train: bool = True) -> Array:
        """Keep and return x."""
        self.x = x
        return x

    def backward(self, dy: Array) -> Array:
        """Keep and return dy."""
        self.dy = dy
        return dy


@dataclass
class Network:
    """A network with its linear layers within reach.

    Attributes
    ----------
    layers : Sequential
    linear : list of Dense or Convolution
        From the input to the logits.
    sums : list of Probe
        Behind each of them.
    hidden : list of Probe
        Behind each ReLU.
    """

    layers: network.Sequential = field(default_factory=network.Sequential)
    linear: list[Any] = field(default_factory=list)
    sums: list[Probe] = field(default_factory=list)
    hidden: list[Probe] = field(default_factory=list)

    def loss(self, x: Array, labels: Array) -> float:
        """Return the mean cross-entropy of a batch, normalized by its own statistics."""
        return network.softmax_cross_entropy(self.layers.forward(x), labels)[0]

    def differentiate(self, x: Array, labels: Array) -> float:
        """Return the loss, and leave its gradients in the layers and probes."""
        loss, dlogits = network.softmax_cross_entropy(self.layers.forward(x), labels)
        self.layers.backward(dlogits)
        return loss

    def move(self, direction: dict[str, Array], length: float) -> None:
        """Add a multiple of a direction to the parameters."""
        for name, parameter in self.layers.parameters.items():
            parameter += length * direction[name]


def dense(
    generator: np.random.Generator,
    depth: int,
    kind: str,
    *,
    residual: bool,
    inputs: int,
    classes: int = 10,
    width: int = 64,
    initialize: Callable[..., Array] = network.xavier,
) -> Network:
    """Return a perceptron of so many linear layers; in residual ones, two of them are a block."""
    shapes = [(width, inputs)] + [(width, width)] * (depth - 2) + [(classes, width)]
    weights = [initialize(generator, shape) for shape in shapes]
    return _assemble([network.Dense(weight) for weight in weights], kind, residual=residual)


def convolutional(
    generator: np.random.Generator,
    depth: int,
    kind: str,
    *,
    residual: bool,
    inputs: int = 1,
    classes: int = 10,
    channels: int = 16,
    initialize: Callable[..., Array] = network.xavier,
) -> Network:
    """Return 3×3 convolutions, an average over the image, and a dense layer: so many linear layers in all."""
    shapes = [(channels, inputs, 3, 3)] + [(channels, channels, 3, 3)] * (depth - 2)
    linear: list[Any] = [network.Convolution(initialize(generator, shape)) for shape in shapes]
    linear.append(network.Dense(initialize(generator, (classes, channels))))
    return _assemble(linear, kind, residual=residual)


def _assemble(linear: list[Any], kind: str, *, residual: bool) -> Network:
    """Join linear layers: the first, the hidden ones (in blocks of two, each added to its input), the last."""
    made = Network(linear=linear)
    first, *middle, last = linear

    def normalized(layer: Any) -> list[Layer]:
        made.sums.append(Probe())
        return [layer, made.sums[-1], *network.normalized(kind, layer)[1:]]

    def activation() -> list[Layer]:
        made.hidden.append(Probe())
        return [network.ReLU(), made.hidden[-1]]

    parts = [*normalized(first), *activation()]
    if residual:
        if len(middle) % 2:
            raise ValueError(f"depth: {len(linear)}, expected an even number of layers for blocks of two")
        for one, two in zip(middle[::2], middle[1::2], strict=True):
            branch = network.Sequential(*normalized(one), *activation(), *normalized(two))
            parts += [network.Residual(branch), *activation()]
    else:
        for layer in middle:
            parts += [*normalized(layer), *activation()]
    if isinstance(first, network.Convolution):
        parts.append(network.GlobalAverage())
    made.sums.append(Probe())
    made.layers = network.Sequential(*parts, last, made.sums[-1])
    return made


def build(form: str, generator: np.random.Generator, depth: int, kind: str, x: Array, **options: Any) -> Network:
    """Return a "dense" or a "convolutional" network for images like those of `samples`."""
    if form == "dense":
        return dense(generator, depth, kind, inputs=math.prod(x.shape[1:]), **options)
    return convolutional(generator, depth, kind, inputs=x.shape[1], **options)


def shaped(form: str, x: Array) -> Array:
    """Return images as a network of some form takes them."""
    return x.reshape(len(x), -1) if form == "dense" else x


@dataclass(frozen=True)
class Architecture:
    """A network's name and the arguments of `build`."""

    name: str
    form: str
    depth: int
    residual: bool
    initialize: Callable[..., Array]

    def build(self, generator: np.random.Generator, kind: str, x: Array) -> Network:
        """Return a network for images like x."""
        options: dict[str, Any] = {"residual": self.residual, "initialize": self.initialize}
        return build(self.form, generator, self.depth, kind, x, **options)

    def shaped(self, x: Array) -> Array:
        """Return images as the network takes them."""
        return shaped(self.form, x)


def channel_moments(x: Array) -> tuple[Array, Array]:
    """Return each channel's mean and variance over the batch and all positions."""
    axes = (0, *range(2, x.ndim))
    return x.mean(axis=axes), x.var(axis=axes)


def flat(gradients: dict[str, Array]) -> Array:
    """Return all gradients as one vector."""
    return np.concatenate([part.ravel() for part in gradients.values()])


# ---------------------------------------------------------------- training


def descend(
    made: Network, x: Array, labels: Array, generator: np.random.Generator, *, rate: float, steps: int, size: int = 64
) -> list[float]:
    """Train by plain gradient descent on batches and return each batch's loss, until training ends or diverges."""
    optimizer = network.SGD(made.layers, rate)
    losses = []
    with np.errstate(over="ignore", invalid="ignore"):  # they are what divergence is
        for _, chosen in zip(range(steps), batches(generator, len(x), size), strict=False):
            losses.append(made.differentiate(x[chosen], labels[chosen]))
            if not losses[-1] <= DIVERGED:
                break
            optimizer.step()
    return losses


def final(losses: Sequence[float]) -> float:
    """Return the mean loss over the last fifth of training, or infinity if it diverged."""
    if not losses[-1] <= DIVERGED:
        return math.inf
    return float(np.mean(losses[-max(1, len(losses) // 5) :]))


# ---------------------------------------------------------------- judging


def allowed(comparisons: int) -> float:
    """Return how many standard errors the largest of some normal deviations may reach, at `LEVEL` (Bonferroni).

    The bound holds however the comparisons depend on one another.
    """
    return NormalDist().inv_cdf(1 - LEVEL / (2 * comparisons))


def verdict(holds: Sequence[bool]) -> Verdict:
    """Return the verdict on a claim of several parts: confirmed if all of them hold, partly if some do."""
    return "confirmed" if all(holds) else "partly" if any(holds) else "not confirmed"


def spread(values: Sequence[float]) -> str:
    """Return mean and sample standard deviation over seeds, as text."""
    mean = f"{np.mean(values):.3g}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.2g}"
