from __future__ import annotations

import gzip
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.clients.web_body import PIECE_BYTES, decoder_for
from app.errors import MalformedReply


def bare_deflate(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


def two_members(data: bytes) -> bytes:
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(data[half:])


CODINGS = [
    ("", lambda data: data),
    ("identity", lambda data: data),
    ("gzip", gzip.compress),
    ("X-GZIP", gzip.compress),
    ("gzip", two_members),
    ("gzip", lambda data: gzip.compress(data) + b"\x00" * 7),
    ("deflate", zlib.compress),
    ("deflate", bare_deflate),
    ("deflate", lambda data: zlib.compress(data) + b"rest"),
]


@pytest.mark.parametrize(("coding", "encode"), CODINGS)
@given(data=st.binary(max_size=2_000), step=st.integers(1, 700))
def test_what_was_encoded_is_decoded_however_it_is_cut(coding: str, encode: object, data: bytes, step: int) -> None:
    sent = encode(data)  # type: ignore[operator]
    decoder = decoder_for(coding, "the page")
    pieces = [piece for start in range(0, len(sent), step) for piece in decoder.feed(sent[start : start + step])]
    assert b"".join(pieces) + decoder.finish() == data


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_decoded_no_further_than_its_pieces_are_taken(coding: str) -> None:
    size = 50_000_000
    bomb = gzip.compress(bytes(size)) if coding == "gzip" else zlib.compress(bytes(size))
    pieces = decoder_for(coding, "the page").feed(bomb)
    taken = [next(pieces) for _ in range(4)]
    assert [len(piece) for piece in taken] == [PIECE_BYTES] * 4


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("kept", [1, 2, 11, 30])
def test_a_body_cut_before_its_end_is_malformed(coding: str, kept: int) -> None:
    whole = (gzip.compress if coding == "gzip" else zlib.compress)(bytes(range(256)))
    decoder = decoder_for(coding, "the page")
    with pytest.raises(MalformedReply, match="the page sent compressed content"):
        b"".join([*decoder.feed(whole[:kept]), decoder.finish()])


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@given(data=st.binary(min_size=1, max_size=200))
def test_garbage_is_malformed_or_happens_to_be_valid_but_nothing_else(coding: str, data: bytes) -> None:
    decoder = decoder_for(coding, "the page")
    with suppress(MalformedReply):
        b"".join([*decoder.feed(data), decoder.finish()])


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "x" * 1_000])
def test_a_coding_that_was_not_asked_for_is_malformed(coding: str) -> None:
    with pytest.raises(MalformedReply, match="expected one of gzip, deflate"):
        decoder_for(coding, "the page")


@pytest.mark.parametrize("coding", ["", "gzip", "deflate"])
def test_no_body_at_all_is_an_empty_body(coding: str) -> None:
    assert decoder_for(coding, "the page").finish() == b""
