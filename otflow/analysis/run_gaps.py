"""How far the end of a run is from the infimum of F, by its slope and by a gap."""

from __future__ import annotations

from otflow.analysis.findings import Finding, Verdict
from otflow.errors import InvalidFunctional, NonFinite, Unsupported
from otflow.functionals.base import Functional
from otflow.measures import Gaussian, GridDensity, Measure, Particles, Quantiles
from otflow.optimality import Domain, GapKind, optimality_gap

__all__ = ["gap_of", "slope_of"]

# A density in the place of a measure that has none, or no first variation.
BINNED = "GridDensity.from_samples({draws}, lower, upper, shape)"


def slope_of(F: Functional, mu: Measure, refuted: str | None) -> Finding:
    r"""Bound F by its slope: :math:`F(\nu) \ge F(\mu) - |v|^2/2\lambda` for all nu.

    The velocity is that of the representation, and so are the measures nu.
    """
    name, modulus = "slope", F.modulus(mu.dim)
    if modulus is None or modulus <= 0:
        text = "no positive modulus of F is known"
        return Finding(name, Verdict.UNKNOWN, None, text)
    if refuted is not None:
        text = f"nothing is bounded: {refuted}"
        return Finding(name, Verdict.FAILED, None, text)
    if isinstance(mu, GridDensity):
        text = (
            "the velocities of a grid belong to the faces of its cells, and their norm "
            "is no slope of F along geodesics"
        )
        return Finding(name, Verdict.UNKNOWN, None, text)
    try:
        v = F.velocity(mu)
    except (Unsupported, NonFinite) as error:
        return Finding(name, Verdict.UNKNOWN, None, str(error))
    bound = float(mu.inner(v, v)) / (2 * modulus)
    text = (
        f"F is within {bound:.3g} of its infimum over {_family(mu)}, by the velocity "
        f"at the end and the modulus {modulus:g}, up to the round-off of the velocity; "
        f"over all measures the infimum may be lower"
    )
    return Finding(name, Verdict.OBSERVED, bound, text)


def _family(mu: Measure) -> str:
    """Return the measures among which a representation moves."""
    if isinstance(mu, Gaussian):
        return "all Gaussians"
    if isinstance(mu, Quantiles):
        return f"all Quantiles of these {mu.n} masses"
    if isinstance(mu, Particles):
        return f"all Particles of these {mu.n} masses"
    return f"the measures that a {type(mu).__name__} of {mu.n} points can be"


def gap_of(
    F: Functional, mu: Measure, domain: Domain | None, descend: int
) -> tuple[Finding, list[tuple[str, Measure]]]:
    """Return the gap, and the measure of one atom where F' is least, by name."""
    name, place = "gap", list[tuple[str, Measure]]()
    missing = _missing(F, mu)
    if missing is not None:
        return Finding(name, Verdict.UNKNOWN, None, missing), place
    if domain is None:
        told = "OnGrid()" if isinstance(mu, GridDensity) else "BoxDomain(lower, upper)"
        text = f"no domain was given: certify(run, F, domain=optimality.{told})"
        return Finding(name, Verdict.UNKNOWN, None, text), place
    try:
        gap = optimality_gap(F, mu, domain, descend=descend)
    except InvalidFunctional:
        raise
    except (Unsupported, NonFinite, ValueError, TypeError) as error:
        return Finding(name, Verdict.UNKNOWN, None, str(error)), place
    if isinstance(mu, Particles) and gap.argmin is not None:
        x = gap.argmin.detach().to(mu.points)
        if x.shape == (mu.dim,):
            place.append(("one atom where F' is least", Particles(x[None])))
    text = f"F - inf F <= {gap.value:.6g} over the domain, {gap.kind}: {gap.reason}"
    verdict = {
        GapKind.PROVED: Verdict.PROVED,
        GapKind.SEARCHED: Verdict.OBSERVED,
    }.get(gap.kind, Verdict.UNKNOWN)
    if verdict == Verdict.UNKNOWN:
        return Finding(name, verdict, None, gap.reason), place
    return Finding(name, verdict, gap.value, text), place


def _missing(F: Functional, mu: Measure) -> str | None:
    """Return what the end of the run lacks for any gap, and what has it."""
    if type(mu).mass_gradient is Measure.mass_gradient:
        density = BINNED.format(draws="run.final.sample(100_000, generator)")
        return (
            f"a {type(mu).__name__} has no first variation, of which a gap is made; "
            f"take optimality_gap(F, rho, OnGrid()) at rho = {density}"
        )
    temperature, _ = F.split_entropy()
    if temperature > 0 and isinstance(mu, Particles):
        own = "run.final.points"
        draws = own if mu.is_uniform else "run.final.sample(100_000, generator)"
        density = BINNED.format(draws=draws)
        return (
            f"particles have no entropy, and F holds {temperature:g} * Entropy(); take "
            f"optimality.entropic_gap(F, rho) at rho = {density}"
        )
    return None
