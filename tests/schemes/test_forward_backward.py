"""Forward-backward: the contract, exact laws, kinks, the terms, what it refuses."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.errors import NonFinite, NotConvergedWarning, Unsupported
from otflow.functionals import box, l1_norm
from otflow.meanfield import PathPenalty
from otflow.schemes import ForwardBackward
from otflow.testing import SchemeContract
from otflow.testing.clouds import normal, uniform, weighted
from tests import exact
from tests.schemes.test_on_gaussians import OnGaussians

F64 = torch.float64
A, B = exact.spd(2, seed=3), torch.tensor([0.5, -1.0], dtype=F64)


def spring(x):
    return 0.5 * x.square().sum(-1)


class TestOnParticles(SchemeContract):
    """With a kink, which atoms do not reach."""

    solves = True
    diverges = False  # a step is halved until the energy falls

    def make(self):
        return ForwardBackward()

    def problem(self, dtype=F64):
        F, mu = super().problem(dtype)
        return F + 0.1 * l1_norm(), mu

    def error(self, dt):
        """Return the error under a spring, a quarter of it by its proximal map."""
        quarter = of.Potential(
            lambda x: 0.25 * spring(x), prox=lambda x, tau: x / (1 + tau / 4)
        )
        F = quarter + of.Potential(lambda x: 0.75 * spring(x))
        mu, steps = weighted(7, 2), round(1 / dt)
        run = of.flow(F, mu, self.make(), dt=dt, steps=steps)
        return float((run.final.points - mu.points / torch.e).norm())


class TestOnGaussians(OnGaussians):
    solves = True
    diverges = False
    steps = (0.05, 0.025, 0.0125, 0.00625)

    def make(self):
        return ForwardBackward()


class TestOnQuantiles(SchemeContract):
    solves = True
    diverges = False
    steps = ()
    keeps_size = False

    def make(self):
        return ForwardBackward()

    def problem(self, dtype=F64):
        F = of.Potential(spring, modulus=1.0) + of.Entropy()
        return F, of.Quantiles(torch.linspace(-1.0, 3.0, 24, dtype=dtype))


# The exact law ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dt", [0.1, 0.3])
def test_a_gaussian_rests_at_the_exact_law(dt):
    F = exact.quadratic_form(A, B) + of.Entropy()
    mu = of.Gaussian(normal(2), exact.spd(2, seed=5))
    run = of.flow(F, mu, ForwardBackward(), dt=dt, steps=300)
    law = torch.linalg.inv(A)
    assert {info.dt for info in run.info} == {dt}
    assert float((run.final.covariance - law).abs().max()) <= 1e-10
    # Langevin rests elsewhere: 1 / (1 - dt lambda / 2) times as wide.
    bias = of.flow(F, mu, of.Langevin(), dt=dt, steps=300).final.covariance - law
    assert float(bias.abs().max()) >= 0.1 * dt
    assert run.converged
    assert all(info["stages"][0].certified for info in run.info)
    assert min(info["decrease"] for info in run.info) >= -1e-12


@pytest.mark.parametrize("dt", [0.1, 0.3])
def test_rates_of_mean_and_covariance_are_those_of_theory(dt):
    rate, off = 2.0, 1e-5
    F = of.Potential(lambda x: rate * spring(x)) + of.Entropy()
    wide = torch.full((1, 1), 1 / rate + off, dtype=F64)
    mu = of.Gaussian(torch.ones(1, dtype=F64), wide)
    nu = of.flow(F, mu, ForwardBackward(), dt=dt, steps=1).final
    assert float(nu.mean) == pytest.approx(1 - dt * rate, abs=1e-14)
    share = (float(nu.covariance) - 1 / rate) / off
    assert share == pytest.approx((1 - dt * rate) / (1 + dt * rate), rel=1e-4)


@pytest.mark.parametrize("kind", ["quantiles", "grid"])
def test_densities_rest_where_jko_does(kind):
    F = of.Potential(spring, modulus=1.0) + of.Entropy()
    mu: of.Measure = of.Quantiles(torch.linspace(-1.0, 3.0, 41, dtype=F64))
    if kind == "grid":
        mu = of.GridDensity.from_function(
            lambda x: torch.exp(-4 * (x - 1).square().sum(-1)).double(),
            lower=-5.0,
            upper=5.0,
            shape=(100,),
        ).to(F64)

    def spread(scheme):
        run = of.flow(F, mu, scheme, dt=0.2, steps=60)
        assert run.converged
        return float(run.final.expectation(lambda x: x.square().sum(-1)))

    # On a grid the explicit half has the error of the remap, of second order.
    slack = 1e-8 if kind == "quantiles" else 0.2 * 0.1**2
    assert spread(ForwardBackward()) == pytest.approx(spread(of.JKO()), abs=slack)


def test_the_explicit_half_on_a_grid_has_no_limit_of_the_cells():
    F = of.Potential(lambda x: spring(x - 1)) + 0.01 * of.Entropy()
    mu = of.GridDensity(
        torch.ones(200, dtype=F64), -4.0, 4.0, walls=True, normalize=True
    )
    run = of.flow(F, mu, ForwardBackward(), dt=0.5, steps=3)
    assert {info.dt for info in run.info} == {0.5}
    assert all(info.w2 is None for info in run.info)
    with pytest.raises(of.errors.Diverged, match="CFL"):
        of.flow(F, mu, of.ExplicitEuler(), dt=0.5, steps=3)


# Kinks --------------------------------------------------------------------------------


def test_lasso_is_solved_with_exact_zeros():
    """One atom is ISTA, whose fixed point obeys the conditions of the lasso."""
    X = normal(30, 8, seed=1)
    y = X[:, 0] - 2 * X[:, 1] + 0.1 * normal(30, seed=2)
    G = of.Potential(lambda b: 0.5 * (b @ X.T - y).square().mean(-1), modulus=0.0)
    F = G + 0.2 * l1_norm()
    run = of.flow(F, uniform(1, 8), ForwardBackward(), dt=0.3, steps=400)
    b = run.final.points[0]
    g = X.T @ (X @ b - y) / 30
    on = b != 0
    assert 0 < int(on.sum()) < 8
    torch.testing.assert_close(g[on], -0.2 * b[on].sign(), rtol=0, atol=1e-10)
    assert float(g[~on].abs().max()) <= 0.2
    assert min(info["decrease"] for info in run.info) >= -1e-12


def network():
    X = normal(100, 4, seed=3)
    y = (X[:, 0]).relu() - (X[:, 1] + X[:, 2]).relu()
    risk = of.meanfield.Risk(of.meanfield.TwoLayer("relu"), X, y)
    return risk, of.Particles(normal(100, 6, seed=4))


@pytest.mark.parametrize(
    ("penalty", "least"),
    [
        (l1_norm([1.0, *[0.0] * 5]), 60),
        (PathPenalty("l1"), 40),
        (PathPenalty("l2"), 40),
    ],
)
def test_a_penalised_network_has_exact_zeros(penalty, least):
    risk, mu = network()
    F = risk + 0.05 * penalty
    run = of.flow(F, mu, ForwardBackward(), dt=0.2, steps=400)
    assert int((run.final.points[:, 0] == 0).sum()) >= least
    assert bool((run.records["energy"].diff() <= 0).all())
    assert run.converged
    # Euler on the same objective has none.
    plain = of.flow(F, mu, of.ExplicitEuler(), dt=0.01, steps=200)
    assert int((plain.final.points[:, 0] == 0).sum()) == 0


def test_walls_hold_atoms():
    F = of.Potential(lambda x: spring(x - 3)) + box(-1.0, [1.0, 4.0])
    run = of.flow(
        F, of.Particles(torch.zeros(3, 2)), ForwardBackward(), dt=0.5, steps=60
    )
    assert torch.equal(run.final.points[:, 0], torch.ones(3))
    torch.testing.assert_close(run.final.points[:, 1], torch.full((3,), 3.0))


# Steps --------------------------------------------------------------------------------


def test_the_step_is_at_most_one_over_the_smoothness():
    F = of.Potential(lambda x: 8 * spring(x - 3)) + l1_norm()
    run = of.flow(F, weighted(7, 2), ForwardBackward(), dt=1.0, steps=5)
    assert [info.dt for info in run.info] == [0.125] * 5
    assert run.info[0]["halvings"] == 3
    assert run.info[0]["trials"] == 4
    assert run.info[1]["trials"] == 2  # from twice the last accepted step
    assert float(run.times[-1]) == pytest.approx(5 * 0.125)


def test_without_smooth_terms_it_is_jko():
    mu = weighted(7, 2)
    for F in (l1_norm(), 2 * l1_norm()):
        one = of.flow(F, mu, ForwardBackward(), dt=0.1, steps=3).final
        other = of.flow(F, mu, of.JKO(), dt=0.1, steps=3).final
        assert torch.equal(one.points, other.points)


def test_a_kink_outside_of_the_group_stalls_and_says_so():
    hidden = of.Potential(lambda x: x.abs().sum(-1))
    walls = box(-9.0, 9.0)
    mu = of.Particles(torch.full((3, 1), 0.3, dtype=F64))
    scheme = ForwardBackward(max_halvings=2)
    with pytest.warns(NotConvergedWarning, match=r"no step lowered .* Potential\(V, p"):
        run = of.flow(hidden + walls, mu, scheme, dt=1.0, steps=2)
    assert [info["stalled"] for info in run.info] == [False, True]
    assert run.info[1].dt == 0.0
    assert float(run.final.points.max()) == pytest.approx(0.05)


def test_at_rest_it_does_not_stall():
    F = of.Potential(spring) + l1_norm()
    mu = of.Particles(torch.zeros(3, 2, dtype=F64))
    run = of.flow(F, mu, ForwardBackward(), dt=0.5, steps=3)
    assert not any(info["stalled"] for info in run.info)
    assert run.converged


def test_minibatches_keep_the_dt_and_the_plan():
    risk, mu = network()
    scheme = of.schemes.Minibatch(ForwardBackward())
    small = of.meanfield.Risk(risk.network, risk.X, risk.y, batch_size=20)
    F = small + 0.05 * PathPenalty()
    run = of.flow(F, mu, scheme, dt=0.1, steps=30, generator=0)
    assert run.converged
    assert int((run.final.points[:, 0] == 0).sum()) > 0


# What it refuses ----------------------------------------------------------------------


def test_one_group_of_terms_with_maps():
    mu = weighted(5, 2)
    smooth = of.Potential(spring)
    with pytest.raises(ValueError, match=r"no term with a proximal map; use ExplicitE"):
        of.flow(smooth, mu, ForwardBackward(), dt=0.1, steps=1)
    for F in (l1_norm() + box(-9.0, 9.0), l1_norm() + of.Entropy()):
        with pytest.raises(ValueError, match="F has 2 terms with a proximal map"):
            of.flow(F + smooth, mu, ForwardBackward(), dt=0.1, steps=1)
    # Energies of the density are one group, and so is one potential twice.
    V, energies = l1_norm(), of.Entropy() + 0.5 * of.PowerEntropy(2.0)
    q = of.Quantiles(torch.linspace(-1.0, 1.0, 12, dtype=F64))
    run = of.flow(smooth + energies, q, ForwardBackward(), dt=0.1, steps=2)
    assert run.converged
    run = of.flow(V + smooth + V, mu, ForwardBackward(), dt=0.1, steps=1)
    goal = 0.9 * mu.points
    goal = goal - goal.clamp(-0.2, 0.2)
    torch.testing.assert_close(run.final.points, goal, rtol=0, atol=1e-15)


def test_what_the_implicit_half_lacks_is_told_before_the_first_step():
    F = of.Potential(spring) + of.Entropy()
    with pytest.raises(Unsupported, match="a sum of Diracs"):
        ForwardBackward().init(F, weighted(5, 2))
    with pytest.raises(NonFinite):
        ForwardBackward().init(of.Potential(spring) + box(5.0, 6.0), weighted(5, 2))
    with pytest.raises(TypeError, match="solver must be"):
        ForwardBackward(of.JKO())
    with pytest.raises(ValueError, match="max_halvings"):
        ForwardBackward(max_halvings=-1)
