"""U4: online learning, one sample at a time, is impossible with batch norm.

With m = 1 the sample is its own mean: x̂ = 0, so y = β whatever x is, and P = 0, so dx = 0. In bits, for random inputs
of all sizes, all four formats and three backends: y is β, dx and dγ are zeros, dβ is dy.

In networks: perceptrons with two hidden layers see each image of the digits once, one at a time. With batch norm the
predictions cannot depend on the image, and no gradient gets below the topmost norm: only its β and the last layer move,
all other parameters are the initial ones, bit by bit. The other norms are controls. Batch renormalization, whose output
does depend on x by way of its running statistics, has the same gradient, 0: what it learns, it learns on top of random
features. PyTorch, if it is installed, refuses such a batch.

Criterion, three parts: in all instances the bits are as said; in all networks with batch norm just these parameters
have moved, and one category is predicted for all images; layer norm, group norm and no norm at all learn, that is,
their accuracy is clearly above that of one category for all images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import refbn
from validation.studies import network, training, understanding
from validation.studies.study import Context, Finding, Measured, Study, Verdict

__all__ = ["BACKENDS", "FORMATS", "STUDY", "Learnt", "expected_to_move", "in_bits", "judge", "learn", "torch_raises"]

FORMATS = ("float16", "bfloat16", "float32", "float64")
BACKENDS = ("native", "reference", "exact")
KINDS = ("BN", "BRN", "LN", "GN", "none")
GROUPS = 8
WIDTHS = (64, 64)
RATE = 0.02
EVERY = 32
"""Images before the first look at the accuracy; from look to look the number doubles."""


# ---------------------------------------------------------------- in bits


def in_bits(generator: np.random.Generator, dtype: Any, backend: str) -> bool:
    """Tell whether a random batch of one sample is normalized to β with gradients 0, 0 and dy, bit by bit."""
    channels = int(generator.integers(1, 9))
    # Of sizes over all of the format's range, the halves of its exponents, so that dγ = Σ dy·x̂ is no matter of range.
    finfo = _limits(dtype)
    powers = generator.uniform(np.log10(finfo.tiny) / 2, np.log10(finfo.max) / 2, (4, channels))
    x, gamma, beta, dy = (generator.standard_normal((4, channels)) * 10**powers).astype(dtype)
    fwd = refbn.forward(x[None], gamma, beta, backend=backend)
    found = refbn.backward(fwd.saved, dy[None])
    zeros = np.zeros(channels, dtype).tobytes()
    return (
        fwd.y.tobytes() == beta.tobytes()
        and found.dx.tobytes() == zeros
        and found.dgamma.tobytes() == zeros
        and found.dbeta.tobytes() == dy.tobytes()
    )


def _limits(dtype: Any) -> Any:
    import ml_dtypes

    return ml_dtypes.finfo(dtype)


def _dtype(name: str) -> Any:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def torch_raises() -> str | None:
    """Return what PyTorch's batch norm says to a batch of one; "" if it says nothing, None if it is not there."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    try:
        torch.nn.BatchNorm1d(3).train()(torch.ones(1, 3))
    except ValueError as error:
        return str(error)
    return ""


# ---------------------------------------------------------------- in networks


class Learnt(NamedTuple):
    """A network after it has seen each image once.

    Attributes
    ----------
    moved : dict of float
        The parameters' change, ‖after − before‖/(‖before‖ + ‖after − before‖); exactly 0 if no bit has changed.
    curve : list of (int, float)
        Accuracy on held-out images over the images seen.
    categories : int
        How many categories are predicted for held-out images.
    """

    moved: dict[str, float]
    curve: list[tuple[int, float]]
    categories: int

    @property
    def accuracy(self) -> float:
        """The last accuracy."""
        return self.curve[-1][1]


def _options(kind: str) -> dict[str, Any]:
    """Return options of a norm: running statistics of some hundred images, and no refusal of m = 1."""
    return {
        "BN": {"dialect": "keras", "eps": 1e-5, "momentum": 0.99},
        "BRN": {"momentum": 0.01},
        "GN": {"groups": GROUPS},
    }.get(kind, {})


def one_by_one(kind: str, net: network.Layer, x: np.ndarray) -> np.ndarray:
    """Return the logits of images, each normalized as in learning: by itself, or with running statistics by BRN."""
    if kind != "BN":
        return net.forward(x, train=False)
    return np.concatenate([net.forward(image[None]) for image in x])


