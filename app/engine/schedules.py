"""Schedules at work: how a tick becomes one task, whatever happens to workers, hosts and their clocks.

A schedule is declared in code (`app/engine/timetable.py`). What is remembered of it is one hash, `ns:schedule:<name>`:

    definition   expression and zone, as they were when a worker last looked
    seen         every tick at or before this moment (Unix ms) is decided
    tick, outcome, outcome_at                  the last tick that something became of, what, and when
    fired_task, fired_at                       the last task, by a tick or by hand
    paused       since when; absent: it is not

A tick is decided once: `fired`, `caught_up` (fired for all that were missed), `missed`, `paused` or `overlap` (the task
before was not finished). One script does that, `fire_schedule.lua`: it compares the tick with `seen` and with the
server's clock, enqueues the task and moves `seen`, or does nothing of it. Who calls it, how often and when does not
matter:

- *Many workers*: all of them look at every tick; the first call decides, the others find the tick decided.
- *A worker dies*: before the script, nothing has happened, and another one looks within `LOOK_S`; after it, the task is
  in its queue. There is no between. A lost reply changes nothing: the next look finds the tick decided.
- *No worker, or no Redis*: a tick that is seen at most `LATE_S` late is fired; one that is not is missed, and is
  forgotten or caught up as the schedule says.
- *A queue is full*: the tick stays undecided (its outcome reads `full`) and is tried again until it is too late.
- *A host's clock is wrong, or jumps*: cron entries of that host come early, late or not at all. What is due is read
  from the server's clock, and the look that each worker takes every `LOOK_S` is timed by a clock that cannot jump.
- *The server's clock is set back*: moments that come a second time are decided already; nothing is fired twice.
- *A schedule is new, or its expression changes*: what lies before is not its business (`watch_schedules.lua`).
- *Paused*: its ticks are decided as they pass, so nothing is made up for when it is resumed.

Two things look. arq's cron entries (`app/schedule_jobs.py`), one for each schedule, come at the tick; but they pass
through arq's queue by the clocks of hosts, and one may be held by a worker that dies. So each worker also looks at all
of them every few seconds (`watch`), whatever the entries do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

from loguru import logger

from app.engine.job import Status, fields_of, moment
from app.engine.queue import QUEUE_FULL_RETRY_S, RECONNECT_PAUSES_S, TaskQueue
from app.engine.timetable import LATE_S, Entry, Tick, Timetable
from app.errors import Conflict, NotFound, QueueFull
from app.store.connection import CONNECTION_ERRORS
from app.store.items import NewTask
from app.store.schedule_scripts import ScheduleScripts
from app.telemetry import metrics

LOOK_S = 5.0
"""How often a worker looks at all schedules; a sixth of the time in which a tick is not too late."""


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """A schedule as it stands. `next_at` is None while it is paused, and where no tick is to come; `last_outcome` is
    that of the tick `last_tick_at`; `last_status` is None once the last task is forgotten."""

    entry: Entry
    paused: bool
    next_at: datetime | None
    last_tick_at: datetime | None
    last_outcome: str | None
    last_fired_at: datetime | None
    last_task_id: str | None
    last_status: Status | None


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found: how many tasks it started, and how long it is until the next tick (None: none is known)."""

    fired: int
    next_in_s: float | None


