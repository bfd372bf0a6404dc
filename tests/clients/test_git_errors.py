from __future__ import annotations

import base64
from urllib.parse import quote

import pytest

from app.clients.git_errors import MAX_SHOWN_CHARS, Failure, classify, redact
from app.clients.git_url import parse_repository_url
from app.errors import (
    ClientError,
    CredentialsRefused,
    GitFailed,
    NightshiftError,
    RefNotFound,
    RemoteStatus,
    RemoteTimeout,
    RemoteUnreachable,
    RepositoryNotFound,
)

HTTPS = parse_repository_url("https://h.example/a", allow_file=False)
SSH = parse_repository_url("git@h.example:a", allow_file=False)

# What git and ssh say, in the C locale.
MESSAGES: list[tuple[str, type[NightshiftError], bool]] = [
    ("fatal: Authentication failed for 'https://h.example/a/'", CredentialsRefused, False),
    (
        "fatal: could not read Username for 'https://h.example': terminal prompts disabled",
        CredentialsRefused,
        False,
    ),
    (
        "fatal: unable to access 'https://h.example/a/': The requested URL returned error: 403",
        CredentialsRefused,
        False,
    ),
    ("remote: Repository not found.\nfatal: repository 'https://h.example/a/' not found", RepositoryNotFound, False),
    ("fatal: https://h.example/a/info/refs not valid: is this a git repository?", RepositoryNotFound, False),
    (
        "fatal: '/srv/a' does not appear to be a git repository\nfatal: Could not read from remote repository.",
        RepositoryNotFound,
        False,
    ),
    ("fatal: repository '/srv/a' does not exist", RepositoryNotFound, False),
    ("fatal: unable to access 'https://h.example/a/': The requested URL returned error: 429", RemoteStatus, True),
    ("error: RPC failed; HTTP 503 curl 22 The requested URL returned error: 503", RemoteStatus, True),
    ("fatal: unable to access 'https://h.example/a/': The requested URL returned error: 410", RemoteStatus, False),
    ("fatal: unable to access 'https://h.example/a/': Could not resolve host: h.example", RemoteUnreachable, True),
    (
        "fatal: unable to access 'https://h.example/a/': Failed to connect to h.example port 443 after 130000 ms: "
        "Connection timed out",
        RemoteTimeout,
        True,
    ),
    (
        "error: RPC failed; curl 28 Operation too slow. Less than 1 bytes/sec transferred the last 60 seconds\n"
        "fatal: early EOF",
        RemoteTimeout,
        True,
    ),
    ("error: RPC failed; curl 56 Recv failure: Connection reset by peer\nfatal: early EOF", RemoteUnreachable, True),
    ("fatal: the remote end hung up unexpectedly", RemoteUnreachable, True),
    (
        "fatal: unable to access 'https://h.example/a/': server certificate verification failed. CAfile: none",
        GitFailed,
        False,
    ),
    ("fatal: couldn't find remote ref refs/heads/x", RefNotFound, False),
    ("fatal: remote error: upload-pack: not our ref 1234", RefNotFound, False),
    ("fatal: bad object refs/heads/main", GitFailed, False),
    (
        "git@h.example: Permission denied (publickey).\nfatal: Could not read from remote repository.",
        CredentialsRefused,
        False,
    ),
    ("Host key verification failed.\nfatal: Could not read from remote repository.", GitFailed, False),
    (
        "ssh: connect to host h.example port 22: Connection refused\nfatal: Could not read from remote repository.",
        RemoteUnreachable,
        True,
    ),
    ("ERROR: Repository not found.\nfatal: Could not read from remote repository.", RepositoryNotFound, False),
    ("error: No space left on device", GitFailed, False),
    ("", GitFailed, False),
]


@pytest.mark.parametrize(("stderr", "kind", "retryable"), MESSAGES)
def test_messages_become_errors(stderr: str, kind: type[ClientError], retryable: bool) -> None:
    error = classify(Failure("fetch", 128, stderr, HTTPS))
    assert type(error) is kind
    assert error.retryable is retryable


@pytest.mark.parametrize(
    ("url", "authenticated", "says"),
    [
        (HTTPS, False, "NIGHTSHIFT_GIT_TOKEN_HOST=h.example"),
        (HTTPS, True, "refuses NIGHTSHIFT_GIT_TOKEN"),
        (SSH, False, "ssh key"),
    ],
)
def test_refused_credentials_say_what_to_do(url: object, authenticated: bool, says: str) -> None:
    stderr = (
        "Permission denied (publickey)" if url is SSH else "fatal: Authentication failed for 'https://h.example/a/'"
    )
    error = classify(Failure("fetch", 128, stderr, url, secret="t" if authenticated else ""))  # type: ignore[arg-type]
    assert isinstance(error, CredentialsRefused)
    assert says in error.detail


@pytest.mark.parametrize(
    "stderr",
    [
        "fatal: ambiguous argument 'x': unknown revision or path not in the working tree.",
        "fatal: Not a valid object name x",
        "fatal: bad object 1234",
    ],
)
def test_an_unknown_name_in_a_workspace_is_a_ref_that_is_not_there(stderr: str) -> None:
    assert type(classify(Failure("log", 128, stderr))) is RefNotFound


def test_an_unknown_host_key_says_where_it_belongs() -> None:
    assert "known_hosts" in classify(Failure("fetch", 128, "Host key verification failed.", SSH)).detail


def test_an_unknown_message_is_repeated_without_hints_and_bounded() -> None:
    stderr = "x\n" * 5_000 + "hint: try this\nfatal: the end\n"
    detail = classify(Failure("gc", 1, stderr)).detail
    assert detail.endswith("x; the end")
    assert len(detail) < MAX_SHOWN_CHARS + 100


def test_silence_is_called_silence() -> None:
    assert classify(Failure("gc", 1, "\n\n")).detail.endswith("git said nothing")


@pytest.mark.parametrize("secret", ["s3cr3t", "p@ss/w:rd+1"])
def test_secrets_are_taken_out_in_every_form(secret: str) -> None:
    forms = (secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode())
    text = redact(" ".join(forms), secret)
    assert not any(form in text for form in forms)


def test_a_secret_that_is_part_of_a_message_does_not_hide_what_it_means() -> None:
    error = classify(Failure("push", 128, "fatal: The requested URL returned error: 403", HTTPS, secret="returned"))
    assert isinstance(error, CredentialsRefused)
    failed = classify(Failure("push", 128, "fatal: returned nothing", HTTPS, secret="returned"))
    assert failed.detail.endswith("*** nothing")


def test_logins_in_urls_and_control_characters_are_taken_out() -> None:
    assert redact("a 'https://u:p@h/x' \x1b[31mred\x07") == "a 'https://***@h/x' [31mred"
