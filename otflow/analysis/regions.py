"""Where a search goes: states and tangents as smooth functions of free numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow.analysis.charts import Chart, chart_of, on_the_line
from otflow.errors import Unsupported
from otflow.measures import Gaussian, GridDensity, Measure, Particles, Quantiles
from otflow.metrics import assignment, transport_plan

__all__ = ["Region", "is_geodesic", "regions"]

# Few atoms are tried first: two feel an interaction, one a potential. Clouds of more
# than MANY atoms are searched by few.
FEW, MANY = (1, 2, 3), 32
# Cells grow and shrink, and Gaussians stretch along an axis, by this factor at most.
STRETCH = 4.0
# Clusters of starts are between this share of the region and the whole of it.
CLOSE = 1e-2


@dataclass(frozen=True)
class Region:
    """States and tangents of one representation and size.

    Parameters
    ----------
    chart : Chart
        Takes states to measures.
    state : callable
        Takes free numbers, of the shape `free`, to a state within the region.
    tangent : callable
        Takes a state and free numbers, of the shape `turns`, to a tangent.
    draw : callable
        Draws the numbers of a state.
    free, turns : tuple of int
        These shapes.
    scale : float
        Length of the region.
    straight : bool
        Whether every straight line between two states is a path of the search.
    """

    chart: Chart
    state: Callable[[Tensor], Tensor]
    tangent: Callable[[Tensor, Tensor], Tensor]
    draw: Callable[[torch.Generator], Tensor]
    free: tuple[int, ...]
    turns: tuple[int, ...]
    scale: float
    straight: bool

    def room(self, x: Tensor, v: Tensor) -> float:
        """Return how far a state may go along a tangent, on either side."""
        unit = float(self.chart.square(v)) ** 0.5
        step = 1e-2 * self.scale / unit if unit > 0 else 0.0
        while step > 0:
            try:
                for side in (-step, step):
                    self.chart.build(x + side * v)
            except ArithmeticError:
                step *= 0.25
                continue
            return step
        return step


def regions(like: Measure) -> Iterator[Region]:
    """Yield what is searched for a measure `like`, again and again."""
    if isinstance(like, GridDensity) and like.dim == 1:
        like = on_the_line(like, like)[0]
    if isinstance(like, Quantiles):
        found = [_cells(like)]
    elif isinstance(like, Gaussian):
        found = [_normal(like)]
    elif isinstance(like, Particles):
        found = [_atoms(like, n) for n in FEW]
        if like.n <= MANY and (like.n > FEW[-1] or not like.is_uniform):
            found.append(_atoms(like, None))
    else:
        msg = (
            f"no search among measures like {like!r} is known: it goes through "
            f"Particles, Gaussians and densities on the line; take "
            f"Particles(mu.points, mu.weights)"
        )
        raise Unsupported(msg)
    while True:
        yield from found


def _box(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the middle and the half widths of the box of points, doubled.

    An axis without extent gets the largest extent; a single place gets 1.
    """
    low, high = points.amin(0), points.amax(0)
    widths = high - low
    largest = float(widths.max())
    widths = torch.where(widths > 0, widths, largest if largest > 0 else 1.0)
    return 0.5 * (low + high), widths


def _atoms(like: Particles, n: int | None) -> Region:
    """Return the region of n atoms of equal weights, or of the atoms of `like`."""
    centre, half = _box(like.points)
    d = like.dim
    if n is None:
        n, body = like.n, like
    else:
        body = Particles(centre.expand(n, d))

    def draw(generator: torch.Generator) -> Tensor:
        noise = torch.rand(n + 1, d, generator=generator, dtype=torch.float64)
        share = _share(generator)
        places = (1 - share) * (2 * noise[:1] - 1) + share * (2 * noise[1:] - 1)
        return places.asin().to(like.points)

    return Region(
        chart=chart_of(body)[0],
        state=lambda z: centre + half * z.sin(),
        tangent=lambda _, y: half.max() * y,
        draw=draw,
        free=(n, d),
        turns=(n, d),
        scale=float(half.max()),
        straight=True,
    )


def _share(generator: torch.Generator) -> float:
    """Draw a number between CLOSE and 1, evenly on a logarithmic scale."""
    draw = float(torch.rand((), generator=generator, dtype=torch.float64))
    return float(CLOSE**draw)


def _cells(like: Quantiles) -> Region:
    """Return the region of cells of the masses of `like`."""
    edges, gaps = like.edges, like.edges.diff()
    width = float(edges[-1] - edges[0])
    bound = math.log(STRETCH)
    chart = chart_of(like)[0]

    def state(z: Tensor) -> Tensor:
        cells = (gaps * (bound * z[1:, 0].sin()).exp()).cumsum(0)
        start = edges[0] + width * z[0, 0].sin()
        return (start + torch.cat([torch.zeros_like(cells[:1]), cells]))[:, None]

    def draw(generator: torch.Generator) -> Tensor:
        noise = torch.rand(len(edges), 1, generator=generator, dtype=torch.float64)
        noise[1:] *= _share(generator)
        return (2 * noise - 1).asin().to(edges)

    shape = (len(edges), 1)
    return Region(
        chart, state, lambda _, y: width * y, draw, shape, shape, width, straight=True
    )


def _normal(like: Gaussian) -> Region:
    """Return the region of the Gaussians that are stretched and moved from `like`."""
    start, d = like.state, like.dim
    scale = float(torch.linalg.matrix_norm(like.factor, ord=2))
    bound = math.log(STRETCH)

    def symmetric(y: Tensor) -> Tensor:
        return 0.5 * (y + y.T)

    def state(z: Tensor) -> Tensor:
        stretch = torch.matrix_exp(symmetric(bound * z[1:].sin()))
        return torch.cat([start[:1] + 2 * scale * z[:1].sin(), start[1:] @ stretch])

    def tangent(x: Tensor, y: Tensor) -> Tensor:
        # The optimal map from a Gaussian is symmetric about its mean.
        return torch.cat([scale * y[:1], x[1:] @ symmetric(y[1:])])

    def draw(generator: torch.Generator) -> Tensor:
        noise = torch.rand(1 + d, d, generator=generator, dtype=torch.float64)
        return ((2 * noise - 1) * _share(generator)).asin().to(start)

    shape, chart = (1 + d, d), chart_of(like)[0]
    return Region(chart, state, tangent, draw, shape, shape, scale, straight=False)


def is_geodesic(region: Region, low: Tensor, high: Tensor) -> bool:
    """Return whether an exact solver finds no cheaper coupling of both ends."""
    a, b = (region.chart.build(x) for x in (low, high))
    if not isinstance(a, Particles) or not isinstance(b, Particles):
        return True  # levels, and affine maps with a symmetric matrix
    if not a.is_uniform:
        plan = transport_plan(a, b)
        return torch.equal(plan.rows, plan.columns)
    best = b.points[assignment(a.points, b.points)]
    costs = [
        math.fsum((a.points - y).double().square().flatten().tolist())
        for y in (b.points, best)
    ]
    return costs[0] <= costs[1]
