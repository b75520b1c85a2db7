"""Proximal solvers: one minimisation for each representation."""

from collections.abc import Callable
from typing import Any

from otflow._validation import check_kind
from otflow.functionals import Functional
from otflow.functionals.order import is_exchangeable
from otflow.measures import Gaussian, GridDensity, Measure, Particles, Quantiles
from otflow.proximal.base import ProximalSolver, ProxResult, may_cross_obstacles
from otflow.proximal.certificate import Certificate, Guarantee, certify
from otflow.proximal.gaussian import GaussianProximal
from otflow.proximal.grid import BackAndForth, FiniteVolume, GridSinkhorn
from otflow.proximal.particles import ParticleProximal, SinkhornParticles
from otflow.proximal.pointwise import PointwiseProximal
from otflow.proximal.quantiles import QuantileProximal
from otflow.proximal.tangent import TangentProximal
from otflow.proximal.terms import mapped_potential, sort_terms

__all__ = [
    "BackAndForth",
    "Certificate",
    "FiniteVolume",
    "GaussianProximal",
    "GridSinkhorn",
    "Guarantee",
    "ParticleProximal",
    "PointwiseProximal",
    "ProxResult",
    "ProximalSolver",
    "QuantileProximal",
    "SinkhornParticles",
    "TangentProximal",
    "certify",
    "default_solver",
]


def __dir__() -> list[str]:
    return __all__


def _has_obstacles(mu: Measure, _: Functional | None) -> bool:
    return may_cross_obstacles(mu)


def _always(*_: Any) -> bool:
    return True


def _of_law(_: Measure, F: Functional | None) -> bool:
    return F is None or is_exchangeable(F)


def _has_map(_: Measure, F: Functional | None) -> bool:
    return F is not None and mapped_potential(F) is not None


def _is_bounded(_: Measure, F: Functional | None) -> bool:
    """Whether F bounds the density.

    Fast diffusion has no bounded pressure: not for `BackAndForth`.
    """
    if F is None:
        return False
    terms = sort_terms(F)
    return not terms.is_fast and terms.max_density < float("inf")


# A representation, a condition on the measure and the functional, the solver: the
# first line that fits is taken.
_DEFAULTS: list[
    tuple[
        type[Measure],
        Callable[[Measure, Functional | None], bool],
        Callable[[], ProximalSolver[Any]],
    ]
] = [
    (Particles, _has_map, PointwiseProximal),
    (Particles, _of_law, ParticleProximal),
    (Gaussian, _always, GaussianProximal),
    (GridDensity, _has_obstacles, FiniteVolume),
    (GridDensity, _is_bounded, BackAndForth),
    (GridDensity, _always, GridSinkhorn),
    (Quantiles, _always, QuantileProximal),
]


def default_solver(mu: Measure, F: Functional | None = None) -> ProximalSolver[Any]:
    """Return the default proximal solver for the representation of `mu`.

    Parameters
    ----------
    mu : Measure
        The measure to step.
    F : Functional, optional
        What to minimise. On particles a positive multiple of one potential with a
        proximal map has `PointwiseProximal`, an F that is not `exchangeable`, whose
        atoms no solver may relabel, `TangentProximal`, and any other F
        `ParticleProximal`. On a grid
        with obstacles, unless its free cells fill a smaller box, it is `FiniteVolume`;
        else the choice depends on the terms: `BackAndForth` for a bound on the density,
        otherwise, and for fast diffusion, `GridSinkhorn`.

    Returns
    -------
    ProximalSolver
        Fresh, with default options. A representation of your own gets
        `TangentProximal`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> type(of.proximal.default_solver(of.Particles(torch.zeros(1, 1)))).__name__
    'ParticleProximal'
    """
    check_kind(mu, Measure, "mu")
    for kind, fits, solver in _DEFAULTS:
        if isinstance(mu, kind) and fits(mu, F):
            return solver()
    return TangentProximal()
