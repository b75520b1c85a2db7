"""The words of a certificate, derived in one place for all solvers and schemes."""

from __future__ import annotations

import math
import sys
from typing import Any

__all__ = ["CERTIFYING", "KINK", "WORDS", "certify"]

# The guarantees of a step that is certified.
CERTIFYING = frozenset({"exact", "optimal", "stationary", "stages"})
# What every certificate says.
WORDS = (
    "energy_before",
    "energy_after",
    "decrease",
    "w2",
    "residual",
    "converged",
    "guarantee",
    "bound",
    "certified",
)
# Why a descent ends away from round-off, and what helps. Smaller steps do not: they put
# off the step in which an atom meets the kink.
KINK = {
    "cause": "the objective stopped falling, as at a kink of F",
    "cure": "smooth the kink (|x| by (x^2 + eps^2)^(1/2), relu(z) by "
    "softplus(k z) / k), or take ExplicitEuler(), which needs no convergence",
}
# Round-off of an energy that is a long sum, in units of float64's.
ROUND_OFF = 256.0


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
) -> dict[str, Any]:
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
        What the solver claims if the step stands all tests.
    bound : float or None
        On the W2 distance to the exact step; only with ``"exact"``.
    noise : float
        What the solver knows its energies to; at least round-off is added.
    **own : object
        Entries of the solver's own.

    Returns
    -------
    dict
        ``energy_before``, ``energy_after``, ``decrease``, ``w2``, ``residual``,
        ``converged``, ``guarantee``, ``bound``, ``certified``, ``noise``, and the
        entries of the solver's own. A number that is not finite takes ``converged`` and
        the guarantee with it; ``w2``, ``decrease`` and ``bound`` then become None,
        ``residual`` and ``noise`` the largest float.

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
    >>> known["decrease"], known["certified"]
    (0.75, True)
    """
    numbers = [energy_before, energy_after, residual, noise]
    numbers += [x for x in (w2, bound) if x is not None]
    finite = all(math.isfinite(x) for x in numbers)
    w2, bound = _finite(w2), _finite(bound)
    decrease = None
    if w2 is not None:
        decrease = _finite(energy_before - energy_after - w2 * w2 / (2 * dt))
    size = max(abs(energy_before), abs(energy_after))
    noise = noise + ROUND_OFF * sys.float_info.epsilon * size
    fell = energy_after - energy_before <= noise
    fell = fell and (decrease is None or decrease >= -noise)
    converged = bool(converged and finite)
    residual, noise = _capped(residual), _capped(noise)
    if not (converged and fell):
        guarantee = "none"
    return {
        "energy_before": energy_before,
        "energy_after": energy_after,
        "decrease": decrease,
        "w2": w2,
        "residual": residual,
        "converged": converged,
        "guarantee": guarantee,
        "bound": bound if guarantee == "exact" else None,
        "certified": guarantee in CERTIFYING,
        "noise": noise,
        **own,
    }


def _capped(x: float) -> float:
    """Return the largest float for what overflowed, so that it can be compared."""
    return x if math.isfinite(x) else sys.float_info.max


def _finite(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None
