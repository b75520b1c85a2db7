"""Residual networks as a model: contracts, layers, times, the pass in blocks."""

from __future__ import annotations

import copy

import pytest
import torch

import otflow as of
from otflow.meanfield.networks import Residual, flatten, residual_pass
from otflow.meanfield.units import UNITS
from otflow.testing import FunctionalContract, clouds
from otflow.testing.clouds import normal
from tests.meanfield.test_risk import RiskContract, problem

F64 = torch.float64
Risk = of.meanfield.Risk


def inside(mu):
    """Return particles with layer times in (0.03, 0.97), where F is smooth."""
    x = mu.points.clone()
    x[:, 0] = 0.5 + 0.47 * torch.sin(3 * x[:, 0])
    return mu.with_free_atoms(x)


class ResidualContract(RiskContract):
    """Times in [0, 1] alone are layer times."""

    def measure(self, dtype=F64, seed=0):
        return inside(super().measure(dtype, seed))

    def measures(self):
        return [inside(mu) for mu in super().measures()]

    def probes(self, mu, shift):
        x = mu.points + shift
        x[:, 0] = mu.points[:, 0] + 0.01
        return x

    test_value_and_derivatives_keep_dtype_and_carry_no_graph = (
        FunctionalContract.test_value_and_derivatives_keep_dtype_and_carry_no_graph
    )

    def test_probes_may_be_arrays(self):
        F, mu = self.make(), self.measure()
        x = self.probes(mu, 0.3)
        assert torch.equal(F.first_variation(mu, x.numpy()), F.first_variation(mu, x))


class TestFixed(ResidualContract):
    network = Residual("tanh", layers=3)
    dim = 8


class TestFree(ResidualContract):
    network = Residual("erf", layers=4, times="free", offset=0.3)
    dim = 8


class TestReflected(RiskContract):
    network = Residual("sigmoid", layers=3, times="free", bias=False)
    dim = 7


class TestRungeKuttaOfSeveralOutputs(ResidualContract):
    network = Residual("tanh", layers=3, times="free", outputs=2, solver="rk4")
    outputs = 2
    dim = 10


class TestOwnMatrices(ResidualContract):
    outputs = 3
    loss = "cross-entropy"
    dim = 10

    def make(self, dtype=F64):
        matrices = {"embedding": normal(4, 2), "readout": normal(3, 4)}
        matrices = {name: M.to(dtype) for name, M in matrices.items()}
        network = Residual("tanh", layers=2, outputs=3, **matrices)
        return Risk(network, *problem(9, 2, 3, self.loss, dtype), loss=self.loss)


class TestOwnActivation(ResidualContract):
    network = Residual(torch.nn.functional.gelu, layers=3, times="free")
    dim = 8


# The network --------------------------------------------------------------------------


def plain(network, outer, inner, X):
    """Return the outputs as the survey writes them, block by block."""
    z = torch.cat([X, X.new_zeros(len(X), network.outputs or 1)], 1)
    for u, w in zip(outer, inner, strict=True):
        h = network.activation(z @ w[:, :-1].T + w[:, -1])
        z = z + (h @ u) / (len(outer) * outer.shape[1])
    return z[:, z.shape[1] - (network.outputs or 1) :]


@pytest.mark.parametrize("times", ["fixed", "free"])
@pytest.mark.parametrize("outputs", [None, 2])
def test_it_is_a_residual_network_of_equal_layers(times, outputs):
    D = 3 + (outputs or 1)
    outer, inner = normal(7, 5, D, seed=1), normal(7, 5, D + 1, seed=2)
    network = Residual("relu", layers=7, outputs=outputs, times=times)
    mu = network.from_blocks(outer, inner)
    assert mu.dim == network.dim(3)
    X = normal(11, 3, seed=3)
    found, expected = network(mu, X), plain(network, outer, inner, X)
    # Times l/L + 1/(2 L) are rounded, and with them shares of free times.
    torch.testing.assert_close(found.reshape(11, -1), expected, rtol=1e-12, atol=1e-13)
    assert found.shape == ((11,) if outputs is None else (11, 2))


