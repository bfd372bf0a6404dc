"""Keys, groups and what authors say of them, with real workers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from app.engine.context import TaskContext
from app.engine.gates import KeyBusy, KeyPolicy, OnBusy
from app.engine.job import Status
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.engine.waits import Call, OnError
from app.errors import Conflict, InvalidInput, PermanentError, RetryableError
from app.store import keys
from tests.support import engine_on, finished

FAST = RetryPolicy(max_retries=3, base_s=0.01, jitter=False)
log: list[str] = []
busy: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def nothing_has_run() -> None:
    busy.clear()
    log.clear()


class Turn(BaseModel):
    conversation_id: int = 42
    number: int = 0
    failures: int = 0


class Group(BaseModel):
    size: int
    limit: int
    fail_at: int = -1
    on_error: OnError = OnError.FAIL_FAST


@task("test.turn", retry=FAST, key=lambda params: f"conversation:{params.conversation_id}")
async def turn(ctx: TaskContext, params: Turn) -> int:
    log.append(f"{params.number}.{ctx.attempt}")
    await asyncio.sleep(0)
    if ctx.attempt <= params.failures:
        raise RetryableError("once more")
    if params.number == 1:
        await ctx.sleep(timedelta(milliseconds=20))
    log.append(f"{params.number} done")
    return params.number


@task("test.piece", retry=RetryPolicy(max_retries=0))
async def piece(ctx: TaskContext, params: Turn) -> int:
    busy["now"] += 1
    busy["most"] = max(busy["most"], busy["now"])
    await asyncio.sleep(0.001)
    busy["now"] -= 1
    log.append(str(params.number))
    if params.failures:
        raise PermanentError("broken")
    return params.number


@task("test.parts")
async def parts(ctx: TaskContext, params: Group) -> list[int]:
    log.append("entered")
    calls = [Call(piece, Turn(number=n, failures=int(n == params.fail_at))) for n in range(params.size)]
    return await ctx.gather(calls, limit=params.limit, on_error=params.on_error)


@task("test.single", key="the one", on_busy="join")
async def single(ctx: TaskContext, params: Turn) -> int:
    log.append("single")
    await ctx.wait_event("go")
    return params.number


@task("test.refresh", key="the other", on_busy="reject")
async def refresh(ctx: TaskContext, params: Turn) -> int:
    return params.number


@task("test.asks")
async def asks(ctx: TaskContext, params: Turn) -> int:
    return await ctx.call(single, params, timeout=timedelta(seconds=params.failures or 60))


@task("test.recursive", key="circle")
async def recursive(ctx: TaskContext, params: Turn) -> int:
    return await ctx.call("test.recursive", params)


@task("test.saved", key=lambda params: f"page:{params.conversation_id}", debounce=timedelta(milliseconds=30))
async def saved(ctx: TaskContext, params: Turn) -> int:
    log.append(str(params.number))
    return params.number


TASKS = (turn, piece, parts, single, refresh, asks, recursive, saved)


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    async with engine_on(redis_url, TASKS) as engine:
        yield engine


async def submit(engine: Engine, name: str, *, user_id: str = "ada", **params: Any) -> str:
    return (await engine.tasks.enqueue(Submission(name, params), user_id=user_id)).task_id


async def test_turns_of_a_conversation_run_in_order_under_retries_and_waits(engine: Engine) -> None:
    items = [Submission("test.turn", {"number": n, "failures": 2 * (n % 2)}) for n in range(4)]
    made = await engine.tasks.enqueue_many(items, user_id="ada")
    shown = await engine.tasks.get(made[3].task_id, user_id="ada")
    assert (shown.key, shown.behind, shown.next_attempt_at) == ("conversation:42", 3, None)
    async with engine.worker(), engine.worker():
        for item in made:
            assert (await finished(engine, item.task_id)).status is Status.SUCCESS
    assert log == [
        "0.1",
        "0 done",
        "1.1",
        "1.2",
        "1.3",
        "1.3",
        "1 done",
        "2.1",
        "2 done",
        "3.1",
        "3.2",
        "3.3",
        "3 done",
    ]
    assert not await engine.redis.keys(keys.gate("*"))


async def test_a_group_with_a_limit_runs_so_many_at_once_and_resumes_its_parent_once(engine: Engine) -> None:
    async with engine.worker():
        done = await finished(engine, await submit(engine, "test.parts", size=1_000, limit=3))
    assert done.result == list(range(1_000))
    assert (busy["most"], log.count("entered")) == (3, 2)
    assert not await engine.redis.keys(keys.gate("*"))


async def test_a_group_that_fails_fast_starts_none_of_those_held_back(engine: Engine) -> None:
    async with engine.worker():
        parent = await submit(engine, "test.parts", size=200, limit=1, fail_at=2)
        done = await finished(engine, parent)
        assert done.status is Status.FAILURE and done.error and done.error.type == "ChildFailed"
        children = await engine.redis.smembers(keys.PREFIXES["children"] + parent)
        for child in children:
            await finished(engine, child.decode())
    assert log == ["entered", "0", "1", "2", "entered"]
    assert not await engine.redis.keys(keys.gate("*"))


async def test_a_bad_limit_is_refused(engine: Engine) -> None:
    async with engine.worker():
        done = await finished(engine, await submit(engine, "test.parts", size=2, limit=0))
    assert done.error and done.error.message == "gather 2 tasks: limit=0: expected 1 or more"


async def test_a_caller_waits_for_the_task_that_it_joins_and_does_not_cancel_it(engine: Engine) -> None:
    async with engine.worker():
        one = await submit(engine, "test.single", number=7)
        assert await submit(engine, "test.single", number=8) == one
        patient = await submit(engine, "test.asks", number=9)
        impatient = await submit(engine, "test.asks", failures=1)
        late = await finished(engine, impatient)
        assert late.error and late.error.type == "WaitTimeout"
        assert (await engine.tasks.get(one, user_id="ada")).status is Status.WAITING
        await engine.inbox.deliver(one, "go", None, user_id="ada")
        assert (await finished(engine, patient)).result == 7
    assert log.count("single") == 2


async def test_a_task_that_would_wait_for_itself_is_told(engine: Engine) -> None:
    async with engine.worker():
        task_id = await submit(engine, "test.recursive")
        done = await finished(engine, task_id)
    assert done.error and done.error.type == "Conflict"
    assert (
        done.error.message == f"key 'circle' is held by task {task_id}, which started this one and cannot end before it"
    )


async def test_the_last_save_is_the_one_that_runs(engine: Engine) -> None:
    made = [await submit(engine, "test.saved", number=n) for n in range(5)]
    async with engine.worker():
        assert (await finished(engine, made[-1])).result == 4
    assert (len(set(made)), log) == (1, ["4"])


async def test_a_key_that_refuses_says_by_which_task_it_is_held(engine: Engine) -> None:
    task_id = await submit(engine, "test.refresh")
    with pytest.raises(KeyBusy) as caught:
        await submit(engine, "test.refresh")
    assert caught.value.extra() == {"unfinished_task": task_id}
    await submit(engine, "test.refresh", user_id="bob")


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"key": "mine"}, "/key"),
        ({"policy": KeyPolicy(OnBusy.JOIN)}, "/on_busy"),
        ({"policy": KeyPolicy(debounce_s=1)}, "/debounce_s"),
        ({"policy": KeyPolicy(throttle_s=1)}, "/throttle_s"),
    ],
)
async def test_what_the_decorator_says_of_the_key_is_not_for_clients(
    engine: Engine, changes: dict[str, Any], pointer: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await engine.tasks.enqueue(Submission("test.turn", **changes), user_id="ada")
    assert caught.value.pointer == pointer


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"key": ""}, "/key"),
        ({"policy": KeyPolicy(OnBusy.REJECT)}, "/on_busy"),
        ({"key": "k", "policy": KeyPolicy(OnBusy.PARALLEL)}, "/on_busy"),
        ({"key": "k", "policy": KeyPolicy(OnBusy.JOIN, debounce_s=1)}, "/on_busy"),
        ({"key": "k", "policy": KeyPolicy(OnBusy.REPLACE, throttle_s=1)}, "/on_busy"),
        ({"key": "k", "policy": KeyPolicy(debounce_s=0)}, "/debounce_s"),
        ({"key": "k", "policy": KeyPolicy(debounce_s=2, debounce_max_s=1)}, "/debounce_max_s"),
        ({"key": "k", "policy": KeyPolicy(debounce_max_s=1)}, "/debounce_max_s"),
        ({"key": "k", "policy": KeyPolicy(debounce_s=1, throttle_s=1)}, "/throttle_s"),
        ({"key": "k", "policy": KeyPolicy(throttle_s=1e9)}, "/throttle_s"),
        ({"key": "k", "policy": KeyPolicy(throttle_s=1, throttle_burst=0)}, "/throttle_burst"),
        ({"key": "k", "policy": KeyPolicy(throttle_burst=2)}, "/throttle_burst"),
        ({"key": "k", "policy": KeyPolicy(debounce_s=1), "delay_s": 1}, "/delay_s"),
        ({"key": "k", "policy": KeyPolicy(throttle_s=1), "run_at": datetime(2030, 1, 1, tzinfo=UTC)}, "/run_at"),
    ],
)
async def test_what_makes_no_sense_under_a_key_is_refused(
    engine: Engine, changes: dict[str, Any], pointer: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await engine.tasks.enqueue(Submission("test.piece", **changes), user_id="ada")
    assert caught.value.pointer == pointer
    assert not await engine.redis.exists(keys.queue("default"))


async def test_an_idempotency_key_is_of_one_task_key_only(engine: Engine) -> None:
    await engine.tasks.enqueue(Submission("test.piece", idempotency_key="i", key="a"), user_id="ada")
    with pytest.raises(Conflict, match="used for another request"):
        await engine.tasks.enqueue(Submission("test.piece", idempotency_key="i", key="b"), user_id="ada")


async def test_a_repetition_queues_up_under_the_key_of_the_first(engine: Engine) -> None:
    async with engine.worker():
        first = (await engine.tasks.enqueue(Submission("test.piece", {"failures": 1}, key="k"), user_id="ada")).task_id
        await finished(engine, first)
    again = (await engine.tasks.retry(first, user_id="ada")).task_id
    replayed = (await engine.dead_letters.replay(first, user_id="ada")).task_id
    shown = await engine.tasks.get(replayed, user_id="ada")
    assert (shown.key, shown.behind) == ("k", 1)
    assert (await engine.tasks.get(again, user_id="ada")).key == "k"


async def test_a_repetition_of_a_single_task_does_not_join_another(engine: Engine) -> None:
    async with engine.worker():
        first = await submit(engine, "test.refresh")
        await finished(engine, first)
    running = await submit(engine, "test.refresh")
    again = await engine.tasks.retry(first, user_id="ada")
    assert again.created and again.task_id != running
    assert (await engine.tasks.get(again.task_id, user_id="ada")).behind == 1
