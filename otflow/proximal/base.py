"""What a proximal solver is: one minimisation, with its certificate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from otflow._validation import check_kind, positive
from otflow._warn import warn
from otflow.errors import Unsupported
from otflow.functionals.base import Functional, check_functional
from otflow.measures import GridDensity, Measure
from otflow.proximal.certificate import WORDS, Certificate

__all__ = [
    "ProxResult",
    "ProximalSolver",
    "may_cross_obstacles",
    "solved",
]

M = TypeVar("M", bound=Measure)


@dataclass(frozen=True, eq=False, init=False)
class ProxResult(Generic[M]):
    r"""The measure that a proximal step reaches, with the certificate of the step.

    Parameters
    ----------
    measure : Measure
        The minimiser found.
    warm : object
        State that the solver takes back at the next step, or None.
    iterations, residual : optional
        Deprecated: give both to `certify`.
    certificate : Certificate
        What is proved of the step. Make it by ``otflow.proximal.certificate.certify``.
        A mapping that holds all words of a certificate is accepted.

    Attributes
    ----------
    measure, warm, certificate
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    >>> mu = of.Particles(torch.tensor([[2.0], [4.0]], dtype=torch.float64))
    >>> result = of.proximal.ParticleProximal().solve(F, mu, 1.0)
    >>> result.certificate.guarantee
    'exact'
    """

    measure: M
    warm: Any
    certificate: Certificate

    def __init__(
        self,
        measure: M,
        warm: Any = None,
        iterations: int | None = None,
        residual: float | None = None,
        certificate: Any = None,
    ) -> None:
        if iterations is not None or residual is not None:
            msg = (
                "ProxResult reads iterations and residual from its certificate; make "
                "it as ProxResult(measure, warm, certificate=certify(iterations=..., "
                "residual=..., ...))"
            )
            warn(msg, DeprecationWarning)
            own = {"iterations": iterations, "residual": residual}
            certificate = {**own, **certificate, "iterations": iterations}
        self.__dict__.update(measure=measure, warm=warm, certificate=certificate)

    @property
    def iterations(self) -> int:
        """The ``iterations`` of the certificate."""
        return int(self.certificate["iterations"])

    @property
    def residual(self) -> float:
        """The ``residual`` of the certificate."""
        return float(self.certificate["residual"])


class ProximalSolver(ABC, Generic[M]):
    r"""Solves :math:`\operatorname{argmin}_\nu F(\nu) + W_2^2(\mu, \nu) / (2\,dt)`.

    A representation has one solver or several. The scheme `JKO` calls the solver.

    Attributes
    ----------
    flat : bool
        Whether :math:`W_2` is Euclidean in the tangents of the representation. Then
        tangents may be added, as the stages of ``JKO(order=2)`` do.
    carries_order_2 : bool
        Whether ``JKO(order=2)`` has order 2 in time with this solver.
    moves_straight : bool
        Whether mass moves along straight lines. The solvers on grids that move it so
        raise where these lines may meet an obstacle.

    See Also
    --------
    otflow.JKO : The scheme.

    Examples
    --------
    >>> import otflow as of
    >>> isinstance(of.proximal.ParticleProximal(), of.proximal.ProximalSolver)
    True
    """

    flat: bool = False
    carries_order_2: bool = True
    moves_straight: bool = False

    def adds_tangents(self, mu: M) -> bool:
        """Return whether steps from `mu` may add tangents of other steps: `flat`."""
        return self.flat

    @abstractmethod
    def solve(self, F: Functional, mu: M, dt: float, warm: Any = None) -> ProxResult[M]:
        r"""Return the proximal step of length `dt` from `mu`.

        .. math:: \nu = \operatorname{argmin}_\nu F(\nu) + \frac{W_2^2(\mu, \nu)}{2\,dt}

        A solve that does not converge returns the measure where it stopped, and
        ``certificate.converged`` is False.

        Parameters
        ----------
        F : Functional
            The functional to minimise.
        mu : Measure
            The measure to step from.
        dt : float
            Length of the step in time, > 0.
        warm : object, optional
            ``ProxResult.warm`` of an earlier step. It may save iterations. A solver
            ignores what it cannot use.

        Returns
        -------
        ProxResult
            The new measure, the state for the next step and the certificate.

        Raises
        ------
        Unsupported
            If the solver has no step from this kind of measure, if F has a term
            without a step there (an entropy on particles, a bound on the density of
            a Gaussian), or if `mu` carries a graph of automatic differentiation.
        ValueError
            If `dt` is not positive, or F has no minimum: an entropy has a negative
            factor, or mass 1 does not fit below a bound on the density.
        NonFinite
            If F is infinite at `mu`.
        Diverged
            If the iteration leaves the finite numbers; the error carries `mu`.
        """

    def state_dict(self, warm: Any) -> Any:
        """Return a warm start as plain data; by default the warm start itself.

        Plain data are what `Scheme.state_dict` says. A solver whose warm start holds F,
        a function or an object of its own overrides this method and `load_state`.

        Parameters
        ----------
        warm : object
            ``ProxResult.warm`` of a step, or None.

        Returns
        -------
        object
            The plain data.
        """
        return warm

    def load_state(self, F: Functional, mu: M, kept: Any) -> Any:
        """Return the warm start of which `state_dict` made plain data.

        A step from that warm start equals to the bit the step from the warm start
        itself.

        Parameters
        ----------
        F : Functional
            What the flow minimises.
        mu : Measure
            Where the flow goes on.
        kept : object
            The plain data.

        Returns
        -------
        object
            The `warm` of the next call of `solve`.
        """
        return kept

    def _admit(self, F: Functional, mu: Measure, dt: float, kind: type[Any]) -> float:
        """Return dt as a float; raise if F, mu or dt cannot be stepped."""
        check_functional(F)
        dt = positive(dt, "dt")
        if not isinstance(mu, kind):
            name = kind.__name__ if kind.__name__[-1] == "s" else f"a {kind.__name__}"
            msg = (
                f"{type(self).__name__} steps {name}, got {type(mu).__name__}; use "
                f"JKO() without a solver to get the representation's own"
            )
            raise Unsupported(msg)
        mu.refuse_graph(
            "a proximal step",
            "it is solved by iteration, and its derivative is not there",
            cure="mu.detach(), or a step that keeps it: that of ExplicitEuler(), or "
            "on a grid GridSinkhorn().differentiable_step",
        )
        if self.moves_straight and may_cross_obstacles(mu):
            msg = (
                f"{type(self).__name__} moves mass along straight lines, which may "
                f"cross an obstacle of this grid; use JKO(FiniteVolume()), which JKO() "
                f"takes by itself"
            )
            raise Unsupported(msg)
        return dt

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if k[0] != "_")
        return f"{type(self).__name__}({values})"


def solved(
    solver: ProximalSolver[Any], F: Functional, mu: Measure, dt: float, warm: Any = None
) -> ProxResult[Any]:
    """Return a solver's result; raise `TypeError` if it is not complete.

    A solver may be the user's own. Schemes read every word of its certificate.
    """
    result = solver.solve(F, mu, dt, warm=warm)
    name = type(solver).__name__
    check_kind(result, ProxResult, f"what {name}.solve returns")
    check_kind(result.measure, Measure, f"the measure of {name}'s result")
    check_kind(result.certificate, Mapping, f"the certificate of {name}")
    said = set(result.certificate)
    missing = [word for word in WORDS if word not in said]
    if missing:
        msg = (
            f"the certificate of {name} lacks {', '.join(missing)}; make it by "
            f"otflow.proximal.certificate.certify(...), which derives every word"
        )
        raise TypeError(msg)
    if isinstance(result.certificate, Certificate):
        return result
    # A plain mapping may leave dt out; the decrease cannot be derived without it.
    known = Certificate.of({"dt": dt, **result.certificate})
    return replace(result, certificate=known)


def may_cross_obstacles(mu: Measure) -> bool:
    """Return whether a straight line between free cells may meet an obstacle.

    No line does if the free cells fill a box, which is convex. Only a grid has cells.
    """
    if not isinstance(mu, GridDensity) or bool(mu.is_free.all()):
        return False
    cells = mu.is_free.reshape(mu.shape).nonzero()
    sides = cells.amax(0) - cells.amin(0) + 1
    return int(sides.prod()) != len(cells)
