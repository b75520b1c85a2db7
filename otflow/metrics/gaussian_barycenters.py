r"""The barycentre of Gaussians, by its fixed point, and its derivatives.

With factors L of the barycentre and :math:`L_i` of the covariances, :math:`N_i =
(L^\top\Sigma_i L)^{1/2}` is :math:`L^\top T_i L` for the optimal map :math:`T_i` to
:math:`\Sigma_i`. At the barycentre :math:`\sum_i\lambda_i N_i = L^\top L`, which says
that the mean of the maps is the identity :cite:p:`agueh2011barycenters`. The implicit
function theorem at this equation gives the derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._arrays import unit_of
from otflow._graphs import records, refuse_graph
from otflow._known import linear
from otflow.errors import NotConverged
from otflow.measures import Gaussian
from otflow.measures.gaussian.covariance import optimal_rotation, polar_factor
from otflow.numerics.krylov import conjugate_gradients

__all__ = ["of_gaussians"]

# Steps of Newton's method with a frozen slope from the fixed point: each makes the
# derivatives right to one order more.
ORDERS = 3
# Residual of the slope's equation, and the largest one that is accepted.
ACCURATE, ACCEPTED = 1e-13, 1e-7
# Least share of its largest eigenvalue that an eigenvalue of a root N may be. Below,
# its round-off is more than 1e-4 of it.
LEAST = 1e-12


def of_gaussians(
    mus: Sequence[Gaussian], shares: Tensor, tolerance: float, most: int
) -> tuple[Gaussian, float, int]:
    """Return the barycentre of Gaussians, its residual and the iterations.

    Parameters
    ----------
    mus : sequence of Gaussian
        The measures.
    shares : Tensor, shape (N,)
        Their weights, positive, of sum 1, in float64.
    tolerance, most
        As by `barycenter`.

    Returns
    -------
    measure : Gaussian
        With the graph of means, factors and weights.
    residual : float
        Relative change of the factor in the last iteration.
    iterations : int
        Iterations.
    """
    first = mus[0].detach()
    for mu in mus:
        first.displacement_to(mu.detach())  # which checks dimension, dtype and device
    live = torch.stack([mu.factor.double() for mu in mus])
    eps = first.dim * torch.finfo(first.dtype).eps
    spreads = torch.linalg.svdvals(live.detach())
    regular = (spreads[:, -1] > eps * spreads[:, 0]).tolist()
    if not any(regular):
        msg = (
            "every covariance is singular, so the barycentre need not be unique; widen "
            "one of them, mu.diffuse(1e-6, generator)"
        )
        raise ValueError(msg)
    for i, (mu, is_regular) in enumerate(zip(mus, regular, strict=True)):
        if not is_regular:
            refuse_graph(
                "a barycentre of Gaussians",
                f"the covariance of measures[{i}] is singular, where its root has no "
                f"derivative",
                mu.state,
                cure=f"measures[{i}].detach()",
            )
    unit = unit_of(live)
    live = live / unit
    scales = shares.to(live.device)
    factor, residual, count = _fixed_point(
        live.detach(), scales.detach(), tolerance, most
    )
    if records(live, scales):
        cores = [
            s if ok else _core(s, eps) for s, ok in zip(live, regular, strict=True)
        ]
        factor = _Solution(factor, cores, scales).factor()
    centre = scales @ torch.stack([mu.mean.double() for mu in mus])
    state = torch.cat([centre[None], (unit * factor).T]).to(first.dtype)
    return first.with_free_state(state), residual, count


def _fixed_point(
    factors: Tensor, shares: Tensor, tolerance: float, most: int
) -> tuple[Tensor, float, int]:
    """Return a factor of the barycentre, the last relative change, the iterations."""
    # A factor of the mean of the covariances, which is regular, without squares.
    rows = (shares.sqrt()[:, None, None] * factors.mT).reshape(-1, factors.shape[-1])
    factor = torch.linalg.qr(rows).R.T
    residual, count = float("inf"), 0
    while residual > tolerance and count < most:
        turned = [s @ optimal_rotation(factor, s) for s in factors]
        mean = torch.tensordot(shares, torch.stack(turned), 1)
        residual = float((mean - factor).norm() / factor.norm())
        factor, count = mean, count + 1
    return factor, residual, count


@dataclass(frozen=True)
class _Solution:
    r"""The equation of the barycentre, at a factor L that solves it.

    The barycentre of other arguments has the factor :math:`(I + V)L`, V symmetric. Let
    :math:`L = U\,\mathrm{diag}(\sigma)\,W^\top`. For :math:`\omega = U^\top V U \circ
    (\sigma_i^2 + \sigma_j^2) / \sigma_i\sigma_j` minus the slope of the equation is

    .. math:: A\,\omega = \sum_i\lambda_i Q_i\Big(\frac{n_k n_l}{n_k + n_l} \circ
        Q_i^\top \omega\, Q_i\Big) Q_i^\top, \qquad W^\top N_i W = Q_i\,
        \mathrm{diag}(n)\, Q_i^\top,

    which is symmetric and positive.

    Parameters
    ----------
    at : Tensor, shape (d, d)
        L, without a graph.
    cores : list of Tensor, shape (d, r)
        Factors of the covariances, of full rank, with their graphs.
    shares : Tensor, shape (N,)
        Weights, with their graph.
    """

    at: Tensor
    cores: list[Tensor]
    shares: Tensor

    def residual(self, move: Tensor) -> Tensor:
        """Return the equation's residual at the factor (I + V) L, symmetric."""
        factor = self.at + move @ self.at
        roots = [_root(factor.T @ core) for core in self.cores]
        mean = torch.tensordot(self.shares, torch.stack(roots), 1)
        rest: Tensor = mean - factor.T @ factor
        return 0.5 * (rest + rest.T)

    def factor(self) -> Tensor:
        """Return L with the graph of the arguments."""
        solve, transposed = self.slope()
        move = torch.zeros_like(self.at)
        for _ in range(ORDERS):
            move = move + linear(solve, transposed, self.residual(move))
        found: Tensor = self.at + (move - move.detach()) @ self.at
        return found

    def slope(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Return the map from a residual to the V that removes it; its transpose."""
        u, sigma, wh = torch.linalg.svd(self.at)
        squares = sigma[:, None].square() + sigma.square()
        ratio = sigma[:, None] * sigma / squares
        cores = [core.detach() for core in self.cores]
        roots = torch.stack([wh @ _root(self.at.T @ core) @ wh.T for core in cores])
        values, vectors = torch.linalg.eigh(0.5 * (roots + roots.mT))
        for row, core in zip(values, cores, strict=True):
            own = row[self.at.shape[0] - core.shape[1] :]
            if len(own) and not bool(own[0] >= LEAST * own[-1]):
                raise _undetermined()
        values = values.clamp_min(0.0)
        sums = values[:, :, None] + values[:, None]
        # If both are 0, as for laws on a line, so is their harmonic mean.
        products = values[:, :, None] * values[:, None]
        means = products / sums.masked_fill(sums <= 0, 1.0)
        means = self.shares.detach()[:, None, None] * means
        shares = vectors.square()
        diagonal = (shares @ means @ shares.mT).sum(0)

        def times(omega: Tensor, _: Tensor) -> Tensor:
            inner = means * (vectors.mT @ omega @ vectors)
            image: Tensor = (vectors @ inner @ vectors.mT).sum(0)
            return image

        def solved(right: Tensor) -> Tensor:
            limit = 4 * right.numel() + 20
            omega = conjugate_gradients(
                times, lambda r: r / diagonal, right, ACCURATE, limit
            )
            left = (right - times(omega, omega)) / diagonal.sqrt()
            size = (right / diagonal.sqrt()).norm()
            if not float(left.norm()) <= ACCEPTED * float(size):
                raise _undetermined()
            return omega

        def solve(rest: Tensor) -> Tensor:
            move: Tensor = u @ (ratio * solved(wh @ rest @ wh.T)) @ u.T
            return move

        def transposed(move: Tensor) -> Tensor:
            turned = u.T @ (0.5 * (move + move.T)) @ u
            rest: Tensor = wh.T @ solved(ratio * turned) @ wh
            return rest

        return solve, transposed


def _undetermined() -> NotConverged:
    msg = (
        "the derivative of a barycentre of Gaussians is not determined to round-off: "
        "deviations along the axes of a measure differ by too many digits; widen the "
        "narrow ones, mu.diffuse(1e-6, generator), or take mu.detach()"
    )
    return NotConverged(msg)


def _root(b: Tensor) -> Tensor:
    r"""Return :math:`(BB^\top)^{1/2}` of a matrix of full rank (d, r), r <= d."""
    if b.shape[1] == 0:
        return b @ b.T
    q, r = torch.linalg.qr(b)
    turned = q @ polar_factor(r)
    root: Tensor = turned @ b.T
    return root


def _core(factor: Tensor, eps: float) -> Tensor:
    """Return a factor (d, r) of full rank of a singular covariance."""
    u, sigma, _ = torch.linalg.svd(factor)
    rank = int((sigma > eps * sigma[0]).sum())
    core: Tensor = u[:, :rank] * sigma[:rank]
    return core
