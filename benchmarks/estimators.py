"""Time otflow's estimators beside the networks of scikit-learn, in one process.

Run ``python -m benchmarks.estimators``. The first table has the scores on data that
were not fitted, the others the time to the same training loss at a large width. Both
packages get the same data, of the same dtype; for the times in float32. Times are those
of the CPU, so that one thread on a busy machine is compared fairly.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator, Sequence
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

LOSSES = {
    "digits": (0.3, 0.1, 0.03, 0.01),
    "4 classes, n = 20,000": (0.6, 0.4, 0.3, 0.25),
}
SPLITS = 5
# CPU seconds after which a fit is given up.
MOST = 60.0


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
            "otflow, adam": MeanFieldClassifier(width, scheme="adam", random_state=0),
            "MLP": make_pipeline(
                StandardScaler(), MLPClassifier(width, random_state=0)
            ),
        }
    mlp = MLPRegressor(hidden_layer_sizes=width, random_state=0)
    scaled = TransformedTargetRegressor(mlp, transformer=StandardScaler())
    return {
        "otflow": MeanFieldRegressor(width, random_state=0),
        "otflow, adam": MeanFieldRegressor(width, scheme="adam", random_state=0),
        "MLP": make_pipeline(scaler, mlp),
        "MLP, scaled targets": make_pipeline(scaler, scaled),
    }


def scores(name: str, width: int) -> dict[str, tuple[float, float]]:
    """Return the mean score on held-out data, and the seconds of a fit."""
    (X, y), labels, splits = data_sets()[name]
    found = {}
    for model, estimator in models(width, labels).items():
        cv = ShuffleSplit(splits, test_size=0.2, random_state=0)
        began = time.process_time()
        score = cross_val_score(estimator, X, y, cv=cv).mean()
        found[model] = (float(score), (time.process_time() - began) / splits)
    return found


# ---- time to a loss ------------------------------------------------------------------

Curve = list[tuple[float, float]]


def by_epochs(model: Any, X: Any, y: Any, least: float) -> Curve:
    """Return (seconds, loss) after each epoch; to evaluate the loss takes no time."""
    curve, spent, classes = [], 0.0, np.unique(y)
    while spent < MOST:
        began = time.process_time()
        model.partial_fit(X, y, classes=classes)
        spent += time.process_time() - began
        curve.append((spent, log_loss(y, model.predict_proba(X))))
        if curve[-1][1] <= least:
            break
    return curve


class Watched(MLPClassifier):
    """The network of scikit-learn, which notes the losses that its lbfgs evaluates."""

    def _loss_grad_lbfgs(self, *args: Any, **options: Any) -> Any:
        found = super()._loss_grad_lbfgs(*args, **options)
        self.curve.append((time.process_time() - self.began, float(found[0])))
        return found


def curves(width: int, X: Any, y: Any, least: float) -> Iterator[tuple[str, Curve]]:
    """Yield the training losses over time: otflow's schemes, Adam, lbfgs."""
    models = {
        "otflow, euler": MeanFieldClassifier(width, random_state=0),
        # The steps are so long that each is nearly a minimisation.
        "otflow, jko, long": MeanFieldClassifier(
            width, scheme="jko", dt=1e5, random_state=0
        ),
        "otflow, adam": MeanFieldClassifier(width, scheme="adam", random_state=0),
        "Adam": MLPClassifier(width, alpha=0.0, random_state=0),
    }
    for name, model in models.items():
        yield name, by_epochs(model, X, y, least)
    lbfgs = Watched(width, solver="lbfgs", alpha=0.0, random_state=0, max_iter=50)
    lbfgs.curve, lbfgs.began = [], time.process_time()
    lbfgs.fit(X, y)
    yield "lbfgs", lbfgs.curve


def seconds_to(curve: Curve, loss: float) -> float:
    """Return the first time at which a curve is at most at a loss; inf if never."""
    return min((t for t, value in curve if value <= loss), default=float("inf"))


def report_times(name: str, width: int, losses: Sequence[float]) -> None:
    """Print the times to losses, and their ratios."""
    (X, y), _, _ = data_sets()[name]
    X = StandardScaler().fit_transform(X).astype(np.float32)
    found = dict(curves(width, X, y, losses[-1]))
    print(f"\nCPU seconds to a training loss, {name}, width {width}, float32")
    print("  loss" + "".join(f"{model:>20}" for model in found))
    for loss in losses:
        times = [seconds_to(curve, loss) for curve in found.values()]
        print(f"  {loss:4g}" + "".join(f"{t:20.2f}" for t in times))
    for model in list(found)[:3]:
        for loss in losses:
            own = seconds_to(found[model], loss)
            ratios = {o: own / seconds_to(found[o], loss) for o in ("Adam", "lbfgs")}
            shown = ", ".join(f"{r:.2f} of {other}" for other, r in ratios.items())
            print(f"  {model} to {loss:g}: {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=256, help="of the first table")
    parser.add_argument("--large", type=int, default=4096, help="of the other tables")
    parser.add_argument("--times", action="store_true", help="the times alone")
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
    for name, losses in LOSSES.items():
        report_times(name, options.large, losses)


if __name__ == "__main__":
    main()
