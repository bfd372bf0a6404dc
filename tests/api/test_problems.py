from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

import httpx
import pytest
import redis.exceptions
from fastapi import FastAPI, Header, HTTPException, Path, Query, WebSocket
from loguru import logger
from pydantic import BaseModel, Field
from redis.asyncio import Redis

from app import errors
from app.api.field_errors import field_errors, json_pointer
from app.api.problems import MAX_FIELD_ERRORS, install_problem_handlers
from app.errors import InvalidInput, NightshiftError, NotFound, QueueFull, RemoteStatus, Unauthorized
from app.telemetry import LogContext, reset_context, set_context


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[int]


class Order(BaseModel):
    name: str = Field(max_length=3)
    items: dict[str, list[int]] = {}
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    either: int | list[int] = 0


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


RAISED: dict[str, Exception] = {
    "missing": NotFound("task 't1' does not exist"),
    "pointed": InvalidInput("expected a number", pointer="/params/seconds"),
    "full": QueueFull("queue 'agent' holds 100000 tasks, its bound", retry_after_s=1.2),
    "remote": RemoteStatus("the forge answered 502", remote_status=502, retry_after_s=0),
    "login": Unauthorized("credentials are missing"),
    "surrogate": InvalidInput("unknown task '\ud800'", pointer="/\udfff"),
    "internal": errors.SettingsError("NIGHTSHIFT_X is wrong"),
    "replica": redis.exceptions.ReadOnlyError("You can't write against a read only replica."),
    "slow": redis.exceptions.TimeoutError("Timeout reading from secret-host:6379"),
    "teapot": HTTPException(418, "short and stout", {"X-Pot": "1"}),
    "unauthorized": HTTPException(401, "who?"),
    "unmodified": HTTPException(304),
    "odd": HTTPException(460, "odd"),
}


def application() -> FastAPI:
    app = FastAPI()
    install_problem_handlers(app)

    @app.post("/orders")
    async def order(body: Order) -> Order:
        return body

    @app.get("/search/{number}")
    async def search(
        number: Annotated[int, Path()], limit: Annotated[int, Query(le=10)] = 1, x_trace: Annotated[int, Header()] = 0
    ) -> int:
        return number + limit + x_trace

    @app.get("/raise/{name}")
    async def fail(name: str) -> None:
        raise RAISED[name]

    @app.get("/redis")
    async def ping() -> None:
        async with Redis(port=free_port()) as client:
            await client.ping()

    @app.websocket("/ws/{name}")
    async def socket_endpoint(websocket: WebSocket, name: str) -> None:
        await websocket.accept()
        raise RAISED[name]

    return app


@pytest.fixture
async def api() -> AsyncIterator[httpx.AsyncClient]:
    token = set_context(LogContext(correlation_id="c-1"))
    transport = httpx.ASGITransport(application())
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client
    reset_context(token)


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logger.add(lambda message: lines.append(str(message)), format="{level} {message}\n{exception}")
    yield lines
    logger.remove(handler)


def problem(answer: httpx.Response) -> dict[str, Any]:
    """The document of a problem answer, checked for what all have in common."""
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["status"] == answer.status_code
    assert document["instance"] == answer.request.url.raw_path.decode().partition("?")[0]
    assert document["correlation_id"] == "c-1"
    assert document["title"]
    assert document["detail"]
    assert document["type"].startswith("urn:nightshift:problem:")
    return document


# Errors of our own


async def test_an_error_of_ours_becomes_a_problem_document(api: httpx.AsyncClient) -> None:
    answer = await api.get("/raise/missing")
    assert problem(answer) == {
        "type": "urn:nightshift:problem:not-found",
        "title": "Not found",
        "status": 404,
        "detail": "task 't1' does not exist",
        "instance": "/raise/missing",
        "correlation_id": "c-1",
    }


async def test_a_pointer_is_told_at_the_top_and_in_the_list(api: httpx.AsyncClient) -> None:
    document = problem(await api.get("/raise/pointed"))
    assert document["status"] == 422
    assert document["pointer"] == "/params/seconds"
    assert document["errors"] == [{"pointer": "/params/seconds", "detail": "expected a number"}]


async def test_a_wait_is_told_in_whole_seconds_rounded_up(api: httpx.AsyncClient) -> None:
    answer = await api.get("/raise/full")
    assert problem(answer)["type"] == "urn:nightshift:problem:queue-full"
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert (await api.get("/raise/remote")).headers["retry-after"] == "0"


