"""Sort the terms of a functional by the method that proximal solvers have for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow.functionals import (
    Congestion,
    Entropy,
    Functional,
    Interaction,
    Internal,
    Potential,
    Sum,
)
from otflow.functionals.combined import Combined
from otflow.functionals.inheritance import redefined
from otflow.kernels import Kernel

__all__ = [
    "Terms",
    "combine",
    "mapped_potential",
    "sort_terms",
    "split_maps",
]

# U' is steep if its fall from the density 1e-150 to 1e-300 is more than STEEP times
# that from 1 to 1e-150. The two falls of a logarithm are equal. Of a negative power
# the first fall is many times the second.
STEEP = 4.0


@dataclass(frozen=True)
class Terms:
    r"""The terms of :math:`F = \int V d\mu + \kappa H + \mathcal U + \dots` by kind.

    Parameters
    ----------
    potentials : tuple of (float, Potential)
        Linear terms. The method `V` returns their sum.
    temperature : float
        The factor :math:`\kappa` of the entropy, of either sign.
    internal : Internal or None
        The sum of all other internal energies.
    interactions : tuple of (float, Interaction)
        Quadratic terms.
    others : tuple of (float, Functional)
        All other terms.

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
        """Sum of the entropy and the other internal energies; None if there is none."""
        parts: list[tuple[float, Internal]] = []
        if self.temperature:
            parts.append((self.temperature, Entropy()))
        if self.internal is not None:
            parts.append((1.0, self.internal))
        return combine(parts)

    @property
    def nonlocal_part(self) -> Sum | None:
        """Sum of the interactions and the other terms; None if there is none."""
        parts = (*self.interactions, *self.others)
        return Sum(tuple(c * term for c, term in parts)) if parts else None

    @property
    def max_density(self) -> float:
        """The bound on the density; infinite if there is none."""
        return torch.inf if self.internal is None else self.internal.max_density

    @property
    def is_fast(self) -> bool:
        """Whether U' falls like a power of the density in vacuum: fast diffusion."""
        if self.internal is None:
            return False
        r = torch.tensor([1e-300, 1e-150, 1.0], dtype=torch.float64)
        deep, middle, near = self.internal.slope(r).tolist()
        # A ratio of two falls is free of the units of U.
        return bool(middle - deep > STEEP * max(near - middle, 0.0))


def sort_terms(F: Functional, dim: int | None = None) -> Terms:
    """Sort ``F.terms()`` by kind; terms with factor 0 are dropped.

    Parameters
    ----------
    F : Functional
        The functional to minimise.
    dim : int, optional
        Dimension of the space. If given, a term without a flow there raises.

    Returns
    -------
    Terms
        The terms, with all internal energies but the entropy summed to one.

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
        # What a subclass evaluates otherwise has no closed form of its parent.
        if redefined(term) is not None:
            others.append((c, term))
        elif isinstance(term, Entropy):
            temperature += c
        elif isinstance(term, Internal):
            internals.append((c, term))
        elif isinstance(term, Potential):
            potentials.append((c, term))
        # A kernel of two points is no convolution, and has no method of its own.
        elif isinstance(term, Interaction) and isinstance(term.kernel, Kernel):
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


def combine(terms: Sequence[tuple[float, Internal]]) -> Internal | None:
    """Return the sum of multiples of internal energies as one; None if it is empty.

    Raises
    ------
    ValueError
        If a factor is negative: the sum need not be convex, and then has no proximal
        map.
    """
    flat = []
    for c, term in terms:
        inner = term.parts if isinstance(term, Combined) else ((1.0, term),)
        flat += [(c * a, part) for a, part in inner if not isinstance(part, Congestion)]
        if c < 0:
            msg = (
                f"{c:g} * {term!r} is concave: an internal energy with a negative "
                f"factor has no proximal map; use a positive factor"
            )
            raise ValueError(msg)
    if not terms:
        return None
    if len(terms) == 1 and (terms[0][0] == 1 or isinstance(terms[0][1], Congestion)):
        return terms[0][1]
    return Combined(flat, min(term.max_density for _, term in terms))


def mapped_potential(F: Functional) -> tuple[float, Potential] | None:
    """Return (c, V) if F is c > 0 times a potential with a proximal map, or None."""
    maps, rest = split_maps(F)
    return maps[0] if len(maps) == 1 and not rest else None


def split_maps(
    F: Functional,
) -> tuple[list[tuple[float, Potential]], list[tuple[float, Functional]]]:
    """Return the positive multiples of potentials with a proximal map, and the rest.

    Multiples of one and the same potential are added, of either sign. Terms with factor
    0 are dropped.
    """
    maps: dict[int, tuple[float, Potential]] = {}
    rest: list[tuple[float, Functional]] = []
    for c, term in F.terms():
        if (
            isinstance(term, Potential)
            and term.prox is not None
            and redefined(term) is None
        ):
            maps[id(term)] = (maps.get(id(term), (0.0, term))[0] + c, term)
        elif c != 0:
            rest.append((c, term))
    rest += [(c, term) for c, term in maps.values() if c < 0]
    return [(c, term) for c, term in maps.values() if c > 0], rest
