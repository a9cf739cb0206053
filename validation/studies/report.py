"""All studies' newest results as one HTML page without scripts, that loads nothing: ``page.html`` filled in.

The look is that of the audit's page, whose style sheet it takes.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from validation.studies import MODULES
from validation.studies.study import VERDICTS, Measured

__all__ = ["NoResultsError", "Result", "newest", "page", "write"]

_TEMPLATE = Path(__file__).with_name("page.html")
_PARTS = {
    "What batch norm is blind to": ("ZE", "Zhou et al., Batch Normalization Is Blind to the First and Second "
    "Derivatives of the Loss (2022)"),
    "What batch norm is good for": ("B", "Bjorck et al., Understanding Batch Normalization (2018)"),
    "What it costs, and what else there is": ("U", "Uppal, Curse of Batch Normalization (2020)"),
}  # fmt: skip
"""Headings, the first letters of their studies, and the papers."""


class NoResultsError(FileNotFoundError):
    """A folder has no results of studies."""


@dataclass(frozen=True)
class Result:
    """What a run left in the folder: its JSON file's content, and its figure."""

    id: str
    document: dict[str, Any]
    figure: bytes

    @property
    def finding(self) -> dict[str, Any]:
        """Verdict, numbers and caption."""
        found: dict[str, Any] = self.document["finding"]
        return found

    @property
    def rows(self) -> list[Measured]:
        """The numbers."""
        return [
            Measured(row["label"], tuple(map(float, row["values"])), row["unit"], row["expected"])
            for row in self.finding["numbers"]
        ]

    @property
    def image(self) -> str:
        """The figure as an address."""
        return f"data:image/png;base64,{base64.b64encode(self.figure).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """The figure's width and height in pixels, from a PNG's first chunk."""
        return int.from_bytes(self.figure[16:20]), int.from_bytes(self.figure[20:24])


def newest(folder: Path, quick: bool = False) -> dict[str, Result]:
    """Return the newest result of each study that has one, in the studies' order.

    Raises
    ------
    NoResultsError
        If there is none.
    """
    found = {}
    for identity in MODULES:
        files = sorted(folder.glob(f"*-{identity}{'-quick' * quick}.json"))
        if files:
            figure = files[-1].with_suffix(".png")
            found[identity] = Result(identity, json.loads(files[-1].read_text(encoding="utf-8")), figure.read_bytes())
    if not found:
        raise NoResultsError(f"{folder}: no results{' of quick runs' * quick}")
    return found


def page(results: dict[str, Result], date: str) -> str:
    """Return the page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    parts = [
        (title, source, [result for result in results.values() if result.id[0] in letters])
        for title, (letters, source) in _PARTS.items()
    ]
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        date=date,
        style=_style(),
        results=results,
        parts=[part for part in parts if part[2]],
        counts=Counter(result.finding["verdict"] for result in results.values()),
        verdicts=dict(zip(VERDICTS, ("good", "lossy", "bad"), strict=True)),
        missing=[identity for identity in MODULES if identity not in results],
    )


def write(folder: Path, date: str, *, quick: bool = False) -> Path:
    """Write the page of the newest results in a folder into it, and return its path."""
    path = folder / f"{date}-studies{'-quick' * quick}.html"
    path.write_text(page(newest(folder, quick), date), encoding="utf-8")
    return path


def _style() -> str:
    """Return the style sheet of the audit's page."""
    template = resources.files("refbn.audit.report").joinpath("page.html").read_text(encoding="utf-8")
    found = re.search(r"<style>(.*?)</style>", template, re.DOTALL)
    assert found is not None
    return found[1]
