r"""
Means and morphs
================

A mixture of two pictures shows both at once. The **geodesic** of :math:`W_2` moves one
into the other: every bit of ink goes along a straight line, at constant speed,

.. math:: W_2(\mu_s, \mu_t) = |t - s|\, W_2(\mu_0, \mu_1) .

The mean of several measures is their **barycentre**, the minimiser of

.. math:: \nu \mapsto \sum_i \lambda_i W_2^2(\nu, \mu_i) .

Here are both, for handwritten digits as particles, for ellipses as Gaussians, and for
densities on a grid.
"""

# %%
# A morph
# -------
# A picture becomes particles: one atom for each pixel with ink, as heavy as its ink.
# The geodesic splits atoms as the optimal plan does. The mixture below only fades. A
# film of the path is ``otflow.plotting.animate(path)``.

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from sklearn.datasets import load_digits

import otflow as of

digits = load_digits()
pictures = torch.tensor(digits.images)  # (1797, 8, 8), values 0 to 16
rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
places = torch.stack([columns, 7 - rows], dim=-1).reshape(-1, 2).double()


def written(k: int) -> of.Particles:
    ink = pictures[k].reshape(-1)
    return of.Particles(places[ink > 0], ink[ink > 0], normalize=True)


def show(ax: Axes, mu: of.Particles, title: str, color: str = "C0") -> None:
    x, y = mu.points.T
    ax.scatter(x, y, s=2500 * mu.weights, color=color, alpha=0.6, lw=0)
    ax.set(xlim=(-1, 8), ylim=(-1, 8), aspect="equal")
    ax.set_title(title, fontsize=10)
    ax.axis("off")


times = [0.0, 0.25, 0.5, 0.75, 1.0]
one, seven = written(1), written(7)
path = of.metrics.geodesic(one, seven, times)
fig, axes = plt.subplots(2, 5, figsize=(8.5, 3.8), layout="constrained")
for t, mu, (upper, lower) in zip(times, path, axes.T, strict=True):
    show(upper, mu, f"geodesic, t = {t:g}")
    show(lower, one.mix(seven, t), f"mixture, {t:g}", "C1")
plt.show()

# %%
# The mean of a digit
# -------------------
# Twelve people wrote a three. For the mean no atom is fixed: plans to all pictures are
# glued, and each cell goes to the mean of the pixels that it joins. The result says
# what is known of it. It is a critical point, perhaps not the best one; the bracket
# bounds how much better another could be. The average ink is wider than the threes.

chosen = (digits.target == 3).nonzero()[0][:12]
threes = [written(k) for k in chosen]
mean = of.metrics.barycenter(threes)
ink = pictures[chosen].mean(0).reshape(-1)
average = of.Particles(places, ink, normalize=True)
bracket = mean.bracket()
print(f"{mean.measure.n} atoms, {mean.guarantee}, within {bracket.relative:.1%}")

fig, axes = plt.subplots(1, 5, figsize=(8.5, 2), layout="constrained")
for ax, mu in zip(axes[:3], threes[:3], strict=True):
    show(ax, mu, "written")
show(axes[3], average, "average ink", "C1")
show(axes[4], mean.measure, "barycentre")
plt.show()

# %%
# Ellipses
# --------
# The barycentre of Gaussians is a Gaussian, the fixed point of a short iteration. Three
# ellipses stand at the corners; every other one is a barycentre of the three.

corners = [(0.0, 0.0), (6.0, 0.0), (3.0, 5.2)]
wide, narrow = torch.tensor([0.9, 0.05]).double(), torch.tensor([0.05, 0.9]).double()
tilted = torch.tensor([[0.3, 0.25], [0.25, 0.3]]).double()
shapes = [wide.diag(), tilted, narrow.diag()]
ellipses = [
    of.Gaussian(torch.tensor(m).double(), s)
    for m, s in zip(corners, shapes, strict=True)
]
fig, ax = plt.subplots(figsize=(6, 5.2), layout="constrained")
means, angle = {}, torch.linspace(0, 2 * torch.pi, 100).double()
circle = torch.stack([angle.cos(), angle.sin()])
for i in range(5):
    for j in range(5 - i):
        shares = torch.tensor([4 - i - j, i, j]).double() / 4
        means[i, j] = found = of.metrics.barycenter(ellipses, shares)
        outline = found.measure.mean[:, None] + 0.7 * found.measure.factor @ circle
        color = "C1" if 1.0 in shares else "C0"
        ax.fill(*outline, color=color, alpha=0.6)
ax.set_aspect("equal")
ax.axis("off")
plt.show()

# %%
# On a grid
# ---------
# Densities in the plane have an entropic mean, here with a blur of two cells. The
# functional is debiased: its minimiser is nearly as sharp as the exact mean.

half = of.metrics.barycenter([ellipses[0], ellipses[2]]).measure


def on_cells(g: of.Gaussian) -> of.GridDensity:
    return of.GridDensity.from_function(
        lambda x: g.log_density(x).exp(), -4, 10, (70, 70), dtype=torch.float64
    )


grid = of.metrics.barycenter([on_cells(ellipses[0]), on_cells(ellipses[2])], blur=0.4)
centre = grid.measure.expectation(lambda x: x)
spread = grid.measure.expectation(lambda x: (x - centre).square())
print(f"variances {spread.tolist()}, exact {half.covariance.diag().tolist()}")

# %%
# What must hold
# --------------

whole = of.metrics.wasserstein2(one, seven)
parts = torch.stack([of.metrics.wasserstein2(one, mu) for mu in path])
to_average = sum(of.metrics.wasserstein2_squared(average, mu) for mu in threes) / 12
assert torch.allclose(parts, torch.tensor(times).double() * whole, atol=1e-6)
assert mean.converged
assert bracket.relative < 0.2
assert mean.value < 0.9 * to_average
assert all(found.guarantee == "optimal" for found in means.values())
assert (spread - half.covariance.diag()).abs().max() < 0.05
