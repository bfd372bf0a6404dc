"""What the harness itself raises. Both are assertions: a test that meets one has failed, and pytest shows the text."""

from __future__ import annotations


class HarnessError(AssertionError):
    """The test gave the harness too little to run the task, or something that it cannot use; the text says what."""


class NotReplaySafe(AssertionError):
    """A task does not do the same when it is entered again; the text lists what differs."""
