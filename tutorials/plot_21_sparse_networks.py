r"""
Sparse networks by forward-backward
===================================

A wide network that is trained with weight decay needs few of its neurons. Which ones? A
neuron (a, w) of a ReLU network pays the **path norm** :math:`|a|\,|w|`, which does not
change if the neuron becomes (a/c, c w). The objective

.. math:: F(\mu) = R(\mu) + \lambda \int |a|\,|w| \,d\mu(a, w)

has a kink where a = 0, and there the useless neurons should end. Gradient descent jumps
from one side of a kink to the other. **Forward-backward** splits the step
:cite:p:`salim2020wasserstein`. It moves along the gradient of the risk R. Then it takes
an implicit step on the penalty alone,

.. math:: (a, w) \mapsto \operatorname{argmin}_{(b, v)}\;
    \lambda |b|\,|v| + \frac{|b - a|^2 + |v - w|^2}{2\,dt} ,

which has a closed form. It returns b = 0 exactly where :math:`|a| \le dt\,\lambda |w|`.
"""

# %%
# A network with two useful neurons
# ---------------------------------
# The data come from two ReLU neurons and some noise. Sixty neurons are to learn them.
# Two schemes minimise the same objective from the same start. Both halve a step that
# does not lower F.

import matplotlib.pyplot as plt
import torch

import otflow as of

stream = torch.Generator().manual_seed(0)
draw = lambda *shape: torch.randn(*shape, generator=stream, dtype=torch.float64)
X = draw(100, 3)
y = X[:, 0].relu() - (X[:, 1] - X[:, 0]).relu() + 0.05 * draw(100)
risk = of.meanfield.Risk(of.meanfield.TwoLayer("relu"), X, y)
start, penalty = of.Particles(draw(60, 5)), 0.1
F = risk + penalty * of.meanfield.PathPenalty("l2")

on = lambda mu: (mu.points[:, 0] != 0).sum()
schemes = {
    "forward-backward": of.schemes.ForwardBackward(),
    "explicit Euler": of.ExplicitEuler(backtracking=True),
}
runs = {
    name: of.flow(F, start, scheme, dt=0.5, steps=250, record={"neurons": on})
    for name, scheme in schemes.items()
}

# %%
# How far from optimal?
# ---------------------
# Along mixtures of measures the objective is convex. So
# :func:`~otflow.meanfield.fenchel_gap` bounds by proof how far an end is above the
# least value over *all* measures of neurons, of any width. The objective at the end
# minus its gap is a lower bound of that least value.

gaps = {
    name: float(of.meanfield.fenchel_gap(risk, run.final, penalty, "l2"))
    for name, run in runs.items()
}
best = max(float(runs[name].records["energy"][-1]) - gap for name, gap in gaps.items())

fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), layout="constrained")
for name, run in runs.items():
    steps = torch.arange(len(run.times))
    left.semilogy(steps, run.records["energy"] - best, label=name)
    right.plot(steps, run.records["neurons"])
left.set(xlabel="step", ylabel="objective above a proved lower bound")
right.set(xlabel="step", ylabel="neurons that are not 0", ylim=(0, 62))
left.legend()
plt.show()

# %%
# Explicit steps stop at the kink, far above the least value: every step that crosses it
# raises F, so that the steps shrink without end, and ``info["stalled"]`` says so. They
# leave no neuron at 0. Forward-backward goes on with long steps. Its report holds the
# certificate of the implicit half, which is exact.

euler, split = runs["explicit Euler"], runs["forward-backward"]
print(f"explicit Euler: gap {gaps['explicit Euler']:.1e}, {on(euler.final)} neurons")
print(
    f"forward-backward: gap {gaps['forward-backward']:.1e}, {on(split.final)} neurons"
)

# %%
# Fewer than that: neurons of one direction are one neuron
# --------------------------------------------------------
# Many of the neurons that stay share a direction :math:`w/|w|` and a sign of a. A ReLU
# network does not tell them from one neuron.

a, w = split.final.points[:, 0], split.final.points[:, 1:]
units = torch.nn.functional.normalize(w[a != 0], dim=1) * a[a != 0].sign()[:, None]
alike = units @ units.T > 1 - 1e-2
groups = {tuple(row.nonzero().flatten().tolist()) for row in alike}
print(f"{on(split.final)} neurons in {len(groups)} groups of one direction")

# %%
# The map can be one's own: ``of.Potential(V, prox=...)`` takes any function with its
# proximal map, and tries the map at random points. Two terms with maps are not stepped
# one after the other: that is no implicit step on their sum.

assert 100 * gaps["forward-backward"] < gaps["explicit Euler"] < 0.1
assert on(split.final) < 40 < on(euler.final) == 60
assert bool((split.records["energy"].diff() <= 1e-12).all())
assert all(info["stages"][0].guarantee == "exact" for info in split.info)
assert euler.info[-1]["stalled"]
assert len(groups) <= 10
