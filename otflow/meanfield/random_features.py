"""Random features: the flow of the outer weights alone, in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow._validation import check_finite, check_kind, positive
from otflow.errors import Unsupported
from otflow.functionals.inheritance import redefined as redefined_risk
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.losses import Square
from otflow.meanfield.model import redefined
from otflow.meanfield.risk import Risk
from otflow.measures import Particles

__all__ = ["RandomFeatures"]


class RandomFeatures:
    r"""The exact flow of the outer weights of a network, with fixed inner weights.

    The risk is a quadratic function of the outer weights a. In the norm :math:`\|a\|^2
    = \sum_i w_i |a_i|^2`, that of the flow of neurons, it is

    .. math:: L(a) = \tfrac12\|T a - y\|^2, \qquad \dot a_t = -T^*(T a_t - y),

    with the mean over the data on the right. The minimiser :math:`a^*` nearest to
    :math:`a_0` is the limit of :math:`a_t`. Along the flow the function

    .. math:: E(t) = t\,\bigl(L(a_t) - L(a^*)\bigr) + \tfrac12\|a_t - a^*\|^2

    does not increase, whatever the target is :cite:p:`yang2020meanfield`. So
    :math:`L(a_t) - L(a^*) \le \|a_0 - a^*\|^2/2t`. For this quadratic L the bound holds
    with 4e t in place of 2t. The survey omits :math:`L(a^*)` in E, which is right only
    where it is 0.

    Parameters
    ----------
    risk : Risk
        The risk of a `TwoLayer` with the loss "square", in any scaling.
    mu : Particles
        The neurons at the start.

    Attributes
    ----------
    risk, mu
        As above.
    eigenvalues : Tensor, shape (r,)
        Those of :math:`T^* T` that are not 0, in falling order. Gradient descent of the
        length dt is stable for dt below 2 over the first.
    infimum : float
        The least risk :math:`L(a^*)` over outer weights.
    minimizer : Particles
        The neurons with the outer weights :math:`a^*`.
    distance : float
        The norm :math:`\|a_0 - a^*\|`.

    Raises
    ------
    Unsupported
        If the loss is not "square", or the network is no `TwoLayer` of the library, or
        if the neurons carry a graph.
    NonFinite
        If squares of the targets overflow.
    ValueError, TypeError
        As the risk does.

    See Also
    --------
    otflow.schemes.Mobility : The same flow by steps, for every loss.

    Notes
    -----
    Computed in float64 by a singular value decomposition (n, N), in time O(n N min(n,
    N)) and memory O(n N). Singular values below round-off of the largest count as 0. A
    time then costs O(N m r) for m outputs. Atoms without mass move as test particles.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
    >>> network = of.meanfield.TwoLayer("relu")
    >>> risk = of.meanfield.Risk(network, X, X[:, 0].abs())
    >>> stream = torch.Generator().manual_seed(0)
    >>> theta = torch.randn(50, 3, generator=stream, dtype=torch.float64)
    >>> features = of.meanfield.RandomFeatures(risk, of.Particles(theta))
    >>> end = features.flow(100.0)
    >>> freeze = of.schemes.Mobility(of.ExplicitEuler(), network.mobility(1, inner=0.0))
    >>> steps = of.flow(risk, features.mu, freeze, dt=0.05, steps=2000, every=2000)
    >>> bool((steps.final.points - end.points).abs().max() < 1e-2)
    True
    """

    def __init__(self, risk: Risk, mu: Particles) -> None:
        check_kind(risk, Risk, "risk")
        check_kind(mu, Particles, "mu")
        network = risk.network
        if not isinstance(network, TwoLayer) or redefined(network) is not None:
            msg = (
                f"random features need the outer weights of a TwoLayer, and "
                f"{network!r} states none; take a TwoLayer with an activation of your "
                f"own"
            )
            raise Unsupported(msg)
        if not isinstance(risk._loss, Square) or redefined_risk(risk, Risk) is not None:
            msg = (
                f"the flow of the loss {risk.loss!r} has no closed form; make steps of "
                f"schemes.Mobility(ExplicitEuler(), network.mobility(d, inner=0.0))"
            )
            raise Unsupported(msg)
        risk._check(mu)
        mu.refuse_graph(
            "the flow of random features",
            "it is found by a decomposition without derivative",
            cure="mu.detach()",
        )
        self.risk, self.mu = risk, mu
        with torch.no_grad():
            self._solve(network)

    def _solve(self, network: TwoLayer) -> None:
        """Decompose the features by singular values."""
        risk, mu, double = self.risk, self.mu, torch.float64
        theta, w = mu.points.to(double), mu.weights.to(double)
        n = len(risk.y)
        hidden = network.hidden(risk._inputs, mu.points).to(double)
        offset = network.add_offset(torch.zeros_like(risk.y)).to(double)
        y = ((risk.y.to(double) - offset) / math.sqrt(n)).reshape(n, -1)
        # b = sqrt(w) a has the Euclidean norm.
        features = hidden * (float(network.scale(w)) / math.sqrt(n))
        roots = w.sqrt()
        u, s, v = torch.linalg.svd(features * roots, full_matrices=False)
        least = torch.finfo(mu.dtype).eps * max(hidden.shape) * float(s.max())
        rank = int((s > least).sum())
        s, u, v = s[:rank, None], u[:, :rank], v[:rank]
        # The same directions in a: no division by a mass, which may be tiny or 0.
        self._s, self._directions = s, features.T @ u / s.T
        self._start, aims = network.split(theta)[0], u.T @ y
        # The components of a_0 - a* along these; the rest of a_0 stays.
        self._gaps = v @ (roots[:, None] * self._start) - aims / s
        self.eigenvalues = s[:, 0].square()
        left = y - u @ aims
        infimum = 0.5 * left.square().sum()
        check_finite(infimum, "the least risk")
        self.infimum = float(infimum)
        # What no atom of mass sees moves an atom without mass, a test particle.
        self._drift = (features.T @ left).masked_fill(w[:, None] > 0, 0.0)
        self.distance = float(self._gaps.norm())
        self.minimizer = self._moved(-self._gaps)

    def flow(self, t: float) -> Particles:
        """Return the neurons at the time t.

        Parameters
        ----------
        t : float
            The time, >= 0.

        Returns
        -------
        Particles
            In the dtype of `mu`, with its inner weights.

        Raises
        ------
        ValueError
            If the time is negative, or not finite.
        """
        t = positive(t, "t", or_zero=True)
        if t == 0:
            return self.mu
        return self._moved((-self._s.square() * t).expm1() * self._gaps, t)

    def excess(self, t: float) -> float:
        r"""Return :math:`L(a_t) - L(a^*)`, without cancellation.

        Parameters
        ----------
        t : float
            The time, >= 0.

        Returns
        -------
        float
            The excess risk.

        Raises
        ------
        ValueError
            If the time is negative, or not finite.
        """
        t = positive(t, "t", or_zero=True)
        decayed = (-self._s.square() * t).exp() * self._gaps
        return 0.5 * float((self._s * decayed).square().sum())

    def lyapunov(self, t: float) -> float:
        r"""Return the Lyapunov function E(t), which does not increase.

        Parameters
        ----------
        t : float
            The time, >= 0.

        Returns
        -------
        float
            :math:`t\,(L(a_t) - L(a^*)) + \|a_t - a^*\|^2/2`.

        Raises
        ------
        ValueError
            If the time is negative, or not finite.
        """
        t = positive(t, "t", or_zero=True)
        decayed = (-self._s.square() * t).exp() * self._gaps
        return t * self.excess(t) + 0.5 * float(decayed.square().sum())

    def bound(self, t: float) -> float:
        r"""Return the bound :math:`\|a_0 - a^*\|^2/(4 e\,t)` of the excess risk.

        Parameters
        ----------
        t : float
            The time, > 0.

        Returns
        -------
        float
            The bound. It is attained at the time :math:`1/2\lambda` if
            :math:`a_0 - a^*` is an eigenvector of the eigenvalue :math:`\lambda`.

        Raises
        ------
        ValueError
            If the time is not positive.
        """
        return self.distance**2 / (4 * math.e * positive(t, "t"))

    def _moved(self, components: Tensor, t: float = 0.0) -> Particles:
        """Return the neurons with outer weights that are moved by these components."""
        outer = self._start + self._directions @ components + t * self._drift
        points = self.mu.points.detach().clone()
        points[:, : outer.shape[1]] = outer.to(points)
        return self.mu.with_free_atoms(points)

    def __repr__(self) -> str:
        return f"RandomFeatures({self.risk!r}, {self.mu!r})"
