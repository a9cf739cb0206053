"""What people and machines read: a table, the findings behind it, and a JSON file."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from refbn.audit.adapters._protocol import OPERATIONS, Adapter
from refbn.audit.cases import FAMILIES
from refbn.audit.compare import VERDICTS, Verdict
from refbn.audit.runner import FAILURES, Finding, Kill, summary

__all__ = ["as_json", "print_kill_table", "print_report", "schema", "write_json"]

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
    zip(FAMILIES, ("comp.", "cond.", "shape", "layout", "struct", "state", "spec.", "types", "exact"), strict=True)
)
_WIDE = 110
_SCHEMA_NAME = "refbn-audit-1"


# ---- for people --------------------------------------------------------------------------------------------------


def print_report(findings: Sequence[Finding], console: Console) -> None:
    """Print each framework's table of operations × families, then what is worse than accurate."""
    for framework in dict.fromkeys(f.framework for f in findings):
        own = [f for f in findings if f.framework == framework]
        console.print()
        console.print(_table(own, console.width))
        if console.width < _WIDE:
            console.print("ok: accurate · dial.: dialect · NONF: nonfinite · RAISE: raises · –: unsupported")
        _print_details(own, console)
        _print_count(own, console)


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


def _print_details(findings: Sequence[Finding], console: Console) -> None:
    groups: dict[tuple[Verdict, str, str, str], list[Finding]] = {}
    for finding in findings:
        if finding.verdict in FAILURES or finding.verdict == "lossy":
            key = (finding.verdict, finding.operation, finding.output, finding.check)
            groups.setdefault(key, []).append(finding)
    order = list(OPERATIONS)
    for key in sorted(groups, key=lambda k: (-VERDICTS.index(k[0]), order.index(k[1]))):
        verdict, operation, output, check = key
        group = groups[key]
        worst = max(group, key=_severity)
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
                f"  {count} case{'s' if count > 1 else ''} ({families})",
            ),
        )
        _line(console, Text(f"  {numbers(worst)}"))
        if worst.note:
            _line(console, Text(f"  {worst.note}"))
        _line(console, Text(f"  refbn audit {worst.framework} --case {worst.case}"))
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


def _severity(finding: Finding) -> float:
    return np.inf if finding.bound_ratio is None else finding.bound_ratio


def numbers(finding: Finding) -> str:
    """Return the three numbers of a finding as one phrase."""
    parts = [
        f"{name} {value:.3g}"
        for name in ("max_ulp", "max_scaled_ulp", "bound_ratio")
        if (value := getattr(finding, name)) is not None
    ]
    return "  ".join(parts) or "no finite values to compare"


def _print_count(findings: Sequence[Finding], console: Console) -> None:
    counts = {v: sum(f.verdict == v for f in findings) for v in VERDICTS}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    cases = len({f.case for f in findings})
    console.print()
    _line(console, Text(f"{findings[0].framework}: {cases} cases, {len(findings)} findings: {told}"))


def _line(console: Console, text: Text) -> None:
    """Print a line whole, so that a descriptor can be copied from it."""
    console.print(text, soft_wrap=True)


# ---- for machines ------------------------------------------------------------------------------------------------


def schema() -> dict[str, Any]:
    """Return the JSON schema of what `write_json` writes."""
    text = resources.files("refbn.audit").joinpath("schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def as_json(
    findings: Iterable[Finding],
    adapters: Iterable[Adapter],
    depth: str,
    cases: int,
    version: str,
    gone: Iterable[object] = (),
) -> dict[str, Any]:
    """Return a run as the document that the schema describes."""
    findings = list(findings)
    return {
        "schema": _SCHEMA_NAME,
        "refbn": version,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "system": platform.system(),
            "machine": platform.machine(),
        },
        "depth": depth,
        "cases": cases,
        "frameworks": [{"name": a.name, "version": a.version() or "", "dialect": a.dialect.name} for a in adapters],
        "findings": [
            {**dataclasses.asdict(f), "worst": None if f.worst is None else list(f.worst), "id": f.id} for f in findings
        ],
        "summary": [
            {"framework": framework, "operation": operation, "family": family, "verdict": verdict}
            for (framework, operation, family), verdict in summary(findings).items()
        ],
        "gone": [str(deviation) for deviation in gone],
    }


def _as_object(finding: Finding) -> dict[str, Any]:
    where = None if finding.worst is None else list(finding.worst)
    return {**dataclasses.asdict(finding), "worst": where, "id": finding.id}


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Validate a document and write it; the file is replaced whole or stays as it was.

    Raises
    ------
    jsonschema.ValidationError
        If the document does not follow the schema.
    OSError
        If the file cannot be written.
    """
    import jsonschema

    jsonschema.Draft202012Validator(schema()).validate(document)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(document, stream, indent=1, ensure_ascii=False, allow_nan=False)
            stream.write("\n")
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
