"""``docs/mutation.md``, from the dated result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refbn.audit.runner import FAILURES
from validation.report import RESULTS

__all__ = ["DOCS", "Score", "found", "newest", "render"]

DOCS = Path(__file__).parents[2] / "docs" / "mutation.md"

Row = dict[str, Any]


def newest() -> Path:
    """Return the newest committed result."""
    return sorted(RESULTS.glob("*-mutants.json"))[-1]


def found(row: Row, depth: str) -> str:
    """Return the verdict by which an audit has found a mutant, or nothing; the full audit contains the quick one."""
    reached = ("quick", "full", "dense")[: ("quick", "full", "dense").index(depth) + 1]
    return next((row[d]["verdict"] for d in reached if "verdict" in row.get(d, {})), "")


class Score:
    """Counts of a result."""

    def __init__(self, result: dict[str, Any]) -> None:
        self.result = result
        self.tools: list[str] = list(result["tools"])
        rows: list[Row] = result["mutants"]
        self.crashing = [row for row in rows if "crashes" in row]
        self.equivalent = [row for row in rows if "crashes" not in row and not found(row, "dense")]
        self.different = [row for row in rows if "crashes" not in row and found(row, "dense")]

    def by_tool(self, rows: list[Row], tool: str, letters: str) -> int:
        """Return how many of the rows have one of the letters for a tool."""
        place = self.tools.index(tool)
        return sum(row["tools"][place] in letters for row in rows)

    def summary(self) -> list[tuple[str, str]]:
        """Return who has found how many of the mutants that change a result."""
        total = len(self.different)

        def share(count: int) -> str:
            return f"{count} of {total} ({100 * count / total:.1f} %)" if total else "none"

        lines = [
            (f"refbn audit, {depth}", share(sum(bool(found(r, depth)) for r in self.different)))
            for depth in ("quick", "full")
        ]
        lines += [
            (tool, share(self.by_tool(self.different, tool, "u"))) for tool in self.tools
        ]
        return lines


def render(result: dict[str, Any]) -> str:
    """Return the page."""
    return ""
