import numpy as np
import pytest

from refbn import reference
from refbn.reference import bounds
from tests.reference.channels import Operands, inner


@pytest.mark.parametrize("m", [1, 2, 3, 40, 1000])
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_adjoint_identity(m, eps):
    # (B1): ⟨dy, ẏ⟩ = ⟨dx, ẋ⟩ + dγ·γ̇ + dβ·β̇
    o = Operands(m, eps if m > 1 else 0.3)
    tangent = (o.stats, o.gamma, o.x_dot, o.gamma_dot, o.beta_dot)
    g, limit = reference.backward(o.stats, o.gamma, o.dy), bounds.backward(o.stats, o.gamma, o.dy)
    left = inner(o.dy, reference.jvp(*tangent))
    right = inner(g.dx, o.x_dot) + g.dgamma * o.gamma_dot + g.dbeta * o.beta_dot
    allowed = inner(np.abs(o.dy), bounds.jvp(*tangent)["y_dot"]) + inner(limit["dx"], np.abs(o.x_dot))
    allowed += limit["dgamma"] * np.abs(o.gamma_dot) + limit["dbeta"] * np.abs(o.beta_dot)
    assert (np.abs(left - right) <= allowed).all()


@pytest.mark.parametrize("m", [1, 2, 7, 100])
@pytest.mark.parametrize("eps", [1e-5, 1.0])
@pytest.mark.parametrize("value", [0.1, -3e200, 7.0])
def test_blind_to_a_constant_dy(m, eps, value):
    o = Operands(m, eps)
    g = reference.backward(o.stats, o.gamma, np.full((6, m), value))
    assert not g.dx.any()
    assert not g.dgamma.any()


def test_blind_to_a_dy_along_xhat_but_for_kappa():
    o = Operands(30, 0.5)
    r = o.stats.invstd
    g = reference.backward(o.stats, o.gamma, o.stats.xhat)
    expected = (o.stats.kappa * o.gamma * r)[:, None] * o.stats.xhat
    assert (np.abs(g.dx - expected) <= 2 * bounds.backward(o.stats, o.gamma, o.stats.xhat)["dx"]).all()


def test_dx_sums_to_zero_and_feels_xhat_by_kappa():
    o = Operands(64)
    g = reference.backward(o.stats, o.gamma, o.dy)
    limit = bounds.backward(o.stats, o.gamma, o.dy)["dx"].sum(axis=1)
    assert (np.abs(g.dx.sum(axis=1)) <= limit).all()
    expected = o.stats.kappa * o.gamma * o.stats.invstd * inner(o.stats.xhat, o.dy)
    assert inner(o.stats.xhat, g.dx) == pytest.approx(expected, abs=1e-13)


def test_an_outlier_does_not_spoil_the_other_elements():
    # The first element is what the mean is shifted by; 1e12 there must not cost the others their digits.
    o = Operands(1000)
    dy = o.dy * 1e-6
    dy[:, 0] = 1e12
    for where in (0, 500):
        order = np.roll(np.arange(1000), where)
        stats = reference.statistics(o.x[:, order], o.eps)
        dx = reference.backward(stats, o.gamma, dy[:, order]).dx
        if where == 0:
            first = dx
    limit = bounds.backward(o.stats, o.gamma, dy)["dx"]
    assert (np.abs(dx - first[:, order]) <= 2 * limit[:, order]).all()
