"""One suite over every backend: the contract of `refbn.backends._contract`, through the public passes."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import refbn
from refbn import backends
from refbn._formats import BINARY32, BINARY64, FORMATS, format_of, load, round_to
from refbn.reference import bounds, frozen, statistics
from refbn.testing.strategies import LAYOUTS, Problem, in_layout, problems
from tests.backends.problems import assert_same_bits
from validation.cases import VECTORS, Batch, batches
from validation.passes import run_all

CORRECTLY_ROUNDED = ("native", "numba")
"""The backends that agree with the oracle bit for bit; what `reference` computes stays within a bound."""

every_backend = pytest.mark.parametrize("backend", backends.TABLE)
every_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)
PASSES = ("forward", "inference", "backward", "jvp", "double_backward", "hvp")
few = settings(max_examples=60, deadline=None)


def rows(tensor):
    """The channels as rows of binary64, as the textbook takes them."""
    return load(np.moveaxis(tensor, 1, 0).reshape(tensor.shape[1], -1))


def run(p, backend, dtype=None, frozen_statistics=False):
    """Run every pass; return {(pass, output): array}."""
    if frozen_statistics:
        fwd = refbn.inference(p.x, p.mean, p.var, p.gamma, p.beta, eps=p.eps, backend=backend, dtype=dtype)
        moved = {"ddmean": p.ddgamma, "ddvar": p.ddbeta}
        moved_dot = {"mean_dot": p.ddgamma, "var_dot": p.ddbeta}
    else:
        fwd = refbn.forward(p.x, p.gamma, p.beta, eps=p.eps, backend=backend, dtype=dtype)
        moved = moved_dot = {}
    saved = fwd.saved
    results = {
        "inference" if frozen_statistics else "forward": fwd,
        "backward": refbn.backward(saved, p.dy),
        "double_backward": refbn.double_backward(saved, p.dy, p.ddx, p.ddgamma, p.ddbeta, **moved),
        "hvp": refbn.hvp(saved, p.dy, p.ddx, p.ddgamma, p.ddbeta, **moved_dot),
    }
    found = {("jvp", "y_dot"): refbn.jvp(saved, p.ddx, p.ddgamma, p.ddbeta, **moved_dot)}
    for name, result in results.items():
        for field in fields(result):
            value = getattr(result, field.name)
            if isinstance(value, np.ndarray):
                found[name, field.name] = value
    return found


def allowances(p, frozen_statistics):
    """Return the textbook's stated bound of every output before its final rounding."""
    x, dy, ddx = rows(p.x), rows(p.dy), rows(p.ddx)
    gamma, beta, ddgamma, ddbeta, mean, var = map(load, (p.gamma, p.beta, p.ddgamma, p.ddbeta, p.mean, p.var))
    if frozen_statistics:
        stats = frozen.inference(x, mean, var, gamma, beta, p.eps).stats
        moved = (ddx, ddgamma, ddbeta, ddgamma)  # x, mean, var, gamma
        found = {
            "inference": bounds.inference(x, mean, var, gamma, beta, p.eps),
            "backward": bounds.inference_backward(stats, gamma, dy),
            "jvp": bounds.inference_jvp(stats, gamma, *moved, ddbeta),
            "double_backward": bounds.inference_double_backward(stats, gamma, dy, *moved, ddbeta),
            "hvp": bounds.inference_hvp(stats, gamma, dy, *moved),
        }
    else:
        stats = statistics(x, p.eps)
        found = {
            "forward": bounds.forward(x, gamma, beta, p.eps),
            "backward": bounds.backward(stats, gamma, dy),
            "jvp": bounds.jvp(stats, gamma, ddx, ddgamma, ddbeta),
            "double_backward": bounds.double_backward(stats, gamma, dy, ddx, ddgamma, ddbeta),
            "hvp": bounds.hvp(stats, gamma, dy, ddx, ddgamma),
        }
    return {(name, output): a for name, outputs in found.items() for output, a in outputs.items()}


