r"""
Langevin, free energy, Gibbs
============================

A wide network is a measure :math:`\mu` of neurons. Gradient descent with noise and
weight decay,

.. math:: d\theta = -\nabla R'[\mu](\theta)\,dt - \lambda\theta\,dt
    + \sqrt{2\tau}\,dW ,

minimises a free energy: the risk R, half the weight decay :math:`\lambda` times the
mean square of :math:`\theta`, and the temperature :math:`\tau` times the entropy
:cite:p:`mei2018mean`. Its minimiser is the only law that equals its own Gibbs law,
:math:`\rho \propto e^{-(R'[\rho] + \lambda|\theta|^2/2)/\tau}`
:cite:p:`hu2021meanfield`. This tutorial computes that law on a grid, lets particles
find it, and measures what N particles and a step of length dt miss of it.
"""

# %%
# The free energy of a network
# ----------------------------
# The network is :math:`f(x) = E \tanh(w x)`. A neuron is one number, so that a grid can
# hold the law, and Newton's method finds it to twelve digits.

import matplotlib.pyplot as plt
import torch

import otflow as of

X = torch.linspace(-2, 2, 16, dtype=torch.float64)[:, None]
layer = of.meanfield.CustomLayer(lambda x, theta: torch.tanh(x @ theta.T))
risk = of.meanfield.Risk(layer, X, torch.sin(1.5 * X[:, 0]))
F = of.meanfield.free_energy(risk, temperature=0.05, ridge=0.05)
flat = of.GridDensity.from_function(
    lambda x: (-0.5 * (x[:, 0] + 2) ** 2).exp(), -7, 7, 280, walls=True,
    dtype=torch.float64,
)  # fmt: skip
best = of.optimality.gibbs(F, flat)
print(f"least free energy {best.energy:.6f}, unique: {best.uniqueness}")

# %%
# Two ways down
# -------------
# The gradient flow on the grid lowers F at every step. Entropic fictitious play moves a
# share of the mass to the Gibbs law of the present measure. It knows a rate: the excess
# falls at least like :math:`e^{-t}`. The rate of the gradient flow rests on a
# log-Sobolev inequality. From the bound :math:`|R'| \le E(1 + |y|)` it is tiny at this
# temperature. The flow is much faster than this bound says.

grid = of.flow(F, flat, of.JKO(), dt=0.5, steps=60)
play = of.flow(F, flat, of.schemes.EntropicFictitiousPlay(), dt=0.05, steps=300)
excess = {
    "gradient flow": (grid.times, grid.records["energy"] - best.energy),
    "fictitious play": (play.times, play.records["energy"] - best.energy),
}
H = 2 * float((1 + risk.y.abs()).mean())
bound = of.analysis.log_sobolev(F, oscillation=H)
print(f"proved rate of the gradient flow {bound.rate:.1e}")

# %%
# Particles
# ---------
# Noise stands for the entropy. :class:`otflow.Langevin` makes an error of order dt in
# the law at rest. :class:`otflow.schemes.UnderdampedLangevin` gives each particle a
# velocity, and makes an error of order dt squared. With 2,000 particles the mean square
# of w fluctuates by about 3 % in time, more than either error.

generator = torch.Generator().manual_seed(0)
start = torch.randn(2000, 1, generator=generator, dtype=torch.float64)
kinetic = of.schemes.UnderdampedLangevin(friction=1.0)
runs = {
    name: of.flow(
        F, of.Particles(start), scheme, dt=0.1, steps=1000, every=5, generator=1,
        record={"square": lambda mu: mu.points.square().mean()}, snapshots="last",
    )
    for name, scheme in (("Langevin", of.Langevin()), ("with velocities", kinetic))
}  # fmt: skip
square = float(best.measure.expectation(lambda x: x.square().sum(-1)))
late = {name: float(run.records["square"][60:].mean()) for name, run in runs.items()}
for name, value in late.items():
    print(f"{name}: E w^2 = {value:.3f}, in the Gibbs law {square:.3f}")

fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
for name, (times, values) in excess.items():
    left.semilogy(times, values.clamp_min(1e-12), label=name)
t = torch.linspace(0, 15, 2)
left.semilogy(t, excess["fictitious play"][1][0] * (-t).exp(), "k:", label="exp(-t)")
left.set(xlabel="time", ylabel="free energy above its least value", ylim=(1e-9, None))
left.legend()
places = best.measure.points[:, 0]
right.plot(places, best.measure.density(), "k", label="Gibbs law")
for name, run in runs.items():
    right.hist(run.final.points[:, 0].numpy(), 60, density=True, alpha=0.45, label=name)
right.set(xlabel="w", ylabel="density", xlim=(-6, 6))
right.legend()
plt.show()

# %%
# A linear part alone: exact steps
# --------------------------------
# Where F is linear but for the entropy, the Gibbs law is fixed.
# :class:`otflow.schemes.MALA` accepts or rejects each move, and has this law as its law
# at rest for every dt. At dt = 1 and :math:`V = |x|^2/2` the variance of Langevin is
# 2 in place of 1.

V = of.KL(lambda x: 0.5 * x.square().sum(-1))
normal = of.Particles(torch.randn(20_000, 1, generator=generator, dtype=torch.float64))
variance = {}
for name, scheme in (("Langevin", of.Langevin()), ("MALA", of.schemes.MALA())):
    run = of.flow(V, normal, scheme, dt=1.0, steps=30, every=30, generator=2)
    variance[name] = float(run.final.points.square().mean())
    print(f"{name}: variance {variance[name]:.3f}")

# %%
# What must hold
# --------------

assert best.converged
assert best.uniqueness == "proved"
assert bool((grid.records["energy"].diff() < 0).all())
times, values = excess["fictitious play"]
assert bool((values <= 1.02 * values[0] * (-0.97 * times).exp() + 1e-12).all())
assert excess["gradient flow"][1][-1] < 1e-2 * excess["gradient flow"][1][0]
for value in late.values():
    assert abs(value - square) < 0.05 * square
assert abs(variance["MALA"] - 1) < 0.05
assert abs(variance["Langevin"] - 2) < 0.1
