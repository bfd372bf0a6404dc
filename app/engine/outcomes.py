"""How an attempt can end: a closed set, so that the lane commits each of them and forgets none."""

from __future__ import annotations

from dataclasses import dataclass

from app.engine.job import ErrorInfo


@dataclass(frozen=True, slots=True)
class Completed:
    """The task returned; `result` is JSON."""

    result: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """The task is over with an error."""

    error: ErrorInfo
    traceback: str


@dataclass(frozen=True, slots=True)
class Again:
    """The task runs again in `delay_s` seconds, which costs it a try."""

    error: ErrorInfo
    delay_s: float


@dataclass(frozen=True, slots=True)
class HandedBack:
    """The task runs again, here or elsewhere, in `delay_s` seconds, which costs it nothing.

    `mark` names a field of the record that keeps the time of the first hand-back with this mark.
    """

    reason: ErrorInfo
    delay_s: float
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Suspended:
    """The task waits; it runs again, which costs it nothing, when what it waits for has come about or time is up.

    `number` is that of the wait among the task's steps, `facts` what it needs to know of it then (JSON). `subjects` are
    what it waits for, see `app/engine/waits.py`; none: only for time. With `fail_fast` the first task that fails ends
    the wait. `timeout_ms` counts from the first time that the task comes to this wait. `waiting_for` is shown (JSON).
    """

    number: int
    facts: bytes
    subjects: tuple[str, ...]
    fail_fast: bool
    timeout_ms: int
    waiting_for: bytes


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The owner cancelled it; `result` is the JSON of what it returned all the same, or empty."""

    result: bytes = b""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """Another attempt owns the task; nothing may be written."""


Outcome = Completed | Failed | Again | HandedBack | Suspended | Cancelled | Abandoned
