"""U3: batch statistics in training, running statistics afterwards, are not the same function.

Exactly: a population of a few rational numbers has variance σ². The mean of the biased variance over *all* batches of m
drawn with replacement is (1 − 1/m)σ²; over all without replacement from N it is (1 − 1/m)·N/(N − 1)·σ². Enumerated in
rational arithmetic.

In networks: the perceptrons of U2 with batch norm, trained with batches of m images. With the weights as they are then,
batches of m are drawn with replacement from the images that were learnt from, and the batch variance at each norm is
divided by the variance over all those images. In the first norm, whose inputs depend on their own image alone, the
mean must be 1 − 1/m, within the standard error of the mean over batches. In the second one the inputs depend on the
batch through the first, so there is no σ²; it is reported.

The discrepancy: by how much the outputs for an image change between the two modes, ‖z_batch − z_running‖ over
‖z_running − its mean‖; and the accuracy on held-out images in both, with batches of the m that was trained with.

Criterion, four parts: the exact statements hold; no mean in the first norm is further from 1 − 1/m than so many
comparisons allow at the level of 1 % (Bonferroni); the discrepancy of outputs falls from each m to the next; the
accuracy at the smallest m clearly differs between the modes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from refbn import exact
from validation.studies import network, training, understanding
from validation.studies.study import Context, Finding, Measured, Study, Verdict
from validation.studies.u2_small_batches import RATE, SIZES, WIDTHS

__all__ = ["STUDY", "Ratio", "Trained", "judge", "mean_variance", "population_variance", "predicted"]

POPULATION = 5
"""Numbers in the populations that are enumerated."""


# ---------------------------------------------------------------- exactly


def population_variance(values: Sequence[Fraction]) -> Fraction:
    """Return the variance of all values."""
    return mean_variance([tuple(values)])


def mean_variance(drawn: Sequence[tuple[Fraction, ...]]) -> Fraction:
    """Return the mean of the biased variances of some batches of one size, exactly."""
    variances = exact.moments(np.array(drawn, object)).var
    return sum((variances.fraction_parts(place)[0] for place in range(len(drawn))), Fraction(0)) / len(drawn)


def predicted(variance: Fraction, m: int, count: int | None = None) -> Fraction:
    """Return the expectation of the batch variance: with replacement, or without from ``count``."""
    expected = (1 - Fraction(1, m)) * variance
    return expected if count is None else expected * Fraction(count, count - 1)


def enumerated(generator: np.random.Generator) -> bool:
    """Tell whether the expectations are exactly as predicted in a random population."""
    values = [Fraction(int(value), 7) for value in generator.integers(-99, 100, POPULATION)]
    variance = population_variance(values)
    return all(
        mean_variance(list(itertools.product(values, repeat=m))) == predicted(variance, m)
        and mean_variance(list(itertools.combinations(values, m))) == predicted(variance, m, POPULATION)
        for m in range(2, POPULATION)
    )


# ---------------------------------------------------------------- in networks


@dataclass(frozen=True)
class Ratio:
    """Batch variance over population variance, of all channels together: mean and standard error over batches."""

    mean: float
    error: float


@dataclass(frozen=True)
class Trained:
    """What was measured of a trained network, with batches of the size it was trained with.

    Attributes
    ----------
    ratios : tuple of Ratio
        Of each norm.
    discrepancy : float
        Relative change of the outputs between the modes.
    with_batch, with_running : float
        Accuracy on held-out images.
    """

    ratios: tuple[Ratio, ...]
    discrepancy: float
    with_batch: float
    with_running: float


def variances(net: network.Layer, x: np.ndarray, *, train: bool) -> list[np.ndarray]:
    """Return the biased variance of what arrives at each norm, (channels,)."""
    net.forward(x, train)
    return [np.var(layer.saved.x, axis=0) for layer in training.norms(net)]


def learn(ctx: Context, seed: int, m: int, epochs: int, repeats: int) -> Trained:
    """Train a network and measure; ``repeats`` batches for the ratios."""
    given = training.task(ctx.data)
    widths = (given.features, *WIDTHS, 10)
    net = network.perceptron(ctx.generator(seed, "weights"), widths, "BN", momentum=training.memory(m))
    steps = epochs * (len(given.x) // m)
    training.train(net, given, ctx.generator(seed, "batches", m), m=m, steps=steps, rate=RATE * m)
    # First all that takes the running statistics, as every forward pass in training mode changes them.
    with_running = given.accuracy(net)
    populations = variances(net, given.x, train=False)
    change, with_batch = training.discrepancy(net, given, ctx.generator(seed, "modes", m), m)

    found = []
    for rows in ctx.generator(seed, "ratios", m).integers(len(given.x), size=(repeats, m)):
        own = variances(net, given.x[rows], train=True)
        found.append([np.mean(v[of_all > 0] / of_all[of_all > 0]) for v, of_all in zip(own, populations, strict=True)])
    means, errors = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / math.sqrt(repeats)
    return Trained(tuple(map(Ratio, means.tolist(), errors.tolist())), change, with_batch, with_running)


def first_deviations(found: Mapping[int, Sequence[Trained]]) -> list[float]:
    """Return how far the means in the first norm are from 1 − 1/m, in standard errors."""
    return [(one.ratios[0].mean - (1 - 1 / m)) / one.ratios[0].error for m, row in found.items() for one in row]


def judge(exactly: Sequence[bool], found: Mapping[int, Sequence[Trained]]) -> tuple[Verdict, str]:
    """Judge by the criterion above."""
    deviations = first_deviations(found)
    largest, limit = max(map(abs, deviations)), understanding.allowed(len(deviations))
    discrepancies = [float(np.mean([one.discrepancy for one in found[m]])) for m in sorted(found)]
    small = min(found)
    gap = np.array([one.with_running - one.with_batch for one in found[small]])
    differs = training.clear(np.sign(gap.mean()) * gap)
    holds = [
        all(exactly),
        largest <= limit,
        all(above > below for above, below in itertools.pairwise(discrepancies)),
        differs,
    ]
    told = (
        f"E(batch variance) = (1 − 1/m)σ² exactly in {sum(exactly)} of {len(exactly)} enumerated populations, in the "
        f"first norm within {largest:.1f} standard errors ({limit:.1f} allowed); outputs change between the modes by "
        f"{discrepancies[0]:.0%} of their spread at m = {small}, by {discrepancies[-1]:.0%} at m = {max(found)}; "
        f"accuracy at m = {small}: {100 * abs(gap.mean()):.1f} points {'higher' if gap.mean() > 0 else 'lower'} with "
        f"running statistics ({'clear' if differs else 'not clear'})"
    )
    return understanding.verdict(holds), told


# ---------------------------------------------------------------- the study


def run(ctx: Context) -> Finding:
    """Measure and judge."""
    sizes = SIZES[::2] if ctx.quick else SIZES
    epochs, repeats = (1, 300) if ctx.quick else (5, 2000)
    exactly = [enumerated(ctx.generator(seed, "exact")) for seed in ctx.progress(ctx.seeds, "exactly")]
    found: dict[int, list[Trained]] = {m: [] for m in sizes}
    tasks = [(seed, m) for seed in ctx.seeds for m in sizes]
    for seed, m in ctx.progress(tasks, "training"):
        found[m].append(learn(ctx, seed, m, epochs, repeats))
    decided, because = judge(exactly, found)

    def row(m: int, of: str) -> tuple[float, ...]:
        return tuple(getattr(one, of) for one in found[m])

    numbers = [Measured("E(batch variance) exactly as predicted", tuple(map(float, exactly)), expected="1")]
    for m in sizes:
        error = float(np.mean([one.ratios[0].error for one in found[m]]))
        numbers.append(
            Measured(
                f"batch variance/σ², first norm, m = {m}",
                tuple(one.ratios[0].mean for one in found[m]),
                expected=f"1 − 1/m = {1 - 1 / m:.4g} ± {error:.1g} (standard error)",
            )
        )
        numbers.append(
            Measured(f"batch variance/σ², second norm, m = {m}", tuple(one.ratios[1].mean for one in found[m]))
        )
    for m in sizes:
        numbers.append(Measured(f"discrepancy of outputs, m = {m}", row(m, "discrepancy"), expected="falls with m"))
        numbers.append(Measured(f"accuracy with batch statistics, m = {m}", row(m, "with_batch")))
        numbers.append(Measured(f"accuracy with running statistics, m = {m}", row(m, "with_running")))
    small, large = sizes[0], sizes[-1]
    mean = {m: {of: float(np.mean(row(m, of))) for of in ("discrepancy", "with_batch", "with_running")} for m in sizes}
    second = {m: float(np.mean([one.ratios[1].mean for one in found[m]])) for m in sizes}
    caption = (
        "Batch norm computes another function in training than afterwards. (a) The variance of a batch of m is on "
        f"average (1 − 1/m)σ² (line; exact by enumeration): measured in a trained network's first norm within "
        f"{max(map(abs, first_deviations(found))):.1f} standard errors; in the second, whose inputs depend on the "
        f"batch themselves, {second[small]:.2f} times the variance with running statistics at m = {small}. (b) Outputs "
        f"for the same images differ between the modes by {mean[small]['discrepancy']:.0%} of their spread at m = "
        f"{small} and by {mean[large]['discrepancy']:.0%} at m = {large}. (c) Accuracy on held-out images at m = "
        f"{small}: {mean[small]['with_batch']:.0%} with batch, {mean[small]['with_running']:.0%} with running "
        f"statistics; at m = {large}: {mean[large]['with_batch']:.1%} and {mean[large]['with_running']:.1%}. Bars: one "
        f"standard deviation over {len(ctx.seeds)} seeds."
    )
    details = {
        "sizes": sizes,
        "epochs": epochs,
        "batches for a ratio": repeats,
        "ratios": {m: [[(r.mean, r.error) for r in one.ratios] for one in found[m]] for m in sizes},
        "discrepancy": {m: row(m, "discrepancy") for m in sizes},
        "accuracy with batch statistics": {m: row(m, "with_batch") for m in sizes},
        "accuracy with running statistics": {m: row(m, "with_running") for m in sizes},
    }
    return Finding(decided, because, tuple(numbers), _draw(found), caption, details)


def _draw(found: Mapping[int, Sequence[Trained]]) -> Any:
    from validation.studies import style

    figure, axes = style.figure(1, 3, height=3.6)
    variance, discrepancy, accuracy = axes
    sizes = list(found)

    def show(one: Any, values: Any, **look: Any) -> None:
        values = np.array(values, np.float64)
        one.errorbar(sizes, values.mean(axis=1), training.spread(values, 1), capsize=2, **look)

    fine = np.geomspace(2, 64, 100)
    variance.plot(fine, 1 - 1 / fine, color="black", linewidth=1, label="1 − 1/m")
    for place, (name, marker) in enumerate((("first norm", "o"), ("second norm", "s"))):
        values = [[one.ratios[place].mean for one in found[m]] for m in sizes]
        show(variance, values, color=style.CYCLE[place], fmt=marker, label=name)
    show(discrepancy, [[100 * one.discrepancy for one in found[m]] for m in sizes], color=style.CYCLE[0], marker="o")
    show(
        accuracy,
        [[100 * one.with_batch for one in found[m]] for m in sizes],
        color=style.CYCLE[1],
        marker="s",
        label="batch statistics",
    )
    show(
        accuracy,
        [[100 * one.with_running for one in found[m]] for m in sizes],
        color=style.CYCLE[0],
        marker="o",
        label="running statistics",
    )
    for one in axes:
        one.set_xscale("log", base=2)
        one.set_xticks(sizes, [str(m) for m in sizes])
        one.minorticks_off()
        one.set_xlabel("images per batch, m")
    variance.set_ylabel("batch variance / σ²")
    variance.legend()
    discrepancy.set_ylabel("change of outputs (% of their spread)")
    discrepancy.set_ylim(bottom=0)
    accuracy.set_ylabel("accuracy on held-out images (%)")
    accuracy.legend()
    for one, title in zip(axes, ("variance of a batch", "outputs", "accuracy"), strict=True):
        one.set_title(title)
    style.letter(axes)
    return figure


STUDY = Study(
    id="U3",
    title="Training and testing",
    claim="Batch norm is another function in training than in testing: the expected variance of a batch of m is "
    "(1 − 1/m)σ², and outputs and accuracy differ between batch and running statistics, the more so the smaller the "
    "batch.",
    source="Uppal 2020",
    run=run,
)
