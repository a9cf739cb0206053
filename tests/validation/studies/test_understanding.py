import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

pytest.importorskip("scipy")

from validation.studies import b9_gaussian_products as products
from validation.studies import understanding


class TestAllowed:
    def test_one_comparison_is_the_normal_quantile(self):
        chance = math.erfc(understanding.allowed(1) / math.sqrt(2))
        assert chance == pytest.approx(understanding.LEVEL)

    def test_more_comparisons_allow_more(self):
        assert understanding.allowed(2) < understanding.allowed(50) < understanding.allowed(1000)


@pytest.mark.parametrize(
    ("holds", "verdict"),
    [((True, True), "confirmed"), ((True, False), "partly"), ((False, False), "not confirmed")],
)
def test_a_verdict_counts_the_parts_that_hold(holds, verdict):
    assert understanding.verdict(holds) == verdict


class TestGaussianProducts:
    """B9."""

    @pytest.mark.parametrize(
        ("factors", "known"),
        [(1, [1, 1, 2, 5, 14, 42]), (2, [1, 1, 3, 12, 55, 273]), (3, [1, 1, 4, 22, 140, 969])],  # OEIS A000108, …
    )
    def test_fuss_catalan_numbers(self, factors, known):
        assert [products.fuss_catalan(factors, order) for order in range(len(known))] == known

    @pytest.mark.parametrize("factors", products.FACTORS)
    @pytest.mark.parametrize("order", range(6))
    def test_the_moments_of_the_law_are_fuss_catalan_numbers(self, factors, order):
        coarse, fine = (sum(law.weight * law.x**order) for law in (products.law(factors, n) for n in (1000, 2000)))
        exact = products.fuss_catalan(factors, order)
        # Midpoints: the error falls by four, and what is left of it is a third of the difference; beside it, rounding.
        assert abs(fine - exact) <= abs(coarse - fine) + 2000 * np.finfo(float).eps * exact
        assert fine == pytest.approx(exact, rel=1e-5)

    def test_one_factor_is_the_quarter_circle(self):
        law = products.law(1)
        assert law.density == pytest.approx(np.sqrt((4 - law.x) / law.x) / (2 * math.pi))
        assert law.x[-1] < 4

    def test_quantiles_invert_the_distribution_function(self):
        law = products.law(3)
        assert law.below(law.quantile(products.DECILES)) == pytest.approx(products.DECILES)

    @pytest.mark.parametrize("order", range(1, 6))
    @pytest.mark.parametrize("factors", [1, 2, 5])
    def test_exact_moments_of_numbers(self, order, factors):
        # N = 1: a product of normal numbers, of which the moment of order 2k is (2k−1)!! each.
        double_factorial = math.prod(range(1, 2 * order, 2))
        assert set(products.moments(1, factors, order).values()) == {Fraction(double_factorial) ** factors}

    @pytest.mark.parametrize("factors", [1, 2])
    def test_exact_moments_of_two_by_two_matrices(self, factors):
        # Four Gauss–Hermite nodes integrate polynomials of degree 7 exactly: enough for three factors WᵀW.
        nodes, weights = np.polynomial.hermite_e.hermegauss(4)
        axes = 4 * factors
        entries = np.stack(np.meshgrid(*[nodes] * axes, indexing="ij"), axis=-1).reshape(-1, factors, 2, 2) / math.sqrt(
            2
        )
        weight = np.prod(np.meshgrid(*[weights / weights.sum()] * axes, indexing="ij"), axis=0).ravel()
        product = entries[:, 0] if factors == 1 else entries[:, 1] @ entries[:, 0]
        square = product.swapaxes(1, 2) @ product
        for order in (1, 2, 3):
            powers = [np.trace(np.linalg.matrix_power(square, k), axis1=1, axis2=2) for k in range(order + 1)]
            for parts, exact in products.moments(2, factors, order).items():
                value = weight @ np.prod([powers[part] for part in parts], axis=0)
                assert value == pytest.approx(float(exact), rel=1e-12)

    def test_moments_tend_to_fuss_catalan_numbers_like_one_over_n(self):
        for factors, order in itertools.product(products.FACTORS, products.ORDERS):
            limit = products.fuss_catalan(factors, order)
            excess = [size * (products.moment(size, factors, order)[0] - limit) for size in (10**4, 10**5)]
            assert excess[0] == pytest.approx(excess[1], rel=1e-2, abs=1e-6)

    def test_the_growth_of_two_by_two_matrices(self):
        # ψ(1) − ψ(1/2) = 2 ln 2
        assert products.growth(2)[0] == pytest.approx(math.log10(2))

    def test_growth_at_200_is_the_papers(self):
        assert round(products.growth(products.SIZE)[0], 1) == 1.4

    def test_a_chain_sees_condition_numbers_that_an_svd_does_not(self):
        size, length = 4, 80
        matrices = list(products.gaussian(np.random.default_rng(1), size, length))
        found = products.chain(iter(matrices), {1, length}, plain=length)
        with mpmath.workdps(200):
            product = mpmath.eye(size)
            for matrix in matrices:
                product = mpmath.matrix(matrix.tolist()) * product
            values = mpmath.svd_r(product, compute_uv=False)
            exact = float(mpmath.log10(values[0] / values[size - 1]))
        assert exact > 20
        # First order: each factor's relative error, at most some N·u, enters times that factor's condition number.
        error = size**2 * np.finfo(float).eps * sum(np.linalg.cond(matrix) for matrix in matrices)
        assert found.condition[length] == pytest.approx(exact, abs=error)
        assert found.condition[1] == pytest.approx(found.plain[1], abs=error)
        assert found.plain[length] < exact - 1

    def test_kolmogorovs_distance(self):
        law = products.law(2)
        sample = law.quantile((np.arange(50) + 0.5) / 50)
        assert products.distance(sample, law) == pytest.approx(1 / 100)
        assert products.distance(law.x[-1:], law) == pytest.approx(1)

    def test_the_verdict_turns_on_the_numbers(self):
        good = products.Deviations({(1, 1): 1.0}, {1: [0.5, -2.0]}, 0.3, 1.42)
        assert products.judge(good)[0] == "confirmed"
        limit = understanding.allowed(4)
        for bad in (
            products.Deviations({(1, 1): limit + 0.1}, good.shares, 0.3, 1.42),
            products.Deviations(good.moments, {1: [0.5, -limit - 0.1]}, 0.3, 1.42),
            products.Deviations(good.moments, good.shares, -limit - 0.1, 1.42),
            products.Deviations(good.moments, good.shares, 0.3, 1.6),
        ):
            assert products.judge(bad)[0] == "partly"
        assert products.judge(products.Deviations({(1, 1): 9.0}, {1: [9.0]}, 9.0, 2.0))[0] == "not confirmed"
