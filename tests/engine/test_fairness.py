"""Who is next: users take turns by weight, whatever they have waiting, and the cost of it does not grow with that."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from app.engine import wire
from app.engine.context import TaskContext
from app.engine.fairness import costs_of
from app.engine.lane import LaneSettings
from app.engine.registry import task
from app.engine.submissions import Submission
from app.store import keys
from app.store.items import Delivery, NewTask
from app.store.scripts import BAND, MAX_PRIORITY, Scripts
from tests.simulated import DAY_MS, again, claim, end_of, lapse, new_task, put, server_ms, wait_of
from tests.support import engine_on, finished

QUEUE = keys.queue("default")
FAIR = keys.PREFIXES["fair"] + "default"


@pytest.fixture
async def scripts(redis: Redis) -> Scripts:
    """The scripts on an empty server."""
    return Scripts(redis)


def tasks_of(user: str, count: int, **changes: Any) -> list[NewTask]:
    """Tasks whose ids begin with the user's, and sort as they were made."""
    return [new_task(f"{user}-{n:05}", user_id=user, **changes) for n in range(count)]


async def next_ids(scripts: Scripts, count: int) -> list[str]:
    """The next tasks, each claimed by itself and finished before the next one is."""
    found = []
    for _ in range(count):
        for held in await claim(scripts, want=1):
            found.append(held.id)
            await scripts.finish([end_of(held)])
    return found


async def next_users(scripts: Scripts, count: int) -> list[str]:
    return [task_id.partition("-")[0] for task_id in await next_ids(scripts, count)]


async def make_due(redis: Redis, ids: Sequence[str], *, ago_ms: int = 1_000) -> None:
    """Let the time of delayed tasks come, one after the other."""
    first = await server_ms(redis) - ago_ms
    await redis.zadd(QUEUE, {task_id: first + at / 1_000 for at, task_id in enumerate(ids)}, xx=True)


async def enqueue_stock(redis: Redis, *ids: str) -> None:
    """What arq's own client writes."""
    for task_id in ids:
        data = {"t": None, "f": "test.work", "a": [], "k": {}, "et": await server_ms(redis)}
        await redis.set(keys.job(task_id), wire.serializer(data))
        await redis.zadd(QUEUE, {task_id: data["et"]})


# Turns.


async def test_a_thousand_waiting_tasks_do_not_hold_up_the_first_of_another_user(scripts: Scripts) -> None:
    await put(scripts, *tasks_of("ada", 1_000))
    running = await claim(scripts, want=10)
    await put(scripts, *tasks_of("bob", 1))
    await scripts.finish([end_of(running[0])])
    assert await next_ids(scripts, 2) == ["bob-00000", "ada-00010"]


async def test_every_new_user_is_in_front_of_all_backlogs(scripts: Scripts) -> None:
    await put(scripts, *tasks_of("ada", 300), *tasks_of("bob", 300))
    await next_ids(scripts, 20)
    await put(scripts, *tasks_of("eve", 1), *tasks_of("dan", 1))
    # One of the two others may stand where the queue has come to.
    assert {"eve", "dan"} <= set(await next_users(scripts, 3))


async def test_users_take_turns_by_weight_and_in_order(scripts: Scripts) -> None:
    costs = costs_of({"ada": 4, "bob": 1, "eve": 0.5})
    for user, cost in costs.items():
        await put(scripts, *tasks_of(user, 100, cost=cost))
    taken = await next_ids(scripts, 110)
    for user in costs:
        own = [task_id for task_id in taken if task_id.startswith(user)]
        assert own == [f"{user}-{n:05}" for n in range(len(own))]
    counts = Counter(task_id.partition("-")[0] for task_id in taken)
    assert abs(counts["ada"] - 80) <= 2
    assert abs(counts["bob"] - 20) <= 2
    assert abs(counts["eve"] - 10) <= 2


async def test_in_one_claim_as_in_many(scripts: Scripts) -> None:
    await put(scripts, *tasks_of("ada", 50), *tasks_of("bob", 50))
    users = [held.id.partition("-")[0] for held in await claim(scripts, want=20)]
    assert Counter(users) == {"ada": 10, "bob": 10}
    assert [held.id for held in await claim(scripts, want=2)] == ["ada-00010", "bob-00010"]


async def test_a_user_of_little_weight_gains_nothing_by_sending_one_after_the_other(scripts: Scripts) -> None:
    await put(scripts, *tasks_of("ada", 200))
    cost = costs_of({"bob": 0.1})["bob"]
    taken: list[str] = []
    for n in range(5):
        await put(scripts, new_task(f"bob-{n}", user_id="bob", cost=cost))
        while f"bob-{n}" not in taken:
            taken += await next_ids(scripts, 1)
    assert 40 <= len(taken) <= 50


