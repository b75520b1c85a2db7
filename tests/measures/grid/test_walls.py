"""No verb of a density on a grid takes mass through an obstacle, whatever the time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import otflow as of
from otflow.errors import Diverged
from otflow.measures.grid.heat import JUMPS, REACH
from otflow.measures.grid.upwind import courant
from otflow.testing.clouds import normal

F64 = torch.float64


@st.composite
def rooms(draw):
    """Return a density with mass in several rooms, and the label of each cell."""
    dim = draw(st.integers(1, 3))
    most = {1: 24, 2: 10, 3: 6}[dim]
    shape = tuple(draw(st.integers(2, most)) for _ in range(dim))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    blocked = torch.rand(shape, generator=generator) < draw(
        st.sampled_from([0.1, 0.3, 0.5])
    )
    blocked.view(-1)[0] = False
    labels = torch.from_numpy(ndimage.label(~blocked.numpy())[0]).reshape(-1)
    first = labels == labels[0]
    upper = [draw(st.floats(0.2, 4.0)) for _ in shape]
    rho = first.reshape(shape).to(F64)
    mu = of.GridDensity(rho, 0.0, upper, obstacles=blocked, walls=True, normalize=True)
    mass = torch.rand(mu.n, generator=generator, dtype=F64) ** 4
    # Every other room holds mass; the rest stay empty.
    mass = mass * (labels % 2 == labels[0] % 2) * (labels > 0)
    velocity = torch.randn(mu.box.n_faces, generator=generator, dtype=F64)
    return mu.with_weights(mass / mass.sum()), labels, velocity


def check(mu, nu, labels, *, rounding=1e-13):
    """Each room keeps its mass; obstacles and empty rooms hold none at all."""
    for k in range(int(labels.max()) + 1):
        room = labels == k
        before, after = float(mu.weights[room].sum()), float(nu.weights[room].sum())
        assert abs(before - after) < rounding
        if before == 0:
            assert after == 0
    assert float(nu.weights.min()) >= 0


@settings(max_examples=60, deadline=None)
@given(room=rooms(), time=st.sampled_from([1e-3, 0.1, 1.0, 1e3]))
def test_transport_keeps_every_room(room, time):
    mu, labels, velocity = room
    check(mu, mu.transport(velocity, time), labels)
    check(mu, mu.transport(velocity, -time), labels)


@settings(max_examples=60, deadline=None)
@given(room=rooms(), time=st.sampled_from([1e-3, 0.1, 1.0, 1e3]))
def test_push_keeps_every_room_or_refuses(room, time):
    mu, labels, velocity = room
    limit = courant(mu.box, mu.weights, time * velocity * mu.open_faces(F64))
    if limit > 1 + 1e-12:
        with pytest.raises(Diverged, match="CFL"):
            mu.push(velocity, time)
        time = time * 0.99 / limit
    check(mu, mu.push(velocity, time), labels)


def round_off_of_heat(box, time):
    """Return by how much the mass of a room may be rounded.

    A jump adds two fluxes an axis to a cell, at most 6, and the series adds one term
    more: of the mass of a room, 8 eps at most are rounded by an evaluation, counting
    the sums of the test. There are as many as jumps, up to the tail of their number,
    and as terms of the Chebyshev series of the jumps beyond. Its recurrence could sum
    up roundings of one sign as the square of that number; but these terms are summed
    with weights that fall, and signs vary: the worst of 400 rooms came to a third of
    this for jumps, and to a twentieth of it for the series.
    """
    mean = 2 * time * sum(1 / h**2 for h in box.spacing)
    jumps = min(mean, JUMPS)
    terms = REACH * math.sqrt(mean - jumps) + REACH**2 if mean > jumps else 0.0
    most = jumps + REACH * math.sqrt(jumps) + terms
    return 8 * torch.finfo(F64).eps * (1 + most)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(room=rooms(), variance=st.sampled_from([1e-4, 0.1, 10.0, 1e3]))
def test_heat_keeps_every_room(room, variance):
    mu, labels, _ = room
    nu = mu.diffuse(variance, torch.Generator())
    check(mu, nu, labels, rounding=round_off_of_heat(mu.box, 0.5 * variance))


@pytest.mark.parametrize("scheme", [of.ExplicitEuler(), of.Langevin()])
def test_explicit_flows_do_not_pass_a_closed_wall(scheme):
    blocked = torch.zeros(12, 6, dtype=torch.bool)
    blocked[6] = True
    rho = torch.zeros(12, 6, dtype=F64)
    rho[1:5] = 1.0
    mu = of.GridDensity(rho, 0.0, 1.0, obstacles=blocked, walls=True, normalize=True)
    F: of.Functional = of.Potential(lambda x: -x[..., 0])
    if isinstance(scheme, of.Langevin):
        F = F + 0.2 * of.Entropy()
    last = of.flow(F, mu, scheme, dt=0.02, steps=30, generator=0).final
    assert float(last.weights.reshape(12, 6)[6:].sum()) == 0
    assert float(last.weights @ last.points[:, 0]) > 0.3


def test_what_a_function_is_inside_an_obstacle_does_not_count():
    wall = torch.zeros(6, 5, dtype=torch.bool)
    wall[3, :3] = True
    rho = torch.ones(6, 5, dtype=torch.float64).masked_fill(wall, 0.0)
    mu = of.GridDensity(rho, 0, 1, obstacles=wall, normalize=True)
    poles = wall.reshape(-1)
    values = normal(30, seed=1)
    for bad in (math.inf, -math.inf, math.nan):
        F = of.Potential(lambda x, bad=bad: values.to(x).masked_fill(poles, bad))
        plain = of.Potential(lambda x: values.to(x))
        assert torch.equal(F.value(mu), plain.value(mu))
        assert torch.equal(F.velocity(mu), plain.velocity(mu))
        free = mu.is_free
        torch.testing.assert_close(
            F.first_variation(mu)[free], plain.first_variation(mu)[free]
        )
        pairs = values[:, None].expand(30, 2).masked_fill(poles[:, None], bad)
        rows = mu.expectation(pairs.to)
        torch.testing.assert_close(rows, plain.value(mu).expand(2))
