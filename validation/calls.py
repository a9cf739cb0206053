"""Calls for the check of correct rounding: long channels of many data families, mixed formats, and the small cases.

A *call* is what a backend's passes take: tensors of shape (G, m) and vectors of shape (G,), in formats and a memory
layout of their own. One or several calls are a *case*, fixed by ``family:format:seed:index``: `build` makes it again.
The format is that of x; the other arrays have the same one in half of the cases, and any others in the rest.

The families aim at what makes rounding hard: ties and near-ties, exact zeros, cancellation, exponents that overflow or
vanish on the way. ``small`` are the channels of `validation.cases`, ``special`` those with infinities and NaNs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from refbn._formats import FORMATS, Format, round_to
from refbn._types import Array
from validation import cases
from validation.cases import SCALARS, VECTORS

__all__ = ["FAMILIES", "Call", "Family", "build", "in_layout", "name", "outputs_of", "shape_of"]

Doubles = npt.NDArray[np.float64]
Generator = np.random.Generator

CHUNKS = {"small": 100, "special": 25}
"""Small channels a case."""

LAYOUTS = ("rows", "columns", "batch first", "reversed", "broadcast")
"""``broadcast``: what repeats one number has strides of zero."""
MOMENTA = (*map(Fraction, (0, 1, 0.1, 0.9, 0.99, 0.999, 2.0**-60)), Fraction(1, 3), Fraction(1, 7))
RUNNING = ("running_mean", "running_var")


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of every pass.

    Attributes
    ----------
    arrays : dict
        ``x``, ``dy``, ``x_dot`` of shape (G, m); the scalars of `validation.cases.Channel`, ``running_mean`` and
        ``running_var`` of shape (G,).
    eps : float
        ε.
    momentum : Fraction
        Of the running statistics.
    layout : str
        How tensors, outputs included, lie in memory: one of `LAYOUTS`.
    formats : tuple of (Format, Format)
        The formats to ask for: of tensors and of vectors.
    labels : tuple of str
        A few words on each channel.
    finite : bool
        Whether all numbers are.
    """

    arrays: dict[str, Array]
    eps: float
    momentum: Fraction
    layout: str
    formats: tuple[tuple[Format, Format], ...]
    labels: tuple[str, ...]
    finite: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """(G, m)."""
        groups, m = self.arrays["x"].shape
        return groups, m


@dataclass(frozen=True)
class Family:
    """How the channels of a family are drawn.

    Attributes
    ----------
    share : float
        Of all outputs.
    elements : int
        At most so many in a call; the fewer, the longer the oracle takes for each.
    x : callable
        Draws x, as the families of `validation.cases` do.
    alter : callable, optional
        Changes the other arrays of a channel.
    epsilons : tuple of float
        ε is one of them; those of `validation.cases` if empty.
    mixed : bool
        Whether the arrays may differ in format.
    """

    share: float
    elements: int
    x: cases.Family
    alter: Callable[[Generator, Format, dict[str, Array]], None] = field(default=lambda *_: None)
    epsilons: tuple[float, ...] = ()
    mixed: bool = True


# ---- what x is ------------------------------------------------------------------------------------------------------


def _any(*names: str) -> cases.Family:
    def draw(rng: Generator, form: Format, m: int) -> Doubles:
        return cases.FAMILIES[str(rng.choice(names))][0](rng, form, m)

    return draw


def _uniform(rng: Generator, form: Format, m: int) -> Doubles:
    return rng.random(m) * 2.0 ** int(rng.integers(-3, 4))


