"""Live events for many readers over one subscription connection.

`EventHub` owns the one pub/sub connection of the process and knows which listeners want which stream. A `Listener` is
one client: it may follow many channels, and hands out one sequence of events.

A channel of a listener is either *live* or *replaying*. While it replays, live messages are put aside; when they are
too many they are dropped and read from the stream again. Replay begins when Redis has confirmed the subscription, so
nothing can fall between the two. States and failures:

- the connection breaks: `run` reconnects with backoff and subscribes to everything again; each confirmation sets the
  channel back to replaying from the last id it handed out;
- a stream is left and wanted again before the first confirmation came: confirmations are counted, only the last one
  opens it;
- a reader is slow: replay waits for it, since the stream keeps the rest. Live events cannot wait, so a listener with
  more than `max_unread` of them is over (`SlowListener`) and must resume later. It never holds up another.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from loguru import logger
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from app.engine.events import PAGE, Event, EventLog, event_key, parse_message
from app.errors import Unavailable
from app.store import keys
from app.telemetry import metrics

MAX_UNREAD = 1_000
"""Events a client may be behind before it is sent away to resume later."""
CONFIRM_TIMEOUT_S = 10.0
SILENCE_S = 15.0
"""After so long without a message the connection is tried with a PING; after twice as long it is given up."""
MAX_BACKOFF_S = 1.0
REPLAY_PAUSE_S = 0.2
SUBSCRIBE_CHUNK = 500


class SlowListener(Exception):
    """The reader fell more than its limit behind. It should close and resume from the last id it saw."""


@dataclass(slots=True)
class _Stream:
    """What the hub knows of one stream."""

    listeners: set[Listener] = field(default_factory=set)
    unconfirmed: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)


class EventHub:
    """The subscription connection of a process. Keep `run` going in the background; ask for a `listener` per client."""

    def __init__(self, redis: Redis, log: EventLog) -> None:
        self.log = log
        self._connection: AbstractConnection = redis.connection_pool.make_connection()
        self._streams: dict[str, _Stream] = {}
        self._connected = False

    @property
    def connected(self) -> bool:
        """Whether the subscription connection stands."""
        return self._connected

    def listener(self, max_unread: int = MAX_UNREAD) -> Listener:
        """A new client. Close it when done."""
        return Listener(self, max_unread)

    async def run(self) -> None:
        """Connect, and pass messages on until cancelled."""
        backoff_s = 0.02
        try:
            while True:
                try:
                    await self._connect()
                    backoff_s = 0.02
                    await self._read()
                except (RedisError, OSError) as error:
                    self._connected = False
                    logger.warning("event subscription lost ({}), reconnecting in {:.2f} s", error, backoff_s)
                    metrics.REDIS_RECONNECTS.inc()
                    await self._connection.disconnect(nowait=True)
                    await asyncio.sleep(backoff_s)
                    backoff_s = min(MAX_BACKOFF_S, backoff_s * 2)
        finally:
            self._connected = False
            await self._connection.disconnect(nowait=True)

    async def attach(self, stream: str, listener: Listener) -> None:
        """Send a stream's messages to `listener`. Returns when Redis has confirmed the subscription.

        Raises `Unavailable` when it does not within 10 s.
        """
        state = self._streams.setdefault(stream, _Stream())
        state.listeners.add(listener)
        if len(state.listeners) == 1 and self._connected:
            await self._subscribe([stream])
        try:
            await asyncio.wait_for(state.open.wait(), CONFIRM_TIMEOUT_S)
        except TimeoutError:
            await self.detach(stream, listener)
            raise Unavailable(f"the event subscription was not confirmed within {CONFIRM_TIMEOUT_S:.0f} s") from None

    async def detach(self, stream: str, listener: Listener) -> None:
        """Send a stream's messages to `listener` no more."""
        state = self._streams.get(stream)
        if state is None:
            return
        state.listeners.discard(listener)
        if state.listeners:
            return
        state.open.clear()
        if self._connected:
            await self._send("UNSUBSCRIBE", [stream])
        if not state.unconfirmed and not state.listeners:
            self._streams.pop(stream, None)

    async def _connect(self) -> None:
        await self._connection.connect()
        for state in self._streams.values():
            state.unconfirmed = 0
            state.open.clear()
        self._connected = True
        await self._subscribe([name for name, state in self._streams.items() if state.listeners])

    async def _subscribe(self, streams: list[str]) -> None:
        for name in streams:
            self._streams[name].unconfirmed += 1
        for start in range(0, len(streams), SUBSCRIBE_CHUNK):
            await self._send("SUBSCRIBE", streams[start : start + SUBSCRIBE_CHUNK])

    async def _send(self, command: str, streams: Iterable[str] = ()) -> None:
        try:
            await self._connection.send_command(command, *map(keys.events, streams), check_health=False)
        except (RedisError, OSError) as error:
            # The reader sees the broken connection too, and subscribes to all that is wanted when it has a new one.
            logger.debug("{} was not sent: {}", command, error)

    async def _read(self) -> None:
        silent = False
        while True:
            message = await self._connection.read_response(
                timeout=SILENCE_S, disconnect_on_error=False, push_request=True
            )
            if message is not None:
                silent = False
                self._dispatch(message)
            elif silent:
                raise ConnectionError(f"no answer to PING within {SILENCE_S:.0f} s")
            else:
                silent = True
                await self._send("PING")

    def _dispatch(self, message: list[bytes | int]) -> None:
        kind = message[0]
        if kind not in (b"message", b"subscribe"):
            return
        name = bytes(message[1]).decode().removeprefix(keys.events(""))
        state = self._streams.get(name)
        if state is None:
            return
        if kind == b"subscribe":
            self._confirm(name, state)
        else:
            for listener in tuple(state.listeners):
                listener.take(name, bytes(message[2]))

    def _confirm(self, name: str, state: _Stream) -> None:
        state.unconfirmed = max(0, state.unconfirmed - 1)
        if state.unconfirmed:
            return
        if not state.listeners:
            del self._streams[name]
            return
        state.open.set()
        for listener in tuple(state.listeners):
            listener.resync(name)


