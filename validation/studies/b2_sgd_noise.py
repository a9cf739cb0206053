"""The noise of stochastic gradient descent over the size of the batch.

Without batch norm the loss is a mean over samples, and so is its gradient: ∇ = mean ∇ᵢ over all N, ∇_B over a batch of
b. With C = mean ‖∇ᵢ − ∇‖², the noise of a step at rate α is exactly

    E‖α∇ − α∇_B‖² = α² C / b                    batches drawn with replacement,
    E‖α∇ − α∇_B‖² = α² C (N − b) / (b (N − 1))   without.

Both hold for any network and any data. Measured is the mean over random batches; its standard error is exact, too, from
`scatter`, so that no estimated variance enters the comparison. Batch norm makes each sample's gradient depend on the
rest of the batch, so that C does not exist. Its noise is measured beside, and with it how far the mean of ∇_B lies from
the gradient of the whole set. (They do not quite agree even for large batches: the batch's statistics move samples
across the kinks of the ReLU.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np

from validation.studies import network, understanding
from validation.studies.network import Array
from validation.studies.study import Context, Finding, Measured, Study, Verdict

RATE = 0.1
MOST = 1500
"""Samples, for the matrix of all their gradients' products."""
SIZES = (1, 4, 16, 64, 256, 1024)
QUICK_SIZES = (1, 4, 64, 1024)
STATES = ("at initialization", "after training")

Number = TypeVar("Number", float, Any)


def expected(variance: Number, count: int, size: int, *, replaced: bool) -> Number:
    """Return E‖∇ − ∇_B‖² from C, the number of samples and the batch's size."""
    if replaced:
        return variance / size
    return variance * (count - size) / (size * (count - 1))


@dataclass(frozen=True)
class Population:
    """What sampling from centred vectors ξᵢ = ∇ᵢ − ∇ depends on.

    Attributes
    ----------
    count : int
    squares, fourths : number
        Σ ‖ξᵢ‖² and Σ ‖ξᵢ‖⁴.
    overlaps : number
        Σᵢⱼ ⟨ξᵢ, ξⱼ⟩².
    """

    count: int
    squares: Any
    fourths: Any
    overlaps: Any

    @property
    def variance(self) -> Any:
        """C."""
        return self.squares / self.count


def population(own: Array) -> Population:
    """Return the population of the rows, which are centred."""
    gram = own @ own.T
    squares = np.diag(gram)
    return Population(len(own), float(squares.sum()), float(np.sum(squares**2)), float(np.sum(gram**2)))


def scatter(found: Population, size: int, *, replaced: bool) -> Any:
    """Return the variance of ‖∇ − ∇_B‖² over batches.

    It is E Q² − (E Q)² over b⁴, with Q = ‖Σ ξᵢ‖² = Σᵢⱼ ⟨ξᵢ, ξⱼ⟩ over the batch. Q² is a sum over four indices. Drawn
    independently, terms in which an index stands alone vanish in the mean, as ξ is centred. Drawn without replacement,
    r different indices are all in the batch with probability b(b−1)⋯(b−r+1) / N(N−1)⋯(N−r+1); the sums over indices
    that differ follow from Σⱼ⟨ξᵢ, ξⱼ⟩ = 0.
    """
    n, b = found.count, size
    pairs = found.squares**2 + 2 * found.overlaps
    if replaced:
        square = b * found.fourths / n + b * (b - 1) * pairs / n**2
    else:
        square, together = 0, Fraction(b, n)
        sums = (found.fourths, pairs - 7 * found.fourths, 12 * found.fourths - 2 * pairs, pairs - 6 * found.fourths)
        for r, term in enumerate(sums, 1):
            square += together * term
            if b == r:
                break
            together *= Fraction(b - r, n - r)
    return square / b**4 - expected(found.variance, n, b, replaced=replaced) ** 2


@dataclass(frozen=True)
class Noise:
    """‖α∇ − α∇_B‖² over batches: how many, the mean, and ‖α∇ − αE∇_B‖², which is 0 without batch norm."""

    batches: int
    mean: float
    bias: float


