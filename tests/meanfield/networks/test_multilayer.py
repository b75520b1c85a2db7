"""Networks of several layers: outputs, derivatives, units that change places, flows."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import pickle

import pytest
import torch

import otflow as of
from otflow.functionals import OfPart
from otflow.meanfield.networks import MultiLayer
from otflow.measures import Euclidean, Parts
from otflow.testing import FunctionalContract
from otflow.testing.clouds import assert_plain, normal

F64 = torch.float64
Risk = of.meanfield.Risk
ACTIVATIONS = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
}


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(network, d=2, seed=0, dtype=F64, **laws):
    return network.draw(d, stream(seed), biases=(0.1, 0.5), dtype=dtype, **laws)


def weighted(mu, seed=0):
    """Return the same network with units of other masses at both ends."""
    parts = {}
    for name in ("inner", "outer"):
        points = mu[name].points
        masses = normal(len(points), seed=seed).abs().to(points.dtype)
        parts[name] = of.Particles(points, masses, normalize=True)
    return mu.replace(**parts)


def by_loops(network, mu, X):
    """Return the outputs of single inputs from the formula, sum by sum."""
    rows = []
    for x in X:
        theta = mu["inner"].points
        z = [
            sum(t[i] * x[i] for i in range(len(x))) + (t[-1] if network.bias else 0)
            for t in theta
        ]
        masses = mu["inner"].weights
        for layer, unit in enumerate(network.units):
            h = [unit(value) for value in z]
            if layer == len(network.units) - 1:
                break
            W = mu[f"middle{layer + 1}"].values
            b = mu[f"bias{layer + 2}"].values if network.bias else torch.zeros(len(W))
            z = [
                sum(masses[j] * W[k, j] * h[j] for j in range(len(h))) + b[k]
                for k in range(len(W))
            ]
            masses = torch.full((len(W),), 1 / len(W), dtype=F64)
        a, masses = mu["outer"].points, mu["outer"].weights
        rows.append(sum(masses[k] * a[k] * h[k] for k in range(len(h))))
    f = torch.stack(rows)
    return f[:, 0] if network.outputs is None else f


NETWORKS = [
    MultiLayer((5, 4), "tanh"),
    MultiLayer((4, 2, 3), ("relu", "sigmoid", "erf"), outputs=3, bias=False),
    MultiLayer([3, 6, 2], "erf", outputs=1),
    MultiLayer((6, 5, 4, 3), "relu"),
]
LOSSES = ["square", "logistic", "cross-entropy"]


@pytest.mark.parametrize("network", NETWORKS, ids=repr)
def test_outputs_are_those_of_the_formula(network):
    X = normal(4, 2, seed=3)
    for mu in (drawn(network), weighted(drawn(network))):
        torch.testing.assert_close(network(mu, X), by_loops(network, mu, X))


def test_an_offset_is_added_to_each_output():
    network = MultiLayer((3, 4), "tanh", outputs=2, offset=[1.0, -2.0])
    mu, X = drawn(network), normal(5, 2)
    plain = MultiLayer((3, 4), "tanh", outputs=2)(mu, X)
    torch.testing.assert_close(network(mu, X), plain + torch.tensor([1.0, -2.0]))


# Derivatives --------------------------------------------------------------------------


def problem(network, loss, dtype=F64, n=11):
    X = normal(n, 2, seed=7, dtype=dtype)
    m = network.outputs
    y = normal(n, *([m] if m else []), seed=8, dtype=dtype)
    if loss == "logistic":
        y = y.sign()
    if loss == "cross-entropy":
        y = torch.arange(n) % m
    return Risk(network, X, y, loss=loss)


def plain(f, y):
    """A loss of one's own."""
    return (f - y).pow(4).reshape(len(f), -1).sum(1)


CASES = [
    (network, loss)
    for network, loss in itertools.product(NETWORKS, [*LOSSES, plain])
    if loss != "cross-entropy" or (network.outputs or 1) > 1
]


@pytest.mark.parametrize(
    ("network", "loss"), CASES, ids=lambda value: getattr(value, "__name__", None)
)
def test_the_pass_agrees_with_autodiff(network, loss):
    F = problem(network, loss)
    for mu in (drawn(network), weighted(drawn(network))):
        value, velocity = F.value_and_velocity(mu)
        expected = mu.value_and_position_gradient(F.value)
        torch.testing.assert_close(value, expected[0])
        torch.testing.assert_close(velocity, -expected[1], rtol=1e-9, atol=1e-12)
        assert_plain(value, velocity)


