"""Singular values of products of Gaussian matrices, the linear model of a deep network's Jacobian at initialization.

The factors are N×N, with independent entries of mean 0 and variance 1/N; W is the product of M of them, s stands for
its squared singular values. Compared are:

* The moments, means of sᵏ over a spectrum, with their *exact* expectations at this N. Those come from `moments`, in
  rational arithmetic, and so do the standard errors: no limit of large N, no estimated variance. For N → ∞ they turn
  into the Fuss–Catalan numbers.
* The distribution of s with the Fuss–Catalan law. Singular values repel one another, so the share of a spectrum below a
  point varies by O(1/N), not O(1/√N), and at finite N it also *differs* from the law by O(1/N). The usual critical
  values of Kolmogorov's distance know neither. So at the law's nine deciles the shares at N/2 and at N are
  extrapolated, 2·F_N − F_{N/2}, which removes the term in 1/N; this is compared in standard errors. Kolmogorov's
  distance is told for both sizes.
* The growth of log₁₀ of the condition number. Beyond 10¹⁶ the smallest singular values of a product in binary64 are
  rounding errors. With A_M Q_{M−1} = Q_M R_M the product is Q_M (R_M ⋯ R_1), and its condition number is
  ‖R_M ⋯ R_1‖·‖R_1⁻¹ ⋯ R_M⁻¹‖: two largest singular values, which binary64 finds at any M. The diagonal elements of the
  R_m are independent, their squares χ² with N, N−1, …, 1 degrees of freedom over N. So the growth of R_11/R_NN, which
  for large M is the condition number's own (C. M. Newman, "The distribution of Lyapunov exponents", 1986), is known:
  (ψ(N/2) − ψ(1/2)) / (2 ln 10) for each factor in the mean, with variance (ψ′(N/2) + ψ′(1/2)) / (2 ln 10)².
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from validation.studies import understanding
from validation.studies.study import Context, Finding, Measured, Study, Verdict

Partition = tuple[int, ...]

SIZE = 200
FACTORS = (1, 2, 3, 4)
ORDERS = (1, 2, 3)
DECILES = np.arange(1, 10) / 10
SHORT = 10
"""From this many factors on the growth of the condition number is measured."""


# ---------------------------------------------------------------- the law


def fuss_catalan(factors: int, order: int) -> int:
    """Return the Fuss–Catalan number C((M+1)k, k)/(Mk+1), the law's moment of an order."""
    return math.comb((factors + 1) * order, order) // (factors * order + 1)


@dataclass(frozen=True)
class Law:
    """The Fuss–Catalan law of M factors, tabulated: rising points x, the density there, and each point's weight."""

    x: np.ndarray
    density: np.ndarray
    weight: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """The share of the law below each point."""
        return np.cumsum(self.weight) - self.weight / 2

    def below(self, x: np.ndarray) -> np.ndarray:
        """Return the law's distribution function."""
        return np.interp(x, self.x, self.share)

    def quantile(self, share: np.ndarray) -> np.ndarray:
        """Return where the distribution function has a value."""
        return np.interp(share, self.share, self.x)


def law(factors: int, points: int = 20_000) -> Law:
    """Return the law in its parametrization by an angle φ in (0, π/(M+1)) (Haagerup and Möller 2013).

    x = sin((M+1)φ)^(M+1) / (sin φ · sin(Mφ)^M),   density = sin²φ · sin(Mφ)^(M−1) / (π sin((M+1)φ)^M),

    where x falls with φ. The density has a pole at x = 0, density·|dx/dφ| has none: sums over midpoints in φ converge
    fast.
    """
    m = factors
    step = math.pi / (m + 1) / points
    phi = (np.arange(points)[::-1] + 0.5) * step
    one, all_but, all_of = np.sin(phi), np.sin(m * phi), np.sin((m + 1) * phi)
    x = all_of ** (m + 1) / (one * all_but**m)
    density = one**2 * all_but ** (m - 1) / (math.pi * all_of**m)
    slope = x * (1 / np.tan(phi) + m**2 / np.tan(m * phi) - (m + 1) ** 2 / np.tan((m + 1) * phi))
    return Law(x, density, density * slope * step)


# ---------------------------------------------------------------- exact moments at finite N


