"""Gates: how many tasks of one key, or of one group of children, run at once, and in which order.

A gate (`ns:gate:<name>`) is the row of its unfinished tasks in the order in which they came. The first `limit` of them
may run; the others are *parked*: `PENDING`, with a score so far ahead that nobody claims them. A key of a user has a
gate of limit 1 (`key:<user>:<key>`), a `ctx.gather` with a limit one of its own (`group:<task>/<number of the step>`,
or `fail-fast:…`, which closes with the first failure). A task that is under both stands in both, and runs when both let
it.

    enqueue -> in front -----------------------------------> ready or delayed, as without a gate
            -> behind `limit` others: parked -- `admit` ---> ready or delayed

Invariants: an unfinished task is in its gates, a finished one is not; a task that has begun is among the first `limit`
of each; a parked one is let in by the very script that makes its room. As all stand in all rows in the order in which
they came, the one that came first can always run: gates cannot block each other.

What a task does between its start and its end does not matter to the gate. A retry in its backoff, a task that waits
for something and one whose worker died keep their places, so that no later turn overtakes them; so does one whose
`delay_s` is not over. Every end passes through `settle` in `lib.lua` (`settle_stock.lua` for a task that a stock worker
finished) and that leaves the gates.

A key says besides what becomes of a task that finds another one unfinished (`OnBusy`), and may hold tasks back:

- *debounce*: the task is due `debounce_s` after it was posted. One more of the same type under the same key, before it
  has begun, is not made: it gives its parameters to the one that waits and puts it off again, up to `debounce_max_s`
  after the first. One that has begun is left alone, and another is made, so that the last change always gets a run;
- *throttle*: starts are `throttle_s` apart, with `throttle_burst` at once after a pause. One that comes too early is
  delayed to the next free start, and none is dropped. Starts are given out when tasks are accepted: workers that fall
  behind may start two that are due within less.

At each failure:

- the reply of an enqueue is lost: the call is repeated under the same task id, and finds the task, or
  (`ns:merged:<id>`, a minute) the one that stands for it;
- a group of tasks is refused: all is looked at before anything is done, so no key has changed;
- a worker dies: its task runs again, in its place;
- a gate loses its key, or a record is deleted by hand: parked tasks are looked at after `PARK_MS` at the latest; a
  task that stands in no row any more goes to its end, one in the row that has no record is taken out;
- the parent of parked children is cancelled: none of them is let in while the cancelling goes through them;
- a task is to wait for one under its own key, or to replace itself: refused, since that would never end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel

from app.engine.policy import MAX_DELAY_S
from app.errors import Conflict
from app.store import keys
from app.store.items import Gating

MAX_BURST = 1_000
DEBOUNCE_MAX_FACTOR = 10
"""The longest wait of a debounced task in units of `debounce_s`, where it sets none."""
ONE_AT_A_TIME: Final = 1


class OnBusy(StrEnum):
    """What becomes of a task whose key has an unfinished one.

    `QUEUE`: it runs when those before it have ended. `REJECT`: it is refused. `JOIN`: the unfinished one of its type
    stands for it. `REPLACE`: what is unfinished is cancelled, and it runs when that has ended. `PARALLEL`: it runs
    besides, as its throttle allows.
    """

    QUEUE = "queue"
    REJECT = "reject"
    JOIN = "join"
    REPLACE = "replace"
    PARALLEL = "parallel"


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """What holds for the tasks of a key; times in seconds."""

    on_busy: OnBusy = OnBusy.QUEUE
    debounce_s: float | None = None
    debounce_max_s: float | None = None
    throttle_s: float | None = None
    throttle_burst: int = 1

    @property
    def longest_debounce_s(self) -> float | None:
        """How long after the first of them a debounced task is due at the latest."""
        if self.debounce_s is None:
            return None
        return self.debounce_max_s or min(DEBOUNCE_MAX_FACTOR * self.debounce_s, MAX_DELAY_S)

    def fault(self) -> tuple[str, str] | None:
        """The field that is wrong, and why; None where all is well."""
        return self._bounds() or self._contradiction()

    def _bounds(self) -> tuple[str, str] | None:
        for name in ("debounce_s", "debounce_max_s", "throttle_s"):
            value = getattr(self, name)
            # A millisecond is what the store can tell apart.
            if value is not None and not 0.001 <= value <= MAX_DELAY_S:
                return name, f"{name}={value}: expected 0.001 to ten years"
        if not 1 <= self.throttle_burst <= MAX_BURST:
            return "throttle_burst", f"throttle_burst={self.throttle_burst}: expected 1 to {MAX_BURST}"
        return None

    def _contradiction(self) -> tuple[str, str] | None:
        debounced, throttled, busy = self.debounce_s is not None, self.throttle_s is not None, self.on_busy
        too_short = self.debounce_max_s is not None and self.debounce_max_s < (self.debounce_s or math.inf)
        rules = (
            (debounced and throttled, "throttle_s", "expected debounce_s or throttle_s, not both"),
            (too_short, "debounce_max_s", "debounce_max_s: expected debounce_s with it, and no less than that"),
            (
                self.throttle_burst != 1 and not throttled,
                "throttle_burst",
                "throttle_burst: expected throttle_s with it",
            ),
            (debounced and busy is not OnBusy.QUEUE, "on_busy", f"on_busy={busy}: expected queue with debounce_s"),
            (throttled and busy is OnBusy.REPLACE, "on_busy", "on_busy=replace: expected no throttle_s with it"),
            (not throttled and busy is OnBusy.PARALLEL, "on_busy", "on_busy=parallel: expected throttle_s with it"),
        )
        return next(((name, detail) for broken, name, detail in rules if broken), None)


@dataclass(frozen=True, slots=True)
class TaskKey:
    """The key that a task's decorator gives it: made of its parameters, with the policy."""

    of: Callable[[Any], str]
    policy: KeyPolicy


