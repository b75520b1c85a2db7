"""The exact profiles solve their equations, and the flows end at them."""

from __future__ import annotations

import math

import pytest
import torch

from demo import front


def radius_at(t: torch.Tensor) -> torch.Tensor:
    return (front.START**4 + front.RATE * t) ** 0.25


def spread_at(t: torch.Tensor) -> torch.Tensor:
    """Return the radius of a paraboloid with the variance of heat at a time."""
    return (front.START**2 + 12 * front.CONDUCTIVITY * t).sqrt()


@pytest.mark.parametrize(
    ("profile", "radius", "flux"),
    [
        (front.paraboloid, radius_at, lambda rho: rho.square()),
        (front.bell, spread_at, lambda rho: front.CONDUCTIVITY * rho),
    ],
    ids=["porous medium", "heat"],
)
def test_a_profile_solves_its_equation(profile, radius, flux):
    t = torch.tensor(0.5 * front.DURATION, dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    x = 0.2 * torch.rand(20, 2, dtype=torch.float64, generator=generator)
    for point in x:
        (rate,) = torch.autograd.grad(profile(radius(t), point[None])[0], t)
        hessian = torch.autograd.functional.hessian(
            lambda y: flux(profile(radius(t).detach(), y[None])[0]), point
        )
        assert float(rate) == pytest.approx(float(hessian.trace()), rel=1e-10)


@pytest.mark.parametrize("law", [radius_at, spread_at])
def test_both_profiles_go_from_start_to_end(law):
    ends = [
        float(law(torch.tensor(t, dtype=torch.float64))) for t in (0.0, front.DURATION)
    ]
    assert ends == pytest.approx([front.START, front.END], rel=1e-12)


@pytest.fixture(scope="module")
def medium() -> front.Spread:
    return front.spread("porous medium", 96, 8)


@pytest.fixture(scope="module")
def heat() -> front.Spread:
    return front.spread("heat", 96, 8)


@pytest.mark.slow
def test_the_radius_of_the_exact_profile_is_found(medium):
    assert front.radius_of(medium.exact) == pytest.approx(front.END, abs=1e-4)


def test_the_front_is_at_its_radius(medium):
    assert front.radius_of(medium.run.final) == pytest.approx(front.END, abs=4e-3)
    assert medium.error < 1.5e-2


def test_the_front_converges_with_the_step(medium):
    coarse = front.radius_of(front.spread("porous medium", 96, 4).run.final)
    fine = front.radius_of(medium.run.final)
    assert abs(fine - front.END) < abs(coarse - front.END) / 3


def test_heat_ends_at_its_exact_profile(heat):
    assert heat.error < 1e-3
    assert heat.beyond == pytest.approx(math.exp(-3), abs=5e-4)


def test_the_medium_stays_within_its_front_and_heat_does_not(medium, heat):
    assert medium.beyond < heat.beyond / 50


def test_the_energies_fall_and_the_steps_are_certified(medium, heat):
    for spread in (medium, heat):
        assert (spread.run.records["energy"].diff() < 0).all()
        assert spread.row.certificate == "8/8 steps certified"


@pytest.mark.slow
def test_the_figure_says_which_share_is_outside(medium, heat, tmp_path):
    share = float(front.share_outside(heat).removesuffix(" % outside"))
    assert share == pytest.approx(100 * math.exp(-3), abs=0.1)
    front.draw(medium, heat, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 10_000
