"""Requests of the OpenAI-compatible chat and embedding protocol, from typed values into JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.clients.llm_models import Message, ToolOptions, ToolSpec
from app.clients.llm_wire import Ask, JsonObject
from app.errors import RemoteStatus


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a server's version of the protocol can do. It is learned from the server's refusals."""

    json_schema: bool = True
    stream_usage: bool = True
    max_tokens_field: str = "max_tokens"

    def learn(self, body: JsonObject, refusal: RemoteStatus) -> Dialect | None:
        """The dialect without what the refusal of `body` complains of; None when it is about something else."""
        if refusal.remote_status not in (400, 422):
            return None
        if "response_format" in body and _mentions(refusal, "response_format", "json_schema", "response format"):
            return replace(self, json_schema=False)
        if "stream_options" in body and _mentions(refusal, "stream_options"):
            return replace(self, stream_usage=False)
        if "max_tokens" in body and _mentions(refusal, "max_completion_tokens"):
            return replace(self, max_tokens_field="max_completion_tokens")
        return None


def _mentions(refusal: RemoteStatus, *words: str) -> bool:
    return any(word in refusal.detail.lower() for word in words)


def chat_body(
    ask: Ask,
    options: ToolOptions,
    dialect: Dialect,
    *,
    stream: bool = False,
    schema: tuple[str, JsonObject] | None = None,
) -> JsonObject:
    """The body of `POST /chat/completions`. `schema` is the name and JSON schema of a structured reply."""
    body: JsonObject = {"model": ask.model, "messages": [_message(message) for message in ask.messages]}
    if (max_tokens := options.get("max_tokens")) is not None:
        body[dialect.max_tokens_field] = max_tokens
    if (temperature := options.get("temperature")) is not None:
        body["temperature"] = temperature
    if tools := options.get("tools"):
        body |= {"tools": [_tool(tool) for tool in tools], "tool_choice": _choice(options.get("tool_choice", "auto"))}
    if stream:
        body |= {"stream": True} | ({"stream_options": {"include_usage": True}} if dialect.stream_usage else {})
    if schema and dialect.json_schema:
        # Not strict: strict mode refuses defaults, formats and bounds. The reply is validated here anyway.
        described = {"name": schema[0], "schema": schema[1], "strict": False}
        body["response_format"] = {"type": "json_schema", "json_schema": described}
    return body


def _message(message: Message) -> JsonObject:
    entry: JsonObject = {"role": message.role, "content": _utf8(message.content)}
    if message.tool_calls:
        entry["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        entry["tool_call_id"] = message.tool_call_id
    return entry


def _utf8(text: str) -> str:
    # Text of files may carry bytes that were no UTF-8 as lone surrogates, which JSON cannot hold.
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _tool(tool: ToolSpec) -> JsonObject:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def _choice(choice: str) -> str | JsonObject:
    return choice if choice in ("auto", "none", "required") else {"type": "function", "function": {"name": choice}}


def embedding_body(texts: Sequence[str], model: str) -> JsonObject:
    """The body of `POST /embeddings`."""
    return {"model": model, "input": [_utf8(text) for text in texts], "encoding_format": "float"}
