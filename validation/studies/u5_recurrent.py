"""U5: batch norm inside a recurrence, with statistics of each step in time.

The network is hₜ = tanh(N(W hₜ₋₁) + N(V xₜ) + b), N batch norm with one γ for all steps [1]_, W orthogonal at first.

The gradient over time, at initialization: ‖∂loss/∂hₜ‖ of the cross-entropy after the last step, as images are read in
64 steps (digits: a pixel each). That it vanishes at γ = 1 is explained in [1]_ by tanh′, which falls with γ. But the
norm also divides by the standard deviation of W h, which is h's own and rises with γ no faster than γ. For independent
inputs both terms have variance γ², and a step back multiplies the gradient's length by

    γ · √(E tanh′(√2 γz)² / E tanh²(√2 γz)),   z normal,

which is 1/√2 for γ → 0, where the input makes a half of the state's variance, and *grows* with γ. Measured for normal
inputs, too.

Training: images are read in 16 steps; accuracy on held-out images after a fixed number of steps, for some
initial γ, for layer norm in the same places, and for none. And that accuracy if one set of running statistics, the
average over the steps, serves all steps instead of each step's own.

Criterion, three parts: per step back the gradient shrinks clearly faster at γ = 1 than at γ = 0.1; training from
γ = 0.1 ends clearly better than from γ = 1; common statistics are clearly worse than those of each step, from γ = 0.1.

.. [1] T. Cooijmans et al., "Recurrent Batch Normalization", 2017, Section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from validation.studies import network, training, understanding
from validation.studies.study import Context, Finding, Measured, Study, Verdict

__all__ = ["GAMMAS", "STUDY", "Reader", "growth", "judge", "predicted"]

GAMMAS = (0.1, 0.3, 1.0)
HIDDEN = 32
LONG, SHORT = 64, 16
"""Steps in time in which an image is read, for the gradient and in training."""
BATCH = 64
RATE = 0.2


class Reader(network.layers.Joined):
    """A recurrent layer that reads an image some pixels at a time, and a dense one on its last state.

    Parameters
    ----------
    generator : numpy.random.Generator
    features, pixels : int
        Of an image, and of a step.
    kind : {"none", "BN", "LN"}
    gain : float
        γ's initial value.
    """

    def __init__(self, generator: np.random.Generator, features: int, pixels: int, kind: str, gain: float) -> None:
        self.pixels = pixels
        self.norms: list[Any] = []  # two of each step, in turn

        def norm() -> network.Layer:
            self.norms.append(network.BatchNorm(HIDDEN) if kind == "BN" else network.LayerNorm(HIDDEN))
            return self.norms[-1]

        recurrent, _ = np.linalg.qr(generator.standard_normal((HIDDEN, HIDDEN)))
        inputs = network.xavier(generator, (HIDDEN, pixels))
        self.recurrent = network.Recurrent(recurrent, inputs, None if kind == "none" else norm, gain)
        self.last = network.Dense(network.xavier(generator, (10, HIDDEN)))
        super().__init__(recurrent=self.recurrent, last=self.last)

    def forward(self, x: np.ndarray, train: bool = True) -> np.ndarray:
        """Return the logits."""
        states = self.recurrent.forward(x.reshape(len(x), -1, self.pixels), train)
        self._shape = states.shape
        return self.last.forward(states[:, -1], train)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        """Return the gradient on the image."""
        dstates = np.zeros(self._shape)
        dstates[:, -1] = self.last.backward(dy)
        return self.recurrent.backward(dstates).reshape(len(dy), -1)

    def share_statistics(self) -> None:
        """Give all steps the same running statistics: those of all steps' values together."""
        for place in (0, 1):
            steps = [layer.norm for layer in self.norms[place::2]]
            means = np.array([one.running_mean for one in steps])
            variances = np.array([one.running_var for one in steps])
            for one in steps:
                one.running_mean = means.mean(axis=0)
                one.running_var = variances.mean(axis=0) + means.var(axis=0)


# ---------------------------------------------------------------- the gradient over time


