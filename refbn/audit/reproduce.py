"""Scripts that show a finding without refbn: ``refbn audit FRAMEWORK --reproduce ID``.

A script holds the inputs as literals, the framework's own calls (`Adapter.reproduction`), the exact result correctly
rounded, and prints both with the error between them. The case is the finding's smallest one, if it is known. Decimal
literals are the shortest that give the same bits, for every format.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from textwrap import fill, indent
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn._errors import DomainError
from refbn._formats import Format, format_of
from refbn.audit import truth
from refbn.audit.adapters._protocol import Adapter, Inputs, Unsupported
from refbn.audit.cases import Case, make_inputs, parse
from refbn.audit.families import all_cases
from refbn.audit.runner import Finding
from refbn.audit.truth import Conventions, Expected

__all__ = ["case_of", "script"]

Array = npt.NDArray[Any]

_WIDTH = 116
_ARRAYS = tuple(f.name for f in dataclasses.fields(Inputs) if f.name not in ("eps", "momentum", "batches"))
_STATEFUL = ("running", "train_eval_train")
_TENSORS = ("x", "dy", "w", "x_dot")
# Where a finding has no output of its own, what its script ends with.
_NO_RESULT = 'print("no exception:", {name: np.shape(array) for name, array in answer.items()})'


def case_of(name: str, framework: str) -> tuple[Case, str]:
    """Return the case and the output that a finding's id, or a case's descriptor, stands for.

    Parameters
    ----------
    name : str
        `Finding.id`, with or without the framework's name, or a descriptor.
    framework : str
        The adapter's name.

    Returns
    -------
    case, output
        The output is empty where the name does not tell it.

    Raises
    ------
    DomainError
        If no case of the audit has this id.
    """
    if ":" in name:
        return parse(name), ""
    parts = name.removeprefix(f"{framework}/").split("/")
    for case in dict.fromkeys((*all_cases("quick"), *all_cases("full"))) if len(parts) in (2, 3) else ():
        output = parts[1] if len(parts) == 3 else ""
        if case.operation == parts[0] and case_id(framework, case, output).endswith(f"/{'/'.join(parts)}"):
            return case, output
    raise DomainError(
        f"reproduce: {name!r} is no finding of {framework}, expected an id such as {framework}/vjp/dx/0123ab, as the "
        "reports print them, or a case's descriptor",
        argument="reproduce",
    )


def case_id(framework: str, case: Case, output: str) -> str:
    """Return the id of a finding on a case."""
    blank = Finding(
        framework, "", case.operation, "", "", str(case), "", case.check, output, "exact", None, None, None, None, ""
    )
    return blank.id


def script(finding: Finding, adapter: Adapter) -> str:
    """Return a self-contained script that shows a finding: NumPy and the framework alone.

    The framework need not be installed here.

    Raises
    ------
    Unsupported
        If the adapter has no script for the operation, or the check needs what a script cannot do.
    """
    case = parse(finding.smallest or finding.case)
    inputs = make_inputs(case)
    lines = adapter.reproduction(case.operation, inputs).strip("\n")
    kept = ("batches", "momentum") if inputs.batches and case.operation in _STATEFUL else ()
    used = [name for name in (*case.op.arrays, *kept, "eps") if re.search(rf"\b{name}\b", lines)]
    expected = truth.expect(case, Conventions.of(adapter.dialect, adapter.differentiates_statistics))
    parts = [_head(finding, case), "import numpy as np"]
    if "bfloat16" in (case.format.name, case.param_format.name):
        parts[-1] += "\nfrom ml_dtypes import bfloat16"
    parts.append("\n".join(_given(case, inputs, used)))
    if case.check:
        parts += _checked(case, finding.output, inputs, used, lines)
    elif finding.output in expected:
        parts += [lines, "\n".join(_compared(finding.output, expected[finding.output], case))]
    else:
        parts += [lines, _NO_RESULT]
    return "\n\n".join(parts) + "\n"


def _head(finding: Finding, case: Case) -> str:
    what = " ".join(part for part in (finding.operation, finding.output, f"({case.check})" * bool(case.check)) if part)
    sentences = [f"{finding.framework} {finding.version}: {what} is {finding.verdict}".replace(" is raises", " raises")]
    sentences += [text for text in (finding.explanation, finding.note, finding.thread) if text]
    sentences.append(f"case {case}")
    return "\n".join(
        fill(
            text, _WIDTH, initial_indent="# ", subsequent_indent="#   ", break_long_words=False, break_on_hyphens=False
        )
        for text in sentences
    )


# ---- inputs ------------------------------------------------------------------------------------------------------


def _given(case: Case, inputs: Inputs, used: list[str]) -> Iterator[str]:
    """Yield the lines that define the inputs."""
    for name in used:
        if name == "batches":
            yield _wrapped(f"batches = ({', '.join(_literal(b[: case.shape[0]]) for b in inputs.batches)},)")
        elif name in ("eps", "momentum"):
            yield f"{name} = {getattr(inputs, name)!r}"
        else:
            array = getattr(inputs, name)
            yield _wrapped(f"{name} = {_literal(array[: case.shape[0]] if name in _TENSORS else array)}")
    if case.repeat > 1:
        for name in (n for n in used if n in _TENSORS):
            yield f"{name} = np.tile({name}, {(case.repeat, *(1 for _ in case.shape[1:]))})"
        if "batches" in used:
            yield f"batches = tuple(np.tile(b, {(case.repeat, *(1 for _ in case.shape[1:]))}) for b in batches)"
    if case.layout != "contiguous" and not case.check:
        yield from _laid(case, used)


_LAID = {
    "channels-last": "np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) if a.ndim > 1 else a",
    "transposed": "np.ascontiguousarray(a.T).T",
    "negative": "np.flip(np.flip(a).copy())",
    "sliced": "np.kron(a, np.ones((2,) * a.ndim, a.dtype))[(slice(None, None, 2),) * a.ndim]",
    "read-only": "np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape)",
}


def _laid(case: Case, used: list[str]) -> Iterator[str]:
    """Yield the lines that give the inputs the case's strides."""
    yield f"lay = lambda a: {_LAID[case.layout]}  # {case.layout}"
    yield from (f"{name} = lay({name})" for name in used if name in _ARRAYS)
    if "batches" in used:
        yield "batches = tuple(lay(b) for b in batches)"


