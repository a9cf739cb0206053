"""Z6: it is the derivative of the standardization phase that blocks, through the batch's own mean and deviation.

Variants of one layer, whose outputs are the same numbers but for "frozen statistics" and "affine phase alone", and
which differ in what the gradient may pass through: the batch's mean, its standard deviation, both, or neither. On
random batches of rational numbers the reverse tape is given upstream gradients along 1 and x̂; what comes back is
λ·γ/√(var+ε) times the same vector, with λ exactly 0 or κ where that direction is blocked and 1 where it passes. Layer
norm, whose index set is one sample's features, blocks 1 and x̂ there; along the batch it lets a gradient g shared by all
samples and a shared diagonal Hessian pass, unless g is a multiple of 1, or H of the identity.

In networks: a classifier of digits with two hidden layers is trained with each variant. Of the upstream gradient's
parts along 1 and x̂ of each channel, the length that comes back is compared with the length that would come back if the
statistics were frozen; for layer norm also along 1 and x̂ of each sample's features.

Criterion: confirmed if every λ is exactly as said in all instances, and if in the networks a direction comes back to
less than 0.01 of its length where it is blocked, to more than 0.99 where it is not, and along the batch through layer
norm to more than 0.5 (there it is no eigenvector, so that no single number is due).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

import refbn
from refbn.exact import Exact, Var, program
from validation.studies import exact_batches as exact
from validation.studies import network, style
from validation.studies.blind_networks import called, draw, gradient, images
from validation.studies.study import Context, Finding, Measured, Study, Verdict
from validation.studies.training import train

__all__ = ["EXPECTED", "LAYERS", "STUDY", "Parted", "judge", "returned", "verdict"]

Array = npt.NDArray[Any]


# ---- the variants, over exact numbers -------------------------------------------------------------------------------


def _held(value: Var[Exact]) -> Var[Exact]:
    """Stop the gradient."""
    return Var(value.value)


def _variant(mean: bool, deviation: bool) -> exact.Layer:
    """Return batch norm whose gradient passes through the batch's mean, its deviation, both or neither."""

    def layer(x: Var[Exact], gamma: Var[Exact], beta: Var[Exact], eps: Fraction) -> Var[Exact]:
        centre = x.mean()
        d = x - (centre if mean else _held(centre))
        q = (d * d).mean() + eps
        s = q.sqrt()
        return program.affine(d / (s if deviation else _held(s)), gamma, beta)

    return layer


def _affine_alone(x: Var[Exact], gamma: Var[Exact], beta: Var[Exact], eps: Fraction) -> Var[Exact]:
    return program.affine(x, gamma, beta)


# Any statistics but those of the batch.
_RUNNING = Exact.number(Fraction(1, 3)), Exact.number(Fraction(5, 2))


def _frozen(x: Var[Exact], gamma: Var[Exact], beta: Var[Exact], eps: Fraction) -> Var[Exact]:
    mean, var = _RUNNING
    return program.frozen(x, Var(mean), Var(var), gamma, beta, eps)


_BATCH = "batch statistics"
_NO_MEAN = "stop-gradient at the mean"
_NO_DEVIATION = "stop-gradient at the deviation"
_NEITHER = "stop-gradient at both"
_GIVEN = "frozen statistics"
_AFFINE = "affine phase alone"
LAYERS: dict[str, tuple[exact.Layer, str, str]] = {
    _BATCH: (_variant(True, True), "0", "κ"),
    _NO_MEAN: (_variant(False, True), "1", "κ"),
    _NO_DEVIATION: (_variant(True, False), "0", "1"),
    _NEITHER: (_variant(False, False), "1", "1"),
    _GIVEN: (_frozen, "1", "1"),
    _AFFINE: (_affine_alone, "1", "1"),
}
"""Each variant, and what is expected to come back of an upstream gradient along 1 and along x̂."""


