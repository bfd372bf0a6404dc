"""Server-sent events through a real server: order, resuming, ends, ownership, pages."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import from_json
from redis.asyncio import Redis

from app.engine.context import TaskContext
from app.engine.events import START
from app.engine.registry import task
from app.engine.submissions import Submission
from app.store import keys
from app.store.embedded import EmbeddedServer
from tests.api.live import Live, all_events, live_on, next_events
from tests.event_support import append
from tests.support import PATIENCE_S, event_of, finished


class Steps(BaseModel):
    n: int = 0


@task("test.steps")
async def steps(ctx: TaskContext, params: Steps) -> int:
    for n in range(params.n):
        await ctx.emit("step", {"n": n})
    return params.n


@task("test.forever")
async def forever(ctx: TaskContext, params: Steps) -> None:
    for n in range(params.n):
        await ctx.emit("step", {"n": n})
    await asyncio.Event().wait()


TASKS = (steps, forever)


@pytest.fixture
async def live(redis_url: str) -> AsyncIterator[Live]:
    async with live_on(redis_url, TASKS) as running:
        yield running


async def submitted(live: Live, name: str, n: int = 0, **fields: Any) -> str:
    accepted = await live.engine.tasks.enqueue(Submission(name, {"n": n}, **fields), user_id="ada")
    return accepted.task_id


def types_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


async def test_a_tasks_stream_has_all_of_it_in_order_and_ends_with_its_end(live: Live) -> None:
    task_id = await submitted(live, "test.steps", 1_500)
    async with live.sse(f"/api/tasks/{task_id}/events") as source:
        assert source.response.headers["content-type"].startswith("text/event-stream")
        events = await all_events(source.aiter_sse())
    assert types_of(events) == ["task_queued", "task_started", *["step"] * 1_500, "task_complete"]
    assert [event["payload"]["n"] for event in events[2:-1]] == list(range(1_500))
    assert {(event["channel"], event["task_id"]) for event in events} == {(f"task:{task_id}", task_id)}
    assert len({event["id"] for event in events}) == len(events)


async def test_a_finished_tasks_stream_gives_the_rest_and_ends(live: Live) -> None:
    task_id = await submitted(live, "test.steps", 500)
    await finished(live.engine, task_id)
    async with live.sse(f"/api/tasks/{task_id}/events") as source:
        events = await all_events(source.aiter_sse())
    assert len(events) == 503
    async with live.sse(f"/api/tasks/{task_id}/events", last=events[99]["id"]) as source:
        assert await all_events(source.aiter_sse()) == events[100:]


async def test_a_browser_that_has_seen_the_end_is_told_not_to_come_again(live: Live) -> None:
    task_id = await submitted(live, "test.steps")
    await finished(live.engine, task_id)
    last = await live.engine.events.last_id(f"task:{task_id}")
    async with live.http() as client:
        again = await client.get(f"/api/tasks/{task_id}/events", headers={"Last-Event-ID": last})
    assert (again.status_code, again.content) == (204, b"")


@pytest.mark.parametrize("way", ["header", "query"])
async def test_a_running_tasks_stream_is_taken_up_where_it_was_left(live: Live, way: str) -> None:
    task_id = await submitted(live, "test.forever", 10)
    path = f"/api/tasks/{task_id}/events"
    async with live.sse(path) as source:
        first = await next_events(source.aiter_sse(), 5)
    last = first[-1]["id"]
    again = live.sse(path, last=last) if way == "header" else live.sse(f"{path}?last_event_id={last}")
    async with again as source:
        stream = source.aiter_sse()
        rest = await next_events(stream, 7)
        await live.engine.tasks.cancel(task_id, user_id="ada")
        rest += await all_events(stream)
    assert types_of(first + rest) == ["task_queued", "task_started", *["step"] * 10, "task_cancelled"]


async def test_a_stream_loses_and_doubles_nothing_while_redis_is_killed_and_restarted(
    own_server: EmbeddedServer,
) -> None:
    async with live_on(own_server.url, TASKS) as live, live.sse("/api/projects/apollo/events") as source:
        stream = source.aiter_sse()
        seen: list[dict[str, Any]] = []
        for turn in range(3):
            await append(live.engine.redis, f"project:{keys.pair('ada', 'apollo')}", range(turn * 20, turn * 20 + 10))
            await asyncio.to_thread(own_server.restart)
            await append(
                live.engine.redis, f"project:{keys.pair('ada', 'apollo')}", range(turn * 20 + 10, turn * 20 + 20)
            )
            seen += await next_events(stream, 20)
    assert [event["payload"]["n"] for event in seen] == list(range(60))
    assert {event["channel"] for event in seen} == {"project:apollo"}


async def test_a_project_is_the_callers_own_view_of_it(live: Live) -> None:
    async with (
        live.sse("/api/projects/my%20project/events") as mine,
        live.sse("/api/projects/my%20project/events", "bob") as theirs,
    ):
        task_id = await submitted(live, "test.steps", project_id="my project")
        await live.engine.tasks.enqueue(Submission("test.steps", {}, project_id="my project"), user_id="bob")
        mine_events = await next_events(mine.aiter_sse(), 3)
        their_events = await next_events(theirs.aiter_sse(), 3)
    assert {event["task_id"] for event in mine_events} == {task_id}
    assert task_id not in {event["task_id"] for event in their_events}


async def test_the_callers_stream_begins_now_or_behind_what_was_seen(live: Live, redis: Redis) -> None:
    await append(redis, "user:ada", range(3))
    async with live.sse("/api/events") as source:
        await append(redis, "user:ada", [3])
        [event] = await next_events(source.aiter_sse(), 1)
        assert event["payload"] == {"n": 3}
    async with live.sse("/api/events", last="0") as source:
        assert [event["payload"]["n"] for event in await next_events(source.aiter_sse(), 4)] == [0, 1, 2, 3]


async def test_a_gap_is_told(live: Live, redis: Redis) -> None:
    await append(redis, "user:ada", range(10))
    seen = (await live.engine.events.read("user:ada", "user:ada"))[2].id
    await redis.lpop(keys.events("user:ada"), 5)
    async with live.sse("/api/events", last=seen) as source:
        stream = source.aiter_sse()
        gap = await anext(stream)
        assert (gap.event, gap.id) == ("gap", "")
        assert from_json(gap.data) == {"type": "gap", "channel": "user:ada", "last_event_id": seen}
        assert [event["payload"]["n"] for event in await next_events(stream, 5)] == [5, 6, 7, 8, 9]


async def test_anothers_task_and_an_unknown_one_are_the_same(live: Live) -> None:
    task_id = await submitted(live, "test.steps")
    await finished(live.engine, task_id)
    async with live.http("bob") as bob, live.http("root") as root:
        for accept in ("text/event-stream", "application/json"):
            theirs = await bob.get(f"/api/tasks/{task_id}/events", headers={"accept": accept})
            unknown = await bob.get("/api/tasks/unknown/events", headers={"accept": accept})
            assert (theirs.status_code, unknown.status_code) == (404, 404)
            assert theirs.json()["detail"].replace(task_id, "unknown") == unknown.json()["detail"]
        assert (await root.get(f"/api/tasks/{task_id}/events")).status_code == 200


@pytest.mark.parametrize("path", ["/api/events", "/api/projects/p/events"])
async def test_a_malformed_last_id_is_refused(live: Live, path: str) -> None:
    async with live.http() as client:
        assert (await client.get(path, headers={"Last-Event-ID": "yesterday"})).status_code == 422
        assert (await client.get(f"{path}?last_event_id=1-x")).status_code == 422
        client.headers["authorization"] = "Bearer ns_no_key"
        assert (await client.get(path)).status_code == 401


async def test_past_events_come_in_pages(live: Live) -> None:
    task_id = await submitted(live, "test.steps", 8)
    await finished(live.engine, task_id)
    events: list[dict[str, Any]] = []
    cursor: str | None = ""
    sizes = []
    async with live.http() as client:
        while cursor is not None:
            answer = await client.get(
                f"/api/tasks/{task_id}/events",
                params={"cursor": cursor, "limit": 4},
                headers={"accept": "application/json"},
            )
            page = answer.json()
            sizes.append(len(page["items"]))
            events, cursor = events + page["items"], page["next_cursor"]
    assert sizes == [4, 4, 3]
    async with live.sse(f"/api/tasks/{task_id}/events") as source:
        assert await all_events(source.aiter_sse()) == events


async def test_a_silent_stream_is_kept_alive(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.event_stream.KEEP_ALIVE_S", 0.01)
    async with live.http() as client, client.stream("GET", "/api/events") as answer:
        lines = answer.aiter_lines()
        async with asyncio.timeout(PATIENCE_S):
            assert await anext(lines) == "retry: 2000"
            while await anext(lines) != ": keep-alive":
                pass


async def test_a_task_whose_end_gave_no_event_ends_its_stream_too(
    live: Live, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stock arq worker finishes tasks without an event."""
    monkeypatch.setattr("app.api.event_stream.KEEP_ALIVE_S", 0.01)
    task_id = await submitted(live, "test.forever")
    await event_of(live.engine, task_id, "task_started")
    async with live.sse(f"/api/tasks/{task_id}/events") as source:
        await redis.hset(keys.task(task_id), mapping={"status": "SUCCESS", "finished_at": 1})
        assert types_of(await all_events(source.aiter_sse())) == ["task_queued", "task_started"]


