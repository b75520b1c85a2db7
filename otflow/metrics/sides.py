"""What entropic problems share: both sides, the falling blurs, the checks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._bounds import at_least
from otflow._memory import check_memory
from otflow._validation import real
from otflow.metrics.inputs import Cloud
from otflow.metrics.semidual import Entropy

__all__ = [
    "WIDE",
    "Side",
    "check_blur",
    "check_size",
    "falling_blurs",
    "inverse_square",
    "length_of",
    "soft_minimum",
]

# Sinkhorn sweeps are used down to this share of the diameter. Below it they would need
# thousands of sweeps; Newton's method takes over, at blurs that fall by STAGE.
COARSE = 0.05
STAGE = 0.7
# Largest number of pairs; so many take about a minute on one core.
DENSE_LIMIT = 5000**2
# Least reach and least reach / blur: the code divides by their squares.
LEAST_REACH = 1e-140
# Above this blur, in diameters D, the limit blur -> infinity is right to 1e-12 D^2:
# with a reach its error is at most D^4 / (8 blur^2). Potentials are of size D^2, but
# the solver leaves in them the round-off of blur^2.
WIDE = 4e5
# Largest exponent of the soft minimum without logarithms of sums.
SMALL = 0.5
# Largest blur whose square is a float64.
LARGEST = 1e150


@dataclass(frozen=True)
class Side:
    """Points and weights in float64, with their graphs, and which atoms have mass."""

    x: Tensor
    a: Tensor
    full: Tensor

    @classmethod
    def of(cls, cloud: Cloud) -> Side:
        """Return the side of an argument; its masses have the sum 1."""
        x = cloud.points.double()
        if cloud.weights is None:
            a = x.new_full((len(x),), 1.0 / len(x)).detach()
        else:
            a = cloud.weights.double()
            a = a / a.sum()
        return cls(x, a, a.detach() > 0)

    @classmethod
    def pair(cls, x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> tuple[Side, Side]:
        """Return both sides; the masses of each have the sum 1."""
        return cls(x, a, a.detach() > 0), cls(y, b, b.detach() > 0)

    @property
    def atoms(self) -> tuple[Tensor, Tensor]:
        """Points and masses of the atoms with mass, detached."""
        return self.x.detach()[self.full], self.a.detach()[self.full]


def falling_blurs(
    blur: float, diameter: float, scaling: float
) -> tuple[list[float], list[float]]:
    """Return the falling blurs of the sweeps, and those of Newton's stages."""
    sweeps, stages, at = [], [], diameter
    while at > max(blur, COARSE * diameter):
        sweeps.append(at)
        at *= scaling
    at = COARSE * diameter
    while at > blur:
        stages.append(at)
        at *= STAGE
    return sweeps, stages


def check_size(n: int, m: int, device: torch.device) -> None:
    """Raise MemoryError if dense arrays of the pairs do not fit, or take too long."""
    pairs = max(n, m) ** 2
    what = f"an entropic problem of {n} and {m} points"
    cure = "take fewer points: Particles(mu.sample(n, generator))"
    if pairs > DENSE_LIMIT:
        msg = (
            f"{what} needs {pairs} costs, more than the {DENSE_LIMIT} that are treated "
            f"densely in a reasonable time; {cure}"
        )
        raise MemoryError(msg)
    # Ten float64 arrays, the peak of a value with its gradient.
    check_memory(80 * pairs, what, cure, device)


def inverse_square(reach: float, blur: float) -> float:
    """Return 1 / reach^2; raise ValueError if it or blur^2 / reach^2 overflows."""
    least = LEAST_REACH * max(1.0, blur)
    if reach < least:
        msg = (
            f"reach = {reach:g} is too small: its square is lost in the range of "
            f"float64; take at least {at_least(least, 2)}, which differs in no "
            f"digit from reach -> 0"
        )
        raise ValueError(msg)
    return 1.0 / reach / reach


def length_of(blur: float, limit: str = "wasserstein2_squared(mu, nu) / 2") -> float:
    """Return a blur, a positive length; the error names what a blur of 0 stands for."""
    length = real(blur, "blur")
    if length <= 0:
        msg = (
            f"blur is a length and must be positive, got {length:g}; take a tenth of "
            f"the spread of the points, or {limit}, the limit blur -> 0"
        )
        raise ValueError(msg)
    return length


def check_blur(blur: float, diameter: float, dtype: torch.dtype) -> None:
    """Raise ValueError for a blur lost in round-off, or too large to be squared."""
    kind = torch.finfo(dtype)
    least = max(diameter * float(kind.eps), float(kind.tiny) ** 0.5)
    if blur < least:
        msg = (
            f"blur = {blur:g} is lost in the round-off of {dtype} for points "
            f"{diameter:.3g} apart; take at least {at_least(least, 2)}"
        )
        raise ValueError(msg)
    if LARGEST < blur <= WIDE * diameter:
        msg = f"blur = {blur:g} is too large to be squared; take at most {LARGEST:g}"
        raise ValueError(msg)


def soft_minimum(units: Entropy, cost: Tensor, g: Tensor, b: Tensor) -> Tensor:
    """Return the optimal f for g, as `Entropy.potential`, without round-off of epsilon.

    A logarithm of a sum near 1 has the round-off of 1, and epsilon multiplies it. For a
    large blur the sum therefore counts from 1. The dual value of g and this f then has
    the square of the error of g.

    Parameters
    ----------
    units : Entropy
        Epsilon and rho.
    cost : Tensor, shape (n, m)
        Costs.
    g, b : Tensor, shape (m,)
        Potential and masses of the columns; the masses have the sum 1.

    Returns
    -------
    Tensor, shape (n,)
        The potential of the rows.
    """
    exponents = (g - cost) / units.epsilon
    if not float(exponents.abs().max()) <= SMALL:
        return units.potential(cost, g, b)
    return -units.unit * (exponents.expm1() @ b).log1p()
