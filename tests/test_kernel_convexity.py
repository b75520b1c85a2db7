"""The moduli of the library, against the least eigenvalues of Hessians."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal

F64 = torch.float64
K = of.kernels
BUMP = K.Gaussian(0.7)
MULTIQUADRICS = K.InverseMultiquadric(0.6), K.InverseMultiquadric(2.0, power=4.0)
SUM = 3 * BUMP + 2 * K.Quadratic() + K.InverseMultiquadric(1.0)
WITNESS = of.MMDTo(torch.zeros(1, 2, dtype=F64), BUMP).terms()[1][1]
MEAN, COVARIANCE = torch.ones(2, dtype=F64), torch.eye(2, dtype=F64) / 3 + 0.2
LAW = of.Gaussian(MEAN, COVARIANCE)
NORMAL = torch.distributions.MultivariateNormal(MEAN, COVARIANCE)
# Functions of a point (d,), and the moduli that are claimed of them.
CLAIMS: dict[str, tuple[Any, float | None]] = {
    "Gaussian": (BUMP, BUMP.modulus),
    "wide Gaussian": (K.Gaussian(30.0), K.Gaussian(30.0).modulus),
    "multiquadric": (MULTIQUADRICS[0], MULTIQUADRICS[0].modulus),
    "steep multiquadric": (MULTIQUADRICS[1], MULTIQUADRICS[1].modulus),
    "quadratic": (K.Quadratic(), K.Quadratic().modulus),
    "sum": (SUM, SUM.modulus),
    "minus a Gaussian": (lambda z: -BUMP(z), WITNESS.modulus(2)),
    "minus the logarithm of a Gaussian": (
        lambda x: -NORMAL.log_prob(x),
        of.KL(LAW).modulus(2),
    ),
}


def eigenvalues(f, z):
    """Return the least eigenvalue of the Hessian of f at each point (n, d)."""
    hessians = [torch.autograd.functional.hessian(f, x) for x in z]
    return torch.linalg.eigvalsh(torch.stack(hessians))[:, 0]


def test_a_modulus_that_overflows_is_unknown():
    """An infinite number is no bound that arithmetic can use."""
    W = K.InverseMultiquadric(1e-75, power=1e200)
    for kernel in (W, 2 * W + BUMP):
        F = of.Interaction(kernel)
        assert kernel.modulus is None
        assert F.modulus(2) is None
        assert "overflows" in F.why(2)
    narrow = of.Gaussian(torch.zeros(1, dtype=F64), 1e-310 * torch.eye(1, dtype=F64))
    bound = of.KL(narrow).modulus(1)
    assert bound is not None
    assert 1e308 < bound < torch.inf  # the inverse of the covariance is 1e310


@pytest.mark.parametrize("name", CLAIMS)
def test_no_curvature_is_below_the_modulus_and_one_attains_it(name):
    f, modulus = CLAIMS[name]
    assert modulus is not None
    directions = normal(400, 2, seed=0)
    radii = torch.logspace(-4, 2.5 if "log" not in name else 1, 400, dtype=F64)[:, None]
    z = torch.cat(
        [
            radii * directions / directions.norm(dim=1, keepdim=True),
            1e-9 * directions[:1],
        ]
    )
    found = eigenvalues(f, z)
    slack = 1e3 * torch.finfo(F64).eps * (1 + abs(modulus))
    assert float(found.min()) >= modulus - slack
    assert float(found.min()) <= modulus + 0.02 * abs(modulus)


def test_every_kernel_with_a_modulus_is_tried():
    made = [K.Gaussian(1), K.InverseMultiquadric(1), K.Quadratic(), K.Log(), K.Energy()]
    made += [K.Riesz(1), K.PowerLaw(4, 2)]
    public = {kind for name in K.__all__ if isinstance(kind := getattr(K, name), type)}
    public -= {K.Kernel, K.PairKernel, K.RadialKernel, K.Function, K.TwoPoint}
    public -= {K.Combination, of.functionals.Curvature}
    assert public == {type(W) for W in made}
    tried = {type(W) for W, _ in CLAIMS.values()}
    assert {type(W) for W in made if W.modulus is not None} <= tried


@pytest.mark.parametrize("modulus", [-1.0, 2.0])
def test_a_kernel_of_two_points_bounds_its_energy(modulus):
    """K = (lambda/2)(|x|^2 + |y|^2) has the eigenvalue lambda in both points."""
    W = K.TwoPoint(
        lambda x, y: 0.5 * modulus * (x.square() + y.square()).sum(-1), modulus=modulus
    )
    F = of.Interaction(W)
    a, b = (of.Particles(normal(5, 2, seed=s)) for s in (1, 2))
    report = of.analysis.displacement_convexity(F, a, b)
    assert report.minimum == pytest.approx(modulus, rel=1e-9)
    assert F.modulus(2) == modulus
