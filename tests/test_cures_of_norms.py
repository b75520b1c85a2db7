"""Cures of data, networks and spectra that do not fit a norm of functions."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.errors import InvalidFunctional, NotConverged, Unsupported
from otflow.meanfield import (
    PathNorm,
    TwoLayer,
    barron_norm,
    norm_growth,
    norm_table,
    path_norm,
    reweight_to_constant,
    spectral_barron_bound,
)
from otflow.meanfield.norms import extreme_rays
from tests.cures import Case, check_cures

F64 = torch.float64
X = torch.linspace(0, 1, 9, dtype=F64)[:, None]
KINK = (X[:, 0] - 0.5).abs()
RELU, TANH = TwoLayer("relu"), TwoLayer("tanh")
NEURONS = of.Particles(torch.tensor([[1.0, 1, -0.5], [1, -1, 0.5]], dtype=F64))
PAIR = of.Particles(torch.tensor([[2.0, 1, -0.5], [2, -1, 0.5]], dtype=F64))
XI, ONE = torch.tensor([[5.0]], dtype=F64), torch.ones(1, dtype=F64)
PLANE = torch.rand(12, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
NEAR = torch.tensor([[0.0], [0.5], [0.5 + 2**-52], [1]], dtype=F64)


def values(at, value):
    f = KINK.clone()
    f[at] = value
    return f


def many(n):
    line = torch.linspace(0, 1, n, dtype=F64)[:, None]
    return line, line[:, 0]


CASES: dict[str, Case] = {
    "too many rays": (
        ValueError,
        r"12 data in dimension 2 have up to 210 rays, more than most=100; take fewer",
        lambda: extreme_rays(PLANE, most=100),
        [
            lambda: extreme_rays(PLANE[:5], most=100),
            lambda: extreme_rays(PLANE, most=210),
        ],
    ),
    "data outside the cube": (
        ValueError,
        r"X must lie in \[-1, 1\]\^d, .* got X\[8\] of norm 3; .*, X / 3.000003",
        lambda: barron_norm(3 * X, KINK),
        [lambda: barron_norm(3 * X / 3.000003, KINK)],
    ),
    "data outside the ball": (
        ValueError,
        r"X must lie in the Euclidean unit ball, .* of norm 1\.62134; .* / 1\.62133919",
        lambda: barron_norm(PLANE + 0.3, PLANE[:, 0], "l2", rounds=2),
        [lambda: barron_norm((PLANE + 0.3) / 1.62133919, PLANE[:, 0], "l2", rounds=2)],
    ),
    "two values at one place": (
        ValueError,
        r"no function takes the values 0.5 and 1 at one place, data 0 and 9; leave one",
        lambda: barron_norm(torch.cat([X, X[:1]]), torch.cat([KINK, ONE])),
        [
            lambda: barron_norm(X, KINK),
            lambda: barron_norm(
                torch.cat([X, X[:1]]), torch.cat([values(0, 0.75), 0.75 * ONE])
            ),
        ],
    ),
    "data that nearly coincide": (
        NotConverged,
        "no full rank in float64: data 1 and 2 are 2.22e-16 apart; leave one of them",
        lambda: barron_norm(NEAR, NEAR[:, 0].square()),
        [
            lambda: barron_norm(NEAR[[0, 1, 3]], NEAR[[0, 1, 3], 0].square()),
            lambda: barron_norm(NEAR[[0, 2, 3]], NEAR[[0, 2, 3], 0].square()),
        ],
    ),
    "a program that is too large": (
        ValueError,
        r"a linear program of 2001 data is too large, above 2000; take a part of them",
        lambda: barron_norm(*many(2001)),
        [lambda: barron_norm(*(t[::20] for t in many(2001)))],
    ),
    "values of the wrong shape": (
        ValueError,
        r"one value for each of the 9 data, got shape \(9, 1\); use f.reshape\(-1\)",
        lambda: barron_norm(X, KINK[:, None]),
        [lambda: barron_norm(X, KINK[:, None].reshape(-1))],
    ),
    "a value that is not finite": (
        ValueError,
        "finite values, got inf at index 4; leave that datum out",
        lambda: barron_norm(X, values(4, math.inf)),
        [lambda: barron_norm(X[X[:, 0] != 0.5], KINK[X[:, 0] != 0.5])],
    ),
    "values that are too large": (
        ValueError,
        r"below 1e\+150 in torch.float64, got 1e\+200; divide f by 1e\+200 and",
        lambda: barron_norm(X, values(4, 1e200)),
        [lambda: barron_norm(X, values(4, 1e200) / 1e200)],
    ),
    "outer weights that are too large": (
        ValueError,
        r"weights of 6 times \|f\| = 5e\+149, above 1e\+150 in .*; divide f by 3.03",
        lambda: barron_norm(X, 1e150 * (1 - 1e-9) * KINK),
        [lambda: barron_norm(X, 1e150 * (1 - 1e-9) * KINK / 3.03)],
    ),
    "data that are no sequence": (
        TypeError,
        r"sequence of tensors \(n_k, d\), got int; give a list such as \[X\[::2\], X\]",
        lambda: norm_growth(lambda x: x[:, 0], 3),
        [lambda: norm_growth(lambda x: x[:, 0], [X[::2], X])],
    ),
    "another norm in the same functional": (
        AttributeError,
        "norm of PathNorm is fixed.*make a new PathNorm",
        lambda: setattr(PathNorm(RELU), "norm", "l2"),
        [lambda: PathNorm(RELU, "l2")],
    ),
    "values with a graph": (
        Unsupported,
        r"would lose a graph.*the dual; use X.detach\(\) and f.detach\(\)",
        lambda: barron_norm(X, KINK.clone().requires_grad_()),
        [lambda: barron_norm(X, KINK.clone().requires_grad_().detach())],
    ),
    "a representation of another function": (
        ValueError,
        r"the output 0.25 at datum 0, and f is 0.5; give neurons .* or leave",
        lambda: barron_norm(X, KINK, representation=NEURONS),
        [
            lambda: barron_norm(X, KINK, representation=PAIR),
            lambda: barron_norm(X, KINK),
        ],
    ),
    "sets of data that do not grow": (
        ValueError,
        r"increasing numbers, got the numbers \[9, 9\]; give for instance grids",
        lambda: norm_growth(lambda x: x[:, 0], [X, X]),
        [lambda: norm_growth(lambda x: x[:, 0], [X[::2], X])],
    ),
    "a slope in the plane": (
        ValueError,
        r"X has 2 columns; use barron_norm\(X, f, 'l1'\) and \(X, f, 'l2'\)",
        lambda: norm_table(PLANE, PLANE[:, 0]),
        [lambda: barron_norm(PLANE, PLANE[:, 0], "l1")],
    ),
    "data outside the interval": (
        ValueError,
        r"got data from -1 to 1; map them by \(X - X.min\(\)\)",
        lambda: norm_table(2 * X - 1, KINK),
        [lambda: norm_table(X, KINK)],
    ),
    "one place alone": (
        ValueError,
        "two places or more, got 0 alone; add data",
        lambda: norm_table(X[:1], KINK[:1]),
        [lambda: norm_table(X[:3], KINK[:3])],
    ),
    "amplitudes that do not fit": (
        ValueError,
        r"each of the 1 frequencies, got shape \(2,\); give amps of shape \(1,\)",
        lambda: spectral_barron_bound(XI, torch.ones(2, dtype=F64)),
        [lambda: spectral_barron_bound(XI, ONE)],
    ),
    "an amplitude that is not finite": (
        ValueError,
        "amps must be finite, got inf at index 0; leave it out",
        lambda: spectral_barron_bound(XI, math.inf * ONE),
        [lambda: spectral_barron_bound(XI, ONE)],
    ),
    "a slope of another dimension": (
        ValueError,
        "g0 must hold 1 numbers.*got 2; leave g0 out",
        lambda: spectral_barron_bound(XI, ONE, g0=torch.ones(2, dtype=F64)),
        [lambda: spectral_barron_bound(XI, ONE)],
    ),
    "new masses without homogeneity": (
        Unsupported,
        r"positively homogeneous unit .* use TwoLayer\('relu'\), or a Unit",
        lambda: reweight_to_constant(TANH, NEURONS),
        [lambda: reweight_to_constant(RELU, NEURONS)],
    ),
    "a path norm without homogeneity": (
        Unsupported,
        r"the path norm belongs to positively homogeneous units.*TwoLayer\('relu'\)",
        lambda: PathNorm(TANH),
        [lambda: PathNorm(RELU)],
    ),
    "a path norm as a functional in another scaling": (
        Unsupported,
        "in the scaling 'sum' the outputs are not linear.*scaling='mean-field'",
        lambda: PathNorm(TwoLayer("relu", scaling="sum")),
        [
            lambda: PathNorm(RELU),
            lambda: path_norm(TwoLayer("relu", scaling="sum"), NEURONS),
        ],
    ),
    "neurons of size zero": (
        ValueError,
        r"the network is 0: leave it as it is, or give other neurons",
        lambda: reweight_to_constant(RELU, of.Particles(0 * NEURONS.points)),
        [lambda: reweight_to_constant(RELU, NEURONS)],
    ),
    "a proximal step that is too long": (
        ValueError,
        r"unique for steps tau below 0.5 in l1, got 0.6; take a smaller dt",
        lambda: PathNorm(TwoLayer("relu", outputs=2)).proximal(
            torch.ones(3, 4, dtype=F64), 0.6
        ),
        [
            lambda: PathNorm(TwoLayer("relu", outputs=2)).proximal(
                torch.ones(3, 4, dtype=F64), 0.4
            )
        ],
    ),
    "points that hold no inner weight": (
        InvalidFunctional,
        "2 outputs has at least 3 coordinates, and points have 2; give points of the",
        lambda: PathNorm(TwoLayer("relu", outputs=2)).value(
            of.Particles(torch.ones(3, 2, dtype=F64))
        ),
        [
            lambda: PathNorm(TwoLayer("relu", outputs=2)).value(
                of.Particles(torch.ones(3, 4, dtype=F64))
            )
        ],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_cure_works(case):
    check_cures(case)


@pytest.mark.parametrize(
    ("wrong", "kind", "words"),
    [
        (lambda: barron_norm(X, KINK, "l3"), ValueError, "norm must be one of"),
        (lambda: barron_norm(X, KINK, budget=0), ValueError, "budget"),
        (lambda: barron_norm(X, KINK, rounds=0), ValueError, "rounds"),
        (lambda: barron_norm(X, KINK.float()), TypeError, "f has dtype"),
        (lambda: barron_norm(X, KINK, representation=3), TypeError, "representation"),
        (lambda: norm_growth(3, [X]), TypeError, "f must be a function"),
        (lambda: spectral_barron_bound(XI, ONE, sharp=1), TypeError, "sharp"),
        (lambda: spectral_barron_bound(XI, ONE.float()), TypeError, "amps has dtype"),
        (lambda: PathNorm(3), TypeError, "network"),
        (lambda: PathNorm(RELU, "l3"), ValueError, "norm must be one of"),
        (lambda: reweight_to_constant(RELU, X), TypeError, "mu"),
        (lambda: extreme_rays(X, most=0), ValueError, "most"),
    ],
)
def test_arguments_are_named(wrong, kind, words):
    with pytest.raises(kind, match=words):
        wrong()
