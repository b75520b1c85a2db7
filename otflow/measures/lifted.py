"""Atoms of free mass, as a law on the cone over space: root of the mass, and place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from otflow._arrays import as_points, as_tensor
from otflow._typing import ArrayLike, Value
from otflow._validation import check_like, positive, real
from otflow.errors import Diverged
from otflow.measures.base import Measure
from otflow.measures.particles import Particles

__all__ = ["ConicParticles"]

# The least roots whose squares keep their digits, also divided by a number of atoms.
_LEAST = {torch.float64: 1e-140, torch.float32: 1e-14}
# Particles without checks are made of others.
_ANY = Particles(torch.zeros(1, 1))


@dataclass(frozen=True, eq=False, init=False, repr=False)
class ConicParticles(Measure):
    r"""Atoms of free mass, :math:`\nu = \sum_i w_i\,r_i|r_i|\,\delta_{x_i}`.

    The law is :math:`\mu = \sum_i w_i\,\delta_{(r_i, x_i)}`, a probability over roots r
    and places x; `points` holds rows :math:`(r_i, x_i)`. The mass of :math:`\nu` is
    free. `otflow.functionals.Lifted` makes a functional of the law of one of
    :math:`\nu`.

    A tangent is a row :math:`(g_i, v_i)` for each atom: the growth rate of its root and
    its velocity. With the mobilities :math:`\alpha` of the roots and :math:`\beta` of
    the places the metric is the conic one :cite:p:`chizat2022sparse`, and `push` a
    mirror step in the root,

    .. math:: \langle u, u\rangle_\mu = \sum_i w_i\,r_i^2
        \Bigl(\frac{g_i^2}\alpha + \frac{|v_i|^2}\beta\Bigr), \qquad
        (r_i, x_i) \mapsto (r_i e^{dt\,g_i},\; x_i + dt\,v_i) .

    So the gradient flow of a lifted F is :math:`\dot r_i = -2\alpha\,s_i r_i F'(x_i)`
    and :math:`\dot x_i = -\beta\,s_i\nabla F'(x_i)`, with the signs :math:`s_i` of the
    roots, which never change. For a positive :math:`\nu` it is the
    Wasserstein-Fisher-Rao flow :math:`\partial_t\nu = \beta\,\nabla\cdot(\nu\nabla F')
    - 4\alpha\,\nu F'`, whose mass is free.

    Parameters
    ----------
    points : Tensor or ndarray, shape (n, 1 + d)
        Rows (r, x). A root may be negative, but not 0.
    weights : Tensor or ndarray, shape (n,), optional
        Masses of the law, of sum 1; uniform by default.
    alpha, beta : float
        Mobilities of roots and of places, > 0.

    Attributes
    ----------
    points, weights, alpha, beta
        As above.
    is_uniform : bool
        Whether the weights are equal.
    law : Particles
        The law, as particles in 1 + d dimensions.
    places : Tensor, shape (n, d)
        The places x.
    masses : Tensor, shape (n,)
        The masses :math:`w_i\,r_i|r_i|` of :math:`\nu`.

    Raises
    ------
    ValueError, TypeError
        As `Particles` does; if a root is 0, or too small, see the notes; if d = 0; if a
        mobility is not positive.

    See Also
    --------
    otflow.functionals.Lifted : A functional of the measure of free mass.

    Notes
    -----
    The root of an atom that loses its mass stops at :math:`10^{-140}` in float64 and at
    :math:`10^{-14}` in float32, the least roots whose squares are accurate. In a
    certificate of `JKO` the word ``w2`` is a length in the conic metric. Memory O(n d).

    Examples
    --------
    >>> import torch, otflow as of
    >>> V = of.Potential(lambda x: (x - 1).square().sum(-1) - 4)  # < 0 in (-1, 3)
    >>> F = of.functionals.Lifted(V)
    >>> mu = of.measures.ConicParticles(torch.tensor([[1.0, 0.0], [1.0, 5.0]]))
    >>> mu.masses
    tensor([0.5000, 0.5000])
    >>> of.flow(F, mu, of.ExplicitEuler(), dt=0.01, steps=10).final.masses
    tensor([1.7702, 0.0115])
    """

    points: Tensor
    weights: Tensor
    is_uniform: bool
    alpha: float
    beta: float

    cures: ClassVar[Mapping[str, str]] = {
        "density": (
            "a sum of Diracs is singular; internal energies need a density, as "
            "GridDensity holds it"
        ),
        "diffuse": "noise would change the signs of roots; take mu.law, of Particles",
    }
    _tangent_layout: ClassVar[str] = ": a growth rate and a velocity for each atom"

    def __init__(
        self,
        points: ArrayLike,
        weights: ArrayLike | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
    ) -> None:
        x = as_points(points)
        if x.shape[1] < 2:
            msg = (
                f"points must hold rows (root, place), of two numbers or more, got "
                f"shape {tuple(x.shape)}; make them by ConicParticles.of_masses"
            )
            raise ValueError(msg)
        roots = x[:, 0].detach().abs()
        if not bool((roots >= _LEAST[x.dtype]).all()):
            msg = (
                f"a root is below {_LEAST[x.dtype]:g}: such an atom has no mass and "
                f"gains none; leave it out, or give it a small root, e.g. 1e-3"
            )
            raise ValueError(msg)
        law = Particles(x, weights)
        self._hold(
            points=law.points,
            weights=law.weights,
            is_uniform=law.is_uniform,
            alpha=positive(alpha, "alpha"),
            beta=positive(beta, "beta"),
        )

    @classmethod
    def of_masses(
        cls,
        places: ArrayLike,
        masses: ArrayLike,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
    ) -> Self:
        r"""Return the law, of uniform weights, with these masses at these places.

        Parameters
        ----------
        places : Tensor or ndarray, shape (n, d)
            The places.
        masses : Tensor or ndarray, shape (n,)
            Masses of either sign and any sum, none of them 0.
        alpha, beta : float
            Mobilities of roots and places.

        Returns
        -------
        ConicParticles
            With roots :math:`\pm\sqrt{n|m_i|}`.

        Raises
        ------
        ValueError, TypeError
            As the constructor does.

        Examples
        --------
        >>> import torch, otflow as of
        >>> x, m = torch.tensor([[0.0], [1.0]]), torch.tensor([3.0, -0.5])
        >>> of.measures.ConicParticles.of_masses(x, m).masses
        tensor([ 3.0000, -0.5000])
        """
        x, m = as_points(places, "places"), as_tensor(masses, "masses")
        check_like(m, x, "masses", "places")
        if m.shape != (len(x),):
            msg = f"masses must have shape ({len(x)},), got {tuple(m.shape)}"
            raise ValueError(msg)
        if not bool((m != 0).all() and torch.isfinite(m).all()):
            msg = "masses must be finite numbers other than 0; leave such atoms out"
            raise ValueError(msg)
        roots = m.sign() * (len(x) * m.abs()).sqrt()
        return cls(torch.cat([roots[:, None], x], 1), alpha=alpha, beta=beta)

    @property
    def law(self) -> Particles:
        """The law, as particles in 1 + d dimensions."""
        return _ANY.with_free_atoms(
            self.points, self.weights, is_uniform=self.is_uniform
        )

    @property
    def places(self) -> Tensor:
        """Places, (n, d)."""
        return self.points[:, 1:]

    @property
    def masses(self) -> Tensor:
        """Masses of the measure on space, (n,)."""
        r = self.points[:, 0]
        return self.weights * r * r.abs()

    def _scales(self) -> Tensor:
        """Return what turns a Euclidean gradient of the law into a conic one."""
        r = self.points[:, :1]
        place = (self.beta / r.square()).expand(-1, self.dim - 1)
        return torch.cat([self.alpha / r, place], 1)

    @property
    def coordinates(self) -> Tensor:
        """The rows (root, place), (n, 1 + d)."""
        return self.points

    def with_coordinates(self, coordinates: Tensor) -> Self:
        """Return atoms at other rows, unchecked; their signs may change."""
        return self._changed(points=coordinates)

    def tangent_of(self, partials: Tensor, value: Value) -> Tensor:
        return self.law.tangent_of(partials, value) * self._scales()

    def value_and_position_gradient(self, value: Value) -> tuple[Tensor, Tensor]:
        """Return the value, and its gradient in the conic metric, (n, 1 + d)."""
        f, gradient = self.law.value_and_position_gradient(value)
        return f, gradient * self._scales()

    def mass_gradient(self, value: Value, x: ArrayLike | None = None) -> Tensor:
        """Return the derivatives in the masses of the law, at rows (root, place)."""
        return self.law.mass_gradient(value, x)

    def push(self, tangent: Tensor, dt: float) -> Self:
        self._check_tangent(tangent)
        dt = real(dt, "dt")
        r = self.points[:, 0]
        moved = r * torch.exp(dt * tangent[:, 0])
        least = _LEAST[self.dtype]
        moved = torch.where(moved.abs() >= least, moved, r.sign() * least)
        places = self.places + dt * tangent[:, 1:]
        try:
            law = self.law._moved(torch.cat([moved[:, None], places], 1))
        except Diverged as error:
            raise Diverged(error.args[0], measure=self) from error
        return self._changed(points=law.points)

    def pull_back(self, tangent: Tensor, gradient: Tensor) -> Tensor:
        self._check_tangent(tangent)
        self._check_tangent(gradient, "gradient")
        # A change of t moves the end by the same tangent, which is measured with the
        # squared roots of the end there, and with those of the start here.
        return gradient * torch.exp(2 * tangent[:, :1])

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        self._check_tangent(u, "u")
        self._check_tangent(v, "v")
        growth = u[:, 0] * v[:, 0] / self.alpha
        motion = (u[:, 1:] * v[:, 1:]).sum(-1) / self.beta
        return (self.weights * self.points[:, 0].square()) @ (growth + motion)

    def displacement_to(self, other: Self) -> Tensor:
        """Return ratios of roots, as logarithms, and differences of places.

        Raises
        ------
        ValueError
            If sizes, weights or the signs of roots differ.
        """
        self._check_tangent(other.points, "other.points")
        ratio = other.points[:, 0] / self.points[:, 0]
        if not torch.equal(self.weights, other.weights) or bool((ratio <= 0).any()):
            msg = (
                "displacement_to goes by index and needs equal weights and equal signs "
                "of roots; compare the laws by otflow.metrics.transport_plan(mu.law, "
                "nu.law)"
            )
            raise ValueError(msg)
        return torch.cat([ratio.log()[:, None], other.places - self.places], 1)

    def reweight(self, log_rate: Tensor, dt: float) -> Self:
        weights = self.law.reweight(log_rate, dt).weights
        return self._changed(weights=weights, is_uniform=False)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n rows (root, place) of the law, with replacement, (n, 1 + d)."""
        return self.law.sample(n, generator)

    def _mixture(self, other: Self, share: float) -> Self:
        if (self.alpha, self.beta) != (other.alpha, other.beta):
            msg = (
                f"the measures have the mobilities {self.alpha:g}, {self.beta:g} and "
                f"{other.alpha:g}, {other.beta:g}, and a mixture has one metric; mix "
                f"the laws, mu.law.mix(nu.law, share), and give the result its own"
            )
            raise ValueError(msg)
        law = self.law.mix(other.law, share)
        return self._changed(
            points=law.points, weights=law.weights, is_uniform=law.is_uniform
        )
