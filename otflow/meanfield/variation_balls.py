r"""Gaps of networks over all measures of neurons with bounded outer weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from otflow._arrays import as_float_tensor
from otflow._validation import check_option, non_negative_int, positive
from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.meanfield.inner_boxes import UnitSums, largest_in_box
from otflow.meanfield.kinks import EPS
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.path_balls import BUDGET
from otflow.meanfield.residuals import (
    NORMS,
    SHARPNESS,
    check_network,
    check_sharpness,
    gap_in_ball,
    inner_weights,
    one_risk,
    residual_of,
    size_of,
)
from otflow.meanfield.units import Unit
from otflow.measures import Measure
from otflow.optimality import Domain, Gap

__all__ = ["VariationBall"]


class VariationBall(Domain):
    r"""All measures of neurons with bounded outer weights, and inner ones in a box.

    That is :math:`\int|a|\,d\mu \le R`, and (w, b) in the box. It is the ball for units
    that are not homogeneous, such as tanh, for which no path norm exists. As for
    `PathBall`, with :math:`q_k = \ell'(f_\mu(x_k), y_k)/n` and a convex loss,

    .. math:: F(\mu) - \inf_\nu F(\nu) \le \sum_k q_k f_\mu(x_k) + R\,M, \qquad
        M = \max_{(w, b)} \Bigl|\sum_k q_k\,\varphi(w\cdot x_k + b)\Bigr|,

    where (w, b) runs through the box. The right-hand side vanishes if and only if
    :math:`\mu` is optimal.

    Parameters
    ----------
    radius : float
        The radius R > 0.
    lower, upper : Tensor or ndarray, shape (d + 1,) or (d,)
        Corners of the box of (w, b), without b for a network without bias.
    norm : str
        "l1" or "l2", of the outer weights of a neuron with several outputs.
    budget : int
        Most boxes of inner weights in which M is bounded.
    sharpness : float
        Share of the gap by which ``value`` may exceed ``found``, in [0, 1). The search
        ends there. With 0 it goes on to round-off.

    Attributes
    ----------
    radius, lower, upper, norm, budget, sharpness
        As above.

    Raises
    ------
    ValueError
        If a corner is not finite or lower is not below upper. At the gap: if the
        measure has a neuron outside the box, or :math:`\int|a|\,d\mu` is above R.
    Unsupported, TypeError
        At the gap, if F is not the risk of a `TwoLayer` in the scaling "mean-field", or
        a multiple of one, or the activation is no `Unit`.
        A subclass of either that evaluates otherwise counts as none.

    See Also
    --------
    PathBall : The ball of a homogeneous unit, over all inner weights.

    Notes
    -----
    On a box of inner weights each unit lies close to a chord of its own, so the sum in
    M is a linear function and a remainder. Boxes are halved, those of the largest
    upper bounds first, until the bound on each makes ``value`` exceed ``found`` by at
    most the sharpness. For tanh, sigmoid, erf and relu the kind is "proved", and
    ``value - found`` tells what is lost if the budget ends first; it is "none" where a
    number overflows. For a `Unit` of your own it is "searched": M is found by ascent
    alone. Each box costs O(n d); their number grows exponentially in d. With 1 and 2
    inputs and a bias it is about 100 and 300. That takes 2 and 5 velocities of 1,000
    data and neurons, and 20 and 40 of 100, which are 0.1 ms each.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    >>> risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, X[:, 0].tanh())
    >>> ones = torch.ones(2, dtype=torch.float64)
    >>> ball = of.meanfield.VariationBall(1.0, -3 * ones, 3 * ones)
    >>> half = of.Particles(torch.tensor([[0.5, 1.0, 0.0]], dtype=torch.float64))
    >>> gap = of.optimality.optimality_gap(risk, half, ball)
    >>> gap.kind, round(float(risk.value(half)), 4), gap.value < 0.15
    ('proved', 0.0349, True)
    """

    def __init__(
        self,
        radius: float,
        lower: Any,
        upper: Any,
        norm: str = "l1",
        *,
        budget: int = BUDGET,
        sharpness: float = SHARPNESS,
    ) -> None:
        self.radius = positive(radius, "radius")
        self.lower = _corner(lower, "lower")
        self.upper = _corner(upper, "upper")
        if self.lower.shape != self.upper.shape or not bool(
            (self.lower < self.upper).all()
        ):
            msg = (
                f"lower must be below upper in each inner weight, got {lower!r:.80} "
                f"and {upper!r:.80}"
            )
            raise ValueError(msg)
        self.norm = check_option(norm, "norm", NORMS)
        self.budget = non_negative_int(budget, "budget", minimum=1)
        self.sharpness = check_sharpness(sharpness)

    def gap(self, F: Functional, mu: Measure, descend: int) -> Gap:
        factor, risk = one_risk(F)
        network = check_network(risk.network, homogeneous=False)
        unit = network.activation
        if not isinstance(unit, Unit):
            msg = (
                f"a ball of networks needs the slope of the unit, and {network!r} has "
                f"a plain function; use a built-in unit by its name, or state the "
                f"slope in a meanfield.Unit"
            )
            raise Unsupported(msg)
        risk._check(mu)
        theta, weights = mu.points.detach().double(), mu.weights.detach().double()
        lower, upper = self.lower.to(theta), self.upper.to(theta)
        self._check_inside(network, theta, weights, lower, upper)
        size = float(size_of(network, theta, weights, self.norm, inner=False))
        if size > self.radius * (1 + 64 * EPS):
            msg = (
                f"the outer weights of the measure sum to {size:.9g}, above the radius "
                f"{self.radius:.9g} of the ball; take a radius of "
                f"{size * (1 + 1e-6):.9g}, or divide the outer weights by "
                f"{size / self.radius:.9g}"
            )
            raise ValueError(msg)
        z = risk._inputs.double()
        reach = z.abs() @ torch.maximum(lower.abs(), upper.abs())
        # The built-in units have slopes below 1.2, and are at most 1 at 0.
        at = residual_of(risk, mu.detach(), size, 1 + 1.2 * float(reach.max()))
        if at.overflow is not None:
            return at.overflow
        top = largest_in_box(
            UnitSums(at.z, at.q, unit, self.norm),
            lower,
            upper,
            inner_weights(network, mu),
            budget=self.budget,
            ascents=descend,
            level=at.level(self.radius, self.sharpness),
        )
        return gap_in_ball(at, top, self.radius, factor, mu)

    def _check_inside(
        self,
        network: TwoLayer,
        theta: Tensor,
        weights: Tensor,
        lower: Tensor,
        upper: Tensor,
    ) -> None:
        """Raise ValueError unless the box holds all neurons of positive mass."""
        inner = network.split(theta)[1]
        if inner.shape[1] != len(lower):
            msg = (
                f"the box has {len(lower)} sides and a neuron {inner.shape[1]} inner "
                f"weights; give corners of shape ({inner.shape[1]},)"
            )
            raise ValueError(msg)
        outside = ((inner < lower) | (inner > upper)).any(1) & (weights > 0)
        if bool(outside.any()):
            k = int(outside.nonzero()[0])
            low, high = inner[weights > 0].amin(0), inner[weights > 0].amax(0)
            msg = (
                f"the inner weights of neuron {k} lie outside the box; the smallest "
                f"box of all neurons has the corners {low.tolist()} and "
                f"{high.tolist()}: enlarge the box to hold them"
            )
            raise ValueError(msg)

    def __repr__(self) -> str:
        corners = f"{self.lower.tolist()}, {self.upper.tolist()}"
        norm = "" if self.norm == "l1" else f", {self.norm!r}"
        return f"VariationBall({self.radius:g}, {corners}{norm})"


def _corner(value: Any, name: str) -> Tensor:
    corner = as_float_tensor(value, name).detach().clone()
    if corner.ndim != 1 or not bool(torch.isfinite(corner).all()):
        msg = f"{name} must be a vector of finite numbers, got {value!r:.80}"
        raise ValueError(msg)
    return corner
