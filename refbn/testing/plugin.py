"""The pytest plugin's second half: what happens once a test uses `parametrize_with_cases` (see `_refbn_pytest`)."""

from __future__ import annotations

import math
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
_SHOWN = 12  # lines of the summary


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
    recorder.counts[suite.adapter.name] += len(cases)
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
        self.counts: Counter[str] = Counter()

    def chosen(self, suite: Suite) -> list[Case]:
        """Return a suite's cases. The command line's depth wins over the suite's; its other choices narrow."""
        if self.cases:
            return self.cases
        depth = self.depth if self.depth_told or suite.depth is None else suite.depth
        return suite.cases(depth, self.families, self.operations, self.dtypes)

    def pytest_report_collectionfinish(self) -> str:
        """Say how many cases there are."""
        told = ", ".join(f"{count} cases of {name}" for name, count in self.counts.items())
        return f"refbn: {told} ({self.depth}{', strict' if self.strict else ''})"

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
    outputs = "+".join(dict.fromkeys(f.output for f in check.failed if f.output))
    return f"{check.verdict} {outputs or '-'} {check.case}"


def _words(config: pytest.Config, option: str, ini: str, words: Sequence[str]) -> list[str] | None:
    told = config.getoption(f"--refbn-{option}") or config.getini(f"refbn_{ini}") or None
    for word in told or ():
        if word not in words:
            raise pytest.UsageError(f"--refbn-{option}: {word!r}, expected one of {', '.join(words)}")
    return None if told is None else list(told)


# ---- the summary -----------------------------------------------------------------------------------------------------


def summarize(terminal: Any, records: Iterable[tuple[pytest.TestReport, str]]) -> None:
    """Write the section on failed cases: for each operation and output how many, and the smallest."""
    passed: Counter[str] = Counter()
    failed: dict[tuple[str, str, str, str], list[tuple[Case, str]]] = {}
    for report, record in records:
        verdict, outputs, descriptor = record.split(" ", 2)
        if report.passed:
            passed[verdict] += 1
            continue
        case = parse(descriptor)
        function = report.nodeid.partition("[")[0]
        failed.setdefault((function, verdict, case.operation, outputs), []).append((case, report.nodeid))
    count = sum(map(len, failed.values()))
    if not count and not passed["lossy"]:
        return
    terminal.section(f"refbn: {count} of {count + passed.total()} cases failed", sep="=")
    lines = []
    for (_, verdict, operation, outputs), cases in failed.items():
        least, nodeid = min(cases, key=lambda pair: (math.prod(pair[0].shape), len(str(pair[0]))))
        what = operation if outputs == "-" else f"{operation} {outputs.replace('+', ', ')}"
        lines.append((len(cases), f"{verdict:<9} {what}: {len(cases)} cases, smallest {least}", nodeid))
    for _, text, _ in lines[:_SHOWN]:
        terminal.write_line(text)
    if len(lines) > _SHOWN:
        terminal.write_line(f"and {sum(n for n, _, _ in lines[_SHOWN:])} more cases")
    if passed["lossy"]:
        terminal.write_line(
            f"{passed['lossy']} cases pass though they are lossy: the right function with too few digits "
            "(--refbn-strict makes them fail)"
        )
    if lines:
        nodeid = lines[0][2]
        case = nodeid.partition("[")[2].removesuffix("]")
        terminal.write_line(f"repeat one: pytest {shlex.quote(nodeid.partition('[')[0])} --refbn-case {shlex.quote(case)}")
