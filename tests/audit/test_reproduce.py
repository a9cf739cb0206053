import dataclasses
import re
import subprocess
import symtable
import sys

import numpy as np
import pytest

from refbn import RefbnError
from refbn._formats import FORMATS, round_to
from refbn.audit import adapters, truth
from refbn.audit.adapters._protocol import OPERATIONS, STATE, Inputs, Unsupported
from refbn.audit.cases import LAYOUTS, Case, make_inputs, parse
from refbn.audit.diagnosis import reproduce
from refbn.audit.families import all_cases
from refbn.audit.reproduce import _LAID, _literal, case_id, case_of, script
from refbn.audit.runner import run_case
from refbn.audit.truth import Conventions


def printed(text):
    """Run a script alone and return what it prints."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def executed(text):
    """Return the names that a script leaves, without its prints."""
    names = {"print": lambda *_: None}
    exec(compile(text, "script", "exec"), names)
    return names


def error_of(adapter, text, output):
    """The relative error as a script states it, computed here."""
    case = parse(text)
    got = adapter.run(case.operation, make_inputs(case))[output].astype(np.float64)
    expected = truth.expect(case, Conventions.of(adapter.dialect, adapter.differentiates_statistics))[output]
    rounded = expected.rounded(expected.output_format(expected.param_form if expected.is_vector else expected.form))
    return np.abs(got[: len(rounded)] - rounded).max() / np.abs(rounded).max()


# ---- ids -----------------------------------------------------------------------------------------------------------


def test_every_id_of_an_audit_leads_back_to_its_case():
    cases = all_cases("full", ["composition", "state"])[::9]
    for case in cases:
        for output in (*case.op.outputs, ""):
            name = case_id("torch", case, output)
            assert case_of(name, "torch") == (case, output)
            assert case_of(name.removeprefix("torch/"), "torch") == (case, output)


def test_a_descriptor_is_as_good():
    assert case_of("shape:vjp:f32:2x3", "torch") == (parse("shape:vjp:f32:2x3"), "")


@pytest.mark.parametrize("name", ["torch/vjp/dx/000000", "torch", "vjp/dx", "a/b/c/d/e"])
def test_an_unknown_id(name):
    with pytest.raises(RefbnError, match="is no finding of torch, expected an id such as torch/vjp/dx/0123ab"):
        case_of(name, "torch")


# ---- literals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
def test_literals_are_the_values_bit_by_bit(form):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    names = {"np": np, "bfloat16": ml_dtypes.bfloat16}
    wild = np.array([0.1, -1 / 3, 1e-7, 65504.0, 2.0**-24, -0.0, np.inf, -np.inf, np.nan, 1 + 2.0**-52, 123456.789])
    for values in (wild, wild.reshape(1, -1, 1), np.full((3, 2), 0.1), np.zeros((0, 3)), np.float64(0.3)[None]):
        array = round_to(values, form.dtype)
        back = eval(_literal(array), names)
        assert back.dtype == array.dtype and back.shape == array.shape and back.tobytes() == array.tobytes()


def test_literals_are_short():
    assert _literal(np.array([0.1, 2.0, -0.25], np.float32)) == "np.array([0.1, 2., -0.25], np.float32)"
    assert _literal(np.full((2, 3), 0.1, np.float32)) == "np.full((2, 3), 0.1, np.float32)"


def test_layouts_are_those_of_the_audit():
    assert set(_LAID) == set(LAYOUTS) - {"contiguous"}
    array = np.arange(24.0).reshape(2, 3, 4)
    for name, expression in _LAID.items():
        laid = eval(expression, {"np": np, "a": array})
        assert np.array_equal(laid, array) and laid.shape == array.shape
        assert (laid.strides != array.strides) != (name == "read-only")
        assert laid.flags.writeable == (name != "read-only")


# ---- scripts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("composition:vjp:f64:6x2", "dx"),
        ("composition:rev_fwd:f64:6x2", "dx"),
        ("state:running:f32:4x3:steps=2", "running_var"),
        ("shape:forward:f32:4x2:repeat=2", "y"),
        ("types:inference:bf16:3x2:param=f32", "y"),
    ],
)
def test_the_zoos_scripts_state_the_error(text, output):
    pytest.importorskip("ml_dtypes")
    (adapter,) = adapters.load("zoo-control")
    found = next(f for f in run_case(adapter, parse(text)) if f.output == output)
    said = float(re.search(r"relative error (\S+) where", printed(script(found, adapter)))[1])
    assert said == error_of(adapter, text, output)


@pytest.mark.parametrize("operation", sorted(adapters.load("refbn-exact")[0].operations))
def test_refbns_own_scripts_run(operation):
    (adapter,) = adapters.load("refbn-exact")
    case = Case("shape", operation, "f32", (3, 2))
    found = run_case(adapter, case)[0]
    names = executed(script(found, adapter))
    answer = adapter.run(operation, make_inputs(case))
    assert set(names["answer"]) <= set(answer)
    assert np.array_equal(names["got"], answer[found.output].astype(np.float64))


@pytest.mark.parametrize(
    "case",
    [Case("shape", operation, "f64", (4, 3, 2)) for operation in OPERATIONS]
    + [Case("types", operation, "bf16", (4, 3), param="f32") for operation in ("forward", "jvp", "running")]
    + [Case("layout", operation, "f32", (2, 3, 4, 2), layout="transposed") for operation in ("vjp", "inference")],
    ids=str,
)
def test_torchs_scripts_ask_what_the_adapter_asks(case):
    pytest.importorskip("torch")
    (adapter,) = adapters.load("torch")
    names = executed(script(run_case(adapter, case)[0], adapter))
    answer = adapter.run(case.operation, make_inputs(case))
    assert set(answer) == set(names["answer"])
    for output in answer:
        ours, theirs = answer[output].astype(np.float64), names["answer"][output]
        assert np.allclose(ours, theirs, rtol=4 * case.format.unit_roundoff, atol=1e-12), output


@pytest.mark.parametrize(
    "text",
    [
        "composition:fwd_fwd:f64:6x2",
        "conditioning:forward:f32:16x3:scale=1e+30",
        "conditioning:inference:f32:6x3:offset=4096,scale=2",
        "structure:jvp:f16:16x3:data=constant",
    ],
)
def test_torchs_findings_show_in_their_scripts_alone(text):
    torch = pytest.importorskip("torch")
    if not torch.__version__.startswith("2.13."):
        pytest.skip("another PyTorch")
    (adapter,) = adapters.load("torch")
    program = reproduce(adapter, text)
    assert "refbn" not in program
    smallest = re.search(r"^# case (\S+)$", program, re.M)[1]
    output = re.search(r'answer\["(\w+)"\]', program)[1]
    said, allowed = (
        float(number) for number in re.search(r"relative error (\S+) where (\S+) would do", printed(program)).groups()
    )
    assert np.isnan(said) if text.startswith("structure") else said == error_of(adapter, smallest, output)
    assert not said <= allowed
    assert len(program.splitlines()) < 45


@pytest.mark.parametrize("check", ["idempotent", "unmodified", "permute", "momentum", "layout"])
def test_scripts_of_checks_ask_twice(check):
    (adapter,) = adapters.load("zoo-control")
    operation = "train_eval_train" if check == "momentum" else "forward"
    case = Case(
        "state", operation, "f64", (4, 3), check=check, layout="transposed" if check == "layout" else "contiguous"
    )
    found = run_case(adapter, case)[0]
    said = printed(script(found, adapter))
    if check == "unmodified":
        assert said == "changed [False, False, False]\n"
    else:
        assert float(said.rsplit(maxsplit=1)[1]) <= 1e-14
    (changing,) = adapters.load("zoo-input-overwritten")
    if check == "unmodified":
        assert printed(script(found, changing)) == "changed [True, False, False]\n"


def test_threads_have_no_script():
    (adapter,) = adapters.load("zoo-control")
    case = parse("state:forward:f32:4x3:check=threads")
    with pytest.raises(Unsupported, match="no script for the check threads"):
        script(run_case(adapter, case)[0], adapter)


def test_a_refusal_is_shown_by_the_call_alone():
    torch = pytest.importorskip("torch")
    assert torch
    (adapter,) = adapters.load("torch")
    (found,) = run_case(adapter, parse("shape:forward:f32:1x3"))
    done = subprocess.run([sys.executable, "-c", script(found, adapter)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Expected more than 1 value per channel" in done.stderr


def asked_of_the_module(table):
    """The module's names that a script reads, within its functions as well."""
    inside = table.get_type() != "module"
    names = {s.get_name() for s in table.get_symbols() if s.is_referenced() and (s.is_global() or not inside)}
    return names.union(*(asked_of_the_module(child) for child in table.get_children()))


@pytest.mark.parametrize("name", [n for n in adapters.ADAPTERS if not adapters.is_ours(n)])
def test_scripts_use_no_array_that_they_do_not_hold(name):
    """A script holds the arrays that its operation reads, whatever else the adapter's own inputs have."""
    (adapter,) = adapters.load(name)
    fields = {f.name for f in dataclasses.fields(Inputs)}
    written = 0
    for operation in adapter.operations:
        case = Case("shape", operation, "f32", (4, 3, 2, 2), steps=2 if operation == "running" else 1)
        try:
            text = adapter.reproduction(operation, make_inputs(case))
        except (Unsupported, ImportError):  # the second: onnx writes its models with onnx
            continue
        script = symtable.symtable(text, operation, "exec")
        used, own = asked_of_the_module(script), {s.get_name() for s in script.get_symbols() if s.is_assigned()}
        held = {*case.op.arrays, "eps", *(("batches", "momentum") if case.op in STATE else ())}
        assert used & fields <= held | own, operation
        written += 1
    assert written
