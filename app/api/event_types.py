"""The events that every task may bring, as clients read of them in the API's documentation."""

from __future__ import annotations

EVENT_TYPES = {
    "task_queued": ("task, queue", "accepted"),
    "task_debounced": ("next_attempt_at", "another request of its key moved the time at which it begins"),
    "task_started": ("attempt", "a worker enters it: at the begin of an attempt, and each time that a wait is over"),
    "task_progress": ("current, total, percent, label", "`percent` never goes back"),
    "task_retrying": ("attempt, error, next_attempt_at", "the attempt ended; the task runs again by itself"),
    "task_waiting": ("waiting_for", "it has left its worker until what it waits for comes about; as in the task"),
    "event_delivered": ("name", "somebody delivered an event to it"),
    "hitl_pending": ("approval_id, subject, expires_at", "it asks a person"),
    "approval_decided": (
        "approval_id, subject, status, approved?, decided_by?, notes?, edits?",
        "the question is `APPROVED`, `REJECTED`, `EXPIRED` or `WITHDRAWN`",
    ),
    "task_complete": ("result, result_bytes, duration_s", "final; `result` is null where it is larger than 4 KiB"),
    "task_failed": ("error", "final: no attempt is left, or none would help"),
    "task_cancelled": ("", "final"),
}
"""By type: the members of the payload (a `?` marks those that may be missing or null), and what has happened."""


def events_description() -> str:
    """What the API's documentation says of events (Markdown)."""
    rows = [f"| `{name}` | {payload} | {meaning} |" for name, (payload, meaning) in EVENT_TYPES.items()]
    return "\n".join([_HEAD, "", "| type | payload | |", "|---|---|---|", *rows, "", _TAIL])


_HEAD = """What happens to tasks, as it happens: `{type, id, channel, task_id?, at, payload}`, in order and without a
hole.

Three ways to follow: a task's, a project's or all own events as `text/event-stream`, resumed with `Last-Event-ID`;
pages of past ones with `Accept: application/json`; and the WebSocket `/ws`, where a client subscribes to the channels
`task:<id>`, `project:<id>` and, from the start, its own `user:<id>`. Types of every task:"""
_TAIL = """Tasks add types of their own, such as `stream_start`, `text_chunk` and `stream_end` of a model's text: leave
out what you do not know. Who may decide on an approval gets its two events on the own channel too."""
