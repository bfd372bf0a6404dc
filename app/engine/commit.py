"""Writing the ends and the events of attempts, in batches, through restarts of Redis.

The scripts are fenced by the lease token and an event by its number, so a call whose reply was lost may be repeated:
what was carried out the first time changes nothing the second time. Ends are repeated for as long as the process lives,
since the task is over and only its end is to be written. Events are repeated for `PATIENCE_S`, then the task gets
the error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from app.engine.batch import Batcher
from app.engine.patience import PATIENCE_S, insist
from app.store.items import Emit, Finish, Reschedule, StepRecord, Suspend, TakeEvent
from app.store.scripts import Scripts
from app.telemetry import metrics

SUBJECT_WEIGHT_BYTES = 2 * 1024
"""What a subject of a wait weighs, so that the waits of one call are for some 8,000, or the call carries one alone."""


class Committer:
    """Ends and events of the attempts of a process."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._finishes: Batcher[Finish, int] = Batcher(self._finish, weigh=lambda item: len(item.result))
        self._reschedules: Batcher[Reschedule, int] = Batcher(self._reschedule, weigh=lambda item: len(item.error))
        self._suspends: Batcher[Suspend, int] = Batcher(
            self._suspend, weigh=lambda item: SUBJECT_WEIGHT_BYTES * len(item.subjects)
        )
        self._steps: Batcher[StepRecord, int] = Batcher(self._record, weigh=lambda item: len(item.result))
        self._takes: Batcher[TakeEvent, list[bytes]] = Batcher(self._take, weigh=lambda item: 64)
        self._emits: Batcher[Emit, int] = Batcher(self._emit, weigh=lambda item: len(item.payload))

    def finish(self, item: Finish) -> Awaitable[int]:
        """End a task for good. 0 when the lease was lost and nothing was written."""
        return self._finishes.submit(item)

    def reschedule(self, item: Reschedule) -> Awaitable[int]:
        """Have a task run again. 0 when the lease was lost and nothing was written."""
        return self._reschedules.submit(item)

    def suspend(self, item: Suspend) -> Awaitable[int]:
        """Have a task wait. 0 when the lease was lost and nothing was written."""
        return self._suspends.submit(item)

    def emit(self, item: Emit) -> Awaitable[int]:
        """Append an event. 0 when the lease was lost and nothing was written."""
        return self._emits.submit(item)

    def record_step(self, item: StepRecord) -> Awaitable[int]:
        """Store the result of a step. 0 when the lease was lost and nothing was written."""
        return self._steps.submit(item)

    def take_event(self, item: TakeEvent) -> Awaitable[list[bytes]]:
        """Take an event from outside as the result of a step; see `take_event.lua` for the reply."""
        return self._takes.submit(item)

    async def drain(self) -> None:
        """Wait until everything is written."""
        for batcher in (self._emits, self._steps, self._takes, self._suspends, self._reschedules, self._finishes):
            await batcher.drain()

    async def _finish(self, items: Sequence[Finish]) -> list[int]:
        metrics.COMMIT_SIZE.labels().observe(len(items))
        return await insist(lambda: self._scripts.finish(items), f"finish of {len(items)}", None)

    async def _reschedule(self, items: Sequence[Reschedule]) -> list[int]:
        return await insist(lambda: self._scripts.reschedule(items), f"reschedule of {len(items)}", None)

    async def _suspend(self, items: Sequence[Suspend]) -> list[int]:
        return await insist(lambda: self._scripts.suspend(items), f"suspend of {len(items)}", None)

    async def _record(self, items: Sequence[StepRecord]) -> list[int]:
        return await insist(lambda: self._scripts.record_step(items), f"record_step of {len(items)}", None)

    async def _take(self, items: Sequence[TakeEvent]) -> list[list[bytes]]:
        return await insist(lambda: self._scripts.take_event(items), f"take_event of {len(items)}", None)

    async def _emit(self, items: Sequence[Emit]) -> list[int]:
        return await insist(lambda: self._scripts.emit(items), f"emit of {len(items)}", PATIENCE_S)
