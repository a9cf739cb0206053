import numpy as np
import pytest

from refbn import reference
from refbn.reference import bounds
from tests.reference.channels import Operands, inner, velocity


@pytest.mark.parametrize("m", [2, 3, 50])
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_jvp_is_the_complex_step_of_forward(m, eps):
    o = Operands(m, eps)
    moved = o.moved("x", "gamma", "beta")
    expected = velocity(reference.forward(moved["x"], moved["gamma"], moved["beta"], eps).y)
    arguments = (o.stats, o.gamma, o.x_dot, o.gamma_dot, o.beta_dot)
    assert (np.abs(reference.jvp(*arguments) - expected) <= 2 * bounds.jvp(*arguments)["y_dot"]).all()


def test_y_has_the_affine_moments():
    o = Operands(40)
    y, kappa = o.forward.y, o.stats.kappa
    assert y.mean(axis=1) == pytest.approx(o.beta, abs=1e-14)
    assert y.var(axis=1) == pytest.approx(o.gamma**2 * (1 - kappa), abs=1e-14)  # (S6)


def test_permuting_the_batch_permutes_y():
    o = Operands(30)
    order = np.random.default_rng(0).permutation(30)
    y, _ = reference.forward(o.x[:, order], o.gamma, o.beta, o.eps)
    limit = bounds.forward(o.x, o.gamma, o.beta, o.eps)["y"]
    assert (np.abs(y - o.forward.y[:, order]) <= 2 * limit[:, order]).all()


@pytest.mark.parametrize("direction", ["ones", "x"])
def test_forward_does_not_see_shifts_and_without_eps_no_scale(direction):
    o = Operands(12, 0.0)
    x_dot = np.ones_like(o.x) if direction == "ones" else o.x
    y_dot = reference.jvp(o.stats, o.gamma, x_dot, np.zeros(6), np.zeros(6))
    limit = bounds.jvp(o.stats, o.gamma, x_dot, np.zeros(6), np.zeros(6))["y_dot"]
    assert (np.abs(y_dot) <= limit).all()
    assert direction == "x" or not y_dot.any()


def test_one_element_is_beta():
    y, stats = reference.forward(np.array([[3.0]]), np.array([2.0]), np.array([5.0]), 1e-5)
    assert (y[0, 0], stats.var[0], stats.xhat[0, 0]) == (5.0, 0.0, 0.0)


def test_tangents_of_y_have_the_mean_of_the_affine_part():
    o = Operands(25)
    y_dot = reference.jvp(o.stats, o.gamma, o.x_dot, o.gamma_dot, o.beta_dot)
    assert inner(y_dot, np.ones_like(y_dot)) / 25 == pytest.approx(o.beta_dot, abs=1e-14)
