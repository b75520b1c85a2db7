"""Tables of test risks: early stopping, many neurons, and the runs that they are of."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.analysis import risk_table
from otflow.meanfield import Risk, TwoLayer
from otflow.testing.clouds import normal

F64 = torch.float64
NETWORK = TwoLayer("relu", bias=False)


def problem(n, d=5, noise=0.3):
    """Three neurons on the sphere, with noisy targets for training alone."""
    teacher = normal(3, d, seed=1)
    teacher = teacher / teacher.norm(dim=1, keepdim=True)
    signs = torch.tensor([1.0, -1.0, 1.0], dtype=F64)
    X, Z = normal(n, d, seed=2), normal(1000, d, seed=3)
    y, z = ((x @ teacher.T).relu() @ signs for x in (X, Z))
    y = y + noise * normal(n, 1, seed=4)[:, 0]
    return Risk(NETWORK, X, y), Risk(NETWORK, Z, z)


def start(m, generator):
    return torch.randn(m, 6, generator=generator, dtype=F64)


def fixed(m, generator):
    return normal(m, 6, seed=m)


def table(risk, test, law=start, **options):
    given = {"neurons": [6], "samples": [10], "times": [0.5], "dt": 0.1} | options
    return risk_table(risk, test, law, **given)


def test_an_entry_is_the_risk_of_its_run():
    risk, test = problem(40)
    sizes = {"neurons": [5, 8], "samples": [10, 40], "times": [0.4, 1.0]}
    found = table(risk, test, fixed, **sizes)
    assert found.test.shape == found.train.shape == (2, 2, 2)
    mu = of.Particles(normal(5, 6, seed=5))
    part = Risk(NETWORK, risk.X[:10], risk.y[:10])
    for k, t in enumerate(found.times):
        end = of.flow(
            part, mu, of.ExplicitEuler(), dt=0.1, steps=100, until=t, every=100
        ).final
        torch.testing.assert_close(found.train[0, 0, k], part.value(end))
        torch.testing.assert_close(found.test[0, 0, k], test.value(end))
    end = of.flow(
        risk,
        of.Particles(normal(8, 6, seed=8)),
        of.ExplicitEuler(),
        dt=0.1,
        steps=10,
        every=10,
    ).final
    torch.testing.assert_close(found.test[1, 1, 1], test.value(end))


def test_times_on_the_way_do_not_change_the_run():
    risk, test = problem(20)
    once = table(risk, test, times=[2.0], scheme=of.schemes.Momentum(3.0))
    more = table(risk, test, times=[0.5, 1.0, 2.0], scheme=of.schemes.Momentum(3.0))
    torch.testing.assert_close(once.test[..., -1], more.test[..., -1])


def test_the_same_seed_gives_the_same_table():
    risk, test = problem(20)
    one, same, other = (table(risk, test, generator=seed) for seed in (1, 1, 2))
    assert torch.equal(one.test, same.test)
    assert not torch.equal(one.test, other.test)


def test_the_table_reads_its_least_values():
    values = torch.tensor([[[3.0, 1.0, 2.0], [3.0, 2.0, 1.0]]])
    found = of.analysis.RiskTable((7,), (10, 20), (1.0, 2.0, 4.0), values, values)
    assert found.least.tolist() == [[1.0, 1.0]]
    assert found.stopping.tolist() == [[2.0, 4.0]]
    text = repr(found)
    assert text.count("\n") == 3
    assert "at 2" in text


@pytest.mark.slow
def test_few_noisy_data_ask_for_early_stopping_and_many_neurons_do_no_harm():
    """Survey, section 5: R(f_{m,n,t}) falls, then rises with t where n is small."""
    risk, test = problem(400)
    found = table(
        risk,
        test,
        neurons=[6, 20, 100],
        samples=[30, 400],
        times=[1.0, 3.0, 10.0, 30.0, 100.0, 300.0],
    )
    few, many = found.test[2, 0], found.test[2, 1]
    least, last = float(few.min()), float(few[-1])
    enough = float(many[-1])
    assert last > 1.3 * least
    assert float(found.stopping[2, 0]) < 100
    assert float(found.train[2, 0, -1]) < 0.02
    assert enough < 0.02
    assert enough < 1.6 * float(many.min())
    assert enough < 0.2 * last
    # With enough data 6, 20 and 100 neurons end alike.
    assert float(found.test[:, 1, -1].max()) < 0.02
