"""How a sleeping worker is woken: one blocking connection, on which the answer to the wake-up has been sent ahead.

Whoever enqueues a task for a queue on which this worker sleeps writes the queue's name into the worker's wake list; who
cancels a task that runs here, `!` and its id. The waiter sends two commands in one go: a BLMOVE that blocks until there
is a message, and behind it the claim that the message asks for. Redis runs the second the moment the first is done, so
a task that wakes a worker is on its way after one message to it, not after a message, a question and an answer.

What was claimed ahead may be one task more than there is room for, when a claim of the worker's own came in between; it
waits in its lane, under its lease. Failures: a connection that breaks while it blocks has popped nothing; what was
claimed on one that breaks later comes due with its lease; a server that lost its scripts is given the claim again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError

from app.store import keys
from app.store.scripts import Scripts

WAIT_S = 5
"""How long the waiter blocks at a time."""
TURN_S = 5.0
"""How long `turn` waits."""
NO_MESSAGE = "."
"""Wakes the waiter and means nothing."""

OnWoken = Callable[[int, list[list[Any]], list[str]], None]
"""Gets the server's time (Unix ms), the claims as the script returns them, and the messages."""


class Waiter:
    """The blocking connection of a worker.

    `waiting` is a client whose commands may take longer than `WAIT_S`. `room` says how many tasks may be claimed when
    the worker is woken, at the moment at which it goes to sleep.
    """

    def __init__(
        self,
        waiting: Redis,
        scripts: Scripts,
        worker_id: str,
        lease_ms: int,
        *,
        room: Callable[[], int],
        on_woken: OnWoken,
    ) -> None:
        self._waiting = waiting
        self._scripts = scripts
        self._worker_id = worker_id
        self._lease_ms = lease_ms
        self._room = room
        self._on_woken = on_woken
        self._turned = asyncio.Event()

    async def run(self) -> None:
        """Wait and hand on what comes, until cancelled or until the connection breaks."""
        connection: AbstractConnection = self._waiting.connection_pool.make_connection()
        try:
            await connection.connect()
            while True:
                await self._wait(connection)
                self._turned.set()
        finally:
            await connection.disconnect(nowait=True)

    async def turn(self) -> None:
        """Return when what the waiter sent ahead before this call has been answered, or after `TURN_S`."""
        self._turned.clear()
        await self._scripts.redis.execute_command("RPUSH", keys.wake(self._worker_id), NO_MESSAGE)
        try:
            await asyncio.wait_for(self._turned.wait(), TURN_S)
        except TimeoutError:
            return

    async def _wait(self, connection: AbstractConnection) -> None:
        wake, woken = keys.wake(self._worker_id), keys.woken(self._worker_id)
        claim = self._scripts.claim_ahead(self._worker_id, self._lease_ms, self._room())
        commands = [
            *connection.pack_command("BLMOVE", wake, woken, "LEFT", "RIGHT", WAIT_S),
            *connection.pack_command(*claim),
        ]
        await connection.send_packed_command(commands, check_health=False)
        await connection.read_response()
        try:
            reply = await connection.read_response()
        except NoScriptError:
            await self._scripts.load("claim")
            await connection.send_packed_command(connection.pack_command(*claim), check_health=False)
            reply = await connection.read_response()
        now_ms, _, rows, _, messages = reply
        self._on_woken(now_ms, rows, [message.decode() for message in messages])
