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
from app.store import keys
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
        "steps": [],
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


async def test_a_delayed_task_says_when_it_is_due(api: Api) -> None:
    view = await posted(api, delay_s=60.5)
    due, enqueued = (datetime.fromisoformat(view[name]) for name in ("next_attempt_at", "enqueued_at"))
    assert due - enqueued == timedelta(seconds=60.5)
    run_at = datetime.now(UTC) + timedelta(hours=1)
    view = await posted(api, run_at=run_at.isoformat())
    assert abs(datetime.fromisoformat(view["next_attempt_at"]) - run_at) < timedelta(milliseconds=1)


async def test_the_same_idempotency_key_and_request_give_the_first_task_again(api: Api) -> None:
    request = {"json": {"task": "test.double", "params": {"n": 1}}, "headers": {"idempotency-key": "k 1"}}
    first = await api.ada.post("/api/tasks", **request)
    again = await api.ada.post("/api/tasks", **request)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    other = await api.bob.post("/api/tasks", **request)
    assert (other.status_code, other.json()["user_id"]) == (202, "bob")


async def test_a_repeated_request_shows_the_first_task_as_it_stands_now(api: Api) -> None:
    request = {"json": {"task": "test.double", "params": {"n": 4}}, "headers": {"idempotency-key": "k"}}
    first = await api.ada.post("/api/tasks", **request)
    async with api.engine.worker():
        await finished(api.engine, first.json()["task_id"])
    again = (await api.ada.post("/api/tasks", **request)).json()
    assert (again["status"], again["result"]) == ("SUCCESS", {"n": 8})


async def test_an_idempotency_key_is_refused_for_another_request(api: Api) -> None:
    key = {"idempotency-key": "k"}
    await api.ada.post("/api/tasks", json={"task": "test.double", "params": {"n": 1}}, headers=key)
    answer = await api.ada.post("/api/tasks", json={"task": "test.double", "params": {"n": 2}}, headers=key)
    assert answer.status_code == 409
    assert "'k'" in answer.json()["detail"]


async def test_a_key_whose_task_is_forgotten_is_gone(redis_url: str) -> None:
    request = {"json": {"task": "test.double"}, "headers": {"idempotency-key": "k"}}
    async with api_on(redis_url, TASKS, result_ttl_s=1) as api:
        first = await api.ada.post("/api/tasks", **request)
        await api.ada.post(f"{first.headers['location']}/cancel")
        # Retention works on the server's clock; the task's last second is moved into the past.
        await api.engine.redis.zadd(keys.PREFIXES["finished"], {first.json()["task_id"]: 1}, xx=True)
        await api.engine.sweep()
        answer = await api.ada.post("/api/tasks", **request)
    assert answer.status_code == 410


async def test_a_full_queue_says_when_to_come_again(redis_url: str) -> None:
    async with api_on(redis_url, TASKS, queue_max_depth=1) as api:
        await posted(api)
        answer = await api.ada.post("/api/tasks", json={"task": "test.double"})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["type"] == "urn:nightshift:problem:queue-full"


# Batches


async def test_a_batch_is_accepted_in_order(api: Api) -> None:
    tasks = [{"task": "test.double", "params": {"n": n}, "tags": [f"n{n}"]} for n in range(1_000)]
    answer = await api.ada.post("/api/tasks/batch", json={"tasks": tasks})
    ids = answer.json()["task_ids"]
    assert answer.status_code == 202
    assert len(set(ids)) == 1_000
    for n in (0, 500, 999):
        assert (await api.ada.get(f"/api/tasks/{ids[n]}")).json()["tags"] == [f"n{n}"]


@pytest.mark.parametrize("count", [1, 1_000])
async def test_a_batch_takes_one_round_trip(api: Api, count: int) -> None:
    async with api.engine.redis.monitor() as monitor:
        # The first one loads the script and opens a connection.
        for tasks in ([{"task": "test.double"}], [{"task": "test.double"}] * count):
            answer = await api.ada.post("/api/tasks/batch", json={"tasks": tasks})
            assert answer.status_code == 202
            await api.engine.redis.echo("the end")
        assert await commands_until_end(monitor)
        assert [command.split()[0] for command in await commands_until_end(monitor)] == ["EVALSHA"]


async def commands_until_end(monitor: Any) -> list[str]:
    """What clients sent the server before the mark; what scripts called is left out."""
    commands = []
    while (command := await monitor.next_command())["command"] != "ECHO the end":
        if command["client_type"] != "lua":
            commands.append(command["command"])
    return commands


async def test_a_batch_with_one_wrong_task_is_refused_whole(api: Api) -> None:
    tasks = [{"task": "test.double"}, {"task": "test.double", "params": {"n": -1}}]
    answer = await api.ada.post("/api/tasks/batch", json={"tasks": tasks})
    assert answer.status_code == 422
    assert answer.json()["pointer"] == "/tasks/1/params/n"
    assert (await api.ada.get("/api/tasks")).json() == {"items": [], "next_cursor": None}


