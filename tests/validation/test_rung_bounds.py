import json
import os
import shutil
from fractions import Fraction
from math import inf

import numpy as np
import pytest

pytest.importorskip("flint")
pytest.importorskip("rich")

from refbn._formats import BINARY32, BINARY64
from validation import rung_bounds
from validation.rung_bounds import ATTACKS, Core, Findings, Truth, attack, compile_core, decide, main, measure

if not (rung_bounds.HERE.parent / "_ext" / "kernels.c").exists():
    pytest.skip("no _ext/: this is not a checkout", allow_module_level=True)
if shutil.which(os.environ.get("CC", "cc")) is None or os.name != "posix":
    pytest.skip("no C compiler", allow_module_level=True)

BUILD = rung_bounds.available()[0]
SMALL = {
    "random": ("normal:f32:0:9", 0),
    "edges": (10, 2),
    "swallowed": (1, 6),
    "climb": (5, 300),
    "midpoints": (2, 8),
}
NARROW, WIDE = (BINARY32, BINARY32, 1, False), (BINARY64, BINARY64, 2, True)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return str(compile_core(BUILD, tmp_path_factory.mktemp("core")))


def run(kind, library, limit=1.0):
    case, steps = SMALL[kind]
    return attack((kind, case, steps, (library,), limit))


@pytest.fixture(scope="module")
def call():
    rng = np.random.default_rng(0)
    return rung_bounds.midpoints(rng, BINARY32, BINARY32)


@pytest.mark.parametrize("kind", ATTACKS)
def test_no_bound_is_violated(kind, library):
    found = run(kind, library)
    assert found.violations == [] and not found.violated
    assert sum(found.bounds.values()) > 500
    assert {key[1] for key, n in found.bounds.items() if n} >= {"twofold"}


@pytest.mark.parametrize("kind", ATTACKS)
def test_a_bound_that_is_too_small_is_found(kind, library):
    found = run(kind, library, 2.0**-12)
    assert found.violations and "of the bound" in found.violations[0]
    assert {"plain", "twofold"} & {key[1] for key in found.violated}


class Displaced(Core):
    """The core, the middle of one enclosure moved by the bound and a bit, or one output changed."""

    what = ""

    def run(self, call, which, setup, state, *, forced):
        outputs, rungs = super().run(call, which, setup, state, forced=forced)
        for rung in rungs:
            if self.what == "sum":
                rung.sums[1, 0, 1] += 2.5 * rung.sums[1, 0, 2]
            elif self.what == "vector":
                rung.results[2, 2, 1] += 2.5 * rung.results[2, 2, 2]
            elif self.what == "element":
                ends = rung.elements["y"][3, 1]
                width = (ends[2] - ends[0]) + (ends[3] - ends[1])
                ends[1] += 2.0 * width
                ends[3] += 2.0 * width
            elif self.what == "negative":
                rung.results[0, 0, 2] *= -1.0
        if self.what == "output":
            outputs["invstd"][4] = np.nextafter(outputs["invstd"][4], np.float32(inf))
        return outputs, rungs


@pytest.mark.parametrize(
    ("what", "quantity"),
    [("sum", "sum t"), ("vector", "forward invstd"), ("element", "forward y"), ("negative", "forward mean")],
)
@pytest.mark.parametrize("setup", [NARROW, WIDE], ids=["narrow", "wide"])
def test_an_enclosure_beside_the_truth_is_found(what, quantity, setup, library, call):
    core, found = Displaced(rung_bounds.Path(library)), Findings()
    measure(core, Truth(call), ("forward", ()), setup, found)
    assert not found.violated
    core.what = what
    measure(core, Truth(call), ("forward", ()), setup, found)
    assert {key[2] for key in found.violated} == {quantity}
    assert {key[1] for key in found.violated} >= {"twofold"}


def test_a_wrong_output_is_found(library, call):
    core, found = Displaced(rung_bounds.Path(library)), Findings()
    decide(core, Truth(call), ("forward", ()), NARROW, found)
    assert not found.violated and found.decided[BUILD, "f32"] == call.arrays["x"].size + 3 * call.shape[0]
    core.what = "output"
    decide(core, Truth(call), ("forward", ()), NARROW, found)
    assert found.violated == {(BUILD, "outputs", "forward invstd"): 1} and "invstd[4] in f32" in found.violations[0]


def test_fractions_are_exact():
    used = rung_bounds._used
    one = Fraction(1)
    assert used((one, Fraction(0), 0), one, Fraction(0)) == 0.0
    assert used((one, Fraction(0), 0), Fraction(3, 4), Fraction(1, 2)) == 0.5
    assert used((one, Fraction(0), 0), Fraction(3, 4), Fraction(0)) == inf
    assert used((one, Fraction(0), 0), one, -one) == inf
    root = Fraction(1414213562373095048801688724209698078569671875376948, 10**51)
    assert used((Fraction(0), one, 2), root, Fraction(1, 10**51)) == pytest.approx(0.0731766797, rel=1e-6)


def test_midpoints_are_near(call):
    y, _ = Truth(call).pair(("forward", ()), "y")
    scaled = y / np.spacing(np.abs(y).astype(np.float32)).astype(np.float64)
    beside = np.abs(scaled - np.floor(scaled) - 0.5).min(axis=1)
    assert beside.min() < 2.0**-16 and np.median(beside) < 2.0**-4


def test_the_command(tmp_path, monkeypatch, library):
    monkeypatch.setattr(rung_bounds, "compile_core", lambda build, folder: library)
    monkeypatch.setattr(rung_bounds, "cases_of", lambda *_: ["square:f16:0:0"])
    monkeypatch.setattr(rung_bounds, "attack", lambda task: genuine(replace_case(task)))
    common = ["--output", str(tmp_path), "--processes", "1", "--builds", BUILD, "--number", "1", "--steps", "1"]
    assert main([*common, "--date", "2001-02-03"]) == 0
    result = json.loads((tmp_path / "2001-02-03-rung-bounds.json").read_text())
    assert result["violations"] == [] and result["bounds"] > 1000
    largest = result["largest fractions"][BUILD]["plain"]["forward invstd"]["largest"]
    assert 0.0 < largest < 1.0
    assert main([*common, "--limit", "1e-4", "--date", "2001-02-04"]) == 1


genuine = rung_bounds.attack


def replace_case(task):
    """The random case is a small one."""
    kind, _case, *rest = task
    return ("midpoints", 0, 1, *rest[1:]) if kind == "random" else task
