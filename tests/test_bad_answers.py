"""Answers of user code that are no numbers, and cures that keep their promise."""

from __future__ import annotations

import pytest
import torch

import otflow as of


def test_a_record_that_is_no_tensor_is_named_at_once():
    mu, F = of.Particles(torch.ones(2, 1)), of.Potential(lambda x: x.square().sum(-1))
    for nothing in (None, "x"):
        with pytest.raises(TypeError, match="record\\['a'\\]"):
            of.flow(
                F,
                mu,
                of.ExplicitEuler(),
                dt=0.1,
                steps=1,
                record={"a": lambda _, answer=nothing: answer},
            )


def test_a_function_of_an_expectation_is_a_number():
    mu = of.Particles(torch.ones(3, 2))
    with pytest.raises(of.errors.InvalidFunctional, match="0-d"):
        of.OfExpectation(lambda m: m, lambda x: x).value(mu)


def test_the_cure_of_complex_points_keeps_their_real_part():
    z = torch.ones(2, 1, dtype=torch.complex128)
    with pytest.raises(TypeError, match=r"points\.real\.double\(\)"):
        of.Particles(z)
    assert torch.equal(of.Particles(z.real.double()).points, z.real)
