"""The end of an API process: open streams and long polls hear of it first, and nothing holds it up for long.

uvicorn stops listening at SIGTERM or SIGINT, then waits for every open request before it runs the end of the lifespan.
A stream that is told only there would be waited for, for ever. So the lifespan takes the signals over while it lasts:
the first thing they do is to begin the shutdown here, the second is what uvicorn wanted them to do. What is still open
after `GRACE_S` is cut by uvicorn.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

import uvicorn
from loguru import logger

from app.errors import Unavailable

GRACE_S = 10
"""How long requests that are under way may go on; as long as the longest command of theirs to Redis."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Shutdown:
    """Whether the process is stopping, for whoever keeps a request open. The application has it as
    `app.state.shutdown`."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self._limits: set[asyncio.Timeout] = set()

    @property
    def begun(self) -> bool:
        """Whether open streams must end now."""
        return self._begun.is_set()

    def begin(self) -> None:
        """Tell everybody who waits."""
        self._begun.set()
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())

    async def wait(self) -> None:
        """Return when the shutdown begins."""
        await self._begun.wait()

    @asynccontextmanager
    async def limit(self, seconds: float) -> AsyncIterator[None]:
        """End the block with `TimeoutError` after so many seconds, or when the shutdown begins."""
        async with asyncio.timeout(0 if self.begun else seconds) as limit:
            self._limits.add(limit)
            try:
                yield
            finally:
                self._limits.discard(limit)

    def refuse_late(self) -> None:
        """Raise `Unavailable` once the shutdown has begun: too late to open a stream."""
        if self.begun:
            raise Unavailable("the service is shutting down", retry_after_s=1.0)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Inside the block SIGTERM and SIGINT begin the shutdown before they do what they did before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before: dict[int, Any] = {}

        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.begin)
            before[number](number, frame)

        for number in _SIGNALS:
            # A signal that is ignored or ends the process at once is none of ours.
            if callable(handler := signal.getsignal(number)):
                _bound_wait(handler)
                before[number] = handler
                signal.signal(number, handle)
        try:
            yield
        finally:
            for taken, handler in before.items():
                signal.signal(taken, handler)


def _bound_wait(handler: Any) -> None:
    """Bound the wait of the uvicorn server whose handler this is, unless whoever started it did."""
    server = getattr(handler, "__self__", None)
    if isinstance(server, uvicorn.Server) and server.config.timeout_graceful_shutdown is None:
        server.config.timeout_graceful_shutdown = GRACE_S
        logger.debug("open requests get {} s at shutdown", GRACE_S)
