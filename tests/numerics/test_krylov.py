"""Conjugate gradients, GMRES and grid Laplacians against dense solves."""

from __future__ import annotations

import pytest
import torch

from otflow.numerics.krylov import conjugate_gradients, gmres
from otflow.numerics.multigrid import GridLaplacian, solve_laplacian

F64 = torch.float64


def system(n, seed, least=0.1):
    """Return a symmetric matrix with eigenvalues from `least` to 10, and a vector."""
    g = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=F64))[0]
    values = torch.linspace(least, 10, n, dtype=F64)
    return (turn * values) @ turn.T, torch.randn(n, generator=g, dtype=F64)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("is_scaled", [False, True])
def test_conjugate_gradients_solve_and_show_each_residual(seed, is_scaled):
    A, b = system(12, seed)
    diagonal = A.diagonal() if is_scaled else torch.ones_like(b)
    sizes = []

    def seen(x, r):
        torch.testing.assert_close(r, b - A @ x, rtol=0, atol=1e-12)
        sizes.append(float(r.norm()))
        return False

    x = conjugate_gradients(
        lambda p, _: A @ p, lambda r: r / diagonal, b, 1e-13, 40, seen
    )
    torch.testing.assert_close(x, torch.linalg.solve(A, b), rtol=1e-9, atol=1e-9)
    assert 0 < len(sizes) <= 40
    assert sizes[-1] < 1e-10 * float(b.norm())


def test_conjugate_gradients_give_the_image_of_each_direction():
    """The second argument of the product is M p for the preconditioner M."""
    A, b = system(8, 0)
    weights = torch.linspace(1, 3, 8, dtype=F64)

    def times(p, image):
        torch.testing.assert_close(image, weights * p, rtol=1e-10, atol=1e-12)
        return A @ p

    conjugate_gradients(times, lambda r: r / weights, b, 1e-12, 8)


def test_conjugate_gradients_stop_when_they_are_told():
    A, b = system(12, 1)
    found = []

    def seen(x, r):
        found.append(x)
        return len(found) == 3

    x = conjugate_gradients(lambda p, _: A @ p, lambda r: r, b, 0.0, 12, seen)
    assert len(found) == 3
    assert x is found[-1]


def test_conjugate_gradients_stop_along_negative_curvature():
    A, b = system(10, 2, least=-5.0)
    x = conjugate_gradients(lambda p, _: A @ p, lambda r: r, b, 1e-12, 50)
    # The solution so far is a direction along which the quadratic model falls.
    assert float(0.5 * x @ A @ x - b @ x) <= 0
    nothing = conjugate_gradients(lambda p, _: -p, lambda r: r, b, 1e-12, 50)
    assert float(nothing.abs().max()) == 0


def test_gmres_solves_a_matrix_without_symmetry():
    A, b = system(9, 3)
    A = A + torch.triu(torch.ones_like(A), 1)
    x, residual = gmres(lambda y: A @ y, lambda r: r / A.diagonal(), b, 1e-12, 9)
    torch.testing.assert_close(x, torch.linalg.solve(A, b), rtol=1e-8, atol=1e-8)
    assert residual < 1e-10


def dense(L):
    """Return the matrix of a Laplacian, column by column."""
    n = L.rest.numel()
    columns = [
        L.apply(e.reshape(L.rest.shape)).reshape(-1) for e in torch.eye(n).to(F64)
    ]
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("shape", [(20,), (1, 15), (9, 7), (5, 4, 6)])
@pytest.mark.parametrize("power", [1, 8])
def test_a_grid_laplacian_is_solved_in_every_dimension(shape, power):
    """The weights of the faces contrast by up to 16 decades; rows of 0 stay 0."""
    g = torch.Generator().manual_seed(len(shape))
    faces = []
    for axis in range(len(shape)):
        face = tuple(n - (a == axis) for a, n in enumerate(shape))
        faces.append(torch.rand(face, generator=g, dtype=F64) ** power)
    L = GridLaplacian.of(faces, torch.rand(shape, generator=g, dtype=F64))
    inside = torch.rand(shape, generator=g) < 0.8
    L = L.inside(inside)
    rhs = torch.randn(shape, generator=g, dtype=F64) * inside
    p, iterations = solve_laplacian(L, rhs, 1e-10, 200)
    assert float(p[~inside].abs().sum()) == 0
    wanted = torch.linalg.lstsq(dense(L), rhs.reshape(-1, 1), driver="gelsd").solution
    torch.testing.assert_close(p.reshape(-1), wanted[:, 0], rtol=1e-6, atol=1e-8)
    assert iterations <= 200
    assert (iterations == 0) == (max(shape) == L.rest.numel())


def test_gmres_gives_the_same_bits_whatever_lay_in_memory_before():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(9, 9, generator=generator, dtype=F64) + 6 * torch.eye(9, dtype=F64)
    b = torch.randn(9, generator=generator, dtype=F64)
    found = set()
    for k in range(300):
        # Free memory full of small integers: what a driver that pivots would read.
        size = 1 + 7 * k % 40
        torch.randint(0, 3, (size,), generator=generator, dtype=torch.int32)
        x, _ = gmres(lambda v: A @ v, lambda r: r / 6, b, 1e-9, 9)
        found.add(x.numpy().tobytes())
    assert len(found) == 1
