"""A tick becomes one task: over many lookers, lost replies, restarts and clocks that are wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from pydantic import BaseModel
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from app.engine.context import TaskContext
from app.engine.job import Status
from app.engine.queue import Filter
from app.engine.registry import task
from app.engine.schedules import Look, ScheduleState
from app.engine.service import Engine
from app.engine.timetable import LATE_S, Schedule
from app.errors import Conflict, NotFound, QueueFull
from app.schedule_jobs import schedule_jobs
from app.store import keys
from app.store.embedded import EmbeddedServer
from app.store.schedule_scripts import ScheduleScripts
from tests.simulated import claim, end_of, server_ms
from tests.support import engine_on, finished


class Count(BaseModel):
    n: int = 0


@task("test.count")
async def count(ctx: TaskContext, params: Count) -> int:
    return params.n


EVERY_SECOND = Schedule("second", "test.count", cron="* * * * * *", params={"n": 7}, overlap=True)
ONE_AT_A_TIME = Schedule("single", "test.count", cron="* * * * * *")
CATCHING_UP = Schedule("nightly", "test.count", cron="0 * * * * *", catch_up="once")
FORGETTING = Schedule("forgetful", "test.count", cron="0 * * * * *")
LATER = Schedule("later", "test.count", cron="* * * * * *", jitter_s=3_600, overlap=True)
YEARLY = Schedule("yearly", "test.count", cron="0 0 1 1 *", timezone="Europe/Berlin", user_id="ada")
SCHEDULES = (EVERY_SECOND, ONE_AT_A_TIME, CATCHING_UP, FORGETTING, LATER, YEARLY)


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    async with engine_on(redis_url, (count,), schedules=SCHEDULES) as opened:
        await opened.schedules.look()  # all begin now
        yield opened


def key_of(name: str) -> str:
    return keys.PREFIXES["schedule"] + name


async def as_if_decided(redis: Redis, name: str, *, before_s: float) -> int:
    """As if the last look had been so long before now; the moment, Unix ms."""
    seen_ms = await server_ms(redis) - int(before_s * 1000)
    await redis.hset(key_of(name), "seen", seen_ms)
    return seen_ms


async def tasks_of(engine: Engine, name: str) -> list[str]:
    """The tasks that a schedule has started, the last one first."""
    page = await engine.tasks.page(Filter(tag=f"schedule:{name}"), user_id=None)
    return [record.task_id for record in page.items]


async def state_of(engine: Engine, name: str) -> ScheduleState:
    return await engine.schedules.get(name, user_id=None)


# Ticks.


async def test_a_schedule_that_is_new_fires_nothing_of_before(engine: Engine) -> None:
    assert await tasks_of(engine, "nightly") == []
    state = await state_of(engine, "nightly")
    assert (state.last_outcome, state.last_task_id, state.paused) == (None, None, False)


async def test_a_tick_that_has_come_starts_the_task(engine: Engine) -> None:
    seen_ms = await as_if_decided(engine.redis, "second", before_s=1)
    assert (await engine.schedules.look(["second"])).fired >= 1
    state = await state_of(engine, "second")
    assert state.last_tick_at is not None
    assert state.last_tick_at.microsecond == 0
    assert state.last_tick_at.timestamp() * 1000 > seen_ms
    assert state.last_outcome == "fired"
    record = await engine.tasks.get(state.last_task_id or "", user_id="schedules")
    assert (record.task, record.tags) == ("test.count", ("schedule:second",))
    async with engine.worker():
        assert (await finished(engine, record.task_id)).result == 7
    assert (await state_of(engine, "second")).last_status is Status.SUCCESS


async def test_each_tick_that_is_not_late_is_fired_once_by_many_lookers(redis_url: str) -> None:
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(engine_on(redis_url, (count,), schedules=SCHEDULES)) for _ in range(4)
        ]
        first = engines[0]
        await first.schedules.look()
        seen_ms = await as_if_decided(first.redis, "second", before_s=8)
        looks: list[Look] = await asyncio.gather(*(each.schedules.look(["second"]) for each in engines * 3))
        decided_ms = int(await first.redis.hget(key_of("second"), "seen"))
        ticks = decided_ms // 1000 - seen_ms // 1000
        assert ticks >= 8
        assert sum(look.fired for look in looks) == ticks == len(await tasks_of(first, "second"))


async def test_what_is_remembered_outlives_worker_and_server(own_server: EmbeddedServer) -> None:
    async with engine_on(own_server.url, (count,), schedules=SCHEDULES) as engine:
        await engine.schedules.look()
        await as_if_decided(engine.redis, "nightly", before_s=3_600)
        await engine.schedules.look(["nightly"])
        await engine.schedules.pause("single")
        before = await engine.redis.hgetall(key_of("nightly"))
    own_server.kill()
    own_server.restart()
    async with engine_on(own_server.url, (count,), schedules=SCHEDULES) as engine:
        assert await engine.redis.hgetall(key_of("nightly")) == before
        assert (await state_of(engine, "single")).paused
        await engine.schedules.look(["nightly"])
        assert len(await tasks_of(engine, "nightly")) <= 2  # a minute may have begun meanwhile


async def test_a_repeated_call_decides_nothing_again(engine: Engine) -> None:
    entry = engine.schedules.timetable["second"]
    tick_ms = await server_ms(engine.redis) // 1000 * 1000
    await as_if_decided(engine.redis, "second", before_s=2)

    async def fire(tick: int) -> str:
        made = engine.tasks.prepare(entry.submission(tick // 1000), "schedules")
        outcome, _ = await ScheduleScripts(engine.scripts).fire_schedule(
            "second", tick, "fired", made, overlap=True, max_depth=10
        )
        return outcome

    assert [await fire(tick_ms), await fire(tick_ms), await fire(tick_ms - 1_000)] == ["fired", "decided", "decided"]
    assert await fire(tick_ms + 3_600_000) == "early"
    assert len(await tasks_of(engine, "second")) == 1
    assert int(await engine.redis.hget(key_of("second"), "seen")) == tick_ms


@pytest.mark.parametrize("outcome", ["paused", "missed", "overlap"])
async def test_a_tick_that_is_not_to_be_fired_is_decided_too(engine: Engine, outcome: str) -> None:
    tick_ms = await server_ms(engine.redis) // 1000 * 1000
    await as_if_decided(engine.redis, "single", before_s=2)
    await engine.schedules.trigger("single")
    if outcome == "paused":
        await engine.schedules.pause("single")
    made = engine.tasks.prepare(engine.schedules.timetable["single"].submission(None), "schedules")
    wanted = "missed" if outcome == "missed" else "fired"
    decisions = [
        await ScheduleScripts(engine.scripts).fire_schedule("single", tick_ms, wanted, made, overlap=False, max_depth=9)
        for _ in range(2)
    ]
    assert [decision[0] for decision in decisions] == [outcome, "decided"]
    assert (await state_of(engine, "single")).last_outcome == outcome
    assert len(await tasks_of(engine, "single")) == 1


async def test_jitter_delays_the_task_and_not_the_decision(engine: Engine) -> None:
    await as_if_decided(engine.redis, "later", before_s=1)
    assert (await engine.schedules.look(["later"])).fired >= 1
    state = await state_of(engine, "later")
    assert state.last_tick_at is not None
    record = await engine.tasks.get(state.last_task_id or "", user_id=None)
    planned = engine.schedules.timetable["later"].starts_at(int(state.last_tick_at.timestamp()))
    assert record.due_at is not None
    assert abs(record.due_at - planned) <= timedelta(milliseconds=1)


# Overlap.


async def test_a_tick_is_passed_over_while_the_last_task_is_unfinished(engine: Engine) -> None:
    await as_if_decided(engine.redis, "single", before_s=4)
    await engine.schedules.look(["single"])
    (first,) = await tasks_of(engine, "single")
    assert (await state_of(engine, "single")).last_outcome == "overlap"
    (held,) = await claim(engine.scripts)
    await as_if_decided(engine.redis, "single", before_s=1)
    await engine.schedules.look(["single"])
    state = await state_of(engine, "single")
    assert (state.last_outcome, state.last_task_id, state.last_status) == ("overlap", first, Status.STARTED)
    await engine.scripts.finish([end_of(held, "FAILURE")])
    await as_if_decided(engine.redis, "single", before_s=1)
    await engine.schedules.look(["single"])
    assert len(await tasks_of(engine, "single")) == 2


@pytest.mark.parametrize("status", [Status.SUCCESS, Status.FAILURE, Status.CANCELLED])
async def test_a_last_task_that_is_finished_is_no_obstacle_once_its_result_is_gone(
    engine: Engine, status: Status
) -> None:
    task_id = await engine.schedules.trigger("single")
    await engine.redis.hset(keys.task(task_id), "status", status)
    await engine.schedules.trigger("single")


async def test_a_last_task_that_a_stock_worker_finished_is_no_obstacle(engine: Engine) -> None:
    task_id = await engine.schedules.trigger("single")
    await engine.redis.set(keys.result(task_id), b"{}")  # all that a stock worker tells
    await engine.schedules.trigger("single")


async def test_a_last_task_that_is_forgotten_is_no_obstacle(engine: Engine) -> None:
    await engine.redis.hset(key_of("single"), mapping={"fired_task": "f" * 32, "fired_at": 1})
    await as_if_decided(engine.redis, "single", before_s=1)
    assert (await engine.schedules.look(["single"])).fired == 1


# What was missed.


async def test_what_was_missed_is_fired_as_one(engine: Engine) -> None:
    await as_if_decided(engine.redis, "nightly", before_s=3 * 3_600)
    assert (await engine.schedules.look(["nightly"])).fired == 1
    assert (await state_of(engine, "nightly")).last_outcome in ("caught_up", "fired")
    assert len(await tasks_of(engine, "nightly")) == 1


async def test_what_was_missed_is_forgotten(engine: Engine) -> None:
    await as_if_decided(engine.redis, "forgetful", before_s=3 * 3_600)
    fired = (await engine.schedules.look(["forgetful"])).fired
    state = await state_of(engine, "forgetful")
    assert (fired, state.last_outcome) in ((0, "missed"), (1, "fired"))  # a minute may just have begun
    assert len(await tasks_of(engine, "forgetful")) == fired


@pytest.mark.parametrize("before_s", [3_600, 1])
async def test_another_expression_owes_nothing_of_before(redis_url: str, before_s: int) -> None:
    async with engine_on(redis_url, (count,), schedules=[YEARLY]) as engine:
        await engine.schedules.look()
        before_ms = await as_if_decided(engine.redis, "yearly", before_s=before_s)
    changed = Schedule("yearly", "test.count", cron="* * * * *", catch_up="once")
    async with engine_on(redis_url, (count,), schedules=[changed]) as engine:
        now_ms = await server_ms(engine.redis)
        _, ((fields, _),) = await ScheduleScripts(engine.scripts).watch_schedules(
            [("yearly", engine.schedules.timetable["yearly"].definition)], register=True, late_ms=LATE_S * 1000
        )
        seen_ms = int(dict(zip(fields[::2], fields[1::2], strict=True))[b"seen"])
    # Workers of both versions may run: neither loses what it is not too late for.
    assert seen_ms == pytest.approx(max(before_ms, now_ms - LATE_S * 1000), abs=2_000)


# Operators.


async def test_a_paused_schedule_fires_nothing_then_or_later(engine: Engine) -> None:
    state = await engine.schedules.pause("second")
    assert (state.paused, state.next_at) == (True, None)
    await as_if_decided(engine.redis, "second", before_s=5)
    assert (await engine.schedules.look(["second"])).fired == 0
    assert (await state_of(engine, "second")).last_outcome == "paused"
    await as_if_decided(engine.redis, "second", before_s=5)
    state = await engine.schedules.resume("second")
    assert state.next_at is not None
    assert int(await engine.redis.hget(key_of("second"), "seen")) >= await server_ms(engine.redis) - 1_000
    assert await tasks_of(engine, "second") == []


async def test_pausing_and_resuming_twice_changes_nothing(engine: Engine) -> None:
    await engine.redis.hset(key_of("second"), "paused", 1)
    await engine.schedules.pause("second")
    assert await engine.redis.hget(key_of("second"), "paused") == b"1"
    await engine.schedules.resume("second")
    seen_ms = await as_if_decided(engine.redis, "second", before_s=2)
    await engine.schedules.resume("second")
    assert int(await engine.redis.hget(key_of("second"), "seen")) == seen_ms


async def test_a_trigger_starts_the_task_and_leaves_the_ticks_alone(engine: Engine) -> None:
    await engine.schedules.pause("yearly")
    task_id = await engine.schedules.trigger("yearly")
    record = await engine.tasks.get(task_id, user_id="ada")
    assert (record.task, record.tags, record.due_at) == ("test.count", ("schedule:yearly",), None)
    state = await state_of(engine, "yearly")
    assert (state.last_task_id, state.last_status, state.last_tick_at, state.paused) == (
        *(task_id, Status.PENDING, None),
        True,
    )


async def test_a_trigger_does_not_overlap_either(engine: Engine) -> None:
    first = await engine.schedules.trigger("yearly")
    with pytest.raises(Conflict, match=first):
        await engine.schedules.trigger("yearly")
    await engine.schedules.trigger("second")
    await engine.schedules.trigger("second")
    assert len(await tasks_of(engine, "yearly")) == 1
    assert len(await tasks_of(engine, "second")) == 2


async def test_a_trigger_whose_reply_is_lost_starts_one_task(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    fire, calls = ScheduleScripts.fire_schedule, []

    async def losing(*arguments: Any, **options: Any) -> tuple[str, str]:
        reply = await fire(*arguments, **options)
        calls.append(reply)
        if len(calls) == 1:
            raise RedisConnectionError("the reply is lost")
        return reply

    monkeypatch.setattr(ScheduleScripts, "fire_schedule", losing)
    task_id = await engine.schedules.trigger("single")
    assert calls == [("triggered", task_id)] * 2
    assert await tasks_of(engine, "single") == [task_id]


async def test_a_full_queue_leaves_the_tick_for_the_next_look(redis_url: str) -> None:
    async with engine_on(redis_url, (count,), schedules=[EVERY_SECOND], queue_max_depth=1) as engine:
        await engine.schedules.look()
        await engine.schedules.trigger("second")
        with pytest.raises(QueueFull):
            await engine.schedules.trigger("second")
        seen_ms = await as_if_decided(engine.redis, "second", before_s=1)
        assert (await engine.schedules.look()).fired == 0
        assert (await state_of(engine, "second")).last_outcome == "full"
        assert int(await engine.redis.hget(key_of("second"), "seen")) == seen_ms
        (held,) = await claim(engine.scripts)
        await engine.scripts.finish([end_of(held)])
        assert (await engine.schedules.look()).fired == 1
        assert (await state_of(engine, "second")).last_outcome in ("fired", "full")


async def test_an_unknown_schedule_is_not_found(engine: Engine) -> None:
    for call in (engine.schedules.trigger, engine.schedules.pause, engine.schedules.resume):
        with pytest.raises(NotFound):
            await call("nothing")
    assert await engine.redis.exists(key_of("nothing")) == 0


async def test_a_schedule_belongs_to_the_owner_of_its_tasks(engine: Engine) -> None:
    assert [state.entry.name for state in await engine.schedules.all(user_id="ada")] == ["yearly"]
    assert len(await engine.schedules.all(user_id=None)) == len(SCHEDULES)
    with pytest.raises(NotFound):
        await engine.schedules.get("yearly", user_id="bob")


async def test_reading_a_schedule_begins_nothing(redis_url: str) -> None:
    async with engine_on(redis_url, (count,), schedules=SCHEDULES) as engine:
        (state, *_) = await engine.schedules.all(user_id="ada")
        assert state.next_at is not None
        assert state.next_at.tzinfo is UTC
        assert await engine.redis.exists(key_of("yearly")) == 0


# arq's cron entries.


async def test_an_entry_comes_at_each_tick_in_its_own_zone(engine: Engine) -> None:
    jobs = {job.name: job for job in schedule_jobs(engine.schedules.timetable)}
    yearly = jobs["schedule.yearly"]
    with time_machine.travel(datetime(2026, 11, 22, tzinfo=UTC), tick=False):
        yearly.calculate_next(datetime.now(UTC))
    assert yearly.next_run == datetime(2026, 12, 31, 23, tzinfo=UTC)
    with time_machine.travel(datetime(2026, 11, 22, tzinfo=UTC), tick=False):
        yearly.calculate_next(yearly.next_run)  # as arq does, a little before it comes
    assert yearly.next_run == datetime(2027, 12, 31, 23, tzinfo=UTC)


async def test_an_entry_leaves_the_ticks_behind_that_the_hosts_clock_jumped_over(engine: Engine) -> None:
    (second,) = [job for job in schedule_jobs(engine.schedules.timetable) if job.name == "schedule.second"]
    with time_machine.travel(datetime(2026, 11, 22, tzinfo=UTC), tick=False) as clock:
        second.calculate_next(datetime.now(UTC))
        clock.shift(timedelta(days=1))
        assert second.next_run is not None
        second.calculate_next(second.next_run)
        assert second.next_run == datetime(2026, 11, 23, 0, 0, 1, tzinfo=UTC)


@pytest.mark.parametrize("ahead", [timedelta(days=1), timedelta(minutes=-10), timedelta(0)])
async def test_a_host_with_a_wrong_clock_fires_what_is_due_on_the_servers(engine: Engine, ahead: timedelta) -> None:
    (second,) = [job for job in schedule_jobs(engine.schedules.timetable) if job.name == "schedule.second"]
    seen_ms = await as_if_decided(engine.redis, "second", before_s=3)
    with time_machine.travel(datetime.now(UTC) + ahead):
        await second.coroutine({"engine": engine})
    decided_ms = int(await engine.redis.hget(key_of("second"), "seen"))
    assert len(await tasks_of(engine, "second")) == decided_ms // 1000 - seen_ms // 1000
    assert decided_ms <= await server_ms(engine.redis)


async def test_an_entry_that_comes_a_little_early_waits_for_the_tick(engine: Engine) -> None:
    (second,) = [job for job in schedule_jobs(engine.schedules.timetable) if job.name == "schedule.second"]
    await engine.redis.hset(key_of("second"), "seen", await server_ms(engine.redis) // 1000 * 1000 + 999)
    await second.coroutine({"engine": engine})
    assert len(await tasks_of(engine, "second")) == 1
