import itertools
import math
from dataclasses import replace
from fractions import Fraction

import mpmath
import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from validation.studies import b1_learning_rate as rates
from validation.studies import b2_sgd_noise as noise
from validation.studies import b3_gradient_tails as tails
from validation.studies import b4_step_size as steps
from validation.studies import b5_divergence as divergence
from validation.studies import b6_moments_over_depth as depth
from validation.studies import b7_output_gradients as outputs
from validation.studies import b8_filter_gradients as filters
from validation.studies import b9_gaussian_products as products
from validation.studies import understanding
from validation.studies.study import Context


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

    @pytest.mark.parametrize("order", range(1, 5))
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
            sizes = 10**4, 10**5
            excess = [float(products.moments(n, factors, order)[order,] - n * limit) for n in sizes]
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


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(7)
    return generator.standard_normal((20, 1, 4, 4)), np.arange(20) % 10


class TestNetworks:
    @pytest.mark.parametrize("form", ["dense", "convolutional"])
    @pytest.mark.parametrize("residual", [False, True])
    @pytest.mark.parametrize("kind", understanding.KINDS)
    def test_their_gradient_is_the_losss(self, images, form, residual, kind):
        x, labels = images
        made = understanding.build(form, np.random.default_rng(0), 6, kind, x, residual=residual)
        assert len(made.linear) == len(made.sums) == 6
        assert len(made.hidden) == 5
        x = understanding.shaped(form, x)
        made.differentiate(x, labels)
        gradient = {name: value.copy() for name, value in made.layers.gradients.items()}
        square = sum(float(np.sum(value**2)) for value in gradient.values())
        estimates = []
        step = 1e-4 / square
        for h in (step, step / 2):
            made.move(gradient, h)
            above = made.loss(x, labels)
            made.move(gradient, -2 * h)
            below = made.loss(x, labels)
            made.move(gradient, h)
            estimates.append((above - below) / (2 * h))
        # Richardson: the error of the finer one is about a third of their difference; beside it, rounding.
        rounding = 1e4 * np.finfo(float).eps * above / step
        assert abs(estimates[1] - square) <= abs(estimates[1] - estimates[0]) + rounding

    def test_the_probes_see_what_runs_through(self, images):
        x, labels = images
        made = understanding.build("convolutional", np.random.default_rng(0), 6, "BN", x, residual=True)
        made.differentiate(x, labels)
        for layer, probe in zip(made.linear[:-1], made.sums, strict=False):
            axes = ((0, 2, 3), (0, 2, 3))
            assert np.tensordot(probe.dy, layer.columns, axes=axes) == pytest.approx(layer.gradients["weight"])
        assert all(np.all(probe.x >= 0) for probe in made.hidden)

    def test_blocks_have_two_layers(self, images):
        with pytest.raises(ValueError, match="depth: 5, expected an even number"):
            understanding.build("dense", np.random.default_rng(0), 5, "none", images[0], residual=True)

    def test_moments_are_the_channels_own(self):
        x = np.random.default_rng(0).standard_normal((5, 3, 2, 2)) + np.array([1.0, 2.0, 3.0])[:, None, None]
        mean, var = understanding.channel_moments(x)
        for channel in range(3):
            assert mean[channel] == pytest.approx(x[:, channel].mean())
            assert var[channel] == pytest.approx(x[:, channel].var())


class TestTraining:
    def test_it_learns_a_batch_by_heart(self, images):
        x, labels = images
        made = understanding.build("dense", np.random.default_rng(0), 4, "BN", x, residual=True)
        x = understanding.shaped("dense", x)
        losses = understanding.descend(made, x, labels, np.random.default_rng(1), rate=0.1, steps=60, size=20)
        assert len(losses) == 60
        assert understanding.final(losses) < understanding.TRAINED < losses[0]

    def test_it_stops_where_it_diverges(self, images):
        x, labels = images
        made = understanding.build("dense", np.random.default_rng(0), 6, "none", x, residual=True)
        x = understanding.shaped("dense", x)
        losses = understanding.descend(made, x, labels, np.random.default_rng(1), rate=1e3, steps=60, size=10)
        assert len(losses) < 60
        assert understanding.final(losses) == math.inf

    def test_batches_are_of_one_size_and_of_different_samples(self):
        drawn = list(itertools.islice(understanding.batches(np.random.default_rng(0), 10, 4), 5))
        assert all(len(set(batch)) == 4 for batch in drawn)
        assert not set(drawn[0]) & set(drawn[1])

    @pytest.mark.parametrize("size", [0, 11])
    def test_batches_beyond_the_data_are_refused(self, size):
        with pytest.raises(ValueError, match=f"size: {size}, expected 1 to 10"):
            next(understanding.batches(np.random.default_rng(0), 10, size))


