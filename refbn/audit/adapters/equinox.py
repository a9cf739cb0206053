"""Equinox on JAX: ``equinox.nn.BatchNorm`` in its two modes.

The layer works on one sample inside `jax.vmap`, so a batch's channels stand on axis 1.

``mode="batch"`` normalizes a training batch by its own statistics. Its running statistics are debiased: the state
holds weighted sums and counts the batches, and evaluation divides by 1 − momentumⁿ. There is no argument for where an
average starts, so the operations that keep state start from the layer as it is made, and its dialect says that
the first batch takes all the weight. The adapter reads the running statistics as evaluation does.

``mode="ema"``, still the default with a warning, normalizes training batches by running statistics: the first batch
by its own, which is what the operations without state ask for; later ones by the average so far, which is another
function by design. So ``train_eval_train`` is not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refbn.audit.adapters._jax import OnJax, Value
from refbn.audit.adapters._protocol import OPERATIONS, Array, Inputs, Unsupported
from refbn.dialects import DIALECTS

__all__ = ["Equinox"]

State = Any


class Equinox(OnJax):
    """``equinox.nn.BatchNorm``.

    Parameters
    ----------
    mode : str
        ``"batch"`` or ``"ema"``.
    """

    package = "equinox"
    imports = ("import equinox as eqx",)

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.name = "equinox" if mode == "batch" else f"equinox-{mode}"
        self.dialect = DIALECTS["equinox" if mode == "batch" else "flax"]
        self.operations = frozenset(OPERATIONS) - ({"train_eval_train"} if mode == "ema" else set())

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation; see `Adapter.run`."""
        self._check(operation, inputs)
        return super().run(operation, inputs)

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """See `Adapter.reproduction`."""
        self._check(operation, inputs)
        return super().reproduction(operation, inputs)

    def _check(self, operation: str, inputs: Inputs) -> None:
        stateful = operation in ("running", "train_eval_train")
        if stateful and not (inputs.momentum is not None and 0 < inputs.momentum < 1):
            raise Unsupported("Equinox's documentation asks for a momentum between 0 and 1, exclusive")

    def forward(self, eps: float, x: Value, gamma: Value, beta: Value) -> dict[str, Value]:
        """With momentum 0 the running statistics are those of the batch."""
        layer, state = self._layer(eps, 0.0, gamma, beta)
        y, state = _apply(layer, x, state)
        mean, var = state.get(self._index(layer))
        return {"y": y, "mean": mean, "var": var}

    def inference(self, eps: float, x: Value, gamma: Value, beta: Value, mean: Value, var: Value) -> Value:
        """Before the first batch, the statistics in the state are taken as they are."""
        layer, state = self._layer(eps, 0.5, gamma, beta)
        return _apply(layer, x, state.set(self._index(layer), (mean, var)), inference=True)[0]

    def stateful(
        self,
        operation: str,
        eps: float,
        momentum: float | None,
        gamma: Value,
        beta: Value,
        running: tuple[Value, Value],
        batches: Sequence[Value],
    ) -> dict[str, Value]:
        """See `OnJax.stateful`."""
        import jax.numpy as jnp

        layer, state = self._layer(eps, momentum, gamma, beta)
        if self.mode == "ema":
            state = state.set(layer.ema_state_index, running).set(layer.ema_first_time_index, jnp.array(False))
        if operation == "running":
            for batch in batches:
                _, state = _apply(layer, batch, state)
            mean, var = state.get(self._index(layer))
            share = 1 if self.mode == "ema" else 1 - momentum ** state.get(layer.batch_counter)
            return {"running_mean": mean / share, "running_var": var / share}
        y_train, state = _apply(layer, batches[0], state)
        y_eval, state = _apply(layer, batches[1], state, inference=True)
        return {"y_train": y_train, "y_eval": y_eval, "y_again": _apply(layer, batches[0], state)[0]}

    def _layer(self, eps: float, momentum: float | None, gamma: Value, beta: Value) -> tuple[Any, State]:
        import equinox

        make: Any = equinox.nn.make_with_state(equinox.nn.BatchNorm)
        layer, state = make(gamma.size, "batch", eps, momentum=momentum, dtype=gamma.dtype, mode=self.mode)
        return equinox.tree_at(lambda made: (made.weight, made.bias), layer, (gamma, beta)), state

    def _index(self, layer: Any) -> Any:
        return layer.batch_state_index if self.mode == "batch" else layer.ema_state_index

    # ---- scripts --------------------------------------------------------------------------------------------------

    def _made(self, momentum: str) -> list[str]:
        return [
            "layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(",
            f'    gamma.size, "batch", eps, momentum={momentum}, dtype=gamma.dtype, mode="{self.mode}"',
            ")",
            "layer = eqx.tree_at(lambda made: (made.weight, made.bias), layer, (gamma, beta))",
        ]

    def definition(self, inputs: Inputs, frozen: bool) -> list[str]:
        """See `OnJax.definition`."""
        lines = [
            f"def batch_norm(x, gamma, beta{', mean, var' if frozen else ''}):",
            *(f"    {line}" for line in self._made("0.5")),
        ]
        if frozen:
            lines += [
                f"    state = state.set(layer.{self.mode}_state_index, (mean, var))",
                "    layer = eqx.nn.inference_mode(layer)",
            ]
        return [*lines, f"    return {_CALL.format('x')}[0]"]

    def statistics(self, inputs: Inputs) -> list[str]:
        """See `OnJax.statistics`."""
        return [
            "",
            *self._made("0.0"),
            f"state = {_CALL.format('x')}[1]",
            f"mean, var = state.get(layer.{self.mode}_state_index)  # with momentum 0, the batch's",
            'answer |= {"mean": np.asarray(mean), "var": np.asarray(var)}',
        ]

    def steps(self, operation: str, inputs: Inputs) -> list[str]:
        """See `OnJax.steps`."""
        lines = ["gamma, beta = jnp.asarray(gamma), jnp.asarray(beta)", *self._made("momentum")]
        if self.mode == "ema":
            lines += [
                "running = jnp.asarray(running_mean), jnp.asarray(running_var)",
                "state = state.set(layer.ema_state_index, running)",
                "state = state.set(layer.ema_first_time_index, jnp.array(False))",
            ]
        if operation == "running":
            share = "1" if self.mode == "ema" else "1 - momentum ** state.get(layer.batch_counter)"
            return [
                *lines,
                "for batch in batches:",
                f"    _, state = {_CALL.format('batch')}",
                f"mean, var = (s / ({share}) for s in state.get(layer.{self.mode}_state_index))",
                'answer = {"running_mean": np.asarray(mean), "running_var": np.asarray(var)}',
            ]
        return [
            *lines,
            f"y_train, state = {_CALL.format('batches[0]')}",
            "layer = eqx.nn.inference_mode(layer)",
            f"y_eval, state = {_CALL.format('batches[1]')}",
            "layer = eqx.nn.inference_mode(layer, value=False)",
            f"y_again, state = {_CALL.format('batches[0]')}",
            'answer = {"y_train": np.asarray(y_train), "y_eval": np.asarray(y_eval), "y_again": np.asarray(y_again)}',
        ]


_CALL = 'jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))({}, state)'


def _apply(layer: Any, x: Value, state: State, **options: bool) -> tuple[Value, State]:
    """Apply the layer to a batch, as its documentation says."""
    import jax

    def one(sample: Value, state: State) -> Any:
        return layer(sample, state, **options)

    mapped = jax.vmap(one, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    y, moved = mapped(x, state)
    return y, moved
