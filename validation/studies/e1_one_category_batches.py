"""E1: a classifier of images, with batches of random samples and with batches of one category each.

The networks are perceptrons with two hidden layers of `WIDTH`, normalized by nothing, batch norm or layer norm, trained
by plain gradient descent. Accuracy is measured with running statistics.

Batch norm does two things to a batch of one category: its forward pass erases the category's mean from every channel,
and its backward pass blocks the gradient's parts along 1 and x̂. Two controls have one of them each:

* *forward alone*: the batch's statistics, but no gradient through μ and s, so that nothing is blocked;
* *backward alone*: the running statistics, so that nothing is erased, but the gradient goes through batch norm's
  backward pass. It is not the gradient of anything.

Criterion. A network *learns* if its accuracy is within `CLOSE` of that of the plain network with random batches, and
*fails* if it is below `FAILS` times chance. Confirmed: with random batches all learn; with one category each batch norm
fails while the others learn, and more than half of its gradient is blocked; and the blocked gradient is the cause, as
forward alone learns and backward alone does not. Partly: all of this but the cause.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import refbn
from validation.studies import data, network
from validation.studies.study import Context, Finding, Measured, Study, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["STUDY", "BackwardAlone", "judge"]

Array = network.Array

WIDTH, BATCH, RATE = 64, 32, 0.1
STEPS, QUICK_STEPS = 1260, 420  # 30 and 10 epochs of the digits
CLOSE, FAILS = 0.05, 2.0
EVERY = 20
"""How often the blocked part is measured."""

RANDOM, ONE = "random", "one category"
BATCHES: dict[str, Callable[[np.random.Generator, Array], Iterator[Array]]] = {
    RANDOM: lambda generator, labels: data.shuffled(generator, len(labels), BATCH),
    ONE: lambda generator, labels: data.by_category(generator, labels, BATCH),
}
LABELS = {RANDOM: "random batches", ONE: "one category each"}
ARMS = {
    "none": "no norm",
    "LN": "layer norm",
    "BN": "batch norm",
    "forward": "BN’s forward alone",
    "backward": "BN’s backward alone",
}
MAIN = ("none", "LN", "BN")
NORMED = ("LN", "BN")


class BackwardAlone(network.BatchNorm):
    """Running statistics in the forward pass of rows, and batch norm's own backward pass."""

    def forward(self, x: Array, train: bool = True) -> Array:
        """Return y; in training the running statistics have seen the batch."""
        y = super().forward(x, train)
        if not train:
            return y
        self._xhat = refbn.inference(x, self.norm.running_mean, self.norm.running_var, eps=self.norm.eps).y
        return self.norm.gamma * self._xhat + self.norm.beta

    def backward(self, dy: Array) -> Array:
        """Return batch norm's dx."""
        dx = super().backward(dy)
        self.gradients["gamma"] = (dy * self._xhat).sum(axis=0)
        return dx


@dataclass(frozen=True, eq=False)
class _Trained:
    """What is left of a network: accuracies, the blocked part of the gradient over time, and features of images."""

    train: float
    test: float
    blocked: list[float]
    features: Array


def judge(test: dict[tuple[str, str], float], blocked: float, chance: float) -> tuple[Verdict, str]:
    """Return the verdict, from test accuracies by arm and batches, and batch norm's blocked part of the gradient."""
    learns = {key: value >= test["none", RANDOM] - CLOSE for key, value in test.items()}
    result = (
        all(learns[arm, RANDOM] for arm in MAIN)
        and all(learns[arm, ONE] for arm in MAIN if arm != "BN")
        and test["BN", ONE] < FAILS * chance
        and blocked > 0.5
    )
    numbers = (
        f"with one category in a batch the accuracy is {test['BN', ONE]:.2f} with batch norm, {test['LN', ONE]:.2f} "
        f"with layer norm and {test['none', ONE]:.2f} without any ({test['BN', RANDOM]:.2f}, {test['LN', RANDOM]:.2f} "
        f"and {test['none', RANDOM]:.2f} with random batches); batch norm blocks {blocked:.0%} of its gradient"
    )
    controls = (
        f"batch norm's forward pass alone ends at {test['forward', ONE]:.2f}, its backward pass alone at "
        f"{test['backward', ONE]:.2f}"
    )
    if not result:
        return "not confirmed", f"{numbers}; {controls}."
    if learns["forward", ONE] and not learns["backward", ONE]:
        return "confirmed", f"{numbers}. The blocked gradient is the cause: {controls}."
    return "partly", f"{numbers}. But the blocked gradient is not the only cause: {controls}."


