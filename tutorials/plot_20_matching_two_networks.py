r"""
Matching two networks
=====================

Two networks learn the same digits from different starts, and one is wider than the
other. They compute nearly the same, yet their neurons have nothing to do with each
other: the loss at the mean of both lists of numbers is high. A network is a measure of
neurons, and no order belongs to it. So match the neurons first, by the plan that moves
them least, up to the symmetry of a neuron,

.. math:: d(\mu, \nu)^2 = \min_P \sum_{ij} P_{ij}\, \min_g |\theta_i - g\,\xi_j|^2 .

For tanh the symmetry is a sign, :math:`(a, w, b) \sim (-a, -w, -b)`. Between networks
of different widths the plan splits neurons: Remark 1 of the survey
:cite:p:`yang2020meanfield` without its assumption of one width.
"""

# %%
# Two networks
# ------------
# The digits are the 1797 pictures of scikit-learn. Half of them are set aside. Both
# networks are trained by the Wasserstein gradient flow of the cross-entropy, over 300
# and over 200 neurons.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import otflow as of

pictures, labels = load_digits(return_X_y=True)
X, y = torch.as_tensor(pictures / 16, dtype=torch.float32), torch.as_tensor(labels)
order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
learn, judge = order[:900], order[900:]
network = of.meanfield.TwoLayer("tanh", outputs=10)


def risk(part: torch.Tensor) -> of.meanfield.Risk:
    return of.meanfield.Risk(network, X[part], y[part], loss="cross-entropy")


def trained(neurons: int, seed: int) -> of.Particles:
    generator = torch.Generator().manual_seed(seed)
    start = of.Particles(0.3 * torch.randn(neurons, 10 + 64 + 1, generator=generator))
    scheme = of.ExplicitEuler(backtracking=True)
    return of.flow(risk(learn), start, scheme, dt=20.0, steps=500, every=500).final


wide, slim = trained(300, 1), trained(200, 2)
held_out = risk(judge)


def right(mu: of.Particles) -> float:
    return float((network(mu, X[judge]).argmax(1) == y[judge]).float().mean())


print(f"right on pictures set aside: {right(wide):.3f} and {right(slim):.3f}")

# %%
# Neuron by neuron
# ----------------
# :func:`~otflow.metrics.aligned_networks` splits both networks into the cells of the
# plan. The two lists of equal length and weights compute what the networks compute. As
# they come, the networks are split by index: the first neuron of the one goes to the
# first of the other.

sign = of.metrics.symmetries.of_activation("tanh", outputs=10)
pieces = torch.arange(600)
pairs = {
    "as they come": (
        of.Particles(wide.points[pieces // 2]),
        of.Particles(slim.points[pieces // 3]),
    ),
    "by order": of.metrics.aligned_networks(wide, slim),
    "by order and sign": of.metrics.aligned_networks(wide, slim, symmetry=sign),
}
lengths = {}
for name, (first, second) in pairs.items():
    lengths[name] = float(first.norm(first.displacement_to(second)))
    print(f"{name}: {first.n} pieces at distance {lengths[name]:.1f}")

# %%
# The loss on the way
# -------------------
# Between the matched networks the path is a geodesic of :math:`W_2`. The height of a
# barrier is the most by which the loss exceeds the straight line between its ends. As
# the networks come, it is about three times the loss of the ends. After the alignment
# it is less than a tenth of that loss, on pictures that neither network has seen. Zero
# it is not.

times = torch.linspace(0, 1, 21)
barriers, losses = {}, {}
for name, (first, second) in pairs.items():
    tangent = first.displacement_to(second)
    path = [first.push(tangent, float(t)) for t in times]
    losses[name] = torch.stack([held_out(mu) for mu in path])
    ends = torch.lerp(losses[name][0], losses[name][-1], times)
    barriers[name] = float((losses[name] - ends).max())
    print(f"{name}: barrier {barriers[name]:.3f}, half-way right {right(path[10]):.3f}")

fig, (ax, arrows) = plt.subplots(1, 2, figsize=(8.5, 3.7), layout="constrained")
for name, loss in losses.items():
    ax.plot(times, loss, label=f"{name}: barrier {barriers[name]:.3f}")
ax.set(xlabel="position between the networks", ylabel="loss on pictures set aside")
ax.set(ylim=(0, None))
ax.legend(loc="lower center")
for name, style in (("as they come", "C0"), ("by order and sign", "C2")):
    moves = (pairs[name][1].points - pairs[name][0].points).norm(dim=1)
    masses = pairs[name][0].weights
    arrows.hist(moves, range(60), weights=masses, alpha=0.6, color=style, label=name)
arrows.set(xlabel="distance from a neuron to its partner", ylabel="share of the mass")
arrows.legend()
plt.show()

# %%
# What must hold
# --------------

distance = of.metrics.quotient_distance(wide, slim, symmetry=sign)
computed = network(wide, X[judge]), network(slim, X[judge])
for name, both in pairs.items():
    for mu, before in zip(both, computed, strict=True):
        assert (network(mu, X[judge]) - before).abs().max() < 1e-3, name
assert abs(lengths["by order and sign"] - distance) < 1e-4 * distance
assert lengths["by order and sign"] < lengths["by order"] < lengths["as they come"]
assert min(right(wide), right(slim)) > 0.94
assert barriers["by order and sign"] < 0.1 * barriers["as they come"]
assert barriers["as they come"] > 2 * float(held_out(slim))
assert barriers["by order and sign"] < 0.1 * float(held_out(slim))
