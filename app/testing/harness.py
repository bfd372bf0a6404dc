"""Running one task in a test: in process, without Redis, under a clock that stands still until the task waits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Generic, Self, TypedDict, TypeVar, Unpack

from pydantic import BaseModel

from app.engine.approval_desk import Verdict, approval_of
from app.engine.job import moment
from app.engine.lending import Resources
from app.engine.registry import Task
from app.engine.submissions import Submission
from app.settings import QuotaLimits
from app.testing.approvals import Decider, Decisions, verdict_on
from app.testing.children import Fakes, cast_of
from app.testing.errors import HarnessError
from app.testing.ledger import Dies, Moment
from app.testing.run import Run, run_of
from app.testing.world import World

P = TypeVar("P", bound=BaseModel)
R = TypeVar("R")

PATIENCE_S = 10.0


class Options(TypedDict, total=False):
    """What surrounds a task in a test; all of it may be left out."""

    children: Fakes
    """What answers for the tasks that it starts."""
    tasks: Iterable[Task[Any, Any]]
    """Tasks that it may start and that run as they are."""
    events: Iterable[tuple[str, Any] | tuple[str, Any, timedelta]]
    """Events from outside: name, payload, and how long after the start they come (at once)."""
    decisions: Decisions
    """What persons decide on the approvals that it asks for; without it they expire."""
    resources: Resources
    """What `ctx.use` gives."""
    quotas: Mapping[str, QuotaLimits]
    """Limits that a single call must fit into. Else quota is granted at once."""
    quota_waits: Mapping[str, timedelta]
    """Keys whose first call is sent away, and for how long: the task leaves its worker and is entered again."""
    user_id: str
    project_id: str | None
    tags: tuple[str, ...]
    clock_start: datetime
    """Where the fake clock starts, with its offset; now."""
    cancel_after: timedelta
    """When its owner cancels the task."""
    patience_s: float
    """How long a task may run in real time without coming to a wait; 10."""


class TaskHarness(Generic[P, R]):
    """A task in a test, step by step; `run_task` does it in one call.

        async with TaskHarness(remind, Remind(order="4711"), children={"mail.send": "sent"}) as harness:
            assert harness.run.waiting_for["kind"] == "time"
            await harness.advance(timedelta(days=7))
            assert harness.run.result == "reminded"

    Entering the block enqueues the task and runs it to its first wait; one that is debounced is entered when the clock
    comes to the end of its quiet time. The clock of the engine is fake;
    `datetime.now()` in the task's own code is not touched.
    """

    def __init__(
        self, task: Task[P, R], params: P | dict[str, Any], *, dies: Dies | None = None, **options: Unpack[Options]
    ) -> None:
        self._task = task
        self._params = params
        self._options = options
        self._start_ms = _start_ms(options)
        self.cast = cast_of(task, options.get("tasks", ()), options.get("children", {}))
        self.world = World(
            self.cast,
            self._start_ms,
            dies=dies or _nobody,
            resources=options.get("resources", {}),
            quotas=options.get("quotas", {}),
            quota_waits=options.get("quota_waits", {}),
            patience_s=options.get("patience_s", PATIENCE_S),
        )
        self.world.scripts.asked = self._plan_decision
        self.task_id = ""

    @property
    def run(self) -> Run[R]:
        """The task as it stands now."""
        uses = self.world.quotas.uses(self.task_id)
        return run_of(self._task, self.world.scripts, self.task_id, self._start_ms, uses)

    @property
    def now(self) -> datetime:
        """The fake clock, aware and in UTC."""
        return moment(self.world.scripts.now_ms)

    async def __aenter__(self) -> Self:
        try:
            await self._begin()
        except BaseException:
            await self.world.close()
            raise
        return self

    async def _begin(self) -> None:
        options = self._options
        submission = Submission(
            task=self._task.name,
            params=self._params,
            project_id=options.get("project_id"),
            tags=options.get("tags", ()),
        )
        accepted = await self.world.queue.enqueue(submission, user_id=options.get("user_id", "tester"))
        self.task_id = accepted.task_id
        for event in options.get("events", ()):
            await self._plan_event(*event)
        if "cancel_after" in options:
            self.world.plan(self._start_ms + _ms(options["cancel_after"]), self.cancel)
        await self.world.settle()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.world.close()

    async def finish(self) -> Run[R]:
        """Move the clock on until the task has ended."""
        await self.world.finish(self.task_id)
        return self.run

    async def advance(self, by: timedelta) -> Run[R]:
        """Move the clock on; everything that is due meanwhile happens at its time."""
        await self.world.advance(self.world.scripts.now_ms + _ms(by))
        return self.run

    async def send(self, name: str, payload: Any = None) -> None:
        """Give the task an event from outside, and run it to its next wait. Raises what delivering raises."""
        await self.world.inbox.deliver(self.task_id, name, payload, user_id=None)
        await self.world.settle()

    async def decide(self, verdict: Verdict | bool, *, subject: str | None = None) -> None:
        """Decide on the approval that waits (on the one with this subject), as somebody who may, and run the task to
        its next wait. Raises what deciding raises."""
        waiting = [
            approval_id
            for approval_id, fields in self.world.scripts.approvals.records.items()
            if fields["status"] == "PENDING" and subject in (None, fields["subject"])
        ]
        if len(waiting) != 1:
            raise HarnessError(f"{len(waiting)} approvals wait{f' about {subject!r}' if subject else ''}: expected one")
        await self._decide(waiting[0], Verdict(verdict) if isinstance(verdict, bool) else verdict)
        await self.world.settle()

    async def cancel(self) -> None:
        """Cancel the task as its owner; nothing happens when it has ended."""
        await self.world.queue.cancel_many([self.task_id])
        await self.world.settle()

    def _plan_decision(self, approval_id: str) -> None:
        # Not here: what is wrong with the answer is for the test to see, not for the task that asks.
        self.world.plan(self.world.scripts.now_ms, lambda: self._answer(approval_id))

    async def _answer(self, approval_id: str) -> None:
        approval = approval_of(approval_id, self.world.scripts.approvals.records[approval_id])
        planned = verdict_on(approval, self._options.get("decisions", {}))
        if planned is not None:
            after, verdict = planned
            at_ms = self.world.scripts.now_ms + _ms(after)
            self.world.plan(at_ms, lambda: self._decide_if_pending(approval_id, verdict))

    async def _decide_if_pending(self, approval_id: str, verdict: Verdict) -> None:
        if self.world.scripts.approvals.records[approval_id]["status"] == "PENDING":
            await self._decide(approval_id, verdict)

    async def _decide(self, approval_id: str, verdict: Verdict) -> None:
        approval = approval_of(approval_id, self.world.scripts.approvals.records[approval_id])
        await self.world.desk.decide(approval_id, verdict, Decider.of(approval))

    async def _plan_event(self, name: str, payload: Any, after: timedelta = timedelta()) -> None:
        if not after:
            await self.world.inbox.deliver(self.task_id, name, payload, user_id=None)
            return
        self.world.plan(self._start_ms + _ms(after), lambda: self._send_if_unfinished(name, payload))

    async def _send_if_unfinished(self, name: str, payload: Any) -> None:
        if not self.world.scripts.records[self.task_id].finished:
            await self.send(name, payload)


async def run_task(task: Task[P, R], params: P | dict[str, Any], **options: Unpack[Options]) -> Run[R]:
    """Run a task to its end, however long it sleeps, waits or backs off, and say what became of it.

    See `Options` for what can be put around it. Raises `HarnessError` when the task asks for something that the test
    did not give, and what enqueuing raises, such as `InvalidInput` for wrong parameters.
    """
    async with TaskHarness(task, params, **options) as harness:
        return await harness.finish()


def _start_ms(options: Options) -> int:
    start = options.get("clock_start") or datetime.now(UTC)
    if start.tzinfo is None:
        raise HarnessError(f"clock_start={start.isoformat()}: expected a time with its offset")
    return int(start.timestamp() * 1000)


def _ms(span: timedelta) -> int:
    if span < timedelta():
        raise HarnessError(f"{span}: time does not go back")
    return int(span.total_seconds() * 1000)


def _nobody(when: Moment, task_id: str, number: int) -> bool:
    return False
