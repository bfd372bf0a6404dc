"""What a worker says about itself, and who is alive."""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json
from redis.asyncio import Redis

from app.store import keys

MAX_WORKERS = 1_000


def package_version() -> str:
    """The version of Nightshift that this process runs."""
    try:
        return version("nightshift")
    except PackageNotFoundError:
        return "unknown"


def rss_bytes() -> int:
    """Memory of this process that is in RAM; where the system does not tell, the most it ever was."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


class Pulse:
    """Makes a worker's records; the CPU share is that since the record before."""

    def __init__(self, worker_id: str) -> None:
        self._fixed = {
            "worker_id": worker_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": package_version(),
            "started_at": datetime.now(UTC),
        }
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def record(self, *, lanes: Mapping[str, Any], running: int, capacity: int, loop_lag_s: float) -> bytes:
        """The record as JSON."""
        wall, cpu = time.monotonic(), time.process_time()
        share = (cpu - self._cpu) / (wall - self._wall) if wall > self._wall else 0.0
        self._wall, self._cpu = wall, cpu
        return to_json(
            {
                **self._fixed,
                "heartbeat_at": datetime.now(UTC),
                "lanes": lanes,
                "running": running,
                "capacity": capacity,
                "loop_lag_ms": round(loop_lag_s * 1000, 3),
                "cpu_percent": round(share * 100, 1),
                "rss_bytes": rss_bytes(),
            }
        )


async def alive_workers(redis: Redis) -> list[dict[str, Any]]:
    """The records of the workers that live, at most 1,000, in the order of their ids."""
    ids = await redis.zrange(keys.WORKERS, 0, MAX_WORKERS - 1)
    if not ids:
        return []
    records = await redis.mget([keys.worker(worker.decode()) for worker in sorted(ids)])
    return [from_json(record) for record in records if record]
