"""Enclosures of a user's own are tried against the first variation itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from otflow.errors import InvalidFunctional, OtflowError
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.numerics.enclosures import Enclosure
from otflow.optimality.gap import shown_place

__all__ = ["try_enclosure"]

# A wrong factor or a missing term changes differences of F' by more than this share.
SHARE = 1e-3
# Round-off of a first variation, in units of that of its dtype.
ROUND_OFF = 1e4


def try_enclosure(
    F: Functional,
    mu: Measure,
    enclose: Callable[[Enclosure], Enclosure],
    places: Tensor,
) -> None:
    """Raise InvalidFunctional if an own enclosure is not of F', up to a constant.

    Parameters
    ----------
    F : Functional
        What is enclosed. The enclosures of the library have tests of their own.
    mu : Measure
        Where F is differentiated, in its own dtype.
    enclose : callable
        The enclosure that is tried.
    places : Tensor, shape (k, d)
        Where it is compared; at least two.
    """
    own = [term for _, term in ((1.0, F), *F.terms()) if _is_own(term)]
    if not own:
        return
    x = places.detach().to(mu.points)
    try:
        told = F.first_variation(mu, x).detach().double()
    except OtflowError:
        return
    low, high = enclose(Enclosure.of(x.double(), x.double(), 0)).value
    enclosed = 0.5 * (low + high)
    size = float(torch.stack([told, enclosed]).abs().max())
    noise = ROUND_OFF * torch.finfo(mu.dtype).eps * size + float((high - low).max())
    a, b = enclosed - enclosed[0], told - told[0]
    spread = float(torch.stack([a, b]).abs().max())
    k = int((a - b).abs().argmax())
    if float((a - b).abs()[k]) <= SHARE * spread + noise:
        return
    first, other = shown_place(x[0]), shown_place(x[k])
    msg = (
        f"enclosed_variation of {own[0]!r} is not that of its value: from {first} to "
        f"{other} it changes by {float(a[k]):.6g}, and the first variation by "
        f"{float(b[k]):.6g}; correct the factor or the term that "
        f"differs, or leave the method out, and the gap is searched"
    )
    raise InvalidFunctional(msg)


def _is_own(F: Functional) -> bool:
    """Return whether the enclosure is a method of a class outside the library."""
    return not type(F).enclosed_variation.__module__.startswith("otflow.")
