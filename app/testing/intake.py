"""Accepting tasks, in memory: see `enqueue.lua`. A group is accepted as a whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

from app.engine.job import Status
from app.store.items import NewTask
from app.store.scripts import AFTER_MS
from app.testing.keyed import Keyed, Look, Plan
from app.testing.ledger import Ledger, iso
from app.testing.records import Record


@dataclass(slots=True)
class _Row:
    """A task of a group: the id of the task that it is already, and what its key makes of it."""

    task: NewTask
    old: str | None
    look: Look

    @property
    def found(self) -> str:
        """The id of the task that it comes to."""
        return self.old or self.look.merged or self.task.id


class Intake:
    """Makes the records of a run."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._keyed = Keyed(ledger)
        self._order = 0

    def accept(self, group: Sequence[NewTask]) -> list[Any]:
        """Accept a group; the reply of the script."""
        made: dict[tuple[str, str], tuple[str, str]] = {}
        rows: list[_Row] = []
        plan = Plan()
        for task in group:
            key = (task.user_id, task.idempotency_key)
            old, refusal = self._known(task, made.get(key) or self._ledger.keyed.get(key), {row.id for row in group})
            look = Look() if refusal or old or task.gating is None else self._keyed.look(task, task.gating, plan)
            if refusal or look.refusal:
                return refusal or look.refusal
            rows.append(_Row(task, old, look))
            if task.idempotency_key:
                made[key] = (task.fingerprint, rows[-1].found)
        self._ledger.keyed.update(made)
        self._carry_out([row for row in rows if row.old is None], {row.task.id: row.found for row in rows})
        return [b"ok", self._ledger.now_ms, *([row.found.encode(), int(row.found == row.task.id)] for row in rows)]

    def _carry_out(self, rows: Sequence[_Row], names: dict[str, str]) -> None:
        for row in rows:
            if row.look.merged is None:
                self._write(row.task, row.look)
            elif row.task.gating is not None:
                self._keyed.merge(row.task, row.task.gating, row.look)
        for row in rows:
            if row.look.merged is None and "after" in self._ledger.records[row.task.id].fields:
                self._begin_after(self._ledger.records[row.task.id], names)

    def _known(self, task: NewTask, keyed: tuple[str, str] | None, group: set[str]) -> tuple[str | None, list[Any]]:
        """The id of the task that this one is already, or why it is refused."""
        if task.idempotency_key and keyed is not None:
            same = keyed[0] == task.fingerprint
            return keyed[1], [] if same else [b"conflict", task.idempotency_key.encode()]
        if task.id in self._ledger.records:
            return task.id, []
        if task.letter:
            return None, [b"replayed", task.letter.encode(), b""]
        return None, self._refuse_after(task, group) or self._refuse_child(task)

    def _refuse_after(self, task: NewTask, group: set[str]) -> list[Any]:
        for task_id in _extra(task).get("after", "").split("\n"):
            there = self._ledger.records.get(task_id)
            if task_id and task_id not in group and (there is None or there.fields["user_id"] != task.user_id):
                return [b"missing", task_id.encode()]
        return []

    def _refuse_child(self, task: NewTask) -> list[Any]:
        parent = self._ledger.records.get(task.parent_id)
        if parent is None:
            return []
        if task.parent_token is not None and not parent.holds(task.parent_token):
            return [b"stale", task.parent_id.encode()]
        if "cancel" in parent.fields or parent.status is Status.CANCELLED:
            return [b"cancelled", task.parent_id.encode()]
        return []

    def _write(self, task: NewTask, look: Look) -> None:
        due = self._due_ms(task, look)
        fields = {"status": "PENDING", "task": task.task, "queue": task.queue, "user_id": task.user_id}
        fields |= {"enqueued_at": str(self._ledger.now_ms), "attempt": "0"}
        optional = {"project_id": task.project_id, "parent_id": task.parent_id, "root_id": task.root_id}
        optional |= {"tags": task.tags, "priority": str(task.priority or "")}
        optional["due_at"] = str(due) if due > self._ledger.now_ms else ""
        fields |= {name: value for name, value in optional.items() if value} | _extra(task)
        self._order += 1
        record = Record(task.id, fields, task.payload, self._order, due, due - self._ledger.now_ms)
        self._ledger.records[task.id] = record
        if task.parent_id in self._ledger.records:
            self._ledger.records[task.parent_id].children.append(task.id)
        self._hold(record, task)
        self._ledger.note(record, "", "task_queued", to_json({"task": task.task, "queue": task.queue}))

    def _due_ms(self, task: NewTask, look: Look) -> int:
        """When it is due; what it replaces is cancelled, and its start under a throttle taken."""
        now_ms, asked = self._ledger.now_ms, task.gating
        plain = now_ms + task.delay_ms if task.at_ms is None else task.at_ms
        if asked is None or not asked.key:
            return plain
        if asked.on_busy == "replace":
            self._keyed.replace_others(asked)
        due = self._keyed.due_ms(task, asked, look)
        return plain if due is None else due

    def _hold(self, record: Record, task: NewTask) -> None:
        """A task that its key or its group holds back is parked."""
        asked = task.gating
        if asked is None:
            return
        record.gates = asked.gates
        if asked.key:
            record.fields["key"] = asked.key
        if asked.debounce_ms is not None:
            record.fields["debounce_until"] = str(self._ledger.now_ms + asked.debounce_ms[1])
        if not self._ledger.gates.enter(record):
            self._ledger.park(record)

    def _begin_after(self, record: Record, names: dict[str, str]) -> None:
        """A task that is to begin when others have ended waits for those that have not. A later one of its group may
        have replaced it already."""
        after = [names.get(task_id, task_id) for task_id in record.fields["after"].split("\n")]
        record.fields["after"] = "\n".join(after)
        if record.finished:
            return
        ledger = self._ledger
        record.pending = {f"task:{task_id}" for task_id in after if not ledger.records[task_id].finished}
        if not record.pending:
            return
        for subject in record.pending:
            ledger.records[subject.removeprefix("task:")].waiters[record.id] = None
        shown = {"kind": "tasks", "step": "after", "count": len(record.pending)}
        record.due_ms = ledger.now_ms + AFTER_MS
        record.fields |= {"status": "WAITING", "waiting_for": to_json(shown).decode()}
        record.fields["wait_until"] = str(record.due_ms)
        ledger.note(record, "", "task_waiting", to_json({"waiting_for": {**shown, "until": iso(record.due_ms)}}))


def _extra(task: NewTask) -> dict[str, str]:
    """Further fields of a record."""
    flat = from_json(task.extra) if task.extra else []
    return {str(name): str(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}
