r"""Gaps of networks over all measures of neurons with bounded outer weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otflow._validation import check_option, non_negative_int, positive
from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.functionals.stated_terms import check_terms
from otflow.meanfield.inner_boxes import UnitSums, largest_in_box
from otflow.meanfield.kinks import EPS
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.path_balls import BUDGET
from otflow.meanfield.residuals import (
    NORMS,
    SHARPNESS,
    check_network,
    check_sharpness,
    fitting,
    gap_in_ball,
    inner_weights,
    one_risk,
    residual_of,
    size_of,
)
from otflow.meanfield.units import Unit
from otflow.measures import Measure
from otflow.optimality import Domain, Gap
from otflow.optimality.domains import corner_of, text_of_corner

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
    lower, upper : float, sequence of float, Tensor or ndarray
        Corners of the box of (w, b), without b for a network without bias: d + 1 or d
        numbers, or one number for all of them.
    norm : str
        "l1" or "l2", of the outer weights of a neuron with several outputs.
    budget : int
        Most boxes of inner weights in which M is bounded.
    sharpness : float
        Share of the gap by which ``value`` may exceed ``found``, in [0, 1). The search
        ends there. With 0 it goes on to round-off.

    Attributes
    ----------
    lower, upper : tuple of float
        Corners; one number stands for all inner weights.
    radius, norm, budget, sharpness
        As above.

    Raises
    ------
    ValueError
        If a corner is not finite or lower is not below upper. At the gap: if the
        measure has a neuron outside the box, or :math:`\int|a|\,d\mu` is above R.
    Unsupported, TypeError
        At the gap, if F is not the risk of a `TwoLayer`, or a multiple of one, or the
        activation is no `Unit`. In another scaling than "mean-field" such a risk is not
        convex along mixtures, and the kind of the gap is "none".
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
    >>> ball = of.meanfield.VariationBall(1.0, -3, 3)
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
        self.lower, self.upper = _corner(lower, "lower"), _corner(upper, "upper")
        sides = len(self.lower), len(self.upper)
        if 1 < sides[0] != sides[1] > 1:
            msg = (
                f"lower has {sides[0]} numbers and upper {sides[1]}; give one per "
                f"inner weight, or one for all"
            )
            raise ValueError(msg)
        if not (np.array(self.lower) < np.array(self.upper)).all():
            msg = (
                f"lower must lie below upper in each inner weight, got "
                f"{text_of_corner(self.lower)} and {text_of_corner(self.upper)}"
            )
            raise ValueError(msg)
        self.norm = check_option(norm, "norm", NORMS)
        self.budget = non_negative_int(budget, "budget", minimum=1)
        self.sharpness = check_sharpness(sharpness)

    def gap(self, F: Functional, mu: Measure, descend: int) -> Gap:
        factor, risk = one_risk(F)
        check_terms(F, mu)
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
        lower, upper = self._corners(network, theta)
        self._check_inside(network, theta, weights, lower, upper)
        size = float(size_of(network, theta, weights, self.norm, inner=False))
        if size > self.radius * (1 + 64 * EPS):
            radius, divisor = fitting(size, self.radius)
            msg = (
                f"the outer weights of the measure sum to {size:.9g}, above the radius "
                f"{self.radius:.9g} of the ball; take a radius of {radius}, or divide "
                f"the outer weights by {divisor}"
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

    def _corners(self, network: TwoLayer, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return both corners as tensors, one number per inner weight."""
        sides = network.split(theta)[1].shape[1]
        for name in ("lower", "upper"):
            if len(getattr(self, name)) not in (1, sides):
                msg = (
                    f"{name} has {len(getattr(self, name))} numbers and a neuron "
                    f"{sides} inner weights; give {sides} numbers, or one for all"
                )
                raise ValueError(msg)
        corners = (theta.new_tensor(c).expand(sides) for c in (self.lower, self.upper))
        lower, upper = (corner.contiguous() for corner in corners)
        return lower, upper

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
        corners = f"{text_of_corner(self.lower)}, {text_of_corner(self.upper)}"
        norm = "" if self.norm == "l1" else f", {self.norm!r}"
        return f"VariationBall({self.radius:g}, {corners}{norm})"


def _corner(value: Any, name: str) -> tuple[float, ...]:
    corner = corner_of(value, name)
    if not all(map(math.isfinite, corner)):
        msg = f"{name} must hold finite numbers, got {text_of_corner(corner)}"
        raise ValueError(msg)
    return corner
