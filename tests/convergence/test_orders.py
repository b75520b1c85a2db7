"""Observed orders in dt and in the number of particles, each against a closed form."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.analysis import exponential_rate, observed_order
from otflow.testing import clouds
from tests import exact

STEPS = (0.1, 0.05, 0.025, 0.0125)


def end(F, mu, scheme, dt, time=1.0, **options):
    """Return the measure at a time."""
    steps = round(time / dt)
    return of.flow(F, mu, scheme, dt=dt, steps=steps, every=steps, **options).final


def slope(errors):
    return observed_order(STEPS, errors)


# Explicit Euler -----------------------------------------------------------------------


def test_euler_on_a_quadratic_potential():
    mu, lam = clouds.weighted(), 1.5
    expected = exact.decay(lam, 1.0) * mu.points
    errors = [
        float(
            (end(exact.quadratic(lam), mu, of.ExplicitEuler(), dt).points - expected)
            .abs()
            .max()
        )
        for dt in STEPS
    ]
    assert slope(errors) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("c", [0.3, 0.9])
def test_euler_on_the_dyson_gas(c):
    n = 10
    expected = exact.breathing(c, 1.0, kappa=1 / n)
    zeros = exact.hermite_zeros(n)
    errors = []
    for dt in STEPS:
        x = end(exact.dyson(), exact.hermite(n, c), of.ExplicitEuler(), dt).points[:, 0]
        errors.append(float((x - expected * zeros).abs().max()))
    assert slope(errors) == pytest.approx(1, abs=0.1)


def test_euler_on_a_quadratic_interaction():
    mu = clouds.weighted(9, 3)
    F = of.Interaction(of.kernels.Quadratic())
    mean = mu.weights @ mu.points
    expected = mean + exact.decay(1.0, 1.0) * (mu.points - mean)
    errors = []
    for dt in STEPS:
        nu = end(F, mu, of.ExplicitEuler(), dt)
        torch.testing.assert_close(nu.weights @ nu.points, mean, rtol=0, atol=1e-13)
        errors.append(float((nu.points - expected).abs().max()))
    assert slope(errors) == pytest.approx(1, abs=0.1)


class Heun(of.schemes.Scheme):
    """Two stages written with `push` and `displacement_to` alone."""

    order = 2

    def step(self, F, mu, dt, state, generator):
        first = mu.push(F.velocity(mu), dt)
        second = first.push(F.velocity(first), dt)
        return of.schemes.Step(mu.push(mu.displacement_to(second), 0.5), state)


def test_a_scheme_of_the_user_reaches_order_two():
    n, c = 10, 0.9
    expected = exact.breathing(c, 1.0, kappa=1 / n) * exact.hermite_zeros(n)
    errors = []
    for dt in STEPS:
        x = end(exact.dyson(), exact.hermite(n, c), Heun(), dt).points[:, 0]
        errors.append(float((x - expected).abs().max()))
    assert slope(errors) == pytest.approx(2, abs=0.1)
    assert of.schemes.Minibatch(Heun()).order == 2


# Langevin: weak order -----------------------------------------------------------------


def test_langevin_has_weak_order_one():
    # With the law of the step known exactly, sampling does not blur the order: the
    # second moment of the scheme is compared with that of the diffusion. That the
    # scheme has that law is asserted in tests/schemes/test_langevin.py.
    args = {"lam": 1.0, "temperature": 0.5}
    expected = exact.ornstein_uhlenbeck(2.0, 0.1, 1.0, **args)
    errors = []
    for dt in STEPS:
        mean, variance = exact.langevin_moments(2.0, 0.1, dt, round(1 / dt), **args)
        errors.append(abs(mean**2 + variance - expected[0] ** 2 - expected[1]))
    assert slope(errors) == pytest.approx(1, abs=0.1)


def test_langevin_has_weak_order_one_on_common_noise():
    # An antithetic pair of Brownian paths, refined: coarse steps see sums of the fine
    # noise, so that differences between steps are not buried in sampling error. The
    # potential is not quadratic; the reference is a step eight times finer.
    n, fine, time = 20_000, 1 / 320, 1.0
    half = torch.Generator().manual_seed(0)
    noise = torch.randn(
        round(time / fine), n // 2, 1, generator=half, dtype=torch.float64
    )
    noise = torch.cat([noise, -noise], 1)
    V = lambda x: x.square().sum(-1) + x.square().sum(-1).square() / 4
    F = of.Potential(V)
    mu = of.Particles(torch.full((n, 1), 1.0, dtype=torch.float64))

    def moment(dt):
        """Return E x^2 at the end of the scheme driven by the common path."""
        ratio = round(dt / fine)
        scheme, increments = Driven(noise, ratio), round(time / dt)
        run = of.flow(F, mu, scheme, dt=dt, steps=increments, every=increments)
        return float(run.final.points.square().mean())

    steps = (1 / 10, 1 / 20, 1 / 40)
    reference = moment(fine)
    errors = [abs(moment(dt) - reference) for dt in steps]
    # The reference has the error of its own step, of the same sign.
    excess = [dt - fine for dt in steps]
    assert observed_order(excess, errors) == pytest.approx(1, abs=0.1)


class Driven(of.schemes.Scheme):
    """Langevin at temperature 1/2 whose noise is handed in: step k takes its share."""

    def __init__(self, noise, ratio):
        self.noise, self.ratio = noise, ratio

    def init(self, F, mu):
        return 0

    def step(self, F, mu, dt, state, generator):
        share = self.noise[state * self.ratio : (state + 1) * self.ratio].sum(0)
        moved = mu.push(F.velocity(mu), dt).push(share, math.sqrt(dt / self.ratio))
        return of.schemes.Step(moved, state + 1)


def test_langevin_finds_the_stationary_law_of_the_linear_quadratic_model():
    # E|x - m|^2 k/2 and confinement lam: mean k m/(k + lam); the variance of a particle
    # at rest is T/lam, and T/(lam (1 - h lam/2)) for steps of length h.
    k, m, lam, beta, h = 3.0, 2.0, 0.5, 2.0, 0.02
    F: of.Functional = of.OfExpectation(
        lambda e: 0.5 * k * (e[0] - m) ** 2, lambda x: x
    )
    F = F + exact.quadratic(lam) + (1 / beta) * of.Entropy()
    n = 4000
    mu = of.Particles(torch.zeros(n, 1, dtype=torch.float64))
    run = of.flow(F, mu, of.Langevin(), dt=h, steps=1000, every=10, generator=0)
    late = [nu.points for nu in run.snapshots[50:]]
    mean = float(torch.stack([x.mean() for x in late]).mean())
    variance = float(torch.stack([x.var() for x in late]).mean())
    assert mean == pytest.approx(k * m / (k + lam), abs=0.01)
    rest = exact.langevin_moments(0, 0, h, 10_000, lam=lam, temperature=1 / beta)[1]
    assert variance == pytest.approx(rest, rel=0.02)


# Splitting ----------------------------------------------------------------------------


def test_transport_and_birth_death_split_at_order_one():
    lam, mu = 1.5, clouds.weighted()
    dose = (1 - exact.decay(2 * lam, 1.0)) / (2 * lam)
    V = 0.5 * lam * mu.points.square().sum(-1)
    masses = exact.tilted(mu.weights, V, dose)
    scheme = of.chain(of.ExplicitEuler(), of.BirthDeath())
    errors = [
        float((end(exact.quadratic(lam), mu, scheme, dt).weights - masses).abs().max())
        for dt in STEPS
    ]
    assert slope(errors) == pytest.approx(1, abs=0.1)


# Rates in time ------------------------------------------------------------------------


def test_a_convex_energy_falls_at_the_rate_of_its_modulus():
    lam, dt = 0.7, 0.01
    run = of.flow(
        exact.quadratic(lam), clouds.weighted(), of.ExplicitEuler(), dt=dt, steps=300
    )
    rate = exponential_rate(run.times, run.records["energy"])
    expected = -2 * math.log(1 - lam * dt) / dt
    assert rate == pytest.approx(expected, rel=1e-9)
    assert rate == pytest.approx(2 * lam, rel=0.01)


def test_the_dyson_gas_relaxes_to_its_least_energy():
    n = 10
    run = of.flow(
        exact.dyson(), exact.hermite(n, 0.9), of.ExplicitEuler(), dt=0.01, steps=600
    )
    least = exact.dyson_energy(n, 1 / math.sqrt(n))
    assert float(run.records["energy"][-1]) == pytest.approx(least, rel=1e-9)
    rate = exponential_rate(
        run.times[200:400], run.records["energy"][200:400], limit=least
    )
    # c - c* decays like exp(-2t), and the energy is quadratic in it.
    assert rate == pytest.approx(4, rel=0.03)


# Number of particles ------------------------------------------------------------------


def test_a_disk_breathes_in_the_limit_of_many_particles():
    time, dt, start = 0.5, 0.01, 0.6
    expected = exact.breathing(start, time, kappa=1.0)
    errors = []
    sizes = (100, 200, 400)
    for n in sizes:
        nu = end(exact.dyson(), exact.disk(n, start), of.ExplicitEuler(), dt, time)
        # Of n points the force is that of n - 1 others: kappa = 1 - 1/n for the second
        # moment, whose own equation is closed and exact.
        radius = math.sqrt(2 * float(nu.points.square().sum(1).mean()))
        errors.append(abs(radius - exact.breathing_euler(start, dt, 50, kappa=1.0)))
        finite = exact.breathing(start, time, kappa=1 - 1 / n)
        assert radius == pytest.approx(finite, rel=0.005)
    assert observed_order(sizes, errors) == pytest.approx(-1, abs=0.1)
    assert errors[-1] < 0.01 * expected


def test_the_spectrum_of_the_dyson_gas_tends_to_the_semicircle():
    errors = []
    sizes = (50, 100, 200)
    for n in sizes:
        x = exact.hermite(n, 1 / math.sqrt(n)).points[:, 0]
        assert (
            float(
                exact.dyson().velocity(exact.hermite(n, 1 / math.sqrt(n))).abs().max()
            )
            < 1e-10
        )
        # Of a semicircle of radius r = sqrt 2: second moment r^2/4, fourth r^4/8.
        errors.append(abs(float(x.square().mean()) - 0.5))
        assert abs(float(x.pow(4).mean()) - 0.5) < 2 / n
    assert observed_order(sizes, errors) == pytest.approx(-1, abs=0.05)
