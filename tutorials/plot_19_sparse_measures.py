r"""
Sparse measures by Frank-Wolfe
==============================

An instrument blurs three spikes. Where are they, and how strong is each? The unknown is
a measure :math:`\mu` on [0, 1]. The prediction :math:`\int \phi(x)\, d\mu(x)` is the
mean of the blurred images :math:`\phi(x)` of its atoms, and

.. math:: F(\mu) = \tfrac12 \Bigl|\int \phi\, d\mu - y\Bigr|^2

is convex along mixtures. The method of Frank and Wolfe looks for the place where the
first variation F' is least, and moves mass there :cite:p:`jaggi2013revisiting`:

.. math:: \mu_{k+1} = (1 - \gamma_k)\,\mu_k + \gamma_k\,\delta_{x_k}, \qquad
    x_k \in \arg\min F'[\mu_k], \qquad \gamma_k = \frac{2}{k + 2} .

There is no grid: :math:`x_k` is any place of the interval.
"""

# %%
# The data
# --------
# A functional of one's own says its value. Gaps also ask how it bends along mixtures.
# A proof asks for F' as a function of places, and evaluates it on whole intervals.

import matplotlib.pyplot as plt
import torch

import otflow as of

pixels = torch.linspace(0, 1, 60, dtype=torch.float64)


class Deconvolution(of.Functional):
    def __init__(self, data):
        self.data = data

    @staticmethod
    def blurred(x):
        return torch.exp(-((x - pixels) ** 2) / (2 * 0.07**2))

    def value(self, mu):
        return 0.5 * (mu.expectation(self.blurred) - self.data).square().mean()

    def mixture_curvature(self):
        return "convex"

    def enclosed_variation(self, mu):
        error = (mu.expectation(self.blurred) - self.data) / len(pixels)
        return lambda x: (self.blurred(x) * error).sum(-1)


spikes = of.Particles(
    torch.tensor([[0.2], [0.45], [0.8]], dtype=torch.float64),
    torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64),
)
F = Deconvolution(spikes.expectation(Deconvolution.blurred))
box = of.optimality.BoxDomain(0, 1)
start = of.Particles(torch.tensor([[0.5]], dtype=torch.float64))

# %%
# Atom by atom
# ------------
# ``dt=1.0`` allows a new atom all mass, which the scheme takes in its first step alone.
# The sliding variant gives the atoms their best masses after each insertion, then moves
# masses and places downhill together :cite:p:`denoyelle2019sliding`. An atom without
# mass vanishes. With three atoms F' is zero on all of them, and nowhere less.

plain = of.flow(F, start, of.schemes.FrankWolfe(box, 32), dt=1.0, steps=200)
scheme = of.schemes.FrankWolfe(box, 32, sliding=True, prove=True)
sliding = of.flow(F, start, scheme, dt=1.0, steps=5)

line = torch.linspace(0, 1, 401, dtype=torch.float64)
fig, axes = plt.subplots(2, 4, figsize=(8.5, 4.4), layout="constrained")
for run, row, name in ((plain, axes[0], "plain"), (sliding, axes[1], "sliding")):
    for k, ax in enumerate(row):
        mu = run.snapshots[k]
        slope = F.first_variation(mu, line[:, None])
        ax.plot(line, slope, color="C0")
        ax.plot(line[slope.argmin()], slope.min(), "v", color="C3")
        ax.set_title(f"{name}, k = {k}", fontsize=9)
        for atoms, color in ((spikes, "0.7"), (mu, "C1")):  # bars as high as masses
            top = 0.15 * atoms.weights - 0.08
            ax.vlines(atoms.points[:, 0], -0.08, top, color=color, lw=3)
        ax.set(xlabel="place", ylabel="F'", ylim=(-0.08, 0.11))
        ax.tick_params(labelleft=k == 0)
plt.show()

# %%
# How far from optimal?
# ---------------------
# Each report holds the gap :math:`\int F'\,d\mu - \min F'`, which bounds how far F is
# above its least value. Here the least value is 0, so that F itself is that distance.
# By default the gap is ``"searched"``: the minimum of F' is the least that was found.
# With ``prove=True``, as in the sliding run, a lower bound of F' takes its place.
#
# Plain Frank-Wolfe obeys :math:`F(\mu_k) - \min F \le 2C/(k + 2)`. For a quadratic F
# the constant C is the largest :math:`|\phi(x) - \phi(x')|^2`. The sliding variant is
# done when it has three atoms.

images = Deconvolution.blurred(line[:, None])
C = float(torch.cdist(images, images).square().max()) / len(pixels)
steps = torch.arange(1, len(plain.info) + 1)

fig, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), sharey=True, layout="constrained")
for ax, run, name in ((axes[0], plain, "plain"), (axes[1], sliding, "sliding")):
    ax.semilogy([info["gap"] for info in run.info], ".-", lw=0.7, label="gap")
    ax.semilogy(run.records["energy"][:-1], ".-", lw=0.7, label="F - min F")
    ax.set(xlabel="step k", ylabel="distance from optimal", title=name)
axes[0].semilogy(steps, 2 * C / (steps + 2), color="0.6", label="2C / (k + 2)")
axes[0].legend()
plt.show()
for run in (plain, sliding):
    info = run.info[-1]
    print(f"{info['atoms']} atoms, gap {info['gap']:.1e} ({info['gap_kind']})")

# %%
# Data with noise
# ---------------
# With one per cent of noise the least value is not 0. The gap still tells how near it
# is. The minimiser over probability measures fits some of the noise by further atoms,
# light ones or near others.

noise = torch.randn(60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
noisy = Deconvolution(F.data + 0.01 * F.data.max() * noise)
fitted = of.flow(noisy, start, scheme, dt=1.0, steps=7)
print(fitted.final.points.T, fitted.final.weights, f"gap {fitted.info[-1]['gap']:.1e}")

# %%
# What must hold
# --------------

order = sliding.final.points[:, 0].argsort()
energy, gaps = plain.records["energy"], [info["gap"] for info in plain.info]
assert sliding.final.n == 3
assert (sliding.final.points[order] - spikes.points).abs().max() < 1e-7
assert (sliding.final.weights[order] - spikes.weights).abs().max() < 1e-7
assert bool((energy[1:] <= 2 * C / (steps + 2)).all())
assert all(gap >= value for gap, value in zip(gaps, energy[:-1], strict=True))
assert {info["gap_kind"] for info in sliding.info + fitted.info} == {"proved"}
assert sliding.info[-1]["gap"] < 1e-10
assert fitted.info[-1]["gap"] < 1e-6 * fitted.info[0]["gap"]
assert fitted.records["energy"][-1] < noisy(spikes)
