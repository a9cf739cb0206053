"""Z5: what remains of −log sigmoid behind the second order: small absolutely, not relatively.

The first and second order of the loss cannot pass batch norm, so the size of the third, relative to them, decides
what still does. With σ = sigmoid(z), z the logit of a sample's true class,

    L′ = −(1 − σ)        L″ = σ(1 − σ)        L‴ = σ(1 − σ)(1 − 2σ)

so |L″| ≤ 1/4 and |L‴| ≤ 1/(6√3) < 0.1. But |L″/L′| = σ and |L‴/L″| = |1 − 2σ| = tanh(|z|/2) tend to 1: the surer the
classifier, the more alike are all its derivatives, and a loss that is all higher orders passes. Measured besides the
sizes:

* the logits of a logistic regression that was fitted to digits (even against odd), on images it has not seen, and the
  ratios there;
* the share of the gradient that passes batch norm's standardization where all samples of a batch have one label,
  y = γx̂ + β is the logit and x normal: for L itself, and for its expansion about β up to the second order, of which
  nothing passes.

Criterion: the remainder is *absolutely* small if max |L‴| < 0.1, *relatively* small if the median of |L‴/L″| over the
held-out images and the passing shares for γ = 1 are below 0.1. Both: confirmed; one: partly; none: not confirmed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import refbn
from validation.studies import data, style
from validation.studies.study import Context, Finding, Measured, Study, Verdict

__all__ = ["SMALL", "STUDY", "derivatives", "passing", "verdict"]

Array = npt.NDArray[np.float64]

SMALL = 0.1
GAMMAS = (0.1, 0.5, 1.0, 2.0)
LOGITS = np.linspace(-12, 12, 481)
BETAS = np.linspace(-8, 8, 17)


def derivatives(z: Array) -> tuple[Array, Array, Array]:
    """Return L′, L″ and L‴ of −log sigmoid(z), accurate in both tails."""
    small = np.exp(-np.abs(z))
    right = np.where(z >= 0, 1, small) / (1 + small)  # sigmoid(z)
    wrong = np.where(z >= 0, small, 1) / (1 + small)  # sigmoid(−z)
    second = right * wrong
    return -wrong, second, second * -np.tanh(z / 2)


def passing(x: Array, gamma: float, betas: Array) -> tuple[Array, Array]:
    """Return which share of the squared gradient passes for each β: of the loss, and of its second-order expansion."""
    shape = len(x), len(betas)
    fwd = refbn.forward(np.broadcast_to(x[:, None], shape), np.full(shape[1], gamma), betas, eps=0.0)
    first, second, _ = derivatives(betas)
    upstream = derivatives(fwd.y)[0], first + second * (fwd.y - betas)
    whole, expanded = (1 - refbn.blindness(fwd.saved, dy).fraction for dy in upstream)
    return whole, expanded


def _held_out_logits(seed: int, ctx: Context) -> Array:
    """Return the logits of the true class, of a logistic regression on images that it was not fitted to."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    loaded = data.load(ctx.data)
    rows = np.concatenate(loaded.rows())
    odd = np.concatenate([loaded.train_labels, loaded.test_labels]) % 2
    state = int(ctx.generator(seed, "split").integers(2**31))
    fitted_x, held_x, fitted_y, held_y = train_test_split(rows, odd, test_size=0.5, random_state=state, stratify=odd)
    model = LogisticRegression(max_iter=2000).fit(fitted_x, fitted_y)
    return np.where(held_y == 1, 1, -1) * model.decision_function(held_x)


def verdict(largest: float, ratio: float, share: float) -> tuple[Verdict, str]:
    """Judge by the criterion above: max |L‴|, the median |L‴/L″| of held-out images, the largest share for γ = 1."""
    absolutely, relatively = largest < SMALL, max(ratio, share) < SMALL
    because = (
        f"|L‴| ≤ {largest:.3f}, but on held-out images the median of |L‴/L″| is {ratio:.2f}, and of one label's "
        f"gradient up to {share:.0%} pass for γ = 1"
    )
    if absolutely and relatively:
        return "confirmed", because.replace(", but", ", and")
    if absolutely:
        return "partly", f"small absolutely, not relatively: {because}"
    return "not confirmed", because


