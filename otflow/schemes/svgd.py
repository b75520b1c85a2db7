"""Stein variational gradient descent: a velocity smoothed by a kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from otflow._autodiff import grads_of, leaf
from otflow._pairs import tiles
from otflow._typing import Ground
from otflow.functionals import Functional
from otflow.functionals.stated_terms import check_terms
from otflow.kernels import Kernel, PairKernel, TwoPoint, as_kernel
from otflow.measures import Measure
from otflow.proximal.certificate import Certificate
from otflow.schemes.base import Scheme, Step, check_particles
from otflow.schemes.langevin import split_heat

__all__ = ["SVGD"]


class SVGD(Scheme):
    r"""Stein variational gradient descent for :math:`F = G + \tau\,\mathrm{Entropy}`.

    .. math:: x_i \leftarrow x_i + dt \sum_j w_j \bigl(k(x_i, x_j)\, v_G(x_j)
        + \tau\,\nabla_{x_j} k(x_i, x_j)\bigr),

    with the velocity :math:`v_G = -\nabla G'[\mu]` :cite:p:`liu2016stein`. The kernel
    smooths the velocity of F, and by an integration by parts the entropy needs no
    density. The temperature :math:`\tau` is read from ``F.split_entropy()``. For ``F =
    KL(V)`` the scheme samples from :math:`e^{-V}`, without noise.

    The flow is not the Wasserstein gradient flow of F. It is the gradient flow of F in
    another geometry, in which a kernel measures velocities. F falls along both flows,
    but paths and speeds differ: a narrow kernel moves atoms slowly. A single atom
    ascends the logarithm of the density, :math:`\dot x = -k(x, x)\nabla V(x)`.

    Parameters
    ----------
    kernel : PairKernel or callable
        The kernel k, positive definite: `kernels.Gaussian`,
        `kernels.InverseMultiquadric`, a function of the difference, or a
        `kernels.TwoPoint`, of which the symmetric part counts. That it is positive
        definite is not checked.

    Attributes
    ----------
    kernel : PairKernel
        As above; a plain function is wrapped.

    Raises
    ------
    TypeError
        If the kernel is no function.
    ValueError
        If the kernel is infinite at 0, or, from `step`, if the factor of the entropy is
        negative.
    Unsupported
        From `step`, if the measure is not made of particles, or carries a graph.
    Diverged
        From `step`, if the new points are not finite.

    Notes
    -----
    Time O(n^2 d), memory O(n d), beside one velocity of G. The recorded energy is G, as
    in `Langevin`: the entropy of particles has no value. ``info["smoothed"]`` names the
    kernel, and says that the velocity is not that of F. A kernel of two points with
    features computes these for each pair.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.KL(lambda x: 0.5 * (x - 3).square().sum(-1))  # N(3, 1)
    >>> mu = of.Particles(torch.linspace(-1, 1, 50)[:, None])
    >>> scheme = of.schemes.SVGD(of.kernels.Gaussian(1.0))
    >>> x = of.flow(F, mu, scheme, dt=0.5, steps=200).final.points
    >>> bool((x.mean() - 3).abs() < 1e-2), bool((x.std() - 1).abs() < 0.1)
    (True, True)
    """

    def __init__(self, kernel: Ground | PairKernel) -> None:
        self.kernel = as_kernel(kernel)
        if self.kernel.singular:
            msg = (
                f"{self.kernel!r} is infinite at 0 and smooths no velocity of atoms; "
                f"use kernels.Gaussian(sigma) or kernels.InverseMultiquadric(scale)"
            )
            raise ValueError(msg)

    def init(self, F: Functional, mu: Measure) -> Any:
        self._check(mu)
        check_terms(F, mu)
        return None

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        self._check(mu)
        temperature, rest = split_heat(F)
        energy, velocity = rest.value_and_velocity(mu)
        K, x, w = self.kernel, mu.points, mu.weights
        smoothed = K.field(x, x, w[:, None] * velocity, gradients=False)[0]
        if temperature:
            smoothed = smoothed + temperature * _repulsion(K, x, w)
        own = {"temperature": temperature, "smoothed": repr(K)}
        info = Certificate(float(energy.detach()), entries=own)
        return Step(mu.push(smoothed, dt), state, info, energy)

    def _check(self, mu: Measure) -> None:
        check_particles(mu, self, instead="JKO()")
        mu.refuse_graph("a step of SVGD", "it is not differentiable", "use mu.detach()")

    def energy(self, F: Functional, mu: Measure) -> Tensor:
        return split_heat(F)[1].value(mu)


def _repulsion(K: PairKernel, x: Tensor, w: Tensor) -> Tensor:
    """Return the sums over j of w_j and the gradient of K(x_i, x_j) in x_j, (n, d)."""
    if isinstance(K, Kernel):  # the gradients in both points are opposite
        return -K.field(x, x, w[:, None], gradients=True)[1][:, 0]
    assert isinstance(K, TwoPoint)
    total = torch.zeros_like(x)
    with torch.enable_grad():
        for i in tiles(len(x)):
            # A shift of all second points, one for each first point.
            shift = leaf(torch.zeros_like(x[i]))[:, None]
            for j in tiles(len(x)):
                y = x[j] + shift
                values = 0.5 * (K(x[i][:, None], y) + K(y, x[i][:, None]))
                if values.requires_grad:
                    total[i] += grads_of((values @ w[j]).sum(), (shift,))[0][:, 0]
    return total
