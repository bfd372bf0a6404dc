"""Schedules as cron entries of the stock worker: `cron_jobs = [..., *schedule_jobs(timetable)]`.

An entry only says when to look; what is due then, and whether it is fired, is decided by `Schedules.look` on the
server's clock. So arq's own traps do not matter: a host in another time zone, a clock that is wrong or jumps, an entry
that comes twice, and one that a dying worker holds.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from arq.cron import CronJob
from loguru import logger

from app.engine.schedules import Schedules
from app.engine.timetable import Entry, Timetable
from app.store.connection import REFUSED_FOR_NOW

EARLY_S = 2.0
"""How far the clock of a host may be ahead of the server's for its entries to wait rather than to find nothing due."""
MARGIN_S = 0.005
"""A timer may be early by its resolution."""
TIMEOUT_S = 60.0
_NEVER = datetime.max.replace(tzinfo=UTC, year=9998)


def schedule_jobs(timetable: Timetable) -> list[CronJob]:
    """A cron entry for each schedule, called `schedule.<name>`. The worker's context holds the engine."""
    return [ScheduleJob(entry) for entry in timetable]


class ScheduleJob(CronJob):
    """The cron entry of one schedule, in its own zone. Of all workers that enqueue it for a tick, one runs it."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(
            name=f"schedule.{entry.name}",
            coroutine=self.look,
            month=None,
            day=None,
            weekday=None,
            hour=None,
            minute=None,
            second=None,
            microsecond=0,
            run_at_startup=False,
            unique=True,
            job_id=None,
            timeout_s=TIMEOUT_S,
            keep_result_s=0,
            keep_result_forever=False,
            max_tries=1,
        )
        self._entry = entry

    def calculate_next(self, prev_run: datetime) -> None:
        """Come at the first tick after `prev_run`, and not at those that the host's clock has left behind."""
        after_s = int(max(prev_run, datetime.now(UTC)).timestamp())
        next_s = self._entry.next_s(after_s)
        self.next_run = _NEVER if next_s is None else datetime.fromtimestamp(next_s, UTC)

    async def look(self, ctx: dict[Any, Any]) -> None:
        """Fire what is due of the schedule; where the tick is just about to come, then."""
        schedules: Schedules = ctx["engine"].schedules
        try:
            found = await schedules.look([self._entry.name])
            if not found.fired and found.next_in_s is not None and found.next_in_s <= EARLY_S:
                await asyncio.sleep(found.next_in_s + MARGIN_S)
                await schedules.look([self._entry.name])
        except REFUSED_FOR_NOW as error:
            logger.warning("{} lost Redis ({}); the next look comes soon", self.name, error)