class KeyBusy(Conflict):
    """The key has an unfinished task, which `unfinished_task` names, and refuses another."""

    title = "Key busy"

    def __init__(self, key: str, task_id: str) -> None:
        super().__init__(f"key {key!r} has an unfinished task, {task_id}, and takes no other")
        self.unfinished_task = task_id

    def extra(self) -> dict[str, Any]:
        """The id of that task."""
        return {"unfinished_task": self.unfinished_task}


PLAIN: Final = KeyPolicy()


def policy_of(on_busy: OnBusy) -> KeyPolicy:
    """What holds under a key that says no more than this."""
    return PLAIN if on_busy is OnBusy.QUEUE else KeyPolicy(OnBusy(on_busy))


def gating(
    user_id: str, key: str | None, policy: KeyPolicy, group: tuple[str, int] | None, *, awaited: bool, ttl_ms: int
) -> Gating | None:
    """The form in which the store takes it; None for a task that nothing holds back.

    `group` is the name of the gate of a group, and its limit; `awaited` says whether the parent waits for the task,
    `ttl_ms` for how long the result of a task that it replaces is kept.
    """
    if key is None:
        return Gating((group,)) if group else None
    own = () if policy.on_busy is OnBusy.PARALLEL else ((keys.gate_of_key(user_id, key), ONE_AT_A_TIME),)
    return Gating(
        gates=own + ((group,) if group else ()),
        key=key,
        on_busy=policy.on_busy,
        debounce_ms=_debounce_ms(policy),
        throttle_ms=_throttle_ms(policy),
        awaited=awaited,
        ttl_ms=ttl_ms if policy.on_busy is OnBusy.REPLACE else 0,
    )


def _debounce_ms(policy: KeyPolicy) -> tuple[int, int] | None:
    if policy.debounce_s is None or policy.longest_debounce_s is None:
        return None
    return int(policy.debounce_s * 1000), int(policy.longest_debounce_s * 1000)


def _throttle_ms(policy: KeyPolicy) -> tuple[int, int, int] | None:
    if policy.throttle_s is None:
        return None
    return int(policy.throttle_s * 1000), policy.throttle_burst, MAX_DELAY_S * 1000


def key_of(of: str | Callable[[Any], str]) -> Callable[[BaseModel], str]:
    """The key of a decorator as a function of the parameters."""
    return (lambda _: of) if isinstance(of, str) else of
