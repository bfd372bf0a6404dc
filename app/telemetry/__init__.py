"""Logging, correlation ids, and every metric's declaration.

`logs` sets the log up, `records` writes it, `context` says what a record is about, `redaction` keeps secrets out,
`metrics` declares the metrics, `tallies` makes the hot ones cheap, `measure` counts and times calls outside.
"""

from __future__ import annotations

from app.telemetry.context import (
    EMPTY_CONTEXT,
    LogContext,
    bind_context,
    clean_correlation_id,
    current_context,
    current_correlation_id,
    new_correlation_id,
    reset_context,
    set_context,
)
from app.telemetry.logs import configure_logging, take_over_logging
from app.telemetry.metrics import METRICS_CONTENT_TYPE, render_metrics
from app.telemetry.redaction import REDACTOR, redact, secret_values

__all__ = [
    "EMPTY_CONTEXT",
    "METRICS_CONTENT_TYPE",
    "REDACTOR",
    "LogContext",
    "bind_context",
    "clean_correlation_id",
    "configure_logging",
    "current_context",
    "current_correlation_id",
    "new_correlation_id",
    "redact",
    "render_metrics",
    "reset_context",
    "secret_values",
    "set_context",
    "take_over_logging",
]
