"""What the studies of Bjorck et al., "Understanding Batch Normalization" (arXiv 1806.02375), share."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

from validation.studies.study import Verdict

__all__ = ["LEVEL", "allowed", "verdict"]

LEVEL = 0.01
"""How often a study that compares with a formula may contradict it by chance, all its comparisons together."""


def allowed(comparisons: int) -> float:
    """Return how many standard errors the largest of some normal deviations may reach, at `LEVEL` (Bonferroni).

    The bound holds however the comparisons depend on one another.
    """
    return NormalDist().inv_cdf(1 - LEVEL / (2 * comparisons))


def verdict(holds: Sequence[bool]) -> Verdict:
    """Return the verdict on a claim of several parts: confirmed if all of them hold, partly if some do."""
    return "confirmed" if all(holds) else "partly" if any(holds) else "not confirmed"
