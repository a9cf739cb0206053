"""What the public functions return: frozen records, and `Saved`, which carries a forward to its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from refbn._formats import Array
from refbn._geometry import Geometry

__all__ = [
    "Array",
    "Blindness",
    "DoubleBackward",
    "Forward",
    "Gradients",
    "Hessian",
    "Jacobian",
    "Renormalization",
    "Saved",
    "SecondOrder",
    "new_double_backward",
    "new_forward",
    "new_gradients",
    "new_saved",
    "new_second_order",
]

Fields = ParamSpec("Fields")
Record = TypeVar("Record")


@dataclass(frozen=True, eq=False)
class Saved:
    """What a forward hands to its derivative passes. Treat it as opaque, and its arrays as read-only.

    It refers to the caller's x, gamma, … and does not copy them: if they change, the derivatives are those of a
    function that was never evaluated.

    Attributes
    ----------
    x : ndarray
        The input, as `forward` or `inference` took it.
    gamma, beta : ndarray
        The affine parameters, shape (C,) (layer norm: of the features); ones and zeros if none were given.
    mean, var : ndarray or None
        The given statistics if `frozen`, else None.
    eps : float
        ε.
    frozen : bool
        Whether the statistics were given (`inference`) or computed from x (`forward`).
    dtype : dtype
        The format of results of x's shape.
    geometry : Geometry
        Which axes are normalized.
    backend : str
        The name of the backend that made it, and that its derivatives run on.
    state : object
        That backend's own.
    """

    x: Array
    gamma: Array
    beta: Array
    mean: Array | None
    var: Array | None
    eps: float
    frozen: bool
    dtype: np.dtype[Any]
    geometry: Geometry
    backend: str
    state: Any = field(repr=False)


@dataclass(frozen=True, eq=False)
class Forward:
    """Result of `forward` and `inference`, and of batch norm's relatives.

    Attributes
    ----------
    y : ndarray
        gamma·x̂ + beta, in x's shape and memory order.
    mean, var, invstd : ndarray, shape (C,)
        μ, v = mean((x−μ)²) (biased) and 1/√(v+ε); of relatives, in the shape of the groups that share statistics.
    saved : Saved
        For `backward`, `jvp`, `double_backward`, `hvp`, `blindness`, `jacobian` and `hessian`.
    """

    y: Array
    mean: Array
    var: Array
    invstd: Array
    saved: Saved


@dataclass(frozen=True, eq=False)
class Gradients:
    """Result of `backward`.

    Attributes
    ----------
    dx : ndarray
        Gradient on x, of x's shape.
    dgamma, dbeta : ndarray, shape (C,)
        Gradients on gamma and beta.
    dmean, dvar : ndarray, shape (C,), or None
        Gradients on frozen statistics; None for a `Saved` of `forward`, whose statistics are no inputs.
    """

    dx: Array
    dgamma: Array
    dbeta: Array
    dmean: Array | None = None
    dvar: Array | None = None


@dataclass(frozen=True, eq=False)
class DoubleBackward:
    """Result of `double_backward`: what reaches the inputs (dy, x, gamma, …) of `backward`.

    Attributes
    ----------
    ddy : ndarray
        Cotangent of dy, of x's shape.
    dx : ndarray
        Cotangent of x, of x's shape.
    dgamma : ndarray, shape (C,)
        Cotangent of gamma. (`backward` does not depend on beta.)
    dmean, dvar : ndarray, shape (C,), or None
        Cotangents of frozen statistics, as in `Gradients`.
    """

    ddy: Array
    dx: Array
    dgamma: Array
    dmean: Array | None = None
    dvar: Array | None = None


@dataclass(frozen=True, eq=False)
class SecondOrder(Gradients):
    """Result of `hvp`: the derivative of each of `backward`'s results along a direction, dy held fixed.

    The attributes are those of `Gradients`; dbeta is zero, since Σ dy moves with dy alone.
    """


@dataclass(frozen=True, eq=False)
class Jacobian:
    """Result of `jacobian`, dense.

    Attributes
    ----------
    dy_dx : ndarray, shape (*x.shape, *x.shape)
        The first half of the axes index y, the second x.
    dy_dgamma, dy_dbeta : ndarray, shape (*x.shape, C)
        Derivatives to the affine parameters.
    """

    dy_dx: Array
    dy_dgamma: Array
    dy_dbeta: Array


@dataclass(frozen=True, eq=False)
class Hessian:
    """Result of `hessian`: the dense second derivatives of ⟨dy, y⟩. Blocks that are not listed are zero.

    Attributes
    ----------
    dx_dx : ndarray, shape (*x.shape, *x.shape)
        Symmetric under exchange of the two halves of the axes.
    dx_dgamma : ndarray, shape (*x.shape, C)
        Mixed derivatives.
    """

    dx_dx: Array
    dx_dgamma: Array


@dataclass(frozen=True, eq=False)
class Blindness:
    """Result of `blindness`.

    Attributes
    ----------
    blocked, passed : ndarray of binary64, x's shape
        g − P g and P g, of the gradient g = γ·dy that reaches x̂.
    fraction : ndarray of binary64
        ‖blocked‖²/‖g‖² of each group, in the shape of the statistics.
    total : float
        The same over all groups.
    """

    blocked: Array
    passed: Array
    fraction: Array
    total: float


@dataclass(frozen=True, eq=False)
class Renormalization:
    """Result of `renormalization`: the correction of `batch_renorm`. It unpacks: ``r, d = …``.

    Attributes
    ----------
    r, d : ndarray, shape (C,)
        Factor and shift of x̂.
    """

    r: Array
    d: Array

    def __iter__(self) -> Iterator[Array]:
        return iter((self.r, self.d))


# ---- the same, made quickly --------------------------------------------------------------------------------------


def _quick(kind: Callable[Fields, Record]) -> Callable[Fields, Record]:
    """Return a constructor of a frozen class that takes a fraction of the time.

    A frozen dataclass sets each of its fields by a call of ``object.__setattr__``, which a small pass would feel. This
    one fills an object of a subclass that is not frozen, in the ordinary way, and then makes it one of the class.
    """

    def freeze(self: Any) -> None:
        self.__class__ = kind

    described = [
        (f.name, f.type, field() if f.default is MISSING else field(default=f.default)) for f in fields(cast(Any, kind))
    ]
    ordinary = make_dataclass(kind.__name__, described, eq=False, namespace={"__post_init__": freeze})
    twin = type(
        kind.__name__,
        (cast(Any, kind),),
        {
            "__init__": vars(ordinary)["__init__"],
            "__post_init__": freeze,
            "__setattr__": object.__setattr__,
            "__delattr__": object.__delattr__,  # Python sets attributes the quick way only with both
        },
    )
    return cast(Callable[Fields, Record], twin)


new_saved = _quick(Saved)
new_forward = _quick(Forward)
new_gradients = _quick(Gradients)
new_double_backward = _quick(DoubleBackward)
new_second_order = _quick(SecondOrder)
