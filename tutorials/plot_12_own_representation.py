r"""
Your own representation
=======================

In :doc:`plot_1_first_flow` 400 free charges, which repel one another as
:math:`-\log|x - y|`, fill the unit disk. Now let the charges sit on a closed elastic
thread. The measure is the law of :math:`\gamma(s)` for a uniform angle s, and the curve
is a trigonometric polynomial in the complex plane,

.. math:: \gamma(s) = \sum_{|k| \le K} c_k \, e^{iks} .

The unknowns are 2K + 1 coefficients. This tutorial writes that measure as one class;
every functional and scheme then accepts it, and :doc:`/extending` has its tests.
"""

# %%
# The class
# ---------
# A measure states the points and weights of a quadrature rule, and four verbs. A
# tangent is a change :math:`\dot c` of the coefficients. It moves the points at the
# velocities :math:`\sum_k \dot c_k e^{iks}`. Their mean square is :math:`\sum_k |\dot
# c_k|^2` by Parseval. So the inner product of :math:`L^2(\mu)` is the plain one, and
# the Wasserstein gradient is the plain gradient: autograd gives it.

import math
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import torch

import otflow as of


@dataclass(frozen=True, eq=False, repr=False)
class Loop(of.Measure):
    """A closed curve at uniform angles; rows are real and imaginary parts of c_k."""

    coefficients: torch.Tensor
    count: int = 400

    @property
    def points(self) -> torch.Tensor:
        c = torch.view_as_complex(self.coefficients)
        K = len(c) // 2
        k = torch.arange(-K, K + 1, dtype=c.real.dtype)
        s = torch.arange(self.count, dtype=c.real.dtype) * (2 * torch.pi / self.count)
        return torch.view_as_real(torch.exp(1j * s[:, None] * k) @ c)

    @property
    def weights(self) -> torch.Tensor:
        return self.coefficients.new_full((self.count,), 1 / self.count)

    def value_and_position_gradient(self, value):
        keep = self.coefficients.requires_grad  # then the outcome has a graph too
        c = self.coefficients if keep else self.coefficients.clone().requires_grad_()
        energy = value(replace(self, coefficients=c))
        (gradient,) = torch.autograd.grad(energy, c, create_graph=keep)
        return energy if keep else energy.detach(), gradient

    def push(self, tangent, dt):
        return replace(self, coefficients=self.coefficients + dt * tangent)

    def inner(self, u, v):
        return (u * v).sum()

    def displacement_to(self, other):
        return other.coefficients - self.coefficients


# %%
# An ellipse, exactly
# -------------------
# For :math:`\gamma = c_1 e^{is} + c_{-1} e^{-is}` with real coefficients the energy of
# the charges in the trap is :math:`F = \tfrac12(c_1^2 + c_{-1}^2) - \tfrac12 \log c_1`,
# and :math:`\dot c_1 = -c_1 + 1/(2c_1)`, :math:`\dot c_{-1} = -c_{-1}`. On n points the
# sum over pairs has a closed form too: 1 becomes 1 - 1/n, up to :math:`(c_{-1}/c_1)^n`.
# Explicit Euler must follow its own recursion for two numbers to round-off.

F = of.Potential(lambda x: 0.5 * x.square().sum(-1)) + of.Interaction(of.kernels.Log())


def thread(K: int, first: float, minus: float, roughness: float = 0.0) -> Loop:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2 * K + 1, 2, dtype=torch.float64, generator=generator)
    c = roughness * noise / (1 + torch.arange(-K, K + 1).abs()[:, None])
    c[K + 1, 0] += first
    c[K - 1, 0] += minus
    return Loop(c)


dt, steps, n = 0.05, 80, 400
ellipse = of.flow(F, thread(1, 1.25, 0.75), of.ExplicitEuler(), dt=dt, steps=steps)

expected = [(1.25, 0.75)]
for _ in range(steps):
    c, minus = expected[-1]
    expected.append((c + dt * (-c + (1 - 1 / n) / (2 * c)), minus * (1 - dt)))
found = torch.stack([mu.coefficients[[2, 0], 0] for mu in ellipse.snapshots])
error = (found - torch.tensor(expected, dtype=torch.float64)).abs().max()
print(f"{ellipse}; largest error of a coefficient {error:.1e}")

# %%
# A longer thread
# ---------------
# The circle of radius :math:`1/\sqrt2` is at rest, but a thread with more modes does
# better: it folds, to fill the disk of the free charges.

threads = {K: thread(K, 1.15, 0.35, 0.25) for K in (2, 4, 12)}
scheme = of.ExplicitEuler(backtracking=True)
runs = {K: of.flow(F, mu, scheme, dt=0.1, steps=150) for K, mu in threads.items()}

fig, axes = plt.subplots(1, 4, figsize=(10, 2.9), layout="constrained", sharey=True)
pictures = {
    "start, K = 12": threads[12],
    **{f"K = {K}": r.final for K, r in runs.items()},
}
for ax, (title, mu) in zip(axes, pictures.items(), strict=True):
    ax.fill(*torch.view_as_real(torch.exp(1j * torch.linspace(0, 6.29, 99))).T, "0.9")
    ax.plot(*torch.cat([mu.points, mu.points[:1]]).T, lw=1.5)
    ax.set(
        title=title,
        aspect="equal",
        xlabel="x[0]",
        ylabel="x[1]",
        xlim=(-2.2, 2.2),
        ylim=(-1.6, 2),
    )
plt.show()

# %%
# What must hold
# --------------
# The sum over pairs leaves out i = j, where the integral has
# :math:`\log(|\gamma'|/n)`. With it the energies fall from that of the circle,
# :math:`\tfrac14 + \tfrac14\log 2`, towards 3/8, that of the disk.


def energy(mu: Loop) -> float:  # with the pairs i = j
    k = torch.arange(len(mu.coefficients))[:, None] - len(mu.coefficients) // 2
    turned = torch.stack([-mu.coefficients[:, 1], mu.coefficients[:, 0]], 1)  # times i
    speed = replace(mu, coefficients=k * turned).points.norm(dim=1)
    return float(F(mu) - 0.5 * (speed / n).log().mean() / n)


energies = [energy(ellipse.final), *(energy(run.final) for run in runs.values())]
assert error < 1e-12
assert abs(energies[0] - (0.25 + 0.25 * math.log(2))) < 1e-3
assert sorted(energies, reverse=True) == energies
assert energies[-1] > 3 / 8
