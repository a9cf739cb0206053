import math

import pytest

from refbn.testing.hexfloat import from_hex, to_hex


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "0x1p+0"),
        (-1.5, "-0x1.8p+0"),
        (0.1, "0x1.999999999999ap-4"),
        (0.0, "0x0p+0"),
        (-0.0, "-0x0p+0"),
        (2.0**-1074, "0x0.0000000000001p-1022"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
        (-math.nan, "nan"),
    ],
)
def test_one_spelling(value, text):
    assert to_hex(value) == text


@pytest.mark.parametrize("value", [1.0, -0.0, 0.1, 2.0**-1074, 1e308, -math.inf, 3.0000000000000004])
def test_every_bit_comes_back(value):
    back = from_hex(to_hex(value))
    assert back == value and math.copysign(1, back) == math.copysign(1, value)