def run(context: Context) -> Finding:
    """Train all networks for all seeds."""
    images = data.load(context.data)
    classes = int(images.train_labels.max()) + 1
    chance = 1 / classes
    keys = [(arm, batches) for batches in BATCHES for arm in ARMS]
    jobs = [(seed, *key) for seed in context.seeds for key in keys]
    found: dict[tuple[str, str], list[_Trained]] = {key: [] for key in keys}
    for seed, arm, batches in context.progress(jobs, "networks"):
        found[arm, batches].append(_train(context, images, classes, seed, arm, batches))

    test = {
        key: Measured(f"test accuracy, {ARMS[key[0]]}, {key[1]}", tuple(t.test for t in of))
        for key, of in found.items()
    }
    train = {
        key: Measured(f"training accuracy, {ARMS[key[0]]}, {key[1]}", tuple(t.train for t in of))
        for key, of in found.items()
    }
    blocked = {
        (arm, batches): Measured(
            f"blocked part of the gradient, {ARMS[arm]}, {batches}",
            tuple(float(np.mean(t.blocked)) for t in found[arm, batches]),
            expected={("BN", ONE): "≈ 0.8", ("BN", RANDOM): f"2/{BATCH} if isotropic"}.get((arm, batches), ""),
        )
        for arm in NORMED
        for batches in BATCHES
    }
    verdict, because = judge({key: row.mean for key, row in test.items()}, blocked["BN", ONE].mean, chance)
    figure = _figure(found, images, blocked, chance)
    caption = (
        f"What networks learn from batches of {BATCH} images of all categories (upper row) and of one category each "
        "(lower row). Points: test images in the plane of the first two principal components of the last hidden layer, "
        f"a colour and a number for each category (seed {context.seeds[0]}); above, the mean test accuracy. Left: "
        "accuracy by seed; dashed: chance. Right: the part of the upstream gradient that the last norm blocks, means "
        "and ranges of the seeds. Batches of one category take the accuracy with batch norm from "
        f"{test['BN', RANDOM].mean:.2f} to {test['BN', ONE].mean:.2f}, with {blocked['BN', ONE].mean:.0%} of the "
        f"gradient blocked, against {test['none', ONE].mean:.2f} without a norm and {test['LN', ONE].mean:.2f} with "
        "layer norm. Batch norm’s forward pass alone, with no gradient through mean and deviation and so nothing "
        f"blocked, ends at {test['forward', ONE].mean:.2f}; its backward pass alone, with the means left in, at "
        f"{test['backward', ONE].mean:.2f}."
    )
    details = {
        "images": images.name,
        "blocked every": EVERY,
        "networks": [
            {
                "arm": arm,
                "batches": batches,
                "train": [t.train for t in of],
                "test": [t.test for t in of],
                "blocked": [t.blocked for t in of],
            }
            for (arm, batches), of in found.items()
        ],
    }
    return Finding(verdict, because, (*test.values(), *train.values(), *blocked.values()), figure, caption, details)


def _network(generator: np.random.Generator, arm: str, inputs: int, classes: int) -> network.Sequential:
    if arm in MAIN:
        return network.perceptron(generator, (inputs, WIDTH, WIDTH, classes), arm)
    if arm == "forward":
        return network.perceptron(generator, (inputs, WIDTH, WIDTH, classes), "BN", stop_gradient=True)
    layers: list[network.Layer] = []
    for features in (inputs, WIDTH):
        layers += [network.Dense(network.he(generator, (WIDTH, features))), BackwardAlone(WIDTH), network.ReLU()]
    return network.Sequential(*layers, network.Dense(network.he(generator, (classes, WIDTH))))


