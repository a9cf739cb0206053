"""Means and variances of the channels over depth, at initialization.

A residual block adds its branch to its input. Without normalization the branch's size is proportional to its input's,
so that each block multiplies the size by a constant: exponential growth. With batch norm at its end the branch has
variance 1 whatever comes in, so that each block adds a constant: the variance grows like the number of blocks. The two
are told apart by the slope of log(moment) over depth: in exponential growth the second half is as steep as the first,
in growth like a power it is flatter.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from validation.studies import network, understanding
from validation.studies.network import Array
from validation.studies.study import Context, Finding, Measured, Study, Verdict

BATCH = 128
DEPTHS = {"dense": 66, "convolutional": 34}
INITIALIZATIONS = {"He": network.he, "Xavier": network.xavier}
EXPONENTIAL, SLOW = 0.75, 0.5
"""Slope of the second half over that of the first: at least, and at most."""


@dataclass(frozen=True)
class Moments:
    """Behind each block: the mean square of the channels' means, and the mean of their variances."""

    squares: Array
    variances: Array


def moments(made: understanding.Network) -> Moments:
    """Return the moments of what the latest forward pass left behind the first layer and each block."""
    found = [understanding.channel_moments(probe.x) for probe in made.hidden[::2]]
    return Moments(np.array([np.mean(mean**2) for mean, _ in found]), np.array([np.mean(var) for _, var in found]))


def bend(values: Array) -> float:
    """Return the slope of log(values) over the second half of the layers, over that of the first half."""
    logs = np.log(values)
    middle = len(logs) // 2
    slopes = [np.polyfit(np.arange(len(half)), half, 1)[0] for half in (logs[: middle + 1], logs[middle:])]
    return float(slopes[1] / slopes[0])


def growth(values: Array) -> float:
    """Return how many decades lie between the first and the last value."""
    return float(np.log10(values[-1] / values[0]))


def judge(bends: dict[str, list[float]], decades: dict[str, list[float]]) -> tuple[Verdict, str]:
    """Return the verdict from bends and growth of the variance by kind, over architectures and seeds."""
    holds = [min(bends["none"]) >= EXPONENTIAL, max(bends["BN"]) <= SLOW]
    because = (
        "log(variance) over depth rises in the second half of the layers "
        f"{min(bends['none']):.2f} to {max(bends['none']):.2f} times as steeply as in the first without normalization "
        f"(exponential: {EXPONENTIAL} and more), {min(bends['BN']):.2f} to {max(bends['BN']):.2f} times with batch "
        f"norm (slow: {SLOW} and less). From end to end the variance grows by {min(decades['none']):.1f} to "
        f"{max(decades['none']):.1f} decades without, by {min(decades['BN']):.1f} to {max(decades['BN']):.1f} with."
    )
    return understanding.verdict(holds), because


def run(context: Context) -> Finding:
    """Look at the moments of residual networks, dense and convolutional, by two initializations."""
    x, _ = understanding.samples(context)
    found: dict[tuple[str, str, str], list[Moments]] = {}
    depths = {"dense": DEPTHS["dense"], "convolutional": 18 if context.quick else DEPTHS["convolutional"]}
    for seed in context.progress(context.seeds, "B6 seeds"):
        chosen = context.generator(seed, "batch").choice(len(x), BATCH, replace=False)
        for form, initialization, kind in itertools.product(depths, INITIALIZATIONS, understanding.KINDS):
            made = understanding.build(
                form,
                context.generator(seed, "weights"),
                depths[form],
                kind,
                x,
                residual=True,
                initialize=INITIALIZATIONS[initialization],
            )
            made.layers.forward(understanding.shaped(form, x[chosen]))
            found.setdefault((form, initialization, kind), []).append(moments(made))

    numbers = []
    bends: dict[str, list[float]] = {kind: [] for kind in understanding.KINDS}
    decades: dict[str, list[float]] = {kind: [] for kind in understanding.KINDS}
    for (form, initialization, kind), rows in found.items():
        where = f"{form}, {depths[form]} layers, {initialization}, {understanding.NAMES[kind]}"
        bends[kind] += (steep := [bend(row.variances) for row in rows])
        decades[kind] += (grown := [growth(row.variances) for row in rows])
        slow = kind == "BN"
        numbers += [
            Measured(
                f"{where}: variance, slope of second over first half",
                tuple(steep),
                expected=f"≤ {SLOW}" if slow else f"≥ {EXPONENTIAL}",
            ),
            Measured(f"{where}: variance, end to end", tuple(grown), "decades"),
            Measured(f"{where}: mean squared mean, end to end", tuple(growth(row.squares) for row in rows), "decades"),
        ]
    verdict, because = judge(bends, decades)

    def told(form: str, initialization: str, kind: str) -> str:
        return f"10^{np.mean([growth(row.variances) for row in found[form, initialization, kind]]):.1f}"

    caption = (
        f"Size of the channels behind each residual block at initialization ({len(context.seeds)} seeds: lines; "
        f"batches of {BATCH} images): variances (full) and squared means (dashed), averaged over channels. Over "
        f"{depths['dense']} dense layers the variance grows {told('dense', 'He', 'none')}-fold without normalization "
        f"and {told('dense', 'He', 'BN')}-fold with batch norm with He's weights; with Xavier's smaller ones "
        f"{told('dense', 'Xavier', 'none')} and {told('dense', 'Xavier', 'BN')}; over {depths['convolutional']} layers "
        f"with convolutions {told('convolutional', 'He', 'none')} and {told('convolutional', 'He', 'BN')} (He). "
        "Straight lines are exponential growth, bent ones growth like a power: each block adds a constant, whatever "
        "the weights."
    )
    details = {
        "depths": depths,
        "batch": BATCH,
        "moments": [
            {
                "form": form,
                "initialization": initialization,
                "kind": kind,
                "mean_squares": [row.squares for row in rows],
                "variances": [row.variances for row in rows],
            }
            for (form, initialization, kind), rows in found.items()
        ],
    }
    return Finding(verdict, because, tuple(numbers), _draw(found, depths), caption, details)


def _draw(found: dict[tuple[str, str, str], list[Moments]], depths: dict[str, int]) -> Any:
    from validation.studies import style

    drawn, axes = style.figure(1, 3, height=3.4, sharey=True)
    panels = (("dense", "He"), ("dense", "Xavier"), ("convolutional", "He"))
    for place, (form, initialization) in zip(axes, panels, strict=True):
        for kind in understanding.KINDS:
            for row in found[form, initialization, kind]:
                blocks = 1 + 2 * np.arange(len(row.variances))
                place.plot(blocks, row.variances, color=style.COLOURS[kind], linewidth=1)
                place.plot(blocks, row.squares, "--", color=style.COLOURS[kind], linewidth=1)
        place.set(yscale="log", xlabel="layer", title=f"{form}, {initialization}")
    axes[0].set_ylabel("variance, squared mean")
    for kind in understanding.KINDS:
        axes[0].plot([], [], color=style.COLOURS[kind], label=style.NAMES[kind])
    axes[0].legend()
    style.letter(axes)
    return drawn


STUDY = Study(
    "B6",
    "moments over depth",
    "At initialization the channels' means and variances grow exponentially with depth without batch norm, and slowly "
    "with it.",
    "Bjorck et al. 2018, Section 4",
    run,
)
