"""The oracle: every pass of every order, exact, and correct rounding of the results.

It shares no formula with the other backends. Inputs are read as the rational numbers that they are; `numbers` computes
with a + b·√q; `program` holds the definition of the forward pass, and nothing else about batch norm; `series`
and `tape` differentiate any program, elementwise and in reverse; `derive` joins them into derivatives of any order;
`rounding` decides every rounding exactly. `passes` has the public functions, which return `ExactArray`.
"""

from refbn.exact.arrays import ExactArray
from refbn.exact.derive import Derivatives, derivatives
from refbn.exact.numbers import Exact
from refbn.exact.passes import (
    DoubleBackward,
    Forward,
    FrozenDoubleBackward,
    FrozenGradients,
    Gradients,
    Inference,
    Moments,
    backward,
    composed,
    double_backward,
    forward,
    hvp,
    inference,
    inference_backward,
    inference_double_backward,
    inference_hvp,
    inference_jvp,
    jvp,
    moments,
    running_update,
    taylor,
)
from refbn.exact.program import Number
from refbn.exact.rounding import round_number
from refbn.exact.series import Series
from refbn.exact.tape import Var, gradient

__all__ = [
    "Derivatives",
    "DoubleBackward",
    "Exact",
    "ExactArray",
    "Forward",
    "FrozenDoubleBackward",
    "FrozenGradients",
    "Gradients",
    "Inference",
    "Moments",
    "Number",
    "Series",
    "Var",
    "backward",
    "composed",
    "derivatives",
    "double_backward",
    "forward",
    "gradient",
    "hvp",
    "inference",
    "inference_backward",
    "inference_double_backward",
    "inference_hvp",
    "inference_jvp",
    "jvp",
    "moments",
    "round_number",
    "running_update",
    "taylor",
]
