r"""Gaps of networks over all measures of neurons with a bounded path norm."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from otflow._validation import check_kind, check_option, non_negative_int, positive
from otflow.functionals import Functional
from otflow.functionals.stated_terms import check_terms
from otflow.meanfield.cones import largest_on_sphere
from otflow.meanfield.kinks import EPS, Kinks, Level, Maximum, as_found
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.residuals import (
    NORMS,
    SHARPNESS,
    Residual,
    check_network,
    check_sharpness,
    fitting,
    gap_in_ball,
    inner_weights,
    kinks_of,
    one_risk,
    residual_of,
    size_of,
)
from otflow.meanfield.risk import Risk
from otflow.measures import Measure
from otflow.optimality import Domain, Gap

__all__ = ["BUDGET", "PathBall", "largest_neuron", "path_norm", "path_residual"]

# Most cones or boxes of inner weights, by default.
BUDGET = 20_000


def path_norm(network: TwoLayer, mu: Measure, norm: str = "l1") -> Tensor:
    r"""Return the path norm :math:`\int |a|\,|(w, b)|\,d\mu` of a measure of neurons.

    For a unit that is positively homogeneous, such as relu, it does not change if a
    neuron (a, w, b) becomes (a/c, c w, c b), and neither does the network
    :cite:p:`bach2017breaking`.

    Parameters
    ----------
    network : TwoLayer
        Neurons a phi(w.x + b). Its scaling is that of the norm, see the notes.
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
        If the unit is not homogeneous.

    See Also
    --------
    PathNorm : The same as a functional.
    barron_norm : The least path norm of networks through data.

    Notes
    -----
    The norm has the scaling of the outputs, so that it bounds them in each. Of N equal
    atoms it is the mean :math:`\frac1N\sum_i |a_i|\,|(w_i, b_i)|` in "mean-field", and
    the plain sum in "sum" :cite:p:`e2019priori`; in "ntk" the sum over
    :math:`\sqrt N`.

    Weight decay is at least the path norm "l2", as :math:`2xy \le x^2 + y^2`:

    .. math:: \tfrac12\int |a|^2 + |(w, b)|^2\,d\mu \ge \int |a|\,|(w, b)|\,d\mu,

    with equality for balanced neurons, :math:`|a| = |(w, b)|`, which
    ``metrics.symmetries.Scale().canonical`` makes of any neurons. So both penalties
    have the same least values, and a network of weight decay S lies in
    ``PathBall(S, "l2")``.

    Examples
    --------
    >>> import torch, otflow as of
    >>> network = of.meanfield.TwoLayer("relu")
    >>> mu = of.Particles(torch.tensor([[2.0, 3.0, -4.0], [0.0, 1.0, 1.0]]))
    >>> of.meanfield.path_norm(network, mu), of.meanfield.path_norm(network, mu, "l2")
    (tensor(7.), tensor(5.))
    """
    check_network(network, homogeneous=True, linear=False)
    check_kind(mu, Measure, "mu")
    check_option(norm, "norm", NORMS)
    return size_of(network, mu.points, network.masses(mu.weights), norm, inner=True)


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
    sharpness : float
        Share of the gap by which ``value`` may exceed ``found``, in [0, 1). The search
        ends there. With 0 it goes on to round-off.

    Attributes
    ----------
    radius, norm, budget, sharpness
        As above.

    Raises
    ------
    ValueError
        At the gap, if the path norm of the measure is above R.
    Unsupported, TypeError
        At the gap, if F is not the risk of a `TwoLayer` with a homogeneous `Unit`, or a
        multiple of one. In another scaling than "mean-field" such a risk is not convex
        along mixtures, and the kind of the gap is "none".
        A subclass of either that evaluates otherwise counts as none.

    See Also
    --------
    path_norm : The norm.
    fenchel_gap : The gap of a risk with the path norm as a penalty.

    Notes
    -----
    The sum in M is linear on each cone into which the hyperplanes :math:`w\cdot x_k + b
    = 0` cut the space. With one input and a bias the largest value on each cone is in
    closed form: time O(n log n), 1 to 5 velocities, and ``gap.value`` is sharp to
    round-off. In more dimensions simplicial cones are cut at these hyperplanes, the one
    of the largest upper bound first, until the bound on each makes ``value`` exceed
    ``found`` by at most the sharpness. By default that is 1 % of the gap: more digits
    cost several times as much and do not change what the gap tells. Each cone costs
    O(n d), and their number may grow like :math:`n^d`. With two inputs and a bias it is
    50 to 150. That takes 3 to 8 velocities of 1,000 data and neurons, and 40 of 100,
    which are 0.1 ms each. Where the budget ends first, and for more than 10 inner
    weights, a convex relaxation bounds M. The kind is "proved" nevertheless, and
    ``value - found`` tells what is lost. All is done in float64, and round-off is in
    ``value``. Where a number of the risk or of the gap overflows, the kind is "none".

    Networks are often trained with weight decay, which is at least the path norm
    "l2": see `path_norm`.

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
        self,
        radius: float,
        norm: str = "l1",
        *,
        budget: int = BUDGET,
        sharpness: float = SHARPNESS,
    ) -> None:
        self.radius = positive(radius, "radius")
        self.norm = check_option(norm, "norm", NORMS)
        self.budget = non_negative_int(budget, "budget", minimum=1)
        self.sharpness = check_sharpness(sharpness)

    def gap(self, F: Functional, mu: Measure, descend: int) -> Gap:
        factor, risk = one_risk(F)
        check_terms(F, mu)
        at = path_residual(risk, mu, self.norm)
        if at.overflow is not None:
            return at.overflow
        if at.size > self.radius * (1 + 64 * EPS):
            radius, divisor = fitting(at.size, self.radius)
            msg = (
                f"the path norm of the measure is {at.size:.9g}, above the radius "
                f"{self.radius:.9g} of the ball; take PathBall({radius}), or divide "
                f"the outer weights by {divisor}"
            )
            raise ValueError(msg)
        level = at.level(self.radius, self.sharpness)
        top = largest_neuron(at, mu, self.norm, self.budget, descend, level)
        return gap_in_ball(at, top, self.radius, factor, mu)

    def __repr__(self) -> str:
        norm = "" if self.norm == "l1" else f", {self.norm!r}"
        return f"PathBall({self.radius:g}{norm})"


def path_residual(risk: Risk, mu: Measure, norm: str) -> Residual:
    """Return the slopes of a risk at a measure, with its path norm."""
    network = check_network(risk.network, homogeneous=True)
    risk._check(mu)
    straight, bent = kinks_of(network)
    steep = max(abs(straight), abs(straight + bent))
    order = math.inf if norm == "l1" else 2
    z = risk._inputs.double()
    tall = steep * float(torch.linalg.vector_norm(z, order, dim=1).max())
    theta, weights = mu.points.detach().double(), mu.weights.detach().double()
    size = float(size_of(network, theta, weights, norm, inner=True))
    return residual_of(risk, mu.detach(), size, tall)


def largest_neuron(
    at: Residual, mu: Measure, norm: str, budget: int, ascents: int, level: Level
) -> Maximum:
    """Return the bracket of M on the unit sphere of inner weights."""
    # M is homogeneous in z and in q. Powers of two keep squares of them finite.
    wide, steep = (2.0 ** math.frexp(float(t.abs().max()))[1] for t in (at.z, at.q))
    g = Kinks(at.z / wide, at.q / steep, kinks_of(at.network), norm)
    unit = wide * steep

    def scaled(found: float) -> float:
        return level(found * unit) / unit

    top = largest_on_sphere(
        g,
        inner_weights(at.network, mu),
        budget=budget,
        ascents=ascents,
        level=as_found if level is as_found else scaled,
    )
    return replace(top, lower=top.lower * unit, upper=top.upper * unit)