def _scale(layer: str, c: exact.Channel) -> Exact:
    """Return what an upstream gradient is multiplied by where nothing is blocked."""
    if layer == _AFFINE:
        return Exact.number(c.gamma)
    if layer == _GIVEN:
        return program.invstd(_RUNNING[1], c.eps) * c.gamma
    return c.invstd * c.gamma


LN_SHARED = "layer norm passes a shared g"
LN_ONE = "layer norm: exactly 0 for g ∝ 1"
LN_DIAGONAL = "layer norm passes a shared diagonal H"
LN_IDENTITY = "layer norm: exactly κ of it for H ∝ I"


def _statement(layer: str, direction: str, factor: str) -> str:
    """Return the statement that a direction comes back times a factor."""
    return f"{layer}: exactly {factor} of {direction} comes back"


EXPECTED = {
    **{
        _statement(layer, direction, factor): "1"
        for layer, (_, one, xhat) in LAYERS.items()
        for direction, factor in (("1", one), ("x̂", xhat), ("the rest", "1"))
    },
    **dict.fromkeys((LN_SHARED, LN_ONE, LN_DIAGONAL, LN_IDENTITY), "1"),
}


def judge(generator: np.random.Generator) -> Mapping[str, bool]:
    """Judge one random instance exactly."""
    (channel,) = exact.random_batch(generator, channels=1)
    return {**_batch_answers(channel, generator), **_layer_norm_answers(generator)}


def _batch_answers(c: exact.Channel, generator: np.random.Generator) -> dict[str, bool]:
    some = _some_vector(generator, c.m)
    # d in the place of x̂, to which it is parallel, as x̂ and the running deviation's root lie in different fields.
    upstream = {
        "1": Exact.number(1).spread(c.m),
        "x̂": c.d,
        "the rest": some - some.mean() - c.d * ((c.d * some).mean() / c.var),
    }
    factors = {"0": Exact.number(0), "κ": c.kappa, "1": Exact.number(1)}
    answers = {}
    for name, (layer, one, xhat) in LAYERS.items():
        for (direction, u), factor in zip(upstream.items(), (one, xhat, "1"), strict=True):
            dx = exact.passed_by(c, u, layer)
            answers[_statement(name, direction, factor)] = dx == u * _scale(name, c) * factors[factor]
    return answers


def _layer_norm_answers(generator: np.random.Generator) -> dict[str, bool]:
    """Judge layer norm of a few samples, each of which is a channel of its own to the standardization."""
    features = int(generator.integers(4, 9))
    eps = Fraction(int(generator.integers(0, 4)), 10)
    samples = [exact.random_batch(generator, channels=1, m=features, eps=eps)[0].plain() for _ in range(3)]
    g, h, centre = (_some_vector(generator, features) for _ in range(3))
    slope, middle = (exact.rational(generator, zero=False) for _ in range(2))
    ones = Exact.number(1).spread(features)
    return {
        LN_SHARED: not any(exact.passed_by(s, g).is_zero() for s in samples),
        LN_ONE: all(exact.passed_by(s, ones * slope).is_zero() for s in samples),
        LN_DIAGONAL: not any(exact.passed_by(s, h * (s.y - centre)).is_zero() for s in samples),
        LN_IDENTITY: all(
            exact.passed_by(s, (s.y - middle) * slope) == s.xhat * s.invstd * s.kappa * slope for s in samples
        ),
    }


def _some_vector(generator: np.random.Generator, length: int) -> Exact:
    return Exact.vector(generator.integers(-99, 100, length).tolist(), Fraction(1, 7))


# ---- in networks ----------------------------------------------------------------------------------------------------


