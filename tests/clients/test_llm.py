from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
from pydantic import BaseModel, Field

from app.clients import llm_endpoint
from app.clients.embeddings import LexicalEmbedder
from app.clients.http import PooledTransport
from app.clients.llm import (
    Completion,
    Delta,
    Message,
    Model,
    RemoteModel,
    Source,
    Statement,
    TextDelta,
    ToolCall,
    ToolSpec,
    Usage,
    open_model,
    render_sources,
)
from app.clients.llm_endpoint import Endpoint, EndpointSettings
from app.errors import (
    ClientError,
    CredentialsRefused,
    InvalidModelOutput,
    MalformedReply,
    NotConfigured,
    RemoteStatus,
    RemoteTimeout,
    RemoteUnreachable,
    ReplyTooLarge,
    SettingsError,
)
from app.settings import Settings
from tests.fakes.model_server import ModelServer, Raw, Refuse, Reply, Silence, Tool

# Given, so that the variables of whoever runs the tests do not count.
UNSET: dict[str, object] = dict.fromkeys(
    f"{kind}_{field}" for kind in ("llm", "embedding") for field in ("base_url", "api_key", "model")
)
QUESTION = [Message.system("Be brief."), Message.user("Why is the sky blue?")]


def settings_for(server: ModelServer, **changes: object) -> Settings:
    values = UNSET | {"llm_base_url": server.base_url, "llm_model": server.model, "llm_timeout_s": 5.0}
    return Settings(_env_file=None, **(values | changes))  # type: ignore[arg-type]


@asynccontextmanager
async def model_of(server: ModelServer, **changes: object) -> AsyncIterator[Model]:
    model = open_model(settings_for(server, **changes))
    try:
        yield model
    finally:
        await model.aclose()


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


@pytest.fixture
async def model(server: ModelServer) -> AsyncIterator[Model]:
    async with model_of(server) as opened:
        yield opened


async def collect(model: Model, messages: list[Message] = QUESTION, **options: object) -> list[Delta]:
    return [delta async for delta in model.stream(messages, **options)]  # type: ignore[arg-type]


class Mood(BaseModel):
    mood: str
    score: int = Field(ge=0, le=10)


# Whole replies


async def test_a_completion_carries_text_model_usage_and_finish_reason(server: ModelServer, model: Model) -> None:
    server.script(Reply("Because of scattering.", usage=(20, 4)))
    reply = await model.complete(QUESTION)
    assert reply == Completion("Because of scattering.", "fake-model", Usage(20, 4), (), "stop")
    assert reply.usage.total_tokens == 24


async def test_the_request_is_what_the_protocol_wants(server: ModelServer, model: Model) -> None:
    await model.complete(QUESTION, max_tokens=50, temperature=0.0, model="other")
    request = server.requests[0]
    assert request.path == "/v1/chat/completions"
    assert request.headers["content-type"] == "application/json"
    assert request.body == {
        "model": "other",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Why is the sky blue?"},
        ],
        "max_tokens": 50,
        "temperature": 0.0,
    }


async def test_usage_is_estimated_and_marked_so_when_the_server_reports_none(server: ModelServer, model: Model) -> None:
    server.script(Reply("12345678", usage=None))
    reply = await model.complete([Message.user("x" * 40)])
    assert reply.usage == Usage(10, 2, estimated=True)


async def test_text_that_is_no_utf8_is_sent_with_replacements(server: ModelServer, model: Model) -> None:
    await model.complete([Message.user("caf\udce9 é")])
    assert server.requests[0].body["messages"][0]["content"] == "caf? é"


async def test_a_base_url_may_have_a_slash_at_its_end_and_a_query(server: ModelServer) -> None:
    async with model_of(server, llm_base_url=server.base_url + "/?api-version=1") as model:
        await model.complete(QUESTION)
    assert server.requests[0].path == "/v1/chat/completions"


