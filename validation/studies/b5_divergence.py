"""The channels' moments along an update that diverges.

A network without batch norm is trained at a rate at which one with batch norm trains, until the update that makes it
diverge. That update is then applied in part, from nothing to all of it, and each layer's moments on the same batch are
looked at; the network with batch norm, for comparison, along the update of the same number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from validation.studies import understanding
from validation.studies.network import Array
from validation.studies.study import Context, Finding, Measured, Study, Verdict

DEPTH = 34
BATCH = 128
RATE = 0.5
LIMIT = 20
"""By this number of updates the plain network must have diverged."""
FRACTIONS = np.linspace(0, 1, 21)
GROWS = 3.0
"""Decades, at least, for "grows by orders of magnitude"; with batch norm and in the first layer less than one."""


@dataclass(frozen=True)
class Update:
    """Moments along an update.

    Attributes
    ----------
    variances, squares : ndarray, shape (fractions, layers)
        Mean of the channels' variances, and of their squared means, behind the first layer and each block.
    losses : ndarray, shape (fractions,)
    number : int
        Of the update, from 1.
    """

    variances: Array
    squares: Array
    losses: Array
    number: int

    def growth(self, layer: int) -> float:
        """Return how many decades a layer's variance grows during the update."""
        return float(np.log10(self.variances[-1, layer] / self.variances[0, layer]))


def follow(made: understanding.Network, x: Array, labels: Array, rate: float, number: int) -> Update:
    """Apply a batch's update in part, from nothing to all of it; the parameters end as the update leaves them."""
    loss = made.differentiate(x, labels)
    gradient = dict(made.layers.gradients)
    variances, squares, losses = [], [], [loss]
    for before, fraction in zip((0.0, *FRACTIONS), FRACTIONS, strict=False):
        made.move(gradient, -rate * (fraction - before))
        if fraction > 0:
            losses.append(made.loss(x, labels))
        found = [understanding.channel_moments(probe.x) for probe in made.hidden[::2]]
        squares.append([np.mean(mean**2) for mean, _ in found])
        variances.append([np.mean(var) for _, var in found])
    return Update(np.array(variances), np.array(squares), np.array(losses), number)


def diverging(
    made: understanding.Network, x: Array, labels: Array, generator: np.random.Generator, until: int | None = None
) -> Update | None:
    """Train until an update multiplies its batch's loss by `understanding.DIVERGED`, or up to an update's number.

    Return None if by `LIMIT` none has.
    """
    for number, chosen in enumerate(understanding.batches(generator, len(x), BATCH), 1):
        update = follow(made, x[chosen], labels[chosen], RATE, number)
        if until == number or (until is None and not update.losses[-1] <= understanding.DIVERGED * update.losses[0]):
            return update
        if number == LIMIT:
            return None
    raise AssertionError("batches have no end")


def judge(growth: dict[str, list[float]], first: list[float]) -> tuple[Verdict, str]:
    """Return the verdict from the growth of the last layer's variance, by kind; the plain first layer's is told."""
    plain, normalized = growth["none"], growth["BN"]
    if not plain:
        return "not confirmed", f"No network without batch norm diverged within {LIMIT} updates at rate {RATE}."
    holds = [min(plain) >= GROWS, max(map(abs, normalized)) < 1]
    because = (
        f"During the update that diverges the last layer's variance grows by {understanding.spread(plain)} decades "
        f"without normalization (first layer: {understanding.spread(first)}); with batch norm by "
        f"{understanding.spread(normalized)} during the update of the same number."
    )
    return understanding.verdict(holds), because


