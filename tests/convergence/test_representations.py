"""The same physics on two representations: means, variances and energies agree.

Each is compared with the exact solution of the scheme, so what is left is the error in
space; its size is stated, and that it shrinks at the expected rate.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import otflow as of
from otflow.analysis import observed_order
from tests import exact

F64: dict[str, Any] = {"dtype": torch.float64}


def moments(mu):
    """Return the mean and the covariance of a measure."""
    mean = mu.expectation(lambda x: x)
    return mean, (mu.points - mean).T @ (mu.weights[:, None] * (mu.points - mean))


def flow(F, mu, dt, steps, scheme=None):
    """Return the measure after some steps, of JKO by default."""
    scheme = of.JKO() if scheme is None else scheme
    run = of.flow(F, mu, scheme, dt=dt, steps=steps, every=steps, generator=0)
    assert all(info.get("converged", True) for info in run.info)
    return run.final


def errors(F, mu, dt, steps, mean, covariance, energy):
    """Return the errors in mean, variance and energy after some JKO steps."""
    nu = flow(F, mu, dt, steps)
    m, S = moments(nu)
    return (
        float((m - mean).norm()),
        float((S - covariance).norm()),
        abs(float(F.value(nu)) - energy),
    )


# Fokker-Planck on the line ------------------------------------------------------------

LINE: dict[str, Any] = {"A": 2 * torch.eye(1, **F64), "b": torch.tensor([0.5], **F64)}
LINE["temperature"] = 0.3
START = torch.tensor([-0.4], **F64), torch.tensor([[0.04]], **F64)
FOKKER_PLANCK = exact.quadratic(2.0, 0.5) + 0.3 * of.Entropy()
DT, STEPS = 0.05, 8


def on_grid(n):
    cells = exact.gaussian_cells(START[0], START[1].diagonal(), -2.5, 2.5, (n,))
    return of.GridDensity(cells, -2.5, 2.5, normalize=True)


def on_quantiles(n):
    return of.Quantiles.from_quantile(
        lambda s: START[0] + 0.2 * torch.special.ndtri(s), n, **F64
    )


@pytest.fixture(scope="module")
def expected():
    """Return mean, covariance and energy of the exact JKO sequence."""
    m, S = exact.fokker_planck_jko(*START, DT, STEPS, **LINE)
    return m, S, exact.fokker_planck_energy(m, S, **LINE)


def test_the_gaussian_is_exact(expected):
    found = errors(FOKKER_PLANCK, of.Gaussian(*START), DT, STEPS, *expected)
    assert max(found) < 1e-11


def test_quantiles_are_of_first_order_in_the_masses(expected):
    """The tails beyond the last quantile are cut; the mean is exact by symmetry."""
    sizes = (100, 400, 1600)
    found = [
        errors(FOKKER_PLANCK, on_quantiles(n), DT, STEPS, *expected) for n in sizes
    ]
    assert max(mean for mean, _, _ in found) < 1e-12
    for k, largest in ((1, 3e-5), (2, 2e-4)):
        size = [e[k] for e in found]
        assert size[-1] < largest
        order = observed_order([1 / n for n in sizes], size)
        assert order == pytest.approx(1, abs=0.15)


def test_a_grid_is_of_second_order_in_the_spacing(expected):
    sizes = (50, 100, 200)
    found = [errors(FOKKER_PLANCK, on_grid(n), DT, STEPS, *expected) for n in sizes]
    assert max(mean for mean, _, _ in found) < 2e-5
    for k, largest in ((1, 5e-5), (2, 1e-5)):
        size = [e[k] for e in found]
        assert size[-1] < largest
        assert observed_order([1 / n for n in sizes], size) > 1.8


def test_noise_on_particles_and_on_a_gaussian_have_the_same_moments():
    """Langevin: the Gaussian has them exactly, 20,000 particles up to their noise."""
    h, k, n = 0.01, 40, 20_000
    generator = torch.Generator().manual_seed(1)  # not that of the flow
    x = START[0] + 0.2 * torch.randn(n, 1, generator=generator, **F64)
    mean, variance = exact.langevin_moments(-0.9, 0.04, h, k, lam=2.0, temperature=0.3)
    m, S = moments(flow(FOKKER_PLANCK, of.Gaussian(*START), h, k, of.Langevin()))
    assert float(m) == pytest.approx(mean + 0.5, abs=1e-12)
    assert float(S) == pytest.approx(variance, rel=1e-12)
    m, S = moments(flow(FOKKER_PLANCK, of.Particles(x), h, k, of.Langevin()))
    assert float(m) == pytest.approx(mean + 0.5, abs=4 * math.sqrt(variance / n))
    assert float(S) == pytest.approx(variance, rel=4 * math.sqrt(2 / n))


def test_all_tend_to_the_same_rest():
    """N(b, T/a) with the energy -T log Z, on every representation."""
    m, S = exact.fokker_planck_rest(LINE["A"], LINE["b"], 0.3)
    energy = exact.fokker_planck_energy(m, S, **LINE)
    for mu, largest in [
        (of.Gaussian(*START), 1e-9),
        (on_quantiles(400), 1e-3),
        (on_grid(100), 2e-3),
    ]:
        assert max(errors(FOKKER_PLANCK, mu, 0.5, 40, m, S, energy)) < largest


# Fokker-Planck in the plane -----------------------------------------------------------


def test_a_grid_in_the_plane_follows_the_gaussian():
    """Start and potential have axes of their own, so the matrices do not commute."""
    A, b = exact.spd(2, seed=4, lower=0.5, upper=3.0), torch.tensor([0.3, -0.1], **F64)
    mean, variance = torch.tensor([-0.4, 0.2], **F64), torch.tensor([0.06, 0.2], **F64)
    F = exact.quadratic_form(A, b) + 0.25 * of.Entropy()
    args = {"A": A, "b": b, "temperature": 0.25}
    m, S = exact.fokker_planck_jko(mean, torch.diag(variance), 0.1, 4, **args)
    assert abs(float(S[0, 1])) > 0.01
    energy = exact.fokker_planck_energy(m, S, **args)
    gaussian = of.Gaussian(mean, torch.diag(variance))
    assert max(errors(F, gaussian, 0.1, 4, m, S, energy)) < 1e-11
    for n in (32, 64):  # means over cells have a variance of h^2/12 more
        cells = exact.gaussian_cells(mean, variance, -3.0, 3.0, (n, n))
        grid = of.GridDensity(cells, -3.0, 3.0, normalize=True)
        assert max(errors(F, grid, 0.1, 4, m, S, energy)) < 0.15 * (6 / n) ** 2


# Attraction against diffusion ---------------------------------------------------------


def test_attraction_against_diffusion():
    """W = theta |z|^2/2 and kappa H: the mean stays, the variance tends to k/theta."""
    theta, kappa = 1.5, 0.4
    F = theta * of.Interaction(of.kernels.Quadratic()) + kappa * of.Entropy()
    sigma = exact.breathing_jko(0.2, 0.1, 5, kappa, theta)
    S = torch.tensor([[sigma**2]], **F64)
    entropy = exact.gaussian_entropy(sigma)
    energy = 0.5 * theta * sigma**2 + kappa * entropy
    for mu, largest in [
        (of.Gaussian(*START), 1e-9),
        (on_quantiles(100), 4e-3),
        (on_grid(100), 1e-3),
    ]:
        assert max(errors(F, mu, 0.1, 5, START[0], S, energy)) < largest


# Porous medium and fast diffusion -----------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("m", [0.8, 1.5, 2.0, 3.0])
def test_quantiles_and_a_grid_follow_barenblatt(m, lam):
    F = of.PowerEntropy(m) + lam * exact.quadratic(1.0)
    R, dt, steps = 0.4, 0.02, 5
    profile = exact.barenblatt(m, 1, R)
    scale = exact.barenblatt_scale_jko(m, 1, R, dt, steps, lam)
    S = torch.tensor([[profile.at(scale).variance]], **F64)
    energy = exact.barenblatt_energy(m, 1, scale, lam)
    zero = torch.zeros(1, **F64)
    half, n = (1.5, 400) if m > 1 else (6.0, 200)
    cells = profile.cells(-half, half, (n,))
    quantiles = of.Quantiles.from_quantile(profile.quantile, 800, **F64)
    grid = of.GridDensity(cells, -half, half, normalize=True)
    largest = 2e-3 if m > 1 else 5e-3  # the tails are cut
    for mu in (quantiles, grid):
        mean, variance, gap = errors(F, mu, dt, steps, zero, S, energy)
        assert mean < 1e-6
        assert variance < largest * float(S)
        assert gap < largest * abs(energy)


# Log gas ------------------------------------------------------------------------------


def test_quantiles_and_particles_follow_the_semicircle():
    """W = |z|^2/2 - log|z|: the variance R^2/4, on atoms up to 1/n."""
    dt, steps = 0.2, 4
    radius = exact.breathing_jko(0.8, dt, steps, 2.0)
    variance = exact.semicircle(radius).variance
    quantiles = of.Quantiles.from_quantile(exact.semicircle(0.8).quantile, 100, **F64)
    _, S = moments(flow(exact.dyson(), quantiles, dt, steps))
    assert float(S) == pytest.approx(variance, rel=5e-3)
    n = 100
    levels = (torch.arange(n, **F64) + 0.5) / n
    particles = of.Particles(exact.semicircle(0.8).quantile(levels)[:, None])
    _, S = moments(flow(exact.dyson(), particles, dt, steps))
    assert float(S) == pytest.approx(variance, rel=2 / n)


# The edge of the disk is sharp, and the blur of it is said.
@pytest.mark.filterwarnings("ignore::otflow.errors.BlurWarning")
def test_a_grid_and_particles_follow_the_disk():
    """The same W in the plane keeps a disk uniform; its moment |x|^2 is R^2/2."""
    dt, steps, R = 0.2, 4, 0.6
    radius = exact.breathing_jko(R, dt, steps, 1.0)
    second = exact.uniform_ball(2, radius).second_moment
    cells = exact.uniform_ball(2, R).cells(-1.5, 1.5, (32, 32))
    grid = of.GridDensity(cells, -1.5, 1.5, normalize=True)
    for mu, tolerance in ((grid, 2e-3), (exact.disk(300, R), 1e-2)):
        _, S = moments(flow(exact.dyson(), mu, dt, steps))
        assert float(S.trace()) == pytest.approx(second, rel=tolerance)
        assert abs(float(S[0, 0] - S[1, 1])) < 1e-2 * second


# Far tails ----------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "half"), [(400, 2.5), (400, 2.0), (800, 1.5)])
def test_masses_of_any_size_do_not_stop_a_grid(n, half):
    """At the border of the box the density is as small as exp(-100)."""
    m, S = exact.fokker_planck_jko(*START, DT, 2, **LINE)
    energy = exact.fokker_planck_energy(m, S, **LINE)
    cells = exact.gaussian_cells(START[0], START[1].diagonal(), -half, half, (n,))
    mu = of.GridDensity(cells, -half, half, normalize=True)
    assert float(mu.density().min()) < 1e-18
    assert max(errors(FOKKER_PLANCK, mu, DT, 2, m, S, energy)) < 2e-5


# The distance to a target -------------------------------------------------------------


def test_quantiles_follow_the_geodesic_to_a_target():
    """F = W2^2(., nu)/2 shrinks W2 by 1 + dt; the step's own metric is lumped."""
    mu = of.Quantiles.from_quantile(torch.special.ndtri, 60, **F64)
    target = of.Quantiles.from_quantile(lambda s: 2 + s.square(), 60, **F64)

    class ToTarget(of.Functional):
        def value(self, nu):
            return 0.5 * of.metrics.wasserstein2_squared(nu, target)

    dt, steps = 0.5, 3
    start = float(of.metrics.wasserstein2(mu, target))
    end = float(of.metrics.wasserstein2(flow(ToTarget(), mu, dt, steps), target))
    assert end / start == pytest.approx(exact.decay_jko(1.0, dt, steps), rel=1e-3)
