"""What dead letters and steps keep under whatever happens in whatever order: *a task that failed for good has one
letter until it is replayed, discarded or swept; it is replayed once; its steps live as long as its record or its
letter, and no longer.*

A model of what should be is kept beside a real server. After each step the whole of Redis is compared with the model.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from redis.asyncio import Redis

from app.store import keys
from app.store.connection import connect
from app.store.embedded import EmbeddedServer
from app.store.items import NewTask, StepRecord
from app.store.scripts import Scripts
from tests.machines import run_machine
from tests.simulated import DAY_MS, claim, end_of, new_task

MAX_DEPTH = 3
USERS = ("ada", "bob")
QUEUES = ("default", "other")
LONG_AGO_MS = 1_000_000_000_000
T = TypeVar("T")


@dataclass
class Expected:
    """A task as it should be."""

    user: str
    queue: str
    steps: int = 0
    has_record: bool = True
    has_letter: bool = False
    is_finished: bool = False
    replay: NewTask | None = None
    """What it was replayed by."""


class Machine(RuleBasedStateMachine):
    """Random operations on a server and on the model of it."""

    redis: Redis
    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        self.scripts = Scripts(self.redis)
        self.tasks: dict[str, Expected] = {}

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(call, 20))

    @initialize()
    def begin(self) -> None:
        self.run(self.redis.flushdb())

    def _pick(self, pick: int, **wanted: bool) -> str:
        fitting = [name for name, task in self.tasks.items() if all(getattr(task, k) == v for k, v in wanted.items())]
        return fitting[pick % len(fitting)]

    def _unfinished(self, queue: str) -> int:
        return sum(task.queue == queue and not task.is_finished for task in self.tasks.values())

    @rule(user=st.sampled_from(USERS), queue=st.sampled_from(QUEUES))
    def enqueue(self, user: str, queue: str) -> None:
        if self._unfinished(queue) < MAX_DEPTH:
            name = f"t{len(self.tasks)}"
            self._accept(new_task(name, user_id=user, queue=queue))
            self.tasks[name] = Expected(user, queue)

    def _accept(self, item: NewTask) -> None:
        ((kind, _, made),) = self.run(self.scripts.enqueue([[item]], MAX_DEPTH))
        assert (kind, made) == (b"ok", [item.id.encode(), 1])

    @precondition(lambda self: any(not task.is_finished for task in self.tasks.values()))
    @rule(queue=st.sampled_from(QUEUES), more=st.integers(0, 2), fails=st.sampled_from((True, True, True, False)))
    def work(self, queue: str, more: int, fails: bool) -> None:
        for held in self.run(claim(self.scripts, queue=queue, want=2)):
            task = self.tasks[held.id]
            assert int(held.fields.get("steps", 0)) == task.steps
            for number in range(task.steps, task.steps + more):
                item = StepRecord(held.id, held.token, number, b'"s"', b"%d" % number, 0.0)
                assert self.run(self.scripts.record_step([item])) == [1]
            task.steps += more
            assert self.run(self.scripts.finish([end_of(held, "FAILURE" if fails else "SUCCESS")])) == [1]
            task.is_finished, task.has_letter = True, fails

    @precondition(lambda self: any(task.has_letter for task in self.tasks.values()))
    @rule(pick=st.integers(0, 1_000), takes_steps=st.booleans(), queue=st.sampled_from(QUEUES), twice=st.booleans())
    def replay(self, pick: int, takes_steps: bool, queue: str, twice: bool) -> None:
        old = self._pick(pick, has_letter=True)
        letter = self.tasks[old]
        name = f"t{len(self.tasks)}"
        item = new_task(name, user_id=letter.user, queue=queue, letter=old, takes_steps=takes_steps)
        if self._unfinished(queue) >= MAX_DEPTH:
            assert self.run(self.scripts.enqueue([[item]], MAX_DEPTH)) == [[b"full", queue.encode()]]
            return
        for _ in range(1 + twice):
            self._accept(item)
        self.tasks[name] = Expected(letter.user, queue, letter.steps if takes_steps else 0)
        letter.has_letter, letter.replay = False, item

    @precondition(lambda self: any(task.replay for task in self.tasks.values()))
    @rule(pick=st.integers(0, 1_000))
    def replay_again(self, pick: int) -> None:
        replayed = {name: task.replay for name, task in self.tasks.items() if task.replay}
        name = list(replayed)[pick % len(replayed)]
        (reply,) = self.run(self.scripts.enqueue([[new_task("more", letter=name)]], MAX_DEPTH))
        assert reply == [b"replayed", name.encode(), replayed[name].id.encode()]

    @precondition(lambda self: any(task.is_finished for task in self.tasks.values()))
    @rule(pick=st.integers(0, 1_000))
    def discard(self, pick: int) -> None:
        name = self._pick(pick, is_finished=True)
        expected = int(self.tasks[name].has_letter)
        assert self.run(self.scripts.discard_dead_letters([name, name])) == [expected, 0]
        self.tasks[name].has_letter = False

    @precondition(lambda self: any(task.is_finished for task in self.tasks.values()))
    @rule(pick=st.integers(0, 1_000))
    def the_time_of_a_record_is_over(self, pick: int) -> None:
        name = self._pick(pick, is_finished=True)
        had = self.tasks[name].has_record
        self.run(self.redis.zadd(keys.PREFIXES["finished"], {name: 1}, xx=True))
        assert self.run(self.scripts.sweep(100, DAY_MS)) == (int(had), 0)
        self.tasks[name].has_record = False

    @precondition(lambda self: any(task.has_letter for task in self.tasks.values()))
    @rule(pick=st.integers(0, 1_000))
    def the_time_of_a_letter_is_over(self, pick: int) -> None:
        name = self._pick(pick, has_letter=True)
        self.run(self._make_old(name))
        assert self.run(self.scripts.sweep(100, DAY_MS)) == (0, 1)
        self.tasks[name].has_letter = False

    async def _make_old(self, name: str) -> None:
        failed_at = (await self.redis.hget(keys.dead_letter(name), "failed_at")).decode()
        await self.redis.hset(keys.dead_letter(name), "failed_at", LONG_AGO_MS)
        for index in (keys.ALL_DEAD, keys.dead_of_user(self.tasks[name].user)):
            assert await self.redis.zrem(index, f"{failed_at}:{name}") == 1
            await self.redis.zadd(index, {f"{LONG_AGO_MS}:{name}": 0})

    @invariant()
    def redis_is_as_the_model(self) -> None:
        self.run(self._check())

    async def _check(self) -> None:
        letters = {name: task for name, task in self.tasks.items() if task.has_letter}
        assert await self._index(keys.ALL_DEAD) == sorted(letters)
        for user in USERS:
            own = sorted(name for name, task in letters.items() if task.user == user)
            assert await self._index(keys.dead_of_user(user)) == own
        counts = Counter(task.queue for task in letters.values())
        for queue in QUEUES:
            assert int(await self.redis.hget(keys.PREFIXES["counts"] + queue, "dead") or 0) == counts[queue]
        for name, task in self.tasks.items():
            stored = await self.redis.hkeys(keys.steps(name))
            lives = task.has_record or task.has_letter
            assert len(stored) == (2 * task.steps if lives else 0)
            traces = {b"user_id", b"replayed_as"} if task.replay else set()
            fields = set(await self.redis.hkeys(keys.dead_letter(name)))
            assert {b"payload", b"failed_at"} <= fields if task.has_letter else fields == traces

    async def _index(self, key: str) -> list[str]:
        return sorted(member.decode().partition(":")[2] for member in await self.redis.zrange(key, 0, -1))


def test_letters_and_steps_hold_whatever_happens(server: EmbeddedServer, loop: asyncio.AbstractEventLoop) -> None:
    redis = connect(server.url)
    try:
        run_machine(Machine, examples=40, steps=40, redis=redis, loop=loop)
    finally:
        loop.run_until_complete(redis.aclose())
