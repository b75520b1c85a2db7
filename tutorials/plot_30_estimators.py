r"""
A mean-field network as a scikit-learn estimator
================================================

``otflow.estimators`` holds a regressor and a classifier with the interface of
scikit-learn. Behind ``fit`` stands a flow: the measure :math:`\mu` of the neurons of

.. math:: f_\mu(x) = \int a\,\varphi(w\cdot x + b)\,d\mu(a, w, b)

moves downhill in the risk of the data :cite:p:`mei2018mean,chizat2018global`. The
estimators need the extra ``estimators``.
"""

# %%
# Fit, predict, score
# -------------------
# The classifier works in a pipeline, in a grid search, in cross-validation. It scales
# its inputs by itself. With ``early_stopping`` a part of the data is held out, and the
# measure of the best epoch is kept.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV, train_test_split

import otflow as of
from otflow.estimators import MeanFieldClassifier, MeanFieldRegressor

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(X, y, stratify=y, random_state=0)
digits = MeanFieldClassifier(n_neurons=200, early_stopping=True, random_state=0)
digits.fit(X, y)
score = digits.score(X_test, y_test)
print(f"{digits.n_iter_} epochs, {score:.1%} of the test digits")

# %%
# The measure
# -----------
# ``measure_`` is a :class:`~otflow.Particles` object, and ``network_`` a
# :class:`~otflow.meanfield.TwoLayer`: all of otflow applies to them. A row of the
# points is (a, w, b), with ten outer weights a, one for each digit, and w in the units
# of the scaled pixels.

neurons = digits.measure_
outer, inner = digits.network_.split(neurons.points)
assert isinstance(neurons, of.Particles)
order = outer.abs().sum(1).argsort(descending=True)[:6]

fig, axes = plt.subplots(1, 6, figsize=(8, 1.7), layout="constrained")
for ax, k in zip(axes, order, strict=True):
    ax.imshow(inner[k, :64].reshape(8, 8).numpy(), cmap="RdBu", vmin=-4, vmax=4)
    ax.set_title(f"for {int(outer[k].argmax())}")
    ax.axis("off")
plt.show()

# %%
# One word for the scheme
# -----------------------
# ``scheme`` says how the neurons move; a scheme of otflow may be given in its place.
# Implicit steps end at kinks, so here the activation is smooth. Diabetes is nearly
# linear, and 331 samples are few: the lower the loss, the worse the test. The noise and
# the penalty keep the networks simple. Forward-backward steps make weights exactly 0.

schemes = {
    "euler": {},
    "jko": {"tol": 1e-2, "n_iter_no_change": 2},
    "langevin": {"temperature": 1e-3, "ridge": 1e-2},
    "birth-death": {},
    "forward-backward": {"penalty": 3e-2},
}
data = load_diabetes(return_X_y=True)
X, X_test, y, y_test = train_test_split(*data, random_state=0)
fitted = {}
for scheme, options in schemes.items():
    model = MeanFieldRegressor(100, activation="tanh", tol=1e-3, random_state=0)
    fitted[scheme] = model.set_params(scheme=scheme, **options).fit(X, y)
    zeros = float((model.measure_.points == 0).double().mean())
    print(
        f"{scheme:17} {model.n_iter_:4} epochs, loss {model.loss_:.3f}, "
        f"test R2 {model.score(X_test, y_test):.2f}, zeros {zeros:.0%}"
    )

# %%
# The history
# -----------
# ``history_`` has one number for each epoch: the mean objective of its steps, the time
# of the flow that it took, the seconds. An implicit step goes as far as many explicit
# ones.

fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
for scheme, model in fitted.items():
    time = np.cumsum(model.history_["time"])
    ax.loglog(time, model.history_["loss"], "o-", ms=3, label=scheme)
ax.set(xlabel="time of the flow", ylabel="objective, mean of an epoch")
ax.legend()
plt.show()

# %%
# A grid search chooses the penalty, as it does for every estimator.

search = GridSearchCV(fitted["forward-backward"], {"penalty": [1e-2, 3e-2, 1e-1]}, cv=3)
found, linear = search.fit(X, y).score(X_test, y_test), RidgeCV().fit(X, y)
print(
    f"penalty {search.best_params_['penalty']}: R2 {found:.2f}, "
    f"linear {linear.score(X_test, y_test):.2f}"
)

# %%
# Data that come in parts
# -----------------------
# ``partial_fit`` makes one epoch on the data that it is given. The first call names all
# labels.

images, labels = load_digits(return_X_y=True)
online = MeanFieldClassifier(n_neurons=200, random_state=0)
for part in np.array_split(np.random.default_rng(0).permutation(len(labels)), 6):
    online.partial_fit(images[part], labels[part], classes=np.arange(10))

# %%
# What must hold
# --------------

sparse = fitted["forward-backward"]
assert score > 0.95
assert sparse.measure_.points.eq(0).double().mean() > 0.5
assert found > fitted["euler"].score(X_test, y_test)
assert found > linear.score(X_test, y_test) - 0.05
assert online.score(images, labels) > 0.9
