"""What a terminal shows: a matrix of all frameworks, a table for each of them, and the findings behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from refbn.audit.adapters._protocol import OPERATIONS
from refbn.audit.cases import FAMILIES
from refbn.audit.compare import VERDICTS, Verdict
from refbn.audit.report.run import Run, by_operation, numbers, severity
from refbn.audit.runner import FAILURES, Finding, Kill, summary

__all__ = ["print_gone", "print_kill_table", "print_report"]

_STYLES: dict[Verdict, str] = {
    "exact": "green",
    "accurate": "green",
    "dialect": "cyan",
    "unsupported": "dim",
    "lossy": "yellow",
    "nonfinite": "bold red",
    "raises": "bold red",
    "wrong": "bold red",
}
# Short enough for nine families in 80 columns; what fails stands in capitals, for terminals without colours.
_SHORT: dict[Verdict, str] = {
    "exact": "exact",
    "accurate": "ok",
    "dialect": "dial.",
    "unsupported": "–",
    "lossy": "lossy",
    "nonfinite": "NONF",
    "raises": "RAISE",
    "wrong": "WRONG",
}
_LONG: dict[Verdict, str] = {
    **{verdict: verdict for verdict in VERDICTS},
    "unsupported": "–",
    "nonfinite": "NONFINITE",
    "raises": "RAISES",
    "wrong": "WRONG",
}
_SHORT_FAMILIES = dict(
    zip(
        FAMILIES,
        ("comp.", "cond.", "shape", "layout", "struct", "state", "spec.", "types", "exact", "norms"),
        strict=True,
    )
)
_WIDE = 122
_KEY = "ok: accurate · dial.: dialect · NONF: nonfinite · RAISE: raises · –: unsupported"


def print_report(run: Run, console: Console) -> None:
    """Print each framework's table of operations × families and what is worse than accurate, then a matrix of all."""
    frameworks = [(f, own) for f in run.frameworks if (own := run.of(f.name))]
    for framework, own in frameworks:
        console.print()
        console.print(_table(own, console.width))
        if console.width < _WIDE:
            console.print(_KEY)
        for note in (framework.note, run.left_out(framework)):
            if note:
                _line(console, Text(note, "dim"))
        _print_details(run, own, console)
        _print_count(own, console)
    if len(frameworks) > 1:
        _print_matrix(run, [framework.name for framework, _ in frameworks], console)
    if run.missing:
        console.print()
        _line(console, Text(f"not installed, so not audited: {', '.join(run.missing)}", "dim"))


def print_gone(run: Run, console: Console) -> None:
    """Print which deviations that are listed as known no longer show."""
    for deviation in run.gone:
        _line(console, Text(f"known deviation that no longer shows: {deviation}"))


