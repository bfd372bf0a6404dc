"""Which channels a caller may follow, and the stream behind each.

Domains add their own kinds: `CHANNELS.add("architect", authorise)` lets clients follow `architect:<session>`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from app.api.dependencies import owner_of
from app.api.principal import Principal
from app.engine.events import stream_name
from app.engine.service import Engine
from app.errors import NotFound

Authorise = Callable[[Principal, Engine, str], Awaitable[None]]
"""Returns when the caller may follow the channel of that name (what stands behind `kind:`), else raises `NotFound`."""


@dataclass(frozen=True, slots=True)
class _Kind:
    authorise: Authorise
    from_start: bool


@dataclass(frozen=True, slots=True)
class OpenChannel:
    """A channel that the caller may follow. `from_start`: who names no last id gets it from its first event."""

    channel: str
    stream: str
    from_start: bool


class Channels:
    """The kinds of channels that clients may follow."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    def add(self, kind: str, authorise: Authorise, *, from_start: bool = False) -> None:
        """Let clients follow `kind:<name>` where `authorise` allows it; without a last id from now on, or from its
        start."""
        self._kinds[kind] = _Kind(authorise, from_start)

    async def open(self, caller: Principal, engine: Engine, channel: str) -> OpenChannel:
        """What `caller` asks to follow. Raises `InvalidInput` for a malformed name, `NotFound` for one that does not
        exist or is somebody else's."""
        stream = stream_name(channel, caller.user_id)
        name, _, rest = channel.partition(":")
        kind = self._kinds.get(name)
        if kind is None:
            raise NotFound(f"no channel {channel!r}: expected one of {', '.join(sorted(self._kinds))}, and an id")
        await kind.authorise(caller, engine, rest)
        return OpenChannel(channel, stream, kind.from_start)


async def _own_task(caller: Principal, engine: Engine, name: str) -> None:
    await engine.tasks.get(name, user_id=owner_of(caller))


async def _own_user(caller: Principal, engine: Engine, name: str) -> None:
    if name != caller.user_id:
        raise NotFound(f"no channel 'user:{name}'")


async def _any_project(caller: Principal, engine: Engine, name: str) -> None:
    # A project's stream is the caller's own view of it, so there is nothing of others to see.
    return


CHANNELS = Channels()
# Whoever follows a task wants all of it, and it may be over before the frame that asks for it is here.
CHANNELS.add("task", _own_task, from_start=True)
CHANNELS.add("user", _own_user)
CHANNELS.add("project", _any_project)