async def test_one_more_task_begins_when_those_of_its_batch_have_ended(api: Api) -> None:
    tasks = [{"task": "test.double", "params": {"n": n}} for n in range(3)]
    answer = await api.ada.post("/api/tasks/batch", json={"tasks": tasks, "then": {"task": "test.double"}})
    *ids, last = answer.json()["task_ids"]
    assert len(ids) == 3
    view = (await api.ada.get(f"/api/tasks/{last}")).json()
    assert (view["status"], view["waiting_for"]["count"]) == ("WAITING", 3)
    single = await api.ada.post("/api/tasks", json={"task": "test.double", "after": ids})
    assert (single.status_code, single.json()["status"]) == (202, "WAITING")
    refused = await api.bob.post("/api/tasks", json={"task": "test.double", "after": ids})
    assert (refused.status_code, refused.json()["pointer"]) == (404, "/after")
    wrong = await api.ada.post(
        "/api/tasks/batch", json={"tasks": tasks, "then": {"task": "test.double", "params": {"n": -1}}}
    )
    assert (wrong.status_code, wrong.json()["pointer"]) == (422, "/then/params/n")


async def test_tasks_of_a_batch_have_idempotency_keys_of_their_own(api: Api) -> None:
    first = await api.ada.post(
        "/api/tasks/batch", json={"tasks": [{"task": "test.double", "idempotency_key": key} for key in "ab"]}
    )
    again = await api.ada.post(
        "/api/tasks/batch", json={"tasks": [{"task": "test.double", "idempotency_key": key} for key in "bca"]}
    )
    a, b = first.json()["task_ids"]
    assert [again.json()["task_ids"][at] for at in (0, 2)] == [b, a]
    conflict = await api.ada.post(
        "/api/tasks/batch", json={"tasks": [{"task": "test.double", "params": {"n": 1}, "idempotency_key": "a"}]}
    )
    assert conflict.status_code == 409


async def test_a_batch_takes_no_idempotency_key_for_the_whole(api: Api) -> None:
    answer = await api.ada.post(
        "/api/tasks/batch", json={"tasks": [{"task": "test.double"}]}, headers={"idempotency-key": "k"}
    )
    assert answer.status_code == 422
    assert "idempotency_key" in answer.json()["detail"]


# Reading


async def test_a_finished_task_shows_its_result(api: Api) -> None:
    view = await posted(api, params={"n": 21})
    async with api.engine.worker():
        await finished(api.engine, view["task_id"])
    answer = await api.ada.get(f"/api/tasks/{view['task_id']}")
    assert answer.headers["x-poll-interval"] == "0"
    view = answer.json()
    assert (view["status"], view["result"], view["attempt"]) == ("SUCCESS", {"n": 42}, 1)
    assert view["enqueued_at"] <= view["started_at"] <= view["finished_at"]
    TaskView.model_validate(view)


async def test_a_failed_task_shows_its_error(api: Api) -> None:
    view = await posted(api, "test.broken")
    async with api.engine.worker():
        await finished(api.engine, view["task_id"])
    view = (await api.ada.get(f"/api/tasks/{view['task_id']}")).json()
    assert view["error"] == {"type": "PermanentError", "message": "it is broken", "retryable": False}
    assert view["result"] is None


async def test_a_running_task_shows_its_progress(api: Api) -> None:
    view = await posted(api, "test.forever")
    async with api.engine.worker():
        await event_of(api.engine, view["task_id"], "task_progress")
        view = (await api.ada.get(f"/api/tasks/{view['task_id']}")).json()
        await api.ada.post(f"/api/tasks/{view['task_id']}/cancel")
        await finished(api.engine, view["task_id"])
    assert view["progress"].pop("updated_at") >= view["started_at"]
    assert view["progress"] == {"current": 1, "total": 4, "percent": 25, "label": "begun"}


async def test_a_task_that_did_not_change_is_not_sent_again(api: Api) -> None:
    path = f"/api/tasks/{(await posted(api))['task_id']}"
    first = await api.ada.get(path)
    etag = first.headers["etag"]
    for value in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        same = await api.ada.get(path, headers={"if-none-match": value})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
        assert int(same.headers["x-poll-interval"]) > 0
    await api.ada.post(f"{path}/cancel")
    changed = await api.ada.get(path, headers={"if-none-match": etag})
    assert (changed.status_code, changed.json()["status"]) == (200, "CANCELLED")
    assert changed.headers["etag"] != etag


async def test_the_result_alone(api: Api) -> None:
    path = f"/api/tasks/{(await posted(api, params={'n': 2}))['task_id']}/result"
    early = await api.ada.get(path)
    assert (early.status_code, early.json()["type"]) == (409, "urn:nightshift:problem:conflict")
    async with api.engine.worker():
        await finished(api.engine, path.split("/")[3])
    assert (await api.ada.get(path)).json() == {"n": 4}


