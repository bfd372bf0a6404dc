"""Every transition is one script: what each of them changes, and what it refuses to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from app.engine import wire
from app.store import keys
from app.store.assembly import assemble_text
from app.store.connection import connect_sync
from app.store.embedded import EmbeddedServer
from app.store.scripts import Scripts, limits
from tests.simulated import DAY_MS, again, claim, end_of, event_of, lapse, new_task, put, server_ms


@pytest.fixture
async def scripts(redis: Redis) -> Scripts:
    """The scripts on an empty server."""
    return Scripts(redis)


@pytest.fixture(scope="module")
def lua(server: EmbeddedServer) -> AsyncIterator[SyncRedis]:
    """A client for pieces of Lua, for tests that call it very often."""
    client = connect_sync(server.url)
    yield client
    client.close()


async def status_of(redis: Redis, task_id: str) -> str:
    return (await redis.hget(keys.task(task_id), "status")).decode()


async def running(redis: Redis, queue: str = "default") -> int:
    return int(await redis.hget(keys.PREFIXES["counts"] + queue, "running") or 0)


async def kinds(scripts: Scripts, channel: str) -> list[str]:
    _, entries = await scripts.read_events(keys.events(channel), 0, 0, 1_000)
    return [entry.split(b" ")[1].decode() for entry in entries]


# The shared functions.


@given(ms=st.integers(0, 253_402_300_799_999))
@settings(max_examples=400, deadline=None)
def test_lua_and_python_write_a_time_alike(lua: SyncRedis, ms: int) -> None:
    written = lua.eval(assemble_text("return iso(tonumber(ARGV[1]))", limits()), 0, ms)
    expected = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    assert written.decode() == expected.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@given(first=st.text(), second=st.text())
@settings(max_examples=100, deadline=None)
def test_lua_and_python_join_two_names_alike(lua: SyncRedis, first: str, second: str) -> None:
    assert lua.eval(assemble_text("return pair(ARGV[1], ARGV[2])", limits()), 0, first, second).decode() == keys.pair(
        first, second
    )


@given(st.text(), st.text(), st.text(), st.text())
@settings(max_examples=300)
def test_no_other_two_names_give_the_same_text(a: str, b: str, c: str, d: str) -> None:
    assert (keys.pair(a, b) == keys.pair(c, d)) == ((a, b) == (c, d))


# Claiming.


async def test_a_claim_gives_lease_attempt_payload_and_event(redis: Redis, scripts: Scripts) -> None:
    await put(scripts, new_task("t1", payload=b"work", tags="a\nb"))
    (held,) = await claim(scripts, lease_ms=5_000)
    score = await redis.zscore(keys.queue("default"), "t1")
    assert (held.payload, held.attempt, held.lost, held.fields["tags"]) == (b"work", 1, False, "a\nb")
    assert 0 < score - await server_ms(redis) <= 5_000
    assert await redis.get(keys.PREFIXES["in_progress"] + "t1") == str(held.token).encode()
    assert await kinds(scripts, "task:t1") == ["task_queued", "task_started"]
    assert await running(redis) == 1


async def test_nothing_is_claimed_twice(scripts: Scripts) -> None:
    await put(scripts, *(new_task(f"t{n}") for n in range(10)))
    first, second = await claim(scripts, "w1", want=6), await claim(scripts, "w2")
    assert sorted(held.id for held in first + second) == sorted(f"t{n}" for n in range(10))
    assert await claim(scripts, "w3") == []


async def test_the_first_lease_of_a_dead_worker_is_taken_over_in_the_moment_it_ends(
    redis: Redis, scripts: Scripts
) -> None:
    """A worker looks when the lease ends, to the millisecond. The first token is then not taken for arq's mark '1'."""
    await put(scripts, new_task("t1"))
    (first,) = await claim(scripts)
    mark = keys.PREFIXES["in_progress"] + "t1"
    assert await redis.get(mark) != b"1"
    await redis.zadd(keys.queue("default"), {"t1": await server_ms(redis) - 1})
    await redis.pexpire(mark, 50)
    assert await claim(scripts) == []
    # Not a lease later, but when the mark ends.
    assert await redis.zscore(keys.queue("default"), "t1") <= await server_ms(redis) + 50
    await lapse(redis, first)
    (second,) = await claim(scripts, "w2")
    assert (second.attempt, second.lost, second.token > first.token) == (2, True, True)


