"""What an adapter is, what it is asked, and the words that it answers with.

An adapter makes one framework's batch norm answer the audit's questions. It declares its name, version, dialect,
operations and formats; it never compares, never sets a tolerance and never makes an input. The framework is imported
inside the adapter's methods, never when its module is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Protocol

import numpy.typing as npt

from refbn.dialects import Dialect

__all__ = [
    "EVAL",
    "OPERATIONS",
    "STATE",
    "TRAINING",
    "Adapter",
    "Broken",
    "Inputs",
    "Operation",
    "Unsupported",
    "compiles",
    "installed",
    "kind_and_groups",
    "norms_of",
]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """One question to a framework.

    Attributes
    ----------
    name : str
        As it stands in descriptors and reports.
    frozen : bool
        Whether the statistics are given (evaluation mode) or those of x.
    composition : str
        How derivatives are nested, outermost first: ``""``, ``"rev"``, ``"fwd"``, ``"rev-rev"``, ….
    outputs : tuple of str
        What the answer may hold; a framework may leave some out (say, gradients on mean and var).
    meaning : str
        The definition of the outputs in one sentence.
    """

    name: str
    frozen: bool
    composition: str
    outputs: tuple[str, ...]
    meaning: str

    @property
    def arrays(self) -> tuple[str, ...]:
        """The arrays of `Inputs` that take part, ``batches`` apart."""
        if self.name in ("running", "train_eval_train"):
            return ("gamma", "beta", "running_mean", "running_var")
        point = ("x", "gamma", "beta", "mean", "var") if self.frozen else ("x", "gamma", "beta")
        if self.name.startswith("vjp"):
            return (*point, "dy")
        if not self.composition:
            return point
        directions = tuple(f"{name}_dot" for name in point)
        return (*point, *directions) if self.name.startswith("jvp") else (*point, *directions, "w")


_GRADS = ("dx", "dgamma", "dbeta")
_FROZEN_GRADS = (*_GRADS, "dmean", "dvar")
# f(t) is w·(y²/2 + y³/6), elementwise, at the point (x, gamma, beta) + t·(x_dot, gamma_dot, beta_dot), and for
# frozen statistics (mean, var) + t·(mean_dot, var_dot) too where the framework differentiates them; L = Σ f.
_COMPOSED = (
    ("rev", "gradient of L"),
    ("rev_rev", "d/dt of the gradient of L, as the gradient of <direction, gradient of L>"),
    ("fwd_rev", "d/dt of the gradient of L, as the jvp of the gradient"),
    ("rev_fwd", "d/dt of the gradient of L, as the gradient of the jvp of L"),
    ("fwd_fwd", "d²f/dt², elementwise, as the jvp of the jvp"),
    ("rev_rev_rev", "d²/dt² of the gradient of L, by three nested gradients"),
    ("fwd_fwd_fwd", "d³f/dt³, elementwise, by three nested jvps"),
)


def _operations(frozen: bool) -> tuple[Operation, ...]:
    suffix = "_eval" if frozen else ""
    grads = _FROZEN_GRADS if frozen else _GRADS
    first = (
        Operation("inference", True, "", ("y",), "y from the given mean and var")
        if frozen
        else Operation("forward", False, "", ("y", "mean", "var", "invstd"), "y and the batch statistics")
    )
    return (
        first,
        Operation(f"vjp{suffix}", frozen, "rev", grads, "the gradients for the output cotangent dy"),
        Operation(f"jvp{suffix}", frozen, "fwd", ("y_dot",), "dy/dt along the direction"),
        *(
            Operation(
                name + suffix,
                frozen,
                name.replace("_", "-"),
                ("value",) if name.endswith("fwd_fwd") else grads,
                meaning,
            )
            for name, meaning in _COMPOSED
        ),
    )


TRAINING = _operations(frozen=False)
EVAL = _operations(frozen=True)
STATE = (
    Operation(
        "running",
        False,
        "",
        ("running_mean", "running_var"),
        "the running statistics after training forwards of all of `batches`, from (running_mean, running_var)",
    ),
    Operation(
        "train_eval_train",
        False,
        "",
        ("y_train", "y_eval", "y_again"),
        "y of batches[0] in training, of batches[1] in evaluation with the statistics so far, of batches[0] in "
        "training again",
    ),
)
OPERATIONS: dict[str, Operation] = {op.name: op for op in (*TRAINING, *EVAL, *STATE)}


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one operation is run on. Tensors have the channels on axis 1; arrays the layout that the case asks for.

    Attributes
    ----------
    x, dy, x_dot, w : ndarray
        Tensors of one shape and dtype.
    gamma, beta, gamma_dot, beta_dot : ndarray
        In the parameters' dtype, of shape (C,); of the shape of one sample for layer norm.
    mean, var, mean_dot, var_dot : ndarray
        Frozen statistics and their directions, in the parameters' dtype.
    running_mean, running_var : ndarray
        Where the running statistics start.
    eps : float
        ε.
    momentum : float or None
        In the sense of the adapter's dialect.
    batches : tuple of ndarray
        Successive inputs of the operations that keep state.
    norm : str
        Which norm: ``batch``, ``layer``, ``instance``, or ``group`` with the number of groups, as in ``group2``.
    """

    x: Array
    gamma: Array
    beta: Array
    dy: Array
    w: Array
    x_dot: Array
    gamma_dot: Array
    beta_dot: Array
    mean: Array
    var: Array
    mean_dot: Array
    var_dot: Array
    running_mean: Array
    running_var: Array
    eps: float
    momentum: float | None
    batches: tuple[Array, ...] = field(default=())
    norm: str = "batch"


