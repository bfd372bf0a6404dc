"""Trees of tasks: what is shown of a task and its descendants, in which order, within which bounds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from app.engine.context import TaskContext
from app.engine.registry import task
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.engine.trees import Branch
from app.engine.waits import Call, OnError, child_id
from app.errors import InvalidInput, NotFound, PermanentError
from app.store import keys
from app.store.scripts import SCAN_BOUND
from tests.support import engine_on, finished


class Plan(BaseModel):
    widths: list[int] = []
    path: str = ""


@task("test.grow")
async def grow(ctx: TaskContext, params: Plan) -> None:
    """Runs as many children as the first width says, each of which goes on with the rest."""
    if not params.widths:
        raise PermanentError("a leaf")
    width, *rest = params.widths
    calls = [
        Call("test.grow", Plan(widths=rest, path=f"{params.path}/{index}"), label=f"{params.path}/{index}")
        for index in range(width)
    ]
    await ctx.gather(calls, on_error=OnError.COLLECT)


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    async with engine_on(redis_url, [grow]) as running:
        yield running


async def grown(engine: Engine, *widths: int) -> str:
    task_id = (await engine.tasks.enqueue(Submission("test.grow", Plan(widths=list(widths))), user_id="ada")).task_id
    async with engine.worker():
        await finished(engine, task_id)
    return task_id


def labels(branch: Branch) -> Any:
    return {child.record.label: labels(child) for child in branch.children}


async def test_a_tree_shows_descendants_in_the_order_of_their_start(engine: Engine) -> None:
    task_id = await grown(engine, 12, 2)
    tree = await engine.trees.read(task_id, user_id="ada")
    assert labels(tree.root) == {f"/{one}": {f"/{one}/0": {}, f"/{one}/1": {}} for one in range(12)}
    assert list(labels(tree.root)) == [f"/{one}" for one in range(12)]
    assert (tree.count, tree.truncated) == (37, False)
    leaf = tree.root.children[0].children[0].record
    assert leaf.error is not None
    assert (leaf.status, leaf.error.message) == ("FAILURE", "a leaf")
    assert leaf.started_at is not None
    assert leaf.finished_at is not None


@pytest.mark.parametrize(
    ("depth", "limit", "shown", "hidden"),
    [
        (0, 200, 1, [3]),
        (1, 200, 4, [0, 2, 2, 2]),
        (2, 5, 5, [0, 1, 2, 2, 0]),
        (2, 2, 2, [2, 2]),
        (2, 10, 10, [0] * 10),
        (2, 1, 1, [3]),
    ],
)
async def test_bounds_show_the_levels_near_the_root_and_say_what_is_left_out(
    engine: Engine, depth: int, limit: int, shown: int, hidden: list[int]
) -> None:
    tree = await engine.trees.read(await grown(engine, 3, 2), user_id="ada", depth=depth, limit=limit)
    row, found = [tree.root], []
    while row:
        found += [branch.hidden for branch in row]
        row = [child for branch in row for child in branch.children]
    assert (tree.count, found) == (shown, hidden)
    assert tree.truncated == any(hidden)


async def test_more_children_than_are_looked_at_are_counted(engine: Engine, redis: Redis) -> None:
    task_id = await grown(engine, 2)
    others = SCAN_BOUND + 500
    await redis.sadd(keys.PREFIXES["children"] + task_id, *(f"other{number}" for number in range(others)))
    tree = await engine.trees.read(task_id, user_id="ada", limit=1_000)
    assert tree.root.hidden == others + 2 - len(tree.root.children)
    assert tree.truncated


async def test_no_more_children_are_looked_at_than_the_bound_says(engine: Engine, redis: Redis) -> None:
    task_id = await grown(engine, 2)
    below = [branch.record.task_id for branch in (await engine.trees.read(task_id, user_id="ada")).root.children]
    async with redis.pipeline(transaction=False) as pipe:
        for number in range(3_000):
            pipe.hset(keys.PREFIXES["task"] + f"n{number}", mapping={"user_id": "ada", "enqueued_at": 1})
            pipe.sadd(keys.PREFIXES["children"] + below[number % 2], f"n{number}")
        await pipe.execute()
    args = [task_id, 9, 10_000, 300, "user_id", "enqueued_at"]
    rows = await engine.scripts.run("read_tree", args)
    hidden = [row[2] for row in rows[:3]]
    assert hidden[0] == 0
    assert 1_000 < hidden[1] <= 1_500 - 298
    assert hidden[2] == 1_500


def test_the_ids_of_children_sort_as_they_are_started() -> None:
    ids = [child_id("t", number, index) for number in (0, 1, 999) for index in (0, 1, 17, 9_999)]
    assert sorted(ids) == ids
    assert {len(made) for made in ids} == {32}


async def test_what_is_forgotten_is_not_there_any_more(engine: Engine, redis: Redis) -> None:
    task_id = await grown(engine, 3)
    first = (await engine.trees.read(task_id, user_id="ada")).root.children[0].record.task_id
    await redis.zadd(keys.PREFIXES["finished"], {first: 0})
    assert await engine.sweep() == (1, 0)
    tree = await engine.trees.read(task_id, user_id="ada")
    assert list(labels(tree.root)) == ["/1", "/2"]
    assert (tree.count, tree.truncated) == (3, False)


async def test_a_tree_is_its_owners(engine: Engine) -> None:
    task_id = await grown(engine, 1)
    with pytest.raises(NotFound):
        await engine.trees.read(task_id, user_id="bob")
    with pytest.raises(NotFound):
        await engine.trees.read("nothing", user_id="ada")
    assert (await engine.trees.read(task_id, user_id=None)).count == 2


async def test_a_child_of_somebody_else_is_not_shown(engine: Engine, redis: Redis) -> None:
    task_id = await grown(engine, 1)
    strange = (await engine.tasks.enqueue(Submission("test.grow", Plan()), user_id="bob")).task_id
    await redis.sadd(keys.PREFIXES["children"] + task_id, strange)
    tree = await engine.trees.read(task_id, user_id="ada")
    assert list(labels(tree.root)) == ["/0"]


@pytest.mark.parametrize(("depth", "limit"), [(-1, 1), (21, 1), (1, 0), (1, 1_001)])
async def test_bounds_out_of_bounds_are_refused(engine: Engine, depth: int, limit: int) -> None:
    with pytest.raises(InvalidInput, match="expected"):
        await engine.trees.read("any", user_id="ada", depth=depth, limit=limit)


async def test_a_task_that_a_stock_client_enqueued_is_a_tree_of_one(engine: Engine, redis: Redis) -> None:
    await redis.set(keys.job("stock"), b'{"t":null,"f":"test.grow","a":[],"k":{},"et":1795298456306}')
    await redis.zadd(keys.queue("default"), {"stock": 1795298456306})
    tree = await engine.trees.read("stock", user_id=None)
    assert (tree.count, tree.root.record.task, tree.root.children) == (1, "test.grow", [])
