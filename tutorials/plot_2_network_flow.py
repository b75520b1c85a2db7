r"""
Training a network is a Wasserstein gradient flow
=================================================

Average the neurons of a network with one hidden layer, and it is an integral against
the empirical measure of its neurons,

.. math::

    f_\mu(x) = \frac1N \sum_{i=1}^N a_i \, \phi(w_i \cdot x)
             = \int a \, \phi(w \cdot x) \, d\mu(a, w), \qquad
    \mu = \frac1N \sum_{i=1}^N \delta_{(a_i, w_i)} .

The square loss :math:`L(\mu) = \frac{1}{2n} \sum_k (f_\mu(x_k) - y_k)^2` is then a
functional of a measure, and gradient descent on the parameters is its Wasserstein
gradient flow: equations (1) to (10) of :cite:t:`yang2020meanfield`. This tutorial
checks both, and shows the limit of many neurons.
"""

# %%
# A teacher and a student
# -----------------------
# The teacher has three neurons; the student has 300, near zero at first. A neuron is
# one row :math:`(a, w_1, w_2)`.

import matplotlib.pyplot as plt
import torch

import otflow as of

generator = torch.Generator().manual_seed(0)
X = torch.randn(256, 2, dtype=torch.float64, generator=generator)
angles = torch.tensor([0.3, 2.2, 4.4], dtype=torch.float64)
rays = torch.stack([angles.cos(), angles.sin()], dim=1)
heights = torch.tensor([[3.0], [3.0], [-3.0]], dtype=torch.float64)
teacher = of.Particles(torch.cat([heights, rays], dim=1))

network = of.meanfield.TwoLayer("relu", bias=False)
risk = of.meanfield.Risk(network, X, network(teacher, X))


def student(N: int, seed: int = 1) -> of.Particles:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(N, 3, dtype=torch.float64, generator=generator)
    return of.Particles(0.3 * normal)


# %%
# Gradient descent is explicit Euler
# ----------------------------------
# Neuron i has the velocity :math:`-N \, \partial L / \partial \theta_i`, equation (9),
# so descent with learning rate :math:`N \, dt` is the Euler step of length dt. Here is
# the same network in plain torch, trained by torch's own optimiser.

N, dt = 300, 0.1
theta = student(N).points.clone().requires_grad_()


def loss() -> torch.Tensor:
    hidden = torch.relu(X @ theta[:, 1:].T)
    return 0.5 * ((hidden * theta[:, 0]).mean(1) - risk.y).square().mean()


sgd = torch.optim.SGD([theta], lr=N * dt)
for _ in range(1000):
    sgd.zero_grad()
    loss().backward()
    sgd.step()

run = of.flow(risk, student(N), of.ExplicitEuler(), dt=dt, steps=1000, every=5)
difference = (run.final.points - theta.detach()).abs().max()
print(f"{run}; SGD differs by {difference:.1e}")

# %%
# Energy is dissipated
# --------------------
# In time :math:`\frac{dL}{dt} = -\int |\nabla \frac{\delta L}{\delta\mu}|^2 d\mu`,
# equation (10): the loss lost is the integral of the dissipation, to order dt.

balance = of.analysis.energy_dissipation(risk, run)

# %%
# What the neurons learn
# ----------------------
# Each neuron contributes a ridge of direction w and height :math:`|a| |w|`. Drawn in
# these coordinates (radius: root of the height), the cloud grows along three rays.


def ridges(mu: of.Particles, sign: int) -> of.Particles:
    a, w = mu.points[:, :1], mu.points[:, 1:]
    heights = w * (a.abs() / w.norm(dim=1, keepdim=True)).sqrt()
    return of.Particles(heights[sign * a[:, 0] > 0])


fig, axes = plt.subplots(1, 2, figsize=(8.5, 4.3), layout="constrained")
for ax, time, mu in zip(axes, (0, 100), (run.snapshots[0], run.final), strict=True):
    ax.plot(*torch.stack([0 * rays, 5 * rays], 1).numpy().T, color="0.8", zorder=0)
    of.plotting.particles(ridges(mu, 1), size=12, label="a > 0", ax=ax)
    of.plotting.particles(ridges(mu, -1), size=12, label="a < 0", ax=ax)
    ax.set(title=f"t = {time}", xlabel="ridge, x", ylabel="ridge, y")
    ax.set(xlim=(-4.5, 6), ylim=(-6.5, 5))
axes[1].legend()
plt.show()

# %%
# The limit of many neurons
# -------------------------
# The neurons of a start are independent draws of one law. As N grows, the functions
# :math:`f_\mu` at time 10 tend to a limit: the root mean square distance over 12 starts
# falls like :math:`N^{-1/2}`. A run of 20 000 neurons stands for the limit.

widths = [20, 80, 320, 1280]
moved, apart = {}, []
fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.8), layout="constrained")
setting: dict = {"scheme": of.ExplicitEuler(), "dt": 0.2, "steps": 50, "every": 5}
limit = of.flow(risk, student(20_000, 99), **setting)
for k, N in enumerate(widths):
    flows = [of.flow(risk, student(N, seed), **setting) for seed in range(1, 13)]
    gaps = [network(r.final, X) - network(limit.final, X) for r in flows]
    apart.append(float(torch.stack(gaps).square().mean().sqrt()))
    paths = [r.final.points - r.snapshots[0].points for r in flows]
    moved[N] = float(torch.stack(paths).square().mean().sqrt())
    for r in flows:
        left.semilogy(r.times, r.records["energy"], color=f"C{k}", lw=0.7)
    left.plot([], [], color=f"C{k}", label=f"N = {N}")
left.plot(limit.times, limit.records["energy"], "k--", label="N = 20 000")
left.set(title="12 starts at each width", xlabel="time", ylabel="loss")
left.legend()
right.loglog(widths, apart, "o-", label="at time 10")
right.loglog(widths, [0.4 * N**-0.5 for N in widths], "k:", label="slope -1/2")
right.set(title="the limit in N", xlabel="neurons N", ylabel="distance to the limit")
right.legend()
plt.show()

# %%
# Back to torch
# -------------
# A trained measure is an ordinary module again, to be served or fine-tuned.

module = of.meanfield.to_module(run.final, network)
neurons = of.meanfield.from_module(module)[0]

assert difference < 1e-12
assert abs(balance.residual) < 0.05 * balance.drop.sum()
assert abs(of.analysis.observed_order(widths, apart) + 0.5) < 0.1
assert max(moved.values()) < 1.2 * min(moved.values())
assert run.records["energy"][-1] < 1e-3 * run.records["energy"][0]
assert torch.allclose(module(X)[:, 0], network(run.final, X), atol=1e-12)
assert of.metrics.wasserstein2(neurons, run.final) < 1e-10