async def test_content_in_parts_and_refusals_are_text(server: ModelServer, model: Model) -> None:
    def body(message: dict[str, object]) -> Raw:
        return Raw(json.dumps({"choices": [{"message": message}]}))

    server.script(
        body({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
        body({"content": None, "refusal": "I cannot."}),
    )
    assert (await model.complete(QUESTION)).text == "ab"
    assert (await model.complete(QUESTION)).text == "I cannot."


@pytest.mark.parametrize(
    "body",
    ['{"choices": [', "[]", '{"choices": []}', '{"choices": [{"index": 0}]}', "<html>", ""],
)
async def test_a_reply_that_breaks_the_protocol_is_malformed(server: ModelServer, model: Model, body: str) -> None:
    server.script(Raw(body))
    with pytest.raises(MalformedReply, match="the model server at ") as caught:
        await model.complete(QUESTION)
    assert caught.value.retryable


# Refusals


async def test_429_keeps_retry_after_and_is_not_retried_here(server: ModelServer, model: Model) -> None:
    server.script(Refuse(429, "Rate limit reached.", headers={"retry-after": "7"}))
    with pytest.raises(RemoteStatus, match=r"answered 429: Rate limit reached\.") as caught:
        await model.complete(QUESTION)
    assert (caught.value.remote_status, caught.value.retry_after_s, caught.value.retryable) == (429, 7.0, True)
    assert len(server.requests) == 1


async def test_500_is_retryable_and_a_stream_is_refused_the_same_way(server: ModelServer, model: Model) -> None:
    server.script(Refuse(500, "Overloaded."))
    with pytest.raises(RemoteStatus, match=r"500: Overloaded\.") as caught:
        await collect(model)
    assert caught.value.retryable


@pytest.mark.parametrize("message", ["This model's maximum context length is 8192 tokens.", "y" * 20_000])
async def test_400_is_final_with_the_providers_words_bounded(server: ModelServer, model: Model, message: str) -> None:
    server.script(Refuse(400, message, "context_length_exceeded"))
    with pytest.raises(RemoteStatus) as caught:
        await model.complete(QUESTION)
    assert not caught.value.retryable
    assert message[:300] in caught.value.detail
    assert len(caught.value.detail) < 700


async def test_an_unknown_model_says_which_settings_to_check(server: ModelServer, model: Model) -> None:
    server.script(Refuse(404, "The model `fake-model` does not exist", "model_not_found"))
    with pytest.raises(RemoteStatus, match="no model 'fake-model'") as caught:
        await model.complete(QUESTION)
    assert not caught.value.retryable
    assert "NIGHTSHIFT_LLM_MODEL" in caught.value.detail
    assert "does not exist" in caught.value.detail


async def test_a_missing_key_names_the_setting() -> None:
    async with ModelServer(api_key="sk-right") as server, model_of(server) as model:
        with pytest.raises(CredentialsRefused, match="NIGHTSHIFT_LLM_API_KEY is not set"):
            await model.complete(QUESTION)


async def test_the_key_is_sent_and_a_wrong_one_never_appears_in_the_error() -> None:
    async with ModelServer(api_key="sk-right") as server:
        async with model_of(server, llm_api_key="sk-right\n") as model:
            await model.complete(QUESTION)
        async with model_of(server, llm_api_key="sk-wrong-123") as model:
            # The fake repeats the key in its message, as some gateways do.
            with pytest.raises(CredentialsRefused, match="check NIGHTSHIFT_LLM_API_KEY") as caught:
                await model.complete(QUESTION)
    shown = "".join(traceback.format_exception(caught.value))
    assert "(secret)" in shown
    assert "sk-wrong" not in shown


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_key_echoed_anywhere_in_an_answer_stays_out_of_the_error(server: ModelServer, streamed: bool) -> None:
    body = json.dumps({"error": {"message": "bad " + "x" * 490 + "sk-wrong-123", "code": 400}})
    server.script(Raw(f"data: {body}\n\n", content_type="text/event-stream") if streamed else Raw(body))
    async with model_of(server, llm_api_key="sk-wrong-123") as model:
        with pytest.raises(RemoteStatus) as caught:
            await (collect(model) if streamed else model.complete(QUESTION))
    assert "sk-w" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "slow down", "type": "rate_limit_error", "code": "rate_limit_exceeded"}, 429),
        ({"message": "upstream", "code": 502}, 502),
        ({"message": "The server had an error", "type": "server_error"}, 500),
        ({"message": "too long", "type": "invalid_request_error"}, 400),
        ("overloaded", 500),
    ],
)
async def test_an_error_inside_a_stream_has_the_status_it_stands_for(
    server: ModelServer, model: Model, error: object, status: int
) -> None:
    server.script(Reply("one two three", bad_chunk_at=2, bad_chunk=json.dumps({"error": error})))
    with pytest.raises(RemoteStatus) as caught:
        await collect(model)
    assert caught.value.remote_status == status


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"error": "model is loading"}', "model is loading"),
        ('{"object": "error", "message": "too long"}', "too long"),
        ('{"detail": "no such route"}', "no such route"),
        ('[{"error": {"message": "quota"}}]', "quota"),
        ("<html>bad\n gateway</html>", "<html>bad gateway</html>"),
    ],
)
async def test_the_words_of_every_kind_of_error_body_are_found(
    server: ModelServer, model: Model, body: str, words: str
) -> None:
    server.script(Raw(body, status=503))
    with pytest.raises(RemoteStatus) as caught:
        await model.complete(QUESTION)
    assert caught.value.detail.endswith(f"answered 503: {words}")


