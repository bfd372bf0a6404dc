"""What scripts take: one class for each kind of item, with its flat form in the order in which the script reads it."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic_core import to_json

Arg = str | bytes | int | float


@dataclass(frozen=True, slots=True)
class Gating:
    """What holds a new task back: its gates (names and limits), and the policy of its key, if it has one.

    `debounce_ms` is the quiet time and the longest one, `throttle_ms` the interval, the burst and the longest delay;
    `ttl_ms` is how long what it replaces is kept.
    """

    gates: tuple[tuple[str, int], ...]
    key: str = ""
    on_busy: str = ""
    debounce_ms: tuple[int, int] | None = None
    throttle_ms: tuple[int, int, int] | None = None
    awaited: bool = False
    ttl_ms: int = 0

    def json(self) -> bytes:
        """The options of the script, see `keyed.lua`."""
        options: dict[str, object] = {"gates": [part for gate in self.gates for part in gate]}
        if self.key:
            policy = {"debounce": self.debounce_ms, "throttle": self.throttle_ms, "awaited": self.awaited}
            options |= {"key": self.key, "busy": self.on_busy, "ttl": self.ttl_ms}
            # Lua's JSON has a value of its own for null, and that is true.
            options |= {name: value for name, value in policy.items() if value}
        return to_json(options)


@dataclass(frozen=True, slots=True)
class NewTask:
    """One task to enqueue; fields in the order in which `enqueue.lua` reads them."""

    id: str
    task: str
    queue: str
    payload: bytes
    at_ms: int | None
    delay_ms: int
    priority: int
    user_id: str
    project_id: str
    parent_id: str
    root_id: str
    tags: str
    idempotency_key: str
    fingerprint: str
    extra: bytes
    parent_token: int | None
    letter: str = ""
    """The dead letter that the task replays; '' for none."""
    takes_steps: bool = False
    """Whether the letter's completed steps become the task's."""
    cost: float = 1.0
    """What the task moves its user's next one back: 1 / the user's weight, a multiple of `COST_STEP`."""
    gating: Gating | None = None

    def args(self) -> tuple[Arg, ...]:
        """The flat form of the script."""
        return (
            *(self.id, self.task, self.queue, self.payload, "" if self.at_ms is None else self.at_ms, self.delay_ms),
            *(self.priority, self.user_id, self.project_id, self.parent_id, self.root_id, self.tags),
            *(self.idempotency_key, self.fingerprint, self.extra),
            *("" if self.parent_token is None else self.parent_token, self.letter, int(self.takes_steps)),
            "" if self.cost == 1 else self.cost,
            "" if self.gating is None else self.gating.json(),
        )


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of one attempt; fields in the order in which `finish.lua` reads them."""

    id: str
    token: int
    queue: str
    status: str
    result: bytes
    ttl_ms: int
    error: bytes
    event: bytes
    traceback: str
    dead_letter: bool

    def args(self) -> tuple[Arg, ...]:
        """The flat form of the script."""
        return (
            *(self.id, self.token, self.queue, self.status, self.result, self.ttl_ms, self.error, self.event),
            *(self.traceback, int(self.dead_letter)),
        )


@dataclass(frozen=True, slots=True)
class Reschedule:
    """An attempt that is to run again; fields in the order in which `reschedule.lua` reads them."""

    id: str
    token: int
    queue: str
    status: str
    delay_ms: int
    counts: bool
    error: bytes
    event_type: str
    event: bytes
    mark: str = ""
    """A field of the record that keeps the time of the first reschedule with this mark; '' for none."""

    def args(self) -> tuple[Arg, ...]:
        """The flat form of the script."""
        return (
            *(self.id, self.token, self.queue, self.status, self.delay_ms, int(self.counts), self.error),
            *(self.event_type, self.event, self.mark),
        )


@dataclass(frozen=True, slots=True)
class Emit:
    """One event of a running attempt; fields in the order in which `emit.lua` reads them."""

    id: str
    token: int
    number: int
    channel: str
    type: str
    payload: bytes
    progress: bytes

    def args(self) -> tuple[Arg, ...]:
        """The flat form of the script."""
        return (self.id, self.token, self.number, self.channel, self.type, self.payload, self.progress)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A completed step; fields in the order in which `record_step.lua` reads them."""

    id: str
    token: int
    number: int
    name: bytes
    result: bytes
    duration_s: float
    failed: bool = False

    def args(self) -> tuple[Arg, ...]:
        """The flat form of the script."""
        return (self.id, self.token, self.number, self.name, self.result, self.duration_s, int(self.failed))


@dataclass(frozen=True, slots=True)
class TakeEvent:
    """An event from outside that becomes the result of a step: `step.result`, then the event's payload and `}`."""

    step: StepRecord
    event: str

    def args(self) -> tuple[Arg, ...]:
        """The flat form of the script."""
        return (*self.step.args(), self.event)


@dataclass(frozen=True, slots=True)
class Suspend:
    """An attempt that ends in a wait; fields in the order in which `suspend.lua` reads them."""

    id: str
    token: int
    queue: str
    number: int
    facts: bytes
    timeout_ms: int
    fail_fast: bool
    waiting_for: bytes
    ttl_ms: int
    subjects: tuple[str, ...]

    def args(self) -> tuple[Arg, ...]:
        """The flat form of the script."""
        return (
            *(self.id, self.token, self.queue, self.number, self.facts, self.timeout_ms, int(self.fail_fast)),
            *(self.waiting_for, self.ttl_ms, len(self.subjects)),
            *self.subjects,
        )


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event from outside for a task; fields in the order in which `deliver_event.lua` reads them.

    `user_id` is '' for an administrator; `key` names the delivery so that a repetition is known, '' for none.
    """

    id: str
    user_id: str
    name: str
    payload: bytes
    key: str
    max_events: int

    def args(self) -> tuple[Arg, ...]:
        """The flat form of the script."""
        return (self.id, self.user_id, self.name, self.payload, self.key, self.max_events)
