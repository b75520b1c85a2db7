"""The regressor: square loss, one or several outputs."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import validate_data

from otflow.estimators.base import Array, MeanFieldEstimator
from otflow.estimators.scales import Scale

__all__ = ["MeanFieldRegressor"]


class MeanFieldRegressor(MultiOutputMixin, RegressorMixin, MeanFieldEstimator):  # type: ignore[misc]
    r"""A mean-field network for regression, as an estimator of scikit-learn.

    .. math:: f_\mu(x) = \int a\,\varphi(w\cdot x + b)\,d\mu(a, w, b), \qquad
        F(\mu) = \frac1{\sum_k p_k}\sum_k p_k\,\tfrac12 |f_\mu(x_k) - y_k|^2 .

    The fit is a gradient flow of F in the Wasserstein space of neurons
    :cite:p:`mei2018mean,chizat2018global`, from N random neurons. The :math:`p_k` are
    the sample weights, and x and y are scaled.

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
        Whether to work with columns of X and y of mean 0 and variance 1, and with
        rows of X divided by the root of their number of columns. The first call of
        `fit` or `partial_fit` decides on the scales.
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
    random_state : int, RandomState or None
        Source of the start, of the batches and of the noise. The same integer gives the
        same estimator.
    verbose : bool
        Whether to show a bar (extra ``plot``).

    Attributes
    ----------
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
        or if the number of features or targets has changed.
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
    MeanFieldClassifier : The same for labels.
    otflow.meanfield.Risk : The functional F.

    Notes
    -----
    A step costs :math:`O(B N d)` on batches of B samples, `predict` O(n N d). Data in
    float32 are fitted in float32, all others in float64.

    A call of `fit` or `partial_fit` that fails leaves the estimator as it was.

    Examples
    --------
    >>> import numpy as np
    >>> from otflow.estimators import MeanFieldRegressor
    >>> X = np.linspace(-1, 1, 200)[:, None]
    >>> y = np.sin(3 * X[:, 0])
    >>> model = MeanFieldRegressor(n_neurons=100, random_state=0).fit(X, y)
    >>> bool(model.score(X, y) > 0.99)
    True
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the network from a random start, or with `warm_start` from the last one.

        Parameters
        ----------
        X : array-like, shape (n, d)
            Inputs.
        y : array-like, shape (n,) or (n, m)
            Targets.
        sample_weight : array-like, shape (n,), optional
            Weights >= 0. A weight of 2 counts as the sample given twice, apart from the
            draws of batches.

        Returns
        -------
        MeanFieldRegressor
            The estimator.
        """
        self._fit(X, y, sample_weight)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Go on by one epoch on these data; the first call starts at random.

        Parameters
        ----------
        X : array-like, shape (n, d)
            Inputs.
        y : array-like, shape (n,) or (n, m)
            Targets.
        sample_weight : array-like, shape (n,), optional
            Weights >= 0.

        Returns
        -------
        MeanFieldRegressor
            The estimator.
        """
        self._partial_fit(X, y, None, sample_weight)
        return self

    def predict(self, X: Any) -> Array:
        """Return the predictions.

        Parameters
        ----------
        X : array-like, shape (n, d)
            Inputs.

        Returns
        -------
        ndarray, shape (n,) or (n, m)
            In the units of the targets.
        """
        values = self._values(X)
        columns = values[:, None] if values.ndim == 1 else values
        return self._targets.undo(columns).reshape(-1, *self._shape)

    # ---- what the base asks for ------------------------------------------------------

    def _checked(self, X: Any, y: Any, dtype: Any, first: bool) -> tuple[Array, Array]:
        X, y = validate_data(
            self, X, y, dtype=dtype, reset=first, multi_output=True, y_numeric=True
        )
        y = y.astype(np.float64, copy=False)
        if np.abs(y).max() > np.finfo(X.dtype).max:
            msg = (
                f"y holds numbers beyond {X.dtype}, in which X is given; give X in "
                f"float64, or y in other units"
            )
            raise ValueError(msg)
        return X, y

    def _encoded(
        self, y: Array, weights: Array, classes: Any, first: bool
    ) -> tuple[Array, Array]:
        columns = y[:, None] if y.ndim == 1 else y
        if first:
            self._shape = y.shape[1:]
            self._targets = Scale.identity(columns.shape[1])
            if self.standardize:
                self._targets = Scale.of(columns, weights)
        elif y.shape[1:] != self._shape:
            msg = (
                f"y had the shape {('n', *self._shape)} in the first call and has "
                f"{('n', *y.shape[1:])} now; give targets of one shape, or call fit"
            )
            raise ValueError(msg)
        # One column is fitted as the numbers in it: their network is one of scalars.
        scaled = self._targets.apply(columns)
        return scaled if self._width() else scaled[:, 0], weights

    def _loss(self) -> tuple[str, int | None]:
        return "square", self._width()

    def _width(self) -> int | None:
        """Return the number of outputs of the network, None for a scalar."""
        return self._shape[0] if self._shape and self._shape[0] > 1 else None
