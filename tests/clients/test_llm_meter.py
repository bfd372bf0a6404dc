"""A meter sees every request before it is made, and what it used afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from pydantic import BaseModel

from app.clients.llm import Message, ToolSpec
from app.clients.llm_meter import Estimate
from app.clients.llm_models import ToolCall
from app.errors import ClientError, InvalidModelOutput, RemoteStatus
from tests.clients.llm_support import QUESTION, collect, model_of
from tests.fakes.model_server import ModelServer, Refuse, Reply


class Mood(BaseModel):
    mood: str


@dataclass
class Ledger:
    """A meter that lets everything pass and notes it."""

    estimates: list[Estimate] = field(default_factory=list)
    used: list[tuple[int, int | None]] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    @asynccontextmanager
    async def __call__(self, estimate: Estimate) -> AsyncIterator[Request]:
        self.estimates.append(estimate)
        try:
            yield Request(self)
        except BaseException as error:
            self.failures.append(error)
            raise


@dataclass
class Request:
    ledger: Ledger

    def used(self, tokens: int, *, requests: int | None = None) -> None:
        self.ledger.used.append((tokens, requests))


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_is_estimated_and_its_usage_told(server: ModelServer, streamed: bool) -> None:
    ledger = Ledger()
    async with model_of(server) as model:
        server.script(Reply("Blue.", usage=(30, 5)))
        metered = model.metered(ledger)
        await (collect(metered, max_tokens=50) if streamed else metered.complete(QUESTION, max_tokens=50))
    assert ledger.estimates == [Estimate("llm", server.model, 2 * 4 + 3 + 5, 50)]
    assert ledger.used == [(35, 1)]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_that_fails_fails_inside_the_meter(server: ModelServer, streamed: bool) -> None:
    ledger = Ledger()
    async with model_of(server) as model:
        server.script(Refuse(429, headers={"retry-after-ms": "1500"}))
        metered = model.metered(ledger)
        with pytest.raises(ClientError):
            await (collect(metered) if streamed else metered.complete(QUESTION))
    (failure,) = ledger.failures
    assert isinstance(failure, RemoteStatus)
    assert failure.retry_after_s == 1.5
    assert ledger.used == []


async def test_each_ask_for_a_structured_reply_is_metered_also_where_none_fits(server: ModelServer) -> None:
    ledger = Ledger()
    async with model_of(server) as model:
        server.script(*[Reply("no JSON", usage=(10 * number, number)) for number in (1, 2, 3)])
        with pytest.raises(InvalidModelOutput):
            await model.metered(ledger).structured(QUESTION, Mood, max_reasks=2)
    assert ledger.used == [(11, 1), (22, 1), (33, 1)]
    assert len(server.requests) == 3
    assert ledger.estimates[0].prompt_tokens < ledger.estimates[1].prompt_tokens


async def test_a_request_that_is_made_again_without_what_the_server_lacks_is_counted(server: ModelServer) -> None:
    ledger = Ledger()
    async with model_of(server) as model:
        server.script(Refuse(400, "response_format is not supported"), Reply('{"mood": "good"}', usage=(9, 1)))
        await model.metered(ledger).structured(QUESTION, Mood)
    assert ledger.used == [(10, 2)]


async def test_each_batch_of_texts_is_metered(server: ModelServer) -> None:
    ledger = Ledger()
    async with model_of(server, embedding_base_url=server.base_url, embedding_model="embed-1") as model:
        await model.metered(ledger).embed(["four"] * 40)
    assert ledger.estimates == [Estimate("embedding", "embed-1", 32, 0), Estimate("embedding", "embed-1", 8, 0)]
    assert [requests for _, requests in ledger.used] == [1, 1]


async def test_what_is_made_here_is_not_metered(server: ModelServer) -> None:
    ledger = Ledger()
    async with model_of(server, llm_base_url=None, llm_model=None) as model:
        await model.metered(ledger).complete(QUESTION)
        await model.metered(ledger).embed(["four"])
    assert ledger.estimates == []


def test_an_estimate_counts_tools_and_what_they_were_called_with() -> None:
    plain = Estimate.of_chat("m", [Message.user("12345678")], {})
    tool = ToolSpec("look", "x" * 40, {"type": "object"})
    call = ToolCall("1", "look", "y" * 80)
    rich = Estimate.of_chat("m", [Message.user("12345678"), Message.assistant("", [call])], {"tools": [tool]})
    assert plain.prompt_tokens == 4 + 2
    assert rich.prompt_tokens == 6 + 4 + 20 + 10 + 5
