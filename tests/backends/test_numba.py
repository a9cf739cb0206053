"""What the Numba backend's kernels are made of, and what they leave to the oracle. Its results: test_every_bit.py."""

import math
import operator
import re
import sys
from fractions import Fraction

import numpy as np
import pytest

from refbn import BackendError, exact
from refbn._formats import BFLOAT16, BINARY16, BINARY32, BINARY64, FORMATS

pytest.importorskip("numba")

from refbn.backends import _numba_kernels as kernels
from refbn.backends import numba as backend
from refbn.backends._numba_passes import as_row
from tests.backends.problems import (
    MIXED,
    TENSORS,
    UNIFORM,
    assert_same_bits,
    call,
    chosen,
    each_format,
    make_problem,
    run,
    short,
    truth,
)

# ---- who decides -----------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """What the oracle was asked: (pass, groups)."""
    calls, ask = [], backend._ask

    def listening(name, groups, *args, **kwargs):
        calls.append((name, list(groups)))
        ask(name, groups, *args, **kwargs)

    monkeypatch.setattr(backend, "_ask", listening)
    return calls


@pytest.mark.parametrize("formats", UNIFORM + MIXED, ids=short)
def test_the_oracle_is_not_asked_about_ordinary_data(formats, asked):
    run(backend, make_problem(31, (6, 300), formats))
    assert asked == []


@each_format
@pytest.mark.parametrize("constant", [("x",), ("dy",), ("ddx", "x_dot"), ("x", "dy", "ddx", "x_dot")])
@pytest.mark.parametrize("zero", [False, True])
def test_nor_about_constants(fmt, constant, zero, asked):
    problem = make_problem(32, (6, 21), (fmt, fmt, fmt))
    for name in constant:
        problem[name][:] = 0 if zero else problem[name][:, :1]
    run(backend, problem)
    assert asked == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nor_about_what_is_no_number(bad, asked):
    problem = make_problem(33, (6, 40), UNIFORM[2])
    for name in TENSORS & set(problem):
        problem[name][1, 3] = bad
    problem["gamma"][2] = bad
    run(backend, problem)
    assert asked == []


def test_the_oracle_is_asked_about_zeros_of_long_numbers(asked):
    # With two elements and no eps, dx is 0 whatever dy: pairs of binary64 numbers cannot know it.
    problem = chosen(make_problem(34, (6, 2), UNIFORM[3], eps=0.0), [0])
    outputs, _ = call(backend, "backward", problem)
    assert asked == [("backward", [0])]
    assert not outputs["dx"].any()


def test_the_oracle_is_asked_about_some_groups_only(asked):
    problem = make_problem(39, (6, 4), UNIFORM[3])
    for group in (0, 3):
        problem["x"][group] = [4.0, 2.0**-51, sys.float_info.min, 0.0]  # the mean is a bit more than 1 + 2^−53
    _, state = call(backend, "forward", problem)
    assert asked == [("forward", [0, 3])]
    call(backend, "running_update", problem | {"momentum": Fraction(1)}, state)
    assert asked[1:] == [("running_update", [0, 3])]


def test_ties_of_short_data_are_decided_here(asked):
    # The mean is halfway between two numbers of the format.
    for fmt in (BINARY16, BFLOAT16, BINARY32):
        for first in (1.0, 1.0 + 2 * 2.0 ** (1 - fmt.precision)):
            problem = make_problem(35, (6, 2), (fmt, fmt, fmt))
            problem["x"][:, 0], problem["x"][:, 1] = first, first + 2.0 ** (1 - fmt.precision)
            assert_same_bits(run(backend, problem, ["forward"]), truth(problem, ["forward"]))
    assert asked == []


# ---- the machine's arithmetic ----------------------------------------------------------------------------------------


def test_another_floating_point_environment_is_refused(unusual_mode):
    problem = make_problem(36, (6, 4), UNIFORM[2])
    state = call(backend, "forward", problem)[1]
    for name in ("forward", "backward", "running_update", "inference"):
        with unusual_mode(), pytest.raises(BackendError) as caught:
            call(backend, name, problem, state if name in ("backward", "running_update") else None)
        assert caught.value.label == "C23"
    call(backend, "forward", problem)


