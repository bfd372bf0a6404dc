"""Flows that run: outputs feed inputs, parts run as children, every leaf runs once whatever happens in between."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from pydantic import BaseModel

from app.domains.flows.models import FlowRun, Node
from app.domains.flows.service import FLOW
from app.domains.flows.tasks import run as flow_task
from app.engine.context import TaskContext
from app.engine.job import Status, TaskRecord
from app.engine.lane import LaneSettings
from app.engine.policy import RetryPolicy
from app.engine.queue import Filter
from app.engine.registry import task
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.errors import PermanentError
from tests.support import engine_on, event_of, finished

effects: Counter[str] = Counter()
gates: dict[str, asyncio.Event] = {}
at_once: list[int] = []
"""How many leaves ran, whenever one had begun."""
running: set[str] = set()


class Item(BaseModel):
    value: Any = None


@pytest.fixture(autouse=True)
def nothing_yet() -> None:
    effects.clear()
    at_once.clear()
    gates.clear()


@task("test.echo", retry=RetryPolicy(max_retries=0))
async def echo(ctx: TaskContext, params: Item) -> Item:
    """Returns its value; fails for a negative number, waits at a gate of that name."""
    effects[str(params.value)] += 1
    if isinstance(params.value, int) and params.value < 0:
        raise PermanentError(f"{params.value} is negative")
    running.add(ctx.task_id)
    at_once.append(len(running))
    try:
        if isinstance(params.value, str) and params.value in gates:
            await gates[params.value].wait()
        await asyncio.sleep(0)
    finally:
        running.discard(ctx.task_id)
    return params


@task("test.big")
async def big(ctx: TaskContext, params: Item) -> str:
    return "x" * int(params.value)


TASKS = (flow_task, echo, big)


def leaf(value: Any, **more: Any) -> dict[str, Any]:
    return {"task": "test.echo", "params": {"value": value}, **more}


def ref(path: str) -> dict[str, str]:
    return {"$from": path}


async def put(engine: Engine, form: dict[str, Any], **fields: Any) -> str:
    params = FlowRun(node=Node.model_validate(form), priority=fields.get("priority", 0))
    return (await engine.tasks.enqueue(Submission(FLOW, params, **fields), user_id="ada")).task_id


async def run(engine: Engine, form: dict[str, Any]) -> TaskRecord:
    return await finished(engine, await put(engine, form))


async def children_of(engine: Engine, task_id: str) -> list[TaskRecord]:
    tree = await engine.trees.read(task_id, user_id="ada")
    return [branch.record for branch in tree.root.children]


async def test_a_sequence_hands_outputs_on_and_gives_the_last(redis_url: str) -> None:
    form = {
        "sequence": [
            leaf({"list": [1, {"deep": "x"}]}, name="a"),
            leaf([ref("a.value.list.1.deep"), ref("a")], name="b"),
            leaf({"$join": [ref("b.value.0"), " and ", ref("a.value.list.0")]}),
        ]
    }
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, form)
        channel = f"task:{record.task_id}"
        told = [
            event.data() for event in await engine.events.read(channel, channel, "0-0") if event.type == "task_progress"
        ]
    assert record.result == {"value": "x and 1"}
    assert [(progress["current"], progress["label"]) for progress in told] == [(1, "b"), (2, "3")]
    assert max(effects.values()) == 1
    assert record.progress is not None
    assert (record.progress.percent, record.attempt) == (pytest.approx(66.7, abs=0.1), 1)


async def test_what_a_task_returns_is_never_taken_for_a_reference(redis_url: str) -> None:
    form = {
        "sequence": [
            leaf({"$value": {"$from": "a"}}, name="a"),
            {"sequence": [leaf(ref("a.value"), name="b"), {"map": [ref("b.value")], "each": leaf(ref("item"))}]},
        ]
    }
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, form)
    assert record.result == [{"value": {"$from": "a"}}]


async def test_parallel_sequences_in_a_sequence(redis_url: str) -> None:
    form = {
        "sequence": [
            leaf("start", name="a"),
            {
                "name": "both",
                "parallel": {
                    "left": {"sequence": [leaf([ref("a.value"), "l"], name="l"), leaf(ref("l.value.0"))]},
                    "right": leaf(ref("a.value")),
                },
            },
            leaf([ref("both.left.value"), ref("both.right.value")]),
        ]
    }
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, form)
        tree = (await engine.trees.read(record.task_id, user_id="ada")).root
    assert record.result == {"value": ["start", "start"]}

    def shape(branch: Any) -> Any:
        return (branch.record.label, branch.record.task, [shape(child) for child in branch.children])

    assert shape(tree) == (
        "",
        "flows.run",
        [
            ("a", "test.echo", []),
            (
                "both",
                "flows.run",
                [
                    ("left", "flows.run", [("l", "test.echo", []), ("2", "test.echo", [])]),
                    ("right", "test.echo", []),
                ],
            ),
            ("3", "test.echo", []),
        ],
    )


async def test_one_task_alone_is_a_flow(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        assert (await run(engine, leaf(5))).result == {"value": 5}


async def test_a_map_keeps_the_order_and_the_limit(redis_url: str) -> None:
    form = {
        "sequence": [
            leaf(list(range(40)), name="a"),
            {
                "map": ref("a.value"),
                "as": "n",
                "limit": 3,
                "each": {"sequence": [leaf(ref("n"), name="x"), leaf(ref("x.value"))]},
            },
        ]
    }
    lanes = {"default": LaneSettings(50)}
    async with engine_on(redis_url, TASKS, lanes=lanes) as engine, engine.worker():
        record = await run(engine, form)
    assert record.result == [{"value": number} for number in range(40)]
    assert [effects[str(number)] for number in range(40)] == [2] * 40
    assert max(at_once) <= 3


async def test_an_empty_map_gives_an_empty_list(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        assert (await run(engine, {"map": [], "each": leaf(ref("item"))})).result == []


async def test_the_first_failure_ends_a_map_and_cancels_the_rest_with_all_below(redis_url: str) -> None:
    gates["held"] = asyncio.Event()
    part = {"sequence": [{"parallel": {"x": leaf("held")}}]}
    form = {"parallel": {"bad": leaf(-1), "slow": part, "good": leaf(1)}}
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, form)
        bad, slow, good = await children_of(engine, record.task_id)
        await finished(engine, slow.task_id)
        for item in (await engine.tasks.page(Filter(), user_id="ada")).items:
            await finished(engine, item.task_id)
        below = await children_of(engine, slow.task_id)
    assert record.status is Status.FAILURE
    assert record.error is not None
    assert (record.error.type, "-1 is negative" in record.error.message) == ("ChildFailed", True)
    assert (bad.status, good.label) == (Status.FAILURE, "good")
    assert [item.status for item in below] in ([], [Status.CANCELLED])


async def test_a_map_may_finish_all_and_then_fail(redis_url: str) -> None:
    form = {"map": [1, -2, 3], "each": leaf(ref("item")), "on_error": "finish"}
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, form)
    assert record.status is Status.FAILURE
    assert effects == {"1": 1, "-2": 1, "3": 1}


async def test_a_map_may_collect_errors_as_records_that_can_be_referred_to(redis_url: str) -> None:
    form = {
        "sequence": [
            {"name": "m", "map": [1, -2], "each": leaf(ref("item")), "on_error": "collect"},
            leaf([ref("m.0.value"), ref("m.1.error.message"), ref("m.1.error.task_id")]),
        ]
    }
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, form)
        failed = await engine.tasks.get(record.result["value"][2], user_id="ada")
    assert record.result["value"][:2] == [1, "-2 is negative"]
    assert (failed.label, failed.status) == ("1", Status.FAILURE)


async def test_a_task_that_a_person_cancels_follows_the_error_policy(redis_url: str) -> None:
    gates["held"] = asyncio.Event()
    form = {"parallel": {"x": leaf("held"), "y": leaf(1)}, "on_error": "collect"}
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        task_id = await put(engine, form)
        await event_of(engine, task_id, "task_waiting")
        held, _ = await children_of(engine, task_id)
        await event_of(engine, held.task_id, "task_started")
        await engine.tasks.cancel(held.task_id, user_id="ada")
        record = await finished(engine, task_id)
    assert record.result["x"]["error"]["status"] == "CANCELLED"
    assert record.result["y"] == {"value": 1}


async def test_cancelling_a_flow_cancels_everything_below(redis_url: str) -> None:
    gates["held"] = asyncio.Event()
    form = {"sequence": [{"parallel": {"x": {"map": ["held", "held"], "each": leaf(ref("item"))}}}, leaf("never")]}
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        task_id = await put(engine, form)
        async with asyncio.timeout(60):
            while effects["held"] < 2:
                await asyncio.sleep(0)
        assert (await engine.tasks.cancel(task_id, user_id="ada")).status is Status.CANCELLED
        for item in (await engine.tasks.page(Filter(), user_id="ada")).items:
            await finished(engine, item.task_id)
        tree = await engine.trees.read(task_id, user_id="ada")
        statuses = Counter(item.status for item in (await engine.tasks.page(Filter(), user_id="ada")).items)
    assert statuses == {Status.CANCELLED: 5}
    assert tree.count == 5
    assert effects["never"] == 0


async def test_workers_that_stop_in_between_change_nothing(redis_url: str) -> None:
    """Each worker stays until it has ended one leaf; the flow goes on where it was."""
    form = {
        "sequence": [
            leaf("first", name="a"),
            {"name": "m", "map": ["m0", "m1", "m2"], "limit": 1, "each": {"sequence": [leaf(ref("item"))]}},
            {"parallel": {"p0": leaf(["p0", ref("a.value")]), "p1": leaf(["p1", ref("m.2.value")])}},
        ]
    }
    async with engine_on(redis_url, TASKS, lanes={"default": LaneSettings(1)}) as engine:
        task_id = await put(engine, form)
        workers = 0
        while not (await engine.tasks.get(task_id, user_id="ada")).status.is_finished:
            seen, workers = sum(effects.values()), workers + 1
            async with engine.worker(), asyncio.timeout(60):
                while sum(effects.values()) == seen:
                    if (await engine.tasks.get(task_id, user_id="ada")).status.is_finished:
                        break
                    await asyncio.sleep(0)
        record = await engine.tasks.get(task_id, user_id="ada", with_result=True)
    assert record.result == {"p0": {"value": ["p0", "first"]}, "p1": {"value": ["p1", "m2"]}}
    assert workers >= 3
    assert set(effects.values()) == {1}
    assert record.attempt == 1


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ({"sequence": [leaf(1, name="a"), leaf(ref("a.valeu"))]}, "reference 'a.valeu': expected 'valeu' in 'a'"),
        ({"sequence": [leaf(1, name="a"), {"map": ref("a"), "each": leaf(1)}]}, "expected a list, got dict"),
        (
            {"sequence": [leaf(1, name="a"), {"task": "test.echo", "params": ref("a.value")}]},
            "expected an object as params",
        ),
        ({"sequence": [{"task": "test.nothing"}]}, "test.nothing"),
        ({"parallel": {"x": leaf(1, name="b")}}, "expected a name only in a sequence"),
    ],
)
async def test_what_cannot_go_on_fails_for_good_and_says_why(redis_url: str, form: Any, told: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, form)
    assert record.error is not None
    assert told in record.error.message
    assert record.attempt == 1


async def test_results_that_are_too_large_together_are_refused(redis_url: str) -> None:
    form = {"map": [1_000_000] * 9, "each": {"task": "test.big", "params": {"value": ref("item")}}}
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, form)
    assert record.error is not None
    assert (record.error.type, "8388608" in record.error.message) == ("TooLarge", True)


async def test_parameters_that_are_too_large_together_are_refused(redis_url: str) -> None:
    form = {
        "sequence": [
            {"name": "a", "task": "test.big", "params": {"value": 700_000}},
            {"map": [0] * 100, "each": leaf({"$join": [ref("a"), ref("item")]})},
        ]
    }
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, form)
    assert record.error is not None
    assert "the parameters of 100 tasks exceed the bound of 67108864 bytes" in record.error.message
    assert effects == {}


async def test_what_a_flow_starts_belongs_where_the_flow_does(redis_url: str) -> None:
    form = {"sequence": [{"parallel": {"x": leaf(1)}}]}
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        task_id = await put(engine, form, project_id="apollo", tags=("a", "b"), priority=3)
        await finished(engine, task_id)
        items = (await engine.tasks.page(Filter(), user_id="ada")).items
    assert len(items) == 3
    for item in items:
        assert (item.user_id, item.project_id, item.tags, item.priority) == ("ada", "apollo", ("a", "b"), 3)
        assert item.root_id == (None if item.task_id == task_id else task_id)
