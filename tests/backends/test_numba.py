import ctypes
import inspect
import math
import operator
import platform
import re
import sys
from fractions import Fraction

import numpy as np
import pytest

from refbn import BackendError, exact
from refbn._formats import BFLOAT16, BINARY16, BINARY32, BINARY64, FORMATS, format_of, round_to

pytest.importorskip("numba")

from refbn.backends import _numba_kernels as kernels
from refbn.backends import numba as backend
from refbn.backends._numba_passes import as_row

TRAINED = ("forward", "backward", "jvp", "double_backward", "hvp")
FROZEN = ("inference", "inference_backward", "inference_jvp", "inference_double_backward", "inference_hvp")
PASSES = TRAINED + FROZEN
TENSORS = frozenset({"x", "dy", "ddx", "x_dot", "y", "dx", "ddy", "y_dot"})
MIXES = [
    (BINARY64, BINARY64),
    (BINARY32, BINARY32),
    (BINARY16, BINARY32),
    (BFLOAT16, BFLOAT16),
    (BINARY32, BINARY64),
    (BINARY64, BINARY16),
]


def names(function, kind):
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind is kind]


def inputs_of(pass_name):
    return names(getattr(backend, pass_name), inspect.Parameter.POSITIONAL_OR_KEYWORD)


def outputs_of(pass_name):
    return names(getattr(backend, pass_name), inspect.Parameter.KEYWORD_ONLY)


def make_case(seed, m, tensor_format, vector_format, eps=1e-5):
    """Six groups: normal, offset, constant, few values, an outlier first, wide exponents."""
    rng = np.random.default_rng(seed)
    case = {"eps": eps}
    for name in ("x", "dy", "ddx", "x_dot"):
        values = rng.standard_normal((6, m))
        values[1] += 10.0 ** (2 if tensor_format.precision < 24 else 6)
        values[2] = rng.standard_normal()
        values[3] = rng.integers(-2, 3, m)
        values[4, 0] *= 2.0**7
        values[5] *= 2.0 ** rng.integers(-8, 4, m)
        case[name] = round_to(values, tensor_format.dtype)
    for name in ("gamma", "beta", "mean", "var", "running_mean", "running_var"):
        case[name] = round_to(rng.standard_normal(6), vector_format.dtype)
        case["dd" + name] = round_to(rng.standard_normal(6), vector_format.dtype)
        case[name + "_dot"] = round_to(rng.standard_normal(6), vector_format.dtype)
    case["var"] = np.abs(case["var"])
    return case


def call(pass_name, case, state=None, **formats):
    """Run a pass into fresh outputs; tensors take x's format, and vectors gamma's, unless said otherwise."""
    if state is None and pass_name not in ("forward", "inference"):
        _, state = call("inference" if pass_name.startswith("inference") else "forward", case)
    outputs = {}
    for name in outputs_of(pass_name):
        like = case["x"] if name in TENSORS else case["gamma"]
        dtype = formats.get(name, format_of(like.dtype)).dtype
        outputs[name] = round_to(np.full(like.shape, np.nan), dtype)
    arguments = [state if name == "state" else case[name] for name in inputs_of(pass_name)]
    returned = getattr(backend, pass_name)(*arguments, **outputs)
    return outputs, returned


def truth_of(pass_name, case):
    """The exact results by name."""
    function = getattr(exact, pass_name)
    wanted = [name for name in inspect.signature(function).parameters if name in inputs_of(pass_name) or name in case]
    if pass_name in ("hvp", "inference_hvp"):
        wanted.remove("beta_dot")  # not an input of the contract's pass: it has no part in it
    flat = {name: case[name].reshape(len(case["x"]), -1) if name in TENSORS else case[name] for name in wanted}
    result = function(**flat)
    return {"y_dot": result} if isinstance(result, exact.ExactArray) else result._asdict()


def assert_rounded(outputs, truth):
    """Check that each output is the exact value rounded once."""
    for name, got in outputs.items():
        expected = truth[name].round(got.dtype).reshape(got.shape)
        assert got.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "-".join(f.short for f in mix))
@pytest.mark.parametrize("m", [1, 2, 3, 70])
def test_every_result_is_rounded_once(pass_name, mix, m):
    case = make_case(m, m, *mix)
    outputs, _ = call(pass_name, case)
    assert_rounded(outputs, truth_of(pass_name, case))


@pytest.mark.parametrize("mix", MIXES[:2], ids=lambda mix: mix[0].short)
@pytest.mark.parametrize("m", [64, 128, 2500])
def test_several_tiles(mix, m):
    case = make_case(m, m, *mix)
    for pass_name in ("forward", "double_backward", "inference_double_backward"):
        outputs, _ = call(pass_name, case)
        assert_rounded(outputs, truth_of(pass_name, case))


