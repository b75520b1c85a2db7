"""Interactions in steps by finite volumes: Newton's method takes them whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import optimize

import otflow as of
from otflow.proximal import FiniteVolume
from otflow.proximal.grid.finite_volume import coupling as couplings
from otflow.proximal.grid.finite_volume.coupling import coupling_of
from otflow.proximal.grid.finite_volume.step import Local

F64 = torch.float64


def random_start(generator, shape, upper, *, wall=False):
    """Return a rough density, beside a wall with a door if wanted."""
    rho = torch.rand(shape, generator=generator, dtype=F64) ** 2
    blocked = torch.zeros(shape, dtype=torch.bool)
    if wall:
        blocked[shape[0] // 2, 1:] = True
    return of.GridDensity(
        rho * ~blocked, 0.0, upper, obstacles=blocked, walls=True, normalize=True
    )


def gaussian(width):
    return of.Interaction(of.kernels.Gaussian(width))


def morse(z):
    """Repulsion nearby, attraction from afar."""
    square = z.square().sum(-1)
    return torch.exp(-square / 0.02) - 0.9 * torch.exp(-square / 0.2)


# The kernels, and whether the energy is convex in the masses.
KERNELS = {
    "wide repulsion": (gaussian(0.7), True),
    "narrow repulsion": (gaussian(0.05), True),
    "repulsion by a logarithm": (of.Interaction(of.kernels.Log()), True),
    "minus the distance": (of.Interaction(lambda z: -z.norm(dim=-1)), True),
    "minus a square": (-1.0 * of.Interaction(of.kernels.Quadratic()), True),
    "a square": (of.Interaction(of.kernels.Quadratic()), False),
    "wide attraction": (-1.0 * gaussian(0.7), False),
    "narrow attraction": (-1.0 * gaussian(0.05), False),
    "attraction by a logarithm": (-1.0 * of.Interaction(of.kernels.Log()), False),
    "both": (of.Interaction(morse), False),
}


def imbalance(F, mu, result, dt):
    """Return what the stated first-order conditions are off by, at most.

    In cells that hold mass, from the definition: F's own first variation.
    """
    nu, fluxes = result.measure, result.certificate["fluxes"]
    below, above = mu.box.neighbours(nu.weights)
    upstream = torch.where(fluxes >= 0, below, above)
    moved = mu.box.split_faces(fluxes / upstream.clamp_min(1e-300))
    drop = mu.box.join_faces(
        [q * h**2 / dt for q, h in zip(moved, mu.box.spacing, strict=True)]
    )
    slopes = mu.box.over_spacing(drop)
    square = mu.box.collect(slopes.clamp_min(0) ** 2, slopes.clamp_max(0) ** 2)
    phi = F.first_variation(nu) - 0.5 * dt * square
    down, up = mu.box.neighbours(phi)
    matters = (torch.minimum(below, above) > 1e-4 / mu.n) & (mu.open_faces(F64) > 0)
    assert int(matters.sum()) > 10
    return float(((down - up) - drop)[matters].abs().max())


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dt", [1e-2, 1.0, 1e2])
def test_strong_interactions_solve_the_stated_equations(name, dt):
    G, convex = KERNELS[name]
    generator = torch.Generator().manual_seed(len(name))
    for shape, strength in (((40,), 3.0), ((9, 7), 30.0)):
        mu = random_start(generator, shape, 1.0, wall=len(shape) == 2)
        F = 0.3 * of.Entropy() + of.Potential(lambda x: x[..., 0]) + strength * G
        result = FiniteVolume(tolerance=1e-9).solve(F, mu, dt)
        report = result.certificate
        assert report["converged"]
        assert report["rounds"] == 0
        assert report["divided_into"] == 1
        assert report["guarantee"] == ("optimal" if convex else "stationary")
        assert (report["gap"] is None) != convex
        size = 1 + abs(strength)
        assert imbalance(F, mu, result, dt) < 1e-5 * size
        fall = report["energy_before"] - report["energy_after"]
        assert fall >= report["dissipation"] - 1e-8 * size


def cost(mu, masses, fluxes, dt):
    """Return the cost of fluxes on the line."""
    upstream = np.where(fluxes >= 0, masses[:-1], masses[1:])
    return mu.box.spacing[0] ** 2 * (fluxes**2 / (2 * dt * upstream)).sum()


@pytest.mark.parametrize("name", ["wide repulsion", "narrow repulsion", "both"])
@pytest.mark.parametrize("dt", [0.3, 20.0])
def test_scipy_finds_no_better_step_on_the_line(name, dt):
    G, convex = KERNELS[name]
    mu = random_start(torch.Generator().manual_seed(5), (7,), 1.0)
    F = 0.05 * of.Entropy() + of.Potential(lambda x: x[..., 0]) + 8.0 * G
    result = FiniteVolume(tolerance=1e-9).solve(F, mu, dt)
    report = result.certificate
    assert report["converged"]
    old = mu.weights.numpy()

    def objective(log):
        masses = np.exp(log - log.max())
        masses = masses / masses.sum()
        fluxes = np.cumsum(old - masses)[:-1]
        energy = float(F.value(mu.with_weights(torch.from_numpy(masses))))
        return energy + cost(mu, masses, fluxes, dt)

    reached = report["energy_after"] + report["dissipation"]
    own = np.log(result.measure.weights.numpy())
    assert objective(own) == pytest.approx(reached, abs=1e-10)
    # A convex problem has one minimum: from anywhere. Else none is lower nearby.
    start = np.log(old) if convex else own
    found = optimize.minimize(objective, start, method="BFGS", tol=1e-9)
    assert reached <= found.fun + 1e-8
    if convex:
        assert reached == pytest.approx(found.fun, abs=1e-6)


@pytest.mark.parametrize("width", [0.1, 0.4, 1.3])
@pytest.mark.parametrize("size", [1.0, 8.0])
def test_a_long_step_of_repulsion_is_the_equilibrium(width, size):
    # The cost of a very long step vanishes: the least energy is left, by SciPy.
    x = (torch.arange(20, dtype=F64) + 0.5) * 0.15
    rho = torch.exp(-0.5 * ((x - 1.2) / 0.9) ** 2)
    mu = of.GridDensity(rho, 0.0, 3.0, walls=True, normalize=True)
    F = of.Potential(lambda x: 0.1 * x[..., 0]) + 0.05 * of.Entropy()
    F = F + size * gaussian(width)
    result = FiniteVolume().solve(F, mu, 1e7)
    assert result.certificate["converged"]
    assert result.certificate["guarantee"] == "optimal"

    def softmax(log):
        masses = np.exp(log - log.max())
        return masses / masses.sum()

    def energy(log):
        m = softmax(log)
        nu = mu.with_weights(torch.from_numpy(m))
        slope = F.first_variation(nu).numpy()
        return float(F.value(nu)), m * (slope - m @ slope)

    found = optimize.minimize(
        energy, np.log(mu.weights.numpy()), jac=True, tol=1e-12, method="BFGS"
    )
    after = result.certificate["energy_after"]
    assert after == pytest.approx(found.fun, abs=3e-6 * (1 + size))
    off = np.abs(softmax(found.x) - result.measure.weights.numpy()).sum()
    assert off < 1e-3


@pytest.mark.parametrize("name", KERNELS)
def test_a_change_in_the_last_bit_changes_nothing(name):
    G, _ = KERNELS[name]
    generator = torch.Generator().manual_seed(3)
    mu = random_start(generator, (8, 6), 1.0, wall=True)
    F = 0.1 * of.PowerEntropy(2) + 10.0 * G
    first = FiniteVolume().solve(F, mu, 1.0)
    assert first.certificate["converged"]
    for _ in range(2):
        noise = 1 + 1e-13 * torch.randn(mu.n, generator=generator, dtype=F64)
        nudged = mu.with_weights(mu.weights * noise / (mu.weights @ noise))
        second = FiniteVolume().solve(F, nudged, 1.0)
        assert second.certificate["certified"]
        assert second.certificate["rounds"] == 0
        change = (first.measure.weights - second.measure.weights).abs().sum()
        assert float(change) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", ["narrow repulsion", "wide attraction"])
def test_a_bound_on_the_density_holds_beside_interactions(name, dtype):
    mu = random_start(torch.Generator().manual_seed(8), (10, 6), 1.0, wall=True)
    mu = of.GridDensity(
        mu.grid.to(dtype), 0.0, 1.0, obstacles=~mu.is_free.reshape(10, 6), walls=True
    )
    most = 1.2 * float(mu.density().max())
    F = 5.0 * KERNELS[name][0] + of.Congestion(most)
    warm = None
    for _ in range(2):
        result = FiniteVolume().solve(F, mu, 3.0, warm)
        assert result.certificate["converged"]
        assert result.certificate["certified"]
        assert float(result.measure.density().max()) <= most
        mu, warm = result.measure, result.warm


class Height(of.Functional):
    """A user's own functional: only its value."""

    def value(self, mu):
        return (mu.expectation(lambda x: x[..., 0]) - 0.2).square()


