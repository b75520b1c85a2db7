"""The distance by which the blur of an entropic step on a grid moves its result."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow.errors import Diverged
from otflow.measures import GridDensity
from otflow.proximal.grid.push_forward import distance_along_axes
from otflow.proximal.grid.sinkhorn.iteration import Warm, iterate, start_of
from otflow.proximal.grid.sinkhorn.kernel import GibbsKernel
from otflow.proximal.grid.sinkhorn.scaling import (
    Iterate,
    Scaling,
    measure_of,
    obstacle_correction,
    potential_of,
)

__all__ = ["blur_of", "self_potential"]

# Sweeps for the coupling of a density with itself. Each sweep halves their error at
# least; details that the kernel resolves converge much faster.
SWEEPS, SWEPT = 10, 4.0
# Tolerance of the further solves, as a share of the mass: at most UNSURE, and PART of
# the length that is to be decided. FLOOR eps of the dtype is what the iteration
# reaches.
UNSURE, PART = 1e-5, 0.2
FLOOR = 1e3
# Largest distance by the blur in a certified step, as a share of the step.
MOST_BLUR = 0.05
# Ratio of the variances of successive wider kernels, and most evaluations of each
# solve. A first distance below CLEAR of the limit decides without a second.
WIDER, BUDGET = math.sqrt(2.0), 100
CLEAR = 0.1
# Least ratio of the second distance to the first: a ratio near 1 would make the
# extrapolation meaningless.
LEAST_RATIO = 1.1


def blur_of(
    problem: Scaling, found: Iterate, nu: GridDensity, own: Tensor, memory: int
) -> tuple[float, bool]:
    r"""Return the distance by which the blur moves a step, and whether it is too large.

    Let :math:`\varphi` be the potential of the debiased cost at :math:`\nu`. The step
    is :math:`\nabla\varphi = -dt\,\nabla F'[\nu]`. The debiased cost of :math:`\nu` to
    itself also has a potential :math:`\varphi_\nu`; the exact distance has none. So
    :math:`\|\nabla\varphi_\nu\|_{L^2(\nu)}` is the pull of the blur. To leading order
    :math:`\varphi_\nu = \tfrac{\varepsilon^2}4 \Delta\sqrt\nu/\sqrt\nu`. The parts of F
    pull with :math:`dt\,\|\nabla V\|` and so on; at rest they cancel.

    A blur that pulls with less than `MOST_BLUR` of the strongest part of F is small,
    whatever the response. Else the same step with :math:`\sqrt2\,\varepsilon` measures
    the response. The debiased cost is wrong by :math:`O(\varepsilon^2)`; so the
    distance a of the two steps is that of this step to the step without blur.

    Where the kernel is as wide as the density, a underestimates this distance. A third
    step with :math:`2\varepsilon`, at a distance b from the second, shows by which
    power the distance grows: this step is wrong by :math:`a^2/(b - a)`. Where the parts
    of F cancel to the share `MOST_BLUR`, the density is at rest, and the blur is
    compared with a cell.

    Parameters
    ----------
    problem, found : Scaling, Iterate
        The solved problem and its iterate.
    nu : GridDensity
        The new density.
    own : Tensor
        `self_potential` of the new density.
    memory : int
        Differences that the acceleration keeps.

    Returns
    -------
    tuple of float and bool
        The distance, or the pull if it is small or no distance was found, and whether
        this exceeds `MOST_BLUR` of the step.
    """
    phi = problem.potential_at(found.log_a, found.log_density)
    V = potential_of(problem.source, problem.terms)
    parts = (V, problem.potential - V, phi / problem.dt + problem.potential)
    pull = problem.dt * max(_length(nu, f) for f in parts)
    blur, cell = _length(nu, own), max(nu.box.spacing)
    if blur <= MOST_BLUR * pull + _left_of_sweeps(problem, own, found.log_density):
        return blur, False
    step = _distance(nu, problem.source, phi - own)
    # At rest the errors of steps do not add up.
    rests = step <= MOST_BLUR * pull
    most = MOST_BLUR * (max(step, cell) if rests else step)
    # Each density is known up to a share of its mass, moved by about the spread. This
    # error must be small beside the length that is to be decided.
    spread = _spread(nu)
    least = FLOOR * torch.finfo(nu.dtype).eps
    share = min(max(PART * most / spread, least), UNSURE) if spread > 0 else UNSURE
    solves = _Solves(memory, max(share, least))
    unsure = solves.tolerance * spread
    here = solves.again(problem, found)
    wider = None if here is None else solves.wider(*here)
    if here is None or wider is None or unsure > most:
        return blur, blur > most and not rests
    first = _distance(measure_of(*here), measure_of(*wider), own)
    if max(CLEAR * most, unsure) < first <= most:
        third = solves.wider(*wider)
        if third is None:
            return blur, blur > most and not rests
        second = _distance(measure_of(*wider), measure_of(*third), own)
        first /= max(second / first, LEAST_RATIO) - 1.0
    return first, first > most + unsure


def self_potential(problem: Scaling, log_density: Tensor) -> Tensor:
    r"""Return :math:`\varepsilon(\log a - \tfrac12\log\rho)` with :math:`a\,Ka = \rho`.

    Twice its mean over :math:`\rho` is the debiased cost of :math:`\rho` to itself. It
    is 0 where :math:`\rho` is 0.
    """
    return problem.potential_at(
        _swept(problem, 0.5 * log_density, log_density, SWEEPS), log_density
    )


def _swept(problem: Scaling, log_a: Tensor, log_density: Tensor, sweeps: int) -> Tensor:
    empty, kernel = log_density == -math.inf, problem.kernel
    for _ in range(sweeps):
        image, _ = kernel.log_apply(log_a, safely=problem.safely)
        log_a = 0.5 * (log_a + log_density - image).masked_fill(empty, -math.inf)
    return log_a


def _left_of_sweeps(problem: Scaling, own: Tensor, log_density: Tensor) -> float:
    """Return a bound on the error of a pull after finitely many sweeps.

    A sweep halves the error at least. So the error is at most twice the change by one
    more sweep.
    """
    phi = own if problem.correction is None else own + problem.correction
    log_a = 0.5 * log_density + phi / problem.kernel.eps
    log_a = _swept(problem, log_a, log_density, 1)
    more = problem.potential_at(log_a, log_density)
    return SWEPT * _length(problem.source, more - own)


@dataclass(frozen=True)
class _Solves:
    """Further solves of the same step, in the same potential; None if one fails."""

    memory: int
    tolerance: float

    def again(self, problem: Scaling, found: Iterate) -> tuple[Scaling, Iterate] | None:
        """Return the step itself, to the tolerance of these solves."""
        if found.residual <= self.tolerance:
            return problem, found
        return self._solved(problem, problem, found)

    def wider(self, problem: Scaling, found: Iterate) -> tuple[Scaling, Iterate] | None:
        """Return the step with a wider kernel."""
        eps, box = WIDER * problem.kernel.eps, problem.kernel.box
        kernel = GibbsKernel(box, eps, problem.log_source)
        correction = problem.correction
        if correction is not None:
            assert problem.is_free is not None
            correction = obstacle_correction(kernel, problem.is_free)
        wide = replace(problem, kernel=kernel, correction=correction)
        return self._solved(wide, problem, found)

    def _solved(
        self, posed: Scaling, problem: Scaling, found: Iterate
    ) -> tuple[Scaling, Iterate] | None:
        try:
            solved = iterate(
                posed,
                start_of(posed, Warm(problem, found)),
                memory=self.memory,
                tolerance=self.tolerance,
                budget=BUDGET,
                widen=False,
            )
        except Diverged:
            return None
        if not solved.iterate.residual <= self.tolerance:
            return None
        return solved.problem, solved.iterate


def _distance(nu: GridDensity, other: GridDensity, psi: Tensor) -> float:
    """Return a lower bound of W2 from the marginals and from a potential.

    Marginals may be equal while the densities differ; the potential sees this.
    """
    gain = abs(float(((other.weights - nu.weights) * psi.reshape(-1)).sum()))
    slope = max(_length(nu, psi), _length(other, psi))
    along = gain / slope if slope > 0 else 0.0
    return max(along, distance_along_axes(nu, other))


def _spread(nu: GridDensity) -> float:
    """Return the root mean square distance of a density from its mean."""
    x = nu.points - nu.weights @ nu.points
    return float((nu.weights @ x.square().sum(-1)).sqrt())


def _length(nu: GridDensity, f: Tensor) -> float:
    return float(nu.norm(nu.box.gradient(f)))
