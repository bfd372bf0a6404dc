"""A lane runs the tasks of one queue in this process: how many at once, how many it takes ahead, and what becomes of
each.

A lane takes ahead only while its tasks are short (`SHORT_S`), so that the next batch is fetched while this one runs; a
lane of long tasks takes what it can start at once, and leaves the rest to other workers.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from loguru import logger
from pydantic_core import from_json

from app.engine import wire
from app.engine.attempt import Attempt, Claim
from app.engine.commit import Committer
from app.engine.job import ErrorInfo, Status
from app.engine.leases import Lease, LeaseKeeper
from app.engine.lending import Services
from app.engine.outcomes import Abandoned, Again, Cancelled, Completed, Failed, HandedBack, Outcome, Suspended
from app.engine.registry import Catalogue
from app.errors import TaskCancelled, UndecodablePayload
from app.store import keys
from app.store.items import Finish, Reschedule, Suspend
from app.telemetry import LogContext, metrics, set_context

SHORT_S = 0.02
"""Tasks shorter than this on average are taken ahead: fetching them costs about as much as running them."""
SMOOTHING = 0.1
MAX_INLINE_RESULT_BYTES = 4 * 1024
"""A result up to this size stands in the event task_complete as well."""


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """How a queue is run: `concurrency` tasks at once; `prefetch` times as many are taken while tasks are short."""

    concurrency: int
    prefetch: int = 4


@dataclass(frozen=True, slots=True)
class Workshop:
    """What the lanes of a process share."""

    catalogue: Catalogue
    committer: Committer
    keeper: LeaseKeeper
    services: Services
    look_again: Callable[[float], None]
    """Called with the seconds until a task of this process is due again."""
    result_ttl_ms: int
    unknown_task_ttl_s: float


class Lane:
    """One queue in this process. `slot_free` is called when a task has ended and there may be room for another."""

    def __init__(self, queue: str, settings: LaneSettings, workshop: Workshop, slot_free: Callable[[], None]) -> None:
        self.queue = queue
        self.settings = settings
        self.backlog = True
        """Whether more due tasks are likely to stand in the queue."""
        self._workshop = workshop
        self._slot_free = slot_free
        self._held: dict[str, Attempt] = {}
        """By task id: what is claimed and not begun, and what runs or whose end is being written."""
        self._ahead: deque[tuple[Attempt, Lease]] = deque()
        self._lifetimes: set[asyncio.Task[None]] = set()
        self._working = 0
        self._mean_s = 1.0

    @property
    def running(self) -> int:
        """Tasks whose code runs now."""
        return self._working

    @property
    def held(self) -> int:
        """Tasks that the lane has claimed and not begun, or that run."""
        return self._working + len(self._ahead)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way, unwritten ends included."""
        return not self._lifetimes and not self._ahead

    def want(self) -> int:
        """How many tasks to claim now."""
        concurrency = self.settings.concurrency
        if self._mean_s > SHORT_S:
            return concurrency - self.held
        # Ask for more while two rounds are left: the next batch comes while these run. Held at most stays the same.
        return concurrency * self.settings.prefetch - self.held if len(self._ahead) <= 2 * concurrency else 0

    def take(self, claim: Claim) -> None:
        """Begin a claimed task, or keep it until a slot is free. Its lease is renewed from now on."""
        if claim.task_id in self._held:
            # Our own lease ran out unseen, as after a pause of the whole process, and the claim took it over.
            self.lose(claim.task_id)
        workshop = self._workshop
        attempt = Attempt(claim, workshop.catalogue, workshop.services, unknown_task_ttl_s=workshop.unknown_task_ttl_s)
        lease = Lease(claim.task_id, claim.token, claim.queue)
        self._held[claim.task_id] = attempt
        workshop.keeper.add(lease)
        self._ahead.append((attempt, lease))
        self._begin()

    def cancel(self, task_id: str) -> bool:
        """Raise `TaskCancelled` in a task. False when it is not held here."""
        attempt = self._held.get(task_id)
        if attempt is not None:
            attempt.cancel()
        return attempt is not None

    def lose(self, task_id: str) -> None:
        """Stop an attempt whose lease is lost."""
        metrics.LEASES_LOST.labels(self.queue).inc()
        attempt = self._held.get(task_id)
        if attempt is not None:
            attempt.lose()

    def hand_back_ahead(self) -> None:
        """Give back what has not begun."""
        while self._ahead:
            attempt, lease = self._ahead.popleft()
            attempt.hand_back()
            self._run(attempt, lease)

    def hand_back_running(self) -> None:
        """Stop what runs, to be run again elsewhere."""
        for attempt in tuple(self._held.values()):
            attempt.hand_back()

    async def write_off(self) -> None:
        """Hand back what has not ended although it was told to. It can write nothing more, and runs again elsewhere."""
        for attempt in tuple(self._held.values()):
            set_context(_log_context(attempt.claim))
            logger.warning("the task does not stop; it is handed back all the same")
            await self._commit(attempt, attempt.handed_back(), 0.0)

    async def join(self) -> None:
        """Wait until all attempts have ended and their ends are written."""
        while self._lifetimes:
            await asyncio.wait(tuple(self._lifetimes))

    def _begin(self) -> None:
        while self._ahead and self._working < self.settings.concurrency:
            self._run(*self._ahead.popleft())

    def _run(self, attempt: Attempt, lease: Lease) -> None:
        self._working += 1
        task = asyncio.get_running_loop().create_task(self._lifetime(attempt, lease))
        self._lifetimes.add(task)
        task.add_done_callback(self._lifetimes.discard)

    async def _lifetime(self, attempt: Attempt, lease: Lease) -> None:
        """Run an attempt, free its slot, write its end."""
        claim = attempt.claim
        lease.hard_deadline = attempt.hard_deadline
        set_context(_log_context(claim))
        metrics.TASKS_RUNNING.labels(self.queue).inc()
        began = time.perf_counter()
        try:
            try:
                outcome = await attempt.outcome()
            finally:
                self._working -= 1
                metrics.TASKS_RUNNING.labels(self.queue).dec()
            elapsed_s = time.perf_counter() - began
            self._mean_s += SMOOTHING * (elapsed_s - self._mean_s)
            self._begin()
            self._slot_free()
            await self._commit(attempt, outcome, elapsed_s)
        finally:
            self._workshop.keeper.remove(lease)
            if self._held.get(claim.task_id) is attempt:
                del self._held[claim.task_id]

    async def _commit(self, attempt: Attempt, outcome: Outcome, elapsed_s: float) -> None:
        claim, written = attempt.claim, 0
        match outcome:
            case Again() | HandedBack():
                written = await self._workshop.committer.reschedule(_reschedule(claim, outcome))
                self._workshop.look_again(outcome.delay_s)
            case Suspended():
                written = await self._workshop.committer.suspend(_suspend(claim, outcome, self._workshop.result_ttl_ms))
                self._workshop.look_again(outcome.timeout_ms / 1000)
            case Completed() | Failed() | Cancelled():
                written = await self._workshop.committer.finish(self._finish(attempt, outcome, elapsed_s))
            case Abandoned():
                pass
        self._count(claim, outcome if written else Abandoned(), elapsed_s)

    def _finish(self, attempt: Attempt, outcome: Completed | Failed | Cancelled, elapsed_s: float) -> Finish:
        claim = attempt.claim
        status, error, event, value = _ending(outcome, elapsed_s)
        result = wire.encode_result(
            task_id=claim.task_id,
            queue_key=keys.queue(claim.queue),
            payload=_readable_payload(attempt),
            task=claim.fields["task"],
            attempt=claim.attempt,
            success=status is Status.SUCCESS,
            result=value,
            started_ms=claim.started_ms,
            finished_ms=claim.started_ms + int(elapsed_s * 1000),
        )
        return Finish(
            id=claim.task_id,
            token=claim.token,
            queue=claim.queue,
            status=status,
            result=result,
            ttl_ms=self._workshop.result_ttl_ms,
            error=error,
            event=event,
            traceback=outcome.traceback if isinstance(outcome, Failed) else "",
            dead_letter=isinstance(outcome, Failed),
        )

    def _count(self, claim: Claim, outcome: Outcome, elapsed_s: float) -> None:
        name = claim.fields["task"] if self._workshop.catalogue.get(claim.fields["task"]) else "unknown"
        metrics.TASK_DURATION_S.labels(self.queue, name).observe(elapsed_s)
        match outcome:
            case Completed():
                metrics.TASKS_FINISHED.labels(self.queue, name, "SUCCESS").inc()
                logger.info("task done in {:.3f} s", elapsed_s)
            case Failed(error=error):
                metrics.TASKS_FINISHED.labels(self.queue, name, "FAILURE").inc()
                logger.error("task failed for good after {:.3f} s: {}: {}", elapsed_s, error.type, error.message)
            case Cancelled():
                metrics.TASKS_FINISHED.labels(self.queue, name, "CANCELLED").inc()
                logger.info("task cancelled after {:.3f} s", elapsed_s)
            case Again(error=error, delay_s=delay_s):
                metrics.TASK_RETRIES.labels(self.queue, name).inc()
                logger.warning("attempt failed, next one in {:.1f} s: {}: {}", delay_s, error.type, error.message)
            case Suspended(waiting_for=waiting_for):
                logger.info("task waits: {}", _wait_words(waiting_for))
            case HandedBack(reason=reason):
                logger.info("task handed back: {}", reason.message)
            case Abandoned():
                logger.warning("attempt stopped: its lease is lost, nothing was written")


