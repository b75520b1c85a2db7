"""The square risk as a constant, a potential and an interaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from otflow.functionals import Functional, OfExpectation, Potential
from otflow.meanfield.network import Network

__all__ = ["Decomposition", "decompose"]


@dataclass(frozen=True, eq=False)
class Decomposition:
    r"""The parts of a risk :math:`F = c + \int E\,d\mu + \tfrac12\iint K\,d\mu\,d\mu`.

    Parameters
    ----------
    constant : Tensor
        Half the mean square of the targets, 0-d.
    potential : Potential
        The integral of :math:`E(\theta) = -\overline{y\cdot\sigma(\theta)}`; the
        function itself is ``potential.V``.
    interaction : Functional
        The double integral, with its factor 1/2.
    kernel : callable
        :math:`K(\theta, \theta') = \overline{\sigma(\theta)\cdot\sigma(\theta')}`,
        (M, p) and (N, p) to (M, N).

    Attributes
    ----------
    constant, potential, interaction, kernel
        As above.

    Notes
    -----
    The interaction costs O(n N), not O(N^2): it is evaluated by the outputs at the n
    data.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    >>> risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, X[:, 0])
    >>> mu = of.Particles(torch.randn(9, 3, dtype=torch.float64))
    >>> parts = risk.decompose()
    >>> total = parts.constant + parts.potential(mu) + parts.interaction(mu)
    >>> bool((total - risk(mu)).abs() < 1e-12)
    True
    """

    constant: Tensor
    potential: Potential
    interaction: Functional
    kernel: Callable[[Tensor, Tensor], Tensor]


def decompose(network: Network, inputs: Tensor, y: Tensor) -> Decomposition:
    """Return the parts of the square risk on checked data."""
    y = y - network.add_offset(y.new_zeros(()))
    n = len(inputs)

    def features(theta: Tensor) -> Tensor:
        """Return sigma at every datum, (N, n) or (N, n m)."""
        return network.sigma(inputs, theta).transpose(0, 1).flatten(1)

    def potential(theta: Tensor) -> Tensor:
        """E(theta), (..., p) -> (...)."""
        flat = theta.reshape(-1, theta.shape[-1])
        return (-(features(flat) @ y.flatten()) / n).reshape(theta.shape[:-1])

    def kernel(theta: Tensor, other: Tensor) -> Tensor:
        """K(theta, theta'), (M, p) and (N, p) -> (M, N)."""
        return features(theta) @ features(other).T / n

    return Decomposition(
        constant=0.5 * y.square().sum() / n,
        potential=Potential(potential),
        interaction=OfExpectation(
            lambda f: 0.5 * f.square().sum() / n, features, mixture="convex"
        ),
        kernel=kernel,
    )