async def test_a_redirect_is_an_error(server: ModelServer, model: Model) -> None:
    server.script(Raw("", status=307, headers={"location": "http://127.0.0.1:1/"}))
    with pytest.raises(RemoteStatus) as caught:
        await model.complete(QUESTION)
    assert caught.value.remote_status == 307


# Streams


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


# Timeouts and bounds


async def test_silence_before_the_first_byte_is_a_timeout(server: ModelServer) -> None:
    server.script(Silence())
    async with model_of(server, llm_timeout_s=0.2) as model:
        with pytest.raises(RemoteTimeout, match=r"sent nothing for 0\.2 s"):
            await model.complete(QUESTION)


async def test_silence_between_chunks_is_a_timeout(server: ModelServer) -> None:
    server.script(Reply("one two", gated=True))
    server.gate.let(2)
    async with model_of(server, llm_timeout_s=0.5) as model:
        received = []
        with pytest.raises(RemoteTimeout):
            async for delta in model.stream(QUESTION):
                received.append(delta)
    assert received == [TextDelta("one")]


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    async with ModelServer() as server:
        settings = settings_for(server)
    model = open_model(settings)
    with pytest.raises(RemoteUnreachable, match=r"the model server at 127\.0\.0\.1 cannot be reached"):
        await model.complete(QUESTION)
    await model.aclose()


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_reply_over_the_bound_is_refused(
    server: ModelServer, model: Model, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_endpoint, "MAX_REPLY_BYTES", 5_000)
    server.script(Reply("word " * 2_000))
    with pytest.raises(ReplyTooLarge, match="more than 5000 bytes"):
        await (collect(model) if streamed else model.complete(QUESTION))


# Dialects


async def test_a_server_that_wants_max_completion_tokens_gets_it(server: ModelServer, model: Model) -> None:
    words = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
    server.script(Refuse(400, words), Reply("a"), Reply("b"))
    assert (await model.complete(QUESTION, max_tokens=9)).text == "a"
    assert (await model.complete(QUESTION, max_tokens=9)).text == "b"
    assert ["max_completion_tokens" in request.body for request in server.requests] == [False, True, True]
    assert "max_tokens" not in server.requests[2].body


