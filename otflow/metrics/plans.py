r"""The optimal plan between weighted particles, with the potentials that prove it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, overload

import torch
from torch import Tensor

from otflow._arrays import unit_of
from otflow._memory import check_memory
from otflow._validation import check_option, positive
from otflow._warn import warn
from otflow.errors import NotConverged, NotConvergedWarning
from otflow.measures import Gaussian, GridDensity, Measure, Quantiles
from otflow.metrics.assignments import (
    brought_near,
    index_potential,
    squared_distances,
    without_offset,
)
from otflow.metrics.balance import balanced
from otflow.metrics.bracket import NOISE, Bracket
from otflow.metrics.columns import between_many
from otflow.metrics.duals import SHARE, transform
from otflow.metrics.inputs import CloudLike, clouds
from otflow.metrics.line import staircase
from otflow.metrics.maps import TransportMap, between_densities
from otflow.metrics.simplex import network_simplex

__all__ = ["Plan", "check_tolerance", "couple", "placed", "transport_plan"]

METHODS = ("sorted", "identity", "simplex", "columns")
# Pairs up to which the network simplex on all of them takes less time than columns.
MANY = 10**6
# Largest gap that an exact plan may keep, as a share of the cost: it warns.
ACCEPTED = 1e-6
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class Plan:
    r"""A plan :math:`P` for :math:`|x-y|^2`, sparse, with potentials that bound it.

    From `otflow.metrics.least_cost_plan` it is one for another cost c, which takes the
    place of :math:`|x-y|^2` below.

    Cell k moves ``masses[k]`` from point ``rows[k]`` of :math:`\mu` to point
    ``columns[k]`` of :math:`\nu`. There are fewer than n + m cells, beside those that
    hold masses below the round-off of the largest mass. Zero entries are omitted,
    except that each zero-mass atom is listed once with the partner it would have.

    Parameters
    ----------
    rows, columns : Tensor, shape (k,), int64
        Indices of points.
    masses : Tensor, shape (k,)
        Non-negative masses of sum 1.
    cost : Tensor
        :math:`\sum_k P_k |x_{r_k} - y_{c_k}|^2`, 0-d: :math:`W_2^2(\mu, \nu)` for an
        optimal plan.
    f : Tensor, shape (n,)
        Potential on :math:`\mu`: the first variation of :math:`W_2^2` there.
    g : Tensor, shape (m,)
        Potential on :math:`\nu`. For all i and j :math:`f_i + g_j \le |x_i - y_j|^2`,
        with equality on the cells of an optimal plan. The exception is a zero-mass atom
        of :math:`\nu` for which a zero-mass atom of :math:`\mu` forces a lower g.
        Further, :math:`\sum a_i f_i = \sum b_j g_j`, which is half of the lower bound.
    bracket : Bracket
        The bounds of :math:`W_2^2` that the plan and the potentials prove.
    method : str
        Which method found the plan, see `transport_plan`.

    Attributes
    ----------
    rows, columns, masses, cost, f, g, bracket, method
        As above.

    See Also
    --------
    otflow.metrics.transport_plan : Computes it.
    otflow.metrics.TransportMap : Between densities.

    Notes
    -----
    At any other place the potential is :math:`f(x) = \min_j (|x - y_j|^2 - g_j)`. Up to
    a constant it is twice ``SquaredDistanceTo(nu).first_variation(mu, x)``.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Particles(torch.tensor([[0.0], [1.0]]))
    >>> nu = of.Particles(torch.tensor([[0.0]]))
    >>> of.metrics.transport_plan(mu, nu).dense()
    tensor([[0.5000],
            [0.5000]])
    """

    rows: Tensor
    columns: Tensor
    masses: Tensor
    cost: Tensor
    f: Tensor
    g: Tensor
    bracket: Bracket
    method: str

    def dense(self) -> Tensor:
        """Return the plan as a full matrix (n, m).

        Returns
        -------
        Tensor, shape (n, m)
            Row sums are the weights of the first measure, column sums those of the
            second.

        Raises
        ------
        MemoryError
            If the matrix would exceed half of the memory.
        """
        n, m = len(self.f), len(self.g)
        check_memory(
            n * m * self.masses.element_size(),
            f"the full matrix of a plan of {n} points to {m}",
            "read the cells of the plan: rows, columns and masses",
            self.masses.device,
        )
        plan = self.masses.new_zeros(n, m)
        return plan.index_put((self.rows, self.columns), self.masses, accumulate=True)

    def __repr__(self) -> str:
        low, high = self.bracket.lower, self.bracket.upper
        return (
            f"Plan(method={self.method!r}, {low:.6g} <= cost <= {high:.6g}, "
            f"{len(self.f)} points to {len(self.g)} in {len(self.masses)} cells)"
        )


@overload
def transport_plan(
    mu: Gaussian, nu: Gaussian, *, tolerance: float = 0.0, method: str | None = None
) -> TransportMap: ...


@overload
def transport_plan(
    mu: Quantiles,
    nu: Quantiles | GridDensity | CloudLike,
    *,
    tolerance: float = 0.0,
    method: str | None = None,
) -> TransportMap: ...


@overload
def transport_plan(
    mu: GridDensity | CloudLike,
    nu: Quantiles,
    *,
    tolerance: float = 0.0,
    method: str | None = None,
) -> TransportMap: ...


@overload
def transport_plan(
    mu: CloudLike, nu: CloudLike, *, tolerance: float = 0.0, method: str | None = None
) -> Plan: ...


@overload
def transport_plan(
    mu: CloudLike | Measure,
    nu: CloudLike | Measure,
    *,
    tolerance: float = 0.0,
    method: str | None = None,
) -> Plan | TransportMap: ...


def transport_plan(
    mu: CloudLike | Measure,
    nu: CloudLike | Measure,
    *,
    tolerance: float = 0.0,
    method: str | None = None,
) -> Plan | TransportMap:
    r"""Return the plan that minimises :math:`\sum_{ij} P_{ij} |x_i - y_j|^2`.

    Between atoms it is a `Plan`, optimal up to round-off unless a `tolerance` is given.
    Weights are divided by their sums. Whatever the method, the potentials are checked
    against every pair of points, and ``plan.bracket`` holds the bounds that follow.
    Between Gaussians, and with a density on the line, it is a `TransportMap`, in closed
    form.

    Parameters
    ----------
    mu, nu : Particles, Tensor, ndarray, Gaussian, Quantiles or GridDensity
        Measures, which are detached; points (n, d) stand for equal weights. A density
        on a grid in dimension 2 or 3 stands for atoms at the centres of its cells, in
        C order. `Quantiles` and a `GridDensity` on the line are densities, constant on
        their cells; the other measure may be made of atoms. A `Gaussian` has a map to a
        `Gaussian`.
    tolerance : float
        Width of the bracket that suffices, as a share of its upper bound, in [0, 1).
        With 0 the solver goes on until both bounds agree.
    method : {"sorted", "identity", "simplex", "columns"}, optional
        How to solve; the default chooses by dimension and size.

        ``"sorted"``: on the line, by sorting. ``"identity"``: equal weights on both
        sides, as before and after a JKO step; proves that the coupling by index is
        optimal, or raises. ``"simplex"``: POT's network simplex
        :cite:p:`flamary2021pot` on all pairs. ``"columns"``: the network simplex on few
        pairs, to which those that the potentials find cheapest are added, from coarse
        to fine :cite:p:`schmitzer2015sparse`.

    Returns
    -------
    Plan or TransportMap
        On the device of `mu`, in its dtype. A plan is solved in float64 on the CPU.

    Raises
    ------
    ValueError
        If dimensions or devices differ, if a point is not finite, or if the method does
        not suit the measures.
    TypeError
        If dtypes differ, or a measure is not made of atoms.
    MemoryError
        If the arrays of ``"simplex"`` would exceed half of the memory.
    NotConverged
        If the bounds differ by more than 1e-6 of the cost, and by more than the
        tolerance. The error's ``result`` holds the plan. A smaller difference that
        round-off does not explain is a `NotConvergedWarning`.

    See Also
    --------
    otflow.metrics.assignment : Equal weights, equally many.
    otflow.metrics.wasserstein2 : The distance, differentiable.
    otflow.metrics.wasserstein2_bounds : Between large grids, without a plan.

    Notes
    -----
    Time: O(n log n) on the line, O(n^2 d) if the coupling by index is optimal. Between
    others ``"simplex"`` takes about O(n^3) and 48 n m bytes, and is the default up to
    10^6 pairs. ``"columns"`` takes O(n) memory; its time is about n^1.7 in dimension 2
    and 3, and at least O(n^2 d) above dimension 6. If the plan is degenerate, as for
    equal masses, the potentials are not unique and f is one of many subgradients.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Particles(torch.tensor([[0.0], [1.0]]), torch.tensor([0.25, 0.75]))
    >>> nu = of.Particles(torch.tensor([[0.0], [1.0]]), torch.tensor([0.75, 0.25]))
    >>> plan = of.metrics.transport_plan(mu, nu)
    >>> plan.cost
    tensor(0.5000)
    >>> plan.dense()
    tensor([[0.2500, 0.0000],
            [0.5000, 0.2500]])
    >>> 0.5 in plan.bracket, plan.method
    (True, 'sorted')
    """
    tolerance = check_tolerance(tolerance)
    if method is not None:
        check_option(method, "method", (*METHODS, "bures"))
    known = between_densities(mu, nu, method)
    if known is not None:
        return known
    if method == "bures":
        msg = "method='bures' is for two Gaussians; use method=None, which chooses"
        raise ValueError(msg)
    p, q = clouds(mu, nu, grids=True)
    x, y = (c.places.detach() for c in (p, q))
    plan = couple(x, p.masses, y, q.masses, tolerance, method)
    return placed(plan, p.points)


def placed(plan: Plan, like: Tensor) -> Plan:
    """Return the plan on the device and in the dtype of these points."""
    return replace(
        plan,
        rows=plan.rows.to(like.device),
        columns=plan.columns.to(like.device),
        masses=plan.masses.to(like),
        cost=plan.cost.to(like),
        f=plan.f.to(like),
        g=plan.g.to(like),
    )


def check_tolerance(tolerance: float) -> float:
    """Return a share in [0, 1)."""
    tolerance = positive(tolerance, "tolerance", or_zero=True)
    if not tolerance < 1:
        msg = (
            f"tolerance is the width of the bracket as a share of its upper bound, "
            f"below 1, got {tolerance:g}; use e.g. tolerance=0.01"
        )
        raise ValueError(msg)
    return tolerance


def couple(
    x: Tensor,
    a: Tensor,
    y: Tensor,
    b: Tensor,
    tolerance: float = 0.0,
    method: str | None = None,
) -> Plan:
    """Return the plan of float64 tensors on the CPU, masses of sum 1; warns or raises.

    The errors are those of `transport_plan`.
    """
    # The plan does not depend on a common offset, nor on units. A large offset would
    # cost digits, and squares of tiny coordinates would underflow.
    x, y = without_offset(x, y)
    unit = unit_of(x, y)
    plan, gap = _couple(x / unit, a, y / unit, b, tolerance, method)
    cost, f, g = (unit * (unit * z) for z in (plan.cost, plan.f, plan.g))
    plan = replace(plan, cost=cost, f=f, g=g, bracket=plan.bracket.times_square(unit))
    if gap > tolerance:
        _tell(plan, gap, tolerance)
    return plan


def _tell(plan: Plan, gap: float, tolerance: float) -> None:
    """Warn of bounds that differ by more than was asked, or raise if by much."""
    asked = f"tolerance={tolerance:g}" if tolerance else "an exact plan"
    msg = (
        f"the transport solver was asked for {asked} and left a duality gap of "
        f"{gap:.3g} of the cost {plan.bracket.upper:.6g}; plan.bracket holds both "
        f"bounds; take fewer points, a larger tolerance, or sinkhorn_divergence"
    )
    if gap > ACCEPTED:
        raise NotConverged(msg, info={"gap": gap * plan.bracket.upper}, result=plan)
    warn(msg, NotConvergedWarning)


def _couple(
    x: Tensor, a: Tensor, y: Tensor, b: Tensor, tolerance: float, method: str | None
) -> tuple[Plan, float]:
    """Return the plan of points of size 1, and its gap as a share of its cost.

    The gap is 0 if round-off explains it.
    """
    raw, middle = y, x.median(0).values
    y, shift = brought_near(x, y)
    i, j = a.nonzero()[:, 0], b.nonzero()[:, 0]
    cells = _couple_atoms(x[i], a[i], y[j], b[j], tolerance, method)
    f, g = cells.f, cells.g
    rows, columns, masses = balanced(
        cells.rows, cells.columns, cells.masses, (x[i], a[i], f), (y[j], b[j], g)
    )
    rows, columns = i[rows], j[columns]

    # The potential at an atom without mass is the transform of the other measure's
    # potential. The atom joins the plan beside the partner that attains the minimum.
    idle_rows, idle_columns = (a == 0).nonzero()[:, 0], (b == 0).nonzero()[:, 0]
    f_idle, partners = transform(x[idle_rows], y[j], g)
    g_idle, sources = transform(y[idle_columns], x[i], f)
    rows = torch.cat([rows, idle_rows, i[sources]])
    columns = torch.cat([columns, j[partners], idle_columns])
    masses = torch.cat([masses, masses.new_zeros(len(rows) - len(masses))])
    # For two atoms without mass f + g may exceed the cost: then lower g.
    if len(idle_rows):
        between, _ = transform(y[idle_columns], x[idle_rows], f_idle)
        g_idle = torch.minimum(g_idle, between)
    f = a.index_put((torch.cat([i, idle_rows]),), torch.cat([f, f_idle]))
    g = b.index_put((torch.cat([j, idle_columns]),), torch.cat([g, g_idle]))

    costs = (x[rows] - raw[columns]).square().sum(1)
    cost = masses @ costs
    # Masses have an absolute round-off, which an atom far away multiplies.
    noise = NOISE * float(f.max() - f.min() + g.max() - g.min() + costs.max())
    s, t = x - middle, y - middle
    f -= 2 * (s @ shift)
    g += 2 * (t @ shift) + shift @ shift
    reach = 2 * (s.abs().amax(0) + t.abs().amax(0)) + shift.abs()
    noise += NOISE * float(reach @ shift.abs())
    above = NOISE * float(costs.max())
    if cells.method != "identity" and not _is_permutation(a[i], b[j]):
        # The mass that round-off leaves over may have to cross the whole support.
        both = torch.cat([x, raw])
        above += NOISE * float((both.amax(0) - both.amin(0)).square().sum())
    # An optimal plan's potentials share its cost, others the lower bound they prove.
    bound = torch.minimum(a @ f + b @ g, cost)
    if cells.method == "sorted":
        # What proves this plan is its order, not the potentials: these are sums over
        # the whole line, with a round-off above the squares of small moves.
        bound, noise = cost, NOISE * float(costs.max())
    least = max(0.0, float(bound) - noise)
    gap = float(cost - bound) / max(float(cost), TINY)
    if gap <= SHARE or float(cost - bound) <= noise + above:
        gap, bound = 0.0, cost
    f += 0.5 * bound - a @ f
    g += 0.5 * bound - b @ g
    bracket = Bracket(least, float(cost) + above)
    return Plan(rows, columns, masses, cost, f, g, bracket, cells.method), gap


def _is_permutation(a: Tensor, b: Tensor) -> bool:
    """Whether plans of these masses are permutations, without any round-off."""
    return len(a) == len(b) and bool((a == a[0]).all() and (b == a[0]).all())


class _Cells(NamedTuple):
    """Cells of a plan between atoms with mass, potentials, and the method's name."""

    rows: Tensor
    columns: Tensor
    masses: Tensor
    f: Tensor
    g: Tensor
    method: str


