"""The model that is there when none is configured: it quotes the material it is given, and says nothing of its own.

Its material are the sources in the messages (`render_sources`); where there are none, the messages themselves. What is
asked is the text around the sources in the user's messages. Passages are ranked by `lexical.Ranking`. It signs as
`offline`, calls no tools, uses no tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Unpack, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from app.clients.lexical import Passage, Ranking, passages
from app.clients.llm_meter import Meter
from app.clients.llm_models import (
    DEFAULT_REASKS,
    ChatOptions,
    Completion,
    Delta,
    Embedder,
    Embeddings,
    M,
    Message,
    TextDelta,
    ToolOptions,
    Usage,
    describe_errors,
)
from app.clients.sources import Source, parse_sources
from app.errors import InvalidModelOutput, NotConfigured

OFFLINE_MODEL = "offline"
QUOTES = 5
"""Quotes in an answer, and at most in a list."""
MAX_MATERIAL_CHARS = 400_000
"""Of the material, from its beginning, is read. Ranking that takes some 150 ms, in a thread."""


@dataclass(frozen=True, slots=True)
class Brief:
    """What is asked and what there is to quote."""

    question: str
    material: tuple[Passage, ...]


def read_brief(messages: Sequence[Message]) -> Brief:
    """Tell question and material in the messages apart. Pure."""
    parsed = [(message, *parse_sources(message.content)) for message in messages]
    asked = [text for message, text, _ in parsed if message.role == "user"]
    sources = [source for _, _, found in parsed for source in found]
    if not sources:
        sources = [Source(message.role, message.content) for message in messages if message.role != "system"]
    return Brief("\n".join(asked), tuple(_quotable(sources)))


def _quotable(sources: Sequence[Source]) -> list[Passage]:
    found: list[Passage] = []
    left = MAX_MATERIAL_CHARS
    for source in sources:
        found += passages(source.name, source.text[:left])
        left -= min(left, len(source.text))
    return found


class OfflineModel:
    """Answers by quoting. Every answer is the same for the same messages."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def metered(self, meter: Meter) -> OfflineModel:
        """The same one. What it does itself costs nothing; its embedding server, where there is one, is metered."""
        return OfflineModel(self._embedder.metered(meter))

    @property
    def name(self) -> str:
        """`offline`."""
        return OFFLINE_MODEL

    async def complete(self, messages: Sequence[Message], **options: Unpack[ToolOptions]) -> Completion:
        """The best quotes, one a line, each with its source; empty when there is nothing to quote. Ignores options."""
        # In a thread: the material may be as long as a repository's documents.
        lines = await asyncio.to_thread(answer, messages)
        return Completion("\n".join(lines), OFFLINE_MODEL, Usage(), finish_reason="stop")

    async def stream(self, messages: Sequence[Message], **options: Unpack[ToolOptions]) -> AsyncGenerator[Delta, None]:
        """The same answer word by word, then the completion."""
        completion = await self.complete(messages, **options)
        for word in completion.text.replace(" ", " \0").split("\0"):
            yield TextDelta(word)
            # Readers get a turn, as they do between the chunks of a real stream.
            await asyncio.sleep(0)
        yield completion

    async def structured(
        self,
        messages: Sequence[Message],
        shape: type[M],
        *,
        max_reasks: int = DEFAULT_REASKS,
        **options: Unpack[ChatOptions],
    ) -> tuple[M, Usage]:
        """A shape of strings, lists of strings and (lists of) objects with `text` and `source`, filled with quotes.

        Raises `NotConfigured` for any other shape, `InvalidModelOutput` when the material does not suffice for it.
        """
        return await asyncio.to_thread(extract, messages, shape), Usage()

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Vectors of the texts: by the configured embedding server, else `offline-lexical`."""
        return await self._embedder.embed(texts)

    async def aclose(self) -> None:
        """Close the embedder's connections."""
        await self._embedder.aclose()


def answer(messages: Sequence[Message]) -> list[str]:
    """The quotes that answer the messages, as lines `"quote" [source]`. Pure."""
    brief = read_brief(messages)
    return [f'"{passage.text}" [{passage.source}]' for passage in Ranking(brief.material).best(brief.question)[:QUOTES]]


def extract(messages: Sequence[Message], shape: type[M]) -> M:
    """Fill the shape with quotes; see `OfflineModel.structured`. Pure.

    A field is asked for by its name and description, and a little by the question. No passage stands in two fields.
    """
    brief = read_brief(messages)
    ranking = Ranking(brief.material)
    used: set[Passage] = set()
    values: dict[str, Any] = {}
    for name, field in shape.model_fields.items():
        kind = _kind_of(shape, name, field)
        if kind is None:
            continue
        asked = f"{name.replace('_', ' ')} {field.title or ''} {field.description or ''}"
        unused = (passage for passage in ranking.best(asked, brief.question) if passage not in used)
        chosen = list(islice(unused, kind.most))
        used.update(chosen)
        if kind.many or chosen:
            filled = [_fill(passage, kind) for passage in chosen]
            values[field.alias or name] = filled if kind.many else filled[0]
    try:
        return shape.model_validate(values)
    except ValidationError as error:
        raise InvalidModelOutput(f"the material does not hold a {shape.__name__}: {describe_errors(error)}") from error


@dataclass(frozen=True, slots=True)
class _Kind:
    many: bool
    cited: bool
    most: int = 1


def _kind_of(shape: type[BaseModel], name: str, field: FieldInfo) -> _Kind | None:
    """How a field can be filled; None for one that keeps its default. Raises `NotConfigured` for any other."""
    many = get_origin(field.annotation) is list
    inner = get_args(field.annotation)[0] if many else field.annotation
    most = _most(field) if many else 1
    if inner is str:
        return _Kind(many, cited=False, most=most)
    if isinstance(inner, type) and issubclass(inner, BaseModel) and _is_citation(inner):
        return _Kind(many, cited=True, most=most)
    if not field.is_required():
        return None
    raise NotConfigured(
        f"{shape.__name__}.{name} takes a model that thinks, and the offline one only quotes: "
        "expected NIGHTSHIFT_LLM_BASE_URL to be set"
    )


def _is_citation(shape: type[BaseModel]) -> bool:
    required = {name for name, field in shape.model_fields.items() if field.is_required()}
    return {"text", "source"} <= shape.model_fields.keys() and required <= {"text", "source"}


def _fill(passage: Passage, kind: _Kind) -> str | dict[str, str]:
    return {"text": passage.text, "source": passage.source} if kind.cited else passage.text


def _most(field: FieldInfo) -> int:
    bounds = [bound for item in field.metadata if isinstance(bound := getattr(item, "max_length", None), int)]
    return min([QUOTES, *bounds])
