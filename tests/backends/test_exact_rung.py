"""The C core's last rung against the oracle, bit for bit; compiled here, so that no wrapper stands between."""

import ctypes
import itertools
import os
import platform
import shlex
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from refbn import exact
from refbn._formats import BINARY32, BINARY64, FORMATS
from refbn.backends import exact as oracle
from refbn.exact import round_number

SOURCES = Path(__file__).parents[2] / "_ext"
CC = shlex.split(os.environ.get("CC", "cc"))

ELEMENTS = {"y": 0, "y_dot": 0, "ddy": 0, "dx": 1}
VECTORS = {"mean": 0, "var": 1, "invstd": 2, "dgamma": 3, "dbeta": 4, "dmean": 5, "dvar": 6}
OUTPUTS = {
    "forward": "y mean var invstd",
    "backward": "dx dgamma dbeta",
    "jvp": "y_dot",
    "double_backward": "ddy dx dgamma",
    "hvp": "dx dgamma dbeta",
    "inference": "y invstd",
    "inference_backward": "dx dgamma dbeta dmean dvar",
    "inference_jvp": "y_dot",
    "inference_double_backward": "ddy dx dgamma dmean dvar",
    "inference_hvp": "dx dgamma dbeta dmean dvar",
}
PASSES = list(OUTPUTS)  # in the order of exact_rung.h
PARAMETERS = ("gamma", "beta", "mean", "var", "gamma_dot", "beta_dot", "mean_dot", "var_dot")
GROUP_BYTES = 128 * 1024
LIMBS = 408

HOOKS = """
#include "exact.c"

void refbn_test_inverse_root(refbn_exact_leading *d)
{
    *d = refbn_exact_inverse_root(*d);
}
"""
SET_MODE = """
unsigned refbn_test_exchange_mode(unsigned mode)
{
    const unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(mode);
    return before;
}
"""


class Parameters(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double) for name in PARAMETERS]


class Leading(ctypes.Structure):
    _fields_ = [("hi", ctypes.c_uint64), ("lo", ctypes.c_uint64), ("sign", ctypes.c_int), ("top", ctypes.c_int)]

    def value(self):
        return Fraction(self.hi << 64 | self.lo) * Fraction(2) ** (self.top - 128)


class Number(ctypes.Structure):
    _fields_ = [
        ("sign", ctypes.c_int),
        ("length", ctypes.c_int),
        ("exponent", ctypes.c_int),
        ("limb", ctypes.c_uint64 * LIMBS),
    ]

    @classmethod
    def of(cls, value):
        """A dyadic Fraction as the C core keeps it."""
        number = cls()
        if value:
            numerator, shift = abs(value.numerator), 1 - value.denominator.bit_length()
            number.exponent, rest = divmod(shift, 64)
            numerator <<= rest
            while not numerator % 2**64:
                numerator >>= 64
                number.exponent += 1
            number.sign = 1 if value > 0 else -1
            while numerator:
                number.limb[number.length] = numerator % 2**64
                number.length += 1
                numerator >>= 64
        return number


