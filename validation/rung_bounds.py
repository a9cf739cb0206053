"""The rungs' error bounds, attacked: ``python -m validation.rung_bounds``.

Each rung of the core's ladder encloses what it computes: sums, vector results, elements. An output is accepted on the
word of its enclosure. Here every enclosure of every rung is laid open (``rung_bounds.c``, compiled with the flags of
each build that this machine can run) and compared with the exact value. The *fraction* of a bound is the distance from
the enclosure's middle over half its width: above 1 the bound is wrong. Four attacks:

random      the channels of `validation.calls`, small ones and long ones
edges       constants, single elements and few values with exponents from all over binary64, in mixed formats
swallowed   sums whose roundings all go one way, as far as the numbers allow
climb       hill climbing: inputs are changed step by step so that one fraction grows

Where a bound is infinite nothing is claimed. *Midpoints* are another attack, on the rounding tests: gamma and beta such
that y lies 2^-k ulp beside a midpoint of the output's format, for all k; whatever a rung accepts must be right.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import inf, isqrt, nextafter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn import backends, exact
from refbn._formats import BINARY32, BINARY64, FORMATS, Format, round_to
from refbn._types import Array
from refbn.exact import ExactArray
from validation import calls, cases, report
from validation.calls import MOMENTA, Call
from validation.cases import SCALARS, VECTORS
from validation.correct_rounding import plan as cases_of
from validation.formulas import has_value
from validation.passes import TENSORS, is_frozen
from validation.truth import OUTPUTS, RUNNING, VARIANTS

__all__ = ["ATTACKS", "BUILDS", "RUNGS", "Core", "Findings", "attack", "available", "compile_core", "main", "measure"]

HERE = Path(__file__).parent
COMMON = ("-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-w")
BUILDS: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": (
        *("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"),
        "-mprefer-vector-width=512",
    ),
}
"""The builds of the core, as in ``_ext/meson.build``, with their flags."""

RUNGS = ("plain", "twofold", "scaled")
SUMS = ("t", "t t", "g", "g t", "g g", "u", "u t", "u u", "u g")
_FACTORS = ((0,), (0, 0), (1,), (1, 0), (1, 1), (2,), (2, 0), (2, 2), (2, 1))  # of each sum: x, dy, x_dot

INPUTS: dict[str, tuple[str, ...]] = {
    "forward": ("x", "gamma", "beta"),
    "backward": ("x", "dy", "gamma"),
    "jvp": ("x", "x_dot", "gamma", "gamma_dot", "beta_dot"),
    "double_backward": ("x", "dy", "x_dot", "gamma", "gamma_dot", "beta_dot"),
    "hvp": ("x", "dy", "x_dot", "gamma", "gamma_dot"),
    RUNNING: ("x", "running_mean", "running_var"),
    "inference": ("x", "gamma", "beta", "mean", "var"),
    "inference_backward": ("x", "dy", "gamma"),
    "inference_jvp": ("x", "x_dot", "gamma", "gamma_dot", "beta_dot", "mean_dot", "var_dot"),
    "inference_double_backward": ("x", "dy", "x_dot", "gamma", "gamma_dot", "beta_dot", "mean_dot", "var_dot"),
    "inference_hvp": ("x", "dy", "x_dot", "gamma", "gamma_dot", "mean_dot", "var_dot"),
}
"""What each pass reads; in the order of the core's enumeration of passes."""

_PASSES = tuple(INPUTS)
_TENSOR_SLOTS = ("x", "dy", "x_dot", "y", "dx")
_VECTOR_SLOTS = (
    *("gamma", "beta", "mean", "var", "invstd", "gamma_dot", "beta_dot", "mean_dot", "var_dot"),
    *("dgamma", "dbeta", "dmean", "dvar"),
)
_RESULTS = ("mean", "var", "invstd", "dgamma", "dbeta", "dmean", "dvar")
_SLOT = {"y_dot": "y", "ddy": "y", "running_mean": "mean", "running_var": "var", "out_mean": "dmean", "out_var": "dvar"}
_STATE_SIZE = 11
_LINES = 100
_OF_A_KIND = 3  # lines of one quantity, at most
_CLIMBS = 10  # for one run of another attack
_CLIMBED = 40  # steps of a climb for one of another attack

Doubles = npt.NDArray[np.float64]
Pass = tuple[str, tuple[bool, ...]]
Setup = tuple[Format, Format, int, bool]
"""Formats of tensor and of vector outputs, threads, and whether groups lie side by side in memory."""


# ---- the core, compiled with its enclosures laid open ---------------------------------------------------------------


class _Tensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("format", "group_stride", "stride")))


class _Vector(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("format", ctypes.c_int64))


