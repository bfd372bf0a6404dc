"""What the fake model server can be told to answer, and how that looks in the OpenAI-compatible protocol."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

CREATED = 1_700_000_000
_SOURCE = re.compile(r'^==\[m\d+\]== source (".*")$', re.MULTILINE)


@dataclass(frozen=True)
class Tool:
    """A tool call of the model. `arguments` is sent as it stands, valid or not."""

    name: str
    arguments: str = "{}"
    id: str = "call_1"


@dataclass(frozen=True)
class Reply:
    """A chat reply, whole or streamed as the request asks.

    Streamed, the text goes out in `pieces` (by default word by word). `gated`: each chunk waits for one pass of the
    server's gate. `delay_s`: the model's time before each chunk. `cut_after`: after so many chunks the connection is
    closed in the middle of the body. `end_after`: after so many chunks the body ends properly, but without finish
    reason and `[DONE]`. `bad_chunk_at`: this chunk is `bad_chunk` instead of JSON.
    """

    text: str = "Hello there, this is the fake model."
    tools: Sequence[Tool] = ()
    finish_reason: str | None = None
    usage: tuple[int, int] | None = (11, 7)
    pieces: Sequence[str] | None = None
    gated: bool = False
    delay_s: float = 0.0
    cut_after: int | None = None
    end_after: int | None = None
    bad_chunk_at: int | None = None
    bad_chunk: str = '{"choices": [{"delta": '
    done: bool = True


@dataclass(frozen=True)
class Refuse:
    """An error in the provider's shape."""

    status: int
    message: str = "The server had an error while processing your request."
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Raw:
    """Any bytes as the whole answer."""

    body: str
    status: int = 200
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Silence:
    """No answer at all until the client goes away."""


Behaviour = Reply | Refuse | Raw | Silence

KINDS: dict[str, type[Behaviour]] = {"reply": Reply, "refuse": Refuse, "raw": Raw, "silence": Silence}


def from_json(item: dict[str, Any]) -> Behaviour:
    """A behaviour from `{"kind": "reply", ...}`, for servers in a process of their own."""
    values = dict(item)
    kind = KINDS[values.pop("kind", "reply")]
    if "tools" in values:
        values["tools"] = [Tool(**tool) for tool in values["tools"]]
    if isinstance(values.get("usage"), list):
        values["usage"] = tuple(values["usage"])
    return kind(**values)


def error_body(refusal: Refuse) -> dict[str, Any]:
    """The body of a refusal."""
    kinds = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(refusal.status, "server_error")
    return {"error": {"message": refusal.message, "type": kind, "param": None, "code": refusal.code}}


def default_reply(request: dict[str, Any]) -> Reply:
    """What is answered when nothing is scripted: an instance of the schema where one is asked for, else an echo."""
    wanted = (request.get("response_format") or {}).get("json_schema")
    texts = [str(message.get("content") or "") for message in request["messages"]]
    if wanted:
        names = [json.loads(name) for text in texts for name in _SOURCE.findall(text)]
        return Reply(json.dumps(example_of(wanted["schema"], wanted["schema"], names)))
    return Reply(f"You said: {texts[-1]}")


def example_of(schema: dict[str, Any], root: dict[str, Any], names: Sequence[str], key: str = "") -> Any:
    """The smallest value that fits a JSON schema as pydantic writes them. A `source` is the first of the names."""
    if "$ref" in schema:
        return example_of(root["$defs"][schema["$ref"].rpartition("/")[2]], root, names, key)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    if "anyOf" in schema:
        return example_of(schema["anyOf"][0], root, names, key)
    kind = schema.get("type", "string")
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: example_of(properties[name], root, names, name) for name in schema.get("required", properties)}
    if kind == "array":
        return [example_of(schema["items"], root, names, key)] * max(1, schema.get("minItems", 1))
    if kind == "string" and key == "source" and names:
        return names[0]
    simple = {"string": f"example {key}".strip(), "integer": 1, "number": 0.5, "boolean": True, "null": None}
    return simple[kind]


def whole(reply: Reply, model: str) -> dict[str, Any]:
    """The body of a reply that is not streamed."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or None, "refusal": None}
    if reply.tools:
        message["tool_calls"] = [
            {"id": tool.id, "type": "function", "function": {"name": tool.name, "arguments": tool.arguments}}
            for tool in reply.tools
        ]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(reply)}
    body = _envelope("chat.completion", model) | {"choices": [choice]}
    return body | ({"usage": _usage(reply.usage)} if reply.usage else {})


def chunks(reply: Reply, model: str, *, include_usage: bool) -> Iterator[str]:
    """The data of the events of a streamed reply, in order, without `[DONE]`."""
    pieces = re.findall(r"\s*\S+\s*$|\s*\S+", reply.text) if reply.pieces is None else reply.pieces
    yield _chunk(model, {"role": "assistant", "content": ""})
    for piece in pieces:
        yield _chunk(model, {"content": piece})
    for index, tool in enumerate(reply.tools):
        yield from _tool_fragments(model, index, tool)
    yield _chunk(model, {}, finish_reason=_finish_reason(reply))
    if include_usage and reply.usage:
        usage = {"choices": [], "usage": _usage(reply.usage)}
        yield json.dumps(_envelope("chat.completion.chunk", model) | usage)


def _tool_fragments(model: str, index: int, tool: Tool) -> Iterator[str]:
    head = {"index": index, "id": tool.id, "type": "function", "function": {"name": tool.name, "arguments": ""}}
    yield _chunk(model, {"tool_calls": [head]})
    for start in range(0, len(tool.arguments), 5):
        part = {"index": index, "function": {"arguments": tool.arguments[start : start + 5]}}
        yield _chunk(model, {"tool_calls": [part]})


def _chunk(model: str, delta: dict[str, Any], finish_reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return json.dumps(_envelope("chat.completion.chunk", model) | {"choices": [choice], "usage": None})


def _envelope(kind: str, model: str) -> dict[str, Any]:
    return {"id": "chatcmpl-fake", "object": kind, "created": CREATED, "model": model, "system_fingerprint": "fp_fake"}


def _finish_reason(reply: Reply) -> str:
    return reply.finish_reason or ("tool_calls" if reply.tools else "stop")


def _usage(usage: tuple[int, int]) -> dict[str, int]:
    return {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}


def vector_of(text: str) -> list[float]:
    """A vector that tells texts apart: length, and the codes of the first seven letters."""
    return [float(len(text)), *(float(ord(letter)) for letter in text[:7].ljust(7))]


def embeddings(texts: Sequence[str], model: str) -> dict[str, Any]:
    """The body of an embedding reply. The vectors come last first: the protocol's order is that of `index`."""
    data = [{"object": "embedding", "index": i, "embedding": vector_of(text)} for i, text in enumerate(texts)]
    tokens = sum(len(text) for text in texts)
    return {
        "object": "list",
        "data": data[::-1],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
