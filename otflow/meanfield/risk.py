"""The risk of a network on data, as a functional of the measure of its neurons."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from otflow._algebra import curvature_named
from otflow._arrays import as_points
from otflow._autodiff import check_finite
from otflow._typing import ArrayLike
from otflow._validation import check_kind, check_like, non_negative_int
from otflow.errors import Unsupported
from otflow.functionals import Curvature, Functional
from otflow.functionals.inheritance import redefined as redefined_risk
from otflow.functionals.passes import at_once
from otflow.meanfield.decomposition import Decomposition, decompose
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.linearity import (
    enclosed_risk,
    linear,
    why_not_linear,
    why_not_quadratic,
)
from otflow.meanfield.losses import CustomLoss, Loss, PerSample, as_loss
from otflow.meanfield.model import Model, evaluated, finite, redefined
from otflow.measures import Measure, Particles
from otflow.numerics.enclosed_sums import Enclosed
from otflow.numerics.enclosures import NotEnclosed

__all__ = ["Risk"]

T = TypeVar("T", bound=tuple[Tensor, ...])


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
    network : TwoLayer, CustomLayer or another Model
        The function of a neuron and the scaling of the outputs; or a function that a
        measure parametrises in another way, for which the formulas above do not hold.
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
        network: Model,
        X: ArrayLike,
        y: ArrayLike,
        *,
        loss: str | PerSample = "square",
        mixture: Curvature | str | None = None,
        batch_size: int | None = None,
    ) -> None:
        if not isinstance(network, Model):
            hint = "; write TwoLayer('relu')" if network is TwoLayer else ""
            msg = (
                f"network must be a TwoLayer, a CustomLayer or another Model, "
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
    def exchangeable(self) -> bool:  # type: ignore[override]
        """Whether the network is."""
        return self.network.exchangeable

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

        Raises
        ------
        NonFinite
            If an output is infinite or NaN.
        """
        self._check(mu)
        return finite(evaluated(self.network, self._inputs, mu), self.network)

    def value(self, mu: Measure) -> Tensor:
        return self._loss.values(self.outputs(mu), self.y).mean()

    def value_and_velocity(self, mu: Measure) -> tuple[Tensor, Tensor]:
        self._check(mu)
        found = None
        if self._takes_passes():
            found = self.network.value_and_velocity(*self._problem(), mu)
        if found is None:
            return super().value_and_velocity(mu)
        return _finite(found)

    def value_and_derivatives(self, mu: Measure) -> tuple[Tensor, Tensor, Tensor]:
        self._check(mu)
        found = None
        if self._takes_passes():
            found = self.network.value_and_derivatives(*self._problem(), mu)
        if found is not None:
            return _finite(found)
        # A pass for the velocity alone leaves F': autodiff gives all three at once.
        return at_once(self.value, mu) or super().value_and_derivatives(mu)

    def first_variation(self, mu: Measure, x: ArrayLike | None = None) -> Tensor:
        self._check(mu)
        probes = None if x is None else mu.check_probes(x)
        found = self._value_and_variation(mu, probes)
        return super().first_variation(mu, probes) if found is None else found[1]

    def value_and_first_variation(self, mu: Measure) -> tuple[Tensor, Tensor]:
        self._check(mu)
        found = self._value_and_variation(mu, None)
        return super().value_and_first_variation(mu) if found is None else found

    def _takes_passes(self) -> bool:
        """Return whether the passes that the network's class states are of its outputs.

        A subclass that evaluates the outputs otherwise is differentiated by autodiff.
        """
        return redefined(self.network) is None

    def _problem(self) -> tuple[Loss, Tensor, Tensor]:
        """Return what a pass needs beside the measure."""
        return self._loss, self._inputs, self.y

    def _value_and_variation(
        self, mu: Measure, probes: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """Return the value, and F' at checked probes or at the atoms, by a pass."""
        if not self._takes_passes():
            return None
        found = self.network.value_and_first_variation(*self._problem(), mu, probes)
        return None if found is None else _finite(found)

    def enclosed_variation(self, mu: Measure) -> Enclosed:
        if not isinstance(mu, Particles):
            msg = f"{self!r} is enclosed on Particles alone"
            raise NotEnclosed(msg)
        if (why := why_not_linear(self.network)) is not None:
            msg = f"{self!r} is not enclosed, {why}"
            raise NotEnclosed(msg)
        return enclosed_risk(linear(self.network), self._loss, self._inputs, self.y, mu)

    def mixture_curvature(self) -> Curvature | None:
        if why_not_linear(self.network) is not None:
            return None
        return Curvature.CONVEX if self._loss.convex else self.mixture

    def why_mixture(self) -> str:
        if (why := why_not_linear(self.network)) is not None:
            return why
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
        own = redefined_risk(self, Risk)
        changed = None if own is None else f"{type(self).__name__}.{own}"
        why = why_not_quadratic(self.network, self._loss, changed)
        if why is not None:
            raise Unsupported(why)
        return decompose(linear(self.network), self._inputs, self.y)

    def _check(self, mu: Measure) -> None:
        check_kind(mu, Measure, "mu")
        check_like(mu, self._inputs, "the measure", "X")
        self.network.check_measure(mu, self._dim)

    def __repr__(self) -> str:
        batch = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        # A function of the name "square" is not the loss "square".
        custom = isinstance(self._loss, CustomLoss)
        loss = self.loss if custom else repr(self.loss)
        return f"Risk({self.network!r}, n={len(self.y)}, loss={loss}{batch})"


def _finite(found: T) -> T:
    """Return a value and derivatives; raise NonFinite where an entry is not finite."""
    value, *derivatives = found
    check_finite(value, "the functional's value")
    for derivative in derivatives:
        check_finite(derivative, "the functional's gradient")
    return found