async def test_a_second_task_is_reached_though_new_users_never_end(scripts: Scripts) -> None:
    await put(scripts, new_task("x1", user_id="x"), new_task("x2", user_id="x"))
    taken = [held.id for held in await claim(scripts, want=1)]
    while "x2" not in taken:
        assert len(taken) < 1_100
        await put(scripts, new_task(f"t{len(taken)}", user_id=f"user{len(taken)}"))
        taken += [held.id for held in await claim(scripts, want=1)]
    assert len(taken) > 1_000


async def test_a_higher_priority_comes_first_whoever_it_belongs_to(scripts: Scripts) -> None:
    await put(scripts, *tasks_of("ada", 20, priority=9), *tasks_of("bob", 20), *tasks_of("eve", 20, priority=1))
    assert await next_users(scripts, 60) == ["ada"] * 20 + ["eve"] * 20 + ["bob"] * 20


async def test_each_priority_has_turns_of_its_own(scripts: Scripts) -> None:
    """What was taken of a high priority does not move new users of a low one behind the backlog there."""
    await put(scripts, *tasks_of("ada", 100))
    await put(scripts, *tasks_of("bob", 300, priority=5))
    await put(scripts, *tasks_of("dan", 1, priority=6))
    await claim(scripts, want=310)
    await put(scripts, *tasks_of("eve", 1))
    assert "eve-00000" in await next_ids(scripts, 2)


# What has a time first.


async def test_delayed_tasks_of_a_user_get_their_place_behind_the_others_turns(redis: Redis, scripts: Scripts) -> None:
    delayed = tasks_of("ada", 100, delay_ms=DAY_MS)
    await put(scripts, *delayed)
    await make_due(redis, [item.id for item in delayed])
    assert len(await next_ids(scripts, 3)) == 3
    await put(scripts, *tasks_of("bob", 2))
    assert "bob-00000" in await next_ids(scripts, 2)
    # Delayed ones keep their order, and new ones of the user come behind.
    await put(scripts, new_task("ada-new", user_id="ada"))
    assert (await next_ids(scripts, 200))[-1] == "ada-new"


async def test_the_weight_of_a_delayed_task_is_kept(redis: Redis, scripts: Scripts) -> None:
    cost = costs_of({"ada": 4})["ada"]
    delayed = tasks_of("ada", 80, delay_ms=DAY_MS, cost=cost)
    await put(scripts, *delayed, *tasks_of("bob", 80))
    await make_due(redis, [item.id for item in delayed])
    counts = Counter(await next_users(scripts, 50))
    assert abs(counts["ada"] - 40) <= 2


@pytest.mark.parametrize("waits", [True, False])
async def test_the_weight_of_a_task_that_resumes_is_kept(scripts: Scripts, waits: bool) -> None:
    cost = costs_of({"ada": 4})["ada"]
    await put(scripts, *tasks_of("ada", 80, cost=cost))
    held = await claim(scripts)
    if waits:
        await scripts.suspend([wait_of(one, "event:go") for one in held])
        for one in held:
            await scripts.deliver_event(Delivery(one.id, "ada", "go", b"1", "", 10))
    else:
        await scripts.suspend([wait_of(one, "task:nobody") for one in held])
    await put(scripts, *tasks_of("bob", 80))
    counts = Counter(await next_users(scripts, 50))
    assert abs(counts["ada"] - 40) <= 2


async def test_a_delayed_task_of_a_new_user_is_in_front(redis: Redis, scripts: Scripts) -> None:
    await put(scripts, *tasks_of("ada", 100), *tasks_of("bob", 1, delay_ms=DAY_MS))
    await next_ids(scripts, 5)
    await make_due(redis, ["bob-00000"])
    assert await next_ids(scripts, 1) == ["bob-00000"]


async def test_all_tasks_of_stock_clients_are_those_of_one_user(redis: Redis, scripts: Scripts) -> None:
    await enqueue_stock(redis, *(f"stock-{n:05}" for n in range(50)))
    assert await next_ids(scripts, 3) == ["stock-00000", "stock-00001", "stock-00002"]
    await put(scripts, *tasks_of("bob", 1))
    assert await next_users(scripts, 1) == ["bob"]
    assert await next_ids(scripts, 100) == [f"stock-{n:05}" for n in range(3, 50)]


async def test_a_task_of_a_stock_client_does_not_wait_behind_a_backlog(redis: Redis, scripts: Scripts) -> None:
    await put(scripts, *tasks_of("ada", 100))
    await next_ids(scripts, 3)
    await enqueue_stock(redis, "stock-1")
    assert await next_ids(scripts, 1) == ["stock-1"]


