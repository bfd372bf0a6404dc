"""Replies of the OpenAI-compatible chat and embedding protocol, from JSON into typed values.

They are read leniently, since every server's version differs a little: unknown fields are ignored, null stands for
absent. What a reply cannot do without is required, and `MalformedReply` is raised when it lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from app.clients.http import MAX_MESSAGE_CHARS
from app.clients.llm_models import (
    Completion,
    Message,
    ToolCall,
    Usage,
    describe_errors,
    estimate_tokens,
)
from app.errors import MalformedReply, RemoteStatus

JsonObject = dict[str, Any]


class WireUsage(BaseModel):
    """`usage` of any reply."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class WireFunction(BaseModel):
    """The function of a tool call, or a fragment of it. `arguments` is JSON text; some servers send the object."""

    name: str | None = None
    arguments: str | JsonObject | None = None

    def arguments_text(self) -> str:
        """The arguments, or the fragment, as text."""
        if self.arguments is None:
            return ""
        return self.arguments if isinstance(self.arguments, str) else to_json(self.arguments).decode()


class WireToolCall(BaseModel):
    """A tool call, or a fragment of one that `index` tells from the others."""

    index: int | None = None
    id: str | None = None
    function: WireFunction | None = None


class WireMessage(BaseModel):
    """A reply's message or a chunk's delta. Content in parts is allowed by the protocol."""

    content: str | list[JsonObject] | None = None
    refusal: str | None = None
    tool_calls: list[WireToolCall] | None = None

    def text(self) -> str:
        """The text, or the sentence with which the model declines."""
        if isinstance(self.content, list):
            return "".join(str(part["text"]) for part in self.content if part.get("text"))
        return self.content or self.refusal or ""


class WireChoice(BaseModel):
    """One of the replies; only the first is ever asked for."""

    message: WireMessage | None = None
    delta: WireMessage | None = None
    finish_reason: str | None = None


class WireChat(BaseModel):
    """A whole reply or one chunk of a stream. The chunk with the usage has no choices."""

    model: str | None = None
    choices: list[WireChoice] | None = None
    usage: WireUsage | None = None
    error: str | JsonObject | None = None


class WireEmbedding(BaseModel):
    """One vector and the position of its text in the request."""

    index: int
    embedding: list[float]


class WireEmbeddings(BaseModel):
    """The reply to an embedding request."""

    model: str | None = None
    data: list[WireEmbedding]
    usage: WireUsage | None = None
    error: str | JsonObject | None = None


W = TypeVar("W", WireChat, WireEmbeddings)


@dataclass(frozen=True, slots=True)
class Peer:
    """The server, as errors speak of it. `secret` is cut out of every word of its that is repeated."""

    label: str
    secret: str = field(default="", repr=False)

    def words(self, body: bytes | str) -> str:
        """The sentence in an error body, bounded: OpenAI's, vLLM's, Ollama's, Gemini's, FastAPI's shape, or plain."""
        try:
            text = _find_message(from_json(body))
        except ValueError:
            text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
        # Cut out before shortening: half of a secret is still one.
        text = text.replace(self.secret, "(secret)") if self.secret else text
        return " ".join(text.split())[:MAX_MESSAGE_CHARS]


@dataclass(frozen=True, slots=True)
class Ask:
    """Who was asked for what: what reading a reply needs to know of its request."""

    peer: Peer
    model: str
    messages: Sequence[Message]


def parse_reply(reply: type[W], data: bytes | str, peer: Peer) -> W:
    """Read a reply or a chunk. Raises `MalformedReply`, or `RemoteStatus` when it is an error with status 200."""
    try:
        parsed = reply.model_validate_json(data)
    except ValidationError as error:
        detail = f"{peer.label} sent no valid reply: {describe_errors(error, 3)}"
        raise _error_in(data, peer) or MalformedReply(detail) from None
    if parsed.error:
        raise _error_in(data, peer) or MalformedReply(f"{peer.label} sent an error that cannot be read")
    return parsed


def completion_of(reply: WireChat, ask: Ask) -> Completion:
    """The completion that a whole reply holds. Raises `MalformedReply` when it holds none."""
    choice = reply.choices[0] if reply.choices else None
    if choice is None or choice.message is None:
        raise MalformedReply(f"{ask.peer.label} sent a reply without a message")
    calls = tuple(
        tool_call(call.id, call.function, number, ask.peer)
        for number, call in enumerate(choice.message.tool_calls or ())
    )
    text = choice.message.text()
    usage = usage_of(reply.usage) or estimate_usage(ask.messages, text, calls)
    return Completion(text, reply.model or ask.model, usage, calls, choice.finish_reason)


def tool_call(call_id: str | None, function: WireFunction | None, number: int, peer: Peer) -> ToolCall:
    """A tool call; one without an id is named by its number. Raises `MalformedReply` when it names no tool."""
    if function is None or not function.name:
        raise MalformedReply(f"{peer.label} sent a tool call without the name of a tool")
    return ToolCall(call_id or f"call_{number}", function.name, function.arguments_text())


def usage_of(usage: WireUsage | None) -> Usage | None:
    """The usage that a server reported, if it did."""
    return Usage(usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else None


def estimate_usage(messages: Sequence[Message], text: str, calls: Sequence[ToolCall]) -> Usage:
    """The usage of a call for which the server reported none."""
    written = estimate_tokens(text) + sum(estimate_tokens(call.arguments_json) for call in calls)
    return Usage(sum(estimate_tokens(message.content) for message in messages), written, estimated=True)


def _find_message(value: Any) -> str:
    if isinstance(value, list) and len(value) == 1:
        return _find_message(value[0])
    if isinstance(value, dict):
        for key in ("error", "message", "detail"):
            if value.get(key):
                return _find_message(value[key])
    return value if isinstance(value, str) else to_json(value).decode()


def _error_in(data: bytes | str, peer: Peer) -> RemoteStatus | None:
    try:
        value = from_json(data)
    except ValueError:
        return None
    error = value.get("error") if isinstance(value, dict) else None
    if not error:
        return None
    status = _status_of(error)
    return RemoteStatus(f"{peer.label} reported an error ({status}): {peer.words(data)}", remote_status=status)


def _status_of(error: Any) -> int:
    """The status that an error inside a 200 answer stands for: its code, else by its type, else 500."""
    fields = error if isinstance(error, dict) else {}
    codes = [str(fields.get(key) or "") for key in ("code", "status", "type")]
    numbers = [int(code) for code in codes if code.isdigit() and 400 <= int(code) <= 599]
    if numbers:
        return numbers[0]
    kind = " ".join(codes).lower()
    return 429 if "rate_limit" in kind else 400 if "invalid" in kind or "context_length" in kind else 500
