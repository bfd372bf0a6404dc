from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from pydantic import BaseModel, Field

from app.clients.llm import (
    Message,
    Model,
    Source,
    Statement,
    ToolCall,
    ToolSpec,
    Usage,
    render_sources,
)
from app.errors import (
    InvalidModelOutput,
    MalformedReply,
)
from tests.clients.llm_support import QUESTION, collect, model_of
from tests.fakes.model_server import ModelServer, Refuse, Reply, Tool


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


@pytest.fixture
async def model(server: ModelServer) -> AsyncIterator[Model]:
    async with model_of(server) as opened:
        yield opened


class Mood(BaseModel):
    mood: str
    score: int = Field(ge=0, le=10)


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
