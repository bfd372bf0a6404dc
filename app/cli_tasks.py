"""The commands about single tasks."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from app.cli_calls import call
from app.cli_views import print_json, print_pairs, print_table, waiting_words, when
from app.cli_watch import watcher
from app.client import ApiClient, View
from app.errors import SettingsError


class BadArgument(SettingsError):
    """An argument of a command cannot be read."""


def read_values(values: Sequence[str]) -> dict[str, Any]:
    """Parameters from `key=value`: JSON where it is JSON, else text; `key=@file` is a file's text.

    Raises `BadArgument`.
    """
    return dict(_read_value(item) for item in values)


def _read_value(item: str) -> tuple[str, Any]:
    key, sign, text = item.partition("=")
    if not key or not sign:
        raise BadArgument(f"{item!r}: expected key=value")
    if text.startswith("@"):
        try:
            return key, Path(text[1:]).expanduser().read_text("utf-8")
        except (OSError, UnicodeError) as error:
            raise BadArgument(f"{key}={text}: cannot be read: {error}") from error
    try:
        return key, json.loads(text)
    except ValueError:
        return key, text


def submit(task: str, values: Sequence[str], *, watch: bool, as_json: bool, tags: Sequence[str], **options: Any) -> int:
    """Post a task, and follow it where `watch`."""
    params = read_values(values)
    return call(posted(lambda api: api.submit(task, params, tags=tags, **options), watch=watch, as_json=as_json))


def retry(task_id: str, values: Sequence[str], *, watch: bool, as_json: bool) -> int:
    """Run a finished task again, and follow it where `watch`."""
    params = read_values(values) if values else None
    return call(posted(lambda api: api.retry(task_id, params), watch=watch, as_json=as_json))


def watch(task_id: str, *, as_json: bool) -> int:
    """Follow a task to its end."""
    return call(lambda api: _follow(api, task_id, as_json=as_json))


def show(task_id: str, *, as_json: bool) -> int:
    """Show a task."""
    task = call(lambda api: api.get(task_id))
    print_json(task) if as_json else _print_task(task)
    return 0


def list_tasks(filters: Mapping[str, str | None], *, limit: int, as_json: bool) -> int:
    """List tasks."""
    tasks = call(lambda api: api.tasks(limit=limit, **filters))
    if as_json:
        print_json(tasks)
        return 0
    headers = ("id", "task", "status", "progress", "queue", "attempt", "enqueued")
    print_table(headers, map(_row, tasks), nothing="No tasks.")
    return 0


def cancel(task_id: str, *, as_json: bool) -> int:
    """Cancel a task."""
    task = call(lambda api: api.cancel(task_id))
    print_json(task) if as_json else print(_one_line(task))
    return 0


def posted(
    post: Callable[[ApiClient], Awaitable[View]], *, watch: bool, as_json: bool
) -> Callable[[ApiClient], Awaitable[int]]:
    """What posts a task, prints it, and follows it where `watch`; its exit code."""

    async def work(api: ApiClient) -> int:
        task = await post(api)
        if watch:
            return await _follow(api, task["task_id"], as_json=as_json)
        print_json(task) if as_json else print(_one_line(task))
        return 0

    return work


async def _follow(api: ApiClient, task_id: str, *, as_json: bool) -> int:
    with watcher(as_json=as_json) as tell:
        async with aclosing(api.watch(task_id)) as events:
            async for event in events:
                tell(event)
    task = await api.get(task_id)
    if not as_json:
        print()
        _print_task(task)
    return 0 if task["status"] == "SUCCESS" else 1


def _print_task(task: View) -> None:
    progress, error = task["progress"], task["error"]
    print_pairs(
        {
            "task": f"{task['task']} {task['task_id']}",
            "status": task["status"],
            "queue": task["queue"],
            "attempt": f"{task['attempt']} of {task['max_attempts'] or '?'}",
            "progress": f"{progress['percent']:g} % {progress['label']}" if progress else None,
            "key": task["key"],
            "behind": f"{task['behind']} unfinished" if task["behind"] else None,
            "waits for": waiting_words(task["waiting_for"]) if task["waiting_for"] else None,
            "user": task["user_id"],
            "project": task["project_id"],
            "tags": task["tags"],
            "parent": task["parent_id"],
            "retry of": task["retry_of"],
            "enqueued": when(task["enqueued_at"]),
            "next attempt": when(task["next_attempt_at"]),
            "started": when(task["started_at"]),
            "finished": when(task["finished_at"]),
            "error": f"{error['type']}: {error['message']}" if error else None,
        }
    )
    if task["steps"]:
        print("steps")
        for step in task["steps"]:
            print(f"  {when(step['completed_at'])}  {step['duration_s']:8.3f} s  {step['name']}")
    if task["status"] == "SUCCESS":
        print("result")
        print_json(task["result"])


def _row(task: View) -> tuple[Any, ...]:
    progress = f"{task['progress']['percent']:g} %" if task["progress"] else ""
    enqueued = when(task["enqueued_at"])
    return task["task_id"], task["task"], task["status"], progress, task["queue"], task["attempt"], enqueued


def _one_line(task: View) -> str:
    return f"{task['task_id']}  {task['task']}  {task['status']}"
