"""Kernel distances to a given measure: maximum mean discrepancy, energy distance."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from typing import Any, Self

import torch
from torch import Tensor

from otflow._graphs import records
from otflow._typing import ArrayLike, Ground
from otflow._validation import non_negative_int
from otflow.functionals.base import Functional, Sum
from otflow.functionals.interaction import Interaction
from otflow.functionals.potential import Potential
from otflow.functionals.targets import as_target, check_space
from otflow.kernels import Energy, Gaussian, Kernel, PairKernel, RadialKernel, as_kernel
from otflow.measures import Measure, Particles
from otflow.measures.sums import pair_slope
from otflow.numerics.enclosed_sums import combination
from otflow.numerics.enclosures import Enclosure, NotEnclosed

__all__ = ["EnergyDistanceTo", "MMDTo", "Witness"]


class _Discrepancy(Functional):
    """Half a squared kernel distance: an interaction plus a potential, the witness."""

    _fixed = frozenset({"kernel", "target"})

    def __init__(
        self, nu: Measure | ArrayLike, kernel: PairKernel, batch_size: int | None
    ) -> None:
        self.target = as_target(nu)
        self.kernel = kernel
        if kernel.singular:
            msg = (
                f"the kernel {kernel!r} is infinite at 0, and so is the distance; use "
                f"a bounded kernel, such as kernels.Gaussian(1.0) or kernels.Energy()"
            )
            raise ValueError(msg)
        self.batch_size = (
            None
            if batch_size is None
            else non_negative_int(batch_size, "batch_size", minimum=1)
        )
        self._parts = _parts(self.target, kernel, None)

    def _terms(self) -> tuple[tuple[float, Functional], ...]:
        return tuple(term for part in self._parts.parts for term in part.terms())

    def value(self, mu: Measure) -> Tensor:
        check_space(mu, self.target)
        return self._parts.value(mu)

    def first_variation(self, mu: Measure, x: ArrayLike | None = None) -> Tensor:
        check_space(mu, self.target)
        return self._parts.first_variation(mu, x)

    def value_and_velocity(self, mu: Measure) -> tuple[Tensor, Tensor]:
        check_space(mu, self.target)
        repulsion, witness = self._parts.parts
        assert isinstance(witness, Potential)
        assert isinstance(witness.V, Witness)
        closed = witness.V.closed(mu)
        if closed is None:
            return self._parts.value_and_velocity(mu)
        value, velocity = repulsion.value_and_velocity(mu)
        return value + closed[0], velocity + closed[1]

    def _velocity_at(self, mu: Measure, x: Tensor) -> Tensor:
        check_space(mu, self.target)
        repulsion, nu = self._parts.parts[0], self.target
        if not isinstance(nu, Particles):
            return self._parts._velocity_at(mu, x)
        live = records(x, nu.points, nu.weights)
        with nullcontext() if live else torch.no_grad():
            pull = pair_slope(self.kernel, x, nu.points, nu.weights)
        return repulsion._velocity_at(mu, x) + pull

    def resample(self, generator: torch.Generator) -> Self:
        """Return the distance to `batch_size` draws of the target, an unbiased copy.

        The term of the target alone is that of the whole target, so that the value is
        unbiased too. Without a `batch_size` the result is the functional itself.
        """
        if self.batch_size is None:
            return self
        whole = self._parts.parts[1]
        assert isinstance(whole, Potential)
        draw = copy.copy(self)
        nu = Particles(self.target.sample(self.batch_size, generator))
        parts = _parts(nu, self.kernel, whole.V)
        vars(draw).update(target=nu, batch_size=None, _parts=parts)
        return draw


class MMDTo(_Discrepancy):
    r"""Half the squared maximum mean discrepancy to a measure.

    .. math:: F(\mu) = \tfrac12\iint k(x - x')\, d\mu\, d\mu
        - \iint k(x - y)\, d\mu\, d\nu + \tfrac12\iint k(y - y')\, d\nu\, d\nu
        = \tfrac12 \mathrm{MMD}^2(\mu, \nu)

    :cite:p:`gretton2012kernel`. The first variation is the witness :math:`F'[\mu] =
    k * (\mu - \nu)`, the velocity its negative gradient :cite:p:`arbel2019maximum`. The
    `terms` are the `Interaction` of k, which repels the points of :math:`\mu` from one
    another, and a `Potential`, which attracts them to :math:`\nu`.

    Parameters
    ----------
    nu : Measure, Tensor or ndarray
        The target; points (m, d) stand for equal weights 1/m. It may be of another kind
        than the measure.
    kernel : PairKernel or callable
        A function of the difference, finite at 0, even and positive definite: a bump,
        such as ``kernels.Gaussian(sigma)``. Conditionally positive definite suffices,
        as for ``kernels.Energy()``, which is :math:`-|z|`. Mind the sign: with the
        other one F is at most 0. Definiteness is not checked.
    batch_size : int, optional
        Number of draws of the target in a `resample`, as by ``schemes.Minibatch``.

    Attributes
    ----------
    target : Measure
        The measure nu.
    kernel, batch_size
        As above.

    Raises
    ------
    ValueError
        If the kernel is singular, or dimensions or devices differ.
    TypeError
        If dtypes differ.

    See Also
    --------
    EnergyDistanceTo : Without a length to choose.

    Notes
    -----
    All pairs count, also those of a point with itself. Particles: time O(n (n + m) d)
    for a value with its velocity, memory O(n + m), and O(m^2 d) once for the target.
    The modulus is known for a Gaussian kernel: :math:`-(1 + 2e^{-3/2})/\sigma^2`.
    The flow of a Gaussian kernel is slow for points far from the target, where the
    kernel has no slope.

    Examples
    --------
    >>> import torch, otflow as of
    >>> k = of.kernels.Gaussian(1.0)
    >>> F = of.MMDTo(torch.tensor([[0.0]]), k)
    >>> mu = of.Particles(torch.tensor([[1.0]]))
    >>> F.value(mu), F.velocity(mu)  # 1 - exp(-1/2), -exp(-1/2)
    (tensor(0.3935), tensor([[-0.6065]]))
    """

    def __init__(
        self,
        nu: Measure | ArrayLike,
        kernel: PairKernel | Ground,
        *,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(nu, as_kernel(kernel), batch_size)

    def __repr__(self) -> str:
        return f"MMDTo({self.target!r}, {self.kernel!r})"


class EnergyDistanceTo(_Discrepancy):
    r"""The energy distance to a measure.

    .. math:: F(\mu) = E|x - y| - \tfrac12 E|x - x'| - \tfrac12 E|y - y'|, \qquad
        x, x' \sim \mu,\; y, y' \sim \nu,

    :cite:p:`szekely2013energy`. It is `MMDTo` with the kernel :math:`-|z|`, at least 0,
    and 0 at the target alone. On the line :math:`F = \int |F_\mu - F_\nu|^2\,dx`, for
    the distribution functions of both. Points far from the target are drawn to it with
    a force of size 1. The force between points that coincide counts as 0.

    Parameters
    ----------
    nu : Measure, Tensor or ndarray
        The target; points (m, d) stand for equal weights 1/m. It may be of another kind
        than the measure.
    batch_size : int, optional
        Number of draws of the target in a `resample`, as by ``schemes.Minibatch``.

    Attributes
    ----------
    target : Measure
        The measure nu.
    kernel : Kernel
        ``kernels.Energy()``.
    batch_size : int or None
        As above.

    Raises
    ------
    TypeError, ValueError
        If dtypes, devices or dimensions differ.

    Notes
    -----
    Costs are those of `MMDTo`. No modulus is known: F is convex along mixtures, and the
    repulsion :math:`-|x - x'|` is concave where points pass each other.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.EnergyDistanceTo(torch.tensor([[0.0], [1.0]]))
    >>> F.value(of.Particles(torch.tensor([[3.0]])))  # (3 + 2)/2 - 1/4
    tensor(2.2500)
    """

    def __init__(
        self, nu: Measure | ArrayLike, *, batch_size: int | None = None
    ) -> None:
        super().__init__(nu, Energy(), batch_size)

    def __repr__(self) -> str:
        return f"EnergyDistanceTo({self.target!r})"


class Witness:
    r"""The potential :math:`c - k * \nu`, with the term c of the target alone."""

    def __init__(
        self, target: Measure, kernel: PairKernel, whole: Ground | None
    ) -> None:
        self.target, self.kernel, self.whole = target, kernel, whole
        # Kept for the parameters that the kernel has now, and a target without a graph.
        known = _key(kernel) is not None
        fixed = known and not records(target.points, target.weights)
        kept = target.interaction(kernel) if whole is None and fixed else None
        self.kept = None if kept is None else (_key(kernel), kept)

    @property
    def own(self) -> Tensor:
        """The term of the target alone."""
        if isinstance(self.whole, Witness):
            return self.whole.own
        if self.kept is not None and self.kept[0] == _key(self.kernel):
            return self.kept[1]
        return self.target.interaction(self.kernel)

    def __call__(self, x: Tensor) -> Tensor:
        if isinstance(x, Enclosure):
            return self.enclosed(x)
        attraction = self.target.convolve(self.kernel, x.reshape(-1, x.shape[-1]))
        return self.own - attraction.reshape(x.shape[:-1])

    def enclosed(self, x: Enclosure) -> Enclosure:
        """Return minus k * nu, without the constant."""
        nu = self.target
        if not isinstance(nu, Particles):
            msg = f"the witness of a target {nu!r} has no interval extension here"
            raise NotEnclosed(msg)
        field = self.kernel.enclosed_field(x, nu.points, nu.weights)
        return combination([(-1.0, field)], x)

    def closed(self, mu: Measure) -> tuple[Tensor, Tensor] | None:
        """Return integral and minus the gradient between atoms, without autodiff.

        None if there is no closed form, or the answers would need a graph.
        """
        nu, kernel = self.target, self.kernel
        if not (isinstance(mu, Particles) and isinstance(nu, Particles)):
            return None
        if not isinstance(kernel, Kernel):
            return None
        own, live = self.own, (mu.points, mu.weights, nu.points, nu.weights)
        if records(*live, own):
            return None
        total, pull = torch.zeros_like(mu.weights), torch.zeros_like(mu.points)
        for c, W in kernel.terms():
            if not isinstance(W, RadialKernel):
                return None
            potential, force = W.field(
                mu.points, nu.points, nu.weights[:, None], gradients=True
            )
            potential, force = potential[:, 0], force[:, 0]
            total, pull = total + c * potential, pull + c * force
        return mu.weights @ (own - total), pull


def _key(kernel: PairKernel) -> tuple[Any, ...] | None:
    """Return what identifies a kernel, or None if its values may change."""
    return kernel.key() if isinstance(kernel, Kernel) else None


class Attraction(Potential):
    """The potential of a witness; its modulus is one of the kernel as it is now."""

    V: Witness

    def modulus(self, dim: int) -> float | None:
        return _bound_of_minus(self.V.kernel)

    def why_modulus(self, dim: int) -> str:
        if self.modulus(dim) is None:
            return f"since no bound of the Hessian of minus {self.V.kernel!r} is known"
        return "the least eigenvalue of the Hessian of minus the kernel"


def _parts(target: Measure, kernel: PairKernel, whole: Ground | None) -> Sum:
    return Sum((Interaction(kernel), Attraction(Witness(target, kernel, whole))))


def _bound_of_minus(kernel: PairKernel) -> float | None:
    """Return a modulus of minus the kernel, None if none is known."""
    if type(kernel) is not Gaussian:  # a subclass may have another profile
        return None
    return -2.0 * math.exp(-1.5) / kernel.sigma**2
