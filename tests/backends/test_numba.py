import inspect
import math
from fractions import Fraction

import numpy as np
import pytest

from refbn import exact, reference
from refbn._formats import BFLOAT16, BINARY16, BINARY32, BINARY64, FORMATS, format_of, load, round_to
from refbn.reference import bounds

pytest.importorskip("numba")

from refbn.backends import _numba_kernels as kernels
from refbn.backends import numba as backend

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
W = Fraction(1, 2**53)


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


def bounds_of(pass_name, case, formats):
    """The stated bounds on errors before the last rounding, by name."""
    flat = {}
    for name, value in case.items():
        flat[name] = value if name == "eps" else load(value)
        if name in TENSORS:
            flat[name] = flat[name].reshape(len(value), -1)
    statistics = [flat[name] for name in ("x", "mean", "var", "gamma", "beta", "eps")]
    flat["stats"] = (
        reference.inference(*statistics).stats if pass_name in FROZEN else reference.statistics(flat["x"], flat["eps"])
    )
    function = getattr(bounds, pass_name)
    arguments = [flat[name] for name in names(function, inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    u, depth = backend.arithmetic(formats)
    return function(*arguments, u=u, depth=depth)


def assert_within(got, truth, bound):
    """Check that got is a rounding to nearest of a number within the bound of the truth."""
    fmt = format_of(got.dtype)
    hi, lo = truth.pair()
    got = got.astype(np.float64).reshape(hi.shape)
    assert np.isfinite(bound).all()
    assert not np.isnan(got).any()
    overflowed = np.isinf(got)
    edge = (2.0 - fmt.unit_roundoff) * 2.0**fmt.emax
    assert (np.abs(hi) + bound >= edge)[overflowed].all()
    _, exponent = np.frexp(hi)
    ulp = np.ldexp(1.0, np.maximum(exponent - fmt.precision, fmt.emin - fmt.precision + 1))
    # got − hi is exact or far larger than the bound; 2^−40 covers the subtraction of lo.
    error = np.abs(np.where(overflowed, 0.0, got - hi - lo))
    assert (error <= (0.5 + 2.0**-40) * ulp + bound).all(), np.max((error - bound) / ulp)


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "-".join(f.short for f in mix))
@pytest.mark.parametrize("m", [1, 2, 3, 70])
def test_within_the_stated_bound(pass_name, mix, m):
    case = make_case(m, m, *mix)
    outputs, _ = call(pass_name, case)
    truth, bound = truth_of(pass_name, case), bounds_of(pass_name, case, mix)
    for name, got in outputs.items():
        assert_within(got, truth[name], bound[name])


@pytest.mark.parametrize("mix", MIXES[:2], ids=lambda mix: mix[0].short)
@pytest.mark.parametrize("m", [2048, 5000])
def test_several_blocks(mix, m):
    case = make_case(m, m, *mix)
    for pass_name in ("forward", "double_backward", "inference_double_backward"):
        outputs, _ = call(pass_name, case)
        truth, bound = truth_of(pass_name, case), bounds_of(pass_name, case, mix)
        for name, got in outputs.items():
            assert_within(got, truth[name], bound[name])


@pytest.mark.parametrize("pass_name", PASSES)
def test_binary64_is_correctly_rounded_where_nothing_cancels(pass_name):
    # The bound leaves about 2^−40 ulp around midpoints; none of these fixed data come so close to one.
    case = {
        name: a if name == "eps" else a[[0, 1, 3, 4, 5]] for name, a in make_case(9, 40, BINARY64, BINARY64).items()
    }
    outputs, _ = call(pass_name, case)
    truth = truth_of(pass_name, case)
    for name, got in outputs.items():
        np.testing.assert_array_equal(got, truth[name].round("float64").reshape(got.shape), err_msg=name)


def test_the_check_can_fail():
    case = make_case(1, 30, BINARY32, BINARY32)
    outputs, _ = call("backward", case)
    truth, bound = truth_of("backward", case), bounds_of("backward", case, MIXES[1])
    with pytest.raises(AssertionError):
        assert_within(outputs["dx"] * np.float32(1 + 2.0**-22), truth["dx"], bound["dx"])


@pytest.mark.parametrize("pass_name", ["forward", "double_backward", "inference_hvp"])
@pytest.mark.parametrize("narrow", [BINARY16, BFLOAT16, BINARY32])
def test_wide_results_are_rounded_once_to_narrow_outputs(pass_name, narrow):
    case = make_case(5, 33, BINARY64, BINARY64)
    formats = dict.fromkeys(outputs_of(pass_name), narrow)
    outputs, _ = call(pass_name, case, **formats)
    truth = truth_of(pass_name, case)
    for name, got in outputs.items():
        np.testing.assert_array_equal(
            got[[0, 1, 3, 4, 5]], truth[name].round(narrow.dtype)[[0, 1, 3, 4, 5]], err_msg=name
        )


def test_statistics_are_wide_for_later_wide_passes():
    case = make_case(6, 50, BINARY32, BINARY32)
    _, state = call("forward", case)
    mixed = case | {"dy": make_case(7, 50, BINARY64, BINARY64)["dy"]}
    outputs, _ = call("backward", mixed, state, dx=BINARY64, dgamma=BINARY64, dbeta=BINARY64)
    truth, bound = truth_of("backward", mixed), bounds_of("backward", mixed, (BINARY64,))
    for name, got in outputs.items():
        assert_within(got, truth[name], bound[name])


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("weighs_new", [False, True])
@pytest.mark.parametrize("momentum", [Fraction(0), Fraction(0.1), Fraction(1)])
@pytest.mark.parametrize("mix", MIXES[:2], ids=lambda mix: mix[0].short)
def test_running_update(unbiased, weighs_new, momentum, mix):
    case = make_case(8, 20, *mix)
    _, state = call("forward", case)
    old = case["running_mean"], np.abs(case["running_var"])
    got = np.empty_like(old[0]), np.empty_like(old[1])
    backend.running_update(state, momentum, weighs_new, unbiased, *old, out_mean=got[0], out_var=got[1])
    truth = exact.running_update(exact.moments(case["x"]), 20, momentum, weighs_new, unbiased, *old)
    u, depth = backend.arithmetic(mix)
    bound = bounds.running_update(
        reference.statistics(load(case["x"]), case["eps"]),
        20,
        momentum,
        weighs_new,
        unbiased,
        *(load(v) for v in old),
        u=u,
        depth=depth,
    )
    assert_within(got[0], truth.mean, bound["mean"])
    assert_within(got[1], truth.var, bound["var"])


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


def random_floats(rng, n, reach):
    return [float(v) for v in np.ldexp(rng.uniform(-1, 1, n), rng.integers(-reach, reach, n))]


def test_error_free_transformations():
    # They fail if the compiler contracts a·b + c or reassociates.
    rng = np.random.default_rng(22)
    for a, b in zip(random_floats(rng, 300, 60), random_floats(rng, 300, 60), strict=True):
        assert value(kernels.two_sum(a, b)) == Fraction(a) + Fraction(b)
        assert value(kernels.two_product(a, b)) == Fraction(a) * Fraction(b)


def test_pair_operations_keep_their_bounds():
    rng = np.random.default_rng(23)
    for hi, tail, other, rest in zip(*(random_floats(rng, 300, 40) for _ in range(4)), strict=True):
        a, b = kernels.two_sum(hi, tail * hi * 2.0**-93), kernels.two_sum(other, rest * other * 2.0**-93)
        x, y = value(a), value(b)
        assert abs(value(kernels.pair_add(*a, *b)) - (x + y)) <= 3 * W**2 * (abs(x) + abs(y))
        assert abs(value(kernels.pair_multiply(*a, *b)) - x * y) <= 8 * W**2 * abs(x * y)
        assert abs(value(kernels.pair_divide(*a, *b)) - x / y) <= 12 * W**2 * abs(x / y)
        if x > 0:
            root = value(kernels.pair_root(*a))
            # root² = x·(1 + 2δ + δ²)
            assert abs(root * root - x) <= (10 * W**2 + 25 * W**4) * x


def test_numbers_have_no_range():
    big = kernels.number(1.5, 2.0**-60, 5000)
    small = kernels.number(-3.0, 0.0, -7001)
    product = kernels.multiply(big, small)
    assert value(product[:2], product.exponent) == value((1.5, 2.0**-60), 5000) * value((-3.0, 0.0), -7001)
    assert kernels.add(big, small) == big
    assert kernels.subtract(big, big) == kernels.ZERO
    root = kernels.inverse_root(kernels.number(0.25, 0.0, -6001))
    assert abs(value(root[:2], root.exponent) ** 2 * value((0.25, 0.0), -6001) - 1) < 40 * W**2
    assert math.isnan(kernels.inverse_root(kernels.ZERO).hi)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
def test_the_last_rounding_is_one_rounding(fmt):
    rng = np.random.default_rng(24)
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
    for hi, lo, exponent in cases:
        hi, lo = kernels.two_sum(hi, lo)
        got = kernels.to_binary64(hi, lo, exponent, fmt is not BINARY64)
        rounded = float(round_to(np.array([got]), fmt.dtype)[0])
        assert rounded == exact.round_number(value((hi, lo), exponent), 0, 1, fmt), (hi, lo, exponent)


@pytest.mark.parametrize("kind", [kernels.TOTAL, kernels.PLAIN, kernels.WIDE])
@pytest.mark.parametrize("m", [0, 1, 63, 64, 65, 2047, 2048, 2049, 5000, 20000])
def test_sums(kind, m):
    rng = np.random.default_rng(m)
    a, b = rng.standard_normal(m) * 2.0 ** rng.integers(-30, 30, m), rng.standard_normal(m)
    shifts = 0.1, -0.3
    got = kernels.block_sum(a, shifts[0], b, shifts[1], kind)
    left, right = ([Fraction(v) - Fraction(c) for v in u.tolist()] for u, c in zip((a, b), shifts, strict=True))
    terms = left if kind == kernels.TOTAL else [p * q for p, q in zip(left, right, strict=True)]
    u, depth = backend.arithmetic([BINARY32 if kind == kernels.PLAIN else BINARY64])
    relative = Fraction(u) * (depth + (0 if kind == kernels.TOTAL else 3))  # two differences, one product
    assert abs(value(got[:2], got.exponent) - sum(terms)) <= relative * sum(map(abs, terms))


def test_the_mean_of_a_constant_is_that_constant():
    rng = np.random.default_rng(25)
    for m in (3, 7, 100, 2050, 4999):
        constant = rng.standard_normal()
        vector = kernels.centred(np.full(m, constant))
        assert vector.shift == constant
        assert vector.rest == kernels.ZERO


def test_works_without_a_cache_folder(monkeypatch):
    njit = kernels.numba.njit

    def without_cache(function, *, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(function, **options)

    monkeypatch.setattr(kernels.numba, "njit", without_cache)
    assert kernels.jit(lambda a: a + 1)(2) == 3
