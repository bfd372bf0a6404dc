from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import websockets
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import StreamingResponse
from loguru import logger
from pydantic import BaseModel
from starlette.responses import PlainTextResponse
from websockets.asyncio.client import connect

from app.api.middleware import MAX_BODY_BYTES, BodyLimit, RequestEdge, install_middleware
from app.api.problems import install_problem_handlers
from app.errors import NotFound
from app.settings import Settings
from app.telemetry import current_context, current_correlation_id, render_metrics
from tests.api.asgi import call, http_scope, served, websocket_scope

ORIGIN = "https://app.example"


class Text(BaseModel):
    text: str


def application(settings: Settings | None = None) -> FastAPI:
    app = FastAPI()
    install_problem_handlers(app)
    install_middleware(app, settings or Settings(auth="off"))

    @app.get("/plain")
    async def plain() -> str | None:
        return current_correlation_id()

    @app.get("/tagged")
    async def tagged() -> Response:
        return PlainTextResponse("x", headers={"ETag": '"1"'})

    @app.get("/own")
    async def own() -> Response:
        return PlainTextResponse("x", headers={"ETag": '"1"', "Cache-Control": "max-age=60"})

    @app.get("/items/{item_id}")
    async def item(item_id: str) -> str:
        raise NotFound(f"item {item_id!r} does not exist")

    @app.get("/bug")
    async def bug() -> None:
        raise ZeroDivisionError("private parts")

    @app.get("/half")
    async def half() -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"half"
            raise ZeroDivisionError("private parts")

        return StreamingResponse(parts())

    @app.post("/text")
    async def text(body: Text) -> int:
        return len(body.text)

    @app.post("/raw")
    async def raw(request: Request) -> int:
        return len(await request.body())

    @app.websocket("/ws")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json(current_correlation_id())
        await websocket.close()

    return app


