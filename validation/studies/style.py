"""The look that all figures share; the only module of the studies that imports matplotlib."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "CYCLE",
    "DPI",
    "MARKERS",
    "NAMES",
    "WIDTH",
    "blank",
    "figure",
    "letter",
    "look",
    "of",
    "outlined",
    "save",
]

WIDTH = 8.0
"""Inches; with `DPI` 1200 pixels, of which a README shows 800."""
DPI = 150

# Okabe and Ito, "Color Universal Design" (2008): told apart with any colour vision. Yellow is left out: on white it is
# too faint for a line.
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")

COLOURS = dict(zip(("BN", "none", "LN", "GN", "IN", "BRN", "WS"), CYCLE, strict=True))
"""The colour of each kind of normalization, the same in every figure."""
MARKERS = dict(zip(COLOURS, ("o", "s", "^", "D", "v", "P", "X"), strict=True))
"""And its marker, for those who see no colours."""
NAMES = {
    "BN": "batch norm",
    "none": "no normalization",
    "LN": "layer norm",
    "GN": "group norm",
    "IN": "instance norm",
    "BRN": "batch renormalization",
    "WS": "weight standardization",
}

_LOOK = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that figures are the same everywhere
    "axes.prop_cycle": mpl.cycler(color=CYCLE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "image.cmap": "viridis",
}


def look() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which everything is drawn alike, whatever the user's own settings; studies run inside it."""
    defaults = {key: value for key, value in mpl.rcParamsDefault.items() if key != "backend"}
    return mpl.rc_context(defaults | _LOOK)


def figure(rows: int = 1, columns: int = 1, *, height: float | None = None, **options: Any) -> tuple[Figure, Any]:
    """Return a figure of the common width, and its axes as `Figure.subplots` returns them.

    Parameters
    ----------
    rows, columns : int
        Of axes.
    height : float, optional
        Inches; 3.2 for each row if left out.
    **options
        For `Figure.subplots`.
    """
    made = blank(3.2 * rows if height is None else height)
    return made, made.subplots(rows, columns, **options)


def blank(height: float) -> Figure:
    """Return a figure of the common width without axes, to be divided by `Figure.subfigures`."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def letter(axes: Any) -> None:
    """Write (a), (b), … above the upper left corner of each axes, before its title."""
    for place, one in enumerate(np.ravel(axes)):
        title = one.get_title(loc="left") or one.get_title()
        one.set_title("")
        one.set_title(f"({chr(ord('a') + place)}) {title}".rstrip(), loc="left")


def of(kind: str, **options: Any) -> dict[str, Any]:
    """Return colour, marker and label of a kind of normalization, for `Axes.plot` and the like."""
    return {"color": COLOURS[kind], "marker": MARKERS[kind], "label": NAMES[kind], **options}


def outlined(axes: Any, x: float, y: float, text: str, **options: Any) -> None:
    """Write text in the middle of a place where points lie, with a white edge."""
    edge = [patheffects.withStroke(linewidth=2, foreground="white")]
    axes.text(x, y, text, **{"ha": "center", "va": "center", "fontweight": "bold", "path_effects": edge, **options})


def save(made: Figure, path: Path) -> None:
    """Write a PNG; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, dpi=DPI, metadata={"Software": None})
