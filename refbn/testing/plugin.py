"""The pytest plugin's second half: what happens once a test uses `parametrize_with_cases` (see `_refbn_pytest`)."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from typing import Any, cast

import pytest

from refbn._errors import RefbnError
from refbn.audit.adapters._protocol import OPERATIONS
from refbn.audit.cases import FAMILIES, Case, parse
from refbn.audit.families import Depth
from refbn.testing.suite import Check, Suite

__all__ = ["generate", "summarize"]

KEY = "refbn"
_RECORDER = "refbn-recorder"
_DTYPES = ("f16", "bf16", "f32", "f64", "float16", "bfloat16", "float32", "float64")
_SHOWN = 12  # operations and outputs in the summary


def generate(metafunc: pytest.Metafunc, suite: Suite) -> None:
    """Parametrize a test function over the cases that are wanted."""
    config = metafunc.config
    if "check" not in metafunc.fixturenames:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: parametrize_with_cases needs a test with the argument check, "
            f"as in `def {metafunc.function.__name__}(check): check()`"
        )
    if not config.pluginmanager.has_plugin(_RECORDER):
        config.pluginmanager.register(Recorder(config), _RECORDER)
    recorder = cast(Recorder, config.pluginmanager.get_plugin(_RECORDER))
    cases = recorder.chosen(suite)
    recorder.counts[suite.adapter.name, recorder.depth_of(suite)] += len(cases)
    metafunc.parametrize("check", [Check(suite.adapter, case, recorder.strict) for case in cases], ids=map(str, cases))


class Recorder:
    """What the command line and the ini file chose, and what came out; registered as a plugin when first needed."""

    def __init__(self, config: pytest.Config) -> None:
        option = config.getoption
        self.depth = cast(Depth, option("--refbn-depth") or config.getini("refbn_depth"))
        self.depth_told = option("--refbn-depth") is not None
        if self.depth not in ("quick", "full"):
            raise pytest.UsageError(f"refbn_depth: {self.depth!r}, expected quick or full")
        self.families = _words(config, "family", "families", FAMILIES)
        self.operations = _words(config, "operation", "operations", tuple(OPERATIONS))
        self.dtypes = _words(config, "dtype", "dtypes", _DTYPES)
        self.strict = bool(option("--refbn-strict") or config.getini("refbn_strict"))
        try:
            self.cases = [parse(text) for text in option("--refbn-case") or ()]
        except RefbnError as error:
            raise pytest.UsageError(f"--refbn-case: {error}") from None
        self.counts: Counter[tuple[str, str]] = Counter()

    def depth_of(self, suite: Suite) -> Depth:
        """Return the depth of a suite: the command line's, or else its own, or else the ini file's."""
        return self.depth if self.depth_told or suite.depth is None else suite.depth

    def chosen(self, suite: Suite) -> list[Case]:
        """Return a suite's cases, narrowed by the command line and the ini file."""
        if self.cases:
            return self.cases
        return suite.cases(self.depth_of(suite), self.families, self.operations, self.dtypes)

    def pytest_report_collectionfinish(self) -> str:
        """Say how many cases there are."""
        told = (
            f"{_cases(count)} of {name} ({'as told' if self.cases else depth}{', strict' if self.strict else ''})"
            for (name, depth), count in self.counts.items()
        )
        return f"refbn: {', '.join(told)}"

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Let the test's report carry the verdict, so that it reaches the process that prints the summary."""
        try:
            return (yield)
        finally:
            check = getattr(item, "callspec", None) and item.callspec.params.get("check")  # type: ignore[attr-defined]
            if isinstance(check, Check) and check.verdict is not None:
                item.user_properties.append((KEY, _record(check)))


def _record(check: Check) -> str:
    """Write what the summary needs as one string, since reports and JUnit files carry strings."""
    outputs = list(dict.fromkeys(f.output for f in check.failed if f.output))
    record = {"verdict": check.verdict, "outputs": outputs, "case": str(check.case), "traces": check.traces}
    return json.dumps(record | {"conventions": check.conventions}, ensure_ascii=False)


def _words(config: pytest.Config, option: str, ini: str, words: Sequence[str]) -> list[str] | None:
    told = config.getoption(f"--refbn-{option}") or config.getini(f"refbn_{ini}") or None
    for word in told or ():
        if word not in words:
            raise pytest.UsageError(f"--refbn-{option}: {word!r}, expected one of {', '.join(words)}")
    return None if told is None else list(told)


# ---- the summary -----------------------------------------------------------------------------------------------------


def summarize(terminal: Any, records: Iterable[tuple[pytest.TestReport, str]]) -> None:
    """Write the section on failed cases: for each operation and output how many, the smallest, and the usual trace."""
    passed: Counter[str] = Counter()
    failed: dict[tuple[str, ...], list[tuple[Case, str]]] = {}
    traces: dict[tuple[str, ...], Counter[str]] = {}
    conventions: Counter[str] = Counter()
    for report, text in records:
        record = json.loads(text)
        conventions.update(set(record["conventions"]))
        if report.passed:
            passed[record["verdict"]] += 1
            continue
        case = parse(record["case"])
        function = report.nodeid.partition("[")[0]
        key = (function, record["verdict"], case.operation, *record["outputs"])
        failed.setdefault(key, []).append((case, report.nodeid))
        kinds = dict.fromkeys(trace.partition(" (")[0].partition(":")[0] for trace in record["traces"])
        traces.setdefault(key, Counter()).update(kinds.keys())
    count = sum(map(len, failed.values()))
    if not count and not passed["lossy"] and not conventions:
        return
    terminal.section(f"refbn: {count} of {count + passed.total()} cases failed", sep="=")
    groups = sorted(failed.items(), key=lambda item: -len(item[1]))
    for key, cases in groups[:_SHOWN]:
        _, verdict, operation, *outputs = key
        least, _ = _smallest(cases)
        terminal.write_line(f"{verdict:<9} {' '.join([operation, ', '.join(outputs)]).strip()}: {_cases(len(cases))}")
        for trace, times in traces[key].most_common(1):
            terminal.write_line(f"{'':<9} {trace} ({times} of {len(cases)})")
        terminal.write_line(f"{'':<9} smallest {least}")
    if rest := sum(len(cases) for _, cases in groups[_SHOWN:]):
        terminal.write_line(f"and {_cases(rest)} more")
    if passed["lossy"]:
        terminal.write_line(
            f"{_cases(passed['lossy'])} passed as lossy: the right function with too few digits "
            "(--refbn-strict makes them fail)"
        )
    for convention, times in conventions.most_common(_SHOWN):
        terminal.write_line(f"{_cases(times)} passed by another convention: {convention}")
    if groups:
        case, nodeid = _smallest(groups[0][1])
        terminal.write_line(
            f"repeat one: pytest {shlex.quote(nodeid.partition('[')[0])} --refbn-case {shlex.quote(str(case))}"
        )


def _smallest(cases: Iterable[tuple[Case, str]]) -> tuple[Case, str]:
    return min(cases, key=lambda pair: (pair[0].count * pair[0].shape[1], len(str(pair[0]))))


def _cases(count: int) -> str:
    return f"{count} case{'' if count == 1 else 's'}"
