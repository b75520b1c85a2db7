"""Norms and permutations of residual networks at the edges of their arguments."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch

import otflow as of
from otflow.meanfield.networks import (
    Residual,
    compositional_norm,
    compositional_rademacher_bound,
    flatten,
    permute_layers,
)
from otflow.meanfield.networks.residual_layers import cells_of
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative

F64 = torch.float64
EDGES = [1, 2, 3, 7, 10, 16, 100]


def particles(network, n=12, size=1.0, seed=0, dtype=F64):
    """Return particles of some size, with times in [0, 1], for two inputs."""
    theta = size * normal(n, network.dim(2), seed=seed)
    theta[:, 0] = torch.linspace(0, 1, n, dtype=F64)
    return of.Particles(theta.to(dtype))


def pickled(network):
    return pickle.loads(pickle.dumps(network))


def directly(network, mu, power, factor):
    """Return the compositional norm from matrices, powers relative to their largest."""
    _, u, w = network.split(mu.points.abs())
    D = u.shape[1]
    cells = cells_of(mu.points[:, 0], network.layers)
    N = torch.tensor([1.0, 1.0, *[0.0] * (D - 2), 1.0], dtype=F64)
    for layer in range(network.layers):
        inside = cells == layer
        if not inside.any():
            continue
        m = mu.weights[inside]
        products = u[inside, :, None] * w[inside, None, :]
        top = products.amax(0).clamp_min(torch.finfo(F64).tiny)
        shares = (m / m.sum())[:, None, None]
        mean = (shares * (products / top).pow(power)).sum(0).pow(1 / power)
        N[:D] += factor * m.sum() * (top * mean) @ N[: w.shape[1]]
    return float(N[D - 1])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 8.0, 300.0])
@pytest.mark.parametrize("size", [1e-140, 1e-30, 1.0, 1e30])
def test_norms_keep_their_digits_at_every_scale(size, power, bias):
    network = Residual("relu", layers=3, bias=bias)
    mu = particles(network, size=size)
    norm = compositional_norm(network, mu, 2, p=power, factor=1.5)
    wanted = directly(network, mu, power, 1.5)
    assert 0 < float(norm) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("power", [1.5, 2.0, 8.0])
def test_norms_grow_with_the_power(power):
    network = Residual("relu", layers=3)
    mu = particles(network, size=1e-60)
    found = [compositional_norm(network, mu, 2, p=p) for p in (1.0, power, 2 * power)]
    assert float(found[0]) < float(found[1]) < float(found[2])


@pytest.mark.parametrize("size", [1e-140, 1e-100, 1.0, 1e20])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_no_output_is_larger_than_the_norm_at_any_scale(activation, size):
    # One large factor and one tiny, whose product is of order 1 or tiny.
    network = Residual(activation, layers=3)
    mu = particles(network)
    scale = torch.ones(network.dim(2), dtype=F64)
    scale[1:4], scale[4:] = 1 / size, size
    mu = of.Particles(mu.points * scale)
    X = 2 * torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=F64) - 1
    largest = float(network(mu, X).abs().max())
    assert 0 < largest <= float(compositional_norm(network, mu, 2)) * (1 + 1e-12)


@pytest.mark.parametrize("times", ["fixed", "free"])
@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 8.0])
def test_norms_have_the_slopes_of_finite_differences(power, times):
    network = Residual("relu", layers=3, times=times)
    mu = particles(network)
    x, w = mu.points, mu.weights
    dx, dw = normal(*x.shape, seed=1), 0.01 * normal(len(w), seed=2)
    dx[:, 0] = 0.0 if times == "fixed" else dx[:, 0]
    # One atom has no mass, and keeps none.
    w = torch.cat([w[:1] * 0, w[1:2] * 2, w[2:]])
    dw[:2] = torch.stack([dw[0] * 0, -dw[2:].sum()])

    def along(t):
        nu = of.Particles(x + t * dx, w + t * dw)
        return compositional_norm(network, nu, 2, p=power)

    t = torch.zeros((), dtype=F64, requires_grad=True)
    (found,) = torch.autograd.grad(along(t), t)
    wanted = derivative(lambda s: along(torch.as_tensor(s, dtype=F64)), 1e-4)
    assert abs(float(wanted)) > 1e-4
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickled])
def test_copies_of_a_network_have_its_norms(again):
    network = Residual("relu", layers=3)
    twin = again(network)
    mu = particles(network)
    for measured in (
        lambda net: compositional_norm(net, mu, 2, factor=3.0),
        lambda net: compositional_rademacher_bound(net, mu, 2, 100),
        lambda net: net(mu, normal(4, 2)),
        lambda net: flatten(net, mu, 2).measure.points,
        lambda net: permute_layers(net, mu, [2, 0, 1]).points,
    ):
        assert torch.equal(measured(twin), measured(network))


@pytest.mark.parametrize("bias", [True, False])
def test_the_bound_of_complexity_has_the_constant_of_its_proof(bias):
    """2 where no input passes by all layers, 3 where one does: r + 2 r of neurons."""
    n, r = 50, math.sqrt(2 * math.log(2 * (2 + bias)) / 50)
    by_default = Residual("relu", layers=3, bias=bias)
    passed = Residual("relu", layers=3, bias=bias, readout=normal(3))
    beside = Residual(
        "relu",
        layers=3,
        bias=bias,
        embedding=torch.eye(3, 2, dtype=F64),
        readout=torch.eye(3, dtype=F64)[2],
    )
    for network, kappa in ((by_default, 2), (passed, 3), (beside, 2)):
        mu = particles(network)
        norm = float(compositional_norm(network, mu, 2, factor=3.0))
        bound = float(compositional_rademacher_bound(network, mu, 2, n))
        assert bound == pytest.approx(kappa * r * norm, rel=1e-14)


def test_no_ball_has_a_larger_complexity_than_the_bound():
    """All sign patterns of 8 data in one dimension, over one-layer networks: a sum.

    The best neuron of a pattern has a knot at a datum. Its norm is 3 |u| (|w| + |b|).
    """
    x = torch.linspace(-1, 1, 8, dtype=F64)
    knots = torch.cat([x, torch.linspace(-1, 1, 41, dtype=F64)])
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8)), dtype=F64)
    sides = torch.tensor([1.0, -1.0], dtype=F64)[:, None, None]
    values = (sides * (x - knots[:, None])).relu() / (3 * (1 + knots.abs()[:, None]))
    features = torch.cat([values.flatten(0, 1), torch.full((1, 8), 1 / 3, dtype=F64)])
    exact = float((signs @ features.T / 8).abs().amax(1).mean())  # for Q = 1
    network = Residual("relu", layers=1)
    mu = network.from_blocks(
        torch.tensor([[[0.0, 2.0]]], dtype=F64),
        torch.tensor([[[1.0, 0.0, -0.5]]], dtype=F64),
    )
    norm = float(compositional_norm(network, mu, 1, factor=3.0))
    bound = float(compositional_rademacher_bound(network, mu, 1, 8))
    assert norm == pytest.approx(3 * 2 * 1.5)
    assert 0.05 * bound < norm * exact < bound


# Permuted layers ----------------------------------------------------------------------


def at_the_ends_of_cells(layers, dtype):
    """Return times at, just before and inside the ends of cells."""
    ends = torch.arange(layers + 1, dtype=dtype) / layers
    centres = (torch.arange(layers, dtype=dtype) + 0.5) / layers
    below = ends[1:].nextafter(torch.zeros((), dtype=dtype))
    return torch.cat([ends, centres, below])


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("layers", EDGES)
def test_a_permuted_particle_is_in_the_permuted_layer(layers, dtype):
    """Also at the ends of cells, where sums of times are rounded out of these."""
    network = Residual("tanh", layers=layers, bias=False)
    times = at_the_ends_of_cells(layers, dtype)
    theta = normal(len(times), network.dim(1)).to(dtype)
    theta[:, 0] = times
    mu, generator = of.Particles(theta), torch.Generator().manual_seed(layers)
    before = cells_of(times, layers)
    for _ in range(5):
        order = torch.randperm(layers, generator=generator)
        nu = permute_layers(network, mu, order.tolist())
        after = nu.points[:, 0]
        assert torch.equal(order[cells_of(after, layers)], before)
        assert float(after.min()) >= 0
        assert float(after.max()) <= 1
        # In its place: the distance to the first end of the cell is kept.
        place = after - cells_of(after, layers).to(dtype) / layers
        wanted = times - before.to(dtype) / layers
        assert float((place - wanted).abs().max()) <= 4 * torch.finfo(dtype).eps
        back = permute_layers(network, nu, order.argsort())
        assert torch.equal(cells_of(back.points[:, 0], layers), before)


def test_permuted_times_keep_their_graph():
    network = Residual("tanh", layers=3, times="free")
    x = particles(network, 7).points
    x[:, 0] = 0.9 * x[:, 0] + 0.03
    x.requires_grad_()
    nu = permute_layers(network, of.Particles(x), [2, 0, 1])
    (slope,) = torch.autograd.grad(nu.points[:, 0].sum(), x)
    assert slope[:, 0].tolist() == [1.0] * 7


@pytest.mark.parametrize("order", [[1, 0], (1, 0), torch.tensor([1, 0]), "array"])
def test_orders_of_all_kinds(order):
    network = Residual("tanh", layers=2)
    mu = particles(network)
    order = torch.tensor([1, 0]).numpy() if isinstance(order, str) else order
    wanted = permute_layers(network, mu, [1, 0])
    assert torch.equal(permute_layers(network, mu, order).points, wanted.points)


@pytest.mark.parametrize(
    "order", [[1.0, 0.0], [True, False], torch.tensor([1.0, 0.0]), [[1], [0]], "10"]
)
def test_orders_that_are_none(order):
    network = Residual("tanh", layers=2)
    with pytest.raises(ValueError, match="each of the integers"):
        permute_layers(network, particles(network), order)


@pytest.mark.parametrize("order", [3, None, torch.tensor(1)])
def test_orders_that_are_no_sequence(order):
    network = Residual("tanh", layers=2)
    with pytest.raises(TypeError, match="order must be a sequence of integers"):
        permute_layers(network, particles(network), order)


def test_particles_of_another_network_are_not_permuted():
    network = Residual("tanh", layers=2)
    with pytest.raises(ValueError, match="has 1 \\+ 2 D \\+ 1"):
        permute_layers(network, of.Particles(normal(5, 3).sigmoid()), [1, 0])
