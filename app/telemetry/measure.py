"""Counting and timing operations of the outside world."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Histogram

OK = "ok"
ABANDONED = "abandoned"
"""Cancelled, or a stream that its reader left."""


@contextmanager
def measured(calls: Counter, durations_s: Histogram, name: str) -> Iterator[None]:
    """Count the block under `name` and its outcome, `ok` or the error's class, and observe how long it took."""
    began = time.perf_counter()
    outcome = OK
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        outcome = ABANDONED
        raise
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        calls.labels(name, outcome).inc()
        durations_s.labels(name, outcome).observe(time.perf_counter() - began)
