"""Approvals over HTTP: who sees them, who decides, once, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from app.api.approval_views import ApprovalItem, ApprovalView
from app.api.task_views import TaskView
from app.engine.approvals import ApprovalRequest
from app.engine.context import TaskContext
from app.engine.registry import task
from app.store import keys
from tests.api.running import Api, api_on, everything
from tests.support import event_of, finished


class Ask(BaseModel):
    deciders: tuple[str, ...] = ()
    scope: str | None = None
    expires_s: float = 3_600


class Title(BaseModel):
    title: str


@task("test.ask")
async def ask(ctx: TaskContext, params: Ask) -> dict[str, Any]:
    request = ApprovalRequest("Publish?", {"url": "u"}, params.deciders, params.scope)
    decision = await ctx.approval(request, timedelta(seconds=params.expires_s), edits=Title)
    return {"approved": decision.approved, "by": decision.decided_by, "edits": decision.edits}


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Api]:
    async with api_on(redis_url, (ask,)) as running, running.engine.worker():
        yield running


async def asked(api: Api, **params: Any) -> tuple[str, str]:
    """A task of ada that waits for its approval, and the path of that."""
    answer = await api.ada.post("/api/tasks", json={"task": "test.ask", "params": params})
    task_id = answer.json()["task_id"]
    waiting = await event_of(api.engine, task_id, "task_waiting")
    return task_id, f"/api/approvals/{waiting['waiting_for']['approval_id']}"


async def listed(client: httpx.AsyncClient, query: str = "") -> list[dict[str, Any]]:
    answer = await client.get(f"/api/approvals{query}")
    assert answer.status_code == 200, answer.text
    for item in answer.json()["items"]:
        ApprovalItem.model_validate(item, strict=False)
        assert item.keys() == ApprovalItem.model_fields.keys()
    return list(answer.json()["items"])


async def test_it_is_listed_read_and_decided(api: Api) -> None:
    task_id, path = await asked(api)
    (item,) = await listed(api.ada, "?status=pending")
    assert (item["task_id"], item["status"], item["may_decide"]) == (task_id, "PENDING", True)
    view = (await api.ada.get(path)).json()
    assert ApprovalView.model_validate(view).payload == {"url": "u"}
    assert view["edits_schema"]["required"] == ["title"]
    waiting = (await api.ada.get(f"/api/tasks/{task_id}")).json()
    assert TaskView.model_validate(waiting).waiting_for is not None
    assert (waiting["status"], waiting["waiting_for"]["approval_id"]) == ("WAITING", item["approval_id"])
    answer = await api.ada.post(path, json={"approved": True, "notes": "good", "edits": {"title": "T"}})
    assert answer.status_code == 200
    decided = answer.json()
    assert (decided["status"], decided["decided_by"], decided["notes"]) == ("APPROVED", "ada", "good")
    assert (decided["edits"], (await api.ada.get(path)).json()) == ({"title": "T"}, decided)
    done = await finished(api.engine, task_id)
    assert done.result == {"approved": True, "by": "ada", "edits": {"title": "T"}}
    assert await listed(api.ada, "?status=PENDING") == []
    assert [one["approval_id"] for one in await listed(api.ada, "?status=")] == [item["approval_id"]]


async def test_of_two_decisions_at_once_one_is_answered_with_409(api: Api) -> None:
    task_id, path = await asked(api, deciders=["ada", "bob"])
    answers = await asyncio.gather(
        api.ada.post(path, json={"approved": True}), api.bob.post(path, json={"approved": False})
    )
    won, lost = sorted(answers, key=lambda answer: answer.status_code)
    assert (won.status_code, lost.status_code) == (200, 409)
    problem = lost.json()
    assert problem["type"] == "urn:nightshift:problem:already-decided"
    assert (problem["decided_by"], problem["approval_status"]) == (won.json()["decided_by"], won.json()["status"])
    assert problem["decided_by"] in problem["detail"]
    assert (await finished(api.engine, task_id)).result["by"] == won.json()["decided_by"]


async def test_the_same_again_is_409_without_a_key_and_answered_as_before_with_one(api: Api) -> None:
    _, path = await asked(api)
    keyed = {"headers": {"Idempotency-Key": "k"}}
    first = await api.ada.post(path, json={"approved": False}, **keyed)
    again = await api.ada.post(path, json={"approved": False}, **keyed)
    assert (first.status_code, again.status_code, again.json()) == (200, 200, first.json())
    assert (await api.ada.post(path, json={"approved": False})).status_code == 409
    assert (await api.ada.post(path, json={"approved": True}, **keyed)).status_code == 409


async def test_an_expired_one_is_gone(api: Api) -> None:
    task_id, path = await asked(api, expires_s=0.1)
    assert (await event_of(api.engine, task_id, "approval_decided"))["status"] == "EXPIRED"
    for answer in (await api.ada.post(path, json={"approved": True}), await api.ada.delete(path)):
        assert (answer.status_code, answer.json()["type"]) == (410, "urn:nightshift:problem:gone")
    assert (await api.ada.get(path)).json()["status"] == "EXPIRED"


async def test_the_service_ends_what_no_worker_does(redis_url: str) -> None:
    async with api_on(redis_url, (ask,)) as api:
        async with api.engine.worker():
            task_id, path = await asked(api)
        approval_id = path.rpartition("/")[2]
        await api.engine.redis.hset(keys.approval(approval_id), "expires_at", 1)
        await api.engine.redis.zadd(keys.PREFIXES["approval_deadlines"], {approval_id: 1})
        assert (await event_of(api.engine, task_id, "approval_decided"))["approval_id"] == approval_id


async def test_the_requester_withdraws_it_and_the_task_fails_with_that(api: Api) -> None:
    task_id, path = await asked(api)
    for _ in range(2):
        assert (await api.ada.delete(path)).status_code == 204
    assert (await api.ada.post(path, json={"approved": True})).json()["approval_status"] == "WITHDRAWN"
    done = await finished(api.engine, task_id)
    assert done.error is not None
    assert done.error.type == "ApprovalWithdrawn"


async def test_to_whom_it_is_of_no_concern_it_does_not_exist(api: Api) -> None:
    _, path = await asked(api)
    before = await everything(api.engine.redis)
    missing = f"/api/approvals/{'0' * 32}"
    for method, body in (("GET", None), ("POST", {"approved": True}), ("DELETE", None)):
        of_another, of_nobody = [await api.bob.request(method, at, json=body) for at in (path, missing)]
        assert (of_another.status_code, of_nobody.status_code) == (404, 404)
        names = [
            answer.text.replace(at.rpartition("/")[2], "").replace(answer.headers["x-correlation-id"], "")
            for answer, at in ((of_another, path), (of_nobody, missing))
        ]
        assert names[0] == names[1]
    assert await listed(api.bob) == []
    assert await everything(api.engine.redis) == before
    assert len(await listed(api.root)) == 1


async def test_four_eyes_the_requester_sees_and_withdraws_but_does_not_decide(api: Api) -> None:
    _, path = await asked(api, deciders=["bob"])
    before = await everything(api.engine.redis)
    assert [(await listed(client))[0]["may_decide"] for client in (api.ada, api.bob, api.root)] == [False, True, True]
    assert [(await listed(client))[0]["may_withdraw"] for client in (api.ada, api.bob, api.root)] == [True, False, True]
    refused = [await api.ada.post(path, json={"approved": True}), await api.bob.delete(path)]
    assert [answer.status_code for answer in refused] == [403, 403]
    assert "expected bob" in refused[0].json()["detail"]
    assert await everything(api.engine.redis) == before
    assert (await api.bob.post(path, json={"approved": True})).status_code == 200


async def test_a_decider_hears_of_it_over_their_own_channel(api: Api) -> None:
    _, path = await asked(api, deciders=["bob"])
    page = await api.bob.get("/api/events", headers={"Accept": "application/json"})
    (event,) = page.json()["items"]
    assert (event["type"], event["payload"]["approval_id"]) == ("hitl_pending", path.rpartition("/")[2])
    assert event["payload"].keys() == {"approval_id", "subject", "expires_at"}


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ({}, 422, "/approved"),
        ({"approved": 1}, 422, "/approved"),
        ({"approved": "true"}, 422, "/approved"),
        ({"approved": None}, 422, "/approved"),
        ({"approved": True, "notes": 7}, 422, "/notes"),
        ({"approved": True, "notes": "n" * 4_001}, 422, "/notes"),
        ({"approved": True, "edits": []}, 422, "/edits"),
        ({"approved": True, "edits": {"title": 7}}, 422, "/edits/title"),
        ({"approved": True, "edits": {}}, 422, "/edits/title"),
        ({"approved": True, "edits": {"title": "e" * 32_768}}, 413, "/edits"),
        ({"approved": True, "aproved": True}, 422, "/aproved"),
        ([], 422, ""),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_a_wrong_decision_is_refused_with_a_pointer_and_changes_nothing(
    api: Api, body: Any, status: int, pointer: str
) -> None:
    _, path = await asked(api)
    key = keys.approval(path.rpartition("/")[2])
    before = await api.engine.redis.hgetall(key)
    answer = await api.ada.post(path, json=body)
    assert (answer.status_code, answer.json()["pointer"]) == (status, pointer), answer.text
    assert await api.engine.redis.hgetall(key) == before
    assert len(await listed(api.ada, "?status=pending")) == 1


@pytest.mark.parametrize("query", ["?status=open", "?limit=0", "?limit=201", "?cursor=x", "?state=pending"])
async def test_a_wrong_list_is_refused(api: Api, query: str) -> None:
    assert (await api.ada.get(f"/api/approvals{query}")).status_code == 422


async def test_a_key_that_is_none_is_refused(api: Api) -> None:
    _, path = await asked(api)
    answer = await api.ada.post(path, json={"approved": True}, headers={"Idempotency-Key": "k" * 129})
    assert answer.status_code == 422
    assert (await api.ada.get(path)).json()["status"] == "PENDING"
