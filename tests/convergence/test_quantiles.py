"""JKO on quantiles against the exact flow, and against the exact JKO sequence.

The error to the sequence is that of the cells alone, of second order in their number
where the grading suits the density; the error to the flow is that of the step, of
first order in dt.
"""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.analysis import observed_order
from otflow.measures.quantiles.levels import graded_masses
from otflow.proximal import QuantileProximal
from tests import exact
from tests.marks import slow

CELLS = (50, 100, 200)
STEPS = (0.05, 0.025, 0.0125, 0.00625)


def gauss(sigma, n, grading=4.0):
    return of.Quantiles.from_quantile(
        lambda s: sigma * torch.special.ndtri(s),
        n,
        grading=grading,
        dtype=torch.float64,
    )


def cells_of(profile, n, grading):
    # The upper half mirrors the lower one: levels close to 1 have few digits.
    masses, levels = graded_masses(n, grading)
    levels[0] = 0.25 * levels[1] if profile.bell else 0.0
    low = profile.quantile(levels[: n // 2 + 1])
    edges = torch.cat([low, -low[: n - n // 2].flip(0)])
    return of.Quantiles(edges, masses)


def cosine(t, n, height=0.5):
    a = height * math.exp(-(math.pi**2) * t)
    return of.Quantiles.from_function(
        lambda x: 1 + a * (math.pi * x[:, 0]).cos(), 0.0, 1.0, n, dtype=torch.float64
    )


def end(F, mu, dt, time=0.5, solver=None):
    steps = round(time / dt)
    run = of.flow(F, mu, of.JKO(solver), dt=dt, steps=steps, every=steps)
    assert all(info["certified"] for info in run.info)
    return run.final


def distance(mu, nu):
    return float(mu.norm(mu.displacement_to(nu)))


def order_in_time(F, start, expected, solver=None):
    """Return the observed order of the distance to the exact flow at time 1/2."""
    errors = [distance(end(F, start, dt, solver=solver), expected) for dt in STEPS]
    return observed_order(STEPS, errors)


class Breathing:
    """Rows 1, 2: a Gaussian under lam x^2/2 and entropy, by its standard deviation."""

    def __init__(self, sigma, lam, kappa):
        self.sigma, self.lam, self.kappa = sigma, lam, kappa

    def functional(self):
        entropy = self.kappa * of.Entropy()
        return exact.quadratic(self.lam) + entropy if self.lam else entropy

    def start(self, n):
        return gauss(self.sigma, n)

    def flow(self, t, n):
        return gauss(exact.breathing(self.sigma, t, self.kappa, self.lam), n)

    def sequence(self, dt, k, n):
        return gauss(exact.breathing_jko(self.sigma, dt, k, self.kappa, self.lam), n)


class Barenblatt:
    """Rows 4, 5, 6: a Barenblatt profile stays one, in lam x^2/2 too."""

    def __init__(self, m, lam, grading, scale=0.5):
        self.m, self.lam, self.grading, self.scale = m, lam, grading, scale
        self.profile = exact.barenblatt(m, 1, scale)

    def functional(self):
        power = of.PowerEntropy(self.m)
        return exact.quadratic(self.lam) + power if self.lam else power

    def start(self, n):
        return cells_of(self.profile, n, self.grading)

    def flow(self, t, n):
        scale = exact.barenblatt_scale(self.m, 1, self.scale, t, self.lam)
        return cells_of(self.profile.at(scale), n, self.grading)

    def sequence(self, dt, k, n):
        scale = exact.barenblatt_scale_jko(self.m, 1, self.scale, dt, k, self.lam)
        return cells_of(self.profile.at(scale), n, self.grading)


CASES = {
    "heat": Breathing(0.7, 0.0, 1.0),
    "Ornstein-Uhlenbeck": Breathing(1.3, 2.0, 0.5),
    "porous medium 2": Barenblatt(2.0, 0.0, 2.0),
    "porous medium 3": Barenblatt(3.0, 0.0, 2.0),
    "porous medium 2, confined": Barenblatt(2.0, 1.0, 2.0),
    "porous medium 3, confined": Barenblatt(3.0, 1.0, 2.0),
    "fast diffusion": Barenblatt(0.7, 0.0, 6.0),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_cells_converge_at_second_order_to_the_exact_jko_sequence(case):
    dt, k = 0.05, 10
    F = case.functional()
    errors = [
        distance(end(F, case.start(n), dt, dt * k), case.sequence(dt, k, n))
        for n in CELLS
    ]
    assert -observed_order(CELLS, errors) == pytest.approx(2, abs=0.1)
    assert errors[-1] < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_step_converges_at_first_order_to_the_exact_flow(case):
    n = 800
    observed = order_in_time(case.functional(), case.start(n), case.flow(0.5, n))
    assert observed == pytest.approx(1, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        CASES["heat"],
        *slow(CASES["Ornstein-Uhlenbeck"], Barenblatt(2.0, 0.0, 2.0, 1.2)),
    ],
    ids=["heat", "Ornstein-Uhlenbeck", "porous medium 2"],
)
def test_runge_kutta_steps_are_of_order_two_and_three(case):
    # Against the same cells with short steps of order 3: the error of the step alone.
    F, mu, time, steps = case.functional(), case.start(40), 0.5, (0.05, 0.025, 0.0125)

    def end(dt, order):
        k = round(time / dt)
        scheme = of.JKO(order=order)
        return of.flow(F, mu, scheme, dt=dt, steps=k, every=k).final

    reference = end(1 / 320, 3)
    for order in (2, 3):
        errors = [distance(end(dt, order), reference) for dt in steps]
        assert observed_order(steps, errors) == pytest.approx(order, abs=0.1)


@pytest.mark.slow
def test_heat_between_walls():
    """The density 1 + a cos(pi x) on [0, 1] decays like exp(-pi^2 t)."""
    solver, F, time = QuantileProximal(lower=0.0, upper=1.0), of.Entropy(), 0.1
    steps = (0.01, 0.005, 0.0025, 0.00125)
    errors = [
        distance(end(F, cosine(0.0, 400), dt, time, solver), cosine(time, 400))
        for dt in steps
    ]
    assert observed_order(steps, errors) == pytest.approx(1, abs=0.1)
    # At rest the density is uniform, to the last digit.
    rest = end(F, cosine(0.0, 50), 0.5, 5.0, solver)
    torch.testing.assert_close(
        rest.density(), torch.ones_like(rest.weights), rtol=0, atol=1e-7
    )


def test_the_mean_of_fokker_planck_follows_its_own_recursion():
    """The mean: m+ = (m + tau lam b)/(1 + tau lam), exactly, on any cells."""
    lam, b, dt, k = 1.5, 0.7, 0.1, 12
    mu = gauss(1.0, 20, 1.0).push(torch.full((21, 1), -2.0, dtype=torch.float64), 1.0)
    F = exact.quadratic(lam, b) + of.Entropy()
    mean = float(end(F, mu, dt, dt * k).expectation(lambda x: x)[0])
    expected = b + exact.decay_jko(lam, dt, k) * (-2.0 - b)
    assert mean == pytest.approx(expected, rel=1e-11)


def test_two_flows_approach_each_other_at_the_rate_of_the_modulus():
    """W2 contracts by 1/(1 + lam tau), F - F* by its square."""
    lam, dt, k = 1.5, 0.2, 8
    F = exact.quadratic(lam) + of.Entropy()
    one, other = gauss(2.0, 100), gauss(0.4, 100)
    rest = end(F, one, 50.0, 500.0)
    least = float(F.value(rest))
    factor = exact.decay_jko(lam, dt, 1)
    for _ in range(k):
        before = distance(one, other), distance(one, rest), float(F.value(one)) - least
        one, other = end(F, one, dt, dt), end(F, other, dt, dt)
        assert distance(one, other) <= factor * before[0] * (1 + 1e-9)
        assert distance(one, rest) <= factor * before[1] * (1 + 1e-9)
        assert float(F.value(one)) - least <= factor**2 * before[2] * (1 + 1e-6)


class TestLogGas:
    """Rows 7, 7a: the semicircle breathes under x^2/2 - log|x|."""

    radius = 2.2

    def start(self, n):
        return cells_of(exact.semicircle(self.radius), n, 2.0)

    @pytest.mark.slow
    def test_the_cells_converge_to_the_exact_jko_sequence(self):
        dt, k, sizes = 0.1, 4, (15, 30, 60)
        errors = []
        for n in sizes:
            radius = exact.breathing_jko(self.radius, dt, k, kappa=2.0)
            expected = cells_of(exact.semicircle(radius), n, 2.0)
            found = end(exact.dyson(), self.start(n), dt, dt * k)
            errors.append(distance(found, expected))
        assert -observed_order(sizes, errors) > 1.8
        assert errors[-1] < 1e-3

    def test_the_step_converges_at_first_order_to_the_exact_flow(self):
        n, time = 60, 0.4
        radius = exact.breathing(self.radius, time, kappa=2.0)
        expected = cells_of(exact.semicircle(radius), n, 2.0)
        steps = (0.1, 0.05, 0.025)
        errors = [
            distance(end(exact.dyson(), self.start(n), dt, time), expected)
            for dt in steps
        ]
        assert observed_order(steps, errors) == pytest.approx(1, abs=0.1)

    def test_the_confinement_may_be_a_potential(self):
        """The mean is at 0, so that x^2/2 confines as the quadratic kernel does."""
        F, gaps = exact.quadratic() + of.Interaction(of.kernels.Log()), []
        for n in (15, 30):
            mu = self.start(n)
            gaps.append(
                distance(end(F, mu, 0.2, 0.4), end(exact.dyson(), mu, 0.2, 0.4))
            )
        assert gaps[1] < 0.3 * gaps[0] < 0.01


def test_quadratic_attraction_and_entropy():
    """The mean stays, the standard deviation breathes with lam = theta."""
    theta, kappa, dt, k, shift = 1.5, 0.6, 0.1, 6, 0.8
    F = theta * of.Interaction(of.kernels.Quadratic()) + kappa * of.Entropy()
    errors, sizes = [], (20, 40, 80)
    for n in sizes:
        move = torch.full((n + 1, 1), shift, dtype=torch.float64)
        nu = end(F, gauss(1.4, n).push(move, 1.0), dt, dt * k)
        assert float(nu.expectation(lambda x: x)[0]) == pytest.approx(shift, abs=1e-12)
        sigma = exact.breathing_jko(1.4, dt, k, kappa, theta)
        errors.append(distance(nu, gauss(sigma, n).push(move, 1.0)))
    assert -observed_order(sizes, errors) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("chi", [0.5, 1.0])
def test_the_second_moment_of_keller_segel(chi):
    """The moment grows by 2 (1 - chi) dt - W2^2 in every step, on any cells."""
    F = of.Entropy() + (-2 * chi) * of.Interaction(of.kernels.Log())
    mu, dt = gauss(1.0, 24, 2.0), 0.05
    moment = lambda m: float(m.inner(m.edges[:, None], m.edges[:, None]))
    for _ in range(3):
        step = QuantileProximal(tolerance=1e-13).solve(F, mu, dt)
        nu, w2 = step.measure, step.certificate["w2"]
        expected = exact.log_moment_jko(moment(mu), dt, w2, 1, 2 * chi)
        assert moment(nu) == pytest.approx(expected, abs=1e-11)
        mu = nu


@pytest.mark.slow
def test_keller_segel_blows_up_above_the_critical_strength():
    """At chi = 3/2 the moment falls by dt a step, and cannot go below 0."""
    chi, dt = 1.5, 0.02
    F = of.Entropy() + (-2 * chi) * of.Interaction(of.kernels.Log())
    mu = gauss(0.5, 12, 2.0)
    moment = float(mu.inner(mu.edges[:, None], mu.edges[:, None]))
    with pytest.raises(of.errors.Diverged, match="to an atom") as caught:
        of.flow(F, mu, of.JKO(), dt=dt, steps=50)
    steps = len(caught.value.trajectory.info)
    assert 1 <= steps <= moment / dt


class Distance(of.Functional):
    """Half the squared distance to a target: the lumped one, or the exact one."""

    def __init__(self, target, lumped):
        self.target, self.lumped = target, lumped

    def value(self, mu):
        if not self.lumped:
            return 0.5 * of.metrics.wasserstein2_squared(mu, self.target)
        return 0.5 * mu.lumped @ (mu.edges - self.target.edges).square()


def test_half_the_squared_distance_to_a_target():
    """The step goes the share tau/(1 + tau) of the way."""
    dt, k = 0.3, 3
    share = 1 - exact.decay_jko(1.0, dt, k)
    errors, sizes = [], (20, 40, 80)
    for n in sizes:
        mu, nu = gauss(1.0, n, 2.0), cells_of(exact.semicircle(2.0), n, 2.0)
        expected = mu.push(mu.displacement_to(nu), share)
        assert distance(end(Distance(nu, True), mu, dt, dt * k), expected) < 1e-12
        errors.append(distance(end(Distance(nu, False), mu, dt, dt * k), expected))
    # The lumped product and the exact one differ most at the ends.
    assert -observed_order(sizes, errors) > 1
    assert errors[-1] < 1e-3


class TestCrowd:
    """rho <= 1, exact to the cell in which the front lies."""

    @pytest.mark.parametrize("n", [64, 256])
    def test_a_column_falls_on_a_wall(self, n):
        c, dt, k = 0.5, 0.1, 6
        mu = of.Quantiles(torch.linspace(0, 1 / c, n + 1, dtype=torch.float64))
        F = of.Potential(lambda x: x[..., 0], modulus=0.0) + of.Congestion(1.0)
        run = of.flow(F, mu, of.JKO(QuantileProximal(lower=0.0)), dt=dt, steps=k)
        level = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        for i, nu in enumerate(run.snapshots):
            expected = exact.column_quantile(c, i * dt, level)
            assert float((nu.edges - expected).abs().max()) < 1 / n
            self.check(nu, n)
            full, _ = exact.column(c, i * dt)
            front = nu.edges[:-1][nu.density() < 0.75][0]
            assert float(front) == pytest.approx(full, abs=2.1 / n)
        assert all(info["guarantee"] == "exact" for info in run.info)

    @pytest.mark.parametrize("n", [64, 255])
    def test_a_ball_shrinks_until_it_is_full(self, n):
        c, dt, k = 0.5, 0.15, 8
        start = exact.crowded_ball_jko(c, 1, dt, 0)
        mu = cells_of(start, n, 1.0)
        F = exact.quadratic() + of.Congestion(1.0)
        run = of.flow(F, mu, of.JKO(), dt=dt, steps=k)
        full = False
        for i, nu in enumerate(run.snapshots):
            expected = cells_of(exact.crowded_ball_jko(c, 1, dt, i), n, 1.0)
            assert float((nu.edges - expected.edges).abs().max()) < 1e-5
            self.check(nu, n)
            full = full or float(nu.edges[-1]) < 0.5 + 1e-5
        assert full
        # Against the flow: the front is ahead of the step's by less than a step.
        radius = exact.crowded_ball(c, 1, 2 * dt).scale
        assert float(run.snapshots[2].edges[-1]) == pytest.approx(radius, abs=0.04)

    @staticmethod
    def check(nu, n):
        assert float(nu.density().max()) <= 1 + 1e-9
        assert float(nu.weights.sum()) == pytest.approx(1, abs=1e-10)
        assert nu.n == n
