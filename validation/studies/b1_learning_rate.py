"""The largest learning rate at which a network trains, over its depth.

A network trains at a rate if the loss at the end of a fixed number of steps of plain gradient descent is below half of
what guessing costs, `understanding.TRAINED`. Rates are powers of two, tried from the largest down. At one tiny rate
networks with and without batch norm are compared as well: the paper ascribes batch norm's advantage to the rates that
it allows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from validation.studies import understanding
from validation.studies.study import Context, Finding, Measured, Study, Verdict

EXPONENTS = range(3, -13, -1)
TINY = -9
DEPTHS = (4, 8, 16, 32)
SHRINKS, STAYS = -0.5, -0.25
"""Slope of log(rate) over log(depth): at most, for "shrinks with depth", and at least, for "does not"."""
SIMILAR = 1.5
"""Factor within which losses at the tiny rate count as alike, in the geometric mean over depths."""


@dataclass(frozen=True)
class Trained:
    """A network's largest rate (its exponent; None if none did), the loss there, and the loss at the tiny rate."""

    exponent: int | None
    loss: float
    tiny: float


def largest(train: Any, exponents: Any = EXPONENTS) -> tuple[int | None, float]:
    """Return the first exponent at whose rate training ends below `understanding.TRAINED`, and the loss there."""
    for exponent in exponents:
        loss = train(2.0**exponent)
        if loss < understanding.TRAINED:
            return exponent, loss
    return None, math.nan


def slope(depths: tuple[int, ...], exponents: list[int | None]) -> float:
    """Return the slope of log(rate) over log(depth); a rate that was not found counts as one below the smallest."""
    rates = [min(EXPONENTS) - 1 if exponent is None else exponent for exponent in exponents]
    return float(np.polyfit(np.log2(depths), rates, 1)[0])


def judge(slopes: dict[str, list[float]], tiny: list[float]) -> tuple[Verdict, str]:
    """Return the verdict from slopes by kind, and batch norm's loss over the plain one's at the tiny rate."""
    plain, normalized = (float(np.mean(slopes[kind])) for kind in understanding.KINDS)
    ratio = float(np.exp(np.mean(np.log(tiny))))
    holds = [plain <= SHRINKS, normalized >= STAYS, 1 / SIMILAR <= ratio <= SIMILAR]
    because = (
        f"The largest rate goes with depth to the power {understanding.spread(slopes['none'])} without batch norm "
        f"(shrinks: {SHRINKS} and less) and {understanding.spread(slopes['BN'])} with it (does not: {STAYS} and "
        f"more). At the tiny rate 2^{TINY} batch norm's loss is {ratio:.2f} times the plain one's (alike: within a "
        f"factor of {SIMILAR})."
    )
    return understanding.verdict(holds), because


