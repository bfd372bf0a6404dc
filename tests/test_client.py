"""The client against the real API: calls, refusals as words, and events that survive lost connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from app.client import ApiClient, ApiError, TaskEvent, open_api
from app.domains.system import tasks as system
from app.engine.approvals import ApprovalRequest
from app.engine.context import TaskContext
from app.engine.registry import task
from app.engine.submissions import Submission
from app.errors import InvalidInput, MalformedReply, RemoteUnreachable
from tests.api.live import Live, live_on
from tests.fakes.proxy import Proxy
from tests.support import PATIENCE_S

turns = asyncio.Semaphore(0)


@task("test.count")
async def count(ctx: TaskContext, params: system.Sleep) -> int:
    """Emit an event for each turn it is given."""
    for number in range(params.steps):
        await turns.acquire()
        await ctx.emit("counted", {"number": number})
    return params.steps


@task("test.ask")
async def ask(ctx: TaskContext, params: system.Fail) -> list[Any]:
    """Wait for an event, then for a person."""
    event = await ctx.wait_event("go")
    decision = await ctx.approval(ApprovalRequest("Go on?"))
    return [event, decision.approved, decision.notes, decision.edits]


TASKS = (system.echo, system.sleep, system.fail, count, ask)


@pytest.fixture(autouse=True)
def no_turns() -> None:
    global turns  # noqa: PLW0603  (it belongs to the loop of one test)
    turns = asyncio.Semaphore(0)


@pytest.fixture
async def live(redis_url: str) -> AsyncIterator[Live]:
    async with live_on(redis_url, TASKS) as running:
        yield running


@pytest.fixture
async def ada(live: Live) -> AsyncIterator[ApiClient]:
    async with open_api(f"http://{live.address}", live.keys["ada"]) as api:
        yield api


async def all_events(api: ApiClient, task_id: str, **options: str) -> list[TaskEvent]:
    async with asyncio.timeout(PATIENCE_S), aclosing(api.watch(task_id, **options)) as events:
        return [event async for event in events]


@asynccontextmanager
async def through_proxy(live: Live) -> AsyncIterator[tuple[ApiClient, Proxy]]:
    async with (
        Proxy(int(live.address.rpartition(":")[2])) as proxy,
        open_api(f"http://127.0.0.1:{proxy.port}", live.keys["ada"]) as api,
    ):
        yield api, proxy


async def test_a_task_is_posted_awaited_and_its_result_read(ada: ApiClient) -> None:
    posted = await ada.submit("system.echo", {"value": "hello"}, project_id="apollo", tags=["a", "b"], priority=2)
    done = await ada.get(posted["task_id"], wait_s=20)
    assert (done["status"], done["result"]) == ("SUCCESS", {"value": "hello"})
    assert (done["project_id"], done["tags"], done["priority"]) == ("apollo", ["a", "b"], 2)
    assert await ada.result(posted["task_id"]) == {"value": "hello"}


async def test_a_task_is_sent_an_event_and_approved(ada: ApiClient) -> None:
    task_id = (await ada.submit("test.ask", {}))["task_id"]
    assert await ada.send_event(task_id, "go", {"n": 1}, idempotency_key="k") == {"delivered": True}
    assert await ada.send_event(task_id, "go", {"n": 2}, idempotency_key="k") == {"delivered": False}
    async with aclosing(ada.watch(task_id)) as events:
        pending = [event async for event in _until(events, "hitl_pending")][-1]
    approval_id = pending.payload["approval_id"]
    assert [one["approval_id"] for one in await ada.approvals(status="pending")] == [approval_id]
    assert (await ada.approval(approval_id))["payload"] == {}
    keyed = {"notes": "n", "edits": {"a": 1}, "idempotency_key": "k"}
    decided = await ada.decide(approval_id, True, **keyed)
    assert await ada.decide(approval_id, True, **keyed) == decided
    with pytest.raises(ApiError, match="APPROVED already, by ada") as refused:
        await ada.decide(approval_id, False)
    assert refused.value.remote_status == 409
    with pytest.raises(ApiError, match="APPROVED already"):
        await ada.withdraw(approval_id)
    assert (await ada.get(task_id, wait_s=20))["result"] == [{"n": 1}, True, "n", {"a": 1}]


async def _until(events: AsyncIterator[TaskEvent], kind: str) -> AsyncIterator[TaskEvent]:
    async with asyncio.timeout(PATIENCE_S):
        async for event in events:
            yield event
            if event.type == kind:
                return


async def test_the_same_idempotency_key_gives_the_first_task(ada: ApiClient) -> None:
    first = await ada.submit("system.echo", {"value": 1}, idempotency_key="once")
    again = await ada.submit("system.echo", {"value": 1}, idempotency_key="once")
    assert again["task_id"] == first["task_id"]


async def test_what_holds_a_task_back_is_posted_with_it(ada: ApiClient) -> None:
    keyed = {"key": "page:7", "debounce_s": 3600.0, "debounce_max_s": 7200.0}
    first = await ada.submit("system.echo", {"value": 1}, **keyed)
    assert (await ada.submit("system.echo", {"value": 2}, **keyed))["task_id"] == first["task_id"]
    joined = await ada.submit("system.echo", {"value": 3}, key="page:7", on_busy="join")
    assert joined["task_id"] == first["task_id"]
    with pytest.raises(ApiError, match="has an unfinished task") as refused:
        await ada.submit("system.echo", {"value": 4}, key="page:7", on_busy="reject")
    assert refused.value.problem["unfinished_task"] == first["task_id"]
    paced = {"key": "mail", "on_busy": "parallel", "throttle_s": 3600.0, "throttle_burst": 2}
    starts = [await ada.submit("system.echo", {"value": number}, **paced) for number in range(3)]
    assert [task["next_attempt_at"] is not None for task in starts] == [False, False, True]
    last = await ada.submit("system.echo", {"value": 5}, after=[first["task_id"], starts[2]["task_id"]])
    assert last["waiting_for"]["count"] == 2
    with pytest.raises(ApiError, match="no task nothing"):
        await ada.submit("system.echo", {"value": 6}, after=["nothing"])


async def test_a_task_is_cancelled_and_run_again_with_other_parameters(ada: ApiClient) -> None:
    posted = await ada.submit("system.sleep", {"seconds": 60})
    await ada.cancel(posted["task_id"])
    assert (await ada.get(posted["task_id"], wait_s=20))["status"] == "CANCELLED"
    again = await ada.retry(posted["task_id"], {"seconds": 0})
    assert again["retry_of"] == posted["task_id"]
    assert (await ada.get(again["task_id"], wait_s=20))["status"] == "SUCCESS"


async def test_lists_go_on_over_pages_up_to_the_limit_and_take_filters(live: Live, ada: ApiClient) -> None:
    await live.engine.tasks.enqueue_many(
        [Submission("system.echo", {"value": number}, delay_s=3600) for number in range(60)], user_id="ada"
    )
    assert len(await ada.tasks(limit=1_000)) == 60
    assert len(await ada.tasks(limit=55)) == 55
    assert await ada.tasks(status="SUCCESS") == []


async def test_past_events_come_as_they_are_watched(ada: ApiClient) -> None:
    posted = await ada.submit("system.sleep", {"seconds": 0, "steps": 2})
    watched = await all_events(ada, posted["task_id"])
    assert [event.type for event in watched] == [
        "task_queued", "task_started", "task_progress", "task_progress", "task_complete",
    ]  # fmt: skip
    assert watched[2].payload["label"] == "slept 1 of 2"
    assert await ada.events(posted["task_id"]) == watched


async def test_watching_may_begin_behind_an_event(ada: ApiClient) -> None:
    posted = await ada.submit("system.sleep", {"seconds": 0, "steps": 3})
    watched = await all_events(ada, posted["task_id"])
    assert await all_events(ada, posted["task_id"], last_event_id=watched[2].id) == watched[3:]


async def test_a_lost_connection_is_resumed_without_gap_or_double(live: Live) -> None:
    async with through_proxy(live) as (api, proxy):
        posted = await api.submit("test.count", {"seconds": 0, "steps": 30})
        seen: list[TaskEvent] = []
        async with asyncio.timeout(PATIENCE_S), aclosing(api.watch(posted["task_id"])) as events:
            turns.release()
            async for event in events:
                seen.append(event)
                if event.type == "counted":
                    if event.payload["number"] % 10 == 5:
                        proxy.cut()
                    turns.release()
        stored = await api.events(posted["task_id"])
    assert seen == stored
    assert [event.payload["number"] for event in seen if event.type == "counted"] == list(range(30))
    assert proxy.accepted >= 4


async def test_what_happens_while_the_service_cannot_be_reached_comes_afterwards(live: Live) -> None:
    async with through_proxy(live) as (api, proxy):
        posted = await api.submit("test.count", {"seconds": 0, "steps": 3})
        async with asyncio.timeout(PATIENCE_S), aclosing(api.watch(posted["task_id"])) as events:
            assert (await anext(events)).type == "task_queued"
            proxy.refuse(3)
            proxy.cut()
            for _ in range(3):
                turns.release()
            rest = [event async for event in events]
    assert proxy.refusals_left == 0
    assert [event.type for event in rest] == ["task_started", "counted", "counted", "counted", "task_complete"]


async def test_a_refusal_says_what_the_service_said(ada: ApiClient) -> None:
    with pytest.raises(ApiError, match=r"no task is called 'nosuch'; known are system\.echo") as caught:
        await ada.submit("nosuch", {})
    assert caught.value.remote_status == 404
    with pytest.raises(ApiError, match="seconds"):
        await ada.submit("system.sleep", {"secs": 1})


def test_several_wrong_fields_are_all_named() -> None:
    error = ApiError(
        422,
        {
            "detail": "2 problems",
            "errors": [{"pointer": "/a", "detail": "too long"}, {"parameter": "b", "detail": "no"}],
        },
    )
    assert str(error) == "2 problems\n  /a: too long\n  b: no"


async def test_what_is_another_users_or_nobodys_is_not_there_to_watch(live: Live, ada: ApiClient) -> None:
    async with open_api(f"http://{live.address}", live.keys["bob"]) as bob:
        theirs = (await bob.submit("system.echo", {"value": 1}))["task_id"]
    for task_id in (theirs, "nosuch"):
        with pytest.raises(ApiError, match=task_id):
            await all_events(ada, task_id)


async def test_wrong_credentials_are_refused_at_once_and_not_repeated(live: Live) -> None:
    async with open_api(f"http://{live.address}", "ns_0011223344556677_wrong") as api:
        with pytest.raises(ApiError) as call:
            await api.tasks()
        with pytest.raises(ApiError) as watch:
            await all_events(api, "t1")
    assert (call.value.remote_status, watch.value.remote_status) == (401, 403)
    assert "wrong" not in str(call.value) + str(watch.value)


async def test_a_service_that_is_not_there_is_said_at_once(unused_tcp_port: int) -> None:
    async with open_api(f"http://127.0.0.1:{unused_tcp_port}") as api:
        with pytest.raises(RemoteUnreachable, match=str(unused_tcp_port)):
            await api.tasks()
        with pytest.raises(RemoteUnreachable, match=str(unused_tcp_port)):
            await all_events(api, "t1")


async def test_something_else_that_answers_is_not_taken_for_the_service() -> None:
    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\n<html/>")
        writer.close()

    async with (
        await asyncio.start_server(page, "127.0.0.1", 0) as server,
        open_api(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as api,
    ):
        with pytest.raises(MalformedReply, match="is it Nightshift"):
            await api.get("t1")


async def test_a_url_without_a_scheme_is_refused() -> None:
    with pytest.raises(InvalidInput, match="NIGHTSHIFT_URL='localhost:8000'"):
        async with open_api("localhost:8000"):
            pass


def test_several_wrong_fields_are_told_once_each() -> None:
    fields = [{"pointer": "/a", "detail": "is missing"}, {"pointer": "/b", "detail": "is wrong"}]
    told = str(ApiError(422, {"detail": "/a: is missing (and 1 more)", "errors": fields}))
    assert told == "/a: is missing\n  /b: is wrong"
    told = str(ApiError(422, {"detail": "two are wrong", "errors": fields}))
    assert told == "two are wrong\n  /a: is missing\n  /b: is wrong"
