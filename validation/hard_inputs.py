"""What hard inputs cost the native backend: ``python -m validation.hard_inputs``.

A ladder of arithmetics is fast where its first rung decides. Here are the inputs where it does not: ties, zeros,
cancellation, exponents that overflow or vanish on the way. The time of forward, backward and double backward per
element, results written into given arrays, is set against that of normal data of the same shape and format, timed in
turn with them; medians.

Memory is measured in a process of its own for each figure: the peak of its resident memory during one call, less what
was resident before it. Inputs and outputs were written before, so they do not count. Linux only, and to some pages.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import refbn
from refbn._formats import BFLOAT16, BINARY16, BINARY32, BINARY64, FORMATS, Format
from refbn._types import Array
from validation import report
from validation.cases import finite

__all__ = ["FAMILIES", "PASSES", "Problem", "draw", "extra_memory", "main", "seconds"]

PASSES = ("forward", "backward", "double_backward")
EASY = "normal"

Doubles = npt.NDArray[np.float64]
Drawn = dict[str, Any]
"""x, dy, ddx of shape (C, m), gamma, beta, ddgamma, ddbeta of shape (C,) in binary64; eps."""


def _constant_x(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    a["x"] = np.broadcast_to(a["x"][:, :1], a["x"].shape)


def _constant_dy(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    a["dy"] = np.broadcast_to(a["dy"][:, :1], a["dy"].shape)


def _constant_both(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    _constant_x(rng, form, a)
    _constant_dy(rng, form, a)


def _zero_x(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    a["x"] = np.zeros_like(a["x"])


def _zero_dy(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    a["dy"] = np.zeros_like(a["dy"])


def _half_zeros(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    for key in ("x", "dy", "ddx"):
        a[key] = np.maximum(a[key], 0.0)


def _signs(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    """Set x = ±1, equally often, and eps = 0: x̂ = x."""
    channels, m = a["x"].shape
    a["x"] = rng.permuted(np.broadcast_to(np.where(np.arange(m) % 2 == 0, 1.0, -1.0), (channels, m)), axis=1)
    a["eps"] = 0.0


def _exactly_xhat(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    _signs(rng, form, a)
    a["dy"], a["ddx"] = 3.0 * a["x"], -2.0 * a["x"]


def _along_xhat(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    a["x"] = finite(a["x"], form).astype(np.float64)
    a["dy"], a["eps"] = 2.0 * a["x"], 1e-30


def _integers(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    for key in ("x", "dy", "ddx"):
        a[key] = rng.integers(-8, 9, a[key].shape).astype(np.float64)
    for key in ("gamma", "beta", "ddgamma", "ddbeta"):
        a[key] = rng.integers(-4, 5, a[key].shape).astype(np.float64)


def _outlier(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    a["x"][:, 0] = 2.0 ** (form.emax // 4)


def _offset(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    a["x"] += 10.0 ** {BINARY64: 15, BINARY32: 7, BINARY16: 3, BFLOAT16: 2}[form]


def _huge(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    a["x"] = rng.uniform(-1.0, 1.0, a["x"].shape) * (1e300 if form is BINARY64 else form.max)


def _subnormal(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    reach = 2 ** (form.precision - 1)
    a["x"] = rng.integers(-reach, reach, a["x"].shape) * form.tiny


def _subnormal_alone(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    _subnormal(rng, form, a)
    a["eps"] = 0.0


def _cancelling(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    for key in ("x", "dy", "ddx"):
        half = a[key][:, : a[key].shape[1] // 2] * 2.0 ** min(40, form.precision - 1)
        half[:, :2] = 0.0
        pairs = np.concatenate((half, -half), axis=1)
        pairs[:, :2] = a[key][:, :2]  # all that is left of the sum
        a[key] = pairs


def _ties(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    """Set y = beta ± half an ulp; all else is a number of the format or a tie."""
    _signs(rng, form, a)
    channels = a["x"].shape[0]
    a["beta"] = 1.0 + rng.integers(0, 2 ** (form.precision - 2), channels) * 2.0 ** (1 - form.precision)
    a["gamma"] = np.full(channels, 2.0**-form.precision)
    a["dy"] = rng.integers(-8, 9, a["x"].shape).astype(np.float64)
    a["ddx"] = rng.integers(-8, 9, a["x"].shape).astype(np.float64)


def _near_ties(rng: np.random.Generator, form: Format, a: Drawn) -> None:
    _ties(rng, form, a)
    a["eps"] = 1e-300


FAMILIES: dict[str, Callable[[np.random.Generator, Format, Drawn], None]] = {
    EASY: lambda rng, form, a: None,
    "x and dy ≥ 0, half of them 0": _half_zeros,
    "x = 0": _zero_x,
    "dy = 0": _zero_dy,
    "constant channels": _constant_x,
    "constant dy": _constant_dy,
    "constant x and dy": _constant_both,
    "dy and ddx ∝ x̂ = ±1, eps 0": _exactly_xhat,
    "dy ∝ x, eps 1e-30": _along_xhat,
    "integers": _integers,
    "one huge outlier": _outlier,
    "offset 1e15 (f32: 1e7)": _offset,
    "±1e300 (f32: ±3e38)": _huge,
    "subnormal": _subnormal,
    "subnormal, eps 0": _subnormal_alone,
    "cancelling sums": _cancelling,
    "ties (q = 1, eps 0)": _ties,
    "near-ties (eps 1e-300)": _near_ties,
}
"""How each changes the easy data."""
IN_MEMORY = (EASY, "constant channels", "±1e300 (f32: ±3e38)", "near-ties (eps 1e-300)")
"""Whose memory is measured."""


class Problem:
    """A family's tensors in the format, outputs allocated and written, ready to be timed."""

    def __init__(self, family: str, form: Format, shape: Sequence[int], backend: str = "native", seed: int = 0) -> None:
        a = draw(family, form, shape, seed)
        self._a, self._options = a, {"eps": a.pop("eps"), "backend": backend}
        like, vector = a["x"], a["gamma"]
        self._out = {key: np.full(like.shape, 7).astype(like.dtype) for key in ("y", "dx", "ddy")}
        self._out |= {
            key: np.full(vector.shape, 7).astype(like.dtype) for key in ("mean", "var", "invstd", "dgamma", "dbeta")
        }
        self.saved = self.forward().saved

    def forward(self) -> refbn.Forward:
        """Run it."""
        a = self._a
        return refbn.forward(a["x"], a["gamma"], a["beta"], out=self._some("y mean var invstd"), **self._options)

    def backward(self) -> refbn.Gradients:
        """Run it."""
        return refbn.backward(self.saved, self._a["dy"], out=self._some("dx dgamma dbeta"))

    def double_backward(self) -> refbn.DoubleBackward:
        """Run it."""
        a = self._a
        cotangents = (a["ddx"], a["ddgamma"], a["ddbeta"])
        return refbn.double_backward(self.saved, a["dy"], *cotangents, out=self._some("ddy dx dgamma"))

    def _some(self, keys: str) -> dict[str, Array]:
        return {key: self._out[key] for key in keys.split()}


