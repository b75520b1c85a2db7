r"""
Which Wasserstein distance?
===========================

All of these compute :math:`W_2^2(\mu, \nu) = \min_P \sum_{ij} P_{ij} |x_i - y_j|^2`,
its root, or something near it. They differ in cost, in proofs and in gradients.

.. csv-table::
   :header: You have or need, Take, It is
   :widths: 38, 40, 22

   10\ :sup:`5` points in 2-D or 3-D, ``wasserstein2``, exact
   "more points, or dimensions", ``wasserstein2(tolerance=0.01)``, exact to a share
   proof of how good that is, ``transport_plan(...).bracket``, two bounds of the square
   two densities on the line; Gaussians, ``wasserstein2``, exact
   two pictures, "``wasserstein2``, as ``GridDensity``", "exact, or to a share"
   a gradient in the weights, ``sinkhorn_divergence(blur=)``, smooth; half a square
   a plan that spreads, ``entropic_plan(blur=)``, above half a square
   a cheap loss of many points, ``SlicedWassersteinTo``, smaller; half a square
   a bound at once; two kinds, ``gelbrich``, below W2
   many pairs of small clouds, ``batched_wasserstein2_squared``, exact
   another power or cost, "``wasserstein(p=)``, ``transport_cost``", exact
"""

# %%
# A number with its proof
# -----------------------
# Any plan bounds :math:`W_2^2` from above, any feasible potentials from below: a
# ``tolerance`` is a promise. In dimension 10 a wide bracket comes first, the exact
# value soon after. At the right stands what is often wanted, the distance of the *laws*
# that the points were drawn from, here known. More digits would not help there.

import time
from functools import partial

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import otflow as of

metrics, generator = of.metrics, torch.Generator().manual_seed(0)


def drawn(n: int, d: int = 10) -> torch.Tensor:
    """Return draws of two Gaussians with a squared distance of 1 + 0.2^2 d."""
    x, y = torch.randn(2, n, d, dtype=torch.float64, generator=generator)
    return torch.stack([x, 0.8 * y + d**-0.5])


pairs = {n: drawn(n) for n in (250, 1000, 4000)}
exact = {n: float(metrics.wasserstein2_squared(*pair)) for n, pair in pairs.items()}
fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), layout="constrained")
brackets = {}
for k, tolerance in enumerate((0.5, 0.1, 1e-3)):
    start = time.perf_counter()
    found = metrics.transport_plan(*pairs[4000], tolerance=tolerance).bracket
    seconds, brackets[tolerance] = time.perf_counter() - start, found
    name = f"tolerance={tolerance:g}: {found.relative:.1g} wide"
    ends = [found.lower / exact[4000], found.upper / exact[4000]]
    left.plot([seconds] * 2, ends, f"C{k}_-", lw=2, ms=12, label=name)
left.axhline(1, color="0.4", lw=0.8, zorder=0)
left.set(xlabel="seconds", ylabel="bounds over the exact square", ylim=(0.85, 1.2))
left.legend(fontsize=8)
for n, pair in pairs.items():
    wide = metrics.transport_plan(*pair, tolerance=0.5).bracket
    right.plot([str(n)] * 2, [wide.lower, wide.upper], "C0_-", lw=2, ms=12)
right.plot([str(n) for n in exact], list(exact.values()), "ko", ms=3, label="exact")
right.axhline(1.4, color="0.4", ls="--", label="the two laws")
right.set(xlabel="points drawn from each law", ylabel="$W_2^2$", ylim=(0, None))
right.legend()
plt.show()

# %%
# One pair, six numbers
# ---------------------
# Handwritten threes and eights are two clouds in dimension 64. Far below the spacing of
# the points the Sinkhorn divergence is :math:`W_2^2/2`, far above it sees the means
# alone. The cost of an entropic plan lies above, as of any plan. Slices along frames of
# d orthonormal directions give the lower bound :math:`\sqrt d\, SW_2`: squares add up.

digits = load_digits()
images, d = torch.tensor(digits.data), 64
threes, eights = images[digits.target == 3], images[digits.target == 8]
w2 = metrics.wasserstein2(threes, eights)
sliced = of.SlicedWassersteinTo(eights, 2 * d).value(of.Particles(threes))
lower = {
    "Gelbrich": metrics.gelbrich(threes, eights),
    "slices": (2 * d * sliced).sqrt(),
    "means alone": (threes.mean(0) - eights.mean(0)).norm(),
}
blurs = [0.5, 2, 4, 7, 12, 30, 200]
S = torch.stack([metrics.sinkhorn_divergence(threes, eights, blur=b) for b in blurs])
plans = [metrics.entropic_plan(threes, eights, blur=b) for b in blurs]
costs = torch.stack([plan.transport_cost for plan in plans])

fig, ax = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
ax.axhline(float(w2), color="k", label="$W_2$, exact")
ax.semilogx(blurs, (2 * costs).sqrt(), "C1.-", label="cost of entropic plans")
ax.semilogx(blurs, (2 * S).sqrt(), "C0.-", label="Sinkhorn divergence")
for k, (name, bound) in enumerate(lower.items()):
    ax.axhline(float(bound), color=f"C{k + 2}", ls="--", label=name)
ax.set(xlabel="blur", ylabel="length", ylim=(20, 50))
ax.legend(ncols=2, fontsize=8)
plt.show()

# %%
# Grids: atoms or steps
# ---------------------
# On the line a grid is a step density. In the plane it stands for atoms at the centres
# of its cells: the distances differ by at most :math:`h\sqrt{d/3}`. For products the
# distance of steps is known, since squares add up over the axes.

bell = lambda x: torch.exp(-2 * x.square().sum(-1))
ramp = lambda x: (1.5 + x).prod(-1)
fig, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
gaps = {}
for n in (4, 8, 16, 32):
    make = partial(of.GridDensity.from_function, dtype=torch.float64, walls=True)
    steps, atoms = (
        metrics.wasserstein2(*(make(f, -1, 1, shape) for f in (bell, ramp)))
        for shape in (n, (n, n))
    )
    gaps[2 / n] = float(atoms - 2**0.5 * steps)
    ax.errorbar(2 / n, atoms, (2 / n) * (2 / 3) ** 0.5, fmt="C0o", capsize=5)
    ax.plot(2 / n, 2**0.5 * steps, "C1x")
ax.set(xlabel="side h of a cell", ylabel="$W_2$: atoms (o), steps (x)")
plt.show()

# %%
# What must hold
# --------------
# A batch answers as pair by pair.

batch = torch.stack([drawn(20, 2) for _ in range(50)], dim=1)
together = metrics.batched_wasserstein2_squared(*batch)
apart = [metrics.wasserstein2_squared(x, y) for x, y in zip(*batch, strict=True)]
assert torch.allclose(together, torch.stack(apart), rtol=1e-12)
assert all(exact[4000] in found for found in brackets.values())
assert all(found.relative <= tol for tol, found in brackets.items())
assert exact[250] > exact[1000] > exact[4000] > 1.4
assert all(bound <= w2 for bound in lower.values())
assert lower["means alone"] <= min(lower["Gelbrich"], lower["slices"])
assert (2 * costs >= w2.square() * (1 - 1e-9)).all()
assert (costs.diff() > 0).all()
assert abs((2 * S[0]).sqrt() / w2 - 1) < 1e-3
assert abs((2 * S[-1]).sqrt() / lower["means alone"] - 1) < 1e-2
assert all(abs(gap) <= h * (2 / 3) ** 0.5 for h, gap in gaps.items())
