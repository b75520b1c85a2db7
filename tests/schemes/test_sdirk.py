"""The Runge-Kutta steps: order conditions, stability, reports, refusals."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.schemes.stages import TABLEAUS
from otflow.testing import SchemeContract
from tests import clouds, exact


def particles(order, tolerance=1e-12):
    """Return the scheme with inner solves that do not limit its order."""
    return of.JKO(of.proximal.ParticleProximal(tolerance=tolerance), order=order)


class TestOrderTwo(SchemeContract):
    solves = True
    diverges = False
    order = 2
    steps = (0.1, 0.05, 0.025)

    def make(self):
        return of.JKO(order=2)

    def problem(self, dtype=torch.float64):
        # No degenerate minimum: the kernel is wider than the bowl is curved.
        F: of.Functional = of.Potential(
            lambda x: (x.square().sum(-1) + 1).sqrt(), modulus=0.0
        )
        F = F + of.Interaction(of.kernels.Gaussian(1.5))
        return F, clouds.uniform(7, 2, dtype=dtype)

    def error(self, dt):
        n, c = 8, 0.9
        steps = round(1 / dt)
        scheme = particles(int(self.order), 1e-9)
        run = of.flow(exact.dyson(), exact.hermite(n, c), scheme, dt=dt, steps=steps)
        expected = exact.breathing(c, 1.0, kappa=1 / n) * exact.hermite_zeros(n)
        return float((run.final.points[:, 0] - expected).abs().max())


class TestOrderThree(TestOrderTwo):
    order = 3

    def make(self):
        return of.JKO(order=3)


# The methods --------------------------------------------------------------------------


@pytest.mark.parametrize("order", [2, 3])
def test_the_order_conditions_hold(order):
    tableau = TABLEAUS[order]
    s = len(tableau.rows)
    A = torch.zeros(s, s, dtype=torch.float64)
    for i, row in enumerate(tableau.rows):
        A[i, : i + 1] = torch.tensor(row, dtype=torch.float64)
    one = torch.ones(s, dtype=torch.float64)
    b, c = A[-1], A @ one
    assert A.diagonal().tolist() == [tableau.gamma] * s
    conditions: dict[int, list[tuple[torch.Tensor, float]]]
    conditions = {1: [(b @ one, 1)], 2: [(b @ c, 1 / 2)]}
    conditions[3] = [(b @ c.square(), 1 / 3), (b @ A @ c, 1 / 6)]
    for p in range(1, order + 1):
        for found, expected in conditions[p]:
            assert float(found) == pytest.approx(expected, abs=1e-14)
    # The companion is of one order less, and of no more.
    w = torch.tensor(tableau.companion, dtype=torch.float64)
    gaps = [float(w @ one) - 1, float(w @ c) - 1 / 2, float(w @ c.square()) - 1 / 3]
    assert tableau.companion_order == order - 1
    assert max(map(abs, gaps[: order - 1])) < 1e-14
    assert abs(gaps[order - 1]) > 1e-2


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("z", [0.1, 1.0, 30.0, 1e6])
def test_on_a_quadratic_potential_it_is_the_stability_function(order, z):
    # x' = -x over one step of length z; at infinity nothing is left: L-stability.
    mu = clouds.uniform()
    nu = of.flow(exact.quadratic(1.0), mu, particles(order), dt=z, steps=1).final
    g = TABLEAUS[order].gamma
    if order == 2:
        factor = (1 - (1 - 2 * g) * z) / (1 + g * z) ** 2
    else:
        # The numerator makes the expansion that of exp(-z) up to z^3.
        p1, p2 = 1 - 3 * g, 0.5 - 3 * g + 3 * g * g
        factor = (1 - p1 * z + p2 * z * z) / (1 + g * z) ** 3
    torch.testing.assert_close(nu.points, factor * mu.points, rtol=0, atol=1e-9)
    assert abs(factor) < 1


# Reports ------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [2, 3])
def test_the_report_is_that_of_the_whole_step(order):
    F = of.Interaction(of.kernels.PowerLaw(4, 2))
    mu = clouds.uniform(9, 2)
    run = of.flow(F, mu, particles(order), dt=0.1, steps=3)
    for info, before, after in zip(
        run.info, run.snapshots[:-1], run.snapshots[1:], strict=True
    ):
        assert info["energy_before"] == pytest.approx(float(F(before)), rel=1e-12)
        assert info["energy_after"] == pytest.approx(float(F(after)), rel=1e-12)
        w2 = float(before.norm(before.displacement_to(after)))
        assert info["w2"] == pytest.approx(w2, rel=1e-9)
        drop = info["energy_before"] - info["energy_after"]
        assert info["decrease"] == pytest.approx(drop - w2**2 / 0.2, abs=1e-12)
        assert info["decrease"] > 0
        assert info["certified"]
        assert info["converged"]
        assert info["guarantee"] == "stages"
        assert len(info["stages"]) == order
        assert info["iterations"] == sum(c["iterations"] for c in info["stages"])
        assert info["order"] == order


@pytest.mark.parametrize("order", [2, 3])
def test_the_estimated_error_has_the_order_stated(order):
    mu = exact.hermite(8, 0.9)
    errors = [
        of.flow(exact.dyson(), mu, particles(order), dt=dt, steps=1).info[0]
        for dt in (0.04, 0.02, 0.01)
    ]
    assert {info["error_order"] for info in errors} == {order - 1}
    slope = of.analysis.observed_order(
        (0.04, 0.02, 0.01), [info["error"] for info in errors]
    )
    assert slope == pytest.approx(order, abs=0.1)


def test_of_order_two_the_companion_is_an_extrapolated_first_stage():
    F, mu, dt = exact.quadratic(1.0), clouds.weighted(), 0.3
    info = of.flow(F, mu, particles(2), dt=dt, steps=1).info[0]
    g = TABLEAUS[2].gamma
    last = (1 - (1 - 2 * g) * dt) / (1 + g * dt) ** 2
    first = 1 - dt / (1 + g * dt)
    expected = abs(last - first) * float(mu.norm(mu.points))
    assert info["error"] == pytest.approx(expected, rel=1e-9)


def test_a_step_may_raise_the_energy_and_says_so():
    # Downhill to the foot of a cliff; the second stage starts on top of it.
    F = of.Potential(lambda x: (5 * torch.sigmoid(20 * (x - 1)) - x).sum(-1))
    mu = of.Particles(torch.tensor([[0.0]], dtype=torch.float64))
    short, long = (
        of.flow(F, mu, particles(2), dt=dt, steps=1).info[0] for dt in (0.1, 2.7)
    )
    assert short["decrease"] > 0
    assert long["energy_after"] > long["energy_before"]
    assert long["decrease"] < 0


def test_an_unconverged_stage_is_not_certified():
    solver = of.proximal.ParticleProximal(tolerance=1e-12, max_gradients=2)
    F = of.Interaction(of.kernels.PowerLaw(4, 2))
    with pytest.warns(of.errors.NotConvergedWarning, match="1 of 1 steps"):
        info = of.flow(F, clouds.uniform(), of.JKO(solver, order=2), dt=1.0, steps=1)
    assert info.converged is False
    assert not info.info[0]["converged"]
    assert not info.info[0]["certified"]
    assert info.info[0]["guarantee"] == "none"


# Refusals -----------------------------------------------------------------------------


def test_other_orders_are_refused():
    with pytest.raises(ValueError, match=r"^order must be 1, 2 or 3, got 4$"):
        of.JKO(order=4)
    with pytest.raises(ValueError, match=r"^order must be at least 1, got 0$"):
        of.JKO(order=0)
    with pytest.raises(TypeError, match=r"^order must be an integer, got float"):
        of.JKO(order=2.0)


class Curved(of.proximal.ProximalSolver):
    """A solver that does not say that tangents add up."""

    def solve(self, F, mu, dt, warm=None):
        return of.proximal.ParticleProximal().solve(F, mu, dt)


def test_without_a_flat_distance_order_three_is_refused():
    with pytest.raises(
        of.errors.Unsupported, match=r"Curved does not say.*order=3\) without a solver"
    ):
        of.flow(
            exact.quadratic(),
            clouds.uniform(),
            of.JKO(Curved(), order=3),
            dt=1,
            steps=1,
        )


def test_without_flat_tangents_or_fixed_cells_order_two_is_refused_with_cures():
    def run(scheme):
        return of.flow(exact.quadratic(), clouds.uniform(), scheme, dt=1, steps=1)

    words = r"Curved does not say.*Particles add up; .*flat = True.*JKO\(order=2\)"
    with pytest.raises(of.errors.Unsupported, match=words):
        run(of.JKO(Curved(), order=2))
    stated = type("Stated", (Curved,), {"flat": True})()
    cured = run(of.JKO(stated, order=2)), run(of.JKO(order=2)), run(of.JKO(Curved()))
    assert all(run.converged for run in cured)
    torch.testing.assert_close(cured[0].final.points, cured[1].final.points)


@pytest.mark.parametrize("order", [2, 3])
def test_a_bound_on_the_density_is_refused(order):
    F = exact.quadratic(1.0) + of.Congestion(2.0)
    mu = of.Quantiles(torch.linspace(-1, 1, 9, dtype=torch.float64))
    with pytest.raises(of.errors.Unsupported, match=r"use order=1, or PowerEntropy"):
        of.flow(F, mu, of.JKO(order=order), dt=0.1, steps=1)


FLAT = [
    clouds.uniform(),
    of.Quantiles(torch.linspace(-1, 1, 9, dtype=torch.float64).sinh()),
    of.Gaussian(
        torch.tensor([1.0, -2.0], dtype=torch.float64),
        torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64),
    ),
]


@pytest.mark.parametrize("mu", FLAT)
def test_a_flat_solver_moves_by_a_tangent_as_long_as_the_distance(mu):
    # It is what the stages rest upon; the couplings by index, level and node agree.
    F = of.Potential(lambda x: (x.square().sum(-1) + 1).sqrt() + 0.3 * x[..., 0])
    solver = of.proximal.default_solver(mu, F)
    assert solver.flat
    result = solver.solve(F, mu, 0.3)
    nu = result.measure
    tangent = mu.displacement_to(nu)
    moved = mu.push(tangent, 1.0)
    torch.testing.assert_close(moved.points, nu.points, rtol=0, atol=1e-12)
    assert result.certificate["w2"] == pytest.approx(float(mu.norm(tangent)), rel=1e-9)
    # Stationary: the displacement is dt times the new velocity.
    gap = tangent - 0.3 * F.velocity(nu)
    assert float(mu.norm(gap)) < 1e-3 * float(mu.norm(tangent))


def test_a_base_point_that_is_no_measure_is_refused_with_the_cure():
    # A stiff potential pulls so hard that the second stage would start beyond 0, where
    # the order of the quantiles is reversed.
    F, mu = exact.quadratic(50.0), of.Quantiles(torch.linspace(-1, 1, 5).double())
    with pytest.raises(
        of.errors.Diverged,
        match=r"stage 2 of 2 would start from a point that is no measure: quantiles 0 "
        r"and 1 crossed; take a smaller dt, or JKO\(order=1\)",
    ) as caught:
        of.flow(F, mu, of.JKO(order=2), dt=1.0, steps=1)
    assert caught.value.measure is caught.value.trajectory.final
    assert torch.equal(caught.value.measure.edges, mu.edges)
    assert of.flow(F, mu, of.JKO(), dt=1.0, steps=1).converged
    assert of.flow(F, mu, of.JKO(order=2), dt=0.01, steps=1).converged


def test_a_tolerance_at_round_off_is_met():
    """Where values no longer tell two points apart, their gradients do."""
    F = of.Interaction(of.kernels.PowerLaw(4, 2))
    for seed in range(8):
        mu = clouds.uniform(9, 2, seed=seed)
        run = of.flow(F, mu, particles(2, 1e-13), dt=0.1, steps=3)
        assert run.converged
