"""Barycentres: closed forms, first-order conditions, bounds, guarantees."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import otflow as of
from otflow.metrics import barycenter, geodesic, wasserstein2, wasserstein2_squared
from otflow.testing.clouds import normal, weighted
from tests.metrics.test_geodesics import gaussian, quantiles, steps

F64 = torch.float64
SHARES = [0.5, 0.2, 0.3]


def frechet(nu, mus, shares):
    pairs = zip(shares, mus, strict=True)
    return sum(s * float(wasserstein2_squared(nu, mu)) for s, mu in pairs)


def bell(mean, deviation, n=40):
    def density(x):
        z = (x - x.new_tensor(mean)) / x.new_tensor(deviation)
        return torch.exp(-0.5 * z.square().sum(-1))

    shape = (n,) * len(mean)
    return of.GridDensity.from_function(density, 0, 1, shape, dtype=F64, walls=True)


# On the line --------------------------------------------------------------------------


def test_on_the_line_the_mean_of_quantile_functions_meets_the_lower_bound():
    mus = [quantiles(7, 1), steps(9, 2, 0.5), quantiles(4, 3)]
    found = barycenter(mus, SHARES)
    assert found.guarantee == "optimal"
    assert found.value == pytest.approx(frechet(found.measure, mus, SHARES), rel=1e-12)
    assert found.bracket().relative < 1e-12
    # No other measure is better: the value is strongly convex along geodesics.
    for other in mus:
        at = frechet(other, mus, SHARES)
        apart = float(wasserstein2_squared(found.measure, other))
        assert at == pytest.approx(found.value + apart, rel=1e-10)


def test_on_the_line_the_mean_is_differentiable_in_the_edges():
    one, other = quantiles(5, 1), quantiles(8, 2)

    def value(q):
        found = barycenter([one.with_free_edges(q), other], [0.25, 0.75]).measure
        return found.expectation(lambda x: x.sin().sum(-1))

    assert torch.autograd.gradcheck(value, one.edges.clone().requires_grad_())


def test_two_measures_have_the_point_of_their_geodesic():
    for mu, nu in (
        (quantiles(7, 1), quantiles(11, 2)),
        (gaussian(3, 1), gaussian(3, 2)),
        (weighted(7), weighted(9, seed=1)),
        (of.Particles(normal(12, 2)), of.Particles(normal(12, 2, seed=1))),
    ):
        found = barycenter([mu, nu], [0.7, 0.3])
        assert float(wasserstein2(found.measure, geodesic(mu, nu, 0.3))) < 2e-7
        assert found.guarantee == "optimal"
        assert found.bracket().relative < 1e-7


# Gaussians ----------------------------------------------------------------------------


def test_gaussians_that_commute_have_the_mean_of_the_roots():
    """If covariances commute, the root of the mean is the mean of the roots."""
    turn = torch.linalg.qr(normal(3, 3)).Q
    roots = [normal(3, seed=k).abs() + 0.1 for k in (1, 2, 3)]
    mus = [
        of.Gaussian(normal(3, seed=k), turn @ torch.diag(r.square()) @ turn.T)
        for k, r in enumerate(roots)
    ]
    found = barycenter(mus, SHARES)
    mean = torch.tensor(SHARES, dtype=F64) @ torch.stack(roots)
    exact = turn @ torch.diag(mean.square()) @ turn.T
    torch.testing.assert_close(found.measure.covariance, exact)
    centre = sum(s * mu.mean for s, mu in zip(SHARES, mus, strict=True))
    torch.testing.assert_close(found.measure.mean, centre)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_at_the_mean_of_gaussians_the_optimal_maps_cancel(d):
    """First-order condition: the mean of the displacements to all measures is 0."""
    mus = [gaussian(d, k) for k in (1, 2, 3)]
    found = barycenter(mus, SHARES, tolerance=1e-12)
    moves = [found.measure.displacement_to(mu) for mu in mus]
    mean = sum(s * move for s, move in zip(SHARES, moves, strict=True))
    assert float(mean.norm()) < 1e-10
    assert found.converged
    for seed in range(5):
        nudge = 1e-3 * normal(1 + d, d, seed=seed)
        assert frechet(found.measure.push(nudge, 1.0), mus, SHARES) > found.value


def test_one_regular_covariance_suffices():
    flat = gaussian(2, 1)
    state = flat.state.clone()
    state[1:] = state[1:2] * normal(2, 1, seed=7)
    flat = flat.with_free_state(state)
    found = barycenter([flat, gaussian(2, 2)], [0.9, 0.1])
    half = geodesic(flat, gaussian(2, 2), 0.1)
    torch.testing.assert_close(found.measure.covariance, half.covariance)
    assert found.guarantee == "optimal"


# Particles ----------------------------------------------------------------------------


def test_particles_are_between_the_bounds_and_stationary():
    mus = [weighted(n, seed=n) for n in (12, 9, 10)]
    found = barycenter(mus, SHARES)
    assert found.converged
    assert found.guarantee == "stationary"
    bracket = found.bracket()
    assert (
        bracket.lower
        <= frechet(found.measure, mus, SHARES)
        == pytest.approx(bracket.upper)
    )
    assert 0 < bracket.relative < 0.2
    assert found.measure.n <= sum(mu.n for mu in mus) - len(mus) + 1
    # No nudge of all points, at their masses, lowers the value.
    for seed in range(5):
        points = found.measure.points + 1e-3 * normal(found.measure.n, 2, seed=seed)
        nudged = of.Particles(points, found.measure.weights)
        assert frechet(nudged, mus, SHARES) > found.value


def test_the_best_of_all_couplings_is_found_for_few_atoms():
    """For three pairs of atoms there are four couplings of equal masses."""
    clouds = [normal(2, 2, seed=k) for k in (1, 2, 4)]
    found = barycenter([of.Particles(x) for x in clouds])
    values = []
    for i in (0, 1):
        for j in (0, 1):
            cells = torch.stack([clouds[0], clouds[1].roll(i, 0), clouds[2].roll(j, 0)])
            apart = (cells - cells.mean(0)).square().sum(-1).mean()
            values.append(float(apart))
    assert found.value >= min(values) - 1e-12
    assert any(math.isclose(found.value, v, rel_tol=1e-9) for v in values)


def test_translates_have_the_translate_of_the_mean():
    x = normal(15, 3)
    shifts = [normal(3, seed=k) for k in (1, 2, 3)]
    found = barycenter([of.Particles(x + s) for s in shifts], SHARES)
    mean = sum(p * s for p, s in zip(SHARES, shifts, strict=True))
    assert float(wasserstein2(found.measure, of.Particles(x + mean))) < 1e-7
    assert found.bracket().relative < 1e-9


def test_on_the_line_particles_meet_the_lower_bound():
    for sizes in ((8, 11, 9), (8, 8, 8)):
        clouds = [weighted(n, 1, seed=n + k) for k, n in enumerate(sizes)]
        found = barycenter(clouds, SHARES)
        assert found.guarantee == "optimal"
        assert found.bracket().relative < 1e-10


def test_equal_measures_have_no_move_left():
    mu = weighted(20)
    found = barycenter([mu, mu, mu])
    assert found.converged
    assert float(wasserstein2(found.measure, mu)) < 1e-7


def test_an_atom_next_to_nothing_does_not_spoil_the_mean():
    """Its mass is below the round-off of the levels."""
    w = torch.full((9,), 1 / 9, dtype=F64)
    w[0] = 1e-18
    mus = [of.Particles(normal(9, 2, seed=k), w, normalize=True) for k in (1, 2, 3)]
    for start in (None, mus[0]):
        found = barycenter(mus, start=start)
        assert found.converged
        assert found.value >= found.bracket().lower


def test_a_start_keeps_its_number_and_its_masses():
    mus = [of.Particles(normal(30, 2, seed=k)) for k in (1, 2, 3)]
    start = of.Particles(
        normal(5, 2), torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2], dtype=F64)
    )
    found = barycenter(mus, SHARES, start=start)
    assert torch.equal(found.measure.weights, start.weights)
    assert found.converged
    assert found.guarantee == "stationary"
    # The velocity of the Frechet functional vanishes there.
    x = found.measure.points.clone().requires_grad_()
    nu = of.Particles(x, start.weights)
    parts = [
        s * wasserstein2_squared(nu, mu) for s, mu in zip(SHARES, mus, strict=True)
    ]
    (slope,) = torch.autograd.grad(sum(parts), x)
    assert float(slope.norm()) < 1e-6
    assert found.value > barycenter(mus, SHARES).value


def test_the_points_of_the_mean_follow_those_of_the_measures():
    x = normal(9, 2).requires_grad_()
    mus = [of.Particles(x), of.Particles(normal(9, 2, seed=1)), weighted(7, seed=2)]
    nu = barycenter(mus, SHARES).measure
    (slope,) = torch.autograd.grad((nu.weights @ nu.points).sum(), x)
    torch.testing.assert_close(slope, torch.full_like(x, 0.5 / 9))


# Grids --------------------------------------------------------------------------------


def test_on_a_grid_bells_have_the_bell_of_the_mean():
    """Means and deviations of bells along the axes are averaged."""
    mus = [bell([0.3, 0.4], [0.06, 0.1]), bell([0.7, 0.6], [0.1, 0.06])]
    found = barycenter(mus, blur=0.05, tolerance=1e-4)
    assert found.guarantee == "sinkhorn"
    assert found.residual <= 1e-4
    nu = found.measure
    mean = nu.expectation(lambda x: x)
    spread = nu.expectation(lambda x: (x - mean).square()).sqrt()
    torch.testing.assert_close(mean, torch.full_like(mean, 0.5), atol=2e-3, rtol=0)
    torch.testing.assert_close(spread, torch.full_like(mean, 0.08), atol=2e-3, rtol=0)
    exact = 0.25 * (0.4**2 + 0.2**2 + 2 * 0.04**2)
    assert found.value == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("blur", [0.04, 0.1])  # sums of logarithms, and products
def test_on_a_grid_the_value_is_that_of_divergences_and_the_least(blur):
    mus = [bell([0.35], [0.08], 30), bell([0.6], [0.05], 30), bell([0.5], [0.1], 30)]
    found = barycenter(mus, SHARES, blur=blur, tolerance=1e-7)

    def value(nu):
        atoms = [of.Particles(m.points, m.weights) for m in (nu, *mus)]
        parts = [
            of.metrics.sinkhorn_divergence(atoms[0], a, blur=blur) for a in atoms[1:]
        ]
        return 2 * sum(s * float(p) for s, p in zip(SHARES, parts, strict=True))

    assert found.value == pytest.approx(value(found.measure), rel=1e-5)
    for other in mus:
        assert value(found.measure.mix(other, 0.05)) > found.value
    exact = barycenter(mus, SHARES)
    assert found.value == pytest.approx(exact.value, rel=0.1)


@pytest.mark.parametrize("dim", [2, 3])
def test_on_a_grid_cells_may_be_empty_and_a_shift_is_halved(dim):
    """The mean of a block and its translate lies half way, as heavy in every axis."""
    n = 12 if dim == 2 else 8
    blocks = []
    for first in (1, n - 4):
        rho = torch.zeros((n,) * dim, dtype=F64)
        rho[(slice(first, first + 3),) * dim] = 1.0
        blocks.append(of.GridDensity(rho, 0, 1, walls=True, normalize=True))
    found = barycenter(blocks, blur=1.5 / n, tolerance=1e-4)
    mean = found.measure.expectation(lambda x: x)
    torch.testing.assert_close(mean, torch.full_like(mean, 0.5), atol=1e-4, rtol=0)
    shift = dim * ((n - 5) / n) ** 2
    assert found.value == pytest.approx(0.25 * shift, rel=0.02)


def test_a_measure_alone_is_its_own_mean_on_a_grid():
    mu = bell([0.4, 0.5], [0.1, 0.1], 16)
    found = barycenter([mu], blur=0.1)
    assert abs(found.value) < 1e-4
    assert float((found.measure.weights - mu.weights).abs().sum()) < 0.02


def test_in_the_plane_of_a_grid_no_distance_bounds_the_value():
    mus = [bell([m, 0.5], [0.15, 0.15], 12) for m in (0.4, 0.6)]
    found = barycenter(mus, blur=0.2)
    with pytest.raises(TypeError, match="no distance bounds"):
        found.bracket()


# Derivatives --------------------------------------------------------------------------


def covariances(d, count=3):
    factors = [normal(d, d, seed=k) for k in range(count)]
    return [a @ a.T + 0.1 * torch.eye(d, dtype=F64) for a in factors]


def of_moments(log_shares, *moments):
    """Return mean and covariance of the barycentre of Gaussians of these moments."""
    half = len(moments) // 2
    mus = [
        of.Gaussian(m, 0.5 * (s + s.T))
        for m, s in zip(moments[:half], moments[half:], strict=True)
    ]
    found = barycenter(mus, log_shares.softmax(0), tolerance=1e-13).measure
    return found.mean, found.covariance


@pytest.mark.parametrize("d", [1, 2, 4])
def test_gaussians_are_differentiable_in_means_covariances_and_weights(d):
    moments = [*(normal(d, seed=9 + k) for k in range(3)), *covariances(d)]
    arguments = [torch.tensor(SHARES, dtype=F64).log(), *moments]
    live = [t.clone().requires_grad_() for t in arguments]
    assert torch.autograd.gradcheck(of_moments, live, atol=1e-6)


@pytest.mark.slow
def test_second_derivatives_of_gaussians_are_right():
    arguments = [torch.tensor(SHARES, dtype=F64).log(), *3 * [torch.zeros(2).double()]]
    live = [t.clone().requires_grad_() for t in (*arguments, *covariances(2))]
    assert torch.autograd.gradgradcheck(
        lambda *a: of_moments(*a)[1].sin().sum(), live, atol=1e-5
    )


def test_derivatives_of_gaussians_that_commute_are_those_of_roots():
    r"""On the line the covariance is :math:`(\sum_i \lambda_i s_i^{1/2})^2`, thrice."""
    s = torch.tensor([0.5, 2.0, 3.0], dtype=F64).requires_grad_()
    shares = torch.tensor(SHARES, dtype=F64)
    zero = torch.zeros(1, dtype=F64)
    mus = [of.Gaussian(zero, v.reshape(1, 1)) for v in s]
    values = [barycenter(mus, shares, tolerance=1e-13).measure.covariance.sum()]
    exact = [(shares @ s.sqrt()).square()]
    for _ in range(3):
        for found in (values, exact):
            (slope,) = torch.autograd.grad(found[-1], s, create_graph=True)
            found.append(slope.sin().sum())
        torch.testing.assert_close(values[-1], exact[-1], rtol=1e-9, atol=1e-12)


def test_a_graph_changes_no_value():
    mus = [gaussian(3, k) for k in (1, 2, 3)]
    live = [mu.with_free_state(mu.state.clone().requires_grad_()) for mu in mus]
    one, other = barycenter(mus, SHARES), barycenter(live, SHARES)
    assert torch.equal(one.measure.state, other.measure.state)
    assert one.value == other.value
    grids = [bell([m, 0.5], [0.15, 0.15], 12) for m in (0.4, 0.6)]
    live_grids = [g.with_weights(g.weights.clone().requires_grad_()) for g in grids]
    one, other = barycenter(grids, blur=0.2), barycenter(live_grids, blur=0.2)
    assert torch.equal(one.measure.weights, other.measure.weights)


def test_beside_a_singular_covariance_the_others_are_differentiable():
    flat = gaussian(3, 1)
    state = flat.state.clone()
    state[1:] = state[1:2] * normal(3, 1, seed=7)
    flat = flat.with_free_state(state)
    wide, other = gaussian(3, 2), gaussian(3, 3)

    def covariance(z, w):
        mus = [flat, wide.with_free_state(z), other]
        return barycenter(mus, w.softmax(0), tolerance=1e-13).measure.covariance

    z = wide.state.clone().requires_grad_()
    w = normal(3).requires_grad_()
    assert torch.autograd.gradcheck(covariance, (z, w), atol=1e-6)
    point = wide.with_free_state(torch.cat([normal(1, 3), torch.zeros(3, 3).double()]))
    scaled = barycenter([point, wide.with_free_state(z)], [0.25, 0.75]).measure
    (slope,) = torch.autograd.grad(scaled.covariance.diagonal().sum(), z)
    torch.testing.assert_close(slope[1:], 2 * 0.75**2 * wide.state[1:])


def weighted_by(mus, function, **options):
    """Return a number of the barycentre as a function of logarithms of the weights."""

    def value(log_shares):
        found = barycenter(mus, log_shares.softmax(0), **options)
        return function(found.measure)

    return value


@pytest.mark.parametrize("name", ["quantiles", "one grid", "equal", "weights", "start"])
def test_the_mean_is_differentiable_in_the_weights(name):
    options: dict[str, Any] = {}
    mus: list[Any] = [quantiles(k, k) for k in (5, 7, 4)]
    if name == "one grid":
        mus = [steps(6, k, 0.1 * k) for k in (1, 2, 3)]
    elif name == "equal":
        mus = [of.Particles(normal(7, 2, seed=k)) for k in (1, 2, 3)]
    elif name in {"weights", "start"}:
        mus = [weighted(n, seed=n) for n in (6, 9, 8)]
    if name == "start":
        options["start"] = of.Particles(normal(4, 2))
    value = weighted_by(mus, lambda nu: nu.expectation(lambda x: x.sin().sum(-1)))
    live = torch.tensor(SHARES, dtype=F64).log().requires_grad_()
    assert torch.autograd.gradcheck(value, live, atol=1e-7)


def hills(*bumps):
    """Return densities of full support on 5 x 6 cells."""
    rows = torch.linspace(0, 1, 5, dtype=F64)[:, None]
    x = torch.linspace(0, 1, 6, dtype=F64)
    rho = [
        0.2 + torch.exp(-8 * ((x - m).square() + (rows - 0.5).square())) for m in bumps
    ]
    return [of.GridDensity(r, 0, 1, walls=True, normalize=True) for r in rho]


@pytest.mark.parametrize(("side", "blur"), [(1, 0.4), (40, 10.0)])
def test_on_a_grid_the_mean_is_differentiable_in_masses_and_weights(side, blur):
    """At the number of iterations that were made; products, and sums of logarithms."""
    grids = [
        of.GridDensity(mu.grid, [0, 0], [1, side], walls=True, normalize=True)
        for mu in hills(0.3, 0.5, 0.8)
    ]
    counts = set()

    def value(log_shares, *logs):
        live = [
            mu.with_weights(z.softmax(0)) for mu, z in zip(grids, logs, strict=True)
        ]
        found = barycenter(live, log_shares.softmax(0), tolerance=1e-3, blur=blur)
        counts.add(found.iterations)
        return normal(30, seed=5) @ found.measure.weights

    at = [torch.tensor(SHARES, dtype=F64).log(), *(mu.weights.log() for mu in grids)]
    live = [z.clone().requires_grad_() for z in at]
    slopes = torch.autograd.grad(value(*live), live)
    for k, (z, slope) in enumerate(zip(at, slopes, strict=True)):
        u = normal(*z.shape, seed=20 + k)

        def along(t, k=k, u=u):
            return value(*(z + t * u if j == k else z for j, z in enumerate(at)))

        wanted = (along(1e-4) - along(-1e-4)) / 2e-4
        assert abs(float(wanted)) > 1e-4
        torch.testing.assert_close((slope * u).sum(), wanted, rtol=1e-5, atol=0)
    assert len(counts) == 1
    assert counts.pop() >= 20


def test_on_a_grid_the_mean_of_translates_moves_with_the_weights():
    mus = [bell([0.35], [0.08], 30), bell([0.6], [0.08], 30)]
    shares = torch.tensor([0.4, 0.6], dtype=F64).requires_grad_()
    nu = barycenter(mus, shares, blur=0.1).measure
    (slope,) = torch.autograd.grad((nu.weights @ nu.points)[0], shares)
    assert float(slope[1] - slope[0]) == pytest.approx(0.25, rel=1e-4)


def test_on_a_grid_a_second_derivative_is_right():
    mus = hills(0.35, 0.6)

    def slope(w):
        nu = barycenter(mus, w.softmax(0), blur=0.4, tolerance=1e-2).measure
        value = normal(30, seed=5) @ nu.weights
        return torch.autograd.grad(value, w, create_graph=True)[0][0]

    w = torch.zeros(2, dtype=F64, requires_grad=True)
    u = torch.tensor([1.0, 0.0], dtype=F64)
    (second,) = torch.autograd.grad(slope(w), w)
    wanted = [slope((w + t * u).detach().requires_grad_()) for t in (1e-4, -1e-4)]
    wanted = (wanted[0] - wanted[1]) / 2e-4
    torch.testing.assert_close(second[0], wanted.detach(), rtol=1e-5, atol=1e-9)


# All kinds ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quantiles", "Gaussians", "particles", "grids"])
def test_laws_of_the_mean(name):
    """The order of the measures, a common scale and a shift do not matter."""
    options: dict[str, Any] = {"blur": 0.2} if name == "grids" else {}
    mus = KINDS[name]()
    found = barycenter(mus, [0.7, 0.3], **options)
    back = barycenter(mus[::-1], [0.3, 0.7], **options)
    assert back.value == pytest.approx(found.value, rel=1e-6)
    moved = [scaled(mu, 8.0, -3.0) for mu in mus]
    if options:
        options = {"blur": 1.6}
    there = barycenter(moved, [0.7, 0.3], **options)
    assert there.value == pytest.approx(64 * found.value, rel=1e-6)
    if options:  # the exact distance would see the round-off of the masses
        for mean, wanted in ((back, found), (there, found)):
            torch.testing.assert_close(mean.measure.weights, wanted.measure.weights)
        return
    assert float(wasserstein2(found.measure, back.measure)) < 1e-6 * found.value**0.5
    wanted = scaled(found.measure, 8.0, -3.0)
    assert float(wasserstein2(there.measure, wanted)) < 1e-6 * there.value**0.5


def scaled(mu, unit, shift):
    """Return the measure with x replaced by unit x + shift."""
    if isinstance(mu, of.Quantiles):
        return mu.with_free_edges(unit * mu.edges + shift)
    if isinstance(mu, of.Gaussian):
        return of.Gaussian(unit * mu.mean + shift, unit**2 * mu.covariance)
    if isinstance(mu, of.Particles):
        return of.Particles(unit * mu.points + shift, mu.weights)
    ends = [[unit * a + shift for a in b] for b in (mu.box.lower, mu.box.upper)]
    return of.GridDensity(mu.grid, *ends, walls=True, normalize=True)


KINDS: dict[str, Callable[[], Any]] = {
    "quantiles": lambda: [quantiles(4, k) for k in (1, 2)],
    "Gaussians": lambda: [gaussian(2, k) for k in (1, 2)],
    "particles": lambda: [weighted(5, seed=k) for k in (1, 2)],
    "grids": lambda: [bell([m, 0.5], [0.15, 0.15], 12) for m in (0.4, 0.6)],
}


@pytest.mark.parametrize("name", KINDS)
def test_single_precision_stays_and_words_are_those_of_guarantees(name):
    options: dict[str, Any] = {"blur": 0.2} if name == "grids" else {}
    exact = barycenter(KINDS[name](), **options)
    found = barycenter([mu.to(torch.float32) for mu in KINDS[name]()], **options)
    assert found.measure.dtype == torch.float32
    assert found.value == pytest.approx(exact.value, rel=1e-3, abs=1e-5)
    assert found.guarantee in list(of.proximal.Guarantee)
    assert found.weights == (0.5, 0.5)


@pytest.mark.parametrize("name", KINDS)
def test_a_measure_of_weight_zero_does_not_count(name):
    options: dict[str, Any] = {"blur": 0.2} if name == "grids" else {}
    one, other = KINDS[name]()
    found = barycenter([one, other], [0.0, 1.0], **options)
    assert found.measures == (other,)
    assert abs(found.value) < 1e-3


@pytest.mark.parametrize("name", ["Gaussians", "particles", "grids"])
def test_an_iteration_cut_short_warns_and_proves_nothing(name):
    options: dict[str, Any] = {"blur": 0.2} if name == "grids" else {}
    mus = [*KINDS[name](), *KINDS[name]()[:1]]
    if name == "particles":
        mus = [weighted(9, seed=k) for k in (1, 2, 3)]
    with pytest.warns(of.errors.NotConvergedWarning, match="stopped after 1 iter"):
        found = barycenter(mus, SHARES, max_iterations=1, tolerance=1e-14, **options)
    assert not found.converged
    assert found.guarantee == "none"
    assert found.residual > 1e-14


@pytest.mark.parametrize(
    ("measures", "weights", "kind", "words"),
    [
        ([], None, ValueError, "one measure or more, got none"),
        ([weighted(3)], [1.0, 0.0], ValueError, "weights must have shape"),
        ([weighted(3)] * 2, [0.5, 0.6], ValueError, "weights must sum to 1"),
        ([weighted(3)] * 2, [1.5, -0.5], ValueError, "non-negative"),
        ([weighted(3)] * 2, [math.nan, 1.0], ValueError, "must be finite"),
        ([weighted(3)] * 2, torch.full((2,), math.inf), ValueError, "must be finite"),
        ([weighted(3)] * 2, "ab", TypeError, "weights must be numbers"),
        ([weighted(3)] * 2, [None, 1.0], TypeError, "a weight must be a real number"),
        ([weighted(3)] * 2, 0.5, TypeError, "weights must be numbers"),
        ([weighted(3)] * 2, torch.full((2,), 0.5 + 1j), TypeError, "must be numbers"),
        ([weighted(3), weighted(3, 3)], None, ValueError, "one space"),
        ([gaussian(2, 1), gaussian(3, 1)], None, ValueError, "dimension"),
        ([bell([0.5, 0.5], [0.1, 0.1], k) for k in (8, 9)], None, TypeError, "blur"),
        ([normal(3, 2)], None, TypeError, r"measures\[0\] must be a Measure"),
    ],
)
def test_refusals(measures: Any, weights, kind, words):
    with pytest.raises(kind, match=words):
        barycenter(measures, weights)


@pytest.mark.parametrize(
    "shares",
    [torch.full((3,), 1 / 3), torch.full((3,), 1 / 3).numpy(), (1, 0, 0), [1 / 3] * 3],
)
def test_weights_may_be_single_precision_whole_or_numbers(shares):
    found = barycenter([weighted(5, seed=k) for k in (1, 2, 3)], shares)
    assert sum(found.weights) == pytest.approx(1.0, abs=1e-15)


def test_densities_lie_on_one_grid():
    mus = [bell([0.5, 0.5], [0.1, 0.1], k) for k in (8, 9)]
    with pytest.raises(ValueError, match="same grid"):
        barycenter(mus, blur=0.3)
