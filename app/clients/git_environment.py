"""What a git process sees of the world: an environment made from nothing, and where its secret is.

- No configuration of the machine or of a user counts. HOME is a directory of ours with one file, `.gitconfig`; the
  same values are given in the environment again, because there they also overrule the configuration of a repository.
  (git takes the environment's values away from the far end of a local transport, and some versions accept
  `safe.directory` from a file only, so that the file is needed too.)
- Only the one protocol that a URL needs is allowed (`GIT_ALLOW_PROTOCOL`), none for commands that need no remote.
- A token is a variable in the environment of the git processes that talk to its host, and nowhere else: not in argv,
  not in a file. A credential helper, which git asks for exactly that https host and port, prints it. After a redirect
  to another host git asks nobody, prompts nobody, and fails.

Needs git >= 2.31 (`GIT_CONFIG_COUNT`).
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from app.clients.git_url import RepositoryUrl, Scheme, check_host
from app.errors import InvalidInput
from app.settings import inherited

INHERITED: Final = (
    "PATH",
    "TMPDIR",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
    "SSH_AUTH_SOCK",
)
"""The variables of the service's own environment that git, curl and ssh may see: how to reach and trust the network."""

SSH_COMMAND: Final = " ".join(
    (
        "ssh",
        "-oBatchMode=yes",
        # A host nobody has vouched for is refused: its key belongs in the known_hosts of the service's user.
        "-oStrictHostKeyChecking=yes",
        "-oConnectTimeout=30",
        "-oServerAliveInterval=15",
        "-oServerAliveCountMax=4",
        "-oForwardAgent=no",
        "-oClearAllForwardings=yes",
        "-oPermitLocalCommand=no",
        # A shared connection would outlive the command in a process of its own.
        "-oControlMaster=no",
        "-oControlPath=none",
    )
)

_TOKEN: Final = "NIGHTSHIFT_GIT_CHILD_TOKEN"  # noqa: S105  the variable's name
_USERNAME: Final = "NIGHTSHIFT_GIT_CHILD_USERNAME"
# `printf` is built into the shell, so that the token is in no argv; `store` and `erase` are answered with nothing.
_HELPER: Final = (
    f'!f() {{ if test "$1" = get; then printf "username=%s\\npassword=%s\\n" "${_USERNAME}" "${_TOKEN}"; fi; }}; f'
)

_CONFIG: Final = {
    "safe.directory": "*",  # who owns a file source or a mounted volume says nothing here: no program of it is run
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.attributesFile": "/dev/null",
    "core.quotePath": "false",
    "core.autocrlf": "false",
    "core.pager": "cat",
    "core.askPass": "",
    "credential.helper": "",
    "protocol.ext.allow": "never",
    "protocol.fd.allow": "never",
    "http.followRedirects": "initial",  # forges answer renamed repositories and a missing `.git` this way
    "http.lowSpeedLimit": "1",
    "http.lowSpeedTime": "60",  # ends a transfer on which nothing moves, also when the worker has died
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "commit.gpgSign": "false",
    "log.showSignature": "false",
    "gc.autoDetach": "false",
    "maintenance.autoDetach": "false",
    "init.defaultBranch": "main",
    "init.templateDir": "",
    "i18n.logOutputEncoding": "UTF-8",
    "advice.detachedHead": "false",
}

_FIXED: Final = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",
    "GIT_EDITOR": "false",
    "GIT_SEQUENCE_EDITOR": "true",
    "GIT_PAGER": "cat",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_LFS_SKIP_SMUDGE": "1",
    "GIT_SSH_COMMAND": SSH_COMMAND,
    "GIT_SSH_VARIANT": "ssh",
    "LC_ALL": "C",
    "LANGUAGE": "",
    "TZ": "UTC",
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """A token for exactly one https host. Raises `UnsafeUrl` for a bad host, `InvalidInput` for unprintable text."""

    host: str
    """`host` or `host:port`."""
    token: SecretStr
    username: str = "x-access-token"
    """Forges look at the token only; GitHub's app tokens need this name."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", check_host(self.host).removesuffix(":443"))
        token = self.token.get_secret_value()
        # A line break would add lines to what the credential helper says.
        if not token or not token.isprintable() or not self.username.isprintable():
            raise InvalidInput(f"git credentials for {self.host}: expected a token and a user name of printable text")

    def match(self, url: RepositoryUrl) -> bool:
        """Whether the token may be shown to the repository's host."""
        return url.scheme is Scheme.HTTPS and url.authority == self.host


def environment(
    home: Path,
    *,
    url: RepositoryUrl | None = None,
    credentials: Credentials | None = None,
    protocol: Scheme | None = None,
) -> dict[str, str]:
    """The whole environment of a git process.

    With `url` its protocol is allowed, and `credentials` are handed over when they belong to its host. `protocol`
    allows one without a URL (a local clone from a mirror).
    """
    allowed = url.scheme if url else protocol
    given = credentials if credentials and url and credentials.match(url) else None
    config = list(_CONFIG.items())
    if given:
        config.append((f"credential.https://{given.host}.helper", _HELPER))
    return {
        **inherited(INHERITED),
        **_FIXED,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "GIT_CONFIG_GLOBAL": str(home / ".gitconfig"),
        "GIT_ALLOW_PROTOCOL": str(allowed or ""),
        **_numbered(config),
        **({_USERNAME: given.username, _TOKEN: given.token.get_secret_value()} if given else {}),
    }


def make_home(home: Path) -> None:
    """Write the directory that git takes for its user's home. Safe to repeat, also from many processes at once."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=home)
    with os.fdopen(handle, "w") as file:
        file.write("".join(_as_file_entry(key, value) for key, value in _CONFIG.items()))
    Path(name).replace(home / ".gitconfig")


def _numbered(config: list[tuple[str, str]]) -> dict[str, str]:
    numbered = {"GIT_CONFIG_COUNT": str(len(config))}
    for index, (key, value) in enumerate(config):
        numbered |= {f"GIT_CONFIG_KEY_{index}": key, f"GIT_CONFIG_VALUE_{index}": value}
    return numbered


def _as_file_entry(key: str, value: str) -> str:
    section, _, name = key.rpartition(".")
    outer, _, inner = section.partition(".")
    header = f'[{outer} "{inner}"]' if inner else f"[{outer}]"
    return f'{header}\n\t{name} = "{value}"\n'
