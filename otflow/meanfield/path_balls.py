r"""Gaps of networks over all measures of neurons with a bounded path norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._validation import check_kind, check_option, non_negative_int, positive
from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.meanfield.cones import Kinks, SphereMaximum, largest_on_sphere
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.network import Network
from otflow.meanfield.risk import Risk
from otflow.meanfield.units import Unit
from otflow.measures import Measure
from otflow.optimality import Domain, Gap, GapKind

__all__ = ["PathBall", "path_norm"]

NORMS = ("l1", "l2")
BUDGET = 20_000
EPS = torch.finfo(torch.float64).eps


def path_norm(network: TwoLayer, mu: Measure, norm: str = "l1") -> Tensor:
    r"""Return the path norm :math:`\int |a|\,|(w, b)|\,d\mu` of a measure of neurons.

    For a unit that is positively homogeneous, such as relu, it does not change if a
    neuron (a, w, b) becomes (a/c, c w, c b), and neither does the network
    :cite:p:`bach2017breaking`.

    Parameters
    ----------
    network : TwoLayer
        Neurons a phi(w.x + b), in the scaling "mean-field".
    mu : Measure
        Measure of neurons.
    norm : str
        "l1" or "l2", of the outer weights and of the inner ones. In the first case it
        is the sum over all paths from an input to an output.

    Returns
    -------
    Tensor
        0-d, with the graph of the measure.

    Raises
    ------
    Unsupported
        If the unit is not homogeneous, or the scaling is not "mean-field".

    Examples
    --------
    >>> import torch, otflow as of
    >>> network = of.meanfield.TwoLayer("relu")
    >>> mu = of.Particles(torch.tensor([[2.0, 3.0, -4.0], [0.0, 1.0, 1.0]]))
    >>> of.meanfield.path_norm(network, mu), of.meanfield.path_norm(network, mu, "l2")
    (tensor(7.), tensor(5.))
    """
    check_network(network)
    check_option(norm, "norm", NORMS)
    return _norm(network, mu.points, mu.weights, norm)


class PathBall(Domain):
    r"""All measures of neurons with a path norm :math:`\int|a|\,|(w,b)|\,d\mu \le R`.

    The first variation of a `Risk` is linear in the outer weight a, so it is unbounded
    from below over all neurons, and a gap over all measures is infinite unless the
    residual is 0. Over a ball of the path norm the gap is finite. Let :math:`f_\mu =
    \int a\,\varphi(w\cdot x + b)\,d\mu` with :math:`\varphi` positively homogeneous,
    and :math:`q_k = \ell'(f_\mu(x_k), y_k)/n`. For a convex loss, :math:`F(\nu) \ge
    F(\mu) + \sum_k q_k\,(f_\nu(x_k) - f_\mu(x_k))`. A neuron is :math:`|(w, b)|` times
    one on the unit sphere, so :math:`\sum_k q_k f_\nu(x_k) \ge -\int |a|\,|(w,b)|\,d\nu
    \cdot M`, and

    .. math:: F(\mu) - \inf_\nu F(\nu) \le \sum_k q_k f_\mu(x_k) + R\,M, \qquad
        M = \max_{|(w, b)| = 1} \Bigl|\sum_k q_k\,\varphi(w\cdot x_k + b)\Bigr|.

    With several outputs :math:`|a|` is the same norm of the outer weights, and the
    modulus in M its dual norm. The right-hand side vanishes if and only if
    :math:`\mu` is optimal. The maximum M is a hard problem in many dimensions
    :cite:p:`bach2017breaking`.

    Parameters
    ----------
    radius : float
        The radius R > 0, in the units of the path norm.
    norm : str
        "l1" or "l2", of outer and of inner weights.
    budget : int
        Most cones of inner weights in which M is bounded.

    Attributes
    ----------
    radius, norm, budget
        As above.

    Raises
    ------
    ValueError
        At the gap, if the path norm of the measure is above R.
    Unsupported
        At the gap, if F is not the risk of a `TwoLayer` with a homogeneous `Unit` and
        the scaling "mean-field", or a multiple of one.

    See Also
    --------
    path_norm : The norm.
    fenchel_gap : The gap of a risk with the path norm as a penalty.

    Notes
    -----
    The sum in M is linear on each cone into which the hyperplanes :math:`w\cdot x_k + b
    = 0` cut the space. Simplicial cones are cut at these hyperplanes, the one of the
    largest upper bound first, until no cone may hold a larger value than the largest
    found. Then ``gap.value`` is sharp to round-off. With one input and a bias this ends
    after O(n) cones at most; each costs O(n). In more dimensions the number grows like
    :math:`n^d`, and the budget may end first. The kind is "proved" nevertheless: the
    bounds of all cones that are left are true, and ``value - found`` tells what is
    lost. All is done in float64, and round-off is in ``value``.

    ``argmin`` is the neuron that is best to add: (a, w, b) with :math:`|(w,b)| = 1` and
    :math:`|a| = R`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    >>> risk = of.meanfield.Risk(of.meanfield.TwoLayer("relu"), X, X[:, 0].relu())
    >>> ball = of.meanfield.PathBall(1.0)
    >>> best = of.Particles(torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64))
    >>> gap = of.optimality.optimality_gap(risk, best, ball)
    >>> gap.kind, gap.value < 1e-12
    ('proved', True)
    >>> half = of.Particles(torch.tensor([[0.5, 1.0, 0.0]], dtype=torch.float64))
    >>> gap = of.optimality.optimality_gap(risk, half, ball)
    >>> [round(t, 4) for t in (float(risk.value(half)), gap.value)]
    [0.026, 0.0868]
    """

    def __init__(
        self, radius: float, norm: str = "l1", *, budget: int = BUDGET
    ) -> None:
        self.radius = positive(radius, "radius")
        self.norm = check_option(norm, "norm", NORMS)
        self.budget = non_negative_int(budget, "budget", minimum=1)

    def gap(self, F: Functional, mu: Measure, descend: int) -> Gap:
        factor, risk = one_risk(F)
        found = residual_of(risk, mu, self.norm)
        if found.path_norm > self.radius * (1 + 64 * EPS):
            msg = (
                f"the path norm of the measure is {found.path_norm:.9g}, above the "
                f"radius {self.radius:.9g} of the ball; take PathBall("
                f"{found.path_norm * (1 + 1e-6):.9g}), or divide the outer weights by "
                f"{found.path_norm / self.radius:.9g}"
            )
            raise ValueError(msg)
        top = found.largest(mu, self.budget, descend)
        value = found.product + self.radius * top.upper + found.slack(self.radius)
        least = max(found.product + self.radius * top.lower, 0.0)
        place = found.neuron(top, self.radius).to(mu.points)
        return Gap(
            factor * max(value, least),
            place,
            GapKind.PROVED,
            reason_of(top),
            factor * least,
        )

    def __repr__(self) -> str:
        norm = "" if self.norm == "l1" else f", {self.norm!r}"
        return f"PathBall({self.radius:g}{norm})"


@dataclass(frozen=True, eq=False)
class Residual:
    r"""The slopes of a risk at a measure, in float64, and what follows from them."""

    network: TwoLayer
    z: Tensor  # (n, q), rows (x_k, 1)
    y: Tensor
    f: Tensor  # (n,) or (n, m), without the offset
    value: float
    q: Tensor  # (n, m)
    slopes: Tensor  # n q, in the shape of f
    norm: str
    path_norm: float
    error: float  # of each entry of n q

    @property
    def product(self) -> float:
        """The sum of q f."""
        return float((self.q * self.f.reshape(self.q.shape)).sum())

    def slack(self, radius: float) -> float:
        """Return the round-off of the sum of q f, and of q in a ball."""
        tall = float(self.z.abs().amax())
        if self.norm == "l2":
            tall = float(self.z.norm(dim=1).max())
        n, m = self.q.shape
        reach = (radius + self.path_norm) * tall * (m if self.norm == "l1" else m**0.5)
        sums = (n + m + 8) * EPS * float((self.q * self.f.reshape(n, m)).abs().sum())
        return self.error * reach + sums

    def largest(self, mu: Measure, budget: int, ascents: int) -> SphereMaximum:
        """Return the bracket of M."""
        unit = kinks_of(self.network)
        g = Kinks(self.z, self.q, unit, self.norm)
        inner = self.network.split(mu.points.detach())[1].to(self.z)
        return largest_on_sphere(g, inner[:256], budget=budget, ascents=ascents)

    def neuron(self, top: SphereMaximum, size: float) -> Tensor:
        """Return the neuron (a, w, b) that lowers F most."""
        return torch.cat([-size * top.direction, top.place])


def residual_of(risk: Risk, mu: Measure, norm: str) -> Residual:
    """Return the slopes of a risk at a measure, computed in float64."""
    network = check_network(risk.network)
    risk._check(mu)
    z = risk._inputs.double()
    theta, weights = mu.points.detach().double(), mu.weights.detach().double()
    y = risk.y.double() if risk.y.is_floating_point() else risk.y
    with torch.no_grad():
        f = network.evaluate(z, theta, weights)
        total, slopes = risk._loss.total_and_slope(f, y)
        known = float(_norm(network, theta, weights, norm))
    n = len(z)
    bare = f if network.offset is None else f - f.new_tensor(network.offset)
    tall = float(z.norm(dim=1).max())
    size = float(f.abs().max()) + float(slopes.abs().max()) + 1
    error = EPS * ((len(theta) + z.shape[1] + 8) * known * tall + 16 * size)
    return Residual(
        network,
        z,
        y,
        bare,
        float(total) / n,
        slopes.reshape(n, -1) / n,
        slopes,
        norm,
        known,
        error,
    )


def _norm(network: TwoLayer, theta: Tensor, weights: Tensor, norm: str) -> Tensor:
    order = 1 if norm == "l1" else 2
    outer, inner = network.split(theta)
    length = torch.linalg.vector_norm
    return weights @ (length(outer, order, dim=1) * length(inner, order, dim=1))


def reason_of(top: SphereMaximum) -> str:
    """Return how the maximum over neurons was bounded."""
    if top.closed:
        return "the maximum over neurons is bounded on all cones of inner weights"
    return (
        f"the maximum over neurons lies between {top.lower:.6g}, which was found, and "
        f"the bound {top.upper:.6g} of the cones that are left; a larger budget brings "
        f"them closer"
    )


def one_risk(F: Functional) -> tuple[float, Risk]:
    """Return (c, risk) with F = c risk; raise Unsupported for another F."""
    terms = F.terms()
    if len(terms) != 1 or not isinstance(terms[0][1], Risk):
        others = [repr(term) for _, term in terms if not isinstance(term, Risk)]
        what = ", ".join(others) if others else "more than one risk"
        msg = (
            f"a gap over a ball of the path norm needs the risk of one network, or a "
            f"multiple, got beside it {what}; give the risk alone, or for a penalty on "
            f"the path norm use meanfield.fenchel_gap"
        )
        raise Unsupported(msg)
    return terms[0][0], terms[0][1]


def check_network(network: Network) -> TwoLayer:
    """Return the network; raise Unsupported unless a path norm suits it."""
    cure = "use TwoLayer('relu')"
    check_kind(network, TwoLayer, "network", cure=cure)
    assert isinstance(network, TwoLayer)
    kinks_of(network)
    if network.scaling != "mean-field":
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
            f"homogeneous = True"
        )
        raise Unsupported(msg)
    left, right = unit(torch.tensor([-1.0, 1.0], dtype=torch.float64)).tolist()
    return -left, left + right
