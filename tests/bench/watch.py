"""The time that a benchmark has, and what it says about its progress."""

from __future__ import annotations

import sys
import time


class Watch:
    """Begins to run when it is made."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._began = time.monotonic()

    @property
    def took_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    @property
    def left_s(self) -> float:
        """Seconds until the limit; below zero after it."""
        return self._limit_s - self.took_s

    def say(self, what: str) -> None:
        """Tell, on standard error, what is measured now."""
        print(f"[{self.took_s:4.0f} s] {what}", file=sys.stderr, flush=True)