def _wait_words(waiting_for: bytes) -> str:
    """A wait as the log names it: its step, and which approval is open."""
    shown = from_json(waiting_for)
    return " ".join(filter(None, (shown["step"], shown.get("approval_id"))))


def _readable_payload(attempt: Attempt) -> wire.Payload | None:
    try:
        return attempt.payload
    except UndecodablePayload:
        return None


def _ending(outcome: Completed | Failed | Cancelled, elapsed_s: float) -> tuple[Status, bytes, bytes, bytes]:
    """Status, error record, event payload and the result's value, all but the first as JSON."""
    match outcome:
        case Completed(result=result):
            return Status.SUCCESS, b"", _with_result(result, elapsed_s), result
        case Failed(error=error):
            record = error.to_json()
            return Status.FAILURE, record, b'{"error":%b}' % record, record
        case Cancelled(result=result):
            record = ErrorInfo.of(TaskCancelled("cancelled"), retryable=False).to_json()
            return Status.CANCELLED, record, _with_result(result, elapsed_s) if result else b"{}", record


def _with_result(result: bytes, elapsed_s: float) -> bytes:
    inline = result if len(result) <= MAX_INLINE_RESULT_BYTES else b"null"
    return b'{"result":%b,"result_bytes":%d,"duration_s":%.3f}' % (inline, len(result), elapsed_s)


