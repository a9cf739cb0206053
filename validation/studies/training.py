"""What the studies of batch norm's benefits and costs share: images, training, and what counts as an effect."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import refbn
from validation.studies import data, network, understanding

__all__ = [
    "CLEAR",
    "LIMIT",
    "Task",
    "blocked_shares",
    "clear",
    "discrepancy",
    "memory",
    "norms",
    "spread",
    "task",
    "train",
]

CLEAR = 2.0
"""An effect is clear if its mean over the seeds is more than so many of their standard deviations from zero."""
LIMIT = 1500
"""How many images are learnt from at most."""

Array = network.Array


@dataclass(frozen=True, eq=False)
class Task:
    """Images to learn from, others to be tested with, and their labels; of either, the first axis is the images'."""

    x: Array
    labels: Array
    held_x: Array
    held_labels: Array

    @property
    def features(self) -> int:
        """How many numbers an image has, or how many channels."""
        return int(self.x.shape[1])

    def some(self, generator: np.random.Generator, count: int) -> Task:
        """Return the task with fewer images to learn from, drawn at random."""
        chosen = generator.permutation(len(self.x))[:count]
        return Task(self.x[chosen], self.labels[chosen], self.held_x, self.held_labels)

    def accuracy(self, net: network.Layer) -> float:
        """Return the accuracy on the held-out images, with running statistics."""
        return network.accuracy(net.forward(self.held_x, train=False), self.held_labels)


@cache
def task(path: Path | None, *, images: bool = False) -> Task:
    """Return the data's images, as rows of mean 0 and standard deviation 1 or as `images` with channels.

    Of large sets the first `LIMIT` are learnt from, so that a study takes much the same time.
    """
    found = data.load(path)
    learnt, held = (found.train_images - 0.5, found.test_images - 0.5) if images else found.rows()
    return Task(learnt[:LIMIT], found.train_labels[:LIMIT], held, found.test_labels)


def train(
    net: network.Layer,
    given: Task,
    generator: np.random.Generator,
    *,
    m: int,
    steps: int,
    rate: float,
    watch: Callable[[int], bool | None] | None = None,
) -> list[float]:
    """Learn by plain gradient descent on the mean cross-entropy; return the losses of all steps.

    Parameters
    ----------
    net : Layer
        It is changed.
    given : Task
    generator : numpy.random.Generator
        It chooses the batches.
    m, steps : int
    rate : float
    watch : callable, optional
        Called after each step with the number of steps done; true ends the training.

    Notes
    -----
    Training also ends where the loss is no finite number any more; that loss is the last one.
    """
    optimizer = network.SGD(net, rate)
    losses = []
    chosen = understanding.batches(generator, len(given.x), m)
    with np.errstate(over="ignore", invalid="ignore"):
        for step, rows in enumerate(itertools.islice(chosen, steps), 1):
            loss, dlogits = network.softmax_cross_entropy(net.forward(given.x[rows]), given.labels[rows])
            losses.append(loss)
            if not np.isfinite(loss):
                break
            net.backward(dlogits)
            optimizer.step()
            if watch is not None and watch(step):
                break
    return losses


def norms(net: network.Layer) -> list[Any]:
    """Return the layers that standardize something: their inputs or their weights."""
    return [layer for layer in net.layers() if hasattr(layer, "saved")]


def blocked_shares(net: network.Layer) -> Array:
    """Return what each standardization of a network blocked of its latest gradient, and that gradient: (norms, 2).

    Both as squared lengths. The gradient is that which arrives at the standardized activations, or weights.
    """
    found = []
    for layer in norms(net):
        dy = layer.linear.gradients["weight"] if isinstance(layer, network.WeightStandardized) else layer.dy
        split = refbn.blindness(layer.saved, dy)
        found.append([np.square(part).sum() for part in (split.blocked, split.blocked + split.passed)])
    return np.array(found)


def discrepancy(
    net: network.Layer, given: Task, generator: np.random.Generator, m: int, most: int | None = None
) -> tuple[float, float]:
    """Compare a network's training mode with its testing mode, on held-out images in batches of m, at most so many.

    Returns
    -------
    change : float
        How far the outputs for an image are apart, √mean‖z_batch − z_running‖², over the spread of the latter.
    accuracy : float
        With batch statistics.
    """
    running = net.forward(given.held_x, train=False)
    an_epoch = data.shuffled(generator, len(given.held_x), m)
    chosen = np.array(list(itertools.islice(an_epoch, most)))
    logits = np.array([net.forward(given.held_x[rows]) for rows in chosen])
    change = float(np.square(logits - running[chosen]).sum(axis=2).mean())
    spread = float(np.square(running - running.mean(axis=0)).sum(axis=1).mean())
    return math.sqrt(change / spread), float((logits.argmax(axis=2) == given.held_labels[chosen]).mean())


def memory(m: int) -> float:
    """Return the momentum with which running statistics remember 640 samples: 0.1 for batches of 64."""
    return 0.1 * m / 64


def spread(values: Array, axis: int = 0) -> Array:
    """Return the sample standard deviation over the seeds, 0 of a single one, for the bars of figures."""
    return values.std(axis=axis, ddof=1) if values.shape[axis] > 1 else np.zeros_like(values.mean(axis=axis))


def clear(effects: Sequence[float] | Array) -> bool:
    """Tell whether an effect, one for each seed, is clearly positive; of a single seed, whether it is positive."""
    values = np.asarray(effects, np.float64)
    return bool(values.mean() > CLEAR * (values.std(ddof=1) if len(values) > 1 else 0.0))
