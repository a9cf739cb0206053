"""Deviations that are known and accepted, from ``known_deviations.toml`` or a user's own file.

A finding that an entry matches stays what it is, gets `Finding.known` and does not make an audit fail. An entry whose
framework and version were audited, and whose operation, family and case were asked, but that matches no finding, is
*gone*: the deviation no longer shows, and the entry should be taken out.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

from refbn._errors import DomainError
from refbn.audit.adapters._protocol import OPERATIONS
from refbn.audit.cases import FAMILIES
from refbn.audit.diagnosis import OFF
from refbn.audit.runner import Finding

__all__ = ["Deviation", "gone", "mark", "read", "shipped"]


@dataclass(frozen=True, slots=True)
class Deviation:
    """One accepted deviation; all but the version are shell patterns or plain text.

    Attributes
    ----------
    framework : str
        The adapter's name.
    reason : str
        Why it is accepted.
    version : str
        Specifiers of the versions in which it is known (PEP 440); empty for all.
    operation, family, output, explanation, case : str
        Patterns of the finding's fields.
    thread : str
        The address of a public thread.
    """

    framework: str
    reason: str
    version: str = ""
    operation: str = "*"
    family: str = "*"
    output: str = "*"
    explanation: str = "*"
    case: str = "*"
    thread: str = ""

    def concerns(self, finding: Finding) -> bool:
        """Whether the finding, right or wrong, is of what the entry speaks of."""
        return (
            fnmatchcase(finding.framework, self.framework)
            and fnmatchcase(finding.operation, self.operation)
            and fnmatchcase(finding.family, self.family)
            and (fnmatchcase(finding.output, self.output) or not finding.output)
            and fnmatchcase(finding.case, self.case)
            and _contains(self.version, finding.version)
        )

    def accepts(self, finding: Finding) -> bool:
        """Whether the finding is off, and is what the entry describes."""
        return finding.verdict in OFF and self.concerns(finding) and fnmatchcase(finding.explanation, self.explanation)

    def __str__(self) -> str:
        parts = [
            f"{f.name} {value!r}" for f in dataclasses.fields(self) if (value := getattr(self, f.name)) != f.default
        ]
        return ", ".join(parts)


def _contains(specifiers: str, version: str) -> bool:
    if not specifiers:
        return True
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        return SpecifierSet(specifiers, prereleases=True).contains(Version(version))
    except InvalidVersion:  # a framework that numbers its versions in its own way is never excluded nor included
        return False


_FIELDS = tuple(f.name for f in dataclasses.fields(Deviation))
_REQUIRED = tuple(f.name for f in dataclasses.fields(Deviation) if f.default is dataclasses.MISSING)


def shipped() -> tuple[Deviation, ...]:
    """Return the deviations that come with refbn."""
    text = resources.files("refbn.audit").joinpath("known_deviations.toml").read_text(encoding="utf-8")
    return _parse(text, "known_deviations.toml")


def read(path: Path) -> tuple[Deviation, ...]:
    """Read a user's file.

    Raises
    ------
    DomainError
        If the file cannot be read, is no TOML, or an entry is not as `Deviation` describes; the message names the file,
        the entry and the field, or the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DomainError(f"known: {path}: cannot be read: {error}", argument="known") from error
    return _parse(text, str(path))


def _parse(text: str, name: str) -> tuple[Deviation, ...]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:  # its message names the line
        raise DomainError(f"known: {name}: no TOML: {error}", argument="known") from error
    entries = document.pop("deviation", [])
    if document:
        raise DomainError(
            f"known: {name}: key {next(iter(document))!r}, expected [[deviation]] alone", argument="known"
        )
    if not isinstance(entries, list):
        raise DomainError(f"known: {name}: deviation is no list of tables, expected [[deviation]]", argument="known")
    return tuple(_entry(entry, f"known: {name}: deviation {place}") for place, entry in enumerate(entries, start=1))


def _entry(entry: Any, where: str) -> Deviation:
    def bad(what: str) -> DomainError:
        return DomainError(f"{where}: {what}", argument="known")

    if not isinstance(entry, dict):
        raise bad(f"{entry!r}, expected a table")
    for key, value in entry.items():
        if key not in _FIELDS:
            raise bad(f"key {key!r}, expected one of {', '.join(_FIELDS)}")
        if not isinstance(value, str):
            raise bad(f"{key} is {value!r}, expected a string")
    for key in _REQUIRED:
        if not entry.get(key, "").strip():
            raise bad(f"{key} is missing or empty, expected some text")
    for key, words in (("operation", tuple(OPERATIONS)), ("family", FAMILIES)):
        pattern = entry.get(key, "*")
        if not any(fnmatchcase(word, pattern) for word in words):
            raise bad(f"{key} is {pattern!r}, which matches none of {', '.join(words)}")
    if entry.get("version"):
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        try:
            SpecifierSet(entry["version"])
        except InvalidSpecifier:
            raise bad(f"version is {entry['version']!r}, expected specifiers such as '>=2.13,<2.14'") from None
    if entry.get("thread") and not entry["thread"].startswith(("https://", "http://")):
        raise bad(f"thread is {entry['thread']!r}, expected an address")
    return Deviation(**entry)


def mark(findings: Iterable[Finding], deviations: Sequence[Deviation]) -> list[Finding]:
    """Return the findings, those that an entry accepts as known and with its thread if they have none."""
    marked = []
    for finding in findings:
        accepting = next((d for d in deviations if d.accepts(finding)), None)
        if accepting is not None:
            finding = dataclasses.replace(finding, known=True, thread=finding.thread or accepting.thread)
        marked.append(finding)
    return marked


def gone(findings: Sequence[Finding], deviations: Iterable[Deviation], partly: Collection[str] = ()) -> list[Deviation]:
    """Return the entries of which a run has asked, and that match nothing any more.

    Of a framework that was asked only a part of the cases, by its name in `partly`, nothing is said: what it was not
    asked may still show it.
    """
    return [
        deviation
        for deviation in deviations
        if any(f.verdict != "unsupported" and f.framework not in partly and deviation.concerns(f) for f in findings)
        and not any(deviation.accepts(f) for f in findings)
    ]
