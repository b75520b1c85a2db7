"""The survey on residual networks: orders in depth, sampling, norms, the landscape."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.analysis import observed_order
from otflow.meanfield.networks import (
    Residual,
    compositional_norm,
    compositional_rademacher_bound,
    flatten,
    permute_layers,
)
from otflow.testing.clouds import normal
from tests.marks import slow

F64 = torch.float64
X = normal(20, 2, seed=5)


def source(seed):
    return torch.Generator().manual_seed(seed)


def draws(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=F64)


def ends(network, mu):
    return network.states(mu, X)[-1]


def root_mean_square(errors):
    return math.sqrt(sum(float(e.square().mean()) for e in errors) / len(errors))


# Depth --------------------------------------------------------------------------------


def smooth(network):
    """Return four neurons that move smoothly along the layers."""
    u, v, w = (normal(4, 3, seed=k) for k in range(3))
    t = network.layer_times(u)[:, None, None]
    outer = u * torch.cos(2 * t) + v * torch.sin(3 * t)
    inner = torch.cat([w + v * t, t.expand(-1, 4, 1)], 2)
    return network.from_blocks(outer, inner)


def test_euler_has_order_one_in_depth():
    depths, errors, by_runge_kutta = [16, 32, 64, 128, 256], [], []
    fine = Residual("tanh", layers=2048, solver="rk4")
    exact = ends(fine, smooth(fine))
    for L in depths:
        found = [
            ends(network, smooth(network)) - exact
            for solver in ("euler", "rk4")
            for network in [Residual("tanh", layers=L, solver=solver)]
        ]
        errors.append(float(found[0].norm()))
        by_runge_kutta.append(float(found[1].norm()))
    assert observed_order(depths, errors) == pytest.approx(-1, abs=0.05)
    # Of order 2: the law is constant in each cell, and known at its centre.
    assert observed_order(depths, by_runge_kutta) == pytest.approx(-2, abs=0.05)


def independent(network, M, generator, shift=0.0):
    """Return layers of independent neurons of one law; its field is 0 without shift."""
    L = network.layers
    u, w = (draws(L, M, k, generator=generator) for k in (3, 4))
    w[..., 3] += 1
    direction = torch.tensor([1.0, -1.0, 0.5], dtype=F64)
    return network.from_blocks(u + shift * direction * (1 + w[..., :1]), w)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_layers_are_samples_of_a_law(shift):
    depths, wide = [16, 32, 64, 128], Residual("tanh", layers=256)
    generator = source(0)
    exact = ends(wide, independent(wide, 200, generator, shift))
    errors = {}
    for M in (1, 8):
        errors[M] = [
            root_mean_square(
                [
                    ends(network, independent(network, M, generator, shift)) - exact
                    for _ in range(20)
                ]
            )
            for network in [Residual("tanh", layers=L) for L in depths]
        ]
        assert observed_order(depths, errors[M]) == pytest.approx(-0.5, abs=0.12)
    ratio = math.exp(
        sum(math.log(a / b) for a, b in zip(errors[1], errors[8], strict=True)) / 4
    )
    assert ratio == pytest.approx(math.sqrt(8), rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shift", "order", "tolerance"), [(0.0, -1.0, 0.12), (3.0, -0.5, 0.12)]
)
def test_permuted_layers_change_outputs_little(shift, order, tolerance):
    """The first order is a sum over layers; the next one is made of brackets.

    The bracket of two layers has mean 0 over both. Its mean over one of them is the
    bracket with the field of the law, which is 0 only if that field is.
    """
    depths, generator, changes = [16, 32, 64, 128, 256], source(1), []
    for L in depths:
        network, found = Residual("tanh", layers=L), []
        for _ in range(40):
            mu = independent(network, 1, generator, shift)
            nu = permute_layers(network, mu, torch.randperm(L, generator=generator))
            found.append(ends(network, mu) - ends(network, nu))
        changes.append(root_mean_square(found))
    assert observed_order(depths, changes) == pytest.approx(order, abs=tolerance)


def test_permuted_layers_are_the_layers_in_that_order():
    network = Residual("tanh", layers=4, times="free")
    u, w = normal(4, 2, 3), normal(4, 2, 4, seed=1)
    order = [2, 0, 3, 1]
    expected = network.from_blocks(u[order], w[order])
    found = permute_layers(network, network.from_blocks(u, w), order)
    torch.testing.assert_close(network(found, X), network(expected, X))
    theta = found.points.clone()
    theta[:, 0] = -theta[:, 0]  # the same layer times
    again = permute_layers(network, of.Particles(theta), [1, 3, 0, 2])
    torch.testing.assert_close(network(again, X), network(network.from_blocks(u, w), X))


# The adjoint --------------------------------------------------------------------------


def test_the_first_variation_is_the_adjoint_along_the_flow():
    """F'(t, theta) = mean of p(t).sigma(z(t); theta), p by autodiff of each state."""
    network = Residual("tanh", layers=6)
    mu, y = independent(network, 3, source(2), 1.0), normal(20, seed=7)
    F = of.meanfield.Risk(network, X, y)
    x = mu.points.requires_grad_(False)
    weights = mu.weights.clone().requires_grad_()
    value = F.value(mu.with_free_atoms(x, weights))
    (by_autograd,) = torch.autograd.grad(value, weights)
    states = network.states(mu, X)
    probes = normal(6, 8, seed=3)
    probes[:, 0] = network.layer_times(probes)
    adjoint = []
    for k in range(6):
        z = states[k + 1].clone().requires_grad_()
        end = z
        for block in mu.points[3 * (k + 1) :].split(3):
            u, w = block[:, 1:4], block[:, 4:]
            end = end + torch.tanh(end @ w[:, :3].T + w[:, 3]) @ u / 18
        loss = 0.5 * (end[:, 2] - y).square().mean()
        (p,) = torch.autograd.grad(loss, z)
        u, w = probes[k, 1:4], probes[k, 4:]
        adjoint.append((p @ u) @ torch.tanh(states[k] @ w[:3] + w[3]))
    error = (F.first_variation(mu) - by_autograd).abs().max() / by_autograd.abs().max()
    assert error < 1e-14
    torch.testing.assert_close(
        F.first_variation(mu, probes), torch.stack(adjoint), rtol=1e-12, atol=1e-15
    )


