import numpy as np
import pytest

from refbn import reference
from refbn.reference import bounds
from tests.reference.channels import STEP, Operands, inner, velocity

MOVING = ("x", "mean", "var", "gamma", "beta")


def moved_stats(o):
    moved = o.moved(*MOVING)
    return moved, reference.inference(*(moved[name] for name in MOVING), o.eps)


def tangent(o):
    return o.x_dot, o.mean_dot, o.var_dot, o.gamma_dot, o.beta_dot


@pytest.mark.parametrize("m", [1, 2, 40])
def test_jvp_is_the_complex_step_of_inference(m):
    o = Operands(m)
    expected = velocity(moved_stats(o)[1].y)
    arguments = (o.frozen, o.gamma, *tangent(o))
    error = np.abs(reference.inference_jvp(*arguments) - expected)
    assert (error <= 2 * bounds.inference_jvp(*arguments)["y_dot"]).all()


@pytest.mark.parametrize("m", [1, 2, 40])
def test_adjoint_identity(m):
    o = Operands(m)
    g, limit = reference.inference_backward(o.frozen, o.gamma, o.dy), bounds.inference_backward(o.frozen, o.gamma, o.dy)
    arguments = (o.frozen, o.gamma, *tangent(o))
    left = inner(o.dy, reference.inference_jvp(*arguments))
    right = inner(g.dx, o.x_dot)
    allowed = inner(np.abs(o.dy), bounds.inference_jvp(*arguments)["y_dot"]) + inner(limit["dx"], np.abs(o.x_dot))
    for name in ("mean", "var", "gamma", "beta"):
        right = right + getattr(g, f"d{name}") * getattr(o, f"{name}_dot")
        allowed = allowed + limit[f"d{name}"] * np.abs(getattr(o, f"{name}_dot"))
    assert (np.abs(left - right) <= allowed).all()


@pytest.mark.parametrize("m", [1, 2, 40])
def test_hvp_is_the_complex_step_of_backward(m):
    o = Operands(m)
    moved, inference = moved_stats(o)
    backward = reference.inference_backward(inference.stats, moved["gamma"], o.dy)
    arguments = (o.frozen, o.gamma, o.dy, *tangent(o)[:-1])
    computed, limits = reference.inference_hvp(*arguments), bounds.inference_hvp(*arguments)
    for name in computed._fields:
        error = np.abs(getattr(computed, name) - velocity(getattr(backward, name)))
        assert (error <= 2 * limits[name]).all(), name


@pytest.mark.parametrize("m", [1, 2, 40])
def test_adjoint_identity_of_backward_itself(m):
    o = Operands(m)
    rng = np.random.default_rng(m)
    dy_dot, ddx = rng.standard_normal((2, *o.dy.shape))
    ddmean, ddvar, ddgamma, ddbeta = rng.standard_normal((4, 6))
    moved, inference = moved_stats(o)
    backward = reference.inference_backward(inference.stats, moved["gamma"], o.dy + 1j * STEP * dy_dot)
    dx, dgamma, dbeta, dmean, dvar = (velocity(a) for a in backward)
    left = inner(ddx, dx) + ddgamma * dgamma + ddbeta * dbeta + ddmean * dmean + ddvar * dvar
    arguments = (o.frozen, o.gamma, o.dy, ddx, ddmean, ddvar, ddgamma, ddbeta)
    second, limit = reference.inference_double_backward(*arguments), bounds.inference_double_backward(*arguments)
    right = inner(second.ddy, dy_dot) + inner(second.dx, o.x_dot)
    allowed = inner(limit["ddy"], np.abs(dy_dot)) + inner(limit["dx"], np.abs(o.x_dot))
    for name in ("mean", "var", "gamma"):
        right = right + getattr(second, f"d{name}") * getattr(o, f"{name}_dot")
        allowed = allowed + limit[f"d{name}"] * np.abs(getattr(o, f"{name}_dot"))
    assert (np.abs(left - right) <= 2 * allowed).all()


def test_training_is_inference_at_the_batch_statistics():
    # y agrees; dx agrees once μ and v are followed back to x: dμ/dx = 1/m, dv/dx = 2·d/m.
    o = Operands(30)
    s = o.stats
    y, frozen = reference.inference(o.x, s.mean, s.var, o.gamma, o.beta, o.eps)
    assert y == pytest.approx(o.forward.y, abs=1e-13)
    g = reference.inference_backward(frozen, o.gamma, o.dy)
    d = o.x - s.mean[:, None]
    total = g.dx + (g.dmean[:, None] + 2 * d * g.dvar[:, None]) / 30
    assert total == pytest.approx(reference.backward(s, o.gamma, o.dy).dx, abs=1e-13)


def test_zero_q():
    one = np.ones(1)
    y, stats = reference.inference(np.array([[1.0, 2.0]]), one, np.zeros(1), one, one, 0.0)
    assert stats.invstd[0] == np.inf
    assert np.isnan(y).all()
    g = reference.inference_backward(stats, one, np.array([[1.0, 2.0]]))
    assert g.dbeta[0] == 3.0
    assert all(np.isnan(a).all() for a in (g.dx, g.dgamma, g.dmean, g.dvar))
    h = reference.inference_hvp(stats, one, np.ones((1, 2)), np.ones((1, 2)), one, one, one)
    assert h.dbeta[0] == 0.0
    assert all(np.isnan(a).all() for a in (h.dx, h.dgamma, h.dmean, h.dvar))


def test_a_bad_element_concerns_itself_alone():
    o = Operands(5)
    x = o.x.copy()
    x[2, 3] = np.nan
    y, stats = reference.inference(x, o.mean, o.var, o.gamma, o.beta, o.eps)
    assert np.isnan(y).sum() == 1
    g = reference.inference_backward(stats, o.gamma, o.dy)
    assert np.isfinite(g.dx).all()
    assert np.isfinite(g.dmean).all()
    assert np.isnan(g.dgamma).tolist() == np.isnan(g.dvar).tolist() == [i == 2 for i in range(6)]


def test_an_empty_batch_sums_to_zero():
    vectors = np.ones((4, 2))
    y, stats = reference.inference(np.empty((2, 0)), *vectors, 1e-5)
    g = reference.inference_backward(stats, vectors[0], np.empty((2, 0)))
    assert y.shape == g.dx.shape == (2, 0)
    assert not any(a.any() for a in g[1:])
