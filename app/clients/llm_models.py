"""What goes into a model and what comes out of it, and the interface that every model has."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, TypeVar, Unpack

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from app.errors import InvalidModelOutput

if TYPE_CHECKING:
    from app.clients.llm_meter import Meter

M = TypeVar("M", bound=BaseModel)

Role = Literal["system", "user", "assistant", "tool"]

CHARS_PER_TOKEN = 4
"""Of English text, roughly, for every common tokenizer."""
DEFAULT_REASKS = 2


def estimate_tokens(text: str) -> int:
    """Tokens that a text takes, roughly: for reservations, and where a server reports no usage."""
    return math.ceil(len(text) / CHARS_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, or of several added up. `estimated` when a server did not report them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        """Tokens in and out."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.estimated or other.estimated,
        )


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool that the model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, description: str, arguments: type[BaseModel]) -> ToolSpec:
        """A tool whose arguments are the fields of a model; read them with `ToolCall.parse`."""
        return cls(name, description, arguments.model_json_schema())


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model wants made. `arguments_json` is what it wrote, unchecked."""

    id: str
    name: str
    arguments_json: str

    def arguments(self) -> dict[str, Any]:
        """The arguments. Raises `InvalidModelOutput` when they are no JSON object."""
        try:
            value = from_json(self.arguments_json or "{}")
        except ValueError as error:
            raise InvalidModelOutput(f"tool call {self.name!r} ({self.id}): arguments are no JSON: {error}") from error
        if not isinstance(value, dict):
            raise InvalidModelOutput(
                f"tool call {self.name!r} ({self.id}): expected an object, got {type(value).__name__}"
            )
        return value

    def parse(self, arguments: type[M]) -> M:
        """The arguments as a model. Raises `InvalidModelOutput` when they do not fit it."""
        try:
            return arguments.model_validate(self.arguments())
        except ValidationError as error:
            raise InvalidModelOutput(f"tool call {self.name!r} ({self.id}): {describe_errors(error)}") from error


def describe_errors(error: ValidationError, most: int = 10) -> str:
    """The first errors of a validation as "path: what is wrong", separated by semicolons."""
    items = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{'.'.join(str(step) for step in item['loc']) or '(root)'}: {item['msg']}" for item in items[:most]]
    return "; ".join(lines) + (f"; and {len(items) - most} more" if len(items) > most else "")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @classmethod
    def system(cls, content: str) -> Message:
        """Standing instructions."""
        return cls("system", content)

    @classmethod
    def user(cls, content: str) -> Message:
        """What is asked."""
        return cls("user", content)

    @classmethod
    def assistant(cls, content: str, tool_calls: Sequence[ToolCall] = ()) -> Message:
        """What the model said before."""
        return cls("assistant", content, tuple(tool_calls))

    @classmethod
    def tool(cls, call: ToolCall, content: str) -> Message:
        """The result of a tool call."""
        return cls("tool", content, tool_call_id=call.id)


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole reply. `model` is the name that the server gives; `finish_reason` is the protocol's word."""

    text: str
    model: str
    usage: Usage
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None

    def as_message(self) -> Message:
        """The reply as a message of the conversation that goes on."""
        return Message.assistant(self.text, self.tool_calls)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of a streamed reply's text."""

    text: str


Delta = TextDelta | ToolCall | Completion
"""What a stream yields: pieces of text as they come, then whole tool calls, then, once and last, the completion."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector for each text, in the order of the texts, and the model that made them."""

    vectors: list[list[float]]
    model: str
    usage: Usage


class ChatOptions(TypedDict, total=False):
    """`model` overrides the configured one; `max_tokens` bounds the reply; absent options are the server's choice."""

    model: str | None
    max_tokens: int | None
    temperature: float | None


class ToolOptions(ChatOptions, total=False):
    """`tool_choice` is `auto`, `none`, `required`, or the name of the tool that must be called."""

    tools: Sequence[ToolSpec]
    tool_choice: str


class Embedder(Protocol):
    """Turns texts into vectors."""

    def metered(self, meter: Meter) -> Embedder:
        """The same one, whose requests go through a meter. It shares the connections: close only one of the two."""
        ...

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Vectors of the texts. Raises the classes under `ClientError`."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


class Model(Embedder, Protocol):
    """A language model. Calls raise the classes under `ClientError`; none is retried here."""

    def metered(self, meter: Meter) -> Model:
        """The same one, whose requests go through a meter. It shares the connections: close only one of the two."""
        ...

    @property
    def name(self) -> str:
        """The configured model's name; `offline` for the offline model."""
        ...

    async def complete(self, messages: Sequence[Message], **options: Unpack[ToolOptions]) -> Completion:
        """The whole reply at once."""
        ...

    def stream(self, messages: Sequence[Message], **options: Unpack[ToolOptions]) -> AsyncGenerator[Delta, None]:
        """The reply as it is made. Wrap in `contextlib.aclosing` when you may leave before its end."""
        ...

    async def structured(
        self,
        messages: Sequence[Message],
        shape: type[M],
        *,
        max_reasks: int = DEFAULT_REASKS,
        **options: Unpack[ChatOptions],
    ) -> tuple[M, Usage]:
        """A reply of the given shape, and the usage of all asks. Raises `InvalidModelOutput` after the re-asks."""
        ...
