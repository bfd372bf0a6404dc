"""Dead letters as values: what is kept of a task that failed for good, and what a list of them is narrowed to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic_core import from_json

from app.engine.job import ErrorInfo, Step, moment
from app.errors import Conflict, NightshiftError, NotFound

# The indices are in the order of their text: these have as many digits as every time in them.
_FIRST_MS, _LAST_MS = 10**12, 10**13 - 1


class LetterReplayed(Conflict):
    """The dead letter has become another task already, which `replayed_as` names."""

    title = "Replayed already"

    def __init__(self, task_id: str, replayed_as: str) -> None:
        super().__init__(f"dead letter {task_id} was replayed already, as task {replayed_as}")
        self.replayed_as = replayed_as

    def extra(self) -> dict[str, Any]:
        """The id of the new task."""
        return {"replayed_as": self.replayed_as}


def no_letter(task_id: str, replayed_as: str) -> NightshiftError:
    """Why there is no such dead letter, as an error: it was replayed, or ('') nobody knows of it."""
    return LetterReplayed(task_id, replayed_as) if replayed_as else NotFound(f"no dead letter {task_id}")


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
    steps: tuple[Step, ...]
    """The completed steps, which a replay does not run again."""


@dataclass(frozen=True, slots=True)
class DeadLetterPage:
    """A page of dead letters, newest first. `next_cursor` is None at the end; a page before it may be short."""

    items: list[DeadLetter]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """What dead letters are narrowed to; None leaves a field open. Times are aware: `failed_after` is the first that
    counts, `failed_before` the first that does not."""

    queue: str | None = None
    task: str | None = None
    project_id: str | None = None
    tag: str | None = None
    error_type: str | None = None
    failed_after: datetime | None = None
    failed_before: datetime | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it lets all dead letters through."""
        return self == ALL_LETTERS

    def pairs(self) -> list[tuple[str, str]]:
        """Fields and wanted values, without the times."""
        names = ("queue", "task", "project_id", "tag", "error_type")
        return [(name, value) for name in names if (value := getattr(self, name)) is not None]

    def bounds(self, cursor: str) -> tuple[str, str]:
        """Behind which entry of the index to start, and at which to end; '' leaves a side open."""
        before = _index_time(self.failed_before)
        # A cursor of another list may stand in front of what is wanted here.
        behind = min(cursor, before) if cursor and before else cursor or before
        return behind, _index_time(self.failed_after)


ALL_LETTERS = LetterFilter()


def _index_time(at: datetime | None) -> str:
    return "" if at is None else str(min(max(int(at.timestamp() * 1000), _FIRST_MS), _LAST_MS))


def letter_of(task_id: str, fields: dict[str, str]) -> DeadLetter:
    """A dead letter from the fields of its hash."""
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


def history_of(fields: dict[str, str]) -> tuple[PastAttempt, ...]:
    """The attempts before the last, oldest first."""
    return tuple(PastAttempt(**item) for item in from_json(f"[{fields.get('history', '')}]"))