class _Probe(ctypes.Structure):
    """The structure `probe` of rung_bounds.c."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in ("pass_", "groups", "count", "threads", "forced", "weighs_new", "unbiased")
        ),
        ("eps", ctypes.c_double),
        ("momentum", ctypes.c_double * 2),
        ("weight_new", ctypes.c_double * 3),
        ("weight_old", ctypes.c_double * 3),
        ("state", ctypes.c_void_p),
        ("tensor", _Tensor * len(_TENSOR_SLOTS)),
        ("vector", _Vector * len(_VECTOR_SLOTS)),
        ("setting", ctypes.c_void_p * len(RUNGS)),
        ("sum", ctypes.c_void_p * len(RUNGS)),
        ("result", ctypes.c_void_p * len(RUNGS)),
        ("ends", ctypes.c_void_p * (2 * len(RUNGS))),
        ("biased", ctypes.c_void_p * (2 * len(RUNGS))),
    )


@dataclass(frozen=True)
class Enclosures:
    """What one rung knew before its rounding tests; NaN where it knew nothing.

    Attributes
    ----------
    setting : ndarray, shape (G, 3, 3)
        Pivot, exponent and whether it is a constant, of x, dy and x_dot.
    sums : ndarray, shape (G, len(SUMS), 3)
        hi, lo and a bound of the error; sums are those of 2^exponent times the tensor, less the pivot.
    results : ndarray, shape (G, 7, 3)
        The same of the vector results.
    elements : dict
        By output, of shape (G, m, 4): the low end as two numbers, the high one as two.
    biased : dict
        The same of combinations from a bias on.
    """

    setting: Doubles
    sums: Doubles
    results: Doubles
    elements: dict[str, Doubles]
    biased: dict[str, Doubles]


def available() -> tuple[str, ...]:
    """Return the names of the builds that this machine runs, the fastest first."""
    if "native" not in backends.available():
        return ("baseline",)
    module: Any = backends.load("native")
    return tuple(build.name for build in module._native.builds)


def compile_core(build: str, folder: Path, sources: Path = HERE.parent / "_ext") -> Path:
    """Compile a build of the core from the checkout's sources; return the library."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise RuntimeError("no C compiler; set CC")
    library = folder / f"rung_bounds_{build}.so"
    files = (HERE / "rung_bounds.c", sources / "exact.c", sources / "threads.c")
    command = [compiler, *COMMON, *BUILDS[build], f"-I{sources}", *map(str, files), "-pthread", "-o", str(library)]
    subprocess.run(command, check=True)
    return library


class Core:
    """A build of the core with its enclosures laid open."""

    def __init__(self, library: Path) -> None:
        self.name = library.stem.rpartition("_")[2]
        self._probe: Callable[..., int] = ctypes.CDLL(str(library)).refbn_probe

    def run(
        self, call: Call, which: Pass, setup: Setup, state: Doubles, *, forced: bool
    ) -> tuple[dict[str, Array], list[Enclosures]]:
        """Run a pass; return its outputs and each rung's enclosures.

        Parameters
        ----------
        call, which, setup
            What to compute, and how.
        state : ndarray, shape (G, 11)
            Written by forward and inference, read by the others.
        forced : bool
            Whether no rung but the last, of exact integers, may decide anything.
        """
        operation, variant = which
        of_tensors, of_vectors, threads, side_by_side = setup
        groups, m = call.shape
        probe = _Probe(pass_=_PASSES.index(operation), groups=groups, count=m, threads=threads, forced=forced)
        probe.eps, probe.state = call.eps, state.ctypes.data
        if variant:
            probe.weighs_new, probe.unbiased = variant
            momentum = call.momentum
            new, old = (momentum, 1 - momentum) if variant[0] else (1 - momentum, momentum)
            probe.momentum[:] = (float(momentum.numerator), float(momentum.denominator))
            probe.weight_new[:], probe.weight_old[:] = _enclosed(new), _enclosed(old)
        held: list[Array] = []

        def place(name: str, array: Array) -> Array:
            slot = _SLOT.get(name, name)
            form = next(k for k, form in enumerate(FORMATS) if form.dtype == array.dtype)
            laid = np.asfortranarray(array) if side_by_side else np.ascontiguousarray(array)
            held.append(laid)
            if laid.ndim == 1:
                probe.vector[_VECTOR_SLOTS.index(slot)] = _Vector(laid.ctypes.data, form)
            else:
                group, inner = (
                    (laid.itemsize, laid.itemsize * groups) if side_by_side else (laid.itemsize * m, laid.itemsize)
                )
                probe.tensor[_TENSOR_SLOTS.index(slot)] = _Tensor(laid.ctypes.data, form, group, inner)
            return laid

        for name in INPUTS[operation]:
            place(name, call.arrays[name])
        outputs = {}
        for name in OUTPUTS[operation]:
            shape, form = (call.shape, of_tensors) if name in TENSORS else (call.shape[:1], of_vectors)
            outputs[name] = place(name, np.full(shape, -7.0).astype(form.dtype))
        found = []
        for rung in range(len(RUNGS)):
            one = Enclosures(
                np.full((groups, 3, 3), np.nan),
                np.full((groups, len(SUMS), 3), np.nan),
                np.full((groups, len(_RESULTS), 3), np.nan),
                *({name: np.full((groups, m, 4), np.nan) for name in outputs if name in TENSORS} for _ in range(2)),
            )
            probe.setting[rung], probe.sum[rung] = one.setting.ctypes.data, one.sums.ctypes.data
            probe.result[rung] = one.results.ctypes.data
            for name, ends in one.elements.items():
                probe.ends[2 * rung + (name == "dx")] = ends.ctypes.data
                probe.biased[2 * rung + (name == "dx")] = one.biased[name].ctypes.data
            found.append(one)
        if self._probe(ctypes.byref(probe)):
            raise MemoryError
        return outputs, found

    def state_of(self, call: Call, frozen: bool, setup: Setup) -> Doubles:
        """Return the state that a derivative pass gets."""
        state = np.zeros((call.shape[0], _STATE_SIZE))
        self.run(call, ("inference" if frozen else "forward", ()), setup, state, forced=False)
        return state


