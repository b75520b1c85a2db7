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


ONES = torch.ones(2)


@pytest.mark.parametrize("answer", [ONES, ONES.numpy(), [1, 0], (True,), "no", {}])
def test_a_predicate_that_gives_no_single_truth_is_refused(answer):
    mu, F = of.Particles(torch.ones(2, 1)), of.Potential(lambda x: x.square().sum(-1))
    with pytest.raises(TypeError, match=r"stop must return True or False.*\.all\(\)"):
        of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=3, stop=lambda _: answer)
    for cure in (ONES.all(), ONES.numpy().all(), True, 1, torch.ones(1)):
        run = of.flow(
            F, mu, of.ExplicitEuler(), dt=0.1, steps=3, stop=lambda _, c=cure: c
        )
        assert run.status == "stopped"


def test_a_recorded_functional_that_is_not_finite_is_named():
    mu, F = of.Particles(torch.ones(2, 1)), of.Potential(lambda x: x.square().sum(-1))
    bad = of.Potential(lambda x: x.sum(-1) * float("nan"))
    with pytest.raises(of.errors.Diverged, match=r"record\['bad'\] is not finite"):
        of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=1, record={"bad": bad})


@pytest.mark.parametrize("narrow", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scheme", [of.ExplicitEuler(), of.JKO()])
def test_a_value_of_fewer_digits_than_the_measure_is_refused(narrow, scheme):
    class Rounded(of.Functional):
        dtype = narrow

        def value(self, mu):
            energy = mu.expectation(lambda x: x.square().sum(-1)) + 100.0
            return energy.to(self.dtype)

    F, mu = Rounded(), of.Particles(torch.ones(3, 1, dtype=torch.float64))
    with pytest.raises(of.errors.InvalidFunctional, match=r"dtype=mu\.dtype"):
        of.flow(F, mu, scheme, dt=0.1, steps=1)
    F.dtype = torch.float64
    coarse = of.Particles(torch.ones(3, 1))
    for start in (mu, coarse):  # more digits than those of the measure are welcome
        assert of.flow(F, start, scheme, dt=0.1, steps=1).records["energy"][1] > 100
