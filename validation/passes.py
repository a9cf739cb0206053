"""Run every pass on a batch of cases: through a backend, through the oracle unrounded, through the stated bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refbn import backends, exact, reference
from refbn._formats import load
from refbn._types import Array
from refbn.exact import ExactArray
from validation.cases import Batch
from validation.formulas import OPERATIONS, has_value

__all__ = ["TENSORS", "Results", "bound_all", "derivative_arguments", "exact_all", "is_frozen", "run_all"]

TENSORS = ("y", "dx", "ddy", "y_dot")
"""The outputs of x's shape; all others have one number a channel."""

Results = dict[str, dict[str, Array]]
"""By operation and output; tensors (G, m), the others (G,)."""


def derivative_arguments(a: dict[str, Array]) -> dict[str, tuple[Array, ...]]:
    """Return what each derivative pass takes after the state, x and gamma; directions serve as cotangents dd… too."""
    statistics = (a["mean_dot"], a["var_dot"])
    parameters = (a["gamma_dot"], a["beta_dot"])
    direction, frozen_direction = (a["x_dot"], *parameters), (a["x_dot"], *statistics, *parameters)
    return {
        "backward": (a["dy"],),
        "jvp": direction,
        "double_backward": (a["dy"], *direction),
        "hvp": (a["dy"], *direction[:-1]),
        "inference_backward": (a["dy"],),
        "inference_jvp": frozen_direction,
        "inference_double_backward": (a["dy"], *frozen_direction),
        "inference_hvp": (a["dy"], *frozen_direction[:-1]),
    }


def is_frozen(operation: str) -> bool:
    return operation.startswith("inference")


def run_all(backend: str, batch: Batch, dtype: npt.DTypeLike | None = None) -> Results:
    """Return every output of every pass of a backend, through the backends' contract.

    Parameters
    ----------
    backend : str
        Its name in `refbn.backends.TABLE`.
    batch : Batch
        The cases.
    dtype : dtype, optional
        The format of the outputs; that of the cases by default.
    """
    kernels: Any = backends.load(backend)
    a = batch.arrays
    x, gamma, beta = a["x"], a["gamma"], a["beta"]
    target = np.dtype(dtype or batch.format.dtype)
    results = {
        operation: {name: np.empty(x.shape if name in TENSORS else x.shape[:1], target) for name in outputs}
        for operation, outputs in OPERATIONS.items()
    }
    states = {
        False: kernels.forward(x, gamma, beta, batch.eps, **results["forward"]),
        True: kernels.inference(x, a["mean"], a["var"], gamma, beta, batch.eps, **results["inference"]),
    }
    for operation, arguments in derivative_arguments(a).items():
        getattr(kernels, operation)(states[is_frozen(operation)], x, gamma, *arguments, **results[operation])
    return results


def exact_all(batch: Batch) -> dict[str, dict[str, tuple[Array, Array]]]:
    """Return the oracle's values as pairs hi + lo of binary64 numbers, to 106 bits; NaN where none exists (rule R2)."""
    a = batch.arrays
    x, gamma, beta = a["x"], a["gamma"], a["beta"]
    statistics = (a["mean"], a["var"])
    # Where q is 0 the oracle refuses; any other eps will do there, for what depends on eps has no value.
    missing = {False: degenerate(batch), True: frozen_degenerate(batch)}
    eps = {frozen: np.where(missing[frozen], 1.0, batch.eps) for frozen in missing}
    values: dict[str, Any] = {
        "forward": exact.forward(x, gamma, beta, eps[False]),
        "inference": exact.inference(x, *statistics, gamma, beta, eps[True]),
    }
    for operation, arguments in derivative_arguments(a).items():
        frozen = is_frozen(operation)
        given = (x, *statistics, gamma, eps[True]) if frozen else (x, gamma, eps[False])
        values[operation] = getattr(exact, operation)(*given, *arguments)
    pairs: dict[str, dict[str, tuple[Array, Array]]] = {}
    for operation, outputs in OPERATIONS.items():
        value = values[operation]
        pairs[operation] = {}
        for name in outputs:
            hi, lo = (value if isinstance(value, ExactArray) else getattr(value, name)).pair()
            if not has_value(name):
                hi[missing[is_frozen(operation)]] = np.nan
            pairs[operation][name] = hi, lo
    return pairs


def bound_all(batch: Batch) -> Results:
    """Return the textbook's stated error bounds."""
    a = {name: load(array) for name, array in batch.arrays.items()}
    x, gamma, beta = a["x"], a["gamma"], a["beta"]
    frozen = (x, a["mean"], a["var"], gamma, beta)
    bounds = {
        "forward": reference.bounds.forward(x, gamma, beta, batch.eps),
        "inference": reference.bounds.inference(*frozen, batch.eps),
    }
    stats: dict[bool, Any] = {
        False: reference.forward(x, gamma, beta, batch.eps).stats,
        True: reference.inference(*frozen, batch.eps).stats,
    }
    for operation, arguments in derivative_arguments(a).items():
        state = stats[is_frozen(operation)]
        bounds[operation] = getattr(reference.bounds, operation)(state, gamma, *arguments)
    return bounds


def degenerate(batch: Batch) -> npt.NDArray[np.bool_]:
    """Tell which channels have var(x) + eps = 0, decided by the values themselves."""
    x = load(batch.arrays["x"])
    return np.asarray((x == x[:, :1]).all(axis=1) & (batch.eps == 0))


def frozen_degenerate(batch: Batch) -> npt.NDArray[np.bool_]:
    """Tell which channels have a given var + eps = 0."""
    return np.asarray((load(batch.arrays["var"]) == 0) & (batch.eps == 0))
