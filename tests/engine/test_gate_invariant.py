"""Gates under whatever happens in whatever order: never more than `limit` tasks of a gate have begun and not ended,
they begin in the order in which they came, none is held while there is room, and nothing is left behind.

A model of the rows is kept beside a real server of the test's own; after each step the two are compared. The last
parameters of a burst of debounced tasks must reach a run.
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
from app.store.connection import connect
from app.store.embedded import EmbeddedServer
from app.store.items import Gating, Suspend
from app.store.scripts import PARK_MS, Scripts
from tests.machines import run_machine
from tests.simulated import DAY_MS, Held, again, claim, end_of, lapse, new_task, server_ms

KEYS = ("a", "b")
GROUPS = {"group:p/1": 2, "fail-fast:p/2": 3}
POLICIES = ("queue", "queue", "reject", "join", "replace", "debounce")
QUIET = (DAY_MS, 2 * DAY_MS)
T = TypeVar("T")


@dataclass
class Expected:
    """An unfinished task as it should be."""

    gates: tuple[tuple[str, int], ...]
    key: str | None
    debounced: bool = False
    begun: bool = False
    delayed: bool = False
    payload: bytes = b""
    claim: Held | None = None
    flagged: bool = False
    lost: bool = False
    """Its worker died, and no other has taken it yet."""


@dataclass
class Model:
    """Unfinished tasks by id, and the rows of the gates."""

    tasks: dict[str, Expected] = field(default_factory=dict)
    rows: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, task: Expected) -> None:
        self.tasks[name] = task
        for gate, _ in task.gates:
            self.rows.setdefault(gate, []).append(name)

    def end(self, name: str) -> None:
        for gate, _ in self.tasks.pop(name).gates:
            self.rows[gate].remove(name)

    def may_run(self, name: str) -> bool:
        return all(self.rows[gate].index(name) < limit for gate, limit in self.tasks[name].gates)

    def under(self, key: str | None) -> list[str]:
        return [] if key is None else list(self.rows.get(keys.gate_of_key("ada", key), ()))


class Machine(RuleBasedStateMachine):
    """Random operations on a server and on the model of it."""

    server: EmbeddedServer
    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        self.redis: Redis = connect(self.server.url)
        self.scripts = Scripts(self.redis)
        self.model = Model()
        self.made = 0
        self.hurried: dict[str, int] = {}
        """Whose score was moved to a time by hand."""

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(call, 20))

    @initialize()
    def begin(self) -> None:
        self.run(self.redis.flushall())

    def teardown(self) -> None:
        self.run(self._drain())
        self.run(self.redis.aclose())

    async def _drain(self) -> None:
        """Let all come to its end: then no row is left."""
        for _ in range(500):
            if not self.model.tasks:
                break
            await self._hurry()
            for held in await claim(self.scripts, want=3):
                self._claimed(held)
            for name, task in list(self.model.tasks.items()):
                if task.claim is not None:
                    assert await self.scripts.finish([end_of(task.claim)]) == [1]
                    self.model.end(name)
            await self.compare()
        assert not self.model.tasks
        assert not await self.redis.keys(keys.gate("*"))

    async def _hurry(self) -> None:
        """Let the time come of all that is not running, parked tasks included."""
        now_ms = await server_ms(self.redis)
        for name, task in self.model.tasks.items():
            score = await self.redis.zscore(keys.queue("default"), name)
            if task.claim is None and score > now_ms:
                await self.redis.zadd(keys.queue("default"), {name: now_ms})
                await self.redis.hset(keys.task(name), "due_at", now_ms)
                task.delayed = False
                self.hurried[name] = now_ms

    @rule(
        size=st.integers(1, 3),
        key=st.sampled_from((None, *KEYS, *KEYS)),
        group=st.sampled_from((None, None, *GROUPS)),
        policies=st.lists(st.sampled_from(POLICIES), min_size=3, max_size=3),
        delayed=st.booleans(),
    )
    def enqueue(self, size: int, key: str | None, group: str | None, policies: list[str], delayed: bool) -> None:
        before = Model(dict(self.model.tasks), {gate: list(row) for gate, row in self.model.rows.items()})
        items, expected, refused = [], [], False
        for policy in policies[:size]:
            name = f"t{self.made}"
            self.made += 1
            gates = ((keys.gate_of_key("ada", key), 1),) if key else ()
            gates += ((group, GROUPS[group]),) if group else ()
            hold = QUIET if key and policy == "debounce" else None
            busy = "queue" if hold else policy
            task = Expected(gates, key, hold is not None, delayed=delayed or hold is not None, payload=name.encode())
            gating = Gating(gates, key or "", busy if key else "", debounce_ms=hold, ttl_ms=DAY_MS) if gates else None
            delay_ms = DAY_MS if delayed else 0
            items.append(new_task(name, payload=task.payload, gating=gating, delay_ms=delay_ms))
            if key and policy == "reject" and self.model.under(key):
                refused = True
                break
            expected.append(self._expect(name, task, busy if key else "queue"))
        (reply,) = self.run(self.scripts.enqueue([items], 1_000))
        if refused:
            assert reply[0] == b"busy"
            self.model = before
        else:
            assert [row[0].decode() for row in reply[2:]] == expected

    def _expect(self, name: str, task: Expected, busy: str) -> str:
        """What becomes of a submission; the id that answers for it."""
        others = self.model.under(task.key)
        if task.debounced:
            fits = [
                other for other in others if self.model.tasks[other].debounced and not self.model.tasks[other].begun
            ]
        else:
            fits = [other for other in others if not self.model.tasks[other].flagged] if busy == "join" else []
        if fits:
            if task.debounced:
                self._replace(fits[-1], payload=task.payload, delayed=True)
            return fits[-1]
        if busy == "replace":
            for other in others:
                self._cancel(other)
        self.model.add(name, task)
        return name

    def _replace(self, name: str, **changes: Any) -> None:
        # Not in place: a refused batch goes back to the model before it.
        old = self.model.tasks[name]
        self.model.tasks[name] = Expected(**{**{k: getattr(old, k) for k in old.__dataclass_fields__}, **changes})

    def _cancel(self, name: str) -> None:
        task = self.model.tasks[name]
        if task.claim is not None or task.lost:
            self._replace(name, flagged=True)
        else:
            self.model.end(name)

    @rule(want=st.integers(1, 4))
    def claim(self, want: int) -> None:
        for held in self.run(claim(self.scripts, want=want)):
            self._claimed(held)

    def _claimed(self, held: Held) -> None:
        task = self.model.tasks[held.id]
        assert self.model.may_run(held.id), f"{held.id} was let in before its turn"
        assert task.claim is None and held.payload == task.payload
        self._replace(held.id, begun=True, claim=held, delayed=False, lost=False)

    def _held(self, pick: int) -> tuple[str, Expected]:
        running = [(name, task) for name, task in self.model.tasks.items() if task.claim is not None]
        return running[pick % len(running)]

    @precondition(lambda self: any(task.claim for task in self.model.tasks.values()))
    @rule(pick=st.integers(0, 100), status=st.sampled_from(("SUCCESS", "SUCCESS", "FAILURE", "CANCELLED")))
    def finish(self, pick: int, status: str) -> None:
        name, task = self._held(pick)
        assert task.claim is not None
        assert self.run(self.scripts.finish([end_of(task.claim, status)])) == [1]
        self.model.end(name)

    @precondition(lambda self: any(task.claim for task in self.model.tasks.values()))
    @rule(pick=st.integers(0, 100), how=st.sampled_from(("retry", "back off", "hand back", "wait", "die")))
    def leave(self, pick: int, how: str) -> None:
        name, task = self._held(pick)
        held = task.claim
        assert held is not None
        if how == "die":
            self.run(lapse(self.redis, held))
        elif how == "wait":
            item = Suspend(
                name, held.token, "default", 0, b'{"name":"e"}', DAY_MS, False, b'{"kind":"event"}', 0, ("event:e",)
            )
            assert self.run(self.scripts.suspend([item])) == [1]
        else:
            delay_ms = DAY_MS if how == "back off" else 0
            assert self.run(self.scripts.reschedule([again(held, delay_ms=delay_ms, counts=how != "hand back")])) == [1]
        away = how in ("back off", "wait") and not task.flagged
        self._replace(name, claim=None, delayed=away, lost=how == "die")

    @precondition(lambda self: self.model.tasks)
    @rule(pick=st.integers(0, 100))
    def cancel(self, pick: int) -> None:
        name = sorted(self.model.tasks)[pick % len(self.model.tasks)]
        task = self.model.tasks[name]
        (state,) = self.run(self.scripts.cancel([name], DAY_MS))
        started = self.run(self.redis.hget(keys.task(name), "status")) == b"STARTED"
        assert state == (b"requested" if started else b"cancelled")
        if started:
            self._replace(name, flagged=True)
        else:
            assert task.claim is None
            self.model.end(name)

    @precondition(lambda self: self.model.tasks)
    @rule()
    def time_passes(self) -> None:
        self.run(self._hurry())

    @invariant()
    def the_server_agrees(self) -> None:
        self.run(self.compare())

    async def compare(self) -> None:
        for gate, row in self.model.rows.items():
            stored = [member.decode() for member in await self.redis.zrange(keys.gate(gate), 0, -1)]
            assert stored == row, gate
        now_ms = await server_ms(self.redis)
        for name, task in self.model.tasks.items():
            score = await self.redis.zscore(keys.queue("default"), name)
            assert score is not None, name
            if task.begun:
                assert self.model.may_run(name)
            elif not self.model.may_run(name):
                # Parked, or to be parked again by the look that is due.
                assert score > now_ms + PARK_MS / 2 or score == self.hurried.get(name), name
            elif task.delayed:
                assert score > now_ms + DAY_MS / 2, name
            else:
                assert score <= now_ms, f"{name} is held although there is room"


def test_gates_hold_whatever_happens(own_server: EmbeddedServer, loop: asyncio.AbstractEventLoop) -> None:
    run_machine(Machine, examples=50, steps=40, server=own_server, loop=loop)
