"""The distribution of a middle layer's gradient at initialization.

Kurtosis, E[(g − ḡ)⁴] / E[(g − ḡ)²]², tells heavy tails: 3 for normal numbers, more where few entries hold most of the
gradient. It does not depend on the gradient's size.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from validation.studies import network, understanding
from validation.studies.network import Array
from validation.studies.study import Context, Finding, Measured, Study, Verdict

BATCH = 128


ARCHITECTURES = (
    understanding.Architecture("10 dense layers, He", "dense", 10, False, network.he),
    understanding.Architecture("34 dense layers, residual, Xavier", "dense", 34, True, network.xavier),
    understanding.Architecture(
        "18 layers with convolutions, residual, Xavier", "convolutional", 18, True, network.xavier
    ),
)


def kurtosis(values: Array) -> float:
    """Return the fourth moment about the mean over the square of the second."""
    squares = (values - values.mean()) ** 2
    return float(np.mean(squares**2) / np.mean(squares) ** 2)


def judge(kurtoses: dict[tuple[str, str], list[float]]) -> tuple[Verdict, str]:
    """Return the verdict: in each architecture tails are heavier without batch norm, whichever seeds one compares."""
    names = [one for one, kind in kurtoses if kind == "none"]
    holds = [min(kurtoses[name, "none"]) > max(kurtoses[name, "BN"]) for name in names]
    told = "; ".join(
        f"{understanding.spread(kurtoses[name, 'none'])} without and {understanding.spread(kurtoses[name, 'BN'])} with "
        f"batch norm ({name})"
        for name in names
    )
    return understanding.verdict(holds), f"Kurtosis of the middle layer's gradient (normal: 3): {told}."


def run(context: Context) -> Finding:
    """Look at the middle layer's gradient on one batch."""
    x, labels = understanding.samples(context)
    gradients: dict[tuple[str, str], list[Array]] = {}
    for seed in context.progress(context.seeds, "B3 seeds"):
        chosen = context.generator(seed, "batch").choice(len(x), BATCH, replace=False)
        for one in ARCHITECTURES:
            for kind in understanding.KINDS:
                made = one.build(context.generator(seed, "weights"), kind, x)
                made.differentiate(one.shaped(x[chosen]), labels[chosen])
                gradient = made.linear[one.depth // 2].gradients["weight"].ravel()
                gradients.setdefault((one.name, kind), []).append(gradient)

    kurtoses = {key: [kurtosis(row) for row in rows] for key, rows in gradients.items()}
    verdict, because = judge(kurtoses)
    numbers = []
    for (name, kind), values in kurtoses.items():
        expected = "about 20 to 40" if kind == "none" else "about 4"
        numbers.append(Measured(f"kurtosis, {name}, {understanding.NAMES[kind]}", tuple(values), expected=expected))
        sizes = [float(np.sqrt(np.mean(row**2))) for row in gradients[name, kind]]
        numbers.append(Measured(f"root mean square, {name}, {understanding.NAMES[kind]}", tuple(sizes)))
    told = ", ".join(
        f"({letter}) {np.mean(kurtoses[one.name, 'none']):.0f} and {np.mean(kurtoses[one.name, 'BN']):.1f}"
        for letter, one in zip("abc", ARCHITECTURES, strict=True)
    )
    caption = (
        "Entries of the middle layer's gradient at initialization, over their standard deviation "
        f"({len(context.seeds)} seeds together; batches of {BATCH} images; dotted: normal distribution). Kurtosis "
        f"without and with batch norm: {told}; normal: 3. The heavier the tails, the fewer entries hold most of the "
        "gradient."
    )
    edges = np.linspace(-12, 12, 97)
    shapes = {}
    for (name, kind), rows in gradients.items():
        scaled = np.concatenate([(row - row.mean()) / row.std() for row in rows])
        shapes[name, kind] = np.histogram(scaled, edges)[0] / (len(scaled) * np.diff(edges))
    details = {
        "batch": BATCH,
        "kurtosis": [{"architecture": name, "kind": kind, "values": row} for (name, kind), row in kurtoses.items()],
        "edges": edges,
        "densities": [{"architecture": name, "kind": kind, "values": row} for (name, kind), row in shapes.items()],
    }
    return Finding(verdict, because, tuple(numbers), _draw(edges, shapes), caption, details)


def _draw(edges: Array, shapes: dict[tuple[str, str], Array]) -> Any:
    from validation.studies import style

    drawn, axes = style.figure(1, 3, height=3.4, sharey=True)
    middle = (edges[1:] + edges[:-1]) / 2
    for place, one in zip(axes, ARCHITECTURES, strict=True):
        for kind in understanding.KINDS:
            place.stairs(shapes[one.name, kind], edges, color=style.COLOURS[kind], label=style.NAMES[kind])
        place.plot(
            middle, np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi), ":", color="black", label="normal", linewidth=1
        )
        first, _, rest = one.name.partition(", ")
        place.set(yscale="log", ylim=(3e-6, 10), xlabel="gradient / standard deviation", title=f"{first},\n{rest}")
    axes[0].set_ylabel("density")
    axes[0].legend(loc="upper left", fontsize=8)
    style.letter(axes)
    return drawn


STUDY = Study(
    "B3",
    "tails of the gradients",
    "At initialization the gradients of a network without batch norm are heavy-tailed, those of one with it are nearly "
    "normal.",
    "Bjorck et al. 2018, Section 3.1",
    run,
)
