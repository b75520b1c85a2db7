"""What watches a flow: it may read each step, write it down, or stop the flow."""

from otflow.callbacks.base import Callback, Event
from otflow.callbacks.checkpoint import Checkpoint
from otflow.callbacks.files import CSVWriter, JSONLinesWriter
from otflow.callbacks.log import LogTo
from otflow.callbacks.patience import Patience
from otflow.callbacks.stationary import Stationary
from otflow.callbacks.tensorboard import TensorBoardWriter
from otflow.callbacks.time_limit import TimeLimit

__all__ = [
    "CSVWriter",
    "Callback",
    "Checkpoint",
    "Event",
    "JSONLinesWriter",
    "LogTo",
    "Patience",
    "Stationary",
    "TensorBoardWriter",
    "TimeLimit",
]


def __dir__() -> list[str]:
    return __all__
