r"""Two bounds of W2^2, where a plan with its cells is not needed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow._arrays import unit_of
from otflow._memory import check_memory
from otflow._validation import check_option
from otflow.errors import NonFinite, NotConverged
from otflow.measures import GridDensity
from otflow.metrics.bracket import Bracket
from otflow.metrics.grids import between_lattices
from otflow.metrics.inputs import Cloud, CloudLike, clouds
from otflow.metrics.plans import MANY, METHODS, check_tolerance, couple

__all__ = ["Bounds", "on_lattices", "wasserstein2_bounds"]

# Pairs up to which an exact plan by columns follows on bounds that are too wide.
MEDIUM = 10**9
# Bytes for each node of both grids: the means and their exponents, in float64.
BYTES = 400


@dataclass(frozen=True, eq=False)
class Bounds:
    r"""Bounds of :math:`W_2^2`, and the potentials that prove the lower one.

    Parameters
    ----------
    bracket : Bracket
        The bounds. The upper one is the cost of a plan.
    f : Tensor, shape (n,)
        Potential on :math:`\mu`, close to the first variation of :math:`W_2^2` there.
    g : Tensor, shape (m,)
        Potential on :math:`\nu`. For all i and j, up to round-off,
        :math:`f_i + g_j \le |x_i - y_j|^2`.
    method : str
        Which method found them, see `wasserstein2_bounds`.

    Attributes
    ----------
    bracket, f, g, method
        As above.

    See Also
    --------
    otflow.metrics.wasserstein2_bounds : Computes them.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Particles(torch.tensor([[0.0], [1.0]]))
    >>> nu = of.Particles(torch.tensor([[0.0]]))
    >>> 0.5 in of.metrics.wasserstein2_bounds(mu, nu).bracket
    True
    """

    bracket: Bracket
    f: Tensor
    g: Tensor
    method: str

    def times(self, unit: float) -> Bounds:
        """Return the bounds of measures whose lengths are larger by a factor.

        Parameters
        ----------
        unit : float
            The factor.

        Returns
        -------
        Bounds
            The numbers, multiplied by the square of the factor.
        """
        f, g = (unit * (unit * z) for z in (self.f, self.g))
        return Bounds(self.bracket.times_square(unit), f, g, self.method)

    def __repr__(self) -> str:
        low, high = self.bracket.lower, self.bracket.upper
        return (
            f"Bounds(method={self.method!r}, {low:.6g} <= W2^2 <= {high:.6g}, "
            f"{len(self.f)} points to {len(self.g)})"
        )


def wasserstein2_bounds(
    mu: CloudLike | GridDensity,
    nu: CloudLike | GridDensity,
    *,
    tolerance: float = 1e-3,
    method: str | None = None,
) -> Bounds:
    r"""Return numbers below and above :math:`W_2^2 = \min_P \sum P_{ij} |x_i - y_j|^2`.

    A density on a grid in dimension 2 or 3 stands for atoms at the centres of its
    cells. The distance of two step densities differs from that of the atoms by at most
    :math:`\sqrt{\sum_k h_k^2/3}` for cells of sides :math:`h_k`, half of it for each.

    Parameters
    ----------
    mu, nu : Particles, Tensor, ndarray or GridDensity
        Measures, which are detached; points (n, d) stand for equal weights.
    tolerance : float
        Width of the bracket that suffices, as a share of its upper bound, in [0, 1).
    method : {"sinkhorn", "sorted", "identity", "simplex", "columns"}, optional
        How to solve; the default chooses. ``"sinkhorn"`` is for two grids, axis by axis
        and from coarse to fine: a blurred plan with corrected marginals
        :cite:p:`altschuler2017near`, and c-transforms. The others are the methods of
        `transport_plan`.

    Returns
    -------
    Bounds
        On the device of `mu`, in its dtype; the bracket in float64.

    Raises
    ------
    ValueError
        If dimensions or devices differ, a point is not finite, or the method does not
        suit the measures.
    TypeError
        If dtypes differ, or a measure is not made of atoms.
    MemoryError
        If the arrays would exceed half of the memory.
    NotConverged
        If the bracket stays wider than the tolerance. The error's ``result`` holds what
        was found.
    NonFinite
        If a mass is not a finite number, or a bound is too large for float64.

    See Also
    --------
    otflow.metrics.transport_plan : A plan, with its cells.

    Notes
    -----
    Two grids of n cells, of which more than 10^6 pairs have mass, take ``"sinkhorn"``
    if the tolerance allows a blur :math:`\varepsilon` of at least half of
    :math:`h^2`: about :math:`d\,\varepsilon/2 \le` tolerance :math:`W_2^2`. Time is a
    few hundred exponentials for a cell and an iteration, and memory 400 bytes for a
    cell. It is fast with numba (``pip install 'otflow[fast]'``); without, each
    iteration takes :math:`O(n^{1 + 1/d})`. A grid that is the other one moved gives its
    distance at once. Otherwise as `transport_plan`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> rho = torch.zeros(60, 60, dtype=torch.float64)
    >>> rho[10:20, 10:40] = 1.0
    >>> mu, nu = (
    ...     of.GridDensity(r, 0, 6, normalize=True)
    ...     for r in (rho, rho.roll((20, 0), (0, 1)))
    ... )
    >>> found = of.metrics.wasserstein2_bounds(mu, nu)
    >>> 4.0 in found.bracket
    True
    """
    tolerance = check_tolerance(tolerance)
    if method is not None:
        check_option(method, "method", ("sinkhorn", *METHODS))
    p, q = clouds(mu, nu, grids=True)
    points, dtype = p.points, p.points.dtype
    if method == "sinkhorn" and (p.box is None or q.box is None):
        msg = (
            "method='sinkhorn' takes two GridDensity in dimension 2 or 3, whose costs "
            "are sums over axes; use method=None, which chooses"
        )
        raise ValueError(msg)
    blurred = None
    if method in {None, "sinkhorn"}:
        blurred = on_lattices(p, q, tolerance, always=method is not None)
    if blurred is None:
        x, y = p.places.detach(), q.places.detach()
        plan = couple(x, p.masses, y, q.masses, tolerance, method)
        found = Bounds(plan.bracket, plan.f, plan.g, plan.method)
    else:
        found = blurred[0].times(blurred[1])
    if not math.isfinite(found.bracket.upper):
        msg = (
            f"the squared distance is {found.bracket.upper}: the coordinates are too "
            f"large to be squared in float64; divide them by a length of the problem"
        )
        raise NonFinite(msg)
    f, g = (z.to(points.device, dtype) for z in (found.f, found.g))
    return replace(found, f=f, g=g)


def on_lattices(
    p: Cloud, q: Cloud, tolerance: float, *, always: bool = False
) -> tuple[Bounds, float] | None:
    """Return bounds between two large grids in squares of a unit, and the unit.

    None stands for measures or a tolerance for which a plan with cells is better. The
    potentials are in float64, on the CPU. Wider bounds raise.
    """
    mu, nu = p.lattice, q.lattice
    if mu is None or nu is None:
        return None
    pairs = int((mu.masses > 0).sum()) * int((nu.masses > 0).sum())
    if pairs <= MANY and not always:
        return None
    sizes = mu.masses.numel(), nu.masses.numel()
    check_memory(
        BYTES * sum(sizes),
        f"a distance between grids of {sizes[0]} and {sizes[1]} cells",
        "take fewer cells, or Particles(mu.sample(2000, generator))",
        torch.device("cpu"),
    )
    unit = unit_of(*mu.axes, *nu.axes)
    proof = between_lattices(mu.over(unit), nu.over(unit), tolerance, always=always)
    if proof is None:
        return None
    bracket = Bracket(max(0.0, proof.lower - proof.noise), proof.upper + proof.noise)
    found = Bounds(bracket, proof.f.reshape(-1), proof.g.reshape(-1), "sinkhorn")
    width = bracket.width
    if width > tolerance * bracket.upper and width > 4 * proof.noise:
        if pairs <= MEDIUM and not always:
            return None
        msg = (
            f"the distance between grids was asked for tolerance={tolerance:g} and its "
            f"bounds differ by {bracket.relative:.3g} of the upper one; take a larger "
            f"tolerance, or wasserstein2_bounds(mu, nu, method='columns'), which is "
            f"exact and takes longer"
        )
        raise NotConverged(msg, info={"gap": width}, result=found.times(unit))
    return found, unit
