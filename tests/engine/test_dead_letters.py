"""Dead letters are narrowed, replayed with what was done already, and discarded; one by one and in bulk."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, Field
from redis.asyncio import Redis

from app.engine.context import TaskContext
from app.engine.dead_letters import BulkDiscard
from app.engine.job import Status, TaskRecord
from app.engine.letters import LetterFilter, LetterReplayed
from app.engine.registry import task
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.errors import InvalidInput, NotFound, PermanentError, QueueFull, UnknownTask
from app.store import keys
from app.store.items import StepRecord
from tests.simulated import claim, end_of, new_task, put
from tests.support import engine_on, finished

effects: Counter[str] = Counter()
broken: set[str] = set()
"""Steps that fail."""


class Work(BaseModel):
    n: int = Field(1, ge=1)
    any: Any = None


@pytest.fixture(autouse=True)
def fresh() -> None:
    effects.clear()
    broken.clear()
    broken.add("d")


async def effect(name: str) -> str:
    effects[name] += 1
    if name in broken:
        raise PermanentError(f"{name} is broken")
    return f"{name} done"


@task("test.five")
async def five(ctx: TaskContext, params: Work) -> list[str]:
    return [await ctx.step(name, lambda name=name: effect(name)) for name in "abcde"]


@task("test.plain", queue="other")
async def plain(ctx: TaskContext, params: Work) -> None:
    raise ValueError("it is broken")


TASKS = (five, plain)


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    async with engine_on(redis_url, TASKS, result_ttl_s=60) as running:
        yield running


async def failed(engine: Engine, name: str = "test.five", *, user_id: str = "ada", **fields: Any) -> str:
    """A task that failed for good."""
    accepted = await engine.tasks.enqueue(Submission(name, **fields), user_id=user_id)
    record = await finished(engine, accepted.task_id)
    assert record.status is Status.FAILURE
    return accepted.task_id


async def replayed(engine: Engine, task_id: str, params: dict[str, Any] | None = None) -> TaskRecord:
    return await finished(engine, (await engine.dead_letters.replay(task_id, user_id="ada", params=params)).task_id)


async def letters(engine: Engine, user_id: str | None = None, **wanted: Any) -> list[str]:
    page = await engine.dead_letters.page(LetterFilter(**wanted), user_id=user_id)
    return [letter.task_id for letter in page.items]


async def dead(engine: Engine) -> dict[str, int]:
    return {queue.name: queue.dead for queue in await engine.queues.stats()}


async def failed_at(redis: Redis, task_id: str, ms: int) -> None:
    """Let a letter of ada be of another time."""
    stored = (await redis.hget(keys.dead_letter(task_id), "failed_at")).decode()
    await redis.hset(keys.dead_letter(task_id), "failed_at", ms)
    for index in (keys.ALL_DEAD, keys.dead_of_user("ada")):
        assert await redis.zrem(index, f"{stored}:{task_id}") == 1
        await redis.zadd(index, {f"{ms}:{task_id}": 0})


async def forget_record(engine: Engine, redis: Redis, task_id: str) -> None:
    """Let the time of a task's record be over, and not that of its letter."""
    await redis.zadd(keys.PREFIXES["finished"], {task_id: 0})
    assert await engine.sweep() == (1, 0)
    with pytest.raises(NotFound):
        await engine.tasks.get(task_id, user_id=None)


# One.


