from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from refbn._formats import FORMATS
from refbn.audit.adapters._protocol import OPERATIONS, Unsupported
from refbn.audit.adapters.zoo import ZOO, Control
from refbn.audit.cases import FAMILIES, make_inputs, parse
from refbn.dialects import DIALECTS
from tests.audit.difference_quotients import allowance, deviation, draw, known, running

MISTAKES = [name for name in ZOO if name != "control"]
DERIVATIVES = sorted(name for name in Control.operations if OPERATIONS[name].composition)


def _scaled(scale=1.0, offset=0.0, shape=(8, 2), dtype="float32", special=None):
    inputs = draw(shape, "float64")
    x = (inputs.x * scale + offset).astype(dtype)
    if special is not None:
        x[0, 0] = special
    cast = {
        name: getattr(inputs, name).astype(dtype)
        for name in ("dy", "w", "x_dot", "gamma", "beta", "mean", "gamma_dot", "beta_dot", "mean_dot", "var_dot",
                     "running_mean", "running_var")
    }  # fmt: skip
    batches = tuple((b * scale + offset).astype(dtype) for b in inputs.batches)
    return replace(inputs, x=x, var=np.full(shape[1], 9.0, dtype), batches=batches, **cast)


def _absorbing(shape):
    """Ones between two large numbers that cancel."""
    dy = np.ones(shape, "float32")
    dy[0], dy[-1] = 1e9, -1e9
    return dy


# Where each member shows, apart from the control: (operation, output, inputs).
SHOWS = {
    "one-pass-variance": ("forward", "var", _scaled(offset=4096.0)),
    "one-pass-clipped": ("forward", "var", _scaled(offset=4096.0)),
    "unscaled-overflow": ("forward", "y", _scaled(1e30)),
    "stored-statistics": ("forward", "y", _scaled(3.0, 1500.0, dtype="float16")),
    "narrow-arithmetic": ("forward", "y", _scaled(3.0, 1500.0, dtype="float16")),
    "serial-sums": ("vjp", "dbeta", replace(_scaled(shape=(64, 2)), dy=_absorbing((64, 2)))),
    "folded-affine": ("inference", "y", replace(_scaled(offset=1e6), mean=np.full(2, 1e6, "float32"))),
    "eps-as-floor": ("forward", "y", _scaled(3e-3)),
    "eps-raised": ("forward", "y", replace(_scaled(1e-3), eps=1e-6)),
    "detached-statistics": ("vjp", "dx", _scaled()),
    "cubed-invstd": ("jvp", "y_dot", _scaled(1e-3, dtype="float16")),
    "half-statistics": ("forward", "y", _scaled(offset=4096.0)),
    "narrow-accumulator": ("forward", "y", _scaled(100.0, 15000.0, dtype="float16")),
    "bessel-forward": ("forward", "y", _scaled()),
    "eps-outside-root": ("forward", "y", _scaled(1e-3)),
    "leaking-nan": ("forward", "y", _scaled(special=np.nan)),
    "nan-taken-for-zero": ("forward", "y", _scaled(special=np.nan)),
    "bessel-backward": ("vjp", "dx", _scaled()),
    "dropped-mean-term": ("vjp", "dx", _scaled()),
    "dropped-xhat-term": ("vjp", "dx", _scaled()),
    "detached-mean": ("jvp", "y_dot", _scaled()),
    "detached-variance": ("jvp", "y_dot", _scaled()),
    "eps-forgotten-in-backward": ("vjp", "dx", _scaled(1e-3)),
    "gamma-gradient-without-invstd": ("vjp", "dgamma", _scaled(3.0)),
    "dropped-third-term": ("rev_rev", "dx", _scaled()),
    "constant-statistics-in-jvp": ("rev_fwd", "dx", _scaled()),
    "gamma-outside-projection": ("vjp", "dx", make_inputs(parse("norms:vjp:f32:4x3x5:norm=layer"))),
    "statistics-over-the-last-axis": ("forward", "y", make_inputs(parse("norms:forward:f32:4x3x5:norm=layer"))),
    "eval-gradient-with-training-formula": ("vjp_eval", "dx", _scaled()),
    "invstd-taken-for-variance": ("vjp_eval", "dx", _scaled()),
    "inference-read-as-training": ("inference", "y", _scaled(offset=50.0)),
    "layout-ignored": ("forward", "y", replace(_scaled(), x=np.asfortranarray(_scaled().x))),
    "running-statistics-in-training": ("forward", "y", _scaled(offset=3.0)),
    "running-without-decay": ("running", "running_mean", _scaled()),
    "running-corrected-twice": ("running", "running_var", _scaled()),
}
RIGHT_ELSEWHERE = {
    "bessel-backward": ("forward", "inference", "jvp", "vjp_eval"),
    "dropped-mean-term": ("forward", "inference", "jvp", "vjp_eval"),
    "eps-forgotten-in-backward": ("forward", "inference", "jvp", "vjp_eval"),
    "dropped-third-term": ("forward", "inference", "jvp", "vjp", "rev"),
    "constant-statistics-in-jvp": ("forward", "inference", "jvp", "vjp", "rev", "rev_rev", "fwd_rev"),
    "eval-gradient-with-training-formula": ("forward", "inference", "jvp", "vjp", "jvp_eval"),
    "invstd-taken-for-variance": ("forward", "inference", "jvp", "vjp", "jvp_eval"),
    "running-without-decay": ("forward", "inference", "jvp", "vjp", "rev_rev", "fwd_fwd"),
}