class Heat(of.Functional):
    """The entropy as a user writes it."""

    def value(self, mu):
        rho = mu.density().clamp_min(torch.finfo(mu.dtype).tiny)
        return 0.3 * (mu.weights * rho.log()).sum()


@pytest.mark.parametrize("name", ["wide repulsion", "wide attraction"])
@pytest.mark.parametrize("other", [Height(), Heat()], ids=["Height", "Heat"])
def test_interactions_beside_terms_of_a_user(name, other):
    mu = random_start(torch.Generator().manual_seed(6), (7, 5), 1.0, wall=True)
    known = of.Potential(lambda x: x[..., 0]) + 0.1 * of.Entropy()
    F = known + 2.0 * KERNELS[name][0] + other
    result = FiniteVolume().solve(F, mu, 0.05)
    assert result.certificate["converged"]
    assert result.certificate["rounds"] > 0
    assert result.certificate["guarantee"] == "stationary"
    assert imbalance(F, mu, result, 0.05) < 1e-3
    if isinstance(other, Heat):
        twin = known + 2.0 * KERNELS[name][0] + 0.3 * of.Entropy()
        same = FiniteVolume().solve(twin, mu, 0.05)
        assert same.certificate["converged"]
        change = (same.measure.weights - result.measure.weights).abs().sum()
        assert float(change) < 1e-5


