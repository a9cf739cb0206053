"""`parametrize_with_cases`: the audit's cases as tests of a pytest suite, one test a case."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from refbn._errors import DomainError
from refbn._formats import FORMATS
from refbn.audit import truth
from refbn.audit.adapters._protocol import OPERATIONS, Adapter, Array, Inputs, kind_and_groups, norms_of
from refbn.audit.cases import FAMILIES, Case, parse
from refbn.audit.compare import Comparison, Verdict, worst
from refbn.audit.families import Depth
from refbn.audit.runner import FAILURES, Finding, run_case, select
from refbn.audit.truth import Conventions
from refbn.testing.accuracy import TRACE, Truth, context, describe, make_inputs
from refbn.testing.functions import adapter_of

__all__ = ["MARK", "Check", "Suite", "parametrize_with_cases"]

MARK = "refbn_cases"
"""The name of the mark that a suite leaves on a test function, for the pytest plugin."""

Test = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Suite:
    """What `parametrize_with_cases` was told: an adapter, and which cases; None leaves a choice to the command line.

    Attributes
    ----------
    adapter : Adapter
        Whose batch norm is asked.
    depth : {"quick", "full"} or None
        As ``refbn audit --quick`` and without it.
    families, operations, dtypes : tuple of str or None
        Only these.
    extra : tuple of Case
        Cases to ask besides.
    """

    adapter: Adapter
    depth: Depth | None = None
    families: tuple[str, ...] | None = None
    operations: tuple[str, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    extra: tuple[Case, ...] = ()

    def cases(
        self,
        depth: Depth,
        families: Iterable[str] | None = None,
        operations: Iterable[str] | None = None,
        dtypes: Iterable[str] | None = None,
    ) -> list[Case]:
        """Return the cases of a depth that the adapter can be asked and that both suite and arguments want."""
        wanted = _both(self.families, families)
        chosen = select(
            depth,
            FAMILIES if wanted is None else wanted,
            _both(self.operations, operations),
            _both(self.dtypes, dtypes),
        )
        chosen += [case for case in self.extra if case not in chosen]
        names = self.adapter.dtypes
        return [
            case
            for case in chosen
            if case.operation in self.adapter.operations
            and {case.format.name, case.param_format.name} <= names
            and kind_and_groups(case.norm)[0] in norms_of(self.adapter)
        ]


def parametrize_with_cases(
    target: Any = None,
    *,
    depth: Depth | None = None,
    families: Iterable[str] | None = None,
    operations: Iterable[str] | None = None,
    dtypes: Iterable[str] | None = None,
    cases: Iterable[Case | str] = (),
    **functions: Any,
) -> Callable[[Test], Test]:
    """Make one test of each case of the audit, for a batch norm of yours.

    A decorator of a test with an argument ``check``::

        from refbn.testing import parametrize_with_cases

        @parametrize_with_cases(my_forward, backward=my_backward)
        def test_batch_norm(check): check()

    Parameters
    ----------
    target : callable, Adapter or str
        The forward function ``forward(x, gamma, beta, eps)``, an adapter, or the name of one of refbn's.
    depth : {"quick", "full"}, optional
        How many cases; by default what ``--refbn-depth`` or the ini file says, which is ``"quick"`` unless told.
    families, operations, dtypes : iterable of str, optional
        Only these. ``--refbn-family`` and so on narrow them further.
    cases : iterable of Case or str, optional
        Descriptors of cases to ask besides those of the tables.
    **functions
        More functions and options, see `refbn.testing.Functions` and `refbn.testing.adapter_of`: ``backward=``,
        ``jvp=``, ``array=torch.from_numpy``, ``channel_axis=-1``, ``autodiff="torch"``, ….

    Returns
    -------
    callable
        The decorator.

    Raises
    ------
    DomainError
        If a name is unknown, or the target is nothing that can be asked.

    Notes
    -----
    The refbn plugin of pytest makes the tests. Each is named after its case's descriptor, which fixes every input bit.
    A case fails when an output is wrong, not finite, or raises; a lossy one (the right function with too few digits)
    fails with ``--refbn-strict``. A result that another named convention explains passes, and the summary tells which.
    """
    if depth not in (None, "quick", "full"):
        raise DomainError(f"depth: {depth!r}, expected quick or full", argument="depth")
    suite = Suite(
        adapter_of(target, **functions),
        depth,
        _known("families", families, FAMILIES),
        _known("operations", operations, tuple(OPERATIONS)),
        _known("dtypes", dtypes, tuple(name for f in FORMATS for name in (f.name, f.short))),
        tuple(case if isinstance(case, Case) else parse(case) for case in cases),
    )
    import pytest

    mark: Callable[[Test], Test] = getattr(pytest.mark, MARK)(suite)
    return mark


@dataclass(eq=False)
class Check:
    """One case, ready to be asked: call it in a test.

    Attributes
    ----------
    adapter : Adapter
        Whose batch norm is asked.
    case : Case
        What it is asked.
    strict : bool
        Whether a lossy result fails.
    findings : list of Finding
        What came out; empty before the call.
    traces : list of str
        What the errors of the outputs that failed look like.
    """

    adapter: Adapter
    case: Case
    strict: bool = False
    findings: list[Finding] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.adapter.name}, {self.case}>"

    @property
    def inputs(self) -> Inputs:
        """The case's inputs, made anew."""
        return make_inputs(self.case)

    @property
    def verdict(self) -> Verdict | None:
        """The worst verdict, None before the call."""
        return worst(f.verdict for f in self.findings) if self.findings else None

    @property
    def conventions(self) -> list[str]:
        """Which other conventions explain results, if any do: such results pass, but somebody may want to know."""
        return [f.note for f in self.findings if f.verdict == "dialect"]

    @property
    def failed(self) -> list[Finding]:
        """The findings that make the test fail."""
        return [f for f in self.findings if f.verdict in FAILURES or (self.strict and f.verdict == "lossy")]

    def __call__(self) -> None:
        """Ask, compare, and fail with everything that there is to know; skip what is not offered.

        Raises
        ------
        AssertionError
            If an output is wrong, not finite or raises; with ``strict`` also if one is lossy.
        """
        __tracebackhide__ = True
        import pytest

        if self.adapter.version() is None:
            pytest.skip(f"{self.adapter.name} is not installed")
        recorder = _Recorder(self.adapter)
        self.findings = run_case(recorder, self.case)
        if self.failed:
            self.findings = _diagnosed(self.adapter, self.case, self.findings, recorder.answer)
            raise AssertionError(self._message(recorder.answer))
        if self.verdict == "unsupported":
            pytest.skip(self.findings[0].note)

    def _message(self, answer: dict[str, Array]) -> str:
        case = self.case
        conventions = Conventions.of(self.adapter.dialect, self.adapter.differentiates_statistics)
        plain = dataclasses.replace(case, check="")
        known = Truth(case, self.inputs, False, truth.expect(plain, conventions))
        paragraphs = []
        for finding in self.failed:
            if not case.check and finding.output in answer and finding.output in known:
                comparison = Comparison(**{f.name: getattr(finding, f.name) for f in dataclasses.fields(Comparison)})
                text = describe(finding.output, answer[finding.output], known[finding.output], comparison, known)
                self.traces += [line.split(TRACE)[1] for line in text.splitlines() if line.lstrip().startswith(TRACE)]
            else:
                checked = f" ({_CHECKED[case.check]})" if case.check else ""
                text = f"{finding.output or case.operation} is {finding.verdict}{checked}: {finding.note}"
            paragraphs.append("\n    ".join([text, *_explanations(finding)]))
        fine = [f"{f.output} {f.verdict}" for f in self.findings if f not in self.failed and f.output]
        return "\n".join(
            [
                f"{self.adapter.name}: {self.verdict} in {case.operation}",
                *paragraphs,
                *([f"the other outputs: {', '.join(fine)}"] if fine else []),
                *context(known),
            ]
        )