class Schedules:
    """Look at schedules, trigger, pause and resume them, and fire what is due. `user_id=None` stands for an
    administrator, who sees all."""

    def __init__(self, scripts: ScheduleScripts, queue: TaskQueue, timetable: Timetable, *, max_depth: int) -> None:
        self.timetable = timetable
        self._scripts = scripts
        self._queue = queue
        self._max_depth = max_depth

    async def all(self, *, user_id: str | None) -> list[ScheduleState]:
        """The caller's schedules, by name."""
        entries = [entry for entry in self.timetable if user_id in (None, entry.schedule.user_id)]
        now_ms, rows = await self._read(entries, register=False)
        return [_state(entry, now_ms, fields, status) for entry, (fields, status) in zip(entries, rows, strict=True)]

    async def get(self, name: str, *, user_id: str | None) -> ScheduleState:
        """One schedule. Raises `NotFound`."""
        for state in await self.all(user_id=user_id):
            if state.entry.name == name:
                return state
        raise NotFound(f"no schedule {name!r}")

    async def trigger(self, name: str, *, correlation_id: str | None = None) -> str:
        """Start its task now, also while it is paused; the task's id.

        Raises `NotFound`, `Conflict` while its last task is unfinished and it must not overlap, or `QueueFull`.
        """
        entry = self.timetable[name]
        task = self._queue.prepare(entry.submission(None), entry.schedule.user_id, correlation_id)
        outcome, subject = await self._trigger(entry, task)
        if outcome != "triggered":
            _refuse(name, outcome, subject)
        self._count(entry, task, outcome)
        return task.id

    async def _trigger(self, entry: Entry, task: NewTask) -> tuple[str, str]:
        for pause_s in RECONNECT_PAUSES_S:
            try:
                return await self._fire(entry, None, "triggered", task)
            except CONNECTION_ERRORS:
                # The reply may be lost rather than the request; the script knows the task by its id.
                await asyncio.sleep(pause_s)
        return await self._fire(entry, None, "triggered", task)

    async def pause(self, name: str) -> ScheduleState:
        """Fire no more of its ticks; a task of it that runs goes on. Raises `NotFound`."""
        return await self._pause(name, paused=True)

    async def resume(self, name: str) -> ScheduleState:
        """Fire its ticks again, those to come. Raises `NotFound`."""
        return await self._pause(name, paused=False)

    async def _pause(self, name: str, *, paused: bool) -> ScheduleState:
        await self._scripts.pause_schedule(self.timetable[name].name, paused=paused)
        return await self.get(name, user_id=None)

    async def watch(self) -> None:
        """Look at all schedules every `LOOK_S`, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self, names: Iterable[str] | None = None) -> Look:
        """Decide every tick that is due now, of all schedules or of these. Any number of workers may do so at once."""
        entries = list(self.timetable) if names is None else [self.timetable[name] for name in names]
        now_ms, rows = await self._read(entries, register=True)
        fired = 0
        for entry, (fields, _) in zip(entries, rows, strict=True):
            for tick in entry.undecided(int(fields["seen"]), now_ms):
                fired += await self._decide(entry, tick)
        coming = [tick_s - now_ms / 1000 for entry in entries if (tick_s := entry.next_s(now_ms // 1000)) is not None]
        return Look(fired, min(coming, default=None))

    async def _decide(self, entry: Entry, tick: Tick) -> bool:
        task = self._queue.prepare(entry.submission(tick.at_s), entry.schedule.user_id)
        outcome, subject = await self._fire(entry, tick.at_s * 1000, tick.outcome, task)
        at = datetime.fromtimestamp(tick.at_s, entry.zone)
        if outcome in ("decided", "early"):
            return False
        self._count(entry, task, outcome)
        log = logger.info if outcome in ("fired", "caught_up", "paused") else logger.warning
        log("schedule {} at {}: {} {}", entry.name, at.isoformat(), outcome, subject)
        return outcome in ("fired", "caught_up")

    async def _fire(self, entry: Entry, tick_ms: int | None, outcome: str, task: NewTask) -> tuple[str, str]:
        return await self._scripts.fire_schedule(
            entry.name, tick_ms, outcome, task, overlap=entry.schedule.overlap, max_depth=self._max_depth
        )

    def _count(self, entry: Entry, task: NewTask, outcome: str) -> None:
        metrics.SCHEDULE_TICKS.labels(entry.name, outcome).inc()
        if outcome in ("fired", "caught_up", "triggered"):
            metrics.TASKS_ENQUEUED.labels(task.queue, task.task).inc()

    async def _read(self, entries: list[Entry], *, register: bool) -> tuple[int, list[tuple[dict[str, str], str]]]:
        wanted = [(entry.name, entry.definition) for entry in entries]
        now_ms, rows = await self._scripts.watch_schedules(wanted, register=register, late_ms=LATE_S * 1000)
        return now_ms, [(fields_of(fields), status.decode()) for fields, status in rows]


def _refuse(name: str, outcome: str, subject: str) -> NoReturn:
    if outcome == "overlap":
        raise Conflict(f"task {subject} of schedule {name!r} is not finished, and the next must not overlap it")
    raise QueueFull(f"queue {subject!r} is full; nothing was enqueued", retry_after_s=QUEUE_FULL_RETRY_S)


def _state(entry: Entry, now_ms: int, fields: dict[str, str], status: str) -> ScheduleState:
    next_s = None if "paused" in fields else entry.next_s(max(now_ms, int(fields.get("seen", 0))) // 1000)
    return ScheduleState(
        entry=entry,
        paused="paused" in fields,
        next_at=None if next_s is None else datetime.fromtimestamp(next_s, UTC),
        last_tick_at=_moment(fields, "tick"),
        last_outcome=fields.get("outcome"),
        last_fired_at=_moment(fields, "fired_at"),
        last_task_id=fields.get("fired_task"),
        last_status=Status(status) if status else None,
    )


def _moment(fields: dict[str, str], name: str) -> datetime | None:
    return moment(fields[name]) if name in fields else None