async def test_further_members_of_an_error_are_told(api: httpx.AsyncClient) -> None:
    assert problem(await api.get("/raise/remote"))["remote_status"] == 502


async def test_no_member_of_an_error_hides_one_of_the_document() -> None:
    class Sly(NightshiftError):
        def extra(self) -> dict[str, Any]:
            return {"status": 200, "more": float("inf"), "what": object}

    RAISED["sly"] = Sly("sly")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(application()), base_url="http://localhost") as client:
        document = (await client.get("/raise/sly")).json()
    assert (document["status"], document["more"], document["type"]) == (500, None, "urn:nightshift:problem:sly")


async def test_an_unauthorized_answer_says_how_to_log_in(api: httpx.AsyncClient) -> None:
    for name in ("login", "unauthorized"):
        answer = await api.get(f"/raise/{name}")
        assert problem(answer)["type"] == "urn:nightshift:problem:unauthorized"
        assert answer.headers["www-authenticate"] == 'Bearer realm="nightshift"'


async def test_text_that_is_no_unicode_can_be_quoted(api: httpx.AsyncClient) -> None:
    answer = await api.get("/raise/surrogate")
    assert problem(answer)["pointer"] == "/\udfff"
    assert rb"\ud800" in answer.content


async def test_an_error_of_status_500_is_logged_with_its_traceback(api: httpx.AsyncClient, log: list[str]) -> None:
    assert (await api.get("/raise/internal")).status_code == 500
    assert any("NIGHTSHIFT_X is wrong" in line and "Traceback" in line for line in log)
    log.clear()
    await api.get("/raise/missing")
    assert log == []


def classes(root: type[NightshiftError]) -> Iterator[type[NightshiftError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from classes(child)


PLAIN = {kind for kind in classes(NightshiftError) if kind.__init__ is NightshiftError.__init__}


@pytest.mark.parametrize("kind", sorted(PLAIN, key=lambda kind: kind.__name__))
async def test_every_class_of_the_error_tree_has_its_answer(
    api: httpx.AsyncClient, kind: type[NightshiftError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RAISED, "one", kind("what happened"))
    document = problem(await api.get("/raise/one"))
    assert (document["status"], document["title"]) == (kind.status_code, kind.title)
    assert document["type"].removeprefix("urn:nightshift:problem:").replace("-", "") == kind.__name__.lower()


# Requests that FastAPI refuses


async def test_wrong_fields_are_pointed_at(api: httpx.AsyncClient) -> None:
    body = {"name": "long", "items": {"a/b~c": [1, "x"]}}
    document = problem(await api.post("/orders", json=body))
    assert document["type"] == "urn:nightshift:problem:invalid-input"
    assert [error["pointer"] for error in document["errors"]] == ["/name", "/items/a~1b~0c/1"]
    assert document["pointer"] == "/name"
    assert document["detail"] == "/name: String should have at most 3 characters (and 1 more)"


async def test_a_missing_field_is_pointed_at_where_it_should_be(api: httpx.AsyncClient) -> None:
    document = problem(await api.post("/orders", json={}))
    assert document["errors"] == [{"pointer": "/name", "detail": "Field required"}]


async def test_the_branch_of_a_union_is_no_part_of_a_pointer(api: httpx.AsyncClient) -> None:
    async def pointers(**members: Any) -> set[str]:
        document = problem(await api.post("/orders", json={"name": "x", **members}))
        return {error["pointer"] for error in document["errors"]}

    assert await pointers(pet={"kind": "cat", "lives": "many"}) == {"/pet/lives"}
    assert await pointers(pet={"kind": "dog"}) == {"/pet/tricks"}
    assert await pointers(pet={"kind": "fish"}) == {"/pet"}
    assert await pointers(either=["x"]) == {"/either", "/either/0"}


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b'{"name": ', "expected JSON: Expecting value at character 9"),
        (b"{'name': 1}", "expected JSON: Expecting property name enclosed in double quotes at character 1"),
        (b"", "Field required"),
        (b"[]", "Input should be a valid dictionary or object to extract fields from"),
    ],
)
async def test_a_body_that_is_no_json_object_is_told_so(api: httpx.AsyncClient, content: bytes, detail: str) -> None:
    answer = await api.post("/orders", content=content, headers={"Content-Type": "application/json"})
    document = problem(answer)
    assert (document["status"], document["errors"]) == (422, [{"pointer": "", "detail": detail}])


async def test_a_body_without_its_content_type_is_told_so(api: httpx.AsyncClient) -> None:
    document = problem(await api.post("/orders", content=b'{"name": "x"}', headers={"Content-Type": "text/plain"}))
    assert "Content-Type: application/json" in document["detail"]