async def test_open_streams_end_when_the_service_stops(redis_url: str) -> None:
    async with live_on(redis_url, TASKS) as live:
        async with live.sse("/api/events") as source:
            stream = source.aiter_sse()
            live.app.state.shutdown.begin()
            assert await all_events(stream) == []
        # A browser that is answered with an error never comes again, so one that comes now gets a stream too.
        async with live.sse("/api/events") as late:
            assert late.response.status_code == 200
            assert await all_events(late.aiter_sse()) == []


async def test_a_client_that_leaves_leaves_nothing_behind(live: Live, redis: Redis) -> None:
    async with live.sse("/api/events"):
        assert (await redis.pubsub_numsub(keys.events("user:ada")))[0][1] == 1
    async with asyncio.timeout(PATIENCE_S):
        while (await redis.pubsub_numsub(keys.events("user:ada")))[0][1]:
            await asyncio.sleep(0)
    assert live.engine.hub._streams == {}


async def test_a_client_that_reads_nothing_is_cut_off_and_others_go_on(
    live: Live, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.event_stream.CLOSE_GRACE_S", 0.05)
    deaf = socket.create_connection(tuple(live.address.split(":")))  # type: ignore[arg-type]
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    request = f"GET /api/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {live.keys['ada']}\r\n\r\n"
    await asyncio.to_thread(deaf.sendall, request.encode())
    async with live.sse("/api/events", last=START) as source:
        stream = source.aiter_sse()
        async with asyncio.timeout(PATIENCE_S):
            while len(live.server.server_state.connections) < 2:
                await asyncio.sleep(0)
        sent = 0
        # Until the server has given the deaf one up, connection and all; the other sees every event.
        while len(live.server.server_state.connections) > 1:
            await append(redis, "user:ada", range(sent, sent + 50), padding=2_000)
            events = await next_events(stream, 50)
            assert [event["payload"]["n"] for event in events] == list(range(sent, sent + 50))
            sent += 50
    assert sent >= 1_000
    deaf.close()
