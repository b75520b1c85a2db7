"""Errors that say what was wrong, why, and the cure.

A caller's mistake is a ``ValueError`` or a ``TypeError``, raised before any work.
An error that a caller may want to catch by name has its own class here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BlurWarning",
    "BoxWarning",
    "CellWarning",
    "CollapseWarning",
    "CorruptFile",
    "DirectoryInUse",
    "Diverged",
    "FixedPointWarning",
    "ForeignDirectory",
    "Interrupted",
    "InvalidFunctional",
    "KernelWarning",
    "ModifiedInPlace",
    "NonFinite",
    "NotConverged",
    "NotConvergedWarning",
    "NotEnclosed",
    "OtflowError",
    "ResumeWarning",
    "Unsupported",
]


def __dir__() -> list[str]:
    return __all__


class OtflowError(Exception):
    """Base class of every error that otflow defines.

    Examples
    --------
    >>> import otflow as of
    >>> issubclass(of.errors.Diverged, of.errors.OtflowError)
    True
    """

    trajectory: Any  # `flow` hands the run so far to an error that ends it


class BoxWarning(UserWarning):
    """Mass has come to the border of a box that stands for all space.

    From then on the flow is that in a room with walls. Enlarge the box. If the border
    is a wall, say so: ``GridDensity(..., walls=True)``.

    Examples
    --------
    >>> import otflow as of
    >>> issubclass(of.errors.BoxWarning, UserWarning)
    True
    """


class BlurWarning(UserWarning):
    """The blur of an entropic step is not small beside the step.

    The entropic kernel must reach the next cell. On a coarse grid that length is large
    beside the move of a short step: the step diffuses too fast, and may raise the
    energy. A step with a blur of more than a twentieth of its length is not certified.
    Take a finer grid, a longer step, or ``BackAndForth()``.

    Examples
    --------
    >>> import otflow as of
    >>> issubclass(of.errors.BlurWarning, UserWarning)
    True
    """


class CellWarning(UserWarning):
    """Cells are too wide for a density: its second moments are visibly wrong.

    The message says by how much. Take graded cells, more cells, or an interval closer
    about the mass.

    Examples
    --------
    >>> import otflow as of
    >>> issubclass(of.errors.CellWarning, UserWarning)
    True
    """


class CollapseWarning(UserWarning):
    """One atom, or one cell, holds nearly all the mass after births and deaths.

    The other points hardly count then. Take a smaller rate or fewer steps, or let atoms
    be born from a prior: ``BirthDeath(rate, prior=...)``.

    Examples
    --------
    >>> import otflow as of
    >>> issubclass(of.errors.CollapseWarning, UserWarning)
    True
    """


class FixedPointWarning(UserWarning):
    """A free energy has several fixed points; the message tells their energies.

    Examples
    --------
    >>> import otflow as of
    >>> issubclass(of.errors.FixedPointWarning, UserWarning)
    True
    """


class KernelWarning(UserWarning):
    """A rule of integration does not see all of an interaction kernel.

    The kernel varies on a length below the distance of the nodes. The message says
    about how wrong values and velocities are. Take more nodes or smaller cells, a wider
    kernel, or a kernel of `otflow.kernels`, which is integrated in closed form.

    Examples
    --------
    >>> import otflow as of
    >>> issubclass(of.errors.KernelWarning, UserWarning)
    True
    """


class NotConvergedWarning(UserWarning):
    """Steps of a flow did not converge; the flow warns once, at its end.

    These steps are approximate and not certified; ``run.info`` says which they are.

    Parameters
    ----------
    message : str
        How many steps, the first, the worst residual, the cure.
    trajectory : Trajectory, optional
        The run. It serves a caller who turns warnings into errors.

    Attributes
    ----------
    trajectory
        As above.

    Examples
    --------
    >>> import otflow as of
    >>> issubclass(of.errors.NotConvergedWarning, UserWarning)
    True
    """

    def __init__(self, message: str, *, trajectory: Any = None) -> None:
        super().__init__(message)
        self.trajectory = trajectory


class ResumeWarning(UserWarning):
    """A resumed flow differs from its first part: not all of its bits can be the same.

    The message says what was and what is: another functional or scheme, other versions,
    another number of threads.

    Examples
    --------
    >>> import otflow as of
    >>> issubclass(of.errors.ResumeWarning, UserWarning)
    True
    """


class Unsupported(OtflowError, TypeError):
    """A representation, a solver or a scheme lacks what a call needs.

    The message names the reason and the cure: which representation or which scheme
    has it.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.Particles(torch.zeros(3, 2)).density()
    Traceback (most recent call last):
        ...
    otflow.errors.Unsupported: Particles has no density: ...
    """


class CorruptFile(OtflowError, ValueError):
    """A file was damaged or changed, is none of otflow's, or is of another version.

    Examples
    --------
    >>> import otflow as of
    >>> issubclass(of.errors.CorruptFile, ValueError)
    True
    """


class DirectoryInUse(OtflowError, FileExistsError):
    """Another flow writes its checkpoints to the same directory.

    Examples
    --------
    >>> import otflow as of
    >>> issubclass(of.errors.DirectoryInUse, FileExistsError)
    True
    """


class ForeignDirectory(OtflowError, FileExistsError):
    """A directory holds another run, or files that are no part of a run.

    Examples
    --------
    >>> import otflow as of
    >>> issubclass(of.errors.ForeignDirectory, FileExistsError)
    True
    """


class InvalidFunctional(OtflowError, TypeError):
    """A functional returned something that is not a differentiable scalar.

    Raised when ``value`` returns a non-tensor, a tensor with more than one entry, an
    integer or complex tensor, a tensor on another device, or a tensor that is detached
    from the measure.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: x)  # (n, d), not (n,)
    >>> F.value(of.Particles(torch.zeros(3, 2)))
    Traceback (most recent call last):
        ...
    otflow.errors.InvalidFunctional: ...
    """


class ModifiedInPlace(OtflowError, ValueError):
    """A tensor of a measure was written into; measures are immutable and share tensors.

    Every measure that holds the tensor raises the error at its next use.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Particles(torch.zeros(3, 2))
    >>> x = mu.points.clone()  # to be written into
    >>> mu.points.add_(1.0)  # not to be
    tensor([[1., 1.],
            [1., 1.],
            [1., 1.]])
    >>> mu.points
    Traceback (most recent call last):
        ...
    otflow.errors.ModifiedInPlace: ...
    """


class NonFinite(OtflowError, ArithmeticError):
    """A functional or its gradient is NaN or infinite at a given measure.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: x.sum(-1) / 0.0)
    >>> F.velocity(of.Particles(torch.ones(3, 2)))
    Traceback (most recent call last):
        ...
    otflow.errors.NonFinite: ...
    """


class Diverged(OtflowError, ArithmeticError):
    """A flow left the finite numbers; nothing computed before is lost.

    Parameters
    ----------
    message : str
        What happened and what to try.
    measure : Measure, optional
        The last good measure.
    step : int, optional
        Index of the step that failed, counted from 0.
    trajectory : Trajectory, optional
        Everything recorded up to the last good measure.

    Attributes
    ----------
    measure, step, trajectory
        As above; ``flow`` fills in the last two.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: x.square().sum(-1))
    >>> try:
    ...     of.flow(
    ...         F, of.Particles(torch.ones(3, 2)), of.ExplicitEuler(), dt=1e9, steps=99
    ...     )
    ... except of.errors.Diverged as error:
    ...     len(error.trajectory.times) > 0
    True
    """

    def __init__(
        self,
        message: str,
        *,
        measure: Any = None,
        step: int | None = None,
        trajectory: Any = None,
    ) -> None:
        super().__init__(message)
        self.measure = measure
        self.step = step
        self.trajectory = trajectory


class NotConverged(OtflowError, RuntimeError):
    """An inner solver stopped before its tolerance; its result is not returned.

    Parameters
    ----------
    message : str
        What stopped, the accuracy it reached, what to try.
    info : mapping, optional
        Numbers of the solver when it stopped (residual, iterations, ...).
    result : object, optional
        The unfinished result, for a caller who wants it nevertheless.

    Attributes
    ----------
    info, result
        As above.

    Examples
    --------
    >>> import otflow as of
    >>> error = of.errors.NotConverged(
    ...     "stopped after 3 iterations", info={"residual": 0.1}
    ... )
    >>> error.info["residual"]
    0.1
    """

    def __init__(
        self,
        message: str,
        *,
        info: Mapping[str, Any] | None = None,
        result: Any = None,
    ) -> None:
        super().__init__(message)
        self.info = dict(info or {})
        self.result = result


class NotEnclosed(OtflowError):
    """An operation has no interval extension here, so that nothing can be proved.

    The message names the operation. `optimality.optimality_gap` catches the error, and
    its gap is then "searched". The manual lists the operations that can be enclosed.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: x.floor().sum(-1))
    >>> mu = of.Particles(torch.tensor([[0.5]]))
    >>> of.optimality.optimality_gap(F, mu, of.optimality.BoxDomain(0, 1)).reason
    'not proved: torch.floor has no interval extension here'
    """


class Interrupted(OtflowError, KeyboardInterrupt):
    """The user interrupted a flow; the trajectory so far is in ``trajectory``.

    It is a ``KeyboardInterrupt``, so a program that handles Ctrl-C still handles it.

    Parameters
    ----------
    message : str
        Where the flow stopped.
    trajectory : Trajectory
        Everything recorded before the interrupt.

    Attributes
    ----------
    trajectory
        As above.

    Examples
    --------
    >>> import otflow as of
    >>> issubclass(of.errors.Interrupted, KeyboardInterrupt)
    True
    """

    def __init__(self, message: str, *, trajectory: Any) -> None:
        super().__init__(message)
        self.trajectory = trajectory