def test_one_layer_is_a_two_layer_network_beside_its_input():
    theta = normal(6, 8, seed=4)
    theta[:, 0] = torch.rand(6)
    mu, X = of.Particles(theta), normal(9, 2, seed=5)
    readout = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    network = Residual("tanh", layers=1, readout=readout)
    flat = flatten(network, mu, 2)
    expected = X @ flat.skip[0] + flat.network(flat.measure, X)
    torch.testing.assert_close(network(mu, X), expected, rtol=1e-13, atol=1e-14)
    assert flat.skip.tolist() == [[1.0, -2.0]]


def test_linear_blocks_give_the_exponential_of_a_matrix():
    """z' = A z with A = sum of u w^T: an oracle of the flow, of both orders."""
    u, w = normal(6, 3, seed=1), normal(6, 3, seed=2)
    X = normal(5, 2, seed=3)
    z = torch.cat([X, X.new_zeros(5, 1)], 1)
    exact = z @ torch.matrix_exp(u.T @ w / 6).T
    for solver, order in (("euler", 1), ("rk4", 4)):
        depths, errors = [4, 8, 16, 32], []
        for L in depths:
            network = Residual(lambda z: z, layers=L, bias=False, solver=solver)
            mu = network.from_blocks(u.expand(L, 6, 3), w.expand(L, 6, 3))
            errors.append(float((network.states(mu, X)[-1] - exact).norm()))
        found = -of.analysis.observed_order(depths, errors)
        assert found == pytest.approx(order, abs=0.15)


def test_permuted_atoms_are_the_same_network():
    network = Residual("tanh", layers=4, times="free")
    mu = inside(clouds.weighted(9, 8))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    nu = of.Particles(mu.points[order], mu.weights[order])
    X, y = problem(12, 2, None, "square")
    F = Risk(network, X, y)
    torch.testing.assert_close(F.value(nu), F.value(mu), rtol=1e-13, atol=0)
    torch.testing.assert_close(
        F.velocity(nu), F.velocity(mu)[order], rtol=1e-11, atol=1e-13
    )


def test_a_layer_without_particles_does_nothing():
    network = Residual("tanh", layers=5)
    theta = normal(4, 8)
    theta[:, 0] = torch.tensor([0.1, 0.1, 0.9, 0.9])
    states = network.states(of.Particles(theta), normal(3, 2))
    assert states.shape == (6, 3, 3)
    assert torch.equal(states[1], states[4])
    assert not torch.equal(states[0], states[1])
    assert not torch.equal(states[4], states[5])


def test_states_end_in_the_outputs():
    network = Residual("tanh", layers=5, times="free", outputs=2)
    mu, X = inside(clouds.weighted(9, 10)), normal(6, 2)
    assert torch.equal(network.states(mu, X)[-1][:, 2:], network(mu, X))


def test_fixed_times_choose_a_cell_and_have_no_velocity():
    network = Residual("tanh", layers=49)
    assert torch.equal(
        (network.layer_times(normal(1)) * 49).floor(), torch.arange(49, dtype=F64)
    )
    X, y = problem(9, 2, None, "square")
    F = Risk(Residual("tanh", layers=4), X, y)
    mu = inside(clouds.weighted(9, 8))
    x = mu.points.clone()
    x[:, 0] = ((x[:, 0] * 4).floor() + 0.9) / 4
    assert torch.equal(F.value(of.Particles(x, mu.weights)), F.value(mu))
    assert (F.velocity(mu)[:, 0] == 0).all()
    x[:, 0] = torch.where(x[:, 0] > 0.75, 1.0, x[:, 0])  # 1 is in the last cell
    assert torch.equal(F.value(of.Particles(x, mu.weights)), F.value(mu))


