r"""The path norm of a network as a functional, and measures of one size of neurons."""

from __future__ import annotations

import torch

from otflow._validation import check_kind, check_option
from otflow.errors import Unsupported
from otflow.functionals import Potential
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.path_balls import path_norm
from otflow.meanfield.penalties import NeuronNorm
from otflow.meanfield.residuals import NORMS, check_network, kinks_of
from otflow.measures import Measure, Particles

__all__ = ["PathNorm", "reweight_to_constant"]


class PathNorm(Potential):
    r"""The path norm of a network, :math:`F(\mu) = \int |a|\,|(w, b)|\,d\mu`.

    It is `path_norm` as a functional, with first variation, velocity and proximal map,
    for the network's number of outputs and with or without a bias
    :cite:p:`e2022barron`. `PathPenalty` is the same for one output, without the
    network.

    Parameters
    ----------
    network : TwoLayer
        Neurons a phi(w.x + b) of a homogeneous unit, in the scaling "mean-field".
    norm : str
        "l1" or "l2", of the outer weights and of the inner ones.

    Attributes
    ----------
    network, norm
        As above.
    V, prox, convexity
        As of a `Potential`.

    Raises
    ------
    Unsupported
        If the unit is not homogeneous, or the scaling is not "mean-field".
    ValueError
        From the value, if the points do not fit the network; from a step, if
        :math:`\tau`, dt times the factor of the penalty, is not below
        :math:`1/\sqrt{m q}` in "l1" and 1 in "l2", for m outer and q inner weights.

    See Also
    --------
    path_norm : The number alone, in the scaling "sum" too.
    PathPenalty : The formula of the proximal map.

    Notes
    -----
    It is :math:`-\sqrt{mq}`-convex in "l1" and -1-convex in "l2". In "l2" half the
    weight decay, :math:`\tfrac12\int |a|^2 + |(w, b)|^2\,d\mu`, has the same least
    value over the neurons (a/c, c w, c b), so networks trained with either have the
    same least objective. For several outputs the map in "l1" finds :math:`t = |a|_1` by
    halvings. It costs O(60 n p) then, and as for `PathPenalty` else.

    Examples
    --------
    >>> import torch, otflow as of
    >>> network = of.meanfield.TwoLayer("relu", outputs=2)
    >>> F = of.meanfield.PathNorm(network, "l2")
    >>> mu = of.Particles(torch.tensor([[3.0, 4.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]]))
    >>> F.value(mu), F.first_variation(mu)
    (tensor(2.5000), tensor([5., 0.]))
    >>> F.proximal(mu.points, 0.1)
    tensor([[2.9697, 3.9596, 0.5051, 0.0000],
            [0.0000, 0.0000, 1.0000, 1.0000]])
    """

    _fixed = frozenset({"V", "network", "norm"})

    def __init__(self, network: TwoLayer, norm: str = "l1") -> None:
        self.network = check_network(network, homogeneous=True)
        self.norm = check_option(norm, "norm", NORMS)
        size = NeuronNorm(self.norm, network.outputs or 1)
        super().__init__(size, prox=size.prox)

    @property
    def _size(self) -> NeuronNorm:
        return NeuronNorm(self.norm, self.network.outputs or 1)

    def modulus(self, dim: int) -> float | None:
        return -self._size.curvature(dim)

    def why_modulus(self, dim: int) -> str:
        return "as (|a| + |w|)^2 is convex"

    def __repr__(self) -> str:
        return f"PathNorm({self.network!r}, {self.norm!r})"


def reweight_to_constant(network: TwoLayer, mu: Measure, norm: str = "l1") -> Particles:
    r"""Return neurons of the same outputs that all have one size :math:`|a|\,|(w, b)|`.

    Let P be the path norm, and :math:`s_i = |a_i|\,|(w_i, b_i)|`. The neurons

    .. math:: \Bigl(\frac{P}{s_i}\,a_i, w_i, b_i\Bigr)
        \quad\text{of the masses}\quad \frac{s_i}P\,m_i

    have the size P each and the outputs of :math:`\mu`. So the norms :math:`(\int
    |a|^p\,|(w, b)|^p\,d\mu)^{1/p}` of all :math:`p \in [1, \infty]` have one least
    value over the measures that represent a function: the Barron norm does not depend
    on p :cite:p:`e2022barron`.

    Parameters
    ----------
    network : TwoLayer
        Neurons of a homogeneous unit, in the scaling "mean-field".
    mu : Measure
        Measure of neurons, of path norm > 0.
    norm : str
        "l1" or "l2", of outer and of inner weights.

    Returns
    -------
    Particles
        The neurons of positive size and mass, with the graph of the measure.

    Raises
    ------
    Unsupported
        If the unit is not homogeneous: then the path norm is no norm of the function.
        Also if the scaling is not "mean-field".
    ValueError
        If the path norm is 0.

    See Also
    --------
    path_norm : The norm P.
    otflow.metrics.symmetries.Scale : Neurons with :math:`|a| = |(w, b)|`, of the same
        masses.

    Examples
    --------
    >>> import torch, otflow as of
    >>> network = of.meanfield.TwoLayer("relu")
    >>> mu = of.Particles(torch.tensor([[1.0, 2.0, -1.0], [5.0, 1.0, 0.0]]))
    >>> nu = of.meanfield.reweight_to_constant(network, mu)
    >>> nu.points, nu.weights
    (tensor([[ 1.3333,  2.0000, -1.0000],
            [ 4.0000,  1.0000,  0.0000]]), tensor([0.3750, 0.6250]))
    >>> X = torch.tensor([[0.25], [1.0]])
    >>> network(mu, X), network(nu, X)
    (tensor([0.6250, 3.0000]), tensor([0.6250, 3.0000]))
    """
    if isinstance(network, TwoLayer):
        _check_unit(network)
    check_network(network, homogeneous=True)
    check_kind(mu, Measure, "mu")
    check_option(norm, "norm", NORMS)
    sizes = NeuronNorm(norm, network.outputs or 1)(mu.points)
    total = path_norm(network, mu, norm)
    keep = (sizes > 0) & (mu.weights > 0)
    if not bool(keep.any()):
        msg = (
            "all neurons have the size |a| |(w, b)| = 0, so that no masses make them "
            "of one size; the network is 0: leave it as it is, or give other neurons"
        )
        raise ValueError(msg)
    a, inner = network.split(mu.points[keep])
    factor = total / sizes[keep]
    masses = mu.weights[keep] / factor
    theta = torch.cat([factor[:, None] * a, inner], dim=1)
    return Particles(theta, masses, normalize=True)


def _check_unit(network: TwoLayer) -> None:
    """Raise Unsupported, with a cure of its own, for a unit that is not homogeneous."""
    try:
        kinks_of(network)
    except Unsupported as error:
        msg = (
            f"neurons keep their outputs under new masses, but only with a positively "
            f"homogeneous unit do their sizes mean a norm of the function, and "
            f"{network!r} has none that is declared so; use TwoLayer('relu'), or a "
            f"Unit with homogeneous = True"
        )
        raise Unsupported(msg) from error
