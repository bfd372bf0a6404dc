"""Gates let a bounded number of tasks of a key or a group run, in their order, whatever becomes of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from app.store import keys
from app.store.items import Gating, NewTask
from app.store.scripts import PARK_MS, Scripts
from tests.simulated import DAY_MS, Held, again, claim, end_of, lapse, new_task, put, server_ms

KEY = "conversation:42"
GATE = keys.gate_of_key("ada", KEY)
GROUP = keys.gate_of_group("parent", 0, fail_fast=False)
FRAGILE = keys.gate_of_group("parent", 1, fail_fast=True)
MAX_DEPTH = 100


@pytest.fixture
def scripts(redis: Redis) -> Scripts:
    return Scripts(redis)


def turn(task_id: str, on_busy: str = "queue", **options: Any) -> NewTask:
    """A task of ada's under the key."""
    changes = {
        name: options.pop(name) for name in ("task", "payload", "delay_ms", "parent_id", "extra") if name in options
    }
    changes |= {name: options.pop(name) for name in ("idempotency_key", "fingerprint") if name in options}
    gates = ((GATE, 1), *options.pop("more", ()))
    return new_task(task_id, gating=Gating(gates, KEY, on_busy, ttl_ms=DAY_MS, **options), **changes)


def member(task_id: str, limit: int = 2, **changes: Any) -> NewTask:
    """A task of a group."""
    return new_task(task_id, gating=Gating(((GROUP, limit),)), **changes)


async def reply_of(scripts: Scripts, *group: NewTask) -> list[Any]:
    """The reply to tasks of one group, as texts."""
    (reply,) = await scripts.enqueue([group], MAX_DEPTH)
    return [
        [part.decode() if isinstance(part, bytes) else part for part in row] if isinstance(row, list) else row
        for row in reply
    ]


async def ids(scripts: Scripts) -> list[str]:
    return [held.id for held in await claim(scripts)]


async def end(scripts: Scripts, *holds: Held, status: str = "SUCCESS") -> None:
    assert await scripts.finish([end_of(held, status) for held in holds]) == [1] * len(holds)


async def test_one_task_of_a_key_runs_at_a_time_and_in_order(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, turn("t1"), turn("t2"), turn("t3"), new_task("other"))
    first, other = await claim(scripts)
    assert (first.id, other.id) == ("t1", "other")
    for name in ("t2", "t3"):
        await end(scripts, first)
        (first,) = await claim(scripts)
        assert first.id == name
    await end(scripts, first, other)
    assert not await redis.keys(keys.gate("*"))


async def test_a_group_runs_as_many_as_its_limit(scripts: Scripts, redis: Redis) -> None:
    assert (await reply_of(scripts, *(member(f"m{n}") for n in range(5))))[0] == b"ok"
    first, second = await claim(scripts)
    assert (first.id, second.id, await claim(scripts)) == ("m0", "m1", [])
    await end(scripts, second)
    (third,) = await claim(scripts)
    await end(scripts, first, third)
    last = await claim(scripts)
    assert [third.id, *(held.id for held in last)] == ["m2", "m3", "m4"]
    await end(scripts, *last)
    assert not await redis.keys(keys.gate("*"))


async def test_a_task_under_two_gates_waits_for_both(scripts: Scripts) -> None:
    both = turn("both", more=((GROUP, 2),))
    await put(scripts, turn("t1"), member("m1"), member("m2"), both, member("m3"))
    t1, m1, m2 = await claim(scripts)
    await end(scripts, m1)
    assert await ids(scripts) == []
    await end(scripts, t1)
    assert await ids(scripts) == ["both"]
    await end(scripts, m2)
    assert await ids(scripts) == ["m3"]


@pytest.mark.parametrize("delay_ms", [0, DAY_MS])
async def test_a_retry_keeps_its_turn(scripts: Scripts, delay_ms: int) -> None:
    await put(scripts, turn("t1"), turn("t2"))
    (held,) = await claim(scripts)
    await scripts.reschedule([again(held, delay_ms=delay_ms)])
    assert await ids(scripts) == ([] if delay_ms else ["t1"])


async def test_a_task_whose_worker_died_keeps_its_turn(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, turn("t1"), turn("t2"))
    await lapse(redis, *await claim(scripts))
    assert await ids(scripts) == ["t1"]


