"""The correctly rounded backends, with every build of the C core, against the oracle: bit for bit, canonical arrays."""

import sys
from fractions import Fraction

import numpy as np
import pytest

from refbn import backends
from refbn._formats import BFLOAT16, BINARY16, BINARY32, BINARY64, FORMATS
from tests.backends.problems import (
    CONTAINS,
    FROZEN,
    LAYOUTS,
    MIXED,
    PASSES,
    TENSORS,
    TRAINED,
    UNIFORM,
    assert_same_bits,
    call,
    chosen,
    each_format,
    in_layout,
    laid_out,
    make_problem,
    outputs_of,
    run,
    short,
    truth,
)

try:
    from refbn import _native
except ImportError:
    BUILDS = {}
else:
    BUILDS = {f"native-{build.name}": build for build in _native.builds}


@pytest.fixture(params=[*BUILDS, "numba"])
def backend(request, monkeypatch):
    """Every backend that is correctly rounded; native with each instruction set that this machine has."""
    if request.param == "numba":
        pytest.importorskip("numba")
        return backends.load("numba")
    native = backends.load("native")
    monkeypatch.setattr(native, "_core", BUILDS[request.param])
    return native


def assert_every_bit(backend, problem, passes=PASSES, *, layout="groups first", formats=None):
    found = run(backend, problem, passes, layout=layout, formats=formats)
    assert_same_bits(found, truth(problem, passes, formats=formats), layout)


# ---- sizes, formats, layouts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 200])
@pytest.mark.parametrize("formats", UNIFORM + MIXED, ids=short)
def test_sizes_and_formats(backend, formats, m):
    """With six groups and with nine, of which the C core takes several at once."""
    assert_every_bit(backend, make_problem(m, (6, m), formats))
    assert_every_bit(backend, make_problem(m, (9, m), formats), layout="groups last")


@pytest.mark.parametrize("formats", [*UNIFORM[2:], MIXED[2]], ids=short)
@pytest.mark.parametrize(("shape", "layout"), [((6, 1025), "groups first"), ((12, 1100), "groups last")], ids=str)
def test_many_tiles(backend, formats, shape, layout):
    passes = ("forward", "backward", "double_backward", "inference_double_backward")
    assert_every_bit(backend, make_problem(1, shape, formats), passes, layout=layout)


@pytest.mark.parametrize("groups", [8, 63, 64, 65, 130])
@pytest.mark.parametrize("fmt", [BFLOAT16, BINARY32, BINARY64], ids=lambda fmt: fmt.short)
def test_many_groups(backend, groups, fmt):
    problem = make_problem(groups, (groups, 4), (fmt, fmt, fmt))
    for layout in ("groups first", "groups last"):
        assert_every_bit(backend, problem, layout=layout)


NARROW_WIDE_MIXED = [UNIFORM[2], UNIFORM[3], MIXED[2]]


@pytest.mark.parametrize("formats", NARROW_WIDE_MIXED, ids=short)
@pytest.mark.parametrize(
    "shape", [(5, 9, 49), (3, 5, 33), (2, 33, 8), (2, 3, 70), (3, 2, 1057), (2, 3, 4, 35)], ids=str
)
def test_short_runs_of_memory(backend, formats, shape):
    """A run may end inside a row of the kernels, and many runs fit into a tile."""
    assert_every_bit(backend, make_problem(11, shape, formats), layout="samples first")


@pytest.mark.parametrize("formats", NARROW_WIDE_MIXED, ids=short)
@pytest.mark.parametrize(
    "shape", [(2, 96), (3, 160), (5, 64), (8, 72), (12, 48), (20, 34), (32, 70), (33, 40)], ids=str
)
def test_few_dense_groups(backend, formats, shape):
    """A row of the kernels may hold several elements of each group."""
    assert_every_bit(backend, make_problem(12, shape, formats), layout="groups last")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(6, 2, 3, 4), (9, 2, 7, 3), (70, 3, 1, 2)], ids=str)
