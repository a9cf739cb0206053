"""Flax on JAX: ``flax.linen.BatchNorm`` and ``flax.nnx.BatchNorm``, with the channels on ``axis=1``.

By default both compute the variance as E[x²] − E[x]² (``use_fast_variance=True``, google/flax#1491); the variants whose
names end in "-two-pass" switch that off.

The running statistics hold what they are given, in its dtype. Both modules make theirs in binary32; for
binary64 that is replaced, as it is when a user restores binary64 values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refbn.audit.adapters._jax import OnJax, Value
from refbn.audit.adapters._protocol import Inputs
from refbn.dialects import DIALECTS

__all__ = ["Linen", "Nnx"]


class _Flax(OnJax):
    package = "flax"
    dialect = DIALECTS["flax"]

    def __init__(self, *options: str) -> None:
        super().__init__()
        self.name = "-".join((self.name, *options))
        self.options: dict[str, Any] = {"use_fast_variance": False} if "two-pass" in options else {}

    @property
    def written(self) -> str:
        """The options as they stand in a script, after others."""
        return "".join(f", {name}={value}" for name, value in self.options.items())


class Linen(_Flax):
    """``flax.linen.BatchNorm``, applied to a dictionary of variables.

    Parameters
    ----------
    *options : str
        ``"two-pass"`` for ``use_fast_variance=False``.
    """

    name = "flax-linen"
    imports = ("import flax.linen as nn",)

    def forward(self, eps: float, x: Value, gamma: Value, beta: Value) -> dict[str, Value]:
        """With momentum 0 the running statistics are those of the batch."""
        import jax.numpy as jnp

        state = {"mean": jnp.zeros_like(gamma), "var": jnp.ones_like(gamma)}
        y, state = self._train(eps, 0.0, gamma, beta, state, x)
        return {"y": y} | state

    def inference(self, eps: float, x: Value, gamma: Value, beta: Value, mean: Value, var: Value) -> Value:
        """See `OnJax.inference`."""
        variables = {"params": {"scale": gamma, "bias": beta}, "batch_stats": {"mean": mean, "var": var}}
        return self._module(eps).apply(variables, x, use_running_average=True)

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
        state = dict(zip(("mean", "var"), running, strict=True))
        if operation == "running":
            for batch in batches:
                _, state = self._train(eps, momentum, gamma, beta, state, batch)
            return {"running_mean": state["mean"], "running_var": state["var"]}
        y_train, state = self._train(eps, momentum, gamma, beta, state, batches[0])
        y_eval = self.inference(eps, batches[1], gamma, beta, state["mean"], state["var"])
        y_again, _ = self._train(eps, momentum, gamma, beta, state, batches[0])
        return {"y_train": y_train, "y_eval": y_eval, "y_again": y_again}

    def _module(self, eps: float, **options: Any) -> Any:
        from flax import linen

        module: Any = linen.BatchNorm
        return module(axis=1, epsilon=eps, **options, **self.options)

    def _train(
        self, eps: float, momentum: float | None, gamma: Value, beta: Value, state: dict[str, Value], x: Value
    ) -> tuple[Value, dict[str, Value]]:
        variables = {"params": {"scale": gamma, "bias": beta}, "batch_stats": state}
        module = self._module(eps, momentum=momentum)
        y, moved = module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        return y, dict(moved["batch_stats"])

    def definition(self, inputs: Inputs, frozen: bool) -> list[str]:
        """See `OnJax.definition`."""
        point = "x, gamma, beta, mean, var" if frozen else "x, gamma, beta"
        lines = [
            f"module = nn.BatchNorm(use_running_average={frozen}, axis=1, epsilon=eps{self.written})",
            *([] if frozen else ["mean, var = jnp.zeros_like(gamma), jnp.ones_like(gamma)  # not read in training"]),
            "",
            f"def batch_norm({point}):",
            '    variables = {"params": {"scale": gamma, "bias": beta}, "batch_stats": {"mean": mean, "var": var}}',
        ]
        if frozen:
            return [*lines, "    return module.apply(variables, x)"]
        return [*lines, '    return module.apply(variables, x, mutable=["batch_stats"])[0]']

    def statistics(self, inputs: Inputs) -> list[str]:
        """See `OnJax.statistics`."""
        return [
            'variables = {"params": {"scale": gamma, "bias": beta}, "batch_stats": {"mean": mean, "var": var}}',
            "forgetful = module.clone(momentum=0.0)  # whose running statistics are the batch's",
            'moved = forgetful.apply(variables, x, mutable=["batch_stats"])[1]["batch_stats"]',
            'answer |= {"mean": np.asarray(moved["mean"]), "var": np.asarray(moved["var"])}',
        ]

    def steps(self, operation: str, inputs: Inputs) -> list[str]:
        """See `OnJax.steps`."""
        lines = [
            f"module = nn.BatchNorm(axis=1, epsilon=eps, momentum=momentum{self.written})",
            'params = {"scale": jnp.asarray(gamma), "bias": jnp.asarray(beta)}',
            'state = {"batch_stats": {"mean": jnp.asarray(running_mean), "var": jnp.asarray(running_var)}}',
            "",
            "def train(state, x):",
            '    variables = {"params": params, **state}',
            '    return module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])',
            "",
        ]
        if operation == "running":
            return [
                *lines,
                "for batch in batches:",
                "    _, state = train(state, batch)",
                'answer = {f"running_{name}": np.asarray(value) for name, value in state["batch_stats"].items()}',
            ]
        return [
            *lines,
            "y_train, state = train(state, batches[0])",
            'y_eval = module.apply({"params": params, **state}, batches[1], use_running_average=True)',
            "y_again, _ = train(state, batches[0])",
            'answer = {"y_train": np.asarray(y_train), "y_eval": np.asarray(y_eval), "y_again": np.asarray(y_again)}',
        ]


class Nnx(_Flax):
    """``flax.nnx.BatchNorm``, a module that holds its variables.

    Parameters
    ----------
    *options : str
        ``"two-pass"`` for ``use_fast_variance=False``.
    """

    name = "flax-nnx"
    imports = ("from flax import nnx",)

    def forward(self, eps: float, x: Value, gamma: Value, beta: Value) -> dict[str, Value]:
        """With momentum 0 the running statistics are those of the batch."""
        import jax.numpy as jnp

        start = jnp.zeros_like(gamma, dtype=jnp.promote_types(gamma.dtype, jnp.float32))
        module = self._module(eps, 0.0, gamma, beta, (start, start))
        return {"y": module(x), "mean": module.mean[...], "var": module.var[...]}

    def inference(self, eps: float, x: Value, gamma: Value, beta: Value, mean: Value, var: Value) -> Value:
        """See `OnJax.inference`."""
        return self._module(eps, 0.0, gamma, beta, (mean, var))(x, use_running_average=True)

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
        module = self._module(eps, momentum, gamma, beta, running)
        if operation == "running":
            for batch in batches:
                module(batch)
            return {"running_mean": module.mean[...], "running_var": module.var[...]}
        y_train = module(batches[0])
        y_eval = module(batches[1], use_running_average=True)
        return {"y_train": y_train, "y_eval": y_eval, "y_again": module(batches[0])}

    def _module(
        self, eps: float, momentum: float | None, gamma: Value, beta: Value, running: tuple[Value, Value]
    ) -> Any:
        from flax import nnx

        options: dict[str, Any] = {"epsilon": eps, "momentum": momentum, **self.options}
        module: Any = nnx.BatchNorm(gamma.size, axis=1, param_dtype=gamma.dtype, rngs=nnx.Rngs(0), **options)
        module.scale[...], module.bias[...] = gamma, beta
        module.mean, module.var = (nnx.BatchStat(statistic) for statistic in running)
        return module

    def definition(self, inputs: Inputs, frozen: bool) -> list[str]:
        """See `OnJax.definition`."""
        point = "x, gamma, beta, mean, var" if frozen else "x, gamma, beta"
        lines = [
            self._options_script,
            "",
            f"def batch_norm({point}):",
            f"    module = {self._made('use_running_average=True, ' if frozen else '')}",
            "    module.scale[...], module.bias[...] = gamma, beta",
        ]
        if frozen:
            lines.append("    module.mean, module.var = nnx.BatchStat(mean), nnx.BatchStat(var)")
        return [*lines, "    return module(x)"]

    def _made(self, options: str) -> str:
        return f"nnx.BatchNorm(gamma.size, rngs=nnx.Rngs(0), {options}**options)"

    @property
    def _options_script(self) -> str:
        return f"options = dict(axis=1, epsilon=eps, param_dtype=gamma.dtype{self.written})"

    def statistics(self, inputs: Inputs) -> list[str]:
        """See `OnJax.statistics`."""
        return [
            "# with momentum 0 the running statistics are the batch's",
            f"module = {self._made('momentum=0.0, ')}",
            "start = jnp.zeros(gamma.size, jnp.promote_types(gamma.dtype, jnp.float32))",
            "module.mean, module.var = nnx.BatchStat(start), nnx.BatchStat(start)",
            "module(x)",
            'answer |= {"mean": np.asarray(module.mean[...]), "var": np.asarray(module.var[...])}',
        ]

    def steps(self, operation: str, inputs: Inputs) -> list[str]:
        """See `OnJax.steps`."""
        lines = [
            self._options_script,
            f"module = {self._made('momentum=momentum, ')}",
            "module.scale[...], module.bias[...] = jnp.asarray(gamma), jnp.asarray(beta)",
            "module.mean = nnx.BatchStat(jnp.asarray(running_mean))",
            "module.var = nnx.BatchStat(jnp.asarray(running_var))",
        ]
        if operation == "running":
            return [
                *lines,
                "for batch in batches:",
                "    module(batch)",
                'answer = {"running_mean": np.asarray(module.mean[...]), "running_var": np.asarray(module.var[...])}',
            ]
        return [
            *lines,
            "y_train = module(batches[0])",
            "y_eval = module(batches[1], use_running_average=True)",
            "y_again = module(batches[0])",
            'answer = {"y_train": np.asarray(y_train), "y_eval": np.asarray(y_eval), "y_again": np.asarray(y_again)}',
        ]
