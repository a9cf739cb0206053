"""A zoo of classic mistakes: small batch norms that are right but for one thing each.

The zoo proves that the audit can fail. Every member derives from `Control`, which makes no mistake, and overrides
the one step in which its mistake lies. All arithmetic is binary64 unless the mistake is a narrower one, and
results are rounded once, so nothing else can kill a member. `Control` itself must survive: an audit that kills
everything has proved nothing.

The notation is that of `refbn.reference`: per channel d = x − μ, r = 1/√(v + ε), x̂ = d·r,

    P u = u − mean(u) − x̂·mean(x̂·u),        y = γ·x̂ + β,        ẏ = γ·r·Pẋ + γ̇·x̂ + β̇,
    K(u, g) = −γ·r²·[mean(x̂g)·P u + mean(x̂u)·P g + x̂·mean(u·P g)].

Inside a member, tensors are matrices of shape (C, m) and vectors are columns (C, 1).

In layer, group and instance norm the rows are groups, G of them, and γ and β are matrices (G, m) as well: γ goes into
the projection, dx = r·P(γ·g). A member makes its mistake in these norms too, unless its ``norms`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

import refbn
from refbn._formats import FORMATS, load, round_to
from refbn._geometry import Geometry
from refbn.audit.adapters._composed import answer, script
from refbn.audit.adapters._protocol import OPERATIONS, Array, Inputs, Unsupported
from refbn.audit.cases import geometry_of
from refbn.dialects import DIALECTS

__all__ = ["ZOO", "Control"]

Matrix = npt.NDArray[np.float64]
Moved = dict[str, Matrix]
"""Gradients by name, or the direction's parts by name (x, gamma, beta, mean, var)."""


# ---- a batch norm at one point, right -------------------------------------------------------------------------


class _Point:
    """What training and evaluation share: arrays to matrices and back, and the `Point` that `answer` wants."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.gamma, self.beta = self.column(inputs.gamma), self.column(inputs.beta)
        self.prepare(self.matrix(inputs.x))

    # Hooks: a point answers these four, on matrices.

    def prepare(self, x: Matrix) -> None:
        """Compute what the passes need of x."""
        raise NotImplementedError

    def output(self) -> Matrix:
        """Return y."""
        raise NotImplementedError

    def pull(self, g: Matrix) -> Moved:
        """Return the gradient of <g, y>."""
        raise NotImplementedError

    def push(self) -> Matrix:
        """Return ẏ."""
        raise NotImplementedError

    def turn(self, g: Matrix) -> Moved:
        """Return the derivative of ``pull(g)`` along the direction; also the gradient of <g, ẏ>, by symmetry."""
        raise NotImplementedError

    def bend(self) -> Matrix:
        """Return ÿ, the second derivative of y along the direction."""
        raise NotImplementedError

    # Arrays to matrices and back.

    def matrix(self, tensor: Array) -> Matrix:
        """Return (C, m) of a tensor (N, C, …), in binary64; infinities become NaN."""
        return load(np.moveaxis(tensor, 1, 0)).reshape(tensor.shape[1], tensor.size // tensor.shape[1])

    def column(self, vector: Array) -> Matrix:
        """Return (C, 1) of a vector, in binary64."""
        return load(vector)[:, None]

    def tensor(self, values: Matrix) -> Array:
        """Round a matrix to the case's dtype and bring it into x's shape."""
        shape, dtype = self.inputs.x.shape, self.inputs.x.dtype
        spread = round_to(np.broadcast_to(values, (shape[1], self.inputs.x.size // shape[1])), dtype)
        return np.moveaxis(spread.reshape(shape[1], shape[0], *shape[2:]), 0, 1)

    def vector(self, column: Matrix) -> Array:
        """Round a column to the parameters' dtype."""
        return round_to(column[:, 0], self.inputs.gamma.dtype)

    def average(self, values: Matrix) -> Matrix:
        """Return each channel's mean."""
        return np.asarray(values.mean(axis=1, keepdims=True))

    def total(self, values: Matrix) -> Matrix:
        """Return each channel's sum."""
        return np.asarray(values.sum(axis=1, keepdims=True))

    @cached_property
    def direction(self) -> Moved:
        """The direction D."""
        i = self.inputs
        vectors = {"gamma": i.gamma_dot, "beta": i.beta_dot, "mean": i.mean_dot, "var": i.var_dot}
        return {"x": self.matrix(i.x_dot)} | {name: self.column(a) for name, a in vectors.items()}

    def store(self, gradients: Moved) -> dict[str, Array]:
        """Round gradients: dx to the case's dtype, the others to the parameters'."""
        return {name: self.tensor(g) if name == "dx" else self.vector(g) for name, g in gradients.items()}

    # The `Point`.

    @property
    def y(self) -> Array:
        """See `Point`."""
        return self.tensor(self.output())

    def backward(self, dy: Array) -> dict[str, Array]:
        """See `Point`."""
        return self.store(self.pull(self.matrix(dy)))

    def jvp(self) -> Array:
        """See `Point`."""
        return self.tensor(self.push())

    def double_backward(self, dy: Array) -> tuple[Array, dict[str, Array]]:
        """See `Point`."""
        return self.jvp(), self.store(self.turn(self.matrix(dy)))

    def hvp(self, dy: Array) -> dict[str, Array]:
        """See `Point`."""
        return self.store(self.turn(self.matrix(dy)))

    def vjp_of_jvp(self, dy: Array) -> dict[str, Array]:
        """See `Point`."""
        return self.store(self.turn(self.matrix(dy)))

    def curve(self, order: int) -> Sequence[Array]:
        """See `Point`."""
        if order > 2:
            raise Unsupported("the zoo stops at the second order")
        return [self.y, self.jvp(), self.tensor(self.bend())]


