from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from refbn._formats import BFLOAT16
from refbn.audit.adapters._nesting import asked_for, nest
from refbn.audit.adapters._protocol import OPERATIONS, STATE, Unsupported
from refbn.audit.adapters.tensorflow import TensorFlow, TensorFlowEager, TensorFlowNN, TensorFlowXLA
from tests.audit.difference_quotients import allowance, deviation, draw, truth

SHAPE = (4, 3, 5)
DERIVATIVES = [op.name for op in OPERATIONS.values() if op.composition]
ADAPTERS = (TensorFlow, TensorFlowNN, TensorFlowXLA)
# What TensorFlow 2.21 gets wrong: both stop the gradient at the mean within the variance, the fused op in the
# gradient of its gradient, tf.nn.moments in the variance itself. The adapters do not know this table.
WRONG_IN_2_21 = {
    "fused": {("rev_rev_rev", "dx"), ("fwd_fwd_fwd", "value")},
    "nn": {
        ("rev_rev", "dx"),
        ("fwd_rev", "dx"),
        ("rev_fwd", "dx"),
        ("fwd_fwd", "value"),
        ("rev_rev_rev", "dx"),
        ("rev_rev_rev", "dgamma"),
        ("rev_rev_rev", "dbeta"),
        ("fwd_fwd_fwd", "value"),
    },
}


def tensorflow():
    return pytest.importorskip("tensorflow", reason="not in [test]: pip install 'refbn[tensorflow]'")


@pytest.fixture(scope="module")
def tf():
    return tensorflow()


@pytest.fixture(scope="module", params=ADAPTERS, ids=lambda adapter: adapter.name)
def adapter(request, tf):
    return request.param()


# ---- without TensorFlow ---------------------------------------------------------------------------------------------


