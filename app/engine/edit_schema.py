"""Checks edits of an approval against the JSON schema of the type that its task asked for.

The process that takes a decision need not have the type, so what it checks is the schema, as pydantic writes it (JSON
Schema 2020-12): types, members, items, bounds, patterns, choices, formats of times and ids. What only code can check
(validators of the author's own) is checked when the task reads the decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any
from uuid import UUID

from pydantic import StringConstraints, TypeAdapter, ValidationError

Fault = tuple[str, str]
"""A JSON pointer, and what is wrong there."""
MAX_FAULTS = 20

_TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and value == math.floor(value)
    ),
}
_FORMATS: dict[str, TypeAdapter[Any]] = {
    name: TypeAdapter(kind)
    for name, kind in {"date-time": datetime, "date": date, "time": time, "duration": timedelta, "uuid": UUID}.items()
}
_BOUNDS: tuple[tuple[str, Callable[[Any, Any], bool], str], ...] = (
    ("minimum", lambda value, bound: value >= bound, "at least"),
    ("maximum", lambda value, bound: value <= bound, "at most"),
    ("exclusiveMinimum", lambda value, bound: value > bound, "more than"),
    ("exclusiveMaximum", lambda value, bound: value < bound, "less than"),
)


def faults_of(schema: Mapping[str, Any], value: Any) -> list[Fault]:
    """What of a JSON value the schema does not allow, 20 faults at most."""
    return list(islice(_Check(schema.get("$defs", {})).faults(schema, value, ""), MAX_FAULTS))


class _Check:
    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions

    def faults(self, schema: Any, value: Any, at: str) -> Iterator[Fault]:
        """All that is wrong with the value at the pointer `at`."""
        if not isinstance(schema, Mapping):
            if schema is False:
                yield at, "expected nothing here"
            return
        if "$ref" in schema:
            yield from self.faults(self._definitions.get(str(schema["$ref"]).rpartition("/")[2], True), value, at)
        for part in schema.get("allOf", ()):
            yield from self.faults(part, value, at)
        yield from self._choices(schema, value, at)
        yield from self._own(schema, value, at)

    def _choices(self, schema: Mapping[str, Any], value: Any, at: str) -> Iterator[Fault]:
        for word in ("anyOf", "oneOf"):
            branches = [list(islice(self.faults(branch, value, at), MAX_FAULTS)) for branch in schema.get(word, ())]
            if branches and all(branches):
                # The branch that got furthest is what was most likely meant.
                yield from max(branches, key=lambda branch: max(len(pointer) for pointer, _ in branch))

    def _own(self, schema: Mapping[str, Any], value: Any, at: str) -> Iterator[Fault]:
        wanted = schema.get("type")
        kinds = [wanted] if isinstance(wanted, str) else wanted or []
        if kinds and not any(_TYPES[kind](value) for kind in kinds):
            yield at, f"expected {' or '.join(kinds)}"
            return
        choices = [schema["const"]] if "const" in schema else schema.get("enum")
        if choices is not None and value not in choices:
            yield at, f"expected one of {str(choices)[:200]}"
        if isinstance(value, str):
            yield from _of_text(schema, value, at)
        elif isinstance(value, list):
            yield from self._of_list(schema, value, at)
        elif isinstance(value, dict):
            yield from self._of_object(schema, value, at)
        elif _TYPES["number"](value):
            for word, holds, words in _BOUNDS:
                if word in schema and not holds(value, schema[word]):
                    yield at, f"expected {words} {schema[word]}"

    def _of_list(self, schema: Mapping[str, Any], value: Sequence[Any], at: str) -> Iterator[Fault]:
        yield from _of_length(schema, "Items", value, at)
        first = schema.get("prefixItems", ())
        for index, item in enumerate(value):
            yield from self.faults(
                first[index] if index < len(first) else schema.get("items", True), item, f"{at}/{index}"
            )

    def _of_object(self, schema: Mapping[str, Any], value: Mapping[str, Any], at: str) -> Iterator[Fault]:
        members = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{at}/{_escaped(name)}", "this is missing"
        for name, item in value.items():
            yield from self.faults(
                members.get(name, schema.get("additionalProperties", True)), item, f"{at}/{_escaped(name)}"
            )


def _of_text(schema: Mapping[str, Any], value: str, at: str) -> Iterator[Fault]:
    yield from _of_length(schema, "Length", value, at)
    if "pattern" in schema and not _accepts(_pattern(schema["pattern"]), value):
        yield at, f"expected a match of {schema['pattern'][:200]}"
    wanted = schema.get("format")
    if wanted in _FORMATS and not _accepts(_FORMATS[wanted], value):
        yield at, f"expected a {wanted}"


def _of_length(schema: Mapping[str, Any], word: str, value: Sequence[Any], at: str) -> Iterator[Fault]:
    what = "characters" if word == "Length" else "items"
    if len(value) < schema.get(f"min{word}", 0):
        yield at, f"expected at least {schema[f'min{word}']} {what}"
    if len(value) > schema.get(f"max{word}", math.inf):
        yield at, f"expected at most {schema[f'max{word}']} {what}"


@lru_cache(maxsize=200)
def _pattern(pattern: str) -> TypeAdapter[str]:
    # Pydantic's own engine: the one the pattern was written for, and no text makes it take long.
    return TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])


def _accepts(adapter: TypeAdapter[Any], value: str) -> bool:
    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
