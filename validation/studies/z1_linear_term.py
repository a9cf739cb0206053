"""Z1: the loss's linear term has no gradient on the inputs of batch norm.

Exactly: on random batches of rational numbers, with coefficients at random, the gradient on x comes from a reverse
tape over the forward pass in exact arithmetic; it must be the number 0, and the gradients on β and γ must be m·g and
0, as the affine parameters are not blind. Controls: backward passes with a wrong operator in P's place. Two of them
cannot be told from P here, as 1 is all that the linear term shows of P and mean(x̂) = 0; Z2 tells them.

In floating point: what frameworks return for a constant upstream gradient, relative to |γ|·|g|/√(var + ε), which is
what would come back if the statistics were frozen.

Criterion: confirmed if the exact gradients are as said in all instances, the controls that touch 1 fail in all, and
refbn returns zeros alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn.exact import Exact, Var
from validation.studies import exact_batches as exact
from validation.studies import framework_noise as noise
from validation.studies import style
from validation.studies.study import Context, Finding, Measured, Study, Verdict

__all__ = ["STUDY", "judge", "measure", "noise_of", "verdict"]

Array = npt.NDArray[Any]

BLOCKED = "∂/∂x is exactly 0"
AFFINE = "∂/∂β = m·g and ∂/∂γ = 0 exactly"
EXPECTED = {
    BLOCKED: "1",
    AFFINE: "1",
    "P": "1",
    "P without the mean": "0",
    "P with means over m − 1": "0",
    "P without the x̂ term": "1: needs Z2",
    "P with x̂ taken without ε": "1: needs Z2",
}
CHANNELS = 4
M = 1024
EPS = 1e-5
OFFSETS = (0.0, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5)
SIZES = (2, 4, 16, 64, 256, 1024, 4096, 65536)


def judge(generator: np.random.Generator) -> Mapping[str, bool]:
    """Judge one random instance exactly."""
    batch = exact.random_batch(generator)
    g = [exact.rational(generator, zero=False) for _ in batch]

    def linear(ys: Sequence[Var[Exact]]) -> Var[Exact]:
        total = ys[0].sum() * g[0]
        for y, slope in zip(ys[1:], g[1:], strict=True):
            total = total + y.sum() * slope
        return total

    found = exact.gradients(batch, linear)
    answers = {
        BLOCKED: all(one.dx.is_zero() for one in found),
        AFFINE: all(
            one.dgamma.is_zero() and one.dbeta == c.m * slope for one, c, slope in zip(found, batch, g, strict=True)
        ),
    }
    for name, operator in {"P": exact.project, **exact.BROKEN}.items():
        answers[name] = all(dx.is_zero() for dx in exact.through(operator, batch, linear))
    return answers


def noise_of(adapter: Any, x: Array, gamma: Array, g: Array, eps: float = EPS) -> float:
    """Return the largest |dx| over channels, in units of |γ|·|g|/√(var + ε), for the linear term with slopes g."""
    dx = noise.dx(adapter, x, gamma, np.broadcast_to(g, x.shape).copy(), eps).astype(np.float64)
    wide = x.astype(np.float64)
    scale = np.abs(gamma * g).astype(np.float64) / np.sqrt(wide.var(0) + eps)
    return float((np.abs(dx).max(0) / scale).max())


def measure(ctx: Context, there: Sequence[Any], kind: str, values: Sequence[float]) -> dict[str, list[list[float]]]:
    """Return the noise by framework and format: for each seed, along offsets or sizes."""
    found: dict[str, list[list[float]]] = {}
    for adapter in ctx.progress(there, f"frameworks over {kind}"):
        for dtype, scalar in noise.DTYPES.items():
            lines = found.setdefault(f"{adapter.name} {dtype}", [])
            for seed in ctx.seeds:
                line = []
                for value in values:
                    m, offset = (int(value), 0.0) if kind == "size" else (M, value)
                    generator = ctx.generator(seed, kind, str(value))
                    x = (generator.standard_normal((m, CHANNELS)) + offset).astype(scalar)
                    gamma, g = generator.uniform(0.5, 2.0, (2, CHANNELS)).astype(scalar)
                    line.append(noise_of(adapter, x, gamma, g))
                lines.append(line)
    return found


def verdict(tallies: Sequence[exact.Tally], ours: float) -> tuple[Verdict, str]:
    """Judge by the criterion above; ``ours`` is the largest number that refbn returned."""
    count = sum(tally.asked[BLOCKED] for tally in tallies)
    if broken := exact.refuted(tallies, EXPECTED):
        return "not confirmed", f"in some of {count} exact instances it is not so: {'; '.join(broken)}"
    if passing := exact.void(tallies, EXPECTED):
        return "partly", f"{'; '.join(passing)}: passes for P, so that the check shows nothing"
    if ours:
        return "partly", f"exact gradients are 0 in all of {count} instances, but refbn returned {ours:.1e}"
    return "confirmed", (
        f"the exact gradient on x is the number 0 in all of {count} random instances, for every ε; without the mean "
        "in P it is 0 in none"
    )


def _figure(
    offsets: Sequence[float], by_offset: Mapping[str, Any], sizes: Sequence[float], by_size: Mapping[str, Any]
) -> Any:
    figure, axes = style.figure(1, 2, height=3.9, sharey=True)
    # Offset 0 has its place on the logarithmic axis one decade before the first other one.
    places = [0.1 if value == 0 else value for value in offsets]
    for one, x, found in ((axes[0], places, by_offset), (axes[1], sizes, by_size)):
        for key, lines in found.items():
            name, dtype = key.rsplit(" ", 1)
            look = noise.LOOKS[name]
            colour = look["color"]
            values = np.maximum(np.array(lines), noise.ZERO)
            dashed = dtype == "binary64"
            one.plot(
                x,
                np.median(values, axis=0),
                **look,
                linestyle="--" if dashed else "-",
                markerfacecolor="white" if dashed else colour,
                label=noise.label(name, dtype),
            )
            one.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
        one.set_xscale("log")
        noise.show_zero(one, 1e8)
    axes[0].set_xticks(
        [0.1, *[v for v in offsets if v][::2]], ["0", *[f"$10^{{{int(np.log10(v))}}}$" for v in offsets if v][::2]]
    )
    axes[0].set_xlabel(f"offset of x in standard deviations (m = {M})")
    axes[1].set_xlabel("elements per channel, m (offset 0)")
    axes[0].set_ylabel("largest |∂/∂x| of the linear term,\nin units of |γ g| / √(var + ε)")
    style.letter(axes)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def run(ctx: Context) -> Finding:
    """Measure and judge."""
    tallies = exact.examine(ctx, 40 if ctx.quick else 400, judge, "exact instances")
    there, absent = noise.installed()
    offsets = OFFSETS[::2] if ctx.quick else OFFSETS
    sizes = SIZES[3:6:2] if ctx.quick else SIZES
    by_offset = measure(ctx, there, "offset", offsets)
    by_size = measure(ctx, there, "size", sizes)
    ours = max(
        (float(np.max(lines)) for found in (by_offset, by_size) for key, lines in found.items() if noise.OURS in key)
    )
    decided, because = verdict(tallies, ours)
    rows = list(exact.rows(tallies, EXPECTED))
    for key, lines in by_offset.items():
        name, dtype = key.rsplit(" ", 1)
        words = "exactly 0" if name == noise.OURS else "0, the rest is rounding"
        for place in (0, len(offsets) - 1):
            rows.append(
                Measured(
                    f"{noise.label(name, dtype)}: largest |∂/∂x|, offset {offsets[place]:g}",
                    tuple(line[place] for line in lines),
                    "|γ g|/√(var+ε)",
                    words,
                )
            )
    rows.extend(Measured(f"{noise.FRAMEWORKS[name]}: not installed", (np.nan,)) for name in absent)

    def others(found: Mapping[str, Any], dtype: str, place: int) -> str:
        """Say between what the frameworks' largest noise lies."""
        values = [
            float(np.array(lines)[:, place].max())
            for key, lines in found.items()
            if key.endswith(dtype) and not key.startswith(noise.OURS)
        ]
        return f"{min(values):.0e} to {max(values):.0e}" if values else "(no framework installed)"

    count = sum(tally.asked[BLOCKED] for tally in tallies)
    caption = (
        f"The gradient of the loss's linear term on x is exactly 0 (exact arithmetic: {count} of {count} random "
        f"instances). refbn returns 0 throughout. Frameworks return rounding noise instead: at offset 0 and m = {M} "
        f"{others(by_offset, 'binary32', 0)} of the gradient through frozen statistics in binary32 and "
        f"{others(by_offset, 'binary64', 0)} in binary64, growing with the offset of the data to "
        f"{others(by_offset, 'binary32', -1)} and {others(by_offset, 'binary64', -1)} at {offsets[-1]:g} standard "
        f"deviations (a). At offset 0 (b) it is {others(by_size, 'binary32', 0)} in binary32 for m = {sizes[0]} and "
        f"{others(by_size, 'binary32', -1)} for m = {sizes[-1]}. Bands: smallest and largest of the seeds."
    )
    details = {
        "frameworks": noise.told(there, absent),
        "offsets": offsets,
        "noise by offset": by_offset,
        "sizes": sizes,
        "noise by size": by_size,
    }
    return Finding(decided, because, tuple(rows), _figure(offsets, by_offset, sizes, by_size), caption, details)


STUDY = Study(
    id="Z1",
    title="The linear term of the loss",
    claim="A loss term that is linear in the outputs, with one gradient shared by all samples, has no gradient at all "
    "on the inputs of batch norm, whatever ε.",
    source="Zhou et al. 2022, Theorem 1",
    run=run,
)
