"""Finite networks drawn from a measure of neurons, with the bounds of their error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._typing import ArrayLike, Seed
from otflow._validation import (
    check_kind,
    check_like,
    check_option,
    non_negative_int,
    seed_and_stream,
)
from otflow.errors import NonFinite
from otflow.meanfield.dual_balls import data_in_ball, reach
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.residuals import NORMS, check_network
from otflow.measures import Particles

__all__ = ["BarronSample", "barron_sample", "neuron_sizes"]

BY = ("path norm", "mass")


@dataclass(frozen=True, eq=False)
class BarronSample:
    r"""N neurons drawn from a measure, and what Theorem 2.1 says of them.

    Parameters
    ----------
    measure : Particles
        The N neurons, of equal masses.
    norm : float
        The norm B of the measure from which they are drawn.
    error : float
        The mean square of :math:`f - f_N` over the data.
    path_norm : float
        The path norm of the N neurons.
    error_bound, path_bound : float
        The bounds :math:`3 \kappa^2 B^2/N` and 2B.
    applies : bool
        Whether both bounds hold for these neurons.
    why : str
        What was found, in words.
    draws : int
        Number of draws that were made.

    Attributes
    ----------
    measure, norm, error, path_norm, error_bound, path_bound, applies, why, draws
        As above.

    See Also
    --------
    barron_sample : Draws the neurons.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Particles(torch.randn(500, 3, dtype=torch.float64))
    >>> X = torch.rand(100, 1, dtype=torch.float64)
    >>> network = of.meanfield.TwoLayer("relu")
    >>> sample = of.meanfield.barron_sample(network, mu, 20, X)
    >>> sample.applies, sample.measure.n
    (True, 20)
    """

    measure: Particles
    norm: float
    error: float
    path_norm: float
    error_bound: float
    path_bound: float
    applies: bool
    why: str
    draws: int

    def __repr__(self) -> str:
        return (
            f"BarronSample(N={self.measure.n}, B={self.norm:.4g}: error "
            f"{self.error:.4g} against {self.error_bound:.4g}, path norm "
            f"{self.path_norm:.4g} against {self.path_bound:.4g}, {self.why})"
        )


def barron_sample(
    network: TwoLayer,
    mu: Particles,
    N: int,
    X: ArrayLike,
    *,
    norm: str = "l1",
    by: str = "path norm",
    tries: int = 20,
    generator: Seed = 0,
) -> BarronSample:
    r"""Draw a network of N neurons from a measure that represents a function.

    Let :math:`f = \int a\,\varphi(w\cdot x + b)\,d\mu`, :math:`s(\theta) = |a|\,|(w,
    b)|`, and :math:`B = \int s\,d\mu` the path norm. The law :math:`s\mu/B` of the
    neurons :math:`B\,\theta/s(\theta)` represents f too, and all of its neurons have
    the path norm B: the reweighting of :cite:t:`e2022barron`. For N independent draws

    .. math:: E\,\|f - f_N\|^2 \le \frac{\kappa^2 B^2}N, \qquad
        \frac1N\sum_i |a_i|\,|(w_i, b_i)| = B,

    with the mean over any data of the dual unit ball on the left. Theorem 2.1 of the
    survey, :math:`\|f - f_N\|^2 \le 3\kappa^2B^2/N` and path norm at most 2B, then
    holds with a probability of at least 2/3, by Markov's inequality.

    Parameters
    ----------
    network : TwoLayer
        Neurons of a homogeneous unit, in the scaling "mean-field".
    mu : Particles
        The measure of neurons, of any masses.
    N : int
        Number of neurons to draw.
    X : Tensor or ndarray, shape (n, d)
        Data over which the error is a mean. They must lie in the dual unit ball:
        :math:`[-1, 1]^d` for "l1", which holds :math:`[0, 1]^d`, the Euclidean one for
        "l2".
    norm : str
        "l1" or "l2", of outer weights and of the inner ones.
    by : str
        "path norm" draws as above. "mass" draws neurons as they are by their masses:
        the plain estimate of Monte Carlo, with an error of :math:`(E|\sigma|^2 -
        f^2)/N`. Then :math:`B^2 = \int s^2 d\mu`, which is no less, and both bounds
        hold with a probability of at least 1 - 1/3 - 1/2 = 1/6.
    tries : int
        Most draws. The first for which both bounds hold is returned.
    generator : int or torch.Generator, optional
        Seed or source of randomness.

    Returns
    -------
    BarronSample
        The neurons, the error, the path norm and both bounds. If no draw satisfies both
        bounds, ``applies`` is False, and the neurons are those of the least error.

    Raises
    ------
    Unsupported
        If the unit is not homogeneous, the scaling is not "mean-field", or the measure
        carries a graph.
    ValueError
        If data lie outside of the dual unit ball, if N or `tries` is below 1.
    NonFinite
        If the square of a norm overflows, or its bound underflows to 0.

    See Also
    --------
    otflow.meanfield.path_norm : The norm B.

    Notes
    -----
    Here :math:`\kappa = \sup_x |(x, 1)|` in the dual norm, times the steepest slope of
    the unit: 1 for "l1" and :math:`\sqrt2` for "l2" with relu and a bias. The variance
    of one draw is at most :math:`E|\sigma|^2 \le \kappa^2 B^2`, as
    :math:`|\varphi(w\cdot x + b)| \le \kappa\,|(w, b)|`. Neither the inputs' dimension
    nor the number of data enters. Time O(n (M + N) d) for M atoms, each further draw
    O(n N d).

    Examples
    --------
    >>> import torch, otflow as of
    >>> theta = torch.tensor([[2.0, 1.0, -0.5], [2.0, -1.0, 0.5]]).double()
    >>> mu = of.Particles(theta)  # |x - 1/2|
    >>> X = torch.linspace(0, 1, 50, dtype=torch.float64)[:, None]
    >>> sample = of.meanfield.barron_sample(of.meanfield.TwoLayer("relu"), mu, 100, X)
    >>> sample.norm, sample.path_norm, sample.error < sample.error_bound
    (3.0, 3.0, True)
    """
    check_network(network, homogeneous=True)
    check_kind(mu, Particles, "mu")
    count = non_negative_int(N, "N", minimum=1)
    most = non_negative_int(tries, "tries", minimum=1)
    check_option(by, "by", BY)
    x = data_in_ball(X, norm)
    check_like(x, mu.points, "X", "the measure")
    network.check_neurons(mu.points, x.shape[1])
    mu.refuse_graph(
        "a draw of neurons",
        "which neurons are drawn has no derivative",
        cure="mu.detach()",
    )
    stream = seed_and_stream(generator, mu.device)[1]
    sizes = neuron_sizes(network, mu.points, norm)
    size, chances, theta = _law(network, mu, sizes, by)
    inputs = network.encode(x)
    target = network.evaluate(inputs, mu.points, network.masses(mu.weights))
    tall = reach(network, norm) * size
    limits = 3 * tall * tall / count, 2 * size
    numbers = torch.finfo(mu.dtype)
    if tall > 0 and not (numbers.tiny < limits[0] and 4 * tall * tall < numbers.max):
        msg = (
            f"the norm B = {size:.3g} of the measure has a square beyond the numbers "
            f"of {mu.dtype}, so that no error can be compared with its bound; divide "
            f"the outer weights by that"
        )
        raise NonFinite(msg)
    best, made, holds = None, 0, False
    while made < most and not holds:
        made += 1
        index = torch.multinomial(chances, count, replacement=True, generator=stream)
        drawn = Particles(theta[index])
        masses = network.masses(drawn.weights)
        gap = network.evaluate(inputs, drawn.points, masses) - target
        error = float(gap.square().reshape(len(x), -1).sum(1).mean())
        path = float(neuron_sizes(network, drawn.points, norm).mean())
        holds = error <= limits[0] and path <= limits[1]
        if best is None or holds or error < best[1]:
            best = drawn, error, path
    assert best is not None
    why = (
        f"both bounds hold at draw {made}"
        if holds
        else f"no draw of {most} satisfies both bounds: the least error is shown"
    )
    return BarronSample(best[0], size, *best[1:], *limits, holds, why, made)


def neuron_sizes(network: TwoLayer, theta: Tensor, norm: str) -> Tensor:
    r"""Return :math:`|a|\,|(w, b)|` of rows, (N,)."""
    order = 1 if check_option(norm, "norm", NORMS) == "l1" else 2
    a, v = network.split(theta)
    outer: Tensor = torch.linalg.vector_norm(a, order, dim=1)
    sizes: Tensor = outer * torch.linalg.vector_norm(v, order, dim=1)
    return sizes


def _law(
    network: TwoLayer, mu: Particles, sizes: Tensor, by: str
) -> tuple[float, Tensor, Tensor]:
    """Return the norm B, the chances of the atoms, and the neurons that are drawn."""
    loads = mu.weights * sizes
    total = loads.sum()
    if by == "mass" or not bool(total > 0):
        unit = sizes.max() if bool(total > 0) else torch.ones_like(total)
        size = float(unit * (mu.weights @ (sizes / unit).square()).sqrt())
        return size, mu.weights, mu.points
    a, v = network.split(mu.points)
    # Atoms without a path norm are not drawn.
    factor = torch.where(sizes > 0, total / sizes, 0.0)
    return float(total), loads, torch.cat([factor[:, None] * a, v], dim=1)
