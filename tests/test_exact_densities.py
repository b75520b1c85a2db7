"""The exact densities are checked against their equations, by other means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, linalg
from scipy.special import gamma

from otflow.testing.clouds import normal
from tests import exact

DIFFUSIONS = [  # m, d: porous medium, and fast diffusion with a finite variance
    *((m, d) for m in (1.3, 2.0, 3.0) for d in (1, 2, 3)),
    *((0.5, 1), (0.8, 1), (0.7, 2), (0.9, 3)),
]
PROFILES = [
    *(exact.barenblatt(m, d, 0.6) for m, d in DIFFUSIONS),
    exact.semicircle(),
    exact.uniform_ball(2, 0.8),
    exact.uniform_ball(3, 0.8),
]


def radial(profile, f):
    """Return the integral of f(r) against the profile, by quadrature."""
    d = profile.dim
    sphere = 2 * math.pi ** (d / 2) / gamma(d / 2)

    def integrand(r):
        x = torch.zeros(d, dtype=torch.float64)
        x[0] = r
        return sphere * r ** (d - 1) * float(profile.density(x)) * f(r)

    R = profile.scale
    options = {"epsabs": 1e-13, "epsrel": 1e-11, "limit": 400}
    near = integrate.quad(integrand, 0, R, **options)[0]
    far = integrate.quad(integrand, R, np.inf, **options)[0] if profile.bell else 0.0
    return near + far


# Profiles -----------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES, ids=repr)
def test_a_profile_has_mass_one_and_its_variance(profile):
    assert radial(profile, lambda _: 1.0) == pytest.approx(1, rel=1e-9)
    assert radial(profile, lambda r: r * r) == pytest.approx(
        profile.second_moment, rel=1e-7
    )


@pytest.mark.parametrize("profile", [p for p in PROFILES if p.dim == 1], ids=repr)
def test_distribution_and_quantile_invert_each_other(profile):
    level = torch.linspace(1e-6, 1 - 1e-6, 41, dtype=torch.float64)
    x = profile.quantile(level)
    torch.testing.assert_close(profile.cdf(x), level, rtol=0, atol=1e-13)
    for i in (3, 20, 30):
        grid = torch.linspace(float(x[i]), float(x[i + 1]), 4001, dtype=torch.float64)
        mass = torch.trapezoid(profile.density(grid[:, None]), grid)
        assert float(mass) == pytest.approx(float(level[i + 1] - level[i]), rel=1e-6)


@pytest.mark.parametrize("profile", PROFILES, ids=repr)
def test_cells_are_means_of_the_density(profile):
    d = profile.dim
    center = (0.31, -0.12, 0.07)[:d]
    shifted = exact.Profile(d, profile.scale, profile.power, profile.bell, center)
    shape, fine = (9, 8, 7)[:d], (2000, 120, 16)[d - 1]
    cells = shifted.cells(-1.2, 1.8, shape)
    assert cells.shape == shape
    axes = [
        -1.2 + 3 * (torch.arange(n * fine, dtype=torch.float64) + 0.5) / (n * fine)
        for n in shape
    ]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    means = shifted.density(x)
    for axis, n in enumerate(shape):
        means = means.unflatten(axis, (n, fine)).mean(axis + 1)
    error = float((cells - means).abs().mean() / means.mean())
    assert error < (2e-3 if profile.power else 2e-2)  # of the sub-sampling
    if not profile.bell:
        volume = math.prod(3 / n for n in shape)
        assert float(cells.sum()) * volume == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("profile", PROFILES, ids=repr)
def test_samples_have_the_law(profile):
    x = profile.sample(20_000, torch.Generator().manual_seed(0))
    inner = (x.norm(dim=1) < 0.6 * profile.scale).double().mean()
    expected = radial(profile, lambda r: float(r < 0.6 * profile.scale))
    assert float(inner) == pytest.approx(expected, abs=0.015)
    assert float(x.mean(0).abs().max()) < 0.05


# Porous medium and fast diffusion -----------------------------------------------------


@pytest.mark.parametrize(("m", "d"), DIFFUSIONS)
@pytest.mark.parametrize("lam", [0.0, 1.7])
def test_barenblatt_solves_its_equation(m, d, lam):
    """rho_t = Laplacian rho^m + lam div(x rho), in radial form, by differences."""
    h = 1e-3

    def rho(r, t):
        R = exact.barenblatt_scale(m, d, 0.6, t, lam)
        x = torch.zeros(d, dtype=torch.float64)
        x[0] = r
        return float(exact.barenblatt(m, d, R).density(x))

    t = 0.05
    for r in (0.1, 0.2, 0.35):

        def flux(s):
            slope = (rho(s + h, t) ** m - rho(s - h, t) ** m) / (2 * h)
            return s ** (d - 1) * (slope + lam * s * rho(s, t))

        gain = (flux(r + h) - flux(r - h)) / (2 * h) / r ** (d - 1)
        rate = (rho(r, t + h) - rho(r, t - h)) / (2 * h)
        assert rate == pytest.approx(gain, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("m", [2.0, 3.0])
def test_barenblatt_is_the_one_of_the_books(m, d):
    """rho = t^{-d b} (C - k |x|^2 t^{-2 b})_+^{1/(m-1)}, C by the mass."""
    b, p, t = 1 / (d * (m - 1) + 2), 1 / (m - 1), 0.37
    k = b * (m - 1) / (2 * m)
    mass = k ** (d / 2) * math.pi ** (-d / 2) * gamma(p + 1 + d / 2) / gamma(p + 1)
    C = mass ** (1 / (p + d / 2))
    radius = math.sqrt(C / k) * t**b
    assert exact.barenblatt_scale(m, d, 0.0, t) == pytest.approx(radius, rel=1e-12)
    assert exact.barenblatt_time(m, d, radius) == pytest.approx(t, rel=1e-12)
    x = 0.3 * normal(20, d)
    found = exact.barenblatt(m, d, radius).density(x)
    square = x.square().sum(-1)
    expected = t ** (-d * b) * (C - k * square * t ** (-2 * b)).clamp_min(0) ** p
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    assert exact.barenblatt_rate(m, d) == pytest.approx(
        b * (C / k) ** (1 / (2 * b)), rel=1e-12
    )


@pytest.mark.parametrize(("m", "d"), DIFFUSIONS)
def test_energy_is_the_integral_and_falls_as_the_flow_says(m, d):
    lam, R = 0.8, 0.6
    profile, h = exact.barenblatt(m, d, R), 1e-5
    x = torch.zeros(d, dtype=torch.float64)

    def per_mass(r):
        x[0] = r
        return float(profile.density(x)) ** (m - 1) / (m - 1) + 0.5 * lam * r * r

    energy = exact.barenblatt_energy(m, d, R, lam)
    edge = 1 - 1e-12 if m > 1 else 1.0
    found = radial(profile, lambda r: per_mass(r * edge))
    assert energy == pytest.approx(found, rel=1e-7)
    slope = exact.barenblatt_energy(m, d, R + h, lam)
    slope = (slope - exact.barenblatt_energy(m, d, R - h, lam)) / (2 * h)
    speed = exact.barenblatt_scale(m, d, R, 1e-6, lam)
    speed = (speed - exact.barenblatt_scale(m, d, R, -1e-6, lam)) / 2e-6
    assert slope == pytest.approx(-profile.at(1.0).second_moment * speed, rel=1e-6)


@pytest.mark.parametrize(("m", "d"), DIFFUSIONS)
@pytest.mark.parametrize("lam", [0.0, 1.7])
def test_jko_scale_minimises_and_tends_to_the_flow(m, d, lam):
    R, tau = 0.4, 0.05
    step = exact.barenblatt_scale_jko(m, d, R, tau, 1, lam)

    def objective(scale):
        distance = exact.barenblatt(m, d, R).w2(scale)
        return exact.barenblatt_energy(m, d, scale, lam) + distance**2 / (2 * tau)

    least = objective(step)
    assert least < min(objective(step * (1 + e)) for e in (-1e-4, 1e-4))
    fine = exact.barenblatt_scale_jko(m, d, R, 1e-4, 1000, lam)
    assert fine == pytest.approx(exact.barenblatt_scale(m, d, R, 0.1, lam), rel=3e-3)
    if lam:
        rest = exact.barenblatt_rest(m, d, lam)
        late = exact.barenblatt_scale_jko(m, d, R, 1.0, 200, lam)
        assert late == pytest.approx(rest, rel=1e-12)


def test_jko_radii_of_the_porous_medium_in_the_plane():
    """Radius .15 to .30, m = 2, by 5 to 80 steps, and the L1 errors in time."""
    T = exact.barenblatt_time(2, 2, 0.30, 0.15)
    table = {
        5: (0.28796, 0.0819),
        10: (0.29347, 0.0440),
        20: (0.29657, 0.0230),
        40: (0.29823, 0.0118),
        80: (0.29910, 0.0060),
    }
    end = exact.barenblatt(2, 2, 0.30).cells(-0.5, 0.5, (256, 256))
    for n, (radius, error) in table.items():
        found = exact.barenblatt_scale_jko(2, 2, 0.15, T / n, n)
        assert found == pytest.approx(radius, abs=5.1e-6)
        cells = exact.barenblatt(2, 2, found).cells(-0.5, 0.5, (256, 256))
        l1 = float((cells - end).abs().sum()) / 256**2
        assert l1 == pytest.approx(error, abs=1.1e-4)


# Log gases and crowds -----------------------------------------------------------------


def test_semicircle_is_in_equilibrium():
    """The derivative of |z|^2/2 - log|z| against it vanishes on its support."""
    law = exact.semicircle()
    x = law.quantile((torch.arange(300_000, dtype=torch.float64) + 0.5) / 300_000)
    for y in (0.0, 0.4, -0.9):
        middle = float(law.quantile(law.cdf(torch.tensor([y], dtype=torch.float64))))
        assert middle == pytest.approx(y, abs=1e-12)
        z = y - x
        close = z.abs() < 2e-3  # the principal value: leave out a window
        force = float((z - 1 / torch.where(close, torch.inf, z)).mean())
        assert force == pytest.approx(0, abs=3e-3)


@pytest.mark.parametrize("d", [2, 3])
def test_breathing_ball_solves_its_equation(d):
    h, R = 1e-5, exact.breathing_ball(0.5, 0.3, d)
    rate = exact.breathing_ball(0.5, 0.3 + h, d) - exact.breathing_ball(0.5, 0.3 - h, d)
    assert rate / (2 * h) == pytest.approx(R ** (1 - d) - R, rel=1e-7)
    fine = exact.breathing_ball_jko(0.5, 1e-4, 3000, d)
    assert fine == pytest.approx(R, rel=1e-3)
    if d == 2:
        assert exact.breathing(0.5, 0.3, 1.0) == pytest.approx(R, rel=1e-12)


def test_column_is_carried_by_its_velocity_and_keeps_its_mass():
    c = 0.4
    level = torch.linspace(0.005, 0.995, 100, dtype=torch.float64)
    for t in (0.0, 0.5, 1.2, 1.5, 2.0):
        full, end = exact.column(c, t)
        assert full + c * (end - full) == pytest.approx(1, rel=1e-14)
        cells = exact.column_cells(c, t, 3.0, 50)
        assert float(cells.sum()) * 0.06 == pytest.approx(1, rel=1e-13)
        assert float(cells.max()) <= 1 + 1e-12
        q = exact.column_quantile(c, t, level)
        below = q.clamp_max(full) + c * (q.clamp(full, end) - full)
        torch.testing.assert_close(below, level)
    assert exact.column(c, 9.0) == pytest.approx((1.0, 1.0))


def test_column_is_the_exact_jko_step():
    """The step is the projection of q - tau on the slopes >= 1: by isotonic means."""
    c, tau, n = 0.4, 0.3, 400
    level = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    q = level / c
    for k in range(1, 4):
        excess = q - tau - level
        assert bool((excess.diff() >= 0).all())  # so that no pooling is needed
        q = level + excess.clamp_min(0)
        torch.testing.assert_close(q, exact.column_quantile(c, k * tau, level))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_crowded_ball_is_never_too_full(d):
    c, full = 0.3, -math.log(0.3) / d
    assert exact.crowded_ball(c, d, 0.0).height == pytest.approx(c, rel=1e-12)
    assert exact.crowded_ball(c, d, 0.999 * full).height < 1
    for t in (full, 2 * full):
        assert exact.crowded_ball(c, d, t).height == pytest.approx(1, rel=1e-12)
    early = exact.crowded_ball_jko(c, d, 1e-5, 10_000).scale
    assert early == pytest.approx(exact.crowded_ball(c, d, 0.1).scale, rel=1e-5)


def test_log_moment_is_the_virial_of_the_semicircle():
    """W = -log|z| at temperature 0: int x^2 grows by 1, and R^2 = R0^2 + 4t."""
    R = exact.breathing(0.7, 0.4, 2.0, 0.0)
    second = exact.semicircle(R).second_moment
    first = exact.semicircle(0.7).second_moment
    assert exact.log_moment(first, 0.4, 1, -1.0, 0.0) == pytest.approx(second)
    step = exact.breathing_jko(0.7, 0.4, 1, 2.0, 0.0)
    distance = exact.semicircle(0.7).w2(step)
    second = exact.semicircle(step).second_moment
    assert exact.log_moment_jko(first, 0.4, distance, 1, -1.0, 0.0) == pytest.approx(
        second, rel=1e-13
    )


# Gaussians ----------------------------------------------------------------------------


def problem(d, seed=0):
    """Return a start and a problem whose matrices do not commute."""
    start = (normal(d, seed=seed), exact.spd(d, seed=seed + 1))
    rest = {"A": exact.spd(d, seed=seed + 2), "b": normal(d, seed=seed + 3)}
    return start, {**rest, "temperature": 0.7}


@pytest.mark.parametrize("d", [1, 3, 12])
def test_fokker_planck_solves_the_equations_of_its_moments(d):
    (m0, S0), args = problem(d)
    A, b, h = args["A"], args["b"], 1e-4
    (m1, S1), (m, S), (m2, S2) = (
        exact.fokker_planck(m0, S0, 0.4 + k * h, **args) for k in (-1, 0, 1)
    )
    rate = -A @ S - S @ A + 2 * 0.7 * torch.eye(d, dtype=torch.float64)
    torch.testing.assert_close((S2 - S1) / (2 * h), rate, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close((m2 - m1) / (2 * h), -A @ (m - b), rtol=1e-6, atol=1e-6)
    late = exact.fokker_planck(m0, S0, 80.0, **args)
    torch.testing.assert_close(late, exact.fokker_planck_rest(A, b, 0.7))
    heat = exact.fokker_planck(m0, S0, 0.3, A=0 * A, b=b)[1]
    torch.testing.assert_close(heat, S0 + 0.6 * torch.eye(d, dtype=torch.float64))


@pytest.mark.parametrize("d", [1, 3, 12, 32])
@pytest.mark.parametrize("tau", [0.01, 0.5, 20.0])
def test_gaussian_jko_satisfies_its_optimality(d, tau):
    (m0, S0), args = problem(d)
    A, b = args["A"], args["b"]
    m, S = exact.fokker_planck_jko(m0, S0, tau, **args)
    C = torch.eye(d, dtype=torch.float64)
    C = C + tau * (A - 0.7 * torch.linalg.inv(S))
    assert float(torch.linalg.eigvalsh(C)[0]) > 0
    scale = float(S0.abs().max() * C.abs().max())
    torch.testing.assert_close(C @ S @ C, S0, rtol=0, atol=1e-14 * d * scale)
    torch.testing.assert_close(m - m0, -tau * A @ (m - b), rtol=0, atol=1e-12)


def test_gaussian_jko_minimises_the_objective():
    (m0, S0), args = problem(3)
    tau = 0.4
    m, S = exact.fokker_planck_jko(m0, S0, tau, **args)

    def objective(m, S):
        return exact.fokker_planck_energy(m, S, **args) + exact.gaussian_w2(
            m0, S0, m, S
        ) ** 2 / (2 * tau)

    least = objective(m, S)
    for seed in range(6):
        noise = 1e-2 * normal(3, 3, seed=seed)
        other = S + noise + noise.T
        assert objective(m, other) > least
        assert objective(m + 1e-2 * normal(3, seed=seed), S) > least


def test_gaussian_jko_is_the_scalar_one_when_all_commute():
    eye = torch.eye(2, dtype=torch.float64)
    b = torch.zeros(2, dtype=torch.float64)
    args = {"A": 1.3 * eye, "b": b, "temperature": 0.6}
    _, S = exact.fokker_planck_jko(b, 0.49 * eye, 0.2, 4, **args)
    c = exact.breathing_jko(0.7, 0.2, 4, 0.6, 1.3)
    torch.testing.assert_close(S, c * c * eye, rtol=1e-13, atol=0)


@pytest.mark.parametrize("scheme", ["jko", "euler"])
def test_gaussian_schemes_tend_to_the_flow(scheme):
    (m0, S0), args = problem(3)
    step = getattr(exact, f"fokker_planck_{scheme}")
    fine = step(m0, S0, 1e-4, 4000, **args)
    flow = exact.fokker_planck(m0, S0, 0.4, **args)
    for a, b in zip(fine, flow, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


def test_divergence_and_distance_of_gaussians_by_other_means():
    (m0, S0), _ = problem(2)
    (m1, S1), _ = problem(2, seed=9)
    root = torch.from_numpy(linalg.sqrtm((S0 @ S1).numpy()).real)
    square = (m0 - m1).square().sum() + (S0 + S1 - 2 * root).trace()
    assert exact.gaussian_w2(m0, S0, m1, S1) == pytest.approx(math.sqrt(square))
    p, q = (
        torch.distributions.MultivariateNormal(m, S) for m, S in [(m0, S0), (m1, S1)]
    )
    expected = float(torch.distributions.kl_divergence(p, q))
    assert exact.gaussian_kl(m0, S0, m1, S1) == pytest.approx(expected, rel=1e-12)
    assert exact.symmetric_kl(m0, S0, m1, S1) > expected
    energy = exact.fokker_planck_energy(m0, S0, A=torch.linalg.inv(S1), b=m1)
    offset = -0.5 * float(torch.logdet(S1)) - math.log(2 * math.pi)
    assert energy - offset == pytest.approx(expected, rel=1e-12)


def test_gaussian_cells_are_those_of_the_density():
    mean = torch.tensor([0.2, -0.1]).double()
    cells = exact.gaussian_cells(mean, torch.tensor([0.3, 0.5]).double(), -2, 2, (6, 5))
    x = -2 + 4 * (torch.arange(600, dtype=torch.float64) + 0.5) / 600
    x = torch.stack(torch.meshgrid(x, x, indexing="ij"), -1)
    rho = exact.gaussian_density(x, mean, torch.diag(torch.tensor([0.3, 0.5]).double()))
    means = rho.reshape(6, 100, 5, 120).mean((1, 3))
    torch.testing.assert_close(cells, means, rtol=1e-4, atol=1e-6)


def test_cosine_cells_solve_the_heat_equation_between_walls():
    n, h = 64, 1e-5
    before, rho, after = (
        exact.cosine_cells(n, 0.02 + s * h, k=2, height=0.8) for s in (-1, 0, 1)
    )
    rate = (after - before) / (2 * h)
    torch.testing.assert_close(
        rate, -((2 * math.pi) ** 2) * (rho - 1), rtol=1e-6, atol=0
    )
    centres = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    start = 1 + 0.8 * (2 * math.pi * centres).cos()
    assert (
        float((exact.cosine_cells(n, 0.0, k=2, height=0.8) - start).abs().max()) < 2e-3
    )
    assert float(rho.mean()) == pytest.approx(1, rel=1e-14)
