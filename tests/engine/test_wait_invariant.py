"""What holds of tasks that wait, under whatever happens in whatever order: *nobody waits for what has come about,
nobody goes on for what has not, except at the deadline, and no event is taken twice, lost, or out of turn.*

A model of what should be (`wait_model`) is kept beside a real server. Workers are simulated, so that they die between
any two scripts and come back with tokens that are long stale, and any call may be made twice, as after a reply that was
lost. Time passes by moving scores and deadlines. After each step the whole of Redis is compared with the model, and a
claim must find exactly what is due. At the end of each example everything is brought to an end, and nothing of it may
be left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from pydantic_core import to_json
from redis.asyncio import Redis

from app.store import keys
from app.store.connection import connect
from app.store.embedded import EmbeddedServer
from app.store.items import Delivery, NewTask, StepRecord, Suspend, TakeEvent
from app.store.scripts import Scripts
from tests.engine.wait_checks import EVENTS, answered, ask, check_forgotten, check_task, check_wait
from tests.engine.wait_model import FINAL, MAX_EVENTS, Expected, Model
from tests.machines import run_machine
from tests.simulated import DAY_MS, Held, again, claim, end_of, lapse, new_task, server_ms

QUEUES = ("default", "other")
HOUR_MS = 3_600_000
"""For how long a result is kept for which nobody waits; a wait may be longer."""
T = TypeVar("T")
picks = st.integers(0, 1_000)


class Machine(RuleBasedStateMachine):
    """Random operations on a server and on the model of it."""

    redis: Redis
    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        self.scripts = Scripts(self.redis)
        self.model = Model()
        self.claims: list[Held] = []
        """Everything that was ever claimed: a killed worker may come back with any of it."""
        self.names: list[str] = []
        """Of all tasks that ever were."""
        self.payloads = 0

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(call, 20))

    @initialize(queues=st.lists(st.sampled_from(QUEUES), min_size=1, max_size=4))
    def begin(self, queues: list[str]) -> None:
        self.run(self.redis.flushdb())
        for queue in queues:
            self.enqueue(queue, "ada", None, 0, False)
        self.claim("w1", 100)

    # What clients do.

    @rule(
        queue=st.sampled_from(QUEUES),
        user=st.sampled_from(("ada", "bob")),
        parent=st.one_of(st.none(), picks),
        delay_ms=st.sampled_from((0, 0, 0, DAY_MS)),
        twice=st.booleans(),
    )
    def enqueue(self, queue: str, user: str, parent: int | None, delay_ms: int, twice: bool) -> None:
        under = self._pick(parent) if parent is not None and self.model.tasks else None
        name = f"t{len(self.names)}"
        item = new_task(name, queue=queue, user_id=user, delay_ms=delay_ms, parent_id=under or "")
        if self._accepted(item, twice, b"cancelled" if self.model.is_refused(under) else b"ok"):
            self.model.put(name, Expected(user, queue, under, is_due=delay_ms == 0))

    @precondition(lambda self: self.names)
    @rule(queue=st.sampled_from(QUEUES), others=st.lists(picks, min_size=1, max_size=3), twice=st.booleans())
    def enqueue_behind_others(self, queue: str, others: list[int], twice: bool) -> None:
        name = f"t{len(self.names)}"
        after = [self.names[other % len(self.names)] for other in others]
        item = new_task(name, queue=queue, extra=to_json(["after", "\n".join(after)]))
        if self._accepted(item, twice, b"ok" if self.model.may_follow("ada", after) else b"missing"):
            self.model.put(name, Expected("ada", queue))
            self.model.wait_to_begin(name, after)
            until = self.run(self.redis.hget(keys.task(name), "wait_until"))
            self.model.tasks[name].begins_ms = int(until or 0)

    def _accepted(self, item: NewTask, twice: bool, expected: bytes) -> bool:
        replies = [self.run(self.scripts.enqueue([[item]], 1_000))[0] for _ in range(1 + twice)]
        assert {reply[0] for reply in replies} == {expected}
        if expected == b"ok":
            self.names.append(item.id)
        return expected == b"ok"

    @precondition(lambda self: self.model.tasks)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        name = self._pick(pick)
        was = self.model.tasks[name].status
        (state,) = self.run(self.scripts.cancel([name], HOUR_MS))
        assert state == {"STARTED": b"requested"}.get(was, b"finished" if was in FINAL else b"cancelled")
        if was not in ("SUCCESS", "FAILURE"):
            self.model.cancel(name)

    @precondition(lambda self: self.names)
    @rule(
        pick=picks,
        user=st.sampled_from(("", "", "ada")),
        event=st.sampled_from(EVENTS),
        key=st.sampled_from(("", "", "k1", "k2")),
        twice=st.booleans(),
    )
    def deliver_event(self, pick: int, user: str, event: str, key: str, twice: bool) -> None:
        name = self.names[pick % len(self.names)]
        waiting = [(name, subject) for name, task in self.model.tasks.items() for subject in sorted(task.pending)]
        told = [(name, subject[6:]) for name, subject in waiting if subject.startswith("event:")]
        if told and pick % 3:
            name, event = told[pick % len(told)]
        self.payloads += 1
        item = Delivery(name, user, event, b"%d" % self.payloads, key, MAX_EVENTS)
        for _ in range(1 + (twice and key != "")):
            expected = self.model.deliver(name, user, event, item.payload, key)
            assert self.run(self.scripts.deliver_event(item))[0] == expected

    # What workers do.

    @precondition(lambda self: self.model.tasks)
    @rule(worker=st.sampled_from(("w1", "w2")), want=st.sampled_from((1, 100, 100)))
    def claim(self, worker: str, want: int) -> None:
        for queue in QUEUES:
            due = self.model.due(queue)
            got = self.run(claim(self.scripts, worker, queue, want=want))
            assert len(got) == min(want, len(due)), (due, got)
            assert {held.id for held in got} <= due
            for held in got:
                self._claimed(held)

    def _claimed(self, held: Held) -> None:
        task = self.model.tasks[held.id]
        assert held.lost == (task.status == "STARTED")
        assert ("cancel" in held.fields) == task.is_cancelled
        assert ("steps" in held.fields) == bool(task.steps or task.deadlines)
        stored = self.run(self.scripts.read_steps(held.id))
        assert (held.steps is None) == (not stored)
        assert {
            name.decode(): value for name, value in zip((held.steps or [])[::2], (held.steps or [])[1::2], strict=True)
        } == stored
        assert all(other.token < held.token for other in self.claims if other.id == held.id)
        assert held.attempt == self.model.claim(held.id, held.token)
        self.claims.append(held)

    @precondition(lambda self: self.claims)
    @rule(
        which=st.lists(st.tuples(picks, st.lists(picks, max_size=4)), min_size=1, max_size=3),
        events=st.sampled_from(((), (), EVENTS[:1], EVENTS[1:], EVENTS)),
        timeout_ms=st.sampled_from((0, DAY_MS, DAY_MS, DAY_MS, DAY_MS)),
        fail_fast=st.booleans(),
        twice=st.booleans(),
    )
    def suspend(
        self,
        which: list[tuple[int, list[int]]],
        events: Sequence[str],
        timeout_ms: int,
        fail_fast: bool,
        twice: bool,
    ) -> None:
        items = [self._suspend(pick, subjects, events, timeout_ms, fail_fast) for pick, subjects in which]
        before = self.run(server_ms(self.redis))
        replies = self.run(self.scripts.suspend(items))
        for item, reply in zip(items, replies, strict=True):
            assert reply == self.model.may_write(item.id, item.token)
            if reply:
                self._suspended(item, before)
        if twice:
            assert self.run(self.scripts.suspend(items)) == [0] * len(items)

    def _suspend(
        self, pick: int, subjects: Sequence[int], events: Sequence[str], timeout_ms: int, fail_fast: bool
    ) -> Suspend:
        held = self._a_claim(pick)
        number = len(self.model.tasks[held.id].steps) if held.id in self.model.tasks else 0
        # One in the row never was.
        names = [*self.names, "never"]
        wanted = [f"task:{names[subject % len(names)]}" for subject in subjects] + [f"event:{name}" for name in events]
        return Suspend(
            id=held.id,
            token=held.token,
            queue=held.queue,
            number=number,
            facts=b'{"name":"wait"}',
            timeout_ms=timeout_ms,
            fail_fast=fail_fast,
            waiting_for=b'{"kind":"some"}',
            ttl_ms=HOUR_MS,
            subjects=tuple(wanted),
        )

    def _suspended(self, item: Suspend, before_ms: int) -> None:
        now_ms = self.run(server_ms(self.redis))
        begun = self.run(self.redis.hget(keys.steps(item.id), f"wait:{item.number}"))
        assert begun is not None
        read_ms = int(begun.partition(b" ")[0])
        known_ms = self.model.begin_wait(item.id, item.timeout_ms, before_ms)
        if known_ms != read_ms:
            # The clock of the script lies between the two that were asked; a wait that had begun has none.
            assert known_ms == before_ms + item.timeout_ms <= read_ms <= now_ms + item.timeout_ms
            self.model.tasks[item.id].deadlines[item.number] = read_ms
        self.model.suspend(item.id, item.subjects, item.fail_fast, now_ms)

    def _a_claim(self, pick: int) -> Held:
        """Mostly the claim of an attempt that may write, else one that was lost."""
        alive = [held for held in self.claims if self.model.may_write(held.id, held.token)]
        pool = alive if alive and pick % 5 else self.claims
        return pool[pick % len(pool)]

    @precondition(lambda self: self.claims)
    @rule(
        which=st.lists(st.tuples(picks, st.sampled_from(FINAL)), min_size=1, max_size=3),
        twice=st.booleans(),
    )
    def finish(self, which: list[tuple[int, str]], twice: bool) -> None:
        items = [end_of(self._a_claim(pick), status, ttl_ms=HOUR_MS) for pick, status in which]
        replies = self.run(self.scripts.finish(items))
        for item, reply in zip(items, replies, strict=True):
            assert reply == self.model.may_write(item.id, item.token)
            if reply:
                self.model.end(item.id, item.status)
        if twice:
            assert self.run(self.scripts.finish(items)) == [0] * len(items)

    @precondition(lambda self: self.claims)
    @rule(pick=picks, counts=st.booleans(), delay_ms=st.sampled_from((0, DAY_MS)))
    def reschedule(self, pick: int, counts: bool, delay_ms: int) -> None:
        held = self._a_claim(pick)
        may = self.model.may_write(held.id, held.token)
        assert self.run(self.scripts.reschedule([again(held, delay_ms=delay_ms, counts=counts)])) == [int(may)]
        if may:
            self.model.put_back(held.id, counts, delay_ms)

    @precondition(lambda self: self.claims)
    @rule(pick=picks, failed=st.booleans(), twice=st.booleans())
    def record_step(self, pick: int, failed: bool, twice: bool) -> None:
        held = self._a_claim(pick)
        may = self.model.may_write(held.id, held.token)
        item = self._record(held, b"null", failed)
        assert self.run(self.scripts.record_step([item] * (1 + twice))) == [int(may)] * (1 + twice)
        if may:
            self.model.store(held.id, b"null")

    @precondition(lambda self: self.claims)
    @rule(pick=picks, event=st.sampled_from(EVENTS), twice=st.booleans())
    def take_event(self, pick: int, event: str, twice: bool) -> None:
        held = self._a_claim(pick)
        told = [
            (held, name)
            for held in self.claims
            if self.model.may_write(held.id, held.token)
            for name, kept in self.model.tasks[held.id].inbox.items()
            if kept
        ]
        if told and pick % 4:
            held, event = told[pick % len(told)]
        item = self._record(held, b'{"value":', False)
        expected = [b"stale"]
        if self.model.may_write(held.id, held.token):
            result = self.model.take(held.id, event)
            expected = [b"none"] if result is None else [b"ok", result]
        for _ in range(1 + twice):
            assert self.run(self.scripts.take_event([TakeEvent(item, event)])) == [expected]

    def _record(self, held: Held, result: bytes, failed: bool) -> StepRecord:
        number = len(self.model.tasks[held.id].steps) if held.id in self.model.tasks else 0
        return StepRecord(held.id, held.token, number, b'"wait"', result, 0.0, failed)

    # What happens.

    @precondition(lambda self: any(task.status == "STARTED" and not task.is_due for task in self.model.tasks.values()))
    @rule(pick=picks)
    def a_worker_dies(self, pick: int) -> None:
        alive = [held for held in self.claims if self.model.may_write(held.id, held.token)]
        held = alive[pick % len(alive)]
        self.run(lapse(self.redis, held))
        self.model.tasks[held.id].is_due = True

    @precondition(lambda self: any(task.status in ("PENDING", "RETRY") for task in self.model.tasks.values()))
    @rule(pick=picks)
    def a_delay_is_over(self, pick: int) -> None:
        names = [name for name, task in self.model.tasks.items() if task.status in ("PENDING", "RETRY")]
        name = names[pick % len(names)]
        task = self.model.tasks[name]
        if not task.is_due:
            self.run(self._make_due(name, task.queue))
            task.is_due = True

    @precondition(lambda self: any(task.status == "WAITING" for task in self.model.tasks.values()))
    @rule(pick=picks)
    def a_deadline_passes(self, pick: int) -> None:
        names = [name for name, task in self.model.tasks.items() if task.status == "WAITING"]
        name = names[pick % len(names)]
        task = self.model.tasks[name]
        past_ms = self.run(self._make_due(name, task.queue))
        self.run(self.redis.hset(keys.task(name), "wait_until", past_ms))
        task.begins_ms, task.is_due = past_ms, True
        if task.has_begun:
            number = len(task.steps)
            self.run(self.redis.hset(keys.steps(name), f"wait:{number}", b'%d {"name":"wait"}' % past_ms))
            task.deadlines[number] = past_ms

    async def _make_due(self, name: str, queue: str) -> int:
        past_ms = await server_ms(self.redis) - 1
        assert await self.redis.zadd(keys.queue(queue), {name: past_ms}, xx=True, ch=True) == 1
        return past_ms

    @precondition(lambda self: any(task.is_finished for task in self.model.tasks.values()))
    @rule(pick=picks)
    def a_record_is_swept(self, pick: int) -> None:
        over = [name for name, task in self.model.tasks.items() if task.is_finished]
        name = over[pick % len(over)]
        self.run(self.redis.zadd(keys.PREFIXES["finished"], {name: 1}, xx=True))
        assert self.run(self.scripts.sweep(100, DAY_MS)) == (1, 0)
        self.model.forget(name)

    def _pick(self, pick: int) -> str:
        return list(self.model.tasks)[pick % len(self.model.tasks)]

    # What must hold.

    @invariant()
    def redis_is_as_the_model(self) -> None:
        self.run(self._check())

    async def _check(self) -> None:
        now_ms = await server_ms(self.redis)
        for queue in QUEUES:
            await self._check_queue(queue, now_ms)
        async with self.redis.pipeline(transaction=False) as pipe:
            for name in self.names:
                ask(pipe, name)
            answers = await pipe.execute()
        for at, name in enumerate(self.names):
            seen = answered(answers, at)
            if name in self.model.tasks:
                check_task(self.model.tasks[name], seen)
                check_wait(self.model, name, self.model.tasks[name], seen)
            else:
                check_forgotten(self.model, name, seen)
        await self._check_kept(now_ms)

    async def _check_queue(self, queue: str, now_ms: int) -> None:
        model = self.model
        scores = {
            name.decode(): score for name, score in await self.redis.zrange(keys.queue(queue), 0, -1, withscores=True)
        }
        assert scores.keys() == {
            name for name, task in model.tasks.items() if task.queue == queue and not task.is_finished
        }
        assert {name for name, score in scores.items() if score <= now_ms} == model.due(queue)
        for name, score in scores.items():
            if model.tasks[name].status == "WAITING" and not model.tasks[name].is_due:
                assert score == model.tasks[name].deadline_ms
        counts = await self.redis.hgetall(keys.PREFIXES["counts"] + queue)
        letters = sum(task.queue == queue for task in model.letters.values())
        assert {kind: int(counts.get(kind.encode(), 0)) for kind in ("running", "waiting", "dead")} == {
            "running": model.count(queue, lambda task: task.status == "STARTED"),
            "waiting": model.count(queue, lambda task: task.status == "WAITING"),
            "dead": letters,
        }

    async def _check_kept(self, now_ms: int) -> None:
        """What a task waits for is kept for at least as long as it waits."""
        awaited: dict[str, int] = {}
        for task in self.model.tasks.values():
            for name in (subject.removeprefix("task:") for subject in task.awaited):
                if name in self.model.tasks and self.model.tasks[name].is_finished:
                    awaited[name] = max(task.deadline_ms, awaited.get(name, 0))
        for name, until_ms in awaited.items():
            assert now_ms + await self.redis.pttl(keys.result(name)) >= until_ms
            assert await self.redis.zscore(keys.PREFIXES["finished"], name) >= until_ms

    def teardown(self) -> None:
        """Whatever has happened, everything comes to an end by itself, and nothing is left."""
        self.run(self._end_all())

    async def _end_all(self) -> None:
        for name, task in self.model.tasks.items():
            if not task.is_finished:
                await self.redis.zadd(keys.queue(task.queue), {name: 1}, xx=True)
                await self.redis.delete(keys.PREFIXES["in_progress"] + name)
        for queue in QUEUES:
            await self.scripts.finish([end_of(held) for held in await claim(self.scripts, "w1", queue)])
            assert await self.redis.zcard(keys.queue(queue)) == 0
        for name in await self.redis.zrange(keys.PREFIXES["finished"], 0, -1):
            await self.redis.zadd(keys.PREFIXES["finished"], {name: 1})
        await self.scripts.sweep(1_000, DAY_MS)
        await self.scripts.discard_dead_letters([*self.names, "none"])
        left = [key.decode() async for key in self.redis.scan_iter(count=1_000)]
        allowed = ("ns:counts:", "ns:events:user:", "ns:idempotency:", "ns:queues", "ns:wake:", "ns:sleepers:")
        assert [key for key in left if not key.startswith(allowed)] == []


def test_waiting_holds_whatever_happens(server: EmbeddedServer, loop: asyncio.AbstractEventLoop) -> None:
    redis = connect(server.url)
    try:
        run_machine(Machine, examples=60, steps=40, derandomize=True, redis=redis, loop=loop)
    finally:
        loop.run_until_complete(redis.aclose())
