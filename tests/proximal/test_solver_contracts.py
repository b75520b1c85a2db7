"""Every proximal solver of the library keeps the laws that users' solvers keep."""

from __future__ import annotations

import torch

import otflow as of
from otflow.proximal import (
    BackAndForth,
    FiniteVolume,
    GaussianProximal,
    GridSinkhorn,
    ParticleProximal,
    PointwiseProximal,
    ProximalSolver,
    QuantileProximal,
    SinkhornParticles,
    TangentProximal,
)
from otflow.testing import ProximalContract
from otflow.testing.clouds import normal
from tests.exact_gaussians import fokker_planck_jko, gaussian_w2
from tests.proximal import problems

F64 = torch.float64


class Atoms(ProximalContract):
    """Weighted atoms, whose order is immaterial."""

    def permuted(self, mu, order):
        return of.Particles(mu.points[order], mu.weights[order])


class Spring(Atoms):
    """Under a spring the step is known."""

    def functional(self, scale=1.0):
        return of.Potential(
            lambda x: 1.5 * (x - 0.5 * scale).square().sum(-1), modulus=3.0
        )

    def exact(self, F, mu, dt):
        goal = (mu.points + dt * 1.5) / (1 + 3 * dt)
        return of.Particles(goal, mu.weights)


class TestParticles(Atoms):
    def make(self):
        return ParticleProximal()

    def crude(self):
        return ParticleProximal(max_gradients=1)


class TestParticlesOnASpring(Spring):
    def make(self):
        return ParticleProximal()


class TestParticlesByTheirMap(Spring):
    def make(self):
        return PointwiseProximal()

    def functional(self, scale=1.0):
        centre = 0.5 * scale
        return of.Potential(
            lambda x: 1.5 * (x - centre).square().sum(-1),
            modulus=3.0,
            prox=lambda x, tau: (x + 3 * tau * centre) / (1 + 3 * tau),
        )


class TestEqualParticles(TestParticles):
    def start(self, dtype=F64, seed=0, scale=1.0):
        return of.Particles(scale * normal(9, 2, seed=seed, dtype=dtype))


class TestSinkhornParticles(Atoms):
    accuracy = 2e-2  # twice its tolerance: a divergence is known to some digits

    blur = 0.5

    def make(self):
        return SinkhornParticles(self.blur, tolerance=1e-3)

    def crude(self):
        return SinkhornParticles(self.blur, max_gradients=1)

    def test_units_of_length_are_immaterial(self):  # type: ignore[override]  # one unit
        """A blur is a length, and goes with the units."""
        one = self.solved(self.functional(), self.start(), self.dt)
        self.blur = 0.5 * 8
        other = self.solved(self.functional(8.0), self.start(scale=8.0), self.dt)
        gap = (other.points / 8 - one.points).abs().max()
        assert float(gap) <= self.accuracy * self.length()


class TestTangentsOfParticles(Atoms):
    def make(self):
        return TangentProximal()

    def crude(self):
        return TangentProximal(max_gradients=1)


class OnQuantiles(ProximalContract):
    """Edges under a convex potential with entropy."""

    def start(self, dtype=F64, seed=0, scale=1.0):
        edges = (normal(14, seed=seed).exp() + 0.2).cumsum(0)
        edges = scale * (edges - edges.mean()) / edges.std()
        return of.Quantiles(edges.to(dtype))

    def functional(self, scale=1.0):
        return super().functional(scale) + 0.2 * scale**2 * of.Entropy()

    def coordinates(self, mu):
        return mu.edges

    def distance(self, mu, nu):
        return problems.line_distance(mu.edges, mu.weights, nu.edges, nu.weights)


class TestQuantiles(OnQuantiles):
    def make(self):
        return QuantileProximal()

    def crude(self):
        return QuantileProximal(max_iterations=1)


class TestTangentsOfQuantiles(OnQuantiles):
    def make(self):
        return TangentProximal()

    def crude(self):
        return TangentProximal(max_gradients=2)


class OnGaussians(ProximalContract):
    """Fokker-Planck: the step is known."""

    def start(self, dtype=F64, seed=0, scale=1.0):
        factor = normal(2, 2, seed=seed)
        S = factor @ factor.T + 0.3 * torch.eye(2, dtype=F64)
        m = scale * normal(2, seed=seed + 5)
        return of.Gaussian(m.to(dtype), (scale**2 * S).to(dtype))

    def functional(self, scale=1.0):
        spring = of.Potential(
            lambda x: 0.75 * (x - 0.5 * scale).square().sum(-1), modulus=1.5
        )
        return spring + 0.5 * scale**2 * of.Entropy()

    def exact(self, F, mu, dt):
        A, b = 1.5 * torch.eye(2, dtype=F64), torch.full((2,), 0.5, dtype=F64)
        m, S = fokker_planck_jko(mu.mean, mu.covariance, dt, A=A, b=b, temperature=0.5)
        return of.Gaussian(m, S)

    def coordinates(self, mu):
        return torch.cat([mu.mean[None], mu.factor.T])

    def distance(self, mu, nu):
        return gaussian_w2(mu.mean, mu.covariance, nu.mean, nu.covariance)


class TestGaussians(OnGaussians):
    slack = 1e-6

    def make(self):
        return GaussianProximal()


class TestTangentsOfGaussians(OnGaussians):
    def make(self):
        return TangentProximal()

    def crude(self):
        return TangentProximal(max_gradients=2)


class OnCells(ProximalContract):
    """A bell on the line; the masses of cells move, and have no unit."""

    walls = False
    accuracy = 2e-2
    slack = 0.03  # a quarter of a cell: certificates count from centres
    seeds = (0, 1)

    def start(self, dtype=F64, seed=0, scale=1.0):
        return of.GridDensity.from_function(
            lambda x: (-((x[..., 0] / scale - 0.2 * seed) ** 2)).exp(),
            -5.0 * scale,
            5.0 * scale,
            80,
            dtype=dtype,
            walls=self.walls,
        )

    def functional(self, scale=1.0):
        spring = of.Potential(
            lambda x: 0.5 * (x - 0.3 * scale).square().sum(-1), modulus=1.0
        )
        return spring + scale**2 * of.Entropy()

    def coordinates(self, mu):
        return mu.weights

    def scaled(self, coordinates, scale):
        return coordinates

    def distance(self, mu, nu):
        faces = torch.linspace(-5, 5, mu.n + 1, dtype=F64)
        return problems.line_distance(faces, mu.weights, faces, nu.weights)


class TestGridSinkhorn(OnCells):
    small = 0.05  # a shorter step drowns in the blur, of which the solver warns

    def make(self):
        return GridSinkhorn()

    def crude(self):
        return GridSinkhorn(max_iterations=2)


class TestBackAndForth(OnCells):
    def make(self):
        return BackAndForth()

    def crude(self):
        return BackAndForth(max_iterations=1)


class TestFiniteVolume(OnCells):
    walls = True  # its first iterates are spread over the box

    def make(self):
        return FiniteVolume()

    def crude(self):
        return FiniteVolume(max_iterations=1, max_halvings=0)


def test_every_solver_of_the_library_is_held_to_its_contract():
    named = {getattr(of.proximal, name) for name in of.proximal.__all__}
    solvers = {
        kind
        for kind in named
        if isinstance(kind, type) and issubclass(kind, ProximalSolver)
    }
    contracts = [
        kind
        for name, kind in globals().items()
        if name.startswith("Test") and issubclass(kind, ProximalContract)
    ]
    held = {type(kind().make()) for kind in contracts}
    assert held == solvers - {ProximalSolver}
