"""What a client of the API did."""

from __future__ import annotations

from app.errors.base import NightshiftError


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