def measure(gradient: Callable[[Array], Array], whole: Array, draw: Callable[[], Array], repeats: int) -> Noise:
    """Draw batches and measure their noise."""
    squares, total = [], np.zeros_like(whole)
    for _ in range(repeats):
        difference = RATE * (gradient(draw()) - whole)
        squares.append(float(difference @ difference))
        total += difference
    mean = math.fsum(squares) / repeats
    middle = total / repeats
    return Noise(repeats, mean, float(middle @ middle) - mean / repeats)  # less what chance alone leaves


def judge(deviations: list[float]) -> tuple[Verdict, str]:
    """Return the verdict: confirmed if no deviation is beyond what chance allows for so many comparisons."""
    limit = understanding.allowed(len(deviations))
    beyond = sum(abs(z) > limit for z in deviations)
    chi = sum(z * z for z in deviations) / len(deviations)
    because = (
        f"Of {len(deviations)} comparisons with the formulas {beyond} lie beyond {limit:.1f} standard errors; the "
        f"largest deviation is {max(map(abs, deviations)):.1f}, the mean square {chi:.2f} (1 by chance)."
    )
    return ("not confirmed" if beyond else "confirmed"), because


def run(context: Context) -> Finding:
    """Measure the noise of plain networks against the formulas, and that of normalized ones."""
    repeats, sizes = (50, QUICK_SIZES) if context.quick else (200, SIZES)
    found: dict[tuple[str, str, bool, int], list[Noise]] = {}
    ratios: dict[tuple[str, bool, int], list[float]] = {}
    errors: dict[tuple[str, bool, int], list[float]] = {}
    variances: dict[str, list[float]] = {state: [] for state in STATES}
    deviations: dict[int, list[float]] = {size: [] for size in sizes}
    x, labels = understanding.samples(context)
    x, labels = x[:MOST].reshape(min(len(x), MOST), -1), labels[:MOST]
    count = len(x)
    sizes = tuple(size for size in sizes if size < count)

    for seed in context.progress(context.seeds, "B2 seeds"):
        for kind in understanding.KINDS:
            made = understanding.dense(
                context.generator(seed, "weights"),
                3,
                kind,
                residual=False,
                inputs=x.shape[1],
                width=32,
                initialize=network.he,
            )

            def gradient(chosen: Array, made: understanding.Network = made) -> Array:
                made.differentiate(x[chosen], labels[chosen])
                return understanding.flat(made.layers.gradients)

            for state in STATES:
                if state == STATES[1]:
                    order = context.generator(seed, "training")
                    understanding.descend(made, x, labels, order, rate=RATE, steps=60)
                whole = gradient(np.arange(count))
                if kind == "none":
                    every = population(np.array([RATE * (gradient(np.array([i])) - whole) for i in range(count)]))
                    variances[state].append(every.variance)
                for replaced in (True, False):
                    if kind == "BN" and replaced:
                        continue
                    for size in context.progress(sizes, f"{kind}, {state}"):
                        if kind == "BN" and size == 1:
                            continue  # nothing is left of one sample
                        generator = context.generator(seed, kind, state, replaced, size)

                        def draw(
                            generator: np.random.Generator = generator, size: int = size, replaced: bool = replaced
                        ) -> Array:
                            return generator.choice(count, size, replace=replaced)

                        noise = measure(gradient, whole, draw, repeats * max(1, 16 // size))
                        found.setdefault((kind, state, replaced, size), []).append(noise)
                        if kind == "none":
                            due = expected(every.variance, count, size, replaced=replaced)
                            error = math.sqrt(scatter(every, size, replaced=replaced) / noise.batches)
                            ratios.setdefault((state, replaced, size), []).append(noise.mean / due)
                            errors.setdefault((state, replaced, size), []).append(error / due)
                            deviations[size].append((noise.mean - due) / error)

    compared = [z for row in deviations.values() for z in row]
    verdict, because = judge(compared)
    numbers = [Measured(f"α²C {state}, no normalization, α = {RATE}", tuple(variances[state])) for state in STATES]
    for (state, replaced, size), values in ratios.items():
        error = np.mean(errors[state, replaced, size])
        how = "with" if replaced else "without"
        label = f"noise over formula, b = {size}, {how} replacement, {state}"
        numbers.append(Measured(label, tuple(values), expected=f"1 ± {error:.2g} a seed"))
    bias = {}
    for state in STATES:
        for size in sizes[1:]:
            rows = found["BN", state, False, size]
            bias[state, size] = [row.bias / row.mean for row in rows]
            label = f"batch norm: share of the bias in E‖∇ − ∇_B‖², b = {size}, {state}"
            numbers.append(Measured(label, tuple(bias[state, size]), expected="0 without batch norm"))
    small = sizes[1]
    caption = (
        f"Noise E‖α∇ − α∇_B‖² of a gradient step over the batch's size b, of {count} samples ({len(context.seeds)} "
        f"networks, {repeats} batches each and more of small ones, α = {RATE}). (a) At initialization and (b) after "
        "training, without normalization it is α²C/b with replacement and α²C(N−b)/(b(N−1)) without (lines): (c) all "
        f"{len(compared)} ratios lie within {max(map(abs, compared)):.1f} standard errors of 1 (a dot for each "
        "network, state and way of drawing; dotted: what chance allows). With batch norm there is no C; its noise "
        f"falls with b as well, but the mean of ∇_B is not ∇: at b = {small} that makes "
        f"{100 * np.mean(bias[STATES[0], small]):.1f} % of ‖∇ − ∇_B‖² at initialization and "
        f"{100 * np.mean(bias[STATES[1], small]):.1f} % after training."
    )
    details = {
        "samples": count,
        "batches": repeats,
        "noise": [
            {
                "kind": kind,
                "state": state,
                "replaced": replaced,
                "size": size,
                "mean": [row.mean for row in rows],
                "bias": [row.bias for row in rows],
            }
            for (kind, state, replaced, size), rows in found.items()
        ],
        "alpha2_C": variances,
        "deviations": deviations,
    }
    drawn = _draw(found, variances, deviations, sizes, count)
    return Finding(verdict, because, tuple(numbers), drawn, caption, details)


def _draw(found: Any, variances: Any, deviations: dict[int, list[float]], sizes: tuple[int, ...], count: int) -> Any:
    from validation.studies import style

    drawn, axes = style.figure(1, 3, height=3.4)
    fine = np.geomspace(1, 0.97 * count, 200)
    for state, place in zip(STATES, axes[:2], strict=True):
        mean = float(np.mean(variances[state]))
        for replaced, marker, line in ((True, "o", "-"), (False, "s", "--")):
            how = "with" if replaced else "without"
            due = [expected(mean, count, float(size), replaced=replaced) for size in fine]  # type: ignore[arg-type]
            place.plot(fine, due, line, color="black", linewidth=1, zorder=1)
            values = [np.mean([row.mean for row in found["none", state, replaced, size]]) for size in sizes]
            colour = style.CYCLE[1] if replaced else style.CYCLE[4]
            place.plot(sizes, values, marker, color=colour, label=f"no norm., {how} repl.")
        values = [np.mean([row.mean for row in found["BN", state, False, size]]) for size in sizes[1:]]
        place.plot(sizes[1:], values, marker="^", color=style.COLOURS["BN"], label="batch norm, without")
        place.set(xscale="log", yscale="log", xlabel="batch size b", title=state)
    axes[0].set_ylabel("E‖α∇ − α∇_B‖²")
    axes[0].legend(fontsize=7.5)
    for size in sizes:
        row = deviations[size]
        axes[2].plot(size * np.linspace(0.8, 1.25, len(row)), row, ".", color=style.CYCLE[1], markersize=4)
    limit = understanding.allowed(sum(map(len, deviations.values())))
    for level in (-limit, limit):
        axes[2].axhline(level, color="black", linestyle=":", linewidth=1)
    axes[2].set(xscale="log", xlabel="batch size b", ylabel="deviation (standard errors)", title="from the formulas")
    style.letter(axes)
    return drawn


STUDY = Study(
    "B2",
    "noise of gradient descent",
    "The noise of a gradient step, E‖α∇ − α∇_B‖², is α²C over the size of the batch: the learning rate and the batch's "
    "size set it together.",
    "Bjorck et al. 2018, Section 2.1",
    run,
)
