"""Maps between densities: exact values, what they push, and what they prove."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import ot
import pytest
import torch
from torch import Tensor

import otflow as of
from otflow.metrics import TransportMap, transport_plan, wasserstein2_squared

F64 = torch.float64


def gaussian(d: int, seed: int, size: float = 1.0) -> of.Gaussian:
    r = torch.Generator().manual_seed(seed)
    mean = size * torch.randn(d, generator=r, dtype=F64)
    rows = size * torch.randn(d, 2 * d, generator=r, dtype=F64)
    return of.Gaussian(mean, rows @ rows.T / d)


def rough(seed: int, offset: float = 0.0) -> of.Quantiles | of.GridDensity:
    """Return quantiles of cells of any size, or a grid with an empty cell."""
    r = torch.Generator().manual_seed(seed)
    n = int(torch.randint(2, 7, (), generator=r))
    masses = torch.rand(n, generator=r, dtype=F64) + 0.01
    if seed % 2:
        rise = torch.rand(n + 1, generator=r, dtype=F64) + 0.01
        return of.Quantiles(offset + rise.cumsum(0), masses / masses.sum())
    masses[n // 2] = 0.0 if n > 2 else 1.0
    return of.GridDensity(masses, offset, offset + 3.0, normalize=True, walls=True)


def places(*measures: of.Gaussian, seed: int = 0, n: int = 40) -> Tensor:
    r = torch.Generator().manual_seed(seed)
    return torch.cat([3 * m.sample(n, r) - 2 * m.mean for m in measures])


@pytest.mark.parametrize("d", [1, 2, 5, 20])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e5])
def test_between_gaussians_the_map_pushes_and_its_potentials_prove(
    d: int, size: float
) -> None:
    mu, nu = gaussian(d, d, size), gaussian(d, d + 1, size)
    T = transport_plan(mu, nu)
    matrix, shift = ot.gaussian.bures_wasserstein_mapping(
        mu.mean, nu.mean, mu.covariance, nu.covariance
    )
    x, y = places(mu, nu) + 0.1 * size, places(mu, nu, seed=1)
    torch.testing.assert_close(T(x), x @ matrix + shift, rtol=1e-7, atol=1e-7 * size)
    torch.testing.assert_close(T.inverse()(T(x)), x, rtol=1e-9, atol=1e-9 * size)
    costs = torch.cdist(x, y).square()
    scale = float(costs.max())
    assert float((T.f(x)[:, None] + T.g(y) - costs).max()) <= 1e-12 * scale
    moved = (x - T(x)).square().sum(1)
    torch.testing.assert_close(T.f(x) + T.g(T(x)), moved, rtol=0, atol=1e-11 * scale)
    assert float(wasserstein2_squared(mu, nu)) in T.bracket
    assert T.bracket.relative < 1e-10
    for law, potential in ((mu, T.f), (nu, T.g)):
        mean = law.expectation(potential)
        torch.testing.assert_close(mean, T.cost / 2, rtol=1e-9, atol=0)


@pytest.mark.parametrize("contrast", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("ratio", ["0", "1e-12", "1e-3", "1e3"])
def test_the_bracket_holds_the_value_between_axes(contrast: float, ratio: str) -> None:
    """Standard deviations s and t along the axes: the square is a rational number."""
    s = [1.0, contrast, 3.0]
    t = [v * float(1 + Fraction(ratio)) for v in s]
    means = [0.0, 0.0, 0.0], [float(Fraction(ratio)), 0.0, 0.0]
    mu, nu = (
        of.Gaussian(
            torch.tensor(m, dtype=F64), torch.tensor(v, dtype=F64).square().diag()
        )
        for m, v in zip(means, (s, t), strict=True)
    )
    s, t = (law.factor.diagonal().tolist() for law in (mu, nu))
    square = Fraction(means[1][0]) ** 2
    for p, q in zip(s, t, strict=True):
        square += (Fraction(p) - Fraction(q)) ** 2
    bracket = transport_plan(mu, nu).bracket
    assert Fraction(bracket.lower) <= square <= Fraction(bracket.upper)
    assert bracket.width <= 1e-12 * sum(v * v for v in t)


def exact_on_the_line(mu: of.Measure, nu: of.Measure) -> Fraction:
    """Integrate the square of the difference of two quantile functions."""
    lines = []
    for law in (mu, nu):
        if isinstance(law, of.Quantiles):
            edges = [Fraction(v) for v in law.edges.tolist()]
        else:
            assert isinstance(law, of.GridDensity)
            low, high = (Fraction(v[0]) for v in (law.box.lower, law.box.upper))
            n = len(law.weights)
            edges = [low + (high - low) * k / n for k in range(n + 1)]
        masses = [Fraction(v) for v in law.weights.tolist()]
        lines.append((edges, [m / sum(masses) for m in masses]))
    levels = sorted(
        {sum(m[:k], Fraction(0)) for _, m in lines for k in range(len(m) + 1)}
    )
    total = Fraction(0)
    for low, high in pairwise(levels):
        apart = []
        for s in (low, high):
            at = []
            for edges, masses in lines:
                below, middle = Fraction(0), (low + high) / 2
                for k, m in enumerate(masses):
                    if below <= middle < below + m:
                        share = (s - below) / m
                        at.append(edges[k] + share * (edges[k + 1] - edges[k]))
                    below += m
            apart.append(at[0] - at[1])
        a, b = apart
        total += (high - low) * (a * a + a * b + b * b) / 3
    return total


def hulls(
    x: Tensor, y: Tensor, mu: of.Measure, nu: of.Measure
) -> list[tuple[Tensor, float, float]]:
    """Return places beside the ends of the interval that carries the measure."""
    found = []
    for z, law in ((x, mu), (y, nu)):
        full = (law.weights > 0).nonzero()[:, 0]
        if isinstance(law, of.Quantiles):
            edges = law.edges
        else:
            assert isinstance(law, of.GridDensity)
            edges = torch.linspace(
                law.box.lower[0], law.box.upper[0], len(law.weights) + 1, dtype=F64
            )
        found.append((z, float(edges[full[0]]), float(edges[full[-1] + 1])))
    return found


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_on_the_line_the_map_pushes_and_its_potentials_prove(
    seed: int, offset: float
) -> None:
    mu, nu = rough(seed, offset), rough(seed // 2 + 100, offset)
    T = transport_plan(mu, nu)
    assert isinstance(T, TransportMap)
    square = exact_on_the_line(mu, nu)
    assert Fraction(T.bracket.lower) <= square <= Fraction(T.bracket.upper)
    assert float(T.cost) in T.bracket
    assert T.bracket.width <= 1e-13 * (100 + 10 * offset)
    x, y = (
        offset + torch.linspace(-1.0, b, 301, dtype=F64)[:, None] for b in (8.0, 9.0)
    )
    room = 1e-12 * (1 + offset)
    excess = T.f(x)[:, None] + T.g(y) - (x - y.T).square()
    inside = [((z >= low) & (z <= high))[:, 0] for z, low, high in hulls(x, y, mu, nu)]
    for at, rows in ((inside[0], excess), (inside[1], excess.T)):
        assert float(rows[at].max()) <= room
    assert bool((T(x).diff(dim=0) >= -room).all())
    h = 1e-5
    slope = (T.f(x + h) - T.f(x - h)) / (2 * h)
    away = (T(x + h) - T(x - h)).abs() < 1e-3  # T does not jump here
    expected = 2 * (x - T(x))[:, 0]
    assert float((slope - expected)[away[:, 0]].abs().max()) < 2e-3 + 1e-9 * offset
    r = torch.Generator().manual_seed(1)
    image = of.Particles(T(mu.sample(20_000, r)))
    assert float(of.metrics.wasserstein2(image, nu)) < 0.1


def test_where_the_map_is_continuous_the_slope_is_exact() -> None:
    mu = of.Quantiles(torch.tensor([0.0, 1.0, 4.0], dtype=F64))
    nu = of.Quantiles(torch.tensor([2.0, 3.0, 3.5], dtype=F64))
    T = transport_plan(mu, nu)
    x = torch.tensor([[0.5], [1.0], [2.5], [4.0]], dtype=F64)
    expected = torch.tensor([[2.5], [3.0], [3.25], [3.5]], dtype=F64)
    torch.testing.assert_close(T(x), expected)
    torch.testing.assert_close(T.inverse()(expected), x)
    assert T.method == "sorted"
    assert "sorted" in repr(T)


def test_atoms_are_the_image_of_a_density_but_have_none() -> None:
    atoms = of.Particles(torch.tensor([[0.0], [1.0]], dtype=F64))
    density = of.Quantiles(torch.tensor([0.0, 1.0, 2.0], dtype=F64))
    T = transport_plan(density, atoms)
    x = torch.tensor([[0.2], [0.9], [1.1], [1.9]], dtype=F64)
    assert T(x).flatten().tolist() == [0.0, 0.0, 1.0, 1.0]
    back = transport_plan(atoms, density)
    with pytest.raises(of.errors.Unsupported, match="inverse"):
        back(x)
    assert torch.equal(back.inverse()(x), T(x))


def test_in_single_precision_the_map_is_that_of_double() -> None:
    mu, nu = gaussian(3, 0), gaussian(3, 1)
    x = places(mu)
    T, single = (
        transport_plan(mu, nu),
        transport_plan(mu.to(torch.float32), nu.to(torch.float32)),
    )
    assert single.cost.dtype == single(x.float()).dtype == torch.float32
    torch.testing.assert_close(single(x.float()).double(), T(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError):
        single(x)


def test_words_for_what_does_not_fit() -> None:
    mu, nu = gaussian(2, 0), gaussian(2, 1)
    T = transport_plan(mu, nu)
    with pytest.raises(ValueError, match="dimension 3"):
        T(torch.zeros(1, 3, dtype=F64))
    with pytest.raises(ValueError, match="closed form"):
        transport_plan(mu, nu, method="simplex")
    with pytest.raises(ValueError, match="two Gaussians"):
        transport_plan(torch.zeros(2, 2), torch.ones(2, 2), method="bures")
    with pytest.raises(ValueError, match="dimension"):
        transport_plan(mu, gaussian(3, 0))
