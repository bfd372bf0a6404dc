"""The one error tree.

Every error that Nightshift raises on purpose derives from `NightshiftError`. A class says two things once and for all:
`status_code`, the HTTP status the API answers with, and `retryable`, whether running the same task again may help. An
instance names the ids and values it concerns and says what was expected.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

MAX_ERROR_TEXT = 4_000
"""Characters of error text that are kept in a record, an event or a dead letter."""


class NightshiftError(Exception):
    """Base of all deliberate errors.

    `detail` is one sentence for the person who meets it. `pointer` is a JSON pointer into the request body when a
    field is at fault. `retry_after_s` is how long to wait before trying again, where that is known.
    """

    status_code: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retryable: bool = False

    def __init__(self, detail: str, *, pointer: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.pointer = pointer
        self.retry_after_s = retry_after_s

    def extra(self) -> dict[str, Any]:
        """Further members of the problem document and of the task's error record."""
        return {}

    def move(self, prefix: str) -> None:
        """Put a prefix before the pointer, for what stands inside something larger."""
        self.pointer = prefix + (self.pointer or "")


class SettingsError(NightshiftError):
    """A setting has a value that cannot be used; the process must not start."""

    title = "Invalid settings"


# What a client of the API did.


class InvalidInput(NightshiftError):
    """A parameter or field is missing or wrong; nothing was changed.

    `faults` are all that is wrong, as JSON pointers and what is wrong there, where there may be more than one thing.
    """

    status_code = 422
    title = "Invalid input"

    def __init__(self, detail: str, *, pointer: str | None = None, faults: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(detail, pointer=pointer)
        self.faults = faults or (((pointer, detail),) if pointer is not None else ())

    def move(self, prefix: str) -> None:
        """Put a prefix before all pointers, for what stands inside something larger."""
        super().move(prefix)
        self.faults = tuple((prefix + pointer, detail) for pointer, detail in self.faults)


class Unauthorized(NightshiftError):
    """No credentials, or credentials that are unknown, expired or revoked."""

    status_code = 401
    title = "Unauthorized"


class Forbidden(NightshiftError):
    """Known caller, but the scope or the origin does not allow it."""

    status_code = 403
    title = "Forbidden"


class NotFound(NightshiftError):
    """No such thing, or it belongs to somebody else; the two are not told apart."""

    status_code = 404
    title = "Not found"


class Conflict(NightshiftError):
    """The state of the thing does not allow the operation."""

    status_code = 409
    title = "Conflict"


class Gone(NightshiftError):
    """It was there and has expired."""

    status_code = 410
    title = "Gone"


class TooLarge(NightshiftError):
    """Something exceeds a bound; the detail names the bound."""

    status_code = 413
    title = "Too large"


class QueueFull(NightshiftError):
    """A queue holds as many tasks as its bound allows; nothing was enqueued."""

    status_code = 503
    title = "Queue full"
    retryable = True


class Unavailable(NightshiftError):
    """Redis cannot be reached, or the service is shutting down."""

    status_code = 503
    title = "Unavailable"
    retryable = True


# What happened to a task.


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


# What the outside world did. Clients raise these and nothing else.


class ClientError(TaskError):
    """Base of what goes wrong between Nightshift and a system outside."""

    status_code = 502
    title = "Upstream failure"


class RemoteTimeout(ClientError):
    """The other side did not answer in time."""

    status_code = 504
    title = "Upstream timeout"
    retryable = True


class RemoteUnreachable(ClientError):
    """No connection could be made, or it broke in the middle."""

    title = "Upstream unreachable"
    retryable = True


class RemoteStatus(ClientError):
    """The other side answered with an error status (`remote_status`).

    408, 425, 429 and 5xx are retryable; `Retry-After` is kept as `retry_after_s`.
    """

    title = "Upstream error"

    def __init__(self, detail: str, *, remote_status: int, retry_after_s: float | None = None) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.remote_status = remote_status
        self.retryable = remote_status in (408, 425, 429) or 500 <= remote_status <= 599

    def extra(self) -> dict[str, Any]:
        """The status that the other side answered with."""
        return {"remote_status": self.remote_status}


class CredentialsRefused(ClientError):
    """Credentials are missing, or the other side does not accept them."""

    title = "Credentials refused"


class NotConfigured(ClientError):
    """The capability needs a setting that is not set; the detail names it."""

    status_code = 503
    title = "Not configured"


class MalformedReply(ClientError):
    """The other side broke its protocol: no JSON, missing fields, a stream cut before its end."""

    title = "Malformed reply"
    retryable = True


class ReplyTooLarge(ClientError):
    """The other side sent more than the bound, which the detail names; reading stopped there."""

    title = "Reply too large"


class UnsupportedContent(ClientError):
    """Content of a type that cannot be read; the detail names the type."""

    status_code = 415
    title = "Unsupported content"


class InvalidModelOutput(ClientError):
    """A model's reply did not validate against the asked-for structure, also after the re-asks."""

    title = "Invalid model output"


class UnsafeUrl(ClientError):
    """A URL that the rules refuse: scheme, credentials in it, an address that is not public."""

    status_code = 422
    title = "Unsafe URL"


class RepositoryNotFound(ClientError):
    """The repository does not exist or is hidden from these credentials."""

    status_code = 404
    title = "Repository not found"


class RefNotFound(ClientError):
    """The branch, tag or commit does not exist in the repository."""

    status_code = 404
    title = "Ref not found"


class PushRejected(ClientError):
    """The remote branch moved or is protected; nothing was overwritten."""

    status_code = 409
    title = "Push rejected"


class PathNotFound(ClientError):
    """The revision has no such file."""

    status_code = 404
    title = "Path not found"


class PatchRejected(ClientError):
    """The patch does not apply to the commit it was meant for, or is no patch; nothing was changed."""

    status_code = 422
    title = "Patch does not apply"


class PushForbidden(PushRejected):
    """The remote's own rules refuse the push, such as a protected branch or a hook; a rebase would not help."""

    title = "Push forbidden"


class MergeConflict(ClientError):
    """Commits could not be moved onto the remote branch; the workspace is as it was. `files` are in conflict."""

    status_code = 409
    title = "Merge conflict"

    def __init__(self, detail: str, *, files: tuple[str, ...]) -> None:
        super().__init__(detail)
        self.files = files

    def extra(self) -> dict[str, Any]:
        """The files in conflict."""
        return {"files": list(self.files)}


class GitFailed(ClientError):
    """git ended with an error that none of the classes above describes."""

    title = "git failed"
