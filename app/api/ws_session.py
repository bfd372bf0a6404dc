"""One client on the WebSocket, from its `connected` to its close.

Two coroutines work side by side: one reads the client's frames in order, the other sends. Answers and events go through
the listener's one queue, so that `subscribed` stands before the first event of its channel and nothing has two senders.
The session ends, with whatever comes first:

- the client leaves, or its connection breaks;
- it goes over a limit: what it asked before is answered, then `error`, then 1008;
- it falls too far behind, or takes nothing for 30 s: 1013, and it resumes with `last_event_id`;
- its credentials expire: 1008;
- the service stops: 1012.

A client that does not read cannot be told. It gets a while to read what lies before the close, then its connection is
cut; until then it holds at most a batch and the socket's buffer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from loguru import logger
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.api.channels import CHANNELS
from app.api.lifecycle import Shutdown
from app.api.principal import Principal
from app.api.problems import STORE_ERRORS
from app.api.transport import CLOSE_GRACE_S, SEND_TIMEOUT_S, STOP_GRACE_S, abort, abort_later, seconds_until
from app.api.ws_commands import COMMANDS, CommandCall
from app.api.ws_frames import (
    Frame,
    FrameRate,
    LimitExceeded,
    check_channels,
    check_size,
    close_code,
    close_reason,
    frame_text,
    parse_frame,
)
from app.engine.events import START, Event, event_key, stream_name
from app.engine.listeners import Listener, SlowListener
from app.engine.service import Engine
from app.errors import InvalidInput, NightshiftError
from app.telemetry.metrics import SLOW_CLIENTS_CLOSED

STORE_AWAY = "the task store cannot be reached"


@dataclass(frozen=True, slots=True)
class _Ending:
    """`grace_s`: how long the client may take to read what lies before the close."""

    code: int
    reason: str
    grace_s: float


GONE = _Ending(1006, "", 0.0)
"""The client has left; there is nobody to be told."""


class Session:
    """Serves one accepted WebSocket."""

    def __init__(self, socket: WebSocket, engine: Engine, caller: Principal, shutdown: Shutdown) -> None:
        self._socket = socket
        self._engine = engine
        self._caller = caller
        self._shutdown = shutdown
        self._own = f"user:{caller.user_id}"
        self._rate = FrameRate()
        self._streams: set[str] = set()
        self._last_words: str | None = None
        self._listener = Listener(engine.hub)
        self._ending: asyncio.Future[_Ending] = asyncio.get_running_loop().create_future()

    async def run(self, last_event_id: str | None) -> None:
        """Serve until the session ends. Its own channel begins behind `last_event_id`, or now."""
        try:
            await self._greet(last_event_id)
            ending = await self._serve()
        except (NightshiftError, *STORE_ERRORS) as error:
            ending = _goodbye(close_code(error), close_reason(error))
        except Exception:
            # The session's edge: a bug must not look to the client like a broken line.
            logger.exception("a WebSocket session failed")
            ending = _goodbye(1011, "internal error; resume with last_event_id")
        finally:
            self._listener.close()
        if ending is not GONE:
            await self._close(ending)

    async def _greet(self, last_event_id: str | None) -> None:
        start = await self._listener.add(self._own, self._own, last_event_id)
        self._listener.put(
            frame_text("connected", user_id=self._caller.user_id, last_event_id=start.last_id, **_gap(start.gap))
        )

    async def _serve(self) -> _Ending:
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(part()) for part in (self._read, self._write, self._watch_shutdown)]
        awaited: set[asyncio.Future[Any]] = {*tasks, self._ending, self._listener.over}
        try:
            done, _ = await asyncio.wait(
                awaited, timeout=seconds_until(self._caller.expires_at), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        if self._ending.done():
            return self._ending.result()
        if self._listener.over.done():
            SLOW_CLIENTS_CLOSED.labels("websocket").inc()
            return _goodbye(1013, f"{self._listener.over.result()}; resume with last_event_id")
        return GONE if done else _goodbye(1008, "the credentials have expired")

    def _end(self, ending: _Ending) -> None:
        if not self._ending.done():
            self._ending.set_result(ending)

    async def _watch_shutdown(self) -> None:
        await self._shutdown.wait()
        self._end(_Ending(1012, "the service restarts; resume with last_event_id", STOP_GRACE_S))

    async def _read(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return self._end(GONE)
            try:
                await self._handle(message.get("text"))
            except LimitExceeded as error:
                self._last_words = frame_text("error", detail=error.detail)
                self._listener.put(self._last_words)
                # The writer ends the session when it has come to these words.
                await asyncio.wait({self._ending})

    async def _handle(self, text: str | None) -> None:
        self._rate.count()
        if text is None:
            return self._listener.put(frame_text("error", detail="expected a text frame, got a binary one"))
        check_size(text)
        try:
            frame = parse_frame(text)
        except InvalidInput as error:
            return self._listener.put(frame_text("error", detail=error.detail))
        try:
            await self._obey(frame)
        except LimitExceeded:
            raise
        except NightshiftError as error:
            self._listener.put(frame.answer("error", detail=error.detail))
        except STORE_ERRORS as error:
            logger.warning("frame {} was not carried out: {}", frame.type, error)
            self._listener.put(frame.answer("error", detail=STORE_AWAY))
        return None

    async def _obey(self, frame: Frame) -> None:
        if frame.type == "ping":
            self._listener.put(frame.answer("pong"))
        elif frame.type == "subscribe":
            await self._subscribe(frame, frame.text("channel"), frame.optional_text("last_event_id"))
        elif frame.type == "unsubscribe":
            await self._unsubscribe(frame.text("channel"))
        else:
            answer = await COMMANDS.run(CommandCall(self._caller, self._engine, frame))
            if answer is not None:
                self._listener.put(answer)

    async def _subscribe(self, frame: Frame, channel: str, after: str | None) -> None:
        try:
            if after is not None:
                event_key(after)
            wanted = await CHANNELS.open(self._caller, self._engine, channel)
            if wanted.stream != self._own and wanted.stream not in self._streams:
                check_channels(len(self._streams))
            if after is None and wanted.from_start:
                after = START
            start = await self._listener.add(wanted.channel, wanted.stream, after)
        except LimitExceeded:
            raise
        except (NightshiftError, *STORE_ERRORS) as error:
            detail = error.detail if isinstance(error, NightshiftError) else STORE_AWAY
            self._listener.put(frame.answer("subscription_error", channel=channel, detail=detail))
        else:
            # Nothing is awaited between `add` and `put`: the answer stands before the channel's first event.
            self._listener.put(
                frame.answer("subscribed", channel=channel, last_event_id=start.last_id, **_gap(start.gap))
            )
            if wanted.stream != self._own:
                self._streams.add(wanted.stream)

    async def _unsubscribe(self, channel: str) -> None:
        stream = stream_name(channel, self._caller.user_id)
        self._listener.remove(stream)
        self._streams.discard(stream)

    async def _write(self) -> None:
        try:
            while True:
                items = await self._listener.get()
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    for item in items:
                        await self._send(item)
        except TimeoutError:
            SLOW_CLIENTS_CLOSED.labels("websocket").inc()
            self._end(_Ending(1013, f"nothing was read for {SEND_TIMEOUT_S:.0f} s; resume with last_event_id", 0.0))
        except SlowListener:
            return  # so is the session
        except (WebSocketDisconnect, RuntimeError) as error:
            # uvicorn raises RuntimeError when it has closed the socket by itself, after pings without an answer.
            logger.debug("the client left while it was sent to: {!r}", error)
            self._end(GONE)

    async def _send(self, item: Event | str) -> None:
        text = item if isinstance(item, str) else item.text
        await self._socket.send({"type": "websocket.send", "text": text})
        if item is self._last_words:
            self._end(_goodbye(1008, "a limit was exceeded"))

    async def _close(self, ending: _Ending) -> None:
        receive = self._socket._receive
        try:
            async with asyncio.timeout(ending.grace_s):
                await self._socket.close(ending.code, ending.reason)
        except TimeoutError:
            abort(receive)
        except (WebSocketDisconnect, RuntimeError) as error:
            logger.debug("the client left before it could be told: {!r}", error)
        abort_later(receive, ending.grace_s)


def _goodbye(code: int, reason: str) -> _Ending:
    return _Ending(code, reason, CLOSE_GRACE_S)


def _gap(gap: bool) -> dict[str, bool]:
    return {"gap": True} if gap else {}
