"""What a proximal solver is: one minimisation, with its certificate."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from otflow._validation import check_kind, positive
from otflow.errors import Unsupported
from otflow.functionals.base import Functional, check_functional
from otflow.measures import GridDensity, Measure
from otflow.proximal.certificate import WORDS, Certificate

__all__ = [
    "ProxResult",
    "ProximalSolver",
    "may_cross_obstacles",
    "refuse_obstacles",
    "solved",
]

M = TypeVar("M", bound=Measure)


@dataclass(frozen=True, eq=False, init=False)
class ProxResult(Generic[M]):
    r"""A proximal step and what is known of it.

    Parameters
    ----------
    measure : Measure
        The minimiser found.
    warm : object
        What the solver wants back at the next step.
    iterations, residual : optional
        Former places of two words of the certificate: give them to `certify`.
    certificate : Certificate
        What was proved, made by ``otflow.proximal.certificate.certify``; a mapping
        that holds all its words will do.

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
            warnings.warn(msg, DeprecationWarning, stacklevel=2)
            certificate = {**certificate, "iterations": iterations}
        self.__dict__.update(measure=measure, warm=warm, certificate=certificate)

    @property
    def iterations(self) -> int:
        """What the step cost; see `Certificate`."""
        return int(self.certificate["iterations"])

    @property
    def residual(self) -> float:
        """What the solver compared with its tolerance; see `Certificate`."""
        return float(self.certificate["residual"])


class ProximalSolver(ABC, Generic[M]):
    r"""Solves :math:`\operatorname{argmin}_\nu F(\nu) + W_2^2(\mu, \nu) / (2\,dt)`.

    One solver for each representation, or several; `JKO` is the scheme that calls it.

    Attributes
    ----------
    flat : bool
        Whether :math:`W_2` is Euclidean in the tangents of the representation, so that
        they may be added: it is what the stages of ``JKO(order=2)`` need.
    carries_order_2 : bool
        Whether ``JKO(order=2)`` keeps its order with this solver.

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

    @abstractmethod
    def solve(self, F: Functional, mu: M, dt: float, warm: Any = None) -> ProxResult[M]:
        """Return the minimiser; a solve that did not converge says so."""

    def _admit(self, F: Functional, mu: Measure, dt: float, kind: type[Any]) -> float:
        """Refuse what cannot be stepped from measures of this kind; return dt."""
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
        return dt

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if k[0] != "_")
        return f"{type(self).__name__}({values})"


def solved(
    solver: ProximalSolver[Any], F: Functional, mu: Measure, dt: float, warm: Any = None
) -> ProxResult[Any]:
    """Return a solver's result; one that is not complete raises `TypeError`.

    A solver may be the user's own, and schemes read all the words of its certificate.
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
    known = Certificate.of({"dt": dt, **result.certificate})
    return replace(result, certificate=known)


def may_cross_obstacles(mu: GridDensity) -> bool:
    """Return whether a straight line between free cells may meet an obstacle.

    It does not if the free cells fill a box.
    """
    if bool(mu.is_free.all()):
        return False
    cells = mu.is_free.reshape(mu.shape).nonzero()
    sides = cells.amax(0) - cells.amin(0) + 1
    return int(sides.prod()) != len(cells)


def refuse_obstacles(mu: GridDensity, solver: str) -> None:
    """Refuse (Unsupported) a grid where straight lines may meet an obstacle."""
    if may_cross_obstacles(mu):
        msg = (
            f"{solver} moves mass along straight lines, which may cross an obstacle of "
            f"this grid; use JKO(FiniteVolume()), which JKO() takes by itself"
        )
        raise Unsupported(msg)