async def test_a_task_without_a_result_says_why_it_will_never_have_one(api: Api) -> None:
    failed, cancelled, forgotten = [await posted(api, name) for name in ("test.broken", "test.double", "test.double")]
    await api.ada.post(f"/api/tasks/{cancelled['task_id']}/cancel")
    async with api.engine.worker():
        for view in (failed, forgotten):
            await finished(api.engine, view["task_id"])
    await api.engine.redis.delete(keys.result(forgotten["task_id"]))
    answers = [await api.ada.get(f"/api/tasks/{view['task_id']}/result") for view in (failed, cancelled, forgotten)]
    assert [answer.status_code for answer in answers] == [410, 410, 410]
    assert answers[0].json()["error"] == {"type": "PermanentError", "message": "it is broken", "retryable": False}
    assert ["cancelled" in answer.json()["detail"] for answer in answers] == [False, True, False]


# Lists


async def test_a_list_goes_from_page_to_page_newest_first(api: Api) -> None:
    ids = [(await posted(api))["task_id"] for _ in range(5)]
    seen, cursor, pages = [], "", 0
    while cursor is not None:
        page = (await api.ada.get("/api/tasks", params={"limit": 2, "cursor": cursor})).json()
        seen += [item["task_id"] for item in page["items"]]
        cursor, pages = page["next_cursor"], pages + 1
    assert sorted(seen) == sorted(ids)
    assert pages == 3
    times = [(await api.ada.get(f"/api/tasks/{one}")).json()["enqueued_at"] for one in seen]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize(
    "narrowed",
    [
        {"status": "CANCELLED"},
        {"queue": "other"},
        {"task": "test.text"},
        {"project_id": "apollo"},
        {"tag": "a tag"},
        {"status": "CANCELLED", "queue": "other", "task": "test.text", "project_id": "apollo", "tag": "a tag"},
    ],
)
async def test_a_list_is_narrowed(api: Api, narrowed: dict[str, str]) -> None:
    await posted(api, project_id="gemini", tags=["a", "tag"])
    wanted = await posted(api, "test.text", params={"text": "x"}, project_id="apollo", tags=["b", "a tag"])
    await api.ada.post(f"/api/tasks/{wanted['task_id']}/cancel")
    for client in (api.ada, api.root):
        items = (await client.get("/api/tasks", params=narrowed)).json()["items"]
        assert [item["task_id"] for item in items] == [wanted["task_id"]]


async def test_an_empty_filter_does_not_narrow(api: Api) -> None:
    await posted(api)
    empty = dict.fromkeys(("status", "queue", "task", "project_id", "tag", "cursor"), "")
    assert len((await api.ada.get("/api/tasks", params=empty)).json()["items"]) == 1


async def test_a_list_leaves_results_out(api: Api) -> None:
    view = await posted(api)
    async with api.engine.worker():
        await finished(api.engine, view["task_id"])
    page = (await api.ada.get("/api/tasks")).json()
    TypeAdapter(TaskList).validate_python(page)
    assert "result" not in page["items"][0]


async def test_an_admin_sees_everybodys_tasks(api: Api) -> None:
    view = await posted(api)
    assert [item["task_id"] for item in (await api.root.get("/api/tasks")).json()["items"]] == [view["task_id"]]
    assert (await api.bob.get("/api/tasks")).json()["items"] == []


# Cancelling, running again


async def test_a_waiting_task_is_cancelled_at_once(api: Api) -> None:
    path = f"/api/tasks/{(await posted(api))['task_id']}"
    answer = await api.ada.post(f"{path}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "CANCELLED")
    again = await api.ada.post(f"{path}/cancel")
    assert again.status_code == 409


async def test_a_finished_task_runs_again_as_a_new_one(api: Api) -> None:
    old = await posted(api, params={"n": 5}, tags=["a"], project_id="apollo", priority=1)
    path = f"/api/tasks/{old['task_id']}/retry"
    assert (await api.ada.post(path)).status_code == 409
    async with api.engine.worker():
        await finished(api.engine, old["task_id"])
        same, other = await api.ada.post(path), await api.ada.post(path, json={"params": {"n": 6}})
        assert (same.status_code, other.status_code) == (202, 202)
        results = [(await finished(api.engine, answer.json()["task_id"])).result for answer in (same, other)]
    assert results == [{"n": 10}, {"n": 12}]
    new = same.json()
    assert same.headers["location"] == f"/api/tasks/{new['task_id']}"
    assert (new["retry_of"], new["tags"], new["project_id"], new["priority"]) == (old["task_id"], ["a"], "apollo", 1)


async def test_a_task_that_an_admin_runs_again_stays_its_owners(api: Api) -> None:
    old = await posted(api)
    await api.ada.post(f"/api/tasks/{old['task_id']}/cancel")
    answer = await api.root.post(f"/api/tasks/{old['task_id']}/retry")
    assert answer.json()["user_id"] == "ada"
    assert (await api.ada.get(answer.headers["location"])).status_code == 200


async def test_wrong_parameters_of_a_repetition_have_a_pointer(api: Api) -> None:
    old = await posted(api)
    await api.ada.post(f"/api/tasks/{old['task_id']}/cancel")
    answer = await api.ada.post(f"/api/tasks/{old['task_id']}/retry", json={"params": {"n": "x"}})
    assert (answer.status_code, answer.json()["pointer"]) == (422, "/params/n")
