"""E2: a normalizing flow of images of two categories, and the gradient of its prior through a final norm.

**The prior, exactly.** −log p(y) = ½‖y‖² + const has one gradient and one Hessian, the identity, for all samples, so
Theorems 1 and 2 apply: through a batch norm at ε = 0, whatever γ and β, it has no gradient on x. That is computed in
exact arithmetic by a reverse tape over the forward pass, on what a trained flow returns for a batch. Two controls: the
same through frozen statistics, and through a layer norm with an affine phase. (Through a layer norm without one,
‖y‖² is constant too, and the gradient 0.) For ε > 0 the leak is measured against frozen statistics.

**The flow.** Real NVP on images of 8 and 9, with batch norm, layer norm or nothing in the networks of its couplings.
Pixels get uniform noise of one step and lie in [−1, 1]. Of pairs of images, an 8 and a 9, the mixtures αx₁ + (1−α)x₀
are judged by the log-likelihood, in nats for each pixel, with running statistics; all α get the same noise, so that
mixing does not change its size. The *dip* is the mean of both ends less the value in the middle: above 0 where a flow
knows images from mixtures. Unlike the gradient, this is statistics on few images.

Criterion. *Exact*: the prior's gradient is 0 through batch norm at ε = 0 in every channel, and in none of both
controls. *Mixtures*, on held-out images: the dip is above 0 with layer norm, and below that with batch norm, each by
two standard errors over the seeds. *Cause*: the dip is above 0 without a norm too, so that it is batch norm that loses
it. Confirmed: all three; not confirmed: not even the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from refbn._formats import BINARY64
from refbn.exact import Exact, Var, gradient, program, round_number
from refbn.exact.arrays import vectors
from validation.studies import data, network
from validation.studies.exact_batches import rational
from validation.studies.study import Context, Finding, Measured, Study, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STUDY", "judge", "prior_gradient"]

Array = network.Array

CATEGORIES = (8, 9)
KINDS = ("none", "BN", "LN")
COUPLINGS, WIDTH, BATCH, RATE = 6, 64, 64, 2e-3
STEPS, QUICK_STEPS = 400, 120
ALPHAS = np.linspace(0, 1, 17)
EXACT_BATCH, CHANNELS, QUICK_CHANNELS = 16, 64, 16
EPSILONS = (Fraction(0), *(Fraction(1, 10**power) for power in (8, 6, 4, 2, 0)))


@dataclass(frozen=True, eq=False)
class _Curves:
    """Log-likelihoods along the mixtures, of images trained on and of others, and of all single images."""

    train: Array
    test: Array


@dataclass(frozen=True)
class _Prior:
    """In how many channels or samples the prior's gradient is exactly 0, of how many, and its size over ε."""

    zero: dict[str, int]
    asked: dict[str, int]
    sizes: dict[str, list[float]]


def prior_gradient(x: Exact, gamma: Exact, beta: Exact, eps: Fraction, frozen: bool = False) -> Exact:
    """Return the gradient of ½‖y‖² on x, y a norm's output with the statistics of x, or frozen ones equal to them."""
    leaf = Var(x, wanted=True)
    if frozen:
        mean, _, var = program.moments(x)
        y = program.frozen(leaf, Var(mean), Var(var), Var(gamma), Var(beta), eps)
    else:
        y = program.batch_norm(leaf, Var(gamma), Var(beta), eps)
    (found,) = gradient((y * y).sum() * Fraction(1, 2), Exact.number(1), [leaf])
    return Exact.zeros(x.length) if found is None else found


