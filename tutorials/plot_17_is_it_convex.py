r"""
Is my functional displacement convex?
=====================================

If F is :math:`\lambda`-convex along displacement, its flow contracts, its minimiser is
unique for :math:`\lambda > 0`, and errors of steps are bounded. A displacement moves
mass along straight lines, :math:`\mu_t = ((1-t)\,x + t\,y)_\# P`, and the curvature is

.. math:: \frac{1}{W_2^2(\mu_0, \mu_1)}\, \frac{d^2}{dt^2} F(\mu_t) \ge \lambda .

Three classes are known to be convex :cite:p:`mccann1997convexity`: potentials and
interactions whose function is convex, and internal energies that grow fast enough. For
everything else one can look: along one geodesic, or along many by a search.
"""

# %%
# Along one geodesic
# ------------------
# Between two times the change of the first derivative is an exact mean of the
# curvature, with its kinks. The least curvature of cos(3x) is -9, at its top.

import matplotlib.pyplot as plt
import torch

import otflow as of

F64 = torch.float64
a, b = (of.Particles(torch.full((1, 1), x, dtype=F64)) for x in (-1.0, 1.0))
potentials = {
    "cos 3x": of.Potential(lambda x: (3 * x).cos().sum(-1)),
    "double well": of.Potential(lambda x: (x.square() - 1).square().sum(-1) / 4),
    "|x - 0.2|": of.Potential(lambda x: (x - 0.2).abs().sum(-1)),
}
reports = {
    name: of.analysis.displacement_convexity(F, a, b, times=17)
    for name, F in potentials.items()
}
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for name, report in reports.items():
    left.plot(report.times, report.values, label=name)
    right.stairs(report.between, report.times, baseline=None, label=name)
    print(f"{name:12} least curvature {report.minimum:7.4f} at time {report.time:.3f}")
left.set(xlabel="time t", ylabel="F along the geodesic")
right.set(xlabel="time t", ylabel="curvature between times")
left.legend(frameon=False, fontsize=8)
plt.show()

# %%
# McCann's three classes
# ----------------------
# One geodesic between densities on the line, from one bell to two. Each functional of
# the three classes knows its modulus, and the curvature stays above. Minus an entropy
# belongs to no class.


def density(*centres: float) -> of.Quantiles:
    def f(x: torch.Tensor) -> torch.Tensor:
        bells = [(-8 * (x[:, 0] - c).square()).exp() for c in centres]
        return torch.stack(bells).sum(0) + 1e-3

    return of.Quantiles.from_function(f, -3, 3, 40, grading=2, dtype=F64)


classes: dict[str, of.Functional] = {
    "potential of |x|^4": of.Potential(lambda x: x.pow(4).sum(-1), modulus=0.0),
    "interaction |x - y|": of.Interaction(lambda z: z.norm(dim=-1), modulus=0.0),
    "entropy": of.Entropy(),
    "porous medium": of.PowerEntropy(2.0),
    "minus an entropy": -of.Entropy(),
}
lowest = {}
for name, F in classes.items():
    report = of.analysis.displacement_convexity(F, density(0.3), density(-1, 1.2))
    lowest[name] = report.minimum
    print(f"{name:20} modulus {F.modulus(1)!s:5} curvature {report.minimum:9.5f}")

# %%
# A search for a counterexample
# -----------------------------
# The falsifier moves measures and velocities until the curvature is least. The energy
# :math:`-\tfrac12\iint e^{-2|x-y|^2}` attracts: it bends down where two atoms are at a
# distance near the width of the kernel. The witness is two measures, and the path
# between them. The library's modulus holds along *every* coupling; McCann's convexity
# asks for the optimal one. The repulsion :math:`-|x - y|` on the line tells them apart:
# atoms that cross refute the first, and optimal ones never cross.

places = torch.linspace(-1, 1, 5, dtype=F64)[:, None]
line, like = of.Particles(places), of.Particles(places.expand(5, 2))
attraction = -of.Interaction(of.kernels.Gaussian(0.5))
found = of.analysis.falsify(attraction, like, evaluations=400)
print(found)
repulsion = of.Interaction(lambda z: -z.norm(dim=-1))
crossing = of.analysis.falsify(repulsion, line, evaluations=300)
print(crossing)

witness = found.on_geodesics
assert witness is not None
x, v = witness.a.points, witness.tangent / witness.a.norm(witness.tangent)
straight = torch.linspace(-1, 1, 101)
path = [attraction(witness.a.push(v, float(s))) for s in straight]
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
left.quiver(*x.T, *v.T, angles="xy", scale_units="xy", scale=4, width=0.01)
left.scatter(*x.T, color="C3", zorder=3)
for limits, centre in zip((left.set_xlim, left.set_ylim), x.mean(0), strict=True):
    limits(float(centre) - 1, float(centre) + 1)
left.set(aspect="equal", xlabel="atoms and velocities", ylabel="second axis")
right.plot(straight, path)
right.plot(0, attraction(witness.a), "o", color="C3")
right.set(xlabel="distance along the path", ylabel="attraction")
plt.show()

# %%
# The loss of a network
# ---------------------
# The loss of a two-layer network is convex along mixtures of neurons. The survey
# :cite:p:`yang2020meanfield` says that it is not along displacement. One neuron (a, w,
# b) = (1, 1, 0) computes tanh x, and so does (-1, -1, 0). Half way between both the
# neuron is zero.

X = torch.linspace(-2, 2, 41, dtype=F64)[:, None]
risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, X[:, 0].tanh())
one = of.Particles(torch.tensor([[1.0, 1.0, 0.0]], dtype=F64))
other = of.Particles(-one.points)
along = of.analysis.displacement_convexity(risk, one, other, times=5)
mixtures = [float(risk(one.mix(other, float(t)))) for t in along.times]
loss = of.analysis.falsify(risk, one, evaluations=300)
print(f"{along.minimum:.4f} at time {along.time}; {loss.on_geodesics}")
_, ax = plt.subplots(figsize=(4.5, 3), layout="constrained")
ax.plot(along.times, along.values, "o-", label="geodesic")
ax.plot(along.times, mixtures, "s--", label="mixture")
ax.set(xlabel="time t", ylabel="loss")
ax.legend(frameon=False)

# %%
# What must hold
# --------------
# A search that finds nothing proves nothing, and its report says so.
assert abs(reports["cos 3x"].minimum + 9) < 1e-9
assert min(lowest[name] for name in list(classes)[:-1]) > -1e-9
assert lowest["minus an entropy"] < 0
assert found.refuted_on_geodesics
assert crossing.refuted
assert not crossing.refuted_on_geodesics
assert loss.refuted_on_geodesics
assert max(mixtures) < 1e-12
assert along.values[2] > 0.26
nothing = of.analysis.falsify(of.Entropy(), density(0.0), evaluations=100)
assert not nothing.refuted
assert "proves nothing" in str(nothing)