@pytest.mark.parametrize("status", ["FAILURE", "CANCELLED"])
async def test_every_end_lets_the_next_one_in(scripts: Scripts, status: str) -> None:
    await put(scripts, turn("t1"), turn("t2"))
    await end(scripts, *await claim(scripts), status=status)
    assert await ids(scripts) == ["t2"]


async def test_cancelling_lets_the_next_one_in(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, turn("t1"), turn("t2"), turn("t3"))
    assert await scripts.cancel(["t2"], DAY_MS) == [b"cancelled"]
    assert await redis.zrange(keys.gate(GATE), 0, -1) == [b"t1", b"t3"]
    assert await scripts.cancel(["t1"], DAY_MS) == [b"cancelled"]
    assert await ids(scripts) == ["t3"]


async def test_a_group_cancelled_from_its_end_starts_nothing_on_the_way(scripts: Scripts) -> None:
    await put(scripts, *(member(f"m{n}") for n in range(6)))
    running = await claim(scripts)
    for n in (5, 4, 3, 2):
        await scripts.cancel([f"m{n}"], DAY_MS)
        assert await ids(scripts) == []
    await end(scripts, *running, status="CANCELLED")
    assert await ids(scripts) == []


async def test_children_of_a_cancelled_parent_are_not_let_in(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, new_task("parent"))
    (parent,) = await claim(scripts)
    await put(scripts, *(member(f"m{n}", limit=1, parent_id="parent") for n in range(2)))
    await redis.hset(keys.task("parent"), "cancel", 1)
    await end(scripts, *await claim(scripts))
    assert await ids(scripts) == []
    await scripts.cancel(["parent"], DAY_MS)
    assert not await redis.keys(keys.gate("*"))
    assert parent.id == "parent"


async def test_a_group_that_fails_fast_lets_nobody_in_behind_a_failure(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, new_task("parent"))
    await claim(scripts)
    gating = Gating(((FRAGILE, 2),))
    await put(scripts, *(new_task(f"m{n}", gating=gating, parent_id="parent") for n in range(4)))
    await put(scripts, *(member(f"other{n}", limit=1, parent_id="parent") for n in range(2)))
    m0, m1, other = await claim(scripts)
    await end(scripts, m0, status="FAILURE")
    await end(scripts, m1, other)
    assert await ids(scripts) == ["other1"]


async def test_a_failure_in_a_group_makes_no_record_of_a_forgotten_parent(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, new_task("m0", gating=Gating(((FRAGILE, 1),)), parent_id="parent"))
    await end(scripts, *await claim(scripts), status="FAILURE")
    assert not await redis.exists(keys.task("parent"))


async def test_a_parked_task_is_far_from_due_and_pending(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, turn("t1"), turn("t2", delay_ms=DAY_MS))
    score = await redis.zscore(keys.queue("default"), "t2")
    assert 0 <= await server_ms(redis) + PARK_MS - score < 60_000
    assert await redis.hget(keys.task("t2"), "status") == b"PENDING"
    await end(scripts, *await claim(scripts))
    assert await redis.zscore(keys.queue("default"), "t2") == float(await redis.hget(keys.task("t2"), "due_at"))


async def look_at(redis: Redis, task_id: str) -> None:
    """Let the time come at which a parked task is looked at."""
    await redis.zadd(keys.queue("default"), {task_id: await server_ms(redis)})


async def test_a_parked_task_that_is_looked_at_is_parked_again(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, turn("t1"), turn("t2"))
    (held,) = await claim(scripts)
    await look_at(redis, "t2")
    assert await ids(scripts) == []
    assert await redis.zscore(keys.queue("default"), "t2") > await server_ms(redis) + PARK_MS / 2
    await end(scripts, held)
    assert await ids(scripts) == ["t2"]


async def test_a_look_takes_out_what_is_not_there_any_more(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, turn("t1"), turn("t2"), turn("t3"))
    await claim(scripts)
    await redis.delete(keys.task("t1"))
    await look_at(redis, "t3")
    assert await ids(scripts) == ["t2"]


async def test_a_lost_gate_is_made_again(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, turn("t1"), turn("t2"), turn("t3"))
    (held,) = await claim(scripts)
    await redis.delete(keys.gate(GATE))
    for name in ("t2", "t3"):
        await look_at(redis, name)
    (second,) = await claim(scripts)
    assert second.id == "t2"
    await end(scripts, held, second)
    assert await ids(scripts) == ["t3"]


