import json

import numpy as np
import pytest

pytest.importorskip("flint")

from flint import fmpq

from refbn._formats import BINARY16, BINARY64, FORMATS, Format
from validation.cases import draw, stack
from validation.enclosures import FINDINGS, Neighbourhood, check, check_batch, main
from validation.formulas import OPERATIONS
from validation.passes import run_all

OUTCOMES = ("decided", "later", "tie", "zero", "no value", "wrong")


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.short)
def test_the_oracle_rounds_correctly(form: Format):
    found = check((form.short, 1, range(40), "exact"))
    assert found.wrong == []
    for operation in OPERATIONS:
        count = {finding: found.counts[form.short, operation, finding] for finding in FINDINGS}
        assert count["cases"] == 40
        assert sum(count[outcome] for outcome in OUTCOMES) == count["values"]
        assert count["pinned"] + count["two"] + count["wide"] == count["values"] - count["no value"]


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.short)
def test_a_result_that_is_one_step_off_is_found(form):
    rng = np.random.default_rng(4)
    for index in range(12):
        batch = stack([draw(form, 2, index)])
        results = run_all("exact", batch)
        operation = str(rng.choice(list(OPERATIONS)))
        output = str(rng.choice(OPERATIONS[operation]))
        array = results[operation][output]
        place = (0, int(rng.integers(array.shape[1]))) if array.ndim == 2 else 0
        if np.isnan(array[place].astype(np.float64)):
            array[place] = 1.0
        else:
            steps = [np.nextafter(array[place], array.dtype.type(side)) for side in (-np.inf, np.inf)]
            array[place] = rng.choice([step for step in steps if step != array[place]])  # infinity has one neighbour
        wrong = check_batch(batch, results).wrong
        assert len(wrong) == 1 and f"{operation} {output}" in wrong[0], (str(batch.channels[0]), wrong)


def test_a_backend_that_does_not_round_correctly_is_found():
    assert check(("f64", 0, range(30), "reference")).wrong


def test_ties_zeros_and_signs():
    around = Neighbourhood(np.array([1.0, 1.0 + 2.0**-10, 0.0, -0.0, np.inf, np.nan], np.float16), BINARY16)
    half = fmpq(1) + fmpq(1, 2**11)
    assert around.holds(0, half) == "tie" and around.holds(1, half) == "wrong"
    assert around.holds(0, half + fmpq(1, 2**99)) == "wrong" and around.holds(1, half + fmpq(1, 2**99)) == "later"
    assert around.holds(2, fmpq(0)) == "zero" and around.holds(3, fmpq(0)) == "wrong"
    small = fmpq(1, 2**30)
    assert around.holds(2, small) == "later" and around.holds(2, -small) == "wrong"
    assert around.holds(3, -small) == "later" and around.holds(3, small) == "wrong"
    # 65520 = max + half a step rounds to infinity: its neighbour below is odd
    assert around.holds(4, fmpq(65520)) == "tie" and around.holds(4, fmpq(65519)) == "wrong"
    assert around.holds(4, fmpq(10) ** 9) == "later"
    assert around.holds(5, fmpq(1)) == "wrong"


def test_the_largest_number_has_a_neighbour():
    around = Neighbourhood(np.array([BINARY64.max]), BINARY64)
    assert around.holds(0, fmpq(2) ** 1024 - fmpq(2) ** 970 - 1) == "later"
    assert around.holds(0, fmpq(2) ** 1024 - fmpq(2) ** 970) == "wrong"  # the tie goes to infinity


def test_the_command_writes_what_it_found(tmp_path):
    assert main(["--cases", "3", "--date", "2001-02-03", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "2001-02-03-enclosures.json").read_text())
    assert result["cases"] == 3 and result["wrong"] == []
    assert all(counts["cases"] == 3 for form in result["counts"].values() for counts in form.values())
    assert set(result["counts"]) == {form.short for form in FORMATS}


def test_the_command_judges_a_single_case(tmp_path):
    assert main(["--case", "f32:0:7", "--output", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == []
