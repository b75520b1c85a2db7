"""Semi-discrete transport: from a density to atoms, by their Laguerre cells."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from otflow._arrays import unit_of
from otflow._known import known_derivatives, once
from otflow._validation import check_like
from otflow._warn import warn
from otflow.errors import NonFinite, NotConvergedWarning
from otflow.measures import GridDensity, Measure, Particles, Quantiles
from otflow.measures.grid.box import Box
from otflow.metrics.bracket import NOISE, Bracket
from otflow.metrics.cell_heights import Balanced, heights
from otflow.metrics.cell_means import means_of_maximum
from otflow.metrics.crossings import StepDensity
from otflow.metrics.inputs import Cloud, CloudLike, check_dimension, check_masses, cloud
from otflow.metrics.lattices import Lattice
from otflow.metrics.plans import check_tolerance
from otflow.metrics.semidiscrete_plans import (
    Frame,
    LaguerreCells,
    SemidiscretePlan,
    planned,
)
from otflow.metrics.steps import Steps, between_steps, bracketed, cells_of_atoms

__all__ = ["semidiscrete_plan"]

# Sum of errors of masses that round-off explains.
RESIDUAL = 1e-11
# Least length that is divided by.
TINY = 1e-300
F64 = torch.float64
SECOND = (
    "second derivatives of the transport from a density in dimension 2 or 3 to atoms "
    "are not known; differentiate once, or use sinkhorn_divergence between atoms"
)


def semidiscrete_plan(
    density: GridDensity | Quantiles, atoms: CloudLike, *, tolerance: float = 1e-9
) -> SemidiscretePlan:
    r"""Return the optimal map from a density to atoms, and :math:`W_2^2` of both.

    .. math:: W_2^2(\rho, \nu) = \max_g \int \min_j (|x - y_j|^2 - g_j)\,d\rho(x)
        + \sum_j b_j g_j

    Here a `GridDensity` of any dimension is a density that is constant on each cell.
    This differs from `wasserstein2` and `transport_plan` in dimension 2 and 3, where
    it stands for atoms at the centres of its cells. The integrals are exact.

    The cost is differentiable once in dimension 2 and 3, and twice on the line:

    .. math:: \frac{\partial}{\partial y_j} = 2\Bigl(b_j y_j - \int_{C_j} x\,d\rho
        \Bigr), \qquad \frac{\partial}{\partial b_j} = g_j - \sum_k b_k g_k,
        \qquad \frac{\partial}{\partial m_c} = \bar f_c - \sum_e m_e \bar f_e,

    where :math:`\bar f_c` is the mean over the cell c of the grid, of mass
    :math:`m_c`, of the potential :math:`f(x) = \min_j (|x - y_j|^2 - g_j)`. All masses
    are divided by their sums.

    Parameters
    ----------
    density : GridDensity or Quantiles
        The density; cells of the grid may be empty.
    atoms : Particles, Tensor or ndarray
        The atoms, different points with positive masses; points (n, d) stand for equal
        masses 1/n. They may lie anywhere.
    tolerance : float
        Width of the bracket that suffices, as a share of its upper bound, and sum of
        the errors of the masses of the cells; in [0, 1). With 0 the iterations go on to
        round-off.

    Returns
    -------
    SemidiscretePlan
        Cells, potentials, cost and bracket, in the dtype and on the device of the
        density. It is solved in float64 on the CPU.

    Raises
    ------
    TypeError
        If the first measure is no density or the second one not made of atoms, or if
        dtypes differ.
    ValueError
        If dimensions or devices differ, if an atom has no mass, if two atoms coincide,
        or if a point is not finite.
    NonFinite
        If a mass is negative or not a finite number, or the cost too large for float64.
    NotConverged
        If atoms lie so close together, for their spread, that no cells are found.

    Warns
    -----
    NotConvergedWarning
        If the bracket stays wider than the tolerance and than round-off. Then
        ``converged`` is false; the bracket is true nevertheless.

    See Also
    --------
    otflow.metrics.wasserstein2 : Atoms, and densities on the line.
    otflow.metrics.transport_plan : A plan between atoms.

    Notes
    -----
    On the line the plan is monotone: O(n log n). In dimension 2 and 3 damped Newton
    iterations :cite:p:`kitagawa2019convergence`, from a uniform density to coarse and
    then fine ones. An iteration takes the Laguerre cells, O(n log n), and a visit of
    those cells of the grid that a wall between two atoms crosses: with N cells along an
    axis about :math:`4 n^{1/2} N` in the plane and :math:`10\,n^{1/3} N^2` in space.
    Time and memory do not depend on the number of pairs of atoms and cells. Some ten
    iterations suffice for densities and masses of one size; a density whose support
    falls apart, or masses of very different sizes, take hundreds. The derivative
    in the masses of the density visits each cell of the grid once.

    Examples
    --------
    >>> import torch, otflow as of
    >>> rho = of.GridDensity(torch.ones(8, 8, dtype=torch.float64), 0, 1, walls=True)
    >>> y = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    >>> plan = of.metrics.semidiscrete_plan(rho, y.double())
    >>> round(24 * float(plan.cost), 12), plan.converged
    (1.0, True)
    >>> plan.masses
    tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64)
    """
    tolerance = check_tolerance(tolerance)
    q = _checked(density, atoms)
    steps = Steps.of(density)
    if steps is not None:
        plan = _on_the_line(steps, q)
    else:
        assert isinstance(density, GridDensity)
        plan = _in_space(density, q, tolerance)
    if not math.isfinite(plan.bracket.upper):
        msg = (
            f"the squared distance is {plan.bracket.upper}: the box or the atoms are "
            f"too large to be squared in float64; divide them by a length of the "
            f"problem"
        )
        raise NonFinite(msg)
    if not plan.converged:
        msg = (
            f"the semi-discrete plan was asked for tolerance={tolerance:g} and its "
            f"bounds differ by {plan.bracket.relative:.3g} of the upper one, and the "
            f"masses of its cells are wrong by {plan.residual:.3g} in sum; "
            f"plan.bracket holds both; take a larger tolerance, or make one atom of "
            f"those that lie close together"
        )
        warn(msg, NotConvergedWarning)
    like = density.points
    names = "atoms", "g", "heights", "centre", "masses", "barycentres", "cost"
    return replace(plan, **{name: getattr(plan, name).to(like) for name in names})


def _checked(density: object, atoms: object) -> Cloud:
    """Return the atoms; raise if either measure is of another kind or degenerate."""
    if not isinstance(density, (GridDensity, Quantiles)):
        cure = "for two clouds use transport_plan"
        if isinstance(atoms, (GridDensity, Quantiles)):
            cure = "the density comes first: swap the arguments"
        elif isinstance(density, Measure) and not isinstance(density, Particles):
            cure = "use GridDensity.from_function(f, lower, upper, shape)"
        msg = (
            f"density must be a GridDensity or Quantiles, got "
            f"{type(density).__name__}; {cure}"
        )
        raise TypeError(msg)
    q = cloud(atoms, "atoms")  # type: ignore[arg-type]
    check_like(q.points, density.points, "atoms", "density")
    check_dimension(density.points, q.points, ("density", "atoms"))
    check_masses(density)
    if isinstance(atoms, Particles):
        check_masses(atoms)
    empty = (q.masses == 0).nonzero()[:, 0]
    if len(empty):
        msg = (
            f"atom {int(empty[0])} has no mass, so it has no cell; leave such atoms "
            f"out: Particles(points[weights > 0], weights[weights > 0])"
        )
        raise ValueError(msg)
    points = q.points.detach()
    unique, index = torch.unique(points, dim=0, return_inverse=True)
    if len(unique) < len(points):
        twice = int((torch.bincount(index) > 1).nonzero()[0])
        i, j = (int(k) for k in (index == twice).nonzero()[:2, 0])
        msg = (
            f"atoms {i} and {j} coincide, so that their cells are not determined; make "
            f"them one: y, k = points.unique(dim=0, return_inverse=True), with the "
            f"weights torch.zeros_like(y[:, 0]).index_add(0, k, weights)"
        )
        raise ValueError(msg)
    return q


def _on_the_line(density: Steps, q: Cloud) -> SemidiscretePlan:
    """Return the monotone map; exact."""
    own = Steps.at(q)
    cost = between_steps(density, own)
    found = cells_of_atoms(density, own)
    order = q.points.detach()[:, 0].argsort(stable=True)
    low, high, centres = (torch.empty_like(z).index_copy(0, order, z) for z in found)
    low, high, centres, order = (z.cpu() for z in (low, high, centres, order))
    ends = torch.stack([density.left, density.right]).detach().cpu()
    centre = density.masses.detach().cpu() @ ends.mean(0)
    frame = Frame.of(centre[None], ends.reshape(-1, 1), q)
    # Neighbouring planes meet at the border of their cells.
    border = 0.5 * (high[order[:-1]] + low[order[1:]]) - centre
    rises = border / frame.wide * frame.y[order, 0].diff()
    w = torch.zeros_like(centres)
    w = w.index_copy(0, order[1:], rises.cumsum(0))
    unit = unit_of(ends, q.points)
    sides = (
        Steps(*(z.detach().cpu() for z in (s.left, s.right, s.masses)))
        for s in (density, own)
    )
    _, bracket, _ = bracketed(*(s.over(unit) for s in sides))
    bracket = bracket.times_square(unit)
    cells = LaguerreCells(w, frame.b, centres[:, None])
    return planned(frame, q, cells, cost, bracket, converged=True)


def _in_space(density: GridDensity, q: Cloud, tolerance: float) -> SemidiscretePlan:
    """Return the plan by Laguerre cells, in dimension 2 or 3."""
    box, d = density.box, density.dim
    held = Cloud(density.points, density.weights, box)
    # Places are counted from a corner of the box, so that the distance from the origin
    # costs no digits.
    corner, spacing = (torch.tensor(z, dtype=F64) for z in (box.lower, box.spacing))
    lattice, start = Lattice(_axes(box), held.masses.reshape(box.shape)).trimmed()
    lower = spacing * torch.tensor(start)
    upper = lower + spacing * torch.tensor(lattice.masses.shape)
    # The barycentre of what is around a first one has the digits of the spread.
    first = lattice.mean
    centre = first + lattice.moved(-first).mean
    frame = Frame.of(centre, torch.stack([lower, upper]), q, corner)
    steps = StepDensity(
        (lower - frame.centre) / frame.wide, spacing / frame.wide, lattice.masses
    )
    # The part of the squared distance that does not depend on the map.
    spread = _spread(lattice, spacing, frame)
    share = 2 * frame.scaled(torch.ones((), dtype=F64))
    rest = float((spread / share.clamp_min(TINY)).clamp_max(1 / TINY))
    # Half of the tolerance is left to round-off.
    found = heights(frame.y, frame.b, steps, rest, 0.5 * tolerance)
    # Places are known up to the round-off of the sizes of both measures.
    extent = 2 * d * float(frame.wide + frame.tall)
    moves = float(spread) + extent * float(spread.sqrt())
    noise = float(share) * found.noise + NOISE * moves
    value, least = (float(spread - share * z) for z in (found.reached, found.greatest))
    bracket = Bracket(max(0.0, least - noise), value + noise)
    width = bracket.width
    masses = found.masses
    missed = float((masses - frame.b).abs().sum())
    converged = (width <= tolerance * bracket.upper or width <= 4 * noise) and (
        missed <= max(tolerance, RESIDUAL)
    )
    empty = (masses <= 0)[:, None]
    means = found.moments / masses[:, None].masked_fill(empty, 1.0)
    # Round-off moves the barycentre of a cell that holds little else, out of the box.
    means = torch.clamp(means, steps.lower, steps.upper)
    own = q.points.detach().to("cpu", F64)
    barycentres = torch.where(empty, own, frame.place + frame.wide * means)
    cells = LaguerreCells(found.w, masses, barycentres)
    cost = torch.tensor(value, dtype=F64)
    plan = planned(frame, q, cells, cost, bracket, converged=converged)
    cost = _differentiable(plan, frame, found, density, q)
    return replace(plan, cost=cost)


def _spread(lattice: Lattice, spacing: Tensor, frame: Frame) -> Tensor:
    """Return the squared distance of measures whose maps correlate by 0."""
    around = lattice.moved(-frame.centre)
    squares = sum(
        (
            (around.masses * around.on(k, x.square())).sum()
            for k, x in enumerate(around.axes)
        ),
        start=spacing.square().sum() / 12,
    )
    y = frame.tall * frame.y
    return squares + frame.b @ y.square().sum(1) + frame.apart.square().sum()


def _differentiable(
    plan: SemidiscretePlan,
    frame: Frame,
    found: Balanced,
    density: GridDensity,
    q: Cloud,
) -> Tensor:
    """Return the cost with its first derivatives in points, weights and masses."""
    n = len(q.points)
    points = q.points.to("cpu", F64)
    weights = torch.full((n,), 1.0 / n, dtype=F64)
    if q.weights is not None:
        weights = _normalised(q.weights)
    masses = _normalised(density.weights)
    y = frame.tall * frame.y - frame.apart

    def gradients(*state: Tensor) -> list[Tensor]:
        moments = frame.wide * found.moments
        grads = [2 * (found.masses[:, None] * y - moments), plan.g]
        grads.append(
            _mean_potentials(plan, frame, found.w, density)
            if state[2].requires_grad
            else torch.zeros_like(masses)
        )
        if torch.is_grad_enabled():
            grads = [once(grad, SECOND, *state) for grad in grads]
        return grads

    return known_derivatives(plan.cost, (points, weights, masses), gradients)


def _mean_potentials(
    plan: SemidiscretePlan, frame: Frame, w: Tensor, density: GridDensity
) -> Tensor:
    """Return the mean of the Kantorovich potential over each cell of the grid."""
    box = density.box
    spacing = torch.tensor(box.spacing, dtype=F64)
    lower, none = -frame.centre / frame.wide, torch.zeros(box.shape, dtype=F64)
    steps = StepDensity(lower, spacing / frame.wide, none)
    u = means_of_maximum(frame.y, w, steps)
    places = torch.meshgrid(*_axes(box), indexing="ij")
    x = torch.stack(places, -1).reshape(-1, box.dim) - frame.centre + frame.apart
    squares = x.square().sum(1) + spacing.square().sum() / 12
    constant = frame.b @ (plan.g - frame.potentials(w))
    return squares - frame.scaled(2 * u) - constant


def _axes(box: Box) -> tuple[Tensor, ...]:
    """Return the centres of the cells along each axis, from the corner of the box."""
    return tuple(
        h * (torch.arange(n, dtype=F64) + 0.5)
        for h, n in zip(box.spacing, box.shape, strict=True)
    )


def _normalised(z: Tensor) -> Tensor:
    z = z.to("cpu", F64)
    return z / z.sum()
