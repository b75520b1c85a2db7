"""What a scheme is: one pure step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from otflow._validation import check_kind, positive
from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.functionals.order import is_exchangeable
from otflow.measures import Measure, Particles
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
        What the scheme receives as `state` at the next step.
    info : Certificate or mapping, optional
        The report. A mapping becomes a `Certificate`: the words of a certificate, such
        as ``"dt"`` for the time taken, fill its fields; other keys become entries.
    energy : Tensor, optional
        The energy of the *incoming* measure, as `Scheme.energy` defines it, if the step
        has computed it. A flow then does not compute it again.

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
        if not isinstance(info, Certificate):
            report = {} if info is None else info
            check_kind(report, Mapping, "info", cure="e.g. info={'rounds': 3}")
            info = Certificate.of(report)
        self.__dict__.update(measure=measure, state=state, info=info, energy=energy)

    def taken(self, dt: float) -> float:
        """Return the time that this step took, `dt` if its report does not say.

        Raises
        ------
        TypeError, ValueError
            If the report's dt is no finite number >= 0.
        """
        own = self.info.dt
        return dt if own is None else positive(own, "dt of a report", or_zero=True)


class Scheme(ABC):
    """One pure step of a discretised flow.

    ``step(F, mu, dt, state, generator)`` returns a `Step` and changes nothing: no
    in-place update, no global random state, no counter inside the scheme. Whatever must
    survive from step to step is in the `state`. Only `otflow.flow` loops.

    Attributes
    ----------
    order : int
        Order in dt of the error at a fixed time, for smooth problems.
    effects : frozenset of str
        Which parts of the flow of F a step advances by dt: ``"transport"`` and
        ``"reaction"``. `chain` raises ValueError for two schemes with an effect in
        common, since they would advance it by 2 dt. The default is transport. A scheme
        that only resamples, projects or watches states ``effects = frozenset()``.

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
        """Return the state before the first step; None by default.

        Parameters
        ----------
        F : Functional
            What the flow minimises.
        mu : Measure
            Where the flow starts.

        Returns
        -------
        object
            The `state` of the first call of `step`.

        Raises
        ------
        Unsupported
            If the scheme cannot step on this representation or this F. A scheme that
            raises here does so before any work.
        """
        return None

    def state_dict(self, state: Any) -> Any:
        """Return a state as plain data, to be kept; by default the state itself.

        Plain data are tensors, numbers, strings, None, measures, certificates, and
        lists, tuples, dicts and dataclasses of these. A scheme whose state holds
        anything else, such as F or a function, overrides this method and `load_state`.

        Parameters
        ----------
        state : object
            The state after a step.

        Returns
        -------
        object
            The plain data.
        """
        return state

    def load_state(self, F: Functional, mu: Measure, kept: Any) -> Any:
        """Return the state of which `state_dict` made plain data.

        The steps from that state equal to the bit those from the state itself.
        A flow calls it if the scheme that goes on has the same ``repr`` as the one that
        made the state; any other begins with `init`.

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
            The `state` of the next call of `step`.
        """
        return kept

    @abstractmethod
    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        """Advance `mu` by one step of at most `dt`.

        Parameters
        ----------
        F : Functional
            What to minimise.
        mu : Measure
            The current measure. The step does not modify it.
        dt : float
            Time to advance, > 0. A scheme that takes less time reports the time taken
            as ``info["dt"]``.
        state : object
            The state of the step before; at the first step what `init` returned.
        generator : torch.Generator
            The only source of random numbers.

        Returns
        -------
        Step
            The new measure, of the kind of `mu`, the next state and the report.

        Raises
        ------
        Unsupported
            If the representation or F lacks what the scheme needs.
        Diverged
            If the new measure is not finite.
        NonFinite
            If F or its derivative at `mu` is not finite.
        """

    def energy(self, F: Functional, mu: Measure) -> Tensor:
        """Return the energy that a flow by this scheme records, F(mu) by default.

        Some schemes replace a part of F that has no value on the representation, as
        noise replaces the entropy of particles. Such a scheme overrides this method and
        returns the value of the rest.

        Parameters
        ----------
        F : Functional
            What the flow minimises.
        mu : Measure
            Where to evaluate the energy.

        Returns
        -------
        Tensor, shape ()
            The energy, in the dtype and on the device of `mu`.

        Raises
        ------
        Unsupported
            If a part of F has no value on the representation.
        NonFinite
            If the energy is not finite.
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


def check_particles(mu: Measure, scheme: Scheme, *, instead: str) -> None:
    """Raise Unsupported unless mu is made of particles, which a scheme moves singly."""
    if not isinstance(mu, Particles):
        msg = (
            f"{type(scheme).__name__} moves particles one by one, not "
            f"{type(mu).__name__}; use {instead}, or {mu.as_particles}"
        )
        raise Unsupported(msg)


def check_exchangeable(F: Functional, scheme: Scheme, *, does: str) -> None:
    """Raise Unsupported for an F that reads atoms by index, if a scheme changes them.

    Parameters
    ----------
    F : Functional
        What the scheme minimises.
    scheme : Scheme
        The scheme.
    does : str
        What it does to atoms, as "copies atoms".

    Raises
    ------
    Unsupported
        If F is not `exchangeable`.
    """
    if not is_exchangeable(F):
        msg = (
            f"{type(scheme).__name__} {does}, and F = {F!r:.80} reads atoms by their "
            f"index: its value would change at random; use ExplicitEuler() or JKO(), "
            f"which keep each atom in its place"
        )
        raise Unsupported(msg)


def made_by(scheme: Scheme, step: Step[Any]) -> Step[Any]:
    """Return what a scheme's `step` has returned, if it is a Step; TypeError if not."""
    if not isinstance(step, Step):
        what = f"the answer of {type(scheme).__name__}.step"
        check_kind(step, Step, what, cure="return otflow.schemes.Step(measure, state)")
    what = f"the measure in the Step of {type(scheme).__name__}"
    check_kind(step.measure, Measure, what, cure="move it by mu.push(tangent, dt)")
    energy = step.energy
    if energy is not None and not (isinstance(energy, Tensor) and energy.ndim == 0):
        msg = (
            f"the energy of a Step must be a 0-d tensor, got {energy!r:.80}; hand over "
            f"F.value(mu), or leave it out"
        )
        raise TypeError(msg)
    return step


def parts(scheme: Scheme) -> Iterator[Scheme]:
    """Yield a scheme and the schemes that it holds.

    Parameters
    ----------
    scheme : Scheme
        The scheme.

    Yields
    ------
    Scheme
        The scheme itself, then those in its attributes, and in theirs.
    """
    yield scheme
    for value in vars(scheme).values():
        held = tuple(value.values()) if isinstance(value, Mapping) else value
        for part in held if isinstance(held, tuple) else (held,):
            if isinstance(part, Scheme):
                yield from parts(part)
