"""Events from outside that tasks wait for: a payment has come in, a build is done, a person has written."""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticSerializationError, from_json, to_json

from app.engine.submissions import LABEL
from app.engine.waits import EVENT_NAME
from app.errors import Conflict, InvalidInput, NotFound, TooLarge
from app.store.items import Delivery
from app.store.scripts import Scripts

MAX_PAYLOAD_BYTES = 64 * 1024
MAX_EVENTS = 1_000
"""Events that are kept for a task until it takes them."""


class Inbox:
    """Deliver events to tasks. `user_id=None` stands for an administrator, who may to all."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def deliver(
        self, task_id: str, name: str, payload: Any = None, *, user_id: str | None, key: str | None = None
    ) -> bool:
        """Give a task an event, whether it waits for it by now or not; False when `key` was delivered before.

        Events of one name are taken in the order in which they came. `payload` is anything that JSON can hold, up to
        64 KiB. Raises `NotFound`, `Conflict` when the task is finished, `TooLarge` when it has 1,000 events that it did
        not take, and `InvalidInput`.
        """
        _check(name, key)
        item = Delivery(task_id, user_id or "", name, _payload_json(payload), key or "", MAX_EVENTS)
        reply = await self._scripts.deliver_event(item)
        match reply[0]:
            case b"missing":
                raise NotFound(f"no task {task_id}")
            case b"finished":
                raise Conflict(f"task {task_id} is finished ({reply[1].decode()}) and takes no events")
            case b"full":
                raise TooLarge(f"task {task_id} has {MAX_EVENTS} events that it did not take; that is the bound")
        return reply[0] == b"ok"


def _check(name: str, key: str | None) -> None:
    if not EVENT_NAME.fullmatch(name):
        raise InvalidInput(
            f"name {name[:80]!r}: expected letters, digits, '_', '.', ':' or '-', 100 at most", pointer="/name"
        )
    if key is not None and not LABEL.fullmatch(key):
        raise InvalidInput("Idempotency-Key: expected 1 to 128 characters and no control characters")


def _payload_json(payload: Any) -> bytes:
    try:
        data = to_json(payload)
        from_json(data, allow_inf_nan=False)
    except (ValueError, PydanticSerializationError) as error:
        raise InvalidInput(f"payload: expected what JSON can hold: {error}", pointer="/payload") from error
    if len(data) > MAX_PAYLOAD_BYTES:
        raise TooLarge(
            f"a payload of {len(data)} bytes exceeds the bound of {MAX_PAYLOAD_BYTES} bytes", pointer="/payload"
        )
    return data