def assert_within_bounds(p, frozen_statistics, dtype=None):
    """Hold the textbook to its bounds."""
    truth = run(p, "exact", BINARY64.dtype, frozen_statistics)
    found = run(p, "reference", dtype, frozen_statistics)
    allowed = allowances(p, frozen_statistics)
    for key, got in found.items():
        if key[0] == "inference" and key[1] in ("mean", "var"):
            continue  # the caller's own
        exact = truth[key].astype(np.float64)
        fmt = format_of(got.dtype)
        limit = allowed[key]
        if got.ndim > 1:
            exact, got = rows(exact), np.moveaxis(got, 1, 0).reshape(got.shape[1], -1).astype(np.float64)
        got = got.astype(np.float64)
        defined = np.isfinite(exact)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(exact), str(key))
        rounding = (fmt.unit_roundoff + BINARY64.unit_roundoff) * (np.abs(exact) + limit) + fmt.tiny
        with np.errstate(invalid="ignore"):
            near = np.abs(got - exact) <= limit + rounding
            overflown = np.isinf(got) & (np.abs(exact) + limit + rounding >= fmt.max)
        assert np.all(near | overflown | ~defined), (key, got[~near], exact[~near], limit)


def assert_right(p, backend, frozen_statistics, dtype=None):
    """Hold a backend to what its row in the table of backends says of its accuracy."""
    if backend == "reference":
        assert_within_bounds(p, frozen_statistics, dtype)
    else:
        assert_same_bits(run(p, backend, dtype, frozen_statistics), run(p, "exact", dtype, frozen_statistics))


@few
@given(p=problems(), frozen_statistics=st.booleans(), dtype=st.sampled_from([None, "float32", "float64"]))
def test_every_output_of_the_textbook_is_within_the_stated_bound(p, frozen_statistics, dtype):
    assert_within_bounds(p, frozen_statistics, dtype)


# ---- every bit -----------------------------------------------------------------------------------------------------

correctly_rounded = pytest.mark.parametrize("backend", CORRECTLY_ROUNDED)


def assert_every_bit(backend, batch, dtype=None):
    """Hold every output of every pass on a batch of cases to the oracle's, bit for bit."""
    found, truth = run_all(backend, batch, dtype), run_all("exact", batch, dtype)
    for operation, outputs in truth.items():
        assert_same_bits(found[operation], outputs, (operation, [str(channel) for channel in batch.channels]))


@correctly_rounded
@every_format
def test_every_bit_on_adversarial_cases(backend, fmt):
    for batch in batches(fmt, 31, range(120)):
        assert_every_bit(backend, batch)


@correctly_rounded
@every_format
def test_every_bit_with_any_mix_of_formats(backend, fmt):
    rng = np.random.default_rng(32)
    for batch in batches(fmt, 33, range(60)):
        # What overflows becomes infinite, so rule R1 has its part here.
        arrays = {
            name: round_to(load(array), (fmt if rng.integers(2) else FORMATS[rng.integers(4)]).dtype)
            for name, array in batch.arrays.items()
        }
        mixed = Batch(batch.channels, batch.eps, arrays)
        assert_every_bit(backend, mixed, FORMATS[rng.integers(4)].dtype)


@correctly_rounded
@every_format
def test_every_bit_of_longer_channels(backend, fmt):
    rng = np.random.default_rng(34)
    for batch in batches(fmt, 35, range(3)):
        m = int(rng.integers(65, 400))
        arrays = dict(batch.arrays)
        for name in VECTORS:
            values = rng.standard_normal((len(batch.channels), m)) + rng.integers(-3, 4)
            arrays[name] = round_to(values * 2.0 ** rng.integers(-3, 4), fmt.dtype)
        assert_every_bit(backend, Batch(batch.channels, batch.eps, arrays))


@correctly_rounded
@few
@given(p=problems(), frozen_statistics=st.booleans(), dtype=st.sampled_from([None, "float16", "float32", "float64"]))
def test_every_bit_through_the_public_passes(backend, p, frozen_statistics, dtype):
    assert_same_bits(run(p, backend, dtype, frozen_statistics), run(p, "exact", dtype, frozen_statistics))