async def test_a_lost_attempt_is_in_the_events_and_in_the_history(redis: Redis, scripts: Scripts) -> None:
    await put(scripts, new_task("t1"))
    await lapse(redis, *await claim(scripts))
    (held,) = await claim(scripts, "w2")
    await scripts.finish([end_of(held, "FAILURE")])
    history = await redis.hget(keys.dead_letter("t1"), "history")
    assert b'"attempt":1,' in history
    assert b"WorkerLost" in history
    assert await kinds(scripts, "task:t1") == [
        *("task_queued", "task_started", "task_retrying", "task_started", "task_failed")
    ]


async def test_tasks_that_a_stock_worker_runs_do_not_stand_in_the_way(redis: Redis, scripts: Scripts) -> None:
    """With a stock worker on the queue, the head of it may be all running tasks. One look passes them by."""
    await put(scripts, *(new_task(f"t{n}") for n in range(12)))
    for n in range(10):
        await redis.set(keys.PREFIXES["in_progress"] + f"t{n}", b"1", px=60_000)
    assert [held.id for held in await claim(scripts, want=1)] in (["t10"], ["t11"])
    assert len(await claim(scripts, want=1)) == 1


async def test_the_tries_of_a_stock_worker_count(redis: Redis, scripts: Scripts) -> None:
    await put(scripts, new_task("t1"))
    await redis.set(keys.PREFIXES["retry"] + "t1", 2)
    (held,) = await claim(scripts)
    assert held.attempt == 3


async def test_a_claim_says_which_queues_it_left_work_in(redis: Redis, scripts: Scripts) -> None:
    """The bound of the process may be used up before a queue is reached; its tasks must not wait for the next poll."""
    await put(scripts, *(new_task(f"a{n}") for n in range(3)), *(new_task(f"b{n}", queue="other") for n in range(3)))
    wants = [("default", 8), ("other", 8), ("empty", 8)]
    assert (await scripts.claim("w1", 60_000, 2, wants))[3] == [b"default", b"other", b"empty"]
    assert (await scripts.claim("w1", 60_000, 3, wants))[3] == [b"other", b"empty"]
    assert (await scripts.claim("w1", 60_000, 9, wants))[3] == []


async def test_a_worker_without_room_is_nobody_to_wake(redis: Redis, scripts: Scripts) -> None:
    await claim(scripts, "w1", "other")
    assert await redis.zcard(keys.sleepers("other")) == 1
    await put(scripts, new_task("t1"))
    await scripts.claim("w1", 60_000, 1, [("default", 1), ("other", 1)])
    assert await redis.zcard(keys.sleepers("other")) == 0


async def test_a_paused_queue_is_left_alone(redis: Redis, scripts: Scripts) -> None:
    await put(scripts, new_task("t1"))
    await redis.sadd(keys.PAUSED, "default")
    assert await claim(scripts) == []
    await redis.srem(keys.PAUSED, "default")
    assert len(await claim(scripts)) == 1


# Fencing.


async def test_a_stale_token_changes_nothing(redis: Redis, scripts: Scripts) -> None:
    await put(scripts, new_task("t1"))
    (old,) = await claim(scripts, "w1")
    await lapse(redis, old)
    (new,) = await claim(scripts, "w2")
    before = await snapshot(redis)
    assert await scripts.finish([end_of(old)]) == [0]
    assert await scripts.finish([end_of(old, "FAILURE")]) == [0]
    assert await scripts.reschedule([again(old), again(old, counts=False)]) == [0, 0]
    assert await scripts.emit([event_of(old), event_of(old, 2, channel="", progress=b"{}")]) == [0, 0]
    assert await scripts._run("renew", [60_000, old.id, old.token, old.queue]) == [0]
    assert await snapshot(redis) == before
    assert await scripts.finish([end_of(new)]) == [1]