def run(context: Context) -> Finding:
    """Train networks of several depths at falling rates."""
    depths, steps = ((4, 16), 100) if context.quick else (DEPTHS, 200)
    x, labels = understanding.samples(context)
    x = understanding.shaped("dense", x)
    found: dict[tuple[str, int], list[Trained]] = {}
    for seed in context.progress(context.seeds, "B1 seeds"):
        for kind in understanding.KINDS:
            for depth in context.progress(depths, f"depths, {kind}"):

                def train(rate: float, kind: str = kind, depth: int = depth, seed: int = seed) -> float:
                    made = understanding.dense(
                        context.generator(seed, "weights", depth), depth, kind, residual=True, inputs=x.shape[1]
                    )
                    order = context.generator(seed, "batches")
                    return understanding.final(understanding.descend(made, x, labels, order, rate=rate, steps=steps))

                found.setdefault((kind, depth), []).append(Trained(*largest(train), train(2.0**TINY)))

    numbers = []
    for (kind, depth), rows in found.items():
        where = f"{understanding.NAMES[kind]}, {depth} layers"
        rates = tuple(math.nan if row.exponent is None else float(row.exponent) for row in rows)
        numbers += [
            Measured(f"log₂ of the largest rate, {where}", rates),
            Measured(f"loss there, {where}", tuple(row.loss for row in rows)),
            Measured(f"loss at rate 2^{TINY}, {where}", tuple(row.tiny for row in rows)),
        ]
    slopes = {
        kind: [slope(depths, [found[kind, depth][place].exponent for depth in depths]) for place in _places(context)]
        for kind in understanding.KINDS
    }
    for kind, expected in zip(understanding.KINDS, (f"≤ {SHRINKS}", f"≥ {STAYS}"), strict=True):
        label = f"power of the depth with which the largest rate goes, {understanding.NAMES[kind]}"
        numbers.append(Measured(label, tuple(slopes[kind]), expected=expected))
    tiny = [
        float(np.exp(np.mean([np.log(found["BN", depth][p].tiny / found["none", depth][p].tiny) for depth in depths])))
        for p in _places(context)
    ]
    numbers.append(
        Measured(
            f"loss with over loss without batch norm at rate 2^{TINY}, mean over depths", tuple(tiny), expected="1"
        )
    )
    verdict, because = judge(slopes, tiny)

    def told(kind: str, depth: int) -> str:
        row = [one.exponent for one in found[kind, depth]]
        return "none" if None in row else f"2^{np.mean(row):.1f}"

    ends = depths[0], depths[-1]
    gains = [row.loss / row.tiny for rows in found.values() for row in rows if row.exponent is not None]
    caption = (
        f"Residual networks of dense layers, {steps} steps of gradient descent from Xavier's weights "
        f"({len(context.seeds)} seeds). (a) The largest learning rate (powers of two) at which the loss falls below "
        f"{understanding.TRAINED:.2f}: from {ends[0]} to {ends[1]} layers it goes from {told('none', ends[0])} to "
        f"{told('none', ends[1])} without normalization and from {told('BN', ends[0])} to {told('BN', ends[1])} with "
        "batch norm (markers: seeds; lines: means). (b) The loss reached at one tiny rate (full lines): with batch "
        f"norm {np.exp(np.mean(np.log(tiny))):.2f} times that without, in the geometric mean over depths. At its own "
        f"largest rate (dashed) a network reaches {100 * np.median(gains):.0f} % (median) of its loss at the tiny "
        "rate."
    )
    details = {
        "steps": steps,
        "trained": [
            {
                "kind": kind,
                "depth": depth,
                "exponent": [row.exponent for row in rows],
                "loss": [row.loss for row in rows],
                "loss_at_tiny_rate": [row.tiny for row in rows],
            }
            for (kind, depth), rows in found.items()
        ],
    }
    return Finding(verdict, because, tuple(numbers), _draw(found, depths), caption, details)


def _places(context: Context) -> range:
    return range(len(context.seeds))


def _draw(found: dict[tuple[str, int], list[Trained]], depths: tuple[int, ...]) -> Any:
    from validation.studies import style

    drawn, (rates, losses) = style.figure(1, 2)
    for kind, shift in zip(understanding.KINDS, (0.97, 1.03), strict=True):
        colour = style.COLOURS[kind]
        lowest = 2.0 ** (min(EXPONENTS) - 1)
        own = np.array(
            [[lowest if row.exponent is None else 2.0**row.exponent for row in found[kind, depth]] for depth in depths]
        )
        at = shift * np.array(depths)
        rates.plot(at, own, linestyle="", **style.of(kind, label=None, alpha=0.4))
        rates.plot(at, np.exp(np.log(own).mean(axis=1)), color=colour, label=style.NAMES[kind])
        for line, name in (("-", "tiny"), ("--", "loss")):
            values = np.array([[getattr(row, name) for row in found[kind, depth]] for depth in depths])
            which = f"$2^{{{TINY}}}$" if name == "tiny" else "largest"
            losses.plot(at, values.mean(axis=1), line, **style.of(kind, label=f"{style.NAMES[kind]}, {which}"))
    rates.set(yscale="log", ylabel="largest learning rate that trains", title="largest rate")
    rates.set_yscale("log", base=2)
    losses.set(yscale="log", ylabel="loss at the end of training", title="loss at matched and at largest rates")
    for place in (rates, losses):
        place.set_xscale("log", base=2)
        place.set(xlabel="layers", xticks=depths, xticklabels=depths)
    rates.legend()
    losses.legend(fontsize=7.5)
    style.letter((rates, losses))
    return drawn


STUDY = Study(
    "B1",
    "largest learning rate",
    "The largest learning rate that trains shrinks with depth without batch norm and does not with it; at one tiny "
    "rate both do alike.",
    "Bjorck et al. 2018, Sections 2 and 3",
    run,
)
