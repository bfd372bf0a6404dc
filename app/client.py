"""A client of our own HTTP and WebSocket API, for the commands, the demo, and whoever writes Python.

    async with open_api("http://127.0.0.1:8000", api_key) as api:
        task = await api.submit("system.echo", {"value": "hello"})
        async for event in api.watch(task["task_id"]):
            print(event.type, event.payload)
        print(await api.result(task["task_id"]))

Tasks and lists are the JSON objects of the contract (`/docs` describes them). Refusals raise `ApiError` with the words
of the problem document; a service that is not there raises `RemoteUnreachable` or `RemoteTimeout`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self
from urllib.parse import quote

from pydantic_core import from_json, to_json

from app.clients.http import httpx, open_client, remote_errors, retry_after_s
from app.errors import InvalidInput, MalformedReply, RemoteStatus

TIMEOUT_S = 30.0
"""The longest silence of the service, beyond what it was asked to wait."""
START = "0-0"
"""The id that stands before every event."""
FINAL_TYPES = frozenset({"task_complete", "task_failed", "task_cancelled"})
"""The last event of a task is one of these."""

NO_CONTENT = 204

View = dict[str, Any]


class ApiError(RemoteStatus):
    """The service refused a request. `problem` is its problem document."""

    def __init__(self, status: int, problem: Mapping[str, Any], *, retry_after_s: float | None = None) -> None:
        super().__init__(_words(status, problem), remote_status=status, retry_after_s=retry_after_s)
        self.problem = problem


def _words(status: int, problem: Mapping[str, Any]) -> str:
    detail = str(problem.get("detail") or problem.get("title") or f"the service answered {status}")
    errors = [item for item in problem.get("errors", ()) if isinstance(item, dict)]
    lines = [f"{item.get('parameter') or item.get('pointer') or '?'}: {item.get('detail', '')}" for item in errors]
    if len(lines) < 2:  # with one wrong field, the detail names it already
        return detail
    # With several it may name the first of them.
    head = [] if detail.startswith(lines[0]) else [detail]
    return "\n  ".join([*head, *lines])


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """One event of a task. `id` orders it and is what to resume from."""

    id: str
    type: str
    channel: str
    task_id: str | None
    at: datetime
    payload: Mapping[str, Any]

    @property
    def is_final(self) -> bool:
        """Whether nothing follows it."""
        return self.type in FINAL_TYPES

    @classmethod
    def of_frame(cls, frame: Mapping[str, Any]) -> Self:
        """From the JSON object that the service sends. Raises `MalformedReply`."""
        try:
            at = datetime.fromisoformat(frame["at"])
            return cls(frame["id"], frame["type"], frame["channel"], frame.get("task_id"), at, frame["payload"])
        except (KeyError, TypeError, ValueError) as error:
            raise MalformedReply(f"the service sent an event without {error}") from error


class ApiClient:
    """Calls the service at `url`; `api_key` (or a JWT) goes into the Authorization header. See `open_api`."""

    def __init__(self, url: str, api_key: str | None, http: httpx.AsyncClient) -> None:
        self.url = url
        self._authorization = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = http
        self._label = f"the service at {url}"

    # Tasks.

    async def submit(
        self,
        task: str,
        params: Mapping[str, Any],
        *,
        project_id: str | None = None,
        delay_s: float = 0.0,
        priority: int = 0,
        tags: Sequence[str] = (),
        after: Sequence[str] = (),
        key: str | None = None,
        on_busy: str | None = None,
        debounce_s: float | None = None,
        debounce_max_s: float | None = None,
        throttle_s: float | None = None,
        throttle_burst: int | None = None,
        idempotency_key: str | None = None,
    ) -> View:
        """Post a task; its view, or that of the task that stands for it under its key."""
        body = {"task": task, "params": params, "delay_s": delay_s, "priority": priority, "tags": list(tags)}
        optional: View = {
            "project_id": project_id or None,
            "after": list(after) or None,
            "key": key,
            "on_busy": on_busy,
        }
        optional |= {"debounce_s": debounce_s, "debounce_max_s": debounce_max_s}
        optional |= {"throttle_s": throttle_s, "throttle_burst": throttle_burst}
        # Where the task's type sets its own key, the members of a key must not be there.
        wanted = body | {name: value for name, value in optional.items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._object(await self._call("POST", "/api/tasks", body=wanted, headers=headers))

    async def flow(
        self,
        flow: Mapping[str, Any],
        *,
        project_id: str | None = None,
        priority: int = 0,
        tags: Sequence[str] = (),
        idempotency_key: str | None = None,
    ) -> View:
        """Post a flow; the view of its task."""
        body = {"flow": flow, "project_id": project_id, "priority": priority, "tags": list(tags)}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._object(await self._call("POST", "/api/flows", body=body, headers=headers))

    async def tree(self, task_id: str, *, depth: int = 10, limit: int = 200) -> View:
        """A task with its descendants: `{root, count, truncated}`."""
        query = {"depth": str(depth), "limit": str(limit)}
        return self._object(await self._call("GET", _task(task_id, "/tree"), query=query))

    async def get(self, task_id: str, *, wait_s: float = 0.0) -> View:
        """A task, with `wait_s` (30 at most) when it is finished or that time is over."""
        query = {"wait": f"{wait_s:g}"} if wait_s else {}
        return self._object(await self._call("GET", _task(task_id), query=query, timeout_s=TIMEOUT_S + wait_s))

    async def result(self, task_id: str) -> Any:
        """What the task returned. Raises `ApiError` 409 while it runs, 410 when there is none."""
        return await self._call("GET", _task(task_id, "/result"))

    async def cancel(self, task_id: str) -> View:
        """Cancel a task and its children; its view."""
        return self._object(await self._call("POST", _task(task_id, "/cancel")))

    async def retry(self, task_id: str, params: Mapping[str, Any] | None = None) -> View:
        """Run a finished task again; the new task's view."""
        body = {} if params is None else {"params": params}
        return self._object(await self._call("POST", _task(task_id, "/retry"), body=body))

    async def tasks(self, *, limit: int = 20, **filters: str | None) -> list[View]:
        """The newest tasks that match: `status`, `queue`, `task`, `project_id`, `tag`."""
        return await self.items("/api/tasks", limit=limit, **filters)

    async def send_event(
        self, task_id: str, name: str, payload: Any = None, *, idempotency_key: str | None = None
    ) -> View:
        """Give a task an event that it waits for, or will: `{delivered}`, False when the key was used before."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        body = {"name": name, "payload": payload}
        return self._object(await self._call("POST", _task(task_id, "/events"), body=body, headers=headers))

    async def events(self, task_id: str, *, limit: int = 1_000) -> list[TaskEvent]:
        """The past events of a task, oldest first."""
        return [TaskEvent.of_frame(frame) for frame in await self.items(_task(task_id, "/events"), limit=limit)]

    async def watch(self, task_id: str, *, last_event_id: str = START) -> AsyncGenerator[TaskEvent, None]:
        """All events of a task behind `last_event_id`, live, until its final one.

        A lost connection is made again and resumed, without gap or double; after `client_stream.PATIENCE_S` without a
        connection `RemoteUnreachable` is raised. Close the generator (`aclosing`) when leaving it early.
        """
        # Here: the WebSocket library is a fifth of the start of a command that does not need it.
        from app.client_stream import follow  # noqa: PLC0415

        url = self.url.replace("http", "ws", 1) + "/ws"
        async with aclosing(follow(url, self._authorization, f"task:{task_id}", last_event_id)) as frames:
            async for frame in frames:
                event = TaskEvent.of_frame(frame)
                yield event
                if event.is_final:
                    return

    # Approvals.

    async def approvals(self, *, status: str | None = None, limit: int = 20) -> list[View]:
        """The newest approvals that the caller asked for or may decide: `status` is `pending`, `approved`, …"""
        return await self.items("/api/approvals", limit=limit, status=status)

    async def approval(self, approval_id: str) -> View:
        """An approval with its payload."""
        return self._object(await self._call("GET", _approval(approval_id)))

    async def decide(
        self,
        approval_id: str,
        approved: bool,
        *,
        notes: str | None = None,
        edits: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> View:
        """Approve or reject. Raises `ApiError` 409 when somebody has decided before, 410 when it expired.

        With an `idempotency_key`, the same decision again (after a lost reply) is answered as before.
        """
        body = {"approved": approved, "notes": notes, "edits": edits}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._object(await self._call("POST", _approval(approval_id), body=body, headers=headers))

    async def withdraw(self, approval_id: str) -> None:
        """Take back what a task asks."""
        await self._call("DELETE", _approval(approval_id))

    # Everything else that has a path.

    async def read(self, path: str, **query: str) -> Any:
        """The JSON at a path of the API."""
        return await self._call("GET", path, query=query)

    async def act(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Post to a path of the API; the JSON of its answer."""
        return await self._call("POST", path, body=body)

    async def remove(self, path: str) -> None:
        """Delete what is at a path of the API."""
        await self._call("DELETE", path)

    async def items(self, path: str, *, limit: int = 1_000, **filters: str | None) -> list[View]:
        """The items of a list, page after page, `limit` at most; filters that are None are left out."""
        query = {name: value for name, value in filters.items() if value is not None}
        found: list[View] = []
        while len(found) < limit:
            page = await self._call("GET", path, query=query)
            found += page["items"]
            if not page.get("next_cursor"):
                break
            query["cursor"] = page["next_cursor"]
        return found[:limit]

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Any:
        sent = {**self._authorization, "Accept": "application/json", **(headers or {})}
        content = None
        if body is not None:
            content, sent["Content-Type"] = to_json(body), "application/json"
        with remote_errors(self._label):
            response = await self._http.request(
                method, self.url + path, params=query, content=content, headers=sent, timeout=timeout_s
            )
        if response.status_code == NO_CONTENT:
            return None
        if response.is_success:
            return self._decoded(response.content)
        raise ApiError(
            response.status_code, problem_of(response.content), retry_after_s=retry_after_s(response.headers)
        )

    def _decoded(self, content: bytes) -> Any:
        try:
            return from_json(content)
        except ValueError as error:
            raise MalformedReply(f"{self._label} answered with something that is no JSON: is it Nightshift?") from error

    def _object(self, value: Any) -> View:
        if not isinstance(value, dict):
            raise MalformedReply(f"{self._label} answered with no JSON object: is it Nightshift?")
        return value


def problem_of(content: bytes) -> Mapping[str, Any]:
    """The problem document in a body; empty when it is none, such as a proxy's page."""
    try:
        value = from_json(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _task(task_id: str, rest: str = "") -> str:
    return f"/api/tasks/{quote(task_id, safe='')}{rest}"


def _approval(approval_id: str) -> str:
    return f"/api/approvals/{quote(approval_id, safe='')}"


@asynccontextmanager
async def open_api(url: str, api_key: str | None = None) -> AsyncIterator[ApiClient]:
    """A client for the length of the block. Raises `InvalidInput` for a URL that is none."""
    base = url.rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise InvalidInput(f"NIGHTSHIFT_URL={url!r}: expected a URL such as http://127.0.0.1:8000")
    async with open_client(timeout_s=TIMEOUT_S) as http:
        yield ApiClient(base, api_key, http)
