"""A tensor of parameters: one point of a Euclidean space with a scaled metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from otflow._arrays import added, as_float_tensor, as_points, coordinate_limit
from otflow._moving import Move
from otflow._typing import ArrayLike, Value
from otflow._validation import check_generator, check_kind, positive, real
from otflow.errors import Diverged
from otflow.measures.base import Measure

__all__ = ["Euclidean"]


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Euclidean(Measure):
    r"""Parameters :math:`\theta \in \mathbb R^m` with the metric :math:`s\,|\cdot|^2`.

    It is one point, the Dirac :math:`\delta_\theta`, and not a law of exchangeable
    atoms: its entries keep their places, no solver relabels them, and it has no masses
    to change. A tangent v has the shape of the values,

    .. math:: \langle u, v\rangle = s \sum_i u_i v_i, \qquad
        \nabla F = \frac1s\,\frac{\partial F}{\partial\theta}, \qquad
        \theta \mapsto \theta + dt\,v .

    With s = 1/m, the default, the gradient is m times the partial derivatives. This is
    the scaling of mean-field networks: each of m weights, of which F is an average,
    moves at a speed of order 1.

    Parameters
    ----------
    values : Tensor or ndarray
        The parameters, float32 or float64, of any shape; copied, with their graph.
    scale : float, optional
        The number s > 0 of the metric; by default one over the number of parameters.

    Attributes
    ----------
    values : Tensor
        The parameters.
    scale : float
        The number s.
    points : Tensor, shape (1, m)
        The parameters as one point.
    weights : Tensor, shape (1,)
        Its mass, 1.

    Raises
    ------
    ValueError
        If there is no parameter, one is not finite, or the scale is not positive, or so
        large or small that products with it overflow.
    TypeError
        If the kind or dtype of an argument is wrong; nothing is cast.

    See Also
    --------
    otflow.measures.Parts : Puts it beside laws.

    Notes
    -----
    Lengths are those of the metric: so is the word ``w2`` in a certificate of `JKO`,
    and `diffuse` adds the variance over s to each entry. The proximal step is that of
    Euclidean space, :math:`\operatorname{argmin}_\eta F(\eta) +
    \frac{s}{2\,dt}|\eta - \theta|^2`. Memory O(m).

    Examples
    --------
    >>> import torch, otflow as of
    >>> class Least(of.Functional):
    ...     def value(self, mu):
    ...         return 0.5 * (mu.values - 1).square().mean()
    >>> mu = of.measures.Euclidean(torch.zeros(2, 2))
    >>> of.flow(Least(), mu, of.ExplicitEuler(), dt=0.5, steps=1).final.values
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """

    values: Tensor
    weights: Tensor
    scale: float

    flat: ClassVar[bool] = True
    cures: ClassVar[Mapping[str, str]] = {
        "density": "it is one point; use a Gaussian, Quantiles or a GridDensity",
        "mass_gradient": (
            "it is one point of mass 1, which no other could replace; use `velocity`, "
            "or Particles for laws whose masses change; that of a part beside it is "
            "functionals.InPart(F, mu, 'outer').first_variation(mu['outer'])"
        ),
        "reweight": (
            "it is one point of mass 1; step it by ExplicitEuler() or JKO(), and the "
            "parts beside it by BirthDeath()"
        ),
        "sample": "it is one point; use mu.values, or Particles for a law",
        "mix": "it is one point; use mu.push(mu.displacement_to(nu), share)",
        "array": "take its parameters, mu.values.numpy()",
        "distance": "take its own, mu.norm(mu.displacement_to(nu))",
        "geodesic": "go along a straight line, mu.push(mu.displacement_to(nu), t)",
    }
    as_particles: ClassVar[str] = "Particles, for a law of many points"
    _tangent_layout: ClassVar[str] = ", that of the values"

    def __init__(self, values: ArrayLike, scale: float | None = None) -> None:
        x = as_float_tensor(values, "values").clone(
            memory_format=torch.contiguous_format
        )
        if not x.numel():
            msg = f"values is empty: shape {tuple(x.shape)}; give at least one number"
            raise ValueError(msg)
        as_points(x.reshape(1, -1), "values")
        s = 1.0 / x.numel() if scale is None else positive(scale, "scale")
        _check_scale(s, x.dtype)
        self._hold(scale=s, weights=x.new_ones(1), values=x)

    @property
    def points(self) -> Tensor:
        """The parameters as one point, (1, m); they share the memory of the values."""
        return self.values.reshape(1, -1)

    @property
    def coordinates(self) -> Tensor:
        """The parameters, in their shape."""
        return self.values

    def with_coordinates(self, coordinates: Tensor) -> Self:
        """Return other parameters, unchecked; a graph stays alive."""
        return self._changed(values=coordinates)

    def tangent_of(self, partials: Tensor, value: Value) -> Tensor:
        """Return the partial derivatives over the scale of the metric."""
        return partials / self.scale

    def magnitudes(self, tangent: Tensor) -> Tensor:
        return self.values.detach().abs()

    def radius(self) -> float:
        return float(self.norm(self.values))

    def tensors(self) -> tuple[Tensor, ...]:
        return self.values, self.weights

    def push(self, tangent: Tensor, dt: float) -> Self:
        self._check_tangent(tangent)
        return self._moved(added(self.values, tangent, real(dt, "dt")))

    def diffuse(self, variance: float, generator: torch.Generator) -> Self:
        r"""Add independent noise of variance :math:`\mathrm{variance}/s` to each entry.

        It is the heat flow of the metric: with it `Langevin` samples
        :math:`e^{-F/\tau}` for every scale s.
        """
        check_generator(generator)
        spread = (positive(variance, "variance", or_zero=True) / self.scale) ** 0.5
        noise = torch.empty_like(self.values).normal_(generator=generator)
        return self._moved(added(self.values, noise, spread))

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        self._check_tangent(u, "u")
        self._check_tangent(v, "v")
        return self.scale * (u * v).sum()

    def displacement_to(self, other: Self) -> Tensor:
        """Return ``other.values - self.values``.

        Raises
        ------
        ValueError
            If shapes or scales differ.
        """
        check_kind(other, Euclidean, "other")
        self._check_tangent(other.values, "other.values")
        if other.scale != self.scale:
            msg = (
                f"other has the scale {other.scale:g} and self has {self.scale:g}; "
                f"give both one metric, as Euclidean(values, scale)"
            )
            raise ValueError(msg)
        return other.values - self.values

    def _moved(self, values: Tensor) -> Self:
        limit = coordinate_limit(values.dtype)
        if not torch.linalg.vector_norm(values, ord=torch.inf).item() < limit:
            msg = (
                "values left the finite numbers; take a smaller dt, or use JKO or "
                "ExplicitEuler(backtracking=True)"
            )
            raise Diverged(msg, measure=self)
        return self._changed(values=values)

    def _retyped(self, before: Self, move: Move) -> dict[str, Any]:
        as_points(self.points, "values")
        _check_scale(self.scale, self.dtype)
        return {}

    def fault(self) -> str:
        try:
            _check_scale(self.scale, self.dtype)
        except ValueError as error:
            return str(error)
        return super().fault()

    @property
    def tangent_shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def __repr__(self) -> str:
        return (
            f"Euclidean(shape={tuple(self.values.shape)}, scale={self.scale:.6g}, "
            f"dtype={str(self.dtype).removeprefix('torch.')}, device={self.device})"
        )


def _check_scale(scale: float, dtype: torch.dtype) -> None:
    """Raise ValueError if products with a scale, or its inverse, over- or underflow."""
    limit = coordinate_limit(dtype)
    if not 1 / limit < scale < limit:
        msg = (
            f"scale must lie between {1 / limit:.0e} and {limit:.0e} in {dtype}, got "
            f"{scale:g}: lengths would overflow; take other units, values / c with the "
            f"scale c**2 * {scale:g}"
        )
        raise ValueError(msg)
