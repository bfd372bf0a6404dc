"""What became of a task in the harness, and how a failed test tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar, cast

from pydantic_core import from_json, to_json

from app.engine.approval_desk import Approval, approval_of
from app.engine.job import ErrorInfo, Progress, Status, progress_of, steps_of
from app.engine.registry import Task
from app.engine.wire import decode_payload
from app.store import keys
from app.testing.errors import HarnessError
from app.testing.limits import QuotaUse
from app.testing.memory import MemoryScripts
from app.testing.records import Line, Note, Record

R = TypeVar("R")

MAX_STORY_LINES = 100


@dataclass(frozen=True, slots=True)
class SentEvent:
    """An event that was appended. `channel` is None for the task's own; `after` counts from the start of the run."""

    type: str
    payload: dict[str, Any]
    channel: str | None
    after: timedelta


@dataclass(frozen=True, slots=True)
class StoredStep:
    """A step or a wait that is over. `number` counts from 0; `failed` for a wait that ended in an error."""

    number: int
    name: str
    result: Any
    failed: bool


@dataclass(frozen=True, slots=True)
class Child:
    """A task that the task started."""

    task_id: str
    task: str
    params: dict[str, Any]
    status: Status
    delay: timedelta
    """How long after it was started it was due."""
    key: str | None = None
    """What it is under."""


@dataclass(frozen=True, repr=False)
class Run(Generic[R]):
    """A task as it stood when it had ended, or when the test asked. `str(run)` tells the whole story."""

    task: Task[Any, R]
    task_id: str
    status: Status
    error: ErrorInfo | None
    """What it died of, or, before a retry, its last attempt did."""
    attempts: int
    entries: int
    """How often it was entered from its top: attempts, and resumptions after waits."""
    steps: tuple[StoredStep, ...]
    waits: tuple[dict[str, Any], ...]
    """Each time it began to wait: `kind`, `step`, `until` and more by kind."""
    started: tuple[Child, ...]
    history: tuple[SentEvent, ...]
    """Every event of its channel, also those of the engine."""
    events: tuple[SentEvent, ...]
    """What it sent with `ctx.emit`, on whatever channel."""
    approvals: tuple[Approval, ...]
    """What was asked of persons, and what became of it; also by tasks that it started."""
    progress: Progress | None
    quotas: tuple[QuotaUse, ...]
    untaken: tuple[tuple[str, Any], ...]
    """Events from outside that it did not take."""
    elapsed: timedelta
    """Time that passed on the fake clock, until its end."""
    story: tuple[str, ...]
    stored_result: bytes

    @property
    def result(self) -> R:
        """What it returned, of its result type. Raises an AssertionError with the story when there is nothing."""
        if self.status is not Status.SUCCESS:
            raise HarnessError(f"expected a result, but {self}")
        return cast(R, self.task.spec.result.validate_json(self.stored_result))

    @property
    def waiting_for(self) -> dict[str, Any] | None:
        """What it waits for now."""
        return self.waits[-1] if self.status is Status.WAITING else None

    def __repr__(self) -> str:
        counts = f"{self.attempts} attempts, {len(self.steps)} steps, {self.elapsed} on the clock"
        failed = f": {self.error.type}: {self.error.message}" if self.error is not None else ""
        return f"<Run {self.task.name} is {self.status}{failed} ({counts})>"

    def __str__(self) -> str:
        story, more = self.story, len(self.story) - MAX_STORY_LINES
        if more > 0:
            half = MAX_STORY_LINES // 2
            story = (*story[:half], f"  … {more} lines …", *story[-half:])
        return "\n".join([repr(self)[5:-1], *story])


def run_of(
    task: Task[Any, R], ledger: MemoryScripts, task_id: str, start_ms: int, quotas: Sequence[QuotaUse]
) -> Run[R]:
    """A picture of a task now."""
    record = ledger.records[task_id]
    fields, own = record.fields, [note for note in ledger.notes if note.task_id == task_id]
    end_ms = int(fields.get("finished_at", ledger.now_ms))
    return Run(
        task=task,
        task_id=task_id,
        status=record.status,
        error=ErrorInfo.from_json(fields["error"].encode()) if fields.get("error") else None,
        attempts=int(fields["attempt"]),
        entries=sum(note.type == "task_started" for note in own),
        steps=_steps(record),
        waits=tuple(from_json(note.payload)["waiting_for"] for note in own if note.type == "task_waiting"),
        started=tuple(_child(ledger.records[child]) for child in record.children),
        history=tuple(_sent(note, record, start_ms) for note in own if note.channel in ("", ".")),
        events=tuple(_sent(note, record, start_ms) for note in own if note.channel),
        approvals=tuple(approval_of(key, asked) for key, asked in ledger.approvals.records.items()),
        progress=progress_of(fields),
        quotas=tuple(quotas),
        untaken=tuple((name, from_json(data)) for name, kept in record.inbox.items() for data in kept),
        elapsed=timedelta(milliseconds=end_ms - start_ms),
        story=tuple(_told(line, ledger.records[line.task_id], task_id, start_ms) for line in ledger.story),
        stored_result=_result(record),
    )


def _steps(record: Record) -> tuple[StoredStep, ...]:
    facts = {name: data.decode() for name, data in record.steps.items() if name.isdigit()}
    return tuple(
        StoredStep(
            number=step.number,
            name=step.name,
            result=from_json(record.steps[f"result:{step.number}"]),
            failed=from_json(facts[str(step.number)]).get("failed", False),
        )
        for step in steps_of(facts)
    )


def _child(record: Record) -> Child:
    params, delay = decode_payload(record.payload).kwargs, timedelta(milliseconds=record.delay_ms)
    return Child(record.id, record.fields["task"], params, record.status, delay, record.fields.get("key"))


def _sent(note: Note, record: Record, start_ms: int) -> SentEvent:
    project = f"project:{keys.pair(record.fields['user_id'], '')}"
    channel = None if note.channel in ("", ".") else note.channel
    if channel is not None and channel.startswith(project):
        channel = f"project:{channel.removeprefix(project)}"
    return SentEvent(note.type, from_json(note.payload), channel, timedelta(milliseconds=note.at_ms - start_ms))


def _result(record: Record) -> bytes:
    """The JSON that the task returned."""
    return to_json(from_json(record.result)["r"]) if record.status is Status.SUCCESS else b""


def _told(line: Line, record: Record, task_id: str, start_ms: int) -> str:
    after = timedelta(milliseconds=line.at_ms - start_ms)
    who = "" if line.task_id == task_id else f"    {record.fields['task']} {line.task_id[-6:]} "
    return f"  +{after} {who}{line.text}"