@correctly_rounded
@few
@given(
    p=problems(),
    momentum=st.sampled_from([0.0, 0.1, 0.25, 1.0]) | st.floats(0, 1),
    dialect=st.sampled_from(["torch", "keras"]),
    dtype=st.sampled_from(FORMATS),
)
def test_every_bit_of_running_statistics(backend, p, momentum, dialect, dtype):
    assume(p.x.size > p.x.shape[1])  # else there is no unbiased variance
    layers = [
        refbn.BatchNorm(
            p.x.shape[1], momentum=momentum, dialect=dialect, channel_axis=1, backend=name, dtype=dtype.dtype
        )
        for name in (backend, "exact")
    ]
    for layer in layers:
        layer.running_mean, layer.running_var = (round_to(load(v), dtype.dtype) for v in (p.mean, p.var))
        layer.forward(p.x)
    found, truth = ({"mean": layer.running_mean, "var": layer.running_var} for layer in layers)
    assert_same_bits(found, truth)


@few
@given(p=problems())
def test_exact_rounds_what_the_oracle_knows(p):
    """The binding adds nothing: rounding to a format is the rounding of binary64's own rounding only if that is far
    from a tie, so compare with the oracle directly."""
    from refbn import exact

    if p.eps == 0:
        p = replace(p, eps=1e-5)
    grads = run(p, "exact")
    oracle = exact.backward(rows(p.x), load(p.gamma), p.eps, rows(p.dy))
    np.testing.assert_array_equal(
        np.moveaxis(grads["backward", "dx"], 1, 0).reshape(p.x.shape[1], -1), oracle.dx.round(p.x.dtype)
    )
    np.testing.assert_array_equal(grads["backward", "dgamma"], oracle.dgamma.round(p.gamma.dtype))


def simple(fmt=BINARY64, shape=(4, 3, 5), layout="contiguous", seed=11):
    rng = np.random.default_rng(seed)

    def tensor():
        return in_layout(rng.standard_normal(shape).astype(fmt.dtype), layout)

    def vector():
        return rng.standard_normal(shape[1]).astype(fmt.dtype)

    return Problem(
        tensor(), tensor(), tensor(), vector(), vector(), vector(), vector(), vector(), np.abs(vector()), 1e-3
    )


@every_backend
@every_format
@pytest.mark.parametrize("frozen_statistics", [False, True])
def test_layouts(backend, fmt, frozen_statistics):
    plain = run(simple(fmt, (2, 3, 4, 3)), backend, None, frozen_statistics)
    for layout in LAYOUTS:
        p = simple(fmt, (2, 3, 4, 3), layout)
        assert_right(p, backend, frozen_statistics)
        if backend != "reference":
            same = run(p, backend, None, frozen_statistics)
            assert_same_bits(same, plain, layout)


@every_backend
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_keep_the_memory_order_of_x(backend, layout):
    p = simple(layout=layout, shape=(4, 3, 5, 2))
    y = refbn.forward(p.x, backend=backend).y
    order = np.argsort(np.abs(p.x.strides), kind="stable")
    np.testing.assert_array_equal(np.argsort(y.strides, kind="stable"), order)


@every_backend
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_channel_axis(backend, axis):
    p = simple()
    moved = np.moveaxis(p.x, 1, axis)
    fwd = refbn.forward(moved, p.gamma, p.beta, channel_axis=axis, backend=backend)
    expected = refbn.forward(p.x, p.gamma, p.beta, backend=backend)  # the same memory, so the same canonical view
    np.testing.assert_array_equal(np.moveaxis(fwd.y, axis, 1), expected.y)
    assert fwd.mean.shape == (3,)


@every_backend
@every_format
@pytest.mark.parametrize("frozen_statistics", [False, True])
def test_inputs_are_left_as_they_were(backend, fmt, frozen_statistics):
    p = simple(fmt)
    before = {f.name: np.copy(getattr(p, f.name)) for f in fields(p)}
    run(p, backend, None, frozen_statistics)
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(p, name), value)


