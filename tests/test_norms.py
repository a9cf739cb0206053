"""The public functions of batch norm's relatives. Every bit: tests/backends/test_normalization.py."""

from fractions import Fraction
from math import inf

import mpmath
import numpy as np
import pytest

import refbn
from refbn._formats import BINARY32, round_to
from refbn.exact import round_number

RNG = np.random.default_rng(41)
X = RNG.standard_normal((6, 4, 5)).astype(np.float32)
VEC = RNG.uniform(0.5, 2.0, 4).astype(np.float32)


def test_shapes_and_formats():
    for fwd, statistics, affine in (
        (refbn.layer_norm(X), (6, 4), (5,)),
        (refbn.layer_norm(X, axes=(-1, 1)), (6,), (4, 5)),
        (refbn.layer_norm(X, axes=0), (4, 5), (6,)),
        (refbn.group_norm(X, 2), (6, 2), (4,)),
        (refbn.group_norm(X, 5, channel_axis=-1), (6, 5), (5,)),
        (refbn.group_norm(X, 3, channel_axis=0), (3, 4), (6,)),
        (refbn.instance_norm(X), (6, 4), (4,)),
        (refbn.instance_norm(X, channel_axis=0), (6, 4), (6,)),
        (refbn.batch_renorm(X, VEC, VEC), (4,), (4,)),
        (refbn.weight_standardization(X), (6,), (6,)),
    ):
        assert fwd.y.shape == X.shape and fwd.y.dtype == np.float32
        assert fwd.mean.shape == fwd.var.shape == fwd.invstd.shape == statistics
        assert refbn.backward(fwd.saved, X).dgamma.shape == affine
    assert refbn.layer_norm(X, dtype=np.float16).mean.dtype == np.float16


def test_statistics_are_those_of_each_group():
    wide = X.astype(np.float64)
    for fwd, values in (
        (refbn.layer_norm(X), wide),
        (refbn.group_norm(X, 2), wide.reshape(6, 2, 10)),
        (refbn.instance_norm(X), wide),
        (refbn.weight_standardization(X), wide.reshape(6, 20)),
    ):
        for got, expected in ((fwd.mean, values.mean(axis=-1)), (fwd.var, values.var(axis=-1))):
            assert np.abs(got - expected).max() <= 2.0**-24 * np.abs(expected).max()


def test_weight_standardization_is_batch_norm_of_the_output_channels():
    gain = RNG.standard_normal(6).astype(np.float32)
    fwd, same = refbn.weight_standardization(X, gain), refbn.forward(X, gain, channel_axis=0)
    assert fwd.y.tobytes() == same.y.tobytes()
    assert refbn.backward(fwd.saved, X).dx.tobytes() == refbn.backward(same.saved, X).dx.tobytes()


def test_one_group_and_as_many_groups_as_channels():
    """Group norm lies between layer norm (over all but the samples) and instance norm."""
    gamma, beta = RNG.standard_normal((2, 4)).astype(np.float32)
    spread = [np.repeat(a[:, None], 5, axis=1) for a in (gamma, beta)]
    one, layer = refbn.group_norm(X, 1, gamma, beta), refbn.layer_norm(X, *spread, axes=(1, 2))
    assert one.y.tobytes() == layer.y.tobytes()
    assert refbn.backward(one.saved, X).dx.tobytes() == refbn.backward(layer.saved, X).dx.tobytes()
    each, instance = refbn.group_norm(X, 4, gamma, beta), refbn.instance_norm(X, gamma, beta)
    for a, b in ((each, instance), (refbn.backward(each.saved, X), refbn.backward(instance.saved, X))):
        for name in ("y", "mean", "dx", "dgamma", "dbeta"):
            if hasattr(a, name):
                assert getattr(a, name).tobytes() == getattr(b, name).tobytes()


