"""Arguments that commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

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