# Two layers ---------------------------------------------------------------------------


def test_small_blocks_flatten_to_two_layers():
    network = Residual("tanh", layers=10, outputs=2, offset=[0.1, -0.2])
    u, w = normal(10, 3, 4), normal(10, 3, 5, seed=1)
    scales, errors = [0.2, 0.1, 0.05, 0.025], []
    for eps in scales:
        mu = network.from_blocks(eps * u, w)
        flat = flatten(network, mu, 2)
        assert not flat.skip.any()
        assert repr(flat).endswith("of 30 neurons, no skip)")
        errors.append(float((network(mu, X) - flat.network(flat.measure, X)).norm()))
    assert observed_order(scales, errors) == pytest.approx(2, abs=0.02)


def test_inputs_pass_by_flattened_layers():
    A, R = normal(4, 2, seed=1), normal(4, seed=2)
    network = Residual("tanh", layers=5, bias=False, embedding=A, readout=R)
    scales, errors = [0.1, 0.05, 0.025], []
    for eps in scales:
        mu = network.from_blocks(eps * normal(5, 3, 4), normal(5, 3, 4, seed=3))
        flat = flatten(network, mu, 2)
        assert repr(flat).endswith("of 15 neurons, a skip of shape (1, 2))")
        found = X @ flat.skip[0] + flat.network(flat.measure, X)
        errors.append(float((network(mu, X) - found).norm()))
    assert observed_order(scales, errors) == pytest.approx(2, abs=0.05)


# Norms --------------------------------------------------------------------------------


