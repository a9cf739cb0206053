from __future__ import annotations

from importlib import metadata

import numpy as np
import pytest

from refbn.audit.adapters import load
from refbn.audit.adapters._protocol import OPERATIONS, Unsupported
from refbn.audit.cases import parse
from refbn.audit.runner import run_case
from tests.audit.adapter_checks import (
    DERIVATIVES,
    SHAPE,
    check_derivative,
    check_formats,
    check_forward,
    check_script,
    told_without_import,
)
from tests.audit.difference_quotients import allowance, deviation, draw, truth

jax = pytest.importorskip("jax", reason="the extra 'jax' is not installed")

NAMES = ["jax", "jax-standardize", "jax-standardize-stable"]
# JAX compiles each operation for each shape and dtype, and these tests spend their time on that. So one adapter is
# asked everything, the others a sample.
SAMPLE = ["vjp", "fwd_rev", "rev_eval"]


@pytest.fixture(scope="module")
def adapter():
    return load("jax")[0]


@pytest.fixture
def x64():
    """Scripts switch binary64 on for the whole process; put it back."""
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize("name", NAMES)
def test_version_is_told_without_importing_jax(name):
    assert load(name)[0].name == name
    assert told_without_import("jax", name, "jaxlib") == metadata.version("jax")


@pytest.mark.parametrize("operation", DERIVATIVES)
def test_derivatives_against_difference_quotients(adapter, operation):
    check_derivative(adapter, operation)


@pytest.mark.parametrize("operation", SAMPLE)
@pytest.mark.parametrize("name", NAMES[1:])
def test_derivatives_of_standardize(name, operation):
    check_derivative(load(name)[0], operation)


def test_the_reference_notices_a_changed_question(adapter):
    inputs = draw(SHAPE)
    expected = truth("rev", draw(SHAPE, eps=1e-3))
    answer = adapter.run("rev", inputs)
    assert any(deviation(answer[output], expected[output]) > allowance(inputs) for output in answer)


@pytest.mark.parametrize(("name", "statistics"), [("jax", ("mean", "var")), *((name, ()) for name in NAMES[1:])])
def test_forward(name, statistics):
    check_forward(load(name)[0], statistics)


@pytest.mark.parametrize("shape", [(6, 2), (3, 2, 2, 2), (2, 2, 2, 3, 2)], ids=str)
def test_every_rank(adapter, shape):
    check_forward(adapter, ("mean", "var"), shape)


@pytest.mark.parametrize(
    ("dtype", "param"),
    [("float16", None), ("bfloat16", None), ("float32", None), ("bfloat16", "float32"), ("float64", "float32")],
)
@pytest.mark.parametrize("operation", ["vjp", "rev_fwd_eval"])
def test_formats(adapter, operation, dtype, param):
    pytest.importorskip("ml_dtypes")
    check_formats(adapter, operation, dtype, param)


@pytest.mark.parametrize("operation", ["forward", "inference", "vjp", "jvp", "rev_fwd", "rev_rev_eval", "fwd_fwd"])
def test_scripts(adapter, operation, x64):
    check_script(adapter, operation)


@pytest.mark.parametrize("operation", ["forward", "vjp_eval"])
@pytest.mark.parametrize("name", NAMES[1:])
def test_scripts_of_standardize(name, operation, x64):
    check_script(load(name)[0], operation)


def test_state_and_threads_are_unsupported(adapter):
    for operation in set(OPERATIONS) - adapter.operations:
        with pytest.raises(Unsupported, match=operation):
            adapter.reproduction(operation, draw((4, 3)))
    with pytest.raises(Unsupported, match="threads"):
        adapter.set_threads(2)


def test_binary64_is_switched_on_for_the_operation_alone(adapter):
    before = jax.config.jax_enable_x64
    assert adapter.run("inference", draw((4, 3)))["y"].dtype == np.float64
    assert jax.config.jax_enable_x64 == before
    assert jax.numpy.asarray(1.0).dtype == (np.float64 if before else np.float32)


def test_an_operation_is_compiled_once(adapter):
    inputs = draw((5, 2))
    first = adapter.run("inference", inputs)["y"]
    compiled = adapter._compiled["inference", inputs.eps, None]
    count = compiled._cache_size()
    assert np.array_equal(adapter.run("inference", inputs)["y"], first)
    assert adapter._compiled["inference", inputs.eps, None] is compiled and compiled._cache_size() == count


def test_inputs_stay_as_they_were(adapter):
    inputs, twin = draw((4, 3, 5)), draw((4, 3, 5))
    adapter.run("vjp", inputs)
    for name in ("x", "dy", "gamma", "beta"):
        assert np.array_equal(getattr(inputs, name), getattr(twin, name))


def test_the_fast_algorithm_of_standardize_cancels():
    # Fast: E[x²] − E[x]², documented as such; stable: two passes.
    case = parse("conditioning:forward:f32:32x4:offset=4096")
    verdicts = {name: run_case(load(name)[0], case)[0].verdict for name in NAMES[1:]}
    assert verdicts["jax-standardize"] == "wrong"
    assert verdicts["jax-standardize-stable"] in ("exact", "accurate", "lossy")


def test_nothing_but_the_operation_is_compiled():
    """The inputs are arrays of NumPy's; a copy that JAX compiles for each shape would take longer than the answer."""
    adapter, compiled = load("jax")[0], []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for text in ("conditioning:vjp:f32:9x5:offset=3", "conditioning:vjp:f32:9x5:layout=negative,seed=1"):
            run_case(adapter, parse(text))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == 1
