"""Dead letters: tasks that failed for good, kept with payload, error, traceback, the errors of all their attempts, and
their completed steps.

States of a letter: *kept* -> *replayed* | *discarded* | *swept* (after `NIGHTSHIFT_DEAD_LETTER_TTL_S`). It outlives the
record of its task, and is all that a replay needs.

A replay is the enqueue of a new task, which names the old one in `retry_of`. The script that writes the task takes the
letter out of the list and hands its completed steps over, so that

- two replays of one letter make one task: the other is told which (`LetterReplayed`, for as long as an idempotency key
  lives; then `NotFound`);
- a replay that is refused (unknown task, wrong parameters, full queue) changes nothing: the letter stays;
- a lost reply does no harm: the repeated call names the same new id, and the script sees that it was carried out.

The steps go over where the parameters are unchanged: the new task gets their results and runs from the first that is
not stored, which is the one that failed. With parameters of another value it runs all of them, since the old results
may not be theirs. A replayed task has an id of its own: where effects have keys made of `ctx.task_id`, those of the
step that failed are new.

In bulk, one call looks at a bounded piece of the list and says with `next_cursor` where to go on. What cannot be
replayed is told with its reason, and stays.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from app.engine import wire
from app.engine.job import fields_of, steps_of
from app.engine.letters import ALL_LETTERS, DeadLetterPage, LetterFilter, OpenedLetter, history_of, letter_of, no_letter
from app.engine.queue import MAX_LIMIT, Accepted, TaskQueue
from app.engine.registry import TaskSpec
from app.engine.submissions import Submission, validated
from app.errors import InvalidInput, NightshiftError, NotFound, UndecodablePayload, UnknownTask
from app.store import keys
from app.store.scripts import Scripts

MAX_BULK = 100
"""Letters that one call in bulk looks at: each may come with a payload of 1 MiB."""
AT_ONCE = 10
"""Letters of a bulk replay that are in memory together."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """A dead letter and the task that it became."""

    task_id: str
    replayed_as: str


@dataclass(frozen=True, slots=True)
class NotReplayed:
    """A dead letter that could not be replayed, and stays. `error` is the class of the reason."""

    task_id: str
    error: str
    detail: str


@dataclass(frozen=True, slots=True)
class BulkReplay:
    """What a replay in bulk did; `next_cursor` is None when no letter is left to look at."""

    replayed: list[Replayed]
    failed: list[NotReplayed]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class BulkDiscard:
    """How many letters were discarded; `next_cursor` is None when no letter is left to look at."""

    discarded: int
    next_cursor: str | None


class DeadLetters:
    """Look at dead letters, replay and discard them. `user_id=None` stands for an administrator, who sees all."""

    def __init__(self, scripts: Scripts, tasks: TaskQueue) -> None:
        self._scripts = scripts
        self._tasks = tasks

    async def page(
        self,
        wanted: LetterFilter = ALL_LETTERS,
        *,
        user_id: str | None,
        cursor: str = "",
        limit: int = 50,
    ) -> DeadLetterPage:
        """A page, newest first. Raises `InvalidInput` for a wrong limit."""
        _check_limit(limit, MAX_LIMIT)
        index = keys.ALL_DEAD if user_id is None else keys.dead_of_user(user_id)
        behind, end = wanted.bounds(cursor)
        next_cursor, rows = await self._scripts.list_dead_letters(index, behind, end, limit, wanted.pairs())
        return DeadLetterPage([letter_of(row.decode(), fields_of(fields)) for row, fields in rows], next_cursor or None)

    async def get(self, task_id: str, *, user_id: str | None) -> OpenedLetter:
        """One dead letter. Raises `NotFound`."""
        fields, steps = await self._read(task_id, user_id)
        if "failed_at" not in fields:
            raise NotFound(f"no dead letter {task_id}: it was replayed, as task {fields['replayed_as']}")
        return OpenedLetter(
            letter=letter_of(task_id, fields),
            params=self._shown_params(fields),
            traceback=fields["traceback"],
            history=history_of(fields),
            steps=steps_of(fields_of(steps)),
        )

    async def replay(
        self,
        task_id: str,
        *,
        user_id: str | None,
        params: dict[str, Any] | None = None,
        correlation_id: str | None = None,
    ) -> Accepted:
        """Run it again as a new task of the same owner, which names the old one in `retry_of`; the letter is gone then.

        Completed steps are not run again, unless `params` are given and differ from the old ones. Raises `NotFound`,
        `LetterReplayed`, `UnknownTask`, `InvalidInput` (with a pointer to the field), `TooLarge` or `QueueFull`; then
        the letter stays as it is.
        """
        fields, _ = await self._read(task_id, user_id)
        if "failed_at" not in fields:
            raise no_letter(task_id, fields["replayed_as"])
        spec = self._spec(task_id, fields["task"])
        old = _params(fields["payload"], spec)
        if params is None and old is None:
            raise InvalidInput(
                f"dead letter {task_id}: its parameters could not be read; expected others", pointer="/params"
            )
        again = Submission(
            task=fields["task"],
            params=(old or {}) if params is None else params,
            priority=int(fields.get("priority", 0)),
            project_id=fields.get("project_id"),
            tags=letter_of(task_id, fields).tags,
            retry_of=task_id,
            after=tuple(filter(None, fields.get("after", "").split("\n"))),
            key=None if spec.key else fields.get("key"),
            replay="continue" if params is None or _same(spec, old, params) else "afresh",
        )
        return await self._tasks.enqueue(again, user_id=fields["user_id"], correlation_id=correlation_id)

    async def discard(self, task_id: str, *, user_id: str | None) -> None:
        """Take it away for good, with the steps that were kept for it. Raises `NotFound`."""
        await self.get(task_id, user_id=user_id)
        if await self._scripts.discard_dead_letters([task_id]) == [0]:
            raise NotFound(f"no dead letter {task_id}")

    async def replay_many(
        self,
        wanted: LetterFilter,
        *,
        user_id: str | None,
        everything: bool = False,
        cursor: str = "",
        limit: int = MAX_BULK,
        correlation_id: str | None = None,
    ) -> BulkReplay:
        """Replay up to `limit` letters, the newest first, each as `replay` does; go on from `next_cursor`.

        Raises `InvalidInput` for a wrong limit, and for an empty filter without `everything`.
        """
        page = await self._piece(wanted, user_id, everything, cursor, limit)
        ids = [letter.task_id for letter in page.items]
        done: list[Replayed | NotReplayed] = []
        for first in range(0, len(ids), AT_ONCE):
            piece = ids[first : first + AT_ONCE]
            done += await asyncio.gather(*(self._tried(task_id, user_id, correlation_id) for task_id in piece))
        return BulkReplay(
            replayed=[one for one in done if isinstance(one, Replayed)],
            failed=[one for one in done if isinstance(one, NotReplayed)],
            next_cursor=page.next_cursor,
        )

    async def discard_many(
        self,
        wanted: LetterFilter,
        *,
        user_id: str | None,
        everything: bool = False,
        cursor: str = "",
        limit: int = MAX_BULK,
    ) -> BulkDiscard:
        """Discard up to `limit` letters, the newest first; go on from `next_cursor`. Raises as `replay_many`."""
        page = await self._piece(wanted, user_id, everything, cursor, limit)
        gone = await self._scripts.discard_dead_letters([letter.task_id for letter in page.items])
        return BulkDiscard(sum(gone), page.next_cursor)

    async def _piece(
        self, wanted: LetterFilter, user_id: str | None, everything: bool, cursor: str, limit: int
    ) -> DeadLetterPage:
        if wanted.is_empty and not everything:
            raise InvalidInput("expected a filter, or all=true for every dead letter", pointer="/all")
        _check_limit(limit, MAX_BULK)
        return await self.page(wanted, user_id=user_id, cursor=cursor, limit=limit)

    async def _tried(self, task_id: str, user_id: str | None, correlation_id: str | None) -> Replayed | NotReplayed:
        try:
            accepted = await self.replay(task_id, user_id=user_id, correlation_id=correlation_id)
        except NightshiftError as error:
            return NotReplayed(task_id, type(error).__name__, error.detail)
        return Replayed(task_id, accepted.task_id)

    async def _read(self, task_id: str, user_id: str | None) -> tuple[dict[str, str], list[bytes]]:
        flat, steps = await self._scripts.read_dead_letter(task_id)
        fields = fields_of(flat)
        if not fields or user_id not in (None, fields["user_id"]):
            raise no_letter(task_id, "")
        return fields, steps

    def _spec(self, task_id: str, name: str) -> TaskSpec:
        known = self._tasks.catalogue.get(name)
        if known is None:
            raise UnknownTask(f"dead letter {task_id} cannot be replayed: no task is called {name!r} any more")
        return known.spec

    def _shown_params(self, fields: dict[str, str]) -> dict[str, Any] | None:
        known = self._tasks.catalogue.get(fields["task"])
        return _params(fields["payload"], known.spec if known else None)


def _check_limit(limit: int, bound: int) -> None:
    if not 1 <= limit <= bound:
        raise InvalidInput(f"limit={limit}: expected 1 to {bound}", pointer="limit")


def _params(payload: str, spec: TaskSpec | None) -> dict[str, Any] | None:
    """The parameters by name; None where they cannot be read."""
    try:
        return wire.decode_payload(payload.encode()).params(spec.param_names if spec else ())
    except (UndecodablePayload, InvalidInput):
        return None


def _same(spec: TaskSpec, old: dict[str, Any] | None, new: dict[str, Any]) -> bool:
    """Whether parameters have the same value, as the task's model reads them."""
    if old is None:
        return False
    try:
        return _canonical(validated(spec, old)[1]) == _canonical(validated(spec, new)[1])
    except NightshiftError:
        # What is wrong with the new ones, the enqueue says; old ones that the model refuses now are others in any case.
        return False


def _canonical(params: bytes) -> str:
    return json.dumps(json.loads(params), sort_keys=True)
