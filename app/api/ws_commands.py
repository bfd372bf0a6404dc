"""Commands of domains over the WebSocket, such as `architect.message`.

COMMANDS.add("architect.message", message)

async def message(call: CommandCall) -> dict[str, Any]:
    ...
    return {"type": "architect.thinking", "status": "processing"}
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from app.api.principal import Principal
from app.api.ws_frames import Frame
from app.engine.service import Engine
from app.errors import InvalidInput
from app.telemetry import bind_context, clean_correlation_id, reset_context

BUILT_IN = ("ping", "subscribe", "unsubscribe")


@dataclass(frozen=True, slots=True)
class CommandCall:
    """One command of a client. The log carries its correlation id while it is carried out."""

    caller: Principal
    engine: Engine
    frame: Frame


Command = Callable[[CommandCall], Awaitable[dict[str, Any] | None]]
"""Carries a command out and returns the answer, an object with a `type`, if there is one. It must be quick: the
client's next frame waits for it. An error of ours becomes an `error` frame."""


class Commands:
    """The commands that clients may send."""

    def __init__(self) -> None:
        self._commands: dict[str, Command] = {}

    def add(self, name: str, command: Command) -> None:
        """Let clients send frames of the type `name`."""
        self._commands[name] = command

    async def run(self, call: CommandCall) -> str | None:
        """Carry a command out; the text of its answer. Raises `InvalidInput` for an unknown one, and what it raises."""
        frame = call.frame
        command = self._commands.get(frame.type)
        if command is None:
            known = ", ".join(sorted((*BUILT_IN, *self._commands)))
            raise InvalidInput(f"unknown type {frame.type[:80]!r}: expected one of {known}")
        token = bind_context(correlation_id=clean_correlation_id(frame.correlation_id))
        try:
            answer = await command(call)
        finally:
            reset_context(token)
        return None if answer is None else frame.answer(answer.pop("type"), **answer)


COMMANDS = Commands()