class _Training(_Point):
    """Batch norm with the statistics of x."""

    fewest: ClassVar[int] = 2
    """How many values a channel must have."""

    @property
    def inside(self) -> Matrix | float:
        """The factor of g that the projection sees: γ in other norms, where it varies within a row."""
        return 1.0

    @property
    def outside(self) -> Matrix | float:
        """The factor of what has been projected."""
        return self.gamma

    def prepare(self, x: Matrix) -> None:
        """Set mean, var, r and x̂. Channels of extreme size are scaled by a power of two on the way."""
        if x.shape[1] < self.fewest:
            raise ValueError("training needs more than one value in each channel")
        size = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.sqrt(self.inputs.eps))
        exponent = np.frexp(size)[1]
        exponent = np.where(np.isfinite(size) & (np.abs(exponent) > 400), exponent, 0)
        x, eps = np.ldexp(x, -exponent), np.ldexp(self.inputs.eps, -2 * exponent)
        mean, d = self.centre(x)
        var = self.variance(x, d)
        r = self.inverse_root(var, eps)
        self.xhat = d * r
        self.mean, self.var, self.r = (
            np.ldexp(mean, exponent),
            np.ldexp(var, 2 * exponent),
            np.ldexp(r, -exponent),
        )
        self.r_backward = np.ldexp(self.inverse_root_backward(var, eps), -exponent)

    def centre(self, x: Matrix) -> tuple[Matrix, Matrix]:
        """Return the mean, and d. The mean is subtracted twice; a constant channel leaves exact zeros."""
        mean = self.average(x)
        d = x - mean
        rest = self.average(d)
        return mean + rest, np.where(x.min(axis=1, keepdims=True) == x.max(axis=1, keepdims=True), 0.0, d - rest)

    def variance(self, x: Matrix, d: Matrix) -> Matrix:
        """Return mean(d²)."""
        return self.average(d * d)

    def inverse_root(self, var: Matrix, eps: Matrix) -> Matrix:
        """Return r."""
        return np.asarray(1.0 / np.sqrt(var + eps))

    def inverse_root_backward(self, var: Matrix, eps: Matrix) -> Matrix:
        """Return the r that backward multiplies by."""
        return self.inverse_root(var, eps)

    def project(self, u: Matrix) -> Matrix:
        """Return P u."""
        centred = u - self.average(u)
        return np.asarray(centred - self.xhat * self.average(self.xhat * centred))

    def project_backward(self, g: Matrix) -> Matrix:
        """Return the P g of backward."""
        return self.project(g)

    def kernel(self, u: Matrix, g: Matrix) -> Matrix:
        """Return K(u, g)."""
        return np.asarray(-self.gamma * self.r * (self.r * self.bracket(u, g)))

    def bracket(self, u: Matrix, g: Matrix) -> Matrix:
        """Return K's bracket."""
        pu, pg = self.project(u), self.project(g)
        return np.asarray(self.average(self.xhat * g) * pu + self.average(self.xhat * u) * pg + self.third(u, pg))

    def third(self, u: Matrix, pg: Matrix) -> Matrix:
        """Return the third term of K's bracket."""
        return np.asarray(self.xhat * self.average(u * pg))

    def output(self) -> Matrix:
        """Return y = γ·x̂ + β."""
        return np.asarray(self.gamma * self.xhat + self.beta)

    def pull(self, g: Matrix) -> Moved:
        """Return dx = γ·r·P g, dγ = Σ g·x̂, dβ = Σ g."""
        return {
            "dx": self.outside * self.r_backward * self.project_backward(self.inside * g),
            "dgamma": self.total(g * self.xhat),
            "dbeta": self.total(g),
        }

    def push(self) -> Matrix:
        """Return ẏ = γ·r·Pẋ + γ̇·x̂ + β̇."""
        to = self.direction
        return np.asarray(self.gamma * self.r * self.project(to["x"]) + to["gamma"] * self.xhat + to["beta"])

    def turn(self, g: Matrix) -> Moved:
        """Return K(ẋ, g) + γ̇·r·P g for x, r·Σ ẋ·P g for γ."""
        to, pg = self.direction, self.project(g)
        return {
            "dx": self.kernel(to["x"], g) + to["gamma"] * self.r * pg,
            "dgamma": self.r * self.total(to["x"] * pg),
        }

    def bend(self) -> Matrix:
        """Return K(ẋ, ẋ) + 2·γ̇·r·Pẋ."""
        u = self.direction["x"]
        return np.asarray(self.kernel(u, u) + 2.0 * self.direction["gamma"] * self.r * self.project(u))


