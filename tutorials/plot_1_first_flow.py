r"""
Your first flow
===============

Equal charges in the plane repel one another with the force :math:`1/r`, and a spring
pulls each of them to the origin. As a functional of the measure :math:`\mu` of charges,

.. math::

    F(\mu) = \int \tfrac12 |x|^2 \, d\mu(x)
           - \tfrac12 \iint \log|x - y| \, d\mu(x) \, d\mu(y) .

Its minimiser is known. There the first variation :math:`F'[\mu](x) = \tfrac12|x|^2 -
\int \log|x - y| \, d\mu(y)` is constant on the support of :math:`\mu`; the Laplacian of
both sides is :math:`0 = 2 - 2\pi\mu(x)`. The density is :math:`1/\pi` on its support,
by symmetry **the unit disk**. As :math:`\int \log|x - y| \, d\mu(y) = -(1 - |x|^2)/2`
there, :math:`F' = \tfrac12` on the disk and

.. math:: \min F = \tfrac12 \int |x|^2 d\mu + \tfrac14 \int (1 - |x|^2) \, d\mu
                 = \tfrac14 + \tfrac18 = \tfrac38 .

This tutorial finds the minimiser from 400 particles, by three schemes.
"""

# %%
# State the problem
# -----------------
# A functional states its value; here the measure is a cloud of particles. The
# derivative follows by automatic differentiation, or in closed form for a built-in
# kernel.

import math

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Circle

import otflow as of

F = of.Potential(lambda x: 0.5 * x.square().sum(-1)) + of.Interaction(of.kernels.Log())

n = 400
generator = torch.Generator().manual_seed(0)
noise = torch.randn(n, 2, dtype=torch.float64, generator=generator)
start = of.Particles(0.5 * noise + torch.tensor([1.5, 0.0]))

# %%
# Flow
# ----
# Explicit Euler moves each particle along the velocity :math:`v = -\nabla F'[\mu]`. The
# flow always records the energy; here it records the mean and the second moment too.
# Along the exact flow of n particles both are known: repulsions cancel, so that
# :math:`\dot m = -m`, and since :math:`z \cdot \nabla \log|z| = 1` the second moment
# obeys :math:`\dot s = -2 s + 1 - 1/n`.

moments = {
    "mean": lambda mu: mu.expectation(lambda x: x),
    "second": lambda mu: mu.expectation(lambda x: x.square().sum(-1)),
}
scheme = of.ExplicitEuler()
euler = of.flow(F, start, scheme, dt=0.05, steps=160, every=4, record=moments)
print(euler)

fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 4), layout="constrained")
of.plotting.trails(euler, ax=left).set_title("200 of the 400 paths")
of.plotting.particles(start, ax=right, label="start")
of.plotting.particles(euler.final, ax=right, label="end, t = 8")
right.add_patch(Circle((0, 0), 1, fill=False, color="0.3"))
right.set_title("both ends; line: unit circle")
right.legend(markerscale=2)
plt.show()

# %%
# Three schemes
# -------------
# Backtracking halves a step until the energy falls enough. Any ``dt`` is then safe, and
# the recorded times are sums of the halved steps. JKO minimises :math:`F(\nu) +
# W_2^2(\mu, \nu) / (2\,dt)`: it decreases the energy for every ``dt`` and reports what
# it proved. "Stationary" says that the gradient of that objective vanishes to
# tolerance, and that the coupling of both ends is optimal, by an exact assignment.

jko = of.flow(F, start, of.JKO(), dt=0.2, steps=40, record=moments)
scheme = of.ExplicitEuler(backtracking=True)
safe = of.flow(F, start, scheme, dt=1.0, steps=40, record=moments)
runs = {"explicit Euler, dt = 0.05": euler, "JKO, dt = 0.2": jko, "backtracking": safe}
print({step["guarantee"] for step in jko.info})

balance = (1 - 1 / n) / 2
errors = {}
for label, run in runs.items():
    s = run.records["second"]
    errors[label] = s - (balance + (s[0] - balance) * (-2 * run.times).exp())

fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
least = min(float(run.records["energy"].min()) for run in runs.values()) - 1e-6
for label, run in runs.items():
    of.plotting.energy(run, minimum=least, log=True, label=label, ax=left)
    right.plot(run.times, errors[label])
left.set(xlim=(0, 8), ylabel="energy above the least one found")
left.legend()
right.set(xlim=(0, 8), xlabel="time", ylabel="error of the second moment")
plt.show()

# %%
# Is it the minimiser?
# --------------------
# The first variation is known anywhere. Its mean on a circle of radius r must be 1/2
# inside the disk and the larger :math:`r^2/2 - \log r` outside. Then no mass can be
# moved to lower the energy.

radii = torch.linspace(0.02, 1.6, 50, dtype=torch.float64)
angles = torch.linspace(0, 2 * math.pi, 49, dtype=torch.float64)[:-1]
circle = torch.stack([angles.cos(), angles.sin()], dim=-1)
probes = (radii[:, None, None] * circle).reshape(-1, 2)
variation = F.first_variation(safe.final, probes).reshape(50, 48).mean(1)
predicted = torch.where(radii < 1, 0.5, radii.square() / 2 - radii.log())

fig, ax = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
ax.plot(radii, predicted, color="0.3", label="uniform unit disk, exact")
ax.plot(radii, variation, ".", label=f"{n} particles")
ax.set(xlabel="radius", ylabel="mean first variation")
ax.legend()
plt.show()

# %%
# Watch it
# --------

animation = of.plotting.animate(euler, frames=40)
plt.show()

# %%
# What must hold
# --------------
# The mean follows the scheme's own exact solution to round-off or solver tolerance; the
# second moment reaches its balance; the energy is 3/8 less the self-energy that n
# particles leave out, :math:`\log n/(4n) + O(1/n)`; the disk has radius 1.

mean = start.points.mean(0)
assert torch.allclose(euler.records["mean"][-1], mean * 0.95**160, rtol=1e-9, atol=0)
assert torch.allclose(jko.records["mean"][-1], mean / 1.2**40, rtol=1e-3, atol=1e-9)
for run in runs.values():
    assert (run.records["energy"].diff() <= 0).all()
    assert abs(run.records["energy"][-1] - (3 / 8 - math.log(n) / (4 * n))) < 1 / n
    assert abs(run.final.points.square().sum(1).mean() - balance) < 1e-4
    assert 0.95 < run.final.points.norm(dim=1).max() < 1
assert errors["JKO, dt = 0.2"].abs().max() < 0.2  # of order dt
assert errors["explicit Euler, dt = 0.05"].abs().max() < 0.05
assert (variation - predicted).abs().max() < 0.02