def pairings(places: list[int]) -> Iterator[list[tuple[int, int]]]:
    """Yield the ways to join places in pairs."""
    if not places:
        yield []
        return
    first, *rest = places
    for index, other in enumerate(rest):
        for others in pairings(rest[:index] + rest[index + 1 :]):
            yield [(first, other), *others]


def partitions(total: int, largest: int | None = None) -> Iterator[Partition]:
    """Yield the partitions of an integer, parts falling."""
    if total == 0:
        yield ()
    for part in range(min(total, largest or total), 0, -1):
        for rest in partitions(total - part, part):
            yield (part, *rest)


def _cycles(one: list[int], other: list[int]) -> list[int]:
    """Return the lengths of the cycles that two pairings of the same places form together, in pairs of the first."""
    left = set(range(len(one)))
    lengths = []
    while left:
        place = start = left.pop()
        length = 0
        while True:
            place = one[place]
            left.discard(place)
            length += 1
            place = other[place]
            if place == start:
                break
            left.discard(place)
        lengths.append(length)
    return sorted(lengths, reverse=True)


def _partners(pairs: list[tuple[int, int]]) -> list[int]:
    partner = [0] * (2 * len(pairs))
    for a, b in pairs:
        partner[a], partner[b] = b, a
    return partner


@cache
def transitions(order: int) -> dict[Partition, Counter[tuple[int, Partition]]]:
    """Return how products of traces move when one more factor X is multiplied on.

    With p_λ(A) = Π tr A^λᵢ for symmetric A and G = XXᵀ, the expectation of p_λ(XᵀAX) = p_λ(AG) is
    N^−k · Σ N^loops · p_μ(A), one term for each way to pair the 2k letters X (Wick's rule): paired letters have equal
    indices. ``loops`` counts the sums over inner indices of the G that remain free, μ the cycles that the A form.
    """
    inner = _partners([(2 * i, 2 * i + 1) for i in range(order)])
    chains = {}
    for parts in partitions(order):
        pairs, begin = [], 0
        for part in parts:  # A stands between the end of one G and the begin of the next, around each trace
            pairs += [(2 * (begin + i) + 1, 2 * (begin + (i + 1) % part)) for i in range(part)]
            begin += part
        chains[parts] = _partners(pairs)
    moves: dict[Partition, Counter[tuple[int, Partition]]] = {parts: Counter() for parts in chains}
    for pairs in pairings(list(range(2 * order))):
        wick = _partners(pairs)
        loops = len(_cycles(inner, wick))
        for parts, chain in chains.items():
            moves[parts][loops, tuple(_cycles(chain, wick))] += 1
    return moves


def moments(size: int, factors: int, order: int) -> dict[Partition, Fraction]:
    """Return the exact expectations of Π tr (WᵀW)^λᵢ for all partitions λ of an order."""
    moves = transitions(order)
    values = {parts: Fraction(size) ** len(parts) for parts in moves}  # of A = I
    for _ in range(factors):
        values = {
            parts: sum(
                (count * Fraction(size) ** (loops - order) * values[after] for (loops, after), count in ways.items()),
                Fraction(0),
            )
            for parts, ways in moves.items()
        }
    return values


def moment(size: int, factors: int, order: int) -> tuple[float, float]:
    """Return mean and standard deviation, over products W, of the mean of W's squared singular values to an order."""
    mean = moments(size, factors, order)[(order,)]
    square = moments(size, factors, 2 * order)[(order, order)]
    return float(mean / size), math.sqrt((square - mean**2) / size**2)


# ---------------------------------------------------------------- the growth of the condition number


def growth(size: int) -> tuple[float, float]:
    """Return mean and standard deviation of log₁₀ R_11/R_NN for each factor."""
    from scipy.special import digamma, polygamma

    decade = 2 * math.log(10)
    mean = (digamma(size / 2) - digamma(0.5)) / decade
    return float(mean), math.sqrt(polygamma(1, size / 2) + polygamma(1, 0.5)) / decade


@dataclass(frozen=True)
class Chain:
    """A growing product: log₁₀ of its condition number by QR and by its own SVD, and of R_11/R_NN at its end."""

    condition: dict[int, float]
    plain: dict[int, float]
    diagonal: float


