"""U1: what batch norm is used for: convergence, tolerance of hyperparameters and initial weights, need of data.

Perceptrons with five hidden layers, with batch norm and without, learn digits by plain gradient descent with batches of
64 for a fixed number of steps. An accuracy is good if it is at least 0.95 of the best that any of them reaches in the
mean. Measured:

convergence       steps until the accuracy on held-out images is good, each at its best learning rate
hyperparameters   learning rates, on a grid of half decades, from which the accuracy at the end is good, in decades
initialization    the same for a factor of He's initial weights, each at its best learning rate
data              accuracy at the end with fewer images to learn from, each at its best learning rate

The best learning rate is that with which the accuracy is good first in the mean, or highest if it never is.

Criterion: batch norm is ahead in each if the difference, seed by seed, is clear (of the accuracies: in the mean over
the numbers of images; of the steps: their logarithms). Confirmed if it is ahead in all four, partly in some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from validation.studies import network, training, understanding
from validation.studies.study import Context, Finding, Measured, Study, Verdict

__all__ = ["STUDY", "Benefits", "best_rate", "decades", "judge", "steps_until"]

KINDS = ("BN", "none")
DEPTH, WIDTH = 5, 64
BATCH = 64
EVERY = 5
"""Steps between two looks at the accuracy."""
RATES = tuple(10.0 ** np.arange(-3, 1.5, 0.5))
SCALES = tuple(10.0 ** np.arange(-1.5, 2, 0.5))
IMAGES = (50, 100, 200, 400, 800)
GOOD = 0.95

Curve = list[float]
"""Accuracies, a look each; the last one is that at the end."""


def learn(ctx: Context, seed: int, kind: str, rate: float, steps: int, scale: float = 1.0, images: int = 0) -> Curve:
    """Train a network, with all images or some."""
    given = training.task(ctx.data)
    if images:
        given = given.some(ctx.generator(seed, "images"), images)

    def initialize(generator: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return scale * network.he(generator, shape, dtype)

    widths = (given.features, *(WIDTH,) * DEPTH, 10)
    net = network.perceptron(ctx.generator(seed, "weights"), widths, kind, initialize=initialize)
    curve: Curve = []

    def watch(step: int) -> None:
        if step % EVERY == 0:
            curve.append(given.accuracy(net))

    m = min(BATCH, len(given.x))
    losses = training.train(net, given, ctx.generator(seed, "batches"), m=m, steps=steps, rate=rate, watch=watch)
    if len(losses) < steps:  # it has diverged, and no accuracy means anything any more
        curve += [0.0] * (steps // EVERY - len(curve))
    return curve


def steps_until(curve: Curve, target: float) -> int:
    """Return after how many steps an accuracy is reached first; a look more than there are if it is not."""
    return EVERY * (1 + next((look for look, accuracy in enumerate(curve) if accuracy >= target), len(curve)))


def best_rate(curves: Mapping[float, Sequence[Curve]], target: float) -> float:
    """Return the learning rate by the rule above; curves by rate and seed."""

    def rank(rate: float) -> tuple[float, float]:
        steps = float(np.mean([steps_until(one, target) for one in curves[rate]]))
        return steps, -float(np.mean([one[-1] for one in curves[rate]]))

    return min(curves, key=rank)


def decades(accuracies: Sequence[float], target: float) -> float:
    """Return how much of a grid of half decades is good."""
    return 0.5 * sum(accuracy >= target for accuracy in accuracies)


class Benefits(NamedTuple):
    """What was measured of a kind, a number for each seed."""

    steps: list[float]
    rates: list[float]
    scales: list[float]
    accuracy: list[float]


def judge(found: Mapping[str, Benefits]) -> tuple[Verdict, str]:
    """Judge by the criterion above."""
    ours, other = (found[kind] for kind in KINDS)
    effects = {
        "convergence": np.log(np.divide(other.steps, ours.steps)),
        "hyperparameters": np.subtract(ours.rates, other.rates),
        "initialization": np.subtract(ours.scales, other.scales),
        "data": np.subtract(ours.accuracy, other.accuracy),
    }
    ahead = {name: training.clear(effect) for name, effect in effects.items()}
    mean = {kind: [float(np.mean(part)) for part in found[kind]] for kind in KINDS}
    told = (
        f"steps {mean['BN'][0]:.0f} against {mean['none'][0]:.0f}",
        f"learning rates over {mean['BN'][1]:.1f} against {mean['none'][1]:.1f} decades",
        f"initial weights over {mean['BN'][2]:.1f} against {mean['none'][2]:.1f} decades",
        f"accuracy with few images {mean['BN'][3]:.1%} against {mean['none'][3]:.1%}",
    )
    parts = [
        f"{words} ({'ahead' if is_so else 'not ahead'})" for words, is_so in zip(told, ahead.values(), strict=True)
    ]
    return understanding.verdict(list(ahead.values())), f"Batch norm against none: {'; '.join(parts)}"


def run(ctx: Context) -> Finding:
    """Measure and judge."""
    steps = 50 if ctx.quick else 150
    rates, scales, images = (RATES[1::2], SCALES[1::2], IMAGES[1::2]) if ctx.quick else (RATES, SCALES, IMAGES)
    step = 0.5 * (2 if ctx.quick else 1)

    def sweep(what: str, tasks: Sequence[tuple[str, float]], **options: Any) -> dict[str, dict[float, list[Curve]]]:
        found: dict[str, dict[float, list[Curve]]] = {kind: {} for kind in KINDS}
        for kind, value in ctx.progress(tasks, what):
            own = {name: of(kind, value) for name, of in options.items()}
            found[kind][value] = [learn(ctx, seed, kind, steps=steps, **own) for seed in ctx.seeds]
        return found

    def grid(values: Sequence[float]) -> list[tuple[str, float]]:
        return [(kind, value) for kind in KINDS for value in values]

    by_rate = sweep("learning rates", grid(rates), rate=lambda _, value: value)
    highest = max(float(np.mean([one[-1] for one in row])) for by in by_rate.values() for row in by.values())
    target = GOOD * highest
    best = {kind: best_rate(by_rate[kind], target) for kind in KINDS}
    by_scale = sweep("initial weights", grid(scales), rate=lambda kind, _: best[kind], scale=lambda _, value: value)
    by_images = sweep("images", grid(images), rate=lambda kind, _: best[kind], images=lambda _, value: value)

    def ends(by: Mapping[float, Sequence[Curve]], place: int) -> list[float]:
        return [row[place][-1] for row in by.values()]

    count = len(ctx.seeds)
    found = {
        kind: Benefits(
            [float(steps_until(one, target)) for one in by_rate[kind][best[kind]]],
            [step / 0.5 * decades(ends(by_rate[kind], place), target) for place in range(count)],
            [step / 0.5 * decades(ends(by_scale[kind], place), target) for place in range(count)],
            [float(np.mean(ends(by_images[kind], place))) for place in range(count)],
        )
        for kind in KINDS
    }
    decided, because = judge(found)
    labels = {
        "steps": (f"steps until accuracy {target:.3f}", ""),
        "rates": ("learning rates that are good", "decades"),
        "scales": ("factors of the initial weights that are good", "decades"),
        "accuracy": (f"accuracy with {images[0]} to {images[-1]} images", ""),
    }
    numbers = [
        Measured(f"{label}, {kind}", tuple(getattr(found[kind], name)), unit, "better" if kind == "BN" else "")
        for name, (label, unit) in labels.items()
        for kind in KINDS
    ]
    numbers += [Measured(f"best learning rate, {kind}", (best[kind],)) for kind in KINDS]
    numbers += [
        Measured(f"accuracy with {count} images, {kind}", tuple(one[-1] for one in row))
        for kind in KINDS
        for count, row in by_images[kind].items()
    ]
    mean = {kind: [float(np.mean(part)) for part in found[kind]] for kind in KINDS}
    few = {kind: float(np.mean([one[-1] for one in by_images[kind][images[0]]])) for kind in KINDS}
    caption = (
        f"Perceptrons with {DEPTH} hidden layers, with batch norm and without. (a) At its best learning rate, an "
        f"accuracy of {target:.1%} (dotted) takes {mean['BN'][0]:.0f} steps with batch norm and {mean['none'][0]:.0f} "
        f"without. (b) It is reached at the end from learning rates over {mean['BN'][1]:.1f} decades with and "
        f"{mean['none'][1]:.1f} without, (c) from initial weights over {mean['BN'][2]:.1f} and {mean['none'][2]:.1f} "
        f"decades. (d) With {images[0]} to {images[-1]} images to learn from, the accuracy is {mean['BN'][3]:.1%} and "
        f"{mean['none'][3]:.1%} on average; with {images[0]}, {few['BN']:.1%} and {few['none']:.1%}. 0 is "
        f"divergence. Bands and bars: one standard deviation over {count} seeds."
    )
    sweeps = {"learning rates": by_rate, "initial weights": by_scale, "images": by_images}
    details = {
        "steps": steps,
        "target": target,
        "best learning rates": best,
        "measured": {kind: found[kind]._asdict() for kind in KINDS},
        "curves at the best rate": {kind: by_rate[kind][best[kind]] for kind in KINDS},
        "accuracies at the end": {
            name: {kind: {value: [one[-1] for one in row] for value, row in by[kind].items()} for kind in KINDS}
            for name, by in sweeps.items()
        },
    }
    return Finding(decided, because, tuple(numbers), _draw(sweeps, best, target), caption, details)


def _draw(sweeps: Mapping[str, Any], best: Mapping[str, float], target: float) -> Any:
    from validation.studies import style

    figure, axes = style.figure(2, 2, height=6.2)
    for kind in KINDS:
        curves = 100 * np.array(sweeps["learning rates"][kind][best[kind]])
        steps = EVERY * np.arange(1, curves.shape[1] + 1)
        mean, spread = curves.mean(axis=0), training.spread(curves)
        axes[0, 0].plot(steps, mean, **style.of(kind, marker=""))
        axes[0, 0].fill_between(steps, mean - spread, mean + spread, color=style.COLOURS[kind], alpha=0.2, linewidth=0)
        for one, by in zip(axes.ravel()[1:], sweeps.values(), strict=True):
            values = 100 * np.array([[curve[-1] for curve in row] for row in by[kind].values()])
            one.errorbar(list(by[kind]), values.mean(axis=1), training.spread(values, 1), capsize=2, **style.of(kind))
            one.set_xscale("log")
    for one, label, title in zip(
        axes.ravel(),
        ("steps", "learning rate", "factor of the initial weights", "images to learn from"),
        ("convergence", "hyperparameters", "initialization", "data"),
        strict=True,
    ):
        if title != "data":
            one.axhline(100 * target, color="black", linestyle=":", linewidth=1)
        one.set(xlabel=label, title=title, ylim=(0, 100))
    for one in axes[:, 0]:
        one.set_ylabel("accuracy on held-out images (%)")
    axes[1, 1].set_ylim(40, 100)
    images = list(sweeps["images"]["BN"])
    axes[1, 1].set_xticks(images, [str(count) for count in images])
    axes[1, 1].minorticks_off()
    axes[0, 0].legend(loc="lower right")
    style.letter(axes)
    return figure


STUDY = Study(
    id="U1",
    title="Benefits",
    claim="Batch norm speeds up convergence, tolerates more learning rates and initial weights, and needs less data.",
    source="Uppal 2020",
    run=run,
)
