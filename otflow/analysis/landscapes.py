"""Energies along the mixture and along the geodesic of two measures: the landscape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otflow._typing import ArrayLike
from otflow._validation import check_finite, check_kind, check_option
from otflow.analysis.convexity import times_in
from otflow.functionals import Functional
from otflow.functionals.base import check_functional
from otflow.functionals.order import check_law
from otflow.measures import Measure
from otflow.metrics import geodesic

__all__ = ["Landscape", "landscape"]


@dataclass(frozen=True, eq=False)
class Landscape:
    r"""Energies :math:`F(\mu_t)` along two paths between the same ends.

    Parameters
    ----------
    times : Tensor, shape (m,)
        Times t in [0, 1], with both ends.
    mixture : Tensor, shape (m,)
        Energies of :math:`(1-t)\,\mu + t\,\nu`.
    geodesic : Tensor, shape (m,)
        Energies along the geodesic of :math:`W_2`.

    Attributes
    ----------
    times, mixture, geodesic
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> V = of.Potential(lambda x: (1 - x.square()).square().sum(-1))  # wells at +-1
    >>> a, b = (of.Particles(torch.tensor([[x]])) for x in (-1.0, 1.0))
    >>> view = of.analysis.landscape(V, a, b, times=3)
    >>> view.mixture, view.geodesic
    (tensor([0., 0., 0.]), tensor([0., 1., 0.]))
    >>> view.barrier("mixture"), view.barrier("geodesic")
    (0.0, 1.0)
    """

    times: Tensor
    mixture: Tensor
    geodesic: Tensor

    def __repr__(self) -> str:
        barriers = ", ".join(
            f"{path} {self.barrier(path):.4g}" for path in ("mixture", "geodesic")
        )
        return (
            f"Landscape({len(self.times)} times, from {float(self.mixture[0]):.4g} to "
            f"{float(self.mixture[-1]):.4g}; barriers: {barriers})"
        )

    def barrier(self, path: str) -> float:
        r"""Return :math:`\max_t F(\mu_t) - ((1-t)\,F(\mu) + t\,F(\nu))`, at least 0.

        It is the height of the path above the straight line between its ends, over the
        recorded times: a lower bound of that over all times.

        Parameters
        ----------
        path : str
            "mixture" or "geodesic".

        Returns
        -------
        float
            In the units of F. It is 0 along mixtures if F is convex along them, up to
            round-off.

        Raises
        ------
        ValueError
            If the path is another.
        """
        # Half of each number: the difference of two ends may be too large a number.
        half = self._values(path) / 2
        line = torch.lerp(half[0], half[-1], self.times)
        return max(0.0, 2 * float((half - line).max()))

    def climb(self, path: str) -> float:
        r"""Return :math:`\max_{s < t} F(\mu_t) - F(\mu_s)`, at least 0.

        It is 0 if the energy never rises along the path from the first end to the
        second. Along mixtures it is 0 if F is convex and the second end a minimiser.
        Then no measure lies in a spurious valley.

        Parameters
        ----------
        path : str
            "mixture" or "geodesic".

        Returns
        -------
        float
            In the units of F, over the recorded times.

        Raises
        ------
        ValueError
            If the path is another.
        """
        values = self._values(path)
        return float((values - values.cummin(0).values).max())

    def _values(self, path: str) -> Tensor:
        known = {"mixture": self.mixture, "geodesic": self.geodesic}
        return known[check_option(path, "path", known)]


def landscape(
    F: Functional,
    mu: Measure,
    nu: Measure,
    *,
    times: int | Sequence[float] | ArrayLike = 21,
) -> Landscape:
    r"""Return the energies on the way from `mu` to `nu`, by mixtures and by transport.

    A convex F, such as the risk of a two-layer network in the scaling "mean-field" with
    a convex loss, has no barrier along mixtures: :math:`F((1-t)\,\mu + t\,\nu) \le
    (1-t)\,F(\mu) + t\,F(\nu)`. Towards a minimiser it never rises. So the landscape
    over all measures has no spurious valley :cite:p:`yang2020meanfield`. N neurons
    cannot follow a mixture, which needs twice as many; they move along the geodesic,
    where the risk may have a barrier.

    Parameters
    ----------
    F : Functional
        The functional.
    mu, nu : Measure
        The ends: both `Particles`, or densities on one grid.
    times : int, or sequence of float, Tensor or ndarray of shape (m,)
        Number of equidistant times in [0, 1], three at least, or increasing times of
        which the first is 0 and the last 1.

    Returns
    -------
    Landscape
        The energies, of the dtype and on the device of the measures, without a graph.

    Raises
    ------
    ValueError
        If the times do not run from 0 to 1, or the dimensions differ.
    Unsupported
        If the measures do not mix, as two Gaussians; if F reads atoms by their index.
    NonFinite
        If an energy is not finite.
    TypeError
        If F is no functional, or the kinds or dtypes differ.

    See Also
    --------
    mixture_convexity : The curvature along mixtures.
    displacement_convexity : The curvature along geodesics.
    otflow.metrics.aligned_networks : Ends matched up to the symmetries of a neuron.

    Notes
    -----
    Cost: 2m values of F, and one optimal plan.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.linspace(-1, 1, 9)[:, None]
    >>> risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, X[:, 0].tanh())
    >>> exact, same = torch.tensor([[1.0, 1, 0]]), torch.tensor([[-1.0, -1, 0]])
    >>> view = of.analysis.landscape(risk, of.Particles(exact), of.Particles(same))
    >>> view.barrier("mixture") < 1e-6 < 0.1 < view.barrier("geodesic")
    True
    """
    check_functional(F)
    check_law(F, "a mixture", "use displacement_convexity")
    for name, end in (("mu", mu), ("nu", nu)):
        check_kind(end, Measure, name)
    mu, nu = mu.detach(), nu.detach()
    # In double precision: torch.linspace ends at 1 to the bit there.
    t = times_in(times)
    if (float(t[0]), float(t[-1])) != (0.0, 1.0):
        msg = f"times must run from 0 to 1, got {float(t[0]):g} to {float(t[-1]):g}"
        raise ValueError(msg)
    shares = t.tolist()
    mixed = [mu.mix(nu, s) for s in shares]
    # The ends are those of the other path, to the bit.
    start: Any = mu  # of whatever kind: geodesic says which it takes
    between: tuple[Measure, ...] = geodesic(start, nu, shares[1:-1])
    moved = [mu, *between, nu]
    energies = []
    for path in (mixed, moved):
        with torch.no_grad():
            values = torch.stack([F.value(one) for one in path])
        check_finite(values, "the functional's value")
        energies.append(values)
    return Landscape(t.to(mu.device, energies[0].dtype), *energies)
