"""`nightshift`: the service from the command line.

Most commands are clients of the HTTP API: `NIGHTSHIFT_URL` says where it is (http://127.0.0.1:8000), and
`NIGHTSHIFT_API_KEY` is sent as the credentials. `keys` works on the file of API keys of this machine, `serve` runs the
service, `doctor` looks at both sides.

Exit codes: 0 done, 1 failed (also: a watched task that failed), 2 wrong use or settings, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from app.console import guarded, readable_output

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON instead of text.")]
Watch = Annotated[bool, Parameter(name="--watch", negative="", help="Follow it to its end.")]
TaskId = Annotated[str, Parameter(help="The id that the task was given.")]
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


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("nightshift")
    except PackageNotFoundError:
        return "unknown: this is a checkout that is not installed"


app = App(
    name="nightshift",
    help="Async tasks for the back ends of AI agents: post them, follow them, look after the service.",
    help_epilogue="The commands call the service at $NIGHTSHIFT_URL (default http://127.0.0.1:8000) with the "
    "credentials in $NIGHTSHIFT_API_KEY. A `.env` file in the working directory is read too.",
    version=_version,
    version_flags=["--version"],
)
dead_letters = App(name="dead-letters", help="Tasks that failed for good.")
queues = App(name="queues", help="Queues: what stands in them; pause and resume.")
schedules = App(name="schedules", help="Schedules: what starts by the clock; trigger, pause and resume.")
keys = App(name="keys", help="API keys of a service on this machine.")
for group in (dead_letters, queues, schedules, keys):
    app.command(group)


@app.command
def serve() -> int:
    """Run API, worker and, without $NIGHTSHIFT_REDIS_URL, the embedded server, until Ctrl-C."""
    from app import dev

    return dev.serve()


@app.command
def submit(
    task: Annotated[str, Parameter(help="The task's type, such as system.echo; `nightshift tasks` lists them.")],
    values: KeyValues = None,
    /,
    *,
    watch: Watch = False,
    as_json: Json = False,
    project: str | None = None,
    delay: Annotated[float, Parameter(help="Seconds to wait before it runs.")] = 0.0,
    priority: Annotated[int, Parameter(help="A higher one overtakes in the same queue.")] = 0,
    tag: list[str] | None = None,
    idempotency_key: Annotated[str | None, Parameter(help="The same key again gives the first task.")] = None,
) -> int:
    """Post a task."""
    from app import cli_tasks

    options = {"project_id": project, "delay_s": delay, "priority": priority, "idempotency_key": idempotency_key}
    return cli_tasks.submit(task, values or [], watch=watch, as_json=as_json, tags=tag or [], **options)


@app.command
def watch(task_id: TaskId, /, *, as_json: Json = False) -> int:
    """Follow a task to its end: every event since its beginning, then its result."""
    from app import cli_tasks

    return cli_tasks.watch(task_id, as_json=as_json)


@app.command
def show(task_id: TaskId, /, *, as_json: Json = False) -> int:
    """Show a task with its progress, result or error."""
    from app import cli_tasks

    return cli_tasks.show(task_id, as_json=as_json)


@app.command(name="ls")
def list_tasks(
    *,
    status: Annotated[str | None, Parameter(help="PENDING, STARTED, RETRY, SUCCESS, FAILURE or CANCELLED")] = None,
    queue: str | None = None,
    task: Annotated[str | None, Parameter(help="Only tasks of this type.")] = None,
    project: str | None = None,
    tag: str | None = None,
    limit: Annotated[int, Parameter(help="How many, at most.")] = 20,
    as_json: Json = False,
) -> int:
    """List tasks, the newest first."""
    from app import cli_tasks

    filters = {"status": status, "queue": queue, "task": task, "project_id": project, "tag": tag}
    return cli_tasks.list_tasks(filters, limit=limit, as_json=as_json)


@app.command
def cancel(task_id: TaskId, /, *, as_json: Json = False) -> int:
    """Cancel a task and the tasks that it started."""
    from app import cli_tasks

    return cli_tasks.cancel(task_id, as_json=as_json)


@app.command
def retry(task_id: TaskId, values: KeyValues = None, /, *, watch: Watch = False, as_json: Json = False) -> int:
    """Run a finished task again from its beginning, as a new task; with key=value, with these parameters instead.

    `nightshift dead-letters replay` goes on behind the finished steps of a task that failed for good.
    """
    from app import cli_tasks

    return cli_tasks.retry(task_id, values or [], watch=watch, as_json=as_json)


@app.command(name="tasks")
def task_types(*, as_json: Json = False) -> int:
    """List the types of tasks that can be posted, with their parameters."""
    from app import cli_operation

    return cli_operation.task_types(as_json=as_json)


@app.command
def workers(*, as_json: Json = False) -> int:
    """List the worker processes that are alive (admin)."""
    from app import cli_operation

    return cli_operation.workers(as_json=as_json)


@app.command
def quotas(*, as_json: Json = False) -> int:
    """List the quotas: what keys may use a minute, and what they use."""
    from app import cli_operation

    return cli_operation.quotas(as_json=as_json)


@queues.default
def list_queues(*, as_json: Json = False) -> int:
    """List the queues."""
    from app import cli_operation

    return cli_operation.queues(as_json=as_json)


@queues.command
def pause(name: str, /) -> int:
    """Start no more tasks of a queue; what runs goes on (admin)."""
    from app import cli_operation

    return cli_operation.change_queue(name, "pause")


@queues.command
def resume(name: str, /) -> int:
    """Start tasks of a queue again (admin)."""
    from app import cli_operation

    return cli_operation.change_queue(name, "resume")


@schedules.default
def list_schedules(*, as_json: Json = False) -> int:
    """List the schedules with their next and last firing."""
    from app import cli_schedules

    return cli_schedules.list_all(as_json=as_json)


@schedules.command(name="show")
def show_schedule(name: str, /, *, as_json: Json = False) -> int:
    """Show a schedule with its parameters and what became of its last tick."""
    from app import cli_schedules

    return cli_schedules.show(name, as_json=as_json)


@schedules.command(name="trigger")
def trigger_schedule(name: str, /) -> int:
    """Start the task of a schedule now; prints its id (admin)."""
    from app import cli_schedules

    return cli_schedules.trigger(name)


@schedules.command(name="pause")
def pause_schedule(name: str, /) -> int:
    """Fire no more ticks of a schedule; what runs goes on (admin)."""
    from app import cli_schedules

    return cli_schedules.change(name, "pause")


@schedules.command(name="resume")
def resume_schedule(name: str, /) -> int:
    """Fire the ticks of a schedule again, those to come (admin)."""
    from app import cli_schedules

    return cli_schedules.change(name, "resume")


@dead_letters.default
def list_dead_letters(*, narrowed: Narrowed = EVERY, limit: int = 20, as_json: Json = False) -> int:
    """List the tasks that failed for good, the newest first."""
    from app import cli_dead_letters

    return cli_dead_letters.list_all(narrowed.filters(), limit=limit, as_json=as_json)


@dead_letters.command(name="show")
def show_dead_letter(task_id: TaskId, /, *, as_json: Json = False) -> int:
    """Show one with its parameters, the errors of all attempts, the steps that are done, and the last traceback."""
    from app import cli_dead_letters

    return cli_dead_letters.show(task_id, as_json=as_json)


@dead_letters.command(name="replay")
def replay_dead_letter(
    task_id: OneLetter = None,
    values: KeyValues = None,
    /,
    *,
    narrowed: Narrowed = EVERY,
    everything: Everything = False,
    watch: Watch = False,
    as_json: Json = False,
) -> int:
    """Run what failed for good again, as a new task that goes on behind the steps that are done.

    With key=value these parameters are changed, and the new task runs all steps where that makes a difference. Without
    an id: all that the filters leave, or with --all every one; what cannot be replayed is told and stays.
    """
    from app import cli_dead_letters

    filters = cli_dead_letters.checked(narrowed.filters(), task_id, everything=everything)
    if task_id is None:
        return cli_dead_letters.replay_many(filters, everything=everything, as_json=as_json)
    return cli_dead_letters.replay(task_id, values or [], watch=watch, as_json=as_json)


@dead_letters.command(name="discard")
def discard_dead_letter(
    task_id: OneLetter = None, /, *, narrowed: Narrowed = EVERY, everything: Everything = False
) -> int:
    """Take what failed for good away: one, or all that the filters leave, or with --all every one."""
    from app import cli_dead_letters

    filters = cli_dead_letters.checked(narrowed.filters(), task_id, everything=everything)
    if task_id is None:
        return cli_dead_letters.discard_many(filters, everything=everything)
    return cli_dead_letters.discard(task_id)


@keys.command(name="create")
def create_key(
    user: Annotated[str, Parameter(help="Whose tasks are posted with it.")],
    /,
    *,
    scope: Annotated[list[str] | None, Parameter(help="What it may do besides; `admin` may do everything.")] = None,
    days: Annotated[float | None, Parameter(help="How long it lives; without, until it is revoked.")] = None,
) -> int:
    """Make a key. It is shown this once; the file keeps a hash."""
    from app import cli_keys

    return cli_keys.create(user, scope or [], days)


@keys.command(name="list")
def list_keys(*, as_json: Json = False) -> int:
    """List the keys."""
    from app import cli_keys

    return cli_keys.list_all(as_json=as_json)


@keys.command(name="revoke")
def revoke_key(key_id: Annotated[str, Parameter(help="The id in the list of keys.")], /) -> int:
    """Refuse a key from now on."""
    from app import cli_keys

    return cli_keys.revoke(key_id)


@app.command
def doctor(*, as_json: Json = False) -> int:
    """Check the installation; exit code 1 when something is wrong, with what to do about it."""
    from app import cli_doctor

    return cli_doctor.doctor(as_json=as_json)


def main(arguments: Sequence[str] | None = None) -> Any:
    """The console script. Ends the process with the command's exit code."""
    readable_output()
    sys.exit(guarded(lambda: _run(arguments)))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = app(arguments, exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError:
        return 2
    except BrokenPipeError:
        # Whoever read our output (`head`) has enough. Python would complain once more when it flushes at exit.
        sys.stdout = None
        return 0
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
