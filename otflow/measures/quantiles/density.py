"""A density on the line, constant between neighbouring quantiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from otflow._arrays import (
    added,
    as_float_tensor,
    as_points,
    as_weights,
    coordinate_limit,
)
from otflow._graphs import keep_immutable, value_of
from otflow._moving import Move
from otflow._typing import ArrayLike, Ground, Value
from otflow._validation import non_negative_int, real
from otflow._warn import warn
from otflow.errors import CellWarning, Diverged
from otflow.kernels import Kernel
from otflow.measures.base import Measure
from otflow.measures.quantiles.interaction import cell_interaction, cell_potential, lump
from otflow.measures.quantiles.levels import (
    check_increasing,
    graded_masses,
    inverse_distribution,
)
from otflow.measures.sums import check_draw, integrate

__all__ = ["Quantiles"]

# Share of the variance of a density by which that of its cells may be wrong in silence.
WIDE = 0.1


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Quantiles(Measure):
    r"""A density on the line, constant between neighbouring quantiles.

    The state is the quantiles :math:`q_0 < \dots < q_n` at fixed levels. Cell i lies
    between :math:`q_i` and :math:`q_{i+1}`. Its mass :math:`w_i` never changes, its
    density is :math:`\rho_i = w_i/(q_{i+1}-q_i)`, and its point is the centre. A
    tangent is one velocity :math:`v_i` for each quantile, (n + 1, 1); `push` returns
    the quantiles :math:`q_i + dt\,v_i`. It is exact: the mass of a cell stretches
    evenly. Quantile i answers for half of the mass on either side, :math:`\ell_i =
    (w_{i-1}+w_i)/2`; the gradient is :math:`\frac{1}{\ell_i}\,\partial F/\partial q_i`.

    On the line W2 is flat: the distance of two measures is the :math:`L^2` distance of
    their quantile functions :cite:p:`santambrogio2015optimal`. `inner` is *lumped*:
    :math:`\langle u, v\rangle = \sum_i \ell_i u_i v_i`. It differs from the exact
    :math:`W_2^2` of two such densities. For displacements a, b at both ends of a cell
    of mass w, the exact product is :math:`w\,(a^2+ab+b^2)/3` and the lumped one is
    :math:`w\,(a^2+b^2)/2`. The lumped one is larger by :math:`w\,(a-b)^2/6`, of second
    order in the size of the cells. The exact distance is `otflow.metrics.wasserstein2`.

    Parameters
    ----------
    edges : Tensor or ndarray, shape (n + 1,)
        Quantiles, strictly increasing, float32 or float64; copied, with their graph.
    weights : Tensor or ndarray, shape (n,), optional
        Masses, positive, of sum 1; 1/n by default. Smaller ones resolve the ends.
    normalize : bool
        Divide the weights by their sum. By default a sum other than 1 raises.

    Attributes
    ----------
    edges : Tensor, shape (n + 1,)
        Quantiles.
    points : Tensor, shape (n, 1)
        Centres of the cells.
    weights : Tensor, shape (n,)
        Masses of the cells.
    lumped : Tensor, shape (n + 1,)
        The mass :math:`\ell_i` of each quantile.

    Raises
    ------
    ValueError
        If quantiles cross or coincide, a mass is not positive, or masses do not sum to
        1.
    TypeError
        If the kind or dtype of an argument is wrong; nothing is cast.

    See Also
    --------
    otflow.proximal.QuantileProximal : The JKO step, in time O(n) per iteration.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Quantiles(torch.tensor([0.0, 1.0, 3.0]))
    >>> mu.density()
    tensor([0.5000, 0.2500])
    >>> mu.push(torch.ones(3, 1), dt=0.5).edges
    tensor([0.5000, 1.5000, 3.5000])
    """

    edges: Tensor
    points: Tensor
    weights: Tensor
    lumped: Tensor

    _tangent_layout = ", one row for each edge"
    flat: ClassVar[bool] = True

    cures: ClassVar[Mapping[str, str]] = {
        "mass_gradient": (
            "its masses are fixed; ask a GridDensity or Particles for a first variation"
        ),
        "array": "use mu.edges.numpy(), mu.density().numpy() or mu.weights.numpy()",
        "diffuse": (
            "quantiles do not follow noise; add Entropy() to the functional and flow "
            "it with JKO() or ExplicitEuler()"
        ),
        "reweight": (
            "its masses are fixed; use a GridDensity or Particles for birth and death"
        ),
        "mix": (
            "its masses are fixed; mix draws of both, Particles(mu.sample(n, "
            "generator)), or densities on one grid"
        ),
    }

    def __init__(
        self,
        edges: ArrayLike,
        weights: ArrayLike | None = None,
        *,
        normalize: bool = False,
    ) -> None:
        q = as_float_tensor(edges, "edges")
        if q.ndim != 1 or len(q) < 2:
            msg = (
                f"edges must have shape (n + 1,) with n >= 1 cells on the line, got "
                f"{tuple(q.shape)}"
            )
            raise ValueError(msg)
        q = as_points(q[:, None], "edges")[:, 0].clone()
        check_increasing(q)
        n = len(q) - 1
        if weights is None:
            w = q.new_full((n,), 1.0 / n)
        else:
            w = as_weights(weights, q[1:], normalize=normalize).clone()
            check_positive(w)
        self._hold(edges=q, points=_centres(q), weights=w, lumped=lump(w))

    def with_free_edges(self, edges: Tensor) -> Self:
        """Return quantiles of other edges, as the argument of a functional; unchecked.

        Parameters
        ----------
        edges : Tensor, shape (n + 1,)
            Quantiles; a graph on them stays alive.

        Returns
        -------
        Quantiles
            It shares the masses of the cells with this one.

        Examples
        --------
        >>> import torch, otflow as of
        >>> mu = of.Quantiles(torch.tensor([0.0, 1.0, 2.0]))
        >>> mu.with_free_edges(2 * mu.edges).edges
        tensor([0., 2., 4.])
        """
        return self._changed(edges=edges, points=_centres(edges))

    # Ways to make one -----------------------------------------------------------------

    @classmethod
    def from_function(
        cls,
        f: Ground,
        lower: float,
        upper: float,
        n: int,
        *,
        grading: float = 1.0,
        around: Sequence[float] = (),
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> Self:
        r"""Return the quantiles of the density proportional to f on an interval.

        Gauss quadrature on panels gives the masses, and Newton's method the quantiles.
        A panel is cut in two until its rule agrees with those on its two parts, to 16
        units of round-off of the mass on its nearer side. The mass below each quantile
        (above it, in the upper half) has the relative error :math:`\varepsilon^{2/3}`,
        4e-11 in float64 and 2e-5 in float32; 16 units of round-off of the places come
        on top. For smooth f the error is near round-off. If the estimated error is
        larger, the method raises.

        A singularity :math:`|x-m|^p`, :math:`-1<p<0`, hides about the mass
        :math:`(\varepsilon |m|)^{p+1}`, where the places do not resolve it. For p below
        about -1/4 that is too much. Then give f in y = x - m, and add m to the edges:
        near y = 0 the places are fine.

        A narrow peak is refined only if an evaluation meets it. At first there are
        eight evaluations in each of 4,096 even panels. They meet a peak wider than 1e-4
        of the interval, and may miss a narrower one in silence. Panels shrink from the
        start towards the ends of the interval, towards 0, and towards each place in
        `around`: name there the places where f is narrow.

        The cost is about 70,000 evaluations of a smooth f, and at most 540 for each
        quantile, in batches. A rough f costs up to 5 million more.

        Parameters
        ----------
        f : callable
            Batched (m, 1) -> (m,), non-negative, of any integral. Where it vanishes at
            the ends of the interval, the interval is cut to where it is positive.
        lower, upper : float
            Ends of the interval.
        n : int
            Number of cells.
        grading : float
            Exponent :math:`\gamma \ge 1` of the levels :math:`u^\gamma/(u^\gamma +
            (1-u)^\gamma)`, u = k/n: 1 for equal masses, more for smaller masses at the
            ends. If the density vanishes like :math:`x^p` at the end of its support,
            :math:`\gamma = p + 1` makes the lengths comparable. Take 2 for a bell: with
            1 each tail is one wide cell.
        around : sequence of float
            Places in the interval where f may be narrow, to within a few times its
            width.
        dtype, device : optional
            Of the quantiles, and of the points that f is called with; torch's defaults
            if not given.

        Raises
        ------
        ValueError
            If f is negative, not finite, or 0 wherever it was evaluated, or cells are
            shorter than the last place of the dtype.
        NotConverged
            If f is too rough, too noisy, or too singular for the accuracy above.

        Warns
        -----
        CellWarning
            If the variance of the cells differs from that of f by more than a tenth.

        Examples
        --------
        >>> import torch, otflow as of
        >>> bell = lambda x: torch.exp(-(x[:, 0] - 0.3).square() / 2)
        >>> mu = of.Quantiles.from_function(
        ...     bell, -6.0, 6.0, 50, grading=2, dtype=torch.float64
        ... )
        >>> round(float(mu.edges[25]), 6)
        0.3
        """
        like = torch.empty(0, dtype=dtype, device=device)
        masses, levels = graded_masses(n, grading)
        q, variance = inverse_distribution(f, lower, upper, levels, like, around)
        q = q.to(like)
        wrong = q.diff() <= 0
        if bool(wrong.any()):
            i = int(wrong.nonzero()[0])
            msg = (
                f"cell {i} of {n} at {float(q[i]):.9g} is shorter than the last place "
                f"of {like.dtype}; take a smaller n, dtype=torch.float64 if it is not, "
                f"or the origin near there: f of x - {float(q[i]):.9g}"
            )
            raise ValueError(msg)
        mu = cls(q, masses.to(like), normalize=True)
        mean = mu.expectation(lambda x: x)
        own = float(mu.expectation(lambda x: (x - mean).square().sum(-1)))
        if abs(own - variance) > WIDE * variance:
            msg = (
                f"{n} cells with constant densities have the variance {own:.3g}, and f "
                f"has {variance:.3g}: the outermost cells are wide; take grading=2 or "
                f"more, a larger n, or an interval closer about the mass"
            )
            warn(msg, CellWarning)
        return mu

    @classmethod
    def from_quantile(
        cls,
        quantile: Callable[[Tensor], Tensor],
        n: int,
        *,
        grading: float = 1.0,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> Self:
        """Return the values of a quantile function at equal or graded levels.

        If the function is infinite at the level 0 or 1, the outermost quantile is its
        value at a quarter of the mass of the outermost cell.

        Parameters
        ----------
        quantile : callable
            The inverse distribution function, levels (m,) in [0, 1] -> (m,), called in
            float64 on the CPU.
        n : int
            Number of cells.
        grading, dtype, device
            As for `from_function`.
        """
        like = torch.empty(0, dtype=dtype, device=device)
        masses, levels = graded_masses(n, grading)
        q = quantile(levels)
        if not isinstance(q, Tensor) or q.shape != levels.shape:
            got = tuple(q.shape) if isinstance(q, Tensor) else type(q).__name__
            msg = f"quantile must map levels ({n + 1},) to ({n + 1},), got {got}"
            raise ValueError(msg)
        # An infinite end is replaced by the value at a quarter of its cell's mass.
        ends = torch.stack([0.25 * masses[0], 1.0 - 0.25 * masses[-1]])
        tails = quantile(ends)
        q = q.clone()
        q[0] = tails[0] if torch.isinf(q[0]) else q[0]
        q[-1] = tails[1] if torch.isinf(q[-1]) else q[-1]
        return cls(q.to(like), masses.to(like), normalize=True)

    @classmethod
    def from_samples(cls, x: ArrayLike, n: int) -> Self:
        """Return n cells of equal mass at the quantiles of points on the line.

        The quantiles interpolate order statistics, from the least point to the
        greatest.

        Parameters
        ----------
        x : Tensor or ndarray, shape (m, 1) or (m,)
            Draws; m >= n + 1.
        n : int
            Number of cells.

        Raises
        ------
        ValueError
            If there are too few points, or so many coincide that quantiles coincide.
        """
        x = as_float_tensor(x, "x")
        x = as_points(x[:, None] if x.ndim == 1 else x, "x")
        n = non_negative_int(n, "n", minimum=1)
        if x.shape[1] != 1:
            msg = f"x must be points on the line, (m, 1) or (m,), got {tuple(x.shape)}"
            raise ValueError(msg)
        m = len(x)
        if m < n + 1:
            msg = f"{m} points have no {n + 1} quantiles apart; take n <= {m - 1}"
            raise ValueError(msg)
        ordered = x[:, 0].sort().values
        rank = torch.arange(n + 1, dtype=torch.float64, device=x.device)
        rank = rank * ((m - 1) / n)
        i = rank.floor().long().clamp_max(m - 2)
        share = (rank - i).to(x)
        return cls(ordered[i] + share * (ordered[i + 1] - ordered[i]))

    # Density --------------------------------------------------------------------------

    def density(self) -> Tensor:
        return self.weights / self.edges.diff()

    def expectation(self, f: Ground) -> Tensor:
        r"""Return the trapezoidal rule at the quantiles, :math:`\sum_i \ell_i f(q_i)`.

        It is of second order in the length of the cells. These lengths need not fall
        with n. At equal masses the outermost cell of a bell spans its whole tail; then
        the error falls like 1/n only, and grows with the interval. For the standard
        normal law on (-6, 6) with n = 100, the second moment is 1.27 with
        ``grading=1``, and 1.004 with ``grading=2``, which gives the ends smaller
        masses.

        A potential V moves each quantile by its own gradient there. So a modulus of V
        is one of the discrete energy, and quantiles keep their order under a convex V.
        A cell wider than the scale of V feels V at its ends alone: an end out of the
        reach of V stays at rest, where the density would flow back. Start such flows
        within the reach of V.
        """
        return integrate(f, self.edges[:, None], self.lumped)

    def _pair_energy(self, W: Kernel) -> Tensor:
        r"""Return :math:`\tfrac12\iint W(x-y)\,d\mu\,d\mu` of the density itself.

        A `Gaussian` is averaged over all cells exactly, however wide they are. Any
        other kernel known to be smooth is summed over the quantiles, as an expectation
        is. Under every other kernel far cells interact through two Gauss nodes each,
        and near cells by the exact average of W. So an integrable singularity at 0 (the
        logarithm, Riesz with p < 1) keeps the order. No cell should be wider than the
        range of a user's kernel. A density has no pairs i = j to omit. Time O(n^2),
        memory O(n).

        Raises
        ------
        NonFinite
            If W is singular and not integrable at 0.
        """
        return cell_interaction(self.edges, self.weights, W.bare)

    def _potential(self, W: Kernel, x: Tensor | None) -> Tensor:
        x = self.points if x is None else x
        return cell_potential(self.edges, self.weights, W.bare, x[:, 0])

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        n = check_draw(n, generator, self.weights)
        cell = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        share = self.edges.new_empty(n).uniform_(generator=generator)
        low, high = self.edges[cell], self.edges[cell + 1]
        return (low + share * (high - low))[:, None]

    # Transport ------------------------------------------------------------------------

    @property
    def coordinates(self) -> Tensor:
        """The edges, (n + 1,)."""
        return self.edges

    def with_coordinates(self, coordinates: Tensor) -> Self:
        """Return quantiles of other edges, unchecked: `with_free_edges`."""
        return self.with_free_edges(coordinates)

    def tangent_of(self, partials: Tensor, value: Value) -> Tensor:
        """Return the partial derivative of each edge over its lumped mass."""
        return (partials / self.lumped)[:, None]

    def tensors(self) -> tuple[Tensor, ...]:
        return self.points, self.weights, self.edges

    def evaluate(self, value: Value, edges: Tensor) -> Tensor:
        """Return a value at other quantiles, unchecked; a graph on them stays."""
        return value_of(self.with_free_edges(edges), value)

    def push(self, tangent: Tensor, dt: float) -> Self:
        r"""Move the quantiles to :math:`q_i + dt\,v_i`; masses do not change.

        Raises
        ------
        Diverged
            If quantiles meet or cross, or leave the finite numbers; the error carries
            `self`.
        """
        self._check_tangent(tangent)
        step = real(dt, "dt")
        return self.moved(added(self.edges, tangent[:, 0], step))

    def moved(self, edges: Tensor) -> Self:
        """Return the same masses between other edges (n + 1,), checked as by `push`."""
        largest = float(torch.linalg.vector_norm(edges.detach(), ord=torch.inf))
        if not largest < coordinate_limit(edges.dtype):
            msg = "quantiles left the finite numbers; take a smaller dt, or use JKO()"
            raise Diverged(msg, measure=self)
        wrong = edges.diff() <= 0
        if bool(wrong.any()):
            i = int(wrong.nonzero()[0])
            msg = (
                f"quantiles {i} and {i + 1} crossed; take a smaller dt, or use JKO() "
                f"or ExplicitEuler(backtracking=True); write a distance to other "
                f"quantiles with displacement_to and inner"
            )
            raise Diverged(msg, measure=self)
        return self.with_free_edges(edges)

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        self._check_tangent(u, "u")
        self._check_tangent(v, "v")
        return self.lumped @ (u * v)[:, 0]

    def displacement_to(self, other: Self) -> Tensor:
        """Return the tangent that carries each quantile to that of the same level.

        It is the optimal map.

        Raises
        ------
        ValueError
            If the masses differ.
        """
        # Levels computed in different ways differ in their last places.
        slack = 16 * torch.finfo(self.weights.dtype).eps
        if other.weights.shape != self.weights.shape or not bool(
            ((self.weights - other.weights).cumsum(0).abs() <= slack).all()
        ):
            msg = (
                "displacement_to goes by level and needs equal masses in both; make "
                "both with the same n and grading"
            )
            raise ValueError(msg)
        return (other.edges - self.edges)[:, None]

    def _retyped(self, before: Self, move: Move) -> dict[str, Any]:
        edges, weights = as_points(self.edges[:, None], "edges")[:, 0], self.weights
        check_increasing(edges)
        check_positive(weights)
        lumped = move.once(before.lumped, lambda: lump(weights))
        return {"points": _centres(edges), "lumped": lumped}

    @property
    def tangent_shape(self) -> tuple[int, ...]:
        return (len(self.edges), 1)


def check_positive(weights: Tensor) -> None:
    """Raise ValueError if a cell has no mass, and name the first."""
    empty = weights == 0
    if bool(empty.any()):
        i = int(empty.nonzero()[0])
        msg = (
            f"weights[{i}] is 0: a cell between two quantiles has mass; drop "
            f"edges[{i + 1}]"
        )
        raise ValueError(msg)


def _centres(edges: Tensor) -> Tensor:
    return 0.5 * (edges[1:] + edges[:-1])[:, None]


keep_immutable(Quantiles, "lumped", edges="points weights", points="edges")
