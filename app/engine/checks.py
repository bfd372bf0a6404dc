"""Questions about the Redis behind the engine, for whoever checks an installation."""

from __future__ import annotations

import asyncio
import secrets
import time

from redis.asyncio import Redis

from app.errors import Unavailable
from app.store import keys

EVENT_TIMEOUT_S = 5.0


async def server_version(redis: Redis) -> str:
    """The server's name and version."""
    info = await redis.info("server")
    name = "Valkey" if "valkey_version" in info else "Redis"
    return f"{name} {info.get('valkey_version') or info.get('redis_version')}"


async def clock_drift_s(redis: Redis) -> float:
    """How far the server's clock is ahead of ours, in seconds; the error is at most half of the way there and back."""
    before = time.time()
    seconds, microseconds = await redis.time()
    return float(seconds + microseconds / 1_000_000 - (before + time.time()) / 2)


async def event_delay_s(redis: Redis) -> float:
    """How long a message takes from a publisher to a subscriber. Raises `Unavailable` when it does not come."""
    name, text = keys.events(f"check:{secrets.token_hex(8)}"), b"check"
    async with redis.pubsub() as subscription:
        await subscription.subscribe(name)
        began = time.perf_counter()
        try:
            async with asyncio.timeout(EVENT_TIMEOUT_S):
                await subscription.get_message(timeout=EVENT_TIMEOUT_S)  # its confirmation
                began = time.perf_counter()
                await redis.publish(name, text)
                message = await subscription.get_message(ignore_subscribe_messages=True, timeout=EVENT_TIMEOUT_S)
        except TimeoutError:
            message = None
    if message is None or message["data"] != text:
        raise Unavailable(f"an event that was published did not come back within {EVENT_TIMEOUT_S:g} s")
    return time.perf_counter() - began
