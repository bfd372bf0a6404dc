"""`agent.run` against a model server over real HTTP: what streams, what is counted, what happens when it fails."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from app.domains.agent import tasks as agent_tasks
from app.engine.events import Event
from app.engine.job import Status
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from tests.domains.support import past_events, post, run, service_on
from tests.fakes.model_server import ModelServer, Refuse, Reply
from tests.support import event_of, events_of, finished

patient = task("agent.run", queue="agent", retry=RetryPolicy(base_s=0.01))(agent_tasks.run.function)
"""The task itself, whose retries do not wait."""


def model_of(server: ModelServer) -> dict[str, Any]:
    return {"llm_base_url": server.base_url, "llm_model": server.model, "llm_timeout_s": 5.0}


def of_kind(events: list[Event], kind: str) -> list[Any]:
    return [event.data() for event in events if event.type == kind]


async def test_the_reply_streams_as_events_and_is_the_result_with_its_usage(redis_url: str, tmp_path: Path) -> None:
    async with ModelServer() as server, service_on(redis_url, tmp_path, **model_of(server)) as engine:
        server.script(Reply("Blue light scatters most.", usage=(31, 4)))
        record = await run(engine, "agent.run", prompt="Why is the sky blue?", system="Be brief.", max_tokens=50)
        events = await past_events(engine, record.task_id)
    assert record.status is Status.SUCCESS
    assert record.result == {
        "text": "Blue light scatters most.",
        "model": server.model,
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 31, "completion_tokens": 4, "estimated": False},
    }
    assert of_kind(events, "stream_start") == [{"attempt": 1, "model": server.model}]
    assert "".join(chunk["text"] for chunk in of_kind(events, "text_chunk")) == "Blue light scatters most."
    assert of_kind(events, "stream_end") == [{"characters": 25}]
    (sent,) = server.requests
    assert [message["role"] for message in sent.body["messages"]] == ["system", "user"]


async def test_text_is_heard_while_the_model_still_writes(redis_url: str, tmp_path: Path) -> None:
    async with ModelServer() as server, service_on(redis_url, tmp_path, **model_of(server)) as engine:
        server.script(Reply("one two three", gated=True))
        task_id = await post(engine, "agent.run", prompt="count")
        server.gate.let(2)  # the chunk with the role, and the first word
        assert (await event_of(engine, task_id, "text_chunk"))["text"] == "one"
        assert (await engine.tasks.get(task_id, user_id="ada")).status is Status.STARTED
        server.gate.open()
        record = await finished(engine, task_id)
    assert record.result["text"] == "one two three"


async def test_a_full_model_is_asked_again_when_it_said(redis_url: str, tmp_path: Path) -> None:
    async with ModelServer() as server, service_on(redis_url, tmp_path, **model_of(server)) as engine:
        server.script(Refuse(429, "Rate limit reached", headers={"retry-after": "300"}))
        task_id = await post(engine, "agent.run", prompt="hello")
        async for event in events_of(engine, task_id):
            if event.type == "task_retrying":
                break
        retrying, at = event.data(), event.at
        await engine.tasks.cancel(task_id, user_id="ada")
    due = datetime.fromisoformat(retrying["next_attempt_at"])
    assert 300 <= (due - at).total_seconds() < 301
    assert retrying["error"]["type"] == "RemoteStatus"
    assert retrying["error"]["remote_status"] == 429
    assert "Rate limit reached" in retrying["error"]["message"]


async def test_a_stream_that_is_cut_is_begun_again_and_its_readers_are_told(redis_url: str, tmp_path: Path) -> None:
    async with (
        ModelServer() as server,
        service_on(redis_url, tmp_path, tasks=[patient], **model_of(server)) as engine,
    ):
        server.script(Reply("half of it is lost", cut_after=3), Reply("all of it is here"))
        task_id = await post(engine, "agent.run", prompt="tell me")
        await event_of(engine, task_id, "task_retrying")
        record = await finished(engine, task_id)
        events = await past_events(engine, task_id)
    kinds = [event.type for event in events if event.type in ("stream_start", "stream_end", "task_retrying")]
    assert kinds == ["stream_start", "task_retrying", "stream_start", "stream_end"]
    assert [start["attempt"] for start in of_kind(events, "stream_start")] == [1, 2]
    again = next(index for index, event in enumerate(events) if event.type == "task_retrying")
    assert "".join(chunk["text"] for chunk in of_kind(events[again:], "text_chunk")) == "all of it is here"
    assert record.result["text"] == "all of it is here"


async def test_credentials_that_the_model_refuses_fail_at_once_and_name_the_setting(
    redis_url: str, tmp_path: Path
) -> None:
    async with ModelServer(api_key="right") as server:
        settings = model_of(server) | {"llm_api_key": "wrong-key"}
        async with service_on(redis_url, tmp_path, **settings) as engine:
            record = await run(engine, "agent.run", prompt="hello")
    assert (record.status, record.attempt) == (Status.FAILURE, 1)
    assert record.error is not None
    assert record.error.type == "CredentialsRefused"
    assert "NIGHTSHIFT_LLM_API_KEY" in record.error.message
    assert "wrong-key" not in record.error.message


async def test_without_a_model_the_prompt_is_quoted(redis_url: str, tmp_path: Path) -> None:
    async with service_on(redis_url, tmp_path) as engine:
        record = await run(engine, "agent.run", prompt="The sky is blue by day.")
    assert record.result["model"] == "offline"
    assert "The sky is blue by day." in record.result["text"]


@pytest.mark.parametrize("length", [1, 3_999, 4_000, 4_001, 20_000])
async def test_a_long_reply_is_cut_into_chunks_and_nothing_of_it_is_lost(
    redis_url: str, tmp_path: Path, length: int
) -> None:
    text = "".join(chr(0x20AC + index % 50) for index in range(length))
    async with ModelServer() as server, service_on(redis_url, tmp_path, **model_of(server)) as engine:
        server.script(Reply(text, pieces=[text]))
        record = await run(engine, "agent.run", prompt="much")
        chunks = of_kind(await past_events(engine, record.task_id), "text_chunk")
    assert "".join(chunk["text"] for chunk in chunks) == text == record.result["text"]
    assert max(len(chunk["text"]) for chunk in chunks) <= 4_000
