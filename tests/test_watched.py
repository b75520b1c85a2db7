"""A step that did not converge is not taken for a solution in silence."""

from __future__ import annotations

import torch

import otflow as of
from otflow.proximal import Guarantee
from tests import exact
from tests.watched import Watched


def step(max_iterations):
    mu = of.Gaussian(torch.ones(1, dtype=torch.float64), torch.eye(1).double())
    F = of.Potential(lambda x: x.pow(4).sum(-1)) + of.Entropy()
    solver = of.proximal.GaussianProximal(max_gradients=max_iterations)
    return solver.solve(F, mu, 1.0).certificate


def test_a_step_that_did_not_converge_must_be_asked():
    certificate = step(1)
    assert isinstance(certificate, Watched)
    assert certificate.is_taken_for_a_solution
    assert not certificate["converged"]
    assert not certificate.is_taken_for_a_solution
    certificate = step(1)
    assert certificate["residual"] > 0
    assert certificate.is_taken_for_a_solution
    assert not certificate.certified
    assert not certificate.is_taken_for_a_solution


def test_a_step_that_converged_need_not_be_asked():
    assert not step(1000).is_taken_for_a_solution


def test_any_flag_will_do_and_no_number():
    for key in ("certified", "guarantee"):
        certificate = Watched(converged=False, guarantee=Guarantee.NONE, w2=1.0)
        assert certificate["w2"] == 1.0
        assert certificate.is_taken_for_a_solution
        certificate.get(key)
        assert not certificate.is_taken_for_a_solution


def test_steps_of_a_flow_are_left_to_the_flow():
    mu = of.Particles(torch.ones(2, 1, dtype=torch.float64))
    run = of.flow(exact.quadratic(), mu, of.JKO(), dt=0.1, steps=1)
    assert not isinstance(run.info[0], Watched)
    assert run.converged
