"""U2: what small batches do to batch norm, and to norms of other index sets.

Exactly, for random batches of rational numbers at ε = 0: P, the operator of batch norm's backward, is taken column by
column from the oracle's reverse sweep, dx = r·P dy. It is a projector, P(P e) = P e for every unit vector, so its trace
is its rank: m − 2. And a gradient that points in all directions alike loses the part 1 − tr P/m = 2/m.

In training: perceptrons with two hidden layers learn digits with batches of 2 to 64 images, seeing every image equally
often, with a learning rate proportional to m, so that the noise of the steps stays alike [1]_. Running statistics
remember the same number of images for all m. Measured are the accuracy on other images, with running statistics, and
the part of the gradients' squared length that the norms blocked during the last epoch.

Criterion: an accuracy degrades if at m = 2 it is clearly below that at the best batch size, and by more than 3
percentage points. Confirmed if the exact statements hold, batch norm degrades and no other norm does; partly if
some of this holds.

.. [1] P. Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017: the linear scaling rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from refbn import exact
from validation.studies import network, training, understanding
from validation.studies.study import Context, Finding, Measured, Study, Verdict

__all__ = ["KINDS", "STUDY", "Projector", "degradation", "degrades", "judge", "projector"]

KINDS = ("BN", "BRN", "GN", "LN")
SIZES = (2, 4, 8, 16, 64)
WIDTHS = (64, 64)
GROUPS = 8
RATE = 0.4 / 64
"""Learning rate, for each image of a batch."""
MARGIN = 0.03
"""A smaller loss of accuracy is no degradation."""


# ---------------------------------------------------------------- exactly


class Projector:
    """P of a batch of m rational numbers at ε = 0.

    Attributes
    ----------
    idempotent : bool
        Whether P(P e) = P e for all unit vectors e.
    trace : Fraction
        The rank, if so.
    """

    def __init__(self, x: Sequence[Fraction]) -> None:
        m = len(x)
        row = np.array([x], object)
        (invstd,) = exact.forward(row, eps=0).invstd

        def apply(u: Sequence[Fraction | int]) -> list[Fraction]:
            (dx,) = exact.backward(row, None, 0, np.array([u], object)).dx
            passed = dx / invstd
            parts = [passed.parts(place) for place in range(m)]
            assert not any(irrational for _, irrational, _ in parts)
            return [rational for rational, _, _ in parts]

        columns = [apply([int(place == other) for other in range(m)]) for place in range(m)]
        self.idempotent = all(apply(column) == column for column in columns)
        self.trace = sum((columns[place][place] for place in range(m)), Fraction(0))


def projector(generator: np.random.Generator, m: int) -> Projector:
    """Return P of a random batch."""
    while True:
        x = [Fraction(int(value), 7) for value in generator.integers(-99, 100, m)]
        if len(set(x)) > 1:
            return Projector(x)


# ---------------------------------------------------------------- in training


def learn(ctx: Context, seed: int, kind: str, m: int, epochs: int) -> tuple[float, float]:
    """Train a network; return its accuracy and the blocked share."""
    given = training.task(ctx.data)
    options: dict[str, Any] = {"BN": {}, "BRN": {}, "GN": {"groups": GROUPS}, "LN": {}}[kind]
    if kind in ("BN", "BRN"):
        options["momentum"] = training.memory(m)
    widths = (given.features, *WIDTHS, 10)
    net = network.perceptron(ctx.generator(seed, "weights"), widths, kind, **options)
    an_epoch = len(given.x) // m
    steps = epochs * an_epoch
    parts = []

    def watch(step: int) -> None:
        if step > steps - an_epoch and step % max(1, an_epoch // 10) == 0:
            parts.append(training.blocked_shares(net))

    training.train(net, given, ctx.generator(seed, "batches", m), m=m, steps=steps, rate=RATE * m, watch=watch)
    blocked, whole = np.sum(parts, axis=(0, 1))
    return given.accuracy(net), float(blocked / whole)


def degradation(accuracies: Mapping[int, Sequence[float]]) -> np.ndarray:
    """Return by how much each seed is worse at the smallest batch size than at that which is best in the mean."""
    best = max(accuracies, key=lambda m: float(np.mean(accuracies[m])))
    return np.subtract(accuracies[best], accuracies[min(accuracies)])


def degrades(accuracies: Mapping[int, Sequence[float]]) -> bool:
    """Tell whether an accuracy degrades with small batches, by the criterion above."""
    lost = degradation(accuracies)
    return training.clear(lost) and float(lost.mean()) > MARGIN


def judge(projectors: Mapping[int, Sequence[Projector]], accuracies: Mapping[str, Any]) -> tuple[Verdict, str]:
    """Judge by the criterion above; accuracies by kind, batch size and seed."""
    exactly = all(one.idempotent and one.trace == m - 2 for m, found in projectors.items() for one in found)
    worse = {kind: degrades(found) for kind, found in accuracies.items()}
    lost = {kind: 100 * float(degradation(found).mean()) for kind, found in accuracies.items()}
    told = ", ".join(f"{kind} {value:.1f}" for kind, value in lost.items())
    holds = [exactly, worse["BN"], *(not bad for kind, bad in worse.items() if kind != "BN")]
    because = (
        f"P has exactly rank m − 2 in {'all' if exactly else 'not all'} instances; points of accuracy lost at m = "
        f"{min(accuracies['BN'])}: {told}"
    )
    too = [kind for kind, bad in worse.items() if bad and kind != "BN"]
    if too:
        because += f". {' and '.join(too)} degrade{'s' * (len(too) == 1)}, too"
        if "BRN" in too:
            because += ": BRN repairs the forward pass, but its gradient is blocked as batch norm's is"
    if not worse["BN"]:
        because += ". BN does not degrade"
    return understanding.verdict(holds), because


# ---------------------------------------------------------------- the study


def run(ctx: Context) -> Finding:
    """Measure and judge."""
    sizes = (2, 8, 64) if ctx.quick else SIZES
    epochs = 1 if ctx.quick else 5
    count = 1 if ctx.quick else 2
    projectors = {
        m: [projector(ctx.generator(seed, "exact", m), m) for seed in ctx.seeds[:count]]
        for m in ctx.progress(sizes, "exactly")
    }
    found: dict[str, dict[int, list[tuple[float, float]]]] = {kind: {m: [] for m in sizes} for kind in KINDS}
    tasks = [(seed, kind, m) for seed in ctx.seeds for kind in KINDS for m in sizes]
    for seed, kind, m in ctx.progress(tasks, "training"):
        found[kind][m].append(learn(ctx, seed, kind, m, epochs))
    accuracies = {kind: {m: [one for one, _ in row] for m, row in by.items()} for kind, by in found.items()}
    blocked = {kind: {m: [one for _, one in row] for m, row in by.items()} for kind, by in found.items()}

    decided, because = judge(projectors, accuracies)
    numbers = [
        Measured(
            f"rank of P at ε = 0, m = {m}",
            tuple(float(one.trace) if one.idempotent else np.nan for one in row),
            expected=f"exactly m − 2 = {m - 2}; blocked of isotropic gradients: 2/m = {2 / m:.4g}",
        )
        for m, row in projectors.items()
    ]
    numbers += [
        Measured(f"accuracy, {kind}, m = {m}", tuple(row)) for kind, by in accuracies.items() for m, row in by.items()
    ]
    numbers += [
        Measured(
            f"accuracy lost at m = {sizes[0]}, {kind}",
            tuple(100 * degradation(by)),
            "points",
            "much" if kind == "BN" else f"below {100 * MARGIN:.0f}",
        )
        for kind, by in accuracies.items()
    ]
    numbers += [
        Measured(f"blocked share of gradients, {kind}, m = {m}", tuple(blocked[kind][m]), expected=_expected(kind, m))
        for kind in KINDS
        for m in (sizes[0], sizes[-1])
    ]
    means = {kind: {m: float(np.mean(row)) for m, row in by.items()} for kind, by in accuracies.items()}
    shares = {kind: {m: float(np.mean(row)) for m, row in by.items()} for kind, by in blocked.items()}
    small, large = sizes[0], sizes[-1]
    caption = (
        f"Perceptrons that learn digits for {epochs} epochs. (a) With batches of {small} images batch norm reaches "
        f"{means['BN'][small]:.0%} on held-out ones, with {large} {means['BN'][large]:.0%}; batch renormalization "
        f"{means['BRN'][small]:.0%} and {means['BRN'][large]:.0%}, group norm {means['GN'][small]:.0%} and "
        f"{means['GN'][large]:.0%}, layer norm {means['LN'][small]:.0%} and {means['LN'][large]:.0%}. (b) The reason: "
        f"the backward operator of batch norm and its renormalization has exactly rank m − 2 at ε = 0, so at m = 2 "
        f"they block all of the gradient but what ε lets through (measured: {shares['BN'][small]:.1%} and "
        f"{shares['BRN'][small]:.1%} blocked), and the layers below learn next to nothing; layer and group norm block "
        f"{shares['LN'][small]:.0%} and {shares['GN'][small]:.0%} at m = {small}, {shares['LN'][large]:.0%} and "
        f"{shares['GN'][large]:.0%} at m = {large}. Bars: one standard deviation over "
        f"{len(ctx.seeds)} seeds."
    )
    details = {"sizes": sizes, "epochs": epochs, "accuracies": accuracies, "blocked": blocked}
    return Finding(decided, because, tuple(numbers), _draw(sizes, accuracies, blocked), caption, details)


def _expected(kind: str, m: int) -> str:
    """Return what an isotropic gradient would lose."""
    count = {"BN": m, "BRN": m, "GN": WIDTHS[0] // GROUPS, "LN": WIDTHS[0]}[kind]
    return f"isotropic: {2 / count:.3g}"


def _draw(sizes: Sequence[int], accuracies: Mapping[str, Any], blocked: Mapping[str, Any]) -> Any:
    from validation.studies import style

    figure, (left, right) = style.figure(1, 2, height=3.7)
    for axes, found, factor in ((left, accuracies, 100), (right, blocked, 1)):
        for kind, by in found.items():
            values = factor * np.array([by[m] for m in sizes])
            axes.errorbar(sizes, values.mean(axis=1), training.spread(values, 1), capsize=2, **style.of(kind))
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(m) for m in sizes])
        axes.minorticks_off()
        axes.set_xlabel("images per batch, m")
    left.set_ylabel("accuracy on held-out images (%)")
    right.plot(sizes, 2 / np.array(sizes), color="black", linestyle="--", linewidth=1, label="2/m")
    right.set_yscale("log")
    right.set_ylabel("blocked share of the squared gradient")
    left.set_title("accuracy")
    right.set_title("what the norms block")
    style.letter((left, right))
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


STUDY = Study(
    id="U2",
    title="Small batches",
    claim="With small batches batch norm degrades; batch renormalization, group norm and layer norm do not.",
    source="Uppal 2020; Wu and He 2018; Ioffe 2017",
    run=run,
)
