import json
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("flint")
pytest.importorskip("rich")

from refbn import backends
from refbn._formats import FORMATS
from refbn.backends import exact
from validation import calls, correct_rounding
from validation.calls import FAMILIES, build
from validation.correct_rounding import DECIDED, RUNGS, check, main, plan
from validation.passes import TENSORS
from validation.truth import OUTPUTS, RUNNING, VARIANTS

SEED = 1
LARGEST = 60_000  # outputs of one case
# numba compiles all its passes for longer than this may take; the full run has it
BACKENDS = tuple(name for name in backends.available() if name == "native")
LONG = [family for family in FAMILIES if family not in ("small", "special")]


def cases_of(family):
    """One small case of each format."""
    names = plan(1, SEED, (family,), LARGEST)
    return sorted(names, key=lambda name: [form.short for form in FORMATS].index(name.split(":")[1]))


def in_turn(family):
    """The case of one format, another one for each family."""
    return cases_of(family)[list(FAMILIES).index(family) % len(FORMATS)]


@pytest.fixture
def load(monkeypatch):
    """Put a module-like object in a backend's place."""

    def replace(stand_in):
        genuine = backends.load
        monkeypatch.setattr(backends, "load", lambda name: stand_in if name == "stand-in" else genuine(name))

    return replace


@pytest.mark.skipif(not BACKENDS, reason="the C core was not built")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_bit_is_right(family):
    found = check((in_turn(family), BACKENDS))
    assert found.lines == []
    assert sum(found.outputs.values()) >= 9_000


@pytest.mark.parametrize("family", ["square", "near-ties", "offset", "scattered"])
def test_one_run_of_the_oracle_is_what_it_says_pass_by_pass(family, monkeypatch):
    call = build(in_turn(family))[0]
    call = type(call)(
        {key: value[:3, :40] if value.ndim > 1 else value[:3] for key, value in call.arrays.items()},
        call.eps,
        call.momentum,
        call.layout,
        call.formats,
        call.labels,
    )
    monkeypatch.setattr(calls, "build", lambda name: [call])
    found = check((f"{family}:f32:0:0", ("exact",)))
    assert found.lines == []
    groups, m = call.shape
    assert sum(found.outputs.values()) == 4 * groups * (12 * m + 28)
    assert found.values[family, "f32"] == groups * (8 * m + 20)


@pytest.mark.parametrize("family", ["small", "special"])
def test_the_oracle_agrees_with_itself_on_small_channels(family, monkeypatch):
    monkeypatch.setitem(calls.CHUNKS, family, 12)
    found = check((f"{family}:f64:3:0", ("exact",)))
    assert found.lines == [] and sum(found.outputs.values()) > 1000


def off(value):
    """Another number: one step away, of the other sign, or no number at all."""
    if np.isnan(value):
        yield value.dtype.type(1)
        return
    yield value.dtype.type(np.nan)
    yield np.nextafter(value, np.array(-np.inf if value > 0 else np.inf, value.dtype))
    if value == 0:
        yield -value


class OneWrong:
    """The oracle, one output of one pass changed in one place."""

    def __init__(self, operation, output, choice):
        self.wrong = operation, output, choice
        self.done = 0

    def __getattr__(self, operation):
        genuine = getattr(exact, operation)  # no `counting` either
        if operation != self.wrong[0]:
            return genuine

        def run(*arguments, **outputs):
            state = genuine(*arguments, **outputs)
            array = outputs[self.wrong[1]]
            place = (0,) * array.ndim
            wrong = list(off(array[place]))
            array[place] = wrong[self.wrong[2] % len(wrong)]
            self.done += 1
            return state

        return run


def test_one_wrong_bit_anywhere_is_found(load, monkeypatch, capsys):
    monkeypatch.setitem(calls.CHUNKS, "small", 1)
    for number, (operation, output) in enumerate((op, out) for op in OUTPUTS for out in OUTPUTS[op]):
        stand_in = OneWrong(operation, output, number)
        load(stand_in)
        name = f"small:{FORMATS[number % 4].short}:0:{number + 2}"
        if build(name)[0].shape[1] == 1:
            continue
        found = check((name, ("stand-in",)))
        times = len(VARIANTS) if operation == RUNNING else 1
        assert stand_in.done == len(FORMATS) * times
        assert sum(found.mismatches.values()) == stand_in.done
        assert all(key[4:] == (operation, output) for key, count in found.mismatches.items() if count)
        where = f"{output}[0, 0]" if output in TENSORS else f"{output}[0]"
        assert all(line.startswith(f"{name} stand-in {operation}") and where in line for line in found.lines)


def test_plain_binary64_is_found_out():
    found = check((in_turn("normal"), ("reference",)))
    assert sum(found.mismatches.values()) > 100
    assert found.lines and "0x" in found.lines[0] and in_turn("normal") in found.lines[0]


