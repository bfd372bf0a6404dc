"""Ends an embedded server that nobody uses any more; also a small program of its own, the watch.

`python embedded_watch.py USERS_LOCK SERVER_LOCK` waits, without using the processor, until no process holds the lock
on `USERS_LOCK`; then it ends the server that holds `SERVER_LOCK` and exits. The kernel lets go of a lock however its
process ends, so the watch also cleans up after SIGKILL. It runs with `python -I -S` and imports the standard library
only, so it starts in about 10 ms.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from contextlib import suppress

STOP_GRACE_S = 10.0
"""From SIGTERM to SIGKILL: the server writes its append-only file out and exits, which takes milliseconds."""
KILL_GRACE_S = 10.0
"""A killed server frees its lock when the kernel has taken it apart, and its rewriting child, if any, has ended."""
POLL_S = 0.005


def open_lock(path: str | os.PathLike[str]) -> int:
    """Open or make a lock file. A lock taken on the descriptor lasts until all copies of it are closed."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def take_lock(descriptor: int, kind: int, timeout_s: float = 0.0) -> bool:
    """Take the flock `kind` (`fcntl.LOCK_EX` or `LOCK_SH`); False when it is still not to be had after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        else:
            return True


def is_free(server_lock: int, timeout_s: float = 0.0) -> bool:
    """Whether no server holds the lock, at the latest after `timeout_s`."""
    if not take_lock(server_lock, fcntl.LOCK_EX, timeout_s):
        return False
    fcntl.flock(server_lock, fcntl.LOCK_UN)
    return True


def server_pid(server_lock: int) -> int | None:
    """The pid in the lock file. While the lock is held it is the running server's, for only a server holds it."""
    text = os.pread(server_lock, 20, 0)
    return int(text) if text.strip().isdigit() else None


def end_server(server_lock: int, *, grace_s: float = STOP_GRACE_S) -> None:
    """End the server that holds `server_lock`: SIGTERM, after `grace_s` SIGKILL (at once if 0). None may be running."""
    steps = ((signal.SIGTERM, grace_s), (signal.SIGKILL, KILL_GRACE_S))
    for number, patience_s in steps if grace_s else steps[1:]:
        pid = None if is_free(server_lock) else server_pid(server_lock)
        if pid is None:
            return
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        if is_free(server_lock, patience_s):
            return


def main(users_path: str, server_path: str) -> None:
    """Wait for the last user of the server to go, then end the server."""
    users, server = open_lock(users_path), open_lock(server_path)
    fcntl.flock(users, fcntl.LOCK_EX)
    end_server(server)


if __name__ == "__main__":
    main(*sys.argv[1:])
