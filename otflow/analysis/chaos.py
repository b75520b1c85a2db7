"""The limit of many particles: propagation of chaos, and flows along a frozen path."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otflow._pairs import tiles
from otflow._typing import Ground, Seed
from otflow._validation import (
    check_finite,
    check_function,
    check_kind,
    non_negative_int,
    positive,
    seed_and_stream,
)
from otflow.analysis.chaos_inputs import (
    Initial,
    check_law_alone,
    counts_of,
    device_of,
    observed,
    one_for_each,
    start_of,
)
from otflow.analysis.rates import observed_order
from otflow.errors import Diverged, NonFinite
from otflow.functionals import Functional
from otflow.functionals.base import check_functional
from otflow.measures import Measure, Particles
from otflow.metrics import wasserstein2
from otflow.schemes.langevin import split_heat
from otflow.trajectory import Trajectory

__all__ = ["ChaosReport", "mckean_vlasov", "propagation_of_chaos"]

# Probes whose velocities are computed at a time.
PROBES = 4096


@dataclass(frozen=True, eq=False)
class ChaosReport:
    r"""How far systems of N particles are from their limit, for several N.

    Parameters
    ----------
    sizes : tuple of int, length S
        The numbers N.
    function_error : Tensor, shape (S,)
        Root of the mean square of :math:`\phi(\mu^N_T) - \phi(\mu_T)` over runs and
        entries of the observable.
    particle_error : Tensor, shape (S,)
        Root of the mean square distance of a particle to the copy with its start and
        its noise that follows the limit.
    transport : Tensor or None, shape (S,)
        Root of the mean of :math:`W_2^2(\mu^N_T, \mu_T)`, if asked for.
    correlation : Tensor, shape (S,)
        Correlation of two particles of a run, of the first coordinate or of `pair`.
    variance : Tensor, shape (S,)
        Variance of the observable over runs, the mean over its entries.

    Attributes
    ----------
    sizes, function_error, particle_error, transport, correlation, variance
        As above.

    See Also
    --------
    propagation_of_chaos : Makes a report.

    Examples
    --------
    >>> import torch, otflow as of
    >>> zero = torch.zeros(2)
    >>> of.analysis.ChaosReport(
    ...     (1, 4), torch.tensor([2.0, 1.0]), torch.tensor([2.0, 1.0]), None, zero, zero
    ... ).rates()
    {'function_error': -0.5, 'particle_error': -0.5}
    """

    sizes: tuple[int, ...]
    function_error: Tensor
    particle_error: Tensor
    transport: Tensor | None
    correlation: Tensor
    variance: Tensor

    def rates(self) -> dict[str, float]:
        """Return the slopes of the errors against N, in logarithms.

        Returns
        -------
        dict of str to float
            For ``function_error``, ``particle_error`` and, if it is there,
            ``transport``; -1/2 is the rate of independent particles.

        Raises
        ------
        ValueError
            If there is one size only, or if an error is 0.
        """
        if len(self.sizes) < 2:
            msg = (
                f"a rate needs the errors of two sizes or more, got {self.sizes}; give "
                f"more sizes, e.g. [16, 64, 256]"
            )
            raise ValueError(msg)
        errors = {
            "function_error": self.function_error,
            "particle_error": self.particle_error,
        }
        if self.transport is not None:
            errors["transport"] = self.transport
        sizes = [float(n) for n in self.sizes]
        return {name: observed_order(sizes, e) for name, e in errors.items()}


def propagation_of_chaos(
    F: Functional,
    initial: Initial,
    sizes: Sequence[int],
    time: float,
    *,
    steps: int,
    observable: Callable[[Particles], Tensor] | None = None,
    pair: Ground | None = None,
    reference: int = 4096,
    runs: int = 16,
    transport: int | None = None,
    generator: Seed = 0,
) -> ChaosReport:
    r"""Compare flows of N particles with the flow of their limit.

    Particles start independently from one law and follow :math:`dX^i =
    -\nabla F'[\mu^N_t](X^i)\,dt + \sqrt{2\tau}\,dB^i`, with the temperature
    :math:`\tau` of the entropy in F. For N to infinity :math:`\mu^N_t` tends to the
    solution of the mean-field equation, and every particle to the solution
    :math:`\bar X^i` with the same start and noise and with the limit in place of
    :math:`\mu^N_t` :cite:p:`sznitman1991topics`:

    .. math:: \bigl(E|X^i_T - \bar X^i_T|^2\bigr)^{1/2} \le C_T N^{-1/2}, \qquad
        E\bigl|\phi(\mu^N_T) - \phi(\mu_T)\bigr|^2 \le C_T N^{-1}.

    The first bound needs a Lipschitz velocity, and the constants grow with T unless
    more is known of F. The limit is a system of `reference` particles.

    Parameters
    ----------
    F : Functional
        The functional. Its velocity must depend on the law alone, not on N: that of a
        network scaled as "ntk" or "sum" does not.
    initial : Measure or callable
        The law at time 0: a measure with `sample`, or a function of n and a generator
        that returns n independent points (n, d).
    sizes : sequence of int
        The numbers N, each at least 2.
    time : float
        The final time T.
    steps : int
        Number of explicit Euler steps. All systems take the same ones, so that their
        time error does not count.
    observable : callable, optional
        A function :math:`\phi` of the measure to a tensor whose shape does not depend
        on N, such as ``risk.outputs``; by default the value of F without its entropy.
    pair : callable, optional
        A function of points (n, d) to (n,) whose values at two particles are
        correlated; by default the first coordinate.
    reference : int
        Number of particles of the limit, more than every N. Its own error, of order
        ``reference ** -0.5``, is a part of what is measured.
    runs : int
        Number of independent systems of each size, at least 2.
    transport : int, optional
        If given, also compute :math:`W_2` between the systems and so many particles of
        the reference, at most all. It falls more slowly than the other errors: for N
        samples of a law :math:`E W_2^2` is bounded by :math:`N^{-1/2}` in dimension p <
        4, and by :math:`N^{-2/p}` for p > 4 :cite:p:`fournier2015rate`.
    generator : int or torch.Generator, optional
        Seed or source of randomness. A seed makes a generator on the device of the
        measure `initial`, and on the CPU for a function.

    Returns
    -------
    ChaosReport
        Errors, correlations and variances for every size.

    Raises
    ------
    ValueError
        If sizes are too small or not below `reference`, or counts are not positive.
    InvalidFunctional
        If the observable returns no tensor, or one for each particle; if `pair` does
        not return one number for each; if the velocity at some particles changes by
        more than a fifth where every one is there twice, which leaves the law alone.
    Diverged
        If a step leaves the finite numbers.

    See Also
    --------
    mckean_vlasov : The limit of single particles along a path that is known.

    Notes
    -----
    Cost for each step: one velocity for each system, and that of the reference at its
    own particles and at ``runs * sum(sizes)`` copies. With `transport`, one exact plan
    for each system.

    Examples
    --------
    >>> import torch, otflow as of
    >>> attraction = of.Interaction(lambda z: 0.5 * z.square().sum(-1))
    >>> def normal(n, generator):
    ...     return torch.randn(n, 1, generator=generator)
    >>> report = of.analysis.propagation_of_chaos(
    ...     attraction, normal, [4, 32, 256], 1.0, steps=2, runs=48
    ... )
    >>> abs(report.rates()["particle_error"] + 0.5) < 0.15
    True
    """
    check_functional(F)
    heat, rest = split_heat(F)
    dt = positive(time, "time") / non_negative_int(steps, "steps", minimum=1)
    counts = counts_of(sizes, reference)
    runs = non_negative_int(runs, "runs", minimum=2)
    if transport is not None:
        transport = non_negative_int(transport, "transport", minimum=1)
        if transport > reference:
            msg = (
                f"transport = {transport} particles of the limit, which has reference "
                f"= {reference}; take a larger reference, or transport={reference}"
            )
            raise ValueError(msg)
    for function, name in ((observable, "observable"), (pair, "pair")):
        if function is not None:
            check_function(function, f"{name} must be a function")
    stream = seed_and_stream(generator, device_of(initial, generator))[1]
    limit = start_of(initial, reference, stream)
    copies = start_of(initial, runs * sum(counts), stream)
    check_law_alone(rest, limit)
    rows = [n for n in counts for _ in range(runs)]
    ends = _ends(rest, heat, (limit, copies, rows), (dt, steps), _at(limit, stream))
    check_finite(ends[1], "the particles that follow the limit")
    phi = rest.value if observable is None else observable
    psi = _first if pair is None else pair
    wanted = observed(phi, Particles(ends[0]))
    target = None if transport is None else Particles(ends[0][:transport])
    found = [
        _Found(
            torch.stack(ends[2][k * runs : (k + 1) * runs]),
            torch.stack(_cut(ends[1], rows)[k * runs : (k + 1) * runs]),
        )
        for k in range(len(counts))
    ]
    values = [part.observed(phi, wanted.numel()) for part in found]
    far = [part.distance(target) for part in found] if target is not None else None
    return ChaosReport(
        sizes=counts,
        function_error=torch.stack(
            [(v - wanted).square().mean().sqrt() for v in values]
        ),
        particle_error=torch.stack([part.gap() for part in found]),
        transport=None if far is None else torch.stack(far),
        correlation=torch.stack([part.correlation(psi) for part in found]),
        variance=torch.stack([v.var(0).mean() for v in values]),
    )


def mckean_vlasov(
    F: Functional,
    path: Trajectory[Any],
    initial: Particles,
    *,
    generator: Seed = 0,
) -> list[Particles]:
    r"""Move particles in the field of a path of measures that is given.

    .. math:: d\bar X = -\nabla F'[\mu_t](\bar X)\,dt + \sqrt{2\tau}\,dB

    with the temperature :math:`\tau` of the entropy in F. The particles do not act on
    each other. If the path solves the mean-field equation, so does the law of
    :math:`\bar X` with the same start: the equation of McKean and Vlasov
    :cite:p:`sznitman1991topics`.

    Parameters
    ----------
    F : Functional
        The functional of the flow.
    path : Trajectory
        A run of `flow` with a snapshot of every step.
    initial : Particles
        Particles at the first time.
    generator : int or torch.Generator, optional
        Seed or source of randomness.

    Returns
    -------
    list of Particles
        One for each snapshot of the path, by explicit Euler steps between their times.

    Raises
    ------
    ValueError
        If the path has fewer than two snapshots, or if one of a step is missing: the
        particles would take longer steps than the path did.

    Notes
    -----
    Memory and time of one velocity at probes for each step.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Interaction(lambda z: 0.5 * z.square().sum(-1))
    >>> mu = of.Particles(torch.tensor([[-1.0], [1.0]]))
    >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=2)
    >>> one = of.Particles(torch.tensor([[1.0]]))
    >>> [round(float(nu.points), 2) for nu in of.analysis.mckean_vlasov(F, run, one)]
    [1.0, 0.9, 0.81]
    """
    check_functional(F)
    check_kind(path, Trajectory, "path")
    check_kind(initial, Particles, "initial")
    heat, rest = split_heat(F)
    made = path.snapshot_steps
    if len(made) < 2 or bool((made.diff() != 1).any()):
        msg = (
            f"a path needs the measure of every step, and of two or more, got those "
            f"after {made.tolist()!s:.60} steps; record them with every=1"
        )
        raise ValueError(msg)
    stream = seed_and_stream(generator, initial.points.device)[1]
    times = path.snapshot_times.tolist()
    found, x = [initial.detach()], initial.detach().points
    for k, mu in enumerate(path.snapshots[:-1]):
        dt = times[k + 1] - times[k]
        x = x + dt * _field(rest, mu, x)
        if heat > 0:
            x = x + math.sqrt(2.0 * heat * dt) * _noise(x, stream)
        found.append(Particles(x, initial.weights))
    return found


def _ends(
    rest: Functional,
    heat: float,
    start: tuple[Tensor, Tensor, list[int]],
    clock: tuple[float, int],
    stream: torch.Generator,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the last reference, the copies in its field, and the systems."""
    (limit, copies, rows), (dt, steps) = start, clock
    systems, scale = _cut(copies, rows), math.sqrt(2.0 * heat * dt)
    for k in range(steps):
        noises, kick = torch.zeros_like(copies), torch.zeros_like(limit)
        if heat > 0:
            noises, kick = scale * _noise(copies, stream), scale * _noise(limit, stream)
        try:
            mu = Particles(limit)
            copies = copies + dt * _field(rest, mu, copies) + noises
            limit = mu.push(rest.velocity(mu), dt).points + kick
            systems = [
                (nu := Particles(x)).push(rest.velocity(nu), dt).points + noise
                for x, noise in zip(systems, _cut(noises, rows), strict=True)
            ]
        except (Diverged, NonFinite) as error:
            if k == 0:
                raise
            what = str(error).split("; ")[0]
            msg = (
                f"step {k} of {steps}, of length {dt:g}, failed: {what}; take more "
                f"steps"
            )
            raise Diverged(msg, step=k) from error
    return limit, copies, systems


