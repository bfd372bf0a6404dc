"""Calling the service from a command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from app.client import ApiClient, open_api
from app.errors import RemoteTimeout, RemoteUnreachable
from app.settings import settings

T = TypeVar("T")


class NotRunning(RemoteUnreachable):
    """Nobody answers at the service's address; the detail says what to do."""


def call(work: Callable[[ApiClient], Awaitable[T]]) -> T:
    """Run something with a client of the service that the settings name. Raises `NotRunning`, `ApiError`, …"""
    chosen = settings()
    key = chosen.api_key.get_secret_value() if chosen.api_key else None

    async def with_client() -> T:
        async with open_api(chosen.url, key) as api:
            return await work(api)

    try:
        return asyncio.run(with_client())
    except (RemoteUnreachable, RemoteTimeout) as error:
        raise NotRunning(
            f"{error}\nIs the service running? `nightshift serve` (or ./run serve) starts one, and NIGHTSHIFT_URL says "
            "where it is."
        ) from error