@every_backend
def test_the_same_call_gives_the_same_bits(backend):
    p = simple(BINARY32)
    for frozen_statistics in (False, True):
        first, second = (run(p, backend, None, frozen_statistics) for _ in range(2))
        assert all(first[key].tobytes() == second[key].tobytes() for key in first)


@every_backend
def test_out_is_written_and_returned(backend):
    p = simple()
    plain = run(p, backend)
    out = {
        name: {key[1]: np.empty_like(a) for key, a in plain.items() if key[0] == name}
        for name in (*PASSES[2:], "forward")
    }
    fwd = refbn.forward(p.x, p.gamma, p.beta, eps=p.eps, backend=backend, out=out["forward"])
    assert fwd.y is out["forward"]["y"] and fwd.invstd is out["forward"]["invstd"]
    refbn.backward(fwd.saved, p.dy, out=out["backward"])
    y_dot = refbn.jvp(fwd.saved, p.ddx, p.ddgamma, p.ddbeta, out=out["jvp"]["y_dot"])
    assert y_dot is out["jvp"]["y_dot"]
    refbn.double_backward(fwd.saved, p.dy, p.ddx, p.ddgamma, p.ddbeta, out=out["double_backward"])
    refbn.hvp(fwd.saved, p.dy, p.ddx, p.ddgamma, p.ddbeta, out=out["hvp"])
    for (name, output), expected in plain.items():
        np.testing.assert_array_equal(out[name][output], expected)


@every_backend
def test_what_is_left_out_is_zero(backend):
    p = simple()
    for fwd in (
        refbn.forward(p.x, p.gamma, p.beta, backend=backend),
        refbn.inference(p.x, p.mean, p.var, p.gamma, p.beta, backend=backend),
    ):
        zero, zeros = np.zeros_like(p.x), np.zeros(3)
        np.testing.assert_array_equal(
            refbn.jvp(fwd.saved, gamma_dot=p.gamma), refbn.jvp(fwd.saved, zero, p.gamma, zeros)
        )
        a = refbn.double_backward(fwd.saved, p.dy, ddgamma=p.gamma)
        b = refbn.double_backward(fwd.saved, p.dy, zero, p.gamma, zeros)
        np.testing.assert_array_equal(a.dx, b.dx)
        np.testing.assert_array_equal(refbn.jvp(fwd.saved), zero)
    defaults = refbn.forward(p.x, backend=backend)
    explicit = refbn.forward(p.x, np.ones(3), np.zeros(3), eps=1e-5, backend=backend)
    np.testing.assert_array_equal(defaults.y, explicit.y)


# ---- answers at the edges (R1 to R6) ------------------------------------------------------------------------------


@every_backend
@every_format
@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_r1_training_poisons_one_channel(backend, fmt, special):
    p = simple(fmt)
    p.x[1, 1, 2] = special
    clean = run(simple(fmt), backend)
    for key, got in run(p, backend).items():
        channels = np.moveaxis(got, 1, 0) if got.ndim > 1 else got
        untouched = key[1] == "dbeta"
        assert np.isnan(channels[1]).all() != untouched, key
        expected = np.moveaxis(clean[key], 1, 0) if got.ndim > 1 else clean[key]
        np.testing.assert_array_equal(channels[[0, 2]], expected[[0, 2]], str(key))


@every_backend
@pytest.mark.parametrize("special", [np.inf, np.nan])
def test_r1_frozen_statistics_poison_one_element(backend, special):
    p = simple()
    p.x[1, 1, 2] = special
    found = run(p, backend, None, True)
    for key in (("inference", "y"), ("jvp", "y_dot")):
        assert np.isnan(found[key]).sum() == 1 and np.isnan(found[key][1, 1, 2]), key
    assert np.isfinite(found["backward", "dx"]).all()
    assert list(np.isnan(found["backward", "dgamma"])) == [False, True, False]
    assert np.isfinite(found["backward", "dbeta"]).all()
    assert np.isfinite(found["backward", "dmean"]).all()
    assert list(np.isnan(found["backward", "dvar"])) == [False, True, False]


