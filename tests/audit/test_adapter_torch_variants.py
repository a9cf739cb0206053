from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from refbn._formats import FORMATS, format_of
from refbn.audit import adapters
from refbn.audit.adapters import torch_variants as variants
from refbn.audit.adapters._protocol import OPERATIONS, STATE, Unsupported
from tests.audit.difference_quotients import allowance, deviation, draw, known, running
from tests.audit.scripts import follow

ml_dtypes = pytest.importorskip("ml_dtypes")
torch = pytest.importorskip("torch")

EAGER = [
    variants.TorchNative,
    variants.TorchModule,
    variants.TorchChannelsLast,
    variants.TorchFunc,
    variants.TorchDecomposition,
]
DERIVATIVES = [op.name for op in OPERATIONS.values() if op.composition]
# What the operator of PyTorch 2.13 gets wrong; its decomposition, which is made of other operators, does not.
WRONG_IN_2_13 = {
    ("rev_fwd", "dx"),
    ("fwd_fwd", "value"),
    ("rev_rev_rev", "dx"),
    ("fwd_fwd_fwd", "value"),
}


@pytest.fixture(scope="module", params=EAGER, ids=lambda c: c.name)
def adapter(request):
    return request.param()


@pytest.fixture(scope="module")
def compiled():
    return variants.TorchCompile("aot_eager")


def test_each_is_listed_by_its_name():
    for made in (*EAGER, variants.TorchCompile):
        (listed,) = adapters.load(made.name)
        assert type(listed) is made and listed.name == made.name


@pytest.mark.parametrize("operation", DERIVATIVES)
def test_derivatives_against_difference_quotients(adapter, operation):
    shape = (4, 3, 5)
    inputs = draw(shape)
    answer, expected = adapter.run(operation, inputs), known(operation, shape, moves_statistics=False)
    assert set(answer) == set(expected)
    for output in answer:
        if (operation, output) in WRONG_IN_2_13 and adapter.name != "torch-decomposition":
            if torch.__version__.startswith("2.13."):
                assert deviation(answer[output], expected[output]) > 1e-3
        else:
            assert deviation(answer[output], expected[output]) <= allowance(inputs)


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("shape", [(6, 2), (3, 2, 2, 2), (2, 2, 2, 3, 2)], ids=str)
def test_shapes_and_dtypes(adapter, form, shape):
    for operation in ("forward", "vjp", "inference", "jvp_eval", "running", "train_eval_train"):
        answer = adapter.run(operation, draw(shape, form.dtype))
        assert answer
        for output, array in answer.items():
            whole = output in ("y", "y_dot", "dx") or output.startswith("y_")
            assert array.shape == (shape if whole else (2,))
            if output not in ("mean", "invstd"):  # statistics may be wider
                assert array.dtype == form.dtype
            assert np.isfinite(array.astype(np.float64)).all()


def test_forward_tells_its_own_statistics(adapter):
    inputs = draw((4, 3, 5))
    answer = adapter.run("forward", inputs)
    x = np.moveaxis(inputs.x, 1, 0).reshape(3, -1)
    assert deviation(answer["mean"], x.mean(axis=1)) <= allowance(inputs)
    assert deviation(answer["invstd"], 1 / np.sqrt(x.var(axis=1) + inputs.eps)) <= allowance(inputs)


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0])
def test_state(adapter, momentum):
    inputs, twin = (draw((4, 3, 5), steps=3, momentum=momentum) for _ in range(2))
    answer = adapter.run("running", inputs)
    for output, expected in zip(("running_mean", "running_var"), running(inputs), strict=True):
        assert deviation(answer[output], expected) <= allowance(inputs)
        assert np.array_equal(getattr(inputs, output), getattr(twin, output))
    answer = adapter.run(STATE[1].name, inputs)
    assert np.array_equal(answer["y_train"], answer["y_again"])
    assert not np.array_equal(answer["y_train"], answer["y_eval"])


def test_the_operator_has_no_cumulative_average():
    with pytest.raises(Unsupported, match="cumulative"):
        variants.TorchNative().run("running", draw((4, 3), momentum=None))


