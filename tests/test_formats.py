from fractions import Fraction

import numpy as np
import pytest

from refbn._formats import BFLOAT16, BINARY64, FORMATS, format_of, load, round_to

formats = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.short)


def nearest_even(value, fmt):
    """Round a Fraction by definition: compare the distances to both neighbours on the format's grid."""
    if value == 0:
        return Fraction(0)
    exponent = fmt.emin
    while abs(value) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    step = Fraction(2) ** (exponent - fmt.precision + 1)
    return round(value / step) * step  # Fraction.__round__ takes ties to even


def test_only_the_four_are_formats():
    for dtype in (np.int32, np.longdouble, complex, object, "float8_e5m2"):
        for _ in range(2):  # not the second time either
            with pytest.raises((KeyError, TypeError)):
                format_of(dtype)
    for name in ("float16", "float32", "float64"):
        dtype = np.dtype(name)
        assert format_of(dtype) is format_of(dtype.newbyteorder("S")) is format_of(name) is format_of(dtype.type)


@formats
def test_format_describes_dtype(fmt):
    dtype = fmt.dtype
    assert format_of(dtype) is fmt
    one = np.ones((), dtype)
    ulp = np.asarray(1 + 2 * fmt.unit_roundoff).astype(dtype)
    assert ulp > one and np.asarray(1 + fmt.unit_roundoff).astype(dtype) == one
    assert float(np.asarray(fmt.max).astype(dtype)) == fmt.max
    assert float(np.asarray(fmt.tiny).astype(dtype)) == fmt.tiny > 0


@pytest.mark.parametrize("dtype", [np.int32, np.complex128, np.longdouble, object, bool])
def test_format_of_refuses(dtype):
    with pytest.raises(KeyError):
        format_of(dtype)


@formats
def test_round_to_is_one_rounding(fmt):
    rng = np.random.default_rng(7)
    values = rng.standard_normal(3000) * 2.0 ** rng.integers(fmt.emin - fmt.precision, min(fmt.emax, 900) - 2, 3000)
    near_ties = round_to(values[:1000], fmt.dtype).astype(np.float64) * (1 + fmt.unit_roundoff)
    values = np.concatenate([values, near_ties, np.nextafter(near_ties, 0), np.nextafter(near_ties, np.inf)])
    rounded = round_to(values, fmt.dtype).astype(np.float64)
    expected = [nearest_even(Fraction(v), fmt) for v in values.tolist()]
    assert [Fraction(r) for r in rounded.tolist()] == expected


@formats
def test_round_to_keeps_specials(fmt):
    beyond = fmt.max * (1 + fmt.unit_roundoff) if fmt is not BINARY64 else np.inf
    values = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, beyond, -beyond])
    rounded = round_to(values, fmt.dtype).astype(np.float64)
    np.testing.assert_array_equal(rounded, [np.inf, -np.inf, np.nan, 0.0, 0.0, np.inf, -np.inf])
    assert list(np.signbit(rounded[3:5])) == [False, True]
    assert round_to(np.asarray(1.5), fmt.dtype).shape == ()


def test_bfloat16_is_not_rounded_twice():
    just_above_tie = np.array([1 + 2.0**-8 + 2.0**-40])
    assert float(round_to(just_above_tie, BFLOAT16.dtype)[0]) == 1 + 2.0**-7
    assert float(just_above_tie.astype(np.float32).astype(BFLOAT16.dtype)[0]) == 1.0


@formats
def test_load_is_exact_and_poisons_infinities(fmt):
    values = np.array([1.5, -0.0, np.inf, -np.inf, np.nan, fmt.max, fmt.tiny]).astype(fmt.dtype)
    np.testing.assert_array_equal(load(values), [1.5, 0.0, np.nan, np.nan, np.nan, fmt.max, fmt.tiny])
