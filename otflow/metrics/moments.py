r"""A lower bound of W2 between any two measures, from their means and covariances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from otflow._arrays import as_points, unit_of
from otflow._known import known_derivatives
from otflow._typing import ArrayLike
from otflow._validation import check_like
from otflow.errors import NonFinite, Unsupported
from otflow.measures import Gaussian, GridDensity, Measure, Quantiles
from otflow.metrics.bures import between_factors
from otflow.metrics.distances import root

__all__ = ["gelbrich"]

AnyLaw: TypeAlias = Measure | ArrayLike


def gelbrich(mu: AnyLaw, nu: AnyLaw) -> Tensor:
    r"""Return Gelbrich's lower bound of :math:`W_2(\mu, \nu)`.

    .. math:: G^2 = |m - m'|^2 + \operatorname{tr}\Sigma + \operatorname{tr}\Sigma'
        - 2\operatorname{tr}(\Sigma^{1/2}\Sigma'\Sigma^{1/2})^{1/2}
        \;\le\; W_2^2(\mu, \nu)

    :cite:p:`gelbrich1990formula`, with the means m and the covariances
    :math:`\Sigma` of both. It is the distance of the Gaussians with these moments, so
    it equals :math:`W_2` if one measure is an affine image of the other by a symmetric
    matrix >= 0, as for two Gaussians.

    Parameters
    ----------
    mu, nu : Measure, Tensor or ndarray
        Measures, of one kind or of two; points (n, d) stand for equal weights 1/n.
        `Quantiles` and `GridDensity` are densities that are constant on their cells.

    Returns
    -------
    Tensor
        G, 0-d, in the dtype and on the device of `mu`. It is differentiable in points,
        weights, means and factors, up to three times if both covariances are regular,
        else once. At G = 0 the gradient is 0.

    Raises
    ------
    ValueError
        If dimensions or devices differ, or a point is not finite.
    TypeError
        If dtypes differ.
    NonFinite
        If a weight is negative or not finite.
    Unsupported
        By a second derivative, if a covariance is singular: there G may have a kink.

    See Also
    --------
    otflow.metrics.wasserstein2 : The distance itself.

    Notes
    -----
    Time O((n + m) d^2 + d^3), in float64, so it costs nothing beside a distance of many
    points. It is a bound up to round-off, a few 1e-15 of the size of the clouds:
    between a cloud and itself in another order it need not be 0. A covariance may be
    singular, as for fewer points than dimensions. The gradient is then one of many
    where the bound has a kink.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    >>> of.metrics.gelbrich(x, x + torch.tensor([3.0, 4.0]))
    tensor(5.)
    >>> y = torch.tensor([[1.0, 1.0], [0.0, 3.0], [5.0, 1.0]])
    >>> of.metrics.gelbrich(x, y) <= of.metrics.wasserstein2(x, y)
    tensor(True)
    """
    first, like = _Moments.parts(mu, "mu")
    second, other = _Moments.parts(nu, "nu")
    check_like(other, like, "nu", "mu")
    d, e = first.at.shape[-1], second.at.shape[-1]
    if d != e:
        msg = (
            f"mu lies in dimension {d} but nu in dimension {e}; a bound needs one "
            f"space for both"
        )
        raise ValueError(msg)
    middle = first.at.detach().mean(0)
    unit = unit_of(first.at - middle, second.at - middle, first.rest, second.rest)
    p, q = (part.moments(middle, unit) for part in (first, second))
    state = p.mean, p.covariance, q.mean, q.covariance
    solved = _Solved(p.factor, q.factor)
    square = (p.mean - q.mean).detach().square().sum() + solved.square
    value = known_derivatives(square, state, solved.gradients, solved.value)
    return (unit * root(value)).to(like)


@dataclass(frozen=True)
class _State:
    """Mean and covariance with their graphs, and a detached factor of the latter."""

    mean: Tensor
    covariance: Tensor
    factor: Tensor


@dataclass(frozen=True)
class _Moments:
    r"""Points, masses, and the standard deviation within each part along each axis.

    The covariance is that of the points, plus :math:`RR^\top`, R the `rest`; and plus
    the mean variance ``spread`` within the parts, on the diagonal.
    """

    at: Tensor
    masses: Tensor
    rest: Tensor
    widths: Tensor | None = None

    @classmethod
    def parts(cls, mu: AnyLaw, name: str) -> tuple[_Moments, Tensor]:
        """Return the parts of a measure in float64, and a tensor like the result."""
        if isinstance(mu, Gaussian):
            one = mu.mean.new_ones(1).double()
            return cls(mu.mean.double()[None], one, mu.factor.double()), mu.mean
        if not isinstance(mu, Measure):
            x = as_points(mu, name)
            n, d = x.shape
            masses = torch.full((n,), 1.0 / n, dtype=torch.float64, device=x.device)
            return cls(x.double(), masses, masses.new_zeros(d, d)), x
        w = mu.weights.double()
        least, total = float(w.detach().min()), float(w.detach().sum())
        if not (least >= 0 and 0 < total < float("inf")):  # NaN fails too
            msg = (
                f"a mass of {name} is negative or not a finite number (least "
                f"{least:g}, sum {total:g}), so it has no covariance; look for the "
                f"step that made it"
            )
            raise NonFinite(msg)
        w, widths = w / w.sum(), None
        if isinstance(mu, Quantiles):
            edges = mu.edges.double()
            x = 0.5 * (edges[1:] + edges[:-1])[:, None]
            widths = edges.diff()[:, None]
        else:
            x = as_points(mu.points, f"{name}.points").double()
        if isinstance(mu, GridDensity):
            widths = x.new_tensor(mu.box.spacing).expand_as(x)
        d = x.shape[1]
        return cls(x, w, x.new_zeros(d, d), widths), mu.points

    def moments(self, middle: Tensor, unit: float) -> _State:
        """Return mean, covariance and factor, relative to a middle, in a unit."""
        x, rest = (self.at - middle) / unit, self.rest / unit
        mean = self.masses @ x
        moved = x - mean
        covariance = (self.masses[:, None] * moved).T @ moved + rest @ rest.T
        rows = [self.masses.sqrt()[:, None] * moved, rest.T]
        if self.widths is not None:
            spread = self.masses @ (self.widths / unit).square() / 12
            covariance = covariance + spread.diag()
            rows.append(spread.sqrt().diag())
        # By a factor of the rows small variances keep their digits.
        _, upper = torch.linalg.qr(torch.cat(rows).detach())
        return _State(mean, covariance, upper.T)


class _Solved:
    r"""The optimal rotation between factors L and L', and the maps T and T'.

    With :math:`L^\top L' = U s V^\top` the rotation is :math:`O = V U^\top`, and
    :math:`T = L' V s^{-1} V^\top L'^\top` maps the first Gaussian to the second.
    """

    def __init__(self, source: Tensor, target: Tensor) -> None:
        u, s, vt = torch.linalg.svd(source.T @ target)
        # The identity if it is as short: then equal moments have the bound 0.
        turned = (target @ (vt.T @ u.T) - source).square().sum()
        self.square = torch.minimum(turned, (target - source).square().sum())
        least = len(s) * torch.finfo(s.dtype).eps * s.max()
        inverse = torch.where(s > least, 1.0 / s.clamp_min(least), torch.zeros_like(s))
        inverse = inverse.nan_to_num(posinf=0.0)
        there, back = target @ vt.T, source @ u
        self.maps = (there * inverse) @ there.T, (back * inverse) @ back.T
        self.is_singular = bool((s <= least).any())

    def gradients(self, *state: Tensor) -> list[Tensor]:
        """Return the derivatives of the square in means and covariances, detached."""
        m, _, n, _ = (t.detach() for t in state)
        eye = torch.eye(len(m), dtype=m.dtype, device=m.device)
        there, back = self.maps
        return [2 * (m - n), eye - there, 2 * (n - m), eye - back]

    def value(self, *state: Tensor) -> Tensor:
        """Return the square with the graphs of means and covariances."""
        if self.is_singular:
            msg = (
                "a covariance is singular, and there Gelbrich's bound may have no "
                "second derivative; take more points than dimensions, or add a "
                "variance: Gaussian(mean, covariance + 1e-6 * torch.eye(d))"
            )
            raise Unsupported(msg)
        m, covariance, n, other = state
        factors = (torch.linalg.cholesky(c) for c in (covariance, other))
        return (m - n).square().sum() + between_factors(*factors).square().sum()
