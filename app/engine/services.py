"""What a worker lends to the contexts of its attempts: the doors to the store, and what the process shares.

A restart of Redis holds a task up here, for `PATIENCE_S` at most, and costs it no try: what is read, and an approval
that is asked for, is repeated, as the writes of `commit.py` are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial

from pydantic_core import from_json

from app.engine.commit import Committer
from app.engine.job import FINISHED, Status
from app.engine.lending import Resources
from app.engine.limits import Quotas
from app.engine.patience import PATIENCE_S, insist
from app.engine.queue import MAX_BATCH, TaskQueue
from app.engine.submissions import Submission
from app.engine.waits import End
from app.errors import Gone, LeaseLost, NotFound, TooLarge
from app.store.approval_scripts import ApprovalScripts, Ask
from app.store.items import Emit, StepRecord, TakeEvent
from app.store.scripts import Scripts
from app.telemetry import metrics

MAX_RESULTS_BYTES = 8 * 1024 * 1024
"""What one wait may bring back, all results together."""


class WorkerServices:
    """The services of a worker; see `lending.Services`."""

    def __init__(
        self,
        scripts: Scripts,
        queue: TaskQueue,
        committer: Committer,
        *,
        executor: Executor,
        resources: Resources,
        quotas: Quotas,
    ) -> None:
        self.executor = executor
        self.resources = resources
        self.quotas = quotas
        self._scripts = scripts
        self._approvals = ApprovalScripts(scripts)
        self._queue = queue
        self._committer = committer

    def emit(self, item: Emit) -> Awaitable[int]:
        """Append an event of an attempt."""
        metrics.EVENTS_EMITTED.labels(item.channel.partition(":")[0].replace(".", "task") or "all").inc()
        return self._committer.emit(item)

    def record_step(self, item: StepRecord) -> Awaitable[int]:
        """Store the result of a step of an attempt."""
        return self._committer.record_step(item)

    async def read_steps(self, task_id: str) -> Mapping[str, bytes]:
        """What earlier attempts have stored."""
        return await insist(lambda: self._scripts.read_steps(task_id), f"steps of task {task_id}", PATIENCE_S)

    async def start(self, submission: Submission, user_id: str, correlation_id: str | None) -> str:
        """Enqueue a child task; its id."""

        async def enqueue() -> str:
            return (await self._queue.enqueue(submission, user_id=user_id, correlation_id=correlation_id)).task_id

        if submission.task_id is None and submission.idempotency_key is None:
            # Each call would give it another id, and the reply may be lost rather than the request.
            return await enqueue()
        return await insist(enqueue, f"start of {submission.task}", PATIENCE_S)

    async def start_many(
        self,
        children: Sequence[Submission],
        user_id: str,
        correlation_id: str | None,
        *,
        then: Submission | None = None,
    ) -> list[str]:
        """Enqueue children, in pieces of 1,000, or with `then` in one; see `waits.WaitServices`."""

        async def enqueue(piece: Sequence[Submission]) -> list[str]:
            call = partial(self._queue.enqueue_many, user_id=user_id, correlation_id=correlation_id, then=then)
            made = await insist(lambda: call(piece), f"start of {len(piece)} tasks", PATIENCE_S)
            return [item.task_id for item in made]

        if then is not None:
            return await enqueue(children)
        pieces = (children[first : first + MAX_BATCH] for first in range(0, len(children), MAX_BATCH))
        return [task_id for piece in pieces for task_id in await enqueue(piece)]

    async def read_ends(self, task_ids: Sequence[str], user_id: str) -> list[End | None]:
        """How tasks of a user ended; see `waits.WaitServices`."""
        rows = await insist(
            lambda: self._scripts.read_ends(task_ids, MAX_RESULTS_BYTES), f"ends of {len(task_ids)} tasks", PATIENCE_S
        )
        if rows is None:
            raise TooLarge(
                f"the results of {len(task_ids)} tasks exceed the bound of {MAX_RESULTS_BYTES} bytes together; "
                "have them store what they made and return where it is"
            )
        return [_end(task_id, row, user_id) for task_id, row in zip(task_ids, rows, strict=True)]

    async def cancel_children(self, task_ids: Sequence[str]) -> None:
        """Cancel tasks with all that they started."""
        await insist(lambda: self._queue.cancel_many(task_ids), f"cancel of {len(task_ids)} tasks", PATIENCE_S)

    async def take_event(self, item: StepRecord, event: str) -> bytes | None:
        """Take an event from the task's inbox; see `waits.WaitServices`."""
        reply = await self._committer.take_event(TakeEvent(item, event))
        if reply[0] == b"stale":
            raise LeaseLost(f"task {item.id} took no event {event!r}: its lease is lost")
        return reply[1] if reply[0] == b"ok" else None

    async def ask_approval(self, item: Ask) -> list[bytes]:
        """Ask for an approval, or look at what has become of it; see `approvals.ApprovalServices`."""
        reply = await insist(lambda: self._approvals.ask_approval(item), f"approval {item.id}", PATIENCE_S)
        if reply[0] == b"stale":
            raise LeaseLost(f"task {item.task_id} asked for no approval: its lease is lost")
        return reply[1:]


def _end(task_id: str, row: Sequence[bytes], user_id: str) -> End | None:
    owner, task, status, stored = row
    if owner.decode() != user_id:
        raise NotFound(f"no task {task_id}")
    state = Status(status.decode())
    if state not in FINISHED:
        return None
    if not stored:
        raise Gone(f"the result of task {task_id} is not kept any more")
    value = from_json(stored)["r"]
    if state is Status.SUCCESS:
        return End(task_id, task.decode(), state, result=value)
    return End(task_id, task.decode(), state, error=value)
