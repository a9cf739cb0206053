import json
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("rich")

from refbn import backends, exact
from refbn._formats import BINARY32, BINARY64, FORMATS
from validation import hard_inputs
from validation.hard_inputs import EASY, FAMILIES, IN_MEMORY, PASSES, Problem, draw, extra_memory, main, seconds

SHAPE = (4, 3, 2, 6)


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.short)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_of_the_format(family, form):
    a = draw(family, form, SHAPE)
    eps = a.pop("eps")
    assert eps >= 0
    for key, value in a.items():
        assert value.dtype == form.dtype and value.shape in (SHAPE, SHAPE[1:2]), key
        assert np.isfinite(value.astype(np.float64)).all(), key
    easy = draw(EASY, form, SHAPE)
    changed = any(not np.array_equal(easy[key], a[key]) for key in a) or eps != easy["eps"]
    assert changed or family == EASY


def by_channel(tensor):
    return np.moveaxis(tensor, 1, 0).reshape(tensor.shape[1], -1)


def test_the_special_families_are_special():
    """What makes them hard holds exactly."""
    a = draw("ties (q = 1, eps 0)", BINARY32, SHAPE)
    assert a["eps"] == 0
    y = exact.forward(by_channel(a["x"]), a["gamma"], a["beta"], a["eps"]).y
    for c in range(SHAPE[1]):
        value, root, _ = y.fraction_parts(c, 0)
        ulps = value / Fraction(1, 2**23)
        assert root == 0 and (ulps.denominator == 2 or abs(value) < 1)
    a = draw("dy and ddx ∝ x̂ = ±1, eps 0", BINARY64, SHAPE)
    gradient = exact.backward(by_channel(a["x"]), a["gamma"], a["eps"], by_channel(a["dy"]))
    assert gradient.dx.is_zero().all()
    a = draw("cancelling sums", BINARY32, SHAPE)
    x = by_channel(a["x"]).astype(np.float64)
    assert (abs(x.sum(axis=1)) < 1e-5 * abs(x).sum(axis=1)).all() and x.sum(axis=1).all()


def test_calls_are_timed_in_turn():
    order = []
    works = [lambda: order.append("a"), lambda: order.append("b")]
    taken = seconds(works, 4, 100.0)
    assert [len(each) for each in taken] == [4, 4] and order == ["a", "b"] * 5
    assert len(seconds(works, 1000, 0.0)[0]) == 3
    assert min(map(min, taken)) >= 0


def test_memory_that_a_pass_takes_is_seen(monkeypatch):
    def with_textbook(family, form, shape, backend="reference"):
        return Problem(family, form, shape, backend)

    monkeypatch.setattr(hard_inputs, "Problem", with_textbook)
    shape = (16, 2, 128, 128)
    tensor = int(np.prod(shape)) * 8
    more = extra_memory((EASY, "f64", "backward", shape, 1))
    if more is None:
        pytest.skip("the peak cannot be reset here")
    assert more > 0.9 * tensor  # NumPy's temporaries


@pytest.mark.skipif("native" not in backends.available(), reason="the C core was not built")
def test_the_command(tmp_path):
    shape = ["--shape", "4", "3", "2", "6", "--output", str(tmp_path), "--date", "2001-02-03"]
    assert main([*shape, "--runs", "3", "--seconds", "0", "--format", "f32", "--family", "integers", IN_MEMORY[1]]) == 0
    result = json.loads((tmp_path / "2001-02-03-hard-inputs.json").read_text())
    assert set(result["times"]["f32"]) == {EASY, "integers", IN_MEMORY[1]}
    for family in result["times"]["f32"].values():
        assert set(family) == set(PASSES)
        assert all(each["ns per element"] > 0 and each["times normal"] > 0 for each in family.values())
    memory = result["bytes beyond inputs and outputs"]
    assert len(memory) == 2 * len(PASSES) and all(each["bytes"] is None or each["bytes"] >= 0 for each in memory)
