"""What the tests of the backends share: problems on canonical arrays, calls of the contract's passes, comparisons."""

import inspect
from fractions import Fraction
from functools import cache
from hashlib import sha256

import numpy as np
import pytest

from refbn import backends
from refbn._formats import BFLOAT16, BINARY16, BINARY32, BINARY64, FORMATS, round_to
from refbn.backends._contract import Backend
from refbn.testing import strategies

TRAINED = ("forward", "backward", "jvp", "double_backward", "hvp", "running_update")
FROZEN = ("inference", "inference_backward", "inference_jvp", "inference_double_backward", "inference_hvp")
PASSES = TRAINED + FROZEN

TENSORS = frozenset({"x", "dy", "ddx", "x_dot", "y", "dx", "ddy", "y_dot"})
"""Inputs and outputs of the shape (G, R1, …); all others are vectors."""

# Rule R1's table, in the contract's words: the inputs that each output's formula contains.
CONTAINS = {
    "forward": {"mean": "x", "var": "x", "invstd": "x", "y": "x gamma beta"},
    "backward": {"dx": "x gamma dy", "dgamma": "x dy", "dbeta": "dy"},
    "jvp": {"y_dot": "x gamma x_dot gamma_dot beta_dot"},
    "double_backward": {"ddy": "x gamma ddx ddgamma ddbeta", "dx": "x gamma dy ddx ddgamma", "dgamma": "x dy ddx"},
    "hvp": {"dx": "x gamma dy x_dot gamma_dot", "dgamma": "x dy x_dot", "dbeta": ""},
    "running_update": {"out_mean": "x running_mean", "out_var": "x running_var"},
    "inference": {"y": "x mean var gamma beta", "invstd": "var"},
    "inference_backward": {
        "dx": "var gamma dy",
        "dgamma": "x mean var dy",
        "dbeta": "dy",
        "dmean": "var gamma dy",
        "dvar": "x mean var gamma dy",
    },
    "inference_jvp": {"y_dot": "x mean var gamma x_dot mean_dot var_dot gamma_dot beta_dot"},
    "inference_double_backward": {
        "ddy": "x mean var gamma ddx ddmean ddvar ddgamma ddbeta",
        "dx": "var gamma dy ddvar ddgamma",
        "dgamma": "x mean var dy ddx ddmean ddvar",
        "dmean": "var gamma dy ddvar ddgamma",
        "dvar": "x mean var gamma dy ddx ddmean ddvar ddgamma",
    },
    "inference_hvp": {
        "dx": "var gamma dy var_dot gamma_dot",
        "dgamma": "x mean var dy x_dot mean_dot var_dot",
        "dbeta": "",
        "dmean": "var gamma dy var_dot gamma_dot",
        "dvar": "x mean var gamma dy x_dot mean_dot var_dot gamma_dot",
    },
}

UNIFORM = [(fmt, fmt, fmt) for fmt in FORMATS]
MIXED = [  # of x, of the other tensors, of the vectors
    (BINARY16, BINARY32, BINARY32),
    (BFLOAT16, BINARY32, BFLOAT16),
    (BINARY32, BINARY64, BINARY32),
    (BINARY32, BINARY32, BINARY64),
    (BINARY64, BINARY16, BINARY32),
    (BFLOAT16, BINARY16, BINARY64),
]


def short(formats):
    return "-".join(fmt.short for fmt in formats)


each_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.short)


# ---- problems --------------------------------------------------------------------------------------------------------


def make_problem(seed, shape, formats, eps=1e-5):
    """Every input of every pass, by name. Group by group in turn: normal, far from zero, constant, of few values, with
    an outlier first, of many sizes."""
    rng = np.random.default_rng(seed)
    of_x, of_tensors, of_vectors = formats
    groups, offset = shape[0], 10.0 ** (2 if min(of_x.precision, of_tensors.precision) < 24 else 6)
    problem = {"eps": eps, "momentum": Fraction(1, 10), "weighs_new": True, "unbiased": bool(np.prod(shape[1:]) > 1)}
    for name in ("x", "dy", "ddx", "x_dot"):
        values = rng.standard_normal((groups, int(np.prod(shape[1:]))))
        values[1::6] += offset
        values[2::6] = rng.standard_normal((len(values[2::6]), 1))
        values[3::6] = rng.integers(-2, 3, values[3::6].shape)
        values[4::6, :1] *= 2.0**7
        values[5::6] *= 2.0 ** rng.integers(-8, 4, values[5::6].shape)
        problem[name] = round_to(values.reshape(shape), (of_x if name == "x" else of_tensors).dtype)
    for name in ("gamma", "beta", "mean", "var", "running_mean", "running_var"):
        for each in (name, f"dd{name}", f"{name}_dot"):
            values = rng.standard_normal(groups)
            problem[each] = round_to(np.abs(values) if each in ("var", "running_var") else values, of_vectors.dtype)
    return problem


