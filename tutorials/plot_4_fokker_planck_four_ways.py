r"""
Fokker-Planck four ways
=======================

The free energy of a potential and the entropy,

.. math::

    F(\mu) = \int \tfrac12 |x|^2 \, d\mu + \int \rho \log \rho ,

has as its Wasserstein gradient flow the Fokker-Planck equation :math:`\partial_t \rho =
\nabla\cdot(\rho x) + \Delta\rho`. A Gaussian stays Gaussian, with mean
:math:`m\,e^{-t}` and variance :math:`1 + (s^2 - 1) e^{-2t}`.

The objective is stated once. Four representations carry it, each by its own method:
particles turn the entropy into noise; quantiles and Gaussians solve a small convex
problem for each JKO step; a grid solves a debiased entropic transport problem. All four
approximate one equation, with different errors.
"""

# %%
# One objective, four starts
# --------------------------

import math

import matplotlib.pyplot as plt
import torch

import otflow as of

F = of.KL(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)  # V + entropy

mean, sigma = 1.5, 0.5
generator = torch.Generator().manual_seed(0)
noise = torch.randn(4000, 1, dtype=torch.float64, generator=generator)


def bell(x):
    """Return the density of the start, up to a factor."""
    return torch.exp(-0.5 * ((x[:, 0] - mean) / sigma).square())


one = torch.ones(1, dtype=torch.float64)
starts = {
    "particles": of.Particles(mean + sigma * noise),
    "quantiles": of.Quantiles.from_function(
        bell, mean - 6 * sigma, mean + 6 * sigma, n=400, grading=2, dtype=torch.float64
    ),
    "grid": of.GridDensity.from_function(bell, -6, 6, 300, dtype=torch.float64),
    "Gaussian": of.Gaussian(mean * one, sigma**2 * torch.diag(one)),
}

# %%
# Four flows
# ----------
# ``JKO()`` finds the solver by itself. Particles have no density and no entropy, so
# their scheme is Langevin's. The records are the same functions of every measure.

moments = {
    "mean": lambda mu: mu.expectation(lambda x: x[:, 0]),
    "second": lambda mu: mu.expectation(lambda x: x[:, 0].square()),
}
dt, steps = 0.05, 40
runs = {}
for name, mu in starts.items():
    scheme = of.Langevin() if name == "particles" else of.JKO()
    runs[name] = of.flow(F, mu, scheme, dt=dt, steps=steps, record=moments, generator=1)
    print(f"{name:10s}", runs[name])

# %%
# The same density at the end
# ---------------------------

fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
colors = {"particles": "0.6", "quantiles": "C0", "grid": "C1", "Gaussian": "C2"}
of.plotting.particles(runs["particles"].final, ax=left, size=0.1, color="0.6")
for name in ("quantiles", "grid", "Gaussian"):
    of.plotting.density(runs[name].final, ax=left, label=name, color=colors[name])
left.set(xlim=(-4, 4), title=f"t = {dt * steps:g}")
left.legend()

t = runs["grid"].times
variance = 1 + (sigma**2 - 1) * (-2 * t).exp()
right.plot(t, variance, color="0.3", label="exact")
for name, run in runs.items():
    spread = run.records["second"] - run.records["mean"].square()
    right.plot(t, spread, ".", label=name, color=colors[name])
right.set(xlabel="time", ylabel="variance")
right.legend()
plt.show()

# %%
# Two errors
# ----------
# A JKO step has an error of order dt. For this problem the exact sequence of JKO steps
# is known, so that the error of the *solver* and that of the *step* can be measured
# apart: :math:`m_{k+1} = m_k/(1+dt)` and :math:`s_{k+1} = (s_k + \sqrt{s_k^2 + 4\,dt\,
# (1+dt)}) / (2(1+dt))`.

s = sigma
for _ in range(steps):
    s = (s + math.sqrt(s * s + 4 * dt * (1 + dt))) / (2 * (1 + dt))
m = mean / (1 + dt) ** steps

print("at the end        mean error    spread error   against the exact JKO sequence")
errors = {}
for name in ("quantiles", "grid", "Gaussian"):
    records = runs[name].records
    found = records["second"][-1] - records["mean"][-1].square()
    errors[name] = (
        abs(float(records["mean"][-1]) - m),
        abs(float(found) ** 0.5 - s),
    )
    print(f"{name:16s} {errors[name][0]:12.1e} {errors[name][1]:14.1e}")

# %%
# What each step proved
# ---------------------
# The report of a step says how far it is at most from its exact optimum, in
# :math:`W_2`: on a Gaussian and on quantiles from the residual and the modulus of
# convexity, on a grid from the duality gap. Every step lost energy.

for name in ("quantiles", "grid", "Gaussian"):
    info = runs[name].info
    print(f"{name:10s} {info[-1]['guarantee']:12s} bound {info[-1]['bound']}")
    assert all(step["converged"] for step in info)
    assert all(step["energy_after"] <= step["energy_before"] + 1e-12 for step in info)

# %%
# What must hold
# --------------

exact = mean * math.exp(-dt * steps)
off = {name: abs(float(run.records["mean"][-1]) - exact) for name, run in runs.items()}
assert max(errors["Gaussian"]) < 1e-9
assert max(errors["quantiles"]) < 1e-5
assert max(errors["grid"]) < 1e-4
assert off["particles"] < 5 / math.sqrt(4000)
assert max(off["quantiles"], off["grid"], off["Gaussian"]) < dt  # error of the steps
