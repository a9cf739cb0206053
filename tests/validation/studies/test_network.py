"""Each layer's backward against differences of its forward, and what the layers are by definition."""

import math

import numpy as np
import pytest

import refbn
from validation.finite_differences import richardson
from validation.studies import network as net

RNG = np.random.default_rng(7)
START = RNG.bit_generator.state
UNIT = 2.0**-53


@pytest.fixture(autouse=True)
def _same_numbers_whichever_tests_run():
    RNG.bit_generator.state = START


def loss_of(layer, weights):
    """Return Σ weights·y as a function of rows (x, parameters), with the layer's shape of x."""

    def function(points, shape):
        values = []
        for point in points:
            parts = np.split(point, np.cumsum([math.prod(shape), *(p.size for p in layer.parameters.values())])[:-1])
            for value, part in zip(layer.parameters.values(), parts[1:], strict=True):
                value[...] = part.reshape(value.shape)
            values.append([(weights * layer.forward(parts[0].reshape(shape))).sum()])
        return np.array(values)

    return function


def check(layer, x):
    """Compare backward with Richardson's differences along random directions in x and all parameters."""
    y = layer.forward(x)
    weights = RNG.standard_normal(y.shape)
    dx = layer.backward(weights)
    assert layer.gradients.keys() == layer.parameters.keys()
    gradient = np.concatenate([dx.ravel(), *(layer.gradients[name].ravel() for name in layer.parameters)])
    point = np.concatenate([x.ravel(), *(value.ravel() for value in layer.parameters.values())])
    directions = RNG.standard_normal((6, point.size)) / math.sqrt(point.size)
    # A value is a sum of rounded products; a layer's own rounding is within some tens of units of its terms.
    noise = np.array([64 * UNIT * abs(weights * y).sum()])
    function = loss_of(layer, weights)
    found, estimate = richardson(lambda points: function(points, x.shape), noise, point, directions)
    expected = (directions @ gradient)[:, None]
    own = 64 * UNIT * (abs(directions) @ abs(gradient))[:, None]
    assert (abs(found - expected) <= estimate + own).all()
    assert (estimate < 1e-6 * abs(gradient).max()).all()  # the comparison means something


def dense(outputs, inputs):
    return net.Dense(RNG.standard_normal((outputs, inputs)))


def conv(outputs, inputs, k=3, **options):
    return net.Convolution(RNG.standard_normal((outputs, inputs, k, k)) / k, **options)


def away_from_zero(shape):
    x = RNG.standard_normal(shape)
    return x + 0.5 * np.sign(x)


ROWS = (7, 5)
IMAGES = (3, 2, 6, 5)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (dense(4, 5), ROWS),
        (net.Dense(RNG.standard_normal((4, 5)), bias=False), ROWS),
        (conv(3, 2), IMAGES),
        (conv(3, 2, stride=2), IMAGES),
        (conv(3, 2, k=1, padding=0, bias=False), IMAGES),
        (conv(2, 2, k=3, padding=0, stride=3), IMAGES),
        (net.Tanh(), ROWS),
        (net.Sigmoid(), ROWS),
        (net.ReLU(), ROWS),
        (net.Flatten(), IMAGES),
        (net.GlobalAverage(), IMAGES),
        (net.Residual(net.Sequential(dense(5, 5), net.Tanh(), dense(5, 5))), ROWS),
        (net.Residual(conv(3, 2, stride=2), conv(3, 2, k=1, stride=2, padding=0)), IMAGES),
        (net.Recurrent(RNG.standard_normal((3, 3)), RNG.standard_normal((3, 2))), (6, 4, 2)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, net.Layer) else "",
)
def test_backward_is_the_derivative_of_forward(layer, shape):
    check(layer, away_from_zero(shape))


@pytest.mark.parametrize(
    "kind, shape",
    [(kind, IMAGES) for kind in net.KINDS] + [(kind, ROWS) for kind in net.KINDS if kind != "IN"],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} axes",
)
def test_norms_have_the_right_derivative(kind, shape):
    linear = dense(4, 5) if len(shape) == 2 else conv(4, 2)
    options = {"groups": 2} if kind == "GN" else {}
    layer = net.Sequential(*net.normalized(kind, linear, **options), net.Tanh())
    for name, value in layer.parameters.items():  # ones and zeros would hide mistakes
        if name.endswith(("gamma", "beta", "bias")):
            value += 0.5 * RNG.standard_normal(value.shape)
    if kind == "BRN":
        layer.parts["1"].momentum = 0  # r and d are constants for the derivative, and so they must not move
        layer.parts["1"].r_max, layer.parts["1"].d_max = 1, 0
    check(layer, RNG.standard_normal(shape))