def test_layer_norm_against_sixty_digits():
    """By textbook formulas in mpmath, which shares nothing with the oracle; dgamma is a sum over six roots."""
    gamma, beta, dy = (RNG.standard_normal(shape).astype(np.float32) for shape in (5, 5, (6, 5)))
    x = X[:, 0]
    fwd = refbn.layer_norm(x, gamma, beta)
    grads = refbn.backward(fwd.saved, dy)
    with mpmath.workdps(60):
        eps = mpmath.mpf(1e-5)
        sums = [mpmath.mpf(0)] * 5
        for i, row in enumerate(x.tolist()):
            mean = mpmath.fsum(row) / 5
            s = mpmath.sqrt(mpmath.fsum((v - mean) ** 2 for v in row) / 5 + eps)
            xhat = [(v - mean) / s for v in row]
            g = [mpmath.mpf(a) * b for a, b in zip(gamma.tolist(), dy[i].tolist(), strict=True)]
            g_mean, g_xhat = mpmath.fsum(g) / 5, mpmath.fsum(a * b for a, b in zip(g, xhat, strict=True)) / 5
            for j in range(5):
                assert fwd.y[i, j] == nearest(gamma.tolist()[j] * xhat[j] + beta.tolist()[j])
                assert grads.dx[i, j] == nearest((g[j] - g_mean - xhat[j] * g_xhat) / s)
                sums[j] += dy.tolist()[i][j] * xhat[j]
        assert [float(a) for a in grads.dgamma] == [nearest(total) for total in sums]


def nearest(value):
    """Round to binary32; no such value is so near to a midpoint that fifty digits would not tell."""
    return round_number(Fraction(int(mpmath.nint(value * mpmath.mpf(2) ** 160)), 2**160), 0, 0, BINARY32)


# ---- batch renormalization ------------------------------------------------------------------------------------------


def test_the_correction_is_rounded_once_and_clipped():
    mean, var = RNG.standard_normal((2, 4))
    var = np.abs(var)
    for dtype in (np.float16, np.float32, np.float64):
        r, d = refbn.renormalization(X, mean, var, r_max=inf, d_max=inf, dtype=dtype)
        wide = X.astype(np.float64)
        sigma = np.sqrt(var + 1e-5)
        for got, expected in (
            (r, np.sqrt(wide.var(axis=(0, 2)) + 1e-5) / sigma),
            (d, (wide.mean(axis=(0, 2)) - mean) / sigma),
        ):
            assert got.dtype == dtype
            near = round_to(expected, dtype).astype(np.float64)
            spacing = np.abs(near) * np.finfo(dtype).eps
            assert (np.abs(got.astype(np.float64) - expected) <= spacing * 0.51 + np.abs(expected) * 2.0**-45).all()
        clipped = refbn.renormalization(X, mean, var, r_max=1.1, d_max=0.25, dtype=dtype)
        assert (clipped.r == np.clip(r, dtype(1 / 1.1), dtype(1.1))).all()
        assert (clipped.d == np.clip(d, dtype(-0.25), dtype(0.25))).all()


def test_without_limits_and_in_binary64_renorm_is_inference():
    x = X.astype(np.float64)
    mean, var = RNG.standard_normal((2, 4))
    var = var**2
    r, d = refbn.renormalization(x, mean, var, r_max=inf, d_max=inf)
    y = refbn.batch_renorm(x, r, d, VEC, VEC).y
    # r and d are rounded, each by half a unit; x̂, r and d are of order one.
    assert np.abs(y - refbn.inference(x, mean, var, VEC, VEC).y).max() <= 2.0**-50 * np.abs(y).max()


def test_its_own_statistics_correct_nothing():
    x = X.astype(np.float64)
    batch = refbn.forward(x)
    r, d = refbn.renormalization(x, batch.mean, batch.var)
    assert np.abs(r - 1).max() <= 2.0**-50 and np.abs(d).max() <= 2.0**-50
    ones, zeros = np.ones(4), np.zeros(4)
    assert refbn.batch_renorm(x, ones, zeros, VEC, VEC).y.tobytes() == refbn.forward(x, VEC, VEC).y.tobytes()
    assert refbn.renormalization(x, batch.mean, batch.var).d.shape == (4,)


def test_a_correction_of_what_is_no_number():
    x = X.copy()
    x[0, 1] = np.nan
    mean, var = np.zeros(4, np.float32), np.array([1, 1, 0, np.inf], np.float32)
    r, d = refbn.renormalization(x, mean, var, eps=0.0)
    assert np.isnan(r).tolist() == np.isnan(d).tolist() == [False, True, True, True]


# ---- blindness ------------------------------------------------------------------------------------------------------


