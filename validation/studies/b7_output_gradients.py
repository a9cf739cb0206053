"""The gradient of the loss on the outputs, image by image and class by class, at initialization.

For cross-entropy it is p − e, the predicted probabilities less one for the right class. If all images point one way,
the gradient's direction is the bias that one class has over the others, not what distinguishes the images. Told by

* the share of images for which the most frequent prediction is predicted, and how many classes are predicted at all;
* the alignment ‖mean g‖² / mean ‖g‖²: 1/2 if one of ten equally frequent classes is predicted for sure for all images
  (the right class, which differs, is the other half of each g), near 0 if predictions vary as the images do;
* what the last layer sees, its features f: ‖mean f‖² over the variance of f. Where it is large, all images look alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from validation.studies import network, understanding
from validation.studies.network import Array
from validation.studies.study import Context, Finding, Measured, Study, Verdict

BATCH = 200
ONE, SEVERAL = 0.8, 0.6
"""Share of images of the most frequent prediction: at least, for "one class is predicted"; at most, for several."""


ARCHITECTURES = (
    understanding.Architecture("110 dense layers, residual", "dense", 110, True, network.xavier),
    understanding.Architecture("34 dense layers", "dense", 34, False, network.he),
    understanding.Architecture("18 layers with convolutions, residual", "convolutional", 18, True, network.xavier),
)


@dataclass(frozen=True)
class Outputs:
    """Gradients on the logits for each image, in the order of the labels; what is predicted; likeness of features."""

    gradient: Array
    predicted: Array
    labels: Array
    likeness: float

    @property
    def share(self) -> float:
        """Share of the images for which the most frequent prediction is predicted."""
        return float(np.bincount(self.predicted).max() / len(self.predicted))

    @property
    def classes(self) -> int:
        """How many classes are predicted."""
        return len(np.unique(self.predicted))

    @property
    def alignment(self) -> float:
        """‖mean g‖² / mean ‖g‖²."""
        return float(np.sum(self.gradient.mean(axis=0) ** 2) / np.mean(np.sum(self.gradient**2, axis=1)))


def look(made: understanding.Network, x: Array, labels: Array) -> Outputs:
    """Return the gradients and predictions of a batch."""
    order = np.argsort(labels, kind="stable")
    x, labels = x[order], labels[order]
    logits = made.layers.forward(x)
    _, gradient = network.softmax_cross_entropy(logits, labels, "sum")
    features = made.hidden[-1].x
    features = features.mean(axis=tuple(range(2, features.ndim)))
    mean = features.mean(axis=0)
    likeness = np.sum(mean**2) / np.mean(np.sum((features - mean) ** 2, axis=1))
    return Outputs(gradient, logits.argmax(axis=1), labels, float(likeness))


def judge(shares: dict[str, dict[str, list[float]]], likeness: dict[str, list[float]]) -> tuple[Verdict, str]:
    """Return the verdict from the shares by architecture and kind: one class without batch norm, several with it.

    The likeness of the features with batch norm is told where several classes are not.
    """
    holds, reasons = [], []
    for name, by_kind in shares.items():
        plain, normalized = (float(np.mean(by_kind[kind])) for kind in understanding.KINDS)
        holds += [plain >= ONE, normalized <= SEVERAL]
        told = f"{100 * plain:.0f} % without and {100 * normalized:.0f} % with batch norm ({name}"
        missed = []
        if plain < ONE:
            missed.append("without it not only one class")
        if normalized > SEVERAL:
            missed.append(
                "with it still mostly one class, as the squared mean of what the last layer sees is "
                f"{understanding.spread(likeness[name])} times the variance"
            )
        reasons.append(f"{told}{': ' if missed else ''}{', '.join(missed)})")
    return understanding.verdict(holds), f"The most frequent prediction is made for {'; '.join(reasons)}."


def run(context: Context) -> Finding:
    """Look at the gradients on the outputs of three architectures."""
    x, labels = understanding.samples(context)
    found: dict[tuple[str, str], list[Outputs]] = {}
    for seed in context.progress(context.seeds, "B7 seeds"):
        chosen = context.generator(seed, "batch").choice(len(x), BATCH, replace=False)
        for one in ARCHITECTURES:
            for kind in understanding.KINDS:
                made = one.build(context.generator(seed, "weights"), kind, x)
                outputs = look(made, one.shaped(x[chosen]), labels[chosen])
                found.setdefault((one.name, kind), []).append(outputs)

    numbers = []
    for (name, kind), rows in found.items():
        where = f"{name}, {understanding.NAMES[kind]}"
        numbers += [
            Measured(
                f"share of the most frequent prediction, {where}",
                tuple(row.share for row in rows),
                expected=f"≥ {ONE}" if kind == "none" else f"≤ {SEVERAL}",
            ),
            Measured(f"classes predicted, {where}", tuple(float(row.classes) for row in rows), expected="of 10"),
            Measured(f"alignment of the gradients, {where}", tuple(row.alignment for row in rows)),
            Measured(f"‖mean‖² over variance of the features, {where}", tuple(row.likeness for row in rows)),
        ]
    shares = {
        one.name: {kind: [row.share for row in found[one.name, kind]] for kind in understanding.KINDS}
        for one in ARCHITECTURES
    }
    likeness = {one.name: [row.likeness for row in found[one.name, "BN"]] for one in ARCHITECTURES}
    verdict, because = judge(shares, likeness)
    first = ARCHITECTURES[0].name
    told = "; ".join(
        f"{100 * np.mean(by_kind['none']):.0f} and {100 * np.mean(by_kind['BN']):.0f} % ({name})"
        for name, by_kind in shares.items()
    )
    alignments = [np.mean([row.alignment for row in found[first, kind]]) for kind in understanding.KINDS]
    shown = [found[first, kind][0].share for kind in understanding.KINDS]
    caption = (
        f"Gradient of each image's loss on the ten outputs at initialization, {first} (one network; images in the "
        "order of their labels, on the diagonal their own class): (a) without normalization one class is predicted "
        f"for {100 * shown[0]:.0f} % of the images, and its output gets their gradient; (b) with batch norm for "
        f"{100 * shown[1]:.0f} %. Alignment of the gradients {alignments[0]:.2f} and {alignments[1]:.2f} (0.5: one "
        f"class for all). (c) Share of {BATCH} images for which the most frequent prediction is made, in "
        f"{len(context.seeds)} networks each: without and with batch norm {told}. After convolutions and the average "
        f"over the image, the squared mean of the features is {np.mean(likeness[ARCHITECTURES[2].name]):.0f} times "
        f"their variance even with batch norm (dense, residual: {np.mean(likeness[first]):.1f}): images look alike."
    )
    details = {
        "batch": BATCH,
        "networks": [
            {
                "architecture": name,
                "kind": kind,
                "share": [row.share for row in rows],
                "classes": [row.classes for row in rows],
                "alignment": [row.alignment for row in rows],
                "likeness": [row.likeness for row in rows],
            }
            for (name, kind), rows in found.items()
        ],
        "first_seed": {
            kind: {"gradient": found[first, kind][0].gradient, "labels": found[first, kind][0].labels}
            for kind in understanding.KINDS
        },
    }
    return Finding(verdict, because, tuple(numbers), _draw(found, shares), caption, details)


def _draw(found: dict[tuple[str, str], list[Outputs]], shares: dict[str, dict[str, list[float]]]) -> Any:
    from validation.studies import style

    drawn, axes = style.figure(1, 3, height=3.8)
    for place, kind in zip(axes, understanding.KINDS, strict=False):
        outputs = found[ARCHITECTURES[0].name, kind][0]
        image = place.imshow(
            outputs.gradient, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest", rasterized=True
        )
        place.grid(False)
        starts = np.searchsorted(outputs.labels, np.arange(10))
        place.set(xticks=range(10), yticks=starts, yticklabels=range(10), xlabel="output", title=style.NAMES[kind])
    axes[0].set_ylabel("image, by its label")
    drawn.colorbar(image, ax=axes[1], label="gradient", shrink=0.9)
    for kind, shift in zip(understanding.KINDS, (-0.1, 0.1), strict=True):
        for place, by_kind in enumerate(shares.values()):
            own = by_kind[kind]
            axes[2].plot([place + shift] * len(own), own, linestyle="", **style.of(kind, label=None))
        axes[2].plot([], [], linestyle="", **style.of(kind))
    names = ("dense,\nresidual", "dense,\nplain", "conv.,\nresidual")
    axes[2].set(xticks=range(len(names)), xticklabels=names, xlim=(-0.5, len(names) - 0.5), ylim=(0, 1.25))
    axes[2].set(ylabel="share of most frequent prediction", title="one class?", yticks=np.arange(0, 1.01, 0.2))
    axes[2].legend(fontsize=8)
    style.letter(axes)
    return drawn


STUDY = Study(
    "B7",
    "gradients of the outputs",
    "Without batch norm the gradients on the outputs point the same way for all images at initialization, and one "
    "class is predicted for all; with it they depend on the image.",
    "Bjorck et al. 2018, Section 3.1",
    run,
)