class Unsupported(Exception):
    """Raised by an adapter: the framework does not offer this operation, dtype or output."""


class Broken(Exception):
    """Raised in a framework's place where its process ended or went on too long: no refusal that could be meant."""


def kind_and_groups(norm: str) -> tuple[str, int]:
    """Return a norm's kind, as adapters declare it, and the number of groups: ``("group", 2)`` for ``group2``."""
    kind = norm.rstrip("0123456789")
    return kind, int(norm[len(kind) :] or 1)


def norms_of(adapter: Any) -> frozenset[str]:
    """Return the kinds of norms that an adapter can be asked for: batch norm alone where it declares none."""
    declared: frozenset[str] = getattr(adapter, "norms", frozenset({"batch"}))
    return declared


def compiles(adapter: Any) -> bool:
    """Return whether an adapter declares that it compiles anew for each operation, shape and format."""
    declared: bool = getattr(adapter, "compiles", False)
    return declared


def installed(distribution: str) -> str | None:
    """Return a distribution's installed version, or None; nothing is imported for this."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


class Adapter(Protocol):
    """One framework's batch norm, and perhaps other norms.

    An adapter of more than batch norm has ``norms``, a frozenset of kinds among ``batch``, ``layer``, ``group`` and
    ``instance``, and looks at `Inputs.norm`. One whose framework compiles or traces anew for each operation, shape and
    format, as its users run it, has ``compiles = True``; what follows from that is not its affair
    (`refbn.audit.groups`).
    """

    name: str
    dialect: Dialect
    operations: frozenset[str]
    dtypes: frozenset[str]
    differentiates_statistics: bool
    """Whether directions and gradients of frozen mean and var take part (else they are constants)."""
    environment: Mapping[str, str]
    """Environment variables that must be set before the framework is imported. Where they are not, the adapter runs
    in a process of its own that has them."""

    def version(self) -> str | None:
        """Return the installed version, or None if the framework is not installed."""

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation; the answer holds some or all of the operation's outputs, as NumPy arrays.

        Raises
        ------
        Unsupported
            If the framework cannot be asked this. Every other exception is the framework's own.
        """

    def set_threads(self, count: int) -> None:
        """Ask for a number of threads; Unsupported if that cannot be chosen."""

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """Return the heart of a script that asks the framework the same without refbn.

        The lines may use ``np`` and arrays under the names of `Inputs`' fields, which stand above them in the script,
        and ``eps`` and ``momentum``; they import the framework and leave a dict ``answer`` from the names of outputs to
        arrays. `inputs` may decide what is written, such as the module's rank.

        Raises
        ------
        Unsupported
            If the framework cannot be asked this.
        """