def of_each_kind(eps):
    gamma = RNG.standard_normal(4)
    x = X.astype(np.float64)
    return [
        refbn.forward(x, gamma, eps=eps),
        refbn.layer_norm(x, RNG.standard_normal(5), eps=eps),
        refbn.group_norm(x, 2, gamma, eps=eps),
        refbn.instance_norm(x, gamma, eps=eps),
        refbn.batch_renorm(x, VEC, VEC, gamma, eps=eps),
    ]


def test_passed_is_what_reaches_x():
    dy = RNG.standard_normal(X.shape)
    for fwd in of_each_kind(1e-3):
        found = refbn.blindness(fwd.saved, dy)
        geometry = fwd.saved.geometry
        r = np.expand_dims(fwd.invstd.reshape(geometry.group_shape), geometry.reduced_axes)
        if geometry.corrected:
            r = r * VEC[None, :, None]
        dx = refbn.backward(fwd.saved, dy).dx.reshape(geometry.split)
        scale = np.abs(dx).max()
        assert np.abs(found.passed.reshape(geometry.split) * r - dx).max() <= 2.0**-51 * scale
        assert found.fraction.shape == fwd.invstd.shape and 0 < found.total < 1


def test_the_parts_are_orthogonal_without_eps():
    dy = RNG.standard_normal(X.shape)
    for fwd in of_each_kind(0.0):
        found = refbn.blindness(fwd.saved, dy)
        axes = fwd.saved.geometry.reduced_axes
        passed, blocked = (a.reshape(fwd.saved.geometry.split) for a in (found.passed, found.blocked))
        inner = (passed * blocked).sum(axis=axes)
        assert np.abs(inner).max() <= 2.0**-48 * np.abs(passed * blocked).sum(axis=axes).max()


def test_what_is_blocked_is_blocked_to_the_last_bit():
    x = X.astype(np.float64)
    constant = refbn.blindness(refbn.forward(x).saved, np.ones(X.shape))
    assert not constant.passed.any() and (constant.fraction == 1).all() and constant.total == 1
    integers = np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 5.0]])
    fwd = refbn.forward(integers, eps=0.0)
    found = refbn.blindness(fwd.saved, 3 * integers - 7)
    assert not found.passed.any() and found.total == 1
    frozen = refbn.inference(x, VEC, VEC)
    found = refbn.blindness(frozen.saved, x)
    assert not found.blocked.any() and found.total == 0 and (found.passed == x).all()


def test_backends_agree():
    dy = RNG.standard_normal(X.shape)
    for fwd in of_each_kind(1e-5):
        found = {name: refbn.blindness(fwd.saved, dy, backend=name) for name in (None, "exact", "reference")}
        for part in ("passed", "blocked"):
            assert getattr(found[None], part).tobytes() == getattr(found["exact"], part).tobytes()
            error = np.abs(getattr(found[None], part) - getattr(found["reference"], part))
            assert error.max() <= 2.0**-48 * np.abs(dy).max() * np.abs(fwd.saved.gamma).max()


def test_nothing_is_no_fraction():
    for backend in (None, "exact", "reference"):
        found = refbn.blindness(refbn.forward(X).saved, np.zeros(X.shape, np.float32), backend=backend)
        assert np.isnan(found.fraction).all() and np.isnan(found.total)
    empty = refbn.blindness(refbn.layer_norm(np.zeros((0, 3))).saved, np.zeros((0, 3)))
    assert empty.passed.shape == (0, 3) and empty.fraction.shape == (0,) and np.isnan(empty.total)
    bad = X.copy()
    bad[0, 2, 0] = np.inf
    found = refbn.blindness(refbn.forward(bad).saved, X)
    assert np.isnan(found.fraction).tolist() == [False, False, True, False]
    assert np.isnan(found.passed[:, 2]).all() and not np.isnan(found.passed[:, 3]).any()


@pytest.mark.parametrize("m", [1, 2])
def test_one_and_two_elements_block_everything(m):
    x = RNG.standard_normal((m, 3))
    fwd = refbn.forward(x, eps=0.0 if m > 1 else 1e-5)
    assert refbn.blindness(fwd.saved, RNG.standard_normal((m, 3))).total == 1