class _Grouped(_Training):
    """Another norm than batch norm, where γ varies within a row and is shared by several.

    A member's class comes before this one and after `_Training` (see `_grouped`), so that its mistake is made here.
    """

    fewest = 1

    @cached_property
    def geometry(self) -> Geometry:
        """How the norm splits the axes."""
        return geometry_of(self.inputs.norm, self.inputs.x.shape)

    @property
    def inside(self) -> Matrix:
        """γ."""
        return self.gamma

    @property
    def outside(self) -> float:
        """Nothing."""
        return 1.0

    def matrix(self, tensor: Array) -> Matrix:
        """Return (G, m) of a tensor, in binary64; infinities become NaN."""
        return load(self.geometry.grouped(tensor))

    def column(self, vector: Array) -> Matrix:
        """Return (G, m) of what lies on gamma's axes, in binary64."""
        return load(self.geometry.rows(self.geometry.spread(vector)))

    def tensor(self, values: Matrix) -> Array:
        """Round a matrix to the case's dtype and bring it into x's shape."""
        whole = np.broadcast_to(values, (self.geometry.groups, self.geometry.count))
        return self.geometry.ungrouped(round_to(whole, self.inputs.x.dtype))

    def vector(self, column: Matrix) -> Array:
        """Round a statistic to the parameters' dtype."""
        return round_to(column[:, 0], self.inputs.gamma.dtype).reshape(self.geometry.group_shape)

    def pull(self, g: Matrix) -> Moved:
        """Return dx = r·P(γ·g) and the elements that dγ and dβ add up."""
        return super().pull(g) | {"dgamma": g * self.xhat, "dbeta": g}

    def turn(self, g: Matrix) -> Moved:
        """Return d/dt of r·P(γ·g) for x, the elements of Σ g·r·Pẋ for γ."""
        to, scaled = self.direction, self.gamma * g
        bent = -self.r * (self.r * self.bracket(to["x"], scaled))
        return {
            "dx": bent + self.r * self.project(to["gamma"] * g),
            "dgamma": g * (self.r * self.project(to["x"])),
        }

    def store(self, gradients: Moved) -> dict[str, Array]:
        """Round gradients; of dγ and dβ the sums over what each element scales."""
        stored = {}
        for name, g in gradients.items():
            if name == "dx":
                stored[name] = self.tensor(g)
            else:
                whole = np.broadcast_to(g, (self.geometry.groups, self.geometry.count))
                sums = self.total(self.geometry.by_affine(whole))
                stored[name] = round_to(sums[:, 0], self.inputs.gamma.dtype).reshape(self.geometry.affine_shape)
        return stored

    @cached_property
    def direction(self) -> Moved:
        """The direction D."""
        i = self.inputs
        return {"x": self.matrix(i.x_dot), "gamma": self.column(i.gamma_dot), "beta": self.column(i.beta_dot)}


def _grouped(training: type[_Point]) -> type[_Point]:
    """Return a member's batch norm as another norm."""
    bases = (_Grouped,) if training is _Training else (training, _Grouped)
    return cast("type[_Point]", type(training.__name__, bases, {}))


class _Frozen(_Point):
    """Batch norm with given statistics: y = γ·(x − μ)·r + β, where μ and v are inputs like the others."""

    def prepare(self, x: Matrix) -> None:
        """Set d and r; by rule R2 nothing that contains r is a number where v + ε = 0."""
        self.x = x
        self.mean, self.var = self.column(self.inputs.mean), self.column(self.inputs.var)
        self.d = x - self.mean
        root = np.sqrt(self.var + self.inputs.eps)
        self.r = np.where(root == 0, np.nan, 1.0 / root)

    @property
    def r_backward(self) -> Matrix:
        """The r that backward multiplies by."""
        return self.r

    @property
    def r_dot(self) -> Matrix:
        """The derivative of r along the direction."""
        return np.asarray(-0.5 * self.r**3 * self.direction["var"])

    def output(self) -> Matrix:
        """Return y."""
        return np.asarray(self.gamma * (self.d * self.r) + self.beta)

    def pull(self, g: Matrix) -> Moved:
        """Return dx = γ·r·g, dγ = r·Σ g·d, dβ = Σ g, dμ = −γ·r·Σ g, dv = −½·γ·r³·Σ g·d."""
        r, moment = self.r_backward, self.total(g * self.d)
        return {
            "dx": self.gamma * r * g,
            "dgamma": r * moment,
            "dbeta": self.total(g),
            "dmean": -self.gamma * r * self.total(g),
            "dvar": -0.5 * self.gamma * r**3 * moment,
        }

    def push(self) -> Matrix:
        """Return ẏ: the factor a = γ·r and x − μ both move."""
        to = self.direction
        a_dot = to["gamma"] * self.r + self.gamma * self.r_dot
        return np.asarray(a_dot * self.d + self.gamma * self.r * (to["x"] - to["mean"]) + to["beta"])

    def turn(self, g: Matrix) -> Moved:
        """Return `pull` with each factor γ, r, d moved in turn."""
        to, r, r_dot = self.direction, self.r, self.r_dot
        a_dot = to["gamma"] * r + self.gamma * r_dot
        moment, moment_dot = self.total(g * self.d), self.total(g * (to["x"] - to["mean"]))
        cube_dot = to["gamma"] * r**3 * moment + 3.0 * self.gamma * r**2 * r_dot * moment
        return {
            "dx": a_dot * g,
            "dgamma": r_dot * moment + r * moment_dot,
            "dmean": -a_dot * self.total(g),
            "dvar": -0.5 * (cube_dot + self.gamma * r**3 * moment_dot),
        }

    def bend(self) -> Matrix:
        """Return ä·d + 2·ȧ·(ẋ − μ̇), with r̈ = ¾·r⁵·v̇²."""
        to, r_dot = self.direction, self.r_dot
        a_dot = to["gamma"] * self.r + self.gamma * r_dot
        a_ddot = 2.0 * to["gamma"] * r_dot + self.gamma * 0.75 * self.r**5 * to["var"] ** 2
        return np.asarray(a_ddot * self.d + 2.0 * a_dot * (to["x"] - to["mean"]))


