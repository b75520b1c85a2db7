"""The unit of length is free: no true modulus is refuted where squares underflow."""

import pytest
import torch

import otflow as of
from otflow.analysis import displacement_convexity, falsify

F64, F32 = torch.float64, torch.float32
# Squares of lengths are 0, subnormal, or normal numbers.
SCALES = [
    *[(F64, s) for s in (1e-300, 1e-162, 1e-160, 1e-158, 1e-155, 1e-100, 1e100)],
    *[(F32, s) for s in (1e-24, 1e-22, 1e-20, 1e-18, 1e12)],
]


def half_square(x):
    return 0.5 * x.square().sum(-1)


def atoms(seed, kind, scale):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(3, 2, generator=generator, dtype=F64) * scale
    return of.Particles(points.to(kind))


@pytest.mark.parametrize(("kind", "scale"), SCALES)
def test_a_true_modulus_is_not_refuted_at_any_scale(kind, scale):
    F = of.Potential(half_square, modulus=1.0)
    for seed in range(2):
        found = falsify(F, atoms(seed, kind, scale), evaluations=40)
        assert not found.refuted, found


@pytest.mark.parametrize(("kind", "scale"), [(F64, 1e-100), (F64, 1e100), (F32, 1e-12)])
def test_a_false_one_is_refuted_at_small_and_large_scales(kind, scale):
    F = of.Potential(half_square)
    assert falsify(F, atoms(0, kind, scale), modulus=1.001, evaluations=40).refuted


def test_ends_whose_distance_underflows_do_not_coincide():
    a, b = atoms(0, F64, 1e-200), atoms(1, F64, 1e-200)
    F = of.Potential(half_square)
    with pytest.raises(ValueError, match="so close that the square"):
        displacement_convexity(F, a, b)
    with pytest.raises(ValueError, match="a and b coincide"):
        displacement_convexity(F, a, a)
