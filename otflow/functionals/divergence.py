"""Relative entropy to a density known up to a factor, or to a density on a grid."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._typing import Ground
from otflow._validation import real
from otflow.errors import Unsupported
from otflow.functionals.base import Functional
from otflow.functionals.internal import Entropy
from otflow.functionals.potential import Potential
from otflow.measures import GridDensity, Measure

__all__ = ["KL"]

_ON_CELLS = (
    "the density of the target is constant on the cells of a grid, so the relative "
    "entropy to it is one of a GridDensity on the same grid; for other measures give "
    "KL a smooth potential V with exp(-V) in proportion to the density"
)


class KL(Functional):
    r"""Relative entropy :math:`F(\mu) = \int \rho \log\rho + \int V\, d\mu`.

    That is :math:`\mathrm{KL}(\mu \,|\, e^{-V})`. The normalisation :math:`Z = \int
    e^{-V}` need not be known: the divergence from the law :math:`e^{-V}/Z` is F + log
    Z. The gradient flow is the Fokker-Planck equation :math:`\partial_t\rho =
    \Delta\rho + \nabla\cdot(\rho\nabla V)` :cite:p:`jordan1998variational`. If V is
    :math:`\lambda`-convex, so is F. The `terms` are the entropy and the potential
    energy.

    Parameters
    ----------
    target : callable or GridDensity
        The potential V, batched (..., d) -> (...). Or a density :math:`\nu` on a grid:
        then V = -log nu, and the measure must be a density on the same grid.
    modulus : float, optional
        A :math:`\lambda` such that V is :math:`\lambda`-convex; unknown by default.

    Attributes
    ----------
    target
        As above.
    convexity : float or None
        The number given as `modulus`.

    Raises
    ------
    Unsupported
        If the target is a grid's density and the measure is no `GridDensity`.
    ValueError
        If the target is a grid's density and vanishes somewhere, or the measure lives
        on another grid, or may enter the obstacles of the target.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.KL(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    >>> F.split_entropy()[0], F.modulus(2)
    (1.0, 1.0)
    """

    def __init__(
        self, target: Ground | GridDensity, *, modulus: float | None = None
    ) -> None:
        self.target = target
        self.convexity = None if modulus is None else real(modulus, "modulus")
        if isinstance(target, GridDensity):
            self._potential = Potential(_MinusLog(target), modulus=modulus)
        elif callable(target) and not isinstance(target, (type, Functional)):
            self._potential = Potential(target, modulus=modulus)
        else:
            msg = (
                f"the target must be a function V, (..., d) -> (...), or a "
                f"GridDensity, got {target!r:.80}; give the plain function V, or "
                f"write Potential(V) + Entropy()"
            )
            raise TypeError(msg)

    def value(self, mu: Measure) -> Tensor:
        if isinstance(self.target, GridDensity):
            _check_cells(mu, self.target)
        return Entropy().value(mu) + self._potential.value(mu)

    def terms(self) -> tuple[tuple[float, Functional], ...]:
        return ((1.0, Entropy()), (1.0, self._potential))

    def __repr__(self) -> str:
        V = self.target
        name = getattr(V, "__name__", type(V).__name__)
        return f"KL({V!r})" if isinstance(V, GridDensity) else f"KL({name})"


class _MinusLog:
    """The potential -log nu of a density on a grid, constant on each cell."""

    def __init__(self, target: GridDensity) -> None:
        empty = target.is_free & ~(target.density() > 0)
        if bool(empty.any()):
            msg = (
                f"the target density vanishes in {int(empty.sum())} of "
                f"{target.n} cells, where the relative entropy is infinite; mix it "
                f"with a little uniform mass, or make obstacles of these cells"
            )
            raise ValueError(msg)
        self.target = target

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            # The density is constant on cells, where autograd would return 0.
            raise Unsupported(_ON_CELLS)
        rho = self.target.density_at(x)
        return -torch.where(rho > 0, rho, 1.0).log()  # 0 in obstacles


def _check_cells(mu: Measure, target: GridDensity) -> None:
    if not isinstance(mu, GridDensity):
        raise Unsupported(_ON_CELLS)
    target.check_same_grid(mu)
    if bool((mu.is_free & ~target.is_free).any()):
        msg = (
            "the measure may enter obstacles of the target density, where the relative "
            "entropy is infinite; give it obstacles=~target.is_free.reshape(shape)"
        )
        raise ValueError(msg)