async def test_a_replay_goes_on_behind_the_finished_steps(engine: Engine, redis: Redis) -> None:
    async with engine.worker():
        old = await failed(engine, params={"n": 3}, priority=4, project_id="apollo", tags=("x", "y"))
        assert effects == {"a": 1, "b": 1, "c": 1, "d": 1}
        opened = await engine.dead_letters.get(old, user_id="ada")
        assert [step.name for step in opened.steps] == ["a", "b", "c"]
        broken.clear()
        record = await replayed(engine, old)
    assert effects == {"a": 1, "b": 1, "c": 1, "d": 2, "e": 1}
    assert record.result == [f"{name} done" for name in "abcde"]
    assert [step.name for step in record.steps] == list("abcde")
    assert (record.retry_of, record.user_id, record.project_id) == (old, "ada", "apollo")
    assert (record.tags, record.priority, record.attempt) == (("x", "y"), 4, 1)
    # The old task still shows what it did.
    assert len((await engine.tasks.get(old, user_id="ada", with_result=True)).steps) == 3
    assert await letters(engine) == []
    assert await dead(engine) == {"default": 0, "other": 0}


async def test_a_replay_works_when_the_record_of_the_task_is_gone(engine: Engine, redis: Redis) -> None:
    async with engine.worker():
        old = await failed(engine)
        await forget_record(engine, redis, old)
        assert len((await engine.dead_letters.get(old, user_id="ada")).steps) == 3
        broken.clear()
        assert (await replayed(engine, old)).status is Status.SUCCESS
    assert effects == {"a": 1, "b": 1, "c": 1, "d": 2, "e": 1}
    assert not await redis.exists(keys.steps(old))


async def test_a_replay_that_fails_again_is_a_letter_with_all_steps_so_far(engine: Engine) -> None:
    async with engine.worker():
        old = await failed(engine)
        broken.symmetric_difference_update("de")
        second = await replayed(engine, old)
        assert second.status is Status.FAILURE
        assert await letters(engine) == [second.task_id]
        broken.clear()
        assert (await replayed(engine, second.task_id)).retry_of == second.task_id
    assert effects == {"a": 1, "b": 1, "c": 1, "d": 2, "e": 2}


@pytest.mark.parametrize(
    ("params", "is_same"),
    [
        ({"n": 3, "any": {"a": 1, "b": [True]}}, True),
        ({"any": {"b": [True], "a": 1}, "n": "3"}, True),
        ({"n": 4, "any": {"a": 1, "b": [True]}}, False),
        ({"n": 3, "any": {"a": 1, "b": [1]}}, False),
        ({"n": 3}, False),
    ],
)
async def test_steps_are_taken_over_where_the_parameters_have_the_same_value(
    engine: Engine, params: dict[str, Any], is_same: bool
) -> None:
    async with engine.worker():
        old = await failed(engine, params={"n": 3, "any": {"a": 1, "b": [True]}})
        broken.clear()
        record = await replayed(engine, old, params)
    assert record.result == [f"{name} done" for name in "abcde"]
    assert effects["a"] == effects["c"] == (1 if is_same else 2)


async def test_of_concurrent_replays_one_makes_a_task(engine: Engine, redis: Redis) -> None:
    async with engine.worker():
        old = await failed(engine)
    answers = await asyncio.gather(
        *(engine.dead_letters.replay(old, user_id="ada") for _ in range(20)), return_exceptions=True
    )
    (made,) = [answer for answer in answers if not isinstance(answer, BaseException)]
    refused = [answer for answer in answers if isinstance(answer, LetterReplayed)]
    assert len(refused) == 19
    assert {error.replayed_as for error in refused} == {made.task_id}
    assert await redis.zcard(keys.queue("default")) == 1
    with pytest.raises(LetterReplayed, match=made.task_id):
        await engine.dead_letters.replay(old, user_id="ada")
    with pytest.raises(NotFound, match=f"no dead letter {old}: it was replayed, as task {made.task_id}"):
        await engine.dead_letters.get(old, user_id=None)
    with pytest.raises(NotFound, match=f"^no dead letter {old}$"):
        await engine.dead_letters.replay(old, user_id="bob")


