"""A user's terms that are sums over cells, as a potential plus an internal energy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow.errors import NonFinite
from otflow.functionals import Functional, Internal, PowerEntropy
from otflow.functionals.combined import Combined
from otflow.measures import GridDensity
from otflow.proximal.base import ProxResult
from otflow.proximal.terms import Terms, combine

__all__ = ["LocalTerms", "OwnEnergy", "stepped", "taken_cell_by_cell", "wide"]

# Number of log densities at which a term is read, and the least of them.
RUNGS, EMPTIEST = 128, -225.0
# Range of the trial densities around the mean, in powers of 10.
AROUND = (-3.0, 1.0)
# Slopes are equal if they differ by less than this share of the largest: the round-off
# of a long sum.
ALIKE = 1e-10
# A slope is that of an entropy or of a power if it is so to this share.
EXACT = 1e-10
# Largest fall of U' from the mean density to vacuum, in units of its fall by one factor
# of e below the mean. The entropy has about 225. Fast diffusion has far more, and no
# bounded pressure.
DEEPEST = 1e4
# Number of random densities at which a term is tried.
TRIALS = 2
# At the result the model must match the term to the share HELD of the slopes, in cells
# that hold more than the share EMPTY of the largest density.
HELD, EMPTY = 1e-9, 1e-9
# Relative step of a central difference: its two errors are equal near this step.
STEP = torch.finfo(torch.float64).eps ** (1 / 3)


class _Cells:
    """The first variation of a term at densities of the free cells, in float64."""

    def __init__(self, G: Functional, mu: GridDensity) -> None:
        self.G, self.volume = G, mu.box.cell_volume
        self.mu = mu.detach().map_tensors(wide)
        self.cells = mu.is_free.nonzero().reshape(-1)
        self.mean = 1.0 / (self.volume * len(self.cells))

    def measure(self, r: Tensor) -> GridDensity:
        """Return the measure of these densities, whose mass need not be 1."""
        masses = torch.zeros_like(self.mu.weights)
        masses[self.cells] = (r * self.volume).clamp_min(torch.finfo(r.dtype).tiny)
        return self.mu.with_free_weights(masses)

    def slope(self, r: Tensor) -> Tensor:
        """Return the first variation in the free cells."""
        found = self.G.first_variation(self.measure(r)).detach()[self.cells]
        if found.dtype != r.dtype or not bool(torch.isfinite(found).all()):
            msg = f"the first variation of {self.G!r} is not finite, or not in float64"
            raise NonFinite(msg)
        return found

    def value(self, r: Tensor) -> float:
        """Return the value of the term."""
        return float(self.G.value(self.measure(r)).detach())


def wide(x: Tensor) -> Tensor:
    """Return x in float64 if its numbers are real."""
    return x.double() if x.is_floating_point() else x


class OwnEnergy(Internal):
    r"""The part of a user's term that is a function of the density, :math:`\int U`.

    U' at a density is the first variation of the term in a cell of this density, minus
    the potential V. One evaluation reads a different density in each cell. U'' is a
    difference quotient of U'. Only the sum of U over cells is known, from the value of
    the term: each cell gets the same share per unit of mass.

    Parameters
    ----------
    cells : _Cells
        The term.
    V : Tensor, shape (free cells,)
        Potential of the term.
    """

    def __init__(self, cells: _Cells, V: Tensor) -> None:
        super().__init__(self._per_mass)
        self.cells, self.V = cells, V
        # Twice the density of all mass in one cell: no density of mass 1 reaches it.
        self.max_density = 2.0 / cells.volume
        self.at_zero = cells.value(torch.zeros_like(V))

    def slope(self, r: Tensor) -> Tensor:
        # The other cells hold the mean density, where the slope is known to be finite.
        parts = [
            (self.cells.slope(placed) - self.V)[:count]
            for placed, count in self._placed(r, self.cells.mean)
        ]
        found: Tensor = torch.cat(parts) if parts else torch.zeros_like(r)
        return found.reshape(r.shape)

    def _placed(self, r: Tensor, rest: float) -> Iterator[tuple[Tensor, int]]:
        """Yield densities of all cells that hold parts of r, and the size of each."""
        for part in torch.split(r.reshape(-1), len(self.V)):
            placed = torch.full_like(self.V, rest)
            placed[: len(part)] = part
            yield placed, len(part)

    def curvature(self, r: Tensor) -> Tensor:
        above, below = self.slope((1 + STEP) * r), self.slope((1 - STEP) * r)
        quotient: Tensor = (above - below) / (2 * STEP * r)
        # U is convex: a negative quotient is round-off.
        return quotient.clamp_min(0.0)

    def _per_mass(self, r: Tensor) -> Tensor:
        """Return the sum of U over densities r over their mass, for each cell."""
        # The other cells are empty. The value of the term without mass is taken off.
        total = 0.0
        for placed, _ in self._placed(r, 0.0):
            linear = self.cells.volume * float(self.V @ placed)
            total += self.cells.value(placed) - self.at_zero - linear
        mass = self.cells.volume * float(r.sum())
        return torch.full_like(r, total / mass if mass > 0 else 0.0)

    def __repr__(self) -> str:
        return f"OwnEnergy({self.cells.G!r})"


@dataclass(frozen=True)
class OwnTerm:
    """A user's term as a potential, an entropy and a further internal energy.

    Parameters
    ----------
    cells : _Cells
        The term.
    V : Tensor, shape (free cells,)
        The potential.
    temperature : float
        The factor of the entropy.
    energy : Internal or None
        The further energy.
    """

    cells: _Cells
    V: Tensor
    temperature: float = 0.0
    energy: Internal | None = None

    def holds_at(self, masses: Tensor) -> bool:
        """Return whether V + U' is the first variation at these masses."""
        r = masses[self.cells.cells] / self.cells.volume
        held = r > EMPTY * r.max()
        try:
            own, safe = self.cells.slope(r)[held], r[held]
        except NonFinite:
            return False
        model = self.V[held] + self.temperature * (safe.log() + 1)
        if self.energy is not None:
            model = model + self.energy.slope(safe)
        size = float(torch.maximum(own.abs(), self.V[held].abs()).max())
        size += self.temperature * float(safe.log().abs().max())
        return float((own - model).abs().max()) <= HELD * size


