"""What watches a flow: it may read each step, write it down, or stop the flow."""

from otflow.callbacks.base import Callback, Event

__all__ = ["Callback", "Event"]
