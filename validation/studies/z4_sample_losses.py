"""Z4: where each sample has a loss of its own, exactly the part of the gradient along 1 and x̂ is blocked.

Exactly, for upstream gradients of random rational numbers: the part in the span of 1 and x̂ comes back as κ times its
part along x̂, as 0 at ε = 0; the rest comes back whole, and nothing at all for m = 2 and ε = 0.

How large that part is: ‖part‖²/‖gradient‖² has the mean 2/m for gradients that point in all directions alike,
whatever x, since the span has two dimensions of m. Measured for normal ones, against that mean and the standard error
of the measurement; and for the cross-entropy of a classifier of digits with two hidden layers, in training with batches
of 64 samples, as its gradient arrives at each batch norm for batches of m samples.

Criterion: confirmed if the identities hold in all instances and none of the isotropic means is further from 2/m than
such a set of comparisons allows at the level of 1 % (Bonferroni). The networks are reported, not judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

import refbn
from refbn.exact import Exact
from validation.studies import exact_batches as exact
from validation.studies import network, style
from validation.studies.blind_networks import blocked_share, called, images
from validation.studies.study import Context, Finding, Measured, Study, Verdict
from validation.studies.training import train
from validation.studies.understanding import allowed

__all__ = ["EXPECTED", "SIZES", "STUDY", "isotropic", "judge", "verdict"]

Array = npt.NDArray[Any]

LEAKS = "of the part in span{1, x̂}: exactly κ of that along x̂"
ZERO = "of the part in span{1, x̂}: exactly 0 at ε = 0"
PASSES = "of the rest: exactly all"
SUM = "of the gradient: exactly the sum of the two"
TWO = "of any gradient for m = 2: exactly 0 at ε = 0"
EXPECTED = dict.fromkeys((LEAKS, ZERO, PASSES, SUM, TWO), "1")
SIZES = (3, 4, 8, 16, 32, 64, 128, 256)
STEPS = (0, 10, 100, 1000)
BATCH = 64


def judge(generator: np.random.Generator) -> Mapping[str, bool]:
    """Judge one random instance exactly: what comes back of the gradient and of its parts."""
    m = None if generator.integers(4) else 2  # of which there would be few
    (c,) = exact.random_batch(generator, channels=1, m=m)
    gradient = Exact.vector(generator.integers(-99, 100, c.m).tolist(), Fraction(1, 7))
    along = c.d * ((c.d * gradient).mean() / c.var)
    blocked = along + gradient.mean()
    from_blocked, from_rest, whole = (exact.passed_by(c, u) for u in (blocked, gradient - blocked, gradient))
    scale = c.invstd * c.gamma
    answers = {
        LEAKS: from_blocked == along * c.kappa * scale,
        PASSES: from_rest == (gradient - blocked) * scale,
        SUM: whole == from_blocked + from_rest,
    }
    if not c.eps:
        answers[ZERO] = from_blocked.is_zero()
        if c.m == 2:
            answers[TWO] = whole.is_zero()
    return answers


def isotropic(generator: np.random.Generator, m: int, channels: int) -> tuple[float, float]:
    """Return mean and standard error of the blocked share of normal gradients, x being normal as well."""
    x, dy = generator.standard_normal((2, m, channels))
    shares = refbn.blindness(refbn.forward(x, eps=0.0).saved, dy).fraction
    return float(shares.mean()), float(shares.std(ddof=1) / np.sqrt(channels))


def verdict(tallies: Sequence[exact.Tally], deviations: Sequence[float]) -> tuple[Verdict, str]:
    """Judge by the criterion above; the deviations of the isotropic means from 2/m are in standard errors."""
    count = sum(tally.asked[SUM] for tally in tallies)
    if broken := exact.refuted(tallies, EXPECTED):
        return "not confirmed", f"in some of {count} exact instances it is not so: {'; '.join(broken)}"
    largest, most = max(map(abs, deviations)), allowed(len(deviations))
    measured = (
        f"the largest of {len(deviations)} deviations from 2/m is {largest:.1f} standard errors ({most:.1f} allowed)"
    )
    if not largest <= most:
        return (
            "partly",
            f"exactly the part in span{{1, x̂}} is blocked in all of {count} exact instances, but {measured}",
        )
    return "confirmed", f"exactly the part in span{{1, x̂}} is blocked in all of {count} exact instances; {measured}"


def run(ctx: Context) -> Finding:
    """Measure and judge."""
    tallies = exact.examine(ctx, 40 if ctx.quick else 400, judge, "exact instances")
    channels = 500 if ctx.quick else 2000
    sizes = SIZES[::2] if ctx.quick else SIZES
    steps = STEPS[:3] if ctx.quick else STEPS
    pairs = {m: [isotropic(ctx.generator(seed, "isotropic", m), m, channels) for seed in ctx.seeds] for m in sizes}
    deviations = [(mean - 2 / m) / error for m, found in pairs.items() for mean, error in found]
    measured = {step: [] for step in steps}
    accuracies = []
    for seed in ctx.seeds:
        lines, reached = _in_training(ctx, seed, sizes, steps)
        accuracies.append(reached)
        for step in steps:
            measured[step].append(lines[step])
    decided, because = verdict(tallies, deviations)
    rows = [
        *exact.rows(tallies, EXPECTED),
        *(
            Measured(
                f"blocked share, isotropic, m = {m}",
                tuple(mean for mean, _ in found),
                expected=f"2/m = {2 / m:.4g} ± {np.mean([error for _, error in found]):.1g} (standard error)",
            )
            for m, found in pairs.items()
        ),
        *(
            Measured(f"blocked share, cross-entropy after {step} steps, m = {m}", tuple(line[place] for line in lines))
            for step, lines in measured.items()
            for place, m in enumerate(sizes)
            if m in (sizes[0], sizes[-1], 32)
        ),
        Measured(f"accuracy on held-out {called(ctx)} at the end", tuple(accuracies)),
    ]
    first, last = (np.array(measured[step]).mean(0) for step in (steps[0], steps[-1]))
    caption = (
        f"Exactly the part of the upstream gradient in span{{1, x̂}} is blocked. (a) It is 2/m of the squared length "
        f"for gradients that point in all directions alike ({len(deviations)} measurements, largest deviation "
        f"{max(map(abs, deviations)):.1f} standard errors). Of the cross-entropy's gradient in a classifier of "
        f"{called(ctx)} it is {first[-1]:.1%} at the beginning and {last[-1]:.1%} after {steps[-1]} steps for m = "
        f"{sizes[-1]}, where 2/m is {2 / sizes[-1]:.1%}; (b) the same over 2/m: it is {first[-1] / 2 * sizes[-1]:.1f} "
        f"and {last[-1] / 2 * sizes[-1]:.1f} times as much at m = {sizes[-1]}, {first[0] / 2 * sizes[0]:.2f} and "
        f"{last[0] / 2 * sizes[0]:.2f} times at m = {sizes[0]}. Bands: smallest and largest of the seeds."
    )
    details = {
        "sizes": sizes,
        "isotropic means and standard errors": {str(m): found for m, found in pairs.items()},
        "deviations in standard errors": deviations,
        "cross-entropy by steps": {str(step): lines for step, lines in measured.items()},
        "accuracies": accuracies,
    }
    return Finding(decided, because, tuple(rows), _figure(sizes, pairs, measured), caption, details)


def _in_training(
    ctx: Context, seed: int, sizes: Sequence[int], steps: Sequence[int]
) -> tuple[dict[int, list[float]], float]:
    """Return the blocked share by step and size, over both batch norms and many batches; and the accuracy reached."""
    given = images(ctx)
    net = network.perceptron(ctx.generator(seed, "weights"), (given.features, 64, 64, 10), "BN")
    batches = ctx.generator(seed, "batches")
    least = 2 if ctx.quick else 8  # batches; more of the small ones
    lines = {}
    done = 0
    for step in ctx.progress(steps, f"training, seed {seed}"):
        train(net, given, batches, m=BATCH, steps=step - done, rate=0.1)
        done = step
        probing = ctx.generator(seed, "probes", step)
        lines[step] = [blocked_share(net, given, probing, m, max(least, 8 * least // m)) for m in sizes]
    return lines, given.accuracy(net)


def _figure(
    sizes: Sequence[int], pairs: Mapping[int, Sequence[tuple[float, float]]], measured: Mapping[int, Sequence[Any]]
) -> Any:
    figure, axes = style.figure(1, 2, height=3.8)
    m = np.array(sizes)
    means = np.array([np.mean([mean for mean, _ in pairs[size]]) for size in sizes])
    for one, over in zip(axes, (1, 2 / m), strict=True):
        one.plot(m, 2 / m / over, color="black", linewidth=1, label="2/m")
        one.plot(m, means / over, "o", color=style.COLOURS["BN"], label="isotropic gradients")
        for (step, lines), colour, marker in zip(measured.items(), style.CYCLE[1:], "s^Dv", strict=False):
            values = np.array(lines) / over
            name = f"cross-entropy, {step} steps" if step else "cross-entropy, untrained"
            one.plot(m, values.mean(0), color=colour, marker=marker, label=name)
            one.fill_between(m, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
        one.set_xscale("log", base=2)
        one.set_xticks(m, [str(size) for size in sizes])
        one.set_xlabel("samples per batch, m")
    axes[0].set_yscale("log")
    axes[0].set_yticks([1, 0.3, 0.1, 0.03, 0.01], ["1", "0.3", "0.1", "0.03", "0.01"])
    axes[0].minorticks_off()
    axes[1].set_ylim(bottom=0)
    axes[0].set_ylabel("blocked share of the squared gradient")
    axes[1].set_ylabel("the same over 2/m")
    style.letter(axes)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


STUDY = Study(
    id="Z4",
    title="Samples with losses of their own",
    claim="Whatever the losses of the samples, exactly the part of the gradient in the span of 1 and x̂ is blocked: "
    "2/m of it if it points in all directions alike.",
    source="Zhou et al. 2022, Lemma 3",
    run=run,
)
