"""Atoms that are cloned, that die, and that are born from a prior, without bias."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow.measures import Particles

__all__ = ["jumped", "places", "replaced", "thinned"]


def jumped(
    mu: Particles, excess: Tensor, dose: float, generator: torch.Generator
) -> tuple[Particles, int]:
    r"""Return particles after clones and deaths, and how many atoms were replaced.

    Let :math:`e_i = F'(x_i) - \bar F'` be the excess and s the dose. With :math:`e_i >
    0` atom i dies with probability :math:`1 - e^{-s e_i}`: it moves to an atom that is
    drawn by mass. With :math:`e_i < 0` it is cloned with probability :math:`1 -
    e^{-s n w_i |e_i|}`: an atom that is drawn uniformly moves to it. Masses stay with
    their index. The mean change of :math:`\int f d\mu` is :math:`-s\,
    \mathrm{Cov}_\mu(e, f) + O(s^2)`, that of the masses under the reaction.

    Parameters
    ----------
    mu : Particles
        Of n atoms.
    excess : Tensor, shape (n,)
        The numbers :math:`e_i`, of mean zero.
    dose : float
        The number s, > 0: rate times time.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    moved : Particles
        The atoms after the jumps.
    count : int
        How many of them lie at the place of another atom.
    """
    n, here = mu.n, torch.arange(mu.n, device=mu.device)
    u = torch.rand(n, generator=generator, dtype=mu.dtype, device=mu.device)
    growth = torch.where(excess > 0, excess, -n * mu.weights * excess)
    jumps = u < -torch.expm1(-dose * growth)
    source = here.clone()
    dying = (jumps & (excess > 0)).nonzero()[:, 0]
    if len(dying):
        source[dying] = torch.multinomial(
            mu.weights, len(dying), replacement=True, generator=generator
        )
    cloned = (jumps & (excess < 0)).nonzero()[:, 0]
    if len(cloned):
        # Without replacement, so that no clone overwrites another.
        order = torch.randperm(n, generator=generator, device=mu.device)
        source[order[: len(cloned)]] = cloned
    count = int((source != here).sum())
    return (mu.with_free_atoms(mu.points[source]) if count else mu), count


def thinned(
    weights: Tensor, keep: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    r"""Return which of n atoms survive, and masses of all, of the mean `weights`.

    With the number c such that :math:`\sum_i \min(w_i / c, 1)` is the number to keep,
    an atom of mass at least c keeps its mass. The others survive with probability
    :math:`w_i / c`, and have the mass c then. Of all unbiased choices this one changes
    the masses least :cite:p:`fearnhead2003online`.

    Parameters
    ----------
    weights : Tensor, shape (n,)
        Masses, non-negative.
    keep : int
        How many atoms survive, from 0 to n.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    alive : Tensor of bool, shape (n,)
        Which atoms survive.
    masses : Tensor, shape (n,)
        Their masses, 0 for the others.
    """
    alive = torch.zeros(len(weights), dtype=torch.bool, device=weights.device)
    if keep == 0:
        return alive, torch.zeros_like(weights)
    sorted_, order = weights.sort(descending=True)
    # Tails after the k heaviest; c is that of the first k at which no mass exceeds it.
    tails = sorted_.flip(0).cumsum(0).flip(0)[:keep]
    limits = tails / torch.arange(keep, 0, -1, device=weights.device)
    heavy = int((sorted_[:keep] >= limits).to(torch.int8).cummin(0).values.sum())
    alive[order[:heavy]] = True
    masses = torch.where(alive, weights, 0.0)
    if heavy < keep:
        c, rest = limits[heavy], order[heavy:]
        edges = weights[rest].cumsum(0)
        offset = torch.rand(
            1, generator=generator, dtype=weights.dtype, device=weights.device
        )
        places = torch.arange(keep - heavy, device=weights.device) + (1 - offset)
        found = torch.searchsorted(edges * ((keep - heavy) / edges[-1]), places)
        chosen = rest[found.clamp_(max=len(rest) - 1)]
        alive[chosen] = True
        masses[chosen] = c
    return alive, masses


def replaced(mu: Particles, born: Tensor, generator: torch.Generator) -> Particles:
    """Return particles among which new atoms, each of mass 1/n, take the place of old.

    Parameters
    ----------
    mu : Particles
        Of n atoms.
    born : Tensor, shape (k, d)
        The new atoms, at most n.
    generator : torch.Generator
        Source of randomness: which of the old atoms survive, see `thinned`.

    Returns
    -------
    Particles
        Of n atoms. Their mean over draws is the mixture of `mu` with the share 1 - k/n
        and the new atoms.
    """
    n, k = mu.n, len(born)
    if mu.is_uniform:  # equal masses stay, to the bit
        order = torch.randperm(n, generator=generator, device=mu.device)
        return mu.with_free_atoms(mu.points.index_put((order[:k],), born))
    alive, masses = thinned(mu.weights, n - k, generator)
    free = (~alive).nonzero()[:, 0][:k]
    points = mu.points.index_put((free,), born)
    if k < n:
        masses = masses * ((n - k) / (n * masses.sum()))
    return mu.with_free_atoms(points, masses.index_fill(0, free, 1.0 / n))


def places(points: Tensor) -> Tensor:
    """Return the number of the place of each of n points; equal points share one.

    Parameters
    ----------
    points : Tensor, shape (n, d)
        Points, to be told apart bit by bit.

    Returns
    -------
    Tensor of int64, shape (n,)
        Numbers below n.
    """
    index = torch.arange(len(points), device=points.device)
    # Most often the first coordinate tells all: that is a sort of numbers, not of rows.
    if not bool((points[:, 0].sort().values.diff() == 0).any()):
        return index
    group: Tensor = torch.unique(points[:, 0], return_inverse=True)[1]
    first = torch.full_like(index, len(points)).scatter_reduce(0, group, index, "amin")
    if not bool((points[first[group]] == points).all()):
        group = torch.unique(points, dim=0, return_inverse=True)[1]
    return group
