r"""The W2 distance between weighted particles or densities, differentiable."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from otflow._arrays import unit_of
from otflow.errors import NonFinite
from otflow.measures import Gaussian, GridDensity, Quantiles
from otflow.metrics.assignments import assignment
from otflow.metrics.bounds import on_lattices
from otflow.metrics.bures import between_gaussians
from otflow.metrics.inputs import Cloud, CloudLike, clouds
from otflow.metrics.plans import Plan, check_tolerance, couple
from otflow.metrics.steps import between_steps, on_the_line
from otflow.metrics.weights import is_weighted, weight_slope, weight_term

__all__ = ["root", "wasserstein2", "wasserstein2_squared"]

Distant: TypeAlias = CloudLike | Quantiles | GridDensity | Gaussian
"""Measures that have a distance to others of their kind."""


def wasserstein2(mu: Distant, nu: Distant, *, tolerance: float = 0.0) -> Tensor:
    r"""Return :math:`W_2(\mu, \nu) = (\min_P \sum_{ij} P_{ij} |x_i - y_j|^2)^{1/2}`.

    Exact; the metric of :cite:p:`villani2003topics`, with the cost :math:`|x-y|^2`
    without a factor 1/2.

    Parameters
    ----------
    mu, nu : Particles, Tensor, ndarray, GridDensity, Quantiles; or two Gaussian
        Measures; points (n, d) stand for equal weights 1/n. A density on the line
        (`Quantiles` or a `GridDensity`) is one that is constant on each cell, also
        against particles. A `GridDensity` in dimension 2 or 3 stands for atoms at the
        centres of its cells. The W2 distance of two step densities differs by at most
        :math:`h\sqrt{d/3}` for cells of side h.
    tolerance : float
        How far the value may lie above the distance, as a share of the value, in
        [0, 1). With 0 it is exact. The gradient then is that of the potentials that
        prove the bound.

    Returns
    -------
    Tensor
        0-d, in the dtype and on the device of `mu`, with the gradient of the root of
        `wasserstein2_squared`. At distance 0 the gradient is 0. A distance of 1e-200,
        whose square underflows, keeps its digits.

    See Also
    --------
    otflow.metrics.wasserstein2_squared : Its square, smoother. It lists the errors.
    otflow.metrics.wasserstein2_bounds : A bracket of the square.
    otflow.metrics.semidiscrete_plan : A density on the plane or in space, not its
        centres, against atoms.
    otflow.metrics.sinkhorn_divergence : Smooth, for many points.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    >>> of.metrics.wasserstein2(x, x + torch.tensor([3.0, 4.0]))
    tensor(5.)
    """
    share = check_tolerance(tolerance)
    value, like = _measured(mu, nu, share * (2 - share), squared=False)
    return value.to(like)


def wasserstein2_squared(mu: Distant, nu: Distant, *, tolerance: float = 0.0) -> Tensor:
    r"""Return :math:`W_2^2(\mu, \nu) = \min_P \sum_{ij} P_{ij} |x_i - y_j|^2`, exactly.

    Differentiable in points and weights of both measures:

    .. math:: \frac{\partial}{\partial x_i} = 2\sum_j P_{ij}(x_i - y_j), \qquad
        \frac{\partial}{\partial a_i} = f_i - \sum_k a_k f_k,

    where f is the potential of `Plan`. Weights are divided by their sums, so their
    gradient is centred. For particles :math:`-\frac1{a_i}\partial_{x_i} W_2^2/2 =
    T(x_i) - x_i` is the velocity towards the other measure.

    Parameters
    ----------
    mu, nu : Particles, Tensor, ndarray, GridDensity, Quantiles; or two Gaussian
        Measures; points (n, d) stand for equal weights 1/n. A density on the line
        (`Quantiles` or a `GridDensity`) is one that is constant on each cell, also
        against particles. A `GridDensity` in dimension 2 or 3 stands for atoms at the
        centres of its cells. The W2 distance of two step densities differs by at most
        :math:`h\sqrt{d/3}` for cells of side h.
    tolerance : float
        How far the value may lie above the square, as a share of the value, in
        [0, 1). With 0 it is exact. The gradient then is that of the potentials that
        prove the bound.

    Returns
    -------
    Tensor
        0-d, in the dtype and on the device of `mu`.

    Raises
    ------
    ValueError
        If dimensions or devices differ, or a point is not finite.
    TypeError
        If dtypes differ, or a measure is not made of atoms.
    MemoryError
        If the cost matrix would exceed half of the memory.
    NotConverged
        If the solver stopped early, with a value above W2.
    NonFinite
        If the value is too large for its dtype.

    Notes
    -----
    Solved in float64 on the CPU: O(n log n) on the line, else as `assignment` and
    `transport_plan`. Two large grids and a `tolerance` take the time of
    `wasserstein2_bounds`. The square is piecewise linear in the masses of atoms, so the
    potentials of grids have no derivative in the masses beyond that of the division by
    their sum.

    If the plan is degenerate, as for equal masses, the distance has a kink in the
    weights, and the gradient is one of many subgradients. For a flow of the weights use
    `sinkhorn_divergence`. Second derivatives are exact where the plan is not
    degenerate; at a kink a second derivative that does not exist raises `Unsupported`.
    Between densities second derivatives are exact, between Gaussians also third ones.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.tensor([[0.0], [2.0]], requires_grad=True)
    >>> d = of.metrics.wasserstein2_squared(x, torch.tensor([[1.0], [2.0]]))
    >>> d
    tensor(0.5000, grad_fn=...)
    >>> d.backward()
    >>> x.grad
    tensor([[-1.],
            [ 0.]])
    """
    value, like = _measured(mu, nu, check_tolerance(tolerance), squared=True)
    return value.to(like)


def _measured(
    mu: Distant, nu: Distant, tolerance: float, *, squared: bool
) -> tuple[Tensor, Tensor]:
    """Return the distance or its square in float64, and a tensor like the result.

    The root is taken in float64, since the square of a distance of 1e-25 is 0 in
    float32. For the root, lengths are divided by a unit of their size, a power of two,
    since the square of 1e-200 is 0 in float64. The squared distance uses the unit 1:
    its gradient would carry the square of another unit.
    """
    line = on_the_line(mu, nu)
    if line is not None:
        steps, others, like = line
        ends = (steps.left, steps.right, others.left, others.right)
        unit = 1.0 if squared else unit_of(*ends)
        square = between_steps(steps.over(unit), others.over(unit))
    elif isinstance(mu, Gaussian) and isinstance(nu, Gaussian):
        vector, like = between_gaussians(mu, nu), mu.mean
        unit = 1.0 if squared else unit_of(vector)
        square = (vector / unit).square().sum()
    else:
        p, q = clouds(mu, nu, grids=True)
        blurred = on_lattices(p, q, tolerance)
        if blurred is not None:
            bounds, unit = blurred
            square = bounds.bracket.upper + weight_slope(p, q, bounds.f, bounds.g)
            square = unit * (unit * square) if squared else square
        else:
            square, unit = _coupled(p, q, tolerance, squared=squared)
        like = p.points
    value = square if squared else unit * root(square)
    if not float(value.detach()) <= torch.finfo(like.dtype).max:  # NaN is not
        msg = (
            f"the {'squared ' if squared else ''}distance is {float(value.detach())} "
            f"in {like.dtype}: a mass or a coordinate of mu or nu is not a finite "
            f"number, or too large{' to be squared' if squared else ''}"
        )
        raise NonFinite(msg)
    return value, like


def _coupled(
    p: Cloud, q: Cloud, tolerance: float, *, squared: bool
) -> tuple[Tensor, float]:
    """Return the square of the distance in a unit squared, and the unit."""
    x, y = p.places, q.places
    unit = 1.0 if squared else unit_of(x, y)
    x, y = x / unit, y / unit
    s, t = x.detach(), y.detach()
    matched = p.is_uniform and q.is_uniform and len(s) == len(t)
    is_grid = p.box is not None or q.box is not None
    plan: Plan | None = None
    if is_weighted(p, q) or is_grid or not matched or tolerance:
        plan = couple(s, p.masses, t, q.masses, tolerance)
        rows, columns, masses = plan.rows, plan.columns, plan.masses
    else:
        # Without a gradient in weights no potentials are needed: an assignment is
        # faster.
        rows, columns, masses = torch.arange(len(s)), assignment(s, t), p.masses
    moves = x[rows] - y[columns]
    if plan is not None and is_weighted(p, q):
        distances = moves.square().sum(1)
        square = masses @ distances + weight_term(p, q, plan, distances)
    else:
        own = 1.0 if squared else unit_of(moves)  # far below that of the clouds
        unit, square = unit * own, masses @ (moves / own).square().sum(1)
    return square, unit


def root(square: Tensor) -> Tensor:
    """Return the square root, with gradient 0 at 0."""
    zero = square <= 0
    return square.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)
