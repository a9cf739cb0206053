"""Z2: the diagonal of the loss's Hessian has no gradient on the inputs of batch norm but for a leak of κ.

With ½·Σ H_dd·(y_d − ỹ_d)² over samples and channels, exactly, on random batches of rational numbers: the gradient on
x_d is κ_d·H_dd·γ_d²·x̂_d/√(var_d + ε), which is 0 at ε = 0 and in general κ times the centred gradient through frozen
statistics, both of them by a reverse tape over the forward passes; ∂/∂γ = m(1 − κ)Hγ and ∂/∂β = m·H(β − ỹ), as the
affine parameters are not blind. The controls that Z1 could not tell from P fail here, "x̂ taken without ε" where ε > 0.

In floating point: the upstream gradient is x itself. It lies in the span of 1 and x̂ without any rounding, so that κ of
it is due: dx = κ·γ·(x − mean)/√(var + ε). A backward pass in floating point returns its rounding as soon as κ is
below it. Since ε is fixed and the data are scaled by powers of two, nothing but κ changes. A loss computes its upstream
gradient from y, which is rounded, so that it has left the span by half a last place: "from the rounded y" shows what
reaches x then, even if the backward pass is correctly rounded.

Criterion: confirmed if the exact gradients are as said in all instances, each control fails in all of those where it is
another operator, and refbn's leak has the bits of the exact one, correctly rounded, and is 0 at ε = 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import refbn
from refbn.exact import Exact, Var, program
from validation.studies import exact_batches as exact
from validation.studies import framework_noise as noise
from validation.studies import style
from validation.studies.study import Context, Finding, Measured, Study, Verdict

__all__ = ["STUDY", "judge", "leak", "measure", "verdict"]

Array = npt.NDArray[Any]

LEAKS = "∂/∂x is exactly κ·H·γ²·x̂/√(var+ε)"
ZERO = "∂/∂x is exactly 0 at ε = 0"
FROZEN = "∂/∂x is exactly κ times the centred frozen one"
AFFINE = "∂/∂γ = m(1−κ)Hγ and ∂/∂β = m·H(β−ỹ) exactly"
EXPECTED = {
    LEAKS: "1",
    ZERO: "1",
    FROZEN: "1",
    AFFINE: "1",
    "P": "1",
    "P without the mean": "0",
    "P without the x̂ term": "0",
    "P with x̂ taken without ε": "0",
    "P with means over m − 1": "0",
}
SHAPE = (1024, 4)
EPS = 1e-5
SCALES = tuple(range(-10, 35, 4))
"""Exponents of two that the data are scaled by: κ is about 10⁻⁵/4^k, from 0.9 to 10⁻²⁶.

Beyond 2⁴¹ the cube of 1/√(var+ε), which JAX multiplies with, is below binary32's normal numbers."""
ROUNDED = "refbn, from the rounded y"


def judge(generator: np.random.Generator) -> Mapping[str, bool]:
    """Judge one random instance exactly."""
    batch = exact.random_batch(generator)
    # Not centred, so that the means of the upstream gradients are not 0.
    centre = [c.beta + exact.rational(generator, zero=False) for c in batch]
    curvature = [exact.rational(generator, zero=False) for _ in batch]

    def diagonal(ys: Sequence[Var[Exact]]) -> Var[Exact]:
        total = None
        for y, h, middle in zip(ys, curvature, centre, strict=True):
            away = y - middle
            term = (away * away).sum() * (h / 2)
            total = term if total is None else total + term
        assert total is not None
        return total

    found = exact.gradients(batch, diagonal)
    due = [c.xhat * c.invstd * c.kappa * (h * c.gamma * c.gamma) for c, h in zip(batch, curvature, strict=True)]
    eps = batch[0].eps
    answers = {
        LEAKS: all(one.dx == dx for one, dx in zip(found, due, strict=True)),
        FROZEN: all(
            one.dx == (through - through.mean()) * c.kappa
            for one, through, c in zip(found, _through_frozen(batch, diagonal), batch, strict=True)
        ),
        AFFINE: all(
            one.dgamma == (1 - c.kappa) * (c.m * h * c.gamma) and one.dbeta == c.m * h * (c.beta - middle)
            for one, c, h, middle in zip(found, batch, curvature, centre, strict=True)
        ),
    }
    if not eps:
        answers[ZERO] = all(one.dx.is_zero() for one in found)
    for name, operator in {"P": exact.project, **exact.BROKEN}.items():
        if eps or name != "P with x̂ taken without ε":
            answers[name] = exact.through(operator, batch, diagonal) == due
    return answers


