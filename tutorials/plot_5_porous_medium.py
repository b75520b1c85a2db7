r"""
Porous medium and Barenblatt
============================

Gas in a porous rock obeys :math:`\partial_t\rho = \Delta\rho^m` with m > 1. It is the
Wasserstein gradient flow of

.. math:: F(\mu) = \frac{1}{m-1} \int \rho^m \, dx ,

and unlike heat it spreads with finite speed: outside a ball there is *nothing*. From a
point, the solution is the profile of Barenblatt, :math:`\rho = t^{-d\beta}(C -
k|x|^2t^{-2\beta})_+^{1/(m-1)}` with :math:`\beta = 1/(d(m-1)+2)`, :math:`k =
\beta(m-1)/2m`. The tutorial computes the profile in the plane by ten JKO steps, and
measures two errors apart: that of the step and that of the solver.
"""

# %%
# Start from a profile
# --------------------
# In the plane with m = 2 the profile of radius R is the paraboloid :math:`\rho =
# \frac{2}{\pi R^2}(1 - |x|^2/R^2)_+`. Its velocity is :math:`-2\nabla\rho = 8x/(\pi
# R^4)`, so :math:`R' = 8/(\pi R^3)`: the fourth power of the radius grows at the
# constant rate :math:`32/\pi`.

import math

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Circle

import otflow as of

n, first, last, steps = 128, 0.15, 0.30, 10


def paraboloid(radius):
    """Return the density of mass 1 over a disk about the centre of the unit square."""

    height = 2 / (math.pi * radius**2)
    return lambda x: height * (1 - (x - 0.5).square().sum(-1) / radius**2).clamp_min(0)


def on_grid(radius):
    f = paraboloid(radius)
    return of.GridDensity.from_function(f, 0.0, 1.0, (n, n), dtype=torch.float64)


rate = 32 / math.pi  # d(R^4)/dt
dt = (last**4 - first**4) / rate / steps

# %%
# Ten steps
# ---------
# On a grid a JKO step is an entropic transport problem. The entropy of the plan alone
# would blur the edge. The debiased cost leaves an error of second order in the blur.

F = of.PowerEntropy(2)
run = of.flow(F, on_grid(first), of.JKO(), dt=dt, steps=steps)
print(run)

# %%
# Two errors
# ----------
# A JKO step takes a Barenblatt profile to another one. Its radius solves a scalar
# equation, :math:`(R_+ - R)/dt = 8/(\pi R_+^3)`: implicit Euler for the radius. So the
# exact outcome of the *scheme* is known beside that of the equation.


def jko_radius(radius, dt, steps, K, power):
    """Return the radius after JKO steps for the equation R' = K / R^power."""
    for _ in range(steps):
        previous = radius
        for _ in range(50):  # Newton
            g = radius - previous - dt * K * radius**-power
            radius -= g / (1 + power * dt * K * radius ** (-power - 1))
    return radius


radius = jko_radius(first, dt, steps, rate / 4, 3)


def l1(mu, nu):
    """Return the L1 distance of two densities on one grid."""
    return float((mu.weights - nu.weights).abs().sum())


solver_error = l1(run.final, on_grid(radius))
step_error = l1(on_grid(radius), on_grid(last))
print(f"L1 error of the solver {solver_error:.1e}, of the time step {step_error:.1e}")

fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.8), layout="constrained")
of.plotting.density(run.final, ax=left)
left.add_patch(Circle((0.5, 0.5), last, fill=False, color="0.3"))
left.set_title("the end; circle: exact front")
x = (torch.arange(n, dtype=torch.float64) + 0.5) / n
for k, mu in enumerate(run.snapshots):
    right.plot(x, mu.grid[:, n // 2], color=plt.cm.viridis(k / steps), lw=1)
right.plot(x, on_grid(radius).grid[:, n // 2], "k--", lw=1, label="exact JKO, last")
right.set(title="start and ten steps", xlabel="x[0]", ylabel="density, middle line")
right.legend()
plt.show()

# %%
# Higher m, sharper edge
# ----------------------
# On the line, from :math:`c\,(1 - x^2)^{1/(m-1)}` the
# radius obeys :math:`R' = K R^{-m}`, and the JKO radius is implicit Euler again. For
# m > 2 the slope at the front is infinite; for m < 2 the last cell is wide if cells
# have equal mass. ``grading=2`` makes the cells at both ends light, and so short.

ms, profiles = (1.5, 2.0, 3.0, 6.0), {}
fronts: dict = {1: [], 2: []}
bump = lambda p: lambda x: (1 - x[:, 0].square()).clamp_min(0) ** p
for m in ms:
    p = 1 / (m - 1)
    for grading, errors in fronts.items():
        start = of.Quantiles.from_function(
            bump(p), -1.0, 1.0, n=400, grading=grading, dtype=torch.float64
        )
        line = of.flow(of.PowerEntropy(m), start, of.JKO(), dt=0.02, steps=25)
        profiles[m] = line.final
        area = math.gamma(p + 1) * math.sqrt(math.pi) / math.gamma(p + 1.5)
        exact = jko_radius(1.0, 0.02, 25, 2 * m * p * area ** (1 - m), m)
        errors.append(abs(float(line.final.edges.max()) - exact))

fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
for m, mu in profiles.items():
    of.plotting.density(mu, ax=left, label=f"m = {m:g}")
left.set_title("t = 0.5, grading = 2")
left.legend()
for grading, errors in fronts.items():
    right.semilogy(ms, errors, "o-", label=f"grading = {grading}")
right.set(
    title="front against exact JKO steps", xlabel="m", ylabel="error of the radius"
)
right.legend()
plt.show()

# %%
# What must hold
# --------------

assert solver_error < 6e-4
assert 0.03 < step_error < 0.06  # of order dt
assert all(step["converged"] for step in run.info)
assert (run.records["energy"].diff() < 0).all()
assert abs(radius - 0.29347) < 1e-5
assert all(5 * b < a for a, b in zip(fronts[1], fronts[2], strict=True))
assert max(fronts[2]) < 0.03