def _pairs(rng: Generator, form: Format, m: int) -> Doubles:
    """Large numbers and their negatives, and two small ones: nothing else is left of the sum."""
    half = rng.standard_normal(m // 2) * 2.0 ** int(rng.integers(2, min(form.precision, form.emax // 2 - 2)))
    values = np.zeros(m)
    values[: 2 * half.size : 2], values[1 : 2 * half.size : 2] = half, -half
    values[:2] = rng.standard_normal(2)[: values[:2].size]
    return values


_SQUARES = ((1, 1), (1, 7), (7, 17), (2, 14), (7, 23), (3, 21), (0, 0))  # (a² + b²)/2 is a square
_SQUARE_EPSILONS = (0.0, 0.0, 16.0)


def _square(rng: Generator, form: Format, m: int) -> Doubles:
    """±a and ±b about an integer, equally often: at ε = 0 (and for ±3 at ε = 16) q is a perfect square."""
    a, b = _SQUARES[rng.integers(len(_SQUARES))] if rng.uniform() < 0.7 else (3, 3)
    values = np.resize(np.array([a, -b, b, -a], np.float64), m)
    return rng.permutation(values) * 2.0 ** int(rng.integers(-2, 3)) + float(rng.integers(-4, 5))


def _powers_of_two(rng: Generator, form: Format, m: int) -> Doubles:
    """C ± a, equally often, a power of two: 1/√q is one too, or nearly."""
    half = np.where(np.arange(m) % 2 == 0, 1.0, -1.0) * 2.0 ** int(rng.integers(-3, 4))
    return np.asarray(rng.permutation(half) + float(rng.integers(-2, 3)))


# ---- what the rest is -----------------------------------------------------------------------------------------------


def _replace(arrays: dict[str, Array], **values: Doubles) -> None:
    for key, value in values.items():
        arrays[key] = cases.finite(np.asarray(value, np.float64), _format(arrays[key]))


def _format(array: Array) -> Format:
    return next(form for form in FORMATS if form.dtype == array.dtype)


def _constant_dy(rng: Generator, form: Format, arrays: dict[str, Array]) -> None:
    m = arrays["x"].size
    _replace(arrays, dy=np.full(m, rng.standard_normal()))
    if rng.uniform() < 0.5:
        _replace(arrays, x_dot=np.full(m, rng.standard_normal()))


def _proportional(rng: Generator, form: Format, arrays: dict[str, Array]) -> None:
    """Give dy, and often x_dot, the direction of x̂: x times a power of two, and perhaps a shift."""
    x = arrays["x"].astype(np.float64)
    shift = float(rng.integers(-3, 4)) if (x == np.round(x)).all() else 0.0
    _replace(arrays, dy=x * 2.0 ** int(rng.integers(-3, 1)) + shift)
    if rng.uniform() < 0.5:
        _replace(arrays, x_dot=x * 2.0 ** int(rng.integers(-3, 1)))


def _pair_up(rng: Generator, form: Format, arrays: dict[str, Array]) -> None:
    """Make the sums over dy or over dy·x cancel, and mix all elements alike."""
    order = rng.permutation(arrays["x"].size)
    m = order.size
    for key in ("dy", "x_dot"):
        values = _pairs(rng, _format(arrays[key]), m)
        if rng.uniform() < 0.5:
            values[1 : m // 2 * 2 : 2] *= -1  # pairs of equal numbers: now the products with x cancel
        _replace(arrays, **{key: values})
    for key in VECTORS:
        arrays[key] = arrays[key][order]


def _halfway(rng: Generator, form: Format, arrays: dict[str, Array]) -> None:
    """Put beta ± gamma on a midpoint between two numbers of some format: with x̂ = ±(1 − tiny), y is (nearly) a tie."""
    x = arrays["x"].astype(np.float64)
    centre = (x.max() + x.min()) / 2
    for scale, shift in (("gamma", "beta"), ("gamma_dot", "beta_dot")):
        aim = FORMATS[rng.integers(len(FORMATS))]
        beta = round_to(cases.finite(np.array(rng.uniform(1, 2)), _format(arrays[shift])).astype(np.float64), aim.dtype)
        sign = rng.choice((-1.0, 1.0))
        _replace(arrays, **{shift: beta.astype(np.float64), scale: np.array(sign * 2.0**-aim.precision)})
    _replace(arrays, mean=np.array(centre), var=np.array((x.max() - centre) ** 2))
    for key in ("dy", "x_dot"):
        if rng.uniform() < 0.8:
            _replace(arrays, **{key: rng.integers(-4, 5, x.size).astype(np.float64)})


def _small_integers(rng: Generator, form: Format, arrays: dict[str, Array]) -> None:
    """Make everything an integer, or a power of two, so that many results are ties or representable."""
    m = arrays["x"].size
    for key in ("dy", "x_dot"):
        _replace(arrays, **{key: rng.integers(-8, 9, m).astype(np.float64)})
    for key in SCALARS:
        if rng.uniform() < 0.7:
            _replace(arrays, **{key: np.array(float(rng.integers(0 if key == "var" else -4, 5)))})


_TINY = (0.0, 5e-324, 1e-300, 1e-100, 1e-30, 2.0**-60)

FAMILIES: dict[str, Family] = {
    "normal": Family(0.12, 200_000, _any("normal")),
    "uniform": Family(0.06, 200_000, _uniform),
    "integers": Family(0.08, 200_000, _any("integers"), _small_integers),
    "offset": Family(0.1, 200_000, _any("offset")),
    "ulps": Family(0.06, 200_000, _any("ulps")),
    "outlier": Family(0.06, 20_000, _any("outlier")),
    "huge": Family(0.06, 100_000, _any("huge")),
    "subnormal": Family(0.06, 100_000, _any("subnormal")),
    "cancelling": Family(0.06, 100_000, _pairs, _pair_up),
    "constant": Family(0.04, 200_000, _any("constant")),
    "constant-dy": Family(0.06, 200_000, _any("normal", "offset", "integers"), _constant_dy),
    "proportional": Family(
        0.06, 100_000, _any("normal", "two-values", "integers", "offset"), _proportional, mixed=False
    ),
    "square": Family(0.06, 100_000, _square, _small_integers, _SQUARE_EPSILONS),
    "near-ties": Family(0.05, 100_000, _powers_of_two, _halfway, _TINY),
    "wide": Family(0.03, 20_000, _any("wide")),
    "scattered": Family(0.005, 1_000, _any("mixed")),
    "medley": Family(0.02, 20_000, _any(*(key for key in cases.FAMILIES if key != "mixed"))),
    "small": Family(0.02, 0, _any("normal")),
    "special": Family(0.002, 0, _any("normal")),
}
"""By name; `build` draws the channels of ``small`` and ``special`` its own way."""


# ---- cases ----------------------------------------------------------------------------------------------------------


def name(family: str, form: Format, seed: int, index: int) -> str:
    """Return what `build` takes."""
    return f"{family}:{form.short}:{seed}:{index}"


def _parse(text: str) -> tuple[str, Format, int, int]:
    forms = {form.short: form for form in FORMATS}
    parts = text.split(":")
    if len(parts) == 4:
        family, short, *numbers = parts
        if family in FAMILIES and short in forms and all(number.isdecimal() for number in numbers):
            return family, forms[short], int(numbers[0]), int(numbers[1])
    raise ValueError(f"case {text!r}, expected FAMILY:FORMAT:SEED:INDEX with a family among {', '.join(FAMILIES)}")


def _generator(text: str, stream: int) -> Generator:
    family, form, seed, index = _parse(text)
    return np.random.default_rng((list(FAMILIES).index(family), FORMATS.index(form), seed, index, stream))


def shape_of(text: str) -> tuple[int, int]:
    """Return (G, m) of a case's one call, m a multiple of four; roughly, of the calls of small channels together."""
    family, *_ = _parse(text)
    if family in CHUNKS:
        return CHUNKS[family], 8
    rng = _generator(text, 0)
    limit = FAMILIES[family].elements
    kind = rng.uniform()
    if kind < 0.5:
        groups, low, high = int(rng.integers(1, 5)), 1000, limit
    elif kind < 0.75:
        groups, low, high = int(rng.integers(8, 65)), 100, 2000
    else:
        groups, low, high = int(rng.integers(100, 601)), 8, 400
    groups = min(groups, max(limit // low, 1))
    high = max(min(high, limit // groups), low)
    m = round(float(np.exp(rng.uniform(np.log(low), np.log(high)))) / 4) * 4
    return groups, (1 << (m.bit_length() - 1) if rng.uniform() < 0.25 else m)


def outputs_of(text: str) -> int:
    """Return how many outputs of all passes and formats a case has; roughly, where its channels are small."""
    groups, m = shape_of(text)
    return len(FORMATS) * groups * (12 * m + 28)


def build(text: str) -> list[Call]:
    """Draw a case.

    Raises
    ------
    ValueError
        If the text is no ``FAMILY:FORMAT:SEED:INDEX``.
    """
    family, form, seed, index = _parse(text)
    rng = _generator(text, 1)
    if family in CHUNKS:
        indices = range(index * CHUNKS[family], (index + 1) * CHUNKS[family])
        batches = list(cases.batches(form, seed, indices))
        calls = [_call(rng, batch.arrays, batch.eps, form, tuple(map(str, batch.channels))) for batch in batches]
        return calls if family == "small" else [_poisoned(rng, call) for call in calls]
    groups, m = shape_of(text)
    made = FAMILIES[family]
    others = {}
    if made.mixed and rng.uniform() < 0.5:
        others = {key: FORMATS[rng.integers(len(FORMATS))] for key in (*VECTORS[1:], *SCALARS)}
    eps = float(rng.choice(made.epsilons)) if made.epsilons else cases.draw_eps(rng)
    channels, labels = [], []
    for _ in range(groups):
        kinds, arrays = cases.fill(rng, m, made.x, form, others)
        made.alter(rng, form, arrays)
        channels.append(arrays)
        labels.append(" ".join(f"{key}={kind}" for key, kind in kinds.items()))
    arrays = {key: np.stack([channel[key] for channel in channels]) for key in (*VECTORS, *SCALARS)}
    return [_call(rng, arrays, eps, form, tuple(labels))]


def _call(rng: Generator, arrays: dict[str, Array], eps: float, form: Format, labels: tuple[str, ...]) -> Call:
    """Add what a case does not fix: running statistics, layout, output formats."""
    groups = len(arrays["x"])
    own = FORMATS[rng.integers(len(FORMATS))] if rng.uniform() < 0.3 else form
    running = {key: cases.finite(rng.standard_normal(groups), own) for key in RUNNING}
    momentum = MOMENTA[rng.integers(len(MOMENTA))]
    layout = str(rng.choice(LAYOUTS, p=(0.3, 0.2, 0.2, 0.15, 0.15)))
    # Every format once for tensors and once for vectors; half of the time the same in one call.
    of_vectors = list(FORMATS) if rng.uniform() < 0.5 else [FORMATS[i] for i in rng.permutation(len(FORMATS))]
    formats = tuple(zip(FORMATS, of_vectors, strict=True))
    return Call(arrays | running, eps, momentum, layout, formats, labels)


def _poisoned(rng: Generator, call: Call) -> Call:
    """Put infinities and NaNs at random places of random arrays."""
    arrays = {key: array.copy() for key, array in call.arrays.items()}
    for key in rng.choice(list(arrays), int(rng.integers(1, 4)), replace=False):
        flat = arrays[key].reshape(-1)
        places = rng.integers(0, flat.size, max(1, flat.size // 20))
        flat[places] = rng.choice((np.nan, np.inf, np.inf if key == "var" else -np.inf), places.size)
    return Call(arrays, call.eps, call.momentum, call.layout, call.formats, call.labels, finite=False)


def in_layout(array: Array, layout: str, *, out: bool = False) -> Array:
    """Return equal values of a tensor (G, m), or (G, 4, m/4), or of a vector, in memory of one of the `LAYOUTS`.

    An output (``out``) is never broadcast.
    """
    groups = len(array)
    if layout == "broadcast" and not out:
        one = array.reshape(-1)[:1].reshape((1,) * array.ndim)
        if (array == one).all():
            return np.broadcast_to(one, array.shape)
        if array.ndim > 1 and (array == array[:, :1]).all():
            return np.broadcast_to(array[:, :1], array.shape)
    if layout == "reversed":
        backwards = (slice(None, None, -1),) * array.ndim
        return np.ascontiguousarray(array[backwards])[backwards]
    if layout == "batch first" and array.ndim > 1 and array.shape[1] % 4 == 0:
        return np.ascontiguousarray(array.reshape(groups, 4, -1).swapaxes(0, 1)).swapaxes(0, 1)
    if layout == "columns":
        return np.asfortranarray(array)
    return np.ascontiguousarray(array)
