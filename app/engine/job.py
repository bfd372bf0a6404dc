"""The record of a task: its status, the moves that are legal, its errors and its progress.

States and moves (each move is one Lua script, see `store/lua`):

    PENDING --claim--> STARTED --finish--> SUCCESS | FAILURE | CANCELLED
       ^  RETRY <--reschedule--|
       |____________________________________| handed back by a stopping worker, or sent away for its quota
    STARTED --suspend--> WAITING --resume--> PENDING
    (enqueued behind others) --> WAITING --resume--> PENDING
    WAITING --deadline passed, claim--> STARTED
    PENDING | RETRY | WAITING --cancel--> CANCELLED
    STARTED --lease ran out, claim--> STARTED (next attempt)
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic_core import from_json, to_json

from app.errors import MAX_ERROR_TEXT, NightshiftError, SoftTimeLimit
from app.telemetry import redact


class Status(StrEnum):
    """Where a task is in its life."""

    PENDING = "PENDING"
    STARTED = "STARTED"
    RETRY = "RETRY"
    WAITING = "WAITING"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    CANCELLED = "CANCELLED"

    @property
    def is_finished(self) -> bool:
        """Whether the task will never run again."""
        return self in FINISHED


FINISHED = frozenset({Status.SUCCESS, Status.FAILURE, Status.CANCELLED})


class _Sequence:
    """Numbers that only grow, 64 bits: Unix ms in the upper 48, a count within the ms in the lower 16."""

    def __init__(self) -> None:
        self._last = 0

    def __next__(self) -> int:
        self._last = max(self._last + 1, time.time_ns() // 1_000_000 << 16)
        return self._last


_sequence = _Sequence()


def new_task_id() -> str:
    """A task id: 32 hex digits, 16 that grow with time and 16 random, so that ids of one process sort as they were
    made."""
    return f"{next(_sequence):016x}{os.urandom(8).hex()}"


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """What an attempt died of, in a form that may be shown: redacted, at most 4,000 characters of text."""

    type: str
    message: str
    retryable: bool
    extra: dict[str, Any]

    @classmethod
    def of(cls, error: BaseException, *, retryable: bool) -> ErrorInfo:
        """Describe an exception."""
        extra = error.extra() if isinstance(error, NightshiftError) else {}
        text = _text_of(error) or ("the soft time limit was reached" if isinstance(error, SoftTimeLimit) else "")
        return cls(type(error).__name__, bound_text(redact(text)), retryable, extra)

    def to_json(self) -> bytes:
        """The stored form."""
        return to_json({"type": self.type, "message": self.message, "retryable": self.retryable, **self.extra})

    @classmethod
    def from_json(cls, data: bytes) -> ErrorInfo:
        """Read the stored form."""
        fields = from_json(data)
        kind, message, retryable = fields.pop("type"), fields.pop("message"), fields.pop("retryable", False)
        return cls(kind, message, retryable, fields)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task has come. `percent` is 0 to 100 and never goes back."""

    current: float
    total: float
    percent: float
    label: str
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A completed step. `number` counts from 0; `duration_s` is that of the run whose result was stored."""

    number: int
    name: str
    completed_at: datetime
    duration_s: float


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task as it stands in Redis. Times are aware and in UTC; `result` is only there when it was asked for."""

    task_id: str
    task: str
    queue: str
    status: Status
    user_id: str
    attempt: int
    max_attempts: int | None
    project_id: str | None
    parent_id: str | None
    root_id: str | None
    retry_of: str | None
    correlation_id: str | None
    tags: tuple[str, ...]
    priority: int
    progress: Progress | None
    error: ErrorInfo | None
    enqueued_at: datetime
    due_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    result: Any = None
    has_result: bool = False
    steps: tuple[Step, ...] = ()
    after: tuple[str, ...] = ()
    """The tasks after whose ends it begins."""
    label: str = ""
    """What it is to its parent."""
    waiting_for: dict[str, Any] | None = None
    """What a waiting task waits for: `kind`, `step`, `until`, and more by kind."""
    key: str | None = None
    behind: int | None = None
    """How many tasks must end before its gates let it run; None where it was not asked for, and for one let in."""

    @property
    def next_attempt_at(self) -> datetime | None:
        """When the task is due, while it is delayed or backing off."""
        return self.due_at if self.status in (Status.PENDING, Status.RETRY) else None


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # the task's own code again; its end must be written whatever it does
        return f"(its text cannot be made: {type(broken).__name__})"


