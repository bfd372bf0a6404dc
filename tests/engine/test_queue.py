"""Tasks as their owners see them: accepted or refused as a whole, in order, found again, cancelled, forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, Field
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from app.engine import wire
from app.engine.context import TaskContext
from app.engine.job import Status
from app.engine.policy import RetryPolicy
from app.engine.queue import Accepted, Filter
from app.engine.registry import task
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.errors import Conflict, InvalidInput, LeaseLost, NotFound, PermanentError, QueueFull, TooLarge, UnknownTask
from app.store import keys
from app.store.scripts import CANCEL_BOUND, Scripts
from tests.simulated import DAY_MS, Held, again, claim, end_of, lapse, new_task, put, server_ms
from tests.support import engine_on, event_of, finished


class Work(BaseModel):
    n: int = 0
    text: str = ""
    anything: Any = None


class Renamed(BaseModel):
    source: str = Field(alias="from")


@task("test.work")
async def work(ctx: TaskContext, params: Work) -> int:
    return params.n


@task("test.other", queue="other", retry=RetryPolicy(max_retries=0))
async def other(ctx: TaskContext, params: Work) -> int:
    raise PermanentError("no")


@task("test.renamed")
async def renamed(ctx: TaskContext, params: Renamed) -> Renamed:
    return params


@task("test.forever")
async def forever(ctx: TaskContext, params: Work) -> None:
    await asyncio.Event().wait()


@task("test.starts_when_told_not_to")
async def starts_when_told_not_to(ctx: TaskContext, params: Work) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        try:
            await ctx.start(work, Work())
        except Conflict:
            await ctx.emit("refused", {})


TASKS = (work, other, renamed, forever, starts_when_told_not_to)


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    """An engine without a worker."""
    async with engine_on(redis_url, TASKS) as opened:
        yield opened


async def add(engine: Engine, name: str = "test.work", *, user: str = "ada", **changes: Any) -> Accepted:
    return await engine.tasks.enqueue(Submission(name, **changes), user_id=user)


async def ids(engine: Engine, wanted: Filter, *, user: str | None = "ada", limit: int = 50) -> list[str]:
    """All pages of a list."""
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await engine.tasks.page(wanted, user_id=user, cursor=cursor, limit=limit)
        found += [record.task_id for record in page.items]
        cursor = page.next_cursor
    return found


async def order_of(engine: Engine) -> list[str]:
    """The order in which a worker would get what is due."""
    return [held.id for held in await claim(engine.scripts)]


async def make_due(redis: Redis, *task_ids: str, queue: str = "default") -> None:
    """Let delayed tasks come due, in the given order."""
    now = await server_ms(redis)
    for at, task_id in enumerate(task_ids):
        await redis.zadd(keys.queue(queue), {task_id: now - len(task_ids) + at})


async def all_keys(redis: Redis) -> set[str]:
    return {name.decode() async for name in redis.scan_iter()}


# Order.


async def test_tasks_of_a_priority_run_in_the_order_in_which_they_came(engine: Engine) -> None:
    made = [(await add(engine)).task_id for _ in range(20)]
    assert await order_of(engine) == made


async def test_a_higher_priority_overtakes(engine: Engine) -> None:
    low = [(await add(engine)).task_id for _ in range(3)]
    high = (await add(engine, priority=9)).task_id
    middle = [(await add(engine, priority=4)).task_id for _ in range(2)]
    assert await order_of(engine) == [high, *middle, *low]


async def test_a_delayed_task_is_not_due_before_its_time(engine: Engine, redis: Redis) -> None:
    accepted = await add(engine, delay_s=60)
    assert await order_of(engine) == []
    record = await engine.tasks.get(accepted.task_id, user_id="ada")
    assert record.next_attempt_at == record.enqueued_at + timedelta(seconds=60)
    await make_due(redis, accepted.task_id)
    assert await order_of(engine) == [accepted.task_id]


async def test_a_delayed_task_with_a_priority_overtakes_once_it_is_due(engine: Engine, redis: Redis) -> None:
    urgent = (await add(engine, delay_s=60, priority=1)).task_id
    ready = (await add(engine)).task_id
    await make_due(redis, urgent)
    assert await order_of(engine) == [urgent, ready]


async def test_a_time_in_the_past_is_now(engine: Engine) -> None:
    accepted = await add(engine, run_at=datetime.now(UTC) - timedelta(days=9000))
    assert await order_of(engine) == [accepted.task_id]


async def test_a_time_in_the_future_is_kept_to_the_millisecond(engine: Engine) -> None:
    run_at = datetime(2030, 2, 28, 23, 59, 59, 123_000, UTC)
    accepted = await add(engine, run_at=run_at)
    assert (await engine.tasks.get(accepted.task_id, user_id="ada")).next_attempt_at == run_at


# Idempotency.


async def test_the_same_key_and_request_is_the_first_task_again(engine: Engine) -> None:
    first = await add(engine, idempotency_key="k", params={"n": 1})
    second = await add(engine, idempotency_key="k", params={"n": 1})
    assert (second.task_id, first.created, second.created) == (first.task_id, True, False)
    assert len(await order_of(engine)) == 1


@pytest.mark.parametrize(
    "change", [{"params": {"n": 2}}, {"delay_s": 1.0}, {"priority": 1}, {"tags": ("x",)}, {"project_id": "p"}]
)
async def test_the_same_key_with_another_request_is_a_conflict(engine: Engine, change: dict[str, Any]) -> None:
    await add(engine, idempotency_key="k")
    with pytest.raises(Conflict, match="'k'"):
        await add(engine, idempotency_key="k", **change)
    assert len(await order_of(engine)) == 1


async def test_another_task_under_the_same_key_is_a_conflict(engine: Engine) -> None:
    await add(engine, idempotency_key="k")
    with pytest.raises(Conflict, match="'k'"):
        await add(engine, "test.other", idempotency_key="k")


async def test_keys_are_each_users_own(engine: Engine) -> None:
    made = [await add(engine, idempotency_key="k", user=user) for user in ("ada", "bob", "2:ab")]
    assert len({accepted.task_id for accepted in made}) == 3


async def test_a_key_may_be_used_again_when_its_time_is_over(redis_url: str, redis: Redis) -> None:
    async with engine_on(redis_url, TASKS, idempotency_ttl_s=100) as engine:
        first = await add(engine, idempotency_key="k")
        name = keys.PREFIXES["idempotency"] + keys.pair("ada", "k")
        assert 90 < await redis.ttl(name) <= 100
        await redis.delete(name)
        second = await add(engine, idempotency_key="k")
    assert (second.created, second.task_id != first.task_id) == (True, True)


async def test_twins_in_a_batch_are_one_task(engine: Engine) -> None:
    item = Submission("test.work", idempotency_key="k")
    first, second = await engine.tasks.enqueue_many([item, item], user_id="ada")
    assert (first.created, second.created, first.task_id) == (True, False, second.task_id)


async def test_twins_in_a_batch_whose_key_is_older_are_the_older_task(engine: Engine) -> None:
    item = Submission("test.work", idempotency_key="k")
    old = await engine.tasks.enqueue(item, user_id="ada")
    made = await engine.tasks.enqueue_many([item, Submission("test.work"), item], user_id="ada")
    assert [accepted.task_id == old.task_id for accepted in made] == [True, False, True]
    assert [accepted.created for accepted in made] == [False, True, False]


async def test_a_repeated_call_whose_reply_was_lost_gives_the_ids_that_are_stored(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script was carried out and the connection broke before its reply: nothing is stored twice."""
    old = await add(engine, idempotency_key="old")
    enqueue, calls = engine.scripts.enqueue, []

    async def lose_the_first_reply(*args: Any) -> list[list[Any]]:
        reply = await enqueue(*args)
        calls.append(reply)
        if len(calls) == 1:
            raise RedisConnectionError("the reply was lost")
        return reply

    monkeypatch.setattr(engine.scripts, "enqueue", lose_the_first_reply)
    batch = [Submission("test.work", idempotency_key=key) for key in ("old", None, "new")]
    made = await engine.tasks.enqueue_many(batch, user_id="ada")
    assert [accepted.created for accepted in made] == [False, True, True]
    assert made[0].task_id == old.task_id
    assert made[1].enqueued_at is None
    assert set(await ids(engine, Filter())) == {accepted.task_id for accepted in made}


