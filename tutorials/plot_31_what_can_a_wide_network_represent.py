r"""
What can a wide network represent?
==================================

A two-layer ReLU network of any width is a measure :math:`\mu` of neurons (a, w, b). Its
output is :math:`f(x) = \int a\,(w\cdot x + b)^+\,d\mu`, and its cost is the **path
norm** :math:`\int |a|\,(|w|_1 + |b|)\,d\mu`. The **Barron norm** of a function on
:math:`[0, 1]^d` is the cost of the cheapest network for it :cite:p:`e2022barron`. Which
functions have a finite one? What is it? How many neurons does a function take?
"""

# %%
# The cheapest network through data
# ---------------------------------
# :func:`~otflow.meanfield.barron_norm` solves a linear program over all measures of
# neurons through the data. For a function of one variable the neurons with kinks at
# the data suffice. The number comes as a bracket. A dual proves its lower end: weights
# of the data under which no neuron of norm 1 has a sum above 1.

import math

import matplotlib.pyplot as plt
import torch

import otflow as of

X = torch.linspace(0, 1, 41, dtype=torch.float64)[:, None]
x = X[:, 0]
network = of.meanfield.TwoLayer("relu")
functions = {
    r"$|x - 1/2|$": (x - 0.5).abs(),
    r"$x^2$": x.square(),
    r"$\cos 5x$": torch.cos(5 * x),
    r"$\sqrt{x}$": x.sqrt(),
}
answers = {name: of.meanfield.barron_norm(X, f) for name, f in functions.items()}

fig, axes = plt.subplots(1, 4, figsize=(10.5, 2.8), layout="constrained")
for ax, (name, f) in zip(axes, functions.items(), strict=True):
    bracket, mu = answers[name].bracket, answers[name].measure
    ax.plot(x, f, ".", ms=4, color="0.5")
    ax.plot(x, network(mu, X))
    w, b = mu.points[:, 1], mu.points[:, 2]
    kinks = (-b / w)[(w * b < 0) & (w.abs() + b > 0)]
    ax.plot(kinks, 0 * kinks, "|", ms=12, color="C1", clip_on=False)
    ax.set_title(f"{name}: norm {bracket.upper:.4g}", fontsize=10)
    ax.set(xlabel="x", ylabel="f(x)")
fig.suptitle("The cheapest networks through 41 data; ticks: the kinks of their neurons")
for name, answer in answers.items():
    print(name, answer.bracket)

# %%
# Is the norm finite?
# -------------------
# More data raise the norm at data. For a function with a finite Barron norm it levels
# off. The norm of :math:`x^2` has the limit :math:`\int_0^1 2\,(1 + t)\,dt = 3`. That
# of the root grows like :math:`\sqrt n`: its slope at 0 is infinite.
# :func:`~otflow.meanfield.norm_growth` tells the local slopes, and what they suggest.
# Finitely many numbers are evidence, not proof. Here the slope is a proof: that of a
# function of norm B is at most B.

data = [
    torch.linspace(0, 1, n, dtype=torch.float64)[:, None] for n in (11, 26, 51, 101)
]
members = {
    r"$\cos 5x$": lambda X: torch.cos(5 * X[:, 0]),
    r"$x^2$": lambda X: X[:, 0].square(),
    r"$\sqrt{x}$": lambda X: X[:, 0].sqrt(),
}
growths = {name: of.meanfield.norm_growth(f, data) for name, f in members.items()}

print(growths[r"$\sqrt{x}$"])

# %%
# How many neurons?
# -----------------
# :func:`~otflow.meanfield.barron_sample` draws N neurons from the cheapest measure.
# All of them have one size, the norm B. So the output of one neuron is at most B, and
# the squared error of their mean is at most :math:`B^2/N` on average, in any
# dimension. Here :math:`\cos 5x` is sampled 200 times for each N.

mu, norm = answers[r"$\cos 5x$"].measure, answers[r"$\cos 5x$"].bracket.upper
stream = torch.Generator().manual_seed(0)
widths, errors = [10, 40, 160, 640], []
for N in widths:
    samples = [
        of.meanfield.barron_sample(network, mu, N, X, generator=stream)
        for _ in range(200)
    ]
    errors.append(sum(sample.error for sample in samples) / 200)
fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), layout="constrained")
for name, growth in growths.items():
    left.loglog(growth.sizes, growth.norms, "o-", label=f"{name}: {growth.verdict}")
left.loglog([26, 101], [4.5, 4.5 * math.sqrt(101 / 26)], "k:", label="slope 1/2")
left.set(xlabel="number of data n", ylabel="norm at the data", title="Growth")
left.set_ylim(2, 60)
left.legend(fontsize=8)
right.loglog(widths, errors, "o-", label="measured")
right.loglog(widths, [norm**2 / N for N in widths], "k:", label=r"$B^2/N$")
right.set(xlabel="neurons N", ylabel="mean squared error", title=r"Sampling $\cos 5x$")
right.legend(fontsize=8)

# %%
# Bounds without data
# -------------------
# The Fourier transform bounds the norm from above. As :math:`\cos 5x` has one
# frequency, :func:`~otflow.meanfield.spectral_barron_bound` is :math:`2\cdot 5^2 + 2
# |f(0)|`. Its proof gives a smaller bound, by ``sharp=True``.

xi, one = torch.tensor([[5.0]], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
bounds = [
    float(of.meanfield.spectral_barron_bound(xi, one, sharp=s)) for s in (True, False)
]
print(f"{norm:.4g} at 41 data <= {bounds[0]:.4g} <= {bounds[1]:.4g}")
assert 1 <= norm <= bounds[0] <= bounds[1]
assert 3 in answers[r"$|x - 1/2|$"].bracket
assert [growth.verdict for growth in growths.values()] == [
    "levels off",
    "levels off",
    "grows",
]
assert all(error <= norm**2 / N for error, N in zip(errors, widths, strict=True))
