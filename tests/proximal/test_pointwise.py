"""The step of a potential by its proximal map: laws, exactness, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.errors import Diverged, Unsupported
from otflow.functionals import box, l1_norm
from otflow.meanfield import PathPenalty
from otflow.proximal import ParticleProximal, PointwiseProximal
from otflow.testing.clouds import normal, weighted

F64 = torch.float64


def spring(x):
    return 1.5 * x.square().sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_absolute_values_take_one_gradient_and_are_exact(dtype):
    mu = weighted(50, 2, dtype=dtype)
    run = of.flow(2.0 * l1_norm(), mu, of.JKO(), dt=0.1, steps=5)
    assert [info.solver for info in run.info] == ["PointwiseProximal"] * 5
    assert [info.iterations for info in run.info] == [1] * 5
    assert all(info.guarantee == "exact" for info in run.info)
    exact = mu.points.sign() * (mu.points.abs() - 1.0).clamp_min(0)
    slack = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(run.final.points, exact, rtol=0, atol=slack)
    assert torch.equal(run.final.points == 0, exact == 0)


def test_the_step_is_that_of_the_descent_where_both_are_exact():
    F = of.Potential(spring, modulus=3.0, prox=lambda x, tau: x / (1 + 3 * tau))
    mu = weighted(20, 3)
    one = PointwiseProximal().solve(2 * F + F, mu, 0.2)
    other = ParticleProximal(tolerance=1e-12).solve(3 * F, mu, 0.2)
    gap = (one.measure.points - other.measure.points).abs().max()
    assert float(gap) <= 1e-9
    for word in ("energy_before", "energy_after", "w2", "decrease"):
        assert one.certificate[word] == pytest.approx(other.certificate[word], rel=1e-8)


def test_a_potential_that_is_not_convex_is_optimal_at_most_where_it_is_unique():
    mu, V = of.Particles(normal(30, 3)), PathPenalty("l1")
    known = PointwiseProximal().solve(V, mu, 0.6).certificate
    assert known.guarantee == "exact"  # 1 - 0.6 sqrt(2) > 0
    unknown = of.Potential(V.V, prox=V.prox)
    known = PointwiseProximal().solve(unknown, mu, 0.6).certificate
    assert known.guarantee == "optimal"
    assert known.bound is None
    with pytest.raises(ValueError, match="take a smaller dt"):
        PointwiseProximal().solve(V, mu, 0.8)


def test_w2_is_the_distance():
    mu = weighted(12, 2)
    result = PointwiseProximal().solve(l1_norm(), mu, 0.7)
    found = float(of.metrics.wasserstein2(mu, result.measure))
    assert result.certificate.w2 == pytest.approx(found, rel=1e-9)


def test_a_box_takes_atoms_in_from_outside():
    mu = of.Particles(normal(30, 2))
    result = PointwiseProximal().solve(box(-0.5, 0.5), mu, 0.1)
    assert torch.equal(result.measure.points, mu.points.clamp(-0.5, 0.5))
    known = result.certificate
    assert known.energy_before == math.inf
    assert known.energy_after == 0.0
    assert known.certified
    assert known.decrease is None
    assert known.to_dict()["energy_before"] == "inf"
    # A flow records the energy, which must be finite.
    with pytest.raises(
        Diverged, match="is infinite at 28 of 30 points; start where it is"
    ):
        of.flow(box(-0.5, 0.5), mu, of.JKO(), dt=0.1, steps=1)


def test_a_map_that_is_none_where_it_is_not_tried_is_not_certified():
    """Far from the points of the trials, the objective shows it."""

    def prox(x, tau):
        near = x - x.clamp(-tau, tau)
        return torch.where(x.abs() > 1e4, 2 * x, near)

    F = of.Potential(lambda x: x.abs().sum(-1), modulus=0.0, prox=prox)
    mu = of.Particles(torch.tensor([[1e5], [1.0]], dtype=F64))
    with pytest.warns(of.errors.NotConvergedWarning, match="did not converge"):
        run = of.flow(F, mu, of.JKO(), dt=0.1, steps=1)
    assert run.info[0].guarantee == "none"
    assert run.info[0]["residual"] > 0


def test_what_it_refuses():
    mu, V = of.Particles(normal(5, 2)), l1_norm()
    other = of.Potential(spring)
    for F in (other, V + other, V + box(-9.0, 9.0), -1 * V):
        with pytest.raises(Unsupported, match="one potential with a proximal map"):
            PointwiseProximal().solve(F, mu, 0.1)
        solver = of.proximal.default_solver(mu, F)
        assert type(solver) is ParticleProximal
    with pytest.raises(Unsupported, match="steps Particles, got Quantiles"):
        PointwiseProximal().solve(V, of.Quantiles(torch.linspace(0, 1, 5)), 0.1)