def chain(matrices: Iterator[np.ndarray], watched: Collection[int], plain: int = 0) -> Chain:
    """Follow a product of matrices to some numbers of factors; up to ``plain`` by an SVD of it, too."""
    condition, direct = {}, {}
    logarithm = diagonal = 0.0
    q = there = back = product = None
    for factors, matrix in enumerate(matrices, 1):
        q, r = np.linalg.qr(matrix if q is None else matrix @ q)
        inverse = np.linalg.inv(r)
        there = r if there is None else r @ there
        back = inverse if back is None else back @ inverse
        for part in (there, back):  # scaled, so that long products neither overflow nor underflow
            scale = np.max(np.abs(part))
            part /= scale
            logarithm += math.log10(scale)
        diagonal += math.log10(abs(r[0, 0] / r[-1, -1]))
        if factors in watched:
            norms = np.linalg.norm(there, 2) * np.linalg.norm(back, 2)
            condition[factors] = logarithm + math.log10(norms)
        if factors <= plain:
            product = matrix if product is None else matrix @ product
            values = np.linalg.svd(product, compute_uv=False)
            direct[factors] = math.log10(values[0] / values[-1]) if values[-1] > 0 else math.inf
    return Chain(condition, direct, diagonal)


# ---------------------------------------------------------------- the study


def gaussian(generator: np.random.Generator, size: int, count: int) -> Iterator[np.ndarray]:
    """Yield N×N matrices with independent normal entries of variance 1/N."""
    for _ in range(count):
        yield generator.standard_normal((size, size)) / math.sqrt(size)


def spectra(generator: np.random.Generator, size: int) -> np.ndarray:
    """Return the squared singular values of a product of 1, 2, … factors, (M, N), rising."""
    rows, product = [], None
    for matrix in gaussian(generator, size, max(FACTORS)):
        product = matrix if product is None else matrix @ product
        rows.append(np.linalg.svd(product, compute_uv=False)[::-1] ** 2)
    return np.array([rows[factors - 1] for factors in FACTORS])


def distance(values: np.ndarray, law_: Law) -> float:
    """Return Kolmogorov's distance of a sorted sample from a law."""
    below, count = law_.below(values), len(values)
    steps = np.arange(count + 1) / count
    return float(max(np.max(steps[1:] - below), np.max(below - steps[:-1])))


@dataclass(frozen=True)
class Deviations:
    """What is compared with formulas: deviations in standard errors, and the growth by its own route."""

    moments: dict[tuple[int, int], float]
    shares: dict[int, list[float]]
    diagonal: float
    slope: float


def judge(found: Deviations) -> tuple[Verdict, str]:
    """Return the verdict and its reasons: every deviation within what chance allows, and a growth of 1.4 decades."""
    families = {
        "moments": list(found.moments.values()),
        "shares below the deciles": [z for row in found.shares.values() for z in row],
        "growth of R₁₁/R_NN": [found.diagonal],
    }
    limit = understanding.allowed(sum(map(len, families.values())))
    largest = {name: max(map(abs, family)) for name, family in families.items()}
    holds = [z <= limit for z in largest.values()] + [round(found.slope, 1) == 1.4]
    told = ", ".join(f"{name} {z:.1f}" for name, z in largest.items())
    because = (
        f"Largest deviation from the formulas, in standard errors ({limit:.1f} allowed): {told}. "
        f"log₁₀ of the condition number grows by {found.slope:.3f} a factor."
    )
    return understanding.verdict(holds), because


