"""Proximal solvers: one minimisation for each representation."""

from otflow.errors import Unsupported
from otflow.measures import Gaussian, Measure, Particles
from otflow.proximal.base import ProximalSolver, ProxResult
from otflow.proximal.gaussian import GaussianProximal
from otflow.proximal.particles import ParticleProximal

__all__ = [
    "GaussianProximal",
    "ParticleProximal",
    "ProxResult",
    "ProximalSolver",
    "default_solver",
]

_DEFAULTS: dict[type[Measure], type[ProximalSolver[Measure]]] = {
    Particles: ParticleProximal,  # type: ignore[dict-item]
    Gaussian: GaussianProximal,  # type: ignore[dict-item]
}


def default_solver(mu: Measure) -> ProximalSolver[Measure]:
    """Return the default proximal solver for the representation of `mu`.

    Parameters
    ----------
    mu : Measure
        The measure to step.

    Returns
    -------
    ProximalSolver
        Fresh, with default options.

    Raises
    ------
    Unsupported
        If the representation has none.

    Examples
    --------
    >>> import torch, otflow as of
    >>> type(of.proximal.default_solver(of.Particles(torch.zeros(1, 1)))).__name__
    'ParticleProximal'
    """
    for kind, solver in _DEFAULTS.items():
        if isinstance(mu, kind):
            return solver()
    msg = (
        f"there is no default proximal solver for {type(mu).__name__}; "
        f"give one: JKO(solver=...)"
    )
    raise Unsupported(msg)