class Counting:
    """The oracle, which says that every element was decided by its last rung."""

    def __getattr__(self, operation):
        if operation == "counting":
            return self.count
        return getattr(exact, operation)

    @contextmanager
    def count(self):
        counts = np.zeros((2, 4), np.int64)
        yield counts
        counts[:, -1] = 5, 2  # known only when the pass has run


def test_rungs_are_added_up(load, monkeypatch):
    monkeypatch.setitem(calls.CHUNKS, "small", 1)
    load(Counting())
    found = check(("small:f16:0:3", ("stand-in",)))
    found += check(("small:f32:0:3", ("stand-in",)))
    everything = correct_rounding._result(found, ["stand-in", "exact"])["backends"]
    decided = everything["stand-in"]["decided by"]
    calls_made = 2 * len(FORMATS) * (len(OUTPUTS) - 1 + len(VARIANTS))
    assert decided["in all"]["all"] == {"elements": [0, 0, 0, 5 * calls_made], "vectors": [0, 0, 0, 2 * calls_made]}
    assert decided["by pass and format of tensor outputs"]["jvp f64"] == {
        "elements": [0, 0, 0, 10],
        "vectors": [0, 0, 0, 4],
    }
    assert set(decided["in all"]["all"]) == set(DECIDED) and len(RUNGS) == 4
    assert everything["exact"]["decided by"]["in all"] is None


def test_a_name_rebuilds_its_case():
    for name in ("square:bf16:3:7", "small:f64:2:1", "special:f16:1:0", "near-ties:f32:0:5"):
        for one, other in zip(build(name), build(name), strict=True):
            assert (one.eps, one.momentum, one.layout, one.formats) == (
                other.eps,
                other.momentum,
                other.layout,
                other.formats,
            )
            assert all(one.arrays[key].tobytes() == other.arrays[key].tobytes() for key in one.arrays)
    for wrong in ("normal:f32:0", "normal:f8:0:0", "nothing:f32:0:0", "normal:f32:0:-1", ""):
        with pytest.raises(ValueError, match="FAMILY:FORMAT:SEED:INDEX"):
            build(wrong)


@pytest.mark.parametrize("family", LONG)
def test_shapes_are_as_announced(family):
    name = in_turn(family)
    (call,) = build(name)
    assert call.shape == calls.shape_of(name) and len(call.labels) == call.shape[0]
    assert calls.outputs_of(name) <= LARGEST
    assert all(np.isfinite(array.astype(np.float64)).all() for array in call.arrays.values())


def test_layouts_hold_the_same_numbers():
    tensor = np.arange(24.0).reshape(3, 8)
    for layout in calls.LAYOUTS:
        for array in (tensor, tensor[:, 0], np.ones((3, 8)), tensor[:, :1] * np.ones(8), np.ones(3)):
            laid, room = calls.in_layout(array, layout), calls.in_layout(array, layout, out=True)
            assert np.array_equal(laid.reshape(array.shape), array) and np.array_equal(room.reshape(array.shape), array)
            assert 0 not in room.strides
    assert calls.in_layout(np.ones((3, 8)), "broadcast").strides == (0, 0)
    assert calls.in_layout(np.arange(3.0)[:, None] * np.ones(8), "broadcast").strides[1] == 0
    assert calls.in_layout(tensor, "reversed").strides == (-64, -8)
    assert calls.in_layout(tensor, "columns").strides == (8, 24)
    assert calls.in_layout(tensor, "batch first").shape == (3, 4, 2)


def test_the_plan_follows_the_shares():
    names = plan(2e8, 0)
    assert len(set(names)) == len(names)
    total = sum(map(calls.outputs_of, names))
    assert total >= 1e8
    share = sum(calls.outputs_of(name) for name in names if name.startswith("normal:")) / total
    assert abs(share - FAMILIES["normal"].share) < 0.05
    assert plan(2e8, 0) == names and plan(2e8, 1) != names


@pytest.mark.skipif("native" not in backends.available(), reason="the C core was not built")
def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(calls.CHUNKS, "small", 2)
    common = ["--output", str(tmp_path), "--backend", "exact", "--processes", "1"]
    assert main([*common, "--date", "2001-02-03", "--outputs", "1", "--family", "small"]) == 0
    result = json.loads((tmp_path / "2001-02-03-correct-rounding.json").read_text())
    assert result["cases"] == len(FORMATS) and result["mismatches"] == []
    assert result["backends"]["exact"]["outputs"] > 1000 and result["backends"]["exact"]["mismatches"] == 0
    assert main([*common, "--case", "small:f32:0:3"]) == 0
    assert main(["--output", str(tmp_path), "--backend", "reference", "--case", "small:f32:0:3"]) == 1
    assert "small:f32:0:3 reference" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 1
