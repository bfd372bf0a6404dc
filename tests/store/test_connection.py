from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from loguru import logger
from redis.asyncio import Redis

from app.store import connection
from app.store.connection import connect
from app.store.embedded import EmbeddedServer

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@asynccontextmanager
async def client(url: str, **options: Any) -> AsyncIterator[Redis]:
    redis = connect(url, **options)
    try:
        yield redis
    finally:
        await redis.aclose()


@asynccontextmanager
async def listener(handle: Handler) -> AsyncIterator[str]:
    """A TCP server on loopback that treats its connections with `handle`."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def read_command(reader: asyncio.StreamReader) -> list[bytes]:
    words = []
    for _ in range(int((await reader.readline())[1:])):
        size = int((await reader.readline())[1:])
        words.append((await reader.readexactly(size + 2))[:-2])
    return words


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer what redis-py sends on connecting: CLIENT SETINFO, twice."""
    for _ in range(2):
        assert (await read_command(reader))[:2] == [b"CLIENT", b"SETINFO"]
        writer.write(b"+OK\r\n")


@pytest.fixture
def tcp_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "tcp", tcp=True) as running:
        yield running


@pytest.fixture
def messages() -> Iterator[asyncio.Queue[str]]:
    """What is logged, as it is logged."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    sink = logger.add(lambda message: queue.put_nowait(message.record["message"]), level="INFO")
    yield queue
    logger.remove(sink)


async def heard(messages: asyncio.Queue[str], text: str) -> None:
    async with asyncio.timeout(10):
        while text not in await messages.get():
            pass


async def test_answers_in_bytes(redis: Redis) -> None:
    await redis.set("key", "ä")
    assert await redis.get("key") == "ä".encode()


async def test_connects_over_tcp_with_password_and_database(tcp_server: EmbeddedServer) -> None:
    async with client(f"{tcp_server.url[:-1]}3") as redis:
        await redis.set("key", "1")
        assert [info["db"] for info in await redis.client_list()] == ["3"]


async def test_a_large_value_goes_through(redis: Redis) -> None:
    value = b"x" * 8_000_000
    await redis.set("large", value)
    assert await redis.get("large") == value


async def test_idle_connections_survive_a_restart_of_the_server(own_server: EmbeddedServer) -> None:
    async with client(own_server.url) as redis:
        await asyncio.gather(*(redis.ping() for _ in range(5)))
        await asyncio.to_thread(own_server.restart)
        assert await redis.ping()


async def test_connecting_is_tried_again(own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    own_server.kill()
    pauses: list[float] = []

    async def pause(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == connection.CONNECT_RETRIES:
            own_server.start()

    monkeypatch.setattr("redis.asyncio.retry.sleep", pause)
    async with client(own_server.url) as redis:
        assert await redis.ping()
    assert len(pauses) == connection.CONNECT_RETRIES


async def test_a_server_that_stays_away_is_a_connection_error(own_server: EmbeddedServer) -> None:
    own_server.kill()
    async with client(own_server.url) as redis:
        with pytest.raises(redis_py.ConnectionError):
            await redis.ping()
        own_server.start()
        assert await redis.ping()


async def test_a_command_whose_reply_was_lost_is_not_sent_again() -> None:
    commands: list[list[bytes]] = []

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        commands.append(await read_command(reader))

    async with listener(swallow) as url, client(url) as redis:
        with pytest.raises(redis_py.ConnectionError):
            await redis.incr("counter")
    assert commands == [[b"INCRBY", b"counter", b"1"]]


async def test_a_server_that_does_not_answer_is_a_timeout() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await reader.read()

    async with listener(mute) as url, client(url, command_timeout_s=0.05) as redis:
        with pytest.raises(redis_py.TimeoutError):
            await redis.ping()


async def test_a_write_that_the_server_does_not_read_is_a_timeout() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await gone.wait()

    gone = asyncio.Event()
    async with listener(deaf) as url, client(url, command_timeout_s=0.05) as redis:
        with pytest.raises(redis_py.TimeoutError):
            await redis.set("key", b"x" * 20_000_000)
        gone.set()


async def test_commands_wait_for_one_of_the_bounded_connections(redis: Redis, redis_url: str) -> None:
    async with client(redis_url, max_connections=2) as bounded:
        await asyncio.gather(*(bounded.incr("counter") for _ in range(50)))
        assert await bounded.get("counter") == b"50"
        assert len(await redis.client_list()) == 2 + 1


async def test_no_free_connection_in_time_is_a_connection_error(redis_url: str) -> None:
    async with client(redis_url, max_connections=1, command_timeout_s=0.1) as bounded:
        pubsub = bounded.pubsub()
        await pubsub.subscribe("channel")
        with pytest.raises(redis_py.ConnectionError, match="none of 1 Redis connections"):
            await bounded.ping()
        await pubsub.aclose()
        assert await bounded.ping()


async def test_cancelled_commands_give_their_connections_back(redis: Redis, redis_url: str) -> None:
    async with client(redis_url, max_connections=3) as bounded:
        for _ in range(5):
            tasks = [asyncio.create_task(bounded.blpop(["never"], 5)) for _ in range(9)]
            async with asyncio.timeout(5):
                while (await redis.info("clients"))["blocked_clients"] < 3:
                    await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert await asyncio.gather(*(bounded.ping() for _ in range(9))) == [True] * 9
