"""What happened to a task."""

from __future__ import annotations

import asyncio
from typing import Any

from app.errors.base import NightshiftError


class TaskError(NightshiftError):
    """Base of the errors that end an attempt."""


class RetryableError(TaskError):
    """Raise it (or a subclass) in a task to say: this may work when run again."""

    title = "Temporary failure"
    retryable = True


class PermanentError(TaskError):
    """Raise it (or a subclass) in a task to say: running this again cannot help."""

    title = "Permanent failure"


class UnknownTask(PermanentError):
    """No worker that knows the task's name came by within `NIGHTSHIFT_UNKNOWN_TASK_TTL_S`."""

    status_code = 404
    title = "Unknown task"


class UndecodablePayload(PermanentError):
    """The stored payload is not the JSON of an arq job."""

    title = "Undecodable payload"


class TaskExpired(PermanentError):
    """The payload was gone before a worker came to it (arq clients set such an expiry)."""

    title = "Task expired"


class WorkerLost(PermanentError):
    """The workers that ran the task died as often as it had tries."""

    title = "Worker lost"


class ResultTooLarge(PermanentError):
    """The task returned more than the bound on results."""

    title = "Result too large"


class InvalidResult(PermanentError):
    """The task returned something that its result model does not accept."""

    title = "Invalid result"


class StepOrderChanged(PermanentError):
    """A task came to its steps in another order than in an earlier attempt."""

    title = "Step order changed"


class QuotaTooSmall(PermanentError):
    """A call needs more at once than the limit of its key gives in a minute; the detail names both."""

    status_code = 422
    title = "Quota too small"


class WaitingForQuota(TaskError):
    """Why a task was sent away for a while: its call did not fit into the limits of a key. Not a failure."""

    title = "Waiting for quota"
    retryable = True


class ChildFailed(PermanentError):
    """A task that this one waited for failed for good or was cancelled; `error` is its error record."""

    title = "Child failed"

    def __init__(self, task_id: str, task: str, status: str, error: dict[str, Any]) -> None:
        super().__init__(f"{task} {task_id}: {error.get('type')}: {error.get('message')}")
        self.task_id, self.task, self.status, self.error = task_id, task, status, error

    def extra(self) -> dict[str, Any]:
        """Which task, and what it died of."""
        return {"task_id": self.task_id, "task": self.task, "status": self.status, "error": self.error}


class WaitTimeout(PermanentError):
    """What the task waited for did not come before the deadline."""

    title = "Wait timed out"


class ApprovalExpired(WaitTimeout):
    """Nobody decided on the approval that the task waited for before its deadline."""

    title = "Approval expired"


class ApprovalWithdrawn(PermanentError):
    """The approval that the task waited for was withdrawn."""

    title = "Approval withdrawn"


class HardTimeLimit(RetryableError):
    """The task did not end by its hard time limit and was stopped."""

    title = "Hard time limit"


class LeaseLost(TaskError):
    """Another attempt owns the task; this one must stop and can write nothing more."""

    status_code = 409
    title = "Lease lost"


class SoftTimeLimit(asyncio.CancelledError):
    """Raised *inside* a task at its soft time limit, at the point where it awaits.

    It derives from `CancelledError` so that `except Exception` does not swallow it and task groups end their children.
    A task may catch it, save what it has, and return a result before the hard limit. Left alone, it ends the attempt,
    which counts as a timeout and is retried by the policy.
    """


class TaskCancelled(asyncio.CancelledError):
    """Raised inside a task whose owner cancelled it, at the point where it awaits. Clean up and let it pass."""
