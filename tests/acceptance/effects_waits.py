"""A worker whose tasks wait, and some of which kill the worker, once each, at a place that the test names."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import timedelta
from typing import Any

import httpx
from pydantic import BaseModel

from app.engine.context import TaskContext
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from app.engine.waits import Call
from app.store.connection import connect
from tests.acceptance.effects import SETTINGS, note, worker_settings

NAP = timedelta(milliseconds=50)


class Journey(BaseModel):
    """`name` is where its effects are noted; the worker is killed before the operation `dies_before`, from 0 on."""

    name: str
    dies_before: int = -1


class Part(BaseModel):
    """`effect` is what to note under `name`, after some seconds."""

    name: str
    effect: str
    seconds: float = 0.0


class Charge(BaseModel):
    """Where to post to, and whether to give a key."""

    url: str
    has_key: bool


class Wait(BaseModel):
    """Where the effects are noted."""

    name: str


async def _once(key: str) -> bool:
    """Whether this is the first time that anybody asks."""
    assert SETTINGS.redis_url is not None
    redis = connect(SETTINGS.redis_url.get_secret_value())
    is_first = await redis.execute_command("SET", f"trace:once:{key}", os.getpid(), "NX")
    await redis.aclose()
    return bool(is_first)


async def _die_once(key: str) -> None:
    if await _once(key):
        os.kill(os.getpid(), signal.SIGKILL)


@task("wait.part", queue="other", retry=RetryPolicy(max_retries=3, base_s=0.01))
async def part(ctx: TaskContext, params: Part) -> str:
    """Note that it began, take its time, note its effect."""
    await note(f"{params.name}:begun", f"{params.effect} {ctx.attempt} {os.getpid()}")
    await asyncio.sleep(params.seconds)
    await note(params.name, params.effect)
    return params.effect


@task("wait.journey")
async def journey(ctx: TaskContext, params: Journey) -> list[Any]:
    """Ten operations: steps, and all that a task may wait for."""
    found: list[Any] = []
    # A kill right behind the start must not come between the effect of that child and its end.
    alone = 1.0 if params.dies_before == 8 else 0.0

    async def effect(name: str) -> str:
        await note(params.name, name)
        return name

    def child(name: str) -> Call:
        return Call(part, Part(name=params.name, effect=name))

    operations = (
        lambda: ctx.step("order", lambda: effect("order")),
        lambda: ctx.call(part, Part(name=params.name, effect="called")),
        lambda: ctx.step("pack", lambda: effect("pack")),
        lambda: ctx.gather([child(name) for name in ("left", "middle", "right")]),
        lambda: ctx.sleep(NAP),
        lambda: ctx.wait_event("paid"),
        lambda: ctx.step("ship", lambda: effect("ship")),
        lambda: ctx.start(part, Part(name=params.name, effect="started", seconds=alone)),
        lambda: ctx.join([found[7]]),
        lambda: ctx.step("tell", lambda: effect("tell")),
    )
    for number, operation in enumerate(operations):
        if number == params.dies_before:
            await _die_once(params.name)
        found.append(await operation())
    if params.dies_before == len(operations):
        await _die_once(params.name)
    await note(f"{params.name}:ended", str(os.getpid()))
    return [found[number] for number in (0, 1, 3, 5, 9)]


@task("wait.charge")
async def charge(ctx: TaskContext, params: Charge) -> str:
    """Charge, and lose the worker before the step is stored."""

    async def post() -> str:
        headers = {"Idempotency-Key": f"{ctx.task_id}/charge"} if params.has_key else {}
        async with httpx.AsyncClient() as client:
            receipt = (await client.post(params.url, headers=headers)).text
        await _die_once(ctx.task_id)
        return receipt

    return await ctx.step("charge", post)


@task("wait.call")
async def call(ctx: TaskContext, params: Part) -> str:
    """Call a child."""
    await note(f"{params.name}:entered", str(os.getpid()))
    return await ctx.call(part, params)


@task("wait.event")
async def event(ctx: TaskContext, params: Wait) -> str:
    """Step, wait, step."""
    await ctx.step("before", lambda: note(params.name, f"before {ctx.task_id}"))
    told = await ctx.wait_event("go", returns=str)
    await ctx.step("after", lambda: note(params.name, f"after {ctx.task_id}"))
    return f"{told} {os.getpid()}"


TASKS = (part, journey, charge, call, event)

WorkerSettings = worker_settings(*TASKS) if SETTINGS.redis_url else {}
