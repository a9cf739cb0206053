from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from refbn._formats import BFLOAT16, BINARY32, FORMATS
from refbn.audit.adapters._protocol import OPERATIONS, STATE, Unsupported
from refbn.audit.adapters.torch import Torch
from tests.audit.difference_quotients import allowance, deviation, draw, known, running, truth

ml_dtypes = pytest.importorskip("ml_dtypes")
torch = pytest.importorskip("torch")

SHAPES = [(6, 2), (4, 3, 5)]
DERIVATIVES = [op.name for op in OPERATIONS.values() if op.composition]
# What PyTorch 2.13 gets wrong: which output of which composition. The adapter does not know this table.
WRONG_IN_2_13 = {
    ("rev_fwd", "dx"),
    ("fwd_fwd", "value"),
    ("rev_rev_rev", "dx"),
    ("fwd_fwd_fwd", "value"),
}


@pytest.fixture(scope="module")
def adapter():
    return Torch()


def test_version_is_told_without_importing_torch():
    code = (
        "import sys; from refbn.audit.adapters.torch import Torch; version = Torch().version(); "
        "assert 'torch' not in sys.modules; print(version)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == torch.__version__


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operation", DERIVATIVES)
def test_derivatives_against_difference_quotients(adapter, operation, shape):
    inputs = draw(shape)
    answer, expected = adapter.run(operation, inputs), known(operation, shape, moves_statistics=False)
    assert set(answer) == set(expected)
    for output in answer:
        if (operation, output) in WRONG_IN_2_13:
            if torch.__version__.startswith("2.13."):
                assert deviation(answer[output], expected[output]) > 1e-3
        else:
            assert deviation(answer[output], expected[output]) <= allowance(inputs)


@pytest.mark.parametrize("operation", ["rev_rev", "fwd_rev", "fwd_fwd_eval", "rev_rev_rev_eval"])
def test_the_reference_notices_a_changed_question(adapter, operation):
    inputs = draw((4, 3, 5))
    expected = truth(operation, draw((4, 3, 5), eps=1e-3), moves_statistics=False)
    answer = adapter.run(operation, inputs)
    assert any(deviation(answer[output], expected[output]) > allowance(inputs) for output in answer)


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
def test_shapes_and_dtypes(adapter, form):
    for operation in OPERATIONS:
        _ask(adapter, operation, (3, 2, 4), form)


@pytest.mark.parametrize("shape", [(6, 2), (3, 2, 2, 2), (2, 2, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("operation", ["forward", "rev_fwd", "running", "train_eval_train"])
def test_every_rank(adapter, operation, shape):
    _ask(adapter, operation, shape, BINARY32)


def _ask(adapter, operation, shape, form):
    answer = adapter.run(operation, draw(shape, form.dtype))
    assert answer
    assert answer.keys() <= set(OPERATIONS[operation].outputs)
    for output, array in answer.items():
        whole = output in ("y", "y_dot", "value", "dx") or output.startswith("y_")
        assert array.shape == (shape if whole else (2,))
        assert array.dtype == form.dtype
        assert np.isfinite(array.astype(np.float64)).all()


def test_forward_tells_its_own_statistics(adapter):
    inputs = draw((4, 3, 5))
    answer = adapter.run("forward", inputs)
    assert set(answer) == {"y", "mean", "invstd"}
    x = np.moveaxis(inputs.x, 1, 0).reshape(3, -1)
    column = (1, 3, 1)
    again = (inputs.x - answer["mean"].reshape(column)) * answer["invstd"].reshape(column)
    again = again * inputs.gamma.reshape(column) + inputs.beta.reshape(column)
    assert deviation(answer["mean"], x.mean(axis=1)) <= allowance(inputs)
    assert deviation(answer["invstd"], 1 / np.sqrt(x.var(axis=1) + inputs.eps)) <= allowance(inputs)
    assert deviation(answer["y"], again) <= allowance(inputs)


def test_an_empty_batch_is_asked_for_y_alone(adapter):
    inputs = draw((0, 3), steps=1)
    assert {name: array.shape for name, array in adapter.run("forward", inputs).items()} == {"y": (0, 3)}
    assert adapter.run("vjp", inputs)["dx"].shape == (0, 3)
    assert np.array_equal(adapter.run("running", inputs)["running_mean"], inputs.running_mean)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_data_with_binary32_parameters(adapter, half):
    dtype = next(f for f in FORMATS if f.name == half).dtype
    answer = adapter.run("rev_rev", draw((4, 3, 5), dtype, "float32"))
    assert answer["dx"].dtype == dtype
    assert answer["dgamma"].dtype == np.float32


def test_mixtures_that_torch_refuses_are_unsupported(adapter):
    with pytest.raises(Unsupported, match="mixed dtype"):
        adapter.run("forward", draw((4, 3), "float64", "float32"))


def test_layouts_are_kept(adapter):
    inputs = draw((4, 3, 2, 2))
    expected = adapter.run("vjp", inputs)["dx"]
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(inputs.x, 1, -1)), -1, 1)
    wide = np.full((8, 3, 2, 4), np.nan)
    wide[::2, :, :, 1::2] = inputs.x
    for x in (last, wide[::2, :, :, 1::2]):
        assert not x.flags.c_contiguous
        moved = replace(inputs, x=x)
        assert deviation(adapter.run("vjp", moved)["dx"], expected) <= allowance(inputs)
    seen = []
    strides = adapter.batch_norm

    def spy(inputs, frozen):
        function = strides(inputs, frozen)
        return lambda x, gamma, beta: seen.append((x.stride(), x.data_ptr())) or function(x, gamma, beta)

    watched = Torch()
    watched.batch_norm = spy
    watched.run("forward", replace(inputs, x=last))
    assert seen == [(tuple(s // 8 for s in last.strides), last.ctypes.data)]


def test_read_only_arrays_are_shared_without_a_warning(adapter):
    inputs = draw((4, 3))
    inputs.x.flags.writeable = False
    assert adapter.run("forward", inputs)["y"].shape == (4, 3)


def test_negative_strides_are_unsupported(adapter):
    inputs = draw((4, 3))
    with pytest.raises(Unsupported, match="negative"):
        adapter.run("forward", replace(inputs, x=inputs.x[::-1]))


def test_bfloat16_keeps_its_values(adapter):
    inputs = draw((6, 2), BFLOAT16.dtype)
    wide = replace(
        inputs,
        **{name: getattr(inputs, name).astype(np.float64) for name in ("x", "gamma", "beta", "mean", "var")},
    )
    narrow, precise = (adapter.run("inference", i)["y"].astype(np.float64) for i in (inputs, wide))
    assert np.abs(narrow - precise).max() <= 2 * BFLOAT16.unit_roundoff * np.abs(precise).max()


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
def test_state(adapter, momentum):
    inputs = draw((4, 3, 5), steps=3, momentum=momentum)
    answer = adapter.run("running", inputs)
    mean, var = running(inputs)
    assert deviation(answer["running_mean"], mean) <= allowance(inputs)
    assert deviation(answer["running_var"], var) <= allowance(inputs)
    answer = adapter.run(STATE[1].name, inputs)
    assert np.array_equal(answer["y_train"], answer["y_again"])
    assert not np.array_equal(answer["y_train"], answer["y_eval"])


def test_inputs_stay_as_they_were(adapter):
    inputs, twin = draw((4, 3, 5)), draw((4, 3, 5))
    for operation in OPERATIONS:
        adapter.run(operation, inputs)
    for name in ("x", "dy", "w", "gamma", "mean", "var", "running_mean", "running_var"):
        assert np.array_equal(getattr(inputs, name), getattr(twin, name))


def test_the_frameworks_own_refusal_comes_through(adapter):
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        adapter.run("forward", draw((1, 3)))


def test_threads(adapter):
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            adapter.set_threads(count)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
