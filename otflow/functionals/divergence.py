"""Relative entropy to a density: known up to a factor, or that of a measure."""

from __future__ import annotations

import math
import sys
from typing import Self

import torch
from torch import Tensor

from otflow._typing import Ground
from otflow._validation import check_function, check_map, positive, real
from otflow.errors import NonFinite, Unsupported
from otflow.functionals.base import Functional
from otflow.functionals.internal import Entropy
from otflow.functionals.potential import Potential
from otflow.functionals.steps import CrossEntropy
from otflow.functionals.targets import check_space
from otflow.measures import Gaussian, GridDensity, Measure, Particles, Quantiles

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
    Z. With a `mass` Z given, that is F itself. The gradient flow is the Fokker-Planck
    equation :math:`\partial_t\rho = \Delta\rho + \nabla\cdot(\rho\nabla V)`
    :cite:p:`jordan1998variational`. If V is :math:`\lambda`-convex, so is F. The
    `terms` are the entropy and the potential energy.

    Parameters
    ----------
    target : callable, Gaussian, Quantiles or GridDensity
        The potential V, batched (..., d) -> (...); of a density f make it by
        `to_density`. Or a measure with a density :math:`\nu`: then V = -log nu, and F
        is the relative entropy :math:`\mathrm{KL}(\mu\,|\,\nu)` itself, at least 0. To
        a `GridDensity` it is that of a measure on the same grid; to `Quantiles` that of
        a density on the line that is constant on cells.
    modulus : float, optional
        A :math:`\lambda` such that V is :math:`\lambda`-convex. By default that of a
        Gaussian, the least eigenvalue of the inverse covariance; else unknown.
    mass : float, optional
        The normalisation Z > 0 of a function V. By default it is unknown, and the value
        is that of the divergence up to the constant log Z. It is not checked.

    Attributes
    ----------
    target, mass
        As above. The mass of a measure is 1.
    convexity : float or None
        The modulus of V.
    is_normalized : bool
        Whether the value is the divergence itself: whether the mass is known.

    Raises
    ------
    Unsupported
        If the target is a grid's density and the measure is no `GridDensity`, or it is
        `Quantiles` and the measure is no density on the line that is constant on cells.
    TypeError
        If the target is a measure of atoms; if the dtypes of measure and target differ.
    ValueError
        If the mass is not positive, or given beside a measure. If the dimension or the
        device of a target is not that of the measure. If the target is a grid's density
        and vanishes somewhere, or the measure lives on another grid, or may enter the
        obstacles of the target.
    NonFinite
        If the measure reaches beyond `Quantiles`, where the entropy is infinite.

    Notes
    -----
    On `Quantiles` and on a grid of the line, the integral of the logarithm of a target
    of `Quantiles` is exact. It has kinks where edges of both meet; there the velocity
    counts the mean of both slopes.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.KL(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    >>> F.split_entropy()[0], F.modulus(2)
    (1.0, 1.0)
    >>> mu = of.Quantiles(torch.tensor([0.0, 1.0, 2.0]))
    >>> of.KL(of.Quantiles(torch.tensor([0.0, 2.0, 4.0]))).value(mu)  # log 2
    tensor(0.6931)
    """

    _fixed = frozenset({"convexity", "mass", "target"})

    def __init__(
        self,
        target: Ground | Gaussian | GridDensity | Quantiles,
        *,
        modulus: float | None = None,
        mass: float | None = None,
    ) -> None:
        bound = None if modulus is None else real(modulus, "modulus")
        if isinstance(target, Gaussian) and modulus is None:
            bound = _Quadratic(target).modulus
        self.target, self.convexity = target, bound
        known = None if mass is None else positive(mass, "mass")
        self.mass = 1.0 if isinstance(target, Measure) else known
        if isinstance(target, Measure) and mass is not None:
            msg = "a measure has the mass 1; leave mass= to a function V"
            raise ValueError(msg)
        if isinstance(target, GridDensity):
            V: Ground = _MinusLog(target)
        elif isinstance(target, Gaussian):
            V = _Quadratic(target)
        elif isinstance(target, Quantiles):
            self._rest: Functional = CrossEntropy(target)
            return
        elif isinstance(target, Measure):
            raise TypeError(_no_density(target))
        elif callable(target) and not isinstance(target, (type, Functional)):
            V = target
            if known is not None and known != 1:
                V = _Shifted(target, math.log(known))
        else:
            msg = (
                f"the target must be a function V, (..., d) -> (...), or a "
                f"GridDensity, Quantiles or a Gaussian, got {target!r:.80}; give the "
                f"plain function V, or write Potential(V) + Entropy()"
            )
            raise TypeError(msg)
        self._rest = Potential(V, modulus=self.convexity)
        if isinstance(target, Gaussian) and modulus is None:
            self._rest._reason = "the least eigenvalue of the inverse covariance"

    @classmethod
    def to_density(
        cls, density: Ground, *, mass: float | None, modulus: float | None = None
    ) -> Self:
        r"""Return the relative entropy to a density given as a function.

        The potential is :math:`V = -\log f`. Where f underflows, give V itself.

        Parameters
        ----------
        density : callable
            The density f, batched (..., d) -> (...), positive.
        mass : float or None
            Its integral, 1 for a normalised density. None if it is unknown: then the
            value is that of the divergence up to a constant.
        modulus : float, optional
            A :math:`\lambda` such that -log f is :math:`\lambda`-convex.

        Returns
        -------
        KL
            With the target -log f.

        Raises
        ------
        TypeError
            If the density is no function.
        ValueError
            If the mass is not positive.
        NonFinite
            When it is evaluated, if f is not positive.
        InvalidFunctional
            When it is evaluated, if f returns another shape or dtype.

        Examples
        --------
        >>> import torch, otflow as of
        >>> F = of.KL.to_density(lambda x: (-x.abs().sum(-1)).exp(), mass=2.0)
        >>> mu = of.Quantiles(torch.linspace(0, 1, 101))
        >>> F.value(mu)  # 1/2 + log 2
        tensor(1.1931)
        """
        check_function(density, "density must be a function (..., d) -> (...)")
        return cls(_MinusLogOf(density), modulus=modulus, mass=mass)

    @property
    def is_normalized(self) -> bool:
        """Whether the value is the divergence itself, at least 0."""
        return self.mass is not None

    def value(self, mu: Measure) -> Tensor:
        if isinstance(self.target, GridDensity):
            _check_cells(mu, self.target)
        elif isinstance(self.target, Gaussian):
            check_space(mu, self.target)
        return Entropy().value(mu) + self._rest.value(mu)

    def terms(self) -> tuple[tuple[float, Functional], ...]:
        return ((1.0, Entropy()), (1.0, self._rest))

    def __repr__(self) -> str:
        V = self.target
        if isinstance(V, Measure):
            return f"KL({V!r})"
        mass = "" if self.mass is None else f", mass={self.mass:g}"
        name = getattr(V, "__name__", None) or type(V).__name__
        return f"KL({V!r}{mass})" if isinstance(V, _MinusLogOf) else f"KL({name}{mass})"


class _Shifted:
    """A potential plus a constant, the logarithm of a mass."""

    def __init__(self, V: Ground, shift: float) -> None:
        self.V, self.shift = V, shift

    def __call__(self, x: Tensor) -> Tensor:
        return self.V(x) + self.shift


class _MinusLogOf:
    """The potential -log f of a density f that is a function."""

    def __init__(self, density: Ground) -> None:
        self.density = density

    def __call__(self, x: Tensor) -> Tensor:
        what, cure = "a density", "reduce over the last axis, e.g. .prod(-1)"
        f = check_map(self.density(x), x, x.shape[:-1], what, "points x", cure)
        bad = ~(f.detach() > 0)
        if bool(bad.any()):
            msg = (
                f"the density is not positive at {int(bad.sum())} of {bad.numel()} "
                f"points, where the relative entropy is infinite; give -log of it as "
                f"a function that does not underflow, KL(V, mass=...)"
            )
            raise NonFinite(msg)
        return -f.log()

    def __repr__(self) -> str:
        f = self.density
        return f"-log {getattr(f, '__name__', None) or type(f).__name__}"


def _no_density(target: Measure) -> str:
    """Return why a measure is no target: it has no density with a slope."""
    name = type(target).__name__
    if isinstance(target, Particles):
        return (
            f"the target is a {name}, a sum of atoms, which has no density; smooth it, "
            f"KL.to_density(lambda x: Blob(Entropy(), width).density(nu, x), mass=1), "
            f"fit Gaussian.from_samples(nu.points), or use EnergyDistanceTo(nu)"
        )
    return (
        f"the target is a {name}, whose density between its points is not known; give "
        f"-log of it as a function, KL(V, mass=1), or use EnergyDistanceTo(nu)"
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
        # One that overflows is bounded by every number.
        bound = (1.0 - 1e-14 * len(factor)) / largest / largest
        return min(bound, sys.float_info.max)

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
