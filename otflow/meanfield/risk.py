"""The risk of a network on data, as a functional of the measure of its neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._algebra import curvature_named
from otflow._arrays import as_points
from otflow._autodiff import check_finite
from otflow._graphs import records
from otflow._pairs import tiles
from otflow._typing import ArrayLike
from otflow._validation import check_kind, check_like, non_negative_int
from otflow.errors import Unsupported
from otflow.functionals import Curvature, Functional
from otflow.functionals.inheritance import redefined as redefined_risk
from otflow.functionals.passes import at_once
from otflow.meanfield.decomposition import Decomposition, decompose
from otflow.meanfield.enclosed import correlation, enclosed_outputs
from otflow.meanfield.fused import value_and_gradient, value_and_variation
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.losses import CustomLoss, PerSample, Square, as_loss
from otflow.meanfield.network import Network, block_rows, redefined
from otflow.meanfield.units import Unit
from otflow.measures import Measure, Particles
from otflow.numerics.enclosed_operations import times
from otflow.numerics.enclosed_sums import Enclosed, over_columns, over_rows
from otflow.numerics.enclosures import Enclosure, NotEnclosed

__all__ = ["Risk"]


class Risk(Functional):
    r"""Risk :math:`F(\mu) = \frac1n\sum_k \ell(f_\mu(x_k), y_k)` of a network.

    The output :math:`f_\mu(x) = s_N\int\sigma(x;\theta)\,d\mu(\theta)` is linear in the
    measure. So F is convex in :math:`\mu` if the loss is convex
    :cite:p:`chizat2018global,mei2018mean`. With :math:`g_k = \partial_f\ell(f_\mu(x_k),
    y_k)`,

    .. math:: F'[\mu](\theta) = \frac{s_N}n\sum_k g_k\cdot\sigma(x_k;\theta), \qquad
        v = -\nabla_\theta F'[\mu].

    On N atoms of mass 1/N the velocity is -N times the gradient of the loss in the
    parameters of a neuron. Explicit Euler is gradient descent of learning rate N dt.

    Parameters
    ----------
    network : TwoLayer or CustomLayer
        The function of a neuron and the scaling of the outputs.
    X : Tensor or ndarray, shape (n, d)
        Inputs. They are detached and copied. The measures must have their dtype.
    y : Tensor or ndarray, shape (n,) or (n, m)
        Targets: numbers for "square", labels -1 and +1 for "logistic", integer classes
        (n,) for "cross-entropy", any tensor of n rows for a loss of your own.
    loss : str or callable
        "square", :math:`\tfrac12|f - y|^2`; "logistic", :math:`\log(1 + e^{-yf})`;
        "cross-entropy", :math:`-\log\mathrm{softmax}(f)_y`; or a function
        (f, y) -> (n,), one loss per sample. Losses are summed over outputs and averaged
        over data.
    mixture : {"convex", "concave", "linear"}, optional
        How a loss of your own bends in the outputs f, and so F along mixtures in the
        scaling "mean-field". It is not checked. The losses above are convex.
    batch_size : int, optional
        Number of samples that `resample` draws, at most n. By default `resample`
        returns the risk of all data. `schemes.Minibatch` draws before each step; every
        other scheme steps on all data, whatever the size.

    Attributes
    ----------
    network, X, y, batch_size
        As above; `y` is in the form that the loss takes.
    loss : str
        Name of the loss.
    mixture : Curvature or None
        The word given as `mixture`.

    Raises
    ------
    ValueError, TypeError
        If data are empty or not finite, if sizes, dtypes or devices differ, or if the
        loss does not accept the targets.

    Notes
    -----
    On particles with a built-in unit, one pass over blocks of data gives value and
    velocity, in the time of two products (n, d) x (d, N), with memory O(N p) beside the
    data.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.tensor([[-1.0], [0.0], [1.0]])
    >>> risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, X[:, 0].sin())
    >>> neurons = of.Particles(torch.randn(50, 3))  # rows (a, w, b)
    >>> run = of.flow(risk, neurons, of.ExplicitEuler(), dt=0.1, steps=200, every=200)
    >>> bool(run.records["energy"][-1] < 0.1 * run.records["energy"][0])
    True
    """

    def __init__(
        self,
        network: Network,
        X: ArrayLike,
        y: ArrayLike,
        *,
        loss: str | PerSample = "square",
        mixture: Curvature | str | None = None,
        batch_size: int | None = None,
    ) -> None:
        if not isinstance(network, Network):
            hint = "; write TwoLayer('relu')" if network is TwoLayer else ""
            msg = (
                f"network must be a TwoLayer or a CustomLayer, "
                f"got {network!r:.80}{hint}"
            )
            raise TypeError(msg)
        X = as_points(X, "X").detach()
        self.network = network
        self._loss = as_loss(loss)
        self.mixture = curvature_named(mixture, "mixture")
        self._dim = X.shape[1]
        self.y = self._loss.targets(y, X, network.outputs).clone()
        if batch_size is not None:
            batch_size = non_negative_int(batch_size, "batch_size", minimum=1)
            if batch_size > len(X):
                msg = f"batch_size must be at most n = {len(X)}, got {batch_size}"
                raise ValueError(msg)
        self.batch_size = batch_size
        self._inputs = network.encode(X)

    @property
    def X(self) -> Tensor:
        """The inputs, (n, d)."""
        return self._inputs[:, : self._dim]

    @property
    def loss(self) -> str:
        """The name of the loss."""
        return self._loss.name

    def outputs(self, mu: Measure) -> Tensor:
        r"""Return :math:`f_\mu(x_k)` at the data.

        Parameters
        ----------
        mu : Measure
            Measure over neurons.

        Returns
        -------
        Tensor, shape (n,) or (n, m)
            Differentiable in the measure's points and weights.
        """
        self._check(mu)
        masses = self.network.masses(mu.weights)
        return self.network.evaluate(self._inputs, mu.points, masses)

    def value(self, mu: Measure) -> Tensor:
        return self._loss.values(self.outputs(mu), self.y).mean()

    def value_and_velocity(self, mu: Measure) -> tuple[Tensor, Tensor]:
        network = self.network
        # The closed form needs atoms and a slope of the activation, and has no graph.
        if (
            not isinstance(mu, Particles)
            or not isinstance(network, TwoLayer)
            or not isinstance(network.activation, Unit)
            or records(mu.points, mu.weights)
            or redefined(network) is not None
        ):
            return super().value_and_velocity(mu)
        self._check(mu)
        with torch.no_grad():
            value, gradient = value_and_gradient(
                network,
                network.activation,
                self._loss,
                self._inputs,
                self.y,
                mu.points,
                network.masses(mu.weights),
            )
            velocity = gradient.mul_(-network.scale(mu.weights))
        check_finite(value, "the functional's value")
        check_finite(velocity, "the functional's gradient")
        return value, velocity

    def value_and_derivatives(self, mu: Measure) -> tuple[Tensor, Tensor, Tensor]:
        network = self.network
        if not isinstance(network, TwoLayer) or redefined(network) is not None:
            found = at_once(self.value, mu)
            return super().value_and_derivatives(mu) if found is None else found
        value, velocity = self.value_and_velocity(mu)
        if not isinstance(mu, Particles):
            return value, velocity, self.first_variation(mu)
        # A neuron is linear in its outer weights a: F'(theta) = a . grad_a F'(theta).
        outer, moves = network.split(mu.points)[0], network.split(velocity)[0]
        return value, velocity, -(outer * moves).sum(-1)

    def first_variation(self, mu: Measure, x: ArrayLike | None = None) -> Tensor:
        if not isinstance(mu, Particles) or redefined(self.network) is not None:
            return super().first_variation(mu, x)
        self._check(mu)
        probes = None if x is None else as_points(x, "x")
        if probes is not None:
            check_like(probes, mu.points, "x", "points")
            self.network.check_neurons(probes, self._dim)
        if records(mu.points, mu.weights, mu.points if probes is None else probes):
            return super().first_variation(mu, probes)
        return self._value_and_variation(mu, probes)[1]

    def value_and_first_variation(self, mu: Measure) -> tuple[Tensor, Tensor]:
        if (
            not isinstance(mu, Particles)
            or redefined(self.network) is not None
            or records(mu.points, mu.weights)
        ):
            return super().value_and_first_variation(mu)
        self._check(mu)
        value, variation = self._value_and_variation(mu, None)
        check_finite(value, "the functional's value")
        return value, variation

    def _value_and_variation(
        self, mu: Particles, probes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the value, and F' at checked probes or at the atoms; no graphs."""
        with torch.no_grad():
            value, variation = value_and_variation(
                self.network, self._loss, self._inputs, self.y, mu, probes
            )
        check_finite(variation, "the functional's gradient")
        return value, variation

    def enclosed_variation(self, mu: Measure) -> Enclosed:
        if not isinstance(mu, Particles) or self.network.scaling != "mean-field":
            msg = f"{self!r} is enclosed on Particles in the mean-field scaling alone"
            raise NotEnclosed(msg)
        if (name := redefined(self.network)) is not None:
            msg = (
                f"{type(self.network).__name__}.{name} changes the outputs, of which "
                f"no bounds are known then"
            )
            raise NotEnclosed(msg)
        inputs = self._inputs.to(torch.float64)
        slopes = self._enclosed_slopes(mu, inputs)

        mean = times(slopes, 1 / len(inputs)).value

        def features(rows: slice, theta: Enclosure) -> Tensor:
            return self.network.sigma(inputs[rows], theta)

        def enclosed(x: Enclosure) -> Enclosure:
            closed = correlation(self.network, inputs, x, mean)
            return over_rows(features, x, mean) if closed is None else closed

        return enclosed

    def _enclosed_slopes(self, mu: Measure, inputs: Tensor) -> Enclosure:
        """Return the slopes of the losses at the data, with the round-off of f."""
        closed = enclosed_outputs(self.network, inputs, mu.points, mu.weights)
        if closed is not None:
            f = self.network.add_offset(closed)
            assert isinstance(f, Enclosure)
            return self._loss.enclosed_slope(f, self.y)
        atoms = Enclosure.of(mu.points, mu.points, 0)
        outputs = [
            over_columns(self.network.sigma(inputs[rows], atoms), mu.weights)
            for rows in tiles(len(inputs), block_rows(mu.n, mu.points))
        ]
        f = self.network.add_offset(torch.cat(outputs))
        assert isinstance(f, Enclosure)
        return self._loss.enclosed_slope(f, self.y)

    def mixture_curvature(self) -> Curvature | None:
        # The outputs are linear in the measure in this scaling alone.
        if self.network.scaling != "mean-field" or redefined(self.network):
            return None
        return Curvature.CONVEX if self._loss.convex else self.mixture

    def why_mixture(self) -> str:
        if self.network.scaling != "mean-field":
            return (
                f"since in the scaling {self.network.scaling!r} the outputs depend on "
                f"the number of atoms: take scaling='mean-field'"
            )
        if (name := redefined(self.network)) is not None:
            network = type(self.network).__name__
            return (
                f"since {network}.{name} changes the outputs, which need not be linear "
                f"then: state mixture_curvature in a subclass of Risk"
            )
        if self._loss.convex:
            return f"since the outputs are linear and the loss {self.loss!r} is convex"
        if self.mixture is not None:
            return (
                f"since the outputs are linear in the measure, and mixture="
                f"{str(self.mixture)!r} declares the loss {self.mixture}"
            )
        return "since no shape of the loss is declared: Risk(..., mixture='convex')"

    def resample(self, generator: torch.Generator) -> Risk:
        """Return the risk of a random batch, an unbiased copy.

        The batch is drawn without replacement. Without a `batch_size` the result is the
        risk itself.
        """
        if self.batch_size is None:
            return self
        n = len(self.y)
        # On the device of the generator: the same batch wherever the data are.
        order = torch.randperm(n, generator=generator, device=generator.device)
        index = order[: self.batch_size].to(self.y.device)
        return self.subset(index)

    def subset(self, index: Tensor) -> Risk:
        """Return the risk of a part of the data, the mean over that part.

        Parameters
        ----------
        index : Tensor, shape (k,)
            Rows of the data. The indices are not checked.

        Returns
        -------
        Risk
            The risk with the same network and loss, and with copies of these data.
        """
        # The constructor would check and copy the data again.
        new = object.__new__(type(self))
        new.network, new._loss, new._dim = self.network, self._loss, self._dim
        new.y, new._inputs = self.y[index], self._inputs[index]
        new.batch_size, new.mixture = None, self.mixture
        return new

    def decompose(self) -> Decomposition:
        r"""Return F = constant + potential + interaction, for the square loss.

        With targets reduced by the network's offset,

        .. math:: F(\mu) = \tfrac12\overline{|y|^2} + \int E\,d\mu
            + \tfrac12\iint K\,d\mu\,d\mu, \qquad
            E(\theta) = -\overline{y\cdot\sigma(\theta)},\quad
            K(\theta, \theta') = \overline{\sigma(\theta)\cdot\sigma(\theta')},

        where bars are means over the data :cite:p:`rotskoff2018parameters`.

        Returns
        -------
        Decomposition
            The parts.

        Raises
        ------
        Unsupported
            If the loss is not "square", so that F is not quadratic in the measure; or
            if the scaling is not "mean-field", so that the parts depend on the number
            of atoms; or if a class of your own evaluates the risk otherwise.
        """
        if not isinstance(self._loss, Square):
            msg = (
                f"the risk with loss {self.loss!r} is not quadratic in the measure and "
                f"has no kernel; use loss='square'"
            )
            raise Unsupported(msg)
        kinds: list[tuple[type, str | None]] = [
            (type(self), redefined_risk(self, Risk)),
            (type(self.network), redefined(self.network)),
        ]
        for kind, name in kinds:
            if name is not None:
                msg = (
                    f"{kind.__name__}.{name} changes the risk, and its parts are known "
                    f"of the library's own classes; state neurons of your own as "
                    f"CustomLayer(sigma)"
                )
                raise Unsupported(msg)
        if self.network.scaling != "mean-field":
            msg = (
                f"in the scaling {self.network.scaling!r} the parts depend on the "
                f"number of atoms; use scaling='mean-field'"
            )
            raise Unsupported(msg)
        return decompose(self.network, self._inputs, self.y)

    def _check(self, mu: Measure) -> None:
        check_kind(mu, Measure, "mu")
        check_like(mu.points, self._inputs, "the measure", "X")
        self.network.check_neurons(mu.points, self._dim)

    def __repr__(self) -> str:
        batch = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        # A function of the name "square" is not the loss "square".
        custom = isinstance(self._loss, CustomLoss)
        loss = self.loss if custom else repr(self.loss)
        return f"Risk({self.network!r}, n={len(self.y)}, loss={loss}{batch})"
