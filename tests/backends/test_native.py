import inspect
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

from refbn import exact, reference
from refbn._formats import BFLOAT16, BINARY16, BINARY32, BINARY64, FORMATS, format_of, load, round_to
from refbn.reference import bounds

pytest.importorskip("refbn._native", exc_type=ImportError)

from refbn import _native
from refbn.backends import native

TRAINING = ("forward", "backward", "jvp", "double_backward", "hvp")
FROZEN = ("inference", "inference_backward", "inference_jvp", "inference_double_backward", "inference_hvp")
TENSOR_OUTPUTS = {"y", "y_dot", "dx", "ddy"}
# One name for what goes in at one place of the formulas, whichever pass it is.
PLACE = {"ddx": "x_dot", "ddgamma": "gamma_dot", "ddbeta": "beta_dot", "ddmean": "mean_dot", "ddvar": "var_dot"}
UNIFORM = [(f, f, f) for f in FORMATS]
MIXED = [  # of x, of the other tensors, of the vectors
    (BINARY16, BINARY32, BINARY32),
    (BFLOAT16, BINARY32, BFLOAT16),
    (BINARY32, BINARY64, BINARY32),
    (BINARY64, BINARY16, BINARY32),
    (BFLOAT16, BINARY16, BINARY64),
]


@pytest.fixture(params=_native.builds, ids=lambda build: build.name)
def build(request, monkeypatch):
    """Every instruction set that this machine has."""
    monkeypatch.setattr(native, "_core", request.param)
    return request.param


def short(formats):
    return "-".join(f.short for f in formats)


# ---- layouts: canonical views of the same numbers -----------------------------------------------------------------


def contiguous(array):
    return np.ascontiguousarray(array)


def channels_last(array):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 0, -1)), -1, 0)


def batch_first(array):
    return np.swapaxes(np.ascontiguousarray(np.swapaxes(array, 0, 1)), 0, 1)