def _enclosed(weight: Fraction) -> tuple[float, float, float]:
    hi = float(weight)
    lo = float(weight - Fraction(hi))
    missing = abs(weight - Fraction(hi) - Fraction(lo))
    return hi, lo, nextafter(float(missing), inf) if missing else 0.0


@functools.cache
def _core(library: str) -> Core:
    return Core(Path(library))


# ---- the truth ------------------------------------------------------------------------------------------------------


class Truth:
    """The exact results of a call, pass by pass; computed when first asked for."""

    def __init__(self, call: Call) -> None:
        self.call = call
        a = {key: array.astype(np.float64) for key, array in call.arrays.items()}
        x = a["x"]
        self.missing = {
            False: np.asarray((x == x[:, :1]).all(axis=1) & (call.eps == 0)),
            True: np.asarray(a["var"] + call.eps <= 0),
        }
        self.arrays = a
        self._found: dict[Pass, dict[str, ExactArray]] = {}
        self._pairs: dict[tuple[Pass, str], tuple[Doubles, Doubles]] = {}

    def of(self, which: Pass) -> dict[str, ExactArray]:
        """Return the exact outputs of a pass; those without a value (rule R2) are those of another ε."""
        if which not in self._found:
            operation, variant = which
            a = self.arrays
            missing = self.missing[is_frozen(operation)]
            eps = np.array([Fraction(1) if bad else Fraction(self.call.eps) for bad in missing], object)
            if operation == RUNNING:
                old = a["running_mean"], a["running_var"]
                new = exact.moments(a["x"])
                value: Any = exact.running_update(new, self.call.shape[1], self.call.momentum, *variant, *old)
                self._found[which] = {"out_mean": value.mean, "out_var": value.var}
                return self._found[which]
            names = [name for name in INPUTS[operation] if name not in ("mean", "var")]
            given: dict[str, Any] = {name: a[name] for name in names}
            if is_frozen(operation):
                given |= {"mean": a["mean"], "var": a["var"]}
            if operation.endswith("double_backward"):
                given = {f"dd{k.removesuffix('_dot')}" if k.endswith("_dot") else k: v for k, v in given.items()}
            value = getattr(exact, operation)(**given, eps=eps)
            if isinstance(value, ExactArray):
                self._found[which] = {"y_dot": value}
            else:
                self._found[which] = {name: getattr(value, name) for name in OUTPUTS[operation]}
        return self._found[which]

    def pair(self, which: Pass, output: str) -> tuple[Doubles, Doubles]:
        """Return an output as hi + lo."""
        if (which, output) not in self._pairs:
            self._pairs[which, output] = self.of(which)[output].pair()
        return self._pairs[which, output]


def _used(value: tuple[Fraction, Fraction, int], middle: Fraction, radius: Fraction) -> float:
    """Return |a + b √N - middle| / radius; a radius below 0 bounds nothing."""
    if radius < 0:
        return inf
    a, b, radicand = value[0] - middle, value[1], value[2]
    if not a and not b:
        return 0.0
    if not radius:
        return inf
    if b:
        scale = (abs(b) / radius).numerator.bit_length() - (abs(b) / radius).denominator.bit_length()
        digits = max(scale + 40, 0)
        a += b * Fraction(isqrt(radicand << 2 * digits), 1 << digits)
    ratio = abs(a) / radius
    return inf if ratio > 1 << 60 else float(ratio)


def _integers(values: Doubles, exponent: int) -> tuple[list[int], int]:
    """Write 2^exponent times the numbers as integers times 2^(the second result)."""
    fractions, exponents = np.frexp(values)
    mantissas, places = np.ldexp(fractions, 53).astype(np.int64).tolist(), exponents.tolist()
    low = min((e for k, e in zip(mantissas, places, strict=True) if k), default=0)
    return [k << (e - low) if k else 0 for k, e in zip(mantissas, places, strict=True)], low - 53 + exponent


def _from_pivot(values: Doubles, setting: Doubles) -> tuple[list[int], int]:
    """Return 2^exponent x - pivot, in the same way."""
    ints, low = _integers(values, int(setting[1]))
    (pivot,), at = _integers(setting[:1], 0)
    least = min(low, at) if pivot else low
    pivot <<= at - least if pivot else 0
    return [(k << (low - least)) - pivot for k in ints], least


def _power(exponent: int) -> Fraction:
    return Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)


# ---- what is found --------------------------------------------------------------------------------------------------

Key = tuple[str, str, str]
"""build, rung, quantity: ``sum g t``, ``backward dgamma``, ``backward dx``, …"""


