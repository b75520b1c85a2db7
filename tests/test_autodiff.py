"""Sums over pairs of rows: tiles give what dense autograd gives, to third order."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import otflow as of
from otflow._autodiff import (
    check_finite,
    gradient,
    line_derivatives,
    second_gradient,
    value_gradient_product,
)
from otflow._pairs import TILE, pair_sum, tiles
from otflow._radial import TILE as RADIAL_TILE
from otflow.testing import clouds
from otflow.testing.clouds import normal

KERNELS = [
    of.kernels.Gaussian(0.8),
    of.kernels.InverseMultiquadric(0.7, power=0.4),
    of.kernels.Quadratic(),
    of.kernels.Energy(),
    of.kernels.Log(),
    of.kernels.Riesz(1.0),
    of.kernels.Riesz(0.5),
    of.kernels.PowerLaw(4, 2),
    of.kernels.PowerLaw(2, 0),
    of.kernels.PowerLaw(3, 1),
    of.kernels.PowerLaw(2.5, 0.5),
    of.kernels.PowerLaw(1, -1),
]

LAMBDAS = {
    "exponential": lambda z: (-z.square().sum(-1)).exp(),
    "odd part": lambda z: (z[..., 0] + 0.3 * z.square().sum(-1)).sin(),
    "linear": lambda z: z.sum(-1),
    "constant": lambda z: torch.ones_like(z[..., 0]),
    "norm": lambda z: z.norm(dim=-1),
}


def power(r, a):
    """Return r^a / a, log r for a = 0."""
    return r.log() if a == 0 else r**a / a


FORMULAS = {
    of.kernels.Gaussian: lambda k, r: (-(r**2) / (2 * k.sigma**2)).exp(),
    of.kernels.InverseMultiquadric: lambda k, r: (1 + (r / k.scale) ** 2) ** -k.power,
    of.kernels.Quadratic: lambda _, r: r**2 / 2,
    of.kernels.Energy: lambda _, r: -r,
    of.kernels.Log: lambda _, r: -r.log(),
    of.kernels.Riesz: lambda k, r: r**-k.p / k.p,
    of.kernels.PowerLaw: lambda k, r: power(r, k.attraction) - power(r, k.repulsion),
}


def formula(kernel, z):
    """Return W(z) as written in the kernel's docstring."""
    if isinstance(kernel, of.kernels.RadialKernel):
        return FORMULAS[type(kernel)](kernel, z.norm(dim=-1))
    return kernel(z)


def dense(kernel, x, w):
    """Return the energy off the diagonal, in one piece and by the plain formula."""
    i, j = (~torch.eye(len(x), dtype=torch.bool)).nonzero(as_tuple=True)
    return 0.5 * (w[i] * w[j] * formula(kernel, x[i] - x[j])).sum()


def tiled(kernel, x, w, *, diagonal):
    """Return what `Interaction` computes, differentiable in points and weights."""
    mu = of.Particles(torch.zeros(len(x), x.shape[1], dtype=x.dtype))
    if not isinstance(kernel, of.kernels.Kernel):
        kernel = of.kernels.Function(kernel, singular=not diagonal)
    assert kernel.singular != diagonal
    return mu.with_free_atoms(x, w).interaction(kernel)


