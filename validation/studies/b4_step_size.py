"""The loss along the gradient, over the size of the step.

From a point in the course of training (on small steps, the same with and without batch norm) one step along the
negative gradient of a batch is taken, of any size η, and the same batch's loss L(θ − η∇L) is compared with L(θ).

Batch norm *tolerates* a step at which it trains: at `TOLERATED`, which is tried in each run. A stricter reading, told
beside, is the largest step up to which its loss only falls.
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
BATCH = 256
RATE = 2.0**-9
STATES = (0, 50, 200)
"""After so many steps of training."""
STEPS = 2.0 ** np.arange(-16, 4, 0.5)
TOLERATED = 0.5
TRIAL = 150
"""Steps of training at that rate."""
EXPLODES = 1e3


def relative_losses(made: understanding.Network, x: Array, labels: Array, steps: Array) -> tuple[float, Array]:
    """Return the loss at the network's parameters, and L(θ − η∇L)/L(θ) for each η; the parameters stay as they are."""
    start = {name: value.copy() for name, value in made.layers.parameters.items()}
    loss = made.differentiate(x, labels)
    gradient = dict(made.layers.gradients)
    values = []
    with np.errstate(over="ignore", invalid="ignore"):
        for step in steps:
            made.move(gradient, -step)
            value = made.loss(x, labels)
            values.append(value / loss if np.isfinite(value) else np.inf)
            for name, parameter in made.layers.parameters.items():
                parameter[...] = start[name]
    return loss, np.array(values)


def only_falls(ratios: Array) -> int:
    """Return the place of the largest step up to which no step raises the loss; −1 if the smallest does."""
    raised = np.flatnonzero(ratios > 1)
    return int(raised[0]) - 1 if len(raised) else len(ratios) - 1


@dataclass(frozen=True)
class Decades:
    """log₁₀ of the plain network's relative loss, by state of training and one for each seed."""

    at_tolerated: dict[int, list[float]]
    where_normalized_falls: dict[int, list[float]]


def judge(trial: list[float], found: Decades) -> tuple[Verdict, str]:
    """Return the verdict: batch norm trains at `TOLERATED`, and without it the loss explodes there."""

    def told(values: dict[int, list[float]]) -> str:
        return ", ".join(f"10^{np.median(row):.1f}" for row in values.values())

    trains = max(trial) < understanding.TRAINED
    holds = [trains and np.median(row) > math.log10(EXPLODES) for row in found.at_tolerated.values()]
    because = (
        f"At rate {TOLERATED} batch norm {'trains' if trains else 'does not train'} (loss "
        f"{understanding.spread(trial)} after {TRIAL} steps); without it, one step of that size multiplies the loss "
        f"by {told(found.at_tolerated)} (median over seeds; after {', '.join(map(str, found.at_tolerated))} steps of "
        "training). At the largest step up to which batch norm's loss only falls, the factors are "
        f"{told(found.where_normalized_falls)}."
    )
    return understanding.verdict(holds), because