@dataclass
class Findings:
    """Fractions, counts and violations.

    Attributes
    ----------
    largest : dict
        The largest fraction by `Key`.
    bounds, unclaimed : Counter
        By `Key`: how many bounds were compared, and how many were infinite.
    decided : Counter
        By (build, format): outputs of the attack on the rounding tests.
    violated : Counter
        By `Key`, how often a bound was violated; by build, "outputs" and output, how many outputs are wrong.
    violations : list of str
        A line for each of the first ones.
    limit : float
        The fraction above which something is a violation; below 1 it shows that the search can fail.
    """

    largest: dict[Key, float] = field(default_factory=dict)
    bounds: Counter[Key] = field(default_factory=Counter)
    unclaimed: Counter[Key] = field(default_factory=Counter)
    decided: Counter[tuple[str, str]] = field(default_factory=Counter)
    violated: Counter[Key] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    limit: float = 1.0

    def __iadd__(self, other: Findings) -> Findings:
        for key, value in other.largest.items():
            self.largest[key] = max(value, self.largest.get(key, 0.0))
        self.bounds.update(other.bounds)
        self.unclaimed.update(other.unclaimed)
        self.decided.update(other.decided)
        self.violations += other.violations[: max(_LINES - len(self.violations), 0)]
        self.violated.update(other.violated)
        return self

    def violate(self, key: Key, count: int, text: str) -> None:
        """Count violations of one kind, and write down the first ones."""
        if self.violated[key] < _OF_A_KIND:
            self.violations.append(text)
        self.violated[key] += count

    def add(self, key: Key, fractions: Sequence[float], unclaimed: int, text: str) -> None:
        """Add what some bounds of a quantity gave."""
        self.bounds[key] += len(fractions)
        self.unclaimed[key] += unclaimed
        worst = max(fractions, default=0.0)
        self.largest[key] = max(worst, self.largest.get(key, 0.0))
        if worst > self.limit:
            count = sum(fraction > self.limit for fraction in fractions)
            self.violate(key, count, f"{text} {' '.join(key)}: {worst:.6g} of the bound")


def is_narrow(call: Call, which: Pass, setup: Setup) -> bool:
    """Tell whether nothing of a pass is binary64, so that the core begins with plain arithmetic."""
    names = set(INPUTS[which[0]])
    if is_frozen(which[0]):
        names |= {"mean", "var"}
    forms = {call.arrays[name].dtype for name in names}
    forms |= {(setup[0] if name in TENSORS else setup[1]).dtype for name in OUTPUTS[which[0]]}
    return BINARY64.dtype not in forms


def _check_sums(
    truth: Truth, which: Pass, narrow: bool, one: Enclosures, key: Callable[[str], Key], found: Findings, text: str
) -> None:
    m = truth.call.shape[1]
    values = [truth.arrays[name] if name in INPUTS[which[0]] else None for name in ("x", "dy", "x_dot")]
    for g in range(truth.call.shape[0]):
        if np.isnan(one.setting[g]).any():
            continue
        parts = [None if v is None else _from_pivot(v[g], one.setting[g, k]) for k, v in enumerate(values)]
        squares = [one.sums[g, k, 0] / m for k in (1, 4, 7)]
        fits = [narrow or 2.0**-240 <= q <= 2.0**240 or one.setting[g, k, 2] != 0 for k, q in enumerate(squares)]
        for k, (name, factors) in enumerate(zip(SUMS, _FACTORS, strict=True)):
            hi, lo, err = one.sums[g, k].tolist()
            chosen = [parts[f] for f in factors]
            if (np.isnan(err) and np.isnan(hi)) or any(part is None for part in chosen):
                continue
            if not all(fits[f] for f in factors) or not np.isfinite((hi, lo, err)).all():
                found.add(key(f"sum {name}"), (), 1, text)
                continue
            (a, low), *rest = (part for part in chosen if part is not None)
            total = sum(a)
            if rest:
                total, low = sum(p * q for p, q in zip(a, rest[0][0], strict=True)), low + rest[0][1]
            used = _used((total * _power(low), Fraction(0), 0), Fraction(hi) + Fraction(lo), Fraction(err))
            found.add(key(f"sum {name}"), (used,), 0, f"{text} [{g}]")


def _check_elements(
    parts: Callable[[int, int], tuple[Fraction, Fraction, int]],
    pair: tuple[Doubles, Doubles],
    ends: Doubles,
    present: npt.NDArray[np.bool_],
) -> tuple[list[float], int]:
    """Return the fractions: estimated, and exact for the largest and for all that are near 1."""
    claimed = np.isfinite(ends).all(axis=2) & present[:, None]
    unclaimed = int(present.sum()) * ends.shape[1] - int(claimed.sum())
    if not claimed.any():
        return [], unclaimed
    hi, lo = (part[claimed] for part in pair)
    low_hi, low_lo, high_hi, high_lo = ends[claimed].T
    with np.errstate(all="ignore"):
        above, below = (hi - low_hi) + (lo - low_lo), (high_hi - hi) + (high_lo - lo)
        fractions = np.abs(above - below) / (above + below)
    fractions = np.where((above == 0) & (below == 0), 0.0, np.nan_to_num(fractions, nan=np.inf, posinf=np.inf))
    places = np.argwhere(claimed)
    again = set(np.flatnonzero(fractions > 0.8).tolist()) | {int(np.argmax(fractions))}
    for i in again:
        low = Fraction(low_hi[i]) + Fraction(low_lo[i])
        high = Fraction(high_hi[i]) + Fraction(high_lo[i])
        fractions[i] = _used(parts(*map(int, places[i])), (low + high) / 2, (high - low) / 2)
    keep = [float(fractions[i]) for i in again]
    return keep + [0.0] * (fractions.size - len(keep)), unclaimed


