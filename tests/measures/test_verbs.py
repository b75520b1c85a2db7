"""Potentials of measures, entropies, mixtures: against brute force and closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import otflow as of
from otflow.testing import clouds
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative

F64 = torch.float64
SKEW = of.kernels.Function(lambda z: (0.3 * z[..., 0] - z.square().sum(-1)).exp())
KERNELS = [
    of.kernels.Gaussian(0.7),
    of.kernels.PowerLaw(4, 2),
    of.kernels.Log(),
    of.kernels.Energy(),
    SKEW,
]


def even(W, z):
    """Return the even part of a kernel, by its own values."""
    return 0.5 * (W(z) + W(-z))


# Potentials of particles --------------------------------------------------------------


@pytest.mark.parametrize("W", KERNELS, ids=repr)
@pytest.mark.parametrize("n", [1, 7, 300])
def test_the_potential_of_atoms_is_the_sum_over_them(W, n):
    mu, x = clouds.weighted(n, 2), normal(270, 2, seed=3)
    expected = even(W, x[:, None] - mu.points) @ mu.weights
    torch.testing.assert_close(mu.convolve(W, x), expected, rtol=1e-12, atol=1e-13)
    matrix = even(W, mu.points[:, None] - mu.points)
    if W.singular:
        matrix.fill_diagonal_(0.0)
    found = mu.convolve(W)
    torch.testing.assert_close(found, matrix @ mu.weights, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(0.5 * mu.weights @ found, mu.interaction(W))
    variation = of.Interaction(W).first_variation(mu, x)
    torch.testing.assert_close(variation, expected, rtol=1e-12, atol=1e-13)


def test_a_plain_function_is_wrapped_at_the_door():
    mu = clouds.weighted(5, 2)
    plain = lambda z: SKEW(z)
    torch.testing.assert_close(mu.convolve(plain), mu.convolve(SKEW))
    F = of.Interaction(plain)
    assert F.W is plain
    assert isinstance(F.kernel, of.kernels.Function)
    assert of.Interaction(of.kernels.Log()).kernel.singular
    for bad in (of.kernels.Log, 3.0):
        for ask in (mu.convolve, mu.interaction, of.Interaction):
            with pytest.raises(
                TypeError, match=r"^W (is the class|must be a function)"
            ):
                ask(bad)


def test_a_kernel_of_the_user_needs_its_values_alone():
    class Tilted(of.kernels.Kernel):
        modulus = 2.0

        def __call__(self, z):
            return z.square().sum(-1) + z[..., 0]

    mu, F = clouds.weighted(6, 2), of.Interaction(Tilted())
    matrix = (mu.points[:, None] - mu.points).square().sum(-1)
    torch.testing.assert_close(F.value(mu), 0.5 * mu.weights @ matrix @ mu.weights)
    assert F.modulus(2) == 0.0
    assert F.convexity == 2.0
    assert Tilted().key() is None


@pytest.mark.parametrize("at_probes", [False, True])
@pytest.mark.parametrize("W", [of.kernels.Gaussian(0.7), of.kernels.Log(), SKEW])
def test_the_potential_can_be_differentiated_twice_in_everything(W, at_probes):
    mu, probes = clouds.weighted(5, 2), [normal(3, 2, seed=8)] if at_probes else []
    inputs = [mu.points, mu.weights, *probes]
    inputs = [t.clone().requires_grad_() for t in inputs]

    def potential(points, weights, *probes):
        return mu.with_free_atoms(points, weights).convolve(W, *probes)

    assert torch.autograd.gradcheck(potential, inputs)
    assert torch.autograd.gradgradcheck(potential, inputs)


def test_parameters_of_a_kernel_are_differentiated():
    mu, x = clouds.weighted(6, 2), normal(4, 2, seed=1)
    scale = torch.tensor(0.8, dtype=F64, requires_grad=True)

    def kernel(s):
        return lambda z: (-s * z.square().sum(-1)).exp()

    for probes in (None, x):
        (found,) = torch.autograd.grad(mu.convolve(kernel(scale), probes).sum(), scale)
        slope = derivative(lambda t, p=probes: mu.convolve(kernel(0.8 + t), p).sum())
        torch.testing.assert_close(found, slope, rtol=1e-8, atol=1e-10)
        with torch.no_grad():
            assert not mu.convolve(kernel(scale), probes).requires_grad


def test_atoms_without_mass_are_pulled_by_the_others():
    x = normal(6, 2)
    w = torch.tensor([0.5, 0.0, 0.25, 0.0, 0.25, 0.0], dtype=F64)
    mu = of.Particles(x, w)
    for W in (of.kernels.Log(), SKEW):
        velocity = of.Interaction(W).velocity(mu)
        probes = x[1::2].clone().requires_grad_()
        field = even(W, probes[:, None] - x[::2]) @ w[::2]
        (slope,) = torch.autograd.grad(field.sum(), probes)
        torch.testing.assert_close(velocity[1::2], -slope, rtol=1e-11, atol=1e-12)


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.size = max(self.size, leaf.numel())
        return result


@pytest.mark.parametrize("graph", [False, True])
def test_memory_is_that_of_tiles(graph):
    mu, x = clouds.uniform(700, 3), normal(600, 3, seed=2).requires_grad_(graph)
    with Largest() as largest:
        found = mu.convolve(SKEW, x)
        if graph:
            (slope,) = torch.autograd.grad(found.sum(), x, create_graph=True)
            torch.autograd.grad(slope.square().sum(), x)
    assert 256**2 <= largest.size <= 3 * 256**2 < mu.n * len(x)


def test_a_probe_on_a_singular_atom_raises():
    mu = clouds.uniform(4, 2)
    with pytest.raises(of.errors.NonFinite, match=r"potential of Log\(\)"):
        mu.convolve(of.kernels.Log(), mu.points)
    assert bool(mu.convolve(of.kernels.Log()).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_dtype_is_kept_and_probes_are_checked(dtype):
    mu = clouds.weighted(5, 2, dtype=dtype)
    assert mu.convolve(SKEW, torch.zeros(3, 2, dtype=dtype)).dtype == dtype
    other = F64 if dtype == torch.float32 else torch.float32
    with pytest.raises(TypeError, match="x has dtype"):
        mu.convolve(SKEW, torch.zeros(3, 2, dtype=other))
    with pytest.raises(ValueError, match=r"x must have shape \(m, 2\)"):
        mu.convolve(SKEW, torch.zeros(3, 1, dtype=dtype))


# Of densities -------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2])
def test_the_potential_of_a_gaussian(dim):
    S = torch.diag(torch.arange(1.0, dim + 1, dtype=F64))
    mean, x = normal(dim), normal(7, dim, seed=4)
    mu = of.Gaussian(mean, S)
    sigma = 0.6
    total = S + sigma**2 * torch.eye(dim, dtype=F64)
    z = x - mean
    quadratic = (z @ torch.linalg.inv(total) * z).sum(-1)
    expected = (-0.5 * quadratic).exp() * sigma**dim / total.det().sqrt()
    found = mu.convolve(of.kernels.Gaussian(sigma), x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    # E|x - y|^2 / 2, for which the nodes are exact.
    second = 0.5 * (z.square().sum(-1) + S.trace())
    torch.testing.assert_close(mu.convolve(of.kernels.Quadratic(), x), second)
    inside = mu.convolve(of.kernels.Gaussian(sigma))
    energy = mu.interaction(of.kernels.Gaussian(sigma))
    torch.testing.assert_close(0.5 * mu.weights @ inside, energy, rtol=1e-6, atol=0)
    with pytest.raises(of.errors.Unsupported, match="Particles"):
        mu.convolve(of.kernels.Log(), x)


def test_a_kernel_between_the_nodes_of_a_gaussian_warns():
    mu = of.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
    narrow = lambda z: (-0.5 * (z / 1e-3).square().sum(-1)).exp()
    with pytest.warns(of.errors.KernelWarning, match="narrower"):
        mu.convolve(narrow, torch.zeros(1, 1, dtype=F64))


def erf_step(sigma):
    """Return the primitive of a Gaussian kernel."""
    scale = math.sqrt(0.5 * math.pi) * sigma
    return lambda z: scale * torch.erf(z / (math.sqrt(2.0) * sigma))


PRIMITIVES = [
    (of.kernels.Gaussian(0.2), erf_step(0.2)),
    (of.kernels.Gaussian(1e-3), erf_step(1e-3)),
    (of.kernels.Log(), lambda z: z - torch.xlogy(z, z.abs())),
    (of.kernels.Riesz(0.5), lambda z: 4.0 * z.sign() * z.abs().sqrt()),
    (of.kernels.Energy(), lambda z: -0.5 * z * z.abs()),
    (lambda z: -z.norm(dim=-1) + z.sum(-1), lambda z: -0.5 * z * z.abs()),
]


@pytest.mark.parametrize(("W", "primitive"), PRIMITIVES)
def test_the_potential_of_quantiles_is_that_of_the_density(W, primitive):
    mu = of.Quantiles.from_quantile(lambda u: u + 0.3 * u * u, 40, dtype=F64)
    probes = torch.linspace(0.05, 0.95, 41, dtype=F64)
    probes = torch.cat([probes, torch.tensor([-0.4, 2.0], dtype=F64), mu.edges[3:4]])
    rho, ends = mu.density(), primitive(probes[:, None] - mu.edges)
    exact = (ends[:, :-1] - ends[:, 1:]) @ rho
    found = mu.convolve(W, probes[:, None])
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
    if isinstance(W, of.kernels.Gaussian):
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-14)
    if not isinstance(W, of.kernels.Kernel):
        return
    # Its slope is the sum of the jumps of the density times W at these.
    x = probes[:5, None].clone().requires_grad_()
    (slope,) = torch.autograd.grad(mu.convolve(W, x).sum(), x)
    ends = W((x - mu.edges)[..., None]).detach()
    wanted = (ends[:, :-1] - ends[:, 1:]) @ rho
    torch.testing.assert_close(slope[:, 0], wanted, rtol=5e-3, atol=5e-3)


def test_the_potential_of_quantiles_by_smooth_kernels_is_an_expectation():
    mu = of.Quantiles(torch.tensor([0.0, 1.0, 3.0], dtype=F64))
    x = torch.tensor([[0.5], [4.0]], dtype=F64)
    W = of.kernels.Quadratic()
    expected = [float(mu.expectation(lambda y, p=p: W(p - y))) for p in x]
    assert mu.convolve(W, x).tolist() == pytest.approx(expected, rel=1e-13)
    energy = mu.interaction(of.kernels.Log())
    inside = mu.weights @ mu.convolve(of.kernels.Log())
    assert float(0.5 * inside) == pytest.approx(float(energy), abs=0.1)


@pytest.mark.parametrize("shape", [(40,), (24, 30)])
@pytest.mark.parametrize("W", [of.kernels.Gaussian(0.5), of.kernels.Log(), SKEW])
def test_probes_of_a_grid_are_between_its_centres(shape, W):
    dim = len(shape)
    mu = of.GridDensity.from_function(
        lambda x: (-4 * x.square().sum(-1)).exp(), -2, 2, shape, dtype=F64
    )
    at_cells = mu.convolve(W)
    x = 0.8 * normal(9, dim).clamp(-2, 2)
    found = mu.convolve(W, x)
    torch.testing.assert_close(mu.convolve(W, mu.points), at_cells)
    torch.testing.assert_close(found, mu.box.interpolate(at_cells, x))
    # The integral itself, to the second order of the interpolation.
    far = x + 20.0
    exact = even(W, x[:, None] - mu.points) @ mu.weights
    h = max(mu.box.spacing)
    scale = float(at_cells.abs().max())
    if not W.singular:
        assert float((found - exact).abs().max()) <= 4 * h * h * scale
    with pytest.raises(ValueError, match="outside the box"):
        mu.convolve(W, far)
    slope = derivative(lambda t: mu.convolve(W, x + t * 1e-3).sum())
    live = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mu.convolve(W, live).sum(), live)
    torch.testing.assert_close(1e-3 * gradient.sum(), slope, rtol=1e-6, atol=1e-9)


# Entropy ------------------------------------------------------------------------------


def test_the_entropy_is_that_of_the_density():
    grid = of.GridDensity.from_function(
        lambda x: (-4 * x.square().sum(-1)).exp(), -2, 2, (40,), dtype=F64
    )
    quantiles = of.Quantiles(torch.tensor([0.0, 1.0, 3.0], dtype=F64))
    for mu in (grid, quantiles):
        expected = (mu.weights * mu.density().log()).sum()
        torch.testing.assert_close(mu.entropy(), expected)
        torch.testing.assert_close(of.Entropy().value(mu), expected)
    S = torch.diag(torch.tensor([1.0, 4.0], dtype=F64))
    law = of.Gaussian(torch.zeros(2, dtype=F64), S)
    assert float(law.entropy()) == pytest.approx(-math.log(4 * math.pi) - 1, rel=1e-13)
    torch.testing.assert_close(law.entropy(), law.internal(torch.log))
    with pytest.raises(of.errors.Unsupported, match="Langevin"):
        clouds.uniform().entropy()


# Mixtures -----------------------------------------------------------------------------


def test_a_mixture_of_particles_has_the_atoms_of_both():
    mu, nu = clouds.weighted(5, 2), clouds.weighted(7, 2, seed=3)
    both = mu.mix(nu, 0.25)
    f = lambda x: (x.square().sum(-1) + x[:, 0]).sin()
    expected = 0.75 * mu.expectation(f) + 0.25 * nu.expectation(f)
    torch.testing.assert_close(both.expectation(f), expected)
    assert both.n == 12
    assert float(both.weights.sum()) == pytest.approx(1.0, abs=1e-15)
    assert mu.mix(nu, 0) is mu
    assert mu.mix(nu, 1) is nu
    # A step of conditional gradients: not uniform, though both are.
    plain = clouds.uniform(4, 2).mix(clouds.uniform(4, 2), 0.2)
    moved = of.Potential(f).velocity(plain)
    x = plain.points.clone().requires_grad_()
    (slope,) = torch.autograd.grad(f(x).sum(), x)
    torch.testing.assert_close(moved, -slope)


def test_a_mixture_keeps_both_graphs():
    x, y = (normal(3, 2, seed=s).requires_grad_() for s in (0, 1))
    both = of.Particles(x).mix(of.Particles(y), 0.4)
    both.expectation(lambda z: z[:, 0]).backward()
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(x.grad[:, 0], torch.full((3,), 0.2, dtype=F64))
    torch.testing.assert_close(y.grad[:, 0], torch.full((3,), 0.4 / 3, dtype=F64))


def test_a_mixture_on_a_grid_is_the_sum_of_the_densities():
    mu, nu = (
        of.GridDensity.from_function(
            lambda x, c=c: (-4 * (x - c).square().sum(-1)).exp(), -3, 3, 60, dtype=F64
        )
        for c in (-1, 1)
    )
    both = mu.mix(nu, 0.3)
    expected = 0.7 * mu.density() + 0.3 * nu.density()
    torch.testing.assert_close(both.density(), expected)
    w = nu.weights.clone().requires_grad_()
    live = mu.mix(nu.with_free_weights(w), 0.3).expectation(lambda x: x[:, 0])
    torch.testing.assert_close(torch.autograd.grad(live, w)[0], 0.3 * nu.points[:, 0])
    elsewhere = of.GridDensity(torch.full((10,), 0.1, dtype=F64), 0, 10, walls=True)
    with pytest.raises(ValueError, match="same grid"):
        mu.mix(elsewhere, 0.5)
    walled = of.GridDensity(
        elsewhere.grid * 10 / 9 * (torch.arange(10) > 0),
        0,
        10,
        obstacles=torch.arange(10) == 0,
        walls=True,
    )
    with pytest.raises(ValueError, match="same obstacles"):
        elsewhere.mix(walled, 0.5)


def test_what_cannot_be_mixed_says_what_to_do(generator):
    law = of.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
    quantiles = of.Quantiles(torch.tensor([0.0, 1.0, 3.0], dtype=F64))
    particles = clouds.uniform(4, 1)
    grid = of.GridDensity(torch.full((10,), 0.1, dtype=F64), 0, 10, walls=True)
    for mu, nu in itertools.product([law, quantiles, particles, grid], repeat=2):
        if type(mu) is type(nu) and mu in (particles, grid):
            continue
        with pytest.raises(of.errors.Unsupported, match=r"Particles\(mu\.sample\("):
            mu.mix(nu, 0.5)
        draws = (of.Particles(m.sample(10, generator)) for m in (mu, nu))
        assert next(draws).mix(next(draws), 0.5).n == 20
    for bad in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="share must"):
            particles.mix(particles, bad)
    with pytest.raises(TypeError, match="other must be a Measure"):
        particles.mix(particles.points, 0.5)
    with pytest.raises(TypeError, match="dtype"):
        particles.mix(of.Particles(particles.points.float()), 0.5)
    with pytest.raises(ValueError, match="shape"):
        particles.mix(clouds.uniform(4, 2), 0.5)
