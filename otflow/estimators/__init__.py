"""Mean-field networks as estimators of scikit-learn: ``import otflow.estimators``.

This needs scikit-learn: ``pip install 'otflow[estimators]'``. So ``import otflow`` does
not load it.
"""

from otflow._lazy import lazy_import

lazy_import("sklearn")  # an ImportError with the cure, before the plain one

from otflow.estimators.classifier import MeanFieldClassifier  # noqa: E402
from otflow.estimators.regressor import MeanFieldRegressor  # noqa: E402

__all__ = ["MeanFieldClassifier", "MeanFieldRegressor"]


def __dir__() -> list[str]:
    return __all__
