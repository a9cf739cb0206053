"""refbn itself, through its public functions, one adapter for each backend.

Each composition uses the pass that is named after it: reverse over reverse `refbn.double_backward`, forward over
reverse `refbn.hvp`, reverse over forward `refbn.double_backward` again, as the gradient of <dy, J D> is that of
<D, Jᵀ dy>. Forward over forward is `refbn.taylor` where the backend has it. Three nested gradients have no public
pass.

Layer, group and instance norm have backends of their own: their default, `enclosure`, answers for `native` and `numba`.
They have no `refbn.taylor`; y'' is made of `refbn.jvp` and `refbn.hvp`.

`native`, `numba` and `exact` round every output of a pass correctly, so a single pass (forward, inference, vjp, jvp)
gets the verdict ``exact``. A composition rounds between its passes and is ``accurate``, as is most of `reference`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

import refbn
from refbn import backends
from refbn._formats import FORMATS, round_to
from refbn.audit.adapters._composed import answer, script
from refbn.audit.adapters._protocol import OPERATIONS, Array, Inputs, Unsupported, kind_and_groups
from refbn.dialects import DIALECTS

__all__ = ["Own"]

# Third-order gradients have no pass; `refbn.taylor`, for y''', takes no series of frozen statistics.
_BEYOND_EVERY_BACKEND = frozenset({"rev_rev_rev", "rev_rev_rev_eval", "fwd_fwd_fwd_eval"})

# What a script asks of the saved forward, where one pass is the whole answer.
_SINGLE = {
    "forward": 'answer = {"y": fwd.y, "mean": fwd.mean, "var": fwd.var, "invstd": fwd.invstd}',
    "inference": 'answer = {"y": fwd.y}',
    "vjp": 'g = refbn.backward(fwd.saved, dy)\nanswer = {"dx": g.dx, "dgamma": g.dgamma, "dbeta": g.dbeta}',
    "vjp_eval": "g = refbn.backward(fwd.saved, dy)\n"
    'answer = {"dx": g.dx, "dgamma": g.dgamma, "dbeta": g.dbeta, "dmean": g.dmean, "dvar": g.dvar}',
    "jvp": 'answer = {"y_dot": refbn.jvp(fwd.saved, x_dot=x_dot, gamma_dot=gamma_dot, beta_dot=beta_dot)}',
    "jvp_eval": "direction = dict(x_dot=x_dot, gamma_dot=gamma_dot, beta_dot=beta_dot, mean_dot=mean_dot, "
    'var_dot=var_dot)\nanswer = {"y_dot": refbn.jvp(fwd.saved, **direction)}',
}


class Own:
    """One of refbn's backends.

    Parameters
    ----------
    backend : str
        Its name, as in ``refbn.forward(…, backend=…)``.
    """

    dialect = DIALECTS["torch"]
    dtypes = frozenset(f.name for f in FORMATS)
    differentiates_statistics = True
    norms = frozenset({"batch", "layer", "group", "instance"})
    environment: ClassVar[Mapping[str, str]] = {}

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = f"refbn-{backend}"
        try:
            kernels: Any = backends.load(backend)
        except ImportError:
            kernels = None
        self._installed = kernels is not None
        self._has_taylor = hasattr(kernels, "taylor")
        missing = _BEYOND_EVERY_BACKEND if self._has_taylor else _BEYOND_EVERY_BACKEND | {"fwd_fwd_fwd"}
        self.operations = frozenset(OPERATIONS) - missing
        self._threads: int | None = None  # as many as refbn uses by itself

    def version(self) -> str | None:
        """Return refbn's version, or None if the backend cannot be imported here."""
        return refbn.__version__ if self._installed else None

    def set_threads(self, count: int) -> None:
        """Let `native` use up to so many threads; the other backends run on the calling thread."""
        if self.backend != "native":
            raise Unsupported(f"the backend {self.backend} runs on the calling thread, not on {count}")
        self._threads = count

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """See `Adapter.reproduction`; compositions, which are made of several passes, ask the adapter itself."""
        if operation not in OPERATIONS or operation not in self.operations:
            raise Unsupported(f"{self.name}: no {operation}")
        asked = OPERATIONS[operation]
        if operation not in _SINGLE:
            return script(self.name, operation, inputs.norm)
        if inputs.norm != "batch":
            kind, groups = kind_and_groups(inputs.norm)
            call = _CALLS[kind].format(groups=groups, backend=_normalization(self.backend))
            return f"import refbn\nfwd = refbn.{call}\n{_SINGLE[operation]}"
        statistics = "x, mean, var" if asked.frozen else "x"
        name = "inference" if asked.frozen else "forward"
        return "\n".join(
            (
                "import refbn",
                f'fwd = refbn.{name}({statistics}, gamma, beta, eps=eps, backend="{self.backend}")',
                _SINGLE[operation],
            )
        )

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation; see `Adapter.run`."""
        with contextlib.nullcontext() if self._threads is None else refbn.num_threads(self._threads):
            return self._run(operation, inputs)

    def _run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        if operation in ("running", "train_eval_train"):
            return self._stateful(operation, inputs)
        point = _OwnPoint(inputs, OPERATIONS[operation].frozen, self.backend, self._has_taylor)
        if operation == "forward":
            fwd = point.forward
            return {"y": fwd.y, "mean": fwd.mean, "var": fwd.var, "invstd": fwd.invstd}
        return answer(operation, point, inputs)

    def _stateful(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        layer = refbn.BatchNorm(
            inputs.gamma.size,
            eps=inputs.eps,
            momentum=inputs.momentum,
            dialect=self.dialect,
            channel_axis=1,
            dtype=inputs.gamma.dtype,
            backend=self.backend,
        )
        layer.gamma, layer.beta = inputs.gamma, inputs.beta
        layer.running_mean, layer.running_var = inputs.running_mean.copy(), inputs.running_var.copy()
        if operation == "running":
            for batch in inputs.batches:
                layer(batch)
            return {"running_mean": layer.running_mean, "running_var": layer.running_var}
        first, second = inputs.batches[:2]
        return {"y_train": layer(first), "y_eval": layer.eval()(second), "y_again": layer.train()(first)}


class _OwnPoint:
    """A `Point` made of refbn's passes."""

    def __init__(self, inputs: Inputs, frozen: bool, backend: str, has_taylor: bool) -> None:
        self.inputs, self.frozen, self.backend, self.has_taylor = inputs, frozen, backend, has_taylor
        options: dict[str, Any] = {"eps": inputs.eps, "backend": backend}
        affine = inputs.gamma, inputs.beta
        if inputs.norm != "batch":
            self.forward = _normalized(inputs, inputs.x, *affine, backend)
        elif frozen:
            self.forward = refbn.inference(inputs.x, inputs.mean, inputs.var, *affine, **options)
        else:
            self.forward = refbn.forward(inputs.x, *affine, **options)
        self.saved = self.forward.saved

    @property
    def y(self) -> Array:
        """The forward's y."""
        return self.forward.y

    def _direction(self, prefix: str = "", suffix: str = "") -> dict[str, Any]:
        i = self.inputs
        moved = {"x": i.x_dot, "gamma": i.gamma_dot, "beta": i.beta_dot}
        if self.frozen:
            moved |= {"mean": i.mean_dot, "var": i.var_dot}
        return {f"{prefix}{name}{suffix}": value for name, value in moved.items()}

    def backward(self, dy: Array) -> dict[str, Array]:
        """`refbn.backward`."""
        return _present(refbn.backward(self.saved, dy))

    def jvp(self) -> Array:
        """`refbn.jvp`."""
        return refbn.jvp(self.saved, **self._direction(suffix="_dot"))

    def double_backward(self, dy: Array) -> tuple[Array, dict[str, Array]]:
        """`refbn.double_backward`."""
        result = refbn.double_backward(self.saved, dy, **self._direction(prefix="dd"))
        return result.ddy, _present(result)

    def hvp(self, dy: Array) -> dict[str, Array]:
        """`refbn.hvp`."""
        return _present(refbn.hvp(self.saved, dy, **self._direction(suffix="_dot")))

    def vjp_of_jvp(self, dy: Array) -> dict[str, Array]:
        """`refbn.double_backward`, by the symmetry of second derivatives."""
        return self.double_backward(dy)[1]

    def curve(self, order: int) -> Sequence[Array]:
        """`refbn.taylor` where it exists, else `refbn.jvp` and, for y'', `refbn.hvp`."""
        i = self.inputs
        if self.frozen:
            if order > 2:
                raise Unsupported("refbn.taylor takes no series of frozen statistics")
            return [self.y, self.jvp(), self._second_frozen()]
        if i.norm != "batch":
            if order > 2:
                raise Unsupported(f"refbn.taylor knows no {kind_and_groups(i.norm)[0]} norm")
            return [self.y, self.jvp(), self._second_of_groups()]
        if not self.has_taylor:
            if order > 2:
                raise Unsupported(f"the backend {self.backend} has no taylor")
            # d/dt of ẏ = γ·r·Pẋ + γ̇·x̂ + β̇. As r·P is symmetric, hvp at dy = ẋ moves γ·r·Pẋ along (ẋ, γ̇); the
            # second term adds another γ̇·r·Pẋ.
            moved = self._direction(suffix="_dot")
            moved["gamma_dot"] = round_to(2.0 * i.gamma_dot.astype(np.float64), i.gamma_dot.dtype)
            return [self.y, self.jvp(), refbn.hvp(self.saved, i.x_dot, **moved).dx]
        none, nothing = np.zeros_like(i.x), np.zeros_like(i.gamma)
        ys = refbn.taylor(
            [i.x, i.x_dot, none, none][: order + 1],
            [i.gamma, i.gamma_dot, nothing, nothing][: order + 1],
            [i.beta, i.beta_dot, nothing, nothing][: order + 1],
            eps=i.eps,
            backend=self.backend,
        )
        return [ys[0], ys[1], 2.0 * ys[2].astype(np.float64), *(6.0 * y.astype(np.float64) for y in ys[3:])]

    def _second_of_groups(self) -> Array:
        """y'' = γ·x̂'' + 2·γ̇·x̂', where x̂'' is hvp at dy = ẋ, as r·P is symmetric; in binary64."""
        i = self.inputs
        geometry = self.saved.geometry
        wide = {name: getattr(i, name).astype(np.float64) for name in ("x", "x_dot", "gamma", "gamma_dot")}
        saved = _normalized(i, wide["x"], None, None, self.backend).saved
        gamma, gamma_dot = (geometry.ungrouped(geometry.rows(geometry.spread(wide[n]))) for n in ("gamma", "gamma_dot"))
        bent = refbn.hvp(saved, wide["x_dot"], x_dot=wide["x_dot"]).dx
        return np.asarray(gamma * bent + 2.0 * gamma_dot * refbn.jvp(saved, x_dot=wide["x_dot"]))

    def _second_frozen(self) -> Array:
        """y'' with every element seen as a channel of its own: there <D, hvp(dy = 1)> is y'', elementwise.

        In binary64, so that the inner product's five terms do not each bring a rounding to the case's dtype.
        """
        i = self.inputs
        if i.x.size == 0:
            return np.zeros(i.x.shape)
        column = (1, -1, *(1 for _ in i.x.shape[2:]))

        def elements(array: Array) -> Array:
            wide = array.astype(np.float64)
            whole = wide if array.ndim > 1 else np.broadcast_to(wide.reshape(column), i.x.shape)
            return np.ascontiguousarray(whole).reshape(-1)

        own: dict[str, Any] = {name: elements(value) for name, value in self._direction(suffix="_dot").items()}
        own["x_dot"] = own["x_dot"][None, :]
        point = (elements(a) for a in (i.mean, i.var, i.gamma, i.beta))
        saved = refbn.inference(elements(i.x)[None, :], *point, eps=i.eps, backend=self.backend).saved
        second = _present(refbn.hvp(saved, np.ones_like(own["x_dot"]), **own))
        return np.asarray(sum(own[f"{name[1:]}_dot"] * value for name, value in second.items())).reshape(i.x.shape)


