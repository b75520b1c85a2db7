"""A tilt translates: no solver by maps makes a density higher, or stops short."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.proximal import BackAndForth

F64 = torch.float64
SHARES = [0.05, 0.3, 0.7]


def tilt(dim):
    return of.Potential(lambda x: -x[..., :dim].sum(-1), modulus=0.0)


def block(dim, n=48, *, obstacles=None, lower=0.0, upper=4.0):
    """Return the indicator of a box of cells."""
    rho = torch.zeros((n,) * dim, dtype=F64)
    rho[(slice(n // 4, n // 2),) * dim] = 1.0
    return of.GridDensity(
        rho, lower, upper, walls=True, normalize=True, obstacles=obstacles
    )


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("congested", [False, True])
def test_a_jump_of_the_density_makes_no_overshoot(dim, share, congested):
    mu = block(dim, 48 if dim == 1 else 24)
    highest = float(mu.density().max())
    F = tilt(dim) + of.Congestion(highest) if congested else tilt(dim)
    dt = share * mu.box.spacing[0]
    if congested and share < 0.1:
        return  # within the tolerance of the bound the step need not converge
    steps = 6
    for _ in range(steps):
        result = BackAndForth().solve(F, mu, dt)
        assert result.certificate.converged
        nu = result.measure
        assert float(nu.density().max()) <= highest * (1 + 1e-9)
        moved = (nu.weights - mu.weights) @ mu.points[:, 0]
        assert float(moved) == pytest.approx(dt, rel=1e-6)
        mu = nu


@pytest.mark.parametrize("kind", ["tilt", "bowl", "heat", "bound"])
def test_obstacles_around_a_box_are_the_walls_of_the_box(kind):
    n, h = 40, 1 / 40
    F = {
        "tilt": tilt(1),
        "bowl": of.Potential(lambda x: (x[..., 0] - 2).square(), modulus=2.0),
        "heat": tilt(1) + of.Entropy(),
        "bound": tilt(1) + of.Congestion(1.6),
    }[kind]
    rho = 1 + 0.5 * torch.sin(9 * (torch.arange(n, dtype=F64) + 0.5) * h)
    box = of.GridDensity(rho, 0, 1, walls=True, normalize=True)
    wider = torch.zeros(3 * n, dtype=F64)
    wider[n : 2 * n] = rho
    room = of.GridDensity(
        wider, -1, 2, walls=True, normalize=True, obstacles=wider == 0
    )
    solver = BackAndForth(tolerance=1e-11)
    alone, inside = (solver.solve(F, mu, 1e-2) for mu in (box, room))
    assert alone.certificate.converged
    assert inside.certificate.converged
    found = inside.measure.weights[n : 2 * n]
    torch.testing.assert_close(found, alone.measure.weights, rtol=0, atol=1e-10)