# ---- the arithmetic --------------------------------------------------------------------------------------------------


def value(pair, exponent=0):
    return (Fraction(pair[0]) + Fraction(pair[1])) * Fraction(2) ** exponent


def ends(ball):
    """The smallest and the largest number in a ball."""
    centre, err = value(ball, ball.exponent), Fraction(ball.err) * Fraction(2) ** ball.exponent
    return centre - err, centre + err


def is_normal(ball):
    return ball.hi == 0 == ball.lo or (0.5 <= abs(ball.hi) < 1 and ball.hi + ball.lo == ball.hi)


def random_floats(rng, n, reach):
    return [float(v) for v in np.ldexp(rng.uniform(-1, 1, n), rng.integers(-reach, reach, n))]


def random_ball(rng):
    """A ball of any kind: short or long, exact or not, of any size."""
    hi = float(rng.integers(-9, 10)) if rng.integers(3) == 0 else float(rng.standard_normal())
    lo = float(rng.choice([0.0, 2.0**-55, 2.0**-80])) * float(rng.standard_normal())
    err = float(rng.choice([0.0, 0.0, 2.0**-100, 2.0**-60, 2.0**-10])) * float(rng.uniform())
    return kernels.ball(hi, lo, err, int(rng.choice([0, 0, 1, -3, 60, -700, 3000])))


def numbers_in(ball, rng):
    low, high = ends(ball)
    return [low, high, low + (high - low) * Fraction(float(rng.uniform()))]


def test_error_free_transformations():
    # They fail if the compiler contracts a·b + c or reassociates.
    rng = np.random.default_rng(22)
    for a, b in zip(random_floats(rng, 300, 60), random_floats(rng, 300, 60), strict=True):
        assert value(kernels.two_sum(a, b)) == Fraction(a) + Fraction(b)
        assert value(kernels.two_product(a, b)) == Fraction(a) * Fraction(b)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("two_product", (1.5, 2.5)), ("add_pairs", (np.zeros(192), 1.0, 0.0, 1.0, np.zeros(64), 0.0))],
)
def test_no_multiplication_is_fused_with_an_addition(name, arguments):
    function = getattr(kernels, name).py_func
    compiled = kernels.numba.njit(function, nogil=True, error_model="numpy")  # what comes from a cache hides its code
    compiled(*arguments)
    (code,) = compiled.inspect_asm().values()
    assert "mul" in code
    assert not re.search(r"\bv?fn?m(add|sub)", code)


@pytest.mark.parametrize("operation", ["add", "subtract", "multiply", "divide"])
def test_balls_hold_what_they_should(operation):
    rng = np.random.default_rng(23)
    of = {"add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "divide": operator.truediv}[
        operation
    ]
    known = 0
    for _ in range(2000):
        a, b = random_ball(rng), random_ball(rng)
        result = getattr(kernels, operation)(a, b)
        if operation == "divide" and b.hi == 0:
            assert math.isnan(result.hi) or math.isinf(result.err)
            continue
        assert is_normal(result)
        if math.isinf(result.err):
            continue
        known += 1
        low, high = ends(result)
        for x in numbers_in(a, rng):
            for y in numbers_in(b, rng):
                assert low <= of(x, y) <= high
        if not a.err and not b.err:
            operands = abs(value(a, a.exponent)), abs(value(b, b.exponent))
            size = sum(operands) if operation in ("add", "subtract") else of(*operands)
            assert high - low <= Fraction(2) ** -102 * size
    assert known > 1500


def test_roots_hold_what_they_should():
    rng = np.random.default_rng(24)
    for _ in range(1000):
        q = random_ball(rng)
        result = kernels.root(q)
        low, high = ends(q)
        if high < 0 or low == high == 0:
            assert math.isnan(result.hi)
        elif low <= 0 or math.isinf(result.err):
            assert math.isinf(result.err)
        else:
            assert is_normal(result)
            below, above = ends(result)
            assert max(below, 0) ** 2 <= low <= high <= above**2
            if low == high:
                assert result.err <= 2.0**-100


