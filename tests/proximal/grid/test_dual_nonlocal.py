"""The dual step on grids: masses as a gradient, and terms that are not local."""

import pytest
import torch

import otflow as of
from otflow.measures.grid.box import Box
from otflow.measures.grid.remap import remap
from otflow.numerics.krylov import gmres
from otflow.proximal import BackAndForth
from otflow.proximal.grid.duality import lowest_pressure
from otflow.proximal.grid.push_forward import (
    Sweep,
    mixed_potentials,
    push_forward,
    row_costs,
)

double = torch.float64


def bell(n, width, centre=0.0, half=2.0):
    """A bell on (-half, half)."""

    def rho(x):
        return torch.exp(-0.5 * ((x[..., 0] - centre) / width) ** 2)

    return of.GridDensity.from_function(rho, -half, half, n, walls=True, dtype=double)


class TestMasses:
    def test_a_mixed_potential_is_the_mean_of_the_lower_envelope(self):
        """Brute force: the envelope at many places of every cell."""
        torch.manual_seed(3)
        box, dt, fine = Box((0.0, 0.0), (0.6, 2.1), (3, 7)), 0.2, 2000
        phi = 0.3 * torch.randn(3, 7, dtype=double)
        found = -mixed_potentials(phi, box, dt)[0]
        x = 0.3 * (torch.arange(7 * fine, dtype=double) + 0.5) / fine
        y = 0.3 * (torch.arange(7, dtype=double) + 0.5)
        envelope = ((x[:, None] - y) ** 2 / (2 * dt) - phi[:, None, :]).amin(-1)
        means = envelope.reshape(3, 7, fine).mean(-1)
        assert torch.allclose(found, means, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("shape", [(9, 8), (6, 5, 4), (12, 1, 5)])
    def test_masses_from_one_cell_are_the_gradient_of_a_concave_function(self, shape):
        """Then they are monotone in the potential, however far the cell is spread."""
        torch.manual_seed(5)
        box = Box((0.0,) * len(shape), (1.0,) * len(shape), shape)
        source = torch.zeros(box.n, dtype=double)
        source[box.n // 2] = 1.0
        for dt in (0.05, 0.5, 5.0):
            for _ in range(5):
                a, b = 0.1 * torch.randn(2, box.n, dtype=double)
                first, second = (push_forward(source, f, box, dt)[0] for f in (a, b))
                assert float((first - second) @ (a - b)) >= -1e-12
                assert float(first.sum()) == pytest.approx(1.0, abs=1e-12)

    def test_no_mass_passes_a_cut_outside_the_row(self):
        masses = torch.ones(1, 4, dtype=double)
        cuts = torch.tensor([[-1.0, 0.5, 5.0]], dtype=double)
        moved, density = remap(masses, cuts, 1)
        assert moved.tolist() == [[0.0, 0.5, 3.5, 0.0]]
        assert density.tolist() == [[0.0, 1.0, 0.0]]

    @pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
    def test_an_entropy_fills_vacuum_in_any_unit(self, unit):
        like = torch.zeros(1, dtype=double)
        heat = (unit * of.Entropy()).terms()
        both = (unit * of.Entropy() + unit * of.PowerEntropy(2.0)).terms()
        for terms in (heat, both):
            energy = of.proximal.terms.combine([(c, t) for c, t in terms])
            assert lowest_pressure(energy, like) == float("-inf")
        for m in (1.5, 2.0, 3.0):
            assert abs(lowest_pressure(of.PowerEntropy(m), like)) < 1e-100


class TestStep:
    @pytest.mark.parametrize(("shape", "m"), [((41,), 2.0), ((12, 3, 3), 3.0)])
    def test_a_long_step_of_a_porous_medium_is_its_equilibrium(self, shape, m):
        """As dt grows the step is (U')^-1(c - V), with the mass 1."""
        mu = of.GridDensity(
            torch.ones(shape, dtype=double),
            [-1.0] * len(shape),
            [1.0] * len(shape),
            walls=True,
            normalize=True,
        )
        V = 3 * (mu.points - 0.2).square().sum(-1)
        F = of.Potential(lambda x: 3 * (x - 0.2).square().sum(-1), modulus=6.0)
        result = BackAndForth().solve(F + 0.3 * of.PowerEntropy(m), mu, 1e4)
        assert result.certificate["converged"]
        low, high = 0.0, 50.0
        for _ in range(100):
            c = 0.5 * (low + high)
            slope = (c - V).clamp_min(0) / 0.3
            masses = (slope * (m - 1) / m) ** (1 / (m - 1)) * mu.box.cell_volume
            low, high = (c, high) if float(masses.sum()) < 1 else (low, c)
        assert float((result.measure.weights - masses).abs().sum()) < 2e-3

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    @pytest.mark.parametrize("energy", [0.1 * of.Entropy(), of.PowerEntropy(2)])
    def test_a_quadratic_interaction_is_a_potential(self, sign, energy):
        """At mean 0 the kernel a |z|^2 / 2 is the potential a x^2 / 2."""
        mu = bell(64, 0.2)
        W = of.Interaction(lambda z: 0.5 * sign * z.square().sum(-1))
        V = of.Potential(lambda x: 2 * x[..., 0] ** 2, modulus=4.0)
        same = of.Potential(
            lambda x: (2 + 0.5 * sign) * x[..., 0] ** 2, modulus=4.0 + sign
        )
        first = BackAndForth().solve(V + W + energy, mu, 0.5)
        second = BackAndForth().solve(same + energy, mu, 0.5)
        assert first.certificate["converged"]
        assert first.certificate["guarantee"] == "stationary"
        off = (first.measure.weights - second.measure.weights).abs().sum()
        assert float(off) < 2e-5

    def test_a_long_step_under_strong_repulsion_is_its_equilibrium(self):
        """There log rho + V + W * rho is constant, at temperature 1/10."""
        mu = bell(40, 0.5)
        W = of.Interaction(of.kernels.Gaussian(0.4))
        F = of.Potential(lambda x: (x[..., 0] - 0.2) ** 2, modulus=2.0) + 8.0 * W
        result = BackAndForth().solve(F + 0.1 * of.Entropy(), mu, 1e4)
        assert result.certificate["converged"]
        assert result.certificate["guarantee"] == "stationary"
        nu = result.measure
        slope = 0.1 * nu.density().log() + (nu.points[:, 0] - 0.2) ** 2
        slope = (slope + 8.0 * W.first_variation(nu))[nu.weights > 1e-6]
        assert float(slope.max() - slope.min()) < 5e-3

    @pytest.mark.parametrize("start", [20, 60])
    def test_a_short_step_under_repulsion_beats_what_is_near(self, start):
        """The objective is convex: no step on the way back or beyond is lower."""
        rho = torch.zeros(128, dtype=double)
        rho[start : start + 40] = 1.0
        mu = of.GridDensity(rho, -0.5, 0.5, walls=True, normalize=True)
        W = of.Interaction(of.kernels.Gaussian(0.2))
        F = of.Potential(lambda x: (x[..., 0] - 0.2) ** 2, modulus=2.0) + 0.4 * W
        F = F + 0.01 * of.Entropy()
        dt, h = 0.02, mu.box.spacing[0]
        result = BackAndForth().solve(F, mu, dt)
        assert result.certificate["converged"]
        assert result.certificate["certified"]
        nu = result.measure

        def objective(masses):
            other = mu.with_weights(masses)
            sweep = Sweep(1, mu.weights.reshape(1, -1), masses.reshape(1, -1))
            return float(F.value(other)) + row_costs(sweep, h) / (2 * dt)

        least = objective(nu.weights)
        for k in (0.1, 0.3, 1.0):
            mixed = (1 - k) * nu.weights + k * mu.weights
            assert least <= objective(mixed) + 1e-5


def test_gmres_solves_a_system_in_as_many_steps_as_unknowns():
    torch.manual_seed(0)
    A = torch.eye(6, dtype=double) + 0.5 * torch.randn(6, 6, dtype=double)
    b = torch.randn(6, dtype=double)
    x, left = gmres(lambda v: A @ v, lambda r: r, b, 1e-12, 6)
    assert left < 1e-10
    assert torch.allclose(x, torch.linalg.solve(A, b), rtol=0, atol=1e-8)
    assert gmres(lambda v: A @ v, lambda r: r, 0 * b, 1e-12, 6)[1] == 0.0
