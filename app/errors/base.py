"""What all errors have in common."""

from __future__ import annotations

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
