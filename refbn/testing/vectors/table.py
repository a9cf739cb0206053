"""Which vectors there are: rows of cases with their flags, and what the flags mean.

A row's inputs are those of a case of the audit (`refbn.audit.cases`), so its descriptor makes them again; the
operation in the descriptor changes no input. Shapes are small: a vector is to be read by people too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from refbn.audit.cases import Case

__all__ = ["NOTES", "Note", "Row", "rows"]


@dataclass(frozen=True, slots=True)
class Note:
    """What a flag means: the kind of bug it is after, one or two sentences, and public threads it would have caught."""

    bug: str
    description: str
    links: tuple[str, ...] = ()


_TORCH = "https://github.com/pytorch/pytorch/issues/"

NOTES: dict[str, Note] = {
    "Normal": Note("BASIC", "Ordinary data: every implementation must pass."),
    "SecondOrder": Note(
        "WRONG_DERIVATIVE",
        "The results of double_backward and hvp on the shape on which nested forward mode was found to be wrong.",
        (f"{_TORCH}196699",),
    ),
    "Offset": Note(
        "CANCELLATION",
        "The mean is large beside the standard deviation. The variance as E[x^2] - E[x]^2 has few correct digits or "
        "none, and may be negative.",
        (
            "https://github.com/google/flax/issues/1491",
            "https://github.com/tensorflow/tensorflow/issues/118701",
        ),
    ),
    "LargeValues": Note(
        "OVERFLOW",
        "x^2 is beyond the format's range, y is not. An implementation without scaling returns 0 or NaN.",
        (f"{_TORCH}162489",),
    ),
    "SmallValues": Note("UNDERFLOW", "x^2 is below the format's smallest normal number, or x itself is."),
    "WideSum": Note("OVERFLOW", "The sum of x is beyond 65504, the largest number of binary16, the mean is not."),
    "Skewed": Note("CANCELLATION", "A few large values among many small ones."),
    "ConstantChannel": Note(
        "EXACT_RESULT", "The variance is 0: y is beta exactly, and the gradient is that of the limit, without NaN."
    ),
    "ConstantGradient": Note(
        "EXACT_RESULT", "dy is constant in each channel, which batch norm does not see: dx is exactly 0."
    ),
    "GradientLikeX": Note(
        "CANCELLATION", "dy lies in the span of 1 and x, so that dx is only what eps leaves of it: nearly 0."
    ),
    "ExactStatistics": Note(
        "EXACT_RESULT", "Mean and variance are numbers of the format, exact in any order of summation."
    ),
    "SingleValue": Note(
        "EDGE_CASE",
        "One value in each channel: y is beta, dx is 0; the variance with m - 1 does not exist, and nothing may become "
        "NaN but that.",
        (f"{_TORCH}1381", f"{_TORCH}77014"),
    ),
    "TwoValues": Note("EDGE_CASE", "Two values in each channel, where m and m - 1 differ most."),
    "Empty": Note(
        "EDGE_CASE",
        "No values: tensors are empty, gradients of parameters are empty sums, running statistics stay.",
        (f"{_TORCH}12013",),
    ),
    "FarVariance": Note(
        "WRONG_FUNCTION",
        "The variance is far from 1: a saved invstd that backward takes for a variance shows.",
        ("https://github.com/flagos-ai/FlagGems/issues/5222",),
    ),
    "FrozenVariance": Note(
        "WRONG_FUNCTION",
        "Given statistics with a variance far from 1: the training formula in the gradient shows, and so does invstd "
        "taken for the variance.",
        (f"{_TORCH}586",),
    ),
    "FarStatistics": Note(
        "WRONG_FUNCTION",
        "Given statistics far from the batch's own: inference that is read as training shows.",
        ("https://github.com/onnx/onnx/issues/5799",),
    ),
    "NotFinite": Note(
        "SPECIAL_VALUE",
        "A NaN or an infinity in one channel. Results of that channel that depend on it are given as nan, for which an "
        "infinity is as good; those of other channels are numbers.",
        (f"{_TORCH}115500",),
    ),
    "LargeEps": Note("WRONG_FUNCTION", "eps is not small beside the variance: eps outside the root shows."),
    "ZeroEps": Note("EDGE_CASE", "eps = 0 with a variance that is not 0."),
    "MixedFormats": Note("FORMAT", "gamma, beta and statistics in a wider format than x."),
}
"""The flags."""


@dataclass(frozen=True, slots=True)
class Row:
    """One test: what it is about, the case whose inputs it has, its flags."""

    comment: str
    case: Case
    flags: tuple[str, ...]


def rows(short: str) -> Iterator[Row]:
    """Yield the tests of one format, ``"f16"``, ``"bf16"``, ``"f32"`` or ``"f64"``."""
    for comment, flags, family, shape, fields in (*_EVERY_FORMAT, *_BY_FORMAT[short]):
        yield Row(comment, Case(family, "forward", short, shape, **fields), tuple(flags.split()))


_Line = tuple[str, str, str, tuple[int, ...], dict[str, Any]]

_EVERY_FORMAT: tuple[_Line, ...] = (
    ("six samples, two channels", "Normal SecondOrder", "composition", (6, 2), {}),
    ("three axes", "Normal SecondOrder", "composition", (4, 3, 5), {"seed": 1}),
    ("an image of odd sizes", "Normal", "shape", (2, 3, 3, 5), {}),
    ("five axes", "Normal", "shape", (2, 3, 2, 1, 3), {}),
    ("one channel", "Normal", "shape", (7, 1), {}),
    ("many channels of two values", "TwoValues", "shape", (2, 16), {"seed": 1}),
    ("one value in each channel", "SingleValue", "shape", (1, 3), {}),
    ("one value in each channel, images", "SingleValue", "shape", (1, 4, 1, 1), {"seed": 1}),
    ("two values in each channel", "TwoValues", "shape", (2, 3), {}),
    ("no samples", "Empty", "shape", (0, 3), {}),
    ("no pixels", "Empty", "shape", (2, 3, 0), {}),
    ("offset of 16 standard deviations", "Offset", "conditioning", (16, 3), {"offset": 16.0}),
    ("skewed", "Skewed", "conditioning", (16, 3), {"data": "skewed"}),
    ("standard deviation 3", "Normal FarVariance", "conditioning", (12, 3), {"scale": 3.0}),
    ("large eps", "LargeEps", "conditioning", (8, 3), {"eps": 0.5, "scale": 0.25}),
    ("eps = 0", "ZeroEps", "special", (6, 3), {"eps": 0.0}),
    ("constant channels", "ConstantChannel", "structure", (8, 3), {"data": "constant"}),
    ("all but one sample constant", "Skewed", "structure", (9, 3), {"data": "step"}),
    ("constant gradient", "ConstantGradient", "structure", (16, 3), {"dy": "constant"}),
    ("gradient like x", "GradientLikeX", "structure", (9, 3), {"dy": "like-x"}),
    ("given variance 9", "FrozenVariance", "conditioning", (8, 3), {"var": 9.0, "scale": 3.0}),
    ("given variance 1e-4", "FrozenVariance", "conditioning", (6, 3), {"var": 1e-4, "scale": 0.01}),
    (
        "given statistics far from the batch's",
        "FarStatistics",
        "conditioning",
        (6, 3),
        {"offset": 50.0, "scale": 0.5, "var": 1.0},
    ),
    ("exact statistics", "ExactStatistics", "exact", (8, 3, 2), {"data": "integers"}),
    ("a NaN", "NotFinite", "special", (5, 3, 2), {"special": "nan"}),
    ("an infinity", "NotFinite", "special", (5, 3, 2), {"special": "inf"}),
    ("a NaN in dy", "NotFinite", "special", (5, 3, 2), {"special": "nan@dy"}),
)

_NARROW: tuple[_Line, ...] = (
    ("binary32 parameters", "MixedFormats", "types", (6, 3, 2), {"param": "f32"}),
    ("binary32 parameters, offset", "MixedFormats Offset", "types", (16, 3), {"param": "f32", "offset": 30.0}),
)

_BY_FORMAT: dict[str, tuple[_Line, ...]] = {
    "f16": (
        *_NARROW,
        ("the sum is beyond 65504", "WideSum Offset", "conditioning", (64, 2), {"offset": 1500.0, "scale": 100.0}),
        ("small values", "SmallValues", "conditioning", (12, 3), {"scale": 1e-4}),
        ("large values", "LargeValues", "conditioning", (12, 3), {"scale": 4096.0}),
    ),
    "bf16": (
        *_NARROW,
        ("offset", "Offset", "conditioning", (64, 2), {"offset": 40.0, "scale": 10.0}),
        ("values near 1e19", "LargeValues", "conditioning", (12, 3), {"scale": 1e19}),
        ("values near 1e-19", "SmallValues", "conditioning", (12, 3), {"scale": 1e-19}),
    ),
    "f32": (
        ("offset of 4096 standard deviations", "Offset", "conditioning", (32, 4), {"offset": 4096.0}),
        ("offset of 1e4 standard deviations, images", "Offset", "conditioning", (8, 3, 2, 2), {"offset": 1e4}),
        ("offset of -1e6 standard deviations", "Offset", "conditioning", (16, 3), {"offset": -1e6}),
        ("1, 2, 3, 4 times 1e19", "LargeValues", "conditioning", (4, 2), {"data": "ramp", "scale": 1e19}),
        ("values near 1e30", "LargeValues", "conditioning", (12, 3), {"scale": 1e30}),
        ("values near 1e-19", "SmallValues", "conditioning", (12, 3), {"scale": 1e-19}),
        ("subnormal values", "SmallValues", "conditioning", (12, 3), {"scale": 1e-40}),
        (
            "constant channels far from 0",
            "ConstantChannel Offset",
            "structure",
            (5, 3, 3),
            {"data": "constant", "offset": -4096.0},
        ),
        ("binary64 parameters", "MixedFormats", "types", (12, 3), {"param": "f64"}),
    ),
    "f64": (
        ("offset of 4096 standard deviations", "Offset", "conditioning", (32, 4), {"offset": 4096.0}),
        ("offset of 1e6 standard deviations, images", "Offset", "conditioning", (8, 3, 2, 2), {"offset": 1e6}),
        ("offset of 1e10 standard deviations", "Offset", "conditioning", (16, 3), {"offset": 1e10}),
        ("1, 2, 3, 4 times 1e160", "LargeValues", "conditioning", (4, 2), {"data": "ramp", "scale": 1e160}),
        ("values near 1e-160", "SmallValues", "conditioning", (12, 3), {"scale": 1e-160}),
        ("values near 1e30", "Normal", "conditioning", (12, 3), {"scale": 1e30}),
        (
            "constant channels far from 0",
            "ConstantChannel Offset",
            "structure",
            (5, 3, 3),
            {"data": "constant", "offset": 1e6},
        ),
    ),
}
