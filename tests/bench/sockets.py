"""From `ctx.emit` in a worker to the frame in a WebSocket client.

One worker, one API process, a socket for each of many users, who each follow a task of their own.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import jwt
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from app.engine.submissions import Submission
from tests.bench.api import api_process
from tests.bench.plan import Plan
from tests.bench.processes import BenchError, module
from tests.bench.rows import Aim, Row, percentile
from tests.bench.server import fresh_server
from tests.bench.ticker import ticking_engine
from tests.bench.watch import Watch

SETTLE_S = 2.0
"""From the start of the tasks to their first events: starting a thousand tasks at once is not what is measured."""
PATIENCE_S = 30.0
CONNECT_AT_ONCE = 50


async def emit_to_socket(plan: Plan, watch: Watch) -> list[Row]:
    """p50 and p99 over all events, and whether all of them came."""
    watch.say(f"{plan.sockets:,} sockets")
    secret = secrets.token_hex(32)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(fresh_server(file=False))
        env = {"NIGHTSHIFT_REDIS_URL": server.url, "NIGHTSHIFT_AUTH": "jwt", "NIGHTSHIFT_JWT_SECRET": secret}
        port, _ = await stack.enter_async_context(api_process(env))
        engine = await stack.enter_async_context(ticking_engine(server.url, plan.sockets))
        ids = []
        for user, submission in enumerate(_submissions(plan)):
            ids.append((await engine.tasks.enqueue(submission, user_id=f"user-{user}")).task_id)
        sockets = await _connect_all(stack, port, ids, secret)
        await stack.enter_async_context(module("tests.bench.ticker", server.url, str(plan.sockets)))
        watch.say(f"{plan.events_per_s:,} events a second for {plan.events_s:.0f} s")
        return _rows(plan, await _receive_all(plan, sockets))


def _submissions(plan: Plan) -> list[Submission]:
    every_s = plan.sockets / plan.events_per_s
    chance = random.Random(0)
    return [
        Submission(
            "bench.tick",
            {"after_s": SETTLE_S + chance.random() * every_s, "every_s": every_s, "count": _count(plan)},
        )
        for _ in range(plan.sockets)
    ]


def _count(plan: Plan) -> int:
    """Events of one socket."""
    return round(plan.events_s * plan.events_per_s / plan.sockets)


async def _connect_all(stack: AsyncExitStack, port: int, ids: Sequence[str], secret: str) -> list[ClientConnection]:
    gate = asyncio.Semaphore(CONNECT_AT_ONCE)

    async def one(user: int, task_id: str) -> ClientConnection:
        claims = {"sub": f"user-{user}", "exp": int(time.time()) + 3600}
        headers = {"Authorization": f"Bearer {jwt.encode(claims, secret, 'HS256')}"}
        async with gate:
            url = f"ws://127.0.0.1:{port}/ws"
            socket = await connect(url, additional_headers=headers, compression=None, proxy=None)
            stack.push_async_callback(_abort, socket)
            await socket.send(json.dumps({"type": "subscribe", "channel": f"task:{task_id}"}))
            while json.loads(await socket.recv())["type"] != "subscribed":
                pass
        return socket

    try:
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.gather(*(one(user, task_id) for user, task_id in enumerate(ids)))
    except WebSocketException as error:
        raise BenchError(f"a socket could not be opened: {error}") from error


async def _abort(socket: ClientConnection) -> None:
    # A thousand orderly closes take long, and nobody waits for them.
    socket.transport.abort()
    await socket.wait_closed()


async def _receive_all(plan: Plan, sockets: Sequence[ClientConnection]) -> list[float]:
    """The latency in ms of each event that came; those that did not come within the time are missing."""
    latencies_ms: list[float] = []

    async def one(socket: ClientConnection) -> None:
        left = _count(plan)
        while left:
            frame = await socket.recv()
            now_ns = time.monotonic_ns()
            message = json.loads(frame)
            if message["type"] == "tick":
                latencies_ms.append((now_ns - message["payload"]["sent_ns"]) / 1e6)
                left -= 1

    receivers = [asyncio.create_task(one(socket)) for socket in sockets]
    try:
        await asyncio.wait(receivers, timeout=plan.events_s + PATIENCE_S)
    finally:
        for receiver in receivers:
            receiver.cancel()
        await asyncio.gather(*receivers, return_exceptions=True)
    return latencies_ms


def _rows(plan: Plan, latencies_ms: Sequence[float]) -> list[Row]:
    expected = _count(plan) * plan.sockets
    what = f"emit to WebSocket, {plan.sockets:,} sockets, {plan.events_per_s:,} events/s"
    note = f"{len(latencies_ms):,} of {expected:,} events came"
    aims = {0.5: Aim("p50 under 3 ms", "ours", "most", 3.0), 0.99: Aim("p99 under 20 ms", "ours", "most", 20.0)}
    # An event that never came has no latency, and then no percentile is true.
    complete = len(latencies_ms) == expected
    return [
        Row(f"emit_p{share * 100:.0f}", f"{what}, p{share * 100:.0f}", "ms",
            percentile(latencies_ms, share) if complete else None, aim=aim, note=note)
        for share, aim in aims.items()
    ]  # fmt: skip
