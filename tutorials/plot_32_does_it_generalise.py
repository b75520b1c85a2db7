r"""
Does it generalise?
===================

A network with more neurons than data can fit any labels. Yet its test error may be
small, since what counts is the size of the weights, not their number
:cite:p:`bartlett1998sample`. This page measures the size by the path norm :math:`\int
|a|\,(|w|_1 + |b|)\,d\mu`, sets the bounds that follow beside trained networks, and ends
with what the bounds do not see: the time of training.
"""

# %%
# How rich is a ball of the path norm?
# ------------------------------------
# The Rademacher complexity is the largest correlation of a function of norm 1 with
# random signs at the data, in the mean over signs. In one dimension it is exact. In 20
# the value is a lower bound, which ascent has found, and the library says so. The
# theorem's bound :math:`2\sqrt{2\ln(2d)/n}` :cite:p:`e2022barron` and a sharper one
# hardly depend on the dimension.

import matplotlib.pyplot as plt
import torch

import otflow as of

stream = torch.Generator().manual_seed(0)
F64 = torch.float64


def uniform(n: int, d: int) -> torch.Tensor:
    return torch.rand(n, d, generator=stream, dtype=F64)


sizes = [25, 100, 400, 1600]
complexity = {
    d: [of.analysis.rademacher(uniform(n, d), draws=30) for n in sizes] for d in (1, 20)
}
for d, reports in complexity.items():
    values = [report.value for report in reports]
    slope = of.analysis.observed_order(sizes, values)
    print(f"d = {d:2d}: {reports[-1]}, like n^{slope:.2f}")

# %%
# Networks of many sizes, one bound
# ---------------------------------
# Networks of 20 to 1,000 neurons learn 1,000 noisy labels of a sum of two ReLU neurons
# in five dimensions. Those with a path norm above A = 2 are scaled into that ball. The
# test risk less the training risk lies below a bound that knows A and n, but not the
# number of neurons.

A, n = 2.0, 1000


def target(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (x[:, 0] + x[:, 1] - 1).relu() + (x[:, 2] - 0.5).relu()


def noisy(x: torch.Tensor) -> torch.Tensor:
    noise = 0.3 * torch.randn(len(x), generator=stream, dtype=F64)
    return (target(x) + noise).clamp(0, 1)


def loss(f: torch.Tensor, y: torch.Tensor) -> float:
    return float((0.5 * (f.clamp(0, 1) - y).square()).mean())


X, Z = uniform(n, 5), uniform(4000, 5)
y, z = noisy(X), noisy(Z)
network = of.meanfield.TwoLayer("relu")
risk = of.meanfield.Risk(network, X, y)
widths, gaps = [20, 100, 400, 1000], []
for N in widths:
    start = of.Particles(torch.randn(N, 7, generator=stream, dtype=F64))
    end = of.flow(risk, start, of.ExplicitEuler(), dt=0.3, steps=300, every=300).final
    points = end.points.clone()
    points[:, 0] *= min(1.0, A / float(of.meanfield.path_norm(network, end)))
    mu = of.Particles(points)
    gaps.append(loss(network(mu, Z), z) - loss(network(mu, X), y))
bound = of.analysis.weight_size_bound(A, n, 5, largest=0.5)
print(f"gaps {[round(gap, 4) for gap in gaps]}, {bound}")
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for k, (d, reports) in enumerate(complexity.items()):
    kind = reports[0].kind
    axes[0].loglog(
        sizes, [r.value for r in reports], f"C{k}o", label=f"d = {d}, {kind}"
    )
    axes[0].loglog(sizes, [r.sharp for r in reports], f"C{k}-", label=f"d = {d}, bound")
    axes[0].loglog(sizes, [r.bound for r in reports], f"C{k}:")
axes[0].set(xlabel="data n", ylabel="complexity of the unit ball")
axes[0].legend(fontsize="small")
axes[1].loglog(widths, gaps, "o-", label="test less training risk")
axes[1].axhline(bound.value, color="C3", label="bound by the path norm")
axes[1].set(xlabel="neurons N", ylabel="risk")
axes[1].legend(fontsize="small")

# %%
# The bound is true and far from sharp: it holds for the worst network of the ball, for
# the worst labels. Where it exceeds the largest loss, 1/2 here, it says so.
#
# Minimisers with a penalty
# -------------------------
# Theorem 3.2 bounds the error of a network that minimises the risk with the path norm
# as a penalty, from the norm B of the target alone: before a network is trained. A
# penalty as large as it asks for leaves little of the target, unless there are many
# data.

for data in (1000, 100_000):
    least = of.analysis.apriori_bound(1.0, 100, data, 5, 1.0).terms["least penalty"]
    print(f"n = {data}: {of.analysis.apriori_bound(1.0, 100, data, 5, least)}")

# %%
# When to stop
# ------------
# With few noisy data the test risk of 100 neurons falls, then rises. With many it stays
# small. No bound by the number of neurons or by the final norm tells that.

table = of.analysis.risk_table(
    risk,
    of.meanfield.Risk(network, Z, z),
    lambda m, generator: torch.randn(m, 7, generator=generator, dtype=F64),
    neurons=[100],
    samples=[30, 1000],
    times=[3.0, 10.0, 30.0, 100.0, 300.0],
    dt=0.3,
)
print(table)

figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
for j, count in enumerate(table.samples):
    axis.loglog(table.times, table.test[0, j], "o-", label=f"test, n = {count}")
    axis.loglog(
        table.times, table.train[0, j], f"C{j}:", label=f"training, n = {count}"
    )
axis.set(xlabel="time t", ylabel="risk")
axis.legend(fontsize="small")

# %%
# What is asserted
# ----------------

assert all(r.value < r.sharp < r.bound for rs in complexity.values() for r in rs)
assert 0 < min(gaps) < max(gaps) < bound.value < 0.5
assert float(table.stopping[0, 0]) < 300
assert float(table.test[0, 0, -1]) > 1.1 * float(table.least[0, 0])
assert float(table.test[0, 1, -1]) < 1.05 * float(table.least[0, 1])