# The other norms: how they are called, and how a script writes it.
_CALLS = {
    "layer": 'layer_norm(x, gamma, beta, eps=eps, axes=tuple(range(1, x.ndim)), backend="{backend}")',
    "group": 'group_norm(x, {groups}, gamma, beta, eps=eps, backend="{backend}")',
    "instance": 'instance_norm(x, gamma, beta, eps=eps, backend="{backend}")',
}


def _normalized(inputs: Inputs, x: Array, gamma: Array | None, beta: Array | None, backend: str) -> refbn.Forward:
    kind, groups = kind_and_groups(inputs.norm)
    options: dict[str, Any] = {"eps": inputs.eps, "backend": _normalization(backend)}
    if kind == "layer":
        return refbn.layer_norm(x, gamma, beta, axes=tuple(range(1, x.ndim)), **options)
    if kind == "group":
        return refbn.group_norm(x, groups, gamma, beta, **options)
    return refbn.instance_norm(x, gamma, beta, **options)


def _normalization(backend: str) -> str:
    """Return the other norms' backend that answers for one of batch norm's."""
    return backend if backend in backends.NORMALIZATIONS else backends.NORMALIZATIONS[0]


def _present(result: Any) -> dict[str, Array]:
    """Return the gradients that a result has, by name."""
    names = ("dx", "dgamma", "dbeta", "dmean", "dvar")
    return {name: value for name in names if (value := getattr(result, name, None)) is not None}
