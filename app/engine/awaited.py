"""What a wait for tasks is for: which tasks, and which of them it may cancel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Awaited:
    """Tasks that a wait is for: those `made` for it, but for `others` that stand for them, by their place (as text).

    `own`: they are children of the task that waits, but for the others.
    """

    made: list[str]
    others: dict[str, str] = field(default_factory=dict)
    own: bool = True

    @property
    def ids(self) -> list[str]:
        """The tasks, in the order of the calls."""
        return [self.others.get(str(place), made) for place, made in enumerate(self.made)]

    def stand_in(self, started: Sequence[str]) -> None:
        """Note which tasks stand for those that were made, in the same order."""
        pairs = enumerate(zip(self.made, started, strict=True))
        self.others = {str(place): found for place, (made, found) in pairs if found != made}

    def late(self, ends: Sequence[object | None]) -> list[str]:
        """What is to be cancelled when the wait is over: children that have not ended.

        The last first: under a limit, those that it holds back must be gone before one of those before them is.
        """
        late = [made for place, made in enumerate(self.made) if ends[place] is None and str(place) not in self.others]
        return late[::-1] if self.own else []
