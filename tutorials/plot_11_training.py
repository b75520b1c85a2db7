r"""
Minibatches, early stopping and checkpoints
===========================================

A network that reads handwritten digits, trained as a practitioner would train it: on
random batches, with data set aside to say when to stop, and with files from which a
killed run goes on. The data are the 1797 pictures of 8 x 8 pixels that come with
scikit-learn. The flow is that of the cross-entropy over measures of 200 neurons.
"""

# %%
# Data in three parts
# -------------------
# One part to learn from, one to decide when to stop, one to judge the outcome.

import tempfile
from typing import Any

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import otflow as of

pictures, labels = load_digits(return_X_y=True)
X, y = torch.as_tensor(pictures / 16), torch.as_tensor(labels)
order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
learn, choose, judge = order[:600], order[600:1200], order[1200:]

network = of.meanfield.TwoLayer("relu", outputs=10)


def risk(part, **options):
    """Return the cross-entropy over a part of the data."""
    return of.meanfield.Risk(network, X[part], y[part], loss="cross-entropy", **options)


generator = torch.Generator().manual_seed(1)
noise = torch.randn(200, 10 + 64 + 1, dtype=torch.float64, generator=generator)
neurons = of.Particles(0.5 * noise)

# %%
# Batches and patience
# --------------------
# :class:`~otflow.schemes.Minibatch` gives each step a fresh batch of 64 pictures. The
# loss on the second part is recorded every 50 steps. ``Patience`` stops the flow after
# six rows without improvement, and keeps the best measure, not the last.

F = risk(learn, batch_size=64)
scheme = of.schemes.Minibatch(of.ExplicitEuler())
early = of.callbacks.Patience("validation", patience=6)
options: dict[str, Any] = {
    "dt": 1.0,
    "every": 50,
    "record": {"validation": risk(choose)},
}
run = of.flow(F, neurons, scheme, steps=2000, generator=0, on_step=[early], **options)
print(run.message)

fig, (ax, close) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
ax.semilogy(run.times, run.records["energy"], "o-", ms=4, label="seen in training")
ax.semilogy(run.times, run.records["validation"], "C1s-", ms=4, label="set aside")
close.plot(run.times[3:], run.records["validation"][3:], "C1s-", ms=4)
close.set_title("set aside, from time 150 on")
assert early.best_time is not None
for panel in (ax, close):
    panel.axvline(early.best_time, color="0.5", ls=":", label="best")
    panel.set(xlabel="time", ylabel="cross-entropy")
ax.legend()
plt.show()

# %%
# Checkpoints
# -----------
# A flow writes itself into a directory every 100 steps. Suppose that it ends after
# 200. ``of.load`` returns the run so far, with the state of the random numbers. The
# flow that resumes it draws the batches that the first flow would have drawn.

with tempfile.TemporaryDirectory() as folder:
    place = f"{folder}/digits"
    of.flow(
        F, neurons, scheme, steps=200, generator=0,
        checkpoint=place, checkpoint_every=100, **options,
    )  # fmt: skip
    half = of.load(place)
    resumed = of.flow(F, half.final, scheme, steps=200, resume=half, **options)
whole = of.flow(F, neurons, scheme, steps=400, generator=0, **options)
print(f"{half}\n{resumed}")

# %%
# The judge
# ---------
# The third part had no say in anything.

assert early.best_measure is not None
guesses = network(early.best_measure, X[judge]).argmax(1)
right = (guesses == y[judge]).double().mean()
print(f"{100 * right:.1f} % of the digits are read right")

missed = judge[guesses != y[judge]][:8]
wrong = guesses[guesses != y[judge]][:8]
fig, axes = plt.subplots(1, 8, figsize=(9, 1.7), layout="constrained")
for ax, k, guess in zip(axes, missed, wrong, strict=False):
    ax.imshow(X[k].reshape(8, 8).numpy(), cmap="gray_r")
    ax.set_title(f"{int(y[k])}, read {int(guess)}", fontsize=9)
    ax.axis("off")
plt.show()

# %%
# What must hold
# --------------

validation = run.records["validation"]
assert run.status == "stopped"
assert early.best_value == float(validation.min()) < float(validation[-1])
assert torch.equal(resumed.final.points, whole.final.points)  # to the last bit
assert right > 0.93