async def test_a_thousand_retries_do_not_hold_up_the_first_task_of_another_user(redis: Redis, scripts: Scripts) -> None:
    await put(scripts, *tasks_of("ada", 1_000))
    held = await claim(scripts, want=1_000)
    await scripts.reschedule([again(item, delay_ms=DAY_MS) for item in held])
    await make_due(redis, [item.id for item in held])
    await next_ids(scripts, 5)
    await put(scripts, *tasks_of("bob", 1))
    assert await next_users(scripts, 1) == ["bob"]
    assert await redis.zcount(QUEUE, 1, BAND - 1) == 995


@pytest.mark.parametrize("way", ["retried", "retried later", "handed back", "lost"])
async def test_what_has_begun_does_not_go_behind_the_new_tasks_of_its_user(
    redis: Redis, scripts: Scripts, way: str
) -> None:
    await put(scripts, *tasks_of("ada", 500))
    held = await claim(scripts, want=5)
    begun = [item.id for item in held]
    if way == "lost":
        await lapse(redis, *held)
    else:
        delay_ms = DAY_MS if way == "retried later" else 0
        await scripts.reschedule([again(item, delay_ms=delay_ms, counts=way != "handed back") for item in held])
    if way == "retried later":
        await make_due(redis, begun)
    taken = await claim(scripts, want=12)
    assert {item.id for item in taken} >= set(begun)
    assert [item.id for item in taken if item.id in begun] == begun
    assert {item.id: item.lost for item in taken} == {item.id: way == "lost" and item.id in begun for item in taken}


async def test_a_lost_task_that_has_its_place_is_still_lost_when_it_is_taken(redis: Redis, scripts: Scripts) -> None:
    await put(scripts, *tasks_of("ada", 3))
    await lapse(redis, *await claim(scripts))
    assert [held.lost for held in await claim(scripts, want=1)] == [True]
    assert await redis.zscore(QUEUE, "ada-00002") < BAND
    assert [(held.attempt, held.lost) for held in await claim(scripts)] == [(2, True)] * 2


async def test_a_worker_that_comes_back_keeps_what_nobody_has_taken_yet(redis: Redis, scripts: Scripts) -> None:
    await put(scripts, *tasks_of("ada", 2))
    held = await claim(scripts)
    await lapse(redis, *held)
    (first,) = await claim(scripts, "w2", want=1)
    left = next(item for item in held if item.id != first.id)
    assert await scripts._run("renew", [60_000, left.id, left.token, left.queue]) == [1]
    assert await claim(scripts, "w2") == []
    assert await scripts.finish([end_of(left)]) == [1]


async def test_one_claim_reaches_through_many_tasks_that_have_come_due(redis: Redis, scripts: Scripts) -> None:
    ids = [f"stock-{n:05}" for n in range(2_500)]
    await redis.zadd(QUEUE, dict.fromkeys(ids, await server_ms(redis) - 5))
    await redis.zadd(QUEUE, {"later": await server_ms(redis) + DAY_MS})
    time, soonest, rows, left = await scripts.claim("w1", 60_000, 2_600, [("default", 2_600)])
    assert sorted(row[0].decode() for row in rows) == ids
    assert left == []
    # The leases just given end first; nothing that is due was left behind.
    assert soonest == time + 60_000


async def test_what_has_come_due_and_is_not_taken_is_not_slept_over(redis: Redis, scripts: Scripts) -> None:
    await enqueue_stock(redis, *(f"stock-{n}" for n in range(5)))
    _, _, rows, left = await scripts.claim("w1", 60_000, 2, [("default", 2)])
    assert (len(rows), left) == (2, [b"default"])
    assert await redis.zcard(keys.sleepers("default")) == 0


# Scores and state.


async def test_ready_scores_are_no_times_and_never_zero(redis: Redis, scripts: Scripts) -> None:
    """arq's clients and workers take a score of 0 for none."""
    for priority in range(MAX_PRIORITY + 1):
        await put(scripts, *(new_task(f"t{priority}{n}", priority=priority) for n in range(3)))
    scores = dict(await redis.zrange(QUEUE, 0, -1, withscores=True))
    assert len(scores) == 3 * (MAX_PRIORITY + 1)
    assert all(score != 0 and score < BAND for score in scores.values())
    assert [name.decode()[1] for name in scores] == [str(p) for p in range(MAX_PRIORITY, -1, -1) for _ in range(3)]


@pytest.mark.parametrize("priority", [0, 1, MAX_PRIORITY])
async def test_a_full_band_goes_on_in_order_of_ids(redis: Redis, scripts: Scripts, priority: int) -> None:
    top = (1 - priority) * BAND - 1
    await redis.zadd(FAIR, {str(priority): top - 2})
    await put(scripts, *tasks_of("ada", 10, priority=priority), *tasks_of("bob", 10, priority=priority))
    await put(scripts, *tasks_of("low", 1, priority=max(0, priority - 1)))
    scores = [score for _, score in await redis.zrange(QUEUE, 0, -1, withscores=True)]
    assert max(scores[:20]) == top
    assert 0 not in scores
    assert len(set(await next_ids(scripts, 30))) == 21
    assert not await redis.exists(FAIR)


