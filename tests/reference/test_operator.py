import numpy as np
import pytest

from refbn import reference
from refbn.reference import bounds
from tests.reference.channels import Operands, inner


def size(o, u):
    """The bound of P u alone: that of dx for gamma = 1, with r taken out."""
    return bounds.backward(o.stats, np.ones(6), u)["dx"] / o.stats.invstd[:, None]


@pytest.mark.parametrize("m", [3, 10, 257])
@pytest.mark.parametrize("eps", [0.0, 0.3, 50.0])
def test_eigenvectors(m, eps):
    o = Operands(m, eps)
    ones, xhat = np.ones((6, m)), o.stats.xhat
    assert not reference.project(o.stats, ones).any()  # (P2), exactly
    error = np.abs(reference.project(o.stats, xhat) - o.stats.kappa[:, None] * xhat)  # (P3)
    assert (error <= 2 * size(o, xhat)).all()
    rest = reference.project(reference.statistics(o.x, 0.0), o.z)  # orthogonal to 1 and x̂
    assert (np.abs(reference.project(o.stats, rest) - rest) <= 4 * size(o, rest)).all()  # (P4)


@pytest.mark.parametrize("m", [1, 2, 10, 257])
def test_symmetry(m):
    o = Operands(m)
    left, right = (inner(a, reference.project(o.stats, b)) for a, b in ((o.dy, o.z), (o.z, o.dy)))
    allowed = inner(np.abs(o.dy), size(o, o.z)) + inner(np.abs(o.z), size(o, o.dy))
    assert (np.abs(left - right) <= allowed).all()


@pytest.mark.parametrize(("m", "eps"), [(5, 0.0), (5, 0.3), (2, 0.0), (1, 0.3)])
def test_spectrum_is_that_of_the_matrix(m, eps):
    o = Operands(m, eps)
    spectrum = reference.spectrum(o.stats)
    matrix = reference.jacobian(o.stats, 1 / o.stats.invstd).dy_dx
    for g in range(6):
        eigenvalues = [spectrum.on_ones[g], spectrum.on_xhat[g], *[spectrum.on_rest[g]] * (m - 2)]
        expected = sorted(eigenvalues[:m])
        assert np.linalg.eigvalsh(matrix[g]) == pytest.approx(expected, abs=1e-14)
        assert spectrum.rank[g] == sum(e > 1e-6 for e in expected)


def test_spectrum_of_a_constant_channel():
    spectrum = reference.spectrum(reference.statistics(np.full((1, 4), 0.1), 1e-5))
    assert (spectrum.on_xhat[0], spectrum.rank[0]) == (1.0, 3)