async def test_an_arq_client_that_aborts_a_parked_task_does_not_start_it(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, turn("t1"), turn("t2"), turn("t3"))
    await claim(scripts)
    # As `Job.abort` does for a task that is not due; the mark of t2 has been seen by a heartbeat already.
    await redis.zadd(keys.queue("default"), {"t2": 1, "t3": 1})
    await redis.zadd(keys.ABORT, {"t3": 1})
    (held,) = await claim(scripts)
    assert (held.id, held.fields["cancel"]) == ("t3", "1")


async def test_a_task_that_a_stock_worker_finished_leaves_its_gate(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, turn("t1"), turn("t2"))
    await redis.zrem(keys.queue("default"), "t1")
    await redis.set(keys.result("t1"), b"{}")
    settled = await scripts.settle_stock(
        "t1",
        status="SUCCESS",
        error=b"",
        finished_ms=1,
        attempt=1,
        ttl_ms=DAY_MS,
        event_type="task_complete",
        event=b"{}",
    )
    assert settled
    assert await ids(scripts) == ["t2"]


# What a key says of one that finds another.


async def test_a_key_that_refuses_names_the_unfinished_task_and_nothing_is_made(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, turn("t1"))
    before = await redis.dbsize()
    assert await reply_of(scripts, new_task("plain"), turn("t2", "reject")) == [b"busy", KEY.encode(), b"t1"]
    assert await redis.dbsize() == before
    await end(scripts, *await claim(scripts))
    assert (await reply_of(scripts, turn("t2", "reject")))[2:] == [["t2", 1]]


async def test_two_of_one_batch_are_refused_under_a_key_that_refuses(scripts: Scripts, redis: Redis) -> None:
    assert (await reply_of(scripts, turn("t1", "reject"), turn("t2", "reject")))[0] == b"busy"
    assert await redis.dbsize() == 0


async def test_an_unfinished_task_stands_for_one_that_joins_it(scripts: Scripts, redis: Redis) -> None:
    assert (await reply_of(scripts, turn("t1", "join"), turn("t2", "join")))[2:] == [["t1", 1], ["t1", 0]]
    (held,) = await claim(scripts)
    assert (await reply_of(scripts, turn("t3", "join"), turn("x", "join", task="test.other")))[2:] == [
        ["t1", 0],
        ["x", 1],
    ]
    assert not await redis.exists(keys.task("t3"))
    await end(scripts, held)
    assert (await reply_of(scripts, turn("t4", "join")))[2:] == [["t4", 1]]


async def test_a_call_that_is_repeated_joins_the_same_task_again(scripts: Scripts) -> None:
    await put(scripts, turn("t1", "join"), turn("t2", "join"))
    await end(scripts, *await claim(scripts))
    assert (await reply_of(scripts, turn("t2", "join")))[2:] == [["t1", 0]]


async def test_an_idempotency_key_remembers_what_was_joined(scripts: Scripts) -> None:
    again_of: Callable[[str], NewTask] = lambda name: turn(name, "join", idempotency_key="k", fingerprint="f")  # noqa: E731
    await put(scripts, turn("t1", "join"), again_of("t2"))
    await end(scripts, *await claim(scripts))
    assert (await reply_of(scripts, again_of("t3")))[2:] == [["t1", 0]]


async def test_what_replaces_runs_when_the_replaced_have_really_ended(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, turn("t1"), turn("t2"))
    (held,) = await claim(scripts)
    await put(scripts, new_task("child", parent_id="t1"))
    assert (await reply_of(scripts, turn("t3", "replace")))[2:] == [["t3", 1]]
    status = [await redis.hget(keys.task(name), "status") for name in ("t1", "t2", "child", "t3")]
    assert status == [b"STARTED", b"CANCELLED", b"CANCELLED", b"PENDING"]
    assert await redis.hget(keys.task("t1"), "cancel") == b"1"
    assert await ids(scripts) == []
    await end(scripts, held, status="CANCELLED")
    assert await ids(scripts) == ["t3"]


