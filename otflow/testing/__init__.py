"""The laws of measures, functionals, schemes and solvers, for your own tests.

A contract is a class of tests. Inherit it, say how to make your object, and pytest
checks the laws. This needs pytest: ``pip install 'otflow[test]'``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from otflow._lazy import lazy_import

if TYPE_CHECKING:
    from otflow.testing.distance import check_distance
    from otflow.testing.functional import FunctionalContract
    from otflow.testing.measure import ExchangeableContract, MeasureContract
    from otflow.testing.proximal import (
        Problem,
        ProximalContract,
        check_certificate,
        check_flags,
    )
    from otflow.testing.same import assert_same
    from otflow.testing.scheme import Nudge, SchemeContract

__all__ = [
    "ExchangeableContract",
    "FunctionalContract",
    "MeasureContract",
    "Nudge",
    "Problem",
    "ProximalContract",
    "SchemeContract",
    "assert_same",
    "check_certificate",
    "check_distance",
    "check_flags",
]

_HOMES = {
    "ExchangeableContract": "measure",
    "FunctionalContract": "functional",
    "MeasureContract": "measure",
    "Nudge": "scheme",
    "Problem": "proximal",
    "ProximalContract": "proximal",
    "SchemeContract": "scheme",
    "assert_same": "same",
    "check_certificate": "proximal",
    "check_distance": "distance",
    "check_flags": "proximal",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Load a contract at its first use, so that `import otflow` needs no pytest."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    # Rewritten assertions show the compared values, as those of test files do.
    homes = {*_HOMES.values(), "capabilities", "clouds"}
    files = {f"{__name__}.{home}" for home in homes} - sys.modules.keys()
    lazy_import("pytest").register_assert_rewrite(*files)
    return getattr(lazy_import(f"{__name__}.{_HOMES[name]}"), name)