@every_backend
@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_r1_other_inputs(backend, special):
    bad = np.array([1.0, special, 1.0])
    p = simple()
    assert list(np.isnan(refbn.forward(p.x, beta=bad, backend=backend).y).any((0, 2))) == [False, True, False]
    fwd = refbn.forward(p.x, gamma=bad, backend=backend)
    assert np.isnan(fwd.y[:, 1]).all() and np.isfinite(fwd.mean).all() and np.isfinite(fwd.invstd).all()
    dy = p.dy.copy()
    dy[0, 2, 0] = special
    grads = refbn.backward(refbn.forward(p.x, backend=backend).saved, dy)
    for got in (
        grads.dx.any((0, 2)) * 0 + np.isnan(grads.dx).any((0, 2)),
        np.isnan(grads.dgamma),
        np.isnan(grads.dbeta),
    ):
        assert list(got) == [False, False, True]


@every_backend
def test_r2_no_variance_and_no_eps(backend):
    p = simple()
    p.x[:, 1] = 3.25
    fwd = refbn.forward(p.x, p.gamma, p.beta, eps=0.0, backend=backend)
    assert (fwd.mean[1], fwd.var[1], fwd.invstd[1]) == (3.25, 0.0, np.inf)
    assert np.isnan(fwd.y[:, 1]).all() and np.isfinite(fwd.y[:, [0, 2]]).all()
    grads = refbn.backward(fwd.saved, p.dy)
    assert np.isnan(grads.dx[:, 1]).all() and np.isnan(grads.dgamma[1]) and np.isfinite(grads.dbeta).all()
    frozen_statistics = refbn.inference(p.x, p.mean, np.zeros(3), eps=0.0, backend=backend)
    assert np.isnan(frozen_statistics.y).all() and np.isinf(frozen_statistics.invstd).all()


@every_backend
@every_format
@pytest.mark.parametrize("value", [0.0, 1.7, -1e4])
def test_r3_a_constant_channel_gives_beta_exactly(backend, fmt, value):
    x = np.full((7, 3), value).astype(fmt.dtype)
    beta = np.array([0.3, -2.0, 0.0]).astype(fmt.dtype)
    fwd = refbn.forward(x, np.array([3.0, -1.0, -2.0]).astype(fmt.dtype), beta, backend=backend)
    np.testing.assert_array_equal(fwd.y, np.broadcast_to(beta, x.shape))
    np.testing.assert_array_equal(fwd.mean, x[0])
    np.testing.assert_array_equal(fwd.var, 0)
    assert not np.signbit(fwd.y[:, 2]).any(), "R4: an exact zero is +0"


@every_backend
def test_r3_one_element(backend):
    p = simple(shape=(1, 3))
    fwd = refbn.forward(p.x, p.gamma, p.beta, eps=0.25, backend=backend)
    np.testing.assert_array_equal(fwd.y, p.beta[None])
    np.testing.assert_array_equal(fwd.mean, p.x[0])
    np.testing.assert_array_equal(fwd.invstd, 2.0)
    grads = refbn.backward(fwd.saved, p.dy)
    np.testing.assert_array_equal(grads.dx, 0)
    np.testing.assert_array_equal(grads.dbeta, p.dy[0])


def assert_is_forward_of(y, x, gamma, beta, backend):
    """Hold y to the forward at eps = 0 of an x that differs by a power of two, of moderate size."""
    exact = refbn.forward(x, gamma, beta, eps=0.0, backend="exact").y
    limit = bounds.forward(rows(x), gamma, beta, 0.0)["y"] * (backend == "reference")
    assert np.all(np.abs(rows(y) - rows(exact)) <= limit + 2 * format_of(y.dtype).unit_roundoff * np.abs(rows(exact)))


