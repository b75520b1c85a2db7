"""Entropic barycentres of densities on one grid, debiased."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from otflow._graphs import records, refuse_graph
from otflow._validation import check_like, real
from otflow.errors import Unsupported
from otflow.measures import GridDensity
from otflow.metrics.found import Found

__all__ = ["on_grid"]

# The logarithm of a kernel on an axis, and the kernel if it is far from underflow.
Kernel: TypeAlias = tuple[Tensor, Tensor | None]
# Half of the squared side over epsilon up to which exp(-cost / epsilon) is far from
# underflow, so that products of matrices are exact; else sums of logarithms.
GENTLE = 300.0
# Least logarithm of a share of a sum that is kept: below, products would be denormal.
# A sum has shares above exp(-GENTLE), beside which these vanish.
LEAST = -650.0
# Longest blur, in sides of the box: the value is a difference of numbers larger by its
# square.
LONGEST = 1e3
# Iterations between two looks at the residual, which costs as much as an iteration.
EVERY = 10
# Averaged iterations of a symmetric problem: the error contracts by 1/3 in each.
AVERAGED = 40


def on_grid(
    mus: Sequence[Any],
    shares: Tensor,
    blur: float | None,
    tolerance: float,
    most: int,
) -> Found:
    r"""Return the debiased barycentre, its value, residual and iterations.

    With :math:`K = e^{-|x-y|^2/2\varepsilon}` and scalings :math:`u_i, v_i, d` the
    iteration is :math:`u_i = \mu_i / Kv_i`, :math:`\nu = d \prod_i (Ku_i)^{\lambda_i}`,
    :math:`v_i = \nu / Ku_i`, :math:`d = (d\,\nu / Kd)^{1/2}`
    :cite:p:`janati2020debiased`. By construction :math:`\prod_i v_i^{\lambda_i} = d`,
    which is the first-order condition, and :math:`v_i Ku_i = \nu`. So the errors left
    are those of :math:`u_i Kv_i = \mu_i` and :math:`d\,Kd = \nu`.

    Parameters
    ----------
    mus : sequence of GridDensity
        The measures.
    shares : Tensor, shape (N,)
        Their weights, positive, of sum 1, with their graph.
    blur : float
        Root of epsilon.
    tolerance, most
        As by `barycenter`.

    Returns
    -------
    Found
        The measure, on the grid of the measures, with the graph of the iterations; the
        largest error of a marginal, in sum; twice the mean of the debiased divergences.
    """
    first = mus[0]
    blur = _checked(mus, blur)
    eps = blur * blur
    kernels = [
        _kernel(torch.arange(n, dtype=torch.float64, device=first.device) * (h / blur))
        for n, h in zip(first.box.shape, first.box.spacing, strict=True)
    ]
    masses = torch.stack([mu.weights.double().reshape(mu.box.shape) for mu in mus])
    masses = masses / masses.flatten(1).sum(1).reshape(-1, *[1] * first.dim)
    live = _Scalings(masses.log(), shares.to(first.device), kernels)
    masses, still = masses.detach(), live.detached()
    v, d = torch.zeros_like(masses), torch.zeros_like(masses[0])
    count = 0
    while True:
        u, nu, v = still.step(v, d)
        count += 1
        own = _blurred(d, kernels)
        if count % EVERY == 0 or count == most:
            left = (u + _blurred(v, kernels)).exp() - masses
            wrong = [float(e.abs().sum()) for e in (*left, (d + own).exp() - nu.exp())]
            residual = max(wrong)
            if residual <= tolerance or count == most:
                break
        d = 0.5 * (d + nu - own)
    weights = nu.exp()
    weights = weights / weights.sum()
    value, numbers = 0.0, shares.tolist()
    for share, a, log_a, log_u, log_v in zip(
        numbers, masses, still.logs, u, v, strict=True
    ):
        entropy = _dot(a, log_u - log_a) + _dot(weights, log_v - nu)
        value += 2 * share * eps * (entropy - _own(a, log_a, kernels))
    value -= 2 * eps * _dot(weights, d - nu)
    if records(live.logs, live.shares):
        again = live.repeated(count).exp()
        again = again / again.sum()
        weights = weights + (again - again.detach())
    found = first.with_weights(weights.reshape(-1).to(first.dtype))
    return Found(found, residual, count, "sinkhorn", value)


class _Scalings(NamedTuple):
    """Logarithms of the measures, their weights, and the kernels of the axes."""

    logs: Tensor
    shares: Tensor
    kernels: list[Kernel]

    def detached(self) -> _Scalings:
        """Return the same without a graph."""
        return _Scalings(self.logs.detach(), self.shares.detach(), self.kernels)

    def step(self, v: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logarithms of u, of the barycentre, and of v."""
        u = self.logs - _blurred(v, self.kernels)
        reach = _blurred(u, self.kernels)
        nu = d + torch.tensordot(self.shares, reach, 1)
        return u, nu, nu - reach

    def several(self, v: Tensor, d: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return v and d after whole iterations."""
        for _ in range(count):
            _, nu, v = self.step(v, d)
            d = 0.5 * (d + nu - _blurred(d, self.kernels))
        return v, d

    def repeated(self, count: int) -> Tensor:
        """Return the logarithm of the barycentre that so many iterations find.

        Of the graph only the ends of its pieces are kept; backward makes each anew.
        """
        v, d = torch.zeros_like(self.logs), torch.zeros_like(self.logs[0])
        left = count - 1
        while left:
            piece = min(left, math.isqrt(count) + 1)
            v, d = checkpoint(self.several, v, d, piece, use_reentrant=False)
            left -= piece
        return self.step(v, d)[1]


def _checked(mus: Sequence[Any], blur: float | None) -> float:
    """Return the blur for densities on one grid without obstacles."""
    first = mus[0]
    cell = max(first.box.spacing)
    if blur is None:
        msg = (
            f"a barycentre of densities in dimension {first.dim} is entropic and needs "
            f"a blur; take e.g. blur={2 * cell:g}, two cells"
        )
        raise TypeError(msg)
    blur = real(blur, "blur")
    if blur < cell:
        msg = (
            f"blur = {blur:g} does not reach the next cell, {cell:g} away; take e.g. "
            f"blur={2 * cell:g}, or a finer grid"
        )
        raise ValueError(msg)
    side = max(b - a for a, b in zip(first.box.lower, first.box.upper, strict=True))
    if blur > LONGEST * side:
        msg = (
            f"blur = {blur:g} is so much longer than the box, of side {side:g}, that "
            f"round-off hides the measures; take e.g. blur={side:g}"
        )
        raise ValueError(msg)
    for i, mu in enumerate(mus):
        if not isinstance(mu, GridDensity):
            msg = (
                f"measures[{i}] must be a GridDensity like measures[0], got "
                f"{type(mu).__name__}; leave blur out, the barycentre on the line is "
                f"exact"
            )
            raise TypeError(msg)
        check_like(mu.weights, first.weights, f"measures[{i}]", "measures[0]")
        if mu.box != first.box:
            msg = (
                f"measures[{i}] lives on {mu.box}, and measures[0] on {first.box}, and "
                f"their barycentre needs the same grid; make both on one, as by "
                f"GridDensity.from_samples(mu.sample(100_000, generator), lower, "
                f"upper, shape), or take Particles(mu.points, mu.weights)"
            )
            raise ValueError(msg)
        if bool((mu.weights.detach() == 0).any()):
            refuse_graph(
                "a barycentre on a grid",
                f"a cell of measures[{i}] is empty, and logarithms are iterated",
                mu.weights,
                cure=f"measures[{i}].mix(background, 1e-3), or measures[{i}].detach()",
            )
        if not bool(mu.is_free.all()):
            msg = (
                "the barycentre on a grid moves mass along straight lines, and there "
                "are obstacles; make the densities without obstacles"
            )
            raise Unsupported(msg)
    return blur


def _kernel(x: Tensor) -> Kernel:
    """Return the kernel of an axis, with lengths in units of the blur."""
    logs = -0.5 * (x[:, None] - x).square()
    return logs, logs.exp() if -float(logs.min()) <= GENTLE else None


def _blurred(f: Tensor, kernels: Sequence[Kernel]) -> Tensor:
    """Return log(K exp(f)) over the last axes of f, one kernel an axis."""
    for axis, (logs, kernel) in enumerate(reversed(kernels)):
        f = f.movedim(-1 - axis, -1)
        if kernel is not None:
            # Any top gives the same sum, so it needs no derivative.
            top = f.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(f.dtype).min)
            f = ((f - top).clamp_min(LEAST).exp() @ kernel).log() + top
        else:
            f = torch.logsumexp(f[..., None, :] + logs, -1)
        f = f.movedim(-1, -1 - axis)
    return f


def _dot(masses: Tensor, potential: Tensor) -> float:
    """Return the integral of a potential, which is not defined where no mass is."""
    return float((masses * potential.masked_fill(masses == 0, 0.0)).sum())


def _own(a: Tensor, log_a: Tensor, kernels: Sequence[Kernel]) -> float:
    """Return half of the entropic cost between a measure and itself, over epsilon."""
    f = torch.zeros_like(a)
    for _ in range(AVERAGED):
        f = (f - 2.0 * _blurred(f + log_a, kernels)) / 3.0
    return _dot(a, f)
