r"""
Sampling a posterior
====================

Langevin dynamics is the Wasserstein gradient flow of the relative entropy to
:math:`e^{-V}`. It moves mass along paths. Birth-death moves mass between places that
particles have already found: atoms where :math:`\log\rho + V` is high lose mass to the
others. It finds no new place. Two targets with exact draws show what each can do.
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

n, generator = 600, torch.Generator().manual_seed(0)
normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)


def banana(x):
    """Return V of the banana."""
    return 0.5 * x[..., 0].square() + (x[..., 1] - x[..., 0].square()).square()


def bent():
    """Return exact draws of the banana."""
    z = normal(n, 2)
    return of.Particles(
        torch.stack([z[:, 0], z[:, 1] / math.sqrt(2) + z[:, 0] ** 2], 1)
    )


angles = torch.linspace(0, math.pi, 16, dtype=torch.float64)
arc = 2 * torch.stack([angles.cos(), angles.sin()], 1)
centres = torch.cat([arc, torch.tensor([2.0, -1.5]) - arc])
masses = torch.tensor([0.8 / 16, 0.2 / 16], dtype=torch.float64).repeat_interleave(16)
sigma = 0.3


def moons(x):
    """Return V of the two moons."""
    squares = (x[..., None, :] - centres).square().sum(-1)
    return -(masses.log() - squares / (2 * sigma**2)).logsumexp(-1)


def drawn():
    """Return exact draws of the moons."""
    k = torch.multinomial(masses, n, True, generator=generator)
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


reacting = of.chain(of.Langevin(), Reaction(rate=2.0), of.schemes.Resample())
run = lambda V, start, scheme, steps: (
    of.flow(
        of.KL(V), start, scheme, dt=0.01, steps=steps, every=steps, generator=1
    ).final
)
first = of.Particles(0.5 * normal(n, 2))
curved = run(banana, first, of.Langevin(), 600)
light = torch.arange(n) < 0.9 * n  # nine tenths start on the light moon
start = of.Particles(
    torch.where(light[:, None], centres[24], centres[8]) + sigma * normal(n, 2)
)
plain, mixed = (run(moons, start, s, 300) for s in (of.Langevin(), reacting))

# %%
# Against exact draws
# -------------------
# Two exact samples of n points differ too. That distance is the floor.

w2 = lambda mu, nu: float(of.metrics.wasserstein2(mu, nu))
floors = [w2(bent(), bent()), w2(drawn(), drawn())]
found = [w2(curved, bent()), w2(plain, drawn()), w2(mixed, drawn())]
print("floors", floors, "banana, Langevin, with birth-death", found)

clouds = {"banana": curved, "Langevin": plain, "birth-death": mixed, "exact": drawn()}
fig, axes = plt.subplots(1, 4, figsize=(11, 3), layout="constrained")
for ax, (title, mu) in zip(axes, clouds.items(), strict=True):
    of.plotting.particles(mu, ax=ax, size=6)
    ax.set(title=title, xlabel="x[0]", ylabel="x[1]", xlim=(-4, 6), ylim=(-5, 7))
plt.show()

# %%
# What must hold
# --------------

assert found[0] < 2 * floors[0]
assert found[2] < 2 * floors[1]
assert found[1] > 2 * found[2]
