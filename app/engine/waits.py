"""Waits: what a task awaits for longer than a moment. While it waits it holds no slot, no socket and no memory.

    report = await ctx.call(research, Research(topic=topic))      # another task, run as a child
    parts = await ctx.gather([Call(read, Page(url=url)) for url in urls])
    await ctx.sleep(timedelta(days=7))
    paid = await ctx.wait_event("paid", timeout=timedelta(hours=2), returns=Payment)

A wait stands in the row of the task's steps (`steps.py`) and is known by its number there. States:

    not begun --suspend--> begun --what it waits for, or its deadline--> resumed --record--> over
                  |______________ all of it has come about already ______________^

1. The task comes to the wait. What it needs is put in place first (children are enqueued under ids that follow from the
   task and the number, so a second time makes no second child). Then the attempt *leaves*: its coroutine is unwound,
   and `suspend.lua` writes, in one step, the deadline, the set of subjects that have not come about yet, and `WAITING`.
2. Whatever brings a subject about (the script that finishes a task, delivers an event or decides on an approval) takes
   it out of that set, and makes the task ready when the set is empty. A subject that is told twice takes nothing twice.
   Where more than 1,000 tasks wait for one, the heartbeats of workers tell the rest of its end, 1,000 at a time.
   At the deadline the queue itself does: a waiting task's score is its deadline.
3. A worker enters the task again from its top. At the same number it looks at what has become of the subjects, stores
   the outcome as the result of the step, and goes on. This is the same attempt: waiting costs no try.

Invariants: a set of pending subjects exists only while its task is `WAITING`; a waiting task has exactly one score; the
deadline of a wait never moves; what a task waits for is named by ids that the engine made, or by a name behind a prefix
that no client can write.

At each failure:

- the worker dies before `suspend`: the task runs again when its lease ends, and comes to the wait as if for the first
  time; children that were started are found by their ids;
- a subject comes about before `suspend`, or in the same millisecond: the script looks, and does not wait for it;
- the worker dies after the resume and before the outcome is stored: the next one looks again;
- the task is resumed for nothing (a stopping worker handed it back): it goes on waiting under the same deadline;
- the task is cancelled: its waiting ends, with its children; a subject that comes about later finds no set;
- what is waited for is forgotten or was never there: the wait ends, and says so.

A task waits for one thing at a time: of several waits that it begins at once (`asyncio.gather`), the others are looked
at when the first is over; steps that run beside a wait are let end before the task leaves. What is to be awaited
together, and end at the first failure, goes into one `ctx.gather`.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, NoReturn, Protocol

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from app.engine.awaited import Awaited
from app.engine.faults import faults_of
from app.engine.gates import OnBusy
from app.engine.job import Status
from app.engine.outcomes import HandedBack, Suspended
from app.engine.policy import MAX_DELAY_S
from app.engine.registry import Task
from app.engine.steps import Entry, Steps
from app.engine.submissions import Submission
from app.errors import ChildFailed, InvalidInput, InvalidResult, TooLarge, WaitTimeout
from app.store import keys
from app.store.items import StepRecord

DEFAULT_WAIT = timedelta(days=7)
MAX_CHILDREN = 10_000
"""Tasks that one wait may be for."""
SHOWN_IDS = 20
EVENT_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


class OnError(StrEnum):
    """What a group does when one of its tasks fails.

    `FAIL_FAST` cancels the rest and fails at once, `FINISH` lets all end and then fails, `COLLECT` lets all end and
    gives errors back in the place of results.
    """

    FAIL_FAST = "fail_fast"
    FINISH = "finish"
    COLLECT = "collect"


@dataclass(frozen=True, slots=True)
class Call:
    """A child to be: a task by itself or by its name, and its parameters. `returns` types the result of a name.

    `label` says what it is to its parent, and is shown in the tree of tasks.
    """

    task: str | Task[Any, Any]
    params: BaseModel | dict[str, Any] = field(default_factory=dict)
    returns: Any = None
    delay: timedelta = timedelta()
    priority: int = 0
    label: str = ""
    key: str | None = None
    on_busy: OnBusy = OnBusy.QUEUE

    @property
    def name(self) -> str:
        """The name of the task."""
        return self.task if isinstance(self.task, str) else self.task.name

    def value(self, data: Any) -> Any:
        """The result of the task, typed."""
        if self.returns is not None:
            return _typed(self.name, data, self.returns)
        return data if isinstance(self.task, str) else _typed(self.name, data, self.task.spec.result)


@dataclass(frozen=True, slots=True)
class End:
    """How a task ended: with a result, or with an error (its record: type, message, retryable and more)."""

    task_id: str
    task: str
    status: Status
    result: Any = None
    error: dict[str, Any] | None = None

    @property
    def failure(self) -> ChildFailed | None:
        """The exception that stands for it; None where it succeeded."""
        return None if self.error is None else ChildFailed(self.task_id, self.task, self.status, self.error)


class WaitServices(Protocol):
    """What the worker lends to waits."""

    async def start_many(
        self,
        children: Sequence[Submission],
        user_id: str,
        correlation_id: str | None,
        *,
        then: Submission | None = None,
    ) -> list[str]:
        """Enqueue children that have ids of their own, and `then` one that begins when they have ended.

        Those that are there already stay as they are. Returns the ids of the tasks that stand for them: under a key
        that may be another than was given.
        """
        ...

    async def read_ends(self, task_ids: Sequence[str], user_id: str) -> list[End | None]:
        """How tasks of a user ended; None for those that have not.

        Raises `NotFound` for one that is not there, `TooLarge` when the results together exceed the bound.
        """
        ...

    async def cancel_children(self, task_ids: Sequence[str]) -> None:
        """Cancel tasks, in their order, with all that they started; those that have ended stay as they are."""
        ...

    async def take_event(self, item: StepRecord, event: str) -> bytes | None:
        """Take an event and store it as a step's result, `item.result` and then its payload and `}`; None: there is
        none. Raises `LeaseLost`."""
        ...


@dataclass(frozen=True, slots=True)
class Waiter:
    """Who waits: the attempt's task, and what its children inherit. `claimed_ms` is the server's time of the claim."""

    task_id: str
    user_id: str
    correlation_id: str | None
    claimed_ms: int
    child: Callable[[Call, str | None], Submission]
    leave: Callable[[Suspended | HandedBack], None]


class Waits:
    """The waits of one attempt."""

    def __init__(self, waiter: Waiter, steps: Steps, services: WaitServices) -> None:
        self._waiter = waiter
        self._steps = steps
        self._services = services
        self._leaving = False

    async def tasks(
        self, name: str, calls: Sequence[Call], on_error: OnError, timeout: timedelta, limit: int | None = None
    ) -> list[Any]:
        """Run children and wait for all of them; see `TaskContext.gather`."""
        timeout_ms = _timeout_ms(name, timeout)
        if len(calls) > MAX_CHILDREN:
            raise TooLarge(f"{name}: {len(calls)} tasks exceed the bound of {MAX_CHILDREN}; start them in parts")
        if limit is not None and limit < 1:
            raise InvalidInput(f"{name}: limit={limit}: expected 1 or more")
        entry = await self._steps.enter(name)
        if not calls:
            return []
        children = Awaited([child_id(self._waiter.task_id, entry.number, index) for index in range(len(calls))])
        if entry.wait is not None:
            children.others = from_json(entry.wait[entry.wait.index(b" ") :]).get("others", {})
        elif entry.result is None:
            name_of_gate = keys.gate_of_group(
                self._waiter.task_id, entry.number, fail_fast=on_error is OnError.FAIL_FAST
            )
            gate = (name_of_gate, limit) if limit is not None and limit < len(calls) else None
            await self._start(calls, children, gate)
        ends = await self._ends(entry, children, on_error, timeout_ms)
        return _values(ends, calls, on_error)

    async def _start(self, calls: Sequence[Call], children: Awaited, gate: tuple[str, int] | None) -> None:
        """Enqueue all children; notes which of them others stand for."""
        me = self._waiter
        wanted = [
            replace(me.child(call, made), group=gate, awaited=True)
            for call, made in zip(calls, children.made, strict=True)
        ]
        children.stand_in(await self._services.start_many(wanted, me.user_id, me.correlation_id))

    async def ends(self, name: str, task_ids: Sequence[str], timeout: timedelta) -> list[End]:
        """Wait until tasks of the same user have ended; see `TaskContext.join`."""
        timeout_ms = _timeout_ms(name, timeout)
        if not 1 <= len(task_ids) <= MAX_CHILDREN:
            raise InvalidInput(f"{name}: expected 1 to {MAX_CHILDREN} task ids, got {len(task_ids)}")
        entry = await self._steps.enter(name)
        if entry.result is None and entry.wait is None:
            # They must be there, and of the same user.
            await self._services.read_ends(task_ids, self._waiter.user_id)
        return await self._ends(entry, Awaited(list(task_ids), own=False), OnError.COLLECT, timeout_ms)

    async def predecessors(self, task_ids: Sequence[str]) -> list[End]:
        """How the tasks ended after which this one began; see `TaskContext.predecessors`."""
        entry = await self._steps.enter("predecessors")
        if entry.result is not None:
            return _ENDS.validate_json(entry.result)
        ends = await self._services.read_ends(task_ids, self._waiter.user_id) if task_ids else []
        found = [end or _unfinished(task_id) for task_id, end in zip(task_ids, ends, strict=True)]
        await self._steps.store(entry, to_json(found), 0.0)
        return found

    async def time(self, name: str, duration: timedelta) -> None:
        """Wait for time to pass; see `TaskContext.sleep`."""
        timeout_ms = _timeout_ms(name, duration)
        entry = await self._steps.enter(name)
        if entry.result is not None:
            return
        if self._timed_out(entry) or timeout_ms == 0:
            await self._steps.store(entry, b"null", self._waited_s(entry, timeout_ms))
            return
        await self._leave(entry, (), timeout_ms, {"kind": "time"})

    async def event(self, event: str, timeout: timedelta, returns: Any) -> Any:
        """Wait for an event from outside; see `TaskContext.wait_event`."""
        if not EVENT_NAME.fullmatch(event):
            raise InvalidInput(f"event {event[:80]!r}: expected letters, digits, '_', '.', ':' or '-', 100 at most")
        name = f"event {event}"
        timeout_ms = _timeout_ms(name, timeout)
        entry = await self._steps.enter(name)
        stored = entry.result
        if stored is None:
            duration_s = self._waited_s(entry, timeout_ms)
            item = self._steps.record(entry, b'{"value":', duration_s)
            stored = await self._services.take_event(item, event)
        if stored is None and self._timed_out(entry):
            stored = await self._fail(entry, timeout_ms)
        if stored is None:
            await self._leave(entry, (f"event:{event}",), timeout_ms, {"kind": "event", "name": event})
        value = _value_or_timeout(name, stored, timeout_ms)
        return value if returns is None else _typed(name, value, returns)

    async def subject(self, entry: Entry, subject: str, timeout_ms: int, waiting_for: dict[str, Any]) -> None:
        """Wait for something else that has a record of its own; the caller has looked at it before."""
        await self._leave(entry, (subject,), timeout_ms, waiting_for)

    async def _ends(self, entry: Entry, children: Awaited, on_error: OnError, timeout_ms: int) -> list[End]:
        """How the tasks ended, when all have, or one has failed and that is enough."""
        stored, ids = entry.result, children.ids
        if stored is None and entry.wait is not None:
            stored = await self._look(entry, children, on_error, timeout_ms)
        if stored is None:
            subjects = tuple(f"task:{task_id}" for task_id in ids)
            shown = {"kind": "tasks", "count": len(ids), "task_ids": ids[:SHOWN_IDS]}
            fail_fast = on_error is OnError.FAIL_FAST
            await self._leave(entry, subjects, timeout_ms, shown, fail_fast=fail_fast, others=children.others)
        return _ENDS.validate_python(_value_or_timeout(entry.name, stored, timeout_ms))

    async def _look(self, entry: Entry, children: Awaited, on_error: OnError, timeout_ms: int) -> bytes | None:
        """Store the outcome of a wait for tasks, if it has one by now."""
        ends = await self._services.read_ends(children.ids, self._waiter.user_id)
        ended = [end for end in ends if end is not None]
        failed = any(end.error is not None for end in ended)
        over = len(ended) == len(ends) or (failed and on_error is OnError.FAIL_FAST)
        if not over and not self._timed_out(entry):
            return None
        if late := children.late(ends):
            await self._services.cancel_children(late)
        if not over:
            return await self._fail(entry, timeout_ms)
        data = to_json({"value": ended})
        is_error = failed and on_error is not OnError.COLLECT
        await self._steps.store(entry, data, self._waited_s(entry, timeout_ms), failed=is_error)
        return data

    async def _fail(self, entry: Entry, timeout_ms: int) -> bytes:
        data = b'{"timeout":true}'
        await self._steps.store(entry, data, timeout_ms / 1000, failed=True)
        return data

    async def _leave(
        self,
        entry: Entry,
        subjects: tuple[str, ...],
        timeout_ms: int,
        waiting_for: dict[str, Any],
        *,
        fail_fast: bool = False,
        others: dict[str, str] | None = None,
    ) -> NoReturn:
        """End the attempt here. What called is unwound, and never goes on from this place."""
        if not self._leaving:
            self._leaving = True
            # A step that runs beside the wait has its effect; it is stored before the task goes.
            await self._steps.quiet()
            shown = to_json({**waiting_for, "step": entry.name})
            facts = to_json({"name": entry.name, **({"others": others} if others else {})})
            self._waiter.leave(Suspended(entry.number, facts, subjects, fail_fast, timeout_ms, shown))
        while True:
            await asyncio.get_running_loop().create_future()

    def _timed_out(self, entry: Entry) -> bool:
        return entry.wait is not None and int(entry.wait.partition(b" ")[0]) <= self._waiter.claimed_ms

    def _waited_s(self, entry: Entry, timeout_ms: int) -> float:
        """Since the task came to the wait, until it was claimed again."""
        if entry.wait is None:
            return 0.0
        begun_ms = int(entry.wait.partition(b" ")[0]) - timeout_ms
        return max(0, self._waiter.claimed_ms - begun_ms) / 1000


_ENDS = TypeAdapter(list[End])


def child_id(task_id: str, number: int, index: int) -> str:
    """The id of a child that a task starts at a place in the row of its steps: the same in every attempt.

    The ids of a task's children sort in the order in which it starts them.
    """
    return f"{hashlib.sha256(task_id.encode()).hexdigest()[:24]}{number:04x}{index:04x}"


def _unfinished(task_id: str) -> End:
    error = {"type": "WaitTimeout", "message": "it has not ended in time", "retryable": False}
    return End(task_id, "", Status.PENDING, error=error)


def _timeout_ms(name: str, timeout: timedelta) -> int:
    seconds = timeout.total_seconds()
    if not 0 <= seconds <= MAX_DELAY_S:
        raise InvalidInput(f"{name}: {timeout} to wait: expected 0 to ten years")
    return int(seconds * 1000)


def _value_or_timeout(name: str, stored: bytes, timeout_ms: int) -> Any:
    outcome = from_json(stored)
    if "timeout" in outcome:
        raise WaitTimeout(f"{name}: nothing came within {timeout_ms / 1000:g} s")
    return outcome["value"]


def _values(ends: Sequence[End], calls: Sequence[Call], on_error: OnError) -> list[Any]:
    """Results in the order of the calls. Raises the first failure, or puts failures in their places (`COLLECT`)."""
    failures = [end.failure for end in ends]
    told = [failure for failure in failures if failure is not None]
    if told and on_error is not OnError.COLLECT:
        # Others may have been cancelled because one had failed, by an attempt that died then: that one is the reason.
        raise min(told, key=lambda failure: failure.status == Status.CANCELLED)
    return [failure or call.value(end.result) for end, failure, call in zip(ends, failures, calls, strict=True)]


def _typed(name: str, value: Any, returns: Any) -> Any:
    try:
        adapter = returns if isinstance(returns, TypeAdapter) else TypeAdapter(returns)
        return adapter.validate_python(value)
    except ValidationError as error:
        raise InvalidResult(f"{name}: what came is not what its type accepts: {faults_of(error)}") from error
