"""Clients of Redis: for the service, for the stock arq worker that hosts our lanes, and for the lease thread.

What is retried and what is not:

- *Connecting* is tried three times in all, with backoff and jitter: it changes nothing on the server.
- *A command* is sent once. When the connection breaks before the reply, nobody knows whether it was carried out; an
  enqueue sent again could stand there twice. The caller gets redis-py's `ConnectionError` or `TimeoutError` and
  decides: it knows whether its script is fenced by a lease token, or names what it makes, and so may be repeated.
- *The host worker* is the exception. arq lets an error out of its poll loop and ends the process, so the client of that
  loop waits for Redis for as long as it takes, up to 5 s between two tries, until its loop ends (`ride_out_restarts`).

Every command has a timeout. One that blocks on purpose (`BLPOP`, `XREAD BLOCK`) needs a client with a longer
`command_timeout_s` than it blocks; `PubSub.get_message(timeout=…)` brings its own.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import redis as sync_redis
from arq.connections import ArqRedis, RedisSettings
from loguru import logger
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.sentinel import Sentinel as SyncSentinel

from app.store.address import Address, parse_address
from app.store.pool import (
    BoundedPool,
    BoundedSentinelPool,
    SentinelConnection,
    TcpConnection,
    TlsConnection,
    UnixConnection,
    close_sentinels,
)

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 10.0
"""As long as a lease by default: a reply that comes later is of no use to a running task."""
MAX_CONNECTIONS = 64
HEALTH_CHECK_S = 30
"""A connection idle for longer is tried with a PING before a command is trusted to it."""
CONNECT_RETRIES = 2
HOST_BACKOFF_CAP_S = 5.0
BACKOFF_BASE_S = 0.05

CONNECTION_ERRORS: tuple[type[Exception], ...] = (RedisConnectionError, RedisTimeoutError, OSError)
"""What a client raises while Redis is away (OSError comes out of connecting)."""

REFUSED_FOR_NOW: tuple[type[Exception], ...] = (*CONNECTION_ERRORS, ReadOnlyError, OutOfMemoryError)
"""What a script raises that may succeed later, unchanged: also a server that a fail-over made a replica, or a full one.
Redis refuses a full script before its first write, so nothing of it was carried out."""

# Dead peers are noticed after about a minute also where nothing is sent. macOS names the first option otherwise.
_KEEPALIVE = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}
_CONNECTION_CLASSES = {"redis": TcpConnection, "rediss": TlsConnection, "unix": UnixConnection}


def connect(url: str, *, command_timeout_s: float = COMMAND_TIMEOUT_S, max_connections: int = MAX_CONNECTIONS) -> Redis:
    """A client of the Redis at `url`, answering in bytes; `aclose` it when done. It connects with its first command.

    At most `max_connections` are open; a command that finds all in use waits for one, up to `command_timeout_s`. Raises
    `SettingsError` for a malformed URL.
    """
    backoff = ExponentialWithJitterBackoff(cap=1.0, base=BACKOFF_BASE_S)
    retry = Retry(backoff, CONNECT_RETRIES, CONNECTION_ERRORS)  # type: ignore[arg-type]  # OSError is meant
    return Redis.from_pool(_pool(parse_address(url), command_timeout_s, max_connections, retry=retry))


def connect_sync(url: str, *, timeout_s: float = 2.0) -> sync_redis.Redis:
    """A blocking client for a thread of its own (lease renewal): nothing is retried, nothing takes over `timeout_s`."""
    address = parse_address(url)
    options = _socket_options(address, timeout_s, timeout_s)
    if address.is_sentinel:
        sentinel_options = {name: value for name, value in options.items() if name.startswith("socket_")}
        sentinel = SyncSentinel(address.hosts, sentinel_kwargs=sentinel_options)
        client: sync_redis.Redis = sentinel.master_for(address.service, **options)
        return client
    classes: dict[str, type] = {"rediss": sync_redis.SSLConnection, "unix": sync_redis.UnixDomainSocketConnection}
    if address.hosts:
        options["host"], options["port"] = address.hosts[0]
    pool = sync_redis.ConnectionPool(connection_class=classes.get(address.scheme, sync_redis.Connection), **options)
    return sync_redis.Redis.from_pool(pool)


def arq_redis_settings(url: str) -> RedisSettings:
    """`redis_settings` of arq's worker settings and `create_pool`; a server that is away is waited for up to 10 s.

    This is what the stock worker starts with and what `arq --check` uses; a worker that should outlive a restart of
    Redis calls `ride_out_restarts` in its `on_startup`.
    """
    address = parse_address(url)
    options = dict(address.options)
    settings = RedisSettings(
        database=options.pop("db"),
        unix_socket_path=options.pop("path", None),
        ssl=address.scheme == "rediss",
        conn_timeout=int(CONNECT_TIMEOUT_S),
        conn_retries=10,
    )
    options.pop("client_name", None)
    for name, value in options.items():
        setattr(settings, name, value)
    if address.is_sentinel:
        settings.sentinel, settings.host, settings.sentinel_master = True, list(address.hosts), address.service
    elif address.hosts:
        settings.host, settings.port = address.hosts[0]
    return settings


async def ride_out_restarts(redis: ArqRedis, url: str) -> None:
    """Give arq's client connections that wait for Redis instead of ending the worker. Call it in `on_startup`.

    arq runs `on_startup` in the task of its poll loop. When that task ends (a signal, the end of a burst), waiting ends
    with it at once, so that Ctrl-C works while Redis is away.
    """
    loop_task = asyncio.current_task()
    retry = HostRetry()
    if loop_task is not None:
        loop_task.add_done_callback(lambda _: retry.stop())
    stock = redis.connection_pool
    retried = list(CONNECTION_ERRORS)
    redis.connection_pool = _pool(
        parse_address(url), COMMAND_TIMEOUT_S, MAX_CONNECTIONS, retry=retry, retry_on_error=retried
    )
    await stock.disconnect()
    if isinstance(stock, SentinelConnectionPool):
        await close_sentinels(stock)
    # arq deletes its health key before it calls on_shutdown, and an error there would keep the lanes from draining.
    redis.delete = _forgiving(redis.delete)  # type: ignore[method-assign]


def _forgiving(delete: Callable[..., Any]) -> Callable[..., Any]:
    async def forgiving(*names: Any) -> int:
        try:
            return int(await delete(*names))
        except CONNECTION_ERRORS as error:
            logger.warning("{} was not deleted, Redis is away: {}", ", ".join(map(str, names)), error)
            return 0

    return forgiving


class HostRetry(Retry):
    """Tries again for as long as Redis is away, until `stop`; the wait grows to 5 s and has jitter."""

    __slots__ = ("_away", "_stopping")

    def __init__(self) -> None:
        backoff = ExponentialWithJitterBackoff(cap=HOST_BACKOFF_CAP_S, base=BACKOFF_BASE_S)
        super().__init__(backoff, -1, CONNECTION_ERRORS)  # type: ignore[arg-type]  # OSError is meant
        self._stopping = asyncio.Event()
        self._away = False

    def __deepcopy__(self, memo: dict[int, Any]) -> HostRetry:
        """redis-py copies the policy for each connection; all of them have to hear of the end."""
        return self

    def stop(self) -> None:
        """Let every call that waits fail now, and later ones at their first error."""
        self._stopping.set()

    async def call_with_retry(self, do: Callable[[], Awaitable[T]], fail: Callable[[Any], Any]) -> T:
        """Call `do` until it succeeds. Raises its error only after `stop`, or when `fail` raises it."""
        failures = 0
        while True:
            try:
                value = await do()
            except self._supported_errors as error:
                failures += 1
                await fail(error)
                if self._stopping.is_set():
                    raise
                self._note_away(error)
                await self._pause(self._backoff.compute(failures))
            else:
                self._note_back()
                return value

    async def _pause(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _note_away(self, error: BaseException) -> None:
        if not self._away:
            self._away = True
            logger.warning("Redis is away, waiting for it: {}", error)

    def _note_back(self) -> None:
        if self._away:
            self._away = False
            logger.info("Redis is back")


def _pool(address: Address, timeout_s: float, max_connections: int, **options: Any) -> BoundedPool:
    options |= _socket_options(address, CONNECT_TIMEOUT_S, timeout_s)
    options |= {"health_check_interval": HEALTH_CHECK_S, "max_connections": max_connections, "wait_s": timeout_s}
    if address.is_sentinel:
        sentinel_options = {name: value for name, value in options.items() if name.startswith("socket_")}
        sentinel = Sentinel(address.hosts, sentinel_kwargs=sentinel_options)
        options |= {"service_name": address.service, "sentinel_manager": sentinel}
        return BoundedSentinelPool(connection_class=SentinelConnection, **options)
    if address.hosts:
        options["host"], options["port"] = address.hosts[0]
    return BoundedPool(connection_class=_CONNECTION_CLASSES[address.scheme], **options)


def _socket_options(address: Address, connect_timeout_s: float, timeout_s: float) -> dict[str, Any]:
    options = address.options | {"socket_connect_timeout": connect_timeout_s, "socket_timeout": timeout_s}
    if address.scheme != "unix":
        options |= {"socket_keepalive": True, "socket_keepalive_options": _KEEPALIVE}
    return options
