"""The path norm as a functional, its proximal map, weight decay, equal neurons."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.meanfield import (
    PathNorm,
    PathPenalty,
    Risk,
    TwoLayer,
    barron_norm,
    path_norm,
    reweight_to_constant,
)
from otflow.metrics.symmetries import Scale

F64 = torch.float64


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=F64)


NETWORKS = {
    "one output": TwoLayer("relu"),
    "without bias": TwoLayer("relu", bias=False),
    "two outputs": TwoLayer("relu", outputs=2),
}


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_functional_is_the_path_norm(name, norm):
    network = NETWORKS[name]
    mu = of.Particles(normal(7, 5))
    F = PathNorm(network, norm)
    torch.testing.assert_close(F.value(mu), path_norm(network, mu, norm))
    # The first variation is the size of a neuron: its mean is the value.
    torch.testing.assert_close(mu.weights @ F.first_variation(mu), F.value(mu))
    if network.outputs is None:
        penalty = PathPenalty(norm)
        torch.testing.assert_close(F.value(mu), penalty.value(mu))
        x = mu.points
        assert torch.equal(F.proximal(x, 0.1), penalty.proximal(x, 0.1))


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("tau", [0.01, 0.1, 0.28])
def test_the_proximal_map_is_the_minimiser(norm, outputs, tau):
    """By the conditions of optimality: the objective is strictly convex."""
    F = PathNorm(TwoLayer("relu", outputs=outputs), norm)
    x = normal(400, outputs + 4, seed=outputs)
    y = F.proximal(x, tau)
    a, w = y[:, :outputs], y[:, outputs:]
    order = 1 if norm == "l1" else 2
    reach, size = (torch.linalg.vector_norm(t, order, dim=1) for t in (a, w))
    slope = (x - y) / tau
    for part, other, pull in (
        (a, size, slope[:, :outputs]),
        (w, reach, slope[:, outputs:]),
    ):
        if norm == "l1":
            alive = part != 0
            expected = other[:, None] * part.sign()
            assert float((pull - expected)[alive].abs().max()) < 1e-12 / tau
            loose = (pull.abs() - other[:, None])[~alive]
            assert not len(loose) or float(loose.max()) < 1e-12 / tau
        else:
            length = torch.linalg.vector_norm(part, dim=1)
            alive = length > 0
            unit = part[alive] / length[alive, None]
            expected = other[alive, None] * unit
            assert float((pull[alive] - expected).abs().max()) < 1e-12 / tau
            loose = torch.linalg.vector_norm(pull, dim=1)[~alive] - other[~alive]
            assert not len(loose) or float(loose.max()) < 1e-12 / tau
    if tau > 0.1:  # the map makes some of either weights exactly 0
        assert bool((y == 0).any())


@pytest.mark.parametrize("F", [PathNorm(TwoLayer("relu")), PathPenalty()])
def test_the_norm_of_a_functional_does_not_change(F):
    """The value was made for it, so that the modulus alone would follow."""
    with pytest.raises(AttributeError, match=r"norm of .* is fixed"):
        F.norm = "l2"
    mu = of.Particles(normal(3, 4))
    torch.testing.assert_close(F.value(mu), path_norm(TwoLayer("relu"), mu, "l1"))


def test_both_scalings_of_the_survey():
    theta = normal(8, 4)
    mu = of.Particles(theta)
    mean, plain, root = (
        path_norm(TwoLayer("relu", scaling=scaling), mu)
        for scaling in ("mean-field", "sum", "ntk")
    )
    sizes = theta[:, 0].abs() * theta[:, 1:].abs().sum(1)
    torch.testing.assert_close(mean, sizes.mean())
    torch.testing.assert_close(plain, sizes.sum())
    torch.testing.assert_close(root, sizes.sum() / math.sqrt(8))
    # Each bounds the outputs of its own scaling.
    X = torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    for scaling, size in (("mean-field", mean), ("sum", plain), ("ntk", root)):
        network = TwoLayer("relu", scaling=scaling)
        assert float(network(mu, X).abs().max()) <= float(size)


def test_half_the_weight_decay_is_the_path_norm_of_balanced_neurons():
    network, mu = TwoLayer("relu"), of.Particles(normal(9, 4))
    size = path_norm(network, mu, "l2")
    assert float(0.5 * mu.expectation(lambda x: x.square().sum(-1))) > float(size)
    balanced = of.Particles(Scale().canonical(mu.points))
    decay = 0.5 * balanced.expectation(lambda x: x.square().sum(-1))
    torch.testing.assert_close(decay, size)
    torch.testing.assert_close(path_norm(network, balanced, "l2"), size)
    # No other scale of the neurons has less decay.
    a, w = network.split(mu.points)
    c = torch.logspace(-3, 3, 2001, dtype=F64)
    decays = (a.square() / c**2 + (w.square().sum(1, keepdim=True)) * c**2) / 2
    assert float(decays.amin(1).mean()) >= float(size)
    assert float(decays.amin(1).mean()) == pytest.approx(float(size), rel=1e-4)


@pytest.mark.slow
def test_training_with_weight_decay_is_training_with_the_path_norm():
    X = torch.linspace(0, 1, 12, dtype=F64)[:, None]
    network = TwoLayer("relu")
    risk = Risk(network, X, (X[:, 0] - 0.4).relu())
    start = of.Particles(0.7 * normal(30, 3, seed=2))
    decay = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    scale, steps = 0.01, 3_000
    one = of.flow(
        risk + scale * decay,
        start,
        of.ExplicitEuler(),
        dt=0.2,
        steps=steps,
        every=steps,
    ).final
    two = of.flow(
        risk + scale * PathNorm(network, "l2"),
        start,
        of.schemes.ForwardBackward(),
        dt=0.2,
        steps=steps,
        every=steps,
    ).final
    # Decay balances the neurons, so that its value is the path norm.
    half = float(decay.value(one))
    assert half == pytest.approx(float(path_norm(network, one, "l2")), rel=1e-3)
    objectives = [
        float(risk.value(mu) + scale * path_norm(network, mu, "l2"))
        for mu in (one, two)
    ]
    # Each is within about a thousandth of its limit.
    assert objectives[0] == pytest.approx(objectives[1], rel=5e-3)
    assert max(objectives) < 0.2 * float(risk.value(start))


# Neurons of one size ------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_new_masses_give_all_neurons_one_size(name, norm):
    network = NETWORKS[name]
    weights = torch.rand(640, generator=torch.Generator().manual_seed(1), dtype=F64)
    mu = of.Particles(normal(640, 5), weights / weights.sum())
    nu = reweight_to_constant(network, mu, norm)
    size = float(path_norm(network, mu, norm))
    order = 1 if norm == "l1" else 2
    a, w = network.split(nu.points)
    sizes = torch.linalg.vector_norm(a, order, dim=1)
    sizes = sizes * torch.linalg.vector_norm(w, order, dim=1)
    spread = float((sizes / size - 1).abs().max())
    assert spread < 1e-12
    assert float(path_norm(network, nu, norm)) == pytest.approx(size, rel=1e-12)
    X = normal(20, w.shape[1] - int(network.bias), seed=5)
    torch.testing.assert_close(network(nu, X), network(mu, X), rtol=1e-12, atol=1e-12)
    # So every p gives the same norm; before, a larger p gave a larger one.
    for p in (1, 2, 7):
        assert float((nu.weights @ sizes**p) ** (1 / p)) == pytest.approx(size)
    a, w = network.split(mu.points)
    before = torch.linalg.vector_norm(a, order, dim=1)
    before = before * torch.linalg.vector_norm(w, order, dim=1)
    assert float((mu.weights @ before**2) ** 0.5) > 1.1 * size


def test_neurons_that_do_nothing_are_left_out():
    mu = of.Particles(torch.tensor([[0.0, 1, 1], [2, 0, 0], [3, 1, -0.5]], dtype=F64))
    nu = reweight_to_constant(TwoLayer("relu"), mu)
    assert nu.n == 1
    X = torch.linspace(0, 1, 5, dtype=F64)[:, None]
    network = TwoLayer("relu")
    torch.testing.assert_close(network(nu, X), network(mu, X))


def test_new_masses_keep_the_graph():
    theta = normal(5, 3).requires_grad_()
    nu = reweight_to_constant(TwoLayer("relu"), of.Particles(theta))
    X = normal(4, 1, seed=3)
    network = TwoLayer("relu")
    (there,) = torch.autograd.grad(network(nu, X).sum(), theta)
    (here,) = torch.autograd.grad(network(of.Particles(theta), X).sum(), theta)
    torch.testing.assert_close(there, here)


def test_the_measure_of_the_linear_program_has_one_size():
    X = torch.linspace(0, 1, 21, dtype=F64)[:, None]
    mu = barron_norm(X, torch.sin(7 * X[:, 0])).measure
    nu = reweight_to_constant(TwoLayer("relu"), mu)
    torch.testing.assert_close(nu.points, mu.points, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(nu.weights, mu.weights, rtol=1e-12, atol=1e-15)
