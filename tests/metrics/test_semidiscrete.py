"""Semi-discrete transport against closed forms, other libraries and its own laws."""

from __future__ import annotations

import importlib

import numpy as np
import ot
import pytest
import torch

import otflow as of
from otflow.metrics import semidiscrete_plan, wasserstein2_squared
from otflow.metrics.cell_means import means_of_maximum
from otflow.metrics.crossings import StepDensity, integrals
from otflow.metrics.laguerre import diagram
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative

F64 = torch.float64


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=F64)


def grid(shape, lower=0.0, upper=1.0, seed=0, kind="plain"):
    rho = draw(*shape, seed=seed) + 0.05
    if kind == "holes":
        rho = rho * (draw(*shape, seed=seed + 1) < 0.3)
    if kind == "islands":
        rho = torch.zeros(shape, dtype=F64)
        rho[tuple(slice(0, n // 3) for n in shape)] = 1.0
        rho[tuple(slice(-(n // 4), None) for n in shape)] = 2.0
    return of.GridDensity(rho, lower, upper, walls=True, normalize=True)


def atoms(n, d, seed=0, *, weighted=True):
    w = draw(n, seed=seed + 7) + 0.1 if weighted else torch.ones(n, dtype=F64)
    return of.Particles(draw(n, d, seed=seed + 3), w, normalize=True)


def exact(rho, mu):
    """Return a plan that has no tolerance, after a check that it says so."""
    plan = semidiscrete_plan(rho, mu, tolerance=0.0)
    assert plan.converged
    assert plan.residual < 1e-11
    assert plan.bracket.width < 1e-12 * max(1.0, plan.bracket.upper)
    return plan


def fine_atoms(rho, parts):
    """Return atoms at the centres of parts^d cells of each cell."""
    d = rho.dim
    masses = rho.weights.reshape(rho.box.shape)
    for k in range(d):
        masses = masses.repeat_interleave(parts, k)
    box = of.measures.Box.of(
        rho.box.lower, rho.box.upper, tuple(parts * n for n in rho.box.shape)
    )
    return box.centres(masses), masses.reshape(-1) / masses.sum()


# Closed forms -------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_cube_and_the_centres_of_its_parts(d):
    for m in (1, 2, 3):
        axis = (torch.arange(m, dtype=F64) + 0.5) / m
        y = torch.stack(torch.meshgrid(*[axis] * d, indexing="ij"), -1).reshape(-1, d)
        for cells in (1, 5):
            rho = grid((cells,) * d)
            rho = rho.with_weights(torch.full_like(rho.weights, 1 / rho.n))
            plan = exact(rho, y)
            want = d / (12 * m * m)
            assert float(plan.cost) == pytest.approx(want, rel=1e-13)
            assert want in plan.bracket
            torch.testing.assert_close(plan.barycentres, y, rtol=1e-12, atol=1e-12)


def test_two_atoms_beside_a_square_split_it_by_their_masses():
    rho = grid((7, 4))
    rho = rho.with_weights(torch.full_like(rho.weights, 1 / 28))
    y = torch.tensor([[-3.0, 0.5], [9.0, 0.5]], dtype=F64)
    plan = exact(rho, of.Particles(y, torch.tensor([0.3, 0.7], dtype=F64)))
    x = torch.tensor([[0.299, 0.1], [0.301, 0.9], [0.5, 0.5]], dtype=F64)
    assert plan.assign(x).tolist() == [0, 1, 1]
    torch.testing.assert_close(plan.transport(x), y[[0, 1, 1]])
    # int_0^.3 (x + 3)^2 dx + int_.3^1 (9 - x)^2 dx + 1/12
    want = (3.3**3 - 27) / 3 + (8.7**3 - 512) / 3 + 1 / 12
    assert float(plan.cost) == pytest.approx(want, rel=1e-13)
    # On the border of both cells the potentials agree.
    gap = (0.3 + 3) ** 2 - (9 - 0.3) ** 2
    assert float(plan.g[0] - plan.g[1]) == pytest.approx(gap, rel=1e-12)


def test_one_atom_is_the_second_moment():
    rho = grid((5, 6, 4), -1.0, 2.0)
    y = torch.tensor([[100.0, -7.0, 0.2]], dtype=F64)
    apart = (rho.points - y).square().sum(1) + sum(h * h for h in rho.box.spacing) / 12
    assert float(exact(rho, y).cost) == pytest.approx(float(rho.weights @ apart))


# The line -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["grid", "quantiles"])
def test_on_the_line_it_is_the_monotone_map(kind):
    rho = grid((9,), -1.0, 2.0, kind="holes")
    if kind == "quantiles":
        rho = of.Quantiles(normal(8, seed=2).exp().cumsum(0), normalize=False)
    mu = of.Particles(normal(5, 1, seed=4), draw(5, seed=5) + 0.1, normalize=True)
    plan = exact(rho, mu)
    torch.testing.assert_close(plan.cost, wasserstein2_squared(mu, rho))
    assert float(plan.cost) in plan.bracket
    x, mass = (
        fine_atoms(rho, 20000)
        if kind == "grid"
        else (
            (rho.edges[:-1, None] + draw(1, 40000) * rho.edges.diff()[:, None]).reshape(
                -1, 1
            ),
            (rho.weights[:, None] / 40000).expand(-1, 40000).reshape(-1),
        )
    )
    cell = plan.assign(x)
    found = torch.zeros(5, dtype=F64).index_add(0, cell, mass)
    tolerance = {"rtol": 0, "atol": 1e-4 if kind == "grid" else 2e-2}
    torch.testing.assert_close(found, mu.weights, **tolerance)
    dual = mass @ plan.potential(x) + mu.weights @ plan.g
    torch.testing.assert_close(dual, plan.cost, rtol=1e-2, atol=0)


def test_planes_and_space_agree_with_the_line():
    """A density and atoms that do not depend on the other axes but by a shift."""
    one = grid((11,), -1.0, 2.0)
    mu = of.Particles(draw(6, 1, seed=4), draw(6, seed=5) + 0.1, normalize=True)
    line = exact(one, mu)
    for more in (1, 2):
        density = one.weights.reshape(-1, *[1] * more).expand(-1, *[3] * more)
        rho = of.GridDensity(
            density.clone(),
            [-1.0] + [0.0] * more,
            [2.0] + [1.0] * more,
            walls=True,
            normalize=True,
        )
        y = torch.cat([mu.points, torch.full((6, more), 0.7, dtype=F64)], 1)
        plan = exact(rho, of.Particles(y, mu.weights))
        want = line.cost + more * (1 / 12 + 0.2**2)
        torch.testing.assert_close(plan.cost, want, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            plan.g - plan.g.mean(), line.g - line.g.mean(), rtol=1e-9, atol=1e-11
        )
        torch.testing.assert_close(
            plan.barycentres[:, :1], line.barycentres, rtol=1e-9, atol=1e-11
        )


# Other libraries and refinements ------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "holes", "islands"])
@pytest.mark.parametrize(("shape", "n"), [((14, 9), 17), ((5, 6, 4), 8)])
def test_atoms_in_ever_finer_cells_approach_it(shape, n, kind):
    rho, mu = grid(shape, -1.0, 1.5, kind=kind), atoms(n, len(shape))
    plan = exact(rho, mu)
    h2 = sum(h * h for h in rho.box.spacing)
    errors = []
    for parts in (1, 2) if len(shape) == 3 else (1, 2, 4):
        fine = of.Particles(*fine_atoms(rho, parts), normalize=True)
        value = float(wasserstein2_squared(fine, mu))
        # A plan of the atoms spreads each over its cell: it costs h^2/12 more.
        assert float(plan.cost) <= value + h2 / (12 * parts**2) + 1e-12
        errors.append(abs(value + h2 / (12 * parts**2) - float(plan.cost)))
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.slow
def test_the_potential_is_that_of_the_averaged_gradient_of_pot():
    rho = grid((1, 1))
    y, b = draw(8, 2, seed=3), torch.full((8,), 1 / 8, dtype=F64)
    np.random.seed(0)  # noqa: NPY002 - POT draws from the global generator
    g = ot.semidiscrete.solve_semidiscrete(
        y.numpy(), "unif", b.numpy(), max_iter=20000, batch_size=64
    )
    plan, found = exact(rho, y), torch.from_numpy(np.asarray(g))
    apart = (found - found.mean()) - (plan.g - plan.g.mean())
    assert float(apart.abs().max()) < 0.05 * float(plan.g.std())


@pytest.mark.parametrize("d", [2, 3])
def test_two_ways_to_integrate_agree(d):
    """By fluxes through walls, and by simplices in each cell: they share no code."""
    shape = (13, 8) if d == 2 else (4, 6, 5)
    rho = grid(shape, -0.5, 0.5, kind="holes")
    y, shift = draw(15, d) - 0.5, 0.02 * draw(15, seed=2)
    w = 0.5 * y.square().sum(1) + shift
    spacing = torch.tensor(rho.box.spacing, dtype=F64)
    density = StepDensity(
        torch.full((d,), -0.5, dtype=F64), spacing, rho.weights.reshape(shape)
    )
    cells = integrals(diagram(y, w, density.lower, density.upper), density, 15)
    assert float(cells.masses.min()) >= -1e-15
    assert float(cells.masses.sum()) == pytest.approx(1, abs=1e-14)
    torch.testing.assert_close(cells.moments.sum(0), rho.weights @ rho.points)
    by_walls = (y * cells.moments).sum() - w @ cells.masses
    by_simplices = rho.weights @ means_of_maximum(y, w, density)
    torch.testing.assert_close(by_walls, by_simplices, rtol=0, atol=1e-15)
    x, mass = fine_atoms(rho, 40 if d == 2 else 16)
    highest = (x @ y.T - w).argmax(1)
    masses = torch.zeros(15, dtype=F64).index_add(0, highest, mass)
    torch.testing.assert_close(masses, cells.masses, rtol=0, atol=2e-4)


# The bracket --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("kind", ["plain", "holes", "islands"])
def test_a_loose_tolerance_gives_a_true_bracket(d, kind):
    rho = grid((9,) * d if d == 2 else (5, 4, 6), kind=kind)
    mu = atoms(25, d)
    mu = of.Particles(mu.points.square() - 0.3, mu.weights)
    value, widths = float(exact(rho, mu).cost), []
    for tolerance in (0.5, 0.1, 1e-2, 1e-4, 1e-8):
        plan = semidiscrete_plan(rho, mu, tolerance=tolerance)
        assert plan.converged
        assert value in plan.bracket
        assert plan.bracket.relative <= tolerance
        assert plan.residual <= tolerance
        widths.append(plan.bracket.width)
    assert widths[0] > 1e-6  # the bracket of an unfinished plan is tested too
    assert widths[-1] <= 1e-8


def test_a_thousand_atoms_in_a_picture():
    rho, y = grid((256, 256)), draw(1000, 2, seed=4)
    plan = semidiscrete_plan(rho, y, tolerance=1e-6)
    assert plan.converged
    assert plan.bracket.relative <= 1e-6
    torch.testing.assert_close(
        (plan.masses[:, None] * plan.barycentres).sum(0),
        rho.weights @ rho.points,
        rtol=0,
        atol=1e-13,
    )


def test_masses_of_all_sizes_and_atoms_on_nodes_and_centres():
    rho = grid((8, 8))
    for seed, y in enumerate((rho.points, rho.points - 0.5 / 8)):
        w = 10.0 ** (-6 * draw(64, seed=seed))
        plan = exact(rho, of.Particles(y, w, normalize=True))
        assert float((plan.masses / w * w.sum() - 1).abs().max()) < 1e-4


@pytest.mark.parametrize(("seed", "decades"), [(0, 5), (5, 5), (13, 15)])
def test_barycentres_of_the_lightest_cells_lie_in_the_box(seed, decades):
    masses = 10 ** (-decades * draw(3, 4, 4, seed=seed))
    rho = of.GridDensity(masses, 0, (3, 4, 4), walls=True, normalize=True)
    y = torch.unique((5 * draw(20, 3, seed=seed + 1)).floor(), dim=0)
    b = 10 ** (-12 * draw(len(y), seed=seed + 2))
    plan = semidiscrete_plan(rho, of.Particles(y, b, normalize=True))
    full = plan.masses > 0
    low, high = (getattr(plan.barycentres[full], z)(0) for z in ("amin", "amax"))
    assert (low >= -1e-14).all()
    assert (high <= torch.tensor([3.0, 4.0, 4.0]) + 1e-14).all()
    assert torch.equal(plan.barycentres[~full], y[~full])


@pytest.mark.slow
def test_an_unfinished_plan_says_so(monkeypatch):
    solver = importlib.import_module("otflow.metrics.cell_heights")
    rho, mu = grid((16, 16), kind="islands"), atoms(30, 2)
    value, merged = (float(exact(rho, m).cost) for m in (mu, mu.points))
    monkeypatch.setattr(solver, "STEPS", 1)
    with pytest.warns(of.errors.NotConvergedWarning, match=r"plan\.bracket holds both"):
        plan = semidiscrete_plan(rho, mu)
    assert not plan.converged
    assert plan.residual > 1e-6
    assert value in plan.bracket
    close = torch.cat([mu.points, mu.points + 1e-13])
    with pytest.warns(of.errors.NotConvergedWarning):
        plan = semidiscrete_plan(rho, close)
    assert not plan.converged
    # Each pair in one place is 1e-13 away; the bracket is true for both.
    assert plan.bracket.lower - 1e-12 <= merged <= plan.bracket.upper + 1e-12


# Laws ---------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3])
def test_moved_scaled_and_permuted_measures(d):
    shape = {1: (11,), 2: (7, 9), 3: (4, 3, 5)}[d]
    rho, mu = grid(shape, kind="holes"), atoms(10, d)
    plan = exact(rho, mu)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    turned = exact(rho, of.Particles(mu.points[order], mu.weights[order]))
    torch.testing.assert_close(turned.cost, plan.cost, rtol=1e-12, atol=0)
    torch.testing.assert_close(turned.g, plan.g[order], rtol=1e-9, atol=1e-10)
    for scale in (2.0**-300, 1e-9, 1e7):
        big = of.GridDensity(
            rho.weights.reshape(shape), 0.0, scale, walls=True, normalize=True
        )
        other = exact_in(big, of.Particles(mu.points * scale, mu.weights), scale)
        ratio = float(other.cost) / float(plan.cost) / scale / scale
        assert ratio == pytest.approx(1, rel=1e-11)
    far = torch.full((d,), 1e8, dtype=F64)
    moved = semidiscrete_plan(rho, of.Particles(mu.points + far, mu.weights))
    cross = 2 * far @ (mu.weights @ mu.points - rho.weights @ rho.points)
    assert moved.converged
    want = float(plan.cost + far @ far + cross)
    assert float(moved.cost) == pytest.approx(want, rel=1e-12)
    # The map is that of the atoms before the move.
    torch.testing.assert_close(moved.barycentres, plan.barycentres, rtol=0, atol=1e-6)
    x = draw(200, d, seed=8)
    assert float((moved.assign(x) == plan.assign(x)).double().mean()) > 0.99


def exact_in(rho, mu, unit):
    plan = semidiscrete_plan(rho, mu, tolerance=0.0)
    assert plan.converged
    assert plan.bracket.width <= 1e-12 * unit * unit
    return plan


def test_potentials_prove_the_bound_and_cells_are_theirs():
    rho, mu = grid((6, 7), -1.0, 1.0), atoms(12, 2)
    plan = exact(rho, mu)
    x = 2 * draw(500, 2, seed=9) - 1
    table = (x[:, None] - mu.points).square().sum(2) - plan.g
    assert torch.equal(plan.assign(x), table.argmin(1))
    torch.testing.assert_close(plan.potential(x), table.amin(1))
    assert float(mu.weights @ plan.g) == pytest.approx(0.5 * float(plan.cost))
    # The planes of the Brenier potential have the same cells.
    y = mu.points - mu.points[0]
    planes = (x - plan.centre) @ y.T - plan.heights
    assert torch.equal(planes.argmax(1), table.argmin(1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "holes"])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_gradients_in_points_weights_and_masses(d, kind):
    shape = {1: (9,), 2: (5, 6), 3: (3, 4, 3)}[d]
    rho, mu = grid(shape, -1.0, 1.5, kind=kind), atoms(7, d)
    tensors = mu.points, mu.weights, rho.weights

    def value(y, b, m):
        plan = semidiscrete_plan(
            rho.with_free_weights(m), mu.with_free_atoms(y, b), tolerance=0.0
        )
        return plan.cost

    leaves = [t.clone().requires_grad_() for t in tensors]
    grads = torch.autograd.grad(value(*leaves), leaves)
    for k, (tensor, grad) in enumerate(zip(tensors, grads, strict=True)):
        u = normal(*tensor.shape, seed=30 + k)
        if k:
            u = tensor * (u - tensor @ u)

        def along(t, k=k, u=u):
            moved = list(tensors)
            moved[k] = moved[k] + t * u
            return value(*moved)

        wanted = float(derivative(along, h=1e-4))
        assert abs(wanted) > 1e-4
        assert float((grad * u).sum()) == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    # dW/dy_j = 2 (b_j y_j - b_j barycentre_j), and the mean of f where mass is missing.
    plan = exact(rho, mu)
    want = 2 * mu.weights[:, None] * (mu.points - plan.barycentres)
    torch.testing.assert_close(grads[0], want, rtol=1e-9, atol=1e-11)
    if kind == "plain" and d < 3:
        x, _ = fine_atoms(rho, 60)
        own = rho.box.cell_of(x)
        means = torch.zeros_like(rho.weights).index_add(0, own, plan.potential(x))
        means = means / (60**d)
        want = means - rho.weights @ means
        torch.testing.assert_close(grads[2], want, rtol=0, atol=1e-3)


def test_a_second_derivative_raises_on_the_plane():
    rho = grid((5, 5))
    y = draw(4, 2).requires_grad_()
    (slope,) = torch.autograd.grad(semidiscrete_plan(rho, y).cost, y, create_graph=True)
    with pytest.raises(of.errors.Unsupported, match="differentiate once"):
        slope.square().sum().backward()


def test_single_precision_keeps_its_dtype():
    rho, y = grid((8, 8)), draw(6, 2)
    single = of.GridDensity(rho.grid.float(), 0, 1, walls=True, normalize=True)
    plan = semidiscrete_plan(single, y.float())
    names = "atoms", "g", "heights", "centre", "masses", "barycentres", "cost"
    assert all(getattr(plan, name).dtype == torch.float32 for name in names)
    assert plan.converged
    torch.testing.assert_close(
        plan.cost.double(), exact(rho, y).cost, rtol=1e-5, atol=0
    )
    assert plan.bracket.relative < 1e-9  # it is that of the numbers in float32
