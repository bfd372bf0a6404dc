"""Tasks over HTTP: posted, read, awaited, listed, cancelled, run again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from app.api.task_views import TaskList, TaskView
from app.engine.context import TaskContext
from app.engine.registry import task
from app.errors import PermanentError
from tests.api.running import Api, api_on
from tests.support import event_of, finished


class Number(BaseModel):
    n: int = Field(0, ge=0)


class Text(BaseModel):
    text: str


@task("test.double")
async def double(ctx: TaskContext, params: Number) -> Number:
    return Number(n=params.n * 2)


@task("test.text", queue="other")
async def text(ctx: TaskContext, params: Text) -> None:
    return None


@task("test.broken")
async def broken(ctx: TaskContext, params: Number) -> None:
    raise PermanentError("it is broken")


@task("test.forever")
async def forever(ctx: TaskContext, params: Number) -> None:
    await ctx.progress(1, 4, "begun")
    await asyncio.Event().wait()


TASKS = (double, text, broken, forever)


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Api]:
    async with api_on(redis_url, TASKS) as running:
        yield running


async def posted(api: Api, name: str = "test.double", **body: Any) -> dict[str, Any]:
    answer = await api.ada.post("/api/tasks", json={"task": name, **body})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


# Posting


async def test_a_task_is_accepted_with_its_place_and_as_it_stands(api: Api) -> None:
    answer = await api.ada.post(
        "/api/tasks",
        json={"task": "test.double", "params": {"n": 3}, "project_id": "apollo", "priority": 2, "tags": ["a", "b"]},
        headers={"x-correlation-id": "c-1"},
    )
    view = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/api/tasks/{view['task_id']}"
    assert TaskView.model_validate(view).model_dump() == {
        **dict.fromkeys(TaskView.model_fields),
        "task_id": view["task_id"],
        "task": "test.double",
        "queue": "default",
        "status": "PENDING",
        "attempt": 0,
        "max_attempts": 4,
        "user_id": "ada",
        "project_id": "apollo",
        "correlation_id": "c-1",
        "priority": 2,
        "tags": ["a", "b"],
        "enqueued_at": datetime.fromisoformat(view["enqueued_at"]),
    }
    assert view["enqueued_at"].endswith("Z")
    assert (await api.ada.get(answer.headers["location"])).json() == view