async def test_a_replay_whose_reply_was_lost_is_repeated_without_harm(engine: Engine, redis: Redis) -> None:
    async with engine.worker():
        old = await failed(engine)
    again = new_task("again", task="test.five", letter=old, takes_steps=True)
    first = await engine.scripts.enqueue([[again]], 10)
    second = await engine.scripts.enqueue([[again]], 10)
    assert [reply[2] for reply in (first[0], second[0])] == [[b"again", 1]] * 2
    assert await redis.hget(keys.task("again"), "steps") == b"3"
    assert (await dead(engine))["default"] == 0


async def test_only_completed_steps_are_taken_over(engine: Engine, redis: Redis) -> None:
    await put(engine.scripts, new_task("t1", task="test.five"))
    (held,) = await claim(engine.scripts)
    await engine.scripts.record_step([StepRecord("t1", held.token, 0, b'"a"', b'"a done"', 0.1)])
    await redis.hset(keys.steps("t1"), mapping={"wait:1": "{}", "1": "{}", "result:2": "null", "x": "y"})
    await engine.scripts.finish([end_of(held, "FAILURE")])
    made = (await engine.dead_letters.replay("t1", user_id="ada")).task_id
    assert set(await redis.hkeys(keys.steps(made))) == {b"0", b"result:0"}
    assert await redis.hget(keys.task(made), "steps") == b"1"


async def test_a_replay_that_is_refused_changes_nothing(redis_url: str, redis: Redis) -> None:
    async with engine_on(redis_url, TASKS, queue_max_depth=1) as engine:
        async with engine.worker():
            old = await failed(engine)
        await put(engine.scripts, new_task("t1"))
        before = {key: await redis.dump(key) async for key in redis.scan_iter()}
        with pytest.raises(InvalidInput) as invalid:
            await engine.dead_letters.replay(old, user_id="ada", params={"n": 0})
        assert invalid.value.pointer == "/params/n"
        with pytest.raises(QueueFull):
            await engine.dead_letters.replay(old, user_id="ada")
        async with engine_on(redis_url, (plain,)) as other:
            with pytest.raises(UnknownTask, match=r"no task is called 'test\.five' any more"):
                await other.dead_letters.replay(old, user_id="ada")
        assert {key: await redis.dump(key) async for key in redis.scan_iter()} == before


@pytest.mark.parametrize("payload", [b"", b"\x80pickle"])
async def test_what_cannot_be_read_is_replayed_with_other_parameters(engine: Engine, payload: bytes) -> None:
    await put(engine.scripts, new_task("t1", task="test.five", payload=payload))
    (held,) = await claim(engine.scripts)
    await engine.scripts.finish([end_of(held, "FAILURE")])
    broken.clear()
    with pytest.raises(InvalidInput, match="could not be read"):
        await engine.dead_letters.replay("t1", user_id="ada")
    async with engine.worker():
        assert (await replayed(engine, "t1", {"n": 2})).status is Status.SUCCESS


async def test_parameters_by_position_are_shown_and_replayed_by_name(engine: Engine) -> None:
    payload = b'{"t":null,"f":"test.five","a":[7],"k":{},"et":1}'
    await put(engine.scripts, new_task("t1", task="test.five", payload=payload))
    (held,) = await claim(engine.scripts)
    await engine.scripts.finish([end_of(held, "FAILURE")])
    assert (await engine.dead_letters.get("t1", user_id="ada")).params == {"n": 7}
    broken.clear()
    async with engine.worker():
        record = await replayed(engine, "t1")
    assert record.status is Status.SUCCESS


async def test_a_discarded_letter_is_gone_with_what_was_kept_for_it(engine: Engine, redis: Redis) -> None:
    async with engine.worker():
        kept, gone = await failed(engine), await failed(engine)
    await forget_record(engine, redis, gone)
    with pytest.raises(NotFound):
        await engine.dead_letters.discard(gone, user_id="bob")
    for task_id in (kept, gone):
        await engine.dead_letters.discard(task_id, user_id="ada")
        with pytest.raises(NotFound):
            await engine.dead_letters.discard(task_id, user_id="ada")
        with pytest.raises(NotFound):
            await engine.dead_letters.replay(task_id, user_id="ada")
    assert await redis.exists(keys.steps(kept), keys.steps(gone)) == 1  # the record of the first still shows them
    assert await letters(engine) == await letters(engine, "ada") == []
    assert (await dead(engine))["default"] == 0