class Parted(network.BatchNorm):
    """Batch norm whose gradient passes through the batch's mean, its deviation, both or neither.

    Attributes
    ----------
    apart : refbn.Saved
        Of a forward to which the batch's statistics are inputs of their own.
    dx : ndarray
        The latest gradient on x.
    """

    def __init__(self, features: int, *, mean: bool, deviation: bool, **options: Any) -> None:
        super().__init__(features, **options)
        self.through_mean, self.through_deviation = mean, deviation

    def forward(self, x: Array, train: bool = True) -> Array:
        """Return y, as batch norm does."""
        y = super().forward(x, train)
        if train:
            eps = self.norm.eps
            batch = refbn.forward(x, eps=eps)
            self.apart = refbn.inference(x, batch.mean, batch.var, *self.parameters.values(), eps=eps).saved
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx, by the chain rule through what is not stopped."""
        self.dy = dy
        found = refbn.backward(self.apart, dy)
        self.gradients = {"gamma": found.dgamma, "beta": found.dbeta}
        dx = found.dx
        if self.through_mean:
            dx = dx + found.dmean / len(dy)
        if self.through_deviation:
            dx = dx + found.dvar * 2 * (self.apart.x - self.apart.mean) / len(dy)
        self.dx = dx
        return dx


class _Layered(network.LayerNorm):
    """Layer norm that keeps its latest x, what comes back to it, and what would through frozen statistics."""

    def forward(self, x: Array, train: bool = True) -> Array:
        """Return y."""
        self.x = x
        return super().forward(x, train)

    def backward(self, dy: Array) -> Array:
        """Return dx."""
        self.due = dy * self.parameters["gamma"] / np.sqrt(self.x.var(1, keepdims=True) + self.eps)
        self.dx = super().backward(dy)
        return self.dx


NETWORKS = {
    _BATCH: (True, True),
    _NO_MEAN: (False, True),
    _NO_DEVIATION: (True, False),
    _NEITHER: (False, False),
}
"""Whether the gradient passes through mean and deviation."""
_LAYER_BATCH = "layer norm, along the batch"
_LAYER_OWN = "layer norm, along a sample's features"
MEASURED = {**{name: LAYERS[name][1:] for name in NETWORKS}, _LAYER_BATCH: ("1", "1"), _LAYER_OWN: ("0", "κ")}
"""What is measured in networks, and what is expected to come back along 1 and along x̂."""


def _network(generator: np.random.Generator, features: int, kind: str) -> network.Sequential:
    """Return a perceptron with two hidden layers and one of the variants."""
    widths = (features, 64, 64, 10)
    layers: list[network.Layer] = []
    for inputs, outputs in itertools.pairwise(widths[:3]):
        layers.append(network.Dense(network.he(generator, (outputs, inputs))))
        if kind in NETWORKS:
            mean, deviation = NETWORKS[kind]
            layers.append(Parted(outputs, mean=mean, deviation=deviation))
        else:
            layers.append(_Layered(outputs))
        layers.append(network.ReLU())
    return network.Sequential(*layers, network.Dense(network.he(generator, (10, widths[2]))))


def returned(x: Array, due: Array, dx: Array) -> tuple[float, float]:
    """Return which parts of what would come back through frozen statistics along 1 and x̂ do come back.

    Parameters
    ----------
    x, due, dx : ndarray
        (elements of an index set, index sets): the input, the gradient on it through frozen statistics, the true one.
    """
    d = x - x.mean(0)
    length = np.sqrt((d * d).sum(0))
    directions = np.full_like(d, 1 / np.sqrt(len(d))), np.divide(d, length, out=np.zeros_like(d), where=length > 0)
    ones, xhat = (
        float(np.linalg.norm((direction * dx).sum(0)) / np.linalg.norm((direction * due).sum(0)))
        for direction in directions
    )
    return ones, xhat


def _measure(net: network.Sequential, x: Array, labels: Array, kind: str) -> dict[str, list[tuple[float, float]]]:
    """Return what comes back at each norm of a network, for one batch."""
    gradient(net, x, labels)
    found: dict[str, list[tuple[float, float]]] = {}
    for layer in net.layers():
        if isinstance(layer, Parted):
            due = refbn.backward(layer.apart, layer.dy).dx
            found.setdefault(kind, []).append(returned(layer.apart.x, due, layer.dx))
        elif isinstance(layer, _Layered):
            found.setdefault(_LAYER_BATCH, []).append(returned(layer.x, layer.due, layer.dx))
            found.setdefault(_LAYER_OWN, []).append(returned(layer.x.T, layer.due.T, layer.dx.T))
    return found


def _in_networks(ctx: Context, seed: int, steps: int) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """Train with each variant; return the largest (where blocked) or smallest part that came back, and accuracies."""
    given = images(ctx)
    came: dict[str, tuple[float, float]] = {}
    accuracies = {}
    for kind in (*NETWORKS, "layer norm"):
        net = _network(ctx.generator(seed, "weights"), given.features, kind)
        batches, probes = ctx.generator(seed, "batches"), ctx.generator(seed, "probes")
        seen: dict[str, list[tuple[float, float]]] = {}
        for after in (0, steps):
            train(net, given, batches, m=64, steps=after, rate=0.1)
            for _ in range(8):
                for name, pairs in _measure(net, *draw(given, probes, 64), kind).items():
                    seen.setdefault(name, []).extend(pairs)
        for name, pairs in seen.items():
            extremes = [
                min(values) if factor == "1" else max(values)
                for values, factor in zip(zip(*pairs, strict=True), MEASURED[name], strict=True)
            ]
            came[name] = (extremes[0], extremes[1])
        accuracies[kind] = given.accuracy(net)
    return came, accuracies


# ---- the study ------------------------------------------------------------------------------------------------------

BLOCKED, PASSED, MOSTLY = 0.01, 0.99, 0.5


def _as_said(name: str, pair: tuple[float, float]) -> bool:
    """Tell whether what came back in a network is as expected."""
    least = MOSTLY if name == _LAYER_BATCH else PASSED
    return all(
        value > least if factor == "1" else value < BLOCKED for value, factor in zip(pair, MEASURED[name], strict=True)
    )


def verdict(
    tallies: Sequence[exact.Tally], networks: Sequence[Mapping[str, tuple[float, float]]]
) -> tuple[Verdict, str]:
    """Judge by the criterion above."""
    count = max(sum(tally.asked[name] for tally in tallies) for name in EXPECTED)
    if broken := exact.refuted(tallies, EXPECTED):
        return "not confirmed", f"in some of {count} exact instances it is not so: {'; '.join(broken)}"
    off = sorted({name for came in networks for name, pair in came.items() if not _as_said(name, pair)})
    if off:
        return "partly", f"exact in all of {count} instances, but not so in networks with {', '.join(off)}"
    return "confirmed", (
        f"in all of {count} exact instances the mean's derivative blocks 1 and the deviation's x̂, each by itself, "
        "and neither frozen statistics nor the affine phase block anything; the same in trained networks"
    )


def run(ctx: Context) -> Finding:
    """Measure and judge."""
    tallies = exact.examine(ctx, 20 if ctx.quick else 200, judge, "exact instances")
    steps = 60 if ctx.quick else 500
    measured = [_in_networks(ctx, seed, steps) for seed in ctx.progress(ctx.seeds, "networks")]
    networks = [came for came, _ in measured]
    decided, because = verdict(tallies, networks)
    rows = list(exact.rows(tallies, EXPECTED))
    for name, factors in MEASURED.items():
        for place, (direction, factor) in enumerate(zip(("1", "x̂"), factors, strict=True)):
            least = MOSTLY if name == _LAYER_BATCH else PASSED
            rows.append(
                Measured(
                    f"in networks, {name}: {'least' if factor == '1' else 'most'} that comes back along {direction}",
                    tuple(came[name][place] for came in networks),
                    expected=f"> {least}" if factor == "1" else f"< {BLOCKED}",
                )
            )
    for kind in measured[0][1]:
        rows.append(
            Measured(f"accuracy on held-out {called(ctx)}, {kind}", tuple(found[kind] for _, found in measured))
        )
    count = max(sum(tally.asked[name] for tally in tallies) for name in EXPECTED)

    def mean(name: str, place: int) -> float:
        return float(np.mean([came[name][place] for came in networks]))

    caption = (
        "It is the derivative of the standardization phase that blocks. (a) What comes back of an upstream gradient "
        f"along 1 and along x̂, in exact arithmetic ({count} of {count} random instances): a stop-gradient at the "
        "mean sets 1 free, one at the deviation x̂; frozen statistics or the affine phase alone block nothing. (b) "
        f"The same in classifiers of {called(ctx)}, before and after {steps} steps of training, least (where it "
        "passes) or most (where it is blocked) over layers and batches, mean and range of the seeds. Along the batch "
        f"at least {mean(_LAYER_BATCH, 0):.0%} and {mean(_LAYER_BATCH, 1):.0%} come back through layer norm, which "
        "blocks 1 and x̂ among each sample's features instead."
    )
    details = {
        "came back in networks": networks,
        "accuracies": [found for _, found in measured],
        "exact": {name: factors for name, (_, *factors) in LAYERS.items()},
    }
    return Finding(decided, because, tuple(rows), _figure(tallies, networks), caption, details)


def _figure(tallies: Sequence[exact.Tally], networks: Sequence[Mapping[str, tuple[float, float]]]) -> Any:
    figure, axes = style.figure(1, 2, height=4.0, width_ratios=(1, 1.8))
    shades = {"0": style.CYCLE[1], "κ": style.CYCLE[4], "1": style.CYCLE[5]}
    own = {"layer norm,\nsample's features": (LN_ONE, LN_IDENTITY)}
    table = [(name, factors) for name, (_, *factors) in LAYERS.items()] + [(name, ("0", "κ")) for name in own]
    for row, (name, factors) in enumerate(table):
        for column, (direction, factor) in enumerate(zip(("1", "x̂"), factors, strict=True)):
            statement = own[name][column] if name in own else _statement(name, direction, factor)
            held = all(tally.held[statement] == tally.asked[statement] for tally in tallies)
            axes[0].add_patch(_cell(column, row, shades[factor] if held else "white"))
            axes[0].text(column, row, factor if held else "?", ha="center", va="center", fontsize=11)
    axes[0].set_xlim(-0.5, 1.5)
    axes[0].set_ylim(len(table) - 0.5, -0.5)
    axes[0].set_xticks([0, 1], ["1", "x̂"])
    axes[0].set_yticks(
        range(len(table)), [name.replace("stop-gradient at ", "stop-gradient\nat ") for name, _ in table]
    )
    axes[0].grid(False)
    axes[0].set_xlabel("part that comes back, exactly,\nalong …")
    for place, (direction, colour, marker) in enumerate((("1", style.CYCLE[0], "o"), ("x̂", style.CYCLE[3], "D"))):
        values = np.array([[came[name][place] for name in MEASURED] for came in networks])
        middle = values.mean(0)
        at = np.arange(len(MEASURED)) + (place - 0.5) * 0.25
        axes[1].errorbar(
            np.maximum(middle, _FLOOR),
            at,
            xerr=np.maximum([middle - values.min(0), values.max(0) - middle], 0),
            fmt=marker,
            color=colour,
            label=f"along {direction}",
        )
    axes[1].set_xscale("log")
    axes[1].set_xlim(_FLOOR / 3, 3)
    axes[1].axvline(1, color="black", linewidth=0.8)
    names = [
        name.replace("stop-gradient at ", "stop-gradient\nat ").replace(", along", ",\nalong") for name in MEASURED
    ]
    axes[1].set_yticks(range(len(MEASURED)), names)
    axes[1].invert_yaxis()
    axes[1].set_xlabel("part that comes back in networks")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    style.letter(axes)
    return figure


_FLOOR = 1e-18


def _cell(column: int, row: int, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, color=colour, alpha=0.55, linewidth=0)


STUDY = Study(
    id="Z6",
    title="What it is that blocks",
    claim="The blocking is caused by the standardization phase alone, through its derivatives to the batch's mean and "
    "deviation; the affine phase, frozen statistics and layer norm do not block what the samples of a batch share.",
    source="Zhou et al. 2022, Appendix H",
    run=run,
)
