"""Puts a streamed reply together from its chunks.

A stream is a row of JSON chunks: pieces of text, fragments of tool calls, at some point a finish reason, after it (when
asked for) a chunk with the usage and no choices, then `[DONE]`. Some servers leave out `[DONE]`, some the finish
reason; a stream with neither was cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from app.clients.llm_models import Completion, TextDelta, ToolCall, Usage
from app.clients.llm_wire import (
    Ask,
    WireChat,
    WireFunction,
    WireToolCall,
    estimate_usage,
    parse_reply,
    tool_call,
    usage_of,
)
from app.errors import MalformedReply

DONE = "[DONE]"


@dataclass(slots=True)
class _CallParts:
    id: str | None = None
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class StreamAssembler:
    """Takes the data of the events in order; knows no connection."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._text: list[str] = []
        self._calls: list[_CallParts] = []
        self._by_index: dict[int, _CallParts] = {}
        self._usage: Usage | None = None
        self._model = ask.model
        self._finish_reason: str | None = None
        self.done = False
        """Whether `[DONE]` was seen."""

    def feed(self, data: str) -> TextDelta | None:
        """Take one event; return its text, if it has any. Raises `MalformedReply`, or `RemoteStatus` for an error."""
        if data.strip() == DONE:
            self.done = True
            return None
        chunk = parse_reply(WireChat, data, self._ask.peer)
        self._model = chunk.model or self._model
        self._usage = usage_of(chunk.usage) or self._usage
        return self._take_choice(chunk)

    def _take_choice(self, chunk: WireChat) -> TextDelta | None:
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        self._finish_reason = choice.finish_reason or self._finish_reason
        delta = choice.delta or choice.message
        if delta is None:
            return None
        for fragment in delta.tool_calls or ():
            self._take_fragment(fragment)
        text = delta.text()
        if not text:
            return None
        self._text.append(text)
        return TextDelta(text)

    def _take_fragment(self, fragment: WireToolCall) -> None:
        index = fragment.index if fragment.index is not None else max(len(self._calls) - 1, 0)
        parts = self._by_index.get(index)
        # Some servers give every call the same index, or none: a new id begins a new call all the same.
        if parts is None or (fragment.id and parts.id and fragment.id != parts.id):
            parts = self._by_index[index] = _CallParts()
            self._calls.append(parts)
        parts.id = parts.id or fragment.id
        if fragment.function:
            parts.name = parts.name or fragment.function.name or ""
            parts.arguments.append(fragment.function.arguments_text())

    def finish(self) -> Completion:
        """The whole reply. Raises `MalformedReply` when the stream was cut before its end."""
        if not self.done and self._finish_reason is None:
            pieces = len(self._text)
            raise MalformedReply(f"{self._ask.peer.label} cut the stream after {pieces} pieces of text, before its end")
        calls = tuple(self._call(number, parts) for number, parts in enumerate(self._calls))
        text = "".join(self._text)
        usage = self._usage or estimate_usage(self._ask.messages, text, calls)
        return Completion(text, self._model, usage, calls, self._finish_reason)

    def _call(self, number: int, parts: _CallParts) -> ToolCall:
        function = WireFunction(name=parts.name, arguments="".join(parts.arguments))
        return tool_call(parts.id, function, number, self._ask.peer)