def measure(core: Core, truth: Truth, which: Pass, setup: Setup, found: Findings, text: str = "") -> None:
    """Compare all enclosures of a pass, in every rung, with the truth."""
    call = truth.call
    operation, variant = which
    frozen = is_frozen(operation)
    state = np.zeros((call.shape[0], _STATE_SIZE))
    if operation not in ("forward", "inference"):
        state = core.state_of(call, frozen, setup)
    _, rungs = core.run(call, which, setup, state, forced=True)
    values = truth.of(which)
    missing = truth.missing[frozen]
    narrow = is_narrow(call, which, setup)
    words = (
        f"{text} {' '.join((operation, *map(str, variant)))} {setup[0].short} {setup[1].short} {setup[2]} {setup[3]}"
    )
    for rung, one in zip(RUNGS, rungs, strict=True):

        def key(quantity: str, rung: str = rung) -> Key:
            return core.name, rung, quantity

        _check_sums(truth, which, narrow, one, key, found, words)
        for output in OUTPUTS[operation]:
            value = values[output]
            skip = missing if has_value(output) is False else np.zeros_like(missing)
            if operation == RUNNING:
                skip = np.zeros_like(missing)
            if output in TENSORS:
                visited = ~np.isnan(one.setting).any(axis=(1, 2)) & ~skip
                for ends, kind in ((one.elements, ""), (one.biased, " from a bias")):
                    used, unclaimed = _check_elements(
                        value.fraction_parts, truth.pair(which, output), ends[output], visited
                    )
                    found.add(key(f"{operation} {output}{kind}"), used, unclaimed, words)
                continue
            column = one.results[:, _RESULTS.index(_SLOT.get(output, output))]
            for g in np.flatnonzero(~skip & ~np.isnan(one.setting).any(axis=(1, 2))).tolist():
                hi, lo, err = column[g].tolist()
                if output == "dbeta" and operation.endswith("hvp"):
                    continue  # 0 by definition
                if not np.isfinite((hi, lo, err)).all():
                    found.add(key(f"{operation} {output}"), (), 1, words)
                    continue
                fraction = _used(value.fraction_parts(g), Fraction(hi) + Fraction(lo), Fraction(err))
                found.add(key(f"{operation} {output}"), (fraction,), 0, f"{words} [{g}]")


def decide(core: Core, truth: Truth, which: Pass, setup: Setup, found: Findings, text: str = "") -> None:
    """Compare the outputs of a pass, decided as the rungs will, with the exact values' roundings."""
    call = truth.call
    frozen = is_frozen(which[0])
    state = np.zeros((call.shape[0], _STATE_SIZE))
    if which[0] not in ("forward", "inference"):
        state = core.state_of(call, frozen, setup)
    outputs, _ = core.run(call, which, setup, state, forced=False)
    for output, got in outputs.items():
        wanted = truth.of(which)[output].round(got.dtype)
        skip = truth.missing[frozen] if not has_value(output) and which[0] != RUNNING else np.zeros(len(got), bool)
        bits = np.dtype(f"u{got.dtype.itemsize}")
        wrong = np.ascontiguousarray(got).view(bits) != wanted.view(bits)
        wrong[skip] = False
        form = next(form for form in FORMATS if form.dtype == got.dtype)
        found.decided[core.name, form.short] += got.size
        if wrong.any():
            place = tuple(np.argwhere(wrong)[0].tolist())
            words = (
                f"{text} {core.name} {' '.join((which[0], *map(str, which[1])))} {output}{list(place)} in {form.short}"
            )
            line = f"{words}: {got[place]!r}, expected {wanted[place]!r}"
            found.violate((core.name, "outputs", f"{which[0]} {output}"), int(wrong.sum()), line)


# ---- the attacks ----------------------------------------------------------------------------------------------------


def _passes(m: int) -> Iterator[Pass]:
    for operation in INPUTS:
        if operation != RUNNING:
            yield operation, ()
    for variant in VARIANTS:
        if m > 1 or not variant[1]:
            yield RUNNING, variant


def _both_ways(cores: Sequence[Core], call: Call, rng: np.random.Generator, found: Findings, text: str) -> None:
    """Measure and decide all passes of a call, with narrow outputs and with binary64's."""
    truth = Truth(call)
    narrow = FORMATS[rng.integers(3)]
    for core in cores:
        for of_tensors, of_vectors in ((narrow, narrow), (BINARY64, BINARY64)):
            setup = (of_tensors, of_vectors, int(rng.choice((1, 1, 2, 3))), bool(rng.integers(2)))
            for which in _passes(call.shape[1]):
                measure(core, truth, which, setup, found, text)
                decide(core, truth, which, setup, found, text)


