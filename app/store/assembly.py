"""Putting a Lua script together from its file, what it uses of `lua/lib.lua` and of other files, keys and limits.

A server runs all of a script's text at each call: each function that is defined, and each entry of a table that is
made, costs time even where nothing uses it. So a script gets the functions of the library that it reaches and no
others, and `K.<name>` (a key prefix) and `L.<name>` (a limit) are written out where they stand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from app.store.keys import PREFIXES

LUA_DIR = Path(__file__).parent / "lua"

LIBRARIES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("reserve_quota", "settle_quota", "park_quota", "quota_stats"), ("quota",)),
    "cancel": ("cancelling",),
    **dict.fromkeys(("enqueue_keyed", "fire_schedule"), ("cancelling", "keyed")),
}
"""Whose functions a script may use besides those of `lib.lua`."""
INCLUDES = dict.fromkeys(("enqueue_keyed", "fire_schedule"), ("enqueue",))
"""Scripts that another one calls as functions of its own, which take its ARGV as a table."""

_COMMENT = re.compile(r"^\s*--.*\n", re.MULTILINE)
_DEFINITION = re.compile(r"^local (?:function )?(\w+(?:, \w+)*)", re.MULTILINE)
_WORD = re.compile(r"\w+")
_CONSTANT = re.compile(r"\b([KL])\.(\w+)")


def assemble(name: str, limits: dict[str, float], prelude: str = "") -> str:
    """The full text of a script; `prelude` stands behind the libraries and before the script itself.

    Raises `KeyError` for a prefix or a limit that is not there.
    """
    return assemble_text(prelude + _body(name), limits, LIBRARIES.get(name, ()))


def assemble_text(body: str, limits: dict[str, float], libraries: tuple[str, ...] = ()) -> str:
    """The full text of a script whose own text is `body`."""
    pieces = tuple(piece for library in ("lib", *libraries) for piece in _pieces(library))
    text = "".join(_reached(_CONSTANT.sub("", body), pieces)) + body
    values: dict[str, Mapping[str, object]] = {
        "K": {name: f"'{prefix}'" for name, prefix in PREFIXES.items()},
        "L": limits,
    }
    return _CONSTANT.sub(lambda match: str(values[match[1]][match[2]]), text)


@cache
def _body(name: str) -> str:
    included = (f"local function {other}(ARGV)\n{_body(other)}\nend\n" for other in INCLUDES.get(name, ()))
    return "".join(included) + _text(name)


@cache
def _text(name: str) -> str:
    return _COMMENT.sub("", (LUA_DIR / f"{name}.lua").read_text("utf8"))


@cache
def _pieces(name: str) -> tuple[tuple[frozenset[str], str], ...]:
    """The definitions of a library, in order: the names that each defines, and its text."""
    text = _text(name)
    starts = [match.start() for match in _DEFINITION.finditer(text)]
    ends = [*starts[1:], len(text)]
    pieces = (text[start:end] for start, end in zip(starts, ends, strict=True))
    return tuple((_defined(piece), piece) for piece in pieces)


def _defined(piece: str) -> frozenset[str]:
    match = _DEFINITION.match(piece)
    return frozenset(match[1].split(", ")) if match else frozenset()


def _reached(body: str, pieces: tuple[tuple[frozenset[str], str], ...]) -> list[str]:
    """The pieces that a text reaches, in their order. A piece uses only what stands before it, so one pass back will
    do."""
    words = set(_WORD.findall(body))
    reached = []
    for names, piece in reversed(pieces):
        if names & words:
            reached.append(piece)
            words.update(_WORD.findall(piece))
    return reached[::-1]
