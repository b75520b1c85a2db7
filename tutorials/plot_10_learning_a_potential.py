r"""
Learning a potential through a flow
===================================

A population drifts in an unknown landscape V and diffuses. Nobody sees the paths of its
members. What is seen is the density at a few times. Which landscape explains it? The
model is the gradient flow of

.. math:: F_\theta(\mu) = \int V_\theta\,d\mu + \tau \int \rho\log\rho, \qquad
    V_\theta(x) = \theta_1 x + \theta_2 x^2 + \theta_3 x^4 .

Each JKO step is a minimisation. Its outcome is differentiable in :math:`\theta` and in
the density that it starts from. The implicit derivative is that of
:meth:`~otflow.proximal.GridSinkhorn.differentiable_step`. So an optimiser of torch can
fit a whole flow.
"""

# %%
# What is seen
# ------------
# A tilted well with a shelf. First the model itself computes the data, without noise.
# Then an exact fit exists, and the optimiser must find its parameters.

import matplotlib.pyplot as plt
import torch

import otflow as of

truth = torch.tensor([0.5, -0.6, 0.25], dtype=torch.float64)
temperature, dt, steps = 0.3, 0.1, 6


def landscape(theta):
    """Return the potential V as a function of points (..., 1)."""
    return lambda x: (
        theta[0] * x[..., 0] + theta[1] * x[..., 0] ** 2 + (theta[2] * x[..., 0] ** 4)
    )


start = of.GridDensity.from_function(
    lambda x: torch.exp(-2 * x[:, 0].square()), -3.5, 3.5, 120, dtype=torch.float64
)
solver = of.proximal.GridSinkhorn(tolerance=1e-8, certify=False)


def predicted(theta):
    """Return the masses of the cells after each step, (steps, n)."""
    F = of.Potential(landscape(theta)) + temperature * of.Entropy()
    mu, masses = start, []
    for _ in range(steps):
        mu = solver.differentiable_step(F, mu, dt)
        masses.append(mu.weights)
    return torch.stack(masses)


with torch.no_grad():
    clean = predicted(truth)

# %%
# The fit
# -------
# The loss is the squared Hellinger distance, summed over the times. The optimiser
# starts from a flat landscape.


def fit(seen):
    """Return the parameters that explain the masses seen, and all that were tried."""
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([theta], max_iter=25, line_search_fn="strong_wolfe")
    tried = []

    def loss():
        optimiser.zero_grad()
        value = (predicted(theta).sqrt() - seen.sqrt()).square().sum()
        value.backward()
        tried.append(theta.detach().clone())
        return value

    optimiser.step(loss)
    return theta.detach(), tried


found, tried = fit(clean)
print(f"{len(tried)} flows; error {(found - truth).abs().max():.1e}")

# %%
# Real data have noise
# --------------------
# Now 4000 particles obey the equation itself: Langevin dynamics with short steps. Two
# things separate them from the model: the noise of counting, and the error of JKO steps
# of length 0.1. The first and the second were absent above.

generator = torch.Generator().manual_seed(0)
F = of.Potential(landscape(truth)) + temperature * of.Entropy()
mu, counts = of.Particles(start.sample(4000, generator)), []
for _ in range(steps):
    mu = of.flow(F, mu, of.Langevin(), dt=dt / 50, steps=50, generator=generator).final
    cells = start.box.cell_of(mu.points)
    counts.append(torch.bincount(cells, minlength=start.n).double() / mu.n)
observed = torch.stack(counts)
noisy, _ = fit(observed)
print("truth", truth.tolist(), "from counts", [round(float(c), 3) for c in noisy])

x = start.points[:, :1]
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
h = 7 / 120
for k, color in zip((0, 2, 5), plt.cm.viridis([0.0, 0.45, 0.8]), strict=True):
    left.plot(x, observed[k] / h, ".", ms=3, color=color)
    label = f"t = {dt * (k + 1):.1f}"
    left.plot(x, predicted(noisy)[k] / h, color=color, label=label)
left.set(xlabel="x", ylabel="density (dots: counts)", xlim=(-3, 3))
left.legend()
near = x[(x[:, 0].abs() < 2.2)]
right.plot(near, landscape(truth)(near), color="0.75", lw=5, label="truth")
right.plot(near, landscape(found)(near), "C0", label="from clean densities")
right.plot(near, landscape(noisy)(near), "C1--", label="from counts")
right.set(xlabel="x", ylabel="V")
right.legend()
plt.show()

# %%
# What must hold
# --------------
# The implicit derivative must be that of the flow: a difference quotient says so.

theta = torch.tensor([0.1, 0.2, 0.1], dtype=torch.float64, requires_grad=True)
score = lambda theta: (predicted(theta) * x[:, 0]).sum()
(slope,) = torch.autograd.grad(score(theta), theta)
with torch.no_grad():
    e = 1e-4 * torch.eye(3, dtype=torch.float64)
    quotient = torch.stack([score(theta + d) - score(theta - d) for d in e]) / 2e-4

print(f"derivative {slope.tolist()}, quotient {quotient.tolist()}")
assert torch.allclose(slope, quotient, rtol=1e-3, atol=1e-5)
assert (found - truth).abs().max() < 1e-5
assert (noisy - truth).abs().max() < 0.2
