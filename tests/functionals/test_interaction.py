"""Interaction energies."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing import FunctionalContract, clouds
from otflow.testing.clouds import normal
from tests import exact


class TestGaussianKernel(FunctionalContract):
    def make(self, dtype=torch.float64):
        return of.Interaction(of.kernels.Gaussian(0.9))


class TestQuadraticKernel(FunctionalContract):
    dim = 3

    def make(self, dtype=torch.float64):
        return of.Interaction(of.kernels.Quadratic())


class TestPowerLaw(FunctionalContract):
    dim = 1

    def make(self, dtype=torch.float64):
        return of.Interaction(of.kernels.PowerLaw(4, 2))


class TestFunction(FunctionalContract):
    def make(self, dtype=torch.float64):
        return of.Interaction(lambda z: z.square().sum(-1).cosh(), modulus=0.0)


class TestOddPart(FunctionalContract):
    """An odd part of W cancels in the energy, and so in all derivatives."""

    def make(self, dtype=torch.float64):
        return of.Interaction(lambda z: z[..., 0].sin() + z.square().sum(-1))


class Singular(FunctionalContract):
    """Atoms that coincide have infinite energy: the laws hold where they do not."""

    def measures(self):
        empty = of.Particles(
            normal(5, self.dim, seed=3),
            torch.tensor([0.3, 0.0, 0.2, 0.5, 0.0], dtype=torch.float64),
        )
        return [self.measure(), clouds.uniform(6, self.dim), empty]


class TestLog(Singular):
    def make(self, dtype=torch.float64):
        return of.Interaction(of.kernels.Log())


class TestRiesz(Singular):
    dim = 3

    def make(self, dtype=torch.float64):
        return of.Interaction(of.kernels.Riesz(1.0))


class TestDyson(Singular):
    def make(self, dtype=torch.float64):
        return exact.dyson()


class TestEnergyKernel(Singular):
    """Finite, but kinked where atoms coincide."""

    def make(self, dtype=torch.float64):
        return of.Interaction(of.kernels.Energy())


@pytest.mark.parametrize(
    "kernel",
    [of.kernels.Log(), of.kernels.Riesz(1.0), of.kernels.PowerLaw(2, 0)],
    ids=repr,
)
def test_coincident_atoms_of_a_singular_kernel_are_an_error_not_a_number(kernel):
    mu = of.Particles(torch.zeros(2, 2, dtype=torch.float64))
    with pytest.raises(of.errors.NonFinite, match=r"value is inf.*not finite"):
        of.Interaction(kernel).velocity(mu)


def test_a_kink_exerts_no_force_on_coincident_atoms():
    mu = of.Particles(torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64))
    expected = torch.tensor([[-1.0], [-1.0], [2.0]], dtype=torch.float64) / 3
    for W in (of.kernels.Energy(), lambda z: -z.norm(dim=-1)):
        torch.testing.assert_close(of.Interaction(W).velocity(mu), expected)


def test_the_first_variation_of_an_even_kernel_is_the_convolution():
    mu, x = clouds.weighted(), normal(4, 2, seed=5)
    W = lambda z: (-z.square().sum(-1)).exp()
    expected = W(x[:, None] - mu.points[None]) @ mu.weights
    torch.testing.assert_close(of.Interaction(W).first_variation(mu, x), expected)


def test_a_rigid_translation_is_free_so_the_modulus_is_at_most_zero():
    assert of.Interaction(of.kernels.Quadratic()).modulus(2) == 0
    assert of.Interaction(of.kernels.Gaussian(0.5)).modulus(2) == -4
    assert of.Interaction(of.kernels.Log()).modulus(2) is None
    assert of.Interaction(lambda z: z.sum(-1)).modulus(2) is None
    W = of.kernels.Gaussian(0.5)
    assert of.Interaction(W, modulus=-5).modulus(2) == -5


def test_its_repr_names_the_kernel():
    assert repr(of.Interaction(of.kernels.Log())) == "Interaction(Log())"

    def pull(z):
        return z.square().sum(-1)

    assert repr(of.Interaction(pull)) == "Interaction(pull)"


@pytest.mark.parametrize("bad", [None, 3.0, "gaussian"])
def test_it_refuses_what_is_no_function(bad):
    with pytest.raises(TypeError, match=r"^W must be a function \(\.\.\., d\)"):
        of.Interaction(bad)


def test_a_kernel_s_class_is_not_a_kernel():
    with pytest.raises(TypeError, match=r"^W is the class Log; write Log\(\)"):
        of.Interaction(of.kernels.Log)


# Atoms of mass zero -------------------------------------------------------------------

KERNELS = {
    "gaussian": of.kernels.Gaussian(0.9),
    "log": of.kernels.Log(),
    "riesz": of.kernels.Riesz(1.0),
    "energy": of.kernels.Energy(),
    "power law": of.kernels.PowerLaw(4, 1),
    "a function": lambda z: (-z.square().sum(-1)).exp(),
    "an odd part": lambda z: (z.square().sum(-1) + 0.7 * z[..., 0]).sin(),
}


def with_probes(count, n=60, d=3, seed=0):
    """Return weighted atoms, of which some scattered ones have no mass."""
    w = normal(n + count, seed=seed + 1).exp()
    w[:: (n + count) // count][:count] = 0
    return of.Particles(normal(n + count, d, seed=seed), w, normalize=True)


@pytest.mark.parametrize("factor", [1, -2.5])
@pytest.mark.parametrize("W", KERNELS.values(), ids=KERNELS)
def test_probes_of_mass_zero_follow_the_explicit_field(W, factor):
    mu = with_probes(9)
    x, w = mu.points, mu.weights
    F = factor * of.Interaction(W)
    z = (x[:, None] - x)[~torch.eye(len(x), dtype=torch.bool)].requires_grad_()
    both = 0.5 * (W(z) + W(-z)).sum()
    (slope,) = torch.autograd.grad(both, z)
    slope = slope.reshape(len(x), len(x) - 1, -1)
    others = torch.stack([torch.cat([w[:i], w[i + 1 :]]) for i in range(len(x))])
    expected = -factor * (others[:, :, None] * slope).sum(1)
    value, velocity = F.value_and_velocity(mu)
    torch.testing.assert_close(velocity, expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(value, F.value(mu), rtol=1e-13, atol=0)
    # What a probe feels is the slope of the first variation there.
    h = 1e-4
    for i in (w == 0).nonzero()[:3, 0]:
        for e in torch.eye(3, dtype=x.dtype):
            ends = torch.stack([x[i] + h * e, x[i] - h * e])
            up, down = F.first_variation(mu, ends)
            assert float(-velocity[i] @ e) == pytest.approx(
                float(up - down) / (2 * h), rel=1e-5, abs=1e-6
            )


def test_probes_cost_no_more_than_pairs_with_them():
    # Ten probes beside 500 atoms add 4 % of the pairs: (500 + 2 x 10) / 500.
    pairs = [0]

    def W(z):
        pairs[0] += z[..., 0].numel()
        return (-z.square().sum(-1)).exp()

    counts = []
    for mu in (clouds.weighted(500, 2), with_probes(10, 500, 2)):
        pairs[0] = 0
        of.Interaction(W).velocity(mu)
        counts.append(pairs[0])
    assert counts[1] <= 1.1 * counts[0]


def test_a_probe_on_an_atom_of_a_singular_kernel_is_an_error():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    mu = of.Particles(x, torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))
    for W in (of.kernels.Log(), of.kernels.Riesz(1.0)):
        with pytest.raises(of.errors.NonFinite):
            of.Interaction(W).velocity(mu)
