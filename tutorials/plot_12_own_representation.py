r"""
Your own representation
=======================

In :doc:`plot_1_first_flow` 400 free charges, which repel one another as
:math:`-\log|x - y|`, fill the unit disk. Now let the charges sit on a closed thread.
The measure is the law of :math:`\gamma(s)` for a uniform angle s, and the curve
is a trigonometric polynomial in the complex plane,

.. math:: \gamma(s) = \sum_{|k| \le K} c_k \, e^{iks} .

This tutorial writes the law as one class. Every functional and scheme then accepts it.
"""

# %%
# The class
# ---------
# A measure states points and weights, coordinates, and three verbs. A tangent is a
# change :math:`\dot c` of the coefficients. It moves the points at the velocities
# :math:`\sum_k \dot c_k e^{iks}`, of mean square :math:`\sum_k |\dot c_k|^2` by
# Parseval. So the inner product is the plain one, and the gradient that of autograd.

import math
from dataclasses import dataclass, replace
from itertools import product

import matplotlib.pyplot as plt
import torch

import otflow as of
from otflow.testing import MeasureContract


@dataclass(frozen=True, eq=False, repr=False)
class Loop(of.Measure):
    """A closed curve at uniform angles; rows are real and imaginary parts of c_k."""

    coefficients: torch.Tensor
    count: int = 400

    @property
    def points(self) -> torch.Tensor:
        c = torch.view_as_complex(self.coefficients)
        k = torch.arange(len(c), dtype=c.real.dtype) - len(c) // 2
        s = torch.arange(self.count, dtype=c.real.dtype) * (2 * torch.pi / self.count)
        return torch.view_as_real(torch.exp(1j * s[:, None] * k) @ c)

    @property
    def weights(self) -> torch.Tensor:
        return self.coefficients.new_full((self.count,), 1 / self.count)

    @property
    def coordinates(self) -> torch.Tensor:
        return self.coefficients

    def with_coordinates(self, coordinates: torch.Tensor) -> "Loop":
        return replace(self, coefficients=coordinates)

    @property
    def tangent_shape(self) -> tuple[int, ...]:
        return self.coefficients.shape

    def push(self, tangent, dt):
        return replace(self, coefficients=self.coefficients + dt * tangent)

    def inner(self, u, v):
        return (u * v).sum()

    def displacement_to(self, other):
        return other.coefficients - self.coefficients


# %%
# The gradient must be the derivative along ``push``, ``inner`` a scalar product, and no
# verb may change the measure. :class:`~otflow.testing.MeasureContract` has such laws.
# In a file of tests pytest finds those of a subclass. Here a loop calls them.


class TestLoop(MeasureContract):
    def make(self, dtype=torch.float64):
        return Loop(torch.tensor([[0.3, 0.1], [0, 0.2], [1, 0.1]], dtype=dtype), 24)


laws = [getattr(TestLoop(), name) for name in dir(TestLoop) if name.startswith("test_")]
for law in laws:
    for case in product(*(mark.args[1] for mark in getattr(law, "pytestmark", ()))):
        law(*case)

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
    c[[K + 1, K - 1], 0] += torch.tensor([first, minus]).double()
    return Loop(c)


dt, steps, n = 0.05, 80, 400
ellipse = of.flow(F, thread(1, 1.25, 0.75), of.ExplicitEuler(), dt=dt, steps=steps)

c = 1.25
for _ in range(steps):
    c += dt * (-c + (1 - 1 / n) / (2 * c))
expected = torch.tensor([c, 0.75 * (1 - dt) ** steps], dtype=torch.float64)
error = (ellipse.final.coefficients[[2, 0], 0] - expected).abs().max()
print(f"{len(laws)} laws; {ellipse}; error of the coefficients {error:.1e}")

# %%
# A longer thread
# ---------------
# The circle of radius :math:`1/\sqrt2` is at rest, but a thread with more modes does
# better: it folds, to fill the disk of the free charges.

threads = {K: thread(K, 1.15, 0.35, 0.25) for K in (2, 4, 12)}
scheme = of.ExplicitEuler(backtracking=True)
runs = {K: of.flow(F, mu, scheme, dt=0.1, steps=150) for K, mu in threads.items()}

fig, axes = plt.subplots(1, 4, figsize=(10, 2.3), layout="constrained", sharey=True)
pictures = {"start, K = 12": threads[12]} | {f"K = {K}": runs[K].final for K in runs}
for ax, (title, mu) in zip(axes, pictures.items(), strict=True):
    ax.fill(*torch.view_as_real(torch.exp(1j * torch.linspace(0, 6.29, 99))).T, "0.9")
    ax.plot(*torch.cat([mu.points, mu.points[:1]]).T, lw=1.5)
    ax.set(title=title, aspect="equal", xlabel="x[0]", ylabel="x[1]", xlim=(-2.2, 2.2))
plt.show()

# %%
# What must hold
# --------------
# The pairs i = j, here added, have the logarithm of a chord over :math:`2\pi`. Energies
# fall from :math:`\tfrac14 + \tfrac14\log 2`, of the circle, towards 3/8, of the disk.

chords = lambda x: (x.roll(-1, 0) - x).norm(dim=1)
energy = lambda mu: float(F(mu) - (chords(mu.points) / math.tau).log().mean() / (2 * n))
energies = [energy(ellipse.final), *(energy(run.final) for run in runs.values())]
assert len(laws) > 20
assert error < 1e-12
assert abs(energies[0] - (0.25 + 0.25 * math.log(2))) < 1e-3
assert sorted([3 / 8, *energies], reverse=True) == [*energies, 3 / 8]
