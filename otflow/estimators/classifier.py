"""The classifier: logistic loss for two classes, cross-entropy for more."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data

from otflow.estimators.base import Array, MeanFieldEstimator

__all__ = ["MeanFieldClassifier"]


class MeanFieldClassifier(ClassifierMixin, MeanFieldEstimator):  # type: ignore[misc]
    r"""A mean-field network for classification, as an estimator of scikit-learn.

    .. math:: f_\mu(x) = \int a\,\varphi(w\cdot x + b)\,d\mu(a, w, b), \qquad
        F(\mu) = \frac1{\sum_k p_k}\sum_k p_k\,\ell(f_\mu(x_k), y_k) .

    The fit is a gradient flow of F in the Wasserstein space of neurons
    :cite:p:`mei2018mean,chizat2018global`, from N random neurons. For two classes the
    loss is logistic and f has one output, the log-odds of the second class; for more it
    is the cross-entropy, with one output a class. The :math:`p_k` are products of
    sample and class weights, and x is scaled.

    Parameters
    ----------
    n_neurons : int
        Number N of neurons.
    activation : str or callable
        As that of `otflow.meanfield.TwoLayer`.
    scheme : str or Scheme
        How the neurons move:

        - "euler": `otflow.ExplicitEuler`, gradient descent on batches;
        - "jko": `otflow.JKO`, implicit steps, on all data by default, solved to a
          tolerance of 0.1 by at most 50 gradients, and without a proof that the
          coupling is optimal;
        - "langevin": `otflow.Langevin`, gradient descent with noise, for the entropy of
          the factor `temperature`;
        - "birth-death": Euler steps and `otflow.BirthDeath`, by which neurons also
          change their masses;
        - "forward-backward": `otflow.schemes.ForwardBackward`, Euler steps and the
          proximal map of the l1 norm of the factor `penalty`, so that weights become
          exactly 0;
        - "adam": `otflow.schemes.Adam`, in the fewest epochs, but no gradient flow;

        or a scheme of your own choice. What a scheme carries from step to step, as
        momenta, goes on in `partial_fit`, and in `fit` with `warm_start`, unless the
        scheme or `dt` has changed or early stopping has gone back to an epoch before.
    dt : float or "auto"
        Time step. By default "euler", "birth-death" and "forward-backward" shorten each
        step until the objective of its batch falls; for the others a stable length is
        found at the start, and "adam" takes 0.2.
    max_iter : int
        Largest number of epochs.
    batch_size : int or "auto"
        Number of samples that a step draws. By default n/32, but at least 64 and at
        most 256; for "jko" all.
    ridge : float
        Factor :math:`\lambda \ge 0` of the weight decay
        :math:`\frac\lambda2\int|\theta|^2d\mu`.
    temperature : float
        Factor of the entropy, >= 0, for "langevin" and for schemes of yours that hold
        `Langevin` or `UnderdampedLangevin`.
    penalty : float
        Factor of the l1 norm of a neuron, >= 0, for "forward-backward" and for schemes
        of yours that hold `ForwardBackward`.
    birth_rate : float
        Rate of births and deaths, > 0, for "birth-death" alone.
    outer_scale : float
        Standard deviation of the outer weights a at the start, > 0. A large one makes
        the training lazy: features hardly change.
    standardize : bool
        Whether to work with columns of X of mean 0 and variance 1, and with rows
        divided by the root of their number of columns. The first call of `fit` or
        `partial_fit` decides on the scales.
    tol : float
        An epoch is no better if it improves the loss by less.
    n_iter_no_change : int
        Number of epochs in a row that are no better, after which `fit` ends.
    early_stopping : bool
        Whether `fit` holds out a part of the data, watches the loss there, and returns
        the measure of the epoch of the least such loss.
    validation_fraction : float
        The share of the data that is held out, in (0, 1).
    warm_start : bool
        Whether `fit` goes on from the measure of the last call, with the scheme and the
        parameters of now.
    class_weight : dict, "balanced" or None
        Weights of the classes; "balanced" gives all classes the same total weight.
    random_state : int, RandomState or None
        Source of the start, of the batches and of the noise. The same integer gives the
        same estimator.
    verbose : bool
        Whether to show a bar (extra ``plot``).

    Attributes
    ----------
    classes_ : ndarray, shape (number of classes,)
        The labels, sorted.
    measure_ : Particles
        The neurons, rows (a, w, b) in the units of the scaled data, and their masses.
    network_ : TwoLayer
        The network, a function of the measure and of the scaled inputs.
    history_ : dict of str to list of float
        For each epoch "loss", the mean objective of its steps, each before the step,
        or the objective on all data after the epoch if the scheme tells none, as
        `otflow.schemes.Momentum`; "time", the time of the flow that it took; "seconds",
        since the call began; with early stopping "validation_loss".
    loss_ : float
        The objective on the data of the last call, at the end of the flow.
    n_iter_ : int
        Number of epochs.
    n_features_in_, feature_names_in_
        As those of every estimator.

    Raises
    ------
    ValueError, TypeError
        From `fit` and `partial_fit`, if a parameter or the data are of the wrong kind
        or out of range, if `n_neurons` or `activation` has changed between the calls,
        if there is one class, if labels are no classes of the first call, or if the
        number of features has changed.
    Diverged
        From `fit` and `partial_fit`, if a given dt is too long.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        From `fit`, if the loss still improves after `max_iter` epochs, or if these are
        too few to tell.
    NotConvergedWarning
        From `fit` and `partial_fit`, if proximal steps end before their tolerance, as
        at the kinks of "relu".

    See Also
    --------
    MeanFieldRegressor : The same for numbers.
    otflow.meanfield.Risk : The functional F.

    Notes
    -----
    A step costs :math:`O(B N d)` on batches of B samples, `predict` O(n N d). Data in
    float32 are fitted in float32, all others in float64.

    A call of `fit` or `partial_fit` that fails leaves the estimator as it was.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from otflow.estimators import MeanFieldClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MeanFieldClassifier(n_neurons=50, random_state=0).fit(X, y)
    >>> bool(model.score(X, y) > 0.95), model.predict_proba(X).shape
    (True, (150, 3))
    """

    classes_: Array

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
        class_weight: Any = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            n_neurons,
            activation=activation,
            scheme=scheme,
            dt=dt,
            max_iter=max_iter,
            batch_size=batch_size,
            ridge=ridge,
            temperature=temperature,
            penalty=penalty,
            birth_rate=birth_rate,
            outer_scale=outer_scale,
            standardize=standardize,
            tol=tol,
            n_iter_no_change=n_iter_no_change,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the network from a random start, or with `warm_start` from the last one.

        Parameters
        ----------
        X : array-like, shape (n, d)
            Inputs.
        y : array-like, shape (n,)
            Labels: integers, strings or truth values.
        sample_weight : array-like, shape (n,), optional
            Weights >= 0. A weight of 2 counts as the sample given twice, apart from the
            draws of batches.

        Returns
        -------
        MeanFieldClassifier
            The estimator.
        """
        self._fit(X, y, sample_weight)
        return self

    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> Self:
        """Go on by one epoch on these data; the first call starts at random.

        Parameters
        ----------
        X : array-like, shape (n, d)
            Inputs.
        y : array-like, shape (n,)
            Labels: integers, strings or truth values.
        classes : array-like, shape (number of classes,), optional
            All labels that will occur; by default those of the first call.
        sample_weight : array-like, shape (n,), optional
            Weights >= 0.

        Returns
        -------
        MeanFieldClassifier
            The estimator.
        """
        self._partial_fit(X, y, classes, sample_weight)
        return self

    def decision_function(self, X: Any) -> Array:
        """Return the outputs of the network.

        Parameters
        ----------
        X : array-like, shape (n, d)
            Inputs.

        Returns
        -------
        ndarray, shape (n,) or (n, number of classes)
            The log-odds of the second of two classes, or logits.
        """
        return self._values(X)

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of the classes.

        Parameters
        ----------
        X : array-like, shape (n, d)
            Inputs.

        Returns
        -------
        ndarray, shape (n, number of classes)
            Rows of sum 1.
        """
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithms of the probabilities.

        Parameters
        ----------
        X : array-like, shape (n, d)
            Inputs.

        Returns
        -------
        ndarray, shape (n, number of classes)
            Finite also where a probability is tiny.
        """
        scores = torch.from_numpy(self._values(X))
        if scores.ndim == 1:
            both = torch.stack([-scores, scores], dim=1)
            logs: Array = torch.nn.functional.logsigmoid(both).numpy()
        else:
            logs = torch.log_softmax(scores, dim=1).numpy()
        return logs

    def predict(self, X: Any) -> Array:
        """Return the most probable labels.

        Parameters
        ----------
        X : array-like, shape (n, d)
            Inputs.

        Returns
        -------
        ndarray, shape (n,)
            Entries of `classes_`.
        """
        scores = self._values(X)
        index = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        predicted: Array = self.classes_[index]
        return predicted

    # ---- what the base asks for ------------------------------------------------------

    def _checked(self, X: Any, y: Any, dtype: Any, first: bool) -> tuple[Array, Array]:
        X, y = validate_data(self, X, y, dtype=dtype, reset=first, multi_output=True)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        return X, y

    def _encoded(
        self, y: Array, weights: Array, classes: Any, first: bool
    ) -> tuple[Array, Array]:
        if first:
            self.classes_ = self._classes(y, classes)
        elif classes is not None and set(classes) != set(self.classes_):
            msg = (
                f"classes={list(classes)} are not those of the first call, "
                f"{self.classes_.tolist()}; leave classes out, or call fit"
            )
            raise ValueError(msg)
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            msg = (
                f"y holds labels that are none of the classes "
                f"{self.classes_.tolist()}: {unknown.tolist()[:5]}; name all classes "
                f"in the first call, partial_fit(X, y, classes=...)"
            )
            raise ValueError(msg)
        index = np.searchsorted(self.classes_, y)
        weights = weights * self._of_classes(index, weights)[index]
        if len(self.classes_) == 2:
            return (2 * index - 1).astype(weights.dtype), weights
        return index.astype(np.int64), weights

    def _classes(self, y: Array, classes: Any) -> Array:
        """Return the sorted labels; ValueError if they are not at least two."""
        labels = np.unique(y if classes is None else classes)
        if len(labels) < 2:
            msg = (
                f"a classifier needs samples of at least 2 classes, and y holds the "
                f"one class {labels.tolist()}"
            )
            raise ValueError(msg)
        return labels

    def _of_classes(self, index: Array, weights: Array) -> Array:
        """Return one weight for each class."""
        count = len(self.classes_)
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            masses = np.bincount(index, weights, minlength=count)
            if not masses.all():
                msg = (
                    "class_weight='balanced' needs samples of every class; give a "
                    "dict of weights to partial_fit"
                )
                raise ValueError(msg)
            balanced = masses.sum() / (count * masses)
            return np.asarray(balanced, dtype=weights.dtype)
        labels = self.classes_[index]
        found = compute_class_weight(self.class_weight, classes=self.classes_, y=labels)
        if not (np.isfinite(found).all() and (found >= 0).all() and found.any()):
            msg = (
                f"class_weight must hold numbers >= 0, not all zero, got "
                f"{self.class_weight!r}; give positive weights"
            )
            raise ValueError(msg)
        return np.asarray(found, dtype=weights.dtype)

    def _loss(self) -> tuple[str, int | None]:
        many = len(self.classes_)
        return ("logistic", None) if many == 2 else ("cross-entropy", many)
