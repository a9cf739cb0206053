"""A hand-written batch norm as an adapter: a function or a few, on arrays of any kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar, cast

import numpy as np

from refbn import _validate
from refbn._errors import DomainError, DtypeError
from refbn._formats import FORMATS
from refbn.audit import adapters
from refbn.audit.adapters._composed import compose
from refbn.audit.adapters._protocol import OPERATIONS, Adapter, Array, Inputs, Unsupported
from refbn.dialects import Dialect

__all__ = ["Functions", "adapter_of"]

Function = Callable[..., Any]
_GRADIENTS = ("dx", "dgamma", "dbeta")
_FROZEN_GRADIENTS = (*_GRADIENTS, "dmean", "dvar")


def adapter_of(target: Any = None, **functions: Any) -> Adapter:
    """Return the adapter of whatever describes a batch norm.

    Parameters
    ----------
    target : Adapter, str or callable
        An adapter; the name of one, as on the command line of ``refbn audit``; or the forward function.
    **functions
        As for `Functions`, with a forward function only, or ``autodiff="torch"`` beside it (see the notes).

    Returns
    -------
    Adapter

    Raises
    ------
    DomainError
        If the target is nothing of this.

    Notes
    -----
    With ``autodiff="torch"`` the forward function is one of PyTorch tensors that autograd can differentiate. All
    derivatives, of every order and composition, are then PyTorch's own, of that function: nothing but the forward
    function is needed. ``inference(x, mean, var, gamma, beta, eps)`` may be given beside it.
    """
    autodiff = functions.pop("autodiff", None)
    if isinstance(target, str):
        (target,) = adapters.load(target)
    if hasattr(target, "run") and hasattr(target, "operations"):
        if functions or autodiff:
            raise DomainError("target: an adapter takes no functions beside it", argument="target")
        return cast(Adapter, target)
    if target is not None and not callable(target):
        kind = type(target).__name__
        raise DomainError(f"target: {kind}, expected an adapter, its name or a function", argument="target")
    if autodiff is None:
        return cast(Adapter, Functions(target, **functions))
    if autodiff != "torch":
        raise DomainError(f"autodiff: {autodiff!r}, expected 'torch'", argument="autodiff")
    return _torch_variant(target, **functions)


class Functions:
    """A batch norm that is given as functions. Only what is given is asked; channels are on axis 1.

    Parameters
    ----------
    forward : callable
        ``forward(x, gamma, beta, eps)`` returns y, or a mapping with y and any of mean, var (biased), invstd.
    backward : callable
        ``backward(x, gamma, beta, eps, dy)`` returns dx, dgamma, dbeta.
    jvp : callable
        ``jvp(x, gamma, beta, eps, x_dot, gamma_dot, beta_dot)`` returns y_dot.
    double_backward : callable
        ``double_backward(x, gamma, beta, eps, dy, ddx, ddgamma, ddbeta)`` returns ddy, dx, dgamma. Asked in composition
        with a loss, which takes forward and backward too.
    hvp : callable
        ``hvp(x, gamma, beta, eps, dy, x_dot, gamma_dot, beta_dot)`` returns dx, dgamma, dbeta: the derivative of
        backward along the direction. Asked in composition with a loss, which takes forward, backward and jvp too.
    inference, inference_backward, inference_jvp : callable
        The same with frozen statistics: ``inference(x, mean, var, gamma, beta, eps)`` and so on. The gradients may end
        with dmean and dvar.
    running : callable
        ``running(x, running_mean, running_var, momentum)`` returns both after one training batch.
    name : str, optional
        For reports; by default where the first function is, as in ``module.function``.
    array : callable, optional
        Makes the functions' kind of array from an ndarray: ``torch.from_numpy``, ``jax.numpy.asarray``. ndarrays by
        default. Results may be of any kind that `refbn.forward` takes.
    channel_axis : int
        Where the functions have the channels.
    dialect : str or Dialect
        Whose conventions hold for running statistics and momentum.
    dtypes : iterable of str
        The formats to ask for, by name; by default all that can be made here.

    Notes
    -----
    Several results come as a tuple in the order given here, as a mapping, or as an object with attributes of these
    names; the last ones may be left out.
    """

    environment: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        forward: Function | None = None,
        *,
        backward: Function | None = None,
        jvp: Function | None = None,
        double_backward: Function | None = None,
        hvp: Function | None = None,
        inference: Function | None = None,
        inference_backward: Function | None = None,
        inference_jvp: Function | None = None,
        running: Function | None = None,
        name: str | None = None,
        array: Callable[[Array], Any] | None = None,
        channel_axis: int = 1,
        dialect: str | Dialect = "torch",
        dtypes: Iterable[str] | None = None,
    ) -> None:
        given = {
            "forward": forward,
            "backward": backward,
            "jvp": jvp,
            "double_backward": double_backward,
            "hvp": hvp,
            "inference": inference,
            "inference_backward": inference_backward,
            "inference_jvp": inference_jvp,
            "running": running,
        }
        self.functions = {key: value for key, value in given.items() if value is not None}
        for key, value in self.functions.items():
            if not callable(value):
                raise DtypeError(f"{key}: {type(value).__name__}, expected a function", argument=key)
        if not self.functions:
            raise DomainError(f"no function is given, expected one of {', '.join(given)}", argument="forward")
        self.name = name or _name(next(iter(self.functions.values())))
        self.dialect = _validate.dialect(dialect)
        self.array = array
        self.channel_axis = channel_axis
        self.dtypes = frozenset(
            f.name
            for f in FORMATS
            if (dtypes is None or f.name in dtypes) and (f.name != "bfloat16" or find_spec("ml_dtypes") is not None)
        )
        self.operations = frozenset(
            operation for operation, needed in _NEEDS.items() if needed <= self.functions.keys()
        )
        self.differentiates_statistics = True

    def version(self) -> str:
        """Return nothing: a function has no version, but it is there."""
        return ""

    def set_threads(self, count: int) -> None:
        """Refuse: a function has no threads to be set."""
        raise Unsupported(f"{self.name}: no way to run on {count} threads")

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """See `Adapter.reproduction`."""
        raise Unsupported(f"{self.name}: no script for {operation}; the test itself repeats it")

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation; see `Adapter.run`."""
        point = _Point(self, inputs, OPERATIONS[operation].frozen)
        if operation == "forward":
            return self.call("forward", OPERATIONS[operation].outputs, point.arguments)
        if operation == "inference":
            return {"y": point.y}
        if operation.startswith("vjp"):
            return point.backward(inputs.dy)
        if operation.startswith("jvp"):
            return {"y_dot": point.jvp()}
        if operation == "running":
            mean, var = inputs.running_mean, inputs.running_var
            for batch in inputs.batches:
                found = self.call("running", ("running_mean", "running_var"), (batch, mean, var, inputs.momentum))
                mean, var = found["running_mean"], found["running_var"]
            return {"running_mean": mean, "running_var": var}
        return compose(OPERATIONS[operation].composition, point, inputs.w)

    def call(self, name: str, outputs: Sequence[str], arguments: Sequence[Any]) -> dict[str, Array]:
        """Call a function with ndarrays and numbers, and return its results as ndarrays by name."""
        result = self.functions[name](*(self._hand_over(a) if isinstance(a, np.ndarray) else a for a in arguments))
        return {key: self._take_back(value, f"{name}: {key}") for key, value in _named(result, outputs).items()}

    def _hand_over(self, array: Array) -> Any:
        if array.ndim > 1 and self.channel_axis != 1:
            array = np.moveaxis(array, 1, self.channel_axis)
        if self.array is None:
            return array
        try:
            return self.array(array)
        except (TypeError, ValueError) as error:  # a layout or a dtype that this kind of array does not know
            raise Unsupported(f"{getattr(self.array, '__name__', 'array')}: {error}") from error

    def _take_back(self, value: Any, what: str) -> Array:
        if hasattr(value, "detach"):  # a tensor that autograd watches hands out no memory
            value = value.detach()
        if isinstance(value, (float, np.floating)):
            value = np.asarray(value)
        array = _validate.array(value, what)
        return np.moveaxis(array, self.channel_axis, 1) if array.ndim > 1 and self.channel_axis != 1 else array


