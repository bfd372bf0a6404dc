from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.clients.git_url import (
    MAX_PATH_BYTES,
    MAX_REF_BYTES,
    MAX_URL_CHARS,
    RepositoryUrl,
    Scheme,
    check_host,
    check_path,
    check_ref,
    check_revision,
    is_commit_id,
    parse_repository_url,
    shown,
)
from app.errors import InvalidInput, UnsafeUrl

HTTPS, SSH, FILE = Scheme.HTTPS, Scheme.SSH, Scheme.FILE

ACCEPTED = [
    ("https://example.org/a/b.git", RepositoryUrl(HTTPS, "example.org", "/a/b.git"), "https://example.org/a/b.git"),
    ("HTTPS://Example.ORG:443/a/b/", RepositoryUrl(HTTPS, "example.org", "/a/b"), "https://example.org/a/b"),
    ("https://h:8443/x", RepositoryUrl(HTTPS, "h", "/x", port=8443), "https://h:8443/x"),
    ("https://127.0.0.1/x%20y", RepositoryUrl(HTTPS, "127.0.0.1", "/x%20y"), "https://127.0.0.1/x%20y"),
    ("ssh://git@h/a.git", RepositoryUrl(SSH, "h", "/a.git", user="git"), "ssh://git@h/a.git"),
    ("ssh://h:2222/a", RepositoryUrl(SSH, "h", "/a", port=2222), "ssh://h:2222/a"),
    ("ssh://git@h:22/~ada/a", RepositoryUrl(SSH, "h", "/~ada/a", user="git"), "ssh://git@h/~ada/a"),
    ("git@h.example:a/b.git", RepositoryUrl(SSH, "h.example", "a/b.git", user="git"), "git@h.example:a/b.git"),
    ("git@h:/a/b", RepositoryUrl(SSH, "h", "/a/b", user="git"), "ssh://git@h/a/b"),
    ("/srv/git/a b.git/", RepositoryUrl(FILE, "", "/srv/git/a b.git"), "/srv/git/a b.git"),
    ("file:///srv/a%20b", RepositoryUrl(FILE, "", "/srv/a b"), "/srv/a b"),
    ("file://localhost/srv/a", RepositoryUrl(FILE, "", "/srv/a"), "/srv/a"),
]

REFUSED = [
    "",
    "repo",
    "./repo",
    "../repo",
    "~/repo",
    "C:\\repo",
    "http://example.org/a",
    "git://example.org/a",
    "ftp://example.org/a",
    "rsync://example.org/a",
    "git+ssh://example.org/a",
    "ext::sh -c touch% /tmp/owned",
    "ext::https://example.org/a",
    "fd::17",
    "EXT::sh",
    "https::https://example.org/a",
    "https://example.org/a::b",
    "git@[::1]:a",
    "https://[::1]/a",
    "https:/example.org/a",
    "https:example.org/a",
    "https://",
    "https:///a",
    "https://example.org",
    "https://example.org/",
    "https://ada:secret@example.org/a",
    "https://secret@example.org/a",
    "https://@example.org/a",
    "ssh://git:secret@example.org/a",
    "ssh://@example.org/a",
    "ssh://-oProxyCommand=touch@example.org/a",
    "git:secret@example.org:a",
    "host:path",
    "--upload-pack=touch /tmp/owned",
    "-u",
    "ssh://-oProxyCommand=x/a",
    "-oProxyCommand=x:a",
    "git@-oProxyCommand=x:a",
    "git@example.org:-a",
    "ssh://example.org/-a",
    "https://example.org/--upload-pack=x",
    "https://example.org/a/../b",
    "https://example.org/a/%2e%2e/b",
    "https://example.org/a/./b",
    "https://exa..mple.org/a",
    "https://.example.org/a",
    "https://example.org./a",
    "https://exam ple.org/a",
    "https://example.org/a b",
    "https://example.org/a\nb",
    "https://example.org/a%0ab",
    "https://example.org/a%00b",
    "https://example.org/a%zz",
    "https://example.org/%ff",
    "https://example.org/a?token=secret",
    "https://example.org/a#secret",
    "https://example.org/$(id)",
    "https://example.org/`id`",
    "https://example.org/a;id",
    "https://example.org/a'b",
    "https://example.org\\@evil.example/a",
    "https://example.org:0/a",
    "https://example.org:65536/a",
    "https://example.org:x/a",
    "https://example.org:80:80/a",
    "https://bücher.example/a",
    "https://" + "a" * 64 + ".example/a",
    "https://example.org/" + "a" * MAX_URL_CHARS,
    "file://example.org/a",
    "file://localhostevil/a",
    "file:///",
    "/",
    "/srv/../etc",
    "/srv/-x",
    "/srv/a\tb",
    "/srv/a::b",
    " /srv/a",
    "\u2028/srv/a",
]


@pytest.mark.parametrize(("url", "parts", "canonical"), ACCEPTED)
def test_accepted_urls_are_taken_apart(url: str, parts: RepositoryUrl, canonical: str) -> None:
    parsed = parse_repository_url(url, allow_file=True)
    assert parsed == parts
    assert parsed.canonical == canonical


@pytest.mark.parametrize("url", REFUSED)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(UnsafeUrl):
        parse_repository_url(url, allow_file=True)


@pytest.mark.parametrize("url", ["/srv/a", "file:///srv/a", "FILE:///srv/a"])
def test_repositories_on_this_machine_need_leave(url: str) -> None:
    with pytest.raises(UnsafeUrl, match="NIGHTSHIFT_GIT_ALLOW_FILE_URLS"):
        parse_repository_url(url, allow_file=False)


