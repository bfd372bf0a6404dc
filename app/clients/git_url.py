"""Which repositories, refs, revisions and paths may be named to git: pure rules, no effects.

git gives meaning to text in many places: `-` starts an option, `name::` runs a helper program, `:` splits a host or a
revision from a path, `@{` reads the reflog. Text from outside is therefore matched against what is known to be
harmless, and everything else is refused with `UnsafeUrl` or `InvalidInput`. Commands add `--` besides.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import unquote_to_bytes

from app.errors import InvalidInput, UnsafeUrl

MAX_URL_CHARS: Final = 2_048
MAX_REF_BYTES: Final = 250
"""A ref is a file below `.git/refs`, and a name of a file has at most 255 bytes."""
MAX_PATH_BYTES: Final = 4_096
_SHOWN_CHARS: Final = 200
_DEFAULT_PORTS: Final = {"https": 443, "ssh": 22}

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_LOGIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_REMOTE_PATH = re.compile(r"(?:[A-Za-z0-9._~+@,=/-]|%[0-9A-Fa-f]{2})+")
_SCP = re.compile(r"([^/@:]*)@([^/@:]*):([^:]+)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_REF_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
_COMMIT_ID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_ANCESTRY = re.compile(r"(?:[~^][0-9]{0,6}){1,8}\Z")


class Scheme(StrEnum):
    """How a repository is reached."""

    HTTPS = "https"
    SSH = "ssh"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class RepositoryUrl:
    """A repository whose every part has passed the rules; made by `parse_repository_url` only."""

    scheme: Scheme
    host: str
    """Lower case; empty for a repository on this machine."""
    path: str
    """As the other side gets it. Starts with `/`, except in the scp-like form: relative to the login's home."""
    user: str | None = None
    """The ssh login name."""
    port: int | None = None
    """None: the scheme's own."""

    @property
    def authority(self) -> str:
        """`host` or `host:port`, without a login name."""
        return self.host if self.port is None else f"{self.host}:{self.port}"

    @property
    def canonical(self) -> str:
        """What git is given. It holds no secret."""
        if self.scheme is Scheme.FILE:
            return self.path
        login = f"{self.user}@" if self.user else ""
        if not self.path.startswith("/"):
            return f"{login}{self.host}:{self.path}"
        return f"{self.scheme}://{login}{self.authority}{self.path}"

    @property
    def name(self) -> str:
        """The last part of the path, without `.git`: what people call the repository."""
        parts = [part for part in self.path.split("/") if part and part != ".git"]
        return parts[-1].removesuffix(".git") if parts else "repository"


def parse_repository_url(url: str, *, allow_file: bool) -> RepositoryUrl:
    """Take a URL apart that somebody outside typed.

    Accepted: `https://host[:port]/path`, `ssh://[login@]host[:port]/path`, `login@host:path` and, where `allow_file`
    says so, `file:///path` and `/path`. Raises `UnsafeUrl` for all else; its text shows the URL without what could be
    a secret.
    """
    _refuse_hostile_text(url)
    if url.startswith("/") or url.lower().startswith("file://"):
        return _parse_file(url, allow_file=allow_file)
    scheme, separator, rest = url.partition("://")
    if not separator:
        return _parse_scp(url)
    if scheme.lower() not in (Scheme.HTTPS, Scheme.SSH):
        raise _unsafe(url, f"scheme {scheme[:20]!r} is not allowed, expected https or ssh")
    return _parse_network(url, Scheme(scheme.lower()), rest)


def shown(value: str) -> str:
    """The value as an error may show it: quoted, cut, and without login, password, query and fragment."""
    rest = value.rpartition("@")
    if rest[1]:
        scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]{0,19}:/{1,2}", value)
        value = f"{scheme.group() if scheme else ''}***@{rest[2]}"
    bare = re.split(r"[?#]", value, maxsplit=1)[0]
    return repr(bare if len(bare) <= _SHOWN_CHARS else bare[:_SHOWN_CHARS] + "…")


def check_ref(name: str) -> str:
    """Return the name of a branch, tag or `refs/...` when git would accept it and no command can misread it.

    The rules are those of `git check-ref-format --branch`. Raises `InvalidInput`.
    """
    if not name or len(name.encode(errors="replace")) > MAX_REF_BYTES or not name.isprintable():
        raise InvalidInput(f"ref {shown(name)}: expected 1 to {MAX_REF_BYTES} bytes of printable text")
    broken = any(not part or part.startswith(".") or part.endswith(".lock") for part in name.split("/"))
    if broken or name.startswith("-") or name.endswith(".") or name in ("@", "HEAD") or _REF_FORBIDDEN.search(name):
        raise InvalidInput(f"ref {shown(name)}: expected a name that git allows for a branch or a tag")
    return name


def check_revision(revision: str) -> str:
    """Return a revision: `HEAD`, a commit id or a ref, perhaps with `~2` or `^1` behind it. Raises `InvalidInput`."""
    base = _ANCESTRY.sub("", revision)
    if base != "HEAD":
        check_ref(base)
    return revision


