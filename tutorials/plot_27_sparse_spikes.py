r"""
Sparse spikes
=============

A blurred picture shows three spikes in a square with periodic sides. Their number,
places and masses are unknown, and so is the total mass. The unknown is a positive
measure :math:`\nu`, and the problem

.. math:: \min_\nu\; \tfrac12 \Bigl|\int \phi\,d\nu - y\Bigr|^2 + \lambda\,|\nu|

is convex. A flow of many small atoms solves it, if masses may grow and shrink while
places move :cite:p:`chizat2022sparse`.
"""

# %%
# A measure of free mass is a law
# -------------------------------
# Write :math:`\nu = \sum_i w_i r_i^2\,\delta_{x_i}`. The law of (r, x) is a
# probability, and :class:`~otflow.functionals.Lifted` makes F a functional of it.
# :class:`~otflow.measures.ConicParticles` are such laws, in the metric
# :math:`r^2 (g^2/\alpha + |v|^2/\beta)` of growth rates g of r and velocities v. Every
# scheme applies: explicit Euler is a mirror step in r and a gradient step in x.

import math

import matplotlib.pyplot as plt
import torch

import otflow as of

modes = torch.cartesian_prod(*[torch.arange(-2.0, 3.0).double()] * 2)
sine = torch.full((25, 1), math.pi / 2).double()
rows = torch.cat([torch.cat([modes, 0 * sine], 1), torch.cat([modes, sine], 1)])
offsets = [[0.0, 0.0], [1.7, -0.3], [0.7, 1.3]]
spikes = math.pi + torch.tensor(offsets, dtype=torch.float64)
masses = torch.tensor([1.21, 0.64, 1.0], dtype=torch.float64)


def waves(rows, x):
    return math.sqrt(len(rows)) * torch.cos(rows[:, :2] @ x.T - rows[:, 2:])


data = waves(rows, spikes) @ masses
misfit = of.meanfield.Risk(of.meanfield.CustomLayer(waves), rows, data)

side = torch.linspace(math.pi / 10, 2 * math.pi - math.pi / 10, 10).double()
places = torch.cartesian_prod(side, side)
start = of.measures.ConicParticles.of_masses(
    places, torch.full((100,), 0.0025).double(), alpha=0.01, beta=0.01
)

# %%
# The penalty makes the rate linear
# ---------------------------------
# Without a penalty the gap falls like a power of time. With :math:`\lambda > 0` atoms
# between the spikes lose their mass, and the gap falls to round-off.

euler = of.ExplicitEuler()
problems = {lam: of.functionals.Lifted(misfit, lam) for lam in (0.0, 1.0, 4.0)}
runs = {
    lam: of.flow(F, start, euler, dt=1.0, steps=1200, every=20)
    for lam, F in problems.items()
}
gaps = {
    lam: run.records["energy"] - (run.records["energy"][-1] if lam else 0.0)
    for lam, run in runs.items()
}

fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.2), layout="constrained")
for lam, gap in gaps.items():
    last = 45 if lam else None  # near the end the last value is no minimum
    axes[0].semilogy(runs[lam].times[:last], gap[:last], label=f"penalty {lam:g}")
axes[0].set(xlabel="step", ylabel="F minus its last value, or 0")
axes[0].legend()
axis = torch.linspace(0, 2 * math.pi, 80).double()
square = torch.cartesian_prod(axis, axis)
picture = (waves(rows, square).T @ data / len(rows)).reshape(80, 80)
paths = torch.stack([mu.places for mu in runs[1.0].snapshots])
for ax, title in ((axes[1], "paths, penalty 1"), (axes[2], "masses at the end")):
    ax.imshow(picture.T.numpy(), origin="lower", extent=(0, 6.283) * 2, cmap="Greys")
    ax.set(title=title, xlabel="x[0]", ylabel="x[1]", xlim=(-1, 7.5), ylim=(-1, 7.5))
axes[1].plot(*paths.permute(2, 0, 1).numpy(), color="C0", lw=0.6)
sizes = 200 * runs[1.0].final.masses.numpy()
axes[2].scatter(*paths[-1].T.numpy(), s=sizes, color="C0", alpha=0.5)
axes[2].scatter(*spikes.T.numpy(), marker="+", color="C3")
plt.show()

# %%
# What the flow has found
# -----------------------
# Atoms of one spike end at one place up to periods. A penalty shifts places and takes
# some mass: that is the solution of the problem, not an error of the flow.

final = runs[1.0].final
turn = lambda x: torch.cat([x.cos(), x.sin()], -1)
distance = torch.cdist(turn(final.places), turn(spikes))
near = distance.argmin(1)
found = torch.stack([final.masses[near == k].sum() for k in range(3)])
off = float((final.masses * (distance.min(1).values > 0.1)).sum())
print(f"masses {found.tolist()}, of {masses.tolist()}; elsewhere {off:.1e}")

# %%
# Signs
# -----
# With ``signed=True`` atoms with r < 0 are negative. Signs stay, so the start has atoms
# of both at each place.

signed = torch.tensor([1.0, -0.5, 0.8]).double()
other = of.meanfield.Risk(misfit.network, rows, waves(rows, spikes) @ signed)
both = of.measures.ConicParticles.of_masses(
    places.repeat(2, 1),
    torch.tensor([0.0025, -0.0025]).double().repeat_interleave(100),
    alpha=0.01,
    beta=0.01,
)
two_signs = of.functionals.Lifted(other, 0.5, signed=True)
run = of.flow(two_signs, both, euler, dt=1.0, steps=1200, every=1200)
distance = torch.cdist(turn(run.final.places), turn(spikes))
signs = [float(run.final.masses[distance[:, k] < 0.3].sum()) for k in range(3)]

# %%
# What must hold
# --------------

assert gaps[0.0][-1] > 0.2 * gaps[0.0][len(gaps[0.0]) // 2]
assert gaps[1.0][45] < 0.1 * gaps[1.0][20]
assert gaps[4.0][45] < 1e-4 * gaps[4.0][20]
assert float((found - masses).abs().max()) < 0.15
assert off < 1e-3
assert torch.tensor(signs).sign().equal(signed.float().sign())
assert max(abs(a - b) for a, b in zip(signs, signed.tolist(), strict=True)) < 0.1