@pytest.mark.parametrize("url", [url for url in REFUSED if "secret" in url])
def test_a_refusal_does_not_repeat_the_secret(url: str) -> None:
    with pytest.raises(UnsafeUrl) as caught:
        parse_repository_url(url, allow_file=True)
    assert "secret" not in caught.value.detail


@pytest.mark.parametrize(
    "value",
    ["https://u:pa?secret@h/a", "https:/u:secret@h", "u:secret@h:p", "http://h/?secret#a@b", "https://a@secret@h/x"],
)
def test_what_could_be_a_secret_is_not_shown(value: str) -> None:
    assert "secret" not in shown(value)
    assert "h" in shown(value)


def test_a_long_value_is_shown_cut() -> None:
    assert len(shown("x" * 10_000)) < 250


@given(st.text(max_size=60) | st.text("ghto@:/.-%~ps[]ext0", max_size=40))
def test_what_is_accepted_keeps_its_meaning_and_cannot_be_an_option(url: str) -> None:
    try:
        parsed = parse_repository_url(url, allow_file=True)
    except UnsafeUrl as error:
        assert len(error.detail) < 600
        return
    assert parse_repository_url(parsed.canonical, allow_file=True) == parsed
    assert not parsed.canonical.startswith("-")
    assert not parsed.host.startswith("-")
    assert "::" not in parsed.canonical
    assert not any(ord(char) < 32 for char in parsed.canonical)
    assert parsed.name not in ("", ".", "..")


@given(st.sampled_from(["https", "ssh"]), st.from_regex(r"[a-z]{1,9}(\.[a-z]{1,9}){0,2}", fullmatch=True), st.text())
def test_nothing_in_a_path_changes_the_host(scheme: str, host: str, path: str) -> None:
    try:
        parsed = parse_repository_url(f"{scheme}://{host}/{path}", allow_file=False)
    except UnsafeUrl:
        return
    assert (parsed.scheme, parsed.host, parsed.user) == (scheme, host, None)


def test_a_repository_is_called_by_the_last_part_of_its_path() -> None:
    names = {"git@h:a/b.git": "b", "https://h/x": "x", "/srv/checkout/.git": "checkout"}
    assert {url: parse_repository_url(url, allow_file=True).name for url in names} == names


@pytest.mark.parametrize(("text", "host"), [("Example.org", "example.org"), ("h:8443", "h:8443")])
def test_hosts_are_lower_case(text: str, host: str) -> None:
    assert check_host(text) == host


@pytest.mark.parametrize("host", ["", "-h", "h/x", "u@h", "h:0", "h\n", "*.example.org", "https://h"])
def test_other_hosts_are_refused(host: str) -> None:
    with pytest.raises(UnsafeUrl):
        check_host(host)


GOOD_REFS = ["main", "feature/x-1", "v1.0", "refs/heads/a", "ünïcode", "a.b/c", "x@y", "a" * MAX_REF_BYTES]
BAD_REFS = [
    "",
    "-x",
    "--upload-pack=x",
    "a..b",
    "a@{1}",
    "@",
    "HEAD",
    "a b",
    "a~1",
    "a^",
    "a:b",
    "a?",
    "a*",
    "a[b",
    "a\\b",
    "a//b",
    "/a",
    "a/",
    "a.",
    ".a",
    "a/.b",
    "a.lock",
    "a.lock/b",
    "a\n",
    "a\x00",
    "a\x7f",
    "a\ud800",
    "a" * (MAX_REF_BYTES + 1),
]


@pytest.mark.parametrize("ref", GOOD_REFS)
def test_names_that_git_allows_are_refs(ref: str) -> None:
    assert check_ref(ref) == ref


@pytest.mark.parametrize("ref", BAD_REFS)
def test_other_names_are_no_refs(ref: str) -> None:
    with pytest.raises(InvalidInput):
        check_ref(ref)


@settings(max_examples=60, deadline=None)
@given(st.text("ab-./@{~^: *[\\lock\x7fé", min_size=1, max_size=12))
def test_every_accepted_ref_is_one_for_git(ref: str) -> None:
    try:
        check_ref(ref)
    except InvalidInput:
        return
    assert (
        subprocess.run(["git", "check-ref-format", "--branch", ref], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.parametrize("revision", ["HEAD", "HEAD~2", "main^1", "v1^", "a" * 40, "abc123", "refs/heads/x~3^2"])
def test_revisions(revision: str) -> None:
    assert check_revision(revision) == revision


@pytest.mark.parametrize(
    "revision",
    ["", "-1", "--all", "HEAD:x", ":x", "a..b", "a...b", "@{-1}", "HEAD^{tree}", "HEAD^{/x}", "^HEAD", "~1", "a b"],
)
def test_no_revisions(revision: str) -> None:
    with pytest.raises(InvalidInput):
        check_revision(revision)


@pytest.mark.parametrize(
    "path", ["a", "a/b.txt", ".gitignore", ".github/x", "a b", "日本/　x", "a.git/x", ".gitattributes"]
)
def test_paths(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a/./b",
        "a//b",
        "a/",
        "-x",
        "a/-x",
        ".git/config",
        "a/.git/hooks/post-commit",
        ".GIT/config",
        ".git./config",
        ".git /config",
        ".g\u200cit/config",
        "GIT~1/config",
        "a\\b",
        "a\nb",
        "a\x00b",
        "a\ud800",
        "a" * (MAX_PATH_BYTES + 1),
    ],
)
def test_no_paths(path: str) -> None:
    with pytest.raises(InvalidInput):
        check_path(path)


def test_commit_ids_are_whole() -> None:
    assert is_commit_id("a" * 40)
    assert is_commit_id("0" * 64)
    assert not any(is_commit_id(text) for text in ("a" * 39, "a" * 41, "g" * 40, "A" * 40, "a" * 40 + "\n"))