async def test_the_sweep_takes_the_steps_with_the_letter(redis_url: str, redis: Redis) -> None:
    async with engine_on(redis_url, TASKS, dead_letter_ttl_s=1) as engine:
        async with engine.worker():
            old = await failed(engine)
        await forget_record(engine, redis, old)
        await failed_at(redis, old, 1_000_000_000_000)
        assert await engine.sweep() == (0, 1)
        assert await redis.exists(keys.steps(old), keys.dead_letter(old), keys.ALL_DEAD) == 0
        assert (await dead(engine))["default"] == 0


async def test_an_id_that_a_stock_client_uses_again_has_one_letter_and_no_old_steps(
    engine: Engine, redis: Redis
) -> None:
    async with engine.worker():
        old = await failed(engine)
    await forget_record(engine, redis, old)
    await redis.set(keys.job(old), b'{"t":null,"f":"test.five","a":[],"k":{"n":9},"et":1}')
    await redis.zadd(keys.queue("default"), {old: 1})
    async with engine.worker():
        record = await finished(engine, old)
    assert (record.attempt, len(record.steps)) == (1, 3)
    assert all(record.enqueued_at < record.started_at <= step.completed_at for step in record.steps)
    assert effects == {"a": 2, "b": 2, "c": 2, "d": 2}
    assert await letters(engine) == [old]
    assert (await dead(engine))["default"] == 1
    assert (await engine.dead_letters.get(old, user_id="arq")).params == {"n": 9}
    assert await letters(engine, "ada") == []


# Filters, and in bulk.


async def some_letters(engine: Engine) -> dict[str, str]:
    async with engine.worker():
        return {
            "ada's five": await failed(engine, project_id="apollo", tags=("x", "xy")),
            "ada's plain": await failed(engine, "test.plain", tags=("xyz",)),
            "bob's plain": await failed(engine, "test.plain", user_id="bob", project_id="apollo"),
        }


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, ["bob's plain", "ada's plain", "ada's five"]),
        ({"queue": "other"}, ["bob's plain", "ada's plain"]),
        ({"task": "test.five"}, ["ada's five"]),
        ({"project_id": "apollo"}, ["bob's plain", "ada's five"]),
        ({"tag": "x"}, ["ada's five"]),
        ({"tag": "xy"}, ["ada's five"]),
        ({"tag": "y"}, []),
        ({"error_type": "ValueError"}, ["bob's plain", "ada's plain"]),
        ({"error_type": "PermanentError", "queue": "default"}, ["ada's five"]),
        ({"error_type": "PermanentError", "queue": "other"}, []),
    ],
)
async def test_a_list_is_narrowed(engine: Engine, wanted: dict[str, str], found: list[str]) -> None:
    made = await some_letters(engine)
    assert set(await letters(engine, **wanted)) == {made[name] for name in found}
    own = {made[name] for name in found if name.startswith("ada")}
    assert set(await letters(engine, "ada", **wanted)) == own


