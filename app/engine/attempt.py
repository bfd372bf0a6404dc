"""One attempt of a task: a chain of small steps that ends in one of a closed set of outcomes.

    refuse -> decode -> call -> result            -> Completed
       |         |        |- error --- policy --- -> Again | Failed
       |         |        |- it leaves by itself  -> Suspended | HandedBack
       |         |        |- cancelled by owner   -> Cancelled
       |         |        |- worker is stopping   -> HandedBack
       |         |        |- lease lost           -> Abandoned (nothing may be written)
       |         |- unknown task                  -> HandedBack, or Failed after NIGHTSHIFT_UNKNOWN_TASK_TTL_S
       |- cancelled, expired, too many deaths     -> Cancelled | Failed

An attempt knows no Redis. `outcome` runs the chain; the lane commits what it returns.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from loguru import logger
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, from_json

from app.engine import wire
from app.engine.context import TaskContext
from app.engine.faults import faults_of
from app.engine.interrupt import Interruptible
from app.engine.job import ErrorInfo, bound_text, moment
from app.engine.lending import Services
from app.engine.outcomes import Abandoned, Again, Cancelled, Completed, Failed, HandedBack, Outcome, Suspended
from app.engine.policy import RetryPolicy, after_failure
from app.engine.registry import Catalogue, Task, TaskSpec
from app.engine.task_info import TaskInfo
from app.errors import (
    HardTimeLimit,
    InvalidInput,
    InvalidResult,
    LeaseLost,
    PermanentError,
    ResultTooLarge,
    SoftTimeLimit,
    TaskCancelled,
    TaskExpired,
    UndecodablePayload,
    UnknownTask,
    WorkerLost,
)
from app.telemetry import redact

MAX_RESULT_BYTES = 8 * 1024 * 1024
MAX_TRACEBACK_CHARS = 20_000
UNKNOWN_TASK_DELAY_S = (1.0, 30.0)
"""How long an unknown task waits for another worker: a quarter of its age, within these bounds."""
UNKNOWN_SINCE = "unknown_since"
"""Field of a record: when a worker first did not know its task (Unix ms)."""
INSIST_S = 2.0
"""How often a task that survives its hard limit is stopped again."""


class WorkerStopping(asyncio.CancelledError):
    """Raised inside a task when its worker stops and the grace is over; it will run again elsewhere."""


class _LeaseGone(asyncio.CancelledError):
    pass


class _HardStop(asyncio.CancelledError):
    pass


class Leaving(asyncio.CancelledError):
    """Raised inside a task that leaves its worker for now, to wait; what it cleans up it does on its way out."""

    def __init__(self, outcome: Suspended | HandedBack) -> None:
        super().__init__("the task leaves its worker for now")
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Claim:
    """A task that this worker has taken. `started_ms` is the server's time of the claim; `fields` is the task's
    record."""

    task_id: str
    queue: str
    payload: bytes
    token: int
    attempt: int
    lost: bool
    started_ms: int
    fields: dict[str, str]
    steps: Mapping[str, bytes] | None = None
    """What is stored of its steps; None where there is nothing, or so much that it has to be read."""


class Attempt:
    """Runs one claim. `unknown_task_ttl_s` bounds how long a task that nobody knows is handed on."""

    def __init__(self, claim: Claim, catalogue: Catalogue, services: Services, *, unknown_task_ttl_s: float) -> None:
        self.claim = claim
        self.task = catalogue.get(claim.fields["task"])
        self._services = services
        self._unknown_task_ttl_s = unknown_task_ttl_s
        self._stop: asyncio.CancelledError | None = None
        self._running: Interruptible[Any] | None = None
        self._payload: wire.Payload | None = None

    @property
    def payload(self) -> wire.Payload:
        """The decoded payload. Raises `UndecodablePayload`."""
        if self._payload is None:
            self._payload = wire.decode_payload(self.claim.payload)
        return self._payload

    @property
    def hard_deadline(self) -> float:
        """When the attempt must have ended, on `time.monotonic()`."""
        return time.monotonic() + (self.task.spec.limits.hard_s if self.task else 60.0)

    def cancel(self) -> None:
        """The owner cancelled the task: raise `TaskCancelled` inside it, once. It may take its time to clean up."""
        if not isinstance(self._stop, TaskCancelled):
            self._interrupt(TaskCancelled("the task was cancelled"))

    def leave(self, outcome: Suspended | HandedBack) -> None:
        """The task itself has nothing to do for now: raise `Leaving` inside it; its attempt ends with `outcome`."""
        self._interrupt(Leaving(outcome))

    def lose(self) -> None:
        """The lease is lost: stop, and write nothing more."""
        self._interrupt(_LeaseGone("the lease was lost"))

    def hand_back(self) -> None:
        """The worker stops: raise `WorkerStopping` inside it."""
        self._interrupt(WorkerStopping("the worker is stopping"))

    def handed_back(self) -> HandedBack:
        """The outcome of an attempt that is not waited for any longer."""
        return _handed_back(WorkerStopping("the worker is stopping"), 0.0)

    async def outcome(self) -> Outcome:
        """Run the chain to its end. Never raises for what the task does."""
        refusal = self._refuse()
        if refusal is not None:
            return refusal
        assert self.task is not None
        try:
            params = self._params(self.task.spec)
        except (UndecodablePayload, InvalidInput) as error:
            return _failed(error, retryable=False)
        try:
            value = await self._call(self.task, params)
            result = _result_json(self.task.spec, value)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return self._after(error, self.task.spec.retry)
        if isinstance(self._stop, Leaving):
            # It has swallowed the interruption and returned something: it still waits, and comes to this place again.
            return self._stop.outcome
        return Cancelled(result) if isinstance(self._stop, TaskCancelled) else Completed(result)

    def _refuse(self) -> Outcome | None:
        """What ends the attempt before the task's code runs."""
        claim = self.claim
        if self._stop is not None or "cancel" in claim.fields:
            return self._stopped_early()
        if not claim.payload:
            return _failed(TaskExpired(f"the payload of task {claim.task_id} expired before it began"), retryable=False)
        if self.task is None:
            return self._unknown()
        if claim.attempt > self.task.spec.retry.max_attempts:
            return _failed(WorkerLost(f"{claim.attempt - 1} workers died while they ran the task"), retryable=False)
        return None

    def _stopped_early(self) -> Outcome:
        if isinstance(self._stop, _LeaseGone):
            return Abandoned()
        if isinstance(self._stop, WorkerStopping) and "cancel" not in self.claim.fields:
            return _handed_back(self._stop, 0.0)
        return Cancelled()

    def _unknown(self) -> Outcome:
        name = self.claim.fields["task"]
        # Not since the enqueue: a task may have been delayed for longer than the bound.
        since_ms = int(self.claim.fields.get(UNKNOWN_SINCE, self.claim.started_ms))
        age_s = (self.claim.started_ms - since_ms) / 1000
        if name == "?":
            return _failed(UndecodablePayload("expected the JSON of an arq job as the payload"), retryable=False)
        error = UnknownTask(f"no worker knows a task called {name!r}")
        if age_s > self._unknown_task_ttl_s:
            return _failed(error, retryable=False)
        low, high = UNKNOWN_TASK_DELAY_S
        return replace(_handed_back(error, min(max(age_s / 4, low), high)), mark=UNKNOWN_SINCE)

    def _params(self, spec: TaskSpec) -> BaseModel:
        values = self.payload.params(spec.param_names)
        try:
            return spec.params.model_validate(values)
        except ValidationError as error:
            raise InvalidInput(f"params: {redact(faults_of(error))}") from None

    async def _call(self, task: Task[Any, Any], params: BaseModel) -> Any:
        loop = asyncio.get_running_loop()
        ctx = TaskContext(self._info(task.spec), self._services, self.leave)
        self._running = Interruptible(task.function(ctx, params))  # type: ignore[arg-type]
        bounds = task.spec.limits
        soft = loop.call_later(
            bounds.soft_s, self._running.interrupt, SoftTimeLimit(f"soft limit of {bounds.soft_s:g} s")
        )
        hard = loop.call_later(bounds.hard_s, self._insist)
        self._hard_timer = hard
        try:
            value = await self._running
            await ctx.settle()
        finally:
            soft.cancel()
            self._hard_timer.cancel()
        return value

    def _insist(self) -> None:
        self._interrupt(_HardStop("hard limit"))
        self._hard_timer = asyncio.get_running_loop().call_later(INSIST_S, self._insist)

    def _interrupt(self, reason: asyncio.CancelledError) -> None:
        # The first reason wins, but a lost lease outdoes all: nothing may be written then. A task that leaves by itself
        # may be overtaken by any other.
        if self._stop is None or isinstance(self._stop, Leaving) or isinstance(reason, _LeaseGone):
            self._stop = reason
        if self._running is not None:
            self._running.interrupt(reason)

    def _after(self, error: BaseException, policy: RetryPolicy) -> Outcome:
        """What follows when the task's code raised."""
        if isinstance(self._stop, _LeaseGone) or isinstance(error, LeaseLost):
            return Abandoned()
        if isinstance(self._stop, TaskCancelled):
            return Cancelled()
        if isinstance(self._stop, WorkerStopping) or _is_cancelled_from_outside(error):
            return _handed_back(WorkerStopping("the worker is stopping"), 0.0)
        if isinstance(self._stop, Leaving):
            return self._stop.outcome
        if isinstance(self._stop, _HardStop):
            assert self.task is not None
            error = HardTimeLimit(f"the task did not end within its hard limit of {self.task.spec.limits.hard_s:g} s")
        decision = after_failure(error, self.claim.attempt, policy)
        if decision.delay_s is None:
            return _failed(error, retryable=decision.retryable)
        return Again(ErrorInfo.of(error, retryable=True), decision.delay_s)

    def _info(self, spec: TaskSpec) -> TaskInfo:
        claim, fields = self.claim, self.claim.fields
        return TaskInfo(
            task_id=claim.task_id,
            task=spec.name,
            queue=claim.queue,
            user_id=fields["user_id"],
            project_id=fields.get("project_id"),
            parent_id=fields.get("parent_id"),
            root_id=fields.get("root_id"),
            correlation_id=fields.get("correlation_id"),
            tags=tuple(fields["tags"].split("\n")) if "tags" in fields else (),
            attempt=claim.attempt,
            max_attempts=spec.retry.max_attempts,
            enqueued_at=moment(fields["enqueued_at"]),
            token=claim.token,
            claimed_ms=claim.started_ms,
            percent=_percent(fields),
            steps=claim.steps if "steps" in fields else {},
            after=tuple(fields["after"].split("\n")) if "after" in fields else (),
        )