_NEEDS: dict[str, set[str]] = {
    "forward": {"forward"},
    "vjp": {"backward"},
    "jvp": {"jvp"},
    "rev": {"forward", "backward"},
    "rev_rev": {"forward", "backward", "double_backward"},
    "fwd_rev": {"forward", "backward", "jvp", "hvp"},
    "inference": {"inference"},
    "vjp_eval": {"inference_backward"},
    "jvp_eval": {"inference_jvp"},
    "rev_eval": {"inference", "inference_backward"},
    "running": {"running"},
}
"""The functions that an operation takes."""


class _Point:
    """The `Point` of `refbn.audit.adapters._composed` that some functions make."""

    def __init__(self, owner: Functions, inputs: Inputs, frozen: bool) -> None:
        i = self.inputs = inputs
        self.owner, self.frozen = owner, frozen
        self.arguments = (i.x, i.mean, i.var, i.gamma, i.beta, i.eps) if frozen else (i.x, i.gamma, i.beta, i.eps)
        statistics = (i.mean_dot, i.var_dot) if frozen else ()
        self.direction = (i.x_dot, *statistics, i.gamma_dot, i.beta_dot)

    def _call(self, name: str, outputs: Sequence[str], *more: Any) -> dict[str, Array]:
        if name not in self.owner.functions:
            raise Unsupported(f"no function {name}")
        return self.owner.call(name, outputs, (*self.arguments, *more))

    @property
    def y(self) -> Array:
        """See `Point`."""
        return self._call("inference" if self.frozen else "forward", ("y", "mean", "var", "invstd"))["y"]

    def backward(self, dy: Array) -> dict[str, Array]:
        """See `Point`."""
        if self.frozen:
            return self._call("inference_backward", _FROZEN_GRADIENTS, dy)
        return self._call("backward", _GRADIENTS, dy)

    def jvp(self) -> Array:
        """See `Point`."""
        return self._call("inference_jvp" if self.frozen else "jvp", ("y_dot",), *self.direction)["y_dot"]

    def double_backward(self, dy: Array) -> tuple[Array, dict[str, Array]]:
        """See `Point`."""
        found = self._call("double_backward", ("ddy", "dx", "dgamma"), dy, *self.direction)
        return found.pop("ddy"), found

    def hvp(self, dy: Array) -> dict[str, Array]:
        """See `Point`."""
        return self._call("hvp", _GRADIENTS, dy, *self.direction)

    def vjp_of_jvp(self, dy: Array) -> dict[str, Array]:
        """See `Point`."""
        raise Unsupported("a function's jvp is not differentiated")

    def curve(self, order: int) -> Sequence[Array]:
        """See `Point`."""
        raise Unsupported(f"no function for derivatives of order {order} along a line")


