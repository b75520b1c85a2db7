"""Log-Sobolev constants from declared bounds, and the rate that they give."""

from __future__ import annotations

import math
from dataclasses import dataclass

from otflow._validation import positive, real
from otflow.functionals import Functional, Potential
from otflow.functionals.base import check_functional

__all__ = ["LogSobolev", "log_sobolev"]

# A modulus that is the same in these dimensions counts as that of every dimension.
DIMENSIONS = (1, 2, 3, 1000)


@dataclass(frozen=True, eq=False)
class LogSobolev:
    r"""What is known of the proximal Gibbs laws of a free energy; see `log_sobolev`.

    Parameters
    ----------
    constant : float
        An :math:`\alpha` for which all proximal laws satisfy the inequality. It may be
        0 in floating point, which says nothing.
    rate : float or None
        The rate :math:`2\alpha\tau` at which :math:`F(\rho_t) - \inf F` falls at least,
        exponentially, along the Wasserstein gradient flow. None if F is not known to be
        convex along mixtures.
    temperature, convexity, oscillation : float
        The numbers :math:`\tau`, :math:`\lambda` and H that were used.
    reason : str
        What the numbers rest on.

    Attributes
    ----------
    constant, rate, temperature, convexity, oscillation, reason
        As above.

    See Also
    --------
    log_sobolev : Computes it.

    Examples
    --------
    >>> import otflow as of
    >>> V = of.Potential(lambda x: x.square().sum(-1), modulus=2.0)
    >>> of.analysis.log_sobolev(V + 0.5 * of.Entropy()).rate
    4.0
    """

    constant: float
    rate: float | None
    temperature: float
    convexity: float
    oscillation: float
    reason: str


def log_sobolev(
    F: Functional, *, oscillation: float | None = None, convexity: float | None = None
) -> LogSobolev:
    r"""Return a log-Sobolev constant of the proximal laws, from declared bounds.

    For :math:`F = G + \tau\,\mathrm{Entropy}` the proximal law of :math:`\rho` is
    :math:`p_\rho \propto e^{-G'[\rho]/\tau}`. If :math:`G'[\rho] = U + h` with a
    :math:`\lambda`-convex U and :math:`\sup h - \inf h \le H`, then by the theorems
    of Bakry and Émery :cite:p:`bakry1985diffusions` for U, and of Holley and Stroock
    :cite:p:`holley1987logarithmic` for h,

    .. math:: \mathrm{KL}(q|p_\rho) \le \frac{1}{2\alpha} \int
        \Bigl|\nabla\log\frac{q}{p_\rho}\Bigr|^2 dq \quad\text{for all } q, \qquad
        \alpha = \frac{\lambda}{\tau}\, e^{-H/\tau}.

    If this holds for all :math:`\rho` on the way, and G is convex along mixtures, then
    along the gradient flow :math:`F(\rho_t) - \inf F \le e^{-2\alpha\tau t}\,
    (F(\rho_0) - \inf F)` :cite:p:`nitanda2022convex,chizat2022mean`.

    Parameters
    ----------
    F : Functional
        The free energy. Its `Potential` terms with a declared modulus, and a positive
        factor, are convex parts; all other terms, but the entropy, are the others. So
        is a potential whose modulus depends on the dimension, as the l1 `PathPenalty`.
    oscillation : float, optional
        A bound H on :math:`\sup h - \inf h` of the others, for every measure
        :math:`\rho`. Needed if there are others, unless `convexity` is given; then 0.
    convexity : float, optional
        A number such that the rest of the first variation of the others, without h, is
        convex to this modulus for every measure; by default 0, an affine function.

    Returns
    -------
    LogSobolev
        The constant, the rate, and what they rest on.

    Raises
    ------
    ValueError
        If F holds no positive multiple of the entropy; if there are others and nothing
        is declared of them; if the moduli do not sum to a positive number, or H < 0.

    Notes
    -----
    Nothing of this is checked by values: the moduli, the convexity and the oscillation
    are the user's words, and the reason lists them. The constant is that of the whole
    space, without walls. For a network with outer weights at most a in size, and an
    activation at most 1 in size, the first variation of a risk with the square loss has
    :math:`H \le 2a\,\frac1n\sum_i(a + |y_i|)`. The constant is often far too small: it
    falls exponentially in H over the temperature, where the observed rate need not.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.linspace(-1, 1, 20)[:, None]
    >>> layer = of.meanfield.CustomLayer(lambda x, theta: torch.tanh(x @ theta.T))
    >>> risk = of.meanfield.Risk(layer, X, X[:, 0])
    >>> F = of.meanfield.free_energy(risk, temperature=1.0, ridge=0.5)
    >>> H = 2 * (1 + X.abs().mean().item())
    >>> found = of.analysis.log_sobolev(F, oscillation=H)
    >>> round(found.rate, 4), found.reason
    (0.0472, 'as modulus= of V declares, and as oscillation= declares')
    """
    check_functional(F)
    temperature, rest = F.split_entropy()
    if not temperature > 0:
        msg = (
            f"F must hold a positive multiple of the entropy, got the temperature "
            f"{temperature:g}; add T * Entropy() with T > 0"
        )
        raise ValueError(msg)
    total, reasons, others = 0.0, [], []
    for c, term in rest.terms():
        own = _modulus(term) if c > 0 else None
        if own is None:
            others.append(term)
        else:
            total += c * own
            reasons.append(term.why_modulus(1))
    if others and oscillation is None and convexity is None:
        msg = (
            f"nothing is declared of the first variation of {others[0]!r}; give "
            f"oscillation=, a bound on its largest value less its least at every "
            f"measure, or convexity="
        )
        raise ValueError(msg)
    if convexity is not None:
        total += real(convexity, "convexity")
        reasons.append("as convexity= declares")
    height = 0.0
    if oscillation is not None:
        height = positive(oscillation, "oscillation", or_zero=True)
        reasons.append("as oscillation= declares")
    if not total > 0:
        msg = (
            f"the convex parts of F have the modulus {total:g} in sum, and a law on "
            f"the whole space needs a positive one; add a ridge, e.g. 0.1 * Potential("
            f"lambda x: 0.5 * x.square().sum(-1), modulus=1.0), or declare modulus= "
            f"of its potentials"
        )
        raise ValueError(msg)
    constant = total / temperature * math.exp(-height / temperature)
    rate = 2.0 * constant * temperature if rest.mixture_convex else None
    reason = ", and ".join(dict.fromkeys(reasons))
    return LogSobolev(constant, rate, temperature, total, height, reason)


def _modulus(term: Functional) -> float | None:
    """Return the modulus of a potential, None if it is unknown or not the same in all.

    F does not say in which dimension its measures live.
    """
    if not isinstance(term, Potential):
        return None
    found = {term.modulus(dim) for dim in DIMENSIONS}
    return found.pop() if len(found) == 1 else None