class TestLearningRate:
    """B1."""

    def test_the_first_rate_that_trains_is_taken(self):
        tried = []

        def train(rate):
            tried.append(rate)
            return math.inf if rate > 0.3 else 0.1

        assert rates.largest(train, range(2, -5, -1)) == (-2, 0.1)
        assert tried == [4, 2, 1, 0.5, 0.25]

    def test_none_may_train(self):
        exponent, loss = rates.largest(lambda rate: understanding.TRAINED)
        assert exponent is None
        assert math.isnan(loss)

    def test_slopes(self):
        assert rates.slope((4, 8, 16), [0, -2, -4]) == pytest.approx(-2)
        assert rates.slope((4, 8, 16), [1, 1, 1]) == pytest.approx(0)
        lowest = min(rates.EXPONENTS)
        assert rates.slope((4, 8), [lowest, None]) == pytest.approx(-1)

    @pytest.mark.parametrize(
        ("plain", "normalized", "tiny", "verdict"),
        [
            (-1.0, -0.1, 1.0, "confirmed"),
            (-1.0, -0.6, 1.0, "partly"),
            (-0.1, -0.1, 1.0, "partly"),
            (-1.0, -0.1, 0.3, "partly"),
            (-1.0, -0.1, 3.0, "partly"),
            (-0.1, -0.6, 3.0, "not confirmed"),
        ],
    )
    def test_the_verdict_turns_on_the_numbers(self, plain, normalized, tiny, verdict):
        assert rates.judge({"none": [plain, plain], "BN": [normalized, normalized]}, [tiny, tiny])[0] == verdict


class TestNoise:
    """B2."""

    GRADIENTS = tuple((Fraction(a, 3), Fraction(b, 7)) for a, b in ((1, 2), (-4, 5), (0, 3), (9, -1), (2, 2)))

    @staticmethod
    def _mean(vectors):
        return tuple(sum(column, Fraction(0)) / len(vectors) for column in zip(*vectors, strict=True))

    @staticmethod
    def _distance(a, b):
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))

    @pytest.mark.parametrize("replaced", [True, False])
    @pytest.mark.parametrize("size", [1, 2, 3, 5])
    def test_all_batches_of_a_tiny_set_exactly(self, size, replaced):
        count = len(self.GRADIENTS)
        whole = self._mean(self.GRADIENTS)
        variance = sum(self._distance(one, whole) for one in self.GRADIENTS) / count
        if replaced:
            every = itertools.product(self.GRADIENTS, repeat=size)
        else:
            every = itertools.combinations(self.GRADIENTS, size)
        distances = [self._distance(self._mean(batch), whole) for batch in every]
        due = noise.expected(variance, count, size, replaced=replaced)
        assert isinstance(due, Fraction)
        assert sum(distances) / len(distances) == due

        centred = [tuple(x - y for x, y in zip(one, whole, strict=True)) for one in self.GRADIENTS]
        squares = [self._distance(one, whole) for one in self.GRADIENTS]
        overlaps = sum(sum(x * y for x, y in zip(one, other, strict=True)) ** 2 for one in centred for other in centred)
        found = noise.Population(count, sum(squares), sum(square**2 for square in squares), overlaps)
        assert found.variance == variance
        scatter = noise.scatter(found, size, replaced=replaced)
        assert isinstance(scatter, Fraction)
        assert sum(distance**2 for distance in distances) / len(distances) - due**2 == scatter

    def test_the_population_of_vectors(self):
        own = np.array(self.GRADIENTS, dtype=float)
        own -= own.mean(axis=0)
        found = noise.population(own)
        assert found.variance == pytest.approx(np.mean(np.sum(own**2, axis=1)))
        assert found.fourths == pytest.approx(np.sum(np.sum(own**2, axis=1) ** 2))
        assert found.overlaps == pytest.approx(sum((one @ other) ** 2 for one in own for other in own))

    def test_measured_on_vectors(self):
        vectors = np.array(self.GRADIENTS, dtype=float)
        whole = vectors.mean(axis=0)
        generator = np.random.default_rng(0)
        found = noise.measure(
            lambda chosen: vectors[chosen].mean(axis=0), whole, lambda: generator.choice(5, 2, replace=False), 2000
        )
        exact = noise.population(noise.RATE * (vectors - whole))
        due = noise.expected(exact.variance, 5, 2, replaced=False)
        error = math.sqrt(noise.scatter(exact, 2, replaced=False) / found.batches)
        assert abs(found.mean - due) <= understanding.allowed(1) * error
        assert error < 0.05 * due
        assert abs(found.bias) < 0.01 * due

    def test_a_bias_is_seen(self):
        whole = np.zeros(3)
        generator = np.random.default_rng(0)
        found = noise.measure(lambda chosen: chosen, whole, lambda: generator.standard_normal(3) + 2, 1000)
        assert found.bias == pytest.approx(12 * noise.RATE**2, rel=0.2)

    def test_the_verdict_turns_on_the_numbers(self):
        limit = understanding.allowed(3)
        assert noise.judge([0.1, -1.0, limit - 0.01])[0] == "confirmed"
        assert noise.judge([0.1, -1.0, -limit - 0.01])[0] == "not confirmed"