def run(context: Context) -> Finding:
    """Draw products, and compare their spectra with the law, the exact moments and the exact growth."""
    draws, chains = (20, 3) if context.quick else (100, 4)
    length = 60
    watched = {*range(1, SHORT), *range(SHORT, length + 1, 5)}
    sizes = SIZE // 2, SIZE
    laws = {factors: law(factors) for factors in FACTORS}

    squares: dict[int, Any] = {size: [] for size in sizes}  # by size: (seeds, draws, M, N)
    followed: list[list[Chain]] = []
    for seed in context.progress(context.seeds, "B9 seeds"):
        for size in sizes:
            generator = context.generator(seed, "spectra", size)
            squares[size].append([spectra(generator, size) for _ in context.progress(range(draws), f"N = {size}")])
        streams = [context.generator(seed, "chain", index) for index in range(chains)]
        followed.append(
            [
                chain(gaussian(stream, SIZE, length), watched, 20 if index == 0 else 0)
                for index, stream in enumerate(context.progress(streams, "long products"))
            ]
        )
    squares = {size: np.array(rows) for size, rows in squares.items()}
    count = len(context.seeds) * draws

    numbers, measured, moment_z = [], {}, {}
    for place, factors in enumerate(FACTORS):
        for order in ORDERS:
            per_seed = np.mean(squares[SIZE][:, :, place] ** order, axis=(1, 2))
            mean, deviation = moment(SIZE, factors, order)
            error = deviation / math.sqrt(count)
            measured[factors, order] = (float(per_seed.mean()), mean, error)
            moment_z[factors, order] = (float(per_seed.mean()) - mean) / error
            expected = f"{mean:.4f} ± {deviation / math.sqrt(draws):.2g} a seed; N → ∞: {fuss_catalan(factors, order)}"
            numbers.append(Measured(f"M = {factors}: mean of sᵏ, k = {order}", tuple(per_seed), expected=expected))

    share_z, shares, distances = {}, {}, {}
    for place, factors in enumerate(FACTORS):
        points = laws[factors].quantile(DECILES)
        below = {s: np.mean(squares[s][:, :, place, :, None] < points, axis=2).reshape(count, -1) for s in sizes}
        shares[factors] = {
            size: (below[size].mean(axis=0) - DECILES, below[size].std(axis=0, ddof=1) / math.sqrt(count))
            for size in sizes
        }
        (small, small_error), (large, large_error) = shares[factors].values()
        share_z[factors] = list((2 * large - small) / np.hypot(2 * large_error, small_error))
        distances[factors] = {
            size: [np.mean([distance(one[place], laws[factors]) for one in seed]) for seed in squares[size]]
            for size in sizes
        }
        for size in sizes:
            label = f"M = {factors}: Kolmogorov's distance of one spectrum, N = {size}"
            numbers.append(Measured(label, tuple(distances[factors][size]), expected="O(1/N): half at twice N"))

    mean, deviation = growth(SIZE)
    by_diagonal = [np.mean([one.diagonal / length for one in seed]) for seed in followed]
    diagonal_z = (np.mean(by_diagonal) - mean) / (deviation / math.sqrt(len(followed) * chains * length))
    slopes = [
        np.mean([(one.condition[length] - one.condition[SHORT]) / (length - SHORT) for one in seed])
        for seed in followed
    ]
    plain = np.array([list(seed[0].plain.values()) for seed in followed])
    numbers += [
        Measured(
            f"growth of R₁₁/R_NN over {length} factors",
            tuple(by_diagonal),
            "decades a factor",
            f"{mean:.4f} ± {deviation / math.sqrt(chains * length):.2g} a seed",
        ),
        Measured(
            f"growth of the condition number, M = {SHORT} to {length}", tuple(slopes), "decades a factor", "about 1.4"
        ),
        Measured("highest log₁₀ condition number that an SVD of the product sees", tuple(plain.max(axis=1))),
    ]

    found = Deviations(moment_z, share_z, float(diagonal_z), float(np.mean(slopes)))
    verdict, because = judge(found)
    condition = np.array([list(one.condition.values()) for seed in followed for one in seed])
    ratio = [np.mean(distances[factors][sizes[0]]) / np.mean(distances[factors][sizes[1]]) for factors in FACTORS]
    widest = max(abs(z) for row in share_z.values() for z in row)
    highest = max(abs(z) for z in moment_z.values())
    caption = (
        f"Products of M Gaussian {SIZE}×{SIZE} matrices ({count} of each M). (a) Their singular values √s follow the "
        "Fuss–Catalan law (lines; measured: dots). (b) The share of s below the law's deciles differs from it by "
        f"O(1/N): times N, the differences at N = {sizes[0]} and {sizes[1]} agree, and extrapolated to N → ∞ they "
        f"vanish within {widest:.1f} standard errors. Kolmogorov's distance of one spectrum falls by a factor of "
        f"{min(ratio):.2f} to {max(ratio):.2f} when N doubles. (c) The moments (bars: ± one standard error) differ "
        "from the Fuss–Catalan numbers as their exact values at this N do (strokes), within "
        f"{highest:.1f} standard errors. (d) log₁₀ of the condition number grows by {np.mean(slopes):.3f} a factor "
        f"(theory for many factors: {mean:.3f}), followed by QR to M = {length}; an SVD of the product itself sees "
        f"nothing beyond 10^{plain.max(axis=1).mean():.0f}."
    )
    details = {
        "size": SIZE,
        "products": count,
        "moment_deviations": {f"M={m} k={k}": z for (m, k), z in moment_z.items()},
        "deciles": DECILES,
        "share_minus_law": {
            factors: {size: {"mean": row[0], "standard_error": row[1]} for size, row in by_size.items()}
            for factors, by_size in shares.items()
        },
        "share_deviations": share_z,
        "kolmogorov": distances,
        "diagonal_deviation": diagonal_z,
        "factors": sorted(watched),
        "log10_condition": condition,
        "log10_condition_plain": plain,
    }
    drawn = _draw(squares[SIZE], laws, shares, measured, sorted(watched), condition, plain, mean)
    return Finding(verdict, because, tuple(numbers), drawn, caption, details)