async def test_a_server_without_stream_options_is_asked_without(server: ModelServer, model: Model) -> None:
    server.script(Refuse(422, "Extra inputs are not permitted: stream_options"), Reply("a b"))
    *_, end = await collect(model)
    assert isinstance(end, Completion)
    assert end.text == "a b"
    assert end.usage.estimated
    assert "stream_options" not in server.requests[1].body


async def test_a_refusal_that_repeats_is_raised(server: ModelServer, model: Model) -> None:
    words = "'max_tokens' is not supported. Use 'max_completion_tokens' instead."
    server.script(Refuse(400, words), Refuse(400, words))
    with pytest.raises(RemoteStatus):
        await model.complete(QUESTION, max_tokens=9)
    assert len(server.requests) == 2


# Tools


class Weather(BaseModel):
    city: str
    days: int = 1


async def test_tools_go_in_typed_and_their_calls_come_out_typed(server: ModelServer, model: Model) -> None:
    server.script(Reply("", tools=[Tool("weather", '{"city": "Rome"}')]))
    tool = ToolSpec.of("weather", "The weather of a city", Weather)
    reply = await model.complete(QUESTION, tools=[tool], tool_choice="weather")
    assert reply.tool_calls[0].arguments() == {"city": "Rome"}
    assert reply.tool_calls[0].parse(Weather) == Weather(city="Rome")
    body = server.requests[0].body
    assert body["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "The weather of a city",
                "parameters": Weather.model_json_schema(),
            },
        }
    ]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


async def test_a_tool_call_and_its_result_go_back_in_the_conversation(server: ModelServer, model: Model) -> None:
    server.script(Reply("", tools=[Tool("weather", '{"city": "Rome"}', "c7")]))
    reply = await model.complete(QUESTION)
    await model.complete([*QUESTION, reply.as_message(), Message.tool(reply.tool_calls[0], "sunny")])
    assert server.requests[1].body["messages"][2:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "c7", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
            ],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "c7"},
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [('{"city": ', "no JSON"), ("[1]", "expected an object, got list"), ('{"days": "many"}', "city: Field required")],
)
def test_malformed_arguments_are_a_typed_error_that_names_the_call(arguments: str, complaint: str) -> None:
    with pytest.raises(InvalidModelOutput, match=complaint) as caught:
        ToolCall("c7", "weather", arguments).parse(Weather)
    assert "'weather' (c7)" in caught.value.detail


def test_a_call_without_arguments_has_none() -> None:
    assert ToolCall("c7", "clock", "").arguments() == {}


async def test_a_tool_call_without_a_name_is_malformed(server: ModelServer, model: Model) -> None:
    server.script(Reply("", tools=[Tool("")]), Reply("", tools=[Tool("")]))
    with pytest.raises(MalformedReply, match="without the name of a tool"):
        await model.complete(QUESTION)
    with pytest.raises(MalformedReply, match="without the name of a tool"):
        await collect(model)


# Structured output


async def test_a_structured_reply_is_validated(server: ModelServer, model: Model) -> None:
    server.script(Reply('{"mood": "good", "score": 7}', usage=(10, 5)))
    assert await model.structured(QUESTION, Mood) == (Mood(mood="good", score=7), Usage(10, 5))
    body = server.requests[0].body
    wanted = {"name": "Mood", "schema": Mood.model_json_schema(), "strict": False}
    assert body["response_format"] == {"type": "json_schema", "json_schema": wanted}
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert '"score"' in body["messages"][1]["content"]


@pytest.mark.parametrize(
    "text",
    [
        'Here it is:\n```json\n{"mood": "good", "score": 7}\n```\nAnything else?',
        'Sure! {"mood": "good", "score": 7} Hope that helps.',
        '<think>maybe {"mood": "bad"}?</think>{"mood": "good", "score": 7}',
    ],
)
async def test_json_is_found_in_text_around_it(server: ModelServer, model: Model, text: str) -> None:
    server.script(Reply(text))
    mood, _ = await model.structured(QUESTION, Mood, max_reasks=0)
    assert mood == Mood(mood="good", score=7)