def test_a_step_of_attraction_that_rises_is_done_again_in_rounds(monkeypatch):
    mu = random_start(torch.Generator().manual_seed(2), (8, 6), 1.0)
    F = 0.5 * of.Entropy() + KERNELS["wide attraction"][0]
    whole = FiniteVolume().solve(F, mu, 0.1)
    monkeypatch.setattr(Local, "rises", lambda *_: True)
    again = FiniteVolume().solve(F, mu, 0.1)
    assert whole.certificate["converged"]
    assert again.certificate["converged"]
    assert whole.certificate["rounds"] == 0 < again.certificate["rounds"]
    assert again.iterations > whole.iterations
    change = (whole.measure.weights - again.measure.weights).abs().sum()
    assert float(change) < 1e-5


def test_a_move_rises_if_its_objective_does(monkeypatch):
    seen, solve = [], Local.solve

    def spy(local, *args):
        move = solve(local, *args)
        seen.append((local, move))
        return move

    monkeypatch.setattr(Local, "solve", spy)
    mu = random_start(torch.Generator().manual_seed(2), (8, 6), 1.0)
    result = FiniteVolume().solve(KERNELS["wide attraction"][0], mu, 0.1)
    assert result.certificate["converged"]
    local, move = seen[-1]
    assert not local.rises(move)
    worth = local.energy(local.step.source) - local.objective(move)
    assert worth > 0
    assert local.rises(replace(move, kinetic=move.kinetic + 1.01 * worth))


@pytest.mark.parametrize("name", ["wide repulsion", "repulsion by a logarithm"])
def test_the_gap_bounds_the_objective_of_a_sharper_solve(name):
    mu = random_start(torch.Generator().manual_seed(7), (8, 6), 1.0, wall=True)
    F = 0.1 * of.Entropy() + 5.0 * KERNELS[name][0]
    ends = [FiniteVolume(tolerance=t).solve(F, mu, 1.0) for t in (1e-2, 1e-4, 1e-9)]
    assert all(end.certificate["converged"] for end in ends)
    reached = [
        end.certificate["energy_after"] + end.certificate["dissipation"] for end in ends
    ]
    for objective, end in zip(reached, ends, strict=True):
        gap = end.certificate["gap"]
        assert gap > 0
        assert objective - gap <= min(reached) + 1e-12
    assert ends[-1].certificate["gap"] < 1e-7


# The modes ----------------------------------------------------------------------------


