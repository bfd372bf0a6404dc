from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from arq.connections import create_pool
from arq.worker import Worker, func
from loguru import logger
from redis.asyncio import Redis

from app.errors import SettingsError
from app.store import connection
from app.store.connection import arq_redis_settings, connect, connect_sync, ride_out_restarts
from app.store.embedded import EmbeddedServer
from tests.fakes.tls import make_certificate

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@asynccontextmanager
async def client(url: str, **options: Any) -> AsyncIterator[Redis]:
    redis = connect(url, **options)
    try:
        yield redis
    finally:
        await redis.aclose()


@asynccontextmanager
async def listener(handle: Handler, **options: Any) -> AsyncIterator[str]:
    """A TCP server on loopback that treats its connections with `handle`."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(served, "127.0.0.1", 0, **options)
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


async def test_a_server_that_dies_during_the_login_is_tried_again() -> None:
    connections = 0

    async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            await greet(reader, writer)
            await read_command(reader)
            writer.write(b"+PONG\r\n")
            await reader.read()

    async with listener(dying) as url, client(url) as redis:
        assert await redis.ping()
    assert connections == 2


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


async def test_an_idle_connection_is_tried_before_a_command_is_trusted_to_it() -> None:
    commands: list[list[bytes]] = []

    async def forgetful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one command a connection, and do not answer a second one."""
        await greet(reader, writer)
        commands.append(await read_command(reader))
        writer.write(b":1\r\n" if commands[-1][0] == b"INCRBY" else b"+PONG\r\n")
        commands.append(await read_command(reader))

    async with listener(forgetful) as url, client(url) as redis:
        assert await redis.incr("counter") == 1
        (idle,) = redis.connection_pool._available_connections
        idle.next_health_check = 0.0
        assert await redis.incr("counter") == 1
    assert [command[0] for command in commands] == [b"INCRBY", b"PING", b"INCRBY"]


async def test_a_server_that_is_loading_its_data_is_a_connection_error_at_once() -> None:
    async def loading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await read_command(reader)
        writer.write(b"-LOADING the dataset is in memory soon\r\n")
        await reader.read()

    async with listener(loading) as url, client(url) as redis:
        with pytest.raises(redis_py.BusyLoadingError):
            await redis.ping()


async def test_tls_verifies_certificate_and_name(tcp_server: EmbeddedServer, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", int(str(tcp_server.address)))
        await asyncio.wait(
            [asyncio.ensure_future(pump(reader, inner_writer)), asyncio.ensure_future(pump(inner_reader, writer))],
        )

    async with listener(forward, ssl=context) as plain:
        _, _, port = plain.rpartition(":")
        for host, options, works in [
            ("localhost", f"?ssl_ca_certs={certificate}", True),
            ("localhost", "", False),
            ("127.1", f"?ssl_ca_certs={certificate}", False),
            ("127.1", "?ssl_cert_reqs=none", True),
        ]:
            url = f"rediss://:{tcp_server.password}@{host}:{port}/0{options}"
            async with client(url) as redis:
                if works:
                    assert await redis.ping()
                    with connect_sync(url) as blocking:
                        assert await asyncio.to_thread(blocking.ping)
                else:
                    with pytest.raises(redis_py.ConnectionError, match=r"CERTIFICATE_VERIFY_FAILED"):
                        await redis.ping()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


def test_the_blocking_client_does_not_wait_longer_than_told(own_server: EmbeddedServer) -> None:
    with connect_sync(own_server.url, timeout_s=0.1) as redis:
        assert redis.ping()
        redis.client_pause(300)
        with pytest.raises(redis_py.TimeoutError):
            redis.set("key", "1")


def test_the_blocking_client_connects_over_tcp(tcp_server: EmbeddedServer) -> None:
    with connect_sync(tcp_server.url) as redis:
        assert redis.ping()


async def test_malformed_addresses_stop_every_client() -> None:
    for make in (connect, connect_sync, arq_redis_settings):
        with pytest.raises(SettingsError):
            make("http://nowhere")


@pytest.mark.parametrize("tcp", [False, True])
async def test_arq_connects_with_its_settings(tmp_path: Path, tcp: bool) -> None:
    with EmbeddedServer(tmp_path, tcp=tcp) as server:
        pool = await create_pool(arq_redis_settings(server.url))
        assert await pool.enqueue_job("noop") is not None
        await pool.aclose(close_connection_pool=True)


def test_arq_settings_say_what_the_address_says() -> None:
    settings = arq_redis_settings("rediss://u:p@h:1/2?ssl_ca_certs=/ca.pem")
    assert (settings.host, settings.port, settings.database, settings.username, settings.password) == (
        "h",
        1,
        2,
        "u",
        "p",
    )
    assert (settings.ssl, settings.ssl_ca_certs, settings.ssl_check_hostname) == (True, "/ca.pem", True)


@asynccontextmanager
async def host_worker(server: EmbeddedServer) -> AsyncIterator[Worker]:
    """A stock arq worker with a task `noop` that has started and rides out restarts."""
    started = asyncio.Event()

    async def noop(ctx: dict[str, Any]) -> str:
        return "done"

    async def on_startup(ctx: dict[str, Any]) -> None:
        await ride_out_restarts(ctx["redis"], server.url)
        started.set()

    worker = Worker(
        [func(noop, name="noop")],
        redis_settings=arq_redis_settings(server.url),
        on_startup=on_startup,
        handle_signals=False,
        poll_delay=0.01,
    )
    running = asyncio.create_task(worker.async_run())
    try:
        async with asyncio.timeout(10):
            await started.wait()
        yield worker
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_the_stock_worker_outlives_a_restart(own_server: EmbeddedServer, messages: asyncio.Queue[str]) -> None:
    async with host_worker(own_server) as worker:
        await asyncio.to_thread(own_server.kill)
        await heard(messages, "Redis is away")
        await asyncio.to_thread(own_server.start)
        await heard(messages, "Redis is back")
        job = await worker.pool.enqueue_job("noop")
        assert job is not None
        assert await job.result(timeout=10) == "done"
        await worker.close()


async def test_the_stock_worker_ends_at_once_while_redis_is_away(
    own_server: EmbeddedServer, messages: asyncio.Queue[str]
) -> None:
    async with host_worker(own_server) as worker:
        await asyncio.to_thread(own_server.kill)
        await heard(messages, "Redis is away")
        pool = worker.pool
        assert worker.main_task is not None
        worker.main_task.cancel()
        await asyncio.wait([worker.main_task])
        async with asyncio.timeout(5):
            await worker.close()
        await pool.aclose(close_connection_pool=True)
