"""Flows in Python: tasks one after the other, side by side, or once for each item of a list.

    text = await flows.chain(ctx, Call(fetch, Page(url=url)), extract, lambda page: Call(shorten, Text(text=page.text)))
    found = await flows.group(ctx, {"log": Call(read_log, run), "tests": Call(read_tests, run)}, on_error="collect")
    marks = await flows.map(ctx, grade, [Essay(text=text) for text in texts], limit=10)

They are said with the waits of a task (`waits.py`) and keep what those keep: while its flow runs the task holds no slot
and no memory, each child runs once, a cancelled task cancels its children. A flow within a flow is a task that the
outer one calls. Clients post flows as JSON (`POST /api/flows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from app.engine.registry import Task
from app.engine.waits import DEFAULT_WAIT, Call, OnError
from app.errors import InvalidInput

if TYPE_CHECKING:
    from app.engine.context import TaskContext

Link = str | Task[Any, Any] | Callable[[Any], Call]
"""What comes next in a chain: a task that takes the result before it as its parameters, or a function of that result
that says which call is next (plain and without effects: it runs again with the task)."""
Policy = OnError | Literal["fail_fast", "finish", "collect"]


async def chain(ctx: TaskContext, first: Call, *links: Link, timeout: timedelta = DEFAULT_WAIT) -> Any:
    """Run tasks one after the other, each with the result of the one before; the result of the last.

    `timeout` is that of each of them. Raises `InvalidInput` for a result that is no object where a task takes it as
    its parameters, and what `TaskContext.call` raises.
    """
    value = await _run(ctx, first, timeout)
    for link in links:
        call = Call(link, _params(link, value)) if isinstance(link, str | Task) else link(value)
        value = await _run(ctx, call, timeout)
    return value


async def group(
    ctx: TaskContext,
    calls: Mapping[str, Call],
    *,
    limit: int | None = None,
    on_error: Policy = OnError.FAIL_FAST,
    timeout: timedelta = DEFAULT_WAIT,
) -> dict[str, Any]:
    """Run tasks at once, or `limit` of them; their results by name. See `TaskContext.gather`."""
    found = await ctx.gather(list(calls.values()), limit=limit, on_error=OnError(on_error), timeout=timeout)
    return dict(zip(calls, found, strict=True))


async def map(  # noqa: A001 - used as flows.map, the word for it
    ctx: TaskContext,
    task: str | Task[Any, Any],
    items: Iterable[BaseModel | dict[str, Any]],
    *,
    returns: Any = None,
    limit: int | None = None,
    on_error: Policy = OnError.FAIL_FAST,
    timeout: timedelta = DEFAULT_WAIT,
) -> list[Any]:
    """Run a task once for each of its parameters in `items`, all at once or `limit` of them; their results in order.

    See `TaskContext.gather`.
    """
    calls = [Call(task, params, returns=returns, label=str(index)) for index, params in enumerate(items)]
    return await ctx.gather(calls, limit=limit, on_error=OnError(on_error), timeout=timeout)


async def _run(ctx: TaskContext, call: Call, timeout: timedelta) -> Any:
    (value,) = await ctx.gather([call], timeout=timeout)
    return value


def _params(link: str | Task[Any, Any], value: Any) -> dict[str, Any]:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", by_alias=True)
    if isinstance(value, dict):
        return value
    name = link if isinstance(link, str) else link.name
    raise InvalidInput(
        f"chain: {name} takes the result before it as its parameters; expected an object, got {type(value).__name__}"
    )
