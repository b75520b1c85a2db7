"""Test risks of networks of m neurons, trained on n data for a time t."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from otflow._typing import Seed
from otflow._validation import check_kind, non_negative_int, positive, seed_and_stream
from otflow.analysis.chaos_inputs import Initial, device_of, start_of
from otflow.errors import NotConverged
from otflow.flow import flow
from otflow.meanfield import Risk
from otflow.measures import Particles
from otflow.schemes import ExplicitEuler
from otflow.schemes.base import Scheme
from otflow.trajectory import Trajectory

__all__ = ["RiskTable", "risk_table"]


@dataclass(frozen=True, eq=False)
class RiskTable:
    r"""The risks :math:`R(f_{m,n,t})` for several m, n and t.

    Parameters
    ----------
    neurons : tuple of int, length M
        The numbers m of neurons.
    samples : tuple of int, length S
        The numbers n of data.
    times : tuple of float, length T
        The times t of training.
    train : Tensor, shape (M, S, T)
        The risks of the n data on which a network is trained.
    test : Tensor, shape (M, S, T)
        The risks of the other data.

    Attributes
    ----------
    neurons, samples, times, train, test
        As above.

    See Also
    --------
    risk_table : Makes a table.

    Examples
    --------
    >>> import torch, otflow as of
    >>> test = torch.tensor([[[0.5, 0.2, 0.3]]])
    >>> table = of.analysis.RiskTable((20,), (100,), (1.0, 10.0, 100.0), test, test)
    >>> table.stopping
    tensor([[10.]])
    >>> table
    RiskTable: test risk at the times t, and where it is least
        m      n        1       10      100    least at t
       20    100   0.5000   0.2000   0.3000   0.2000 at 10
    """

    neurons: tuple[int, ...]
    samples: tuple[int, ...]
    times: tuple[float, ...]
    train: Tensor
    test: Tensor

    @property
    def least(self) -> Tensor:
        """The least test risk over the times, that of the best early stopping.

        Returns
        -------
        Tensor, shape (M, S)
            It is chosen by the test data themselves, and so a little too small.
        """
        return self.test.min(-1).values

    @property
    def stopping(self) -> Tensor:
        """The time at which the test risk is least.

        Returns
        -------
        Tensor, shape (M, S)
            One of the times.
        """
        return self.test.new_tensor(self.times)[self.test.argmin(-1)]

    def __repr__(self) -> str:
        heads = "".join(f"{t:9.4g}" for t in self.times)
        lines = [
            "RiskTable: test risk at the times t, and where it is least",
            f"{'m':>5}{'n':>7}{heads}    least at t",
        ]
        for i, m in enumerate(self.neurons):
            for j, n in enumerate(self.samples):
                row = "".join(f"{float(v):9.4f}" for v in self.test[i, j])
                best = f"{float(self.least[i, j]):9.4f} at {self.stopping[i, j]:.4g}"
                lines.append(f"{m:5d}{n:7d}{row}{best}")
        return "\n".join(lines)


def risk_table(
    risk: Risk,
    test: Risk,
    start: Initial,
    *,
    neurons: Sequence[int],
    samples: Sequence[int],
    times: Sequence[float],
    dt: float | Callable[[int], float],
    scheme: Scheme | None = None,
    steps: int = 100_000,
    generator: Seed = 0,
) -> RiskTable:
    r"""Train networks of several sizes on several numbers of data, and test them.

    The survey asks for a bound :math:`R(f_{m,n,t}) \le e(1/m, 1/n, t)` of networks of m
    neurons that are trained on n data for a finite time t, and leaves it open. The
    table is what such a bound has to say: with few noisy data the test risk falls, then
    rises again, so that training should stop early; with many it does not rise, and it
    does not grow with m.

    Parameters
    ----------
    risk : Risk
        The risk of all training data. Its first n data are those of a row.
    test : Risk
        The risk of other data, with the same network.
    start : Measure or callable
        The law of the neurons at time 0: a measure with `sample`, or a function of m
        and a generator to points (m, p).
    neurons : sequence of int
        The numbers m.
    samples : sequence of int
        The numbers n, each at most the number of data of `risk`.
    times : sequence of float
        The times t > 0 of the flow, increasing.
    dt : float or callable
        Time step, as of `otflow.flow`.
    scheme : Scheme, optional
        How to train; by default explicit Euler, gradient descent.
    steps : int
        Most steps of a run.
    generator : int or torch.Generator, optional
        Seed or source of randomness. All networks of one m have the same start.

    Returns
    -------
    RiskTable
        The risks. ``test`` is the value of the risk that is given as `test`: with the
        square loss half the mean square.

    Raises
    ------
    ValueError
        If a list is empty, times do not increase, n is above the number of data, or the
        two risks are of different networks.
    Diverged
        If a step leaves the finite numbers; take a smaller dt.
    NotConverged
        If a run does not reach a time within `steps`.

    See Also
    --------
    weight_size_bound : A bound that needs the path norm, not the time.

    Notes
    -----
    One run of the flow for each m and n, as long as the longest time.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.linspace(-1, 1, 40)[:, None]
    >>> network = of.meanfield.TwoLayer("relu")
    >>> risk = of.meanfield.Risk(network, X[::2], X[::2, 0].abs())
    >>> test = of.meanfield.Risk(network, X[1::2], X[1::2, 0].abs())
    >>> def normal(m, generator):
    ...     return torch.randn(m, 3, generator=generator)
    >>> table = of.analysis.risk_table(
    ...     risk, test, normal, neurons=[50], samples=[20], times=[1.0, 8.0], dt=0.1
    ... )
    >>> bool(table.test[0, 0, 1] < table.test[0, 0, 0])
    True
    """
    cure = "give meanfield.Risk(network, X, y)"
    check_kind(risk, Risk, "risk", cure=cure)
    check_kind(test, Risk, "test", cure=cure)
    _same_network(risk, test)
    sizes = _counts(neurons, "neurons", None)
    counts = _counts(samples, "samples", len(risk.y))
    ends = _times(times)
    plan = ExplicitEuler() if scheme is None else scheme
    most = non_negative_int(steps, "steps", minimum=1)
    _, stream = seed_and_stream(generator, device_of(start, generator))
    train, tested = [], []
    for m in sizes:
        mu = Particles(start_of(start, m, stream))
        seed = int(torch.randint(2**62, (), generator=stream, device=stream.device))
        for n in counts:
            part = risk.subset(torch.arange(n, device=risk.y.device))
            found = _at_times(part, test, mu, plan, ends, (dt, most), seed)
            train.append(found[0])
            tested.append(found[1])
    shape = len(sizes), len(counts), len(ends)
    return RiskTable(
        sizes,
        counts,
        ends,
        torch.stack(train).reshape(shape),
        torch.stack(tested).reshape(shape),
    )


def _same_network(risk: Risk, test: Risk) -> None:
    """Raise ValueError if the neurons of one risk mean something else in the other."""
    one, other = repr(risk.network), repr(test.network)
    if risk.network is not test.network and one != other:
        msg = (
            f"the risk is that of {one} and the test that of {other}, so that a "
            f"trained network is not the one that is tested; give "
            f"Risk(risk.network, X, y) of other data as test"
        )
        raise ValueError(msg)


def _at_times(
    part: Risk,
    test: Risk,
    mu: Particles,
    scheme: Scheme,
    times: tuple[float, ...],
    clock: tuple[float | Callable[[int], float], int],
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return the training and the test risks at the times of one run."""
    run: Trajectory[Any] | None = None
    train, tested = [], []
    dt, most = clock
    for t in times:
        made = 0 if run is None else len(run.info)
        run = flow(
            part,
            mu,
            scheme,
            dt=dt,
            steps=max(most - made, 0),
            until=t,
            every=most,
            snapshots="none",
            resume=run,
            generator=seed if run is None else None,
        )
        if run.status == "unfinished":
            msg = (
                f"{part!r} from {mu.n} neurons has not reached the time {t:g} after "
                f"{most} steps; take a larger dt, earlier times, or more steps"
            )
            raise NotConverged(msg, result=run)
        with torch.no_grad():
            train.append(part.value(run.final))
            tested.append(test.value(run.final))
    return torch.stack(train), torch.stack(tested)


