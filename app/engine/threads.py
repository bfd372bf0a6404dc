"""Progress that is reported from a thread: the loop emits it, and only the latest where it comes too fast."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from loguru import logger

from app.errors import NightshiftError

Reporter = Callable[[float, float, str], None]


class ThreadReporter:
    """A plain function `(current, total, label)` for a thread; the loop writes what it is told with `progress`."""

    def __init__(
        self, progress: Callable[[float, float, str], Awaitable[None]], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._progress = progress
        self._loop = loop
        self._latest: tuple[float, float, str] | None = None
        self._writing: asyncio.Task[None] | None = None

    def __call__(self, current: float, total: float, label: str = "") -> None:
        self._loop.call_soon_threadsafe(self._take, (current, total, label))

    async def written(self) -> None:
        """Wait until nothing is being written."""
        if self._writing is not None:
            await asyncio.wait({self._writing})

    def _take(self, report: tuple[float, float, str]) -> None:
        self._latest = report
        if self._writing is None:
            self._writing = self._loop.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._latest is not None:
                report, self._latest = self._latest, None
                await self._progress(*report)
        except NightshiftError as error:
            logger.warning("progress from a thread was not written: {}", error)
        finally:
            self._writing = None
