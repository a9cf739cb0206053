"""What the error of an output looks like: the shape of a mistake, in one clause.

A mistake in batch norm leaves a trace that few numbers describe. A factor that is missing or squared makes got/exact
one number in each channel, for y after beta is subtracted; a projection's term that is missing puts the error into the
span of 1 and x̂. `pattern` looks for these, in this order, and says nothing where none fits. It describes the error; it
is no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from refbn._formats import load
from refbn.audit.adapters._protocol import Array, Inputs
from refbn.audit.cases import Case

__all__ = ["pattern"]

Doubles = npt.NDArray[np.float64]

_ALIKE = 1e-3
"""Two numbers are one, and an error is explained, up to this fraction of it: less than any two factors differ by."""


def pattern(case: Case, inputs: Inputs, output: str, got: Array, exact: Doubles, allowed: Doubles) -> str:
    """Describe got − exact.

    Parameters
    ----------
    case, inputs
        What was asked.
    output : str
        Which of the operation's outputs it is.
    got : ndarray
        What came, of the exact values' shape.
    exact, allowed : ndarray
        The exact values, rounded to binary64, and how far off they may be.
    """
    if exact.size == 0 or case.repeat != 1:
        return ""
    values, truth, limit = (_rows(a) for a in (load(np.asarray(got)), exact, allowed))
    off = ~(np.abs(values - truth) <= limit)
    channels = [c for c in range(len(truth)) if off[c].any() and np.isfinite(values[c]).all()]
    if not channels:
        return ""
    named = _quantities(case, inputs)
    text = _factor(values, truth, channels, named)
    if not text and output == "y":
        beta = load(inputs.beta)[:, None]
        text = _factor(values - beta, truth - beta, channels, named, "(got - beta)", "(exact - beta)")
    return text or _difference(values - truth, channels, inputs, case)


def _rows(array: Doubles) -> Doubles:
    """Return channels as rows."""
    if array.ndim < 2:
        return array.reshape(-1, 1)
    return np.moveaxis(array, 1, 0).reshape(array.shape[1], -1)


def _quantities(case: Case, inputs: Inputs) -> dict[str, Doubles]:
    """Return what a factor or a term may be, for each channel."""
    m = case.count
    one = np.ones(case.shape[1])
    x = _rows(load(inputs.batches[0] if inputs.batches and case.operation == "running" else inputs.x))
    with np.errstate(all="ignore"):
        gamma, var = load(inputs.gamma), load(inputs.var) if case.op.frozen else x.var(axis=1)
        invstd = 1 / np.sqrt(var + case.eps)
        found = {"-1": -one, "2": 2 * one, "1/2": one / 2, "m": one * m, "1/m": one / m}
        if m > 1:
            found |= {"m/(m-1)": one * m / (m - 1), "(m-1)/m": one * (m - 1) / m}
            found |= {"sqrt(m/(m-1))": np.sqrt(one * m / (m - 1)), "sqrt((m-1)/m)": np.sqrt(one * (m - 1) / m)}
        found |= {"gamma": gamma, "1/gamma": 1 / gamma, "gamma*invstd": gamma * invstd}
        found |= {"invstd": invstd, "1/invstd": 1 / invstd, "invstd^2": invstd**2, "(var + eps)": invstd**-2.0}
        found |= {"sqrt(var + eps)/(sqrt(var) + eps)": 1 / (invstd * (np.sqrt(var) + case.eps))}
        found |= {"sqrt((var + eps)/var)": 1 / (invstd * np.sqrt(var))}
    return found


def _factor(
    values: Doubles,
    truth: Doubles,
    channels: list[int],
    named: Mapping[str, Doubles],
    got: str = "got",
    exact: str = "exact",
) -> str:
    """Look whether got/exact is one number in each channel, and which one."""
    factors = []
    for c in channels:
        size = np.abs(truth[c]).max()
        large = np.abs(truth[c]) > 1e-3 * size
        if not size or (truth.shape[1] > 1 and large.sum() < 2):
            return ""
        ratios = values[c][large] / truth[c][large]
        factor = float(np.median(ratios))
        if np.abs(ratios - factor).max() > _ALIKE * abs(factor) or not math.isfinite(factor):
            return ""
        if factor == 0:
            if (values[c] != 0).any():
                return ""
        elif np.abs(values[c] - factor * truth[c]).max() > _ALIKE * abs(factor) * size:
            return ""
        factors.append(factor)
    if not any(factors):
        return f"{got} is 0 throughout"
    for name, value in named.items():
        if all(abs(f - value[c]) <= _ALIKE * abs(value[c]) for f, c in zip(factors, channels, strict=True)):
            return f"{got} = {name} * {exact} ({_listed(channels, factors)})"
    if truth.shape[1] == 1:  # one value for each channel: any value is a multiple of another
        return ""
    return f"{got} is a multiple of {exact} in each channel: {_listed(channels, factors)}"


def _difference(errors: Doubles, channels: list[int], inputs: Inputs, case: Case) -> str:
    """Look whether the error is a combination of few vectors."""
    if errors.shape[1] < 4:
        return ""
    for names, columns in _bases(inputs, case):
        fits = []
        for c in channels:
            basis = np.stack([column[c] for column in columns], axis=1)
            basis = basis / np.maximum(np.abs(basis).max(axis=0), 1e-300)
            if basis.shape[0] <= basis.shape[1] + 1 or not np.isfinite(basis).all():
                break
            weights = np.linalg.lstsq(basis, errors[c], rcond=1e-9)[0]
            if np.abs(basis @ weights - errors[c]).max() > _ALIKE * np.abs(errors[c]).max():
                break
            fits.append(weights)
        else:
            if names == ("1",):
                return f"got - exact is one number in each channel: {_listed(channels, [float(w[0]) for w in fits])}"
            many = f"a combination of {' and '.join(names)}" if len(names) > 1 else f"a multiple of {names[0]}"
            return f"got - exact is {many} in each channel: terms with {' and '.join(names)} are wrong or missing"
    return ""


def _bases(inputs: Inputs, case: Case) -> Iterator[tuple[tuple[str, ...], list[Doubles]]]:
    x = _rows(load(inputs.x))
    one = np.ones_like(x)
    with np.errstate(all="ignore"):
        if case.op.frozen:
            centred = x - load(inputs.mean)[:, None]
            xhat = centred / np.sqrt(load(inputs.var) + case.eps)[:, None]
        else:
            centred = x - x.mean(axis=1, keepdims=True)
            xhat = centred / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + case.eps)
    yield ("1",), [one]
    yield ("xhat",), [xhat]
    yield ("1", "xhat"), [one, xhat]
    if case.operation.startswith("vjp"):
        dy = _rows(load(inputs.dy))
        yield ("dy",), [dy]
        yield ("1", "xhat", "dy"), [one, xhat, dy]
    if case.operation.startswith("jvp"):
        x_dot = _rows(load(inputs.x_dot))
        yield ("x_dot",), [x_dot]
        yield ("1", "xhat", "x_dot"), [one, xhat, x_dot]


def _listed(channels: list[int], numbers: list[float]) -> str:
    shown = [f"{number:.6g} in channel {c}" for c, number in zip(channels[:3], numbers, strict=False)]
    return ", ".join(shown) + (", …" if len(channels) > 3 else "")
