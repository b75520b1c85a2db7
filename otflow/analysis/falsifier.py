"""Search for measures along which a functional is not convex."""

from __future__ import annotations

import numbers
import time
from contextlib import suppress
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context, Decimal

import torch

from otflow._typing import Seed
from otflow._validation import (
    check_generator,
    check_kind,
    non_negative_int,
    real,
    true_or_false,
)
from otflow._validation import positive as positive_number
from otflow.analysis.charts import in_double
from otflow.analysis.descent import LOWER, Search, Seen
from otflow.analysis.roundoff import shaken
from otflow.errors import InvalidFunctional, NonFinite
from otflow.functionals import Functional
from otflow.functionals.base import check_functional
from otflow.measures import Gaussian, Measure

__all__ = ["Falsification", "Witness", "falsify"]

# Digits of a number in a cure.
DIGITS = 7
# So many rows of a witness are written out in a message.
SHOWN = 4


@dataclass(frozen=True, eq=False)
class Witness:
    r"""Two measures, and the path between them along which F bends too little.

    The path is the straight line: row i of the state of `a` goes to row i of that of
    `b`, atom to atom, quantile to quantile. ``a.push(tangent, t)`` is the measure at
    the time t. The path is short where F is smooth, so that the curvature is that at
    one place.

    Parameters
    ----------
    a, b : Measure
        The ends, in float64 if F can be moved there.
    tangent : Tensor
        The displacement from `a` to `b`.
    curvature : float
        Mean of the curvature along the path: the change of :math:`\tfrac{d}{dt}F` over
        the squared length.
    roundoff : float
        Bound on the round-off of the curvature.
    is_geodesic : bool
        Whether the path is a geodesic of :math:`W_2`: whether an exact solver found no
        cheaper coupling of both ends.
    is_kink : bool
        Whether the path crosses a concave kink of F. There the mean of the curvature is
        the lower the shorter the path, and F has no modulus.

    Attributes
    ----------
    a, b, tangent, curvature, roundoff, is_geodesic, is_kink
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: -x.square().sum(-1))
    >>> like = of.Particles(torch.zeros(1, 1))
    >>> witness = of.analysis.falsify(F, like, evaluations=50).witness
    >>> witness.curvature, witness.is_geodesic
    (-2.0, True)
    """

    a: Measure
    b: Measure
    tangent: torch.Tensor
    curvature: float
    roundoff: float
    is_geodesic: bool
    is_kink: bool

    def __str__(self) -> str:
        ends = []
        for mu in (self.a, self.b):
            rows = getattr(mu, "edges", mu.points).reshape(-1, mu.dim)
            if isinstance(mu, Gaussian):
                ends.append(f"N({_text(mu.mean)}, {_text(mu.covariance)})")
                continue
            shown = ", ".join(map(_text, rows[:SHOWN]))
            ends.append(shown + (f", ... ({len(rows)})" if len(rows) > SHOWN else ""))
        path = "geodesic" if self.is_geodesic else "straight line, no geodesic,"
        kink = "over a concave kink or a pole of F, " if self.is_kink else ""
        number = f"{self.curvature:.9g} (round-off {self.roundoff:.1g})"
        return f"curvature {number} {kink}along the {path} from {ends[0]} to {ends[1]}"