def _reschedule(claim: Claim, outcome: Again | HandedBack) -> Reschedule:
    again = isinstance(outcome, Again)
    error = (outcome.error if isinstance(outcome, Again) else outcome.reason).to_json()
    return Reschedule(
        id=claim.task_id,
        token=claim.token,
        queue=claim.queue,
        status=Status.RETRY if again else Status.PENDING,
        delay_ms=int(outcome.delay_s * 1000),
        counts=again,
        error=error if again else b"",
        event_type="task_retrying",
        event=b'{"attempt":%d,"error":%b}' % (claim.attempt, error),
        mark="" if isinstance(outcome, Again) else outcome.mark,
    )


def _suspend(claim: Claim, outcome: Suspended, ttl_ms: int) -> Suspend:
    return Suspend(
        id=claim.task_id,
        token=claim.token,
        queue=claim.queue,
        number=outcome.number,
        facts=outcome.facts,
        timeout_ms=outcome.timeout_ms,
        fail_fast=outcome.fail_fast,
        waiting_for=outcome.waiting_for,
        ttl_ms=ttl_ms,
        subjects=outcome.subjects,
    )


def _log_context(claim: Claim) -> LogContext:
    fields = claim.fields
    return LogContext(
        task=fields["task"],
        task_id=claim.task_id,
        user_id=fields["user_id"],
        project_id=fields.get("project_id"),
        attempt=claim.attempt,
        correlation_id=fields.get("correlation_id"),
    )
