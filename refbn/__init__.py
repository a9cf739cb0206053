"""The ground truth for batch normalization: every pass, exact, and an audit of the frameworks.

>>> import numpy as np, refbn
>>> x = np.random.default_rng(0).standard_normal((8, 3, 5))
>>> fwd = refbn.forward(x)
>>> grads = refbn.backward(fwd.saved, dy=np.ones_like(x))
>>> bool((abs(grads.dx) < 1e-15).all())  # batch norm is blind to a constant upstream gradient
True

The passes: `forward`, `inference`, `backward`, `jvp`, `double_backward`, `hvp`, `taylor`, `jacobian`, `hessian`.
With running statistics: `BatchNorm`. On how many threads: `num_threads`. The derivations: ``help(refbn.reference)``.
"""

from refbn._api import backward, double_backward, forward, hessian, hvp, inference, jacobian, jvp, taylor
from refbn._errors import (
    AxisError,
    BackendError,
    DomainError,
    DtypeError,
    LayoutError,
    RefbnError,
    SavedError,
    ShapeError,
)
from refbn._threads import get_num_threads, num_threads, set_num_threads
from refbn._types import DoubleBackward, Forward, Gradients, Hessian, Jacobian, Saved, SecondOrder
from refbn.layer import BatchNorm

__version__ = "0.1.0"

__all__ = [
    "AxisError",
    "BackendError",
    "BatchNorm",
    "DomainError",
    "DoubleBackward",
    "DtypeError",
    "Forward",
    "Gradients",
    "Hessian",
    "Jacobian",
    "LayoutError",
    "RefbnError",
    "Saved",
    "SavedError",
    "SecondOrder",
    "ShapeError",
    "backward",
    "double_backward",
    "forward",
    "get_num_threads",
    "hessian",
    "hvp",
    "inference",
    "jacobian",
    "jvp",
    "num_threads",
    "set_num_threads",
    "taylor",
]
