"""One log for the process: ours, arq's, uvicorn's, asyncio's, and Python's warnings.

    worker.py        configure_logging(...) when it is imported, take_over_logging() again first in on_startup
    app/main.py      configure_logging(...) when it is imported, take_over_logging() again in the lifespan;
                     uvicorn.run(..., log_config=None) where we start uvicorn ourselves

The second call is needed because others configure logging in between: `arq worker.WorkerSettings` imports the settings
and then gives the logger `arq` a handler of its own, `uvicorn app.main:app` does the like before it imports the
application or in a reloaded child. Both calls are idempotent.

Records are written to standard error in the calling thread. A queue and a thread in between would cost more per record
than the write, lose the last lines of a dying process, which are the ones that matter, and nothing on the hot path logs
at INFO.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from loguru import logger

from app.telemetry.context import current_context
from app.telemetry.records import json_line, text_lines
from app.telemetry.redaction import REDACTOR

if TYPE_CHECKING:
    from loguru import Message, Record

LogFormat = Literal["text", "json"]

ARQ_LOGGERS = ("arq.worker", "arq.connections", "arq.jobs", "arq.utils")

QUIET_LOGGERS = {
    # They log every request with its URL, and below INFO also headers and contents.
    **dict.fromkeys(("httpx", "httpcore", "websockets", "watchfiles", "charset_normalizer"), logging.WARNING),
    # Our own access log has a line for each request, with route and duration.
    "uvicorn.access": logging.WARNING,
    # A page somewhere that is not proper HTML is nothing that is wrong here.
    **dict.fromkeys(("trafilatura", "htmldate"), logging.CRITICAL),
}
"""The level from which on these are heard."""


def configure_logging(level: str = "INFO", log_format: LogFormat = "text", secrets: Iterable[str] = ()) -> None:
    """Write records from `level` on to standard error, as lines for people or as JSON lines, without `secrets`.

    `secrets` are the values to hide: `secret_values(settings)`. Raises `ValueError` for a level that does not exist.
    """
    REDACTOR.add(secrets)
    _INTERCEPT.setLevel(logger.level(level).no)
    render = json_line if log_format == "json" else text_lines

    def write(message: Message) -> None:
        sys.stderr.write(_rendered(render, message))

    handler = {"sink": write, "level": level, "format": _exception_only, "backtrace": False, "diagnose": False}
    logger.configure(handlers=[handler], patcher=_add_context)  # type: ignore[list-item]
    take_over_logging()


def take_over_logging() -> None:
    """Lead the standard library's loggers and `warnings` into the log, and nowhere else. It may be called again."""
    root = logging.getLogger()
    root.handlers = [_INTERCEPT]
    root.setLevel(_INTERCEPT.level)
    for name, existing in list(logging.root.manager.loggerDict.items()):
        if isinstance(existing, logging.Logger) and (existing.handlers or not existing.propagate or existing.disabled):
            _reclaim(logging.getLogger(name))
    for name, level in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(max(_INTERCEPT.level, level))
    for name in ARQ_LOGGERS:
        logging.getLogger(name).addFilter(_divert)  # a filter that is there already is not added twice
    logging.captureWarnings(True)


def _reclaim(owned: logging.Logger) -> None:
    owned.handlers = []
    owned.propagate = True
    owned.disabled = False
    owned.setLevel(logging.NOTSET)


class InterceptHandler(logging.Handler):
    """Hands a standard record to loguru with its level and its place in the source."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log `record`; a record that cannot be formatted is reported as the standard library does."""
        try:
            forwarded = logger.opt(exception=record.exc_info).patch(lambda target: _place(target, record))
            forwarded.log(_loguru_level(record), record.getMessage())
        except Exception:  # the edge of a supervisor: logging must not break what it reports on
            self.handleError(record)


_INTERCEPT = InterceptHandler()


def _divert(record: logging.LogRecord) -> bool:
    """Log `record` at once and say that no handler needs it.

    arq's command line replaces the handlers of `arq` after worker settings are imported, and two of its lines come
    before `on_startup`. Its `dictConfig` resets handlers, levels and propagation; filters it leaves alone.
    """
    if record.levelno >= _INTERCEPT.level:
        _INTERCEPT.handle(record)
    return False


def _place(target: Record, record: logging.LogRecord) -> None:
    target["name"] = record.name
    target["function"] = record.funcName
    target["line"] = record.lineno
    target["module"] = record.module


def _loguru_level(record: logging.LogRecord) -> str | int:
    try:
        return logger.level(record.levelname).name
    except ValueError:  # a level of a library's own
        return record.levelno


def _add_context(record: Record) -> None:
    extra = record["extra"]
    context = current_context()
    for name, value in zip(context._fields, context, strict=True):
        if value is not None:
            extra.setdefault(name, value)


def _exception_only(_record: Record) -> str:
    """What loguru formats for us: the traceback. The rest of the line is made from the record."""
    return "{exception}"


def _rendered(render: object, message: Message) -> str:
    try:
        return str(render(message.record, str(message)))  # type: ignore[operator]
    except Exception as error:  # an object whose str() fails; loguru's own report would print it unredacted
        return f"A log record could not be written: {type(error).__name__}\n"
