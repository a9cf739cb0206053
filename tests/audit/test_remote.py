"""Adapters in processes of their own: the same inputs, the same answers, and whatever can go wrong there."""

import dataclasses
import io
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from refbn._formats import BFLOAT16
from refbn.audit.adapters._protocol import Broken, Unsupported
from refbn.audit.cases import LAYOUTS, make_inputs, parse
from refbn.audit.compare import same_bits
from refbn.audit.remote import interpreter, wire
from refbn.audit.remote.interpreter import Interpreter, InterpreterError
from refbn.audit.runner import run_case, run_cases
from tests.audit.strangers import Odd, Stranger

ROOT = Path(__file__).parents[2]
STRANGERS = "tests.audit.strangers"
CASE = parse("shape:forward:f32:4x3x2")
INPUTS = make_inputs(CASE)


@pytest.fixture(autouse=True)
def _checkout_on_the_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def here():
    with Interpreter(sys.executable, timeout=60) as found:
        yield found


def stranger(here, name, *arguments):
    return here.adapter(f"{STRANGERS}:{name}", arguments)


# ---- wire ----------------------------------------------------------------------------------------------------------


def arrays():
    base = np.arange(60.0).reshape(3, 4, 5)
    yield base
    yield base[::-1, ::2, ::-2]
    yield base.T
    yield np.moveaxis(base, -1, 0)[1:, :, ::-1]
    yield np.broadcast_to(np.float32(3), (4, 2))
    yield np.broadcast_to(np.arange(3, dtype=np.float16), (2, 3))[::-1]
    yield np.empty((0, 3), np.float32)
    yield np.empty((3, 0, 2))[::-1]
    yield np.array(2.5)
    yield np.arange(7, dtype=BFLOAT16.dtype)[::-2]


@pytest.mark.parametrize("array", list(arrays()), ids=lambda a: f"{a.dtype}{a.shape}{a.strides}")
def test_an_input_keeps_values_strides_place_and_permission(array):
    inputs = dataclasses.replace(INPUTS, x=array, momentum=None, batches=(array, INPUTS.x))
    stream = io.BytesIO()
    head, parts = wire.pack_inputs(inputs)
    wire.send(stream, {"inputs": head}, parts)
    stream.seek(0)
    message, received = wire.receive(stream)
    assert wire.receive(stream) is None
    again = wire.unpack_inputs(message["inputs"], received)
    for name, before in wire.flatten(inputs).items():
        after = wire.flatten(again)[name]
        assert same_bits(after, before) and after.strides == before.strides and after.dtype == before.dtype
        assert after.flags.writeable == before.flags.writeable
        if before.size:
            assert (after.ctypes.data - before.ctypes.data) % wire.ALIGNMENT == 0
        assert bytes(wire.memory(after)) == bytes(wire.memory(before))
        assert not np.shares_memory(after, before)
    assert (again.eps, again.momentum, len(again.batches)) == (inputs.eps, None, 2)


def test_memory_is_the_array_s_own():
    array = np.arange(10.0)[8:1:-3]
    memory = wire.memory(array)
    assert len(memory) == 7 * 8
    memory[:8] = np.array([50.0]).tobytes()
    assert array[-1] == 50.0


def test_outputs_keep_values_dtype_and_shape():
    answer = Odd().run("forward", INPUTS)
    head, parts = wire.pack_outputs(answer)
    again = wire.unpack_outputs(head, [bytearray(part) for part in parts])
    assert list(again) == list(answer)
    for name, before in answer.items():
        assert again[name].dtype == before.dtype and again[name].shape == np.shape(before)
        assert again[name].tobytes() == np.asarray(before).tobytes() and again[name].flags.writeable


def test_what_is_no_number_is_not_sent():
    with pytest.raises(TypeError, match="dtype object, expected numbers"):
        wire.pack_outputs({"y": np.array([None])})


@pytest.mark.parametrize("cut", [12, 20, -1])
def test_a_stream_that_breaks_off_is_told(cut):
    stream = io.BytesIO()
    wire.send(stream, {"ask": "nothing"}, [b"12345678"])
    with pytest.raises(EOFError, match="within a message"):
        wire.receive(io.BytesIO(stream.getvalue()[:cut]))


def test_noise_in_the_stream_is_no_message():
    with pytest.raises(ValueError, match="no message"):
        wire.receive(io.BytesIO(b"Hello, I am a banner that a framework prints."))


# ---- the same as in this process -----------------------------------------------------------------------------------