@asynccontextmanager
async def client(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as connected:
        yield connected


@pytest.fixture
async def api() -> AsyncIterator[httpx.AsyncClient]:
    async with client(application()) as connected:
        yield connected


@pytest.fixture
def log() -> Iterator[list[Any]]:
    """The records that are logged, each with the context that was bound."""
    records: list[Any] = []
    handler = logger.add(lambda message: records.append((message.record, current_context())), level="INFO")
    yield records
    logger.remove(handler)


# Correlation ids


async def test_a_correlation_id_is_kept_bound_and_returned(api: httpx.AsyncClient) -> None:
    answer = await api.get("/plain", headers={"X-Correlation-ID": "from.client-1"})
    assert answer.headers["x-correlation-id"] == "from.client-1"
    assert answer.json() == "from.client-1"
    assert current_correlation_id() is None


async def test_without_one_each_request_gets_its_own(api: httpx.AsyncClient) -> None:
    ids = [(await api.get("/plain")).headers["x-correlation-id"] for _ in range(2)]
    assert len(set(ids)) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


@pytest.mark.parametrize("given", ["a b", "x" * 129, "", "é", "a\tb", "<script>"])
async def test_one_that_could_do_harm_is_replaced(api: httpx.AsyncClient, given: str) -> None:
    answer = await api.get("/plain", headers={b"X-Correlation-ID": given.encode()})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-correlation-id"])


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/nowhere", {}, 404),
        ("PUT", "/plain", {}, 405),
        ("GET", "/items/7", {}, 404),
        ("GET", "/bug", {}, 500),
        ("GET", "/plain", {"Origin": "https://evil.example"}, 403),
        ("POST", "/text", {"Content-Length": str(MAX_BODY_BYTES + 1)}, 413),
    ],
)
async def test_every_problem_names_the_correlation_id_of_its_answer(
    api: httpx.AsyncClient, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = await api.request(method, path, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["correlation_id"] == answer.headers["x-correlation-id"]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


# Headers


async def test_answers_are_not_stored_sniffed_or_framed(api: httpx.AsyncClient) -> None:
    headers = (await api.get("/plain")).headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "frame-ancestors 'none'"
    assert headers["referrer-policy"] == "no-referrer"


async def test_an_answer_with_an_etag_may_be_kept_and_asked_for_again(api: httpx.AsyncClient) -> None:
    assert (await api.get("/tagged")).headers["cache-control"] == "private, no-cache"


async def test_what_a_route_says_about_caching_stays(api: httpx.AsyncClient) -> None:
    assert (await api.get("/own")).headers.get_list("cache-control") == ["max-age=60"]


# Log and metrics


async def test_a_request_is_one_line_with_route_status_and_time(api: httpx.AsyncClient, log: list[Any]) -> None:
    answer = await api.get("/items/secret-7?ticket=t0ken")
    ((record, context),) = log
    assert record["level"].name == "INFO"
    assert re.fullmatch(r"GET /items/\{item_id\} 404 \d+\.\d ms", record["message"])
    assert context.correlation_id == answer.headers["x-correlation-id"]


async def test_a_request_that_no_route_took_is_logged_by_its_path(api: httpx.AsyncClient, log: list[Any]) -> None:
    await api.get("/no{0}where?ticket=t0ken")
    assert re.fullmatch(r"GET /no\{0\}where 404 \d+\.\d ms", log[0][0]["message"])


async def test_requests_are_measured_by_route_and_nothing_that_clients_can_invent(api: httpx.AsyncClient) -> None:
    await api.request("BREW", "/plain")
    await api.get("/invented/by/client")
    await api.get("/items/invented-too")
    text = bytes(render_metrics()).decode()
    count = "nightshift_http_request_duration_seconds_count"
    assert f'{count}{{method="other",route="/plain",status="405"}}' in text
    assert f'{count}{{method="GET",route="unmatched",status="404"}}' in text
    assert f'{count}{{method="GET",route="/items/{{item_id}}",status="404"}}' in text
    assert "invented" not in text
    assert "BREW" not in text


# Bugs


async def test_a_bug_is_answered_without_a_word_of_it_and_logged_whole(api: httpx.AsyncClient, log: list[Any]) -> None:
    answer = await api.get("/bug")
    assert answer.json()["type"] == "urn:nightshift:problem:internal-error"
    assert "private" not in answer.text
    assert "ZeroDivision" not in answer.text
    (error, context), (access, _) = log
    assert error["level"].name == "ERROR"
    assert error["exception"].type is ZeroDivisionError
    assert context.correlation_id == answer.headers["x-correlation-id"]
    assert " 500 " in access["message"]


async def test_half_an_answer_is_never_taken_for_a_whole_one(log: list[Any]) -> None:
    async with served(application()) as address, httpx.AsyncClient() as browser:
        with pytest.raises(httpx.RemoteProtocolError):
            await browser.get(f"http://{address}/half")
    assert any(record["exception"] and record["exception"].type is ZeroDivisionError for record, _ in log)


async def test_a_failure_in_the_middle_of_an_answer_reaches_the_server_which_cuts_it_off() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await call(RequestEdge(broken), http_scope())


async def test_a_client_that_goes_away_is_no_error(log: list[Any]) -> None:
    sent = await call(application(), http_scope("POST", "/raw", [(b"host", b"localhost")]), {"type": "http.disconnect"})
    assert sent == []
    ((record, _),) = log
    assert re.fullmatch(r"POST /raw 499 \d+\.\d ms", record["message"])


async def test_a_cancelled_request_is_logged_and_stays_cancelled(log: list[Any]) -> None:
    started = asyncio.Event()

    async def endless(*_: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    async def unused() -> Any:
        raise AssertionError

    task = asyncio.create_task(RequestEdge(endless)(http_scope(), unused, unused))  # type: ignore[arg-type]
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert " 499 " in log[0][0]["message"]


async def test_lifespan_passes() -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "reached"})

    for wrapped in (RequestEdge(inner), BodyLimit(inner)):
        assert await call(wrapped, {"type": "lifespan"}) == [{"type": "reached"}]


# Bodies


def json_body(size: int) -> bytes:
    return b'{"text": "' + b"x" * (size - 12) + b'"}'


async def test_a_body_up_to_the_bound_is_taken(api: httpx.AsyncClient) -> None:
    body = json_body(MAX_BODY_BYTES)
    assert len(body) == 1_048_576
    answer = await api.post("/text", content=body, headers={"Content-Type": "application/json"})
    assert answer.json() == MAX_BODY_BYTES - 12


@pytest.mark.parametrize("length", [b"1048577", b"0001048577", b"9" * 20, b"9" * 5_000])
async def test_an_announced_length_over_the_bound_is_refused_unread(length: bytes) -> None:
    headers = [(b"host", b"localhost"), (b"content-length", length)]
    start, body = await call(application(), http_scope("POST", "/text", headers))  # nothing can be received
    assert start["status"] == 413
    document = json.loads(body["body"])
    assert document["type"] == "urn:nightshift:problem:too-large"
    assert document["detail"] == "request body: expected at most 1048576 bytes"


@pytest.mark.parametrize("path", ["/text", "/raw"])
@pytest.mark.parametrize("announced", [b"", b"5", b"x", b"-1"])
async def test_a_body_is_refused_while_it_is_read_whatever_was_announced(path: str, announced: bytes) -> None:
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", announced)]
    parts = [{"type": "http.request", "body": b"x" * 65_536, "more_body": True}] * 17
    unread: dict[str, Any] = {"type": "not reached"}
    start, body = await call(application(), http_scope("POST", path, headers), *parts, unread)
    assert start["status"] == 413
    assert json.loads(body["body"])["type"] == "urn:nightshift:problem:too-large"


@pytest.mark.parametrize("path", ["/text", "/raw"])
async def test_a_real_client_that_streams_too_much_is_told_so(path: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield b"x" * 65_536

    async with served(application()) as address, httpx.AsyncClient() as browser:
        answer = await browser.post(f"http://{address}{path}", content=endless())
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_route_that_reads_no_body_is_not_bothered() -> None:
    sent = await call(application(), http_scope("GET", "/plain", [(b"host", b"localhost")]))
    assert sent[0]["status"] == 200


# Origins


async def test_with_authentication_off_a_foreign_host_is_refused() -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(application()), base_url="http://evil.example") as api:
        answer = await api.get("/plain")
    assert answer.status_code == 403


async def test_with_keys_the_host_does_not_matter_but_a_foreign_origin_does() -> None:
    app = application(Settings(auth="keys"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tasks.example") as api:
        assert (await api.get("/plain")).status_code == 200
        assert (await api.get("/plain", headers={"Origin": "https://tasks.example"})).status_code == 200
        assert (await api.get("/plain", headers={"Origin": "https://evil.example"})).status_code == 403


async def test_pages_of_an_allowed_origin_can_call_and_read_also_failures() -> None:
    async with client(application(Settings(auth="off", allowed_origins=(ORIGIN,)))) as api:
        preflight = await api.options(
            "/text",
            headers={
                "Origin": ORIGIN,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
            },
        )
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        for path in ("/plain", "/bug", "/nowhere"):
            answer = await api.get(path, headers={"Origin": ORIGIN})
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert "X-Correlation-ID" in answer.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in answer.headers
        foreign = await api.get("/plain", headers={"Origin": "https://evil.example"})
        assert foreign.status_code == 403
        assert "access-control-allow-origin" not in foreign.headers


async def test_without_allowed_origins_no_page_elsewhere_can_read(api: httpx.AsyncClient) -> None:
    answer = await api.get("/plain", headers={"Origin": "http://localhost:3000"})
    assert "access-control-allow-origin" not in answer.headers


# WebSockets


async def test_a_websocket_carries_its_correlation_id_and_is_logged(log: list[Any]) -> None:
    async with served(application()) as address:
        async with connect(f"ws://{address}/ws?ticket=t0ken", additional_headers={"X-Correlation-ID": "w-1"}) as socket:
            assert json.loads(await socket.recv()) == "w-1"
            await socket.wait_closed()
        assert socket.response is not None
        assert socket.response.headers["X-Correlation-ID"] == "w-1"
    lines = [record["message"] for record, _ in log if record["name"] == "app.api.middleware"]
    assert len(lines) == 1
    assert re.fullmatch(r"WS /ws 101 \d+\.\d ms", lines[0])


async def test_a_websocket_of_a_foreign_page_is_refused_with_a_problem() -> None:
    async with served(application()) as address:
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect(f"ws://{address}/ws", origin="https://evil.example")  # type: ignore[arg-type]
    response = refused.value.response
    assert response.status_code == 403
    assert response.headers["content-type"] == "application/problem+json"
    assert json.loads(response.body)["type"] == "urn:nightshift:problem:forbidden"


async def test_a_websocket_closed_before_it_was_accepted_is_logged_as_refused(log: list[Any]) -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.close", "code": 1008})

    await call(RequestEdge(refuse), websocket_scope())
    assert " 403 " in log[0][0]["message"]
