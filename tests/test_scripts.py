"""The code that users will write, as the design states it; it must keep running."""

from __future__ import annotations

import torch

import otflow as of

square = lambda z: 0.5 * z.square().sum(-1)


def test_a_potential_and_interaction_under_explicit_euler():
    F = of.Potential(square) + 3.0 * of.Interaction(
        lambda z: -torch.log1p(z.square().sum(-1))
    )
    run = of.flow(
        F,
        of.Particles(torch.randn(300, 2)),
        of.ExplicitEuler(),
        dt=0.05,
        steps=200,
        every=20,
    )
    assert (run.records["energy"].diff() <= 0).all()
    assert len(run.times) == 11
    assert run.final.dtype == torch.float32
    # Repulsion wins: the particles end as a ring or disk well away from one point.
    assert float(run.final.points.square().sum(-1).mean()) > 1


def test_b_entropy_on_a_grid_by_jko():
    rho = of.GridDensity.from_function(
        lambda x: torch.exp(-8 * (x - 1).square().sum(-1)),
        lower=-4.0,
        upper=4.0,
        shape=(160,),
    )
    F = of.Potential(square) + of.Entropy()
    run = of.flow(F, rho, of.JKO(), dt=0.05, steps=20)
    assert run.final.dtype == torch.float32
    assert all(step["certified"] for step in run.info)
    # The same line with a Gaussian is exact.
    bell = of.Gaussian(torch.ones(1), torch.eye(1) / 16)
    law = of.flow(F, bell, of.JKO(), dt=0.05, steps=20).final
    mean = run.final.expectation(lambda x: x[:, 0])
    second = run.final.expectation(lambda x: x[:, 0].square())
    torch.testing.assert_close(mean, law.mean[0], rtol=0, atol=1e-3)
    variance = law.covariance[0, 0]
    torch.testing.assert_close(second - mean.square(), variance, rtol=0, atol=1e-3)


def test_d_a_functional_of_one_s_own_is_only_its_value():
    class Concentration(of.Functional):
        def value(self, mu):
            return mu.expectation(lambda x: x.square().sum(-1)) ** 2

    F, mu = Concentration(), of.Particles(torch.randn(50, 2))
    second = mu.points.square().sum(-1).mean()
    z = torch.randn(7, 2)
    torch.testing.assert_close(
        F.first_variation(mu), 2 * second * mu.points.square().sum(-1)
    )
    torch.testing.assert_close(
        F.first_variation(mu, z), 2 * second * z.square().sum(-1)
    )
    torch.testing.assert_close(F.velocity(mu), -4 * second * mu.points)
    torch.testing.assert_close(F.value(mu), second**2)


def test_a_neuron_of_one_s_own_flows_under_every_scheme():
    class Mean(of.Functional):
        def value(self, mu):
            return (mu.expectation(lambda x: x.tanh().sum(-1)) - 0.3) ** 2

    smooth, mu = Mean() + 1e-3 * of.Potential(square), of.Particles(torch.randn(60, 3))
    wfr = of.chain(of.ExplicitEuler(), of.BirthDeath(rate=5.0))
    for F, scheme in [
        (smooth, of.ExplicitEuler()),
        (smooth + 1e-4 * of.Entropy(), of.Langevin()),
        (smooth, wfr),
    ]:
        run = of.flow(
            F, mu, scheme, dt=0.1, steps=100, every=50, record={"risk": Mean()}
        )
        assert run.status == "finished"
        assert run.records["risk"].shape == (3,)
        assert (
            float(run.records["risk"][-1]) < 0.1 * float(run.records["risk"][0]) + 1e-4
        )