@dataclass(frozen=True, eq=False)
class Falsification:
    r"""What a search for a violation of displacement convexity found.

    A violation that was found is one. If none was found, nothing is proved.

    Parameters
    ----------
    modulus : float
        The :math:`\lambda` that was to be refuted.
    is_declared : bool
        Whether F declares it.
    witness : Witness or None
        The least curvature found, along any coupling; None if no curvature could be
        confirmed.
    on_geodesics : Witness or None
        The least curvature found along geodesics.
    starts, evaluations : int
        Starts of the search, and evaluations of a curvature with its gradient.
    seconds : float
        Time of the search.
    stopped : str
        ``"evaluations"``, ``"seconds"``, or ``"refuted"`` for a search that ends at the
        first refutation.
    functional : str
        F in words.

    Attributes
    ----------
    modulus, is_declared, witness, on_geodesics, starts, evaluations, seconds, stopped
        As above.
    functional
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: x.square().sum(-1), modulus=2.0)
    >>> found = of.analysis.falsify(F, of.Particles(torch.zeros(1, 1)), evaluations=50)
    >>> found.refuted, found.stopped, found.witness.curvature
    (False, 'evaluations', 2.0)
    >>> found.raise_if_refuted()
    """

    modulus: float
    is_declared: bool
    witness: Witness | None
    on_geodesics: Witness | None
    starts: int
    evaluations: int
    seconds: float
    stopped: str
    functional: str

    @property
    def refuted(self) -> bool:
        """Whether F does not have the modulus along every coupling."""
        return _below(self.witness, self.modulus)

    @property
    def refuted_on_geodesics(self) -> bool:
        """Whether F is not even convex with the modulus along geodesics."""
        return _below(self.on_geodesics, self.modulus)

    def __str__(self) -> str:
        kind = "declared " if self.is_declared else ""
        what = f"the {kind}modulus {self.modulus:g}"
        if self.refuted_on_geodesics:
            return (
                f"{self.functional} does not have {what}, neither along every coupling "
                f"nor along geodesics: {self.on_geodesics}"
            )
        if self.refuted:
            return (
                f"{self.functional} does not have {what} along every coupling: "
                f"{self.witness}; along geodesics, McCann's displacement convexity, no "
                f"violation was found"
            )
        least = "no curvature was confirmed beyond round-off, or in time"
        if self.witness is not None:
            least = f"the least curvature found is {self.witness.curvature:.9g}"
        return (
            f"no violation of {what} of {self.functional} was found in "
            f"{self.evaluations} evaluations from {self.starts} starts; {least}; this "
            f"proves nothing: a search sees some measures, not all"
        )

    __repr__ = __str__

    def raise_if_refuted(self) -> None:
        """Raise `InvalidFunctional`, with the witness, if the modulus is refuted.

        Raises
        ------
        InvalidFunctional
            If it is.
        """
        if not self.refuted:
            return
        assert self.witness is not None
        cure = f"take a modulus of at most {_safely_below(self.witness)}, or None"
        if self.stopped == "refuted":
            # The first curvature met is not the least one.
            cure = "search without first=True for the least curvature, or take None"
        if self.witness.is_kink:
            cure = "leave the modulus out: over a concave kink or a pole none holds"
        msg = f"{self}; {cure}"
        raise InvalidFunctional(msg)


