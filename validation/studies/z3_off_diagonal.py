"""Z3: of the off-diagonal of the loss's Hessian only what is not linear in a channel's own x̂ reaches its inputs.

With Σ_{d<e} H_de·(y_d − ỹ_d)(y_e − ỹ_e) over samples, H at random, on random batches of 2 to 4 channels, exactly: the
gradient on x_d is γ_d/√(var_d+ε) · Σ_{e≠d} H_de·γ_e·(x̂_e − C_de·x̂_d) with C_de = mean(x̂_d·x̂_e), by a reverse tape over
the whole loss. Split each x̂_e into its regression on x̂_d and the rest. The linear part of the upstream gradient comes
back as κ_d times itself, as 0 at ε = 0; the rest passes whole; and the squared length of what passes from e is
scale²·(1 − ρ²), that of what leaks scale²·κ_d²·ρ², where ρ is the channels' correlation and scale what would come back
if statistics were frozen. These are identities between squares of lengths, and so between exact numbers.

In networks (the paper's check on AlexNet and LeNet, in kind): the last hidden layer of a classifier of digits, before
and after training. H is the Hessian of its cross-entropy on the layer's outputs, averaged over the samples, by its
formula, since all that follows is piecewise linear but for the softmax.

Criterion: confirmed if the identities hold in all instances, each control fails in all of them, and in the network the
linear part comes back as κ times itself and the rest whole, to within the rounding of the linear algebra (10⁻⁹).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

import refbn
from refbn.exact import Exact, Var
from validation.studies import exact_batches as exact
from validation.studies import network, style
from validation.studies.blind_networks import called, images
from validation.studies.study import Context, Finding, Measured, Study, Verdict
from validation.studies.training import train

__all__ = ["EXPECTED", "STUDY", "judge", "mean_hessian", "network_parts", "verdict"]

Array = npt.NDArray[Any]

WHOLE = "∂/∂x_d is exactly γr·Σ H γ_e(x̂_e − C x̂_d)"
SPLIT = "and the sum of its linear and non-linear parts"
LEAKS = "linear part: exactly κ of it comes back"
ZERO = "linear part: exactly 0 at ε = 0"
PASSES = "non-linear part: exactly all of it comes back"
SQUARES = "non-linear part: length² = scale²·(1 − ρ²) exactly"
LEAKED = "linear part: length² = scale²·κ²ρ² exactly"
EXPECTED = {
    **dict.fromkeys((WHOLE, SPLIT, LEAKS, ZERO, PASSES, SQUARES, LEAKED, "P"), "1"),
    **dict.fromkeys(exact.BROKEN, "0"),
}
KAPPAS = (0.0, 0.1, 0.5)


# ---- exactly --------------------------------------------------------------------------------------------------------


def judge(generator: np.random.Generator) -> Mapping[str, bool]:
    """Judge one random instance exactly."""
    batch = exact.random_batch(generator, channels=int(generator.integers(2, 5)))
    n = len(batch)
    hessian = {(d, e): exact.rational(generator, zero=False) for d in range(n) for e in range(d)}
    hessian |= {(e, d): value for (d, e), value in hessian.items()}
    centre = [c.beta + exact.rational(generator, zero=False) for c in batch]

    def off_diagonal(ys: Sequence[Var[Exact]]) -> Var[Exact]:
        total = None
        for d in range(n):
            for e in range(d):
                term = ((ys[d] - centre[d]) * (ys[e] - centre[e])).sum() * hessian[d, e]
                total = term if total is None else total + term
        assert total is not None
        return total

    found = [one.dx for one in exact.gradients(batch, off_diagonal)]
    pairs = [
        _Pair(c, batch[e], hessian[d, e], batch[e].beta - centre[e]) for d, c in enumerate(batch) for e in _others(d, n)
    ]
    by_channel = [[pair for pair in pairs if pair.d is c] for c in batch]
    due = [_total(pair.due for pair in own) for own in by_channel]
    linear = [exact.passed_by(c, _total(pair.linear for pair in own)) for c, own in zip(batch, by_channel, strict=True)]
    rest = [exact.passed_by(c, _total(pair.rest for pair in own)) for c, own in zip(batch, by_channel, strict=True)]
    leak = [
        _total(pair.centred for pair in own) * c.kappa * c.invstd * c.gamma
        for c, own in zip(batch, by_channel, strict=True)
    ]
    whole = [_total(pair.rest for pair in own) * c.invstd * c.gamma for c, own in zip(batch, by_channel, strict=True)]
    answers = {
        WHOLE: found == due,
        SPLIT: all(a + b == c for a, b, c in zip(linear, rest, found, strict=True)),
        LEAKS: linear == leak,
        PASSES: rest == whole,
        SQUARES: all(_square(exact.passed_by(p.d, p.rest)) == p.scale * (1 - p.rho2) for p in pairs),
        LEAKED: all(_square(exact.passed_by(p.d, p.linear)) == p.scale * p.d.kappa * p.d.kappa * p.rho2 for p in pairs),
    }
    eps = batch[0].eps
    if not eps:
        answers[ZERO] = all(dx.is_zero() for dx in linear)
    # A wrong operator differs from P only where the upstream gradient has a part along 1 and along x̂.
    received = exact.upstream(batch, off_diagonal)
    generic = not any(u.sum().is_zero() or (u * c.xhat).sum().is_zero() for u, c in zip(received, batch, strict=True))
    answers["P"] = exact.through(exact.project, batch, off_diagonal) == found
    for name, operator in exact.BROKEN.items():
        if generic and (eps or operator is not exact.BROKEN["P with x̂ taken without ε"]):
            answers[name] = exact.through(operator, batch, off_diagonal) == found
    return answers


class _Pair:
    """What channel e contributes to channel d's upstream gradient, split along x̂_d."""

    def __init__(self, d: exact.Channel, e: exact.Channel, h: Fraction, shift: Fraction) -> None:
        self.d = d
        common = (d.xhat * e.xhat).mean()
        slope = common / (1 - d.kappa)  # of the regression of x̂_e on x̂_d
        factor = h * e.gamma
        self.centred = d.xhat * slope * factor
        self.linear = self.centred + h * shift
        self.rest = (e.xhat - d.xhat * slope) * factor
        self.due = (e.xhat - d.xhat * common) * d.invstd * (d.gamma * factor)
        covariance = (d.d * e.d).mean()
        self.rho2 = covariance * covariance / (d.var * e.var)
        # Squared, of γ_d·r_d·H·γ_e·x̂_e.
        self.scale = _square(e.xhat * d.invstd * (d.gamma * factor))