def _through_frozen(batch: exact.Batch, loss: exact.Loss) -> list[Exact]:
    """Return the gradients on x where mean and variance are given numbers, equal to those of x."""
    statistics = iter(batch)

    def frozen(x: Var[Exact], gamma: Var[Exact], beta: Var[Exact], eps: Any) -> Var[Exact]:
        mean, _, var = next(statistics).moments
        return program.frozen(x, Var(mean), Var(var), gamma, beta, eps)

    return [one.dx for one in exact.gradients(batch, loss, frozen)]


def leak(x: Array, gamma: Array, dx: Array, eps: float) -> tuple[float, float]:
    """Return |dx| over the centred gradient through frozen statistics for dy = x, and κ, which it ought to be.

    Norms over all elements, of channels weighed alike.
    """
    wide = x.astype(np.float64)
    q = wide.var(0) + eps
    frozen = np.abs(gamma) / np.sqrt(q) * np.sqrt(wide.var(0))
    found = np.sqrt((dx.astype(np.float64) ** 2).mean(0))
    return float((found / frozen).mean()), float((eps / q).mean())


def _inputs(ctx: Context, seed: int, scalar: Any, exponent: int) -> tuple[Array, Array]:
    generator = ctx.generator(seed, "leak")  # the same numbers at each scale
    x = generator.standard_normal(SHAPE).astype(scalar) * scalar(2.0**exponent)
    return x, generator.uniform(0.5, 2.0, SHAPE[1]).astype(scalar)


