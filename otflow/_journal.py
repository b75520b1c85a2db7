"""What a flow tells the log ``otflow.flow``; silent unless the user asks."""

from __future__ import annotations

import logging
from typing import Any

from otflow.proximal import Certificate
from otflow.schemes import reports
from otflow.trajectory import Trajectory

__all__ = ["log_begin", "log_end", "log_step"]

LOG = logging.getLogger("otflow.flow")


def log_begin(F: object, mu: object, scheme: object, steps: int, made: int) -> None:
    """Log, as INFO, what a flow is about to do."""
    if LOG.isEnabledFor(logging.INFO):
        after = f" after {made} steps" if made else ""
        LOG.info("%r on %r by %r: %d steps%s", F, mu, scheme, steps, after)


def log_step(index: int, report: Certificate) -> None:
    """Log, as WARNING, a step whose solver did not converge."""
    found = reports.failed(report)
    if not found:
        return
    sizes = [solve.residual for solve in found if solve.residual is not None]
    size = f"residual {max(sizes):.3g}" if sizes else "no residual is known"
    LOG.warning("step %d did not converge: %s", index, size)


def log_end(run: Trajectory[Any]) -> None:
    """Log how a flow ended, as INFO if it ended as asked, else as WARNING."""
    good = run.status in ("finished", "stopped")
    LOG.log(
        logging.INFO if good else logging.WARNING, "%s: %s", run.status, run.message
    )
