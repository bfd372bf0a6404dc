"""Reading a body within a bound, also when it is compressed.

A few kilobytes of gzip can stand for gigabytes. Decoding therefore goes in pieces, each of a bounded size, and stops
with the piece that exceeds the bound.
"""

from __future__ import annotations

import asyncio
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol

from app.clients.http import httpx, remote_errors
from app.errors import MalformedReply, ReplyTooLarge

ACCEPT_ENCODING = "gzip, deflate"
"""What we can decode within a bound; nothing else is asked for."""

PIECE_BYTES = 256 * 1_024
"""Decoded at once: about a millisecond of the loop's time."""

COMPRESSION_SLACK_BYTES = 64 * 1_024
"""A compressed body may be longer than what it stands for, by so much. More is an endless stream of empty blocks."""

_GZIP_MAGIC = b"\x1f\x8b"


class Decoder(Protocol):
    """Undoes one content coding. Both methods raise `MalformedReply`."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decoded pieces of at most `PIECE_BYTES`; nothing is decoded beyond the piece last taken."""
        ...

    def finish(self) -> bytes:
        """The last bytes, once all has been fed."""
        ...


async def read_decoded(response: httpx.Response, *, max_bytes: int, what: str) -> bytes:
    """The decoded body of a streamed response.

    Raises `ReplyTooLarge` as soon as the body, or what was sent for it, exceeds `max_bytes`; `MalformedReply` for an
    unknown or broken coding and for a body cut before its end; what `remote_errors` raises.
    """
    too_large = ReplyTooLarge(f"{what} sent more than {max_bytes} bytes")
    decoder = decoder_for(response.headers.get("content-encoding", ""), what)
    if isinstance(decoder, _Plain) and _declared_length(response) > max_bytes:
        raise too_large
    body, received = bytearray(), 0
    with remote_errors(what):
        async for part in response.aiter_raw():
            received += len(part)
            if received > max_bytes + COMPRESSION_SLACK_BYTES:
                raise too_large
            for piece in decoder.feed(part):
                body += piece
                if len(body) > max_bytes:
                    raise too_large
                await asyncio.sleep(0)
    body += decoder.finish()
    if len(body) > max_bytes:
        raise too_large
    return bytes(body)


def _declared_length(response: httpx.Response) -> int:
    declared = response.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() and len(declared) < 20 else 0


def decoder_for(content_encoding: str, what: str) -> Decoder:
    """The decoder for a `Content-Encoding`. Raises `MalformedReply` for one that was not asked for, or several."""
    coding = content_encoding.strip().lower()
    if coding in ("", "identity"):
        return _Plain()
    if coding in ("gzip", "x-gzip"):
        return _Gzip(what)
    if coding == "deflate":
        return _Deflate(what)
    raise MalformedReply(f"{what} sent content encoded as {coding[:50]!r}: expected one of {ACCEPT_ENCODING}")


class _Plain:
    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> bytes:
        return b""


class _Inflating(ABC):
    def __init__(self, what: str) -> None:
        self._what = what
        self._stream: zlib._Decompress | None = None
        self._held = b""
        """Too few bytes to tell what begins with them."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The pieces that `data` decompresses to. Raises `MalformedReply`."""
        data = self._held + data
        self._held = b""
        while data:
            if self._stream is None or self._stream.eof:
                if len(data) < len(_GZIP_MAGIC):
                    self._held = data
                    return
                if not self._begin(data):
                    return
            piece, data = self._inflate(data)
            if piece:
                yield piece

    def finish(self) -> bytes:
        if self._stream is None:
            if self._held:
                raise self._broken("it ends at its first byte")
            return b""
        try:
            rest = self._stream.flush()
        except zlib.error as error:
            raise self._broken(str(error)) from error
        if not self._stream.eof:
            raise self._broken("it ends before its end")
        return rest

    def _inflate(self, data: bytes) -> tuple[bytes, bytes]:
        assert self._stream is not None
        try:
            piece = self._stream.decompress(data, PIECE_BYTES)
        except zlib.error as error:
            raise self._broken(str(error)) from error
        return piece, self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail

    @abstractmethod
    def _begin(self, data: bytes) -> bool:
        """Open the stream that `data` begins with; False when what follows a finished one is no other."""

    def _broken(self, reason: str) -> MalformedReply:
        return MalformedReply(f"{self._what} sent compressed content that cannot be decoded: {reason}")


class _Gzip(_Inflating):
    """RFC 1952: one or more members; padding after the last is ignored, as browsers do."""

    def _begin(self, data: bytes) -> bool:
        if self._stream is not None and not data.startswith(_GZIP_MAGIC):
            return False
        self._stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
        return True


class _Deflate(_Inflating):
    """RFC 9110 means a zlib stream by `deflate`; some servers send a bare one. The first two bytes tell which."""

    def _begin(self, data: bytes) -> bool:
        if self._stream is not None:
            return False
        zlib_header = data[0] & 0x0F == zlib.DEFLATED and (data[0] << 8 | data[1]) % 31 == 0
        self._stream = zlib.decompressobj(zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS)
        return True
