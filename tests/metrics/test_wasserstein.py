"""Exact W2: known answers, brute force, laws of a metric, gradients, refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import otflow as of
from otflow.metrics import (
    assignment,
    geodesic,
    transport_plan,
    wasserstein2,
    wasserstein2_squared,
)


def cloud(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def weights(n: int, seed: int = 0, zeros: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    w = torch.rand(n, generator=generator, dtype=torch.float64) + 0.05
    w[:zeros] = 0.0
    return w / w.sum()


def brute_force(x: torch.Tensor, y: torch.Tensor) -> float:
    costs = (x[:, None] - y).square().sum(-1)
    rows = torch.arange(len(x))
    return min(
        float(costs[rows, list(p)].sum()) for p in itertools.permutations(range(len(x)))
    )


class TestAssignment:
    @pytest.mark.parametrize("d", [1, 2, 5])
    def test_brute_force(self, d):
        for seed in range(5):
            x, y = cloud(7, d, seed), cloud(7, d, seed + 50)
            sigma = assignment(x, y)
            assert sigma.sort().values.tolist() == list(range(7))
            cost = float((x - y[sigma]).square().sum())
            assert cost == pytest.approx(brute_force(x, y), rel=1e-12)

    @pytest.mark.parametrize("n", [200, 400])
    def test_far_and_near_solvers_agree_with_scipy(self, n):
        """The identity proof, the augmenting paths and the simplex: one optimum."""
        from scipy.optimize import linear_sum_assignment
        from scipy.spatial.distance import cdist

        x = cloud(n, 2)
        pairs = {
            "identity": x + 0.1 * torch.tanh(x),
            "near": x + 0.02 * cloud(n, 2, 1),
            "far": cloud(n, 2, 2),
        }
        for y in pairs.values():
            C = cdist(x.numpy(), y.numpy(), "sqeuclidean")
            best = C[linear_sum_assignment(C)].sum()
            cost = float((x - y[assignment(x, y)]).square().sum())
            assert cost == pytest.approx(best, rel=1e-10)

    def test_monotone_map_is_the_identity(self):
        x = cloud(300, 3)
        y = x + x.pow(3)  # the gradient of a convex function
        assert torch.equal(assignment(x, y), torch.arange(300))

    def test_a_planted_permutation_is_found(self):
        x = cloud(300, 2)
        p = torch.randperm(300, generator=torch.Generator().manual_seed(0))
        assert torch.equal(assignment(x, 2 * x[p]), p.argsort())

    def test_a_slightly_worse_identity_is_not_accepted(self):
        """Two atoms exchanged among many: the proof must fail, the answer be exact."""
        x = cloud(500, 2)
        y = x.clone()
        i, j = 3, int((x - x[3]).square().sum(1).argsort()[1])
        y[[i, j]] = x[[j, i]]
        sigma = assignment(x, y)
        assert float((x - y[sigma]).square().sum()) == 0.0
        assert int(sigma[i]) == j

    def test_duplicates_and_translation(self):
        x = cloud(40, 2).round()
        y = x + torch.tensor([1e6, -1e6], dtype=torch.float64)
        moved = y[assignment(x, y)] - x
        assert torch.allclose(moved, (y - x), atol=1e-6)

    @pytest.mark.parametrize("n", [30, 300])
    def test_clouds_far_from_one_another(self, n):
        """Costs of size 1e16 would swallow the differences between them."""
        x, y = cloud(n, 2), cloud(n, 2, 1) + 1e8
        assert torch.equal(assignment(x, y), assignment(x, y - 1e8))

    @pytest.mark.parametrize("apart", [1e-3, 1e-6])
    def test_an_exchange_of_close_points_is_found(self, apart):
        """It shortens the cost by 2 apart^2 only."""
        x = cloud(60, 2)
        x[1] = x[0] + apart
        y = x.clone()
        y[:2] = x[[1, 0]]
        assert assignment(x, y)[:2].tolist() == [1, 0]

    def test_dtype_and_device_of_the_answer(self):
        x = cloud(10, 2).float()
        assert assignment(x, x).dtype == torch.int64
        assert assignment(x.numpy(), x.numpy()).tolist() == list(range(10))

    def test_unequal_sizes(self):
        with pytest.raises(ValueError, match="as many; use transport_plan"):
            assignment(cloud(3, 2), cloud(4, 2))


class TestPlan:
    @pytest.mark.parametrize("d", [1, 2, 4])
    @pytest.mark.parametrize("zeros", [0, 3])
    def test_marginals_duality_and_pot(self, d, zeros):
        import ot

        mu = of.Particles(cloud(30, d), weights(30, 1, zeros))
        nu = of.Particles(cloud(22, d, 3) + 1, weights(22, 2))
        plan = transport_plan(mu, nu)
        P = plan.dense()
        assert torch.allclose(P.sum(1), mu.weights, atol=1e-14)
        assert torch.allclose(P.sum(0), nu.weights, atol=1e-14)
        assert (plan.masses >= 0).all()
        C = (mu.points[:, None] - nu.points).square().sum(-1)
        assert float(plan.cost) == pytest.approx(float((P * C).sum()), rel=1e-12)
        value = ot.emd2(mu.weights.numpy(), nu.weights.numpy(), C.numpy())
        assert float(plan.cost) == pytest.approx(value, rel=1e-10)
        # Feasible everywhere, at atoms without mass too, and tight on the plan.
        assert float((C - plan.f[:, None] - plan.g).min()) > -1e-12
        dual = float(mu.weights @ plan.f + nu.weights @ plan.g)
        assert dual == pytest.approx(float(plan.cost), rel=1e-10)

    @pytest.mark.parametrize("d", [1, 2])
    def test_atoms_without_mass_are_listed_beside_their_partners(self, d):
        mu = of.Particles(cloud(12, d), weights(12, 1, zeros=4))
        nu = of.Particles(cloud(10, d, 3), weights(10, 2, zeros=3))
        plan = transport_plan(mu, nu)
        costs = (mu.points[:, None] - nu.points).square().sum(-1)
        slack = costs - plan.f[:, None] - plan.g
        # Feasible everywhere; tight but where two atoms without mass compete.
        assert float(slack.min()) > -1e-13
        tight = slack[plan.rows, plan.columns].abs() < 1e-13
        competing = plan.columns < 3
        assert bool((tight | competing).all())
        costs = costs[:, :3] - plan.f[:, None]
        assert torch.allclose(plan.g[:3], costs.amin(0), atol=1e-13)
        assert sorted(plan.rows[plan.rows < 4].tolist()) == [0, 1, 2, 3]
        assert sorted(plan.columns[plan.columns < 3].tolist()) == [0, 1, 2]
        assert (plan.masses[(plan.rows < 4) | (plan.columns < 3)] == 0).all()

    @pytest.mark.parametrize("d", [1, 3])
    def test_equal_masses_give_a_permutation(self, d):
        plan = transport_plan(cloud(40, d), cloud(40, d, 1))
        assert float((plan.masses - 1 / 40).abs().max()) < 1e-15
        assert plan.rows.sort().values.tolist() == list(range(40))
        assert plan.columns.sort().values.tolist() == list(range(40))

    @pytest.mark.parametrize(("n", "m"), [(7, 49), (30, 10), (6, 9)])
    def test_steps_of_the_line_that_meet_up_to_round_off(self, n, m):
        """No cell carries a mass of round-off; there are n + m - gcd(n, m)."""
        plan = transport_plan(cloud(n, 1), cloud(m, 1, 1))
        assert len(plan.masses) == n + m - math.gcd(n, m)
        assert float(plan.masses.min()) > 0.5 / (n * m)

    def test_line_quantile_formula(self):
        """W2^2 on the line is the L2 distance of the quantile functions."""
        x, y = cloud(40, 1), cloud(25, 1, 4)
        a, b = weights(40, 5), weights(25, 6)
        levels = torch.linspace(0, 1, 2_000_001, dtype=torch.float64)
        middle = 0.5 * (levels[1:] + levels[:-1])

        def quantile(x, w):
            order = x[:, 0].argsort()
            index = torch.searchsorted(w[order].cumsum(0), middle)
            return x[order, 0][index.clamp_max(len(x) - 1)]

        expected = float((quantile(x, a) - quantile(y, b)).square().mean())
        value = wasserstein2_squared(of.Particles(x, a), of.Particles(y, b))
        assert float(value) == pytest.approx(expected, rel=1e-5)

    def test_line_agrees_with_the_plane(self):
        x, y = cloud(30, 1), cloud(20, 1, 4)
        a, b = weights(30, 5), weights(20, 6)
        pad = torch.zeros_like

        def lift(x):
            return torch.cat([x, pad(x)], dim=1)

        one = wasserstein2(of.Particles(x, a), of.Particles(y, b))
        two = wasserstein2(of.Particles(lift(x), a), of.Particles(lift(y), b))
        assert float(one) == pytest.approx(float(two), rel=1e-12)

    def test_splitting_atoms_changes_nothing(self):
        x, w = cloud(12, 2), weights(12)
        nu = of.Particles(cloud(9, 2, 7))
        twice = of.Particles(torch.cat([x, x]), torch.cat([w, w]) / 2)
        one = wasserstein2(of.Particles(x, w), nu)
        assert float(wasserstein2(twice, nu)) == pytest.approx(float(one), rel=1e-12)

    def test_scale_of_the_points_does_not_matter(self):
        """POT's tolerances are absolute; costs are brought to size 1 first."""
        mu = of.Particles(cloud(25, 2), weights(25))
        nu = of.Particles(cloud(30, 2, 1), weights(30, 1))
        one = float(wasserstein2(mu, nu))
        for s in (1e-9, 1e-4, 1e6):
            scaled = [of.Particles(s * m.points, m.weights) for m in (mu, nu)]
            assert float(wasserstein2(*scaled)) == pytest.approx(s * one, rel=1e-9)


