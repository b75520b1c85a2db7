"""The checks of scikit-learn, all of them."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_estimator

from otflow.errors import NotConvergedWarning
from otflow.estimators import MeanFieldClassifier, MeanFieldRegressor
from otflow.estimators.recipes import SCHEMES

ESTIMATORS = [MeanFieldRegressor, MeanFieldClassifier]
# This check needs an environment variable that is set before SciPy is imported.
ELSEWHERE = "check_array_api_input"


def failures(estimator) -> tuple[int, dict[str, str]]:
    """Return the number of checks, and what failed or was left out."""
    with warnings.catch_warnings():
        # Many checks fit a few samples within few epochs.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Proximal steps end at the kinks of relu, and say so.
        warnings.simplefilter("ignore", NotConvergedWarning)
        results = check_estimator(estimator, on_fail=None, on_skip=None)
    found = {
        row["check_name"]: f"{row['status']}: {row['exception']!r}"
        for row in results
        if row["status"] != "passed"
    }
    return len(results), found


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_all_checks_of_scikit_learn_pass(kind, scheme):
    # Proximal steps among the kinks of relu follow the last bit of the data: weights
    # and repetitions, which agree to 1e-15, are 1e-4 apart after 20 of them.
    smooth = {"activation": "tanh", "max_iter": 60} if scheme == "jko" else {}
    count, found = failures(kind(n_neurons=64, scheme=scheme, **smooth))
    assert count >= 50
    left_out = found.pop(ELSEWHERE, "skipped")
    assert left_out.startswith("skipped")
    assert not found


def test_a_false_estimator_fails_the_checks():
    class Forgetful(MeanFieldRegressor):
        def predict(self, X):
            return super().predict(X)[::-1] + 1

    assert failures(Forgetful(n_neurons=8, max_iter=2))[1].keys() - {ELSEWHERE}


@pytest.mark.slow
def test_without_scikit_learn_the_import_names_the_extra():
    program = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import otflow\n"
        "try:\n    import otflow.estimators\n"
        "except ImportError as error:\n    print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert "pip install 'otflow[estimators]'" in run.stdout
