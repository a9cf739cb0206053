"""What is the C core's own: its ladder, threads, conversions, wrapper. Its results: test_every_bit.py."""

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

import refbn
from refbn import backends
from refbn._formats import BINARY16, BINARY32, BINARY64, FORMATS, load, round_to

pytest.importorskip("refbn._native", exc_type=ImportError)

from refbn import _native
from refbn.backends import native
from tests.backends.problems import (
    FROZEN,
    MIXED,
    PASSES,
    TENSORS,
    UNIFORM,
    assert_same_bits,
    call,
    chosen,
    each_format,
    inputs_of,
    laid_out,
    make_problem,
    outputs_of,
    run,
    short,
    truth,
)

PLAIN, TWOFOLD, SCALED, EXACT = range(4)
ELEMENTS, VECTORS = range(2)  # rows and columns of `counting`
BY = {"by elements": "groups first", "by groups": "groups last"}  # eight groups or more
each_way = pytest.mark.parametrize("layout", BY.values(), ids=BY.keys())


@pytest.fixture(params=_native.builds, ids=lambda build: build.name)
def build(request, monkeypatch):
    """Every instruction set that this machine has."""
    monkeypatch.setattr(native, "_core", request.param)
    return request.param


def test_builds_end_with_the_one_that_runs_everywhere():
    assert [b.name for b in _native.builds][-1] == "baseline"
    assert native._core is _native.builds[0]


# ---- the ladder ------------------------------------------------------------------------------------------------------


def count(pass_name, problem, layout="groups first"):
    """How many elements and vector results each rung decides; that is all of them."""
    problem = laid_out(problem, layout)
    first = "inference" if pass_name in FROZEN else "forward"
    state = None if pass_name == first else call(native, first, problem)[1]
    with native.counting() as counts:
        outputs, _ = call(native, pass_name, problem, state, layout=layout)
    assert counts.shape == (2, 4) and (counts >= 0).all()
    for row, names in ((ELEMENTS, TENSORS), (VECTORS, outputs.keys() - TENSORS)):
        assert counts[row].sum() == sum(outputs[name].size for name in names & outputs.keys()), pass_name
    return counts


