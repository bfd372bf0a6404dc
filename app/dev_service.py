"""The whole service in one process: embedded server, worker, API, started side by side and stopped in order.

    async with running(settings) as service:
        print(service.url)
        await service.ended()          # only when a part fails

At the end the API stops first (open streams are told, requests under way get `GRACE_S`), then the worker drains, and
the embedded server, which both need for that, goes last. The worker is the stock one of `arq worker.WorkerSettings`, so
that lanes and cron entries run here exactly as they do there.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, nullcontext
from types import FrameType
from typing import Any

import uvicorn
from arq.worker import create_worker
from pydantic import SecretStr
from redis.exceptions import RedisError

from app.errors import SettingsError, Unavailable
from app.settings import Settings, use_settings
from app.store.connection import connect_sync
from app.store.embedded import EmbeddedServer

WS_PING_INTERVAL_S = 30
WS_MAX_BYTES = 1024 * 1024
BACKLOG = 2_048
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Part:
    """Something that runs beside the rest: `run` calls `is_ready` when it works and returns soon after `stopping`."""

    def __init__(self, name: str, run: Callable[[Part], Awaitable[None]]) -> None:
        self.name = name
        self.stopping = asyncio.Event()
        self._ready = asyncio.Event()
        self.task = asyncio.ensure_future(run(self))

    def is_ready(self) -> None:
        """It works."""
        self._ready.set()

    async def started(self) -> None:
        """Wait until it works. Raises what it failed with."""
        await self.while_running(self._ready.wait())
        if self.task.done():
            await self.task
            raise Unavailable(f"the {self.name} ended while it started; the log says why")

    async def while_running(self, waiting: Awaitable[object]) -> None:
        """Wait for something, or for the end of this part."""
        wait = asyncio.ensure_future(waiting)
        try:
            await asyncio.wait({wait, self.task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            wait.cancel()

    async def stop(self) -> None:
        """Stop it and wait for its end. Raises what it failed with."""
        self.stopping.set()
        await self.task


class Service:
    """The running service. `url` is the base of its API, `store_url` where its Redis is."""

    def __init__(self, url: str, store_url: str, parts: tuple[Part, ...]) -> None:
        self.url = url
        self.store_url = store_url
        self._parts = parts

    async def ended(self) -> None:
        """Return when a part has ended by itself; leaving `running` then raises what it failed with."""
        await asyncio.wait({part.task for part in self._parts}, return_when=asyncio.FIRST_COMPLETED)


@asynccontextmanager
async def running(settings: Settings, *, with_worker: bool = True) -> AsyncIterator[Service]:
    """Run the service inside the block; without its worker where that is a process of its own.

    Its settings become those of the process (`use_settings`), with the address of the embedded server where none is
    configured. Raises `SettingsError` for settings it cannot run with, `Unavailable` when a part does not start.
    """
    with _listener(settings) as listener:
        async with _store(settings) as chosen:
            worker = Part("worker", _run_worker) if with_worker else None
            api = Part("API", lambda part: _run_api(part, chosen, listener))
            parts = (api, worker) if worker else (api,)
            try:
                await asyncio.gather(*(part.started() for part in parts))
                # Our own edge logs each request; uvicorn logs it too as soon as its logger leads anywhere, which
                # `take_over_logging` in the worker's start has just seen to.
                logging.getLogger("uvicorn.access").propagate = False
                assert chosen.redis_url is not None
                yield Service(_url(settings, listener), chosen.redis_url.get_secret_value(), parts)
            finally:
                try:
                    await api.stop()
                finally:
                    if worker:
                        await worker.stop()


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[Settings]:
    """The embedded server where no Redis is configured; settings that name it."""
    if settings.redis_url is not None:
        use_settings(settings)
        await asyncio.to_thread(_check_store, settings.redis_url.get_secret_value())
        await asyncio.to_thread(_import_parts)
        yield settings
        return
    server = EmbeddedServer(settings.data_dir)
    chosen = settings.model_copy(update={"redis_url": SecretStr(server.url)})
    use_settings(chosen)
    # Its address is known before it runs, so our own modules load while it starts.
    starting = asyncio.gather(asyncio.to_thread(server.use), asyncio.to_thread(_import_parts), return_exceptions=True)
    try:
        for failure in await asyncio.shield(starting):
            if isinstance(failure, BaseException):
                raise failure
        yield chosen
    finally:
        # A thread cannot be cancelled: what it starts must be there before it can be released.
        await asyncio.wait({starting})
        await asyncio.to_thread(server.release)


def _check_store(url: str) -> None:
    """Say at once what the parts would try for half a minute each."""
    with closing(connect_sync(url)) as client:
        try:
            client.ping()
        except RedisError as error:
            raise Unavailable(f"the Redis that NIGHTSHIFT_REDIS_URL names cannot be used: {error}") from error


def _import_parts() -> None:
    import app.main  # noqa: F401

    try:
        import worker  # noqa: F401
    except SystemExit as refusal:
        raise SettingsError(str(refusal.code)) from None


async def _run_worker(part: Part) -> None:
    from worker import WorkerSettings  # (it reads the settings that `running` has chosen)

    async def on_startup(ctx: dict[Any, Any]) -> None:
        await WorkerSettings.on_startup(ctx)
        part.is_ready()

    stock = create_worker(WorkerSettings, handle_signals=False, on_startup=on_startup)  # type: ignore[arg-type]
    run = asyncio.ensure_future(stock.async_run())
    stopping = asyncio.ensure_future(part.stopping.wait())
    try:
        await asyncio.wait({run, stopping}, return_when=asyncio.FIRST_COMPLETED)
        failure = run.exception() if run.done() and not run.cancelled() else None
    finally:
        stopping.cancel()
        run.cancel()
        await asyncio.wait({run})
        await stock.close()
    if failure is not None:
        raise failure


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: who runs it decides when it stops."""

    def __init__(self, config: uvicorn.Config, part: Part) -> None:
        super().__init__(config)
        self._part = part

    def capture_signals(self) -> Any:
        return nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._part.is_ready()


