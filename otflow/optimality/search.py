r"""Low places of F' in a box: candidates and projected descent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from otflow.errors import NonFinite
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.optimality.proofs import STARTS

__all__ = ["Found", "search"]

# Places that fill the box.
PLACES = 256


@dataclass(frozen=True)
class Found:
    """Places of low F', the lowest first, and the gap that they give."""

    places: Tensor
    gap: float


def search(
    F: Functional, mu: Measure, lower: Tensor, upper: Tensor, descend: int
) -> Found:
    """Search low places of F'[mu] among atoms and places that fill the box."""
    mu = mu.detach()
    engine = torch.quasirandom.SobolEngine(mu.dim)  # type: ignore[no-untyped-call]
    # The first place is a corner, where a function may be infinite.
    draws = engine.draw(PLACES, dtype=mu.dtype).to(mu.points) + 0.5 / PLACES
    own = F.first_variation(mu).detach()
    # Exact at the corners, as lower + (upper - lower) need not be.
    fill = torch.lerp(lower, upper, draws).clamp(lower, upper)
    x = torch.cat([mu.points, fill])
    values = torch.cat([own, F.first_variation(mu, x[mu.n :]).detach()])
    order = values.argsort()[:STARTS]
    x, values, _ = descent(F, mu, x[order], values[order], lower, upper, descend)
    order = values.argsort()
    gap = float(mu.weights @ own - values[order[0]])
    return Found(x[order], gap)


def descent(
    F: Functional,
    mu: Measure,
    x: Tensor,
    values: Tensor,
    lower: Tensor,
    upper: Tensor,
    steps: int,
    still: float = 0.0,
) -> tuple[Tensor, Tensor, int]:
    """Descend from each place by projected gradient steps of its own length.

    The descent ends when no place moves by more than a share `still` of the box. The
    last number returned counts the evaluations of F' with its velocity.
    """
    side = (upper - lower).max()
    pull, used = F.velocity(mu, x).detach(), 1
    length = 0.01 * side / pull.norm(dim=1).clamp(min=1e-30)
    for _ in range(steps):
        # A place without slope stays, however long its step.
        step = torch.where(pull == 0, 0.0, length[:, None] * pull)
        new = (x + step.clamp(-side, side)).clamp(lower, upper)
        if not bool(((new - x).abs() > still * side).any()):
            break
        used += 1
        try:
            lower_values = F.first_variation(mu, new).detach()
            pulled = F.velocity(mu, new).detach()
        except NonFinite:  # the places so far count
            break
        fell = lower_values < values
        # The step of Barzilai and Borwein, from the change of the gradient.
        moved, changed = new - x, pull - pulled
        bent = (moved * changed).sum(1)
        longer = torch.where(bent > 0, moved.square().sum(1) / bent, 4 * length)
        longest = torch.finfo(x.dtype).max / 32
        longer = torch.minimum(longer, 16 * length).clamp(max=longest)
        length = torch.where(fell, longer, length / 4)
        x = torch.where(fell[:, None], new, x)
        pull = torch.where(fell[:, None], pulled, pull)
        values = torch.where(fell, lower_values, values)
    return x, values, used
