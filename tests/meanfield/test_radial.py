"""Isotropic Gaussians: the closed forms, and networks with all their weights."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

import otflow as of
from otflow.testing.clouds import normal
from tests.marks import slow

F64 = torch.float64
Ramp, RadialRisk = of.meanfield.Ramp, of.meanfield.RadialRisk
RAMPS = [Ramp(), Ramp(0.0, 1.0, 0.0, 1.0), Ramp(1.0, -2.0, -0.7, 0.4)]
SCALES = (0.0, 0.1, 0.3, 0.9, 1.7, 6.0)


def rule(F: Any) -> Any:
    """Return the lengths of the inputs of a risk, and their probabilities."""
    return F.Phi.scales, F.R.masses


def pieces(ramp, end, density, s):
    """Return E ramp(s Z) by quadrature between the kinks, |Z| < end."""
    cuts = {
        -end,
        end,
        *(t / s for t in (ramp.left, ramp.right) if s and -end < t / s < end),
    }

    def value(z):
        return float(ramp(torch.tensor(s * z, dtype=F64))) * density(z)

    parts = (
        integrate.quad(value, a, b, epsabs=1e-13) for a, b in pairwise(sorted(cuts))
    )
    return sum(part[0] for part in parts)


@pytest.mark.parametrize("ramp", RAMPS)
def test_the_mean_of_the_unit_is_that_of_quadrature(ramp):
    F = RadialRisk(0.0, ramp)
    for s in SCALES:
        means = F.Phi(torch.tensor([[s], [-s]], dtype=F64))
        wanted = pieces(ramp, 12.0, stats.norm.pdf, s)
        assert float((means - wanted).abs().max()) < 1e-12


@pytest.mark.parametrize("dim", [20, 40, 1000])
def test_the_mean_over_directions_is_that_of_quadrature(dim):
    """The rule over the angles, at the lengths of the rule over lengths."""
    F, ramp = RadialRisk(0.0, dim=dim), Ramp()
    log_scale = special.gammaln(dim / 2) - special.gammaln((dim - 1) / 2)
    scale = math.exp(log_scale) / math.sqrt(math.pi)
    at = rule(F)[0][:3]
    for r in (0.3 / at[1], 0.6 / at[1], 3 / at[1]):
        means = F.Phi(torch.tensor([[r]], dtype=F64))[0, :3]
        for mean, length in zip(means, at, strict=True):
            s = r * length
            cuts = [0.0, *(math.acos(t / s) for t in (1.5, 0.5) if t < s), math.pi]

            def value(t, s=s):
                z = torch.tensor(s * math.cos(t), dtype=F64)
                return scale * float(ramp(z)) * math.sin(t) ** (dim - 2)

            wanted = sum(
                integrate.quad(value, a, b, epsabs=1e-13, points=[math.pi / 2])[0]
                for a, b in pairwise(cuts)
            )
            assert abs(float(mean) - wanted) < 1e-9


@pytest.mark.parametrize("dim", [20, 200])
def test_lengths_are_those_of_gaussian_inputs(dim):
    F = RadialRisk(0.4, dim=dim)
    scales, masses = rule(F)
    half = len(scales) // 2
    squares, masses = np.square(scales[half:]) / 0.6**2, 2 * np.array(masses[half:])
    np.testing.assert_allclose(masses.sum(), 1, rtol=1e-12)
    for k in (1, 2, 3):
        moment = np.prod(dim + 2.0 * np.arange(k))
        np.testing.assert_allclose(masses @ squares**k, moment, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [20, *slow(40)])
def test_it_is_the_risk_of_many_neurons_in_all_directions(dim):
    """Networks whose neurons fill the directions, on sampled inputs."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(4000, dim, dtype=F64, generator=g)
    w = w / w.norm(dim=1, keepdim=True)
    lengths = torch.linspace(0.5, 2.0, 4000, dtype=F64)[:, None] / math.sqrt(dim / 3)
    F, n = RadialRisk(0.6, dim=dim), 4000
    x = torch.randn(n, dim, dtype=F64, generator=g)
    losses = [
        0.5 * (y - F.unit((1 + 0.6 * y) * x @ (lengths * w).T).mean(1)).square()
        for y in (1, -1)
    ]
    mean, error = torch.cat(losses).mean(), torch.cat(losses).std() / n**0.5
    wanted = F(of.Particles(lengths))
    # The sampled directions add a variance, of about unit's variance over 4,000.
    assert abs(float(mean - wanted)) < 4 * float(error) + 0.01 * float(wanted)


