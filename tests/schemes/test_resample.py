"""Systematic resampling."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing import SchemeContract, clouds
from tests import exact
from tests.measures.intervals import uniform


def resample(mu, seed=0, threshold=1.0):
    generator = torch.Generator().manual_seed(seed)
    return of.schemes.Resample(threshold).step(
        exact.quadratic(), mu, 0.1, None, generator
    )


def counts(mu, nu):
    """Return how often each atom of `mu` occurs in `nu`."""
    return (nu.points[:, None] == mu.points[None]).all(-1).sum(0)


def test_each_atom_is_copied_in_proportion_to_its_mass_up_to_one():
    mu = clouds.weighted(50, 2)
    for seed in range(20):
        step = resample(mu, seed)
        assert step.info == {"resampled": True}
        assert step.measure.is_uniform
        assert step.measure.n == mu.n
        expected = mu.n * mu.weights
        found = counts(mu, step.measure)
        assert bool((found >= expected.floor()).all())
        assert bool((found <= expected.ceil()).all())


def test_it_is_unbiased():
    mu = clouds.weighted(9, 2)
    n = 4000
    total = sum(counts(mu, resample(mu, seed).measure) for seed in range(n))
    found = total / (n * mu.n)
    torch.testing.assert_close(found.double(), mu.weights, rtol=0, atol=0.01)


@pytest.mark.parametrize("offset", [0.0, 1 - 2**-24, 0.5])
def test_atoms_without_mass_are_never_copied(offset, monkeypatch):
    # At an offset of exactly 0 or almost 1 the grid touches the ends of the masses.
    weights = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.25, 0.0, 0.0])
    mu = of.Particles(torch.arange(7.0)[:, None], weights)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.full((1,), offset))
    found = counts(mu, resample(mu).measure)
    assert bool((found[weights == 0] == 0).all())
    assert int(found.sum()) == 7


def test_it_is_the_identity_above_the_threshold():
    mu = clouds.weighted(9, 2)
    size = 1 / float(mu.weights.square().sum())
    step = resample(mu, threshold=0.99 * size / 9)
    assert step.measure is mu
    assert step.info == {"resampled": False}
    assert resample(mu, threshold=1.01 * size / 9).info == {"resampled": True}


def test_it_keeps_birth_death_from_collapsing():
    F, mu = exact.quadratic(), clouds.uniform(100, 2)
    alone = of.flow(F, mu, of.BirthDeath(), dt=0.5, steps=20)
    assert alone.info[-1]["effective_size"] < 20
    scheme = of.chain(of.BirthDeath(), of.schemes.Resample())
    run = of.flow(F, mu, scheme, dt=0.5, steps=20, generator=0)
    sizes = [1 / float(nu.weights.square().sum()) for nu in run.snapshots]
    assert min(sizes) > 49
    resampled = [info["parts"][1]["resampled"] for info in run.info]
    assert 0 < sum(resampled) < 20


def test_the_same_seed_gives_the_same_draw():
    mu = clouds.weighted(30, 2)
    one, two = resample(mu, 1).measure, resample(mu, 1).measure
    assert torch.equal(one.points, two.points)


def test_a_measure_that_is_no_sum_of_atoms_is_refused():
    message = "^Resample copies atoms and Intervals has none; leave it out of the chain"
    with pytest.raises(of.errors.Unsupported, match=message):
        resample(uniform(0.0, 1.0))


@pytest.mark.parametrize(("bad", "message"), [(0.0, "positive"), (1.5, "at most 1")])
def test_the_threshold_is_a_fraction(bad, message):
    with pytest.raises(ValueError, match=message):
        of.schemes.Resample(bad)


class TestContract(SchemeContract):
    stochastic = True
    descends = False
    diverges = False
    steps = ()

    def make(self):
        return of.schemes.Resample(1.0)

    def problem(self, dtype=torch.float64):
        # Enough atoms for two offsets of the draw to differ in some copy.
        return exact.quadratic(), clouds.weighted(60, 2, dtype=dtype)

    def test_the_step_vanishes_with_dt(self):
        """It takes no time: it draws anew, whatever dt, and keeps the mean."""
        _, _, mu, step = self.one_step()
        gap = mu.expectation(lambda x: x) - step.measure.expectation(lambda x: x)
        spread = mu.expectation(lambda x: x.square()).sqrt()
        assert bool((gap.abs() <= spread).all())
