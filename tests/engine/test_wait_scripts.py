"""What the scripts of waits do besides changing who waits: they wake workers, and keep what is waited for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from pydantic import BaseModel
from pydantic_core import to_json
from redis.asyncio import Redis

from app.engine.context import TaskContext
from app.engine.job import Status
from app.engine.registry import task
from app.engine.submissions import Submission
from app.store import keys
from app.store.items import Delivery, StepRecord, TakeEvent
from app.store.scripts import CLAIM_STEPS_BYTES, Scripts
from tests.simulated import DAY_MS, HOUR_MS, Held, claim, end_of, lapse, new_task, put, server_ms, wait_of
from tests.support import engine_on, finished


class Nothing(BaseModel):
    pass


@task("test.done")
async def done(ctx: TaskContext, params: Nothing) -> None:
    """Nothing more."""


@pytest.fixture
def scripts(redis: Redis) -> Scripts:
    return Scripts(redis)


async def started(scripts: Scripts, *names: str) -> dict[str, Held]:
    """Tasks that run."""
    await put(scripts, *(new_task(name) for name in names))
    return {held.id: held for held in await claim(scripts)}


async def kept_until(redis: Redis, name: str) -> tuple[float, float]:
    """Until when the record of a finished task and its result are kept (Unix ms)."""
    finished = await redis.zscore(keys.PREFIXES["finished"], name)
    return finished, await server_ms(redis) + await redis.pttl(keys.result(name))


Happening = Callable[[Scripts, dict[str, Held]], Awaitable[object]]


async def _end(scripts: Scripts, held: dict[str, Held]) -> object:
    return await scripts.finish([end_of(held["child"])])


async def _cancel(scripts: Scripts, held: dict[str, Held]) -> object:
    await lapse(scripts.redis, held["child"])
    await scripts.redis.hset(keys.task("child"), "status", "PENDING")
    return await scripts.cancel(["child"], DAY_MS)


async def _deliver(scripts: Scripts, held: dict[str, Held]) -> object:
    return await scripts.deliver_event(Delivery("parent", "ada", "go", b"1", "", 10))


@pytest.mark.parametrize("happens", [_end, _cancel, _deliver])
async def test_what_is_waited_for_wakes_a_sleeping_worker(scripts: Scripts, redis: Redis, happens: Happening) -> None:
    held = await started(scripts, "parent", "child")
    subject = "event:go" if happens is _deliver else "task:child"
    assert await scripts.suspend([wait_of(held["parent"], subject)]) == [1]
    await redis.delete(keys.sleepers("default"))
    assert await claim(scripts, "idle") == []
    await happens(scripts, held)
    assert await redis.lrange(keys.wake("idle"), 0, -1) == [b"default"]
    assert [again.id for again in await claim(scripts)] == ["parent"]


async def test_a_wait_that_is_over_when_it_begins_wakes_a_sleeping_worker(scripts: Scripts, redis: Redis) -> None:
    held = await started(scripts, "parent", "child")
    await scripts.finish([end_of(held["child"])])
    await redis.delete(keys.sleepers("default"))
    assert await claim(scripts, "idle") == []
    assert await scripts.suspend([wait_of(held["parent"], "task:child")]) == [1]
    assert await redis.lrange(keys.wake("idle"), 0, -1) == [b"default"]


async def test_tasks_that_resume_do_not_wait_behind_the_new_ones_of_their_user(scripts: Scripts) -> None:
    held = await started(scripts, "second", "first")
    await scripts.suspend([wait_of(held[name], "event:go") for name in held])
    await put(scripts, *(new_task(f"new{number}") for number in range(4)))
    for name in ("first", "second"):
        await scripts.deliver_event(Delivery(name, "ada", "go", b"1", "", 10))
    resumed = [task.id for task in await claim(scripts, want=4) if not task.id.startswith("new")]
    assert resumed == ["first", "second"]


async def test_an_attempt_that_was_overtaken_changes_nothing(scripts: Scripts, redis: Redis) -> None:
    held = await started(scripts, "parent")
    await scripts.deliver_event(Delivery("parent", "ada", "go", b"1", "", 10))
    await lapse(redis, held["parent"])
    (again,) = await claim(scripts, "w2")
    before = {key: await redis.dump(key) async for key in redis.scan_iter()}
    step = StepRecord("parent", held["parent"].token, 0, b'"event go"', b'{"value":', 0.0)
    assert await scripts.suspend([wait_of(held["parent"], "event:other")]) == [0]
    assert await scripts.take_event([TakeEvent(step, "go")]) == [[b"stale"]]
    assert await scripts.record_step([step]) == [0]
    assert {key: await redis.dump(key) async for key in redis.scan_iter()} == before
    assert await scripts.suspend([wait_of(again, "event:other")]) == [1]


async def test_who_has_stopped_waiting_for_a_task_is_not_resumed_by_its_end(scripts: Scripts, redis: Redis) -> None:
    held = await started(scripts, "parent", "child", "other")
    await scripts.suspend([wait_of(held["parent"], "task:child", "task:other", fail_fast=True)])
    await scripts.finish([end_of(held["other"], "FAILURE")])
    (again,) = await claim(scripts)
    await scripts.record_step([StepRecord("parent", again.token, 0, b'"wait"', b"{}", 0.0, True)])
    await scripts.suspend([wait_of(again, number=1, fail_fast=True)])
    assert await scripts.finish([end_of(held["child"], "FAILURE")]) == [1]
    assert await redis.hget(keys.task("parent"), "status") == b"WAITING"
    assert await claim(scripts) == []


@pytest.mark.parametrize("status", ["SUCCESS", "FAILURE", "CANCELLED"])
@pytest.mark.parametrize("ends_before", [True, False])
@pytest.mark.parametrize("fail_fast", [True, False])
async def test_only_a_failure_ends_a_wait_that_fails_fast(
    scripts: Scripts, redis: Redis, status: str, ends_before: bool, fail_fast: bool
) -> None:
    held = await started(scripts, "parent", "child", "other")
    wait = wait_of(held["parent"], "task:child", "task:other", fail_fast=fail_fast)
    ends = [scripts.finish([end_of(held["child"], status)]), scripts.suspend([wait])]
    for call in ends if ends_before else reversed(ends):
        assert await call == [1]
    resumed = fail_fast and status != "SUCCESS"
    assert await redis.hget(keys.task("parent"), "status") == (b"PENDING" if resumed else b"WAITING")
    assert [again.id for again in await claim(scripts)] == ["parent"] * resumed


async def test_results_outlive_the_wait_for_them(scripts: Scripts, redis: Redis) -> None:
    """Those of tasks that ended before the wait began, and of those that end while it lasts."""
    held = await started(scripts, "parent", "early", "late", "last", "apart")
    await scripts.finish([end_of(held["early"], ttl_ms=HOUR_MS)])
    await scripts.suspend([wait_of(held["parent"], "task:early", "task:late", "task:last")])
    deadline_ms = int(await redis.hget(keys.task("parent"), "wait_until"))
    await scripts.finish([end_of(held["late"], ttl_ms=HOUR_MS), end_of(held["apart"], ttl_ms=HOUR_MS)])
    for name in ("early", "late"):
        for until_ms in await kept_until(redis, name):
            assert deadline_ms + HOUR_MS - 2_000 < until_ms < deadline_ms + HOUR_MS + 2_000
    for until_ms in await kept_until(redis, "apart"):
        assert until_ms < await server_ms(redis) + HOUR_MS + 2_000


async def test_results_outlive_the_wait_of_a_task_that_begins_after_others(scripts: Scripts, redis: Redis) -> None:
    held = await started(scripts, "early", "late")
    await scripts.finish([end_of(held["early"], ttl_ms=HOUR_MS)])
    await put(scripts, new_task("then", extra=to_json(["after", "early\nlate"])))
    deadline_ms = int(await redis.hget(keys.task("then"), "wait_until"))
    assert min(await kept_until(redis, "early")) > deadline_ms


async def test_waiting_again_and_again_does_not_keep_a_result_for_ever(scripts: Scripts, redis: Redis) -> None:
    held = await started(scripts, "early", "late", *(f"parent{number}" for number in range(5)))
    await scripts.finish([end_of(held["early"], ttl_ms=HOUR_MS)])
    for number in range(5):
        await scripts.suspend([wait_of(held[f"parent{number}"], "task:early", "task:late")])
    limit_ms = await server_ms(redis) + DAY_MS + HOUR_MS + 2_000
    assert max(await kept_until(redis, "early")) < limit_ms


async def test_an_event_whose_taking_is_repeated_is_taken_once(scripts: Scripts) -> None:
    held = await started(scripts, "parent")
    for payload in (b"1", b"2"):
        await scripts.deliver_event(Delivery("parent", "ada", "go", payload, "", 10))
    items = [StepRecord("parent", held["parent"].token, number, b'"event go"', b'{"value":', 0.0) for number in (0, 1)]
    replies = await scripts.take_event([TakeEvent(items[number], "go") for number in (0, 0, 1, 1)])
    assert replies == [[b"ok", b'{"value":1}']] * 2 + [[b"ok", b'{"value":2}']] * 2
    more = StepRecord("parent", held["parent"].token, 2, b'"event go"', b'{"value":', 0.0)
    assert await scripts.take_event([TakeEvent(more, "go")]) == [[b"none"]]


async def test_small_steps_come_with_the_claim_and_large_ones_do_not(scripts: Scripts, redis: Redis) -> None:
    """Also those that a replay took over from a dead letter."""
    held = await started(scripts, "small", "large")
    for name, size in (("small", 1_000), ("large", CLAIM_STEPS_BYTES)):
        result = b'"%b"' % (b"x" * size)
        await scripts.record_step([StepRecord(name, held[name].token, 0, b'"one"', result, 0.0)] * 2)
        await scripts.suspend([wait_of(held[name], "event:go", number=1)])
        await scripts.deliver_event(Delivery(name, "ada", "go", b"1", "", 10))
    again = {task.id: task for task in await claim(scripts)}
    assert set((again["small"].steps or [])[::2]) == {b"0", b"result:0", b"wait:1"}
    assert again["large"].steps is None
    assert again["large"].fields["steps"] == "1"
    await scripts.finish([end_of(task, "FAILURE") for task in again.values()])
    await put(scripts, *(new_task(f"{name}2", letter=name, takes_steps=True) for name in again))
    replays = {task.id: task for task in await claim(scripts)}
    assert set((replays["small2"].steps or [])[::2]) == {b"0", b"result:0"}
    assert replays["large2"].steps is None
    for name in ("small", "large"):
        assert replays[f"{name}2"].fields["step_bytes"] == again[name].fields["step_bytes"]


async def test_more_subjects_than_a_command_has_arguments_are_waited_for(scripts: Scripts, redis: Redis) -> None:
    held = await started(scripts, "parent")
    names = [f"child{number}" for number in range(2_500)]
    await put(scripts, *(new_task(name, queue="other") for name in names))
    await scripts.suspend([wait_of(held["parent"], *(f"task:{name}" for name in names))])
    assert await redis.scard(keys.PREFIXES["pending"] + "parent") == 2_500
    children = await claim(scripts, queue="other", want=2_500)
    await scripts.finish([end_of(child) for child in children[:-1]])
    while await scripts.tell_waiters():
        pass
    assert await claim(scripts) == []
    await scripts.finish([end_of(children[-1])])
    assert [again.id for again in await claim(scripts)] == ["parent"]


async def test_a_stock_workers_end_resumes_who_waits_for_it_and_is_kept(scripts: Scripts, redis: Redis) -> None:
    held = await started(scripts, "parent", "child")
    await scripts.suspend([wait_of(held["parent"], "task:child")])
    deadline_ms = int(await redis.hget(keys.task("parent"), "wait_until"))
    await redis.zrem(keys.queue("default"), "child")
    await redis.set(keys.result("child"), b"{}", px=HOUR_MS)
    ended = await scripts.settle_stock(
        "child",
        status="SUCCESS",
        error=b"",
        finished_ms=await server_ms(redis),
        attempt=1,
        ttl_ms=HOUR_MS,
        event_type="task_complete",
        event=b"{}",
    )
    assert ended
    assert min(await kept_until(redis, "child")) >= deadline_ms
    assert [again.id for again in await claim(scripts)] == ["parent"]


async def test_what_a_stock_client_aborts_while_it_waits_is_cancelled_with_what_it_waits_for(
    scripts: Scripts, redis: Redis
) -> None:
    """arq puts a task that it aborts in front, so that a claim may see it before a heartbeat does."""
    await put(scripts, new_task("parent"))
    (parent,) = await claim(scripts)
    await put(scripts, new_task("child", parent_id="parent", parent_token=parent.token))
    await claim(scripts)
    await scripts.suspend([wait_of(parent, "task:child")])
    await redis.zadd(keys.QUEUE, {"parent": 1})
    await redis.zadd(keys.ABORT, {"parent": await server_ms(redis)})
    (resumed,) = await claim(scripts)
    await scripts.finish([end_of(resumed, "CANCELLED")])
    assert resumed.fields["cancel"] == "1"
    aborted = await scripts.heartbeat("w1", b"{}", 10_000)
    assert aborted == [b"parent"]
    await scripts.cancel([task_id.decode() for task_id in aborted], DAY_MS)
    assert await redis.hget(keys.task("child"), "cancel") == b"1"


async def test_of_many_who_wait_for_one_task_no_call_tells_more_than_its_bound(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.scripts.TOLD_AT_ONCE", 10)
    scripts = Scripts(redis)
    held = await started(scripts, "one", "other", *(f"waits-{n:02}" for n in range(25)))
    waiting = sorted(set(held) - {"one", "other"})
    await scripts.suspend([wait_of(held[name], "task:one" if name < "waits-20" else "task:other") for name in waiting])
    await scripts.finish([end_of(held["one"]), end_of(held["other"])])
    told = [[again.id for again in await claim(scripts)]]
    for more in (True, False):
        assert await scripts.tell_waiters() is more
        told.append([again.id for again in await claim(scripts)])
    assert [len(ids) for ids in told] == [10, 10, 5]
    assert sorted(name for ids in told for name in ids) == waiting
    assert not await redis.exists(keys.PREFIXES["untold"])
    assert await scripts.tell_waiters() is False


async def test_who_is_told_later_that_a_task_failed_does_not_wait_for_the_others(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.scripts.TOLD_AT_ONCE", 1)
    scripts = Scripts(redis)
    held = await started(scripts, "one", "other", "first", "second", "patient")
    subjects = ("task:one", "task:other")
    await scripts.suspend([wait_of(held[name], *subjects, fail_fast=name != "patient") for name in ("first", "second")])
    await scripts.suspend([wait_of(held["patient"], *subjects)])
    await scripts.finish([end_of(held["one"], "FAILURE")])
    while await scripts.tell_waiters():
        pass
    assert sorted(again.id for again in await claim(scripts)) == ["first", "second"]


async def test_a_call_that_tells_many_leaves_the_worker_to_tell_the_rest(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.scripts.TOLD_AT_ONCE", 3)
    async with engine_on(redis_url, (done,)) as engine:
        first = (await engine.tasks.enqueue(Submission("test.done"), user_id="ada")).task_id
        behind = [Submission("test.done", after=(first,)) for _ in range(10)]
        made = await engine.tasks.enqueue_many(behind, user_id="ada")
        async with engine.worker():
            for item in made:
                assert (await finished(engine, item.task_id)).status is Status.SUCCESS
