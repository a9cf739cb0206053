"""One run of an audit, with everything that a report tells, and how its findings are put in groups."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import numpy as np

from refbn._errors import DomainError
from refbn._formats import FORMATS
from refbn.audit.adapters._protocol import OPERATIONS, Adapter
from refbn.audit.cases import FAMILIES, parse
from refbn.audit.compare import VERDICTS, Verdict, worst
from refbn.audit.groups import Plan
from refbn.audit.remote.interpreter import Remote
from refbn.audit.runner import FAILURES, Finding

__all__ = [
    "Framework",
    "Group",
    "Process",
    "Run",
    "by_operation",
    "fails",
    "groups",
    "make_run",
    "merge",
    "numbers",
    "part",
    "scripts",
    "severity",
]

Process = Literal["this", "own", "other"]


@dataclass(frozen=True, slots=True)
class Framework:
    """One framework of a run.

    Attributes
    ----------
    name, version, dialect : str
        As the adapter declares them.
    python : str
        The version of the interpreter that it ran in.
    process : {"this", "own", "other"}
        Whether it ran in the audit's own process, in another one of the same interpreter, or in another interpreter.
    note : str
        What could not be asked, and why; or nothing.
    not_asked : tuple of str
        The descriptors of the cases of this run that it was not asked, since it compiles for each shape
        (`refbn.audit.groups`); they are no passes.
    instead : tuple of str
        Those that it was asked in their place, in other shapes.
    """

    name: str
    version: str
    dialect: str
    python: str
    process: Process = "this"
    note: str = ""
    not_asked: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()

    @property
    def asked(self) -> str:
        """How the command line calls it; PYTHON stands for the other interpreter."""
        plain = self.name.partition("@")[0]
        return f"{plain}@PYTHON" if self.process == "other" else plain


@dataclass(frozen=True, slots=True)
class Run:
    """What one audit did and found.

    Attributes
    ----------
    date : str
        When it ended, in ISO 8601.
    refbn : str
        The version of refbn.
    environment : mapping
        python, numpy, system and machine of the audit itself.
    depth : {"quick", "full", "case"}
        Which tables of cases were asked.
    cases : int
        How many cases there were; each framework was asked all of them but its `Framework.not_asked`.
    frameworks : tuple of Framework
        In the order of the findings.
    missing : tuple of str
        What was not audited because it is installed nowhere.
    findings : tuple of Finding
        Framework by framework.
    scripts : mapping
        From a finding's id to a script that shows it.
    gone : tuple of str
        Deviations that are listed as known and no longer show.
    """

    date: str
    refbn: str
    environment: Mapping[str, str]
    depth: str
    cases: int
    frameworks: tuple[Framework, ...]
    missing: tuple[str, ...]
    findings: tuple[Finding, ...]
    scripts: Mapping[str, str] = field(default_factory=dict)
    gone: tuple[str, ...] = ()

    def of(self, framework: str) -> list[Finding]:
        """Return the findings of one framework."""
        return [f for f in self.findings if f.framework == framework]

    @property
    def descriptors(self) -> set[str]:
        """The cases of the tables, whether all frameworks were asked them or not."""
        asked = {finding.case for finding in self.findings}
        untold = (case for framework in self.frameworks for case in framework.not_asked)
        return asked.union(untold).difference(*(framework.instead for framework in self.frameworks))

    def left_out(self, framework: Framework) -> str:
        """Return in words how much a framework was not asked; nothing if it was asked everything."""
        if not framework.not_asked:
            return ""
        return (
            f"{framework.name} was not asked {len(framework.not_asked)} of the {self.cases} cases, since it compiles "
            f"for each shape, but {len(framework.instead)} of them in another shape; --every-case asks them all"
        )

    def command(self, finding: Finding) -> str:
        """Return the command that asks a finding's case again."""
        asked = next((f.asked for f in self.frameworks if f.name == finding.framework), finding.framework)
        return f"refbn audit {asked} --case {finding.case}"


