"""A functional of measures of free mass, as one of laws of root and place."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._typing import ArrayLike
from otflow._validation import positive, true_or_false
from otflow.errors import Unsupported
from otflow.functionals.base import Functional, check_functional
from otflow.functionals.discrepancy import Attraction
from otflow.functionals.sliced import SlicedWassersteinTo
from otflow.functionals.transport import SinkhornDivergenceTo, SquaredDistanceTo
from otflow.measures import ConicParticles, Measure, Particles

__all__ = ["Lifted"]

# Distances between probabilities use that both masses are 1. An attraction is a part of
# MMDTo and EnergyDistanceTo: its potential holds the constant of the target.
_OF_EQUAL_MASSES = (
    Attraction,
    SinkhornDivergenceTo,
    SlicedWassersteinTo,
    SquaredDistanceTo,
)


class Lifted(Functional):
    r"""The functional :math:`\mu \mapsto F(\nu) + \lambda\,|\nu|` of a law on the cone.

    The law :math:`\mu` has points (r, x), and

    .. math:: \nu = \int r^2\,\delta_x\,d\mu(r, x)
        \quad\text{or, signed,}\quad \int r|r|\,\delta_x\,d\mu(r, x), \qquad
        |\nu| = \int r^2\,d\mu .

    So :math:`\nu` has free mass, and :math:`|\nu|` is its total variation, or an upper
    bound of it where masses of both signs lie at one place. F is stated once, for
    measures on space :cite:p:`chizat2022sparse`. Its value must make sense for atoms of
    any masses, as that of a `Potential`, an `Interaction` or a mean-field `Risk` does.
    A distance to a measure compares probabilities, and raises. Up to a constant half
    the squared kernel norm of the difference from another measure, of any masses, is
    ``Interaction(k) - Potential(lambda x: other.convolve(k, x))``.

    The first variation of the lifted functional is :math:`r^2 (F'(x) + \lambda)`, or
    :math:`r|r|\,F'(x) + \lambda r^2`.

    On `otflow.measures.ConicParticles` the flow is the unbalanced one, with mobilities
    of masses and places. On `Particles` with points (r, x) it is that of the Euclidean
    metric of r and x, in which `JKO` is certified as elsewhere.

    Parameters
    ----------
    functional : Functional
        The functional F of measures on space.
    total_variation : float
        The factor :math:`\lambda \ge 0` of the penalty.
    signed : bool
        Whether an atom with r < 0 has negative mass.

    Attributes
    ----------
    functional, total_variation, signed
        As above.

    Raises
    ------
    ValueError
        If `total_variation` is negative; from `value`, if points have one coordinate,
        or if `ConicParticles` have a root below 0 and `signed` is False.
    Unsupported
        If F is, or holds, a distance to a measure of the library: `SquaredDistanceTo`,
        `SinkhornDivergenceTo`, `SlicedWassersteinTo`, `MMDTo`, `EnergyDistanceTo`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.functionals.Lifted(of.Potential(lambda x: x[:, 0]), total_variation=2.0)
    >>> mu = of.Particles(torch.tensor([[1.0, 5.0], [2.0, -1.0]]))
    >>> F.value(mu)  # (1 * 5 - 4 * 1) / 2 + 2 (1 + 4) / 2
    tensor(5.5000)
    """

    def __init__(
        self,
        functional: Functional,
        total_variation: float = 0.0,
        *,
        signed: bool = False,
    ) -> None:
        check_functional(functional)
        for _, term in functional.terms():
            if isinstance(term, _OF_EQUAL_MASSES):
                msg = (
                    f"F = {functional!r:.80} holds a distance of probabilities, and "
                    f"the mass of a lifted measure is free; take a functional of any "
                    f"mass: up to a constant Interaction(k) - Potential(lambda x: "
                    f"nu.convolve(k, x)) is half the squared kernel norm of the "
                    f"difference from nu"
                )
                raise Unsupported(msg)
        self.functional = functional
        self.total_variation = positive(
            total_variation, "total_variation", or_zero=True
        )
        self.signed = true_or_false(signed, "signed")

    def projected(self, mu: Measure) -> Particles:
        r"""Return :math:`\nu`, as atoms whose masses have any sum.

        Parameters
        ----------
        mu : Measure
            The law, of points (r, x).

        Returns
        -------
        Particles
            With the graph of the law. They are the argument of F, and no probability.

        Raises
        ------
        ValueError
            If points have one coordinate.
        """
        if mu.dim < 2:
            msg = (
                "a lifted functional takes laws of points (root, place), and these "
                "have one coordinate; make them by measures.ConicParticles.of_masses"
            )
            raise ValueError(msg)
        r = mu.points[:, 0]
        squares = r * r.abs() if self.signed else r.square()
        place = mu.points[:, 1:]
        return Particles(place).with_free_atoms(place, mu.weights * squares)

    def _check_signs(self, mu: Measure) -> None:
        """Raise ValueError if the measure has masses of a sign that F does not see."""
        if self.signed or not isinstance(mu, ConicParticles):
            return
        if bool((mu.points[:, 0] < 0).any()):
            msg = (
                "the measure has negative masses, which would count as positive ones; "
                "take Lifted(F, ..., signed=True), or start from positive masses"
            )
            raise ValueError(msg)

    def value_and_velocity(self, mu: Measure) -> tuple[Tensor, Tensor]:
        self._check_signs(mu)
        return super().value_and_velocity(mu)

    def first_variation(self, mu: Measure, x: ArrayLike | None = None) -> Tensor:
        self._check_signs(mu)
        return super().first_variation(mu, x)

    def value(self, mu: Measure) -> Tensor:
        self._check_signs(mu)
        value = self.functional.value(self.projected(mu))
        if not self.total_variation:
            return value
        mass = mu.weights @ mu.points[:, 0].square()
        return value + self.total_variation * mass

    def resample(self, generator: torch.Generator) -> Functional:
        inner = self.functional.resample(generator)
        return Lifted(inner, self.total_variation, signed=self.signed)

    def __repr__(self) -> str:
        more = f", {self.total_variation:g}" if self.total_variation else ""
        sign = ", signed=True" if self.signed else ""
        return f"Lifted({self.functional!r}{more}{sign})"
