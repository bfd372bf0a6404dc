"""The tasks of a run, in memory: accepting, claiming, ending and cancelling them, under a clock that a test moves.

`dies` lets a test end the worker at a write: *before* it, when the effect has happened and is not recorded, or *after*
it. From then on that attempt can write nothing; the task is ready again at once, which costs it no try.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

from pydantic_core import from_json, to_json

from app.engine.attempt import Claim
from app.engine.job import Status, moment
from app.store.items import NewTask
from app.store.scripts import AFTER_MS, CLAIM_FIELDS
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
        self._keys: dict[tuple[str, str], tuple[str, str]] = {}
        self._order = 0

    def claim_due(self) -> list[Claim]:
        """Take all tasks whose time has come, a higher priority first; see `claim.lua`."""
        due = [record for record in self.records.values() if record.due_ms is not None and record.due_ms <= self.now_ms]
        due.sort(key=lambda record: (-int(record.fields.get("priority", 0)), record.due_ms, record.order))
        return [self._claim(record) for record in due]

    def next_due_ms(self) -> int | None:
        """When the next task is due."""
        return min((record.due_ms for record in self.records.values() if record.due_ms is not None), default=None)

    def tell(self, record: Record, text: str) -> None:
        """Add to the story."""
        self.story.append(Line(self.now_ms, record.id, text))

    def accept(self, group: Sequence[NewTask]) -> list[Any]:
        made: dict[tuple[str, str], tuple[str, str]] = {}
        rows: list[tuple[NewTask, str | None]] = []
        for task in group:
            key = (task.user_id, task.idempotency_key)
            old, refusal = self._known(task, made.get(key) or self._keys.get(key), {row.id for row in group})
            if refusal:
                return refusal
            rows.append((task, old))
            if task.idempotency_key:
                made[key] = (task.fingerprint, old or task.id)
        self._keys.update(made)
        for task, old in rows:
            if old is None:
                self._write(task)
        names = {task.id: old for task, old in rows if old is not None}
        for task, old in rows:
            if old is None and "after" in self.records[task.id].fields:
                self._begin_after(self.records[task.id], names)
        return [b"ok", self.now_ms, *([(old or task.id).encode(), int(old is None)] for task, old in rows)]

    def _known(self, task: NewTask, keyed: tuple[str, str] | None, group: set[str]) -> tuple[str | None, list[Any]]:
        """The id of the task that this one is already, or why it is refused."""
        if task.idempotency_key and keyed is not None:
            same = keyed[0] == task.fingerprint
            return keyed[1], [] if same else [b"conflict", task.idempotency_key.encode()]
        if task.id in self.records:
            return task.id, []
        if task.letter:
            return None, [b"replayed", task.letter.encode(), b""]
        return None, self._refuse_after(task, group) or self._refuse_child(task)

    def _refuse_after(self, task: NewTask, group: set[str]) -> list[Any]:
        for task_id in _extra(task).get("after", "").split("\n"):
            there = self.records.get(task_id)
            if task_id and task_id not in group and (there is None or there.fields["user_id"] != task.user_id):
                return [b"missing", task_id.encode()]
        return []

    def _refuse_child(self, task: NewTask) -> list[Any]:
        parent = self.records.get(task.parent_id)
        if parent is None:
            return []
        if task.parent_token is not None and not parent.holds(task.parent_token):
            return [b"stale", task.parent_id.encode()]
        if "cancel" in parent.fields or parent.status is Status.CANCELLED:
            return [b"cancelled", task.parent_id.encode()]
        return []

    def _write(self, task: NewTask) -> None:
        due = self.now_ms + task.delay_ms if task.at_ms is None else task.at_ms
        fields = {"status": "PENDING", "task": task.task, "queue": task.queue, "user_id": task.user_id}
        fields |= {"enqueued_at": str(self.now_ms), "attempt": "0"}
        optional = {"project_id": task.project_id, "parent_id": task.parent_id, "root_id": task.root_id}
        optional |= {"tags": task.tags, "priority": str(task.priority or "")}
        fields |= {name: value for name, value in optional.items() if value}
        if due > self.now_ms:
            fields["due_at"] = str(due)
        fields |= _extra(task)
        self._order += 1
        record = Record(task.id, fields, task.payload, self._order, due, due - self.now_ms)
        self.records[task.id] = record
        if task.parent_id in self.records:
            self.records[task.parent_id].children.append(task.id)
        self.note(record, "", "task_queued", to_json({"task": task.task, "queue": task.queue}))

    def _begin_after(self, record: Record, names: dict[str, str]) -> None:
        """A task that is to begin when others have ended waits for those that have not."""
        after = [names.get(task_id, task_id) for task_id in record.fields["after"].split("\n")]
        record.fields["after"] = "\n".join(after)
        record.pending = {f"task:{task_id}" for task_id in after if not self.records[task_id].finished}
        if not record.pending:
            return
        for subject in record.pending:
            self.records[subject.removeprefix("task:")].waiters[record.id] = None
        shown = {"kind": "tasks", "step": "after", "count": len(record.pending)}
        record.due_ms = self.now_ms + AFTER_MS
        record.fields |= {"status": "WAITING", "waiting_for": to_json(shown).decode()}
        record.fields["wait_until"] = str(record.due_ms)
        self.note(record, "", "task_waiting", to_json({"waiting_for": {**shown, "until": iso(record.due_ms)}}))

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
        self.changed.set()

    def come_about(self, record: Record, subject: str, *, at_once: bool = False) -> None:
        if subject not in record.pending:
            return
        record.pending.discard(subject)
        if (at_once or not record.pending) and record.status is Status.WAITING:
            stop_waiting(record)
            record.fields |= {"status": "PENDING", "due_at": str(self.now_ms)}
            record.due_ms = self.now_ms
            self.changed.set()

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


def _extra(task: NewTask) -> dict[str, str]:
    """Further fields of a record."""
    flat = from_json(task.extra) if task.extra else []
    return {str(name): str(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}