def sliced(array):
    wide = np.empty(tuple(2 * n + 1 for n in array.shape), array.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def transposed(array):
    return np.ascontiguousarray(array.T).T


def reversed_axes(array):
    backwards = tuple(slice(None, None, -1) for _ in array.shape)
    return np.ascontiguousarray(array[backwards])[backwards]


def unaligned(array):
    room = np.empty(array.nbytes + 1, np.uint8)
    view = room[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


LAYOUTS = (contiguous, channels_last, batch_first, sliced, transposed, reversed_axes, unaligned)


# ---- calls and what they are held to ---------------------------------------------------------------------------


def make_case(seed, shape, formats=UNIFORM[2], eps=1e-3):
    """Groups of several kinds in turn: normal, far from zero, constant, of few values, with an outlier."""
    rng = np.random.default_rng(seed)
    of_x, of_tensors, of_vectors = formats
    groups, values = shape[0], {"eps": eps}
    for place in ("x", "dy", "x_dot"):
        tensor = rng.standard_normal(shape)
        flat = tensor.reshape(groups, -1)
        flat[1::5] += 2.0 ** (6 if min(of_x.precision, of_tensors.precision) < 24 else 18)
        flat[2::5] = flat[2::5, :1]
        flat[3::5] = np.round(flat[3::5])
        flat[4::5, 0] *= 2.0**8
        values[place] = round_to(tensor, (of_x if place == "x" else of_tensors).dtype)
    for place in ("gamma", "beta", "mean", "var", "gamma_dot", "beta_dot", "mean_dot", "var_dot"):
        vector = rng.standard_normal(groups)
        values[place] = round_to(np.abs(vector) if place == "var" else vector, of_vectors.dtype)
    return values


def parameters(function, kind):
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind is kind]


def run(pass_name, values, state=None, layout=contiguous, formats=None):
    """Call a pass of the contract on laid-out copies; return its outputs by name, and what it returned."""
    function = getattr(native, pass_name)
    if state is None and pass_name not in ("forward", "inference"):
        _, state = run("inference" if pass_name in FROZEN else "forward", values, layout=layout)
    arguments = []
    for name in parameters(function, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        value = state if name == "state" else values[PLACE.get(name, name)]
        arguments.append(value if name in ("state", "eps") else layout(value) if value.ndim > 1 else value)
    outputs = {}
    for name in parameters(function, inspect.Parameter.KEYWORD_ONLY):
        like = values["x" if name in TENSOR_OUTPUTS else "gamma"]
        dtype = formats[name].dtype if formats else like.dtype
        unwritten = np.full(like.shape, -7.0).astype(dtype)
        outputs[name] = layout(unwritten) if name in TENSOR_OUTPUTS else unwritten
    return outputs, function(*arguments, **outputs)


def flat(values):
    return {k: v.reshape(len(v), -1) if np.ndim(v) > 1 else v for k, v in values.items()}


def truth_of(pass_name, values):
    function, values = getattr(exact, pass_name), flat(values)
    names = [n for n in inspect.signature(function).parameters if PLACE.get(n, n) in values]
    if pass_name.endswith("hvp"):
        names.remove("beta_dot")  # it does not take part, and the contract's pass does not get it
    result = function(**{name: values[PLACE.get(name, name)] for name in names})
    return {"y_dot": result} if isinstance(result, exact.ExactArray) else result._asdict()


def bounds_of(pass_name, values, formats):
    wide = {k: v if k == "eps" else load(v) for k, v in flat(values).items()}
    frozen = reference.inference(*(wide[k] for k in ("x", "mean", "var", "gamma", "beta", "eps"))).stats
    wide["stats"] = frozen if pass_name in FROZEN else reference.statistics(wide["x"], wide["eps"])
    function = getattr(bounds, pass_name)
    names = parameters(function, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    u, depth = native.arithmetic(formats)
    return function(*(wide[PLACE.get(name, name)] for name in names), u=u, depth=depth)


def excess(got, truth, bound):
    """By how much |got − truth| exceeds half an ulp of the truth and the bound, in ulps; at most 0 is right."""
    fmt = format_of(got.dtype)
    hi, lo = truth.pair()
    got = got.astype(np.float64).reshape(hi.shape)
    assert not np.isnan(got).any() and np.isfinite(bound).all()
    overflown = np.isinf(got)
    assert (np.copysign(hi, got) == hi)[overflown].all()
    assert (np.abs(hi) + bound >= (2.0 - fmt.unit_roundoff) * 2.0**fmt.emax)[overflown].all()
    got = np.where(overflown, hi, got)
    exponent = np.maximum(np.frexp(hi)[1], fmt.emin + 1)
    ulp = np.ldexp(1.0, exponent - fmt.precision)
    return np.max((np.abs((got - hi) - lo) - bound) / ulp - 0.5, initial=-1.0)


def assert_within_bounds(pass_name, values, formats, layout=contiguous, output_formats=None):
    outputs, _ = run(pass_name, values, layout=layout, formats=output_formats)
    if output_formats:
        formats = {*formats, *output_formats.values()}
    truth, bound = truth_of(pass_name, values), bounds_of(pass_name, values, formats)
    for name, got in outputs.items():
        # 2^-20 ulp for what `excess` itself rounds
        assert excess(got, truth[name], bound[name]) <= 2.0**-20, (pass_name, name, layout.__name__)


@pytest.mark.parametrize("m", [1, 2, 3, 17, 63, 64, 65, 200])
@pytest.mark.parametrize("formats", UNIFORM + MIXED, ids=short)
@pytest.mark.parametrize("pass_name", TRAINING + FROZEN)
def test_within_the_bound(pass_name, formats, m):
    values = make_case(m, (5 if m % 2 else 9, m), formats)
    assert_within_bounds(pass_name, values, formats)


@pytest.mark.parametrize("formats", [UNIFORM[2], UNIFORM[3]], ids=short)
@pytest.mark.parametrize("pass_name", ["forward", "double_backward", "inference_double_backward"])
def test_within_the_bound_over_many_tiles(pass_name, formats, build):
    for shape in ((5, 1025), (2, 5000), (9, 1100)):
        assert_within_bounds(pass_name, make_case(1, shape, formats), formats)
    assert_within_bounds(pass_name, make_case(2, (9, 1100), formats), formats, channels_last)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (9, 2, 7, 9), (70, 3, 1, 2)], ids=str)
@pytest.mark.parametrize("formats", [*UNIFORM, MIXED[0]], ids=short)
def test_layouts(layout, shape, formats):
    values = make_case(3, shape, formats)
    for pass_name in ("double_backward", "forward", "inference_double_backward"):
        assert_within_bounds(pass_name, values, formats, layout)


def test_every_tensor_may_have_its_own_layout():
    formats = (BINARY32, BINARY64, BINARY32)
    values = make_case(4, (20, 3, 4, 5), formats)
    plain, state = run("forward", values)
    expected, _ = run("double_backward", values, state)
    ddy, dx, dgamma = (np.empty_like(a) for a in expected.values())
    native.double_backward(
        state,
        channels_last(values["x"]),
        sliced(values["gamma"]),
        reversed_axes(values["dy"]),
        batch_first(values["x_dot"]),
        values["gamma_dot"][::-1].copy()[::-1],
        values["beta_dot"],
        ddy=ddy,
        dx=dx,
        dgamma=dgamma,
    )
    for got, name in ((ddy, "ddy"), (dx, "dx"), (dgamma, "dgamma")):
        np.testing.assert_array_equal(got, expected[name], name)
    assert plain["y"].dtype == np.float32


@pytest.mark.parametrize("shape", [(3, 40), (20, 2, 40)], ids=str)
def test_broadcast_inputs(shape):
    """A stride of zero: over all axes, over some, over the groups."""
    values = make_case(5, shape)
    for dy in (np.float32(0.75), values["dy"][:, :1], values["dy"][:1]):
        values["dy"] = np.broadcast_to(dy, shape)
        for pass_name in ("backward", "hvp", "inference_backward"):
            laid_out, _ = run(pass_name, values, layout=lambda a: a if 0 in a.strides else a.copy())
            copied, _ = run(pass_name, values | {"dy": values["dy"].copy()})
            for name, got in laid_out.items():
                np.testing.assert_allclose(got, copied[name], rtol=1e-6, atol=1e-9)


def test_hundreds_of_groups():
    values = make_case(6, (700, 4), (BINARY32, BINARY32, BINARY32))
    for pass_name in ("forward", "backward"):
        assert_within_bounds(pass_name, values, (BINARY32,), channels_last)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
def test_outputs_of_other_formats(fmt):
    values = make_case(7, (5, 40), UNIFORM[2])
    for pass_name in ("forward", "double_backward", "inference_hvp"):
        names = parameters(getattr(native, pass_name), inspect.Parameter.KEYWORD_ONLY)
        assert_within_bounds(pass_name, values, UNIFORM[2], output_formats=dict.fromkeys(names, fmt))


@pytest.mark.parametrize("pass_name", TRAINING)
@pytest.mark.parametrize("formats", [UNIFORM[2], UNIFORM[3], MIXED[2]], ids=short)
def test_every_build_gives_the_same_bits(pass_name, formats, monkeypatch):
    results = []
    for some in _native.builds:
        monkeypatch.setattr(native, "_core", some)
        for shape in ((3, 700), (20, 90)):
            results.append(run(pass_name, make_case(8, shape, formats), layout=channels_last)[0])
    for index, got in enumerate(results):
        for name, value in got.items():
            assert value.tobytes() == results[index % 2][name].tobytes(), name


def test_a_coarse_state_is_refined():
    """The forward ran in binary64; dy in binary64 asks for more than its state holds."""
    values = make_case(9, (10, 50), (BINARY32, BINARY64, BINARY32))
    for pass_name in ("backward", "jvp", "double_backward", "hvp"):
        names = parameters(getattr(native, pass_name), inspect.Parameter.KEYWORD_ONLY)
        assert_within_bounds(pass_name, values, FORMATS, output_formats=dict.fromkeys(names, BINARY64))


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("weighs_new", [False, True])
@pytest.mark.parametrize("formats", UNIFORM, ids=short)
def test_running_update(formats, weighs_new, unbiased):
    values = make_case(10, (11, 7), formats)
    momentum = Fraction(1, 10)
    _, state = run("forward", values)
    out = {name: np.empty_like(values["mean"]) for name in ("out_mean", "out_var")}
    native.running_update(state, values["x"], momentum, weighs_new, unbiased, values["mean"], values["var"], **out)
    blended = [load(values[k]) for k in ("mean", "var")]
    moments = exact.moments(values["x"])
    truth = exact.running_update(moments, 7, momentum, weighs_new, unbiased, values["mean"], values["var"])
    u, depth = native.arithmetic(formats)
    stats = reference.statistics(load(values["x"]), values["eps"])
    bound = bounds.running_update(stats, 7, momentum, weighs_new, unbiased, *blended, u=u, depth=depth)
    assert excess(out["out_mean"], truth[0], bound["mean"]) <= 2.0**-20
    assert excess(out["out_var"], truth[1], bound["var"]) <= 2.0**-20


# ---- exponents that double-double cannot hold ------------------------------------------------------------------


@pytest.mark.parametrize("groups", [3, 12])
@pytest.mark.parametrize("exponent", [-1040, -900, -300, 300, 500, 1000])
def test_wide_exponents_round_like_the_oracle(groups, exponent):
    values = make_case(11, (groups, 40), UNIFORM[3], eps=2.0**-1070 if exponent < -500 else 1e-5)
    rng = np.random.default_rng(12)
    for place in ("x", "dy", "x_dot"):
        values[place] = np.ldexp(rng.integers(-500, 500, (groups, 40)) / 4.0, exponent if place == "x" else 0)
    values["dy"][0] = np.ldexp(values["dy"][0], -900)
    values["mean"] = values["x"][:, 0].copy()
    values["var"] = np.ldexp(values["var"], max(-1000, min(1000, 2 * exponent)))
    for pass_name in ("forward", "backward", "double_backward", "inference", "inference_double_backward"):
        outputs, _ = run(pass_name, values)
        truth = truth_of(pass_name, values)
        for name, got in outputs.items():
            expected = truth[name].round(np.float64)
            with np.errstate(invalid="ignore"):  # of two infinities
                np.testing.assert_array_max_ulp(got.reshape(expected.shape), expected, 1)


def test_a_tiny_group_beside_a_large_one():
    """The range is judged group by group, also where one slab holds many."""
    values = make_case(13, (12, 20), UNIFORM[3], eps=0.0)
    values["x"] = np.random.default_rng(14).standard_normal((12, 20))
    plain = run("forward", values)[0]
    scaled = values | {"x": np.ldexp(values["x"], np.arange(12)[:, None] * -80)}
    got = run("forward", scaled)[0]
    np.testing.assert_array_equal(got["y"], plain["y"])
    np.testing.assert_array_equal(got["mean"], np.ldexp(plain["mean"], np.arange(12) * -80))


@pytest.mark.parametrize("eps", [5e-324, 1e-200, 1e200, 1.7e308])
@pytest.mark.parametrize("fmt", [BINARY32, BINARY64], ids=lambda f: f.short)
def test_any_eps(eps, fmt):
    values = make_case(15, (10, 9), (fmt, fmt, fmt), eps=eps)
    for pass_name in ("forward", "backward", "double_backward", "inference", "inference_hvp"):
        truth = truth_of(pass_name, values)
        for name, got in run(pass_name, values)[0].items():
            expected = truth[name].round(fmt.dtype)
            np.testing.assert_array_max_ulp(got.reshape(expected.shape), expected, 1)


# ---- conversion ------------------------------------------------------------------------------------------------


def identity(x, dtype):
    """Send x through (I1) with mean 0, var 1, gamma 1, beta 0: y is x, converted."""
    one, zero = np.ones((1,), np.float32), np.zeros((1,), np.float32)
    y, invstd = np.empty((1, x.size), dtype), np.empty((1,), np.float32)
    native.inference(x.reshape(1, -1), zero, one, one, zero, 0.0, y=y, invstd=invstd)
    return y[0]


def assert_same_numbers(got, expected):
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(got[known].view(f"u{got.itemsize}"), expected[known].view(f"u{got.itemsize}"))


@pytest.mark.parametrize("fmt", [BINARY16, BFLOAT16], ids=lambda f: f.short)
@pytest.mark.parametrize("to", [BINARY32, BINARY64], ids=lambda f: f.short)
@np.errstate(invalid="ignore")  # ml_dtypes warns of signalling NaNs
def test_conversion_from_every_half(fmt, to, build):
    x = np.arange(2**16, dtype=np.uint16).view(fmt.dtype)
    assert_same_numbers(identity(x, to.dtype), load(x).astype(to.dtype) + to.dtype.type(0))


@pytest.mark.parametrize("fmt", [BINARY16, BFLOAT16], ids=lambda f: f.short)
@pytest.mark.parametrize("source", [BINARY32, BINARY64], ids=lambda f: f.short)
@np.errstate(invalid="ignore", over="ignore")
def test_conversion_to_halves_at_every_boundary(fmt, source, build):
    """Every number of the format, every midpoint between two, and both neighbours of each."""
    halves = np.arange(2**15, dtype=np.uint16).view(fmt.dtype)
    numbers = np.append(load(halves[np.isfinite(halves)]), 2.0 ** (fmt.emax + 1))
    middles = (numbers[1:] + numbers[:-1]) / 2
    points = np.concatenate([numbers, middles]).astype(source.dtype)
    exactly = points[np.isfinite(points)]
    everything = np.concatenate([exactly, np.nextafter(exactly, np.inf), np.nextafter(exactly, -np.inf)])
    everything = everything[np.isfinite(everything)]
    for x in (everything, -everything):
        expected = round_to(x.astype(np.float64), fmt.dtype)
        expected[np.asarray(x == 0)] = 0  # R4
        assert_same_numbers(identity(x, fmt.dtype), expected)


@pytest.mark.parametrize("to", FORMATS, ids=lambda f: f.short)
def test_conversion_of_random_bits(to, build):
    bits = np.random.default_rng(16).integers(0, 2**64, 20000, dtype=np.uint64)
    x = bits.view(np.float64)
    expected = round_to(load(x), to.dtype)
    assert_same_numbers(identity(x, to.dtype), expected)
    x = np.concatenate([5e-324 * np.arange(1, 50), 2.2250738585072014e-308 * np.arange(0.1, 3, 0.01)])
    assert_same_numbers(identity(x, to.dtype), round_to(x, to.dtype))


# ---- structure and edges ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
@pytest.mark.parametrize("shape", [(3, 1), (3, 1500), (12, 1), (12, 7), (12, 300)], ids=str)
def test_constant_inputs_vanish_exactly(fmt, shape):
    values = make_case(17, shape, (fmt, fmt, fmt))
    values["dy"] = np.full(shape, 0.7).astype(fmt.dtype)
    outputs, _ = run("backward", values)
    for name in ("dx", "dgamma"):
        assert_same_numbers(outputs[name].ravel(), np.zeros(outputs[name].size, fmt.dtype))
    constant_dy, _ = run("double_backward", values)
    assert_same_numbers(constant_dy["dgamma"], np.zeros(shape[0], fmt.dtype))
    assert_same_numbers(constant_dy["dx"].ravel(), np.zeros(constant_dy["dx"].size, fmt.dtype))


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
@pytest.mark.parametrize("groups", [3, 12])
def test_special_values_stay_in_their_group(fmt, groups):
    clean = make_case(18, (groups, 30), (fmt, fmt, fmt))
    for pass_name in TRAINING:
        before, _ = run(pass_name, clean)
        for special in (np.inf, -np.inf, np.nan):
            poisoned = clean | {"x": clean["x"].copy()}
            poisoned["x"][1, 4] = special
            after, _ = run(pass_name, poisoned)
            others = np.arange(groups) != 1
            for name, got in after.items():
                np.testing.assert_array_equal(got[others], before[name][others], name)
                assert name == "dbeta" or np.isnan(got[1]).all(), (pass_name, name)


@pytest.mark.parametrize("groups", [3, 12])
def test_no_elements(groups):
    values = make_case(19, (groups, 1))
    empty = values | {place: values[place][:, :0] for place in ("x", "dy", "x_dot")}
    for pass_name in ("inference_backward", "inference_double_backward", "inference_hvp"):
        for name, got in run(pass_name, empty)[0].items():
            assert got.shape == (groups, 0) if name in TENSOR_OUTPUTS else not got.any()


# ---- the wrapper ------------------------------------------------------------------------------------------------


def test_builds_end_with_the_one_that_runs_everywhere():
    assert [b.name for b in _native.builds][-1] == "baseline"
    assert native._core is _native.builds[0]


def test_arithmetic():
    assert native.arithmetic([BINARY16, BINARY32]) == (2.0**-53, 24)
    assert native.arithmetic([BINARY32, BINARY64])[0] == 2.0**-103


def test_the_wrapper_refuses_what_would_leave_the_arrays():
    values = make_case(20, (4, 6))
    x, vector = values["x"], values["gamma"]
    state = run("forward", values)[1]

    dx, dgamma, dbeta = x.copy(), vector.copy(), vector.copy()

    def backward(state=state, x=x, gamma=vector, dy=x, dx=dx, dgamma=dgamma):
        native.backward(state, x, gamma, dy, dx=dx, dgamma=dgamma, dbeta=dbeta)

    backward()
    read_only = x.copy()
    read_only.setflags(write=False)
    for wrong in (
        {"x": x[:, :5]},
        {"dy": x[:3]},
        {"dx": np.empty((4, 3, 2), np.float32)},
        {"gamma": vector[:3]},
        {"dgamma": np.empty((4, 1), np.float32)},
        {"state": state[:3]},
        {"state": state[:, :3].copy()},
        {"dx": read_only},
        {"x": vector},
        {"x": x.astype(x.dtype.newbyteorder("S"))},
        {"state": state.astype(np.float32)},
        {"state": state[:, ::-1]},
    ):
        with pytest.raises(ValueError):
            backward(**wrong)
    for wrong in (
        {"x": x.astype(np.int32)},
        {"dy": x.astype(np.int16)},
        {"gamma": vector.astype(complex)},
        {"gamma": vector.tolist()},
        {"dx": None},
        {"state": None},
    ):
        with pytest.raises(TypeError):
            backward(**wrong)


def test_threads_do_not_disturb_each_other():
    cases = [make_case(seed, (24, 500), UNIFORM[seed % 4]) for seed in range(8)]
    alone = [run("double_backward", case)[0] for case in cases]
    with ThreadPoolExecutor(4) as pool:
        together = [outputs for outputs, _ in pool.map(lambda case: run("double_backward", case), cases)]
    for one, other in zip(alone, together, strict=True):
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)
