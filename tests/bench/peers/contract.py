"""How the benchmark talks to a contestant: lines of JSON over standard input and output.

    python -m tests.bench.peers.saq client URL
    python -m tests.bench.peers.saq worker URL CONCURRENCY EXPECT

A client answers one line for each command: `fill`, `enqueue`, `pickup`, `await_empty`. A worker says `done` when
`EXPECT` no-op tasks have run, and answers `report`. Both end when their standard input does, so none outlives the
benchmark, however that ends.

This module runs in the environment of every contestant: only the standard library and uvloop.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
import time
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import Any

import uvloop

POLL_S = 0.002
BATCH = 1_000


def say(**message: Any) -> None:
    """Write one line to the benchmark; one system call, so that threads do not mix."""
    os.write(TALLY.out, json.dumps(message).encode() + b"\n")


class Tally:
    """What the tasks of this worker process have seen. Times are of the machine's monotonic clock, in nanoseconds."""

    def __init__(self) -> None:
        self.out = 1
        self.expect = 0
        self.ran = 0
        self.first_ns = 0
        self.first_cpu_s = 0.0
        self.last_ns = 0
        self.latencies_ns: list[int] = []

    def noop(self) -> None:
        """Called by the no-op task."""
        self.ran += 1
        if self.ran == 1:
            self.first_ns = time.monotonic_ns()
            self.first_cpu_s = time.process_time()
        if self.ran == self.expect:
            self.last_ns = time.monotonic_ns()
            say(event="done", **self.report())

    def stamp(self, sent_ns: int) -> None:
        """Called by the task that measures how long it took from the call of enqueue to its own first line."""
        self.latencies_ns.append(time.monotonic_ns() - sent_ns)

    def report(self) -> dict[str, Any]:
        """Everything, with the CPU seconds of the process until now, and until its first task."""
        return {
            "ran": self.ran,
            "first_ns": self.first_ns,
            "last_ns": self.last_ns,
            "first_cpu_s": self.first_cpu_s,
            "cpu_s": time.process_time(),
            "latencies_ns": self.latencies_ns,
        }


TALLY = Tally()


class Peer(ABC):
    """One library. A subclass says how it enqueues and how its worker runs; its tasks call `TALLY`."""

    has_batches = False

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    def session(self) -> AbstractAsyncContextManager[None]:
        """The connection of a client, for the length of a block."""

    @abstractmethod
    async def put(self) -> None:
        """Enqueue one no-op task."""

    @abstractmethod
    async def put_stamp(self, sent_ns: int) -> None:
        """Enqueue one task that notes when it begins."""

    async def put_batch(self, count: int) -> None:
        """Enqueue many no-op tasks by the library's own way to do so."""
        raise NotImplementedError

    @abstractmethod
    async def unfinished(self, accepted: int) -> int:
        """How many of the tasks accepted so far have not had their end written."""

    @abstractmethod
    async def work(self, concurrency: int) -> None:
        """Run the library's worker until the process is ended."""


class Client:
    """The commands of the client's process."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._accepted = 0

    async def run(self) -> None:
        """Answer commands until standard input ends."""
        loop = asyncio.get_running_loop()
        async with self._peer.session():
            await self._peer.unfinished(0)
            say(event="ready")
            while line := await loop.run_in_executor(None, sys.stdin.readline):
                command = json.loads(line)
                say(**await getattr(self, command.pop("do"))(**command))

    async def fill(self, count: int) -> dict[str, Any]:
        """Enqueue so many no-op tasks, as fast as may be."""
        left = count
        if self._peer.has_batches:
            for start in range(0, count, BATCH):
                await self._peer.put_batch(min(BATCH, count - start))
        else:

            async def several() -> None:
                nonlocal left
                while left > 0:
                    left -= 1
                    await self._peer.put()

            await asyncio.gather(*(several() for _ in range(32)))
        self._accepted += count
        return {"filled": count}

    async def enqueue(self, mode: str, seconds: float) -> dict[str, Any]:
        """Enqueue for so many seconds; tasks for each of them."""
        if mode == "batches" and not self._peer.has_batches:
            return {"per_s": None}
        began = time.perf_counter()
        end = began + seconds
        done = 0

        async def keep_on() -> None:
            nonlocal done
            while time.perf_counter() < end:
                if mode == "batches":
                    await self._peer.put_batch(BATCH)
                    done += BATCH
                else:
                    await self._peer.put()
                    done += 1

        await asyncio.gather(*(keep_on() for _ in range(32 if mode == "concurrent" else 1)))
        self._accepted += done
        return {"per_s": done / (time.perf_counter() - began)}

    async def pickup(self, samples: int, gap_s: float, seed: int) -> dict[str, Any]:
        """Enqueue tasks about `gap_s` apart, each with the time of its enqueue."""
        # Not in step with anybody's poll.
        chance = random.Random(seed)
        for _ in range(samples):
            await asyncio.sleep(gap_s * chance.uniform(0.5, 1.5))
            await self._peer.put_stamp(time.monotonic_ns())
        self._accepted += samples
        return {"sent": samples}

    async def await_empty(self) -> dict[str, Any]:
        """Wait until the end of every accepted task is written; when that was."""
        while await self._peer.unfinished(self._accepted) > 0:
            await asyncio.sleep(POLL_S)
        return {"at_ns": time.monotonic_ns()}


def _obey() -> None:
    for line in sys.stdin:
        if line.strip() == "report":
            say(event="report", **TALLY.report())
    os._exit(0)


def main(kind: type[Peer]) -> None:
    """Run this process in the role that its arguments name."""
    # Libraries may print; the protocol keeps the real standard output for itself.
    TALLY.out = os.dup(1)
    os.dup2(2, 1)
    role, url, *rest = sys.argv[1:]
    peer = kind(url)
    if role == "client":
        uvloop.run(Client(peer).run())
        return
    concurrency, TALLY.expect = int(rest[0]), int(rest[1])
    threading.Thread(target=_obey, daemon=True).start()
    uvloop.run(peer.work(concurrency))
