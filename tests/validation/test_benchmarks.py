import contextlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest

import refbn
from validation import report
from validation.benchmarks import cases, machine, memory, summary, timing
from validation.benchmarks.__main__ import main
from validation.benchmarks.cases import Case
from validation.benchmarks.timing import Contender


class Clock:
    """Time that passes only where a test lets it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def turns(durations, clock, **options):
    """Measure contenders that take made-up times; return the timings and who was called when."""
    called = []

    def make(name):
        def work():
            called.append(name)
            clock.now += durations[name]

        return Contender(name, name, work, lambda raw: {})

    return timing.measure([make(name) for name in durations], clock=clock, **options), called


def test_statistics():
    found = timing.summarise([5.0, 1.0, 2.0, 4.0, 3.0], calls=7)
    assert found == timing.Timing(median=3.0, min=1.0, q1=2.0, q3=4.0, rounds=5, calls=7)
    assert timing.summarise([1.0, 2.0]).median == 1.5


def test_contenders_take_turns():
    durations = {"a": 0.5, "b": 0.25, "c": 1.0}
    found, called = turns(durations, Clock(), rounds=9, warmups=2)
    assert {name: t.median for name, t in found.items()} == durations
    assert {(t.rounds, t.calls) for t in found.values()} == {(9, 1)}
    rounds = [tuple(called[place : place + 3]) for place in range(3, len(called), 3)]
    assert len(rounds) == 11
    assert {tuple(sorted(order)) for order in rounds} == {("a", "b", "c")}
    assert len(set(rounds)) > 1


def test_short_calls_are_repeated_and_get_more_rounds():
    found, called = turns({"short": 2.0**-14, "long": 2.0**-9}, Clock(), rounds=9)
    assert found["short"].calls == math.ceil(timing.SAMPLE_SECONDS / 2.0**-14)
    assert found["long"].calls == 1
    assert found["short"].rounds == found["long"].rounds == 27
    assert (found["short"].median, found["long"].median) == (2.0**-14, 2.0**-9)
    assert called.count("long") == 2 + 2 * 28  # an untimed call wakes threads before each timed one


def test_the_context_is_not_timed():
    clock = Clock()

    @contextlib.contextmanager
    def around():
        clock.now += 100.0
        yield
        clock.now += 100.0

    def work():
        clock.now += 1.0

    found = timing.measure([Contender("x", "x", work, lambda raw: {}, around)], rounds=2, clock=clock)
    assert found["x"].median == 1.0


def timings(**medians):
    """Return timings of contenders, with quartiles a tenth away; two underscores stand for a space."""
    named = {name.replace("__", " "): value for name, value in medians.items()}
    return {
        name: {"library": name.split()[0], "median": value, "min": value, "q1": 0.9 * value, "q3": 1.1 * value}
        for name, value in named.items()
    }


def record(found, *, dtype="float32", shape=(64, 256), operation="forward", threads=1, layout="first"):
    return {"threads": threads, "pass": operation, "shape": shape, "layout": layout, "dtype": dtype, "timings": found}


def with_out(found, name, value):
    return found | {f"{name} out=": {**timings(x=value)["x"], "library": name.split()[0]}}


def test_ratios_take_the_quickest_way():
    found = timings(refbn=4.0, PyTorch__a=16.0, PyTorch__b=8.0, copy=1.0, copyto=0.5)
    found = with_out(with_out(found, "refbn", 2.0), "PyTorch b", 5.0)
    ratios = summary.row(record(found))["ratios"]
    assert summary.quickest(found, "PyTorch") == "PyTorch b"
    assert summary.quickest(found, "PyTorch out=") == "PyTorch b out="
    assert ratios == {
        "refbn/PyTorch": 0.5,
        "refbn/JAX": None,
        "refbn/copy": 4.0,
        "out=/PyTorch": 0.4,
        "out=/copyto": 4.0,
    }


def test_who_is_quicker_than_refbn():
    assert summary.slower(timings(refbn=3.0, PyTorch__a=2.0, JAX__jit=2.9)) == ["PyTorch", "JAX?"]
    assert summary.slower(timings(refbn=3.0, PyTorch__a=3.0, JAX__jit=5.0)) == []
    assert summary.slower(timings(refbn=3.0)) == []


def test_geometric_mean():
    assert summary.geometric_mean([2.0, 8.0, None]) == pytest.approx(4.0)
    assert summary.geometric_mean([0.25, 4.0]) == pytest.approx(1.0)
    assert summary.geometric_mean([None]) is None


def test_means_of_groups():
    large = (64, 1024)
    rows = [
        summary.row(record(timings(refbn=refbn, PyTorch__a=1.0), shape=shape, operation=operation))
        for refbn, shape, operation in (
            (2.0, large, "forward"),
            (0.5, large, "forward"),
            (3.0, (32, 16), "forward"),
            (0.25, large, "jvp"),
        )
    ]
    found = {(one["pass"], one["size"]): one for one in summary.means(rows)}
    assert {key: one["ratios"]["refbn/PyTorch"] for key, one in found.items()} == pytest.approx(
        {("forward", "large"): 1.0, ("forward", "small"): 3.0, ("jvp", "large"): 0.25}
    )
    assert [(one["cases"], one["slower"]) for one in found.values()] == [(2, 1), (1, 1), (1, 0)]


def test_tables():
    found = with_out(timings(refbn=0.004, PyTorch__a=0.002, copy=0.001, copyto=0.001), "refbn", 0.003)
    columns, rows = summary.rows_table([record(found, shape=(2, 3, 4, 5), layout="last")])
    cells = dict(zip(columns, rows[0], strict=True))
    assert cells["shape"] == "2x3x4x5:last"
    assert (cells["refbn"], cells["PyTorch"], cells["JAX"]) == (4.0, 2.0, "–")
    assert (cells["/PyTorch"], cells["/JAX"], cells["slower than"]) == (2.0, "–", "PyTorch")
    columns, rows = summary.means_table(summary.means([summary.row(record(found))]))
    assert dict(zip(columns, rows[0], strict=True))["refbn/copy"] == pytest.approx(4.0)


def test_a_table_without_rich():
    text = report.plain("Title", ("name", "of\nmany"), [("a", 1.23456), ("long one", "–")])
    assert text.split("\n") == ["Title", "name      of many", "a            1.23", "long one        –"]


def test_the_scripts_do_without_rich():
    program = "import sys; sys.path[:] = {!r}; sys.modules['rich'] = sys.modules['rich.console'] = None\n"
    program += "from validation import report\nreport.show('Title', ('a', 'b'), [('x', 1)])\n"
    program += "assert list(report.progress([1, 2], 2, 'parts')) == [1, 2]\n"
    shown = subprocess.run(
        [sys.executable, "-c", program.format(sys.path)], capture_output=True, encoding="utf-8", check=True
    ).stdout
    assert shown.splitlines() == ["Title", "a  b", "x  1", "parts: 1 of 2", "parts: 2 of 2"]


def test_history(tmp_path):
    history = tmp_path / "folder" / "history.jsonl"
    assert summary.last(history) is None
    found = timings(refbn=2.0, PyTorch__a=1.0), timings(refbn=1.0, PyTorch__a=1.0, JAX__jit=1.0)
    first, second = ({"means": summary.flat(summary.means([summary.row(record(t))]))} for t in found)
    summary.append(history, first)
    summary.append(history, second)
    assert summary.last(history) == second
    name = "1 threads, forward, float32, small: refbn/PyTorch"
    assert list(summary.changes(first, second)) == [(name, 2.0, 1.0, 0.5)]


def test_shapes():
    assert cases.parse("2x3x4x5") == ((2, 3, 4, 5), ("first", "last"))
    assert cases.parse("2x3x4x5:first") == ((2, 3, 4, 5), ("first",))
    assert cases.parse("64x256") == ((64, 256), ("first",))
    for wrong in ("64", "2x0", "64x256:last", "2x3x4:middle", "2,3"):
        with pytest.raises(ValueError):
            cases.parse(wrong)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inputs(layout, dtype):
    inputs = cases.draw(Case((4, 3, 5, 2), layout, dtype), seed=1)
    for tensor in (inputs.x, inputs.dy, inputs.x_dot):
        assert tensor.shape == (4, 3, 5, 2) and tensor.dtype == dtype
        assert tensor.__array_interface__["data"][0] % 64 == 0
        assert inputs.case.to_memory(tensor).flags.c_contiguous
        assert inputs.case.from_memory(inputs.case.to_memory(tensor)).strides == tensor.strides
    assert not np.array_equal(inputs.x, inputs.dy)
    np.testing.assert_array_equal(inputs.x, cases.draw(inputs.case, seed=1).x)


def test_refbn_is_told_its_threads(monkeypatch):
    pytest.importorskip("refbn._native")
    from validation.benchmarks import own

    told = []
    monkeypatch.setattr(refbn, "num_threads", lambda n: told.append(n) or contextlib.nullcontext(), raising=False)
    inputs = cases.draw(Case((4, 3), "first", "float32"))
    saved = refbn.forward(inputs.x, inputs.gamma, inputs.beta, eps=inputs.eps, backend="native").saved
    expected = refbn.backward(saved, inputs.dy).dx
    allocating, given = own.contenders("backward", inputs, 2)
    for contender in (allocating, given):
        told.clear()
        with contender.around():
            results = contender.results(contender.work())
        assert told == [2]
        np.testing.assert_array_equal(results["dx"], expected)
    assert given.work().dx is given.work().dx and allocating.work().dx is not allocating.work().dx


def test_a_copy_keeps_the_memory_order():
    x = cases.draw(Case((4, 3, 5, 2), "last", "float32"))
    copied = memory.contenders(x)[0].work()
    assert copied.strides == x.x.strides
    np.testing.assert_array_equal(copied, x.x)


def test_the_machine_is_described_without_a_name():
    found = machine.describe()
    assert found["processor"] and found["cores"] >= 1 and found["versions"]["numpy"] == np.__version__
    others = machine.Load().others()
    assert others is None or 0.0 <= others <= 1.0


def test_a_quick_run(tmp_path, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("refbn._native")
    options = ["--dtypes", "float32", "--threads", "1", "--rounds", "2"]
    history = tmp_path / "history.jsonl"
    options += ["--date", "2001-02-03", "--output", str(tmp_path), "--history", str(history), "--quick"]
    assert main([*options, "--shapes", "32x16", "--passes", "forward", "--rivals", "copy"]) == 0
    assert main([*options, "--shapes", "8x4x3x3:last", "32x16", "--rivals", "PyTorch", "copy"]) == 0
    printed = capsys.readouterr().out
    assert (
        "the history begins" in printed
        and "Geometric means since 2001-02-03" in printed
        and "results differ" not in printed
    )

    (path,) = tmp_path.glob("2001-02-03-*.json")
    result = json.loads(path.read_text(encoding="utf-8"))
    assert len(result["records"]) == 2 * len(cases.PASSES)
    for found in result["records"]:
        assert found["agree"] and found["skipped"] == {}
        libraries = {t["library"] for t in found["timings"].values()}
        assert libraries == {"refbn", "PyTorch", "copy"}
        assert found["ratios"]["refbn/JAX"] is None
        assert all(0 < t["min"] <= t["q1"] <= t["median"] <= t["q3"] for t in found["timings"].values())
    assert {one["pass"] for one in result["geometric means"]} == set(cases.PASSES)
    assert len(history.read_text(encoding="utf-8").splitlines()) == 2
    assert "/" not in json.dumps(result["machine"]) + json.dumps(result["processes"])


@pytest.mark.parametrize("wrong", [["--shapes", "64"], ["--rounds", "1"], ["--threads", "0"]])
def test_wrong_arguments(wrong, capsys):
    with pytest.raises(SystemExit):
        main(wrong)
    assert "usage" in capsys.readouterr().err
