"""Barycentres of W2: the means of several measures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Generic, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from otflow._graphs import records, refuse_graph
from otflow._typing import ArrayLike
from otflow._validation import check_kind, non_negative_int, positive, real, shown
from otflow._warn import warn
from otflow.errors import NotConvergedWarning
from otflow.measures import Gaussian, GridDensity, Measure, Particles
from otflow.metrics.bracket import Bracket
from otflow.metrics.distances import wasserstein2_squared
from otflow.metrics.found import Found
from otflow.metrics.free_support import free_support
from otflow.metrics.gaussian_barycenters import of_gaussians
from otflow.metrics.grid_barycenters import on_grid
from otflow.metrics.kinds import OnLine, check_particles, line_edges
from otflow.metrics.steps import quantiles_of

__all__ = ["BarycenterResult", "barycenter"]

M_co = TypeVar("M_co", bound=Measure, covariant=True)
Kind = TypeVar("Kind", Particles, Gaussian)


@dataclass(frozen=True, eq=False)
class BarycenterResult(Generic[M_co]):
    r"""A barycentre, and what is known of it.

    Parameters
    ----------
    measure : Measure
        The barycentre :math:`\nu`.
    value : float
        The Frechet functional :math:`\sum_i \lambda_i W_2^2(\nu, \mu_i)`. With a blur,
        twice the mean of the debiased Sinkhorn divergences, which tends to it.
    residual : float
        The number that is compared with the tolerance, see `barycenter`.
    iterations : int
        Iterations, each of which costs one plan, rotation or scaling a measure.
    converged : bool
        Whether the residual met the tolerance.
    guarantee : str
        What is proved, a word of `otflow.proximal.Guarantee`. ``"optimal"``: the
        functional has its least value, to the tolerance. ``"stationary"``: a critical
        point, perhaps a local minimum. ``"sinkhorn"``: the minimum of the regularised
        functional. ``"none"`` if the iteration did not converge.
    measures : tuple of Measure
        The measures :math:`\mu_i` of positive weight.
    weights : tuple of float
        Their weights :math:`\lambda_i`.

    Attributes
    ----------
    measure, value, residual, iterations, converged, guarantee, measures, weights
        As above.

    See Also
    --------
    otflow.metrics.barycenter : Computes it.

    Examples
    --------
    >>> import torch, otflow as of
    >>> ends = [of.Quantiles(torch.tensor([0.0, 1.0]) + 4 * k) for k in (0, 1)]
    >>> mean = of.metrics.barycenter(ends)
    >>> mean.measure.edges, mean.value, mean.guarantee
    (tensor([2., 3.]), 4.0, 'optimal')
    """

    measure: M_co
    value: float
    residual: float
    iterations: int
    converged: bool
    guarantee: str
    measures: tuple[Measure, ...]
    weights: tuple[float, ...]

    def bracket(self) -> Bracket:
        r"""Return bounds of the least value of the Frechet functional.

        The lower bound is :math:`\sum_{i<j} \lambda_i\lambda_j W_2^2(\mu_i, \mu_j)`,
        from the multi-marginal form of the problem :cite:p:`agueh2011barycenters`; the
        upper bound is `value`. On the line, and between two measures, both are equal.

        Returns
        -------
        Bracket
            It costs a distance for each pair of measures.

        Raises
        ------
        TypeError
            For a Sinkhorn barycentre, whose value no distance bounds.

        Examples
        --------
        >>> import torch, otflow as of
        >>> corners = [of.Particles(x[None]) for x in torch.eye(3)]
        >>> found = of.metrics.barycenter(corners).bracket()
        >>> round(found.lower, 4), round(found.upper, 4)
        (0.6667, 0.6667)
        """
        if self.guarantee == "sinkhorn":
            msg = (
                "this barycentre minimises Sinkhorn divergences, and no distance "
                "bounds their value; for a bracket make particles of the measures: "
                "barycenter([Particles(mu.points, mu.weights) for mu in measures])"
            )
            raise TypeError(msg)
        pairs = combinations(zip(self.weights, self.measures, strict=True), 2)
        parts = [p * q * _squared(mu, nu) for (p, mu), (q, nu) in pairs]
        # A bound in the dtype of the distances; their round-off is not below it.
        return Bracket(min(sum(parts), self.value), self.value)


@overload
def barycenter(
    measures: Sequence[Kind],
    weights: ArrayLike | Sequence[float] | None = None,
    *,
    start: Particles | None = None,
    blur: float | None = None,
    tolerance: float | None = None,
    max_iterations: int = 5000,
) -> BarycenterResult[Kind]: ...
@overload
def barycenter(
    measures: Sequence[Any],
    weights: ArrayLike | Sequence[float] | None = None,
    *,
    start: Particles | None = None,
    blur: float | None = None,
    tolerance: float | None = None,
    max_iterations: int = 5000,
) -> BarycenterResult[Any]: ...
def barycenter(
    measures: Sequence[Any],
    weights: ArrayLike | Sequence[float] | None = None,
    *,
    start: Particles | None = None,
    blur: float | None = None,
    tolerance: float | None = None,
    max_iterations: int = 5000,
) -> BarycenterResult[Any]:
    r"""Return the minimiser of :math:`\nu \mapsto \sum_i \lambda_i W_2^2(\nu, \mu_i)`.

    This is the barycentre of :cite:p:`agueh2011barycenters`. How it is found depends on
    the kind of the measures.

    *Densities on the line* (`Quantiles`, `GridDensity`): the quantile function is
    :math:`\sum_i \lambda_i Q_i`, exactly, on the merged levels. The answer is
    `Quantiles`, and optimal.

    *Gaussians*: the fixed point :math:`L = \sum_i \lambda_i L_i O_i` of
    :cite:p:`alvarez2016fixed`, with :math:`O_i` the rotation of the optimal map to
    :math:`N(m_i, L_iL_i^\top)`. Its value falls in each iteration, and the limit is
    the one barycentre if a covariance is regular: so the answer is optimal. The
    residual is :math:`\|\sum_i \lambda_i L_i O_i - L\| / \|L\|`.

    *Particles*: plans to all measures are glued, and each cell moves to the mean
    :math:`\sum_i \lambda_i y_i` of its atoms. Points and masses are free; a linear
    program keeps at most :math:`\sum_i n_i - N + 1` atoms, as many as a barycentre
    needs :cite:p:`anderes2016discrete`. With a `start` its masses are kept, and an atom
    moves to the mean of its cells :cite:p:`cuturi2014fast`. The value falls in each
    iteration. Of two measures, and on the line, the answer is optimal. Else the problem
    is not convex in the points, so that the answer is stationary only: another start
    may lead to a smaller value, and `BarycenterResult.bracket` bounds how much smaller.
    The residual is the :math:`L^2` norm of the last move over the root of the value.

    *Densities on a grid, with a blur*: the minimiser of :math:`\sum_i \lambda_i
    S_\varepsilon(\nu, \mu_i)`, S the debiased Sinkhorn divergence, by the scalings of
    :cite:p:`janati2020debiased`. The functional is convex, and the scalings have the
    marginals and the optimality as their fixed point; the residual is the sum of the
    errors of the marginals.

    Parameters
    ----------
    measures : sequence of Particles, Gaussian, Quantiles or GridDensity
        The measures :math:`\mu_i`, of one kind, dtype and dimension.
    weights : array_like, shape (N,), optional
        Their weights :math:`\lambda_i \ge 0`, of sum 1; equal by default.
    start : Particles, optional
        Where the particles start; their number and masses are kept. By default the
        measure with most atoms, with free masses.
    blur : float, optional
        Length :math:`\varepsilon^{1/2}` of the entropic regularisation, at least the
        spacing of the grid. Densities in 2-D and 3-D need one.
    tolerance : float, optional
        Largest residual of a converged answer: by default 1e-8, on a grid 1e-5, a share
        of the mass.
    max_iterations : int
        Most iterations.

    Returns
    -------
    BarycenterResult
        The measure, its value, and how it was found.

    Raises
    ------
    ValueError
        If there is no measure, weights are no probability, every covariance is
        singular, or the blur is shorter than a cell.
    TypeError
        If kinds or dtypes differ, or an option is for another kind.
    Unsupported
        If a graph would be lost, see the Notes.
    NotConverged
        If round-off dominates the derivatives of a barycentre of Gaussians.

    Warns
    -----
    NotConvergedWarning
        If the residual did not meet the tolerance.

    Notes
    -----
    Cost of an iteration: O(n log n) on the line, once; O(N d^3) for Gaussians; N plans
    for particles; O(N n^{1 + 1/d}) on a grid of n cells, where some hundreds of
    iterations meet the default, and a tenth of a tolerance takes ten times as many.
    Solved in float64; plans on the CPU.

    The measure is differentiable in the weights, which are divided by their sum, if all
    are positive. The value and the residual are numbers. *On the line* it is also
    differentiable in the edges, not in the masses. *Gaussians*: in means and
    covariances, up to three times, by the implicit function theorem at the fixed point;
    not in a singular covariance, whose root has no derivative. *Particles*: in the
    points, for the plans that were found; these are constant around measures whose
    plans are unique, so the derivative is exact there, and the masses have none. *On a
    grid*: in positive masses. This is the derivative of the iterations that were made,
    and takes about the time of four times as many, and memory for the root of their
    number. It tends to that of the minimiser as they converge.

    Examples
    --------
    >>> import torch, otflow as of
    >>> a = of.Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, 9.0])))
    >>> b = of.Gaussian(torch.ones(2), torch.diag(torch.tensor([9.0, 1.0])))
    >>> mean = of.metrics.barycenter([a, b])
    >>> mean.measure.mean, mean.measure.covariance
    (tensor([0.5000, 0.5000]), tensor([[4., 0.],
            [0., 4.]]))
    >>> mean.converged, mean.guarantee
    (True, 'optimal')
    """
    mus, shares = _checked(measures, weights)
    if tolerance is None:
        tolerance = 1e-8 if blur is None else 1e-5
    tolerance = positive(tolerance, "tolerance")
    most = non_negative_int(max_iterations, "max_iterations", minimum=1)
    first = mus[0]
    if start is not None and not isinstance(first, Particles):
        msg = (
            f"start is where particles start, and measures are "
            f"{type(first).__name__}; leave start out"
        )
        raise TypeError(msg)
    if blur is not None and not isinstance(first, GridDensity):
        msg = (
            f"blur is for densities on a grid, and measures are "
            f"{type(first).__name__}, whose barycentre needs no blur; leave blur out"
        )
        raise TypeError(msg)
    if isinstance(first, Gaussian):
        found = Found(*of_gaussians(mus, shares, tolerance, most))
    elif isinstance(first, Particles):
        found = _of_particles(mus, shares, start, tolerance, most)
    elif isinstance(first, GridDensity) and (blur is not None or first.dim > 1):
        found = on_grid(mus, shares, blur, tolerance, most)
    else:
        found = _on_line(mus, shares)
    return _result(found, mus, shares, tolerance)


def _of_particles(
    mus: Sequence[Particles],
    shares: Tensor,
    start: Particles | None,
    tolerance: float,
    most: int,
) -> Found:
    """Return the barycentre of particles with free support."""
    named = {f"measures[{i}]": mu for i, mu in enumerate(mus)}
    if start is not None:
        named["start"] = start
    check_particles(named, "a barycentre of particles")
    measure, residual, count = free_support(mus, shares, start, tolerance, most)
    # On the line glued plans are monotone; of two measures they are the plan.
    known = start is None and (len(mus) <= 2 or mus[0].dim == 1)
    word = "optimal" if known else "stationary"
    return Found(measure, residual, count, word)


def _on_line(mus: Sequence[Any], shares: Tensor) -> Found:
    """Return the mean of quantile functions."""
    names = [f"measures[{i}]" for i in range(len(mus))]
    edges, masses = line_edges(mus, names)
    mean = torch.tensordot(shares.to(edges[0]), torch.stack(edges), 1)
    return Found(quantiles_of(mean, masses, mus[0].points), 0.0, 1)


def _result(
    found: Found, mus: Sequence[Any], shares: Tensor, tolerance: float
) -> BarycenterResult[Any]:
    """Return what was found with its value; warn if it did not converge."""
    numbers, value = shares.tolist(), found.value
    if value is None:
        pairs = zip(numbers, mus, strict=True)
        value = sum(share * _squared(found.measure, mu) for share, mu in pairs)
    converged = found.residual <= tolerance
    if not converged:
        msg = (
            f"the barycentre stopped after {found.iterations} iterations at the "
            f"residual {found.residual:.3g}, above the tolerance {tolerance:g}; take a "
            f"larger max_iterations or tolerance, or on a grid a larger blur"
        )
        warn(msg, NotConvergedWarning)
    return BarycenterResult(
        found.measure,
        value,
        found.residual,
        found.iterations,
        converged,
        found.word if converged else "none",
        tuple(mus),
        tuple(numbers),
    )


def _squared(mu: Any, nu: Any) -> float:
    """Return the squared distance as a number."""
    return float(wasserstein2_squared(mu.detach(), nu.detach()))


def _checked(measures: Any, weights: Any) -> tuple[list[Any], Tensor]:
    """Return the measures of positive weight, of one kind, and their weights.

    The weights are float64, on the CPU, with their graph.
    """
    if isinstance(measures, (Measure, str)) or not isinstance(measures, Iterable):
        msg = f"measures must be a sequence, got {shown(measures)}; write [mu]"
        raise TypeError(msg)
    mus = list(measures)
    if not mus:
        msg = "measures must be one measure or more, got none"
        raise ValueError(msg)
    on_line = isinstance(mus[0], OnLine)
    for i, mu in enumerate(mus):
        check_kind(mu, Measure, f"measures[{i}]")
        if not (type(mu) is type(mus[0]) or (on_line and isinstance(mu, OnLine))):
            msg = (
                f"measures must be of one kind, got {type(mus[0]).__name__} and "
                f"{type(mu).__name__}; represent all of them by particles, "
                f"Particles(mu.points, mu.weights)"
            )
            raise TypeError(msg)
    if weights is None:
        return mus, torch.full((len(mus),), 1 / len(mus), dtype=torch.float64)
    shares = _shares(weights, len(mus))
    if records(shares):
        if bool((shares.detach() == 0).any()):
            refuse_graph(
                "a barycentre",
                "a weight of 0 has a derivative on one side alone",
                shares,
                cure="weights.detach(), or leave its measure out",
            )
        return mus, shares / shares.sum()
    kept = (shares > 0).nonzero()[:, 0]
    return [mus[i] for i in kept.tolist()], shares[kept] / shares.sum()


def _shares(weights: Any, count: int) -> Tensor:
    """Return weights that are a probability: float64, on the CPU, with their graph."""
    is_array = isinstance(weights, (Tensor, np.ndarray))
    divided = "weights / weights.sum()" if is_array else "w / sum(weights) for each w"
    if isinstance(weights, (Sequence, np.ndarray)) and not isinstance(weights, str):
        numbers = weights.tolist() if isinstance(weights, np.ndarray) else weights
        single = isinstance(weights, np.ndarray) and weights.dtype == np.float32
        dtype = torch.float32 if single else torch.float64
        if np.ndim(weights) == 1:
            numbers = [real(number, "a weight") for number in numbers]
        weights = torch.tensor(numbers, dtype=dtype)
    if not isinstance(weights, Tensor) or weights.is_complex():
        msg = f"weights must be numbers, one for each measure, got {shown(weights)}"
        raise TypeError(msg)
    if weights.shape != (count,):
        msg = (
            f"weights must have shape ({count},), one for each measure, got "
            f"{tuple(weights.shape)}"
        )
        raise ValueError(msg)
    shares = weights.to("cpu", torch.float64)
    numbers, total = shares.detach(), float(shares.detach().sum())
    if not bool((numbers >= 0).all()) or not total < float("inf"):
        msg = f"weights must be finite and non-negative, got {numbers.tolist()}"
        raise ValueError(msg)
    slack = 1e-9 if not weights.is_floating_point() else torch.finfo(weights.dtype).eps
    if abs(total - 1) > max(1e-9, 4 * count * slack):
        msg = f"weights must sum to 1, got {total:.9g}; give {divided}"
        raise ValueError(msg)
    return shares
