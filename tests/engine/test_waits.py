"""Waiting holds nothing, loses no wake-up, doubles none, and has an end."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from loguru import logger
from pydantic import BaseModel
from redis.asyncio import Redis

from app.engine.context import TaskContext
from app.engine.job import Status, TaskRecord
from app.engine.lane import LaneSettings
from app.engine.policy import RetryPolicy
from app.engine.queue import Filter
from app.engine.registry import task
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.engine.waits import Call, End, OnError
from app.errors import (
    ChildFailed,
    Conflict,
    InvalidInput,
    NotFound,
    PermanentError,
    RetryableError,
    TooLarge,
    WaitTimeout,
)
from app.store import keys
from tests.support import engine_on, event_of, finished

SOON = timedelta(milliseconds=50)
effects: Counter[str] = Counter()


class Number(BaseModel):
    value: int


class Group(BaseModel):
    values: list[int]
    on_error: OnError = OnError.FAIL_FAST


class Name(BaseModel):
    name: str = "go"
    timeout_s: float = 60.0


@pytest.fixture(autouse=True)
def no_effects() -> None:
    effects.clear()


@task("test.double", retry=RetryPolicy(max_retries=0))
async def double(ctx: TaskContext, params: Number) -> Number:
    """Negative numbers fail, zero never ends."""
    effects[f"double {params.value}"] += 1
    if params.value < 0:
        raise PermanentError(f"{params.value} is negative")
    if params.value == 0:
        await asyncio.Event().wait()
    return Number(value=2 * params.value)


@task("test.call", retry=RetryPolicy(max_retries=3, base_s=0.01))
async def caller(ctx: TaskContext, params: Number) -> Number:
    effects["entered"] += 1
    found = await ctx.call(double, params)
    effects["called"] += 1
    if ctx.attempt == 1 and params.value == 7:
        raise RetryableError("after the call")
    return Number(value=found.value + 1)


@task("test.group")
async def group(ctx: TaskContext, params: Group) -> list[Any]:
    calls = [Call(double, Number(value=value)) for value in params.values]
    found = await ctx.gather(calls, on_error=params.on_error)
    return [item.value if isinstance(item, Number) else type(item).__name__ for item in found]


@task("test.caught")
async def caught(ctx: TaskContext, params: Number) -> str:
    try:
        await ctx.call("test.double", {"value": params.value}, timeout=SOON if params.value == 0 else timedelta(days=1))
    except (ChildFailed, WaitTimeout) as error:
        await ctx.sleep(timedelta())
        return f"{type(error).__name__}: {error}"
    return "fine"


@task("test.event")
async def event(ctx: TaskContext, params: Name) -> list[Any]:
    effects["entered"] += 1
    first = await ctx.wait_event(params.name, timeout=timedelta(seconds=params.timeout_s))
    second = await ctx.wait_event(params.name, timeout=timedelta(seconds=params.timeout_s), returns=Number)
    return [first, second.value]


@task("test.nap")
async def nap(ctx: TaskContext, params: Name) -> str:
    effects["entered"] += 1
    await ctx.sleep(timedelta(seconds=params.timeout_s))
    return "rested"


@task("test.join")
async def join(ctx: TaskContext, params: Group) -> list[str]:
    ids = [await ctx.start(double, Number(value=value)) for value in params.values]
    ends: list[End] = await ctx.join([*ids, *ids[:1]])
    return [end.status for end in ends]


@task("test.watch")
async def watch(ctx: TaskContext, params: Name) -> str:
    (end,) = await ctx.join([params.name])
    return end.status


@task("test.two_at_once")
async def two_at_once(ctx: TaskContext, params: Number) -> str:
    first, second = await asyncio.gather(ctx.call(double, Number(value=1)), ctx.call(double, Number(value=2)))
    return f"{first!r} {second!r}"


@task("test.inside")
async def inside(ctx: TaskContext, params: Number) -> Number:
    return await ctx.step("outer", lambda: ctx.call(double, params), returns=Number)


@task("test.stubborn")
async def stubborn(ctx: TaskContext, params: Number) -> str:
    effects["entered"] += 1
    try:
        await ctx.call(double, params)
    except asyncio.CancelledError:
        return "I do not wait"
    return "waited"


@task("test.beside")
async def beside(ctx: TaskContext, params: Number) -> str:
    """A step that takes longer than it takes the task to come to its wait."""

    async def slow() -> str:
        effects["slow"] += 1
        await asyncio.sleep(0.1)
        return "slow"

    step, found = await asyncio.gather(ctx.step("slow", slow), ctx.call(double, params))
    return f"{step} {found.value}"


TASKS = (double, caller, group, caught, event, nap, join, watch, two_at_once, inside, stubborn, beside)


async def put(engine: Engine, name: str, params: dict[str, Any]) -> str:
    return (await engine.tasks.enqueue(Submission(task=name, params=params), user_id="ada")).task_id


async def run(engine: Engine, name: str, params: dict[str, Any]) -> TaskRecord:
    task_id = await put(engine, name, params)
    await finished(engine, task_id)
    return await engine.tasks.get(task_id, user_id="ada", with_result=True)


async def test_a_call_gives_the_childs_typed_result_and_costs_no_try(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.call", {"value": 4})
    assert record.result == {"value": 9}
    assert record.attempt == 1
    assert effects == {"entered": 2, "double 4": 1, "called": 1}
    assert [step.name for step in record.steps] == ["call test.double"]


async def test_a_retry_behind_a_call_does_not_call_again(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.call", {"value": 7})
    assert record.result == {"value": 15}
    assert record.attempt == 2
    assert effects["double 7"] == 1


async def test_a_waiting_task_holds_no_slot_and_says_what_it_waits_for(redis_url: str) -> None:
    lanes = {"default": LaneSettings(1)}
    async with engine_on(redis_url, TASKS, lanes=lanes) as engine, engine.worker() as worker:
        task_id = await put(engine, "test.event", {"name": "paid"})
        waiting = await event_of(engine, task_id, "task_waiting")
        record = await engine.tasks.get(task_id, user_id="ada")
        assert record.status is Status.WAITING
        assert record.waiting_for is not None
        assert record.waiting_for["kind"] == waiting["waiting_for"]["kind"] == "event"
        assert record.waiting_for["name"] == "paid"
        assert record.waiting_for["until"] > record.enqueued_at
        assert (await engine.queues.get("default")).waiting == 1
        # The only slot of the lane is free for another.
        assert (await run(engine, "test.double", {"value": 1})).status is Status.SUCCESS
        assert worker.lanes["default"].idle
        await engine.inbox.deliver(task_id, "paid", {"amount": 3}, user_id="ada")
        await engine.inbox.deliver(task_id, "paid", {"value": 4}, user_id="ada")
        await finished(engine, task_id)
        record = await engine.tasks.get(task_id, user_id="ada", with_result=True)
        stats = await engine.queues.get("default")
    assert record.result == [{"amount": 3}, 4]
    assert record.waiting_for is None
    assert (stats.waiting, stats.running, stats.ready) == (0, 0, 0)


async def test_the_log_says_in_words_that_a_task_waits_and_nothing_of_what_it_is_given(redis_url: str) -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{level} {message}", level="DEBUG")
    try:
        async with engine_on(redis_url, TASKS) as engine, engine.worker():
            task_id = await put(engine, "test.event", {"name": "paid"})
            await event_of(engine, task_id, "task_waiting")
            for _ in range(2):
                await engine.inbox.deliver(task_id, "paid", {"value": "c0nfidential"}, user_id="ada")
            await finished(engine, task_id)
    finally:
        logger.remove(sink)
    assert "INFO task waits: event paid\n" in lines
    assert "c0nfidential" not in "".join(lines)


async def test_events_that_come_before_the_wait_are_kept_in_their_order(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine:
        task_id = await put(engine, "test.event", {})
        assert await engine.inbox.deliver(task_id, "go", "first", user_id="ada", key="one")
        assert not await engine.inbox.deliver(task_id, "go", "first again", user_id="ada", key="one")
        assert await engine.inbox.deliver(task_id, "other", "of another name", user_id="ada")
        assert await engine.inbox.deliver(task_id, "go", {"value": 2}, user_id=None)
        async with engine.worker():
            await finished(engine, task_id)
        record = await engine.tasks.get(task_id, user_id="ada", with_result=True)
        assert record.result == ["first", 2]
        with pytest.raises(Conflict, match="is finished"):
            await engine.inbox.deliver(task_id, "go", user_id="ada")


async def test_an_event_is_delivered_by_the_owner_only_and_within_bounds(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine:
        task_id = await put(engine, "test.event", {})
        with pytest.raises(NotFound):
            await engine.inbox.deliver(task_id, "go", user_id="bob")
        with pytest.raises(InvalidInput, match="name"):
            await engine.inbox.deliver(task_id, "go there", user_id="ada")
        with pytest.raises(TooLarge, match="65536"):
            await engine.inbox.deliver(task_id, "go", "x" * 65_536, user_id="ada")
        with pytest.raises(TooLarge, match="1000 events"):
            for number in range(1_100):
                await engine.inbox.deliver(task_id, "go", number, user_id="ada")


async def test_a_wait_for_an_event_times_out(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.event", {"timeout_s": 0.05})
    assert record.status is Status.FAILURE
    assert record.error is not None
    assert record.error.type == "WaitTimeout"
    assert record.error.message == "event go: nothing came within 0.05 s"


async def test_a_sleep_ends_at_its_time_and_survives_a_stop_of_the_worker(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine:
        async with engine.worker():
            task_id = await put(engine, "test.nap", {"timeout_s": 0.3})
            await event_of(engine, task_id, "task_waiting")
        async with engine.worker():
            await finished(engine, task_id)
        record = await engine.tasks.get(task_id, user_id="ada", with_result=True)
    assert record.result == "rested"
    assert record.finished_at is not None
    assert record.started_at is not None
    # It began once, and waited within its only attempt.
    assert record.finished_at - record.started_at >= timedelta(seconds=0.3)
    assert record.finished_at - record.enqueued_at >= timedelta(seconds=0.3)
    assert effects["entered"] == 2


async def test_a_group_gives_results_in_the_order_of_its_calls(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.group", {"values": list(range(1, 301))})
    assert record.result == [2 * value for value in range(1, 301)]
    assert max(effects.values()) == 1


async def test_an_empty_group_waits_for_nothing(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        assert (await run(engine, "test.group", {"values": []})).result == []


async def test_the_first_failure_of_a_group_cancels_the_rest(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.group", {"values": [1, -2, 0]})
        children = [
            item for item in (await engine.tasks.page(Filter(), user_id="ada")).items if item.task == "test.double"
        ]
        for child in children:
            await finished(engine, child.task_id)
        ended = [await engine.tasks.get(child.task_id, user_id="ada") for child in children]
    assert record.status is Status.FAILURE
    assert record.error is not None
    assert record.error.type == "ChildFailed"
    assert "-2 is negative" in record.error.message
    assert sorted(child.status for child in ended) == ["CANCELLED", "FAILURE", "SUCCESS"]


async def test_a_group_may_finish_all_and_then_fail(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.group", {"values": [-1, 2, 3], "on_error": "finish"})
    assert record.status is Status.FAILURE
    assert effects == {"double -1": 1, "double 2": 1, "double 3": 1}


async def test_a_group_tells_of_the_failure_and_not_of_what_was_cancelled(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        task_id = await put(engine, "test.group", {"values": [0, -1], "on_error": "finish"})
        waiting = await event_of(engine, task_id, "task_waiting")
        endless, failing = waiting["waiting_for"]["task_ids"]
        await finished(engine, failing)
        await engine.tasks.cancel(endless, user_id="ada")
        record = await finished(engine, task_id)
    assert record.error is not None
    assert "-1 is negative" in record.error.message


async def test_a_group_may_collect_errors_as_values(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.group", {"values": [1, -2, 3], "on_error": "collect"})
    assert record.result == [2, "ChildFailed", 6]


@pytest.mark.parametrize(("value", "told"), [(-5, "ChildFailed: test.double"), (0, "WaitTimeout: call test.double")])
async def test_a_task_may_catch_how_its_child_failed_and_sees_the_same_when_it_comes_again(
    redis_url: str, value: int, told: str
) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.caught", {"value": value})
        assert record.result.startswith(told)
        children = [
            item for item in (await engine.tasks.page(Filter(), user_id="ada")).items if item.task == "test.double"
        ]
        for child in children:
            await finished(engine, child.task_id)
    assert effects[f"double {value}"] == 1


async def test_children_that_have_ended_before_anybody_waits_are_found(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.join", {"values": [1, -2, 3]})
    assert record.result == ["SUCCESS", "FAILURE", "SUCCESS", "SUCCESS"]
    assert max(effects.values()) == 1


async def test_any_number_of_tasks_may_wait_for_one(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        slow = await put(engine, "test.event", {})
        watchers = [await put(engine, "test.watch", {"name": slow}) for _ in range(40)]
        for watcher in watchers:
            await event_of(engine, watcher, "task_waiting")
        await engine.tasks.cancel(slow, user_id="ada")
        for watcher in watchers:
            await finished(engine, watcher)
        results = [(await engine.tasks.get(one, user_id="ada", with_result=True)).result for one in watchers]
        stranger = await engine.tasks.enqueue(Submission("test.watch", {"name": slow}), user_id="bob")
        await finished(engine, stranger.task_id)
        refused = await engine.tasks.get(stranger.task_id, user_id="bob")
    assert results == ["CANCELLED"] * 40
    assert refused.error is not None
    assert refused.error.type == "NotFound"


async def test_cancelling_a_waiting_task_cancels_its_children_and_leaves_nothing(redis_url: str, redis: Redis) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        task_id = await put(engine, "test.call", {"value": 0})
        waiting = await event_of(engine, task_id, "task_waiting")
        (child,) = waiting["waiting_for"]["task_ids"]
        await event_of(engine, child, "task_started")
        record = await engine.tasks.cancel(task_id, user_id="ada")
        assert record.status is Status.CANCELLED
        await finished(engine, child)
        assert (await engine.tasks.get(child, user_id="ada")).status is Status.CANCELLED
        stats = await engine.queues.get("default")
    assert (stats.waiting, stats.running) == (0, 0)
    assert not await redis.exists(keys.PREFIXES["pending"] + task_id, keys.PREFIXES["waiters"] + child)


async def test_waits_that_begin_at_once_are_all_waited_for(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.two_at_once", {"value": 1})
    assert record.result == "Number(value=2) Number(value=4)"
    assert effects == {"double 1": 1, "double 2": 1}


async def test_a_step_beside_a_wait_ends_before_the_task_leaves(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.beside", {"value": 3})
    assert record.result == "slow 6"
    assert effects["slow"] == 1


async def test_waiting_inside_a_step_is_refused(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.inside", {"value": 1})
    assert record.error is not None
    assert "'call test.double' inside the step 'outer'" in record.error.message


async def test_a_task_that_swallows_its_interruption_waits_all_the_same(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.stubborn", {"value": 1})
    assert record.result == "waited"
    assert effects["entered"] == 2
