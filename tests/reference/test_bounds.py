import re
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest

from refbn import reference
from refbn.reference import bounds
from tests.reference.high_precision import Case, case, computed, fractions


def test_the_table_of_the_docstring_is_what_counting_gives():
    table = {}
    for line in bounds.__doc__.splitlines():
        if match := re.match(r"(\w+) {2,}(\w+ \d+(?:, \w+ \d+)*)$", line):
            table[match[1]] = {name: int(k) for name, k in (entry.split() for entry in match[2].split(", "))}
    assert table == bounds.counts()


CASES = [(m, eps) for m in (1, 2, 3, 5, 16, 100) for eps in (0.0, 1e-300, 1e-5, 1e10) if m * eps > 1e-300 or m > 1]


@pytest.mark.parametrize(("m", "eps"), [*CASES, (600, 1e-5)])
def test_errors_stay_below_their_bounds(m, eps):
    worst = defaultdict(float)
    claimed = defaultdict(int)
    for output, channel, fraction in fractions(case(m, eps, seed=m)):
        if not np.isnan(fraction):
            claimed[output] += 1
            assert fraction <= 1.0, f"{output}, m={m}, eps={eps}, channel {channel}: {fraction} of the bound"
            worst[output] = max(worst[output], fraction)
    assert all(claimed[output] >= 7 for output in worst), claimed
    assert len(worst) == 32
    assert any(f > 1e-3 for f in worst.values())  # the errors are real ones


def test_long_channels():
    c = case(3000, 1e-5, seed=1)
    chosen = [0, 2, 5, 7]  # harmless, an offset, an outlier in front, one ulp
    short = Case(c.eps, {name: a[chosen] for name, a in c.operands.items()})
    assert max(f for _, _, f in fractions(short)) <= 1.0


@pytest.mark.parametrize("scale", [1e-250, 1e-170, 1e170, 1e250])
def test_forward_where_squares_would_leave_the_range(scale):
    rng = np.random.default_rng(5)
    x = rng.integers(-999, 1000, (3, 17)) * scale
    c = case(17, 0.0, seed=0)
    short = Case(0.0, {**{name: a[:3] for name, a in c.operands.items()}, "x": x})
    results = [f for o, _, f in fractions(short) if o in ("forward.y", "forward.mean", "forward.invstd")]
    assert len(results) == 9
    assert max(results) <= 1.0
    assert not np.isnan(results).any()


def test_mean_and_var_of_a_constant_channel_are_exact_though_nothing_else_exists():
    limits = bounds.forward(np.full((1, 4), 0.1), np.ones(1), np.ones(1), 0.0)
    assert limits["var"][0] == 0.0
    assert limits["mean"][0] < 1e-14
    assert limits["invstd"][0] == np.inf
    assert (limits["y"] == np.inf).all()


def test_nothing_is_claimed_out_of_range():
    x, one = np.array([[1.0, 2.0, 4.0]]), np.ones(1)
    stats = reference.statistics(x, 0.0)
    for dy in (np.array([[1.0, 2.0, 1e300]]) * 1e5, np.full((1, 3), 1e-290), np.array([[1.0, np.nan, 0.0]])):
        limits = bounds.backward(stats, one, dy)
        assert all((limit == np.inf).all() for limit in limits.values())
    assert all(np.isfinite(limit).all() for limit in bounds.backward(stats, one, np.zeros((1, 3))).values())


def test_nothing_is_claimed_for_arithmetic_that_is_too_coarse():
    x, one = np.array([[1.0, 2.0, 4.0]]), np.ones(1)
    stats = reference.statistics(x, 1.0)
    assert np.isfinite(bounds.backward(stats, one, x, u=2.0**-24)["dx"]).all()
    assert (bounds.backward(stats, one, x, u=2.0**-11)["dx"] == np.inf).all()


def test_bounds_scale_with_the_arithmetic():
    c = case(16, 1e-5, seed=0)
    stats = reference.statistics(c.operands["x"], c.eps)
    plain = bounds.backward(stats, c.operands["gamma"], c.operands["dy"])["dx"]
    double = bounds.backward(stats, c.operands["gamma"], c.operands["dy"], u=2.0**-100, depth=16)["dx"]
    assert np.allclose(double * (4 + 8), plain * (16 + 8) * 2.0**-47, rtol=1e-12)


def test_bounds_do_not_grow_with_the_offset():
    rng = np.random.default_rng(3)
    grid = rng.integers(-(2**10), 2**10, (4, 50)) * 2.0**-10
    one = np.ones(4)
    near, far = (bounds.forward(grid + offset, one, one, 1e-5) for offset in (0.0, 2.0**40))
    assert np.allclose(near["y"], far["y"], rtol=1e-6)
    assert np.allclose(near["var"], far["var"], rtol=1e-6)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("momentum", [Fraction(1, 10), Fraction(1, 3), Fraction(0), Fraction(1)])
def test_running_update(momentum, unbiased):
    m, rng = 9, np.random.default_rng(4)
    x = rng.standard_normal((20, m)) * 10.0 ** rng.uniform(-5, 5, (20, 1)) + rng.standard_normal((20, 1))
    old = rng.standard_normal(20), rng.uniform(0, 2, 20)
    arguments = (reference.statistics(x, 1e-5), m, momentum, True, unbiased, *old)
    values, limits = reference.running_update(*arguments), bounds.running_update(*arguments)
    for g in range(20):
        exact = [Fraction(float(e)) for e in x[g]]
        mean = sum(exact) / m
        var = sum((e - mean) ** 2 for e in exact) / (m - 1 if unbiased else m)
        for name, new, before in (("mean", mean, old[0]), ("var", var, old[1])):
            truth = momentum * new + (1 - momentum) * Fraction(float(before[g]))
            assert abs(Fraction(float(getattr(values, name)[g])) - truth) <= Fraction(float(limits[name][g]))


def test_every_output_has_a_bound_of_its_shape():
    values, limits = computed(case(4, 1e-5, seed=0))
    for operation, bound in limits.items():
        for output, limit in bound.items():
            assert limit.shape == values[operation][output].shape, (operation, output)
