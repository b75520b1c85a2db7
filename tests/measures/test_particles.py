"""Weighted particles: the inherited laws, and what Diracs add to them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import otflow as of
from otflow.testing import ExchangeableContract
from otflow.testing.capabilities import interaction, potential
from otflow.testing.measure import nonlinear
from tests import clouds
from tests.clouds import normal
from tests.differences import derivative, gradient_field


class ParticlesContract(ExchangeableContract):
    capabilities = frozenset({"mass_gradient", "diffuse", "reweight", "sample"})

    def permuted(self, mu, order):
        return of.Particles(mu.points[order], mu.weights[order])


class TestUniform(ParticlesContract):
    def make(self, dtype=torch.float64):
        return clouds.uniform(6, 3, dtype=dtype)


class TestWeighted(ParticlesContract):
    def make(self, dtype=torch.float64):
        return clouds.weighted(8, 2, dtype=dtype)


class TestDegenerate(ParticlesContract):
    """Coincident atoms and atoms of no mass obey the same laws."""

    def make(self, dtype=torch.float64):
        return clouds.degenerate(dtype=dtype)


class TestOneAtom(ParticlesContract):
    def make(self, dtype=torch.float64):
        return of.Particles(torch.tensor([[0.4]], dtype=dtype))


VALUES = [potential, interaction, nonlinear]


# Construction -------------------------------------------------------------------------


def test_uniform_weights_are_known_as_such():
    x = normal(5, 2)
    assert of.Particles(x).is_uniform
    assert of.Particles(x, torch.full((5,), 0.2, dtype=x.dtype)).is_uniform
    assert not clouds.weighted().is_uniform
    assert of.Particles(x).push(x, 1.0).is_uniform
    assert not of.Particles(x).reweight(x[:, 0], 1.0).is_uniform


def test_a_given_dtype_is_kept_for_tensors_and_arrays():
    for dtype in (torch.float32, torch.float64):
        x = normal(4, 2, dtype=dtype)
        assert of.Particles(x).dtype == dtype
        assert of.Particles(x.numpy()).dtype == dtype
    assert torch.equal(of.Particles(x.numpy()).points, of.Particles(x).points)


def test_the_caller_s_memory_is_copied():
    x, w = normal(4, 2), torch.full((4,), 0.25, dtype=torch.float64)
    array = x.numpy().copy()
    measures = [of.Particles(x, w), of.Particles(array, w.numpy())]
    expected = x.clone()
    x += 1
    w.zero_()
    array += 1
    for mu in measures:
        assert torch.equal(mu.points, expected)
        assert float(mu.weights.sum()) == 1


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T.contiguous().T,
        lambda x: torch.cat([x, x])[: len(x)],
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: x[:1].expand(len(x), -1),
        lambda x: np.asfortranarray(x.numpy()),
        lambda x: x.numpy()[::-1],
    ],
    ids=["transposed", "sliced", "strided", "expanded", "fortran", "reversed"],
)
def test_a_view_is_the_same_as_its_contiguous_copy(view):
    x = view(normal(6, 2))
    copy = x.copy(order="C") if isinstance(x, np.ndarray) else x.contiguous().clone()
    mu, nu = of.Particles(x), of.Particles(copy)
    assert torch.equal(mu.points, nu.points)
    for value in VALUES:
        for left, right in zip(
            mu.value_and_position_gradient(value),
            nu.value_and_position_gradient(value),
            strict=True,
        ):
            assert torch.equal(left, right)


def test_a_read_only_array_is_accepted():
    x = normal(3, 2).numpy()
    x.setflags(write=False)
    assert of.Particles(x).n == 3


def test_an_array_of_the_other_byte_order_is_accepted():
    x = normal(3, 2).numpy()
    swapped = x.astype(x.dtype.newbyteorder())
    assert torch.equal(of.Particles(swapped).points, of.Particles(x).points)


def test_points_that_require_gradients_keep_their_link_and_detach_cuts_it():
    x = normal(3, 2).requires_grad_()
    mu = of.Particles(2 * x, torch.softmax(x[:, 0], 0))
    found = (mu.points, mu.weights, mu.position_gradient(potential))
    assert all(tensor.requires_grad for tensor in found)
    nu = mu.detach()
    clouds.assert_plain(nu.points, nu.weights, nu.position_gradient(potential))
    assert nu.points.data_ptr() == mu.points.data_ptr()  # no copy
    assert nu.detach() is nu
    assert x.grad is None


def test_normalize_divides_by_the_sum():
    masses = np.array([1.0, 2.0, 5.0])
    mu = of.Particles(normal(3, 1), masses, normalize=True)
    assert mu.weights.tolist() == [0.125, 0.25, 0.625]


# Derivatives --------------------------------------------------------------------------


def test_the_gradient_carries_one_over_the_weight():
    # Forgetting 1/w moves particles by 1/n of what they should.
    mu = of.Particles(normal(200, 2))
    gradient = mu.position_gradient(lambda nu: nu.expectation(lambda x: x.sum(-1)))
    torch.testing.assert_close(gradient, torch.ones_like(gradient))


@pytest.mark.parametrize("make", [clouds.uniform, clouds.weighted, clouds.degenerate])
@pytest.mark.parametrize("value", VALUES)
def test_first_variation_at_probes_is_the_derivative_towards_diracs(make, value):
    mu = make()
    probes = normal(3, 2, seed=8)
    found = mu.mass_gradient(value, probes)
    assert found.shape == (3,)
    offset = mu.weights @ mu.mass_gradient(value)
    for probe, rate in zip(probes, found, strict=True):

        def mixture(eps, probe=probe):
            points = torch.cat([mu.points, probe[None]])
            weights = torch.cat([(1 - eps) * mu.weights, mu.weights.new_tensor([eps])])
            return value(
                mu.with_free_atoms(points, weights)
            )  # eps < 0 is no measure, but is fine

        expected = derivative(mixture)
        torch.testing.assert_close(rate - offset, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("make", [clouds.uniform, clouds.weighted, clouds.degenerate])
@pytest.mark.parametrize("value", VALUES)
def test_position_gradient_is_the_gradient_of_the_first_variation(make, value):
    mu = make()
    found = mu.position_gradient(value)
    expected = gradient_field(lambda x: mu.mass_gradient(value, x), mu.points)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("value", VALUES)
def test_atoms_without_mass_change_nothing(value):
    mu = clouds.degenerate()
    keep = mu.weights > 0
    nu = of.Particles(mu.points[keep], mu.weights[keep])
    f, gradient = mu.value_and_position_gradient(value)
    g, kept = nu.value_and_position_gradient(value)
    torch.testing.assert_close(f, g, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(gradient[keep], kept, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("value", VALUES)
def test_coincident_atoms_are_one_atom(value):
    x, w = normal(4, 2), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    twice = [0, 1, 1, 2, 3]
    split = w[twice]
    split[1:3] *= 0.5
    f, gradient = of.Particles(x, w).value_and_position_gradient(value)
    g, found = of.Particles(x[twice], split).value_and_position_gradient(value)
    torch.testing.assert_close(f, g, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(found, gradient[twice], rtol=1e-12, atol=1e-13)


def test_a_kernel_with_a_kink_is_differentiated_at_an_atom_without_mass():
    # The second derivatives of |z| at 0 are infinite; they must not reach the result.
    mu = clouds.degenerate()
    empty = mu.weights == 0
    x, w = mu.points, mu.weights
    z = x[empty][:, None] - x[None]
    distance = z.norm(dim=-1, keepdim=True)
    unit = torch.where(distance > 0, z / distance.clamp(min=1e-300), 0.0)
    expected = (w[:, None] * unit).sum(1)
    for kernel in (lambda z: z.norm(dim=-1), lambda z: -of.kernels.Energy()(z)):
        gradient = mu.position_gradient(lambda nu, W=kernel: nu.interaction(W))
        torch.testing.assert_close(gradient[empty], expected)


# Expectation and interaction ----------------------------------------------------------


def test_expectation_of_scalars_vectors_and_matrices():
    mu = clouds.weighted()
    x, w = mu.points, mu.weights
    torch.testing.assert_close(mu.expectation(lambda x: x[:, 0]), (w * x[:, 0]).sum())
    torch.testing.assert_close(mu.expectation(lambda x: x), w @ x)
    second = mu.expectation(lambda x: x[:, :, None] * x[:, None, :])
    torch.testing.assert_close(second, torch.einsum("i,ij,ik->jk", w, x, x))


def test_interaction_counts_pairs_with_one_half():
    mu = clouds.weighted(5, 2)
    x, w = mu.points, mu.weights
    W = lambda z: (z[..., 0] + z.square().sum(-1)).exp()
    matrix = w[:, None] * w * W(x[:, None] - x)
    torch.testing.assert_close(mu.interaction(W), 0.5 * matrix.sum())
    off = 0.5 * (matrix.sum() - matrix.diagonal().sum())
    left_out = of.kernels.Function(W, singular=True)
    torch.testing.assert_close(mu.interaction(left_out), off)
    with pytest.warns(DeprecationWarning, match="singular=True") as caught:
        torch.testing.assert_close(mu.interaction(W, diagonal=False), off)
    assert caught[0].filename == __file__


# Moves --------------------------------------------------------------------------------


def test_a_moved_measure_holds_what_it_is_made_of_and_nothing_else():
    mu = of.Particles(torch.zeros(3, 2))
    moved = mu.push(torch.ones(3, 2), 1.0)
    assert set(vars(moved)) == set(vars(mu))
    law = of.Gaussian(torch.zeros(1), torch.eye(1))
    there = law.displacement_to(law)
    assert set(vars(law.push(there, 1.0))) == set(vars(law))


def test_push_moves_each_atom_and_shares_the_weights():
    mu = clouds.weighted()
    v = normal(*mu.points.shape, seed=9)
    moved = mu.push(v, -0.5)
    assert torch.equal(moved.points, mu.points - 0.5 * v)
    assert moved.weights is mu.weights


def test_diffuse_has_the_variance_asked_for():
    mu = of.Particles(torch.zeros(40_000, 2, dtype=torch.float64))
    x = mu.diffuse(0.3, torch.Generator().manual_seed(0)).points
    covariance = x.T @ x / mu.n
    deviation = 5 * 0.3 * math.sqrt(2 / mu.n)
    expected = 0.3 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(covariance, expected, rtol=0, atol=deviation)


def test_reweight_keeps_empty_atoms_empty_and_survives_huge_rates():
    mu = clouds.degenerate()
    rate = 1e6 * normal(mu.n, seed=2)
    nu = mu.reweight(rate, 1.0)
    assert bool((nu.weights[mu.weights == 0] == 0).all())
    assert float(nu.weights.sum()) == 1
    assert bool(torch.isfinite(nu.position_gradient(interaction)).all())


def test_samples_are_atoms_in_proportion_to_their_mass():
    mu = clouds.degenerate()
    draws = mu.sample(20_000, torch.Generator().manual_seed(0))
    where = (draws[:, None] == mu.points[None]).all(-1)
    assert bool(where.any(1).all())
    found = where.double().mean(0)
    # Coincident atoms are hit together.
    expected = mu.weights.clone()
    expected[0] = expected[1] = mu.weights[0] + mu.weights[1]
    expected[5] = mu.weights[3]
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("mass", [1e-20, 1e-36, 1e-38, 1e-40, 1e-44, 1e-45, 0.0])
def test_no_mass_is_too_small_for_its_velocity(mass):
    """Products with a denormal mass have lost digits that no division brings back."""
    mu = of.Particles(torch.tensor([[2.0], [3.0]]), torch.tensor([mass, 1.0]))
    F = of.Potential(lambda x: 0.1 * x.square().sum(-1))
    G = F + of.Interaction(lambda z: 0.5 * z.square().sum(-1))
    slope = torch.tensor([[-0.4], [-0.6]])
    torch.testing.assert_close(F.velocity(mu), slope, rtol=1e-6, atol=0)
    pull = torch.tensor([[1.0], [0.0]])
    torch.testing.assert_close(G.velocity(mu), slope + pull, rtol=1e-6, atol=1e-7)
