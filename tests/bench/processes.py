"""The processes of the benchmark: lines of JSON in and out, CPU time, and an end by pid in every case.

Each process has a session of its own, so that Ctrl-C reaches the benchmark alone, which then ends them. They also end
when their standard input does (see `peers.contract` and `leash`), so none outlives a benchmark that is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
REPLY_S = 120.0
"""The longest that one command to a process may take."""
LOG_TAIL_BYTES = 2_000
CPUCLOCK_SCHED = 2
LINE_BYTES = 16 * 1024 * 1024


class BenchError(Exception):
    """A measurement could not be made; the text says why."""


class Child:
    """A process of the benchmark."""

    def __init__(self, process: Process, name: str, log: IO[bytes]) -> None:
        self.pid = process.pid
        self._process = process
        self._name = name
        self._log = log

    async def read(self, event: str | None = None, *, timeout_s: float = REPLY_S) -> dict[str, Any]:
        """The next line, or the next one with this event. Raises `BenchError` when it does not come."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                while line := await self._process.stdout.readline():
                    message: dict[str, Any] = json.loads(line)
                    if event is None or message.get("event") == event:
                        return message
        except TimeoutError:
            raise BenchError(f"{self._name} said nothing for {timeout_s:.0f} s. {self.tail()}") from None
        raise BenchError(f"{self._name} ended. {self.tail()}")

    async def read_text(self, wanted: re.Pattern[str], *, timeout_s: float = REPLY_S) -> str:
        """The first piece of its standard output that matches. Raises `BenchError` when it does not come."""
        assert self._process.stdout is not None
        async with asyncio.timeout(timeout_s):
            while line := await self._process.stdout.readline():
                if found := wanted.search(line.decode()):
                    return found.group()
        raise BenchError(f"{self._name} ended. {self.tail()}")

    async def ask(self, do: str, *, timeout_s: float = REPLY_S, **arguments: Any) -> dict[str, Any]:
        """Send a command to a client and wait for its answer."""
        self._write(json.dumps({"do": do, **arguments}))
        return await self.read(timeout_s=timeout_s)

    async def report(self) -> dict[str, Any]:
        """What a worker has seen so far."""
        self._write("report")
        return await self.read("report")

    def kill(self) -> None:
        """End the process with SIGKILL."""
        if self._process.returncode is None:
            self._process.kill()

    async def end(self) -> None:
        """End the process, whatever it does, and wait until it is gone."""
        self.kill()
        await self._process.wait()

    def cpu_s(self) -> float:
        """CPU time of all threads since the start."""
        return cpu_s(self.pid)

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def tail(self) -> str:
        """The end of what it wrote to standard error."""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - LOG_TAIL_BYTES))
        return f"Its log ends with:\n{self._log.read().decode(errors='replace')}"


@asynccontextmanager
async def child(*command: str | Path, name: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Child]:
    """A process for the length of the block."""
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *map(str, command), stdin=PIPE, stdout=PIPE, stderr=log, start_new_session=True,
            cwd=ROOT, env=os.environ | (env or {}), limit=LINE_BYTES,
        )  # fmt: skip
        running = Child(process, name, log)
        try:
            yield running
        finally:
            await running.end()


@asynccontextmanager
async def module(name: str, *arguments: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Child]:
    """`python -m name`, of this environment and by itself ended with the benchmark."""
    async with child(sys.executable, "-m", name, *arguments, name=name, env=env) as running:
        yield running


async def run_quietly(*command: str | Path, timeout_s: float) -> None:
    """Run a command to its end. Raises `BenchError` with the end of what it printed when it fails."""
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *map(str, command), stdin=DEVNULL, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
        )
        running = Child(process, Path(command[0]).name, log)
        try:
            async with asyncio.timeout(timeout_s):
                if await process.wait() != 0:
                    raise BenchError(f"{running._name} failed. {running.tail()}")
        except TimeoutError:
            raise BenchError(f"{running._name} took more than {timeout_s:.0f} s. {running.tail()}") from None
        finally:
            await running.end()


def cpu_s(pid: int) -> float:
    """CPU seconds of a process: all threads, user and system. Raises `BenchError` where they cannot be read."""
    if sys.platform != "linux":
        raise BenchError("the CPU time of another process is read from a clock that only Linux has")
    # What clock_getcpuclockid(3) answers: exact to the nanosecond, where /proc/<pid>/stat may count whole ticks.
    return time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)
