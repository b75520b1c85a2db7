r"""
Lazy or feature learning?
=========================

A wide network may learn in two ways. In the scaling :math:`1/\sqrt N` of the neural
tangent kernel :cite:p:`jacot2018neural` each neuron hardly moves: the training is
*lazy* :cite:p:`chizat2019lazy`, and the network a linear model of fixed features. In
the mean field, with :math:`1/N`, neurons move by a length that does not depend on N,
and features are learnt. Both are gradient descent on one network; the scaling decides.

Three neurons on the sphere give the targets, as in the experiment of
:cite:t:`chizat2019lazy`. The start is doubled, (a, w) beside (-a, w), so that all
networks begin with the output 0.
"""

# %%
# One start, two scalings
# -----------------------
# An Euler step of ``dt`` moves a neuron by ``dt`` times its velocity. In the scaling
# "ntk" velocities grow like :math:`\sqrt N`, so that a gradient step on the usual
# parameters is one of ``dt / N``.

import matplotlib.pyplot as plt
import torch

import otflow as of

generator = torch.Generator().manual_seed(0)


def on_sphere(n: int, d: int = 20) -> torch.Tensor:
    x = torch.randn(n, d, dtype=torch.float64, generator=generator)
    return x / x.norm(dim=1, keepdim=True)


teacher, signs = on_sphere(3), torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
X, Z = on_sphere(300), on_sphere(2000)
y, z = (X @ teacher.T).relu() @ signs, (Z @ teacher.T).relu() @ signs


def start(N: int) -> of.Particles:
    w = on_sphere(N // 2)
    a = torch.randint(0, 2, (N // 2, 1), generator=generator).double() * 2 - 1
    return of.Particles(torch.cat([torch.cat([a, w], 1), torch.cat([-a, w], 1)]))


def risk_of(scaling: str) -> of.meanfield.Risk:
    network = of.meanfield.TwoLayer("relu", bias=False, scaling=scaling)
    return of.meanfield.Risk(network, X, y)


def test_error(risk: of.meanfield.Risk, mu: of.Particles) -> torch.Tensor:
    return (risk.network(mu, Z) - z).square().mean() / z.square().mean()


fields, lazy = risk_of("mean-field"), risk_of("ntk")
cases = [(fields, 0, "mean field"), (lazy, 1, "lazy")]  # dt = 10 / N^power

# %%
# How far neurons move
# --------------------
# The root of the mean square of the way of a neuron, for three widths.

widths = [50, 200, 800]
ways: dict[str, list[float]] = {label: [] for *_, label in cases}
ends: dict[str, of.Particles] = {}
for N in widths:
    mu = start(N)
    for risk, power, label in cases:
        dt, euler = 10.0 / N**power, of.ExplicitEuler()
        run = of.flow(risk, mu, euler, dt=dt, steps=1000, every=1000)
        ways[label].append(float(mu.norm(run.final.points - mu.points)))
        ends[label] = run.final
rates = {name: of.analysis.observed_order(widths, way) for name, way in ways.items()}
for label, rate in rates.items():
    print(f"{label:10s} {ways[label][-1]:.3f} at N = 800, like N^{rate:.2f}")

# %%
# What is learnt
# --------------
# A third network keeps its inner weights: random features. Its mobility is 0 there, and
# its flow is known in closed form, at all times.

features = of.meanfield.RandomFeatures(fields, mu)
network = of.meanfield.TwoLayer("relu", bias=False)
freeze = of.schemes.Mobility(of.ExplicitEuler(), network.mobility(20, inner=0.0))
cases.append((fields, 0, "random features"))
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
final: dict[str, float] = {}
for risk, power, label in cases:
    scheme = freeze if label == "random features" else of.ExplicitEuler()
    record = {"test": lambda nu, risk=risk: test_error(risk, nu)}
    dt = 10.0 / 800**power
    run = of.flow(risk, mu, scheme, dt=dt, steps=1000, every=20, record=record)
    axes[1].semilogy(run.steps, run.records["test"], label=label)
    final[label] = float(run.records["test"][-1])
best = min(float(test_error(fields, features.flow(10.0**k))) for k in range(1, 7))
axes[1].axhline(best, color="C2", linestyle=":", label="random features, best time")
axes[1].set(xlabel="steps", ylabel="relative test error")
axes[1].legend(fontsize="small")
for label, way in ways.items():
    axes[0].loglog(widths, way, "o-", label=label)
axes[0].loglog(widths, [2.0 * N**-0.5 for N in widths], "k:", label=r"$N^{-1/2}$")
axes[0].set(xlabel="neurons N", ylabel="way of a neuron")
axes[0].set_xticks(widths, [str(N) for N in widths])
axes[0].minorticks_off()
axes[0].legend()

# %%
# The kernel adapts
# -----------------
# The tangent kernel of a network says which functions it learns fast. Its alignment
# with the targets, :math:`y^\top K y / (\|K\|\,|y|^2)`, grows where features are
# learnt.


def alignment(nu: of.Particles) -> float:
    K = of.meanfield.empirical_ntk(network, nu, X)  # of either scaling
    return float(y @ K @ y / (K.norm() * y.square().sum()))


gains = {label: alignment(ends[label]) - alignment(mu) for label in ends}
for label, gain in gains.items():
    print(f"{label:10s} alignment {gain:+.3f}, test error {final[label]:.3f}")

# %%
# What is asserted
# ----------------
# Lazy neurons move like :math:`N^{-1/2}`, those of the mean field by a length. The mean
# field alone learns the three neurons: its error is far below that of both linear
# models.

assert abs(rates["lazy"] + 0.5) < 0.08
assert abs(rates["mean field"]) < 0.08
assert final["mean field"] < 0.5 * final["lazy"]
assert final["mean field"] < 0.2 * best
assert gains["mean field"] > 5 * abs(gains["lazy"])
