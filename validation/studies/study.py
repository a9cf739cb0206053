"""What a study is: a claim, a function that measures, and what it found."""

from __future__ import annotations

import math
import statistics
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.progress import Progress

__all__ = ["VERDICTS", "Context", "Finding", "Measured", "Study", "Verdict", "jsonable"]

Verdict = Literal["confirmed", "partly", "not confirmed"]
VERDICTS: tuple[Verdict, ...] = ("confirmed", "partly", "not confirmed")

_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Measured:
    """One row of a study's numbers.

    Parameters
    ----------
    label : str
        What was measured.
    values : tuple of float
        One for each seed, or a single one.
    unit : str, optional
        Left out for pure numbers.
    expected : str, optional
        What the claim leads one to expect, in words or figures.
    """

    label: str
    values: tuple[float, ...]
    unit: str = ""
    expected: str = ""

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"values of {self.label!r}: none, expected one for each seed or a single one")
        object.__setattr__(self, "values", tuple(float(value) for value in self.values))

    @property
    def mean(self) -> float:
        """The values' mean."""
        return math.fsum(self.values) / len(self.values)

    @property
    def spread(self) -> float:
        """The values' sample standard deviation; NaN for a single one."""
        if len(self.values) < 2:
            return math.nan
        return statistics.stdev(self.values) if all(map(math.isfinite, self.values)) else math.nan

    def __str__(self) -> str:
        spread = "" if math.isnan(self.spread) else f" ± {self.spread:.2g}"
        return f"{self.mean:.4g}{spread}{' ' if self.unit else ''}{self.unit}"


@dataclass(frozen=True)
class Finding:
    """What a study found.

    Parameters
    ----------
    verdict : {"confirmed", "partly", "not confirmed"}
        Computed from the numbers by a criterion that the study states.
    because : str
        One or two sentences with the decisive numbers.
    numbers : tuple of Measured
        All of them.
    figure : matplotlib.figure.Figure
        Made by `validation.studies.style.figure`.
    caption : str
        Tells what was found, numbers included, to one who reads nothing else.
    details : dict
        The data behind the figure; see `jsonable`.
    """

    verdict: Verdict
    because: str
    numbers: tuple[Measured, ...]
    figure: Figure
    caption: str
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict: {self.verdict!r}, expected one of {', '.join(VERDICTS)}")
        for name in ("because", "numbers", "caption"):
            if not getattr(self, name):
                raise ValueError(f"{name}: empty")

    def document(self) -> dict[str, Any]:
        """Return all but the figure, ready for JSON; it depends on the seeds alone."""
        return jsonable(
            {
                "verdict": self.verdict,
                "because": self.because,
                "caption": self.caption,
                "numbers": [
                    {
                        "label": row.label,
                        "values": row.values,
                        "mean": row.mean,
                        "spread": row.spread,
                        "unit": row.unit,
                        "expected": row.expected,
                    }
                    for row in self.numbers
                ],
                "details": self.details,
            }
        )


@dataclass(frozen=True)
class Context:
    """What a study is run with.

    Parameters
    ----------
    id : str
        The study's.
    seeds : tuple of int, optional
        One repetition for each.
    quick : bool, optional
        Whether some ten seconds are all there is: fewer steps, smaller networks.
    data : Path, optional
        Files of CIFAR-10 or MNIST, see `validation.studies.data.load`; without it scikit-learn's digits.
    shown : rich.progress.Progress, optional
        Where progress is shown; nowhere without it.
    """

    id: str
    seeds: tuple[int, ...] = tuple(range(5))
    quick: bool = False
    data: Path | None = None
    shown: Progress | None = field(default=None, repr=False, compare=False)

    def generator(self, seed: int, *more: int | str) -> np.random.Generator:
        """Return a generator whose stream belongs to this study, seed and further labels alone."""
        labels = (self.id, seed, *more)
        entropy = [zlib.crc32(label.encode()) if isinstance(label, str) else int(label) for label in labels]
        return np.random.default_rng(np.random.SeedSequence(entropy))

    def progress(self, iterable: Iterable[_Part], what: str, total: int | None = None) -> Iterator[_Part]:
        """Yield the parts, and show how many are done; calls may be nested."""
        if self.shown is None:
            yield from iterable
            return
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)
        bar = self.shown.add_task(what, total=total)
        try:
            for part in iterable:
                yield part
                self.shown.advance(bar)
        finally:
            self.shown.remove_task(bar)


@dataclass(frozen=True)
class Study:
    """A claim of a paper or a theorem, and the function that puts it to the test.

    Parameters
    ----------
    id : str
        Short, as in "Z1".
    title : str
        A few words.
    claim : str
        One sentence: what the source says.
    source : str
        As in "Zhou et al. 2022, Theorem 1".
    run : callable
        Measures and judges.
    """

    id: str
    title: str
    claim: str
    source: str
    run: Callable[[Context], Finding]


def jsonable(value: Any) -> Any:
    """Return what strict JSON can hold: arrays as lists, and numbers that are not finite as "inf", "-inf" or "nan".

    Raises
    ------
    TypeError
        If the value, or something in it, is neither a number, text, bool, None, array, sequence nor mapping.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): jsonable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} {value!r} cannot go into a JSON file")
