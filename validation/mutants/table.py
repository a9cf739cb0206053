"""``docs/mutation.md``, from the dated result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from refbn.audit.runner import FAILURES
from validation.report import RESULTS

__all__ = ["DOCS", "EXPLAINED", "SUMMARY", "Score", "found", "newest", "render"]

DOCS = Path(__file__).parents[2] / "docs" / "mutation.md"

Row = dict[str, Any]


def newest() -> Path:
    """Return the newest committed result."""
    return sorted(RESULTS.glob("*-mutants.json"))[-1]


def found(row: Row, depth: str) -> str:
    """Return the verdict by which an audit has found a mutant, or nothing; the full audit contains the quick one."""
    reached = ("quick", "full", "dense")[: ("quick", "full", "dense").index(depth) + 1]
    return next((row[d]["verdict"] for d in reached if "verdict" in row.get(d, {})), "")


SUMMARY = ("", "found", "with the chosen point", "of those that it runs")
"""The columns of `Score.summary`."""


class Score:
    """Counts of a result."""

    def __init__(self, result: dict[str, Any]) -> None:
        self.result = result
        self.tools: list[str] = list(result["tools"])
        rows: list[Row] = result["mutants"]
        self.crashing = [row for row in rows if "crashes" in row]
        self.equivalent = [row for row in rows if "crashes" not in row and not found(row, "dense")]
        self.different = [row for row in rows if "crashes" not in row and found(row, "dense")]
        self.checked = [row for row in self.different if "tools" in row]

    def by_tool(self, rows: list[Row], tool: str, letters: str) -> int:
        """Return how many of the rows have one of the letters for a tool."""
        place = self.tools.index(tool)
        return sum(row["tools"][place] in letters for row in rows if "tools" in row)

    def summary(self) -> list[tuple[str, str, str, str]]:
        """Return who has found how many: at the usual point, with the chosen one, of those whose code it runs."""

        def share(count: int, total: int) -> str:
            return f"{count} of {total} ({100 * count / total:.1f} %)" if total else "none"

        lines = []
        for depth in ("quick", "full"):
            count = share(sum(bool(found(r, depth)) for r in self.different), len(self.different))
            lines.append((f"refbn audit, {depth}", count, "", ""))
        for tool in self.tools:
            usual, both = (self.by_tool(self.checked, tool, letters) for letters in ("u", "uc"))
            runs = self.by_tool(self.checked, tool, "ucp")
            lines.append((tool, share(usual, len(self.checked)), share(both, len(self.checked)), share(both, runs)))
        return lines


def render(result: dict[str, Any]) -> str:
    """Return the page."""
    score = Score(result)
    audits = [row for row in score.checked if found(row, "quick") in FAILURES]
    silent = {
        "unreached": [row for row in audits if set(row["tools"]) == {"-"}],
        "passed": [row for row in audits if set(row["tools"]) != {"-"} and not set(row["tools"]) & set("uc")],
        "chosen": [row for row in audits if "u" not in row["tools"] and "c" in row["tools"]],
    }
    counts = {depth: result["cases"][depth] for depth in ("quick", "full", "dense")}
    versions = result["versions"]
    return "\n".join(
        [
            _HEAD.format(
                date=result["date"],
                torch=versions["torch"],
                jax=versions["jax"],
                mutants=len(result["mutants"]),
                crashing=len(score.crashing),
                equivalent=len(score.equivalent),
                different=len(score.different),
                checked=len(score.checked),
                which=_which(score),
                largest=result["largest_case"],
                **counts,
            ),
            _markdown(SUMMARY, score.summary()),
            _verdicts(score),
            _PRINCIPLE,
            _by_function(score),
            _telling(score),
            _SILENT.format(**{name: len(rows) for name, rows in silent.items()}, n=len(audits)),
            "### Passed by every check that runs them",
            "",
            _list(silent["passed"]),
            "",
            "### Found at the chosen point alone",
            "",
            _list(silent["chosen"]),
            "",
            "### Never run by a derivative's check",
            "",
            _functions(silent["unreached"]),
            "",
            _by_operator(score),
            _EQUIVALENT,
            _list(score.equivalent, verdicts=False),
            "",
        ]
    )


_HEAD = """<!-- Written by `python -m validation.mutants table` from the newest result. Do not edit. -->
# Mutation score