def judge(prior: list[_Prior], dips: dict[str, tuple[float, ...]]) -> tuple[Verdict, str]:
    """Return the verdict from the exact gradients and the dips, by kind and seed, on images not trained on."""
    zero = {key: sum(p.zero[key] for p in prior) for key in prior[0].zero}
    asked = {key: sum(p.asked[key] for p in prior) for key in prior[0].asked}
    exact = zero["BN"] == asked["BN"] and not zero["frozen"] and not zero["LN"]
    told = (
        f"the prior's gradient through batch norm at ε = 0 is exactly 0 in {zero['BN']} of {asked['BN']} channels "
        f"(frozen statistics {zero['frozen']}, layer norm {zero['LN']} of {asked['LN']} samples)"
    )
    if not exact:
        return "not confirmed", f"{told}."
    dip = {kind: _mean_and_error(values) for kind, values in dips.items()}
    apart = _mean_and_error(np.subtract(dips["LN"], dips["BN"]))
    mixtures = (
        "the dip of the log-likelihood between two held-out images is {:.3f} ± {:.3f} nats a pixel with layer norm, "
        "{:.3f} ± {:.3f} with batch norm and {:.3f} ± {:.3f} without a norm (standard errors)"
    ).format(*dip["LN"], *dip["BN"], *dip["none"])
    if not (_positive(dip["LN"]) and _positive(apart)):
        return "partly", f"{told}. Not shown for mixtures: {mixtures}."
    if not _positive(dip["none"]):
        return "partly", f"{told}; {mixtures}, so that batch norm is not the only cause."
    return "confirmed", f"{told}; {mixtures}."


def _positive(mean_and_error: tuple[float, float]) -> bool:
    mean, error = mean_and_error
    return mean > 2 * error


