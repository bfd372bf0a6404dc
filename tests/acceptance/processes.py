"""Real processes for acceptance tests: workers and API servers, started, waited for, killed and always ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from tests.support import PATIENCE_S

ROOT = Path(__file__).parents[2]


class Process:
    """A child process. Its output is kept in a file, which a failing test prints."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.running:
            self._process.send_signal(number)

    async def exit_code(self) -> int:
        """Wait for its end."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL, and wait."""
        self.send(signal.SIGKILL)
        await self.exit_code()

    async def stop(self) -> int:
        """SIGTERM, and wait; its exit code."""
        self.send(signal.SIGTERM)
        return await self.exit_code()

    def output(self) -> str:
        """Everything that it has printed."""
        return self.log.read_text("utf8", "replace")


def environment(url: str, **settings: object) -> dict[str, str]:
    """The environment of a child: nothing of Nightshift's but what is given here."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTSHIFT_")}
    given = {f"NIGHTSHIFT_{name.upper()}": str(value) for name, value in settings.items()}
    return inherited | {"NIGHTSHIFT_REDIS_URL": url, "PYTHONPATH": str(ROOT)} | given


@asynccontextmanager
async def process(name: str, directory: Path, env: dict[str, str], *arguments: str) -> AsyncIterator[Process]:
    """`python ARGUMENTS` for the length of the block; killed at its end if it still runs."""
    log = directory / f"{name}.log"
    with log.open("wb") as output:
        child = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdout=output, stderr=output, cwd=directory, env=env
        )
    running = Process(name, child, log)
    try:
        yield running
    except BaseException:
        sys.stderr.write(f"--- {name} ---\n{running.output()}\n")
        raise
    finally:
        await running.kill()


def worker(name: str, directory: Path, url: str, *flags: str, module: str = "", **settings: object):
    """A worker process as people start it: `arq MODULE.WorkerSettings FLAGS`."""
    target = f"{module or 'tests.acceptance.effects'}.WorkerSettings"
    return process(name, directory, environment(url, **settings), "-m", "arq", target, *flags)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@asynccontextmanager
async def api(name: str, directory: Path, url: str, port: int, **settings: object) -> AsyncIterator[Process]:
    """An API process as people start it: `uvicorn app.main:app`. It answers when the block begins."""
    arguments = ("-m", "uvicorn", "app.main:app", "--host", "127.0.0.1", "--port", str(port))
    async with process(name, directory, environment(url, **settings), *arguments) as running:
        await answering(f"http://127.0.0.1:{port}/healthz", running)
        yield running


async def answering(url: str, running: Process) -> None:
    """Wait until a process answers at a URL."""
    async with asyncio.timeout(PATIENCE_S), httpx.AsyncClient() as client:
        while True:
            assert running.running, running.output()
            try:
                await client.get(url)
            except httpx.TransportError:
                await asyncio.sleep(0.02)
            else:
                return
