"""Everything about one case: ``refbn audit FRAMEWORK --case DESCRIPTOR``."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.text import Text

from refbn._formats import format_of
from refbn.audit import truth
from refbn.audit.adapters._protocol import Adapter, Inputs
from refbn.audit.cases import Case, make_inputs
from refbn.audit.diagnosis import Diagnosis
from refbn.audit.report import numbers
from refbn.audit.runner import Finding, run_cases
from refbn.audit.truth import Conventions, Expected

__all__ = ["print_case"]

Array = npt.NDArray[Any]

_SHOWN = 12  # elements of an output that are printed


def print_case(adapter: Adapter, case: Case, console: Console, diagnosis: Diagnosis | None = None) -> list[Finding]:
    """Run one case, print its inputs, what was expected and what came, and return the findings."""
    findings = run_cases([adapter], [case], None, diagnosis)

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=True)

    line(f"{adapter.name} {adapter.version() or ''}".strip(), "bold")
    line(str(case))
    line(f"{case.operation}: {case.op.meaning}")
    line(f"m = {case.count}, eps = {case.eps!r}, momentum = {case.momentum!r}, {adapter.dialect.name} dialect")
    console.print()
    inputs = make_inputs(case)
    for name, array in _arrays(case, inputs):
        line(f"  {name:<13}{_described(array)}")
    answer = _answer(adapter, case, inputs)
    expected = truth.expect(case, Conventions.of(adapter.dialect, adapter.differentiates_statistics))
    for finding in findings:
        console.print()
        check = f" (check {finding.check})" if finding.check else ""
        line(f"{finding.output or case.operation}{check}: {finding.verdict}", "bold")
        line(f"  {numbers(finding)}")
        for text in (finding.note, finding.explanation, finding.thread):
            if text:
                line(f"  {text}")
        if finding.smallest:
            line(f"  smallest case {finding.smallest}")
            line(f"  refbn audit {finding.framework} --reproduce {finding.id}")
        if not finding.check and finding.output in answer and finding.output in expected:
            for text in _comparison(finding, answer[finding.output], expected[finding.output]):
                line(f"  {text}")
    return findings


def _arrays(case: Case, inputs: Inputs) -> list[tuple[str, Array]]:
    """Return the arrays that take part in the case's operation."""
    found = [(name, getattr(inputs, name)) for name in case.op.arrays]
    if case.operation in ("running", "train_eval_train"):
        found += [(f"batches[{i}]", batch) for i, batch in enumerate(inputs.batches)]
    return found


def _described(array: Array) -> str:
    text = f"{array.dtype.name} {array.shape}, strides {array.strides}"
    if not array.flags.writeable:
        text += ", read-only"
    values = array.astype(np.float64)
    finite = values[np.isfinite(values)]
    if finite.size:
        text += f", {finite.min():.6g} … {finite.max():.6g}"
    if finite.size < values.size:
        text += f", {values.size - finite.size} not finite"
    return text


def _answer(adapter: Adapter, case: Case, inputs: Inputs) -> dict[str, Array]:
    if case.check:
        return {}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return adapter.run(case.operation, inputs)
        except Exception:  # `run_cases` has already made a finding of it
            return {}


def _comparison(finding: Finding, got: Array, expected: Expected) -> list[str]:
    if got.shape != expected.full_shape or got.size == 0:
        return []
    form = expected.output_format(format_of(got.dtype))
    period = got[: len(expected.high)].astype(np.float64)
    rounded = expected.rounded(form)
    lines = []
    if finding.worst is not None:
        at = finding.worst
        lines += [
            f"worst at {at}",
            f"  expected {float(expected.high[at])!r}, {float(rounded[at])!r} in {form.name}",
            f"  got      {float(period[at])!r}",
            f"  bound of the error {expected.limit(form)[at]:.3g}",
        ]
    few = "" if got.size <= _SHOWN else f"first {_SHOWN} of {got.size} "
    lines.append(f"{few}expected {_values(rounded)}")
    lines.append(f"{few}got      {_values(period)}")
    return lines


def _values(array: Array) -> str:
    return "  ".join(f"{value:.9g}" for value in array.ravel()[:_SHOWN])
