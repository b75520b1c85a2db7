"""One law for every distance and every pair of measures that it takes.

The derivative along a random direction, of positions or of masses of sum zero, is the
finite difference of the value: the graph of what a measure is made of is followed.
"""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.metrics import (
    action,
    batched_wasserstein2_squared,
    entropic_plan,
    gelbrich,
    length,
    quotient_distance,
    semidiscrete_plan,
    sinkhorn_divergence,
    transport_cost,
    wasserstein,
    wasserstein2,
    wasserstein2_squared,
)
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative
from tests import exact


def taxi(x, y):
    return (x - y).abs().sum(-1)


def masses(n, seed):
    w = normal(n, seed=seed).exp()
    return w / w.sum()


def particles(n, d, seed, *, weighted=True):
    """Return the tensors that particles are made of, and how."""
    x = normal(n, d, seed=seed)
    mu = of.Particles(x)
    if not weighted:
        return [x], lambda x: mu.with_free_atoms(x)
    return [x, masses(n, seed)], lambda x, w: mu.with_free_atoms(x, w)


def points(n, d, seed):
    return [normal(n, d, seed=seed)], lambda x: x


def quantiles(n, seed):
    edges = normal(n + 1, seed=seed).exp().cumsum(0) - 4.0
    mu = of.Quantiles(edges, masses(n, seed))
    return [edges], mu.with_free_edges


def grid(n, seed, empty=()):
    w = masses(n, seed)
    w[list(empty)] = 0.0
    w = w / w.sum()
    rho = of.GridDensity(w, -2.0, 2.5, walls=True, normalize=True)
    return [rho.weights], rho.with_free_weights


def square(n, seed):
    w = masses(n * n, seed).reshape(n, n)
    rho = of.GridDensity(w, -2.0, 2.5, walls=True, normalize=True)
    return [rho.weights], rho.with_free_weights


def gaussian(d, seed):
    mu = of.Gaussian(normal(d, seed=seed), exact.spd(d, seed=seed))
    tensors = [torch.cat([mu.mean[None], mu.factor.T])]
    return tensors, mu.with_free_state


PAIRS = {
    "weighted": lambda: (particles(6, 2, 0), particles(8, 2, 1)),
    "weighted on the line": lambda: (particles(6, 1, 0), particles(8, 1, 1)),
    "weighted and points": lambda: (particles(7, 3, 0), points(5, 3, 1)),
    "points": lambda: (points(6, 2, 0), points(6, 2, 1)),
    "equal atoms": lambda: (
        particles(6, 2, 0, weighted=False),
        particles(6, 2, 1, weighted=False),
    ),
    "quantiles": lambda: (quantiles(7, 0), quantiles(5, 1)),
    "quantiles and grid": lambda: (quantiles(7, 0), grid(9, 1)),
    "grids": lambda: (grid(8, 0), grid(11, 1)),
    "particles and grid": lambda: (particles(6, 1, 0), grid(9, 1)),
    "quantiles and points": lambda: (quantiles(7, 0), points(5, 1, 1)),
    "square and particles": lambda: (square(4, 0), particles(6, 2, 1)),
    "Gaussians": lambda: (gaussian(3, 0), gaussian(3, 1)),
}
DISTANCES = {
    "wasserstein2": wasserstein2,
    "wasserstein2_squared": wasserstein2_squared,
    "length": lambda mu, nu: length([mu, nu, mu]),
    "action": lambda mu, nu: action([mu, nu], [0.0, 0.5]),
    "sinkhorn": lambda mu, nu: sinkhorn_divergence(mu, nu, blur=0.4),
    "sinkhorn with reach": lambda mu, nu: sinkhorn_divergence(
        mu, nu, blur=0.4, reach=2.0
    ),
    "quotient": quotient_distance,
    "gelbrich": gelbrich,
    "wasserstein": wasserstein,
    "wasserstein, p = 3": lambda mu, nu: wasserstein(mu, nu, 3.0),
    "transport cost": lambda mu, nu: transport_cost(mu, nu, taxi),
    "entropic": lambda mu, nu: entropic_plan(mu, nu, blur=0.4).value,
    "entropic with reach": lambda mu, nu: (
        entropic_plan(mu, nu, blur=0.4, reach=2.0, masses=(0.5, 2.0)).value
    ),
    "semidiscrete": lambda mu, nu: semidiscrete_plan(mu, nu, tolerance=0.0).cost,
    "batched": lambda x, y: batched_wasserstein2_squared(x[None], y[None]).sum(),
}
# Those that take atoms alone; the two that take equal ones; that which takes points.
ATOMS = ("sinkhorn", "quotient", "wasserstein, p", "transport", "entropic", "batched")
EQUAL = {"quotient": {"points", "equal atoms"}, "batched": {"points"}}
LINE = {"quantiles", "quantiles and grid", "grids"}
MIXED = {"particles and grid", "quantiles and points"}
DENSITIES = {*LINE, *MIXED, "Gaussians"}
CASES = [
    (distance, pair)
    for distance in DISTANCES
    for pair in PAIRS
    if not (pair in DENSITIES and distance.startswith(ATOMS))
    and not (pair in DENSITIES and distance == "wasserstein")
    and pair in EQUAL.get(distance, PAIRS)
    and (distance == "semidiscrete") == (pair == "square and particles")
]


