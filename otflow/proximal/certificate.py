"""The words of a certificate, derived in one place for all solvers and schemes."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from types import NoneType
from typing import Any

import numpy as np
from torch import Tensor

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


class Guarantee(StrEnum):
    """What is known of a step, from the most to nothing; each member is its string.

    Examples
    --------
    >>> import otflow as of
    >>> of.proximal.Guarantee.EXACT == "exact"
    True
    """

    EXACT = "exact"
    """The exact step is unique, and within ``bound`` of the measure."""
    OPTIMAL = "optimal"
    """The objective is the least, to the tolerance."""
    STATIONARY = "stationary"
    """The measure is a critical point of the objective, to the tolerance."""
    STAGES = "stages"
    """Each stage of a step of several has one of these."""
    UPPER_BOUND = "upper-bound"
    """A critical point of an upper bound of the objective."""
    SINKHORN = "sinkhorn"
    """A critical point of a regularised objective."""
    NONE = "none"
    """Nothing is claimed."""

    @classmethod
    def _missing_(cls, value: object) -> Guarantee:
        known = ", ".join(repr(str(member)) for member in cls)
        msg = f"a guarantee must be one of {known}, got {value!r}"
        raise ValueError(msg)

    def __repr__(self) -> str:
        return repr(str(self))


# The guarantees of a step that is certified.
CERTIFYING = frozenset(list(Guarantee)[:4])
# Words that are numbers; the first five are part of what each solver says.
NUMBERS = ("energy_before", "energy_after", "w2", "residual", "bound", "noise", "dt")
WORDS = (*NUMBERS[:5], "decrease", "converged", "guarantee", "certified")
# What schemes and solvers say besides.
MORE = ("noise", "iterations", "dt", "solver", "order", "modulus")
# Entries that hold the certificates of the steps that a step is made of.
NESTED = ("parts", "substeps", "stages")
# Words of an earlier release, and what they are now.
FORMER = {"energy": "energy_before", "gradients": "iterations"}
# Why a descent ends away from round-off, and what helps. Smaller steps do not: they put
# off the step in which an atom meets the kink.
KINK = {
    "cause": "the objective stopped falling, as at a kink of F",
    "cure": "smooth the kink (|x| by (x^2 + eps^2)^(1/2), relu(z) by "
    "softplus(k z) / k), or take ExplicitEuler(), which needs no convergence",
}
# Round-off of an energy that is a long sum, in units of float64's.
ROUND_OFF = 256.0


@dataclass(frozen=True, eq=False, repr=False)
class Certificate(Mapping[str, Any]):
    r"""What is known of one step; also a read-only mapping of its words.

    ``info.w2`` and ``info["w2"]`` are the same number. Numbers are those of Python, so
    that a certificate can be written as JSON: ``json.dumps(info.to_dict())``.

    Parameters
    ----------
    energy_before, energy_after : float, optional
        F at both ends.
    w2 : float, optional
        Distance of both ends, or an upper bound of it.
    residual : float, optional
        What the solver compared with its tolerance: off grids the norm of the
        objective's gradient over that of the displacement, on grids a mass.
    iterations : int, optional
        What the step cost: evaluations of the functional with its velocity, or the
        iterations that the solver's own documentation counts.
    converged : bool, optional
        Whether the residual met the tolerance; None where a step solves nothing.
    guarantee : Guarantee, optional
        What is proved; None where no solver judged the step as a whole.
    bound : float, optional
        Where F is :math:`\lambda`-convex, a :math:`\beta` such that the exact step is
        within W2 distance :math:`\beta` and the objective within :math:`\beta^2(1/dt +
        \lambda)` of its least value.
    noise : float, optional
        What the solver knows its energies to.
    dt : float, optional
        The time in fact taken; None if it is the one asked for.
    solver : str, optional
        Name of the class of the solver.
    order : int, optional
        Order in time of the step.
    modulus : float, optional
        Convexity of F in this dimension.
    details : object, optional
        What this solver alone reports: a frozen dataclass of its own.
    entries : mapping
        What schemes, or solvers without details of their own, add by name.

    Attributes
    ----------
    energy_before, energy_after, w2, residual, iterations, converged, guarantee, bound
        As above.
    noise, dt, solver, order, modulus, details, entries
        As above.

    Notes
    -----
    The mapping holds the words, the fields of ``details`` and the ``entries``. Where
    ``guarantee`` is None, as for ``ExplicitEuler()``, words that are None are no keys.

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

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Certificate:
        """Return the certificate of a plain mapping: words by name, the rest entries.

        Parameters
        ----------
        report : mapping
            What a scheme or a solver says of a step. What it claims is judged as by
            `certify`; one that denies ``"certified"`` has no guarantee.

        Returns
        -------
        Certificate
            The mapping itself if it is one.

        Raises
        ------
        TypeError, ValueError
            If a word is not what it should be, e.g. a residual that is no number.
        """
        if isinstance(report, cls):
            return report
        words, entries = _sorted(report)
        made = cls(**words, entries=entries)
        if made.guarantee in CERTIFYING and report.get("certified") is False:
            made = replace(made, guarantee=Guarantee.NONE)
        return made if made.guarantee is None else _judged(made)

    @property
    def decrease(self) -> float | None:
        """The energy lost beyond the transport cost; None if one is not known."""
        before, after, w2, dt = self.energy_before, self.energy_after, self.w2, self.dt
        if before is None or after is None or w2 is None or dt is None:
            return None
        return _finite(before - after - w2 * w2 / (2 * dt))

    @property
    def certified(self) -> bool:
        """Whether the guarantee is exact, optimal, stationary or stages."""
        return self.guarantee in CERTIFYING

    def also(self, **entries: Any) -> Certificate:
        """Return the certificate with these entries besides."""
        return replace(self, entries={**self.entries, **entries})

    def to_dict(self) -> dict[str, Any]:
        """Return the mapping as dictionaries, lists, strings and numbers, for JSON."""
        return {name: _written(value) for name, value in self.items()}

    @cached_property
    def _view(self) -> dict[str, Any]:
        own = {} if self.details is None else vars(self.details)
        named = {name: getattr(self, name) for name in (*WORDS, *MORE)}
        if self.guarantee is None:
            del named["certified"]
            named = {k: v for k, v in named.items() if v is not None}
        return {**named, **own, **self.entries}

    def __getitem__(self, name: str) -> Any:
        return self._view[_current(name)]

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
    r"""Return a certificate; what its words mean is derived here and nowhere else.

    .. math:: \mathrm{decrease} = F(\mu) - F(\nu) - \frac{W_2^2(\mu, \nu)}{2\,dt}

    A step keeps the guarantee that its solver claims only if it converged, every
    number is finite, the energy has not risen and the decrease is not negative, the
    last two up to `noise`. Else the guarantee is ``"none"``. A step is ``certified`` if
    its guarantee is ``"exact"``, ``"optimal"``, ``"stationary"`` or ``"stages"``.

    Parameters
    ----------
    energy_before, energy_after : float
        F at both ends.
    dt : float
        Step, > 0.
    w2 : float or None
        Distance of both ends, or an upper bound of it; None if unknown.
    residual : float
        What the solver compared with its tolerance. One that is not finite is reported
        as the largest float: it overflowed.
    converged : bool
        Whether the residual met the tolerance.
    guarantee : str
        What the solver claims if the step stands all tests, a `Guarantee`.
    bound : float or None
        On the W2 distance to the exact step; only with ``"exact"``.
    noise : float
        What the solver knows its energies to; at least round-off is added.
    **own : object
        ``iterations`` and ``details``, see `Certificate`, and entries of the solver's
        own, where it has no dataclass for them.

    Returns
    -------
    Certificate
        A number that is not finite takes ``converged`` and the guarantee with it;
        ``w2``, ``decrease`` and ``bound`` then become None, ``residual`` and ``noise``
        the largest float.

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
    """Return what is left of a claim."""
    before, after, noise = claim.energy_before, claim.energy_after, claim.noise or 0.0
    if before is None or after is None:
        msg = "a step has a guarantee where both its energies are known; name them"
        raise TypeError(msg)
    noise += round_off(before, after)
    numbers = (before, after, claim.residual, noise, claim.w2, claim.bound)
    finite = all(math.isfinite(x) for x in numbers if x is not None)
    claim = replace(
        claim,
        w2=_finite(claim.w2),
        residual=None if claim.residual is None else _capped(claim.residual),
        converged=bool(claim.converged and finite),
        noise=_capped(noise),
    )
    decrease = 0.0 if claim.decrease is None else claim.decrease
    if not (claim.converged and max(after - before, -decrease) <= noise):
        claim = replace(claim, guarantee=Guarantee.NONE)
    kept = claim.bound if claim.guarantee == Guarantee.EXACT else None
    return replace(claim, bound=kept)


def round_off(
    before: float, after: float, eps: float = sys.float_info.epsilon
) -> float:
    """Return the round-off of two energies that are long sums."""
    return ROUND_OFF * eps * max(abs(before), abs(after))


def _capped(x: float) -> float:
    """Return the largest float for what overflowed, so that it can be compared."""
    return x if math.isfinite(x) else sys.float_info.max


def _finite(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None


# Plain mappings -----------------------------------------------------------------------


def _sorted(report: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the words of a mapping and its other entries, as Python numbers."""
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
        if name not in ("decrease", "certified"):
            words_or_entries = words if name in Certificate.__annotations__ else entries
            words_or_entries[name] = value
    return words, entries


def _plain(value: Any) -> Any:
    """Return the Python number of a tensor without axes, or of NumPy's."""
    if isinstance(value, Tensor) and not value.ndim:
        return value.detach().item()
    return value.item() if isinstance(value, np.generic) else value


def _written(value: Any) -> Any:
    if isinstance(value, Certificate):
        return value.to_dict()
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, tuple):
        return [_written(part) for part in value]
    return str(value) if isinstance(value, Guarantee) else value


def _current(name: str) -> str:
    """Return the name of a word; one of an earlier release warns."""
    if name not in FORMER:
        return name
    msg = f"{name!r} of a step's report is now {FORMER[name]!r}"
    warnings.warn(msg, DeprecationWarning, stacklevel=4)
    return FORMER[name]
