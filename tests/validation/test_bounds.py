import json
import math

import numpy as np
import pytest

pytest.importorskip("flint")

from refbn import backends
from refbn._formats import BINARY64, FORMATS
from validation import bounds
from validation.bounds import check, fractions, main


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.short)
def test_no_error_exceeds_its_bound(form):
    found = check((form.short, 1, range(60)))
    assert found.violations == []
    assert 0 < max(found.largest.values()) <= 1
    total = {count: sum(n for key, n in found.counts.items() if key[-1] == count) for count in ("values", "outside")}
    assert total["outside"] < (0.3 if form is BINARY64 else 0.05) * total["values"]


def used(result, hi, lo=0.0, bound=1.0):
    return fractions(np.array([result]), (np.array([hi]), np.array([lo])), np.array([bound]))[0]


def test_fractions_see_far_below_an_ulp():
    assert used(1.0, 1.0) == 0
    assert used(1.0, 1.0, 2.0**-100, 2.0**-99) == 0.5
    assert used(1.0 + 2.0**-50, 1.0, 0.0, 2.0**-52) == 4
    assert used(1.0, 1.0, 2.0**-100, 0.0) == math.inf


def test_infinity_is_beyond_every_bound():
    assert used(math.inf, 1e308) == used(-math.inf, -1e308, bound=1e308) == math.inf


@pytest.fixture
def alter(monkeypatch):
    """Let a pass of the textbook change an output when all is computed."""

    def replace(operation, output, change):
        textbook = backends.load("reference")
        genuine = getattr(textbook, operation)

        def altered(*given, **outputs):
            genuine(*given, **outputs)
            outputs[output][...] = change(outputs[output])

        monkeypatch.setattr(textbook, operation, altered)

    return replace


@pytest.mark.parametrize(
    "change", [lambda y_dot: y_dot * (1 + 1e-9), lambda y_dot: np.where(y_dot == 0, y_dot, np.nan)]
)
def test_an_error_beyond_the_bound_is_found(change, alter):
    alter("jvp", "y_dot", change)
    found = check(("f32", 1, range(60)))
    assert found.violations
    assert all(": jvp y_dot[" in line for line in found.violations)
    assert {key[1:3] for key, n in found.counts.items() if key[3] == "violations" and n} == {("jvp", "y_dot")}


def test_an_answer_where_there_is_none_is_found(alter):
    alter("backward", "dx", np.nan_to_num)
    found = check(("f64", 1, range(200)))
    assert found.violations
    assert all(": backward dx[" in line and "exact np.float64(nan)" in line for line in found.violations)


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "_CHUNK", 20)
    monkeypatch.setattr(bounds.report, "spread", lambda work, tasks, **_: map(work, tasks))
    assert main(["--output", str(tmp_path), "--date", "2001-02-03", "--cases", "30"]) == 0
    result = json.loads((tmp_path / "2001-02-03-bounds.json").read_text())
    assert set(result["formats"]) == {form.short for form in FORMATS} and result["violations"] == []
    for outputs in result["formats"].values():
        assert all(counts["values"] > 0 and counts["violations"] == 0 for counts in outputs.values())