@pytest.mark.parametrize("operation", ["inference", *DERIVATIVES])
@pytest.mark.parametrize("shape", [(6, 2), (2, 3, 2)], ids=str)
def test_the_control_is_right(shape, operation):
    inputs = draw(shape)
    answer, expected = Control().run(operation, inputs), known(operation, shape)
    assert set(answer) == set(expected)
    for output in answer:
        assert deviation(answer[output], expected[output]) <= allowance(inputs)


@pytest.mark.parametrize("scale", [1e-160, 1.0, 1e160])
def test_the_control_needs_no_room_for_squares(scale):
    inputs = draw((6, 2), eps=0.0)
    expected = Control().run("forward", inputs)
    answer = Control().run("forward", replace(inputs, x=inputs.x * scale))
    assert deviation(answer["y"], expected["y"]) <= allowance(inputs)
    assert deviation(answer["invstd"] * scale, expected["invstd"]) <= allowance(inputs)


def test_the_control_on_constant_channels_and_constant_gradients():
    inputs = draw((7, 3))
    constant = replace(inputs, x=np.broadcast_to(inputs.x[:1], (7, 3)))
    answer = Control().run("forward", constant)
    assert np.array_equal(answer["y"], np.broadcast_to(inputs.beta, (7, 3)))
    assert np.array_equal(answer["var"], np.zeros(3))
    blind = Control().run("vjp", replace(inputs, dy=np.ones((7, 3))))["dx"]
    assert np.abs(blind).max() <= allowance(inputs)


def test_the_control_keeps_nan_in_its_channel_and_refuses_a_single_value():
    inputs = draw((5, 3))
    for special in (np.nan, np.inf, -np.inf):
        x = inputs.x.copy()
        x[2, 1] = special
        y = Control().run("forward", replace(inputs, x=x))["y"]
        assert np.isnan(y[:, 1]).all()
        assert np.isfinite(y[:, [0, 2]]).all()
    with pytest.raises(ValueError, match="more than one value"):
        Control().run("forward", draw((1, 3)))


def test_the_control_tracks_statistics_as_torch_does():
    for momentum in (0.1, None):
        inputs = draw((4, 3, 5), steps=3, momentum=momentum)
        answer = Control().run("running", inputs)
        mean, var = running(inputs)
        assert deviation(answer["running_mean"], mean) <= allowance(inputs)
        assert deviation(answer["running_var"], var) <= allowance(inputs)


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("name", ZOO)
def test_shapes_and_dtypes(name, form):
    pytest.importorskip("ml_dtypes")
    inputs = draw((3, 2, 2), form.dtype, None if form.name == "float64" else "float32")
    member = ZOO[name]()
    for operation in sorted(member.operations):
        answer = member.run(operation, inputs)
        assert answer
        assert answer.keys() <= set(OPERATIONS[operation].outputs)
        for output, array in answer.items():
            whole = output in ("y", "y_dot", "value", "dx") or output.startswith("y_")
            assert array.shape == ((3, 2, 2) if whole else (2,))
            assert array.dtype == (inputs.x.dtype if whole else inputs.gamma.dtype)


