"""Layer, group and instance norm and batch renormalization: every bit, every edge, every layout."""

from fractions import Fraction

import numpy as np
import pytest
import torch

import refbn
from refbn import _geometry, backends
from refbn._formats import BFLOAT16, BINARY64, FORMATS, round_to
from refbn.audit.budget import Model, Running
from refbn.backends.normalization import Normalization
from refbn.exact import derivatives, program

SHAPE = (2, 4, 3)
NORMS = {
    "layer": (lambda x, *affine, **options: refbn.layer_norm(x, *affine, axes=(1, 2), **options), (4, 3)),
    "layer of one axis": (lambda x, *affine, **options: refbn.layer_norm(x, *affine, **options), (3,)),
    "layer of the first": (lambda x, *affine, **options: refbn.layer_norm(x, *affine, axes=0, **options), (2,)),
    "group": (lambda x, *affine, **options: refbn.group_norm(x, 2, *affine, **options), (4,)),
    "group, channels last": (lambda x, *a, **options: refbn.group_norm(x, 3, *a, channel_axis=2, **options), (3,)),
    "group, channels first": (lambda x, *a, **options: refbn.group_norm(x, 1, *a, channel_axis=0, **options), (2,)),
    "instance": (lambda x, *affine, **options: refbn.instance_norm(x, *affine, **options), (4,)),
    "instance, channels first": (lambda x, *a, **k: refbn.instance_norm(x, *a, channel_axis=0, **k), (2,)),
    "renorm": (
        lambda x, *a, **k: refbn.batch_renorm(x, np.array([1.5, 0.3, 3, 1]), np.array([0.1, -2, 5, 0]), *a, **k),
        (4,),
    ),
}
each_norm = pytest.mark.parametrize("name", NORMS)


def problem(name, dtype, seed=0, kind="normal", shape=SHAPE):
    """Return inputs of all passes by name."""
    rng = np.random.default_rng(seed)

    def draw(size):
        values = rng.standard_normal(size)
        if kind == "integers":
            values = np.round(2 * values)
        return values

    tensors = {key: draw(shape) for key in ("x", "dy", "u")}
    if kind == "offset":
        tensors["x"] += 1e3
    if kind == "constant":
        tensors["x"][...] = 2.5
    if kind == "one of each":
        tensors["x"][0] = 1.0
        tensors["dy"][1] = 1.0
    if kind == "extreme" and np.finfo(np.dtype(dtype) if dtype is not BFLOAT16.dtype else np.float32).maxexp > 1000:
        tensors["x"] *= 2.0 ** rng.integers(-540, 540, shape)
    vectors = {key: draw(NORMS[name][1]) for key in ("gamma", "beta", "gamma_dot", "beta_dot")}
    return {key: round_to(values, dtype) for key, values in (tensors | vectors).items()}


def everything(name, p, eps=1e-5, **options):
    """Return all results of all passes by name."""
    fwd = NORMS[name][0](p["x"], p["gamma"], p["beta"], eps=eps, **options)
    results = {key: getattr(fwd, key) for key in ("y", "mean", "var", "invstd")}
    first = refbn.backward(fwd.saved, p["dy"])
    second = refbn.double_backward(fwd.saved, p["dy"], p["u"], p["gamma_dot"], p["beta_dot"])
    along = refbn.hvp(fwd.saved, p["dy"], p["u"], p["gamma_dot"], p["beta_dot"])
    results["y_dot"] = refbn.jvp(fwd.saved, p["u"], p["gamma_dot"], p["beta_dot"])
    for prefix, record in (("", first), ("second ", second), ("hvp ", along)):
        for key in ("dx", "dgamma", "dbeta", "ddy"):
            if hasattr(record, key):
                results[prefix + key] = getattr(record, key)
    return results


def assert_same_bits(got, expected):
    assert got.keys() == expected.keys()
    for key in got:
        assert got[key].dtype == expected[key].dtype and got[key].shape == expected[key].shape
        assert np.array_equal(got[key], expected[key], equal_nan=True), key
        zeros = expected[key] == 0
        assert np.array_equal(np.signbit(got[key][zeros]), np.signbit(expected[key][zeros])), key


