"""How streams end. Among it the one thing ASGI has no message for: cutting a connection whose client does not read.

An ASGI server closes a connection when what it still has to send is sent. To a client that never reads that is never,
and its buffers stay. uvicorn's `receive` is a method of an object that holds the transport, which can abort.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from inspect import unwrap

from loguru import logger
from starlette.types import Receive

SEND_TIMEOUT_S = 30.0
"""How long a client may take nothing of what is sent to it before it is cut off."""
CLOSE_GRACE_S = 10.0
"""How long a client that is sent away may take to read what lies before the goodbye."""
STOP_GRACE_S = 1.0
"""The same when the service stops."""


def abort(receive: Receive) -> None:
    """Cut the connection of a request, with what is still to be sent. Nothing where it is closed already."""
    transport = getattr(getattr(unwrap(receive), "__self__", None), "transport", None)
    if transport is None:
        logger.warning("a connection cannot be cut: expected uvicorn's receive, got {!r}", receive)
    else:
        transport.abort()


def abort_later(receive: Receive, after_s: float) -> None:
    """Cut the connection when it still stands after so long."""
    asyncio.get_running_loop().call_later(after_s, abort, receive)


def seconds_until(moment: datetime | None) -> float | None:
    """How long a stream may last whose credentials end then, in seconds; None: for ever."""
    return None if moment is None else max(0.0, (moment - datetime.now(UTC)).total_seconds())