class TestTails:
    """B3."""

    def test_kurtosis(self):
        assert tails.kurtosis(np.array([1.0, -1.0])) == pytest.approx(1)
        assert tails.kurtosis(np.array([5.0] * 4 + [6.0])) == pytest.approx((4 * 0.2**4 + 0.8**4) / 5 / 0.16**2)
        assert tails.kurtosis(np.random.default_rng(0).standard_normal(100_000)) == pytest.approx(3, abs=0.1)

    def test_the_verdict_turns_on_the_numbers(self):
        heavy = {("a", "none"): [20.0, 30.0], ("a", "BN"): [4.0, 5.0]}
        assert tails.judge(heavy)[0] == "confirmed"
        assert tails.judge(heavy | {("b", "none"): [5.0, 9.0], ("b", "BN"): [4.0, 6.0]})[0] == "partly"
        assert tails.judge({("a", "none"): [4.0], ("a", "BN"): [4.0]})[0] == "not confirmed"


class TestStepSize:
    """B4."""

    def test_small_steps_follow_the_gradient_and_parameters_stay(self, images):
        x, labels = images
        made = understanding.build("dense", np.random.default_rng(0), 4, "BN", x, residual=True)
        x = understanding.shaped("dense", x)
        before = {name: value.copy() for name, value in made.layers.parameters.items()}
        step = 1e-6
        loss, ratios = steps.relative_losses(made, x, labels, np.array([0, step, 1e4]))
        assert all(np.array_equal(value, before[name]) for name, value in made.layers.parameters.items())
        assert loss == made.differentiate(x, labels)
        square = float(np.sum(understanding.flat(made.layers.gradients) ** 2))
        assert ratios[0] == 1
        assert (1 - ratios[1]) * loss / step == pytest.approx(square, rel=1e-3)
        assert ratios[2] > 1

    def test_where_the_loss_only_falls(self):
        assert steps.only_falls(np.array([1.0, 0.9, 0.5, 1.1, 0.9])) == 2
        assert steps.only_falls(np.array([0.9, 0.8])) == 1
        assert steps.only_falls(np.array([1.1, 0.8])) == -1

    def test_the_verdict_turns_on_the_numbers(self):
        explodes = steps.Decades({0: [9.0, 8.0], 50: [4.0, 5.0]}, {0: [1.0], 50: [1.0]})
        assert steps.judge([0.3, 0.4], explodes)[0] == "confirmed"
        assert steps.judge([0.3, 1.4], explodes)[0] == "not confirmed"
        one = steps.Decades({0: [9.0, 8.0], 50: [2.0, 2.5]}, {0: [1.0], 50: [1.0]})
        assert steps.judge([0.3, 0.4], one)[0] == "partly"


