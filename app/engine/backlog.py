"""What a client has still to read: events, and texts of the caller's own between them, bounded in number and bytes."""

from __future__ import annotations

from collections import deque

from app.engine.events import Event


class Backlog:
    """A queue of one client. It is full at `max_items` or `max_bytes`; whoever fills it must look first."""

    __slots__ = ("_items", "_size_bytes", "max_bytes", "max_items")

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self.max_items = max_items
        self.max_bytes = max_bytes
        self._items: deque[Event | str] = deque()
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_full(self) -> bool:
        """Whether there is no place for another live event."""
        return len(self._items) >= self.max_items or self._size_bytes >= self.max_bytes

    @property
    def has_room(self) -> bool:
        """Whether there is place for an event that can wait: those take at most half."""
        return 2 * len(self._items) < self.max_items and 2 * self._size_bytes < self.max_bytes

    def append(self, item: Event | str) -> None:
        """Add an event or a text at the end."""
        self._items.append(item)
        self._size_bytes += _size_bytes(item)

    def take(self, max_items: int, max_bytes: int) -> list[Event | str]:
        """Take from the front up to `max_items`, and no more after `max_bytes` are reached; at least one."""
        taken: list[Event | str] = []
        size_bytes = 0
        while self._items and len(taken) < max_items and size_bytes < max_bytes:
            item = self._items.popleft()
            size_bytes += _size_bytes(item)
            taken.append(item)
        self._size_bytes -= size_bytes
        return taken

    def drop(self, channel: str) -> None:
        """Forget the events of a channel."""
        kept = [item for item in self._items if isinstance(item, str) or item.channel != channel]
        self.clear()
        for item in kept:
            self.append(item)

    def clear(self) -> None:
        """Forget everything."""
        self._items.clear()
        self._size_bytes = 0


def _size_bytes(item: Event | str) -> int:
    return len(item) if isinstance(item, str) else len(item.payload)
