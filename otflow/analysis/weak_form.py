"""The continuity equation along a path, in weak form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from otflow._typing import Ground, Value
from otflow._validation import check_function, check_kind
from otflow.functionals.base import Functional
from otflow.measures import Measure
from otflow.metrics.lengths import clock
from otflow.trajectory import Trajectory

__all__ = ["continuity_residual"]


def continuity_residual(
    path: Trajectory[Any] | Sequence[Measure],
    tests: Ground | Sequence[Ground],
    velocity: Functional | Callable[[Any], Tensor] | None = None,
    *,
    times: Iterable[float] | None = None,
) -> Tensor:
    r"""Return how far a path is from :math:`\partial_t\mu + \nabla\cdot(\mu v) = 0`.

    In weak form :math:`\frac{d}{dt}\int\varphi\,d\mu_t = \int\nabla\varphi\cdot
    v_t\,d\mu_t` for every test function :math:`\varphi`. For each interval the residual
    is

    .. math:: \frac{\int\varphi\,d\mu_{k+1} - \int\varphi\,d\mu_k}{t_{k+1} - t_k}
        - \frac12\Big(\int\nabla\varphi\cdot v_k\,d\mu_k
        + \int\nabla\varphi\cdot v_{k+1}\,d\mu_{k+1}\Big).

    Along an exact path it is of order 2 in the spacing of the times, by the trapezoidal
    rule. Along a flow it has the order of the scheme in dt, up to 2.

    Parameters
    ----------
    path : Trajectory, or sequence of Measure
        Two measures or more; of a trajectory its snapshots and their times.
    tests : callable, or sequence of callable
        Test functions :math:`\varphi`, batched (n, d) -> (n,), smooth.
    velocity : Functional or callable, optional
        The velocity: that of a functional, :math:`v = -\nabla F'[\mu]`, or a function
        from a measure to a tangent. By default that of the natural coupling of
        neighbours, ``mu.displacement_to(nu)`` over the time between both.
    times : iterable of float, optional
        Increasing times of a sequence, one for each measure; by default evenly spread
        over [0, 1]. A trajectory has its own.

    Returns
    -------
    Tensor, shape (K - 1, m)
        One row for each interval, one column for each test function.

    Raises
    ------
    ValueError
        If the path has fewer than two measures, or times do not increase.
    TypeError
        If times are given for a trajectory, or an argument is of the wrong kind.

    See Also
    --------
    otflow.analysis.energy_dissipation : The balance of energy along a flow.

    Notes
    -----
    :math:`\int\nabla\varphi\cdot v\,d\mu` is the product ``mu.inner`` of v with the
    gradient of the functional :math:`\int\varphi\,d\mu`, so it suits every kind of
    measure. Cost: one velocity and one gradient of each test function for each measure.

    Examples
    --------
    >>> import torch, otflow as of
    >>> ends = [of.Particles(torch.tensor([[x], [x + 1.0]])) for x in (0.0, 3.0)]
    >>> path = of.metrics.geodesic(*ends, [0.0, 0.5, 1.0])
    >>> of.analysis.continuity_residual(path, lambda x: x.square().sum(-1))
    tensor([[0.],
            [0.]])
    """
    if isinstance(path, Trajectory):
        if times is not None:
            msg = "a trajectory has its own times; leave times out"
            raise TypeError(msg)
        measures: list[Measure] = list(path.snapshots)
        times = path.snapshot_times.tolist()
    else:
        measures = list(path)
    count = len(measures)
    if count < 2:
        msg = f"a path has two measures or more, got {count}; record more snapshots"
        raise ValueError(msg)
    for i, mu in enumerate(measures):
        check_kind(mu, Measure, f"path[{i}]")
    instants = clock(times, count)
    given: Any = tests
    several = not callable(tests) and isinstance(tests, Iterable)
    functions: list[Any] = list(given) if several else [given]
    for phi in functions:
        check_function(phi, "tests must be functions (n, d) -> (n,)")
    slopes = [_slopes(mu, functions) for mu in measures]
    if velocity is not None:
        flux = velocity.velocity if isinstance(velocity, Functional) else velocity
        check_function(flux, "velocity must be a Functional or a function of a measure")
        own = [
            _rates(mu, s, flux(mu)) for mu, (_, s) in zip(measures, slopes, strict=True)
        ]
    rows = []
    for k, (start, end) in enumerate(pairwise(instants)):
        (before, s), (after, t) = slopes[k], slopes[k + 1]
        mu, nu = measures[k], measures[k + 1]
        if velocity is not None:
            rates = own[k] + own[k + 1]
        else:
            rates = _rates(mu, s, _move(mu, nu, k))
            rates = (rates - _rates(nu, t, _move(nu, mu, k))) / (end - start)
        rows.append((after - before) / (end - start) - 0.5 * rates)
    return torch.stack(rows)


def _move(mu: Measure, nu: Measure, k: int) -> Tensor:
    """Return the displacement between neighbours."""
    try:
        return mu.displacement_to(nu)
    except (TypeError, ValueError) as error:
        msg = (
            f"path[{k}] and path[{k + 1}] have no natural coupling: {error}; give the "
            f"velocity, a Functional or a function of a measure"
        )
        raise type(error)(msg) from error


def _slopes(mu: Measure, tests: Sequence[Ground]) -> tuple[Tensor, list[Tensor]]:
    """Return the integrals of the test functions, and their gradients as tangents."""
    found = [mu.value_and_position_gradient(_integral(phi)) for phi in tests]
    return torch.stack([value for value, _ in found]), [slope for _, slope in found]


def _rates(mu: Measure, slopes: Sequence[Tensor], tangent: Tensor) -> Tensor:
    """Return the rates of the integrals under a velocity."""
    return torch.stack([mu.inner(slope, tangent) for slope in slopes])


def _integral(phi: Ground) -> Value:
    """Return the functional that integrates a test function."""
    return lambda mu: mu.expectation(phi)