@pytest.mark.parametrize("kind", ["BN", "LN"])
def test_a_normalized_recurrence_has_the_right_derivative(kind):
    make = {"BN": lambda: net.BatchNorm(5), "LN": lambda: net.LayerNorm(5, eps=0.1)}[kind]
    layer = net.Recurrent(RNG.standard_normal((5, 5)), RNG.standard_normal((5, 2)), make, gain=0.3)
    check(layer, RNG.standard_normal((6, 4, 2)))
    assert len(layer.state_gradients) == 4


def coupling(features=4, kind="none"):
    mask = np.arange(features) % 2 == 0
    inside = int(mask.sum())
    network = net.perceptron(RNG, (inside, 6, 2 * (features - inside)), kind, activation=net.Tanh)
    return net.Coupling(mask, network)


def test_a_coupling_has_the_right_derivative():
    check(coupling(), RNG.standard_normal((5, 4)))


class LogLikelihood(net.Flow):
    """A flow as a layer whose output are the log-likelihoods."""

    def forward(self, x, train=True):
        z = super().forward(x, train)
        self._z = z
        determinants = sum(part.log_determinant for part in self.parts.values())
        return -0.5 * (z**2).sum(axis=1) - 2 * math.log(2 * math.pi) + determinants


@pytest.mark.parametrize("kind", ["none", "BN", "LN"])
def test_the_log_likelihood_has_the_right_derivative(kind):
    check(LogLikelihood(coupling(kind=kind), coupling(kind=kind)), RNG.standard_normal((6, 4)))


def test_a_flow_is_a_density():
    """The log-determinant is that of the Jacobian, and inverse undoes forward."""
    flow = net.Flow(coupling(), coupling())
    x = RNG.standard_normal((1, 4))
    flow.log_likelihood(x)
    determinant = sum(part.log_determinant for part in flow.parts.values())

    def function(points):
        return flow.forward(points, train=False)

    jacobian, estimate = richardson(function, np.full(4, 2.0**-48), x[0], np.eye(4))
    logarithm = math.log(abs(np.linalg.det(jacobian)))
    # d log det J = tr(J⁻¹ dJ)
    allowed = (abs(np.linalg.inv(jacobian)).T * estimate).sum() + 1e-14
    assert abs(logarithm - determinant[0]) <= allowed
    many = RNG.standard_normal((9, 4))
    assert np.allclose(flow.inverse(flow.forward(many, train=False)), many, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["softmax_cross_entropy", "log_sigmoid_loss"])
def test_losses_have_the_right_gradient(name, reduction):
    logits = RNG.standard_normal((4, 3))
    targets = np.array([0, 2, 1, 2]) if name == "softmax_cross_entropy" else np.sign(RNG.standard_normal((4, 3)))
    of = getattr(net, name)
    loss, gradient = of(logits, targets, reduction)
    assert loss > 0

    def function(points):
        return np.array([[of(point.reshape(4, 3), targets, reduction)[0]] for point in points])

    found, estimate = richardson(function, np.array([32 * UNIT * loss]), logits.ravel(), np.eye(12))
    assert (abs(found[:, 0] - gradient.ravel()) <= estimate[:, 0] + 32 * UNIT).all()


def test_losses_are_finite_far_out():
    logits = np.array([[1e4, -1e4]])
    assert net.softmax_cross_entropy(logits, np.array([1]))[0] == 2e4
    assert net.log_sigmoid_loss(logits, np.array([[-1.0, -1.0]]), "sum")[0] == 1e4
    assert np.isfinite(net.log_sigmoid_loss(logits, np.array([[-1.0, -1.0]]))[1]).all()


def test_batch_norm_is_refbn_with_running_statistics():
    layer, x = net.BatchNorm(3), RNG.standard_normal((8, 3))
    assert np.array_equal(layer.forward(x), refbn.forward(x).y)
    expected = 0.9 + 0.1 * x.var(axis=0, ddof=1)
    assert np.allclose(layer.norm.running_var, expected, rtol=1e-14, atol=0)
    frozen = layer.forward(x, train=False)
    assert np.array_equal(frozen, refbn.inference(x, layer.norm.running_mean, layer.norm.running_var).y)


