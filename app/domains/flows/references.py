"""Templates: JSON in which outputs are referred to.

    {"$from": "page.links.0"}                             the value at a path in an output: members and indices
    {"$join": ["Summarise: ", {"$from": "page.text"}]}    a text; what is no text in it stands there as JSON
    {"$value": {"$from": "as it stands"}}                 anything, taken as it is

(Not `$ref`, which tools that read OpenAPI follow, also in examples.) An object with a member whose name begins with `$`
is one of these three and nothing else; all other JSON stands for itself. Nothing is evaluated, and what a reference
brings in is never looked into for further ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from app.errors import InvalidInput

MAX_LEVELS = 64
"""Of JSON within JSON in a template."""
NAME = r"[A-Za-z_][A-Za-z0-9_-]{0,63}"
REF = re.compile(rf"{NAME}(\.[^.\x00-\x1f\x7f]{{1,200}}){{0,32}}")
FORMS = ("$from", "$join", "$value")


@dataclass(frozen=True, slots=True)
class Place:
    """A reference in a template, or, where there is a `fault`, what is wrong. `pointer` is a JSON pointer to it."""

    pointer: str
    ref: str
    fault: str = ""


def name_of(ref: str) -> str:
    """The output that a reference begins at."""
    return ref.partition(".")[0]


def places(template: Any, at: str = "", level: int = 0) -> Iterator[Place]:
    """Every reference in a template, and all that is wrong with it, with `at` before the pointers."""
    if level > MAX_LEVELS:
        yield Place(at, "", f"expected at most {MAX_LEVELS} levels")
    elif isinstance(template, list):
        yield from _inside(enumerate(template), at, level)
    elif isinstance(template, dict):
        form = form_of(template)
        if form is None:
            yield from _inside(template.items(), at, level)
        else:
            yield from _special(template, form, at, level)


def form_of(template: dict[str, Any]) -> str | None:
    """The first member whose name is that of a form, or looks like one; None: the object stands for itself."""
    return next((key for key in template if key.startswith("$")), None)


def _inside(items: Iterable[tuple[Any, Any]], at: str, level: int) -> Iterator[Place]:
    for key, value in items:
        step = str(key).replace("~", "~0").replace("/", "~1")
        yield from places(value, f"{at}/{step}", level + 1)


def _special(template: dict[str, Any], form: str, at: str, level: int) -> Iterator[Place]:
    value = template[form]
    if form not in FORMS or len(template) > 1:
        expected = ", ".join(FORMS)
        yield Place(at, "", f"{form[:80]!r}: expected one of {expected}, alone in its object")
    elif form == "$from":
        is_one = isinstance(value, str) and REF.fullmatch(value)
        yield Place(at, value) if is_one else Place(f"{at}/$from", "", "expected a reference such as name.member.0")
    elif form == "$join":
        if isinstance(value, list):
            yield from _inside(enumerate(value), f"{at}/$join", level + 1)
        else:
            yield Place(f"{at}/$join", "", "expected a list of texts and references")


def fill(template: Any, look_up: Callable[[str], Any]) -> Any:
    """The template with what its references stand for. It must have no faults (see `places`). Raises what `look_up`
    raises."""
    if isinstance(template, list):
        return [fill(item, look_up) for item in template]
    if not isinstance(template, dict):
        return template
    match form_of(template):
        case "$from":
            return look_up(template["$from"])
        case "$join":
            return "".join(_text(fill(item, look_up)) for item in template["$join"])
        case "$value":
            return template["$value"]
    return {key: fill(value, look_up) for key, value in template.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else to_json(value).decode()


def follow(ref: str, value: Any) -> Any:
    """What a reference leads to in the output that it begins at. Raises `InvalidInput`, which says where it ends."""
    name, *path = ref.split(".")
    walked = name
    for part in path:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isascii() and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise InvalidInput(f"reference {ref!r}: expected {part!r} in {walked!r}, which is {_described(value)}")
        walked += f".{part}"
    return value


def _described(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with {', '.join(sorted(value)[:20]) or 'no members'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "null" if value is None else f"a {type(value).__name__}"
