"""One client's events: many channels, replayed and then live, handed out as one sequence.

A channel of a listener is either *live* or *replaying*. While it replays, live messages are put aside; when they are
too many they are dropped and read from the log again. Replay begins when the hub says that the stream is open, so
nothing can fall between the two. Failures:

- the subscription was lost and is back: the channel replays from the last id it handed out;
- the reader is slow: replay waits for it, since the log keeps the rest, and leaves room for live events. Those cannot
  wait, so a listener with more than `max_unread` of them is over (`SlowListener`), forgets them and must resume later.
  It never holds up another;
- the log was cut while a channel was replaying or away: the listener is over too, since the client must hear of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from loguru import logger
from redis.exceptions import RedisError

from app.engine.backlog import Backlog
from app.engine.events import PAGE, Event, Position, Start, event_key
from app.engine.hub import EventHub

MAX_UNREAD = 1_000
"""Events a client may be behind before it is sent away to resume later."""
MAX_UNREAD_BYTES = 8 * 1024 * 1024
"""The same in bytes of payload, for clients of large events."""
MAX_ASIDE = 100
"""Live events that a replaying channel keeps; it can read them again."""
BATCH = 100
BATCH_BYTES = 256 * 1024
"""What `get` hands out at once, at most: a reader that is blocked on it holds no more."""
REPLAY_PAUSE_S = 0.2


class SlowListener(Exception):
    """The reader is too far behind, or the log was cut before it. It should close and resume from the last id it
    saw."""


@dataclass(slots=True, eq=False)
class _Feed:
    """One channel of one listener. `position` is that of the last event handed out, or the one to begin behind; None
    until it is known. `is_told`: the client knows of a gap behind it."""

    channel: str
    position: Position | None = None
    replay: asyncio.Task[None] | None = None
    aside: deque[Event] = field(default_factory=deque)
    again: bool = False
    is_told: bool = True


class Listener:
    """One client's events. `add` and `remove` channels at any time; `get` hands out what has come. For one reader.

    Close it when done. `over` is done when it is over, for a reader that is blocked elsewhere than in `get`.
    """

    def __init__(
        self, hub: EventHub, *, max_unread: int = MAX_UNREAD, max_unread_bytes: int = MAX_UNREAD_BYTES
    ) -> None:
        self.over: asyncio.Future[SlowListener] = asyncio.get_running_loop().create_future()
        self._hub = hub
        self._feeds: dict[str, _Feed] = {}
        self._unread = Backlog(max_unread, max_unread_bytes)
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    async def add(self, channel: str, stream: str, after: str | None = None) -> Start:
        """Follow a channel: everything behind the id `after`, or, where None, what comes from now on.

        A channel that is followed already begins anew: what is unread of it is dropped. What the caller `put`s before
        it awaits anything stands before the channel's first event. Raises `InvalidInput`, `Unavailable`, and what
        redis-py raises while Redis is away.
        """
        self.remove(stream)
        feed = self._feeds[stream] = _Feed(channel)
        try:
            await self._hub.attach(stream, channel, self)
            start = await self._hub.log.start(stream, after)
        except BaseException:
            self.remove(stream)
            raise
        feed.position = event_key(start.last_id)
        self.resync(stream)
        return start

    def remove(self, stream: str) -> None:
        """Follow a channel no more, and forget what is unread of it."""
        feed = self._feeds.pop(stream, None)
        if feed is not None:
            if feed.replay is not None:
                feed.replay.cancel()
            self._unread.drop(feed.channel)
            self._make_room()
            self._hub.detach(stream, self)

    def put(self, note: str) -> None:
        """Hand out a text of the caller's own in its place between the events."""
        self._unread.append(note)
        self._news.set()

    async def get(self) -> list[Event | str]:
        """Wait until there is something and take it: up to 100 items or about 256 KiB, oldest first within a channel.

        Raises `SlowListener` when over.
        """
        while not self._unread and not self.over.done():
            self._news.clear()
            await self._news.wait()
        if self.over.done():
            raise self.over.result()
        items = self._unread.take(BATCH, BATCH_BYTES)
        self._make_room()
        return items

    def close(self) -> None:
        """Leave all channels."""
        for stream in tuple(self._feeds):
            self.remove(stream)

    def take(self, stream: str, event: Event) -> None:
        """A live message (called by the hub)."""
        feed = self._feeds.get(stream)
        if feed is None or self.over.done():
            return
        if feed.position is not None and feed.replay is None:
            if self._unread.is_full:
                self._fail(f"more than {self._unread.max_items} events or {self._unread.max_bytes} bytes behind")
            else:
                self._push(feed, event)
            return
        if len(feed.aside) >= MAX_ASIDE:
            feed.aside.clear()
            feed.again = True
        feed.aside.append(event)

    def resync(self, stream: str) -> None:
        """Read a channel from its last id up to now, then go live (called by the hub after a reconnect)."""
        feed = self._feeds.get(stream)
        if feed is None or feed.position is None or self.over.done():
            return
        if feed.replay is not None:
            feed.again = True
            return
        feed.replay = asyncio.get_running_loop().create_task(self._replay(feed, stream))

    async def _replay(self, feed: _Feed, stream: str) -> None:
        try:
            while not self.over.done():
                try:
                    if await self._catch_up(feed, stream):
                        return
                except (RedisError, OSError) as error:
                    logger.debug("replay of {} interrupted, reading on: {}", feed.channel, error)
                    await asyncio.sleep(REPLAY_PAUSE_S)
        except Exception:
            # The edge of a background task. The client reads on elsewhere rather than with a hole.
            logger.exception("replay of {} failed", feed.channel)
            self._fail("a replay failed")
        finally:
            feed.replay = None

    async def _catch_up(self, feed: _Feed, stream: str) -> bool:
        """Read one page. True when the channel has become live."""
        assert feed.position is not None
        feed.again = False
        events, gap = await self._hub.log.read_on(stream, feed.channel, feed.position)
        if gap and not feed.is_told:
            self._fail(f"events of {feed.channel} were dropped before they could be read")
            return True
        for event in events:
            while not self._unread.has_room:
                self._room.clear()
                await self._room.wait()
            self._push(feed, event)
        if len(events) == PAGE or feed.again:
            return False
        while feed.aside:
            self._push(feed, feed.aside.popleft())
        return True

    def _push(self, feed: _Feed, event: Event) -> None:
        if feed.position is None or event.key > feed.position:
            feed.position = event.key
            feed.is_told = False
            self._unread.append(event)
            self._news.set()

    def _make_room(self) -> None:
        if self._unread.has_room:
            self._room.set()

    def _fail(self, reason: str) -> None:
        if not self.over.done():
            self.over.set_result(SlowListener(reason))
            self._unread.clear()
            self._make_room()
            self._news.set()