def check_path(path: str) -> str:
    """Return the path of a file in a repository when it stays inside it and outside `.git`. Raises `InvalidInput`."""
    if not path or len(path.encode(errors="replace")) > MAX_PATH_BYTES or _UNPRINTABLE.search(path):
        raise InvalidInput(f"path {shown(path)}: expected 1 to {MAX_PATH_BYTES} bytes without control characters")
    if path.startswith(("/", "-")) or "\\" in path or any(_is_bad_segment(part) for part in path.split("/")):
        raise InvalidInput(f"path {shown(path)}: expected a relative path with '/' inside the repository, outside .git")
    return path


def check_host(authority: str) -> str:
    """Return `host` or `host:port` in lower case. Raises `UnsafeUrl` when it is anything else."""
    host, port = _split_port(authority, authority)
    return _host(host, authority) if port is None else f"{_host(host, authority)}:{port}"


def is_commit_id(text: str) -> bool:
    """Whether the text is a full object id: 40 (SHA-1) or 64 (SHA-256) hex digits."""
    return _COMMIT_ID.fullmatch(text) is not None


def _unsafe(url: str, reason: str) -> UnsafeUrl:
    return UnsafeUrl(f"repository {shown(url)}: {reason}")


def _refuse_hostile_text(url: str) -> None:
    if not url or len(url) > MAX_URL_CHARS:
        raise _unsafe(url, f"expected 1 to {MAX_URL_CHARS} characters, got {len(url)}")
    if url.startswith("-"):
        raise _unsafe(url, "a leading '-' would be read as an option")
    if "::" in url:
        raise _unsafe(url, "transport helpers ('name::') are not allowed")
    if _CONTROL.search(url):
        raise _unsafe(url, "control characters are not allowed")
    # Directories on this machine may have spaces in their names; nothing else may.
    if any(char.isspace() and (char != " " or not url.startswith("/")) for char in url):
        raise _unsafe(url, "white space is not allowed")


def _parse_file(url: str, *, allow_file: bool) -> RepositoryUrl:
    if not allow_file:
        raise _unsafe(url, "repositories on this machine are not allowed (NIGHTSHIFT_GIT_ALLOW_FILE_URLS is off)")
    path = url if url.startswith("/") else _decoded(url[len("file://") :].removeprefix("localhost"), url)
    if not path.strip("/") or not path.startswith("/"):
        raise _unsafe(url, "expected an absolute path, such as file:///srv/git/name.git")
    _refuse_bad_segments(path, url)
    return RepositoryUrl(Scheme.FILE, "", path.rstrip("/"))


def _parse_scp(url: str) -> RepositoryUrl:
    match = _SCP.fullmatch(url)
    if match is None:
        raise _unsafe(url, "expected https://host/path, ssh://login@host/path or login@host:path")
    user, host, path = match.groups()
    return RepositoryUrl(Scheme.SSH, _host(host, url), _remote_path(path, url), user=_login(user, url))


def _parse_network(url: str, scheme: Scheme, rest: str) -> RepositoryUrl:
    authority, slash, path = rest.partition("/")
    user, at, address = authority.rpartition("@")
    if at and scheme is Scheme.HTTPS:
        raise _unsafe(url, "credentials in a URL are not allowed, use NIGHTSHIFT_GIT_TOKEN")
    host, port = _split_port(address, url)
    return RepositoryUrl(
        scheme,
        _host(host, url),
        _remote_path(slash + path, url),
        user=_login(user, url) if at else None,
        port=None if port == _DEFAULT_PORTS[scheme] else port,
    )


def _login(user: str, url: str) -> str:
    if not _LOGIN.fullmatch(user):
        raise _unsafe(url, "expected a plain login name before '@', without a password")
    return user


def _host(host: str, url: str) -> str:
    if not _HOST.fullmatch(host.lower()):
        raise _unsafe(url, "expected a host name in ASCII or an IPv4 address")
    return host.lower()


def _split_port(address: str, url: str) -> tuple[str, int | None]:
    host, colon, port = address.partition(":")
    if not colon:
        return host, None
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65_535:
        raise _unsafe(url, "expected a port between 1 and 65535")
    return host, int(port)


def _remote_path(path: str, url: str) -> str:
    if not path.strip("/"):
        raise _unsafe(url, "expected the path of a repository after the host")
    if not _REMOTE_PATH.fullmatch(path):
        raise _unsafe(url, "expected a path of letters, digits and ._~+@,=/- (others percent-encoded)")
    _refuse_bad_segments(_decoded(path, url), url)
    return path.rstrip("/")


def _refuse_bad_segments(path: str, url: str) -> None:
    for part in path.split("/"):
        if part in (".", "..") or part.startswith("-"):
            raise _unsafe(url, "'.', '..' and names with a leading '-' are not allowed in its path")


def _decoded(path: str, url: str) -> str:
    try:
        text = unquote_to_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise _unsafe(url, "expected percent-encoded UTF-8") from error
    if _CONTROL.search(text):
        raise _unsafe(url, "control characters are not allowed")
    return text


def _is_bad_segment(part: str) -> bool:
    # `.git` also as macOS (which ignores format characters) and Windows (which drops dots and spaces) read it.
    visible = "".join(char for char in part if unicodedata.category(char) != "Cf")
    plain = visible.lower().rstrip(". ")
    return part in ("", ".", "..") or plain in (".git", "git~1") or part.startswith("-")