def hard_problem(groups, m, fmt):
    """A problem for every rung: ties, zeros that do not show, extreme exponents, no numbers."""
    problem = make_problem(1, (groups, m), (fmt, fmt, fmt), eps=0.0)
    problem["x"][0] = np.resize([1.0, -1.0], m)
    problem["beta"][0], problem["gamma"][0] = 1.0, fmt.unit_roundoff
    problem["dy"][1] = 0.5 * problem["x"][1]
    problem["x"][min(groups, 4) - 1] *= fmt.dtype.type(2.0 ** (fmt.emax // 2))
    problem["x"][2, 0] = np.nan
    return problem


@each_format
@each_way
@pytest.mark.parametrize("shape", [(9, 1), (9, 40), (70, 33), (3, 2500), (12, 1300)], ids=str)
def test_every_result_is_counted_once(build, shape, layout, fmt):
    for pass_name in PASSES:
        for threads in (1, 3):
            with refbn.num_threads(threads):
                if shape[1] > 1 and fmt is not BINARY16:
                    count(pass_name, hard_problem(*shape, fmt), layout)
                count(pass_name, make_problem(2, shape, (fmt, fmt, fmt)), layout)


def test_no_elements_are_counted_where_there_are_none(build):
    problem = make_problem(3, (9, 3), UNIFORM[2])
    for name in TENSORS & problem.keys():
        problem[name] = problem[name][:, :0]
    for pass_name in FROZEN:
        assert not count(pass_name, problem)[ELEMENTS].any()


@pytest.mark.parametrize("shape", [(0, 3, 7, 7), (7, 3, 0, 5), (5, 9, 4, 0), (0, 12, 1, 1)], ids=str)
@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2), (3, 1, 0, 2)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_empty_tensors_in_any_layout(build, shape, axes, dtype):
    """However many axes the core sees, it reads nothing, and sums over nothing are 0."""
    x = np.zeros([shape[axis] for axis in axes], dtype).transpose(np.argsort(axes))
    ones = np.ones(x.shape[1], dtype)
    fwd = refbn.inference(x, ones, ones, backend="native")
    first, second = refbn.backward(fwd.saved, x), refbn.double_backward(fwd.saved, x, x)
    sums = (first.dgamma, first.dbeta, first.dmean, first.dvar, second.dgamma, second.dmean, second.dvar)
    assert fwd.y.shape == first.dx.shape == second.ddy.shape == x.shape
    assert not any(total.any() for total in sums)


@each_way
@pytest.mark.parametrize("shape", [(9, 300), (70, 100), (2, 5000)], ids=str)
@pytest.mark.parametrize("formats", UNIFORM + MIXED, ids=short)
def test_ordinary_data_is_decided_on_the_first_rung(build, formats, shape, layout):
    """Plain binary64 where nothing is binary64, double-double else."""
    rng = np.random.default_rng(4)
    problem = make_problem(4, shape, formats)
    for name in TENSORS & problem.keys():
        problem[name] = round_to(rng.standard_normal(shape), problem[name].dtype)
    for pass_name in PASSES:
        counts = count(pass_name, problem, layout)
        read = {problem[name].dtype for name in inputs_of(pass_name) if isinstance(problem.get(name), np.ndarray)}
        written = {problem["x" if name in TENSORS else "gamma"].dtype for name in outputs_of(pass_name)}
        rung = TWOFOLD if BINARY64.dtype in read | written else PLAIN
        assert counts[ELEMENTS, rung] >= 0.999 * counts[ELEMENTS].sum(), (pass_name, counts)
        mean_or_dbeta = shape[0]  # sums of short numbers may be true ties
        assert counts[VECTORS, rung] >= counts[VECTORS].sum() - mean_or_dbeta, (pass_name, counts)


def ties(groups, m, fmt, bad):
    """Ordinary groups, and bad ones where every other element of y is halfway between two numbers."""
    problem = make_problem(5, (groups, m), (fmt, fmt, fmt), eps=0.0)
    problem["x"] = round_to(np.random.default_rng(5).standard_normal((groups, m)), fmt.dtype)
    problem["x"][bad] = np.random.default_rng(6).permutation(np.resize([1.0, -1.0], m))
    problem["beta"][bad], problem["gamma"][bad] = 1.0, fmt.unit_roundoff
    return problem


@pytest.mark.parametrize("bad", [[5], [0, 69], range(8), range(3, 12), range(1, 70), range(70)], ids=len)
@pytest.mark.parametrize("fmt", [BINARY16, BINARY32, BINARY64], ids=lambda fmt: fmt.short)
@each_way
@pytest.mark.parametrize("m", [2, 64, 600])
def test_only_what_needs_more_climbs(build, fmt, layout, bad, m):
    """A bad group leaves the others, and its own decided elements, on their rung."""
    problem, bad = ties(70, m, fmt, list(bad)), list(bad)
    others = np.setdiff1d(np.arange(70), bad)
    counts = count("forward", problem, layout)
    alone = count("forward", chosen(problem, others), layout)
    rung = TWOFOLD if fmt is BINARY64 else PLAIN
    halfway = len(bad) * m // 2
    assert counts[ELEMENTS, EXACT] == alone[ELEMENTS, EXACT] + halfway
    assert counts[ELEMENTS, rung] == alone[ELEMENTS, rung] + halfway
    assert_same_bits(run(native, problem, ["forward"], layout=layout), truth(problem, ["forward"]))


@each_way
def test_only_a_bad_group_is_summed_again(build, layout):
    """What a group's sums are good for stands first in its row of the state."""
    _, state = call(native, "forward", laid_out(ties(70, 64, BINARY32, [5]), layout), layout=layout)
    rungs = state[:, 0] - 1
    assert rungs[5] == TWOFOLD
    assert np.count_nonzero(rungs == PLAIN) >= 65  # a mean may be a true tie


def long_problem(fmt, shape):
    """So many independent normal numbers that a derivative leaves some to better sums."""
    problem, rng = make_problem(7, shape, (fmt,) * 3), np.random.default_rng(1)
    for name in TENSORS & problem.keys():
        problem[name] = rng.standard_normal(shape, fmt.dtype)
    return problem


@pytest.mark.parametrize("pass_name", ["jvp", "double_backward", "hvp"])
def test_what_a_forward_summed_briefly_is_summed_again(build, pass_name):
    """A derivative that wants better sums of x than the forward kept makes them; it does not go to the integers."""
    counts = count(pass_name, long_problem(BINARY32, (256, 3 * 2**13)))
    assert counts[ELEMENTS, EXACT] == 0
    assert counts[ELEMENTS, TWOFOLD] > 0


@each_way
def test_sums_in_double_double_come_before_scales(build, layout):
    """What sums from a bias on leave undecided: these are cheap, but know less where products cancel."""
    counts = count("double_backward", long_problem(BINARY64, (128, 3 * 2**13)), layout)
    assert counts[ELEMENTS, SCALED] == counts[ELEMENTS, EXACT] == 0


@pytest.mark.parametrize("groups", [6, 70])
def test_extreme_exponents_are_scaled(build, groups):
    problem = make_problem(6, (groups, 200), UNIFORM[3], eps=0.0)
    problem["x"] = np.random.default_rng(6).standard_normal((groups, 200))
    usual = count("forward", problem)
    problem["x"][3] *= 1e-200
    counts = count("forward", problem)
    assert usual[ELEMENTS].tolist() == [0, groups * 200, 0, 0]
    assert counts[ELEMENTS].tolist() == [0, (groups - 1) * 200, 200, 0]


def test_counting_is_the_block_s_own(build):
    problem = make_problem(7, (6, 10), UNIFORM[2])
    with native.counting() as outer:
        call(native, "forward", problem)
        before = outer.copy()
        with native.counting() as inner:
            call(native, "forward", problem)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(call, native, "forward", problem).result()
        np.testing.assert_array_equal(inner, before)
        np.testing.assert_array_equal(outer, before)
        call(native, "forward", problem)
    call(native, "forward", problem)
    np.testing.assert_array_equal(outer, 2 * before)


# ---- threads ---------------------------------------------------------------------------------------------------------

THREADS = (1, 2, 3, 7)
LARGE = [(1, 600_000), (3, 200_000), (13, 50_000), (600, 1000)]
"""With two tensors enough for five threads, with three for seven: fewer groups than threads, and many."""


@each_way
@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("formats", [UNIFORM[2], UNIFORM[3], MIXED[0]], ids=short)
def test_threads_do_not_change_a_bit(formats, shape, layout):
    rng = np.random.default_rng(8)
    small = make_problem(8, (shape[0], 1), formats, eps=0.0)
    problem = small | {name: round_to(rng.standard_normal(shape), small[name].dtype) for name in TENSORS & small.keys()}
    if shape[0] > 1:  # a group that needs all rungs
        problem["x"][-1] = np.resize([1.0, -1.0], shape[1])
        problem["x"][-1, 10] = np.nan
    problem = laid_out(problem, layout)
    passes = ("forward", "double_backward", "running_update", "inference_hvp")
    results, counts = [], []
    for threads in THREADS:
        with refbn.num_threads(threads), native.counting() as counted:
            results.append(run(native, problem | {"unbiased": True}, passes, layout=layout))
        counts.append(counted)
        assert_same_bits(results[-1], results[0], threads)
    with native.counting() as counted, refbn.num_threads(1):
        run(native, problem | {"unbiased": True}, passes, layout=layout)
    for each in counts:
        np.testing.assert_array_equal(each.sum(axis=1), counted.sum(axis=1))
    for name in ("y", "mean"):
        got = results[0]["forward", name]
        assert np.isfinite(got[:-1]).all()
        assert np.isfinite(got[-1]).all() == (shape[0] == 1)
    x = problem["x"][0].astype(np.float64).ravel().tolist()
    mean = float(sum(map(Fraction, x)) / shape[1])
    assert results[0]["forward", "mean"][0] == round_to(np.float64(mean), formats[2].dtype)


def test_callers_do_not_disturb_each_other():
    problems = [make_problem(seed, (24, 500), UNIFORM[seed % 4]) for seed in range(8)]

    def answer(problem):
        with refbn.num_threads(1 + len(problem["gamma"]) % 3):
            return run(native, problem)

    alone = [answer(problem) for problem in problems]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(alone, pool.map(answer, problems), strict=True):
            assert_same_bits(other, one)


# ---- the floating-point environment of the caller --------------------------------------------------------------------


@pytest.mark.parametrize("fmt", [BINARY32, BINARY64], ids=lambda fmt: fmt.short)
@pytest.mark.parametrize("groups", [6, 12])
def test_results_do_not_depend_on_the_caller_s_mode(build, unusual_mode, groups, fmt):
    """Nor is the mode another one afterwards."""
    problem = hard_problem(groups, 60, fmt) | {"momentum": Fraction(1, 3)}
    problem["x"][3] = problem["x"][3] * fmt.dtype.type(fmt.tiny)
    problem["var"][4], problem["dy"][3] = fmt.tiny, fmt.dtype.type(fmt.tiny) * problem["dy"][3]
    with unusual_mode():
        found = run(native, problem)
    assert_same_bits(found, truth(problem))


def test_nor_do_those_of_many_threads(unusual_mode):
    rng = np.random.default_rng(9)
    problem = make_problem(9, (2, 1), UNIFORM[3])
    problem |= {name: rng.standard_normal((2, 300_000)) * 2.0**-1060 for name in ("x", "dy", "ddx")}
    problem |= {"eps": 0.0}
    with refbn.num_threads(1):
        expected = run(native, problem, ["forward", "double_backward"])
    with refbn.num_threads(3), unusual_mode():
        found = run(native, problem, ["forward", "double_backward"])
    assert_same_bits(found, expected)


def test_nor_do_those_of_the_public_passes(unusual_mode):
    x = np.random.default_rng(10).standard_normal((6, 3, 5)) * 2.0**-1060
    expected = [refbn.forward(x, eps=0.0, backend=name) for name in ("native", "exact")]
    expected += [refbn.backward(fwd.saved, x) for fwd in expected]
    with unusual_mode():
        fwd = refbn.forward(x, eps=0.0, backend="native")
        grads = refbn.backward(fwd.saved, x)
    for got, others in ((fwd, expected[:2]), (grads, expected[2:])):
        for other in others:
            for name in ("y", "mean", "var", "invstd") if got is fwd else ("dx", "dgamma", "dbeta"):
                assert_same_bits({name: getattr(got, name)}, {name: getattr(other, name)})


# ---- conversion ------------------------------------------------------------------------------------------------------


def identity(x, dtype, groups):
    """Send x through (I1) with mean 0, var 1, gamma 1, beta 0: y is x, converted."""
    padded = np.resize(x, (groups, -(-x.size // groups)))
    one, zero = np.ones(groups, np.float32), np.zeros(groups, np.float32)
    y, invstd = np.empty(padded.shape[::-1], dtype).T, np.empty(groups, np.float32)
    native.inference(np.asfortranarray(padded), zero, one, one, zero, 0.0, y=y, invstd=invstd)
    return y.ravel()[: x.size]


def assert_same_numbers(got, expected):
    assert_same_bits({"y": got}, {"y": expected})


each_grouping = pytest.mark.parametrize("groups", [1, 40])


@pytest.mark.parametrize("fmt", FORMATS[:2], ids=lambda fmt: fmt.short)
@pytest.mark.parametrize("to", FORMATS, ids=lambda fmt: fmt.short)
@each_grouping
@np.errstate(invalid="ignore")  # ml_dtypes warns of signalling NaNs
def test_conversion_from_every_half(build, fmt, to, groups):
    x = np.arange(2**16, dtype=np.uint16).view(fmt.dtype)
    numbers = load(x)  # infinities are NaN
    assert np.isnan(numbers).sum() == 2 * 2 ** (fmt.precision - 1)
    assert_same_numbers(identity(x, to.dtype, groups), round_to(numbers + 0.0, to.dtype))  # R4


@pytest.mark.parametrize("fmt", FORMATS[:2], ids=lambda fmt: fmt.short)
@pytest.mark.parametrize("source", FORMATS[2:], ids=lambda fmt: fmt.short)
@each_grouping
@np.errstate(invalid="ignore", over="ignore")
def test_conversion_to_halves_at_every_boundary(build, fmt, source, groups):
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
        assert_same_numbers(identity(x, fmt.dtype, groups), expected)


@each_format
@each_grouping
def test_conversion_of_random_bits(build, fmt, groups):
    bits = np.random.default_rng(16).integers(0, 2**64, 20000, dtype=np.uint64)
    x = bits.view(np.float64)
    assert_same_numbers(identity(x, fmt.dtype, groups), round_to(load(x), fmt.dtype))
    x = np.concatenate([5e-324 * np.arange(1, 50), 2.2250738585072014e-308 * np.arange(0.1, 3, 0.01)])
    assert_same_numbers(identity(x, fmt.dtype, groups), round_to(x, fmt.dtype))


# ---- the wrapper -----------------------------------------------------------------------------------------------------


def test_the_wrapper_refuses_what_would_leave_the_arrays():
    problem = make_problem(20, (4, 6), UNIFORM[2])
    x, vector = problem["x"], problem["gamma"]
    state = call(native, "forward", problem)[1]

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
    ):
        with pytest.raises((ValueError, BufferError)):
            backward(**wrong)


@pytest.mark.parametrize("pass_name", PASSES)
def test_and_does_so_for_every_array_of_every_pass(pass_name):
    problem = make_problem(21, (4, 6), UNIFORM[2])
    first = "inference" if pass_name in FROZEN else "forward"
    state = None if pass_name == first else call(native, first, problem)[1]
    arrays = [name for name in inputs_of(pass_name) if isinstance(problem.get(name), np.ndarray)]
    for name in arrays:
        for wrong in (problem[name][:3], np.concatenate([problem[name]] * 2), problem[name][None]):
            with pytest.raises(ValueError, match=r"shape|axes|one number|state of another"):
                call(native, pass_name, problem | {name: wrong}, state)
    given = [state if name == "state" else problem[name] for name in inputs_of(pass_name)]
    outputs, _ = call(native, pass_name, problem, state)
    for name, output in outputs.items():
        for wrong in (output[:3], output[None]):
            with pytest.raises(ValueError, match=r"shape|axes|one number"):
                getattr(native, pass_name)(*given, **outputs | {name: wrong})


@pytest.mark.parametrize("shape", [(2, 2), (4,), (8, 4)])
def test_counts_have_one_shape(shape):
    x, vector = np.ones((3, 4)), np.ones(3)
    wrong = np.zeros(shape, np.int64)
    with pytest.raises(ValueError, match="shape"):
        native._core.forward(x, vector, vector, 0.5, x.copy(), *(vector.copy() for _ in range(3)), 1, wrong)


def test_more_axes_than_numpy_has_are_not_needed():
    shape = (2,) + (1,) * 29 + (3, 2)
    problem = make_problem(22, shape, UNIFORM[2])
    flat = {name: v.reshape(2, -1) if name in TENSORS else v for name, v in problem.items()}
    found = run(native, problem, ["forward", "double_backward"], layout="transposed")
    expected = run(backends.load("exact"), flat, ["forward", "double_backward"])
    assert_same_bits({key: v.reshape(expected[key].shape) for key, v in found.items()}, expected)


@pytest.mark.parametrize("layout", ["groups first", "groups last", "sliced"])
@pytest.mark.parametrize("still", [True, False], ids=["x moves alone", "all move"])
def test_zeros_of_frozen_statistics_are_zero_at_sight(still, layout):
    """Half of dy, ddx, x_dot and x − mean are 0, as behind an activation; some x and parameters are no numbers."""
    rng = np.random.default_rng(26)
    problem = make_problem(26, (9, 40), UNIFORM[3])
    for name in ("dy", "ddx", "x_dot"):
        problem[name][rng.random((9, 40)) < 0.5] = 0.0
    problem["mean"][:4] = 0.0
    problem["x"][:4][rng.random((4, 40)) < 0.5] = 0.0
    problem["beta"][::2] = 0.0
    problem["x"][1, ::7], problem["x"][6, 3] = np.nan, np.inf
    problem["gamma"][2], problem["var"][3], problem["gamma"][5], problem["mean"][7] = np.nan, np.nan, np.inf, np.nan
    if still:
        for name in ("mean", "var", "gamma", "beta"):
            problem[f"{name}_dot"][...] = problem[f"dd{name}"][...] = 0.0
    problem["var_dot"][8] = np.nan
    with native.counting() as counts:
        found = run(native, problem, FROZEN, layout=layout)
    assert counts[0, 3] > 100  # the last rung was reached
    assert_same_bits(found, run(backends.load("exact"), problem, FROZEN))


# ---- inputs that once broke a bound --------------------------------------------------------------------------------


def assert_like_the_oracle(compute):
    own, oracle = compute("native"), compute("exact")
    assert own.tobytes() == oracle.tobytes()


@pytest.mark.parametrize(("value", "eps"), [(5e-324, 4.0), (5e-324, 1e6), (1e-300, 1e300)])
def test_a_constant_that_scaling_would_lose(value, eps):
    assert_like_the_oracle(lambda name: refbn.forward(np.full((4, 1), value), eps=eps, backend=name).mean)


@pytest.mark.parametrize("momentum", [Fraction(1, 3), Fraction(1, 7)])
def test_the_running_mean_of_a_tiny_number(momentum):
    def compute(name):
        backend, x, vector = backends.load(name), np.array([[2.0**-1021]]), np.zeros(1)
        y, *statistics = (np.empty_like(x), *np.empty((3, 1)))
        state = backend.forward(
            x, vector, vector, 1.0, y=y, **dict(zip(("mean", "var", "invstd"), statistics, strict=True))
        )
        mean, var = np.empty((2, 1))
        backend.running_update(state, x, momentum, True, False, vector, vector, out_mean=mean, out_var=var)
        return mean

    assert_like_the_oracle(compute)


def test_the_fifth_power_of_a_small_invstd():
    def compute(name):
        x = np.ldexp(np.array([[1.0], [3.0], [1.0], [1.0]]), -100).astype(np.float32)
        small, zero = np.full(1, 2.0**-100, np.float32), np.zeros(1, np.float32)
        saved = refbn.inference(x, zero, zero, small, eps=2.0**299, backend=name).saved
        return refbn.hvp(saved, -x, var_dot=small).dvar

    assert_like_the_oracle(compute)


def test_wide_statistics_of_narrow_data():
    def compute(name):
        rng = np.random.default_rng(3)
        x = np.zeros((128, 1), np.float32)
        dy = np.zeros_like(x)
        dy[[0, 32, 64, 96], 0] = 221.4, 1.63e-17, -221.4, -1.63e-17
        mean, one = np.ldexp(1.0 + rng.uniform(size=1), -600), np.ones(1, np.float32)
        saved = refbn.inference(x, mean, np.ones(1), np.zeros(1, np.float32), backend=name).saved
        return refbn.hvp(saved, dy, var_dot=one).dgamma

    assert_like_the_oracle(compute)
