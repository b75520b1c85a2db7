r"""
When are two networks the same?
===============================

The neurons of a layer have no natural order: permute them, and the network computes the
same function. A distance between networks should not depend on the order either. The
quotient of the Euclidean distance by the permutations does not,

.. math::

    \tilde d(\Theta, \Xi)^2 = \min_{\sigma} \frac1N
        \sum_{i=1}^N |\theta_i - \xi_{\sigma(i)}|^2 ,

and that is :math:`W_2^2` between the empirical measures of the neurons: Remark 1 of the
survey :cite:p:`yang2020meanfield`, with the factor 1/N that it leaves out. So geometry,
and not only dynamics, leads from networks to the Wasserstein distance.
"""

# %%
# Permutations
# ------------
# A network and its shuffled copy: far apart as lists of numbers, at distance 0 as
# networks. The matching that attains the minimum is the permutation itself.

import matplotlib.pyplot as plt
import torch

import otflow as of


def normal(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


N = 400
X = normal(200, 2, seed=0)
network = of.meanfield.TwoLayer("tanh")

theta = normal(N, 4, seed=1)  # rows (a, w_1, w_2, b)
order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
shuffled = theta[order]

listed = (theta - shuffled).square().sum(1).mean().sqrt()
same = of.metrics.quotient_distance(theta, shuffled)
matching = of.metrics.best_matching(theta, shuffled)
assert torch.equal(shuffled[matching], theta)
assert torch.allclose(
    network(of.Particles(theta), X), network(of.Particles(shuffled), X), atol=1e-13
)

# %%
# The factor 1/N
# --------------
# Draw N neurons from each of two laws, here Gaussian. With the factor the squared
# distance tends to :math:`W_2^2` of the laws, which is known; without it, it grows like
# N. Draw twice from one uniform law on [0, 1]. With the factor the mean is :math:`1 /
# (3(N+1))`: the networks become the same, at the rate 1/N. Without it two networks of
# one law are never close.

spread, shift = torch.tensor([0.5, 2.0]).double(), torch.tensor([1.0, 1.0]).double()
exact = float(shift.square().sum() + (1 - spread).square().sum())
sizes = [25, 50, 100, 200, 400]
two, one = [], []
for n in sizes:
    x, y = normal(n, 2, seed=n), normal(n, 2, seed=n + 1) * spread + shift
    two.append(float(of.metrics.quotient_distance(x, y).square()))
    generator = torch.Generator().manual_seed(n)
    u = torch.rand(40, 2, n, 1, dtype=torch.float64, generator=generator)
    one.append(sum(float(of.metrics.quotient_distance(*p).square()) for p in u) / 40)

fig, axes = plt.subplots(1, 2, figsize=(8.5, 3.8), layout="constrained")
limits = [exact] * len(sizes), [1 / (3 * (n + 1)) for n in sizes]
for ax, found, limit in zip(axes, (two, one), limits, strict=True):
    without = [n * d for n, d in zip(sizes, found, strict=True)]
    ax.loglog(sizes, without, "s-", label="without 1/N")
    ax.loglog(sizes, found, "o-", label="with 1/N")
    ax.loglog(sizes, limit, color="0.3", lw=1, label="with 1/N, exact")
    ax.set(xlabel="neurons N", ylabel="squared distance")
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()
axes[0].set_title("two laws")
axes[1].set_title("one law, drawn twice")
axes[0].legend()
plt.show()

# %%
# Symmetries of a neuron
# ----------------------
# Permutations are not all. As tanh is odd, :math:`(a, w, b)` and :math:`(-a, -w, -b)`
# compute the same; as relu is homogeneous, so do :math:`(a, w, b)` and :math:`(a/s, sw,
# sb)`. The distance can be taken up to these as well.

flips = torch.where(normal(N, 1, seed=3) > 0, 1.0, -1.0)
factors = normal(N, 1, seed=4).exp()
copies = {
    "tanh": flips * shuffled,
    "relu": torch.cat([shuffled[:, :1] / factors, shuffled[:, 1:] * factors], dim=1),
}
modulo = {}
for name, copy in copies.items():
    symmetry = of.metrics.symmetries.of_activation(name)
    modulo[name] = of.metrics.quotient_distance(theta, copy, symmetry=symmetry)
    permuted = of.metrics.quotient_distance(theta, copy)
    print(f"{name}: up to order {permuted:.3f}, up to symmetry {modulo[name]:.1e}")

# %%
# Two trained networks
# --------------------
# Train twice, from independent starts. The mean of both lists of parameters is a
# network with a high loss. Align one network to the other: the aligned copy computes
# the same function. Half-way to the aligned copy the loss is hardly higher than at the
# ends. The segment is then a geodesic of :math:`W_2`, up to signs.

risk = of.meanfield.Risk(network, X, X[:, 0].sin() * X[:, 1].cos())
scale = torch.tensor([1.0, 2.0, 2.0, 1.0], dtype=torch.float64)
scheme = of.ExplicitEuler(backtracking=True)
laws = (of.Particles(normal(N, 4, seed=seed) * scale) for seed in (5, 6))
first, second = (of.flow(risk, mu, scheme, dt=2.0, steps=800) for mu in laws)
A, B = first.final.points, second.final.points
sign = of.metrics.symmetries.Sign()
by_order, by_sign = of.metrics.align(A, B), of.metrics.align(A, B, symmetry=sign)
others = {"as they come": B, "by order": by_order, "by order and sign": by_sign}

fig, ax = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
ts = torch.linspace(0, 1, 21, dtype=torch.float64)
barrier = {}
for label, other in others.items():
    path = torch.stack([risk(of.Particles((1 - t) * A + t * other)) for t in ts])
    barrier[label] = path.max()
    ax.semilogy(ts, path, label=label)
ax.set(xlabel="position between the networks", ylabel="loss")
ax.legend()
plt.show()

# %%
# What must hold
# --------------

assert same == 0 < listed
assert abs(of.metrics.wasserstein2(x, y).square() - two[-1]) < 1e-12 * two[-1]
assert abs(two[-1] - exact) < 0.1 * exact
assert abs(of.analysis.observed_order(sizes, one) + 1) < 0.15
assert max(modulo.values()) < 1e-7
ends = max(first.records["energy"][-1], second.records["energy"][-1])
outputs = [network(of.Particles(points), X) for points in others.values()]
assert all(torch.allclose(f, outputs[0], atol=1e-12) for f in outputs)
assert barrier["by order and sign"] < 5 * ends
assert barrier["as they come"] > 100 * ends
