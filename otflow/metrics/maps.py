r"""The optimal map between two densities, with potentials at any place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from otflow._arrays import as_points, unit_of
from otflow._typing import ArrayLike
from otflow._validation import check_like
from otflow.errors import Unsupported
from otflow.measures import Gaussian, Measure
from otflow.measures.gaussian.covariance import optimal_rotation
from otflow.metrics.bracket import NOISE, Bracket
from otflow.metrics.bures import between_gaussians
from otflow.metrics.inputs import CloudLike
from otflow.metrics.path import Path
from otflow.metrics.steps import Steps, bracketed, on_the_line

__all__ = ["TransportMap", "between_densities"]


class _Side(Protocol):
    """One direction of a map, float64: where it sends points, and the potential."""

    @property
    def dim(self) -> int: ...

    def to(self, x: Tensor) -> Tensor: ...

    def potential(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class TransportMap:
    r"""The map T that moves one density to another at least cost :math:`|x-y|^2`.

    It is the gradient of a convex function, and moves :math:`\mu` to :math:`\nu`
    :cite:p:`santambrogio2015optimal`. Between Gaussians

    .. math:: T(x) = m' + A(x - m), \qquad A\Sigma A = \Sigma',

    with A symmetric and positive definite. On the line :math:`T = Q_\nu \circ F_\mu`,
    with the quantile function of one and the distribution function of the other. Beyond
    the mass of :math:`\mu` the map on the line is constant.

    The potentials satisfy :math:`f(x) + g(y) \le |x-y|^2`, with equality for y = T(x).
    Between Gaussians x and y are any places. On the line one of them is between the
    ends of its measure, as for the first variation of :math:`W_2^2`.

    `transport_plan` makes it.

    Parameters
    ----------
    cost : Tensor
        0-d, :math:`W_2^2(\mu, \nu) = \int |x - T(x)|^2 d\mu`.
    bracket : Bracket
        The bounds of :math:`W_2^2` that a coupling and the potentials prove.
    method : str
        ``"bures"`` between Gaussians, ``"sorted"`` on the line.
    there, back : object
        The map and its potential in either direction, float64.
    atoms : tuple of bool
        Whether :math:`\mu` and :math:`\nu` are made of atoms.

    Attributes
    ----------
    cost, bracket, method, there, back, atoms
        As above.

    See Also
    --------
    otflow.metrics.transport_plan : Makes it.
    otflow.metrics.geodesic : Moves along the map.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Gaussian(torch.zeros(1), torch.eye(1))
    >>> nu = of.Gaussian(torch.ones(1), 4 * torch.eye(1))
    >>> T = of.metrics.transport_plan(mu, nu)
    >>> T.cost, T(torch.tensor([[0.0], [1.0]]))
    (tensor(2.), tensor([[1.],
            [3.]]))
    >>> T.inverse()(torch.tensor([[3.0]]))
    tensor([[1.]])
    """

    cost: Tensor
    bracket: Bracket
    method: str
    there: _Side
    back: _Side
    atoms: tuple[bool, bool] = (False, False)

    def __call__(self, x: ArrayLike) -> Tensor:
        r"""Return T(x).

        Parameters
        ----------
        x : Tensor or ndarray, shape (k, d)
            Places. Where :math:`\mu` has no mass, T is the continuation of the
            potential's gradient.

        Returns
        -------
        Tensor, shape (k, d)
            Their images.

        Raises
        ------
        Unsupported
            If :math:`\mu` is made of atoms, which are spread over intervals: then only
            the inverse is a map.
        """
        if self.atoms[0]:
            msg = (
                "the atoms of mu are spread over the density nu, so no map moves them; "
                "use plan.inverse(), the map from the density to the atoms"
            )
            raise Unsupported(msg)
        at = self._checked(x)
        return self.there.to(at.double()).to(at)

    def f(self, x: ArrayLike) -> Tensor:
        r"""Return the potential on :math:`\mu`, the first variation of :math:`W_2^2`.

        Parameters
        ----------
        x : Tensor or ndarray, shape (k, d)
            Any places.

        Returns
        -------
        Tensor, shape (k,)
            f(x), with :math:`\int f d\mu = \int g d\nu` and gradient 2 (x - T(x)).
        """
        at = self._checked(x)
        return self.there.potential(at.double()).to(at)

    def g(self, y: ArrayLike) -> Tensor:
        r"""Return the potential on :math:`\nu`.

        Parameters
        ----------
        y : Tensor or ndarray, shape (k, d)
            Any places.

        Returns
        -------
        Tensor, shape (k,)
            g(y).
        """
        return self.inverse().f(y)

    def inverse(self) -> TransportMap:
        r"""Return the optimal map from :math:`\nu` to :math:`\mu`.

        Returns
        -------
        TransportMap
            With the same cost, and f and g exchanged.
        """
        return replace(self, there=self.back, back=self.there, atoms=self.atoms[::-1])

    def _checked(self, x: ArrayLike) -> Tensor:
        at = as_points(x, "x")
        check_like(at, self.cost, "x", "the measures")
        d = self.there.dim
        if at.shape[1] != d:
            msg = (
                f"x lies in dimension {at.shape[1]} but the measures in dimension {d}; "
                f"give points of shape (k, {d})"
            )
            raise ValueError(msg)
        return at

    def __repr__(self) -> str:
        low, high = self.bracket.lower, self.bracket.upper
        return f"TransportMap(method={self.method!r}, {low:.6g} <= cost <= {high:.6g})"


def between_densities(
    mu: CloudLike | Measure, nu: CloudLike | Measure, method: str | None
) -> TransportMap | None:
    """Return the map between Gaussians or on the line, None between other measures."""
    gaussian = isinstance(mu, Gaussian) and isinstance(nu, Gaussian)
    lines = None if gaussian else on_the_line(mu, nu)
    if not gaussian and lines is None:
        return None
    if method not in {None, "bures" if gaussian else "sorted"}:
        msg = (
            f"between these densities the map is known in closed form, and method="
            f"{method!r} is for atoms; use method=None, or "
            f"Particles(mu.sample(1000, generator))"
        )
        raise ValueError(msg)
    if lines is not None:
        return _on_the_line(*lines)
    assert isinstance(mu, Gaussian)
    assert isinstance(nu, Gaussian)
    return _between_gaussians(mu, nu)


@dataclass(frozen=True)
class _Affine:
    """x -> m + apart + A (x - m), and its potential (x-m)'(I-A)(x-m) - 2 apart'(x-m).

    ``half`` is the integral of the potential.
    """

    mean: Tensor
    apart: Tensor
    matrix: Tensor
    level: float

    @property
    def dim(self) -> int:
        return len(self.mean)

    def to(self, x: Tensor) -> Tensor:
        return self.mean + self.apart + (x - self.mean) @ self.matrix

    def potential(self, x: Tensor) -> Tensor:
        z = x - self.mean
        return ((z - z @ self.matrix - 2 * self.apart) * z).sum(1) + self.level


def _between_gaussians(mu: Gaussian, nu: Gaussian) -> TransportMap:
    vector = between_gaussians(mu, nu).detach()
    m, n, first, second = (
        t.detach().double() for t in (mu.mean, nu.mean, mu.factor, nu.factor)
    )
    unit = unit_of(vector, first, second)
    source, target, apart = first / unit, second / unit, (n - m) / unit
    turned = target @ optimal_rotation(mu.factor.detach(), nu.factor.detach())
    # TL = L'O. The factor C of a matrix near T makes CC' symmetric to the last digit,
    # and any positive definite matrix gives potentials that prove a lower bound.
    matrix = torch.linalg.solve(source.T, turned.T)
    root = torch.linalg.cholesky(0.5 * (matrix + matrix.T))
    matrix = root @ root.T
    back = torch.cholesky_inverse(root)
    traces = [(root.T @ source).square().sum()]
    traces.append(
        torch.linalg.solve_triangular(root, target, upper=False).square().sum()
    )
    own = [source.square().sum(), target.square().sum()]
    shift = apart.square().sum()
    upper = float((vector / unit).square().sum())
    lower = float(shift + own[0] - traces[0] + own[1] - traces[1])
    d, size = len(m), float(sum(own))
    spread = torch.linalg.cond(root)
    below = NOISE * d * (float(traces[0] + traces[1] * spread) + size + float(shift))
    above = NOISE * (d * size + upper)
    bracket = Bracket(max(0.0, lower - below), upper + above).times_square(unit)
    half = 0.5 * min(lower, upper)
    levels = [half - float(o - t) for o, t in zip(own, traces, strict=True)]
    levels = [unit * (unit * level) for level in levels]
    move = n - m
    return TransportMap(
        cost=mu.mean.detach().new_tensor(unit * (unit * upper)),
        bracket=bracket,
        method="bures",
        there=_Affine(m, move, matrix, levels[0]),
        back=_Affine(n, -move, back, levels[1]),
    )


@dataclass(frozen=True)
class _Monotone:
    """A broken line in units of a length, and its potential plus a constant."""

    path: Path
    level: float
    unit: float

    @property
    def dim(self) -> int:
        return 1

    def to(self, x: Tensor) -> Tensor:
        return self.unit * self.path.values(x[:, 0] / self.unit)[:, None]

    def potential(self, x: Tensor) -> Tensor:
        heights = self.path.potential(x[:, 0] / self.unit) + self.level
        return self.unit * (self.unit * heights)


def _on_the_line(mu: Steps, nu: Steps, points: Tensor) -> TransportMap:
    mu, nu = (
        Steps(*(t.detach() for t in (s.left, s.right, s.masses))) for s in (mu, nu)
    )
    unit = unit_of(mu.left, mu.right, nu.left, nu.right)
    p, q = mu.over(unit), nu.over(unit)
    value, bracket, (x, y) = bracketed(p, q)
    sides = []
    for own, (s, t) in ((p, (x, y)), (q, (y, x))):
        path = Path.of(s, t, own.left, own.right)
        mean = float(own.masses @ path.means(own.left, own.right))
        sides.append(_Monotone(path, 0.5 * value - mean, unit))
    atoms = tuple(bool((s.left == s.right).all()) for s in (mu, nu))
    return TransportMap(
        cost=points.detach().new_tensor(unit * (unit * value)),
        bracket=bracket.times_square(unit),
        method="sorted",
        there=sides[0],
        back=sides[1],
        atoms=(atoms[0], atoms[1]),
    )
