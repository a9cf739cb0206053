"""The contract that every backend fulfils, on canonical arrays.

**Canonical arrays.** A tensor has the shape ``(G, R1, …, Rk)``, k ≥ 1: the *groups* (for batch norm: the
channels) first, then the elements that a group's statistics run over, m = R1·…·Rk. It is a view with any
strides (negative and zero ones included) of one of the four formats. The tensors of one call agree in shape;
a tensor that the caller left out is a view of one zero with all strides zero. A *vector* (gamma, beta, mean, …) has
the shape ``(G,)``, any stride, any of the four formats. Every output is allocated by the caller and written
once; inputs are never written. There are no axes, defaults, None or bad values here.

**Answers at the edges**, the same in every backend:

R1. An infinity or NaN is no real number: an output whose formula contains one is NaN. Which inputs a formula
    contains is listed with each pass. Other groups (for frozen statistics: other elements) are not touched.
R2. If q = var + eps is 0, then invstd is +inf, and every output whose formula contains x̂ or invstd is NaN.
R3. m = 1 follows the formulas: var = 0, x̂ = 0, y = beta, dx = 0.
R4. A result that is exactly zero is +0.
R5. A finite exact result beyond the largest number of the output's format becomes ±inf, as rounding to nearest
    says.
R6. m = 0 occurs with frozen statistics only (training refuses it): tensors are empty, and sums are 0 whatever R1
    and R2 say of the numbers that nothing was multiplied with.
R7. A Taylor coefficient y_k contains the coefficients 0 … k of its inputs.

**State.** `forward` and `inference` return a state: whatever the backend's derivative passes want to know of the
statistics in more than the output's precision. It is opaque to everybody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

if TYPE_CHECKING:
    from fractions import Fraction

__all__ = ["Backend"]

Array = npt.NDArray[Any]
State = Any


class Backend(Protocol):
    """The passes; a module or an object. The comments name what each output's formula contains (rule R1)."""

    name: str

    # ---- training: statistics are functions of x -------------------------------------------------------------

    def forward(
        self,
        x: Array,
        gamma: Array,
        beta: Array,
        eps: float,
        *,
        y: Array,
        mean: Array,
        var: Array,
        invstd: Array,
    ) -> State:
        """y = gamma·x̂ + beta. mean, var, invstd contain x; y contains x, gamma, beta."""

    def backward(
        self, state: State, x: Array, gamma: Array, dy: Array, *, dx: Array, dgamma: Array, dbeta: Array
    ) -> None:
        """dx contains x, gamma, dy; dgamma contains x, dy; dbeta contains dy."""

    def jvp(
        self,
        state: State,
        x: Array,
        gamma: Array,
        x_dot: Array,
        gamma_dot: Array,
        beta_dot: Array,
        *,
        y_dot: Array,
    ) -> None:
        """y_dot contains x, gamma, x_dot, gamma_dot, beta_dot."""

    def double_backward(
        self,
        state: State,
        x: Array,
        gamma: Array,
        dy: Array,
        ddx: Array,
        ddgamma: Array,
        ddbeta: Array,
        *,
        ddy: Array,
        dx: Array,
        dgamma: Array,
    ) -> None:
        """The vjp of `backward` for cotangents ddx, ddgamma, ddbeta of (dx, dgamma, dbeta).

        ddy contains x, gamma, ddx, ddgamma, ddbeta; dx contains x, gamma, dy, ddx, ddgamma; dgamma contains
        x, dy, ddx.
        """

    def hvp(
        self,
        state: State,
        x: Array,
        gamma: Array,
        dy: Array,
        x_dot: Array,
        gamma_dot: Array,
        *,
        dx: Array,
        dgamma: Array,
        dbeta: Array,
    ) -> None:
        """The derivative of `backward` along a direction at fixed dy.

        dx contains x, gamma, dy, x_dot, gamma_dot; dgamma contains x, dy, x_dot; dbeta is 0.
        """

    def running_update(
        self,
        state: State,
        x: Array,
        momentum: Fraction,
        weighs_new: bool,
        unbiased: bool,
        running_mean: Array,
        running_var: Array,
        *,
        out_mean: Array,
        out_var: Array,
    ) -> None:
        """Blend the batch statistics of `forward` into running ones; x is what `forward` got.

        The new value weighs ``momentum`` (``weighs_new``) or the old one does; the other weighs 1 − momentum. The
        batch variance is var·m/(m−1) if ``unbiased`` (then m > 1) and var otherwise. Each output contains x
        and its own running value.
        """

    # ---- frozen statistics: mean and var are independent inputs --------------------------------------------------

    def inference(
        self,
        x: Array,
        mean: Array,
        var: Array,
        gamma: Array,
        beta: Array,
        eps: float,
        *,
        y: Array,
        invstd: Array,
    ) -> State:
        """y_i contains x_i, mean, var, gamma, beta; invstd contains var."""

    def inference_backward(
        self,
        state: State,
        x: Array,
        gamma: Array,
        dy: Array,
        *,
        dx: Array,
        dgamma: Array,
        dbeta: Array,
        dmean: Array,
        dvar: Array,
    ) -> None:
        """The vjp of `inference`.

        dx_i contains var, gamma, dy_i; dgamma x, mean, var, dy; dbeta dy; dmean var, gamma, dy; dvar x, mean, var,
        gamma, dy.
        """

    def inference_jvp(
        self,
        state: State,
        x: Array,
        gamma: Array,
        x_dot: Array,
        mean_dot: Array,
        var_dot: Array,
        gamma_dot: Array,
        beta_dot: Array,
        *,
        y_dot: Array,
    ) -> None:
        """y_dot_i contains x_i, mean, var, gamma, x_dot_i, mean_dot, var_dot, gamma_dot, beta_dot."""

    def inference_double_backward(
        self,
        state: State,
        x: Array,
        gamma: Array,
        dy: Array,
        ddx: Array,
        ddmean: Array,
        ddvar: Array,
        ddgamma: Array,
        ddbeta: Array,
        *,
        ddy: Array,
        dx: Array,
        dgamma: Array,
        dmean: Array,
        dvar: Array,
    ) -> None:
        """The vjp of `inference_backward` for cotangents ddx, ddmean, … of (dx, dmean, …).

        ddy_i contains what y_dot_i does. dx_i contains var, gamma, dy_i, ddvar, ddgamma; dgamma contains x, mean, var,
        dy, ddx, ddmean, ddvar; dmean contains var, gamma, dy, ddvar, ddgamma; dvar contains x, mean, var,
        gamma, dy and every dd but ddbeta.
        """

    def inference_hvp(
        self,
        state: State,
        x: Array,
        gamma: Array,
        dy: Array,
        x_dot: Array,
        mean_dot: Array,
        var_dot: Array,
        gamma_dot: Array,
        *,
        dx: Array,
        dgamma: Array,
        dbeta: Array,
        dmean: Array,
        dvar: Array,
    ) -> None:
        """The derivative of `inference_backward` along a direction at fixed dy.

        Formulas contain what those of `inference_double_backward` do; dbeta is 0.
        """

    # ---- any order: offered by `reference` and `exact` only ------------------------------------------------------

    def taylor(
        self,
        x: tuple[Array, ...],
        gamma: tuple[Array, ...],
        beta: tuple[Array, ...],
        eps: float,
        *,
        y: tuple[Array, ...],
    ) -> None:
        """Truncated Taylor coefficients of y from those of x, gamma, beta; all tuples have one length."""