async def test_a_list_is_narrowed_by_the_time_of_the_failure(engine: Engine, redis: Redis) -> None:
    for name, second in (("first", 1), ("middle", 2), ("last", 3)):
        await put(engine.scripts, new_task(name))
        (held,) = await claim(engine.scripts)
        await engine.scripts.finish([end_of(held, "FAILURE")])
        await failed_at(redis, name, 1_700_000_000_000 + second * 1_000)
    at = [datetime.fromtimestamp(1_700_000_000 + second, UTC) for second in range(5)]
    ms = timedelta(milliseconds=1)
    assert await letters(engine, failed_after=at[3]) == ["last"]
    assert await letters(engine, failed_after=at[3] + ms) == []
    assert await letters(engine, failed_before=at[3]) == ["middle", "first"]
    assert await letters(engine, failed_before=at[2] + ms, failed_after=at[1] + ms) == ["middle"]
    assert await letters(engine, failed_before=datetime(1970, 1, 2, tzinfo=UTC)) == []
    assert len(await letters(engine, failed_before=datetime(9999, 1, 1, tzinfo=UTC))) == 3
    # A cursor of the whole list does not lead past the bound.
    page = await engine.dead_letters.page(user_id=None, limit=1)
    for wanted in (LetterFilter(failed_before=at[2]), LetterFilter(failed_after=at[1], failed_before=at[2])):
        found = await engine.dead_letters.page(wanted, user_id=None, cursor=page.next_cursor or "")
        assert [letter.task_id for letter in found.items] == ["first"]


async def test_a_bulk_replay_goes_on_behind_what_it_could_not_replay(redis_url: str, engine: Engine) -> None:
    made = await some_letters(engine)
    broken.clear()
    cursor, replayed_ids, failed_ids = "", {}, {}
    async with engine_on(redis_url, (five,)) as knows_five:
        while True:
            bulk = await knows_five.dead_letters.replay_many(
                LetterFilter(), user_id=None, everything=True, cursor=cursor, limit=1
            )
            replayed_ids |= {one.task_id: one.replayed_as for one in bulk.replayed}
            failed_ids |= {one.task_id: (one.error, one.detail) for one in bulk.failed}
            if bulk.next_cursor is None:
                break
            cursor = bulk.next_cursor
    assert replayed_ids.keys() == {made["ada's five"]}
    assert failed_ids.keys() == {made["ada's plain"], made["bob's plain"]}
    assert all(kind == "UnknownTask" and "test.plain" in detail for kind, detail in failed_ids.values())
    assert set(await letters(engine)) == {made["bob's plain"], made["ada's plain"]}
    async with engine.worker():
        record = await finished(engine, replayed_ids[made["ada's five"]])
    assert (record.status, record.user_id, effects["a"]) == (Status.SUCCESS, "ada", 1)


async def test_in_bulk_a_user_reaches_their_own_only(engine: Engine) -> None:
    made = await some_letters(engine)
    bulk = await engine.dead_letters.replay_many(LetterFilter(task="test.plain"), user_id="bob")
    assert [one.task_id for one in bulk.replayed] == [made["bob's plain"]]
    assert await engine.dead_letters.discard_many(LetterFilter(task="test.five"), user_id="bob") == BulkDiscard(0, None)
    assert set(await letters(engine)) == {made["ada's plain"], made["ada's five"]}


async def test_letters_are_discarded_piece_by_piece(engine: Engine) -> None:
    await some_letters(engine)
    first = await engine.dead_letters.discard_many(LetterFilter(), user_id="ada", everything=True, limit=1)
    assert first.discarded == 1
    assert first.next_cursor is not None
    rest = await engine.dead_letters.discard_many(
        LetterFilter(), user_id="ada", everything=True, cursor=first.next_cursor
    )
    assert rest == BulkDiscard(1, None)
    assert await letters(engine, "ada") == []
    assert await dead(engine) == {"default": 0, "other": 1}


async def test_nothing_is_done_to_everything_by_accident(engine: Engine) -> None:
    made = await some_letters(engine)
    for many in (engine.dead_letters.replay_many, engine.dead_letters.discard_many):
        with pytest.raises(InvalidInput, match="expected a filter") as refused:
            await many(LetterFilter(), user_id=None)
        assert refused.value.pointer == "/all"
        for limit in (0, 101):
            with pytest.raises(InvalidInput, match="expected 1 to 100"):
                await many(LetterFilter(task="test.five"), user_id=None, limit=limit)
    assert len(await letters(engine)) == len(made)
