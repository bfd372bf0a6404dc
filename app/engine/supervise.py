"""Background services that begin again when they fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from loguru import logger

from app.store.connection import REFUSED_FOR_NOW
from app.telemetry import metrics

FIRST_PAUSE_S = 0.02
MAX_PAUSE_S = 1.0
HEALTHY_S = 5.0
"""A service that ran for so long begins again at the first pause."""


async def supervise(name: str, service: Callable[[], Awaitable[None]]) -> None:
    """Run `service` until it returns or is cancelled; after an error, again, with pauses that grow to a second."""
    pause_s = FIRST_PAUSE_S
    while True:
        began = time.monotonic()
        try:
            await service()
            return
        except REFUSED_FOR_NOW as error:
            logger.warning("{} lost Redis ({}), again in {:.2f} s", name, error, pause_s)
            metrics.REDIS_RECONNECTS.inc()
        except Exception:
            # The supervisor's edge: whatever it was, the other services and the running tasks must go on.
            logger.exception("{} failed, again in {:.2f} s", name, pause_s)
        metrics.SUPERVISED_RESTARTS.labels(name).inc()
        pause_s = FIRST_PAUSE_S if time.monotonic() - began > HEALTHY_S else pause_s
        await asyncio.sleep(pause_s)
        pause_s = min(MAX_PAUSE_S, pause_s * 2)