def chosen(problem, groups):
    """The problem of some of the groups."""
    return {name: value[groups] if isinstance(value, np.ndarray) else value for name, value in problem.items()}


LAYOUTS = ("groups first", "samples first", "groups last", "sliced", "reversed", "transposed", "unaligned")
_OF_STRATEGIES = {"samples first": "contiguous", "groups last": "channels_last"}


def in_layout(array, layout):
    """Equal values of a tensor (G, R1, …) or a vector (G,) in memory of one of the `LAYOUTS`."""
    if layout == "groups first" or (array.ndim == 1 and layout not in ("sliced", "reversed", "unaligned")):
        return array.copy()
    if layout == "unaligned":
        room = np.empty(array.nbytes + 1, np.uint8)
        view = room[1:].view(array.dtype).reshape(array.shape)
        view[...] = array
        return view
    layout = _OF_STRATEGIES.get(layout, layout)
    if array.ndim == 1:
        return strategies.in_layout(array, layout)
    return np.moveaxis(strategies.in_layout(np.moveaxis(array, 0, 1), layout), 1, 0)


# ---- calls -----------------------------------------------------------------------------------------------------------


@cache
def inputs_of(pass_name):
    """The names of what a pass reads, the state among them."""
    return _names(pass_name, inspect.Parameter.POSITIONAL_OR_KEYWORD)[1:]  # without self


@cache
def outputs_of(pass_name):
    """The names of what a pass writes."""
    return _names(pass_name, inspect.Parameter.KEYWORD_ONLY)


def _names(pass_name, kind):
    parameters = inspect.signature(getattr(Backend, pass_name)).parameters.values()
    return tuple(p.name for p in parameters if p.kind is kind)


def call(backend, pass_name, problem, state=None, *, layout="groups first", formats=None):
    """Run a pass on problems as they are, into fresh outputs; return them by name, and what the pass returned.

    Tensors take x's format, and vectors gamma's, unless ``formats`` (by name, or one for all) says otherwise.
    """
    if state is None and "state" in inputs_of(pass_name):
        _, state = call(backend, "inference" if pass_name in FROZEN else "forward", problem)
    outputs = {}
    for name in outputs_of(pass_name):
        like = problem["x" if name in TENSORS else "gamma"]
        fmt = formats.get(name) if isinstance(formats, dict) else formats
        unwritten = round_to(np.full(like.shape, -7.0), fmt.dtype if fmt else like.dtype)
        outputs[name] = in_layout(unwritten, layout)
    arguments = [state if name == "state" else problem[name] for name in inputs_of(pass_name)]
    returned = getattr(backend, pass_name)(*arguments, **outputs)
    return outputs, returned


def laid_out(problem, layout):
    """The problem with every array in memory of some layout."""
    return {name: in_layout(v, layout) if isinstance(v, np.ndarray) else v for name, v in problem.items()}


def run(backend, problem, passes=PASSES, *, layout="groups first", formats=None):
    """Run passes; return {(pass, output): array}."""
    problem = laid_out(problem, layout)
    states = {}
    found = {}
    for name in passes:
        state = None
        if "state" in inputs_of(name):
            first = "inference" if name in FROZEN else "forward"
            if first not in states:
                _, states[first] = call(backend, first, problem)
            state = states[first]
        outputs, _ = call(backend, name, problem, state, layout=layout, formats=formats)
        found |= {(name, output): array for output, array in outputs.items()}
    return found


_answers = {}


def truth(problem, passes=PASSES, *, formats=None):
    """What the oracle answers to `run`; it is asked once, as the same question comes for every backend and layout."""
    numbers = [(k, v.dtype.name, v.shape, v.tobytes()) if isinstance(v, np.ndarray) else v for k, v in problem.items()]
    question = sha256(repr((numbers, tuple(passes), formats)).encode()).digest()
    if question not in _answers:
        _answers[question] = run(backends.load("exact"), problem, passes, formats=formats)
    return _answers[question]


# ---- comparisons -----------------------------------------------------------------------------------------------------


def bits(array):
    """The bits of an array, those of all NaNs being the same."""
    wide = array.astype(np.float64)
    return np.where(np.isnan(wide), np.int64(-1), wide.view(np.int64))


def assert_same_bits(found, truth, where=""):
    """Compare results, by any keys, bit for bit; ±0 are different, NaNs are not."""
    assert found.keys() == truth.keys()
    for key, expected in truth.items():
        got = found[key]
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        differ = np.argwhere(bits(got) != bits(expected))
        assert not differ.size, (where, key, differ[0], got[tuple(differ[0])], expected[tuple(differ[0])])
