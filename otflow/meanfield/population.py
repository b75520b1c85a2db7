"""The risk over all inputs of a law, in closed form, against a teacher network."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._arrays import as_points
from otflow._graphs import records
from otflow._pairs import pair_sum, tiles
from otflow._typing import ArrayLike
from otflow._validation import check_finite, check_kind, check_like
from otflow.errors import Unsupported
from otflow.functionals import Curvature, Functional, Potential
from otflow.functionals.inheritance import redefined
from otflow.meanfield.closed_kernels import ClosedKernel, closed_kernel
from otflow.meanfield.decomposition import Decomposition
from otflow.meanfield.network import block_rows
from otflow.measures import Measure, Particles

__all__ = ["PopulationRisk"]

# Matrices of one block that live at the same time.
BUFFERS = 6


class _KernelEnergy(Functional):
    r"""Half the double integral of a a' k(w, w') over the measure minus a teacher."""

    teacher: Particles | None = None

    def __init__(self, kernel: ClosedKernel, dim: int) -> None:
        self._kernel, self._dim = kernel, dim

    def value(self, mu: Measure) -> Tensor:
        self._check(mu.points, mu)
        inner, masses = self._signed(mu)

        def energy(w: Tensor, m: Tensor, u: Tensor, n: Tensor, _: bool) -> Tensor:
            return 0.5 * (m @ (self._kernel.matrix(w, u) @ n))

        return pair_sum(energy, inner, masses)

    def first_variation(self, mu: Measure, x: ArrayLike | None = None) -> Tensor:
        at = mu.points if x is None else as_points(x, "x")
        if not isinstance(mu, Particles) or records(mu.points, mu.weights, at):
            return super().first_variation(mu, x)
        self._check(mu.points, mu)
        self._check(at, mu, "x")
        return at[:, 0] * self._field(mu, at)[0]

    def value_and_velocity(self, mu: Measure) -> tuple[Tensor, Tensor]:
        if not isinstance(mu, Particles) or records(mu.points, mu.weights):
            return super().value_and_velocity(mu)
        return self._all_at_once(mu)[:2]

    def value_and_first_variation(self, mu: Measure) -> tuple[Tensor, Tensor]:
        if not isinstance(mu, Particles) or records(mu.points, mu.weights):
            return super().value_and_first_variation(mu)
        self._check(mu.points, mu)
        outputs = self._field(mu, mu.points)[0]
        return self._value(mu, outputs), mu.points[:, 0] * outputs

    def value_and_derivatives(self, mu: Measure) -> tuple[Tensor, Tensor, Tensor]:
        if not isinstance(mu, Particles) or records(mu.points, mu.weights):
            return super().value_and_derivatives(mu)
        return self._all_at_once(mu)

    def _all_at_once(self, mu: Particles) -> tuple[Tensor, Tensor, Tensor]:
        """Return value, velocity and first variation by one visit of the pairs."""
        self._check(mu.points, mu)
        outer = mu.points[:, 0]
        outputs, slopes = self._field(mu, mu.points, slopes=True)
        velocity = -torch.cat([outputs[:, None], outer[:, None] * slopes], dim=1)
        return self._value(mu, outputs), velocity, outer * outputs

    def _value(self, mu: Particles, outputs: Tensor) -> Tensor:
        """Return the value from the integral of a' k(w, w') at the neurons."""
        value = 0.5 * ((mu.weights * mu.points[:, 0]) @ outputs)
        if self.teacher is not None:
            fixed = self.teacher
            own = self._field(mu, fixed.points)[0]
            value = value - 0.5 * ((fixed.weights * fixed.points[:, 0]) @ own)
        return value

    def _velocity_at(self, mu: Measure, x: Tensor) -> Tensor:
        if not isinstance(mu, Particles) or records(mu.points, mu.weights, x):
            return super()._velocity_at(mu, x)
        self._check(mu.points, mu)
        self._check(x, mu, "x")
        outputs, slopes = self._field(mu, x, slopes=True)
        return -torch.cat([outputs[:, None], x[:, :1] * slopes], dim=1)

    def _field(
        self, mu: Measure, at: Tensor, *, slopes: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the integral of a' k(w, w') at neurons, and its slope in w."""
        with torch.no_grad():
            inner, masses = self._signed(mu)
            outputs, gradients = at.new_empty(len(at)), at.new_empty(len(at), self._dim)
            weighted = masses[:, None] * inner
            for rows in tiles(len(at), block_rows(len(inner), at, BUFFERS)):
                w = at[rows, 1:]
                if not slopes:
                    outputs[rows] = self._kernel.matrix(w, inner) @ masses
                    continue
                value, alpha, beta = self._kernel.with_slopes(w, inner)
                outputs[rows] = value @ masses
                gradients[rows] = alpha @ weighted + (beta @ masses)[:, None] * w
        check_finite(outputs, "the functional's gradient")
        return outputs, gradients

    def _signed(self, mu: Measure) -> tuple[Tensor, Tensor]:
        """Return inner weights and signed masses of the neurons and the teacher's."""
        theta, masses = mu.points, mu.weights * mu.points[:, 0]
        if self.teacher is None:
            return theta[:, 1:], masses
        fixed = self.teacher
        check_like(theta, fixed.points, "the measure", "the teacher")
        return (
            torch.cat([theta[:, 1:], fixed.points[:, 1:]]),
            torch.cat([masses, -fixed.weights * fixed.points[:, 0]]),
        )

    def _check(self, theta: Tensor, mu: Measure, name: str = "the particles") -> None:
        check_kind(mu, Measure, "mu")
        check_like(theta, mu.points, name, "the measure")
        if theta.shape[1] != 1 + self._dim:
            msg = (
                f"a neuron (a, w) has p = 1 + d = {1 + self._dim} numbers, for inputs "
                f"of dimension d = {self._dim}; {name} have dimension "
                f"{theta.shape[1]}. A bias has no closed form: leave it out, or take "
                f"meanfield.OnlineRisk"
            )
            raise ValueError(msg)

    def mixture_curvature(self) -> Curvature:
        return Curvature.CONVEX

    def why_mixture(self) -> str:
        return "since the outputs are linear in the measure and the loss is a square"


