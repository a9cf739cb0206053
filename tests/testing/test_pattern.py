"""Each trace that `pattern` looks for is seen, and where there is none, it says nothing."""

import numpy as np
import pytest

from refbn.audit.cases import make_inputs, parse
from refbn.testing.pattern import pattern


def told(descriptor, change, exact=None, output="dx"):
    """The pattern of change(exact, inputs), for y drawn from the inputs themselves."""
    case = parse(descriptor)
    inputs = make_inputs(case)
    exact = inputs.dy.astype(np.float64) if exact is None else exact(inputs)
    got = change(exact, inputs)
    return pattern(case, inputs, output, got, exact, np.full(exact.shape, 1e-9))


TENSOR = "conditioning:vjp:f64:16x3:scale=3"


def standardized(i):
    d = i.x - i.x.mean(0)
    return d / np.sqrt((d * d).mean(0) + i.eps)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda e, i: -e, "got = -1 * exact"),
        (lambda e, i: e * 16 / 15, "got = m/(m-1) * exact"),
        (lambda e, i: e * np.sqrt(15 / 16), "got = sqrt((m-1)/m) * exact"),
        (lambda e, i: e * 15 / 16, "got = (m-1)/m * exact"),
        (lambda e, i: e / 16, "got = 1/m * exact"),
        (lambda e, i: e * i.gamma, "got = gamma * exact"),
        (lambda e, i: e / np.sqrt(i.x.var(0) + i.eps), "got = invstd * exact"),
        (lambda e, i: e * (i.x.var(0) + 0), "got = (var + eps) * exact"),
        (lambda e, i: e * np.array([1.1, 1.2, 1.3]), "got is a multiple of exact in each channel: 1.1 in channel 0"),
        (lambda e, i: 0 * e, "got is 0 throughout"),
        (lambda e, i: e + 0.25, "got - exact is one number in each channel: 0.25 in channel 0"),
        (lambda e, i: e + 0.1 * standardized(i), "got - exact is a multiple of xhat in each channel"),
        (lambda e, i: e + 1 + 0.1 * standardized(i), "got - exact is a combination of 1 and xhat in each channel"),
        (lambda e, i: e + np.sin(1e3 * i.x), ""),
        (lambda e, i: e, ""),
    ],
)
def test_tensors(change, text):
    found = told(TENSOR, change)
    assert found.startswith(text) and bool(found) == bool(text), found


def test_a_gradient_in_the_error_of_a_jvp():
    found = told("conditioning:jvp:f64:16x3:scale=3", lambda e, i: e + 0.5 * i.x_dot)
    assert "a multiple of x_dot" in found
    found = told(TENSOR, lambda e, i: np.sin(i.x) + 0.5 * i.dy, exact=lambda i: np.sin(i.x.astype(float)))
    assert "a multiple of dy" in found


@pytest.mark.parametrize(
    ("factor", "text"),
    [
        (lambda i, v: np.sqrt(15 / 16) + 0 * v, "(got - beta) = sqrt((m-1)/m) * (exact - beta)"),
        (lambda i, v: np.sqrt(v + i.eps) / (np.sqrt(v) + i.eps), "(got - beta) = sqrt(var + eps)/(sqrt(var) + eps) * "),
        (lambda i, v: np.sqrt((v + i.eps) / v), "(got - beta) = sqrt((var + eps)/var) * (exact - beta)"),
        (lambda i, v: 0 * v, "(got - beta) is 0 throughout"),
    ],
)
def test_y_is_seen_without_beta(factor, text):
    def exact(i):
        return i.gamma * standardized(i) + i.beta

    def change(e, i):
        return i.beta + (e - i.beta) * factor(i, i.x.var(0))

    found = told("conditioning:forward:f64:16x3:scale=0.3,eps=0.01", change, exact, "y")
    assert found.startswith(text), found
    assert "multiple of xhat" in told("conditioning:forward:f64:16x3:scale=0.3,eps=0.01", change, exact)


def test_only_channels_that_are_off_count():
    def change(e, i):
        moved = e.copy()
        moved[:, 1] *= 2
        return moved

    assert told(TENSOR, change) == "got = 2 * exact (2 in channel 1)"


def test_vectors_are_factors_or_nothing():
    def vector(i):
        return i.gamma.astype(np.float64)

    assert told(TENSOR, lambda e, i: e * 16 / 15, vector).startswith("got = m/(m-1) * exact")
    assert told(TENSOR, lambda e, i: e * np.array([1.1, 1.2, 1.3]), vector) == ""


def test_frozen_statistics_have_their_own_names():
    found = told("conditioning:vjp_eval:f64:8x3:scale=3,var=9", lambda e, i: e / np.sqrt(9 + i.eps))
    assert found.startswith("got = invstd * exact")


def test_nothing_is_said_of_what_is_not_finite_or_empty_or_repeated():
    assert told(TENSOR, lambda e, i: e * np.nan) == ""
    assert told("shape:vjp:f64:0x3", lambda e, i: e) == ""
    assert told("shape:vjp:f64:16x2:repeat=2", lambda e, i: 2 * e) == ""