def bound_text(text: str, limit: int = MAX_ERROR_TEXT) -> str:
    """`text`, or its beginning and a note of how much was left out, `limit` characters together at most.

    What UTF-8 cannot hold, such as a file name in another encoding, is written as `\\udcff`.
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= limit:
        return text
    note = f" … ({len(text)} characters in all)"
    return text[: limit - len(note)] + note


def fields_of(flat: list[bytes]) -> dict[str, str]:
    """A Redis hash, as scripts return it, as a dictionary."""
    return {flat[at].decode(): text_of(flat[at + 1]) for at in range(0, len(flat), 2)}


def text_of(value: bytes) -> str:
    """A stored value as text; a stock client may have brought in what is not UTF-8 (a pickled payload)."""
    return value.decode(errors="replace")


def record_of(task_id: str, fields: dict[str, str]) -> TaskRecord:
    """Build the record from the fields of its hash."""
    return TaskRecord(
        task_id=task_id,
        task=fields["task"],
        queue=fields["queue"],
        status=Status(fields["status"]),
        user_id=fields["user_id"],
        attempt=int(fields.get("attempt", 0)),
        max_attempts=int(fields["max_attempts"]) if "max_attempts" in fields else None,
        project_id=fields.get("project_id"),
        parent_id=fields.get("parent_id"),
        root_id=fields.get("root_id"),
        retry_of=fields.get("retry_of"),
        correlation_id=fields.get("correlation_id"),
        tags=tuple(tag for tag in fields.get("tags", "").split("\n") if tag),
        priority=int(fields.get("priority", 0)),
        progress=progress_of(fields),
        error=ErrorInfo.from_json(fields["error"].encode()) if fields.get("error") else None,
        enqueued_at=moment(fields["enqueued_at"]),
        due_at=moment(fields["due_at"]) if "due_at" in fields else None,
        started_at=moment(fields["started_at"]) if "started_at" in fields else None,
        finished_at=moment(fields["finished_at"]) if "finished_at" in fields else None,
        after=tuple(fields["after"].split("\n")) if "after" in fields else (),
        label=fields.get("label", ""),
        waiting_for=_waiting_for(fields),
        key=fields.get("key"),
        behind=int(fields["behind"]) if "behind" in fields else None,
    )


def _waiting_for(fields: dict[str, str]) -> dict[str, Any] | None:
    if "waiting_for" not in fields:
        return None
    return {**from_json(fields["waiting_for"]), "until": moment(fields["wait_until"])}


def steps_of(fields: dict[str, str]) -> tuple[Step, ...]:
    """Completed steps, in order, from the facts under their numbers; other fields are left alone."""
    facts = {int(field): from_json(data) for field, data in fields.items() if field.isdigit()}
    return tuple(
        Step(number, item["name"], moment(item["at_ms"]), float(item["duration_s"]))
        for number, item in sorted(facts.items())
    )


def progress_of(fields: dict[str, str]) -> Progress | None:
    """The stored progress, if any was reported."""
    if "progress" not in fields:
        return None
    data = from_json(fields["progress"])
    return Progress(data["current"], data["total"], data["percent"], data["label"], moment(fields["progress_at"]))


def moment(unix_ms: str | float) -> datetime:
    """Unix milliseconds as an aware UTC time."""
    return datetime.fromtimestamp(float(unix_ms) / 1000, UTC)
