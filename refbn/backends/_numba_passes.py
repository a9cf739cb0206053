"""The passes of the Numba backend, as programs for `refbn.backends._numba_kernels`.

Each function below states a pass in the pivoted tensors t = z − p: sums and sums of products go in, numbers come out,
and an affine combination of the tensors for each tensor result. It is run once, at import, on `Register` objects that
write down what is computed with them.

Training, with S1 = Σ t and S2 = Σ t² of x, G1 and U1 likewise of dy and u (x_dot or ddx), sums of products GX, UX, UG::

    X = m t_x − S1,  G = m t_g − G1,  U = m t_u − U1,  Q = m S2 − S1² + m²ε = m²q
    W = m GX − S1 G1 = Σ G X / m,  V = m UX − S1 U1,  Z = m UG − U1 G1

None of them depends on the pivots. x̂ = X/√Q and r = m/√Q turn the textbook's equations, cited by their labels,
into what stands here: mean(x̂ g) = W/(m √Q), and P g = (G − X W/Q)/m.

Frozen statistics: the pivots are μ for x, μ̇ for u and 0 for dy, so that t is d = x − μ, u − μ̇ and dy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from refbn.backends import _numba_kernels as kernels

__all__ = ["PLANS", "Plan", "as_row"]


@dataclass(slots=True)
class Tape:
    """What a pass computes with: `place` numbers its registers."""

    place: int = 0
    steps: list[tuple[int, int, int, int]] = field(default_factory=list)
    constants: dict[float, Register] = field(default_factory=dict)

    def register(self) -> Register:
        """Return a fresh register."""
        self.place += 1
        return Register(self, self.place - 1)

    def registers(self, names: Iterable[str]) -> dict[str, Register]:
        """Return consecutive registers by name."""
        return {name: self.register() for name in names}

    def constant(self, value: float) -> Register:
        """Return the register of a constant."""
        if value not in self.constants:
            self.constants[value] = self.register()
        return self.constants[value]

    def step(self, operation: int, a: Register | float, b: Register | float) -> Register:
        """Write down an operation."""
        left, right = (v if isinstance(v, Register) else self.constant(v) for v in (a, b))
        result = self.register()
        self.steps.append((operation, result.place, left.place, right.place))
        return result


@dataclass(frozen=True, slots=True)
class Register:
    """A number that a program computes."""

    tape: Tape
    place: int

    def __add__(self, other: Register | float) -> Register:
        return self.tape.step(kernels.ADD, self, other)

    def __sub__(self, other: Register | float) -> Register:
        return self.tape.step(kernels.SUBTRACT, self, other)

    def __mul__(self, other: Register | float) -> Register:
        return self.tape.step(kernels.MULTIPLY, self, other)

    def __truediv__(self, other: Register | float) -> Register:
        return self.tape.step(kernels.DIVIDE, self, other)

    def __neg__(self) -> Register:
        return self.tape.step(kernels.SUBTRACT, 0.0, self)

    def root(self) -> Register:
        """Return the square root; NaN unless positive."""
        return self.tape.step(kernels.ROOT, 0.0, self)

    def over_root(self, square: Register) -> Register:
        """Return self/√square; infinite where square is 0."""
        return self.tape.step(kernels.OVER_ROOT, self, square)


class Combination(NamedTuple):
    """factor·(constant + Σ terms·t)/divisor + offset; a factor of None is 1, and None is 0 elsewhere."""

    terms: dict[str, Register]
    constant: Register | None
    factor: Register | None
    divisor: Register
    offset: Register | None


Results = dict[str, "Combination | Register"]


class Inputs:
    """The registers of a pass's inputs, by the names of the contract.

    Attributes
    ----------
    m, eps : Register
        The count and ε.
    number, pivot, sum, dot, kept : dict
        The numbers of a channel; of each tensor p and Σ t; of pairs of tensors, written ``"x dy"``, Σ t_a·t_b; and what
        is handed over as balls.
    """

    def __init__(
        self, tape: Tape, numbers: Iterable[str], tensors: Iterable[str], pairs: Iterable[str], kept: Iterable[str]
    ) -> None:
        self.tape = tape
        self.m = tape.register()
        self.eps = tape.register()
        self.number = tape.registers(numbers)
        self.pivot = tape.registers(tensors)
        self.sum = tape.registers(tensors)
        self.dot = tape.registers(pairs)
        self.kept = tape.registers(kept)

    def __getitem__(self, name: str) -> Register:
        return self.number[name]


@dataclass(frozen=True)
class Plan:
    """A pass, ready for `kernels.channel`; its attributes of the same names are explained there.

    Attributes
    ----------
    name : str
        The contract's name.
    numbers, tensors : tuple of str
        The names of a channel's numbers and of the tensors, in order.
    outputs : tuple of str
        The tensor results, then the vector results.
    template : ndarray
        The registers before a channel is computed: constants.
    first_kept, statistics : int, list of int
        Where balls are handed over; where p, Σ t and Σ t² of x stand.
    """

    name: str
    numbers: tuple[str, ...]
    tensors: tuple[str, ...]
    outputs: tuple[str, ...]
    pivot_registers: kernels.Ints
    first_number: int
    first_sum: int
    first_kept: int
    statistics: list[int]
    pairs: kernels.Ints
    program: kernels.Ints
    combinations: kernels.Ints
    vectors: kernels.Ints
    template: kernels.Floats


# ---- training --------------------------------------------------------------------------------------------------------


def _q(c: Inputs, s1: Register, s2: Register) -> Register:
    return (c.m * s2 - s1 * s1) + c.m * c.m * c.eps  # (S2), (S3)


def _centred(c: Inputs, terms: dict[str, Register], divisor: Register, **options: Register) -> Combination:
    """Return Σ terms·(m t − Σ t)/divisor, with what else a combination has."""
    constant = c.tape.constant(0.0)
    for name, factor in terms.items():
        constant = constant - factor * c.sum[name]
    scaled = {name: factor * c.m for name, factor in terms.items()}
    return Combination(scaled, constant, options.get("factor"), divisor, options.get("offset"))


def _forward(c: Inputs) -> Results:
    s1, s2 = c.sum["x"], c.dot["x x"]
    q = _q(c, s1, s2)
    return {
        "y": _centred(c, {"x": c.tape.constant(1.0)}, q.root(), factor=c["gamma"], offset=c["beta"]),  # (F1)
        "mean": (c.pivot["x"] * c.m + s1) / c.m,  # (S1)
        "var": (c.m * s2 - s1 * s1) / (c.m * c.m),  # (S3)
        "invstd": c.m.over_root(q),  # (S4)
    }


def _backward(c: Inputs) -> Results:
    q = _q(c, c.sum["x"], c.kept["x x"])
    w = c.m * c.dot["x dy"] - c.sum["x"] * c.sum["dy"]
    return {
        "dx": _centred(c, {"dy": q, "x": -w}, q * q.root(), factor=c["gamma"]),  # (B3)
        "dgamma": w / q.root(),  # (B4)
        "dbeta": c.pivot["dy"] * c.m + c.sum["dy"],  # (B5)
    }


def _tangent(c: Inputs, direction: str, gamma_dot: Register, beta_dot: Register) -> Combination:
    q = _q(c, c.sum["x"], c.kept["x x"])
    v = c.m * c.dot[f"x {direction}"] - c.sum["x"] * c.sum[direction]
    terms = {direction: c["gamma"] * q, "x": gamma_dot * q - c["gamma"] * v}
    return _centred(c, terms, q * q.root(), offset=beta_dot)  # (J5)


def _jvp(c: Inputs) -> Results:
    return {"y_dot": _tangent(c, "x_dot", c["gamma_dot"], c["beta_dot"])}


def _second_order(c: Inputs, direction: str, gamma_dot: Register) -> Results:
    q, gamma = _q(c, c.sum["x"], c.kept["x x"]), c["gamma"]
    w = c.m * c.dot["x dy"] - c.sum["x"] * c.sum["dy"]
    v = c.m * c.dot[f"x {direction}"] - c.sum["x"] * c.sum[direction]
    z = c.m * c.dot[f"dy {direction}"] - c.sum["dy"] * c.sum[direction]
    terms = {
        direction: -(gamma * w) * q,
        "dy": (gamma_dot * q - gamma * v) * q,
        "x": gamma * (v * w * 3.0 - z * q) - gamma_dot * w * q,
    }
    return {
        "dx": _centred(c, terms, q * q * q.root()),  # (D5), (H1)
        "dgamma": (z * q - v * w) / (q * q.root()),  # (D3), (H2)
    }


def _double_backward(c: Inputs) -> Results:
    along = _tangent(c, "ddx", c["ddgamma"], c["ddbeta"])  # (D2)
    return {"ddy": along, **_second_order(c, "ddx", c["ddgamma"])}


def _hvp(c: Inputs) -> Results:
    return {**_second_order(c, "x_dot", c["gamma_dot"]), "dbeta": c.tape.constant(0.0)}  # (H3)


def _running_update(c: Inputs) -> Results:
    # (S8), (S9) with the weights new/unit and old/unit; scale is m² or m(m − 1).
    s1, s2, new, old, unit, scale = (c.kept[name] for name in ("x", "x x", "new", "old", "unit", "scale"))
    mean, var = c["pivot"] * c.m + s1, c.m * s2 - s1 * s1
    return {
        "out_mean": (new * mean + old * c.m * c["running_mean"]) / (unit * c.m),
        "out_var": (new * var + old * scale * c["running_var"]) / (unit * scale),
    }


# ---- frozen statistics -----------------------------------------------------------------------------------------------


def _inference(c: Inputs) -> Results:
    q = c["var"] + c.eps
    one = c.tape.constant(1.0)
    return {
        "y": Combination({"x": one}, None, c["gamma"], q.root(), c["beta"]),  # (I1)
        "invstd": one.over_root(q),
    }


def _inference_backward(c: Inputs) -> Results:
    q, gamma, gd = c["var"] + c.eps, c["gamma"], c.dot["x dy"]
    return {
        "dx": Combination({"dy": c.tape.constant(1.0)}, None, gamma, q.root(), None),  # (I4)
        "dgamma": gd / q.root(),  # (I7)
        "dbeta": c.sum["dy"],  # (I8)
        "dmean": -(gamma * c.sum["dy"]) / q.root(),  # (I5)
        "dvar": -(gamma * gd) / (q * q.root() * 2.0),  # (I6)
    }


def _frozen_tangent(
    c: Inputs, direction: str, var_dot: Register, gamma_dot: Register, beta_dot: Register
) -> Combination:
    q, gamma = c["var"] + c.eps, c["gamma"]
    terms = {direction: gamma * q * 2.0, "x": gamma_dot * q * 2.0 - gamma * var_dot}
    return Combination(terms, None, None, q * q.root() * 2.0, beta_dot)  # (I3)


def _inference_jvp(c: Inputs) -> Results:
    return {"y_dot": _frozen_tangent(c, "x_dot", c["var_dot"], c["gamma_dot"], c["beta_dot"])}


def _frozen_second_order(c: Inputs, direction: str, var_dot: Register, gamma_dot: Register) -> Results:
    q, gamma, gd = c["var"] + c.eps, c["gamma"], c.dot["x dy"]
    n = gamma_dot * q * 2.0 - gamma * var_dot
    along = c.dot[f"dy {direction}"] * q * 2.0 - var_dot * gd
    divisor = q * q.root() * 2.0
    bracket = (gamma_dot * q - gamma * var_dot) * gd * 2.0 + gamma * along
    return {
        "dx": Combination({"dy": c.tape.constant(1.0)}, None, n, divisor, None),  # (I9)
        "dgamma": along / divisor,  # (I11)
        "dmean": -(n * c.sum["dy"]) / divisor,  # (I10)
        "dvar": -bracket / (q * divisor * 2.0),  # (I12)
    }


def _inference_double_backward(c: Inputs) -> Results:
    along = _frozen_tangent(c, "ddx", c["ddvar"], c["ddgamma"], c["ddbeta"])  # (I13)
    return {"ddy": along, **_frozen_second_order(c, "ddx", c["ddvar"], c["ddgamma"])}  # (I14)


def _inference_hvp(c: Inputs) -> Results:
    second = _frozen_second_order(c, "x_dot", c["var_dot"], c["gamma_dot"])
    return {**second, "dbeta": c.tape.constant(0.0)}  # (I11)


# ---- from formulas to programs ---------------------------------------------------------------------------------------


def _plan(
    formula: Callable[[Inputs], Results],
    numbers: str,
    tensors: str = "",
    pairs: tuple[str, ...] = (),
    kept: tuple[str, ...] = (),
    pivots: dict[str, str] | None = None,
) -> Plan:
    """Write a pass down; ``pivots`` names the numbers that are pivots, "" a pivot to be chosen."""
    tape = Tape()
    order = tuple(tensors.split())
    c = Inputs(tape, numbers.split(), order, pairs, kept)
    pivot_registers = []
    for name in order:
        given = (pivots or {}).get(name, "")
        if given:
            c.pivot[name] = tape.constant(0.0) if given == "0" else c[given]
        pivot_registers.append(c.pivot[name].place if given else ~c.pivot[name].place)
    results = formula(c)
    zero, one = tape.constant(0.0), tape.constant(1.0)
    combinations = []
    for result in results.values():
        if isinstance(result, Combination):
            head = (result.factor or one, result.divisor, result.offset or zero, result.constant or zero)
            terms = [result.terms[name].place if name in result.terms else -1 for name in order]
            combinations.append([*(register.place for register in head), *terms])
    template = np.zeros((tape.place, 4))
    for value, register in tape.constants.items():
        template[register.place] = as_row(value)
    return Plan(
        name=formula.__name__.removeprefix("_"),
        numbers=tuple(numbers.split()),
        tensors=order,
        outputs=tuple(results),
        pivot_registers=np.array(pivot_registers, np.int64),
        first_number=2,
        first_sum=2 + len(c.number) + len(order),
        first_kept=2 + len(c.number) + 2 * len(order) + len(pairs),
        statistics=[c.pivot["x"].place, c.sum["x"].place, c.dot["x x"].place] if "x x" in pairs else [],
        pairs=np.array([[order.index(name) for name in pair.split()] for pair in pairs], np.int64).reshape(-1, 2),
        program=np.array(tape.steps, np.int64).reshape(-1, 4),
        combinations=np.array(combinations, np.int64).reshape(-1, kernels.TERMS + len(order)),
        vectors=np.array([r.place for r in results.values() if isinstance(r, Register)], np.int64),
        template=template,
    )


def as_row(value: Fraction | float) -> tuple[float, float, float, int]:
    """Return a rational number as a row of `kernels.read`, to about 106 bits."""
    exact = Fraction(value)
    if not exact:
        return 0.0, 0.0, 0.0, 0
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length() + 1
    exact /= Fraction(2) ** exponent  # between ¼ and 1
    if abs(exact) < Fraction(1, 2):
        exact, exponent = exact * 2, exponent - 1
    hi = float(exact)
    if abs(hi) == 1.0:
        exact, hi, exponent = exact / 2, hi / 2, exponent + 1
    lo = float(exact - Fraction(hi))
    if abs(lo) < kernels.SHORTEST:
        lo = 0.0
    dropped = abs(exact - Fraction(hi) - Fraction(lo))
    return hi, lo, float(dropped) * (1 + 2.0**-40) + kernels.FLOOR if dropped else 0.0, exponent


_X = ("x x",)  # what a state remembers of x

PLANS: dict[str, Plan] = {
    plan.name: plan
    for plan in (
        _plan(_forward, "gamma beta", "x", pairs=_X),
        _plan(_backward, "pivot gamma", "x dy", ("x dy",), _X, {"x": "pivot"}),
        _plan(_jvp, "pivot gamma gamma_dot beta_dot", "x x_dot", ("x x_dot",), _X, {"x": "pivot"}),
        _plan(
            _double_backward,
            "pivot gamma ddgamma ddbeta",
            "x dy ddx",
            ("x dy", "x ddx", "dy ddx"),
            _X,
            {"x": "pivot"},
        ),
        _plan(_hvp, "pivot gamma gamma_dot", "x dy x_dot", ("x dy", "x x_dot", "dy x_dot"), _X, {"x": "pivot"}),
        _plan(_running_update, "pivot running_mean running_var", kept=("x", "x x", "new", "old", "unit", "scale")),
        _plan(_inference, "mean var gamma beta", "x", pivots={"x": "mean"}),
        _plan(_inference_backward, "mean var gamma", "x dy", ("x dy",), pivots={"x": "mean", "dy": "0"}),
        _plan(
            _inference_jvp,
            "mean var gamma mean_dot var_dot gamma_dot beta_dot",
            "x x_dot",
            pivots={"x": "mean", "x_dot": "mean_dot"},
        ),
        _plan(
            _inference_double_backward,
            "mean var gamma ddmean ddvar ddgamma ddbeta",
            "x dy ddx",
            ("x dy", "dy ddx"),
            pivots={"x": "mean", "dy": "0", "ddx": "ddmean"},
        ),
        _plan(
            _inference_hvp,
            "mean var gamma mean_dot var_dot gamma_dot",
            "x dy x_dot",
            ("x dy", "dy x_dot"),
            pivots={"x": "mean", "dy": "0", "x_dot": "mean_dot"},
        ),
    )
}
"""By name: every pass of the contract but `taylor`."""