def falsify(
    F: Functional,
    like: Measure,
    *,
    modulus: float | None = None,
    evaluations: int = 3000,
    seconds: float = 10.0,
    first: bool = False,
    generator: Seed = None,
) -> Falsification:
    r"""Search for measures along which F is not :math:`\lambda`-convex.

    F is :math:`\lambda`-convex along every coupling if for all measures and all
    velocities v

    .. math:: \frac{d^2}{dt^2}\Big|_{t=0} F\big((\mathrm{id} + tv)_\#\mu\big)
        \ge \lambda \int |v|^2 d\mu,

    and F has no concave kinks. The quotient of both sides is minimised over atoms and
    velocities, from many starts, by L-BFGS with derivatives of F up to the third. For
    kinks, means of the curvature along finite paths are minimised too. What is found is
    then measured again: a witness is the mean of the curvature along a path, below
    :math:`\lambda` beyond round-off; see `displacement_convexity`.

    What the library declares as ``F.modulus(d)`` holds along *every* coupling of atoms,
    and along generalised geodesics of `Quantiles` and Gaussians. McCann's
    displacement convexity :cite:p:`mccann1997convexity` asks for less: the optimal
    coupling. The interaction :math:`-|x - y|` on the line is convex along optimal
    couplings, where atoms never cross, and concave along others. The answer tells both
    apart, by an exact solution of the transport problem. A path between measures close
    to one another is a geodesic, so a witness of a smooth F refutes both.

    The search proves nothing if it finds nothing.

    Parameters
    ----------
    F : Functional
        The functional to examine.
    like : Particles, Quantiles, Gaussian or GridDensity
        A measure that gives representation, dimension, dtype, device and region. The
        search goes through the box of its points, twice as large: with one, two and
        three atoms, and with the atoms and the weights of `like` if they are at most
        32. `Quantiles` keep their masses, and their cells change by a factor of four. A
        Gaussian moves by twice its largest deviation, and is stretched by a factor of
        four. A density on a grid of the line is searched as `Quantiles`.
    modulus : float, optional
        The :math:`\lambda` to refute; by default the declared one, and 0 if F declares
        none.
    evaluations : int
        Most evaluations of a curvature with its gradient, without those that confirm
        a witness.
    seconds : float
        Most time, but for the evaluation of F that it ends. Up to a quarter is kept
        for the confirmation of the witness. If that is too short, there is no witness.
        A search that the time ends depends on the speed of the machine.
    first : bool
        Whether to stop at the first refutation, and not look for the least curvature.
    generator : int or torch.Generator, optional
        Source of the starts, on the CPU, or its seed; by default the seed 0.

    Returns
    -------
    Falsification
        Both least curvatures with their measures. Its ``raise_if_refuted()`` raises.

    Raises
    ------
    TypeError
        If F is no functional, `like` no measure, or `first` no bool.
    Unsupported
        If `like` is of another representation, or F lacks a capability of it.
    ValueError
        If a budget is not positive.

    See Also
    --------
    displacement_convexity : The curvature along one geodesic.

    Notes
    -----
    One evaluation costs a value of F and its derivatives up to the third, some ten
    times the time of a value. The witness is confirmed by some hundred velocities, and
    its round-off is that of `displacement_convexity`.
    Float32 measures are searched in float64 if F can be moved there. F without higher
    derivatives by automatic differentiation is searched by velocities or values alone,
    at random.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: (3 * x).cos().sum(-1), modulus=-8.9)
    >>> like = of.Particles(torch.tensor([[-1.0], [1.0]], dtype=torch.float64))
    >>> found = of.analysis.falsify(F, like, evaluations=200)
    >>> found.refuted, round(found.witness.curvature, 5)
    (True, -9.0)
    """
    check_functional(F)
    check_kind(like, Measure, "like")
    declared = F.modulus(like.dim)
    is_declared = modulus is None and declared is not None
    if modulus is None:
        modulus = 0.0 if declared is None else declared
    bound = real(modulus, "modulus")
    most = non_negative_int(evaluations, "evaluations", minimum=1)
    limit = positive_number(seconds, "seconds")
    true_or_false(first, "first")
    seed = 0 if generator is None else generator
    if isinstance(seed, numbers.Integral):
        seed = non_negative_int(seed, "generator")
        generator = torch.Generator().manual_seed(seed)
    check_generator(generator)
    G, (mu,) = in_double(F, like)
    with torch.no_grad(), suppress(NonFinite):
        # What F lacks here it lacks everywhere; and it may load libraries.
        G.value(mu)
        shaken(torch.cos, torch.zeros(1), 0)
    start = time.perf_counter()
    search = Search(G, mu, generator, most, start + limit, bound, first=first)
    stopped = search.run()
    return Falsification(
        modulus=bound,
        is_declared=is_declared,
        witness=_witness(search.least),
        on_geodesics=_witness(search.least_on_geodesics),
        starts=search.starts,
        evaluations=search.used,
        seconds=time.perf_counter() - start,
        stopped=stopped,
        functional=repr(F),
    )


def _text(x: torch.Tensor) -> str:
    """Return a vector as (1, 2), a matrix as ((1, 0), (0, 1))."""
    parts = map(_text, x) if x.ndim > 1 else (f"{entry:.9g}" for entry in x.tolist())
    return f"({', '.join(parts)})"


def _safely_below(witness: Witness) -> str:
    """Return digits of a modulus that another search does not refute by a last place.

    A curvature that is lower by a share of LOWER is not confirmed anew.
    """
    slack = 2 * LOWER * abs(witness.curvature) + witness.roundoff
    least = Decimal(witness.curvature - slack)
    return f"{Context(prec=DIGITS, rounding=ROUND_FLOOR).create_decimal(least):g}"


def _below(witness: Witness | None, modulus: float) -> bool:
    """Return whether a witness refutes a modulus, beyond round-off."""
    return witness is not None and witness.curvature + witness.roundoff < modulus


def _witness(seen: Seen | None) -> Witness | None:
    """Return what was seen as measures."""
    if seen is None:
        return None
    bend, build = seen.bend, seen.region.chart.build
    a, b = build(bend.low), build(bend.high)
    tangent = bend.high - bend.low
    return Witness(
        a, b, tangent, bend.curvature, bend.noise, seen.is_geodesic, bend.is_kink
    )
