"""Graphs through deep networks are kept: each verb against finite differences."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.functionals import InPart
from otflow.meanfield import networks
from otflow.meanfield.networks import (
    MultiLayer,
    Residual,
    align_networks,
    compositional_norm,
    compositional_rademacher_bound,
    flatten,
    permute_layers,
    to_sequential,
)
from otflow.testing.clouds import normal
from tests.test_graphs import agrees

F64 = torch.float64
X, Y = normal(6, 2, seed=20), normal(6, seed=21)
DEEP = MultiLayer((4, 3, 3), ("tanh", "sigmoid", "erf"))
ORDERS = [torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0]), torch.tensor([0, 2, 1])]
DEEP_RISK = of.meanfield.Risk(DEEP, X, Y)


def deep(t):
    """Return a network of which all weights and masses depend on t."""
    shapes = DEEP.shapes(2).values()
    weights = [
        normal(*s, seed=k) + t * normal(*s, seed=50 + k) for k, s in enumerate(shapes)
    ]
    mu = DEEP.measure(weights)
    masses = (normal(4, seed=30) + t * normal(4, seed=31)).softmax(0)
    return mu.replace(inner=of.Particles(mu["inner"].points, masses))


def equal(t):
    """Return one of equal masses."""
    mu = deep(t)
    return mu.replace(inner=of.Particles(mu["inner"].points))


def flat(mu):
    """Return the numbers of all parts."""
    return torch.cat([mu.coordinates, mu["inner"].weights])


def drawn(mu):
    return DEEP.paths(mu, 5, torch.Generator().manual_seed(0)).points


DEEP_MAPS = {
    "outputs": lambda mu, _: DEEP(mu, X),
    "outputs at moving inputs": lambda mu, t: DEEP(mu, X + t),
    "risk": lambda mu, _: DEEP_RISK(mu),
    "velocity": lambda mu, _: DEEP_RISK.velocity(mu),
    "first variation": lambda mu, _: InPart(DEEP_RISK, mu, 0).first_variation(mu[0]),
    "permuted": lambda mu, _: flat(DEEP.permuted(mu, ORDERS)),
}


@pytest.mark.parametrize("name", DEEP_MAPS)
def test_graphs_through_networks_of_several_layers(name):
    agrees(deep, DEEP_MAPS[name], moves=True)


def test_graphs_through_paths_and_aligned_networks():
    agrees(equal, lambda mu, _: drawn(mu), moves=True)
    nu = DEEP.draw(2, torch.Generator().manual_seed(3), dtype=F64)
    agrees(equal, lambda mu, _: align_networks(DEEP, nu, mu).measure.coordinates)


def test_a_module_of_a_network_with_a_graph_is_a_copy_without_it():
    t = torch.zeros((), dtype=F64, requires_grad=True)
    parameters = list(to_sequential(deep(t), DEEP).parameters())
    assert all(p.is_leaf and p.requires_grad for p in parameters)


def residual(t):
    """Return particles of which times, weights and masses depend on t."""
    theta = normal(7, 8, seed=1) + t * normal(7, 8, seed=2)
    times = (normal(7, seed=3) + t * normal(7, seed=4)).sigmoid()
    masses = (normal(7, seed=5) + t * normal(7, seed=6)).softmax(0)
    return of.Particles(torch.cat([times[:, None], theta[:, 1:]], 1), masses)


def plain(mu):
    return torch.cat([mu.points.flatten(), mu.weights])


FREE = Residual("tanh", layers=3, times="free")
KINKED = Residual("relu", layers=3, times="free")
FREE_RISK = of.meanfield.Risk(FREE, X, Y)


def two_layers(mu):
    found = flatten(FREE, mu, 2)
    return found.network(found.measure, X)


RESIDUAL_MAPS = {
    "outputs": lambda mu, _: FREE(mu, X),
    "states at moving inputs": lambda mu, t: FREE.states(mu, X + t),
    "risk": lambda mu, _: FREE_RISK(mu),
    "velocity": lambda mu, _: FREE_RISK.velocity(mu),
    "first variation": lambda mu, _: FREE_RISK.first_variation(mu),
    "first variation at probes": lambda mu, t: FREE_RISK.first_variation(
        mu, residual(0.3).points + t
    ),
    "flattened": lambda mu, _: two_layers(mu),
    "permuted": lambda mu, _: plain(permute_layers(FREE, mu, [2, 0, 1])),
    "norm": lambda mu, _: compositional_norm(KINKED, mu, 2),
    "norm of a power": lambda mu, _: compositional_norm(KINKED, mu, 2, p=2.5),
    "complexity": lambda mu, _: compositional_rademacher_bound(KINKED, mu, 2, 9),
}


@pytest.mark.parametrize("name", RESIDUAL_MAPS)
def test_graphs_through_residual_networks(name):
    agrees(residual, RESIDUAL_MAPS[name], moves=True)


def test_every_function_of_deep_networks_is_here():
    made_of_modules = {"from_sequential"}
    functions = {name for name in networks.__all__ if name[0].islower()}
    assert functions - made_of_modules <= set(globals())
