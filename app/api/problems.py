"""Errors as problem documents (RFC 9457): whatever goes wrong, the client reads the same shape.

`install_problem_handlers` covers what routes raise. What fails outside of them (a body over its bound, a foreign
origin, a bug) is answered by `app.api.middleware` with the same `problem_response`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import redis.exceptions
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from loguru import logger
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope
from starlette.websockets import WebSocket

from app.api.field_errors import field_errors
from app.errors import (
    Conflict,
    Forbidden,
    Gone,
    InvalidInput,
    NightshiftError,
    NotFound,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from app.telemetry import current_correlation_id

PROBLEM_JSON = "application/problem+json"
PROBLEM_TYPE = "urn:nightshift:problem:"

MAX_FIELD_ERRORS = 100
"""Wrong fields that are listed; `error_count` says when there were more."""

MAX_CLOSE_REASON_BYTES = 123
"""RFC 6455, 5.5: a control frame holds 125 bytes, two of them the code."""

STORE_RETRY_AFTER_S = 1.0
"""A lost connection to Redis is mostly back within a second; a fail-over takes a few."""

STORE_ERRORS = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,  # a fail-over: this server has just become a replica
    redis.exceptions.OutOfMemoryError,
)

_CLASS_OF_STATUS: dict[int, type[NightshiftError]] = {
    error.status_code: error
    for error in (InvalidInput, Unauthorized, Forbidden, NotFound, Conflict, Gone, TooLarge, Unavailable)
}

_KNOWN_STATUSES = frozenset(HTTPStatus)


class FieldError(BaseModel):
    """One thing that is wrong with a request."""

    pointer: str | None = Field(None, description="JSON pointer (RFC 6901) to the place in the body.")
    parameter: str | None = Field(None, description="Name of the query, path, header or cookie parameter.")
    detail: str


class Problem(BaseModel):
    """A problem document (RFC 9457). Some problems carry further members."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="What kind of problem: `urn:nightshift:problem:<name>`.")
    title: str
    status: int
    detail: str
    instance: str = Field(description="The path that was called.")
    correlation_id: str | None = Field(None, description="Under which the service's log tells more.")
    pointer: str | None = Field(None, description="JSON pointer to the first wrong place in the body.")
    errors: list[FieldError] | None = Field(None, description="All that is wrong with the request.")


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a client is told, before it is known over which protocol. `name` is in CamelCase, as our classes are."""

    status: int
    name: str
    title: str
    detail: str
    members: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


def problem_response(scope: Scope, error: NightshiftError) -> Response:
    """The answer that tells a client of `error`, with the headers that go with it."""
    return _response(scope, _of_nightshift_error(error))


def internal_error_response(scope: Scope) -> Response:
    """The answer for a bug: no word of what happened, but the correlation id under which the log tells it."""
    detail = "something failed here; the service's log says what, under the correlation id"
    return _response(scope, _Answer(500, "InternalError", "Internal error", detail))


def install_problem_handlers(app: FastAPI) -> None:
    """Answer everything that routes of `app` raise on purpose, and a lost Redis, with problem documents.

    A WebSocket whose endpoint raises is closed: 1008, 1011 for a failure of ours, 1013 when it may come again later.
    """
    kinds = (NightshiftError, HTTPException, RequestValidationError, WebSocketRequestValidationError, *STORE_ERRORS)
    for kind in kinds:
        app.add_exception_handler(kind, _handle)


async def _handle(connection: Any, error: Exception) -> Any:
    answer = _answer(connection.scope, error)
    if answer.status == 500:
        logger.opt(exception=error).error("{}: {}", answer.title, answer.detail)
    if isinstance(connection, WebSocket):
        return await _close(connection, answer)
    return _response(connection.scope, answer)


def _answer(scope: Scope, error: Exception) -> _Answer:
    if isinstance(error, NightshiftError):
        return _of_nightshift_error(error)
    if isinstance(error, HTTPException):
        return _of_http_exception(scope, error)
    if isinstance(error, (RequestValidationError, WebSocketRequestValidationError)):
        return _of_validation_error(error)
    logger.warning("Redis cannot be used: {}: {}", type(error).__name__, error)
    detail = "the task store cannot be reached; nothing is lost"
    return _of_nightshift_error(Unavailable(detail, retry_after_s=STORE_RETRY_AFTER_S))


def _of_nightshift_error(error: NightshiftError) -> _Answer:
    members = error.extra()
    if error.pointer is not None:
        faults = error.faults if isinstance(error, InvalidInput) else ((error.pointer, error.detail),)
        errors = [{"pointer": pointer, "detail": detail} for pointer, detail in faults[:MAX_FIELD_ERRORS]]
        members = {"pointer": error.pointer, "errors": errors, **members}
    wait_s = error.retry_after_s
    headers = {} if wait_s is None else {"retry-after": str(max(0, math.ceil(wait_s)))}
    return _Answer(error.status_code, type(error).__name__, error.title, error.detail, members, headers)


def _of_http_exception(scope: Scope, error: HTTPException) -> _Answer:
    headers = {key.lower(): value for key, value in (error.headers or {}).items()}
    name, title = _kind_of_status(error.status_code)
    detail = str(error.detail)
    if detail == _phrase(error.status_code):
        if error.status_code == 404:
            detail = f"there is nothing at {scope['path']}"
        elif error.status_code == 405:
            detail = f"{scope['method']} is not possible at {scope['path']}: expected {headers.get('allow', 'another')}"
    return _Answer(error.status_code, name, title, detail, headers=headers)


def _of_validation_error(error: RequestValidationError | WebSocketRequestValidationError) -> _Answer:
    found = field_errors(error.errors(), getattr(error, "body", None))
    first = found[0]
    where = first.get("parameter") or first.get("pointer")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    detail = (f"{where}: " if where else "") + first["detail"] + more
    members: dict[str, Any] = {"errors": found[:MAX_FIELD_ERRORS]}
    if len(found) > MAX_FIELD_ERRORS:
        members["error_count"] = len(found)
    if "pointer" in first:
        members["pointer"] = first["pointer"]
    return _Answer(InvalidInput.status_code, InvalidInput.__name__, InvalidInput.title, detail, members)


def _kind_of_status(status: int) -> tuple[str, str]:
    known = _CLASS_OF_STATUS.get(status)
    if known is not None:
        return known.__name__, known.title
    phrase = _phrase(status)
    return phrase.title().replace(" ", ""), phrase.capitalize()


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in _KNOWN_STATUSES else f"Status {status}"


async def _close(socket: WebSocket, answer: _Answer) -> None:
    code = 1013 if answer.status == 503 else 1011 if answer.status >= 500 else 1008
    fits = len(answer.detail.encode(errors="replace")) <= MAX_CLOSE_REASON_BYTES
    await socket.close(code, answer.detail if fits else answer.title)


def _response(scope: Scope, answer: _Answer) -> Response:
    headers = dict(answer.headers)
    if answer.status == 401:
        headers.setdefault("www-authenticate", _challenge(scope))
    if answer.status < 200 or answer.status in (204, 304):
        return Response(status_code=answer.status, headers=headers)
    return Response(_encoded(_document(scope, answer)), answer.status, headers, PROBLEM_JSON)


def _document(scope: Scope, answer: _Answer) -> dict[str, Any]:
    document: dict[str, Any] = {
        "type": PROBLEM_TYPE + _kebab(answer.name),
        "title": answer.title,
        "status": answer.status,
        "detail": answer.detail,
        "instance": quote(scope["path"], safe="/:@!$&'()*+,;=~", errors="replace"),
    }
    if correlation_id := current_correlation_id():
        document["correlation_id"] = correlation_id
    return {**answer.members, **document}


def _encoded(document: dict[str, Any]) -> bytes:
    try:
        return to_json(document, inf_nan_mode="null", fallback=str)
    except ValueError:  # a lone surrogate from the client's JSON, quoted in a detail: escaped, as it came
        return json.dumps(document, default=str).encode()


def _challenge(scope: Scope) -> str:
    # RFC 6750, 3.1: without credentials no error code, so that a client can tell "log in" from "log in again".
    sent = any(name == b"authorization" for name, _ in scope["headers"])
    return 'Bearer realm="nightshift"' + (', error="invalid_token"' if sent else "")


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
