"""Networks in the order of another: the descent, its bounds, and what it is for."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

import otflow as of
from otflow.meanfield.networks import MultiLayer, align_networks
from otflow.testing.clouds import normal


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(network, d=2):
    laws = {"biases": (0.0, 1.0), "dtype": torch.float64}
    return tuple(network.draw(d, stream(seed), **laws) for seed in (1, 2))


def distance(mu, nu):
    move = mu.displacement_to(nu)
    return float(mu.inner(move, move).sqrt())


@pytest.mark.parametrize("bias", [True, False])
def test_a_shuffled_copy_is_found_and_is_at_distance_zero(bias):
    network = MultiLayer((30, 20, 25), "tanh", outputs=2, bias=bias)
    mu, _ = pair(network)
    orders = [torch.randperm(N, generator=stream(N)) for N in network.widths]
    nu = network.permuted(mu, orders)
    found = align_networks(network, mu, nu)
    assert distance(mu, nu) > 1
    assert found.distance.lower == found.distance.upper == 0
    assert torch.equal(found.measure.coordinates, mu.coordinates)
    for order, back in zip(orders, found.orders, strict=True):
        assert torch.equal(order[back], torch.arange(len(order)))


@pytest.mark.slow
def test_the_end_is_the_best_of_all_orders_of_a_small_network():
    """Every order of both layers, one by one; the bracket holds the least distance."""
    network = MultiLayer((4, 3), "tanh")
    hits = 0
    for seed in range(12):
        mu, nu = (network.draw(2, stream(k)) for k in (seed, 100 + seed))
        every = itertools.product(*(itertools.permutations(range(N)) for N in (4, 3)))
        least = min(
            distance(mu, network.permuted(nu, [torch.tensor(o) for o in orders]))
            for orders in every
        )
        found = align_networks(network, mu, nu).distance
        assert found.lower <= least * (1 + 1e-6)
        assert found.upper >= least * (1 - 1e-6)
        hits += found.upper <= least * (1 + 1e-6)
    assert hits >= 6  # a local minimum need not be the least


def least_distance(network, mu, nu):
    """Return the least distance over all orders, in a unit that keeps squares."""
    every = itertools.product(*map(itertools.permutations, map(range, network.widths)))
    found = []
    for orders in every:
        other = network.permuted(nu, [torch.tensor(order) for order in orders])
        move = mu.displacement_to(other)
        unit = float(move.abs().max()) or 1.0
        found.append(unit * float(mu.inner(move / unit, move / unit).sqrt()))
    return min(found)


def scaled(network, mu, *sizes):
    """Return a network with parts of other sizes."""
    weights = [part.coordinates for part in mu.parts]
    return network.measure([s * w for s, w in zip(sizes, weights, strict=True)])


@pytest.mark.parametrize(
    "sizes",
    [
        (1e-300,) * 4,
        (1e-170,) * 4,
        (1e148,) * 4,
        (1e140, 1e-100, 1.0, 1e-170),
        (1e-100, 1e140, 1e-170, 1.0),
    ],
    ids=str,
)
def test_bounds_hold_at_every_scale(sizes):
    """Squares of such numbers leave the range of float64."""
    network = MultiLayer((3, 2), "tanh")
    mu, nu = (scaled(network, law, *sizes) for law in pair(network))
    least, found = least_distance(network, mu, nu), align_networks(network, mu, nu)
    assert found.distance.lower <= least * (1 + 1e-15)
    assert 0 < least <= found.distance.upper


@pytest.mark.parametrize("part", range(4))
def test_networks_that_differ_in_one_tiny_weight_are_not_at_distance_zero(part):
    network = MultiLayer((3, 2), "tanh")
    mu, _ = pair(network)
    mu = scaled(network, mu, *(0.0 if k == part else 1e100 for k in range(4)))
    weights = [p.coordinates.clone() for p in mu.parts]
    weights[part].view(-1)[0] = 1e-200
    nu = network.measure(weights)
    found = align_networks(network, mu, nu).distance
    n = {0: 3, 1: 6, 2: 2, 3: 2}[part]
    assert found.upper == pytest.approx(1e-200 / n**0.5, rel=1e-9, abs=0)
    assert found.lower <= found.upper


def test_bounds_hold_between_networks_that_differ_by_round_off():
    """There differences of features, of which the bound is made, have few digits."""
    network = MultiLayer((3, 2, 2), "tanh")
    for seed in range(12):
        mu = network.draw(2, stream(seed), dtype=torch.float64)
        orders = [torch.randperm(N, generator=stream(seed)) for N in network.widths]
        nu = network.permuted(mu, orders)
        noise = torch.randn(
            nu.tangent_shape, generator=stream(seed), dtype=torch.float64
        )
        nu = nu.push(noise, 3e-16)
        least, found = least_distance(network, mu, nu), align_networks(network, mu, nu)
        assert found.distance.lower <= least * (1 + 4e-16)
        assert least <= found.distance.upper


def test_the_descent_never_increases_the_distance_and_ends_where_no_layer_improves():
    network = MultiLayer((25, 30, 20), "tanh")
    mu, nu = pair(network)
    found = align_networks(network, mu, nu)
    assert found.converged
    assert all(b <= a for a, b in itertools.pairwise(found.squares))
    assert found.squares[-1] < 0.9 * found.squares[0]
    assert distance(mu, found.measure) ** 2 == pytest.approx(found.squares[-1])
    assert distance(mu, found.measure) == pytest.approx(found.distance.upper)
    assert found.distance.upper < 0.8 * distance(mu, nu)
    assert 0 < found.distance.lower < found.distance.upper
    # No exchange of two units of one layer is better.
    for layer, N in enumerate(network.widths):
        for i, j in itertools.combinations(range(N), 2):
            orders = [torch.arange(M) for M in network.widths]
            orders[layer][[i, j]] = orders[layer][[j, i]]
            swapped = network.permuted(found.measure, orders)
            assert distance(mu, swapped) >= found.distance.upper * (1 - 1e-9)


def test_the_aligned_network_computes_what_the_other_did():
    network = MultiLayer((12, 10), "relu", outputs=3)
    mu, nu = pair(network)
    X = normal(6, 2)
    found = align_networks(network, mu, nu).measure
    torch.testing.assert_close(network(found, X), network(nu, X))


def test_a_descent_that_is_cut_short_says_so():
    network = MultiLayer((25, 30, 20), "tanh")
    found = align_networks(network, *pair(network), sweeps=1)
    assert not found.converged
    ends = rf"distance in \[{found.distance.lower:.6g}, {found.distance.upper:.6g}\]"
    assert re.fullmatch(rf"Alignment\({ends}, not converged, sweeps=1\)", repr(found))
    whole = align_networks(network, *pair(network))
    assert whole.distance.upper <= found.distance.upper


def test_half_way_to_an_aligned_network_the_risk_is_lower():
    """Two networks that are trained from independent starts."""
    network = MultiLayer((30, 30), "tanh")
    X = torch.linspace(-2, 2, 30, dtype=torch.float64)[:, None]
    F = of.meanfield.Risk(network, X, X[:, 0].sin())
    laws = {"outer": (1.0, 1.0), "dtype": torch.float64}
    ends = [
        of.flow(
            F, network.draw(1, stream(k), **laws), of.ExplicitEuler(), dt=0.3, steps=150
        ).final
        for k in (1, 2)
    ]
    found = align_networks(network, *ends)

    def barrier(mu, nu):
        half = mu.push(mu.displacement_to(nu), 0.5)
        return float(F(half)) - max(float(F(mu)), float(F(nu)))

    assert barrier(ends[0], found.measure) < 0.5 * barrier(*ends)


@pytest.mark.parametrize("name", ["inner", "outer"])
def test_units_of_other_masses_raise(name):
    network = MultiLayer((3, 3), "tanh")
    mu, nu = pair(network)
    masses = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    other = nu.replace(**{name: of.Particles(nu[name].points, masses)})
    with pytest.raises(ValueError, match="masses"):
        align_networks(network, mu, other)
