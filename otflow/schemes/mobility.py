"""A mobility for each coordinate: layers with rates of their own, fixed coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from otflow._typing import ArrayLike
from otflow._validation import check_kind, positive
from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.functionals.in_coordinates import in_coordinates
from otflow.functionals.stated_terms import check_terms
from otflow.measures import Measure, Particles
from otflow.measures.labelled import LabelledParticles
from otflow.proximal.certificate import NESTED, Certificate
from otflow.schemes.base import Scheme, Step, made_by, parts
from otflow.schemes.forward_backward import ForwardBackward

__all__ = ["Mobility"]


class Mobility(Scheme):
    r"""Run another scheme in the metric of a mobility for each coordinate.

    .. math:: ds^2 = \sum_k \frac{dx_k^2}{m_k}, \qquad
        \partial_t\mu = \nabla\cdot\bigl(\mu\,M\nabla F'[\mu]\bigr), \qquad
        M = \operatorname{diag}(m_1, \dots, m_d), \quad m_k \ge 0 .

    A coordinate moves :math:`m_k` times as fast as in the flow of F, and one of
    mobility 0 is fixed. So layers of a network get their own rates, or one layer is
    trained alone. Langevin's noise has the variance :math:`2\tau m_k\,dt`, and the
    Gibbs law at rest does not depend on m.

    The inner scheme steps in the coordinates :math:`z_k = x_k/\sqrt{m_k}`, where the
    metric is Euclidean. Fixed coordinates are labels there: no atom changes its label,
    and `JKO` couples atoms of one label alone.

    Parameters
    ----------
    scheme : Scheme
        The scheme that steps. It moves points. Lengths that it has, as the width of a
        kernel, are those of z.
    mobility : sequence of float, Tensor or ndarray, shape (d,)
        The numbers :math:`m_k`, one for each coordinate, not all 0.

    Attributes
    ----------
    scheme : Scheme
        As above.
    mobility : tuple of float
        As above.

    Raises
    ------
    TypeError
        If the mobility is one number, or none.
    ValueError
        If a mobility is negative or not finite, or all are 0; if the scheme moves no
        points, takes proximal maps, or holds a measure; from `init`, if the number of
        mobilities is not the dimension.
    Unsupported
        From `init`, if the measure is not made of particles; from `step`, if the scheme
        moves fixed coordinates by noise, or atoms, of its own.

    See Also
    --------
    otflow.meanfield.TwoLayer.mobility : The mobility of the layers of a network.

    Notes
    -----
    Cost: that of the inner scheme, and O(n d). A chain that is the inner scheme reads F
    as it does alone: ``Mobility(chain(ExplicitEuler(), BirthDeath()), m)`` takes one
    pass of F a step.

    A `~otflow.meanfield.Risk` of which the outer weights move alone needs one product
    (n, d) x (d, N) for its velocity in place of two, and no slope of the activation. In
    the mean field with a convex loss it is 0-convex then: `JKO` steps are proved exact.

    The report is that of the inner scheme without the words that W2 has a part in:
    ``w2`` and ``decrease``, ``order`` and ``modulus``. ``guarantee`` is about the JKO
    step in the metric of the mobility. ``bound`` remains a bound on the W2 distance to
    that step, and ``error`` one on a W2 distance: both have the factor :math:`\max_k
    \sqrt{m_k}`. ``info["mobility"]`` holds the mobilities.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    >>> mu = of.Particles(torch.tensor([[1.0, 1.0, 1.0]], dtype=torch.float64))
    >>> scheme = of.schemes.Mobility(of.JKO(), [1.0, 3.0, 0.0])
    >>> of.flow(F, mu, scheme, dt=1.0, steps=1).final.points  # 1 / (1 + m dt)
    tensor([[0.5000, 0.2500, 1.0000]], dtype=torch.float64)
    """

    def __init__(self, scheme: Scheme, mobility: Sequence[float] | ArrayLike) -> None:
        check_kind(scheme, Scheme, "scheme")
        _check_inner(scheme)
        self.scheme, self.mobility = scheme, _as_mobility(mobility)

    @property
    def order(self) -> int:  # type: ignore[override]
        """Order of the inner scheme."""
        return self.scheme.order

    @property
    def effects(self) -> frozenset[str]:  # type: ignore[override]
        """Effects of the inner scheme."""
        return self.scheme.effects

    def init(self, F: Functional, mu: Measure) -> _State:
        frame = self._frame(mu)
        check_terms(F, mu)
        changed = in_coordinates(F, frame.scales, frame.moving)
        inner = self.scheme.init(changed, frame.enter(mu))
        return _State(F, changed, frame, inner)

    def state_dict(self, state: _State) -> Any:
        frame = state.frame
        inner = self.scheme.state_dict(state.inner)
        return {"left": frame.left, "there": frame.there, "inner": inner}

    def load_state(self, F: Functional, mu: Measure, kept: Any) -> _State:
        frame = replace(self._frame(mu), left=kept["left"], there=kept["there"])
        changed = in_coordinates(F, frame.scales, frame.moving)
        inner = self.scheme.load_state(changed, frame.enter(mu), kept["inner"])
        return _State(F, changed, frame, inner)

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        state = self._state(F, mu, state)
        frame, nu = state.frame, state.frame.enter(mu)
        step = self.scheme.step(state.changed, nu, dt, state.inner, generator)
        step = made_by(self.scheme, step)
        moved = step.measure
        if not isinstance(moved, Particles) or not frame.keeps_labels(nu, moved):
            msg = (
                f"{type(self.scheme).__name__} moved coordinates of mobility 0: it "
                f"makes noise, or atoms, of its own; use Langevin() for noise, or give "
                f"each coordinate a mobility > 0"
            )
            raise Unsupported(msg)
        end = frame.leave(moved, nu, mu)
        frame = replace(frame, left=end.points, there=moved.points)
        info = _in_metric(step.info, self.mobility)
        return Step(
            end, replace(state, frame=frame, inner=step.state), info, step.energy
        )

    def energy(self, F: Functional, mu: Measure) -> Tensor:
        frame = self._frame(mu)
        changed = in_coordinates(F, frame.scales, frame.moving)
        return self.scheme.energy(changed, frame.enter(mu))

    def _frame(self, mu: Measure) -> _Frame:
        """Return the coordinates; raise unless mu is made of particles with these."""
        if not isinstance(mu, Particles):
            msg = (
                f"Mobility scales the coordinates of particles, not "
                f"{type(mu).__name__}; use {mu.as_particles}, or, for "
                f"one mobility m of all coordinates, the flow of m * F"
            )
            raise Unsupported(msg)
        if mu.dim != len(self.mobility):
            msg = (
                f"there are {len(self.mobility)} mobilities, and the points have "
                f"{mu.dim} coordinates; give one for each coordinate, as "
                f"network.mobility(inputs, outer=1.0, inner=0.1) does"
            )
            raise ValueError(msg)
        # The coordinates z need some room in the dtype, and so do their squares.
        kind = torch.finfo(mu.dtype)
        least, most = kind.tiny**0.5, kind.max**0.5
        outside = [m for m in self.mobility if m and not least <= m <= most]
        if outside:
            msg = (
                f"the mobility {outside[0]:g} is outside of the range {least:.2g} to "
                f"{most:.2g} of {mu.dtype}; give 0 for a coordinate that hardly moves, "
                f"or rescale F"
            )
            raise ValueError(msg)
        m = mu.points.new_tensor(self.mobility)
        moving = m > 0
        return _Frame(torch.where(moving, m, 1.0).sqrt(), moving)

    def _state(self, F: Functional, mu: Measure, state: Any) -> _State:
        """Return the state of the step before, or that of another draw of F."""
        if not isinstance(state, _State):
            return self.init(F, mu)
        own = state.frame.scales
        if not isinstance(mu, Particles) or mu.dim != len(own):
            self._frame(mu)
        if state.functional is F:
            return state
        changed = in_coordinates(F, own, state.frame.moving)
        return replace(state, functional=F, changed=changed)


@dataclass(frozen=True)
class _Frame:
    """The coordinates z, and the ends of the last step in both coordinates."""

    scales: Tensor
    moving: Tensor
    left: Tensor | None = None
    there: Tensor | None = None

    def enter(self, mu: Measure) -> Particles:
        """Return particles in the coordinates z."""
        assert isinstance(mu, Particles)
        z, left, there = mu.points / self.scales, self.left, self.there
        # An atom that nobody has moved since is where it was, to the bit.
        if left is not None and there is not None and left.shape == z.shape:
            z = torch.where(left == mu.points, there, z)
        nu, fixed = mu.with_free_atoms(z), ~self.moving
        if isinstance(nu, LabelledParticles):  # of a mobility around this one
            fixed = fixed | nu.fixed
        return LabelledParticles(nu, fixed) if bool(fixed.any()) else nu

    def leave(self, moved: Particles, nu: Particles, mu: Particles) -> Particles:
        """Return particles in the coordinates x, for a step from `mu`, there `nu`."""
        if moved is nu:
            return mu
        z, x = moved.points, moved.points * self.scales
        if z.shape == nu.points.shape:
            x = torch.where(z == nu.points, mu.points, x)
        if moved.weights is nu.weights:
            return mu.with_free_atoms(x)
        return mu.with_free_atoms(x, moved.weights, is_uniform=moved.is_uniform)

    def keeps_labels(self, nu: Particles, moved: Particles) -> bool:
        """Return whether each atom after a step has a label of one before it."""
        if moved is nu or bool(self.moving.all()):
            return True
        before, after = (x.points[:, ~self.moving] for x in (nu, moved))
        if torch.equal(before, after):
            return True
        group: Tensor = torch.unique(
            torch.cat([before, after]), dim=0, return_inverse=True
        )[1]
        return bool(torch.isin(group[len(before) :], group[: len(before)]).all())


@dataclass(frozen=True)
class _State:
    """F in both coordinates, the coordinates, and the inner scheme's state."""

    functional: Functional = field(repr=False)
    changed: Functional = field(repr=False)
    frame: _Frame
    inner: Any


def _as_mobility(mobility: Any) -> tuple[float, ...]:
    """Return the mobilities, checked."""
    held = mobility.tolist() if hasattr(mobility, "tolist") else mobility
    if not isinstance(held, (list, tuple)) or not held:
        msg = (
            f"mobility must hold one number for each coordinate, e.g. [1.0, 0.1], got "
            f"{mobility!r:.80}; a mobility m of all coordinates is the flow of m * F"
        )
        raise TypeError(msg)
    numbers = tuple(positive(m, "a mobility", or_zero=True) for m in held)
    if not any(numbers):
        msg = "all mobilities are 0, so nothing would move; give one that is positive"
        raise ValueError(msg)
    return numbers


def _check_inner(scheme: Scheme) -> None:
    """Raise ValueError for a scheme that moves no points, or holds points itself."""
    name = type(scheme).__name__
    if "transport" not in scheme.effects:
        msg = (
            f"{name} moves no points, so a mobility changes nothing; chain it beside: "
            f"chain(Mobility(ExplicitEuler(), m), {name}(...))"
        )
        raise ValueError(msg)
    for one in parts(scheme):
        if isinstance(one, ForwardBackward):
            msg = (
                "ForwardBackward takes the proximal map of a term, which is one in "
                "the metric of W2; use JKO(), or ExplicitEuler() with a smooth term"
            )
            raise ValueError(msg)
        for attribute, value in vars(one).items():
            if isinstance(value, Measure):
                msg = (
                    f"{attribute} of {type(one).__name__} is a measure, and Mobility "
                    f"steps in other coordinates than its own; chain it beside: "
                    f"chain(Mobility(ExplicitEuler(), m), {type(one).__name__}(...))"
                )
                raise ValueError(msg)


def _in_metric(report: Certificate, mobility: tuple[float, ...]) -> Certificate:
    """Return a report without the words that are those of W2 in other coordinates."""
    reach = math.sqrt(max(mobility))
    entries = dict(report.entries)
    for name in NESTED:
        if name in entries:
            entries[name] = tuple(_in_metric(one, mobility) for one in entries[name])
    if entries.get("error") is not None:
        entries["error"] = reach * entries["error"]
    return replace(
        report,
        w2=None,
        order=None,
        modulus=None,
        bound=None if report.bound is None else reach * report.bound,
        entries={**entries, "mobility": mobility},
    )
