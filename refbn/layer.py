"""`BatchNorm`: the passes with running statistics, in the manner of a named framework."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refbn import _api, _validate, backends
from refbn._types import Array, Forward
from refbn.dialects import Dialect

__all__ = ["BatchNorm"]

_DEFAULT = object()


class BatchNorm:
    """Batch normalization that keeps running statistics.

    Parameters
    ----------
    num_features : int
        C, the number of channels.
    eps : float, optional
        ε; the dialect's default if left out, and stored as the dialect stores it.
    momentum : float or None, optional
        In the dialect's sense (the weight of the new value, or of the old one). None asks for the cumulative average,
        where the dialect has it. The dialect's default if left out.
    dialect : str or Dialect
        Whose conventions to follow: ``"torch"``, ``"keras"``, ``"flax"``, ``"onnx"``, ``"paddle"``.
    channel_axis : int, optional
        The dialect's default if left out.
    dtype : dtype
        Format of gamma, beta and the running statistics.
    backend : str, optional
        As for `refbn.forward`.

    Attributes
    ----------
    gamma, beta : ndarray, shape (C,)
        Ones and zeros at first; yours to change.
    running_mean, running_var : ndarray, shape (C,)
        Zeros and ones at first.
    num_batches_tracked : int
        How many batches have been blended in.
    training : bool
        Whether `forward` uses the batch's statistics and updates the running ones.

    Raises
    ------
    RefbnError
        C5, C14 … C17, C21; `forward` those of `refbn.forward`, C18 and C21. After an error nothing has changed.

    Examples
    --------
    >>> import numpy as np, refbn
    >>> bn = refbn.BatchNorm(2, momentum=0.5, dtype=np.float64)
    >>> fwd = bn.forward(np.array([[1.0, 0.0], [3.0, 8.0]]))
    >>> bn.running_mean, bn.running_var
    (array([1., 2.]), array([ 1.5, 16.5]))
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: Any = _DEFAULT,
        momentum: Any = _DEFAULT,
        dialect: str | Dialect = "torch",
        channel_axis: int | None = None,
        dtype: npt.DTypeLike = np.float32,
        backend: str | None = None,
    ) -> None:
        self.dialect = _validate.dialect(dialect)
        self.num_features = _validate.features(num_features)
        given = self.dialect.eps if eps is _DEFAULT else _validate.epsilon(eps)
        self.eps = self.dialect.attribute(given)
        self.momentum = self.dialect.momentum if momentum is _DEFAULT else _validate.momentum(momentum, self.dialect)
        self.channel_axis = self.dialect.channel_axis if channel_axis is None else channel_axis
        self.backend = None if backend is None else _validate.backend(backend, backends.TABLE)
        kind = _validate.result_dtype(dtype, np.dtype(np.float32))
        self.gamma: Array = np.ones(self.num_features, kind)
        self.beta: Array = np.zeros(self.num_features, kind)
        self.running_mean: Array = np.zeros(self.num_features, kind)
        self.running_var: Array = np.ones(self.num_features, kind)
        self.num_batches_tracked = 0
        self.training = True

    def train(self, mode: bool = True) -> BatchNorm:
        """Use batch statistics from now on (or, with False, the running ones); return self."""
        self.training = bool(mode)
        return self

    def eval(self) -> BatchNorm:
        """Use the running statistics from now on; return self."""
        return self.train(False)

    def __call__(self, x: Any) -> Array:
        """Return the y of `forward`."""
        return self.forward(x).y

    def forward(self, x: Any) -> Forward:
        """Normalize x; in training also blend its statistics into the running ones.

        Returns
        -------
        Forward
            Of `refbn.forward` in training, of `refbn.inference` in evaluation.
        """
        array, axis = _validate.input_tensor(x, self.channel_axis)
        _validate.feature_count(array, axis, self.num_features)
        options: dict[str, Any] = {"eps": self.eps, "channel_axis": axis, "backend": self.backend}
        if not self.training:
            # A copy: the Saved must not see later updates.
            mean, var = self.running_mean.copy(), self.running_var.copy()
            return _api.inference(array, mean, var, self.gamma, self.beta, **options)
        if self.dialect.single_value == "raise" or self.dialect.unbiased_running_var:
            _validate.unbiased_count(array.size // self.num_features)
        result = _api.forward(array, self.gamma, self.beta, **options)
        self._track(result)
        return result

    def _track(self, result: Forward) -> None:
        weight, weighs_new = self.dialect.weight(self.momentum, self.num_batches_tracked + 1)
        mean, var = np.empty_like(self.running_mean), np.empty_like(self.running_var)
        saved = result.saved
        (x,) = saved.geometry.canonical(saved.x)
        backends.load(saved.backend).running_update(
            saved.state,
            x,
            weight,
            weighs_new,
            self.dialect.unbiased_running_var,
            self.running_mean,
            self.running_var,
            out_mean=mean,
            out_var=var,
        )
        self.running_mean, self.running_var = mean, var
        self.num_batches_tracked += 1

    def __repr__(self) -> str:
        return (
            f"BatchNorm({self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"dialect={self.dialect.name!r}, channel_axis={self.channel_axis})"
        )
