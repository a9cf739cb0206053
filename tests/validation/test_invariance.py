import json
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("flint")
pytest.importorskip("rich")
pytest.importorskip("hypothesis")

import refbn
from refbn import backends
from refbn._formats import BINARY32, BINARY64, FORMATS
from refbn.backends import exact
from validation import invariance
from validation.invariance import check, check_backends, draw, main, outputs

needs_native = pytest.mark.skipif("native" not in backends.available(), reason="the C core was not built")
SHAPE = (5, 3, 2, 7)


@needs_native
@pytest.mark.parametrize("shape", [SHAPE, (7, 70, 3), (1, 4, 1)], ids=str)
@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.short)
def test_the_core_gives_the_same_bits(form, shape):
    found = check("native", form, shape, 0)
    assert found.lines == []
    assert {what for _, what in found.runs} >= {"layout", "broadcast dy", "order"}


@needs_native
@pytest.mark.parametrize(
    ("form", "shape"), [(BINARY32, (16, 4, 80, 80)), (BINARY64, (16, 20, 15, 15))], ids=["f32", "f64"]
)
def test_the_core_gives_the_same_bits_where_threads_share_the_work(form, shape):
    assert check("native", form, shape, 1, (1, 2, 7)).lines == []


def test_the_oracle_gives_the_same_bits():
    assert check("exact", BINARY32, (3, 2, 5), 0).lines == []


@needs_native
@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.short)
def test_the_core_agrees_with_the_oracle(form):
    found = check_backends(("native", "exact"), form, (4, 14, 3), 2)  # a channel of each family
    assert found.lines == [] and found.compared["exact", "as native"] > 1000


# ---- what differs is found -------------------------------------------------------------------------------------------


def varied(found):
    """What the differences were found by."""
    return {what for (_, what), count in found.different.items() if count}


def step(array, *place):
    array[place] = np.nextafter(array[place], np.array(np.inf, array.dtype))


def replace_dx(monkeypatch, when):
    """Put dx one step off at the first element of the first channel, when asked to."""
    genuine = exact.backward

    def backward(state, x, gamma, dy, *, dx, dgamma, dbeta):
        genuine(state, x, gamma, dy, dx=dx, dgamma=dgamma, dbeta=dbeta)
        if when(x, dy):
            step(dx, *(0,) * dx.ndim)

    monkeypatch.setattr(exact, "backward", backward)


def usual_layout(x):
    return abs(x.strides[-1]) == x.itemsize and x.strides[-1] > 0 and x.strides[1] == x.shape[0] * x.strides[0]


@pytest.mark.parametrize(
    ("when", "found_by"),
    [
        (lambda x, dy: not usual_layout(x), {"layout"}),
        (lambda x, dy: 0 in dy.strides, {"broadcast dy"}),
        (lambda x, dy: True, {"order"}),
    ],
    ids=["layout", "broadcast", "order"],
)
def test_a_dependence_is_found(when, found_by, monkeypatch):
    replace_dx(monkeypatch, when)
    found = check("exact", BINARY32, (3, 2, 5), 0)
    assert varied(found) == found_by
    assert all("backward dx" in line and "f32 3x2x5 seed 0" in line for line in found.lines)


class OffBuild:
    """A build of the core whose dbeta is one step off."""

    name = "off"

    def __init__(self, genuine):
        self.genuine = genuine

    def __getattr__(self, operation):
        return getattr(self.genuine, operation)

    def backward(self, *arguments):
        self.genuine.backward(*arguments)
        _state, _x, _gamma, _dy, _dx, _dgamma, dbeta = arguments[:7]
        step(dbeta, 0)


@needs_native
def test_another_build_is_found(monkeypatch):
    from refbn.backends import native

    usual, baseline = native._core, invariance._builds("native")[0]
    monkeypatch.setattr(invariance, "_builds", lambda backend: [baseline, OffBuild(baseline)])
    found = check("native", BINARY32, (1, 4, 1), 0, (1,))
    assert "build" in varied(found) and any("backward dbeta[0]" in line for line in found.lines)
    assert native._core is usual


@needs_native
def test_a_dependence_on_threads_is_found(monkeypatch):
    from refbn.backends import native

    genuine, running = native.forward, [1]

    @contextmanager
    def num_threads(count):
        running.append(count)
        yield
        running.pop()

    def forward(*arguments, **results):
        state = genuine(*arguments, **results)
        if running[-1] == 3:
            step(results["mean"], 1)
        return state

    monkeypatch.setattr(refbn, "num_threads", num_threads, raising=False)
    monkeypatch.setattr(native, "forward", forward)
    found = check("native", BINARY64, (1, 4, 1), 0)
    assert "threads" in varied(found) and running == [1]
    assert any(line.startswith("f64 1x4x1 seed 0 (3 ") and "forward mean[1]" in line for line in found.lines)


def test_backends_that_differ_are_found():
    found = check_backends(("exact", "reference"), BINARY64, (4, 14, 3), 2)
    assert varied(found) == {"as exact"} and any("reference as exact" in line for line in found.lines)


# ---- what is run -----------------------------------------------------------------------------------------------------


def test_every_pass_is_run():
    found = outputs(draw(BINARY64, (3, 2), 0), "reference")
    passes = ("forward", "backward", "jvp", "double_backward", "hvp")
    assert {key.rpartition(" ")[0] for key in found} == {*passes, *(f"inference {p}" for p in passes), "running_update"}


def test_the_large_problems_are_large():
    assert min(np.prod(shape) for shape in invariance.LARGE) >= 4e5


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(invariance, "SMALL", ((2, 2, 3),))
    common = ["--small", "--seeds", "1", "--output", str(tmp_path)]
    assert main([*common, "--backend", "exact", "--date", "2001-02-03"]) == 0
    result = json.loads((tmp_path / "2001-02-03-invariance.json").read_text())
    assert result["lines"] == [] and result["outputs"]["exact: layout"]["compared"] > 1000
    assert result["outputs"]["exact: order"]["different"] == 0
