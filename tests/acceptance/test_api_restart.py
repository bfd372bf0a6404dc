"""An API process that is killed or stopped while clients stream: they resume at the next one without gap or double."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import websockets

from app.catalogue import LANES, catalogue
from app.engine.submissions import Submission
from tests.acceptance.processes import Process, api, free_port, worker
from tests.support import PATIENCE_S, engine_on

pytestmark = pytest.mark.acceptance

STEPS = 60
FINAL = "task_complete"
EXPECTED = ["task_queued", "task_started", *["task_progress"] * STEPS, FINAL]

Seen = list[tuple[str, str]]
"""Ids and types of events, in the order of their coming."""
Read = Callable[[int, str, Seen], Awaitable[None]]


async def read_websocket(port: int, task_id: str, seen: Seen) -> None:
    """Follow a task over a WebSocket until its last event, or until the connection breaks."""
    async with websockets.connect(f"ws://127.0.0.1:{port}/ws") as socket:
        frame = {"type": "subscribe", "channel": f"task:{task_id}", "last_event_id": seen[-1][0] if seen else "0-0"}
        await socket.send(json.dumps(frame))
        async for message in socket:
            event = json.loads(message)
            if event.get("channel") == f"task:{task_id}" and "id" in event:
                seen.append((event["id"], event["type"]))
                if event["type"] == FINAL:
                    return


async def read_sse(port: int, task_id: str, seen: Seen) -> None:
    """Follow a task over server-sent events until its last one, or until the connection breaks."""
    headers = {"Last-Event-ID": seen[-1][0]} if seen else {}
    url = f"http://127.0.0.1:{port}/api/tasks/{task_id}/events"
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client, client.stream("GET", url, headers=headers) as response:
        assert response.status_code == 200
        async for block in _blocks(response.aiter_lines()):
            if "id" in block:
                seen.append((block["id"], block["event"]))


async def _blocks(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, str]]:
    block: dict[str, str] = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(": ")
            block[name] = value
        else:
            yield block
            block = {}


async def follow(read: Read, port: int, task_id: str, seen: Seen) -> None:
    """Read, and resume from the last event whenever the connection breaks, until the last event."""
    async with asyncio.timeout(PATIENCE_S):
        while not seen or seen[-1][1] != FINAL:
            try:
                await read(port, task_id, seen)
            except (OSError, httpx.TransportError, websockets.WebSocketException):
                await asyncio.sleep(0.02)


async def until(seen: Seen, count: int) -> None:
    """Wait until a reader has seen so many events."""
    async with asyncio.timeout(PATIENCE_S):
        while len(seen) < count:
            await asyncio.sleep(0.01)


async def kill(process: Process) -> None:
    await process.kill()


async def stop(process: Process) -> None:
    # uvicorn ends by the signal that stopped it, after an orderly shutdown.
    assert await process.stop() in (0, -signal.SIGTERM)
    assert "Application shutdown complete" in process.output()


@pytest.mark.parametrize("end", [kill, stop])
async def test_readers_resume_at_the_next_process(
    redis_url: str, tmp_path: Path, end: Callable[[Process], Awaitable[None]]
) -> None:
    port = free_port()
    readers: dict[Read, Seen] = {read_websocket: [], read_sse: []}
    async with (
        engine_on(redis_url, catalogue(), lanes=LANES) as engine,
        worker("worker", tmp_path, redis_url, module="worker"),
    ):
        accepted = await engine.tasks.enqueue(
            Submission("system.sleep", {"seconds": 3, "steps": STEPS}), user_id="local"
        )
        async with asyncio.TaskGroup() as group:
            async with api("first", tmp_path, redis_url, port) as first:
                for read, seen in readers.items():
                    group.create_task(follow(read, port, accepted.task_id, seen))
                for seen in readers.values():
                    await until(seen, 10)
                await end(first)
            async with api("second", tmp_path, redis_url, port):
                for seen in readers.values():
                    await until(seen, len(EXPECTED))
    for seen in readers.values():
        assert [kind for _, kind in seen] == EXPECTED
        assert [event_id.partition("-")[2] for event_id, _ in seen] == [str(n + 1) for n in range(len(EXPECTED))]
