"""Where a slope is not that of the values, the values count along a geodesic."""

import pytest
import torch
from torch.nn import functional

import otflow as of
from otflow.analysis import displacement_convexity

F64 = torch.float64

# Functions whose slope by torch is not that of their values, and a false modulus.
MISLEADING = {
    "floor": (lambda x: (5 * x).floor(), 0.0),
    "round": (lambda x: (3 * x).round(), 0.0),
    "ceiling": (lambda x: x.ceil(), 0.0),
    "sign": (torch.sign, 0.0),
    "comparison": (lambda x: (x > 0.123).to(x), 0.0),
    "detached power": (lambda x: x.square() - x.detach() ** 4, 2.0),
    "detached wave": (lambda x: x.square() + (5 * x).sin().detach(), 2.0),
}
# Functions of true moduli, kinks and round-off among them.
HONEST = {
    "square": (lambda x: x.square(), 2.0),
    "far square": (lambda x: 1e6 + x.square(), 2.0),
    "narrow": (lambda x: x.square() + torch.exp(-(50 * (x - 0.2)).square()), None),
    "kink": (torch.abs, 0.0),
    "softplus": (lambda x: functional.softplus(30 * x), 0.0),
    "quartic": (lambda x: x**4, 0.0),
    "cancelled": (lambda x: (x + 1e5).square() - 1e10 - 2e5 * x, 1.9),
}


def ends(seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(4, 1, generator=generator, dtype=F64) - 1
    return of.Particles(a), of.Particles(a.flip(0) + 2.0 + 0.1 * seed)


def potential(V, modulus):
    return of.Potential(lambda x: V(x).sum(-1), modulus=modulus)


@pytest.mark.slow
@pytest.mark.parametrize("name", MISLEADING)
def test_values_refute_a_modulus_that_slopes_hide(name):
    F = potential(*MISLEADING[name])
    reports = [displacement_convexity(F, *ends(seed)) for seed in range(3)]
    assert any(report.violates_declared for report in reports)


@pytest.mark.slow
@pytest.mark.parametrize("name", HONEST)
def test_values_refute_no_true_modulus(name):
    V, modulus = HONEST[name]
    for seed in range(3):
        report = displacement_convexity(potential(V, modulus), *ends(seed))
        if modulus is not None:
            assert not report.violates_declared, report
        # The minimum is the least that derivatives or their means found.
        every = torch.cat([report.curvature, report.between]).nan_to_num(torch.inf)
        assert report.minimum <= float(every.min()) + 1e-6