def _train(context: Context, images: data.Dataset, classes: int, seed: int, arm: str, batches: str) -> _Trained:
    x, x_test = images.rows()
    labels = images.train_labels
    # All arms of a seed begin with the same weights and see the same batches.
    net = _network(context.generator(seed, "weights"), arm, x.shape[1], classes)
    generator = context.generator(seed, batches)
    norms = [layer for layer in net.layers() if isinstance(layer, (network.BatchNorm, network.GroupNorm))]
    optimizer = network.SGD(net, RATE)
    blocked: list[float] = []
    steps = QUICK_STEPS if context.quick else STEPS
    epochs = itertools.chain.from_iterable(BATCHES[batches](generator, labels) for _ in itertools.count())
    for step, batch in enumerate(itertools.islice(epochs, steps)):
        _, dlogits = network.softmax_cross_entropy(net.forward(x[batch]), labels[batch])
        net.backward(dlogits)
        if arm in NORMED and step % EVERY == 0:
            blocked.append(refbn.blindness(norms[-1].saved, norms[-1].dy).total)
        optimizer.step()
    train = network.accuracy(net.forward(x, train=False), labels)
    *hidden, last = net.parts.values()
    features = network.Sequential(*hidden).forward(x_test, train=False)
    return _Trained(train, network.accuracy(last.forward(features), images.test_labels), blocked, features)


def _figure(
    found: dict[tuple[str, str], list[_Trained]],
    images: data.Dataset,
    blocked: dict[tuple[str, str], Measured],
    chance: float,
) -> Figure:
    from validation.studies import style

    figure = style.blank(height=6.4)
    upper, lower = figure.subfigures(2, 1, height_ratios=(3.6, 2.8))
    for row, batches in zip(upper.subplots(len(BATCHES), len(ARMS)), BATCHES, strict=True):
        row[0].set_ylabel(LABELS[batches])
        for one, arm in zip(row, ARMS, strict=True):
            of = found[arm, batches]
            _scatter(one, of[0].features, images.test_labels)
            name = f"{ARMS[arm]}\n" if batches == RANDOM else ""
            one.set_title(f"{name}accuracy {np.mean([t.test for t in of]):.2f}", fontsize=9)
    left, right = lower.subplots(1, 2)
    for place, batches in enumerate(BATCHES):
        for number, arm in enumerate(ARMS):
            values = [t.test for t in found[arm, batches]]
            at = number + (place - 0.5) * 0.3
            left.plot(
                [at] * len(values),
                values,
                "os"[place],
                color=style.CYCLE[place],
                alpha=0.7,
                clip_on=False,
                label=LABELS[batches] if number == 0 else None,
            )
    left.axhline(chance, color="#555555", linestyle="--", linewidth=1)
    left.set(ylim=(0, 1), ylabel="test accuracy")
    left.set_xticks(range(len(ARMS)), [name.replace(" ", "\n") for name in ARMS.values()])
    left.grid(axis="x", visible=False)
    left.legend(loc="center left")
    for arm, batches in blocked:
        curves = np.array([t.blocked for t in found[arm, batches]])
        steps = EVERY * np.arange(curves.shape[1])
        line = dict(style.of(arm), marker=None, linestyle="--" if batches == RANDOM else "-")
        line["label"] = f"{style.NAMES[arm]}, {batches}"
        right.plot(steps, curves.mean(axis=0), **line)
        right.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=line["color"], alpha=0.15, lw=0)
    right.set(ylim=(0, 1), xlabel="step of training", ylabel="blocked part of gradient")
    right.legend(loc="center left", bbox_to_anchor=(0.02, 0.4), fontsize=8)
    return figure


def _scatter(axes: Axes, features: Array, labels: Array) -> None:
    """Draw features in the plane of their first two principal components."""
    from validation.studies import style

    centred = features - features.mean(axis=0)
    plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    axes.scatter(*plane.T, c=labels, s=3, cmap="tab10", linewidths=0, rasterized=True)
    for label in np.unique(labels):
        middle = plane[labels == label].mean(axis=0)
        style.outlined(axes, *middle, str(label), fontsize=8)
    axes.set(xticks=[], yticks=[])


STUDY = Study(
    id="E1",
    title="Batches of one category",
    claim="Where all samples of a batch belong to one category, a network with batch norm learns nothing, because the "
    "gradient that they share is blocked, while one with layer norm or without any learns.",
    source="Zhou et al. 2022, experiments on classification",
    run=run,
)
