"""The commands about dead letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from app.cli_calls import call
from app.cli_tasks import BadArgument, posted, read_values
from app.cli_views import print_json, print_pairs, print_table, when
from app.client import ApiClient, View

PATH = "/api/dead-letters"


def list_all(filters: Mapping[str, str | None], *, limit: int, as_json: bool) -> int:
    """List dead letters."""
    items = call(lambda api: api.items(PATH, limit=limit, **filters))
    if as_json:
        print_json(items)
        return 0
    rows = [
        (item["task_id"], item["task"], item["attempts"], when(item["failed_at"]), _error(item["error"]))
        for item in items
    ]
    print_table(("id", "task", "attempts", "failed", "error"), rows, nothing="No dead letters.")
    return 0


def show(task_id: str, *, as_json: bool) -> int:
    """Show a dead letter."""
    letter = call(lambda api: api.read(_path(task_id)))
    if as_json:
        print_json(letter)
        return 0
    print_pairs(
        {
            "task": f"{letter['task']} {letter['task_id']}",
            "queue": letter["queue"],
            "user": letter["user_id"],
            "project": letter["project_id"],
            "tags": letter["tags"],
            "enqueued": when(letter["enqueued_at"]),
            "failed": when(letter["failed_at"]),
            **{f"attempt {past['attempt']}": _error(past["error"]) for past in letter["history"]},
            f"attempt {letter['attempts']}": _error(letter["error"]),
            "steps done": [step["name"] for step in letter["steps"]],
        }
    )
    print("params")
    print_json(letter["params"])
    print(letter["traceback"].rstrip())
    return 0


def checked(filters: Mapping[str, str | None], task_id: str | None, *, everything: bool) -> View:
    """The filters that narrow. Raises `BadArgument` unless there is either an id, or a filter or `--all`."""
    wanted = {name: value for name, value in filters.items() if value is not None}
    if (task_id is None) == (not wanted and not everything):
        raise BadArgument("expected either the id of a task, or filters such as --task, or --all")
    return wanted


def replay(task_id: str, values: Sequence[str], *, watch: bool, as_json: bool) -> int:
    """Replay one, with some of its parameters changed where `values` says so, and follow it where `watch`."""
    changes = read_values(values)
    return call(posted(lambda api: _replayed(api, task_id, changes), watch=watch, as_json=as_json))


def replay_many(filters: View, *, everything: bool, as_json: bool) -> int:
    """Replay all that match. Exit code 1 where some could not be."""
    pieces = call(lambda api: _in_pieces(api, "replay", filters, everything=everything))
    replayed = [one for piece in pieces for one in piece["replayed"]]
    failed = [one for piece in pieces for one in piece["failed"]]
    if as_json:
        print_json({"replayed": replayed, "failed": failed})
    else:
        rows = [(one["task_id"], one["replayed_as"]) for one in replayed]
        print_table(("dead letter", "task"), rows, nothing="None was replayed.")
        if failed:
            print_table(("not replayed", "why"), [(one["task_id"], one["detail"]) for one in failed], nothing="")
    return 1 if failed else 0


def discard(task_id: str) -> int:
    """Discard one."""
    call(lambda api: api.remove(_path(task_id)))
    print(f"{task_id}  discarded")
    return 0


def discard_many(filters: View, *, everything: bool) -> int:
    """Discard all that match."""
    pieces = call(lambda api: _in_pieces(api, "discard", filters, everything=everything))
    print(f"{sum(piece['discarded'] for piece in pieces)} discarded")
    return 0


async def _replayed(api: ApiClient, task_id: str, changes: Mapping[str, Any]) -> View:
    body = {}
    if changes:
        letter = await api.read(_path(task_id))
        body = {"params": (letter["params"] or {}) | dict(changes)}
    return dict(await api.act(_path(task_id, "/replay"), body))


async def _in_pieces(api: ApiClient, action: str, filters: View, *, everything: bool) -> list[View]:
    pieces: list[View] = []
    cursor = ""
    while cursor is not None:
        pieces.append(await api.act(f"{PATH}/{action}", {**filters, "all": everything, "cursor": cursor}))
        cursor = pieces[-1]["next_cursor"]
    return pieces


def _path(task_id: str, rest: str = "") -> str:
    return f"{PATH}/{quote(task_id, safe='')}{rest}"


def _error(error: Mapping[str, Any]) -> str:
    return f"{error['type']}: {error['message']}"