def measure(ctx: Context, there: Sequence[Any], exponents: Sequence[int]) -> dict[str, dict[str, list[list[float]]]]:
    """Return, for each framework and format, the leak and κ: for each seed, along the scales."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for dtype, scalar in noise.DTYPES.items():
        for adapter in ctx.progress([*there, None], f"leak in {dtype}"):
            name = ROUNDED if adapter is None else adapter.name
            lines = found.setdefault(f"{name} {dtype}", {"leak": [], "kappa": []})
            for seed in ctx.seeds:
                pairs = []
                for exponent in exponents:
                    x, gamma = _inputs(ctx, seed, scalar, exponent)
                    if adapter is None:
                        fwd = refbn.forward(x, gamma, eps=EPS)
                        # H = 1/(γ²r²) brings the exact upstream gradient H·y back to the size of x; y is rounded.
                        back = ((x.astype(np.float64).var(0) + EPS) ** 0.5 / gamma).astype(scalar)
                        dx = refbn.backward(fwd.saved, fwd.y * back).dx
                    else:
                        dx = noise.dx(adapter, x, gamma, x, EPS)
                    pairs.append(leak(x, gamma, dx, EPS))
                lines["leak"].append([pair[0] for pair in pairs])
                lines["kappa"].append([pair[1] for pair in pairs])
    return found


def differing(ctx: Context, exponents: Sequence[int]) -> tuple[int, int]:
    """Return of how many elements of dx refbn and the exact oracle have different bits, and of how many they might."""
    different = total = 0
    for scalar in noise.DTYPES.values():
        for seed in ctx.progress(ctx.seeds, "against the oracle"):
            for exponent in exponents:
                x, gamma = _inputs(ctx, seed, scalar, exponent)
                dx, truth = (
                    refbn.backward(refbn.forward(x, gamma, eps=EPS, backend=backend).saved, x).dx
                    for backend in ("native", "exact")
                )
                different += int((dx != truth).sum())
                total += dx.size
    return different, total


def at_zero(ctx: Context, there: Sequence[Any]) -> dict[str, list[float] | None]:
    """Return the leak at ε = 0 by framework and format, for each seed; None where the framework refuses ε = 0."""
    found: dict[str, list[float] | None] = {}
    for dtype, scalar in noise.DTYPES.items():
        for adapter in there:
            values: list[float] | None = []
            for seed in ctx.seeds:
                x, gamma = _inputs(ctx, seed, scalar, 0)
                try:
                    values.append(leak(x, gamma, noise.dx(adapter, x, gamma, x, 0.0), 0.0)[0])
                except ValueError:
                    values = None
                    break
            found[f"{adapter.name} {dtype}"] = values
    return found


def verdict(tallies: Sequence[exact.Tally], different: int, zero: float) -> tuple[Verdict, str]:
    """Judge by the criterion above.

    ``different`` is of how many elements refbn and the oracle differ, ``zero`` refbn's largest leak at ε = 0.
    """
    count = sum(tally.asked[LEAKS] for tally in tallies)
    if broken := exact.refuted(tallies, EXPECTED):
        return "not confirmed", f"in some of {count} exact instances it is not so: {'; '.join(broken)}"
    if passing := exact.void(tallies, EXPECTED):
        return "partly", f"{'; '.join(passing)}: passes for P, so that the check shows nothing"
    if different or zero:
        return "partly", (
            f"the exact identities hold, but refbn's gradient is not correctly rounded in {different} elements, and "
            f"its leak at ε = 0 is {zero:.1e}"
        )
    return "confirmed", (
        f"the exact gradient is κ·H·γ²·x̂/√(var+ε) in all of {count} random instances, 0 at ε = 0; each of four "
        "wrong operators fails in all of them"
    )


def _figure(found: Mapping[str, Any]) -> Any:
    figure, axes = style.figure(1, 2, height=4.1, sharey=True)
    for one, dtype in zip(axes, noise.DTYPES, strict=True):
        for key, lines in found.items():
            name, kind = key.rsplit(" ", 1)
            if kind != dtype:
                continue
            if name == ROUNDED:
                look = {"color": style.CYCLE[5], "marker": "x", "linestyle": ":", "label": ROUNDED}
            else:
                look = {**noise.LOOKS[name], "label": noise.FRAMEWORKS[name]}
            kappa = np.array(lines["kappa"]).mean(0)
            one.plot(kappa, np.exp(np.log(np.array(lines["leak"])).mean(0)), **look)
        ends = np.array([kappa.min(), 1.0])
        one.plot(ends, ends, color="black", linewidth=0.9, zorder=0, label="exact: κ")
        one.set_xscale("log")
        one.set_yscale("log")
        one.set_title(dtype)
        one.set_xlabel("κ = ε / (var + ε)")
    axes[0].set_ylabel("|∂/∂x| of the diagonal term, relative to\nthe centred one through frozen statistics")
    style.letter(axes)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def run(ctx: Context) -> Finding:
    """Measure and judge."""
    tallies = exact.examine(ctx, 40 if ctx.quick else 400, judge, "exact instances")
    there, absent = noise.installed()
    exponents = SCALES[::3] if ctx.quick else SCALES
    found = measure(ctx, there, exponents)
    zero = at_zero(ctx, there)
    different, compared = differing(ctx, exponents)
    ours = max(value for dtype in noise.DTYPES for value in zero[f"{noise.OURS} {dtype}"] or [np.inf])
    decided, because = verdict(tallies, different, ours)
    rows = list(exact.rows(tallies, EXPECTED))
    rows.append(
        Measured(
            f"elements of refbn's gradient that differ from the oracle's (of {compared})", (different,), expected="0"
        )
    )
    floors = {}
    for key, lines in found.items():
        name, dtype = key.rsplit(" ", 1)
        floor = tuple(np.array(lines["leak"])[:, -1])
        floors[key] = max(floor)
        title = ROUNDED if name == ROUNDED else noise.FRAMEWORKS[name]
        smallest = np.array(lines["kappa"])[:, -1].mean()
        rows.append(Measured(f"{title}, {dtype}: leak at κ = {smallest:.0e}", floor, expected=f"{smallest:.3g}"))
    for key, values in zero.items():
        name, dtype = key.rsplit(" ", 1)
        words = "exactly 0" if name == noise.OURS else "0, the rest is rounding"
        title = f"{noise.label(name, dtype)}: leak at ε = 0" + (" (refused)" if values is None else "")
        rows.append(Measured(title, tuple(values or [np.nan]), expected=words))
    rows.extend(Measured(f"{noise.FRAMEWORKS[name]}: not installed", (np.nan,)) for name in absent)

    def others(dtype: str) -> str:
        values = [
            value for key, value in floors.items() if key.endswith(dtype) and not key.startswith((noise.OURS, ROUNDED))
        ]
        return f"{min(values):.0e} to {max(values):.0e}" if values else "(no framework installed)"

    count = sum(tally.asked[LEAKS] for tally in tallies)
    caption = (
        f"The diagonal of the Hessian reaches x only by a leak of κ = ε/(var+ε), exactly ({count} of {count} random "
        "instances; 0 at ε = 0). refbn's backward pass returns it correctly rounded, at the smallest κ too. "
        f"Frameworks reach a floor of rounding noise: {others('binary32')} in binary32 (a), {others('binary64')} in "
        "binary64 (b). Dotted: the upstream gradient computed from y, whose own rounding even a correctly rounded "
        f"backward pass lets through ({floors[f'{ROUNDED} binary32']:.0e} and {floors[f'{ROUNDED} binary64']:.0e})."
    )
    details = {
        "frameworks": noise.told(there, absent),
        "exponents": exponents,
        "leak": found,
        "leak at eps = 0": zero,
        "differing from the oracle": different,
    }
    return Finding(decided, because, tuple(rows), _figure(found), caption, details)


STUDY = Study(
    id="Z2",
    title="The diagonal of the Hessian",
    claim="The loss's second-order term on the diagonal of the Hessian has no gradient on the inputs of batch norm at "
    "ε = 0, and κ = ε/(var + ε) times the one through frozen statistics otherwise.",
    source="Zhou et al. 2022, Theorem 2",
    run=run,
)
