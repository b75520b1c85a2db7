"""The dual JKO step on grids: its parts, its certificate, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.errors import NonFinite, Unsupported
from otflow.measures import Box
from otflow.measures.grid.remap import remap
from otflow.numerics.multigrid import GridLaplacian, solve_laplacian
from otflow.proximal import BackAndForth
from otflow.proximal.grid.c_transform import c_transform
from otflow.proximal.grid.duality import below_bound
from otflow.proximal.grid.push_forward import Sweep, push_forward, row_costs
from tests import exact_densities as exact
from tests.exact import quadratic


def ball(n: int, c: float = 0.5) -> of.GridDensity:
    cells = exact.crowded_ball(c, 2, 0.0).cells(-1, 1, (n, n))
    return of.GridDensity(cells, -1, 1, normalize=True)


def l1(mu: of.GridDensity, density: torch.Tensor) -> float:
    gap = (mu.density() - density.reshape(-1)).abs().sum()
    return float(gap * mu.box.cell_volume)


def slope() -> of.Potential:
    return of.Potential(lambda x: x[..., 0], modulus=0.0)


class TestParts:
    def test_an_affine_map_carries_a_linear_density_exactly(self):
        """Compression by 2 about 0: the density doubles, cell by cell."""
        n, dt = 40, 1.0
        box = Box.of(0.0, 1.0, (n,))
        x = box.centres(torch.zeros(1, dtype=torch.float64))[:, 0]
        w = (1 + x) / n
        moved, _, _ = push_forward(w, -0.5 * x.square(), box, dt)  # T^{-1}(y) = 2y
        expected = torch.where(x < 0.5, 2 * (1 + 2 * x) / n, 0.0)
        # The outermost cells of the source are taken as flat.
        assert torch.allclose(moved[1:-1], expected[1:-1], atol=1e-3 / n)
        assert torch.allclose(moved[1 : n // 2 - 1], expected[1 : n // 2 - 1])
        assert float(moved.sum()) == pytest.approx(float(w.sum()), abs=1e-14)

    @pytest.mark.parametrize("shape", [(15,), (9, 12), (6, 7, 8)])
    def test_any_potential_conserves_mass_and_sign(self, shape):
        generator = torch.Generator().manual_seed(1)
        box = Box.of(0.0, 1.0, shape)
        w = torch.rand(box.n, generator=generator, dtype=torch.float64)
        for size in (1e-3, 1.0, 1e3):
            phi = size * torch.randn(box.n, generator=generator, dtype=torch.float64)
            phi[torch.rand(box.n, generator=generator) < 0.2] = -math.inf
            phi = phi.reshape(shape)
            phi[..., 2] = 0.0  # every row keeps a free cell
            moved, sweeps, _ = push_forward(w, phi.reshape(-1), box, 0.1)
            assert bool((moved >= 0).all())
            assert float(moved.sum()) == pytest.approx(float(w.sum()), rel=1e-13)
            assert float(moved[phi.reshape(-1) == -math.inf].sum()) == 0
            assert [sweep.axis for sweep in sweeps] == list(range(box.dim))

    def test_a_rotation_free_map_in_three_dimensions(self):
        """A Gaussian shrinks by a matrix that does not commute with the axes."""
        n, dt = 40, 0.2
        box = Box.of(-3.0, 3.0, (n, n, n))
        x = box.centres(torch.zeros(1, dtype=torch.float64))
        w = torch.exp(-2 * x.square().sum(-1))
        w = w / w.sum()
        A = torch.tensor([[0.6, 0.3, 0.1], [0.3, 0.5, -0.2], [0.1, -0.2, 0.4]])
        A = A.double()
        phi = -0.5 * ((x @ A) * x).sum(-1)
        moved, _, _ = push_forward(w, phi, box, dt)
        found = torch.einsum("n,ni,nj->ij", moved, x, x)
        S = torch.einsum("n,ni,nj->ij", w, x, x)
        T = torch.linalg.inv(torch.eye(3).double() + dt * A)
        assert torch.allclose(found, T @ S @ T, atol=3e-3 * float(S[0, 0]))

    def test_the_cost_of_a_row_is_its_distance(self):
        """Against the distance between Quantiles, and by hand."""
        before = torch.tensor([[1.0, 3.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]]).double()
        after = torch.tensor([[0.0, 0.0, 1.0, 3.0], [4.0, 0.0, 0.0, 4.0]]).double()
        # Row 1: a shift by two cells, mass 4. Row 2: each half is halved in length,
        # towards the ends: the square of u - u/2 over [0, 2], twice, at density 2.
        expected = 4 * 4.0 + 2 * 2 * (0.25 * 8 / 3)
        cost = row_costs(Sweep(1, before, after), 0.5)
        assert cost == pytest.approx(0.25 * expected, rel=1e-14)

    def test_remap_to_its_own_faces_is_the_identity(self):
        m = torch.rand(3, 8, generator=torch.Generator().manual_seed(0)).double()
        cuts = torch.arange(1.0, 8.0, dtype=torch.float64).expand(3, 7)
        assert torch.allclose(remap(m, cuts, 1)[0], m, rtol=0, atol=1e-15)

    @pytest.mark.parametrize("shape", [(33,), (20, 31), (9, 10, 12)])
    def test_multigrid_solves(self, shape):
        generator = torch.Generator().manual_seed(0)

        def random(*size):
            return torch.rand(*size, generator=generator, dtype=torch.float64)

        faces = [
            0.1 + random(*(n - (a == axis) for a, n in enumerate(shape)))
            for axis in range(len(shape))
        ]
        mask = random(*shape) < 0.8
        L = GridLaplacian.of(faces, 0.01 * random(*shape)).inside(mask)
        b = random(*shape) * mask
        p, iterations = solve_laplacian(L, b, 1e-11, 100)
        assert float((L.apply(p) - b).norm()) <= 1e-11 * float(b.norm())
        assert float(p[~mask].abs().sum()) == 0
        assert iterations <= 40

    def test_what_exceeds_a_bound_moves_to_what_is_left(self):
        w = torch.tensor([0.6, 0.1, 0.2, 0.0, 0.1]).double()
        room = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]).double()
        new, moved = below_bound(w[:4], room[:4], 0.4)
        assert moved == pytest.approx(0.2)
        expected = torch.tensor([0.4, 0.22, 0.28, 0.0]).double()
        assert torch.allclose(new, expected)
        assert below_bound(w, room, math.inf)[1] == 0


class TestStep:
    @pytest.mark.parametrize("dt", [0.05, 1.0, 100.0])
    def test_a_ball_shrinks_until_it_is_full(self, dt):
        F = quadratic() + of.Congestion(1.0)
        mu = ball(64)
        result = BackAndForth().solve(F, mu, dt)
        truth = exact.crowded_ball_jko(0.5, 2, dt, 1)
        nu = result.measure
        assert l1(nu, truth.cells(-1, 1, (64, 64))) <= 0.03
        assert float(nu.weights.sum()) == pytest.approx(1.0, abs=1e-12)
        assert float(nu.density().max()) <= 1.0
        certificate = result.certificate
        assert certificate["guarantee"] == "exact"
        assert certificate["bound"] <= 1.5 * mu.box.spacing[0]
        assert certificate["w2"] == pytest.approx(
            exact.crowded_ball(0.5, 2, 0.0).w2(truth.scale), abs=0.01
        )

    def test_porous_medium_in_two_dimensions(self):
        """Against the self-similar solution of Barenblatt."""
        dt = exact.barenblatt_time(2, 2, 0.30, 0.15) / 10
        cells = exact.barenblatt(2, 2, 0.15).cells(-0.5, 0.5, (64, 64))
        mu = of.GridDensity(cells, -0.5, 0.5, normalize=True)
        run = of.flow(of.PowerEntropy(2), mu, of.JKO(BackAndForth()), dt=dt, steps=3)
        R = exact.barenblatt_scale_jko(2, 2, 0.15, dt, 3)
        truth = exact.barenblatt(2, 2, R).cells(-0.5, 0.5, (64, 64))
        assert l1(run.final, truth) <= 3e-3
        assert all(info["certified"] for info in run.info)
        assert max(info["iterations"] for info in run.info[1:]) <= 20

    def test_entropy_and_a_quadratic(self):
        """The Gaussian JKO step."""
        n, dt, s = 64, 0.1, 0.6
        mu = of.GridDensity.from_function(
            lambda x: torch.exp(-(x - 1).square().sum(-1) / (2 * s * s)),
            lower=-4.0,
            upper=4.0,
            shape=(n, n),
            dtype=torch.float64,
        )
        result = BackAndForth().solve(quadratic() + of.Entropy(), mu, dt)
        new = (s + math.sqrt(s * s + 4 * dt * (1 + dt))) / (2 * (1 + dt))
        nu = result.measure
        truth = (-(nu.points - 1 / (1 + dt)).square().sum(-1) / (2 * new**2)).exp()
        assert l1(nu, truth / (2 * math.pi * new**2)) <= 1e-3
        assert result.certificate["guarantee"] == "exact"

    def test_congestion_beside_diffusion(self):
        """Diffusion below a bound: the sum has one pressure for both."""
        F = quadratic(5.0) + of.Congestion(1.0) + 0.1 * of.PowerEntropy(2)
        result = BackAndForth().solve(F, ball(48), 0.5)
        assert result.certificate["certified"]
        assert float(result.measure.density().max()) <= 1.0
        soft = quadratic(5.0) + 0.1 * of.PowerEntropy(2)
        free = BackAndForth().solve(soft, ball(48), 0.5)
        assert float(free.measure.density().max()) > 1.5

    def test_a_potential_alone_moves_along_its_proximal_map(self):
        mu = ball(64)
        result = BackAndForth().solve(quadratic(), mu, 0.25)
        expected = mu.points.square().sum(-1) @ mu.weights / 1.25**2
        found = mu.points.square().sum(-1) @ result.measure.weights
        assert float(found) == pytest.approx(float(expected), rel=2e-3)
        assert result.residual == 0

    def test_steps_much_shorter_than_a_cell_add_up(self):
        """50 steps of an eighth of a cell at most: it shrinks by (1 + dt)^-50."""
        mu, dt = ball(64), 0.005
        run = of.flow(quadratic() + of.Congestion(1.0), mu, of.JKO(), dt=dt, steps=50)
        truth = exact.crowded_ball_jko(0.5, 2, dt, 50)
        second = run.final.points.square().sum(-1) @ run.final.weights
        assert float(second) == pytest.approx(truth.second_moment, rel=0.01)

    def test_an_interaction_is_linearised_until_it_settles(self):
        """|z|^2/2 is the potential |x - mean|^2/2 in disguise."""
        mu = ball(48)
        W = of.Interaction(lambda z: 0.5 * z.square().sum(-1), modulus=0.0)
        by_pairs = BackAndForth().solve(W + of.Congestion(1.0), mu, 0.5)
        direct = BackAndForth().solve(quadratic() + of.Congestion(1.0), mu, 0.5)
        gap = (by_pairs.measure.weights - direct.measure.weights).abs().sum()
        assert float(gap) <= 1e-4
        assert by_pairs.certificate["linearisations"] >= 1
        assert by_pairs.certificate["guarantee"] == "stationary"
        assert by_pairs.certificate["bound"] is None

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_it_follows_the_dtype(self, dtype):
        mu = ball(32)
        mu = of.GridDensity(mu.grid.to(dtype), -1, 1, normalize=True)
        nu = BackAndForth().solve(quadratic() + of.Congestion(1.0), mu, 0.5).measure
        assert nu.dtype == dtype
        assert float(nu.weights.sum()) == pytest.approx(1.0, abs=1e-6)

    def test_both_c_transforms_give_the_same_step(self, monkeypatch):
        F, mu = quadratic() + of.Congestion(1.0), ball(32)
        first = BackAndForth().solve(F, mu, 0.5).measure
        names = c_transform.__globals__
        monkeypatch.setitem(names, "has_compiler", lambda: False)
        second = BackAndForth().solve(F, mu, 0.5).measure
        assert torch.allclose(first.weights, second.weights, rtol=0, atol=1e-9)


class TestCertificate:
    @pytest.mark.parametrize("tolerance", [0.3, 1e-2, 1e-4])
    def test_bound_holds_for_sloppy_solves(self, tolerance):
        """1-D: the exact distance to the exact step."""
        n, dt, c = 128, 0.4, 0.5
        cells = exact.column_cells(c, 0.0, 2.5, n)
        mu = of.GridDensity(cells, 0.0, 2.5, walls=True, normalize=True)
        F = slope() + of.Congestion(1.0)
        result = BackAndForth(tolerance=tolerance).solve(F, mu, dt)
        truth = exact.column_cells(c, dt, 2.5, n).reshape(1, -1) * mu.box.cell_volume
        sweep = Sweep(1, result.measure.weights.reshape(1, -1), truth)
        distance = math.sqrt(row_costs(sweep, mu.box.spacing[0]))
        assert distance <= result.certificate["bound"]

    def test_every_dual_is_below_every_primal(self):
        n = 64
        dt = exact.barenblatt_time(2, 2, 0.30, 0.15) / 10
        cells = exact.barenblatt(2, 2, 0.15).cells(-0.5, 0.5, (n, n))
        mu = of.GridDensity(cells, -0.5, 0.5, normalize=True)
        known = [
            BackAndForth(tolerance=tolerance)
            .solve(of.PowerEntropy(2), mu, dt)
            .certificate
            for tolerance in (0.3, 1e-2, 1e-6)
        ]
        best = min(c["primal"] for c in known)
        assert all(c["dual"] <= best for c in known)
        floor = 2 * mu.box.spacing[0] ** 2 / (6 * dt)
        assert known[-1]["gap"] <= 1.5 * floor
        # The minimum is known, but for the energy of cell means.
        R = exact.barenblatt_scale_jko(2, 2, 0.15, dt, 1)
        minimum = exact.barenblatt_energy(2, 2, R)
        minimum += exact.barenblatt(2, 2, 0.15).w2(R) ** 2 / (2 * dt)
        assert best == pytest.approx(minimum, rel=5e-3)

    def test_energy_never_increases_and_a_full_crowd_rests(self):
        F = quadratic() + of.Congestion(1.0)
        mu = ball(48)
        run = of.flow(F, mu, of.JKO(), dt=0.3, steps=8)
        energy = run.records["energy"]
        assert bool((energy.diff() <= 0).all())
        assert all(info["decrease"] >= -info["gap"] for info in run.info)
        assert run.info[-1]["w2"] <= mu.box.spacing[0]

    # What is not converged may be anywhere.
    @pytest.mark.filterwarnings("ignore::otflow.errors.BoxWarning")
    def test_too_few_iterations_are_confessed(self):
        F = quadratic() + of.Congestion(1.0)
        result = BackAndForth(max_iterations=1, tolerance=1e-9).solve(F, ball(64), 2.0)
        assert not result.certificate["converged"]
        assert result.certificate["guarantee"] == "none"
        assert not result.certificate["certified"]
        assert result.residual > 1e-9

    def test_a_warm_start_saves_iterations(self):
        dt = exact.barenblatt_time(2, 2, 0.30, 0.15) / 10
        cells = exact.barenblatt(2, 2, 0.2).cells(-0.5, 0.5, (64, 64))
        mu = of.GridDensity(cells, -0.5, 0.5, normalize=True)
        solver = BackAndForth()
        first = solver.solve(of.PowerEntropy(2), mu, dt)
        again = solver.solve(of.PowerEntropy(2), mu, dt, first.warm)
        assert again.iterations == 0
        assert torch.equal(again.measure.weights, first.measure.weights)


class TestBadInput:
    def test_default_for_congestion_and_obstacles(self):
        solver = of.proximal.default_solver(ball(32), of.Congestion(1.0))
        assert isinstance(solver, BackAndForth)

    def test_other_measures(self):
        with pytest.raises(Unsupported, match="steps a GridDensity, got Particles"):
            BackAndForth().solve(quadratic(), of.Particles(torch.zeros(2, 2)), 0.1)

    def test_fast_diffusion_is_for_the_other_solver(self):
        with pytest.raises(Unsupported, match="use GridSinkhorn"):
            BackAndForth().solve(of.PowerEntropy(0.75), ball(32), 0.1)

    def test_a_bound_below_the_mean_density(self):
        mu = of.GridDensity(torch.full((8,), 0.5).double(), 0.0, 2.0, walls=True)
        with pytest.raises(ValueError, match=r"below the mean density 0\.5"):
            BackAndForth().solve(slope() + of.Congestion(0.4), mu, 0.1)

    def test_a_start_above_the_bound(self):
        with pytest.raises(NonFinite, match=r"above max_density = 0\.3"):
            BackAndForth().solve(quadratic() + of.Congestion(0.3), ball(32), 0.1)

    def test_a_potential_that_is_infinite_in_a_free_cell(self):
        V = of.Potential(lambda x: 0.0 / (x[..., 0] < 0.9).to(x) + 0.0)
        with pytest.raises(NonFinite, match="make the cells where it is not obstacles"):
            BackAndForth().solve(V + of.Congestion(1.0), ball(32), 0.1)

    @pytest.mark.parametrize("name", ["max_iterations", "max_linearisations"])
    def test_options(self, name):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            BackAndForth(**{name: 0})
        with pytest.raises(ValueError, match="tolerance must be positive"):
            BackAndForth(tolerance=-1.0)
        with pytest.raises(ValueError, match="dt must be positive"):
            BackAndForth().solve(quadratic(), ball(32), 0.0)


@pytest.mark.parametrize("sigma", [0.8, 1.5])
def test_without_pressure_an_interaction_is_linearised(sigma):
    dt = 0.1
    F = 5.0 * of.Interaction(of.kernels.Gaussian(sigma)) + of.Potential(
        lambda x: x.square().sum(-1)
    )
    mu = of.GridDensity.from_function(
        lambda x: (-8 * x.square().sum(-1)).exp(),
        -2,
        2,
        40,
        walls=True,
        dtype=torch.float64,
    )
    own = BackAndForth().solve(F, mu, dt)
    assert own.certificate["converged"]
    other = of.proximal.GridSinkhorn(eps=0.006).solve(F, mu, dt)
    energies = [r.certificate["energy_after"] for r in (own, other)]
    assert energies[0] == pytest.approx(energies[1], abs=2e-3)
