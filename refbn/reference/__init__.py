"""The textbook: every pass of batch normalization in NumPy, derived where it is computed.

Read the docstrings in this order: `statistics`, `project`, `forward`, `jvp`, `backward`, `double_backward`,
`hvp`; then `inference` and its relatives, `normalize` and its own (layer, group and instance norm), `jacobian`,
`hessian`, `taylor`; last `bounds`, which proves how far the numbers of batch norm may be off.

**Arrays.** A tensor has the shape (G, m): G channels, and m elements that each channel's statistics run over. A vector
has the shape (G,). Everything is binary64. The passes that are analytic in their inputs take complex arrays as
well, so that ``f(x + ih).imag / h`` differentiates them to the last digit.

**Notation**, in one channel with elements x = (x₁ … x_m)::

    mean(u) = Σ u / m       ⟨u, w⟩ = Σ u·w       products of tensors are elementwise

    μ  mean        v  var (biased)     ε  eps        q = v + ε        s = √q        κ = ε/q
    r = 1/s  invstd       d = x − μ       x̂ = d·r  xhat       y = γ·x̂ + β

    ẋ  x_dot: a tangent (direction) of x            dy, dx: cotangents (gradients) of y, x
    ddx: a cotangent of dx                          u, g: any two tensors, in second-order formulas ẋ (or ddx), dy

**Every derivation takes the same four steps.**

1. *Push a tangent forward.* Let the inputs move with velocities ẋ, γ̇, β̇ and find the velocity of the output.
2. *Substitute* it into ⟨dy, ẏ⟩ = ⟨dx, ẋ⟩ + …, which defines the gradients: both sides are the speed at which
   the loss changes.
3. *Rearrange* until each velocity stands alone, on the right of an inner product.
4. *Read off the adjoint*: what stands on its left is the gradient.

**Numbers.** Each equation has a label such as (B3), defined once at the start of a docstring line and cited by
every line of Python, C and Numba that computes it. `validation.proofs` proves each one symbolically.
"""

from __future__ import annotations

from refbn.reference import bounds
from refbn.reference.backward import Backward, backward
from refbn.reference.dense import Hessian, Jacobian, hessian, jacobian
from refbn.reference.forward import Forward, forward, jvp
from refbn.reference.frozen import (
    Frozen,
    Inference,
    InferenceBackward,
    InferenceDoubleBackward,
    inference,
    inference_backward,
    inference_double_backward,
    inference_hvp,
    inference_jvp,
)
from refbn.reference.normalization import (
    Affine,
    Terms,
    normalize,
    normalize_backward,
    normalize_hvp,
    normalize_jvp,
)
from refbn.reference.operator import project, spectrum
from refbn.reference.second_order import DoubleBackward, curvature, double_backward, hvp
from refbn.reference.statistics import Running, Statistics, running_update, statistics, unbiased_var
from refbn.reference.taylor import taylor

__all__ = [
    "Affine",
    "Backward",
    "DoubleBackward",
    "Forward",
    "Frozen",
    "Hessian",
    "Inference",
    "InferenceBackward",
    "InferenceDoubleBackward",
    "Jacobian",
    "Running",
    "Statistics",
    "Terms",
    "backward",
    "bounds",
    "curvature",
    "double_backward",
    "forward",
    "hessian",
    "hvp",
    "inference",
    "inference_backward",
    "inference_double_backward",
    "inference_hvp",
    "inference_jvp",
    "jacobian",
    "jvp",
    "normalize",
    "normalize_backward",
    "normalize_hvp",
    "normalize_jvp",
    "project",
    "running_update",
    "spectrum",
    "statistics",
    "taylor",
    "unbiased_var",
]
