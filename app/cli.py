"""`nightshift`: the service from the command line.

Most commands are clients of the HTTP API: `NIGHTSHIFT_URL` says where it is (http://127.0.0.1:8000), and
`NIGHTSHIFT_API_KEY` is sent as the credentials. `keys` works on the file of API keys of this machine, `serve` runs the
service, `doctor` looks at both sides.

Exit codes: 0 done, 1 failed (also: a watched task that failed), 2 wrong use or settings, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from app.cli_arguments import FREE, ApprovalId, Held, Json, KeyValues, Notes, TaskId, Watch
from app.cli_groups import approvals, dead_letters, keys, queues, schedules
from app.console import guarded, readable_output


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
for group in (approvals, dead_letters, queues, schedules, keys):
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
    held: Held = FREE,
) -> int:
    """Post a task."""
    from app import cli_tasks

    options = {"project_id": project, "delay_s": delay, "priority": priority, "idempotency_key": idempotency_key}
    options |= held.members()
    return cli_tasks.submit(task, values or [], watch=watch, as_json=as_json, tags=tag or [], **options)


@app.command
def flow(
    file: Annotated[
        str, Parameter(help="A file with the flow as JSON, the `flow` of POST /api/flows; - reads it here.")
    ],
    /,
    *,
    watch: Watch = False,
    as_json: Json = False,
    project: str | None = None,
    priority: Annotated[int, Parameter(help="A higher one overtakes in the same queue.")] = 0,
    tag: list[str] | None = None,
    idempotency_key: Annotated[str | None, Parameter(help="The same key again gives the first flow.")] = None,
) -> int:
    """Post a flow: tasks one after the other, side by side, or for each item of a list."""
    from app import cli_flows

    options = {"project_id": project, "priority": priority, "idempotency_key": idempotency_key}
    return cli_flows.post(file, watch=watch, as_json=as_json, tags=tag or [], **options)


@app.command
def tree(
    task_id: TaskId,
    /,
    *,
    depth: Annotated[int, Parameter(help="Levels below the task.")] = 10,
    limit: Annotated[int, Parameter(help="Tasks in all.")] = 200,
    as_json: Json = False,
) -> int:
    """Show a task with the tasks that it started, and those that they started."""
    from app import cli_flows

    return cli_flows.tree(task_id, depth=depth, limit=limit, as_json=as_json)


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
    status: Annotated[
        str | None, Parameter(help="PENDING, STARTED, RETRY, WAITING, SUCCESS, FAILURE or CANCELLED")
    ] = None,
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


@app.command
def send(
    task_id: TaskId,
    name: Annotated[str, Parameter(help="The event's name, as the task knows it.")],
    payload: Annotated[
        str | None, Parameter(help="JSON, or text where it is none; @file takes the text of a file.")
    ] = None,
    /,
    *,
    idempotency_key: Annotated[str | None, Parameter(help="The same key again delivers nothing more.")] = None,
    as_json: Json = False,
) -> int:
    """Send a task an event that it waits for, or will wait for."""
    from app import cli_approvals

    return cli_approvals.send(task_id, name, payload, key=idempotency_key, as_json=as_json)


@app.command
def approve(
    approval_id: ApprovalId,
    /,
    *,
    notes: Notes = None,
    edits: Annotated[str | None, Parameter(help="What you want otherwise: a JSON object, or @file with one.")] = None,
    as_json: Json = False,
) -> int:
    """Approve what a task asks; it goes on with the answer."""
    from app import cli_approvals

    return cli_approvals.decide(approval_id, approved=True, notes=notes, edits=edits, as_json=as_json)


@app.command
def reject(approval_id: ApprovalId, /, *, notes: Notes = None, as_json: Json = False) -> int:
    """Reject what a task asks; it goes on with the answer."""
    from app import cli_approvals

    return cli_approvals.decide(approval_id, approved=False, notes=notes, edits=None, as_json=as_json)


@app.command
def withdraw(approval_id: ApprovalId, /) -> int:
    """Take back what a task of yours asks; the task is told."""
    from app import cli_approvals

    return cli_approvals.withdraw(approval_id)


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