def test_short_numbers_stay_exact():
    def exactly(v):
        return kernels.exactly(float(v))

    for a in range(-40, 41):
        for b in range(1, 41):
            for operation, of in (("add", operator.add), ("subtract", operator.sub), ("multiply", operator.mul)):
                result = getattr(kernels, operation)(exactly(a), exactly(b))
                assert result == exactly(of(a, b)), (operation, a, b)
            assert kernels.divide(exactly(a * b), exactly(b)) == exactly(a)
            is_dyadic = Fraction(a, b).denominator in (1, 2, 4, 8, 16, 32)
            assert (kernels.divide(exactly(a), exactly(b)).err == 0) == is_dyadic
        assert kernels.root(exactly(a * a + (a == 0))) == exactly(abs(a) or 1)


def test_balls_have_no_range():
    big, small = kernels.ball(1.5, 2.0**-60, 0.0, 5000), kernels.ball(-3.0, 0.0, 0.0, -7001)
    product = kernels.multiply(big, small)
    assert value(product, product.exponent) == value(big, big.exponent) * value(small, small.exponent)
    low, high = ends(kernels.add(big, small))
    assert low <= value(big, big.exponent) + value(small, small.exponent) <= high
    assert kernels.subtract(big, big) == kernels.exactly(0.0)
    assert kernels.add(kernels.exactly(1e300), kernels.exactly(math.nan)).hi != 0
    for a, b in ((big, math.nan), (math.nan, small)):
        a, b = (v if isinstance(v, kernels.Ball) else kernels.exactly(v) for v in (a, b))
        assert math.isnan(kernels.add(a, b).hi) and math.isnan(kernels.multiply(a, b).hi)


@pytest.mark.parametrize("number", [0, 1, 3, Fraction(1, 3), -Fraction(2, 7), 5e-324, 1e308, 1 - Fraction(1, 2**1074)])
def test_rational_numbers_become_balls(number):
    ball = kernels.Ball(*as_row(number))
    low, high = ends(ball)
    assert low <= Fraction(number) <= high
    assert is_normal(ball)
    assert (low == high) == (number not in (Fraction(1, 3), -Fraction(2, 7), 1 - Fraction(1, 2**1074)))
    assert ball.err < 2.0**-104


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
def test_the_last_rounding_is_one_rounding(fmt):
    rng = np.random.default_rng(24)
    form = kernels.Target(fmt.precision, fmt.emin, fmt.emax, fmt.max)
    cases = []
    for bits in (fmt.precision - 2, fmt.precision, fmt.precision + 1, 53):
        for _ in range(60):
            integer = int(rng.integers(2 ** (bits - 1), 2**bits))  # midpoints, when there is one bit too many
            exponent = int(rng.integers(fmt.emin - fmt.precision - 3, fmt.emin + 3)) - bits
            if rng.integers(2):
                exponent = int(rng.integers(-5, fmt.emax + 3)) - bits
            for lo in (0.0, 2.0**-60, -(2.0**-60), 2.0**-3, -(2.0**-3)):
                if bits < 53 or abs(lo) < 0.5:
                    cases.append((float(integer) * int(rng.choice([-1, 1])), lo, exponent))
        cases += [(2.0 ** (bits - 1), lo, fmt.emin - bits) for lo in (2.0**-60, -(2.0**-60))]
        cases += [(2.0 ** (bits - 1), lo, 3 - bits) for lo in (0.0, 2.0**-60, -(2.0**-60), -(2.0 ** (bits - 55)))]
    for hi, lo, exponent in cases:
        hi, lo = kernels.two_sum(hi, lo)
        expected = exact.round_number(value((hi, lo), exponent), 0, 1, fmt)
        assert kernels.nearest(hi, lo, exponent, form) == expected, (hi, lo, exponent)
        if abs(hi) < 2.0**60 and -900 < exponent < 900:
            narrow = kernels.narrowed(
                math.ldexp(hi, exponent), form, math.ldexp(1.5, 53 - fmt.precision), 2.0**fmt.emin
            )
            once = exact.round_number(Fraction(math.ldexp(hi, exponent)), 0, 1, fmt)
            assert fmt is BINARY64 or narrow == once, (hi, exponent)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
