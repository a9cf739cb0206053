"""A run as Markdown: the matrix, each framework's findings, what was not installed, and how to read it."""

from __future__ import annotations

from collections.abc import Iterator

from refbn.audit.adapters._protocol import OPERATIONS
from refbn.audit.compare import VERDICTS, Verdict
from refbn.audit.report.run import Framework, Group, Run, by_operation, groups, numbers
from refbn.audit.runner import FAILURES

__all__ = ["MEANINGS", "markdown"]

MEANINGS: dict[Verdict, str] = {
    "exact": "every element is the correctly rounded exact value",
    "accurate": "every error is within the bound of a competent implementation in the same format",
    "dialect": "another named convention, or a documented refusal, explains the result",
    "unsupported": "the framework does not offer what was asked",
    "lossy": "beyond the bound, yet the right function",
    "nonfinite": "NaN or infinity where a number is due",
    "raises": "the framework refuses, crashes or hangs where a result is due",
    "wrong": "another function, no correct digits, or a number where none exists",
}
"""What the verdicts mean, in one clause each."""

_SHORT: dict[Verdict, str] = {
    "unsupported": "–",
    "nonfinite": "**nonfinite**",
    "raises": "**raises**",
    "wrong": "**wrong**",
}


def markdown(run: Run) -> str:
    """Return the document."""
    return "\n".join(_lines(run)) + "\n"


def _lines(run: Run) -> Iterator[str]:
    environment = run.environment
    yield "# Audit of batch norm"
    yield ""
    yield (
        f"refbn {run.refbn}, {run.depth} audit, {run.cases} case{'s' * (run.cases != 1)}, {run.date}; Python "
        f"{environment['python']}, NumPy {environment['numpy']}, {environment['system']} {environment['machine']}."
    )
    yield ""
    yield "| framework | version | dialect | Python | " + " | ".join(VERDICTS) + " |"
    yield "|---|---|---|---|" + "--:|" * len(VERDICTS)
    for framework in run.frameworks:
        own = run.of(framework.name)
        counts = [sum(f.verdict == verdict for f in own) or "" for verdict in VERDICTS]
        told = (framework.name, framework.version, framework.dialect, framework.python, *counts)
        yield "| " + " | ".join(_cell(str(part)) for part in told) + " |"
    yield ""
    if run.missing:
        yield f"Not installed, so not audited: {', '.join(run.missing)}."
        yield ""
    for note in dict.fromkeys(f"{f.name}: {f.note}." for f in run.frameworks if f.note):
        yield note
        yield ""
    for framework in run.frameworks:
        if framework.not_asked:
            yield _text(run.left_out(framework)) + "."
            yield ""
    yield "## Operations and frameworks"
    yield ""
    yield from _matrix(run)
    yield ""
    for gone in run.gone:
        yield f"Known deviation that no longer shows: {gone}"
        yield ""
    for framework in run.frameworks:
        yield from _framework(run, framework)
    yield "## How to read it"
    yield ""
    yield from (f"* `{verdict}`: {meaning}" for verdict, meaning in MEANINGS.items())
    yield ""
    yield (
        "`max_ulp` is the largest error in units in the last place of the exact value, `max_scaled_ulp` in those of "
        "the channel's largest magnitude, `bound_ratio` relative to the error bound of a competent implementation in "
        "the same format."
    )


def _matrix(run: Run) -> Iterator[str]:
    cells = by_operation(run.findings)
    names = [f.name for f in run.frameworks]
    yield "| operation | " + " | ".join(map(_cell, names)) + " |"
    yield "|---|" + "---|" * len(names)
    for operation in OPERATIONS:
        row = [cells.get((name, operation)) for name in names]
        if any(row):
            yield f"| {operation} | " + " | ".join(_SHORT.get(c[0], c[0]) if c else "" for c in row) + " |"


def _framework(run: Run, framework: Framework) -> Iterator[str]:
    own = run.of(framework.name)
    found = groups(own, (*FAILURES, "lossy"))
    yield f"## {framework.name} {framework.version}".rstrip()
    yield ""
    if not found:
        yield "Nothing is worse than accurate."
        yield ""
    for group in found:
        yield from _group(run, group)
    quiet = groups(own, ("dialect", "unsupported"))
    yield from (f"* {group.verdict}, {_cases(group)}: {_text(group.worst.note)}" for group in quiet)
    if quiet:
        yield ""
    if framework.not_asked:
        yield f"<details><summary>{len(framework.not_asked)} cases that were not asked</summary>"
        yield ""
        yield from (f"* `{case}`" for case in framework.not_asked)
        yield ""
        yield "</details>"
        yield ""


def _group(run: Run, group: Group) -> Iterator[str]:
    worst = group.worst
    where = "; ".join(f"`{operation}` {', '.join(outputs)}".strip() for operation, outputs in group.where)
    known = ", known" if worst.known else ""
    yield f"### {group.verdict}{known}: {where}"
    yield ""
    for text in (worst.explanation, worst.note):
        if text:
            yield f"{_text(text)}  "
    yield f"{_cases(group)} ({', '.join(group.families)}; {', '.join(group.dtypes)}), the worst: {numbers(worst)}  "
    yield f"`{run.command(worst)}`"
    if worst.smallest:
        yield f"  \nSmallest case that shows it: `{worst.smallest}`"
    if worst.thread:
        yield f"  \nReported: <{worst.thread}>"
    yield ""
    script = run.scripts.get(worst.id)
    if script:
        fence = "`" * (3 + script.count("```"))
        yield "<details><summary>Script that shows it</summary>"
        yield ""
        yield f"{fence}python\n{script.rstrip()}\n{fence}"
        yield ""
        yield "</details>"
        yield ""


def _cases(group: Group) -> str:
    return f"{group.cases} case{'s' * (group.cases != 1)}"


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|")


def _text(text: str) -> str:
    """Keep a framework's words from being taken for markup."""
    for sign in "\\`*_<>[]#":
        text = text.replace(sign, f"\\{sign}")
    return text
