"""What the frameworks that are installed return where the exact gradient is zero or tiny, through the audit's adapters.

A framework that is not installed is left out and told as such; each is imported when it is asked for the first time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from refbn.audit import adapters
from refbn.audit.adapters._protocol import Adapter, Inputs, Unsupported
from validation.studies import style

__all__ = ["DTYPES", "FRAMEWORKS", "LOOKS", "OURS", "ZERO", "dx", "installed", "label", "show_zero", "told"]

Array = npt.NDArray[Any]

OURS = "refbn-native"
FRAMEWORKS = {
    "torch": "PyTorch",
    "jax": "JAX, two-pass variance",
    "flax-linen": "Flax, one-pass variance",
    OURS: "refbn",
}
"""Adapters and what they are called here."""
DTYPES = {"binary32": np.float32, "binary64": np.float64}
LOOKS: dict[str, dict[str, Any]] = {
    "torch": {"color": style.CYCLE[1], "marker": "s"},
    "jax": {"color": style.CYCLE[2], "marker": "^", "zorder": 3},  # in front of Flax, which agrees with it for the most
    "flax-linen": {"color": style.CYCLE[3], "marker": "D", "linewidth": 3.2, "markersize": 8},
    OURS: {"color": style.CYCLE[0], "marker": "o"},
}
"""How each is drawn."""
ZERO = 1e-19
"""Where a logarithmic axis shows an exact zero."""


def installed(names: Iterable[str] = FRAMEWORKS) -> tuple[list[Adapter], list[str]]:
    """Return the adapters of the frameworks that are installed, set to one thread, and the names of the others."""
    there, absent = [], []
    for name in names:
        (adapter,) = adapters.load(name)
        if adapter.version() is None:
            absent.append(name)
            continue
        with contextlib.suppress(Unsupported):
            adapter.set_threads(1)  # the sums of some depend on it
        there.append(adapter)
    return there, absent


def dx(adapter: Adapter, x: Array, gamma: Array, dy: Array, eps: float) -> Array:
    """Return a framework's gradient on x, of shape (m, C), with statistics of x, for the upstream gradient dy."""
    tensor, vector = np.zeros_like(x), np.zeros_like(gamma)
    tensors = dict.fromkeys(("w", "x_dot"), tensor)
    vectors = dict.fromkeys(
        ("beta", "gamma_dot", "beta_dot", "mean", "var", "mean_dot", "var_dot", "running_mean", "running_var"), vector
    )
    inputs = Inputs(x=x, gamma=gamma, dy=dy, eps=eps, momentum=None, **tensors, **vectors)
    return np.asarray(adapter.run("vjp", inputs)["dx"])


def label(name: str, dtype: str) -> str:
    """Return how a framework and a format stand in tables."""
    return f"{FRAMEWORKS[name]}, {dtype}"


def told(there: Iterable[Adapter], absent: Iterable[str]) -> dict[str, str]:
    """Return version or "not installed" by framework."""
    return {a.name: str(a.version()) for a in there} | dict.fromkeys(absent, "not installed")


def show_zero(axes: Any, top: float) -> None:
    """Make the vertical axis logarithmic, with a place of its own for exact zeros."""
    axes.set_yscale("log")
    axes.set_ylim(ZERO / 4, top)
    decades = [10.0**k for k in range(-16, int(np.log10(top)) + 1, 4)]
    axes.set_yticks([ZERO, *decades], ["exactly 0", *(f"$10^{{{int(np.log10(d))}}}$" for d in decades)])
    axes.minorticks_off()
    axes.axhline(ZERO * 20, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)))
