"""What a run can be turned into: tables, a text, a page of a notebook."""

from otflow.views.facts import summary
from otflow.views.page import page
from otflow.views.run import Run
from otflow.views.tables import dataset, records_frame, reports_frame

__all__ = [
    "Run",
    "dataset",
    "page",
    "records_frame",
    "reports_frame",
    "summary",
]
