"""Who and what a log record is about, carried by the running coroutine.

Binding happens once per task, up to 15,000 times a second, and formatting once per record that is really written. So a
binding is one `ContextVar.set` of one tuple, and nothing else; the log's patcher reads it when a record is emitted.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar, Token
from typing import NamedTuple

_CORRELATION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class LogContext(NamedTuple):
    """The fields that every record carries when they are known."""

    task: str | None = None
    """Name of the task: `agent.run`."""
    task_id: str | None = None
    user_id: str | None = None
    project_id: str | None = None
    attempt: int | None = None
    """Number of the attempt, from 1."""
    correlation_id: str | None = None


EMPTY_CONTEXT = LogContext()

_context: ContextVar[LogContext] = ContextVar("nightshift_log_context", default=EMPTY_CONTEXT)


def current_context() -> LogContext:
    """The fields bound to the running coroutine or thread."""
    return _context.get()


def set_context(context: LogContext) -> Token[LogContext]:
    """Replace all bound fields. Give the token to `reset_context`, or let the asyncio task end with them."""
    return _context.set(context)


def bind_context(
    *,
    task: str | None = None,
    task_id: str | None = None,
    user_id: str | None = None,
    project_id: str | None = None,
    attempt: int | None = None,
    correlation_id: str | None = None,
) -> Token[LogContext]:
    """Add fields to those already bound; None leaves a field as it is. Give the token to `reset_context`."""
    before = _context.get()
    return _context.set(
        LogContext(
            before.task if task is None else task,
            before.task_id if task_id is None else task_id,
            before.user_id if user_id is None else user_id,
            before.project_id if project_id is None else project_id,
            before.attempt if attempt is None else attempt,
            before.correlation_id if correlation_id is None else correlation_id,
        )
    )


def reset_context(token: Token[LogContext]) -> None:
    """Put back what was bound before the call that returned `token`."""
    _context.reset(token)


def current_correlation_id() -> str | None:
    """The correlation id of the running coroutine, to be handed on to children and to systems outside."""
    return _context.get().correlation_id


def new_correlation_id() -> str:
    """A fresh random id of 32 hexadecimal digits."""
    return secrets.token_hex(16)


def clean_correlation_id(value: str | None) -> str:
    """`value` if it is 1 to 128 characters of `A-Za-z0-9._:-`, else a new id.

    It comes from a header that anybody may send and goes into logs, Redis and response headers.
    """
    return value if value is not None and _CORRELATION_ID.fullmatch(value) else new_correlation_id()
