"""A JKO step of any measure: exact steps, other solvers, autodiff through `push`."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import scipy.optimize
import torch
from torch import Tensor

import otflow as of
from otflow.proximal import (
    GaussianProximal,
    ParticleProximal,
    QuantileProximal,
    TangentProximal,
)
from tests import exact
from tests.clouds import normal, uniform, weighted

F64 = torch.float64


@dataclass(frozen=True, eq=False, repr=False)
class Atoms(of.Measure):
    """Equal atoms, each moved by a map `chart` of its own coordinate (n, k)."""

    state: Tensor

    @property
    def points(self) -> Tensor:
        return self.state

    @property
    def weights(self) -> Tensor:
        n = len(self.state)
        return self.state.new_full((n,), 1 / n)

    def value_and_position_gradient(self, value):
        x = self.state.detach().requires_grad_()
        energy = value(type(self)(x))
        (slope,) = torch.autograd.grad(energy, x)
        return energy.detach(), len(x) * slope

    def push(self, tangent, dt):
        return type(self)(self.state + dt * tangent)

    def inner(self, u, v):
        return (u * v).sum(-1).mean()

    def displacement_to(self, other):
        return other.state - self.state


class Circle(Atoms):
    """Angles (n, 1) of points of the unit circle; a tangent is a rate of angles."""

    @property
    def points(self) -> Tensor:
        return torch.cat([self.state.cos(), self.state.sin()], -1)


class Scales(Atoms):
    """Positive numbers; a tangent is a relative rate, so that tangents are not flat."""

    def value_and_position_gradient(self, value):
        energy, slope = super().value_and_position_gradient(value)
        return energy, slope / self.state

    def push(self, tangent, dt):
        return type(self)(self.state * (dt * tangent).exp())

    def inner(self, u, v):
        return (self.state.square() * u * v).sum(-1).mean()

    def displacement_to(self, other):
        return (other.state / self.state).log()


class ScalesWithTheVerb(Scales):
    """The same, with the transposed differential of push in closed form."""

    def pull_back(self, tangent, gradient):
        return gradient * (2 * tangent).exp()


MIXED = torch.tensor([[2.0, 0.9, 0.0], [0.9, 1.0, 0.4], [0.0, 0.4, 3.0]], dtype=F64)


class Coupled(Atoms):
    """Atoms whose coordinates count together: the product is no sum of squares."""

    def inner(self, u, v):
        return ((u @ MIXED.to(u)) * v).sum(-1).mean()


def solve(F, mu, dt, **options):
    result = TangentProximal(**options).solve(F, mu, dt)
    report = result.certificate
    assert report["converged"]
    assert report["guarantee"] == "upper-bound"
    assert not report["certified"]
    assert report["decrease"] >= -report["noise"]
    return result


class TestExactSteps:
    def test_a_quadratic_in_the_angle(self):
        mu = Circle(normal(9, 1))

        class Spring(of.Functional):
            def value(self, mu):
                return 1.5 * mu.state.square().sum(-1).mean()

        result = solve(Spring(), mu, 0.5)
        torch.testing.assert_close(result.measure.state, mu.state / 2.5)
        moved = float((mu.state - result.measure.state).square().mean().sqrt())
        assert result.certificate["w2"] == pytest.approx(moved)

    @pytest.mark.parametrize("dt", [0.1, 0.9, 5.0])
    def test_gravity_on_the_circle(self, dt):
        """V = 1 - cos a: the step solves a' + dt sin a' = a."""
        mu = Circle(torch.linspace(-2.0, 2.0, 8, dtype=F64)[:, None])
        F = of.Potential(lambda x: 1 - x[..., 0])
        result = solve(F, mu, dt, tolerance=1e-9)
        for a, found in zip(mu.state[:, 0], result.measure.state[:, 0], strict=True):
            goal = scipy.optimize.brentq(
                lambda b, a=float(a): b + dt * math.sin(b) - a, -math.pi, math.pi
            )
            assert float(found) == pytest.approx(goal, abs=1e-7)

    @pytest.mark.parametrize("kind", [Scales, ScalesWithTheVerb])
    def test_curved_tangents(self, kind):
        """Each atom minimises V(s e^u) + s^2 u^2 / (2 dt) by itself."""
        mu, dt = kind(normal(6, 1).exp()), 0.8
        F = of.Potential(lambda x: (0.5 * (x - 3).square() + x.sin()).sum(-1))
        result = solve(F, mu, dt, tolerance=1e-9)
        for s, found in zip(mu.state[:, 0], result.measure.state[:, 0], strict=True):

            def objective(u, s=float(s)):
                x = s * math.exp(u)
                return 0.5 * (x - 3) ** 2 + math.sin(x) + (s * u) ** 2 / (2 * dt)

            goal = scipy.optimize.minimize_scalar(objective, options={"xtol": 1e-12})
            assert float(found) == pytest.approx(float(s) * math.exp(goal.x), abs=1e-6)

    def test_a_product_that_mixes_coordinates(self):
        """min |x|^2/2 + (x - a).M(x - a)/(2 dt) is (dt + M)^-1 M a."""
        mu, dt = Coupled(normal(5, 3)), 0.7
        result = solve(exact.quadratic(), mu, dt, tolerance=1e-10)
        goal = torch.linalg.solve(dt * torch.eye(3, dtype=F64) + MIXED, MIXED)
        expected = mu.state @ goal.T
        torch.testing.assert_close(result.measure.state, expected, rtol=1e-8, atol=1e-9)


class TestOtherSolvers:
    @pytest.mark.parametrize("weighted_atoms", [False, True])
    def test_particles(self, weighted_atoms):
        mu = weighted(12, 2) if weighted_atoms else uniform(12, 2)
        F: of.Functional = of.Potential(
            lambda x: 0.25 * (x.square() - 1).square().sum(-1)
        )
        F = F + of.Interaction(of.kernels.Gaussian(0.8))
        one = solve(F, mu, 0.3, tolerance=1e-9)
        two = ParticleProximal(tolerance=1e-9).solve(F, mu, 0.3)
        assert two.certificate["converged"]
        torch.testing.assert_close(
            one.measure.points, two.measure.points, atol=1e-7, rtol=0
        )
        assert one.certificate["w2"] >= two.certificate["w2"] * (1 - 1e-7)

    def test_quantiles_with_entropy(self):
        mu = of.Quantiles(torch.linspace(-1, 2, 12, dtype=F64))
        F = exact.quadratic() + 0.3 * of.Entropy()
        one = solve(F, mu, 0.2, tolerance=1e-9)
        two = QuantileProximal(tolerance=1e-9).solve(F, mu, 0.2)
        assert two.certificate["converged"]
        torch.testing.assert_close(
            one.measure.edges, two.measure.edges, atol=1e-7, rtol=0
        )
        exact_distance = float(of.metrics.wasserstein2(mu, one.measure))
        assert one.certificate["w2"] >= exact_distance * (1 - 1e-9)

    def test_gaussians_with_entropy(self):
        root = normal(2, 2)
        mu = of.Gaussian(normal(2), root @ root.T + 0.2 * torch.eye(2, dtype=F64))
        H = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64)
        F = of.Potential(lambda x: 0.5 * ((x @ H.to(x)) * x).sum(-1)) + of.Entropy()
        one = solve(F, mu, 0.4, tolerance=1e-9)
        two = GaussianProximal(tolerance=1e-9).solve(F, mu, 0.4)
        assert two.certificate["converged"]
        for a, b in (
            (one.measure.mean, two.measure.mean),
            (one.measure.covariance, two.measure.covariance),
        ):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
        # At a minimiser over all factors the coupling is the optimal one.
        assert one.certificate["w2"] == pytest.approx(two.certificate["w2"], rel=1e-6)


class TestNewMeasuresFlow:
    def test_jko_takes_it_by_itself(self):
        mu = Circle(torch.linspace(-2.0, 2.0, 8, dtype=F64)[:, None])
        F = of.Potential(lambda x: 1 - x[..., 0])
        assert isinstance(of.proximal.default_solver(mu), TangentProximal)
        run = of.flow(F, mu, of.JKO(), dt=0.5, steps=30)
        assert run.converged
        assert bool((run.records["energy"].diff() < 0).all())
        assert float(run.final.state.abs().max()) < 1e-3
        assert {info["solver"] for info in run.info} == {"TangentProximal"}

    def test_the_weights_of_a_network_are_one_atom(self):
        """A step of all weights together is that of a particle in weight space."""
        t = torch.linspace(-1, 1, 20, dtype=F64)[:, None]
        goal = (2 * t[:, 0]).sin()

        class Weights(Atoms):
            def predict(self, t):
                w = self.state[0].reshape(3, 8)
                return torch.tanh(t * w[0] + w[1]) @ w[2]

        class Loss(of.Functional):
            def value(self, mu):
                return 0.5 * (Weights(mu.points).predict(t) - goal).square().mean()

        start, dt = 0.5 * normal(1, 24), 2.0
        run = of.flow(Loss(), Weights(start), of.JKO(), dt=dt, steps=20)
        assert run.converged
        energy = run.records["energy"]
        assert bool((energy.diff() < 0).all())
        assert float(energy[-1]) < 0.05 * float(energy[0])
        solver = ParticleProximal(tolerance=1e-9)
        twin = solver.solve(Loss(), of.Particles(start), dt)
        one = solve(Loss(), Weights(start), dt, tolerance=1e-9)
        assert twin.certificate["converged"]
        torch.testing.assert_close(
            one.measure.state, twin.measure.points, atol=1e-6, rtol=0
        )


class TestFlagsAndRefusals:
    def test_a_budget_that_is_spent_is_flagged(self):
        mu = Circle(normal(9, 1))
        F = of.Potential(lambda x: 1 - x[..., 0])
        result = TangentProximal(tolerance=1e-13, max_gradients=2).solve(F, mu, 5.0)
        report = result.certificate
        assert not report["converged"]
        assert report["guarantee"] == "none"
        assert report["energy_after"] <= report["energy_before"]

    def test_no_last_bit_decides(self):
        F = of.Potential(lambda x: 1 - x[..., 0] + (3 * x[..., 1]).sin())
        for dt in (0.3, 3.0, 300.0):
            reports, ends = [], []
            for k in range(4):
                mu = Circle(normal(12, 1) * (1 + k * 1e-13))
                result = TangentProximal().solve(F, mu, dt)
                reports.append(result.certificate)
                ends.append(result.measure.state)
            assert all(report["converged"] for report in reports)
            for end in ends[1:]:
                torch.testing.assert_close(end, ends[0], atol=1e-6, rtol=0)

    def test_a_kink_is_told(self):
        mu = Circle(torch.tensor([[0.4], [-0.3]], dtype=F64))
        F = of.Potential(lambda x: x[..., 1].abs())
        report = TangentProximal().solve(F, mu, 5.0).certificate
        assert report["stalled"]
        assert not report["converged"]
        assert "smooth" in report["cure"]

    def test_a_push_without_a_graph_names_both_cures(self):
        class Detached(Scales):
            def push(self, tangent, dt):
                return super().push(tangent.detach(), dt)

        mu = Detached(normal(3, 1).exp())
        F = of.Potential(lambda x: x.square().sum(-1))
        with pytest.raises(of.errors.Unsupported, match="pull_back") as caught:
            TangentProximal().solve(F, mu, 0.1)
        assert "torch operations" in str(caught.value)

        class WithVerb(Detached, ScalesWithTheVerb):
            pass

        # The verb named helps.
        assert solve(F, WithVerb(mu.state), 0.1)

    def test_fixed_cells_are_refused_with_the_cure(self):
        rho = of.GridDensity.from_function(
            lambda x: (-2 * x.square().sum(-1)).exp(), -4.0, 4.0, 80, dtype=F64
        )
        F = exact.quadratic() + of.Entropy()
        with pytest.raises(of.errors.Unsupported, match=r"use JKO\(\)"):
            TangentProximal().solve(F, rho, 0.1)
        assert of.flow(F, rho, of.JKO(), dt=0.1, steps=1).converged

    def test_what_is_no_measure_has_no_solver(self):
        with pytest.raises(TypeError, match="mu must be a Measure"):
            of.proximal.default_solver(torch.zeros(2))

    @pytest.mark.parametrize("kind", [Circle, Scales])
    def test_float32(self, kind):
        x = normal(6, 1).exp()
        F = of.Potential(lambda x: 0.5 * (x - 0.3).square().sum(-1))
        single = solve(F, kind(x.float()), 0.4)
        double = solve(F, kind(x), 0.4)
        assert single.measure.state.dtype == torch.float32
        torch.testing.assert_close(
            single.measure.state.double(), double.measure.state, atol=2e-4, rtol=1e-3
        )

    def test_a_warm_start_costs_no_more_and_keeps_the_step(self):
        class FlatCircle(Circle):
            flat = True

        mu = FlatCircle(torch.linspace(-2.0, 2.0, 8, dtype=F64)[:, None])
        self.check_warm_start(mu)

    def test_pairs_of_curved_tangents_are_not_taken_along(self):
        self.check_warm_start(Scales(normal(20, 1).exp()))

    def check_warm_start(self, mu):
        F = of.Potential(lambda x: (0.5 * (x - 3).square() + x.sin()).sum(-1))
        solver = TangentProximal(tolerance=1e-8)
        first = solver.solve(F, mu, 0.8)
        cold = solver.solve(F, first.measure, 0.8)
        warm = solver.solve(F, first.measure, 0.8, warm=first.warm)
        assert all(r.certificate["converged"] for r in (first, cold, warm))
        assert warm.iterations <= cold.iterations
        torch.testing.assert_close(
            warm.measure.state, cold.measure.state, atol=1e-6, rtol=0
        )


class TestHigherOrders:
    """Gravity on the circle: tan(a(t) / 2) = exp(-t) tan(a(0) / 2)."""

    F = of.Potential(lambda x: 1 - x[..., 0])
    angles = torch.linspace(-2.0, 2.0, 8, dtype=F64)[:, None]

    def errors(self, order):
        mu = type("FlatCircle", (Circle,), {"flat": True})(self.angles)
        exact = 2 * ((self.angles / 2).tan() * math.exp(-1.0)).atan()
        found = []
        for steps in (10, 20, 40):
            solver = TangentProximal(tolerance=1e-10)
            run = of.flow(
                self.F, mu, of.JKO(solver, order=order), dt=1 / steps, steps=steps
            )
            assert run.converged
            assert not any(info.certified for info in run.info)
            found.append(float((run.final.state - exact).abs().max()))
        return found

    @pytest.mark.parametrize("order", [1, 2, 3])
    def test_flat_tangents_add_up(self, order):
        errors = self.errors(order)
        orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
        assert min(orders) > order - 0.25
        assert max(orders) < order + 0.35

    @pytest.mark.parametrize("order", [2, 3])
    @pytest.mark.parametrize("solver", [None, TangentProximal()])
    def test_other_tangents_have_order_one(self, solver, order):
        mu = Circle(self.angles)
        with pytest.raises(of.errors.Unsupported, match=r"flat = True.*order=1"):
            of.flow(self.F, mu, of.JKO(solver, order=order), dt=0.1, steps=1)
        assert of.flow(self.F, mu, of.JKO(solver), dt=0.1, steps=1).converged
