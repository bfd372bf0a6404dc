"""What a task can do besides its own work: the `ctx` that every task function gets first."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from loguru import logger
from pydantic import BaseModel
from pydantic_core import from_json, to_json

from app.engine.approvals import DEFAULT_EXPIRY, ApprovalRequest, Approvals, Decision
from app.engine.events import TYPE, event_json, stream_name
from app.engine.gates import OnBusy, policy_of
from app.engine.lending import Resource, Services
from app.engine.limits import Guest, Quota
from app.engine.outcomes import HandedBack, Suspended
from app.engine.registry import Task
from app.engine.steps import Steps
from app.engine.submissions import Submission
from app.engine.task_info import TaskInfo
from app.engine.threads import Reporter, ThreadReporter
from app.engine.waits import DEFAULT_WAIT, Call, End, OnError, Waiter, Waits, child_id
from app.errors import InvalidInput, LeaseLost, NotConfigured, TooLarge
from app.store.items import Emit

if TYPE_CHECKING:
    from loguru import Logger

MAX_LABEL_CHARS = 200
TASK_CHANNEL = "."
OWN_CHANNELS = ""

A = ParamSpec("A")
T = TypeVar("T")
P = TypeVar("P", bound=BaseModel)


class TaskContext:
    """The hands and the voice of one attempt of a task.

    What writes does so under the attempt's lease: after `LeaseLost` another attempt has it, and nothing was written.
    """

    def __init__(self, info: TaskInfo, services: Services, leave: Callable[[Suspended | HandedBack], None]) -> None:
        self.info = info
        self._services = services
        self._percent = info.percent
        self._leave = leave
        self._shown: tuple[float, float, str] = (info.percent, 100.0, "")
        self._written = 0
        self._reporters: list[ThreadReporter] = []

    # Made when they are needed: most tasks are short, and need none of them.

    @cached_property
    def _steps(self) -> Steps:
        return Steps(self._services, self.info.task_id, self.info.token, stored=self.info.steps)

    @cached_property
    def _waits(self) -> Waits:
        info = self.info
        waiter = Waiter(info.task_id, info.user_id, info.correlation_id, info.claimed_ms, self._child, self._leave)
        return Waits(waiter, self._steps, self._services)

    @cached_property
    def _approvals(self) -> Approvals:
        return Approvals(self.info.task_id, self.info.token, self._steps, self._waits, self._services)

    @cached_property
    def _guest(self) -> Guest:
        return Guest(self.info.task_id, self._show_wait, self._leave)

    @property
    def task_id(self) -> str:
        """The id of the task."""
        return self.info.task_id

    @property
    def user_id(self) -> str:
        """Whose task it is."""
        return self.info.user_id

    @property
    def project_id(self) -> str | None:
        """The project it was posted for."""
        return self.info.project_id

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self.info.attempt

    @property
    def log(self) -> Logger:
        """The log; its records carry task, user, project, attempt and correlation id."""
        return logger

    def use(self, resource: Resource[T]) -> T:
        """What the process opened under this name at its start. Raises `NotConfigured` when it opened nothing."""
        if resource not in self._services.resources:
            raise NotConfigured(f"this worker has no {resource.name}")
        return cast(T, self._services.resources[resource])

    async def progress(self, current: float, total: float, label: str = "") -> None:
        """Say how far the task is: `current` of `total` (any unit), and what it does now (200 characters).

        Stored in the task's view and sent as `task_progress`. The percentage never goes back, also over retries.
        """
        if not 0 < total < math.inf or not 0 <= current <= total:
            raise InvalidInput(
                f"progress {current} of {total}: expected 0 <= current <= total and total > 0, both finite"
            )
        if len(label) > MAX_LABEL_CHARS:
            raise TooLarge(f"a label of {len(label)} characters exceeds the bound of {MAX_LABEL_CHARS}")
        self._percent = max(self._percent, round(100 * current / total, 1))
        self._shown = (current, total, label)
        data = to_json({"current": current, "total": total, "percent": self._percent, "label": label})
        await self._emit(OWN_CHANNELS, "task_progress", data, data)

    async def emit(self, kind: str, payload: dict[str, Any], *, channel: str | None = None) -> None:
        """Append an event. It goes to the task's own channel, or to `channel`, such as `project:<id>` or one of a
        domain; not to that of another task.

        `payload` must be a JSON object of at most 64 KiB. Raises `InvalidInput` or `TooLarge`.
        """
        if not TYPE.fullmatch(kind):
            raise InvalidInput(
                f"event type {kind[:80]!r}: expected a letter, then letters, digits, '_' or '.', 64 at most"
            )
        data = event_json(payload)
        stream = TASK_CHANNEL if channel is None else stream_name(channel, self.user_id)
        if stream.startswith("task:"):
            # Its log is deleted with that task; one written later would stay for ever.
            raise InvalidInput(f"channel {channel!r}: expected none, or that of a project, a user or a domain")
        await self._emit(stream, kind, data, b"")

    async def step(self, name: str, call: Callable[[], Awaitable[T]], *, returns: Any = None) -> T:
        """Run a part of the task once: `call` is awaited, and its result is stored before this returns.

        In a later attempt the stored result is returned and nothing is called. `returns` is the type of the result,
        any that pydantic can validate and write as JSON; without it only values of JSON's own types are accepted. Up
        to 1,000 steps a task, results of up to 1 MiB. See `app/engine/steps.py` for what a task with steps must keep
        to.

        Raises what `call` raises (then nothing is stored), `InvalidResult`, `TooLarge`, `StepOrderChanged`,
        `LeaseLost`.
        """
        return await self._steps.run(name, call, returns)

    def quota(
        self, key: str, *, tokens: int = 0, spare: int = 0, requests: int = 1
    ) -> AbstractAsyncContextManager[Quota]:
        """Hold requests, tokens and a slot of a key such as `llm:gpt-x` for the length of the block.

            async with ctx.quota("llm:gpt-x", tokens=estimate) as quota:
                reply = await ask()
                quota.used(reply.tokens)

        The limits are those of the settings, over all processes; a key without any costs nothing, and one without its
        own shares those of the key before its last colon. `tokens` is what the call is sure to need, `spare` what is
        reserved besides, as far as the limit allows. Waits its turn; a wait over 5 s shows as progress, and for one
        over 15 s the task leaves its worker and runs again when it is its turn, which costs it no try. Raises
        `QuotaTooSmall` where the call can never fit. See `app/engine/limits.py`.
        """
        return self._services.quotas.hold(key, tokens=tokens, spare=spare, requests=requests, guest=self._guest)

    def slot(self, key: str) -> AbstractAsyncContextManager[Quota]:
        """Hold one of the slots of a key for the length of the block, and none of its requests and tokens."""
        return self.quota(key, requests=0)

    async def _show_wait(self, label: str | None) -> None:
        current, total, before = self._shown
        label = before if label is None else label
        data = to_json({"current": current, "total": total, "percent": self._percent, "label": label})
        await self._emit(OWN_CHANNELS, "task_progress", data, data)

    async def start(
        self,
        task: str | Task[P, Any],
        params: P | dict[str, Any],
        *,
        delay: timedelta = timedelta(),
        priority: int = 0,
        idempotency_key: str | None = None,
        key: str | None = None,
        on_busy: OnBusy = OnBusy.QUEUE,
    ) -> str:
        """Start a child task and go on at once; returns its id. It belongs to the same user and project.

        It is started once: a later attempt that comes to the same place gets the same child. (Inside a step it is the
        step that is remembered; give an `idempotency_key`, unique for this task, where the step may fail behind it.) A
        task that is cancelled cancels its children, and starts no more (`Conflict`). Raises what enqueuing raises.
        """
        child = self._child(Call(task, params, delay=delay, priority=priority, key=key, on_busy=on_busy))
        if idempotency_key:
            child = replace(child, idempotency_key=f"{self.task_id}/{idempotency_key}")
        if self._steps.inside is not None:
            return await self._services.start(child, self.user_id, self.info.correlation_id)
        entry = await self._steps.enter(f"start {child.task}")
        if entry.result is not None:
            return str(from_json(entry.result))
        child = replace(child, task_id=child_id(self.task_id, entry.number, 0))
        task_id = await self._services.start(child, self.user_id, self.info.correlation_id)
        await self._steps.store(entry, to_json(task_id), 0.0)
        return task_id

    async def call(
        self,
        task: str | Task[P, T],
        params: P | dict[str, Any],
        *,
        returns: Any = None,
        timeout: timedelta = DEFAULT_WAIT,
        priority: int = 0,
        key: str | None = None,
        on_busy: OnBusy = OnBusy.QUEUE,
    ) -> T:
        """Run another task as a child and wait for its result; the task holds no slot and no memory meanwhile.

        A task given by its name returns what JSON gives, or `returns` (a type). Raises `ChildFailed` when it failed for
        good or was cancelled, `WaitTimeout` when it did not end within `timeout` (it is cancelled then), and what
        enqueuing raises. See `app/engine/waits.py` for what a task that waits must keep to.
        """
        made = Call(task, params, returns=returns, priority=priority, key=key, on_busy=on_busy)
        (value,) = await self._waits.tasks(f"call {made.name}", [made], OnError.FAIL_FAST, timeout)
        return cast(T, value)

    async def gather(
        self,
        calls: Sequence[Call],
        *,
        limit: int | None = None,
        on_error: OnError = OnError.FAIL_FAST,
        timeout: timedelta = DEFAULT_WAIT,
    ) -> list[Any]:
        """Run up to 10,000 tasks as children and wait for all; their results in the order of the calls.

        At most `limit` run at once. `on_error` says what happens when one fails: the rest is cancelled and
        `ChildFailed` raised at once, raised when all have ended, or put in the place of its result. Raises
        `WaitTimeout` (the rest is cancelled), and `TooLarge` when the results together exceed 8 MiB.
        """
        name = f"call {calls[0].name}" if len(calls) == 1 else f"gather {len(calls)} tasks"
        return await self._waits.tasks(name, calls, OnError(on_error), timeout, limit)

    async def join(self, task_ids: Sequence[str], *, timeout: timedelta = DEFAULT_WAIT) -> list[End]:
        """Wait until tasks of the same user have ended, such as children from `start`; how each did, in this order.

        Any number of tasks may wait for one. Raises `NotFound` for an id that is not there, `WaitTimeout`, `TooLarge`.
        """
        return await self._waits.ends("join", task_ids, timeout)

    async def start_many(self, calls: Sequence[Call], *, then: Call | None = None) -> list[str]:
        """Start up to 1,000 children at once, all or none, and go on; their ids in the order of the calls.

        `then` is one more child, the last of the ids: it begins when all others have ended, however they did, and gets
        how they did from `predecessors`. So a task need not wait itself for what it has started.
        """
        if self._steps.inside is not None:
            raise InvalidInput(f"start_many inside the step {self._steps.inside!r}: expected it outside of steps")
        entry = await self._steps.enter(f"start {len(calls)} tasks")
        if entry.result is not None:
            return [str(task_id) for task_id in from_json(entry.result)]
        children = [self._child(call, child_id(self.task_id, entry.number, at)) for at, call in enumerate(calls)]
        last = self._child(then, child_id(self.task_id, entry.number, len(calls))) if then else None
        ids = await self._services.start_many(children, self.user_id, self.info.correlation_id, then=last)
        await self._steps.store(entry, to_json(ids), 0.0)
        return ids

    async def predecessors(self) -> list[End]:
        """How the tasks ended after which this one was to begin, in their order; none where it was to begin at once.

        One that has not ended in seven days is not waited for any longer; its error is a `WaitTimeout`. Raises
        `TooLarge` when the results together exceed 8 MiB, and `Gone` for a result that is not kept any more.
        """
        return await self._waits.predecessors(self.info.after)

    async def sleep(self, duration: timedelta) -> None:
        """Go on in `duration`, up to ten years; the task holds no slot and no memory meanwhile."""
        await self._waits.time("sleep", duration)

    async def wait_event(self, name: str, *, timeout: timedelta = DEFAULT_WAIT, returns: Any = None) -> Any:
        """Wait for an event from outside (`POST /api/tasks/{id}/events`); its payload, of the type `returns`.

        Events of one name are taken one by one, in the order in which they came, also those that came before the task
        waited. Raises `WaitTimeout`, and `InvalidResult` for a payload that the type does not accept.
        """
        return await self._waits.event(name, timeout, returns)

    async def approval(
        self, request: ApprovalRequest, expires_in: timedelta = DEFAULT_EXPIRY, *, edits: Any = None
    ) -> Decision:
        """Ask a person, and wait for the answer (`POST /api/approvals/{id}`) at most `expires_in`, up to ten years.

        A rejection is an answer: `approved` is False. `edits` is the type (a model) of what the person may want
        otherwise; without it any JSON object. Raises `ApprovalExpired` (a `WaitTimeout`), `ApprovalWithdrawn`, and
        `InvalidInput` or `TooLarge` for what cannot be asked. See `app/engine/approvals.py`.
        """
        return await self._approvals.ask(request, expires_in, edits)

    async def run_cpu(self, function: Callable[A, T], *args: A.args, **kwargs: A.kwargs) -> T:
        """Run CPU-bound work in a thread, away from the event loop; `NIGHTSHIFT_CPU_THREADS` (4) at once in a process.

        A thread cannot be stopped: when the task is cancelled, its result is thrown away once it is there. To report
        progress from inside, give the function `ctx.reporter()` as an argument.
        """
        call = partial(function, *args, **kwargs)
        # With the context of the task, so that what the thread logs is about it.
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._services.executor, context.run, call)

    def reporter(self) -> Reporter:
        """A plain function `(current, total, label)` that may be called from a thread; the loop emits the progress, or
        of progress that comes faster than it can be written the latest."""
        reporter = ThreadReporter(self.progress, asyncio.get_running_loop())
        self._reporters.append(reporter)
        return reporter

    async def settle(self) -> None:
        """Wait until what threads have reported is written (called when the task has returned)."""
        for reporter in self._reporters:
            await reporter.written()

    def _child(self, call: Call, task_id: str | None = None) -> Submission:
        info = self.info
        return Submission(
            task=call.name,
            params=call.params,
            delay_s=call.delay.total_seconds(),
            priority=call.priority,
            key=call.key,
            policy=policy_of(call.on_busy),
            project_id=info.project_id,
            tags=info.tags,
            parent_id=info.task_id,
            root_id=info.root_id or info.task_id,
            parent_token=info.token,
            task_id=task_id,
            label=call.label,
        )

    async def _emit(self, stream: str, kind: str, payload: bytes, progress: bytes) -> None:
        self._written += 1
        item = Emit(self.task_id, self.info.token, self._written, stream, kind, payload, progress)
        if not await self._services.emit(item):
            raise LeaseLost(f"attempt {self.attempt} of task {self.task_id} has lost its lease")
