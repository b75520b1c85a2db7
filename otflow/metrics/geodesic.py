r"""Wasserstein geodesics between particle measures."""

from __future__ import annotations

from otflow._validation import real
from otflow.measures import Particles
from otflow.metrics.assignment import assignment
from otflow.metrics.plan import transport_plan

__all__ = ["aligned_ends", "geodesic"]


def aligned_ends(mu: Particles, nu: Particles) -> tuple[Particles, Particles]:
    r"""Return :math:`\mu` and :math:`\nu` with atoms matched: index i goes to index i.

    For equal weights in equal number `nu` is permuted; otherwise both are split into
    the cells of an optimal plan. ``a.displacement_to(b)`` of the two is then the
    initial velocity of the geodesic, and ``a.norm`` of it is W2.

    Parameters
    ----------
    mu, nu : Particles
        The ends.

    Returns
    -------
    tuple of Particles
        The same measures, of equal size and weights.

    Examples
    --------
    >>> import torch, otflow as of
    >>> a = of.Particles(torch.tensor([[0.0], [1.0]]))
    >>> b = of.Particles(torch.tensor([[9.0], [5.0]]))
    >>> of.metrics.aligned_ends(a, b)[1].points.T
    tensor([[5., 9.]])
    """
    for name, measure in (("mu", mu), ("nu", nu)):
        if not isinstance(measure, Particles):
            msg = f"{name} must be Particles, got {type(measure).__name__}"
            raise TypeError(msg)
    if mu.is_uniform and nu.is_uniform and mu.n == nu.n:
        return mu, Particles(nu.points[assignment(mu.points, nu.points)])
    plan = transport_plan(mu, nu)
    ends = (mu.points[plan.rows], nu.points[plan.columns])
    a, b = (Particles(x, plan.masses, normalize=True) for x in ends)
    return a, b


def geodesic(mu: Particles, nu: Particles, t: float) -> Particles:
    r"""Return :math:`\mu_t = ((1-t)\,x + t\,y)_\# P`, P an optimal plan.

    It is the geodesic of constant speed, :math:`W_2(\mu_s, \mu_t) = |t - s|\,
    W_2(\mu_0, \mu_1)`, and its action is :math:`\int_0^1 \|v_t\|^2 dt = W_2^2`
    :cite:p:`benamou2000computational`.

    Parameters
    ----------
    mu, nu : Particles
        The ends, at times 0 and 1.
    t : float
        Time; outside [0, 1] the straight lines are prolonged, which may stop being a
        geodesic.

    Returns
    -------
    Particles
        Of the size of `mu` for equal weights in equal number, else one atom for each
        cell of the plan.

    Notes
    -----
    Cost: one assignment or one plan. For many times call `aligned_ends` once and push.

    Examples
    --------
    >>> import torch, otflow as of
    >>> a = of.Particles(torch.tensor([[0.0], [1.0]]))
    >>> b = of.Particles(torch.tensor([[9.0], [5.0]]))
    >>> of.metrics.geodesic(a, b, 0.5).points.T
    tensor([[2.5000, 5.0000]])
    """
    t = real(t, "t")
    start, end = aligned_ends(mu, nu)
    return start.push(start.displacement_to(end), t)
