"""A run as JUnit XML, which continuous integration reads: one suite a framework, one test a case.

A test fails where the audit does: something is wrong that is not listed as known. What is lossy, known, or explained by
another dialect passes and says so in its output; what the framework does not offer or was not asked, or what was not
installed, is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from refbn.audit.compare import worst
from refbn.audit.report.run import Framework, Run, fails, numbers
from refbn.audit.runner import Finding

__all__ = ["junit"]

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(run: Run) -> str:
    """Return the XML document."""
    suites = [_suite(run, framework) for framework in run.frameworks]
    if run.missing:
        suites.append(_missing(run))
    root = ET.Element("testsuites", name="refbn audit")
    root.extend(suites)
    for count in ("tests", "failures", "errors", "skipped"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in suites)))
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(run: Run, framework: Framework) -> ET.Element:
    cases: dict[str, list[Finding]] = {}
    for finding in run.of(framework.name):
        cases.setdefault(finding.case, []).append(finding)
    suite = ET.Element("testsuite", name=_plain(framework.name), timestamp=run.date)
    properties = ET.SubElement(suite, "properties")
    for name, value in (
        ("version", framework.version),
        ("dialect", framework.dialect),
        ("python", framework.python),
        ("refbn", run.refbn),
        ("depth", run.depth),
    ):
        ET.SubElement(properties, "property", name=name, value=_plain(value))
    tests = [_test(run, case, findings) for case, findings in cases.items()]
    tests += [_not_asked(framework, case) for case in framework.not_asked]
    suite.extend(tests)
    return _count(suite, tests)


def _not_asked(framework: Framework, case: str) -> ET.Element:
    family, operation, *_ = case.split(":")
    test = ET.Element("testcase", classname=_plain(f"{framework.name}.{family}.{operation}"), name=_plain(case))
    ET.SubElement(test, "skipped", message="not asked in a quick audit: the framework compiles for each shape")
    return test


def _test(run: Run, case: str, findings: Sequence[Finding]) -> ET.Element:
    first = findings[0]
    test = ET.Element("testcase", classname=_plain(f"{first.framework}.{first.family}.{first.operation}"), name=case)
    failed = [f for f in findings if fails(f)]
    told = [f for f in findings if not fails(f) and (f.known or f.verdict in ("lossy", "dialect"))]
    if failed:
        words = ", ".join(_what(f) for f in failed)
        failure = ET.SubElement(test, "failure", type=worst(f.verdict for f in failed), message=_plain(words))
        failure.text = _plain("\n".join(_told(run, f) for f in failed))
    elif all(f.verdict == "unsupported" for f in findings):
        ET.SubElement(test, "skipped", message=_plain(first.note))
    if told:
        ET.SubElement(test, "system-out").text = _plain("\n".join(_told(run, f) for f in told))
    return test


def _missing(run: Run) -> ET.Element:
    suite = ET.Element("testsuite", name="not installed", timestamp=run.date)
    tests = [ET.Element("testcase", classname="not installed", name=_plain(name)) for name in run.missing]
    for test in tests:
        ET.SubElement(test, "skipped", message="not installed, so not audited")
    suite.extend(tests)
    return _count(suite, tests)


def _count(suite: ET.Element, tests: Sequence[ET.Element]) -> ET.Element:
    suite.set("tests", str(len(tests)))
    suite.set("failures", str(sum(test.find("failure") is not None for test in tests)))
    suite.set("errors", "0")
    suite.set("skipped", str(sum(test.find("skipped") is not None for test in tests)))
    return suite


def _what(finding: Finding) -> str:
    return f"{finding.output or finding.operation} {finding.verdict}"


def _told(run: Run, finding: Finding) -> str:
    parts = [f"{_what(finding)}{', known' if finding.known else ''}: {numbers(finding)}"]
    parts += [text for text in (finding.note, finding.explanation, finding.thread) if text]
    parts.append(run.command(finding))
    if finding.smallest:
        parts.append(f"smallest case that shows it: {finding.smallest}")
    return "\n  ".join(parts)


def _plain(text: str) -> str:
    """Leave out what XML 1.0 cannot hold."""
    return _NOT_XML.sub("", text)