@each_norm
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("kind", ["normal", "integers", "offset", "constant", "one of each", "extreme"])
def test_every_bit_is_the_oracles(name, form, kind):
    p = problem(name, form.dtype, 1, kind)
    for eps in (1e-5, 0.0):
        assert_same_bits(everything(name, p, eps), everything(name, p, eps, backend="exact"))


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_batch_norm_by_this_route_has_the_native_bits(form):
    """Two routes that share no derivative formula: the C core, and the oracle's program over balls."""
    rng = np.random.default_rng(5)
    for seed in range(24):
        shape = tuple(int(k) for k in rng.integers(1, 6, 3))
        kind = ("normal", "integers", "offset", "constant", "extreme", "one of each")[seed % 6]
        p = problem("instance", form.dtype, seed, kind, shape)
        for key in ("gamma", "beta", "gamma_dot", "beta_dot"):
            p[key] = round_to(rng.standard_normal(shape[1]), form.dtype)
        if seed % 5 == 4:
            p["x"].flat[0], p["dy"].flat[-1] = np.inf, np.nan
        geometry = _geometry.batch_norm(shape, 1)
        by_balls = Normalization("enclosure", geometry)
        expected = passes(backends.load(backends.first()), p, geometry.canonical, shape)
        got = passes(by_balls, p, lambda *tensors: [t.transpose(1, 0, 2) for t in tensors], shape)
        assert_same_bits(got, expected)


def passes(kernels, p, canonical, shape, eps=0.0):
    """Run the contract's passes on canonical views; return the results as (N, C, …)."""
    out = {key: np.zeros(shape, p["x"].dtype) for key in ("y", "dx", "ddy", "second dx", "hvp dx", "y_dot")}
    vectors = ("mean", "var", "invstd", "dgamma", "dbeta", "second dgamma", "hvp dgamma", "hvp dbeta")
    out |= {key: np.zeros(shape[1], p["x"].dtype) for key in vectors}
    x, dy, u, y, dx, ddy, second, moved, y_dot = canonical(
        p["x"], p["dy"], p["u"], *(out[key] for key in ("y", "dx", "ddy", "second dx", "hvp dx", "y_dot"))
    )
    gamma, beta, gamma_dot, beta_dot = (p[key] for key in ("gamma", "beta", "gamma_dot", "beta_dot"))
    statistics = {key: out[key] for key in ("mean", "var", "invstd")}
    state = kernels.forward(x, gamma, beta, eps, y=y, **statistics)
    kernels.backward(state, x, gamma, dy, dx=dx, dgamma=out["dgamma"], dbeta=out["dbeta"])
    kernels.jvp(state, x, gamma, u, gamma_dot, beta_dot, y_dot=y_dot)
    kernels.double_backward(
        state, x, gamma, dy, u, gamma_dot, beta_dot, ddy=ddy, dx=second, dgamma=out["second dgamma"]
    )
    kernels.hvp(state, x, gamma, dy, u, gamma_dot, dx=moved, dgamma=out["hvp dgamma"], dbeta=out["hvp dbeta"])
    return out


