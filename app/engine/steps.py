"""Steps: parts of a task that happen once. The result of a completed step is stored; a later attempt gets it back.

    page = await ctx.step("fetch", lambda: fetch(params.url), returns=Page)
    text = await ctx.step("summarise", lambda: ask(page), returns=str)

A task that runs again, after a retry, a crash or on another worker, is entered from its top. Its steps have numbers in
the order in which the task comes to them; a number that is stored is answered at once, the first that is not runs. So
what stands between steps must be cheap and without effects, and the order must depend on nothing but parameters and
results of steps.

States of a step: *not stored* -> runs -> *stored*. What happens at each failure:

- the step raises: nothing is stored, and it runs again in the next attempt;
- the worker dies while it runs: the same;
- the worker dies between the effect and the storing of its result: the effect happens again. This window remains in any
  system that has its effects elsewhere; give the effect an idempotency key made of `ctx.task_id` and the step's name;
- the lease is lost: the result is not stored (`LeaseLost`), since another attempt owns the task;
- the task fails for good: its steps live as long as its dead letter, and a replay of that goes on behind them, as a new
  task (`app/engine/dead_letters.py`);
- the steps come in another order than they were stored in: `StepOrderChanged`, which names both, and fails the task.

Concurrent steps (`asyncio.gather`) are numbered in the order in which they are called, not in that of their ends.

What a task waits for (`app/engine/waits.py`) and the children that it starts are numbered in the same row. The call of
a step is no place for either: it is left out when the task comes to it again.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from app.engine.faults import faults_of
from app.errors import InvalidInput, InvalidResult, LeaseLost, StepOrderChanged, TooLarge
from app.store.items import StepRecord

T = TypeVar("T")

MAX_STEPS = 1_000
MAX_STEP_BYTES = 1024 * 1024
NAME = re.compile(r"[^\x00-\x1f\x7f]{1,128}")

_running_step: ContextVar[str | None] = ContextVar("running_step", default=None)
"""The name of the step whose call this is; tasks that the call makes inherit it."""


class StepStore(Protocol):
    """Where the steps of a task are."""

    def record_step(self, item: StepRecord) -> Awaitable[int]:
        """Store a result; 0 when the lease is lost."""
        ...

    async def read_steps(self, task_id: str) -> Mapping[str, bytes]:
        """What is stored of a task's steps, as its hash stands in Redis."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """The place in the row to which the task has come, and what is stored there: a result, or a wait that has begun."""

    number: int
    name: str
    result: bytes | None
    wait: bytes | None


class Steps:
    """The steps of one attempt. `stored` are those of earlier ones; None where they have to be read."""

    def __init__(self, store: StepStore, task_id: str, token: int, *, stored: Mapping[str, bytes] | None) -> None:
        self._store = store
        self._task_id = task_id
        self._token = token
        self._next = 0
        self._stored = stored
        self._loading = asyncio.Lock()
        self._running: set[int] = set()
        self._quiet = asyncio.Event()

    @property
    def inside(self) -> str | None:
        """The name of the step in whose call this is asked; None outside of one."""
        return _running_step.get()

    @property
    def taken(self) -> int:
        """How many places in the row are taken: the number of the next one."""
        return self._next

    async def run(self, name: str, call: Callable[[], Awaitable[T]], returns: Any) -> T:
        """Answer with what is stored, or call and store; see `TaskContext.step`."""
        entry = await self.enter(name)
        if entry.result is not None:
            return cast(T, _restored(entry.result, returns))
        self._running.add(entry.number)
        self._quiet.clear()
        try:
            data = await self._call(entry, call, returns)
        finally:
            self._running.discard(entry.number)
            if not self._running:
                self._quiet.set()
        return cast(T, _restored(data, returns))

    async def quiet(self) -> None:
        """Wait until no step runs."""
        while self._running:
            await self._quiet.wait()

    async def _call(self, entry: Entry, call: Callable[[], Awaitable[T]], returns: Any) -> bytes:
        began = time.perf_counter()
        mark = _running_step.set(entry.name)
        try:
            value = await call()
        finally:
            _running_step.reset(mark)
        data = result_json(entry.name, value, returns)
        await self.store(entry, data, time.perf_counter() - began)
        return data

    async def enter(self, name: str) -> Entry:
        """Take the next place in the row. Raises `StepOrderChanged` when something else is stored there."""
        number = self._number(name)
        stored = await self._load()
        facts, wait = stored.get(str(number)), stored.get(f"wait:{number}")
        if facts is not None:
            self._compare(number, name, facts)
        elif wait is not None:
            self._compare(number, name, wait[wait.index(b" ") :])
        return Entry(number, name, None if facts is None else stored[f"result:{number}"], wait)

    async def store(self, entry: Entry, data: bytes, duration_s: float, *, failed: bool = False) -> None:
        """Store a result at its place. `failed`: it is an error, which a repetition of the task does not take over.

        Raises `LeaseLost`.
        """
        if not await self._store.record_step(self.record(entry, data, duration_s, failed=failed)):
            raise LeaseLost(f"step {entry.name!r} of task {self._task_id} was not stored: its lease is lost")

    def record(self, entry: Entry, data: bytes, duration_s: float, *, failed: bool = False) -> StepRecord:
        """A result at its place, to be stored."""
        return StepRecord(
            id=self._task_id,
            token=self._token,
            number=entry.number,
            name=to_json(entry.name),
            result=data,
            duration_s=round(duration_s, 3),
            failed=failed,
        )

    def _number(self, name: str) -> int:
        if not NAME.fullmatch(name):
            raise InvalidInput(f"step {name[:80]!r}: expected 1 to 128 characters and no control characters")
        if self.inside is not None:
            raise InvalidInput(f"{name!r} inside the step {self.inside!r}: expected it outside of steps")
        if self._next >= MAX_STEPS:
            raise TooLarge(f"step {name!r} exceeds the bound of {MAX_STEPS} steps a task; start child tasks instead")
        self._next += 1
        return self._next - 1

    async def _load(self) -> Mapping[str, bytes]:
        async with self._loading:
            if self._stored is None:
                self._stored = await self._store.read_steps(self._task_id)
        return self._stored

    def _compare(self, number: int, name: str, facts: bytes) -> None:
        before = from_json(facts)["name"]
        if before != name:
            raise StepOrderChanged(
                f"step {number + 1} of task {self._task_id} was {before!r} in an earlier attempt and is {name!r} now; "
                "expected the same steps in the same order"
            )


def result_json(name: str, value: Any, returns: Any) -> bytes:
    """The stored form of a step's result. Raises `InvalidResult` or `TooLarge`.

    Without a type only what JSON itself has is accepted, so that the first run and a replay give the same value.
    """
    try:
        if returns is None:
            data = to_json(value)
            if from_json(data, allow_inf_nan=False) != value:
                raise InvalidResult(
                    f"step {name!r} returned a {type(value).__name__}, which would come back as something else: "
                    "expected a value of JSON's own types, or the type in `returns`"
                )
        else:
            adapter = TypeAdapter(returns)
            data = adapter.dump_json(adapter.validate_python(value))
    except (ValidationError, PydanticSerializationError, ValueError) as error:
        raise InvalidResult(f"step {name!r} returned what its type does not accept: {faults_of(error)}") from error
    if len(data) > MAX_STEP_BYTES:
        raise TooLarge(f"step {name!r}: a result of {len(data)} bytes exceeds the bound of {MAX_STEP_BYTES} bytes")
    return data


def _restored(data: bytes, returns: Any) -> Any:
    return from_json(data) if returns is None else TypeAdapter(returns).validate_json(data)
