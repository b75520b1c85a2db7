"""Measures of free mass as laws of root and place."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.functionals import Lifted
from otflow.measures import ConicParticles
from otflow.testing import (
    ExchangeableContract,
    FunctionalContract,
    SchemeContract,
    clouds,
)
from otflow.testing.clouds import normal
from tests import exact

F64 = torch.float64


def cone(n=6, d=2, *, dtype=F64, signed=False, weighted=False, alpha=0.7, beta=1.9):
    roots = normal(n, seed=3).exp()
    if signed:
        roots[::2] *= -1
    x = torch.cat([roots[:, None], normal(n, d, seed=4)], 1).to(dtype)
    weights = clouds.weighted(n, d, dtype=dtype).weights if weighted else None
    return ConicParticles(x, weights, alpha=alpha, beta=beta)


class ConicContract(ExchangeableContract):
    capabilities = frozenset({"mass_gradient", "reweight", "sample"})

    def permuted(self, mu, order):
        return ConicParticles(
            mu.points[order], mu.weights[order], alpha=mu.alpha, beta=mu.beta
        )


class TestPositive(ConicContract):
    def make(self, dtype=F64):
        return cone(dtype=dtype)


class TestSigned(ConicContract):
    def make(self, dtype=F64):
        return cone(7, 1, dtype=dtype, signed=True, weighted=True)


class LiftedContract(FunctionalContract):
    dim = 3


class TestLiftedPotential(LiftedContract):
    def make(self, dtype=F64):
        V = of.Potential(lambda x: x.square().sum(-1).sin())
        return Lifted(V, 0.5)


class TestLiftedInteraction(LiftedContract):
    def make(self, dtype=F64):
        return Lifted(of.Interaction(of.kernels.Gaussian(1.0)), signed=True)


class TestConicEuler(SchemeContract):
    """The mass of an atom under a constant potential decays exactly."""

    def make(self):
        return of.ExplicitEuler()

    def problem(self, dtype=F64):
        V = of.Potential(lambda x: (x.square().sum(-1) + 1).sqrt())
        return Lifted(V, 0.3), cone(dtype=dtype)

    def error(self, dt):
        # V = |x|^2 / 2 moves x by exp(-beta t), and masses by
        # exp(-4 alpha int V) with V(t) = V(0) exp(-2 beta t).
        mu, F = cone(), Lifted(exact.quadratic())
        run = of.flow(F, mu, self.make(), dt=dt, steps=round(1 / dt))
        dose = (1 - math.exp(-2 * mu.beta)) / (2 * mu.beta)
        V = 0.5 * mu.places.square().sum(-1)
        masses = mu.masses * torch.exp(-4 * mu.alpha * V * dose)
        places = mu.places * math.exp(-mu.beta)
        end = run.final
        return float((end.masses - masses).norm() + (end.places - places).norm())


class TestConicJKO(TestConicEuler):
    solves = True
    diverges = False
    steps = ()

    def make(self):
        return of.JKO()


def test_the_masses_and_the_places_are_those_of_the_measure():
    places, masses = normal(5, 2), torch.tensor([1.0, -2, 0.3, 7, -0.1], dtype=F64)
    mu = ConicParticles.of_masses(places, masses)
    torch.testing.assert_close(mu.masses, masses)
    assert torch.equal(mu.places, places)
    nu = Lifted(of.Potential(lambda x: x[:, 0]), signed=True).projected(mu)
    torch.testing.assert_close(nu.weights, masses)
    assert torch.equal(nu.points, places)
    positive = Lifted(of.Potential(lambda x: x[:, 0])).projected(mu)
    torch.testing.assert_close(positive.weights, masses.abs())


@pytest.mark.parametrize("signed", [False, True])
def test_values_and_velocities_are_those_of_the_formulas(signed):
    mu, lam = cone(signed=signed, weighted=True), 0.4
    X, y = normal(20, 1, seed=1), normal(20, seed=2)
    layer = of.meanfield.CustomLayer(lambda X, x: torch.tanh(X * x[:, 0] + x[:, 1]))
    risk = of.meanfield.Risk(layer, X, y)
    F = Lifted(risk, lam, signed=signed)
    r, x = mu.points[:, 0], mu.places
    f = layer.sigma(X, x) @ mu.masses
    plain = 0.5 * (f - y).square().mean() + lam * mu.masses.abs().sum()
    torch.testing.assert_close(F.value(mu), plain)
    nu = F.projected(mu)
    variation, sign = risk.first_variation(nu), r.sign()
    torch.testing.assert_close(
        F.first_variation(mu), r * r.abs() * variation + lam * r.square()
    )
    at = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(risk.first_variation(nu, at).sum(), at)
    velocity = F.velocity(mu)
    torch.testing.assert_close(velocity[:, 0], -2 * mu.alpha * (sign * variation + lam))
    torch.testing.assert_close(velocity[:, 1:], -mu.beta * sign[:, None] * slope)


def test_the_energy_falls_at_the_conic_speed_and_masses_are_free():
    mu = cone(weighted=True)
    F = Lifted(of.Interaction(of.kernels.Gaussian(1.0)) + exact.quadratic(), 0.2)
    v = F.velocity(mu)
    t = torch.zeros((), dtype=F64, requires_grad=True)
    r = mu.points[:, 0] * torch.exp(t * v[:, 0])
    points = torch.cat([r[:, None], mu.places + t * v[:, 1:]], 1)
    (slope,) = torch.autograd.grad(F.value(mu.law.with_free_atoms(points)), t)
    torch.testing.assert_close(slope, -mu.inner(v, v), rtol=1e-12, atol=0)
    run = of.flow(F, mu, of.ExplicitEuler(), dt=0.01, steps=50)
    total = [float(nu.masses.sum()) for nu in run.snapshots]
    assert total[-1] < 0.9 * total[0]


def test_signs_never_change_and_small_roots_stop():
    for dtype, least in ((F64, 1e-140), (torch.float32, 1e-14)):
        mu = cone(dtype=dtype, signed=True)
        steep = Lifted(of.Potential(lambda x: 30 + 0 * x[:, 0]), 40.0, signed=True)
        run = of.flow(steep, mu, of.ExplicitEuler(), dt=1.0, steps=40, every=40)
        r = run.final.points[:, 0]
        assert torch.equal(r.sign(), mu.points[:, 0].sign())
        assert bool(torch.isfinite(steep.velocity(run.final)).all())
        assert float(r.abs().max()) < 1
        mu = cone(dtype=dtype)
        flat = Lifted(of.Potential(lambda x: 200.0 * (x[:, 0] > 0) + 0 * x[:, 1]))
        end = of.flow(flat, mu, of.ExplicitEuler(), dt=1.0, steps=4).final
        gone = mu.places[:, 0] > 0
        assert bool((end.points[gone, 0].abs() == least).all())
        assert torch.equal(end.points[~gone, 0], mu.points[~gone, 0])


def test_jko_follows_the_exact_decay_of_a_mass():
    # Along g the step minimises r^2 e^(2g) c w + w r^2 g^2 / (2 alpha dt).
    mu, c, dt = (
        ConicParticles(torch.tensor([[2.0, 0.0]], dtype=F64), alpha=0.5),
        1.5,
        0.2,
    )
    F = Lifted(of.Potential(lambda x: c + 0 * x[:, 0]))
    end = of.flow(
        F, mu, of.JKO(of.proximal.TangentProximal(tolerance=1e-10)), dt=dt, steps=1
    )
    g = 0.0
    for _ in range(50):
        g -= (2 * c * math.exp(2 * g) + g / (0.5 * dt)) / (4 * c * math.exp(2 * g) + 10)
    assert float(end.final.points[0, 0]) == pytest.approx(2 * math.exp(g), rel=1e-8)
    assert end.info[0].converged


def test_in_the_flat_metric_of_root_and_place_jko_is_that_of_particles():
    law = cone(5, 1).law
    F = Lifted(exact.quadratic() + of.Interaction(of.kernels.Gaussian(1.0)), 0.1)
    run = of.flow(F, law, of.JKO(), dt=0.02, steps=5)
    assert run.converged
    assert bool((run.records["energy"].diff() < 0).all())


@pytest.mark.parametrize("scaling", ["mean-field", "ntk", "sum"])
def test_atoms_of_both_signs_count_in_the_scaling_of_a_network(scaling):
    X, y, x = normal(10, 2, seed=1), normal(10, seed=2), normal(4, 4, seed=3)
    masses = torch.tensor([1.0, -2.0, 0.5, -1.0], dtype=F64)
    risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh", scaling=scaling), X, y)
    factor = {"mean-field": 1, "ntk": 2, "sum": 4}[scaling]
    f = factor * torch.tanh(X @ x[:, 1:3].T + x[:, 3]) @ (masses * x[:, 0])
    value = Lifted(risk, signed=True).value(ConicParticles.of_masses(x, masses))
    torch.testing.assert_close(value, 0.5 * (f - y).square().mean())


class Twice(Lifted):
    def value(self, mu):
        return 2 * super().value(mu)


def test_a_subclass_draws_what_its_own_value_says():
    X, y = normal(12, 2, seed=1), normal(12, seed=2)
    layer = of.meanfield.CustomLayer(lambda X, x: torch.tanh(X @ x.T))
    risk = of.meanfield.Risk(layer, X, y, batch_size=4)
    mu, g = cone(), torch.Generator()
    draws = [kind(risk, 0.3).resample(g.manual_seed(5)) for kind in (Twice, Lifted)]
    twice, once = (float(F.value(mu)) for F in draws)
    assert twice == pytest.approx(2 * once, rel=1e-14)
    assert once != pytest.approx(float(Lifted(risk, 0.3).value(mu)), rel=1e-3)
    assert repr(draws[0]).startswith("Twice(")


def kernel_distance(k, y, masses):
    """Return half a squared kernel distance, up to a constant, for any masses."""

    def pull(x):
        return -(k(x[:, None] - y) @ masses)

    return of.Interaction(k) + of.Potential(pull)


def test_masses_are_those_of_the_target_only_without_a_price_of_mass():
    """`MMDTo` spreads its constant over the mass, which moves the minimum."""
    k, y = of.kernels.Gaussian(1.0), torch.tensor([[0.0], [1.5]], dtype=F64)
    masses = torch.tensor([0.7, 1.9], dtype=F64)
    mu = ConicParticles.of_masses(y, masses)
    F = Lifted(kernel_distance(k, y, masses))
    assert float(F.velocity(mu).abs().max()) < 1e-14
    constant = 0.5 * masses @ k(y[:, None] - y) @ masses
    assert abs(float(F.value(mu) + constant)) < 1e-14
    nu = of.Particles(y)
    for distance in (
        of.MMDTo(nu, k),
        of.EnergyDistanceTo(nu),
        of.SlicedWassersteinTo(nu),
        of.functionals.SquaredDistanceTo(nu),
        of.SinkhornDivergenceTo(nu, blur=1.0),
    ):
        for inside in (distance, 2 * distance, F.functional + 0.5 * distance):
            with pytest.raises(of.errors.Unsupported, match="between probabilities"):
                Lifted(inside)


def test_a_mixture_has_one_metric():
    mu, nu = cone(), cone(alpha=0.1)
    with pytest.raises(ValueError, match=r"mobilities 0\.7, 1\.9 and 0\.1, 1\.9"):
        mu.mix(nu, 0.5)
    assert mu.mix(cone(4), 0.5).alpha == mu.alpha


def test_it_may_be_chained_with_birth_and_death():
    mu = cone(weighted=True)
    F = Lifted(of.Interaction(of.kernels.Gaussian(1.0)) + exact.quadratic(), 0.2)
    scheme = of.chain(of.ExplicitEuler(), of.BirthDeath(2.0))
    run = of.flow(F, mu, scheme, dt=0.01, steps=30)
    assert bool((run.records["energy"].diff() < 0).all())
    assert not torch.equal(run.final.weights, mu.weights)


def test_a_run_is_kept_and_goes_on(tmp_path):
    mu, F = cone(), Lifted(exact.quadratic(), 0.2)
    whole = of.flow(F, mu, of.ExplicitEuler(), dt=0.05, steps=6)
    part = of.flow(F, mu, of.ExplicitEuler(), dt=0.05, steps=3)
    of.save(tmp_path / "run", part)
    kept = of.load(tmp_path / "run")
    end = of.flow(F, kept.final, of.ExplicitEuler(), dt=0.05, steps=3, resume=kept)
    assert torch.equal(end.final.points, whole.final.points)
    assert end.final.alpha == mu.alpha
    single = mu.to(torch.float32)
    assert single.dtype == torch.float32
    assert single.masses.dtype == torch.float32


# Sparse deconvolution (Chizat 2022, section 5) ----------------------------------------

MODES = torch.cartesian_prod(*[torch.arange(-2, 3, dtype=F64)] * 2)
ROWS = torch.cat(
    [
        torch.cat([MODES, torch.full((25, 1), phase, dtype=F64)], 1)
        for phase in (0.0, math.pi / 2)
    ]
)
SPIKES = math.pi + torch.tensor([[0, 0], [1.7, -0.3], [0.7, 1.3]], dtype=F64)
MASSES = torch.tensor([1.1, 0.8, 1.0], dtype=F64).square()


def wave(rows, x):
    """Return features whose mean over rows is the Dirichlet kernel of 25 modes."""
    return math.sqrt(len(rows)) * torch.cos(rows[:, :2] @ x.T - rows[:, 2:])


def deconvolution(lam):
    layer = of.meanfield.CustomLayer(wave)
    return Lifted(of.meanfield.Risk(layer, ROWS, wave(ROWS, SPIKES) @ MASSES), lam)


def lattice():
    side = torch.linspace(math.pi / 10, 2 * math.pi - math.pi / 10, 10, dtype=F64)
    x = torch.cartesian_prod(side, side)
    roots = torch.full((100, 1), 0.5, dtype=F64)
    return ConicParticles(torch.cat([roots, x], 1), alpha=0.01, beta=0.01)


def dirichlet(z):
    return torch.cos(z @ MODES.T).sum(-1)


def test_a_step_is_that_of_the_paper_up_to_round_off():
    lam, mu = 1.0, lattice()
    run = of.flow(
        deconvolution(lam), mu, of.ExplicitEuler(), dt=1.0, steps=30, every=30
    )
    r, x = mu.points[:, 0], mu.places

    def slope(z):
        return -(torch.sin(z @ MODES.T) @ MODES)

    for _ in range(30):
        a, near, far = r.square() / 100, x[:, None] - x, x[:, None] - SPIKES
        at_r = dirichlet(near) @ a - dirichlet(far) @ MASSES + lam
        at_x = torch.einsum("ijd,j->id", slope(near), a)
        at_x = at_x - torch.einsum("ijd,j->id", slope(far), MASSES)
        r, x = r * torch.exp(-0.02 * at_r), x - 0.01 * at_x
    torch.testing.assert_close(run.final.points[:, 0], r, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(run.final.places, x, rtol=1e-11, atol=1e-13)


def least_value(lam):
    """Return the minimum, by Newton's method on three spikes; a lattice proves it."""
    F = deconvolution(lam)

    def value(z):
        points = torch.cat([z[:3, None], z[3:].reshape(3, 2)], 1)
        return F.value(of.Particles(SPIKES).with_free_atoms(points))

    z = torch.cat([(3 * MASSES).sqrt(), SPIKES.flatten()])
    for _ in range(30):
        H = torch.autograd.functional.hessian(value, z)
        (g,) = torch.autograd.grad(value(at := z.clone().requires_grad_()), at)
        z = z - torch.linalg.solve(H, g)
    nu = F.projected(of.Particles(torch.cat([z[:3, None], z[3:].reshape(3, 2)], 1)))
    side = torch.linspace(0, 2 * math.pi, 300, dtype=F64)
    eta = F.functional.first_variation(nu, torch.cartesian_prod(side, side)) + lam
    assert float(eta.min()) > -1e-12  # no mass anywhere would lower F
    return float(value(z))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lam", "between"),
    [(0.0, (8e-4, 2e-3)), (1.0, (6e-5, 1.2e-4)), (4.0, (5e-12, 3e-11))],
)
def test_sparse_spikes_are_found_at_a_linear_rate_with_a_penalty(lam, between):
    run = of.flow(
        deconvolution(lam), lattice(), of.ExplicitEuler(), dt=1.0, steps=2000, every=500
    )
    least = least_value(lam) if lam else 0.0
    gaps = (run.records["energy"] - least).tolist()
    assert between[0] < gaps[2] < between[1]
    if lam == 0:  # without the penalty the rate is sublinear
        assert gaps[4] > 0.2 * gaps[2]
    else:
        assert gaps[4] < max(2e-2 * gaps[2], 1e-13)
        heavy = run.final.masses > 1e-3 * run.final.masses.max()
        # Places count up to periods.
        turn = 2 * math.sin(0.1)
        circle = lambda x: torch.cat([x.cos(), x.sin()], -1)
        apart = circle(run.final.places[heavy])[:, None] - circle(SPIKES)
        assert float(apart.norm(dim=-1).min(1).values.max()) < turn
