"""How a log record reads: as a line for people, or as one JSON object. Pure functions over loguru's record."""

from __future__ import annotations

import re
from datetime import UTC
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from app.telemetry.context import LogContext
from app.telemetry.redaction import REDACTOR

if TYPE_CHECKING:
    from loguru import Record

MAX_MESSAGE_CHARS = 8_000
MAX_EXCEPTION_CHARS = 32_000

# The bound fields in the order in which a line shows them, with the word it uses.
_TEXT_FIELDS = (
    ("task", "task"),
    ("task_id", "id"),
    ("user_id", "user"),
    ("project_id", "project"),
    ("attempt", "attempt"),
    ("correlation_id", "correlation"),
)
_PLAIN_VALUE = re.compile(r"[^\s\"=]+")

# Everything that moves the cursor, ends a line for some reader, or changes the direction of the text.
_CONTROL = {
    **{code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))},
    **{code: f"\\u{code:04x}" for code in (0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))},
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
}  # fmt: skip


def escape_control(text: str) -> str:
    """`text` as it may stand in one line of a terminal: control characters as `\\n`, `\\x1b`, `\\u2028`.

    Whoever chooses a file name or a header must not be able to forge a log line or to drive the terminal.
    """
    return text if text.isprintable() else text.translate(_CONTROL)


def text_lines(record: Record, exception: str) -> str:
    """One line: time, level, module, message, bound fields. A traceback follows, each of its lines marked by a bar."""
    at = record["time"].isoformat(sep=" ", timespec="milliseconds")[:23]
    message = escape_control(_safe(record["message"], MAX_MESSAGE_CHARS))
    fields = "".join(f" {name}={_quoted(value)}" for name, value in _text_fields(record["extra"]))
    line = f"{at} {record['level'].name:<8} {_short_module(record['name'])}: {message}{fields}\n"
    return line + _barred(exception)


def json_line(record: Record, exception: str) -> str:
    """One JSON object: `at` (RFC 3339, UTC), `level`, `logger`, `message`, the bound fields, `extra`, `exception`.

    What is not known is left out.
    """
    document: dict[str, Any] = {
        "at": record["time"].astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record["level"].name,
        "logger": record["name"],
        "message": _safe(record["message"], MAX_MESSAGE_CHARS),
    }
    extra = REDACTOR.redact_value(record["extra"])
    document.update({name: extra.pop(name) for name in LogContext._fields if name in extra})
    if extra:
        document["extra"] = extra
    if exception:
        document["exception"] = _safe(exception.rstrip("\n"), MAX_EXCEPTION_CHARS)
    return _encoded(document)


def _encoded(document: dict[str, Any]) -> str:
    try:
        return to_json(document, inf_nan_mode="null").decode() + "\n"
    except ValueError:  # a lone surrogate, as in a file name that is not UTF-8
        return to_json(_encodable(document), inf_nan_mode="null").decode() + "\n"


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list) else value


def _safe(text: str, max_chars: int) -> str:
    clean = REDACTOR.redact(text)
    if len(clean) <= max_chars:
        return clean
    return f"{clean[:max_chars]} ... ({len(clean) - max_chars} characters more)"


def _text_fields(extra: dict[str, Any]) -> list[tuple[str, str]]:
    clean = REDACTOR.redact_value(extra)
    bound = [(label, str(clean.pop(name))) for name, label in _TEXT_FIELDS if name in clean]
    return bound + [(escape_control(name), str(value)) for name, value in clean.items()]


def _quoted(value: str) -> str:
    shown = escape_control(value)
    return shown if _PLAIN_VALUE.fullmatch(shown) else '"' + shown.replace('"', '\\"') + '"'


def _short_module(name: str | None) -> str:
    return escape_control((name or "?").removeprefix("app."))


def _barred(exception: str) -> str:
    lines = _safe(exception, MAX_EXCEPTION_CHARS).split("\n") if exception else ()
    return "".join(f"    | {escape_control(line)}\n" for line in lines if line)
