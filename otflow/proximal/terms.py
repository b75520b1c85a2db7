"""Sort the terms of a functional by the method that a proximal solver has for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from otflow.functionals import (
    Entropy,
    Functional,
    Interaction,
    Internal,
    Potential,
    Sum,
)
from otflow.functionals.combined import combine

__all__ = ["Terms", "sort_terms"]

# How many times more U' may fall from the density 1e-150 to 1e-300 than from 1 to
# 1e-150: a logarithm falls as much.
STEEP = 4.0


@dataclass(frozen=True)
class Terms:
    r"""The terms of :math:`F = \int V d\mu + \kappa H + \mathcal U + \dots` by kind.

    Parameters
    ----------
    potentials : tuple of (float, Potential)
        Linear terms; `V` is their sum as a ground function.
    temperature : float
        The factor :math:`\kappa` of the entropy, of either sign.
    internal : Internal or None
        The sum of all other internal energies, as one.
    interactions : tuple of (float, Interaction)
        Quadratic terms.
    others : tuple of (float, Functional)
        Everything else.

    Attributes
    ----------
    potentials, temperature, internal, interactions, others
        As above.
    """

    potentials: tuple[tuple[float, Potential], ...]
    temperature: float
    internal: Internal | None
    interactions: tuple[tuple[float, Interaction], ...]
    others: tuple[tuple[float, Functional], ...]

    def V(self, x: Tensor) -> Tensor:
        """Return the sum of the potentials at points (n, d): (n,)."""
        total = torch.zeros_like(x[..., 0])
        for c, term in self.potentials:
            total = total + c * term.V(x)
        return total

    @property
    def energy(self) -> Internal | None:
        """Entropy and other internal energies as one, None without any."""
        parts: list[tuple[float, Internal]] = []
        if self.temperature:
            parts.append((self.temperature, Entropy()))
        if self.internal is not None:
            parts.append((1.0, self.internal))
        return combine(parts)

    @property
    def nonlocal_part(self) -> Sum | None:
        """Interactions and other terms as one functional, None without any."""
        parts = (*self.interactions, *self.others)
        return Sum(tuple(c * term for c, term in parts)) if parts else None

    @property
    def max_density(self) -> float:
        """The bound on the density, infinite where there is none."""
        return torch.inf if self.internal is None else self.internal.max_density

    @property
    def is_fast(self) -> bool:
        """Whether U' falls to minus infinity like a power in vacuum: fast diffusion."""
        if self.internal is None:
            return False
        r = torch.tensor([1e-300, 1e-150, 1.0], dtype=torch.float64)
        deep, middle, near = self.internal.slope(r).tolist()
        # Not in units of U, which are those of length.
        return bool(middle - deep > STEEP * max(near - middle, 0.0))


def sort_terms(F: Functional, dim: int | None = None) -> Terms:
    """Sort ``F.terms()`` by kind; terms with factor 0 are dropped.

    Parameters
    ----------
    F : Functional
        What is to be minimised.
    dim : int, optional
        Dimension of the space; given it, a term that has no flow there is refused.

    Returns
    -------
    Terms
        The terms; internal energies other than the entropy are one.

    Raises
    ------
    ValueError
        If an internal energy has a negative factor, or no flow in this dimension:
        `PowerEntropy` needs m > (d - 2)/d.
    """
    potentials, interactions, others = [], [], []
    internals: list[tuple[float, Internal]] = []
    temperature = 0.0
    for c, term in F.terms():
        if c == 0:
            continue
        if isinstance(term, Entropy):
            temperature += c
        elif isinstance(term, Internal):
            internals.append((c, term))
        elif isinstance(term, Potential):
            potentials.append((c, term))
        elif isinstance(term, Interaction):
            interactions.append((c, term))
        else:
            others.append((c, term))
    internal = combine(internals)
    if internal is not None and dim is not None:
        internal.check_dimension(dim)
    return Terms(
        potentials=tuple(potentials),
        temperature=temperature,
        internal=internal,
        interactions=tuple(interactions),
        others=tuple(others),
    )
