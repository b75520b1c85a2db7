r"""
Matching a cloud, a picture, a posterior
========================================

To fit particles to data, flow down a distance to the data. Only the functional changes.
How good is the end? The unit below is the distance of *exact draws*: of as many points,
drawn from the target. A loss that is worth its time comes as near.
"""

# %%
# A cloud
# -------
# 500 points on two moons are the data, and 200 particles shall stand for them. Losses
# have their own clocks: slices see 1/d of a move, and the force of the energy distance
# fades near the target, so these flow longer. Titles: the distance to fresh draws.

import matplotlib.pyplot as plt
import torch
from matplotlib.animation import FuncAnimation
from sklearn.datasets import load_breast_cancer, load_sample_image, make_moons

import otflow as of

generator = torch.Generator().manual_seed(0)
normal = lambda *shape: torch.randn(shape, dtype=torch.float64, generator=generator)
moons = lambda n, seed: of.Particles(make_moons(n, noise=0.06, random_state=seed)[0])
gap = lambda mu, nu: float(of.metrics.wasserstein2(mu, nu, tolerance=0.01))

data, start, euler = (
    moons(500, 0),
    of.Particles(0.5 * normal(200, 2)),
    of.ExplicitEuler(),
)
losses = {  # and the length and the number of steps
    "W2": (of.SquaredDistanceTo(data), 0.25, 20),
    "Sinkhorn": (of.SinkhornDivergenceTo(data, blur=0.1), 0.5, 20),
    "sliced": (of.SlicedWassersteinTo(data, 64), 1.9, 120),
    "energy": (of.EnergyDistanceTo(data), 1.0, 300),
    "MMD": (of.MMDTo(data, of.kernels.Gaussian(1.0)), 1.0, 400),
}
runs = [
    of.flow(F, start, euler, dt=dt, steps=steps, every=steps // 20)
    for F, dt, steps in losses.values()
]
fresh = moons(2000, 1)
draws = sum(gap(moons(200, seed), fresh) for seed in range(2, 6)) / 4
cloud = {k: gap(r.final, fresh) / draws for k, r in zip(losses, runs, strict=True)}

fig, axes = plt.subplots(1, 5, figsize=(11, 2.6), layout="constrained")
for ax, (name, ratio) in zip(axes, cloud.items(), strict=True):
    ax.scatter(*data.points.T, s=2, color="0.8")
    ax.set(xlim=(-1.6, 2.4), ylim=(-1.4, 1.8), aspect="equal", xticks=[], yticks=[])
    ax.set(title=f"{name}: {ratio:.2f} draws", xlabel="x[0]", ylabel="x[1]")
dots = [ax.scatter(*start.points.T, s=5) for ax in axes]


def show(k: int) -> list:
    for scatter, run in zip(dots, runs, strict=True):
        scatter.set_offsets(run.snapshots[k].points)
    return dots


film = FuncAnimation(fig, show, frames=21, interval=150)
plt.show()

# %%
# W2 and Sinkhorn place points more evenly than chance. A wide smooth kernel does not
# see the details; a narrow one leaves points behind. For the width 0.4 the noise of
# :class:`otflow.schemes.NoisyEuler` gains a tenth, from 5.9 draws.
#
# A picture
# ---------
# A photograph is a measure of ink. Draws cluster; flows spread 1000 equal dots.

ink = (
    1 - torch.tensor(load_sample_image("china.jpg")[::8, 60:540:8].mean(2)) / 255
) ** 2
rows, columns = torch.meshgrid(*map(torch.arange, ink.shape), indexing="ij")
pixels = torch.stack([columns, len(ink) - rows], -1).reshape(-1, 2) / len(ink)
photo = of.Particles(pixels.double(), ink.reshape(-1), normalize=True)
square, sliced = of.Particles(normal(1000, 2).sigmoid()), of.SlicedWassersteinTo(photo)
exact = of.SquaredDistanceTo(photo, tolerance=0.05)
pictures = {
    "draws": of.Particles(photo.sample(1000, generator)),
    "W2": of.flow(exact, square, euler, dt=0.5, steps=8).final,
    "sliced": of.flow(sliced, square, euler, dt=1.5, steps=60).final,
}
fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
dotted = {name: gap(mu, photo) for name, mu in pictures.items()}
for ax, (name, mu) in zip(axes, pictures.items(), strict=True):
    ax.scatter(*mu.points.T, s=3, color="k")
    ax.set(aspect="equal", title=f"{name}: $W_2$ = {dotted[name]:.4f}")
    ax.axis("off")
plt.show()

# %%
# A posterior
# -----------
# Of a law :math:`e^{-V}` no points are given. A logistic regression tells malignant
# from benign in 100 patients, by radius and texture of cells. In dimension 3 a grid has
# this law and gives exact draws. Four flows reach it too: by the noise of Langevin, the
# kernel of SVGD, an entropy of particles, and ``KSD``, stiff enough to need ``JKO``.

cancer, imq = load_breast_cancer(), of.kernels.InverseMultiquadric
X = torch.tensor(cancer.data[:100, :2])
X = torch.cat([(X - X.mean(0)) / X.std(0), torch.ones(100, 1)], 1)
X = X * (2.0 * torch.tensor(cancer.target[:100])[:, None] - 1)
V = lambda b: b.square().sum(-1) / 8 - torch.sigmoid(b @ X.T).log().sum(-1)
score = lambda b: torch.sigmoid(-b @ X.T) @ X - b / 4
problems = {
    "Langevin": (of.KL(V), of.Langevin(), 0.01, 400),
    "SVGD": (of.KL(V), of.schemes.SVGD(imq(0.5)), 0.1, 400),
    "Blob": (of.Potential(V) + of.Blob(of.Entropy(), 0.2), euler, 0.03, 200),
    "KSD": (of.KSD(score, imq(1.0)), of.JKO(), 1.0, 5),
}
wide = of.Particles(normal(150, 3))
ends = {
    name: of.flow(F, wide, scheme, dt=dt, steps=steps, generator=1).final
    for name, (F, scheme, dt, steps) in problems.items()
}
law = of.GridDensity.from_function(
    lambda b: (-V(b)).exp(), (-8, -5, -5), (1, 2, 2), (60, 60, 60), dtype=torch.float64
)
many = of.Particles(law.sample(2000, generator))
samples = {"exact": of.Particles(law.sample(150, generator))} | ends
draws = sum(gap(of.Particles(law.sample(150, generator)), many) for _ in range(4)) / 4
fitted = {name: gap(mu, many) / draws for name, mu in ends.items()}

fig, axes = plt.subplots(1, 5, figsize=(11, 2.9), layout="constrained", sharey=True)
for ax, (name, mu) in zip(axes, samples.items(), strict=True):
    ax.scatter(*many.points[:, :2].T, s=2, color="0.85")
    ax.scatter(*mu.points[:, :2].T, s=5)
    ax.set(title=f"{name}: {fitted.get(name, 1):.2f} draws", xlabel="weight of radius")
    ax.set(ylabel="weight of texture")
plt.show()

# %%
# What must hold
# --------------
# Seven seeds were tried: the margins hold for each.

assert all(cloud[name] < 1.3 for name in ("W2", "Sinkhorn", "sliced", "energy"))
assert cloud["MMD"] > 1.5
assert max(dotted["W2"], dotted["sliced"]) < 0.75 * dotted["draws"]
assert all(ratio < 1.4 for ratio in fitted.values())
mean, second = law.expectation(lambda b: b), law.expectation(lambda b: b.square())
bias = torch.stack([mu.expectation(lambda b: b) - mean for mu in ends.values()])
assert (bias.abs() < 0.35 * (second - mean.square()).sqrt()).all()
