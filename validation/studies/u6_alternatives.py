"""U6: the alternatives to batch norm, by the same table.

One network for all: two convolutions, the second of stride 2, and a hidden dense layer, each normalized and followed by
a ReLU. Instance norm has no meaning for a dense layer, where an image has one number for each feature; that layer is
left as it is then. Weight standardization standardizes the weights and normalizes no activations. All learn from the
same number of images, with a learning rate proportional to the batch.

accuracy       on held-out images, batches of 16
convergence    images until the accuracy is within a tenth of the best mean
small batches  accuracy lost with batches of 2
blocked        share of a gradient's squared length that is blocked, in that layer where it is largest, batches of 2
online         accuracy after learning one image at a time
two modes      change of the outputs between training and testing, over their spread, batches of 2

Criterion: an alternative is a way out if its accuracy is at most 3 percentage points below batch norm's; it does not
degrade with small batches (U2's criterion); learning online it is clearly ahead of batch norm; and its outputs change
clearly less between the modes. Confirmed if all of the five are, partly if some are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from validation.studies import network, training
from validation.studies.study import Context, Finding, Measured, Study, Verdict
from validation.studies.u2_small_batches import MARGIN, degradation, degrades

__all__ = ["ALTERNATIVES", "STUDY", "Row", "failures", "images_until", "judge", "learn"]

ALTERNATIVES = ("LN", "GN", "IN", "BRN", "WS")
KINDS = ("none", "BN", *ALTERNATIVES)
CHANNELS, HIDDEN, GROUPS = (8, 16), 64, 4
USUAL, SMALL = 16, 2
"""Images in a batch."""
RATE = 0.4 / 64
"""Learning rate, for each image of a batch; at twice that weight standardization diverges with batches of 16."""
NEAR = 0.9
"""Convergence is to this part of the best accuracy."""


class Row(NamedTuple):
    """What was measured of a kind of normalization, with one seed.

    Attributes
    ----------
    accuracy, small, online : float
        With batches of 16, 2 and 1.
    curve : list of (int, float)
        Accuracy over images, batches of 16.
    blocked : float
        In the layer where the share is largest; NaN without standardization.
    modes : float
        Change of the outputs between the modes.
    """

    accuracy: float
    small: float
    online: float
    curve: list[tuple[int, float]]
    blocked: float
    modes: float


def build(generator: np.random.Generator, kind: str, shape: tuple[int, ...], m: int) -> network.Sequential:
    """Return the network for images of a shape (channels, height, width)."""
    options: dict[str, Any] = {}
    match kind:
        case "BN":  # a dialect that does not refuse m = 1
            options = {"dialect": "keras", "eps": 1e-5, "momentum": 1 - training.memory(m)}
        case "BRN":
            options = {"momentum": training.memory(m)}
        case "GN":
            options = {"groups": GROUPS}
    first, second = CHANNELS
    positions = -(-shape[1] // 2) * -(-shape[2] // 2)
    plain = "none" if kind == "IN" else kind
    return network.Sequential(
        *network.normalized(kind, network.Convolution(network.he(generator, (first, shape[0], 3, 3))), **options),
        network.ReLU(),
        *network.normalized(
            kind, network.Convolution(network.he(generator, (second, first, 3, 3)), stride=2), **options
        ),
        network.ReLU(),
        network.Flatten(),
        *network.normalized(plain, network.Dense(network.he(generator, (HIDDEN, second * positions))), **options),
        network.ReLU(),
        network.Dense(network.he(generator, (10, HIDDEN))),
    )


def learn(ctx: Context, seed: int, kind: str, images: int, online: int) -> Row:
    """Train three networks, with batches of 16, 2 and 1."""
    given = training.task(ctx.data, images=True)
    few = slice(0, len(given.held_x), 3)  # for the curve
    curve: list[tuple[int, float]] = []
    parts: list[np.ndarray] = []
    trained = {}
    for m, total in ((USUAL, images), (SMALL, images), (1, online)):
        net = build(ctx.generator(seed, "weights"), kind, given.x.shape[1:], m)
        steps = total // m

        def watch(step: int, net: network.Layer = net, m: int = m, steps: int = steps) -> None:
            if m == USUAL and (step % 5 == 0 or step == steps):
                logits = net.forward(given.held_x[few], train=False)
                curve.append((step * m, network.accuracy(logits, given.held_labels[few])))
            if m == SMALL and kind != "none" and step > steps / 2 and step % max(1, steps // 10) == 0:
                parts.append(training.blocked_shares(net))

        training.train(net, given, ctx.generator(seed, "batches", m), m=m, steps=steps, rate=RATE * m, watch=watch)
        trained[m] = net
    accuracies = {m: given.accuracy(net) for m, net in trained.items()}
    modes, _ = training.discrepancy(
        trained[SMALL], given, ctx.generator(seed, "modes"), SMALL, 30 if ctx.quick else 100
    )
    blocked, whole = np.sum(parts, axis=0).T if parts else (np.array([np.nan]), 1.0)
    return Row(accuracies[USUAL], accuracies[SMALL], accuracies[1], curve, float(np.max(blocked / whole)), modes)


def images_until(curve: Sequence[tuple[int, float]], target: float) -> float:
    """Return after how many images an accuracy is reached for the first time; NaN if it is not."""
    return next((float(images) for images, accuracy in curve if accuracy >= target), np.nan)


def failures(row: Sequence[Row], of_batch_norm: Sequence[Row]) -> list[str]:
    """Return what an alternative fails at, by the criterion above."""

    def ahead(part: str, sign: int) -> bool:
        pairs = zip(row, of_batch_norm, strict=True)
        return training.clear([sign * (getattr(one, part) - getattr(other, part)) for one, other in pairs])

    found = []
    if np.mean([one.accuracy for one in row]) < np.mean([one.accuracy for one in of_batch_norm]) - MARGIN:
        found.append("accuracy")
    if degrades(_by_size(row)):
        found.append("small batches")
    if not ahead("online", 1):
        found.append("online")
    if not ahead("modes", -1):
        found.append("two modes")
    return found


def _by_size(row: Sequence[Row]) -> dict[int, list[float]]:
    return {USUAL: [one.accuracy for one in row], SMALL: [one.small for one in row]}


def judge(found: Mapping[str, Sequence[Row]]) -> tuple[Verdict, str]:
    """Judge by the criterion above."""
    failing = {kind: failures(found[kind], found["BN"]) for kind in ALTERNATIVES}
    out = [kind for kind, failed in failing.items() if not failed]
    mean = {kind: np.mean([one[:3] for one in row], axis=0) for kind, row in found.items()}
    because = f"Ways out: {', '.join(out) or 'none'}. " + " ".join(
        f"{kind} fails in: {', '.join(failed)}." for kind, failed in failing.items() if failed
    )
    told = ", ".join(f"{kind} {' / '.join(f'{part:.0%}' for part in mean[kind])}" for kind in ("BN", *ALTERNATIVES))
    because = f"{because.strip()} Accuracy with batches of {USUAL} / {SMALL} / 1: {told}"
    return "confirmed" if len(out) == len(ALTERNATIVES) else "partly" if out else "not confirmed", because


def table(found: Mapping[str, Sequence[Row]]) -> tuple[dict[str, dict[str, list[float]]], float]:
    """Return the values by column, kind and seed, and the accuracy that convergence is to."""
    target = NEAR * max(float(np.mean([one.accuracy for one in row])) for row in found.values())
    columns = {
        "accuracy": lambda row: [100 * one.accuracy for one in row],
        "convergence": lambda row: [images_until(one.curve, target) for one in row],
        "small batches": lambda row: list(100 * np.array([one.accuracy - one.small for one in row])),
        "blocked": lambda row: [100 * one.blocked for one in row],
        "online": lambda row: [100 * one.online for one in row],
        "two modes": lambda row: [100 * one.modes for one in row],
    }
    return {name: {kind: of(row) for kind, row in found.items()} for name, of in columns.items()}, target


UNITS = {
    "accuracy": "accuracy (%)",
    "convergence": "images until near best",
    "small batches": "lost at m = 2 (points)",
    "blocked": "blocked at m = 2 (%)",
    "online": "accuracy after m = 1 (%)",
    "two modes": "change of outputs (%)",
}


def run(ctx: Context) -> Finding:
    """Measure and judge."""
    images, online = (320, 100) if ctx.quick else (2000, 600)
    tasks = [(kind, seed) for kind in KINDS for seed in ctx.seeds]
    found: dict[str, list[Row]] = {kind: [] for kind in KINDS}
    for kind, seed in ctx.progress(tasks, "training"):
        found[kind].append(learn(ctx, seed, kind, images, online))
    decided, because = judge(found)
    values, target = table(found)
    numbers = tuple(
        Measured(f"{kind}: {UNITS[column]}", tuple(by_kind[kind]))
        for kind in KINDS
        for column, by_kind in values.items()
        if not (column == "blocked" and kind == "none")
    )
    mean = {column: {kind: float(np.mean(row)) for kind, row in by.items()} for column, by in values.items()}
    small, once, blocked, modes = (mean[name] for name in ("small batches", "online", "blocked", "two modes"))
    own = ("LN", "GN", "IN", "WS")  # no statistics of a batch
    caption = (
        f"A convolutional network with a dense hidden layer learns digits from {images} images. (a, b) All norms reach "
        f"{min(mean['accuracy'].values()):.0f} to {max(mean['accuracy'].values()):.0f} % with batches of {USUAL} (b: "
        f"images until {target:.0%}). (c) With batches of 2 batch norm loses {small['BN']:.0f} points, its "
        f"renormalization {small['BRN']:.0f}, the others {max(small[kind] for kind in own):.0f} "
        f"at most: (d) of the gradient at some layer both block {blocked['BN']:.0f} and {blocked['BRN']:.0f} %, layer "
        f"norm {blocked['LN']:.1f} %, weight standardization (of its weights' gradients) {blocked['WS']:.1f} %. (e) "
        f"Learning from {online} images one at a time, batch norm reaches {once['BN']:.0f} %, its renormalization "
        f"{once['BRN']:.0f} %, the others {min(once[kind] for kind in own):.0f} % and more. (f) "
        f"Between training and testing the outputs of batch norm change by {modes['BN']:.0f} % of their spread, those "
        f"of its renormalization by {modes['BRN']:.0f} %, the others' by {max(modes[kind] for kind in own):.0g} %. "
        f"Bars: one standard deviation over {len(ctx.seeds)} seeds."
    )
    details = {
        "images": images,
        "images online": online,
        "target of convergence": target,
        "table": values,
        "curves": {kind: [one.curve for one in row] for kind, row in found.items()},
        "degradation": {kind: degradation(_by_size(row)) for kind, row in found.items()},
        "failures": {kind: failures(found[kind], found["BN"]) for kind in ALTERNATIVES},
    }
    return Finding(decided, because, numbers, _draw(values), caption, details)


def _draw(values: Mapping[str, Mapping[str, Sequence[float]]]) -> Any:
    from validation.studies import style

    figure, axes = style.figure(2, 3, height=5.4, sharey=True)
    places = list(range(len(KINDS)))[::-1]
    for one, (column, by_kind) in zip(axes.ravel(), values.items(), strict=True):
        for place, kind in zip(places, KINDS, strict=True):
            row = np.array(by_kind[kind])
            there = row[np.isfinite(row)]
            if len(there) == 0:
                text = "–" if column == "blocked" else "not reached"
                one.text(0.5, place, text, ha="center", va="center", transform=one.get_yaxis_transform())
                continue
            look = style.of(kind)
            look.pop("label")
            one.errorbar(there.mean(), place, xerr=training.spread(there), capsize=2, linestyle="none", **look)
            one.plot(there, np.full(len(there), place), ".", color=look["color"], alpha=0.4, markersize=4)
        one.set_xlabel(UNITS[column])
        one.set_title(column)
        one.set_yticks(places, [style.NAMES[kind] for kind in KINDS])
        one.set_ylim(-0.6, len(KINDS) - 0.4)
    style.letter(axes)
    return figure


STUDY = Study(
    id="U6",
    title="Alternatives",
    claim="Layer, group and instance norm, batch renormalization and weight standardization do without batch norm's "
    "dependence on the batch, at no loss of accuracy.",
    source="Uppal 2020",
    run=run,
)
