"""Every output of every pass, bit for bit, against the oracle: ``python -m validation.correct_rounding``.

What a correctly rounded backend returns is compared with the oracle's exact result rounded once (`validation.truth`),
for the calls of `validation.calls`: long channels of many data families, in mixed formats and layouts, and thousands of
small adversarial ones. Each call is made four times, so that every output is asked for in every format. A NaN equals a
NaN; all else must have the same bits, signs of zeros included.

A disagreement is reported under a case's name, ``FAMILY:FORMAT:SEED:INDEX``, with the bits; ``--case`` reruns that one.
Where a backend offers ``counting()``, the result also says which rung of its ladder decided how many elements and
vectors.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn import backends
from refbn._formats import FORMATS, Format
from refbn._types import Array
from validation import calls, report
from validation.calls import FAMILIES, Call
from validation.passes import TENSORS, derivative_arguments, is_frozen
from validation.truth import OUTPUTS, RUNNING, VARIANTS, Truth

__all__ = ["RUNGS", "Findings", "check", "differ", "main", "plan", "run"]

RUNGS = ("binary64", "double-double", "scaled double-double", "exact")
DECIDED = ("elements", "vectors")

_LINES = 100
_A_CASE = 3  # lines of one case, at most

Pass = tuple[str, tuple[bool, ...]]
"""An operation and, for `running_update`, (weighs_new, unbiased)."""
Key = tuple[str, str, str, str, str, str]
"""backend, family, format of x, format of the output, operation, output"""


def _no_seconds() -> defaultdict[str, float]:
    return defaultdict(float)


@dataclass
class Findings:
    """What was counted.

    Attributes
    ----------
    outputs, mismatches : Counter
        By `Key`.
    values : Counter
        By (family, format of x): how many different exact numbers the outputs are roundings of.
    rungs : dict
        By (backend, family, format of x, format of tensor outputs, operation): an array of the shape
        (len(DECIDED), len(RUNGS)).
    seconds : dict
        Processor time of the oracle, and of each backend with the comparison.
    lines : list of str
        A line for each of the first mismatches.
    """

    outputs: Counter[Key] = field(default_factory=Counter)
    mismatches: Counter[Key] = field(default_factory=Counter)
    values: Counter[tuple[str, str]] = field(default_factory=Counter)
    rungs: dict[tuple[str, str, str, str, str], npt.NDArray[np.int64]] = field(default_factory=dict)
    seconds: defaultdict[str, float] = field(default_factory=_no_seconds)
    lines: list[str] = field(default_factory=list)

    def __iadd__(self, other: Findings) -> Findings:
        self.outputs.update(other.outputs)
        self.mismatches.update(other.mismatches)
        self.values.update(other.values)
        for key, seconds in other.seconds.items():
            self.seconds[key] += seconds
        for rung, counts in other.rungs.items():
            self.rungs[rung] = self.rungs.get(rung, 0) + counts
        self.lines += other.lines[: _LINES - len(self.lines)]
        return self


def run(
    backend: str, call: Call, of_tensors: Format, of_vectors: Format
) -> Iterator[tuple[Pass, dict[str, Array], npt.NDArray[np.int64] | None]]:
    """Yield every pass of a backend: its outputs, tensors as (G, m), and the counts of its rungs."""
    kernels: Any = backends.load(backend)
    counting = getattr(kernels, "counting", contextlib.nullcontext)
    a = {key: calls.in_layout(v, call.layout) for key, v in call.arrays.items()}
    x, gamma, beta = a["x"], a["gamma"], a["beta"]
    statistics = (a["mean"], a["var"])
    derivatives = derivative_arguments(a)
    states: dict[bool, Any] = {}

    def answer(operation: str, *arguments: Any, variant: tuple[bool, ...] = ()) -> Any:
        outputs = {}
        for name in OUTPUTS[operation]:
            shape, form = (call.shape, of_tensors) if name in TENSORS else (call.shape[:1], of_vectors)
            unwritten = np.full(shape, -7.0).astype(form.dtype)
            outputs[name] = calls.in_layout(unwritten, call.layout, out=True)
        with counting() as counts:
            state = getattr(kernels, operation)(*arguments, **outputs)
        if operation in ("forward", "inference"):
            states[is_frozen(operation)] = state
        found = {key: v.reshape(call.shape) if key in TENSORS else v for key, v in outputs.items()}
        return (operation, variant), found, None if counts is None else np.array(counts)

    yield answer("forward", x, gamma, beta, call.eps)
    yield answer("inference", x, *statistics, gamma, beta, call.eps)
    for operation, arguments in derivatives.items():
        yield answer(operation, states[is_frozen(operation)], x, gamma, *arguments)
    running = a["running_mean"], a["running_var"]
    for variant in VARIANTS:
        if call.shape[1] > 1 or not variant[1]:
            yield answer(RUNNING, states[False], x, call.momentum, *variant, *running, variant=variant)


def _expected(call: Call) -> Callable[[Format, Format], Callable[[Pass, str], Array]]:
    """Return what gives, for a choice of formats, the right answer to each output."""
    if call.finite:
        truth = Truth(call)

        def ask(of_tensors: Format, of_vectors: Format) -> Callable[[Pass, str], Array]:
            def answer(which: Pass, output: str) -> Array:
                operation, variant = which
                if operation == RUNNING:
                    return truth.running(variant, output, of_vectors)
                return truth.of(operation, output, of_tensors if output in TENSORS else of_vectors)

            return answer

        return ask

    def ask_backend(of_tensors: Format, of_vectors: Format) -> Callable[[Pass, str], Array]:
        found = {which: outputs for which, outputs, _ in run("exact", call, of_tensors, of_vectors)}
        return lambda which, output: found[which][output]

    return ask_backend


def differ(got: Array, expected: Array) -> npt.NDArray[np.bool_]:
    """Tell where two arrays have different bits and are not both NaN."""
    bits = np.dtype(f"u{got.dtype.itemsize}")
    different = np.asarray(np.ascontiguousarray(got).view(bits) != expected.view(bits))
    if different.any():
        different &= ~(np.isnan(got) & np.isnan(expected))
    return different


def _bits(value: Any) -> str:
    form = np.asarray(value)
    return f"{float(form):.17g} (0x{int(form.view(f'u{form.itemsize}')):0{2 * form.itemsize}x})"


def check(task: tuple[str, Sequence[str]]) -> Findings:
    """Compare some backends with the oracle on one case: (its name, their names)."""
    name, names = task
    family, short, *_ = name.split(":")
    found = Findings()
    with report.threads(1):  # the cases already run side by side
        for call in calls.build(name):
            _check_call(name, family, short, call, names, found)
    return found


def _check_call(name: str, family: str, short: str, call: Call, names: Sequence[str], found: Findings) -> None:
    start = time.process_time()
    expected = _expected(call)
    found.seconds["oracle"] += time.process_time() - start
    for of_tensors, of_vectors in call.formats:
        answer = expected(of_tensors, of_vectors)
        for backend in names:
            start, waited = time.process_time(), 0.0
            for which, outputs, counts in run(backend, call, of_tensors, of_vectors):
                operation, variant = which
                if counts is not None:
                    rung = backend, family, short, of_tensors.short, operation
                    found.rungs[rung] = found.rungs.get(rung, 0) + counts
                for output, got in outputs.items():
                    asked = time.process_time()
                    right = answer(which, output)
                    waited += time.process_time() - asked
                    form = of_tensors if output in TENSORS else of_vectors
                    key = backend, family, short, form.short, operation, output
                    found.outputs[key] += got.size
                    wrong = differ(got, right)
                    if not wrong.any():
                        continue
                    found.mismatches[key] += int(wrong.sum())
                    for place in np.argwhere(wrong)[: max(_A_CASE - len(found.lines), 0)]:
                        at = tuple(map(int, place))
                        found.lines.append(
                            f"{name} {backend} {' '.join((operation, *map(str, variant)))} "
                            f"{output}[{', '.join(map(str, at))}] in {form.short}: got {_bits(got[at])}, "
                            f"expected {_bits(right[at])}; m={call.shape[1]} eps={call.eps} {call.labels[at[0]]}"
                        )
            found.seconds["oracle"] += waited
            found.seconds[backend] += time.process_time() - start - waited
    groups, m = call.shape
    found.values[family, short] += groups * (8 * m + 20)


def plan(outputs: float, seed: int, families: Sequence[str] = tuple(FAMILIES), largest: float = np.inf) -> list[str]:
    """Name cases that have about so many outputs together, by the families' shares and evenly by formats.

    Cases with more than ``largest`` outputs are left out. Every family has at least one of each format.
    """
    total = sum(FAMILIES[family].share for family in families)
    names: list[str] = []
    for family in families:
        for form in FORMATS:
            wanted = outputs * FAMILIES[family].share / total / len(FORMATS)
            index, found = 0, 0
            while not found or found < wanted:
                name = calls.name(family, form, seed, index)
                size = calls.outputs_of(name)
                if size <= largest:
                    names.append(name)
                    found += size
                index += 1
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]


def _totals(found: Findings, places: Sequence[int]) -> dict[str, dict[str, int]]:
    """Return outputs and mismatches by some parts of the key."""
    totals: dict[str, dict[str, int]] = {}
    for key, count in sorted(found.outputs.items()):
        entry = totals.setdefault(" ".join(key[p] for p in places), {"outputs": 0, "mismatches": 0})
        entry["outputs"] += count
        entry["mismatches"] += found.mismatches[key]
    return totals


def _rungs(found: Findings, backend: str, *places: int) -> dict[str, dict[str, list[int]]] | None:
    """Return how many elements and vectors each rung decided, by some parts of the key."""
    totals: dict[str, npt.NDArray[np.int64]] = {}
    for key, counts in sorted(found.rungs.items()):
        if key[0] == backend:
            name = " ".join(key[p] for p in places) or "all"
            totals[name] = totals.get(name, 0) + counts
    if not totals:
        return None
    return {name: dict(zip(DECIDED, counts.tolist(), strict=True)) for name, counts in totals.items()}


def _result(found: Findings, names: Iterable[str]) -> dict[str, Any]:
    """Return what goes into the JSON file."""
    return {
        "exact values": sum(found.values.values()),
        "exact values by family and format": {" ".join(key): n for key, n in sorted(found.values.items())},
        "processor seconds": {key: round(seconds, 1) for key, seconds in found.seconds.items()},
        "mismatches": found.lines,
        "rungs": RUNGS,
        "backends": {
            backend: {
                "outputs": sum(n for key, n in found.outputs.items() if key[0] == backend),
                "mismatches": sum(n for key, n in found.mismatches.items() if key[0] == backend),
                "of tensors": sum(n for key, n in found.outputs.items() if key[0] == backend and key[5] in TENSORS),
                "by family and format of x": _of(_totals(found, (0, 1, 2)), backend),
                "by format of x and of the output": _of(_totals(found, (0, 2, 3)), backend),
                "by output and its format": _of(_totals(found, (0, 4, 5, 3)), backend),
                "decided by": {
                    "in all": _rungs(found, backend),
                    "by family": _rungs(found, backend, 1),
                    "by format of x and of tensor outputs": _rungs(found, backend, 2, 3),
                    "by pass and format of tensor outputs": _rungs(found, backend, 4, 3),
                },
            }
            for backend in names
        },
    }


def _of(totals: dict[str, dict[str, int]], backend: str) -> dict[str, dict[str, int]]:
    return {key.removeprefix(f"{backend} "): value for key, value in totals.items() if key.startswith(f"{backend} ")}


def _show(found: Findings, names: Sequence[str]) -> None:
    by_family = _totals(found, (1, 0))
    families = dict.fromkeys(key.split()[0] for key in by_family)
    report.show(
        "Outputs compared with the oracle bit for bit, and mismatches",
        ("family", *(f"{backend} {what}" for backend in names for what in ("outputs", "mismatches"))),
        (
            (family, *(n for backend in names for n in by_family[f"{family} {backend}"].values()))
            for family in (f for f in FAMILIES if f in families)
        ),
    )
    for backend in names:
        rungs = _rungs(found, backend, 1)
        if rungs is None:
            print(f"{backend}: does not count its rungs")
            continue
        rows = {**rungs, "all": (_rungs(found, backend) or {})["all"]}
        report.show(
            f"{backend}: decided by",
            ("family", *(f"{rung}, {what}" for what in DECIDED for rung in RUNGS)),
            ((family, *(n for what in DECIDED for n in counts[what])) for family, counts in rows.items()),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check, print tables, write the result; 1 if anything differs."""
    parser = report.parser(__doc__)
    correct = [name for name in ("native", "numba") if name in backends.available()]
    parser.add_argument("--backend", nargs="+", default=correct, help="whom to compare with the oracle")
    parser.add_argument("--outputs", type=float, default=2e8, help="how many to compare, for each backend")
    parser.add_argument("--family", nargs="+", default=list(FAMILIES), choices=FAMILIES, help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=None, help="two where there are two cores")
    parser.add_argument("--case", help="FAMILY:FORMAT:SEED:INDEX: check this one only and write nothing")
    arguments = parser.parse_args(argv)
    names = tuple(arguments.backend)
    start = time.perf_counter()
    found = Findings()
    cases = [arguments.case] if arguments.case else plan(arguments.outputs, arguments.seed, arguments.family)
    tasks = [(name, names) for name in cases]
    for part in report.spread(check, tasks, processes=1 if arguments.case else arguments.processes):
        found += part
    _show(found, names)
    for line in found.lines[:20]:
        print(line)
    if not arguments.case:
        report.write(
            "correct-rounding",
            arguments,
            {
                "versions": report.versions(*(("numba",) if "numba" in names else ())),
                "seed": arguments.seed,
                "families": arguments.family,
                "cases": len(cases),
                "seconds": round(time.perf_counter() - start, 1),
                **_result(found, names),
            },
        )
    return 1 if found.mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