def test_the_norm_is_reached_by_positive_weights():
    """Without cancellation the output at x = (1, 1) is the norm, by both solvers."""
    for solver in ("euler", "rk4"):
        network = Residual("relu", layers=4, solver=solver)
        mu = network.from_blocks(normal(4, 3, 3).abs(), normal(4, 3, 4, seed=1).abs())
        norm = compositional_norm(network, mu, 2)
        output = network(mu, torch.ones(1, 2, dtype=F64))[0]
        assert float(norm) == pytest.approx(float(output), rel=1e-12)
        values = [float(compositional_norm(network, mu, 2, p=p)) for p in (1, 2, 4)]
        assert values[0] == pytest.approx(float(norm))
        assert values[0] < values[1] < values[2]
        # One neuron in each layer: no mean, and the power does not matter.
        nu = network.from_blocks(normal(4, 1, 3), normal(4, 1, 4, seed=1))
        one, other = (compositional_norm(network, nu, 2, p=p) for p in (1.0, 3.0))
        assert float(one) == pytest.approx(float(other), rel=1e-12)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_no_output_is_larger_than_the_norm(activation, solver):
    generator = source(3)
    points = 2 * torch.rand(200, 2, generator=generator, dtype=F64) - 1
    largest = 0.0
    for L in (1, 2, 5, 10):
        network = Residual(activation, layers=L, outputs=2, solver=solver)
        for _ in range(5):
            u, w = (draws(L, 3, k, generator=generator) for k in (4, 5))
            mu = network.from_blocks(u, w)
            norm = compositional_norm(network, mu, 2)
            ratio = network(mu, points).abs().amax(0) / norm
            largest = max(largest, float(ratio.max()))
    assert 0.1 < largest <= 1


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_norms_of_independent_layers_tend_to_an_exponential(factor):
    """N' = c E|U||W| N: the norm of the limit bounds those of deep samples of it."""
    mean = 0.5 * 2 / math.pi  # of |u_j| |w_k|, for u_j of variance 1/4
    matrix = torch.zeros(4, 4, dtype=F64)
    matrix[:3] = factor * mean
    start = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=F64)
    limit = float((torch.matrix_exp(matrix) @ start)[2])
    depths, generator, errors = [16, 64, 256, 1024], source(4), []
    for L in depths:
        network = Residual("relu", layers=L)
        found = []
        for _ in range(20):
            u, w = (draws(L, 1, k, generator=generator) for k in (3, 4))
            mu = network.from_blocks(0.5 * u, w)
            found.append(compositional_norm(network, mu, 2, factor=factor) - limit)
        errors.append(root_mean_square(found))
    assert observed_order(depths, errors) == pytest.approx(-0.5, abs=0.15)


def test_the_rademacher_complexity_is_below_its_bound():
    """Networks that fit signs as well as they can, at their norm: by ascent."""
    n, generator = 40, source(5)
    points = 2 * torch.rand(n, 2, generator=generator, dtype=F64) - 1
    network = Residual("relu", layers=3, readout=normal(3, seed=1))
    found = []
    for _ in range(4):
        signs = draws(n, generator=generator).sign()
        mu = network.from_blocks(*(draws(3, 2, k, generator=generator) for k in (3, 4)))
        theta = mu.points.clone().requires_grad_()
        optimizer = torch.optim.Adam([theta], 0.05)
        best = 0.0
        for _ in range(60):
            mu = of.Particles(theta)
            correlation = (signs * network(mu, points)).mean()
            ratio = correlation / compositional_rademacher_bound(network, mu, 2, n)
            best = max(best, float(ratio.detach()))
            optimizer.zero_grad()
            (-ratio).backward()
            optimizer.step()
        found.append(best)
    mean = sum(found) / len(found)
    assert 0.02 < mean < 1


def test_the_bound_of_generalisation_holds_and_says_something():
    """Gap of a bounded 1-Lipschitz loss: twice the complexity, and the deviation."""
    n, delta, generator = 10_000, 0.01, source(6)
    points = 2 * torch.rand(2 * n, 2, generator=generator, dtype=F64) - 1
    y = points.amax(1) * 0.5 + 0.2 * draws(2 * n, generator=generator)
    network = Residual("relu", layers=4)
    mu = network.from_blocks(0.5 * normal(4, 6, 3), 0.5 * normal(4, 6, 4, seed=1))
    F = of.meanfield.Risk(network, points[:n], y[:n])
    mu = of.flow(F, mu, of.ExplicitEuler(), dt=0.2, steps=100).final
    loss = (network(mu, points) - y).abs().clamp(max=1)
    gap = float(loss[n:].mean() - loss[:n].mean())
    # The ball is chosen after the data: radii 1, 2, 4, ... share delta.
    norm = float(compositional_norm(network, mu, 2, factor=3.0))
    level = max(0, math.ceil(math.log2(norm)))
    scale = float(compositional_rademacher_bound(network, mu, 2, n)) * 2**level / norm
    deviation = math.sqrt(math.log(2 * (level + 1) ** 2 / delta) / (2 * n))
    bound = 2 * scale + 2 * deviation
    assert gap < bound
    assert float(loss[:n].mean()) + bound < 1  # the largest loss


