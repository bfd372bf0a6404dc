"""The API as a process: `uvicorn app.main:app`."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from tests.support import PATIENCE_S, engine_on

ROOT = Path(__file__).parents[1]


@asynccontextmanager
async def uvicorn_process(tmp_path: Path, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """uvicorn with nothing but these settings, on a free port, its log in a pipe."""
    own = {f"NIGHTSHIFT_{name.upper()}": value for name, value in settings.items()}
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **own}
    command = (sys.executable, "-m", "uvicorn", "app.main:app", "--port", "0")
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, env=environment, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def base_url(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE_S):
        while line := (await process.stderr.readline()).decode():
            if found := re.search(r"running on (http://[\d.:]+)", line):
                return found[1]
    raise AssertionError("uvicorn ended before it listened")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lease_s": "0"}, "NIGHTSHIFT_LEASE_S"),
        ({"auth": "off", "host": "0.0.0.0"}, "NIGHTSHIFT_AUTH"),
        ({"auth": "jwt"}, "NIGHTSHIFT_JWT_SECRET"),
    ],
)
async def test_a_wrong_setting_ends_the_process_with_one_line(
    tmp_path: Path, settings: dict[str, str], named: str
) -> None:
    async with uvicorn_process(tmp_path, **settings) as process:
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate()
    assert process.returncode == 2
    assert out == b""
    assert err.count(b"\n") == 1
    assert named in err.decode()


@pytest.mark.parametrize(("stop", "returncode"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)])
async def test_a_stopping_process_answers_those_who_wait(
    tmp_path: Path, redis_url: str, stop: signal.Signals, returncode: int
) -> None:
    async with uvicorn_process(tmp_path, redis_url=redis_url) as process:
        async with httpx.AsyncClient(base_url=await base_url(process), timeout=PATIENCE_S) as client:
            posted = await client.post("/api/tasks", json={"task": "system.echo", "params": {"value": 1}})
            async with engine_on(redis_url) as engine:
                path = posted.headers["location"]
                waiting = asyncio.create_task(client.get(f"{path}?wait=30"))
                await subscribed(engine.redis, path.rpartition("/")[2])
            process.send_signal(stop)
            answer = await waiting
        assert (answer.status_code, answer.json()["status"]) == (200, "PENDING")
        async with asyncio.timeout(PATIENCE_S):
            _, err = await process.communicate()
    assert process.returncode == returncode
    assert "Traceback" not in err.decode()


async def subscribed(redis: Redis, task_id: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await redis.pubsub_channels(f"*{task_id}"):
            pass