def run(context: Context) -> Finding:
    """Take steps from three points of training."""
    states = STATES[:2] if context.quick else STATES
    steps = STEPS[::2] if context.quick else STEPS
    x, labels = understanding.samples(context)
    flat = understanding.shaped("dense", x)
    found: dict[tuple[str, int], list[Array]] = {}
    losses: dict[tuple[str, int], list[float]] = {}
    trial: list[float] = []
    for seed in context.progress(context.seeds, "B4 seeds"):
        chosen = context.generator(seed, "batch").choice(len(x), BATCH, replace=False)
        for kind in understanding.KINDS:
            made = understanding.build("dense", context.generator(seed, "weights"), DEPTH, kind, x, residual=True)
            order = context.generator(seed, "training")
            for before, state in zip((0, *states), states, strict=False):
                understanding.descend(made, flat, labels, order, rate=RATE, steps=state - before)
                loss, ratios = relative_losses(made, flat[chosen], labels[chosen], steps)
                losses.setdefault((kind, state), []).append(loss)
                found.setdefault((kind, state), []).append(ratios)

        made = understanding.build("dense", context.generator(seed, "weights"), DEPTH, "BN", x, residual=True)
        order = context.generator(seed, "trial")
        trial.append(understanding.final(understanding.descend(made, flat, labels, order, rate=TOLERATED, steps=TRIAL)))

    numbers = [
        Measured(
            f"loss, batch norm, after {TRIAL} steps at rate {TOLERATED}",
            tuple(trial),
            expected=f"below {understanding.TRAINED:.2f}",
        )
    ]
    decades = Decades({}, {})
    largest: dict[tuple[str, int], list[float]] = {}
    for state in states:
        places = [only_falls(ratios) for ratios in found["BN", state]]
        for kind in understanding.KINDS:
            largest[kind, state] = [
                steps[place] if place >= 0 else 0.0 for place in map(only_falls, found[kind, state])
            ]
            numbers += [
                Measured(f"loss, {understanding.NAMES[kind]}, after {state} steps", tuple(losses[kind, state])),
                Measured(
                    f"largest step up to which the loss only falls, {understanding.NAMES[kind]}, after {state} steps",
                    tuple(largest[kind, state]),
                ),
            ]
        plain = found["none", state]
        (at,) = np.flatnonzero(steps == TOLERATED)
        decades.at_tolerated[state] = [float(np.log10(ratios[at])) for ratios in plain]
        decades.where_normalized_falls[state] = [
            float(np.log10(ratios[place])) if place >= 0 else 0.0 for ratios, place in zip(plain, places, strict=True)
        ]
        numbers += [
            Measured(
                f"relative loss, no normalization, η = {TOLERATED}, after {state} steps",
                tuple(decades.at_tolerated[state]),
                "decades",
                f"above {math.log10(EXPLODES):.0f}",
            ),
            Measured(
                f"relative loss, no normalization, η where batch norm's only falls, after {state} steps",
                tuple(decades.where_normalized_falls[state]),
                "decades",
            ),
        ]
    verdict, because = judge(trial, decades)
    told = ", ".join(f"10^{np.median(decades.at_tolerated[state]):.1f}" for state in states)
    sizes = ", ".join(
        f"{np.median(largest['none', state]):.2g} and {np.median(largest['BN', state]):.2g}" for state in states
    )
    caption = (
        f"Loss after one step along a batch's negative gradient over the loss before, in residual networks of {DEPTH} "
        f"dense layers after {', '.join(map(str, states))} steps of training at rate 2⁻⁹ ({len(context.seeds)} seeds: "
        f"lines). Up to steps of {sizes} (medians; without normalization and with batch norm) the loss only falls. At "
        f"η = {TOLERATED} (dotted), where batch norm trains to a loss of {np.mean(trial):.2f}, one step without it "
        f"multiplies the loss by {told}."
    )
    details = {
        "steps": steps,
        "relative_losses": [
            {"kind": kind, "after": state, "values": rows, "loss": losses[kind, state]}
            for (kind, state), rows in found.items()
        ],
    }
    return Finding(verdict, because, tuple(numbers), _draw(found, states, steps), caption, details)


def _draw(found: dict[tuple[str, int], list[Array]], states: tuple[int, ...], steps: Array) -> Any:
    from validation.studies import style

    drawn, axes = style.figure(1, len(states), height=3.4, sharey=True)
    for place, state in zip(axes, states, strict=True):
        for kind in understanding.KINDS:
            for ratios in found[kind, state]:
                place.plot(steps, np.where(np.isfinite(ratios), ratios, np.nan), color=style.COLOURS[kind], linewidth=1)
        place.axhline(1, color="black", linewidth=0.8)
        place.axvline(TOLERATED, color="black", linestyle=":", linewidth=1)
        place.set(xscale="log", yscale="log", ylim=(1e-2, 1e12), xlabel="step size η")
        place.set_title("at initialization" if state == 0 else f"after {state} steps")
    for kind in understanding.KINDS:
        axes[0].plot([], [], color=style.COLOURS[kind], label=style.NAMES[kind])
    axes[0].set_ylabel("L(θ − η∇L) / L(θ)")
    axes[0].legend(loc="upper left")
    style.letter(axes)
    return drawn


STUDY = Study(
    "B4",
    "loss over the size of the step",
    "Without batch norm the loss along the gradient explodes, to more than a thousand times, at steps that a network "
    "with batch norm tolerates.",
    "Bjorck et al. 2018, Section 3",
    run,
)
