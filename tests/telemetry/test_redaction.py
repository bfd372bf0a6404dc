from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from app.settings import load_settings
from app.telemetry.redaction import MASK, Redactor, secret_values

redact = Redactor().redact

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1MSJ9.c2lnbmF0dXJl-_x"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abc.def-1", "Authorization: Bearer ***"),
        ("authorization: Basic dXNlcjpwYXNz", "authorization: Basic ***"),
        ("{'Authorization': 'token gho123'}", "{'Authorization': 'token ***'}"),
        ("(b'authorization', b'Bearer abc')", "(b'authorization', b'Bearer ***')"),
        ("[('authorization', 'raw-value')]", "[('authorization', '***')]"),
        ("sent Bearer abcdef and so on", "sent Bearer *** and so on"),
        ("api_key=abc123&x=1", "api_key=***&x=1"),
        ("llm_api_key='a b c' x", "llm_api_key=*** x"),
        ('{"token": "abc", "n": 1}', '{"token": ***, "n": 1}'),
        ('{"token": "a\\"b", "n": 1}', '{"token": ***, "n": 1}'),
        ('"{\\"password\\": \\"abc\\"}"', '"{\\"password\\": ***\\"}"'),
        ("password: hunter2", "password: ***"),
        ("client_secret = abc", "client_secret = ***"),
        ("X-Api-Key: abc", "X-Api-Key: ***"),
        ("token='cut in the midd", "token=***"),
        ("https://user:pa@ss@host/x", "https://user:***@host/x"),
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        ("clone https://ghtoken@host/x.git", "clone https://***@host/x.git"),
        ("GET /ws?ticket=abc&x=1", "GET /ws?ticket=***&x=1"),
        ("GET /x?X-Amz-Signature=abc", "GET /x?X-Amz-Signature=***"),
        ("https://h/v1?key=AIza123 ok", "https://h/v1?key=*** ok"),
        (f"claims of {JWT}.", "claims of ***."),
        ("key ns_k1abc_S3cretPart-of_key used", "key ns_k1abc_*** used"),
        ("using sk-proj-0123456789abcdefXYZ", "using sk-***"),
        ("remote ghp_0123456789abcdefghij", "remote ghp_***"),
        ("remote glpat-0123456789abcdefghij", "remote glpat-***"),
    ],
)
def test_a_secret_is_hidden_by_its_shape(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "max_tokens=512 prompt_tokens: 7",
        "https://host:8080/path?email=a@b",
        "ssh://git@host/repo.git",
        "git@host:owner/repo.git",
        "authorization failed",
        "redis://host:6379/0",
        "the queue ns_default is paused",
        "monkey=1 keyboard: qwerty",
        "task agent.run finished in 12 ms",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


PART = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=40)


@given(before=st.text(), name=st.sampled_from(["token", "API_KEY", "password", "x-api-key", "Secret"]), value=PART)
def test_no_value_of_a_named_secret_survives(before: str, name: str, value: str) -> None:
    marked = f"V{value}V"
    assert marked not in redact(f"{before} {name}={marked}").removeprefix(before)


@given(st.text(string.ascii_letters + "=:/@ \"'\\.*&?_-\n", max_size=300))
def test_redacting_again_changes_nothing(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@given(before=st.text(max_size=50), secret=st.text(min_size=4, max_size=50), after=st.text(max_size=50))
def test_a_known_value_is_hidden_wherever_it_stands(before: str, secret: str, after: str) -> None:
    redactor = Redactor()
    redactor.add([secret])
    if secret not in MASK * 3 and secret not in before + MASK + after:
        assert secret not in redactor.redact(before + secret + after)


def test_a_known_value_is_hidden_inside_a_url_and_when_another_one_begins_it() -> None:
    redactor = Redactor()
    redactor.add(["p@ss/word", "secr", "secret-long"])
    assert redactor.redact("at p%40ss%2Fword p@ss/word secret-long") == "at *** *** ***"


def test_a_value_too_short_to_be_a_secret_does_not_black_out_the_log() -> None:
    redactor = Redactor()
    redactor.add(["", "a", "abc"])
    assert redactor.redact("an abc") == "an abc"


@pytest.mark.parametrize(
    "piece", ["eyJ", "token=", "://a:", "a" * 7 + "://", "bearer ", "ns_", '"token": "', "sk-", "\\"]
)
def test_time_stays_linear_in_hostile_text(piece: str) -> None:
    # A quadratic expression would need minutes here, which nobody would overlook; no clock has to be read.
    redact(piece * (400_000 // len(piece)))


def test_nested_values_are_redacted_and_secret_names_hide_their_text() -> None:
    value = {
        "a": ["Bearer x", 1, None, True],
        "llm_api_key": "x",
        "max_tokens": 5,
        "accessToken": b"x",
        3: ("password=x",),
    }
    assert Redactor().redact_value(value) == {
        "a": ["Bearer ***", 1, None, True],
        "llm_api_key": "***",
        "max_tokens": 5,
        "accessToken": "***",
        "3": ["password=***"],
    }


def test_a_value_nested_too_deeply_becomes_redacted_text() -> None:
    value: object = "token=abc"
    for _ in range(50):
        value = [value]
    assert "abc" not in str(Redactor().redact_value(value))


def test_the_secrets_of_the_settings_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(
        _env_file=None,
        redis_url="rediss://me:p%40ss@host:6379/0",
        llm_api_key="the-llm-key",
        llm_base_url="https://x/v1",
    )
    assert set(secret_values(settings)) == {"p%40ss", "p@ss", "the-llm-key"}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host:6379/0", ()),
        ("redis+sentinel://:pw-1@a:1,b:2/main", ("pw-1", "pw-1")),
        ("redis://:sl/ash@host", ("sl/ash", "sl/ash")),
        ("redis://user@host", ()),
    ],
)
def test_of_a_secret_url_only_the_password_is_secret(url: str, expected: tuple[str, ...]) -> None:
    class Model(BaseModel):
        url: SecretStr

    assert secret_values(Model(url=SecretStr(url))) == expected