def test_a_ball_is_rounded_only_if_its_ends_agree(fmt):
    form = kernels.Target(fmt.precision, fmt.emin, fmt.emax, fmt.max)
    midpoint = 1.0 + fmt.unit_roundoff if fmt is not BINARY64 else 1.0
    rest = 0.0 if fmt is not BINARY64 else fmt.unit_roundoff
    assert kernels.round_ball(kernels.ball(midpoint, rest, 0.0, 0), form) == (1.0, True)
    assert not kernels.round_ball(kernels.ball(midpoint, rest, 2.0**-110, 0), form)[1]
    above = kernels.ball(midpoint, rest + 2.0**-100, 2.0**-101, 0)
    assert kernels.round_ball(above, form) == (1.0 + 2 * fmt.unit_roundoff, True)
    assert not kernels.round_ball(kernels.ball(0.0, 0.0, 2.0**-100, 0), form)[1]
    assert kernels.round_ball(kernels.exactly(0.0), form) == (0.0, True)
    assert not kernels.round_ball(kernels.unknown(), form)[1]
    tiny = kernels.round_ball(kernels.ball(-1.0, 0.0, 2.0**-60, -4000), form)
    assert tiny == (0.0, True) and math.copysign(1, tiny[0]) == -1


def padded(values):
    return np.concatenate([values, np.full(-len(values) % kernels.LANES, np.nan)])