def test_many_dimensions_tend_to_the_limit():
    mu = of.Particles(normal(20, 1).abs() + 0.3)
    limit = RadialRisk(0.8)(mu)
    errors = []
    for dim in (50, 100, 200, 400):
        errors.append(float((RadialRisk(0.8, dim=dim)(mu) - limit).abs()))
    ratios = [a / b for a, b in pairwise(errors)]
    # Of order 1/d.
    assert all(1.85 < ratio < 2.15 for ratio in ratios)


def test_derivatives_are_those_of_differences():
    for F in (RadialRisk(0.8), RadialRisk(0.8, dim=40)):
        mu, h = of.Particles(normal(7, 1).abs() + 0.1), 1e-5
        v = F.velocity(mu)
        rate = (F(mu.push(v, h)) - F(mu.push(v, -h))) / (2 * h)
        torch.testing.assert_close(
            rate, -mu.weights @ v.square().sum(1), rtol=1e-7, atol=0
        )


@pytest.mark.parametrize("dim", [None, 20, 40])
def test_all_is_finite_at_lengths_of_every_size(dim):
    r = torch.tensor([0.0, 1e-300, 1e-8, 0.5, 1.0, 1e8, 1e100], dtype=F64)[:, None]
    F = RadialRisk(0.8, dim=dim)
    assert bool(F.velocity(of.Particles(r)).isfinite().all())
    single = F.velocity(of.Particles(torch.tensor([[0.0], [1e-30], [0.7], [1e6]])))
    assert single.dtype == torch.float32
    assert bool(single.isfinite().all())


def test_it_is_convex_along_mixtures():
    F = RadialRisk(0.8)
    assert F.mixture_convex
    a, b = of.Particles(normal(9, 1)), of.Particles(2 * normal(9, 1, seed=1))
    assert of.analysis.mixture_convexity(F, a, b).minimum > 0


@pytest.mark.slow
def test_stochastic_descent_follows_the_flow_of_lengths():
    """300 neurons of 40 inputs, fresh data, against the flow on the line."""
    d, N, gap = 40, 300, 0.8

    def isotropic(generator, n=400):
        sign = 2.0 * torch.randint(2, (n,), generator=generator).to(F64) - 1.0
        X = torch.randn(n, d, dtype=F64, generator=generator)
        return (1 + gap * sign)[:, None] * X, sign

    seeded = torch.Generator().manual_seed
    ramp = Ramp()
    network = of.meanfield.CustomLayer(lambda x, w: ramp(x @ w.T))
    online = of.meanfield.OnlineRisk(network, isotropic, isotropic(seeded(1), 40_000))
    w = 0.8 / math.sqrt(d) * torch.randn(N, d, dtype=F64, generator=seeded(2))
    every = {"dt": 0.005, "steps": 1000, "every": 100}
    sgd = of.schemes.Minibatch(of.ExplicitEuler())
    noisy = of.flow(online, of.Particles(w), sgd, generator=3, **every)
    lengths = of.Particles(w.norm(dim=1, keepdim=True))
    errors = {}
    for dim in (None, d):
        exact = of.flow(RadialRisk(gap, dim=dim), lengths, of.ExplicitEuler(), **every)
        risks = noisy.records["energy"] / exact.records["energy"]
        means = [
            float(a.points.norm(dim=1).mean() / b.points.mean())
            for a, b in zip(noisy.snapshots, exact.snapshots, strict=True)
        ]
        errors[dim] = (
            float((risks - 1)[1:].abs().max()),
            max(abs(m - 1) for m in means[1:]),
        )
    assert errors[None][0] < 0.04
    assert errors[None][1] < 0.015
    # With their dimension the lengths agree better, .2 % in place of 1 %.
    assert errors[d][0] < 0.02
    assert errors[d][1] < 0.004
    # The risk and the lengths have moved far.
    assert float(noisy.records["energy"][-1]) < 0.7 * float(noisy.records["energy"][0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"gap": 1.0}, "below 1"),
        ({"gap": -0.1}, "below 1"),
        ({"gap": 0.5, "dim": 2}, "at least 20"),
        ({"gap": math.nan}, "gap"),
    ],
)
def test_bad_input_raises(arguments, words):
    with pytest.raises(ValueError, match=words):
        RadialRisk(**arguments)


def test_a_ramp_that_does_not_rise_raises():
    with pytest.raises(ValueError, match="left < right"):
        Ramp(left=1.0, right=1.0)


def test_neurons_in_place_of_lengths_raise_and_their_lengths_are_the_cure():
    w = normal(5, 3)
    with pytest.raises(ValueError, match=r"w\.norm\(dim=1, keepdim=True\)"):
        RadialRisk(0.5)(of.Particles(w))
    RadialRisk(0.5)(of.Particles(w.norm(dim=1, keepdim=True)))
