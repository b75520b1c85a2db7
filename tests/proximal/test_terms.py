"""The terms of a functional by kind: sums, multiples, and what has no solver."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.functionals.combined import Combined
from otflow.proximal.terms import combine, sort_terms
from otflow.testing.clouds import normal

V = of.Potential(lambda x: x.square().sum(-1))
W = of.Interaction(of.kernels.Gaussian(1.0))


class Concentration(of.Functional):
    def value(self, mu):
        return mu.expectation(lambda x: x.square().sum(-1)) ** 2


def test_every_kind_finds_its_place():
    U, other = of.PowerEntropy(2.0), Concentration()
    terms = sort_terms(2 * (V + 3 * W) + 0.5 * of.Entropy() + U + other)
    assert terms.potentials == ((2.0, V),)
    assert terms.interactions == ((6.0, W),)
    assert terms.temperature == 0.5
    assert terms.internal is U
    assert terms.others == ((1.0, other),)
    assert terms.max_density == torch.inf


def test_potentials_add():
    x = normal(5, 2)
    centred = of.Potential(lambda x: (x - 1).square().sum(-1))
    terms = sort_terms(V + -0.5 * centred + of.KL(lambda x: x.sum(-1)))
    expected = V.V(x) - 0.5 * centred.V(x) + x.sum(-1)
    torch.testing.assert_close(terms.V(x), expected)
    assert terms.temperature == 1.0
    assert not bool(sort_terms(of.Entropy()).V(x).any())


def test_entropies_add_and_may_cancel():
    assert sort_terms(of.Entropy() + -1 * of.Entropy()).temperature == 0
    assert sort_terms(-0.3 * of.Entropy()).temperature == -0.3
    assert sort_terms(of.Entropy()).internal is None


def test_internal_energies_are_one():
    F = of.PowerEntropy(2.0) + 3 * of.Internal(torch.sqrt) + of.Congestion(5.0)
    terms = sort_terms(F + of.Congestion(4.0))
    assert isinstance(terms.internal, Combined)
    assert terms.max_density == terms.internal.max_density == 4.0
    r = torch.tensor([0.3, 2.0], dtype=torch.float64)
    torch.testing.assert_close(terms.internal.e(r), r + 3 * r.sqrt())
    assert sort_terms(0.1 * of.Congestion(4.0)).max_density == 4.0


def test_one_energy_is_its_own_sum():
    assert combine([]) is None
    same = of.PowerEntropy(2.0)
    assert combine([(1.0, same)]) is same


def test_a_negative_factor_has_no_proximal_map():
    with pytest.raises(ValueError, match=r"^-2 \* PowerEntropy\(3\) is concave"):
        combine([(-2.0, of.PowerEntropy(3.0))])


def test_a_factor_of_zero_drops_the_term():
    terms = sort_terms(0 * of.PowerEntropy(2.0) + 0 * V + 0 * of.Congestion(1.0))
    assert terms.internal is None
    assert terms.potentials == ()
    assert terms.max_density == torch.inf


def test_sums_and_their_parts_have_the_same_terms():
    F = V + of.Entropy()
    terms = sort_terms(2 * (F + W) + -1 * F)
    assert [c for c, _ in terms.potentials] == [2.0, -1.0]
    assert terms.temperature == 1.0


def test_a_negative_internal_energy_is_refused():
    with pytest.raises(ValueError, match=r"-1 \* PowerEntropy\(2\) is concave: .* pos"):
        sort_terms(V + -1 * of.PowerEntropy(2.0))


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_too_fast_a_diffusion_is_refused_in_its_dimension(factor):
    F = V + factor * of.PowerEntropy(0.3) + of.Congestion(2.0)
    sort_terms(F)
    sort_terms(F, dim=2)
    with pytest.raises(
        ValueError, match=r"at most \(d - 2\)/d = 0.333333 in dimension"
    ):
        sort_terms(F, dim=3)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e12])
def test_fast_diffusion_is_told_in_any_unit(unit):
    fast = sort_terms(unit * of.PowerEntropy(0.8))
    assert fast.is_fast
    for slow in (of.Internal(torch.log), of.PowerEntropy(1.2), of.Congestion(2.0)):
        assert not sort_terms(unit * slow).is_fast


class Composite(of.Functional):
    """E|x|^2, with the terms of a multiple of it."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def value(self, mu):
        return mu.expectation(lambda x: x.square().sum(-1))

    def terms(self):
        V = of.Potential(lambda x: x.square().sum(-1))
        return ((self.factor / 2, V), (self.factor / 2, V))


STARTS = {
    "particles": of.Particles(torch.tensor([[1.0], [3.0]], dtype=torch.float64)),
    "single": of.Particles(torch.tensor([[1.0], [3.0]])),
    "quantiles": of.Quantiles(torch.linspace(-1, 2, 9, dtype=torch.float64)),
    "cells": of.GridDensity.from_function(
        lambda x: (-(x - 0.5).square().sum(-1)).exp(), -4, 4, 60, dtype=torch.float64
    ),
}


@pytest.mark.parametrize("mu", STARTS.values(), ids=STARTS.keys())
@pytest.mark.parametrize("wrap", [lambda F: F, lambda F: 2 * F, lambda F: F + 3 * F])
def test_terms_that_do_not_sum_to_the_functional_are_refused(mu, wrap):
    run = of.flow(wrap(Composite()), mu, of.JKO(), dt=0.01, steps=1)
    assert run.converged
    for factor in (2.0, 1.01):
        with pytest.raises(ValueError, match=r"terms of Composite sum to .* its value"):
            of.flow(wrap(Composite(factor)), mu, of.JKO(), dt=0.01, steps=1)


@pytest.mark.parametrize("noisy", ["value", "terms"])
@pytest.mark.parametrize("wrap", [lambda F: F, lambda F: 2 * F, lambda F: F + 3 * F])
def test_terms_of_a_random_value_raise_no_false_alarm(noisy, wrap):
    generator = torch.Generator().manual_seed(0)

    def draw(x):  # a minibatch of one sample
        return (1 + torch.randn((), generator=generator)) * x.square().sum(-1)

    class Noisy(Composite):
        def value(self, mu):
            return mu.expectation(draw) if noisy == "value" else super().value(mu)

        def terms(self):
            return ((1.0, of.Potential(draw)),) if noisy == "terms" else super().terms()

    mu = STARTS["single"]
    of.JKO().init(wrap(Noisy()), mu)
    of.JKO().init(wrap(Composite()), mu)
    with pytest.raises(ValueError, match=r"terms of Composite sum to .* its value"):
        of.JKO().init(wrap(Composite(1.01)), mu)


def test_terms_of_a_class_are_tried_once_a_flow():
    asked: list[None] = []

    class Counting(Composite):
        def value(self, mu):
            asked.append(None)
            return super().value(mu)

        terms = Composite.terms  # a class with a value of its own inherits none

    F, mu = Counting(), STARTS["quantiles"]
    counts = []
    for steps in (1, 3):
        asked.clear()
        assert of.flow(F, mu, of.JKO(), dt=0.01, steps=steps, record={}).converged
        counts.append(len(asked))
    assert counts[0] <= counts[1] <= counts[0] + 4  # at most the energies of each step