def _counts(values: Sequence[int], name: str, most: int | None) -> tuple[int, ...]:
    if not isinstance(values, Iterable):
        msg = f"{name} must be several numbers, e.g. [10, 100], got {values!r:.60}"
        raise TypeError(msg)
    counts = tuple(
        non_negative_int(n, f"{name}[{k}]", minimum=1) for k, n in enumerate(values)
    )
    if not counts:
        msg = f"{name} is empty; give one number or more, e.g. [10, 100]"
        raise ValueError(msg)
    if most is not None and max(counts) > most:
        msg = (
            f"{name} must be at most the {most} data of the risk, got {max(counts)}; "
            f"give a risk of more data, or {name} up to {most}"
        )
        raise ValueError(msg)
    return counts


def _times(times: Sequence[float]) -> tuple[float, ...]:
    if not isinstance(times, Iterable):
        msg = f"times must be several numbers, e.g. [1.0, 10.0], got {times!r:.60}"
        raise TypeError(msg)
    ends = tuple(positive(t, f"times[{k}]") for k, t in enumerate(times))
    if not ends:
        msg = "times is empty; give one time or more, e.g. [1.0, 10.0]"
        raise ValueError(msg)
    if any(b <= a for a, b in pairwise(ends)):
        msg = f"times must increase, got {list(ends)}; give sorted(times)"
        raise ValueError(msg)
    return ends
