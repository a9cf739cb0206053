from __future__ import annotations

from importlib import metadata

import numpy as np
import pytest

from refbn.audit.adapters import load
from refbn.audit.cases import parse
from refbn.audit.runner import run_case
from tests.audit.adapter_checks import (
    check_derivative,
    check_formats,
    check_forward,
    check_script,
    told_without_import,
)
from tests.audit.difference_quotients import allowance, deviation, draw

jax = pytest.importorskip("jax", reason="the extra 'jax' is not installed")
pytest.importorskip("flax", reason="the extra 'flax' is not installed")

# NNX makes its running statistics in binary32 and assigns those of a binary64 batch to them: JAX warns.
pytestmark = pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types:FutureWarning")

BOTH = ["flax-linen", "flax-nnx"]
NAMES = [*BOTH, "flax-linen-two-pass", "flax-nnx-two-pass"]


@pytest.fixture
def x64():
    """Scripts switch binary64 on for the whole process; put it back."""
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize("name", NAMES)
def test_version_is_told_without_importing_flax(name):
    assert load(name)[0].name == name
    assert told_without_import("flax", name, "jax") == metadata.version("flax")


@pytest.mark.parametrize("operation", ["vjp", "rev_fwd", "fwd_rev", "rev_rev_eval", "fwd_fwd_fwd_eval"])
@pytest.mark.parametrize("name", BOTH)
def test_derivatives_against_difference_quotients(name, operation):
    check_derivative(load(name)[0], operation)


@pytest.mark.parametrize("name", NAMES)
def test_forward(name):
    check_forward(load(name)[0], ("mean", "var"))


@pytest.mark.parametrize(("dtype", "param"), [("float16", None), ("bfloat16", "float32"), ("float64", "float32")])
@pytest.mark.parametrize("operation", ["vjp", "running"])
@pytest.mark.parametrize("name", BOTH)
def test_formats(name, operation, dtype, param):
    pytest.importorskip("ml_dtypes")
    check_formats(load(name)[0], operation, dtype, param)


@pytest.mark.parametrize("operation", ["forward", "inference", "fwd_rev", "vjp_eval", "running", "train_eval_train"])
@pytest.mark.parametrize("name", BOTH)
def test_scripts(name, operation, x64):
    check_script(load(name)[0], operation)


@pytest.mark.parametrize("name", NAMES[2:])
def test_scripts_say_that_the_variance_takes_two_passes(name, x64):
    adapter = load(name)[0]
    assert "use_fast_variance=False" in adapter.reproduction("forward", draw((4, 3)))
    assert "use_fast_variance" not in load(name.removesuffix("-two-pass"))[0].reproduction("forward", draw((4, 3)))
    check_script(adapter, "forward")


@pytest.mark.parametrize("name", BOTH)
def test_state(name):
    adapter, inputs = load(name)[0], draw((4, 3, 5), steps=3, momentum=0.75)
    mean, var = inputs.running_mean, inputs.running_var
    for batch in inputs.batches:
        rows = np.moveaxis(batch, 1, 0).reshape(3, -1)
        mean = 0.75 * mean + 0.25 * rows.mean(axis=1)
        var = 0.75 * var + 0.25 * rows.var(axis=1)
    answer = adapter.run("running", inputs)
    assert deviation(answer["running_mean"], mean) <= allowance(inputs)
    assert deviation(answer["running_var"], var) <= allowance(inputs)
    answer = adapter.run("train_eval_train", inputs)
    assert np.array_equal(answer["y_train"], answer["y_again"])
    assert not np.array_equal(answer["y_train"], answer["y_eval"])


@pytest.mark.parametrize("name", NAMES)
def test_the_fast_variance_is_found(name):
    # google/flax#1491
    found = {f.output: f.verdict for f in run_case(load(name)[0], parse("conditioning:forward:f32:32x4:offset=4096"))}
    if name in BOTH:
        assert found["var"] == found["y"] == "wrong"
    else:
        assert {found["var"], found["y"]} <= {"exact", "accurate", "lossy"}
