"""Error against conditioning, as one SVG for each framework.

The points are the conditioning family's binary32 cases with normal data: across, how far the data lie from zero in
standard deviations; up, the largest error in ulps of the channel's largest magnitude. The dashed lines are the bound of
a competent implementation (`refbn.audit.budget`) for the same cases. Both axes are logarithmic, 0 stands apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from refbn._formats import BINARY32
from refbn.audit import truth
from refbn.audit.cases import Case, parse
from refbn.audit.compare import scaled_limit
from refbn.audit.report.run import Run
from refbn.audit.runner import Finding
from refbn.audit.truth import Conventions
from refbn.dialects import DIALECTS

__all__ = ["SERIES", "Curve", "Point", "curves", "svg"]

SERIES = (("forward", "y"), ("vjp", "dx"))
"""The operations and outputs that are drawn."""


@dataclass(frozen=True, slots=True)
class Point:
    """One value of offset/std: the largest error there, and the bound; the error is None where it is not finite."""

    x: float
    error: float | None
    bound: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One output of one framework, from left to right."""

    framework: str
    operation: str
    output: str
    points: tuple[Point, ...]


def curves(run: Run) -> dict[str, list[Curve]]:
    """Return each framework's curves; a framework without binary32 results has none."""
    found: dict[str, list[Curve]] = {}
    for framework in run.frameworks:
        own = run.of(framework.name)
        drawn = [
            Curve(framework.name, operation, output, points)
            for operation, output in SERIES
            if (points := _points(own, operation, output))
        ]
        if drawn:
            found[framework.name] = drawn
    return found


def _points(findings: Iterable[Finding], operation: str, output: str) -> tuple[Point, ...]:
    at: dict[float, list[Point]] = {}
    for finding in findings:
        if finding.family != "conditioning" or finding.operation != operation or finding.check:
            continue
        case = parse(finding.case)
        if finding.output != output or not _is_drawn(case):
            continue
        lost = finding.verdict == "nonfinite" or finding.max_scaled_ulp is None
        x = abs(case.offset) / case.scale
        at.setdefault(x, []).append(Point(x, None if lost else finding.max_scaled_ulp, _bound(finding.case, output)))
    return tuple(max(at[x], key=_height) for x in sorted(at))


def _height(point: Point) -> float:
    return math.inf if point.error is None else point.error


def _is_drawn(case: Case) -> bool:
    """Normal data in binary32 of ordinary size, so that nothing but the offset makes it hard."""
    plain = case.data == "normal" and case.dy == "normal" and not case.param and not case.special
    return plain and case.format is BINARY32 and case.eps == 1e-5 and 0.1 <= case.scale <= 1e3


@cache
def _bound(descriptor: str, output: str) -> float:
    return scaled_limit(truth.expect(parse(descriptor), Conventions.of(DIALECTS["torch"], False))[output])


# ---- drawing -------------------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT = 340, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 12, 46
_ZERO = -0.9  # where x = 0 stands, in decades
_X = (0.0, 7.0)  # decades
_Y = (-1.0, 8.0)
_LOST = math.log10(2.0**BINARY32.precision)
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def svg(drawn: Sequence[Curve], identity: str) -> str:
    """Return one framework's chart; its colours are the page's, by class."""
    title = f"{drawn[0].framework}: error against offset over standard deviation"
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{identity}-t {identity}-d">',
        f'<title id="{identity}-t">{_escaped(title)}</title>',
        f'<desc id="{identity}-d">{_escaped(_described(drawn))}</desc>',
        *_axes(),
    ]
    for number, curve in enumerate(drawn):
        parts += _bound_line(curve, number)
    for number, curve in enumerate(drawn):
        parts += _error_line(curve, number)
    return "\n".join([*parts, "</svg>"])


def marker(number: int, x: float, y: float) -> str:
    """Return the sign of a series: a disc for the first, a triangle for the second."""
    if number == 0:
        return f'<circle class="p s{number}" cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>'
    return f'<path class="p s{number}" d="M{x:.1f} {y - 4.6:.1f}l4.4 7.8h-8.8z"/>'


def _axes() -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for decade in range(int(_Y[0]) + 1, int(_Y[1]) + 1, 2):
        y = _down(decade)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_power(decade)}</text>')
    for decade in (None, *range(int(_X[0]), int(_X[1]) + 1, 2)):
        x = _across(_ZERO if decade is None else decade)
        label = "0" if decade is None else _power(decade)
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    gap = _across(_ZERO / 2)
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{gap - 3:.1f}m6 0H{right}"/>')
    parts.append(f'<path class="axis" d="M{gap - 5:.1f} {bottom + 4}l4 -8m2 8l4 -8"/>')  # the axis is broken here
    lost = _down(_LOST)
    parts.append(f'<path class="lost" d="M{_LEFT} {lost:.1f}H{right}"/>')
    parts.append(f'<text class="note" x="{_LEFT + 5}" y="{lost - 4:.1f}">no digit right</text>')
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text class="label" x="{middle:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">'
        "offset / standard deviation</text>"
    )
    half = (_TOP + bottom) / 2
    parts.append(
        f'<text class="label" transform="translate(12 {half:.0f}) rotate(-90)" text-anchor="middle">error in ulp</text>'
    )
    return parts


def _bound_line(curve: Curve, number: int) -> list[str]:
    places = [(_place(point.x), _down(math.log10(max(point.bound, 0.1)))) for point in curve.points]
    return [f'<path class="bound s{number}" d="{_path(places)}"/>']


def _error_line(curve: Curve, number: int) -> list[str]:
    places = [(_place(p.x), _TOP if p.error is None else _down(math.log10(max(p.error, 0.1)))) for p in curve.points]
    parts = [f'<path class="line s{number}" d="{_path(places)}"/>']
    for point, (x, y) in zip(curve.points, places, strict=True):
        sign = f'<path class="cross s{number}" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"/>'
        mark = sign if point.error is None else marker(number, x, y)
        parts.append(f"<g><title>{_escaped(_told(curve, point))}</title>{mark}</g>")
    return parts


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _place(x: float) -> float:
    """Return where a value of offset/std stands; less than 1 counts as 1, unless it is 0."""
    return _across(_ZERO if x == 0 else math.log10(max(x, 1.0)))


def _across(decade: float) -> float:
    lowest = _ZERO - 0.3
    share = (min(decade, _X[1]) - lowest) / (_X[1] - lowest)
    return _LEFT + share * (_WIDTH - _RIGHT - _LEFT)


def _down(decade: float) -> float:
    share = (min(max(decade, _Y[0]), _Y[1]) - _Y[0]) / (_Y[1] - _Y[0])
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)


def _power(decade: int) -> str:
    return {0: "1", 1: "10"}.get(decade, "10" + str(decade).translate(_SUPERSCRIPT))


def _told(curve: Curve, point: Point) -> str:
    error = "not finite" if point.error is None else f"{point.error:.3g} ulp"
    return f"{curve.output} of {curve.operation} at {point.x:.6g}: {error}, bound {point.bound:.3g} ulp"


def _described(drawn: Sequence[Curve]) -> str:
    return "; ".join(_told(curve, point) for curve in drawn for point in curve.points) + "."


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