def test_free_times_are_continuous_and_keep_the_mean_time():
    network = Residual("tanh", layers=4, times="free")
    X, y = problem(9, 2, None, "square")
    F, mu = Risk(network, X, y), inside(clouds.weighted(9, 8))
    x, eps = mu.points.clone(), 1e-9
    values = []
    for t in (0.375 - eps, 0.375, 0.375 + eps):  # the time of a layer
        x[0, 0] = t
        values.append(float(F.value(of.Particles(x.clone(), mu.weights))))
    assert max(values) - min(values) < 1e-7
    probe = normal(1, 8)
    for t, layers in ((0.3, (0.125, 0.375)), (0.5, (0.375, 0.625))):
        atoms = probe.repeat(3, 1)
        atoms[:, 0] = torch.tensor([t, *layers])
        F0, F1, F2 = F.first_variation(mu, atoms)
        share = (t - layers[0]) * 4
        torch.testing.assert_close(F0, (1 - share) * F1 + share * F2)


def test_reflected_times_are_distances_to_even_numbers():
    t = torch.tensor([0.3, 0.7, 0.05, 0.97, 0.5], dtype=F64)
    theta = normal(5, 8)
    X = normal(6, 2, seed=1)
    values = {}
    for shift in (0.0, 2.0, -4.0):
        for sign in (1, -1):
            x = theta.clone()
            x[:, 0] = sign * t + shift
            network = Residual("tanh", layers=6, times="free")
            values[shift, sign] = network(of.Particles(x), X)
    x = theta.clone()
    x[:, 0] = t
    expected = Residual("tanh", layers=6, times="free")(of.Particles(x), X)
    fixed = Residual("tanh", layers=6)(of.Particles(x), X)
    assert not torch.allclose(expected, fixed)
    for found in values.values():
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


