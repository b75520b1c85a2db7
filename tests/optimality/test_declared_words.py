"""A false word of mixtures gives no gap: it is tried at the place of the gap."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.meanfield import PathBall, Risk, TwoLayer
from otflow.optimality import BoxDomain, OnGrid, optimality_gap

F64 = torch.float64


def at(*rows, dtype=F64):
    return of.Particles(torch.tensor(rows, dtype=dtype))


SPREAD = at([-0.5], [0.2], [0.9])
X = torch.linspace(-1, 1, 5, dtype=F64)[:, None]


class Spread(of.Functional):
    """Half the variance: concave along mixtures."""

    def __init__(self, word):
        self.word = word

    def value(self, mu):
        mean = mu.expectation(lambda x: x[..., 0])
        return mu.expectation(lambda x: x[..., 0] ** 2) / 2 - mean**2 / 2

    def mixture_curvature(self):
        return self.word


def squares(word, sign=1.0):
    return of.Interaction(lambda z: sign * z.square().sum(-1), mixture=word)


def risk(loss):
    network = TwoLayer("relu")
    return Risk(network, X, X[:, 0], loss=loss, mixture="convex")


def on_grid():
    x = torch.linspace(-0.9, 0.9, 10, dtype=F64)
    return of.GridDensity((-4 * x**2).exp(), -1, 1, walls=True, normalize=True)


V = of.Potential(lambda x: x.square().sum(-1))
FALSE = {
    "an attraction": (squares("convex"), SPREAD, BoxDomain(-1, 1)),
    "beside a potential": (V + squares("convex"), SPREAD, BoxDomain(-1, 1)),
    "hidden by a convex term": (
        9 * of.OfExpectation(lambda m: m[..., 0] ** 2, lambda x: x, mixture="convex")
        + squares("convex"),
        SPREAD,
        BoxDomain(-1, 1),
    ),
    "minus a repulsion": (-squares("concave", -1.0), SPREAD, BoxDomain(-1, 1)),
    "linear": (squares("linear"), SPREAD, BoxDomain(-1, 1)),
    "linear, of a repulsion": (squares("linear", -1.0), SPREAD, BoxDomain(-1, 1)),
    "a method": (Spread("convex"), SPREAD, BoxDomain(-1, 1)),
    "in float32": (squares("convex"), SPREAD.to(torch.float32), BoxDomain(-1, 1)),
    "on a grid": (squares("convex"), on_grid(), OnGrid()),
    "on a grid, searched": (squares("convex"), on_grid(), BoxDomain(-1, 1)),
    "a loss in a ball": (
        risk(lambda f, y: -((f - y) ** 4)),
        at([0.1, 0.1, 0.3]),
        PathBall(1.0),
    ),
    "a loss in a box": (
        risk(lambda f, y: -((f - y) ** 4)),
        at([0.1, 0.1, 0.3]),
        BoxDomain(-1, 1),
    ),
}
TRUE = {
    "a repulsion": (squares("convex", -1.0), SPREAD, BoxDomain(-1, 1)),
    "minus an attraction": (-squares("concave"), SPREAD, BoxDomain(-1, 1)),
    "in float32": (squares("convex", -1.0), SPREAD.to(torch.float32), BoxDomain(-1, 1)),
    "on a grid": (squares("convex", -1.0), on_grid(), OnGrid()),
    "a loss in a ball": (
        risk(lambda f, y: (f - y) ** 4),
        at([0.1, 0.1, 0.3]),
        PathBall(1.0),
    ),
}


@pytest.mark.parametrize("name", FALSE)
def test_a_false_word_gives_no_gap(name):
    F, mu, domain = FALSE[name]
    assert F.mixture_convex
    gap = optimality_gap(F, mu, domain)
    assert gap.kind == "none"
    assert gap.value == gap.found == math.inf
    assert " along mixtures, " in gap.reason
    assert "and that is false: half way between mu and a point mass at " in gap.reason


@pytest.mark.parametrize("name", TRUE)
def test_a_true_word_gives_a_gap(name):
    F, mu, domain = TRUE[name]
    gap = optimality_gap(F, mu, domain)
    assert gap.kind == "proved"
    assert "not proved but declared: " in gap.reason
    assert "false" not in gap.reason


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("seed", range(20))
def test_no_true_word_is_contradicted(seed, dtype):
    """A linear functional with a large constant: its slack is round-off alone."""
    draw = torch.Generator().manual_seed(seed)
    mu = of.Particles(torch.randn(50, 2, generator=draw, dtype=F64).clamp(-3, 3))
    F = of.OfExpectation(
        lambda m: m[..., 0], lambda x: 1e6 + x.sum(-1, keepdim=True), mixture="linear"
    )
    gap = optimality_gap(F, mu.to(dtype), BoxDomain(-3, 3))
    assert gap.kind != "none", gap.reason


class Fixed(of.Functional):
    """A functional of three atoms with mass, and of no other number."""

    def value(self, mu):
        if int((mu.weights > 0).sum()) != 3:
            raise RuntimeError(mu.n)
        return mu.expectation(lambda x: x[..., 0] ** 2)

    def mixture_curvature(self):
        return "convex"


class Pairs(of.Functional):
    """The energy of different atoms, by their indices: it sees copies."""

    def value(self, mu):
        near = (-(mu.points - mu.points.T).square()).exp()
        return mu.weights @ (near - torch.eye(mu.n).to(near)) @ mu.weights

    def mixture_curvature(self):
        return "convex"


@pytest.mark.parametrize("F", [Fixed(), Pairs()], ids=repr)
def test_what_is_no_function_of_mixtures_is_not_judged(F):
    gap = optimality_gap(F, SPREAD, BoxDomain(-1, 1))
    assert gap.kind == "searched"
    assert "not proved but declared: " in gap.reason


def test_pairs_would_contradict_their_word():
    middle = of.Particles(SPREAD.points[1:2])
    values = [float(Pairs().value(mu)) for mu in (SPREAD, middle)]
    assert Pairs().value(SPREAD.mix(middle, 0.5)) > 0.5 * sum(values)


class Counted(of.Functional):
    """The square of the mean, which counts how many atoms were looked at."""

    def __init__(self):
        self.sizes = []

    def value(self, mu):
        self.sizes.append(mu.n)
        return mu.expectation(lambda x: x.sum(-1)) ** 2

    def enclosed_variation(self, mu):
        mean = mu.weights @ mu.points.sum(-1)
        return lambda x: 2 * mean * x.sum(-1)


class CountedWithAWord(Counted):
    def mixture_curvature(self):
        return "convex"


def test_the_trial_costs_five_values():
    box, told = BoxDomain(-1, 1), CountedWithAWord()
    assert optimality_gap(told, SPREAD, box).kind == "proved"
    # One more is of F' at the atoms. Five are of its comparison with
    # the enclosure: at all places twice, beside the atoms, and at two places alone.
    assert len(told.sizes) == 5 + 1 + 5


def test_a_free_energy_with_a_false_word_is_not_bounded():
    F, rho = squares("convex") + of.Entropy(), on_grid()
    gap = of.optimality.entropic_gap(F, rho)
    assert gap.kind == optimality_gap(F, rho, OnGrid()).kind == "none"
    assert "and that is false" in gap.reason
    with pytest.raises(ValueError, match=r"and that is false.*compare F.value\(rho\)"):
        of.optimality.entropic_bracket(F, rho, rho)
    true = of.optimality.entropic_gap(squares("convex", -1.0) + of.Entropy(), rho)
    assert true.kind == "proved"
    assert true.reason.count("not proved but declared: ") == 1
    assert "point mass" not in true.reason


def test_frank_wolfe_says_that_its_gap_is_none():
    scheme = of.schemes.FrankWolfe(BoxDomain(-1, 1), prove=True)
    run = of.flow(squares("convex"), SPREAD, scheme, dt=1.0, steps=1)
    assert run.info[0]["gap_kind"] == "none"
    assert "and that is false" in run.info[0]["gap_reason"]