@pytest.mark.parametrize("pass_name", ["forward", "double_backward", "inference_hvp"])
@pytest.mark.parametrize("narrow", [BINARY16, BFLOAT16, BINARY32])
def test_wide_results_are_rounded_once_to_narrow_outputs(pass_name, narrow):
    case = make_case(5, 33, BINARY64, BINARY64)
    outputs, _ = call(pass_name, case, **dict.fromkeys(outputs_of(pass_name), narrow))
    assert_rounded(outputs, truth_of(pass_name, case))


def test_a_state_serves_passes_of_any_format():
    case = make_case(6, 50, BINARY32, BINARY32)
    _, state = call("forward", case)
    mixed = case | {"dy": make_case(7, 50, BINARY64, BINARY64)["dy"]}
    outputs, _ = call("backward", mixed, state, dx=BINARY64, dgamma=BINARY64, dbeta=BINARY64)
    assert_rounded(outputs, truth_of("backward", mixed))


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("weighs_new", [False, True])
@pytest.mark.parametrize(
    "momentum",
    [Fraction(0), Fraction(0.1), Fraction(1, 3), Fraction(1), Fraction(5e-324), 1 - Fraction(1, 2**200)],
    ids=float,
)
@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "-".join(f.short for f in mix))
def test_running_update(unbiased, weighs_new, momentum, mix):
    case = make_case(8, 20, *mix)
    _, state = call("forward", case)
    old = case["running_mean"], np.abs(case["running_var"])
    got = {"mean": np.empty_like(old[0]), "var": np.empty_like(old[1])}
    options = momentum, weighs_new, unbiased, *old
    backend.running_update(state, case["x"], *options, out_mean=got["mean"], out_var=got["var"])
    truth = exact.running_update(exact.moments(case["x"]), 20, *options)
    assert_rounded(got, truth._asdict())


# ---- who decides -----------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """What the oracle was asked: (pass, groups)."""
    calls, ask = [], backend._ask

    def listening(name, groups, *args, **kwargs):
        calls.append((name, list(groups)))
        ask(name, groups, *args, **kwargs)

    monkeypatch.setattr(backend, "_ask", listening)
    return calls


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "-".join(f.short for f in mix))
def test_the_oracle_is_not_asked_about_ordinary_data(mix, asked):
    case = make_case(31, 300, *mix)
    for pass_name in PASSES:
        call(pass_name, case)
    assert asked == []


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
@pytest.mark.parametrize("constant", [("x",), ("dy",), ("ddx", "x_dot"), ("x", "dy", "ddx", "x_dot")])
@pytest.mark.parametrize("zero", [False, True])
def test_nor_about_constants(fmt, constant, zero, asked):
    case = make_case(32, 21, fmt, fmt)
    for name in constant:
        case[name][:] = 0 if zero else case[name][:, :1]
    for pass_name in PASSES:
        outputs, _ = call(pass_name, case)
        assert_rounded(outputs, truth_of(pass_name, case))
    assert asked == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nor_about_what_is_no_number(bad, asked):
    case = make_case(33, 40, BINARY32, BINARY32)
    for name in TENSORS & set(case):
        case[name][1, 3] = bad
    case["gamma"][2] = bad
    for pass_name in PASSES:
        call(pass_name, case)
    assert asked == []


def test_the_oracle_is_asked_about_zeros_of_long_numbers(asked):
    # With two elements and no eps, dx is 0 whatever dy: pairs of binary64 numbers cannot know it.
    case = make_case(34, 2, BINARY64, BINARY64, eps=0.0)
    case = {name: a if name == "eps" else a[[0]] for name, a in case.items()}
    outputs, _ = call("backward", case)
    assert asked == [("backward", [0])]
    assert_rounded(outputs, truth_of("backward", case))
    assert not outputs["dx"].any()


def test_the_oracle_knows_what_breaks_a_tie(asked):
    case = make_case(39, 4, BINARY64, BINARY64)
    case["x"][0] = [4.0, 2.0**-51, sys.float_info.min, 0.0]  # the mean is a bit more than 1 + 2^−53
    outputs, state = call("forward", case)
    assert asked == [("forward", [0])]
    assert outputs["mean"][0] == 1.0 + 2.0**-52
    assert_rounded(outputs, truth_of("forward", case))
    old = case["running_mean"], case["running_var"]
    got = [np.empty(6), np.empty(6)]
    backend.running_update(state, case["x"], Fraction(1), True, True, *old, out_mean=got[0], out_var=got[1])
    assert asked[1:] == [("running_update", [0])]
    np.testing.assert_array_equal(got[0], outputs["mean"])
    truth = exact.running_update(exact.moments(case["x"]), 4, Fraction(1), True, True, *old)
    assert_rounded({"var": got[1]}, truth._asdict())