# The landscape ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stationary_network_with_a_risk_is_left_by_birth():
    """Where p(1) is not 0 the first variation is negative at some neuron."""
    points = torch.linspace(-1, 1, 30, dtype=F64)[:, None]
    F = of.meanfield.Risk(Residual("tanh", layers=2), points, (6 * points[:, 0]).sin())
    theta = normal(2, 6, seed=1)
    theta[:, 0] = torch.tensor([0.25, 0.75])
    run = of.flow(F, of.Particles(theta), of.schemes.Adam(), dt=0.02, steps=800)
    mu = of.flow(F, run.final, of.ExplicitEuler(), dt=0.1, steps=300).final
    risk, speed = float(F.value(mu)), float(mu.norm(F.velocity(mu)))
    assert risk > 0.05
    probes = 6 * normal(2000, 6, seed=2)
    probes[:, 0] = torch.rand(2000, generator=source(7), dtype=F64)
    slopes = F.first_variation(mu, probes) - mu.weights @ F.first_variation(mu)
    steepest = float(slopes.min())
    assert speed < 0.05 * -steepest
    born = of.Particles(probes[slopes.argmin()][None])
    shares, found = [1e-2, 1e-3, 1e-4], []
    for share in shares:
        change = float(F.value(mu.mix(born, share)) - risk) / share
        found.append(abs(change - steepest))
    assert observed_order(shares, found) == pytest.approx(1, abs=0.1)
    nu = mu.mix(born, 0.05)
    end = of.flow(F, nu, of.schemes.Adam(), dt=0.02, steps=600).final
    assert F.value(end) < 0.9 * risk


@pytest.mark.parametrize("seed", [0, *slow(1, 2)])
def test_wide_networks_reach_every_target(seed):
    """Layers of many neurons everywhere: the risk tends to 0, convex or not."""
    points = torch.linspace(-1, 1, 30, dtype=F64)[:, None]
    network = Residual("tanh", layers=5)
    F = of.meanfield.Risk(network, points, (4 * points[:, 0]).sin())
    mu = network.from_blocks(
        3 * normal(5, 20, 2, seed=seed), 3 * normal(5, 20, 3, seed=seed + 10)
    )
    run = of.flow(F, mu, of.schemes.Adam(), dt=0.01, steps=400, every=400)
    fall = float(run.records["energy"][-1] / run.records["energy"][0])
    assert fall < 5e-3


# Layer times as coordinates -----------------------------------------------------------


@pytest.mark.slow
def test_training_of_layer_times_on_digits():
    """One neuron in each of 16 layers, 20 starts and splits of the data.

    Times move at a tenth of the mobility of weights: at the same mobility a step of
    Adam is half a layer long. The steps fall to 0. Those of equal length end at a peak
    of the loss now and then, and round-off says for which starts.
    """
    datasets = pytest.importorskip("sklearn.datasets")
    inputs, labels = datasets.load_digits(return_X_y=True)
    inputs = torch.tensor(inputs, dtype=torch.float32) / 16 - 0.5
    labels = torch.tensor(labels)
    errors: dict[str, list[float]] = {"fixed": [], "free": []}
    losses: dict[str, list[float]] = {"fixed": [], "free": []}
    for seed in range(20):
        for times, found in errors.items():
            generator = source(seed)
            order = torch.randperm(len(inputs), generator=generator)
            train, test = order[:1347], order[1347:]
            network = Residual("relu", layers=16, outputs=10, times=times)
            F = of.meanfield.Risk(
                network, inputs[train], labels[train], loss="cross-entropy"
            )
            mu = network.draw(64, generator, neurons=1, dtype=torch.float32)
            scheme = of.schemes.Mobility(
                of.schemes.Adam(), network.mobility(64, time=0.1)
            )
            end = of.flow(
                F, mu, scheme, dt=lambda k: 0.03 * (1 - k / 200), steps=200, every=200
            ).final
            wrong = network(end, inputs[test]).argmax(1) != labels[test]
            found.append(float(wrong.float().mean()))
            losses[times].append(float(F(end)))
    fixed, free = (sum(found) / 20 for found in errors.values())
    fixed_loss, free_loss = (sum(found) / 20 for found in losses.values())
    lower = sum(a > b for a, b in zip(*losses.values(), strict=True))
    assert lower >= 14
    assert free_loss < 0.9 * fixed_loss
    # Of the test errors only the mean is a little lower.
    assert free < fixed < 0.1
