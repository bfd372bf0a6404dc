from __future__ import annotations

import re
from collections.abc import AsyncIterator
from enum import Enum
from typing import Annotated, Literal

import pytest
from annotated_types import MaxLen
from pydantic import BaseModel, Field

from app.clients.llm import (
    OFFLINE_MODEL,
    Completion,
    Message,
    Model,
    OfflineModel,
    Source,
    Statement,
    TextDelta,
    ToolSpec,
    Usage,
    open_model,
    render_sources,
)
from app.clients.offline import QUOTES
from app.errors import InvalidModelOutput, NotConfigured
from app.settings import Settings
from tests.fakes.model_server import ModelServer

SOURCES = [
    Source("README.md", "# Lantern\n\nLantern is a small mail server for one household. It keeps mail in plain files."),
    Source(
        "pyproject.toml", '[project]\nname = "lantern mail"\nrequires-python = ">=3.11"\ndependencies = ["h11 >= 0.16"]'
    ),
    Source("commit 1a2b3c", "Bound the size of attachments\n\nA large attachment could fill the disk of the server."),
]
ASK = Message.user(f"What is Lantern?\n\n{render_sources(SOURCES)}")


@pytest.fixture
async def model() -> AsyncIterator[Model]:
    opened = open_model(Settings(_env_file=None, llm_base_url=None, embedding_base_url=None))  # type: ignore[call-arg]
    yield opened
    await opened.aclose()


class Digest(BaseModel):
    what_it_is: list[Statement] = Field(description="what Lantern is for", max_length=1)
    how_it_is_built: list[Statement] = Field(description="Python version and dependencies", max_length=2)
    what_changed: list[Statement] = Field(description="the latest commit", max_length=1)


async def test_nothing_configured_is_the_offline_model(model: Model) -> None:
    assert isinstance(model, OfflineModel)
    assert model.name == OFFLINE_MODEL == "offline"


async def test_an_answer_is_the_best_quotes_each_with_its_source(model: Model) -> None:
    reply = await model.complete([ASK])
    lines = reply.text.splitlines()
    assert lines[0] == '"Lantern is a small mail server for one household." [README.md]'
    assert (reply.model, reply.usage, reply.tool_calls, reply.finish_reason) == ("offline", Usage(), (), "stop")
    texts = {source.name: " ".join(source.text.split()) for source in SOURCES}
    for line in lines:
        quote, source = re.fullmatch(r'"(.*)" \[(.*)\]', line).groups()  # type: ignore[union-attr]
        assert quote in texts[source]
    assert len(lines) <= QUOTES


async def test_a_stream_is_the_same_answer_in_pieces(model: Model) -> None:
    *pieces, end = [delta async for delta in model.stream([ASK])]
    assert end == await model.complete([ASK])
    assert isinstance(end, Completion)
    assert all(isinstance(piece, TextDelta) for piece in pieces)
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == end.text
    assert len(pieces) > 10


async def test_without_sources_the_conversation_itself_is_quoted_but_no_instruction(model: Model) -> None:
    messages = [
        Message.system("Never mention the tomato harvest, it is secret."),
        Message.user("The lease lasts ten seconds. The tomato harvest was good."),
        Message.user("How long does the lease last?"),
    ]
    reply = await model.complete(messages)
    assert '"The lease lasts ten seconds." [user]' in reply.text.splitlines()
    assert "secret" not in reply.text


@pytest.mark.parametrize("messages", [[], [Message.user("")], [Message.user("Why?")]])
async def test_nothing_to_quote_is_an_empty_answer(model: Model, messages: list[Message]) -> None:
    assert (await model.complete(messages)).text == ""
    assert [delta async for delta in model.stream(messages)][-1] == await model.complete(messages)


async def test_tools_are_never_called(model: Model) -> None:
    tool = ToolSpec("weather", "The weather", {"type": "object"})
    assert (await model.complete([ASK], tools=[tool], tool_choice="required")).tool_calls == ()


async def test_a_digest_is_filled_with_quotes_and_where_they_stand(model: Model) -> None:
    digest, usage = await model.structured([ASK], Digest)
    assert digest.what_it_is == [
        Statement(text="Lantern is a small mail server for one household.", source="README.md")
    ]
    assert {statement.text for statement in digest.how_it_is_built} == {
        'requires-python = ">=3.11"',
        'dependencies = ["h11 >= 0.16"]',
    }
    assert digest.what_changed == [Statement(text="Bound the size of attachments", source="commit 1a2b3c")]
    assert usage == Usage()


async def test_no_passage_stands_in_two_fields(model: Model) -> None:
    class Twice(BaseModel):
        first: list[Statement]
        second: list[Statement]

    twice, _ = await model.structured([ASK], Twice)
    assert len(twice.first) == QUOTES
    assert twice.second
    assert not set(twice.first) & set(twice.second)


async def test_strings_and_lists_of_strings_are_quotes_and_defaults_stay(model: Model) -> None:
    class Summary(BaseModel):
        dependencies: str
        lines: Annotated[list[str], MaxLen(2)]
        cited: Statement
        score: int = 3
        note: str | None = None

    summary, _ = await model.structured([ASK], Summary)
    assert summary.dependencies == 'dependencies = ["h11 >= 0.16"]'
    assert len(summary.lines) == 2
    assert summary.cited.source in {source.name for source in SOURCES}
    assert (summary.score, summary.note) == (3, None)


class Colour(Enum):
    RED = "red"


class Scored(BaseModel):
    text: str
    source: str
    score: float


@pytest.mark.parametrize(
    "kind", [int, bool, Literal["a", "b"], Colour, list[int], dict[str, str], list[Scored], BaseModel]
)
async def test_a_shape_that_takes_thinking_says_which_setting_is_missing(model: Model, kind: object) -> None:
    class Shape(BaseModel):
        title: str
        verdict: kind  # type: ignore[valid-type]

    with pytest.raises(NotConfigured, match=r"Shape\.verdict .* NIGHTSHIFT_LLM_BASE_URL"):
        await model.structured([ASK], Shape)


async def test_material_that_does_not_suffice_is_said_so(model: Model) -> None:
    class Needs(BaseModel):
        title: str

    with pytest.raises(InvalidModelOutput, match="does not hold a Needs: title: Field required"):
        await model.structured([Message.user("Why?")], Needs)


async def test_embeddings_are_lexical_when_no_server_is_configured(model: Model) -> None:
    embeddings = await model.embed(["a queue of tasks", "tasks in a queue", "a queue of tasks"])
    assert embeddings.model == "offline-lexical"
    assert embeddings.usage == Usage()
    assert [len(vector) for vector in embeddings.vectors] == [256] * 3
    assert embeddings.vectors[0] == embeddings.vectors[2] != embeddings.vectors[1]


async def test_the_offline_model_uses_an_embedding_server_that_is_configured() -> None:
    async with ModelServer() as server:
        configured = {"llm_base_url": None, "embedding_base_url": server.base_url, "embedding_model": "embed-1"}
        model = open_model(Settings(_env_file=None, **configured))  # type: ignore[arg-type]
        assert model.name == "offline"
        assert (await model.embed(["a"])).model == "embed-1"
        await model.aclose()
