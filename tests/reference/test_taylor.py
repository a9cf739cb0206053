import math

import mpmath
import numpy as np
import pytest

from refbn import reference
from tests.reference.channels import Operands


def series(order, m, seed=0):
    rng = np.random.default_rng([order, m, seed])
    return rng.standard_normal((order + 1, 2, m)), *rng.standard_normal((2, order + 1, 2))


def test_orders_zero_and_one_are_forward_and_jvp():
    o = Operands(12)
    y = reference.taylor(
        np.stack([o.x, o.x_dot]), np.stack([o.gamma, o.gamma_dot]), np.stack([o.beta, o.beta_dot]), o.eps
    )
    assert y[0] == pytest.approx(o.forward.y, rel=1e-14, abs=1e-14)
    assert y[1] == pytest.approx(reference.jvp(o.stats, o.gamma, o.x_dot, o.gamma_dot, o.beta_dot), abs=1e-13)


def test_order_two_is_half_the_hvp():
    # ⟨dy, y₂⟩ is half the second derivative of ⟨dy, y⟩ along the velocities.
    o = Operands(12)
    nothing, none = np.zeros_like(o.x), np.zeros(6)
    y = reference.taylor(
        np.stack([o.x, o.x_dot, nothing]),
        np.stack([o.gamma, o.gamma_dot, none]),
        np.stack([o.beta, o.beta_dot, none]),
        o.eps,
    )
    h = reference.hvp(o.stats, o.gamma, o.dy, o.x_dot, o.gamma_dot)
    form = (h.dx * o.x_dot).sum(axis=1) + h.dgamma * o.gamma_dot
    assert 2 * (o.dy * y[2]).sum(axis=1) == pytest.approx(form, rel=1e-12)


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize(("order", "m"), [(5, 4), (8, 3)])
def test_against_differentiation_at_high_precision(order, m, eps):
    x, gamma, beta = series(order, m)
    computed = reference.taylor(x, gamma, beta, eps)
    with mpmath.workdps(80):
        for g in range(2):
            for i in range(m):

                def y(t, g=g, i=i):
                    at = [mpmath.polyval([float(c) for c in x[::-1, g, j]], t) for j in range(m)]
                    mean = mpmath.fsum(at) / m
                    q = mpmath.fsum((a - mean) ** 2 for a in at) / m + mpmath.mpf(eps)
                    scale, shift = (mpmath.polyval([float(c) for c in p[::-1, g]], t) for p in (gamma, beta))
                    return scale * (at[i] - mean) / mpmath.sqrt(q) + shift

                expected = [float(c) for c in mpmath.taylor(y, 0, order)]
                sizes = np.maximum.accumulate(np.abs(computed).max(axis=(1, 2)))
                assert (np.abs(computed[:, g, i] - expected) <= 1e-11 * sizes).all()


def test_cubic_truncation_predicts_a_small_step():
    x, gamma, beta = series(3, 6)
    computed = reference.taylor(x, gamma, beta, 0.2)

    def remainder(t):
        at = [sum(c * t**k for k, c in enumerate(s)) for s in (x, gamma, beta)]
        return np.abs(reference.forward(*at, 0.2).y - sum(c * t**k for k, c in enumerate(computed))).max()

    assert math.log2(remainder(2.0**-9) / remainder(2.0**-10)) == pytest.approx(4.0, abs=0.2)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_scale_of_x(scale):
    x, gamma, beta = series(3, 5)
    expected = reference.taylor(x, gamma, beta, 0.0)
    assert reference.taylor(x * scale, gamma, beta, 0.0) == pytest.approx(expected, rel=1e-12, abs=1e-12)
