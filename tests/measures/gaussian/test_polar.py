"""Interactions of a Gaussian law under kernels that are kinked at 0."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.integrate import quad
from scipy.special import ellipe

import otflow as of
from otflow.measures.gaussian.polar import polar_nodes
from otflow.proximal.gaussian.exactness import integrates_exactly

F64 = torch.float64


def moment(dim, p):
    r"""Return :math:`E|z|^p` of the standard law."""
    return 2 ** (p / 2) * math.gamma((dim + p) / 2) / math.gamma(dim / 2)


def law(dim, s=1.0, dtype=F64):
    return of.Gaussian(
        torch.zeros(dim, dtype=dtype), s * s * torch.eye(dim, dtype=dtype)
    )


def distance(z):
    return z.norm(dim=-1)


@pytest.mark.parametrize("per_axis", [2, 7, 32, 64, 65, 300])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_powers_of_the_distance_are_exact(dim, per_axis):
    if per_axis == 300 and dim == 3:
        per_axis = 80
    z, w = polar_nodes(dim, per_axis)
    white = (z.T * w) @ z
    torch.testing.assert_close(white, torch.eye(dim, dtype=F64), rtol=0, atol=1e-13)
    for p in range(min(2 * per_axis, 12)):
        found = float(w @ z.norm(dim=1).pow(p))
        assert found == pytest.approx(moment(dim, p), rel=1e-11)


@pytest.mark.parametrize("per_axis", [64, 65, 100])
@pytest.mark.parametrize("dim", [1, 2])
def test_more_radii_lose_no_degree(dim, per_axis):
    # A high power has its mass far out: E z^100 near |z| = 10.
    z, w = polar_nodes(dim, per_axis)
    for p in (40, 60, 100, 126):
        exact = math.prod(range(1, p, 2))
        assert float(w @ z[:, 0].pow(p)) == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize("nodes", [66, 100])
def test_a_step_is_exact_only_up_to_the_degree_of_the_polar_rule(nodes):
    mu = of.Gaussian(torch.zeros(1).double(), torch.eye(1).double(), nodes=nodes)
    for p, known in ((60, True), (126, True), (130, False)):
        W = of.kernels.Function(lambda z, p=p: z[..., 0].pow(p))
        assert integrates_exactly(of.Interaction(W), mu) == (known and p <= mu.degree)


@pytest.mark.parametrize("per_axis", [4, 12])
def test_polynomials_in_space_are_exact(per_axis):
    z, w = polar_nodes(3, per_axis)
    for powers in itertools.product((0, 2, 4), repeat=3):
        if sum(powers) < 2 * per_axis:
            exact = math.prod(math.prod(range(1, p, 2)) for p in powers)
            found = w @ z.pow(torch.tensor(powers)).prod(1)
            assert float(found) == pytest.approx(exact, rel=1e-12)
    mixed = w @ (z[:, 0] * z[:, 1].pow(3)) if per_axis > 2 else 0.0
    assert abs(float(mixed)) < 1e-13


@pytest.mark.parametrize("s", [1e-3, 1.0, 40.0])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_mean_distance_of_two_points(dim, s):
    # x - y has the deviation 2^(1/2) s along each axis; on the line E|x - y| is
    # 2 s / pi^(1/2).
    exact = 0.5 * math.sqrt(2) * s * moment(dim, 1)
    mu = law(dim, s)
    assert float(mu.interaction(distance)) == pytest.approx(exact, rel=1e-13)
    energy = float(mu.interaction(of.kernels.Energy()))
    assert energy == pytest.approx(-exact, rel=1e-13)
    # The energy is linear in s: the gradient by the factor is energy / (s d).
    slope = of.Interaction(distance).velocity(mu)[1:]
    expected = -exact / (s * dim) * torch.eye(dim, dtype=F64)
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.2, 0.1])
@pytest.mark.parametrize("turn", [0.0, 0.7])
def test_the_mean_distance_under_two_variances(turn, ratio):
    c, s = math.cos(turn), math.sin(turn)
    axes = torch.tensor([[c, -s], [s, c]], dtype=F64)
    squares = torch.tensor([1.0, ratio**2], dtype=F64)
    mu = of.Gaussian(torch.zeros(2, dtype=F64), axes @ squares.diag() @ axes.T)
    # E|z| with deviations 1 and b is (2 / pi)^(1/2) E(1 - b^2), the complete elliptic
    # integral of the second kind.
    exact = 0.5 * math.sqrt(2) * math.sqrt(2 / math.pi) * ellipe(1 - ratio**2)
    tolerance = 1e-12 if ratio > 0.3 else 1e-6
    assert float(mu.interaction(distance)) == pytest.approx(exact, rel=tolerance)


KERNELS = {
    "|z|^(3/2)": (lambda z: z.norm(dim=-1) ** 1.5, lambda r: r**1.5, 1e-6),
    "|z|^3": (lambda z: z.norm(dim=-1) ** 3, lambda r: r**3, 1e-12),
    "a power law": (
        of.kernels.PowerLaw(3, 1),
        lambda r: r**3 / 3 - r,
        1e-11,
    ),
    "Laplace": (
        lambda z: (-3 * z.norm(dim=-1)).exp(),
        lambda r: math.exp(-3 * r),
        1e-6,
    ),
    "a cone": (
        lambda z: (z.square().sum(-1) + 0.01).sqrt(),
        lambda r: math.sqrt(r * r + 0.01),
        1e-4,
    ),
    "smooth": (
        lambda z: z.square().sum(-1).div(8).cos(),
        lambda r: math.cos(r * r / 8),
        1e-8,
    ),
}


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("name", KERNELS)
def test_radial_kernels_agree_with_an_adaptive_rule(name, dim):
    W, profile, tolerance = KERNELS[name]

    def density(r):
        return r ** (dim - 1) * math.exp(-r * r / 4)

    above = quad(lambda r: density(r) * profile(r), 0, 25, limit=500, epsabs=1e-14)[0]
    mean = above / quad(density, 0, 25, limit=500, epsabs=1e-14)[0]
    found = float(law(dim).interaction(W))
    assert found == pytest.approx(0.5 * mean, rel=tolerance)


def test_float32_comes_back_in_kind():
    mu = law(2, dtype=torch.float32)
    energy = mu.interaction(distance)
    assert energy.dtype == torch.float32
    assert float(energy) == pytest.approx(0.5 * math.sqrt(2) * moment(2, 1), rel=1e-6)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_kink_away_from_0_is_said(dim):
    def ring(z):
        return (z.norm(dim=-1) - 1).relu()

    with pytest.warns(of.errors.KernelWarning, match="a kink or a jump"):
        law(dim).interaction(ring)


def test_a_potential_across_a_kink_is_said():
    mu, x = law(1), torch.tensor([[0.3]], dtype=F64)
    exact = -(
        2 * math.exp(-0.045) / math.sqrt(2 * math.pi)
        + 0.3 * math.erf(0.3 / math.sqrt(2))
    )
    with pytest.warns(of.errors.KernelWarning, match="a kink or a jump"):
        mu.convolve(of.kernels.Energy(), x)
    found = mu.refined(400).convolve(of.kernels.Energy(), x)
    assert float(found) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("dim", [1, 2])
def test_a_step_under_the_distance_is_the_exact_one(dim):
    # F = c s with c = E|x - y| / 2 at s = 1, plus d s^2 / 2, minus d log s: the step in
    # s minimises dt F + d (s - 1)^2 / 2.
    dt, c = 0.3, 0.5 * math.sqrt(2) * moment(dim, 1)
    F = (
        of.Interaction(distance)
        + of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
        + of.Entropy()
    )
    run = of.flow(F, law(dim), of.JKO(), dt=dt, steps=1)
    # d s - d + dt (c + d s - d / s) = 0
    b = dt * c / dim - 1
    s = (-b + math.sqrt(b * b + 4 * (1 + dt) * dt)) / (2 * (1 + dt))
    assert run.converged
    expected = s * torch.eye(dim, dtype=F64)
    torch.testing.assert_close(run.final.covariance, expected @ expected)
