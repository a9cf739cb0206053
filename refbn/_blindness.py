"""What of an upstream gradient standardization lets pass, as a tool for anyone's network."""

from __future__ import annotations

from typing import Any

import numpy as np

from refbn import _geometry, _validate
from refbn._types import Blindness, Saved

__all__ = ["blindness"]


def blindness(saved: Saved, dy: Any) -> Blindness:
    """Split the gradient that reaches x̂ into what standardization blocks and what it passes.

    Parameters
    ----------
    saved : Saved
        Of `forward`, `inference`, or one of batch norm's relatives.
    dy : array, x's shape
        The upstream gradient, of y.

    Returns
    -------
    Blindness
        blocked and passed of x's shape, fraction of the groups' shape (batch norm: (C,)), in binary64; and total.

    Raises
    ------
    RefbnError
        C1, C4, C8.

    Notes
    -----
    The gradient that reaches x̂ is g = γ·dy, element by element. x receives r·P g (`refbn.reference.project`), so

    * *passed* is P g, correctly rounded: dx = r·passed,
    * *blocked* is g − P g, correctly rounded: the mean of g, and 1 − κ of its part along x̂, κ = ε/(v+ε). At ε = 0 it is
      the orthogonal projection on span{1, x̂}, so that passed and blocked are orthogonal,
    * *fraction* is ‖blocked‖²/‖g‖² in each group, and *total* that of all groups together; NaN where g is 0.

    For a g without any preferred direction 2/m is to be expected; 1 says that x will not learn from this batch. With
    frozen statistics nothing is blocked. Theorems: Zhou et al., "Batch Normalization Is Blind to the First and
    Second Derivatives of the Loss" (2022).

    Examples
    --------
    >>> import numpy as np, refbn
    >>> x = np.random.default_rng(0).standard_normal((16, 3))
    >>> fwd = refbn.forward(x, eps=0.0)
    >>> refbn.blindness(fwd.saved, 2 * fwd.y + 1).total > 1 - 1e-15  # the gradient of Σ (y² + y)
    True
    """
    saved = _validate.saved(saved)
    dy = _geometry.native(_validate.tensor(dy, "dy", saved.geometry.shape))

    from refbn.backends.normalization import split_gradient  # not before it is wanted: it loads the oracle

    passed, blocked, g = split_gradient(saved, dy)
    axes = saved.geometry.reduced_axes
    shape = saved.geometry.split

    def square(u: Any) -> Any:
        return np.square(u.reshape(shape)).sum(axis=axes)

    with np.errstate(invalid="ignore", divide="ignore"):
        blocked_squares, squares = square(blocked), square(g)
        fraction = blocked_squares / squares
        total = float(blocked_squares.sum() / squares.sum())
    return Blindness(blocked, passed, fraction, total)
