"""The commands about flows and trees of tasks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from app.cli_calls import call
from app.cli_tasks import BadArgument, posted
from app.cli_views import print_json
from app.client import View
from app.dev_views import clean

STYLES = {"SUCCESS": "green", "FAILURE": "red", "CANCELLED": "yellow", "STARTED": "cyan", "WAITING": "blue"}


def post(file: str, *, watch: bool, as_json: bool, tags: Sequence[str], **options: Any) -> int:
    """Post a flow, and follow it where `watch`; then show its tree."""
    flow = read_flow(file)
    return call(posted(lambda api: api.flow(flow, tags=tags, **options), watch=watch, as_json=as_json))


def read_flow(file: str) -> dict[str, Any]:
    """The JSON object in a file, or on the standard input for `-`. Raises `BadArgument`."""
    try:
        value = json.loads(sys.stdin.read() if file == "-" else Path(file).expanduser().read_text("utf-8"))
    except (OSError, UnicodeError) as error:
        raise BadArgument(f"{file}: cannot be read: {error}") from error
    except ValueError as error:
        raise BadArgument(f"{file}: expected JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadArgument(f'{file}: expected an object such as {{"sequence": [...]}}')
    return value


def tree(task_id: str, *, depth: int, limit: int, as_json: bool) -> int:
    """Show a task with its descendants."""
    found = call(lambda api: api.tree(task_id, depth=depth, limit=limit))
    if as_json:
        print_json(found)
    elif sys.stdout.isatty():
        _print_rich(found["root"])
    else:
        print("\n".join(_lines(found["root"])))
    return 0


def _lines(branch: View, indent: str = "") -> Iterator[str]:
    yield indent + "  ".join(_words(branch))
    for child in branch["children"]:
        yield from _lines(child, indent + "  ")
    if branch["children_not_shown"]:
        yield f"{indent}  {_rest(branch)}"


def _rest(branch: View) -> str:
    return f"… {branch['children_not_shown']} more"


def _words(branch: View) -> list[str]:
    progress, waiting, error = branch["progress"], branch["waiting_for"], branch["error"]
    words = [
        branch["label"],
        branch["task"],
        branch["status"],
        f"{progress['percent']:g} %" if progress and branch["finished_at"] is None else None,
        f"for {waiting['step']}" if waiting else None,
        f"{error['type']}: {error['message']}" if error else None,
        branch["task_id"],
    ]
    return [clean(word) for word in words if word]


def _print_rich(root: View) -> None:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    def line(branch: View) -> Text:
        status = branch["status"]
        pieces = [(word, STYLES.get(status, "") if word == status else "") for word in _words(branch)]
        return Text("  ").join(Text(word, style) for word, style in pieces)

    def grow(into: Tree, branch: View) -> Tree:
        for child in branch["children"]:
            grow(into.add(line(child)), child)
        if branch["children_not_shown"]:
            into.add(_rest(branch))
        return into

    Console().print(grow(Tree(line(root)), root))
