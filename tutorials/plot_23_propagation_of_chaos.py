r"""
Propagation of chaos
====================

Start N neurons independently from one law and train them together. Each neuron feels
the others only through their measure. For large N that measure is nearly deterministic,
so that neurons which start independent stay nearly independent: chaos propagates. This
is Theorem 2.3 of :cite:t:`yang2020meanfield`, in the form of
:cite:t:`sznitman1991topics`.

The proof compares each neuron :math:`\theta^i` with a copy :math:`\bar\theta^i` of the
same start that follows the limit :math:`\mu_t` in place of the empirical measure,

.. math:: \dot\theta^i = -\nabla F'[\mu^N_t](\theta^i), \qquad
    \dot{\bar\theta}^i = -\nabla F'[\mu_t](\bar\theta^i), \qquad
    \Bigl(E|\theta^i_T - \bar\theta^i_T|^2\Bigr)^{1/2} \le \frac{C_T}{\sqrt N} .
"""

# %%
# Networks of 16 to 256 neurons
# -----------------------------
# A tanh network learns a sine at 16 points. A system of 4096 neurons stands for the
# limit. For each width, 16 networks start independently.

import matplotlib.pyplot as plt
import torch

import otflow as of

X = torch.linspace(-2, 2, 16, dtype=torch.float64)[:, None]
risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, X[:, 0].sin())


def normal(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(n, 3, dtype=torch.float64, generator=generator)


report = of.analysis.propagation_of_chaos(
    risk,
    normal,
    [16, 64, 256],
    time=4.0,
    steps=40,
    observable=risk.outputs,
    runs=16,
    transport=1024,
)
rates = report.rates()
for name, rate in rates.items():
    print(f"{name:15s} falls like N^{rate:.2f}")

# %%
# Functions are close, measures less so
# -------------------------------------
# The outputs and the coupled neurons come closer like :math:`N^{-1/2}`, in every
# dimension of the neurons. The distance :math:`W_2` of the measures themselves falls
# more slowly: it is that of N samples in three dimensions.

sizes = torch.tensor(report.sizes, dtype=torch.float64)
assert report.transport is not None
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for values, label, marker in (
    (report.transport, r"$W_2(\mu^N, \mu)$", "^"),
    (report.particle_error, "a neuron and its copy", "s"),
    (report.function_error, "outputs", "o"),
):
    axes[0].loglog(sizes, values, marker=marker, label=label)
axes[0].loglog(sizes, 0.4 * sizes**-0.5, "k:", label=r"$N^{-1/2}$")
axes[0].set(xlabel="neurons N", ylabel="error at T = 4", ylim=(8e-3, 9))
axes[0].set_xticks(report.sizes, [str(n) for n in report.sizes])
axes[0].minorticks_off()
axes[0].legend(ncols=2)

# %%
# One neuron and its copy
# -----------------------
# `mckean_vlasov` moves particles along a path that is given. The copies of the neurons
# of one narrow network follow the path of a wide one; the network itself goes astray.

generator = torch.Generator().manual_seed(0)
euler = of.ExplicitEuler()
wide = of.flow(risk, of.Particles(normal(4096, generator)), euler, dt=0.1, steps=40)
start = of.Particles(normal(6, generator))
narrow = of.flow(risk, start, euler, dt=0.1, steps=40)
copies = of.analysis.mckean_vlasov(risk, wide, start)
for k in range(6):
    one = torch.stack([mu.points[k] for mu in narrow.snapshots])
    two = torch.stack([mu.points[k] for mu in copies])
    axes[1].plot(one[:, 1], one[:, 0], color=f"C{k}")
    axes[1].plot(two[:, 1], two[:, 0], "--", color=f"C{k}")
    axes[1].plot(one[0, 1], one[0, 0], "o", color=f"C{k}")
axes[1].set(xlabel="inner weight w", ylabel="outer weight a")

# %%
# What is asserted
# ----------------
# The rates of functions and neurons are those of the theorem, and that of the measures
# is slower.

assert abs(rates["function_error"] + 0.5) < 0.1
assert abs(rates["particle_error"] + 0.5) < 0.1
assert -0.42 < rates["transport"] < -0.2
