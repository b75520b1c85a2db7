r"""
Sampling a posterior
====================

Langevin dynamics is the Wasserstein gradient flow of the relative entropy to
:math:`e^{-V}`. It moves mass along paths. Birth-death moves mass between places that
particles have already found: atoms where :math:`\log\rho + V` is high lose mass to the
others. It finds no new place. Two targets with exact draws show what each can do, and
every claim below is a test: against exact moments, or over eight seeds.
"""

# %%
# A banana, and two moons
# -----------------------
# The banana is a Gaussian bent by a map of determinant 1. The moons are Gaussians along
# two half circles, with masses 0.8 and 0.2.

import math

import matplotlib.pyplot as plt
import torch

import otflow as of

generator = torch.Generator().manual_seed(0)
normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)


def banana(x):
    """Return V of the banana."""
    return 0.5 * x[..., 0].square() + (x[..., 1] - x[..., 0].square()).square()


angles = torch.linspace(0, math.pi, 16, dtype=torch.float64)
arc = 2 * torch.stack([angles.cos(), angles.sin()], 1)
centres = torch.cat([arc, torch.tensor([2.0, -1.5]) - arc])  # the upper moon first
masses = torch.tensor([0.8 / 16, 0.2 / 16], dtype=torch.float64).repeat_interleave(16)
sigma = 0.3


def moons(x):
    """Return V of the two moons."""
    squares = (x[..., None, :] - centres).square().sum(-1)
    return -(masses.log() - squares / (2 * sigma**2)).logsumexp(-1)


def drawn(n):
    """Return n exact draws of the moons."""
    k = torch.multinomial(masses, n, True, generator=generator)
    return of.Particles(centres[k] + sigma * normal(n, 2))


def wrong(n):
    """Return n points, nine tenths of them on the lower moon."""
    k = torch.where(torch.arange(n) < 0.9 * n, 24, 8)
    return of.Particles(centres[k] + sigma * normal(n, 2))


# %%
# Birth-death needs a density
# ---------------------------
# Particles have none. A kernel estimate takes its place.


class Smoothed(of.Functional):
    """The entropy of the measure, smoothed over the length h."""

    def value(self, mu):
        kernel = lambda z: torch.exp(-z.square().sum(-1) / (2 * 0.3**2))
        x, w = mu.points, mu.weights
        return w @ (kernel(x[:, None] - x[None]) @ w).log()


class Reaction(of.BirthDeath):
    """Birth-death for a potential plus the smoothed entropy."""

    def step(self, F, mu, dt, state, generator):
        temperature, rest = F.split_entropy()
        return super().step(rest + temperature * Smoothed(), mu, dt, state, generator)


def sampled(V, start, scheme, steps, seed=1):
    """Return the end of a flow."""
    options: dict = {"dt": 0.01, "steps": steps, "every": steps, "generator": seed}
    return of.flow(of.KL(V), start, scheme, **options).final


# %%
# Particles under Langevin are independent: one run of 1600 is 1600 trials. Those
# of birth-death are not: it runs eight times, with 200 particles.

reacting = of.chain(of.Langevin(), Reaction(rate=2.0), of.schemes.Resample())
bent = sampled(banana, of.Particles(0.5 * normal(1600, 2)), of.Langevin(), 2000)
plain = sampled(moons, wrong(1600), of.Langevin(), 300)
mixed = [sampled(moons, wrong(200), reacting, 300, seed) for seed in range(8)]

# %%
# Against exact draws
# -------------------
# The share of the upper moon is 0.8. Two exact samples of 200 points differ too: their
# distance is the floor, and no sampler should stay above it.

nearest = lambda x: (x[:, None] - centres).square().sum(-1).argmin(1)
share = lambda mu: float(mu.weights[nearest(mu.points) < 16].sum())
w2 = lambda mu: float(of.metrics.wasserstein2(mu, drawn(200)))
found = {
    "Langevin": [of.Particles(x) for x in plain.points.reshape(200, 8, 2).unbind(1)],
    "birth-death": mixed,
    "exact draws": [drawn(200) for _ in mixed],
}
shares = {name: torch.tensor([*map(share, mus)]) for name, mus in found.items()}
apart = {name: torch.tensor([*map(w2, mus)]) for name, mus in found.items()}

clouds = {"banana, Langevin": [bent]} | {f"moons, {k}": v for k, v in found.items()}
fig, axes = plt.subplots(1, 4, figsize=(11, 3.6), layout="constrained", sharey=True)
for ax, (title, mus) in zip(axes, clouds.items(), strict=True):
    w = torch.cat([mu.weights for mu in mus]) / len(mus)
    pooled = of.Particles(torch.cat([mu.points for mu in mus]), w)
    of.plotting.particles(pooled, ax=ax, size=4)
    ax.set(title=title, xlabel="x[0]", ylabel="x[1]", xlim=(-4, 6), ylim=(-5, 7))
plt.show()

fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.2), layout="constrained")
for ax, numbers in ((left, shares), (right, apart)):
    for k, values in enumerate(numbers.values()):
        ax.plot(k + torch.linspace(-0.2, 0.2, 8), values, "o", color=f"C{k}")
    ax.set_xticks(range(3), numbers)
    ax.set_xlabel("eight samples of 200 each")
left.axhline(0.8, color="0.5", ls=":")
left.set(ylabel="share of the upper moon", ylim=(0, 1))
right.set(ylabel="$W_2$ to fresh draws", ylim=(0, 4))
plt.show()

# %%
# What must hold
# --------------
# Three moments of the banana are exact up to three standard errors of 1600 trials; the
# share and the distance of birth-death up to three of eight. Langevin alone leaves the
# share near 0.1, for hardly a particle crosses.

x, y = bent.points.T
moments = torch.stack([x.mean(), x.square().mean() - 1, y.mean() - 1])
error = lambda values: float(values.std() / math.sqrt(len(values)))
mass, distance, floor = shares["birth-death"], *list(apart.values())[1:]
assert (moments.abs() < 3 * (torch.tensor([1, 2, 2.5]) / 1600).sqrt()).all()
assert error(mass) < 0.01
assert abs(mass.mean() - 0.8) < 3 * error(mass)
assert distance.mean() - floor.mean() < 3 * math.hypot(error(distance), error(floor))
assert max(shares["Langevin"]) < 0.2
