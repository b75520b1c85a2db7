"""Estimators of scikit-learn: what they learn, and by which flow."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, make_moons
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

import otflow as of
from otflow.estimators import MeanFieldClassifier, MeanFieldRegressor
from otflow.estimators.recipes import SCHEMES

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    # Proximal steps end at the kinks of relu, and say so.
    pytest.mark.filterwarnings("ignore::otflow.errors.NotConvergedWarning"),
]


def waves(n=300, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1, 1, (n, 2))
    return X, np.sin(3 * X[:, 0]) + X[:, 1] ** 2


def regressor(**options):
    options = {"n_neurons": 64, "max_iter": 40, "random_state": 0} | options
    return MeanFieldRegressor(**options)


def classifier(**options):
    options = {"n_neurons": 64, "max_iter": 40, "random_state": 0} | options
    return MeanFieldClassifier(**options)


# ---- what is learnt ------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [*SCHEMES, of.ExplicitEuler(backtracking=True)])
def test_every_scheme_learns_a_function_and_labels(scheme):
    X, y = waves()
    test = waves(seed=1)
    # A proximal step goes as far as many others.
    epochs = 8 if scheme == "jko" else 40
    model = regressor(scheme=scheme, max_iter=epochs).fit(X, y)
    assert model.score(*test) > 0.9
    X, y = make_moons(300, noise=0.1, random_state=0)
    model = classifier(scheme=scheme, max_iter=epochs).fit(X, y)
    assert model.score(X, y) > 0.95


def test_the_flow_is_that_of_the_library():
    # Full batches and a given step: the measure of a flow that is written by hand.
    X, y = waves(50)
    model = regressor(dt=0.5, batch_size=50, tol=0.0, max_iter=7, standardize=False)
    model.fit(X, y)
    network = of.meanfield.TwoLayer("relu")
    # The start is normal, and its outer weights are three times as large.
    seed = int(np.random.RandomState(0).randint(2**31 - 1, size=3)[0])
    theta = torch.randn(
        64, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    theta[:, 0] *= 3.0
    start = of.Particles(theta)
    risk = of.meanfield.Risk(network, X, y)
    run = of.flow(risk, start, of.ExplicitEuler(), dt=0.5, steps=7)
    assert torch.equal(run.final.points, model.measure_.points)
    assert model.loss_ == float(run.records["energy"][-1])
    assert model.history_["loss"] == run.records["energy"][:-1].tolist()
    assert np.allclose(model.predict(X), network(run.final, torch.tensor(X)).numpy())


def test_several_targets_are_one_network():
    X, y = waves()
    both = np.stack([y, 100 - 3 * y], axis=1)
    model = regressor().fit(X, both)
    assert model.predict(X).shape == both.shape
    assert model.measure_.dim == 2 + 2 + 1
    assert model.score(X, both) > 0.9


def test_the_units_of_data_do_not_matter():
    X, y = waves()
    one = regressor().fit(X, y)
    other = regressor().fit(1e4 * X - 1e3, 1e-3 * y + 7)
    expected = 1e-3 * one.predict(X) + 7
    assert np.abs(other.predict(1e4 * X - 1e3) - expected).max() < 1e-6


@pytest.mark.parametrize("labels", [["no", "yes"], ["a", "b", "c"], [False, True]])
def test_probabilities_belong_to_the_labels(labels):
    rng = np.random.default_rng(0)
    index = rng.integers(len(labels), size=200)
    X = np.eye(len(labels))[index] + 0.1 * rng.normal(size=(200, len(labels)))
    model = classifier().fit(X, np.array(labels)[index])
    assert model.classes_.tolist() == labels
    proba = model.predict_proba(X)
    assert np.abs(proba.sum(axis=1) - 1).max() < 1e-12
    assert np.array_equal(model.classes_[proba.argmax(axis=1)], model.predict(X))
    assert np.allclose(np.log(proba), model.predict_log_proba(X))
    assert model.score(X, np.array(labels)[index]) > 0.95


def test_both_forms_of_two_classes_agree_with_their_losses():
    X, y = make_moons(200, noise=0.2, random_state=0)
    model = classifier(batch_size=200).fit(X, y)
    log_p = model.predict_log_proba(X)[np.arange(200), y]
    assert abs(-log_p.mean() - model.loss_) < 1e-12
    X, y = load_digits(return_X_y=True)
    model = classifier(max_iter=3).fit(X, y)
    log_p = model.predict_log_proba(X)[np.arange(len(y)), y]
    assert abs(-log_p.mean() - model.loss_) < 1e-12


# ---- weights -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme", ["euler", "jko", "birth-death", "forward-backward", "adam"]
)
def test_a_weight_is_a_repetition(scheme):
    X, y = waves(30)
    weights = np.arange(30) % 3
    options = {"scheme": scheme, "batch_size": 1000, "dt": 0.1, "max_iter": 5}
    one = regressor(**options).fit(X, y, sample_weight=weights)
    rows = np.repeat(np.arange(30), weights)
    other = regressor(**options).fit(X[rows], y[rows])
    assert np.abs(one.predict(X) - other.predict(X)).max() < 1e-6


def test_weights_of_classes_multiply_those_of_samples():
    X, y = make_moons(100, noise=0.3, random_state=0)
    options = {"batch_size": 100, "dt": 0.1, "max_iter": 5}
    one = classifier(class_weight={0: 1.0, 1: 5.0}, **options).fit(X, y)
    other = classifier(**options).fit(X, y, sample_weight=np.where(y == 1, 5.0, 1.0))
    assert np.abs(one.decision_function(X) - other.decision_function(X)).max() < 1e-12
    plain = classifier(**options).fit(X, y)
    assert plain.decision_function(X).mean() < one.decision_function(X).mean()


def test_balanced_weights_are_those_of_the_definition():
    X, y = make_moons(100, noise=0.3, random_state=0)
    X, y = X[:75], y[:75]
    counts = np.bincount(y)
    assert counts[0] != counts[1]
    named = dict(enumerate(len(y) / (2 * counts)))
    options = {"batch_size": 100, "dt": 0.1, "max_iter": 5}
    one = classifier(class_weight="balanced", **options).fit(X, y)
    other = classifier(class_weight=named, **options).fit(X, y)
    assert np.abs(one.decision_function(X) - other.decision_function(X)).max() < 1e-10


# ---- going on ------------------------------------------------------------------------


def test_partial_fit_goes_on_and_learns():
    X, y = waves(600)
    model = regressor()
    losses = []
    for _ in range(25):
        for part in np.array_split(np.arange(600), 3):
            model.partial_fit(X[part], y[part])
        losses.append(model.loss_)
    assert model.n_iter_ == 75 == len(model.history_["loss"])
    assert model.score(X, y) > 0.9
    assert losses[-1] < 0.2 * losses[0]


def test_partial_fit_takes_parts_without_all_classes():
    X, y = load_digits(return_X_y=True)
    order = np.argsort(y, kind="stable")
    model = classifier()
    model.partial_fit(X[order[:200]], y[order[:200]], classes=np.arange(10))
    assert model.predict_proba(X).shape == (len(X), 10)
    for _ in range(5):
        model.partial_fit(X, y)
    assert model.score(X, y) > 0.95


def test_a_warm_start_goes_on():
    X, y = waves()
    model = regressor(max_iter=5, warm_start=True).fit(X, y)
    first = model.loss_
    model.fit(X, y)
    assert model.n_iter_ == 10
    assert model.loss_ < first
    model.set_params(warm_start=False).fit(X, y)
    assert model.n_iter_ == 5
    assert model.loss_ == first


def test_early_stopping_returns_the_best_epoch():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 20))
    y = X[:, 0] + 2 * rng.normal(size=80)
    options = {"early_stopping": True, "validation_fraction": 0.3, "tol": 0.0}
    model = regressor(max_iter=200, n_iter_no_change=15, **options).fit(X, y)
    losses = model.history_["validation_loss"]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 15 < 200
    again = regressor(max_iter=best + 1, n_iter_no_change=15, **options).fit(X, y)
    assert torch.equal(again.measure_.points, model.measure_.points)


def test_a_fit_that_goes_on_improving_says_so():
    X, y = waves()
    with pytest.warns(ConvergenceWarning, match="raise max_iter, or tol"):
        regressor(max_iter=4, n_iter_no_change=3, tol=1e-6).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regressor(max_iter=200, tol=1e-2).fit(X, y)


def test_a_fit_that_stands_still_is_not_said_to_improve():
    X, y = waves()
    still = {"dt": 1e-9, "batch_size": 300, "n_iter_no_change": 3}
    for epochs in (1, 3):
        with pytest.warns(ConvergenceWarning, match="do not tell .* raise max_iter"):
            regressor(max_iter=epochs, **still).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regressor(max_iter=4, **still).fit(X, y)
        regressor(max_iter=3, **still | {"n_iter_no_change": 2}).fit(X, y)


# ---- kept by others ------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [*SCHEMES, of.ExplicitEuler()])
def test_pickles_predict_and_go_on_alike(scheme):
    X, y = waves(100)
    model = regressor(scheme=scheme, max_iter=2, dt=0.1).fit(X, y)
    copy = pickle.loads(pickle.dumps(model))
    assert np.array_equal(copy.predict(X), model.predict(X))
    model.partial_fit(X, y)
    copy.partial_fit(X, y)
    assert np.array_equal(copy.predict(X), model.predict(X))


def test_the_same_integer_gives_the_same_estimator():
    X, y = waves()
    first, second = (regressor(scheme="langevin").fit(X, y) for _ in range(2))
    assert torch.equal(first.measure_.points, second.measure_.points)
    other = regressor(scheme="langevin", random_state=1).fit(X, y)
    assert not torch.equal(first.measure_.points, other.measure_.points)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_precision_is_that_of_the_data(dtype):
    X, y = waves()
    model = regressor().fit(X.astype(dtype), y)
    assert model.measure_.points.numpy().dtype == dtype
    assert model.predict(X.astype(dtype)).dtype == dtype
    assert model.score(X, y) > 0.9


def test_names_of_features_are_kept():
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    model = classifier(max_iter=3).fit(X, y)
    assert model.feature_names_in_.tolist() == X.columns.tolist()
    with pytest.raises(ValueError, match="feature names"):
        model.predict(X[X.columns[::-1]])


@pytest.mark.slow
def test_tools_of_scikit_learn_take_the_estimators():
    X, y = make_moons(120, noise=0.2, random_state=0)
    chain = make_pipeline(MinMaxScaler(), classifier(max_iter=150))
    assert cross_val_score(chain, X, y, cv=3).min() >= 0.8
    search = GridSearchCV(classifier(max_iter=10), {"scheme": ["euler", "jko"]}, cv=2)
    assert search.fit(X, y).best_params_["scheme"] in {"euler", "jko"}
    copy = clone(classifier(scheme=of.ExplicitEuler(), class_weight={0: 1.0, 1: 2.0}))
    assert copy.get_params()["class_weight"] == {0: 1.0, 1: 2.0}
    with pytest.raises(NotFittedError):
        copy.predict(X)


@pytest.mark.slow
def test_a_column_of_targets_is_fitted_as_its_numbers():
    X, y = waves(30)
    flat, column = regressor(scheme="jko"), regressor(scheme="jko")
    flat.fit(X, y)
    column.fit(X, y[:, None])
    assert column.predict(X).shape == (30, 1)
    assert np.array_equal(column.predict(X)[:, 0], flat.predict(X))
