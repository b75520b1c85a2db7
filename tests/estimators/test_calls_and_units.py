"""Estimators: calls that follow calls, calls that fail, and data of every size."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons
from sklearn.model_selection import train_test_split

import otflow as of
from otflow.errors import Diverged
from otflow.estimators import MeanFieldClassifier, MeanFieldRegressor
from otflow.estimators.recipes import SCHEMES
from otflow.schemes import (
    Adam,
    Adaptive,
    ForwardBackward,
    Minibatch,
    Mobility,
    Momentum,
    UnderdampedLangevin,
    chain,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::otflow.errors.NotConvergedWarning"),
]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 3))
Y = np.sin(X[:, 0]) + X[:, 1] ** 2
LABELS = (X[:, 0] > 1.2).astype(int)
FEW = {"n_neurons": 12, "max_iter": 3, "random_state": 0}


def regressor(**options):
    return MeanFieldRegressor(**FEW | options)


def classifier(**options):
    return MeanFieldClassifier(**FEW | options)


# ---- schemes of one's own ------------------------------------------------------------


@pytest.mark.parametrize("batch", [10, 90])
@pytest.mark.parametrize(
    "scheme",
    [
        Momentum(),
        Momentum(1.0, nesterov=False),
        Adam(),
        Mobility(Momentum(1.0), [1.0] * 5),
        Adaptive(of.ExplicitEuler(), tolerance=1e-2),
        Minibatch(of.ExplicitEuler()),
        chain(of.ExplicitEuler(), of.BirthDeath(1.0)),
        of.Langevin(),
        UnderdampedLangevin(1.0),
        ForwardBackward(),
    ],
    ids=repr,
)
def test_every_scheme_tells_a_history(scheme, batch):
    model = regressor(scheme=scheme, batch_size=batch).fit(X, Y)
    losses = model.history_["loss"]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    if batch == 90 and losses[-1] != model.loss_:  # of a step, before the step
        again = regressor(scheme=scheme, batch_size=90, max_iter=2).fit(X, Y)
        assert losses[-1] == again.loss_


def test_a_scheme_of_ones_own_has_the_noise_and_the_penalty_of_its_name():
    for name, scheme in (("langevin", of.Langevin()), ("forward-backward", None)):
        options = {"dt": 0.05, "temperature": 0.1, "penalty": 0.1}
        one = regressor(scheme=name, **options).fit(X, Y)
        other = regressor(scheme=scheme or ForwardBackward(), **options).fit(X, Y)
        assert torch.equal(one.measure_.points, other.measure_.points)
    still = regressor(scheme="euler", **options).fit(X, Y)
    assert not torch.equal(still.measure_.points, other.measure_.points)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_numbers_of_numpy_are_those_of_python(scheme):
    # As those of a grid, np.logspace(-3, 0, 4).
    numbers = {"dt": 0.05, "ridge": 0.01, "temperature": 0.1, "penalty": 0.1}
    numbers |= {"birth_rate": 0.5, "outer_scale": 2.0, "tol": 1e-3}
    counts = {"n_neurons": 8, "max_iter": 2, "batch_size": 45, "n_iter_no_change": 5}
    one = regressor(scheme=scheme, **numbers, **counts).fit(X, Y)
    arrays = {name: np.float64(value) for name, value in numbers.items()}
    arrays |= {name: np.int64(value) for name, value in counts.items()}
    other = regressor(scheme=scheme, **arrays).fit(X, Y).partial_fit(X, Y)
    one.partial_fit(X, Y)
    assert torch.equal(one.measure_.points, other.measure_.points)


# ---- calls that follow calls ---------------------------------------------------------


@pytest.mark.parametrize("way", ["fit", "partial_fit"])
def test_a_new_step_is_taken(way):
    model = regressor(warm_start=True).fit(X, Y)
    before = model.measure_.points
    getattr(model.set_params(dt=1e-9), way)(X, Y)
    assert float((model.measure_.points - before).abs().max()) < 1e-6
    assert max(model.history_["time"][3:]) < 1e-6


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "euler"])
def test_a_new_scheme_finds_its_own_step(scheme):
    model = regressor(warm_start=True).fit(X, Y).set_params(scheme=scheme).fit(X, Y)
    fresh = regressor(scheme=scheme).fit(X, Y)
    longest = max(fresh.history_["time"])
    assert 0.05 * longest < max(model.history_["time"][3:]) < 20 * longest


@pytest.mark.parametrize("scheme", ["adam", Momentum(1.0), Mobility(Adam(), [1.0] * 5)])
def test_momenta_go_on_from_call_to_call(scheme):
    # Full batches: the same steps in one call or in several.
    options = {"scheme": scheme, "dt": 0.05, "batch_size": 90, "tol": 0.0}
    whole = regressor(max_iter=4, **options).fit(X, Y)
    model = regressor(max_iter=2, warm_start=True, **options).fit(X, Y)
    model = pickle.loads(pickle.dumps(model)).partial_fit(X, Y).partial_fit(X, Y)
    gap = (model.measure_.points - whole.measure_.points).abs().max()
    assert float(gap) < 1e-12
    model.set_params(scheme=Momentum(2.0)).partial_fit(X, Y)
    assert model.n_iter_ == 5  # the state of another scheme is left


def test_a_pickle_goes_on_with_the_step_at_hand():
    model = regressor(scheme=of.ExplicitEuler()).partial_fit(X, Y)
    copy = pickle.loads(pickle.dumps(model))
    for one in (model, copy):
        one.partial_fit(X, Y)
    assert torch.equal(model.measure_.points, copy.measure_.points)
    assert model.history_["time"] == copy.history_["time"]


# ---- calls that fail -----------------------------------------------------------------


@pytest.mark.parametrize("way", ["fit", "partial_fit"])
def test_a_call_that_fails_leaves_the_estimator_as_it_was(way):
    model = regressor(batch_size=30).fit(X, Y)
    kept = pickle.dumps([model.predict(X), model.history_, model.n_iter_])
    with pytest.raises(Diverged):
        getattr(model.set_params(dt=1e8), way)(5 * X + 3, 10 * Y + 3)
    assert pickle.dumps([model.predict(X), model.history_, model.n_iter_]) == kept
    sorter = classifier().fit(X, LABELS)
    with pytest.raises(ValueError, match="n_neurons"):
        sorter.set_params(n_neurons=-1).fit(X[:, :2], np.array(["no", "yes"])[LABELS])
    assert set(sorter.predict(X)) <= {0, 1}
    fresh = regressor()
    with pytest.raises(ValueError, match="NaN"):
        getattr(fresh, way)(X, np.full(90, np.nan))
    assert vars(fresh) == vars(regressor())


# ---- data of every size --------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e30, 1e200])
def test_the_size_of_the_data_does_not_matter(size):
    plain = regressor().fit(X, Y)
    inputs = regressor().fit(size * X, Y)
    assert np.abs(inputs.predict(size * X) - plain.predict(X)).max() < 1e-9
    targets = regressor().fit(X, size * Y)
    assert np.abs(targets.predict(X) / size - plain.predict(X)).max() < 1e-9


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-300, 1e-50, 1e50, 1e307])
def test_the_size_of_the_weights_does_not_matter(size, dtype):
    weights = RNG.uniform(0.5, 2.0, 90)
    for model, y in ((regressor, Y), (classifier, LABELS)):
        plain = model().fit(X.astype(dtype), y, weights)
        other = model().fit(X.astype(dtype), y, size * weights)
        gap = (plain.measure_.points - other.measure_.points).abs().max()
        assert float(gap) < 1e3 * np.finfo(dtype).eps


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_column_of_targets_is_one_target_to_the_bit(scheme):
    weights = RNG.uniform(0.5, 2.0, 90)
    flat = regressor(scheme=scheme).fit(X, Y, weights)
    column = regressor(scheme=scheme).fit(X, Y[:, None], weights)
    assert column.predict(X).shape == (90, 1)
    assert np.array_equal(column.predict(X)[:, 0], flat.predict(X))


def test_targets_are_centred_before_they_are_rounded():
    single, shift = X.astype(np.float32), 2.0**24
    plain = regressor().fit(single, Y)
    other = regressor().fit(single, Y + shift)
    gap = (plain.measure_.points - other.measure_.points).abs().max()
    assert float(gap) < 1e-4


# ---- classes -------------------------------------------------------------------------


def test_a_class_without_weight_is_as_if_it_had_no_samples():
    three = np.arange(90) % 3
    one = classifier(class_weight={0: 1.0, 1: 2.0, 2: 0.0}).partial_fit(X, three)
    kept = three < 2
    other = classifier(class_weight={0: 1.0, 1: 2.0, 2: 0.0})
    other.partial_fit(X[kept], three[kept], classes=[0, 1, 2])
    assert torch.equal(one.measure_.points, other.measure_.points)


def test_both_parts_of_early_stopping_hold_each_class_in_its_share(monkeypatch):
    parts = []

    def watched(*data, **options):
        parts.append(train_test_split(*data, **options))
        return parts[-1]

    monkeypatch.setattr("otflow.estimators.base.train_test_split", watched)
    x, y = make_moons(200, random_state=0)
    x, y = np.concatenate([x[y == 0], x[y == 1][:10]]), np.repeat([0, 1], [100, 10])
    for seed in range(8):
        classifier(early_stopping=True, random_state=seed).fit(x, y)
        kept, held_out = parts[-1][2:4]
        assert np.unique(kept, return_counts=True)[1].tolist() == [90, 9]
        assert np.unique(held_out, return_counts=True)[1].tolist() == [10, 1]