def derivatives(f, x, w):
    """Return f, its gradients, and contracted second and third derivatives."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    u, v = normal(*x.shape, seed=21), normal(len(w), seed=22)
    p, q = normal(*x.shape, seed=23), normal(len(w), seed=24)

    def grad(value):
        return torch.autograd.grad(
            value, (x, w), create_graph=True, materialize_grads=True
        )

    value = f(x, w)
    first = grad(value)
    second = grad((first[0] * u).sum() + (first[1] * v).sum())
    third = grad((second[0] * p).sum() + (second[1] * q).sum())
    return [t.detach() for t in (value, *first, *second, *third)]


@pytest.mark.parametrize("n", [8, TILE + 40])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_kernels_to_third_order(kernel, n):
    mu = clouds.weighted(n, 3)
    found = derivatives(
        lambda x, w: tiled(kernel, x, w, diagonal=not kernel.singular),
        mu.points,
        mu.weights,
    )
    expected = derivatives(
        lambda x, w: dense(kernel, x, w) + _diagonal(kernel, w), mu.points, mu.weights
    )
    for left, right in zip(found, expected, strict=True):
        scale = float(right.abs().max()) + 1.0
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12 * scale)


def _diagonal(kernel, w):
    """Return the pairs i = j where they count."""
    at_zero = 0.0 if kernel.singular else float(kernel(torch.zeros(1)))
    return 0.5 * at_zero * w.square().sum()


# |z| has no second derivative at 0, so it does without the diagonal.
CASES = [(name, True) for name in LAMBDAS if name != "norm"]
CASES += [(name, False) for name in LAMBDAS]


@pytest.mark.parametrize("n", [8, TILE + 40])
@pytest.mark.parametrize(("name", "diagonal"), CASES)
def test_functions_of_the_user_to_third_order(name, diagonal, n):
    mu, W = clouds.weighted(n, 2), LAMBDAS[name]

    def plain(x, w):
        return 0.5 * (w[:, None] * w * W(x[:, None] - x[None])).sum()

    found = derivatives(
        lambda x, w: tiled(W, x, w, diagonal=diagonal), mu.points, mu.weights
    )
    expected = derivatives(
        plain if diagonal else lambda x, w: dense(W, x, w), mu.points, mu.weights
    )
    for left, right in zip(found, expected, strict=True):
        scale = float(right.abs().max()) + 1.0
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12 * scale)


def test_it_passes_gradcheck_and_gradgradcheck():
    mu = clouds.weighted(5, 2)
    x, w = mu.points.requires_grad_(), mu.weights.requires_grad_()
    for W in (of.kernels.Gaussian(1.0), LAMBDAS["odd part"]):
        f = lambda x, w, W=W: tiled(W, x, w, diagonal=True)
        assert torch.autograd.gradcheck(f, (x, w))
        assert torch.autograd.gradgradcheck(f, (x, w))


@pytest.mark.slow
def test_any_number_of_tensors_can_share_the_rows():
    x, a, b = normal(9, 2), normal(9, seed=1), normal(9, 3, seed=2)
    rows = tuple(t.requires_grad_() for t in (x, a, b))

    def energy(x, a, b, y, c, d, diagonal):
        # Not symmetric in the two blocks, and it sees which block it is.
        pairs = (x[:, None] - 2 * y[None]).sin().sum(-1) * a[:, None] * c.exp()
        return (pairs * (b @ d.T).square()).sum() + (3.0 if diagonal else 0.0)

    found = pair_sum(energy, *rows, tile=4)
    whole = energy(*rows, *rows, diagonal=False) + 3 * 3.0  # three diagonal tiles
    torch.testing.assert_close(found, whole)
    for left, right in zip(
        torch.autograd.grad(found, rows), torch.autograd.grad(whole, rows), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradgradcheck(
        lambda *rows: pair_sum(energy, *rows, tile=4), rows
    )


def test_it_composes_with_other_operations():
    mu = clouds.weighted(6, 2)
    W = LAMBDAS["exponential"]
    found = derivatives(
        lambda x, w: tiled(W, 2 * x.sin(), w**2, diagonal=True).exp() + x.sum(),
        mu.points,
        mu.weights,
    )
    expected = derivatives(
        lambda x, w: (dense(W, 2 * x.sin(), w**2) + 0.5 * (w**4).sum()).exp() + x.sum(),
        mu.points,
        mu.weights,
    )
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kernel", [k for k in KERNELS if not k.singular], ids=repr)
def test_coincident_points_give_finite_derivatives(kernel):
    mu = clouds.degenerate()
    found = derivatives(
        lambda x, w: tiled(kernel, x, w, diagonal=True), mu.points, mu.weights
    )
    for entry in found:
        assert bool(torch.isfinite(entry).all())


# Memory -------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.largest = max(self.largest, leaf.numel())
        return result


@pytest.mark.parametrize(
    "W",
    [of.kernels.Gaussian(1.0), of.kernels.Log(), LAMBDAS["exponential"]],
    ids=["smooth kernel", "singular kernel", "function"],
)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_memory_is_that_of_tiles_whatever_the_order(W, order):
    n, d = 1500, 3
    x, w = normal(n, d), torch.full((n,), 1 / n, dtype=torch.float64)
    direction = normal(n, d, seed=1)
    singular = isinstance(W, of.kernels.RadialKernel) and W.singular
    with Allocations() as allocations:
        x.requires_grad_(order > 0)
        value = tiled(W, x, w, diagonal=not singular)
        if order:
            (g,) = torch.autograd.grad(value, x, create_graph=order > 1)
        if order > 1:
            torch.autograd.grad((g * direction).sum(), x)
    # It looked inside, it saw no more than tiles, and that is less than n by n.
    tile = RADIAL_TILE if isinstance(W, of.kernels.RadialKernel) else TILE
    assert TILE**2 <= allocations.largest <= max(tile**2, TILE**2 * d) < n * n


def test_nothing_but_rows_is_kept_for_the_backward_pass():
    n, d = 600, 3
    x, w = normal(n, d).requires_grad_(), torch.full((n,), 1 / n, dtype=torch.float64)
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        value = tiled(LAMBDAS["exponential"], x, w, diagonal=True)
    inside = sum(size for size in kept if size > n * d)
    alive = kept[-4:]  # what the sum itself saves, last: rows and gradients
    assert sorted(alive) == [n, n, n * d, n * d]
    assert inside > 0  # graphs of tiles were recorded, and
    torch.autograd.grad(value, x)  # backward needs none of them


def test_the_record_of_allocations_sees_a_dense_array():
    x = normal(1500, 3)
    with Allocations() as allocations:
        (x[:, None] - x[None]).sum()
    assert allocations.largest == 1500 * 1500 * 3


# The small tools ----------------------------------------------------------------------


def test_tiles_cover_a_range_once():
    for n in (1, 255, 256, 257, 600):
        covered = torch.cat([torch.arange(n)[s] for s in tiles(n)])
        assert torch.equal(covered, torch.arange(n))
        assert max(s.stop - s.start for s in tiles(n)) <= TILE


def test_gradient_of_a_ground_function_row_by_row():
    x = normal(4, 3)
    torch.testing.assert_close(gradient(lambda y: y.square().sum(-1), x), 2 * x)
    zero = gradient(lambda y: torch.ones(len(y), dtype=y.dtype), x)
    assert torch.equal(zero, torch.zeros_like(x))
    clouds.assert_plain(zero, x)


def test_second_gradient_is_that_of_the_first_variation():
    x, w = normal(4, 2), torch.tensor([0.5, 0.0, 0.5, 0.0], dtype=torch.float64)
    rows = w == 0
    found = second_gradient(lambda x, w: (w @ x.pow(3).sum(-1)) ** 2, x, w, rows)
    total = w @ x.pow(3).sum(-1)
    torch.testing.assert_close(found, 2 * total * 3 * x[rows].square())
    flat = second_gradient(lambda _, w: w.square().sum(), x, w, rows)
    none = second_gradient(lambda x, w: w.sum() + 0 * x.sum(), x, w, rows)
    for zero in (flat, none):
        assert torch.equal(zero, torch.zeros(2, 2, dtype=torch.float64))
        clouds.assert_plain(zero)


def test_a_sum_that_overflows_is_no_infinite_entry():
    check_finite(torch.full((4,), 1e308, dtype=torch.float64), "x")
    with pytest.raises(of.errors.NonFinite, match=r"^x is inf, first at index \(2,\)"):
        check_finite(torch.tensor([1.0, 2.0, torch.inf, -torch.inf]), "x")


def test_a_sum_that_is_constant_in_its_rows_has_derivatives_zero():
    x = normal(5, 2).requires_grad_()
    first = torch.zeros(5, 2, dtype=torch.float64)

    def energy(x, _, diagonal):
        return torch.full((), float(len(x)), dtype=x.dtype)

    value = pair_sum(energy, x)
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    assert value.item() == 5
    assert torch.equal(grad, first)
    assert torch.equal(second, first)


# On the line, and products with the Hessian -------------------------------------------


def test_two_derivatives_of_a_ground_function_on_the_line():
    x = normal(7, 1)
    f, first, second = line_derivatives(lambda x: x.sin().sum(-1), x)
    for found, expected in zip(
        (f, first, second), (x.sin(), x.cos(), -x.sin()), strict=True
    ):
        torch.testing.assert_close(found, expected[:, 0])
        assert not found.requires_grad
    for flat in (lambda x: 3 * x[:, 0], lambda x: torch.ones_like(x[:, 0])):
        assert float(line_derivatives(flat, x)[2].abs().max()) == 0
    with pytest.raises(of.errors.NonFinite, match="a ground function is nan"):
        line_derivatives(lambda x: (x - 9).log().sum(-1), x)


def test_products_with_a_hessian():
    matrix = normal(5, 5)
    x, v, w = normal(5, seed=1), normal(5, seed=2), normal(5, seed=3)
    f, slope, product = value_gradient_product(lambda x: (x @ matrix @ x) ** 2, x)
    symmetric, q = matrix + matrix.T, x @ matrix @ x
    torch.testing.assert_close(f, q**2)
    torch.testing.assert_close(slope, 2 * q * (symmetric @ x))
    for u in (v, w):  # the graph is kept
        expected = 2 * (symmetric @ x) * (symmetric @ x @ u) + 2 * q * (symmetric @ u)
        torch.testing.assert_close(product(u), expected)
    flat = value_gradient_product(lambda x: x.sum(), x)[2]
    assert float(flat(v).abs().max()) == 0
