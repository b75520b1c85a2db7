"""Time otflow's estimators beside the networks of scikit-learn, in one process.

Run ``python -m benchmarks.estimators``. The first table has the scores on data that
were not fitted, the second the time to the same training loss at a large width. Both
packages get the same data, of the same dtype; for the second table in float32.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    make_classification,
    make_friedman1,
)
from sklearn.metrics import log_loss
from sklearn.model_selection import ShuffleSplit, cross_val_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from otflow.estimators import MeanFieldClassifier, MeanFieldRegressor

LOSSES = (0.3, 0.1, 0.03, 0.01)
SPLITS = 5


def data_sets() -> dict[str, tuple[Any, bool, int]]:
    """Return (inputs, targets), whether these are labels, and the number of splits."""
    many = {"n_samples": 20_000, "random_state": 0}
    labels = make_classification(n_features=30, n_informative=15, n_classes=4, **many)
    return {
        "digits": (load_digits(return_X_y=True), True, SPLITS),
        "breast cancer": (load_breast_cancer(return_X_y=True), True, SPLITS),
        "diabetes": (load_diabetes(return_X_y=True), False, SPLITS),
        "4 classes, n = 20,000": (labels, True, 1),
        "Friedman, n = 20,000": (make_friedman1(noise=1.0, **many), False, 1),
    }


def models(width: int, labels: bool) -> dict[str, Any]:
    """Return the estimators of one width by their names."""
    scaler = StandardScaler()
    if labels:
        return {
            "otflow": MeanFieldClassifier(width, random_state=0),
            "MLP": make_pipeline(
                StandardScaler(), MLPClassifier(width, random_state=0)
            ),
        }
    mlp = MLPRegressor(hidden_layer_sizes=width, random_state=0)
    scaled = TransformedTargetRegressor(mlp, transformer=StandardScaler())
    return {
        "otflow": MeanFieldRegressor(width, random_state=0),
        "MLP": make_pipeline(scaler, mlp),
        "MLP, scaled targets": make_pipeline(scaler, scaled),
    }


def scores(name: str, width: int) -> dict[str, tuple[float, float]]:
    """Return the mean score on held-out data, and the seconds of a fit."""
    (X, y), labels, splits = data_sets()[name]
    found = {}
    for model, estimator in models(width, labels).items():
        cv = ShuffleSplit(splits, test_size=0.2, random_state=0)
        began = time.perf_counter()
        score = cross_val_score(estimator, X, y, cv=cv).mean()
        found[model] = (float(score), (time.perf_counter() - began) / splits)
    return found


# ---- time to a loss ------------------------------------------------------------------

Curve = list[tuple[float, float]]


def by_epochs(
    step: Callable[[], Any], loss: Callable[[], float], least: float
) -> Curve:
    """Return (seconds, loss) after each epoch; the losses take no time."""
    curve, spent = [], 0.0
    for _ in range(300):
        began = time.perf_counter()
        step()
        spent += time.perf_counter() - began
        curve.append((spent, loss()))
        if curve[-1][1] <= least:
            break
    return curve


class Watched(MLPClassifier):
    """The network of scikit-learn, which notes the losses that its lbfgs evaluates."""

    def _loss_grad_lbfgs(self, *args: Any, **options: Any) -> Any:
        found = super()._loss_grad_lbfgs(*args, **options)
        self.curve.append((time.perf_counter() - self.began, float(found[0])))
        return found


def curves(width: int, X: Any, y: Any) -> Iterator[tuple[str, Curve]]:
    """Yield the training losses over time: otflow's schemes, Adam, lbfgs."""
    classes, least = np.unique(y), LOSSES[-1]
    for scheme in ("euler", "jko"):
        ours = MeanFieldClassifier(width, scheme=scheme, random_state=0)
        yield (
            f"otflow, {scheme}",
            by_epochs(
                lambda m=ours: m.partial_fit(X, y, classes=classes),
                lambda m=ours: log_loss(y, m.predict_proba(X)),
                least,
            ),
        )
    adam = MLPClassifier(width, alpha=0.0, random_state=0)
    yield (
        "Adam",
        by_epochs(
            lambda: adam.partial_fit(X, y, classes=classes),
            lambda: log_loss(y, adam.predict_proba(X)),
            least,
        ),
    )
    lbfgs = Watched(width, solver="lbfgs", alpha=0.0, random_state=0, max_iter=100)
    lbfgs.curve, lbfgs.began = [], time.perf_counter()
    lbfgs.fit(X, y)
    yield "lbfgs", lbfgs.curve


def seconds_to(curve: Curve, loss: float) -> float:
    """Return the first time at which a curve is at most at a loss; inf if never."""
    return min((t for t, value in curve if value <= loss), default=float("inf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=256, help="of the first table")
    parser.add_argument("--large", type=int, default=4096, help="of the second table")
    parser.add_argument("--times", action="store_true", help="the second table alone")
    options = parser.parse_args()
    # What does not converge in 200 epochs is compared as it is.
    warnings.simplefilter("ignore")
    print(
        f"torch {torch.__version__}, scikit-learn {sklearn.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    if not options.times:
        print(f"\nScore and seconds of a fit, width {options.width}")
        for name in data_sets():
            print(f"  {name}")
            for model, (score, spent) in scores(name, options.width).items():
                print(f"    {model:20} {score:8.4f} {spent:8.2f} s")
    X, y = load_digits(return_X_y=True)
    X = StandardScaler().fit_transform(X).astype(np.float32)
    found = dict(curves(options.large, X, y))
    print(f"\nSeconds to a training loss, digits, width {options.large}, float32")
    print("  loss" + "".join(f"{name:>16}" for name in found))
    for loss in LOSSES:
        times = [seconds_to(curve, loss) for curve in found.values()]
        print(f"  {loss:4g}" + "".join(f"{t:16.2f}" for t in times))
    for name in list(found)[:2]:
        for loss in LOSSES:
            own = seconds_to(found[name], loss)
            ratios = {o: own / seconds_to(found[o], loss) for o in ("Adam", "lbfgs")}
            shown = ", ".join(f"{r:.2f} of {other}" for other, r in ratios.items())
            print(f"  {name} to {loss:g}: {shown}")


if __name__ == "__main__":
    main()
