"""Random and adversarial channels, one case each, for the checks of the oracle and of the error bounds.

A case is fixed by three things, written ``f32:SEED:INDEX``: `draw` rebuilds it bit for bit. It holds every input that
any pass takes, so one case serves all passes. The families aim at what breaks batch norm: offsets of up to
10¹⁵ standard deviations, constants, steps of one ulp, ties, outliers, subnormals, numbers near the overflow threshold
and exponents all over the format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refbn._formats import BFLOAT16, BINARY16, BINARY32, BINARY64, FORMATS, Format, round_to
from refbn._types import Array

__all__ = [
    "CASES_HELP",
    "EPSILONS",
    "FAMILIES",
    "SCALARS",
    "VECTORS",
    "Batch",
    "Channel",
    "Family",
    "batches",
    "draw",
    "draw_eps",
    "fill",
    "finite",
    "parse",
]

Doubles = npt.NDArray[np.float64]

EPSILONS = (0.0, 5e-324, 1e-12, 1e-5, 1e-3, 1.0, 1e6)
_EPSILON_WEIGHTS = (0.3, 0.05, 0.1, 0.3, 0.15, 0.05, 0.05)
_SMALL = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16)
_SMALL_WEIGHTS = (0.03, 0.1, 0.12, 0.16, 0.12, 0.1, 0.1, 0.12, 0.07, 0.05, 0.03)
_LARGE = (24, 33, 40)
_HUNDREDS = (128, 200, 331)

CASES_HELP = "channels per operation and format; some 4 %% have v + eps = 0, where little has a value"

VECTORS = ("x", "dy", "x_dot")
SCALARS = ("gamma", "beta", "gamma_dot", "beta_dot", "mean", "var", "mean_dot", "var_dot")


@dataclass(frozen=True, eq=False)
class Channel:
    """One case.

    Attributes
    ----------
    format : Format
        Of every array.
    seed, index : int
        What fixes it, with the format.
    kinds : dict
        How its parts were drawn, for the reader.
    eps : float
        ε, a binary64 number.
    x, dy, x_dot : ndarray, shape (m,)
        Input, cotangent of y, direction of x (or cotangent of dx).
    gamma, beta, gamma_dot, beta_dot, mean, var, mean_dot, var_dot : numpy scalar
        Parameters, frozen statistics (independent of x) and their directions.
    """

    format: Format
    seed: int
    index: int
    kinds: dict[str, str]
    eps: float
    arrays: dict[str, Array]

    @property
    def m(self) -> int:
        """The number of elements."""
        return int(self.arrays["x"].size)

    def __str__(self) -> str:
        kinds = " ".join(f"{name}={kind}" for name, kind in self.kinds.items())
        return f"{self.format.short}:{self.seed}:{self.index} m={self.m} eps={self.eps} {kinds}"


@dataclass(frozen=True, eq=False)
class Batch:
    """Cases of one format, one m and one ε, stacked as a backend wants them.

    Attributes
    ----------
    channels : tuple of Channel
        The G cases.
    eps : float
        Their ε.
    arrays : dict
        ``x``, ``dy``, ``x_dot`` of shape (G, m); the scalars of `Channel` as vectors of shape (G,).
    """

    channels: tuple[Channel, ...]
    eps: float
    arrays: dict[str, Array]

    @property
    def format(self) -> Format:
        """The format of every array."""
        return self.channels[0].format


# ---- how values are drawn: every function returns binary64 numbers, rounded to the format afterwards ---------------


def _scale(rng: np.random.Generator, form: Format) -> float:
    """A moderate power of two, such that squares stay well inside the format."""
    reach = 3 if form.emax < 100 else 12
    return 2.0 ** int(rng.integers(-reach, reach + 1))


def _normal(rng: np.random.Generator, form: Format, m: int) -> Doubles:
    return rng.standard_normal(m) * _scale(rng, form) + rng.standard_normal()


def _offset(rng: np.random.Generator, form: Format, m: int) -> Doubles:
    """Mean far from zero: up to 10¹⁵ standard deviations in binary64, a few ulps of spread in the others."""
    decades = {BINARY64: 15.0, BINARY32: 7.0, BINARY16: 3.0, BFLOAT16: 2.3}[form]
    sign = 1.0 if rng.standard_normal() > 0 else -1.0
    return np.asarray(rng.standard_normal(m) + sign * 10.0 ** float(rng.uniform(1.0, decades)))


def _constant(rng: np.random.Generator, form: Format, m: int) -> Doubles:
    return np.full(m, rng.standard_normal() * _scale(rng, form))


def _ulps(rng: np.random.Generator, form: Format, m: int) -> Doubles:
    """Almost constant: neighbours in the format."""
    base = round_to(np.array(rng.uniform(1.0, 1.9) * _scale(rng, form)), form.dtype).astype(np.float64)
    exponent = int(np.frexp(base)[1])
    return np.asarray(base + rng.integers(0, int(rng.integers(2, 5)), m) * 2.0 ** (exponent - form.precision))


def _integers(rng: np.random.Generator, form: Format, m: int) -> Doubles:
    """Few distinct values: statistics with few digits, hence many ties and exact zeros."""
    return rng.integers(-int(rng.integers(1, 9)), 9, m).astype(np.float64)


def _two_values(rng: np.random.Generator, form: Format, m: int) -> Doubles:
    """c ± a: at ε = 0 the root is rational, and so is every result."""
    half = np.where(np.arange(m) % 2 == 0, 1.0, -1.0) * float(rng.integers(1, 17))
    return np.asarray(rng.permutation(half) + float(rng.integers(-8, 9)))


def _powers(rng: np.random.Generator, form: Format, m: int) -> Doubles:
    return np.asarray(np.sign(rng.standard_normal(m)) * 2.0 ** rng.integers(-6, 7, m))


def _outlier(rng: np.random.Generator, form: Format, m: int) -> Doubles:
    values = rng.standard_normal(m)
    values[rng.integers(m)] *= 2.0 ** int(rng.integers(4, form.emax // 2))
    return values


def _subnormal(rng: np.random.Generator, form: Format, m: int) -> Doubles:
    """Multiples of the smallest positive number."""
    return np.asarray(rng.integers(-(2 ** (form.precision - 1)), 2 ** (form.precision - 1) + 1, m) * form.tiny)


def _huge(rng: np.random.Generator, form: Format, m: int) -> Doubles:
    """Up to the largest number: sums and squares overflow in the format."""
    return np.asarray(rng.uniform(-1.0, 1.0, m) * form.max)


def _mixed(rng: np.random.Generator, form: Format, m: int) -> Doubles:
    """Exponents from all over the format."""
    exponents = rng.integers(form.emin - form.precision + 1, form.emax, m)
    return np.asarray(np.ldexp(rng.uniform(-2.0, 2.0, m), exponents))


def _wide(rng: np.random.Generator, form: Format, m: int) -> Doubles:
    """Exponents spread over twice the precision."""
    reach = min(form.precision, form.emax - 2)
    return rng.standard_normal(m) * 2.0 ** rng.integers(-reach, reach + 1, m)


Family = Callable[[np.random.Generator, Format, int], Doubles]

FAMILIES: dict[str, tuple[Family, float]] = {
    "normal": (_normal, 0.2),
    "offset": (_offset, 0.15),
    "constant": (_constant, 0.06),
    "ulps": (_ulps, 0.1),
    "integers": (_integers, 0.1),
    "two-values": (_two_values, 0.06),
    "powers": (_powers, 0.06),
    "outlier": (_outlier, 0.07),
    "subnormal": (_subnormal, 0.05),
    "huge": (_huge, 0.05),
    "mixed": (_mixed, 0.03),
    "wide": (_wide, 0.07),
}
"""How x is drawn, with the share of cases."""

_NAMES = tuple(FAMILIES)
_WEIGHTS = np.array([weight for _, weight in FAMILIES.values()])


def _vector(rng: np.random.Generator, form: Format, m: int, x: Doubles) -> tuple[str, Doubles]:
    """A cotangent or direction: anything x can be, or one of those to which batch norm answers specially."""
    kind = rng.choice(("generic", "family", "constant", "like-x", "xhat", "zero", "one-hot", "ones"), p=_SPECIAL)
    if kind == "family":
        kind = str(rng.choice(_NAMES, p=_WEIGHTS))
        return kind, FAMILIES[kind][0](rng, form, m)
    if kind == "constant":
        return kind, _constant(rng, form, m)
    if kind == "like-x":  # x and a power of two: exactly in the span of 1 and x̂ unless a bit falls off the format
        return kind, x * 2.0 ** int(rng.integers(-6, 1))
    if kind == "xhat":  # x̂ rounded: nearly in that span
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            deviation = np.nan_to_num((x - x.mean()) / x.std())
        return kind, deviation
    if kind == "zero":
        return kind, np.zeros(m)
    if kind == "one-hot":
        return kind, (np.arange(m) == rng.integers(m)).astype(np.float64)
    if kind == "ones":
        return kind, np.ones(m)
    return kind, rng.standard_normal(m) * _scale(rng, form)


_SPECIAL = (0.44, 0.24, 0.06, 0.07, 0.07, 0.04, 0.04, 0.04)


def _scalar(rng: np.random.Generator, form: Format) -> Doubles:
    kind = rng.choice(("generic", "one", "zero", "integer", "power", "mixed"), p=(0.5, 0.15, 0.1, 0.13, 0.08, 0.04))
    value = {
        "one": lambda: 1.0,
        "zero": lambda: 0.0,
        "integer": lambda: float(rng.integers(-8, 9)),
        "power": lambda: float(_powers(rng, form, 1)[0]),
        "mixed": lambda: float(_mixed(rng, form, 1)[0]),
    }.get(str(kind), lambda: float(rng.standard_normal()))()
    return np.array(value)


def _frozen_mean(rng: np.random.Generator, form: Format, x: Doubles) -> Doubles:
    kind = rng.integers(4)
    if kind == 0:
        return _scalar(rng, form)
    if kind == 1:
        return np.array(x[rng.integers(x.size)])
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.nan_to_num(x.mean()) * (1.0 if kind == 2 else 1.0 + 0.1 * rng.standard_normal()))


def _frozen_var(rng: np.random.Generator, form: Format, x: Doubles) -> Doubles:
    kind = rng.integers(8)
    if kind < 4:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(np.nan_to_num(x.var(), nan=1.0, posinf=form.max))
    if kind == 4:
        return np.array(4.0 ** int(rng.integers(-3, 4)))
    if kind == 5:
        return np.abs(_scalar(rng, form))
    if kind == 6:
        return np.array(float(rng.integers(1, 50)))
    draw_one, _ = FAMILIES[str(rng.choice(("subnormal", "huge", "mixed")))]
    return np.abs(draw_one(rng, form, 1)).reshape(())


def finite(values: Doubles, form: Format) -> Array:
    """Round to a format; what lies beyond its largest number becomes that."""
    return round_to(np.clip(values, -form.max, form.max), form.dtype)


def fill(
    rng: np.random.Generator, m: int, family: Family, form: Format, others: dict[str, Format] | None = None
) -> tuple[dict[str, str], dict[str, Array]]:
    """Draw every input of a channel of m elements.

    Parameters
    ----------
    rng : Generator
        Where the numbers come from.
    m : int
        How many elements.
    family : callable
        How x is drawn.
    form : Format
        Of x, and of all that ``others`` does not name.
    others : dict of str to Format, optional
        Formats of further arrays.

    Returns
    -------
    kinds, arrays : dict
        As in `Channel`; the kinds of dy and x_dot only.
    """
    forms = others or {}
    arrays = {"x": finite(family(rng, form, m), form)}
    x = arrays["x"].astype(np.float64)
    kinds: dict[str, str] = {}
    for name in ("dy", "x_dot"):
        own = forms.get(name, form)
        kinds[name], values = _vector(rng, own, m, x)
        arrays[name] = finite(values, own)
    for name in SCALARS:
        own = forms.get(name, form)
        if name == "mean":
            value = _frozen_mean(rng, own, x)
        elif name == "var":
            value = _frozen_var(rng, own, x)
        else:
            value = _scalar(rng, own)
        arrays[name] = finite(value, own)
    return kinds, arrays


def draw_eps(rng: np.random.Generator) -> float:
    """Draw an ε."""
    return float(rng.choice(EPSILONS, p=_EPSILON_WEIGHTS))


def draw(form: Format, seed: int, index: int) -> Channel:
    """Build case number ``index`` of a seed."""
    rng = np.random.default_rng((FORMATS.index(form), seed, index))
    size = rng.uniform()
    if size < 0.003:
        m = int(rng.choice(_HUNDREDS))
    elif size < 0.02:
        m = int(rng.choice(_LARGE))
    else:
        m = int(rng.choice(_SMALL, p=_SMALL_WEIGHTS))
    family = str(rng.choice(_NAMES, p=_WEIGHTS))
    kinds, arrays = fill(rng, m, FAMILIES[family][0], form)
    return Channel(form, seed, index, {"x": family} | kinds, draw_eps(rng), arrays)


def parse(text: str) -> Channel:
    """Rebuild a case from the first word of its description.

    Raises
    ------
    ValueError
        If the text does not start with ``FORMAT:SEED:INDEX``.
    """
    parts = (text.split() or [""])[0].split(":")
    forms = {form.short: form for form in FORMATS}
    if len(parts) != 3 or parts[0] not in forms or not all(part.isdecimal() for part in parts[1:]):
        raise ValueError(f"case {text!r}, expected FORMAT:SEED:INDEX with a format among {', '.join(forms)}")
    return draw(forms[parts[0]], int(parts[1]), int(parts[2]))


def stack(channels: Iterable[Channel]) -> Batch:
    """Stack cases of one format, m and ε."""
    group = tuple(channels)
    arrays = {name: np.stack([channel.arrays[name] for channel in group]) for name in (*VECTORS, *SCALARS)}
    return Batch(group, group[0].eps, arrays)


def batches(form: Format, seed: int, indices: Iterable[int]) -> Iterator[Batch]:
    """Draw cases and stack those that share m and ε."""
    groups: dict[tuple[int, float], list[Channel]] = {}
    for index in indices:
        channel = draw(form, seed, index)
        groups.setdefault((channel.m, channel.eps), []).append(channel)
    for group in groups.values():
        yield stack(group)