def curvature(G, mu, cells):
    """Return the second derivative on densities of sum 0, column by column."""
    n = len(cells)
    columns = []
    for k in cells:
        masses = torch.zeros(mu.n, dtype=F64)
        masses[k] = 1.0
        columns.append(G.first_variation(mu.with_free_weights(masses))[cells])
    centre = np.eye(n) - 1 / n
    return centre @ torch.stack(columns, 1).numpy() @ centre * mu.box.cell_volume


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dense", [True, False])
def test_the_modes_are_the_second_derivative(name, dense, monkeypatch):
    if not dense:
        monkeypatch.setattr(couplings, "DENSE", 0)
        monkeypatch.setattr(couplings, "FIRST", 12)
    G, convex = KERNELS[name]
    mu = random_start(torch.Generator().manual_seed(1), (7, 5), 1.0, wall=True)
    cells = mu.is_free.nonzero().reshape(-1).numpy()
    [(c, term)] = G.terms()
    coupling = coupling_of(((c, term),), mu, cells)
    assert coupling is not None
    expected = curvature(G, mu, cells)
    modes = coupling.modes
    if modes is None:  # too many for a sketch
        assert not dense
        assert np.linalg.matrix_rank(expected) > 16
        return
    R, s = modes.columns, modes.signs
    size = np.abs(expected).max()
    np.testing.assert_allclose((R * s) @ R.T, expected, atol=1e-9 * size)
    assert coupling.convex == convex
    assert (np.diff(s) <= 0).all()
    density = mu.density().numpy()[cells]
    np.testing.assert_allclose(
        coupling.field(density), G.first_variation(mu).numpy()[cells], rtol=1e-10
    )


@pytest.mark.parametrize("name", ["wide repulsion", "narrow attraction"])
def test_too_many_modes_are_left_to_rounds_with_the_same_end(name, monkeypatch):
    mu = random_start(torch.Generator().manual_seed(2), (8, 6), 1.0)
    F = 0.5 * of.Entropy() + KERNELS[name][0]
    whole = FiniteVolume().solve(F, mu, 0.1)
    monkeypatch.setattr(couplings, "DENSE", 0)
    monkeypatch.setattr(couplings, "MOST_ENTRIES", 0)
    rounds = FiniteVolume().solve(F, mu, 0.1)
    assert whole.certificate["converged"]
    assert rounds.certificate["converged"]
    assert whole.certificate["rounds"] == 0 < rounds.certificate["rounds"]
    assert rounds.certificate["guarantee"] == "stationary"
    change = (whole.measure.weights - rounds.measure.weights).abs().sum()
    assert float(change) < 1e-5


def test_a_flow_finds_the_modes_once():
    mu = random_start(torch.Generator().manual_seed(4), (8, 6), 1.0)
    F = 0.5 * of.Entropy() + gaussian(0.3)
    first = FiniteVolume().solve(F, mu, 0.1)
    again = FiniteVolume().solve(F, first.measure, 0.1, first.warm)
    other = FiniteVolume().solve(2.0 * F, first.measure, 0.1, first.warm)
    assert all(r.certificate["converged"] for r in (first, again, other))
    modes = [r.warm.coupling.modes for r in (first, again, other)]
    assert modes[0] is modes[1]
    assert modes[0] is not modes[2]
    cold = FiniteVolume().solve(2.0 * F, first.measure, 0.1)
    change = (cold.measure.weights - other.measure.weights).abs().sum()
    assert float(change) < 1e-5


def test_a_kernel_that_changed_in_place_is_not_taken_for_the_one_before():
    W = of.kernels.Gaussian(0.3)
    F = 5.0 * of.Interaction(W) + of.Potential(lambda x: x[..., 0].square())
    mu = of.GridDensity.from_function(
        lambda x: (-8 * x[..., 0].square()).exp(), -2, 2, 40, walls=True, dtype=F64
    )
    warm = FiniteVolume().solve(F, mu, 0.1).warm
    W.sigma = 0.8
    after = FiniteVolume().solve(F, mu, 0.1, warm=warm)
    cold = FiniteVolume().solve(F, mu, 0.1)
    assert after.certificate["converged"]
    assert cold.certificate["converged"]
    assert float((after.measure.weights - cold.measure.weights).abs().sum()) < 1e-5


@pytest.mark.slow
def test_rooms_between_those_of_all_modes_and_of_few_are_solved_by_newton():
    F = 3.0 * of.Interaction(of.kernels.Energy()) + of.Potential(
        lambda x: x.square().sum(-1)
    )
    mu = of.GridDensity.from_function(
        lambda x: (-2 * x.square().sum(-1)).exp(),
        -1,
        1,
        (28, 28),
        walls=True,
        dtype=F64,
    )
    certificate = FiniteVolume().solve(F, mu, 2.0).certificate
    assert certificate["converged"]
    assert certificate["rounds"] == 0