def test_a_proxy_declares_what_its_adapter_declares(here):
    proxy, adapter = stranger(here, "Stranger", "2"), Stranger("2")
    for name in ("name", "dialect", "operations", "dtypes", "differentiates_statistics", "environment"):
        assert getattr(proxy, name) == getattr(adapter, name)
    assert not proxy.compiles
    assert proxy.version() == "1.2" and proxy.note == ""
    assert proxy.reproduction("forward", INPUTS) == "answer = {}  # forward of (4, 3, 2)"
    assert here.version == ".".join(map(str, sys.version_info[:3])) and here.numpy == np.__version__


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_inputs_arrive_as_they_are(here, layout, dtype):
    inputs = make_inputs(parse(f"layout:running:{dtype}:2x3x4x5:layout={layout},momentum=none,steps=2"))
    told = stranger(here, "Eloquent").run("running", inputs)
    assert same_bits(told["x"], inputs.x) and same_bits(told["gamma"], inputs.gamma)
    assert same_bits(told["batch"], inputs.batches[1])
    assert tuple(told["strides"]) == inputs.x.strides and tuple(told["batch_strides"]) == inputs.batches[1].strides
    assert told["place"] == inputs.x.ctypes.data % 64 and told["writeable"] == inputs.x.flags.writeable
    assert told["numbers"].tolist() == [1e-5, -1.0]


def test_an_answer_is_the_same_bits(here):
    for dtype in ("f16", "bf16", "f32", "f64"):
        inputs = make_inputs(parse(f"shape:forward:{dtype}:4x3x2"))
        assert same_bits(stranger(here, "Stranger").run("forward", inputs)["y"], Stranger().run("forward", inputs)["y"])


def test_findings_are_those_of_this_process(here):
    cases = [
        parse(t) for t in ("shape:forward:f32:4x3", "state:forward:f32:8x3x5:check=unmodified", "shape:vjp:f64:4x3")
    ]
    assert run_cases([stranger(here, "Stranger")], cases) == run_cases([Stranger()], cases)


def test_a_large_array_travels(here):
    inputs = make_inputs(parse("shape:forward:f64:64x2:repeat=16384"))
    y = stranger(here, "Stranger").run("forward", inputs)["y"]
    assert y.shape == (2**20, 2) and same_bits(y, Stranger().run("forward", inputs)["y"])


def test_inputs_that_are_changed_there_are_changed_here(here):
    inputs = make_inputs(dataclasses.replace(CASE, layout="read-only"))
    beta = inputs.beta.copy()
    writeable = dataclasses.replace(inputs, dy=inputs.dy.copy())
    stranger(here, "Rude", "overwrite").run("forward", writeable)
    assert not writeable.dy.any() and inputs.beta[0] == 0 and same_bits(inputs.beta[1:], beta[1:])
    (finding,) = run_case(stranger(here, "Rude", "overwrite"), parse("state:vjp:f32:8x3x5:check=unmodified"))
    assert finding.verdict == "wrong" and finding.note == "modified its input beta, dy"


def test_what_is_changed_before_an_exception_is_changed_here_too(here):
    inputs = make_inputs(CASE)
    with pytest.raises(Exception, match="own trouble"):
        stranger(here, "Rude", "raising").run("forward", inputs)
    assert (inputs.x[0] == 7).all() and not (inputs.x[1:] == 7).any()


# ---- what can go wrong -----------------------------------------------------------------------------------------------


def test_an_exception_keeps_its_name_and_text(here):
    with pytest.raises(Exception, match="own trouble") as caught:
        stranger(here, "Rude", "raising").run("forward", make_inputs(CASE))
    assert type(caught.value).__name__ == "ZeroDivisionError"
    (finding,) = run_case(stranger(here, "Rude", "raising"), CASE)
    assert (finding.verdict, finding.note) == ("raises", "ZeroDivisionError: a framework's own trouble")


def test_unsupported_and_odd_answers(here):
    with pytest.raises(Unsupported, match="not offered"):
        stranger(here, "Rude", "refuse").run("forward", INPUTS)
    with pytest.raises(Exception, match="dtype object, expected numbers"):
        stranger(here, "Odd").run("inference", INPUTS)
    answer = stranger(here, "Odd").run("forward", INPUTS)
    assert answer["swapped"].dtype == np.dtype(">f4") and answer["scalar"].shape == ()


def test_noise_is_no_answer(here):
    rude = stranger(here, "Rude", "shout")
    assert same_bits(rude.run("forward", INPUTS)["y"], Stranger().run("forward", INPUTS)["y"])


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("what", "note"),
    [
        ("crash", "crash: the process was ended by SIGSEGV"),
        ("abort", "crash: the process was ended by SIGABRT: Check failed: a framework's last words"),
        ("vanish", "crash: the process ended with status 3"),
        ("leave", "SystemExit: a framework that ends the process"),
    ],
)
def test_a_crash_is_a_finding_and_the_next_case_gets_a_new_process(here, what, note):
    rude = stranger(here, "Rude", what)
    before = rude.run("inference", INPUTS)["process"]
    (finding,) = run_case(rude, CASE)
    assert (finding.verdict, finding.note) == ("raises", note)
    after = rude.run("inference", INPUTS)["process"]
    assert (before != after) == (what != "leave")
    (finding,) = [f for f in run_case(rude, parse("shape:inference:f32:4x3x2")) if f.output == "y"]
    assert finding.verdict != "raises"


