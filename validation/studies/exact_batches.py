"""Random batches in exact arithmetic, and the gradients of losses on them, for the studies of blindness.

Numbers are a + b·√q (`refbn.exact.Exact`). Gradients come from a reverse tape over the forward pass alone: no formula
of a derivative of batch norm takes part, so an identity about gradients can fail here.

**One field for all channels.** A loss that couples channels needs √q of each of them in one number. That works if all
q_e = var_e + ε are q₀ times squares of rationals. Given one channel with deviations d₀, another one is
d = c·R d₀, where R is a reflection that leaves the constant vectors alone, so that c²var₀ is its variance. There must
be a rational t with c²var₀ + ε = t²q₀. The pair (1, 1) solves that equation; a line of rational slope k through it
meets the curve in one more point,

    c = (2kq₀ − var₀ − k²q₀) / (var₀ − k²q₀),

which is rational, and every rational solution is found so. Reflections connect any two rational vectors of one length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np

from refbn.exact import Exact, Var, gradient, program
from validation.studies.study import Context, Measured

__all__ = [
    "BROKEN",
    "Batch",
    "Channel",
    "Gradients",
    "Tally",
    "examine",
    "gradients",
    "passed_by",
    "project",
    "random_batch",
    "rational",
    "refuted",
    "rows",
    "through",
    "upstream",
    "void",
]

Loss: TypeAlias = "Callable[[Sequence[Var[Exact]]], Var[Exact]]"
"""From the outputs of all channels, a vector each, to a number."""
Layer: TypeAlias = "Callable[[Var[Exact], Var[Exact], Var[Exact], Fraction], Var[Exact]]"
"""From x, gamma, beta and eps of a channel to its output."""
Operator: TypeAlias = "Callable[[Channel, Exact], Exact]"


@dataclass(frozen=True)
class Channel:
    """A channel's input and affine parameters, and what follows from them."""

    x: Exact
    gamma: Fraction
    beta: Fraction
    eps: Fraction

    @property
    def m(self) -> int:
        """The number of elements."""
        assert self.x.length is not None
        return self.x.length

    @cached_property
    def moments(self) -> tuple[Exact, Exact, Exact]:
        """Mean, deviations d and biased variance."""
        return program.moments(self.x)

    @property
    def d(self) -> Exact:
        """x − mean."""
        return self.moments[1]

    @property
    def var(self) -> Exact:
        """The biased variance."""
        return self.moments[2]

    @cached_property
    def xhat(self) -> Exact:
        """d/√(var + ε)."""
        return program.standardize(self.d, self.var, self.eps)

    @cached_property
    def invstd(self) -> Exact:
        """1/√(var + ε)."""
        return program.invstd(self.var, self.eps)

    @cached_property
    def kappa(self) -> Exact:
        """ε/(var + ε)."""
        return Exact.number(self.eps) / (self.var + self.eps)

    def plain(self) -> Channel:
        """Return the channel with gamma 1 and beta 0."""
        return replace(self, gamma=Fraction(1), beta=Fraction(0))

    @cached_property
    def y(self) -> Exact:
        """The output of batch norm."""
        return program.affine(self.xhat, Exact.number(self.gamma), Exact.number(self.beta))


Batch: TypeAlias = "tuple[Channel, ...]"


class Gradients(NamedTuple):
    """Of a loss, for one channel."""

    dx: Exact
    dgamma: Exact
    dbeta: Exact


# ---- random instances -----------------------------------------------------------------------------------------------


def rational(generator: np.random.Generator, *, zero: bool = True) -> Fraction:
    """Return a random fraction between −9 and 9, 0 only if it may be."""
    while True:
        value = Fraction(int(generator.integers(-63, 64)), int(generator.integers(7, 13)))
        if value or zero:
            return value


def random_batch(
    generator: np.random.Generator, *, channels: int | None = None, m: int | None = None, eps: Fraction | None = None
) -> Batch:
    """Return a batch whose channels share one field.

    Parameters
    ----------
    generator : numpy.random.Generator
    channels, m : int, optional
        1 … 3 and 2 … 12 at random if left out.
    eps : Fraction, optional
        If left out, 0 every other time, else between 10⁻⁶ and 9.
    """
    channels = int(generator.integers(1, 4)) if channels is None else channels
    m = int(generator.integers(2, 13)) if m is None else m
    if eps is None:
        positive = Fraction(int(generator.integers(1, 10)), 10 ** int(generator.integers(0, 7)))
        eps = positive * int(generator.integers(2))
    first = _random_vector(generator, m)
    deviations = [first, *(_related(generator, first, eps) for _ in range(channels - 1))]
    return tuple(
        Channel(d + rational(generator), rational(generator, zero=False), rational(generator), eps) for d in deviations
    )


def _random_vector(generator: np.random.Generator, m: int) -> Exact:
    """Return a vector that sums to zero and is not zero."""
    while True:
        ints = generator.integers(-30, 31, m).tolist()
        x = Exact.vector(ints, Fraction(1, int(generator.integers(1, 8))))
        centred = x - x.mean()
        if not centred.is_zero():
            return centred


def _related(generator: np.random.Generator, d: Exact, eps: Fraction) -> Exact:
    """Return another vector of deviations whose var + ε is that of d times a square."""
    assert d.length is not None
    mirror = _random_vector(generator, d.length)
    reflected = d - mirror * ((mirror * d).sum() * 2 / (mirror * mirror).sum())
    var = (d * d).mean().parts()[0]
    q = var + eps
    while True:
        k = Fraction(int(generator.integers(-7, 8)), int(generator.integers(1, 8)))
        numerator, denominator = 2 * k * q - var - k * k * q, var - k * k * q
        if numerator and denominator:
            return reflected * (numerator / denominator)


