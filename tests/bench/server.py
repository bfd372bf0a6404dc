"""A fresh Redis server for each measurement: the embedded Valkey over TCP, with the file on or off, and what it says of
itself."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.errors import NightshiftError
from app.store.connection import connect
from app.store.embedded import EmbeddedServer
from tests.bench.processes import ROOT, BenchError

DATA = ROOT / ".bench" / "data"


FAILURES = (BenchError, NightshiftError, RedisError, OSError)
"""What may end a measurement without ending the others."""


@dataclass(frozen=True)
class Server:
    """A running server: its address, and a client to look at it."""

    url: str
    redis: Redis

    async def memory_bytes(self) -> int:
        """`used_memory` without the buffers of connections."""
        info = await self.redis.info("memory")
        return int(info["used_memory"]) - int(info["mem_clients_normal"])

    async def cpu_s(self) -> float:
        """CPU seconds of the server's process, all threads."""
        info = await self.redis.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


@asynccontextmanager
async def fresh_server(*, file: bool) -> AsyncIterator[Server]:
    """An empty server; `file`: whether it writes the append-only file, once a second to the disk."""
    DATA.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DATA) as folder:
        embedded = EmbeddedServer(Path(folder), tcp=True)
        try:
            await asyncio.to_thread(embedded.start)
            redis = connect(embedded.url)
            try:
                if not file:
                    await redis.config_set("appendonly", "no")
                yield Server(embedded.url, redis)
            finally:
                await redis.aclose()
        finally:
            await asyncio.to_thread(_discard, embedded)


def _discard(embedded: EmbeddedServer) -> None:
    # Nothing in it is wanted any more, so it need not write its file out before it ends.
    embedded.kill()
    embedded.stop()
