"""Entity tags (RFC 9110, 8.8.3): naming a state of what is sent, and telling whether a client has it."""

from __future__ import annotations

import hashlib


def etag_of(content: bytes) -> str:
    """The entity tag of `content`, in its quotes."""
    return f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'


def matches(etag: str, if_none_match: str | None) -> bool:
    """Whether an `If-None-Match` header names `etag`. Weak comparison, as RFC 9110, 13.1.2 asks for."""
    if if_none_match is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag in tags or tags == {"*"}