_MOST_DIAGNOSED = 3
_DIAGNOSED: Counter[tuple[str, ...]] = Counter()  # how often failures of which operations and outputs were diagnosed

_CHECKED = {
    "idempotent": "the same call twice gives the same bits",
    "unmodified": "a call leaves its inputs as they were",
    "threads": "one thread and two give the same bits",
    "permute": "another order of the batch permutes the results",
    "momentum": "training does not depend on momentum",
    "layout": "other strides give the same bits",
}


def _diagnosed(adapter: Adapter, case: Case, findings: list[Finding], answer: Mapping[str, Array]) -> list[Finding]:
    """Look which classic mistake gives the same numbers: for the first cases of a kind, which get a second each."""
    kind = (adapter.name, *sorted({f"{f.operation} {f.output}" for f in findings if f.verdict in FAILURES}))
    _DIAGNOSED[kind] += 1
    if _DIAGNOSED[kind] > _MOST_DIAGNOSED:
        return findings
    try:
        diagnosis = import_module("refbn.audit.diagnosis").Diagnosis(seconds=1.0)
    except ModuleNotFoundError:
        return findings
    diagnosis.look(adapter, case, findings, answer)
    told: list[Finding] = diagnosis.conclude(findings, [adapter])
    return told


def _explanations(finding: Finding) -> list[str]:
    """Return what a diagnosis says of a finding, if there was one."""
    return [
        f"{label}  {text}"
        for label, text in (
            ("cause", finding.explanation),
            ("least", finding.smallest),
            ("known", finding.thread),
        )
        if text
    ]


class _Recorder:
    """An adapter that passes everything on and keeps the last answer."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self.answer: dict[str, Array] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation."""
        answer = self._adapter.run(operation, inputs)
        self.answer = {name: np.array(array, copy=True) for name, array in answer.items()}
        return answer


def _known(name: str, given: Iterable[str] | None, words: Sequence[str]) -> tuple[str, ...] | None:
    if given is None:
        return None
    chosen = (given,) if isinstance(given, str) else tuple(given)
    for word in chosen:
        if word not in words:
            raise DomainError(f"{name}: {word!r}, expected some of {', '.join(words)}", argument=name)
    return chosen


def _both(first: Iterable[str] | None, second: Iterable[str] | None) -> list[str] | None:
    """Return what is in both; None is everything."""
    if first is None or second is None:
        chosen = first if second is None else second
        return None if chosen is None else list(chosen)
    return [word for word in first if word in set(second)]