@pytest.mark.parametrize("name", SHOWS)
def test_each_mistake_shows(name):
    operation, output, inputs = SHOWS[name]
    wrong, right = (member.run(operation, inputs)[output].astype(np.float64) for member in (ZOO[name](), Control()))
    if np.array_equal(np.isfinite(wrong), np.isfinite(right)):
        scale = np.abs(right[np.isfinite(right)]).max()
        assert np.nanmax(np.abs(wrong - right)) > 1e-2 * scale


@pytest.mark.parametrize("name", RIGHT_ELSEWHERE)
def test_each_mistake_is_one_mistake(name):
    inputs = _scaled(1e-3, 2.0)
    for operation in RIGHT_ELSEWHERE[name]:
        mine, right = ZOO[name]().run(operation, inputs), Control().run(operation, inputs)
        assert all(np.array_equal(mine[output], right[output]) for output in right)


def test_in_place_and_stale_buffers_show():
    inputs = draw((4, 3))
    ZOO["input-overwritten"]().run("forward", inputs)
    assert not np.array_equal(inputs.x, draw((4, 3)).x)
    inputs, member = draw((4, 3)), ZOO["stale-accumulator"]()
    first, second = (member.run("vjp", inputs)["dgamma"] for _ in range(2))
    assert np.array_equal(first, Control().run("vjp", inputs)["dgamma"])
    assert np.array_equal(second, 2 * first)


def test_the_running_variance_of_one_value_is_nan():
    inputs = draw((1, 3), steps=1)
    answer = ZOO["running-variance-of-one-value"]().run("running", inputs)
    assert np.isnan(answer["running_var"]).all() and np.isfinite(answer["running_mean"]).all()


def test_members_follow_the_dialect():
    inputs = draw((4, 3, 5), steps=1, momentum=0.25)
    new, old = Control(), Control()
    old.dialect = DIALECTS["keras"]
    kept = old.run("running", inputs)["running_mean"] - inputs.running_mean
    moved = new.run("running", inputs)["running_mean"] - inputs.running_mean
    assert np.allclose(kept, 3 * moved)
    still = replace(inputs, running_var=np.zeros(3))
    ratio = old.run("running", still)["running_var"] / new.run("running", still)["running_var"]
    assert np.allclose(ratio, 3 * 19 / 20)


@pytest.mark.parametrize("name", ["serial-sums", "folded-affine"])
def test_variants_are_other_programs_with_the_same_mistake(name):
    inputs = replace(_scaled(offset=1e4, shape=(64, 2)), mean=np.full(2, 1e4, "float32"))
    output = {"serial-sums": "mean", "folded-affine": "y"}[name]
    answers = {ZOO[name](**variant).run("forward", inputs)[output].tobytes() for variant in ZOO[name].variants}
    assert len(answers) > 1


def test_every_mistake_is_covered_here_and_says_what_kills_it():
    assert next(iter(ZOO)) == "control"
    elsewhere = {"input-overwritten", "stale-accumulator", "running-variance-of-one-value"}
    assert set(MISTAKES) == set(SHOWS) | elsewhere
    assert len({member.__doc__ for member in ZOO.values()}) == len(ZOO)
    assert {ZOO[name].family for name in MISTAKES} <= set(FAMILIES)
    assert Control.family == ""


@pytest.mark.parametrize("operation", ["rev_fwd", "fwd_fwd"])
def test_constant_statistics_in_jvp_is_what_torch_2_13_does(operation):
    torch = pytest.importorskip("torch")
    if not torch.__version__.startswith("2.13."):
        pytest.skip("another PyTorch")
    from refbn.audit.adapters.torch import Torch

    inputs = draw((4, 3, 5))
    theirs, ours = Torch().run(operation, inputs), ZOO["constant-statistics-in-jvp"]().run(operation, inputs)
    for output in theirs:
        assert deviation(ours[output], theirs[output].astype(np.float64)) <= allowance(inputs)


def test_threads_cannot_be_chosen_and_third_order_is_unsupported():
    with pytest.raises(Unsupported):
        Control().set_threads(2)
    with pytest.raises(Unsupported):
        Control().run("rev_rev_rev", draw((4, 3)))
    with pytest.raises(Unsupported):
        Control().run("fwd_fwd_fwd", draw((4, 3)))


def test_no_framework_is_imported_with_the_adapters():
    code = (
        "import sys; from refbn.audit.adapters import _composed, own, torch, zoo; own.Own('reference'); "
        "assert not {'torch', 'jax', 'numba', 'mpmath'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
