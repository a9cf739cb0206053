"""The ground truth for batch normalization: every pass, exact, and an audit of the frameworks.

>>> import numpy as np, refbn
>>> x = np.random.default_rng(0).standard_normal((8, 3, 5))
>>> fwd = refbn.forward(x)
>>> grads = refbn.backward(fwd.saved, dy=np.ones_like(x))
>>> bool((abs(grads.dx) < 1e-15).all())  # batch norm is blind to a constant upstream gradient
True

The passes: `forward`, `inference`, `backward`, `jvp`, `double_backward`, `hvp`, `taylor`, `jacobian`, `hessian`.
Its relatives, with the same passes: `layer_norm`, `group_norm`, `instance_norm`, `batch_renorm` (with
`renormalization`), `weight_standardization`. With running statistics: `BatchNorm`. What of a gradient standardization
blocks: `blindness`. On how many threads: `num_threads`. The derivations: ``help(refbn.reference)``.
"""

from refbn._api import backward, double_backward, forward, hessian, hvp, inference, jacobian, jvp, taylor
from refbn._blindness import blindness
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
from refbn._norms import (
    batch_renorm,
    group_norm,
    instance_norm,
    layer_norm,
    renormalization,
    weight_standardization,
)
from refbn._threads import get_num_threads, num_threads, set_num_threads
from refbn._types import (
    Blindness,
    DoubleBackward,
    Forward,
    Gradients,
    Hessian,
    Jacobian,
    Renormalization,
    Saved,
    SecondOrder,
)
from refbn.layer import BatchNorm

__version__ = "0.1.0"

__all__ = [
    "AxisError",
    "BackendError",
    "BatchNorm",
    "Blindness",
    "DomainError",
    "DoubleBackward",
    "DtypeError",
    "Forward",
    "Gradients",
    "Hessian",
    "Jacobian",
    "LayoutError",
    "RefbnError",
    "Renormalization",
    "Saved",
    "SavedError",
    "SecondOrder",
    "ShapeError",
    "backward",
    "batch_renorm",
    "blindness",
    "double_backward",
    "forward",
    "get_num_threads",
    "group_norm",
    "hessian",
    "hvp",
    "inference",
    "instance_norm",
    "jacobian",
    "jvp",
    "layer_norm",
    "num_threads",
    "renormalization",
    "set_num_threads",
    "taylor",
    "weight_standardization",
]