def learn(ctx: Context, seed: int, kind: str, steps: int, held: int) -> Learnt:
    """Show a network one image after another."""
    given = training.task(ctx.data)
    widths = (given.features, *WIDTHS, 10)
    # Not ReLU: where β = 0, as at first, it would pass no gradient to β either.
    options = _options(kind) | {"activation": network.Tanh, "initialize": network.xavier}
    net = network.perceptron(ctx.generator(seed, "weights"), widths, kind, **options)
    before = {name: value.copy() for name, value in net.parameters.items()}
    x, labels = given.held_x[:held], given.held_labels[:held]
    looks = {EVERY * 2**k for k in range(steps // EVERY)} | {steps}
    curve = [(0, network.accuracy(one_by_one(kind, net, x), labels))]

    def watch(step: int) -> None:
        if step in looks:
            curve.append((step, network.accuracy(one_by_one(kind, net, x), labels)))

    training.train(net, given, ctx.generator(seed, "order"), m=1, steps=steps, rate=RATE, watch=watch)
    moved = {}
    for name, value in net.parameters.items():
        change, size = np.linalg.norm(value - before[name]), np.linalg.norm(before[name])
        moved[name] = 0.0 if value.tobytes() == before[name].tobytes() else float(change / (change + size))
    categories = len(np.unique(one_by_one(kind, net, x).argmax(axis=1)))
    return Learnt(moved, curve, categories)


def expected_to_move(names: Sequence[str]) -> set[str]:
    """Return which parameters of a perceptron can move: β of the topmost norm, and the last layer."""
    top = max(name for name in names if name.endswith(".beta"))
    last = max(name for name in names if name.endswith(".weight"))
    return {top, last, last.replace("weight", "bias")}


def judge(
    bits: Mapping[tuple[str, str], Sequence[bool]], found: Mapping[str, Sequence[Learnt]], chance: float
) -> tuple[Verdict, str]:
    """Judge by the criterion above; ``chance`` is the accuracy of the most frequent category."""
    same = sum(sum(row) for row in bits.values())
    count = sum(len(row) for row in bits.values())
    still = [
        {name for name, change in one.moved.items() if change} == expected_to_move(list(one.moved))
        and one.categories == 1
        for one in found["BN"]
    ]
    learns = {
        kind: training.clear([one.accuracy - chance for one in row])
        for kind, row in found.items()
        if kind not in ("BN", "BRN")
    }
    accuracy = {kind: float(np.mean([one.accuracy for one in row])) for kind, row in found.items()}
    because = (
        f"y = β, dx = 0, dγ = 0 and dβ = dy bit by bit in {same} of {count} instances; in {sum(still)} of {len(still)} "
        "networks with batch norm only the topmost β and the last layer moved, and one category is predicted "
        f"({accuracy['BN']:.0%} right); {', '.join(f'{kind} {accuracy[kind]:.0%}' for kind in learns)}"
    )
    stuck = [kind for kind, can in learns.items() if not can]
    if stuck:
        because += f"; the controls {', '.join(stuck)} do not learn either"
    return understanding.verdict([same == count, all(still), not stuck]), because


# ---------------------------------------------------------------- the study


def run(ctx: Context) -> Finding:
    """Measure and judge."""
    repeats = 20 if ctx.quick else 100
    given = training.task(ctx.data)
    steps = 400 if ctx.quick else len(given.x)
    held = 150 if ctx.quick else 300
    bits = {
        (name, backend): [
            in_bits(generator, _dtype(name), backend)
            for seed in ctx.seeds
            for generator in [ctx.generator(seed, name, backend)]
            for _ in range(repeats)
        ]
        for name in ctx.progress(FORMATS, "in bits")
        for backend in BACKENDS
    }
    tasks = [(kind, seed) for kind in KINDS for seed in ctx.seeds]
    found: dict[str, list[Learnt]] = {kind: [] for kind in KINDS}
    for kind, seed in ctx.progress(tasks, "one by one"):
        found[kind].append(learn(ctx, seed, kind, steps, held))
    chance = float(np.bincount(given.held_labels[:held]).max() / len(given.held_labels[:held]))
    decided, because = judge(bits, found, chance)

    numbers = [
        Measured(
            f"y = β, dx = 0, dγ = 0, dβ = dy in bits, {name}, {backend}",
            tuple(float(np.mean(row[place * repeats : (place + 1) * repeats])) for place in range(len(ctx.seeds))),
            expected="1",
        )
        for (name, backend), row in bits.items()
    ]
    said = torch_raises()
    if said is not None:
        numbers.append(Measured("PyTorch raises an error for m = 1", (float(bool(said)),), expected="1"))
    numbers += [
        Measured(
            f"accuracy after {steps} images, one by one, {kind}",
            tuple(one.accuracy for one in row),
            expected=f"one category: at most {chance:.3f}" if kind == "BN" else "",
        )
        for kind, row in found.items()
    ]
    numbers += [
        Measured(
            f"parameters that moved, {kind}",
            tuple(float(sum(map(bool, one.moved.values()))) for one in row),
            f"of {len(row[0].moved)}",
            "3" if kind == "BN" else "",
        )
        for kind, row in found.items()
    ]
    numbers += [
        Measured(
            f"change of the first layer's weights, {kind}",
            tuple(one.moved["0.weight"] for one in row),
            "",
            "exactly 0" if kind in ("BN", "BRN") else "",
        )
        for kind, row in found.items()
    ]
    mean = {kind: float(np.mean([one.accuracy for one in row])) for kind, row in found.items()}
    moved = {kind: np.mean([sum(map(bool, one.moved.values())) for one in row]) for kind, row in found.items()}
    total = len(found["BN"][0].moved)
    caption = (
        "One image at a time (m = 1). (a) With batch norm, whose output is then β for any image, the accuracy stays at "
        f"{mean['BN']:.0%}, while layer norm reaches {mean['LN']:.0%}, group norm {mean['GN']:.0%} and no "
        f"norm {mean['none']:.0%} after {steps} images. Batch renormalization reaches {mean['BRN']:.0%}, on top of "
        f"random features. (b) Relative change of each parameter: with batch norm {moved['BN']:.0f} of {total} "
        f"move, with its renormalization {moved['BRN']:.0f}; 0 means that not a bit has changed. "
        f"Bars: one standard deviation over {len(ctx.seeds)} seeds."
    )
    details = {
        "images": steps,
        "chance": chance,
        "curves": {kind: [one.curve for one in row] for kind, row in found.items()},
        "moved": {kind: [one.moved for one in row] for kind, row in found.items()},
        "torch": said,
    }
    return Finding(decided, because, tuple(numbers), _draw(found, chance), caption, details)


def _draw(found: Mapping[str, Sequence[Learnt]], chance: float) -> Any:
    from matplotlib.colors import LogNorm

    from validation.studies import style

    figure, (left, right) = style.figure(1, 2, height=4.2)
    for kind, row in found.items():
        images = [step for step, _ in row[0].curve]
        values = 100 * np.array([[accuracy for _, accuracy in one.curve] for one in row])
        left.errorbar(images, values.mean(axis=0), training.spread(values), capsize=2, **style.of(kind))
    left.axhline(100 * chance, color="black", linestyle="--", linewidth=1, label="most frequent category")
    left.set(xlabel="images seen", ylabel="accuracy on held-out images (%)", ylim=(0, 100), title="learning one by one")
    figure.legend(loc="outside lower center", ncols=3)

    # All kinds' parameters under the names that batch norm's have; no norm and a plain layer have fewer.
    rows = {
        "weights 1": "0.weight",
        "biases 1": "0.bias",
        "γ 1": "1.gamma",
        "β 1": "1.beta",
        "weights 2": "3.weight",
        "biases 2": "3.bias",
        "γ 2": "4.gamma",
        "β 2": "4.beta",
        "weights 3": "6.weight",
        "biases 3": "6.bias",
    }
    plain = {"0": "0", "3": "2", "6": "4"}
    table = np.full((len(rows), len(found)), np.nan)
    for column, (kind, row) in enumerate(found.items()):
        for place, name in enumerate(rows.values()):
            layer, part = name.split(".")
            own = f"{plain.get(layer, '')}.{part}" if kind == "none" else name
            if own in row[0].moved:
                table[place, column] = np.mean([one.moved[own] for one in row])
    smallest = np.nanmin(table[table > 0])
    image = right.imshow(
        np.where(table > 0, table, np.nan), aspect="auto", norm=LogNorm(min(smallest, 1e-3), 1), cmap="viridis"
    )
    for (place, column), value in np.ndenumerate(table):
        text = "–" if np.isnan(value) else "0" if value == 0 else f"{value:.2f}" if value >= 0.005 else f"{value:.0e}"
        light = value > 0 and np.log10(value) < np.log10(min(smallest, 1e-3)) / 2
        right.text(column, place, text, ha="center", va="center", fontsize=8.5, color="white" if light else "black")
    right.set_xticks(range(len(found)), list(found))
    right.set_yticks(range(len(rows)), list(rows))
    right.grid(False)
    right.set_title("change of the parameters")
    figure.colorbar(image, ax=right, label="relative change")
    style.letter((left, right))
    return figure


STUDY = Study(
    id="U4",
    title="Online learning",
    claim="Online learning, one sample at a time, is impossible with batch norm: y = β and dx = 0 exactly, so nothing "
    "is learnt below it.",
    source="Uppal 2020",
    run=run,
)