def test_a_fault_that_ends_the_process_is_told_as_an_exception():
    code = (
        "import torch; x, c = torch.zeros(0, 3, requires_grad=True), torch.ones(3); "
        "torch.native_batch_norm(x, c, c, c, c, False, 0.1, 1e-5)[0].sum().backward()"
    )
    dies = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode < 0
    if dies:
        with pytest.raises(RuntimeError, match="ends the process with SIG"):
            variants.TorchNative().run("vjp_eval", draw((0, 3)))
    else:
        assert variants.TorchNative().run("vjp_eval", draw((0, 3)))["dx"].shape == (0, 3)
    assert variants.TorchNative().run("inference", draw((0, 3)))["y"].shape == (0, 3)
    assert variants.TorchNative().run("jvp_eval", draw((0, 3)))["y_dot"].shape == (0, 3)
    assert variants.TorchNative().run("fwd_rev_eval", draw((0, 3)))["dx"].shape == (0, 3)
    with pytest.raises(RuntimeError, match="at least one element"):  # PyTorch's own word, not one in its place
        variants.TorchNative().run("vjp", draw((0, 3)))


def test_channels_last_is_what_the_operator_sees(monkeypatch):
    seen = []
    function = torch.nn.functional.batch_norm
    monkeypatch.setattr(torch.nn.functional, "batch_norm", lambda x, *a, **k: seen.append(x) or function(x, *a, **k))
    for shape in ((6, 2), (4, 3, 5), (3, 2, 2, 2), (2, 2, 2, 3, 2)):
        variants.TorchChannelsLast().run("inference", draw(shape))
        variants.TorchChannelsLast().run("running", draw(shape))
    assert len(seen) >= 8
    for x in seen:
        form = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
        assert x.is_contiguous(memory_format=form)
    with pytest.raises(Unsupported, match="6 axes"):
        variants.TorchChannelsLast().run("inference", draw((2, 2, 2, 2, 1, 1)))


def test_compiled(compiled):
    for shape in ((6, 2), (4, 3, 5), (4, 3, 7)):
        inputs = draw(shape)
        for operation in ("vjp", "vjp_eval", "inference"):
            answer, expected = compiled.run(operation, inputs), known(operation, shape, moves_statistics=False)
            assert set(answer) == set(expected)
            for output in answer:
                assert deviation(answer[output], expected[output]) <= allowance(inputs)
        plain = variants.TorchFunc().run("forward", inputs)["y"]
        assert deviation(compiled.run("forward", inputs)["y"], plain) <= allowance(inputs)


def test_compiled_more_often_than_dynamo_would_by_itself():
    graphs = []
    adapter = variants.TorchCompile("eager")
    adapter.backend = lambda graph, _: graphs.append(graph) or graph.forward
    for shape in ((3, 2), (3, 2, 2), (3, 2, 2, 2)):
        for form in FORMATS:
            adapter.run("inference", draw(shape, form.dtype))
    assert len(graphs) == 12  # of one function; Dynamo's own limit is eight


@pytest.mark.parametrize("shape", [(6, 2), (3, 2, 2, 2), (2, 2, 2, 3, 2)], ids=str)
def test_scripts_give_the_adapters_answers(adapter, shape):
    inputs = draw(shape)
    for operation in ("forward", "inference", "vjp", "jvp_eval", "rev_fwd", "running", "train_eval_train"):
        if adapter.name == "torch-channels-last" and operation in ("running", "train_eval_train"):
            with pytest.raises(Unsupported):
                adapter.reproduction(operation, inputs)
            continue
        _compare(adapter, operation, inputs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scripts_of_compiled_functions(compiled, dtype):
    for operation in compiled.operations:
        _compare(compiled, operation, draw((4, 3, 5), next(f for f in FORMATS if f.name == dtype).dtype))
    with pytest.raises(Unsupported):
        compiled.reproduction("jvp", draw((4, 3)))


def _compare(adapter, operation, inputs):
    answer = adapter.run(operation, inputs)
    followed = follow(adapter.reproduction(operation, inputs), inputs)
    assert set(answer) == set(followed)
    for output in answer:
        slack = 48 * (inputs.x.size // inputs.x.shape[1]) * format_of(inputs.x.dtype).unit_roundoff
        assert deviation(answer[output], followed[output]) <= slack
