"""The oracle bound to the backends' contract."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from refbn import exact
from refbn._formats import FORMATS, round_to
from refbn.backends import exact as backend

each_dtype = pytest.mark.parametrize("dtype", [f.dtype for f in FORMATS], ids=lambda d: d.name)
GROUPS, SHAPE = 3, (3, 2, 4)
TENSORS = ("x", "dy", "x_dot", "ddx")

# Per pass: its inputs after the state, its outputs, and what each output's formula contains, as the contract says.
BACKWARD = {"dx": "x gamma dy", "dgamma": "x dy", "dbeta": "dy"}
PASSES = {
    "backward": ("x gamma dy", BACKWARD),
    "jvp": ("x gamma x_dot gamma_dot beta_dot", {"y_dot": "x gamma x_dot gamma_dot beta_dot"}),
    "double_backward": (
        "x gamma dy ddx ddgamma ddbeta",
        {"ddy": "x gamma ddx ddgamma ddbeta", "dx": "x gamma dy ddx ddgamma", "dgamma": "x dy ddx"},
    ),
    "hvp": ("x gamma dy x_dot gamma_dot", {"dx": "x gamma dy x_dot gamma_dot", "dgamma": "x dy x_dot", "dbeta": ""}),
    "inference_backward": (
        "x gamma dy",
        {
            "dx": "var gamma dy",
            "dgamma": "x mean var dy",
            "dbeta": "dy",
            "dmean": "var gamma dy",
            "dvar": "x mean var gamma dy",
        },
    ),
    "inference_jvp": (
        "x gamma x_dot mean_dot var_dot gamma_dot beta_dot",
        {"y_dot": "x mean var gamma x_dot mean_dot var_dot gamma_dot beta_dot"},
    ),
    "inference_double_backward": (
        "x gamma dy ddx ddmean ddvar ddgamma ddbeta",
        {
            "ddy": "x mean var gamma ddx ddmean ddvar ddgamma ddbeta",
            "dx": "var gamma dy ddvar ddgamma",
            "dgamma": "x mean var dy ddx ddmean ddvar",
            "dmean": "var gamma dy ddvar ddgamma",
            "dvar": "x mean var gamma dy ddx ddmean ddvar ddgamma",
        },
    ),
    "inference_hvp": (
        "x gamma dy x_dot mean_dot var_dot gamma_dot",
        {
            "dx": "var gamma dy var_dot gamma_dot",
            "dgamma": "x mean var dy x_dot mean_dot var_dot",
            "dbeta": "",
            "dmean": "var gamma dy var_dot gamma_dot",
            "dvar": "x mean var gamma dy x_dot mean_dot var_dot gamma_dot",
        },
    ),
}
TENSOR_RESULTS = {"y", "dx", "y_dot", "ddy"}
each_pass = pytest.mark.parametrize("name", PASSES)


@dataclass
class World:
    """Every input there is, by name, in odd layouts."""

    dtype: Any
    eps: float = 2.0**-10
    shape: tuple[int, ...] = SHAPE
    values: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        rng = np.random.default_rng(7)
        for key in ("x", "dy", "x_dot", "ddx"):
            wide = np.zeros((self.shape[0], 2 * self.shape[1], *self.shape[:1:-1]), self.dtype)
            view = np.moveaxis(wide[:, ::-2], 2, -1) if len(self.shape) > 2 else wide[:, ::-2]
            view[...] = round_to(rng.standard_normal(self.shape), self.dtype)
            self.values[key] = view
        for stem in ("gamma", "beta", "mean", "var"):
            for key in (stem, f"{stem}_dot", f"dd{stem}"):
                view = np.zeros(2 * self.shape[0], self.dtype)[::-2]
                view[...] = round_to(rng.standard_normal(self.shape[0]), self.dtype)
                self.values[key] = np.abs(view) if key == "var" else view

    def __getitem__(self, key):
        return self.values[key]

    def outputs(self, names):
        out = {}
        for key in names:
            if key in TENSOR_RESULTS:
                out[key] = np.zeros((*self.shape[::-1], 2), self.dtype)[..., 1].transpose()
            else:
                out[key] = np.zeros(self.shape[0] * 3, self.dtype)[::3]
        return out

    def state(self, name):
        return self.inference()[1] if name.startswith("inference") else self.forward()[1]

    def forward(self):
        out = self.outputs(("y", "mean", "var", "invstd"))
        return out, backend.forward(self["x"], self["gamma"], self["beta"], self.eps, **out)

    def inference(self):
        out = self.outputs(("y", "invstd"))
        inputs = (self[key] for key in ("x", "mean", "var", "gamma", "beta"))
        return out, backend.inference(*inputs, self.eps, **out)

    def run(self, name):
        inputs, formulas = PASSES[name]
        out = self.outputs(formulas)
        before = {key: self[key].copy() for key in inputs.split()}
        getattr(backend, name)(self.state(name), *(self[key] for key in inputs.split()), **out)
        for key, copy in before.items():
            assert np.array_equal(copy, self[key], equal_nan=True), "an input was written"
        return out

    def flat(self, key):
        return self[key].reshape(self.shape[0], -1) if self[key].ndim > 1 else self[key]


def assert_same_bits(got, want):
    got, want = (a.astype(np.float64) for a in (got, want))
    assert np.array_equal(got, want, equal_nan=True)
    numbers = ~np.isnan(got)
    assert np.array_equal(np.signbit(got[numbers]), np.signbit(want[numbers]))


@each_dtype
def test_forward_and_inference_are_the_rounded_oracle(dtype):
    world = World(dtype)
    got, _ = world.forward()
    want = exact.forward(world.flat("x"), world["gamma"], world["beta"], world.eps)
    for key, array in got.items():
        assert_same_bits(array.reshape(getattr(want, key).shape), getattr(want, key).round(dtype))
    got, _ = world.inference()
    want = exact.inference(world.flat("x"), *(world[k] for k in ("mean", "var", "gamma", "beta")), world.eps)
    for key, array in got.items():
        assert_same_bits(array.reshape(getattr(want, key).shape), getattr(want, key).round(dtype))


@each_dtype
@each_pass
def test_derivatives_are_the_rounded_oracle(name, dtype):
    world = World(dtype)
    got = world.run(name)
    inputs = {key: world.flat(key) for key in PASSES[name][0].split()}
    if name.startswith("inference"):
        inputs |= {"mean": world["mean"], "var": world["var"]}
    want = getattr(exact, name)(eps=world.eps, **inputs)
    for key, array in got.items():
        values = want if name.endswith("jvp") else getattr(want, key)
        assert_same_bits(array.reshape(values.shape), values.round(dtype))
        assert np.any(array != 0) or key == "dbeta"


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@each_pass
def test_what_is_no_number_reaches_what_contains_it(name, poison):
    inputs, formulas = PASSES[name]
    frozen = name.startswith("inference")
    clean = World(np.dtype("float32")).run(name)
    for key in [*inputs.split(), *(("mean", "var") if frozen else ())]:
        world = World(np.dtype("float32"))
        world[key][(1, 1, 2) if key in TENSORS else 1] = poison
        for result, got in world.run(name).items():
            hit = np.zeros(got.shape, bool)
            if key in formulas[result].split():
                hit[(1, 1, 2) if frozen and key in TENSORS and got.ndim > 1 else 1] = True
            assert np.array_equal(np.isnan(got), hit), (key, result)
            assert_same_bits(got[~hit], clean[result][~hit])


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_no_number_in_forward(poison):
    formulas = {"x": "y mean var invstd", "gamma": "y", "beta": "y"}
    clean, _ = World(np.dtype("float32")).forward()
    for key, results in formulas.items():
        world = World(np.dtype("float32"))
        world[key][(1, 1, 2) if key == "x" else 1] = poison
        got, _ = world.forward()
        for result, array in got.items():
            hit = np.zeros(array.shape, bool)
            hit[1] = result in results.split()
            assert np.array_equal(np.isnan(array), hit)
            assert_same_bits(array[~hit], clean[result][~hit])


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_no_number_in_inference(poison):
    clean, _ = World(np.dtype("float32")).inference()
    for key in ("x", "mean", "var", "gamma", "beta"):
        world = World(np.dtype("float32"))
        world[key][(1, 1, 2) if key == "x" else 1] = poison
        got, _ = world.inference()
        hit = np.zeros(SHAPE, bool)
        hit[(1, 1, 2) if key == "x" else 1] = True
        assert np.array_equal(np.isnan(got["y"]), hit)
        assert_same_bits(got["y"][~hit], clean["y"][~hit])
        assert np.isnan(got["invstd"]).tolist() == [False, key == "var", False]


@each_dtype
@each_pass
def test_q_is_zero(name, dtype):
    """Group 1 has q = 0; every result but dbeta contains the root there."""
    world, ordinary = World(dtype, eps=0.0), World(dtype, eps=0.0)
    world["x"][1] = 3
    world["var"][1] = 0
    ordinary_results = ordinary.run(name)
    for key, array in world.run(name).items():
        assert np.isnan(array[1].astype(float)).all() == (key != "dbeta")
        for g in (0, 2):
            assert_same_bits(array[g], ordinary_results[key][g])
    forward, state = world.forward()
    assert forward["invstd"][1] == np.inf
    assert np.isnan(forward["y"][1].astype(float)).all()
    assert (forward["mean"][1], forward["var"][1]) == (3, 0)
    out = world.outputs(("out_mean", "out_var"))
    backend.running_update(state, world["x"], Fraction(1, 2), True, True, world["mean"], world["var"], **out)
    assert (out["out_mean"][1], out["out_var"][1]) == (round_to((world["mean"][1:2] + 3.0) / 2, dtype), 0)
    inference, _ = world.inference()
    assert inference["invstd"][1] == np.inf
    assert np.isnan(inference["y"][1].astype(float)).all()
    assert np.isfinite(inference["y"][[0, 2]].astype(float)).all()


def test_q_below_zero_has_no_root():
    world = World(np.dtype("float64"))
    world["var"][1] = -1
    out, _ = world.inference()
    assert np.isnan(out["invstd"]).tolist() == [False, True, False]
    assert np.isnan(out["y"][1]).all()
    assert np.isnan(world.run("inference_backward")["dx"][1]).all()


def test_a_poisoned_group_with_zero_variance_is_nan_throughout():
    world = World(np.dtype("float32"), eps=0.0)
    world["x"][1] = 0
    world["x"][1, 0, 0] = np.nan
    out, state = world.forward()
    assert all(np.isnan(array[1]).all() for array in out.values())
    assert not np.isnan(out["y"][[0, 2]]).any()
    blended = world.outputs(("out_mean", "out_var"))
    running = world["mean"].copy()
    running[2] = np.inf
    backend.running_update(state, world["x"], Fraction(1, 10), False, True, running, world["var"], **blended)
    assert np.isnan(blended["out_mean"]).tolist() == [False, True, True]
    assert np.isnan(blended["out_var"]).tolist() == [False, True, False]


@each_dtype
def test_exact_zeros_are_positive_and_the_range_overflows(dtype):
    world = World(dtype, eps=1.0)
    world["x"][1] = -5
    world["gamma"][:] = -1
    world["beta"][1] = -0.0
    out, _ = world.forward()
    assert_same_bits(out["y"][1], np.zeros(SHAPE[1:]))
    world["dy"][...] = -2
    assert_same_bits(world.run("backward")["dx"], np.zeros(SHAPE))
    top = np.finfo(dtype).max if dtype.name != "bfloat16" else 3.3895313892515355e38
    world["beta"][:] = top
    world["gamma"][:] = top
    y = world.forward()[0]["y"].astype(float)
    assert np.isposinf(y[[0, 2]]).any()
    assert np.isfinite(y[1]).all()


def test_one_element_per_group():
    world = World(np.dtype("float32"), shape=(3, 1))
    out, _ = world.forward()
    assert_same_bits(out["y"][:, 0], world["beta"])
    assert_same_bits(out["var"], np.zeros(3))
    assert_same_bits(world.run("backward")["dx"], np.zeros((3, 1)))
    assert_same_bits(world.run("hvp")["dx"], np.zeros((3, 1)))


@pytest.mark.parametrize("name", [n for n in PASSES if n.startswith("inference")])
def test_no_elements_with_frozen_statistics(name):
    world = World(np.dtype("float32"), eps=0.0, shape=(3, 0, 2))
    world["var"][:] = [1.0, 0.0, np.nan]
    out, _ = world.inference()
    assert out["y"].shape == (3, 0, 2)
    assert_same_bits(out["invstd"], np.array([1.0, np.inf, np.nan]))
    for key, array in world.run(name).items():
        assert_same_bits(array, np.zeros(array.shape))
        assert array.shape == ((3, 0, 2) if key in TENSOR_RESULTS else (3,))


def test_a_tensor_left_out_is_a_view_of_one_zero():
    world = World(np.dtype("float64"))
    world.values["ddx"] = np.broadcast_to(np.zeros(()), SHAPE)
    got = world.run("double_backward")
    world.values["ddx"] = np.zeros(SHAPE)
    for key, array in world.run("double_backward").items():
        assert_same_bits(got[key], array)


def test_formats_mix():
    world, half = World(np.dtype("float64")), np.dtype("float16")
    world.values["x"] = round_to(world["x"], half)
    out = world.outputs(("y", "mean", "var", "invstd"))
    out["y"], out["mean"] = np.zeros(SHAPE, FORMATS[1].dtype), np.zeros(GROUPS, np.float32)
    backend.forward(world["x"], world["gamma"], world["beta"], world.eps, **out)
    want = exact.forward(world.flat("x"), world["gamma"], world["beta"], world.eps)
    for key, array in out.items():
        assert_same_bits(array.reshape(getattr(want, key).shape), getattr(want, key).round(array.dtype))


@each_dtype
def test_taylor(dtype):
    world = World(dtype)
    xs, gammas, betas = (
        tuple(world[k] for k in keys)
        for keys in (("x", "x_dot", "ddx"), ("gamma", "gamma_dot", "ddgamma"), ("beta", "beta_dot", "ddbeta"))
    )
    ys = tuple(world.outputs(("y",))["y"] for _ in xs)
    backend.taylor(xs, gammas, betas, world.eps, y=ys)
    want = exact.taylor([x.reshape(GROUPS, -1) for x in xs], gammas, betas, world.eps)
    for got, coefficient in zip(ys, want, strict=True):
        assert_same_bits(got.reshape(coefficient.shape), coefficient.round(dtype))
    gammas[1][0] = np.nan
    xs[0][2] = 1
    backend.taylor(xs, gammas, betas, 0.0, y=ys)
    broken = [np.isnan(y.astype(float)).all(axis=(1, 2)).tolist() for y in ys]
    assert broken == [[False, False, True], [True, False, True], [True, False, True]]


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("weighs_new", [False, True])
@each_dtype
def test_running_update(dtype, weighs_new, unbiased):
    world = World(dtype)
    _, state = world.forward()
    out = world.outputs(("out_mean", "out_var"))
    arguments = (Fraction(0.1), weighs_new, unbiased, world["mean"], world["var"])
    backend.running_update(state, world["x"], *arguments, **out)
    want = exact.running_update(exact.moments(world.flat("x")), 8, *arguments)
    assert_same_bits(out["out_mean"], want.mean.round(dtype))
    assert_same_bits(out["out_var"], want.var.round(dtype))