def run(ctx: Context) -> Finding:
    """Measure and judge."""
    m = 256 if ctx.quick else 1024
    first, second, third = derivatives(LOGITS)
    fine = np.linspace(-4, 4, 80001)
    largest = {name: float(np.abs(d).max()) for name, d in zip(("L″", "L‴"), derivatives(fine)[1:], strict=True)}
    logits = [_held_out_logits(seed, ctx) for seed in ctx.seeds]
    at_logits = [derivatives(z) for z in logits]
    medians = {
        "|L′|": [float(np.median(np.abs(d[0]))) for d in at_logits],
        "|L″|": [float(np.median(np.abs(d[1]))) for d in at_logits],
        "|L‴|": [float(np.median(np.abs(d[2]))) for d in at_logits],
        "|L″/L′|": [float(np.median(np.abs(d[1] / d[0]))) for d in at_logits],
        "|L‴/L″|": [float(np.median(np.abs(d[2] / d[1]))) for d in at_logits],
    }
    shares: dict[float, list[list[float]]] = {gamma: [] for gamma in GAMMAS}
    expansions = []
    for seed in ctx.progress(ctx.seeds, "one label's batch"):
        x = ctx.generator(seed, "x").standard_normal(m)
        for gamma in GAMMAS:
            whole, expanded = passing(x, gamma, BETAS)
            shares[gamma].append(whole.tolist())
            expansions.append(float(np.abs(expanded).max()))
    peak = float(np.mean([max(line) for line in shares[1.0]]))
    decided, because = verdict(largest["L‴"], float(np.mean(medians["|L‴/L″|"])), peak)
    rows = [
        Measured("largest |L″|", (largest["L″"],), expected="1/4"),
        Measured("largest |L‴|", (largest["L‴"],), expected=f"1/(6√3) = {1 / (6 * math.sqrt(3)):.4f}"),
        *(
            Measured(
                f"median {name} on held-out images", tuple(values), expected="" if "/" not in name else f"< {SMALL}"
            )
            for name, values in medians.items()
        ),
        *(
            Measured(
                f"largest share of the gradient that passes, γ = {gamma:g}",
                tuple(max(line) for line in lines),
                expected=f"< {SMALL}",
            )
            for gamma, lines in shares.items()
        ),
        Measured("the same of the expansion of second order", (max(expansions),), expected="0, the rest is rounding"),
    ]
    ratio, sizes = float(np.mean(medians["|L‴/L″|"])), float(np.mean(medians["|L‴|"]))
    tail = float(np.mean([lines[-1] for lines in shares[2.0]]))
    caption = (
        f"The third derivative of −log sigmoid is small, |L‴| ≤ {largest['L‴']:.3f} (a), but not beside the lower "
        "ones: |L″/L′| tends to 1 on the side of right answers, |L‴/L″| on both (b); on held-out images (grey "
        f"histogram: logits of the true class) the median |L‴| is {sizes:.4f} and the median |L‴/L″| {ratio:.2f}. So "
        "not all of the gradient is blocked in a batch of one label whose logits are γx̂ + β (c): for γ = 1 up to "
        f"{peak:.0%} of its squared length pass, for γ = 2 and β = {BETAS[-1]:g} {tail:.0%}; for γ = 0.1 at most "
        f"{max(max(line) for line in shares[0.1]):.0e}. Bands: smallest and largest of the seeds."
    )
    details = {
        "logits": LOGITS,
        "first": first,
        "second": second,
        "third": third,
        "medians": medians,
        "betas": BETAS,
        "passing shares": shares,
    }
    return Finding(decided, because, tuple(rows), _figure(logits, shares), caption, details)


def _figure(logits: Sequence[Array], shares: dict[float, list[list[float]]]) -> Any:
    figure, axes = style.figure(1, 3, height=3.6)
    first, second, third = (np.abs(d) for d in derivatives(LOGITS))
    for values, name, line in ((first, "|L′|", "-"), (second, "|L″|", "--"), (third, "|L‴|", ":")):
        axes[0].plot(LOGITS, values, linestyle=line, label=name)
    axes[0].set_yscale("log")
    axes[0].set_ylim(1e-4, 2)
    axes[0].set_xlabel("logit of the true class, z")
    axes[0].set_ylabel("size of the derivative")
    axes[1].plot(LOGITS, second / first, color=style.CYCLE[1], linestyle="--", label="|L″/L′|")
    axes[1].plot(LOGITS, third / second, color=style.CYCLE[2], linestyle=":", label="|L‴/L″|")
    heights, edges = np.histogram(np.concatenate(logits), bins=48, range=(-12, 12))
    axes[1].bar(edges[:-1], heights / heights.max() * 0.5, np.diff(edges), align="edge", color="#bbbbbb", zorder=0)
    axes[1].set_xlabel("logit of the true class, z")
    axes[1].set_ylabel("ratio of sizes")
    axes[1].set_ylim(0, 1.05)
    for place, (gamma, lines) in enumerate(shares.items()):
        values = np.array(lines)
        axes[2].plot(BETAS, values.mean(0), color=style.CYCLE[place], label=f"γ = {gamma:g}")
        axes[2].fill_between(BETAS, values.min(0), values.max(0), color=style.CYCLE[place], alpha=0.2, linewidth=0)
    axes[2].set_xlabel("mean logit of the batch, β")
    axes[2].set_ylabel("passing share of |gradient|²")
    axes[2].set_ylim(0, 1)
    style.letter(axes)
    for one in axes:
        one.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2)
    return figure


STUDY = Study(
    id="Z5",
    title="What remains behind the second order",
    claim="What remains of −log sigmoid behind the second order of its expansion, and does pass batch norm, is small.",
    source="Zhou et al. 2022, Appendix F",
    run=run,
)
