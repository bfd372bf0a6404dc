"""What a validation of FastAPI found, as places that a client can find: JSON pointers and parameter names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def field_errors(errors: Iterable[Any], body: Any) -> list[dict[str, str]]:
    """One `{pointer | parameter, detail}` per error of pydantic. Values that were sent are not repeated."""
    return [_field_error(error, body) for error in errors]


def json_pointer(parts: Iterable[str | int]) -> str:
    """The JSON pointer (RFC 6901) that these members and indices make; none is the whole document."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def _field_error(error: Mapping[str, Any], body: Any) -> dict[str, str]:
    place, *location = error["loc"] or ("body",)
    if place != "body":
        return {"parameter": ".".join(map(str, location)) or str(place), "detail": _detail(error)}
    if error["type"] == "json_invalid":
        reason = error.get("ctx", {}).get("error", "unexpected end")
        return {"pointer": "", "detail": f"expected JSON: {reason} at character {location[0] if location else 0}"}
    if isinstance(body, bytes):
        return {"pointer": "", "detail": "expected a JSON body with the header `Content-Type: application/json`"}
    real = _real_location(location, body, last_is_missing=error["type"] == "missing")
    return {"pointer": json_pointer(real), "detail": _detail(error)}


def _detail(error: Mapping[str, Any]) -> str:
    # What our own validators say needs no word of pydantic's before it.
    return str(error["msg"]).removeprefix("Value error, ")


def _real_location(location: Sequence[str | int], body: Any, *, last_is_missing: bool) -> list[str | int]:
    """The steps of a pydantic location that exist in the body.

    Beside members and indices pydantic names the branch of a union, or `[key]`; following one leads nowhere.
    """
    real: list[str | int] = []
    current = body
    for index, part in enumerate(location):
        if _has(current, part):
            real.append(part)
            current = current[part]
        elif last_is_missing and index == len(location) - 1:
            real.append(part)
    return real


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and 0 <= part < len(value)
