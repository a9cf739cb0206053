from fractions import Fraction

import numpy as np
import pytest

from refbn.reference import _sum


class Counted:
    """A summand that knows how many additions it went through."""

    def __init__(self, additions=0):
        self.additions = additions

    def __add__(self, other):
        return Counted(max(self.additions, other.additions) + 1)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 7, 8, 9, 31, 64, 65, 1000])
def test_depth_is_what_summands_go_through_at_most(m):
    terms = np.array([[Counted() for _ in range(m)]], dtype=object)
    assert _sum.total(terms)[0, 0].additions == _sum.depth(m)
    assert 2 ** _sum.depth(m) >= m > 2 ** (_sum.depth(m) - 1) or m == 1


@pytest.mark.parametrize("m", [0, 1, 2, 3, 6, 100])
def test_total_is_exact_for_exact_summands(m):
    rng = np.random.default_rng(m)
    terms = rng.integers(-1000, 1000, (3, m)) / 8.0
    assert _sum.total(terms).shape == (3, 1)
    assert _sum.total(terms)[:, 0].tolist() == [float(sum(map(Fraction, row), Fraction(0))) for row in terms]


def test_total_leaves_its_argument_alone():
    terms = np.arange(7.0)[None, :]
    _sum.total(terms)
    assert terms.tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]
