"""A typed function for every Lua script, under the script's name.

A script is put together once from `lua/<name>.lua` and what it uses (`assembly.py`). It is called by its digest; a
server that lost its scripts in a restart gets them again. All times at this edge are Unix milliseconds, all texts
bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from app.store import keys
from app.store.assembly import assemble
from app.store.items import Arg, Delivery, Emit, Finish, NewTask, Reschedule, StepRecord, Suspend, TakeEvent

BAND = 2**38
"""Numbers in the band of a priority, among the scores of ready tasks; a score of at least this is a time (from 1978
on).

A double holds the scores of all bands in steps of `COST_STEP`, exactly, and a band is full when so many tasks have
passed through a queue that was never empty: at 10,000 a second after ten months.
"""
COST_STEP = 2**-10
"""What the cost of a task is a multiple of."""
MAX_PRIORITY = 9
AFTER_MS = 7 * 86_400_000
"""How long a task that is to begin after others waits for them."""
CLAIM_STEPS_BYTES = 8 * 1024
"""Steps of a task up to this size come with its claim; larger ones are read apart."""
SLEEPER_MS = 5_000
"""A sleeper that has not renewed its place for so long is dead. Workers renew once a second."""
CHANNEL_LENGTH = 10_000
"""Events that a channel keeps, at least."""
CHANNEL_TTL_MS = 7 * 86_400_000
PARK_MS = 6 * 3_600_000
"""When a task that its gate holds is looked at all the same. Nothing needs that while every end is told to the gate."""
HEALED = 20
"""Tasks at the head of a gate that such a look checks."""
MERGED_TTL_MS = 60_000
"""For how long it is known which task stands for a submission; a call whose reply was lost is repeated within it."""
CANCEL_BOUND = 1_000
"""Tasks that one call of the cancel script looks at, so that the server is never held for long."""
SCAN_BOUND = 2_000
"""Index entries that one call of a list script looks at."""
EXPIRED_AT_ONCE = 200
"""Approvals that one call ends whose time is over."""
TOLD_AT_ONCE = 1_000
"""Waiting tasks that one call tells of the ends of others: some 10 ms of the server's time."""

CLAIM_FIELDS = (
    *("status", "attempt", "lease", "user_id", "project_id", "task", "parent_id", "root_id", "correlation_id"),
    *("tags", "enqueued_at", "due_at", "progress", "cancel", "unknown_since", "steps", "resumes", "after", "gates"),
    "step_bytes",
)
"""Names of the values that `claim.lua` returns of a record."""

TREE_FIELDS = (
    *("user_id", "enqueued_at", "status", "task", "queue", "attempt", "progress", "progress_at", "started_at"),
    *("finished_at", "due_at", "waiting_for", "wait_until", "error", "label", "parent_id", "root_id"),
)
"""What a tree shows of each task."""

Fields = list[bytes]


def limits(idempotency_ttl_s: float = 86_400.0) -> dict[str, float]:
    """What the scripts know as `L`."""
    return {
        "band": BAND,
        "cost_step": COST_STEP,
        "priority_max": MAX_PRIORITY,
        "sleeper_ms": SLEEPER_MS,
        "expired_at_once": EXPIRED_AT_ONCE,
        "told_at_once": TOLD_AT_ONCE,
        "channel_length": CHANNEL_LENGTH,
        "channel_ttl_ms": CHANNEL_TTL_MS,
        "after_ms": AFTER_MS,
        "park_ms": PARK_MS,
        "healed": HEALED,
        "merged_ttl_ms": MERGED_TTL_MS,
        "cancel_bound": CANCEL_BOUND,
        "claim_steps_bytes": CLAIM_STEPS_BYTES,
        "idempotency_ttl_ms": int(idempotency_ttl_s * 1000),
    }


@dataclass(frozen=True, slots=True)
class _Script:
    source: str
    digest: str