@pytest.mark.parametrize(("distance", "pair"), CASES)
def test_gradients_are_finite_differences(distance, pair):
    value = DISTANCES[distance]
    (first, make), (second, make_other) = PAIRS[pair]()
    tensors = [*first, *second]

    def evaluate(*moved):
        return value(make(*moved[: len(first)]), make_other(*moved[len(first) :]))

    leaves = [t.clone().requires_grad_() for t in tensors]
    grads = torch.autograd.grad(evaluate(*leaves), leaves)
    for k, (tensor, grad) in enumerate(zip(tensors, grads, strict=True)):
        u = normal(*tensor.shape, seed=30 + k)
        is_mass = tensor.ndim == 1 and float(tensor.sum()) == pytest.approx(1.0)
        if is_mass:
            u = tensor * (u - tensor @ u)

        def along(t, k=k, u=u):
            moved = list(tensors)
            moved[k] = moved[k] + t * u
            return evaluate(*moved)

        assert float(grad.abs().max()) > 0
        expected = float(derivative(along, h=2e-5))
        assert float((grad * u).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("distance", [wasserstein2_squared, DISTANCES["sinkhorn"]])
def test_a_network_that_makes_points_and_weights_is_trained(distance):
    """The graph reaches the parameters through points and masses of particles."""
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 3).double()
    z, y = normal(9, 2), normal(7, 2, seed=1) + 2.0
    shape = of.Particles(z)

    def loss():
        out = net(z)
        return distance(shape.with_free_atoms(out[:, :2], out[:, 2].softmax(0)), y)

    (gradient,) = torch.autograd.grad(loss(), net.weight)
    u = normal(3, 2, seed=4)
    start = net.weight.detach().clone()

    def along(t):
        with torch.no_grad():
            net.weight.copy_(start + t * u)
            return loss()

    expected = float(derivative(along, h=2e-5))
    assert float((gradient * u).sum()) == pytest.approx(expected, rel=1e-6)


def test_ends_with_free_weights_are_refused_not_detached():
    mu, nu = of.Particles(normal(4, 2), masses(4, 0)), of.Particles(normal(5, 2))
    free = mu.with_free_atoms(weights=mu.weights.clone().requires_grad_())
    with pytest.raises(of.errors.Unsupported, match=r"weights\.detach"):
        of.metrics.aligned_ends(free, nu)
    kept = free.with_free_atoms(weights=free.weights.detach())
    assert of.metrics.aligned_ends(kept, nu)[0].n >= 5
