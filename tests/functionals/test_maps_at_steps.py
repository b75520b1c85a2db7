"""Proximal maps where they are used: their tau, their arguments, round-off, no mass."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

import otflow as of
from otflow.errors import Diverged, InvalidFunctional
from otflow.functionals import box, l1_norm
from otflow.proximal import PointwiseProximal
from otflow.proximal.terms import split_maps
from otflow.testing.clouds import normal

F64 = torch.float64
MU = of.Particles(30 * normal(6, 1))


def absolute(x):
    return x.abs().sum(-1)


def soft(x, tau):
    return x - x.clamp(-tau, tau)


# The tau of a step --------------------------------------------------------------------


@pytest.mark.parametrize("dt", [1e-3, 10.0, 100.0])
def test_a_map_is_tried_with_the_tau_of_the_step(dt):
    """It is right for the steps at which it is tried beforehand, and for no others."""
    V = of.Potential(
        absolute, modulus=0.0, prox=lambda x, tau: soft(x, min(max(tau, 0.02), 5.0))
    )
    assert PointwiseProximal().solve(V, MU, 0.5).certificate.guarantee == "exact"
    with pytest.raises(InvalidFunctional, match=rf"and tau = {dt:g} it gives"):
        PointwiseProximal().solve(V, MU, dt)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("tau", [1e-307, 1e-30, 1e-12, 1e12, 1e30])
def test_right_maps_pass_at_any_tau(tau, dtype):
    x = normal(9, 3, dtype=dtype)
    maps = [
        l1_norm([1.0, 0.0, 2.0]),
        of.functionals.group_norm([[0, 2]]),
        box(-1.0, 0.5),
        of.Potential(
            lambda x: 0.5 * (x - 7).square().sum(-1),
            modulus=1.0,
            prox=lambda x, tau: (
                (x / tau + 7) / (1 / tau + 1) if tau > 1 else (x + 7 * tau) / (1 + tau)
            ),
        ),
    ]
    for V in maps:
        assert bool(torch.isfinite(V.proximal(x, tau)).all())


def test_one_size_of_tau_is_tried_once():
    calls = []

    def prox(x, tau):
        calls.append(tau)
        return soft(x, tau)

    V = of.Potential(absolute, prox=prox)
    V.proximal(MU.points, 0.5)
    calls.clear()
    for tau in (0.5, 0.6, 0.9, 0.5):
        V.proximal(MU.points, tau)
    assert calls == [0.5, 0.6, 0.9, 0.5]


def test_a_map_that_overflows_at_long_steps_asks_for_a_smaller_dt():
    steep = of.Potential(
        absolute, prox=lambda x, tau: soft(x, tau) + (torch.inf if tau > 50 else 0.0)
    )
    with pytest.raises(Diverged, match="take a smaller dt"):
        steep.proximal(MU.points, 60.0)


# Arguments ----------------------------------------------------------------------------


def test_a_map_may_write_into_its_argument():
    def prox(x, tau):
        x -= x.clamp(-tau, tau)
        return x

    before = MU.points.clone()
    V = of.Potential(absolute, modulus=0.0, prox=prox)
    known = PointwiseProximal().solve(V, MU, 0.5)
    assert torch.equal(MU.points, before)
    assert torch.equal(known.measure.points, soft(before, 0.5))
    assert known.certificate["w2"] > 0.4


def test_a_map_takes_arrays_and_points_alone():
    V = l1_norm()
    found = V.proximal(MU.points.numpy(), 0.5)
    assert torch.equal(found, V.proximal(MU.points, 0.5))
    with pytest.raises(ValueError, match=r"must have shape \(n, d\)"):
        V.proximal(MU.points[:, 0], 0.5)


def test_a_wrong_map_that_writes_into_its_argument_is_found():
    def prox(x, tau):
        return x.clamp_(-0.5, 0.5)

    with pytest.raises(InvalidFunctional, match="is no proximal map"):
        of.Potential(box(-1.0, 1.0).V, prox=prox)


# Round-off ----------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [1e3, 1e6, 1e8 + 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_bound_holds_for_images_far_from_their_points(centre, dtype):
    """And a declared modulus is not denied because of the round-off there."""
    V = of.Potential(
        lambda x: 0.5 * (x - centre).square().sum(-1),
        modulus=1.0,
        prox=lambda x, tau: (x + tau * centre) / (1 + tau),
    )
    mu, dt = of.Particles(normal(7, 1, dtype=dtype)), 0.7
    result = PointwiseProximal().solve(V, mu, dt)
    assert result.certificate.guarantee == "exact"
    exact = [
        (Fraction(x) + Fraction(dt) * Fraction(centre)) / (1 + Fraction(dt))
        for x in mu.points[:, 0].tolist()
    ]
    found = result.measure.points[:, 0].tolist()
    errors = [float(Fraction(y) - z) for y, z in zip(found, exact, strict=True)]
    size = (sum(e * e for e in errors) / len(errors)) ** 0.5
    assert size <= result.certificate.bound


# Signs --------------------------------------------------------------------------------


def test_multiples_of_either_sign_are_added():
    V, W = l1_norm(), box(-1.0, 1.0)
    assert split_maps(2 * V - V) == ([(1.0, V)], [])
    assert split_maps(V - 2 * V) == ([], [(-1.0, V)])
    assert split_maps(V - V + W) == ([(1.0, W)], [])
    run = of.flow(2 * V - V, MU, of.JKO(), dt=0.5, steps=1)
    assert (run.info[0].solver, run.info[0].guarantee) == (
        "PointwiseProximal",
        "optimal",
    )


# No mass ------------------------------------------------------------------------------


def test_an_indicator_is_finite_where_only_points_without_mass_are_outside():
    mu = of.Particles(torch.tensor([[0.0], [5.0], [0.5]]), torch.tensor([0.5, 0, 0.5]))
    V = box(-1.0, 1.0)
    assert float(V.value(mu)) == 0.0
    known = PointwiseProximal().solve(V, mu, 0.1).certificate
    assert (known.energy_before, known.guarantee) == (0.0, "exact")
    assert of.flow(V, mu, of.JKO(), dt=0.1, steps=1).records["energy"].tolist() == [
        0,
        0,
    ]
    masses = torch.tensor([0.0, 0.5, 0.5, 0.0]).double()
    rho = of.GridDensity(masses, -2.0, 2.0, walls=True)
    assert float(V.value(rho)) == 0.0


def test_the_first_variation_of_an_indicator_stays_infinite_there():
    mu = of.Particles(torch.tensor([[0.0], [5.0]]), torch.tensor([1.0, 0.0]))
    with pytest.raises(of.errors.NonFinite):
        box(-1.0, 1.0).first_variation(mu)


def test_mass_outside_an_indicator_is_infinite_and_nan_stays_nan():
    mu = of.Particles(torch.tensor([[0.0], [5.0]]), torch.tensor([0.5, 0.5]))
    with pytest.raises(of.errors.NonFinite, match="is inf"):
        box(-1.0, 1.0).value(mu)

    def V(x):
        return torch.where(x[:, 0] > 1, torch.nan, 0 * x[:, 0])

    bad = of.Potential(V)
    bad.prox = soft
    nu = of.Particles(torch.tensor([[0.0], [5.0]]), torch.tensor([1.0, 0.0]))
    with pytest.raises(of.errors.NonFinite, match="is nan"):
        bad.value(nu)


# Cost ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 40, 400])
def test_the_trial_of_a_map_evaluates_few_points_in_many_dimensions(dim):
    seen = []

    def V(x):
        seen.append(x.shape[0])
        return x.abs().sum(-1)

    F = of.Potential(V, prox=soft)
    seen.clear()
    F.proximal(normal(3, dim), 0.1)
    assert sum(seen) <= 6 * 60 * (2 + 19 + 9 * 32)
    assert len(seen) <= 6 * 6


def test_a_map_that_is_wrong_in_some_of_many_coordinates_is_found():
    def prox(x, tau):
        return torch.cat([soft(x[:, :300], tau), x[:, 300:]], 1)

    F = of.Potential(absolute, prox=lambda x, tau: soft(x, tau))
    F.prox = prox
    with pytest.raises(InvalidFunctional, match="is no proximal map"):
        F.proximal(normal(3, 400), 0.1)
