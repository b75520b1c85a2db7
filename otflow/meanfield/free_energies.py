"""The free energy of a network: risk, weight decay and entropy."""

from __future__ import annotations

from torch import Tensor

from otflow._validation import check_kind, positive
from otflow.functionals import Entropy, Functional, Potential

__all__ = ["free_energy"]


def half_square(x: Tensor) -> Tensor:
    """Return half the squared length of each row."""
    return 0.5 * x.square().sum(-1)


def free_energy(risk: Functional, temperature: float, ridge: float = 0.0) -> Functional:
    r"""Return the free energy of a risk R, with weight decay and entropy.

    .. math:: F(\mu) = R(\mu) + \frac\lambda2 \int |\theta|^2\, d\mu
        + \tau \int \rho\log\rho

    `otflow.Langevin` is noisy gradient descent on :math:`R +
    \frac\lambda2\int|\theta|^2d\mu` for it. If R is convex along mixtures and
    :math:`\lambda > 0`, the free energy has one minimiser, the Gibbs fixed point
    :math:`\rho \propto e^{-(R'[\rho] + \lambda|\theta|^2/2)/\tau}`
    :cite:p:`mei2018mean,hu2021meanfield`; `otflow.optimality.gibbs` finds it on a grid.

    Parameters
    ----------
    risk : Functional
        The risk R, such as `Risk`.
    temperature : float
        The temperature :math:`\tau \ge 0`, the inverse of :math:`\beta`. With 0 there
        is no entropy.
    ridge : float, optional
        The weight decay :math:`\lambda \ge 0` of every coordinate of a neuron. With 0
        there is none, and on the whole space a bounded risk has no law at rest.

    Returns
    -------
    Functional
        The sum.

    Raises
    ------
    TypeError
        If the risk is no functional.
    ValueError
        If the temperature or the ridge is negative or not finite.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.linspace(-1, 1, 20)[:, None]
    >>> risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, X[:, 0])
    >>> F = of.meanfield.free_energy(risk, temperature=0.01, ridge=0.1)
    >>> F.split_entropy()[0], F.mixture_curvature().value
    (0.01, 'convex')
    >>> mu = of.Particles(torch.zeros(50, 3))
    >>> run = of.flow(F, mu, of.Langevin(), dt=0.1, steps=20, generator=0)
    >>> run.status
    'finished'
    """
    check_kind(risk, Functional, "risk", cure="e.g. Risk(TwoLayer('tanh'), X, y)")
    temperature = positive(temperature, "temperature", or_zero=True)
    ridge = positive(ridge, "ridge", or_zero=True)
    F = risk
    if ridge:
        F = F + ridge * Potential(half_square, modulus=1.0)
    if temperature:
        F = F + temperature * Entropy()
    return F
