"""Cures of parameters and data that do not fit an estimator of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from otflow.errors import Diverged
from otflow.estimators import MeanFieldClassifier, MeanFieldRegressor
from tests.cures import Case, check_cures

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
Y = X[:, 0] - X[:, 1]
LABELS = (Y > 0).astype(int)
FEW = {"n_neurons": 8, "max_iter": 2, "random_state": 0}


def fit(x=X, y=Y, sample_weight=None, **options):
    return MeanFieldRegressor(**FEW | options).fit(x, y, sample_weight)


def sort(y=LABELS, sample_weight=None, first=None, **options):
    model = MeanFieldClassifier(**FEW | options)
    if first is not None:
        return model.partial_fit(X, y, first)
    return model.fit(X, y, sample_weight)


def fitted():
    return MeanFieldRegressor(warm_start=True, **FEW).fit(X, Y)


def go_on(first, second):
    model = MeanFieldRegressor(**FEW).partial_fit(X, first)
    return model.partial_fit(X, second)


def go_on_sorting(first, second, *, classes=None, again=None, **options):
    model = MeanFieldClassifier(**FEW | options)
    return model.partial_fit(X, first, classes=classes).partial_fit(X, second, again)


THREE = np.arange(60) % 3

CASES: dict[str, Case] = {
    "a scheme that is none": (
        ValueError,
        "scheme must be one of .*did you mean 'euler'",
        lambda: fit(scheme="eulre"),
        [lambda: fit(scheme="euler")],
    ),
    "a share that leaves nothing": (
        ValueError,
        r"validation_fraction must lie in \(0, 1\), got 1.0; take 0.1",
        lambda: fit(early_stopping=True, validation_fraction=1.0),
        [lambda: fit(early_stopping=True, validation_fraction=0.1)],
    ),
    "weights that are all zero": (
        ValueError,
        "all samples have the weight zero; give some of them a positive weight",
        lambda: sort(LABELS * 0, class_weight={0: 0.0, 1: 1.0}, first=[0, 1]),
        [lambda: sort(LABELS * 0, class_weight={0: 0.1, 1: 1.0}, first=[0, 1])],
    ),
    "targets that change their number": (
        ValueError,
        r"shape \('n',\) in the first call and has \('n', 2\) now; .* or call fit",
        lambda: go_on(Y, np.stack([Y, Y], axis=1)),
        [
            lambda: go_on(Y, 2 * Y),
            lambda: (
                MeanFieldRegressor(**FEW)
                .partial_fit(X, Y)
                .fit(X, np.stack([Y, Y], axis=1))
            ),
        ],
    ),
    "another number of neurons": (
        ValueError,
        (
            "n_neurons was 8 when the neurons were made and is 9 now; set it back, or "
            "fit new neurons by warm_start=False and fit"
        ),
        lambda: fitted().set_params(n_neurons=9).fit(X, Y),
        [
            lambda: fitted().set_params(n_neurons=8).fit(X, Y),
            lambda: fitted().set_params(n_neurons=9, warm_start=False).fit(X, Y),
        ],
    ),
    "targets beyond the precision of the inputs": (
        ValueError,
        "beyond float32, in which X is given; give X in float64, or y in other units",
        lambda: fit(X.astype(np.float32), 1e50 * Y),
        [lambda: fit(X, 1e50 * Y), lambda: fit(X.astype(np.float32), Y)],
    ),
    "a label that is new": (
        ValueError,
        r"none of the classes \[0, 1\]: \[2\]; name all classes",
        lambda: go_on_sorting(LABELS, THREE),
        [lambda: go_on_sorting(LABELS, THREE, classes=[0, 1, 2])],
    ),
    "classes that change": (
        ValueError,
        r"classes=\[0, 1, 2\] are not those of the first call.*leave classes out, or",
        lambda: go_on_sorting(LABELS, LABELS, again=[0, 1, 2]),
        [
            lambda: go_on_sorting(LABELS, LABELS),
            lambda: MeanFieldClassifier(**FEW).partial_fit(X, LABELS).fit(X, THREE),
        ],
    ),
    "one class": (
        ValueError,
        "at least 2 classes, and y holds the one class",
        lambda: sort(np.zeros(60)),
        [sort],
    ),
    "balance without a class": (
        ValueError,
        "needs samples of every class; give a dict",
        lambda: go_on_sorting(
            LABELS, LABELS, classes=[0, 1, 2], class_weight="balanced"
        ),
        [
            lambda: go_on_sorting(
                LABELS, LABELS, classes=[0, 1, 2], class_weight={0: 1.0, 1: 2.0}
            )
        ],
    ),
    "class weights that are negative": (
        ValueError,
        "class_weight must hold numbers >= 0, not all zero.*give positive weights",
        lambda: sort(class_weight={0: -1.0, 1: 1.0}),
        [lambda: sort(class_weight={0: 1.0, 1: 1.0})],
    ),
    "a step that is too long": (
        Diverged,
        r"in step \d+ with dt=1e\+30; give a smaller dt or dt='auto'",
        lambda: fit(dt=1e30, max_iter=20),
        [lambda: fit(dt=1e-2), fit],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_cure_works(case):
    check_cures(case)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"birth_rate": -1.0, "scheme": "birth-death"}, ValueError, "birth_rate"),
        ({"birth_rate": 0.0, "scheme": "birth-death"}, ValueError, "birth_rate"),
        ({"temperature": -1.0, "scheme": "langevin"}, ValueError, "temperature"),
        ({"penalty": -1.0, "scheme": "forward-backward"}, ValueError, "penalty"),
        ({"ridge": -1.0}, ValueError, "ridge"),
        ({"dt": 0.0}, ValueError, "dt"),
        ({"dt": "small"}, TypeError, "dt"),
        ({"tol": -1.0}, ValueError, "tol"),
        ({"n_neurons": 0}, ValueError, "n_neurons"),
        ({"max_iter": 1.5}, TypeError, "max_iter"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": "all"}, TypeError, "batch_size"),
        ({"n_iter_no_change": 0}, ValueError, "n_iter_no_change"),
        ({"outer_scale": 0.0}, ValueError, "outer_scale"),
        ({"standardize": 1}, TypeError, "standardize"),
        ({"early_stopping": "yes"}, TypeError, "early_stopping"),
        ({"warm_start": None}, TypeError, "warm_start"),
        ({"verbose": 2}, TypeError, "verbose"),
        ({"activation": "rleu"}, ValueError, "activation"),
    ],
)
def test_parameters_are_named_before_work(options, error, words):
    for start in (fit, sort):
        with pytest.raises(error, match=words):
            start(**options)
    model = MeanFieldRegressor(**FEW | options)
    # These are those of `fit` alone.
    of_fit = {"tol", "max_iter", "n_iter_no_change", "early_stopping", "warm_start"}
    if words not in of_fit:
        with pytest.raises(error, match=words):
            model.partial_fit(X, Y)


def test_data_that_change_their_features_are_told():
    model = fit()
    for call in (model.predict, lambda x: model.partial_fit(x, Y)):
        with pytest.raises(ValueError, match=r"2 features, but .* expecting 3"):
            call(X[:, :2])


def test_labels_of_the_wrong_kind_are_told():
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        sort(Y)
    with pytest.raises(ValueError, match="1d array"):
        sort(np.stack([LABELS, LABELS], axis=1))
    with pytest.raises(ValueError, match="could not convert string"):
        fit(y=np.array(["a"] * 60))


def test_negative_weights_are_told():
    weights = np.linspace(-1, 1, 60)
    for start in (fit, sort):
        with pytest.raises(ValueError, match="Negative values in data"):
            start(sample_weight=weights)
