"""F' on boxes, with all point masses of one kernel in one sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from otflow.functionals import Functional, Interaction, Potential
from otflow.functionals.discrepancy import Witness
from otflow.kernels import PairKernel
from otflow.measures import Measure, Particles
from otflow.numerics.enclosed_sums import Enclosed, combination
from otflow.numerics.enclosures import Enclosure

__all__ = ["variation_on_boxes"]

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
    sums = [(W, torch.cat(x), torch.cat(w)) for W, x, w in fields.values()]

    def enclose(x: Enclosure) -> Enclosure:
        parts = [(1.0, W.enclosed_field(x, y, w)) for W, y, w in sums]
        parts += [(c, part(x)) for c, part in rest]
        return combination(parts, x)

    return enclose


def _masses(
    term: Functional, mu: Measure
) -> tuple[float, PairKernel, Particles] | None:
    """Return the sign, the kernel and the masses of a term that is a field of them."""
    if type(term) is Interaction and isinstance(mu, Particles):
        return 1.0, term.kernel, mu
    if type(term) is Potential and isinstance(term.V, Witness):
        nu = term.V.target
        if isinstance(nu, Particles):
            return -1.0, term.V.kernel, nu
    return None