def _is_cancelled_from_outside(error: BaseException) -> bool:
    """Whether the loop itself is ending, which is no fault of the task."""
    current = asyncio.current_task()
    return type(error) is asyncio.CancelledError and current is not None and current.cancelling() > 0


def _percent(fields: dict[str, str]) -> float:
    return float(from_json(fields["progress"])["percent"]) if "progress" in fields else 0.0


def _result_json(spec: TaskSpec, value: Any) -> bytes:
    try:
        data = spec.result.dump_json(spec.result.validate_python(value), by_alias=True)
    except (ValidationError, PydanticSerializationError) as error:
        raise InvalidResult(f"{spec.name} returned what its result type does not accept: {faults_of(error)}") from error
    if len(data) > MAX_RESULT_BYTES:
        raise ResultTooLarge(f"a result of {len(data)} bytes exceeds the bound of {MAX_RESULT_BYTES} bytes")
    return data


def _failed(error: BaseException, *, retryable: bool) -> Failed:
    text = "".join(traceback.format_exception(error))
    if not isinstance(error, PermanentError):
        logger.opt(exception=error).warning("task failed: {}", type(error).__name__)
    return Failed(ErrorInfo.of(error, retryable=retryable), bound_text(redact(text), MAX_TRACEBACK_CHARS))


def _handed_back(reason: BaseException, delay_s: float) -> HandedBack:
    return HandedBack(ErrorInfo.of(reason, retryable=True), delay_s)
