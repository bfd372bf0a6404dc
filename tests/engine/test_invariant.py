"""The invariant of the engine, under whatever happens in whatever order: *every accepted task is finished or has
exactly one score; at most one attempt of it can write.*

A model of what should be is kept beside a real server of the test's own. Workers are simulated, so that they can be
killed in between any two scripts, come back, and write with tokens that are long stale. After each step the whole of
Redis is compared with the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
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
from app.store.connection import CONNECTION_ERRORS, connect
from app.store.embedded import EmbeddedServer
from app.store.scripts import Scripts
from tests.machines import run_machine
from tests.simulated import DAY_MS, Held, again, claim, end_of, event_of, lapse, new_task, server_ms

QUEUES = ("default", "other")
WORKERS = ("w1", "w2")
OWNERS = (("ada", 1.0), ("bob", 0.25), ("bob", 0.25), ("eve", 16.0))
"""Users, with what a task of theirs costs."""
FINAL = {"SUCCESS": "task_complete", "FAILURE": "task_failed", "CANCELLED": "task_cancelled"}
MAX_DEPTH = 12
T = TypeVar("T")


@dataclass
class Expected:
    """A task as it should be."""

    queue: str
    parent: str | None
    user: str
    status: str = "PENDING"
    attempt: int = 0
    token: int | None = None
    """Of the attempt that may write; None while nobody may."""
    cancelled: bool = False
    dead: bool = False
    notes: int = 0
    children: list[str] = field(default_factory=list)


class Machine(RuleBasedStateMachine):
    """Random operations on a server and on the model of it."""

    server: EmbeddedServer
    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        self.redis: Redis = connect(self.server.url)
        self.scripts = Scripts(self.redis)
        self.tasks: dict[str, Expected] = {}
        self.claims: list[Held] = []
        """Everything that was ever claimed: a killed worker may come back with any of it."""
        self.paused: set[str] = set()
        self.dead_letters = 0
        self.made = 0

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(call, 20))

    def teardown(self) -> None:
        self.run(self.redis.aclose())

    @initialize()
    def begin(self) -> None:
        self.run(self.redis.flushall())

    # What clients do.

    @rule(
        queue=st.sampled_from(QUEUES),
        size=st.integers(1, 3),
        delay_ms=st.sampled_from((0, 0, DAY_MS)),
        priority=st.sampled_from((0, 0, 5)),
        parent=st.one_of(st.none(), st.integers(0, 1_000)),
        owner=st.sampled_from(OWNERS),
    )
    def enqueue(
        self, queue: str, size: int, delay_ms: int, priority: int, parent: int | None, owner: tuple[str, float]
    ) -> None:
        under = self._pick(parent) if parent is not None and self.tasks else None
        names = [f"t{self.made + n}" for n in range(size)]
        self.made += size
        user, cost = owner
        options = {"queue": queue, "delay_ms": delay_ms, "priority": priority, "parent_id": under or ""}
        options |= {"user_id": user, "cost": cost}
        group = [new_task(name, **options) for name in names]
        (reply,) = self.run(self.scripts.enqueue([group], MAX_DEPTH))
        unfinished = sum(task.queue == queue and task.status not in FINAL for task in self.tasks.values())
        refused = under is not None and (self.tasks[under].cancelled or self.tasks[under].status == "CANCELLED")
        if refused:
            assert reply[0] == b"cancelled"
        elif unfinished + size > MAX_DEPTH:
            assert reply[0] == b"full"
        else:
            assert reply[0] == b"ok"
            for name in names:
                self.tasks[name] = Expected(queue, under, user)
                if under is not None:
                    self.tasks[under].children.append(name)

    @precondition(lambda self: self.tasks)
    @rule(pick=st.integers(0, 1_000))
    def cancel(self, pick: int) -> None:
        name = self._pick(pick)
        was = self.tasks[name].status
        (state,) = self.run(self.scripts.cancel([name], DAY_MS))
        expected = {"STARTED": b"requested", "PENDING": b"cancelled", "RETRY": b"cancelled"}.get(was, b"finished")
        assert state == expected
        if was not in ("SUCCESS", "FAILURE"):
            self._cancel(name)
        for held in self.claims:
            self._renew(held)

    def _cancel(self, name: str) -> None:
        task = self.tasks[name]
        for child in task.children:
            if child in self.tasks:
                self._cancel(child)
        if task.status == "STARTED":
            task.cancelled = True
        elif task.status not in FINAL:
            task.status = "CANCELLED"

    @rule(queue=st.sampled_from(QUEUES), dice=st.integers(0, 3))
    def pause_or_resume(self, queue: str, dice: int) -> None:
        if queue in self.paused:
            self.run(self.redis.srem(keys.PAUSED, queue))
            self.paused.remove(queue)
        elif dice == 3:
            self.run(self.redis.sadd(keys.PAUSED, queue))
            self.paused.add(queue)

    # What workers do.

    @precondition(lambda self: self.tasks)
    @rule(worker=st.sampled_from(WORKERS), want=st.integers(1, 8))
    def claim(self, worker: str, want: int) -> None:
        for queue in QUEUES:
            self._claim(worker, queue, want)

    def _claim(self, worker: str, queue: str, want: int) -> None:
        got = self.run(claim(self.scripts, worker, queue, want=want))
        assert not got or queue not in self.paused
        for held in got:
            task = self.tasks[held.id]
            assert task.status not in FINAL
            assert held.lost == (task.status == "STARTED")
            assert held.attempt == task.attempt + 1
            assert ("cancel" in held.fields) == task.cancelled
            assert all(other.token < held.token for other in self.claims if other.id == held.id)
            task.status, task.attempt, task.token = "STARTED", held.attempt, held.token
        self.claims += got

    def _a_claim(self, pick: int) -> Held:
        """Mostly a claim of a task that runs, be it the one that may write or one that was lost."""
        running = [held for held in self.claims if held.id in self.tasks and self.tasks[held.id].status == "STARTED"]
        pool = running if running and pick % 4 else self.claims
        return pool[pick % len(pool)]

    def _may_write(self, held: Held) -> bool:
        task = self.tasks.get(held.id)
        return task is not None and task.status == "STARTED" and task.token == held.token

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 1_000), status=st.sampled_from(tuple(FINAL)), twice=st.booleans())
    def finish(self, pick: int, status: str, twice: bool) -> None:
        held = self._a_claim(pick)
        may = self._may_write(held)
        replies = self.run(self.scripts.finish([end_of(held, status)] * (1 + twice)))
        assert replies == [int(may), 0][: 1 + twice]
        if may:
            task = self.tasks[held.id]
            task.status, task.token, task.dead = status, None, status == "FAILURE"
            self.dead_letters += task.dead

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 1_000), counts=st.booleans(), delay_ms=st.sampled_from((0, DAY_MS)))
    def reschedule(self, pick: int, counts: bool, delay_ms: int) -> None:
        held = self._a_claim(pick)
        may = self._may_write(held)
        assert self.run(self.scripts.reschedule([again(held, delay_ms=delay_ms, counts=counts)])) == [int(may)]
        if may:
            task = self.tasks[held.id]
            task.status, task.token = ("RETRY" if counts else "PENDING"), None
            task.attempt -= not counts

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 1_000))
    def emit(self, pick: int) -> None:
        held = self._a_claim(pick)
        may = self._may_write(held)
        task = self.tasks.get(held.id)
        number = task.notes + 1 if task else 1
        # The second is the first again, as after a reply that was lost.
        assert self.run(self.scripts.emit([event_of(held, number), event_of(held, number)])) == [int(may)] * 2
        if may and task:
            task.notes += 1

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 1_000))
    def renew(self, pick: int) -> None:
        self._renew(self._a_claim(pick))

    def _renew(self, held: Held) -> None:
        expected = 0
        if self._may_write(held):
            expected = 2 if self.tasks[held.id].cancelled else 1
        assert self.run(self.scripts._run("renew", [60_000, held.id, held.token, held.queue])) == [expected]

    # What happens.

    @precondition(lambda self: any(self._may_write(held) for held in self.claims))
    @rule(pick=st.integers(0, 1_000), is_taken_over=st.booleans())
    def a_lease_runs_out(self, pick: int, is_taken_over: bool) -> None:
        alive = [held for held in self.claims if self._may_write(held)]
        held = alive[pick % len(alive)]
        self.run(lapse(self.redis, held))
        if is_taken_over:
            self._claim("w3", held.queue, 8)

    @precondition(lambda self: any(task.status in ("PENDING", "RETRY") for task in self.tasks.values()))
    @rule(pick=st.integers(0, 1_000))
    def a_delay_is_over(self, pick: int) -> None:
        waiting = [name for name, task in self.tasks.items() if task.status in ("PENDING", "RETRY")]
        name = waiting[pick % len(waiting)]
        self.run(self._make_due(name, self.tasks[name].queue))

    async def _make_due(self, name: str, queue: str) -> None:
        now = await server_ms(self.redis)
        if await self.redis.zscore(keys.queue(queue), name) > now:
            await self.redis.zadd(keys.queue(queue), {name: now - 1})

    @precondition(lambda self: self.tasks)
    @rule(dice=st.integers(0, 5))
    def the_server_is_killed(self, dice: int) -> None:
        if dice == 5:
            self.server.kill()
            self.server.start()
            self.run(self._reconnect())

    async def _reconnect(self) -> None:
        # Pooled connections learn of their end when the loop comes to it; until then a command may still meet one.
        while True:
            try:
                await self.redis.ping()
            except CONNECTION_ERRORS:
                continue
            return

    @rule(forget=st.booleans())
    def sweep(self, forget: bool) -> None:
        over = [name for name, task in self.tasks.items() if task.status in FINAL] if forget else []
        for name in over:
            self.run(self.redis.zadd(keys.PREFIXES["finished"], {name: 1}, xx=True))
        assert self.run(self.scripts.sweep(1_000, DAY_MS)) == (len(over), 0)
        for name in over:
            del self.tasks[name]

    def _pick(self, pick: int) -> str:
        return list(self.tasks)[pick % len(self.tasks)]

    # What must hold.

    @invariant()
    def every_task_is_finished_or_has_one_score(self) -> None:
        self.run(self._check_queues())

    async def _check_queues(self) -> None:
        for queue in QUEUES:
            scores = {
                name.decode(): score
                for name, score in await self.redis.zrange(keys.queue(queue), 0, -1, withscores=True)
            }
            of_queue = {name: task for name, task in self.tasks.items() if task.queue == queue}
            assert scores.keys() == {name for name, task in of_queue.items() if task.status not in FINAL}
            # A place, or a time of today; never 0, which arq takes for none.
            assert all(score != 0 and (score < 1e6 or score > 1e12) for score in scores.values())
            running = sum(task.status == "STARTED" for task in of_queue.values())
            counts = await self.redis.hgetall(keys.PREFIXES["counts"] + queue)
            assert int(counts.get(b"running", 0)) == running

    @invariant()
    def records_and_events_say_the_same(self) -> None:
        self.run(self._check_records())

    async def _check_records(self) -> None:
        for name, task in self.tasks.items():
            record = {
                key.decode(): value.decode() for key, value in (await self.redis.hgetall(keys.task(name))).items()
            }
            assert (record["status"], int(record["attempt"])) == (task.status, task.attempt)
            _, entries = await self.scripts.read_events(keys.events(f"task:{name}"), 0, 0, 1_000)
            kinds = [entry.split(b" ")[1].decode() for entry in entries]
            assert [kind for kind in kinds if kind in FINAL.values()] == [
                FINAL[status] for status in (task.status,) if status in FINAL
            ]
            assert kinds.count("note") == task.notes
            assert bool(await self.redis.exists(keys.result(name))) == (task.status in FINAL)
            if task.status not in FINAL:
                assert await self.redis.exists(keys.job(name))
            if task.status != "STARTED":
                assert not await self.redis.exists(keys.PREFIXES["in_progress"] + name)

    @invariant()
    def indices_hold_what_there_is(self) -> None:
        self.run(self._check_indices())

    async def _check_indices(self) -> None:
        assert await self._index(keys.ALL_TASKS) == sorted(self.tasks)
        for user, _ in OWNERS:
            expected = sorted(name for name, task in self.tasks.items() if task.user == user)
            assert await self._index(keys.tasks_of_user(user)) == expected
        over = {name.decode() for name in await self.redis.zrange(keys.PREFIXES["finished"], 0, -1)}
        assert over == {name for name, task in self.tasks.items() if task.status in FINAL}
        assert await self.redis.zcard(keys.ALL_DEAD) == self.dead_letters
        letters = [await self.redis.exists(keys.dead_letter(name)) for name, task in self.tasks.items() if task.dead]
        assert all(letters)

    async def _index(self, key: str) -> list[str]:
        return sorted(member.decode().partition(":")[2] for member in await self.redis.zrange(key, 0, -1))


def test_the_invariant_holds_whatever_happens(own_server: EmbeddedServer, loop: asyncio.AbstractEventLoop) -> None:
    run_machine(Machine, examples=80, steps=50, server=own_server, loop=loop)
