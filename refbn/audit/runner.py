"""Ask frameworks, compare, and write down what was found."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from refbn.audit import truth
from refbn.audit.adapters._protocol import Adapter, Broken, Inputs, Unsupported, kind_and_groups, norms_of
from refbn.audit.cases import FAMILIES, Case, make_inputs
from refbn.audit.compare import Comparison, Verdict, compare, compare_runs, same_bits, worst
from refbn.audit.families import Depth, all_cases
from refbn.audit.truth import Conventions

if TYPE_CHECKING:
    from refbn.audit.diagnosis import Diagnosis

__all__ = [
    "FAILURES",
    "Finding",
    "Kill",
    "kill_table",
    "look_at",
    "out_of_scope",
    "run",
    "run_case",
    "run_cases",
    "select",
    "summary",
]

Array = npt.NDArray[Any]
Answer = dict[str, Array]
Progress = Callable[[str, int, int], None]
"""Called with a descriptor, how many cases are done and how many there are."""
NotAsked = Mapping[str, Collection[Case]]
"""The cases that an adapter, by its name, is not asked."""

FAILURES: frozenset[Verdict] = frozenset({"wrong", "nonfinite", "raises"})
"""The verdicts that make an audit fail."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one framework did with one output of one case.

    Attributes
    ----------
    framework, version : str
        The adapter's name, and the version that is installed.
    operation, composition, family, dtype, check : str
        As in the case; the dtype by its full name.
    case : str
        The descriptor.
    output : str
        The output's name; empty where there was no result.
    verdict : str
        See `refbn.audit.compare`.
    max_ulp, max_scaled_ulp, bound_ratio : float or None
        The three numbers, if there were finite values to compare.
    worst : tuple of int or None
        The place of the error that is largest relative to the bound.
    note : str
        What else there is to say.
    explanation : str
        Which named convention or classic mistake gives the same numbers, and to how many digits; empty if none does or
        none was looked for.
    smallest : str
        The descriptor of the smallest case that still shows it; empty if none was looked for.
    thread : str
        The address of a public report of it, if one is known.
    known : bool
        Whether it is listed as known and accepted for this version.
    """

    framework: str
    version: str
    operation: str
    composition: str
    family: str
    case: str
    dtype: str
    check: str
    output: str
    verdict: Verdict
    max_ulp: float | None
    max_scaled_ulp: float | None
    bound_ratio: float | None
    worst: tuple[int, ...] | None
    note: str
    explanation: str = ""
    smallest: str = ""
    thread: str = ""
    known: bool = False

    @property
    def id(self) -> str:
        """A short, stable name of what was found: framework, operation, output and, of the case and check, a hash."""
        digest = sha256(f"{self.case} {self.check}".encode()).hexdigest()[:6]
        return "/".join(part for part in (self.framework, self.operation, self.output, digest) if part)


def select(
    depth: Depth,
    families: Iterable[str] = FAMILIES,
    operations: Iterable[str] | None = None,
    dtypes: Iterable[str] | None = None,
) -> list[Case]:
    """Return the cases of some families, operations and dtypes (by short or full name); None means all."""
    wanted_operations = None if operations is None else set(operations)
    wanted_dtypes = None if dtypes is None else set(dtypes)
    return [
        case
        for case in all_cases(depth, families)
        if (wanted_operations is None or case.operation in wanted_operations)
        and (wanted_dtypes is None or not wanted_dtypes.isdisjoint((case.dtype, case.format.name)))
    ]


def run(
    adapter: Adapter,
    families: Iterable[str] = FAMILIES,
    depth: Depth = "full",
    progress: Progress | None = None,
    diagnosis: Diagnosis | None = None,
) -> list[Finding]:
    """Audit one framework over some families; see `run_cases`."""
    return run_cases([adapter], all_cases(depth, families), progress, diagnosis)


def run_cases(
    adapters: Sequence[Adapter],
    cases: Sequence[Case],
    progress: Progress | None = None,
    diagnosis: Diagnosis | None = None,
    not_asked: NotAsked | None = None,
) -> list[Finding]:
    """Ask every adapter every case. Case by case, so that the truth is computed once for all adapters.

    The findings come framework by framework, in the order of the cases; with a `diagnosis` those that are off say why.
    What an adapter is not asked (`refbn.audit.groups`) gives no finding.
    """
    found: list[list[Finding]] = [[] for _ in adapters]
    untold = [frozenset((not_asked or {}).get(adapter.name, ())) for adapter in adapters]
    for done, case in enumerate(cases):
        if progress is not None:
            progress(str(case), done, len(cases))
        for findings, adapter, left_out in zip(found, adapters, untold, strict=True):
            if case not in left_out:
                findings += look_at(adapter, case, diagnosis)
    if progress is not None:
        progress("", len(cases), len(cases))
    whole = [finding for findings in found for finding in findings]
    return whole if diagnosis is None else diagnosis.conclude(whole, adapters)


def look_at(adapter: Adapter, case: Case, diagnosis: Diagnosis | None = None) -> list[Finding]:
    """Ask one adapter one case, and let a `diagnosis` take note of the answer."""
    if diagnosis is None:
        return run_case(adapter, case)
    answer: Answer = {}
    findings = run_case(adapter, case, answer)
    diagnosis.look(adapter, case, findings, answer)
    return findings


def run_case(adapter: Adapter, case: Case, answer: MutableMapping[str, Array] | None = None) -> list[Finding]:
    """Ask one adapter one case: one finding for each output that it gives, or one for the refusal.

    The outputs that the findings are about, of the last run if the check has several, are put into `answer`.
    """
    refusal = out_of_scope(adapter, case)
    if refusal:
        return [_finding(adapter, case, "", Comparison("unsupported", note=refusal))]
    inputs = make_inputs(case)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            asked = adapter if answer is None else _Listening(adapter, answer)
            results = _CHECKS[case.check](asked, case, inputs)
        except Unsupported as error:
            results = [("", Comparison("unsupported", note=_first_line(error)))]
        except Exception as error:  # whatever a framework throws is a finding
            results = [("", _raised(adapter, case, error))]
    if not results:
        results = [("", Comparison("unsupported", note="no output"))]
    return [_finding(adapter, case, output, comparison) for output, comparison in results]


def summary(findings: Iterable[Finding]) -> dict[tuple[str, str, str], Verdict]:
    """Return the worst verdict of each (framework, operation, family), in the order of the findings."""
    verdicts: dict[tuple[str, str, str], list[Verdict]] = {}
    for finding in findings:
        verdicts.setdefault((finding.framework, finding.operation, finding.family), []).append(finding.verdict)
    return {key: worst(values) for key, values in verdicts.items()}


@dataclass(frozen=True, slots=True)
class Kill:
    """The cases of one family in which one framework fails: their worst verdict, their number, the first one."""

    verdict: Verdict
    cases: int
    first: str


def kill_table(findings: Iterable[Finding]) -> dict[str, dict[str, Kill]]:
    """Return for each framework in which families it fails.

    An empty row is a survivor: a mistake (the zoo's members are meant) that no case has found. Lossy results kill
    nothing.
    """
    failures: dict[str, dict[str, list[Finding]]] = {}
    for finding in findings:
        row = failures.setdefault(finding.framework, {})
        if finding.verdict in FAILURES:
            row.setdefault(finding.family, []).append(finding)
    return {
        framework: {
            family: Kill(worst(f.verdict for f in row[family]), len({f.case for f in row[family]}), row[family][0].case)
            for family in FAMILIES
            if family in row
        }
        for framework, row in failures.items()
    }


class _Listening:
    """An adapter whose latest answer is kept."""

    def __init__(self, adapter: Adapter, answer: MutableMapping[str, Array]) -> None:
        self._adapter, self._answer = adapter, answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def run(self, operation: str, inputs: Inputs) -> Answer:
        """See `Adapter.run`."""
        outputs = self._adapter.run(operation, inputs)
        self._answer.clear()
        self._answer.update(outputs)
        return outputs


# ---- one case ----------------------------------------------------------------------------------------------------


def _finding(adapter: Adapter, case: Case, output: str, comparison: Comparison) -> Finding:
    return Finding(
        framework=adapter.name,
        version=_version(cast(Hashable, adapter)),
        operation=case.operation,
        composition=case.op.composition,
        family=case.family,
        case=str(case),
        dtype=case.format.name,
        check=case.check,
        output=output,
        **{f.name: getattr(comparison, f.name) for f in dataclasses.fields(comparison)},
    )


@lru_cache(maxsize=64)
def _version(adapter: Any) -> str:
    """Looking through the installed packages takes longer than many a case."""
    return adapter.version() or ""


def out_of_scope(adapter: Adapter, case: Case) -> str:
    """Return why an adapter cannot be asked a case by what it declares, or nothing."""
    if case.operation not in adapter.operations:
        return f"no {case.operation}"
    if kind_and_groups(case.norm)[0] not in norms_of(adapter):
        return f"no {kind_and_groups(case.norm)[0]} norm"
    for form in (case.format, case.param_format):
        if form.name not in adapter.dtypes:
            return f"no {form.name}"
    if case.momentum is None and not adapter.dialect.cumulative:
        return f"no cumulative average in the {adapter.dialect.name} dialect"
    return ""


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def _raised(adapter: Adapter, case: Case, error: Exception) -> Comparison:
    """Judge a refusal. Where no result is due, it is the framework's convention; but then it must be what it refuses.

    So the same question is asked again with two more samples (in other norms: with more elements in each group), or
    with an ε that is not zero.
    """
    why = _first_line(error)
    if isinstance(error, Broken):
        return Comparison("raises", note=why)
    shape = tuple(size or 1 for size in case.shape)
    shape = (case.shape[0] + 2, *shape[1:]) if case.norm == "batch" else (*shape, 3)
    more = dataclasses.replace(case, check="", shape=shape)
    if not case.op.frozen and 0 in case.shape and _runs(adapter, more):
        return Comparison("dialect", note=f"refuses an empty batch, which has no mean: {why}")
    if not case.op.frozen and case.count == 1 and adapter.dialect.single_value == "raise" and _runs(adapter, more):
        each = "channel" if case.norm == "batch" else "group"
        note = f"refuses one value per {each}, as the {adapter.dialect.name} dialect does: {why}"
        return Comparison("dialect", note=note)
    if case.eps == 0 and _runs(adapter, dataclasses.replace(case, check="", eps=1e-5)):
        return Comparison("dialect", note=f"refuses ε = 0: {why}")
    return Comparison("raises", note=f"{type(error).__name__}: {why}")


def _runs(adapter: Adapter, case: Case) -> bool:
    try:
        adapter.run(case.operation, make_inputs(case))
    except Exception:
        return False
    return True


def _conventions(adapter: Adapter) -> Conventions:
    return Conventions.of(adapter.dialect, adapter.differentiates_statistics)


def _values(adapter: Adapter, case: Case, inputs: Inputs) -> list[tuple[str, Comparison]]:
    """The values of all outputs against the truth."""
    answer = adapter.run(case.operation, inputs)
    conventions = _conventions(adapter)
    expected = truth.expect(case, conventions)
    return [
        (output, _explained(compare(answer[output], expected[output]), answer[output], case, output, conventions))
        for output in case.op.outputs
        if output in answer and output in expected
    ]


def _explained(comparison: Comparison, got: Array, case: Case, output: str, conventions: Conventions) -> Comparison:
    """Look whether another named convention gives this result."""
    if comparison.verdict not in ("lossy", "wrong"):
        return comparison
    for name, expected in truth.alternatives(case, output, conventions, comparison.verdict == "wrong"):
        if not expected.free.any() and compare(got, expected).verdict in ("exact", "accurate"):
            return dataclasses.replace(comparison, verdict="dialect", note=f"matches {name}")
    return comparison


# ---- invariants that take several runs -------------------------------------------------------------------------------


def _agreement(adapter: Adapter, case: Case, first: Answer, second: Answer, what: str) -> list[tuple[str, Comparison]]:
    expected = truth.expect(dataclasses.replace(case, check=""), _conventions(adapter))
    return [
        (output, compare_runs(first[output], second[output], expected[output], what))
        for output in case.op.outputs
        if output in first and output in second and output in expected
    ]


def _copies(answer: Answer) -> Answer:
    """A framework may hand out views of its own buffers, which the next run would overwrite."""
    return {name: array.copy() for name, array in answer.items()}


def _idempotent(adapter: Adapter, case: Case, inputs: Inputs) -> list[tuple[str, Comparison]]:
    """The same call twice gives the same bits."""
    first = _copies(adapter.run(case.operation, inputs))
    return _agreement(adapter, case, first, adapter.run(case.operation, inputs), "the same call twice")


def _unmodified(adapter: Adapter, case: Case, inputs: Inputs) -> list[tuple[str, Comparison]]:
    """A call leaves its inputs and parameters as they were."""
    arrays = {f.name: getattr(inputs, f.name) for f in dataclasses.fields(inputs)}
    arrays |= {f"batches[{i}]": batch for i, batch in enumerate(inputs.batches)}
    before = {name: array.copy() for name, array in arrays.items() if isinstance(array, np.ndarray)}
    adapter.run(case.operation, inputs)
    changed = [name for name, array in before.items() if not same_bits(array, arrays[name])]
    if changed:
        return [("", Comparison("wrong", note=f"modified its input {', '.join(changed)}"))]
    return [("", Comparison("exact"))]


def _threads(adapter: Adapter, case: Case, inputs: Inputs) -> list[tuple[str, Comparison]]:
    """One thread and two give the same bits."""
    try:
        adapter.set_threads(1)
        one = _copies(adapter.run(case.operation, inputs))
        adapter.set_threads(2)
        return _agreement(adapter, case, one, adapter.run(case.operation, inputs), "1 and 2 threads")
    finally:
        with contextlib.suppress(Unsupported):
            adapter.set_threads(os.cpu_count() or 1)


def _permute(adapter: Adapter, case: Case, inputs: Inputs) -> list[tuple[str, Comparison]]:
    """Another order of the batch permutes the results and leaves the statistics within the budget."""
    order = np.argsort(np.random.PCG64(case.seed).random_raw(case.shape[0] * case.repeat), kind="stable")
    moved = dataclasses.replace(
        inputs,
        x=inputs.x[order],
        dy=inputs.dy[order],
        w=inputs.w[order],
        x_dot=inputs.x_dot[order],
        batches=tuple(batch[order] for batch in inputs.batches),
    )
    first = _copies(adapter.run(case.operation, inputs))
    second = {
        name: array[np.argsort(order)] if truth.has_samples(name, case.norm) else array
        for name, array in adapter.run(case.operation, moved).items()
    }
    return _agreement(adapter, case, first, second, "another order of the batch")


def _momentum(adapter: Adapter, case: Case, inputs: Inputs) -> list[tuple[str, Comparison]]:
    """Training does not depend on momentum."""
    first = _copies(adapter.run(case.operation, dataclasses.replace(inputs, momentum=0.125)))
    second = adapter.run(case.operation, dataclasses.replace(inputs, momentum=0.75))
    first.pop("y_eval", None)  # evaluation does depend on it
    return _agreement(adapter, case, first, second, "another momentum")


def _layout(adapter: Adapter, case: Case, inputs: Inputs) -> list[tuple[str, Comparison]]:
    """Other strides give the same bits as contiguous arrays do."""
    plain = make_inputs(dataclasses.replace(case, layout="contiguous"))
    first = _copies(adapter.run(case.operation, plain))
    return _agreement(adapter, case, first, adapter.run(case.operation, inputs), f"contiguous and {case.layout}")


_CHECKS: dict[str, Callable[[Adapter, Case, Inputs], list[tuple[str, Comparison]]]] = {
    "": _values,
    "idempotent": _idempotent,
    "unmodified": _unmodified,
    "threads": _threads,
    "permute": _permute,
    "momentum": _momentum,
    "layout": _layout,
}