Is an audit able to notice a wrong batch norm? The zoo (`refbn audit zoo`) answers for some classic mistakes, chosen by
hand. Here mistakes are generated: a table of operators
([validation/mutants/operators.py](../validation/mutants/operators.py)) is applied to every formula of the textbook
([refbn/reference](../refbn/reference)), and each mutant is asked as a framework is. The same mutants, wrapped as one
wraps a custom function, go through `torch.autograd.gradcheck` and `gradgradcheck` (PyTorch {torch}) and
`jax.test_util.check_grads` (JAX {jax}).

Measured on {date}: {mutants} mutants. {crashing} raise an error on ordinary input and are no functions at all.
{equivalent} give the textbook's results, within the bound of a competent implementation, in each of the full audit's
{full} cases of up to {largest} elements ({quick} are in the quick audit) and in {dense} random ones beside them; they
are listed at the end. The other {different} change a result. The frameworks' checks were asked about {checked}
of these, {which}.
"""

_VERDICTS = """
The quick audit fails {failing} of them (wrong, nonfinite or raises), calls {lossy} lossy (the right function with too
few digits: most have one result rounded to binary32), and says of {named} which other framework's convention they
follow (m for m − 1 in the running variance, ε stored as binary32), as it should.
"""

_PRINCIPLE = """
## What each tool can see

* **The audit** compares with the exact result. Mutants are asked through refbn's public functions, in torch's dialect,
  running statistics in Keras's as well.
* **`gradcheck`** and **`check_grads`** compare a function's derivatives with finite differences of *the same function*.
  That the function itself is wrong they cannot see, unless the formulas for its derivatives, which are right for the
  right function, no longer fit. Running statistics and Taylor mode are no part of a custom function and do not run.
* **`gradgradcheck`** adds reverse over reverse, and with `check_fwd_over_rev` forward over reverse. Reverse over
  forward and forward over forward it never does.
* **`check_grads`** follows one random direction. At order 2 the reverse mode takes y itself for the cotangent, and the
  forward mode x itself for the tangent. To those directions batch norm is blind (P 1 = 0, P x̂ = κ·x̂): terms of the
  kernel K shrink to the size of ε, and mistakes in them too (see `curvature`). A larger ε, or a loss around the
  function, avoids it. A `custom_vjp` has no forward mode, and a `custom_jvp` made of callbacks no reverse mode; so
  there are no mixed nestings.

All checks run with their own default tolerances, in binary64, on two channels of four elements, at two points: the
*usual* one (normal data, ε = 1e-5), and one *chosen* so that ε and the scale show (ε = 0.5, standard deviation 1.5, an
offset). In the table, `12+3` says that 12 mutants fail a check at the usual point and 3 more at the chosen one; a dash,
that the check never runs the function.

## By function
"""

_SILENT = """
## Wrong, and no check objects

{n} of the mutants that were checked fail the quick audit (they are wrong, or not finite, or raise). Of these,
{unreached} are in code that no check of a derivative runs, {passed} pass every check that runs them, at both points,
and {chosen} fail at the chosen point alone.
"""

_EQUIVALENT = """
## Equivalent mutants

