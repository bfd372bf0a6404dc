"""Under whatever happens in whatever order: *a tick starts at most one task, and a schedule that must not overlap never
has two that are unfinished.*

Workers are calls: what one of them knew when it began to look may be long out of date, and its reply may be lost, so
that it calls again. A model of what should be is kept beside the real server, which is killed and restarted too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from app.engine.job import new_task_id
from app.store import keys
from app.store.connection import connect
from app.store.embedded import EmbeddedServer
from app.store.schedule_scripts import ScheduleScripts
from app.store.scripts import Scripts
from tests.machines import run_machine
from tests.simulated import claim, end_of, new_task, server_ms

T = TypeVar("T")
NAME = "nightly"
KEY = keys.PREFIXES["schedule"] + NAME


class Schedule(RuleBasedStateMachine):
    """One schedule that must not overlap, and the workers and operators who act on it."""

    server: EmbeddedServer
    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        self.redis = connect(self.server.url)
        self.plain = Scripts(self.redis)
        self.scripts = ScheduleScripts(self.plain)
        self.seen = 0
        self.paused = False
        self.unfinished: str | None = None
        self.started: list[str] = []
        self.ticks: dict[int, str] = {}

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.do(self.redis.aclose())

    @initialize()
    def begin(self) -> None:
        self.do(self.redis.flushall())
        self.look("0 3 * * * UTC")

    def look(self, definition: str) -> None:
        wanted = [(NAME, definition.encode())]
        time_ms, ((flat, _),) = self.do(self.scripts.watch_schedules(wanted, register=True, late_ms=0))
        seen = int(dict(zip(flat[::2], flat[1::2], strict=True))[b"seen"])
        assert self.seen <= seen <= time_ms
        self.seen = seen

    def fire(self, tick_ms: int | None, wanted: str, *, times: int) -> None:
        task = new_task(new_task_id())
        expected = self.expected(tick_ms, wanted)
        for _ in range(times):
            outcome, _ = self.do(self.scripts.fire_schedule(NAME, tick_ms, wanted, task, overlap=False, max_depth=100))
            assert outcome == expected
            self.note(task.id, tick_ms, outcome)
            expected = "decided" if tick_ms is not None else expected

    def expected(self, tick_ms: int | None, wanted: str) -> str:
        if tick_ms is not None and tick_ms <= self.seen:
            return "decided"
        if tick_ms is not None and self.paused:
            return "paused"
        if wanted == "missed":
            return "missed"
        return "overlap" if self.unfinished else wanted

    def note(self, task_id: str, tick_ms: int | None, outcome: str) -> None:
        if outcome == "decided":
            return
        if tick_ms is not None:
            assert tick_ms not in self.ticks
            self.ticks[tick_ms] = outcome
            self.seen = tick_ms
        if outcome in ("fired", "caught_up", "triggered") and task_id not in self.started:
            self.started.append(task_id)
            self.unfinished = task_id

    @rule(wanted=st.sampled_from(["fired", "caught_up", "missed"]), times=st.integers(1, 2))
    def a_tick_comes(self, wanted: str, times: int) -> None:
        # The same steps must lead to the same place, also where two of them fall into one millisecond.
        while (tick_ms := self.do(server_ms(self.redis))) <= self.seen:
            pass
        self.fire(tick_ms, wanted, times=times)

    @precondition(lambda self: self.ticks)
    @rule(pick=st.integers(0, 1_000), earlier_ms=st.integers(0, 5_000))
    def a_worker_is_late(self, pick: int, earlier_ms: int) -> None:
        tick_ms = list(self.ticks)[pick % len(self.ticks)] - earlier_ms
        self.fire(tick_ms, "fired", times=1)

    @rule(times=st.integers(1, 2))
    def an_operator_triggers(self, times: int) -> None:
        self.fire(None, "triggered", times=times)

    @rule()
    def an_operator_pauses(self) -> None:
        assert self.do(self.scripts.pause_schedule(NAME, paused=True)) is not self.paused
        self.paused = True

    @rule()
    def an_operator_resumes(self) -> None:
        before_ms = self.do(server_ms(self.redis))
        assert self.do(self.scripts.pause_schedule(NAME, paused=False)) is self.paused
        seen = int(self.do(self.redis.hget(KEY, "seen")))
        assert seen >= max(self.seen, before_ms) if self.paused else seen == self.seen
        self.seen = seen
        self.paused = False

    @precondition(lambda self: self.unfinished)
    @rule(status=st.sampled_from(["SUCCESS", "FAILURE", "CANCELLED"]))
    def the_task_ends(self, status: str) -> None:
        if status == "CANCELLED":
            assert self.do(self.plain.cancel([self.unfinished or ""], 60_000)) == [b"cancelled"]
        else:
            (held,) = self.do(claim(self.plain))
            self.do(self.plain.finish([end_of(held, status)]))
        self.unfinished = None

    @rule(hour=st.integers(0, 23))
    def another_version_looks(self, hour: int) -> None:
        self.look(f"0 {hour} * * * UTC")

    @rule(dice=st.integers(0, 9))
    def the_server_dies(self, dice: int) -> None:
        if dice == 0:
            self.server.kill()
            self.do(self.redis.connection_pool.disconnect())
            self.server.restart()

    @invariant()
    def what_was_started_is_there_and_nothing_else(self) -> None:
        stored = self.do(self.redis.zrange(keys.ALL_TASKS, 0, -1))
        assert sorted(entry.decode().partition(":")[2] for entry in stored) == sorted(self.started)
        queued = self.do(self.redis.zrange(keys.queue("default"), 0, -1))
        assert [task_id.decode() for task_id in queued] == [self.unfinished] * bool(self.unfinished)


def test_a_tick_starts_at_most_one_task(own_server: EmbeddedServer, loop: asyncio.AbstractEventLoop) -> None:
    run_machine(Schedule, examples=40, steps=30, server=own_server, loop=loop)
