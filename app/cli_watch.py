"""A task's events as they come: one line each, a live bar for progress on a terminal, a model's text as text."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from app.client import TaskEvent
from app.dev_views import clean

Tell = Callable[[TaskEvent], None]


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
            print(f"{event.at:%H:%M:%S}  {event.type:<14} {_words(event)}".rstrip(), flush=True)

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
    payload = event.payload
    if event.type == "task_progress":
        return f"{payload['percent']:g} % {clean(payload['label'])}"
    if event.type == "task_started":
        return f"attempt {payload.get('attempt')}"
    if event.type in ("task_failed", "task_retrying"):
        error = payload.get("error") or {}
        due = f"; next attempt at {payload['next_attempt_at']}" if payload.get("next_attempt_at") else ""
        return clean(f"{error.get('type')}: {error.get('message')}{due}")
    if event.type == "task_complete":
        return ""
    return clean(json.dumps(event.payload, ensure_ascii=False)) if payload else ""
