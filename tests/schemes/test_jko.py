"""The JKO scheme as a scheme: the inherited laws, and exact sequences of steps."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.testing import SchemeContract, clouds
from tests import exact


class TestJKO(SchemeContract):
    solves = True
    diverges = False

    def make(self):
        return of.JKO()

    def problem(self, dtype=torch.float64):
        # No degenerate minimum: the kernel is wider than the bowl is curved.
        F: of.Functional = of.Potential(
            lambda x: (x.square().sum(-1) + 1).sqrt(), modulus=0.0
        )
        F = F + of.Interaction(of.kernels.Gaussian(1.5))
        return F, clouds.uniform(7, 2, dtype=dtype)

    def error(self, dt):
        n, c, steps = 8, 0.9, round(1 / dt)
        run = of.flow(
            exact.dyson(),
            exact.hermite(n, c),
            self.make(),
            dt=dt,
            steps=steps,
            every=steps,
        )
        expected = exact.breathing(c, 1.0, kappa=1 / n) * exact.hermite_zeros(n)
        return float((run.final.points[:, 0] - expected).abs().max())


@pytest.mark.parametrize("tau", [0.05, 1.0, 20.0])
def test_the_dyson_gas_follows_its_exact_sequence(tau):
    n, c, k = 10, 0.9, 6
    scheme = of.JKO(of.proximal.ParticleProximal(tolerance=1e-7))
    run = of.flow(exact.dyson(), exact.hermite(n, c), scheme, dt=tau, steps=k)
    for step, nu in enumerate(run.snapshots):
        scale = exact.breathing_jko(c, tau, step, kappa=1 / n)
        expected = scale * exact.hermite_zeros(n)
        torch.testing.assert_close(nu.points[:, 0], expected, rtol=0, atol=2e-6)
        energy = exact.dyson_energy(n, scale)
        assert float(run.records["energy"][step]) == pytest.approx(energy, rel=1e-6)


@pytest.mark.parametrize("make", [clouds.uniform, clouds.weighted])
@pytest.mark.parametrize(("lam", "tau"), [(1.0, 0.3), (0.2, 40.0), (-0.5, 0.5)])
def test_a_quadratic_potential_is_exact_for_the_scheme(make, lam, tau):
    mu, k = make(), 5
    run = of.flow(exact.quadratic(lam), mu, of.JKO(), dt=tau, steps=k)
    factor = exact.decay_jko(lam, tau, k)
    torch.testing.assert_close(
        run.final.points, factor * mu.points, rtol=0, atol=1e-6 * max(factor, 1.0)
    )


def test_the_certificate_s_distance_is_w2():
    F = of.Interaction(of.kernels.PowerLaw(4, 2))
    run = of.flow(F, clouds.uniform(9, 2), of.JKO(), dt=0.3, steps=4)
    for info, mu, nu in zip(
        run.info, run.snapshots[:-1], run.snapshots[1:], strict=True
    ):
        w2 = float(of.metrics.wasserstein2(mu, nu))
        assert info["w2"] == pytest.approx(w2, rel=1e-8)
        assert info["certified"]


def test_convergence_to_the_minimiser_is_at_least_linear():
    # W2(mu_k, mu*) <= (1 + lam tau)^-k W2(mu_0, mu*) for a lam-convex energy.
    lam, tau, k = 0.5, 0.4, 8
    F = exact.quadratic(lam) + of.Potential(
        lambda x: x.square().sum(-1).square(), modulus=0.0
    )
    mu = clouds.uniform()
    run = of.flow(F, mu, of.JKO(), dt=tau, steps=k)
    start = math.sqrt(float(mu.points.square().sum(-1).mean()))
    for step, nu in enumerate(run.snapshots):
        distance = math.sqrt(float(nu.points.square().sum(-1).mean()))
        assert distance <= exact.decay_jko(lam, tau, step) * start * (1 + 1e-9)


def test_two_atoms_are_found():
    F = of.Interaction(of.kernels.PowerLaw(4, 2))
    mu = of.Particles(torch.tensor([[-0.1], [0.1]], dtype=torch.float64))
    run = of.flow(F, mu, of.JKO(), dt=5.0, steps=30)
    torch.testing.assert_close(run.final.points, exact.TWO_ATOMS, rtol=0, atol=1e-5)
    energy = float(run.records["energy"][-1])
    assert energy == pytest.approx(exact.TWO_ATOMS_ENERGY, abs=1e-9)


def test_entropy_on_particles_is_refused_with_the_cure():
    F = exact.quadratic() + of.Entropy()
    with pytest.raises(of.errors.Unsupported, match=r"with Langevin\(\)"):
        of.flow(F, clouds.uniform(), of.JKO(), dt=0.1, steps=1)


def test_what_is_no_solver_is_refused():
    with pytest.raises(TypeError, match=r"write ParticleProximal\(\)$"):
        of.JKO(of.proximal.ParticleProximal)
    with pytest.raises(TypeError, match=r"^solver must be a ProximalSolver, got 3"):
        of.JKO(3)


def test_info_names_the_solver():
    bell = lambda x: torch.exp(-2 * x.square().sum(-1))
    mu = of.GridDensity.from_function(bell, -4.0, 4.0, 40, dtype=torch.float64)
    bowl = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    names = {
        of.flow(F, mu, of.JKO(order=order), dt=0.1, steps=1).info[0]["solver"]
        for F, order in ((bowl + of.Entropy(), 1), (bowl + of.Entropy(), 2))
    }
    assert names == {"GridSinkhorn"}
    (info,) = of.flow(bowl + of.Congestion(2.0), mu, of.JKO(), dt=0.1, steps=1).info
    assert info["solver"] == "BackAndForth"
