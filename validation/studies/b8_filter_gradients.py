"""Whether images and positions agree on the gradients of a convolution's filters.

A filter's gradient is a sum over images b and positions (x, y) of contributions dᵇˣʸ. If they have one sign,
Σ|d| = |Σ d|; if signs are independent of one another, Σ|d| is larger, as told by the ratio for random signs,
Σ|d| / (√(2/π)·√Σd²), the expectation of |Σ ±d| being √(2/π)·√Σd² for many terms. As dᵇˣʸ = dy·x, one output's gradient
times one input, sums of |d| and of d² are the filter's gradients for |dy|, |x| and for dy², x².
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from validation.studies import understanding
from validation.studies.network import Array
from validation.studies.study import Context, Finding, Measured, Study, Verdict

BATCH = 128
DEPTH = 18
LAYERS = (3, 9, 15)
FAR = 3.0
"""How many times larger a ratio must be to be "far larger"."""


def sums(columns: Array, dy: Array) -> tuple[Array, Array, Array]:
    """Return |Σd|, Σ|d| and Σd² over images and positions, for each entry of each filter.

    Parameters
    ----------
    columns : ndarray
        The input's patches, see `validation.studies.network.Convolution`.
    dy : ndarray, shape (samples, outputs, height, width)
    """
    axes = ((0, 2, 3), (0, 2, 3))
    total, sizes, squares = (np.tensordot(f(dy), f(columns), axes=axes) for f in (np.positive, np.abs, np.square))
    return np.abs(total), sizes, squares


def judge(ratios: dict[str, dict[int, list[float]]]) -> tuple[Verdict, str]:
    """Return the verdict: in each layer the ratio is far larger with batch norm, in the mean and for all seeds."""
    holds = [
        np.mean(ratios["BN"][layer]) >= FAR * np.mean(plain) and min(ratios["BN"][layer]) > max(plain)
        for layer, plain in ratios["none"].items()
    ]
    told = "; ".join(
        f"{understanding.spread(plain)} and {understanding.spread(ratios['BN'][layer])} (layer {layer + 1})"
        for layer, plain in ratios["none"].items()
    )
    return understanding.verdict(holds), f"Σ|∂L/∂K| over |Σ∂L/∂K|, without and with batch norm: {told}."


def run(context: Context) -> Finding:
    """Compare the sums in three layers of residual networks at initialization."""
    x, labels = understanding.samples(context)
    found: dict[tuple[str, int], list[tuple[Array, Array, Array]]] = {}
    for seed in context.progress(context.seeds, "B8 seeds"):
        chosen = context.generator(seed, "batch").choice(len(x), BATCH, replace=False)
        for kind in understanding.KINDS:
            made = understanding.build(
                "convolutional", context.generator(seed, "weights"), DEPTH, kind, x, residual=True
            )
            made.differentiate(x[chosen], labels[chosen])
            for layer in LAYERS:
                found.setdefault((kind, layer), []).append(sums(made.linear[layer].columns, made.sums[layer].dy))

    ratios: dict[str, dict[int, list[float]]] = {kind: {} for kind in understanding.KINDS}
    random: dict[str, dict[int, list[float]]] = {kind: {} for kind in understanding.KINDS}
    numbers = []
    for (kind, layer), rows in found.items():
        ratios[kind][layer] = [float(size.mean() / total.mean()) for total, size, _ in rows]
        random[kind][layer] = [
            float(size.mean() / (math.sqrt(2 / math.pi) * np.sqrt(square).mean())) for _, size, square in rows
        ]
        where = f"layer {layer + 1}, {understanding.NAMES[kind]}"
        numbers += [
            Measured(f"mean of |Σ∂L/∂K|, {where}", tuple(float(total.mean()) for total, _, _ in rows)),
            Measured(f"mean of Σ|∂L/∂K|, {where}", tuple(float(size.mean()) for _, size, _ in rows)),
            Measured(f"their ratio, {where}", tuple(ratios[kind][layer]), expected="1 if all signs agree"),
            Measured(f"ratio for random signs, {where}", tuple(random[kind][layer])),
        ]
    verdict, because = judge(ratios)

    def told(kind: str) -> str:
        return ", ".join(f"{np.mean(ratios[kind][layer]):.1f}" for layer in LAYERS)

    chance = [value for row in random.values() for values in row.values() for value in values]
    caption = (
        f"A filter entry's gradient is a sum over {BATCH} images and all positions. In three layers of residual "
        f"networks of {DEPTH} layers at initialization: sum of absolute values against absolute value of the sum, (a) "
        "without normalization and (b) with batch norm (dots: entries of one network; line: equal, as if all "
        f"contributions had one sign). (c) Ratio of the means ({len(context.seeds)} seeds): {told('none')} without "
        f"and {told('BN')} with batch norm in layers {', '.join(str(layer + 1) for layer in LAYERS)}; random signs "
        f"would give {min(chance):.0f} to {max(chance):.0f} (crosses)."
    )
    details = {
        "batch": BATCH,
        "depth": DEPTH,
        "layers": LAYERS,
        "ratios": ratios,
        "random_signs": random,
        "first_seed": [
            {"kind": kind, "layer": layer, "abs_sum": rows[0][0].ravel(), "sum_abs": rows[0][1].ravel()}
            for (kind, layer), rows in found.items()
        ],
    }
    return Finding(verdict, because, tuple(numbers), _draw(found, ratios, random), caption, details)


def _draw(found: Any, ratios: Any, random: Any) -> Any:
    from validation.studies import style

    drawn, axes = style.figure(1, 3, height=3.4)
    every = [row for rows in found.values() for row in rows[:1]]
    low = min(float(np.quantile(total[total > 0], 0.02)) for total, _, _ in every)
    high = max(float(size.max()) for _, size, _ in every)
    for place, kind in zip(axes, understanding.KINDS, strict=False):
        for shade, layer in zip(style.CYCLE[2:], LAYERS, strict=False):
            total, size, _ = found[kind, layer][0]
            place.plot(total.ravel(), size.ravel(), ".", color=shade, markersize=2, label=f"layer {layer + 1}")
        place.plot([low, high], [low, high], color="black", linewidth=1)
        limits = (low, 2 * high)
        place.set(xscale="log", yscale="log", xlim=limits, ylim=limits, xlabel="|Σ ∂L/∂K|", title=style.NAMES[kind])
    axes[0].set_ylabel("Σ |∂L/∂K|")
    axes[0].legend(loc="lower right", markerscale=4, fontsize=8)
    for kind, shift in zip(understanding.KINDS, (-0.12, 0.12), strict=True):
        at = np.arange(len(LAYERS)) + shift
        for place, layer in zip(at, LAYERS, strict=True):
            own = ratios[kind][layer]
            axes[2].plot([place] * len(own), own, linestyle="", **style.of(kind, label=None))
        axes[2].plot([], [], linestyle="", **style.of(kind))
        chance = [np.mean(random[kind][layer]) for layer in LAYERS]
        axes[2].plot(at, chance, "x", color=style.COLOURS[kind])
    axes[2].plot([], [], "x", color="black", label="random signs")
    axes[2].axhline(1, color="black", linewidth=1)
    axes[2].set(
        yscale="log",
        ylim=(0.2, 100),
        xticks=range(len(LAYERS)),
        xticklabels=[str(layer + 1) for layer in LAYERS],
        xlabel="layer",
        ylabel="Σ |∂L/∂K| over |Σ ∂L/∂K|",
        title="ratio of means",
    )
    axes[2].legend(loc="lower left", fontsize=8)
    style.letter(axes)
    return drawn


STUDY = Study(
    "B8",
    "gradients of filters",
    "Without batch norm the contributions of images and positions to a filter's gradient have similar signs, as if "
    "they did not depend on the input; with it they cancel: the gradients depend on the input.",
    "Bjorck et al. 2018, Section 3.1",
    run,
)
