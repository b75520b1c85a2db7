r"""
Two photographs interpolated
============================

A photograph is a density: its brightness, divided by the sum. The mean of two
photographs is a double exposure. The geodesic of :math:`W_2` moves the light instead:
each bit of it goes along a straight line, at constant speed,

.. math:: \mu_t = \big((1-t)\,x + t\,y\big)_\# P, \qquad
    W_2(\mu_s, \mu_t) = |t - s|\, W_2(\mu_0, \mu_1),

with P the plan that carries one photograph to the other at the least cost. Here is the
geodesic on the grid of the pixels, with what is known of its error.
"""

# %%
# Two densities on one grid
# -------------------------
# Each cell takes the average of its pixels. For W2 a grid in the plane stands for atoms
# at the centres of its cells. The bracket holds two numbers, between which the squared
# distance is proved to lie: the cost of a plan, and the value of a pair of potentials.

import time

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from sklearn.datasets import load_sample_image

import otflow as of


def photograph(name: str) -> of.GridDensity:
    image = load_sample_image(name)
    return of.GridDensity.from_image(image, shape=(120, 80), dtype=torch.float64)


temple, flower = photograph("china.jpg"), photograph("flower.jpg")
diagonal = torch.tensor(temple.box.spacing).norm().item()
bounds = of.metrics.wasserstein2_bounds(temple, flower, tolerance=1e-3).bracket
print(f"W2 squared lies in [{bounds.lower:.5f}, {bounds.upper:.5f}]")
print(f"W2 is {bounds.upper**0.5 / diagonal:.1f} diagonals of a cell")

# %%
# The geodesic, and the mixture
# -----------------------------
# Atoms on their way lie between the centres of cells. The answer on the grid shares
# each of them among the nearest centres, linearly along both axes: mass and mean are
# kept, and no atom moves by more than a part of a cell. With a tolerance the plan may
# cost 1 % more than the best one; then pictures of 512 x 512 pixels take some 20
# seconds. The ends are the photographs themselves, to the bit.

times = [0.0, 0.25, 0.5, 0.75, 1.0]
start = time.perf_counter()
path = of.metrics.geodesic(temple, flower, times, tolerance=1e-2)
print(f"{len(times)} pictures of {temple.n} cells: {time.perf_counter() - start:.1f} s")


def show(ax: Axes, mu: of.GridDensity, title: str) -> None:
    picture = mu.grid.T.numpy()
    top = 2.2 * picture.mean()  # one exposure for all: the mean is that of mass 1
    ax.imshow(picture, cmap="gray", origin="lower", vmin=0, vmax=top)
    ax.set_title(title, fontsize=9)
    ax.axis("off")


fig, axes = plt.subplots(2, 5, figsize=(9, 3.0), layout="constrained")
for t, mu, (upper, lower) in zip(times, path, axes.T, strict=True):
    show(upper, mu, f"geodesic, t = {t:g}")
    show(lower, temple.mix(flower, t), f"mixture, {t:g}")
plt.show()

# %%
# How exact it is
# ---------------
# The distances from the temple grow linearly, those to the flower fall linearly. The
# remap alone may change each of them by half a diagonal of a cell. The mixture is no
# shortest path: its pieces add up to more than the distance of its ends.


def apart(mu: of.GridDensity, nu: of.GridDensity) -> float:
    return of.metrics.wasserstein2(mu, nu, tolerance=2e-3).item()


whole = apart(temple, flower)
there = torch.tensor([apart(temple, mu) for mu in path[1:-1]])
back = torch.tensor([apart(mu, flower) for mu in path[1:-1]])
inner = torch.tensor(times[1:-1])
errors = torch.stack([there - inner * whole, back - (1 - inner) * whole]) / diagonal
mixtures = [temple, *(temple.mix(flower, t) for t in times[1:-1]), flower]
longer = [of.metrics.length(p, tolerance=1e-2) / whole for p in (path, mixtures)]

fig, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
for ends in ([0, whole], [whole, 0]):
    ax.plot([0, 1], [w / diagonal for w in ends], color="0.7")
ax.plot(inner, there / diagonal, "o", label="from the temple")
ax.plot(inner, back / diagonal, "s", label="to the flower")
ax.set(xlabel="time t", ylabel="W2, in diagonals of a cell")
ax.legend(frameon=False, loc="upper center", fontsize=8)
plt.show()
print(f"largest error: {errors.abs().max():.3f} diagonals of a cell")
print(f"length over distance: geodesic {longer[0]:.3f}, mixture {longer[1]:.3f}")

# %%
# What must hold
# --------------

means = torch.stack([mu.expectation(lambda x: x) for mu in path])
weights = torch.tensor(times, dtype=torch.float64)[:, None]
straight = torch.lerp(means[0], means[-1], weights)
assert path[0] is temple
assert path[-1] is flower
assert (means - straight).abs().max() < 0.01 * diagonal
assert bounds.relative <= 1e-3
assert errors.abs().max() < 0.5
assert longer[0] < 1.05
assert longer[1] > 1.05 * longer[0]
