"""Internal energies: exact where there is a density, refused with the cure elsewhere.

The pointwise maps are compared with their definitions, by minimisation.
"""

from __future__ import annotations

import copy
import math
import pickle
from itertools import pairwise

import pytest
import torch
from scipy.optimize import minimize_scalar

import otflow as of
from otflow.proximal.terms import combine
from otflow.testing import clouds
from otflow.testing.differences import derivative
from tests import exact
from tests.functionals.on_intervals import OnIntervals
from tests.measures.intervals import gaussian, uniform


def power(m):
    """Return the energy per mass of a power, as a user writes it."""
    return lambda r: r.pow(m - 1) / (m - 1)


def shifted(r):
    """Return e with U(r) = r^2/(1 + r): convex, growing linearly, by autodiff alone."""
    return r / (1 + r)


class TestInternal(OnIntervals):
    def make(self, dtype=torch.float64):
        return of.Internal(shifted)


class TestInternalSum(OnIntervals):
    def make(self, dtype=torch.float64):
        return of.Internal(torch.sqrt) + 0.5 * of.Entropy()


class TestEntropy(OnIntervals):
    def make(self, dtype=torch.float64):
        return of.Entropy()


class TestFreeEnergy(OnIntervals):
    def make(self, dtype=torch.float64):
        return (
            of.Potential(lambda x: x.square().sum(-1), modulus=2.0) + 0.3 * of.Entropy()
        )


class TestPotentialOnIntervals(OnIntervals):
    """A functional of points and masses does not care who carries them."""

    def make(self, dtype=torch.float64):
        return of.Potential(lambda x: x.sin().sum(-1), modulus=-1.0)


CURE = (
    r"Particles has no density: a sum of Diracs is singular, so internal energies such "
    r"as Entropy, PowerEntropy and Congestion mean nothing on it; represent the "
    r"measure by a density \(GridDensity, Quantiles, Gaussian\), or smooth the "
    r"particles by a width, as in Blob\(Entropy\(\), width\), or flow an entropy with "
    r"Langevin\(\), which turns it into noise"
)


def test_particles_refuse_it_in_every_derivative():
    mu, F = clouds.uniform(), of.Entropy()
    for ask in (F.value, F.velocity, F.first_variation, F.value_and_velocity):
        with pytest.raises(of.errors.Unsupported, match=CURE):
            ask(mu)


def test_it_splits_off_itself_with_its_factor():
    V = of.Potential(lambda x: x.sum(-1))
    F = 0.5 * (V + 4.0 * of.Entropy()) + of.Entropy()
    temperature, rest = F.split_entropy()
    assert temperature == 3.0
    mu = clouds.uniform()
    torch.testing.assert_close(rest.value(mu), 0.5 * V.value(mu))
    assert V.split_entropy() == (0.0, V)


def test_entropy_alone_leaves_nothing():
    temperature, rest = of.Entropy().split_entropy()
    mu = clouds.uniform()
    assert temperature == 1.0
    assert float(rest.value(mu)) == 0
    assert not bool(rest.velocity(mu).any())
    assert not bool(rest.first_variation(mu).any())
    assert repr(rest) == "0"


def combined(*terms: tuple[float, of.Internal]) -> of.Internal:
    """Return a sum of multiples that is not empty."""
    F = combine(terms)
    assert F is not None
    return F


# Pointwise maps -----------------------------------------------------------------------

ENERGIES = {
    "entropy": of.Entropy(),
    **{f"power {m}": of.PowerEntropy(m) for m in (0.5, 0.9, 1.1, 2.0, 3.5, 10.0)},
    **{f"newton {m}": of.Internal(power(m)) for m in (0.5, 0.9, 1.1, 2.0, 3.5, 10.0)},
    "newton log": of.Internal(torch.log),
    "newton linear": of.Internal(shifted),
    "newton ninth": of.Internal(lambda r: r**9 / 9),
    "sum": combined((2.0, of.PowerEntropy(3.0)), (0.5, of.Internal(torch.log))),
    "multiple": combined((0.3, of.PowerEntropy(0.7))),
    "bounded": combined((1.0, of.PowerEntropy(2.0)), (1.0, of.Congestion(1.5))),
    "congestion": of.Congestion(1.5),
}


