"""Fresh data at every step: gradient descent on a stream, and from a `DataLoader`."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import otflow as of
from otflow.testing import clouds
from otflow.testing.clouds import normal

F64 = torch.float64
OnlineRisk, from_loader = of.meanfield.OnlineRisk, of.meanfield.from_loader
TANH = of.meanfield.TwoLayer("tanh")
SGD = of.schemes.Minibatch(of.ExplicitEuler())


def draw(generator, n=16):
    X = torch.randn(n, 2, dtype=F64, generator=generator)
    return X, (X[:, 0] * X[:, 1]).tanh()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


TEST = draw(seeded(9), 200)
F = OnlineRisk(TANH, draw, TEST)


def test_a_draw_is_the_risk_of_fresh_data():
    mu, g = clouds.weighted(7, 4), seeded()
    wanted = of.meanfield.Risk(TANH, *draw(seeded()))
    first, second = F.resample(g), F.resample(g)
    assert torch.equal(first.X, wanted.X)
    assert torch.equal(first(mu), wanted(mu))
    assert not torch.equal(first.X, second.X)


def test_the_energy_is_that_of_the_test_data():
    mu = clouds.uniform(7, 4)
    run = of.flow(F, mu, SGD, dt=0.1, steps=3, generator=0)
    test = of.meanfield.Risk(TANH, *TEST)
    for energy, nu in zip(run.records["energy"], run.snapshots, strict=True):
        torch.testing.assert_close(energy, test(nu))
    again = of.flow(F, mu, SGD, dt=0.1, steps=3, generator=0)
    assert torch.equal(run.final.points, again.final.points)


@pytest.mark.parametrize("scheme", [of.ExplicitEuler(), of.JKO(), of.Langevin()])
def test_no_scheme_steps_on_the_test_data(scheme):
    with pytest.raises(of.errors.Unsupported, match=r"schemes\.Minibatch"):
        of.flow(F, clouds.uniform(7, 4), scheme, dt=0.1, steps=1)


def test_its_derivatives_raise():
    mu = clouds.uniform(7, 4)
    for derivative in (F.first_variation, F.velocity):
        with pytest.raises(of.errors.Unsupported, match=r"F\.test"):
            derivative(mu)
    live = of.Particles(mu.points.clone().requires_grad_())
    with pytest.raises(of.errors.Unsupported, match=r"F\.test"):
        F(live)


def test_it_bends_as_the_risk_does():
    assert F.mixture_curvature() == "convex"
    other = OnlineRisk(of.meanfield.TwoLayer("tanh", scaling="ntk"), draw, TEST)
    assert other.mixture_curvature() is None
    assert "mean-field" in other.why_mixture()


# Isotropic Gaussians of two radii -----------------------------------------------------

LOW, HIGH, LEFT, RIGHT = -2.5, 7.5, 0.5, 1.5
SLOPE = (HIGH - LOW) / (RIGHT - LEFT)


def ramp(z):
    return LOW + SLOPE * ((z - LEFT).relu() - (z - RIGHT).relu())


def density(z):
    return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


def mean_ramp(s):
    """Return E ramp(s G), G standard normal, by E(sG - a)+."""

    def above(a):
        return s * density(a / s) - a * torch.special.ndtr(-a / s)

    return LOW + SLOPE * (above(LEFT) - above(RIGHT))


def slope_of_mean(s):
    return SLOPE * (density(LEFT / s) - density(RIGHT / s))


def test_the_mean_of_the_ramp_is_that_of_quadrature():
    nodes, weights = np.polynomial.legendre.leggauss(60)
    for s in (0.3, 1.0, 4.0):
        cuts = [-9.0, LEFT / s, RIGHT / s, 9.0]
        cuts = sorted({max(-9.0, min(9.0, c)) for c in cuts})
        total = 0.0
        for a, b in pairwise(cuts):
            z = torch.tensor(a + (b - a) * (nodes + 1) / 2)
            total += (b - a) / 2 * float((ramp(s * z) * density(z)).numpy() @ weights)
        assert abs(total - float(mean_ramp(torch.tensor(s, dtype=F64)))) < 1e-12
    at = torch.tensor(0.8, dtype=F64)
    h = 1e-5
    differences = (mean_ramp(at + h) - mean_ramp(at - h)) / (2 * h)
    torch.testing.assert_close(slope_of_mean(at), differences, rtol=1e-8, atol=0)


@pytest.mark.slow
def test_stochastic_descent_follows_the_radial_equation():
    """Mei, Montanari and Nguyen: in high dimension the lengths |w| obey an equation."""
    d, N, gap = 40, 300, 0.8

    def isotropic(generator, n=400):
        sign = 2.0 * torch.randint(2, (n,), generator=generator).to(F64) - 1.0
        X = torch.randn(n, d, dtype=F64, generator=generator)
        return (1 + gap * sign)[:, None] * X, sign

    network = of.meanfield.CustomLayer(lambda x, w: ramp(x @ w.T))
    risk = OnlineRisk(network, isotropic, isotropic(seeded(1), 40_000))
    w = 0.8 / math.sqrt(d) * torch.randn(N, d, dtype=F64, generator=seeded(2))
    dt, steps, every = 0.005, 1000, 100
    run = of.flow(
        risk, of.Particles(w), SGD, dt=dt, steps=steps, every=every, generator=3
    )
    r = w.norm(dim=1)
    radii = torch.tensor([1 + gap, 1 - gap], dtype=F64)
    signs = torch.tensor([1.0, -1.0], dtype=F64)
    for k in range(steps + 1):
        scaled = radii * r[:, None]
        f = mean_ramp(scaled).mean(0)
        if k % every == 0 and k * dt >= 0.5:
            loss = float(0.25 * (signs - f).square().sum())
            at = k // every
            length = float(run.snapshots[at].points.norm(dim=1).mean())
            assert abs(length / float(r.mean()) - 1) < 0.015
            assert abs(float(run.records["energy"][at]) / loss - 1) < 0.04
        r = r + dt * 0.5 * (radii * slope_of_mean(scaled) * (signs - f)).sum(1)
    # The lengths and the risk have moved far.
    assert float(r.mean()) > 1.2 * float(w.norm(dim=1).mean())
    assert float(run.records["energy"][-1]) < 0.7 * float(run.records["energy"][0])


# A loader -----------------------------------------------------------------------------

DATA = TensorDataset(normal(20, 2), normal(20, seed=1))


def test_batches_of_a_loader_are_those_of_the_generator():
    take = from_loader(DataLoader(DATA, batch_size=6, shuffle=True))
    X, y = take(seeded())
    index = torch.randperm(20, generator=seeded())[:6]
    assert torch.equal(X, DATA.tensors[0][index])
    assert torch.equal(y, DATA.tensors[1][index])
    full = from_loader(DataLoader(DATA, batch_size=64))(seeded())
    assert len(full[0]) == 20


def test_a_sampler_with_replacement_is_heeded():
    sampler = RandomSampler(DATA, replacement=True)
    take = from_loader(DataLoader(DATA, batch_size=200, sampler=sampler))
    assert len(take(seeded())[0]) == 200


def test_a_loader_trains_a_network():
    risk = OnlineRisk(TANH, from_loader(DataLoader(DATA, batch_size=5)), DATA.tensors)
    assert "from_loader(n=20, batch_size=5)" in repr(risk)
    run = of.flow(
        risk, clouds.uniform(30, 4), SGD, dt=0.2, steps=60, every=60, generator=0
    )
    assert float(run.records["energy"][-1]) < 0.8 * float(run.records["energy"][0])


def test_a_resumed_run_draws_the_batches_that_were_left():
    risk = OnlineRisk(TANH, from_loader(DataLoader(DATA, batch_size=5)), DATA.tensors)
    mu = clouds.uniform(9, 4)
    whole = of.flow(risk, mu, SGD, dt=0.1, steps=6, generator=0)
    half = of.flow(risk, mu, SGD, dt=0.1, steps=3, generator=0)
    rest = of.flow(risk, mu, SGD, dt=0.1, steps=3, resume=half)
    assert torch.equal(rest.final.points, whole.final.points)


def test_a_data_set_that_changes_its_size_raises():
    data = [(x, y) for x, y in zip(*DATA.tensors, strict=True)]
    risk = OnlineRisk(TANH, from_loader(DataLoader(data, batch_size=5)), DATA.tensors)
    risk.resample(seeded())
    data.pop()
    with pytest.raises(of.errors.InvalidFunctional, match="had 20 samples and has 19"):
        risk.resample(seeded())


class Endless(Dataset):
    def __getitem__(self, k):
        return DATA[k % 20]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Stream(), batch_size=5),
        DataLoader(DATA, batch_size=None),
        DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 20, 5)),
        # A part of the data, and more than there are.
        DataLoader(DATA, batch_size=5, sampler=SequentialSampler(range(7))),
        DataLoader(DATA, batch_size=5, sampler=RandomSampler(range(30))),
        DataLoader(Endless(), batch_size=5, sampler=SequentialSampler(range(7))),
    ],
)
def test_loaders_without_a_known_law_raise(loader):
    with pytest.raises(of.errors.Unsupported, match="give OnlineRisk a function"):
        from_loader(loader)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((TANH, draw, TEST[0]), of.errors.InvalidFunctional, "test must be a pair"),
        ((TANH, TEST, TEST), TypeError, "draw must be a function"),
        ((TANH, draw, (TEST[0], TEST[1][:3])), ValueError, "y"),
    ],
)
def test_bad_input_raises(arguments, error, words):
    with pytest.raises(error, match=words):
        OnlineRisk(*arguments)


def test_a_data_set_without_samples_raises():
    with pytest.raises(ValueError, match="has no sample to draw"):
        from_loader(DataLoader(TensorDataset(*DATA[:0]), batch_size=5))


def test_a_draw_that_is_no_pair_raises():
    risk = OnlineRisk(TANH, lambda g: draw(g)[0], TEST)
    with pytest.raises(of.errors.InvalidFunctional, match=r"draw\(generator\) must be"):
        risk.resample(seeded())
