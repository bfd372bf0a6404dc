"""What the outside world did. Clients raise these and nothing else."""

from __future__ import annotations

from typing import Any

from app.errors.tasks import TaskError


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