def _others(d: int, n: int) -> list[int]:
    return [e for e in range(n) if e != d]


def _total(vectors: Any) -> Exact:
    first, *more = vectors
    for vector in more:
        first = first + vector
    return first


def _square(vector: Exact) -> Exact:
    return (vector * vector).sum()


# ---- in floating point ----------------------------------------------------------------------------------------------


def _split(x: Array, gamma: Array, eps: float, u: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Split upstream gradients of (samples, channels) along x̂, and send both parts back.

    Returns
    -------
    sent_linear, sent_rest, back_linear, back_rest : ndarray
        Lengths by channel, in units of γ/√(var+ε). The mean is left out of what is sent.
    kappa : ndarray
    """
    d = x - x.mean(0)
    centred = u - u.mean(0)
    linear = d * ((d * centred).sum(0) / (d * d).sum(0))
    fwd = refbn.forward(x, gamma, eps=eps)
    scale = np.abs(gamma) * fwd.invstd
    sent = linear, centred - linear
    back = [refbn.backward(fwd.saved, part).dx / scale for part in sent]
    lengths = (np.linalg.norm(part, axis=0) for part in (*sent, *back))
    return (*lengths, eps * fwd.invstd**2)


def _over_correlation(generator: np.random.Generator, kappa: float, pairs: int, m: int = 64) -> dict[str, Array]:
    """Return what passes and what leaks of a pair of channels, over the correlation; in units of scale."""
    rho = np.cos(np.pi * generator.uniform(0, 1, pairs))  # as many near ±1 as near 0
    x, noise = generator.standard_normal((2, m, pairs))
    other = rho * x + np.sqrt(1 - rho**2) * noise
    # Each pair its own H_de·γ_e; ε is a number for all, so that the variances are made alike.
    x /= x.std(0)
    eps = kappa / (1 - kappa)
    u = refbn.forward(other, generator.uniform(0.5, 2.0, pairs), eps=eps).y * generator.standard_normal(pairs)
    gamma = generator.uniform(0.5, 2.0, pairs)
    *_, leaks, passes, _ = _split(x, gamma, eps, u)
    scale = np.linalg.norm(u - u.mean(0), axis=0)
    measured = (((x - x.mean(0)) * (other - other.mean(0))).mean(0)) / (x.std(0) * other.std(0))
    return {"rho": measured, "leaks": leaks / scale, "passes": passes / scale}


def mean_hessian(net: network.Sequential, x: Array) -> Array:
    """Return the Hessian of the cross-entropy on the outputs of a network's last norm, averaged over samples.

    Behind the norm there are a ReLU and a dense layer; with D a sample's mask, W the weights and p its probabilities,
    it is the mean of D·Wᵀ·(diag p − p·pᵀ)·W·D.
    """
    probabilities = network.softmax(net.forward(x))
    *_, norm, relu, dense = net.layers()
    weight = dense.parameters["weight"]
    y = refbn.forward(norm.saved.x, norm.saved.gamma, norm.saved.beta, eps=norm.saved.eps).y
    on = (relu.forward(y) > 0).astype(np.float64)
    # diag p − p·pᵀ is the covariance of the rows of W under p.
    centred = (weight - (probabilities @ weight)[:, None, :]) * on[:, None, :]
    weighed = (np.sqrt(probabilities)[:, :, None] * centred).reshape(-1, weight.shape[1])
    return weighed.T @ weighed / len(x)


def network_parts(net: network.Sequential, x: Array) -> dict[str, Array]:
    """Return what arrives at and comes back from each channel of a network's last norm, for the off-diagonal term."""
    hessian = mean_hessian(net, x)
    norm = list(net.layers())[-3]
    saved = norm.saved
    y = refbn.forward(saved.x, saved.gamma, saved.beta, eps=saved.eps).y
    u = (y - y.mean(0)) @ (hessian - np.diag(np.diag(hessian)))
    sent_linear, sent_rest, back_linear, back_rest, kappa = _split(saved.x, saved.gamma, saved.eps, u)
    used = sent_linear > 0  # a channel whose ReLU is off for all samples has no Hessian
    return {
        "sent linear": sent_linear[used],
        "sent rest": sent_rest[used],
        "back linear": back_linear[used],
        "back rest": back_rest[used],
        "kappa": kappa[used],
    }


def _in_network(ctx: Context, seed: int, steps: int) -> dict[str, dict[str, Array]]:
    """Return the parts before and after training."""
    given = images(ctx)
    net = network.perceptron(ctx.generator(seed, "weights"), (given.features, 64, 64, 10), "BN")
    before = network_parts(net, given.x)
    train(net, given, ctx.generator(seed, "batches"), m=64, steps=steps, rate=0.1)
    return {"untrained": before, "trained": network_parts(net, given.x)}


def _errors(parts: Mapping[str, Array]) -> tuple[float, float]:
    """Return the largest relative errors of: the linear part comes back times κ; the rest comes back whole."""
    leak = parts["back linear"] / (parts["kappa"] * parts["sent linear"])
    return float(np.abs(leak - 1).max()), float(np.abs(parts["back rest"] / parts["sent rest"] - 1).max())


# ---- the study ------------------------------------------------------------------------------------------------------

ROUNDING = 1e-9
"""Of the linear algebra that splits gradients of some thousand samples, relative to a leak of about 10⁻⁶."""


def verdict(tallies: Sequence[exact.Tally], errors: Sequence[tuple[float, float]]) -> tuple[Verdict, str]:
    """Judge by the criterion above; the errors are those of the networks' linear parts and of the rest."""
    count = sum(tally.asked[WHOLE] for tally in tallies)
    if broken := exact.refuted(tallies, EXPECTED):
        return "not confirmed", f"in some of {count} exact instances it is not so: {'; '.join(broken)}"
    if passing := exact.void(tallies, EXPECTED):
        return "partly", f"{'; '.join(passing)}: passes for P, so that the check shows nothing"
    leak, rest = (float(np.max(values)) for values in zip(*errors, strict=True))  # NaN, if there is one
    if not (leak < ROUNDING and rest < ROUNDING):
        return "partly", (
            f"exact in all of {count} instances, but in the network κ is off by {leak:.0e} and the rest by {rest:.0e}"
        )
    return "confirmed", (
        f"exact in all of {count} random instances: the linear part comes back as κ of itself, 0 at ε = 0, and the "
        f"rest whole, of length ∝ √(1 − ρ²); in the network the same to {max(leak, rest):.0e}"
    )


def run(ctx: Context) -> Finding:
    """Measure and judge."""
    tallies = exact.examine(ctx, 20 if ctx.quick else 200, judge, "exact instances")
    curves = {kappa: _over_correlation(ctx.generator(ctx.seeds[0], "pairs", str(kappa)), kappa, 60) for kappa in KAPPAS}
    networks = [_in_network(ctx, seed, 100 if ctx.quick else 1000) for seed in ctx.progress(ctx.seeds, "networks")]
    decided, because = verdict(tallies, [_errors(parts) for found in networks for parts in found.values()])
    shares, kappas, rows = {}, {}, list(exact.rows(tallies, EXPECTED))
    for when in ("untrained", "trained"):
        linear = [_share(found[when]) for found in networks]
        shares[when] = float(np.mean(linear))
        kappas[when] = float(np.mean([np.median(found[when]["kappa"]) for found in networks]))
        rows += [
            Measured(f"linear share of the off-diagonal gradient, {when} network", tuple(linear)),
            Measured(
                f"largest error of 'the linear part comes back times κ', {when} network",
                tuple(_errors(found[when])[0] for found in networks),
                expected="rounding",
            ),
            Measured(
                f"largest error of 'the rest comes back whole', {when} network",
                tuple(_errors(found[when])[1] for found in networks),
                expected="rounding",
            ),
        ]
    count = sum(tally.asked[WHOLE] for tally in tallies)
    caption = (
        "Of the off-diagonal of the Hessian only what is not linear in a channel's own x̂ reaches its inputs. "
        "(a) Pairs of channels of correlation ρ: what passes is √(1 − ρ²) of what frozen statistics would pass, what "
        f"leaks is κ|ρ|, nothing at κ = 0 (marks: refbn; lines: theory, exact in {count} of {count} random "
        f"instances). (b) The last hidden layer of a classifier of {called(ctx)}, a mark for each channel: the "
        f"non-linear parts come back whole, of the linear ones κ (in the median {kappas['untrained']:.0e} before and "
        f"{kappas['trained']:.0e} after training). The blocked linear parts make up {shares['untrained']:.0%} of the "
        f"term's squared gradient before training and {shares['trained']:.0%} after."
    )
    details = {
        "pairs by kappa": {str(kappa): found for kappa, found in curves.items()},
        "networks": networks,
    }
    return Finding(decided, because, tuple(rows), _figure(curves, networks), caption, details)


def _share(parts: Mapping[str, Array]) -> float:
    """Return the linear parts' share of the squared length, over all channels."""
    linear, rest = (float((parts[f"sent {name}"] ** 2).sum()) for name in ("linear", "rest"))
    return linear / (linear + rest)


def _figure(curves: Mapping[float, Mapping[str, Array]], networks: Sequence[Mapping[str, Mapping[str, Array]]]) -> Any:
    figure, axes = style.figure(1, 2, height=4.2)
    rho = np.linspace(-1, 1, 401)
    axes[0].plot(rho, np.sqrt(1 - rho**2), color="black", linewidth=1)
    for (kappa, found), colour, marker in zip(curves.items(), style.CYCLE, "os^", strict=False):
        axes[0].plot(found["rho"], found["passes"], marker, color=colour, markersize=4, label=f"passes, κ = {kappa:g}")
    for (kappa, found), colour, marker in zip(curves.items(), style.CYCLE, "os^", strict=False):
        axes[0].plot(rho, kappa * np.abs(rho), color=colour, linewidth=1)
        axes[0].plot(
            found["rho"],
            found["leaks"],
            marker,
            color=colour,
            markersize=4,
            fillstyle="none",
            label=f"leaks, κ = {kappa:g}",
        )
    axes[0].set_xlabel("correlation of the two channels, ρ")
    axes[0].set_ylabel("|∂/∂x_d|, relative to frozen statistics")
    for (when, marker), shade in zip((("untrained", "o"), ("trained", "^")), (0, 1), strict=True):
        for part, colour, name in (("rest", style.CYCLE[0], "non-linear"), ("linear", style.CYCLE[1], "linear")):
            sent, back = (
                np.concatenate([found[when][f"{way} {part}"] for found in networks]) for way in ("sent", "back")
            )
            axes[1].plot(
                sent,
                back,
                marker,
                color=colour,
                markersize=4,
                alpha=0.6,
                fillstyle="full" if shade else "none",
                linestyle="none",
                label=f"{name} part, {when}",
            )
    high = axes[1].get_xlim()[1]
    axes[1].set_xscale("log")
    axes[1].set_yscale("log")
    ends = np.array(
        [min(np.concatenate([f[w][f"sent {p}"] for f in networks for w in f for p in ("rest", "linear")])), high]
    )
    axes[1].plot(ends, ends, color="black", linewidth=0.9, zorder=0, label="all comes back")
    axes[1].set_xlabel("length of the part that arrives")
    axes[1].set_ylabel("length of what comes back")
    style.letter(axes)
    for one in axes:
        one.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return figure


STUDY = Study(
    id="Z3",
    title="The off-diagonal of the Hessian",
    claim="Of the loss's second-order term off the diagonal, the part of another channel that is linear in a "
    "channel's own x̂ has no gradient on its inputs (at ε = 0); only the rest passes, in proportion to √(1 − ρ²).",
    source="Zhou et al. 2022, Lemma 2 and Theorem 3",
    run=run,
)