def test_nothing_is_imported_before_it_is_asked():
    code = (
        "import sys; from refbn.audit.adapters.tensorflow import TensorFlow; TensorFlow().version(); "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nest_applies_the_innermost_mode_first():
    def written(composition):
        return nest(
            composition,
            lambda total: "L" if total else "f",
            lambda function: f"grad({function})",
            lambda function: f"jvp({function})",
            lambda gradient: f"<{gradient}, d>",
        )

    assert written("rev") == "grad(L)"
    assert written("rev-fwd") == "grad(jvp(L))"
    assert written("fwd-rev") == "jvp(grad(L))"
    assert written("fwd-fwd-fwd") == "jvp(jvp(jvp(f)))"
    assert written("rev-rev-rev") == "grad(<grad(<grad(L), d>), d>)"


def test_an_operation_reads_what_its_definition_needs():
    assert asked_for("forward") == ("x", "gamma", "beta")
    assert asked_for("vjp_eval") == ("x", "gamma", "beta", "mean", "var", "dy")
    assert asked_for("jvp") == ("x", "gamma", "beta", "x_dot", "gamma_dot", "beta_dot")
    assert asked_for("rev_fwd")[-1] == "w"
    assert "x" not in asked_for("running")


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_has_a_script_that_compiles(kind, operation):
    written, inputs = kind(), draw(SHAPE, "float32")
    if operation not in written.operations:
        with pytest.raises(Unsupported):
            written.reproduction(operation, inputs)
        return
    text = written.reproduction(operation, inputs)
    compile(text, operation, "exec")
    assert "answer" in text
    assert max(map(len, text.splitlines())) <= 120
    assert "refbn" not in text


# ---- with it --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", DERIVATIVES)
def test_derivatives_against_difference_quotients(adapter, tf, operation):
    inputs = draw(SHAPE, "float64" if "float64" in adapter.dtypes else "float32")
    answer, expected = adapter.run(operation, inputs), truth(operation, inputs, adapter.differentiates_statistics)
    assert set(answer) == set(expected)
    for output in answer:
        off = deviation(answer[output], expected[output])
        if (operation, output) in WRONG_IN_2_21["nn" if isinstance(adapter, TensorFlowNN) else "fused"]:
            if tf.__version__.startswith("2.21."):
                assert off > 5 * allowance(inputs)
        else:
            assert off <= allowance(inputs)


def test_nested_accumulators_are_asked_as_a_graph_or_by_themselves(tf):
    inputs = draw(SHAPE, "float32")
    expected = truth("fwd_fwd_eval", inputs, False)["value"]
    assert deviation(TensorFlow().run("fwd_fwd_eval", inputs)["value"], expected) <= allowance(inputs)
    assert "tf.function" in TensorFlow().reproduction("fwd_fwd_eval", inputs)
    assert "tf.function" not in TensorFlowEager().reproduction("fwd_fwd_eval", inputs)
    if tf.__version__.startswith("2.21."):  # wrong with frozen statistics, where y is an affine function
        assert deviation(TensorFlowEager().run("fwd_fwd_eval", inputs)["value"], expected) > 5 * allowance(inputs)


@pytest.mark.parametrize("shape", [(6, 2), (3, 2, 2, 2), (2, 2, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("operation", ["forward", "inference", "vjp", "running", "train_eval_train"])
def test_every_rank(adapter, operation, shape):
    if operation not in adapter.operations:
        pytest.skip("tf.nn keeps no state")
    answer = adapter.run(operation, draw(shape, "float32"))
    assert answer.keys() <= set(OPERATIONS[operation].outputs)
    for output, array in answer.items():
        whole = output in ("y", "dx") or output.startswith("y_")
        assert array.shape == (shape if whole else (2,))
        assert array.dtype == np.float32
        assert np.isfinite(array).all()


def test_statistics_are_those_of_x(adapter):
    inputs = draw(SHAPE, "float32")
    answer = adapter.run("forward", inputs)
    x = np.moveaxis(inputs.x.astype(np.float64), 1, 0).reshape(3, -1)
    assert deviation(answer["mean"], x.mean(axis=1)) <= allowance(inputs)
    ddof = 0 if isinstance(adapter, TensorFlowNN) else 1  # the fused op hands out the variance with m - 1
    assert deviation(answer["var"], x.var(axis=1, ddof=ddof)) <= allowance(inputs)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_data_with_binary32_parameters(adapter, half):
    pytest.importorskip("ml_dtypes")
    dtype = BFLOAT16.dtype if half == "bfloat16" else half
    answer = adapter.run("rev_rev", draw(SHAPE, dtype, "float32"))
    assert answer["dx"].dtype == dtype
    assert answer["dgamma"].dtype == np.float32


def test_formats_that_the_op_does_not_document_are_unsupported(tf):
    with pytest.raises(Unsupported, match="not float16"):
        TensorFlow().run("forward", draw(SHAPE, "float16"))
    with pytest.raises(Unsupported, match="float64 data with float32"):
        TensorFlowNN().run("forward", draw(SHAPE, "float64", "float32"))


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0])
@pytest.mark.parametrize("kind", [TensorFlow, TensorFlowXLA])
def test_state(kind, momentum, tf):
    inputs = draw(SHAPE, "float32", steps=3, momentum=momentum)
    answer = kind().run("running", inputs)
    mean, var = inputs.running_mean.astype(np.float64), inputs.running_var.astype(np.float64)
    for batch in inputs.batches:
        x = np.moveaxis(batch.astype(np.float64), 1, 0).reshape(3, -1)
        mean = mean + momentum * (x.mean(axis=1) - mean)
        var = var + momentum * (x.var(axis=1, ddof=1) - var)
    assert deviation(answer["running_mean"], mean) <= allowance(inputs)
    assert deviation(answer["running_var"], var) <= allowance(inputs)
    answer = kind().run(STATE[1].name, inputs)
    assert np.array_equal(answer["y_train"], answer["y_again"])
    assert not np.array_equal(answer["y_train"], answer["y_eval"])


def test_inputs_stay_as_they_were(adapter):
    inputs, twin = draw(SHAPE, "float32"), draw(SHAPE, "float32")
    for operation in adapter.operations - {"fwd_fwd_fwd", "fwd_fwd_fwd_eval"}:  # they only take long
        adapter.run(operation, inputs)
    for field in dataclasses.fields(inputs):
        if isinstance(getattr(inputs, field.name), np.ndarray):
            assert np.array_equal(getattr(inputs, field.name), getattr(twin, field.name))


def test_strides_do_not_matter(adapter):
    inputs = draw((4, 3, 2, 2), "float32")
    moved = dataclasses.replace(inputs, x=inputs.x[::-1], dy=np.asfortranarray(inputs.dy))
    plain = dataclasses.replace(inputs, x=inputs.x[::-1].copy())
    for output, array in adapter.run("vjp", plain).items():
        assert np.array_equal(adapter.run("vjp", moved)[output], array)


def test_threads_cannot_be_chosen(adapter):
    with pytest.raises(Unsupported):
        adapter.set_threads(1)


@pytest.mark.parametrize(
    "operation",
    ["forward", "inference", "vjp_eval", "jvp", "rev_rev", "rev_fwd", "fwd_fwd", *(op.name for op in STATE)],
)
def test_scripts_give_the_adapters_numbers(adapter, operation):
    if operation not in adapter.operations:
        pytest.skip("tf.nn keeps no state")
    inputs = draw(SHAPE, "float32")
    names = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)} | {"np": np}
    exec(compile(adapter.reproduction(operation, inputs), operation, "exec"), names)
    answer, told = adapter.run(operation, inputs), names["answer"]
    assert set(told) <= set(answer)
    for output, array in told.items():
        assert array.shape == answer[output].shape
        assert deviation(array, answer[output].astype(np.float64)) <= allowance(inputs)
