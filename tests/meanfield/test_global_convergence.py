"""Theorems 3.4 and 3.5: wide networks reach the least risk, unless signs are missing.

Students learn a ReLU teacher by the exact population risk of Gaussian inputs.
"""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing import clouds

F64 = torch.float64
PopulationRisk = of.meanfield.PopulationRisk
layers = of.meanfield.layer_dissipation


def neurons(m, d, seed, signs=None, size=1.0):
    """Return m neurons, inner weights uniform on the sphere, outer ones of one size."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(m, d, dtype=F64, generator=g)
    a = torch.randn(m, dtype=F64, generator=g).sign() if signs is None else signs
    return of.Particles(torch.cat([size * a[:, None], w / w.norm(dim=1)[:, None]], 1))


def alternating(m):
    return torch.where(torch.arange(m) % 2 == 0, 1.0, -1.0).to(F64)


def trained(F, mu, time, dt):
    steps = round(time / dt)
    return of.flow(F, mu, of.ExplicitEuler(), dt=dt, steps=steps, every=steps)


def risk_of(F, mu, time, dt):
    """Return the last risk over the first."""
    energy = trained(F, mu, time, dt).records["energy"]
    return float(energy[-1] / energy[0])


# Equation (10) by layers --------------------------------------------------------------


def test_the_parts_of_the_dissipation_sum_to_it():
    F, mu = PopulationRisk(neurons(3, 4, 0), "relu", "gaussian"), clouds.weighted(8, 5)
    outer, inner = layers(F, mu)
    torch.testing.assert_close(outer + inner, of.analysis.dissipation(F, mu))
    # The outer velocity is the first variation over a.
    slope = F.first_variation(mu) / mu.points[:, 0]
    torch.testing.assert_close(outer, mu.weights @ slope.square())


def test_each_part_is_the_decay_of_one_layer():
    F, mu = PopulationRisk(neurons(3, 4, 0), "erf", "gaussian"), clouds.weighted(8, 5)
    v, h = F.velocity(mu), 1e-5
    for k, part in enumerate(layers(F, mu)):
        alone = v.clone()
        alone[:, 1:] *= k
        alone[:, :1] *= 1 - k
        rate = (F(mu.push(alone, h)) - F(mu.push(alone, -h))) / (2 * h)
        torch.testing.assert_close(rate, -part, rtol=1e-8, atol=0)


@pytest.mark.slow
def test_a_stationary_outer_layer_is_no_minimiser_without_support():
    """One neuron stops with both parts at 0, and the residual meets others."""
    fixed = of.Particles(
        torch.tensor([[1.0, 1, 0, 0], [-1, 0, 1, 0], [1, 0, 0, 1]], dtype=F64)
    )
    F = PopulationRisk(fixed, "relu", "gaussian")
    end = trained(F, neurons(1, 3, 3, signs=torch.ones(1, dtype=F64)), 400, 0.2).final
    assert max(float(part) for part in layers(F, end)) < 1e-20
    assert float(F.first_variation(end, neurons(200, 3, 4).points).abs().max()) > 1e-2


@pytest.mark.parametrize("outputs", [3, 4])
def test_a_neuron_without_inner_weights_raises(outputs):
    with pytest.raises(ValueError, match="take outputs=2 or less"):
        layers(of.Potential(lambda x: x.sum(-1)), clouds.uniform(4, 3), outputs=outputs)


# Training -----------------------------------------------------------------------------

SIGNED = of.Particles(torch.tensor([[1.0, 1, 0, 0], [-1, 0, 1, 0]], dtype=F64))


def balance(mu):
    """Return a^2 - |w|^2, which the exact flow of homogeneous neurons keeps."""
    return mu.points[:, 0].square() - mu.points[:, 1:].square().sum(1)


def test_the_balance_of_layers_drifts_like_dt():
    F, mu = PopulationRisk(SIGNED, "relu", "gaussian"), neurons(40, 3, 0, size=1.5)
    drifts = [
        float((balance(trained(F, mu, 10, dt).final) - balance(mu)).abs().max())
        for dt in (0.1, 0.02)
    ]
    assert 4.5 < drifts[0] / drifts[1] < 5.5
    assert drifts[0] < 0.05


@pytest.mark.slow
def test_outer_weights_of_one_sign_keep_it_and_get_stuck():
    """The start has no neuron of the sign -1; |a| > |w| keeps all signs for ever."""
    F = PopulationRisk(SIGNED, "relu", "gaussian")
    ends = []
    for signs in (torch.ones(40, dtype=F64), None):
        mu = neurons(40, 3, 0, signs=signs, size=1.5)
        run = trained(F, mu, 200, 0.1)
        ends.append(float(run.records["energy"][-1]))
        assert torch.equal(run.final.points[:, 0].sign(), mu.points[:, 0].sign())
    assert ends[0] > 0.04
    assert ends[1] < 1e-4


@pytest.mark.slow
def test_narrow_students_fail_and_wider_ones_do_not():
    """Teacher of 5 neurons in 10 dimensions, 3 starts of each width."""
    F = [
        PopulationRisk(neurons(5, 10, 100 + s, alternating(5)), "relu", "gaussian")
        for s in range(4)
    ]
    ends = {
        m: [
            float(trained(F[s], neurons(m, 10, s), 1000, 1.0).records["energy"][-1])
            for s in range(4)
        ]
        for m in (5, 10, 20, 40)
    }
    assert sum(end > 5e-4 for end in ends[5]) >= 3
    assert max(end for m in (10, 20, 40) for end in ends[m]) < 1e-4


@pytest.mark.slow
def test_the_limits_in_time_and_in_width_may_be_exchanged():
    """Theorem 3.5, and a speed that does not depend on the number of neurons."""
    F = PopulationRisk(neurons(5, 10, 100, alternating(5)), "relu", "gaussian")
    table = torch.tensor(
        [
            [risk_of(F, neurons(m, 10, 1), time, 1.0) for time in (50, 200, 800)]
            for m in (40, 80, 160)
        ]
    )
    # Down the times for every width; at every time the widths are within a factor.
    assert bool((table.diff(dim=1) < 0).all())
    assert float(table[:, -1].max()) < 5e-3
    assert float((table.amax(0) / table.amin(0)).max()) < 2.5


@pytest.mark.slow
def test_the_risk_of_a_hundred_dimensions_jumps_just_above_the_width_of_the_teacher():
    """Chizat and Bach: teacher of 20 neurons, students of 10 and 18 against 25, 33."""
    F = PopulationRisk(neurons(20, 100, 100, alternating(20)), "relu", "gaussian")
    ends = {m: risk_of(F, neurons(m, 100, 1), 8000, 2.0) for m in (10, 18, 25, 33)}
    assert min(ends[10], ends[18]) > 5e-3
    assert max(ends[25], ends[33]) < 1e-4


@pytest.mark.slow
def test_fresh_data_show_the_same_jump():
    """The figure of Chizat and Bach: stochastic descent in 100 dimensions.

    Their poster shows 3.4e-2 for 18 neurons, 1.1e-5 for 25 and 1.1e-5 for 199.
    """
    d, m0, relu = 100, 20, of.meanfield.TwoLayer("relu", bias=False)
    fixed = neurons(m0, d, 100, alternating(m0))
    exact = PopulationRisk(fixed, "relu", "gaussian")

    def draw(generator, n=100):
        X = torch.randn(n, d, dtype=F64, generator=generator)
        return X, relu(fixed, X)

    test = draw(torch.Generator().manual_seed(5), 2000)
    risk = of.meanfield.OnlineRisk(relu, draw, test)
    scheme = of.schemes.Minibatch(of.ExplicitEuler())
    size = float(exact(of.Particles(torch.zeros(1, 1 + d, dtype=F64))))
    ends = {}
    for m in (3, 10, 18, 25, 33, 199):
        run = of.flow(
            risk, neurons(m, d, 1), scheme, dt=2.0, steps=8000, every=8000, generator=0
        )
        loss = float(exact(run.final))
        ends[m] = loss / size
        # The energy of the test data is that of the law, up to their sampling.
        assert abs(float(run.records["energy"][-1]) / loss - 1) < 0.3
    assert min(ends[m] for m in (3, 10, 18)) > 5e-3
    assert max(ends[m] for m in (25, 33, 199)) < 1e-3
    assert ends[25] < 1e-4


@pytest.mark.slow
def test_outside_of_the_barron_space_the_path_norm_keeps_growing():
    """Section 3.3: the root needs infinitely large neurons, a kink does not."""
    x = torch.linspace(0, 1, 101, dtype=F64)[:, None].square()
    network = of.meanfield.TwoLayer("relu")
    g = torch.Generator().manual_seed(1)
    u = torch.rand(60, dtype=F64, generator=g)
    a, s = (torch.randn(60, dtype=F64, generator=g).sign() for _ in range(2))
    start = of.Particles(torch.stack([2 * a, s, -s * u], 1))
    growth = {}
    for name, y in (("root", x[:, 0].sqrt()), ("kink", (x[:, 0] - 0.5).abs())):
        F, mu, norms = of.meanfield.Risk(network, x, y), start, []
        for time in (200, 200, 400, 800, 1600):
            mu = trained(F, mu, time, 0.2).final
            norms.append(float(of.meanfield.path_norm(network, mu)))
        growth[name] = torch.tensor(norms).diff()
    # Each time is twice the last one.
    assert bool((growth["root"] > 0.1).all())
    assert bool((growth["root"].diff() > 0).all())
    assert float(growth["kink"][-1].abs()) < 0.01


def test_the_outer_weights_are_those_of_the_network():
    X, y = neurons(20, 2, 1).points, neurons(20, 2, 2).points
    risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh", outputs=3), X, y)
    g = torch.Generator().manual_seed(0)
    mu = of.Particles(torch.randn(6, 7, dtype=F64, generator=g))
    squares = risk.velocity(mu).square().mean(0)
    for F in (risk, 1.0 * risk):
        outer, inner = layers(F, mu)
        torch.testing.assert_close(outer, squares[:3].sum())
        torch.testing.assert_close(inner, squares[3:].sum())
    with pytest.raises(ValueError, match=r"outputs = 1 outer weights.* have \[3\]"):
        layers(risk, mu, outputs=1)
    both = risk + PopulationRisk(of.Particles(X[:, :2]), "relu", "gaussian")
    with pytest.raises(ValueError, match=r"have \[3, 1\]"):
        layers(both, mu)