def _couple_atoms(
    x: Tensor, a: Tensor, y: Tensor, b: Tensor, tolerance: float, method: str | None
) -> _Cells:
    """Return cells and potentials; every mass is positive."""
    on_line = x.shape[1] == 1
    if method == "sorted" and not on_line:
        msg = (
            f"only points on the line can be sorted, and these lie in dimension "
            f"{x.shape[1]}; use method=None, which chooses"
        )
        raise ValueError(msg)
    if method == "sorted" or (method is None and on_line):
        return _Cells(*staircase(x[:, 0], a, y[:, 0], b), "sorted")
    if method == "identity" or (method is None and torch.equal(a, b)):
        g = index_potential(x, y, a) if torch.equal(a, b) else None
        if g is not None:
            index = torch.arange(len(x))
            f = (x - y).square().sum(1) - g
            return _Cells(index, index, a, f, g, "identity")
        if method == "identity":
            msg = (
                "the coupling by index is not known to be optimal between these "
                "measures; use method=None, which tries it first"
            )
            raise ValueError(msg)
    if _is_permutation(a, b):
        scale = 1.0 / len(a)  # masses 1 make the plan a permutation, exactly
        a = b = torch.ones_like(a)
    else:
        scale = 1.0
    if method == "columns" or (method is None and len(x) * len(y) > MANY):
        found = between_many(x, a, y, b, tolerance)
        return _Cells(
            found.rows, found.columns, scale * found.masses, found.f, found.g, "columns"
        )
    dense, f, g = network_simplex(squared_distances(x, y), a, b)
    rows, columns = dense.nonzero(as_tuple=True)
    return _Cells(rows, columns, scale * dense[rows, columns], f, g, "simplex")