async def test_what_is_made_and_replaced_in_one_batch_never_runs(scripts: Scripts, redis: Redis) -> None:
    await reply_of(scripts, turn("t1"), turn("t2", "replace"), turn("t3", "join"), turn("t4"))
    assert await redis.hget(keys.task("t1"), "status") == b"CANCELLED"
    (held,) = await claim(scripts)
    assert held.id == "t2"
    await end(scripts, held)
    assert await ids(scripts) == ["t4"]


@pytest.mark.parametrize("options", [{"on_busy": "replace"}, {"awaited": True}])
async def test_a_task_cannot_wait_for_its_own_key_below_it(scripts: Scripts, options: dict[str, Any]) -> None:
    await put(scripts, turn("t1"), new_task("child", parent_id="t1"))
    assert await reply_of(scripts, turn("t2", parent_id="child", **options)) == [b"own", KEY.encode(), b"t1"]
    assert (await reply_of(scripts, turn("t2", parent_id="child")))[0] == b"ok"


# Debounce and throttle.

QUIET = {"debounce_ms": (10_000, 60_000)}
EVERY_10_S = (10_000, 1, DAY_MS)


async def due_in_ms(redis: Redis, task_id: str) -> float:
    return float(await redis.zscore(keys.queue("default"), task_id)) - await server_ms(redis)


async def test_the_last_change_of_a_burst_runs_once(scripts: Scripts, redis: Redis) -> None:
    assert (await reply_of(scripts, turn("t1", payload=b"1", **QUIET), turn("t2", payload=b"2", **QUIET)))[2:] == [
        ["t1", 1],
        ["t1", 0],
    ]
    assert (await reply_of(scripts, turn("t3", payload=b"3", **QUIET)))[2:] == [["t1", 0]]
    assert 5_000 < await due_in_ms(redis, "t1") <= 10_000
    await look_at(redis, "t1")
    (held,) = await claim(scripts)
    assert (held.id, held.payload) == ("t1", b"3")
    events = [entry.split(b" ", 3)[1] for entry in await redis.lrange(keys.events("task:t1"), 0, -1)]
    assert events == [b"task_queued", b"task_debounced", b"task_debounced", b"task_started"]


async def test_a_change_puts_the_task_off_no_further_than_its_bound(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, turn("t1", debounce_ms=(10_000, 15_000)))
    until = float(await redis.hget(keys.task("t1"), "debounce_until"))
    await put(scripts, turn("t2", debounce_ms=(20_000, DAY_MS)))
    assert await redis.zscore(keys.queue("default"), "t1") == until
    # The bound has passed, and no worker has had room yet.
    await redis.hset(keys.task("t1"), "debounce_until", 1)
    await look_at(redis, "t1")
    await put(scripts, turn("t3", payload=b"3", **QUIET))
    (held,) = await claim(scripts)
    assert (held.id, held.payload) == ("t1", b"3")


async def test_a_change_after_the_start_gets_a_run_of_its_own(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, turn("t1", **QUIET))
    await look_at(redis, "t1")
    (held,) = await claim(scripts)
    assert (await reply_of(scripts, turn("t2", payload=b"2", **QUIET)))[2:] == [["t2", 1]]
    assert (await reply_of(scripts, turn("t3", payload=b"3", **QUIET)))[2:] == [["t2", 0]]
    await end(scripts, held)
    assert 0 < await due_in_ms(redis, "t2") <= 10_000
    await look_at(redis, "t2")
    assert [(held.id, held.payload) for held in await claim(scripts)] == [("t2", b"3")]


async def test_a_task_that_was_not_made_to_be_changed_is_left_alone(scripts: Scripts) -> None:
    await put(scripts, turn("t1"))
    assert (await reply_of(scripts, turn("t2", **QUIET), turn("t3", task="test.other", **QUIET)))[2:] == [
        ["t2", 1],
        ["t3", 1],
    ]


async def test_a_full_queue_still_takes_changes(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, turn("t1", **QUIET))
    assert (await scripts.enqueue([[turn("t2", payload=b"2", **QUIET)]], 1))[0][0] == b"ok"
    assert (await scripts.enqueue([[turn("t3")]], 1))[0][0] == b"full"
    assert await redis.get(keys.job("t1")) == b"2"


