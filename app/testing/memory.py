"""The scripts of the store, in memory: what stands in for Redis in the harness.

Everything above the scripts is the engine's own code: attempts, contexts, steps, waits, the queue, the inbox, the lane
that writes ends. So this module has to keep to what the Lua scripts of the same names do, and a test runs the same
tasks on both and compares. What is left out: leases do not run out by themselves, users take no turns, nothing is
swept, no queue is full, and there are no dead letters.

Every write of an attempt is fenced by its token, as in the store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from pydantic_core import from_json, to_json

from app.engine.job import Status
from app.store.items import Arg, Delivery, Emit, Finish, NewTask, Reschedule, StepRecord, Suspend, TakeEvent
from app.store.scripts import Scripts
from app.testing.approvals import MemoryApprovals
from app.testing.errors import HarnessError
from app.testing.intake import Intake
from app.testing.ledger import END, Dies, Ledger, Moment, iso
from app.testing.records import Record, shown

FINAL_EVENTS = {"SUCCESS": "task_complete", "FAILURE": "task_failed", "CANCELLED": "task_cancelled"}


class MemoryScripts(Ledger, Scripts):
    """The scripts that tasks need, over records in memory."""

    def __init__(self, now_ms: int, dies: Dies) -> None:
        super().__init__(now_ms, dies)
        self.approvals = MemoryApprovals(self)
        self._intake = Intake(self)
        self.ended = self.approvals.withdraw_of

    def next_due_ms(self) -> int | None:
        """When something is due by itself: a task, or the end of an approval."""
        times = (super().next_due_ms(), self.approvals.next_ms())
        return min((time for time in times if time is not None), default=None)

    async def run(self, name: str, args: Sequence[Arg]) -> Any:
        """Scripts that have their functions elsewhere."""
        if name == "ask_approval":
            return self.approvals.ask(args)
        if name == "close_approval":
            return self.approvals.close(args)
        return await self._run(name, args)

    async def _run(self, name: str, args: Sequence[Arg]) -> Any:
        raise HarnessError(f"the harness has no {name!r}: what the task asked for needs a real engine")

    async def enqueue(self, groups: Sequence[Sequence[NewTask]], max_depth: int) -> list[list[Any]]:
        """See `enqueue.lua`."""
        self.changed.set()
        return [self._intake.accept(group) for group in groups]

    async def finish(self, items: Sequence[Finish]) -> list[int]:
        """See `finish.lua`."""
        return [self._finish(item) for item in items]

    async def reschedule(self, items: Sequence[Reschedule]) -> list[int]:
        """See `reschedule.lua`."""
        return [self._reschedule(item) for item in items]

    async def suspend(self, items: Sequence[Suspend]) -> list[int]:
        """See `suspend.lua`."""
        return [self._suspend(item) for item in items]

    async def cancel(self, ids: Sequence[str], ttl_ms: int) -> list[bytes]:
        """See `cancel.lua`."""
        return [self.cancel_task(task_id, is_descendant=False) for task_id in ids]

    async def read_ends(self, ids: Sequence[str], max_bytes: int) -> list[list[bytes]] | None:
        """See `read_ends.lua`."""
        found = [self.records.get(task_id) for task_id in ids]
        if sum(len(record.result) for record in found if record is not None) > max_bytes:
            return None
        return [_end_row(record) for record in found]

    async def record_step(self, items: Sequence[StepRecord]) -> list[int]:
        """See `record_step.lua`."""
        return [self._record_step(item) for item in items]

    async def read_steps(self, task_id: str) -> dict[str, bytes]:
        """The completed steps of a task."""
        return dict(self.records[task_id].steps)

    async def emit(self, items: Sequence[Emit]) -> list[int]:
        """See `emit.lua`."""
        return [self._emit(item) for item in items]

    async def deliver_event(self, item: Delivery) -> list[bytes]:
        """See `deliver_event.lua`."""
        record = self.records.get(item.id)
        if record is None or (item.user_id and item.user_id != record.fields["user_id"]):
            return [b"missing"]
        key = (record.fields["user_id"], f"event\n{item.id}\n{item.key}")
        if item.key and key in self.keyed:
            return [b"again"]
        if record.finished:
            return [b"finished", record.status.encode()]
        if sum(map(len, record.inbox.values())) >= item.max_events:
            return [b"full"]
        record.inbox.setdefault(item.name, deque()).append(item.payload)
        if item.key:
            self.keyed[key] = ("", item.id)
        self.note(record, "", "event_delivered", to_json({"name": item.name}))
        self.tell(record, f"event {item.name!r} comes: {shown(item.payload)}")
        self.come_about(record, f"event:{item.name}")
        return [b"ok"]

    async def take_event(self, items: Sequence[TakeEvent]) -> list[list[bytes]]:
        """See `take_event.lua`."""
        return [self._take_event(item.step, item.event) for item in items]

    def _take_event(self, item: StepRecord, event: str) -> list[bytes]:
        record = self.records[item.id]
        if not record.holds(item.token):
            return [b"stale"]
        stored = record.steps.get(f"result:{item.number}")
        if stored is not None:
            return [b"ok", stored]
        if not record.inbox.get(event):
            return [b"none"]
        if self.dies_at(Moment.BEFORE, record, item.number):
            return [b"stale"]
        result = item.result + record.inbox[event].popleft() + b"}"
        self._store_step(record, item, result)
        return [b"stale"] if self.dies_at(Moment.AFTER, record, item.number) else [b"ok", result]

    def _finish(self, item: Finish) -> int:
        record = self.records[item.id]
        if not record.holds(item.token):
            return 0
        if self.dies_at(Moment.BEFORE, record, END):
            return 0
        self.settle(record, item.status, item.result, item.error)
        self.note(record, "", FINAL_EVENTS[item.status], item.event)
        self.tell(record, f"ends: {item.status} {shown(item.error or to_json(from_json(item.result)['r']))}")
        return 1

    def _reschedule(self, item: Reschedule) -> int:
        record = self.records[item.id]
        if not record.holds(item.token):
            return 0
        due = self.now_ms + (0 if "cancel" in record.fields else item.delay_ms)
        attempt = int(record.fields["attempt"]) - (0 if item.counts else 1)
        record.fields |= {"status": str(item.status), "due_at": str(due), "attempt": str(attempt)}
        record.fields["error"] = item.error.decode()
        if item.mark:
            record.fields.setdefault(item.mark, str(self.now_ms))
        record.due_ms = due
        event = from_json(item.event)
        self.note(record, "", item.event_type, to_json({**event, "next_attempt_at": iso(due)}))
        reason = event["error"]
        self.tell(record, f"runs again in {item.delay_ms / 1000:g} s: {reason['type']}: {reason['message']}")
        self.changed.set()
        return 1

    def _suspend(self, item: Suspend) -> int:
        record = self.records[item.id]
        if not record.holds(item.token):
            return 0
        if self.dies_at(Moment.BEFORE, record, item.number):
            return 0
        deadline = self._deadline_of(record, item)
        pending = self._pending_of(record, item)
        record.fields["resumes"] = "1"
        if "cancel" in record.fields or deadline <= self.now_ms or (item.subjects and not pending):
            record.fields |= {"status": "PENDING", "due_at": str(self.now_ms)}
            record.due_ms = self.now_ms
        else:
            self._wait(record, item, deadline, pending)
        self.changed.set()
        return 1

    def _deadline_of(self, record: Record, item: Suspend) -> int:
        begun = record.steps.get(f"wait:{item.number}")
        if begun is not None:
            return int(begun.partition(b" ")[0])
        deadline = self.now_ms + item.timeout_ms
        record.steps[f"wait:{item.number}"] = b"%d %b" % (deadline, item.facts)
        record.fields.setdefault("steps", "0")
        return deadline

    def _pending_of(self, record: Record, item: Suspend) -> set[str]:
        pending: set[str] = set()
        for subject in item.subjects:
            over, failed = self._look(record, subject)
            if not over:
                pending.add(subject)
            elif failed and item.fail_fast:
                return set()
        return pending

    def _look(self, record: Record, subject: str) -> tuple[bool, bool]:
        """Whether a subject has come about, and whether as a failure."""
        kind, _, name = subject.partition(":")
        if kind == "event":
            return bool(record.inbox.get(name)), False
        if kind == "task":
            other = self.records.get(name)
            return other is None or other.finished, other is None or other.status is not Status.SUCCESS
        return self.approvals.records[name]["status"] != "PENDING", False

    def _wait(self, record: Record, item: Suspend, deadline: int, pending: set[str]) -> None:
        for subject in pending:
            if subject.startswith("task:"):
                self.records[subject.removeprefix("task:")].waiters[record.id] = None
        waiting_for = item.waiting_for.decode()
        record.pending, record.due_ms = pending, deadline
        record.fields |= {"status": "WAITING", "waiting_for": waiting_for, "wait_until": str(deadline)}
        record.fields["fail_fast"] = str(int(item.fail_fast))
        event = {"waiting_for": {**from_json(waiting_for), "until": iso(deadline)}}
        self.note(record, "", "task_waiting", to_json(event))
        self.tell(
            record, f"waits, for {timedelta(milliseconds=deadline - self.now_ms)} at most: {shown(item.waiting_for)}"
        )

    def _record_step(self, item: StepRecord) -> int:
        record = self.records[item.id]
        if not record.holds(item.token):
            return 0
        if self.dies_at(Moment.BEFORE, record, item.number):
            return 0
        self._store_step(record, item, item.result)
        return 0 if self.dies_at(Moment.AFTER, record, item.number) else 1

    def _store_step(self, record: Record, item: StepRecord, result: bytes) -> None:
        number = str(item.number)
        if number in record.steps:
            return
        facts = {"name": from_json(item.name), "at_ms": self.now_ms, "duration_s": item.duration_s}
        record.steps[number] = to_json({**facts, "failed": True} if item.failed else facts)
        record.steps[f"result:{number}"] = result
        record.steps.pop(f"wait:{number}", None)
        record.fields["steps"] = str(int(record.fields.get("steps", 0)) + 1)
        self.tell(record, f"step {item.number + 1} {facts['name']!r} is stored: {shown(result)}")

    def _emit(self, item: Emit) -> int:
        record = self.records[item.id]
        if not record.holds(item.token):
            return 0
        if item.progress:
            record.fields |= {"progress": item.progress.decode(), "progress_at": str(self.now_ms)}
        self.note(record, item.channel, item.type, item.payload)
        self.tell(record, f"emits {item.type}: {shown(item.payload)}")
        return 1


def _end_row(record: Record | None) -> list[bytes]:
    if record is None:
        return [b"", b"", b"", b""]
    names = (record.fields["user_id"], record.fields["task"], record.status)
    return [*(name.encode() for name in names), record.result if record.finished else b""]