class PopulationRisk(_KernelEnergy):
    r"""The square risk over a law of inputs, :math:`\tfrac12 E_x(f_\mu(x)-f^*(x))^2`.

    The network :math:`f_\mu(x) = \int a\,\varphi(w\cdot x)\,d\mu(a, w)` learns a
    teacher of the same unit, :math:`f^* = f_{\mu^*}`. With :math:`\nu = \mu - \mu^*`,

    .. math:: F(\mu) = \tfrac12\iint a a'\,k(w, w')\,d\nu\,d\nu, \qquad
        F'[\mu](a, w) = a\int a'\,k(w, w')\,d\nu(a', w'),

    where :math:`k(w, u) = E_x[\varphi(w\cdot x)\varphi(u\cdot x)]`. For x standard
    Gaussian and t the angle between w and u

    .. math:: \text{relu}: \frac{|w||u|}{2\pi}(\sin t + (\pi - t)\cos t), \quad
        \text{step}: \frac{\pi - t}{2\pi}, \quad
        \text{erf}: \frac2\pi\arcsin\frac{2\,w\cdot u}
        {\sqrt{(1 + 2|w|^2)(1 + 2|u|^2)}}

    :cite:p:`cho2009kernel,williams1997computing`. On the unit sphere the kernel of relu
    is that over d, and that of the step is the same.

    Parameters
    ----------
    teacher : Particles
        Neurons (a, w) of the teacher, points (m, 1 + d) with their weights. They are
        detached.
    unit : {"relu", "step", "erf"}
        The function :math:`\varphi`; the step is 1 for positive arguments and else 0.
    inputs : {"gaussian", "sphere"}
        The law of x: standard Gaussian in d dimensions, or uniform on the unit sphere.

    Attributes
    ----------
    teacher, unit, inputs
        As above.

    Raises
    ------
    Unsupported
        If no closed form is known: for other units, and for erf on the sphere.
    ValueError
        If a name is unknown, or if a measure has neurons of another dimension, as those
        with a bias.

    See Also
    --------
    Risk : The risk on data.
    OnlineRisk : Fresh data at every step, for every network.

    Notes
    -----
    Time O((N + m)^2 d) for a value, O(N (N + m) d) for a velocity, memory O((N + m) d):
    no matrix of all pairs is kept. Value and derivatives are finite where w = u, where
    autograd of the arccosine is not. The slope of k at w = 0, and that of the step at t
    = 0 and :math:`\pi`, jumps; there it is 0.

    The value is a sum with cancellation. Its error is the round-off of the sum of the
    absolute terms, about :math:`10^{-16}` of :math:`E f^{*2}`, and near the minimum it
    can be negative by as much. For erf the round-off grows like :math:`|w|^2`.

    With Gaussian inputs a bias with a standard Gaussian factor is one more input.

    Examples
    --------
    >>> import torch, otflow as of
    >>> teacher = of.Particles(torch.tensor([[1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]))
    >>> risk = of.meanfield.PopulationRisk(teacher, "relu", "gaussian")
    >>> student = of.Particles(torch.tensor([[1.0, 1.0, 0.0]]))
    >>> round(float(risk(student)), 4)  # (1/2 + 1/2 + 2/2pi) / 8
    0.1648
    >>> risk.velocity(student)
    tensor([[-0.3296, -0.3296, -0.1250]])
    """

    teacher: Particles

    def __init__(self, teacher: Particles, unit: str, inputs: str) -> None:
        check_kind(teacher, Particles, "teacher")
        d = teacher.points.shape[1] - 1
        if d < 1:
            msg = (
                f"a teacher has neurons (a, w), points (m, 1 + d) with d at least 1, "
                f"got {tuple(teacher.points.shape)}"
            )
            raise ValueError(msg)
        super().__init__(closed_kernel(unit, inputs, d), d)
        self.teacher = teacher.detach()
        self.unit, self.inputs = unit, inputs

    def decompose(self) -> Decomposition:
        r"""Return F = constant + potential + interaction.

        .. math:: F(\mu) = \tfrac12 E f^{*2} + \int E\,d\mu
            + \tfrac12\iint K\,d\mu\,d\mu, \qquad
            E(\theta) = -E_x[f^*(x)\,\sigma(x;\theta)],\quad
            K(\theta, \theta') = a a'\,k(w, w')

        :cite:p:`rotskoff2018parameters`.

        Returns
        -------
        Decomposition
            The parts; the interaction costs O(N^2 d).

        Raises
        ------
        Unsupported
            If a class of your own evaluates the risk otherwise.
        """
        if (name := redefined(self, PopulationRisk)) is not None:
            msg = (
                f"{type(self).__name__}.{name} changes the risk, and its parts are "
                f"known of the library's own class; use meanfield.PopulationRisk"
            )
            raise Unsupported(msg)
        k, fixed = self._kernel, self.teacher
        masses = fixed.weights * fixed.points[:, 0]

        def potential(theta: Tensor) -> Tensor:
            """E(theta), (..., p) -> (...)."""
            flat = theta.reshape(-1, theta.shape[-1])
            values = -flat[:, 0] * (k.matrix(flat[:, 1:], fixed.points[:, 1:]) @ masses)
            return values.reshape(theta.shape[:-1])

        def kernel(theta: Tensor, other: Tensor) -> Tensor:
            """K(theta, theta'), (M, p) and (N, p) -> (M, N)."""
            outer = theta[:, :1] * other[:, 0]
            return outer * k.matrix(theta[:, 1:], other[:, 1:])

        interaction = _KernelEnergy(k, self._dim)
        return Decomposition(
            constant=interaction.value(fixed),
            potential=Potential(potential),
            interaction=interaction,
            kernel=kernel,
        )

    def __repr__(self) -> str:
        return (
            f"PopulationRisk({self.unit!r}, {self.inputs!r}, d={self._dim}, "
            f"teacher of {self.teacher.n} neurons)"
        )
