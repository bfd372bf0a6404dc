"""Arguments that commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON instead of text.")]
Watch = Annotated[bool, Parameter(name="--watch", negative="", help="Follow it to its end.")]
TaskId = Annotated[str, Parameter(help="The id that the task was given.")]
ApprovalId = Annotated[str, Parameter(help="Its id; `nightshift approvals` lists them.")]
Notes = Annotated[str | None, Parameter(help="A word for the task, and for the record.")]
KeyValues = Annotated[
    list[str] | None,
    Parameter(
        help="Parameters as key=value. A value is read as JSON where it is JSON (5, true, [1], '\"5\"'), else as text; "
        "key=@file takes the text of a file."
    ),
]

OneLetter = Annotated[str | None, Parameter(help="The id of one; else filters or --all.")]
Everything = Annotated[bool, Parameter(name="--all", negative="", help="Every one that the filters leave.")]
Moment = Annotated[str | None, Parameter(help="A time with its offset, such as 2026-11-21T20:15:00Z.")]


@Parameter(name="*")
@dataclass(frozen=True)
class Narrowed:
    """What dead letters are narrowed to."""

    queue: str | None = None
    task: Annotated[str | None, Parameter(help="Only tasks of this type.")] = None
    project: str | None = None
    tag: str | None = None
    error: Annotated[str | None, Parameter(help="The type of the last error, such as RemoteTimeout.")] = None
    failed_after: Moment = None
    failed_before: Moment = None

    def filters(self) -> dict[str, str | None]:
        """As the API names them."""
        rest = {"project_id": self.project, "tag": self.tag, "error_type": self.error}
        times = {"failed_after": self.failed_after, "failed_before": self.failed_before}
        return {"queue": self.queue, "task": self.task, **rest, **times}


EVERY = Narrowed()


@Parameter(name="*")
@dataclass(frozen=True)
class Held:
    """What holds a task back: its key with the key's policy, and tasks before it."""

    key: Annotated[
        str | None, Parameter(help="What it is about: of your tasks of one key one runs at a time, in their order.")
    ] = None
    on_busy: Annotated[
        Literal["queue", "reject", "join", "replace", "parallel"] | None,
        Parameter(help="What becomes of it when its key has an unfinished task; queue unless set."),
    ] = None
    debounce: Annotated[float | None, Parameter(help="Run so many seconds after the last one of its type and key.")] = (
        None
    )
    debounce_max: Annotated[float | None, Parameter(help="But no later than so many seconds after the first.")] = None
    throttle: Annotated[float | None, Parameter(help="Starts under its key are so many seconds apart.")] = None
    throttle_burst: Annotated[int | None, Parameter(help="Starts at once after a pause.")] = None
    after: Annotated[
        list[str] | None, Parameter(help="The id of a task: begin when it has ended, however it did; may be repeated.")
    ] = None

    def members(self) -> dict[str, Any]:
        """As the API names them."""
        quiet = {"debounce_s": self.debounce, "debounce_max_s": self.debounce_max}
        starts = {"throttle_s": self.throttle, "throttle_burst": self.throttle_burst}
        return {"key": self.key, "on_busy": self.on_busy, **quiet, **starts, "after": self.after or []}


FREE = Held()
