"""The WebSocket through a real server: credentials, frames, channels, resuming, limits, clients that do not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.api.channels import CHANNELS
from app.api.principal import Principal
from app.api.tickets import claims_of
from app.api.ws_commands import COMMANDS, CommandCall
from app.engine.context import TaskContext
from app.engine.registry import task
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.errors import NotFound
from app.store import keys
from app.store.embedded import EmbeddedServer
from app.telemetry import current_correlation_id
from tests.api.live import Live, Socket, live_on
from tests.event_support import append
from tests.support import PATIENCE_S, finished


class Steps(BaseModel):
    n: int = 0


@task("test.steps")
async def steps(ctx: TaskContext, params: Steps) -> int:
    for n in range(params.n):
        await ctx.emit("step", {"n": n})
    return params.n


@pytest.fixture
async def live(redis_url: str) -> AsyncIterator[Live]:
    async with live_on(redis_url, [steps]) as running:
        yield running


async def submitted(live: Live, n: int = 0, user: str = "ada", **fields: Any) -> str:
    accepted = await live.engine.tasks.enqueue(Submission("test.steps", {"n": n}, **fields), user_id=user)
    return accepted.task_id


async def events(socket: Socket, count: int) -> list[dict[str, Any]]:
    """The next frames, all of them events."""
    frames = await socket.frames(count)
    assert all("payload" in frame for frame in frames), frames
    return frames


def numbers(frames: list[dict[str, Any]]) -> list[int]:
    return [frame["payload"]["n"] for frame in frames]


# Who may come in.


async def test_a_client_with_a_key_is_greeted_and_follows_its_own_channel(live: Live) -> None:
    async with live.socket() as socket:
        assert await socket.frame() == {"type": "connected", "user_id": "ada", "last_event_id": "0-0"}
        task_id = await submitted(live)
        frames = await events(socket, 3)
    assert [frame["type"] for frame in frames] == ["task_queued", "task_started", "task_complete"]
    assert {(frame["channel"], frame["task_id"]) for frame in frames} == {("user:ada", task_id)}
    assert set(frames[0]) == {"type", "id", "channel", "task_id", "at", "payload"}


@pytest.mark.parametrize("authorization", [None, "Bearer ns_unknown_key", "Basic YTpi"])
async def test_wrong_credentials_are_closed_with_1008_and_a_reason(live: Live, authorization: str | None) -> None:
    async with live.socket(user=None, authorization=authorization) as socket:
        code, reason = await socket.closed()
    assert code == 1008
    assert reason


async def test_a_ticket_opens_one_socket_as_whoever_fetched_it(live: Live) -> None:
    async with live.http("bob") as client:
        ticket = (await client.post("/api/tickets")).json()["ticket"]
    async with live.socket(None, f"?ticket={ticket}") as socket:
        assert (await socket.frame())["user_id"] == "bob"
        task_id = await submitted(live, user="ada")
        answer = await socket.asked("subscribe", channel=f"task:{task_id}")
        assert answer["type"] == "subscription_error"
    async with live.socket(None, f"?ticket={ticket}") as again:
        code, reason = await again.closed()
    assert (code, "ticket" in reason) == (1008, True)


@pytest.mark.parametrize("ticket", ["", "unknown", "x" * 500])
async def test_what_is_no_ticket_is_closed_with_1008(live: Live, ticket: str) -> None:
    async with live.socket(None, f"?ticket={ticket}") as socket:
        assert (await socket.closed())[0] == 1008


async def test_a_ticket_expires(live: Live, redis: Redis) -> None:
    async with live.http() as client:
        ticket = (await client.post("/api/tickets")).json()["ticket"]
    [key] = [key async for key in redis.scan_iter("ns:ticket:*")]
    assert 0 < await redis.ttl(key) <= 60
    await redis.pexpire(key, 1)
    async with asyncio.timeout(PATIENCE_S):
        while await redis.exists(key):
            await asyncio.sleep(0)
    async with live.socket(None, f"?ticket={ticket}") as socket:
        assert (await socket.closed())[0] == 1008


async def test_a_socket_lasts_no_longer_than_its_credentials(live: Live) -> None:
    soon = Principal("ada", frozenset(), is_admin=False, expires_at=datetime.now(UTC) + timedelta(seconds=0.3))
    ticket = await live.engine.tickets.issue(claims_of(soon))
    async with live.socket(None, f"?ticket={ticket.value}") as socket:
        assert (await socket.frame())["type"] == "connected"
        assert await socket.closed() == (1008, "the credentials have expired")


async def test_a_foreign_page_does_not_get_in(live: Live) -> None:
    with pytest.raises(InvalidStatus):
        async with live.socket(origin="https://elsewhere.example"):
            pass


# Frames.


async def test_pings_and_mistakes_are_answered_with_their_correlation_id(live: Live) -> None:
    async with live.socket() as socket:
        await socket.frame()
        assert await socket.asked("ping", correlation_id="c-1") == {"type": "pong", "correlation_id": "c-1"}
        assert await socket.asked("ping") == {"type": "pong"}
        unknown = await socket.asked("pong", correlation_id="c-2")
        assert (unknown["type"], unknown["correlation_id"]) == ("error", "c-2")
        assert "expected one of ping, subscribe, unsubscribe" in unknown["detail"]
        missing = await socket.asked("subscribe", correlation_id="c-3")
        assert missing == {
            "type": "error", "detail": "subscribe.channel: expected a string", "correlation_id": "c-3"
        }  # fmt: skip
        for text in ("no json", "[1]", "{}", b"\x00\x01"):
            await socket.connection.send(text)
            assert (await socket.frame())["type"] == "error"
        assert await socket.asked("ping") == {"type": "pong"}


async def test_a_domain_adds_commands_that_carry_the_correlation_id(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def message(call: CommandCall) -> dict[str, Any] | None:
        if call.frame.fields.get("session") != "mine":
            raise NotFound("no such session")
        return {"type": "test.thinking", "user": call.caller.user_id, "log": current_correlation_id()}

    monkeypatch.setitem(COMMANDS._commands, "test.message", message)
    async with live.socket() as socket:
        await socket.frame()
        answer = await socket.asked("test.message", session="mine", correlation_id="c-1")
        assert answer == {"type": "test.thinking", "user": "ada", "log": "c-1", "correlation_id": "c-1"}
        refused = await socket.asked("test.message", session="theirs", correlation_id="c-2")
        assert refused == {"type": "error", "detail": "no such session", "correlation_id": "c-2"}


async def test_a_bug_in_a_command_closes_with_1011(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(call: CommandCall) -> dict[str, Any] | None:
        raise ZeroDivisionError

    monkeypatch.setitem(COMMANDS._commands, "test.broken", broken)
    async with live.socket() as socket:
        await socket.send("test.broken")
        code, reason = await socket.closed()
    assert (code, "Zero" in reason) == (1011, False)


# Channels.


async def test_a_task_is_followed_from_its_start_also_when_it_is_over(live: Live) -> None:
    task_id = await submitted(live, 1_000)
    await finished(live.engine, task_id)
    async with live.socket() as socket:
        await socket.frame()
        answer = await socket.asked("subscribe", channel=f"task:{task_id}", correlation_id="c")
        assert answer == {
            "type": "subscribed", "channel": f"task:{task_id}", "last_event_id": "0-0", "correlation_id": "c"
        }  # fmt: skip
        frames = await events(socket, 1_003)
        assert [frame["type"] for frame in frames[:2]] == ["task_queued", "task_started"]
        assert numbers(frames[2:-1]) == list(range(1_000))
        assert frames[-1]["type"] == "task_complete"
        answer = await socket.asked("subscribe", channel=f"task:{task_id}", last_event_id=frames[-2]["id"])
        assert answer["last_event_id"] == frames[-2]["id"]
        assert await socket.frame() == frames[-1]


async def test_a_client_follows_only_what_is_its_own(live: Live) -> None:
    task_id = await submitted(live, project_id="apollo")
    async with live.socket("bob") as bob, live.socket("root") as root:
        await bob.frame()
        await root.frame()
        for channel in (f"task:{task_id}", "user:ada", "nothing:x", "task:", "bad", "task:unknown", "x\ny:z"):
            answer = await bob.asked("subscribe", channel=channel, correlation_id="c")
            assert (answer["type"], answer["channel"], answer["correlation_id"]) == ("subscription_error", channel, "c")
        theirs = await bob.asked("subscribe", channel=f"task:{task_id}")
        unknown = await bob.asked("subscribe", channel="task:unknown")
        assert theirs["detail"].replace(task_id, "unknown") == unknown["detail"]
        assert (await root.asked("subscribe", channel=f"task:{task_id}"))["type"] == "subscribed"
        assert (await bob.asked("subscribe", channel="project:apollo", last_event_id="0"))["type"] == "subscribed"
        await bob.send("ping")
        assert await bob.frame() == {"type": "pong"}  # and nothing of ada's project before it


async def test_a_domain_adds_kinds_of_channels(live: Live, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    async def own_session(caller: Principal, engine: Engine, name: str) -> None:
        if name != f"of-{caller.user_id}":
            raise NotFound(f"no session {name}")

    monkeypatch.setattr(CHANNELS, "_kinds", dict(CHANNELS._kinds))
    CHANNELS.add("architect", own_session)
    async with live.socket() as socket:
        await socket.frame()
        assert (await socket.asked("subscribe", channel="architect:of-bob"))["detail"] == "no session of-bob"
        assert (await socket.asked("subscribe", channel="architect:of-ada"))["type"] == "subscribed"
        await append(redis, "architect:of-ada", [1])
        [event] = await events(socket, 1)
    assert (event["channel"], event["payload"]) == ("architect:of-ada", {"n": 1})


async def test_leaving_and_following_again_at_once_neither_loses_nor_doubles(live: Live, redis: Redis) -> None:
    async with live.socket() as socket:
        await socket.frame()
        await socket.asked("subscribe", channel="project:p", last_event_id="0")
        stream = f"project:{keys.pair('ada', 'p')}"
        seen: list[dict[str, Any]] = []
        for turn in range(10):
            await append(redis, stream, [turn])
            last = seen[-1]["id"] if seen else "0"
            await socket.send("unsubscribe", channel="project:p")
            await socket.send("subscribe", channel="project:p", last_event_id=last)
            while (await socket.frame())["type"] != "subscribed":
                pass  # what came before the answer comes again behind it
            seen += await events(socket, 1)
        await socket.send("unsubscribe", channel="project:p")
        assert await socket.asked("ping") == {"type": "pong"}
        await append(redis, stream, [99])
        await append(redis, "user:ada", [100])
        assert numbers(await events(socket, 1)) == [100]
    assert numbers(seen) == list(range(10))
    assert len({event["id"] for event in seen}) == 10


async def test_a_client_resumes_behind_the_last_id_it_saw(live: Live, redis: Redis) -> None:
    async with live.socket() as socket:
        await socket.frame()
        await append(redis, "user:ada", range(5))
        seen = await events(socket, 3)
    last = seen[-1]["id"]
    async with live.socket(query=f"?last_event_id={last}") as socket:
        assert await socket.frame() == {"type": "connected", "user_id": "ada", "last_event_id": last}
        assert numbers(await events(socket, 2)) == [3, 4]
        answer = await socket.asked("subscribe", channel="user:ada", last_event_id=last)
        assert answer == {"type": "subscribed", "channel": "user:ada", "last_event_id": last}
        assert numbers(await events(socket, 2)) == [3, 4]


async def test_a_client_is_told_of_a_gap(live: Live, redis: Redis) -> None:
    await append(redis, "user:ada", range(5))
    seen = (await live.engine.events.read("user:ada", "user:ada"))[0].id
    await redis.lpop(keys.events("user:ada"), 3)
    async with live.socket() as socket:
        await socket.frame()
        answer = await socket.asked("subscribe", channel="user:ada", last_event_id=seen)
        assert answer == {"type": "subscribed", "channel": "user:ada", "last_event_id": seen, "gap": True}
        assert numbers(await events(socket, 2)) == [3, 4]


async def test_a_malformed_last_id_changes_nothing(live: Live, redis: Redis) -> None:
    async with live.socket() as socket:
        await socket.frame()
        answer = await socket.asked("subscribe", channel="user:ada", last_event_id="yesterday")
        assert answer["type"] == "subscription_error"
        await append(redis, "user:ada", [1])
        assert numbers(await events(socket, 1)) == [1]
    async with live.socket(query="?last_event_id=yesterday") as socket:
        assert (await socket.closed())[0] == 1008


async def test_nothing_is_lost_or_doubled_while_redis_is_killed_and_restarted(own_server: EmbeddedServer) -> None:
    async with live_on(own_server.url, [steps]) as live, live.socket() as socket:
        await socket.frame()
        seen: list[dict[str, Any]] = []
        for turn in range(3):
            await append(live.engine.redis, "user:ada", range(turn * 20, turn * 20 + 10))
            await asyncio.to_thread(own_server.restart)
            await append(live.engine.redis, "user:ada", range(turn * 20 + 10, turn * 20 + 20))
            seen += await events(socket, 20)
        assert numbers(seen) == list(range(60))


async def test_a_client_that_reconnects_in_the_middle_loses_and_doubles_nothing(live: Live, redis: Redis) -> None:
    async def feed() -> None:
        for start in range(0, 600, 5):
            await append(redis, "user:ada", range(start, start + 5))

    feeding = asyncio.create_task(feed())
    seen: list[dict[str, Any]] = []
    while len(seen) < 600:
        last = seen[-1]["id"] if seen else "0"
        async with live.socket(query=f"?last_event_id={last}") as socket:
            await socket.frame()
            seen += await events(socket, min(60, 600 - len(seen)))
    await feeding
    assert numbers(seen) == list(range(600))


# Limits.


async def test_a_frame_over_64_kib_is_an_error_and_the_end(live: Live) -> None:
    async with live.socket() as socket:
        await socket.frame()
        await socket.send("ping", padding="x" * 60_000)
        assert await socket.frame() == {"type": "pong"}
        answer = await socket.asked("ping", padding="x" * 65_536)
        assert answer == {"type": "error", "detail": "frame too large: expected at most 65536 bytes"}
        assert (await socket.closed())[0] == 1008


async def test_more_than_100_frames_a_minute_are_an_error_and_the_end(live: Live) -> None:
    async with live.socket() as socket:
        await socket.frame()
        for _ in range(101):
            await socket.send("ping")
        frames = await socket.frames(101)
        assert frames[:100] == [{"type": "pong"}] * 100
        assert frames[100] == {"type": "error", "detail": "too many frames: expected at most 100 a minute"}
        assert (await socket.closed())[0] == 1008


async def test_more_channels_than_the_limit_are_an_error_and_the_end(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.ws_frames.MAX_CHANNELS", 3)
    async with live.socket() as socket:
        await socket.frame()
        for name in ("project:1", "project:2", "project:3", "project:3", "user:ada"):
            assert (await socket.asked("subscribe", channel=name))["type"] == "subscribed"
        await socket.send("unsubscribe", channel="project:1")
        assert (await socket.asked("subscribe", channel="project:4"))["type"] == "subscribed"
        answer = await socket.asked("subscribe", channel="project:5")
        assert answer == {"type": "error", "detail": "too many channels: expected at most 3"}
        assert (await socket.closed())[0] == 1008


# Clients that do not read, and the end.


@pytest.mark.parametrize("reads_on", [True, False])
async def test_a_client_that_falls_behind_is_sent_away_and_others_go_on(
    live: Live, redis: Redis, monkeypatch: pytest.MonkeyPatch, reads_on: bool
) -> None:
    monkeypatch.setattr("app.api.ws_session.CLOSE_GRACE_S", PATIENCE_S if reads_on else 0.05)
    connections = live.server.server_state.connections
    # The client's library stops reading from the connection when two messages are unread.
    async with live.socket(max_queue=2, ping_interval=None, compression=None) as deaf, live.socket() as other:
        await other.frame()
        sent = 0
        async with asyncio.timeout(PATIENCE_S):
            while not _sent_away(live) if reads_on else len(connections) == 2:
                await append(redis, "user:ada", range(sent, sent + 50), padding=2_000)
                sent += 50
                assert numbers(await events(other, 50)) == list(range(sent - 50, sent))
        if reads_on:
            code, reason = await deaf.closed()
            assert (code, reason) == (
                1013, "more than 1000 events or 8388608 bytes behind; resume with last_event_id"
            )  # fmt: skip
        else:
            with pytest.raises(ConnectionClosed):
                while True:
                    await deaf.frame()
        assert sent >= 1_000
        await append(redis, "user:ada", [-1])
        assert numbers(await events(other, 1)) == [-1]


def _sent_away(live: Live) -> bool:
    """Whether only one of two clients is still served."""
    [stream] = live.engine.hub._streams.values()
    return len(stream.listeners) == 1


async def test_a_client_that_takes_nothing_is_cut_off_though_it_is_not_far_behind(
    live: Live, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.ws_session.SEND_TIMEOUT_S", 0.05)
    async with live.socket(max_queue=2, ping_interval=None, compression=None) as deaf:
        await deaf.frame()
        async with asyncio.timeout(PATIENCE_S):
            while live.engine.hub._streams:
                await append(redis, "user:ada", [1], padding=60_000)
                await asyncio.sleep(0)
            while live.server.server_state.connections:
                await asyncio.sleep(0)


async def test_sockets_are_closed_with_1012_when_the_service_stops(redis_url: str) -> None:
    async with live_on(redis_url, [steps]) as live, live.socket() as socket:
        await socket.frame()
        live.app.state.shutdown.begin()
        code, reason = await socket.closed()
        assert (code, reason) == (1012, "the service restarts; resume with last_event_id")
        async with live.socket() as late:
            assert (await late.closed())[0] == 1013


async def test_a_client_that_leaves_leaves_nothing_behind(live: Live, redis: Redis) -> None:
    for _ in range(3):
        async with live.socket() as socket:
            await socket.frame()
            await socket.asked("subscribe", channel="project:p")
    async with asyncio.timeout(PATIENCE_S):
        while live.engine.hub._streams:
            await asyncio.sleep(0)
        while await redis.pubsub_channels("ns:events:*"):
            await asyncio.sleep(0)
