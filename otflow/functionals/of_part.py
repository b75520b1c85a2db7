"""Functionals of one part of a measure, and any functional as one of a single part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from otflow._algebra import Curvature
from otflow._graphs import attached
from otflow._typing import ArrayLike
from otflow._validation import check_kind
from otflow.functionals.base import Functional, Sum, check_functional, sum_of
from otflow.functionals.inheritance import redefined
from otflow.functionals.wrapped import Wrapped
from otflow.measures import Measure, Parts

__all__ = ["InPart", "OfPart", "in_part", "parts_of", "terms_by_part", "where_seen"]


class OfPart(Wrapped):
    r"""The functional :math:`\mu \mapsto F(\mu_k)` of one part of a measure of parts.

    It adds a potential, an entropy or a norm of one part to a functional of all. Its
    terms are those of F, each of this part. So entropies of several parts have each
    their own temperature.

    Parameters
    ----------
    part : str or int
        Name or number of the part.
    functional : Functional
        The functional F of that part.

    Attributes
    ----------
    part, functional
        As above.

    Raises
    ------
    TypeError
        If `part` is no name and no number, or `functional` no functional; from
        `value`, if the measure is not made of parts.
    KeyError, IndexError
        From `value`, if the measure has no such part.

    See Also
    --------
    otflow.measures.Parts : The measures of parts.

    Notes
    -----
    If F is :math:`\lambda`-convex along displacements, in every dimension, then it is
    so as a functional of all parts with the smaller of :math:`\lambda` and 0: it does
    not see the distance that the other parts go.

    Examples
    --------
    >>> import torch, otflow as of
    >>> spring = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> F = 2 * of.functionals.OfPart("left", spring)
    >>> mu = of.Particles(torch.ones(2, 1))
    >>> both = of.measures.Parts({"left": mu, "right": mu})
    >>> F.value(both), F.velocity(both)
    (tensor(1.), tensor([-2., -2., -0., -0.]))
    """

    def __init__(self, part: str | int, functional: Functional) -> None:
        if isinstance(part, bool) or not isinstance(part, (str, int)):
            msg = (
                f"part must be the name or the number of a part, got "
                f"{type(part).__name__}; e.g. OfPart('outer', F)"
            )
            raise TypeError(msg)
        check_functional(functional)
        self.part, self.functional = part, functional

    def own(self, mu: Measure) -> Measure:
        """Return the part of a measure that the functional sees."""
        return parts_of(mu)[self.part]

    def value(self, mu: Measure) -> Tensor:
        return self.functional.value(self.own(mu))

    def value_and_velocity(self, mu: Measure) -> tuple[Tensor, Tensor]:
        value, velocity = self.functional.value_and_velocity(self.own(mu))
        return value, self._alone(mu, velocity)

    def first_variation(self, mu: Measure, x: ArrayLike | None = None) -> Tensor:
        if x is not None:
            return super().first_variation(mu, x)
        own, k = self.functional.first_variation(self.own(mu)), self._number(mu)
        each = [own.new_zeros(part.n) for part in parts_of(mu).parts]
        return torch.cat([*each[:k], own, *each[k + 1 :]])

    def _number(self, mu: Measure) -> int:
        return parts_of(mu).index(self.part)

    def _alone(self, mu: Measure, tangent: Tensor) -> Tensor:
        """Return the tangent of one part as one of the whole, 0 in the others."""
        all_parts, k = parts_of(mu).parts, self._number(mu)
        each = [tangent.new_zeros(part.tangent_shape) for part in all_parts]
        return parts_of(mu).joined([*each[:k], tangent, *each[k + 1 :]])

    def terms(self) -> tuple[tuple[float, Functional], ...]:
        inner = self.functional.terms()
        if len(inner) == 1 and inner[0][1] is self.functional:
            return ((1.0, self),)
        return tuple((c, OfPart(self.part, term)) for c, term in inner)

    @property
    def entropic(self) -> bool:
        return self.functional.entropic and redefined(self, OfPart) is None

    def heated(self, mu: Any, variance: float, generator: torch.Generator) -> Any:
        part = self.functional.heated(self.own(mu), variance, generator)
        return parts_of(mu).with_part(self.part, part)

    def modulus(self, dim: int) -> float | None:
        # That of the part is at most that of the whole, and a bound holds in each lower
        # dimension too: McCann's condition is stricter in each higher one.
        own = self.functional.modulus(dim)
        return None if own is None else min(own, 0.0)

    def why_modulus(self, dim: int) -> str:
        return f"as a part of {self.functional!r}, which does not see the other parts"

    def mixture_curvature(self) -> Curvature | str | None:
        return self.functional.mixture_curvature()

    def why_mixture(self) -> str:
        return f"as {self.functional!r} bends in its part"

    def __repr__(self) -> str:
        return f"OfPart({self.part!r}, {self.functional!r})"


class InPart(Wrapped):
    r"""The functional :math:`\nu \mapsto F(\mu_1, \dots, \nu, \dots, \mu_K)` of a part.

    The other parts are frozen. Its derivatives come from a backward pass through this
    part alone.

    Parameters
    ----------
    functional : Functional
        The functional F of all parts.
    measure : Parts
        The measure :math:`\mu`, whose other parts are frozen.
    part : str or int
        Name or number of the part.

    Attributes
    ----------
    functional, measure, part
        As above.

    Raises
    ------
    TypeError
        If an argument is of another kind.
    KeyError, IndexError
        If there is no such part.

    See Also
    --------
    otflow.functionals.OfPart : The other way round.

    Examples
    --------
    >>> import torch, otflow as of
    >>> class Product(of.Functional):
    ...     def value(self, mu):
    ...         left, right = (p.expectation(lambda x: x.sum(-1)) for p in mu.parts)
    ...         return left * right
    >>> mu = of.measures.Parts(
    ...     [of.Particles(torch.full((2, 1), c)) for c in (2.0, 3.0)]
    ... )
    >>> of.functionals.InPart(Product(), mu, 0).velocity(mu[0])
    tensor([[-3.],
            [-3.]])
    """

    def __init__(self, functional: Functional, measure: Parts, part: str | int) -> None:
        check_functional(functional)
        check_kind(measure, Parts, "measure")
        measure.index(part)
        self.functional, self.measure, self.part = functional, measure, part

    def value(self, mu: Measure) -> Tensor:
        value = self.functional.value(self.measure.with_part(self.part, mu))
        seen: Tensor = attached(value, mu.tensors())  # F need not see this part
        return seen

    def modulus(self, dim: int) -> float | None:
        return self.functional.modulus(self.measure.dim)

    def why_modulus(self, dim: int) -> str:
        return f"as that of {self.functional!r} where the other parts do not move"

    def mixture_curvature(self) -> Curvature | str | None:
        return self.functional.mixture_curvature()

    def why_mixture(self) -> str:
        return f"as {self.functional!r} bends where the other parts do not change"

    def __repr__(self) -> str:
        name = self.measure.names[self.measure.index(self.part)]
        return f"InPart({self.functional!r}, {name!r})"


def in_part(F: Functional, mu: Parts, part: str | int) -> Functional:
    """Return F as a functional of one part, up to a constant; the others are frozen.

    Terms of this part alone stay themselves, with their closed forms and convexity, so
    that an entropy stays an entropy. Terms of another part alone are left out.

    Parameters
    ----------
    F : Functional
        The functional of all parts.
    mu : Parts
        The measure.
    part : str or int
        Name or number of the part.

    Returns
    -------
    Functional
        Of the part.
    """
    k, terms = mu.index(part), terms_by_part(F, mu)
    coupled, own = terms.get(None), terms.get(k)
    found = [] if coupled is None else [InPart(coupled, mu, part)]
    both = (*found, own) if own is not None else tuple(found)
    return both[0] if len(both) == 1 else Sum(both)


def where_seen(term: Functional, mu: Measure) -> tuple[Functional, Measure]:
    """Return a term and the measure that it sees: of `OfPart`, F and its part."""
    while isinstance(term, OfPart) and redefined(term, OfPart) is None:
        mu = term.own(mu)
        term = term.functional
    return term, mu


def terms_by_part(F: Functional, mu: Parts) -> dict[int | None, Functional]:
    """Return the sum of the terms of each part alone, and that of all others.

    Parameters
    ----------
    F : Functional
        The functional of all parts.
    mu : Parts
        The measure.

    Returns
    -------
    dict
        The number of a part, with a functional of this part; None, with one of all.
    """
    found: dict[int | None, list[tuple[float, Functional]]] = {}
    for c, term in F.terms():
        k, own = None, term
        if isinstance(term, OfPart) and redefined(term, OfPart) is None:
            k, own = mu.index(term.part), term.functional
        found.setdefault(k, []).append((c, own))
    return {k: sum_of(terms) for k, terms in found.items()}


def parts_of(mu: Measure) -> Parts:
    """Return a measure of parts; raise TypeError for another."""
    check_kind(
        mu,
        Parts,
        "mu",
        cure="make it of measures, as otflow.measures.Parts({'outer': mu})",
    )
    return mu  # type: ignore[return-value]
