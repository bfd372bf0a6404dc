"""Structured replies: how a model is asked for one, how it is read, and what it is told when it does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from app.clients.llm_models import Completion, M, Message, describe_errors
from app.clients.sources import SOURCE_NAMES, parse_sources

_FENCE = re.compile(r"```[\w-]*\n(.*?)```", re.DOTALL)
_THOUGHTS_END = "</think>"
MAX_SHOWN_CHARS = 8_000
"""Characters of a wrong reply that the model is shown again."""


def schema_of(shape: type[BaseModel]) -> tuple[str, dict[str, Any]]:
    """The shape's name, in the letters that the protocol allows, and its JSON schema."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", shape.__name__)[:64], shape.model_json_schema()


def with_instructions(messages: Sequence[Message], shape: type[BaseModel]) -> list[Message]:
    """The messages with the schema told in words too, for servers that ignore or refuse `response_format`.

    The words join the last message of the user, because some servers want one system message, and roles in turns.
    """
    schema = to_json(schema_of(shape)[1]).decode()
    words = f"Answer with one JSON object and nothing else. It must fit this JSON schema:\n{schema}"
    return _add_to_user(messages, words)


def with_problem(messages: Sequence[Message], reply: Completion, problem: str) -> list[Message]:
    """The messages, the wrong reply, and what is wrong with it."""
    words = f"That does not fit: {problem}\nAnswer again, with the corrected JSON object and nothing else."
    if not reply.text.strip():
        return _add_to_user(messages, f"An empty reply does not fit: {problem}")
    return [*messages, Message.assistant(reply.text[:MAX_SHOWN_CHARS]), Message.user(words)]


def _add_to_user(messages: Sequence[Message], words: str) -> list[Message]:
    if messages and messages[-1].role == "user":
        last = messages[-1]
        return [*messages[:-1], replace(last, content=f"{last.content}\n\n{words}")]
    return [*messages, Message.user(words)]


def source_names(messages: Sequence[Message]) -> list[str]:
    """The names of all sources in the messages, which are what a `Statement` in the reply may cite."""
    return [source.name for message in messages for source in parse_sources(message.content)[1]]


def read_structured(reply: Completion, shape: type[M], names: Sequence[str]) -> M | str:
    """The reply as the shape, or what is wrong with it in a sentence for the model."""
    problem = "it holds no JSON object"
    for candidate in _candidates(reply.text):
        try:
            return shape.model_validate_json(candidate, context={SOURCE_NAMES: names})
        except ValidationError as error:
            # The error about content helps more than "invalid JSON" about a candidate that was none.
            if not any(item["type"] == "json_invalid" for item in error.errors(include_url=False)):
                problem = describe_errors(error)
    return f"{problem} (it was cut at the token limit; be shorter)" if reply.finish_reason == "length" else problem


def _candidates(text: str) -> Iterator[str]:
    """Where the JSON may be: the whole text, fenced blocks, from the first brace to the last."""
    text = text.rpartition(_THOUGHTS_END)[2].strip()
    yield text
    for fence in _FENCE.finditer(text):
        yield fence[1]
    if "{" in text:
        yield text[text.index("{") : text.rindex("}") + 1] if "}" in text else ""