@each_norm
def test_the_textbook_is_as_near_as_a_competent_implementation(name):
    """The bound is the audit's budget, propagated through the oracle's program, group by group."""
    p = problem(name, np.float64, 7)
    exact, textbook = (everything(name, p, backend=backend) for backend in ("exact", "reference"))
    saved = NORMS[name][0](p["x"], p["gamma"], p["beta"]).saved
    geometry = saved.geometry
    model = Model.of(BINARY64, geometry.count)
    order = (*geometry.group_axes, *geometry.reduced_axes)

    def rows(tensor):
        return geometry.rows(tensor.reshape(geometry.split).transpose(order)).astype(float)

    tensors = {key: Running.given(model, rows(p[key])) for key in ("x", "dy", "u")}
    affine = {
        key: Running.given(model, geometry.rows(geometry.spread(p[key])).astype(float))
        for key in ("gamma", "beta", "gamma_dot", "beta_dot")
    }
    inputs = {"x": tensors["x"], "gamma": affine["gamma"], "beta": affine["beta"], "eps": Fraction(1e-5)}
    definition = program.batch_norm
    if geometry.corrected:
        definition = program.batch_renorm
        inputs |= {key: Running.given(model, getattr(saved.state, key)) for key in ("r", "d")}
    along = {"x": tensors["u"], "gamma": affine["gamma_dot"], "beta": affine["beta_dot"]}
    wanted = ("x", "gamma")
    first = derivatives(definition, inputs, cotangent=tensors["dy"], wanted=wanted)
    second = derivatives(definition, inputs, order=1, directions=along, cotangent=tensors["dy"], wanted=wanted)
    for key, number in (
        ("y", first_value(definition, inputs)),
        ("dx", first.gradient["x"]),
        ("y_dot", second.value),
        ("hvp dx", second.gradient["x"]),
        ("second ddy", second.value),
    ):
        error = np.abs(rows(textbook[key]) - rows(exact[key]))
        size = np.max(number.size, axis=1, keepdims=True)  # budgets are of groups: elements may cancel
        assert (error <= 4 * number.error + 4 * model.u * size).all(), key
    for key, number in (("dgamma", first.gradient["gamma"]), ("hvp dgamma", second.gradient["gamma"])):
        terms = np.broadcast_to(number.error + model.u * number.size, (geometry.groups, geometry.count))
        bound = geometry.by_affine(terms).sum(axis=1) * 8
        assert (np.abs(textbook[key] - exact[key]).reshape(-1) <= bound).all(), key


def first_value(definition, inputs):
    return derivatives(definition, inputs).value


@pytest.mark.parametrize("backend", ["enclosure", "reference"])
def test_against_torch(backend):
    """The conventions are the field's: which element has which gamma, and the order of the groups."""
    functional = torch.nn.functional
    for name, theirs in {
        "layer": lambda x, g, b: functional.layer_norm(x, (4, 3), g, b),
        "layer of one axis": lambda x, g, b: functional.layer_norm(x, (3,), g, b),
        "group": lambda x, g, b: functional.group_norm(x, 2, g, b),
        "instance": lambda x, g, b: functional.instance_norm(x, weight=g, bias=b),
    }.items():
        p = problem(name, np.float64, 3)
        x, gamma, beta = (torch.from_numpy(p[key]).requires_grad_() for key in ("x", "gamma", "beta"))
        y = theirs(x, gamma, beta)
        dx, dgamma, dbeta = torch.autograd.grad(y, (x, gamma, beta), torch.from_numpy(p["dy"]))
        ours = everything(name, p, backend=backend)
        for key, value in (("y", y), ("dx", dx), ("dgamma", dgamma), ("dbeta", dbeta)):
            np.testing.assert_allclose(ours[key], value.detach().numpy(), rtol=0, atol=2.0**-40)


@each_norm
def test_a_gradient_is_the_adjoint_of_the_tangent(name):
    """⟨dy, J(ẋ, γ̇, β̇)⟩ = ⟨Jᵀdy, (ẋ, γ̇, β̇)⟩, up to the rounding of the outputs."""
    p = problem(name, np.float64, 11)
    results = everything(name, p)
    left = p["dy"] * results["y_dot"]
    right = [p["u"] * results["dx"], p["gamma_dot"] * results["dgamma"], p["beta_dot"] * results["dbeta"]]
    size = np.abs(left).sum() + sum(np.abs(part).sum() for part in right)
    assert abs(left.sum() - sum(part.sum() for part in right)) <= 2.0**-52 * size * 4


