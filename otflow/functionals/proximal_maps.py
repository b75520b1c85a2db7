"""Is a function the proximal map that it is declared to be? Trials at random points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from otflow._typing import Ground
from otflow.errors import InvalidFunctional

__all__ = ["ProximalMap", "as_points_of", "check_map", "try_map"]

ProximalMap: TypeAlias = Callable[[Tensor, float], Tensor]
"""A map (n, d), tau -> (n, d)."""

# A declaration is tried in these dimensions, where V is defined there; a step tries its
# own dimension.
DIMENSIONS = (1, 2, 3, 5)
# Steps of a trial. A map may raise ValueError for a step that is too long for it.
STEPS = (0.02, 0.3, 0.9, 5.0)
# Points of a trial, and their sizes: a kink has another side for short vectors.
COUNT, SIZES = 60, (0.05, 1.0, 20.0)
# Coordinates that are tried one by one, at random if there are more.
AXES = 32
# Neighbours that are tried at once.
BATCH = 64
# Lengths of the moves to neighbours, in lengths of the step of the map.
MOVES = (1e-3, 3e-2, 0.5, 2.0)


def try_map(V: Ground, prox: ProximalMap, modulus: float | None, name: str) -> None:
    """Try a declared map in some dimensions; what cannot be tried passes.

    Raises
    ------
    InvalidFunctional
        If a neighbour has a lower objective, or two images of a convex V lie farther
        apart than their points.
    """
    for dim in DIMENSIONS:
        x = _points(dim, torch.float64, torch.device("cpu"))
        try:
            values = V(x)
        except Exception:  # V is not defined in this dimension
            continue
        if not isinstance(values, Tensor) or values.shape != (len(x),):
            continue
        for tau in STEPS:
            try:
                y = prox(x.clone(), tau)
            except Exception:  # it may be that of another dimension
                continue
            if isinstance(y, Tensor) and (y.shape, y.dtype) == (x.shape, x.dtype):
                _judge(V, x, y, tau, modulus, name)


def check_map(
    V: Ground,
    prox: ProximalMap,
    modulus: float | None,
    name: str,
    like: Tensor,
    steps: Sequence[float] = STEPS,
) -> None:
    """Try a map in the dimension, dtype and device of points (n, d) before its use.

    Raises
    ------
    InvalidFunctional
        As `try_map`, and if the map does not return points.
    ValueError
        If the map raises it for every step that is tried.
    """
    x = _points(like.shape[1], like.dtype, like.device)
    refused, tried = None, False
    for tau in steps:
        # Its images overflow for a step so short that the distance over it does.
        if not math.isfinite(float(x.square().sum(-1).max() / tau)):
            continue
        try:
            y = prox(x.clone(), tau)  # a map may write into its argument
        except ValueError as error:
            refused = error
            continue
        y, tried = as_points_of(y, x, name), True
        # A step may be too long for the points here; the points of the step tell.
        if steps is STEPS or bool(torch.isfinite(y).all()):
            _judge(V, x, y, tau, modulus, name)
    if refused is not None and not tried:
        raise refused


def as_points_of(y: object, x: Tensor, name: str) -> Tensor:
    """Return what a map gave if it is points like x; raise InvalidFunctional if not."""
    if not isinstance(y, Tensor):
        found = type(y).__name__
    elif (y.shape, y.dtype, y.device) != (x.shape, x.dtype, x.device):
        found = f"{tuple(y.shape)} of {y.dtype} on {y.device}"
    else:
        return y
    msg = (
        f"the prox of {name} must map points {tuple(x.shape)} of {x.dtype} on "
        f"{x.device} to points alike, got {found}; return the minimisers of V(y) + "
        f"|y - x|^2 / (2 tau), row by row, or leave prox= out"
    )
    raise InvalidFunctional(msg)


def _points(dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return random points of several sizes, some with coordinates 0."""
    generator = torch.Generator().manual_seed(dim)
    x = torch.randn(COUNT, dim, generator=generator, dtype=torch.float64)
    size = torch.tensor(SIZES, dtype=torch.float64).repeat(COUNT // len(SIZES))
    x = x * size[:, None]
    x[:: 2 * len(SIZES) + 1, 0] = 0.0
    return x.to(dtype=dtype, device=device)


def _neighbours(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Yield places where the objective may be lower than at the image y of x."""
    generator = torch.Generator().manual_seed(len(x))
    yield x
    yield y.roll(len(SIZES), 0)
    yield 0.5 * (x + y)
    length = (x - y).norm(dim=-1, keepdim=True) + 1e-2 * x.norm(dim=-1, keepdim=True)
    for axis in torch.randperm(x.shape[1], generator=generator)[:AXES].tolist():
        zero = y.clone()
        zero[:, axis] = 0.0
        yield zero
        for move in MOVES:
            for sign in (1.0, -1.0):
                along = y.clone()
                along[:, axis] += sign * move * length[:, 0]
                yield along
    for move in MOVES:
        for _ in range(4):
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            yield y + move * length * noise.to(x)


def _judge(
    V: Ground, x: Tensor, y: Tensor, tau: float, modulus: float | None, name: str
) -> None:
    """Raise InvalidFunctional where y is not the image of x under the map."""
    eps = torch.finfo(x.dtype).eps

    def objective(z: Tensor) -> Tensor:
        with torch.no_grad():
            values = V(z.reshape(-1, z.shape[-1])).reshape(z.shape[:-1])
            value: Tensor = values + (z - x).square().sum(-1) / (2 * tau)
        return value

    best = objective(y)
    # What rounding the points changes, and the error of a map that iterates.
    scale = best.abs() + x.square().sum(-1) / tau
    slack = eps**0.5 * torch.where(torch.isfinite(scale), scale, 0.0)
    lost = ~torch.isfinite(best)
    if bool(lost.any()):
        i = int(lost.nonzero()[0])
        msg = (
            f"the prox of {name} is no proximal map of V: at x = {_text(x[i])} and tau "
            f"= {tau:g} it gives y = {_text(y[i])}, where V + |y - x|^2 / (2 tau) is "
            f"{float(best[i]):g}; return the minimiser, or leave prox= out; an "
            f"indicator must be finite at images that are rounded"
        )
        raise InvalidFunctional(msg)
    places = _neighbours(x, y)
    # Many at once: V is called some dozen times less.
    while several := list(itertools.islice(places, BATCH)):
        z = torch.stack(several)
        found = objective(z)
        gain = best - found
        worse = gain > slack
        if bool(worse.any()):
            k, i = divmod(int(gain.masked_fill(~worse, -math.inf).argmax()), len(x))
            msg = (
                f"the prox of {name} is no proximal map of V: at x = {_text(x[i])} and "
                f"tau = {tau:g} it gives y = {_text(y[i])} with V(y) + |y - x|^2 / (2 "
                f"tau) = {float(best[i]):.6g}, where z = {_text(z[k, i])} gives "
                f"{float(found[k, i]):.6g}; return the minimiser, or leave prox= out"
            )
            raise InvalidFunctional(msg)
    if modulus is None or not 1 + tau * modulus > 0:
        return
    # The round-off of both images, which may be far larger than their distance.
    rounded = 16 * eps * torch.maximum(x.norm(dim=-1).max(), y.norm(dim=-1).max())
    for shift in (1, len(SIZES)):
        before = (x - x.roll(shift, 0)).norm(dim=-1)
        after = (y - y.roll(shift, 0)).norm(dim=-1)
        most = (before + eps**0.5 * (1 + before)) / (1 + tau * modulus)
        far = after > most + rounded
        if bool(far.any()):
            i = int(far.nonzero()[0])
            msg = (
                f"modulus={modulus:g} was declared of {name}, but its prox with tau = "
                f"{tau:g} takes points at distance {float(before[i]):.6g} to points at "
                f"distance {float(after[i]):.6g}, which is more than 1 / (1 + tau "
                f"modulus) times as far; leave modulus= out, or correct prox="
            )
            raise InvalidFunctional(msg)


def _text(x: Tensor) -> str:
    numbers = [f"{v:.4g}" for v in x.tolist()[:4]]
    return f"({', '.join(numbers)}{', ...' if len(x) > 4 else ''})"
