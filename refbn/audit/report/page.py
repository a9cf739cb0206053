"""A run as one HTML page without scripts, that loads nothing: ``page.html`` filled in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from refbn.audit.adapters._protocol import EVAL, OPERATIONS, STATE, TRAINING
from refbn.audit.compare import VERDICTS, Verdict
from refbn.audit.report import curves
from refbn.audit.report.markdown import MEANINGS
from refbn.audit.report.run import Framework, Group, Run, by_operation, fails, groups
from refbn.audit.runner import FAILURES, Finding

__all__ = ["LETTERS", "page"]

LETTERS: dict[Verdict, str] = {
    "exact": "E",
    "accurate": "A",
    "dialect": "D",
    "unsupported": "–",
    "lossy": "L",
    "nonfinite": "N",
    "raises": "R",
    "wrong": "W",
}
"""What stands in the matrix, for those who see no colours."""


@dataclass(frozen=True, slots=True)
class _Cell:
    verdict: Verdict
    known: bool
    told: str
    target: str


@dataclass(frozen=True, slots=True)
class _Section:
    framework: Framework
    identity: str
    counts: dict[Verdict, int]
    cells: dict[str, _Cell]
    failing: list[tuple[str, Group]]
    lossy: list[tuple[str, Group]]
    quiet: list[Group]
    fails: bool


def page(run: Run) -> str:
    """Return the page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("refbn.audit.report").joinpath("page.html").read_text(encoding="utf-8")
    environment.filters |= {"number": _number, "plural": _plural}
    sections = [_section(run, framework) for framework in run.frameworks]
    drawn = curves.curves(run)
    asked = {f.operation for f in run.findings}
    columns = [
        (title, [op for op in operations if op.name in asked])
        for title, operations in (("training", TRAINING), ("frozen statistics", EVAL), ("running statistics", STATE))
    ]
    return environment.from_string(template).render(
        run=run,
        sections=sections,
        columns=[(title, operations) for title, operations in columns if operations],
        charts=[(name, curves.svg(own, f"c-{_slug(name)}")) for name, own in drawn.items()],
        series=curves.SERIES,
        marker=curves.marker,
        letters=LETTERS,
        meanings=MEANINGS,
        operations=[op for op in OPERATIONS.values() if op.name in asked],
        verdicts=VERDICTS,
        failures=FAILURES,
    )


def _section(run: Run, framework: Framework) -> _Section:
    own = run.of(framework.name)
    identity = f"f-{_slug(framework.name)}"
    numbered = list(enumerate(groups(own, (*FAILURES, "lossy")), start=1))
    targets: dict[tuple[str, Verdict], str] = {}
    for number, group in numbered:
        for operation, _ in group.where:
            targets.setdefault((operation, group.verdict), f"{identity}-{number}")
    named = [(f"{identity}-{number}", group) for number, group in numbered]
    return _Section(
        framework=framework,
        identity=identity,
        counts={verdict: sum(f.verdict == verdict for f in own) for verdict in VERDICTS},
        cells={
            operation: _cell(operation, verdict, found, targets.get((operation, verdict), identity))
            for (_, operation), (verdict, found) in by_operation(own).items()
        },
        failing=[(name, group) for name, group in named if group.verdict in FAILURES],
        lossy=[(name, group) for name, group in named if group.verdict not in FAILURES],
        quiet=groups(own, ("dialect", "unsupported")),
        fails=any(map(fails, own)),
    )


def _cell(operation: str, verdict: Verdict, found: Sequence[Finding], target: str) -> _Cell:
    of_it = [f for f in found if f.verdict == verdict]
    known = all(f.known for f in of_it)
    told = f"{verdict}{', known' if known else ''} in {len({f.case for f in of_it})} of "
    told += f"{len({f.case for f in found})} cases"
    return _Cell(verdict, known, f"{operation}: {told}", target)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _number(value: Any) -> str:
    """Return a number with three digits, as one writes it."""
    if value is None:
        return "–"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    if not exponent:
        return mantissa
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa}·10{power}"