class TestDivergence:
    """B5."""

    def test_an_update_is_applied_to_its_end(self, images):
        x, labels = images
        x = understanding.shaped("dense", x)
        made, other = (
            understanding.dense(np.random.default_rng(0), 4, "BN", residual=True, inputs=x.shape[1]) for _ in range(2)
        )
        update = divergence.follow(made, x, labels, 0.1, 1)
        other.differentiate(x, labels)
        other.move(dict(other.layers.gradients), -0.1)
        for name, value in made.layers.parameters.items():
            assert value == pytest.approx(other.layers.parameters[name], rel=1e-12, abs=1e-14)
        assert update.losses[-1] == pytest.approx(other.loss(x, labels))
        assert update.variances.shape == (len(divergence.FRACTIONS), 2)

    def test_growth(self):
        update = divergence.Update(np.array([[1.0, 2.0], [10.0, 2000.0]]), np.ones((2, 2)), np.ones(2), 1)
        assert update.growth(0) == pytest.approx(1)
        assert update.growth(-1) == pytest.approx(3)

    @pytest.mark.parametrize(
        ("plain", "normalized", "verdict"),
        [
            ([9.0, 4.0], [0.1, -0.2], "confirmed"),
            ([9.0, 2.0], [0.1, -0.2], "partly"),
            ([9.0, 4.0], [0.1, 1.2], "partly"),
            ([1.0, 2.0], [0.1, 1.2], "not confirmed"),
            ([], [], "not confirmed"),
        ],
    )
    def test_the_verdict_turns_on_the_numbers(self, plain, normalized, verdict):
        assert divergence.judge({"none": plain, "BN": normalized}, plain)[0] == verdict


class TestMomentsOverDepth:
    """B6."""

    def test_bends_tell_exponential_from_linear_growth(self):
        layers = np.arange(1, 34)
        assert depth.bend(2.0**layers) == pytest.approx(1)
        assert depth.bend(layers.astype(float)) < depth.SLOW
        assert depth.growth(10.0**layers) == pytest.approx(32)

    def test_moments_are_those_behind_the_blocks(self, images):
        x, _ = images
        made = understanding.build("convolutional", np.random.default_rng(0), 6, "none", x, residual=True)
        made.layers.forward(x)
        found = depth.moments(made)
        assert len(found.variances) == 3
        last = made.hidden[-1].x
        assert found.variances[-1] == pytest.approx(np.mean(last.var(axis=(0, 2, 3))))
        assert found.squares[-1] == pytest.approx(np.mean(last.mean(axis=(0, 2, 3)) ** 2))

    def test_the_verdict_turns_on_the_numbers(self):
        decades = {"none": [9.0], "BN": [1.0]}
        assert depth.judge({"none": [0.9, 1.2], "BN": [0.2, 0.4]}, decades)[0] == "confirmed"
        assert depth.judge({"none": [0.6, 1.2], "BN": [0.2, 0.4]}, decades)[0] == "partly"
        assert depth.judge({"none": [0.9, 1.2], "BN": [0.2, 0.7]}, decades)[0] == "partly"
        assert depth.judge({"none": [0.1], "BN": [0.7]}, decades)[0] == "not confirmed"


