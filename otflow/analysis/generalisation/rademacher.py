"""The Rademacher complexity of a Barron ball at given data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._typing import ArrayLike, Seed
from otflow._validation import non_negative_int, positive, seed_and_stream
from otflow.analysis.generalisation.bounds import probability, rademacher_bound
from otflow.meanfield.cones import largest_on_sphere
from otflow.meanfield.dual_balls import data_in_ball, ordinary
from otflow.meanfield.kinks import Kinks, Maximum, as_found
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.residuals import kinks_of
from otflow.metrics import Bracket

__all__ = ["RademacherComplexity", "rademacher"]

# A bracket of this relative width is closed but for round-off.
CLOSED = 1e-9


@dataclass(frozen=True, eq=False)
class RademacherComplexity:
    r"""The mean over signs of the largest correlation with a Barron ball.

    Parameters
    ----------
    bracket : Bracket
        The mean over the draws of a lower and an upper bound of the supremum. Both are
        true of these draws.
    standard_error : float
        Standard error of the mean over draws, of the lower bounds.
    kind : str
        "exact" where both bounds agree to round-off at every draw, "proved" where they
        agree as well as was asked for, "lower bound" where ascent has found the lower
        one and the upper one is further away.
    bound : float
        The bound of Theorem 3.1.
    sharp : float
        The sharper one, see `rademacher_bound`.
    draws : int
        Number of draws.
    spread : float
        The number :math:`\kappa R\sqrt{2/(nK)}` for K draws, with the largest value
        :math:`\kappa` of a neuron of norm 1 at the data.

    Attributes
    ----------
    bracket, standard_error, kind, bound, sharp, draws, spread
        As above.

    See Also
    --------
    rademacher : Computes it.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.linspace(0, 1, 50, dtype=torch.float64)[:, None]
    >>> of.analysis.rademacher(X, draws=20).kind
    'exact'
    """

    bracket: Bracket
    standard_error: float
    kind: str
    bound: float
    sharp: float
    draws: int
    spread: float

    @property
    def value(self) -> float:
        """The lower end of the bracket.

        Returns
        -------
        float
            The value itself if the kind is "exact".
        """
        return self.bracket.lower

    def upper_at(self, delta: float) -> float:
        r"""Return an upper bound of the complexity itself, the mean over all signs.

        .. math:: \mathrm{Rad}(X) \le \overline{\sup} + \kappa R
            \sqrt{\frac{2\ln(1/\delta)}{nK}}

        with a probability of at least :math:`1 - \delta` over K independent draws of
        signs, if the mean of their upper bounds comes first on the right-hand side.

        Parameters
        ----------
        delta : float
            Probability of failure, in (0, 1).

        Returns
        -------
        float
            The bound, or that of `rademacher_bound` where that is smaller.

        Raises
        ------
        ValueError
            If `delta` is outside of (0, 1).

        Notes
        -----
        By McDiarmid's inequality: one sign of the nK changes the mean of the suprema by
        at most :math:`2\kappa R/(nK)`. Signs that were given, not drawn, must be
        independent and uniform.

        Examples
        --------
        >>> import torch, otflow as of
        >>> X = torch.linspace(0, 1, 500, dtype=torch.float64)[:, None]
        >>> found = of.analysis.rademacher(X, draws=100)
        >>> found.bracket.upper < found.upper_at(0.01) < found.sharp
        True
        """
        risk = probability(delta)
        chance = self.spread * math.sqrt(-math.log(risk))
        return min(self.bracket.upper + chance, self.sharp)

    def __repr__(self) -> str:
        return (
            f"RademacherComplexity({self.value:.4g} +- {self.standard_error:.2g}, "
            f"{self.kind}, against {self.bound:.4g})"
        )


def rademacher(
    X: ArrayLike,
    radius: float = 1.0,
    *,
    norm: str = "l1",
    network: TwoLayer | None = None,
    draws: int | Tensor = 100,
    budget: int = 2000,
    ascents: int = 40,
    sharpness: float = 0.01,
    generator: Seed = 0,
) -> RademacherComplexity:
    r"""Return the Rademacher complexity of a Barron ball at given data.

    .. math:: \mathrm{Rad}(X) = E_\xi \sup_{|f|_B \le R} \frac1n\sum_k \xi_k f(x_k)
        = R\,E_\xi \max_{|(w, b)| = 1}
        \Bigl|\frac1n\sum_k\xi_k\,\varphi(w\cdot x_k + b)\Bigr|,

    with independent signs :math:`\xi_k`. The mean over signs is taken over draws. At
    each the maximum is bounded from both sides by the largest neuron on the unit
    sphere, as for a gap over `otflow.meanfield.PathBall`.

    Parameters
    ----------
    X : Tensor or ndarray, shape (n, d)
        Data in the dual unit ball: :math:`[-1, 1]^d` for "l1", the Euclidean unit ball
        for "l2".
    radius : float
        The radius R >= 0.
    norm : str
        "l1" or "l2", of (w, b).
    network : TwoLayer, optional
        A network of homogeneous units; ReLU neurons with a bias by default.
    draws : int or Tensor, shape (K, n)
        Number of draws of signs, at least 2; or the signs -1 and +1 themselves.
    budget : int
        Most cones in which the maximum of a draw is bounded, in more than one
        dimension.
    ascents : int
        Steps of ascent from each start.
    sharpness : float
        Share by which the upper bound of a draw may exceed the lower one, in [0, 1);
        the search ends there. With 0 it goes on to round-off.
    generator : int or torch.Generator, optional
        Seed or source of randomness.

    Returns
    -------
    RademacherComplexity
        A bracket of the mean over draws, its standard error, and the bounds. The mean
        over all signs may lie outside of the bracket, see
        `RademacherComplexity.upper_at`.

    Raises
    ------
    ValueError
        If data lie outside of the ball, or a number is out of range.
    Unsupported
        If the unit is not homogeneous, there are several outputs, or the scaling is not
        "mean-field".
    NonFinite
        If the bound of Theorem 3.1 overflows.

    See Also
    --------
    rademacher_bound : What the complexity is at most, at any data.
    weight_size_bound : What follows for the test error.

    Notes
    -----
    In one dimension with a bias the maximum is exact, time O(n log n) a draw. In more
    the number of cones that prove it grows like :math:`n^d`. Beyond the budget, and for
    more than 10 inner weights, the lower bound is what ascent finds, called so, and the
    upper bound is that of a convex relaxation. That one is true, but in 20 dimensions
    more than twice the lower one. All is done in float64.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.linspace(0, 1, 100, dtype=torch.float64)[:, None]
    >>> found = of.analysis.rademacher(X)
    >>> 0.07 < found.value < 0.1 < found.sharp < found.bound
    True
    """
    R = positive(radius, "radius", or_zero=True)
    layer = ordinary(network)
    x = data_in_ball(X, norm).double()
    n, d = x.shape
    most = non_negative_int(budget, "budget", minimum=1)
    steps = non_negative_int(ascents, "ascents", minimum=1)
    share = _share(sharpness)
    stream = seed_and_stream(generator, x.device)[1]
    bound = rademacher_bound(R, n, d, norm=norm, network=network)
    z, unit = layer.encode(x), kinks_of(layer)
    level = as_found if share == 0 else lambda found: found / (1 - share)
    signs = _signs(draws, x, stream)
    count, found = len(signs), []
    for xi in signs:
        g = Kinks(z, xi[:, None] / n, unit, norm)
        places = _starts(z, xi, norm, stream)
        found.append(
            largest_on_sphere(g, places, budget=most, ascents=steps, level=level)
        )
    lower = torch.tensor([top.lower for top in found], dtype=torch.float64)
    upper = torch.tensor([max(top.upper, top.lower) for top in found]).to(lower)
    mean = R * float(lower.mean())
    tallest = torch.linalg.vector_norm(z, math.inf if norm == "l1" else 2, dim=1).max()
    steep = max(abs(unit[0]), abs(unit[0] + unit[1]))
    return RademacherComplexity(
        Bracket(mean, max(R * float(upper.mean()), mean)),
        R * float(lower.std()) / math.sqrt(count),
        _kind(found, share),
        bound.value,
        bound.terms["sharp"],
        count,
        steep * float(tallest) * R * math.sqrt(2 / (n * count)),
    )


def _signs(draws: int | Tensor, x: Tensor, stream: torch.Generator) -> Tensor:
    """Return the signs, (K, n)."""
    n = len(x)
    if not isinstance(draws, Tensor):
        count = non_negative_int(draws, "draws", minimum=2)
        drawn = torch.randint(0, 2, (count, n), generator=stream, device=x.device)
        return (2 * drawn - 1).to(x)
    signs = draws.to(x)
    if signs.ndim != 2 or signs.shape[1] != n or len(signs) < 2:
        msg = (
            f"draws must be a number, or two rows of n = {n} signs or more, got shape "
            f"{tuple(signs.shape)}; give draws=100"
        )
        raise ValueError(msg)
    if not bool((signs.abs() == 1).all()):
        msg = "draws must hold signs -1 and +1 alone; give draws.sign(), or draws=100"
        raise ValueError(msg)
    return signs


def _starts(z: Tensor, xi: Tensor, norm: str, stream: torch.Generator) -> Tensor:
    """Return rows (k, q) of the unit sphere, from which ascents start."""
    q = z.shape[1]
    random = torch.randn(16, q, generator=stream, dtype=z.dtype, device=z.device)
    # Where all kinks are open the sum is linear, with this slope.
    slope = (xi @ z)[None]
    rows = torch.cat([slope, -slope, torch.eye(q).to(z), -torch.eye(q).to(z), random])
    lengths = torch.linalg.vector_norm(rows, 1 if norm == "l1" else 2, dim=1)
    starts: Tensor = rows[lengths > 0] / lengths[lengths > 0, None]
    return starts


def _kind(found: list[Maximum], share: float) -> str:
    widths = [(top.upper - top.lower) / max(top.lower, 1e-300) for top in found]
    if max(widths) <= CLOSED:
        return "exact"
    return "proved" if max(widths) <= share / (1 - share) + CLOSED else "lower bound"


def _share(sharpness: float) -> float:
    share = positive(sharpness, "sharpness", or_zero=True)
    if share >= 1:
        msg = (
            f"sharpness is a share below 1 of the complexity, got {share:g}; take "
            f"sharpness=0.01"
        )
        raise ValueError(msg)
    return share
