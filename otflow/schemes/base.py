"""What a scheme is: one pure step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.proximal.certificate import Certificate

__all__ = ["Scheme", "Step"]

M = TypeVar("M", bound=Measure)


@dataclass(frozen=True, eq=False, init=False)
class Step(Generic[M]):
    """What one step returns: the new measure, the state to carry, and a report.

    Parameters
    ----------
    measure : Measure
        The new measure.
    state : object
        Whatever the scheme wants back at the next step.
    info : Certificate or mapping, optional
        The report. A mapping becomes a `Certificate`: words such as ``"dt"``, the time
        in fact taken, by name, and the rest as its entries.
    energy : Tensor, optional
        The energy of the *incoming* measure, as the scheme records it, where the step
        computed it on its way: a flow does not compute it again.

    Attributes
    ----------
    measure, state, info, energy
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F, mu = (
    ...     of.Potential(lambda x: x.square().sum(-1)),
    ...     of.Particles(torch.ones(1, 1)),
    ... )
    >>> step = of.ExplicitEuler().step(F, mu, 0.25, None, torch.Generator())
    >>> step.measure.points, step.energy, step.info.energy_before
    (tensor([[0.5000]]), tensor(1.), 1.0)
    """

    measure: M
    state: Any
    info: Certificate
    energy: Tensor | None

    def __init__(
        self,
        measure: M,
        state: Any = None,
        info: Mapping[str, Any] | None = None,
        energy: Tensor | None = None,
    ) -> None:
        if energy is None and isinstance(info, dict) and "energy" in info:
            energy = info["energy"]
        known = Certificate() if info is None else Certificate.of(info)
        self.__dict__.update(measure=measure, state=state, info=known, energy=energy)

    def taken(self, dt: float) -> float:
        """Return the time in fact taken by a step that was asked for dt."""
        return dt if self.info.dt is None else self.info.dt


class Scheme(ABC):
    """One pure step of a discretised flow.

    ``step(F, mu, dt, state, generator)`` returns a `Step` and changes nothing: no
    in-place update, no global random state, no counter inside the scheme. What must
    survive from step to step is the `state`. The loop is `otflow.flow`, alone.

    Attributes
    ----------
    order : int
        Order in dt of the error at a fixed time, for smooth problems.
    effects : frozenset of str
        Which parts of the flow of F a step advances by dt: ``"transport"`` and
        ``"reaction"``. `chain` refuses two schemes with an effect in common, since
        they would advance it by 2 dt. A scheme that says nothing is taken to transport;
        one that only resamples, projects or watches states ``effects = frozenset()``.

    Examples
    --------
    >>> import torch, otflow as of
    >>> class Halfway(of.schemes.Scheme):  # a scheme of one's own
    ...     def step(self, F, mu, dt, state, generator):
    ...         middle = mu.push(F.velocity(mu), dt / 2)
    ...         return of.schemes.Step(mu.push(F.velocity(middle), dt), state)
    >>> F, mu = (
    ...     of.Potential(lambda x: x.square().sum(-1)),
    ...     of.Particles(torch.ones(1, 1)),
    ... )
    >>> of.flow(F, mu, Halfway(), dt=0.5, steps=2).final.points
    tensor([[0.2500]])
    """

    order: int = 1
    effects: frozenset[str] = frozenset({"transport"})

    def init(self, F: Functional, mu: Measure) -> Any:
        """Return the state before the first step; None by default."""
        return None

    @abstractmethod
    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        """Advance `mu` by one step of length `dt`."""

    def energy(self, F: Functional, mu: Measure) -> Tensor:
        """Return the energy that a flow by this scheme records; F itself by default.

        A scheme that replaces a part of F which has no value on the representation, as
        noise replaces the entropy of particles, must override it by the rest's value.
        """
        try:
            return F.value(mu)
        except Unsupported as error:
            msg = (
                f"{error}; if {type(self).__name__} treats that part of F by other "
                f"means, override its energy(F, mu) by the value of the rest"
            )
            raise Unsupported(msg) from error

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if k[0] != "_")
        return f"{type(self).__name__}({values})"
