"""Fresh data at every step: gradient descent on a stream, and from a `DataLoader`."""

from __future__ import annotations

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
