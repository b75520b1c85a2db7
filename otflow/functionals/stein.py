"""The kernelised Stein discrepancy: a distance to a law known by its score."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._algebra import Curvature
from otflow._typing import ArrayLike, Ground
from otflow._validation import check_function, check_map
from otflow.functionals.base import Functional
from otflow.functionals.interaction import Interaction
from otflow.kernels import (
    Gaussian,
    InverseMultiquadric,
    Kernel,
    RadialKernel,
    TwoPoint,
)
from otflow.measures import Measure

__all__ = ["KSD"]


class KSD(Functional):
    r"""Half the square of the kernelised Stein discrepancy from a law :math:`\pi`.

    .. math:: F(\mu) = \tfrac12\mathrm{KSD}^2(\mu \,|\, \pi)
        = \tfrac12\iint u_\pi(x, y)\, d\mu\, d\mu

    Mind the factor 1/2, as in `Interaction`. With the score :math:`s = \nabla\log\pi`
    and the base kernel :math:`k(x, y) = \varphi(r)`, :math:`r = |z|^2`, :math:`z = x -
    y`, the Stein kernel is

    .. math:: u_\pi(x, y) &= s(x)\cdot s(y)\,k + s(x)\cdot\nabla_y k
        + s(y)\cdot\nabla_x k + \nabla_x\cdot\nabla_y k \\
        &= s(x)\cdot s(y)\,\varphi - 2\varphi'\,(s(x) - s(y))\cdot z
        - 2d\varphi' - 4r\varphi''

    :cite:p:`liu2016kernelized`. F is 0 at :math:`\pi` and nowhere negative. Only the
    score of the law is needed: its normalisation need not be known. The flow under F is
    that of :cite:t:`korba2021kernel`. It may stop at laws other than :math:`\pi`, as
    between two separate modes.

    Parameters
    ----------
    score : callable
        The score s, batched (n, d) -> (n, d), written with torch operations. For a
        potential V with :math:`\pi \propto e^{-V}` it is :math:`-\nabla V`.
    kernel : RadialKernel
        The base kernel k, positive definite and smooth: `kernels.Gaussian`,
        `kernels.InverseMultiquadric`, or a sum of such kernels times positive factors.

    Attributes
    ----------
    score, kernel
        As above.
    pairs : kernels.TwoPoint
        The Stein kernel :math:`u_\pi`. Its features are points and scores.

    Raises
    ------
    TypeError
        If the score is no function, or the kernel is not radial.
    ValueError
        If the kernel is singular, or has a kink.
    InvalidFunctional
        When it is evaluated, if the score returns another shape or dtype.

    Notes
    -----
    Time O(n^2 d), memory O(n d); the score is evaluated once for each point. The pairs
    i = j count, and all pairs are summed, whatever the tolerance of the kernel. So the
    value at n draws of :math:`\pi` is of order 1/n.

    F is convex along mixtures if k is positive definite, and known to be for the two
    kernels above and their sums times positive factors. A subclass with a kernel of its
    own overrides `mixture_curvature`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.KSD(lambda x: -x, of.kernels.Gaussian(1.0))  # from N(0, 1)
    >>> F.value(of.Particles(torch.tensor([[2.0]])))  # (|s|^2 + d / sigma^2) / 2
    tensor(2.5000)
    >>> F.velocity(of.Particles(torch.tensor([[2.0]])))
    tensor([[-2.]])
    """

    _fixed = frozenset({"kernel", "pairs", "score"})

    def __init__(self, score: Ground, kernel: Kernel) -> None:
        check_function(score, "score must be a function (n, d) -> (n, d)")
        parts = kernel.terms() if isinstance(kernel, Kernel) else ()
        if not parts or not all(isinstance(W, RadialKernel) for _, W in parts):
            msg = (
                f"the base kernel must be radial, got {kernel!r:.80}; use "
                f"kernels.InverseMultiquadric(scale), or subclass kernels.RadialKernel"
            )
            raise TypeError(msg)
        if kernel.singular or not kernel.smooth:
            msg = (
                f"the base kernel {kernel!r} is not smooth at 0, where the Stein "
                f"kernel takes derivatives; use kernels.InverseMultiquadric(scale)"
            )
            raise ValueError(msg)
        self.score = score
        self.kernel = kernel
        self.pairs = TwoPoint(_SteinPair(kernel), features=_WithScore(score))
        self._interaction = Interaction(self.pairs)

    def value(self, mu: Measure) -> Tensor:
        return self._interaction.value(mu)

    def first_variation(self, mu: Measure, x: ArrayLike | None = None) -> Tensor:
        return self._interaction.first_variation(mu, x)

    def value_and_velocity(self, mu: Measure) -> tuple[Tensor, Tensor]:
        return self._interaction.value_and_velocity(mu)

    def _velocity_at(self, mu: Measure, x: Tensor) -> Tensor:
        return self._interaction._velocity_at(mu, x)

    # With A_i f = s_i f + d_i f the Stein kernel is sum_i A_i^x A_i^y k(x, y). Let b_i
    # be the distribution s_i sigma - d_i sigma, for a signed measure sigma. Then
    # iint u dsigma dsigma = sum_i <b_i, k * b_i>, which a positive definite k makes at
    # least 0. A k that is conditionally so does not suffice: b_i has a mass.
    def mixture_curvature(self) -> Curvature | None:
        known = (Gaussian, InverseMultiquadric)
        terms = self.kernel.terms()
        definite = all(type(W) in known and c >= 0 for c, W in terms)
        return Curvature.CONVEX if definite else None

    def why_mixture(self) -> str:
        if self.mixture_curvature() is None:
            return f"since the base kernel {self.kernel!r} may be indefinite"
        return "since the base kernel is positive definite, and so is the Stein kernel"

    def __repr__(self) -> str:
        score = getattr(self.score, "__name__", None) or type(self.score).__name__
        return f"KSD({score}, {self.kernel!r})"


class _WithScore:
    """The features of a Stein kernel: the point, and the score there."""

    def __init__(self, score: Ground) -> None:
        self.score = score

    def __call__(self, x: Tensor) -> Tensor:
        what, cure = "a score", "return the gradient of log pi, a row for each point"
        score = check_map(self.score(x), x, x.shape, what, "points x", cure)
        return torch.cat([x, score], dim=-1)


class _SteinPair:
    """The Stein kernel of points with their scores, for a radial base kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        d = x.shape[-1] // 2
        z, (s, t) = x[..., :d] - y[..., :d], (x[..., d:], y[..., d:])
        r, product = z.square().sum(-1), (s * t).sum(-1)
        along = ((s - t) * z).sum(-1) + d
        total = torch.zeros_like(r)
        for c, W in self.kernel.terms():
            assert isinstance(W, RadialKernel)  # `KSD` sees to it
            own = product * W.profile(r) - 2.0 * along * W.slope(r)
            total = total + c * (own - 4.0 * r * W.curvature(r))
        return total
