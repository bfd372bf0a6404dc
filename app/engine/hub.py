"""One subscription connection for all readers of a process.

`EventHub` owns the pub/sub connection and knows which listeners (`listeners.py`) want which stream. What it is
subscribed to follows what is wanted: one writer compares the two and sends the difference, so that a thousand new
clients cost one command, and commands never overtake each other. A stream is *open* between Redis's answer to the last
SUBSCRIBE and the next UNSUBSCRIBE; listeners read the log only after that, so nothing falls between log and messages.

- The connection breaks: `run` reconnects with backoff and subscribes to everything again. Each confirmation makes the
  listeners read the log on from the last id they handed out.
- A stream is left and wanted again before the first confirmation came: confirmations are counted, only the last one
  opens it.
- A connection that says nothing for 15 s is tried with a PING, and given up after another 15 s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from loguru import logger
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from app.engine.events import Event, EventLog, parse_message
from app.errors import Unavailable
from app.store import keys
from app.telemetry import metrics

CONFIRM_TIMEOUT_S = 10.0
SILENCE_S = 15.0
FIRST_BACKOFF_S = 0.02
MAX_BACKOFF_S = 1.0
SUBSCRIBE_CHUNK = 500
TURN = 256
"""Deliveries after which other coroutines get their turn. What has arrived is read without waiting: without a pause, a
burst would drown readers that never got a chance to read."""


class Receiver(Protocol):
    """What the hub wants of a listener. Neither call may wait."""

    def take(self, stream: str, event: Event) -> None:
        """An event has come."""

    def resync(self, stream: str) -> None:
        """Events may have been missed: read the log on."""


@dataclass(slots=True)
class _Stream:
    """What the hub knows of one stream. `sent`: the last command about it on this connection was SUBSCRIBE."""

    channel: str
    listeners: set[Receiver] = field(default_factory=set)
    sent: bool = False
    unconfirmed: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)


class EventHub:
    """The subscription connection of a process. Keep `run` going in the background."""

    def __init__(self, redis: Redis, log: EventLog) -> None:
        self.log = log
        self._connection: AbstractConnection = redis.connection_pool.make_connection()
        self._streams: dict[str, _Stream] = {}
        self._changed: set[str] = set()
        self._work = asyncio.Event()
        self._connected = False

    @property
    def connected(self) -> bool:
        """Whether the subscription connection stands."""
        return self._connected

    async def run(self) -> None:
        """Connect, and pass messages on until cancelled."""
        backoff_s = FIRST_BACKOFF_S
        try:
            while True:
                try:
                    await self._connection.connect()
                    self._forget_connection()
                    self._connected = True
                    backoff_s = FIRST_BACKOFF_S
                    async with asyncio.TaskGroup() as both:
                        both.create_task(self._read())
                        both.create_task(self._write())
                except* (RedisError, OSError) as errors:
                    logger.warning(
                        "event subscription lost ({}), reconnecting in {:.2f} s", errors.exceptions[0], backoff_s
                    )
                metrics.REDIS_RECONNECTS.inc()
                self._forget_connection()
                await self._connection.disconnect(nowait=True)
                await asyncio.sleep(backoff_s)
                backoff_s = min(MAX_BACKOFF_S, backoff_s * 2)
        finally:
            self._forget_connection()
            await self._connection.disconnect(nowait=True)

    async def attach(self, stream: str, channel: str, listener: Receiver) -> None:
        """Send a stream's messages to `listener`. Returns when Redis has confirmed the subscription.

        Raises `Unavailable` when it does not within 10 s; the listener then has to be detached.
        """
        state = self._streams.get(stream)
        if state is None:
            state = self._streams[stream] = _Stream(channel)
        state.listeners.add(listener)
        self._note(stream)
        try:
            async with asyncio.timeout(CONFIRM_TIMEOUT_S):
                await state.open.wait()
        except TimeoutError:
            raise Unavailable(f"the event subscription was not confirmed within {CONFIRM_TIMEOUT_S:.0f} s") from None

    def detach(self, stream: str, listener: Receiver) -> None:
        """Send a stream's messages to `listener` no more."""
        state = self._streams.get(stream)
        if state is not None:
            state.listeners.discard(listener)
            if not state.listeners:
                self._note(stream)

    def _note(self, stream: str) -> None:
        self._changed.add(stream)
        self._work.set()

    def _forget_connection(self) -> None:
        # What was subscribed to is not any more; all that is wanted will be written on the next connection.
        self._connected = False
        self._streams = {name: state for name, state in self._streams.items() if state.listeners}
        for state in self._streams.values():
            state.sent, state.unconfirmed = False, 0
            state.open.clear()
        self._changed = set(self._streams)
        self._work.set()

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            changed, self._changed = self._changed, set()
            states = {name: state for name in changed if (state := self._streams.get(name)) is not None}
            await self._leave({name: state for name, state in states.items() if state.sent and not state.listeners})
            await self._join({name: state for name, state in states.items() if state.listeners and not state.sent})
            for name, state in states.items():
                self._drop_idle(name, state)

    async def _leave(self, states: dict[str, _Stream]) -> None:
        for state in states.values():
            state.sent = False
            state.open.clear()
        await self._send("UNSUBSCRIBE", list(states))

    async def _join(self, states: dict[str, _Stream]) -> None:
        for state in states.values():
            state.sent = True
            state.unconfirmed += 1
        await self._send("SUBSCRIBE", list(states))

    async def _send(self, command: str, streams: Sequence[str]) -> None:
        for start in range(0, len(streams), SUBSCRIBE_CHUNK):
            names = map(keys.events, streams[start : start + SUBSCRIBE_CHUNK])
            await self._connection.send_command(command, *names, check_health=False)

    def _drop_idle(self, name: str, state: _Stream) -> None:
        if not state.listeners and not state.sent and not state.unconfirmed and self._streams.get(name) is state:
            del self._streams[name]

    async def _read(self) -> None:
        is_silent = False
        delivered = 0
        while True:
            message = await self._connection.read_response(timeout=SILENCE_S, disconnect_on_error=False)
            if message is not None:
                is_silent = False
                delivered += self._dispatch(message)
                if delivered >= TURN:
                    delivered = 0
                    await asyncio.sleep(0)
            elif is_silent:
                raise RedisConnectionError(f"no answer to PING within {SILENCE_S:.0f} s")
            else:
                is_silent = True
                await self._connection.send_command("PING", check_health=False)

    def _dispatch(self, message: list[bytes | int]) -> int:
        """Pass a message on. Returns what it cost, in deliveries."""
        kind = message[0]
        if kind not in (b"message", b"subscribe"):
            return 1
        name = bytes(message[1]).decode().removeprefix(keys.events(""))
        state = self._streams.get(name)
        if state is None:
            return 1
        if kind == b"subscribe":
            self._confirm(name, state)
        elif state.listeners:
            event = parse_message(state.channel, bytes(message[2]))
            for listener in tuple(state.listeners):
                listener.take(name, event)
        return 1 + len(state.listeners)

    def _confirm(self, name: str, state: _Stream) -> None:
        state.unconfirmed -= 1
        if state.unconfirmed:
            return
        if state.sent:
            state.open.set()
            for listener in tuple(state.listeners):
                listener.resync(name)
        self._drop_idle(name, state)
