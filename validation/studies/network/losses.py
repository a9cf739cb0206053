"""Losses with their gradients."""

from __future__ import annotations

from typing import Literal

import numpy as np

from validation.studies.network.layers import Array, sigmoid

__all__ = ["accuracy", "log_sigmoid_loss", "softmax", "softmax_cross_entropy"]

Reduction = Literal["mean", "sum"]


def softmax(logits: Array) -> Array:
    """Return each row's probabilities."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def softmax_cross_entropy(logits: Array, labels: Array, reduction: Reduction = "mean") -> tuple[float, Array]:
    """Return −log of the labels' probabilities, summed or averaged over the rows, and its gradient on the logits."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    loss = (np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, labels]).sum()
    gradient = softmax(logits)
    gradient[rows, labels] -= 1
    share = _share(len(labels), reduction)
    return float(loss * share), gradient * share


def log_sigmoid_loss(logits: Array, signs: Array, reduction: Reduction = "mean") -> tuple[float, Array]:
    """Return −log σ(±logit), summed or averaged over all logits, and its gradient; signs are 1 or −1."""
    share = _share(logits.size, reduction)
    loss = np.logaddexp(0, -signs * logits).sum()
    return float(loss * share), -signs * sigmoid(-signs * logits) * share


def accuracy(logits: Array, labels: Array) -> float:
    """Return the fraction of rows whose largest logit is the label's."""
    return float((logits.argmax(axis=1) == labels).mean())


def _share(count: int, reduction: Reduction) -> float:
    return 1 / count if reduction == "mean" else 1.0
