"""What all tests share: one real server for the session, and servers of one's own for tests that kill them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from app.store.connection import connect
from app.store.embedded import EmbeddedServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The session's server. Its data is flushed before each test that asks for `redis` or `redis_url`."""
    with EmbeddedServer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop for a state machine, whose rules are plain functions."""
    with asyncio.Runner() as runner:
        yield runner.get_loop()


@pytest.fixture
async def redis(server: EmbeddedServer) -> AsyncIterator[Redis]:
    """A client of the session's server, which is empty when the test starts."""
    client = connect(server.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def redis_url(server: EmbeddedServer, redis: Redis) -> str:
    """The address of the session's server, which is empty when the test starts."""
    return server.url


@pytest.fixture
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server that this test alone uses and may `kill`, `restart`, `stop` and `start`."""
    with EmbeddedServer(tmp_path_factory.mktemp("own")) as running:
        yield running
