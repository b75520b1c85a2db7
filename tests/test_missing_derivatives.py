"""An operation without a derivative in torch is named, with what to write instead."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.errors import InvalidFunctional

F64 = torch.float64
MU = of.Particles(torch.tensor([[0.9], [-0.2]], dtype=F64))
LEVELS = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
BOX = of.optimality.BoxDomain(-1.0, 1.0)


def half(x):
    return torch.tensor(0.5, dtype=x.dtype)


# Functions of one coordinate, by the operation that torch does not differentiate.
BARE = {
    "floor_divide": lambda x: torch.floor_divide(x, 0.3) + x.square(),
    "heaviside": lambda x: torch.heaviside(x - 0.1, half(x)),
    "zeta": lambda x: torch.special.zeta(x + 3, half(x)),
    "igamma": lambda x: torch.special.gammainc(x + 3, half(x)),
}
WRITTEN = {
    "floor_divide": lambda x: torch.floor(x / 0.3) + x.square(),
    "heaviside": lambda x: torch.where(x > 0.1, 1.0, 0.0).to(x.dtype) + 0 * x,
}


class Integral(of.Functional):
    def __init__(self, V):
        self.V = V

    def value(self, mu):
        return mu.expectation(lambda x: self.V(x[..., 0]))


def potential(V):
    return of.Potential(lambda x: V(x[..., 0]))


USES = {
    "velocity": lambda V: potential(V).velocity(MU),
    "velocity at points": lambda V: potential(V).velocity(MU, MU.points),
    "velocity of levels": lambda V: potential(V).velocity(LEVELS),
    "own functional": lambda V: Integral(V).value_and_velocity(MU),
    "interaction": lambda V: of.Interaction(lambda z: V(z[..., 0])).velocity(MU),
    "two points": lambda V: of.Interaction(
        of.kernels.TwoPoint(lambda x, y: V((x - y)[..., 0]))
    ).velocity(MU, MU.points),
    "flow": lambda V: of.flow(potential(V), MU, of.ExplicitEuler(), dt=0.1, steps=1),
    "gap": lambda V: of.optimality.optimality_gap(potential(V), MU, BOX),
    "frank-wolfe": lambda V: of.flow(
        potential(V), MU, of.schemes.FrankWolfe(BOX), dt=1.0, steps=1
    ),
}


@pytest.mark.parametrize("name", BARE)
@pytest.mark.parametrize("use", USES)
def test_an_operation_without_derivative_is_named(use, name):
    with pytest.raises(InvalidFunctional, match=f"torch.{name} has no derivative in"):
        USES[use](BARE[name])


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("use", USES)
def test_what_is_written_in_its_place_works(use, name):
    before, after = (
        potential(V[name]).first_variation(MU).tolist() for V in (BARE, WRITTEN)
    )
    assert before == after
    USES[use](WRITTEN[name])


def test_other_faults_of_torch_are_left_as_they_are():
    with pytest.raises(RuntimeError, match="size of tensor") as caught:
        potential(lambda x: x + torch.zeros(3, dtype=F64)).velocity(MU)
    assert not isinstance(caught.value, InvalidFunctional)
