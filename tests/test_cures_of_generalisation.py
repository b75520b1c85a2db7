"""Cures of data, laws and numbers of which no bound of generalisation is known."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.analysis import (
    apriori_bound,
    f1_margin,
    f2_margin,
    rademacher,
    rademacher_bound,
    risk_table,
    soft_margin,
    weight_size_bound,
)
from otflow.errors import NonFinite, NotConverged, Unsupported
from otflow.meanfield import (
    CustomLayer,
    Risk,
    TwoLayer,
    barron_sample,
    best_law,
    feature_law,
    kernel_alignment,
    rkhs_kernel,
    rkhs_norm,
)
from otflow.meanfield.norms import extreme_rays
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

RELU = TwoLayer("relu")
MU = of.Particles(normal(20, 4))
X = normal(12, 2, seed=1).tanh()
WIDE = normal(12, 2, seed=1) * 5
Y = X[:, 0].sign()
RHO = of.Particles(normal(30, 3, seed=2))
RISK = Risk(RELU, X, Y)
SKEW = rkhs_kernel(RELU, RHO, X) + torch.ones(12, 12).triu().double()
NAN = torch.cat([torch.full((1,), torch.nan), Y[1:]])
FLAT, LAW = TwoLayer("relu", bias=False), of.Particles(normal(30, 2, seed=2))


def sample(network=RELU, mu=MU, N=10, x=X, **options):
    return barron_sample(network, mu, N, x, **options)


def table(**options):
    given = {"neurons": [5], "samples": [4], "times": [0.2], "dt": 0.1} | options
    test = given.pop("test", RISK)
    return risk_table(RISK, test, lambda m, _: normal(m, 4), **given)


def unit_norm(mu):
    points = mu.points.clone()
    points[:, 0] /= 1e200
    return of.Particles(points)


def graph():
    return of.Particles(MU.points.clone().requires_grad_())


CASES: dict[str, Case] = {
    "data outside of the cube": (
        ValueError,
        r"X must lie in \[-1, 1\]\^d, .* got X\[\d+\] of norm 1\d.*; divide the data",
        lambda: sample(x=WIDE),
        [lambda: sample(x=WIDE / (WIDE.abs().max() * (1 + 1e-6)))],
    ),
    "data outside of the ball": (
        ValueError,
        r"X must lie in the Euclidean unit ball.*; divide the data by that",
        lambda: rademacher(WIDE, norm="l2", draws=2),
        [lambda: rademacher(WIDE / WIDE.norm(dim=1).max(), norm="l2", draws=2)],
    ),
    "a sample of a unit that is not homogeneous": (
        Unsupported,
        r"positively homogeneous units.*; use TwoLayer\('relu'\)",
        lambda: sample(TwoLayer("tanh")),
        [sample],
    ),
    "a complexity of a unit that is not homogeneous": (
        Unsupported,
        r"positively homogeneous units.*; use TwoLayer\('relu'\)",
        lambda: rademacher(X, network=TwoLayer("tanh"), draws=2),
        [lambda: rademacher(X, network=RELU, draws=2)],
    ),
    "a bound of another scaling": (
        Unsupported,
        "use scaling='mean-field'",
        lambda: rademacher_bound(1.0, 9, 2, network=TwoLayer("relu", scaling="sum")),
        [lambda: rademacher_bound(1.0, 9, 2, network=RELU)],
    ),
    "a draw of a measure with a graph": (
        Unsupported,
        r"which neurons are drawn has no derivative.*mu.detach\(\)",
        lambda: sample(mu=graph()),
        [lambda: sample(mu=graph().detach())],
    ),
    "no neuron": (
        ValueError,
        "N must be at least 1|N must be",
        lambda: sample(N=0),
        [lambda: sample(N=1)],
    ),
    "neurons without a norm": (
        ValueError,
        "all neurons have a path norm of 0.*give neurons with outer and inner weights",
        lambda: feature_law(RELU, of.Particles(torch.zeros(3, 4))),
        [lambda: feature_law(RELU, of.Particles(torch.ones(3, 4)))],
    ),
    "a norm of several outputs": (
        Unsupported,
        "the norm is that of one output.*take outputs=None",
        lambda: rkhs_norm(TwoLayer("relu", outputs=2), RHO, X, Y),
        [lambda: rkhs_norm(RELU, RHO, X, Y)],
    ),
    "values in a column": (
        ValueError,
        r"f must hold one value for each of the 12 inputs.*f\[:, 0\] or f.flatten",
        lambda: rkhs_norm(RELU, RHO, X, Y[:, None]),
        [lambda: rkhs_norm(RELU, RHO, X, Y[:, None].flatten())],
    ),
    "a norm with a graph": (
        Unsupported,
        r"without derivative, and a graph would be lost; give .detach\(\)",
        lambda: rkhs_norm(RELU, RHO, X, Y.clone().requires_grad_()),
        [lambda: rkhs_norm(RELU, RHO, X, Y.clone().requires_grad_().detach())],
    ),
    "values outside of the space": (
        ValueError,
        "no function of these 5 features has the values f.*give a law of more features",
        lambda: rkhs_norm(RELU, of.Particles(normal(5, 3)), X, Y),
        [
            lambda: rkhs_norm(RELU, of.Particles(normal(60, 3)), X, Y),
            lambda: rkhs_norm(RELU, of.Particles(normal(5, 3)), X[:1], Y[:1]),
        ],
    ),
    "a kernel of other data": (
        ValueError,
        r"K must be \(n, n\) and y \(n,\).*give the kernel of the data with themselves",
        lambda: kernel_alignment(rkhs_kernel(RELU, RHO, X, X[:3]), Y),
        [lambda: kernel_alignment(rkhs_kernel(RELU, RHO, X), Y)],
    ),
    "targets of one value": (
        ValueError,
        "y is constant over the data.*give targets and a kernel that vary",
        lambda: kernel_alignment(rkhs_kernel(RELU, RHO, X), torch.ones_like(Y)),
        [lambda: kernel_alignment(rkhs_kernel(RELU, RHO, X), Y)],
    ),
    "features of a network of one's own": (
        Unsupported,
        "the kernel of features is there for a TwoLayer.*take TwoLayer with an",
        lambda: rkhs_kernel(CustomLayer(lambda x, t: (x @ t[:, :2].T).cos()), RHO, X),
        [lambda: rkhs_kernel(TwoLayer(torch.cos), RHO, X)],
    ),
    "a law of neurons": (
        ValueError,
        r"rho is a law of inner weights \(w, b\) of 3 numbers.*take feature_law",
        lambda: rkhs_kernel(RELU, MU, X),
        [lambda: rkhs_kernel(RELU, feature_law(RELU, MU), X)],
    ),
    "a probability of 1": (
        ValueError,
        r"delta is a probability of failure in \(0, 1\), got 1; take delta=0.05",
        lambda: weight_size_bound(1.0, 10, 2, delta=1.0),
        [lambda: weight_size_bound(1.0, 10, 2, delta=0.05)],
    ),
    "no data": (
        ValueError,
        "n must be",
        lambda: apriori_bound(1.0, 10, 0, 2, 0.1),
        [lambda: apriori_bound(1.0, 10, 1, 2, 0.1)],
    ),
    "labels that are no interval": (
        ValueError,
        r"labels must be the interval \(lowest, highest\).*give for example",
        lambda: apriori_bound(1.0, 10, 10, 2, 0.1, labels=(1.0, 0.0)),
        [lambda: apriori_bound(1.0, 10, 10, 2, 0.1, labels=(0.0, 1.0))],
    ),
    "signs of other data": (
        ValueError,
        "draws must be a number, or two rows of n = 12 signs.*give draws=100",
        lambda: rademacher(X, draws=torch.ones(3, 4)),
        [lambda: rademacher(X[:, :1], draws=100)],
    ),
    "signs that are none": (
        ValueError,
        r"draws must hold signs -1 and \+1 alone; give draws.sign\(\)",
        lambda: rademacher(X, draws=normal(3, 12)),
        [lambda: rademacher(X, draws=normal(3, 12).sign())],
    ),
    "a sharpness of 1": (
        ValueError,
        "sharpness is a share below 1 of the complexity.*take sharpness=0.01",
        lambda: rademacher(X, sharpness=1.0),
        [lambda: rademacher(X, sharpness=0.01, draws=2)],
    ),
    "one number of neurons": (
        TypeError,
        r"neurons must be several numbers, e.g. \[10, 100\]",
        lambda: table(neurons=5),
        [lambda: table(neurons=[10, 100])],
    ),
    "no number of data": (
        ValueError,
        r"samples is empty; give one number or more, e.g. \[10, 100\]",
        lambda: table(samples=[]),
        [lambda: table(samples=[10])],
    ),
    "more data than there are": (
        ValueError,
        "samples must be at most the 12 data of the risk, got 13; give a risk of more",
        lambda: table(samples=[13]),
        [lambda: table(samples=[12])],
    ),
    "one time": (
        TypeError,
        r"times must be several numbers, e.g. \[1.0, 10.0\]",
        lambda: table(times=1.0),
        [lambda: table(times=[1.0, 10.0])],
    ),
    "no time": (
        ValueError,
        r"times is empty; give one time or more, e.g. \[1.0, 10.0\]",
        lambda: table(times=[]),
        [lambda: table(times=[1.0])],
    ),
    "times that go back": (
        ValueError,
        r"times must increase, got \[2.0, 1.0\]; give sorted\(times\)",
        lambda: table(times=[2.0, 1.0]),
        [lambda: table(times=sorted([2.0, 1.0]))],
    ),
    "too few steps": (
        NotConverged,
        "has not reached the time 0.2 after 1 steps; take a larger dt, earlier times",
        lambda: table(steps=1),
        [
            lambda: table(steps=1, dt=0.3),
            lambda: table(steps=1, times=[0.1]),
            lambda: table(steps=2),
        ],
    ),
    "a complexity of several outputs": (
        Unsupported,
        "the complexity is that of networks of one output.*take outputs=None",
        lambda: rademacher_bound(1.0, 9, 2, network=TwoLayer("relu", outputs=2)),
        [
            lambda: rademacher_bound(1.0, 9, 2, network=TwoLayer("relu")),
            lambda: rademacher(X, draws=2, network=TwoLayer("relu")),
        ],
    ),
    "a bound beyond float64": (
        NonFinite,
        r"the bound overflows float64.*such as labels in \[0, 1\]",
        lambda: apriori_bound(1.0, 9, 9, 2, 1.0, labels=(0.0, 1e200)),
        [lambda: apriori_bound(1.0, 9, 9, 2, 1.0, labels=(0.0, 1.0))],
    ),
    "more data than any computer has": (
        ValueError,
        r"n must be at most 1e\+100, got more; take n=10\*\*15",
        lambda: rademacher_bound(1.0, 10**400, 2),
        [lambda: rademacher_bound(1.0, 10**15, 2)],
    ),
    "a norm without a square": (
        NonFinite,
        "has a square beyond the numbers of torch.float64.*divide the outer weights by",
        lambda: sample(mu=of.Particles(1e100 * MU.points)),
        [lambda: sample(mu=unit_norm(of.Particles(1e100 * MU.points)))],
    ),
    "a kernel that is not symmetric": (
        ValueError,
        r"K must be symmetric.*give the kernel.*symmetric part \(K \+ K.T\) / 2",
        lambda: kernel_alignment(SKEW, Y),
        [
            lambda: kernel_alignment((SKEW + SKEW.T) / 2, Y),
            lambda: kernel_alignment(rkhs_kernel(RELU, RHO, X), Y),
        ],
    ),
    "a target that is no number": (
        ValueError,
        r"y must be finite, got y\[0\] = nan; leave out data without a value",
        lambda: kernel_alignment(rkhs_kernel(RELU, RHO, X), NAN),
        [lambda: kernel_alignment(rkhs_kernel(RELU, RHO, X[1:]), NAN[1:])],
    ),
    "a value that is no number": (
        ValueError,
        r"f must be finite, got f\[0\] = nan; leave out data without a value",
        lambda: rkhs_norm(RELU, RHO, X, NAN),
        [lambda: rkhs_norm(RELU, RHO, X[1:], NAN[1:])],
    ),
    "coefficients that overflow": (
        NonFinite,
        "a coefficient of the kernel overflows.*give data and directions of order 1",
        lambda: rkhs_norm(FLAT, LAW, 1e-165 * X[:2], 1e-18 * Y[:2]),
        [lambda: rkhs_norm(FLAT, LAW, X[:2], Y[:2])],
    ),
    "a law without directions": (
        ValueError,
        r"all inner weights of the law are 0.*such as meanfield.extreme_rays\(X\)",
        lambda: best_law(RELU, of.Particles(torch.zeros(3, 2).double()), X[:, :1], Y),
        [lambda: best_law(RELU, of.Particles(extreme_rays(X[:, :1])), X[:, :1], Y)],
    ),
    "a test of another network": (
        ValueError,
        r"the risk is that of TwoLayer\('relu'\) and the test.*give Risk\(risk.network",
        lambda: table(test=Risk(TwoLayer("tanh"), X, Y)),
        [lambda: table(test=Risk(RISK.network, X, Y))],
    ),
    "a margin of several outputs": (
        Unsupported,
        "a margin is that of one output and two classes.*take outputs=None",
        lambda: soft_margin(TwoLayer("relu", outputs=2), X, Y),
        [lambda: soft_margin(RELU, X, Y)],
    ),
    "a margin of a network with a constant": (
        Unsupported,
        "the norm of a margin does not count the constant.*take offset=None",
        lambda: f1_margin(TwoLayer("relu", offset=0.5), MU, X, Y),
        [lambda: f1_margin(TwoLayer("relu", offset=None), MU, X, Y, rounds=0)],
    ),
    "a margin of no network": (
        ValueError,
        "the norm of the network is 0.*train it first, or give neurons with",
        lambda: f1_margin(RELU, of.Particles(torch.zeros(3, 4).double()), X, Y),
        [
            lambda: f1_margin(RELU, MU, X, Y, rounds=0),
            lambda: f2_margin(RELU, MU, X, Y),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_cure_works(case):
    check_cures(case)