def test_the_stopped_gradient_is_that_of_frozen_statistics():
    x, dy = RNG.standard_normal((8, 3)), RNG.standard_normal((8, 3))
    stopped, whole = net.BatchNorm(3, stop_gradient=True), net.BatchNorm(3)
    for layer in (stopped, whole):
        layer.parameters["gamma"][:] = 1, 2, -3
    assert np.array_equal(stopped.forward(x), whole.forward(x))
    dx, batch = stopped.backward(dy), refbn.forward(x)
    frozen = refbn.inference(x, batch.mean, batch.var, stopped.parameters["gamma"], stopped.parameters["beta"])
    assert np.allclose(dx, refbn.backward(frozen.saved, dy).dx, rtol=8 * UNIT, atol=0)
    assert abs(dx - whole.backward(dy)).max() > 0.1
    assert np.array_equal(stopped.norm.running_mean, whole.norm.running_mean)


@pytest.mark.parametrize(
    "layer, axes",
    [(net.LayerNorm(4), (1, 2, 3)), (net.InstanceNorm(4), (2, 3))],
    ids=["layer", "instance"],
)
def test_index_sets(layer, axes):
    x = 3 + 2 * RNG.standard_normal((3, 4, 5, 5))
    for train in (True, False):
        y = layer.forward(x, train)
        expected = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
        assert np.allclose(y, expected, rtol=0, atol=1e-13)


def test_group_norm_is_instance_norm_of_groups():
    x = RNG.standard_normal((3, 4, 5, 5))
    of_groups = net.GroupNorm(4, 2).forward(x)
    of_instances = net.InstanceNorm(2).forward(x.reshape(3, 2, 10, 5))
    assert np.array_equal(of_groups, of_instances.reshape(x.shape))


@pytest.mark.parametrize("kind", ["LN", "GN", "IN", "BRN", "WS"])
def test_norms_are_refbn_s_own(kind):
    """Against the public functions, which round the whole once; here standardization and affine phase round apart."""
    x, dy = 1 + RNG.standard_normal((3, 4, 2, 3)), RNG.standard_normal((3, 4, 2, 3))
    gamma, beta = np.array([1.5, -0.5, 2.0, 1.0]), np.array([0.5, 0.0, -1.0, 2.0])
    if kind == "WS":
        layer = net.WeightStandardized(net.Dense(RNG.standard_normal((4, 5))))
        layer.forward(np.eye(5))
        layer.backward(RNG.standard_normal((5, 4)))
        public = refbn.weight_standardization(layer.parameters["weight"], layer.parameters["gain"])
        assert np.array_equal(layer.linear.parameters["weight"], public.y)
        found = refbn.backward(public.saved, layer.linear.gradients["weight"])
        assert np.array_equal(layer.gradients["weight"], found.dx)
        assert np.array_equal(layer.gradients["gain"], found.dgamma)
        return
    layer = {"LN": net.LayerNorm, "IN": net.InstanceNorm, "BRN": net.BatchRenorm}.get(
        kind, lambda n: net.GroupNorm(n, 2)
    )(4)
    layer.parameters["gamma"][:], layer.parameters["beta"][:] = gamma, beta
    y = layer.forward(x)
    dx = layer.backward(dy)
    if kind == "LN":
        spread = [np.broadcast_to(value[:, None, None], x.shape[1:]) for value in (gamma, beta)]
        public = refbn.layer_norm(x, *spread, axes=(1, 2, 3))
    elif kind == "GN":
        public = refbn.group_norm(x, 2, gamma, beta)
    elif kind == "IN":
        public = refbn.instance_norm(x, gamma, beta)
    else:
        correction = refbn.renormalization(x, np.zeros(4), np.full(4, 1 - 1e-5))
        public = refbn.batch_renorm(x, correction.r, correction.d, gamma, beta)
    found = refbn.backward(public.saved, dy)
    assert np.allclose(y, public.y, rtol=0, atol=16 * UNIT * abs(public.y).max())
    assert np.allclose(dx, found.dx, rtol=0, atol=256 * UNIT * abs(found.dx).max())
    axes = (1, 2) if kind == "LN" else ()
    dgamma = found.dgamma.sum(axis=axes)
    assert np.allclose(layer.gradients["gamma"], dgamma, rtol=0, atol=256 * UNIT * abs(dy).sum())


def test_batch_renorm_is_inference_when_nothing_is_clipped():
    layer, x = net.BatchRenorm(3, r_max=1e9, d_max=1e9), 2 + RNG.standard_normal((16, 3))
    layer.running_mean, layer.running_std = np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.0, 2.0])
    expected = layer.forward(x, train=False)
    assert np.allclose(layer.forward(x), expected, rtol=0, atol=1e-13)


def test_batch_renorm_is_batch_norm_when_all_is_clipped():
    layer, x = net.BatchRenorm(3, r_max=1, d_max=0), 2 + RNG.standard_normal((16, 3))
    assert np.array_equal(layer.forward(x), refbn.forward(x).y)