def test_the_pass_is_taken_and_agrees_over_several_blocks(monkeypatch):
    from otflow.meanfield.networks import dense

    network = MultiLayer((5, 4), "tanh", outputs=2)
    F, mu = problem(network, "square", n=200), drawn(network)
    whole, blocks = F.value_and_velocity(mu), []

    def few_rows(*_):
        blocks.append(64)
        return 64

    monkeypatch.setattr(dense, "block_rows", few_rows)
    monkeypatch.setattr(F, "value", None)  # what autodiff would call
    again = F.value_and_velocity(mu)
    monkeypatch.undo()
    assert blocks
    for a, b in zip(again, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS, ids=repr)
def test_the_velocity_is_minus_the_slope_along_transport(network):
    """Finite differences of the value along `push`, in the metric of the parts."""
    if any(getattr(unit, "name", "") == "relu" for unit in network.units):
        network = MultiLayer(network.widths, "tanh", outputs=network.outputs)
    F, h = problem(network, "square"), 1e-5
    for mu in (drawn(network), weighted(drawn(network))):
        velocity = F.velocity(mu)
        for seed in range(3):
            v = normal(len(velocity), seed=seed)
            slope = (F(mu.push(v, h)) - F(mu.push(v, -h))) / (2 * h)
            torch.testing.assert_close(
                -mu.inner(velocity, v), slope, rtol=1e-6, atol=1e-8
            )


def test_a_unit_without_mass_has_a_velocity():
    """That of a unit of almost no mass, by continuity."""
    network = MultiLayer((3, 3), "tanh")
    F, mu = problem(network, "square"), drawn(network)

    def velocity(mass):
        masses = torch.tensor([mass, 0.5, 0.5 - mass], dtype=F64)
        parts = {
            name: of.Particles(mu[name].points, masses) for name in ("inner", "outer")
        }
        return F.velocity(mu.replace(**parts))

    torch.testing.assert_close(velocity(0.0), velocity(1e-9), rtol=1e-6, atol=1e-8)
    views = mu.views(velocity(0.0))
    assert float(views[0][0].norm()) > 1e-3  # not zero, though its mass is
    assert (
        float(views[1].reshape(3, 3)[:, 0].norm()) == 0
    )  # a weight that leads nowhere


def test_all_weights_move_at_a_speed_of_order_one_for_every_width():
    """The learning rates of the scaling are the metrics of the parts."""
    X = normal(12, 2, seed=3)
    speeds = []
    for N in (100, 1600):
        network = MultiLayer((N, N, N), "tanh")
        mu = drawn(network, outer=(1.0, 1.0))
        # Targets far from the outputs: the mean residual is no small difference.
        velocity = Risk(network, X, torch.full((12,), 5.0, dtype=F64)).velocity(mu)
        speeds.append([float(v.square().mean().sqrt()) for v in mu.views(velocity)])
    ratios = [wide / slim for slim, wide in zip(*speeds, strict=True)]
    # The law of large numbers leaves 1/10 in 100 units; a wrong power of N is 16.
    assert all(0.5 < ratio < 2 for ratio in ratios), ratios


@pytest.mark.parametrize("name", ["inner", "outer"])
def test_first_variations_of_exchangeable_parts_are_derivatives_in_masses(name):
    network = MultiLayer((4, 5, 3), "tanh", outputs=2)
    F, mu = problem(network, "square"), weighted(drawn(network))

    def value(masses):
        law = mu[name].with_free_atoms(weights=masses)
        return F.value(mu.with_part(name, law))

    law, h = mu[name], 1e-6
    found = law.mass_gradient(lambda part: F.value(mu.with_part(name, part)))
    for i, step in enumerate(h * torch.eye(law.n, dtype=F64)):
        slope = (value(law.weights + step) - value(law.weights - step)) / (2 * h)
        torch.testing.assert_close(found[i], slope, rtol=1e-7, atol=1e-9)
    if name == "outer":  # f is linear in it: F' = a . grad_a F'
        tangent = -mu.views(F.velocity(mu))[-1]
        torch.testing.assert_close(found, (law.points * tangent).sum(1))


def test_a_graph_of_the_measure_is_kept():
    network = MultiLayer((3, 4), "tanh")
    F, mu = problem(network, "square"), drawn(network)
    W = mu["middle1"].values.clone().requires_grad_()
    nu = mu.replace(middle1=Euclidean(W))
    value, velocity = F.value_and_velocity(nu)
    assert velocity.requires_grad
    (slope,) = torch.autograd.grad(value, W)
    torch.testing.assert_close(-12 * slope, mu.views(F.velocity(mu))[1])


