r"""Is an energy of the density convex? Chords that refute it, beyond round-off.

The volume that a unit of mass takes is :math:`1/r`, and its side :math:`\lambda =
r^{-1/d}`. McCann's condition, that :math:`\lambda^d U(\lambda^{-d})` is convex and
non-increasing, is one on the energy per unit of mass :math:`e(r) = U(r)/r` alone, since
:math:`\lambda^d U(\lambda^{-d}) = e(\lambda^{-d})`. In dimension 1 the convexity is
that of the perspective of U, so of U itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._typing import Ground

__all__ = ["Chord", "broken_chord", "falling_chord", "undefined"]

# Densities 2^(k / STEPS) for |k| <= STEPS * OCTAVES, from 1e-9 to 1e9.
STEPS, OCTAVES = 8, 30
# A chord spans twice as many steps: short ones see a dent, long ones a weak bend.
SPANS = (1, 2, 4, 8, 16, 32, 64, 128)
# Units of round-off that a value of e is allowed, relative to the largest number that
# arises within e.
ALLOWED = 16.0
# Times its round-off that a chord misses by far.
FAR = 1e3
# Neighbours whose round-off is taken for that of a value: by chance one may be exact.
NEAR = 4
# An energy whose round-off is larger than this, in units of its own, cancels digits.
# Where it has lost all of them it is constant, and only densities far away show it.
LOST, FAR_AWAY = 64.0, 10 * STEPS
# Densities beside each, at most BESIDE * APART octaves away.
BESIDE, APART = 12, 2.0**-12
# So many fourth differences hold a jump.
ONE_JUMP = 4
# A relative move of the density that float32 does not see, at most densities.
SMALL_MOVE, MOSTLY = 2.0**-28, 0.75


@dataclass(frozen=True)
class Chord:
    """Values of e at increasing densities that contradict a shape of e.

    Parameters
    ----------
    densities, values : tuple of float
        Densities r and e(r).
    excess, noise : float
        How far the values are from the shape, and how far round-off may take them.

    Attributes
    ----------
    densities, values, excess, noise
        As above.
    """

    densities: tuple[float, ...]
    values: tuple[float, ...]
    excess: float
    noise: float

    def __str__(self) -> str:
        r = ", ".join(f"{x:.6g}" for x in self.densities)
        e = ", ".join(f"{x:.9g}" for x in self.values)
        return (
            f"at the densities {r} its e is {e}, which misses by {self.excess:.3g} "
            f"where round-off is at most {self.noise:.1g}"
        )


def broken_chord(e: Ground, dim: int, sign: float = 1.0) -> Chord | None:
    r"""Return where sign times e is not convex in :math:`r^{-1/d}`, None if nowhere.

    Parameters
    ----------
    e : callable
        Energy per unit of mass, entrywise.
    dim : int
        The dimension d; 1 for the convexity of U.
    sign : float
        1 to refute a convex e, -1 a concave one.

    Returns
    -------
    Chord or None
        The shortest chord that misses by far, or else the one whose excess is the most
        times its round-off. None proves nothing: e is evaluated at some hundreds of
        densities. An infinite value counts as one. Densities where e is not a number
        are left out, see `undefined`.
    """
    r, values, noise = _samples(e)
    worst: Chord | None = None
    for span in SPANS:
        # With h = log(r_2 / r_1) = log(r_3 / r_2) and q = exp(h / d), the side of the
        # middle is a mean of the other two with the weights 1 / (1 + q), q / (1 + q).
        q = math.exp(span * math.log(2.0) / STEPS / dim)
        first, middle, last = (
            values[k : len(r) - 2 * span + k] for k in (0, span, 2 * span)
        )
        excess = sign * ((middle - first) + q * (middle - last))
        slack = (1 + q) * torch.maximum(
            noise[: -2 * span], torch.maximum(noise[span:-span], noise[2 * span :])
        )
        at = _worst(excess, slack)
        if at is None:
            continue
        places = (at, at + span, at + 2 * span)
        made = _chord(r, values, places, excess[at], slack[at])
        if made.excess > FAR * made.noise:
            return made
        if worst is None or made.excess * worst.noise > worst.excess * made.noise:
            worst = made
    return worst


def falling_chord(e: Ground) -> Chord | None:
    """Return two densities between which e falls, None if it does nowhere."""
    r, values, noise = _samples(e)
    excess = values[:-1] - values[1:]
    slack = noise[:-1] + noise[1:]
    at = _worst(excess, slack)
    return (
        None if at is None else _chord(r, values, (at, at + 1), excess[at], slack[at])
    )


def undefined(e: Ground) -> Chord | None:
    """Raise ArithmeticError if e is no number at a density that is tried, else None."""
    r, values, _ = _samples(e)
    bad = values.isnan() & _evaluated(e, r).isnan()
    if not bool(bad.any()):
        return None
    msg = f"e is not a number at the density {float(r[bad][0]):.6g}"
    raise ArithmeticError(msg)


def _samples(e: Ground) -> tuple[Tensor, Tensor, Tensor]:
    """Return densities, e at them (NaN where it is left out), and its round-off."""
    k = torch.arange(-STEPS * OCTAVES, STEPS * OCTAVES + 1, dtype=torch.float64)
    r = torch.exp2(k / STEPS)
    beside = torch.exp2(torch.arange(-BESIDE, BESIDE + 1, dtype=torch.float64) * APART)
    near = r[:, None] * beside
    with torch.no_grad():
        around = _evaluated(e, near.flatten()).reshape(near.shape)
        near_single = _evaluated(e, near.flatten().float()).reshape(near.shape)
        fine = _evaluated(e, r.float().double())
        moved = _evaluated(e, r * (1 + SMALL_MOVE))
    middle, coarse = around[:, BESIDE], near_single[:, BESIDE]
    # What float32 alone cannot represent is no value of e.
    values = middle.masked_fill(middle.isfinite() & ~coarse.isfinite(), math.nan)
    # An e that does not see so small a move computes in float32.
    single = bool((moved == middle).double().mean() > MOSTLY)
    eps, wide = torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps
    # The densities are rounded too: r e'(r), which neighbours show.
    size = _finite(values) + _finite(values.roll(-1) - values.roll(1)) * STEPS
    size = size * (wide / eps) if single else size
    # The numbers within e may be larger than e. Their size shows in the round-off of
    # float32, which is that of float64 times a known factor. Where float32 has lost all
    # digits, round-off shows in fourth differences, which a smooth e hardly has.
    rough = _roughness(around, near_single)
    within = torch.maximum(_finite(coarse - fine) / wide, rough / eps)
    lost = (within - LOST * size).clamp_min(0.0)
    within = torch.maximum(_most(within, NEAR), _most(lost, FAR_AWAY))
    return r, values, ALLOWED * eps * (size + within)


def _roughness(values: Tensor, coarse: Tensor) -> Tensor:
    """Return how rough e is beside each density, but for one jump of e itself.

    A jump is in few differences. It is one of e, and no round-off, if it is the same in
    float32, and larger than the round-off of float32.
    """
    found, other = (_finite(v.diff(n=4, dim=1)) for v in (values, coarse))
    most = found.amax(1)
    rest = found.kthvalue(found.shape[1] - ONE_JUMP, dim=1).values
    same = (other.amax(1) - most).abs() <= 0.25 * most
    floor = LOST * torch.finfo(torch.float32).eps * _finite(values).amax(1)
    return torch.where(same & (most > floor), rest, most)


def _finite(x: Tensor) -> Tensor:
    """Return the modulus, 0 where it is not finite."""
    return x.abs().nan_to_num(0.0, 0.0, 0.0)


def _most(x: Tensor, near: int) -> Tensor:
    """Return the largest entry within so many places of each."""
    return torch.nn.functional.max_pool1d(
        x[None], 2 * near + 1, stride=1, padding=near
    )[0]


def _evaluated(e: Ground, r: Tensor) -> Tensor:
    """Return e at densities (n,), in float64."""
    found = e(r)
    if found.shape != r.shape:
        msg = f"e maps densities {tuple(r.shape)} to {tuple(found.shape)}"
        raise RuntimeError(msg)
    return found.double()


def _worst(excess: Tensor, slack: Tensor) -> int | None:
    """Return where the excess is the most times its slack, None if it is below it."""
    if not len(excess):
        return None
    ratio = (excess / slack).nan_to_num(0.0, math.inf, 0.0)
    at = int(ratio.argmax())
    return at if float(ratio[at]) > 1 else None


def _chord(
    r: Tensor, values: Tensor, at: tuple[int, ...], excess: Tensor, slack: Tensor
) -> Chord:
    places = torch.tensor(at)
    densities, found = r[places].tolist(), values[places].tolist()
    return Chord(tuple(densities), tuple(found), float(excess), float(slack))