def test_a_crash_is_no_convention(here):
    """An empty batch may be refused, but not by crashing."""
    (finding,) = run_case(stranger(here, "Rude", "crash"), parse("shape:forward:f32:0x3"))
    assert finding.verdict == "raises" and finding.note.startswith("crash: ")


def test_a_hang_is_a_finding_and_is_not_waited_for_for_ever():
    with Interpreter(sys.executable, timeout=1.5) as here:
        rude = stranger(here, "Rude", "hang")
        began = time.monotonic()
        notes = [run_case(rude, CASE)[0].note for _ in range(interpreter.PATIENCE + 2)]
        assert time.monotonic() - began < 300  # each call would sleep for 600
        assert notes[: interpreter.PATIENCE] == ["timeout: no answer within 1.5 s"] * interpreter.PATIENCE
        assert set(notes[interpreter.PATIENCE :]) == {"not asked: forward did not end within 1.5 s 3 times"}
        assert "y" in rude.run("inference", INPUTS)


def test_the_number_of_threads_survives_a_crash(here):
    rude = stranger(here, "Rude", "vanish")
    rude.set_threads(2)
    assert rude.run("inference", INPUTS)["threads"] == 2
    with pytest.raises(Broken):
        rude.run("forward", INPUTS)
    assert rude.run("inference", INPUTS)["threads"] == 2
    with pytest.raises(Unsupported, match="no 3 threads"):
        rude.set_threads(3)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_no_process_is_left():
    with Interpreter(sys.executable) as here:
        process = int(stranger(here, "Stranger").run("forward", INPUTS)["process"])
        assert Path(f"/proc/{process}").exists()
    assert not Path(f"/proc/{process}").exists()


# ---- where -----------------------------------------------------------------------------------------------------------


def test_adapters_of_one_file_share_a_process_unless_they_need_other_variables(here):
    one, other = stranger(here, "Stranger"), stranger(here, "Stranger", "3")
    dependent = stranger(here, "Dependent")
    assert one.run("forward", INPUTS)["process"] == other.run("forward", INPUTS)["process"]
    assert dependent.run("forward", INPUTS)["process"] != one.run("forward", INPUTS)["process"]
    assert os.environ.get("REFBN_STRANGER") is None


def test_the_worker_meets_no_refbn_but_this_one_and_no_folder_of_ours(here, monkeypatch, tmp_path):
    other = tmp_path / "refbn"
    other.mkdir()
    (other / "__init__.py").write_text("raise RuntimeError('another refbn')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.chdir(tmp_path)
    with Interpreter(sys.executable) as again:
        assert "y" in stranger(again, "Stranger").run("forward", INPUTS)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("no-such-python", "no-such-python: No such file"),
        ("/", "Permission denied"),
    ],
)
def test_an_interpreter_that_is_none(program, message):
    with pytest.raises(InterpreterError, match=message):
        Interpreter(program)


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(sys.platform == "win32", reason="shell scripts")
def test_an_interpreter_that_cannot_run_adapters(tmp_path, monkeypatch):
    with pytest.raises(
        InterpreterError, match="cannot run adapters: crash: the process ended with status 4: no Python"
    ):
        Interpreter(script(tmp_path / "python", "echo no Python >&2; exit 4"))
    with pytest.raises(InterpreterError, match=r"the process (ended|was ended)"):
        Interpreter(script(tmp_path / "talker", "echo Hello, I am no Python at all"))
    monkeypatch.setattr(interpreter, "START", 0.5)
    with pytest.raises(InterpreterError, match=r"no answer within 0\.5 s"):
        Interpreter(script(tmp_path / "sleeper", "exec sleep 60"), timeout=0.5)


@pytest.mark.skipif(sys.platform == "win32", reason="shell scripts")
def test_an_interpreter_without_numpy_says_so(tmp_path):
    bare = script(tmp_path / "python", f'PYTHONPATH= exec {sys.executable} -S "$@"')
    with pytest.raises(InterpreterError, match=r"No module named 'numpy': a worker needs NumPy"):
        Interpreter(bare)


@pytest.mark.skipif(sys.platform == "win32", reason="shell scripts")
def test_without_ml_dtypes_bfloat16_is_left_out_and_told(tmp_path):
    (tmp_path / "ml_dtypes").mkdir()
    hide = "f = u.find_spec; u.find_spec = lambda name, *a: None if name == 'ml_dtypes' else f(name, *a)"
    (tmp_path / "sitecustomize.py").write_text(f"import importlib.util as u; {hide}\n")
    folders = f"{tmp_path}{os.pathsep}{ROOT}"
    bare = script(tmp_path / "python", f'PYTHONPATH={folders} exec {sys.executable} "$@"')
    with Interpreter(bare) as there:
        proxy = stranger(there, "Stranger")
        assert proxy.dtypes == {"float16", "float32", "float64"}
        assert proxy.note == "bfloat16 is not asked: ml_dtypes is not installed there"
        (finding,) = run_case(proxy, parse("shape:forward:bf16:4x3"))
        assert (finding.verdict, finding.note) == ("unsupported", "no bfloat16")
