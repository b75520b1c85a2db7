r"""
Birth and death escape plateaus
===============================

Gradient descent moves neurons downhill. A neuron far from where it is needed has a long
way. The equation

.. math:: \partial_t\mu = \nabla\cdot(\mu\nabla F') - \alpha\,\mu\,(F' - \bar F'),
    \qquad \bar F' = \int F'\,d\mu

also lets neurons of high first variation F' die and those of low F' multiply: mass
jumps where transport would crawl :cite:p:`rotskoff2019global`. This tutorial repeats
the experiment of that paper: Gaussian bumps learn a sum of three bumps on the line.
"""

# %%
# The problem
# -----------
# A neuron is (c, y): a bump :math:`\phi` of height c at y. The loss is :math:`\tfrac12
# \int(\int c\,\phi(x - y)\,d\mu - f(x))^2 dx`. All integrals over x are Gaussian, so
# the loss is a sum of Gaussian functions of the places.

import matplotlib.pyplot as plt
import torch

import otflow as of

centres = torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64)
variances = torch.tensor([0.5, 1.0, 0.5], dtype=torch.float64)
heights = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64) / 3


def bump(z, variance):
    return torch.exp(-z.square() / (2 * variance)) / (2 * torch.pi * variance) ** 0.5


class Bumps(of.Functional):
    def value(self, mu):
        mass, y = mu.weights * mu.points[:, 0], mu.points[:, 1]
        target = bump(centres[:, None] - centres, variances[:, None] + variances)
        cross = bump(y[:, None] - centres, variances + 0.5)
        own = bump(y[:, None] - y, torch.tensor(1.0))
        return (
            0.5 * heights @ target @ heights
            - mass @ cross @ heights
            + 0.5 * mass @ own @ mass
        )


def start(n, low, high, seed=0):
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(n, dtype=torch.float64, generator=generator)
    y = low + (high - low) * torch.rand(n, dtype=torch.float64, generator=generator)
    return of.Particles(torch.stack([c, y], 1))


# %%
# Three ways to react
# -------------------
# ``BirthDeath`` changes the masses of neurons. With ``jumps=True`` all masses stay
# equal: neurons die, and are cloned, at random, with the same mean. With a ``prior``
# neurons are also born, at places drawn from it, where they lower the loss.

F, euler = Bumps(), of.ExplicitEuler()
prior = of.Gaussian(
    torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
)
schemes = {
    "transport alone": euler,
    "and masses": of.chain(euler, of.BirthDeath(5.0)),
    "and jumps": of.chain(euler, of.BirthDeath(5.0, jumps=True)),
    "and jumps, with a prior": of.chain(
        euler, of.BirthDeath(5.0, jumps=True, prior=prior)
    ),
}


def trained(mu, steps):
    return {
        name: of.flow(F, mu, scheme, dt=0.02, steps=steps, every=10, generator=0)
        for name, scheme in schemes.items()
    }


good = trained(start(120, -2.0, 2.0), 400)

# %%
# A bad start
# -----------
# Now all neurons begin near the first bump. Clones stay where their parents are. All
# three end on one plateau: the right half of f is out of reach. A prior that covers
# the other bumps leaves it.

bad = trained(start(120, -2.2, -1.8), 600)

fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.1), layout="constrained")
for ax, runs, title in ((axes[0], good, "a good start"), (axes[1], bad, "a bad start")):
    for name, run in runs.items():
        ax.semilogy(run.times, run.records["energy"], label=name)
    ax.set(title=title, xlabel="time", ylabel="loss")
axes[0].legend(fontsize=7)
x = torch.linspace(-5, 5, 200, dtype=torch.float64)
axes[2].plot(x, bump(x[:, None] - centres, variances) @ heights, color="0.7", lw=4)
for k, name in ((0, "transport alone"), (3, "and jumps, with a prior")):
    mu = bad[name].final
    f = bump(x[:, None] - mu.points[:, 1], torch.tensor(0.5)) @ mu.points[:, 0]
    axes[2].plot(x, f / mu.n, color=f"C{k}", label=name)
axes[2].set(title="learnt from the bad start", xlabel="x", ylabel="f(x)")
plt.show()

# %%
# What the reports say
# --------------------
# Clones lie at one place, and transport moves them alike. The effective size tells how
# many neurons are left that differ, and ``born`` how many jumped or were born.

for name in list(schemes)[1:]:
    parts = [info["parts"][1] for info in bad[name].info]
    born = sum(part["born"] for part in parts)
    print(f"{name:24} effective size {parts[-1]['effective_size']:5.1f}, born {born}")

# %%
# Reaction alone, and what is proved
# ----------------------------------
# Without transport :math:`F(\mu_t) - F(\nu) \le \mathrm{KL}(\nu | \mu_0)/(\alpha t)`
# holds for every :math:`\nu`, since F is convex along mixtures. Beside transport the
# fall of :math:`t\,F` is an observation. Against every tilt of the start the bound
# leaves room.

mu = start(120, -2.0, 2.0)
alone = of.flow(F, mu, of.BirthDeath(5.0), dt=0.02, steps=400, every=20)
times, worst = alone.times[1:], 0.0
for scale in torch.linspace(0.0, 20.0, 11):
    nu = mu.reweight(-scale * F.first_variation(mu), 1.0)
    entropy = float(nu.weights @ (nu.weights * mu.n).log())
    excess = alone.records["energy"][1:] - F(nu)
    assert bool((excess <= entropy / (5.0 * times) + 1e-12).all())

# %%
# What must hold
# --------------

end = {name: float(run.records["energy"][-1]) for name, run in good.items()}
stuck = {name: float(run.records["energy"][-1]) for name, run in bad.items()}
assert all(value < end["transport alone"] / 4 for value in list(end.values())[1:])
assert stuck["and jumps, with a prior"] < 0.1 * min(list(stuck.values())[:3])
assert stuck["and masses"] > 0.01
