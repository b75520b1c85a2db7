r"""
How far from optimal am I?
==========================

A flow that has come to rest may rest in the wrong place. If F is convex along mixtures,
one number bounds how wrong it is:

.. math:: F(\mu) - \inf_\nu F(\nu) \le \int F'[\mu]\,d\mu - \min_x F'[\mu](x).

The right-hand side is the *gap*. It is 0 at a minimiser and there alone. The mean of
:math:`F'[\mu]` is a sum; its minimum is not. A search finds too high a minimum, and so
too small a gap. :func:`otflow.optimality.optimality_gap` bounds the minimum from below
by proof where it can, and says so: ``kind="proved"``.
"""

# %%
# Three spikes through a narrow filter
# ------------------------------------
# On a circle of length 1 sit three spikes. What is measured is their first four Fourier
# coefficients. The loss of a measure, half a mean squared error, is a
# :class:`~otflow.meanfield.Risk`: the "data" are frequencies and phases, the "neurons"
# are the atoms. Its infimum is 0, so here the true error is known.

import math

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

import otflow as of
from otflow.optimality import BoxDomain, optimality_gap


def ripple(rows: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    angle = 2 * math.pi * rows[:, :1] * theta[:, 0] - rows[:, 1:]
    return math.sqrt(2) * torch.cos(angle)


F64 = torch.float64
waves = [[k, phase] for k in range(1, 5) for phase in (0.0, math.pi / 2)]
rows = torch.tensor(waves, dtype=F64)
spikes = of.Particles(
    torch.tensor([[0.15], [0.42], [0.77]], dtype=F64),
    torch.tensor([0.5, 0.3, 0.2], dtype=F64),
)
network = of.meanfield.CustomLayer(ripple)
F = of.meanfield.Risk(network, rows, network(spikes, rows))

# %%
# Two flows
# ---------
# Atoms move, and also trade mass by birth and death. Forty of them find the spikes. Two
# are too few for three spikes; they come to rest all the same.


def even(m: int) -> of.Particles:
    return of.Particles((torch.arange(m, dtype=F64)[:, None] + 0.5) / m)


both = of.chain(of.ExplicitEuler(), of.BirthDeath(rate=50.0))
runs = {
    f"{m} atoms": of.flow(F, even(m), both, dt=0.007, steps=2000, every=20)
    for m in (40, 2)
}

# %%
# Proved against searched
# -----------------------
# At each logged step: the true error, the proved gap over a box of one period, and the
# gap of a cheap search, which looks at the atoms alone. For the two atoms that search
# says in the end that nothing is left to gain. The proof does not believe it.

circle = BoxDomain(0.0, 1.0)
found = {}
for name, run in runs.items():
    measures = [of.Particles(mu.points % 1, mu.weights) for mu in run.snapshots]
    gaps = [optimality_gap(F, mu, circle) for mu in measures]
    slopes = [F.first_variation(mu) for mu in measures]
    at_atoms = [
        float(mu.weights @ s - s.min()) for mu, s in zip(measures, slopes, strict=True)
    ]
    errors = [float(F.value(mu)) for mu in measures]
    found[name] = (measures, errors, gaps, at_atoms)

fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
for ax, (name, (_, errors, gaps, at_atoms)) in zip(axes, found.items(), strict=True):
    times = runs[name].times[1:]
    ax.loglog(times, [gap.value for gap in gaps[1:]], label="proved gap")
    ax.loglog(times, errors[1:], "k", label="true error")
    low = [max(gap, 1e-17) for gap in at_atoms[1:]]  # a logarithm shows no 0
    ax.loglog(times, low, ":", label="gap searched at atoms")
    ax.set(title=name, xlabel="time", ylabel="error")
axes[0].legend(frameon=False, fontsize=8, loc="lower left")
plt.show()

# %%
# Where something is left to gain
# -------------------------------
# The gap also says where: ``argmin`` is the place at which an atom would lower F most.
# A minimiser lies where :math:`F'[\mu]` is least, as the forty atoms do: all in the
# three deepest pits. The two atoms are level with each other, high above a third place.

x = torch.linspace(0, 1, 1001, dtype=F64)[:, None]


def show(ax: Axes, name: str) -> None:
    measures, _, gaps, _ = found[name]
    mu, gap = measures[-1], gaps[-1]
    ax.plot(x, F.first_variation(mu, x), color="0.4")
    ax.scatter(mu.points, F.first_variation(mu), 400 * mu.weights, alpha=0.6)
    assert gap.argmin is not None
    least = F.first_variation(mu, gap.argmin[None])
    ax.plot(gap.argmin.numpy(), least, "v", color="C3", label="argmin of the gap")
    ax.set(title=f"{name}: gap {gap.value:.1e}", xlabel="x", ylabel="F'")


fig, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for ax, name in zip(axes, found, strict=True):
    show(ax, name)
axes[1].legend(frameon=False, fontsize=8)
plt.show()

# %%
# What must hold
# --------------

for name in found:
    errors, gaps = found[name][1:3]
    assert all(gap.kind == "proved" for gap in gaps), name
    assert all(e <= gap.value for e, gap in zip(errors, gaps, strict=True)), name
    print(name, gaps[-1])
errors, gaps, at_atoms = found["2 atoms"][1:]
assert at_atoms[-1] < 1e-3 * errors[-1] < errors[-1] < gaps[-1].value
assert found["40 atoms"][2][-1].value < 1e-6
