import numpy as np
import pytest

from refbn import reference
from tests.reference.channels import Operands


def columns(function, m):
    """Apply a function of one tensor to all unit vectors of all channels; returns (G, m, m)."""
    return np.stack([function(np.tile(unit, (6, 1))) for unit in np.eye(m)], axis=2)


@pytest.mark.parametrize("m", [1, 2, 3, 8])
def test_jacobian_is_jvp_column_by_column(m):
    o = Operands(m)
    zero, one = np.zeros(6), np.ones(6)
    j = reference.jacobian(o.stats, o.gamma)
    assert j.dy_dx == pytest.approx(
        columns(lambda u: reference.jvp(o.stats, o.gamma, u, zero, zero), m), rel=1e-13, abs=1e-14
    )
    nothing = np.zeros_like(o.x)
    assert np.array_equal(j.dy_dgamma, reference.jvp(o.stats, o.gamma, nothing, one, zero))
    assert np.array_equal(j.dy_dbeta, reference.jvp(o.stats, o.gamma, nothing, zero, one))


@pytest.mark.parametrize("m", [1, 2, 3, 8])
def test_hessian_is_hvp_column_by_column(m):
    o = Operands(m)
    zero, one = np.zeros(6), np.ones(6)
    h = reference.hessian(o.stats, o.gamma, o.dy)
    assert h.dx_dx == pytest.approx(
        columns(lambda u: reference.hvp(o.stats, o.gamma, o.dy, u, zero).dx, m), rel=1e-12, abs=1e-13
    )
    nothing = np.zeros_like(o.x)
    assert h.dx_dgamma == pytest.approx(reference.hvp(o.stats, o.gamma, o.dy, nothing, one).dx, rel=1e-13, abs=1e-14)


@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_eigenvalues_of_the_hessian(eps):
    m = 8
    o = Operands(m, eps)
    s = o.stats
    eigenvalues = np.linalg.eigvalsh(reference.hessian(s, o.gamma, o.dy).dx_dx)
    a = (s.xhat * o.dy).mean(axis=1)
    pg = reference.project(s, o.dy)
    w = pg - (s.kappa * a / (1 - s.kappa))[:, None] * s.xhat
    b2 = (1 - s.kappa) * (w**2).mean(axis=1)
    root = np.sqrt(a**2 * (1 - 3 * s.kappa) ** 2 / 4 + b2)
    plane = a[:, None] * (1 + 3 * s.kappa[:, None]) / 2 + np.stack([root, -root], axis=1)  # (K6)
    bracket = np.concatenate([np.zeros((6, 1)), np.tile(a[:, None], m - 3), plane], axis=1)
    expected = np.sort(-(o.gamma * s.invstd**2)[:, None] * bracket, axis=1)
    assert eigenvalues == pytest.approx(expected, abs=1e-13)
    if eps == 0:
        assert (eigenvalues[:, 0] < 0).all()
        assert (eigenvalues[:, -1] > 0).all()
