"""Named conventions: what differs between frameworks and must not be called a defect.

A `Dialect` is data. `refbn.BatchNorm` takes one to keep running statistics as a framework does; the audit takes
an adapter's to know which statistics to expect, and the others to explain a deviation
("matches running_var with m − 1: torch").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from fractions import Fraction

__all__ = ["DIALECTS", "Dialect", "debiased_weight"]


@dataclass(frozen=True)
class Dialect:
    """One framework's conventions.

    Attributes
    ----------
    name : str
        The dialect's name, as in ``refbn.BatchNorm(dialect="torch")``.
    eps : float
        Default ε.
    momentum : float
        Default momentum.
    momentum_weighs : {"new", "old"}
        Which of the batch statistic and the running one the momentum weighs.
    cumulative : bool
        Whether ``momentum=None`` means the cumulative average of all batches.
    unbiased_running_var : bool
        Whether the running variance takes the batch variance with m − 1 (m otherwise).
    channel_axis : int
        Default channel axis.
    saved_statistic : {"invstd", "var"}
        What the framework hands to its backward pass beside the mean.
    attribute_format : {"float64", "float32"}
        The format in which the framework stores ε and the momentum; a value given is rounded to it first.
    single_value : {"raise", "compute"}
        What training on one value per channel (m = 1) does.
    frozen_flag : str
        What the framework calls "use the running statistics", and its sense.
    source : str
        Where the facts are documented.
    debiased : bool
        Whether the running statistics are divided by the sum of the weights so far, 1 − momentumⁿ: then where they
        start has no weight, and the first batch all of it. Only with ``momentum_weighs="old"``.
    """

    name: str
    eps: float
    momentum: float
    momentum_weighs: Literal["new", "old"]
    cumulative: bool
    unbiased_running_var: bool
    channel_axis: int
    saved_statistic: Literal["invstd", "var"]
    attribute_format: Literal["float64", "float32"]
    single_value: Literal["raise", "compute"]
    frozen_flag: str
    source: str
    debiased: bool = False

    def attribute(self, value: float) -> float:
        """Return ``value`` as the framework stores it: rounded to `attribute_format`."""
        return float(np.dtype(self.attribute_format).type(value))

    def blend(self, old: Fraction, new: Fraction, momentum: float | None, step: int) -> Fraction:
        """Return the running statistic after one update, exactly.

        Parameters
        ----------
        old, new : Fraction
            The running statistic and the batch's.
        momentum : float or None
            As the framework's argument; None is the cumulative average.
        step : int
            How many batches have been seen, this one included (used by the cumulative average alone).
        """
        weight, weighs_new = self.weight(momentum, step)
        return old + weight * (new - old) if weighs_new else new + weight * (old - new)

    def weight(self, momentum: float | None, step: int) -> tuple[Fraction, bool]:
        """Return the exact weight of one update, and whether it is the new value's.

        ``momentum=None`` is the cumulative average, for dialects that have one.
        """
        from fractions import Fraction  # here, since it brings decimal: a tenth of refbn's import time

        if momentum is None:
            return Fraction(1, step), True
        if self.debiased:
            return debiased_weight(Fraction(self.attribute(momentum)), step), True
        return Fraction(self.attribute(momentum)), self.momentum_weighs == "new"


def debiased_weight(momentum: Fraction, step: int) -> Fraction:
    """Return the weight of batch n in an average that is divided by its weights: (1 − m)/(1 − mⁿ).

    It is 1 for the first batch. For m = 1 that is 0/0, and its limit 1/n is returned, the cumulative average.
    """
    return 1 / sum((momentum**k for k in range(step)), start=0 * momentum)


_ALL = (
    Dialect(
        name="torch",
        eps=1e-5,
        momentum=0.1,
        momentum_weighs="new",
        cumulative=True,
        unbiased_running_var=True,
        channel_axis=1,
        saved_statistic="invstd",
        attribute_format="float64",
        single_value="raise",
        frozen_flag="eval(), or track_running_stats=False for the opposite",
        source="PyTorch 2.13, torch.nn.BatchNorm2d",
    ),
    Dialect(
        name="keras",
        eps=1e-3,
        momentum=0.99,
        momentum_weighs="old",
        cumulative=False,
        unbiased_running_var=False,
        channel_axis=-1,
        saved_statistic="var",
        attribute_format="float64",
        single_value="compute",
        frozen_flag="training=False or trainable=False",
        source="Keras 3, keras.layers.BatchNormalization",
    ),
    Dialect(
        name="tensorflow",
        eps=1e-3,
        momentum=1.0,
        momentum_weighs="new",
        cumulative=False,
        unbiased_running_var=True,
        channel_axis=-1,
        saved_statistic="var",
        attribute_format="float32",
        single_value="compute",
        frozen_flag="is_training=False",
        source="TensorFlow 2.21, tf.compat.v1.nn.fused_batch_norm (exponential_avg_factor is the momentum)",
    ),
    Dialect(
        name="flax",
        eps=1e-5,
        momentum=0.99,
        momentum_weighs="old",
        cumulative=False,
        unbiased_running_var=False,
        channel_axis=-1,
        saved_statistic="var",
        attribute_format="float64",
        single_value="compute",
        frozen_flag="use_running_average=True",
        source="Flax 0.10, flax.linen.BatchNorm",
    ),
    Dialect(
        name="onnx",
        eps=1e-5,
        momentum=0.9,
        momentum_weighs="old",
        cumulative=False,
        unbiased_running_var=False,
        channel_axis=1,
        saved_statistic="var",
        attribute_format="float32",
        single_value="compute",
        frozen_flag="training_mode=0",
        source="ONNX operator BatchNormalization, opset 15",
    ),
    Dialect(
        name="paddle",
        eps=1e-5,
        momentum=0.9,
        momentum_weighs="old",
        cumulative=False,
        unbiased_running_var=False,
        channel_axis=1,
        saved_statistic="var",
        attribute_format="float32",
        single_value="compute",
        frozen_flag="use_global_stats=True",
        source="PaddlePaddle 3, paddle.nn.BatchNorm2D",
    ),
    Dialect(
        name="tinygrad",
        eps=1e-5,
        momentum=0.1,
        momentum_weighs="new",
        cumulative=False,
        unbiased_running_var=True,
        channel_axis=1,
        saved_statistic="invstd",
        attribute_format="float64",
        single_value="raise",
        frozen_flag="outside of Context(TRAINING=1), or track_running_stats=False for the opposite",
        source="tinygrad 0.14, tinygrad.nn.BatchNorm: with one value its m/(m − 1) divides by zero",
    ),
    Dialect(
        name="equinox",
        eps=1e-5,
        momentum=0.99,
        momentum_weighs="old",
        cumulative=False,
        unbiased_running_var=False,
        channel_axis=1,
        saved_statistic="var",
        attribute_format="float64",
        single_value="compute",
        frozen_flag="inference_mode(), or inference=True",
        source='Equinox 0.13, equinox.nn.BatchNorm(mode="batch")',
        debiased=True,
    ),
)

DIALECTS: dict[str, Dialect] = {d.name: d for d in _ALL}
