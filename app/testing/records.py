"""What the harness keeps of a task, in the place of its Redis keys."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from app.engine.job import FINISHED, Status

MAX_SHOWN_CHARS = 160


@dataclass(slots=True, eq=False)
class Record:
    """A task. `fields` are those of its hash, `steps` that of its steps; `due_ms` is its score, None while it runs,
    while its gates hold it, or after its end."""

    id: str
    fields: dict[str, str]
    payload: bytes
    order: int
    due_ms: int | None
    delay_ms: int = 0
    result: bytes = b""
    steps: dict[str, bytes] = field(default_factory=dict)
    inbox: dict[str, deque[bytes]] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    waiters: dict[str, None] = field(default_factory=dict)
    children: list[str] = field(default_factory=list)
    gates: tuple[tuple[str, int], ...] = ()
    """Names and limits of the gates in which it stands until its end."""

    @property
    def status(self) -> Status:
        """Where the task is in its life."""
        return Status(self.fields["status"])

    @property
    def finished(self) -> bool:
        """Whether it will never run again."""
        return self.status in FINISHED

    def holds(self, token: int) -> bool:
        """Whether the attempt with this token may write."""
        return self.status is Status.STARTED and self.fields.get("lease") == str(token)


@dataclass(frozen=True, slots=True)
class Note:
    """An event as it was appended. `channel` is '' for the task's own channels, '.' for `task:<id>` alone."""

    at_ms: int
    task_id: str
    channel: str
    type: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the story of a run, for a person."""

    at_ms: int
    task_id: str
    text: str


def shown(data: bytes) -> str:
    """The beginning of some JSON."""
    text = data.decode(errors="replace")
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"
