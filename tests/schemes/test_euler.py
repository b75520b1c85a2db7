"""Explicit Euler, with and without guaranteed descent."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing import SchemeContract, clouds
from tests import exact


class TestExplicitEuler(SchemeContract):
    def make(self):
        return of.ExplicitEuler()

    def error(self, dt):
        n, c = 8, 0.9
        steps = round(1 / dt)
        run = of.flow(
            exact.dyson(),
            exact.hermite(n, c),
            self.make(),
            dt=dt,
            steps=steps,
            every=steps,
        )
        expected = exact.breathing(c, 1.0, kappa=1 / n) * exact.hermite_zeros(n)
        return float((run.final.points[:, 0] - expected).abs().max())


class TestBacktracking(SchemeContract):
    diverges = False
    steps = ()  # it is ExplicitEuler until a step is refused

    def make(self):
        return of.ExplicitEuler(backtracking=True)


def test_one_step_is_gradient_descent_with_step_n_dt():
    F = of.Interaction(of.kernels.Gaussian(1.0)) + exact.quadratic()
    mu, dt = clouds.uniform(9), 0.05
    x = mu.points.clone().requires_grad_()
    optimizer = torch.optim.SGD([x], lr=mu.n * dt)
    F.value(mu.with_free_atoms(x)).backward()
    optimizer.step()
    run = of.flow(F, mu, of.ExplicitEuler(), dt=dt, steps=1)
    torch.testing.assert_close(run.final.points, x.detach(), rtol=1e-14, atol=1e-15)


def test_a_quadratic_potential_is_exact_for_the_scheme():
    lam, dt, k = 1.3, 0.2, 17
    mu = clouds.weighted()
    run = of.flow(exact.quadratic(lam), mu, of.ExplicitEuler(), dt=dt, steps=k)
    expected = exact.decay_euler(lam, dt, k) * mu.points
    torch.testing.assert_close(run.final.points, expected, rtol=1e-13, atol=1e-15)
    expected = exact.decay_euler(lam, dt, k) ** 2 * run.records["energy"][0]
    torch.testing.assert_close(run.records["energy"][-1], expected)


def test_the_dyson_gas_is_exact_for_the_scheme():
    n, c, dt, k = 12, 0.7, 0.05, 30
    run = of.flow(
        exact.dyson(), exact.hermite(n, c), of.ExplicitEuler(), dt=dt, steps=k
    )
    scale = exact.breathing_euler(c, dt, k, kappa=1 / n)
    expected = scale * exact.hermite_zeros(n)
    torch.testing.assert_close(run.final.points[:, 0], expected, rtol=0, atol=1e-12)
    energy = exact.dyson_energy(n, scale)
    assert float(run.records["energy"][-1]) == pytest.approx(energy, rel=1e-12)


# Backtracking -------------------------------------------------------------------------


def test_backtracking_is_plain_where_the_step_is_good():
    F, mu = exact.quadratic(), clouds.weighted()
    plain = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=5)
    guarded = of.flow(F, mu, of.ExplicitEuler(backtracking=True), dt=0.1, steps=5)
    assert torch.equal(plain.final.points, guarded.final.points)
    assert {info["halvings"] for info in guarded.info} == {0}
    assert not any(info["stalled"] for info in guarded.info)


@pytest.mark.parametrize("dt", [0.3, 10.0, 1e8])
def test_backtracking_never_raises_the_energy(dt):
    F = exact.quadratic(30.0) + of.Interaction(of.kernels.PowerLaw(4, 2))
    run = of.flow(
        F, clouds.weighted(), of.ExplicitEuler(backtracking=True), dt=dt, steps=25
    )
    energy = run.records["energy"]
    assert bool((energy.diff() <= 0).all())
    assert float(energy[-1]) < 0.5 * float(energy[0])


def test_backtracking_meets_the_armijo_condition_at_the_time_it_reports():
    F, mu = exact.quadratic(30.0), clouds.weighted()
    scheme = of.ExplicitEuler(backtracking=True, sufficient_decrease=0.3)
    run = of.flow(F, mu, scheme, dt=1.0, steps=8)
    assert float(run.times[-1]) == pytest.approx(
        sum(i["dt"] for i in run.info), rel=1e-15
    )
    for k, info in enumerate(run.info):
        assert info["halvings"] > 0
        assert info["dt"] == 0.5 ** info["halvings"]
        nu = run.snapshots[k]
        slope = float(nu.norm(F.velocity(nu)).square())
        drop = float(run.records["energy"][k] - run.records["energy"][k + 1])
        assert drop >= 0.3 * info["dt"] * slope


def test_backtracking_at_a_minimum_stays_there_and_says_so():
    F = of.Interaction(of.kernels.PowerLaw(4, 2))
    start = of.Particles(1.01 * exact.TWO_ATOMS)
    run = of.flow(F, start, of.ExplicitEuler(backtracking=True), dt=0.5, steps=60)
    assert run.info[-1]["stalled"] or run.info[-1]["dt"] > 0
    atoms = run.final.points
    torch.testing.assert_close(atoms, exact.TWO_ATOMS, rtol=0, atol=1e-7)
    # Nowhere lower to go: the step is refused as often as allowed, for no time.
    uphill = of.Potential(lambda x: x.sum(-1) + x.abs().sum(-1) * 1e3)
    stuck = of.flow(
        uphill,
        of.Particles(torch.tensor([[1e-12]], dtype=torch.float64)),
        of.ExplicitEuler(backtracking=True, max_halvings=3),
        dt=1.0,
        steps=2,
    )
    assert [info["stalled"] for info in stuck.info] == [True, True]
    assert stuck.times.tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(stuck.final.points, stuck.snapshots[0].points)


def test_backtracking_gives_up_when_dt_is_beyond_all_halvings():
    mu = clouds.weighted()
    scheme = of.ExplicitEuler(backtracking=True)
    run = of.flow(exact.quadratic(30.0), mu, scheme, dt=1e300, steps=2)
    assert [info["stalled"] for info in run.info] == [True, True]
    assert torch.equal(run.final.points, mu.points)


def test_backtracking_remembers_the_step_accepted_before():
    F, mu = exact.quadratic(1e4), clouds.weighted()
    run = of.flow(F, mu, of.ExplicitEuler(backtracking=True), dt=1.0, steps=20)
    assert run.info[0]["trials"] > 10
    assert all(info["trials"] <= 3 for info in run.info[1:])
    # It grows again: from a steep wall into a plain.
    V = lambda x: torch.nn.functional.softplus(30 * (x.sum(-1) - 1)) * 30 + x.sum(-1)
    mu = of.Particles(torch.full((1, 1), 1.2, dtype=torch.float64))
    taken = [
        info["dt"]
        for info in of.flow(
            of.Potential(V), mu, of.ExplicitEuler(backtracking=True), dt=1.0, steps=40
        ).info
    ]
    assert taken[0] < 1e-2
    assert taken[-1] == 1.0


def energy_distance():
    """Return the energy distance to a cloud, which has a kink at each of its points."""
    y = clouds.normal(100, 2, seed=1)

    class ToCloud(of.Functional):
        def value(self, mu):
            to_cloud = mu.expectation(lambda x: (x[:, None] - y).norm(dim=-1).mean(1))
            return to_cloud - mu.interaction(lambda z: z.norm(dim=-1))

    return ToCloud()


@pytest.mark.parametrize("name", ["energy distance", "|x|"])
def test_backtracking_at_a_kink_says_that_it_stalls(name):
    kinked = of.Potential(lambda x: x.abs().sum(-1))
    F = {"energy distance": energy_distance(), "|x|": kinked}[name]
    mu = of.Particles(clouds.normal(40, 2) + 2)
    run = of.flow(F, mu, of.ExplicitEuler(backtracking=True), dt=1.0, steps=300)
    stalled = [info["stalled"] for info in run.info]
    assert any(stalled)
    assert not any(stalled[:10])
    assert sum(info["trials"] for info in run.info) < 3 * 300
    first = stalled.index(True)
    energy = run.records["energy"]
    assert float(energy[first] - energy[-1]) < 1e-2 * float(energy[0] - energy[-1])
    # A smooth problem of the same length does not stall.
    smooth = of.Potential(lambda x: (x.square() + 1e-2).sqrt().sum(-1))
    run = of.flow(smooth, mu, of.ExplicitEuler(backtracking=True), dt=1.0, steps=60)
    assert not any(info["stalled"] for info in run.info[:20])


def test_its_options_are_checked():
    with pytest.raises(TypeError, match=r"^backtracking must be True or False, got 1"):
        of.ExplicitEuler(1)
    for bad in (0.0, 1.0, -1):
        with pytest.raises(
            ValueError, match=r"^sufficient_decrease must lie in \(0, 1\)"
        ):
            of.ExplicitEuler(True, sufficient_decrease=bad)
    with pytest.raises(ValueError, match=r"^max_halvings must be at least 0, got -1"):
        of.ExplicitEuler(True, max_halvings=-1)
    with pytest.raises(TypeError, match="unexpected keyword"):
        of.ExplicitEuler(backtraking=True)  # type: ignore[call-arg]
