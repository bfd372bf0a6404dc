"""What a task can do with its `ctx`."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
from pydantic import BaseModel

from app.engine.context import TaskContext
from app.engine.events import stream_name
from app.engine.job import Status, TaskRecord
from app.engine.lending import Resource
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.engine.threads import Reporter
from app.errors import RetryableError
from app.telemetry import current_context
from tests.support import engine_on, finished

ONCE = RetryPolicy(max_retries=0)
SHARED: Resource[list[str]] = Resource("shared list")


class Anything(BaseModel):
    value: Any = None


@task("test.progress", retry=ONCE)
async def progress(ctx: TaskContext, params: Anything) -> None:
    for current, total in params.value:
        await ctx.progress(current, total, f"{current} of {total}")


@task("test.emit", retry=ONCE)
async def emit(ctx: TaskContext, params: Anything) -> None:
    kind, payload, channel = params.value
    values = {"nan": math.nan, "large": "x" * 70_000, "object": object()}
    await ctx.emit(kind, {"v": values.get(payload, payload)}, channel=channel)


@task("test.child")
async def child(ctx: TaskContext, params: Anything) -> str | None:
    return ctx.info.correlation_id


@task("test.parent", retry=RetryPolicy(max_retries=1, base_s=0.01))
async def parent(ctx: TaskContext, params: Anything) -> list[str]:
    fresh = await ctx.start("test.child", {})
    same = await ctx.start(child, Anything(), idempotency_key="only one")
    await ctx.emit("started", {"fresh": fresh, "same": same})
    if ctx.attempt == 1:
        raise RetryableError("again")
    return [fresh, same]


def in_thread(report: Reporter, main_thread: int) -> dict[str, Any]:
    report(1, 2, "half")
    return {"task_id": current_context().task_id, "elsewhere": threading.get_ident() != main_thread}


@task("test.cpu", retry=ONCE)
async def cpu(ctx: TaskContext, params: Anything) -> dict[str, Any]:
    return await ctx.run_cpu(in_thread, ctx.reporter(), main_thread=threading.get_ident())


@task("test.shared", retry=ONCE)
async def shared(ctx: TaskContext, params: Anything) -> list[str]:
    return ctx.use(SHARED)


TASKS = (progress, emit, child, parent, cpu, shared)


async def run(engine: Engine, name: str, value: Any = None, **more: Any) -> TaskRecord:
    submission = Submission(name, {"value": value}, **more)
    accepted = await engine.tasks.enqueue(submission, user_id="ada", correlation_id="corr-1")
    return await finished(engine, accepted.task_id)


async def events(engine: Engine, channel: str, kind: str) -> list[dict[str, Any]]:
    found = await engine.events.read(stream_name(channel, "ada"), channel)
    return [event.data() for event in found if event.type == kind]


async def test_progress_is_stored_and_sent_and_its_percentage_never_goes_back(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.progress", [[1, 2], [1, 10], [9, 10]], project_id="p 1")
        task_events = await events(engine, f"task:{record.task_id}", "task_progress")
        assert await events(engine, "user:ada", "task_progress") == task_events
        assert await events(engine, "project:p 1", "task_progress") == task_events
    assert [event["percent"] for event in task_events] == [50.0, 50.0, 90.0]
    assert record.progress is not None
    assert (record.progress.current, record.progress.total, record.progress.label) == (9, 10, "9 of 10")


@pytest.mark.parametrize("wrong", [[2, 1], [-1, 1], [0, 0], [1, -1]])
async def test_progress_that_cannot_be_fails_the_task_with_the_numbers(redis_url: str, wrong: list[int]) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.progress", [wrong])
    assert record.status is Status.FAILURE
    assert record.error is not None
    assert f"progress {wrong[0]} of {wrong[1]}" in record.error.message


@pytest.mark.parametrize("channel", [None, "project:p 1", "user:ada", "desk:7"])
async def test_an_event_goes_to_its_channel_and_to_no_other(redis_url: str, channel: str | None) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.emit", ["found", "it", channel], project_id="p 1")
        channels = [f"task:{record.task_id}", "project:p 1", "user:ada", "desk:7"]
        seen = {name: await events(engine, name, "found") for name in channels}
    wanted = channel or f"task:{record.task_id}"
    assert seen == {name: [{"v": "it"}] if name == wanted else [] for name in channels}


@pytest.mark.parametrize(
    ("kind", "payload", "channel", "complaint"),
    [
        ("two words", "x", None, "event type 'two words'"),
        ("", "x", None, "event type ''"),
        ("found", "nan", None, "expected what JSON can hold"),
        ("found", "object", None, "expected what JSON can hold"),
        ("found", "large", None, "exceeds the bound of 65536 bytes"),
        ("found", "x", "task:another", "channel 'task:another'"),
        ("found", "x", "nowhere", "channel 'nowhere'"),
    ],
)
async def test_an_event_that_cannot_be_fails_the_task_and_leaves_nothing(
    redis_url: str, kind: str, payload: str, channel: str | None, complaint: str
) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.emit", [kind, payload, channel])
        kinds = {event.type for event in await engine.events.read(f"task:{record.task_id}", "task")}
    assert record.error is not None
    assert complaint in record.error.message
    assert kinds == {"task_queued", "task_started", "task_failed"}


async def test_a_child_belongs_to_the_same_user_project_and_request(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.parent", project_id="p", tags=("t",))
        children = [await finished(engine, task_id) for task_id in record.result]
    for item in children:
        assert (item.user_id, item.project_id, item.tags) == ("ada", "p", ("t",))
        assert (item.parent_id, item.root_id) == (record.task_id, record.task_id)
        assert item.result == "corr-1"


async def test_a_child_is_started_once_over_all_attempts(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.parent")
        started = await events(engine, f"task:{record.task_id}", "started")
    assert record.attempt == 2
    assert started[0] == started[1]


async def test_cpu_work_runs_in_a_thread_that_reports_and_logs_for_the_task(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.cpu")
    assert record.result == {"task_id": record.task_id, "elsewhere": True}


async def test_progress_from_a_thread_is_emitted_by_the_loop(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.cpu")
        reported = await events(engine, f"task:{record.task_id}", "task_progress")
    assert [(event["percent"], event["label"]) for event in reported] == [(50.0, "half")]


async def test_tasks_share_what_their_process_opened(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker({SHARED: ["opened"]}):
        assert (await run(engine, "test.shared")).result == ["opened"]


async def test_what_the_process_did_not_open_is_named(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.shared")
    assert record.error is not None
    assert "shared list" in record.error.message
