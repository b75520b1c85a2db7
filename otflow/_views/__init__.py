"""What a run can be turned into: tables, a text, a page of a notebook."""

from otflow._views.certificate import certificate_page, certificate_text
from otflow._views.facts import summary
from otflow._views.page import page
from otflow._views.run import Run
from otflow._views.tables import columns_of, dataset, records_frame, reports_frame

__all__ = [
    "Run",
    "certificate_page",
    "certificate_text",
    "columns_of",
    "dataset",
    "page",
    "records_frame",
    "reports_frame",
    "summary",
]