async def test_starts_of_a_throttled_key_are_spaced(scripts: Scripts, redis: Redis) -> None:
    def task_of(name: str) -> NewTask:
        return new_task(name, gating=Gating((), KEY, "parallel", throttle_ms=(10_000, 2, DAY_MS)))

    assert (await reply_of(scripts, *(task_of(f"t{n}") for n in range(3))))[0] == b"ok"
    await put(scripts, task_of("t3"))
    assert await ids(scripts) == ["t0", "t1"]
    assert 5_000 < await due_in_ms(redis, "t2") <= 10_000
    assert 15_000 < await due_in_ms(redis, "t3") <= 20_000
    assert 0 < await redis.pttl(keys.PREFIXES["throttle"] + keys.pair("ada", KEY)) <= 40_000


async def test_a_throttled_key_refuses_what_would_wait_too_long(scripts: Scripts, redis: Redis) -> None:
    group = [turn(f"t{n}", throttle_ms=(10_000, 1, 15_000)) for n in range(3)]
    assert await reply_of(scripts, *group) == [b"throttled", KEY.encode()]
    assert await redis.dbsize() == 0
    assert (await reply_of(scripts, *group[:2]))[0] == b"ok"


async def test_a_throttled_task_waits_for_its_turn_and_its_time(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, turn("t1", throttle_ms=EVERY_10_S), turn("t2", throttle_ms=EVERY_10_S))
    (held,) = await claim(scripts)
    assert await due_in_ms(redis, "t2") > PARK_MS / 2
    await end(scripts, held)
    assert 0 < await due_in_ms(redis, "t2") <= 10_000


async def test_a_task_that_is_to_begin_after_another_waits_for_that_and_for_its_gate(
    scripts: Scripts, redis: Redis
) -> None:
    after = b'["after","first"]'
    await put(scripts, new_task("first"), turn("t1"), turn("t2", extra=after), turn("t3"))
    first, t1 = await claim(scripts)
    await end(scripts, first)
    assert await redis.hget(keys.task("t2"), "status") == b"PENDING"
    assert await due_in_ms(redis, "t2") > PARK_MS / 2
    assert await ids(scripts) == []
    await end(scripts, t1)
    (t2,) = await claim(scripts)
    assert t2.id == "t2"
    await end(scripts, t2)
    assert await ids(scripts) == ["t3"]


async def test_a_task_whose_wait_for_others_is_over_still_waits_for_its_gate(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, new_task("first"), turn("t1"), turn("t2", extra=b'["after","first"]'))
    _, t1 = await claim(scripts)
    await look_at(redis, "t2")
    assert await ids(scripts) == []
    await end(scripts, t1)
    assert await ids(scripts) == ["t2"]
    assert await redis.hget(keys.PREFIXES["counts"] + "default", "waiting") == b"0"


async def test_a_task_that_is_replaced_before_it_could_wait_stays_cancelled(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, new_task("first"))
    await reply_of(scripts, turn("t1", extra=b'["after","first"]'), turn("t2", "replace"))
    assert await redis.hget(keys.task("t1"), "status") == b"CANCELLED"
    assert not await redis.exists(keys.PREFIXES["pending"] + "t1")
    assert await ids(scripts) == ["first", "t2"]


async def test_a_task_that_was_handed_back_has_begun_and_is_not_changed(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, turn("t1", **QUIET))
    await look_at(redis, "t1")
    (held,) = await claim(scripts)
    await scripts.reschedule([again(held, counts=False)])
    assert (await reply_of(scripts, turn("t2", **QUIET)))[2:] == [["t2", 1]]


async def test_a_task_that_is_being_cancelled_is_not_joined(scripts: Scripts) -> None:
    await put(scripts, turn("t1", "join"))
    await claim(scripts)
    await scripts.cancel(["t1"], DAY_MS)
    assert (await reply_of(scripts, turn("t2", "join")))[2:] == [["t2", 1]]


async def test_what_a_batch_replaces_takes_no_parameters_of_the_batch(scripts: Scripts) -> None:
    await put(scripts, turn("t1", **QUIET))
    assert (await reply_of(scripts, turn("t2", "replace"), turn("t3", **QUIET)))[2:] == [["t2", 1], ["t3", 1]]


async def test_a_task_of_two_gates_is_not_let_in_by_one_of_them(scripts: Scripts, redis: Redis) -> None:
    await put(scripts, turn("t1"), member("m1", limit=1), turn("both", more=((GROUP, 1),)))
    t1, _ = await claim(scripts)
    await end(scripts, t1)
    assert await due_in_ms(redis, "both") > PARK_MS / 2
