"""The command about trees of tasks."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from app.cli_calls import call
from app.cli_views import print_json
from app.client import View
from app.dev_views import clean

STYLES = {"SUCCESS": "green", "FAILURE": "red", "CANCELLED": "yellow", "STARTED": "cyan", "WAITING": "blue"}


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
