"""Relative entropy to a density known up to a factor, on a grid, or of a Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._typing import Ground
from otflow._validation import real
from otflow.errors import Unsupported
from otflow.functionals.base import Functional
from otflow.functionals.internal import Entropy
from otflow.functionals.potential import Potential
from otflow.functionals.targets import check_space
from otflow.measures import Gaussian, GridDensity, Measure, Particles

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
    target : callable, Gaussian or GridDensity
        The potential V, batched (..., d) -> (...). Or a measure with a density
        :math:`\nu`: then V = -log nu, and F is the relative entropy
        :math:`\mathrm{KL}(\mu\,|\,\nu)` itself, at least 0. To a `GridDensity` it
        is that of a measure on the same grid.
    modulus : float, optional
        A :math:`\lambda` such that V is :math:`\lambda`-convex. By default that of a
        Gaussian, the least eigenvalue of the inverse covariance; else unknown.

    Attributes
    ----------
    target
        As above.
    convexity : float or None
        The modulus of V.

    Raises
    ------
    Unsupported
        If the target is a grid's density and the measure is no `GridDensity`.
    TypeError
        If the target is a measure of atoms, or a density that is constant on cells
        which move, `Quantiles`; if the dtypes of measure and target differ.
    ValueError
        If the dimension or the device of a Gaussian target is not that of the measure.
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
        self,
        target: Ground | Gaussian | GridDensity,
        *,
        modulus: float | None = None,
    ) -> None:
        self.target = target
        self.convexity = None if modulus is None else real(modulus, "modulus")
        if isinstance(target, GridDensity):
            V: Ground = _MinusLog(target)
        elif isinstance(target, Gaussian):
            V = _Quadratic(target)
            self.convexity = V.modulus if modulus is None else self.convexity
        elif isinstance(target, Measure):
            raise TypeError(_no_density(target))
        elif callable(target) and not isinstance(target, (type, Functional)):
            V = target
        else:
            msg = (
                f"the target must be a function V, (..., d) -> (...), or a "
                f"GridDensity or a Gaussian, got {target!r:.80}; give the plain "
                f"function V, or write Potential(V) + Entropy()"
            )
            raise TypeError(msg)
        self._potential = Potential(V, modulus=self.convexity)

    def value(self, mu: Measure) -> Tensor:
        if isinstance(self.target, GridDensity):
            _check_cells(mu, self.target)
        elif isinstance(self.target, Gaussian):
            check_space(mu, self.target)
        return Entropy().value(mu) + self._potential.value(mu)

    def terms(self) -> tuple[tuple[float, Functional], ...]:
        return ((1.0, Entropy()), (1.0, self._potential))

    def __repr__(self) -> str:
        V = self.target
        name = getattr(V, "__name__", type(V).__name__)
        return f"KL({V!r})" if isinstance(V, Measure) else f"KL({name})"


def _no_density(target: Measure) -> str:
    """Return why a measure is no target: it has no density with a slope."""
    draws = "nu.points" if isinstance(target, Particles) else "nu.sample(1000, g)"
    why = (
        "is a sum of atoms, which has no density"
        if isinstance(target, Particles)
        else "has a density without a slope inside its cells"
    )
    return (
        f"the target is a {type(target).__name__}, which {why}; give -log of a density "
        f"as a function, fit Gaussian.from_samples({draws}), or use "
        f"EnergyDistanceTo(nu)"
    )


class _Quadratic:
    """The potential -log nu of a Gaussian, a quadratic polynomial."""

    def __init__(self, target: Gaussian) -> None:
        self.target = target

    @property
    def modulus(self) -> float:
        """The least eigenvalue of the inverse covariance, less its round-off."""
        factor = self.target.factor.detach().double()
        largest = float(torch.linalg.matrix_norm(factor, ord=2))
        return (1.0 - 1e-14 * len(factor)) / largest**2

    def __call__(self, x: Tensor) -> Tensor:
        nu = self.target
        whitening = torch.linalg.inv(nu.factor).T
        white = (x - nu.mean) @ whitening
        potential: Tensor = 0.5 * white.square().sum(-1) + nu.log_volume()
        return potential


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
