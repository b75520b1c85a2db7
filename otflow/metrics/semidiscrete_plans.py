r"""The map from a density to atoms: cells, potentials, and the frame they live in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from otflow._arrays import as_points, unit_of
from otflow._typing import ArrayLike
from otflow._validation import check_like
from otflow.metrics.bracket import Bracket
from otflow.metrics.columns import cheapest
from otflow.metrics.inputs import Cloud, check_dimension

__all__ = ["Frame", "LaguerreCells", "SemidiscretePlan", "planned"]


@dataclass(frozen=True, eq=False)
class SemidiscretePlan:
    r"""The optimal map :math:`T(x) = y_j` for x in the Laguerre cell :math:`C_j`.

    .. math:: C_j = \{x : |x - y_j|^2 - g_j \le |x - y_k|^2 - g_k
        \ \text{for all } k\}

    T is the gradient of the convex function :math:`u(x) = x\cdot y_0 + \max_j ((x -
    c)\cdot(y_j - y_0) - h_j)`, with the centre c and the heights h of the plan.

    Parameters
    ----------
    atoms : Tensor, shape (n, d)
        The points :math:`y_j`, detached.
    g : Tensor, shape (n,)
        Kantorovich potential of the atoms, detached: the first variation of
        :math:`W_2^2` there. As in `Plan`, :math:`\sum b_j g_j` is half of the lower
        bound.
    heights : Tensor, shape (n,)
        The heights h of the Brenier potential u, detached.
    centre : Tensor, shape (d,)
        The barycentre c of the density, detached.
    masses : Tensor, shape (n,)
        Masses of the cells, detached: the weights of the atoms up to `residual`.
    barycentres : Tensor, shape (n, d)
        Barycentres of the density in the cells, detached. A cell without mass to
        round-off has its atom there. That of a cell with a mass near 1e-16 is only
        known to lie in the box of the density.
    cost : Tensor
        :math:`W_2^2`, 0-d, differentiable in points and weights of the atoms, and in
        the masses of the density.
    bracket : Bracket
        Bounds of :math:`W_2^2` for the density that is constant on each cell of its
        grid.
    residual : float
        :math:`\sum_j |\rho(C_j) - b_j|`.
    converged : bool
        Whether the bracket is as narrow as the tolerance, or as round-off allows.

    Attributes
    ----------
    atoms, g, heights, centre, masses, barycentres, cost, bracket, residual, converged
        As above.

    See Also
    --------
    otflow.metrics.semidiscrete_plan : Computes it.

    Examples
    --------
    >>> import torch, otflow as of
    >>> rho = of.GridDensity(torch.ones(4, 4), 0, 1, walls=True)
    >>> y = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    >>> plan = of.metrics.semidiscrete_plan(rho, y)
    >>> plan.assign(torch.tensor([[0.4, 0.9], [0.6, 0.1]]))
    tensor([0, 1])
    >>> plan.barycentres
    tensor([[0.2500, 0.5000],
            [0.7500, 0.5000]])
    """

    atoms: Tensor
    g: Tensor
    heights: Tensor
    centre: Tensor
    masses: Tensor
    barycentres: Tensor
    cost: Tensor
    bracket: Bracket
    residual: float
    converged: bool

    def assign(self, x: ArrayLike) -> Tensor:
        """Return the atom that each point goes to: the cell in which the point lies.

        Parameters
        ----------
        x : Tensor or ndarray, shape (m, d)
            Points, anywhere. A point between two cells goes to one of the two.

        Returns
        -------
        Tensor, shape (m,), int64
            Indices of atoms. Time O(log n) for a point.

        Raises
        ------
        TypeError, ValueError
            If dtype, device or dimension differ from those of the atoms.
        """
        x = as_points(x, "x").detach()
        check_like(x, self.atoms, "x", "the atoms")
        check_dimension(x, self.atoms, ("x", "the plan"))
        x, y = ((z.to("cpu", torch.float64)) for z in (x, self.atoms))
        centre, h = (z.to("cpu", torch.float64) for z in (self.centre, self.heights))
        x, y = x - centre, y - y[0]
        own, other = unit_of(x), unit_of(y)
        x, y, h = x / own, y / other, h / own / other
        index = cheapest(x, y, y.square().sum(1) - 2 * h, 1)[1][:, 0]
        return index.to(self.atoms.device)

    def transport(self, x: ArrayLike) -> Tensor:
        """Return T(x), the atom that each point goes to.

        Parameters
        ----------
        x : Tensor or ndarray, shape (m, d)
            Points, as for `assign`.

        Returns
        -------
        Tensor, shape (m, d)
            Points of the atoms.
        """
        return self.atoms[self.assign(x)]

    def potential(self, x: ArrayLike) -> Tensor:
        r"""Return :math:`f(x) = \min_j (|x - y_j|^2 - g_j)`.

        Parameters
        ----------
        x : Tensor or ndarray, shape (m, d)
            Points, as for `assign`.

        Returns
        -------
        Tensor, shape (m,)
            The Kantorovich potential: the first variation of :math:`W_2^2` in the
            density.
        """
        index = self.assign(x)
        x = as_points(x, "x").detach()
        return (x - self.atoms[index]).square().sum(1) - self.g[index]


@dataclass(frozen=True, eq=False)
class Frame:
    """Both measures around their barycentres, in units of their sizes.

    So neither a distance between them nor a difference of their sizes costs digits, nor
    does their distance from the origin: `centre` is counted from `corner`, and `apart`
    is the difference of the barycentres. Float64, on the CPU.
    """

    corner: Tensor
    centre: Tensor
    apart: Tensor
    wide: float
    tall: float
    y: Tensor
    b: Tensor

    @classmethod
    def of(
        cls, centre: Tensor, corners: Tensor, q: Cloud, corner: Tensor | None = None
    ) -> Frame:
        """Return the frame of a density with this barycentre and corners, and atoms.

        The places of the density are counted from `corner`, by default the origin.
        """
        y, b = q.points.detach().to("cpu", torch.float64), q.masses
        corner = torch.zeros_like(centre) if corner is None else corner
        first = y[0]
        mean = b @ (y - first)
        more = b @ (y - first - mean)
        mean, y = mean + more, y - first - mean - more
        apart = centre - (first - corner) - mean
        wide, tall = unit_of(corners - centre), unit_of(y)
        return cls(corner, centre, apart, wide, tall, y / tall, b)

    @property
    def place(self) -> Tensor:
        """The barycentre of the density."""
        return self.corner + self.centre

    def potentials(self, w: Tensor) -> Tensor:
        """Return Kantorovich potentials of heights, up to a constant."""
        y = self.tall * self.y
        return y.square().sum(1) - 2 * (y @ self.apart) - self.scaled(2 * w)

    def scaled(self, z: Tensor) -> Tensor:
        """Return products of both lengths in the units of the measures."""
        return self.wide * (self.tall * z)


class LaguerreCells(NamedTuple):
    """Heights in the units of a frame, masses and barycentres of the cells."""

    w: Tensor
    masses: Tensor
    barycentres: Tensor


def planned(
    frame: Frame,
    q: Cloud,
    cells: LaguerreCells,
    cost: Tensor,
    bracket: Bracket,
    *,
    converged: bool,
) -> SemidiscretePlan:
    """Return the plan of these cells and this cost."""
    g = frame.potentials(cells.w)
    g = g + (0.5 * cost.detach().cpu() - frame.b @ g)
    residual = float((cells.masses - frame.b).abs().sum())
    return SemidiscretePlan(
        q.points.detach(),
        g,
        frame.scaled(cells.w),
        frame.place,
        cells.masses,
        cells.barycentres,
        cost,
        bracket,
        residual,
        converged,
    )