async def test_an_end_is_written_once(redis: Redis, scripts: Scripts) -> None:
    await put(scripts, new_task("t1"))
    (held,) = await claim(scripts)
    assert await scripts.finish([end_of(held), end_of(held, "FAILURE")]) == [1, 0]
    assert await scripts.finish([end_of(held)]) == [0]
    assert await scripts.reschedule([again(held)]) == [0]
    assert await kinds(scripts, "task:t1") == ["task_queued", "task_started", "task_complete"]
    assert await running(redis) == 0


async def test_an_event_whose_reply_was_lost_is_not_written_twice(scripts: Scripts) -> None:
    await put(scripts, new_task("t1"))
    (held,) = await claim(scripts)
    assert await scripts.emit([event_of(held, 1)]) == [1]
    assert await scripts.emit([event_of(held, 1), event_of(held, 2)]) == [1, 1]
    assert (await kinds(scripts, "task:t1"))[2:] == ["note", "note"]


async def test_renewing_moves_the_end_of_a_lease_and_tells_of_a_cancel(redis: Redis, scripts: Scripts) -> None:
    await put(scripts, new_task("t1"))
    (held,) = await claim(scripts, lease_ms=1_000)
    assert await scripts._run("renew", [50_000, held.id, held.token, held.queue]) == [1]
    assert await redis.zscore(keys.queue("default"), "t1") > await server_ms(redis) + 40_000
    await scripts.cancel(["t1"], DAY_MS)
    assert await scripts._run("renew", [50_000, held.id, held.token, held.queue]) == [2]


# Going back.


async def test_a_retry_keeps_its_number_and_a_hand_back_does_not_count(redis: Redis, scripts: Scripts) -> None:
    await put(scripts, new_task("t1"))
    (first,) = await claim(scripts)
    await scripts.reschedule([again(first)])
    assert await status_of(redis, "t1") == "RETRY"
    (second,) = await claim(scripts)
    await scripts.reschedule([again(second, counts=False)])
    assert await status_of(redis, "t1") == "PENDING"
    (third,) = await claim(scripts)
    assert [first.attempt, second.attempt, third.attempt] == [1, 2, 2]
    assert await running(redis) == 1


async def test_a_task_cancelled_while_its_attempt_ended_does_not_wait_out_its_backoff(
    redis: Redis, scripts: Scripts
) -> None:
    await put(scripts, new_task("t1"))
    (held,) = await claim(scripts)
    assert await scripts.cancel(["t1"], DAY_MS) == [b"requested"]
    await scripts.reschedule([again(held, delay_ms=600_000)])
    (next_one,) = await claim(scripts)
    assert next_one.fields["cancel"] == "1"


async def test_a_delayed_task_with_a_priority_overtakes_when_it_is_due(redis: Redis, scripts: Scripts) -> None:
    await put(scripts, new_task("late", priority=5, delay_ms=3_600_000), new_task("now"))
    await redis.zadd(keys.queue("default"), {"late": await server_ms(redis) - 1})
    assert [held.id for held in await claim(scripts, want=1)] == ["late"]


# Tasks of stock clients.


def stock_payload(**changes: object) -> bytes:
    return wire.serializer({"t": None, "f": "test.work", "a": [], "k": {}, "et": 1_763_000_000_000, **changes})


async def test_an_id_whose_result_is_gone_may_be_used_again(redis: Redis, scripts: Scripts) -> None:
    """arq's clients reuse ids on purpose. Our record of the first task lives a little longer than its result."""
    await put(scripts, new_task("t1", project_id="p", tags="x"))
    (held,) = await claim(scripts)
    await scripts.finish([end_of(held)])
    await redis.delete(keys.result("t1"))
    await redis.psetex(keys.job("t1"), DAY_MS, stock_payload())
    await redis.zadd(keys.queue("default"), {"t1": 1})
    (again_held,) = await claim(scripts)
    assert (again_held.id, again_held.attempt, again_held.fields["user_id"]) == ("t1", 1, "arq")
    assert await redis.zcard(keys.tasks_of_user("ada")) == 0
    assert await redis.zcard(keys.ALL_TASKS) == 1
    assert await redis.zcard(keys.PREFIXES["finished"]) == 0


