"""Relative entropy with respect to a density known up to a factor, or to a grid's."""

from __future__ import annotations

from torch import Tensor

from otflow._typing import Ground
from otflow._validation import real
from otflow.functionals.base import Functional
from otflow.functionals.internal import Entropy
from otflow.functionals.potential import Potential
from otflow.measures import GridDensity, Measure

__all__ = ["KL"]


class KL(Functional):
    r"""Relative entropy :math:`F(\mu) = \int \rho \log\rho + \int V\, d\mu`.

    That is :math:`\mathrm{KL}(\mu \,|\, e^{-V})`: with the unknown normalisation
    :math:`Z = \int e^{-V}`, the divergence from the law :math:`e^{-V}/Z` is F + log Z.
    Its gradient flow is the Fokker-Planck equation :math:`\partial_t\rho = \Delta\rho +
    \nabla\cdot(\rho\nabla V)` :cite:p:`jordan1998variational`; where V is
    :math:`\lambda`-convex so is F.

    Parameters
    ----------
    target : callable or GridDensity
        The potential V, batched (..., d) -> (...); or a density :math:`\nu` on a grid,
        for V = -log nu, to be compared with densities on the same grid.
    modulus : float, optional
        A :math:`\lambda` such that V is :math:`\lambda`-convex; unknown by default.

    Attributes
    ----------
    target, modulus
        As above.

    Raises
    ------
    ValueError
        If the target is a grid's density and vanishes somewhere, or the measure lives
        on another grid.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.KL(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    >>> F.split_entropy()[0], F.displacement_modulus
    (1.0, 1.0)
    """

    def __init__(
        self, target: Ground | GridDensity, *, modulus: float | None = None
    ) -> None:
        self.target = target
        self.modulus = None if modulus is None else real(modulus, "modulus")
        if isinstance(target, GridDensity):
            self._potential = Potential(_MinusLog(target), modulus=modulus)
        elif callable(target):
            self._potential = Potential(target, modulus=modulus)
        else:
            msg = (
                f"the target must be a potential (..., d) -> (...) or a GridDensity, "
                f"got {type(target).__name__}"
            )
            raise TypeError(msg)

    def value(self, mu: Measure) -> Tensor:
        r"""Return :math:`\int\log\rho\,d\mu + \int V\,d\mu`."""
        if isinstance(self.target, GridDensity):
            self.target.check_same_grid(mu)
        return Entropy().value(mu) + self._potential.value(mu)

    def split_entropy(self) -> tuple[float, Functional]:
        """Return temperature 1 and the potential energy of V."""
        return 1.0, self._potential

    def terms(self) -> tuple[tuple[float, Functional], ...]:
        """Return the entropy and the potential energy."""
        return ((1.0, Entropy()), (1.0, self._potential))

    @property
    def displacement_modulus(self) -> float | None:
        """The declared modulus of V."""
        return self.modulus

    def __repr__(self) -> str:
        return f"KL({getattr(self._potential.V, '__name__', self.target)})"


class _MinusLog:
    """The potential -log nu of a density on a grid, constant on each cell."""

    def __init__(self, target: GridDensity) -> None:
        if not bool((target.density()[target.is_free] > 0).all()):
            msg = (
                "the target density vanishes somewhere, where the relative entropy is "
                "infinite; mix it with a little uniform mass"
            )
            raise ValueError(msg)
        self.target = target

    def __call__(self, x: Tensor) -> Tensor:
        return -self.target.density_at(x).log()