@pytest.mark.parametrize("formats", [*UNIFORM, MIXED[0], MIXED[4]], ids=short)
def test_layouts(backend, formats, shape, layout):
    problem = laid_out(make_problem(10, shape, formats), layout)
    before = {name: value.copy() for name, value in problem.items() if isinstance(value, np.ndarray)}
    passes = ("forward", "double_backward", "inference_double_backward")
    found = run(backend, problem, passes, layout=layout)
    assert_same_bits(found, truth(problem, passes), layout)
    assert_same_bits({name: problem[name] for name in before}, before)  # inputs are never written


@pytest.mark.parametrize("groups", [6, 20])
def test_every_array_may_have_its_own_layout(backend, groups):
    problem = make_problem(4, (groups, 3, 4, 5), MIXED[2])
    order = np.random.default_rng(4).permutation(len(LAYOUTS))
    arrays = [name for name, value in problem.items() if isinstance(value, np.ndarray)]
    mixture = {name: in_layout(problem[name], LAYOUTS[order[k % len(order)]]) for k, name in enumerate(arrays)}
    assert_same_bits(run(backend, problem | mixture, layout="sliced"), truth(problem))
    state = call(backend, "forward", problem)[1]
    for k, name in enumerate(TRAINED[1:]):  # the state is of a forward of another layout
        outputs, _ = call(backend, name, problem | mixture, state, layout=LAYOUTS[k])
        assert_same_bits(outputs, call(backends.load("exact"), name, problem)[0], name)


@pytest.mark.parametrize("shape", [(6, 40), (20, 2, 40)], ids=str)
def test_broadcast_inputs(backend, shape):
    """A stride of zero: over all axes, over some, over the groups."""
    problem = make_problem(5, shape, UNIFORM[2])
    for name in ("dy", "ddx", "x"):
        tensor = problem[name]
        for part in (np.float32(0.75), tensor[:, :1], tensor[:1], tensor[..., :1]):
            view = np.broadcast_to(part, shape)
            assert 0 in view.strides
            passes = ("forward", "backward", "double_backward", "inference_backward")
            found = {}
            for each in passes:
                outputs, _ = call(backend, each, problem | {name: view})
                found |= {(each, output): array for output, array in outputs.items()}
            assert_same_bits(found, truth(problem | {name: view}, passes), name)


def test_a_tensor_left_out_has_zero_strides(backend):
    problem = make_problem(11, (6, 24), UNIFORM[2])
    zero = np.broadcast_to(np.zeros((), "float32"), (6, 24))
    assert zero.strides == (0, 0)
    got, _ = call(backend, "double_backward", problem | {"ddx": zero})
    expected, _ = call(backend, "double_backward", problem | {"ddx": np.zeros((6, 24), "float32")})
    assert_same_bits(got, expected)


@each_format
@pytest.mark.parametrize("formats", [UNIFORM[2], UNIFORM[3], MIXED[0]], ids=short)
def test_outputs_of_other_formats(backend, formats, fmt):
    """Each is rounded once, a wide result to a narrow output too."""
    assert_every_bit(backend, make_problem(7, (9, 33), formats), formats=fmt)
    problem = make_problem(8, (6, 33), formats)
    expected = truth(problem)
    for name in PASSES:
        mixed = {output: FORMATS[k % 4] for k, output in enumerate(outputs_of(name), FORMATS.index(fmt))}
        outputs, _ = call(backend, name, problem, formats=mixed)
        wanted = truth(problem, [name], formats=mixed)
        assert outputs.keys() == {output for each, output in expected if each == name}
        assert_same_bits(outputs, {output: array for (_, output), array in wanted.items()})


@pytest.mark.parametrize("groups", [6, 9])
def test_a_state_serves_passes_of_any_format(backend, groups):
    """The forward's own arithmetic may be too coarse for dy and outputs in binary64."""
    for fmt in (BINARY16, BINARY32):
        problem = make_problem(6, (groups, 50), (fmt, fmt, fmt))
        _, state = call(backend, "forward", problem)
        mixed = problem | {name: make_problem(7, (groups, 50), UNIFORM[3])[name] for name in ("dy", "ddx", "x_dot")}
        for name in TRAINED[1:]:
            outputs, _ = call(backend, name, mixed, state, formats=BINARY64)
            expected, _ = call(backends.load("exact"), name, mixed, formats=BINARY64)
            assert_same_bits(outputs, expected, name)


