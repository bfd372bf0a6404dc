"""A typed function for every Lua script about schedules, under the script's name; see `store/scripts.py`."""

from __future__ import annotations

from collections.abc import Iterable

from app.store.items import Arg, NewTask
from app.store.scripts import Fields, Scripts


class ScheduleScripts:
    """The scripts of schedules, bound to the client of `scripts`."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def watch_schedules(
        self, schedules: Iterable[tuple[str, bytes]], *, register: bool, late_ms: int
    ) -> tuple[int, list[tuple[Fields, bytes]]]:
        """Schedules by name and definition: the server's time, and the hash of each with its last task's status."""
        args: list[Arg] = [int(register), late_ms, *(value for schedule in schedules for value in schedule)]
        time, *rows = await self._scripts.run("watch_schedules", args)
        return time, [(row[0], row[1]) for row in rows]

    async def fire_schedule(
        self, name: str, tick_ms: int | None, outcome: str, task: NewTask, *, overlap: bool, max_depth: int
    ) -> tuple[str, str]:
        """Decide a tick (None: a trigger by hand). What became of it, and the task or queue concerned; see the
        script."""
        tick = "" if tick_ms is None else tick_ms
        args: list[Arg] = [name, tick, outcome, int(overlap), max_depth, 1, *task.args()]
        result, subject = await self._scripts.run("fire_schedule", args)
        return result.decode(), subject.decode()

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """Pause or resume a schedule. Whether that changed it."""
        return bool(await self._scripts.run("pause_schedule", [name, int(paused)]))