@dataclass(frozen=True, eq=False)
class _Found:
    """The last particles of all runs of one size, (runs, N, d), and their copies."""

    systems: Tensor
    copies: Tensor

    def observed(self, phi: Callable[[Any], Any], count: int) -> Tensor:
        return torch.stack([observed(phi, Particles(x), count) for x in self.systems])

    def gap(self) -> Tensor:
        return (self.systems - self.copies).square().sum(-1).mean().sqrt()

    def distance(self, target: Particles) -> Tensor:
        costs = [wasserstein2(Particles(x), target).square() for x in self.systems]
        return torch.stack(costs).mean().sqrt()

    def correlation(self, psi: Ground) -> Tensor:
        """Return the correlation of two particles of a run, by unbiased estimates.

        The variance within runs estimates v - c, that of the means (v + (N - 1) c)/N.
        """
        values = torch.stack([one_for_each(psi, x) for x in self.systems])
        within = values.var(1).mean()
        covariance = values.mean(1).var() - within / values.shape[1]
        return covariance / (within + covariance)


def _cut(x: Tensor, rows: list[int]) -> list[Tensor]:
    """Return the systems whose particles are stacked."""
    return list(torch.split(x, rows))


def _at(x: Tensor, stream: torch.Generator) -> torch.Generator:
    """Return a generator on the device of x, seeded by another one."""
    seed = torch.randint(2**62, (), generator=stream, device=stream.device)
    return torch.Generator(device=x.device).manual_seed(int(seed))


def _field(F: Functional, mu: Measure, x: Tensor) -> Tensor:
    """Return the velocity at probes, block by block."""
    return torch.cat([F.velocity(mu, x[rows]) for rows in tiles(len(x), PROBES)])


def _noise(x: Tensor, stream: torch.Generator) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=stream)


def _first(x: Tensor) -> Tensor:
    return x[:, 0]
