"""F' on boxes, with all point masses of one kernel in one sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from otflow.functionals import Functional, Interaction
from otflow.functionals.discrepancy import Attraction
from otflow.kernels import PairKernel
from otflow.measures import Measure, Particles
from otflow.numerics.enclosed_sums import Enclosed, combination
from otflow.numerics.enclosures import Enclosure

__all__ = ["effect_of_rescaling", "variation_on_boxes"]

Masses = tuple[PairKernel, list[Tensor], list[Tensor]]


def variation_on_boxes(F: Functional, mu: Measure) -> Enclosed:
    r"""Return :math:`F'[\mu]` as a function of enclosed points.

    Masses of both signs cancel in one sum, as those of a measure and of its target in
    an `MMDTo`. In two sums they would not.
    """
    fields: dict[Any, Masses] = {}
    rest: list[tuple[float, Enclosed]] = []
    for c, term in F.terms():
        masses = _masses(term, mu)
        if masses is None:
            rest.append((c, term.enclosed_variation(mu)))
            continue
        sign, kernel, nu = masses
        for factor, W in kernel.terms():
            known = getattr(W, "key", lambda: None)()
            held = fields.setdefault(known or id(W), (W, [], []))
            held[1].append(nu.points.double())
            held[2].append(c * sign * factor * nu.weights.double())
    sums = [(W, *_merged(torch.cat(x), torch.cat(w))) for W, x, w in fields.values()]

    def enclose(x: Enclosure) -> Enclosure:
        parts = [(1.0, W.enclosed_field(x, y, w)) for W, y, w in sums if len(y)]
        parts += [(c, part(x)) for c, part in rest]
        return combination(parts, x)

    return enclose


def effect_of_rescaling(
    F: Functional, mu: Particles, lower: Tensor, upper: Tensor
) -> float:
    r"""Return how far F' moves in a box if the masses are scaled to the sum 1.

    The masses 1/n of float32 do not sum to 1. The fields of kernels are linear in them.
    """
    box = Enclosure.of(lower[None], upper[None], 0)
    effect = 0.0
    for c, term in F.terms():
        masses = _masses(term, mu)
        if masses is None:
            continue
        _, kernel, nu = masses
        w = nu.weights.double()
        if excess := abs(float(w.sum()) - 1.0):
            field = kernel.enclosed_field(box, nu.points.double(), w)
            effect += 1.01 * abs(c) * excess * float(field.value.abs().amax())
    return effect


def _merged(points: Tensor, masses: Tensor) -> tuple[Tensor, Tensor]:
    """Return masses in which two at one place are one, and none is 0.

    At a minimum of an `MMDTo` nothing is left. The sum of two numbers is off by half a
    unit of its last place, which fields take into account. Sums of more are not.
    """
    places, index, count = torch.unique(
        points, dim=0, return_inverse=True, return_counts=True
    )
    pair = count[index] == 2
    if not bool(pair.any()):
        return points, masses
    sums = masses.new_zeros(len(places)).index_add(0, index[pair], masses[pair])
    left = sums != 0
    return (
        torch.cat([points[~pair], places[left]]),
        torch.cat([masses[~pair], sums[left]]),
    )


def _masses(
    term: Functional, mu: Measure
) -> tuple[float, PairKernel, Particles] | None:
    """Return the sign, the kernel and the masses of a term that is a field of them."""
    if type(term) is Interaction and isinstance(mu, Particles):
        return 1.0, term.kernel, mu
    if type(term) is Attraction:
        nu = term.V.target
        if isinstance(nu, Particles):
            return -1.0, term.V.kernel, nu
    return None
