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
particles turn the entropy into noise; quantiles (cells of fixed mass on the line) and
Gaussians solve a small convex
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
# Two errors
# ----------
# A JKO step has an error of order dt. For this problem the exact sequence of JKO steps
# is known, so that the error of the *solver* and that of the *step* can be measured
# apart: :math:`m_{k+1} = m_k/(1+dt)` and :math:`s_{k+1} = (s_k + \sqrt{s_k^2 + 4\,dt\,
# (1+dt)}) / (2(1+dt))`. The error shown is the distance of mean and standard deviation,
# :math:`\sqrt{(m - m_*)^2 + (s - s_*)^2}`, a lower bound of :math:`W_2`. On quantiles
# it is largest at the start, whose cells widen the tails; the flow contracts it.

m, s = [mean], [sigma]
for _ in range(steps):
    m.append(m[-1] / (1 + dt))
    s.append((s[-1] + math.sqrt(s[-1] ** 2 + 4 * dt * (1 + dt))) / (2 * (1 + dt)))
t = runs["grid"].times
equation = mean * (-t).exp(), (1 + (sigma**2 - 1) * (-2 * t).exp()).sqrt()
sequence = torch.tensor(m, dtype=t.dtype), torch.tensor(s, dtype=t.dtype)


def distance(run, exact):
    """Return the distance of mean and standard deviation at each time."""
    found = run.records["mean"]
    spread = (run.records["second"] - found.square()).sqrt()
    return torch.hypot(found - exact[0], spread - exact[1])


styles = {"particles": ".", "quantiles": "-", "grid": "--", "Gaussian": ":"}
fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.8), layout="constrained")
step_error, solver_error = {}, {}
for name, run in runs.items():
    step_error[name] = distance(run, equation)
    left.plot(t, step_error[name], styles[name], lw=2.5, label=name)
    if name != "particles":  # these make no JKO steps
        solver_error[name] = distance(run, sequence)
        shown = solver_error[name].clamp_min(1e-17)
        right.semilogy(t, shown, styles[name], lw=2.5, label=name)
left.set(title="against the equation", xlabel="time", ylabel="error")
right.set(title="against exact JKO steps", xlabel="time", ylabel="error")
left.legend()
for line, color in zip(right.lines, ("C1", "C2", "C3"), strict=True):
    line.set_color(color)
plt.show()

# %%
# What each step proved
# ---------------------
# The report of a step is a certificate. ``converged``: the iteration met its tolerance.
# ``bound``: the result lies at most so far in :math:`W_2` from the exact optimum of the
# step. ``guarantee`` is "exact" if it has a bound. On a Gaussian and on quantiles the
# bound comes from the residual and the modulus of convexity of F; on a grid from the
# duality gap, the energy that a better density could at most save.

for name in ("quantiles", "grid", "Gaussian"):
    info = runs[name].info
    print(f"{name:10s} {info[-1]['guarantee']:8s} bound {info[-1]['bound']:.1e}")
    assert all(step["converged"] for step in info)
    assert all(step["guarantee"] == "exact" for step in info)
    assert all(step["energy_after"] <= step["energy_before"] + 1e-12 for step in info)

# %%
# What must hold
# --------------

for name in ("quantiles", "grid", "Gaussian"):
    assert 0.2 * dt < max(step_error[name]) < dt  # of order dt
assert solver_error["Gaussian"][-1] < 1e-9
assert solver_error["quantiles"][-1] < 1e-5
assert solver_error["grid"][-1] < 1e-4
assert max(step_error["particles"]) < 5 / math.sqrt(4000)
