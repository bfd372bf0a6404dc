"""arq's formats in JSON: what arq writes we read, what we write arq reads."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from arq.jobs import deserialize_job, deserialize_result, serialize_job, serialize_result
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from app.engine import wire
from app.errors import InvalidInput, UndecodablePayload

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(name=st.from_regex(r"[a-z]+\.[a-z]+", fullmatch=True), params=st.dictionaries(st.text(), json_values))
def test_arq_reads_our_payloads_and_so_do_we(name: str, params: dict[str, Any]) -> None:
    data = wire.encode_payload(name, to_json(params))
    theirs, ours = deserialize_job(data, deserializer=wire.deserializer), wire.decode_payload(data)
    assert (theirs.function, theirs.kwargs, list(theirs.args), theirs.job_try) == (name, params, [], None)
    assert (ours.task, ours.kwargs, ours.args) == (name, params, [])
    assert ours.enqueued_ms == int(theirs.enqueue_time.timestamp() * 1000)


@given(args=st.lists(json_values, max_size=3), kwargs=st.dictionaries(st.text(), json_values, max_size=3))
def test_we_read_arqs_payloads(args: list[Any], kwargs: dict[str, Any]) -> None:
    data = serialize_job("test.work", tuple(args), kwargs, None, 1_763_000_000_000, serializer=wire.serializer)
    payload = wire.decode_payload(data)
    assert (payload.task, list(payload.args), payload.kwargs) == ("test.work", args, kwargs)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"f":"a.b","a":[],"k":{}}',
        b'{"f":"a.b","a":[],"k":{},"et":null}',
        b'{"f":"a.b","a":1,"k":{},"et":1}',
        b'{"f":"a.b","a":[],"k":[1],"et":1}',
        pickle.dumps({"f": "a.b", "a": (), "k": {}, "et": 1, "t": None}),
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_no_payload_is_told_with_the_way_out(data: bytes) -> None:
    with pytest.raises(UndecodablePayload, match=r"app\.engine\.wire\.serializer"):
        wire.decode_payload(data)


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((), {}, {}),
        ((1,), {}, {"a": 1}),
        ((1, 2), {}, {"a": 1, "b": 2}),
        ((1,), {"b": 2}, {"a": 1, "b": 2}),
        ((), {"other": 3}, {"other": 3}),
    ],
)
def test_positional_arguments_are_the_parameters_in_order(
    args: tuple[int, ...], kwargs: dict[str, int], expected: dict[str, int]
) -> None:
    assert wire.Payload("t.t", args, kwargs, 0).params(("a", "b")) == expected


@pytest.mark.parametrize(("args", "kwargs", "text"), [((1, 2, 3), {}, "3 positional"), ((1,), {"a": 2}, "a: given by")])
def test_arguments_too_many_or_twice_are_refused(args: tuple[int, ...], kwargs: dict[str, int], text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        wire.Payload("t.t", args, kwargs, 0).params(("a", "b"))


def encoded(payload: bytes, **changes: Any) -> bytes:
    values: dict[str, Any] = {
        "task_id": "t1",
        "queue_key": "arq:queue",
        "task": "test.work",
        "attempt": 2,
        "success": True,
        "result": b'{"n":1}',
        "started_ms": 1_763_000_000_000,
        "finished_ms": 1_763_000_000_500,
    }
    return wire.encode_result(payload=wire.decode_payload(payload) if payload else None, **values | changes)


@given(params=st.dictionaries(st.text(), json_values, max_size=3), result=json_values)
def test_arq_reads_our_results(params: dict[str, Any], result: Any) -> None:
    data = encoded(wire.encode_payload("test.work", to_json(params)), result=to_json(result))
    read = deserialize_result(data, deserializer=wire.deserializer)
    assert (read.function, read.kwargs, read.success, read.result) == ("test.work", params, True, result)
    assert (read.job_id, read.queue_name, read.job_try) == ("t1", "arq:queue", 2)
    assert (read.finish_time - read.start_time).total_seconds() == 0.5


def test_a_result_is_written_without_a_readable_payload() -> None:
    """Or a task that cannot be read would never end."""
    read = deserialize_result(encoded(b""), deserializer=wire.deserializer)
    assert (read.args, read.kwargs, read.result) == ([], {}, {"n": 1})


def test_a_failure_is_an_exception_to_arqs_clients() -> None:
    data = encoded(b"", success=False, result=b'{"type":"PermanentError","message":"no"}')
    error = deserialize_result(data, deserializer=wire.deserializer).result
    assert isinstance(error, wire.RemoteTaskFailed)
    assert str(error) == "PermanentError: no"
    assert error.error["type"] == "PermanentError"


@pytest.mark.parametrize("kind", ["CancelledError", "TaskCancelled"])
def test_a_cancelled_task_is_cancelled_to_arqs_clients(kind: str) -> None:
    data = encoded(b"", success=False, result=b'{"type":"%b","message":""}' % kind.encode())
    assert isinstance(deserialize_result(data, deserializer=wire.deserializer).result, asyncio.CancelledError)


def test_an_error_of_a_stock_worker_becomes_its_type_and_message() -> None:
    data = serialize_result(
        "f", (), {}, 1, 1, False, ValueError("no"), 1, 2, "ref", "arq:queue", "t1", serializer=wire.serializer
    )
    assert data is not None
    error = deserialize_result(data, deserializer=wire.deserializer).result
    assert error.error == {"type": "ValueError", "message": "no", "retryable": False}


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="got object"):
        wire.serializer({"k": object()})
