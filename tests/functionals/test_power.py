"""Porous medium, fast diffusion, hard congestion: values, limits, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import gammaln

import otflow as of
from otflow.proximal.terms import combine
from otflow.testing import clouds
from tests import exact
from tests.functionals.on_intervals import OnIntervals
from tests.measures.intervals import Intervals, uniform


class TestPorousMedium(OnIntervals):
    def make(self, dtype=torch.float64):
        return of.PowerEntropy(2.0)


class TestSteepPorousMedium(OnIntervals):
    def make(self, dtype=torch.float64):
        return of.PowerEntropy(4.5)


class TestFastDiffusion(OnIntervals):
    def make(self, dtype=torch.float64):
        return of.PowerEntropy(0.5)


class TestCongestion(OnIntervals):
    def make(self, dtype=torch.float64):
        return of.Congestion(9.0)


class TestCrowd(OnIntervals):
    def make(self, dtype=torch.float64):
        V = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
        return V + of.Congestion(9.0) + 0.1 * of.PowerEntropy(3.0)


@pytest.mark.parametrize("m", [0.6, 1.5, 2.0, 3.0])
def test_value_at_a_barenblatt_profile(m):
    profile = exact.barenblatt(m, 1, 0.7)
    gaps = []
    for n in (200, 800):
        levels = (torch.arange(n + 1, dtype=torch.float64) / n).clamp(1e-7, 1 - 1e-7)
        mu = Intervals(profile.quantile(levels))
        gaps.append(
            float(of.PowerEntropy(m).value(mu)) - exact.barenblatt_energy(m, 1, 0.7)
        )
    assert abs(gaps[1]) < 0.5 * abs(gaps[0])
    assert abs(gaps[1]) < (1e-2 if m > 1 else 0.2)  # the tails are cut


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("m", [2.0, 3.0])
def test_value_and_velocity_on_a_grid(m, dim):
    """On a grid the energy of the cell means, and the velocity, are nearly exact."""
    n = {1: 400, 2: 80, 3: 40}[dim]
    R = 0.4
    profile = exact.barenblatt(m, dim, R)
    mu = of.GridDensity(profile.cells(-0.5, 0.5, (n,) * dim), -0.5, 0.5, normalize=True)
    F = of.PowerEntropy(m)
    assert float(F.value(mu)) == pytest.approx(
        exact.barenblatt_energy(m, dim, R), rel=(8 * dim / n) ** 2
    )
    # Inside of the support the velocity is A R^{-1/b} x.
    velocity = mu.box.split_faces(F.velocity(mu))[0]
    rate = exact.barenblatt_rate(m, dim) * R ** -(dim * (m - 1) + 2)
    row = velocity[(slice(None),) + (n // 2,) * (dim - 1)]
    x = -0.5 + torch.arange(1, n, dtype=torch.float64) / n
    inside = x.abs() < 0.5 * R
    torch.testing.assert_close(
        row[inside], rate * x[inside], rtol=2e-2, atol=1e-3 * rate
    )


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("m", [0.8, 2.0])
def test_value_at_a_gaussian(m, d):
    """int rho^m = (2 pi)^{d(1-m)/2} m^{-d/2} |S|^{(1-m)/2}."""
    S = exact.spd(d)
    mu = of.Gaussian(torch.zeros(d, dtype=torch.float64), S)
    log = 0.5 * d * ((1 - m) * math.log(2 * math.pi) - math.log(m))
    log += 0.5 * (1 - m) * float(torch.logdet(S))
    expected = math.exp(log) / (m - 1)
    tolerance = 1e-6 if d < 3 else 2e-2  # of the quadrature
    assert float(of.PowerEntropy(m).value(mu)) == pytest.approx(expected, rel=tolerance)


def test_it_tends_to_the_entropy_up_to_a_constant():
    """int rho^m/(m-1) = 1/(m-1) + int rho log rho + O(m - 1); so do the maps."""
    mu = Intervals(torch.tensor([0.0, 0.3, 0.5, 1.4], dtype=torch.float64))
    entropy, rhs = of.Entropy(), torch.linspace(-3, 3, 7, dtype=torch.float64)
    value = {h: float(of.PowerEntropy(1 + h).value(mu)) - 1 / h for h in (1e-4, -1e-4)}
    assert sum(value.values()) / 2 == pytest.approx(float(entropy.value(mu)), abs=1e-7)
    maps = [
        of.PowerEntropy(1 + h).log_proximal(rhs + 1.3 / h, 0.7, 1.3)
        for h in (1e-4, -1e-4)
    ]
    expected = entropy.log_proximal(rhs, 0.7, 1.3)
    torch.testing.assert_close(sum(maps) / 2, expected, rtol=0, atol=1e-6)
    velocity = of.PowerEntropy(1 + 1e-6).velocity(mu)
    torch.testing.assert_close(velocity, entropy.velocity(mu), rtol=1e-5, atol=1e-5)


def test_the_fast_profile_has_the_mass_that_the_books_say():
    """C^{d/2-q} k^{-d/2} pi^{d/2} Gamma(q - d/2)/Gamma(q) = 1, rho at time 1."""
    m, d = 0.7, 2
    q, b = 1 / (1 - m), 1 / (2 - d * (1 - m))
    k = b * (1 - m) / (2 * m)
    log = 0.5 * d * math.log(math.pi / k) + gammaln(q - d / 2) - gammaln(q)
    C = math.exp(log / (q - d / 2))
    R = math.sqrt(C / k)
    assert exact.barenblatt_time(m, d, R) == pytest.approx(1, rel=1e-12)
    assert exact.barenblatt(m, d, R).height == pytest.approx(C**-q, rel=1e-12)


# Where it exists ----------------------------------------------------------------------


@pytest.mark.parametrize(("m", "dim"), [(1 / 3, 3), (0.2, 3), (0.5, 4), (0.7, 8)])
def test_too_fast_a_diffusion_is_refused(m, dim):
    F = of.PowerEntropy(m)
    match = rf"m = {m:g} is at most \(d - 2\)/d = .* in dimension {dim}: .* larger m"
    with pytest.raises(ValueError, match=match):
        F.check_dimension(dim)
    mu = of.Gaussian(
        torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64)
    )
    for ask in (F.value, F.velocity, (F + of.Entropy()).value):
        with pytest.raises(ValueError, match=match):
            ask(mu)


def test_in_low_dimension_every_exponent_is_welcome():
    for dim in (1, 2):
        of.PowerEntropy(1e-3).check_dimension(dim)
    of.PowerEntropy(0.34).check_dimension(3)


@pytest.mark.parametrize(
    ("m", "error", "match"),
    [
        (1, ValueError, r"^m must not be 1: the limit is the entropy; use Entropy\(\)"),
        (0.0, ValueError, r"^m must be positive, got 0"),
        (-1.0, ValueError, r"^m must be positive, got -1"),
        (math.nan, ValueError, r"^m must be finite"),
        (math.inf, ValueError, r"^m must be finite"),
        ("2", TypeError, r"^m must be a real number, got str"),
        (True, TypeError, r"^m must be a real number, got bool"),
        (None, TypeError, r"^m must be a real number"),
    ],
)
def test_what_is_no_exponent_is_refused(m, error, match):
    with pytest.raises(error, match=match):
        of.PowerEntropy(m)


@pytest.mark.parametrize(
    ("bound", "error", "match"),
    [
        (0.0, ValueError, r"^max_density must be positive"),
        (-2.0, ValueError, r"^max_density must be positive"),
        (math.inf, ValueError, r"^max_density must be finite"),
        (torch.ones(3), TypeError, r"^max_density must be a real number"),
    ],
)
def test_what_is_no_bound_is_refused(bound, error, match):
    with pytest.raises(error, match=match):
        of.Congestion(bound)
    with pytest.raises(ValueError, match=r"^tolerance must be non-negative"):
        of.Congestion(1.0, tolerance=-1e-3)


@pytest.mark.parametrize("F", [of.PowerEntropy(2.0), of.Congestion(1.0)], ids=repr)
def test_particles_refuse_it_with_the_cure(F):
    match = r"internal energies such as .* a density \(GridDensity, Quantiles, Gaussian"
    for ask in (F.value, F.velocity, F.first_variation):
        with pytest.raises(of.errors.Unsupported, match=match):
            ask(clouds.uniform())


# Congestion ---------------------------------------------------------------------------


def test_congestion_is_nothing_or_infinite():
    mu = uniform(0.0, 0.5)  # density 2
    assert float(of.Congestion(2.0).value(mu)) == 0
    assert not bool(of.Congestion(2.0).velocity(mu).any())
    assert float(of.Congestion(1.9995).value(mu)) == 0  # within the tolerance
    with pytest.raises(
        of.errors.NonFinite, match=r"reaches 2, above max_density = 1.5: .* raise the"
    ):
        of.Congestion(1.5).value(mu)
    with pytest.raises(of.errors.NonFinite, match="above max_density"):
        of.Congestion(1.9995, tolerance=0.0).value(mu)


def test_congestion_is_the_limit_of_large_powers():
    rhs = torch.linspace(-2, 2, 9, dtype=torch.float64)
    hard = of.Congestion(1.0).log_proximal(rhs, 1.0, 1.0)
    gap = [
        float((of.PowerEntropy(m).log_proximal(rhs, 1.0, 1.0) - hard).abs().max())
        for m in (50.0, 500.0, 5000.0)
    ]
    assert gap[2] < 0.3 * gap[1] < 0.1 * gap[0]


def test_a_bound_below_the_mean_density_is_refused():
    mu = of.GridDensity(torch.ones(4, 5), 0.0, 1.0, walls=True)
    match = r"0.9 is below the mean density 1: mass 1 does not fit .* enlarge the box"
    with pytest.raises(ValueError, match=match):
        of.Congestion(0.9).value(mu)
    obstacles = torch.zeros(4, 5, dtype=torch.bool)
    obstacles[:, :2] = True
    rho = torch.where(obstacles, 0.0, 1.0)
    mu = of.GridDensity(rho, 0.0, 1.0, obstacles=obstacles, normalize=True)
    with pytest.raises(
        ValueError, match=r"below the mean density 1.66667: .* volume 0.6"
    ):
        of.Congestion(1.5).value(mu)
    assert float(of.Congestion(1.7).value(mu)) == 0


def test_a_sum_of_energies_is_kept_below_the_bound():
    # Two smooth terms and a bound: the generic map, cut at log 2.
    terms = [(1.0, of.PowerEntropy(2.0)), (0.5, of.PowerEntropy(3.0))]
    free, cut = combine(terms), combine([*terms, (1.0, of.Congestion(2.0))])
    assert free is not None
    assert cut is not None
    rhs = torch.linspace(-3, 30, 40, dtype=torch.float64)
    z = free.log_proximal(rhs, 0.3, 0.7)
    assert bool((z > 0.7).any())
    found = cut.log_proximal(rhs, 0.3, 0.7)
    torch.testing.assert_close(found, z.clamp_max(math.log(2.0)), rtol=1e-12, atol=0)
    assert float(cut.conjugate_slope(rhs).max()) == 2.0
