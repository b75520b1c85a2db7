"""JKO steps on the line: time of a step, growth with the cells, iterations."""

from __future__ import annotations

import torch

import otflow as of
from benchmarks.timing import Row, at_most, interleaved

CELLS = 1600


def bell(n: int) -> of.Quantiles:
    """Return a Gaussian of standard deviation 1.5 in n graded cells."""
    return of.Quantiles.from_quantile(
        lambda s: 1.5 * torch.special.ndtri(s), n, grading=2.0, dtype=torch.float64
    )


def fokker_planck() -> of.Functional:
    """Return x^2/2 and entropy."""
    bowl = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    return bowl + of.Entropy()


def step() -> list[Row]:
    """Time one certified Fokker-Planck step, and one on 16 times the cells."""
    F, solver = fokker_planck(), of.proximal.QuantileProximal()
    small, large = bell(CELLS), bell(16 * CELLS)
    result = solver.solve(F, small, 0.05)
    assert result.certificate["guarantee"] == "exact", "only a proved step counts"
    ours, more = interleaved(
        lambda: solver.solve(F, small, 0.05), lambda: solver.solve(F, large, 0.05)
    )
    what = f"Fokker-Planck step on {CELLS} quantiles"
    return [
        at_most(f"{what}: milliseconds", 1e3 * ours, 5.0, " ms"),
        at_most(f"{what}: evaluations", result.iterations, 7),
        at_most(f"{what}: 16 times the cells / it", more / ours, 20.0),
    ]


def crowd() -> Row:
    """Time a step of a crowd, with its bound on the density, against a free step."""
    solver = of.proximal.QuantileProximal()
    mu = of.Quantiles(torch.linspace(-1, 1, CELLS + 1, dtype=torch.float64))
    bowl = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    F, G = bowl + of.Congestion(0.55), fokker_planck()
    result = solver.solve(F, mu, 0.2)
    assert result.certificate["guarantee"] == "exact", "only a proved step counts"
    bound, free = interleaved(
        lambda: solver.solve(F, mu, 0.2), lambda: solver.solve(G, mu, 0.2)
    )
    return at_most("crowd step / Fokker-Planck step, same cells", bound / free, 10.0)


def run() -> list[Row]:
    """Return all rows."""
    return [*step(), crowd()]
