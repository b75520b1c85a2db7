"""Kinks at the faces of cells: neither neighbour may leave them to the other."""

import random

import pytest
import torch
from torch.nn import functional

import otflow as of
from otflow.numerics.enclosures import Enclosure
from otflow.optimality import BoxDomain, optimality_gap

F64 = torch.float64
AT, ONE = torch.zeros(1, 1, dtype=F64), torch.ones(1, dtype=F64)

# Functions of one number t (m,) with kinks at 0 or 1, where two branches meet.
KINKS = {
    "abs": torch.abs,
    "relu": torch.relu,
    "maximum": lambda t: torch.maximum(t, -0.5 * t),
    "maximum with a constant": lambda t: torch.maximum(0 * ONE, t),
    "minimum": lambda t: torch.minimum(t, 3 * t),
    "clamp": lambda t: t.clamp(0.0, 1.0),
    "clamp from above": lambda t: t.clamp(max=0.0),
    "clamp_min": lambda t: t.clamp_min(0.0),
    "clamp_max": lambda t: t.clamp_max(0.0),
    "clamp by tensors": lambda t: t.clamp(0 * ONE, ONE),
    "hardtanh": lambda t: functional.hardtanh(t, 0.0, 2.0),
    "relu6": lambda t: functional.relu6(6 - t),
    "leaky": lambda t: functional.leaky_relu(t, 0.1),
    "steep leaky": lambda t: functional.leaky_relu(t, 3.0),
    "amax": lambda t: torch.stack([2 * t, -t, t.square()]).amax(0),
    "amin": lambda t: torch.stack([2 * t, -t, t.square()], -1).amin(-1),
    "norm": lambda t: t[:, None].norm(dim=-1),
    "norm of order 1": lambda t: torch.stack([t, 2 * t]).norm(1, dim=0),
    "hypot": lambda t: torch.hypot(t, 0 * ONE),
    "root of a square": lambda t: t.square().sqrt(),
    "kinks of kinks": lambda t: torch.maximum(t.abs(), t.clamp(min=0) * 3),
    "energy": lambda t: field(of.kernels.Energy(), t),
    "power law": lambda t: field(of.kernels.PowerLaw(2.0, 1.0), t),
}


def field(W, t):
    if isinstance(t, Enclosure):
        low, high = t.value[..., None]
        box = Enclosure.of(low, high, t.order)
        return W.enclosed_field(box, AT, ONE)
    s = t[:, None].square()
    return sum(c * V.profile(s).sum(-1) for c, V in W.terms())


@pytest.mark.parametrize("name", KINKS)
def test_cells_on_both_sides_of_a_kink_share_a_slope(name):
    # Otherwise the function may rise in one cell and fall in the other, and the
    # minimum between them lies in no cell.
    f = KINKS[name]
    for at in (0.0, 1.0):
        for width in (2.0**-k for k in range(1, 40, 4)):
            faces = torch.tensor([at - width, at, at + width], dtype=F64)
            cells = Enclosure.of(faces[:-1, None], faces[1:, None], 2)
            low, high = f(cells[:, 0]).gradient[:, 0]
            assert float(low.max()) <= float(high.min())
            # Both slopes nearby, where there are two, are in one of the cells each.
            x = torch.tensor([at - width / 2, at + width / 2], dtype=F64)
            leaf = x.requires_grad_()
            (slope,) = torch.autograd.grad(f(leaf).sum(), leaf)
            assert bool((low <= slope + 1e-12).all())
            assert bool((slope - 1e-12 <= high).all())


# max(t, c) up to a constant. A difference t - c is rounded outward, and its range does
# not end at 0; c itself does touch the cells beside it.
CHOICES = (
    lambda t, c: torch.maximum(t, c * ONE),
    lambda t, c: -torch.minimum(-t, -c * ONE),
    lambda t, c: t.clamp(min=c),
    lambda t, c: t.clamp_min(c),
    lambda t, c: torch.stack([t, c + torch.zeros_like(t)]).amax(0),
    lambda t, c: functional.hardtanh(t, c, 8.0),
    lambda t, c: torch.relu(t - c),
)


@pytest.mark.parametrize("descend", [0, 50])
def test_gaps_of_random_functions_with_kinks_at_faces(descend):
    draw = random.Random(1)
    mu, box = of.Particles(torch.tensor([[0.9]], dtype=F64)), BoxDomain(-1.0, 1.0)
    for _ in range(20):
        kinks = [k / 32 for k in draw.sample(range(-31, 32), draw.randint(1, 10))]
        parts = [(c, draw.uniform(-10, 20), draw.choice(CHOICES)) for c in kinks]
        tilt = draw.uniform(-40, 10)

        def V(x, parts=parts, tilt=tilt):
            t = x[..., 0]
            return tilt * t + sum(a * f(t, c) for c, a, f in parts)

        gap = optimality_gap(of.Potential(V), mu, box, descend=descend)
        # A piecewise linear function is least at a kink or at an end.
        ends = torch.tensor([[-1.0], [1.0], *([c] for c in kinks)], dtype=F64)
        exact = float(V(mu.points) - V(ends).min())
        assert gap.kind == "proved"
        assert exact - 1e-12 * (1 + abs(exact)) <= gap.value
        if descend:
            assert gap.value <= 1.02 * exact + 1e-9


def test_a_kink_at_the_corner_of_cells():
    mu = of.Particles(torch.tensor([[0.9, 0.9]], dtype=F64))
    V = of.Potential(lambda x: torch.maximum(x, -x).sum(-1))
    gap = optimality_gap(V, mu, BoxDomain(-1.0, 1.0), descend=0)
    assert gap.kind == "proved"
    assert 1.8 <= gap.value <= 1.82
