"""Schemes on Gaussians: the inherited laws, and the exact law of every step."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing import SchemeContract
from otflow.testing.clouds import normal
from tests import exact

A, B = exact.spd(2, seed=3), torch.tensor([0.5, -1.0], dtype=torch.float64)
TEMPERATURE = 0.7


def gaussian(d: int = 2, seed: int = 0, dtype=torch.float64) -> of.Gaussian:
    """Return a Gaussian that does not commute with `A`."""
    mean, S = normal(d, seed=seed), exact.spd(d, seed=seed)
    return of.Gaussian(mean.to(dtype), S.to(dtype))


def fokker_planck() -> of.Functional:
    """Return V + T * Entropy."""
    return exact.quadratic_form(A, B) + TEMPERATURE * of.Entropy()


def distance(nu: of.Gaussian, law: tuple) -> float:
    """Return W2 of a Gaussian and N(mean, covariance)."""
    return float(nu.norm(nu.displacement_to(of.Gaussian(*law))))


class OnGaussians(SchemeContract):
    def problem(self, dtype=torch.float64):
        F, _ = super().problem(dtype)
        return F + 0.1 * of.Entropy(), gaussian(dtype=dtype)

    def error(self, dt):
        mu, steps = gaussian(), round(1 / dt)
        run = of.flow(fokker_planck(), mu, self.make(), dt=dt, steps=steps, every=steps)
        law = exact.fokker_planck(
            mu.mean, mu.covariance, 1.0, A=A, b=B, temperature=TEMPERATURE
        )
        return distance(run.final, law)


class TestExplicitEuler(OnGaussians):
    steps = (0.05, 0.025, 0.0125, 0.00625)

    def make(self):
        return of.ExplicitEuler()


class TestLangevin(OnGaussians):
    descends = False  # the energy recorded leaves the entropy out

    def make(self):
        return of.Langevin()


class TestJKO(OnGaussians):
    solves = True
    diverges = False

    def make(self):
        return of.JKO()


# Every step has a law in closed form --------------------------------------------------


@pytest.mark.parametrize("k", [1, 7])
def test_the_laws_of_the_schemes(k):
    mu, tau = gaussian(), 0.1
    problem = {"A": A, "b": B, "temperature": TEMPERATURE}

    def end(scheme):
        return of.flow(fokker_planck(), mu, scheme, dt=tau, steps=k).final

    law = exact.fokker_planck_euler(mu.mean, mu.covariance, tau, k, **problem)
    assert distance(end(of.ExplicitEuler()), law) < 1e-12
    law = exact.fokker_planck_jko(mu.mean, mu.covariance, tau, k, **problem)
    assert distance(end(of.JKO()), law) < 1e-12
    # Langevin: transport by I - tau A, then heat of variance 2 T tau.
    mean, S, eye = mu.mean, mu.covariance, torch.eye(2, dtype=torch.float64)
    for _ in range(k):
        shrink = eye - tau * A
        mean = mean - tau * A @ (mean - B)
        S = shrink @ S @ shrink.T + 2 * TEMPERATURE * tau * eye
    assert distance(end(of.Langevin()), (mean, 0.5 * (S + S.T))) < 1e-12


def test_langevin_records_the_energy_without_entropy():
    mu, tau = gaussian(), 0.1
    run = of.flow(fokker_planck(), mu, of.Langevin(), dt=tau, steps=2)
    rest = fokker_planck().split_entropy()[1]
    for energy, nu in zip(run.records["energy"], run.snapshots, strict=True):
        torch.testing.assert_close(energy, rest.value(nu))
    assert run.info[0]["temperature"] == TEMPERATURE


def test_heat_alone_is_exact_by_langevin_at_any_step():
    mu = gaussian(3)
    nu = of.flow(of.Entropy(), mu, of.Langevin(), dt=0.8, steps=1).final
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(nu.covariance, mu.covariance + 1.6 * eye)


def test_the_energy_falls_under_backtracking_from_a_step_too_long():
    run = of.flow(
        fokker_planck(),
        of.Gaussian(torch.zeros(2).double(), 1e-4 * torch.eye(2).double()),
        of.ExplicitEuler(backtracking=True),
        dt=10.0,
        steps=100,
    )
    assert bool((run.records["energy"].diff() <= 0).all())
    mean, S = exact.fokker_planck_rest(A, B, TEMPERATURE)
    assert distance(run.final, (mean, 0.5 * (S + S.T))) < 1e-6


def test_a_minibatch_of_the_data_moves_a_gaussian():
    # A Gaussian over neurons: any functional of expectations has its projected flow.
    X, y = normal(30, 2, seed=1), normal(30, seed=2)
    risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, y)
    mu = of.Gaussian(torch.zeros(4).double(), torch.eye(4).double(), nodes=256)
    run = of.flow(risk, mu, of.ExplicitEuler(), dt=0.2, steps=20)
    assert bool((run.records["energy"].diff() < 0).all())
    assert float(run.records["energy"][-1]) < 0.95 * float(run.records["energy"][0])
