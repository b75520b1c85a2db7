"""How far the blur of an entropic step on a grid moves what it returns."""

from __future__ import annotations

import math

from torch import Tensor

from otflow.measures import GridDensity
from otflow.proximal.scaling import Iterate, Scaling, potential_of

__all__ = ["blur_of", "self_potential"]

# Sweeps for the coupling of a density with itself. Their error falls by half at least,
# and for what the kernel resolves much faster.
SWEEPS = 10
# What is left of it, in the logarithm.
UNSURE = 1e-4
# What the blur does to a short step that is certified, in parts of the step, at most;
# and the longest step that is short, in cells.
MOST_BLUR, SHORT = 0.05, 0.1


def blur_of(
    problem: Scaling, iterate: Iterate, nu: GridDensity, own: Tensor
) -> tuple[float, bool]:
    r"""Return how far the blur moves a step, and whether that outweighs a short one.

    With the potential :math:`\varphi` of the debiased cost at :math:`\nu` the step is
    :math:`\nabla\varphi = -dt\,\nabla F'[\nu]`. The debiased cost of :math:`\nu` and
    itself has a potential :math:`\varphi_\nu` too, the exact distance has none. So
    :math:`\|\nabla\varphi_\nu\|_{L^2(\nu)}` is what the blur alone does in W2; to
    leading order :math:`\varphi_\nu = \tfrac{\varepsilon^2}4
    \Delta\sqrt\nu/\sqrt\nu`. It is compared with the largest of the lengths of
    :math:`\nabla(\varphi - \varphi_\nu)`, which is the step, and of dt times the pulls
    of potentials, nonlocal terms and internal energies, which cancel at rest.

    Parameters
    ----------
    problem, iterate : Scaling, Iterate
        Solved.
    nu : GridDensity
        The new density.
    own : Tensor
        `self_potential` of it.

    Returns
    -------
    tuple of float and bool
        The length, and whether it is more than `MOST_BLUR` of a step of less than
        `SHORT` of a cell. A longer step is not judged: where it ends in a density as
        thin as a cell, its response is far less than this length.
    """
    phi = _potential(problem, iterate.log_a, iterate.log_density)
    V = potential_of(problem.source, problem.terms)
    others = problem.potential - V
    parts = (V, others, phi / problem.dt + problem.potential)
    pull = max(problem.dt * _length(nu, f) for f in parts)
    blur, step = _length(nu, own), max(pull, _length(nu, phi - own))
    cell = max(nu.box.spacing)
    unsure = problem.kernel.eps / cell * max(iterate.residual, UNSURE)
    short = unsure < pull and step < SHORT * cell
    return blur, short and blur > MOST_BLUR * step + unsure


def self_potential(problem: Scaling, log_density: Tensor) -> Tensor:
    r"""Return :math:`\varepsilon(\log a - \tfrac12\log\rho)` with :math:`a\,Ka = \rho`.

    Its mean over :math:`\rho`, twice, is the debiased cost of :math:`\rho` and itself.
    It is 0 where :math:`\rho` is.
    """
    log_a = 0.5 * log_density
    for _ in range(SWEEPS):
        log_a = 0.5 * (log_a + log_density - problem.convolve(log_a))
        log_a = log_a.masked_fill(log_density == -math.inf, -math.inf)
    return _potential(problem, log_a, log_density)


def _potential(problem: Scaling, log_a: Tensor, log_nu: Tensor) -> Tensor:
    phi = problem.kernel.eps * (log_a - 0.5 * log_nu)
    if problem.correction is not None:
        phi = phi - problem.correction
    return phi.nan_to_num(0.0, 0.0, 0.0)


def _length(nu: GridDensity, f: Tensor) -> float:
    slopes = nu.box.gradient(f.reshape(nu.shape)) * nu.open_faces(nu.dtype)
    return float(nu.norm(slopes))