async def test_costs_are_added_up_exactly_at_the_top_of_the_lowest_band(redis: Redis, scripts: Scripts) -> None:
    cost = costs_of({"ada": 1_000})["ada"]
    await redis.zadd(FAIR, {str(MAX_PRIORITY): 2 - MAX_PRIORITY * BAND})
    await put(scripts, *tasks_of("ada", 50, priority=MAX_PRIORITY, cost=cost))
    assert len({score for _, score in await redis.zrange(QUEUE, 0, -1, withscores=True)}) == 50


async def test_nothing_is_kept_of_users_who_have_nothing_waiting(redis: Redis, scripts: Scripts) -> None:
    await put(scripts, *tasks_of("ada", 400))
    for n in range(100):
        await put(scripts, *tasks_of(f"user{n}", 1), *tasks_of(f"high{n}", 1, priority=3))
        await next_ids(scripts, 4)
    # The backlog's owner, the two bands, and who was served within the last turn.
    assert await redis.zcard(FAIR) <= 8
    await claim(scripts, want=500)
    assert not await redis.exists(FAIR)


async def test_a_task_costs_as_many_commands_whatever_waits(redis: Redis, scripts: Scripts) -> None:
    async def commands_of_one() -> Counter[str]:
        await redis.config_resetstat()
        await put(scripts, new_task(f"new{await redis.dbsize()}", user_id="bob"))
        assert await next_users(scripts, 2)
        stats = await redis.info("commandstats")
        return Counter({name: values["calls"] for name, values in stats.items()})

    await put(scripts, *tasks_of("ada", 10))
    await commands_of_one()  # the first of all sets times to live
    few = await commands_of_one()
    await put(scripts, *(new_task(f"more-{n}", user_id=f"user{n % 50}") for n in range(3_000)))
    many = await commands_of_one()
    for counts in (few, many):
        del counts["cmdstat_config|resetstat"], counts["cmdstat_info"]
    assert many == few
    assert many["cmdstat_zmscore"] == 1


# Weights.


def test_a_cost_is_the_weight_turned_over_in_exact_steps() -> None:
    costs = costs_of({"one": 1, "four": 4, "half": 0.5, "third": 3, "least": 0.01, "most": 1_000})
    assert (costs["one"], costs["four"], costs["half"], costs["least"]) == (1, 0.25, 2, 100)
    assert costs["third"] == pytest.approx(1 / 3, rel=0.002)
    assert costs["most"] == 1 / 1024


class Work(BaseModel):
    n: int = 0


ran: list[str] = []
gate = asyncio.Event()


@task("test.work")
async def work(ctx: TaskContext, params: Work) -> None:
    ran.append(ctx.user_id)
    await gate.wait()


@task("test.parent")
async def parent(ctx: TaskContext, params: Work) -> str:
    return await ctx.start(work, Work())


async def test_the_setting_gives_tasks_and_their_children_the_cost_of_their_user(redis: Redis, redis_url: str) -> None:
    gate.set()
    async with engine_on(redis_url, (work, parent), user_weights="ada=4") as engine, engine.worker():
        made = await engine.tasks.enqueue(Submission("test.parent"), user_id="ada")
        child = (await finished(engine, made.task_id)).result
        plain = await engine.tasks.enqueue(Submission("test.work"), user_id="bob")
        for task_id in (child, plain.task_id):
            await finished(engine, task_id)
    assert await redis.hget(keys.task(made.task_id), "cost") == b"0.25"
    assert await redis.hget(keys.task(child), "cost") == b"0.25"
    assert await redis.hget(keys.task(plain.task_id), "cost") is None


async def test_a_worker_starts_the_first_task_of_a_user_when_one_that_runs_has_ended(redis_url: str) -> None:
    ran.clear()
    gate.clear()
    lanes = {"default": LaneSettings(2, prefetch=1)}
    async with engine_on(redis_url, (work,), lanes=lanes) as engine:
        await engine.tasks.enqueue_many([Submission("test.work")] * 200, user_id="ada")
        async with engine.worker():
            async with asyncio.timeout(60):
                while len(ran) < 2:
                    await asyncio.sleep(0.001)
            first = await engine.tasks.enqueue(Submission("test.work"), user_id="bob")
            gate.set()
            assert (await finished(engine, first.task_id)).user_id == "bob"
            assert ran.index("bob") <= 4