class TestLaws:
    @given(
        seed=st.integers(0, 10_000),
        n=st.integers(1, 9),
        m=st.integers(1, 9),
        d=st.integers(1, 3),
        equal=st.booleans(),
    )
    def test_metric(self, seed, n, m, d, equal):
        m = n if equal else m
        mu = of.Particles(cloud(n, d, seed), None if equal else weights(n, seed))
        nu = of.Particles(cloud(m, d, seed + 1), None if equal else weights(m, seed))
        xi = of.Particles(cloud(4, d, seed + 2))
        there, back = float(wasserstein2(mu, nu)), float(wasserstein2(nu, mu))
        assert there == pytest.approx(back, rel=1e-9, abs=1e-9)
        assert float(wasserstein2_squared(mu, mu)) <= 1e-20
        around = float(wasserstein2(mu, xi)) + float(wasserstein2(xi, nu))
        assert there <= around + 1e-9
        assert there >= 0

    @given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10.0))
    def test_translation_rotation_scaling(self, seed, scale):
        mu = of.Particles(cloud(8, 2, seed), weights(8, seed))
        nu = of.Particles(cloud(6, 2, seed + 1))
        q, _ = torch.linalg.qr(cloud(2, 2, seed + 2))
        shift = cloud(1, 2, seed + 3)
        base = float(wasserstein2_squared(mu, nu))
        moved = [
            of.Particles(scale * m.points @ q + shift, m.weights) for m in (mu, nu)
        ]
        assert float(wasserstein2_squared(*moved)) == pytest.approx(
            scale**2 * base, rel=1e-9
        )
        away = of.Particles(nu.points + shift, nu.weights)
        means = mu.weights @ mu.points - nu.weights @ nu.points
        expected = base + float((shift[0].square() - 2 * shift[0] * means).sum())
        assert float(wasserstein2_squared(mu, away)) == pytest.approx(
            expected, rel=1e-8, abs=1e-9
        )

    def test_translate_is_at_the_length_of_the_shift(self):
        x = cloud(50, 3)
        shift = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
        assert float(wasserstein2(x, x + shift)) == pytest.approx(3.0, rel=1e-12)

    def test_geodesic_has_constant_speed(self):
        for mu, nu in [
            (of.Particles(cloud(20, 2)), of.Particles(cloud(20, 2, 1))),
            (of.Particles(cloud(9, 2), weights(9)), of.Particles(cloud(13, 2, 1))),
        ]:
            whole = float(wasserstein2(mu, nu))
            middle = [geodesic(mu, nu, t) for t in (0.0, 0.3, 0.8, 1.0)]
            for (s, a), (t, b) in itertools.combinations(
                zip((0.0, 0.3, 0.8, 1.0), middle, strict=True), 2
            ):
                assert float(wasserstein2(a, b)) == pytest.approx(
                    (t - s) * whole, rel=1e-8
                )

    def test_action_of_a_wrong_coupling_is_larger(self):
        """The optimal coupling's action is W2^2, any other's is more."""
        x, y = cloud(60, 2), cloud(60, 2, 1)
        best = float(wasserstein2_squared(x, y))
        a, b = of.metrics.aligned_ends(of.Particles(x), of.Particles(y))
        u = a.displacement_to(b)
        assert float(a.inner(u, u)) == pytest.approx(best, rel=1e-12)
        assert float((x - y).square().sum(1).mean()) > best * 1.05


