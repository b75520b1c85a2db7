"""The evolution variational inequality of JKO steps, against any measure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from otflow._validation import check_kind, real
from otflow.analysis.certificates import check_each_step
from otflow.analysis.charts import check_together
from otflow.analysis.run_steps import parts_of
from otflow.errors import Unsupported
from otflow.functionals.base import Functional, check_functional
from otflow.measures import Measure, Quantiles
from otflow.metrics import wasserstein2_squared
from otflow.trajectory import Trajectory

__all__ = ["VariationalReport", "check_proximal", "evolution_variational_inequality"]

# Round-off of an energy or of a squared distance, in units of that of one operation.
ROUND_OFF = 256.0


@dataclass(frozen=True, eq=False)
class VariationalReport:
    r"""The slack of the evolution variational inequality in each step of a flow.

    Parameters
    ----------
    times : Tensor, shape (K + 1,)
        Times of the measures.
    slack : Tensor, shape (K,)
        The right-hand side minus the left-hand side, for each step.
    noise : Tensor, shape (K,)
        How far round-off and the solver may take the slack below 0.
    modulus : float
        The :math:`\lambda` that was tried.

    Attributes
    ----------
    times, slack, noise, modulus
        As above.

    Examples
    --------
    >>> import torch
    >>> from otflow.analysis import VariationalReport
    >>> times, slack = torch.arange(3.0), torch.tensor([0.1, -0.5])
    >>> VariationalReport(times, slack, torch.full((2,), 1e-9), 1.0).violated
    tensor([1])
    """

    times: Tensor
    slack: Tensor
    noise: Tensor
    modulus: float

    @property
    def violated(self) -> Tensor:
        """The steps in which the inequality fails beyond the noise, (m,)."""
        return (self.slack < -self.noise).nonzero()[:, 0]

    @property
    def holds(self) -> bool:
        """Whether the inequality holds in every step, up to the noise."""
        return not len(self.violated)


def evolution_variational_inequality(
    F: Functional,
    trajectory: Trajectory[Any],
    nu: Measure,
    *,
    modulus: float | None = None,
) -> VariationalReport:
    r"""Return the slack of the evolution variational inequality of JKO steps.

    An exact JKO step of length :math:`\tau`, from :math:`\mu^k` to :math:`\mu^{k+1}`,
    of an F that is :math:`\lambda`-convex along generalised geodesics satisfies

    .. math:: \frac{(1 + \lambda\tau)\,W_2^2(\mu^{k+1}, \nu) - W_2^2(\mu^k, \nu)}{2\tau}
        \le F(\nu) - F(\mu^{k+1}) - \frac{W_2^2(\mu^k, \mu^{k+1})}{2\tau}

    for every measure :math:`\nu` where F is finite, if :math:`1 + \lambda\tau > 0`
    (Theorem 4.1.2 of :cite:t:`ambrosio2008gradient`). All contraction, decay and
    regularity of the flow follow from it. So a slack below ``-noise`` refutes the
    modulus, unless the step is not the exact one. The noise holds round-off, and the
    ``bound`` of the step on its distance to the exact one, if there is one. A slack
    that is not negative proves nothing for other :math:`\nu`.

    Parameters
    ----------
    F : Functional
        The functional that the flow minimised.
    trajectory : Trajectory
        A flow by ``JKO()`` in which each step is recorded.
    nu : Measure
        The measure to compare with, such as a minimiser: of the kind of the flow's
        measures, on `Quantiles` of the same masses.
    modulus : float, optional
        The :math:`\lambda`; by default ``F.modulus(d)``.

    Returns
    -------
    VariationalReport
        One slack for each step.

    Raises
    ------
    Unsupported
        If no modulus is known, a step is not one of ``JKO()`` of order 1 or too long
        for the modulus, or the measures have no exact distance.
    ValueError
        If a step was not recorded: take ``every=1``.

    See Also
    --------
    minimizing_movement : The case that nu is the start of the step.

    Notes
    -----
    The objective :math:`G = F + W_2^2(\mu^k, \cdot)/2\tau` is :math:`(\lambda +
    1/\tau)`-convex along the generalised geodesic from :math:`\mu^{k+1}` to
    :math:`\nu` with base :math:`\mu^k`, and :math:`\mu^{k+1}` minimises it. So
    :math:`G(\mu^{k+1}) + \tfrac12(\lambda + 1/\tau) W_2^2(\mu^{k+1}, \nu) \le
    G(\nu)`, which is the inequality.

    Cost: one value of F and two distances for each step. On `Quantiles` the distance is
    that of their `inner`, as in the step.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    >>> mu = of.Particles(torch.tensor([[1.0], [3.0]], dtype=torch.float64))
    >>> run = of.flow(F, mu, of.JKO(), dt=0.5, steps=4)
    >>> least = of.Particles(torch.zeros(2, 1, dtype=torch.float64))
    >>> of.analysis.evolution_variational_inequality(F, run, least).holds
    True
    >>> of.analysis.evolution_variational_inequality(F, run, least, modulus=3).holds
    False
    """
    check_functional(F)
    check_kind(trajectory, Trajectory, "trajectory")
    check_together({"the trajectory": trajectory.final, "nu": nu})
    # Records of each step are of no use where the steps are others.
    check_proximal(trajectory)
    check_each_step(trajectory)
    lam = F.modulus(nu.dim) if modulus is None else real(modulus, "modulus")
    if lam is None:
        msg = (
            f"no modulus of {F!r} is known in dimension {nu.dim}; state it where you "
            f"know it, or give modulus= to try one; F.why({nu.dim}) names the cause"
        )
        raise Unsupported(msg)
    steps = trajectory.times.diff()
    if bool((1 + lam * steps <= 0).any()):
        msg = (
            f"a step of length {float(steps.max()):.6g} is too long for the modulus "
            f"{lam:g}: the objective of the step is not convex; take a smaller dt"
        )
        raise Unsupported(msg)
    measures = list(trajectory.snapshots)
    with torch.no_grad():
        energies = torch.stack([F.value(mu).double().cpu() for mu in measures])
        least = F.value(nu).double().cpu()
        lengths = [_squared(a, b) for a, b in pairwise(measures)]
        apart = torch.tensor([_squared(mu, nu) for mu in measures], dtype=torch.float64)
    moved = torch.tensor(lengths, dtype=torch.float64)
    # A step of no time moves nothing, and says nothing.
    tau = steps.masked_fill(steps == 0, 1.0)
    left = ((1 + lam * tau) * apart[1:] - apart[:-1]) / (2 * tau)
    slack = least - energies[1:] - moved / (2 * tau) - left
    eps = torch.finfo(measures[0].dtype).eps
    size = least.abs() + energies[1:].abs()
    size = size + (apart[1:] + apart[:-1] + moved) / (2 * tau) + abs(lam) * apart[1:]
    slack = slack.masked_fill(steps == 0, 0.0)
    # The exact step is within b: it moves the distances by b, and the objective by
    # b^2 (lambda + 1/tau).
    bounds = [report.bound or 0.0 for report in trajectory.info]
    b, weight = torch.tensor(bounds, dtype=torch.float64), lam + 1 / tau
    off = b**2 * weight + 0.5 * weight * (2 * b * apart[1:].sqrt() + b**2)
    noise = ROUND_OFF * eps * size + off
    return VariationalReport(trajectory.times, slack, noise, lam)


def check_proximal(trajectory: Trajectory[Any]) -> None:
    """Raise Unsupported unless every step is one proximal step of F."""
    for k, report in enumerate(trajectory.info):
        single = report.get("order") == 1 and report.energy_after is not None
        if not single or {"substeps", "batch_energy"} & set(report.entries):
            cure = "flow with JKO()"
            if any("temperature" in leaf.entries for leaf in parts_of(report)):
                cure += " on a GridDensity, which has an entropy"
            msg = (
                f"step {k} is not one step of JKO() of order 1, of which the "
                f"inequality holds; {cure}"
            )
            raise Unsupported(msg)


def _squared(mu: Measure, nu: Measure) -> float:
    """Return the squared distance of a JKO step."""
    if isinstance(mu, Quantiles):
        move = mu.displacement_to(nu)  # type: ignore[arg-type]  # it checks the kind
        return float(mu.inner(move, move))
    return float(wasserstein2_squared(mu, nu))  # type: ignore[arg-type]