class Control:
    """No mistake. It must survive.

    Attributes
    ----------
    family : str
        The family of cases that is meant to kill the member; empty for this one.
    thread : str
        Where the mistake was made in public, if that is known.
    training, frozen : type
        The batch norm at a point, with statistics of x and with given ones.
    norms : frozenset of str
        The norms that can have the mistake.
    depends_on_order : bool
        Whether the results depend on the order of summation or the like, so that another program with the same
        mistake has errors of the same size, but not the same ones.
    variants : tuple of dict
        Arguments with which the class may be called: orders of summation that programs are known to use.
    """

    name: str = "control"
    family: str = ""
    thread: str = ""
    training: type[_Point] = _Training
    frozen: type[_Point] = _Frozen
    norms: frozenset[str] = frozenset({"batch", "layer", "group", "instance"})
    depends_on_order: ClassVar[bool] = False
    variants: ClassVar[tuple[dict[str, int], ...]] = ({},)

    dialect = DIALECTS["torch"]
    operations = frozenset(OPERATIONS) - {
        "rev_rev_rev",
        "rev_rev_rev_eval",
        "fwd_fwd_fwd",
        "fwd_fwd_fwd_eval",
    }
    dtypes = frozenset(f.name for f in FORMATS)
    differentiates_statistics = True
    environment: ClassVar[Mapping[str, str]] = {}

    def version(self) -> str | None:
        """Return refbn's version: the zoo comes with it."""
        return refbn.__version__

    def set_threads(self, count: int) -> None:
        """Refuse: NumPy runs on the calling thread."""
        raise Unsupported(f"the zoo runs on the calling thread, not on {count}")

    def reproduction(self, operation: str, inputs: Inputs) -> str:
        """See `Adapter.reproduction`."""
        return script(f"zoo-{type(self).name}", operation, inputs.norm)

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Run one operation; see `Adapter.run`."""
        with np.errstate(all="ignore"):
            if operation in ("running", "train_eval_train"):
                return self._stateful(operation, inputs)
            training = self.training if inputs.norm == "batch" else _grouped(self.training)
            point = (self.frozen if OPERATIONS[operation].frozen else training)(inputs)
            return self._forward(point) if operation == "forward" else answer(operation, point, inputs)

    def blend(self, old: Matrix, new: Matrix, weight: Fraction) -> Matrix:
        """Return the running statistic after one batch; `weight` is the new value's."""
        return np.asarray(old + float(weight) * (new - old))

    def unbiased(self, var: Matrix, count: int) -> Matrix:
        """Return the batch variance that is blended into the running one, if the dialect corrects it."""
        return np.asarray(var * (count / (count - 1)))

    def _forward(self, point: Any) -> dict[str, Array]:
        statistics = {"mean": point.mean, "var": point.var, "invstd": point.r}
        return {"y": point.y} | {name: point.vector(value) for name, value in statistics.items()}

    def _stateful(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        steps = 0

        def train(inputs: Inputs, batch: Array) -> tuple[Inputs, Array]:
            """Return the inputs with the next running statistics, and y."""
            nonlocal steps
            steps += 1
            weight, weighs_new = self.dialect.weight(inputs.momentum, steps)
            weight = weight if weighs_new else 1 - weight
            point: Any = self.training(replace(inputs, x=batch))
            count = batch.size // batch.shape[1]
            mean = self.blend(point.column(inputs.running_mean), point.mean, weight)
            new = self.unbiased(point.var, count) if self.dialect.unbiased_running_var else point.var
            var = self.blend(point.column(inputs.running_var), new, weight)
            return replace(inputs, running_mean=point.vector(mean), running_var=point.vector(var)), point.y

        if operation == "running":
            for batch in inputs.batches:
                inputs, _ = train(inputs, batch)
            return {"running_mean": inputs.running_mean, "running_var": inputs.running_var}
        first, second = inputs.batches[:2]
        inputs, y_train = train(inputs, first)
        y_eval = self.frozen(replace(inputs, x=second, mean=inputs.running_mean, var=inputs.running_var)).y
        return {"y_train": y_train, "y_eval": y_eval, "y_again": train(inputs, first)[1]}


# ---- mistakes in the statistics ----------------------------------------------------------------------------------


def _working(point: _Point) -> type[np.floating[Any]]:
    """Return what a framework computes in that does not widen: binary32, and binary64 for binary64 data."""
    return np.float64 if point.inputs.x.dtype == np.float64 else np.float32


def _configured(member: type[Control], **fields: int) -> dict[str, type[_Point]]:
    """Return a member's two classes with some attributes set."""
    return {
        name: cast("type[_Point]", type(name, (getattr(member, name),), dict(fields)))
        for name in ("training", "frozen")
    }


def _serial(point: _Point, values: Matrix, parts: int, lanes: int) -> Matrix:
    """Return each channel's sum, added up one after the other in the working precision."""
    working = _working(point)
    narrow = values.astype(working)
    if parts == 0 and point.inputs.norm == "batch":
        samples = narrow.reshape(len(values), point.inputs.x.shape[0], -1)
        narrow, parts = samples.cumsum(axis=2, dtype=working)[:, :, -1], 1
    total = np.zeros((len(values), 1), working)
    for part in np.array_split(narrow, max(parts, 1), axis=1):
        for lane in range(lanes):
            if part[:, lane::lanes].shape[1]:
                total = total + part[:, lane::lanes].cumsum(axis=1, dtype=working)[:, -1:]
    return total.astype(np.float64)


def _kept(point: _Point, values: Matrix) -> Matrix:
    """Return values rounded to the data's format."""
    return load(round_to(values, point.inputs.x.dtype))


def _folded(point: _Point, mean: Matrix, var: Matrix, fused: int) -> Matrix:
    """Return x·α + β′, each operation in the working precision, or with a fused multiply-add at the end."""
    working = _working(point)
    x, m, v, gamma, beta = (
        a.astype(working) for a in (point.matrix(point.inputs.x), mean, var, point.gamma, point.beta)
    )
    alpha = gamma * (1 / np.sqrt(v + working(point.inputs.eps)))
    shift = beta - m * alpha
    product = x * alpha
    if fused:
        # product + rest is x·α exactly: in binary64 as it stands, and there by Dekker's splitting.
        wide, factor = x.astype(np.float64), alpha.astype(np.float64)
        rest = wide * factor - product if working is np.float32 else _remainder(x, alpha, product)
        total = product + shift
        back = total - product
        return np.asarray(total + ((product - (total - back)) + (shift - back) + rest).astype(working), np.float64)
    return np.asarray(product + shift, np.float64)


def _remainder(a: Matrix, b: Matrix, product: Matrix) -> Matrix:
    """Return a·b − product exactly, where product is a·b rounded and nothing overflows."""
    a_high, b_high = (v * 134217729.0 - (v * 134217729.0 - v) for v in (a, b))
    a_low, b_low = a - a_high, b - b_high
    return np.asarray(((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low)


class OnePassVariance(Control):
    """The variance is E[x²] − E[x]², in the precision of the data: all digits cancel when the mean is large."""

    name = "one-pass-variance"
    family = "conditioning"
    thread = "google/flax#1491, tensorflow#118701"
    depends_on_order = True

    class training(_Training):
        def variance(self, x: Matrix, d: Matrix) -> Matrix:
            x = x.astype(_working(self))
            return self.average(x * x).astype(np.float64) - self.average(x).astype(np.float64) ** 2


class OnePassClipped(Control):
    """The variance is max(0, E[x²] − E[x]²) in the precision of the data: what cancels below zero becomes 0."""

    name = "one-pass-clipped"
    family = "conditioning"
    thread = "google/flax#1491"
    depends_on_order = True

    class training(OnePassVariance.training):
        def variance(self, x: Matrix, d: Matrix) -> Matrix:
            return np.maximum(super().variance(x, d), 0.0)


class UnscaledOverflow(Control):
    """Squares are taken in the precision of the data without scaling: beyond 1e19, d² is infinite in binary32."""

    name = "unscaled-overflow"
    family = "conditioning"
    thread = "pytorch#162489"

    class training(_Training):
        def variance(self, x: Matrix, d: Matrix) -> Matrix:
            d = d.astype(_working(self))
            return self.average(d * d).astype(np.float64)


class HalfStatistics(Control):
    """Mean and variance are kept in binary16."""

    name = "half-statistics"
    family = "conditioning"

    class training(_Training):
        def centre(self, x: Matrix) -> tuple[Matrix, Matrix]:
            mean = super().centre(x)[0].astype(np.float16).astype(np.float64)
            return mean, x - mean

        def variance(self, x: Matrix, d: Matrix) -> Matrix:
            return super().variance(x, d).astype(np.float16).astype(np.float64)


class NarrowAccumulator(Control):
    """The sum of x is kept in the format of x: it stands still or overflows in binary16 and bfloat16."""

    name = "narrow-accumulator"
    family = "conditioning"
    depends_on_order = True

    class training(_Training):
        def centre(self, x: Matrix) -> tuple[Matrix, Matrix]:
            sums = x.astype(self.inputs.x.dtype).cumsum(axis=1)
            mean = sums[:, -1:].astype(np.float64) / x.shape[1]
            return mean, x - mean


class SerialSums(Control):
    """Every sum over a channel is added up in the working precision, one term after the other.

    In binary32 it drifts in long channels, and stands still where a term is below half an ulp of the sum.

    Parameters
    ----------
    parts : int
        So many pieces of the channel are added up on their own, as threads do; 0 stands for one for each sample.
    lanes : int
        So many interleaved sums are kept, as vector registers do.
    """

    name = "serial-sums"
    family = "exact"
    depends_on_order = True
    variants = ({}, {"parts": 2}, {"parts": 4}, {"parts": 0}, {"lanes": 8}, {"lanes": 16})

    def __init__(self, parts: int = 1, lanes: int = 1) -> None:
        vars(self).update(_configured(SerialSums, parts=parts, lanes=lanes))

    class training(_Training):
        parts: int
        lanes: int

        def total(self, values: Matrix) -> Matrix:
            return _serial(self, values, self.parts, self.lanes)

        def average(self, values: Matrix) -> Matrix:
            return np.asarray(self.total(values) / values.shape[1])

        def centre(self, x: Matrix) -> tuple[Matrix, Matrix]:
            mean = self.average(x)
            return mean, x - mean

    class frozen(_Frozen):
        parts: int
        lanes: int

        def total(self, values: Matrix) -> Matrix:
            return _serial(self, values, self.parts, self.lanes)


class StoredStatistics(Control):
    """Mean and invstd are rounded to the parameters' format, in which they are stored, before they are used."""

    name = "stored-statistics"
    family = "conditioning"

    class training(_Training):
        def centre(self, x: Matrix) -> tuple[Matrix, Matrix]:
            mean = load(round_to(super().centre(x)[0], self.inputs.gamma.dtype))
            return mean, x - mean

        def inverse_root(self, var: Matrix, eps: Matrix) -> Matrix:
            return load(round_to(super().inverse_root(var, eps), self.inputs.gamma.dtype))

        def project(self, u: Matrix) -> Matrix:
            return np.asarray(u - self.average(u) - self.xhat * self.average(self.xhat * u))


class NarrowArithmetic(Control):
    """Every operation on elements is rounded to the data's own format, binary16 or bfloat16."""

    name = "narrow-arithmetic"
    family = "conditioning"
    depends_on_order = True

    class training(_Training):
        def centre(self, x: Matrix) -> tuple[Matrix, Matrix]:
            mean = _kept(self, super().centre(x)[0])
            return mean, _kept(self, x - mean)

        def variance(self, x: Matrix, d: Matrix) -> Matrix:
            return _kept(self, self.average(_kept(self, d * d)))

        def inverse_root(self, var: Matrix, eps: Matrix) -> Matrix:
            return _kept(self, 1.0 / _kept(self, np.sqrt(_kept(self, var + eps))))

        def project(self, u: Matrix) -> Matrix:
            centred = _kept(self, u - _kept(self, self.average(u)))
            moment = _kept(self, self.average(_kept(self, self.xhat * centred)))
            return _kept(self, centred - _kept(self, _kept(self, self.xhat) * moment))

        def output(self) -> Matrix:
            return _kept(self, self.gamma * _kept(self, self.xhat)) + self.beta

        def push(self) -> Matrix:
            to, xhat = self.direction, _kept(self, self.xhat)
            moved = _kept(self, _kept(self, self.gamma * self.r) * self.project(to["x"]))
            return np.asarray(_kept(self, moved + _kept(self, to["gamma"] * xhat)) + to["beta"])

    class frozen(_Frozen):
        def prepare(self, x: Matrix) -> None:
            super().prepare(x)
            self.d = _kept(self, self.d)
            self.r = _kept(self, 1.0 / _kept(self, np.sqrt(_kept(self, self.var + self.inputs.eps))))

        def output(self) -> Matrix:
            return _kept(self, self.gamma * _kept(self, self.d * self.r)) + self.beta

        def push(self) -> Matrix:
            to = self.direction
            a_dot = _kept(self, to["gamma"] * self.r + self.gamma * self.r_dot)
            moved = _kept(self, _kept(self, self.gamma * self.r) * _kept(self, to["x"] - to["mean"]))
            return np.asarray(_kept(self, _kept(self, a_dot * self.d) + moved) + to["beta"])


class FoldedAffine(Control):
    """y is computed as x·α + β′ with α = γ·r and β′ = β − μ·α, which cancels where μ is large beside the spread."""

    name = "folded-affine"
    family = "conditioning"
    depends_on_order = True
    variants = ({}, {"fused": 1})

    def __init__(self, fused: int = 0) -> None:
        vars(self).update(_configured(FoldedAffine, fused=fused))

    class training(_Training):
        fused: int

        def output(self) -> Matrix:
            return _folded(self, self.mean, self.var, self.fused)

    class frozen(_Frozen):
        fused: int

        def output(self) -> Matrix:
            return _folded(self, self.mean, self.var, self.fused)


class BesselForward(Control):
    """x is divided by the unbiased standard deviation, with m − 1, as x.std() returns it in several frameworks."""

    name = "bessel-forward"
    family = "shape"

    class training(_Training):
        def variance(self, x: Matrix, d: Matrix) -> Matrix:
            return np.asarray(super().variance(x, d) * (x.shape[1] / (x.shape[1] - 1)))


class EpsOutsideRoot(Control):
    """ε is added to the standard deviation, √v + ε, instead of the variance."""

    name = "eps-outside-root"
    family = "conditioning"
    thread = "darknet, where it is the convention"

    class training(_Training):
        def inverse_root(self, var: Matrix, eps: Matrix) -> Matrix:
            return np.asarray(1.0 / (np.sqrt(var) + eps))


class EpsAsFloor(Control):
    """ε is the least variance, √max(v, ε), instead of an addend."""

    name = "eps-as-floor"
    family = "conditioning"

    class training(_Training):
        def inverse_root(self, var: Matrix, eps: Matrix) -> Matrix:
            return np.asarray(1.0 / np.sqrt(np.maximum(var, eps)))


class EpsRaised(Control):
    """An ε below 1.001e-5 is raised to that, the least that cuDNN was once thought to take."""

    name = "eps-raised"
    family = "conditioning"

    class training(_Training):
        def prepare(self, x: Matrix) -> None:
            self.inputs = replace(self.inputs, eps=max(self.inputs.eps, 1.001e-5))
            super().prepare(x)

    class frozen(_Frozen):
        def prepare(self, x: Matrix) -> None:
            self.inputs = replace(self.inputs, eps=max(self.inputs.eps, 1.001e-5))
            super().prepare(x)


class LeakingNan(Control):
    """A NaN in one channel reaches all others, through a reduction over the whole tensor multiplied by zero."""

    name = "leaking-nan"
    family = "special"

    class training(_Training):
        def centre(self, x: Matrix) -> tuple[Matrix, Matrix]:
            mean, d = super().centre(x)
            return mean, d + 0.0 * x.max()


class NanTakenForZero(Control):
    """NaN is replaced by zero on the way in, so that the output looks healthy."""

    name = "nan-taken-for-zero"
    family = "special"

    class training(_Training):
        def prepare(self, x: Matrix) -> None:
            super().prepare(np.nan_to_num(x))


# ---- mistakes in the gradient ------------------------------------------------------------------------------------


class BesselBackward(Control):
    """The backward differentiates the variance as if it were divided by m − 1; the forward divides by m."""

    name = "bessel-backward"
    family = "shape"

    class training(_Training):
        def project_backward(self, g: Matrix) -> Matrix:
            m = g.shape[1]
            return np.asarray(g - self.average(g) - self.xhat * self.total(self.xhat * g) / (m - 1))


class DroppedMeanTerm(Control):
    """The backward lacks P's term mean(g), though the jvp has it."""

    name = "dropped-mean-term"
    family = "structure"

    class training(_Training):
        def project_backward(self, g: Matrix) -> Matrix:
            return np.asarray(g - self.xhat * self.average(self.xhat * g))


class DroppedXhatTerm(Control):
    """The backward lacks P's term x̂·mean(x̂·g), though the jvp has it."""

    name = "dropped-xhat-term"
    family = "structure"

    class training(_Training):
        def project_backward(self, g: Matrix) -> Matrix:
            return g - self.average(g)


class DetachedMean(Control):
    """The mean is a constant to every derivative (a stop-gradient on it)."""

    name = "detached-mean"
    family = "composition"

    class training(_Training):
        def project(self, u: Matrix) -> Matrix:
            # K in terms of this P is that function's own second derivative, so the member is consistent.
            return np.asarray(u - self.xhat * self.average(self.xhat * u))


class DetachedVariance(Control):
    """The variance is a constant to every derivative (a stop-gradient on it)."""

    name = "detached-variance"
    family = "composition"

    class training(_Training):
        def project(self, u: Matrix) -> Matrix:
            return u - self.average(u)

        def bracket(self, u: Matrix, g: Matrix) -> Matrix:
            return np.zeros_like(u)  # y is then linear in x


class DetachedStatistics(Control):
    """Mean and variance are constants to every derivative: the formula of evaluation, in training."""

    name = "detached-statistics"
    family = "composition"

    class training(_Training):
        def project(self, u: Matrix) -> Matrix:
            return u

        def bracket(self, u: Matrix, g: Matrix) -> Matrix:
            return np.zeros_like(u)


class EpsForgottenInBackward(Control):
    """The backward multiplies by 1/√v where the forward divided by √(v + ε)."""

    name = "eps-forgotten-in-backward"
    family = "conditioning"

    class training(_Training):
        def inverse_root_backward(self, var: Matrix, eps: Matrix) -> Matrix:
            return np.asarray(1.0 / np.sqrt(var))


class GammaGradientWithoutInvstd(Control):
    """dγ sums g·(x − μ) and forgets the factor 1/√(v + ε)."""

    name = "gamma-gradient-without-invstd"
    norms = frozenset({"batch"})
    family = "composition"

    class training(_Training):
        def pull(self, g: Matrix) -> Moved:
            gradients = super().pull(g)
            return gradients | {"dgamma": gradients["dgamma"] / self.r}


class DroppedThirdTerm(Control):
    """The second derivative lacks the third term of K; first derivatives are right."""

    name = "dropped-third-term"
    family = "composition"

    class training(_Training):
        def third(self, u: Matrix, pg: Matrix) -> Matrix:
            return np.zeros_like(u)


class CubedInvstd(Control):
    """The jvp is computed in the data's own format and forms r³: in binary16 it overflows from r = 41 on, to NaN."""

    name = "cubed-invstd"
    family = "structure"
    depends_on_order = True

    class training(_Training):
        def push(self) -> Matrix:
            to, mean, r = self.direction, _kept(self, self.mean), _kept(self, self.r)
            d = _kept(self, self.matrix(self.inputs.x) - mean)
            centred = _kept(self, to["x"] - _kept(self, self.average(to["x"])))
            cube = _kept(self, r**3)
            r_dot = _kept(self, self.average(_kept(self, _kept(self, centred * d) * -cube)))
            moved = _kept(self, _kept(self, centred * r) + _kept(self, d * r_dot))
            xhat = _kept(self, d * r)
            return _kept(self, _kept(self, moved * self.gamma) + _kept(self, xhat * to["gamma"])) + to["beta"]


class ConstantStatisticsInJvp(Control):
    """The jvp is right, but its own derivative takes the saved mean and invstd for constants."""

    name = "constant-statistics-in-jvp"
    family = "composition"
    thread = "pytorch#196699"

    class training(_Training):
        def vjp_of_jvp(self, dy: Array) -> dict[str, Array]:
            g, centred, gamma_dot = self.matrix(dy), self.centred_direction, self.direction["gamma"]
            # of <g, γ·r·(c − x̂·mean(x̂c)) + γ̇·x̂>, where x reaches x̂ = (x − μ)·r alone and c = ẋ − mean(ẋ)
            h = self.inside * g
            bracket = h * self.average(self.xhat * centred) + centred * self.average(self.xhat * h)
            stale = {"dx": self.r * (gamma_dot * g - self.outside * self.r * bracket)}
            return self.store(self.turn(g) | stale)

        def bend(self) -> Matrix:
            u, centred, gamma_dot = self.direction["x"], self.centred_direction, self.direction["gamma"]
            stale = u * self.average(self.xhat * centred) + self.xhat * self.average(u * centred)
            moved = gamma_dot * self.r * (self.project(u) + u)
            return np.asarray(moved - self.gamma * self.r * (self.r * stale))

        @property
        def centred_direction(self) -> Matrix:
            u = self.direction["x"]
            return u - self.average(u)


# ---- mistakes of layer and group norm ----------------------------------------------------------------------------


class GammaOutsideProjection(Control):
    """The backward is batch norm's, dx = γ·r·P g, with γ outside the projection, though it varies within a group."""

    name = "gamma-outside-projection"
    family = "norms"
    norms = frozenset({"layer", "group"})

    class training(_Training):
        def pull(self, g: Matrix) -> Moved:
            return super().pull(g) | {"dx": self.gamma * self.r_backward * self.project_backward(g)}


class StatisticsOverTheLastAxis(Control):
    """The statistics run over x's last axis alone, not over all axes that belong to the group."""

    name = "statistics-over-the-last-axis"
    family = "norms"
    norms = frozenset({"layer", "group"})

    class training(_Training):
        def average(self, values: Matrix) -> Matrix:
            last = values.reshape(
                len(values), -1, self.inputs.x.shape[-1] if self.inputs.x.ndim > 2 else values.shape[1]
            )
            return np.broadcast_to(last.mean(axis=2, keepdims=True), last.shape).reshape(values.shape)


# ---- mistakes in evaluation mode ---------------------------------------------------------------------------------


class EvalGradientWithTrainingFormula(Control):
    """With frozen statistics the backward still projects, as if they depended on x."""

    name = "eval-gradient-with-training-formula"
    norms = frozenset({"batch"})
    family = "conditioning"
    thread = "pytorch#586"

    class frozen(_Frozen):
        def pull(self, g: Matrix) -> Moved:
            xhat = self.d * self.r
            projected = g - self.average(g) - xhat * self.average(xhat * g)
            return super().pull(g) | {"dx": self.gamma * self.r * projected}


class InvstdTakenForVariance(Control):
    """The backward of evaluation mode is handed invstd and takes it for a variance: it uses 1/√(invstd + ε)."""

    name = "invstd-taken-for-variance"
    norms = frozenset({"batch"})
    family = "conditioning"
    thread = "FlagGems#5222"

    class frozen(_Frozen):
        @property
        def r_backward(self) -> Matrix:
            return np.asarray(1.0 / np.sqrt(self.r + self.inputs.eps))


class InferenceReadAsTraining(Control):
    """Evaluation mode normalizes by the batch's statistics."""

    name = "inference-read-as-training"
    norms = frozenset({"batch"})
    family = "conditioning"
    thread = "onnx#5799"
    frozen = _Training


# ---- mistakes with memory and state ------------------------------------------------------------------------------


class LayoutIgnored(Control):
    """x is read in the order of its memory, as if it were contiguous."""

    name = "layout-ignored"
    family = "layout"

    class training(_Training):
        def matrix(self, tensor: Array) -> Matrix:
            return super().matrix(tensor.ravel(order="K").reshape(tensor.shape))


class InputOverwritten(Control):
    """y is computed in place: the caller's x is y afterwards."""

    name = "input-overwritten"
    family = "state"

    def _forward(self, point: Any) -> dict[str, Array]:
        outputs = super()._forward(point)
        x = point.inputs.x
        if x.flags.writeable:
            x[...] = outputs["y"]
        return outputs


class StaleAccumulator(Control):
    """The buffer of dγ is not cleared: from the second call on, it holds the sum over all calls."""

    name = "stale-accumulator"
    norms = frozenset({"batch"})
    family = "state"

    def __init__(self) -> None:
        self._sums: dict[int, Array] = {}

    def run(self, operation: str, inputs: Inputs) -> dict[str, Array]:
        """Add what was left in the buffer."""
        outputs = super().run(operation, inputs)
        if "dgamma" in outputs:
            dgamma = outputs["dgamma"]
            total = self._sums.get(len(dgamma), np.zeros(len(dgamma))) + dgamma.astype(np.float64)
            self._sums[len(total)] = total
            outputs["dgamma"] = round_to(total, dgamma.dtype)
        return outputs


class RunningStatisticsInTraining(Control):
    """Training normalizes by the running mean after this batch, so its output depends on the momentum."""

    name = "running-statistics-in-training"
    norms = frozenset({"batch"})
    family = "state"

    class training(_Training):
        def output(self) -> Matrix:
            weight = 1.0 if self.inputs.momentum is None else self.inputs.momentum
            running = self.column(self.inputs.running_mean)
            moved = running + weight * (self.mean - running)
            return np.asarray(super().output() + self.gamma * self.r * (self.mean - moved))


class RunningWithoutDecay(Control):
    """The running statistics add momentum·new but do not shrink the old value by 1 − momentum."""

    name = "running-without-decay"
    norms = frozenset({"batch"})
    family = "state"

    def blend(self, old: Matrix, new: Matrix, weight: Fraction) -> Matrix:
        """Return old + weight·new."""
        return np.asarray(old + float(weight) * new)


class RunningCorrectedTwice(Control):
    """The running variance gets Bessel's m/(m − 1) where the batch's variance has it already."""

    name = "running-corrected-twice"
    norms = frozenset({"batch"})
    family = "state"

    def unbiased(self, var: Matrix, count: int) -> Matrix:
        """Return var·(m/(m − 1))²."""
        return super().unbiased(super().unbiased(var, count), count)


class RunningVarianceOfOneValue(Control):
    """One value in a channel is not refused: Bessel's m/(m − 1) is 1/0, and the running variance NaN from then on."""

    name = "running-variance-of-one-value"
    norms = frozenset({"batch"})
    family = "state"
    thread = "pytorch#1381"

    class training(_Training):
        fewest = 1

    def unbiased(self, var: Matrix, count: int) -> Matrix:
        """Return var·m/(m − 1), 0·∞ for one value."""
        return np.asarray(var * np.divide(count, np.float64(count - 1)))


ZOO: dict[str, type[Control]] = {
    member.name: member
    for member in (
        Control,
        OnePassVariance,
        OnePassClipped,
        UnscaledOverflow,
        HalfStatistics,
        StoredStatistics,
        NarrowAccumulator,
        NarrowArithmetic,
        SerialSums,
        FoldedAffine,
        BesselForward,
        EpsOutsideRoot,
        EpsAsFloor,
        EpsRaised,
        LeakingNan,
        NanTakenForZero,
        BesselBackward,
        DroppedMeanTerm,
        DroppedXhatTerm,
        DetachedMean,
        DetachedVariance,
        DetachedStatistics,
        EpsForgottenInBackward,
        GammaGradientWithoutInvstd,
        DroppedThirdTerm,
        CubedInvstd,
        ConstantStatisticsInJvp,
        GammaOutsideProjection,
        StatisticsOverTheLastAxis,
        EvalGradientWithTrainingFormula,
        InvstdTakenForVariance,
        InferenceReadAsTraining,
        LayoutIgnored,
        InputOverwritten,
        StaleAccumulator,
        RunningStatisticsInTraining,
        RunningWithoutDecay,
        RunningCorrectedTwice,
        RunningVarianceOfOneValue,
    )
}
"""The members by name; `Control` is the first."""