@each_norm
def test_layouts_and_out_change_nothing(name):
    p = problem(name, np.float32, 13)
    expected = everything(name, p)
    for change in (np.asfortranarray, lambda a: a[::-1].copy()[::-1], lambda a: np.repeat(a, 2, axis=-1)[..., ::2]):
        assert_same_bits(everything(name, {key: change(a) for key, a in p.items()}), expected)
    swapped = p | {"x": p["x"].astype(">f4"), "gamma": p["gamma"].astype(">f4")}
    assert_same_bits(everything(name, swapped), expected)
    fwd = NORMS[name][0](p["x"], p["gamma"], p["beta"])
    out = {key: np.full_like(expected[key], 7) for key in ("y", "mean", "var", "invstd")}
    assert NORMS[name][0](p["x"], p["gamma"], p["beta"], out=out).y is out["y"]
    into = {key: np.full_like(expected[key], 7) for key in ("dx", "dgamma", "dbeta")}
    refbn.backward(fwd.saved, p["dy"], out=into)
    assert_same_bits(out | into, {key: expected[key] for key in (*out, *into)})


@pytest.mark.parametrize("name", ["layer", "group", "instance"])
def test_samples_in_any_order(name):
    p = problem(name, np.float32, 17)
    order = np.array([1, 0])
    shuffled = everything(name, p | {key: p[key][order] for key in ("x", "dy", "u")})
    expected = everything(name, p)
    for key in expected:
        per_sample = not key.endswith(("dgamma", "dbeta"))
        np.testing.assert_array_equal(shuffled[key], expected[key][order] if per_sample else expected[key])


@pytest.mark.parametrize("name", ["layer", "group, channels last", "instance", "renorm"])
@pytest.mark.parametrize("argument", ["x", "dy", "u", "gamma", "beta", "gamma_dot", "beta_dot"])
@pytest.mark.parametrize("backend", ["enclosure", "exact", "reference"])
def test_what_is_no_number_stays_where_it_belongs(name, argument, backend):
    """NaN exactly where a formula contains the value, every other bit as if it were 0."""
    p = problem(name, np.float32, 19)
    place = tuple(size - 1 for size in p[argument].shape)
    p[argument][place] = 0
    expected = everything(name, p, backend=backend)
    p[argument][place] = -np.inf
    with np.errstate(all="raise"):
        got = everything(name, p, backend=backend)
    geometry = NORMS[name][0](p["x"]).saved.geometry
    group, same = touched(geometry, argument, place)
    for key in got:
        where = contained(geometry, key, argument, group, same)
        if where is None:
            where = np.zeros(got[key].shape, bool)
        assert np.isnan(got[key][where]).all(), key
        np.testing.assert_array_equal(got[key][~where], expected[key][~where], err_msg=key)


WHOLE = {  # a value in one of these makes the group's whole result NaN; in others of its formula, its own element
    "y": "x",
    "y_dot": "x u",
    "second ddy": "x u",
    "dx": "x gamma dy",
    "second dx": "x gamma dy u gamma_dot",
    "hvp dx": "x gamma dy u gamma_dot",
    "dgamma": "x",
    "second dgamma": "x u",
    "hvp dgamma": "x u",
    "dbeta": "",
    "hvp dbeta": "",
    "mean": "x",
    "var": "x",
    "invstd": "x",
}
OWN = {
    "y": "gamma beta",
    "y_dot": "gamma gamma_dot beta_dot",
    "second ddy": "gamma gamma_dot beta_dot",
    "dgamma": "dy",
    "second dgamma": "dy",
    "hvp dgamma": "dy",
    "dbeta": "dy",
}


def touched(geometry, argument, place):
    """Return tensors (N, C, L) of bool: the groups that the value belongs to, and the elements that it is or scales."""
    mark = np.zeros(geometry.affine_shape if argument.startswith(("gamma", "beta")) else geometry.shape, bool)
    mark[place] = True
    order = (*geometry.group_axes, *geometry.reduced_axes)
    if mark.shape == geometry.shape and not argument.startswith(("gamma", "beta")):
        rows = geometry.rows(mark.reshape(geometry.split).transpose(order))
    else:
        rows = geometry.rows(geometry.spread(mark))
    return np.broadcast_to(rows.any(axis=1, keepdims=True), rows.shape), rows


