"""The risk on fresh data at every step, drawn from a law or from a `DataLoader`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from otflow._graphs import records
from otflow._typing import ArrayLike
from otflow._validation import check_function, check_generator, check_kind
from otflow.errors import InvalidFunctional, Unsupported
from otflow.functionals import Curvature, Functional
from otflow.meanfield.losses import PerSample
from otflow.meanfield.model import Model
from otflow.meanfield.risk import Risk
from otflow.measures import Measure

__all__ = ["OnlineRisk", "from_loader"]

Draw: TypeAlias = Callable[[torch.Generator], tuple[Any, Any]]
"""A function of a generator to fresh inputs (n, d) and targets."""


class OnlineRisk(Functional):
    r"""The risk :math:`F(\mu) = E\,\ell(f_\mu(x), y)` by fresh data at every step.

    With `schemes.Minibatch` every step is one of stochastic gradient descent on data
    that were not seen before. For small steps and many neurons it follows the flow of
    the population risk :cite:p:`mei2018mean`. The value, and so the energy that a flow
    records, is the risk on test data. No step is taken on these: a scheme that would do
    so raises.

    Parameters
    ----------
    network : TwoLayer or CustomLayer
        The network.
    draw : callable
        A function of a `torch.Generator` that returns inputs (n, d) and targets, made
        with this generator alone.
    test : tuple of Tensor or ndarray
        Inputs and targets of the test.
    loss, mixture
        As those of `Risk`.

    Attributes
    ----------
    network, draw
        As above.
    test : Risk
        The risk on the test data.

    Raises
    ------
    Unsupported
        From its derivatives: they would be those of the test data.
    InvalidFunctional
        From `resample`, if `draw` returns no pair.

    See Also
    --------
    from_loader : Draws from a `DataLoader`.
    PopulationRisk : The expectation in closed form.

    Examples
    --------
    >>> import torch, otflow as of
    >>> def draw(generator, n=64):
    ...     X = torch.randn(n, 1, generator=generator)
    ...     return X, X[:, 0].sin()
    >>> test = draw(torch.Generator().manual_seed(1), 500)
    >>> risk = of.meanfield.OnlineRisk(of.meanfield.TwoLayer("tanh"), draw, test)
    >>> mu = of.Particles(
    ...     torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    ... )
    >>> scheme = of.schemes.Minibatch(of.ExplicitEuler())
    >>> run = of.flow(risk, mu, scheme, dt=0.2, steps=100, every=100, generator=0)
    >>> bool(run.records["energy"][-1] < 0.2 * run.records["energy"][0])
    True
    """

    def __init__(
        self,
        network: Model,
        draw: Draw,
        test: tuple[ArrayLike, ArrayLike],
        *,
        loss: str | PerSample = "square",
        mixture: Curvature | str | None = None,
    ) -> None:
        check_function(draw, "draw must be a function of a generator")
        self.draw = draw
        X, y = _pair(test, "test")
        self.test = Risk(network, X, y, loss=loss, mixture=mixture)
        self._options: dict[str, Any] = {"loss": loss, "mixture": mixture}

    @property
    def network(self) -> Model:
        """The network."""
        return self.test.network

    @property
    def exchangeable(self) -> bool:  # type: ignore[override]
        """Whether the network is."""
        return self.network.exchangeable

    def value(self, mu: Measure) -> Tensor:
        if records(*mu.tensors()):
            raise Unsupported(_NO_STEP)
        return self.test.value(mu)

    def first_variation(self, mu: Measure, x: ArrayLike | None = None) -> Tensor:
        raise Unsupported(_NO_STEP)

    def value_and_velocity(self, mu: Measure) -> tuple[Tensor, Tensor]:
        raise Unsupported(_NO_STEP)

    def resample(self, generator: torch.Generator) -> Risk:
        """Return the risk on data drawn now.

        Parameters
        ----------
        generator : torch.Generator
            Source of randomness, which `draw` is given.

        Returns
        -------
        Risk
            Its expectation over draws is the population risk.
        """
        check_generator(generator)
        X, y = _pair(self.draw(generator), "draw(generator)")
        return Risk(self.network, X, y, **self._options)

    def mixture_curvature(self) -> Curvature | None:
        return self.test.mixture_curvature()

    def why_mixture(self) -> str:
        return self.test.why_mixture()

    def __repr__(self) -> str:
        drawn = getattr(self.draw, "__name__", None) or repr(self.draw)
        return (
            f"OnlineRisk({self.network!r}, {drawn}, test n={len(self.test.y)}, "
            f"loss={self.test.loss!r})"
        )


_NO_STEP = (
    "the derivatives of an OnlineRisk would be those of its test data; step with "
    "schemes.Minibatch(scheme), which draws fresh data, or differentiate the risk "
    "F.test if the test data are meant"
)


def from_loader(loader: DataLoader[Any]) -> Draw:
    """Return a function that draws batches from the data set of a `DataLoader`.

    It is the `draw` of an `OnlineRisk`. A batch is drawn with the generator of the
    flow, so that the same seed gives the same run and a run can be resumed: uniformly,
    without replacement inside of a batch, or with replacement if the loader's sampler
    says so. Successive batches are independent. The data set, the size of a batch and
    `collate_fn` are those of the loader. Its workers, its order and its generator are
    not used.

    Parameters
    ----------
    loader : torch.utils.data.DataLoader
        A loader of a data set with a length, whose batches are pairs of inputs (n, d)
        and targets.

    Returns
    -------
    callable
        A function of a generator to inputs and targets. It raises `InvalidFunctional`
        if the data set has changed its size.

    Raises
    ------
    Unsupported
        If the data set has no length, or if the loader has a sampler of its own, or one
        of other data, whose law is not known, or if it makes no batches.
    ValueError
        If the data set is empty.

    Examples
    --------
    >>> import torch, otflow as of
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> X = torch.linspace(-1, 1, 100)[:, None]
    >>> loader = DataLoader(TensorDataset(X, X[:, 0].sin()), batch_size=10)
    >>> draw = of.meanfield.from_loader(loader)
    >>> [tuple(part.shape) for part in draw(torch.Generator().manual_seed(0))]
    [(10, 1), (10,)]
    """
    check_kind(loader, DataLoader, "loader")
    data: Any = loader.dataset
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        msg = (
            f"batches are drawn by their indices, and {type(data).__name__} has no "
            f"length; give OnlineRisk a function of a generator that returns (X, y)"
        )
        raise Unsupported(msg)
    size = len(data)
    sampler: Any = loader.sampler
    if not size:
        msg = "the data set of the loader is empty, and has no sample to draw"
        raise ValueError(msg)
    # A sampler of other data draws from a part of these, or beyond them.
    plain = type(sampler) in (RandomSampler, SequentialSampler) and (
        len(sampler.data_source) == size
    )
    if loader.batch_size is None and loader.batch_sampler is None:
        msg = (
            "the loader makes no batches, as its batch_size is None; take "
            "DataLoader(data, batch_size=...), or give OnlineRisk a function of a "
            "generator that returns (X, y)"
        )
        raise Unsupported(msg)
    if loader.batch_size is None or not plain:
        kind = type(sampler if loader.batch_size else loader.batch_sampler)
        msg = (
            f"the batches of {kind.__name__} have a law that is not known; take a "
            f"DataLoader(data, batch_size=..., shuffle=True), or give OnlineRisk a "
            f"function of a generator that returns (X, y)"
        )
        raise Unsupported(msg)
    return _Batches(loader)


class _Batches:
    """Draws of a loader's data set."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        data: Any = loader.dataset
        self.data, self.size, self.batch = data, len(data), int(loader.batch_size or 1)
        self.collate = loader.collate_fn
        self.replace = bool(getattr(loader.sampler, "replacement", False))

    def __call__(self, generator: torch.Generator) -> tuple[Any, Any]:
        """Return inputs and targets of one batch."""
        size = len(self.data)
        if size != self.size:
            msg = (
                f"the data set had {self.size} samples and has {size} now, so that its "
                f"draws have another law; make a new OnlineRisk of from_loader(loader)"
            )
            raise InvalidFunctional(msg)
        place: dict[str, Any] = {"generator": generator, "device": generator.device}
        if self.replace:
            index = torch.randint(size, (self.batch,), **place)
        else:
            index = torch.randperm(size, **place)[: self.batch]
        rows = [self.data[k] for k in index.tolist()]
        return _pair(self.collate(rows), "a batch of the loader")

    def __repr__(self) -> str:
        return f"from_loader(n={self.size}, batch_size={self.batch})"


def _pair(data: Any, name: str) -> tuple[Any, Any]:
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        kind = type(data).__name__
        size = f" of {len(data)}" if isinstance(data, (tuple, list)) else ""
        msg = f"{name} must be a pair (X, y) of inputs and targets, got {kind}{size}"
        raise InvalidFunctional(msg)
    return data[0], data[1]