class TestOutputGradients:
    """B7."""

    def test_of_one_class_for_all(self):
        labels = np.repeat(np.arange(10), 3)
        gradient = np.eye(10)[np.full(30, 4)] - np.eye(10)[labels]
        found = outputs.Outputs(gradient, np.full(30, 4), labels, 1.0)
        assert (found.share, found.classes) == (1, 1)
        # mean g = e₄ − 1/10, of square 0.9; ‖g‖² = 2 but for the tenth that is right.
        assert found.alignment == pytest.approx(0.9 / (0.9 * 2))

    def test_of_predictions_that_vary_as_labels_do(self):
        labels = np.repeat(np.arange(10), 3)
        predicted = (labels + 1) % 10
        found = outputs.Outputs(np.eye(10)[predicted] - np.eye(10)[labels], predicted, labels, 1.0)
        assert (found.share, found.classes) == (pytest.approx(0.1), 10)
        assert found.alignment == pytest.approx(0, abs=1e-30)

    def test_images_are_looked_at_in_the_order_of_their_labels(self, images):
        x, labels = images
        made = understanding.build("dense", np.random.default_rng(0), 4, "BN", x, residual=True)
        found = outputs.look(made, understanding.shaped("dense", x), labels)
        assert np.array_equal(found.labels, np.sort(labels))
        assert found.gradient.sum(axis=1) == pytest.approx(np.zeros(len(x)), abs=1e-12)
        assert np.all(found.gradient[np.arange(len(x)), found.labels] < 0)
        features = made.hidden[-1].x
        assert found.likeness == pytest.approx(np.sum(features.mean(axis=0) ** 2) / np.sum(features.var(axis=0)))

    @pytest.mark.parametrize(
        ("plain", "normalized", "verdict"),
        [(0.9, 0.4, "confirmed"), (0.7, 0.4, "partly"), (0.9, 0.7, "partly"), (0.7, 0.7, "not confirmed")],
    )
    def test_the_verdict_turns_on_the_numbers(self, plain, normalized, verdict):
        found, because = outputs.judge({"a": {"none": [plain], "BN": [normalized]}}, {"a": [49.0]})
        assert found == verdict
        assert ("49 times" in because) == (normalized > outputs.SEVERAL)


class TestFilterGradients:
    """B8."""

    def test_the_sums_are_those_of_each_contribution(self):
        generator = np.random.default_rng(0)
        columns, dy = generator.standard_normal((2, 3, 4, 4, 3, 3)), generator.standard_normal((2, 5, 4, 4))
        total, size, square = filters.sums(columns, dy)
        for o, c, i, j in ((0, 0, 0, 0), (4, 2, 1, 2), (3, 1, 2, 0)):
            every = dy[:, o] * columns[:, c, :, :, i, j]
            assert total[o, c, i, j] == pytest.approx(abs(every.sum()))
            assert size[o, c, i, j] == pytest.approx(abs(every).sum())
            assert square[o, c, i, j] == pytest.approx((every**2).sum())

    def test_the_verdict_turns_on_the_numbers(self):
        far = {3: [30.0, 25.0], 9: [40.0, 35.0]}
        assert filters.judge({"none": {3: [4.0, 3.0], 9: [4.0, 2.0]}, "BN": far})[0] == "confirmed"
        assert filters.judge({"none": {3: [4.0, 3.0], 9: [20.0, 20.0]}, "BN": far})[0] == "partly"
        assert filters.judge({"none": {3: [1.0, 26.0], 9: [20.0, 20.0]}, "BN": far})[0] == "not confirmed"


class TestFromEndToEnd:
    """Studies of small networks: the same seeds find the same, other seeds something else."""

    @staticmethod
    def _document(study, *seeds):
        return study.run(Context(study.id, seeds, quick=True)).document()

    def _check(self, study):
        found = self._document(study, 0, 1)
        assert found == self._document(study, 0, 1)
        assert found["details"] != self._document(study, 2, 3)["details"]

    def test_tails(self, monkeypatch):
        monkeypatch.setattr(tails, "ARCHITECTURES", tuple(replace(one, depth=4) for one in tails.ARCHITECTURES))
        monkeypatch.setattr(tails, "BATCH", 20)
        self._check(tails.STUDY)

    def test_divergence(self, monkeypatch):
        monkeypatch.setattr(divergence, "DEPTH", 12)
        monkeypatch.setattr(divergence, "BATCH", 20)
        monkeypatch.setattr(divergence, "FRACTIONS", np.linspace(0, 1, 3))
        monkeypatch.setattr(divergence, "RATE", 10.0)
        self._check(divergence.STUDY)

    def test_no_divergence(self, monkeypatch):
        monkeypatch.setattr(divergence, "DEPTH", 4)
        monkeypatch.setattr(divergence, "BATCH", 20)
        monkeypatch.setattr(divergence, "FRACTIONS", np.linspace(0, 1, 2))
        monkeypatch.setattr(divergence, "RATE", 1e-3)
        assert self._document(divergence.STUDY, 0)["verdict"] == "not confirmed"

    def test_outputs(self, monkeypatch):
        monkeypatch.setattr(outputs, "ARCHITECTURES", tuple(replace(one, depth=4) for one in outputs.ARCHITECTURES))
        monkeypatch.setattr(outputs, "BATCH", 20)
        self._check(outputs.STUDY)
