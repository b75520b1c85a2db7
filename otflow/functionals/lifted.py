"""A functional of measures of free mass, as one of laws of root and place."""

from __future__ import annotations

from torch import Tensor

from otflow._typing import ArrayLike
from otflow._validation import positive, true_or_false
from otflow.errors import Unsupported
from otflow.functionals.base import Functional, Scaled, Sum, check_functional
from otflow.functionals.discrepancy import EnergyDistanceTo, MMDTo
from otflow.functionals.sliced import SlicedWassersteinTo
from otflow.functionals.transport import SinkhornDivergenceTo, SquaredDistanceTo
from otflow.functionals.wrapped import Wrapped
from otflow.measures import ConicParticles, Measure, Particles

__all__ = ["Lifted"]

# Distances between probabilities: at other masses their values are not distances.
OF_PROBABILITIES = (
    EnergyDistanceTo,
    MMDTo,
    SinkhornDivergenceTo,
    SlicedWassersteinTo,
    SquaredDistanceTo,
)


class Lifted(Wrapped):
    r"""The functional :math:`\mu \mapsto F(\nu) + \lambda\,|\nu|` of a law on the cone.

    The law :math:`\mu` has points (r, x), and

    .. math:: \nu = \int r^2\,\delta_x\,d\mu(r, x)
        \quad\text{or, signed,}\quad \int r|r|\,\delta_x\,d\mu(r, x), \qquad
        |\nu| = \int r^2\,d\mu .

    So :math:`\nu` has free mass, and :math:`|\nu|` is its total variation, or an upper
    bound of it where masses of both signs lie at one place. F is stated once, for
    measures on space :cite:p:`chizat2022sparse`. Its value must make sense for atoms of
    any masses, as that of a `Potential`, an `Interaction` or a mean-field `Risk` does:
    a constant that changes nothing among probabilities is here a price of mass. The
    first variation of the lifted functional is :math:`r^2 (F'(x) + \lambda)`, or
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
    Unsupported
        If F holds a distance between probabilities, as `MMDTo`.
    ValueError
        If `total_variation` is negative; from `value`, if points have one coordinate,
        or if `ConicParticles` have a root below 0 and `signed` is False.

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
        if (distance := _distance_in(functional)) is not None:
            msg = (
                f"{distance!r} is a distance between probabilities, and a lifted "
                f"functional takes measures of any mass; take a Risk, or half a "
                f"squared kernel distance by its terms, Interaction(k) + Potential(V) "
                f"with V(x) the integral of -k(x - y) over the target"
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

    def __repr__(self) -> str:
        more = f", {self.total_variation:g}" if self.total_variation else ""
        sign = ", signed=True" if self.signed else ""
        return f"{type(self).__name__}({self.functional!r}{more}{sign})"


def _distance_in(F: Functional) -> Functional | None:
    """Return a distance between probabilities of which F is made, or None."""
    if isinstance(F, OF_PROBABILITIES):
        return F
    inner = F.parts if isinstance(F, Sum) else ()
    if isinstance(F, Scaled):
        inner = (F.functional,)
    return next((d for part in inner if (d := _distance_in(part)) is not None), None)