def draw(family: str, form: Format, shape: Sequence[int], seed: int = 0) -> Drawn:
    """Draw tensors of shape (N, C, …) and vectors, in the format, and eps."""
    rng = np.random.default_rng((list(FAMILIES).index(family), seed))
    channels, m = shape[1], int(np.prod(shape)) // shape[1]
    a: Drawn = {key: rng.standard_normal((channels, m)) for key in ("x", "dy", "ddx")}
    a |= {key: rng.standard_normal(channels) for key in ("gamma", "beta", "ddgamma", "ddbeta")}
    a["eps"] = 1e-5
    FAMILIES[family](rng, form, a)
    for key, value in a.items():
        if key == "eps":
            continue
        rounded = finite(value, form)
        if rounded.ndim > 1:
            by_channel = rounded.reshape(channels, shape[0], *shape[2:])
            rounded = np.ascontiguousarray(np.moveaxis(by_channel, 0, 1))
        a[key] = rounded
    return a


def seconds(works: Sequence[Callable[[], Any]], runs: int, at_most: float) -> list[list[float]]:
    """Time calls in turn, so that what else the machine does befalls them alike.

    As often as asked, but no longer than some seconds once each was timed three times.
    """
    taken: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    while len(taken[0]) < runs and (len(taken[0]) < 3 or sum(map(sum, taken)) < at_most):
        for work, into in zip(works, taken, strict=True):
            start = time.perf_counter()
            work()
            into.append(time.perf_counter() - start)
    return taken


