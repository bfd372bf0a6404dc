"""What stands between a model and its limits: asked before each request, told afterwards what it used.

Clients know no limits. Whoever does gives a model a meter (`model.metered(meter)`); the meter may hold a request up, or
refuse it. Every request that a call makes goes through it, the re-asks of a structured reply as well.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic_core import to_json

from app.clients.llm_models import Message, ToolOptions, Usage, estimate_tokens

MESSAGE_TOKENS = 4
"""What a message takes besides its text, roughly, for every common chat template."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A request that is about to be made. `reply_tokens` is the bound on the reply, None where there is none."""

    kind: Literal["llm", "embedding"]
    model: str
    prompt_tokens: int
    reply_tokens: int | None

    @classmethod
    def of_chat(cls, model: str, messages: Sequence[Message], options: ToolOptions, extra: bytes = b"") -> Estimate:
        """Of a chat request; `extra` is what is sent along besides."""
        said = sum(
            MESSAGE_TOKENS
            + estimate_tokens(message.content)
            + sum(estimate_tokens(call.arguments_json) for call in message.tool_calls)
            for message in messages
        )
        tools = sum(
            estimate_tokens(tool.description) + estimate_tokens(to_json(dict(tool.parameters)).decode())
            for tool in options.get("tools") or ()
        )
        return cls("llm", model, said + tools + estimate_tokens(extra.decode()), options.get("max_tokens"))

    @classmethod
    def of_embedding(cls, model: str, texts: Sequence[str]) -> Estimate:
        """Of an embedding request, which has no reply to speak of."""
        return cls("embedding", model, sum(map(estimate_tokens, texts)), 0)


class Metered(Protocol):
    """A request that may be made."""

    def used(self, tokens: int, *, requests: int | None = None) -> None:
        """Say what it used."""
        ...


class Meter(Protocol):
    """Called for each request; the request is made inside the block."""

    def __call__(self, estimate: Estimate) -> AbstractAsyncContextManager[Metered]: ...


class _Free:
    def used(self, tokens: int, *, requests: int | None = None) -> None:
        """Nobody counts."""


@asynccontextmanager
async def unmetered(estimate: Estimate) -> AsyncIterator[Metered]:
    """The meter of a model that has no limits."""
    yield _Free()


def report(metered: Metered, usage: Usage, requests: int = 1) -> None:
    """Tell a meter what a request used."""
    metered.used(usage.total_tokens, requests=requests)