@dataclass(slots=True)
class _Feed:
    """One channel of one listener."""

    channel: str
    last_id: str = ""
    replay: asyncio.Task[None] | None = None
    aside: list[Event] = field(default_factory=list)
    again: bool = False


class Listener:
    """One client's events. `add` and `remove` channels at any time; `get` hands out what has come."""

    def __init__(self, hub: EventHub, max_unread: int) -> None:
        self._hub = hub
        self._max_unread = max_unread
        self._feeds: dict[str, _Feed] = {}
        self._unread: deque[Event] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._failure: SlowListener | None = None

    async def add(self, channel: str, stream: str, after: str | None = None) -> tuple[str, bool]:
        """Follow a channel: everything behind the id `after`, or, where None, what comes from now on.

        Returns the id behind which events will come, and whether some behind `after` are not kept any more.
        """
        log = self._hub.log
        feed = self._feeds[stream] = _Feed(channel)
        try:
            await self._hub.attach(stream, self)
            feed.last_id = await log.last_id(stream) if after is None else after
            gap = after is not None and await log.has_gap(stream, after)
        except BaseException:
            await self.remove(stream)
            raise
        self.resync(stream)
        return feed.last_id, gap

    async def remove(self, stream: str) -> None:
        """Follow a channel no more."""
        feed = self._feeds.pop(stream, None)
        if feed is not None:
            if feed.replay is not None:
                feed.replay.cancel()
            await self._hub.detach(stream, self)

    async def get(self) -> list[Event]:
        """Wait for events and take all that are there, oldest first within a channel. Raises `SlowListener` when
        over."""
        while not self._unread:
            self._news.clear()
            await self._news.wait()
        if self._failure is not None:
            raise self._failure
        events = list(self._unread)
        self._unread.clear()
        self._room.set()
        return events

    async def close(self) -> None:
        """Leave all channels."""
        for stream in tuple(self._feeds):
            await self.remove(stream)

    def take(self, stream: str, message: bytes) -> None:
        """A live message (called by the hub)."""
        feed = self._feeds.get(stream)
        if feed is None:
            return
        event = parse_message(feed.channel, message)
        if feed.replay is None and feed.last_id:
            self._push_live(feed, event)
        elif len(feed.aside) < self._max_unread:
            feed.aside.append(event)
        else:
            feed.aside.clear()
            feed.again = True

    def resync(self, stream: str) -> None:
        """Read a channel from its last id up to now, then go live (called by the hub after a reconnect)."""
        feed = self._feeds.get(stream)
        if feed is None or not feed.last_id:
            return
        if feed.replay is not None:
            feed.again = True
            return
        feed.replay = asyncio.get_running_loop().create_task(self._replay(feed, stream))

    async def _replay(self, feed: _Feed, stream: str) -> None:
        try:
            while True:
                try:
                    if await self._catch_up(feed, stream):
                        return
                except (RedisError, OSError) as error:
                    logger.debug("replay of {} interrupted, reading on: {}", feed.channel, error)
                    await asyncio.sleep(REPLAY_PAUSE_S)
        finally:
            feed.replay = None

    async def _catch_up(self, feed: _Feed, stream: str) -> bool:
        """Read one page. True when the channel has become live."""
        feed.again = False
        page = await self._hub.log.read(stream, feed.channel, feed.last_id)
        for event in page:
            while len(self._unread) >= self._max_unread:
                self._room.clear()
                await self._room.wait()
            self._push(feed, event)
        if len(page) == PAGE or feed.again or len(self._unread) + len(feed.aside) > self._max_unread:
            if len(self._unread) + len(feed.aside) > self._max_unread:
                feed.aside.clear()
                self._room.clear()
                await self._room.wait()
            return False
        for event in feed.aside:
            self._push(feed, event)
        feed.aside.clear()
        return True

    def _push_live(self, feed: _Feed, event: Event) -> None:
        if len(self._unread) >= self._max_unread:
            self._failure = SlowListener(f"more than {self._max_unread} events behind")
            self._news.set()
        elif self._failure is None:
            self._push(feed, event)

    def _push(self, feed: _Feed, event: Event) -> None:
        if event.key > event_key(feed.last_id):
            feed.last_id = event.id
            self._unread.append(event)
            self._news.set()
