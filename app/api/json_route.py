"""Bodies are JSON as RFC 8259 has it, and are parsed once, by pydantic-core.

Python's own parser also takes NaN and Infinity, halves of surrogate pairs, and numbers of any size; none of them can be
stored and sent again as it came. It also goes as deep as the stack allows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

_POSITION = re.compile(r"^(?P<reason>.*) at line (?P<line>\d+) column (?P<column>\d+)$")
_HUGE_EXPONENT = re.compile(rb"[0-9][eE]\+?0*[0-9]{3}")
"""What a number beyond the range of a double has, unless it is written out in more than 300 digits."""
_LONG_NUMBER = re.compile(rb"(?<![0-9])[0-9]{300}")


class JsonRequest(Request):
    """A request whose `json` is strict."""

    async def json(self) -> Any:
        """The body. Raises `json.JSONDecodeError`, which FastAPI turns into a 422."""
        body = await self.body()
        try:
            value = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise _decode_error(str(error), body) from None
        if _HUGE_EXPONENT.search(body) or _LONG_NUMBER.search(body):
            json.loads(body, parse_float=_finite)
        return value


class JsonRoute(APIRoute):
    """A route whose body is strict JSON. Give it to a router as `route_class`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, which is handed our request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(JsonRequest(request.scope, request.receive))

        return handle


def _decode_error(message: str, body: bytes) -> json.JSONDecodeError:
    found = _POSITION.match(message)
    text = body.decode(errors="replace")
    if found is None:
        return json.JSONDecodeError(message, text, 0)
    before = sum(len(line) + 1 for line in text.split("\n")[: int(found["line"]) - 1])
    return json.JSONDecodeError(found["reason"], text, before + max(0, int(found["column"]) - 1))


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise json.JSONDecodeError("a number beyond the range of a double", number, 0)
    return value