async def test_a_wrong_reply_is_shown_with_its_error_and_usage_adds_up(server: ModelServer, model: Model) -> None:
    server.script(
        Reply('{"mood": "good", "score": 70}', usage=(10, 5)),
        Reply("I am fine.", usage=(20, 6)),
        Reply('{"mood": "good", "score": 7}', usage=(30, 7)),
    )
    assert await model.structured(QUESTION, Mood) == (Mood(mood="good", score=7), Usage(60, 18))
    second, third = (request.body["messages"] for request in server.requests[1:])
    assert second[2] == {"role": "assistant", "content": '{"mood": "good", "score": 70}'}
    assert "score: Input should be less than or equal to 10" in second[3]["content"]
    assert third[2]["content"] == "I am fine."
    assert "no JSON object" in third[3]["content"]
    assert len(third) == len(second)


async def test_after_the_reasks_the_output_is_invalid(server: ModelServer, model: Model) -> None:
    server.script(*[Reply('{"mood": 1}')] * 3)
    with pytest.raises(InvalidModelOutput, match="no valid Mood in 2 replies: mood: Input should be a valid string"):
        await model.structured(QUESTION, Mood, max_reasks=1)
    assert len(server.requests) == 2


async def test_an_empty_reply_and_one_cut_at_the_limit_are_asked_again(server: ModelServer, model: Model) -> None:
    cut = Reply('{"mood": "go', finish_reason="length")
    server.script(Reply(""), cut, Reply('{"mood": "good", "score": 7}'))
    await model.structured(QUESTION, Mood)
    again, after_cut = (request.body["messages"] for request in server.requests[1:])
    assert [message["role"] for message in again] == ["system", "user"]
    assert "cut at the token limit" in after_cut[-1]["content"]


async def test_a_server_without_response_format_is_asked_in_words(server: ModelServer, model: Model) -> None:
    refusal = Refuse(400, "This response_format type is unavailable now")
    server.script(refusal, Reply('{"mood": "good", "score": 7}'), Reply('{"mood": "bad", "score": 1}'))
    assert (await model.structured(QUESTION, Mood))[0].mood == "good"
    assert (await model.structured(QUESTION, Mood))[0].mood == "bad"
    assert ["response_format" in request.body for request in server.requests] == [True, False, False]


class Digest(BaseModel):
    statements: list[Statement]


async def test_a_statement_must_cite_one_of_the_given_sources(server: ModelServer, model: Model) -> None:
    material = render_sources([Source("README.md", "It is a queue."), Source("a.py", "x = 1")])

    def cite(source: str) -> Reply:
        return Reply(json.dumps({"statements": [{"text": "It is a queue.", "source": source}]}))

    server.script(cite("README"), cite("README.md"))
    digest, _ = await model.structured([Message.user(f"What is it?\n\n{material}")], Digest)
    assert digest.statements == [Statement(text="It is a queue.", source="README.md")]
    complaint = server.requests[1].body["messages"][-1]["content"]
    assert "'README' is none of the given sources; expected one of 'README.md', 'a.py'" in complaint


async def test_the_fakes_own_answer_fits_any_schema(server: ModelServer, model: Model) -> None:
    material = render_sources([Source("README.md", "It is a queue.")])
    digest, _ = await model.structured([Message.user(material)], Digest, max_reasks=0)
    assert digest.statements[0].source == "README.md"


# Embeddings


def embedding_settings(server: ModelServer) -> dict[str, object]:
    return {"embedding_base_url": server.base_url, "embedding_model": "embed-1", "embedding_api_key": "sk-embed"}


