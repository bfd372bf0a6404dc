"""Dead letters: tasks that failed for good, kept with payload, error, traceback and the errors of all their
attempts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic_core import from_json

from app.engine import wire
from app.engine.job import ErrorInfo, fields_of, moment, text_of
from app.engine.queue import MAX_LIMIT
from app.errors import InvalidInput, NotFound, UndecodablePayload
from app.store import keys
from app.store.scripts import Scripts


@dataclass(frozen=True, slots=True)
class PastAttempt:
    """An attempt that failed and was followed by another."""

    attempt: int
    at: str
    error: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A task that failed for good, as it stands in a list."""

    task_id: str
    task: str
    queue: str
    user_id: str
    project_id: str | None
    correlation_id: str | None
    tags: tuple[str, ...]
    error: ErrorInfo
    attempts: int
    enqueued_at: datetime
    failed_at: datetime


@dataclass(frozen=True, slots=True)
class OpenedLetter:
    """A dead letter with all that is kept of it. `params` is None where the payload could not be read."""

    letter: DeadLetter
    params: dict[str, Any] | None
    traceback: str
    history: tuple[PastAttempt, ...]


@dataclass(frozen=True, slots=True)
class DeadLetterPage:
    """A page of dead letters, newest first."""

    items: list[DeadLetter]
    next_cursor: str | None


class DeadLetters:
    """Look at dead letters. `user_id=None` stands for an administrator, who sees all."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def page(
        self,
        *,
        user_id: str | None,
        queue: str | None = None,
        task: str | None = None,
        cursor: str = "",
        limit: int = 50,
    ) -> DeadLetterPage:
        """A page, newest first. Raises `InvalidInput` for a wrong limit."""
        if not 1 <= limit <= MAX_LIMIT:
            raise InvalidInput(f"limit={limit}: expected 1 to {MAX_LIMIT}", pointer="limit")
        index = keys.ALL_DEAD if user_id is None else keys.dead_of_user(user_id)
        wanted = [(name, value) for name, value in (("queue", queue), ("task", task)) if value]
        next_cursor, rows = await self._scripts.list_dead_letters(index, cursor, limit, wanted)
        return DeadLetterPage([_letter(row.decode(), fields_of(fields)) for row, fields in rows], next_cursor or None)

    async def get(self, task_id: str, *, user_id: str | None) -> OpenedLetter:
        """One dead letter. Raises `NotFound`."""
        stored = await self._scripts.redis.execute_command("HGETALL", keys.dead_letter(task_id))
        fields = {name.decode(): text_of(value) for name, value in stored.items()}
        if not fields or user_id not in (None, fields["user_id"]):
            raise NotFound(f"no dead letter {task_id}")
        return OpenedLetter(
            letter=_letter(task_id, fields),
            params=_params(fields["payload"]),
            traceback=fields["traceback"],
            history=tuple(PastAttempt(**item) for item in from_json(f"[{fields.get('history', '')}]")),
        )


def _letter(task_id: str, fields: dict[str, str]) -> DeadLetter:
    return DeadLetter(
        task_id=task_id,
        task=fields["task"],
        queue=fields["queue"],
        user_id=fields["user_id"],
        project_id=fields.get("project_id"),
        correlation_id=fields.get("correlation_id"),
        tags=tuple(tag for tag in fields.get("tags", "").split("\n") if tag),
        error=ErrorInfo.from_json(fields["error"].encode()),
        attempts=int(fields["attempt"]),
        enqueued_at=moment(fields["enqueued_at"]),
        failed_at=moment(fields["failed_at"]),
    )


def _params(payload: str) -> dict[str, Any] | None:
    try:
        return wire.decode_payload(payload.encode()).kwargs
    except UndecodablePayload:
        return None
