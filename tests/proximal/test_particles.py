"""The JKO step on particles: exact sequences, certificates, failures that say so."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import otflow as of
from otflow.proximal import ParticleProximal, SinkhornParticles
from tests import exact


def cloud(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def double_well() -> of.Potential:
    """Potential of modulus -1: (x^2 - 1)^2 / 4 per axis."""
    return of.Potential(
        lambda x: 0.25 * (x.square() - 1).square().sum(-1), modulus=-1.0
    )


class TestExactSequences:
    def test_dyson_particles_follow_the_exact_jko_sequence(self):
        n, c, dt, steps = 24, 2.0, 0.3, 25
        solver = ParticleProximal(tolerance=1e-13)
        run = of.flow(
            exact.dyson(), exact.hermite(n, c), of.JKO(solver), dt=dt, steps=steps
        )
        for k, mu in enumerate(run.snapshots):
            scale = exact.breathing_jko(c, dt, k, kappa=1 / n)
            expected = exact.hermite(n, scale).points
            assert torch.allclose(mu.points, expected, rtol=0, atol=1e-10)
        assert all(info["certified"] for info in run.info)

    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize(("lam", "dt"), [(1.0, 0.5), (3.0, 4.0), (-0.5, 1.0)])
    def test_quadratic_potential_contracts_by_one_over_one_plus_lam_dt(
        self, weighted, lam, dt
    ):
        x = cloud(30, 3)
        w = torch.rand(30, generator=torch.Generator().manual_seed(1)).double()
        mu = of.Particles(x, w / w.sum() if weighted else None)
        F = exact.quadratic(lam)
        run = of.flow(F, mu, of.JKO(), dt=dt, steps=6)
        expected = exact.decay_jko(lam, dt, 6) * x
        assert torch.allclose(run.final.points, expected, rtol=1e-12, atol=0)
        assert {info["guarantee"] for info in run.info} == {"exact"}
        rate = (run.records["energy"][1:] / run.records["energy"][:-1]).log()
        assert torch.allclose(rate, torch.full_like(rate, -2 * math.log1p(lam * dt)))

    def test_w2_to_a_target_shrinks_by_one_over_one_plus_dt(self):
        """F = W2^2(., nu)/2, the step is the geodesic at dt/(1 + dt)."""
        x, dt = cloud(20, 2), 0.7
        shift = torch.tensor([3.0, -1.0], dtype=torch.float64)
        target = of.Particles(1.5 * x + shift)

        class ToTarget(of.Functional):
            def value(self, mu):
                return 0.5 * of.metrics.wasserstein2_squared(mu, target)

        solver = ParticleProximal(tolerance=1e-11)
        run = of.flow(ToTarget(), of.Particles(x), of.JKO(solver), dt=dt, steps=3)
        start = float(of.metrics.wasserstein2(run.snapshots[0], target))
        for k, mu in enumerate(run.snapshots):
            distance = float(of.metrics.wasserstein2(mu, target))
            assert distance == pytest.approx(
                exact.decay_jko(1.0, dt, k) * start, rel=1e-9
            )
        first = of.metrics.geodesic(run.snapshots[0], target, dt / (1 + dt))
        gap = of.metrics.wasserstein2(run.snapshots[1], first)
        assert float(gap) < 1e-8

    @pytest.mark.slow
    def test_power_law_4_2_splits_into_two_atoms(self):
        """Half the mass at -1/2, half at 1/2, energy -1/16."""
        mu = of.Particles(torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None])
        F = of.Interaction(of.kernels.PowerLaw(4, 2))
        run = of.flow(F, mu, of.JKO(), dt=5.0, steps=40, every=40)
        assert float(run.records["energy"][-1]) == pytest.approx(-1 / 16, abs=1e-10)
        expected = exact.TWO_ATOMS.repeat_interleave(20, 0)
        ends = run.final.points.sort(0).values
        assert torch.allclose(ends, expected, atol=1e-5)

    def test_observed_order_in_dt_is_one(self):
        n, c, t = 10, 2.0, 1.0
        steps = [10, 20, 40, 80]
        truth = exact.hermite(n, exact.breathing(c, t, kappa=1 / n)).points
        errors = []
        for k in steps:
            run = of.flow(
                exact.dyson(), exact.hermite(n, c), of.JKO(), dt=t / k, steps=k, every=k
            )
            errors.append(float((run.final.points - truth).abs().max()))
        slopes = [math.log2(a / b) for a, b in pairwise(errors)]
        assert slopes[-1] == pytest.approx(1.0, abs=0.1)

    def test_rate_of_convex_functional(self):
        """W2 to the minimiser falls at least by 1/(1 + lam dt) a step."""
        F = exact.quadratic(1.0) + of.Potential(
            lambda x: 0.1 * x.square().sum(-1).square(), modulus=0.0
        )
        mu, dt = of.Particles(cloud(15, 2)), 0.4
        run = of.flow(F, mu, of.JKO(), dt=dt, steps=8)
        sizes = [float(m.norm(m.points)) for m in run.snapshots]
        for a, b in pairwise(sizes):
            assert b <= a / (1 + dt) * (1 + 1e-6)


class TestCertificate:
    def test_every_step_dissipates(self):
        F = double_well() + of.Interaction(of.kernels.Gaussian(0.5))
        run = of.flow(F, of.Particles(cloud(80, 2)), of.JKO(), dt=0.5, steps=6)
        for info in run.info:
            spent = info["energy_before"] - info["energy_after"]
            assert spent >= info["w2"] ** 2 / (2 * 0.5) - 1e-14
            assert info["converged"]
            assert info["coupling_optimal"]

    def test_w2_is_the_exact_distance(self):
        F = double_well() + of.Interaction(of.kernels.Gaussian(0.5))
        mu = of.Particles(cloud(60, 2))
        result = ParticleProximal().solve(F, mu, 2.0)
        w2 = float(of.metrics.wasserstein2(mu, result.measure))
        assert result.certificate["w2"] == pytest.approx(w2, rel=1e-10)

    def test_bound_holds(self):
        """A sloppy solve lies within its own bound of a tight one."""
        F = double_well() + 0.5 * of.Interaction(
            lambda z: 0.25 * z.square().sum(-1).square(), modulus=0.0
        )
        mu, dt = of.Particles(cloud(40, 2)), 0.6
        exact_step = ParticleProximal(tolerance=1e-13).solve(F, mu, dt)
        for tolerance in (0.5, 1e-1, 1e-2):
            sloppy = ParticleProximal(tolerance=tolerance).solve(F, mu, dt)
            w2 = float(of.metrics.wasserstein2(exact_step.measure, sloppy.measure))
            bound = sloppy.certificate["bound"]
            assert bound is not None
            assert w2 <= bound
            assert bound <= 100 * tolerance
        assert exact_step.certificate["bound"] < 1e-12

    @pytest.mark.parametrize("dt", [0.9, 1.1])
    def test_bound_needs_a_strongly_convex_objective(self, dt):
        """Modulus -1: the bound exists for dt < 1 and not beyond."""
        result = ParticleProximal().solve(double_well(), of.Particles(cloud(9, 1)), dt)
        assert (result.certificate["bound"] is not None) == (dt < 1)
        assert result.certificate["guarantee"] == ("exact" if dt < 1 else "stationary")

    def test_relabelling_finds_the_cheaper_coupling(self):
        """Points that would cross on a line are relabelled, and the energy obeys."""
        x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)

        class Swap(of.Functional):
            """Symmetric in the atoms, least where they sit at -2 and 2."""

            def value(self, mu):
                spread = mu.expectation(lambda x: x.square().sum(-1))
                tilt = mu.expectation(lambda x: x.sum(-1))
                return (spread - 4).square() + tilt.square()

        solver = ParticleProximal()
        problem_start = of.Particles(x.flip(0))
        result = solver.solve(Swap(), of.Particles(x), 1.0)
        w2 = of.metrics.wasserstein2(of.Particles(x), result.measure)
        assert result.certificate["w2"] == pytest.approx(float(w2), rel=1e-12)
        assert result.measure.points[0] < result.measure.points[1]
        assert solver.solve(Swap(), problem_start, 1.0).certificate["certified"]

    def test_relabelling_happens_and_certifies(self):
        """Repelling particles at a long step cross; the assignment mends it."""
        F = of.Interaction(of.kernels.PowerLaw(2, 0))
        mu = of.Particles(0.2 * cloud(60, 2, seed=0))
        result = ParticleProximal(tolerance=1e-4).solve(F, mu, 3.0)
        assert result.certificate["relabellings"] > 0
        assert result.certificate["certified"]
        u = mu.displacement_to(result.measure)
        kept = math.sqrt(float(mu.inner(u, u)))
        assert kept == pytest.approx(result.certificate["w2"], rel=1e-9)

    def test_a_matched_coupling_needs_no_relabelling(self):
        result = ParticleProximal().solve(
            exact.quadratic(), of.Particles(cloud(50, 2)), 0.1
        )
        assert result.certificate["relabellings"] == 0

    def test_without_certify_nothing_is_claimed(self):
        F = of.Interaction(of.kernels.Gaussian(0.5))
        solver = ParticleProximal(certify=False)
        certificate = solver.solve(
            2.0 * F + of.OfExpectation(lambda m: m.square().sum(), lambda x: x),
            of.Particles(cloud(20, 2)),
            0.2,
        ).certificate
        assert certificate["guarantee"] == "none"
        assert not certificate["certified"]
        assert certificate["w2"] > 0


class TestUnequalWeights:
    def test_a_step_that_would_split_atoms_is_an_upper_bound(self):
        """Atoms that split would do better: the guarantee is only an upper bound."""
        tau = 1.0
        mu = of.Particles(
            torch.tensor([[1.0], [-1.0]], dtype=torch.float64),
            torch.tensor([2 / 3, 1 / 3], dtype=torch.float64),
        )
        width = 0.2

        def mismatch(x):  # wants mass 1/3 at 1, 2/3 at -1, smoothly
            return torch.stack(
                [(-(x - c).square().sum(-1) / width).exp() for c in (1.0, -1.0)], -1
            )

        goal = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
        F = of.OfExpectation(lambda m: 40 * (m - goal).square().sum(), mismatch)
        result = ParticleProximal().solve(F, mu, tau)
        assert result.certificate["guarantee"] in ("upper-bound", "none")
        assert not result.certificate["certified"]
        objective = result.certificate["energy_after"] + result.certificate[
            "w2"
        ] ** 2 / (2 * tau)
        # The true step splits the atom at 1: a mass of 1/3 moves to -1.
        split = of.Particles(
            torch.tensor([[1.0], [-1.0], [-1.0]], dtype=torch.float64),
            torch.tensor([1 / 3, 1 / 3, 1 / 3], dtype=torch.float64),
        )
        better = float(F(split)) + (1 / 3) * 4 / (2 * tau)
        assert better < objective - 0.1

    def test_w2_is_exact_for_unequal_weights(self):
        w = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
        mu = of.Particles(cloud(4, 2), w)
        F = of.OfExpectation(lambda m: m.square().sum(), lambda x: x.square())
        result = ParticleProximal().solve(F, mu, 3.0)
        w2 = float(of.metrics.wasserstein2(mu, result.measure))
        assert result.certificate["w2"] == pytest.approx(w2, rel=1e-9)
        assert result.certificate["guarantee"] == "upper-bound"

    def test_replanning_lowers_the_objective(self):
        """Where the kept coupling is not optimal the plan replaces it."""
        w = torch.rand(40, generator=torch.Generator().manual_seed(5)).double()
        mu = of.Particles(0.2 * cloud(40, 2, seed=3), w / w.sum())
        F = of.Interaction(of.kernels.PowerLaw(2, 0))
        solver = ParticleProximal(tolerance=1e-4)
        result = solver.solve(F, mu, 3.0)
        naive = ParticleProximal(tolerance=1e-4, certify=False).solve(F, mu, 3.0)
        c, b = result.certificate, naive.certificate
        assert c["relabellings"] > 0
        assert (
            c["energy_after"] + c["w2"] ** 2 / 6 < b["energy_after"] + b["w2"] ** 2 / 6
        )
        assert c["energy_after"] + c["w2"] ** 2 / 6 <= c["energy_before"]

    def test_zero_weight_atoms(self):
        """They move by explicit Euler and change nothing else."""
        x = cloud(5, 2)
        w = torch.tensor([0.25, 0.25, 0.0, 0.25, 0.25], dtype=torch.float64)
        full = ParticleProximal().solve(exact.quadratic(), of.Particles(x, w), 0.5)
        keep = [0, 1, 3, 4]
        part = ParticleProximal().solve(exact.quadratic(), of.Particles(x[keep]), 0.5)
        assert torch.allclose(full.measure.points[keep], part.measure.points)
        assert torch.allclose(full.measure.points[2], 0.5 * x[2])


class TestSinkhorn:
    def test_step_approaches_the_exact_one_as_the_blur_vanishes(self):
        mu, F = of.Particles(cloud(25, 2)), exact.quadratic()
        gaps = []
        for blur in (0.5, 0.05):
            solver = SinkhornParticles(blur, tolerance=1e-2)
            result = solver.solve(F, mu, 0.5)
            assert result.certificate["guarantee"] == "sinkhorn"
            assert result.certificate["blur"] == blur
            assert result.certificate["w2"] is None
            assert not result.certificate["certified"]
            gaps.append(
                float((result.measure.points - mu.points / 1.5).norm(dim=1).max())
            )
        assert gaps[1] < 0.2 * gaps[0]
        assert gaps[1] < 0.05

    def test_blur_as_an_option_of_the_exact_solver_warns_and_does_the_same(self):
        mu, F = of.Particles(cloud(8, 2)), exact.quadratic()
        with pytest.warns(DeprecationWarning, match=r"SinkhornParticles\(blur\)"):
            old = ParticleProximal(blur=0.3, tolerance=1e-2)
        new = SinkhornParticles(0.3, tolerance=1e-2)
        found, expected = old.solve(F, mu, 0.5), new.solve(F, mu, 0.5)
        assert found.certificate["converged"]
        assert torch.equal(found.measure.points, expected.measure.points)
        assert found.certificate == expected.certificate

    def test_a_bad_blur(self):
        with pytest.raises(ValueError, match="blur must be positive"):
            SinkhornParticles(-1.0)


class TestRoundOff:
    """A step is as good as its dtype can tell, whatever scale, offset and stiffness."""

    @pytest.mark.parametrize("dt", [1.0, 1e4, 1e6])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        ("scale", "offset"),
        [(1.0, 0.0), (1e-6, 0.0), (1e6, 0.0), (1.0, 1e3), (1e-3, 1e3), (1.0, 1e6)],
    )
    def test_stiff_quadratics_converge_to_round_off(self, scale, offset, dtype, dt):
        offset = offset * scale
        stiff = torch.logspace(0, -3, 5, dtype=torch.float64)
        F = of.Potential(
            lambda x: 0.5 * (stiff.to(x.dtype) * (x - offset).square()).sum(-1),
            modulus=1e-3,
        )
        for seed in range(3):
            x = (cloud(20, 5, seed) * scale + offset).to(dtype)
            result = ParticleProximal().solve(F, of.Particles(x), dt)
            report = result.certificate
            assert report["converged"]
            assert not report["stalled"]
            assert report["iterations"] < 120
            goal = (x.double() - offset) / (1 + dt * stiff) + offset
            error = (result.measure.points.double() - goal).square().sum(-1).mean()
            assert float(error.sqrt()) <= report["bound"]

    @pytest.mark.parametrize("rotated", [False, True])
    def test_no_last_bit_decides_whether_a_stiff_step_converges(self, rotated):
        stiff, turn = torch.logspace(0, -3, 5), torch.eye(5)
        if rotated:
            turn = torch.linalg.qr(cloud(5, 5).float())[0]
        F = of.Potential(
            lambda x: 0.5 * (stiff * (x @ turn).square()).sum(-1), modulus=0.99e-3
        )
        for k in range(6):
            x = (cloud(20, 5, 2) * 1e-6).float() * (1 + k * torch.finfo().eps)
            report = ParticleProximal().solve(F, of.Particles(x), 1e6).certificate
            assert report["converged"]
            assert report["iterations"] < 150

    @pytest.mark.parametrize("dt", [1e4, 1e6])
    @pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
    def test_double_wells_in_float32_converge(self, scale, dt):
        F = of.Potential(
            lambda x: 0.25 * scale**2 * ((x / scale).square() - 1).square().sum(-1)
        )
        for seed in range(5):
            x = (cloud(20, 3, seed) * scale).float()
            report = ParticleProximal().solve(F, of.Particles(x), dt).certificate
            assert report["converged"]
            assert report["iterations"] < 150

    @pytest.mark.parametrize("dt", [1.0, 10.0, 100.0])
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("kernel", ["log", "riesz", "energy"])
    def test_repelling_atoms_on_a_line_converge(self, kernel, weighted, dt):
        W = {
            "log": of.kernels.Log(),
            "riesz": of.kernels.Riesz(0.5),
            "energy": of.kernels.Energy(),
        }[kernel]
        F = exact.quadratic() + of.Interaction(W)
        x = cloud(15, 1)
        w = cloud(15, 1, 5)[:, 0].exp()
        mu = of.Particles(x, w / w.sum() if weighted else None)
        report = ParticleProximal().solve(F, mu, dt).certificate
        assert report["converged"]
        assert report["guarantee"] == ("upper-bound" if weighted else "stationary")


class TestKinks:
    """Where the gradient jumps a descent stalls: it ends early and says so."""

    @pytest.mark.parametrize("dt", [1.0, 10.0, 100.0])
    @pytest.mark.parametrize("name", ["|x|", "relu"])
    def test_a_kink_is_told_before_the_budget_is_spent(self, name, dt):
        t = torch.linspace(-1, 1, 32, dtype=torch.float64)
        F, d = {
            "|x|": (of.Potential(lambda x: x.abs().sum(-1), modulus=0.0), 1),
            "relu": (
                of.meanfield.Risk(of.meanfield.TwoLayer("relu"), t[:, None], t.abs()),
                3,
            ),
        }[name]
        for seed in range(2):
            mu = of.Particles(cloud(20, d, seed))
            report = ParticleProximal().solve(F, mu, dt).certificate
            assert report["stalled"]
            assert not report["converged"]
            assert report["guarantee"] == "none"
            assert report["iterations"] < 180
            assert report["energy_after"] < report["energy_before"]

    def test_a_flow_at_a_kink_warns_once_and_names_smoothing(self):
        mu = of.Particles(cloud(10, 1))
        kinked = of.Potential(lambda x: x.abs().sum(-1), modulus=0.0)
        with pytest.warns(of.errors.NotConvergedWarning) as caught:
            run = of.flow(kinked, mu, of.JKO(), dt=1.0, steps=2)
        assert len(caught) == 1
        text = str(caught[0].message)
        assert all(word in text for word in ("kink of F", "smooth", "ExplicitEuler()"))
        assert run.converged is False

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("far", [None, 1.0, -3.0])
    def test_a_derivative_0_that_is_no_subgradient_holds_no_atom(self, far, dtype):
        # At 0 the slopes are 1/2 and 1 in the first coordinate, -1 and -1/2 in the
        # second; the derivative of torch is 0 in both.
        def leaky(x):
            return x.relu() - 0.5 * (-x).relu()

        def V(x):
            first, second = x.unbind(-1)
            return leaky(first) + leaky(-second) + 0.5 * x.square().sum(-1)

        F = of.Potential(V, modulus=1.0)
        points = torch.zeros(3, 2, dtype=dtype)
        if far is not None:
            points[1, 0] = far
        result = ParticleProximal().solve(F, of.Particles(points), 0.5)
        found = result.measure.points
        expected = torch.tensor([-1.0, 1.0], dtype=dtype).expand(3, 2).clone() / 6
        if far is not None:  # (y - far) / dt + slope + y = 0
            expected[1, 0] = (2 * far - (1.0 if far > 0 else 0.5)) / 3
        slack = 1e-4 if dtype == torch.float64 else 1e-3
        torch.testing.assert_close(found, expected, atol=slack, rtol=0)
        assert result.certificate["guarantee"] == "exact"
        off = float((found - expected).square().sum(-1).mean().sqrt())
        assert off <= result.certificate["bound"] + 1e-15

    def test_a_true_minimum_at_a_kink_holds_its_atoms(self):
        mu = of.Particles(torch.zeros(3, 2, dtype=torch.float64))
        F = of.Potential(lambda x: x.abs().sum(-1), modulus=0.0)
        result = ParticleProximal().solve(F, mu, 0.5)
        assert torch.equal(result.measure.points, mu.points)
        assert result.certificate["guarantee"] == "exact"
        assert result.iterations <= 3

    @pytest.mark.parametrize("dt", [0.1, 1.0, 10.0, 100.0])
    @pytest.mark.parametrize("d", [1, 2])
    def test_a_smoothed_absolute_value_converges(self, d, dt):
        smooth = of.Potential(lambda x: (x.square() + 1e-4).sqrt().sum(-1), modulus=0.0)
        for seed in range(3):
            x = cloud(20, d, seed)
            result = ParticleProximal().solve(smooth, of.Particles(x), dt)
            assert result.certificate["converged"]
            assert result.certificate["guarantee"] == "exact"
            # The step of |x| is soft thresholding; smoothing adds at most eps to it.
            goal = x.sign() * (x.abs() - dt).clamp_min(0)
            gap = float((result.measure.points - goal).square().sum(-1).mean())
            assert gap <= 2 * d * dt * 1e-2 + 1e-6

    @pytest.mark.parametrize("dt", [0.1, 1.0, 10.0, 100.0])
    def test_a_smoothed_relu_converges(self, dt):
        t = torch.linspace(-1, 1, 32, dtype=torch.float64)
        network = of.meanfield.TwoLayer(
            lambda z: torch.nn.functional.softplus(10 * z) / 10
        )
        F = of.meanfield.Risk(network, t[:, None], t.abs())
        for seed in range(3):
            mu = of.Particles(cloud(20, 3, seed))
            report = ParticleProximal().solve(F, mu, dt).certificate
            assert report["converged"]
            assert report["guarantee"] == "stationary"

    def test_explicit_steps_follow_the_flow_of_a_kink_to_within_a_step(self):
        x, dt = cloud(20, 1), 0.02
        kinked = of.Potential(lambda x: x.abs().sum(-1), modulus=0.0)
        run = of.flow(kinked, of.Particles(x), of.ExplicitEuler(), dt=dt, steps=50)
        assert run.converged is None
        goal = x.sign() * (x.abs() - 50 * dt).clamp_min(0)
        assert float((run.final.points - goal).abs().max()) <= dt * (1 + 1e-9)


class TestFailuresSayS:
    def test_budget_spent_is_flagged(self):
        F = double_well() + of.Interaction(of.kernels.PowerLaw(2, 0))
        solver = ParticleProximal(tolerance=1e-12, max_gradients=3)
        certificate = solver.solve(F, of.Particles(cloud(30, 2)), 5.0).certificate
        assert certificate["iterations"] <= 4
        assert not certificate["converged"]
        assert certificate["guarantee"] == "none"
        assert certificate["energy_after"] <= certificate["energy_before"]

    def test_entropy_is_refused_with_the_cure(self):
        F = exact.quadratic() + of.Entropy()
        with pytest.raises(of.errors.Unsupported, match="Langevin"):
            of.flow(F, of.Particles(cloud(5, 2)), of.JKO(), dt=0.1, steps=1)

    def test_a_solver_class_in_place_of_an_instance(self):
        with pytest.raises(TypeError, match=r"write ParticleProximal\(\)"):
            of.JKO(ParticleProximal)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"tolerance": 0}, "tolerance must be positive"),
            ({"max_gradients": 0}, "max_gradients must be at least 1"),
            ({"max_gradients": 1.5}, "max_gradients must be an integer"),
            ({"certify": 1}, "certify must be True or False"),
            ({"memory": 0}, "memory must be at least 1"),
        ],
    )
    def test_bad_options(self, options, message):
        with pytest.raises((TypeError, ValueError), match=message):
            ParticleProximal(**options)

    @pytest.mark.parametrize("dt", [0.0, -1.0, math.nan, math.inf, True, "1"])
    def test_bad_dt(self, dt):
        with pytest.raises((TypeError, ValueError), match="dt must be"):
            ParticleProximal().solve(exact.quadratic(), of.Particles(cloud(3, 1)), dt)

    def test_other_measures_are_refused(self):
        class Other(of.Measure):
            points = torch.zeros(1, 1)
            weights = torch.ones(1)

            def value_and_position_gradient(self, value):
                raise AssertionError

            def push(self, tangent, dt):
                raise AssertionError

            def inner(self, u, v):
                raise AssertionError

            def displacement_to(self, other):
                raise AssertionError

        with pytest.raises(of.errors.Unsupported, match="steps Particles, got Other"):
            ParticleProximal().solve(exact.quadratic(), Other(), 0.1)
        # Without a solver the representation gets the generic one.
        generic = of.proximal.default_solver(Other())
        assert type(generic) is of.proximal.TangentProximal


class TestScheme:
    def test_warm_start_saves_gradients_and_keeps_the_answer(self):
        F = double_well() + of.Interaction(of.kernels.Gaussian(0.5))
        mu = of.Particles(cloud(60, 2))
        solver = ParticleProximal(tolerance=1e-8)
        warm = of.flow(F, mu, of.JKO(solver), dt=0.3, steps=8)
        cold = [mu]
        spent = 0
        for _ in range(8):
            result = solver.solve(F, cold[-1], 0.3)
            spent += result.iterations
            cold.append(result.measure)
        assert sum(info["iterations"] for info in warm.info) < spent
        assert torch.allclose(warm.final.points, cold[-1].points, atol=1e-6)

    def test_a_stationary_measure_stays(self):
        mu = of.Particles(torch.zeros(4, 2, dtype=torch.float64))
        result = ParticleProximal().solve(exact.quadratic(), mu, 1.0)
        assert torch.equal(result.measure.points, mu.points)
        assert result.certificate["certified"]
        assert result.iterations == 2  # the start, and the slope beside it

    def test_float32(self):
        mu = of.Particles(cloud(30, 2).float())
        result = ParticleProximal().solve(exact.quadratic(), mu, 1.0)
        assert result.measure.dtype == torch.float32
        assert torch.allclose(result.measure.points, mu.points / 2, atol=1e-6)
        assert result.certificate["converged"]

    def test_the_step_is_pure(self):
        mu = of.Particles(cloud(10, 2))
        before = mu.points.clone()
        state = torch.random.get_rng_state()
        scheme, generator = of.JKO(), torch.Generator()
        F = double_well()
        one = scheme.step(F, mu, 0.2, scheme.init(F, mu), generator)
        two = scheme.step(F, mu, 0.2, scheme.init(F, mu), generator)
        assert torch.equal(mu.points, before)
        assert torch.equal(one.measure.points, two.measure.points)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert not one.measure.points.requires_grad


class TestDiskEquilibrium:
    @pytest.mark.slow
    def test_particles_relax_to_the_uniform_unit_disk(self):
        """Under |z|^2/2 - log|z| in the plane, by certified steps."""
        n = 300
        F = of.Interaction(of.kernels.PowerLaw(2, 0))
        solver = ParticleProximal(tolerance=1e-3)
        run = of.flow(
            F, of.Particles(0.4 * cloud(n, 2) + 1), of.JKO(solver), dt=2.0, steps=25
        )
        assert all(info["certified"] for info in run.info)
        x = run.final.points - run.final.points.mean(0)
        assert torch.allclose(run.final.points.mean(0), 0.4 * cloud(n, 2).mean(0) + 1)
        # The virial theorem, exact for n particles.
        assert float(x.square().sum(1).mean()) == pytest.approx(
            0.5 * (1 - 1 / n), rel=1e-5
        )
        radius = x.norm(dim=1)
        assert 0.95 < float(radius.max()) < 1
        for r in (0.3, 0.5, 0.7, 0.9):  # the mass within r is r^2
            assert float((radius < r).double().mean()) == pytest.approx(r * r, abs=0.03)
        energy = float(run.records["energy"][-1])
        assert energy == pytest.approx(
            exact.DISK_ENERGY - math.log(n) / (4 * n), abs=1 / n
        )


@pytest.mark.parametrize("far", [1e3, 1e6])
def test_a_far_atom_does_not_let_the_others_rest(far):
    """Its round-off is greater than their whole step, which is taken all the same."""
    x = torch.tensor([[0.0, 0.0], [1e-3, 0.0], [far, 0.0]])
    F = of.Interaction(of.kernels.Gaussian(1e-3))
    ends, seed = [], torch.Generator()
    for dtype in (torch.float32, torch.float64):
        report = of.JKO().step(F, of.Particles(x.to(dtype)), 1e-6, None, seed)
        assert report.info["converged"]
        ends.append(report.measure.points.double())
    single, double = ends
    moved = double - x.double()
    assert float(moved[:2].norm()) > 2e-4
    torch.testing.assert_close(single[:2], double[:2], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("d", [1, 11, 20])
@pytest.mark.parametrize("weighted", [False, True])
def test_far_from_the_origin_a_step_is_within_a_last_place(d, weighted):
    """Single precision tells places apart to a unit, and the step is no worse."""
    scale, offset, n = 2.0**15, -(2.0**24), 40
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        turn = torch.linalg.qr(cloud(d, d, seed + 50))[0]
        curvatures = 10 ** (-2 + 2 * torch.rand(d, generator=generator).double())
        H = turn @ torch.diag(curvatures) @ turn.T
        F = of.Potential(
            lambda x, H=H: 0.5 * ((x - offset) @ H.to(x) * (x - offset)).sum(-1),
            modulus=0.0,
        )
        weights = torch.rand(n, generator=generator) ** 3 if weighted else None
        x = (offset + scale * cloud(n, d, seed)).float()
        mu = of.Particles(x, weights, normalize=weighted)
        for dt in (1e-3, 0.02, 1.0):
            result = ParticleProximal().solve(F, mu, dt)
            assert result.certificate["converged"]
            inverse = torch.linalg.inv(torch.eye(d, dtype=torch.float64) + dt * H)
            start = x.double() - offset
            end, w = result.measure.points.double() - offset, mu.weights.double()
            off = (w @ (end - start @ inverse).square().sum(1)).sqrt()
            moved = (w @ (start - start @ inverse).square().sum(1)).sqrt()
            place = torch.finfo(torch.float32).eps * abs(offset) * d**0.5
            assert float(off) <= 1.1e-4 * float(moved) + 1.5 * place
            assert float(off) <= result.certificate["bound"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_far_coordinate_does_not_let_the_others_rest(dtype):
    """Its last place is longer than the whole step of the other coordinate."""
    far = 1.0 / torch.finfo(dtype).eps
    for seed in range(3):
        x = cloud(20, 2, seed).to(dtype)
        x[:, 0] += far
        F = of.Potential(lambda x: 0.5 * (x[:, 1] - 3).square(), modulus=0.0)
        mu = of.Particles(x)
        result = ParticleProximal().solve(F, mu, 0.1)
        assert result.certificate["converged"]
        goal = (x[:, 1] + 0.3) / 1.1
        torch.testing.assert_close(
            result.measure.points[:, 1], goal, rtol=2e-4, atol=2e-4
        )
