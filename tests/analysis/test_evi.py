"""The evolution variational inequality: exact steps obey it, false moduli do not."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.analysis import evolution_variational_inequality
from otflow.testing.clouds import normal

F64 = torch.float64


def quadratic(lam):
    return of.Potential(lambda x: 0.5 * lam * x.square().sum(-1), modulus=lam)


def jko(F, mu, dt=0.3, steps=5):
    return of.flow(F, mu, of.JKO(), dt=dt, steps=steps)


@pytest.mark.parametrize("lam", [2.0, 0.5, -0.4])
@pytest.mark.parametrize("seed", range(4))
def test_exact_steps_of_a_quadratic_obey_it_with_the_known_slack(lam, seed):
    """The step is x / (1 + lam dt), and the slack is that of no coupling: at least 0.

    Against a nu that is reached by one common scaling, all couplings are the same and
    the slack is 0.
    """
    mu, dt = of.Particles(normal(6, 2, seed=seed)), 0.3
    run = jko(quadratic(lam), mu, dt)
    scaled = of.Particles(-0.7 * mu.points + 0.2)
    other = of.Particles(
        normal(4, 2, seed=seed + 50), normal(4, seed=9).exp(), normalize=True
    )
    for nu in (scaled, other, of.Particles(torch.zeros(1, 2, dtype=F64))):
        report = evolution_variational_inequality(quadratic(lam), run, nu)
        assert report.modulus == lam
        assert report.slack.shape == (5,)
        assert report.holds, report.slack
    # A single point: every term is a square of a length.
    point = of.Particles(torch.ones(1, 2, dtype=F64))
    run = jko(quadratic(lam), point, dt)
    report = evolution_variational_inequality(
        quadratic(lam),
        run,
        scaled_point := of.Particles(3 * torch.ones(1, 2, dtype=F64)),
    )
    torch.testing.assert_close(
        report.slack, torch.zeros(5, dtype=F64), rtol=0, atol=1e-8
    )
    assert float(scaled_point.points.sum()) == 6.0


@pytest.mark.parametrize("above", [1e-3, 0.1, 2.0])
def test_a_modulus_that_is_too_large_is_refuted(above):
    """Of a quadratic the inequality is an equality: nothing above lambda passes."""
    F, point = quadratic(1.0), of.Particles(torch.ones(1, 1, dtype=F64))
    nu = of.Particles(torch.full((1, 1), -2.0, dtype=F64))
    run = jko(F, point)
    report = evolution_variational_inequality(F, run, nu, modulus=1.0 + above)
    assert len(report.violated) == 5
    assert not report.holds


def test_a_false_declaration_is_refuted():
    """The well (x^2 - 1)^2 / 4 has the modulus -1, not 0."""

    def well(x):
        return 0.25 * (x.square() - 1).square().sum(-1)

    mu = of.Particles(torch.tensor([[0.3], [0.2]], dtype=F64))
    run = jko(of.Potential(well), mu, dt=0.2, steps=8)
    nu = of.Particles(torch.tensor([[-0.4], [-0.3]], dtype=F64))
    false, true = (of.Potential(well, modulus=m) for m in (0.0, -1.0))
    assert not evolution_variational_inequality(false, run, nu).holds
    assert evolution_variational_inequality(true, run, nu).holds


def test_interactions_and_sums_obey_it():
    F = of.Interaction(of.kernels.Gaussian(1.0)) + quadratic(1.5)
    run = jko(F, of.Particles(normal(12, 2, seed=3)), dt=0.2)
    for seed in range(5):
        nu = of.Particles(2 * normal(7, 2, seed=seed))
        assert evolution_variational_inequality(F, run, nu).holds


def test_quantiles_and_gaussians_obey_it():
    F = quadratic(1.0) + of.Entropy()
    edges = torch.linspace(-3, 4, 21, dtype=F64)
    run = jko(F, of.Quantiles(edges), dt=0.1)
    for shift in (-2.0, 0.5):
        nu = of.Quantiles(0.5 * edges + shift)
        report = evolution_variational_inequality(F, run, nu)
        assert report.holds, report.slack
    eye = torch.eye(2, dtype=F64)
    run = jko(F, of.Gaussian(torch.ones(2, dtype=F64), 4 * eye), dt=0.1)
    skew = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=F64)
    for bell in (
        of.Gaussian(torch.zeros(2, dtype=F64), eye),
        of.Gaussian(-eye[0], skew),
    ):
        report = evolution_variational_inequality(F, run, bell)
        assert report.holds, report.slack
        refuted = evolution_variational_inequality(F, run, bell, modulus=3.0)
        assert not refuted.holds


def bell(centre, width):
    return of.GridDensity.from_function(
        lambda x: (-((x - centre) / width).square().sum(-1)).exp(),
        -5.0,
        5.0,
        (120,),
        dtype=F64,
    )


def test_a_grid_obeys_it_up_to_its_bounds():
    F = quadratic(1.0) + of.Entropy()
    run = jko(F, bell(1.0, 0.7), dt=0.1, steps=3)
    for nu in (bell(0.0, 2**0.5), bell(-1.0, 0.5)):
        report = evolution_variational_inequality(F, run, nu)
        assert report.holds, report.slack
        assert not evolution_variational_inequality(F, run, nu, modulus=60.0).holds


def test_the_bound_of_a_rough_solve_is_no_refutation():
    """A step that is inexact by its bound may miss the inequality by as much."""
    F, point = quadratic(1.0), of.Particles(torch.ones(3, 1, dtype=F64))
    rough = of.JKO(of.proximal.ParticleProximal(tolerance=0.3))
    run = of.flow(F, point, rough, dt=0.3, steps=4)
    assert max(report.bound or 0.0 for report in run.info) > 1e-3
    for place in (-2.0, 0.0, 0.5, 3.0):
        nu = of.Particles(torch.full((1, 1), place, dtype=F64))
        assert evolution_variational_inequality(F, run, nu).holds


def test_what_it_cannot_judge_raises():
    mu = of.Particles(normal(3, 1, seed=0))
    F = of.Potential(lambda x: x.sin().sum(-1))
    run = jko(F, mu, dt=0.1)
    with pytest.raises(
        of.errors.Unsupported, match=r"no modulus of .* is known.*F\.why"
    ):
        evolution_variational_inequality(F, run, mu)
    with pytest.raises(of.errors.Unsupported, match="too long for the modulus"):
        evolution_variational_inequality(F, run, mu, modulus=-11.0)
    assert evolution_variational_inequality(F, run, mu, modulus=-1.0).holds
    sparse = of.flow(F, mu, of.JKO(), dt=0.1, steps=4, every=2)
    for scheme in (of.ExplicitEuler(), of.JKO(order=2), of.schemes.Minibatch(of.JKO())):
        other = of.flow(F, mu, scheme, dt=0.1, steps=2, generator=0)
        with pytest.raises(
            of.errors.Unsupported, match="step 0 is not one step of JKO"
        ):
            evolution_variational_inequality(F, other, mu, modulus=-1.0)
    with pytest.raises(ValueError, match="every=1"):
        evolution_variational_inequality(F, sparse, mu, modulus=-1.0)
    with pytest.raises(TypeError, match="nu must be"):
        evolution_variational_inequality(F, run, mu.points, modulus=-1.0)