def test_a_state_is_not_changed_by_a_pass(backend):
    problem = make_problem(9, (6, 70), UNIFORM[3])
    problem["x"][0] *= 1e200
    expected = run(backend, problem)
    for first, passes in (("forward", TRAINED[1:]), ("inference", FROZEN[1:])):
        _, state = call(backend, first, problem)
        for name in (*passes, *reversed(passes)):
            outputs, _ = call(backend, name, problem, state)
            assert_same_bits(outputs, {key[1]: array for key, array in expected.items() if key[0] == name}, name)


# ---- running statistics ----------------------------------------------------------------------------------------------

MOMENTA = [
    Fraction(0),
    Fraction(1),
    Fraction(0.1),
    Fraction(5e-324),
    *(Fraction(1, n) for n in (2, 3, 7, 12345, 2**31)),
]


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("weighs_new", [False, True])
@pytest.mark.parametrize("momentum", MOMENTA, ids=str)
def test_running_update(backend, unbiased, weighs_new, momentum):
    """The momentum is a number of binary64, or 1/n."""
    options = {"momentum": momentum, "weighs_new": weighs_new, "unbiased": unbiased}
    for formats in UNIFORM + MIXED:
        for groups in (6, 9):
            assert_every_bit(backend, make_problem(8, (groups, 20), formats) | options, ["running_update"])


# ---- the rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("fmt", [BINARY64, BINARY32, BFLOAT16], ids=lambda fmt: fmt.short)
@pytest.mark.parametrize("pass_name", PASSES)
def test_r1_not_a_number(backend, pass_name, fmt, bad):
    for groups in (6, 12):
        problem = make_problem(12, (groups, 5), (fmt, fmt, fmt))
        problem["gamma"][:] = 0  # so that nothing but the rule lets NaN through
        clean, _ = call(backend, pass_name, problem)
        for spoilt in {name for formula in CONTAINS[pass_name].values() for name in formula.split()}:
            broken = problem | {spoilt: problem[spoilt].copy()}
            broken[spoilt][(1, 2) if spoilt in TENSORS else 1] = bad
            outputs, _ = call(backend, pass_name, broken)
            for name, got in outputs.items():
                expected = clean[name].copy()
                if spoilt in CONTAINS[pass_name][name].split():
                    elementwise = pass_name in FROZEN and name in TENSORS and spoilt in TENSORS
                    expected[(1, 2) if elementwise else 1] = np.nan
                assert_same_bits({name: got}, {name: expected}, spoilt)


@pytest.mark.parametrize("fmt", [BINARY64, BINARY32], ids=lambda fmt: fmt.short)
@pytest.mark.parametrize("groups", [6, 12])
@pytest.mark.parametrize("pass_name", PASSES)
def test_r2_no_variance_and_no_eps(backend, pass_name, groups, fmt):
    problem = make_problem(13, (groups, 4), (fmt, fmt, fmt), eps=0.0)
    problem["var"][2::6] = 0  # x is constant in these groups
    outputs, _ = call(backend, pass_name, problem)
    constant = np.arange(groups) % 6 == 2
    for name, got in outputs.items():
        assert np.isfinite(got[~constant]).all()
        if name == "invstd":
            assert (got[constant] == np.inf).all()
        elif name in ("mean", "var", "dbeta", "out_mean", "out_var"):
            assert np.isfinite(got[constant]).all()
        else:
            assert np.isnan(got[constant]).all(), name


@each_format
@pytest.mark.parametrize("groups", [6, 12])
def test_r3_one_element(backend, groups, fmt):
    problem = make_problem(14, (groups, 1), (fmt, fmt, fmt))
    forward, _ = call(backend, "forward", problem)
    np.testing.assert_array_equal(forward["y"][:, 0], problem["beta"])
    np.testing.assert_array_equal(forward["mean"], problem["x"][:, 0])
    assert not forward["var"].any()
    for pass_name in ("backward", "double_backward", "hvp"):
        outputs, _ = call(backend, pass_name, problem)
        assert not outputs["dx"].any()
        assert not outputs["dgamma"].any()


