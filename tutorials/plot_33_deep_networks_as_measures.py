r"""
Deep networks as measures
=========================

A network with one hidden layer is an integral over a measure of neurons. A deep one is
not: unit j of a layer has a weight to every unit k of the next. In the scaling

.. math:: h^1_j = \varphi(w_j \cdot x + b_j), \qquad
    h^2_k = \varphi\Bigl(\frac1{N_1} \sum_j W_{kj}\,h^1_j + b_k\Bigr), \qquad
    f = \frac1{N_2} \sum_k a_k\, h^2_k

of :cite:t:`araujo2019mean` it is a function of several **parts**: the laws of the first
and of the last weights, and matrices between them. Each part has a metric of its own,
and these metrics are the learning rates: N for the outer layers, :math:`N^2` for the
middle one. Then every weight moves at a speed that does not depend on the width.
"""

# %%
# The same steps as PyTorch
# -------------------------
# The network learns to read the digits of scikit-learn. The flow moves all parts
# together, by a closed pass without automatic differentiation. Plain gradient descent
# on the torch module makes the same steps, with one learning rate for each layer. The
# module holds :math:`W/N_1` and :math:`a/N_2`, so its rates are those of the flow over
# the squares of :math:`N_1` and :math:`N_2`.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import otflow as of

pictures, labels = load_digits(return_X_y=True)
X, y = torch.as_tensor(pictures / 16), torch.as_tensor(labels)
order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
learn, judge = order[:900], order[900:]

nets, N = of.meanfield.networks, (80, 50)
network = nets.MultiLayer(N, ("relu", "tanh"), outputs=10)
risk = of.meanfield.Risk(network, X[learn], y[learn], loss="cross-entropy")


def start(seed: int) -> of.measures.Parts:
    generator = torch.Generator().manual_seed(seed)
    return network.draw(64, generator, inner=(0.0, 0.5), dtype=torch.float64)


euler, dt, steps = of.ExplicitEuler(), 0.3, 120
run = of.flow(risk, start(1), euler, dt=dt, steps=steps)

module = nets.to_sequential(start(1), network)
first, middle, last = module[0], module[2], module[4]
rates = [
    ([first.weight, first.bias], N[0] * dt),
    ([middle.weight], N[1] / N[0] * dt),
    ([middle.bias], N[1] * dt),
    ([last.weight], dt / N[1]),
]
sgd = torch.optim.SGD([{"params": params, "lr": lr} for params, lr in rates])
losses = []
for _ in range(steps + 1):
    loss = torch.nn.functional.cross_entropy(module(X[learn]), y[learn])
    losses.append(loss.item())
    sgd.zero_grad()
    loss.backward()
    sgd.step()
apart = (run.records["energy"] - torch.tensor(losses, dtype=torch.float64)).abs().max()
print(f"largest difference of the losses: {apart:.1e}")

# %%
# Longer steps that halve where the risk rises train it to the end.

halving = of.ExplicitEuler(backtracking=True)
ends = [
    of.flow(risk, start(seed), halving, dt=20.0, steps=250, every=250).final
    for seed in (1, 2)
]


def right(mu: of.measures.Parts) -> float:
    return float((network(mu, X[judge]).argmax(1) == y[judge]).double().mean())


print("right on pictures set aside:", ", ".join(f"{right(mu):.3f}" for mu in ends))

# %%
# Two networks, unit by unit
# --------------------------
# The units of each layer have no order, so the mean of two trained networks has a high
# loss. :func:`~otflow.meanfield.networks.align_networks` reorders the second: one
# layer after the other by an exact assignment, until no layer improves. The distance
# up to order is between the two bounds that it reports.

found = nets.align_networks(network, *ends)
print(f"distance up to order: {found.distance}")
ts = torch.linspace(0, 1, 21, dtype=torch.float64)
paths = {
    name: [float(risk(ends[0].push(ends[0].displacement_to(nu), float(t)))) for t in ts]
    for name, nu in {"as they come": ends[1], "aligned": found.measure}.items()
}

# %%
# No limit of infinite depth
# --------------------------
# Width has a limit, depth has none. Each further layer multiplies the velocity of the
# first weights by about the same number.

x = torch.linspace(0.2, 2, 20, dtype=torch.float64)[:, None]
depths, speeds = [2, 4, 6, 8, 10], dict[float, list[float]]()
for mean in (0.5, 2.0, 4.0):
    speeds[mean] = []
    for depth in depths:
        deep = nets.MultiLayer((50,) * depth, "relu", bias=False)
        mu = deep.draw(
            1,
            torch.Generator().manual_seed(0),
            middle=(mean, 1.0),
            outer=(1.0, 0.0),
            dtype=torch.float64,
        )
        F = of.meanfield.Risk(deep, x, x[:, 0], loss=lambda f, _: f)  # slope 1
        speeds[mean].append(float(mu.views(F.velocity(mu))[0].square().mean().sqrt()))

fig, (left, centre, side) = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
left.plot(run.records["energy"], label="flow")
left.plot(losses, "k:", label="PyTorch")
left.set(xlabel="step", ylabel="loss")
left.legend()
for name, path in paths.items():
    centre.plot(ts, path, label=name)
centre.set(xlabel="position between two networks", ylabel="loss", ylim=(0, None))
centre.legend()
for mean, values in speeds.items():
    side.semilogy(depths, values, "o-", label=f"mean {mean:g}")
side.set(xlabel="layers L", ylabel="speed of the first weights")
side.legend(title="middle weights")
plt.show()

# %%
# What must hold
# --------------

assert apart < 1e-10
assert min(map(right, ends)) > 0.93
assert found.converged
assert max(paths["aligned"]) < 0.5 * max(paths["as they come"])
assert speeds[0.5][-1] < 1e-2 * speeds[0.5][0]
assert speeds[4.0][-1] > 1e2 * speeds[4.0][0]
