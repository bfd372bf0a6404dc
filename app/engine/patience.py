"""Calls of the store that are repeated while Redis is away, or refuses them for now.

Only for what may be carried out twice, since the reply may be lost rather than the request: reads, writes that are
fenced by a lease token, and what a script finds to be there already.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from loguru import logger

from app.store.connection import REFUSED_FOR_NOW

PATIENCE_S = 30.0
"""How long a running task is held up before it gets the error."""
PAUSES_S = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)

T = TypeVar("T")


async def insist(call: Callable[[], Awaitable[T]], what: str, patience_s: float | None) -> T:
    """Call until Redis answers, for `patience_s` (None: for ever); `what` is how the log names it.

    Raises what the last call raised.
    """
    began = time.monotonic()
    tries = 0
    while True:
        try:
            return await call()
        except REFUSED_FOR_NOW as error:
            if patience_s is not None and time.monotonic() - began > patience_s:
                raise
            pause_s = PAUSES_S[min(tries, len(PAUSES_S) - 1)]
            logger.warning("{} waits for Redis ({}), trying again in {} s", what, error, pause_s)
            tries += 1
            await asyncio.sleep(pause_s)
