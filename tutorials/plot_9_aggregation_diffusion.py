r"""
Aggregation and diffusion
=========================

Cells diffuse, and each one attracts all others: the model of Keller and Segel. In the
plane it is the gradient flow of

.. math::

    F(\mu) = \int \rho\log\rho + \frac{\chi}{4\pi}\iint \log|x - y| \,d\mu\,d\mu
             + \int \tfrac12|x|^2 d\mu ,

here with a weak trap. Diffusion and attraction scale alike, so that a number decides.
Let :math:`s = \int|x|^2d\mu`. As :math:`z\cdot\nabla\log|z| = 1`, the attraction pulls
with the same total strength in every configuration, and s obeys the **virial law**

.. math:: \dot s = 4\Big(1 - \frac{\chi}{8\pi}\Big) - 2s .

For :math:`\chi < 8\pi` there is an equilibrium with :math:`s = 2(1 - \chi/8\pi)`. For
:math:`\chi > 8\pi` the law leads to a negative s in finite time, which no measure has:
the solution must cease to be a density before.
"""

# %%
# Two strengths, two grids
# ------------------------
# The start is an ellipse. A finer grid tells a peak of the solution from a peak that
# the cells cut off. Beyond the critical strength the kernel of the solver is soon wider
# than the peak: the solver warns, and does not certify such a step.

import math
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

import otflow as of


def objective(ratio: float) -> of.Functional:  # chi = ratio * 8 pi
    trap = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    return trap + of.Entropy() - 4 * ratio * of.Interaction(of.kernels.Log())


def start(n: int) -> of.GridDensity:
    return of.GridDensity.from_function(
        lambda x: torch.exp(-x[:, 0].square() / 3 - x[:, 1].square()),
        -5.0, 5.0, (n, n), dtype=torch.float64,
    )  # fmt: skip


records = {
    "s": lambda mu: mu.expectation(lambda x: x.square().sum(-1)),
    "peak": lambda mu: mu.density().max(),
}
with warnings.catch_warnings():
    warnings.simplefilter("ignore", of.errors.BlurWarning)  # asserted at the end
    runs = {
        (ratio, n): of.flow(
            objective(ratio), start(n), of.JKO(), dt=dt, steps=steps, record=records
        )
        for ratio, dt, steps in ((0.5, 0.1, 40), (1.5, 0.05, 16))
        for n in (48, 96)
    }

fig, axes = plt.subplots(2, 3, figsize=(8.5, 5.4), layout="constrained")
for row, ratio in zip(axes, (0.5, 1.5), strict=True):
    run = runs[ratio, 96]
    for ax, k in zip(row, (0, 4, len(run.info)), strict=True):
        of.plotting.density(run.snapshots[k], ax=ax)
        ax.set(xlim=(-3, 3), ylim=(-3, 3))
        ax.set_title(rf"$\chi = {ratio:g} \cdot 8\pi$, t = {float(run.times[k]):.1f}")
plt.show()

# %%
# The equilibrium
# ---------------
# At rest F' is constant. The Laplacian of this equation is one for :math:`u =
# \log\rho`, in which r is the radius:
#
# .. math:: u'' + u'/r + 2 + \chi e^u = 0, \qquad \int 2\pi r\,e^u\,dr = 1 .
#
# Shooting for u(0) gives the profile without a grid and without a flow.

radii = np.linspace(1e-6, 6.0, 601)


def profile(u0: float) -> np.ndarray:
    """Return u, r u' and the mass within each radius, for chi = 4 pi."""

    def slope(r, y):
        rho = math.exp(y[0])
        return [y[1] / r, -r * (2 + 4 * math.pi * rho), 2 * math.pi * r * rho]

    return solve_ivp(slope, (radii[0], 6), [u0, 0, 0], "LSODA", radii, rtol=1e-9).y


exact = profile(brentq(lambda u: profile(u)[2, -1] - 1, -3, 3))
final = runs[0.5, 96].final
on_cells = np.interp(final.points.norm(dim=1), radii, np.exp(exact[0]))
missed = float((final.density() - torch.from_numpy(on_cells)).abs().sum())
missed *= (10 / 96) ** 2

# %%
# The law
# -------
# A JKO step obeys a virial law of its own, :math:`s_+ - s = 2\,dt\,(2(1 - \chi/8\pi) -
# s_+) - W_2^2`. It is the condition that no dilation of the new measure pays.


def law(ratio: float, t: torch.Tensor) -> torch.Tensor:
    """Return the second moment by the virial law, from s = 2."""
    return 2 * (1 - ratio) + 2 * ratio * torch.exp(-2 * t)


t = torch.linspace(0, 4, 200, dtype=torch.float64)
end = 0.5 * math.log(3)  # the law reaches s = 0 for the ratio 1.5
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
for (ratio, n), run in runs.items():
    style = {"color": "C0" if ratio < 1 else "C1", "marker": "o" if n > 50 else "x"}
    label = rf"$\chi = {ratio:g}\cdot 8\pi$, {n} cells"
    left.plot(run.times, run.records["s"], ls="", ms=4, **style, label=label)
    right.semilogy(run.times, run.records["peak"], ms=4, **style)
left.plot(t, law(0.5, t), "k", lw=1, label="virial law")
left.plot(t[t < end], law(1.5, t[t < end]), "k", lw=1)
left.set(xlabel="time", ylabel="second moment", xlim=(0, 2))
left.legend(fontsize=8)
middle.plot(radii, np.exp(exact[0]), "k", lw=1, label="exact equilibrium")
middle.plot(final.points.norm(dim=1)[::7], final.density()[::7], "C0.", label="flow")
middle.set(xlabel="radius", ylabel="density", xlim=(0, 3))
middle.legend()
right.axvline(end, color="0.6", ls=":")
right.set(xlabel="time (dotted: the law reaches s = 0)", ylabel="peak", xlim=(0, 2))
plt.show()

# %%
# What must hold
# --------------
quiet, loud = ([runs[r, n].records["peak"][-1] for n in (48, 96)] for r in (0.5, 1.5))
error = (runs[0.5, 96].records["s"] - law(0.5, runs[0.5, 96].times)).abs()
assert all(step["certified"] for n in (48, 96) for step in runs[0.5, n].info)
assert not all(step["certified"] for step in runs[1.5, 48].info)
assert missed < 0.02
assert max(error.max(), 10 * error[-1]) < 0.1
assert abs(quiet[1] / quiet[0] - 1) < 0.1  # a peak of the solution
assert loud[1] > 3 * loud[0]  # a peak of the grid: no density is left
