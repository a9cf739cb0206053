"""What the studies of blindness share of their networks: images, and the gradients that arrive at the norms."""

from __future__ import annotations

import numpy as np

from validation.studies import data, network
from validation.studies.study import Context
from validation.studies.training import Task, blocked_shares

__all__ = ["blocked_share", "called", "draw", "gradient", "images"]

Array = network.Array


def images(ctx: Context) -> Task:
    """Return the images that the study was given, as rows."""
    loaded = data.load(ctx.data)
    x, held_x = loaded.rows()
    return Task(x, loaded.train_labels, held_x, loaded.test_labels)


def called(ctx: Context) -> str:
    """Return what they are called."""
    return "digits" if ctx.data is None else data.recognize(ctx.data)[0]


def draw(given: Task, generator: np.random.Generator, m: int) -> tuple[Array, Array]:
    """Return m different images at random, and their labels."""
    chosen = generator.choice(len(given.x), m, replace=False)
    return given.x[chosen], given.labels[chosen]


def gradient(net: network.Layer, x: Array, labels: Array) -> None:
    """Run a batch forwards and backwards, so that each norm holds what arrives at it."""
    _, dlogits = network.softmax_cross_entropy(net.forward(x), labels)
    net.backward(dlogits)


def blocked_share(net: network.Layer, given: Task, generator: np.random.Generator, m: int, batches: int) -> float:
    """Return the blocked share of the gradients' squared length over all norms of a network and some batches of m."""
    blocked = whole = 0.0
    for _ in range(batches):
        gradient(net, *draw(given, generator, m))
        for blocked_here, whole_here in blocked_shares(net):
            blocked += float(blocked_here)
            whole += float(whole_here)
    return blocked / whole