def _random(cores: Sequence[Core], name: str, found: Findings) -> None:
    rng = np.random.default_rng(list(name.encode()))
    for call in calls.build(name):
        if call.finite:
            _both_ways(cores, call, rng, found, name)


def _anywhere(rng: np.random.Generator, form: Format, shape: tuple[int, ...]) -> Doubles:
    """Numbers of one exponent, or of several, anywhere in the format; some zero."""
    least = form.emin - form.precision + 1
    if rng.uniform() < 0.5:
        exponents: Any = rng.integers(least, form.emax + 1)
    else:
        exponents = rng.integers(least, form.emax + 1, shape)
    kind = rng.uniform()
    if kind < 0.3:
        exponents = rng.integers(-6, 7)
    elif kind < 0.5:
        exponents = int(rng.choice((-119, 119, -149, 120, -300, 299))) + rng.integers(-1, 2)
    mantissas = rng.choice((1.0, 1.5, 5 / 3, 4 / 3, rng.uniform(1, 2)), shape) * rng.choice((-1.0, 1.0), shape)
    values = np.ldexp(mantissas, exponents)
    return np.asarray(values * (rng.uniform(size=shape) > (0.3 if rng.uniform() < 0.2 else 0.0)))


def edges(rng: np.random.Generator) -> Call:
    """Draw a call of constants, single elements and few values with any exponents."""
    groups, m = int(rng.choice((2, 9))), int(rng.choice((1, 1, 2, 3, 4, 8)))
    form = FORMATS[rng.choice((2, 3, 3))]
    others = FORMATS[rng.choice((2, 3))]
    arrays: dict[str, Array] = {}
    for name in (*VECTORS, *SCALARS, *calls.RUNNING):
        own = form if name in VECTORS else others if rng.uniform() < 0.8 else BINARY64
        if name in ("mean", "var") and rng.uniform() < 0.5:
            own = BINARY64
        shape = (groups, m) if name in VECTORS else (groups,)
        values = _anywhere(rng, own, shape)
        if name in VECTORS and rng.uniform() < 0.4:
            values = np.repeat(values[:, :1], m, axis=1)
        if name in calls.RUNNING and rng.uniform() < 0.5:
            values = np.zeros(shape)
        arrays[name] = cases.finite(np.abs(values) if name in ("var", "running_var") else values, own)
    eps = float(rng.choice((0.0, 1e-5, 4.0, 1e6, 1e300, 5e-324, abs(float(_anywhere(rng, BINARY64, ()))))))
    momentum = MOMENTA[rng.integers(len(MOMENTA))]
    return Call(arrays, eps, momentum, "rows", (), ("edges",) * groups)


