"""A task's events as they come: one line each, a live bar for progress on a terminal, a model's text as text."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from app.cli_views import waiting_words, when
from app.client import TaskEvent
from app.dev_views import clean

Tell = Callable[[TaskEvent], None]
Payload = Mapping[str, Any]


@contextmanager
def watcher(*, as_json: bool) -> Iterator[Tell]:
    """Inside the block, the function that it gives shows an event."""
    if as_json:
        yield _tell_json
        return
    lines = _Lines(has_bar=sys.stdout.isatty())
    try:
        yield lines.tell
    finally:
        lines.end()


def _tell_json(event: TaskEvent) -> None:
    at = event.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields = {"type": event.type, "id": event.id, "task_id": event.task_id, "at": at, "payload": event.payload}
    print(json.dumps(fields), flush=True)


class _Lines:
    def __init__(self, *, has_bar: bool) -> None:
        self._has_bar = has_bar
        self._stack = ExitStack()
        self._bar: Any = None
        self._in_text = False

    def tell(self, event: TaskEvent) -> None:
        """Show an event."""
        payload = event.payload
        if event.type == "text_chunk":
            self._text(str(payload.get("text", "")))
        elif event.type == "task_progress" and self._has_bar:
            self._progress(float(payload["percent"]), str(payload["label"]))
        else:
            self.end()
            print(f"{event.at:%H:%M:%S}  {event.type:<16} {_words(event)}".rstrip(), flush=True)

    def end(self) -> None:
        """Leave the bar, or the model's text, behind."""
        self._stack.close()
        self._bar = None
        if self._in_text:
            print(flush=True)
            self._in_text = False

    def _text(self, text: str) -> None:
        if not self._in_text:
            self.end()
        self._in_text = True
        # Line ends are meant here; everything else that acts on a terminal is not.
        print("\n".join(_printable(line) for line in text.split("\n")), end="", flush=True)

    def _progress(self, percent: float, label: str) -> None:
        if self._bar is None:
            from app.dev_views import live_bar

            self._bar = self._stack.enter_context(live_bar())
        self._bar(percent, label)


def _printable(line: str) -> str:
    return "".join(letter if letter.isprintable() or letter == "\t" else " " for letter in line)


def _words(event: TaskEvent) -> str:
    words = _WORDS.get(event.type)
    if words is not None:
        return clean(words(event.payload))
    return clean(json.dumps(event.payload, ensure_ascii=False)) if event.payload else ""


def _error(payload: Payload) -> str:
    error = payload.get("error") or {}
    due = f"; next attempt at {payload['next_attempt_at']}" if payload.get("next_attempt_at") else ""
    return f"{error.get('type')}: {error.get('message')}{due}"


def _question(payload: Payload) -> str:
    return f"{payload['subject']} (approval {payload['approval_id']}, until {when(payload['expires_at'])})"


def _decision(payload: Payload) -> str:
    by = f" by {payload['decided_by']}" if payload.get("decided_by") else ""
    notes = f": {payload['notes']}" if payload.get("notes") else ""
    return f"{payload['status']}{by}{notes}"


_WORDS: Mapping[str, Callable[[Payload], str]] = {
    "task_progress": lambda payload: f"{payload['percent']:g} % {payload['label']}",
    "task_started": lambda payload: f"attempt {payload.get('attempt')}",
    "task_failed": _error,
    "task_retrying": _error,
    "task_complete": lambda payload: "",
    "task_waiting": lambda payload: waiting_words(payload["waiting_for"]),
    "event_delivered": lambda payload: str(payload["name"]),
    "hitl_pending": _question,
    "approval_decided": _decision,
}
"""What people read of the events that the engine itself emits."""
