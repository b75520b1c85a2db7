"""Flows of networks of several layers: jointly, part by part, with noise, resumed."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.functionals import OfPart
from otflow.meanfield.networks import MultiLayer
from otflow.schemes import PartByPart

F64 = torch.float64
NETWORK = MultiLayer((12, 10), "tanh")
X = torch.linspace(-2, 2, 20, dtype=F64)[:, None]
F = of.meanfield.Risk(NETWORK, X, X[:, 0].sin())
LABELLED = of.JKO(of.proximal.TangentProximal())


def start():
    generator = torch.Generator().manual_seed(0)
    return NETWORK.draw(1, generator, outer=(1.0, 1.0), dtype=F64)


@pytest.mark.parametrize(
    ("scheme", "dt", "steps", "share"),
    [
        (of.ExplicitEuler(), 0.1, 30, 0.2),
        (of.ExplicitEuler(backtracking=True), 0.1, 30, 0.2),
        (of.JKO(), 0.1, 30, 0.2),
        (of.JKO(), 10.0, 3, 0.02),
        (PartByPart(of.ExplicitEuler()), 0.1, 30, 0.2),
        (PartByPart(LABELLED, in_turn=True), 10.0, 3, 0.05),
    ],
    ids=["euler", "backtracking", "jko", "long jko", "parts", "long parts"],
)
def test_a_flow_lowers_the_risk(scheme, dt, steps, share):
    energy = of.flow(F, start(), scheme, dt=dt, steps=steps).records["energy"]
    assert bool((energy.diff() < 0).all())
    assert float(energy[-1]) < share * float(energy[0])


def test_a_jko_step_solves_its_equation():
    """At the minimum the displacement is dt times the velocity there."""
    mu = start()
    nu = of.flow(F, mu, of.JKO(), dt=0.1, steps=1).final
    gap = mu.displacement_to(nu) / 0.1 - F.velocity(nu)
    size = float(mu.inner(F.velocity(mu), F.velocity(mu)))
    assert float(mu.inner(gap, gap)) < 1e-6 * size


def test_euler_part_by_part_is_euler():
    both = [
        of.flow(F, start(), scheme, dt=0.1, steps=5).final.coordinates
        for scheme in (of.ExplicitEuler(), PartByPart(of.ExplicitEuler()))
    ]
    torch.testing.assert_close(*both)


def test_one_euler_step_is_gradient_descent_with_the_rates_of_the_paper():
    """N dt for the outer layers and N^2 dt for the middle ones."""
    network, dt = MultiLayer((5, 5, 5), "tanh", bias=False), 0.1
    risk = of.meanfield.Risk(network, X, X[:, 0].sin())
    mu = network.draw(1, torch.Generator().manual_seed(0), dtype=F64)
    leaf = mu.coordinates.clone().requires_grad_()
    (slope,) = torch.autograd.grad(risk.value(mu.with_coordinates(leaf)), leaf)
    counts = ((5, 5.0), (50, 25.0), (5, 5.0))
    rates = torch.cat([torch.full((count,), rate) for count, rate in counts])
    moved = of.flow(risk, mu, of.ExplicitEuler(), dt=dt, steps=1).final
    torch.testing.assert_close(moved.coordinates, mu.coordinates - dt * rates * slope)


def test_weights_at_rest_under_noise_have_the_gibbs_law():
    """Decay and entropy of the inner weights of a network that sees no data.

    With outer weights 0 the risk is constant. Inner weights of the potential |x|^2 / 2
    and the temperature t are N(0, t / (1 - dt / 2)) under the scheme of Euler.
    """
    network, t, dt = MultiLayer((2000, 3), "tanh"), 0.5, 0.1
    risk = of.meanfield.Risk(network, X[:1], torch.ones(1, dtype=F64))
    mu = network.draw(1, torch.Generator().manual_seed(0), outer=(0.0, 0.0), dtype=F64)
    decay = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    G = OfPart("inner", decay + t * of.Entropy()) + 0.0 * risk
    run = of.flow(
        G, mu, PartByPart({"inner": of.Langevin()}), dt=dt, steps=100, generator=0
    )
    x = run.final["inner"].points
    expected = t / (1 - dt / 2)
    error = expected * (2 / x.numel()) ** 0.5
    assert abs(float(x.square().mean()) - expected) < 4 * error
    assert torch.equal(run.final["middle1"].coordinates, mu["middle1"].coordinates)


def test_units_that_help_gain_mass():
    """Birth and death of the outer units: rates are first variations."""
    mu = start()
    scheme = PartByPart({"outer": of.BirthDeath(rate=1.0)})
    run = of.flow(F, mu, scheme, dt=0.05, steps=20)
    energy = run.records["energy"]
    assert bool((energy.diff() < 0).all())
    assert not run.final["outer"].is_uniform
    assert torch.equal(run.final["outer"].points, mu["outer"].points)


def test_weight_decay_and_a_batch():
    decay = of.Potential(lambda x: x.square().sum(-1))
    network = MultiLayer((12, 10), "tanh")
    risk = of.meanfield.Risk(network, X, X[:, 0].sin(), batch_size=10)
    G = risk + 1e-4 * OfPart("inner", decay) + 1e-4 * OfPart("outer", decay)
    scheme = of.schemes.Minibatch(of.ExplicitEuler())
    energy = of.flow(G, start(), scheme, dt=0.1, steps=50, generator=0).records[
        "energy"
    ]
    assert float(energy[-1]) < 0.2 * float(energy[0])


def test_a_stopped_run_goes_on_to_the_bit(tmp_path):
    whole = of.flow(F, start(), of.ExplicitEuler(), dt=0.1, steps=10)
    half = of.flow(F, start(), of.ExplicitEuler(), dt=0.1, steps=5)
    of.save(tmp_path / "half", half.final)
    again = of.load(tmp_path / "half")
    run = of.flow(F, again, of.ExplicitEuler(), dt=0.1, steps=5)
    assert torch.equal(run.final.coordinates, whole.final.coordinates)
