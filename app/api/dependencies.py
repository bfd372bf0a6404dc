"""What routes are handed: the engine, who owns what they ask for, and parameters that many of them share."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path
from pydantic import BeforeValidator, Field
from starlette.requests import HTTPConnection

from app.api.lifecycle import Shutdown
from app.api.principal import Principal
from app.engine.queue import MAX_LIMIT
from app.engine.service import Engine


def engine_of(connection: HTTPConnection) -> Engine:
    """The engine of the application that serves this request or WebSocket."""
    engine: Engine = connection.app.state.engine
    return engine


def shutdown_of(connection: HTTPConnection) -> Shutdown:
    """The shutdown that whoever keeps a request open has to watch."""
    shutdown: Shutdown = connection.app.state.shutdown
    return shutdown


async def _engine(connection: HTTPConnection) -> Engine:
    # A coroutine: FastAPI would run a plain function in a thread.
    return engine_of(connection)


EngineDep = Annotated[Engine, Depends(_engine)]


def owner_of(caller: Principal) -> str | None:
    """The `user_id` that the engine compares owners with: None for an admin, who sees everybody's."""
    return None if caller.is_admin else caller.user_id


TaskId = Annotated[str, Path(max_length=128, description="The id that the task was given.", examples=["0193b1c4…"])]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT, description="Items of a page, at most.")]
Cursor = Annotated[
    str,
    Field(
        pattern=r"^(\d{1,15}:[^\x00-\x1f\x7f]{1,128})?$",
        description="`next_cursor` of the page before; nothing for the first page.",
    ),
]
Label = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,128}$")]
"""Project ids and tags: up to 128 characters, no control characters."""
NoneIfEmpty = BeforeValidator(lambda value: value or None)
"""A query parameter that is there without a value does not narrow."""
