"""What operators and curious users read: task types, queues, workers, dead letters, tickets, the older shape."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, Field

from app.api.dead_letter_views import DeadLetterList, DeadLetterView
from app.api.jobs import JobView
from app.api.queues import QueueList
from app.api.task_types import TaskTypeList
from app.api.tickets import redeem_ticket
from app.api.workers import WorkerList
from app.engine.context import TaskContext
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from app.errors import RetryableError, Unauthorized
from tests.api.running import Api, api_on
from tests.support import PATIENCE_S, event_of, finished


class Number(BaseModel):
    """How many."""

    n: int = Field(0, ge=0)


@task("test.double", queue="other", timeout=timedelta(minutes=2), soft_limit=timedelta(minutes=1))
async def double(ctx: TaskContext, params: Number) -> Number:
    """Twice
    as many.

    More.
    """
    return Number(n=params.n * 2)


@task("test.flaky", retry=RetryPolicy(max_retries=1, base_s=0.01, jitter=False))
async def flaky(ctx: TaskContext, params: Number) -> None:
    raise RetryableError(f"attempt {ctx.attempt}")


@task("test.forever")
async def forever(ctx: TaskContext, params: Number) -> None:
    await ctx.progress(1, 2, "begun")
    await asyncio.Event().wait()


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Api]:
    async with api_on(redis_url, (double, flaky, forever)) as running:
        yield running


async def posted(api: Api, name: str, **params: Any) -> str:
    return str((await api.ada.post("/api/tasks", json={"task": name, "params": params})).json()["task_id"])


async def test_task_types_tell_queue_policy_and_schemas(api: Api) -> None:
    page = (await api.ada.get("/api/task-types")).json()
    TaskTypeList.model_validate(page)
    assert [item["task"] for item in page["items"]] == ["test.double", "test.flaky", "test.forever"]
    first, second, _ = page["items"]
    assert (first["queue"], first["summary"]) == ("other", "Twice as many.")
    assert (first["policy"]["soft_limit_s"], first["policy"]["hard_limit_s"]) == (60, 120)
    assert first["params_schema"]["properties"]["n"]["minimum"] == 0
    assert first["result_schema"]["title"] == "Number"
    assert second["result_schema"] == {"type": "null"}
    assert second["policy"] == {
        "max_attempts": 2,
        "backoff_base_s": 0.01,
        "backoff_factor": 2.0,
        "backoff_cap_s": 600.0,
        "backoff_jitter": False,
        "soft_limit_s": 1740.0,
        "hard_limit_s": 1800.0,
        "on_busy": None,
        "debounce_s": None,
        "debounce_max_s": None,
        "throttle_s": None,
        "throttle_burst": 1,
    }


async def test_queues_tell_what_stands_in_them(api: Api) -> None:
    for _ in range(3):
        await posted(api, "test.double")
    await api.ada.post("/api/tasks", json={"task": "test.double", "delay_s": 60})
    page = (await api.bob.get("/api/queues")).json()
    QueueList.model_validate(page)
    default, other = page["items"]
    assert (default["name"], default["ready"], default["oldest_ready_age_s"]) == ("default", 0, None)
    assert other.pop("oldest_ready_age_s") >= 0
    assert other == {
        "name": "other",
        "ready": 3,
        "delayed": 1,
        "running": 0,
        "waiting": 0,
        "dead": 0,
        "finished_per_minute": 0,
        "concurrency": 2,
        "paused": False,
        "workers": 0,
    }


async def test_a_paused_queue_stands_still_until_it_is_resumed(api: Api) -> None:
    paused = await api.root.post("/api/queues/other/pause")
    assert (paused.status_code, paused.json()["paused"]) == (200, True)
    task_id = await posted(api, "test.double", n=1)
    async with api.engine.worker():
        # A task of another queue shows that the worker works.
        await finished(api.engine, await posted(api, "test.flaky"))
        assert (await api.ada.get(f"/api/tasks/{task_id}")).json()["status"] == "PENDING"
        assert (await api.root.post("/api/queues/other/resume")).json()["paused"] is False
        assert (await finished(api.engine, task_id)).result == {"n": 2}


async def test_workers_tell_how_they_fare(api: Api) -> None:
    async with api.engine.worker() as worker:
        async with asyncio.timeout(PATIENCE_S):
            while not (page := (await api.root.get("/api/workers")).json())["items"]:
                pass
        queues = (await api.ada.get("/api/queues")).json()["items"]
    WorkerList.model_validate(page)
    (only,) = page["items"]
    assert only["worker_id"] == worker.worker_id
    assert only["lanes"] == {"default": {"concurrency": 8, "running": 0}, "other": {"concurrency": 2, "running": 0}}
    assert (only["capacity"], only["running"]) == (10, 0)
    assert only["started_at"] <= only["heartbeat_at"]
    assert [queue["workers"] for queue in queues] == [1, 1]


async def test_a_dead_letter_tells_all_attempts(api: Api) -> None:
    task_id = await posted(api, "test.flaky", n=4)
    async with api.engine.worker():
        await finished(api.engine, task_id)
    page = (await api.ada.get("/api/dead-letters?queue=default&task=test.flaky")).json()
    DeadLetterList.model_validate(page)
    whole = (await api.ada.get(f"/api/dead-letters/{task_id}")).json()
    DeadLetterView.model_validate(whole)
    assert page["items"] == [{name: whole[name] for name in page["items"][0]}]
    assert page["items"][0].keys().isdisjoint({"params", "traceback", "history"})
    assert (whole["params"], whole["attempts"], whole["error"]["message"]) == ({"n": 4}, 2, "attempt 2")
    assert [past["error"]["message"] for past in whole["history"]] == ["attempt 1"]
    assert "RetryableError: attempt 2" in whole["traceback"]
    assert (await api.ada.get("/api/dead-letters?task=test.double")).json()["items"] == []
    assert (await api.ada.get("/api/dead-letters/nothing")).status_code == 404


async def test_dead_letters_go_from_page_to_page(api: Api) -> None:
    ids = [await posted(api, "test.flaky") for _ in range(3)]
    async with api.engine.worker():
        for task_id in ids:
            await finished(api.engine, task_id)
    first = (await api.ada.get("/api/dead-letters?limit=2")).json()
    second = (await api.ada.get("/api/dead-letters", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert second["next_cursor"] is None
    assert sorted(item["task_id"] for item in first["items"] + second["items"]) == sorted(ids)


async def test_a_ticket_stands_for_its_caller_once(api: Api) -> None:
    for client, user_id, is_admin in ((api.ada, "ada", False), (api.root, "root", True)):
        answer = await client.post("/api/tickets")
        assert (answer.status_code, answer.json()["expires_in_s"]) == (201, 60)
        caller = await redeem_ticket(api.engine, answer.json()["ticket"])
        assert (caller.user_id, caller.is_admin, caller.expires_at) == (user_id, is_admin, None)
        with pytest.raises(Unauthorized, match="ticket"):
            await redeem_ticket(api.engine, answer.json()["ticket"])


async def test_the_older_shape_of_a_task(api: Api) -> None:
    running, done, failed = [await posted(api, name) for name in ("test.forever", "test.double", "test.flaky")]
    assert (await api.ada.get(f"/jobs/{done}")).json() == {
        "task_id": done,
        "status": "PENDING",
        "result": None,
        "error": None,
    }
    async with api.engine.worker():
        await event_of(api.engine, running, "task_progress")
        job = (await api.ada.get(f"/jobs/{running}")).json()
        JobView.model_validate(job)
        assert datetime.fromisoformat(job["result"].pop("updated_at"))
        assert (job["status"], job["result"]) == (
            "PROGRESS",
            {"current": 1, "total": 2, "percent": 50, "label": "begun"},
        )
        for task_id in (done, failed):
            await finished(api.engine, task_id)
        await api.ada.post(f"/api/tasks/{running}/cancel")
        await finished(api.engine, running)
    jobs = [(await api.ada.get(f"/jobs/{one}")).json() for one in (done, failed, running)]
    assert [job["status"] for job in jobs] == ["SUCCESS", "FAILURE", "CANCELLED"]
    assert [job["result"] for job in jobs] == [{"n": 0}, None, None]
    assert [job["error"] for job in jobs[:2]] == [None, "attempt 2"]
