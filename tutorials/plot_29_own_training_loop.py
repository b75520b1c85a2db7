r"""
Your own training loop
======================

You have a module, data and a loop in PyTorch, and want neither to change. Replace the
optimiser: with :class:`~otflow.meanfield.FlowOptimizer` the loop follows the
Wasserstein gradient flow of the loss over the measure of the hidden units. Then ``dt``
is a time that means the same at every width, noise has a temperature, and each layer
has its mobility.
"""

# %%
# A loop
# ------
# The module is the user's: two ``Linear`` layers of 200 units. Its outer weights are
# :math:`a_i/N`. Gradient descent with one learning rate moves both layers by rules that
# depend on N; the flow gives the inner layer the rate :math:`N \, dt` and the outer one
# :math:`dt/N`.

import matplotlib.pyplot as plt
import torch
from torch import nn

import otflow as of

N, dt = 200, 0.5
generator = torch.Generator().manual_seed(0)
X = torch.rand(128, 1, dtype=torch.float64, generator=generator) * 6 - 3
y = torch.where(X > 0, X.sin(), 0.5 * X.abs())[:, 0]


class Curve(nn.Module):
    """One hidden layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        empty, dtype = nn.utils.skip_init, torch.float64
        self.hidden = empty(nn.Linear, 1, width, dtype=dtype)
        self.out = empty(nn.Linear, width, 1, bias=False, dtype=dtype)
        with torch.no_grad():  # neurons near the origin, outer weights a_i = N c_i
            for weight in (self.hidden.weight, self.hidden.bias, self.out.weight):
                weight.normal_(generator=torch.Generator().manual_seed(1))
            self.out.weight /= width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.hidden(x)))[:, 0]


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int
) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = 0.5 * (model(X) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


model = Curve(N)
optimizer = of.meanfield.FlowOptimizer(model, dt)
start = optimizer.measure()
losses = train(model, optimizer, 500)

# %%
# It is the flow
# --------------
# The same by :func:`otflow.flow`, from the same neurons. ``measure()`` returns the
# neurons of the module as a measure, so that all of the library applies to them: here
# the Wasserstein distance of both ends.

risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, y)
run = of.flow(risk, start, of.ExplicitEuler(), dt=dt, steps=500)
energy = run.records["energy"][:-1]
apart = float((torch.tensor(losses, dtype=torch.float64) - energy).abs().max())
distance = float(of.metrics.wasserstein2(optimizer.measure(), run.final))
print(f"losses differ by {apart:.1e}, the ends by {distance:.1e} in W2")

# %%
# A time that means the same at every width
# -----------------------------------------
# Networks of 50 and of 800 units, with the same dt, follow the same curve up to their
# start. Plain gradient descent needs a learning rate that depends on the width: one
# that 800 units bear is slow, for twice that rate they diverge.

wide: dict[int, list[float]] = {}
plain: dict[int, list[float]] = {}
for width in (50, 800):
    model = Curve(width)
    wide[width] = train(model, of.meanfield.FlowOptimizer(model, dt), 500)
    model = Curve(width)
    plain[width] = train(model, torch.optim.SGD(model.parameters(), lr=0.005), 500)

fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
time = dt * torch.arange(500)
left.semilogy(time, losses, label="200 units")
left.semilogy(time, energy, "k:", label="200 units, otflow.flow")
for colour, width in (("C1", 50), ("C2", 800)):
    left.semilogy(time, wide[width], colour, label=f"{width} units")
    right.semilogy(plain[width], colour, label=f"{width} units")
left.set(xlabel="time", ylabel="loss", title="FlowOptimizer")
right.set(
    xlabel="step", ylabel="loss", title="SGD, one learning rate", ylim=left.get_ylim()
)
for ax in (left, right):
    ax.legend()
plt.show()

# %%
# Noise, a schedule, one layer alone
# ----------------------------------
# A ``temperature`` turns the steps into Langevin dynamics. The schedulers of torch
# change dt. ``mobility={"inner": 0}`` trains the outer layer alone: random features.

model = Curve(N)
optimizer = of.meanfield.FlowOptimizer(
    model, dt, temperature=1e-3, mobility={"inner": 0.0}, generator=0
)
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.99)
inner = model.hidden.weight.detach().clone()
for _ in range(300):
    train(model, optimizer, 1)
    scheduler.step()
print(f"dt is now {optimizer.param_groups[0]['lr']:.4f}")

# %%
# What must hold
# --------------

assert apart < 1e-12
assert distance < 1e-9
assert losses[-1] < 0.05 * losses[0]
assert 0.5 < wide[50][-1] / wide[800][-1] < 2.0
assert min(plain[50][-1], plain[800][-1]) > 10 * losses[-1]
assert torch.equal(model.hidden.weight.detach(), inner)
assert abs(optimizer.param_groups[0]["lr"] - dt * 0.99**300) < 1e-12
