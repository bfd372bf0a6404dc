"""The tasks of a run, in memory: claiming, ending and cancelling them, under a clock that a test moves.

`dies` lets a test end the worker at a write: *before* it, when the effect has happened and is not recorded, or *after*
it. From then on that attempt can write nothing; the task is ready again at once, which costs it no try.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum

from pydantic_core import from_json, to_json

from app.engine.attempt import Claim
from app.engine.job import Status, moment
from app.store.scripts import CLAIM_FIELDS
from app.testing.gates import Gates
from app.testing.records import Line, Note, Record

CANCELLED_ERROR = b'{"type":"TaskCancelled","message":"cancelled","retryable":false}'
END = -1
"""In the place of a step's number: the end of the task."""


class Moment(StrEnum):
    """When a worker dies: before or after a write."""

    BEFORE = "before"
    AFTER = "after"


Dies = Callable[[Moment, str, int], bool]
"""Whether the worker of a task (its id) dies at the write of a step (its number, or `END`)."""


class Ledger:
    """Records, events and story of a run. `now_ms` is the clock, Unix ms."""

    def __init__(self, now_ms: int, dies: Dies) -> None:
        self.now_ms = now_ms
        self.records: dict[str, Record] = {}
        self.gates = Gates(self.records)
        self.keyed: dict[tuple[str, str], tuple[str, str]] = {}
        """Fingerprint and task by user and idempotency key."""
        self.notes: list[Note] = []
        self.story: list[Line] = []
        self.changed = asyncio.Event()
        """Set when a task may have become ready."""
        self.stop: Callable[[str, bool], None] = lambda task_id, cancelled: None
        """Told which running task is cancelled (True), or has lost its worker."""
        self.asked: Callable[[str], None] = lambda approval_id: None
        """Told which approval a task has asked for."""
        self.ended: Callable[[str], None] = lambda task_id: None
        """Told which task has ended."""
        self._dies = dies

    def claim_due(self) -> list[Claim]:
        """Take all tasks whose time has come, a higher priority first; see `claim.lua`."""
        for record in self._due():
            if record.status is Status.WAITING and not self.gates.pass_by(record):
                # It has waited for those before it as long as it may, but it is not its turn.
                self._go_on(record)
        due = self._due()
        due.sort(key=lambda record: (-int(record.fields.get("priority", 0)), record.due_ms, record.order))
        return [self._claim(record) for record in due]

    def _due(self) -> list[Record]:
        times = [(record, record.due_ms) for record in self.records.values()]
        return [record for record, due_ms in times if due_ms is not None and due_ms <= self.now_ms]

    def next_due_ms(self) -> int | None:
        """When the next task is due."""
        return min((record.due_ms for record in self.records.values() if record.due_ms is not None), default=None)

    def tell(self, record: Record, text: str) -> None:
        """Add to the story."""
        self.story.append(Line(self.now_ms, record.id, text))

    def _claim(self, record: Record) -> Claim:
        if record.status is Status.WAITING:
            stop_waiting(record)
        seen = {name: record.fields[name] for name in CLAIM_FIELDS if name in record.fields}
        attempt = int(record.fields["attempt"]) + (0 if "resumes" in record.fields else 1)
        token = int(record.fields.get("lease", 1)) + 1
        record.fields.pop("resumes", None)
        record.fields |= {"status": "STARTED", "attempt": str(attempt), "lease": str(token)}
        record.fields["started_at"] = str(self.now_ms)
        record.due_ms = None
        self.note(record, "", "task_started", to_json({"attempt": attempt}))
        self.tell(record, f"is entered, attempt {attempt}")
        return Claim(record.id, record.fields["queue"], record.payload, token, attempt, False, self.now_ms, seen)

    def settle(self, record: Record, status: str, result: bytes, error: bytes) -> None:
        record.fields |= {"status": str(status), "finished_at": str(self.now_ms), "error": error.decode()}
        record.result, record.due_ms = result, None
        self.ended(record.id)
        for waiter in [self.records[task_id] for task_id in record.waiters]:
            failed = status != Status.SUCCESS and waiter.fields.get("fail_fast") == "1"
            self.come_about(waiter, f"task:{record.id}", at_once=failed)
        record.waiters.clear()
        for other in self.gates.leave(record):
            self._admit(other)
        self.changed.set()

    def come_about(self, record: Record, subject: str, *, at_once: bool = False) -> None:
        if subject not in record.pending:
            return
        record.pending.discard(subject)
        if (at_once or not record.pending) and record.status is Status.WAITING:
            self._go_on(record)

    def _go_on(self, record: Record) -> None:
        """A waiting task has something to do again, unless it has not begun and its gates hold it."""
        stop_waiting(record)
        record.fields |= {"status": "PENDING", "due_at": str(self.now_ms)}
        record.due_ms = self.now_ms
        if not self.gates.pass_by(record):
            self.park(record)
        self.changed.set()

    def park(self, record: Record) -> None:
        """Its gates hold a task: it is due when they let it in."""
        record.due_ms = None
        self.tell(record, "waits for its turn")

    def _admit(self, record: Record) -> None:
        """Its gates let a task in: it is ready, or due when it was to be."""
        due_ms = int(record.fields.get("due_at", 0))
        if due_ms <= self.now_ms:
            due_ms = self.now_ms
            record.fields["due_at"] = str(due_ms)
        record.due_ms = due_ms
        self.tell(record, "has its turn")

    def cancel_task(self, task_id: str, *, is_descendant: bool) -> bytes:
        record = self.records.get(task_id)
        if record is None:
            return b"missing"
        if record.finished and record.status is not Status.CANCELLED and not is_descendant:
            return b"finished"
        state = self._cancel_this(record)
        for child in record.children:
            self.cancel_task(child, is_descendant=True)
        return state

    def _cancel_this(self, record: Record) -> bytes:
        if record.finished:
            return b"finished"
        self.tell(record, "is cancelled")
        if record.status is Status.STARTED:
            record.fields["cancel"] = "1"
            self.stop(record.id, True)
            return b"requested"
        if record.status is Status.WAITING:
            stop_waiting(record)
        result = to_json({"f": record.fields["task"], "s": False, "r": from_json(CANCELLED_ERROR)})
        self.settle(record, Status.CANCELLED, result, CANCELLED_ERROR)
        self.note(record, "", "task_cancelled", b"{}")
        return b"cancelled"

    def note(self, record: Record, channel: str, kind: str, payload: bytes) -> None:
        self.notes.append(Note(self.now_ms, record.id, channel, kind, payload))

    def dies_at(self, when: Moment, record: Record, number: int) -> bool:
        if not self._dies(when, record.id, number):
            return False
        what = "its end" if number == END else f"step {number + 1}"
        self.tell(record, f"its worker dies {when} {what} is stored")
        record.fields |= {"status": "PENDING", "resumes": "1"}
        record.due_ms = self.now_ms
        self.stop(record.id, False)
        self.changed.set()
        return True


def stop_waiting(record: Record) -> None:
    """Take a task out of its wait, whatever comes of it next."""
    record.pending.clear()
    for name in ("waiting_for", "wait_until", "fail_fast"):
        record.fields.pop(name, None)


def iso(unix_ms: int) -> str:
    """Unix ms as RFC 3339 in UTC, as the scripts write it."""
    return moment(unix_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")
