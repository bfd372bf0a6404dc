from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from app.clients.embeddings import LexicalEmbedder
from app.clients.http import PooledTransport
from app.clients.llm import (
    Completion,
    Model,
    RemoteModel,
    TextDelta,
    ToolCall,
    Usage,
)
from app.clients.llm_endpoint import Endpoint, EndpointSettings
from app.errors import (
    ClientError,
    MalformedReply,
)
from tests.clients.llm_support import QUESTION, collect, model_of
from tests.fakes.model_server import ModelServer, Raw, Reply, Silence, Tool


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


@pytest.fixture
async def model(server: ModelServer) -> AsyncIterator[Model]:
    async with model_of(server) as opened:
        yield opened


async def test_a_stream_yields_text_as_it_comes_then_the_completion(server: ModelServer, model: Model) -> None:
    server.script(Reply("It is blue.", usage=(5, 3), gated=True))
    async with aclosing(model.stream(QUESTION)) as deltas:
        server.gate.let(2)  # The chunk with the role, and the first piece.
        assert await anext(deltas) == TextDelta("It")
        server.gate.let(1)
        assert await anext(deltas) == TextDelta(" is")
        server.gate.open()
        assert [delta async for delta in deltas] == [
            TextDelta(" blue."),
            Completion("It is blue.", "fake-model", Usage(5, 3), (), "stop"),
        ]
    assert server.requests[0].body["stream_options"] == {"include_usage": True}


async def test_fragments_of_several_tool_calls_are_put_together(server: ModelServer, model: Model) -> None:
    arguments = json.dumps({"city": "São Paulo", "days": 3})
    server.script(Reply("", tools=[Tool("weather", arguments, "a"), Tool("clock", "{}", "b")]))
    *calls, end = await collect(model)
    assert calls == [ToolCall("a", "weather", arguments), ToolCall("b", "clock", "{}")]
    assert isinstance(end, Completion)
    assert end.tool_calls == tuple(calls)
    assert end.finish_reason == "tool_calls"


async def test_tool_calls_that_share_an_index_are_told_apart_by_their_ids(server: ModelServer, model: Model) -> None:
    def event(calls: list[dict[str, object]], reason: str | None = None) -> str:
        choice = {"delta": {"tool_calls": calls}, "finish_reason": reason}
        return f"data: {json.dumps({'choices': [choice]})}\n\n"

    def call(identity: str, arguments: object) -> dict[str, object]:
        return {"index": 0, "id": identity, "function": {"name": "weather", "arguments": arguments}}

    events = event([call("a", '{"city": "Rome"}')]) + event([call("b", {"city": "Oslo"})], "tool_calls")
    server.script(Raw(events, content_type="text/event-stream"))
    first, second, _ = await collect(model)
    assert isinstance(first, ToolCall)
    assert isinstance(second, ToolCall)
    assert (first.arguments(), second.arguments()) == ({"city": "Rome"}, {"city": "Oslo"})


@pytest.mark.parametrize("broken", [Reply("one two three", cut_after=3), Reply("one two three", end_after=3)])
async def test_a_stream_cut_before_its_end_is_malformed(server: ModelServer, model: Model, broken: Reply) -> None:
    server.script(broken)
    received = []
    with pytest.raises(MalformedReply) as caught:
        async for delta in model.stream(QUESTION):
            received.append(delta)
    assert received == [TextDelta("one"), TextDelta(" two")]
    assert caught.value.retryable


async def test_a_stream_without_done_is_whole_when_it_had_a_finish_reason(server: ModelServer, model: Model) -> None:
    server.script(Reply("one two", done=False))
    *_, end = await collect(model)
    assert isinstance(end, Completion)
    assert end.text == "one two"


async def test_a_chunk_that_is_no_json_is_malformed(server: ModelServer, model: Model) -> None:
    server.script(Reply("one two three", bad_chunk_at=2))
    with pytest.raises(MalformedReply, match="no valid reply"):
        await collect(model)


async def test_an_answer_that_is_no_event_stream_is_malformed(server: ModelServer, model: Model) -> None:
    server.script(Raw("{}"))
    with pytest.raises(MalformedReply, match="expected text/event-stream"):
        await collect(model)


async def test_comments_and_usage_only_chunks_without_choices_are_no_text(server: ModelServer, model: Model) -> None:
    events = [
        ": keep alive",
        'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}], "model": "m"}',
        'data: {"choices": null, "usage": {"prompt_tokens": 3, "completion_tokens": 1}}',
        'data: {"choices": [], "usage": null}',
        "data: [DONE]",
    ]
    server.script(Raw("\n\n".join(events) + "\n\n", content_type="text/event-stream"))
    assert await collect(model) == [TextDelta("a"), Completion("a", "m", Usage(3, 1), (), "stop")]


async def test_leaving_a_stream_early_closes_its_connection(server: ModelServer, model: Model) -> None:
    server.script(Reply("one two three", gated=True))
    server.gate.let(2)
    async with aclosing(model.stream(QUESTION)) as deltas:
        await anext(deltas)
    await server.until(lambda seen: seen.open_now == 0)
    assert server.requests[0].left


async def test_cancelling_a_call_closes_its_connection_and_frees_its_slot(server: ModelServer) -> None:
    async with model_of(server, llm_concurrency=1) as model:
        server.script(Silence())
        call = asyncio.create_task(model.complete(QUESTION))
        await server.until(lambda seen: seen.open_now == 1)
        call.cancel()
        await server.until(lambda seen: seen.open_now == 0)
        assert call.cancelled()
        assert server.requests[0].left
        assert (await model.complete(QUESTION)).text == "You said: Why is the sky blue?"


@pytest.mark.parametrize("answer", [Raw("x" * 200_000, status=500), Reply("one two", end_after=1), Raw("{}")])
async def test_a_failed_call_leaves_no_response_open(server: ModelServer, answer: Raw | Reply) -> None:
    settings = EndpointSettings("NIGHTSHIFT_LLM", server.base_url, None, 5.0, 1)
    endpoint = Endpoint(settings)
    model = RemoteModel(endpoint, "m", LexicalEmbedder())
    server.script(answer)
    with pytest.raises(ClientError):
        await collect(model)
    transport = endpoint._client._transport
    assert isinstance(transport, PooledTransport)
    assert (transport.busy, transport.idle) == (0, 1)
    await model.aclose()


async def test_one_connection_serves_stream_after_stream(server: ModelServer) -> None:
    async with model_of(server, llm_concurrency=1) as model:
        for _ in range(3):
            await collect(model)
        await model.complete(QUESTION)
    assert len(server.connections) == 1


async def test_at_most_llm_concurrency_calls_are_open(server: ModelServer) -> None:
    async with model_of(server, llm_concurrency=2) as model:
        server.script(*[Reply("one", gated=True)] * 5)
        calls = [asyncio.create_task(collect(model)) for _ in range(5)]
        await server.until(lambda seen: seen.open_now == 2)
        server.gate.open()
        await asyncio.gather(*calls)
    assert server.open_most == 2
    assert len(server.requests) == 5
