"""How fast each layer of a network lowers the energy along a flow."""

from __future__ import annotations

from torch import Tensor

from otflow._validation import check_kind, non_negative_int
from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.functionals.base import check_functional
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.network import Network
from otflow.meanfield.population import PopulationRisk
from otflow.meanfield.risk import Risk
from otflow.measures import Particles

__all__ = ["layer_dissipation"]


def layer_dissipation(
    F: Functional, mu: Particles, *, outputs: int | None = None
) -> tuple[Tensor, Tensor]:
    r"""Return the outer and the inner part of :math:`-\frac{d}{dt}F = \int|v|^2\,d\mu`.

    For neurons :math:`\theta = (a, w)` and the risk of outputs f the parts are

    .. math:: \int\bigl|E_x[\ell'(f)\,\varphi(w\cdot x)]\bigr|^2 d\mu, \qquad
        \int\bigl|E_x[\ell'(f)\,a\,\varphi'(w\cdot x)\,x]\bigr|^2 d\mu .

    If the outer part is 0 and the inner weights have full support, then the residual
    :math:`\ell'(f)` is orthogonal to every neuron, and :math:`\mu` is a minimiser:
    the argument for global convergence :cite:p:`chizat2018global`. The converse needs
    no support: at a minimiser both parts are 0. Beside few neurons a plateau has both
    parts near 0 as well.

    Parameters
    ----------
    F : Functional
        The risk, and what is added to it.
    mu : Particles
        Neurons, points (N, p).
    outputs : int, optional
        Number m of outer weights, the first coordinates of a neuron; by default that of
        the `TwoLayer` network of F, and else 1.

    Returns
    -------
    outer, inner : Tensor
        0-d; their sum is the dissipation of F at `mu`.

    Raises
    ------
    ValueError
        If a neuron has no more than m numbers, or if a `TwoLayer` network of F has
        another number of outputs.
    Unsupported
        If `outputs` is not given and a network of F is no integral over neurons: then
        nothing says which coordinates are outer weights.

    See Also
    --------
    otflow.analysis.dissipation : The sum, for every kind of measure.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.tensor([[1.0, 2.0, 2.0]]))
    >>> of.meanfield.layer_dissipation(F, mu)
    (tensor(1.), tensor(8.))
    """
    check_functional(F)
    check_kind(mu, Particles, "mu")
    known = [m for _, term in F.terms() if (m := _outer_weights(term)) is not None]
    if outputs is None:
        _check_neurons(F)
        outputs = known[0] if known else 1
    m = non_negative_int(outputs, "outputs", minimum=1)
    if any(own != m for own in known):
        msg = (
            f"outputs = {m} outer weights, and the networks of F have {known}; leave "
            f"outputs out, or take the parts of each risk alone"
        )
        raise ValueError(msg)
    if mu.dim <= m:
        cure = (
            f"take outputs={mu.dim - 1} or less"
            if mu.dim > 1
            else "take analysis.dissipation(F, mu), which is not split"
        )
        msg = (
            f"a neuron has {m} outer weights and one inner weight or more, got points "
            f"of dimension {mu.dim}; {cure}"
        )
        raise ValueError(msg)
    squares = F.velocity(mu).square()
    outer, inner = squares[:, :m].sum(1), squares[:, m:].sum(1)
    return mu.weights @ outer, mu.weights @ inner


def _check_neurons(F: Functional) -> None:
    """Raise Unsupported if the particles of a risk need not be neurons (a, w)."""
    for _, term in F.terms():
        if isinstance(term, Risk) and not isinstance(term.network, Network):
            msg = (
                f"the particles of {term.network!r} need not begin with outer weights; "
                f"split the dissipation by coordinates, mu.weights @ "
                f"F.velocity(mu).square(), or give outputs=m for the first m of them"
            )
            raise Unsupported(msg)


def _outer_weights(term: Functional) -> int | None:
    """Return the number of outer weights of a neuron, if a term says so."""
    if isinstance(term, PopulationRisk):
        return 1
    if isinstance(term, Risk) and isinstance(term.network, TwoLayer):
        return term.network.outputs or 1
    return None