@pytest.mark.parametrize("m", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("reach", [0, 30, 400])
def test_sums(m, reach):
    rng = np.random.default_rng(m)
    a, b = rng.standard_normal(m) * 2.0 ** rng.integers(-reach, reach + 1, m), rng.standard_normal(m)
    pivots, tensors = (0.1, -0.3), (padded(a), padded(b))
    exact_t = [[Fraction(v) - Fraction(p) for v in z.tolist()] for z, p in zip((a, b), pivots, strict=True)]
    kinds = []
    for z, p, t in zip(tensors, pivots, exact_t, strict=True):
        total, kind = kernels.total_of(z, m, p)
        low, high = ends(total)
        assert low <= sum(t) <= high
        assert high - low <= Fraction(2) ** -95 * sum(map(abs, t))
        kinds.append(kind)
    assert kinds == [kernels.FAR if np.abs(a).max() > 2.0**300 else 0, 0]
    products = [s * t for s, t in zip(*exact_t, strict=True)]
    both = tensors[0], pivots[0], tensors[1], pivots[1]
    dots = [kernels.far_dot(*both, m)]
    if not kinds[0]:
        dots.append(kernels.dot(*both))
    for found in dots:
        low, high = ends(found)
        assert low <= sum(products) <= high
        assert high - low <= Fraction(2) ** -90 * sum(map(abs, products))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_sums_of_what_is_no_number(bad):
    data = np.ones(128)
    data[70] = bad
    total, kind = kernels.total_of(data, 100, 0.0)
    assert math.isnan(total.hi)
    assert kind == kernels.FAR | kernels.INFINITE


def test_pivots():
    rng = np.random.default_rng(25)
    for m in (1, 3, 100, 4999):
        constant = rng.standard_normal()
        assert kernels.choose_pivot(np.full(m, constant)) == constant
        data = rng.standard_normal(m) + 1000
        assert data.min() - 1 <= kernels.choose_pivot(data) <= data.max() + 1
    assert kernels.choose_pivot(rng.integers(0, 256, 1000).astype(float)) % 1 == 0
    for data in ([1e308, -1e308, 1e308], [np.inf, 1.0], [np.nan], [5e-324, 0.0], [1.0, np.nan]):
        assert math.isfinite(kernels.choose_pivot(np.array(data)))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("reach", [3, 100])
def test_combinations_stay_within_their_errors(wide, reach):
    rng = np.random.default_rng(reach)
    for _ in range(10):
        data = np.array([random_floats(rng, kernels.LANES, reach) for _ in range(3)])
        pivots = random_floats(rng, 3, 3)
        coefficients = [kernels.ball(v, v * w * 2.0**-54, abs(v) * r, 0) for v, w, r in rng.uniform(-1, 1, (4, 3))]
        if rng.integers(2):  # the terms cancel
            data[1], pivots[1], coefficients[1] = data[0], pivots[0], kernels.negative(coefficients[0])
        for scale in (0.0, 2.0**-110, 2.0**-50):
            balls = [kernels.ball(a.hi, a.lo, abs(a.err) * scale, a.exponent) for a in coefficients]
            rows = [kernels.as_row(a) for a in balls]
            sums = np.zeros((3, kernels.LANES))
            sums[0], sums[1], sums[2] = rows[3][0], rows[3][1] if wide else 0.0, rows[3][3 if wide else 2]
            for (hi, lo, plain, pairs), z, p in zip(rows, data, pivots, strict=False):
                if wide:
                    kernels.add_pairs(sums.reshape(-1), hi, lo, pairs, z, p)
                else:
                    kernels.add_plain(sums.reshape(-1), hi, plain, z, p)
            for j in range(kernels.LANES):
                t = [Fraction(z) - Fraction(p) for z, p in zip(data[:, j].tolist(), pivots, strict=True)] + [1]
                centre = sum(value(a, a.exponent) * v for a, v in zip(balls, t, strict=True))
                radius = sum((ends(a)[1] - ends(a)[0]) / 2 * abs(v) for a, v in zip(balls, t, strict=True))
                hi, lo, err = (Fraction(v) for v in sums[:, j].tolist())
                assert abs(hi + lo - centre) + radius <= err
                if not scale:
                    unit = Fraction(2) ** (-98 if wide else -48)
                    size = sum(abs(value(a, a.exponent) * v) for a, v in zip(balls, t, strict=True))
                    assert err <= unit * size


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
def test_what_is_decided_is_right(fmt):
    rng = np.random.default_rng(38)
    form = kernels.Target(fmt.precision, fmt.emin, fmt.emax, fmt.max)
    out, sure = np.empty(kernels.LANES), np.empty(kernels.LANES, np.bool_)
    decided = 0
    for _ in range(60):
        bits = fmt.precision + int(rng.integers(0, 2)) if fmt is not BINARY64 else 53
        exponent = int(rng.integers(fmt.emin - 5, fmt.emax + 2)) if fmt is not BINARY64 else int(rng.integers(-99, 99))
        hi = np.ldexp(rng.integers(2 ** (bits - 1), 2**bits + 1, kernels.LANES).astype(float), exponent - bits)
        hi *= rng.choice([-1.0, 1.0, 0.0], kernels.LANES, p=[0.45, 0.45, 0.1])
        lo = np.abs(hi) * 2.0**-53 * rng.choice([0.0, 0.5, -0.25, 2.0**-40], kernels.LANES)
        hi, lo = hi + lo, lo - ((hi + lo) - hi)
        size = np.maximum(np.abs(hi), np.ldexp(1.0, exponent) * rng.integers(0, 2))
        err = size * rng.choice([0.0, 2.0**-20, 2.0**-51, 2.0**-54, 2.0**-100], kernels.LANES)
        sums = np.concatenate([hi, lo, err])
        if fmt is BINARY64:
            left = kernels.decide_binary64(sums, out, sure)
        else:
            left = kernels.decide_narrow(sums, form, out, sure)
        assert left == np.count_nonzero(~sure)
        decided += np.count_nonzero(sure)
        for j in np.flatnonzero(sure):
            centre, radius = Fraction(hi[j]) + Fraction(lo[j]), Fraction(err[j]) * (1 - Fraction(1, 2**41))
            for end in (centre - radius, centre + radius):
                expected = exact.round_number(end, 0, 1, fmt)
                assert out[j] == expected, (hi[j], lo[j], err[j])
                assert math.copysign(1, out[j]) == math.copysign(1, expected)
    assert decided > 60 * kernels.LANES / 4


def test_works_without_a_cache_folder(monkeypatch):
    njit = kernels.numba.njit

    def without_cache(function, *, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(function, **options)

    monkeypatch.setattr(kernels.numba, "njit", without_cache)
    assert kernels.jit(lambda a: a + 1)(2) == 3
