import math

import numpy as np
import pytest

pytest.importorskip("flint")

from refbn import backends
from refbn._formats import BINARY64, FORMATS
from validation.bounds import check, fractions

# numba has its own tests; compiling all its passes takes longer than this whole folder.
BACKENDS = tuple(name for name in backends.available() if name not in ("exact", "numba"))


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.short)
def test_no_error_exceeds_its_bound(form):
    found = check((form.short, 1, range(60), BACKENDS))
    assert found.violations == []
    used = [value for key, value in found.largest.items() if key[1] == "reference"]
    assert 0 < max(used) <= 1
    total = {count: sum(n for key, n in found.counts.items() if key[-1] == count) for count in ("values", "outside")}
    assert total["outside"] < (0.3 if form is BINARY64 else 0.05) * total["values"]


def used(result, hi, lo=0.0, bound=1.0, rounded=False):
    exact = np.array([hi]), np.array([lo])
    return fractions(np.array([result]), exact, np.array([bound]), rounded=rounded)[0]


def test_fractions_see_far_below_an_ulp():
    assert used(1.0, 1.0) == 0
    assert used(1.0, 1.0, 2.0**-100, 2.0**-99) == 0.5
    assert used(1.0 + 2.0**-50, 1.0, 0.0, 2.0**-52) == 4
    assert used(1.0, 1.0, 2.0**-100, 0.0) == math.inf


def test_one_rounding_is_not_charged_to_the_bound():
    step = 2.0**-23
    assert used(np.float32(1.0), 1.0 + step / 2, rounded=True) == 0
    assert used(np.float32(1.0), 1.0 + step, bound=step, rounded=True) == 0.5
    assert used(np.float32(1.0), 1.0 + step, bound=step, rounded=False) == 1


def test_infinity_must_be_reached():
    threshold = 65520.0
    assert used(np.float16(np.inf), threshold, rounded=True) == 0
    assert used(np.float16(np.inf), threshold - 2, bound=1.0, rounded=True) == 2
    assert used(np.float16(-np.inf), threshold, bound=1.0, rounded=True) > 1e5
