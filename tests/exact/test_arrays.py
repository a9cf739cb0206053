from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refbn._formats import FORMATS
from refbn.exact import Exact, ExactArray
from refbn.exact.arrays import numbers, vectors

each_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6))
def test_floats_are_read_exactly(values):
    (v,) = vectors([values], "x")
    assert [v.parts(i) for i in range(len(values))] == [(Fraction(value), 0, 0) for value in values]


@each_format
def test_every_kind_of_finite_number_is_read_and_written_back(fmt):
    bits = np.dtype(f"u{fmt.dtype.itemsize}")
    patterns = np.random.default_rng(0).integers(0, 2 ** (8 * bits.itemsize), 300, bits, endpoint=False)
    ends = np.array([fmt.max, -fmt.max, fmt.tiny, -fmt.tiny, 2.0**fmt.emin, 0.0], fmt.dtype)
    x = np.concatenate([patterns.view(fmt.dtype), ends])
    with np.errstate(invalid="ignore"):  # signalling NaNs
        x = x[np.isfinite(x.astype(float))]
    array = ExactArray(vectors(x[None], "x"), len(x))
    assert np.array_equal(array.round(fmt.dtype)[0].astype(float), x.astype(float))
    assert array.round(fmt.dtype).dtype == fmt.dtype
    hi, lo = array.pair()
    assert np.array_equal(hi[0], x.astype(float))
    assert not lo.any()
    assert np.array_equal(array.is_zero()[0], x == 0)


def test_narrow_and_wide_exponent_ranges_read_alike():
    narrow, wide = np.array([[3.0, 0.25, -7.5]]), np.array([[3.0, 0.25, -7.5, 2.0**900]])
    assert vectors(narrow, "x")[0].parts(2) == vectors(wide, "x")[0].parts(2) == (Fraction(-15, 2), 0, 0)
    assert vectors(np.array([[2.0**62, 1.0], [2.0**61, 0.5]]), "x")[0].parts(0)[0] == 2**62


def test_objects_and_integers():
    (v,) = vectors(np.array([[Fraction(1, 3), 2, Fraction(-5, 7)]], object), "x")
    assert [v.parts(i)[0] for i in range(3)] == [Fraction(1, 3), 2, Fraction(-5, 7)]
    assert vectors([[2**70, 1]], "x")[0].parts(0)[0] == 2**70
    assert [n.parts()[0] for n in numbers(np.array([3, 4], np.int8), "gamma", 2)] == [3, 4]


def test_vectors_per_group_may_be_one_number():
    assert [n.parts()[0] for n in numbers(0.1, "eps", 2)] == [Fraction(0.1)] * 2
    assert [n.parts()[0] for n in numbers(Fraction(1, 3), "eps", 2)] == [Fraction(1, 3)] * 2
    assert [n.parts()[0] for n in numbers(None, "gamma", 2, 1)] == [1, 1]


def test_results_by_group_and_element():
    root = Exact.number(2).sqrt()
    array = ExactArray([Exact.vector([1, 0]) * root, Exact.vector([0, 3])], 2)
    assert array.shape == (2, 2)
    assert array.fraction_parts(0, 0) == (0, 1, 2)
    assert array.fraction_parts(1, 1) == (3, 0, 0)
    assert array.is_zero().tolist() == [[False, True], [True, False]]
    assert array.round("float32").tolist() == [[np.float32(2) ** np.float32(0.5), 0.0], [0.0, 3.0]]
    assert [row.length for row in array] == [2, 2]
    assert repr(array) == "<ExactArray (2, 2)>"
    single = ExactArray([root + 1, Exact.zeros(None)], None)
    assert single.shape == (2,)
    assert single.fraction_parts(0) == (1, 1, 2)
    assert single.is_zero().tolist() == [False, True]
    hi, lo = single.pair()
    assert (hi[0], abs(lo[0]) < 2.0**-52, lo[0] != 0) == (1 + 2**0.5, True, True)
    empty = ExactArray([Exact.zeros(0)], 0)
    assert empty.round("float16").shape == empty.is_zero().shape == empty.pair()[0].shape == (1, 0)