@each_format
@pytest.mark.parametrize("shape", [(6, 6), (3, 1500), (12, 7), (12, 300)], ids=str)
def test_r4_zeros_are_positive(backend, shape, fmt):
    problem = make_problem(15, shape, (fmt, fmt, fmt))
    for name in TENSORS & set(problem):
        problem[name][:] = -problem[name][:, :1]  # constant
    for name in ("beta", "ddbeta", "beta_dot"):
        problem[name][:] = -0.0
    problem["gamma"][:] = -1
    problem["mean"] = problem["x"][:, 0].copy()
    zeros = ("forward", "y"), ("forward", "var"), ("backward", "dx"), ("backward", "dgamma"), ("inference", "y")
    for pass_name, output in (*zeros, ("hvp", "dx"), ("hvp", "dbeta"), ("double_backward", "dgamma")):
        got = call(backend, pass_name, problem)[0][output]
        assert not got.any()
        assert not np.signbit(got).any()


def test_r5_overflow_becomes_infinite(backend):
    for groups in (6, 12):
        problem = make_problem(16, (groups, 10), UNIFORM[0])
        problem["gamma"][:] = 6e4
        outputs, _ = call(backend, "forward", problem)
        assert np.isinf(outputs["y"]).any()
        assert_every_bit(backend, problem)


@pytest.mark.parametrize("fmt", [BINARY32, BINARY64], ids=lambda fmt: fmt.short)
@pytest.mark.parametrize("groups", [6, 12])
@pytest.mark.parametrize("pass_name", FROZEN)
def test_r6_no_elements(backend, pass_name, groups, fmt):
    problem = make_problem(17, (groups, 3), (fmt, fmt, fmt), eps=0.0)
    for name in TENSORS & set(problem):
        problem[name] = problem[name][:, :0]
    problem["var"][2] = np.nan
    outputs, _ = call(backend, pass_name, problem)
    for name, got in outputs.items():
        if name == "invstd":
            assert np.isnan(got).tolist() == [group == 2 for group in range(groups)]
        else:
            assert got.shape == ((groups, 0) if name in TENSORS else (groups,))
            assert not got.any()
            assert not np.signbit(got).any()


def test_no_groups(backend):
    problem = chosen(make_problem(18, (6, 3), UNIFORM[2]), slice(0))
    for pass_name in PASSES:
        outputs, _ = call(backend, pass_name, problem)
        assert all(got.shape[0] == 0 for got in outputs.values())


# ---- ties and zeros --------------------------------------------------------------------------------------------------


@each_format
@pytest.mark.parametrize("m", [2, 6, 70])
def test_ties(backend, fmt, m):
    """x̂ = ±1 without eps, and γ half an ulp of β: y is halfway between two numbers, or next to that."""
    for groups in (6, 12):
        problem = make_problem(19, (groups, m), (fmt, fmt, fmt), eps=0.0)
        problem["x"][...] = np.resize([1.0, -1.0], m)
        problem["beta"][:] = np.resize([1.0, 1.0 + 2 * fmt.unit_roundoff, -1.0], groups)
        problem["gamma"][:] = np.resize([1.0, -1.0], groups) * fmt.unit_roundoff
        problem["mean"][:], problem["var"][:] = 0, 1
        assert_every_bit(backend, problem)


@each_format
@pytest.mark.parametrize("constant", [("x",), ("dy",), ("ddx", "x_dot"), ("x", "dy", "ddx", "x_dot")])
@pytest.mark.parametrize("zero", [False, True])
def test_constants(backend, fmt, constant, zero):
    for groups in (6, 12):
        problem = make_problem(32, (groups, 21), (fmt, fmt, fmt))
        for name in constant:
            problem[name][:] = 0 if zero else problem[name][:, :1]
        assert_every_bit(backend, problem)