@pytest.fixture(params=ENERGIES)
def F(request):
    return ENERGIES[request.param]


def U(F, r):
    """Return U(r) of a number."""
    if r > F.max_density:
        return math.inf
    r = torch.tensor([r], dtype=torch.float64)
    return float(r * F.e(r))


def test_slope_and_curvature_are_derivatives(F):
    r = torch.tensor([0.02, 0.3, 1.1, 1.4], dtype=torch.float64)
    slope = derivative(lambda t: (r + t * r) * F.e(r + t * r), 1e-4) / r
    curvature = derivative(lambda t: F.slope(r + t * r), 1e-4) / r
    torch.testing.assert_close(F.slope(r), slope, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(F.curvature(r), curvature, rtol=1e-9, atol=1e-9)
    pressure = r * F.slope(r) - r * F.e(r)
    torch.testing.assert_close(F.pressure(r), pressure, rtol=1e-12, atol=1e-14)


def test_log_proximal_minimises(F):
    """It is argmin c (r log r - r) + s U(r) - rhs r."""
    for rhs, c, s in [(0.7, 1.0, 1.0), (-3.0, 0.2, 2.0), (2.0, 1.5, 0.4)]:

        def objective(z, rhs=rhs, c=c, s=s):
            r = math.exp(z)
            return c * (r * z - r) + s * U(F, r) - rhs * r

        z = float(F.log_proximal(torch.tensor([rhs], dtype=torch.float64), c, s))
        bound = math.log(F.max_density)
        assert z <= bound
        least, bounds = objective(z - 1e-14), (z - 3, min(z + 2, bound))
        found = minimize_scalar(objective, bounds=bounds, method="bounded")
        assert least <= found.fun + 1e-9 * (1 + abs(least))
        assert least < min(objective(z + e) for e in (-1e-2, 1e-2) if z + e <= bound)


def test_conjugate_slope_inverts_the_slope(F):
    r = torch.tensor([0.05, 0.4, 1.0, 1.3], dtype=torch.float64)
    if isinstance(F, of.Congestion):
        s = torch.tensor([-1.0, 2.0], dtype=torch.float64)
        assert F.conjugate_slope(s).tolist() == [0.0, 1.5]
        return
    torch.testing.assert_close(F.conjugate_slope(F.slope(r)), r, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", [name for name in ENERGIES if name != "congestion"])
def test_conjugate_slope_keeps_the_graph_of_its_potentials(name):
    """Its derivative is 1/U''(r)."""
    F = ENERGIES[name]
    r = torch.tensor([0.05, 0.4, 1.0, 1.3], dtype=torch.float64)
    s = F.slope(r).detach().requires_grad_()
    (found,) = torch.autograd.grad(F.conjugate_slope(s).sum(), s)
    torch.testing.assert_close(found, 1 / F.curvature(r), rtol=1e-8, atol=0)


def test_conjugate_slope_has_a_derivative_where_the_potential_vanishes_or_is_low():
    # U = r log r: U'(r) = log r + 1, and U = r^2 / (1 + r): (U*)' = 0 below U'(0) = 0.
    s = torch.tensor([-3.0, 0.0, 0.7], dtype=torch.float64, requires_grad=True)
    r = of.Internal(torch.log).conjugate_slope(s)
    (found,) = torch.autograd.grad(r.sum(), s)
    expected = (s.detach() - 1).exp()
    torch.testing.assert_close(r.detach(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    (found,) = torch.autograd.grad(of.Internal(shifted).conjugate_slope(s).sum(), s)
    assert found[:2].tolist() == [0.0, 0.0]
    # 1 - 1/(1 + r)^2 = s.
    assert float(found[2]) == pytest.approx(0.5 * 0.3**-1.5, rel=1e-12)


def test_conjugate_is_the_supremum_and_fenchel_young_holds(F):
    r = torch.tensor([0.05, 0.4, 1.0, 1.3], dtype=torch.float64)
    s = F.slope(r) + (0.5 if isinstance(F, of.Congestion) else 0.0)
    conjugate = F.conjugate(s)
    own = r * F.e(r)
    equal = F.conjugate_slope(s)
    torch.testing.assert_close(conjugate, s * equal - equal * F.e(equal))
    for other in (0.01, 0.3, 0.9, 1.2, 1.49):
        q = torch.full_like(s, other)
        assert bool((conjugate >= s * q - q * F.e(q) - 1e-12).all())
    if not isinstance(F, of.Congestion):
        torch.testing.assert_close(conjugate + own, s * r)
    slope = derivative(lambda t: F.conjugate(s + t * s.abs()), 1e-3) / s.abs()
    torch.testing.assert_close(slope, equal, rtol=1e-6, atol=0)


def test_conjugate_is_nothing_below_the_least_slope():
    s = torch.tensor([-3.0, -1e-9], dtype=torch.float64)
    for F in (of.PowerEntropy(2.0), of.Internal(power(3.0)), of.Internal(shifted)):
        assert not bool(F.conjugate_slope(s).any())
        assert not bool(F.conjugate(s).any())
    bounded = combined((1.0, of.PowerEntropy(2.0)), (1.0, of.Congestion(1.5)))
    assert bounded.conjugate_slope(torch.tensor([-1.0, 99.0])).tolist() == [0.0, 1.5]
    fast = combined((1.0, of.PowerEntropy(0.5)), (1.0, of.Congestion(1.5)))
    both = combined((1.0, of.Internal(shifted)), (1.0, fast))
    for F in (fast, both):
        assert F.conjugate_slope(torch.tensor([0.5, 99.0])).tolist() == [1.5, 1.5]


def test_conjugate_above_all_slopes_is_refused():
    s = torch.tensor([0.5, 3.0], dtype=torch.float64)
    for F in (of.Internal(shifted), of.PowerEntropy(0.5), of.Internal(power(0.5))):
        with pytest.raises(of.errors.NonFinite, match=r"is infinite at .*3.*constant"):
            F.conjugate(s)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("m", [0.5, 0.8, 1.2, 2.0, 3.0, 10.0])
@pytest.mark.parametrize("user", [False, True])
def test_log_proximal_over_six_decades(m, dtype, user):
    """Residual or error of the root, in units of round-off."""
    F = of.Internal(power(m)) if user else of.PowerEntropy(m)
    rhs = torch.linspace(-60, 30, 181, dtype=dtype)
    eps = torch.finfo(dtype).eps
    for c in (1e-3, 1e-2, 0.1, 1.0, 10.0, 1e3):
        for s in (1e-3, 1e-2, 0.1, 1.0, 10.0, 1e3):
            z = F.log_proximal(rhs, c, s)
            assert z.dtype == dtype
            z = z.double()
            own = s * m / (m - 1) * ((m - 1) * z).exp()
            f = c * z + own - rhs
            size = (c * z).abs() + own.abs() + rhs.double().abs()
            step = f / (c + s * m * ((m - 1) * z).exp()) / (1 + z.abs())
            error = torch.minimum(f.abs() / size, step.abs())
            if user:  # U' is continued linearly at the most extreme densities
                error = error[z.abs() < (220 if dtype == torch.float64 else 28)]
            assert float(error.max()) < 50 * eps


def test_log_proximal_keeps_the_graph_of_its_right_hand_side(F):
    rhs = torch.tensor([-1.0, 0.1, 0.3], dtype=torch.float64, requires_grad=True)
    z = F.log_proximal(rhs, 0.7, 0.4)
    assert z.requires_grad
    z.sum().backward()
    expected = derivative(lambda t: F.log_proximal(rhs.detach() + t, 0.7, 0.4), 1e-4)
    torch.testing.assert_close(rhs.grad, expected, rtol=1e-7, atol=1e-9)


def test_log_proximal_does_not_need_its_start():
    rhs = torch.linspace(-5, 5, 11, dtype=torch.float64)
    F = of.Internal(power(4.0))
    z = F.log_proximal(rhs, 0.1, 1.0)
    again = F.log_proximal(rhs, 0.1, 1.0, start=z + 3)
    torch.testing.assert_close(again, z, rtol=1e-13, atol=1e-13)
    assert F.log_proximal(rhs.reshape(1, 11), 0.1, 1.0).shape == (1, 11)


def test_a_concave_energy_has_no_proximal_map():
    F = of.Internal(lambda r: -r)
    with pytest.raises(ValueError, match=r"not convex .* flow it with"):
        F.log_proximal(torch.tensor([0.0], dtype=torch.float64), 0.1, 1.0)
    z = F.log_proximal(torch.tensor([0.0], dtype=torch.float64), 10.0, 1.0)
    assert 10.0 * float(z) == pytest.approx(2 * math.exp(float(z)))  # held by the log


def test_an_energy_that_is_not_a_function_of_numbers_is_not_settled():
    F = of.Internal(lambda r: torch.nan * r)
    with pytest.raises(ValueError, match=r"not convex at density .* convex U: flow it"):
        F.log_proximal(torch.tensor([0.0], dtype=torch.float64), 0.1, 1.0)


# Sums ---------------------------------------------------------------------------------


def test_a_sum_is_one_energy():
    parts = [(2.0, of.PowerEntropy(3.0)), (0.5, of.Internal(power(2.0)))]
    F = combined(*parts)
    r = torch.tensor([0.3, 1.7], dtype=torch.float64)
    torch.testing.assert_close(F.e(r), 2.0 * r**2 / 2 + 0.5 * r)
    torch.testing.assert_close(F.slope(r), 3.0 * r**2 + r)
    torch.testing.assert_close(F.curvature(r), 6.0 * r + 1)
    assert F.modulus(2) is None
    assert repr(F) == "2 * PowerEntropy(3) + 0.5 * Internal(<lambda>)"
    alone = combined((2.0, of.PowerEntropy(3.0)))
    assert alone.modulus(2) == alone.modulus(2) == 0.0
    assert combined((3.0, of.PowerEntropy(0.6))).modulus(2) == 0.0
    assert combined((3.0, of.PowerEntropy(0.6))).modulus(3) is None


def test_a_sum_takes_the_least_bound():
    bounds = [(1.0, of.Congestion(2.0)), (5.0, of.Congestion(1.5))]
    F = combined(*bounds, (1.0, of.PowerEntropy(2.0)))
    assert F.max_density == 1.5
    assert repr(F) == "1 * PowerEntropy(2) + Congestion(1.5)"
    only = combined(*bounds)
    rhs = torch.tensor([-1.0, 9.0], dtype=torch.float64)
    expected = torch.tensor([-0.5, math.log(1.5)], dtype=torch.float64)
    torch.testing.assert_close(only.log_proximal(rhs, 2.0, 1.0), expected)
    assert only.conjugate_slope(rhs).tolist() == [0.0, 1.5]
    assert combined((7.0, of.Congestion(2.0))).max_density == 2.0


# McCann's condition -------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 3, 8])
@pytest.mark.parametrize("m", [0.3, 0.5, 0.6, 0.9, 2.0])
def test_margin_and_modulus_agree_for_powers(m, dim):
    F = of.PowerEntropy(m)
    r = torch.logspace(-3, 3, 13, dtype=torch.float64)
    margin = F.convexity_margin(r, dim)
    holds = bool((margin >= -1e-12 * r**m).all())
    assert holds == (F.modulus(dim) == 0.0)
    user = of.Internal(power(m)).convexity_margin(r, dim)
    torch.testing.assert_close(user, margin, rtol=1e-9, atol=1e-12)


def test_the_margin_tells_which_energies_are_displacement_convex():
    """U = r^2 is; U = 3 r^2 - r^3, convex only below density 1, is not."""
    a, b = uniform(0.0, 0.5, 40), uniform(0.0, 3.0, 40)
    r = torch.linspace(0.3, 2.0, 9, dtype=torch.float64)
    good, bad = of.Internal(lambda r: r), of.Internal(lambda r: 3 * r - r * r)

    def curvature(F):
        u = a.displacement_to(b)
        f = [float(F.value(a.push(u, t))) for t in torch.linspace(0, 1, 41).tolist()]
        return torch.tensor(f, dtype=torch.float64).diff().diff()

    assert bool((good.convexity_margin(r, 1) > 0).all())
    assert bool((curvature(good) > 0).all())
    assert bool((bad.convexity_margin(r, 1) < 0).any())
    assert bool((curvature(bad) < 0).any())


# The door -----------------------------------------------------------------------------


@pytest.mark.parametrize("e", [3.0, None, of.Entropy(), of.Entropy, "log"])
def test_what_is_no_function_of_the_density_is_refused(e):
    with pytest.raises(TypeError, match=r"^e must be a function of the density"):
        of.Internal(e)


@pytest.mark.parametrize(
    ("e", "match"),
    [
        (lambda r: r.sum(), r"must map densities \(12,\) to \(12,\), .* got \(\)"),
        (lambda _: 1.0, r"got float; a constant c is c \+ 0 \* r"),
        (lambda r: r.float(), r"returned torch.float32 .* dtype torch.float64"),
    ],
)
def test_what_is_not_one_number_per_density_is_refused(e, match):
    with pytest.raises(of.errors.InvalidFunctional, match=match):
        of.Internal(e).value(uniform(0.0, 1.0))


def test_they_can_be_copied_and_pickled():
    for F in (of.Entropy(), of.PowerEntropy(2.5), of.Congestion(2.0), of.KL(shifted)):
        for G in (copy.deepcopy(F), pickle.loads(pickle.dumps(F))):
            mu = uniform(0.0, 2.0)
            assert repr(G) == repr(F)
            if not isinstance(F, of.KL):
                assert float(G.value(mu)) == float(F.value(mu))


# Values -------------------------------------------------------------------------------


def test_values_at_uniform_densities():
    mu, r = uniform(0.0, 4.0), 0.25
    assert float(of.Entropy().value(mu)) == pytest.approx(exact.uniform_entropy(4.0))
    assert float(of.PowerEntropy(3.0).value(mu)) == pytest.approx(r**2 / 2)
    assert float(of.Internal(shifted).value(mu)) == pytest.approx(r / (1 + r))


def test_an_energy_too_large_for_its_dtype_is_refused_with_a_cure_that_works():
    F, edges = of.Internal(lambda r: r**9), torch.tensor([0.0, 1e-6, 2e-6])
    message = r"is inf: .* too large for torch.float32 .* use float64, or measure"
    with pytest.raises(of.errors.NonFinite, match=message):
        F.value(of.Quantiles(edges))
    assert float(F.value(of.Quantiles(edges.double()))) == pytest.approx(5e5**9, 1e-6)
    assert float(F.value(of.Quantiles(1e6 * edges))) == pytest.approx(0.5**9, 1e-5)


def test_entropy_of_a_gaussian_is_approached():
    gaps = [
        float(of.Entropy().value(gaussian(0.7, n))) - exact.gaussian_entropy(0.7)
        for n in (100, 400, 1600)
    ]
    assert all(abs(b) < 0.6 * abs(a) for a, b in pairwise(gaps))
    assert abs(gaps[-1]) < 5e-3


def test_vacuum_has_no_energy_and_the_derivative_e_of_zero():
    rho = torch.tensor([0.0, 2.0, 2.0, 0.0], dtype=torch.float64)
    mu = of.GridDensity(rho, 0.0, 1.0, walls=True)
    assert float(of.Entropy().value(mu)) == pytest.approx(math.log(2))
    assert float(of.PowerEntropy(2.0).value(mu)) == pytest.approx(2.0)
    assert float(of.PowerEntropy(0.5).value(mu)) == pytest.approx(-2 / math.sqrt(2))
    first = of.PowerEntropy(2.0).first_variation(mu)
    torch.testing.assert_close(first, 2 * rho)
    first = of.Internal(lambda r: 5 + r).first_variation(mu)
    torch.testing.assert_close(first, 5 + 2 * rho)


def test_second_derivatives_of_pointwise_maps_are_refused_where_they_are_not_known():
    """Their implicit slope depends on the root, of which a graph has lost sight."""
    F = of.Internal(lambda r: r.square() / 2)
    s = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    for found in (F.conjugate_slope(s), F.log_proximal(s, 0.7, 0.4).exp()):
        (first,) = torch.autograd.grad(found.sum(), s, create_graph=True)
        assert float(first.detach()) > 0
        with pytest.raises(of.errors.Unsupported, match="differentiate once"):
            torch.autograd.grad(first.sum(), s)
    closed = of.PowerEntropy(3.0)  # the same U, r^3 / 2
    (first,) = torch.autograd.grad(
        closed.conjugate_slope(s).sum(), s, create_graph=True
    )
    (second,) = torch.autograd.grad(first.sum(), s)
    assert float(second) == pytest.approx(-1.2423, abs=1e-4)