@dataclass(frozen=True)
class LocalTerms:
    """Terms in which a user's sums over cells are internal energies.

    Parameters
    ----------
    terms : Terms
        The terms.
    own : tuple of OwnTerm
        The user's terms that became a part of `terms`, without their potentials.
    """

    terms: Terms
    own: tuple[OwnTerm, ...]

    def potential(self, mu: GridDensity) -> Tensor:
        """Return the sum of all potentials at the centres, (n,), 0 in obstacles.

        The result is float64. Raises `NonFinite` if a free cell has no finite value.
        """
        V = self.terms.V(mu.points.double()).detach()
        for term in self.own:
            V[term.cells.cells] += term.V
        V = torch.where(mu.is_free, V, 0.0)
        if not bool(torch.isfinite(V).all()):
            msg = (
                "the potential must be finite at the centres of the free cells; make "
                "the cells where it is not obstacles"
            )
            raise NonFinite(msg)
        return V


def stepped(
    terms: Terms,
    mu: GridDensity,
    step: Callable[[LocalTerms], ProxResult[GridDensity]],
) -> ProxResult[GridDensity]:
    """Return a step in which a user's sums over cells are local terms.

    If such a term is not local at the end of the step, the step is repeated with all of
    them as nonlocal terms.
    """
    taken = taken_cell_by_cell(terms, mu)
    result = step(taken)
    masses = result.measure.weights.double()
    if all(term.holds_at(masses) for term in taken.own):
        return result
    return step(LocalTerms(terms, ()))