async def test_embeddings_come_in_batches_and_keep_the_order(server: ModelServer) -> None:
    texts = [f"{number} text" for number in range(70)]
    async with model_of(server, **embedding_settings(server)) as model:
        embeddings = await model.embed(texts)
    assert [vector[1] for vector in embeddings.vectors] == [float(ord(text[0])) for text in texts]
    assert [vector[0] for vector in embeddings.vectors] == [float(len(text)) for text in texts]
    assert embeddings.model == "embed-1"
    assert embeddings.usage == Usage(sum(map(len, texts)), 0)
    assert [len(request.body["input"]) for request in server.requests] == [32, 32, 6]
    assert server.requests[0].headers["authorization"] == "Bearer sk-embed"


async def test_no_texts_are_no_request(server: ModelServer) -> None:
    async with model_of(server, **embedding_settings(server)) as model:
        assert (await model.embed([])).vectors == []
    assert server.requests == []


@pytest.mark.parametrize(
    "data",
    [
        [{"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}],
        [{"index": 0, "embedding": "AAAA"}, {"index": 1, "embedding": "AAAA"}],
    ],
    ids=["missing", "doubled", "lengths differ", "encoded"],
)
async def test_wrong_embeddings_are_malformed(server: ModelServer, data: list[dict[str, object]]) -> None:
    server.script_embeddings(Raw(json.dumps({"data": data, "model": "embed-1"})))
    async with model_of(server, **embedding_settings(server)) as model:
        with pytest.raises(MalformedReply):
            await model.embed(["a", "b"])


async def test_an_error_instead_of_embeddings_is_read(server: ModelServer) -> None:
    server.script_embeddings(Raw('{"error": {"message": "input too long", "code": 400}}'))
    async with model_of(server, **embedding_settings(server)) as model:
        with pytest.raises(RemoteStatus, match="input too long"):
            await model.embed(["a"])


async def test_refused_embedding_credentials_name_their_own_setting() -> None:
    async with ModelServer(api_key="sk-right") as server, model_of(server, **embedding_settings(server)) as model:
        with pytest.raises(CredentialsRefused, match="NIGHTSHIFT_EMBEDDING_API_KEY"):
            await model.embed(["a"])


# Settings


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"llm_base_url": "host/v1"}, "NIGHTSHIFT_LLM_BASE_URL='host/v1': expected a URL"),
        ({"llm_base_url": "ftp://host/v1"}, "NIGHTSHIFT_LLM_BASE_URL"),
        ({"llm_base_url": "http://[::1/v1"}, "NIGHTSHIFT_LLM_BASE_URL"),
        ({"llm_base_url": "https://me:hunter2@host/v1"}, "no credentials in the URL"),
        ({"llm_base_url": "https://host/v1", "llm_api_key": "hunter2 ü"}, "NIGHTSHIFT_LLM_API_KEY"),
        ({"embedding_base_url": "https://host/v1"}, "NIGHTSHIFT_EMBEDDING_MODEL"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_model(Settings(_env_file=None, **(UNSET | changes)))  # type: ignore[arg-type]
    assert complaint in caught.value.detail
    assert "hunter2" not in caught.value.detail


async def test_without_a_configured_model_each_call_must_name_one(server: ModelServer) -> None:
    async with model_of(server, llm_model=None) as model:
        assert isinstance(model, RemoteModel)
        assert model.name == ""
        with pytest.raises(NotConfigured, match="NIGHTSHIFT_LLM_MODEL"):
            await model.complete(QUESTION)
        assert (await model.complete(QUESTION, model="m1")).model == "m1"
    assert len(server.requests) == 1


async def test_every_error_of_a_call_is_a_client_error(server: ModelServer, model: Model) -> None:
    server.script(Refuse(418), Raw("no"), Refuse(503), Refuse(401))
    for _ in range(4):
        with pytest.raises(ClientError):
            await model.complete(QUESTION)