# ---- gradients ------------------------------------------------------------------------------------------------------


def gradients(batch: Batch, loss: Loss, layer: Layer = program.batch_norm) -> list[Gradients]:
    """Return the gradients of a loss of the layer's outputs, by a reverse tape over all of it."""
    leaves = [
        tuple(Var(value, wanted=True) for value in (c.x, Exact.number(c.gamma), Exact.number(c.beta))) for c in batch
    ]
    total = loss([layer(*leaf, c.eps) for leaf, c in zip(leaves, batch, strict=True)])
    flat = gradient(total, Exact.number(1), [var for leaf in leaves for var in leaf])
    filled = [
        Exact.zeros(var.length) if g is None else g
        for g, var in zip(flat, (var for leaf in leaves for var in leaf), strict=True)
    ]
    return [Gradients(*filled[k : k + 3]) for k in range(0, len(filled), 3)]


def upstream(batch: Batch, loss: Loss) -> list[Exact]:
    """Return the loss's gradient on the outputs of batch norm, which is what its backward pass is given."""
    ys = [Var(c.y, wanted=True) for c in batch]
    received = gradient(loss(ys), Exact.number(1), ys)
    return [Exact.zeros(c.m) if g is None else g for g, c in zip(received, batch, strict=True)]


def passed_by(channel: Channel, u: Exact, layer: Layer = program.batch_norm) -> Exact:
    """Return what the layer's backward pass makes of an upstream gradient u, by the tape."""

    def paired(ys: Sequence[Var[Exact]]) -> Var[Exact]:
        return (ys[0] * Var(u)).sum()

    return gradients((channel,), paired, layer)[0].dx


def project(channel: Channel, u: Exact) -> Exact:
    """Return P u = u − mean(u) − x̂·mean(x̂u)."""
    return u - u.mean() - channel.xhat * (channel.xhat * u).mean()


def _without_mean(channel: Channel, u: Exact) -> Exact:
    return u - channel.xhat * (channel.xhat * u).mean()


def _without_xhat(channel: Channel, u: Exact) -> Exact:
    return u - u.mean()


def _without_eps(channel: Channel, u: Exact) -> Exact:
    return u - u.mean() - channel.d * ((channel.d * u).mean() / channel.var)


def _bessel(channel: Channel, u: Exact) -> Exact:
    over = channel.m - 1
    return u - u.sum() / over - channel.xhat * ((channel.xhat * u).sum() / over)


BROKEN: dict[str, Operator] = {
    "P without the mean": _without_mean,
    "P without the x̂ term": _without_xhat,
    "P with x̂ taken without ε": _without_eps,
    "P with means over m − 1": _bessel,
}
"""Controls: operators that look like P and are not, so that each identity can be seen to fail."""


def through(operator: Operator, batch: Batch, loss: Loss) -> list[Exact]:
    """Return the gradients on x of a backward pass that has another operator in P's place."""
    return [operator(c, u) * c.invstd * c.gamma for c, u in zip(batch, upstream(batch, loss), strict=True)]


# ---- many instances -------------------------------------------------------------------------------------------------


class Tally:
    """How many instances each statement was asked of, and how many it held for."""

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}
        self.held: dict[str, int] = {}

    def add(self, answers: Mapping[str, bool]) -> None:
        """Count one instance."""
        for statement, holds in answers.items():
            self.asked[statement] = self.asked.get(statement, 0) + 1
            self.held[statement] = self.held.get(statement, 0) + bool(holds)

    def fraction(self, statement: str) -> float:
        """Return the share of instances for which a statement held."""
        return self.held[statement] / self.asked[statement]


def examine(
    ctx: Context, count: int, judge: Callable[[np.random.Generator], Mapping[str, bool]], what: str
) -> list[Tally]:
    """Judge so many random instances for each seed; return a tally for each."""
    tallies = []
    for seed in ctx.seeds:
        generator = ctx.generator(seed, "instances")
        tally = Tally()
        for _ in ctx.progress(range(count), f"{what}, seed {seed}"):
            tally.add(judge(generator))
        tallies.append(tally)
    return tallies


def refuted(tallies: Sequence[Tally], expected: Mapping[str, str]) -> list[str]:
    """Return the statements that are expected to hold, "1", and do not in some instance."""
    return [
        statement
        for statement, words in expected.items()
        if words.startswith("1")
        and any(tally.held.get(statement, 0) < tally.asked.get(statement, 0) for tally in tallies)
    ]


def void(tallies: Sequence[Tally], expected: Mapping[str, str]) -> list[str]:
    """Return the controls that are expected to fail, "0", and do not in some instance."""
    return [
        statement
        for statement, words in expected.items()
        if words == "0" and any(tally.held.get(statement, 0) for tally in tallies)
    ]


def rows(tallies: Sequence[Tally], expected: Mapping[str, str]) -> Iterator[Measured]:
    """Yield a row for each statement that was asked: the share of instances for which it held."""
    for statement, words in expected.items():
        asked = [tally for tally in tallies if statement in tally.asked]
        if asked:
            count = sum(tally.asked[statement] for tally in asked)
            values = tuple(tally.fraction(statement) for tally in asked)
            yield Measured(f"{statement} ({count} instances)", values, expected=words)
