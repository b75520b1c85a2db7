"""Cures of potentials that are infinite somewhere, and of kinks with a map."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.errors import Diverged, NotConvergedWarning
from otflow.functionals import box, l1_norm
from tests.cures import Case, check_cures

F64 = torch.float64
GENERATOR = torch.Generator().manual_seed(0)
WIDE = of.Particles(3.0 * torch.randn(12, 2, generator=GENERATOR, dtype=F64))
INSIDE = of.Particles(WIDE.points.clamp(-1.0, 1.0))
TERM = box(-1.0, 1.0)
PULL = of.Potential(lambda x: 0.5 * (x - 3.0).square().sum(-1))
SPRING = of.Potential(lambda x: 0.5 * x.square().sum(-1))
BELL = of.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
SPLIT = of.schemes.ForwardBackward()


def cells(end, n=20):
    return of.GridDensity.from_function(
        lambda x: torch.exp(-x.square().sum(-1)),
        lower=-end,
        upper=end,
        shape=(n,),
        dtype=F64,
        walls=True,
    )


def bend(x, width=0.0):
    """Return two kinks, rounded over a width."""
    kinks = (x - 1).abs() + x.relu()
    if width:
        kinks = ((x - 1).square() + width**2).sqrt() + torch.nn.functional.softplus(
            x / width
        ) * width
    return kinks.sum(-1)


KINKS, ROUND = of.Potential(bend), of.Potential(lambda x: bend(x, 0.5))


def go(F, mu, scheme, dt=0.5, steps=3):
    return of.flow(F, mu, scheme, dt=dt, steps=steps)


CASES: dict[str, Case] = {
    "a start beyond the walls": (
        Diverged,
        r"is infinite at \d+ of 12 points; start where it is finite, .*proximal",
        lambda: go(PULL + TERM, WIDE, SPLIT),
        [
            lambda: go(
                PULL + TERM,
                of.Particles(TERM.proximal(WIDE.points, 1.0), WIDE.weights),
                SPLIT,
            )
        ],
    ),
    "a density beyond the walls": (
        Diverged,
        r"start where it is finite, from Particles or from a GridDensity whose box",
        lambda: go(PULL + TERM + of.Entropy(), BELL, of.JKO()),
        [
            lambda: go(PULL + TERM, INSIDE, SPLIT),
            lambda: go(PULL + TERM + of.Entropy(), cells(1.0), of.JKO()),
        ],
    ),
    "explicit steps through a wall": (
        Diverged,
        r"infinite at 12 of 12 points; .* take schemes\.ForwardBackward\(\)",
        lambda: go(PULL + TERM, INSIDE, of.ExplicitEuler(), dt=2.0),
        [lambda: go(PULL + TERM, INSIDE, SPLIT, dt=2.0)],
    ),
    "noise through a wall": (
        Diverged,
        r"flow a GridDensity\(\.\.\., walls=True\) over the region .*, by JKO\(\)",
        lambda: go(PULL + TERM + of.Entropy(), INSIDE, of.Langevin()),
        [lambda: go(PULL + TERM + of.Entropy(), cells(1.0), of.JKO())],
    ),
    "births beyond a wall": (
        Diverged,
        r"at draws of the prior .*; take a prior where F is finite, e\.g\. Particles",
        lambda: go(PULL + TERM, INSIDE, of.BirthDeath(prior=WIDE)),
        [lambda: go(PULL + TERM, INSIDE, of.BirthDeath(prior=INSIDE))],
    ),
    "kinks that the nodes of a Gaussian cross": (
        NotConvergedWarning,
        r"at a kink of F that nodes cross.*: smooth the kink .*, or flow a GridDensity",
        lambda: go(KINKS, BELL, of.JKO(), dt=1.0, steps=5),
        [
            lambda: go(ROUND, BELL, of.JKO(), dt=1.0, steps=5),
            lambda: go(KINKS, cells(6.0, 120), of.JKO(), dt=1.0, steps=1),
        ],
    ),
    "implicit steps at a wall": (
        NotConvergedWarning,
        r"take schemes\.ForwardBackward\(\), which steps on Potential\(Box\)",
        lambda: go(PULL + TERM, INSIDE, of.JKO()),
        [lambda: go(PULL + TERM, INSIDE, SPLIT)],
    ),
    "implicit steps at a kink": (
        NotConvergedWarning,
        r"take schemes\.ForwardBackward\(\), which steps on Potential\(L1Norm\)",
        lambda: go(SPRING + l1_norm(), WIDE, of.JKO()),
        [lambda: go(SPRING + l1_norm(), WIDE, SPLIT)],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_cure_works(case):
    check_cures(case)


def test_steps_by_the_map_end_at_the_wall_and_at_the_kink_exactly():
    at_wall = go(PULL + TERM, INSIDE, SPLIT, steps=20).final
    torch.testing.assert_close(at_wall.points, torch.ones(12, 2, dtype=F64))
    at_kink = go(SPRING + l1_norm(), WIDE, SPLIT, steps=20).final
    assert not bool(at_kink.points.any())


def test_other_failures_keep_their_own_words():
    """A wall that holds every point is not blamed for the failure of another term."""
    steep = of.Potential(lambda x: (x[..., 0] - 5.0).log())
    with pytest.raises(Diverged, match="look for") as caught:
        go(steep + TERM, INSIDE, SPLIT)
    assert "Box" not in str(caught.value)
