r"""The slopes of a risk at a measure of neurons, from which gaps of networks follow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._bounds import at_least
from otflow._validation import check_kind, positive
from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.functionals.inheritance import redefined
from otflow.meanfield.fused import outputs_at
from otflow.meanfield.kinks import EPS, Level, Maximum, as_found
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.model import Model
from otflow.meanfield.model import redefined as outputs_redefined
from otflow.meanfield.risk import Risk
from otflow.meanfield.units import Unit
from otflow.measures import Measure
from otflow.optimality import Gap, GapKind

__all__ = [
    "NORMS",
    "SHARPNESS",
    "Residual",
    "check_network",
    "check_risk",
    "check_sharpness",
    "fitting",
    "gap_in_ball",
    "inner_weights",
    "kinks_of",
    "one_risk",
    "reason_of",
    "residual_of",
    "size_of",
    "unbounded",
]

NORMS = ("l1", "l2")
# By default a proved gap is sharp to this share of itself.
SHARPNESS = 0.01
# Most neurons of the measure from which an ascent starts.
STARTS = 256


@dataclass(frozen=True, eq=False)
class Residual:
    r"""The slopes :math:`q_k = \ell'(f_\mu(x_k), y_k)/n`, in float64.

    Parameters
    ----------
    network : TwoLayer
        The network.
    z : Tensor, shape (n, q)
        Rows (x_k, 1).
    y : Tensor
        Targets.
    f : Tensor, shape (n,) or (n, m)
        Outputs without the offset.
    value : float
        The risk.
    q : Tensor, shape (n, m)
        The slopes over n.
    slopes : Tensor, shape (n,) or (n, m)
        The slopes of the losses.
    size : float
        The norm of the measure.
    tall : float
        A bound of one output of a network of norm 1.
    neurons : int
        Number of neurons of the measure.
    """

    network: TwoLayer
    z: Tensor
    y: Tensor
    f: Tensor
    value: float
    q: Tensor
    slopes: Tensor
    size: float
    tall: float
    neurons: int

    @property
    def product(self) -> float:
        """The sum of q f."""
        return float((self.q * self.f.reshape(self.q.shape)).sum())

    def slack(self, radius: float) -> float:
        """Return the round-off of the sum of q f, and of q in a ball."""
        n, m = self.q.shape
        # Of f, and of the slopes: those of the built-in losses are 1-Lipschitz.
        terms = self.neurons + self.z.shape[1] + 8
        outputs = EPS * terms * self.size * self.tall
        largest = float(self.f.abs().max()) + float(self.slopes.abs().max()) + 1
        error = outputs + 16 * EPS * largest
        sums = (n + m + 8) * EPS * float((self.q * self.f.reshape(n, m)).abs().sum())
        return error * (radius + self.size) * self.tall * m + sums

    def level(self, radius: float, sharpness: float) -> Level:
        """Return which M is sharp enough: value - found at most a share of value."""
        if not sharpness:
            return as_found
        product = self.product

        def sharp(found: float) -> float:
            gap = product + radius * found
            return found + max(gap, 0.0) * sharpness / ((1 - sharpness) * radius)

        return sharp

    @property
    def overflow(self) -> Gap | None:
        """The gap that bounds nothing, if a number of the risk is not finite."""
        numbers = (self.value, self.product, self.size, self.tall)
        tensors = (self.z, self.f, self.q)
        if all(map(math.isfinite, numbers)) and all(
            bool(torch.isfinite(t).all()) for t in tensors
        ):
            return None
        return unbounded("the risk, its slopes, or a sum of their products")


def unbounded(what: str) -> Gap:
    """Return the gap that bounds nothing, since something is not finite."""
    reason = f"{what} overflows float64, so that nothing is bounded; rescale the data"
    return Gap(math.inf, None, GapKind.NONE, reason, math.inf)


def residual_of(risk: Risk, mu: Measure, size: float, tall: float) -> Residual:
    """Return the slopes of a risk at a measure of a known norm."""
    network, unit = risk.network, getattr(risk.network, "activation", None)
    assert isinstance(network, TwoLayer)
    assert isinstance(unit, Unit)
    z = risk._inputs.double()
    y = risk.y.double() if risk.y.is_floating_point() else risk.y
    with torch.no_grad():
        bare = outputs_at(network, z, mu.points.double(), mu.weights.double())
        total, slopes = risk._loss.total_and_slope(network.add_offset(bare), y)
    n = len(z)
    q = slopes.reshape(n, -1) / n
    value = float(total) / n
    return Residual(network, z, y, bare, value, q, slopes, size, tall, mu.n)


def gap_in_ball(
    at: Residual, top: Maximum, radius: float, factor: float, mu: Measure
) -> Gap:
    """Return the gap of c times a risk over a ball: <q, f> + R M, times c."""
    least = max(at.product + radius * top.lower, 0.0)
    value = max(at.product + radius * top.upper + at.slack(radius), least)
    neuron = torch.cat([-radius * top.direction, top.place]).to(mu.points)
    kind = GapKind.PROVED
    if not math.isfinite(factor * value) and top.upper != math.inf:
        return unbounded(f"the gap over the ball of radius {radius:g}")
    if top.upper == math.inf:
        value, kind = least, GapKind.SEARCHED
    return Gap(factor * value, neuron, kind, reason_of(top), factor * least)


def reason_of(top: Maximum) -> str:
    """Return how the maximum over neurons was bounded."""
    if top.closed:
        reason = "the maximum over neurons is bounded on all of their inner weights"
        if top.upper - top.lower <= 1e-9 * top.lower:
            return reason
        return (
            f"{reason}, between {top.lower:.6g} and {top.upper:.6g}; a smaller "
            f"sharpness brings them closer"
        )
    if top.upper == math.inf:
        return (
            "the shape of the unit is not known, so that the largest value over "
            "neurons is the one that ascent has found"
        )
    return (
        f"the maximum over neurons lies between {top.lower:.6g}, which was found, and "
        f"the proved bound {top.upper:.6g}; {top.advice}"
    )


# What a gap needs of a functional and of a network -----------------------------------


def one_risk(F: Functional) -> tuple[float, Risk]:
    """Return (c, risk) with F = c risk; raise Unsupported for another F."""
    terms = F.terms()
    if len(terms) != 1 or not isinstance(terms[0][1], Risk):
        others = [repr(term) for _, term in terms if not isinstance(term, Risk)]
        if len(others) == len(terms):
            msg = (
                f"a ball of networks bounds the risk of a network, and {F!r} holds "
                f"none; give meanfield.Risk(network, X, y), or take for this F "
                f"optimality.BoxDomain(lower, upper)"
            )
            raise Unsupported(msg)
        what = ", ".join(others) if others else "more than one risk"
        msg = (
            f"a gap over a ball of networks needs the risk of one network, or a "
            f"multiple, got beside it {what}; give the risk alone, or for a penalty on "
            f"the path norm use meanfield.fenchel_gap"
        )
        raise Unsupported(msg)
    return terms[0][0], check_risk(terms[0][1])


def check_risk(risk: Risk) -> Risk:
    """Return a risk; raise Unsupported if its class evaluates otherwise than `Risk`."""
    if (name := redefined(risk, Risk)) is not None:
        msg = (
            f"{type(risk).__name__}.{name} changes the risk, and a gap of networks is "
            f"known of Risk itself; write a multiple of one, c * Risk(...), or another "
            f"loss, Risk(..., loss=function, mixture='convex')"
        )
        raise Unsupported(msg)
    return risk


def check_network(
    network: Model, *, homogeneous: bool, linear: bool = True
) -> TwoLayer:
    """Return the network; raise unless a ball or a norm of its kind suits it.

    A ball is one of measures, in which the outputs are to be `linear`.
    """
    check_kind(network, TwoLayer, "network", cure="use TwoLayer('relu')")
    assert isinstance(network, TwoLayer)
    if (name := outputs_redefined(network)) is not None:
        msg = (
            f"{type(network).__name__}.{name} changes the outputs, and neurons are "
            f"bounded for TwoLayer itself; state other values in a meanfield.Unit, "
            f"TwoLayer(unit)"
        )
        raise Unsupported(msg)
    if homogeneous:
        kinks_of(network)
    if linear and network.scaling != "mean-field":
        msg = (
            f"in the scaling {network.scaling!r} the outputs are not linear in the "
            f"measure of neurons; use scaling='mean-field'"
        )
        raise Unsupported(msg)
    return network


def kinks_of(network: TwoLayer) -> tuple[float, float]:
    r"""Return :math:`(c_0, c_1)` with :math:`\varphi(t) = c_0 t + c_1 t^+`."""
    unit = network.activation
    if not isinstance(unit, Unit) or not unit.homogeneous:
        msg = (
            f"the path norm belongs to positively homogeneous units, and {network!r} "
            f"has none that is declared so; use TwoLayer('relu'), or a Unit with "
            f"homogeneous = True, or meanfield.VariationBall"
        )
        raise Unsupported(msg)
    left, right = unit(torch.tensor([-1.0, 1.0], dtype=torch.float64)).tolist()
    return -left, left + right


def size_of(
    network: TwoLayer, theta: Tensor, weights: Tensor, norm: str, *, inner: bool
) -> Tensor:
    """Return the path norm of neurons, or without inner weights the variation."""
    order = 1 if norm == "l1" else 2
    a, w = network.split(theta)
    sizes: Tensor = torch.linalg.vector_norm(a, order, dim=1)
    if inner:
        sizes = sizes * torch.linalg.vector_norm(w, order, dim=1)
    return weights @ sizes


def fitting(size: float, radius: float) -> tuple[str, str]:
    """Return a radius that holds a measure of a size, and a divisor that makes it fit.

    Both are rounded up, with a margin for the round-off of weights in float32.
    """
    enough = size * (1 + 1e-6)
    return at_least(enough, 9), at_least(enough / radius, 9)


def check_sharpness(sharpness: float) -> float:
    """Return the share as a float; raise ValueError unless it is in [0, 1)."""
    sharpness = positive(sharpness, "sharpness", or_zero=True)
    if sharpness >= 1:
        msg = f"sharpness is a share below 1 of the gap, got {sharpness:g}"
        raise ValueError(msg)
    return sharpness


def inner_weights(network: TwoLayer, mu: Measure) -> Tensor:
    """Return inner weights of the measure's neurons in float64, to start from."""
    return network.split(mu.points.detach())[1][:STARTS].double()