@pytest.mark.parametrize("fmt", [BINARY32, BINARY64], ids=lambda fmt: fmt.short)
def test_dy_proportional_to_x(backend, fmt):
    """Without eps dx is 0 then, whatever the numbers."""
    for groups in (5, 10):
        problem = make_problem(20, (6 * groups // 5, 40), (fmt, fmt, fmt), eps=0.0)
        problem["dy"] = 0.5 * problem["x"]
        problem = chosen(problem, np.arange(6 * groups // 5) % 6 != 2)
        outputs, _ = call(backend, "backward", problem)
        assert not outputs["dx"].any()
        assert_every_bit(backend, problem)


# ---- extreme exponents -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [-1040, -900, -700, -500, -300, 300, 500, 700, 1000])
@pytest.mark.parametrize("groups", [6, 12])
def test_extreme_data(backend, power, groups):
    for eps in (0.0, 2.0**-1070 if power < -500 else 1e-5):
        problem = make_problem(19, (groups, 12), UNIFORM[3], eps=eps)
        if power < -1000:
            problem["x"] = np.trunc(problem["x"] * 2.0**20)  # so that subnormal numbers hold it
        problem["x"] = np.ldexp(problem["x"], power)
        problem["dy"][0] = np.ldexp(problem["dy"][0], -900)
        problem["mean"] = problem["x"][:, 0].copy()
        problem["var"] = np.ldexp(problem["var"], max(-1000, min(1000, 2 * power)))
        assert np.isfinite(problem["x"]).all()
        assert_every_bit(backend, problem)


@pytest.mark.parametrize("power", [-900, 900])
@pytest.mark.parametrize("groups", [6, 12])
def test_extreme_gradients_and_parameters(backend, power, groups):
    problem = make_problem(20, (groups, 12), UNIFORM[3])
    problem["dy"], problem["gamma"] = np.ldexp(problem["dy"], power), np.ldexp(problem["gamma"], -power)
    problem["ddx"], problem["x_dot"] = np.ldexp(problem["ddx"], power // 10), np.ldexp(problem["x_dot"], -power // 10)
    assert_every_bit(backend, problem)


@pytest.mark.parametrize("eps", [5e-324, 1e-310, 1e-200, 1e200, 1e300, 1.7e308])
@pytest.mark.parametrize("formats", UNIFORM[2:], ids=short)
def test_extreme_eps(backend, eps, formats):
    for groups in (6, 12):
        assert_every_bit(backend, make_problem(21, (groups, 12), formats, eps=eps))


def test_frozen_elements_of_very_different_size(backend):
    problem = make_problem(22, (6, 4), UNIFORM[3], eps=0.0)
    problem["x"][0] = [2.0**900, 2.0**-150, 3.0, -(2.0**-200)]
    problem["beta"][0], problem["mean"][0] = 0, 0
    assert_every_bit(backend, problem, FROZEN)


def test_groups_of_very_different_size(backend):
    """Each is scaled by itself, also where several are taken at once: powers of two do not change the digits."""
    problem = make_problem(13, (12, 20), UNIFORM[3], eps=0.0)
    problem["x"] = np.random.default_rng(14).standard_normal((12, 20))
    plain, _ = call(backend, "forward", problem)
    powers = np.arange(12) * -80
    got, _ = call(backend, "forward", problem | {"x": np.ldexp(problem["x"], powers[:, None])})
    np.testing.assert_array_equal(got["y"], plain["y"])
    np.testing.assert_array_equal(got["mean"], np.ldexp(plain["mean"], powers))


def test_what_breaks_a_tie_may_be_tiny(backend):
    for groups in (6, 12):
        problem = make_problem(39, (groups, 4), UNIFORM[3])
        problem["x"][0] = [4.0, 2.0**-51, sys.float_info.min, 0.0]  # the mean is a bit more than 1 + 2^−53
        outputs, _ = call(backend, "forward", problem)
        assert outputs["mean"][0] == 1.0 + 2.0**-52
        assert_every_bit(backend, problem | {"momentum": Fraction(1)})
