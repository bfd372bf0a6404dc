"""The invariant of approvals, under whatever happens in whatever order: *an approval is pending exactly as long as it
stands in the indices of the open ones and its task has not ended; its end is told once; no task waits for one that is
closed.*

Workers are simulated, so that they can be killed in between any two scripts, and write with tokens that are long stale.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from redis.asyncio import Redis

from app.engine.approvals import approval_id_of
from app.store import keys
from app.store.approval_scripts import ApprovalScripts, Ask
from app.store.connection import connect
from app.store.embedded import EmbeddedServer
from app.store.items import Suspend
from app.store.scripts import Scripts
from tests.machines import run_machine
from tests.simulated import DAY_MS, Held, again, claim, end_of, lapse, new_task, put

T = TypeVar("T")
HOUR_MS = 3_600_000
NUMBERS = st.integers(0, 1)
PICK = st.integers(0, 1_000)
OPEN_INDICES = (
    keys.approvals(pending=True),
    keys.approvals_of_user("ada", pending=True),
    keys.approvals_of_user("eve", pending=True),
    keys.approvals_of_scope("editor", pending=True),
)


class Machine(RuleBasedStateMachine):
    """Random operations on a server; what it holds is compared with itself, and with the status of each approval
    before."""

    server: EmbeddedServer
    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        self.redis: Redis = connect(self.server.url)
        self.scripts = Scripts(self.redis)
        self.approvals = ApprovalScripts(self.scripts)
        self.claims: list[Held] = []
        self.tasks = 0
        self.closed: dict[str, bytes] = {}

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(call, 20))

    def teardown(self) -> None:
        self.run(self.redis.aclose())

    @initialize()
    def begin(self) -> None:
        self.run(self.redis.flushall())
        for _ in range(3):
            self.start()
        self.take()
        for number in range(3):
            self.ask(number, 0)
        for number in range(2):
            self.wait(number, 0)

    # What workers do, also those that were taken for dead.

    @rule()
    def start(self) -> None:
        self.tasks += 1
        self.run(put(self.scripts, new_task(f"t{self.tasks}")))

    @rule()
    def take(self) -> None:
        self.claims += self.run(claim(self.scripts))

    @rule(who=PICK, number=NUMBERS)
    def ask(self, who: int, number: int) -> None:
        for held in self._held(who):
            reply = self.run(self.approvals.ask_approval(ask_of(held, number)))
            if reply != [b"stale"]:
                assert reply[1] == self.run(self.redis.hget(keys.approval(approval_id_of(held.id, number)), "status"))

    @rule(who=PICK, number=NUMBERS)
    def wait(self, who: int, number: int) -> None:
        for held in self._held(who):
            if self.run(self.redis.exists(keys.approval(approval_id_of(held.id, number)))):
                self.run(self.scripts.suspend([wait_of(held, number)]))

    @rule(who=PICK, status=st.sampled_from(("SUCCESS", "FAILURE", "CANCELLED")))
    def finish(self, who: int, status: str) -> None:
        for held in self._held(who):
            self.run(self.scripts.finish([end_of(held, status)]))

    @rule(who=PICK)
    def retry(self, who: int) -> None:
        for held in self._held(who):
            self.run(self.scripts.reschedule([again(held)]))

    @rule(who=PICK)
    def die(self, who: int) -> None:
        for held in self._held(who):
            if self.run(self.redis.hget(keys.task(held.id), "lease")) == str(held.token).encode():
                self.run(lapse(self.redis, held))

    # What people and time do.

    @rule(
        task=PICK,
        number=NUMBERS,
        status=st.sampled_from(("APPROVED", "REJECTED", "WITHDRAWN")),
        key=st.sampled_from("ab "),
    )
    def close(self, task: int, number: int, status: str, key: str) -> None:
        approval_id = approval_id_of(self._task(task), number)
        before = self.run(self.redis.hget(keys.approval(approval_id), "status"))
        (verdict, *_) = self.run(self.approvals.close_approval(approval_id, status, by="eve", decision=key.strip()))
        assert verdict in {None: (b"missing",), b"PENDING": (b"ok", b"closed")}.get(before, (b"closed", b"again"))

    @rule(task=PICK, number=NUMBERS)
    def pass_deadline(self, task: int, number: int) -> None:
        approval_id = approval_id_of(self._task(task), number)
        if self.run(self.redis.hget(keys.approval(approval_id), "status")) == b"PENDING":
            self.run(self.redis.hset(keys.approval(approval_id), "expires_at", 1))
            self.run(self.redis.zadd(keys.PREFIXES["approval_deadlines"], {approval_id: 1}, xx=True))

    @rule()
    def beat(self) -> None:
        self.run(self.scripts.heartbeat("w1", b"{}", 1_000))
        assert self.run(self.redis.zcount(keys.PREFIXES["approval_deadlines"], "-inf", 1)) == 0

    @rule(task=PICK)
    def cancel(self, task: int) -> None:
        self.run(self.scripts.cancel([self._task(task)], DAY_MS))

    # What must hold.

    @invariant()
    def holds(self) -> None:
        self.run(self._check())

    async def _check(self) -> None:
        pending = set()
        for task in [f"t{number + 1}" for number in range(self.tasks)]:
            told: Counter[tuple[str, str]] = Counter()
            _, entries = await self.scripts.read_events(keys.events(f"task:{task}"), 0, 0, 1_000)
            for entry in entries:
                _, kind, _, payload = entry.decode().split(" ", 3)
                if "approval_id" in payload and kind != "task_waiting":
                    told[kind, payload.split('"')[3]] += 1
            status = await self.redis.hget(keys.task(task), "status")
            finished = status in (b"SUCCESS", b"FAILURE", b"CANCELLED")
            for approval_id in [approval_id_of(task, number) for number in (0, 1)]:
                found = await self.redis.hget(keys.approval(approval_id), "status")
                assert told["hitl_pending", approval_id] == (found is not None)
                assert told["approval_decided", approval_id] == (found not in (None, b"PENDING"))
                # What is closed stays as it is.
                assert self.closed.get(approval_id, found) == found
                if found == b"PENDING":
                    assert not finished
                    pending.add(approval_id)
                elif found is not None:
                    self.closed[approval_id] = found
                waits = await self.redis.sismember(keys.PREFIXES["pending"] + task, f"approval:{approval_id}")
                assert not waits or (status, found) == (b"WAITING", b"PENDING")
            if status == b"WAITING":
                assert await self.redis.scard(keys.PREFIXES["pending"] + task) == 1
        deadlines = await self.redis.zrange(keys.PREFIXES["approval_deadlines"], 0, -1)
        assert {approval_id.decode() for approval_id in deadlines} == pending
        for index in OPEN_INDICES:
            members = await self.redis.zrange(index, 0, -1)
            assert sorted(member.decode().partition(":")[2] for member in members) == sorted(pending)

    def _held(self, number: int) -> list[Held]:
        return [self.claims[number % len(self.claims)]] if self.claims else []

    def _task(self, number: int) -> str:
        return f"t{number % max(self.tasks, 1) + 1}"


def ask_of(held: Held, number: int) -> Ask:
    return Ask(
        task_id=held.id,
        token=held.token,
        id=approval_id_of(held.id, number),
        number=number,
        facts=b'{"name":"approval"}',
        expires_in_ms=HOUR_MS,
        subject="s",
        payload=b"{}",
        deciders=("eve",),
        scope="editor",
        edits_schema=b"",
    )


def wait_of(held: Held, number: int) -> Suspend:
    return Suspend(
        id=held.id,
        token=held.token,
        queue=held.queue,
        number=number,
        facts=b'{"name":"approval"}',
        timeout_ms=HOUR_MS,
        fail_fast=False,
        waiting_for=b'{"kind":"approval"}',
        ttl_ms=HOUR_MS,
        subjects=(f"approval:{approval_id_of(held.id, number)}",),
    )


def test_the_invariant_of_approvals_holds(own_server: EmbeddedServer, loop: asyncio.AbstractEventLoop) -> None:
    run_machine(Machine, examples=40, steps=15, derandomize=True, server=own_server, loop=loop)
