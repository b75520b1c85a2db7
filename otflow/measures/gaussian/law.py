"""Gaussian measures: an affine image of the standard one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from otflow._arrays import added, as_float_tensor, as_points
from otflow._graphs import keep_immutable
from otflow._moving import Move
from otflow._typing import ArrayLike, Ground
from otflow._validation import (
    check_generator,
    check_kind,
    check_like,
    non_negative_int,
    positive,
    real,
)
from otflow.errors import Diverged, NonFinite, Unsupported
from otflow.kernels import Gaussian as GaussianKernel
from otflow.kernels import Kernel
from otflow.measures.base import Measure
from otflow.measures.gaussian.covariance import (
    check_state,
    cholesky,
    optimal_rotation,
    representable,
    widened,
)
from otflow.measures.gaussian.narrow import (
    gaussian_kernel_energy,
    gaussian_kernel_potential,
    hidden_energy,
    warn_if_rough,
)
from otflow.measures.gaussian.polar import polar_nodes
from otflow.measures.gaussian.quadrature import (
    TENSOR_DIM,
    Nodes,
    finer_nodes,
    gaussian_nodes,
    integrate_energy,
    retyped,
)
from otflow.measures.sums import pair_potential

__all__ = ["Gaussian"]

# The degree of nodes that are no rule, whose masses and places are arguments.
FREE = -1
# Rules with these shares of the radii show the error of the whole rule: two of them,
# since one may agree with it by chance.
COARSER = (0.75, 0.6)
# Places where the potential of a kernel is compared with that of a finer rule.
PROBES = 16


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Gaussian(Measure):
    r"""The Gaussian law :math:`N(m, LL^\top)` in any dimension.

    It is the image of the standard Gaussian under :math:`z \mapsto m + L z`, and it
    moves by affine maps. A tangent :math:`t` of shape (1 + d, d) moves the point of the
    node z by :math:`t_0 + z\, t_{1:}`: row 0 moves the mean, the other rows move
    :math:`L^\top`. Since z is white, :math:`\langle s, t\rangle_{L^2(\mu)} = \sum_{ij}
    s_{ij} t_{ij}`, and the gradient of F is :math:`(\partial F/\partial m, \partial
    F/\partial L^\top)`. For a functional of the law :math:`\partial F/\partial L = A L`
    with A symmetric; for :math:`\int V d\mu`, :math:`A = E\,\nabla^2 V`. The flow of F
    on Gaussians is its flow in W2 projected to affine velocities
    :cite:p:`lambert2022variational`. It is the flow itself if F is a sum of quadratic
    potentials, quadratic interactions and entropy.

    Expectations are sums over whitened nodes, :math:`x_k = m + L z_k`. They are exact,
    to round-off, for polynomials of degree 3, hence for quadratic potentials;
    `quadrature` says what else is exact. Two independent points differ by :math:`\sqrt2
    L z` in law, so an interaction costs one sum, not a double one. For d <= 3 its nodes
    are polar: kernels may have a kink at 0, such as \|z\|. Density and entropy are in
    closed form.

    Parameters
    ----------
    mean : Tensor or ndarray, shape (d,)
        Mean, float32 or float64; copied, with its graph.
    covariance : Tensor or ndarray, shape (d, d)
        Covariance, symmetric and positive definite.
    nodes : int, optional
        Quadrature nodes. For d <= 3, per axis (tensor Gauss-Hermite; 32, 20, 12 by
        default). Above, in all (antithetic low-discrepancy nodes; by default the larger
        of 2,048 and 8 d rounded up to a power of two).

    Attributes
    ----------
    mean : Tensor, shape (d,)
        Mean.
    factor : Tensor, shape (d, d)
        The L above: any invertible matrix, at first the Cholesky factor.
    nodes : Tensor, shape (n, d)
        Whitened nodes z.
    points : Tensor, shape (n, d)
        Their images.
    weights : Tensor, shape (n,)
        Masses of the nodes.
    quadrature : str
        The rule, its size and the degree to which it is exact.
    degree : int
        That degree: in each coordinate of the factor for d <= 3, in all of them above.

    Raises
    ------
    ValueError
        If a shape is wrong, an entry is not finite, the covariance is not symmetric or
        not positive definite, or the dtype is a half precision.
    MemoryError
        If the nodes of all axes do not fit into the memory.
    TypeError
        If the kind or dtype of an argument is wrong; nothing is cast.

    Notes
    -----
    With n nodes a value costs its ground function at n points, and a product O(n d^2).
    A move costs O(d^3). The distance between two Gaussians is
    `otflow.metrics.wasserstein2`, or ``mu.norm(mu.displacement_to(nu))``.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, 4.0])))
    >>> round(float(mu.expectation(lambda x: x.square().sum(-1))), 4)
    5.0
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1)) + of.Entropy()
    >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=100)
    >>> run.final.covariance  # that of exp(-|x|^2/2)
    tensor([[1.0000, 0.0000],
            [0.0000, 1.0000]])
    """

    mean: Tensor
    factor: Tensor
    nodes: Tensor
    points: Tensor
    weights: Tensor
    quadrature: str
    degree: int

    _tangent_layout = ", a row for the mean above those for the factor"
    flat: ClassVar[bool] = True

    cures: ClassVar[Mapping[str, str]] = {
        "mass_gradient": (
            "the masses of its nodes are those of a quadrature rule, and a first "
            "variation that is not quadratic is no direction among Gaussians; use "
            "`velocity`, or ask a GridDensity or Particles(mu.sample(...))"
        ),
        "reweight": (
            "a Gaussian times a function is no Gaussian; use a GridDensity, or "
            "Particles(mu.sample(...)), for birth and death"
        ),
        "array": "use mu.mean.numpy() and mu.covariance.numpy()",
        "mix": (
            "a mixture of Gaussians is no Gaussian; mix draws of both, "
            "Particles(mu.sample(n, generator))"
        ),
    }

    def __init__(
        self, mean: ArrayLike, covariance: ArrayLike, *, nodes: int | None = None
    ) -> None:
        m = as_float_tensor(mean, "mean")
        if m.ndim != 1 or not len(m):
            cure = "; use mean[None] for a number" if m.ndim == 0 else ""
            msg = f"mean must have shape (d,), got {tuple(m.shape)}{cure}"
            raise ValueError(msg)
        m = as_points(m[None], "mean")[0].clone()
        # The rule first: a dimension without a rule raises before the eigenvalues of
        # the covariance are computed.
        rule = gaussian_nodes(len(m), nodes)
        factor = cholesky(covariance, m)
        self._set(torch.cat([m[None], factor.T]), rule)

    def _set(self, state: Tensor, rule: Nodes) -> None:
        z, w = (x.to(state, copy=True) for x in (rule.points, rule.weights))
        self._hold(quadrature=rule.rule, degree=rule.degree, nodes=z, weights=w)
        self._hold(**_placed(state, z))

    def with_free_state(self, state: Tensor) -> Self:
        r"""Return a Gaussian of another state, the argument of a functional; unchecked.

        Parameters
        ----------
        state : Tensor, shape (1 + d, d)
            Mean and factor :math:`(m, L^\top)`; a graph on them stays alive.

        Returns
        -------
        Gaussian
            It shares the nodes with this one.
        """
        return self._changed(**_placed(state, self.nodes))

    def refined(self, nodes: int) -> Self:
        """Return the same law, with the same factor, on a rule of more nodes.

        Parameters
        ----------
        nodes : int
            For d <= 3, per axis, even and at least 8: equal steps, closer than
            Gauss-Hermite nodes where there are many. Above, in all: low-discrepancy
            nodes.

        Returns
        -------
        Gaussian
            Its moves keep the rule. A graph stays.

        Raises
        ------
        ValueError
            If `nodes` is too small or odd.
        MemoryError
            If the nodes of all axes, `nodes` to the power d, do not fit into memory.

        Examples
        --------
        >>> import torch, otflow as of
        >>> mu = of.Gaussian(torch.zeros(1), torch.ones(1, 1)).refined(1000)
        >>> mu.n, mu.expectation(lambda x: x[..., 0].abs())  # (2 / pi)^(1/2)
        (1000, tensor(0.7979))
        """
        return self.with_nodes(finer_nodes(self.dim, nodes))

    def with_free_nodes(self, nodes: Tensor, weights: Tensor) -> Self:
        """Return a Gaussian on other nodes, as the argument of a functional; unchecked.

        Parameters
        ----------
        nodes : Tensor, shape (n, d)
            Whitened nodes, of any moments; a graph on them stays alive.
        weights : Tensor, shape (n,)
            Their masses, of any sum; a graph on them stays alive.

        Returns
        -------
        Gaussian
            Of the same mean and factor.
        """
        placed = _placed(self.state, nodes)
        return self._changed(**placed, nodes=nodes, weights=weights, degree=FREE)

    def with_nodes(self, rule: Nodes) -> Self:
        """Return the same law, with the same factor, on another rule.

        Parameters
        ----------
        rule : Nodes
            White nodes and their masses, as of ``otflow.measures.gaussian.quadrature``.

        Returns
        -------
        Gaussian
            Of the same mean and covariance.
        """
        new = object.__new__(type(self))
        new._set(self.state, rule)
        return new

    @property
    def state(self) -> Tensor:
        r"""Mean and factor as one tensor :math:`(m, L^\top)`, (1 + d, d)."""
        return torch.cat([self.mean[None], self.factor.T])

    @property
    def covariance(self) -> Tensor:
        r"""The covariance :math:`LL^\top`, (d, d)."""
        return self.factor @ self.factor.T

    @classmethod
    def from_samples(cls, x: ArrayLike, *, nodes: int | None = None) -> Self:
        """Return the Gaussian with the mean and the covariance of points x (n, d).

        Each point weighs 1/n, so this is the Gaussian of the greatest likelihood.

        Raises
        ------
        ValueError
            If the points lie in a hyperplane: their covariance is singular.
        """
        x = as_points(x, "x")
        n, d = x.shape
        if n <= d:
            msg = (
                f"{n} points lie in a hyperplane of dimension {d} space, so their "
                f"covariance is singular; give more than {d} points"
            )
            raise ValueError(msg)
        centred = x - x.mean(0)
        return cls(x.mean(0), centred.T @ centred / n, nodes=nodes)

    # Integrals ------------------------------------------------------------------------

    def log_density(self, x: ArrayLike | None = None) -> Tensor:
        r"""Return :math:`\log\rho` at the measure's own points, or at `x` (m, d).

        One solve with the factor gives it; the covariance is never inverted.
        """
        z = self.nodes
        if x is not None:
            offsets = self.check_probes(x) - self.mean
            z = torch.linalg.solve(self.factor, offsets.T).T
        return -0.5 * z.square().sum(-1) - self.log_volume()

    def density(self) -> Tensor:
        """Return the density at the nodes, (n,); raise `NonFinite` if it overflows."""
        rho = self.log_density().exp()
        if bool(rho.detach().isinf().any()):
            msg = f"a density is too large for {rho.dtype}; use log_density()"
            raise NonFinite(msg)
        return rho

    def log_volume(self) -> Tensor:
        r"""Return :math:`\tfrac12\log\det(2\pi\Sigma)`, minus the greatest log rho."""
        volume: Tensor = torch.linalg.slogdet(self.factor).logabsdet
        return volume + 0.5 * self.dim * math.log(2 * math.pi)

    def internal(self, e: Ground) -> Tensor:
        r"""Return :math:`\int e(\rho)\, d\mu`, with densities formed in float64.

        In many dimensions a density leaves the range of float32. Beyond the range of
        float64 the method raises `NonFinite`.
        """
        return integrate_energy(e, self.log_density(), self.weights)

    def entropy(self) -> Tensor:
        r"""Return :math:`-\tfrac12\log\det(2\pi\Sigma) - d/2`: in closed form."""
        return -self.log_volume() - 0.5 * self.dim

    def _pair_energy(self, W: Kernel) -> Tensor:
        r"""Return :math:`\tfrac12 E\,W(\sqrt2 L z)`: the law of x - y is Gaussian.

        A Gaussian kernel of any width has the closed form :math:`\tfrac12 \det(I +
        2\Sigma/\sigma^2)^{-1/2}`. For d <= 3 a polar rule is exact for polynomials of
        the quadrature's degree. If the covariance is a multiple of the identity, it is
        exact for odd powers of \|z\| too. Time O(n d^2).

        Raises
        ------
        Unsupported, NonFinite
            If W is infinite at 0, or not finite at a node.

        Warns
        -----
        KernelWarning
            If rules of fewer nodes differ by more than a thousandth of the mean
            deviation of W, as for a kink away from 0.
        """
        W = W.bare
        if type(W) is GaussianKernel:
            return gaussian_kernel_energy(self.factor, W)
        weights, values = self._differences(W)
        energy = 0.5 * (weights @ values)
        if not bool(torch.isfinite(energy)):
            msg = (
                "the interaction is not finite at a node of the quadrature; use a "
                "smooth kernel, or Quantiles, GridDensity or Particles"
            )
            raise NonFinite(msg)
        return energy

    def _potential(self, W: Kernel, x: Tensor | None) -> Tensor:
        x, W = self.points if x is None else x, W.bare
        if type(W) is GaussianKernel:
            return gaussian_kernel_potential(self.mean, self.factor, W, x)
        # It warns, or raises, if the rule does not see all of W.
        weights, values = self._differences(W)
        found = super()._potential(W, x)
        if not W.smooth and self.dim <= TENSOR_DIM:
            # The kink of W stands at each probe in turn: the polar rule does not serve.
            few = slice(None, None, max(1, len(x) // PROBES))
            finer = self.refined(8 + 2 * math.ceil(self.n ** (1 / self.dim)))
            with torch.no_grad():
                exact = pair_potential(W, x[few], finer.points, finer.weights)
                spread = weights @ (values - weights @ values).abs()
                warn_if_rough(W, found[few], exact, spread)
        return found

    def difference_rule(self, share: float = 1.0) -> tuple[Tensor, Tensor]:
        r"""Return nodes z and masses w of the difference of two points.

        .. math:: \sum_k w_k W(\sqrt2 Lz_k) \approx E\,W(x - y)

        The rule is for even W. For d <= 3 it is polar, with as many radii as the
        quadrature has nodes per axis, times `share`. Else it is the quadrature itself.
        """
        if self.dim > TENSOR_DIM or self.degree == FREE:
            return self.nodes, self.weights
        per_axis = max(1, round(share * self.n ** (1 / self.dim)))
        points, weights = polar_nodes(self.dim, per_axis)
        return points.to(self.nodes), weights.to(self.nodes)

    def _differences(self, W: Kernel) -> tuple[Tensor, Tensor]:
        """Return masses, and the even part of W, at nodes of x - y.

        Warn if W has features between the nodes.

        Raises
        ------
        Unsupported
            If W is infinite at 0.
        """
        at_zero = W.values(torch.zeros_like(self.mean)[None])
        if W.singular or bool(at_zero.isinf()):
            msg = (
                f"{W!r} is infinite at 0, and a quadrature of smooth functions is "
                f"wrong for it; use Quantiles, GridDensity or Particles, or a smooth "
                f"kernel"
            )
            raise Unsupported(msg)
        apart = math.sqrt(2.0) * self.factor.T
        nodes, weights = self.difference_rule()
        values = W.even(nodes @ apart)
        if bool(values.isfinite().all()):
            with torch.no_grad():
                mean = weights @ values
                rules = [self.difference_rule(share) for share in COARSER]
                rough = [w @ W.even(z @ apart) for z, w in rules if z is not nodes]
                unseen = hidden_energy(W, nodes, weights, self.factor, values)
                spread = weights @ (values - mean).abs()
                warn_if_rough(W, mean, torch.stack([mean, *rough]), spread, unseen)
        return weights, values

    # Derivatives ----------------------------------------------------------------------

    @property
    def coordinates(self) -> Tensor:
        r"""Mean and factor as one tensor :math:`(m, L^\top)`, (1 + d, d): `state`."""
        return self.state

    def with_coordinates(self, coordinates: Tensor) -> Self:
        """Return a Gaussian of another state, unchecked: `with_free_state`."""
        return self.with_free_state(coordinates)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.points, self.weights, self.nodes

    # Moves ----------------------------------------------------------------------------

    def push(self, tangent: Tensor, dt: float) -> Self:
        self._check_tangent(tangent)
        return self._moved(added(self.state, tangent, real(dt, "dt")))

    def diffuse(self, variance: float, generator: torch.Generator) -> Self:
        r"""Return :math:`N(m, \Sigma + \mathrm{variance}\, I)`: exact, without noise.

        The optimal map leads there; the generator is not used.
        """
        check_generator(generator)
        variance = positive(variance, "variance", or_zero=True)
        if variance == 0:
            return self.with_free_state(self.state)
        wider = widened(self.factor, variance).T
        return self._moved(torch.cat([self.mean[None], wider]))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        check_generator(generator)
        z = self.mean.new_empty(non_negative_int(n, "n", minimum=1), self.dim)
        z.normal_(generator=generator)
        return torch.addmm(self.mean, z, self.factor.T)

    # Geometry -------------------------------------------------------------------------

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        self._check_tangent(u, "u")
        self._check_tangent(v, "v")
        return (u * v).sum()

    def displacement_to(self, other: Self) -> Tensor:
        r"""Return the optimal displacement: its norm is :math:`W_2`.

        The optimal map is :math:`x \mapsto m' + T(x - m)` with T symmetric and
        :math:`T\Sigma T = \Sigma'` :cite:p:`bhatia2019bures`. It satisfies :math:`TL =
        L'O` with the orthogonal factor O of :math:`L'^\top L`, so no root and no
        inverse is formed. If the map from node to node is optimal, O is the identity,
        and `push` for time 1 gives `other` itself. Else it gives the law of `other` on
        turned nodes.

        Raises
        ------
        TypeError, ValueError
            If `other` is not a Gaussian of this dimension and dtype.
        """
        check_kind(other, Gaussian, "other")
        if other.dim != self.dim:
            msg = f"other has dimension {other.dim} but self has {self.dim}"
            raise ValueError(msg)
        check_like(other.mean, self.mean, "other", "self")
        turn = optimal_rotation(self.factor, other.factor)
        # In float64: the round-off of this product in float32 may exceed the difference
        # of two close states.
        goal = torch.cat([other.mean[None].double(), turn.T @ other.factor.T.double()])
        return (goal - self.state.double()).to(self.dtype)

    # Helpers --------------------------------------------------------------------------

    def __len__(self) -> int:
        """Raise `Unsupported`: a law has no number of points."""
        msg = "Gaussian has no length: it is no list of points; use mu.n, of its nodes"
        raise Unsupported(msg)

    def _retyped(self, before: Self, move: Move) -> dict[str, Any]:
        z, w = self.nodes, self.weights
        if before.degree != FREE:
            z, w = move.once(before.nodes, lambda: retyped(before.nodes, z, w))
        return {"nodes": z, "weights": w, **_placed(representable(self.state), z)}

    @property
    def tangent_shape(self) -> tuple[int, ...]:
        return (1 + self.dim, self.dim)

    def _moved(self, state: Tensor) -> Self:
        fault = check_state(state.detach())
        if fault is not None:
            raise Diverged(fault, measure=self)
        return self.with_free_state(state)


def _placed(state: Tensor, z: Tensor) -> dict[str, Tensor]:
    """Return the attributes that depend on the mean and the factor."""
    points = torch.addmm(state[0], z, state[1:])
    return {"mean": state[0], "factor": state[1:].T, "points": points}


# The mean and the factor are parts of one tensor: a write into one is told by both.
keep_immutable(Gaussian, "nodes", mean="points", factor="points", points="mean nodes")