async def _run_api(part: Part, settings: Settings, listener: socket.socket) -> None:
    from app.api.lifecycle import GRACE_S
    from app.main import create_app

    application = create_app(settings)
    config = uvicorn.Config(
        application,
        lifespan="off",  # run here, so that its errors are ours to report
        access_log=False,
        log_config=None,
        server_header=False,
        ws_ping_interval=WS_PING_INTERVAL_S,
        # Compression costs each client 50 KB and each event its time; frames beyond the bound are refused by the
        # session.
        ws_per_message_deflate=False,
        ws_max_size=WS_MAX_BYTES,
        timeout_graceful_shutdown=GRACE_S,
    )
    async with application.router.lifespan_context(application):
        server = _Server(config, part)
        serving = asyncio.ensure_future(server.serve([listener]))
        try:
            await asyncio.wait(
                {serving, stopping := asyncio.ensure_future(part.stopping.wait())}, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            stopping.cancel()
            application.state.shutdown.begin()
            server.should_exit = True
            await serving


@contextmanager
def _listener(settings: Settings) -> Iterator[socket.socket]:
    """The socket of the API, bound before anything else starts. Raises `Unavailable` when it cannot be."""
    host, port = settings.host, settings.port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # With the protocol named: else asyncio does not turn on TCP_NODELAY, and small writes are held back for 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise SettingsError(f"NIGHTSHIFT_HOST={host!r}: expected an address of this machine ({error})") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            # Here and not when uvicorn starts: two services must not both believe that the port is theirs.
            listener.listen(BACKLOG)
        except OSError as error:
            raise _cannot_bind(host, port, error) from error
        yield listener


def _cannot_bind(host: str, port: int, error: OSError) -> Unavailable:
    if error.errno == errno.EADDRINUSE:
        return Unavailable(
            f"port {port} of {host} is taken by another process: stop that one, or choose another with NIGHTSHIFT_PORT"
        )
    return Unavailable(f"the API cannot listen on {host}:{port}: {error.strerror}")


def _url(settings: Settings, listener: socket.socket) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{host}:{listener.getsockname()[1]}"


@contextmanager
def on_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Inside the block, SIGINT and SIGTERM call `stop` on the loop; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    seen: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if seen:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        seen.append(number)
        loop.call_soon_threadsafe(stop)

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
