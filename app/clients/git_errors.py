"""What git's exit status and messages mean, and what of them may be shown.

git says what went wrong in words only. They are stable in the C locale, and the tests hold them against real servers. A
message that no rule knows becomes `GitFailed`, which is not retried: rules are added here, never guessed elsewhere.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from app.clients.git_url import RepositoryUrl, Scheme
from app.errors import (
    ClientError,
    CredentialsRefused,
    GitFailed,
    RefNotFound,
    RemoteStatus,
    RemoteTimeout,
    RemoteUnreachable,
    RepositoryNotFound,
)

MAX_SHOWN_CHARS: Final = 2_000
"""Characters of git's messages that an error repeats; the last ones, which say why it ended."""
_HIDDEN: Final = "***"
_USERINFO = re.compile(r"://[^/\s'\"@]+@")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Failure:
    """A git process that ended with an error."""

    command: str
    status: int
    stderr: str = field(repr=False)
    """As git wrote it: taking a short secret out first could spoil the words that the rules look for."""
    url: RepositoryUrl | None = None
    secret: str = field(default="", repr=False)
    """The token that git was given for the host; empty: none."""

    def said(self, text: str) -> str:
        """The end of what git said, redacted, without `fatal:`, hints and empty lines."""
        lines = (re.sub(r"^(fatal|error): ", "", line.strip()) for line in redact(text, self.secret).splitlines())
        joined = "; ".join(line for line in lines if line and not line.startswith("hint: "))
        return joined[-MAX_SHOWN_CHARS:] or "git said nothing"


_Make = Callable[[Failure, re.Match[str]], ClientError]


def redact(text: str, secret: str = "") -> str:
    """Take a secret, also percent- or base64-encoded, logins in URLs and control characters out of a text."""
    for form in _forms(secret):
        text = text.replace(form, _HIDDEN)
    return _CONTROL.sub("", _USERINFO.sub(f"://{_HIDDEN}@", text))


def classify(failure: Failure) -> ClientError:
    """The error that describes a failed git process. The first rule that fits decides."""
    for pattern, make in _RULES:
        if match := pattern.search(failure.stderr):
            return make(failure, match)
    said = failure.said(failure.stderr)
    return GitFailed(f"git {failure.command} ended with status {failure.status}: {said}")


def _forms(secret: str) -> Iterable[str]:
    plain = base64.b64encode(secret.encode()).decode()
    return (secret, quote(secret, safe=""), plain, plain.rstrip("=")) if secret else ()


def _where(failure: Failure) -> str:
    return failure.url.canonical if failure.url else "the repository"


def _credentials(failure: Failure, _match: re.Match[str]) -> ClientError:
    where = _where(failure)
    if failure.url and failure.url.scheme is Scheme.SSH:
        return CredentialsRefused(f"{where}: the host accepts no ssh key of this service; register one there")
    if failure.secret:
        return CredentialsRefused(f"{where}: the host refuses NIGHTSHIFT_GIT_TOKEN, or it has no right to do this")
    host = failure.url.authority if failure.url else "its host"
    return CredentialsRefused(
        f"{where}: the host asks for credentials (or has no such public repository); "
        f"set NIGHTSHIFT_GIT_TOKEN and NIGHTSHIFT_GIT_TOKEN_HOST={host}"
    )


def _repository(failure: Failure, _match: re.Match[str]) -> ClientError:
    return RepositoryNotFound(f"{_where(failure)}: no such repository, or it is hidden from these credentials")


def _workspace(failure: Failure, match: re.Match[str]) -> ClientError:
    return _damaged(failure, match) or RepositoryNotFound("the workspace is not a git repository")


def _ref(failure: Failure, match: re.Match[str]) -> ClientError:
    return RefNotFound(f"{_where(failure)}: no such branch, tag or commit ({failure.said(match.group())})")


def _object(failure: Failure, match: re.Match[str]) -> ClientError:
    return _damaged(failure, match) or _ref(failure, match)


def _damaged(failure: Failure, match: re.Match[str]) -> ClientError | None:
    """Commands that talk to a remote run in directories of our own, so it is those that lack something."""
    if not failure.url:
        return None
    return GitFailed(f"{failure.url.canonical}: its mirror here is damaged ({failure.said(match.group())})")


def _status(failure: Failure, match: re.Match[str]) -> ClientError:
    status = int(match.group(1))
    return RemoteStatus(f"{_where(failure)}: the host answered with HTTP status {status}", remote_status=status)


def _timeout(failure: Failure, match: re.Match[str]) -> ClientError:
    return RemoteTimeout(f"{_where(failure)}: {failure.said(match.group())}")


def _unreachable(failure: Failure, match: re.Match[str]) -> ClientError:
    return RemoteUnreachable(f"{_where(failure)}: {failure.said(match.group())}")


def _host_key(failure: Failure, _match: re.Match[str]) -> ClientError:
    return GitFailed(f"{_where(failure)}: the host's ssh key is not known; add it to known_hosts of the service's user")


def _certificate(failure: Failure, match: re.Match[str]) -> ClientError:
    return GitFailed(f"{_where(failure)}: the host's certificate is not trusted ({failure.said(match.group())})")


def _rule(pattern: str, make: _Make) -> tuple[re.Pattern[str], _Make]:
    return re.compile(rf"^.*(?:{pattern}).*$", re.MULTILINE | re.IGNORECASE), make


# From the particular to the general: "unable to access" and "the remote end hung up" follow many causes.
_RULES: Final = (
    _rule(r"host key verification failed|host key for .* has changed", _host_key),
    _rule(r"permission denied \(|authentication failed|could not read (?:username|password)", _credentials),
    _rule(r"requested url returned error: 40[13]|HTTP 40[13] curl", _credentials),
    _rule(r"certificate (?:problem|verification failed)|certificate verify failed", _certificate),
    _rule(r"not found|not valid: is this a git repository|returned error: 404", _repository),
    _rule(r"requested url returned error: ([45]\d\d)", _status),
    _rule(r"does not appear to be a git repository|^fatal: repository '.*' does not exist", _repository),
    _rule(r"could not find repository|cannot find repository|project you were looking for", _repository),
    _rule(r"not a git repository", _workspace),
    _rule(r"couldn't find remote ref|not our ref|no such remote ref|unadvertised object", _ref),
    _rule(r"unknown revision|bad revision|not a valid object name|bad object|needed a single revision", _object),
    _rule(r"timed out|operation too slow|timeout was reached", _timeout),
    _rule(
        r"could not resolve host|failed to connect|couldn't connect|connection (?:refused|reset|closed)", _unreachable
    ),
    _rule(r"network is unreachable|no route to host|recv failure|send failure|broken pipe", _unreachable),
    _rule(r"rpc failed|early eof|remote end hung up|unexpected disconnect|gnutls_|ssl_|tls ", _unreachable),
    _rule(r"empty reply from server|transfer closed|could not read from remote repository", _unreachable),
)