def _status(entry: str) -> int:
    """Return a memory figure of this process in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")) * 1024


_PR_SET_THP_DISABLE = 41  # of linux/prctl.h


def _huge_pages(allowed: bool) -> None:
    """Allow or forbid huge pages, one of which would count whole where a byte of it is touched."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_THP_DISABLE, int(not allowed), 0, 0, 0)


def _give_back() -> None:
    """Return to the system what was freed, lest a pass find it lying about."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def extra_memory(task: tuple[str, str, str, tuple[int, ...], int]) -> int | None:
    """Return the bytes that a pass holds at its peak beyond inputs and outputs; None if this cannot be told here.

    To be called in a fresh process: (family, format, pass, shape, threads).
    """
    family, short, which, shape, threads = task
    form = next(form for form in FORMATS if form.short == short)
    reset = Path("/proc/self/clear_refs")
    _huge_pages(False)
    with report.threads(threads):
        getattr(Problem(EASY, form, (2, 2, 4)), which)()  # everything is loaded
        problem = Problem(family, form, shape)
        _give_back()
        try:
            reset.write_text("5", encoding="ascii")  # the peak starts from here
        except OSError:
            return None
        before = _status("VmRSS")
        getattr(problem, which)()
        more = max(_status("VmHWM") - before, 0)
    _huge_pages(True)
    return more


def _memory(tasks: Sequence[tuple[str, str, str, tuple[int, ...], int]]) -> list[int | None]:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.map(extra_memory, tasks, chunksize=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the figures."""
    parser = report.parser(__doc__)
    parser.add_argument("--shape", type=int, nargs="+", default=[64, 64, 16, 16], help="N C …")
    parser.add_argument("--format", nargs="+", default=[BINARY32.short, BINARY64.short])
    parser.add_argument("--family", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="for one figure, once it was measured three times")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    shape = tuple(arguments.shape)
    elements = int(np.prod(shape))
    forms = [form for form in FORMATS if form.short in arguments.format]
    families = list(dict.fromkeys((EASY, *arguments.family)))
    figures: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for form in forms:
        entry = figures[form.short] = {}
        with report.threads(arguments.threads):
            easy = Problem(EASY, form, shape)
        for family in families:
            with report.threads(arguments.threads):
                problem = Problem(family, form, shape)
                entry[family] = {}
                for which in PASSES:
                    works = [getattr(some, which) for some in (easy, problem)]
                    normal, taken = seconds(works, arguments.runs, arguments.seconds)
                    entry[family][which] = {
                        "ns per element": statistics.median(taken) / elements * 1e9,
                        "times normal": statistics.median(taken) / statistics.median(normal),
                        "fastest, ns per element": min(taken) / elements * 1e9,
                        "runs": len(taken),
                    }
            print(f"{form.short} {family}", flush=True)
    tasks = [
        (family, form.short, which, shape, arguments.threads)
        for form in forms
        for family in IN_MEMORY
        if family in families
        for which in PASSES
    ]
    memory = _memory(tasks)
    columns = [f"{form.short} {which} {what}" for form in forms for which in PASSES for what in ("ns", "×")]
    report.show(
        f"Nanoseconds per element of {shape}, and times the normal data's",
        ("family", *columns),
        (
            (
                family,
                *(
                    figures[form.short][family][which][key]
                    for form in forms
                    for which in PASSES
                    for key in ("ns per element", "times normal")
                ),
            )
            for family in families
        ),
    )
    report.show(
        "Peak memory beyond inputs and outputs",
        ("family", "format", "pass", "MiB", "of one tensor"),
        (
            (family, short, which, "-" if more is None else more / 2**20, "-" if more is None else more / size)
            for (family, short, which, *_), more in zip(tasks, memory, strict=True)
            for size in [elements * next(form.dtype.itemsize for form in forms if form.short == short)]
        ),
    )
    report.write(
        "hard-inputs",
        arguments,
        {
            "versions": report.versions(),
            "shape": shape,
            "threads": arguments.threads if hasattr(refbn, "num_threads") else None,
            "times": figures,
            "bytes beyond inputs and outputs": [
                {"family": family, "format": short, "pass": which, "bytes": more}
                for (family, short, which, *_), more in zip(tasks, memory, strict=True)
            ],
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