def swallowed(rng: np.random.Generator, lanes: int) -> Call:
    """Draw a call whose sums lose something in each addition: one large number a lane, then small ones.

    The squares of the small numbers, or they themselves, are just under half an ulp of the large one; `lanes` is what
    the core sums side by side.
    """
    m, form = 32 * lanes, FORMATS[rng.choice((2, 3))]
    arrays = {}
    for name in VECTORS:
        power = int(rng.choice((-53, -54, -107, -52)))
        small = 2.0 ** (power / 2 if rng.uniform() < 0.7 else power) * float(rng.choice((1 - 2.0**-20, 0.75, 1.0)))
        values = np.full((32, lanes), small)
        values[1 if rng.uniform() < 0.5 else 0] = 1.0
        if rng.uniform() < 0.5:
            values *= np.where(np.arange(lanes) % 2, -1.0, 1.0)
        flat = values.reshape(-1)
        flat[:: m // 4] = small * np.array((1, -1, 1, -1))  # so that the pivot is 0
        arrays[name] = cases.finite(flat, form)[None]
    for name in (*SCALARS, *calls.RUNNING):
        arrays[name] = cases.finite(np.abs(rng.standard_normal(1)), form)
    return Call(arrays, float(rng.choice((0.0, 1e-5))), MOMENTA[2], "rows", (), ("swallowed",))


def _mutate(rng: np.random.Generator, call: Call) -> Call:
    """Change one or a few numbers of a call."""
    arrays = {name: array.copy() for name, array in call.arrays.items()}
    for _ in range(int(rng.choice((1, 1, 1, 2, 4)))):
        name = str(rng.choice(list(arrays), p=_WEIGHTS))
        form = next(form for form in FORMATS if form.dtype == arrays[name].dtype)
        flat = arrays[name].reshape(-1)
        at = int(rng.integers(flat.size))
        value = float(flat[at])
        step = 2.0 ** max(int(np.frexp(value)[1]) - form.precision, -1074)
        choices = (
            value + step * int(rng.integers(-3, 4)),
            value * 2.0 ** int(rng.integers(-3, 4)),
            -value,
            float(rng.standard_normal()),
            float(flat[rng.integers(flat.size)]),
            value * (1 + 2.0 ** -int(rng.integers(1, 53))),
        )
        new = choices[rng.integers(len(choices))]
        flat[at] = cases.finite(np.array(abs(new) if "var" in name else new), form)
    eps = call.eps if rng.uniform() < 0.95 else float(rng.choice(cases.EPSILONS))
    return Call(arrays, eps, call.momentum, call.layout, call.formats, call.labels)


_NAMES = (*VECTORS, *SCALARS, *calls.RUNNING)
_WEIGHTS = np.array([8.0 if name in VECTORS else 1.0 for name in _NAMES])
_WEIGHTS /= _WEIGHTS.sum()


def climb(cores: Sequence[Core], rng: np.random.Generator, steps: int, found: Findings, text: str = "") -> None:
    """Change a channel step by step, keeping what makes one fraction grow; all rungs and quantities are watched."""
    form = FORMATS[rng.choice((2, 2, 3))]
    m = int(rng.choice((2, 3, 4, 8, 24)))
    draw = cases.FAMILIES[str(rng.choice(("normal", "offset", "integers", "powers", "wide", "ulps")))][0]
    _, arrays = cases.fill(rng, m, draw, form)
    arrays = {name: np.asarray(array)[None] for name, array in arrays.items()}
    for name in calls.RUNNING:
        arrays[name] = cases.finite(np.abs(rng.standard_normal(1)), form)
    arrays = {name: arrays[name] for name in _NAMES}
    call = Call(arrays, cases.draw_eps(rng), MOMENTA[rng.integers(len(MOMENTA))], "rows", (), ("climb",))
    passes = list(_passes(m))
    which = passes[rng.integers(len(passes))]
    core = cores[rng.integers(len(cores))]
    setup = (form, form, 1, False)
    rung = (
        ("plain" if rng.uniform() < 0.5 else "twofold")
        if form.precision < 53
        else str(rng.choice(("twofold", "scaled")))
    )
    wanted: str | None = None
    best = -1.0
    for _ in range(steps):
        other = _mutate(rng, call)
        truth = Truth(other)
        if truth.missing[is_frozen(which[0])].any():
            call = other if best < 0 else call
            continue
        here = Findings(limit=found.limit)
        measure(core, truth, which, setup, here, text)
        found += here
        scores = {key[2]: value for key, value in here.largest.items() if key[1] == rung}
        if wanted is None and scores:
            wanted = str(rng.choice([key for key in scores if not key.startswith("sum")] or list(scores)))
        score = scores.get(wanted or "", 0.0)
        if score >= best:
            call, best = other, score


def midpoints(rng: np.random.Generator, form: Format, of_tensors: Format, groups: int = 12) -> Call:
    """Draw a call where, in every channel, some y lies 2^-k ulp beside a midpoint of a format."""
    m = int(rng.choice((4, 9, 64)))
    x = cases.finite(rng.standard_normal(m) + float(rng.choice((0.0, 3.0, 1000.0))), form)
    eps = float(rng.choice((0.0, 1e-5)))
    normal, _ = exact.forward(x[None].astype(np.float64), None, None, eps).y.pair()
    mean, var = (np.asarray(f(x.astype(np.float64))) for f in (np.mean, np.var))
    betas, gammas = [], []
    for _ in range(groups):
        beta = float(round_to(np.array(rng.uniform(1, 2)), of_tensors.dtype))
        beta = float(cases.finite(np.array(beta), form))
        xhat = float(normal[0, rng.integers(m)]) or 1.0
        k = int(rng.integers(1, 2 * form.precision))
        distance = (float(rng.integers(0, 3)) + 0.5 + float(rng.choice((-1.0, 1.0))) * 2.0**-k) * 2.0 ** (
            1 - of_tensors.precision
        )
        scale = 2.0 ** int(rng.integers(-4, 5))
        betas.append(beta * scale)
        gammas.append(distance / xhat * scale)
    arrays = {"x": np.repeat(x[None], groups, axis=0)}
    for name in VECTORS[1:]:
        arrays[name] = cases.finite(rng.standard_normal((groups, m)), form)
    for name in (*SCALARS, *calls.RUNNING):
        arrays[name] = cases.finite(np.abs(rng.standard_normal(groups)), form)
    arrays |= {
        "beta": cases.finite(np.array(betas), form),
        "gamma": cases.finite(np.array(gammas), form),
        "mean": cases.finite(np.full(groups, float(mean)), form),
        "var": cases.finite(np.full(groups, float(var)), form),
    }
    # y_dot with x_dot = 0 is gamma_dot xhat + beta_dot
    arrays |= {
        "beta_dot": arrays["beta"],
        "gamma_dot": arrays["gamma"],
        "x_dot": np.zeros((groups, m), form.dtype),
    }
    return Call(arrays, eps, MOMENTA[2], "rows", (), ("midpoints",) * groups)


ATTACKS = ("random", "edges", "swallowed", "climb", "midpoints")


def attack(task: tuple[str, str | int, int, tuple[str, ...], float]) -> Findings:
    """Run one attack: (its name, a case's name or a number, steps, the libraries, the limit)."""
    kind, case, steps, libraries, limit = task
    cores = [_core(library) for library in libraries]
    found = Findings(limit=limit)
    if kind == "random":
        _random(cores, str(case), found)
        return found
    rng = np.random.default_rng((ATTACKS.index(kind), int(case)))
    text = f"{kind}:{case}"
    if kind == "climb":
        climb(cores, rng, steps, found, text)
    for _ in range(steps if kind != "climb" else 0):
        if kind == "edges":
            _both_ways(cores, edges(rng), rng, found, text)
        elif kind == "swallowed":
            call = swallowed(rng, int(rng.choice((8, 16, 32))))
            truth = Truth(call)
            form = next(form for form in FORMATS if form.dtype == call.arrays["x"].dtype)
            for core in cores:
                for operation in ("forward", "backward", "double_backward"):
                    measure(core, truth, (operation, ()), (form, form, 1, False), found, text)
        else:
            form = (BINARY32, BINARY64)[rng.integers(2)]
            of_tensors = FORMATS[rng.integers(4)] if form is BINARY64 else FORMATS[rng.integers(3)]
            truth = Truth(midpoints(rng, form, of_tensors))
            for core in cores:
                setup = (of_tensors, of_tensors, 1, bool(rng.integers(2)))
                for operation in ("forward", "jvp", "inference", "inference_jvp"):
                    decide(core, truth, (operation, ()), setup, found, text)
                    measure(core, truth, (operation, ()), setup, found, text)
    return found


def plan(
    outputs: float, number: int, steps: int, seed: int, libraries: tuple[str, ...], limit: float = 1.0
) -> list[tuple[str, str | int, int, tuple[str, ...], float]]:
    """Return the tasks of `attack`: random cases of so many outputs in all, and so many of each other attack."""
    families = [family for family in calls.FAMILIES if family != "special"]
    tasks: list[tuple[str, str | int, int, tuple[str, ...], float]] = [
        ("random", name, 0, libraries, limit) for name in cases_of(outputs, seed, families, 200_000)
    ]
    for kind in ATTACKS[1:]:
        times, longer = (_CLIMBS, _CLIMBED) if kind == "climb" else (1, 1)
        tasks += [(kind, seed * 100_000 + k, steps * longer, libraries, limit) for k in range(number * times)]
    return tasks


def table(found: Findings) -> list[tuple[str, ...]]:
    """Return a row for each quantity: the largest fraction in each rung, over all builds, and how many bounds."""
    quantities = sorted({key[2] for key in found.bounds}, key=lambda text: (not text.startswith("sum"), text))
    rows: list[tuple[Any, ...]] = []
    for quantity in quantities:
        row: list[Any] = [quantity]
        for rung in RUNGS:
            keys = [key for key in found.bounds if key[1:] == (rung, quantity) and found.bounds[key]]
            row.append(max(found.largest[key] for key in keys) if keys else "")
        rows.append((*row, sum(n for key, n in found.bounds.items() if key[2] == quantity)))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the attacks, print a table, write the result; 1 if a bound is violated."""
    parser = report.parser(__doc__)
    parser.add_argument("--outputs", type=float, default=1e5, help="of the random cases, about")
    parser.add_argument("--number", type=int, default=20, help="runs of each other attack; ten times as many climbs")
    parser.add_argument("--steps", type=int, default=30, help="calls of a run; a climb has forty times as many steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--builds", nargs="+", default=available(), choices=BUILDS, help="of the core")
    parser.add_argument(
        "--limit", type=float, default=1.0, help="what counts as a violation; below 1 there must be some"
    )
    parser.add_argument("--processes", type=int, default=None)
    arguments = parser.parse_args(argv)
    found = Findings(limit=arguments.limit)
    with tempfile.TemporaryDirectory() as folder:
        libraries = tuple(str(compile_core(build, Path(folder))) for build in arguments.builds)
        tasks = plan(arguments.outputs, arguments.number, arguments.steps, arguments.seed, libraries, arguments.limit)
        for part in report.spread(attack, tasks, processes=arguments.processes, label="attacks"):
            found += part
    rows = table(found)
    report.show("Largest fraction of each bound that an error used", ("quantity", *RUNGS, "bounds"), rows)
    for line in found.violations[:20]:
        print(line)
    report.write(
        "rung-bounds",
        arguments,
        {
            "versions": report.versions(),
            "seed": arguments.seed,
            "random outputs, runs, steps": [arguments.outputs, arguments.number, arguments.steps],
            "builds": list(arguments.builds),
            "bounds": sum(found.bounds.values()),
            "infinite bounds": sum(found.unclaimed.values()),
            "outputs that were decided": {" ".join(key): n for key, n in sorted(found.decided.items())},
            "largest fractions": {
                build: {
                    rung: {
                        key[2]: {"largest": found.largest[key], "bounds": n, "infinite": found.unclaimed[key]}
                        for key, n in sorted(found.bounds.items())
                        if key[:2] == (build, rung) and n
                    }
                    for rung in RUNGS
                }
                for build in arguments.builds
            },
            "violated": {" ".join(key): n for key, n in sorted(found.violated.items())},
            "violations": found.violations,
        },
    )
    return 1 if found.violated else 0


if __name__ == "__main__":
    sys.exit(main())
