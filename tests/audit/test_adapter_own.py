from __future__ import annotations

import numpy as np
import pytest

import refbn
from refbn import backends
from refbn._formats import FORMATS
from refbn.audit.adapters._protocol import OPERATIONS, Unsupported
from refbn.audit.adapters.own import Own
from refbn.audit.families import FAMILIES, all_cases
from refbn.audit.runner import run_case
from tests.audit.difference_quotients import allowance, deviation, draw, known

SETTLED = ("dialect", "unsupported")
DERIVATIVES = [op.name for op in OPERATIONS.values() if op.composition]


@pytest.fixture(scope="module", params=backends.TABLE)
def adapter(request):
    own = Own(request.param)
    if own.version() is None:
        pytest.skip(f"the backend {request.param} is not available here")
    return own


@pytest.mark.parametrize("shape", [(6, 2), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("operation", ["inference", *DERIVATIVES])
def test_against_difference_quotients(adapter, operation, shape):
    inputs = draw(shape)
    if operation not in adapter.operations:
        with pytest.raises(Unsupported):
            adapter.run(operation, inputs)
        return
    answer, expected = adapter.run(operation, inputs), known(operation, shape)
    assert set(answer) == set(expected)
    for output in answer:
        assert deviation(answer[output], expected[output]) <= allowance(inputs)


def test_what_is_offered(adapter):
    missing = {"rev_rev_rev", "rev_rev_rev_eval", "fwd_fwd_fwd_eval"}
    if adapter.backend in ("native", "numba"):
        missing.add("fwd_fwd_fwd")
    assert set(OPERATIONS) - adapter.operations == missing


@pytest.mark.parametrize("param", [None, "float32"])
@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
def test_shapes_and_dtypes(form, param):
    pytest.importorskip("ml_dtypes")
    adapter = Own(backends.first())
    inputs = draw((3, 2, 4), form.dtype, param)
    kind = form.dtype if param is None else np.dtype(param)
    for operation in sorted(adapter.operations):
        answer = adapter.run(operation, inputs)
        assert set(answer) == set(OPERATIONS[operation].outputs)
        for output, array in answer.items():
            whole = output in ("y", "y_dot", "value", "dx") or output.startswith("y_")
            statistic = output in ("mean", "var", "invstd")
            assert array.shape == ((3, 2, 4) if whole else (2,))
            assert array.dtype == (form.dtype if whole or statistic else kind)


ONE_PASS = {"forward", "inference", "vjp", "jvp", "vjp_eval", "jvp_eval"}


@pytest.mark.parametrize("family", FAMILIES)
def test_single_passes_are_exact(adapter, family):
    cases = [case for case in all_cases("quick", [family]) if case.operation in ONE_PASS]
    if adapter.backend in ("numba", "exact"):
        cases = cases[:: 1 + len(cases) // 10]  # each is a call; native has them all
    found = [finding for case in cases for finding in run_case(adapter, case) if finding.verdict not in SETTLED]
    worse = [f"{finding.case} {finding.output}: {finding.verdict}" for finding in found if finding.verdict != "exact"]
    if adapter.backend == "reference":
        assert all(line.endswith(": accurate") for line in worse)
    else:
        assert worse == []
    assert found or family == "composition"


def test_forward_and_state(adapter):
    inputs = draw((4, 3, 5), steps=3, momentum=None)
    x = np.moveaxis(inputs.x, 1, 0).reshape(3, -1)
    answer = adapter.run("forward", inputs)
    assert deviation(answer["mean"], x.mean(axis=1)) <= allowance(inputs)
    assert deviation(answer["var"], x.var(axis=1)) <= allowance(inputs)
    assert deviation(answer["invstd"], 1 / np.sqrt(x.var(axis=1) + inputs.eps)) <= allowance(inputs)
    means = [np.moveaxis(b, 1, 0).reshape(3, -1).mean(axis=1) for b in inputs.batches]
    answer = adapter.run("running", inputs)
    assert deviation(answer["running_mean"], np.mean(means, axis=0)) <= allowance(inputs)  # a cumulative average
    answer = adapter.run("train_eval_train", inputs)
    assert np.array_equal(answer["y_train"], answer["y_again"])
    twin = draw((4, 3, 5), steps=3, momentum=None)
    assert np.array_equal(inputs.running_mean, twin.running_mean)
    assert np.array_equal(inputs.running_var, twin.running_var)


def test_an_empty_batch_in_evaluation(adapter):
    inputs = draw((0, 3))
    for operation in ("inference", "vjp_eval", "rev_rev_eval", "fwd_fwd_eval"):
        for output, array in adapter.run(operation, inputs).items():
            assert array.shape == ((3,) if output.startswith("d") and output != "dx" else (0, 3))


def test_threads_can_be_chosen_for_native(monkeypatch):
    native, seen = Own("native"), []
    monkeypatch.setattr(native, "_run", lambda *_: seen.append(refbn.get_num_threads()))
    before = refbn.get_num_threads()
    for count in (None, 1, 3):
        if count:
            native.set_threads(count)
        native.run("forward", draw((2, 3)))
    assert seen == [before, 1, 3] and refbn.get_num_threads() == before


@pytest.mark.parametrize("backend", [name for name in backends.TABLE if name != "native"])
def test_threads_cannot_be_chosen_for_the_others(backend):
    with pytest.raises(Unsupported):
        Own(backend).set_threads(2)


def test_a_backend_that_is_missing_has_no_version(monkeypatch):
    monkeypatch.setitem(backends.TABLE, "absent", "refbn.backends.absent")
    assert Own("absent").version() is None
