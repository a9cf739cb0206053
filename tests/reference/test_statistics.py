from fractions import Fraction

import numpy as np
import pytest

from refbn import reference
from refbn.reference.statistics import center


@pytest.mark.parametrize("value", [0.0, 0.1, -1e300, 5e-324, 1e-310, 1.7e308])
@pytest.mark.parametrize("m", [1, 2, 3, 10, 1000])
def test_a_constant_channel_has_exact_statistics(value, m):
    stats = reference.statistics(np.full((1, m), value), 1e-5)
    assert (stats.mean[0], stats.var[0]) == (value, 0.0)
    assert not stats.xhat.any()
    assert stats.kappa[0] == 1.0
    y, _ = reference.forward(np.full((1, m), value), np.array([3.0]), np.array([0.7]), 1e-5)
    assert (y == 0.7).all()


def test_zero_q_has_infinite_invstd_and_no_xhat():
    stats = reference.statistics(np.full((1, 4), 2.5), 0.0)
    assert stats.invstd[0] == np.inf
    assert np.isnan(stats.xhat).all()
    assert (stats.mean[0], stats.var[0]) == (2.5, 0.0)


@pytest.mark.parametrize("exponent", [-1074, -1022, -600, -1, 0, 1, 600, 1020])
def test_powers_of_two_do_not_matter(exponent):
    # (S7), to the last bit: integers times 2^exponent, down to the subnormal numbers.
    integers = np.random.default_rng(0).integers(-7, 8, (5, 33)).astype(float)
    plain, scaled = reference.statistics(integers, 0.0), reference.statistics(np.ldexp(integers, exponent), 0.0)
    assert np.array_equal(plain.xhat, scaled.xhat)
    assert np.array_equal(np.ldexp(plain.mean, exponent), scaled.mean)
    with np.errstate(over="ignore", under="ignore"):
        assert np.array_equal(np.ldexp(plain.invstd, -exponent), scaled.invstd)


@pytest.mark.parametrize("eps", [0.0, 1e-300, 1e-5, 1.0, 1e300])
@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_neither_x_nor_eps_drowns_the_other_one(eps, scale):
    x = np.array([[0.0, 1.0]]) * scale  # var = scale²/4
    q = Fraction(scale) ** 2 / 4 + Fraction(eps)
    stats = reference.statistics(x, eps)
    square = Fraction(float(stats.invstd[0])) ** 2 * q
    assert abs(square - 1) < Fraction(1, 2**49)
    xhat_squared = Fraction(scale) ** 2 / 4 / q
    if xhat_squared > Fraction(1, 2**2000):  # not a subnormal number
        assert abs(Fraction(float(stats.xhat[0, 1])) ** 2 / xhat_squared - 1) < Fraction(1, 2**48)


def test_a_constant_channel_far_above_eps_keeps_eps():
    stats = reference.statistics(np.full((1, 3), 1e200), 1e-300)
    assert stats.invstd[0] == 1e150


def test_centering_twice_does_not_depend_on_the_offset():
    rng = np.random.default_rng(1)
    grid = rng.integers(-(2**20), 2**20, (4, 100)) * 2.0**-20
    near, far = center(grid)[0], center(grid + 2.0**30)[0]  # both exactly representable
    assert np.abs(near - far).max() <= 2.0**-50


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_element_spoils_its_own_channel_only(bad):
    x = np.random.default_rng(2).standard_normal((3, 5))
    clean = reference.statistics(x, 1e-5)
    x[1, 2] = bad
    stats = reference.statistics(x, 1e-5)
    assert np.isnan(stats.xhat[1]).all()
    assert np.isnan(stats.invstd[1])
    for before, after in zip(clean, stats, strict=True):
        assert np.array_equal(before[[0, 2]], after[[0, 2]])


def test_unbiased_variance():
    x = np.array([[1.0, 2.0, 4.0, 5.0]])
    assert reference.unbiased_var(reference.statistics(x, 0.0).var, 4)[0] == pytest.approx(np.var(x, ddof=1), rel=1e-15)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("weighs_new", [False, True])
def test_running_update(weighs_new, unbiased):
    stats = reference.statistics(np.array([[1.0, 2.0, 4.0, 5.0], [0.0, 0.0, 0.0, 8.0]]), 1e-5)
    old = np.array([16.0, -8.0]), np.array([4.0, 1.0])
    new = reference.running_update(stats, 4, Fraction(1, 4), weighs_new, unbiased, *old)
    weight = 0.25 if weighs_new else 0.75
    var = np.array([2.5, 12.0]) * (4 / 3 if unbiased else 1.0)
    assert new.mean.tolist() == (weight * np.array([3.0, 2.0]) + (1 - weight) * old[0]).tolist()
    assert new.var == pytest.approx(weight * var + (1 - weight) * old[1], rel=2.0**-51)


def test_momentum_is_not_rounded_before_it_is_subtracted():
    # 1 − w is rounded from the exact momentum: with w = 1 − 2^(−70) it is 2^(−70), not 0.
    stats = reference.statistics(np.zeros((1, 2)), 1.0)
    new = reference.running_update(stats, 2, 1 - Fraction(1, 2**70), True, False, np.array([1.0]), np.array([1.0]))
    assert new.mean[0] == 2.0**-70
