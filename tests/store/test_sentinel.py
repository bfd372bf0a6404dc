"""Real Sentinels: the binary of the embedded server runs as one."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis as redis_py
from arq.connections import create_pool

from app.store.connection import arq_redis_settings, connect, connect_sync, ride_out_restarts
from app.store.embedded import EmbeddedServer
from app.store.embedded_config import answers, find_binary, free_port

PATIENCE_S = 30.0


@dataclass(frozen=True)
class Group:
    """A server, a copy of it, and the Sentinel that watches both."""

    servers: tuple[EmbeddedServer, EmbeddedServer]
    sentinel_port: int

    def url(self, *, database: int = 0) -> str:
        # The first Sentinel is away: clients have to go on to the next.
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{self.sentinel_port}"
        return f"redis+sentinel://:{self.servers[0].password}@{hosts}/main/{database}"

    def fail_over(self) -> None:
        """Kill the first server; the Sentinel, which would notice by itself in a while, makes the second the server."""
        self.servers[0].kill()
        wait_for(self._ordered)

    def _ordered(self) -> bool:
        try:
            with redis_py.Redis(port=self.sentinel_port) as client:
                return bool(client.execute_command("SENTINEL", "FAILOVER", "main"))
        except redis_py.ResponseError:  # it has not yet heard enough from the second server
            return False


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    with ExitStack() as stack:
        first = stack.enter_context(EmbeddedServer(tmp_path / "first", tcp=True))
        second = EmbeddedServer(tmp_path / "second", tcp=True)
        second.password = first.password
        stack.enter_context(second)
        follow(second, first)
        port = stack.enter_context(sentinel(tmp_path, first))
        yield Group((first, second), port)


def follow(copy: EmbeddedServer, original: EmbeddedServer) -> None:
    with redis_py.Redis.from_url(original.url) as one, redis_py.Redis.from_url(copy.url) as other:
        for server in (one, other):
            server.config_set("masterauth", str(original.password))
        one.config_set("repl-diskless-sync-delay", "0")
        other.replicaof("127.0.0.1", str(original.address))
        wait_for(lambda: other.info("replication")["master_link_status"] == "up")


@contextmanager
def sentinel(directory: Path, server: EmbeddedServer) -> Iterator[int]:
    """A Sentinel process that watches `server` under the name `main`; yields its port."""
    port, config = free_port(), directory / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {directory}\nlogfile {directory}/sentinel.log\n"
        f"sentinel monitor main 127.0.0.1 {server.address} 1\nsentinel auth-pass main {server.password}\n"
        "sentinel down-after-milliseconds main 1500\nsentinel failover-timeout main 5000\n"
    )
    with subprocess.Popen([find_binary(), config, "--sentinel"]) as process:
        try:
            wait_for(lambda: answers(port, None))
            with redis_py.Redis(port=port) as client:
                wait_for(lambda: client.sentinel_master("main")["num-slaves"] == 1)
            yield port
        finally:
            process.terminate()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


async def test_all_clients_find_the_server_and_the_database(group: Group) -> None:
    url = group.url(database=2)
    client = connect(url)
    await client.set("key", "1")
    await client.aclose()
    blocking = connect_sync(url)
    assert await asyncio.to_thread(blocking.get, "key") == b"1"
    blocking.close()
    pool = await create_pool(arq_redis_settings(group.url(database=2)))
    assert await pool.get("key") == b"1"
    await ride_out_restarts(pool, url)
    assert await pool.get("key") == b"1"
    await pool.aclose(close_connection_pool=True)
    with redis_py.Redis.from_url(f"{group.servers[0].url[:-1]}2") as direct:
        assert await asyncio.to_thread(direct.get, "key") == b"1"


async def test_clients_follow_a_failover(group: Group) -> None:
    client = connect(group.url())
    pool = await create_pool(arq_redis_settings(group.url()))
    await ride_out_restarts(pool, group.url())
    await client.set("key", "before")
    await client.wait(1, 5_000)
    await asyncio.to_thread(group.fail_over)
    # The client of the host worker waits for as long as it takes; others get an error until there is a new server.
    await pool.set("waited", "yes")
    assert await client.get("key") == b"before"
    assert await client.get("waited") == b"yes"
    with redis_py.Redis.from_url(group.servers[1].url) as direct:
        assert await asyncio.to_thread(direct.get, "waited") == b"yes"
    await client.aclose()
    await pool.aclose(close_connection_pool=True)


async def test_no_sentinel_that_answers_is_a_connection_error() -> None:
    client = connect(f"redis+sentinel://127.0.0.1:{free_port()}/main")
    with pytest.raises(redis_py.ConnectionError, match="main"):
        await client.ping()
    await client.aclose()