def _wrapped(line: str) -> str:
    return fill(line, _WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _literal(array: Array) -> str:
    """Return an expression that has the array's values, shape and dtype."""
    form = format_of(array.dtype)
    dtype = "bfloat16" if form.name == "bfloat16" else f"np.{form.name}"
    if array.size == 0:
        return f"np.zeros({array.shape}, {dtype})"
    flat = array.ravel()
    if array.size > 1 and len({value.tobytes() for value in flat}) == 1:
        return f"np.full({array.shape}, {_number(flat[0], form)}, {dtype})"
    return f"np.array({_nested(array, form)}, {dtype})"


def _nested(array: Array, form: Format) -> str:
    if array.ndim == 0:
        return _number(array[()], form)
    return f"[{', '.join(_nested(part, form) for part in array)}]"


def _number(value: Any, form: Format) -> str:
    """Return the shortest decimal literal that is rounded to the value, by way of binary64 too."""
    wide = float(value)
    if not np.isfinite(wide):
        return "np.nan" if np.isnan(wide) else "np.inf" if wide > 0 else "-np.inf"
    for digits in range(1, 17):
        text = repr(float(f"{wide:.{digits}g}"))
        with np.errstate(over="ignore"):
            back = float(np.float64(text).astype(form.dtype))
        if back == wide:
            return text.removesuffix(".0") + "." if text.endswith(".0") else text
    return repr(wide)


# ---- results -----------------------------------------------------------------------------------------------------


def _compared(output: str, expected: Expected, case: Case) -> Iterator[str]:
    """Yield the lines that compare one output with the truth."""
    form = expected.output_format(expected.param_form if expected.is_vector else expected.form)
    rounded = expected.rounded(form)
    literal = _literal(rounded.astype(np.float64))
    if truth.has_samples(output, case.norm) and case.repeat > 1:
        literal = f"np.tile({literal}, {(case.repeat, *(1 for _ in rounded.shape[1:]))})"
    yield f"# the exact result, rounded to {form.name}:"
    yield _wrapped(f"expected = {literal}")
    yield f'got = np.asarray(answer["{output}"], np.float64)'
    yield 'print("got     ", got)'
    yield 'print("expected", expected)'
    if rounded.size == 0 or not np.isfinite(rounded).any():
        return
    limit = float(np.max(np.where(np.isfinite(rounded), expected.limit(form), 0.0)))
    size = float(np.max(np.abs(np.where(np.isfinite(rounded), rounded, 0.0))))
    finite = "" if np.isfinite(rounded).all() else "[np.isfinite(expected)]"
    if size == 0:
        yield f'print("error", np.abs(got - expected){finite}.max(), "where {limit:.1e} would do")'
    else:
        yield (
            f'print("relative error", np.abs(got - expected){finite}.max() / np.abs(expected){finite}.max(), '
            f'"where {limit / size:.1e} would do")'
        )


def _checked(case: Case, output: str, inputs: Inputs, used: list[str], lines: str) -> list[str]:
    """Return the parts of a script that asks twice and compares."""
    if case.check == "threads":
        raise Unsupported("no script for the check threads: how a framework is told their number is its own affair")
    arguments = ", ".join(used)
    function = (
        f"def ask({arguments}):\n{indent(lines, '    ')}\n    return {{n: np.array(a) for n, a in answer.items()}}"
    )
    tensors = [name for name in used if name in _TENSORS]
    arrays = [name for name in used if name in _ARRAYS]
    if case.check == "unmodified":
        kept = f"before = [a.copy() for a in ({', '.join(arrays)}, *{'batches' if 'batches' in used else '()'})]"
        after = f"after = [{', '.join(arrays)}, *{'batches' if 'batches' in used else '()'}]"
        return [
            function,
            "\n".join([kept, f"ask({arguments})", after, 'print("changed", [not np.array_equal(a, b) for a, b in '
                       "zip(before, after)])"]),
        ]  # fmt: skip
    first, second, back = arguments, arguments, ""
    before: list[str] = []
    if case.check == "permute":
        order = np.argsort(np.random.PCG64(case.seed).random_raw(case.shape[0] * case.repeat), kind="stable")
        before.append(_wrapped(f"order = np.array({order.tolist()})"))
        second = ", ".join(f"{name}[order]" if name in tensors else name for name in used)
        back = "[np.argsort(order)]" * truth.has_samples(output, case.norm)
    elif case.check == "momentum":
        first, second = (
            ", ".join(value if name == "momentum" else name for name in used) for value in ("0.125", "0.75")
        )
    elif case.check == "layout":
        before.append(f"lay = lambda a: {_LAID[case.layout]}  # {case.layout}")
        second = ", ".join(f"lay({name})" if name in arrays else name for name in used)
    before += [f"first, second = ask({first}), ask({second})"]
    before += [f'a, b = (np.asarray(v, np.float64) for v in (first["{output}"], second["{output}"]{back}))']
    before += ['print("first ", a)', 'print("second", b)', 'print("largest difference", np.abs(a - b).max())']
    return [function, "\n".join(before)]