# The pass -----------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_the_pass_in_blocks_and_segments_is_that_of_autodiff(monkeypatch, unit, solver):
    """Blocks of 64 rows; of 12 layers few are kept, the others computed again."""
    X, y = problem(150, 3, 2, "square")
    network = Residual(unit, layers=12, outputs=2, times="free", solver=solver)
    mu = inside(clouds.weighted(40, network.dim(3)))
    F = Risk(network, X, y)
    chosen, sizes = [], residual_pass.sizes

    def noted(*args):
        chosen.append(sizes(*args))
        return chosen[-1]

    monkeypatch.setattr(residual_pass, "sizes", noted)
    # Where a value takes the place of its argument, there is room for one layer more.
    few = {"euler": 2, "rk4": 1}[solver] + UNITS[unit].slope_from_value
    for store, kept in ((2**23, 12), (1, few)):
        monkeypatch.setattr(residual_pass, "CPU_STORE_BYTES", store)
        value, velocity = F.value_and_velocity(mu)
        assert chosen[-1] == (150 if kept == 12 else 64, kept)
        expected = of.Functional.value_and_velocity(F, mu)
        torch.testing.assert_close(value, expected[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(velocity, expected[1], rtol=1e-10, atol=1e-13)
        x = mu.points + 0.01
        torch.testing.assert_close(
            F.first_variation(mu, x),
            of.Functional.first_variation(F, mu, x),
            rtol=1e-10,
            atol=1e-13,
        )


def test_a_draw_has_the_laws_that_are_asked_for():
    network = Residual("tanh", layers=5, outputs=2)
    stream = torch.Generator().manual_seed(1)
    mu = network.draw(
        3, stream, neurons=400, outer=(1.0, 2.0), inner=(-1.0, 0.5), dtype=torch.float64
    )
    t, u, w = network.split(mu.points)
    assert (mu.n, mu.dim, u.shape[1], w.shape[1]) == (2000, network.dim(3), 5, 6)
    assert torch.equal(t, network.layer_times(t).repeat_interleave(400))
    for x, mean, deviation in ((u, 1, 2), (w, -1, 0.5)):
        assert abs(float(x.mean()) - mean) < 4 * deviation / x.numel() ** 0.5
        assert abs(float(x.std()) / deviation - 1) < 4 / (2 * x.numel()) ** 0.5
    assert network.draw(3, stream, neurons=1).dtype == torch.get_default_dtype()
    with pytest.raises(ValueError, match="neurons"):
        network.draw(3, stream, neurons=0)


def test_very_deep_networks_keep_the_root_of_their_layers():
    rows, kept = residual_pass.sizes(1, n=1000, depth=400, layer=4, state=4)
    assert (rows, kept) == (64, 20)
    # As much memory as two layers of 400, in place of all of them.
    least = [S * 4 + 400 / S * 4 for S in range(1, 401)]
    assert kept * 4 + 400 / kept * 4 == min(least)
    assert residual_pass.sizes(10**9, 1000, 400, 4, 4) == (1000, 400)
    assert residual_pass.sizes(64 * 4 * 100, 1000, 400, 4, 4) == (64, 100)


def test_built_in_units_need_no_autodiff(monkeypatch):
    X, y = problem(9, 2, None, "square")
    F, mu = Risk(Residual("relu"), X, y), inside(clouds.uniform(9, 8))

    def refuse(*args, **kwargs):
        msg = "autodiff was used"
        raise AssertionError(msg)

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    F.value_and_velocity(mu)
    F.first_variation(mu)
    with pytest.raises(AssertionError, match="autodiff was used"):
        Risk(Residual(torch.relu), X, y).value_and_velocity(mu)


def test_graphs_of_points_weights_and_inputs_stay():
    network = Residual("tanh", layers=3, times="free")
    x = inside(clouds.uniform(5, 8)).points.requires_grad_()
    X = normal(4, 2).requires_grad_()
    f = network(of.Particles(x), X).sum()
    for grad in torch.autograd.grad(f, (x, X)):
        assert grad.abs().max() > 0
    F = Risk(network, X, normal(4))
    assert F.velocity(of.Particles(x)).requires_grad
    double = torch.autograd.functional.hessian(
        lambda x: F.value(of.Particles(x)), x.detach()
    )
    assert double.abs().max() > 0


def test_a_subclass_with_other_outputs_has_no_pass():
    class Twice(Residual):
        def respond(self, inputs, mu):
            return 2 * super().respond(inputs, mu)

    X, y = problem(9, 2, None, "square")
    mu = inside(clouds.uniform(5, 8))
    assert_as_autodiff_at(Risk(Twice("tanh"), X, y), mu)


def assert_as_autodiff_at(F, mu):
    for found, expected in zip(
        F.value_and_velocity(mu), of.Functional.value_and_velocity(F, mu), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_a_risk_is_known_to_be_neither_convex_nor_enclosed():
    X, y = problem(9, 2, None, "square")
    F = Risk(Residual("tanh"), X, y)
    assert F.mixture_curvature() is None
    with pytest.raises(of.errors.Unsupported, match="not known to be linear"):
        F.decompose()
    mu, box = inside(clouds.uniform(5, 8)), of.optimality.BoxDomain(0, 1)
    gap = of.optimality.optimality_gap(F, mu, box)
    assert gap.kind == "none"
    assert "the outputs of Residual are not known to be linear" in gap.reason


def test_matrices_are_copied_and_of_the_dtype_of_the_measure():
    A = normal(4, 2)
    network = Residual("tanh", embedding=A, readout=normal(4, seed=1))
    A += 1
    assert not torch.equal(network.embedding, A)
    mu = inside(clouds.uniform(5, network.dim(2)))
    X = normal(3, 2)
    with pytest.raises(TypeError, match="nothing is cast silently"):
        network(mu.to(torch.float32), X.float())
    A, R = A - 1, normal(4, seed=1)
    narrow = Residual("tanh", embedding=A.float(), readout=R.float())
    single = narrow(mu.to(torch.float32), X.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), network(mu, X), rtol=1e-4, atol=1e-5)
    assert repr(network).endswith("layers=16, embedding 4 x 2, readout 1 x 4)")
    copied = copy.deepcopy(network)
    assert torch.equal(copied(mu, X), network(mu, X))


# Flows --------------------------------------------------------------------------------


def data(n=40):
    X = torch.linspace(-1, 1, n, dtype=F64)[:, None]
    return X, torch.sin(3 * X[:, 0])


def start(network, M=4, seed=0, scale=1.0):
    D = network.width(1)
    u = scale * normal(network.layers, M, D, seed=seed)
    return network.from_blocks(u, normal(network.layers, M, D + 1, seed=seed + 1))


@pytest.mark.parametrize("times", ["fixed", "free"])
def test_euler_lowers_the_risk(times):
    network = Residual("tanh", layers=6, times=times)
    F = Risk(network, *data())
    run = of.flow(F, start(network), of.ExplicitEuler(), dt=0.1, steps=150)
    assert (run.records["energy"].diff() < 0).all()
    assert run.records["energy"][-1] < 0.2 * run.records["energy"][0]
    moved = run.final.points[:, 0] - start(network).points[:, 0]
    assert bool((moved == 0).all()) == (times == "fixed")


def test_times_that_leave_the_interval_are_reflected():
    network = Residual("tanh", layers=6, times="free")
    F, mu = Risk(network, *data()), start(network, scale=3.0)
    run = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=60)
    assert run.records["energy"][-1] < 0.2 * run.records["energy"][0]
    t = run.final.points[:, 0]
    assert bool(((t < 0) | (t > 1)).any())
    inside = run.final.points.clone()
    inside[:, 0] = torch.minimum(t.abs(), (t - 2).abs())
    nu = of.Particles(inside)
    torch.testing.assert_close(F.value(nu), F.value(run.final), rtol=1e-12, atol=0)


def test_noise_leaves_times_of_mobility_zero():
    network = Residual("tanh", layers=4)
    F = Risk(network, *data()) + 0.01 * of.Entropy()
    scheme = of.schemes.Mobility(of.Langevin(), network.mobility(1, time=0.0))
    mu = start(network)
    end = of.flow(F, mu, scheme, dt=0.05, steps=10, generator=0).final
    assert torch.equal(end.points[:, 0], mu.points[:, 0])
    assert (end.points[:, 1:] != mu.points[:, 1:]).all()


def test_a_jko_step_is_implicit_euler():
    network = Residual("tanh", layers=3, times="free")
    F, mu = Risk(network, *data()), start(network, M=2)
    step = of.flow(F, mu, of.JKO(), dt=0.1, steps=1).final
    torch.testing.assert_close(
        step.points, mu.points + 0.1 * F.velocity(step), rtol=0, atol=1e-5
    )


def test_batches_and_birth_and_death_run():
    network = Residual("tanh", layers=4)
    F = Risk(network, *data(), batch_size=10)
    mu = start(network)
    run = of.flow(
        F, mu, of.schemes.Minibatch(of.ExplicitEuler()), dt=0.1, steps=20, generator=0
    )
    assert torch.isfinite(run.final.points).all()
    scheme = of.chain(of.ExplicitEuler(), of.BirthDeath(rate=1.0))
    run = of.flow(Risk(network, *data()), mu, scheme, dt=0.05, steps=30, generator=0)
    assert run.records["energy"][-1] < run.records["energy"][0]


def test_names_and_shapes():
    network = Residual("relu", layers=3, outputs=2, times="free", solver="rk4")
    assert repr(network) == (
        "Residual('relu', layers=3, outputs=2, times='free', solver='rk4')"
    )
    assert network.mobility(1, time=0.0, inner=0.5) == (0.0, 1, 1, 1, *[0.5] * 4)
    times, outer, inner = network.split(normal(5, network.dim(1)))
    assert (times.shape, outer.shape, inner.shape) == ((5,), (5, 3), (5, 4))