def _print_matrix(run: Run, names: Sequence[str], console: Console) -> None:
    """Print operations × frameworks, as many frameworks side by side as there is room for."""
    cells = by_operation(run.findings)
    asked = [operation for operation in OPERATIONS if any((name, operation) in cells for name in names)]
    first = max(map(len, (*asked, "operation")))
    width = max(9, *(len(part) + 1 for name in names for part in name.split("-")))
    side_by_side = max(1, (console.width - first - 1) // (width + 1))
    for start in range(0, len(names), side_by_side):
        table = Table(
            title="operations × frameworks" if start == 0 else None, box=None, pad_edge=False, padding=(0, 1, 0, 0)
        )
        table.add_column("operation", no_wrap=True, vertical="bottom", min_width=first)
        shown = names[start : start + side_by_side]
        for name in shown:
            table.add_column(Text("-\n".join(name.split("-"))), width=width, overflow="fold", vertical="bottom")
        for operation in asked:
            table.add_row(operation, *(_cell(*cells.get((name, operation), (None, ()))) for name in shown))
        console.print()
        console.print(table)
    console.print(_KEY)
    if any(f.known for f in run.findings):
        console.print("*: known and accepted")


def _cell(verdict: Verdict | None, findings: Sequence[Finding]) -> Text:
    if verdict is None:
        return Text("")
    known = all(f.known for f in findings if f.verdict == verdict)
    return Text(_SHORT[verdict] + "*" * known, _STYLES[verdict])


def print_kill_table(kills: Mapping[str, Mapping[str, Kill]], console: Console) -> None:
    """Print which family of cases finds which mistake, and the first case of each mistake that does."""
    wide = console.width >= _WIDE
    table = Table(
        title="mistakes × families: which cases kill which mistake", box=None, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column("mistake", overflow="fold")
    for family in FAMILIES:
        table.add_column(family if wide else _SHORT_FAMILIES[family], no_wrap=True)
    for framework, row in kills.items():
        cells = [
            Text((_LONG if wide else _SHORT)[row[family].verdict], _STYLES[row[family].verdict])
            if family in row
            else Text("·", "dim")
            for family in FAMILIES
        ]
        table.add_row(Text(framework.removeprefix("zoo-")), *cells)
    console.print()
    console.print(table)
    console.print()
    for framework, row in kills.items():
        if row:
            first = next(iter(row.values()))
            cases = sum(kill.cases for kill in row.values())
            _line(console, Text(f"{framework}: {cases} case{'s' if cases > 1 else ''}, first {first.first}"))
        else:
            _line(console, Text(f"{framework}: no case kills it", "bold"))


def _table(findings: Sequence[Finding], width: int) -> Table:
    wide = width >= _WIDE
    first = findings[0]
    table = Table(title=f"{first.framework} {first.version}".strip(), box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("operation", no_wrap=True)
    for family in FAMILIES:
        table.add_column(family if wide else _SHORT_FAMILIES[family], no_wrap=True)
    verdicts = summary(findings)
    for operation in OPERATIONS:
        row = [verdicts.get((first.framework, operation, family)) for family in FAMILIES]
        if any(row):
            cells = [Text((_LONG if wide else _SHORT)[v], _STYLES[v]) if v else Text("") for v in row]
            table.add_row(operation, *cells)
    return table


def _print_details(run: Run, findings: Sequence[Finding], console: Console) -> None:
    groups: dict[tuple[Verdict, str, str, str], list[Finding]] = {}
    for finding in findings:
        if finding.verdict in FAILURES or finding.verdict == "lossy":
            key = (finding.verdict, finding.operation, finding.output, finding.check)
            groups.setdefault(key, []).append(finding)
    order = list(OPERATIONS)
    for key in sorted(groups, key=lambda k: (-VERDICTS.index(k[0]), order.index(k[1]))):
        verdict, operation, output, check = key
        group = groups[key]
        worst = max(group, key=lambda f: (not f.known, severity(f)))
        count = len(group)
        what = " ".join(part for part in (operation, output, f"({check})" if check else "") if part)
        families = ", ".join(dict.fromkeys(f.family for f in group))
        console.print()
        _line(
            console,
            Text.assemble(
                (what, "bold"),
                "  ",
                (verdict, _STYLES[worst.verdict]),
                (", known", "dim") if worst.known else "",
                f"  {count} case{'s' if count > 1 else ''} ({families})",
            ),
        )
        _line(console, Text(f"  {numbers(worst)}"))
        for text in (worst.note, worst.explanation, worst.thread):
            if text:
                _line(console, Text(f"  {text}"))
        _line(console, Text(f"  {run.command(worst)}"))
        if worst.smallest and worst.smallest != worst.case:
            _line(console, Text(f"  smallest case that shows it: {worst.smallest}"))
    notes: dict[tuple[Verdict, str], list[Finding]] = {}
    for finding in findings:
        if finding.verdict in ("dialect", "unsupported"):
            notes.setdefault((finding.verdict, finding.note.partition(": ")[0]), []).append(finding)
    if notes:
        console.print()
    for (quiet, _), group in notes.items():
        count = len(group)
        told = f"  {count} case{'s' if count > 1 else ''}, first {group[0].case}"
        _line(console, Text.assemble((quiet, _STYLES[quiet]), told))
        _line(console, Text(f"  {group[0].note}"))


def _print_count(findings: Sequence[Finding], console: Console) -> None:
    counts = {v: sum(f.verdict == v for f in findings) for v in VERDICTS}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    cases = len({f.case for f in findings})
    console.print()
    _line(console, Text(f"{findings[0].framework}: {cases} cases, {len(findings)} findings: {told}"))


def _line(console: Console, text: Text) -> None:
    """Print a line whole, so that a descriptor can be copied from it."""
    console.print(text, soft_wrap=True)