async def test_a_finished_task_in_the_queue_is_taken_out_and_not_run(redis: Redis, scripts: Scripts) -> None:
    await put(scripts, new_task("t1"))
    await scripts.cancel(["t1"], DAY_MS)
    await redis.zadd(keys.queue("default"), {"t1": 1})
    assert await claim(scripts) == []
    assert await redis.zcard(keys.queue("default")) == 0


@pytest.mark.parametrize("enqueued", [1e300, -5, "soon", 1.5, {}, 9e15, None])
async def test_a_time_that_cannot_be_is_not_taken_from_a_payload(
    redis: Redis, scripts: Scripts, enqueued: object
) -> None:
    await redis.set(keys.job("t1"), stock_payload(et=enqueued))
    await redis.zadd(keys.queue("default"), {"t1": 1})
    before = await server_ms(redis)
    (held,) = await claim(scripts)
    at = int(held.fields["enqueued_at"])
    assert at == 1 or before <= at <= await server_ms(redis)
    assert await redis.zrange(keys.ALL_TASKS, 0, -1) == [f"{at}:t1".encode()]


# Being forgotten.


async def test_a_swept_task_leaves_no_key(redis: Redis, scripts: Scripts) -> None:
    parent = new_task("parent")
    await put(scripts, parent)
    empty = {keys.events("user:ada"), keys.events(f"project:{keys.pair('ada', 'p')}"), keys.QUEUES}
    await put(
        scripts,
        new_task("done", project_id="p", tags="x\ny", parent_id="parent", root_id="parent"),
        new_task("failed", queue="other"),
        new_task("delayed", priority=3, delay_ms=DAY_MS),
        new_task("waiting"),
    )
    held = {item.id: item for item in await claim(scripts) + await claim(scripts, queue="other")}
    await scripts.reschedule([again(held["waiting"], delay_ms=DAY_MS)])
    await scripts.emit([event_of(held["done"]), event_of(held["done"], 2, progress=b"{}")])
    ends = [
        end_of(held["done"], ttl_ms=1),
        end_of(held["failed"], "FAILURE", ttl_ms=1),
        end_of(held["parent"], ttl_ms=1),
    ]
    assert await scripts.finish(ends) == [1, 1, 1]
    await scripts.cancel(["delayed", "waiting"], 1)
    # Every retention is over: the horizon of the records by their scores, that of dead letters by the ttl.
    for member in await redis.zrange(keys.PREFIXES["finished"], 0, -1):
        await redis.zadd(keys.PREFIXES["finished"], {member: 1})
    before = await server_ms(redis)
    while await server_ms(redis) <= before:
        pass
    assert await scripts.sweep(100, 0) == (5, 1)
    left = {name.decode() async for name in redis.scan_iter()}
    counts = {name for name in left if name.startswith(keys.PREFIXES["counts"])}
    sleepers = {name for name in left if name.startswith(keys.PREFIXES["sleepers"])}
    assert left - counts - sleepers == empty
    assert await running(redis) == 0
    assert await redis.hget(keys.PREFIXES["counts"] + "other", "dead") == b"0"


async def test_a_sweep_takes_no_more_than_its_limit(redis: Redis, scripts: Scripts) -> None:
    await put(scripts, *(new_task(f"t{n}") for n in range(5)))
    await scripts.finish([end_of(held, ttl_ms=1) for held in await claim(scripts)])
    for member in await redis.zrange(keys.PREFIXES["finished"], 0, -1):
        await redis.zadd(keys.PREFIXES["finished"], {member: 1})
    assert [await scripts.sweep(2, DAY_MS) for _ in range(4)] == [(2, 0), (2, 0), (1, 0), (0, 0)]


async def snapshot(redis: Redis) -> dict[bytes, object]:
    """Every key with its value."""
    found: dict[bytes, object] = {}
    async for name in redis.scan_iter():
        found[name] = await redis.dump(name)
    return found