def _name(function: Any) -> str:
    parts = (getattr(function, attribute, None) for attribute in ("__module__", "__qualname__"))
    return ".".join(part for part in parts if part) or type(function).__name__


def _named(result: Any, outputs: Sequence[str]) -> dict[str, Any]:
    """Return a function's results by name, whatever it packs them in; those that are None are left out."""
    if isinstance(result, Mapping):
        found = {name: result[name] for name in outputs if name in result}
        if not found:
            raise DomainError(f"a mapping with {', '.join(map(str, result))}, expected {', '.join(outputs)}")
    elif hasattr(result, outputs[0]):
        found = {name: getattr(result, name) for name in outputs if hasattr(result, name)}
    elif isinstance(result, (tuple, list)):
        if len(result) > len(outputs):
            raise DomainError(f"{len(result)} results, expected {', '.join(outputs)}")
        found = dict(zip(outputs, result, strict=False))
    else:
        found = {outputs[0]: result}
    return {name: value for name, value in found.items() if value is not None}


def _torch_variant(forward: Function | None, **options: Any) -> Adapter:
    """Return PyTorch's adapter with another forward function."""
    from refbn.audit.adapters.torch import Torch, _array, _tensor

    inference = options.pop("inference", None)
    dtypes, name = options.pop("dtypes", Torch.dtypes), options.pop("name", None)
    channel_axis = options.pop("channel_axis", 1)
    if options or (forward is None and inference is None):
        extra = f"; {', '.join(options)} cannot be combined with it" if options else ""
        raise DomainError(f"autodiff: expected forward, inference or both{extra}", argument="autodiff")
    stateless = {n for n, op in OPERATIONS.items() if op.outputs[0] not in ("running_mean", "y_train")}

    def moved(function: Function) -> Function:
        """Call with the channels where the function has them."""

        def call(x: Any, *rest: Any) -> Any:
            y = function(x.movedim(1, channel_axis), *rest)
            y = _named(y, ("y",))["y"]
            return y.movedim(channel_axis, 1)

        return call

    class Variant(Torch):
        """See `adapter_of`."""

        norms = frozenset({"batch"})
        operations = frozenset(n for n in stateless if (inference if OPERATIONS[n].frozen else forward) is not None)

        def batch_norm(self, inputs: Inputs, frozen: bool) -> Function:
            """Return the function as one of x, gamma and beta."""
            if not frozen:
                assert forward is not None
                return lambda x, gamma, beta: moved(forward)(x, gamma, beta, inputs.eps)
            assert inference is not None
            mean, var = _tensor(inputs.mean), _tensor(inputs.var)
            return lambda x, gamma, beta: moved(inference)(x, mean, var, gamma, beta, inputs.eps)

        def _forward(self, function: Function, point: Any, inputs: Inputs, frozen: bool) -> dict[str, Array]:
            return {"y": _array(function(*point))}

    Variant.name = name or _name(forward or inference)
    Variant.dtypes = frozenset(dtypes)
    return cast(Adapter, Variant())
