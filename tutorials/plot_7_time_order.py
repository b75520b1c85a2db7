r"""
Which time order?
=================

A JKO step is implicit Euler in Wasserstein space: it loses energy whatever its length,
and its error is of order dt. Where :math:`W_2` is flat (particles, quantiles, Gaussians
in the coordinates of their nodes) an implicit Runge-Kutta method has a higher order
with the same solver: each stage is one proximal step from a shifted start.
``JKO(order=2)`` has two stages, ``JKO(order=3)`` three. This tutorial measures their
errors and their costs, and lets a controller choose the step.
"""

# %%
# The orders, observed
# --------------------
# A Gaussian in a quadratic potential, on 200 quantiles. The reference has the same
# quantiles, order 3 and a step ten times smaller: so the errors below are those in
# time.

import matplotlib.pyplot as plt
import torch

import otflow as of

F = of.KL(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)


def start():
    """Return N(1, 0.6^2) cut at 4 standard deviations, on 200 quantiles."""
    return of.Quantiles.from_function(
        lambda x: torch.exp(-0.5 * ((x[:, 0] - 1) / 0.6).square()),
        -1.4,
        3.4,
        n=200,
        dtype=torch.float64,
    )


def end(order, steps):
    """Return the edges at time 1."""
    scheme = of.JKO(order=order)
    run = of.flow(F, start(), scheme, dt=1 / steps, steps=steps, every=steps)
    assert all(step["converged"] for step in run.info)
    return run.final


reference = end(3, 640)
counts = [8, 16, 32, 64]
errors = {}
for order in (1, 2, 3):
    ends = [end(order, steps) for steps in counts]
    errors[order] = [float(mu.norm(mu.displacement_to(reference))) for mu in ends]
    observed = of.analysis.observed_order([1 / k for k in counts], errors[order])
    print(f"order {order}: errors {errors[order][0]:.1e} to {errors[order][-1]:.1e}, "
          f"observed {observed:.2f}")  # fmt: skip

fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
for order, error in errors.items():
    left.loglog([1 / k for k in counts], error, "o-", label=f"order {order}")
    slope = [error[0] * (counts[0] / k) ** order for k in counts]
    left.loglog([1 / k for k in counts], slope, "k:", lw=1)
    right.loglog([order * k for k in counts], error, "o-", label=f"order {order}")
left.set(title="dotted: slopes 1, 2, 3", xlabel="dt", ylabel="$W_2$ error at t = 1")
left.set_xticks([1 / k for k in counts], [f"1/{k}" for k in counts], minor=False)
right.set(title="the cost", xlabel="proximal steps", ylabel="$W_2$ error at t = 1")
right.set_xticks([8, 24, 64, 192], ["8", "24", "64", "192"])
for ax in (left, right):
    ax.minorticks_off()
left.legend()
plt.show()

# %%
# For the same number of proximal steps a higher order has a smaller error here. No
# theorem says that its steps lose energy; the report holds the measured ``decrease``.

# %%
# Let the step be chosen
# ----------------------
# The difference to a first-order companion, which costs no solve, estimates the error
# of a step. :class:`~otflow.schemes.Adaptive` accepts a step or tries a shorter one, by
# that error and by the energy. It wraps any scheme. ``dt`` is the longest step.

adaptive = of.schemes.Adaptive(of.JKO(order=2), tolerance=1e-3)
run = of.flow(F, start(), adaptive, dt=0.5, steps=200, until=4.0)
taken = torch.tensor([step["dt"] for step in run.info])
print(f"{len(taken)} steps to t = {float(run.times[-1]):.3g}, "
      f"dt from {float(taken.min()):.2g} to {float(taken.max()):.2g}")  # fmt: skip

fig, ax = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
ax.semilogy(run.times[1:], taken, ".-")
ax.set(xlabel="time at the end of the step", ylabel="length of the step", xlim=(0, 4.1))
ax.set_yticks([0.02, 0.05, 0.1, 0.2, 0.4], ["0.02", "0.05", "0.1", "0.2", "0.4"])
ax.minorticks_off()
ax.annotate("cut to end at t = 4", (4, float(taken[-1])), (2.4, 0.03),
            arrowprops={"arrowstyle": "->"})  # fmt: skip
plt.show()

# %%
# A bound without an exact solution
# ---------------------------------
# For a convex functional the energies and the lengths of the steps bound the error of
# the whole run :cite:p:`nochetto2000posteriori`. ``time_error`` reads them from the
# trajectory; it costs no solve.

first_order = of.flow(F, start(), of.JKO(), dt=1 / 20, steps=20)
bound = float(first_order.time_error()[-1])
truth = float(first_order.final.norm(first_order.final.displacement_to(reference)))
print(f"error at t = 1: bound {bound:.2e}, true {truth:.2e}")

# %%
# What must hold
# --------------

for order, error in errors.items():
    observed = of.analysis.observed_order([1 / k for k in counts], error)
    assert abs(observed - order) < 0.15, (order, observed)
assert errors[2][0] < errors[1][-1]  # 16 proximal steps against 64
assert float(run.times[-1]) == 4.0
assert taken[:-1].max() > 3 * taken[0]
assert (run.records["energy"].diff() <= 1e-12).all()
assert truth < bound < 30 * truth
