"""What a view reads of a run; a `Trajectory` is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from otflow.measures import Measure
from otflow.proximal import Certificate

__all__ = ["Run"]


class Run(Protocol):
    """The fields of a `Trajectory` from which its views are made."""

    if TYPE_CHECKING:
        # Read-only, as the fields of a frozen dataclass are.
        @property
        def times(self) -> Tensor: ...
        @property
        def records(self) -> Mapping[str, Tensor]: ...
        @property
        def snapshots(self) -> Sequence[Measure]: ...
        @property
        def snapshot_times(self) -> Tensor: ...
        @property
        def final(self) -> Measure: ...
        @property
        def info(self) -> Sequence[Certificate]: ...
        @property
        def seed(self) -> int: ...
        @property
        def status(self) -> str: ...
        @property
        def message(self) -> str: ...
        @property
        def rises(self) -> int: ...
