"""How long the oracle takes: 100 000 elements in one channel, and order 5 of 64 elements, rounding included.

Medians of processor seconds over ``--runs`` runs, with the textbook's on the same data beside them for scale.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from refbn import exact, reference
from refbn._types import Array
from validation.report import parser, show, versions, write

ONE, NIL = np.ones(1), np.zeros(1)


def oracle(x: Array, dy: Array, ddx: Array) -> None:
    """Forward, backward and double backward, every tensor rounded to x's format."""
    exact.forward(x, eps=1e-5).y.round(x.dtype)
    exact.backward(x, None, 1e-5, dy).dx.round(x.dtype)
    second = exact.double_backward(x, None, 1e-5, dy, ddx)
    second.dx.round(x.dtype)
    second.ddy.round(x.dtype)


def textbook(x: Array, dy: Array, ddx: Array) -> None:
    """The same passes in binary64."""
    x, dy, ddx = (a.astype(np.float64) for a in (x, dy, ddx))
    _, stats = reference.forward(x, ONE, NIL, 1e-5)
    reference.backward(stats, ONE, dy)
    reference.double_backward(stats, ONE, dy, ddx, NIL, NIL)


def series(*coefficients: Array) -> None:
    """Taylor mode."""
    for y in exact.taylor(coefficients):
        y.round(np.float64)


def composed(x: Array, w: Array, x_dot: Array) -> None:
    """The fifth derivative of a loss along a direction, and of its gradients."""
    for value in exact.composed(x, None, None, 1e-5, w, x_dot, order=5).values():
        value.round(np.float64)


def median_seconds(work: Callable[..., None], arrays: list[Array], runs: int) -> float:
    """Return the median processor time of a call."""
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        work(*arrays)
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def main() -> int:
    """Measure, print and write the figures."""
    arguments = parser(__doc__)
    arguments.add_argument("--runs", type=int, default=5)
    options = arguments.parse_args()
    rng = np.random.default_rng(0)
    jobs: list[tuple[str, str, Callable[..., None], list[Array]]] = []
    for dtype in ("float32", "float64"):
        arrays = [rng.standard_normal((1, 100_000)).astype(dtype) for _ in range(3)]
        jobs.append(("forward, backward and double backward of 100 000 elements", dtype, oracle, arrays))
        jobs.append(("the same in the textbook", dtype, textbook, arrays))
    short = [rng.standard_normal((1, 64)) for _ in range(6)]
    jobs.append(("Taylor series of order 5, 64 elements", "float64", series, short))
    jobs.append(("order 5 of a composed loss with its gradients, 64 elements", "float64", composed, short[:3]))
    figures = [(what, dtype, median_seconds(work, arrays, options.runs)) for what, dtype, work, arrays in jobs]
    show("Processor time of the oracle", ("what", "format", "median seconds"), figures)
    rows = [{"what": what, "dtype": dtype, "median": seconds} for what, dtype, seconds in figures]
    write("oracle-speed", options, {"versions": versions(), "runs": options.runs, "seconds": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
