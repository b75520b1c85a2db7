"""Cures of proximal maps and of forward-backward."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.errors import Diverged, InvalidFunctional, NotConvergedWarning, Unsupported
from otflow.functionals import box, group_norm, l1_norm
from otflow.meanfield import PathPenalty
from otflow.proximal import ParticleProximal, PointwiseProximal
from otflow.schemes import ForwardBackward
from otflow.testing.clouds import normal
from tests.cures import check_cures

MU = of.Particles(normal(5, 2))


def absolute(x):
    return x.abs().sum(-1)


def soft(x, tau):
    return x - x.clamp(-tau, tau)


def in_ball(x, tau):
    """Return the map of |x| on the box [-9, 9]: that of the sum of both."""
    return soft(x, tau).clamp(-9.0, 9.0)


def spring(x):
    return 0.5 * x.square().sum(-1)


WALLS = box(-9.0, 9.0)
SMOOTH, KINK = of.Potential(spring), of.Potential(absolute, prox=soft)
# An energy whose map overflows for long steps, as that of exp.
STEEP = of.Potential(
    absolute, prox=lambda x, tau: soft(x, tau) + (torch.inf if tau > 50 else 0.0)
)


def flowed(F, scheme=None, dt=0.1, mu=MU, steps=2):
    return of.flow(F, mu, scheme or ForwardBackward(), dt=dt, steps=steps)


def halves(F, dt=1.0):
    """Make steps at 0.3, of which for dt = 1 no second trial lowers F."""
    mu = of.Particles(torch.full((3, 1), 0.3))
    return flowed(F, ForwardBackward(max_halvings=2), dt, mu)


def in_disc(slack):
    """Return the indicator of a disc whose radius is 1 and a slack."""
    return lambda x: torch.where(x.norm(dim=-1) <= 1 + slack, 0 * x[..., 0], torch.inf)


def onto_disc(x, tau):
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1.0)


CASES = {
    "no solver": (
        TypeError,
        r"leave it out, or take one, e\.g\. proximal\.GaussianProximal\(\)",
        lambda: flowed(SMOOTH + KINK, ForwardBackward("gaussian")),
        [
            lambda: flowed(SMOOTH + KINK, ForwardBackward()),
            lambda: flowed(
                SMOOTH + of.Entropy(),
                ForwardBackward(of.proximal.GaussianProximal()),
                mu=of.Gaussian(torch.ones(1).double(), torch.eye(1).double()),
            ),
        ],
    ),
    "no map": (
        Unsupported,
        r"has no proximal map; declare one: Potential\(V, prox=",
        lambda: SMOOTH.proximal(MU.points, 0.1),
        [lambda: KINK.proximal(MU.points, 0.1)],
    ),
    "a map that is none": (
        InvalidFunctional,
        r"return the minimiser, or leave prox= out",
        lambda: of.Potential(absolute, prox=lambda x, tau: x / (1 + tau)),
        [lambda: of.Potential(absolute, prox=soft), lambda: of.Potential(absolute)],
    ),
    "a map to where V is infinite": (
        InvalidFunctional,
        r"tau\) is inf; return the minimiser, or leave prox= out",
        lambda: of.Potential(box(-1.0, 1.0).V, prox=lambda x, _: x),
        [lambda: of.Potential(box(-1.0, 1.0).V, prox=lambda x, _: x.clamp(-1, 1))],
    ),
    "a map of another shape": (
        InvalidFunctional,
        r"return the minimisers of V\(y\) .* row by row, or leave prox= out",
        lambda: of.Potential(absolute, prox=lambda x, _: x[:, 0]).proximal(
            MU.points, 1.0
        ),
        [lambda: KINK.proximal(MU.points, 1.0), lambda: of.Potential(absolute)],
    ),
    "a convexity that the map denies": (
        InvalidFunctional,
        r"leave modulus= out, or correct prox=",
        lambda: of.Potential(absolute, modulus=0.5, prox=soft),
        [
            lambda: of.Potential(absolute, prox=soft),
            lambda: of.Potential(
                lambda x: absolute(x) + 0.5 * spring(x),
                modulus=0.5,
                prox=lambda x, tau: soft(x, tau) / (1 + 0.5 * tau),
            ),
        ],
    ),
    "a map that overflows": (
        Diverged,
        r"left the finite numbers; take a smaller dt",
        lambda: flowed(STEEP, of.JKO(), dt=99.0),
        [lambda: flowed(STEEP, of.JKO(), dt=9.0)],
    ),
    "a step too long for the path norm": (
        ValueError,
        r"unique for steps tau below 1 in l2, got 2; take a smaller dt",
        lambda: flowed(2 * PathPenalty("l2"), of.JKO(), dt=1.0),
        [lambda: flowed(2 * PathPenalty("l2"), of.JKO(), dt=0.4)],
    ),
    "a sum without one map": (
        Unsupported,
        r"use ParticleProximal\(\), or schemes.ForwardBackward\(\) for a sum",
        lambda: PointwiseProximal().solve(SMOOTH + KINK, MU, 0.1),
        [
            lambda: ParticleProximal().solve(SMOOTH, MU, 0.1).certificate.converged,
            lambda: flowed(SMOOTH + KINK),
        ],
    ),
    "no group": (
        ValueError,
        r"use ExplicitEuler\(\), or JKO\(\) .* by Potential\(V, prox=\.\.\.\)",
        lambda: flowed(SMOOTH),
        [
            lambda: flowed(SMOOTH, of.ExplicitEuler()),
            lambda: flowed(SMOOTH, of.JKO()),
            lambda: flowed(of.Potential(spring, prox=lambda x, t: x / (1 + t))),
        ],
    ),
    "two groups": (
        ValueError,
        r"one map after the other; declare one .* map of their sum, or leave prox= out",
        lambda: flowed(SMOOTH + l1_norm() + box(-9.0, 9.0)),
        [
            lambda: flowed(
                SMOOTH + of.Potential(lambda x: absolute(x) + WALLS.V(x), prox=in_ball)
            ),
            lambda: flowed(SMOOTH + of.Potential(spring) + box(-9.0, 9.0)),
            lambda: flowed(
                SMOOTH + of.Potential(spring, prox=lambda x, t: x / (1 + t)), of.JKO()
            ),
        ],
    ),
    "a kink among the smooth terms": (
        NotConvergedWarning,
        r"of lengths from 0\.5 down to 0\.25; .* take a smaller dt; .* as Potential\(V",
        lambda: halves(of.Potential(absolute) + box(-9.0, 9.0)),
        [
            lambda: halves(KINK + SMOOTH),
            lambda: halves(of.Potential(absolute) + box(-9.0, 9.0), dt=0.05),
        ],
    ),
    "weights of another dimension": (
        InvalidFunctional,
        r"3 weights of the l1 norm for points of 2 coordinates; give one number, or",
        lambda: l1_norm([1.0, 0.0, 2.0]).value(MU),
        [lambda: l1_norm(1.0).value(MU), lambda: l1_norm([1.0, 0.0]).value(MU)],
    ),
    "a box of another dimension": (
        InvalidFunctional,
        r"3 upper ends of the box for points of 2 coordinates; give one number, or one",
        lambda: box(-9.0, [9.0, 9.0, 9.0]).proximal(MU.points, 1.0),
        [
            lambda: box(-9.0, 9.0).proximal(MU.points, 1.0),
            lambda: box(-9.0, [9.0, 9.0]).proximal(MU.points, 1.0),
        ],
    ),
    "a group beyond the points": (
        InvalidFunctional,
        r"a group holds the coordinate 2, and points have 2, .* leave it out of the gr",
        lambda: group_norm([[0, 2]]).value(MU),
        [lambda: group_norm([[0]]).value(MU)],
    ),
    "a neuron of one number": (
        InvalidFunctional,
        r"a neuron \(a, w\) has at least 2 .*; take functionals\.l1_norm\(\)",
        lambda: PathPenalty().proximal(MU.points[:, :1], 0.1),
        [
            lambda: PathPenalty().proximal(MU.points, 0.1),
            lambda: l1_norm().proximal(MU.points[:, :1], 0.1),
        ],
    ),
    "an indicator of an open set": (
        InvalidFunctional,
        r"leave prox= out; an indicator must be finite at images that are rounded",
        lambda: of.Potential(in_disc(0.0), prox=onto_disc),
        [
            lambda: of.Potential(in_disc(1e-9), prox=onto_disc),
            lambda: of.Potential(in_disc(0.0)),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cure_works(name):
    check_cures(CASES[name])
