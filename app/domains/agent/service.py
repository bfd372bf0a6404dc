"""A model's reply as events.

`stream_start {attempt, model}`, then `text_chunk {text}` as the text comes, then `stream_end {characters}`. Pieces are
put together for `CHUNK_S`, so that a fast model makes 20 events a second and not 200. An attempt that failed in the
middle leaves its chunks in the log; the next one says `stream_start` again, and its readers begin anew.
"""

from __future__ import annotations

import time
from contextlib import aclosing

from app.clients.llm import Completion, Message, Model, TextDelta
from app.domains.agent.models import AgentReply, RunAgent, TokenUsage
from app.engine.context import TaskContext
from app.errors import MalformedReply

CHUNK_S = 0.05
CHUNK_CHARS = 4_000
"""A chunk is sent when it is this long or this old; the bound on events is 64 KiB."""


class ChunkWriter:
    """Puts pieces of text together and emits them as `text_chunk`."""

    def __init__(self, ctx: TaskContext) -> None:
        self._ctx = ctx
        self._pieces: list[str] = []
        self._length = 0
        self._sent_at = 0.0
        self.characters = 0

    async def write(self, text: str) -> None:
        """Add a piece; send what there is when it is due. The first piece is sent at once."""
        self._pieces.append(text)
        self._length += len(text)
        self.characters += len(text)
        if self._length >= CHUNK_CHARS or time.monotonic() - self._sent_at >= CHUNK_S:
            await self.flush()

    async def flush(self) -> None:
        """Send what is left."""
        text = "".join(self._pieces)
        for start in range(0, len(text), CHUNK_CHARS):
            await self._ctx.emit("text_chunk", {"text": text[start : start + CHUNK_CHARS]})
        self._pieces, self._length, self._sent_at = [], 0, time.monotonic()


async def run_agent(ctx: TaskContext, model: Model, params: RunAgent) -> AgentReply:
    """Call the model and stream its reply. Raises the model client's errors; none is retried here."""
    messages = [Message.system(params.system)] if params.system else []
    messages.append(Message.user(params.prompt))
    writer = ChunkWriter(ctx)
    started = False
    completion = None
    options = {"max_tokens": params.max_tokens, "temperature": params.temperature, "model": params.model}
    async with aclosing(model.stream(messages, **options)) as deltas:  # type: ignore[arg-type]
        async for delta in deltas:
            if not started:
                # Not before: until its first word the task may wait for its quota, and leave its worker for that.
                started = True
                await ctx.emit("stream_start", {"attempt": ctx.attempt, "model": params.model or model.name})
            if isinstance(delta, TextDelta):
                await writer.write(delta.text)
            elif isinstance(delta, Completion):
                completion = delta
    await writer.flush()
    if completion is None:
        raise MalformedReply("the model's stream ended without its completion")
    await ctx.emit("stream_end", {"characters": writer.characters})
    return _reply(completion)


def _reply(completion: Completion) -> AgentReply:
    usage = completion.usage
    return AgentReply(
        text=completion.text,
        model=completion.model,
        finish_reason=completion.finish_reason,
        usage=TokenUsage(
            prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens, estimated=usage.estimated
        ),
    )
