import numpy as np
import pytest

from refbn import reference
from refbn.reference import bounds
from tests.reference.channels import STEP, Operands, inner, velocity


@pytest.mark.parametrize("m", [2, 3, 50])
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_hvp_is_the_complex_step_of_backward(m, eps):
    o = Operands(m, eps)
    moved = o.moved("x", "gamma")
    stats = reference.statistics(moved["x"], eps)
    backward = reference.backward(stats, moved["gamma"], o.dy.astype(complex))
    arguments = (o.stats, o.gamma, o.dy, o.x_dot, o.gamma_dot)
    computed, limits = reference.hvp(*arguments), bounds.hvp(*arguments)
    for name in ("dx", "dgamma", "dbeta"):
        error = np.abs(getattr(computed, name) - velocity(getattr(backward, name)))
        assert (error <= 2 * limits[name]).all(), name


@pytest.mark.parametrize("m", [1, 2, 3, 50])
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_adjoint_identity_of_backward_itself(m, eps):
    # (D1), with backward's tangent by complex step: no second-order formula on the left.
    o = Operands(m, eps if m > 1 else 0.3)
    ddx, ddgamma, ddbeta = o.z, o.mean_dot, o.var_dot
    rng = np.random.default_rng(m)
    dy_dot = rng.standard_normal(o.dy.shape)
    moved = o.moved("x", "gamma")
    stats = reference.statistics(moved["x"], o.eps)
    backward = [velocity(a) for a in reference.backward(stats, moved["gamma"], o.dy + 1j * STEP * dy_dot)]
    arguments = (o.stats, o.gamma, o.dy, ddx, ddgamma, ddbeta)
    second, limits = reference.double_backward(*arguments), bounds.double_backward(*arguments)
    left = inner(ddx, backward[0]) + ddgamma * backward[1] + ddbeta * backward[2]
    right = inner(second.ddy, dy_dot) + inner(second.dx, o.x_dot) + second.dgamma * o.gamma_dot
    allowed = inner(limits["ddy"], np.abs(dy_dot)) + inner(limits["dx"], np.abs(o.x_dot))
    allowed += limits["dgamma"] * np.abs(o.gamma_dot)
    assert (np.abs(left - right) <= 2 * allowed).all()


def test_kernel_is_symmetric_in_all_three():
    o = Operands(20)
    u, g, w = o.x_dot, o.dy, o.z
    forms = [inner(a, reference.curvature(o.stats, o.gamma, b, c)) for a, b, c in ((w, u, g), (u, g, w), (g, w, u))]
    zero = np.zeros(6)
    allowed = sum(
        inner(np.abs(a), bounds.hvp(o.stats, o.gamma, c, b, zero)["dx"])
        for a, b, c in ((w, u, g), (u, g, w), (g, w, u))
    )
    assert (np.ptp(forms, axis=0) <= allowed).all()  # (K4)


def test_kernel_is_a_third_derivative_of_the_standard_deviation():
    # (P8): ⟨w, K(u, u)⟩ = m·γ·∇³s[u, u, w]; s'' along u is mean(u·P u)/s, differentiated along w by complex step.
    o = Operands(20)
    x = o.x + 1j * STEP * o.z
    stats = reference.statistics(x, o.eps)
    second = inner(o.x_dot, reference.project(stats, o.x_dot.astype(complex))) * stats.invstd
    kernel = reference.curvature(o.stats, o.gamma, o.x_dot, o.x_dot)
    assert inner(o.z, kernel) == pytest.approx(o.gamma * velocity(second), rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("which", ["u", "g"])
def test_kernel_does_not_see_constants(which):
    o = Operands(9)
    constant = np.full_like(o.x, 0.1)
    u, g = (constant, o.dy) if which == "u" else (o.x_dot, constant)
    assert not reference.curvature(o.stats, o.gamma, u, g).any()


def test_scale_of_x_without_eps():
    # At ε = 0, y does not change along x̂, so the gradient dx is homogeneous of degree −1: its velocity along d is −dx.
    o = Operands(15, 0.0)
    d = o.stats.xhat / o.stats.invstd[:, None]
    dx = reference.backward(o.stats, o.gamma, o.dy).dx
    zero = np.zeros(6)
    h = reference.hvp(o.stats, o.gamma, o.dy, d, zero)
    limit = bounds.hvp(o.stats, o.gamma, o.dy, d, zero)["dx"] + bounds.backward(o.stats, o.gamma, o.dy)["dx"]
    assert (np.abs(h.dx + dx) <= 2 * limit).all()


def test_zero_q_leaves_dbeta_alone():
    stats = reference.statistics(np.ones((1, 3)), 0.0)
    one, dy = np.ones(1), np.array([[1.0, 2.0, 4.0]])
    first, second = reference.backward(stats, one, dy), reference.hvp(stats, one, dy, dy, one)
    assert first.dbeta[0] == 7.0
    assert second.dbeta[0] == 0.0
    for result in (first, second):
        assert np.isnan(result.dx).all()
        assert np.isnan(result.dgamma).all()
    double = reference.double_backward(stats, one, dy, dy, one, one)
    assert all(np.isnan(a).all() for a in double)
