"""The groups of commands of `nightshift`, such as `nightshift queues`; `cli.py` has the rest, and puts them
together."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from app.cli_arguments import EVERY, ApprovalId, Everything, Json, KeyValues, Narrowed, OneLetter, TaskId, Watch

approvals = App(name="approvals", help="What tasks ask people.")
queues = App(name="queues", help="Queues: what stands in them; pause and resume.")
schedules = App(name="schedules", help="Schedules: what starts by the clock; trigger, pause and resume.")
dead_letters = App(name="dead-letters", help="Tasks that failed for good.")
keys = App(name="keys", help="API keys of a service on this machine.")


@approvals.default
def list_approvals(
    *,
    status: Annotated[str | None, Parameter(help="pending, approved, rejected, expired or withdrawn.")] = None,
    limit: Annotated[int, Parameter(help="How many, at most.")] = 20,
    as_json: Json = False,
) -> int:
    """List what tasks ask you, or ask for you, the newest first."""
    from app import cli_approvals

    return cli_approvals.list_all(status, limit=limit, as_json=as_json)


@approvals.command(name="show")
def show_approval(approval_id: ApprovalId, /, *, as_json: Json = False) -> int:
    """Show one with its payload and, once it is decided, the decision."""
    from app import cli_approvals

    return cli_approvals.show(approval_id, as_json=as_json)


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
