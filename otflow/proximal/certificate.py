"""The words of a certificate, derived in one place for all solvers and schemes."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import NoneType
from typing import Any

import numpy as np
from torch import Tensor

from otflow._warn import warn
from otflow._words import Word

__all__ = [
    "CERTIFYING",
    "KINK",
    "NESTED",
    "WORDS",
    "Certificate",
    "Guarantee",
    "certify",
    "round_off",
]


class Guarantee(Word):
    """What is proved of a step, in falling order; each member equals its string.

    Examples
    --------
    >>> import otflow as of
    >>> of.proximal.Guarantee.EXACT == "exact"
    True
    """

    EXACT = "exact"
    """The exact step is unique; its W2 distance to the measure is at most ``bound``."""
    OPTIMAL = "optimal"
    """The objective has its least value, to the tolerance."""
    STATIONARY = "stationary"
    """The measure is a critical point of the objective, to the tolerance."""
    STAGES = "stages"
    """The step has several stages, and each has one of the guarantees above."""
    UPPER_BOUND = "upper-bound"
    """The measure is a critical point of an upper bound of the objective."""
    SINKHORN = "sinkhorn"
    """The measure is a critical point of a regularised objective."""
    NONE = "none"
    """Nothing is proved."""

    @classmethod
    def _missing_(cls, value: object) -> Guarantee:
        known = ", ".join(repr(str(member)) for member in cls)
        msg = f"a guarantee must be one of {known}, got {value!r}"
        raise ValueError(msg)


# The guarantees of a step that is certified: the critical points of an objective that
# is not the JKO step's own are left out.
CERTIFYING = frozenset(list(Guarantee)[:4])
# Words that are numbers. Every solver gives the first five.
NUMBERS = ("energy_before", "energy_after", "w2", "residual", "bound", "noise", "dt")
WORDS = (*NUMBERS[:5], "decrease", "converged", "guarantee", "certified")
# Further words, which a scheme or a solver may leave out.
MORE = ("noise", "iterations", "dt", "solver", "order", "modulus")
# Entries that hold the certificates of the steps that a step is made of.
NESTED = ("parts", "substeps", "stages")
# Words of an earlier release, and what they are now.
FORMER = {"energy": "energy_before", "gradients": "iterations"}
# Why a descent ends away from round-off, and what helps. Smaller steps do not help:
# they only put off the step in which an atom meets the kink.
KINK = {
    "cause": "the objective stopped falling, as at a kink of F",
    "cure": "smooth the kink (|x| by (x^2 + eps^2)^(1/2), relu(z) by "
    "softplus(k z) / k), or take ExplicitEuler(), which needs no convergence",
}
# Round-off of an energy, in units of float64's: an energy is a long sum, whose error is
# many times that of one operation.
ROUND_OFF = 256.0


@dataclass(frozen=True, eq=False, repr=False)
class Certificate(Mapping[str, Any]):
    r"""What is known of one step, as attributes and as a read-only mapping.

    ``info.w2`` and ``info["w2"]`` are the same number. All numbers are Python numbers.
    ``json.dumps(info.to_dict())`` writes a certificate as JSON.

    Parameters
    ----------
    energy_before, energy_after : float, optional
        F at the start and at the end of the step.
    w2 : float, optional
        W2 distance of start and end, or an upper bound of it.
    residual : float, optional
        The number that the solver compares with its tolerance. Off grids: the norm of
        the objective's gradient over the norm of the displacement. On grids: a mass.
    iterations : int, optional
        Cost of the step: evaluations of the functional with its velocity, or the
        iterations that the solver's documentation names.
    converged : bool, optional
        Whether the residual met the tolerance. None for a step without iteration.
    guarantee : Guarantee, optional
        What is proved. None where no solver judged the whole step.
    bound : float, optional
        A length :math:`\beta`, where F is :math:`\lambda`-convex. The exact step is
        within W2 distance :math:`\beta`, and the objective is within
        :math:`\beta^2(1/dt + \lambda)` of its least value.
    noise : float, optional
        Error of the energies.
    dt : float, optional
        The time that the step took. None if it took the time asked for.
    solver : str, optional
        Class name of the solver.
    order : int, optional
        Order in time of the step.
    modulus : float, optional
        Modulus of convexity of F in this dimension.
    details : object, optional
        The solver's own report, a frozen dataclass.
    entries : mapping
        Further entries by name, from schemes and from solvers without `details`.

    Attributes
    ----------
    energy_before, energy_after, w2, residual, iterations, converged, guarantee, bound
        As above.
    noise, dt, solver, order, modulus, details, entries
        As above.

    Notes
    -----
    The mapping holds the words, the fields of ``details`` and the ``entries``. Where
    ``guarantee`` is None, as for ``ExplicitEuler()``, a word that is None is not a key.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    >>> mu = of.Particles(torch.tensor([[8.0], [4.0]], dtype=torch.float64))
    >>> info = of.flow(F, mu, of.JKO(), dt=1.0, steps=1).info[0]
    >>> info.energy_before, info["energy_after"], info.guarantee, info.certified
    (20.0, 5.0, 'exact', True)
    """

    energy_before: float | None = None
    energy_after: float | None = None
    w2: float | None = None
    residual: float | None = None
    iterations: int | None = None
    converged: bool | None = None
    guarantee: Guarantee | None = None
    bound: float | None = None
    noise: float | None = None
    dt: float | None = None
    solver: str | None = None
    order: int | None = None
    modulus: float | None = None
    details: Any = None
    entries: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hidden = sorted({*WORDS, *MORE}.intersection(self.entries))
        if hidden:
            msg = (
                f"{', '.join(hidden)} among the entries would hide words of the "
                f"certificate; set a word by dataclasses.replace(report, word=value); "
                f"decrease and certified follow from the other words"
            )
            raise ValueError(msg)

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Certificate:
        """Return the certificate that a plain mapping describes.

        A key that is a word of a certificate sets this word. Any other key becomes an
        entry.

        Parameters
        ----------
        report : mapping
            A scheme's or a solver's report of a step. Its guarantee is judged as by
            `certify`. A report with ``certified=False`` has no guarantee.

        Returns
        -------
        Certificate
            The report itself if it is a `Certificate`.

        Raises
        ------
        TypeError
            If a word that is a number is something else, or a report with a guarantee
            lacks an energy.
        ValueError
            If the guarantee is not a `Guarantee`.
        """
        if isinstance(report, cls):
            return report
        words, entries = _sorted(report)
        made = cls(**words, entries=entries)
        if made.guarantee in CERTIFYING and report.get("certified") is False:
            made = replace(made, guarantee=Guarantee.NONE)
        return made if made.guarantee is None else _judged(made)

    @classmethod
    def of_start(cls, energy: float) -> Certificate:
        """Return the report of a step of which only the start is known.

        Parameters
        ----------
        energy : float
            F at the start of the step.

        Returns
        -------
        Certificate
            Without a guarantee.
        """
        # Every explicit step makes one. The other words are the defaults, which are
        # attributes of the class: so this takes a fifth of the time of __init__.
        made = cls.__new__(cls)
        vars(made).update(energy_before=energy, entries={})
        return made

    @property
    def decrease(self) -> float | None:
        """Energy lost beyond the transport cost; None if w2, dt or an energy is."""
        before, after, w2, dt = self.energy_before, self.energy_after, self.w2, self.dt
        if before is None or after is None or w2 is None or dt is None:
            return None
        return _finite(before - after - w2 * w2 / (2 * dt))

    @property
    def certified(self) -> bool:
        """Whether the guarantee is exact, optimal, stationary or stages."""
        return self.guarantee in CERTIFYING

    def also(self, **entries: Any) -> Certificate:
        """Return a copy with these entries added."""
        return replace(self, entries={**self.entries, **entries})

    def to_dict(self) -> dict[str, Any]:
        """Return the mapping with values that JSON can write.

        Returns
        -------
        dict
            The words and entries by name. JSON has no infinity and no NaN: such a
            number is written as a text, ``"inf"``, ``"-inf"`` or ``"nan"``.
        """
        return {name: _written(value) for name, value in self.items()}

    def __eq__(self, other: object) -> bool:
        # By what JSON holds: a comparison of tensors has no one truth value.
        if not isinstance(other, Mapping):
            return NotImplemented
        return _same(self.to_dict(), _written(other))

    __array_ufunc__ = None  # beside an array it is one object, not its entries

    def __hash__(self) -> int:
        # Of numbers that equal certificates share; each NaN has a hash of its own.
        held = (self.energy_before, self.energy_after, self.w2, self.dt)
        shared = map(_written, held)
        return hash(tuple(x if x == x else None for x in shared))  # noqa: PLR0124

    @cached_property
    def _view(self) -> dict[str, Any]:
        own = {} if self.details is None else vars(self.details)
        named = {name: getattr(self, name) for name in (*WORDS, *MORE)}
        if self.guarantee is None:
            del named["certified"]
            named = {k: v for k, v in named.items() if v is not None}
        return {**named, **own, **self.entries}

    def __getitem__(self, name: str) -> Any:
        try:
            return self._view[_current(name)]
        except KeyError:
            msg = f"{name}: the words of this report are {', '.join(self._view)}"
            raise KeyError(msg) from None

    def __getattr__(self, name: str) -> Any:
        # Reached only by names that are no fields.
        msg = f"a Certificate has no attribute {name!r}"
        if not name.startswith("_") and name in self._view:
            msg += f"; read the solver's own words as info[{name!r}]"
        raise AttributeError(msg)

    def __iter__(self) -> Iterator[str]:
        return iter(self._view)

    def __len__(self) -> int:
        return len(self._view)

    def __repr__(self) -> str:
        return f"Certificate({', '.join(f'{k}={v!r}' for k, v in self.items())})"


def certify(
    *,
    energy_before: float,
    energy_after: float,
    dt: float,
    w2: float | None,
    residual: float,
    converged: bool,
    guarantee: str,
    bound: float | None = None,
    noise: float = 0.0,
    **own: Any,
) -> Certificate:
    r"""Return a certificate; every solver makes its certificate here.

    .. math:: \mathrm{decrease} = F(\mu) - F(\nu) - \frac{W_2^2(\mu, \nu)}{2\,dt}

    A step keeps the guarantee that its solver claims under four conditions. The step
    converged. Every number is finite, but that `energy_before` may be :math:`+\infty`:
    a step from outside of the domain of F, as a projection. The energy did not rise by
    more than `noise`. The decrease is at least ``-noise``. Else the guarantee is
    ``"none"``. A step is ``certified`` if its guarantee is ``"exact"``, ``"optimal"``,
    ``"stationary"`` or ``"stages"``.

    Parameters
    ----------
    energy_before, energy_after : float
        F at the start and at the end of the step.
    dt : float
        Length of the step in time, > 0.
    w2 : float or None
        W2 distance of start and end, or an upper bound of it. None if unknown.
    residual : float
        The number that the solver compares with its tolerance.
    converged : bool
        Whether the residual met the tolerance.
    guarantee : str
        The `Guarantee` that the solver claims.
    bound : float or None
        Bound on the W2 distance to the exact step. Kept only with ``"exact"``.
    noise : float
        Error of the energies beyond their round-off, which is added.
    **own : object
        ``iterations`` and ``details``, see `Certificate`, and further entries.

    Returns
    -------
    Certificate
        If another number is not finite, ``converged`` is False and the guarantee
        ``"none"``. A ``w2``, ``decrease`` or ``bound`` that is not finite becomes None;
        such a ``residual`` or ``noise`` becomes the largest float.

    Raises
    ------
    TypeError
        If a number is something else.
    ValueError
        If the guarantee is not a `Guarantee`.

    Examples
    --------
    >>> from otflow.proximal.certificate import certify
    >>> known = certify(
    ...     energy_before=2.0,
    ...     energy_after=1.0,
    ...     dt=0.5,
    ...     w2=0.5,
    ...     residual=1e-9,
    ...     converged=True,
    ...     guarantee="stationary",
    ... )
    >>> known.decrease, known.certified
    (0.75, True)
    """
    return Certificate.of(
        {
            "energy_before": energy_before,
            "energy_after": energy_after,
            "w2": w2,
            "residual": residual,
            "converged": converged,
            "guarantee": guarantee,
            "bound": bound,
            "noise": noise,
            "dt": dt,
            **own,
        }
    )


def _judged(claim: Certificate) -> Certificate:
    """Return the claim without what its own numbers contradict."""
    before, after, noise = claim.energy_before, claim.energy_after, claim.noise or 0.0
    if before is None or after is None:
        msg = "a step has a guarantee where both its energies are known; name them"
        raise TypeError(msg)
    # A step may start where F is infinite, as a projection into the domain of F.
    start = after if before == math.inf else before
    noise += round_off(start, after)
    numbers = (start, after, claim.residual, noise, claim.w2, claim.bound)
    finite = all(math.isfinite(x) for x in numbers if x is not None)
    claim = replace(
        claim,
        w2=_finite(claim.w2),
        residual=None if claim.residual is None else _capped(claim.residual),
        converged=bool(claim.converged and finite),
        noise=_capped(noise),
    )
    # Without a distance, as under a Sinkhorn cost, the energy alone is tested.
    decrease = 0.0 if claim.decrease is None else claim.decrease
    if not (claim.converged and max(after - before, -decrease) <= noise):
        claim = replace(claim, guarantee=Guarantee.NONE)
    kept = claim.bound if claim.guarantee == Guarantee.EXACT else None
    return replace(claim, bound=kept)


def round_off(
    before: float, after: float, eps: float = sys.float_info.epsilon
) -> float:
    """Return the round-off of the difference of two energies, which are long sums."""
    return ROUND_OFF * eps * max(abs(before), abs(after))


def _capped(x: float) -> float:
    """Return x, or the largest float in place of an infinity or NaN.

    JSON has no infinity, and a NaN would fail every comparison.
    """
    return x if math.isfinite(x) else sys.float_info.max


def _finite(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None


# Plain mappings -----------------------------------------------------------------------


def _sorted(report: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the words of a mapping, and its other entries, with Python numbers."""
    words: dict[str, Any] = {}
    entries: dict[str, Any] = {}
    for given, found in report.items():
        name, value = _current(given), _plain(found)
        if name in NESTED:
            value = tuple(Certificate.of(part) for part in value)
        if name in NUMBERS and not isinstance(value, (int, float, NoneType)):
            msg = (
                f"{name!r} of a step's report must be a number, got {value!r}; give an "
                f"entry of your own another name"
            )
            raise TypeError(msg)
        if name == "guarantee" and value is not None:
            value = Guarantee(value)
        # Derived from the other words, these two cannot be set.
        if name not in ("decrease", "certified"):
            words_or_entries = words if name in Certificate.__annotations__ else entries
            words_or_entries[name] = value
    return words, entries


def _plain(value: Any) -> Any:
    """Return a 0-d tensor or a NumPy scalar as a Python number."""
    if isinstance(value, Tensor) and not value.ndim:
        return value.detach().item()
    return value.item() if isinstance(value, np.generic) else value


def _written(value: Any) -> Any:
    if isinstance(value, Mapping):  # a Certificate too
        return {name: _written(part) for name, part in value.items()}
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return _written(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_written(part) for part in value]
    return str(value) if isinstance(value, Guarantee) else value


def _same(one: Any, other: Any) -> bool:
    """Return whether two written values are equal; a NaN equals another."""
    if isinstance(one, dict) and isinstance(other, dict):
        known = one.keys() == other.keys()
        return known and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if one is other:
        return True
    try:
        return bool(one == other) or bool(one != one and other != other)  # noqa: PLR0124
    except Exception:  # an object without one truth value, such as a table
        return False


def _current(name: str) -> str:
    """Return the present name of a word; a former name warns."""
    if name not in FORMER:
        return name
    msg = f"{name!r} of a step's report is now {FORMER[name]!r}"
    warn(msg, DeprecationWarning)
    return FORMER[name]
