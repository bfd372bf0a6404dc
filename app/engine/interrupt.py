"""Raising a chosen exception inside a coroutine, at the point where it awaits.

`asyncio.Task.cancel` can only raise a bare `CancelledError`. `Interruptible` stands between a task and a coroutine,
passes everything through, and turns a cancellation that it caused itself into the wanted exception. The wanted
exceptions derive from `CancelledError`, so task groups and timeouts inside behave as they do on a cancellation, but for
one thing: where it comes up in the body of a `TaskGroup`, that of Python 3.11 ends its children and then raises it in a
group. `Interruptible` takes the group off again; code inside that catches it around a task group uses `except*`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Interruptible(Generic[T]):
    """Await it in place of the coroutine. `interrupt` works from the same loop, as often as needed."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._reason: asyncio.CancelledError | None = None
        self._cancels = 0
        self._raised: asyncio.CancelledError | None = None
        self._task: asyncio.Task[Any] | None = None

    def interrupt(self, reason: asyncio.CancelledError) -> None:
        """Raise `reason` inside the coroutine when the loop comes to it. Nothing happens before it runs or after its
        end."""
        if self._task is not None:
            self._reason = reason
            self._cancels += 1
            self._task.cancel()

    def __await__(self) -> Generator[Any, Any, T]:
        self._task = asyncio.current_task()
        try:
            awaited = self._coroutine.send(None)
            while True:
                try:
                    value = yield awaited
                except GeneratorExit:
                    self._coroutine.close()
                    raise
                except BaseException as error:
                    awaited = self._coroutine.throw(self._translate(error))
                else:
                    awaited = self._coroutine.send(value)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        except BaseExceptionGroup as group:
            if self._raised is not None and group.split(lambda error: error is self._raised)[1] is None:
                raise self._raised from None
            raise
        finally:
            self._task = None

    def _translate(self, error: BaseException) -> BaseException:
        if not isinstance(error, asyncio.CancelledError) or self._reason is None or self._task is None:
            return error
        # The task is not being cancelled: only the coroutine inside was to see something. Without this, a timeout that
        # the coroutine sets while it cleans up would take itself for cancelled.
        # Several reasons before the loop came to it are one cancellation, counted as often.
        for _ in range(self._cancels):
            self._task.uncancel()
        self._raised, self._reason, self._cancels = self._reason, None, 0
        return self._raised
