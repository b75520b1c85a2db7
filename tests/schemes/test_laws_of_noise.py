"""Laws of steps with noise, against moments, kernels and histograms by other means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import otflow as of
from otflow.analysis import observed_order
from otflow.schemes import MALA, UnderdampedLangevin

F64 = torch.float64
STIFF, HEAT, FRICTION, DT = 1.7, 0.6, 1.3, 0.45
SPRING = of.Potential(lambda x: 0.5 * STIFF * x.square().sum(-1)) + HEAT * of.Entropy()
# A double well, 0.75 (x^2 - 1)^2, whose law is not a Gaussian.
WELL = (
    of.Potential(lambda x: 0.75 * (x.square() - 1).square().sum(-1))
    + HEAT * of.Entropy()
)
COUNT = 200_000
# Deviations that a mean of so many draws may be off.
FAR = 4.0


def atoms(place, count=COUNT, dtype=F64):
    return of.Particles(torch.full((count, 1), place, dtype=dtype))


def after(F, mu, scheme, dt, steps, seed):
    run = of.flow(F, mu, scheme, dt=dt, steps=steps, generator=seed, snapshots="none")
    return run.final.points[:, 0]


def check_moments(x, mean, variance):
    """Compare with the exact mean and variance of a Gaussian."""
    n = len(x)
    assert abs(float(x.mean()) - mean) <= FAR * (variance / n) ** 0.5
    assert abs(float(x.var()) - variance) <= FAR * variance * (2 / n) ** 0.5


# Ornstein and Uhlenbeck ---------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_langevin_has_the_moments_of_euler_and_maruyama(steps):
    mean, variance = 1.5, 0.0
    for _ in range(steps):
        mean *= 1 - DT * STIFF
        variance = (1 - DT * STIFF) ** 2 * variance + 2 * HEAT * DT
    x = after(SPRING, atoms(1.5), of.Langevin(), DT, steps, seed=1)
    check_moments(x, mean, variance)
    if steps == 20:  # the bias of rest
        rest = HEAT / STIFF / (1 - DT * STIFF / 2)
        assert variance == pytest.approx(rest, rel=1e-6)


def baoab(dt, steps, place):
    """Return mean and covariance of (x, v) after BAOAB, by products of matrices."""
    kick = np.array([[1, 0], [-STIFF * dt / 2, 1]])
    drift = np.array([[1, dt / 2], [0, 1]])
    keep = math.exp(-FRICTION * dt)
    rub = np.diag([1, keep])
    mean, cov = np.array([place, 0.0]), np.diag([0.0, HEAT])
    for _ in range(steps):
        first, last = rub @ drift @ kick, kick @ drift
        mean = last @ first @ mean
        cov = first @ cov @ first.T + np.diag([0, HEAT * (1 - keep**2)])
        cov = last @ cov @ last.T
    return mean, cov


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_underdamped_steps_have_the_moments_of_baoab(steps):
    mean, cov = baoab(DT, steps, 1.5)
    x = after(SPRING, atoms(1.5), UnderdampedLangevin(FRICTION), DT, steps, seed=steps)
    check_moments(x, mean[0], cov[0, 0])


def test_the_law_at_rest_of_baoab_under_a_spring_is_exact():
    _, cov = baoab(DT, 200, 0.0)
    assert cov[0, 0] == pytest.approx(HEAT / STIFF, rel=1e-12)


def test_the_correlation_in_time_of_underdamped_steps():
    """Of positions 3 steps apart, from the law at rest."""
    transfer = np.eye(2)
    for _ in range(3):
        kick = np.array([[1, 0], [-STIFF * DT / 2, 1]])
        drift = np.array([[1, DT / 2], [0, 1]])
        rub = np.diag([1, math.exp(-FRICTION * DT)])
        transfer = kick @ drift @ rub @ drift @ kick @ transfer
    start = torch.randn(COUNT, 1, generator=torch.Generator().manual_seed(7))
    mu = of.Particles((HEAT / STIFF) ** 0.5 * start.double())
    x = after(SPRING, mu, UnderdampedLangevin(FRICTION), DT, 3, seed=8)
    found = float((x * mu.points[:, 0]).mean())
    wanted = transfer[0, 0] * HEAT / STIFF  # the velocities are not correlated with x
    assert abs(found - wanted) <= FAR * 1.5 * HEAT / STIFF / COUNT**0.5


class Put(of.schemes.Scheme):
    """Put all particles, or those of the first half, at 2."""

    effects = frozenset()

    def __init__(self, share=1.0):
        self.share = share

    def step(self, F, mu, dt, state, generator):
        points = mu.points.clone()
        points[: round(self.share * mu.n)] = 2.0
        return of.schemes.Step(of.Particles(points), state)

    def energy(self, F, mu):
        return F.split_entropy()[1].value(mu)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_particles_that_were_put_somewhere_move_as_those_that_start_there(share):
    """Their fresh velocities are those at rest, and lack no kick of the past."""
    scheme = of.chain(Put(share), UnderdampedLangevin(FRICTION))
    run = of.flow(SPRING, atoms(2.0), scheme, dt=DT, steps=2, generator=3)
    count = round(share * COUNT)
    assert run.info[1]["parts"][1]["refreshed"] == count
    mean, cov = baoab(DT, 1, 2.0)
    check_moments(run.final.points[:count, 0], mean[0], cov[0, 0])
    if share < 1:
        mean, cov = baoab(DT, 2, 2.0)
        check_moments(run.final.points[count:, 0], mean[0], cov[0, 0])


# Metropolis ---------------------------------------------------------------------------


def kernel(place, dt):
    """Return acceptance and first two moments of one step of MALA, by quadrature."""

    def U(x):
        return 0.75 * (x**2 - 1) ** 2

    def slope(x):
        return 3 * x * (x**2 - 1)

    z = np.linspace(-12, 12, 400_001)
    y = place - dt * slope(place) + math.sqrt(2 * HEAT * dt) * z
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    back = (place - y + dt * slope(y)) ** 2
    ahead = (y - place + dt * slope(place)) ** 2
    log = -(U(y) - U(place)) / HEAT - (back - ahead) / (4 * HEAT * dt)
    moves = density * np.exp(np.minimum(log, 0))
    rate = moves.sum()
    first = (moves * y).sum() + (1 - rate) * place
    second = (moves * y**2).sum() + (1 - rate) * place**2
    fourth = (moves * y**4).sum() + (1 - rate) * place**4
    return rate, first, second, fourth


@pytest.mark.parametrize("place", [0.3, 1.8, -1.2])
@pytest.mark.parametrize("dt", [0.05, 0.4])
def test_one_step_of_mala_has_the_moments_of_its_kernel(place, dt):
    rate, first, second, fourth = kernel(place, dt)
    mu = atoms(place)
    run = of.flow(WELL, mu, MALA(), dt=dt, steps=1, generator=11, snapshots="none")
    x = run.final.points[:, 0]
    found = run.info[0]["acceptance"]
    assert abs(found - rate) <= FAR * (rate * (1 - rate) / COUNT) ** 0.5
    spread = ((second - first**2) / COUNT) ** 0.5
    assert abs(float(x.mean()) - first) <= FAR * spread
    spread = ((fourth - second**2) / COUNT) ** 0.5
    assert abs(float(x.square().mean()) - second) <= FAR * spread


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_histogram_of_mala_is_that_of_the_density(dtype):
    start = 2 * torch.rand(20_000, 1, generator=torch.Generator().manual_seed(1)) - 1
    x = after(WELL, of.Particles(start.to(dtype)), MALA(), 0.15, 150, seed=2).numpy()
    grid = np.linspace(-4, 4, 80_001)
    density = np.exp(-0.75 * (grid**2 - 1) ** 2 / HEAT)
    below = np.concatenate([[0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    edges = np.linspace(-1.8, 1.8, 19)
    share = np.diff(np.interp(edges, grid, below / below[-1]))
    seen, _ = np.histogram(x, edges)
    chi = ((seen - len(x) * share) ** 2 / (len(x) * share)).sum()
    assert chi <= 18 + FAR * 6  # 18 cells: mean 18, deviation 6


def test_a_chance_of_zero_accepts_no_step_of_tiny_probability(monkeypatch):
    """In float32 one draw in 2^24 is exactly 0, and its logarithm minus infinity."""
    monkeypatch.setattr(
        torch, "rand", lambda *n, **kw: torch.zeros(n, dtype=kw["dtype"])
    )
    F = of.Potential(lambda x: 1e4 * x.square().sum(-1)) + of.Entropy()
    mu = of.Particles(torch.full((100, 1), 0.0))
    run = of.flow(F, mu, MALA(), dt=10.0, steps=1, generator=0)
    assert run.info[0]["acceptance"] == 0.0
    # A step of which nothing is lost is accepted by any chance.
    flat = of.Potential(lambda x: 0.0 * x.sum(-1)) + of.Entropy()
    assert of.flow(flat, mu, MALA(), dt=1.0, steps=1).info[0]["acceptance"] == 1.0


# Orders -------------------------------------------------------------------------------


@pytest.mark.parametrize(("cells", "most"), [((100, 200, 400), 2.2)])
def test_langevin_by_remap_has_the_law_of_euler_to_second_order(cells, most):
    """On grids, whatever dt is."""
    heat = of.Potential(lambda x: 0.5 * x.square().sum(-1)) + 0.5 * of.Entropy()
    errors = []
    for n in cells:
        rho = of.GridDensity.from_function(
            lambda x: torch.exp(-((x[..., 0] - 1) ** 2) / 0.6), -7, 7, n, dtype=F64
        )
        mean = float(rho.expectation(lambda x: x[:, 0]))
        wide = float(rho.expectation(lambda x: x[:, 0] ** 2)) - mean**2
        rho = of.flow(heat, rho, of.Langevin(remap=True), dt=0.05, steps=20).final
        for _ in range(20):
            mean, wide = 0.95 * mean, 0.95**2 * wide + 2 * 0.5 * 0.05
        found = float(rho.expectation(lambda x: x[:, 0]))
        assert found == pytest.approx(mean, abs=2e-4)
        errors.append(float(rho.expectation(lambda x: x[:, 0] ** 2)) - mean**2 - wide)
    order = observed_order([1 / n for n in cells], [abs(e) for e in errors])
    assert 1.8 <= order <= most