# What is refused.


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"params": {"n": "many"}}, "/params/n"),
        ({"params": {"anything": "\ud800"}}, "/params"),
        ({"delay_s": -1.0}, "/delay_s"),
        ({"delay_s": float("nan")}, "/delay_s"),
        ({"delay_s": 1e12}, "/delay_s"),
        ({"run_at": datetime(2030, 1, 1)}, "/run_at"),
        ({"run_at": datetime(2030, 1, 1, tzinfo=UTC), "delay_s": 1.0}, "/run_at"),
        ({"priority": 10}, "/priority"),
        ({"priority": -1}, "/priority"),
        ({"tags": ("a",) * 21}, "/tags"),
        ({"tags": ("fine", "two\nlines")}, "/tags/1"),
        ({"tags": ("",)}, "/tags/0"),
        ({"project_id": "x" * 129}, "/project_id"),
        ({"idempotency_key": "\x00"}, "/idempotency_key"),
    ],
)
async def test_what_is_wrong_is_refused_with_a_pointer_and_leaves_no_trace(
    engine: Engine, redis: Redis, change: dict[str, Any], pointer: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await add(engine, **change)
    assert caught.value.pointer == pointer
    assert await all_keys(redis) == set()


async def test_params_over_the_bound_are_refused(engine: Engine, redis: Redis) -> None:
    with pytest.raises(TooLarge, match="1048576"):
        await add(engine, params={"text": "x" * 1_048_576})
    assert await all_keys(redis) == set()


async def test_a_batch_is_accepted_as_a_whole_or_not_at_all(engine: Engine, redis: Redis) -> None:
    good = [Submission("test.work")] * 3
    with pytest.raises(UnknownTask) as unknown:
        await engine.tasks.enqueue_many([*good, Submission("test.nobody")], user_id="ada")
    assert unknown.value.pointer == "/tasks/3/task"
    with pytest.raises(InvalidInput) as invalid:
        await engine.tasks.enqueue_many([*good, Submission("test.work", {"n": "x"})], user_id="ada")
    assert invalid.value.pointer == "/tasks/3/params/n"
    with pytest.raises(TooLarge) as large:
        await engine.tasks.enqueue_many([*good, Submission("test.work", {"text": "x" * 1_048_576})], user_id="ada")
    assert large.value.pointer == "/tasks/3/params"
    twins = [Submission("test.work", {"n": n}, idempotency_key="k") for n in (1, 2)]
    with pytest.raises(Conflict):
        await engine.tasks.enqueue_many([*good, *twins], user_id="ada")
    assert await all_keys(redis) == set()


@pytest.mark.parametrize("count", [0, 1_001])
async def test_a_batch_has_bounds(engine: Engine, count: int) -> None:
    with pytest.raises(InvalidInput, match="1 to 1000"):
        await engine.tasks.enqueue_many([Submission("test.work")] * count, user_id="ada")


async def test_a_full_queue_refuses_and_loses_nothing(redis_url: str, redis: Redis) -> None:
    async with engine_on(redis_url, TASKS, queue_max_depth=3) as engine:
        made = [(await add(engine, delay_s=delay)).task_id for delay in (0, 60)]
        before = await all_keys(redis)
        with pytest.raises(QueueFull) as caught:
            await engine.tasks.enqueue_many([Submission("test.other"), *[Submission("test.work")] * 2], user_id="ada")
        assert (caught.value.status_code, caught.value.retry_after_s) == (503, 5.0)
        assert await all_keys(redis) == before
        # Another queue has room, and so has this one for as many as it takes.
        made += [(await add(engine, "test.other")).task_id, (await add(engine)).task_id]
        with pytest.raises(QueueFull):
            await add(engine)
        await engine.tasks.cancel(made[0], user_id="ada")
        made.append((await add(engine)).task_id)
        assert sorted(await ids(engine, Filter())) == sorted(made)


async def test_requests_at_once_share_a_call_and_not_their_fate(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS, queue_max_depth=5) as engine:
        sizes = [3, 3, 2, 1]
        batches = [engine.tasks.enqueue_many([Submission("test.work")] * size, user_id="ada") for size in sizes]
        replies = await asyncio.gather(*batches, return_exceptions=True)
        assert [isinstance(reply, QueueFull) for reply in replies] == [False, True, False, True]
        assert len(await ids(engine, Filter())) == 5


async def test_parameters_with_another_name_in_json_reach_the_task(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        accepted = await add(engine, "test.renamed", params={"from": "here"})
        assert (await finished(engine, accepted.task_id)).result == {"from": "here"}


# Finding.


async def test_lists_are_narrowed_by_every_filter(engine: Engine) -> None:
    plain = (await add(engine)).task_id
    tagged = (await add(engine, tags=("a", "b"), project_id="p")).task_id
    elsewhere = (await add(engine, "test.other", tags=("b",))).task_id
    foreign = (await add(engine, user="bob", tags=("a",), project_id="p")).task_id
    assert await ids(engine, Filter()) == [elsewhere, tagged, plain]
    assert await ids(engine, Filter(tag="b")) == [elsewhere, tagged]
    assert await ids(engine, Filter(tag="b", queue="default")) == [tagged]
    assert await ids(engine, Filter(tag="a", project_id="p")) == [tagged]
    assert await ids(engine, Filter(project_id="p")) == [tagged]
    assert await ids(engine, Filter(task="test.other")) == [elsewhere]
    assert await ids(engine, Filter(status=Status.STARTED)) == []
    await claim(engine.scripts, queue="other")
    assert await ids(engine, Filter(status=Status.STARTED)) == [elsewhere]
    assert await ids(engine, Filter(tag="a"), user=None) == [foreign, tagged]
    assert await ids(engine, Filter(project_id="p"), user=None) == [foreign, tagged]


@pytest.mark.parametrize("wanted", [Filter(), Filter(tag="t"), Filter(project_id="p"), Filter(status=Status.PENDING)])
async def test_paging_shows_everything_once_while_more_is_added(engine: Engine, wanted: Filter) -> None:
    def more(count: int) -> list[Submission]:
        return [Submission("test.work", tags=("t",), project_id="p")] * count

    made = await engine.tasks.enqueue_many(more(230), user_id="ada")
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await engine.tasks.page(wanted, user_id="ada", cursor=cursor, limit=40)
        assert len(page.items) <= 40
        seen += [record.task_id for record in page.items]
        await engine.tasks.enqueue_many(more(3), user_id="ada")
        cursor = page.next_cursor
    assert len(seen) == len(set(seen))
    assert {accepted.task_id for accepted in made} <= set(seen)


async def test_a_rare_task_is_found_behind_many_others(engine: Engine) -> None:
    """A page looks at a bounded number of entries; it may be empty and still have a next one."""
    rare = (await add(engine, priority=0, idempotency_key="x")).task_id
    await claim(engine.scripts)
    for _ in range(3):
        await engine.tasks.enqueue_many([Submission("test.work")] * 1_000, user_id="ada")
    assert await ids(engine, Filter(status=Status.STARTED)) == [rare]


async def test_a_task_of_another_user_is_not_found(engine: Engine) -> None:
    accepted = await add(engine)
    for call in (engine.tasks.get, engine.tasks.cancel, engine.tasks.retry):
        with pytest.raises(NotFound, match=accepted.task_id):
            await call(accepted.task_id, user_id="bob")
    assert (await engine.tasks.get(accepted.task_id, user_id=None)).user_id == "ada"
    assert (await engine.tasks.get(accepted.task_id, user_id="ada")).status is Status.PENDING


@pytest.mark.parametrize("limit", [0, 201])
async def test_a_page_has_bounds(engine: Engine, limit: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        await engine.tasks.page(Filter(), user_id="ada", limit=limit)
    assert caught.value.pointer == "limit"


# Cancelling.


async def test_a_queued_and_a_delayed_task_are_cancelled_at_once(engine: Engine, redis: Redis) -> None:
    for delay_s in (0.0, 60.0):
        accepted = await add(engine, delay_s=delay_s, priority=2)
        record = await engine.tasks.cancel(accepted.task_id, user_id="ada")
        assert (record.status, record.next_attempt_at) == (Status.CANCELLED, None)
    assert await redis.zcard(keys.queue("default")) == 0
    assert await order_of(engine) == []


async def test_a_task_in_its_backoff_is_cancelled_at_once(engine: Engine) -> None:
    accepted = await add(engine)
    (held,) = await claim(engine.scripts)
    await engine.scripts.reschedule([again(held, delay_ms=60_000)])
    assert (await engine.tasks.cancel(accepted.task_id, user_id="ada")).status is Status.CANCELLED


async def test_a_finished_task_is_not_cancelled_and_its_children_go_on(engine: Engine) -> None:
    """409 means that nothing was changed."""
    parent = await add(engine)
    child = await add(engine, "test.other", parent_id=parent.task_id)
    (held,) = await claim(engine.scripts)
    await engine.scripts.finish([end_of(held)])
    with pytest.raises(Conflict, match="SUCCESS"):
        await engine.tasks.cancel(parent.task_id, user_id="ada")
    assert (await engine.tasks.get(child.task_id, user_id="ada")).status is Status.PENDING


async def test_more_descendants_than_one_call_looks_at_are_all_cancelled(engine: Engine) -> None:
    """Also below a child that is finished; what runs is told."""
    root = (await add(engine)).task_id
    (held_root,) = await claim(engine.scripts)
    child, grandchild = new_task("child", parent_id=root), new_task("grandchild", parent_id="child")
    await put(engine.scripts, child)
    (held_child,) = await claim(engine.scripts)
    await put(engine.scripts, grandchild)
    (held_grandchild,) = await claim(engine.scripts)
    await engine.scripts.finish([end_of(held_child)])
    for parent, name in ((root, "a"), ("child", "b")):
        many = [new_task(f"{name}{n}", parent_id=parent) for n in range(CANCEL_BOUND + 200)]
        assert (await engine.scripts.enqueue([many], 100_000))[0][0] == b"ok"
    record = await engine.tasks.cancel(root, user_id="ada")
    assert record.status is Status.STARTED
    assert len(await ids(engine, Filter(status=Status.CANCELLED), limit=200)) == 2 * (CANCEL_BOUND + 200)
    renewed = await engine.scripts._run("renew", [60_000, *_lease(held_root), *_lease(held_grandchild)])
    assert renewed == [2, 2]


def _lease(held: Held) -> tuple[str, int, str]:
    return held.id, held.token, held.queue


async def test_cancelling_again_goes_on_where_the_first_canceller_died(engine: Engine) -> None:
    root = (await add(engine)).task_id
    await put(engine.scripts, *(new_task(f"c{n}", parent_id=root) for n in range(CANCEL_BOUND + 5)))
    _, rest = await engine.scripts._run("cancel", [DAY_MS, CANCEL_BOUND, 0, root])
    assert len(rest) == 6
    with pytest.raises(Conflict, match="CANCELLED"):
        await engine.tasks.cancel(root, user_id="ada")
    assert await ids(engine, Filter(status=Status.PENDING)) == []


async def test_a_cancelled_parent_starts_no_more_children(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        accepted = await add(engine, "test.starts_when_told_not_to")
        await event_of(engine, accepted.task_id, "task_started")
        await engine.tasks.cancel(accepted.task_id, user_id="ada")
        await event_of(engine, accepted.task_id, "refused")
        assert (await finished(engine, accepted.task_id)).status is Status.CANCELLED
        assert await ids(engine, Filter()) == [accepted.task_id]


async def test_a_cancelled_task_that_had_not_begun_starts_no_children(engine: Engine) -> None:
    parent = (await add(engine)).task_id
    await engine.tasks.cancel(parent, user_id="ada")
    with pytest.raises(Conflict, match=parent):
        await add(engine, parent_id=parent)


async def test_an_attempt_that_lost_its_lease_starts_no_children(engine: Engine, redis: Redis) -> None:
    parent = (await add(engine)).task_id
    (old,) = await claim(engine.scripts)
    await lapse(redis, old)
    (new,) = await claim(engine.scripts, "w2")
    with pytest.raises(LeaseLost, match=parent):
        await add(engine, parent_id=parent, parent_token=old.token)
    child = await add(engine, parent_id=parent, parent_token=new.token)
    assert (await engine.tasks.get(child.task_id, user_id="ada")).parent_id == parent


async def test_a_running_task_is_cancelled_with_its_running_children(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        parent = (await add(engine, "test.forever")).task_id
        child = (await add(engine, "test.forever", parent_id=parent, root_id=parent)).task_id
        for task_id in (parent, child):
            await event_of(engine, task_id, "task_started")
        await engine.tasks.cancel(parent, user_id="ada")
        for task_id in (parent, child):
            assert (await finished(engine, task_id)).status is Status.CANCELLED


# Again.


async def test_a_finished_task_runs_again_as_a_new_one_that_names_it(engine: Engine) -> None:
    accepted = await add(engine, params={"n": 7}, tags=("a",), project_id="p", priority=2)
    with pytest.raises(Conflict, match="PENDING"):
        await engine.tasks.retry(accepted.task_id, user_id="ada")
    await engine.tasks.cancel(accepted.task_id, user_id="ada")
    made = await engine.tasks.retry(accepted.task_id, user_id="ada")
    record = await engine.tasks.get(made.task_id, user_id="ada")
    assert (record.retry_of, record.tags, record.project_id, record.priority) == (accepted.task_id, ("a",), "p", 2)
    (held,) = await claim(engine.scripts)
    assert b'"n":7' in held.payload


async def test_a_task_runs_again_with_the_parameters_of_its_result_or_with_new_ones(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        first = await add(engine, params={"n": 7})
        await finished(engine, first.task_id)
        same = await engine.tasks.retry(first.task_id, user_id="ada")
        changed = await engine.tasks.retry(first.task_id, user_id="ada", params={"n": 8})
        assert (await finished(engine, same.task_id)).result == 7
        assert (await finished(engine, changed.task_id)).result == 8
        with pytest.raises(InvalidInput):
            await engine.tasks.retry(first.task_id, user_id="ada", params={"n": "x"})


# Counting, pausing, forgetting.


async def test_counts_say_what_stands_in_a_queue(engine: Engine, redis: Redis) -> None:
    async def counts() -> tuple[int, ...]:
        stats = await engine.queues.get("default")
        return stats.ready, stats.delayed, stats.running, stats.dead

    await add(engine, delay_s=60)
    for _ in range(3):
        await add(engine)
    assert await counts() == (3, 1, 0, 0)
    first, second = await claim(engine.scripts, want=2)
    assert await counts() == (1, 1, 2, 0)
    await lapse(redis, first)
    taken = {item.id: item for item in await claim(engine.scripts, "w2")}
    assert taken[first.id].lost
    assert await counts() == (0, 1, 3, 0)
    await engine.scripts.reschedule([again(second, delay_ms=60_000)])
    assert await counts() == (0, 2, 2, 0)
    await engine.scripts.finish([end_of(second), end_of(first)])
    assert await counts() == (0, 2, 2, 0)
    await engine.scripts.finish([end_of(item, "FAILURE") for item in taken.values()])
    assert await counts() == (0, 2, 0, 2)
    assert (await engine.queues.get("default")).finished_per_minute == 2


async def test_the_age_of_a_backlog_is_that_of_its_oldest_task_whatever_its_priority(
    engine: Engine, redis: Redis
) -> None:
    assert (await engine.queues.get("default")).oldest_ready_age_s is None
    await add(engine)
    old = await add(engine, priority=9)
    hour_ago = await server_ms(redis) - 3_600_000
    await redis.hset(keys.task(old.task_id), "enqueued_at", hour_ago)
    age_s = (await engine.queues.get("default")).oldest_ready_age_s
    assert age_s is not None
    assert 3_600 <= age_s < 3_660


async def test_what_has_come_due_is_as_old_as_its_time(engine: Engine, redis: Redis) -> None:
    """Not as its enqueue, and the same before and after a claim that gave it its place."""
    late = await add(engine, delay_s=60)
    await redis.hset(keys.task(late.task_id), "enqueued_at", 1)
    due = await server_ms(redis) - 600_000
    await redis.hset(keys.task(late.task_id), "due_at", due)
    await redis.zadd(keys.queue("default"), {late.task_id: due})
    before = (await engine.queues.get("default")).oldest_ready_age_s
    await add(engine, priority=9)
    assert len(await claim(engine.scripts, want=1)) == 1
    after = (await engine.queues.get("default")).oldest_ready_age_s
    assert before is not None
    assert after is not None
    assert 600 <= before <= after < 660
    assert (await engine.queues.get("default")).ready == 1


async def test_a_task_of_a_stock_client_is_as_old_as_its_enqueue(engine: Engine, redis: Redis) -> None:
    now = await server_ms(redis)
    data = {"t": None, "f": "test.work", "a": [], "k": {"n": 1, "text": '"et":1}'}, "et": now - 600_000}
    await redis.set(keys.job("stock"), wire.serializer(data))
    await redis.zadd(keys.queue("default"), {"stock": now - 600_000})
    await add(engine, priority=9)
    assert len(await claim(engine.scripts, want=1)) == 1
    age_s = (await engine.queues.get("default")).oldest_ready_age_s
    assert age_s is not None
    assert 600 <= age_s < 660


async def test_a_paused_queue_starts_nothing_until_it_is_resumed(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine:
        assert (await engine.queues.pause("default")).paused
        waiting = await add(engine, params={"n": 1})
        async with engine.worker():
            elsewhere = await add(engine, "test.other")
            await finished(engine, elsewhere.task_id)
            assert (await engine.tasks.get(waiting.task_id, user_id="ada")).status is Status.PENDING
            assert not (await engine.queues.resume("default")).paused
            assert (await finished(engine, waiting.task_id)).result == 1
        with pytest.raises(NotFound, match="nowhere"):
            await engine.queues.pause("nowhere")


async def test_after_their_retention_tasks_are_gone_with_every_key(redis_url: str, redis: Redis) -> None:
    async with engine_on(redis_url, TASKS, dead_letter_ttl_s=1) as engine:
        async with engine.worker():
            made = [
                await add(engine, params={"n": 1}, tags=("a", "b"), project_id="p"),
                await add(engine, "test.other"),
                await add(engine, delay_s=60, priority=5),
            ]
            made.append(await add(engine, parent_id=made[0].task_id))
            await engine.tasks.cancel(made[2].task_id, user_id="ada")
            for accepted in made:
                await finished(engine, accepted.task_id)
        assert await engine.sweep() == (0, 0)
        finished_key, dead = keys.PREFIXES["finished"], (await redis.zrange(keys.ALL_DEAD, 0, -1))[0].decode()
        for accepted in made:
            await redis.zadd(finished_key, {accepted.task_id: 1}, xx=True)
        # A dead letter of long ago, as the script knows it: by the time in its members.
        for name in (keys.ALL_DEAD, keys.dead_of_user("ada")):
            await redis.zrem(name, dead)
            await redis.zadd(name, {f"1000000000000:{dead.partition(':')[2]}": 0})
        assert await engine.sweep() == (4, 1)
        counters = keys.PREFIXES["counts"]
        channels = {keys.events("user:ada"), keys.events(f"project:{keys.pair('ada', 'p')}")}
        left = {name for name in await all_keys(redis) if not name.startswith(counters)}
        assert left == channels | {keys.QUEUES}
        assert all([await redis.pttl(name) > 0 for name in channels])
        with pytest.raises(NotFound):
            await engine.tasks.get(made[0].task_id, user_id="ada")
        with pytest.raises(NotFound):
            await engine.dead_letters.get(made[1].task_id, user_id="ada")


async def test_a_dead_letter_outlives_its_task(engine: Engine, redis: Redis) -> None:
    await put(Scripts(redis), new_task("t1"))
    (held,) = await claim(engine.scripts)
    await engine.scripts.finish([end_of(held, "FAILURE")])
    await redis.zadd(keys.PREFIXES["finished"], {"t1": 1})
    assert await engine.sweep() == (1, 0)
    assert (await engine.dead_letters.get("t1", user_id="ada")).letter.attempts == 1
    assert [letter.task_id for letter in (await engine.dead_letters.page(user_id="ada")).items] == ["t1"]