def test_a_plain_function_is_a_unit_too():
    built_in = MultiLayer((3, 4), "tanh")
    own = MultiLayer((3, 4), lambda z: torch.tanh(z))
    mu = drawn(built_in)
    for a, b in zip(
        problem(own, "square").value_and_velocity(mu),
        problem(built_in, "square").value_and_velocity(mu),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


class Modulus(of.meanfield.Unit):
    """|z|, homogeneous, of a slope that its value does not tell."""

    name = "modulus"
    homogeneous = True

    def __call__(self, z):
        return z.abs()

    def slope(self, z, value, out):
        return torch.sign(z, out=out)


def test_a_unit_of_ones_own_sees_its_arguments():
    network = MultiLayer((5, 4), Modulus())
    F, mu = problem(network, "square"), drawn(network)
    expected = mu.value_and_position_gradient(F.value)[1]
    torch.testing.assert_close(F.velocity(mu), -expected)


def doubled(name):
    """Return a subclass of which one method makes other outputs."""

    def method(self, *arguments):
        answer = getattr(super(kind, self), name)(*arguments)
        if name == "weights":
            return dataclasses.replace(answer, outer=2 * answer.outer)
        return 2 * answer

    kind = type("Doubled", (MultiLayer,), {name: method})
    return kind


@pytest.mark.parametrize("name", ["respond", "weights", "encode", "add_offset"])
def test_a_subclass_of_other_outputs_has_its_own_velocity(name):
    """The closed pass of the parent is not its own."""
    plain, network = (kind((5, 4), "tanh") for kind in (MultiLayer, doubled(name)))
    F, mu = problem(network, "square"), drawn(network)
    if name != "encode":
        torch.testing.assert_close(network(mu, F.X), 2 * plain(mu, F.X))
    expected = mu.value_and_position_gradient(F.value)[1]
    torch.testing.assert_close(F.velocity(mu), -expected)
    other = problem(plain, "square").velocity(mu)
    assert float((F.velocity(mu) - other).abs().max()) > 1e-3


def test_single_precision():
    network = MultiLayer((30, 20), "tanh", outputs=2)
    exact = problem(network, "square").value_and_velocity(drawn(network))
    mu = drawn(network).to(torch.float32)
    value, velocity = problem(network, "square", torch.float32).value_and_velocity(mu)
    assert value.dtype == velocity.dtype == torch.float32
    assert network(mu, normal(3, 2, dtype=torch.float32)).dtype == torch.float32
    torch.testing.assert_close(value.double(), exact[0], rtol=1e-5, atol=0)
    size = float(exact[1].abs().max())
    torch.testing.assert_close(velocity.double(), exact[1], rtol=0, atol=1e-5 * size)


# The laws of every functional ---------------------------------------------------------


class RiskOfLayers(FunctionalContract):
    """A risk of networks of several layers."""

    has_first_variation = False  # a matrix of weights has no masses
    network = MultiLayer((5, 4), "tanh")

    def make(self, dtype=F64):
        return problem(self.network, "square", dtype)

    def measure(self, dtype=F64, seed=0):
        return drawn(self.network, seed=seed).to(dtype)

    def other(self):
        return OfPart("inner", of.Potential(lambda x: x.square().sum(-1).cos()))

    def measures(self):
        return [self.measure(), weighted(self.measure(seed=1))]

    def tangent(self, mu, seed=0):
        return normal(*mu.tangent_shape, seed=seed + 55, dtype=mu.dtype)


class TestRisk(RiskOfLayers):
    pass


class TestRiskOfSeveralOutputs(RiskOfLayers):
    network = MultiLayer((4, 3, 3), ("erf", "tanh", "sigmoid"), outputs=2, bias=False)


# Units --------------------------------------------------------------------------------


def test_units_that_change_places_in_all_parts_compute_the_same():
    network = MultiLayer((5, 4, 6), "tanh")
    mu, X = weighted(drawn(network)), normal(7, 2)
    orders = [torch.randperm(N, generator=stream(N)) for N in network.widths]
    nu = network.permuted(mu, orders)
    torch.testing.assert_close(network(nu, X), network(mu, X))
    # In one part alone they do not: the part is no measure on its own.
    law = mu["inner"]
    alone = mu.replace(inner=of.Particles(law.points.flip(0), law.weights.flip(0)))
    assert float((network(alone, X) - network(mu, X)).abs().max()) > 1e-3
    back = network.permuted(nu, [order.argsort() for order in orders])
    assert torch.equal(back.coordinates, mu.coordinates)


def test_paths_are_paths():
    """Each weight of a path starts where the one before it ends."""
    network = MultiLayer((3, 4, 5), "tanh", outputs=2)
    parts = {
        "inner": of.Particles(torch.arange(3.0)[:, None].repeat(1, 2)),
        "middle1": Euclidean(torch.arange(12.0).reshape(4, 3)),
        "middle2": Euclidean(torch.arange(20.0).reshape(5, 4)),
        "bias2": Euclidean(torch.arange(4.0)),
        "bias3": Euclidean(torch.arange(5.0)),
        "outer": of.Particles(torch.arange(5.0)[:, None].repeat(1, 2)),
    }
    paths = network.paths(Parts(parts), 50, stream())
    assert (paths.n, paths.dim, paths.is_uniform) == (50, 8, True)
    for _, j, W1, b2, W2, b3, k, _ in paths.points.tolist():
        assert [j, b2] == [W1 % 3, W1 // 3]
        assert [b2, b3] == [W2 % 4, W2 // 4]
        assert k == b3


def test_paths_pass_units_by_their_masses():
    network = MultiLayer((2, 3), "tanh", bias=False)
    mu = drawn(network, d=1)
    masses = torch.tensor([0.9, 0.1], dtype=F64)
    mu = mu.replace(inner=of.Particles(mu["inner"].points, masses))
    first = network.paths(mu, 4000, stream()).points[:, 0]
    share = (first == mu["inner"].points[0, 0]).double().mean()
    assert abs(float(share) - 0.9) < 4 * math.sqrt(0.09 / 4000)


def test_a_draw_has_the_laws_that_are_asked_for():
    network = MultiLayer((400, 300), "tanh")
    mu = network.draw(
        3,
        stream(),
        inner=(1.0, 2.0),
        middle=(-1.0, 0.5),
        biases=(3.0, 0.0),
        outer=(2.0, 1.0),
        dtype=F64,
    )
    assert mu["inner"].points.shape == (400, 4)
    assert (mu["bias2"].coordinates == 3).all()
    for name, mean, deviation in (
        ("inner", 1, 2),
        ("middle1", -1, 0.5),
        ("outer", 2, 1),
    ):
        x = mu[name].coordinates
        assert abs(float(x.mean()) - mean) < 4 * deviation / math.sqrt(x.numel())
        assert abs(float(x.std()) / deviation - 1) < 4 / math.sqrt(2 * x.numel())
    again = network.draw(3, stream(), dtype=F64)
    assert torch.equal(
        again.coordinates, network.draw(3, stream(), dtype=F64).coordinates
    )


def test_it_is_copied_and_pickled():
    for network in NETWORKS:
        mu, X = drawn(network), normal(3, 2)
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert repr(other) == repr(network)
            assert torch.equal(other(mu, X), network(mu, X))


# Depth --------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.5, 2.0])
def test_signals_vanish_or_explode_with_depth(mean):
    """With middle weights c and relu, f and the inner velocity are c^(L-1) times those.

    There is no limit of infinite depth: log |velocity| has the slope log c.
    """
    X, depths = normal(6, 2, seed=3).abs(), [2, 4, 8, 16]
    signals, speeds = [], []
    for depth in depths:
        network = MultiLayer((20,) * depth, "relu", bias=False)
        mu = network.draw(2, stream(), middle=(mean, 0.0), outer=(1.0, 0.0), dtype=F64)
        mu = mu.replace(inner=of.Particles(mu["inner"].points.abs()))
        f = network(mu, X)
        # The loss has the slope 1 at every output.
        F = Risk(network, X, torch.zeros(6, dtype=F64), loss=lambda f, y: f - y)
        signals.append(float(f.mean().log2()))
        speeds.append(float(mu.views(F.velocity(mu))[0].norm().log2()))
    slope = math.log2(mean)
    for logs in (signals, speeds):
        rises = [(b - a) / 1 for a, b in itertools.pairwise(logs)]
        expected = [slope * (j - i) for i, j in itertools.pairwise(depths)]
        assert rises == pytest.approx(expected, abs=1e-10)


def test_random_middle_weights_of_mean_zero_have_a_trivial_limit():
    """The output of the second layer is of order N^-1/2, and so are velocities."""
    X, sizes = normal(10, 2, seed=3), [50, 200, 800]
    outputs, speeds = [], []
    for N in sizes:
        network = MultiLayer((N, N), "tanh", bias=False)
        found = []
        for seed in range(5):
            mu = network.draw(2, stream(seed), middle=(0.0, 1.0), dtype=F64)
            f = network(mu, X)
            v = mu.views(Risk(network, X, X[:, 0]).velocity(mu))[-1]
            found.append([float(f.square().mean()), float(v.square().mean())])
        both = torch.tensor(found).mean(0).sqrt()
        outputs.append(float(both[0]))
        speeds.append(float(both[1]))
    assert abs(of.analysis.observed_order(sizes, speeds) + 0.5) < 0.1
    assert abs(of.analysis.observed_order(sizes, outputs) + 1.0) < 0.25