@every_backend
def test_r5_overflow_of_the_result_and_of_nothing_else(backend):
    x = np.ldexp(np.arange(12.0).reshape(4, 3) ** 2 - 30.0, 1016)
    fwd = refbn.forward(x, eps=1e-5, backend=backend)
    assert_is_forward_of(fwd.y, np.ldexp(x, -1015), np.ones(3), np.zeros(3), backend)
    assert np.isinf(fwd.var).all() and np.isfinite(fwd.mean).all()
    small = np.ldexp(x, -1000).astype(np.float32)
    narrow = refbn.forward(small, eps=0.0, dtype=np.float16, backend=backend)
    assert np.isinf(narrow.var).all()
    assert_is_forward_of(narrow.y, small.astype(np.float64), np.ones(3), np.zeros(3), backend)


@every_backend
@pytest.mark.parametrize("exponent", [-1060, -600, 500])
def test_extreme_scales_of_binary64(backend, exponent):
    p = simple()
    x = np.round(p.x * 256)
    fwd = refbn.forward(np.ldexp(x, exponent), p.gamma, p.beta, eps=0.0, backend=backend)
    assert_is_forward_of(fwd.y, x, p.gamma, p.beta, backend)


@every_backend
def test_r6_nothing_to_normalize(backend):
    vec = np.ones(3)
    for shape in ((0, 3), (2, 3, 0)):
        fwd = refbn.inference(np.ones(shape), vec, vec, backend=backend)
        grads = refbn.backward(fwd.saved, np.ones(shape))
        assert fwd.y.shape == grads.dx.shape == shape
        np.testing.assert_array_equal([grads.dgamma, grads.dbeta, grads.dmean, grads.dvar], np.zeros((4, 3)))
    assert refbn.forward(np.ones((4, 0)), backend=backend).y.shape == (4, 0)


# ---- invariants --------------------------------------------------------------------------------------------------


@few
@given(p=problems(), frozen_statistics=st.booleans())
def test_adjoint_identity(p, frozen_statistics):
    """⟨dy, J u⟩ = ⟨Jᵀ dy, u⟩, with results of the oracle in binary64: one rounding each."""
    p = replace(p, eps=max(p.eps, 1e-12))
    found = run(p, "exact", "float64", frozen_statistics)
    y_dot, dx = found["jvp", "y_dot"], found["backward", "dx"]
    terms = [load(p.dy) * y_dot, load(p.ddx) * dx]
    pairs = [("dgamma", p.ddgamma), ("dbeta", p.ddbeta)]
    if frozen_statistics:
        pairs += [("dmean", p.ddgamma), ("dvar", p.ddbeta)]
    parameters = [found["backward", name].astype(np.float64) * load(along) for name, along in pairs]
    left, right = terms[0].sum(), terms[1].sum() + sum(t.sum() for t in parameters)
    size = sum(np.abs(t).sum() for t in (*terms, *parameters))
    # parameters' gradients are rounded to the parameters' format
    assert abs(left - right) <= (2 * format_of(p.gamma.dtype).unit_roundoff + 1e-14 * p.x.size) * size + 1e-290


@every_backend
@few
@given(p=problems())
def test_gradients_sum_to_zero(backend, p):
    """Σ dx = 0: batch norm does not see a shift."""
    p = replace(p, eps=max(p.eps, 1e-5))
    dx = rows(run(p, backend)["backward", "dx"])
    fmt, allowed = format_of(p.x.dtype), allowances(p, False)["backward", "dx"] * (backend == "reference")
    for row, bound in zip(dx, allowed, strict=True):
        if np.isfinite(row).all():
            rounding = fmt.unit_roundoff * np.abs(row) + fmt.tiny
            # exact sums, so that what is added up here needs no allowance of its own
            assert abs(math.fsum(row)) <= math.fsum(bound + rounding) * (1 + 1e-10)


@every_backend
def test_permuting_the_batch(backend):
    p = simple(BINARY32, (16, 3))
    order = np.random.default_rng(0).permutation(16)
    q = replace(p, x=p.x[order], dy=p.dy[order], ddx=p.ddx[order])
    assert_right(q, backend, False)
    if backend != "reference":
        assert_same_bits(run(q, backend), {k: a[order] if a.ndim > 1 else a for k, a in run(p, backend).items()})