class TestGradients:
    @pytest.mark.parametrize("case", ["assignment", "plan", "line"])
    def test_points(self, case):
        d = 1 if case == "line" else 2
        x, n = cloud(7, d), (7 if case == "assignment" else 9)
        y = cloud(n, d, 1)
        x.requires_grad_()
        value = wasserstein2_squared(x, y)
        (grad,) = torch.autograd.grad(value, x)
        h = 1e-6
        for i, k in itertools.product(range(7), range(d)):
            e = torch.zeros_like(y[:7])
            e[i, k] = h
            up = wasserstein2_squared(x.detach() + e, y)
            down = wasserstein2_squared(x.detach() - e, y)
            assert float(grad[i, k]) == pytest.approx(
                float((up - down) / (2 * h)), abs=1e-7
            )

    @pytest.mark.parametrize("d", [1, 2])
    def test_weights(self, d):
        """dW2^2/dw_i is the potential, up to a constant: mass must be conserved."""

        class Distance(of.Functional):
            def value(self, mu):
                return wasserstein2_squared(mu, target)

        target = of.Particles(cloud(6, d, 1), weights(6, 3))
        mu = of.Particles(cloud(5, d), weights(5))
        slope = Distance().first_variation(mu)
        direction = torch.tensor([1.0, -0.5, -0.5, 0.3, -0.3], dtype=torch.float64)
        h = 1e-6
        up, down = (
            wasserstein2_squared(
                of.Particles(mu.points, mu.weights + s * h * direction), target
            )
            for s in (1, -1)
        )
        expected = float((up - down) / (2 * h))
        assert float(slope @ direction) == pytest.approx(expected, abs=1e-7)

    def test_first_variation_away_from_the_atoms_is_the_c_transform(self):
        target = of.Particles(cloud(6, 2, 1))

        class Distance(of.Functional):
            def value(self, mu):
                return wasserstein2_squared(mu, target)

        mu, probe = of.Particles(cloud(5, 2)), cloud(4, 2, 9)
        both = Distance().first_variation(mu, torch.cat([mu.points, probe]))
        plan = transport_plan(mu, target)
        costs = (probe[:, None] - target.points).square().sum(-1) - plan.g
        expected = costs.amin(1) - plan.f[0]
        assert torch.allclose(both[5:] - both[0], expected, atol=1e-10)

    def test_root_at_distance_zero_has_gradient_zero(self):
        x = cloud(5, 2).requires_grad_()
        value = wasserstein2(x, x.detach())
        (grad,) = torch.autograd.grad(value, x)
        assert float(value.detach()) == 0.0
        assert torch.equal(grad, torch.zeros_like(grad))

    def test_velocity_of_half_w2_squared_points_to_the_target(self):
        """The velocity of W2^2/2 is T(x) - x: no factor 2, no factor w_i."""
        x = cloud(30, 2)
        target = of.Particles(2 * x + 1)

        class Half(of.Functional):
            def value(self, mu):
                return 0.5 * wasserstein2_squared(mu, target)

        mu = of.Particles(x)
        assert torch.allclose(Half().velocity(mu), x + 1, atol=1e-12)


