"""Frames of the WebSocket: what is read, what is refused, and the limit on their rate."""

from __future__ import annotations

import pytest
from pydantic_core import from_json

from app.api.ws_frames import (
    MAX_FRAME_BYTES,
    FrameRate,
    LimitExceeded,
    check_size,
    close_code,
    close_reason,
    parse_frame,
)
from app.errors import InvalidInput, NotFound, Unauthorized, Unavailable

NO_FRAMES = [
    *("", "no", "[]", "1", '"ping"', "null", "{}", "[" * 10_000),
    *('{"type":1}', '{"type":""}', '{"type":"ping"', '{"type":"\\ud800"}'),
    *('{"type":"ping","correlation_id":7}', '{"type":"ping","correlation_id":""}'),
    '{"type":"ping","correlation_id":"' + "x" * 129 + '"}',
]


@pytest.mark.parametrize("text", NO_FRAMES)
def test_what_is_no_frame_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_frame(text)


def test_answers_repeat_the_correlation_id() -> None:
    frame = parse_frame('{"type":"ping","correlation_id":"a b"}')
    assert from_json(frame.answer("pong")) == {"type": "pong", "correlation_id": "a b"}
    assert from_json(parse_frame('{"type":"ping"}').answer("pong", n=1)) == {"type": "pong", "n": 1}


def test_fields_are_texts_or_missing() -> None:
    frame = parse_frame('{"type":"subscribe","channel":1,"last_event_id":null}')
    assert frame.optional_text("last_event_id") is None
    for name in ("channel", "missing"):
        with pytest.raises(InvalidInput, match=rf"subscribe\.{name}: expected a string"):
            frame.text(name)


def test_a_frame_of_64_kib_is_the_largest_counted_in_bytes() -> None:
    check_size("x" * MAX_FRAME_BYTES)
    for text in ("x" * (MAX_FRAME_BYTES + 1), "ä" * (MAX_FRAME_BYTES // 2 + 1)):
        with pytest.raises(LimitExceeded, match="65536 bytes"):
            check_size(text)


def test_a_hundred_frames_a_minute_wherever_the_minute_begins() -> None:
    now = 0.0
    rate = FrameRate(clock=lambda: now)
    for second in range(100):
        now = 30 + second / 4
        rate.count()
    now = 30 + 59.75
    with pytest.raises(LimitExceeded, match="100 a minute"):
        rate.count()
    now = 30 + 60.0
    rate.count()
    with pytest.raises(LimitExceeded):
        rate.count()
    now = 30 + 60.25
    rate.count()


def test_a_close_says_whether_to_come_again() -> None:
    assert close_code(Unauthorized("x")) == 1008
    assert close_code(NotFound("x")) == 1008
    assert close_code(Unavailable("x")) == 1013
    assert close_code(ConnectionError("x")) == 1013
    assert close_reason(Unauthorized("no key")) == "no key"
    assert close_reason(Unauthorized("ä" * 62)) == "Unauthorized"