# ---- what is built from the passes ---------------------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_jacobian_and_hessian_are_the_textbook_s(backend, axis):
    from refbn import reference

    p = simple(shape=(2, 3, 2))
    x, dy = (np.moveaxis(a, 1, axis) for a in (p.x, p.dy))
    saved = refbn.forward(x, p.gamma, p.beta, eps=p.eps, channel_axis=axis, backend=backend).saved
    jacobian, hessian = refbn.jacobian(saved), refbn.hessian(saved, dy)
    stats = statistics(rows(p.x), p.eps)
    textbook_j, textbook_h = reference.jacobian(stats, p.gamma), reference.hessian(stats, p.gamma, rows(p.dy))
    # A bound grows with the direction's magnitudes, so ones bound every unit vector; both sides may use it up.
    ones, zero = np.ones((3, 4)), np.zeros(3)
    limit_j = 2 * bounds.jvp(stats, p.gamma, ones, zero, zero)["y_dot"]
    limit_h = 2 * bounds.hvp(stats, p.gamma, rows(p.dy), ones, zero)["dx"]
    for dense, blocks, limit in (
        (jacobian.dy_dx, textbook_j.dy_dx, limit_j),
        (hessian.dx_dx, textbook_h.dx_dx, limit_h),
    ):
        first = np.moveaxis(dense, (axis, 3 + axis), (0, 3)).reshape(3, 4, 3, 4)
        for c in range(3):
            for d in range(3):
                expected = blocks[c] if c == d else np.zeros((4, 4))
                assert np.all(np.abs(first[c, :, d] - expected) <= limit[c][:, None] * (c == d))
    ones = np.ones(3)
    np.testing.assert_array_equal(jacobian.dy_dgamma.sum(-1), refbn.jvp(saved, gamma_dot=ones))
    np.testing.assert_array_equal(jacobian.dy_dbeta.sum(-1), np.ones(x.shape))
    np.testing.assert_array_equal(hessian.dx_dgamma.sum(-1), refbn.hvp(saved, dy, gamma_dot=ones).dx)


@pytest.mark.parametrize("backend", ["exact", "reference"])
def test_taylor(backend):
    p = simple()
    gammas, betas = [p.gamma, p.ddgamma], [p.beta, p.ddbeta]
    series = refbn.taylor([p.x, p.ddx, p.dy], gammas, betas, eps=p.eps, backend=backend)
    assert series.shape == (3, *p.x.shape)
    saved = refbn.forward(p.x, p.gamma, p.beta, eps=p.eps, backend="exact").saved
    first_order = refbn.jvp(saved, p.ddx, p.ddgamma, p.ddbeta)
    stats = statistics(rows(p.x), p.eps)
    limit = bounds.jvp(stats, p.gamma, rows(p.ddx), p.ddgamma, p.ddbeta)["y_dot"] * (backend != "exact")
    assert np.all(np.abs(rows(series[1]) - rows(first_order)) <= limit)

    def second_difference(step):
        ys = [
            refbn.forward(
                p.x + t * p.ddx + t * t * p.dy,
                p.gamma + t * p.ddgamma,
                p.beta + t * p.ddbeta,
                eps=p.eps,
                backend="exact",
            ).y
            for t in (-step, 0.0, step)
        ]
        return (ys[0] - 2 * ys[1] + ys[2]) / (2 * step * step)

    coarse, fine = second_difference(2.0**-8), second_difference(2.0**-9)
    # The truncation error falls by four: what is left is a third of the last change; as much again for rounding.
    assert np.all(np.abs(series[2] - fine) <= np.abs(coarse - fine) + 2.0**18 * BINARY64.unit_roundoff * 8)


def test_the_table_is_in_order_and_complete():
    assert list(backends.TABLE) == ["native", "numba", "reference", "exact"]
    assert backends.available() == tuple(backends.TABLE), "a test environment has them all"
    assert backends.first() == "native"
    p = simple()
    assert refbn.forward(p.x).saved.backend == "native"