class TestRefusals:
    def test_dimension(self):
        with pytest.raises(ValueError, match="dimension 2 but nu in dimension 3"):
            wasserstein2(cloud(3, 2), cloud(3, 3))

    def test_dtype(self):
        with pytest.raises(TypeError, match="nothing is cast silently"):
            wasserstein2(cloud(3, 2), cloud(3, 2).float())

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_not_finite(self, bad):
        x = cloud(3, 2)
        x[1, 0] = bad
        with pytest.raises(ValueError, match=r"mu must be finite, got .* at index"):
            wasserstein2(x, cloud(3, 2))

    def test_overflowing_coordinates(self):
        with pytest.raises(ValueError, match="rescale the points"):
            wasserstein2(1e160 * cloud(3, 2), cloud(3, 2))

    def test_integers(self):
        with pytest.raises(TypeError, match="float32 or float64"):
            wasserstein2(torch.ones(3, 2, dtype=torch.int64), cloud(3, 2))

    def test_solver_that_stops_early_is_never_returned_as_w2(self, monkeypatch):
        import importlib

        module = importlib.import_module("otflow.metrics.simplex")
        monkeypatch.setattr(module, "MAX_PIVOTS", 3)
        mu = of.Particles(cloud(60, 2), weights(60))
        with pytest.raises(of.errors.NotConverged, match="stopped before the optimum"):
            wasserstein2(mu, of.Particles(cloud(50, 2, 1)))

    def test_memory_budget(self, monkeypatch):
        monkeypatch.setattr("otflow._memory.total_memory", lambda _: 10_000)
        with pytest.raises(MemoryError, match=r"needs 43200 bytes.*take fewer points"):
            transport_plan(cloud(30, 2), of.Particles(cloud(30, 2, 1), weights(30)))

    def test_other_kinds(self):
        with pytest.raises(TypeError, match=r"torch.Tensor or numpy.ndarray, got list"):
            wasserstein2([[0.0]], cloud(1, 1))

    def test_a_warning_of_the_solver_is_an_error_for_everyone(self, monkeypatch):
        """Also for a caller who ignores warnings."""
        import importlib
        import warnings

        module = importlib.import_module("otflow.metrics.simplex")
        monkeypatch.setattr(module, "MAX_PIVOTS", 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(of.errors.NotConverged, match="use fewer") as caught:
                assignment(cloud(300, 2), cloud(300, 2, 1))
        assert caught.value.info["max_pivots"] == 3

    def test_a_duality_gap_is_an_error(self, monkeypatch):
        """A solver that claims success with a plan that is not optimal."""
        import ot

        def lies(a, b, M, **options):
            zeros = {"u": 0 * a, "v": 0 * b, "result_code": 1, "warning": None}
            return a[:, None] * b / a.sum(), zeros

        monkeypatch.setattr(ot, "emd", lies)
        mu = of.Particles(cloud(20, 2), weights(20))
        with pytest.raises(of.errors.NotConverged, match="left a duality gap of"):
            transport_plan(mu, of.Particles(cloud(15, 2, 1)))

    def test_measures_that_are_not_atoms(self):
        class Cells(of.Measure):
            # Abstract, and never called.
            value_and_position_gradient = None  # type: ignore[assignment]
            push = inner = displacement_to = None  # type: ignore[assignment]

        with pytest.raises(TypeError, match=r"Particles\(nu.sample"):
            wasserstein2(cloud(3, 2), Cells())

    def test_half_precision(self):
        with pytest.raises(ValueError, match="too coarse for transport"):
            wasserstein2(cloud(3, 2).half(), cloud(3, 2).half())

    def test_float32_and_global_state(self):
        x = cloud(40, 2).float()
        state = torch.random.get_rng_state()
        value = wasserstein2(x, x + 1)
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(math.sqrt(2), rel=1e-5)
        assert torch.equal(torch.random.get_rng_state(), state)
        plan = transport_plan(x, x[:7])
        assert plan.masses.dtype == torch.float32
