"""Cures of domains that do not fit, and of gaps that are not proved."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import otflow as of
from otflow.errors import InvalidFunctional, Unsupported
from otflow.optimality import BoxDomain, optimality_gap
from tests.cures import Case, check_cures

F64 = torch.float64
BUMP = of.kernels.Gaussian(1.0)
CLOUD = of.Particles(torch.linspace(0, 1, 5, dtype=F64)[:, None])
V = of.Potential(lambda x: x.square().sum(-1))


def gap(domain, F=V, mu=CLOUD, kind="proved", **options):
    """Ask for a gap, and for its kind."""
    found = optimality_gap(F, mu, domain, **options)
    assert found.kind == kind, found
    return found


class Convex(of.functionals.Sum):
    """A sum that its maker knows to be convex along mixtures."""

    def mixture_curvature(self):
        return "convex"


class Square(of.Functional):
    """The square of the second moment, whose F' a user has written down."""

    def __init__(self, factor):
        self.factor = factor

    def value(self, mu):
        return mu.expectation(lambda x: x.square().sum(-1)) ** 2

    def mixture_curvature(self):
        return "convex"

    def enclosed_variation(self, mu):
        mean = mu.weights @ mu.points.square().sum(-1)
        return lambda x: self.factor * mean * x.square().sum(-1) + 1e3


class WideSquare(Square):
    """One whose enclosure keeps the last axis."""

    def enclosed_variation(self, mu):
        return lambda x: self.factor * x.square()


class SquareAlone(Square):
    """The same without an enclosure."""

    enclosed_variation = of.Functional.enclosed_variation


def density():
    return of.GridDensity(torch.ones(8, dtype=F64), 0, 1, walls=True, normalize=True)


CASES: dict[str, Case] = {
    "an enclosure with a wrong factor": (
        InvalidFunctional,
        r"is not that of its value.*correct the factor.*leave the method out, and",
        lambda: gap(BoxDomain(0.0, 1.0), Square(1.0)),
        [
            lambda: gap(BoxDomain(0.0, 1.0), Square(2.0)),
            lambda: gap(BoxDomain(0.0, 1.0), SquareAlone(1.0), kind="searched"),
            lambda: gap(BoxDomain(0.0, 1.0), Square(2.0), CLOUD.to(torch.float32)),
        ],
    ),
    "a domain that misses atoms": (
        ValueError,
        r"misses 2 of 5 points of mu.*take BoxDomain\(\[0.0\], \[2.0\]\)",
        lambda: gap(BoxDomain(0.3, 2.0)),
        [lambda: gap(BoxDomain([0.0], [2.0]))],
    ),
    "corners of another dimension": (
        ValueError,
        "the measure has dimension 1; give one per axis, or one for all axes",
        lambda: gap(BoxDomain([0.0, 0.0], 1.0)),
        [lambda: gap(BoxDomain([0.0], 1.0)), lambda: gap(BoxDomain(0.0, 1.0))],
    ),
    "corners of two dimensions": (
        ValueError,
        "lower has 2 numbers and upper 3; give one per axis, or one for all axes",
        lambda: BoxDomain([0.0, 0.0], [1.0, 1.0, 1.0]),
        [lambda: BoxDomain([0.0, 0.0], [1.0, 1.0]), lambda: BoxDomain([0.0, 0.0], 1.0)],
    ),
    "no corner": (
        ValueError,
        "lower must hold one number per axis, got none",
        lambda: BoxDomain([], 1.0),
        [lambda: BoxDomain([0.0], 1.0)],
    ),
    "an empty box": (
        ValueError,
        "lower must lie below upper on every axis, got 1.0 and 1.0",
        lambda: BoxDomain(1.0, 1.0),
        [lambda: BoxDomain(0.0, 1.0)],
    ),
    "a text as a corner": (
        TypeError,
        "lower must be a real number, got str",
        lambda: BoxDomain("0", 1.0),
        [lambda: BoxDomain(0, 1.0)],
    ),
    "NaN as a corner": (
        ValueError,
        r"upper\[1\] must be finite, got nan",
        lambda: BoxDomain(0, torch.tensor([1.0, math.nan])),
        [lambda: BoxDomain(0, torch.tensor([1.0, 2.0]))],
    ),
    "a number of steps that is none": (
        ValueError,
        "descend must be at least 0",
        lambda: gap(BoxDomain(0, 1), descend=-1),
        [lambda: gap(BoxDomain(0, 1), descend=0)],
    ),
    "a box of corners as a domain": (
        TypeError,
        "domain must be a Domain, got",
        lambda: optimality_gap(V, CLOUD, (0.0, 1.0)),
        [lambda: gap(BoxDomain(0.0, 1.0))],
    ),
    "a potential with an axis too many": (
        InvalidFunctional,
        r"got \(n, 1\); reduce over the last axis, e.g. x.square\(\).sum\(-1\)",
        lambda: gap(BoxDomain(0, 1), of.Potential(torch.square)),
        [lambda: gap(BoxDomain(0, 1), of.Potential(lambda x: x.square().sum(-1)))],
    ),
    "an enclosure with an axis too many": (
        InvalidFunctional,
        r"to \(5,\), got \(5, 1\); reduce over the last axis: .sum\(-1\)",
        lambda: gap(BoxDomain(0, 1), WideSquare(2.0)),
        [lambda: gap(BoxDomain(0, 1), Square(2.0))],
    ),
    "an internal energy on atoms": (
        Unsupported,
        "PowerEntropy and Congestion mean nothing on it; represent the measure by",
        lambda: gap(BoxDomain(0, 1), Convex((of.PowerEntropy(2.0),))),
        [lambda: of.PowerEntropy(2.0).first_variation(density())],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cure_works(name):
    check_cures(CASES[name])


# The reason of a gap that is not proved, and what proves it.
REASONS: dict[str, tuple[str, str, Callable[[], Any], Callable[[], Any]]] = {
    "an unbounded domain": (
        "none",
        "the domain is unbounded.*give finite corners",
        lambda: gap(BoxDomain(0, math.inf), kind="none"),
        lambda: gap(BoxDomain(0, 10)),
    ),
    "too few cells": (
        "proved",
        "more of them, max_cells, make the bound sharper",
        lambda: gap(BoxDomain(-9, 9, max_cells=1, sharpness=1e-9), of.Potential(wells)),
        lambda: gap(BoxDomain(-9, 9, sharpness=1e-9), of.Potential(wells)),
    ),
    "an operation without intervals": (
        "searched",
        "torch.floor has no interval extension",
        lambda: gap(
            BoxDomain(0, 1), of.Potential(lambda x: x.floor().sum(-1)), kind="searched"
        ),
        lambda: gap(BoxDomain(0, 1), of.Potential(lambda x: x.sin().sum(-1))),
    ),
    "atoms of infinite energy": (
        "none",
        "no finite bound of F' at the atoms of mu was found",
        lambda: gap(
            BoxDomain(0, 1), Convex((of.Interaction(of.kernels.Log()),)), kind="none"
        ),
        lambda: gap(BoxDomain(0, 1), Convex((of.MMDTo(CLOUD, BUMP),))),
    ),
}


def wells(x):
    return (x.square() - 1).square().sum(-1) + torch.sin(40 * x).sum(-1)


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_names_what_is_missing(name):

    kind, words, wrong, cure = REASONS[name]
    found = wrong()
    assert found.kind == kind
    assert re.search(words, found.reason), found.reason
    assert not re.search(words, cure().reason)


def test_densities_are_searched():
    found = gap(BoxDomain(0, 1), V, density(), kind="searched")
    assert "Particles alone" in found.reason