def _draw(
    squares: np.ndarray,
    laws: dict[int, Law],
    shares: dict[int, Any],
    measured: dict[tuple[int, int], tuple[float, float, float]],
    watched: list[int],
    condition: np.ndarray,
    plain: np.ndarray,
    slope: float,
) -> Any:
    from validation.studies import style

    drawn, axes = style.figure(2, 2)
    density, differences, powers, growing = axes.ravel()
    edges = np.linspace(0, 3.2, 65)
    for place, factors in enumerate(FACTORS):
        colour = style.CYCLE[place]
        roots = np.sqrt(squares[:, :, place]).ravel()
        heights = np.histogram(roots, edges)[0] / (len(roots) * np.diff(edges))
        density.plot((edges[1:] + edges[:-1]) / 2, heights, ".", color=colour, markersize=4)
        root = np.sqrt(laws[factors].x)
        density.plot(root, 2 * root * laws[factors].density, color=colour, label=f"M = {factors}")
        for (size, (mean, error)), marker in zip(shares[factors].items(), "ox", strict=True):
            at = DECILES + (place - 1.5) * 0.014
            label = f"N = {size}" if place == 0 else None
            differences.errorbar(at, size * mean, size * error, fmt=marker, color=colour, label=label, linewidth=1)
        for order in ORDERS:
            value, exact, error = measured[factors, order]
            limit = fuss_catalan(factors, order)
            at = order + (place - 1.5) * 0.15
            powers.errorbar(at, 100 * (value / limit - 1), 100 * error / limit, fmt="o", color=colour)
            powers.hlines(100 * (exact / limit - 1), at - 0.06, at + 0.06, color="black", linewidth=2)
    density.set(xlabel="singular value √s", ylabel="density", xlim=(0, 3.2), ylim=(0, 1.6), title="spectrum")
    density.legend()
    differences.axhline(0, color="black", linewidth=0.8)
    differences.set(xlabel="share below, by the law", ylabel="N · (measured − law)", title="distance from the law")
    differences.legend()
    powers.axhline(0, color="black", linewidth=0.8)
    powers.set(xlabel="order k of the moment", ylabel="above Fuss–Catalan number (%)", xticks=ORDERS, title="moments")
    growing.plot(watched, condition.T, color=style.CYCLE[0], alpha=0.2, linewidth=0.8)
    growing.plot(watched, condition.mean(axis=0), color=style.CYCLE[0], label="by QR: mean (faint: each product)")
    line = condition[:, 0].mean() + slope * (np.array(watched) - 1)
    growing.plot(watched, line, "--", color="black", linewidth=1, label=f"slope {slope:.3f}")
    direct = np.where(np.isfinite(plain), plain, np.nan).mean(axis=0)
    growing.plot(range(1, len(direct) + 1), direct, "x", color=style.CYCLE[1], label="SVD of the product in binary64")
    growing.set(xlabel="number of factors M", ylabel="log₁₀ condition number", title="condition number")
    growing.legend()
    style.letter(axes)
    return drawn


STUDY = Study(
    "B9",
    "products of Gaussian matrices",
    "The singular values of a product of M Gaussian matrices follow the Fuss–Catalan law, and its condition number "
    "grows exponentially with M: deep linear networks are ill-conditioned at initialization.",
    "Bjorck et al. 2018, Section 4",
    run,
)