def taken_cell_by_cell(terms: Terms, mu: GridDensity) -> LocalTerms:
    """Return the terms with a user's sums over cells as local terms."""
    found, rest = [], []
    for c, term in terms.others:
        own = _own_term(c * term, mu)
        if own is None:
            rest.append((c, term))
        else:
            found.append(own)
    parts = [] if terms.internal is None else [(1.0, terms.internal)]
    parts += [(1.0, own.energy) for own in found if own.energy is not None]
    changed = replace(
        terms,
        others=tuple(rest),
        temperature=terms.temperature + sum(own.temperature for own in found),
        internal=combine(parts),
    )
    return LocalTerms(changed, tuple(found))


def _own_term(G: Functional, mu: GridDensity) -> OwnTerm | None:
    """Return the term as a sum over cells; None if it is none, or not convex.

    The first variation in a cell must be V + U'(density of this cell). It must not
    depend on the densities of other cells, and U' must be the same in all cells. Both
    are tested at random densities.
    """
    try:
        cells = _Cells(G, mu)
        flat = torch.full_like(cells.mu.weights[cells.cells], cells.mean)
        level = cells.slope(flat)
        # A fixed seed: the same term always gets the same answer.
        generator = torch.Generator().manual_seed(0)
        low, high = AROUND
        for _ in range(TRIALS):
            power, coin = torch.rand(2, len(flat), generator=generator).to(level)
            order = torch.randperm(len(flat), generator=generator).to(level.device)
            r = cells.mean * 10 ** (low + (high - low) * power)
            some = coin < 0.5
            slope = cells.slope(r)
            mixed = cells.slope(torch.where(some, r, flat))
            turned = cells.slope(r[order])
            noise = ALIKE * float(torch.maximum(level.abs(), slope.abs()).max())
            alone = (mixed - torch.where(some, slope, level)).abs().max()
            alike = ((turned - level) - (slope - level)[order]).abs().max()
            if not (float(alone) <= noise and float(alike) <= noise):
                return None
        return _by_its_slope(cells, level)
    # The user's term raises on such densities, or on float64.
    except (NonFinite, RuntimeError, TypeError, ValueError):
        return None


def _by_its_slope(cells: _Cells, level: Tensor) -> OwnTerm | None:
    """Return the term from its first variation at the mean density in all cells."""
    energy = OwnEnergy(cells, level - level.mean())
    middle, top = math.log(cells.mean), math.log(energy.max_density)
    logs = torch.linspace(EMPTIEST, top, RUNGS).to(level)
    slope = energy.slope(logs.exp())
    few = level.new_tensor([middle, middle - 1, EMPTIEST, top])
    at, below, least, most = energy.slope(few.exp()).tolist()
    noise = ALIKE * (float(level.abs().max()) + abs(at))
    # A slope that falls somewhere is that of no convex U.
    if float((slope.cummax(0).values - slope).max()) > noise:
        return None
    if at - least > DEEPEST * (at - below) + noise:
        return None
    if most - least <= noise:
        return OwnTerm(cells, level)
    factor = (most - least) / (top - EMPTIEST)
    straight = at + factor * (logs - middle)
    if float((slope - straight).abs().max()) <= EXACT * (most - least) + noise:
        return OwnTerm(cells, level - factor * (middle + 1), temperature=factor)
    if top > middle and most > at > least:
        # Nine digits: the noise of the slopes does not hide a simple power such as 2.
        power = round(math.log((most - least) / (at - least)) / (top - middle), 9)
        line = least + (most - least) * (power * (logs - top)).exp()
        if power > 0 and float((slope - line).abs().max()) <= EXACT * (most - least):
            factor = (most - least) / math.exp(power * top) * power / (power + 1)
            alone = Combined([(factor, PowerEntropy(power + 1))], math.inf)
            return OwnTerm(cells, energy.V + least, energy=alone)
    return OwnTerm(cells, energy.V, energy=energy)
