r"""
What the survey leaves open
===========================

The conclusion of the survey :cite:p:`yang2020meanfield` asks about landscapes, about
the start of a training, and about other architectures. Those of its questions that are
numerical can be measured: where are the valleys of the risk, what does a start without
full support cost, and do convolutional neurons fit into the picture?
"""

# %%
# The landscape between two networks
# ----------------------------------
# A teacher of three ReLU neurons in five dimensions gives the targets, and the inputs
# are Gaussian: the risk is exact, without data. Two networks are trained from two
# starts. N neurons can move along the geodesic of :math:`W_2`. The mixture needs 2N
# neurons, the one half fading in, the other out. Along mixtures the risk is convex.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

import otflow as of

generator = torch.Generator().manual_seed(5)


def neurons(N: int, outer: torch.Tensor) -> of.Particles:
    w = torch.randn(N, 5, dtype=torch.float64, generator=generator)
    return of.Particles(torch.cat([outer[:, None], w / w.norm(dim=1)[:, None]], 1))


def signs(N: int) -> torch.Tensor:
    return torch.randn(N, dtype=torch.float64, generator=generator).sign()


teacher = neurons(3, torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))
risk = of.meanfield.PopulationRisk(teacher, "relu", "gaussian")
unit = float(risk(of.Particles(torch.zeros_like(teacher.points))))  # that of 0


def trained(start: of.Particles) -> of.Particles:
    return of.flow(risk, start, of.ExplicitEuler(), dt=0.2, steps=400, every=400).final


views, risks = {}, {}
for N in (3, 12, 48):
    found = [trained(neurons(N, signs(N))) for _ in range(8)]
    risks[N] = [float(risk(mu)) / unit for mu in found]
    pairs = zip(found[::2], found[1::2], strict=True)
    views[N] = [of.analysis.landscape(risk, mu, nu) for mu, nu in pairs]

# %%
# Networks as wide as the teacher end in valleys: some starts stay at a high risk, and
# the way to a better network climbs. Wide networks end low from every start, and the
# barrier between them falls with the width: both are close to one measure.

walls = {
    path: {N: sum(v.barrier(path) for v in views[N]) / (4 * unit) for N in views}
    for path in ("geodesic", "mixture")
}
print("mean barriers over the risk of 0:", walls)
fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
for k, (N, view) in enumerate(views.items()):
    most = max(view, key=lambda v: v.barrier("geodesic"))
    left.plot(most.times, most.geodesic / unit, f"C{k}", label=f"{N} neurons")
    left.plot(most.times, most.mixture / unit, f"C{k}:")
    right.plot([N] * 8, risks[N], f"C{k}o", mfc="none")
left.set(xlabel="position between two networks", ylabel="risk over that of 0")
left.set(yscale="log", title="along geodesics; dotted: mixtures")
left.legend()
right.set(xscale="log", yscale="log", xlabel="neurons", ylabel="risk over that of 0")
right.set_title("risk at the end")
right.set_xticks([3, 12, 48], ["3", "12", "48"])
right.minorticks_off()
plt.show()

# %%
# A start without full support
# ----------------------------
# Theorem 3.4 asks for a start of full support. Let all outer weights be 1.5, and the
# inner ones of length 1. The flow keeps :math:`a^2 - |w|^2` for each neuron, so that no
# outer weight changes its sign: the negative neuron of the teacher is out of reach.

mixed = trained(neurons(48, 1.5 * signs(48)))
one_sided = trained(neurons(48, torch.full((48,), 1.5, dtype=torch.float64)))
stuck, free = (float(risk(mu)) / unit for mu in (one_sided, mixed))
print(f"risk over that of 0: {stuck:.3f} from positive outer weights, {free:.3f} else")

# %%
# Convolutional neurons
# ---------------------
# A convolutional neuron slides its filter w over the picture and takes the mean of its
# answers, :math:`\sigma(x) = a\,\overline{(w\cdot x_p + b)_+}` over patches p. That is
# one more function of (a, w, b), a :class:`~otflow.meanfield.CustomLayer`. With glued
# edges it does not see a shift of the picture at all.

digits = load_digits()
X = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)
order = torch.randperm(len(X), generator=generator)
learn, judge = order[:600], order[600:]
pixels = 5


def convolution(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    edge = pixels // 2
    glued = functional.pad(x.reshape(-1, 1, 8, 8), (edge,) * 4, mode="circular")
    patches = functional.unfold(glued, pixels).transpose(1, 2)
    hidden = (patches @ theta[:, 10:-1].T + theta[:, -1]).relu().mean(1)
    return hidden[:, :, None] * theta[:, :10]


shifted = X[judge].reshape(-1, 8, 8).roll((2, 1), (1, 2)).flatten(1)
scores = {}
for name, network, inner in (
    ("convolutional", of.meanfield.CustomLayer(convolution, outputs=10), pixels**2),
    ("fully connected", of.meanfield.TwoLayer("relu", outputs=10), 64),
):
    F = of.meanfield.Risk(network, X[learn], y[learn], loss="cross-entropy")
    theta = torch.randn(48, 10 + inner + 1, generator=generator)
    theta[:, 10:] *= 2 / inner**0.5
    run = of.flow(F, of.Particles(theta), of.schemes.Adam(), dt=0.04, steps=300)
    answers = [network(run.final, x).argmax(1) for x in (X[judge], shifted)]
    scores[name] = [float((a == y[judge]).float().mean()) for a in answers]
    print(f"{name}: right {scores[name][0]:.3f}, on shifted {scores[name][1]:.3f}")

# %%
# What must hold
# --------------
# Generative adversarial networks, recurrent networks and Q-learning, which the survey
# names as well, are games and control problems, not the minimisation of one functional:
# they are outside of this library.

assert max(risks[3]) > 0.1
assert max(risks[48]) < 0.03
assert max(walls["mixture"].values()) < 1e-12
assert walls["geodesic"][3] > 3 * walls["geodesic"][48]
assert stuck > 5 * free
assert abs(scores["convolutional"][0] - scores["convolutional"][1]) < 0.003
assert scores["convolutional"][0] > 0.8
assert scores["fully connected"][0] > 0.9
assert scores["fully connected"][1] < 0.6