class Rung:
    """The compiled rung."""

    def __init__(self, folder, *options):
        source = folder / "rung.c"
        source.write_text(HOOKS + (SET_MODE if platform.machine() == "x86_64" else ""))
        library = folder / "rung.so"
        flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fPIC", "-shared"]
        command = [*CC, *flags, *options, f"-I{SOURCES}", str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        self.c = ctypes.CDLL(str(library))
        double, integer, pointer, count = ctypes.c_double, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64
        for name, result, arguments in (
            ("begin", None, [pointer, integer, count, double]),
            ("gather", None, [pointer, pointer, pointer, pointer, ctypes.c_ssize_t]),
            ("merge", None, [pointer, pointer]),
            ("solve", None, [pointer, pointer]),
            ("vector", double, [pointer, integer, integer]),
            ("element", double, [pointer, integer, double, double, double, integer]),
            (
                "elements",
                None,
                [pointer, integer, pointer, pointer, pointer, pointer, ctypes.c_ssize_t, integer, pointer],
            ),
            ("suggests_zero", integer, [pointer, integer]),
            ("squares_begin", None, [pointer]),
            ("squares_gather", None, [pointer, pointer, pointer, ctypes.c_ssize_t]),
            ("squares_end", None, [pointer]),
            ("running", double, [pointer, integer, integer, double, double, integer, double, integer]),
            ("round", double, [pointer, pointer, pointer, pointer, integer]),
        ):
            function = getattr(self.c, f"refbn_exact_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def group(self, pass_name, tensors, parameters, eps, count=None):
        """A solved group; tensors are x, g, u or None."""
        group = ctypes.create_string_buffer(GROUP_BYTES)
        data = [None if t is None else np.ascontiguousarray(t, np.float64) for t in tensors]
        n = next(len(t) for t in data if t is not None)
        self.begin(group, PASSES.index(pass_name), n if count is None else count, eps)
        self.gather(group, *(None if t is None else t.ctypes.data for t in data), n)
        self.solve(group, ctypes.byref(Parameters(**parameters)))
        return group

    def codes(self, group, output, tensors, kind):
        """Every second element's output, then the others', as bits."""
        n = len(tensors[0])
        found = np.full(n, 1, np.uint64)
        for index in (np.arange(0, n, 2, np.uint16), np.arange(1, n, 2, np.uint16)):
            part = np.empty(len(index), np.uint64)
            data = [t.ctypes.data for t in (*tensors, index)]
            self.elements(group, output, *data, len(index), kind, part.ctypes.data)
            found[index] = part
        return found

    def run(self, pass_name, p, fmt):
        """Every output of a pass, as binary64."""
        found = {}
        groups = [
            self.group(pass_name, (p["x"][g], p["dy"][g], p["u"][g]), {k: p[k][g] for k in PARAMETERS}, p["eps"])
            for g in range(len(p["x"]))
        ]
        kind = FORMATS.index(fmt)
        for name in OUTPUTS[pass_name].split():
            if name in ELEMENTS:
                found[name] = np.array(
                    [
                        [self.element(group, ELEMENTS[name], *element, kind) for element in zip(*rows, strict=True)]
                        for group, *rows in zip(groups, p["x"].tolist(), p["dy"].tolist(), p["u"].tolist(), strict=True)
                    ]
                ).reshape(p["x"].shape)
            else:
                found[name] = np.array([self.vector(group, VECTORS[name], kind) for group in groups])
        return found


@pytest.fixture(scope="module")
def rungs(tmp_path_factory):
    """Builds with and without 128-bit products, and one that decides every answer by exact comparisons."""
    if not (SOURCES / "exact.c").exists() or shutil.which(CC[0]) is None:
        pytest.skip("needs a checkout and a C compiler")
    options = ([], ["-DREFBN_EXACT_HALVES"], ["-DREFBN_EXACT_BLIND"])
    return [Rung(tmp_path_factory.mktemp("rung"), *each) for each in options]


@pytest.fixture(params=[0, 1, 2], ids=["wide", "halves", "blind"])
def rung(request, rungs):
    return rungs[request.param]


def expected(pass_name, p, fmt):
    """The oracle's answers, by the binding that knows rules R1-R6."""
    groups, m = p["x"].shape
    out = {
        name: np.empty((groups, m) if name in ELEMENTS else groups, fmt.dtype) for name in OUTPUTS[pass_name].split()
    }
    frozen = pass_name.startswith("inference")
    parameters = {k: p[k] for k in PARAMETERS}
    if frozen:
        statistics = {k: parameters[k] for k in ("mean", "var", "gamma", "beta")}
        first = {name: np.empty_like(p["x"]) if name == "y" else np.empty(groups) for name in ("y", "invstd")}
        call, state_of = oracle.inference, {"x": p["x"], **statistics, "eps": p["eps"]}
    else:
        first = {
            name: np.empty_like(p["x"]) if name == "y" else np.empty(groups) for name in ("y", "mean", "var", "invstd")
        }
        call, state_of = (
            oracle.forward,
            {"x": p["x"], "gamma": parameters["gamma"], "beta": parameters["beta"], "eps": p["eps"]},
        )
    if pass_name in ("forward", "inference"):
        call(**state_of, **out)
        return out
    state = call(**state_of, **first)
    moved = ("gamma_dot", "beta_dot", *(("mean_dot", "var_dot") if frozen else ()))
    directions = {"x_dot": p["u"], **{k: parameters[k] for k in moved}}
    base = {"state": state, "x": p["x"], "gamma": parameters["gamma"]}
    order = pass_name.removeprefix("inference_")
    if order == "double_backward":
        directions = {f"dd{k.removesuffix('_dot')}": v for k, v in directions.items()}
    if order == "hvp":
        del directions["beta_dot"]
    if order == "backward":
        directions = {}
    if order != "jvp":
        base["dy"] = p["dy"]
    getattr(oracle, pass_name)(**base, **directions, **out)
    return out


def assert_same(found, truth, label):
    """NaN where the truth has one, and equal with equal signs elsewhere."""
    truth = truth.astype(np.float64)
    same = (found == truth) & (np.signbit(found) == np.signbit(truth)) | (np.isnan(found) & np.isnan(truth))
    assert same.all(), (label, found, truth)


def assert_agree(rungs, p, formats=FORMATS, passes=PASSES):
    for fmt in formats:
        for pass_name in passes:
            truth = expected(pass_name, p, fmt)
            for rung in rungs:
                for name, found in rung.run(pass_name, p, fmt).items():
                    assert_same(found, truth[name], (pass_name, name, fmt.short, p))


# ---- problems --------------------------------------------------------------------------------------------------------


def problem(draw, groups, m, eps, draw_vector=None):
    draw_vector = draw_vector or draw
    p = {name: np.asarray(draw((groups, m)), np.float64) for name in ("x", "dy", "u")}
    p |= {name: np.asarray(draw_vector((groups,)), np.float64) for name in PARAMETERS}
    return p | {"var": np.abs(p["var"]), "eps": eps}


def normal(rng, fmt):
    return lambda shape: rng.standard_normal(shape).astype(fmt.dtype).astype(np.float64)


def integers(rng, high=4):
    return lambda shape: rng.integers(-high, high + 1, shape)


def scattered(rng, low=-1074, high=1023):
    def draw(shape):
        return np.ldexp(rng.choice([-1.0, 1.0], shape) * rng.uniform(1, 2, shape), rng.integers(low, high + 1, shape))

    return draw


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_ordinary_data(rungs, fmt, eps):
    rng = np.random.default_rng(1)
    for m in (1, 2, 25):
        assert_agree(rungs, problem(normal(rng, fmt), 2, m, eps), [fmt])


@pytest.mark.parametrize("seed", range(2))
def test_ties(rungs, seed):
    """Small integers, so that answers are exact or halfway between two numbers of a narrow format."""
    rng = np.random.default_rng(seed)
    for m, eps in itertools.product((2, 3, 6), (0.0, 1.0)):
        p = problem(integers(rng), 3, m, eps)
        p["var"] = rng.choice([0.0, 1.0, 4.0, 0.25], 3)
        assert_agree(rungs, p, FORMATS[:2] if seed else FORMATS[1:])


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
def test_near_ties(rungs, fmt):
    """x = +-1 and eps = 0, so x-hat = +-1: y is a sum of two numbers, which ties, cancels or all but does."""
    rng = np.random.default_rng(2)
    wide = 2 * fmt.precision + 3
    gamma = 1 + rng.integers(0, 8, 64) * 2.0 ** -(fmt.precision - 1)
    offset = rng.choice([0.0, 1.0, -1.0, 2.0**-wide, -(2.0**-wide)], 64)
    beta = rng.choice([0.0, 1.0, -1.0], 64) * gamma + offset * 2.0**-fmt.precision
    p = problem(integers(rng), 64, 2, 0.0)
    p |= {"x": np.tile([1.0, -1.0], (64, 1)), "gamma": gamma, "beta": beta, "mean": np.zeros(64), "var": np.ones(64)}
    assert_agree(rungs, p, [fmt], ["forward", "inference"])


@pytest.mark.parametrize("scale", [2.0**-1074, 2.0**-1030, 1e-300, 1e-160, 1e150, 1e300])
def test_extreme_scales(rungs, scale):
    rng = np.random.default_rng(3)
    for m, eps in ((2, 0.0), (3, 1e-5), (3, 0.0), (4, 5e-324)):
        p = problem(lambda shape: rng.integers(-1000, 1001, shape) * scale, 1, m, eps, normal(rng, BINARY64))
        assert_agree(rungs, p, [BINARY32] if m == 3 else [BINARY64])
    for m in (1, 3):
        p = problem(lambda shape: rng.integers(-1000, 1001, shape) * scale, 1, m, scale)
        assert_agree(rungs, p, [BINARY64])


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
def test_subnormal_results_and_overflow(rungs, fmt):
    """gamma takes the results to either end of the format's range, and beyond."""
    rng = np.random.default_rng(4)
    for exponent in (fmt.emin, fmt.emin - fmt.precision // 2, fmt.emin - fmt.precision, fmt.emax):
        p = problem(integers(rng), 2, 6, 1.0)
        for name in ("gamma", "beta", "gamma_dot", "beta_dot"):
            p[name] = np.ldexp(rng.integers(-9, 10, 2).astype(float), min(max(exponent - 2, -1074), 1019))
        assert_agree(rungs, p, [fmt])


@pytest.mark.parametrize("seed", range(2))
def test_exponents_far_apart(rungs, seed):
    rng = np.random.default_rng(seed)
    for m in (1, 2, 5):
        for eps in (0.0, float(scattered(rng)(()))):
            assert_agree(rungs, problem(scattered(rng), 1, m, abs(eps)), [BINARY64])
        p = problem(scattered(rng, -200, 200), 1, m, 1e-5, scattered(rng, -30, 30))
        assert_agree(rungs, p, [BINARY32])


def test_the_widest_numbers(rungs):
    """Both ends of binary64's range in every tensor and every parameter: the numbers that capacity is proved for."""
    tiny, huge = 2.0**-1074, float(np.finfo(np.float64).max)
    rng = np.random.default_rng(5)
    draw = lambda shape: rng.choice([tiny, huge, -huge, -tiny], shape)  # noqa: E731
    for m in (2, 3, 5):
        for eps in (tiny, huge):
            assert_agree(rungs, problem(draw, 1, m, eps), [BINARY64])


def test_zeros_and_constants(rungs):
    rng = np.random.default_rng(6)
    for m in (1, 3):
        for eps in (0.0, 0.1):
            p = problem(normal(rng, BINARY64), 3, m, eps)
            p["x"][0], p["x"][1] = 0.0, 0.1
            p["dy"][0] = -0.0
            p["u"][2] = 0.0
            p["beta"][:2] = 0.0, -0.0
            p["var"][:2] = 0.0
            assert_agree(rungs, p, [BINARY32 if m == 1 else BINARY64])


@pytest.mark.parametrize("name", ["x", "dy", "u", *PARAMETERS])
def test_what_is_no_number(rungs, name):
    rng = np.random.default_rng(7)
    for eps in (0.0, 0.1):
        p = problem(normal(rng, BINARY64), 4, 3, eps)
        if p[name].ndim == 2:
            p[name][0, 1], p[name][1, 2], p[name][2] = np.nan, np.inf, -np.inf
        else:
            p[name][:3] = np.nan, np.inf, -np.inf
        assert_agree(rungs, p, [BINARY64])


def test_variances_that_are_not_positive(rungs):
    rng = np.random.default_rng(8)
    p = problem(normal(rng, BINARY64), 5, 2, 0.25)
    p["var"] = np.array([-0.25, -1.0, np.nextafter(-0.25, 0), np.nextafter(-0.25, -1), np.nan])
    assert_agree(rungs, p, passes=[name for name in PASSES if name.startswith("inference")])


def test_frozen_statistics_of_nothing(rungs):
    """Rule R6."""
    rng = np.random.default_rng(9)
    p = problem(normal(rng, BINARY64), 4, 0, 0.0)
    p["var"] = np.array([1.0, 0.0, np.nan, -1.0])
    p["gamma"][0] = np.inf
    assert_agree(rungs, p, [BINARY64], [name for name in PASSES if name.startswith("inference")])


# ---- running statistics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
def test_running_statistics(rung, fmt):
    rng = np.random.default_rng(10)
    weights = [Fraction(1, n) for n in (1, 2, 3, 10, 12345)] + [Fraction(w) for w in (0.1, 0.0, 1.0, 0.99, 5e-324)]
    for m, draw in itertools.product((1, 2, 3, 50), (normal(rng, fmt), integers(rng), scattered(rng))):
        x, old = draw((1, m)).astype(np.float64), float(draw(()))
        group = rung.group("forward", (x[0], None, None), {}, 0.0)
        moments = exact.moments(x)
        for weight, weighs_new, unbiased in itertools.product(weights, (True, False), (False, True)[:m]):
            binary64 = float(weight) == weight
            ratio = (float(weight), 1.0) if binary64 else (float(weight.numerator), float(weight.denominator))
            truth = exact.running_update(moments, m, weight, weighs_new, unbiased, [old], [old])
            for is_var in (0, 1):
                found = rung.running(group, is_var, unbiased, *ratio, weighs_new, old, FORMATS.index(fmt))
                label = (m, weight, weighs_new, unbiased, is_var)
                assert_same(np.array([found]), truth[is_var].round(fmt.dtype), label)
    for bad in (np.nan, np.inf):
        assert np.isnan(rung.running(group, 0, 0, 0.5, 1.0, 1, bad, 3))
        other = rung.group("forward", (np.array([1.0, bad]), None, None), {}, 0.0)
        assert np.isnan(rung.running(other, 1, 1, 0.5, 1.0, 1, 0.5, 3))


# ---- the arithmetic --------------------------------------------------------------------------------------------------


def test_rounding_of_any_quotient(rung):
    rng = np.random.default_rng(11)

    def number(bits, low, high):
        n = int.from_bytes(rng.bytes(64)) >> (512 - int(rng.integers(1, bits)))
        return Fraction(n or 1) * Fraction(2) ** int(rng.integers(low, high))

    for _ in range(1500):
        a, c, r, b = number(500, -300, 100), number(200, -200, 100), number(300, -300, 300), number(54, -80, 80)
        a, b = rng.choice([-1, 1]) * a, rng.choice([-1, 0, 1]) * b
        kind = rng.integers(4)
        if kind == 0:  # a perfect square, and a multiple of the root
            r, a = r * r, a * r * c
        elif kind == 1:  # next to that
            r, a = r * r, a * r * c + rng.choice([-1, 1]) * Fraction(2) ** -900
        elif kind == 2:  # a tie of the widest format, and a little beside it
            t = Fraction(2 * int(rng.integers(2**52, 2**53)) + 1) * Fraction(2) ** int(rng.integers(-1130, 900))
            r, a = r * r, (t - b) * r * c + rng.choice([-1, 0, 1]) * Fraction(2) ** -2000
        rooted = rng.integers(2) or kind == 3
        exponent = r.denominator.bit_length() - 1
        exponent += exponent % 2
        radicand = int(r * 2**exponent)  # r = radicand / 2^exponent, exponent even
        for k, fmt in enumerate(FORMATS):
            pointers = [ctypes.byref(Number.of(value)) for value in (a, c)]
            pointers.append(ctypes.byref(Number.of(r)) if rooted else None)
            pointers.append(ctypes.byref(Number.of(b)) if b else None)
            if rooted:
                truth = round_number(b, a / (c * r) / 2 ** (exponent // 2), radicand, fmt)
            else:
                truth = round_number(a / c + b, 0, 0, fmt)
            found = rung.round(*pointers, k)
            assert_same(np.array([found]), np.array([truth]), (a, c, r, b, fmt.short))


def test_inverse_roots_are_as_good_as_stated(rung):
    """exact.h: of a number known to 2^7 units of 2^-127, to 2^10 units; these are known exactly."""
    rng = np.random.default_rng(15)
    ends = (1 << 127, (1 << 127) + 1, (1 << 128) - 1)
    for mantissa in (*ends, *(int.from_bytes(rng.bytes(16)) | 1 << 127 for _ in range(2000))):
        for top in (-13001, -2, -1, 0, 1, 2, 13000):
            leading = Leading(mantissa >> 64, mantissa % 2**64, 1, top)
            d = leading.value()
            rung.c.refbn_test_inverse_root(ctypes.byref(leading))
            y = leading.value()
            assert leading.hi >> 63 and abs(y * y * d - 1) < Fraction(2 * 16, 2**127)  # y is 2^-123 off


def test_sums_of_any_order_and_pieces(rung):
    rng = np.random.default_rng(12)
    x, dy, u = scattered(rng)((3, 5000))
    parameters = {"gamma": 1.5, "gamma_dot": 0.25}
    whole = rung.group("double_backward", (x, dy, u), parameters, 1e-5)
    pieces = [ctypes.create_string_buffer(GROUP_BYTES) for _ in range(3)]
    order = rng.permutation(5000)
    for k, piece in enumerate(pieces):
        rung.begin(piece, PASSES.index("double_backward"), 5000, 1e-5)
        for part in np.array_split(order[k::3], 4):
            data = [np.ascontiguousarray(t[part]) for t in (x, dy, u)]
            rung.gather(piece, *(t.ctypes.data for t in data), len(part))
        if k:
            rung.merge(pieces[0], piece)
    rung.solve(pieces[0], ctypes.byref(Parameters(**parameters)))
    for output in ("mean", "var", "invstd", "dgamma"):
        answers = {rung.vector(group, VECTORS[output], 3) for group in (whole, pieces[0])}
        assert len(answers) == 1
    total = sum(map(Fraction, x.tolist()))
    assert rung.vector(whole, VECTORS["mean"], 3) == round_number(total / 5000, 0, 0, BINARY64)
    for i in range(50):
        element = (x[i], dy[i], u[i])
        assert rung.element(whole, 1, *element, 3) == rung.element(pieces[0], 1, *element, 3)


ALIKE = {
    "normal": lambda rng, m: rng.standard_normal((3, m)),
    "proportional": lambda rng, m: np.outer([1.0, 2.0, -3.0], rng.standard_normal(m)),
    "almost proportional": lambda rng, m: (
        np.outer([1.0, 2.0, -3.0], rng.standard_normal(m)) + 2.0**-50 * rng.standard_normal((3, m))
    ),
    "signs": lambda rng, m: np.array([[1.0], [3.0], [-2.0]]) * rng.permutation(np.resize([1.0, -1.0], m)),
    "mixed": lambda rng, m: np.where(np.arange(m) % 9 < 3, 1.0, rng.standard_normal((3, m))),
    "short": lambda rng, m: rng.integers(-(2**20), 2**20, (3, m)) * 2.0**-20,
    "subnormal": lambda rng, m: rng.integers(-(2**52), 2**52, (3, m)) * 2.0**-1074,
    "not all numbers": lambda rng, m: rng.choice([np.nan, np.inf, 1.0, 0.1], (3, m)),
}


@pytest.mark.parametrize("family", ALIKE)
def test_elements_together_and_by_comparisons_alone(rungs, family):
    """What many elements of one kind take to is what each of them gets from a build that only compares."""
    rng = np.random.default_rng(list(ALIKE).index(family))
    m, (*quick, blind) = 48, rungs
    for name, eps, gamma in itertools.product(PASSES, (0.0, 1e-30, 1e-5), (1.0, 1.3)):
        tensors = [np.ascontiguousarray(t) for t in ALIKE[family](rng, m)]
        offset = rng.choice([0.0, 0.5 + 2.0**-12, 0.7])
        parameters = {"gamma": gamma, "beta": offset, "mean": 0.25, "var": 1.0, "gamma_dot": 0.5, "beta_dot": offset}
        groups = [rung.group(name, tensors, parameters, eps) for rung in rungs]
        for output in {ELEMENTS[key] for key in OUTPUTS[name].split() if key in ELEMENTS}:
            kind = int(rng.integers(4))
            truth = blind.codes(groups[-1], output, tensors, kind)
            for rung, group in zip(quick, groups, strict=False):
                np.testing.assert_array_equal(rung.codes(group, output, tensors, kind), truth)


@pytest.mark.parametrize("name", ["backward", "double_backward", "hvp"])
@pytest.mark.parametrize("change", [0.0, 2.0**-40])
def test_groups_of_zeros(rung, name, change):
    """Where dy and ddx are proportional to x and eps is 0, dx is 0; the squares tell, and tell when it is not."""
    rng = np.random.default_rng(20)
    x = np.round(rng.standard_normal(200) * 2.0**20) * 2.0**-20
    tensors = [x, 2 * x + 1, -3 * x]
    tensors[1][-1] += change
    group = rung.group(name, tensors, {"gamma": 1.5}, 0.0)
    alone = rung.group(name, tensors, {"gamma": 1.5}, 0.0)
    first = rung.codes(group, 1, tensors, 3)
    assert rung.suggests_zero(group, 1) == (change == 0.0)
    rung.squares_begin(group)
    for part in (slice(0, 7), slice(7, 200)):
        data = [np.ascontiguousarray(t[part]) for t in tensors]
        rung.squares_gather(
            group, data[1].ctypes.data, None if name == "backward" else data[2].ctypes.data, len(data[1])
        )
    rung.squares_end(group)
    assert not rung.suggests_zero(group, 1)
    elsewhere = [t + 1.0 for t in tensors]  # not of this group: only the shortcut says 0 there
    assert (not rung.codes(group, 1, elsewhere[:1] + tensors[1:], 3).any()) == (change == 0.0)
    np.testing.assert_array_equal(rung.codes(group, 1, tensors, 3), first)
    assert (not first.any()) == (change == 0.0)
    assert rung.vector(group, VECTORS["dgamma"], 3) == rung.vector(alone, VECTORS["dgamma"], 3)


def test_tensors_left_out(rung):
    """What is asked for needs dy alone."""
    dy = np.array([1.0, 2.0, 1e-30])
    for name in ("backward", "inference_backward"):
        group = rung.group(name, (None, dy, None), {"gamma": 2.0, "var": 4.0}, 0.0)
        assert rung.vector(group, VECTORS["dbeta"], 3) == 3
    assert rung.vector(group, VECTORS["dmean"], 3) == -3


def test_what_is_no_number_in_a_merged_piece(rung):
    whole, piece = ctypes.create_string_buffer(GROUP_BYTES), ctypes.create_string_buffer(GROUP_BYTES)
    for group, dy in ((whole, 1.0), (piece, np.inf)):
        data = np.array([1.0, dy])
        rung.begin(group, PASSES.index("backward"), 2, 1.0)
        rung.gather(group, data[:1].ctypes.data, data[1:].ctypes.data, None, 1)
    rung.merge(whole, piece)
    rung.solve(whole, ctypes.byref(Parameters(gamma=1.0)))
    assert rung.vector(whole, VECTORS["mean"], 3) == 1
    assert np.isnan([rung.vector(whole, VECTORS[name], 3) for name in ("dgamma", "dbeta")]).all()


@pytest.mark.parametrize("value", [2.0 - 2.0**-52, float(np.finfo(np.float64).max), -(2.0**-1022) * 1.75])
def test_many_carries(rung, value):
    """The largest significands, millions of times: a lost carry would show in the mean, or in the variance, 0."""
    n = (1 << 20) + (1 << 11) + 3
    x = np.full(n, value)
    group = rung.group("backward", (x, x, None), {"gamma": 1.0}, 1.0)
    assert rung.vector(group, VECTORS["mean"], 3) == value
    assert rung.vector(group, VECTORS["var"], 3) == 0
    assert rung.vector(group, VECTORS["dgamma"], 3) == 0
    truth = round_number(Fraction(value) * n, 0, 0, BINARY64)
    assert rung.vector(group, VECTORS["dbeta"], 3) == truth


def test_the_memo_belongs_to_one_output_format_and_element(rung):
    p = problem(normal(np.random.default_rng(13), BINARY64), 1, 3, 0.5)
    group = rung.group("double_backward", (p["x"][0], p["dy"][0], p["u"][0]), {k: p[k][0] for k in PARAMETERS}, 0.5)
    calls = [
        (output, *element, kind)
        for output in (0, 1)
        for element in zip(*(p[k][0].tolist() for k in ("x", "dy", "u")), strict=True)
        for kind in range(4)
    ]
    fresh = []
    for call in calls:
        form_without_memo = ctypes.create_string_buffer(group.raw, GROUP_BYTES)
        fresh.append(rung.element(form_without_memo, *call))
    for order in (range(len(calls)), range(len(calls))[::-1], [k for k in range(len(calls)) for _ in (0, 1)]):
        assert [rung.element(group, *calls[k]) for k in order] == [fresh[k] for k in order]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="sets MXCSR")
@pytest.mark.parametrize("mode", [0x1F80 | 0x8040, 0x1F80 | 0x4000, 0x1F80 | 0x6000 | 0x8040])
def test_the_floating_point_environment_has_nothing_to_act_on(rung, mode):
    """Flush-to-zero with denormals-are-zero, rounding up, rounding to zero."""
    rng = np.random.default_rng(14)
    p = problem(lambda shape: rng.integers(-1000, 1001, shape) * 2.0**-1074, 1, 5, 5e-324, integers(rng))
    calls = [(name, output) for name in PASSES for output in OUTPUTS[name].split()]
    rows = (p["x"][0], p["dy"][0], p["u"][0])
    elements = list(zip(*(row.tolist() for row in rows), strict=True))

    def answers():
        groups = {name: rung.group(name, rows, {k: p[k][0] for k in PARAMETERS}, p["eps"]) for name in PASSES}
        return np.array(
            [
                rung.element(groups[name], ELEMENTS[output], *element, 3)
                if output in ELEMENTS
                else rung.vector(groups[name], VECTORS[output], 3)
                for name, output in calls
                for element in (elements if output in ELEMENTS else elements[:1])
            ]
        )

    usual = answers()
    before = rung.c.refbn_test_exchange_mode(mode)
    try:
        unusual = answers()
    finally:
        rung.c.refbn_test_exchange_mode(before)
    assert usual.tobytes() == unusual.tobytes()
