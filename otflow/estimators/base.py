"""What the estimators share: data, the flow, and its continuation."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from otflow._validation import non_negative_int, positive, real, true_or_false
from otflow.estimators.epochs import Carried, Epochs, run_epochs
from otflow.estimators.losses import relative, risk_of
from otflow.estimators.recipes import Recipe, neurons
from otflow.estimators.scales import Scale
from otflow.meanfield import Risk, TwoLayer
from otflow.measures import Measure

__all__ = ["MeanFieldEstimator"]

Array = NDArray[Any]
# The least size of a batch by default. The largest is 256: where classes overlap,
# smaller batches let the search fit their noise.
FEW = 64


class MeanFieldEstimator(BaseEstimator):  # type: ignore[misc]
    """A two-layer network whose measure of neurons is fitted by a flow.

    A subclass states the targets and the loss.
    """

    measure_: Measure
    network_: TwoLayer
    history_: dict[str, list[float]]
    n_iter_: int
    loss_: float
    _paced: tuple[Any, Any]
    _kept: Any

    def __init__(
        self,
        n_neurons: int = 256,
        *,
        activation: Any = "relu",
        scheme: Any = "euler",
        dt: Any = "auto",
        max_iter: int = 200,
        batch_size: Any = "auto",
        ridge: float = 0.0,
        temperature: float = 1e-5,
        penalty: float = 1e-4,
        birth_rate: float = 1e-2,
        outer_scale: float = 3.0,
        standardize: bool = True,
        tol: float = 1e-4,
        n_iter_no_change: int = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.n_neurons = n_neurons
        self.activation = activation
        self.scheme = scheme
        self.dt = dt
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.ridge = ridge
        self.temperature = temperature
        self.penalty = penalty
        self.birth_rate = birth_rate
        self.outer_scale = outer_scale
        self.standardize = standardize
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    # ---- what a subclass states ------------------------------------------------------

    @abstractmethod
    def _checked(self, X: Any, y: Any, dtype: Any, first: bool) -> tuple[Array, Array]:
        """Return checked inputs and targets."""

    @abstractmethod
    def _encoded(
        self, y: Array, weights: Array, classes: Any, first: bool
    ) -> tuple[Array, Array]:
        """Return targets and weights for the loss; learn their kind if `first`.

        Targets that are numbers are in double precision.
        """

    @abstractmethod
    def _loss(self) -> tuple[str, int | None]:
        """Return the name of the loss, and the number of outputs of the network."""

    # ---- fitting ---------------------------------------------------------------------

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> None:
        epochs = non_negative_int(self.max_iter, "max_iter", minimum=1)
        wait = self.n_iter_no_change
        patience = non_negative_int(wait, "n_iter_no_change", minimum=1)
        tolerance = positive(self.tol, "tol", or_zero=True)
        warm = true_or_false(self.warm_start, "warm_start")
        first = not (warm and hasattr(self, "measure_"))
        with self._as_before_on_failure():
            self._rng = check_random_state(self.random_state)
            recipe = self._recipe()
            X, y, weights = self._data(X, y, sample_weight, None, first)
            held_out = None
            if true_or_false(self.early_stopping, "early_stopping"):
                X, y, weights, held_out = self._split(X, y, weights)
            watch = Epochs(tolerance, patience, held_out)
            self._advance(recipe, X, y, weights, first, epochs, watch)
        if not watch.stopped:
            msg = (
                f"the loss still fell by more than tol={tolerance:g} in the last "
                f"{patience} of max_iter={epochs} epochs; raise max_iter, or tol"
            )
            if epochs <= patience:  # the first epoch has none to be compared with
                msg = (
                    f"max_iter={epochs} epochs do not tell whether the loss still "
                    f"falls, which takes more than n_iter_no_change={patience}; raise "
                    f"max_iter, or lower n_iter_no_change"
                )
            warnings.warn(msg, ConvergenceWarning, stacklevel=3)

    def _partial_fit(self, X: Any, y: Any, classes: Any, sample_weight: Any) -> None:
        first = not hasattr(self, "measure_")
        with self._as_before_on_failure():
            recipe = self._recipe()
            if first:
                self._rng = check_random_state(self.random_state)
            X, y, weights = self._data(X, y, sample_weight, classes, first)
            self._advance(recipe, X, y, weights, first, 1, Epochs())

    @contextmanager
    def _as_before_on_failure(self) -> Iterator[None]:
        """Keep all attributes if a fit fails: new scales do not fit old neurons."""
        kept = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(kept)
            raise

    def _recipe(self) -> Recipe:
        return Recipe(
            self.scheme,
            self.dt,
            self.temperature,
            self.ridge,
            self.penalty,
            self.birth_rate,
        )

    def _data(
        self, X: Any, y: Any, sample_weight: Any, classes: Any, first: bool
    ) -> tuple[Array, Array, Array]:
        """Return scaled inputs, targets and weights; learn the scales if `first`."""
        standardize = true_or_false(self.standardize, "standardize")
        if not first:
            self._check_neurons()
        dtype = [np.float64, np.float32] if first else self._dtype()
        X, y = self._checked(X, y, dtype, first)
        weights = relative(
            _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
        )
        # A sample of weight zero is no sample, of the scales neither.
        kept = weights > 0
        X, y, weights = X[kept], y[kept], weights[kept]
        targets, weights = self._encoded(y, weights, classes, first)
        weights = relative(weights)
        kept = weights > 0
        X, targets, weights = X[kept], targets[kept], weights[kept]
        if targets.dtype.kind == "f":
            targets = targets.astype(X.dtype)
        if first:
            self._neurons = {"n_neurons": self.n_neurons, "activation": self.activation}
            self._inputs = Scale.identity(X.shape[1])
            if standardize:
                self._inputs = Scale.of(X, weights).to_unit_length(X)
            _, outputs = self._loss()
            self.network_ = TwoLayer(self.activation, outputs=outputs)
        return self._inputs.apply(X), targets, weights

    def _check_neurons(self) -> None:
        """Raise if the parameters are not those of the neurons at hand."""
        for name, before in self._neurons.items():
            if (now := getattr(self, name)) != before:
                msg = (
                    f"{name} was {before!r} when the neurons were made and is {now!r} "
                    f"now; set it back, or fit new neurons by warm_start=False and fit"
                )
                raise ValueError(msg)

    def _split(
        self, X: Array, y: Array, weights: Array
    ) -> tuple[Array, Array, Array, Risk]:
        """Return the data without a part, and the risk on that part."""
        share = real(self.validation_fraction, "validation_fraction")
        if not 0 < share < 1:
            msg = f"validation_fraction must lie in (0, 1), got {share}; take 0.1"
            raise ValueError(msg)
        classes = y if is_classifier(self) else None
        X, X_out, y, y_out, weights, weights_out = train_test_split(
            X, y, weights, test_size=share, random_state=self._rng, stratify=classes
        )
        loss, _ = self._loss()
        held_out = risk_of(self.network_, X_out, y_out, weights_out, loss, None)
        return X, y, weights, held_out

    def _advance(
        self,
        recipe: Recipe,
        X: Array,
        y: Array,
        weights: Array,
        first: bool,
        epochs: int,
        watch: Epochs,
    ) -> None:
        """Let the flow run for some epochs, and keep what it leaves behind."""
        seeds = [int(seed) for seed in self._rng.randint(2**31 - 1, size=3)]
        size = self._batch(len(X))
        batch = None if size == len(X) else size
        risk = risk_of(self.network_, X, y, weights, self._loss()[0], batch)
        F, steps = recipe.functional(risk), -(-len(X) // size)
        scheme = recipe.stepper(size < len(X))
        if first:
            self.history_, self.n_iter_ = {}, 0
            m, scale = self.network_.outputs or 1, self.outer_scale
            self.measure_ = neurons(self.n_neurons, m, X, scale, seeds[0])
        if first or self._paced != (self.scheme, self.dt):
            source = torch.Generator().manual_seed(seeds[1])
            self._dt, self._last = recipe.length(F, self.measure_, source), math.inf
            self._paced, self._kept = (self.scheme, self.dt), None
        self.history_ = {name: list(row) for name, row in self.history_.items()}
        watch.begin(
            self.history_, steps, self._last, lambda mu: float(scheme.energy(F, mu))
        )
        run = run_epochs(
            F,
            self.measure_,
            scheme if self._kept is None else Carried(scheme, self._kept),
            longest=self._dt,
            steps=steps * epochs,
            watch=watch,
            seed=seeds[2],
            progress=true_or_false(self.verbose, "verbose"),
            cure="a smaller dt" + ("" if self.dt == "auto" else " or dt='auto'"),
        )
        self.measure_ = run.final if watch.best is None else watch.best
        # Momenta at the end are not those of an epoch before.
        self._kept = None if watch.best is not None else scheme.state_dict(watch.state)
        self._last = watch.last
        self.n_iter_ += len(run.info) // steps
        self.loss_ = float(run.records["energy"][-1])

    def _batch(self, n: int) -> int:
        if isinstance(self.batch_size, str) and self.batch_size == "auto":
            few = n <= FEW or self.scheme == "jko"
            return n if few else max(FEW, min(256, n // 32))
        return min(n, non_negative_int(self.batch_size, "batch_size", minimum=1))

    # ---- use -------------------------------------------------------------------------

    def _values(self, X: Any) -> Array:
        """Return the outputs of the network, in the units of the loss."""
        check_is_fitted(self, "measure_")
        X = validate_data(self, X, dtype=self._dtype(), reset=False)
        inputs = torch.from_numpy(self._inputs.apply(X))
        with torch.no_grad():
            values: Array = self.network_(self.measure_, inputs).numpy()
        return values

    def _dtype(self) -> Any:
        return np.float32 if self.measure_.dtype == torch.float32 else np.float64
