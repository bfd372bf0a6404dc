"""`POST /api/tasks` against an empty route of the same application, by keep-alive connections with the same body.

The two are measured in turns, a slice of a second each, so that what disturbs the machine meets both.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from pydantic_core import to_json

from app.store.embedded_config import free_port
from tests.bench.plan import Plan
from tests.bench.processes import BenchError, Child, module
from tests.bench.rows import Aim, Row
from tests.bench.server import fresh_server
from tests.bench.watch import Watch

BODY = to_json({"task": "system.echo", "params": {"value": "hello"}, "project_id": "apollo", "tags": ["bench"]})
ROUTES = {"post": "/api/tasks", "empty": "/bench/empty"}
START_S = 30.0
HALF = Aim("at least half the rate of an empty route", "ratio", "least", 0.5)


async def post_tasks(plan: Plan, watch: Watch) -> list[Row]:
    """Requests a second of one API process, and the ratio to the empty route."""
    watch.say("POST /api/tasks")
    rates: dict[str, list[float]] = {name: [] for name in ROUTES}
    async with fresh_server(file=False) as server, api_process({"NIGHTSHIFT_REDIS_URL": server.url}) as (port, process):
        for number in range(plan.api_slices + 1):
            for name, path in ROUTES.items():
                rate = await _load(port, path, plan.api_connections, plan.api_slice_s)
                if number:  # The first slice warms up.
                    rates[name].append(rate)
        if process.cpu_s() <= 0:
            raise BenchError("the API process did nothing")
    post, empty = (statistics.median(rates[name]) for name in ROUTES)
    ratio = post / empty
    note = f"the empty route: {empty:,.0f}/s; {plan.api_connections} connections, one process"
    return [Row("post_tasks", "POST /api/tasks", "requests/s", post, ratio=ratio, aim=HALF, note=note, runs=rates)]


@asynccontextmanager
async def api_process(env: Mapping[str, str]) -> AsyncIterator[tuple[int, Child]]:
    """An API process; its port."""
    port = free_port()
    arguments = ("uvicorn", "--factory", "tests.bench.api_app:make", "--port", str(port), "--no-access-log")
    async with module("tests.bench.leash", *arguments, env=env) as process:
        try:
            async with asyncio.timeout(START_S):
                while not await _answers(port):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise BenchError(f"the API did not come up. {process.tail()}") from None
        yield port, process


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def _load(port: int, path: str, connections: int, seconds: float) -> float:
    """Requests a second over so many connections, each one request at a time."""
    began = time.perf_counter()
    counts = await asyncio.gather(*(_hammer(port, path, began + seconds) for _ in range(connections)))
    return sum(counts) / (time.perf_counter() - began)


async def _hammer(port: int, path: str, until: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    count = 0
    try:
        while time.perf_counter() < until:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 202 "):
                raise BenchError(f"POST {path} was answered with {answer.splitlines()[0].decode()!r}")
            await reader.readexactly(_length(answer))
            count += 1
    finally:
        writer.close()
    return count


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0
