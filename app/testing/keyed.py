"""What its key makes of a new task, in memory: see `keyed.lua`, which has the same functions.

A look finds what is to be done and changes nothing but its own `Plan`, so that a group can be refused as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from app.engine.gates import OnBusy
from app.engine.job import Status
from app.store.items import Gating, NewTask
from app.store.scripts import MERGED_TTL_MS
from app.testing.ledger import Ledger, iso
from app.testing.records import Record


@dataclass(slots=True)
class Planned:
    """The task of a type that earlier ones of the group leave under a key, and which one of them is debounced."""

    id: str
    debounced: str | None


@dataclass(slots=True)
class Plan:
    """What the tasks of one group will have done, those that were looked at; by gate, and by gate and type."""

    made: dict[str, str] = field(default_factory=dict)
    of_type: dict[tuple[str, str], Planned] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)
    free: dict[tuple[str, str], int] = field(default_factory=dict)


@dataclass(slots=True)
class Look:
    """What a look at a task found: which other task stands for it, whether that gets its parameters, when a throttle
    lets it start (Unix ms), and when all starts of its key are free again."""

    merged: str | None = None
    changes: bool = False
    start_ms: int | None = None
    free_ms: int = 0
    refusal: list[Any] = field(default_factory=list)


class Keyed:
    """The keys of a run."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._free: dict[tuple[str, str], int] = {}
        self._merged: dict[str, tuple[str, int]] = {}

    def look(self, task: NewTask, asked: Gating, plan: Plan) -> Look:
        """Look at a task of a group, and plan that it is made unless it is refused or another stands for it."""
        other, until_ms = self._merged.get(task.id, ("", 0))
        if other and until_ms > self._ledger.now_ms:
            return Look(merged=other)
        if not asked.key:
            return Look()
        gate = asked.gates[0][0] if asked.gates else None
        look = self._refuse_own(task, asked, gate) or self._find_other(task, asked, gate, plan)
        if not look.refusal and look.merged is None and asked.throttle_ms is not None:
            look = self._take_start(task, asked, asked.throttle_ms, plan)
        if gate is not None and not look.refusal and look.merged is None:
            _plan_made(task, asked, gate, plan)
        return look

    def _refuse_own(self, task: NewTask, asked: Gating, gate: str | None) -> Look | None:
        """An ancestor under the same key cannot end before a child that it waits for, or that replaces it."""
        if gate is None or not (asked.awaited or asked.on_busy == OnBusy.REPLACE):
            return None
        parent = self._ledger.records.get(task.parent_id)
        while parent is not None:
            if parent.id in self._ledger.gates.row(gate):
                return Look(refusal=[b"own", asked.key.encode(), parent.id.encode()])
            parent = self._ledger.records.get(parent.fields.get("parent_id", ""))
        return None

    def _find_other(self, task: NewTask, asked: Gating, gate: str | None, plan: Plan) -> Look:
        if gate is None:
            return Look()
        planned, there = plan.of_type.get((gate, task.task)), gate not in plan.replaced
        if asked.on_busy == OnBusy.REJECT:
            row = self._ledger.gates.row(gate)
            holder = plan.made.get(gate) or (row[0] if row and there else None)
            return Look(refusal=[b"busy", asked.key.encode(), holder.encode()]) if holder else Look()
        if asked.on_busy == OnBusy.JOIN:
            joined = planned.id if planned else (self._newest(gate, task.task, _can_be_joined) if there else None)
            return Look(merged=joined)
        if asked.debounce_ms is not None:
            changed = planned.debounced if planned else None
            changed = changed or (self._newest(gate, task.task, _can_be_changed) if there else None)
            return Look(merged=changed, changes=True)
        return Look()

    def _newest(self, gate: str, task: str, suits: Callable[[Record], bool]) -> str | None:
        records = (self._ledger.records[task_id] for task_id in reversed(self._ledger.gates.row(gate)))
        return next((record.id for record in records if record.fields["task"] == task and suits(record)), None)

    def _take_start(self, task: NewTask, asked: Gating, throttle_ms: tuple[int, int, int], plan: Plan) -> Look:
        """The next free start of the key; the generic cell rate algorithm, as in `keyed.lua`."""
        interval, burst, longest = throttle_ms
        name, now_ms = (task.user_id, asked.key), self._ledger.now_ms
        free = plan.free.get(name) or self._free.get(name, 0)
        due = max(now_ms, free - (burst - 1) * interval)
        if due - now_ms > longest:
            return Look(refusal=[b"throttled", asked.key.encode()])
        plan.free[name] = max(free, due) + interval
        return Look(start_ms=due, free_ms=plan.free[name])

    def replace_others(self, asked: Gating) -> None:
        """Cancel all that stands under the key, the newest first, so that none of it is let in on the way."""
        for task_id in [*reversed(self._ledger.gates.row(asked.gates[0][0]))]:
            self._ledger.cancel_task(task_id, is_descendant=False)

    def due_ms(self, task: NewTask, asked: Gating, look: Look) -> int | None:
        """When a task is due that its key holds back; None for any other."""
        if asked.debounce_ms is not None:
            return self._ledger.now_ms + min(asked.debounce_ms)
        if look.start_ms is not None:
            self._free[task.user_id, asked.key] = look.free_ms
        return look.start_ms

    def merge(self, task: NewTask, asked: Gating, look: Look) -> None:
        """Another task stands for this one from now on. A debounced one gets its parameters and is put off again."""
        assert look.merged is not None
        record, now_ms = self._ledger.records[look.merged], self._ledger.now_ms
        self._merged[task.id] = (record.id, now_ms + MERGED_TTL_MS)
        self._ledger.tell(record, f"stands for another {task.task} under the key {asked.key!r}")
        if not look.changes or asked.debounce_ms is None:
            return
        record.payload = task.payload
        due = min(now_ms + asked.debounce_ms[0], int(record.fields["debounce_until"]))
        put_off = due > now_ms
        shown = iso(due if put_off else int(record.fields["due_at"]))
        self._ledger.note(record, "", "task_debounced", to_json({"next_attempt_at": shown}))
        if put_off:
            record.fields["due_at"] = str(due)
            if self._ledger.gates.pass_by(record):
                record.due_ms = due


def _plan_made(task: NewTask, asked: Gating, gate: str, plan: Plan) -> None:
    if asked.on_busy == OnBusy.REPLACE:
        plan.replaced.add(gate)
        plan.of_type = {at: planned for at, planned in plan.of_type.items() if at[0] != gate}
    before = plan.of_type.get((gate, task.task))
    debounced = task.id if asked.debounce_ms is not None else before.debounced if before else None
    plan.made[gate] = task.id
    plan.of_type[gate, task.task] = Planned(task.id, debounced)


def _can_be_joined(record: Record) -> bool:
    """One that its owner has not given up."""
    return "cancel" not in record.fields


def _can_be_changed(record: Record) -> bool:
    """One that has not begun, and was made to be changed."""
    has_begun = record.status is not Status.PENDING or "started_at" in record.fields
    return not has_begun and "debounce_until" in record.fields