@pytest.mark.parametrize("content", [b"\xff\xfe\xff", b"[" * 100_000, b'{"name": ' + b"9" * 5_000 + b"}"])
async def test_a_body_that_cannot_be_parsed_is_a_bad_request(api: httpx.AsyncClient, content: bytes) -> None:
    answer = await api.post("/orders", content=content, headers={"Content-Type": "application/json"})
    assert problem(answer)["type"] == "urn:nightshift:problem:bad-request"


async def test_wrong_parameters_are_named(api: httpx.AsyncClient) -> None:
    document = problem(await api.get("/search/x?limit=11", headers={"X-Trace": "y"}))
    assert {error["parameter"] for error in document["errors"]} == {"number", "limit", "x-trace"}
    assert all("pointer" not in error for error in document["errors"])
    assert "pointer" not in document


async def test_what_was_sent_is_not_repeated(api: httpx.AsyncClient) -> None:
    answer = await api.post("/orders", json={"name": "hunter2hunter2"})
    assert "hunter2" not in answer.text


async def test_a_long_list_of_wrong_fields_is_bounded_and_says_so(api: httpx.AsyncClient) -> None:
    document = problem(await api.post("/orders", json={"name": "x", "items": {"a": ["x"] * 250}}))
    assert len(document["errors"]) == MAX_FIELD_ERRORS
    assert document["error_count"] == 250


def test_json_pointers_are_escaped_and_the_whole_document_is_empty() -> None:
    assert json_pointer([]) == ""
    assert json_pointer(["a/b", 0, "~1", ""]) == "/a~1b/0/~01/"


def test_a_location_without_a_body_still_has_its_pointer() -> None:
    found = field_errors([{"loc": ("body", "name"), "type": "missing", "msg": "Field required"}], None)
    assert found == [{"pointer": "/name", "detail": "Field required"}]


# Requests that no route takes


async def test_an_unknown_path_is_a_problem(api: httpx.AsyncClient) -> None:
    document = problem(await api.get("/no/such%20thing%0A"))
    assert document["type"] == "urn:nightshift:problem:not-found"
    assert document["instance"] == "/no/such%20thing%0A"


async def test_a_wrong_method_is_a_problem_that_names_the_right_one(api: httpx.AsyncClient) -> None:
    answer = await api.put("/orders")
    document = problem(answer)
    assert document["type"] == "urn:nightshift:problem:method-not-allowed"
    assert answer.headers["allow"] == "POST"
    assert document["detail"] == "PUT is not possible at /orders: expected POST"


async def test_other_http_errors_keep_their_status_text_and_headers(api: httpx.AsyncClient) -> None:
    answer = await api.get("/raise/teapot")
    assert problem(answer)["detail"] == "short and stout"
    assert (answer.status_code, answer.headers["x-pot"]) == (418, "1")
    assert problem(await api.get("/raise/odd"))["type"] == "urn:nightshift:problem:status460"


async def test_an_answer_without_a_body_stays_one(api: httpx.AsyncClient) -> None:
    answer = await api.get("/raise/unmodified")
    assert (answer.status_code, answer.content) == (304, b"")


# Redis


@pytest.mark.parametrize("path", ["/redis", "/raise/replica", "/raise/slow"])
async def test_a_lost_redis_is_unavailable_for_a_moment(api: httpx.AsyncClient, log: list[str], path: str) -> None:
    answer = await api.get(path)
    document = problem(answer)
    assert document["type"] == "urn:nightshift:problem:unavailable"
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "secret-host" not in answer.text
    assert [line.split()[0] for line in log if line.strip()] == ["WARNING"]


# WebSockets


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("missing", 1008, "task 't1' does not exist"),
        ("teapot", 1008, "short and stout"),
        ("internal", 1011, "NIGHTSHIFT_X is wrong"),
        ("slow", 1013, "the task store cannot be reached; nothing is lost"),
        ("long", 1008, "Invalid input"),
    ],
)
async def test_a_websocket_whose_endpoint_raises_is_closed_with_the_reason(name: str, code: int, reason: str) -> None:
    RAISED["long"] = InvalidInput("ä" * 62)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": f"/ws/{name}",
        "raw_path": f"/ws/{name}".encode(),
        "query_string": b"",
        "headers": [],
        "subprotocols": [],
    }
    await application()(scope, receive, send)
    assert json.loads(json.dumps(sent[1:])) == [{"type": "websocket.close", "code": code, "reason": reason}]