def make_run(
    findings: Iterable[Finding],
    adapters: Iterable[Adapter],
    depth: str,
    cases: int,
    version: str,
    missing: Iterable[str] = (),
    scripts: Mapping[str, str] | None = None,
    gone: Iterable[object] = (),
    plans: Mapping[str, Plan] | None = None,
) -> Run:
    """Return the run that has just ended."""
    return Run(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        refbn=version,
        environment={
            "python": platform.python_version(),
            "numpy": np.__version__,
            "system": platform.system(),
            "machine": platform.machine(),
        },
        depth=depth,
        cases=cases,
        frameworks=tuple(_framework(adapter, (plans or {}).get(adapter.name, Plan())) for adapter in adapters),
        missing=tuple(missing),
        findings=tuple(findings),
        scripts=dict(scripts or {}),
        gone=tuple(map(str, gone)),
    )


def merge(runs: Sequence[Run]) -> Run:
    """Return the runs of several sets of frameworks as one.

    Raises
    ------
    DomainError
        If they did not ask the same cases in the same way, or if a framework is in two of them.
    """
    first = runs[0]
    for run in runs[1:]:
        for what in ("refbn", "environment", "depth", "cases"):
            one, other = getattr(first, what), getattr(run, what)
            if one != other:
                raise DomainError(
                    f"from_json: {what} is {one!r} in one run and {other!r} in another", argument="from_json"
                )
        if run.descriptors != first.descriptors:
            raise DomainError("from_json: the runs have not asked the same cases", argument="from_json")
    frameworks = [framework for run in runs for framework in run.frameworks]
    names = [framework.name for framework in frameworks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DomainError(f"from_json: {', '.join(twice)} is in more than one run", argument="from_json")
    return dataclasses.replace(
        first,
        date=max(run.date for run in runs),
        frameworks=tuple(frameworks),
        missing=tuple(dict.fromkeys(name for run in runs for name in run.missing if name not in names)),
        findings=tuple(finding for run in runs for finding in run.findings),
        scripts={name: script for run in runs for name, script in run.scripts.items()},
        gone=tuple(dict.fromkeys(gone for run in runs for gone in run.gone)),
    )


def part(
    run: Run,
    family: Collection[str] = FAMILIES,
    operation: Collection[str] = tuple(OPERATIONS),
    dtype: Collection[str] = (),
) -> Run:
    """Return what a run found in some families, operations and dtypes (by short or full name; none means all).

    Raises
    ------
    DomainError
        If that is nothing.
    """
    full = {form.short: form.name for form in FORMATS}
    dtypes = {full.get(name, name) for name in dtype or full}
    findings = tuple(f for f in run.findings if f.family in family and f.operation in operation and f.dtype in dtypes)
    if not findings:
        words = "from_json: no finding has this combination of family, operation and dtype"
        raise DomainError(words, argument="from_json")
    ids = {finding.id for finding in findings}

    def chosen(descriptor: str) -> bool:
        case = parse(descriptor)
        return case.family in family and case.operation in operation and case.format.name in dtypes

    frameworks = tuple(
        dataclasses.replace(
            framework,
            not_asked=tuple(filter(chosen, framework.not_asked)),
            instead=tuple(filter(chosen, framework.instead)),
        )
        for framework in run.frameworks
    )
    remaining = dataclasses.replace(run, frameworks=frameworks, findings=findings)
    return dataclasses.replace(
        remaining,
        cases=len(remaining.descriptors),
        scripts={name: script for name, script in run.scripts.items() if name in ids},
    )


def _framework(adapter: Adapter, plan: Plan) -> Framework:
    found = Framework(
        adapter.name,
        adapter.version() or "",
        adapter.dialect.name,
        platform.python_version(),
        not_asked=tuple(map(str, plan.left_out)),
        instead=tuple(map(str, plan.instead)),
    )
    if not isinstance(adapter, Remote):
        return found
    there = adapter.interpreter
    process: Process = "own" if there.is_this else "other"
    return dataclasses.replace(found, python=there.version, process=process, note=adapter.note)


def fails(finding: Finding) -> bool:
    """Whether a finding makes an audit fail: something is wrong, and it is not listed as known."""
    return finding.verdict in FAILURES and not finding.known


def severity(finding: Finding) -> float:
    """Return how far beyond the bound a finding is; infinite where there is no number."""
    return np.inf if finding.bound_ratio is None else finding.bound_ratio


def numbers(finding: Finding) -> str:
    """Return the three numbers of a finding as one phrase."""
    parts = [
        f"{name} {value:.3g}"
        for name in ("max_ulp", "max_scaled_ulp", "bound_ratio")
        if (value := getattr(finding, name)) is not None
    ]
    return "  ".join(parts) or "no finite values to compare"


def by_operation(findings: Iterable[Finding]) -> dict[tuple[str, str], tuple[Verdict, list[Finding]]]:
    """Return the worst verdict of each (framework, operation), and all its findings."""
    cells: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        cells.setdefault((finding.framework, finding.operation), []).append(finding)
    return {key: (worst(f.verdict for f in found), found) for key, found in cells.items()}


# ---- groups ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Group:
    """Findings of one framework that are of one kind, the worst first."""

    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Finding:
        """The finding that stands for the group."""
        return self.findings[0]

    @property
    def verdict(self) -> Verdict:
        """The verdict of all of them."""
        return self.worst.verdict

    @property
    def where(self) -> list[tuple[str, list[str]]]:
        """Operations in the protocol's order, each with its outputs."""
        found: dict[str, list[str]] = {}
        for finding in sorted(self.findings, key=lambda f: _ORDER.index(f.operation)):
            outputs = found.setdefault(finding.operation, [])
            if finding.output and finding.output not in outputs:
                outputs.append(finding.output)
        return list(found.items())

    @property
    def families(self) -> list[str]:
        """The families of cases in which it shows."""
        return list(dict.fromkeys(f.family for f in self.findings))

    @property
    def dtypes(self) -> list[str]:
        """The formats in which it shows."""
        return list(dict.fromkeys(f.dtype for f in self.findings))

    @property
    def cases(self) -> int:
        """The number of cases in which it shows."""
        return len({f.case for f in self.findings})


_ORDER = list(OPERATIONS)


def groups(findings: Sequence[Finding], verdicts: Iterable[Verdict]) -> list[Group]:
    """Return the findings of one framework with some verdicts, in groups of one kind; what is worst comes first.

    One kind are findings with the same explanation; without one, those of one operation and check, or for a refusal
    those with the same words.
    """
    wanted = set(verdicts)
    kinds: dict[tuple[object, ...], list[Finding]] = {}
    for finding in findings:
        if finding.verdict in wanted:
            kinds.setdefault((finding.known, finding.verdict, *_kind(finding)), []).append(finding)
    found = [Group(tuple(sorted(kind, key=lambda f: -severity(f)))) for kind in kinds.values()]
    return sorted(
        found, key=lambda g: (g.worst.known, -VERDICTS.index(g.verdict), min(_ORDER.index(op) for op, _ in g.where))
    )


def _kind(finding: Finding) -> tuple[object, ...]:
    if finding.verdict in ("raises", "dialect", "unsupported"):
        return ("", finding.note.partition(": ")[0] if finding.verdict != "raises" else finding.note)
    if finding.explanation:
        return (finding.explanation.partition(", ")[0],)  # its name; what follows tells how far it goes in this output
    return (finding.operation, finding.check)


def scripts(findings: Sequence[Finding], adapters: Sequence[Adapter]) -> dict[str, str]:
    """Return a script for the worst finding of each group that is off, where one can be had.

    Parameters
    ----------
    findings : sequence of Finding
        Of all frameworks.
    adapters : sequence of Adapter
        The frameworks.
    """
    from refbn.audit.diagnosis import script

    found: dict[str, str] = {}
    for adapter in adapters:
        own = [f for f in findings if f.framework == adapter.name]
        for group in groups(own, (*FAILURES, "lossy")):
            try:
                found[group.worst.id] = script(group.worst, adapter)
            except Exception:  # not offered, or a framework's own trouble: the run's report must not be lost to it
                continue
    return found
