"""Moves of densities on grids, against exact push-forwards and heat flows."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from benchmarks.memory import peak_extra_megabytes
from otflow.analysis import observed_order
from otflow.measures.grid.heat import heat
from otflow.testing.clouds import normal
from tests.exact_gaussians import cosine_cells, gaussian_cells, gaussian_density
from tests.measures.grid.fields import face_velocity, two_rooms

FIELDS = {
    1: torch.tensor([[0.8]]),
    2: torch.tensor([[0.6, -1.1], [0.9, -0.3]]),  # rotation, stretch and shear
    3: torch.tensor([[0.5, -0.9, 0.2], [0.7, -0.4, 0.3], [0.1, -0.5, 0.2]]),
}


def normal_density(covariance, n, reach=2.5):
    d = len(covariance)
    return of.GridDensity.from_function(
        lambda x: gaussian_density(x, torch.zeros(d).double(), covariance),
        -reach,
        reach,
        (n,) * d,
        walls=True,
        dtype=torch.float64,
    )


def distance(mu, nu):
    return float((mu.weights - nu.weights).abs().sum())


# Transport ----------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("dt", [0.3, 0.05])
def test_transport_by_a_linear_map_has_order_two_in_space(d, dt):
    # A splitting error in dt would not vanish with h: the sweeps have none.
    A = FIELDS[d].double()
    B = torch.eye(d, dtype=torch.float64) + dt * A
    S = 0.09 * torch.eye(d, dtype=torch.float64)
    sizes = (20, 30, 40) if d == 3 else (48, 96, 192)
    errors = []
    for n in sizes:
        mu = normal_density(S, n)
        moved = mu.transport(face_velocity(mu, lambda x: x @ A.T), dt)
        assert float(moved.weights.sum()) == pytest.approx(1, abs=1e-14)
        errors.append(distance(moved, normal_density(B @ S @ B.T, n)))
    order = observed_order([1 / n for n in sizes], errors)
    assert order > 1.85
    assert errors[-1] < 0.2 * (dt if d < 3 else 6 * dt) * (48 / sizes[-1]) ** 2


def swirl(x):
    """Return a velocity that neither turns nor stretches alone, 0 through the walls."""
    a, b = x[..., 0], x[..., 1]
    turn = torch.stack([a.sin() * b.cos(), -a.cos() * b.sin()], -1)
    squeeze = torch.stack([0.3 * (2 * a).sin() * b.cos(), -0.2 * b.sin()], -1)
    return turn + squeeze


def swirled(density, x, dt):
    """Return the push-forward density by x + dt swirl(x), at points (n, d)."""
    y = x
    for _ in range(60):
        y = x - dt * swirl(y)
    h = 1e-5
    columns = [
        (swirl(y + h * e) - swirl(y - h * e)) / (2 * h)
        for e in torch.eye(2, dtype=x.dtype)
    ]
    jacobian = torch.eye(2, dtype=x.dtype) + dt * torch.stack(columns, -1)
    return density(y) / torch.linalg.det(jacobian)


@pytest.mark.parametrize("dt", [0.4, -0.4, 0.1])
def test_transport_by_a_smooth_map_between_walls_has_order_two(dt):
    def density(x):
        return (2 + x[..., 0].cos() + x[..., 1].sin()) / 30

    errors, sizes = [], (32, 64, 128)
    for n in sizes:
        mu, expected = (
            of.GridDensity.from_function(
                f, 0, math.pi, (n, n), walls=True, dtype=torch.float64
            )
            for f in (density, lambda x: swirled(density, x, dt))
        )
        errors.append(distance(mu.transport(face_velocity(mu, swirl), dt), expected))
    assert observed_order([1 / n for n in sizes], errors) > 1.8
    assert errors[-1] < 5e-4 * abs(dt)


def test_transport_beats_the_upwind_flux():
    A = FIELDS[2].double()
    S = 0.09 * torch.eye(2, dtype=torch.float64)
    B = torch.eye(2, dtype=torch.float64) + 0.005 * A
    mu = normal_density(S, 96)
    v = face_velocity(mu, lambda x: x @ A.T)
    expected = normal_density(B @ S @ B.T, 96)
    upwind = distance(mu.push(v, 0.005), expected)
    assert distance(mu.transport(v, 0.005), expected) < 0.1 * upwind


def test_transport_moves_whole_cells_exactly():
    rho = torch.zeros(8, 7, dtype=torch.float64)
    rho[2:5, 3:6] = normal(3, 3, seed=3).abs()
    mu = of.GridDensity(rho, 0, [8, 7], normalize=True)
    shift = torch.tensor([2.0, -2.0], dtype=torch.float64)
    moved = mu.transport(face_velocity(mu, lambda x: shift.expand_as(x)), 1.0)
    expected = mu.grid.roll((2, -2), (0, 1))
    torch.testing.assert_close(moved.grid, expected, rtol=0, atol=1e-15)


def test_velocities_between_empty_cells_do_not_matter():
    for n in (24, 48, 96):
        mu = of.GridDensity.from_function(
            lambda x: (0.3 - (x - 0.4).square().sum(-1)).clamp_min(0),
            -1,
            1.5,
            (n, n),
            dtype=torch.float64,
        )
        v = face_velocity(mu, lambda x: x.flip(-1).sin())
        below, above = mu.box.neighbours(mu.weights)
        empty = (below == 0) & (above == 0)
        garbage = torch.where(empty, 50 * normal(len(v), seed=4), v)
        assert bool(empty.any())
        assert distance(mu.transport(garbage, 0.3), mu.transport(v, 0.3)) < 1e-15


@pytest.mark.parametrize("dt", [0.05, 1.0, 50.0])
def test_transport_of_rough_masses_by_a_rough_field_keeps_mass_and_sign(dt):
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 2e-6)):
        rho = normal(20, 16, seed=1, dtype=dtype).clamp_min(0)  # half is vacuum
        mask = two_rooms(20)[:, :16]
        mu = of.GridDensity(
            rho * ~mask, 0, 1, obstacles=mask, walls=True, normalize=True
        )
        v = normal(mu.box.n_faces, seed=2, dtype=dtype)
        moved = mu.transport(v, dt)
        assert bool((moved.weights >= 0).all())
        assert float(moved.weights.sum()) == pytest.approx(1, abs=tolerance)
        assert bool((moved.weights.reshape(20, 16)[mask] == 0).all())


def test_an_obstacle_stops_what_is_carried_into_it():
    mask = torch.zeros(8, 2, dtype=torch.bool)
    mask[4] = True
    mask[4, 1] = False
    rho = torch.zeros(8, 2, dtype=torch.float64)
    rho[1:3, 0] = 1.0
    mu = of.GridDensity(rho, 0, [8, 2], obstacles=mask, walls=True, normalize=True)
    right = torch.tensor([1.0, 0.0], dtype=torch.float64)
    v = face_velocity(mu, lambda x: right.expand_as(x))
    half = mu.transport(v, 1.5).weights.reshape(8, 2)
    assert half[:2].sum() == 0
    assert 0.1 < float(half[2, 0]) < 0.3
    assert float(half[2, 0] + half[3, 0]) == pytest.approx(1.0, abs=1e-14)
    far = mu.transport(v, 30.0).weights.reshape(8, 2)
    assert far[:, 0].tolist() == pytest.approx([0, 0, 0, 1, 0, 0, 0, 0])


def test_colliding_mass_sticks_where_it_meets():
    rho = torch.zeros(10, dtype=torch.float64)
    rho[2:7] = 1.0
    mu = of.GridDensity(rho, 0, 10, normalize=True)
    inwards = face_velocity(mu, lambda x: -(x - 4.5))
    assert float(mu.transport(inwards, 1.0).weights[4]) == pytest.approx(1, abs=1e-14)
    assert float(mu.transport(inwards, 1.4).weights[4]) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("share", [1e-8, 1e-12, 1e-30])
def test_what_hardly_bears_mass_does_not_sweep_the_bulk_along(seed, share):
    n = 120
    x = torch.linspace(-3, 3, n + 1, dtype=torch.float64)
    centres = 0.5 * (x[1:] + x[:-1])
    bulk = torch.exp(-8 * (centres + 0.5).square())
    tail = share * torch.rand(n, generator=torch.Generator().manual_seed(seed)).double()
    mu = of.GridDensity(bulk + tail, -3, 3, walls=True, normalize=True)
    calm = 0.3 * torch.sin(x[1:-1])
    thin = bulk < 1e-6
    wild = calm + 50 * normal(n - 1, seed=seed) * (thin[1:] & thin[:-1])
    one, two = mu.transport(calm, 0.5), mu.transport(wild, 0.5)
    assert float((one.weights - two.weights).abs().sum()) < 1e-4 + 1e3 * share


def test_there_and_back_misses_by_what_the_two_maps_miss():
    # x + dt v(x), then x - dt v(x): the gap is dt^2 (v . grad) v, exactly seen.
    A = FIELDS[2].double()
    S = 0.09 * torch.eye(2, dtype=torch.float64)
    mu = normal_density(S, 160)
    v = face_velocity(mu, lambda x: x @ A.T)
    identity = torch.eye(2, dtype=torch.float64)
    for dt in (0.2, 0.1):
        B = (identity - dt * A) @ (identity + dt * A)
        expected = normal_density(B @ S @ B.T, 160)
        there_and_back = mu.transport(v, dt).transport(v, -dt)
        assert distance(there_and_back, expected) < 2e-2 * dt
        assert distance(there_and_back, mu) > 0.5 * dt**2


@pytest.mark.parametrize("shape", [(2,), (3,), (2, 2), (3, 2), (2, 3, 2), (4, 2, 3)])
def test_the_smallest_grids_move_too(shape):
    mu = of.GridDensity(normal(*shape).abs(), 0, 1, walls=True, normalize=True)
    v = 0.3 * normal(mu.box.n_faces, seed=1)
    g = torch.Generator().manual_seed(0)
    nu = mu.push(v, 0.1)
    again = mu.push(mu.displacement_to(nu), 1.0)
    torch.testing.assert_close(again.weights, nu.weights, rtol=0, atol=1e-14)
    for moved in (mu.transport(v, 0.5), mu.diffuse(0.1, g), mu.transport(v, 1e3)):
        assert bool((moved.weights >= 0).all())
        assert float(moved.weights.sum()) == pytest.approx(1, abs=1e-14)
    assert mu.sample(4, g).shape == (4, mu.dim)
    assert math.isfinite(mu.interaction(of.kernels.Riesz(0.5)))


# Upwind fluxes ------------------------------------------------------------------------


def test_the_cfl_limit_is_named_and_exact():
    mu = normal_density(0.09 * torch.eye(2).double(), 16)
    v = face_velocity(mu, lambda x: -x)
    with pytest.raises(
        of.errors.Diverged,
        match=r"dt = 9 is above the CFL limit .* take \|dt\| <= .* or use JKO",
    ) as caught:
        mu.push(v, 9.0)
    assert caught.value.measure is mu
    limit = float(str(caught.value).split("|dt| <= ")[1].split(",")[0])
    mu.push(v, limit * 0.999)
    with pytest.raises(of.errors.Diverged):
        mu.push(v, limit * 1.001)


def test_a_cell_at_the_limit_is_emptied():
    rho = torch.tensor([0.0, 0.0, 3.0, 0.0, 0.0], dtype=torch.float64)
    mu = of.GridDensity(rho, 0, 5, normalize=True)
    v = torch.ones(4, dtype=torch.float64)
    assert mu.push(v, 1.0).weights.tolist() == [0, 0, 0, 1, 0]
    assert mu.push(v, -1.0).weights.tolist() == [0, 1, 0, 0, 0]
    # Fast faces of empty cells do not limit the step.
    v[0] = 1e9
    assert mu.push(v, 0.5).weights.tolist() == [0, 0, 0.5, 0.5, 0]


def test_upwind_fluxes_have_order_one_in_space():
    errors, sizes = [], (32, 64, 128)
    for n in sizes:
        mu = normal_density(0.09 * torch.eye(1).double(), n)
        v = face_velocity(mu, lambda x: -0.5 * x)
        nu, steps = mu, n // 4  # dt in proportion to h
        for _ in range(steps):
            nu = nu.push(v, 0.5 / steps)
        shrunk = 0.09 * math.exp(-0.5) * torch.eye(1).double()
        errors.append(distance(nu, normal_density(shrunk, n)))
    assert observed_order([1 / n for n in sizes], errors) == pytest.approx(1, abs=0.15)


# Displacements ------------------------------------------------------------------------


def test_a_displacement_has_the_kinetic_energy_of_the_optimal_map():
    # A shift by 0.01: half a cell.
    mu, nu = (
        of.GridDensity.from_function(
            lambda x, s=s: torch.exp(-8 * (x - s).square().sum(-1)),
            -2,
            2,
            (80, 80),
            dtype=torch.float64,
        )
        for s in (0.0, 0.01)
    )
    u = mu.displacement_to(nu)
    torch.testing.assert_close(mu.push(u, 1.0).weights, nu.weights, rtol=0, atol=1e-14)
    assert float(mu.norm(u)) == pytest.approx(0.01 * math.sqrt(2), rel=2e-2)


def test_a_displacement_may_enter_vacuum_and_pass_a_door():
    mask = two_rooms(16)
    mu = of.GridDensity.from_function(
        lambda x: (0.8 - x.square().sum(-1)).clamp_min(0),
        -1,
        1,
        (16, 16),
        obstacles=mask,
        walls=True,
        dtype=torch.float64,
    )
    v = face_velocity(mu, lambda x: 0.3 * x + 0.5)
    nu = mu.push(v, 0.05)
    assert bool(((nu.weights > 0) & (mu.weights == 0)).any())
    u = mu.displacement_to(nu)
    torch.testing.assert_close(mu.push(u, 1.0).weights, nu.weights, rtol=0, atol=1e-14)
    assert float(mu.norm(u)) <= float(mu.norm(0.05 * v)) * 1.5


def test_a_displacement_over_vacuum_or_over_many_cells_is_refused():
    def pile(*places):
        rho = torch.zeros(9, 3, dtype=torch.float64)
        rho[list(places)] = 1.0
        return of.GridDensity(rho, 0, 1, walls=True, normalize=True)

    cure = "less than a cell apart, compare them by metrics.wasserstein2(mu, nu), or"
    for mu, nu in [(pile(1), pile(4)), (pile(1, 7), pile(1)), (pile(0, 1), pile(7, 8))]:
        with pytest.raises(of.errors.Unsupported, match="cross empty cells") as caught:
            mu.displacement_to(nu)
        assert cure in str(caught.value)
    mu = of.GridDensity.from_function(
        lambda x: torch.exp(-x[:, 0]), 0, 5, (50,), walls=True
    )
    with pytest.raises(
        of.errors.Unsupported, match=r"times its mass.*less than a cell"
    ):
        mu.displacement_to(mu.with_weights(mu.weights.flip(0)))


# Heat ---------------------------------------------------------------------------------


def test_heat_between_walls_is_the_series_of_cosines():
    n, variance = 64, 0.1
    for k in (1, 3):
        mu = of.GridDensity(cosine_cells(n, 0, k=k), 0, 1, walls=True)
        moved = mu.diffuse(variance, torch.Generator())
        # The difference Laplacian of a cosine is a multiple of it.
        rate = (2 * n * math.sin(math.pi * k / (2 * n))) ** 2
        expected = 1 + (mu.density() - 1) * math.exp(-rate * variance / 2)
        torch.testing.assert_close(moved.density(), expected, rtol=0, atol=1e-13)
        exact = cosine_cells(n, variance / 2, k=k)
        assert float((moved.density() - exact).abs().max()) < 1e-3


def test_heat_on_the_whole_space_has_order_two_and_splits_over_the_axes():
    errors, sizes = [], (16, 32, 64)
    variance = torch.tensor([0.2, 0.1], dtype=torch.float64)
    mean = torch.zeros(2).double()
    for n in sizes:
        rho = gaussian_cells(mean, variance, -3, 3, (n, n))
        mu = of.GridDensity(rho, -3, 3, normalize=True)
        rho = gaussian_cells(mean, variance + 0.15, -3, 3, (n, n))
        nu = of.GridDensity(rho, -3, 3, normalize=True)
        errors.append(distance(mu.diffuse(0.15, torch.Generator()), nu))
    assert observed_order([1 / n for n in sizes], errors) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("variance", [1e-9, 1e-3, 0.3, 20.0, 1e6])
def test_heat_is_positive_and_keeps_mass_at_all_times(variance):
    rho = torch.zeros(30, 5, dtype=torch.float64)
    rho[3, 2] = 1.0
    mu = of.GridDensity(rho, 0, [3, 1], walls=True, normalize=True)
    moved = mu.diffuse(variance, torch.Generator())
    assert float(moved.weights.sum()) == pytest.approx(1, abs=1e-14)
    assert bool((moved.weights >= 0).all())
    if variance >= 1e-3:
        assert bool((moved.weights > 0).all())
    if variance > 1e3:
        torch.testing.assert_close(moved.weights, torch.full((150,), 1 / 150).double())


def test_heat_is_a_semigroup():
    mu = normal_density(0.09 * torch.eye(2).double(), 24)
    g = torch.Generator()
    torch.testing.assert_close(
        mu.diffuse(0.1, g).diffuse(0.3, g).weights,
        mu.diffuse(0.4, g).weights,
        rtol=1e-10,
        atol=1e-16,
    )


def test_heat_around_obstacles_is_the_exponential_of_the_laplacian():
    mask = two_rooms(8)
    rho = normal(8, 8, seed=2).abs() * ~mask
    mu = of.GridDensity(rho, 0, 1, obstacles=mask, walls=True, normalize=True)
    identity = torch.eye(64, dtype=torch.float64)
    is_open = mu.open_faces(mu.dtype)
    columns = [mu.box.divergence(is_open * mu.box.gradient(e)) for e in identity]
    for variance in (1e-3, 0.05, 1.0, 20.0):
        kernel = torch.matrix_exp(0.5 * variance * torch.stack(columns, 1))
        moved = mu.diffuse(variance, torch.Generator())
        torch.testing.assert_close(
            moved.weights, kernel @ mu.weights, rtol=1e-10, atol=1e-15
        )
        assert float(moved.weights.sum()) == pytest.approx(1, abs=1e-14)
        assert bool((moved.weights[mu.is_free] > 0).all())
    rest = mu.diffuse(100.0, torch.Generator()).density()[mu.is_free]
    torch.testing.assert_close(rest, rest.mean().expand_as(rest), rtol=1e-6, atol=0)


def test_long_rows_are_treated_in_blocks():
    n = 2500
    mu = of.GridDensity(cosine_cells(n, 0, k=2), 0, 1, walls=True)
    moved = heat(mu.box, mu.weights, 0.01, mu.is_free) * n
    exact = cosine_cells(n, 0.01, k=2)
    torch.testing.assert_close(moved, exact, rtol=0, atol=1e-6)


# Size ---------------------------------------------------------------------------------


LARGE = """
import torch
import otflow as of
from benchmarks.memory import peak_extra_megabytes
from tests.measures.grid.fields import face_velocity

def moves(n):
    mu = of.GridDensity.from_function(
        lambda x: torch.exp(-8 * x.square().sum(-1)), -2, 2, (n, n)
    )
    mu.transport(face_velocity(mu, lambda x: x), 0.1).diffuse(0.01, torch.Generator())
    mu.interaction(of.kernels.Log())

moves(8)
"""


@pytest.mark.slow
def test_a_large_grid_moves_in_reasonable_memory():
    """In a process of its own: a peak of another test would hide it."""
    assert 10 < peak_extra_megabytes(LARGE, "moves(512)") < 300