def run(context: Context) -> Finding:
    """Find the update that diverges, and follow it."""
    x, labels = understanding.samples(context)
    x = understanding.shaped("dense", x)
    found: dict[str, list[Update]] = {kind: [] for kind in understanding.KINDS}
    with np.errstate(over="ignore", invalid="ignore"):  # they are what divergence is
        for seed in context.progress(context.seeds, "B5 seeds"):
            until = None
            for kind in understanding.KINDS:
                made = understanding.dense(
                    context.generator(seed, "weights"), DEPTH, kind, residual=True, inputs=x.shape[1]
                )
                update = diverging(made, x, labels, context.generator(seed, "batches"), until)
                if update is None:
                    break
                found[kind].append(update)
                until = update.number

    growth = {kind: [one.growth(-1) for one in rows] for kind, rows in found.items()}
    verdict, because = judge(growth, [one.growth(0) for one in found["none"]])
    numbers = [Measured("networks without batch norm that diverged", (float(len(found["none"])),))]
    for kind, rows in found.items():
        if not rows:
            continue
        name = understanding.NAMES[kind]
        expected = f"≥ {GROWS:.0f}" if kind == "none" else "less than 1"
        numbers += [
            Measured(f"number of the update, {name}", tuple(float(one.number) for one in rows)),
            Measured(f"growth of the last layer's variance, {name}", tuple(growth[kind]), "decades", expected),
            Measured(
                f"growth of the middle layer's variance, {name}",
                tuple(one.growth(len(one.variances[0]) // 2) for one in rows),
                "decades",
            ),
            Measured(f"growth of the first layer's variance, {name}", tuple(one.growth(0) for one in rows), "decades"),
            Measured(
                f"loss after over loss before, {name}",
                tuple(float(np.log10(one.losses[-1] / one.losses[0])) for one in rows),
                "decades",
            ),
        ]
    if found["none"]:
        caption = (
            f"Variance of the channels behind each block, averaged over channels, while an update at rate {RATE} is "
            f"applied in part, in residual networks of {DEPTH} dense layers. (a) Without normalization the update "
            f"(number {found['none'][0].number}) diverges, and the variance explodes towards the last layer, by "
            f"{understanding.spread(growth['none'])} decades ({len(found['none'])} seeds, the first is shown). (b) "
            "With batch norm, along the update of the same number, it changes by "
            f"{understanding.spread(growth['BN'])} decades. (c) The last layer's variance, all seeds."
        )
    else:
        caption = because
    details = {
        "fractions": FRACTIONS,
        "rate": RATE,
        "updates": [
            {
                "kind": kind,
                "number": one.number,
                "variances": one.variances,
                "mean_squares": one.squares,
                "losses": one.losses,
            }
            for kind, rows in found.items()
            for one in rows
        ],
    }
    return Finding(verdict, because, tuple(numbers), _draw(found), caption, details)


def _draw(found: dict[str, list[Update]]) -> Any:
    from validation.studies import style

    drawn, axes = style.figure(1, 3, height=3.5)
    shown = [np.log10(rows[0].variances) for rows in found.values() if rows]
    if shown:
        low, high = (math.floor(min(map(np.min, shown))), math.ceil(max(map(np.max, shown))))
    for place, (kind, rows) in zip(axes, found.items(), strict=False):
        place.set(xlabel="layer", ylabel="part of the update (%)", title=style.NAMES[kind])
        place.grid(False)
        if rows:
            image = place.imshow(
                np.log10(rows[0].variances),
                origin="lower",
                aspect="auto",
                extent=(0, 2 * rows[0].variances.shape[1], -2.5, 102.5),
                vmin=low,
                vmax=high,
            )
            drawn.colorbar(image, ax=place, label="log₁₀ variance", location="top", shrink=0.9)
    for kind, rows in found.items():
        for one in rows:
            axes[2].plot(100 * FRACTIONS, one.variances[:, -1], color=style.COLOURS[kind], linewidth=1)
        axes[2].plot([], [], color=style.COLOURS[kind], label=style.NAMES[kind])
    axes[2].set(yscale="log", xlabel="part of the update (%)", ylabel="variance", title="last layer")
    axes[2].legend(fontsize=8)
    style.letter(axes)
    return drawn


STUDY = Study(
    "B5",
    "an update that diverges",
    "When training without batch norm diverges, the channels' moments explode towards the last layer during one "
    "update; with batch norm they stay where they are.",
    "Bjorck et al. 2018, Section 3",
    run,
)