def contained(geometry, key, argument, group, same):
    """Where a result contains the value, in the result's shape; None for nowhere."""
    if argument in WHOLE[key].split():
        rows = group
    elif argument in OWN.get(key, "").split():
        rows = same
    else:
        return None
    if key in ("mean", "var", "invstd"):
        return rows.any(axis=1).reshape(geometry.group_shape)
    if key.endswith(("dgamma", "dbeta")):
        return geometry.by_affine(rows).any(axis=1).reshape(geometry.affine_shape)
    order = (*geometry.group_axes, *geometry.reduced_axes)
    shape = tuple(geometry.split[axis] for axis in order)
    return rows.reshape(shape).transpose(np.argsort(order)).reshape(geometry.shape)


def test_groups_without_a_spread():
    x = np.array([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]])
    for backend in ("enclosure", "exact", "reference"):
        fwd = refbn.layer_norm(x, eps=0.0, backend=backend)
        assert np.isnan(fwd.y[0]).all() and not np.isnan(fwd.y[1]).any()
        assert fwd.invstd[0] == np.inf and fwd.var[0] == 0
        grads = refbn.backward(fwd.saved, x)
        assert np.isnan(grads.dgamma).all() and np.isnan(grads.dx[0]).all() and (grads.dbeta == [3, 4, 5]).all()
        fwd = refbn.layer_norm(x, beta=x[1], eps=1e-5, backend=backend)
        assert (fwd.y[0] == x[1]).all()


def test_one_element_and_no_sample():
    for backend in ("enclosure", "exact", "reference"):
        fwd = refbn.layer_norm(np.array([[3.0], [4.0]]), np.array([2.0]), np.array([7.0]), backend=backend)
        assert (fwd.y == 7).all() and (refbn.backward(fwd.saved, fwd.y).dx == 0).all()
        empty = refbn.layer_norm(np.zeros((0, 3), np.float32), backend=backend)
        assert empty.y.shape == (0, 3) and empty.mean.shape == (0,)
        grads = refbn.backward(empty.saved, empty.y)
        assert (grads.dgamma == 0).all() and grads.dgamma.shape == (3,)
        assert refbn.hvp(empty.saved, empty.y, empty.y).dx.shape == (0, 3)


def test_many_blocks_are_one_result():
    rng = np.random.default_rng(23)
    for name, function, shape in (
        ("layer", refbn.layer_norm, (700, 40)),
        ("instance", refbn.instance_norm, (60, 7, 50)),
        ("renorm", lambda x, **k: refbn.batch_renorm(x, np.ones(400), np.zeros(400), **k), (40, 400)),
    ):
        x, dy = rng.standard_normal((2, *shape)).astype(np.float32)
        ours = refbn.backward(function(x).saved, dy)
        textbook = refbn.backward(function(x.astype(np.float64), backend="reference").saved, dy)
        for key in ("dx", "dgamma", "dbeta"):
            expected = getattr(textbook, key)
            error = np.abs(getattr(ours, key) - expected)
            # Half a unit in the last place, and what the textbook in binary64 may lose of sums of 3000 numbers.
            assert (error <= np.abs(expected) * 2.0**-24 + 2.0**-40).all(), (name, key)


@pytest.mark.parametrize("name", ["layer", "group", "instance", "renorm"])
def test_formats_of_tensors_and_vectors_may_differ(name):
    p = problem(name, np.float64, 29)
    p |= {key: round_to(p[key], np.float16) for key in ("gamma", "beta_dot")}
    p |= {"x": round_to(p["x"], BFLOAT16.dtype), "dy": round_to(p["dy"], np.float32)}
    for dtype in (None, np.float64, np.float16):
        assert_same_bits(everything(name, p, dtype=dtype), everything(name, p, dtype=dtype, backend="exact"))


def test_another_floating_point_environment_is_refused(unusual_mode):
    x = np.arange(6.0).reshape(2, 3)
    with unusual_mode(), pytest.raises(refbn.BackendError) as caught:
        refbn.layer_norm(x)
    assert caught.value.label == "C23"
    refbn.layer_norm(x)
