"""A stranger's project: a hand-written batch norm with one bug, three lines of the kit, an output that shows the bug.

Each row breaks the module in one place. Asserted is that the operations and outputs that fail are those that the bug
touches, that the rest passes, and that the output says what is wrong in words that lead to the line.
"""

import re

import pytest

import refbn.testing.plugin  # noqa: F401  see test_plugin

pytest_plugins = ["pytester"]

MODULE = """
import numpy as np

def shape(x):
    return (1, -1) + (1,) * (x.ndim - 2)

def axes(x):
    return (0, *range(2, x.ndim))

def statistics(x, eps):
    x = x.astype(np.float64)
    mean = x.mean(axes(x), keepdims=True)
    var = ((x - mean) ** 2).mean(axes(x), keepdims=True)
    invstd = 1 / np.sqrt(var + eps)
    return x - mean, var, invstd

def forward(x, gamma, beta, eps):
    centred, var, invstd = statistics(x, eps)
    y = gamma.reshape(shape(x)) * centred * invstd + beta.reshape(shape(x))
    return y.astype(x.dtype)

def backward(x, gamma, beta, eps, dy):
    centred, var, invstd = statistics(x, eps)
    xhat = centred * invstd
    g = dy.astype(np.float64)
    dbeta = g.sum(axes(x))
    dgamma = (g * xhat).sum(axes(x))
    mean_g = g.mean(axes(x), keepdims=True)
    mean_gx = (g * xhat).mean(axes(x), keepdims=True)
    dx = gamma.reshape(shape(x)) * invstd * (g - mean_g - xhat * mean_gx)
    return dx.astype(x.dtype), dgamma.astype(gamma.dtype), dbeta.astype(gamma.dtype)
"""

TEST = """
from refbn.testing import parametrize_with_cases
from mybn import forward, backward

@parametrize_with_cases(forward, backward=backward)
def test_batch_norm(check): check()
"""

# The line, what stands there with the bug, what fails, what the output says.
BUGS = {
    "the term with xhat is forgotten": (
        "(g - mean_g - xhat * mean_gx)",
        "(g - mean_g)",
        {"vjp dx", "rev dx"},
        "got - exact is a multiple of xhat in each channel: terms with xhat are wrong or missing",
    ),
    "the mean of dy is forgotten": (
        "(g - mean_g - xhat * mean_gx)",
        "(g - xhat * mean_gx)",
        {"vjp dx", "rev dx"},
        "got - exact is one number in each channel: ",
    ),
    "gamma is forgotten in dx": (
        "dx = gamma.reshape(shape(x)) * invstd",
        "dx = invstd",
        {"vjp dx", "rev dx"},
        "got = 1/gamma * exact",
    ),
    "invstd is forgotten in dgamma": (
        "dgamma = (g * xhat)",
        "dgamma = (g * centred)",
        {"vjp dgamma", "rev dgamma"},
        "got = 1/invstd * exact",
    ),
    "a mean in place of a sum": (
        "dbeta = g.sum(axes(x))",
        "dbeta = g.mean(axes(x))",
        {"vjp dbeta", "rev dbeta"},
        "got = 1/m * exact",
    ),
    "m - 1 in the variance": (
        "** 2).mean(axes(x), keepdims=True)",
        "** 2).sum(axes(x), keepdims=True) / (x.size / x.shape[1] - 1)",
        {"forward y", "vjp dx, dgamma"},
        "(got - beta) = sqrt((m-1)/m) * (exact - beta)",
    ),
    "eps outside the root": (
        "1 / np.sqrt(var + eps)",
        "1 / (np.sqrt(var) + eps)",
        {"forward y", "vjp dx, dgamma"},
        "(got - beta) = sqrt(var + eps)/(sqrt(var) + eps) * (exact - beta)",
    ),
    "the sign of beta": (
        "+ beta.reshape",
        "- beta.reshape",
        {"forward y", "rev dx, dgamma, dbeta"},
        "got - exact is one number in each channel: ",
    ),
    "x is overwritten": (
        "    centred, var, invstd = statistics(x, eps)\n    y =",
        "    centred, var, invstd = statistics(x, eps)\n    x -= x.mean(axes(x), keepdims=True)\n    y =",
        {"forward"},
        "forward is wrong (a call leaves its inputs as they were): modified its input x",
    ),
    "one-pass variance": (
        "((x - mean) ** 2).mean(axes(x), keepdims=True)",
        "(x * x).mean(axes(x), dtype=np.float32, keepdims=True) - mean * mean",
        {"forward y"},
        "offset=",
    ),
}

CHOICES = ("--refbn-dtype", "f32", "--refbn-dtype", "f64")
FAMILIES = ("composition", "conditioning", "shape", "state", "types")


def run(pytester, module):
    pytester.makepyfile(mybn=module, test_mybn=TEST)
    pytester.makeini("[pytest]\npythonpath = .\n")
    families = [word for family in FAMILIES for word in ("--refbn-family", family)]
    # what binary64 cannot square is no bug of these
    options = ("-k", "not 160 and not 120", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
    return pytester.runpytest_inprocess(*options, *CHOICES, *families)


def failing(result):
    """What the summary says failed: operation and outputs."""
    text = result.stdout.str()
    return set(re.findall(r"^(?:wrong|nonfinite|raises) +(.*): \d+ cases?$", text, re.MULTILINE))


def test_without_a_bug_everything_passes(pytester):
    result = run(pytester, MODULE)
    assert result.ret == pytest.ExitCode.OK, result.stdout.str()
    assert failing(result) == set()


@pytest.mark.parametrize("bug", BUGS)
def test_the_output_alone_shows_the_bug(bug, pytester):
    line, broken, outputs, words = BUGS[bug]
    assert MODULE.count(line) == 1
    result = run(pytester, MODULE.replace(line, broken))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = result.stdout.str()
    assert words in text
    found = failing(result)
    assert outputs <= found, found
    named = {name.partition(" ")[0] for name in found}
    assert named <= {name.partition(" ")[0] for name in outputs} | {"rev", "vjp"}, found
    # Every failure says where, what came, what is exact, and how to ask again.
    assert "repeat one: pytest test_mybn.py::test_batch_norm --refbn-case " in text
    if "modified" not in words:
        for part in (
            "at     ",
            "got    0x",
            "exact  0x",
            "error  ",
            "bound  ",
            "case ",
            "inputs: refbn.testing.make_inputs(",
        ):
            assert f"E       {part}" in text or f"E   {part}" in text, part
