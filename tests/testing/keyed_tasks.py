"""Tasks that others hold back: by the limit of a group, by a key, by debounce and throttle."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from typing import Any

from pydantic import BaseModel, Field

from app.engine.context import TaskContext
from app.engine.gates import OnBusy
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from app.engine.waits import Call, OnError
from app.errors import ChildFailed, NightshiftError, PermanentError, WaitTimeout

SOON = timedelta(milliseconds=30)
APART = timedelta(milliseconds=60)
ONCE = RetryPolicy(max_retries=0)
logs: defaultdict[str, list[str]] = defaultdict(list)
"""What the children of a task did, by its id."""


class Number(BaseModel):
    value: int = Field(alias="of", default=1)


def numbers(*values: int, task: Any, **options: Any) -> list[Call]:
    return [Call(task, Number(of=value), **options) for value in values]


@task("held.piece", retry=ONCE)
async def piece(ctx: TaskContext, params: Number) -> int:
    """Wait in between. Negative numbers fail; ten and more wait for ever."""
    log = logs[ctx.info.root_id or ctx.task_id]
    log.append(f"{params.value} is entered")
    await ctx.sleep(SOON)
    if params.value >= 10:
        await ctx.wait_event("never")
    log.append(f"{params.value} is done")
    if params.value < 0:
        raise PermanentError(f"{params.value} is negative")
    return params.value


@task("held.saved", key=lambda params: "page", debounce=APART)
async def saved(ctx: TaskContext, params: Number) -> int:
    return params.value


@task("held.mailed", key="mail", on_busy=OnBusy.PARALLEL, throttle=APART, throttle_burst=2)
async def mailed(ctx: TaskContext, params: Number) -> float:
    """How long after it was posted it was entered, in ms."""
    return ctx.info.claimed_ms - ctx.info.enqueued_at.timestamp() * 1000


@task("held.other", retry=ONCE)
async def other(ctx: TaskContext, params: Number) -> int:
    return params.value


@task("held.one_by_one", retry=ONCE)
async def one_by_one(ctx: TaskContext, params: Number) -> list[Any]:
    values = await ctx.gather(numbers(1, 2, 3, task=piece), limit=1)
    return [values, logs[ctx.task_id]]


@task("held.at_most", retry=ONCE)
async def at_most(ctx: TaskContext, params: Number) -> list[Any]:
    values = await ctx.gather(numbers(*range(5), task=piece), limit=params.value)
    begun = done = 0
    for line in dict.fromkeys(logs[ctx.task_id]):
        begun, done = begun + line.endswith("entered"), done + line.endswith("done")
        if begun - done > params.value:
            return [line]
    return values


@task("held.failed_fast", retry=ONCE)
async def failed_fast(ctx: TaskContext, params: Number) -> list[str]:
    try:
        await ctx.gather(numbers(1, -2, 3, 4, task=piece), limit=1)
    except ChildFailed as error:
        return [str(error.error["message"]), *logs[ctx.task_id]]
    return []


@task("held.collected", retry=ONCE)
async def collected(ctx: TaskContext, params: Number) -> list[Any]:
    found = await ctx.gather(numbers(-1, 2, task=piece), limit=1, on_error=OnError.COLLECT)
    return [type(found[0]).__name__, found[1], logs[ctx.task_id]]


@task("held.stuck", retry=ONCE)
async def stuck(ctx: TaskContext, params: Number) -> None:
    await ctx.gather(numbers(10, 11, 12, task=piece), limit=1)


@task("held.late", retry=ONCE)
async def late(ctx: TaskContext, params: Number) -> list[Any]:
    """None that the limit holds back begins when the wait is over."""
    try:
        await ctx.gather(numbers(10, 2, task=piece), limit=1, timeout=3 * SOON)
    except WaitTimeout:
        await ctx.sleep(2 * SOON)
        return [line for line in logs[ctx.task_id] if not line.startswith("10")]
    return []


@task("held.in_turn", retry=ONCE)
async def in_turn(ctx: TaskContext, params: Number) -> list[Any]:
    ids = [await ctx.start(piece, Number(of=value), key="k") for value in (1, -2, 3)]
    ends = await ctx.join(ids)
    return [[end.status for end in ends], logs[ctx.task_id]]


@task("held.two_gates", retry=ONCE)
async def two_gates(ctx: TaskContext, params: Number) -> list[Any]:
    """Those of one key run one after the other also where the limit has room for both."""
    calls = [*numbers(1, 2, task=piece, key="k"), *numbers(3, task=piece, key="other")]
    values = await ctx.gather(calls, limit=2)
    return [values, [line for line in logs[ctx.task_id] if line[0] in "12"]]


@task("held.busy", retry=ONCE)
async def busy(ctx: TaskContext, params: Number) -> list[Any]:
    first = await ctx.start(piece, Number(of=10), key="k")
    told = []
    try:
        await ctx.call(piece, Number(of=1), key="k", on_busy=OnBusy.REJECT)
    except NightshiftError as error:
        told.append(f"{type(error).__name__}: {error}".replace(first, "<first>"))
    same = await ctx.start(piece, Number(of=2), key="k", on_busy=OnBusy.JOIN)
    try:
        await ctx.call(piece, Number(of=3), key="k", on_busy=OnBusy.JOIN, timeout=SOON)
    except WaitTimeout as error:
        told.append(str(error))
    value = await ctx.call(piece, Number(of=4), key="k", on_busy=OnBusy.REPLACE)
    (end,) = await ctx.join([first])
    free = await ctx.call(piece, Number(of=5), key="k", on_busy=OnBusy.REJECT)
    return [told, same == first, value, end.status, free]


@task("held.replaced", retry=ONCE)
async def replaced(ctx: TaskContext, params: Number) -> list[Any]:
    """What is made and replaced in one call never begins."""
    last = Call(piece, Number(of=3), key="k", on_busy=OnBusy.REPLACE)
    ids = await ctx.start_many([*numbers(1, 2, task=piece, key="k"), last], then=Call(piece, Number(of=4), key="k"))
    ends = await ctx.join(ids)
    return [[end.status for end in ends], logs[ctx.task_id]]


@task("held.refused", retry=ONCE)
async def refused(ctx: TaskContext, params: Number) -> list[Any]:
    """A group of which one is refused is refused as a whole."""
    told = []
    for options in ({"on_busy": OnBusy.REJECT}, {"on_busy": OnBusy.PARALLEL}):
        try:
            await ctx.start_many([Call(piece, Number(of=1), key="k"), Call(piece, Number(of=2), key="k", **options)])
        except NightshiftError as error:
            told.append(f"{type(error).__name__}: {error}".split(" task, ")[0])
    return [told, await ctx.call(piece, Number(of=3), key="k", on_busy=OnBusy.REJECT)]


@task("held.merged", retry=ONCE)
async def merged(ctx: TaskContext, params: Number) -> list[Any]:
    ids = await ctx.start_many(numbers(1, 2, 3, task=saved))
    ends = await ctx.join(ids)
    return [len(set(ids)), [end.result for end in ends], await ctx.call(saved, Number(of=4))]


@task("held.paced", retry=ONCE)
async def paced(ctx: TaskContext, params: Number) -> list[Any]:
    ends = await ctx.join(await ctx.start_many(numbers(1, 2, 3, 4, task=mailed)))
    apart_ms = APART.total_seconds() * 1000
    after_ms = sorted(end.result for end in ends)
    return [after >= free for after, free in zip(after_ms, (0, 0, apart_ms, 2 * apart_ms), strict=True)]


@task("held.circle", key="circle", retry=ONCE)
async def circle(ctx: TaskContext, params: Number) -> None:
    await ctx.call(circle, params)


@task("held.exchanged", retry=ONCE)
async def exchanged(ctx: TaskContext, params: Number) -> list[Any]:
    """One that is about to be replaced is not joined; the one that replaces it may be."""
    old = await ctx.start(piece, Number(of=10), key="k")
    calls = [Call(other, Number(of=1), key="k", on_busy=OnBusy.REPLACE)]
    calls += [Call(name, Number(of=2), key="k", on_busy=OnBusy.JOIN) for name in (piece, other)]
    first, second, third = await ctx.start_many(calls)
    ends = await ctx.join([old, first, second])
    return [first == third, [[end.status, end.result] for end in ends]]


TASKS = [
    piece,
    other,
    saved,
    mailed,
    one_by_one,
    at_most,
    failed_fast,
    collected,
    stuck,
    late,
    in_turn,
    two_gates,
    busy,
]
TASKS += [replaced, refused, merged, paced, circle, exchanged]