def gradient_norms(net: Reader, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return ‖∂loss/∂hₜ‖ for each step, over that of the last one."""
    _, dlogits = network.softmax_cross_entropy(net.forward(x), labels)
    net.backward(dlogits)
    lengths = np.array([np.linalg.norm(one) for one in net.recurrent.state_gradients])
    return lengths / lengths[-1]


def growth(lengths: np.ndarray) -> float:
    """Return the decades by which a gradient grows for each step back, over the later three quarters of the steps.

    The first ones are left out: there h has not yet its size, and may not vary at all.
    """
    steps = np.arange(len(lengths))[len(lengths) // 4 :]
    return float(-np.polyfit(steps, np.log10(lengths[steps]), 1)[0])


def predicted(gamma: float) -> float:
    """Return that growth for independent inputs and wide layers and batches: see above."""
    z, weight = np.polynomial.hermite_e.hermegauss(199)
    weight = weight / weight.sum()
    y = np.tanh(math.sqrt(2) * gamma * z)
    return math.log10(gamma * math.sqrt(weight @ (1 - y**2) ** 2 / (weight @ y**2)))


def of_normal_inputs(generator: np.random.Generator, gamma: float, steps: int, m: int) -> float:
    """Return the growth for independent normal inputs, as many as there are states."""
    net = Reader(generator, steps * HIDDEN, HIDDEN, "BN", gamma)
    x = generator.standard_normal((m, steps * HIDDEN))
    return growth(gradient_norms(net, x, generator.integers(10, size=m)))


# ---------------------------------------------------------------- the study


def judge(
    growths: Mapping[float, Sequence[float]], accuracies: Mapping[float, Sequence[float]], common: Sequence[float]
) -> tuple[Verdict, str]:
    """Judge by the criterion above: growth and accuracy by γ and seed, and accuracy with common statistics."""
    small, large = min(growths), 1.0
    vanishing = np.subtract(growths[small], growths[large])
    better = np.subtract(accuracies[small], accuracies[large])
    own = np.subtract(accuracies[small], common)
    holds = [training.clear(one) for one in (vanishing, better, own)]
    words = ["" if one else "not " for one in holds]
    because = (
        f"Per step back the gradient changes by {np.mean(growths[large]):+.3f} decades at γ = 1 and "
        f"{np.mean(growths[small]):+.3f} at γ = {small}: it does {words[0]}vanish faster at γ = 1. Training from γ = "
        f"{small} ends {100 * better.mean():+.1f} points from where γ = 1 does ({words[1]}clearly better); statistics "
        f"common to all steps cost {100 * own.mean():.1f} points ({words[2]}clear)"
    )
    return understanding.verdict(holds), because


def run(ctx: Context) -> Finding:
    """Measure and judge."""
    given = training.task(ctx.data)
    usable = given.features // LONG * LONG
    cut = training.Task(given.x[:, :usable], given.labels, given.held_x[:, :usable], given.held_labels)
    steps, m, length = (60, 64, 16) if ctx.quick else (200, 256, 32)
    setups = [("none", 1.0), *(("BN", gamma) for gamma in GAMMAS), ("LN", 1.0)]
    wide = (*GAMMAS, 3.0)
    over_time: dict[tuple[str, float], list[np.ndarray]] = {setup: [] for setup in setups}
    normal: dict[float, list[float]] = {gamma: [] for gamma in wide}
    accuracies: dict[tuple[str, float], list[float]] = {setup: [] for setup in setups}
    common: dict[float, list[float]] = {gamma: [] for gamma in GAMMAS}
    for seed in ctx.progress(ctx.seeds, "seeds"):
        rows = ctx.generator(seed, "batch").permutation(len(given.x))[:m]
        for kind, gamma in setups:
            net = Reader(ctx.generator(seed, "weights"), usable, usable // LONG, kind, gamma)
            over_time[kind, gamma].append(gradient_norms(net, cut.x[rows], cut.labels[rows]))
        for gamma in wide:
            normal[gamma].append(of_normal_inputs(ctx.generator(seed, "normal"), gamma, length, m))
        for kind, gamma in ctx.progress(setups, f"training, seed {seed}"):
            net = Reader(ctx.generator(seed, "weights"), usable, usable // SHORT, kind, gamma)
            training.train(net, cut, ctx.generator(seed, "batches"), m=BATCH, steps=steps, rate=RATE)
            accuracies[kind, gamma].append(cut.accuracy(net))
            if kind == "BN":
                net.share_statistics()
                common[gamma].append(cut.accuracy(net))

    growths = {setup: [growth(one) for one in row] for setup, row in over_time.items()}
    of_batch_norm = {gamma: accuracies["BN", gamma] for gamma in GAMMAS}
    decided, because = judge({gamma: growths["BN", gamma] for gamma in GAMMAS}, of_batch_norm, common[GAMMAS[0]])
    names = {setup: _name(*setup) for setup in setups}
    numbers = [
        Measured(f"gradient per step back, digits, {names[setup]}", tuple(row), "decades")
        for setup, row in growths.items()
    ]
    numbers += [
        Measured(
            f"gradient per step back, normal inputs, BN, γ = {gamma}",
            tuple(row),
            "decades",
            f"{predicted(gamma):+.3f} for wide layers",
        )
        for gamma, row in normal.items()
    ]
    numbers += [Measured(f"accuracy, {names[setup]}", tuple(row)) for setup, row in accuracies.items()]
    numbers += [
        Measured(f"accuracy with common statistics, BN, γ = {gamma}", tuple(row)) for gamma, row in common.items()
    ]
    mean = {setup: float(np.mean(row)) for setup, row in accuracies.items()}
    rate = {setup: float(np.mean(row)) for setup, row in growths.items()}
    small = GAMMAS[0]
    larger = "larger" if rate["BN", 1.0] < rate["BN", small] else "smaller"
    off = max(abs(float(np.mean(row)) - predicted(gamma)) for gamma, row in normal.items())
    caption = (
        f"Batch norm inside a recurrence. (a) Length of the gradient on the state over time, at initialization, as "
        f"digits are read pixel by pixel: per step back it changes by {rate['BN', small]:+.3f} decades with γ = "
        f"{small} and by {rate['BN', 1.0]:+.3f} with γ = 1 ({rate['none', 1.0]:+.3f} without norm, "
        f"{rate['LN', 1.0]:+.3f} with layer norm): it vanishes faster with the {larger} γ. (b) For normal inputs the "
        f"change is within {off:.3f} decades of mean-field theory (line), which rises with γ: at small γ a half of the "
        f"state is input, and 1/√2 is lost in each step. (c) Accuracy after {steps} steps of training: "
        f"{mean['BN', small]:.0%} from γ = {small}, {mean['BN', 1.0]:.0%} from γ = 1, {mean['none', 1.0]:.0%} without "
        f"norm, {mean['LN', 1.0]:.0%} with layer norm; with running statistics common to all steps (hollow) "
        f"{np.mean(common[small]):.0%} and {np.mean(common[1.0]):.0%}. Bars: one standard deviation over "
        f"{len(ctx.seeds)} seeds; (a) geometric means."
    )
    details = {
        "gradients over time": {names[setup]: row for setup, row in over_time.items()},
        "growth": {names[setup]: row for setup, row in growths.items()},
        "growth, normal inputs": normal,
        "growth, predicted": {gamma: predicted(gamma) for gamma in wide},
        "accuracies": {names[setup]: row for setup, row in accuracies.items()},
        "accuracies with common statistics": common,
    }
    drawn = _draw(over_time, normal, accuracies, common)
    return Finding(decided, because, tuple(numbers), drawn, caption, details)


def _name(kind: str, gamma: float) -> str:
    return f"{kind}, γ = {gamma:g}" if kind == "BN" else kind


def _draw(
    over_time: Mapping[tuple[str, float], Sequence[np.ndarray]],
    normal: Mapping[float, Sequence[float]],
    accuracies: Mapping[tuple[str, float], Sequence[float]],
    common: Mapping[float, Sequence[float]],
) -> Any:
    from validation.studies import style

    figure, axes = style.figure(1, 3, height=4.0)
    time, theory, trained = axes
    markers = dict(zip(GAMMAS, ("o", "s", "^"), strict=True))
    shades = dict(zip(GAMMAS, (style.COLOURS["BN"], style.COLOURS["BRN"], style.COLOURS["GN"]), strict=True))
    for (kind, gamma), row in over_time.items():
        colour = shades[gamma] if kind == "BN" else style.COLOURS[kind]
        lines = {"none": "--", "LN": ":"}.get(kind, "-")
        label = f"batch norm, γ = {gamma:g}" if kind == "BN" else style.NAMES[kind]
        values = np.exp(np.mean(np.log(np.array(row)), axis=0))
        steps = np.arange(1, len(values) + 1)
        time.semilogy(steps, values, lines, color=colour, label=label)
    time.set(xlabel="step in time, t", ylabel="gradient on hₜ over that on the last", title="gradient")

    fine = np.geomspace(0.05, 4, 60)
    theory.plot(fine, [predicted(gamma) for gamma in fine], color="black", linewidth=1, label="theory")
    values = np.array(list(normal.values()))
    theory.errorbar(
        list(normal),
        values.mean(axis=1),
        training.spread(values, 1),
        fmt="o",
        color=style.COLOURS["BN"],
        capsize=2,
        label="normal inputs",
    )
    theory.axhline(-0.5 * math.log10(2), color="black", linestyle=":", linewidth=1, label="1/√2 in each step")
    theory.set_xscale("log")
    theory.set(xlabel="γ", ylabel="growth per step back (decades)", title="growth over γ")
    theory.legend()

    for place, ((kind, gamma), row) in enumerate(accuracies.items()):
        colour = shades[gamma] if kind == "BN" else style.COLOURS[kind]
        found = 100 * np.array(row)
        marker = markers[gamma] if kind == "BN" else style.MARKERS[kind]
        trained.errorbar(place, found.mean(), training.spread(found), fmt=marker, color=colour, capsize=2)
        if kind == "BN":
            found = 100 * np.array(common[gamma])
            trained.errorbar(
                place + 0.2,
                found.mean(),
                training.spread(found),
                fmt=marker,
                color=colour,
                capsize=2,
                markerfacecolor="white",
            )
    labels = [f"BN\n{gamma:g}" if kind == "BN" else kind for kind, gamma in accuracies]
    trained.set_xticks(range(len(labels)), labels)
    trained.set_xlim(-0.5, len(labels) - 0.5)
    trained.set(xlabel="norm, initial γ", ylabel="accuracy on held-out images (%)", title="after training")
    style.letter(axes)
    handles, labels = time.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


STUDY = Study(
    id="U5",
    title="Recurrent networks",
    claim="Inside a recurrence batch norm needs statistics of each step in time and a small initial γ: with γ = 1 "
    "gradients vanish over time, with γ = 0.1 they last.",
    source="Uppal 2020; Cooijmans et al. 2017, Section 4",
    run=run,
)