Recognized by measurement. The reasons are few: the second centering repairs what the first one does (S2), C(C u) = C u,
another power of two scales as well, only the spectrum reads κ, which no pass asks for, and −0 counts as 0.
"""

EXPLAINED: dict[str, str] = {
    "statistics.S3.one-pass-variance.1": "The digits cancel only where the variance is small beside the mean; normal "
    "data do not show it.",
    "statistics.S4.wrong-constant.6": "ε is multiplied by a power of the data's scale: another ε, in the forward and "
    "in all derivatives alike, so they fit each other.",
    "statistics.S7.swap-outputs.3": "The batch's mean is reported wrongly, and running statistics with it; y and its "
    "derivatives do not contain it.",
    "center.S1.reduce-over-channels.1": "The first centering subtracts one mean from all channels. The second repairs "
    "that, unless one channel holds a NaN, which is then in all of them.",
    "statistics.S4.eps-as-floor.1": "max(v, ε) for v + ε: nearly the same at v = 1 and ε = 1e-5.",
    "statistics.S5.eps-outside-root.1": "√v + ε for √(v + ε): at ε = 1e-5 the formulas for the derivatives still fit "
    "within the tolerances.",
    "columns.L2.eps-forgotten.1": "The derivatives multiply by 1/√v where the forward divided by √(v + ε); at ε = 1e-5 "
    "gradgradcheck's tolerance forgives it.",
    "curvature.K3.project-twice.1": "P twice for P in the second derivative: the two differ by κ·x̂·mean(x̂·u), and "
    "κ = ε/(v + ε) is 1e-5 there.",
    "running_update.S8.corrected-twice.1": "Bessel's correction twice: no check of derivatives runs the running "
    "statistics.",
    "taylor.T3.drop-root.1": "A wrong recurrence in Taylor mode, which no check runs.",
}
"""Mutants that `gradgradcheck` passes at the usual point though the audit calls them wrong, and why it does."""


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "| " + " | ".join(columns) + " |\n|" + "---|" * len(columns)
    return "\n".join([head, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])


def _which(score: Score) -> str:
    every = score.result["checks_every"]
    return "all of them" if every == 1 else f"every {every}th mutant and each mistake of batch norm's own (`RECIPES`)"


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def _verdicts(score: Score) -> str:
    verdicts = [found(row, "quick") for row in score.different]
    return _VERDICTS.format(
        failing=sum(v in FAILURES for v in verdicts), lossy=verdicts.count("lossy"), named=verdicts.count("dialect")
    )


def _cell(score: Score, rows: list[Row], tool: str) -> str:
    usual, chosen = score.by_tool(rows, tool, "u"), score.by_tool(rows, tool, "c")
    asked = [row for row in rows if "tools" in row]
    if score.by_tool(asked, tool, "-") == len(asked):
        return "–" if asked else ""
    return f"{usual}+{chosen}" if chosen else str(usual)


def _by_function(score: Score) -> str:
    names = list(dict.fromkeys(row["id"].partition(".")[0] for row in score.different))
    rows = []
    for name in [*names, ""]:
        mine = [row for row in score.different if not name or row["id"].partition(".")[0] == name]
        audits = [sum(bool(found(row, depth)) for row in mine) for depth in ("quick", "full")]
        asked = sum("tools" in row for row in mine)
        cells = (_cell(score, mine, tool) for tool in score.tools)
        rows.append([_code(name) if name else "all", len(mine), *audits, asked, *cells])
    return _markdown(("function", "mutants", "quick audit", "full audit", "checked", *score.tools), rows)


def _by_operator(score: Score) -> str:
    rows = []
    for operator in sorted({row["operator"] for row in score.different + score.equivalent}):
        mine = [row for row in score.different if row["operator"] == operator]
        same = sum(row["operator"] == operator for row in score.equivalent)
        audits = [sum(bool(found(row, depth)) for row in mine) for depth in ("quick", "full")]
        parts = [[t for t in score.tools if t.startswith("check_grads") == jax] for jax in (False, True)]
        asked = sum("tools" in row for row in mine)
        rows.append([operator, same, len(mine), *audits, asked, *(_any(score, mine, part) for part in parts)])
    columns = (
        "operator",
        "equivalent",
        "others",
        "quick audit",
        "full audit",
        "checked",
        "any of PyTorch's",
        "any of JAX's",
    )
    return "## By operator\n\n" + _markdown(columns, rows)


def _any(score: Score, rows: list[Row], tools: list[str]) -> str:
    places = [score.tools.index(tool) for tool in tools]
    letters = [{row["tools"][place] for place in places} for row in rows if "tools" in row]
    usual, chosen = sum("u" in found for found in letters), sum("u" not in found and "c" in found for found in letters)
    return f"{usual}+{chosen}" if chosen else str(usual)


def _telling(score: Score) -> str:
    by_id = {row["id"]: row for row in score.different}
    place = score.tools.index("gradgradcheck")
    lines = ["", "## The most telling ones", ""]
    for name, why in EXPLAINED.items():
        row = by_id.get(name)
        if (
            row is None
            or row.get("tools", "u" * len(score.tools))[place] not in "pc-"
            or found(row, "quick") not in FAILURES
        ):
            continue
        lines.append(f"* `{name}`: {_change(row)}. {why} (the audit: {_said(row)})")
    return "\n".join(lines)


def _change(row: Row) -> str:
    return f"{_code(row['before'])} → {_code(row['after'])}"


def _said(row: Row) -> str:
    outcome = row["quick"]
    return f"{outcome['verdict']}, {_code(outcome['case'])}"


def _list(rows: list[Row], verdicts: bool = True) -> str:
    columns = ("mutant", "change", "the quick audit")[: 3 if verdicts else 2]
    return _markdown(
        columns,
        (
            (_code(r["id"]), _change(r), _said(r))[: len(columns)] if verdicts else (_code(r["id"]), _change(r))
            for r in rows
        ),
    )


def _functions(rows: list[Row]) -> str:
    counts = Counter(row["id"].partition(".")[0] for row in rows)
    return ", ".join(f"`{name}` {count}" for name, count in counts.items()) + "."