class Scripts:
    """The scripts, bound to a client. `redis` must return bytes (`decode_responses=False`)."""

    def __init__(self, redis: Redis, *, idempotency_ttl_s: float = 86_400.0) -> None:
        self.redis = redis
        self._limits = limits(idempotency_ttl_s)
        self._prelude = ""
        self._loaded: dict[str, _Script] = {}

    async def run(self, name: str, args: Sequence[Arg]) -> Any:
        """Call a script by name, for the typed functions of modules beside this one."""
        return await self._run(name, args)

    async def _run(self, name: str, args: Sequence[Arg]) -> Any:
        script = self._loaded.get(name) or self._load(name)
        try:
            return await self.redis.execute_command("EVALSHA", script.digest, 0, *args)
        except NoScriptError:
            await self.load(name)
            return await self.redis.execute_command("EVALSHA", script.digest, 0, *args)

    def _load(self, name: str) -> _Script:
        source = assemble(name, self._limits, self._prelude)
        script = _Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
        self._loaded[name] = script
        return script

    async def enqueue(self, groups: Sequence[Sequence[NewTask]], max_depth: int) -> list[list[Any]]:
        """Accept groups of tasks, each as a whole or not at all. One reply per group, see the script."""
        args: list[Arg] = [max_depth]
        for group in groups:
            args.append(len(group))
            args.extend(chain.from_iterable(task.args() for task in group))
        keyed = any(task.gating is not None for group in groups for task in group)
        replies: list[list[Any]] = await self._run("enqueue_keyed" if keyed else "enqueue", args)
        return replies

    async def claim(
        self, worker: str, lease_ms: int, budget: int, wants: Sequence[tuple[str, int]]
    ) -> tuple[int, int, list[list[Any]], list[bytes]]:
        """Take due tasks for `worker`.

        Returns the server's time, the next due time (-1: none known), the claims, and the queues that may hold more.
        """
        args = [worker, lease_ms, budget, *(item for want in wants for item in want)]
        time, soonest, claims, left, _ = await self._run("claim", args)
        return time, soonest, claims, left

    def claim_ahead(self, worker: str, lease_ms: int, budget: int) -> tuple[Arg, ...]:
        """The claim of a worker that is woken, as a command to be sent behind its `BLMOVE`; see the script.

        Where the server does not know the script it answers with redis-py's `NoScriptError`; then `load` it.
        """
        script = self._loaded.get("claim") or self._load("claim")
        return ("EVALSHA", script.digest, 0, worker, lease_ms, budget)

    async def load(self, name: str) -> None:
        """Give a script to the server."""
        script = self._loaded.get(name) or self._load(name)
        await self.redis.execute_command("SCRIPT LOAD", script.source)

    async def finish(self, items: Sequence[Finish]) -> list[int]:
        """End attempts. 1 for each that was written, 0 where the token was stale."""
        replies: list[int] = await self._run("finish", list(chain.from_iterable(item.args() for item in items)))
        return replies

    async def reschedule(self, items: Sequence[Reschedule]) -> list[int]:
        """Put attempts back. 1 for each that was written, 0 where the token was stale."""
        replies: list[int] = await self._run("reschedule", list(chain.from_iterable(item.args() for item in items)))
        return replies

    async def suspend(self, items: Sequence[Suspend]) -> list[int]:
        """Have tasks wait. 1 for each that was written, 0 where the token was stale."""
        replies: list[int] = await self._run("suspend", list(chain.from_iterable(item.args() for item in items)))
        return replies

    async def read_ends(self, ids: Sequence[str], max_bytes: int) -> list[list[bytes]] | None:
        """Of each task owner, name, status and, once it is finished, result; all empty where there is none.

        None when the results together exceed `max_bytes`.
        """
        rows: list[list[bytes]] | int = await self._run("read_ends", [max_bytes, *ids])
        return None if isinstance(rows, int) else rows

    async def deliver_event(self, item: Delivery) -> list[bytes]:
        """Give a task an event from outside; see the script for the reply."""
        reply: list[bytes] = await self._run("deliver_event", item.args())
        return reply

    async def take_event(self, items: Sequence[TakeEvent]) -> list[list[bytes]]:
        """Take the oldest events of their names and store them as results of steps; see the script for the replies."""
        args = list(chain.from_iterable(item.args() for item in items))
        replies: list[list[bytes]] = await self._run("take_event", args)
        return replies

    async def emit(self, items: Sequence[Emit]) -> list[int]:
        """Append events. 1 for each that was written, 0 where the token was stale."""
        replies: list[int] = await self._run("emit", list(chain.from_iterable(item.args() for item in items)))
        return replies

    async def record_step(self, items: Sequence[StepRecord]) -> list[int]:
        """Store the results of steps. 1 for each that was written, 0 where the token was stale."""
        replies: list[int] = await self._run("record_step", list(chain.from_iterable(item.args() for item in items)))
        return replies

    async def read_steps(self, task_id: str) -> dict[str, bytes]:
        """The completed steps of a task, as its hash stands."""
        stored: dict[bytes, bytes] = await self.redis.execute_command("HGETALL", keys.steps(task_id))
        return {field.decode(): value for field, value in stored.items()}

    async def cancel(self, ids: Sequence[str], ttl_ms: int) -> list[bytes]:
        """Cancel tasks and all their descendants, in as many calls as it takes. Returns a state per id."""
        states, rest = await self._run("cancel", [ttl_ms, CANCEL_BOUND, 0, *ids])
        await self.cancel_rest(rest, ttl_ms)
        return list(states)

    async def cancel_rest(self, rest: list[bytes], ttl_ms: int) -> None:
        """Cancel what a call that cancels left over, with all descendants."""
        while rest:
            batch, rest = rest[-CANCEL_BOUND:], rest[:-CANCEL_BOUND]
            _, more = await self._run("cancel", [ttl_ms, CANCEL_BOUND, 1, *batch])
            rest += more

    async def read_task(self, task_id: str, *, with_result: bool) -> tuple[Fields, bytes, bytes, bytes, bytes, Fields]:
        """A task's record, result, payload, score, queue and, with the result, steps; empty where there is none."""
        record, result, payload, score, queue, steps = await self._run("read_task", [task_id, int(with_result)])
        return record, result, payload, score, queue, steps

    async def settle_stock(
        self,
        task_id: str,
        *,
        status: str,
        error: bytes,
        finished_ms: int,
        attempt: int,
        ttl_ms: int,
        event_type: str,
        event: bytes,
    ) -> bool:
        """End the record of a task that a stock worker finished."""
        args: list[Arg] = [task_id, status, error, finished_ms, attempt, ttl_ms, event_type, event]
        return bool(await self._run("settle_stock", args))

    async def find_stock_ends(self, bound: int) -> list[bytes]:
        """Some tasks that stock workers finished and whose records do not know of it."""
        ids: list[bytes] = await self._run("find_stock_ends", [bound])
        return ids

    async def list_tasks(
        self, index: str, cursor: str, limit: int, wanted: Iterable[tuple[str, str]]
    ) -> tuple[str, list[tuple[bytes, Fields]]]:
        """A page of an index, newest first: the next cursor ('' at the end), and ids with their records."""
        reply = await self._run("list_tasks", [index, cursor, limit, SCAN_BOUND, *chain.from_iterable(wanted)])
        return reply[0].decode(), [(row[0], row[1]) for row in reply[1:]]

    async def read_tree(self, task_id: str, depth: int, limit: int) -> list[tuple[str, int, int, dict[str, str]]]:
        """A task and its descendants, breadth first: id, place of the parent's row, children that are left out, fields.

        The place of the first row's parent is -1.
        """
        rows = await self._run("read_tree", [task_id, depth, limit, SCAN_BOUND, *TREE_FIELDS])
        return [(row[0].decode(), row[1] - 1, row[2], _present(row[3])) for row in rows]

    async def list_dead_letters(
        self, index: str, behind: str, end: str, limit: int, wanted: Iterable[tuple[str, str]]
    ) -> tuple[str, list[tuple[bytes, Fields]]]:
        """A page of dead letters, newest first: the next cursor ('' at the end), and ids with their fields.

        `behind` and `end` bound the entries of the index that are looked at; '' leaves that side open.
        """
        args: list[Arg] = [index, behind, end, limit, SCAN_BOUND, *chain.from_iterable(wanted)]
        reply = await self._run("list_dead_letters", args)
        return reply[0].decode(), [(row[0], row[1]) for row in reply[1:]]

    async def read_dead_letter(self, task_id: str) -> tuple[Fields, Fields]:
        """Fields of a dead letter, or of what is left of a replayed one, and the facts of its steps; see the script."""
        fields, steps = await self._run("read_dead_letter", [task_id])
        return fields, steps

    async def discard_dead_letters(self, task_ids: Sequence[str]) -> list[int]:
        """Take dead letters away. 1 for each that was there, else 0."""
        replies: list[int] = await self._run("discard_dead_letters", list(task_ids))
        return replies

    async def heartbeat(self, worker: str, record: bytes, ttl_ms: int) -> list[bytes]:
        """Note that `worker` lives. Returns ids that arq clients want aborted."""
        aborts: list[bytes] = await self._run("heartbeat", [worker, record, ttl_ms])
        return aborts

    async def tell_waiters(self) -> bool:
        """Go on telling those who wait for tasks that have ended. Returns whether more are left."""
        return bool(await self._run("tell_waiters", ()))

    async def stop_sleeping(self, worker: str, queues: Iterable[str]) -> None:
        """Take a worker that claims no more out of the lists of the sleeping."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.zrem(keys.sleepers(queue), worker)
            await pipe.execute()

    async def leave(self, worker: str) -> None:
        """Take a worker that stops out of the list of the living."""
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.zrem(keys.WORKERS, worker)
            pipe.delete(keys.worker(worker), keys.wake(worker), keys.woken(worker))
            await pipe.execute()

    async def queue_stats(self, queues: Sequence[str]) -> list[list[Any]]:
        """What stands in queues, see the script."""
        replies: list[list[Any]] = await self._run("queue_stats", list(queues))
        return replies

    async def read_events(self, channel: str, ms: int, number: int, limit: int) -> tuple[bool, list[bytes]]:
        """Entries of a channel behind an event, and whether some behind it are not kept any more."""
        gap, *entries = await self._run("read_events", [channel, ms, number, limit])
        return bool(gap), entries

    async def sweep(self, limit: int, dead_letter_ttl_ms: int) -> tuple[int, int]:
        """Forget what is over. Returns how many tasks and how many dead letters."""
        tasks, dead = await self._run("sweep", [limit, dead_letter_ttl_ms])
        return tasks, dead


def _present(values: list[bytes | None]) -> dict[str, str]:
    pairs = zip(TREE_FIELDS, values, strict=True)
    return {name: value.decode(errors="replace") for name, value in pairs if value is not None}


def lua_source(name: str) -> str:
    """The full text of a script, for the lease thread's own client."""
    return assemble(name, limits())