def test_ties_of_short_data_are_decided_here(asked):
    # The mean is halfway between two numbers of the format.
    for fmt in (BINARY16, BFLOAT16, BINARY32):
        for first in (1.0, 1.0 + 2 * 2.0 ** (1 - fmt.precision)):
            case = make_case(35, 2, fmt, fmt)
            case["x"][:, 0], case["x"][:, 1] = first, first + 2.0 ** (1 - fmt.precision)
            outputs, _ = call("forward", case)
            assert_rounded(outputs, truth_of("forward", case))
    assert asked == []


# ---- the machine's arithmetic ----------------------------------------------------------------------------------------


@pytest.fixture
def float_environment():
    """The C library's fesetround; rounding to nearest is restored afterwards."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "fesetround"):
        pytest.skip("no fesetround")
    yield library.fesetround
    library.fesetround(0)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the modes' numbers are this machine's")
@pytest.mark.parametrize("mode", [0x400, 0x800, 0xC00])
def test_another_rounding_mode_is_refused(mode, float_environment):
    case = make_case(36, 4, BINARY32, BINARY32)
    call("forward", case)
    assert float_environment(mode) == 0
    try:
        with pytest.raises(BackendError) as caught:
            call("forward", case)
    finally:
        float_environment(0)
    assert caught.value.label == "C23"
    call("forward", case)


def test_flushing_to_zero_is_refused():
    torch = pytest.importorskip("torch")
    case = make_case(37, 4, BINARY32, BINARY32)
    call("forward", case)
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush")
    try:
        with pytest.raises(BackendError) as caught:
            call("forward", case)
    finally:
        torch.set_flush_denormal(False)
    assert caught.value.label == "C23"
    call("forward", case)


# ---- layouts ---------------------------------------------------------------------------------------------------------


def channels_last(a):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 0, -1)), -1, 0)


def sliced(a):
    wide = np.zeros(tuple(2 * n + 1 for n in a.shape), a.dtype)
    wide[(slice(1, None, 2),) * a.ndim] = a
    return wide[(slice(1, None, 2),) * a.ndim]


def reversed_(a):
    return np.ascontiguousarray(a[(slice(None, None, -1),) * a.ndim])[(slice(None, None, -1),) * a.ndim]


@pytest.mark.parametrize("layout", [channels_last, sliced, reversed_])
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
def test_layouts_give_the_same_bits(layout, fmt):
    case = make_case(10, 24, fmt, fmt)
    shaped = {name: a.reshape(6, 2, 3, 4) if name in TENSORS else a for name, a in case.items()}
    for pass_name in ("forward", "double_backward", "inference_jvp"):
        expected, _ = call(pass_name, shaped)
        strided = {name: a if name == "eps" else layout(a) for name, a in shaped.items()}
        kept = {name: a if name == "eps" else a.copy() for name, a in strided.items()}
        _, state = call("inference" if pass_name in FROZEN else "forward", strided)
        outputs = {name: layout(np.zeros_like(a)) for name, a in expected.items()}
        arguments = [state if name == "state" else strided[name] for name in inputs_of(pass_name)]
        getattr(backend, pass_name)(*arguments, **outputs)
        for name, got in outputs.items():
            assert got.tobytes() == expected[name].tobytes()
        for name, a in strided.items():
            assert name == "eps" or a.tobytes() == kept[name].tobytes()


def test_a_tensor_left_out_has_zero_strides():
    case = make_case(11, 24, BINARY32, BINARY32)
    zero = np.broadcast_to(np.zeros((), "float32"), (6, 24))
    assert zero.strides == (0, 0)
    got, _ = call("double_backward", case | {"ddx": zero})
    expected, _ = call("double_backward", case | {"ddx": np.zeros((6, 24), "float32")})
    for name in got:
        assert got[name].tobytes() == expected[name].tobytes()


# ---- the rules -------------------------------------------------------------------------------------------------------

# Rule R1's table, in the contract's words: the inputs that each output's formula contains.
CONTAINS = {
    "forward": {"mean": "x", "var": "x", "invstd": "x", "y": "x gamma beta"},
    "backward": {"dx": "x gamma dy", "dgamma": "x dy", "dbeta": "dy"},
    "jvp": {"y_dot": "x gamma x_dot gamma_dot beta_dot"},
    "double_backward": {"ddy": "x gamma ddx ddgamma ddbeta", "dx": "x gamma dy ddx ddgamma", "dgamma": "x dy ddx"},
    "hvp": {"dx": "x gamma dy x_dot gamma_dot", "dgamma": "x dy x_dot", "dbeta": ""},
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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("fmt", [BINARY64, BFLOAT16], ids=lambda f: f.short)
@pytest.mark.parametrize("pass_name", PASSES)
def test_r1_not_a_number(pass_name, fmt, bad):
    case = make_case(12, 5, fmt, fmt)
    case["gamma"][:] = 0  # so that nothing but the rule lets NaN through
    clean, _ = call(pass_name, case)
    for spoilt in {name for formula in CONTAINS[pass_name].values() for name in formula.split()}:
        broken = case | {spoilt: case[spoilt].copy()}
        broken[spoilt][(1, 2) if spoilt in TENSORS else 1] = bad
        outputs, _ = call(pass_name, broken)
        for name, got in outputs.items():
            expected = clean[name].astype(np.float64)
            if spoilt in CONTAINS[pass_name][name].split():
                elementwise = pass_name in FROZEN and name in TENSORS and spoilt in TENSORS
                expected[(1, 2) if elementwise else 1] = np.nan
            np.testing.assert_array_equal(got.astype(np.float64), expected, err_msg=f"{name} of {spoilt}")


@pytest.mark.parametrize("fmt", [BINARY64, BINARY32], ids=lambda f: f.short)
@pytest.mark.parametrize("pass_name", PASSES)
def test_r2_no_variance_and_no_eps(pass_name, fmt):
    case = make_case(13, 4, fmt, fmt, eps=0.0)
    case["var"][2] = 0  # x is constant in this group
    outputs, _ = call(pass_name, case)
    for name, got in outputs.items():
        assert np.isfinite(got[[0, 1, 3, 4, 5]]).all()
        if name == "invstd":
            assert got[2] == np.inf
        elif name in ("mean", "var", "dbeta"):
            assert np.isfinite(got[2])
        else:
            assert np.isnan(got[2]).all(), name


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
def test_r3_one_element(fmt):
    case = make_case(14, 1, fmt, fmt)
    forward, _ = call("forward", case)
    np.testing.assert_array_equal(forward["y"][:, 0], case["beta"])
    np.testing.assert_array_equal(forward["mean"], case["x"][:, 0])
    assert not forward["var"].astype(np.float64).any()
    for pass_name in ("backward", "double_backward", "hvp"):
        outputs, _ = call(pass_name, case)
        assert not outputs["dx"].astype(np.float64).any()
        assert not outputs["dgamma"].astype(np.float64).any()


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
def test_r4_zeros_are_positive(fmt):
    case = make_case(15, 6, fmt, fmt)
    for name in TENSORS & set(case):
        case[name][:] = -case[name][:, :1]  # constant
    for name in ("beta", "ddbeta", "beta_dot"):
        case[name][:] = -0.0
    case["gamma"][:] = -1
    case["mean"] = case["x"][:, 0].copy()
    for pass_name, output in (("forward", "y"), ("backward", "dx"), ("hvp", "dx"), ("inference", "y")):
        got = call(pass_name, case)[0][output].astype(np.float64)
        assert not got.any()
        assert not np.signbit(got).any()


def test_r5_overflow_becomes_infinite():
    case = make_case(16, 10, BINARY16, BINARY16)
    case["gamma"][:] = 6e4
    outputs, _ = call("forward", case)
    expected = truth_of("forward", case)["y"].round("float16")
    assert np.isinf(expected).any()
    np.testing.assert_array_equal(outputs["y"], expected)


@pytest.mark.parametrize("pass_name", FROZEN)
def test_r6_no_elements(pass_name):
    case = {name: a[:, :0] if name in TENSORS else a for name, a in make_case(17, 3, BINARY32, BINARY32).items()}
    case["var"][2], case["eps"] = np.nan, 0.0
    outputs, _ = call(pass_name, case)
    for name, got in outputs.items():
        if name == "invstd":
            assert np.isnan(got[2])
            assert np.isfinite(got[[0, 1, 3, 4, 5]]).all()
        else:
            assert not got.any()


def test_no_groups():
    case = {name: a if name == "eps" else a[:0] for name, a in make_case(18, 3, BINARY32, BINARY32).items()}
    for pass_name in PASSES:
        outputs, _ = call(pass_name, case)
        assert all(got.shape[0] == 0 for got in outputs.values())


# ---- extreme exponents -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pass_name", TRAINED)
@pytest.mark.parametrize("power", [-1040, -700, -500, -300, 300, 500, 700, 1000])
def test_extreme_data(pass_name, power):
    case = make_case(19, 12, BINARY64, BINARY64, eps=0.0)
    keep = [0, 1, 3, 4, 5]
    case = {name: a if name == "eps" else a[keep] for name, a in case.items()}
    if power < -1000:
        case["x"] = np.trunc(case["x"] * 2.0**20)  # so that subnormal numbers hold it
    case["x"] = np.ldexp(case["x"], power)
    assert np.isfinite(case["x"]).all()
    outputs, _ = call(pass_name, case)
    for name, truth in truth_of(pass_name, case).items():
        np.testing.assert_array_equal(outputs[name], truth.round("float64"), err_msg=name)


@pytest.mark.parametrize("power", [-900, 900])
@pytest.mark.parametrize("pass_name", ["backward", "hvp", "double_backward", "inference_double_backward"])
def test_extreme_gradients_and_parameters(pass_name, power):
    keep = [0, 1, 3, 4, 5]
    case = {name: a if name == "eps" else a[keep] for name, a in make_case(20, 12, BINARY64, BINARY64).items()}
    case["dy"], case["gamma"] = np.ldexp(case["dy"], power), np.ldexp(case["gamma"], -power)
    case["ddx"], case["x_dot"] = np.ldexp(case["ddx"], power // 10), np.ldexp(case["x_dot"], -power // 10)
    outputs, _ = call(pass_name, case)
    truth = truth_of(pass_name, case)
    for name, got in outputs.items():
        np.testing.assert_array_equal(got, truth[name].round("float64"), err_msg=name)


@pytest.mark.parametrize("eps", [5e-324, 1e-310, 1e300])
@pytest.mark.parametrize("mix", MIXES[:2], ids=lambda mix: mix[0].short)
def test_extreme_eps(eps, mix):
    case = make_case(21, 12, *mix, eps=eps)
    for pass_name in ("forward", "backward", "jvp"):
        outputs, _ = call(pass_name, case)
        truth = truth_of(pass_name, case)
        for name, got in outputs.items():
            np.testing.assert_array_equal(got, truth[name].round(got.dtype), err_msg=name)


def test_frozen_elements_of_very_different_size():
    x = np.array([[2.0**900, 2.0**-150, 3.0, -(2.0**-200)]])
    one = np.ones(1)
    case = {"x": x, "mean": 0 * one, "var": 0.7 * one, "gamma": 0.3 * one, "beta": 0 * one, "eps": 0.0}
    outputs, _ = call("inference", case)
    np.testing.assert_array_equal(outputs["y"], truth_of("inference", case)["y"].round("float64"))


# ---- the arithmetic --------------------------------------------------------------------------------------------------


def value(pair, exponent=0):
    return (Fraction(pair[0]) + Fraction(pair[1])) * Fraction(2) ** exponent


def ends(ball):
    """The smallest and the largest number in a ball."""
    centre, err = value(ball, ball.exponent), Fraction(ball.err) * Fraction(2) ** ball.exponent
    return centre - err, centre + err


def is_normal(ball):
    return ball.hi == 0 == ball.lo or (0.5 <= abs(ball.hi) < 1 and ball.hi + ball.lo == ball.hi)


def random_floats(rng, n, reach):
    return [float(v) for v in np.ldexp(rng.uniform(-1, 1, n), rng.integers(-reach, reach, n))]


def random_ball(rng):
    """A ball of any kind: short or long, exact or not, of any size."""
    hi = float(rng.integers(-9, 10)) if rng.integers(3) == 0 else float(rng.standard_normal())
    lo = float(rng.choice([0.0, 2.0**-55, 2.0**-80])) * float(rng.standard_normal())
    err = float(rng.choice([0.0, 0.0, 2.0**-100, 2.0**-60, 2.0**-10])) * float(rng.uniform())
    return kernels.ball(hi, lo, err, int(rng.choice([0, 0, 1, -3, 60, -700, 3000])))


def numbers_in(ball, rng):
    low, high = ends(ball)
    return [low, high, low + (high - low) * Fraction(float(rng.uniform()))]


def test_error_free_transformations():
    # They fail if the compiler contracts a·b + c or reassociates.
    rng = np.random.default_rng(22)
    for a, b in zip(random_floats(rng, 300, 60), random_floats(rng, 300, 60), strict=True):
        assert value(kernels.two_sum(a, b)) == Fraction(a) + Fraction(b)
        assert value(kernels.two_product(a, b)) == Fraction(a) * Fraction(b)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("two_product", (1.5, 2.5)), ("add_pairs", (np.zeros(192), 1.0, 0.0, 1.0, np.zeros(64), 0.0))],
)
def test_no_multiplication_is_fused_with_an_addition(name, arguments):
    function = getattr(kernels, name).py_func
    compiled = kernels.numba.njit(function, nogil=True, error_model="numpy")  # what comes from a cache hides its code
    compiled(*arguments)
    (code,) = compiled.inspect_asm().values()
    assert "mul" in code
    assert not re.search(r"\bv?fn?m(add|sub)", code)


@pytest.mark.parametrize("operation", ["add", "subtract", "multiply", "divide"])
def test_balls_hold_what_they_should(operation):
    rng = np.random.default_rng(23)
    of = {"add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "divide": operator.truediv}[
        operation
    ]
    known = 0
    for _ in range(2000):
        a, b = random_ball(rng), random_ball(rng)
        result = getattr(kernels, operation)(a, b)
        if operation == "divide" and b.hi == 0:
            assert math.isnan(result.hi) or math.isinf(result.err)
            continue
        assert is_normal(result)
        if math.isinf(result.err):
            continue
        known += 1
        low, high = ends(result)
        for x in numbers_in(a, rng):
            for y in numbers_in(b, rng):
                assert low <= of(x, y) <= high
        if not a.err and not b.err:
            operands = abs(value(a, a.exponent)), abs(value(b, b.exponent))
            size = sum(operands) if operation in ("add", "subtract") else of(*operands)
            assert high - low <= Fraction(2) ** -102 * size
    assert known > 1500


def test_roots_hold_what_they_should():
    rng = np.random.default_rng(24)
    for _ in range(1000):
        q = random_ball(rng)
        result = kernels.root(q)
        low, high = ends(q)
        if high < 0 or low == high == 0:
            assert math.isnan(result.hi)
        elif low <= 0 or math.isinf(result.err):
            assert math.isinf(result.err)
        else:
            assert is_normal(result)
            below, above = ends(result)
            assert max(below, 0) ** 2 <= low <= high <= above**2
            if low == high:
                assert result.err <= 2.0**-100


def test_short_numbers_stay_exact():
    def exactly(v):
        return kernels.exactly(float(v))

    for a in range(-40, 41):
        for b in range(1, 41):
            for operation, of in (("add", operator.add), ("subtract", operator.sub), ("multiply", operator.mul)):
                result = getattr(kernels, operation)(exactly(a), exactly(b))
                assert result == exactly(of(a, b)), (operation, a, b)
            assert kernels.divide(exactly(a * b), exactly(b)) == exactly(a)
            is_dyadic = Fraction(a, b).denominator in (1, 2, 4, 8, 16, 32)
            assert (kernels.divide(exactly(a), exactly(b)).err == 0) == is_dyadic
        assert kernels.root(exactly(a * a + (a == 0))) == exactly(abs(a) or 1)


def test_balls_have_no_range():
    big, small = kernels.ball(1.5, 2.0**-60, 0.0, 5000), kernels.ball(-3.0, 0.0, 0.0, -7001)
    product = kernels.multiply(big, small)
    assert value(product, product.exponent) == value(big, big.exponent) * value(small, small.exponent)
    low, high = ends(kernels.add(big, small))
    assert low <= value(big, big.exponent) + value(small, small.exponent) <= high
    assert kernels.subtract(big, big) == kernels.exactly(0.0)
    assert kernels.add(kernels.exactly(1e300), kernels.exactly(math.nan)).hi != 0
    for a, b in ((big, math.nan), (math.nan, small)):
        a, b = (v if isinstance(v, kernels.Ball) else kernels.exactly(v) for v in (a, b))
        assert math.isnan(kernels.add(a, b).hi) and math.isnan(kernels.multiply(a, b).hi)


@pytest.mark.parametrize("number", [0, 1, 3, Fraction(1, 3), -Fraction(2, 7), 5e-324, 1e308, 1 - Fraction(1, 2**1074)])
def test_rational_numbers_become_balls(number):
    ball = kernels.Ball(*as_row(number))
    low, high = ends(ball)
    assert low <= Fraction(number) <= high
    assert is_normal(ball)
    assert (low == high) == (number not in (Fraction(1, 3), -Fraction(2, 7), 1 - Fraction(1, 2**1074)))
    assert ball.err < 2.0**-104


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
def test_the_last_rounding_is_one_rounding(fmt):
    rng = np.random.default_rng(24)
    form = kernels.Target(fmt.precision, fmt.emin, fmt.emax, fmt.max)
    cases = []
    for bits in (fmt.precision - 2, fmt.precision, fmt.precision + 1, 53):
        for _ in range(60):
            integer = int(rng.integers(2 ** (bits - 1), 2**bits))  # midpoints, when there is one bit too many
            exponent = int(rng.integers(fmt.emin - fmt.precision - 3, fmt.emin + 3)) - bits
            if rng.integers(2):
                exponent = int(rng.integers(-5, fmt.emax + 3)) - bits
            for lo in (0.0, 2.0**-60, -(2.0**-60), 2.0**-3, -(2.0**-3)):
                if bits < 53 or abs(lo) < 0.5:
                    cases.append((float(integer) * int(rng.choice([-1, 1])), lo, exponent))
        cases += [(2.0 ** (bits - 1), lo, fmt.emin - bits) for lo in (2.0**-60, -(2.0**-60))]
        cases += [(2.0 ** (bits - 1), lo, 3 - bits) for lo in (0.0, 2.0**-60, -(2.0**-60), -(2.0 ** (bits - 55)))]
    for hi, lo, exponent in cases:
        hi, lo = kernels.two_sum(hi, lo)
        expected = exact.round_number(value((hi, lo), exponent), 0, 1, fmt)
        assert kernels.nearest(hi, lo, exponent, form) == expected, (hi, lo, exponent)
        if abs(hi) < 2.0**60 and -900 < exponent < 900:
            narrow = kernels.narrowed(
                math.ldexp(hi, exponent), form, math.ldexp(1.5, 53 - fmt.precision), 2.0**fmt.emin
            )
            once = exact.round_number(Fraction(math.ldexp(hi, exponent)), 0, 1, fmt)
            assert fmt is BINARY64 or narrow == once, (hi, exponent)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
def test_a_ball_is_rounded_only_if_its_ends_agree(fmt):
    form = kernels.Target(fmt.precision, fmt.emin, fmt.emax, fmt.max)
    midpoint = 1.0 + fmt.unit_roundoff if fmt is not BINARY64 else 1.0
    rest = 0.0 if fmt is not BINARY64 else fmt.unit_roundoff
    assert kernels.round_ball(kernels.ball(midpoint, rest, 0.0, 0), form) == (1.0, True)
    assert not kernels.round_ball(kernels.ball(midpoint, rest, 2.0**-110, 0), form)[1]
    above = kernels.ball(midpoint, rest + 2.0**-100, 2.0**-101, 0)
    assert kernels.round_ball(above, form) == (1.0 + 2 * fmt.unit_roundoff, True)
    assert not kernels.round_ball(kernels.ball(0.0, 0.0, 2.0**-100, 0), form)[1]
    assert kernels.round_ball(kernels.exactly(0.0), form) == (0.0, True)
    assert not kernels.round_ball(kernels.unknown(), form)[1]
    tiny = kernels.round_ball(kernels.ball(-1.0, 0.0, 2.0**-60, -4000), form)
    assert tiny == (0.0, True) and math.copysign(1, tiny[0]) == -1


def padded(values):
    return np.concatenate([values, np.full(-len(values) % kernels.LANES, np.nan)])


@pytest.mark.parametrize("m", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("reach", [0, 30, 400])
def test_sums(m, reach):
    rng = np.random.default_rng(m)
    a, b = rng.standard_normal(m) * 2.0 ** rng.integers(-reach, reach + 1, m), rng.standard_normal(m)
    pivots, tensors = (0.1, -0.3), (padded(a), padded(b))
    exact_t = [[Fraction(v) - Fraction(p) for v in z.tolist()] for z, p in zip((a, b), pivots, strict=True)]
    kinds = []
    for z, p, t in zip(tensors, pivots, exact_t, strict=True):
        total, kind = kernels.total_of(z, m, p)
        low, high = ends(total)
        assert low <= sum(t) <= high
        assert high - low <= Fraction(2) ** -95 * sum(map(abs, t))
        kinds.append(kind)
    assert kinds == [kernels.FAR if np.abs(a).max() > 2.0**300 else 0, 0]
    products = [s * t for s, t in zip(*exact_t, strict=True)]
    both = tensors[0], pivots[0], tensors[1], pivots[1]
    dots = [kernels.far_dot(*both, m)]
    if not kinds[0]:
        dots.append(kernels.dot(*both))
    for found in dots:
        low, high = ends(found)
        assert low <= sum(products) <= high
        assert high - low <= Fraction(2) ** -90 * sum(map(abs, products))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_sums_of_what_is_no_number(bad):
    data = np.ones(128)
    data[70] = bad
    total, kind = kernels.total_of(data, 100, 0.0)
    assert math.isnan(total.hi)
    assert kind == kernels.FAR | kernels.INFINITE


def test_pivots():
    rng = np.random.default_rng(25)
    for m in (1, 3, 100, 4999):
        constant = rng.standard_normal()
        assert kernels.choose_pivot(np.full(m, constant)) == constant
        data = rng.standard_normal(m) + 1000
        assert data.min() - 1 <= kernels.choose_pivot(data) <= data.max() + 1
    assert kernels.choose_pivot(rng.integers(0, 256, 1000).astype(float)) % 1 == 0
    for data in ([1e308, -1e308, 1e308], [np.inf, 1.0], [np.nan], [5e-324, 0.0], [1.0, np.nan]):
        assert math.isfinite(kernels.choose_pivot(np.array(data)))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("reach", [3, 100])
def test_combinations_stay_within_their_errors(wide, reach):
    rng = np.random.default_rng(reach)
    for _ in range(10):
        data = np.array([random_floats(rng, kernels.LANES, reach) for _ in range(3)])
        pivots = random_floats(rng, 3, 3)
        coefficients = [kernels.ball(v, v * w * 2.0**-54, abs(v) * r, 0) for v, w, r in rng.uniform(-1, 1, (4, 3))]
        if rng.integers(2):  # the terms cancel
            data[1], pivots[1], coefficients[1] = data[0], pivots[0], kernels.negative(coefficients[0])
        for scale in (0.0, 2.0**-110, 2.0**-50):
            balls = [kernels.ball(a.hi, a.lo, abs(a.err) * scale, a.exponent) for a in coefficients]
            rows = [kernels.as_row(a) for a in balls]
            sums = np.zeros((3, kernels.LANES))
            sums[0], sums[1], sums[2] = rows[3][0], rows[3][1] if wide else 0.0, rows[3][3 if wide else 2]
            for (hi, lo, plain, pairs), z, p in zip(rows, data, pivots, strict=False):
                if wide:
                    kernels.add_pairs(sums.reshape(-1), hi, lo, pairs, z, p)
                else:
                    kernels.add_plain(sums.reshape(-1), hi, plain, z, p)
            for j in range(kernels.LANES):
                t = [Fraction(z) - Fraction(p) for z, p in zip(data[:, j].tolist(), pivots, strict=True)] + [1]
                centre = sum(value(a, a.exponent) * v for a, v in zip(balls, t, strict=True))
                radius = sum((ends(a)[1] - ends(a)[0]) / 2 * abs(v) for a, v in zip(balls, t, strict=True))
                hi, lo, err = (Fraction(v) for v in sums[:, j].tolist())
                assert abs(hi + lo - centre) + radius <= err
                if not scale:
                    unit = Fraction(2) ** (-98 if wide else -48)
                    size = sum(abs(value(a, a.exponent) * v) for a, v in zip(balls, t, strict=True))
                    assert err <= unit * size


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
def test_what_is_decided_is_right(fmt):
    rng = np.random.default_rng(38)
    form = kernels.Target(fmt.precision, fmt.emin, fmt.emax, fmt.max)
    out, sure = np.empty(kernels.LANES), np.empty(kernels.LANES, np.bool_)
    decided = 0
    for _ in range(60):
        bits = fmt.precision + int(rng.integers(0, 2)) if fmt is not BINARY64 else 53
        exponent = int(rng.integers(fmt.emin - 5, fmt.emax + 2)) if fmt is not BINARY64 else int(rng.integers(-99, 99))
        hi = np.ldexp(rng.integers(2 ** (bits - 1), 2**bits + 1, kernels.LANES).astype(float), exponent - bits)
        hi *= rng.choice([-1.0, 1.0, 0.0], kernels.LANES, p=[0.45, 0.45, 0.1])
        lo = np.abs(hi) * 2.0**-53 * rng.choice([0.0, 0.5, -0.25, 2.0**-40], kernels.LANES)
        hi, lo = hi + lo, lo - ((hi + lo) - hi)
        size = np.maximum(np.abs(hi), np.ldexp(1.0, exponent) * rng.integers(0, 2))
        err = size * rng.choice([0.0, 2.0**-20, 2.0**-51, 2.0**-54, 2.0**-100], kernels.LANES)
        sums = np.concatenate([hi, lo, err])
        if fmt is BINARY64:
            left = kernels.decide_binary64(sums, out, sure)
        else:
            left = kernels.decide_narrow(sums, form, out, sure)
        assert left == np.count_nonzero(~sure)
        decided += np.count_nonzero(sure)
        for j in np.flatnonzero(sure):
            centre, radius = Fraction(hi[j]) + Fraction(lo[j]), Fraction(err[j]) * (1 - Fraction(1, 2**41))
            for end in (centre - radius, centre + radius):
                expected = exact.round_number(end, 0, 1, fmt)
                assert out[j] == expected, (hi[j], lo[j], err[j])
                assert math.copysign(1, out[j]) == math.copysign(1, expected)
    assert decided > 60 * kernels.LANES / 4


def test_works_without_a_cache_folder(monkeypatch):
    njit = kernels.numba.njit

    def without_cache(function, *, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(function, **options)

    monkeypatch.setattr(kernels.numba, "njit", without_cache)
    assert kernels.jit(lambda a: a + 1)(2) == 3