def _mean_and_error(values: tuple[float, ...] | Array) -> tuple[float, float]:
    if len(values) < 2:
        return float(np.mean(values)), math.inf  # a single seed shows nothing
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def run(context: Context) -> Finding:
    """Train all flows for all seeds."""
    images = data.load(context.data)
    train = [_of(images.train_images, images.train_labels, category) for category in CATEGORIES]
    test = [_of(images.test_images, images.test_labels, category) for category in CATEGORIES]
    curves: dict[str, list[_Curves]] = {kind: [] for kind in KINDS}
    prior: list[_Prior] = []
    for seed, kind in context.progress([(seed, kind) for seed in context.seeds for kind in KINDS], "flows"):
        flow = _train(context, np.concatenate(train), images.levels, seed, kind)
        curves[kind].append(_Curves(*(_along(context, flow, of, images.levels, seed) for of in (train, test))))
        if kind == "BN":
            generator = context.generator(seed, "prior")
            z = flow.forward(_noisy(generator, np.concatenate(test), images.levels), train=False)
            prior.append(_prior(generator, z[generator.permutation(len(z))], context))

    dips = {
        (kind, part): tuple(
            float((c[0] + c[-1]) / 2 - c[len(c) // 2]) for c in (getattr(of, part) for of in curves[kind])
        )
        for kind in KINDS
        for part in ("test", "train")
    }
    verdict, because = judge(prior, {kind: dips[kind, "test"] for kind in KINDS})
    nats = "nats/pixel"
    rows = [
        Measured(f"{name}, fraction exactly 0 at ε = 0", tuple(p.zero[key] / p.asked[key] for p in prior), "", expected)
        for key, name, expected in (
            ("BN", "prior's gradient through batch norm", "1"),
            ("frozen", "prior's gradient through frozen statistics", "0"),
            ("LN", "prior's gradient through layer norm", "0"),
            ("LN without affine", "prior's gradient through layer norm without γ and β", "1"),
        )
    ]
    titles = {"none": "no norm", "BN": "batch norm", "LN": "layer norm"}
    for part, name in (("test", "held-out images"), ("train", "images trained on")):
        for kind in KINDS:
            ends = tuple(float((c[0] + c[-1]) / 2) for c in (getattr(of, part) for of in curves[kind]))
            rows += [
                Measured(f"log-likelihood of {name}, {titles[kind]}", ends, nats),
                Measured(f"dip between {name}, {titles[kind]}", dips[kind, part], nats),
            ]
    leak = np.mean([p.sizes["BN"] for p in prior], axis=0)
    mean = {key: float(np.mean(values)) for key, values in dips.items()}
    caption = (
        "(a), (b) Log-likelihood of mixtures αx₁ + (1−α)x₀ of an 8 and a 9 by Real NVP with batch norm, layer norm or "
        "no norm in its couplings: means over pairs and seeds, and ranges over the seeds. The dip, "
        f"from the mean of both ends to the middle, is {mean['LN', 'test']:.2f} nats a pixel with layer norm, "
        f"{mean['BN', 'test']:.2f} with batch norm and {mean['none', 'test']:.2f} without a norm between held-out "
        f"images (a), and {mean['LN', 'train']:.2f}, {mean['BN', 'train']:.2f} and {mean['none', 'train']:.2f} between "
        "images that were trained on (b). (c) The Gaussian prior’s gradient through a final norm, in exact arithmetic, "
        "over that through frozen statistics. Through batch norm at ε = 0 it is exactly 0 in "
        f"{sum(p.zero['BN'] for p in prior)} of {sum(p.asked['BN'] for p in prior)} channels, and for ε > 0 it leaks "
        f"in proportion ({leak[1]:.0e} at ε = 10⁻⁸); through layer norm with γ and β it passes."
    )
    details = {
        "alphas": ALPHAS,
        "curves": {kind: [{"train": c.train, "test": c.test} for c in of] for kind, of in curves.items()},
        "epsilons": [float(eps) for eps in EPSILONS],
        "prior": [{"zero": p.zero, "asked": p.asked, "sizes": p.sizes} for p in prior],
    }
    return Finding(verdict, because, tuple(rows), _figure(curves, prior), caption, details)


def _of(images: Array, labels: Array, category: int) -> Array:
    return images[labels == category].reshape(int((labels == category).sum()), -1)


def _noisy(generator: np.random.Generator, pixels: Array, levels: int) -> Array:
    """Return pixels, from 0 to 1 in steps of 1/(levels − 1), with uniform noise of one step, scaled to [−1, 1]."""
    return 2 * (pixels * (levels - 1) + generator.random(pixels.shape)) / levels - 1


def _train(context: Context, pixels: Array, levels: int, seed: int, kind: str) -> network.Flow:
    weights = context.generator(seed, "weights")
    features = pixels.shape[1]
    side = math.isqrt(features)
    board = np.arange(features) % 2 == 0 if side**2 != features else np.indices((side, side)).sum(0).ravel() % 2 == 0
    couplings = []
    for place in range(COUPLINGS):
        mask = board if place % 2 == 0 else ~board
        inside, outside = int(mask.sum()), int((~mask).sum())
        net = network.perceptron(weights, (inside, WIDTH, WIDTH, 2 * outside), kind)
        *_, last = net.layers()
        last.parameters["weight"][:] = 0  # the flow begins as the identity
        couplings.append(network.Coupling(mask, net))
    flow = network.Flow(*couplings)
    optimizer = network.Adamax(flow, RATE)
    generator = context.generator(seed, "batches")  # the same for all kinds
    for _ in range(QUICK_STEPS if context.quick else STEPS):
        batch = pixels[generator.choice(len(pixels), BATCH, replace=False)]
        flow.log_likelihood(_noisy(generator, batch, levels))
        flow.backward(np.full(BATCH, -1 / BATCH))
        optimizer.step()
    return flow


def _along(context: Context, flow: network.Flow, categories: list[Array], levels: int, seed: int) -> Array:
    """Return the mean log-likelihood for each pixel at each α."""
    pairs = min(map(len, categories))
    first, second = (category[:pairs] for category in categories)
    values = []
    for alpha in ALPHAS:
        generator = context.generator(seed, "noise")  # anew, and so the same for each α
        x = _noisy(generator, alpha * second + (1 - alpha) * first, levels)
        values.append(flow.log_likelihood(x, train=False).mean() / x.shape[1])
    return np.array(values)


def _prior(generator: np.random.Generator, z: Array, context: Context) -> _Prior:
    """Return what becomes of the prior's gradient through a final norm of z (samples, features), exactly."""
    z = z[:EXACT_BATCH, : QUICK_CHANNELS if context.quick else CHANNELS]
    zero = dict.fromkeys(("BN", "frozen", "LN", "LN without affine"), 0)
    asked = dict.fromkeys(zero, 0)
    sizes: dict[str, list[float]] = {"BN": [], "LN": []}
    parameters = [(rational(generator, zero=False), rational(generator, zero=False)) for _ in range(z.shape[1])]
    gammas, betas = vectors(np.array(parameters, dtype=object).T, "parameters")
    one, nothing = Exact.number(1), Exact.number(0)
    for eps in EPSILONS:
        ratios: dict[str, list[float]] = {"BN": [], "LN": []}
        for column, (gamma, beta) in zip(vectors(z.T, "z"), parameters, strict=True):
            arguments = column, Exact.number(gamma), Exact.number(beta), eps
            through, frozen = (prior_gradient(*arguments, frozen=frozen) for frozen in (False, True))
            ratios["BN"].append(_ratio(through, frozen))
            if eps == 0:
                for key, found in (("BN", through), ("frozen", frozen)):
                    zero[key] += found.is_zero()
                    asked[key] += 1
        for row in vectors(z, "z"):
            arguments = row, gammas, betas, eps
            through, frozen = (prior_gradient(*arguments, frozen=frozen) for frozen in (False, True))
            ratios["LN"].append(_ratio(through, frozen))
            if eps == 0:
                plain = prior_gradient(row, one, nothing, eps)
                for key, found in (("LN", through), ("LN without affine", plain)):
                    zero[key] += found.is_zero()
                    asked[key] += 1
        for key, values in ratios.items():
            sizes[key].append(float(np.mean(values)))
    return _Prior(zero, asked, sizes)


def _ratio(through: Exact, frozen: Exact) -> float:
    """Return ‖through‖/‖frozen‖."""
    lengths = [round_number(*(g * g).sum().parts(), BINARY64) for g in (through, frozen)]
    return math.sqrt(lengths[0] / lengths[1])


def _figure(curves: dict[str, list[_Curves]], prior: list[_Prior]) -> Figure:
    from validation.studies import style

    figure = style.blank(height=6.2)
    upper, lower = figure.subfigures(2, 1)
    panels = [*upper.subplots(1, 2), lower.subplots()]
    for axes, part, title in zip(panels, ("test", "train"), ("held-out images", "images trained on"), strict=False):
        for kind in KINDS:
            lines = np.array([getattr(of, part) for of in curves[kind]])
            axes.plot(ALPHAS, lines.mean(axis=0), **style.of(kind, markevery=4))
            axes.fill_between(
                ALPHAS, lines.min(axis=0), lines.max(axis=0), color=style.COLOURS[kind], alpha=0.15, linewidth=0
            )
        axes.set(xlabel="α (0: an 8, 1: a 9)", title=title)
    panels[0].set_ylabel("log-likelihood (nats per pixel)")
    panels[0].legend()
    places = range(len(EPSILONS))
    for kind, label in (("BN", "through batch norm"), ("LN", "through layer norm")):
        panels[2].plot(places, np.mean([p.sizes[kind] for p in prior], axis=0), **style.of(kind, label=label))
    panels[2].set_yscale("symlog", linthresh=1e-10)
    panels[2].set(xlabel="ε", ylabel="prior’s gradient\nover that of frozen statistics", ylim=(-3e-11, 10))
    panels[2].set_xticks(places, ["0", *(f"$10^{{{round(math.log10(eps))}}}$" for eps in EPSILONS[1:])])
    panels[2].annotate("exactly 0", (0, 0), (0.35, 0), va="center", arrowprops={"arrowstyle": "-", "color": "#555555"})
    panels[2].set_title("the prior through a final norm, exactly")
    panels[2].legend(loc="center right")
    style.letter(panels)
    return figure


STUDY = Study(
    id="E2",
    title="A normalizing flow",
    claim="A Gaussian prior has no gradient through a final batch norm, so that a flow with batch norm does not learn "
    "to tell images from mixtures of two of them, while one with layer norm does.",
    source="Zhou et al. 2022, experiments on Real NVP",
    run=run,
)