def test_batch_renorm_takes_its_correction_for_a_constant():
    layer, x, dy = net.BatchRenorm(3), 2 + RNG.standard_normal((16, 3)), RNG.standard_normal((16, 3))
    layer.parameters["gamma"][:] = 0.5, 1.5, 2.5
    layer.parameters["beta"][:] = 1, -1, 0
    y = layer.forward(x)
    r, d = np.sqrt(x.var(axis=0) + 1e-5), x.mean(axis=0)  # the running statistics were 0 and 1
    assert np.allclose((y - layer.parameters["beta"]) / layer.parameters["gamma"], refbn.forward(x).y * r + d)
    dx = layer.backward(dy)
    of_batch_norm = refbn.backward(refbn.forward(x).saved, layer.parameters["gamma"] * r * dy).dx
    assert np.allclose(dx, of_batch_norm, rtol=1e-12, atol=1e-14)
    xhat_corrected = (y - layer.parameters["beta"]) / layer.parameters["gamma"]
    assert np.allclose(layer.gradients["gamma"], (dy * xhat_corrected).sum(axis=0), rtol=1e-12, atol=1e-13)


def test_standardized_weights_do_not_depend_on_scale_and_mean():
    x = RNG.standard_normal((4, 5))
    layer = net.WeightStandardized(dense(3, 5), eps=0)
    y = layer.forward(x)
    layer.parameters["weight"] *= 3
    layer.parameters["weight"] += 1
    assert np.allclose(layer.forward(x), y, rtol=0, atol=1e-14)
    assert np.allclose(layer.linear.parameters["weight"].var(axis=1), 2 / 5, rtol=1e-14)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'XN', expected one of none, BN"):
        net.normalized("XN", dense(2, 2))


def test_momentum():
    layer = net.Dense(np.ones((1, 1)), bias=False)
    optimizer = net.SGD(layer, rate=0.5, momentum=0.5)
    for expected in (0.5, -0.25, -1.125):  # v = 1, 1.5, 1.75
        layer.gradients = {"weight": np.ones((1, 1))}
        optimizer.step()
        assert layer.parameters["weight"][0, 0] == expected


def test_adamax_moves_by_the_rate_against_a_steady_gradient():
    layer = net.Dense(np.zeros((1, 1)), bias=False)
    optimizer = net.Adamax(layer, rate=0.25, eps=0.0)
    for step in range(1, 4):
        layer.gradients = {"weight": np.full((1, 1), 3.0)}
        optimizer.step()
        assert math.isclose(layer.parameters["weight"][0, 0], -0.25 * step, rel_tol=1e-13)


@pytest.mark.parametrize("shape", [(300, 200), (30, 20, 5, 5)])
def test_initial_variances(shape):
    fan_in, fan_out = math.prod(shape[1:]), shape[0] * math.prod(shape[2:])
    for make, variance, kurtosis in ((net.he, 2 / fan_in, 3), (net.xavier, 2 / (fan_in + fan_out), 9 / 5)):
        weight = make(np.random.default_rng(0), shape)
        error = variance * math.sqrt((kurtosis - 1) / weight.size)  # standard error of a variance
        assert abs((weight**2).mean() - variance) < 4 * error


@pytest.mark.parametrize("kind", net.KINDS)
def test_binary32_stays_binary32(kind):
    shape, layer = (6, 8, 3, 3), conv(4, 8)
    layer.parameters = {name: value.astype(np.float32) for name, value in layer.parameters.items()}
    layers = net.Sequential(*net.normalized(kind, layer), net.ReLU(), net.Flatten())
    y = layers.forward(RNG.standard_normal(shape).astype(np.float32))
    dx = layers.backward(np.ones_like(y))
    found = (y, dx, *layers.gradients.values(), *layers.parameters.values())
    assert {value.dtype for value in found} == {np.dtype(np.float32)}


@pytest.mark.parametrize("kind", [kind for kind in net.KINDS if kind != "IN"])
def test_a_perceptron_learns(kind):
    generator = np.random.default_rng(0)
    x, labels = generator.standard_normal((32, 10)), np.arange(32) % 2
    x[:, 0] += 3 * labels
    network = net.perceptron(generator, (10, 16, 16, 2), kind)
    optimizer = net.Adamax(network, rate=0.02)
    for _ in range(60):
        _, dlogits = net.softmax_cross_entropy(network.forward(x), labels)
        network.backward(dlogits)
        optimizer.step()
    assert net.accuracy(network.forward(x), labels) == 1
    assert sum(isinstance(layer, net.ReLU) for layer in network.layers()) == 2
