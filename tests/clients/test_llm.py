from __future__ import annotations

import json
import traceback
from collections.abc import AsyncIterator

import pytest

from app.clients import llm_endpoint
from app.clients.llm import (
    Completion,
    Message,
    Model,
    RemoteModel,
    TextDelta,
    Usage,
    open_model,
)
from app.errors import (
    ClientError,
    CredentialsRefused,
    MalformedReply,
    NotConfigured,
    RemoteStatus,
    RemoteTimeout,
    RemoteUnreachable,
    ReplyTooLarge,
    SettingsError,
)
from app.settings import Settings
from app.telemetry.metrics import REGISTRY
from tests.clients.llm_support import QUESTION, UNSET, collect, model_of, settings_for
from tests.fakes.model_server import ModelServer, Raw, Refuse, Reply, Silence


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


@pytest.fixture
async def model(server: ModelServer) -> AsyncIterator[Model]:
    async with model_of(server) as opened:
        yield opened


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


async def test_calls_and_tokens_are_counted_and_a_model_that_a_caller_names_is_other(
    server: ModelServer, model: Model
) -> None:
    def count(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"nightshift_llm_{name}_total", labels) or 0.0

    def counts() -> list[float]:
        return [
            count("calls", model="fake-model", outcome="ok"),
            count("calls", model="other", outcome="RemoteStatus"),
            count("tokens", model="fake-model", kind="prompt"),
        ]

    before = counts()
    server.script(Reply("a", usage=(20, 4)), Refuse(500))
    await model.complete(QUESTION)
    with pytest.raises(RemoteStatus):
        await model.complete(QUESTION, model="theirs")
    assert [now - then for now, then in zip(counts(), before, strict=True)] == [1, 1, 20]
